//! An IPv6 packet seen once: what the forwarder asks of it, by offset (RFC 8200 sections 3 and 4).
//!
//! [`View::parse`] judges only that reads are safe and that the length is honest; after it no accessor can
//! panic. Whether an address is acceptable is `forward`'s business.

use std::net::Ipv6Addr;

/// Octets of the fixed IPv6 header.
pub const HEADER: usize = 40;
/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;
/// Protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;
/// The UDP port by which tunnels inside are known (RFC 5572 section 4).
pub const TUNNEL_PORT: u16 = 3653;
const IPV6_INSIDE: u8 = 41;
const IPV4_INSIDE: u8 = 4;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;
const MOBILITY: u8 = 135;
const HIP: u8 = 139;
const SHIM6: u8 = 140;
/// Most extension headers that are walked.
const MOST_EXTENSIONS: usize = 8;

/// Why bytes are no IPv6 packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// Fewer than 40 octets.
    TooShort,
    /// The version is not 6.
    NotIpv6,
    /// The payload length says more than is there.
    Truncated,
}

/// The fixed header of one packet, and its honest length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// Inner source address.
    pub source: Ipv6Addr,
    /// Inner destination address.
    pub destination: Ipv6Addr,
    /// Octets of header and payload; the buffer may hold more (RFC 4213 section 3.6: it is cut).
    pub len: usize,
    /// What follows the fixed header.
    pub next_header: u8,
    /// Hops left.
    pub hop_limit: u8,
    /// Traffic class: six bits DSCP, two bits ECN.
    pub traffic_class: u8,
}

impl View {
    /// Reads the fixed header of `packet`.
    pub fn parse(packet: &[u8]) -> Result<Self, Unreadable> {
        let Some((header, payload)) = packet.split_first_chunk::<HEADER>() else {
            return Err(if packet.first().is_some_and(|b| b >> 4 != 6) {
                Unreadable::NotIpv6
            } else {
                Unreadable::TooShort
            });
        };
        if header[0] >> 4 != 6 {
            return Err(Unreadable::NotIpv6);
        }
        let len = usize::from(u16::from_be_bytes([header[4], header[5]]));
        if len > payload.len() {
            return Err(Unreadable::Truncated);
        }
        Ok(Self::of(header, len))
    }

    /// Reads the fixed header of a packet of which the end may be missing: `len` may be more than there is.
    pub fn parse_cut(packet: &[u8]) -> Result<Self, Unreadable> {
        let header = packet.first_chunk::<HEADER>().ok_or(Unreadable::TooShort)?;
        if header[0] >> 4 != 6 {
            return Err(Unreadable::NotIpv6);
        }
        Ok(Self::of(header, usize::from(u16::from_be_bytes([header[4], header[5]]))))
    }

    fn of(header: &[u8; HEADER], len: usize) -> Self {
        Self {
            source: address(header, 8),
            destination: address(header, 24),
            len: HEADER + len,
            next_header: header[6],
            hop_limit: header[7],
            traffic_class: header[0] << 4 | header[1] >> 4,
        }
    }

    /// The ICMPv6 type when that header follows directly.
    pub fn icmpv6_type(&self, packet: &[u8]) -> Option<u8> {
        (self.next_header == ICMPV6 && self.len > HEADER).then(|| packet.get(HEADER).copied()).flatten()
    }
}

/// The address that stands at this offset of the fixed header, 8 or 24.
pub(crate) fn address(header: &[u8; HEADER], at: usize) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets.copy_from_slice(&header[at..at + 16]);
    Ipv6Addr::from(octets)
}

/// Octets of the extension header `kind` at `at`; `None` when `kind` is none, so the upper layer begins there. The outer
/// `None`: it is cut short. All have the shape of RFC 6564 section 4 but fragment (44) and authentication (51) headers.
fn extension(packet: &[u8], kind: u8, at: usize) -> Option<Option<usize>> {
    let words = || packet.get(at + 1).map(|len| usize::from(*len));
    Some(match kind {
        HOP_BY_HOP | ROUTING | DESTINATION | MOBILITY | HIP | SHIM6 => Some(8 + 8 * words()?),
        FRAGMENT => Some(8),
        AUTHENTICATION => Some((words()? + 2) * 4),
        _ => None,
    })
}

/// Goes along the headers behind the fixed one and shows each to `each`, with its number and where it stands.
fn walk(packet: &[u8], mut each: impl FnMut(u8, usize)) -> Option<(usize, u8, bool)> {
    let mut next = *packet.get(6)?;
    let mut at = HEADER;
    for _ in 0..=MOST_EXTENSIONS {
        let Some(length) = extension(packet, next, at)? else { return Some((at, next, false)) };
        if at + length > packet.len() {
            return None;
        }
        each(next, at);
        if next == FRAGMENT {
            let offset = u16::from_be_bytes([*packet.get(at + 2)?, *packet.get(at + 3)?]);
            if offset & 0xfff8 != 0 {
                return Some((at + length, *packet.get(at)?, true));
            }
        }
        next = *packet.get(at)?;
        at += length;
    }
    None
}

