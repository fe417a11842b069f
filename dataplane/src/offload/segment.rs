//! Cutting a super-packet into what goes on the wire: one header each, payload left where it lies.
//!
//! The rules are those of TCP segmentation offload (RFC 9293 section 3.1 for sequence numbers; CWR on the first
//! segment only, RFC 3168 section 6.1.2; FIN and PSH on the last) and of UDP segmentation (each slice is a datagram of
//! its own). A single packet with a partial checksum is "cut" into one. Knows nothing of tunnels.

use std::ops::Range;

use crate::packet::batch::{Merged, Offload};
use crate::packet::checksum::Sum;
use crate::packet::view::{HEADER, TCP, UDP, upper_layer};

/// Most segments of one super-packet: 64 KiB in slices of one MSS each are fewer; a stranger's super-packet of tiny
/// slices is refused.
pub const MOST_SEGMENTS: usize = 1024;
const FIN_PSH: u8 = 0x09;
const CWR: u8 = 0x80;

/// A super-packet whose description does not fit its octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadOffload;

/// Where the parts of a super-packet are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Octets of all headers, which each segment repeats.
    pub headers: usize,
    /// Where the upper layer starts.
    pub upper: usize,
    /// Payload octets of each segment but the last.
    pub size: usize,
    /// TCP or UDP.
    pub kind: Merged,
    /// Octets of the whole.
    pub len: usize,
}

impl Layout {
    /// The parts of `packet`, which was merged as `kind`; `size` 0 lets `mtu` decide (TCP only).
    pub fn of(packet: &[u8], offload: &Offload, mtu: u16) -> Result<Self, BadOffload> {
        let (kind, size) = offload.merged.ok_or(BadOffload)?;
        let (upper, protocol, fragment) = upper_layer(packet).ok_or(BadOffload)?;
        let headers = match (kind, protocol) {
            _ if fragment => return Err(BadOffload),
            (Merged::Tcp, TCP) => upper + usize::from(*packet.get(upper + 12).ok_or(BadOffload)? >> 4) * 4,
            (Merged::Udp, UDP) => upper + 8,
            _ => return Err(BadOffload),
        };
        let least = upper + if kind == Merged::Tcp { 20 } else { 8 };
        if headers < least || headers >= packet.len() {
            return Err(BadOffload);
        }
        let size = match (size, kind) {
            (0, Merged::Tcp) => usize::from(mtu).checked_sub(headers).filter(|s| *s > 0).ok_or(BadOffload)?,
            (0, Merged::Udp) => return Err(BadOffload),
            (size, _) => usize::from(size),
        };
        let layout = Self { headers, upper, size, kind, len: packet.len() };
        if layout.segments() > MOST_SEGMENTS { Err(BadOffload) } else { Ok(layout) }
    }

    /// How many segments there are.
    pub fn segments(&self) -> usize {
        (self.len - self.headers).div_ceil(self.size)
    }

    /// Octets of all segments with their headers: what is on the wire, whoever merged them.
    pub fn octets(&self) -> usize {
        self.len + (self.segments() - 1) * self.headers
    }

    /// Octets of the largest segment with its headers: what an MTU is compared with.
    pub fn largest(&self) -> usize {
        self.headers + self.size.min(self.len - self.headers)
    }

    /// Whether a TCP packet says Congestion Window Reduced, which only its first segment may repeat (RFC 3168 section 6.1.2).
    pub fn has_cwr(&self, packet: &[u8]) -> bool {
        self.kind == Merged::Tcp && packet[self.upper + 13] & CWR != 0
    }

    /// The payload of segment `n`.
    pub fn payload(&self, n: usize) -> Range<usize> {
        let start = self.headers + n * self.size;
        start..(start + self.size).min(self.len)
    }
}

/// Writes the headers of all segments of `packet` one after another into `out`, which must hold
/// `layout.segments() * layout.headers` octets.
pub fn cut(packet: &[u8], layout: &Layout, out: &mut [u8]) {
    let headers = &packet[..layout.headers];
    match layout.kind {
        Merged::Tcp => cut_tcp(packet, layout, headers, out),
        Merged::Udp => cut_udp(packet, layout, headers, out),
    }
}

