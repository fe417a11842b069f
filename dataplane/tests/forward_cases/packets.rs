//! Inner packets, built by etherparse: an opinion on headers and checksums that is not the forwarder's own.

use std::net::Ipv6Addr;

use etherparse::{IcmpEchoHeader, Icmpv6Type, PacketBuilder, TcpOptionElement};
use sixway_dataplane::packet::batch::{Merged, Offload};
use sixway_dataplane::packet::checksum::Sum;

pub(crate) fn ip(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

/// A UDP packet of `len` octets in all, at least 48, hop limit 64.
pub(crate) fn udp(source: &str, destination: &str, len: usize) -> Vec<u8> {
    let mut out = Vec::new();
    let b = PacketBuilder::ipv6(ip(source).octets(), ip(destination).octets(), 64).udp(4000, 5000);
    b.write(&mut out, &payload(len - 48)).unwrap();
    out
}

/// A TCP segment with `payload` octets of data.
pub(crate) fn tcp(source: &str, destination: &str, sequence: u32, last: bool, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let b = PacketBuilder::ipv6(ip(source).octets(), ip(destination).octets(), 64);
    let b = b.tcp(4000, 5000, sequence, 1000).ack(77);
    if last {
        b.psh().write(&mut out, payload).unwrap()
    } else {
        b.write(&mut out, payload).unwrap()
    }
    out
}

pub(crate) fn icmp(source: &str, destination: &str, hops: u8, kind: u8, body: [u8; 4]) -> Vec<u8> {
    let mut out = Vec::new();
    let b = PacketBuilder::ipv6(ip(source).octets(), ip(destination).octets(), hops);
    let kind = Icmpv6Type::Unknown { type_u8: kind, code_u8: 0, bytes5to8: body };
    b.icmpv6(kind).write(&mut out, &[0; 16]).unwrap();
    out
}

pub(crate) fn echo_reply(source: &str, destination: &str, id: u16) -> Vec<u8> {
    let mut out = Vec::new();
    let b = PacketBuilder::ipv6(ip(source).octets(), ip(destination).octets(), 64);
    b.icmpv6(Icmpv6Type::EchoReply(IcmpEchoHeader { id, seq: 1 })).write(&mut out, b"a nonce").unwrap();
    out
}

/// A bare IPv6 header with these addresses: for sources that no builder would write.
pub(crate) fn bare(source: &str, destination: &str) -> Vec<u8> {
    let mut out = udp("2001:db8::", "2001:db8::", 48);
    out[8..24].copy_from_slice(&ip(source).octets());
    out[24..40].copy_from_slice(&ip(destination).octets());
    out
}

pub(crate) fn hops(mut packet: Vec<u8>, hops: u8) -> Vec<u8> {
    packet[7] = hops;
    packet
}

pub(crate) fn class(mut packet: Vec<u8>, class: u8) -> Vec<u8> {
    packet[0] = 0x60 | class >> 4;
    packet[1] = packet[1] & 0x0f | class << 4;
    packet
}

/// A super-packet as a kernel hands it over, and the packets that it stands for.
pub(crate) struct Train {
    pub(crate) whole: Vec<u8>,
    pub(crate) offload: Offload,
    pub(crate) parts: Vec<Vec<u8>>,
}

impl Train {
    pub(crate) fn change(mut self, change: impl Fn(Vec<u8>) -> Vec<u8>) -> Self {
        self.whole = change(self.whole);
        self.parts = self.parts.into_iter().map(change).collect();
        self
    }

    /// As a raw socket shows it: no segment size.
    pub(crate) fn size_hidden(mut self) -> Self {
        self.offload.merged = Some((Merged::Tcp, 0));
        self
    }
}

/// TCP segments of `size` octets of payload each, `total` in all.
pub(crate) fn tcp_train(source: &str, destination: &str, total: usize, size: u16) -> Train {
    let data = payload(total);
    let first = 0xffff_fc00;
    let slices: Vec<_> = data.chunks(usize::from(size)).collect();
    let mut at = 0;
    let mut parts = Vec::new();
    for (n, slice) in slices.iter().enumerate() {
        let sequence = u32::wrapping_add(first, at);
        parts.push(tcp(source, destination, sequence, n + 1 == slices.len(), slice));
        at += slice.len() as u32;
    }
    let (whole, partial) = unfinished(tcp(source, destination, first, true, &data), 16);
    Train { whole, offload: Offload { merged: Some((Merged::Tcp, size)), partial: Some(partial) }, parts }
}

/// UDP datagrams of `size` octets of payload each, `total` in all.
pub(crate) fn udp_train(source: &str, destination: &str, total: usize, size: u16) -> Train {
    let data = payload(total);
    let datagram = |data: &[u8]| {
        let mut out = Vec::new();
        let b = PacketBuilder::ipv6(ip(source).octets(), ip(destination).octets(), 64).udp(4000, 5000);
        b.write(&mut out, data).unwrap();
        out
    };
    let parts = data.chunks(usize::from(size)).map(datagram).collect();
    let (whole, partial) = unfinished(datagram(&data), 6);
    Train { whole, offload: Offload { merged: Some((Merged::Udp, size)), partial: Some(partial) }, parts }
}

/// Leaves the checksum to "hardware": the field at `offset` of the upper layer holds the pseudo-header's sum.
pub(crate) fn unfinished(mut packet: Vec<u8>, offset: u16) -> (Vec<u8>, (u16, u16)) {
    let sum = Sum::pseudo(&packet[8..40], (packet.len() - 40) as u32, packet[6]).fold();
    let field = 40 + usize::from(offset);
    packet[field..field + 2].copy_from_slice(&sum);
    (packet, (40, offset))
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 31 % 251) as u8).collect()
}

/// A TCP SYN that offers segments of this size.
pub(crate) fn syn(source: &str, destination: &str, size: u16) -> Vec<u8> {
    let mut out = Vec::new();
    let b =
        PacketBuilder::ipv6(ip(source).octets(), ip(destination).octets(), 64).tcp(4000, 5000, 7, 1000).syn();
    let b = b.options(&[TcpOptionElement::MaximumSegmentSize(size)]).unwrap();
    b.write(&mut out, &[]).unwrap();
    out
}

/// The packet with one more header of eight octets behind its fixed one, which begins (after length) with `words`.
pub(crate) fn with_header(packet: Vec<u8>, kind: u8, words: [u8; 2]) -> Vec<u8> {
    let mut out = packet[..40].to_vec();
    out[6] = kind;
    let len = u16::from_be_bytes([packet[4], packet[5]]) + 8;
    out[4..6].copy_from_slice(&len.to_be_bytes());
    out.extend_from_slice(&[packet[6], 0, words[0], words[1], 0, 0, 0, 0]);
    out.extend_from_slice(&packet[40..]);
    out
}

/// A packet in a datagram, as tunnels in UDP carry it (RFC 5572 section 4.5).
pub(crate) fn within_udp(source: &str, destination: &str, inner: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let b = PacketBuilder::ipv6(ip(source).octets(), ip(destination).octets(), 64).udp(3653, 4000);
    b.write(&mut out, inner).unwrap();
    out
}

/// A packet in another: IPv6 in IPv6 (RFC 2473 section 3).
pub(crate) fn within(source: &str, destination: &str, inner: &[u8]) -> Vec<u8> {
    let mut out = bare(source, destination)[..40].to_vec();
    out[6] = 41;
    out[4..6].copy_from_slice(&(inner.len() as u16).to_be_bytes());
    out.extend_from_slice(inner);
    out
}
