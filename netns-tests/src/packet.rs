//! Inner packets by hand: what a test sends, and what it reads back (RFC 8200, 4443, 9293, 768).
//!
//! Building is etherparse's work; reading is our own, so that the two check each other. Knows no
//! sockets and no tunnels.

use std::net::Ipv6Addr;

use etherparse::{PacketBuilder, PacketBuilderStep};

/// ICMPv6 types (RFC 4443 section 2.1, RFC 4861 section 4).
pub mod icmp {
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 1;
    /// Packet too big.
    pub const TOO_BIG: u8 = 2;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 3;
    /// Echo request.
    pub const ECHO_REQUEST: u8 = 128;
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 129;
    /// Router solicitation.
    pub const ROUTER_SOLICITATION: u8 = 133;
    /// Router advertisement.
    pub const ROUTER_ADVERTISEMENT: u8 = 134;
    /// Neighbour solicitation.
    pub const NEIGHBOUR_SOLICITATION: u8 = 135;
    /// Neighbour advertisement.
    pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
}

/// The two ends of a packet to be built, and its hop limit.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    src: Ipv6Addr,
    dst: Ipv6Addr,
    hops: u8,
}

impl Ends {
    /// From `src` to `dst` with hop limit 64. Texts, because tests are read; a bad one is a panic.
    #[track_caller]
    pub fn new(src: &str, dst: &str) -> Self {
        Self::of(address(src), address(dst))
    }

    /// From `src` to `dst` with hop limit 64.
    pub fn of(src: Ipv6Addr, dst: Ipv6Addr) -> Self {
        Self { src, dst, hops: 64 }
    }

    /// The same with another hop limit.
    pub fn hops(self, hops: u8) -> Self {
        Self { hops, ..self }
    }

    /// An echo request with `len` octets of data.
    pub fn echo_request(self, id: u16, seq: u16, len: usize) -> Vec<u8> {
        let mut packet = Vec::new();
        let step = self.begin().icmpv6_echo_request(id, seq);
        done(step.write_to_vec(&mut packet, &pattern(len)));
        packet
    }

    /// Any ICMPv6 message: type, code 0, the four octets after the checksum, and the rest.
    pub fn icmp(self, kind: u8, word: [u8; 4], rest: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        done(self.begin().icmpv6_raw(kind, 0, word).write_to_vec(&mut packet, rest));
        packet
    }

    /// A UDP datagram.
    pub fn udp(self, from: u16, to: u16, data: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        done(self.begin().udp(from, to).write_to_vec(&mut packet, data));
        packet
    }

    /// A TCP segment with ACK set, as in the middle of a stream.
    pub fn tcp(self, from: u16, to: u16, seq: u32, data: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        let step = self.begin().tcp(from, to, seq, 65_535).ack(1);
        done(step.write_to_vec(&mut packet, data));
        packet
    }

    fn begin(self) -> PacketBuilderStep<etherparse::IpHeaders> {
        PacketBuilder::ipv6(self.src.octets(), self.dst.octets(), self.hops)
    }
}

/// An IPv6 packet as read: fixed header and what follows it. Extension headers are not walked.
#[derive(Clone, Copy, Debug)]
pub struct Inner<'a> {
    /// Source.
    pub src: Ipv6Addr,
    /// Destination.
    pub dst: Ipv6Addr,
    /// Hop limit.
    pub hops: u8,
    /// Next header.
    pub next: u8,
    /// What follows the fixed header, by the length it states.
    pub payload: &'a [u8],
}

