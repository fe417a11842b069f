//! What a granted tunnel means for this machine: the router's configuration, and what a script in gogoc's style is told.
//!
//! Texts only: who starts the router and runs the script is not known here.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};

use super::client::Granted;
use super::codec::Mode;
use super::xml::{Net, expanded};

/// This machine's side of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Side {
    /// Our own endpoint: for tunnels in UDP the socket's, which has asked for the tunnel.
    pub local: SocketAddrV4,
    /// The server's endpoint, as we have reached it.
    pub server: SocketAddrV4,
    /// Name of the TUN device.
    pub tun: String,
    /// Largest inner packet in octets.
    pub mtu: u16,
    /// Whether the default route leads into the tunnel.
    pub default_route: bool,
    /// Whether a script gives the device its addresses and routes.
    pub scripted: bool,
}

/// The router's configuration that sets up what was granted: the file that `sixway run` would take.
pub fn configuration(granted: &Granted, side: &Side) -> String {
    let Side { local, server, tun, mtu, .. } = side;
    let (encap, near, far) = match granted.mode {
        // The way that the messages took is the way of the packets, whatever the server thinks its address is.
        Mode::V6UdpV4 => ("udp", local.to_string(), server.to_string()),
        Mode::V6V4 | Mode::V6AnyV4 | Mode::V4V6 => {
            ("proto41", local.ip().to_string(), granted.server_v4.unwrap_or(*server.ip()).to_string())
        }
    };
    let addresses = if side.scripted { Vec::new() } else { addresses(granted) };
    let addresses: Vec<String> = addresses.iter().map(|addr| format!("\"{addr}/128\"")).collect();
    let addresses = addresses.join(", ");
    let default_route = side.default_route && !side.scripted;
    format!(
        "[router]\ntun = \"{tun}\"\naddress = [{addresses}]\nroutes = [{}]\n\n[udp]\nports = []\n\n[[tunnel]]\nname = \"tsp\"\n\
         encap = \"{encap}\"\nlocal = \"{near}\"\nremote = \"{far}\"\nprefixes = [\"::/0\"]\nmtu = {mtu}\n\
         default_route = {default_route}\n",
        routes(granted, side).join(", "),
    )
}

/// Our address in the tunnel, and the first one of our network.
fn addresses(granted: &Granted) -> Vec<Ipv6Addr> {
    let first = |(addr, len): Net| {
        let inside = if len < 128 { u128::from(addr) | 1 } else { u128::from(addr) };
        Ipv6Addr::from(inside)
    };
    let mut all = vec![granted.client_v6];
    all.extend(granted.prefix.map(first).filter(|addr| *addr != granted.client_v6));
    all
}

/// Without a default route, at least whoever is asked for a sign of life must be reached.
fn routes(granted: &Granted, side: &Side) -> Vec<String> {
    if side.default_route || side.scripted {
        return Vec::new();
    }
    let mut all: Vec<Ipv6Addr> = granted.server_v6.into_iter().chain(granted.keepalive.1).collect();
    all.dedup();
    all.iter().map(|addr| format!("\"{addr}/128\"")).collect()
}

/// What a script is run for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// The tunnel has come up.
    Up,
    /// It is about to go.
    Down,
}

/// What a script must be told beside the tunnel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct House {
    /// Folder of the client's files.
    pub folder: String,
    /// Whether the machine routes for a network, and by which device.
    pub home: Option<String>,
}

/// The variables that gogoc gives its template scripts. The device is a TUN device for protocol 41 too, and a script asks
/// `TSP_TUNNEL_MODE` only to know whether to make one: so that says `v6udpv4`, and `SIXWAY_TUNNEL_MODE` the truth.
pub fn variables(
    granted: &Granted,
    side: &Side,
    house: &House,
    occasion: Occasion,
) -> Vec<(&'static str, String)> {
    let operation = match occasion {
        Occasion::Up => "TSP_TUNNEL_CREATION",
        Occasion::Down => "TSP_TUNNEL_TEARDOWN",
    };
    let text = |addr: Option<Ipv4Addr>, or: Ipv4Addr| addr.unwrap_or(or).to_string();
    let mut all = vec![
        ("TSP_OPERATION", operation.to_owned()),
        ("TSP_VERBOSE", "1".to_owned()),
        ("TSP_HOME_DIR", house.folder.clone()),
        ("TSP_TUNNEL_MODE", Mode::V6UdpV4.name().to_owned()),
        ("SIXWAY_TUNNEL_MODE", granted.mode.name().to_owned()),
        ("TSP_TUNNEL_INTERFACE", side.tun.clone()),
        ("TSP_HOST_TYPE", if house.home.is_some() { "router" } else { "host" }.to_owned()),
        ("TSP_HOME_INTERFACE", house.home.clone().unwrap_or_default()),
        ("TSP_CLIENT_ADDRESS_IPV4", text(granted.client_v4, *side.local.ip())),
        ("TSP_CLIENT_ADDRESS_IPV6", expanded(granted.client_v6)),
        ("TSP_SERVER_ADDRESS_IPV4", text(granted.server_v4, *side.server.ip())),
        ("TSP_SERVER_ADDRESS_IPV6", granted.server_v6.map(expanded).unwrap_or_default()),
        ("TSP_TUNNEL_PREFIXLEN", "128".to_owned()),
        ("TSP_CLIENT_DNS_ADDRESS_IPV6", granted.dns.first().copied().map(expanded).unwrap_or_default()),
        ("TSP_CLIENT_DNS_NAME", granted.name.clone().unwrap_or_default()),
    ];
    if let Some((addr, len)) = granted.prefix {
        all.push(("TSP_PREFIX", leading((addr, len))));
        all.push(("TSP_PREFIXLEN", len.to_string()));
    }
    all
}

