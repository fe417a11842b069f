//! ICMPv6 errors of our own (RFC 4443 sections 2.2 to 2.4 and 3).
//!
//! Builds a message when one may be sent at all; how often is `worker`'s business, where it goes is the caller's.

use std::net::Ipv6Addr;

use smoltcp::wire::{
    Icmpv6DstUnreachable, Icmpv6Message, Icmpv6Packet, Icmpv6Repr, Icmpv6TimeExceeded, IpProtocol,
    Ipv6Packet, Ipv6Repr,
};

use super::view::{HEADER, ICMPV6, View, upper_layer};
use crate::update::MIN_MTU;

/// An error to be told to an inner source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    /// Type 2: the next link carries this many octets.
    PacketTooBig(u16),
    /// Type 3 code 0.
    HopLimitExceeded,
    /// Type 1 code 0.
    NoRoute,
    /// Type 1 code 3: the tunnel's other end is not known now.
    AddressUnreachable,
    /// Type 1 code 1.
    Prohibited,
    /// Type 1 code 5: the source is not one of this tunnel's.
    SourcePolicy,
}

/// The largest message we send: a whole packet of the minimum MTU (RFC 4443 section 2.4(c)).
pub const LARGEST: usize = MIN_MTU as usize;

/// Writes the error as a whole IPv6 packet from `source` into `out` and returns its octets, or `None` when none may be
/// sent (RFC 4443 section 2.4(e)).
pub fn build(error: IcmpError, source: Ipv6Addr, offending: &[u8], out: &mut [u8; LARGEST]) -> Option<usize> {
    let view = View::parse(offending).ok()?;
    build_about(error, source, &view, &offending[..view.len], out)
}

/// The same about a packet of which only the beginning is left, as in another error's quote; `None` too when that is less
/// than its header and eight octets.
pub fn build_quoted(
    error: IcmpError,
    source: Ipv6Addr,
    quoted: &[u8],
    out: &mut [u8; LARGEST],
) -> Option<usize> {
    let view = View::parse_cut(quoted).ok()?;
    let left = &quoted[..view.len.min(quoted.len())];
    if left.len() < view.len.min(HEADER + 8) {
        return None;
    }
    build_about(error, source, &view, left, out)
}

fn build_about(
    error: IcmpError,
    source: Ipv6Addr,
    view: &View,
    whole: &[u8],
    out: &mut [u8; LARGEST],
) -> Option<usize> {
    if !may_answer(error, view, whole) {
        return None;
    }
    let quote = &whole[HEADER..whole.len().min(LARGEST - HEADER - 8)];
    let header = quoted_header(whole)?;
    // The quoted header keeps its own payload length: that is what the sender compares.
    let repr = icmp_repr(error, header, quote);
    let ip = Ipv6Repr {
        src_addr: source,
        dst_addr: view.source,
        next_header: IpProtocol::Icmpv6,
        payload_len: repr.buffer_len(),
        hop_limit: 64,
    };
    let len = HEADER + repr.buffer_len();
    let out = &mut out[..len];
    ip.emit(&mut Ipv6Packet::new_unchecked(&mut out[..]));
    let checksum = Default::default();
    repr.emit(&source, &view.source, &mut Icmpv6Packet::new_unchecked(&mut out[HEADER..]), &checksum);
    restore_quote(out, whole, source, view.source);
    Some(len)
}

/// smoltcp wants a header whose length is true; the quote gets its own back afterwards.
fn quoted_header(whole: &[u8]) -> Option<Ipv6Repr> {
    let mut header = *whole.first_chunk::<HEADER>()?;
    header[4..6].fill(0);
    Ipv6Repr::parse(&Ipv6Packet::new_checked(&header[..]).ok()?).ok()
}

/// smoltcp re-emits the quoted header from its parsed form, which drops traffic class and flow label: put the
/// original octets back and sum again.
fn restore_quote(out: &mut [u8], whole: &[u8], source: Ipv6Addr, destination: Ipv6Addr) {
    out[HEADER + 8..HEADER + 8 + HEADER].copy_from_slice(&whole[..HEADER]);
    out[HEADER + 2..HEADER + 4].fill(0);
    let sum = super::checksum::icmpv6(source, destination, &out[HEADER..]);
    out[HEADER + 2..HEADER + 4].copy_from_slice(&sum);
}

fn icmp_repr(error: IcmpError, header: Ipv6Repr, data: &[u8]) -> Icmpv6Repr<'_> {
    let unreachable = |reason| Icmpv6Repr::DstUnreachable { reason, header, data };
    match error {
        IcmpError::PacketTooBig(mtu) => {
            Icmpv6Repr::PktTooBig { mtu: u32::from(mtu.max(MIN_MTU)), header, data }
        }
        IcmpError::HopLimitExceeded => {
            Icmpv6Repr::TimeExceeded { reason: Icmpv6TimeExceeded::HopLimitExceeded, header, data }
        }
        IcmpError::NoRoute => unreachable(Icmpv6DstUnreachable::NoRoute),
        IcmpError::AddressUnreachable => unreachable(Icmpv6DstUnreachable::AddrUnreachable),
        IcmpError::Prohibited => unreachable(Icmpv6DstUnreachable::AdminProhibit),
        IcmpError::SourcePolicy => unreachable(Icmpv6DstUnreachable::FailedPolicy),
    }
}

