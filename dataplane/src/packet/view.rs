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
        Ok(Self {
            source: address(header, 8),
            destination: address(header, 24),
            len: HEADER + len,
            next_header: header[6],
            hop_limit: header[7],
            traffic_class: header[0] << 4 | header[1] >> 4,
        })
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
