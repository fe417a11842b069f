//! The two ends' configuration, as text, and the addresses of the demo's little network.
//!
//! Pure. The text is what a user could put into a file for `sixway run`; refuses to know who reads it.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use serde::Serialize;

/// How IPv6 travels through IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Encap {
    /// Directly, protocol 41 (RFC 4213).
    Proto41,
    /// In UDP (RFC 5572 section 4.5).
    Udp,
}

impl Encap {
    /// Its name in configuration and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Proto41 => "proto41",
            Self::Udp => "udp",
        }
    }

    /// The largest inner packet in octets that fits the outer network's 1500.
    pub fn mtu(self) -> u16 {
        match self {
            Self::Proto41 => 1480,
            Self::Udp => 1472,
        }
    }

    fn endpoint(self, addr: Ipv4Addr) -> String {
        match self {
            Self::Proto41 => addr.to_string(),
            Self::Udp => format!("{addr}:{UDP_PORT}"),
        }
    }

    fn listeners(self) -> String {
        match self {
            Self::Proto41 => "[udp]\nports = []\n[proto41]\nenabled = true\n".to_owned(),
            Self::Udp => format!("[udp]\nports = [{UDP_PORT}]\n[proto41]\nenabled = false\n"),
        }
    }
}

/// The configuration of the router, which has the host behind it.
pub fn router(encap: Encap, admin_socket: &Path) -> String {
    let (listeners, mtu) = (encap.listeners(), encap.mtu());
    let (local, remote) = (encap.endpoint(ROUTER_OUTER), encap.endpoint(CLIENT_OUTER));
    format!(
        r#"[router]
tun = "six0"
address = ["{ROUTER_INNER}/64"]
outer = "{ROUTER_OUTER}"
forwarding = "set"
[admin]
socket = "{}"
{listeners}[[tunnel]]
name = "client"
encap = "{}"
local = "{local}"
remote = "{remote}"
prefixes = ["fd00:2:0:1::/64"]
mtu = {mtu}
"#,
        admin_socket.display(),
        encap.name(),
    )
}

/// The configuration of the client, which sends everything into its tunnel.
pub fn client(encap: Encap, admin_socket: &Path) -> String {
    let (listeners, mtu) = (encap.listeners(), encap.mtu());
    let (local, remote) = (encap.endpoint(CLIENT_OUTER), encap.endpoint(ROUTER_OUTER));
    format!(
        r#"[router]
tun = "six0"
address = ["{CLIENT_INNER}/64"]
outer = "{CLIENT_OUTER}"
[admin]
socket = "{}"
{listeners}[[tunnel]]
name = "router"
encap = "{}"
local = "{local}"
remote = "{remote}"
prefixes = ["::/0"]
default_route = true
mtu = {mtu}
"#,
        admin_socket.display(),
        encap.name(),
    )
}

/// Both, in the order they are shown.
pub const ENCAPS: [Encap; 2] = [Encap::Proto41, Encap::Udp];
/// The client's IPv4 address.
pub const CLIENT_OUTER: Ipv4Addr = Ipv4Addr::new(10, 71, 0, 2);
/// The router's IPv4 address.
pub const ROUTER_OUTER: Ipv4Addr = Ipv4Addr::new(10, 71, 0, 1);
/// The client's address in the tunnel.
pub const CLIENT_INNER: Ipv6Addr = Ipv6Addr::new(0xfd00, 2, 0, 1, 0, 0, 0, 2);
/// The router's address in its tunnel device.
pub const ROUTER_INNER: Ipv6Addr = Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 1);
/// The router's address on the host's side.
pub const ROUTER_LAN: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 1);
/// The host's address.
pub const HOST: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 2);
const UDP_PORT: u16 = 3653;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_are_valid_toml_and_meet() {
        for encap in ENCAPS {
            let parse = |text: String| -> toml::Table { text.parse().unwrap() };
            let router = parse(router(encap, Path::new("/tmp/r.sock")));
            let client = parse(client(encap, Path::new("/tmp/c.sock")));
            assert_eq!(router["tunnel"][0]["local"], client["tunnel"][0]["remote"]);
            assert_eq!(router["tunnel"][0]["remote"], client["tunnel"][0]["local"]);
            assert_eq!(router["tunnel"][0]["mtu"], client["tunnel"][0]["mtu"]);
            assert_eq!(client["tunnel"][0]["encap"].as_str(), Some(encap.name()));
            assert_eq!(serde_json::to_value(encap).unwrap(), encap.name());
            let listens = router["udp"]["ports"].as_array().is_some_and(|ports| !ports.is_empty());
            assert_eq!(listens, encap == Encap::Udp);
        }
    }
}
