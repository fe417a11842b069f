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
const IPV6_INSIDE: u8 = 41;
const IPV4_INSIDE: u8 = 4;
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

/// Where the upper layer begins and which it is, behind hop-by-hop, routing, destination and fragment headers.
/// `None` when the chain is cut short or longer than eight headers. The flag tells a fragment that is not the
/// first: what stands at the offset is then no upper-layer header.
pub fn upper_layer(packet: &[u8]) -> Option<(usize, u8, bool)> {
    let mut next = *packet.get(6)?;
    let mut at = HEADER;
    let mut later_fragment = false;
    for _ in 0..MOST_EXTENSIONS {
        let length = match next {
            0 | 43 | 60 => 8 + 8 * usize::from(*packet.get(at + 1)?),
            44 => {
                let offset = u16::from_be_bytes([*packet.get(at + 2)?, *packet.get(at + 3)?]);
                later_fragment |= offset & 0xfff8 != 0;
                8
            }
            _ => return Some((at, next, later_fragment)),
        };
        next = *packet.get(at)?;
        at += length;
    }
    None
}

/// Whether a routing header with segments left stands in the chain: of type 0 (RFC 5095 section 3), or of `any` type but
/// those of mobile nodes' home addresses (type 2, RFC 6275 section 6.4), which lead nowhere else.
pub fn is_source_routed(packet: &[u8], any: bool) -> bool {
    let mut next = packet.get(6).copied();
    let mut at = HEADER;
    for _ in 0..MOST_EXTENSIONS {
        let field = |n: usize| packet.get(at + n).copied();
        let (Some(kind), Some(following), Some(len)) = (next, field(0), field(1)) else { return false };
        at += match kind {
            43 if field(3).is_some_and(|left| left > 0)
                && (field(2) == Some(0) || any && field(2) != Some(2)) =>
            {
                return true;
            }
            0 | 43 | 60 => 8 + 8 * usize::from(len),
            44 => 8,
            _ => return false,
        };
        next = Some(following);
    }
    false
}

/// How many tunnels are inside this packet: IPv6 or IPv4 behind its headers, and so on inward (protocols 41 and 4). What
/// cannot be followed ends the count.
pub fn depth(packet: &[u8]) -> u8 {
    let mut inside = packet;
    let mut found = 0;
    while let Some((at, protocol)) = carried(inside) {
        match protocol {
            IPV6_INSIDE | IPV4_INSIDE => found += 1,
            _ => break,
        }
        match inside.get(at..) {
            Some(rest) if !rest.is_empty() && found < u8::MAX => inside = rest,
            _ => break,
        }
    }
    found
}

/// Where the payload of an IPv6 or IPv4 packet begins and which protocol it is.
fn carried(packet: &[u8]) -> Option<(usize, u8)> {
    match packet.first()? >> 4 {
        6 => upper_layer(packet).filter(|(_, _, later)| !later).map(|(at, protocol, _)| (at, protocol)),
        4 => Some((usize::from(packet[0] & 0x0f).max(5) * 4, *packet.get(9)?)),
        _ => None,
    }
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
        four[9] = 41;
        four.extend_from_slice(&one);
        assert_eq!((depth(&packet()), depth(&one), depth(&within(&one, 41))), (0, 1, 2));
        assert_eq!(depth(&within(&four, 4)), 3);
        let mut behind_options = vec![41, 0, 1, 4, 0, 0, 0, 0];
        behind_options.extend_from_slice(&packet());
        assert_eq!(depth(&within(&behind_options, 60)), 1);
        assert_eq!((depth(&one[..40]), depth(&[]), depth(&one[..41])), (1, 0, 1));
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
        let seen = |kind, left| [false, true].map(|any| is_source_routed(&routed(kind, left), any));
        assert_eq!(seen(0, 1), [true, true]);
        assert_eq!(seen(4, 1), [false, true]);
        assert_eq!((seen(0, 0), seen(2, 1)), ([false; 2], [false; 2]));
        assert!(!is_source_routed(&packet(), true) && !is_source_routed(&routed(0, 1)[..50], true));
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
