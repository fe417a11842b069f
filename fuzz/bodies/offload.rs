//! Bodies about super-packets: what is cut is what the whole was; what is merged and cut again is what came.

use std::collections::BTreeMap;

use sixway_dataplane::offload::coalesce::Coalescer;
use sixway_dataplane::offload::segment::{Layout, complete, cut, detect_partial};
use sixway_dataplane::packet::batch::{Arrival, Batch, Merged, Offload, Packet};
use sixway_dataplane::packet::checksum::Sum;
use sixway_dataplane::packet::view::{TCP, UDP, View};

use super::packets::is_intact;

/// The upper layer begins here: no extension headers.
const UPPER: usize = 40;

/// Cuts whatever the octets say; then a well-formed super-packet out of them, which must survive cutting and merging.
pub(crate) fn segment(octets: &[u8]) {
    let Some((&[kind, high, low, mtu], rest)) = octets.split_first_chunk::<4>() else { return };
    let size = u16::from_be_bytes([high, low]);
    let merged = if kind & 1 == 0 { Merged::Tcp } else { Merged::Udp };
    let offload = Offload { merged: Some((merged, size)), partial: None };
    let _none = detect_partial(rest);
    if rest.len() >= 40 {
        // A forwarder takes only what has a header; sums are put in place.
        let _either = complete(&mut rest.to_vec(), u16::from(low), u16::from(mtu));
    }
    for mtu in [u16::from(mtu), 1280] {
        let Ok(layout) = Layout::of(rest, &offload, mtu) else { continue };
        let mut headers = vec![0; layout.segments() * layout.headers];
        if rest.len() >= 40 {
            cut(rest, &layout, &mut headers);
        }
        assert_eq!(layout.payload(layout.segments() - 1).end, rest.len());
        assert!(layout.largest() <= rest.len());
    }
    round_trip(merged, size % 1400 + 1, rest);
}

/// A super-packet of this payload: cut, every part is a packet with a sum that holds, and merging the parts gives the
/// whole again, to the octet.
pub(crate) fn round_trip(kind: Merged, size: u16, payload: &[u8]) {
    let (whole, offload) = whole(kind, size, payload);
    let Ok(layout) = Layout::of(&whole, &offload, 1280) else {
        assert!(payload.is_empty() || payload.len().div_ceil(usize::from(size)) > 1024);
        return;
    };
    let parts = parts(&whole, &layout);
    for part in &parts {
        assert_eq!(View::parse(part).unwrap().len, part.len());
        assert!(is_intact(part, part[6]), "the sum holds");
    }
    assert_eq!(parts.iter().flat_map(|part| &part[layout.headers..]).copied().collect::<Vec<_>>(), payload);
    // One train takes 128 packets.
    if parts.len() < 2 || parts.len() > 128 {
        return;
    }
    let merged = merge(&parts);
    assert_eq!(merged, [(whole, offload)], "cut and merged again");
}

/// A super-packet as a kernel describes it.
fn whole(kind: Merged, size: u16, payload: &[u8]) -> (Vec<u8>, Offload) {
    let payload = &payload[..payload.len().min(65_000)];
    let (protocol, header, field) = match kind {
        Merged::Tcp => (TCP, 20, 16),
        Merged::Udp => (UDP, 8, 6),
    };
    let upper = (header + payload.len()) as u16;
    let mut out = vec![0; UPPER + header];
    (out[0], out[6], out[7]) = (0x60, protocol, 64);
    out[4..6].copy_from_slice(&upper.to_be_bytes());
    out[8..40].fill(0x20);
    out[UPPER..UPPER + 4].copy_from_slice(&[0x12, 0x34, 0x56, 0x78]);
    match kind {
        // In the middle of a stream, an acknowledgement with it; the last octet is pushed.
        Merged::Tcp => (out[UPPER + 4], out[UPPER + 12], out[UPPER + 13]) = (0xff, 0x50, 0x18),
        Merged::Udp => out[UPPER + 4..UPPER + 6].copy_from_slice(&upper.to_be_bytes()),
    }
    out.extend_from_slice(payload);
    let pseudo = Sum::pseudo(&out[8..40], u32::from(upper), protocol).fold();
    out[UPPER + field..UPPER + field + 2].copy_from_slice(&pseudo);
    (out, Offload { merged: Some((kind, size)), partial: Some((UPPER as u16, field as u16)) })
}