fn may_answer(error: IcmpError, view: &View, packet: &[u8]) -> bool {
    if view.source.is_unspecified() || view.source.is_multicast() || view.source.is_loopback() {
        return false;
    }
    if view.destination.is_multicast() && !matches!(error, IcmpError::PacketTooBig(_)) {
        return false;
    }
    let (at, later_fragment) = match upper_layer(packet) {
        // Perhaps an error itself, behind headers that cannot be followed.
        None => return false,
        Some((at, ICMPV6, later)) => (at, later),
        Some(_) => return true,
    };
    match packet.get(at) {
        _ if later_fragment => false,
        None => false,
        Some(kind) => *kind >= 128 && Icmpv6Message::from(*kind) != Icmpv6Message::Redirect,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{Icmpv6Type, PacketBuilder};

    const US: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
    const PEER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2);

    fn build(error: IcmpError, source: Ipv6Addr, offending: &[u8]) -> Option<Vec<u8>> {
        let mut out = [0; LARGEST];
        super::build(error, source, offending, &mut out).map(|len| out[..len].to_vec())
    }

    fn udp(to: Ipv6Addr, payload: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let b = PacketBuilder::ipv6(PEER.octets(), to.octets(), 9).udp(5, 6);
        b.write(&mut out, &vec![7; payload]).unwrap();
        out[1] |= 0x35;
        out
    }

    /// RFC: I6 (RFC 4443 sections 2.2 and 2.4(c))
    #[test]
    fn too_big_quotes_up_to_the_minimum_mtu_and_sums() {
        let offending = udp(US, 4000);
        let error = build(IcmpError::PacketTooBig(1400), US, &offending).unwrap();
        assert_eq!(error.len(), 1280);
        assert_eq!(error[48..], offending[..1232], "the quote is the packet, octet for octet");
        assert_eq!((error[40], error[41], error[44..48].to_vec()), (2, 0, 1400u32.to_be_bytes().to_vec()));
        let sum = super::super::checksum::Sum::pseudo(&error[8..40], 1240, 58).plus(&error[40..]);
        assert!(sum.is_intact());
        assert_eq!(error[24..40], PEER.octets());
    }

    /// RFC: I2 (RFC 2473 section 8.2)
    #[test]
    fn what_is_left_of_a_packet_is_quoted_as_far_as_it_goes() {
        let offending = udp(US, 1400);
        let mut out = [0; LARGEST];
        let len = build_quoted(IcmpError::AddressUnreachable, US, &offending[..500], &mut out).unwrap();
        assert_eq!(out[48..len], offending[..500]);
        assert_eq!(out[40..42], [1, 3]);
        let sum = super::super::checksum::Sum::pseudo(&out[8..40], (len - 40) as u32, 58).plus(&out[40..len]);
        assert!(sum.is_intact());
        for cut in [0, 39, 47] {
            assert_eq!(build_quoted(IcmpError::NoRoute, US, &offending[..cut], &mut out), None, "{cut}");
        }
    }

    /// RFC: I8 (RFC 8200 section 5)
    #[test]
    fn the_mtu_told_is_never_below_1280() {
        let error = build(IcmpError::PacketTooBig(576), US, &udp(US, 10)).unwrap();
        assert_eq!(error[44..48], 1280u32.to_be_bytes());
    }

    /// RFC: I4 (RFC 4443 section 2.4(e))
    #[test]
    fn never_answers_errors_redirects_multicast_or_nobody() {
        let mut icmp = Vec::new();
        let b = PacketBuilder::ipv6(PEER.octets(), US.octets(), 9);
        let kind = Icmpv6Type::Unknown { type_u8: 3, code_u8: 0, bytes5to8: [0; 4] };
        b.icmpv6(kind).write(&mut icmp, &[0; 50]).unwrap();
        assert_eq!(build(IcmpError::NoRoute, US, &icmp), None);
        icmp[40] = 137;
        assert_eq!(build(IcmpError::NoRoute, US, &icmp), None);
        icmp[40] = 128;
        assert!(build(IcmpError::NoRoute, US, &icmp).is_some());
        let all = Ipv6Addr::new(0xff0e, 0, 0, 0, 0, 0, 0, 1);
        assert_eq!(build(IcmpError::HopLimitExceeded, US, &udp(all, 1)), None);
        assert!(build(IcmpError::PacketTooBig(1280), US, &udp(all, 1)).is_some());
        let mut nobody = udp(US, 1);
        nobody[8..24].fill(0);
        assert_eq!(build(IcmpError::NoRoute, US, &nobody), None);
    }
}
