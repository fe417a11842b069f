//! What a server gives: the document of its offer, read as others write it (RFC 5572 section 4.7.1).
//!
//! White space around texts, compressed addresses, children in any order are all right; what a tunnel cannot be made of is
//! not. Pure.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::client::Transport;
use super::codec::Mode;
use super::xml::{Keepalive, Kind, Name, Net, Tunnel};

/// What a server gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// [`Mode::V6V4`] or [`Mode::V6UdpV4`].
    pub mode: Mode,
    /// Where the tunnel ends on the server's side, where it says so.
    pub server_v4: Option<Ipv4Addr>,
    /// The server's address in the tunnel, where it says so.
    pub server_v6: Option<Ipv6Addr>,
    /// Our own IPv4 address, as the server tells it.
    pub client_v4: Option<Ipv4Addr>,
    /// Our address in the tunnel.
    pub client_v6: Ipv6Addr,
    /// Our name.
    pub name: Option<String>,
    /// The network behind us.
    pub prefix: Option<Net>,
    /// Resolvers.
    pub dns: Vec<Ipv6Addr>,
    /// Seconds between signs of life, 0 for none, and whom to ask.
    pub keepalive: (u32, Option<Ipv6Addr>),
    /// How long it lasts; read as seconds.
    pub lifetime: Option<Duration>,
}

impl Granted {
    /// Reads the document of an offer for a wish of type `wanted`.
    ///
    /// # Errors
    /// Why it is of no use.
    pub fn parse(xml: &[u8], wanted: Mode, over: Transport) -> Result<Self, String> {
        let tunnel = Tunnel::parse(xml.trim_ascii()).map_err(|why| why.to_string())?;
        let mode = match (tunnel.mode(), wanted) {
            (Some(Ok(mode @ (Mode::V6V4 | Mode::V6UdpV4))), _)
            | (None, mode @ (Mode::V6V4 | Mode::V6UdpV4)) => mode,
            (Some(_), _) | (None, Mode::V6AnyV4 | Mode::V4V6) => {
                return Err("its type is none of ours".to_owned());
            }
        };
        if (mode, over) == (Mode::V6UdpV4, Transport::Tcp) {
            return Err("a tunnel in UDP cannot be given over TCP".to_owned());
        }
        let server_v4 = tunnel.server.ipv4().flatten();
        if mode == Mode::V6V4 && server_v4.is_none() {
            return Err("it does not say where the tunnel ends".to_owned());
        }
        let client_v6 = tunnel.client.ipv6().flatten().ok_or("it has no IPv6 address for us")?;
        let dns = tunnel.dns.0.iter().filter_map(|one| one.text.parse().ok()).collect();
        Ok(Self {
            mode,
            server_v4,
            server_v6: tunnel.server.ipv6().flatten(),
            client_v4: tunnel.client.ipv4().flatten(),
            client_v6,
            name: tunnel.client.text(Kind::Name).and_then(Name::parse).map(|n| n.as_str().to_owned()),
            prefix: network(&tunnel)?,
            dns,
            keepalive: tunnel.keepalive.as_ref().map_or((0, None), signs_of_life),
            lifetime: tunnel.lifetime.filter(|n| *n > 0).map(Duration::from_secs),
        })
    }
}

fn signs_of_life(keepalive: &Keepalive) -> (u32, Option<Ipv6Addr>) {
    let asked = keepalive.address.ipv6().flatten().filter(|addr| !addr.is_unspecified());
    (keepalive.interval.unwrap_or(0), asked)
}

/// The network behind us, its host bits cut off.
fn network(tunnel: &Tunnel) -> Result<Option<Net>, String> {
    let Some(prefix) = tunnel.router.as_ref().and_then(|router| router.prefix.as_ref()) else {
        return Ok(None);
    };
    // Some servers write the length behind the address too.
    let text = prefix.text.split('/').next().unwrap_or_default();
    let length = prefix.length.as_deref().unwrap_or("nothing").escape_debug();
    let wrong = || format!("'{}' with {length} as its length is no network", text.escape_debug());
    let addr: Ipv6Addr = text.parse().map_err(|_| wrong())?;
    let bits = prefix.bits().filter(|bits| *bits > 0).ok_or_else(wrong)?;
    let mask = u128::MAX << (128 - u32::from(bits));
    Ok(Some((Ipv6Addr::from(u128::from(addr) & mask), bits)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The form of the RFC's own figures: white space around texts, compressed addresses, one line.
    #[test]
    fn documents_are_read_as_others_write_them() {
        let parse = |xml: &str| Granted::parse(xml.as_bytes(), Mode::V6AnyV4, Transport::Udp);
        let xml = "<?xml version='1.0'?>\n<tunnel lifetime=\"1440\" type=\"v6udpv4\" action=\"info\"><client>\
            <router><prefix length='56'> 2001:db8:0:ff00::1/56 </prefix></router><keepalive interval='25'/>\
            <address type=\"ipv6\">\n 2001:db8::2 \n</address></client><server/></tunnel>";
        let granted = parse(xml).unwrap();
        assert_eq!(granted.prefix, Some(("2001:db8:0:ff00::".parse().unwrap(), 56)));
        assert_eq!(
            (granted.keepalive, granted.lifetime, granted.server_v6),
            ((25, None), Some(Duration::from_secs(1440)), None)
        );
        for (old, new, why) in [
            ("v6udpv4", "v6anyv4", "type"),
            ("v6udpv4", "v6v4", "where the tunnel ends"),
            ("2001:db8::2", "2001:db8::g", "no IPv6 address"),
            ("length='56'", "length='129'", "no network"),
            ("length='56'", "", "no network"),
        ] {
            let told = parse(&xml.replace(old, new)).unwrap_err();
            assert!(told.contains(why), "{new}: {told}");
        }
        let udp_by_tcp = Granted::parse(xml.as_bytes(), Mode::V6AnyV4, Transport::Tcp);
        assert!(udp_by_tcp.unwrap_err().contains("over TCP"));
    }
}
