//! A DHCPv6 message in its IPv6 packet (RFC 8200, RFC 768), for ends that have no socket: what comes out of a tunnel and
//! what goes into it. Pure; what the message says is not looked at.

use std::net::Ipv6Addr;

use sixway_dataplane::packet::checksum::Sum;

/// Octets of the IPv6 and UDP headers.
pub const HEADERS: usize = 48;
/// The hop limit of what we send: it stays on the link.
const HOPS: u8 = 64;
const UDP: u8 = 17;

/// A message in its packet.
#[derive(Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// Who has sent it.
    pub source: Ipv6Addr,
    /// To whom.
    pub destination: Ipv6Addr,
    /// From which port.
    pub source_port: u16,
    /// The message.
    pub payload: &'a [u8],
}

/// Whether a packet is UDP for this port.
pub fn is_to(packet: &[u8], port: u16) -> bool {
    packet.get(6) == Some(&UDP) && packet.get(42..44) == Some(&port.to_be_bytes())
}

/// Reads the headers; `None` for what is damaged.
pub fn unwrap(packet: &[u8]) -> Option<Datagram<'_>> {
    let (headers, payload) = packet.split_at_checked(HEADERS)?;
    let number = |at: usize| u16::from_be_bytes([headers[at], headers[at + 1]]);
    let address = |at: usize| <[u8; 16]>::try_from(&headers[at..at + 16]).map(Ipv6Addr::from).ok();
    let (inside, udp_len) = (usize::from(number(4)), usize::from(number(44)));
    let is_whole = inside == udp_len && udp_len == payload.len() + 8;
    // Without a checksum nothing is UDP in IPv6 (RFC 8200 section 8.1).
    if headers[0] >> 4 != 6 || headers[6] != UDP || !is_whole || number(46) == 0 {
        return None;
    }
    let sum = Sum::pseudo(&headers[8..40], u32::try_from(udp_len).ok()?, UDP);
    if !sum.plus(&packet[40..]).is_intact() {
        return None;
    }
    let (source, destination) = (address(8)?, address(24)?);
    Some(Datagram { source, destination, source_port: number(40), payload })
}

/// The packet with a message of at most 65,000 octets between two addresses and ports.
pub fn wrap(source: (Ipv6Addr, u16), destination: (Ipv6Addr, u16), payload: &[u8]) -> Vec<u8> {
    let len = (payload.len() + 8) as u16;
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(len.to_be_bytes());
    packet.extend([UDP, HOPS]);
    packet.extend(source.0.octets());
    packet.extend(destination.0.octets());
    packet.extend(source.1.to_be_bytes());
    packet.extend(destination.1.to_be_bytes());
    packet.extend(len.to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    let sum = Sum::pseudo(&packet[8..40], len.into(), UDP).plus(&packet[40..]).finish_udp();
    packet[46..48].copy_from_slice(&sum);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrapped_is_unwrapped_and_damage_is_seen() {
        let (a, b) = ("fe80::1".parse().unwrap(), "fe80::2".parse().unwrap());
        let mut packet = wrap((a, 547), (b, 546), &[7, 1, 2, 3, 0]);
        let read = unwrap(&packet).unwrap();
        assert_eq!((read.source, read.destination, read.source_port), (a, b, 547));
        assert_eq!(read.payload, [7, 1, 2, 3, 0]);
        assert!(is_to(&packet, 546) && !is_to(&packet, 547));
        for at in 0..packet.len() {
            packet[at] ^= 0x10;
            // Traffic class, flow label and hop limit are in no checksum.
            assert_eq!(
                unwrap(&packet).is_some(),
                matches!(at, 1..=3 | 7) || at == 0 && packet[0] >> 4 == 6,
                "octet {at}"
            );
            packet[at] ^= 0x10;
        }
        assert!(unwrap(&packet[..52]).is_none() && unwrap(&[]).is_none());
    }
}