fn cut_tcp(packet: &[u8], layout: &Layout, headers: &[u8], out: &mut [u8]) {
    let tcp = layout.upper;
    let first = u32::from_be_bytes([headers[tcp + 4], headers[tcp + 5], headers[tcp + 6], headers[tcp + 7]]);
    // What all segments share is summed once: not sequence number, flags (with the data offset) and checksum.
    let shared =
        Sum::pseudo(&headers[8..40], 0, TCP).plus(&headers[tcp..tcp + 4]).plus(&headers[tcp + 8..tcp + 12]);
    let shared = shared.plus(&headers[tcp + 14..tcp + 16]).plus(&headers[tcp + 18..]);
    let last = layout.segments() - 1;
    for (n, header) in out.chunks_exact_mut(layout.headers).take(last + 1).enumerate() {
        let payload = &packet[layout.payload(n)];
        let upper = layout.headers - tcp + payload.len();
        header.copy_from_slice(headers);
        set_length(header, tcp - HEADER + upper);
        let header = &mut header[tcp..];
        let sequence = first.wrapping_add((n * layout.size) as u32);
        header[4..8].copy_from_slice(&sequence.to_be_bytes());
        header[13] &= match n {
            _ if n == last && n > 0 => !CWR,
            _ if n == last => 0xff,
            0 => !FIN_PSH,
            _ => !(FIN_PSH | CWR),
        };
        let flags = u16::from_be_bytes([header[12], header[13]]);
        let sum = shared.add_u32(upper as u32).add_u32(sequence).add_u16(flags).plus(payload).finish();
        header[16..18].copy_from_slice(&sum);
    }
}

fn cut_udp(packet: &[u8], layout: &Layout, headers: &[u8], out: &mut [u8]) {
    let udp = layout.upper;
    let shared = Sum::pseudo(&headers[8..40], 0, UDP).plus(&headers[udp..udp + 4]);
    let segments = layout.segments();
    for (n, header) in out.chunks_exact_mut(layout.headers).take(segments).enumerate() {
        let payload = &packet[layout.payload(n)];
        let upper = 8 + payload.len();
        header.copy_from_slice(headers);
        set_length(header, udp - HEADER + upper);
        // The length counts twice: in the pseudo-header and as a field.
        let sum = shared.add_u32(upper as u32).add_u16(upper as u16).plus(payload).finish_udp();
        header[udp + 4..udp + 6].copy_from_slice(&(upper as u16).to_be_bytes());
        header[udp + 6..udp + 8].copy_from_slice(&sum);
    }
}

fn set_length(header: &mut [u8], len: usize) {
    header[4..6].copy_from_slice(&(len as u16).to_be_bytes());
}

/// Completes a checksum field that holds only the pseudo-header's sum, in place.
pub fn complete(packet: &mut [u8], start: u16, offset: u16) -> Result<(), BadOffload> {
    let (start, field) = (usize::from(start), usize::from(start) + usize::from(offset));
    if start < HEADER || field + 2 > packet.len() {
        return Err(BadOffload);
    }
    // UDP's field lies at 6, TCP's at 16: only UDP must not send zero.
    let sum = Sum::default().plus(&packet[start..]);
    let sum = if offset == 6 { sum.finish_udp() } else { sum.finish() };
    packet[field..field + 2].copy_from_slice(&sum);
    Ok(())
}