/// The groups of a network's address that its length reaches into, all digits written: scripts put `::1/64` behind it.
fn leading((addr, len): Net) -> String {
    let groups = usize::from(len).div_ceil(16).max(1);
    expanded(addr).split(':').take(groups).collect::<Vec<_>>().join(":")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn granted(mode: Mode) -> Granted {
        Granted {
            mode,
            server_v4: Some(Ipv4Addr::new(192, 0, 2, 1)),
            server_v6: Some("2001:db8:f0::1".parse().unwrap()),
            client_v4: Some(Ipv4Addr::new(192, 0, 2, 9)),
            client_v6: "2001:db8:f0::2".parse().unwrap(),
            name: Some("alice.broker.example".to_owned()),
            prefix: Some(("2001:db8:1234::".parse().unwrap(), 48)),
            dns: vec!["2001:db8::53".parse().unwrap()],
            keepalive: (30, Some("2001:db8:f0::1".parse().unwrap())),
            lifetime: Some(Duration::from_secs(604_800)),
        }
    }

    fn side(default_route: bool, scripted: bool) -> Side {
        Side {
            local: "10.0.0.2:40000".parse().unwrap(),
            server: "192.0.2.77:3653".parse().unwrap(),
            tun: "six0".to_owned(),
            mtu: 1280,
            default_route,
            scripted,
        }
    }

    fn parsed(mode: Mode, side: &Side) -> crate::config::Config {
        let text = configuration(&granted(mode), side);
        crate::config::Config::parse("tsp", &text).unwrap_or_else(|why| panic!("{why}\n{text}"))
    }

    #[test]
    fn what_is_set_up_is_a_valid_configuration() {
        for mode in [Mode::V6V4, Mode::V6UdpV4] {
            for (route, script) in [(true, false), (false, false), (true, true)] {
                let config = parsed(mode, &side(route, script));
                assert_eq!(config.router.address.len(), if script { 0 } else { 2 });
                assert_eq!(config.tunnels[0].default_route, route && !script);
                assert_eq!(config.kernel_routes().len(), usize::from(!route && !script));
            }
        }
    }

    #[test]
    fn packets_in_udp_go_where_the_messages_went() {
        let text = configuration(&granted(Mode::V6UdpV4), &side(true, false));
        assert!(text.contains("local = \"10.0.0.2:40000\"\nremote = \"192.0.2.77:3653\""), "{text}");
        let text = configuration(&granted(Mode::V6V4), &side(true, false));
        assert!(text.contains("local = \"10.0.0.2\"\nremote = \"192.0.2.1\""), "{text}");
    }

    /// What gogoc 1.2 gave its script for the same tunnel.
    #[test]
    fn scripts_are_told_what_gogoc_tells_them() {
        let house = House { folder: "/etc/gogoc".to_owned(), home: Some("lo".to_owned()) };
        let told = variables(&granted(Mode::V6V4), &side(true, true), &house, Occasion::Up);
        for (name, value) in [
            ("TSP_OPERATION", "TSP_TUNNEL_CREATION"),
            ("SIXWAY_TUNNEL_MODE", "v6v4"),
            ("TSP_TUNNEL_INTERFACE", "six0"),
            ("TSP_HOST_TYPE", "router"),
            ("TSP_HOME_INTERFACE", "lo"),
            ("TSP_TUNNEL_PREFIXLEN", "128"),
            ("TSP_CLIENT_ADDRESS_IPV4", "192.0.2.9"),
            ("TSP_SERVER_ADDRESS_IPV4", "192.0.2.1"),
            ("TSP_CLIENT_ADDRESS_IPV6", "2001:0db8:00f0:0000:0000:0000:0000:0002"),
            ("TSP_SERVER_ADDRESS_IPV6", "2001:0db8:00f0:0000:0000:0000:0000:0001"),
            ("TSP_CLIENT_DNS_ADDRESS_IPV6", "2001:0db8:0000:0000:0000:0000:0000:0053"),
            ("TSP_CLIENT_DNS_NAME", "alice.broker.example"),
            ("TSP_PREFIX", "2001:0db8:1234"),
            ("TSP_PREFIXLEN", "48"),
        ] {
            let found = told.iter().find(|(key, _)| *key == name).map(|(_, text)| text.as_str());
            assert_eq!(found, Some(value), "{name}");
        }
        let host = variables(
            &Granted { prefix: None, ..granted(Mode::V6UdpV4) },
            &side(true, true),
            &House::default(),
            Occasion::Down,
        );
        assert!(host.contains(&("TSP_HOST_TYPE", "host".to_owned())));
        assert!(host.contains(&("TSP_OPERATION", "TSP_TUNNEL_TEARDOWN".to_owned())));
        assert!(!host.iter().any(|(key, _)| key.starts_with("TSP_PREFIX")));
    }

    #[test]
    fn prefixes_are_cut_by_whole_groups() {
        let net = "2001:db8:1234:5600::".parse().unwrap();
        for (len, text) in [
            (32, "2001:0db8"),
            (40, "2001:0db8:1234"),
            (56, "2001:0db8:1234:5600"),
            (64, "2001:0db8:1234:5600"),
        ] {
            assert_eq!(leading((net, len)), text, "{len}");
        }
    }
}
