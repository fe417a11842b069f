//! IPv6 directly in IPv4, protocol 41 (RFC 4213 section 3): the outer header, read and written.
//!
//! Needed where frames are taken below the kernel's IP layer, which has checked nothing yet. Not done: reassembly
//! (the packet socket's fanout asks the kernel for it); acting on outer options (they are skipped).

use std::net::Ipv4Addr;

use crate::packet::checksum::Sum;
use crate::verdict::Reason;

/// The protocol number.
pub const PROTOCOL: u8 = 41;

/// The outer IPv4 header of a protocol-41 packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OuterHeader {
    /// Outer source.
    pub source: Ipv4Addr,
    /// Outer destination.
    pub destination: Ipv4Addr,
    /// Type of service.
    pub tos: u8,
    /// Octets of the header with its options.
    pub len: usize,
    /// Octets of header and payload.
    pub total: usize,
}

/// Reads and checks the outer header at the start of `bytes` (RFC 791 section 3.1, RFC 1122 section 3.2.1).
pub fn unwrap(bytes: &[u8]) -> Result<OuterHeader, Reason> {
    let Some(fixed) = bytes.first_chunk::<20>() else { return Err(Reason::OuterHeader) };
    let len = usize::from(fixed[0] & 0x0f) * 4;
    let total = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
    let shape_is_right = fixed[0] >> 4 == 4 && len >= 20 && len <= total && total <= bytes.len();
    if !shape_is_right || fixed[9] != PROTOCOL || !Sum::default().plus(&bytes[..len]).is_intact() {
        return Err(Reason::OuterHeader);
    }
    if u16::from_be_bytes([fixed[6], fixed[7]]) & 0x3fff != 0 {
        return Err(Reason::OuterFragment);
    }
    Ok(OuterHeader {
        source: Ipv4Addr::new(fixed[12], fixed[13], fixed[14], fixed[15]),
        destination: Ipv4Addr::new(fixed[16], fixed[17], fixed[18], fixed[19]),
        tos: fixed[1],
        len,
        total,
    })
}

/// An outer header without options for a packet of `total` octets with this header. DF is set where the path's MTU is known
/// (`whole`, RFC 4213 section 3.2.2), else clear (section 3.2.1).
pub fn wrap(
    (source, destination): (Ipv4Addr, Ipv4Addr),
    (tos, ttl): (u8, u8),
    total: u16,
    identification: u16,
    whole: bool,
) -> [u8; 20] {
    let mut out = [0; 20];
    out[6] = if whole { 0x40 } else { 0 };
    (out[0], out[1], out[8], out[9]) = (0x45, tos, ttl, PROTOCOL);
    out[2..4].copy_from_slice(&total.to_be_bytes());
    out[4..6].copy_from_slice(&identification.to_be_bytes());
    out[12..16].copy_from_slice(&source.octets());
    out[16..20].copy_from_slice(&destination.octets());
    let sum = Sum::default().plus(&out).finish();
    out[10..12].copy_from_slice(&sum);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{IpNumber, Ipv4Header};

    fn header(payload: u16, change: impl FnOnce(&mut Ipv4Header)) -> Vec<u8> {
        let mut h = Ipv4Header::new(payload, 64, IpNumber::IPV6, [192, 0, 2, 1], [192, 0, 2, 2]).unwrap();
        change(&mut h);
        h.header_checksum = h.calc_header_checksum();
        let mut out = Vec::new();
        h.write_raw(&mut out).unwrap();
        out.resize(out.len() + usize::from(payload), 0);
        out
    }

    /// RFC: E1 (RFC 791 section 3.1)
    #[test]
    fn reads_a_good_header_and_skips_options() {
        let got = unwrap(&header(60, |h| h.ecn = etherparse::IpEcn::try_new(3).unwrap())).unwrap();
        assert_eq!((got.source, got.destination), (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)));
        assert_eq!((got.tos, got.len, got.total), (3, 20, 80));
        let with = header(60, |h| {
            h.options = [1u8, 1, 1, 1].into();
            h.total_len += 4;
        });
        assert_eq!(unwrap(&with).map(|h| (h.len, h.total)), Ok((24, 84)));
    }

    /// RFC: E1 (RFC 4213 sections 3.1, 3.3 and 3.5)
    #[test]
    fn the_outer_header_is_as_rfc_4213_wants_it() {
        let ends = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2));
        for whole in [false, true] {
            let out = wrap(ends, (0x2a, 64), 80, 0x1234, whole);
            let (got, rest) = Ipv4Header::from_slice(&out).unwrap();
            assert!(rest.is_empty() && got.options.is_empty());
            assert_eq!((got.source, got.destination), (ends.0.octets(), ends.1.octets()));
            assert_eq!((got.protocol, got.time_to_live, got.total_len), (IpNumber::IPV6, 64, 80));
            assert_eq!((got.dont_fragment, got.more_fragments, got.identification), (whole, false, 0x1234));
            assert_eq!(got.header_checksum, got.calc_header_checksum());
            assert_eq!((got.dscp.value(), got.ecn.value()), (0x2a >> 2, 0x2a & 3));
        }
    }

    #[test]
    fn refuses_damage_and_fragments() {
        let mut bad = header(60, |_| {});
        bad[10] ^= 1;
        assert_eq!(unwrap(&bad), Err(Reason::OuterHeader));
        assert_eq!(unwrap(&header(60, |_| {})[..79]), Err(Reason::OuterHeader));
        assert_eq!(unwrap(&header(60, |h| h.protocol = IpNumber::UDP)), Err(Reason::OuterHeader));
        assert_eq!(unwrap(&header(60, |h| h.more_fragments = true)), Err(Reason::OuterFragment));
        assert_eq!(unwrap(&[0x45; 19]), Err(Reason::OuterHeader));
    }
}