/// Whether a TCP checksum field holds only the pseudo-header's sum: the kernel has merged this packet, or its
/// sender left the checksum to hardware that was not there. For readers without metadata (raw sockets).
pub fn detect_partial(packet: &[u8]) -> Option<(u16, u16)> {
    let (upper, TCP, false) = upper_layer(packet)? else { return None };
    let field = packet.get(upper + 16..upper + 18)?;
    let pseudo = Sum::pseudo(packet.get(8..40)?, (packet.len() - upper) as u32, TCP);
    (field == pseudo.fold()).then_some((upper as u16, 16))
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
    use proptest::prelude::*;

    fn super_packet(kind: Merged, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let b = PacketBuilder::ipv6([0x20; 16], [0x30; 16], 60);
        match kind {
            Merged::Tcp => b.tcp(1, 2, 0xffff_ff00, 100).psh().ack(7).fin().write(&mut out, payload).unwrap(),
            Merged::Udp => b.udp(1, 2).write(&mut out, payload).unwrap(),
        }
        out
    }

    fn segments(packet: &[u8], layout: &Layout) -> Vec<Vec<u8>> {
        let mut headers = vec![0; layout.segments() * layout.headers];
        cut(packet, layout, &mut headers);
        let parts = headers.chunks(layout.headers).enumerate();
        parts.map(|(n, h)| [h, &packet[layout.payload(n)]].concat()).collect()
    }

    /// An independent reader's opinion: parses, sums, and returns the payload.
    fn reread(segment: &[u8]) -> (Option<u32>, u8, Vec<u8>) {
        let sliced = SlicedPacket::from_ip(segment).unwrap();
        let upper = &segment[40..];
        let protocol = segment[6];
        assert!(Sum::pseudo(&segment[8..40], upper.len() as u32, protocol).plus(upper).is_intact());
        match sliced.transport.unwrap() {
            TransportSlice::Tcp(t) => (Some(t.sequence_number()), segment[53], t.payload().to_vec()),
            TransportSlice::Udp(u) => (None, 0, u.payload().to_vec()),
            TransportSlice::Icmpv4(_) | TransportSlice::Icmpv6(_) | TransportSlice::Igmp(_) => {
                panic!("not cut")
            }
        }
    }

    proptest! {
        /// RFC: T2 (RFC 8200 section 8.1)
        #[test]
        fn segments_are_what_the_whole_was(
            payload in proptest::collection::vec(any::<u8>(), 1..9000),
            size in 9u16..1500,
            tcp in any::<bool>(),
        ) {
            let kind = if tcp { Merged::Tcp } else { Merged::Udp };
            let packet = super_packet(kind, &payload);
            let offload = Offload { merged: Some((kind, size)), partial: None };
            let layout = Layout::of(&packet, &offload, 1280).unwrap();
            let mut together = Vec::new();
            let all = segments(&packet, &layout);
            for (n, segment) in all.iter().enumerate() {
                let (sequence, flags, part) = reread(segment);
                if tcp {
                    prop_assert_eq!(sequence, Some(0xffff_ff00u32.wrapping_add(together.len() as u32)));
                    prop_assert_eq!(flags & FIN_PSH != 0, n + 1 == all.len());
                }
                prop_assert!(segment.len() <= layout.largest());
                together.extend(part);
            }
            prop_assert_eq!(together, payload);
        }

        #[test]
        fn nonsense_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), size in any::<u16>(), tcp in any::<bool>(), mtu in 0u16..2000, at in any::<(u16, u16)>()) {
            let kind = if tcp { Merged::Tcp } else { Merged::Udp };
            if let Ok(layout) = Layout::of(&bytes, &Offload { merged: Some((kind, size)), partial: None }, mtu) {
                segments(&bytes, &layout);
            }
            let _ = complete(&mut bytes.clone(), at.0, at.1);
            let _ = detect_partial(&bytes);
        }
    }

    #[test]
    fn options_and_extension_headers_are_repeated_and_summed() {
        let mut bytes = super_packet(Merged::Tcp, &[5; 301]);
        // Twelve octets of TCP options, and a hop-by-hop header before it all.
        bytes.splice(60..60, [1, 1, 8, 10, 0, 1, 2, 3, 4, 5, 6, 7]);
        bytes[52] = 8 << 4;
        bytes.splice(40..40, [TCP, 0, 1, 4, 0, 0, 0, 0]);
        bytes[6] = 0;
        let offload = Offload { merged: Some((Merged::Tcp, 100)), partial: None };
        let layout = Layout::of(&bytes, &offload, 1280).unwrap();
        assert_eq!((layout.upper, layout.headers, layout.segments()), (48, 80, 4));
        for segment in segments(&bytes, &layout) {
            let upper = &segment[48..];
            assert!(Sum::pseudo(&segment[8..40], upper.len() as u32, TCP).plus(upper).is_intact());
            assert_eq!(segment[40..48], bytes[40..48]);
            assert_eq!(segment[68..80], bytes[68..80]);
            assert_eq!(usize::from(u16::from_be_bytes([segment[4], segment[5]])), segment.len() - 40);
        }
    }

    #[test]
    fn cwr_stays_on_the_first_segment_only() {
        let mut packet = super_packet(Merged::Tcp, &[5; 300]);
        packet[53] |= CWR;
        let layout =
            Layout::of(&packet, &Offload { merged: Some((Merged::Tcp, 100)), partial: None }, 1280).unwrap();
        let flags: Vec<_> = segments(&packet, &layout).iter().map(|s| s[53] & CWR != 0).collect();
        assert_eq!(flags, [true, false, false]);
    }

    #[test]
    fn an_unknown_size_is_the_mtu_for_tcp_and_refused_for_udp() {
        let tcp = super_packet(Merged::Tcp, &[5; 3000]);
        let layout =
            Layout::of(&tcp, &Offload { merged: Some((Merged::Tcp, 0)), partial: None }, 1280).unwrap();
        assert_eq!((layout.largest(), layout.segments()), (1280, 3));
        let udp = super_packet(Merged::Udp, &[5; 3000]);
        assert!(Layout::of(&udp, &Offload { merged: Some((Merged::Udp, 0)), partial: None }, 1280).is_err());
    }

    #[test]
    fn partial_checksums_are_seen_and_completed() {
        let mut packet = super_packet(Merged::Tcp, &[5; 301]);
        assert_eq!(detect_partial(&packet), None);
        let right = packet[56..58].to_vec();
        let pseudo = Sum::pseudo(&packet[8..40], (packet.len() - 40) as u32, TCP).fold();
        packet[56..58].copy_from_slice(&pseudo);
        let (start, offset) = detect_partial(&packet).unwrap();
        complete(&mut packet, start, offset).unwrap();
        assert_eq!(packet[56..58], right);
    }
}
