//! Which addresses may stand in the configuration: inner prefixes and addresses (RFC 4291), outer
//! addresses and endpoints (RFC 4213 section 3.6, RFC 6890).
//!
//! Text in, checked value or complaint out. Knows no keys and no tunnels.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};

use sixway_dataplane::update::{Ipv6Prefix, PrefixError, UdpLocal, UdpRemote};

use super::RouterAddress;
use super::source::Complaint;

/// A prefix that a tunnel may have: anything but space that never crosses a router, or all of `::/0`.
pub(crate) fn inner_prefix(text: &str) -> Result<Ipv6Prefix, Complaint> {
    let prefix: Ipv6Prefix = text.parse().map_err(|error| prefix_complaint(text, error))?;
    match special(prefix) {
        None => Ok(prefix),
        Some(why) => Err(Complaint::new(why, "write a prefix of global or unique local addresses")),
    }
}

/// The same for a place where `::/0` makes no sense.
pub(crate) fn narrow_prefix(text: &str) -> Result<Ipv6Prefix, Complaint> {
    let prefix = inner_prefix(text)?;
    if prefix == Ipv6Prefix::ALL {
        let next = "leave it out, or give a tunnel `prefixes = [\"::/0\"]` and `default_route = true`";
        return Err(Complaint::new("all of ::/0 is too much here", next));
    }
    Ok(prefix)
}

fn prefix_complaint(text: &str, error: PrefixError) -> Complaint {
    match error {
        PrefixError::NoLength => match text.parse::<Ipv6Addr>() {
            Ok(addr) => Complaint::new("the prefix length is missing", format!("write '{addr}/64' or so")),
            Err(_) => Complaint::new("it is no IPv6 prefix", "write ADDRESS/LENGTH, as in 2001:db8:1::/64"),
        },
        PrefixError::Address(addr) => Complaint::new(
            format!("'{addr}' is not an IPv6 address"),
            "write ADDRESS/LENGTH, as in 2001:db8:1::/64",
        ),
        PrefixError::Length(len) => {
            Complaint::new(format!("'{len}' is not a prefix length"), "write a length from 0 to 128")
        }
        PrefixError::HostBits(prefix) => {
            Complaint::new("bits are set behind the prefix length", format!("did you mean '{prefix}'?"))
        }
    }
}

/// Why no tunnel may have this prefix: it overlaps addresses that no router forwards.
pub(crate) fn special(prefix: Ipv6Prefix) -> Option<String> {
    if prefix == Ipv6Prefix::ALL {
        return None;
    }
    SPECIAL.iter().find_map(|&(bits, len, name)| {
        let range = Ipv6Prefix::new(Ipv6Addr::from(bits), len)?;
        let overlaps = range.covers(prefix) || prefix.covers(range);
        overlaps.then(|| format!("it overlaps {range}, which is {name} and never routed"))
    })
}

/// An address of the router with the length of the prefix it lies in.
pub(crate) fn router_address(text: &str) -> Result<RouterAddress, Complaint> {
    let form =
        || Complaint::new("it is no IPv6 address with length", "write for example '2001:db8:100::1/64'");
    let Some((addr, len)) = text.split_once('/') else {
        let addr: Ipv6Addr = text.parse().map_err(|_| form())?;
        return Err(Complaint::new(
            "the prefix length is missing",
            format!("write '{addr}/64' or '{addr}/128'"),
        ));
    };
    let addr: Ipv6Addr = addr.parse().map_err(|_| form())?;
    let prefix_len: u8 = len.parse().ok().filter(|len| (1..=128).contains(len)).ok_or_else(|| {
        Complaint::new(format!("'{len}' is not a prefix length"), "write a length from 1 to 128")
    })?;
    match special(Ipv6Prefix::host(addr)) {
        None => Ok(RouterAddress { addr, prefix_len }),
        Some(why) => Err(Complaint::new(why, "write a global or unique local address")),
    }
}

/// An outer address, ours or a peer's.
pub(crate) fn outer_address(text: &str) -> Result<Ipv4Addr, Complaint> {
    let addr: Ipv4Addr = text.parse().map_err(|_| not_an_address(text))?;
    match martian(addr) {
        None => Ok(addr),
        Some(why) => Err(Complaint::new(why, "write the address of one host")),
    }
}

fn not_an_address(text: &str) -> Complaint {
    if text.parse::<SocketAddrV4>().is_ok() {
        return Complaint::new("there are no ports here", "write the address alone, as in '10.71.0.2'");
    }
    if text.parse::<Ipv6Addr>().is_ok() {
        return Complaint::new("the outer side of a tunnel is IPv4", "write an address as in '10.71.0.2'");
    }
    Complaint::new("it is no IPv4 address, and names are not looked up", "write an address as in '10.71.0.2'")
}

/// Why a tunnel cannot end at this address.
pub(crate) fn martian(addr: Ipv4Addr) -> Option<&'static str> {
    if addr.octets()[0] == 0 {
        return Some("0.0.0.0/8 is 'this network', no host has such an address");
    }
    if addr.is_loopback() {
        return Some("127.0.0.0/8 is this machine itself");
    }
    if addr.is_multicast() {
        return Some("224.0.0.0/4 is multicast");
    }
    addr.is_broadcast().then_some("255.255.255.255 is everybody")
}

/// Our end of a UDP tunnel: `ADDR:PORT`, or `:PORT` and `*:PORT` for any of our addresses.
pub(crate) fn udp_local(text: &str) -> Result<UdpLocal, Complaint> {
    let Some((addr, port)) = text.rsplit_once(':') else {
        return Err(Complaint::new("the port is missing", format!("write '{text}:3653' or ':3653'")));
    };
    let port = udp_port(port)?;
    if addr.is_empty() || addr == "*" {
        return Ok(UdpLocal { addr: None, port });
    }
    if addr.parse() == Ok(Ipv4Addr::UNSPECIFIED) {
        let next = format!("write '*:{port}' for any address of this machine");
        return Err(Complaint::new("0.0.0.0 is no address", next));
    }
    Ok(UdpLocal { addr: Some(outer_address(addr)?), port })
}

/// The peer's end of a UDP tunnel: `ADDR:PORT`, `ADDR:*` or `learn`.
pub(crate) fn udp_remote(text: &str) -> Result<UdpRemote, Complaint> {
    if text == "learn" {
        return Ok(UdpRemote::Learned(None));
    }
    let Some((addr, port)) = text.rsplit_once(':') else {
        let next = "write 'ADDRESS:PORT', 'ADDRESS:*' (any port) or 'learn' (any address)";
        return Err(Complaint::new("a UDP tunnel's peer has a port", next));
    };
    let addr = outer_address(addr)?;
    if port == "*" {
        return Ok(UdpRemote::AnyPort { addr, port: None });
    }
    Ok(UdpRemote::Fixed(SocketAddrV4::new(addr, udp_port(port)?)))
}

fn udp_port(text: &str) -> Result<u16, Complaint> {
    let port = text.parse().ok().filter(|&port| port != 0);
    port.ok_or_else(|| Complaint::new(format!("'{text}' is not a port"), "write a port from 1 to 65535"))
}

const SPECIAL: [(u128, u8, &str); 5] = [
    (0xfe80 << 112, 10, "link-local"),
    (0xff00 << 112, 8, "multicast"),
    (0xffff_0000_0000, 96, "IPv4-mapped"),
    (1, 128, "loopback"),
    (0, 128, "the unspecified address"),
];
