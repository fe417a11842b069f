//! The ten octets before every packet of a TUN device or packet socket: `struct virtio_net_hdr`, native endian.
//!
//! Tells how a super-packet is to be cut and which checksum is still to be completed (virtio 1.2 section 5.1.6). `hdr_len` is
//! written for the kernel's benefit and never believed: forwarded packets carry another one.

use crate::packet::batch::{Merged, Offload};

/// Octets of the header.
pub const LEN: usize = 10;

const NEEDS_CSUM: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// A header that says something we cannot use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strange;

/// Reads the header of a packet whose inner part starts `skip` octets later than the header thinks (link and outer
/// headers of a packet socket; 0 for a TUN device).
pub fn parse(header: &[u8; LEN], skip: usize) -> Result<Offload, Strange> {
    let field = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
    let mut offload = Offload::default();
    if header[0] & NEEDS_CSUM != 0 {
        let start = usize::from(field(6)).checked_sub(skip).ok_or(Strange)?;
        offload.partial = Some((start as u16, field(8)));
    }
    let kind = match header[1] & !GSO_ECN {
        0 => return Ok(offload),
        GSO_TCPV6 => Merged::Tcp,
        GSO_UDP_L4 => Merged::Udp,
        _ => return Err(Strange),
    };
    if field(4) == 0 {
        return Err(Strange);
    }
    offload.merged = Some((kind, field(4)));
    Ok(offload)
}

/// Writes the header of an IPv6 packet for the TUN device; `headers` are the octets before its payload, and `cwr`
/// says that a TCP packet has Congestion Window Reduced set.
pub fn emit(offload: &Offload, headers: usize, cwr: bool) -> [u8; LEN] {
    let mut out = [0; LEN];
    if let Some((start, offset)) = offload.partial {
        out[0] = NEEDS_CSUM;
        out[6..8].copy_from_slice(&start.to_ne_bytes());
        out[8..10].copy_from_slice(&offset.to_ne_bytes());
    }
    if let Some((kind, size)) = offload.merged {
        out[1] = match kind {
            Merged::Tcp if cwr => GSO_TCPV6 | GSO_ECN,
            Merged::Tcp => GSO_TCPV6,
            Merged::Udp => GSO_UDP_L4,
        };
        out[2..4].copy_from_slice(&(headers as u16).to_ne_bytes());
        out[4..6].copy_from_slice(&size.to_ne_bytes());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_emitted_is_parsed_again() {
        for merged in [None, Some((Merged::Tcp, 1220)), Some((Merged::Udp, 1232))] {
            for partial in [None, Some((40, 16)), Some((48, 6))] {
                let offload = Offload { merged, partial };
                assert_eq!(parse(&emit(&offload, 60, true), 0), Ok(offload));
            }
        }
    }

    #[test]
    fn link_and_outer_headers_are_subtracted() {
        let header = emit(&Offload { merged: Some((Merged::Tcp, 1400)), partial: Some((74, 16)) }, 94, false);
        assert_eq!(parse(&header, 34).map(|o| o.partial), Ok(Some((40, 16))));
        assert_eq!(parse(&header, 75), Err(Strange));
    }

    #[test]
    fn unknown_kinds_and_empty_sizes_are_strange() {
        assert_eq!(parse(&[0, 1, 0, 0, 9, 9, 0, 0, 0, 0], 0), Err(Strange));
        assert_eq!(parse(&[0, GSO_TCPV6, 0, 0, 0, 0, 0, 0, 0, 0], 0), Err(Strange));
    }
}