/// Where the upper layer begins and which it is, behind all extension headers. `None` when the chain is cut short or longer
/// than eight headers. The flag tells a fragment that is not the first: what stands at the offset is then no header.
pub fn upper_layer(packet: &[u8]) -> Option<(usize, u8, bool)> {
    walk(packet, |_, _| {})
}

/// Whether an authentication header (RFC 4302) covers the packet: nothing in it may be changed on its way.
pub fn is_authenticated(packet: &[u8]) -> bool {
    let mut found = false;
    walk(packet, |kind, _| found |= kind == AUTHENTICATION);
    found
}

/// What stands behind the fixed header and may be unwelcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Inside {
    /// A routing header of type 0 has segments left (RFC 5095 section 3).
    pub source_route_0: bool,
    /// One of another type has, but for those of mobile nodes' home addresses (type 2, RFC 6275 section 6.4), which lead
    /// nowhere else.
    pub source_route: bool,
    /// How many tunnels are in each other: IPv6 or IPv4 behind the headers (protocols 41 and 4) or IPv6 in UDP on
    /// [`TUNNEL_PORT`], and so on inward.
    pub tunnels: u8,
}

/// Looks at all headers. `None` when they cannot be followed to their end: what is behind them nobody knows.
pub fn inside(packet: &[u8]) -> Option<Inside> {
    let mut found = Inside::default();
    let end = walk(packet, |kind, at| {
        let (route, left) = (packet.get(at + 2).copied(), packet.get(at + 3).copied());
        if kind == ROUTING && left.is_some_and(|left| left > 0) {
            found.source_route_0 |= route == Some(0);
            found.source_route |= route != Some(0) && route != Some(2);
        }
    })?;
    found.tunnels = tunnels(packet, end)?;
    Some(found)
}

/// The tunnels behind the headers that end at `end`. A tunnel with rubbish in it counts, and ends the count.
fn tunnels(packet: &[u8], mut end: (usize, u8, bool)) -> Option<u8> {
    let (mut found, mut around) = (0, packet);
    loop {
        let (at, protocol, is_later) = end;
        let payload = around.get(at..).filter(|_| !is_later);
        let Some(inner) = payload.and_then(|payload| carried(protocol, payload)) else { return Some(found) };
        found += 1;
        end = match inner.first().map(|octet| octet >> 4) {
            Some(6) if inner.len() >= HEADER && found < u8::MAX => upper_layer(inner)?,
            Some(4) if inner.len() >= 20 && found < u8::MAX => {
                let is_later = u16::from_be_bytes([inner[6], inner[7]]) & 0x1fff != 0;
                (usize::from(inner[0] & 0x0f).max(5) * 4, inner[9], is_later)
            }
            _ => return Some(found),
        };
        around = inner;
    }
}

/// The packet that this protocol carries.
fn carried(protocol: u8, payload: &[u8]) -> Option<&[u8]> {
    match protocol {
        IPV6_INSIDE | IPV4_INSIDE => Some(payload),
        UDP if is_tunnel_port(payload) => payload.get(8..).filter(|p| p.first().is_some_and(|b| b >> 4 == 6)),
        _ => None,
    }
}

/// Whether a UDP header is to or from [`TUNNEL_PORT`].
pub fn is_tunnel_port(udp: &[u8]) -> bool {
    let port = TUNNEL_PORT.to_be_bytes();
    udp.first_chunk::<4>().is_some_and(|ports| ports[..2] == port || ports[2..] == port)
}

/// Overwrites the traffic class in place; no IPv6 checksum covers it.
pub fn set_traffic_class(packet: &mut [u8], class: u8) {
    if let [first, second, ..] = packet {
        *first = *first & 0xf0 | class >> 4;
        *second = *second & 0x0f | class << 4;
    }
}