impl<'a> Inner<'a> {
    /// Read a packet; `None` when it is no IPv6 or shorter than it says.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (header, rest) = bytes.split_first_chunk::<40>()?;
        if header[0] >> 4 != 6 {
            return None;
        }
        let [_, _, _, _, hi, lo, next, hops, ..] = *header;
        let payload = rest.get(..usize::from(u16::from_be_bytes([hi, lo])))?;
        let src = Ipv6Addr::from_octets(*header[8..].first_chunk()?);
        let dst = Ipv6Addr::from_octets(*header[24..].first_chunk()?);
        Some(Self { src, dst, hops, next, payload })
    }

    /// The ICMPv6 type, if it is ICMPv6.
    pub fn icmp_type(&self) -> Option<u8> {
        (self.next == 58).then(|| self.payload.first().copied()).flatten()
    }

    /// Identifier and sequence number of an echo request or reply.
    pub fn echo(&self) -> Option<(u16, u16)> {
        let [_, _, _, _, a, b, c, d] = *self.payload.first_chunk()?;
        let is_echo = matches!(self.icmp_type()?, icmp::ECHO_REQUEST | icmp::ECHO_REPLY);
        is_echo.then(|| (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
    }

    /// The four octets after an ICMPv6 checksum: the MTU of a Packet Too Big (RFC 4443 section 3.2).
    pub fn icmp_word(&self) -> Option<u32> {
        self.icmp_type()?;
        Some(u32::from_be_bytes(*self.payload.get(4..)?.first_chunk()?))
    }

    /// Source port, destination port, sequence number and data of a TCP segment.
    pub fn tcp(&self) -> Option<(u16, u16, u32, &'a [u8])> {
        let (head, _) = self.payload.split_first_chunk::<20>().filter(|_| self.next == 6)?;
        let data = self.payload.get(usize::from(head[12] >> 4) * 4..)?;
        let [a, b, c, d, e, f, g, h, ..] = *head;
        let ports = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        Some((ports.0, ports.1, u32::from_be_bytes([e, f, g, h]), data))
    }

    /// Whether the upper layer's checksum (TCP, UDP, ICMPv6: RFC 8200 section 8.1) is right.
    pub fn checksum_ok(&self) -> bool {
        let mut sum = u64::try_from(self.payload.len()).unwrap_or(u64::MAX) + u64::from(self.next);
        for bytes in [&self.src.octets()[..], &self.dst.octets()[..], self.payload] {
            for pair in bytes.chunks(2) {
                sum += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
            }
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum == 0xffff
    }
}

/// Octets that tell their position, so that a shifted or cut packet is seen.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0_u8..=250).cycle().take(len).collect()
}

#[track_caller]
pub(crate) fn address(text: &str) -> Ipv6Addr {
    text.parse().unwrap_or_else(|_| panic!("'{text}' is not an IPv6 address"))
}

#[track_caller]
fn done<E: std::fmt::Debug>(written: Result<(), E>) {
    assert!(written.is_ok(), "cannot build a packet: {written:?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_is_read_back_and_its_checksum_holds() {
        let ends = Ends::new("fd00::1", "fd00::2").hops(7);
        let echo = ends.echo_request(5, 6, 33);
        let inner = Inner::parse(&echo).unwrap();
        assert_eq!((inner.hops, inner.icmp_type(), inner.echo()), (7, Some(128), Some((5, 6))));
        assert_eq!(inner.payload.len(), 41);
        let segment = ends.tcp(80, 81, 99, b"abc");
        assert_eq!(Inner::parse(&segment).unwrap().tcp(), Some((80, 81, 99, &b"abc"[..])));
        for packet in [echo, segment, ends.udp(1, 2, b"xyz"), ends.icmp(133, [0; 4], b"")] {
            assert!(Inner::parse(&packet).unwrap().checksum_ok());
        }
    }

    #[test]
    fn damage_is_seen() {
        let mut packet = Ends::new("fd00::1", "fd00::2").udp(1, 2, b"hello");
        assert!(Inner::parse(&packet[..packet.len() - 1]).is_none(), "cut short");
        *packet.last_mut().unwrap() ^= 1;
        assert!(!Inner::parse(&packet).unwrap().checksum_ok());
        packet[0] = 0x45;
        assert!(Inner::parse(&packet).is_none(), "not version 6");
    }
}