fn parts(whole: &[u8], layout: &Layout) -> Vec<Vec<u8>> {
    let mut headers = vec![0; layout.segments() * layout.headers];
    cut(whole, layout, &mut headers);
    let parts = headers.chunks(layout.headers).enumerate();
    parts.map(|(n, header)| [header, &whole[layout.payload(n)]].concat()).collect()
}

/// What the kernel is given when these packets come together.
fn merge(packets: &[Vec<u8>]) -> Vec<(Vec<u8>, Offload)> {
    let mut batch = Batch::new(1, packets.len().max(1));
    batch.arena = packets.concat();
    let mut start = 0;
    for packet in packets {
        let (len, offload) = (packet.len(), Offload::default());
        batch.push(Packet { start, len, arrival: Arrival::Tun, offload });
        start += len;
    }
    let mut coalescer = Coalescer::new(packets.len(), (true, true), 7);
    coalescer.begin(packets.len());
    (0..packets.len()).for_each(|n| coalescer.add(&batch, n));
    let joined = coalescer.trains().iter().map(|train| {
        let members: Vec<_> = coalescer.members(train).map(|n| batch.bytes(&batch.packets[n])).collect();
        if let [only] = members[..] {
            return (only.to_vec(), Offload::default());
        }
        let mut out = vec![0; train.headers];
        let offload = train.emit(members[0], &mut out);
        members.iter().for_each(|member| out.extend_from_slice(&member[train.headers..]));
        (out, offload)
    });
    joined.collect()
}

/// Any packets: those of one flow come out of merging and cutting as they went in, in their order.
pub(crate) fn coalesce(octets: &[u8]) {
    let packets = packets(octets);
    let mut out = Vec::new();
    for (packet, offload) in merge(&packets) {
        match Layout::of(&packet, &offload, 0) {
            Ok(layout) => out.extend(parts(&packet, &layout)),
            Err(_) => out.push(packet),
        }
    }
    assert_eq!(out.len(), packets.len());
    // Ports tell the flows of these packets apart, for those that have any.
    let flow = |packet: &Vec<u8>| (packet.get(6).copied(), packet.get(40..44).map(<[u8]>::to_vec));
    let by_flow = |all: &[Vec<u8>]| {
        let mut flows: BTreeMap<_, Vec<Vec<u8>>> = BTreeMap::new();
        all.iter().for_each(|packet| flows.entry(flow(packet)).or_default().push(packet.clone()));
        flows
    };
    assert_eq!(by_flow(&out), by_flow(&packets));
}

/// Packets out of octets: two for how each is made, then its payload. Sums hold in most.
fn packets(octets: &[u8]) -> Vec<Vec<u8>> {
    let mut rest = octets;
    let mut sequence = [0u32; 4];
    let mut all = Vec::new();
    while let Some((&[how, len], after)) = rest.split_first_chunk::<2>() {
        let (payload, after) = after.split_at(usize::from(len).min(after.len()));
        rest = after;
        if how & 0xc0 == 0xc0 {
            all.push(payload.to_vec());
            continue;
        }
        let kind = if how & 1 == 0 { Merged::Tcp } else { Merged::Udp };
        let (mut packet, offload) = whole(kind, 1, payload);
        let flow = usize::from(how >> 1 & 3);
        packet[41] = flow as u8;
        if kind == Merged::Tcp {
            packet[44..48].copy_from_slice(&sequence[flow].to_be_bytes());
            sequence[flow] = sequence[flow].wrapping_add(payload.len() as u32);
            packet[53] = if how & 8 == 0 { 0x10 } else { how & 0x3f | 0x10 };
        }
        packet[1] |= how & 0x30;
        if let (Some((start, field)), false) = (offload.partial, how & 0x40 != 0) {
            complete(&mut packet, start, field).unwrap();
        }
        all.push(packet);
        if all.len() == 64 {
            break;
        }
    }
    all
}