/// Overwrites the hop limit in place; no IPv6 checksum covers it.
pub fn set_hop_limit(packet: &mut [u8], hops: u8) {
    if let Some(field) = packet.get_mut(7) {
        *field = hops;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;

    fn packet() -> Vec<u8> {
        let mut out = Vec::new();
        let b = PacketBuilder::ipv6([1; 16], [2; 16], 77).udp(1, 2);
        b.write(&mut out, &[9; 100]).unwrap();
        out
    }

    #[test]
    fn reads_what_etherparse_wrote() {
        let mut bytes = packet();
        set_traffic_class(&mut bytes, 0xab);
        bytes.extend_from_slice(&[0; 7]);
        let view = View::parse(&bytes).unwrap();
        assert_eq!(view.source, Ipv6Addr::from([1; 16]));
        assert_eq!(view.destination, Ipv6Addr::from([2; 16]));
        assert_eq!((view.len, view.next_header, view.hop_limit, view.traffic_class), (148, UDP, 77, 0xab));
        assert_eq!(upper_layer(&bytes), Some((40, UDP, false)));
    }

    #[test]
    fn refuses_what_lies_about_itself() {
        let bytes = packet();
        assert_eq!(View::parse(&bytes[..39]), Err(Unreadable::TooShort));
        assert_eq!(View::parse(&bytes[..147]), Err(Unreadable::Truncated));
        let mut four = bytes.clone();
        four[0] = 0x45;
        assert_eq!(View::parse(&four), Err(Unreadable::NotIpv6));
        assert_eq!(View::parse(&[]), Err(Unreadable::TooShort));
    }

    /// RFC: L3 (RFC 2473 section 4.1.1)
    #[test]
    fn tunnels_inside_are_counted_from_outside_in() {
        let within = |inner: &[u8], protocol: u8| {
            let mut out = packet()[..40].to_vec();
            out[6] = protocol;
            out[4..6].copy_from_slice(&(inner.len() as u16).to_be_bytes());
            out.extend_from_slice(inner);
            out
        };
        let (one, mut four) = (within(&packet(), 41), vec![0x45; 20]);
        (four[6], four[7], four[9]) = (0, 0, 41);
        four.extend_from_slice(&one);
        let depth = |packet: &[u8]| inside(packet).unwrap().tunnels;
        assert_eq!((depth(&packet()), depth(&one), depth(&within(&one, 41))), (0, 1, 2));
        assert_eq!(depth(&within(&four, 4)), 3);
        let mut later = four.clone();
        later[7] = 1;
        assert_eq!(depth(&within(&later, 4)), 1, "a later fragment holds no header");
        let udp = |inner: &[u8], ports: [u8; 4]| {
            let mut datagram = vec![ports[0], ports[1], ports[2], ports[3], 0, 0, 0, 0];
            datagram.extend_from_slice(inner);
            within(&datagram, UDP)
        };
        let (to, from) = ([9, 9, 0x0e, 0x45], [0x0e, 0x45, 9, 9]);
        assert_eq!(depth(&udp(&udp(&one, from), to)), 3);
        assert_eq!((depth(&udp(&one, [1, 2, 3, 4])), depth(&udp(&[0xf0; 50], to))), (0, 0));
        let mut behind_options = vec![41, 0, 1, 4, 0, 0, 0, 0];
        behind_options.extend_from_slice(&packet());
        assert_eq!(depth(&within(&behind_options, 60)), 1);
        assert_eq!((depth(&one[..40]), inside(&[]), depth(&one[..41])), (1, None, 1));
    }

    /// RFC: D13 (RFC 5095 section 3)
    #[test]
    fn routing_headers_with_segments_left_are_seen() {
        let routed = |kind: u8, left: u8| {
            let mut out = packet()[..40].to_vec();
            out[6] = 0;
            out.extend_from_slice(&[43, 0, 1, 4, 0, 0, 0, 0, UDP, 2, kind, left]);
            out.resize(out.len() + 20, 0);
            out
        };
        let seen = |kind, left| {
            let inside = inside(&routed(kind, left)).unwrap();
            [inside.source_route_0, inside.source_route]
        };
        assert_eq!((seen(0, 1), seen(4, 1)), ([true, false], [false, true]));
        assert_eq!((seen(0, 0), seen(2, 1)), ([false; 2], [false; 2]));
        assert_eq!(inside(&packet()), Some(Inside::default()));
    }

    /// RFC: D13, L3 (RFC 8200 section 4)
    #[test]
    fn what_cannot_be_followed_is_not_taken_for_harmless() {
        let behind = |count: usize, kind: u8| {
            let mut out = packet()[..40].to_vec();
            out[6] = if count == 0 { kind } else { DESTINATION };
            for n in 1..=count {
                out.extend_from_slice(&[if n == count { kind } else { DESTINATION }, 0, 1, 4, 0, 0, 0, 0]);
            }
            out.extend_from_slice(&[UDP, 0, 0, 1, 0, 0, 0, 0]);
            out.extend_from_slice(&packet()[40..]);
            out
        };
        for count in 0..8 {
            assert!(inside(&behind(count, ROUTING)).unwrap().source_route_0, "{count} headers before it");
        }
        for count in 8..12 {
            assert_eq!(inside(&behind(count, ROUTING)), None, "{count}");
        }
        assert_eq!(inside(&behind(3, ROUTING)[..70]), None, "cut short");
        // Behind an authentication header, whose length counts in words of four octets.
        let mut out = packet()[..40].to_vec();
        out[6] = AUTHENTICATION;
        out.extend_from_slice(&[ROUTING, 4, 0, 0]);
        out.resize(64, 0);
        out.extend_from_slice(&[UDP, 0, 0, 1, 0, 0, 0, 0]);
        assert!(inside(&out).unwrap().source_route_0 && is_authenticated(&out));
        assert!(!is_authenticated(&packet()));
    }

    #[test]
    fn walks_extension_headers_and_stops_at_nonsense() {
        let mut bytes = packet();
        bytes[6] = 0;
        let mut with = bytes[..40].to_vec();
        with.extend_from_slice(&[44, 0, 1, 4, 0, 0, 0, 0]);
        with.extend_from_slice(&[UDP, 0, 0x00, 0x09, 0, 0, 0, 1]);
        with.extend_from_slice(&bytes[40..]);
        assert_eq!(upper_layer(&with), Some((56, UDP, true)));
        with[40] = 0;
        with[41] = 255;
        assert_eq!(upper_layer(&with), None);
    }
}
