//! Putting segments together on their way to the kernel: many packets of one flow become one super-packet.
//!
//! Merges what a receiver's own GRO would merge, and nothing else: TCP segments in sequence with equal headers (RFC 9293;
//! acknowledgement, window, options, flags but PSH), UDP datagrams of equal length; equal hop limit, flow label and
//! traffic class, so that no congestion mark is spread or lost (RFC 6040, RFC 3168 section 5.3); every checksum intact, since
//! the kernel will not look again. Packets of one flow never change places, those in it that are fragments, have extension
//! headers or are super-packets already among them. Pure: looks at a batch, says what belongs together; no packet is copied.

use crate::packet::batch::{Batch, Merged, Offload, Packet};
use crate::packet::checksum::Sum;
use crate::packet::view::{HEADER, ICMPV6, TCP, UDP};
use crate::table::index::Seed;

/// Most packets of one train: their slices and two headers fit one gathering write.
pub const MOST_MEMBERS: usize = 128;
/// Most octets of a train with its headers: what an IPv6 payload length can say.
const MOST_OCTETS: usize = 65_535;
/// Flows that may be open at once; more only merge less.
const FLOWS: usize = 64;
const NOBODY: u32 = u32::MAX;
const UDP_HEADER: usize = 8;
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;

/// Packets that will be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Train {
    /// Its first packet's place in the batch.
    pub first: u32,
    last: u32,
    /// How many packets.
    pub members: u32,
    /// Octets of the headers that all share; 0 for a packet that travels as it is.
    pub headers: usize,
    /// Payload octets of every packet but the last.
    pub size: usize,
    payload: usize,
    next_sequence: u32,
    /// TCP or UDP.
    pub kind: Merged,
    pushed: bool,
    closed: bool,
}

/// Finds trains; keeps its memory from batch to batch.
#[derive(Debug)]
pub struct Coalescer {
    trains: Vec<Train>,
    next: Vec<u32>,
    flows: [u32; FLOWS],
    /// Any of them has been.
    open: bool,
    seed: Seed,
    tcp: bool,
    udp: bool,
}

/// What a packet is to trains.
enum Look {
    /// It may join one, or begin one.
    Segment(Segment),
    /// It travels alone, and no later packet of its flow may join a train before it.
    Alone(u64),
    /// It travels alone and may belong to any flow between its addresses: fragments, what is behind extension headers.
    Hidden,
    /// It travels alone and is of no flow that has trains.
    Apart,
}

/// What of a packet decides with whom it may travel.
struct Segment {
    kind: Merged,
    headers: usize,
    payload: usize,
    sequence: u32,
    pushed: bool,
    may_merge: bool,
    flow: u64,
}

impl Coalescer {
    /// For batches of up to `most` packets, merging what the kernel is able to cut again: TCP, UDP.
    pub fn new(most: usize, (tcp, udp): (bool, bool), seed: u64) -> Self {
        let (trains, next) = (Vec::with_capacity(most), Vec::with_capacity(most));
        Self { trains, next, flows: [NOBODY; FLOWS], open: false, seed: Seed(seed), tcp, udp }
    }

    /// From the next batch on merges these only.
    pub fn merge(&mut self, (tcp, udp): (bool, bool)) {
        (self.tcp, self.udp) = (tcp, udp);
    }

    /// Begins with a batch of `packets` packets.
    pub fn begin(&mut self, packets: usize) {
        self.trains.clear();
        self.next.clear();
        self.next.resize(packets, NOBODY);
        self.flows = [NOBODY; FLOWS];
        self.open = false;
    }

    /// The next packet for the kernel, in order of arrival.
    pub fn add(&mut self, batch: &Batch, n: usize) {
        let packet = &batch.packets[n];
        let segment = match self.look(packet, batch.bytes(packet)) {
            Look::Segment(segment) => segment,
            Look::Alone(flow) => {
                self.flows[flow as usize % FLOWS] = NOBODY;
                return self.alone(n);
            }
            Look::Hidden => {
                self.close_between(batch, batch.bytes(packet));
                return self.alone(n);
            }
            Look::Apart => return self.alone(n),
        };
        let slot = segment.flow as usize % FLOWS;
        let open = self.flows[slot];
        if open != NOBODY && self.append(batch, open as usize, n, &segment) {
            return;
        }
        // Whatever this packet is, no later one of its flow may join a train before it.
        self.flows[slot] = self.trains.len() as u32;
        self.open = true;
        self.trains.push(Train {
            first: n as u32,
            last: n as u32,
            members: 1,
            headers: segment.headers,
            size: segment.payload,
            payload: segment.payload,
            next_sequence: segment.sequence.wrapping_add(segment.payload as u32),
            kind: segment.kind,
            pushed: segment.pushed,
            closed: !segment.may_merge || segment.pushed,
        });
    }

    /// No later packet joins a train of any flow between these addresses.
    fn close_between(&mut self, batch: &Batch, bytes: &[u8]) {
        if !self.open {
            return;
        }
        for slot in &mut self.flows {
            let Some(train) = self.trains.get(*slot as usize) else { continue };
            let first = batch.bytes(&batch.packets[train.first as usize]);
            if first.get(8..HEADER) == bytes.get(8..HEADER) {
                *slot = NOBODY;
            }
        }
    }

    fn alone(&mut self, n: usize) {
        let n = n as u32;
        let kind = Merged::Tcp;
        let (headers, size, payload) = (0, 0, 0);
        let (next_sequence, pushed) = (0, false);
        let train = Train {
            first: n,
            last: n,
            members: 1,
            headers,
            size,
            payload,
            next_sequence,
            kind,
            pushed,
            closed: true,
        };
        self.trains.push(train);
    }

    fn append(&mut self, batch: &Batch, open: usize, n: usize, new: &Segment) -> bool {
        let train = &mut self.trains[open];
        let first = batch.bytes(&batch.packets[train.first as usize]);
        let this = batch.bytes(&batch.packets[n]);
        let fits = !train.closed
            && new.may_merge
            && train.kind == new.kind
            && train.headers == new.headers
            && new.payload <= train.size
            && (train.members as usize) < MOST_MEMBERS
            && train.headers + train.payload + new.payload <= MOST_OCTETS
            && (new.kind == Merged::Udp || new.sequence == train.next_sequence)
            && same_headers(first, this, train);
        if !fits {
            return false;
        }
        self.next[train.last as usize] = n as u32;
        train.last = n as u32;
        train.members += 1;
        train.payload += new.payload;
        train.next_sequence = train.next_sequence.wrapping_add(new.payload as u32);
        train.pushed = new.pushed;
        train.closed = new.pushed || new.payload < train.size;
        true
    }

    /// What was found, in order.
    pub fn trains(&self) -> &[Train] {
        &self.trains
    }

    /// The places of a train's packets in the batch, in order.
    pub fn members(&self, train: &Train) -> impl Iterator<Item = usize> + '_ {
        let mut at = train.first;
        std::iter::from_fn(move || {
            let here = at;
            at = *self.next.get(here as usize)?;
            Some(here as usize)
        })
    }

    /// Reads a packet of TCP or UDP directly after the IPv6 header; others travel alone.
    fn look(&self, packet: &Packet, bytes: &[u8]) -> Look {
        let merges = match bytes.get(6) {
            Some(&TCP) => self.tcp,
            Some(&UDP) => self.udp,
            Some(&ICMPV6) => return Look::Apart,
            Some(_) | None => return Look::Hidden,
        };
        if bytes.len() < HEADER + UDP_HEADER {
            return Look::Hidden;
        }
        if !merges {
            return Look::Apart;
        }
        let flow = self.seed.hash(flow_bits(bytes));
        if packet.offload != Offload::default() {
            return Look::Alone(flow);
        }
        let segment = if bytes[6] == TCP { look_tcp(bytes, flow) } else { look_udp(bytes, flow) };
        segment.map_or(Look::Alone(flow), Look::Segment)
    }
}

/// Addresses and ports folded together: only to find an open train, which is then compared in full.
fn flow_bits(bytes: &[u8]) -> u128 {
    let word = |at: usize| {
        let mut octets = [0; 16];
        octets.copy_from_slice(&bytes[at..at + 16]);
        u128::from_ne_bytes(octets)
    };
    let ports = u32::from_ne_bytes([bytes[40], bytes[41], bytes[42], bytes[43]]);
    word(8) ^ word(24).rotate_left(64) ^ u128::from(ports) << 32
}

fn look_tcp(bytes: &[u8], flow: u64) -> Option<Segment> {
    if bytes.len() < HEADER + 20 {
        return None;
    }
    let headers = HEADER + usize::from(bytes[HEADER + 12] >> 4) * 4;
    if headers < HEADER + 20 || headers > bytes.len() {
        return None;
    }
    let flags = bytes[HEADER + 13];
    let payload = bytes.len() - headers;
    let plain = flags & !PSH == ACK && payload > 0;
    Some(Segment {
        kind: Merged::Tcp,
        headers,
        payload,
        sequence: u32::from_be_bytes([bytes[44], bytes[45], bytes[46], bytes[47]]),
        pushed: flags & PSH != 0,
        may_merge: plain && is_intact(bytes, TCP),
        flow,
    })
}

fn look_udp(bytes: &[u8], flow: u64) -> Option<Segment> {
    let len = usize::from(u16::from_be_bytes([bytes[44], bytes[45]]));
    let payload = bytes.len() - HEADER - UDP_HEADER;
    let plain = len == bytes.len() - HEADER && payload > 0 && bytes[46..48] != [0, 0];
    let may_merge = plain && is_intact(bytes, UDP);
    let headers = HEADER + UDP_HEADER;
    Some(Segment { kind: Merged::Udp, headers, payload, sequence: 0, pushed: false, may_merge, flow })
}

/// The addresses stand right before the upper layer, so pseudo-header and packet are summed in one go.
fn is_intact(bytes: &[u8], protocol: u8) -> bool {
    let len = (bytes.len() - HEADER) as u32;
    Sum::default().plus(&bytes[8..]).add_u32(len).add_u16(u16::from(protocol)).is_intact()
}

/// All that must be equal: everything but lengths, sequence number, PSH and checksum.
fn same_headers(a: &[u8], b: &[u8], train: &Train) -> bool {
    let ip = a[..4] == b[..4] && a[6..44] == b[6..44];
    match train.kind {
        Merged::Udp => ip,
        Merged::Tcp => {
            let flags = (a[53] ^ b[53]) & !PSH == 0;
            ip && flags
                && a[48..53] == b[48..53]
                && a[54..56] == b[54..56]
                && a[58..train.headers] == b[58..train.headers]
        }
    }
}

impl Train {
    /// Writes the headers of the whole into `out` and returns how the kernel must cut it again; `first` is the first packet.
    pub fn emit(&self, first: &[u8], out: &mut [u8]) -> Offload {
        let upper = self.headers - HEADER + self.payload;
        out.copy_from_slice(&first[..self.headers]);
        out[4..6].copy_from_slice(&(upper as u16).to_be_bytes());
        let (protocol, field) = match self.kind {
            Merged::Tcp => {
                out[53] |= if self.pushed { PSH } else { 0 };
                (TCP, 16)
            }
            Merged::Udp => {
                out[44..46].copy_from_slice(&(upper as u16).to_be_bytes());
                (UDP, 6)
            }
        };
        // What hardware would be given: the pseudo-header's sum, to be completed for each segment.
        let pseudo = Sum::pseudo(&out[8..40], upper as u32, protocol).fold();
        out[HEADER + field..HEADER + field + 2].copy_from_slice(&pseudo);
        Offload { merged: Some((self.kind, self.size as u16)), partial: Some((HEADER as u16, field as u16)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offload::segment::{Layout, cut};
    use crate::packet::batch::Arrival;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    fn tcp(port: u16, sequence: u32, payload: &[u8], push: bool) -> Vec<u8> {
        let mut out = Vec::new();
        let b = PacketBuilder::ipv6([0x20; 16], [0x30; 16], 60).tcp(port, 2, sequence, 100).ack(7);
        if push {
            b.psh().write(&mut out, payload).unwrap()
        } else {
            b.write(&mut out, payload).unwrap()
        }
        out
    }

    fn udp(port: u16, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        PacketBuilder::ipv6([0x20; 16], [0x30; 16], 60).udp(port, 2).write(&mut out, payload).unwrap();
        out
    }

    fn batch(packets: &[Vec<u8>]) -> Batch {
        batch_of(packets, |_| Offload::default())
    }

    fn batch_of(packets: &[Vec<u8>], offload: impl Fn(usize) -> Offload) -> Batch {
        let mut batch = Batch::new(1, packets.len().max(1));
        batch.arena = packets.concat();
        let mut start = 0;
        for (n, p) in packets.iter().enumerate() {
            batch.push(Packet { start, len: p.len(), arrival: Arrival::Tun, offload: offload(n) });
            start += p.len();
        }
        batch
    }

    /// A datagram between the same addresses whose ports nobody sees: behind a fragment header, or another one.
    fn hidden(next: u8, mark: u8) -> Vec<u8> {
        let mut p = udp(1, &[mark; 40]);
        p[6] = next;
        p[40..48].copy_from_slice(&[UDP, 0, 0, 1, 0, 0, 0, mark]);
        p
    }

    const SUPER: Offload = Offload { merged: Some((Merged::Udp, 20)), partial: Some((40, 6)) };

    fn coalesce(batch: &Batch) -> Coalescer {
        let mut c = Coalescer::new(batch.packets.len(), (true, true), 5);
        c.begin(batch.packets.len());
        (0..batch.packets.len()).for_each(|n| c.add(batch, n));
        c
    }

    fn sizes(packets: &[Vec<u8>]) -> Vec<u32> {
        coalesce(&batch(packets)).trains().iter().map(|t| t.members).collect()
    }

    /// What the kernel will make of the trains again.
    fn recut(batch: &Batch, c: &Coalescer) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        for train in c.trains() {
            let members: Vec<_> = c.members(train).map(|n| batch.bytes(&batch.packets[n])).collect();
            assert_eq!(members.len(), train.members as usize);
            let [_, _, ..] = members[..] else {
                out.push(members[0].to_vec());
                continue;
            };
            let mut whole = vec![0; train.headers];
            let offload = train.emit(members[0], &mut whole);
            members.iter().for_each(|m| whole.extend_from_slice(&m[train.headers..]));
            let layout = Layout::of(&whole, &offload, 0).unwrap();
            let mut headers = vec![0; layout.segments() * layout.headers];
            cut(&whole, &layout, &mut headers);
            let parts = headers.chunks(layout.headers).enumerate();
            out.extend(parts.map(|(n, h)| [h, &whole[layout.payload(n)]].concat()));
        }
        out
    }

    #[test]
    fn a_stream_becomes_one_and_is_cut_into_the_same_again() {
        let packets: Vec<_> = (0..40).map(|n| tcp(1, n * 100, &[n as u8; 100], n == 39)).collect();
        let batch = batch(&packets);
        let c = coalesce(&batch);
        assert_eq!(c.trains().len(), 1);
        assert_eq!(recut(&batch, &c), packets);
    }

    #[test]
    fn what_breaks_a_train() {
        let next = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut b = tcp(1, 100, &[2; 100], false);
            change(&mut b);
            // Put the checksum right again unless the change was to damage it.
            b[56..58].fill(0);
            let sum = Sum::pseudo(&b[8..40], (b.len() - 40) as u32, TCP).plus(&b[40..]).finish();
            b[56..58].copy_from_slice(&sum);
            sizes(&[tcp(1, 0, &[1; 100], false), b])
        };
        assert_eq!(next(&|_| {}), [2]);
        assert_eq!(next(&|b| b[1] |= 0x30), [1, 1], "congestion mark");
        assert_eq!(next(&|b| b[3] = 9), [1, 1], "flow label");
        assert_eq!(next(&|b| b[7] = 59), [1, 1], "hop limit");
        assert_eq!(next(&|b| b[47] = 99), [1, 1], "sequence");
        assert_eq!(next(&|b| b[51] = 9), [1, 1], "acknowledgement");
        assert_eq!(next(&|b| b[55] = 9), [1, 1], "window");
        for flag in [0x01, 0x02, 0x04, 0x20, 0x40, 0x80] {
            assert_eq!(next(&|b| b[53] |= flag), [1, 1], "flag {flag:#x}");
        }
        let mut damaged = tcp(1, 100, &[2; 100], false);
        damaged[90] ^= 1;
        assert_eq!(sizes(&[tcp(1, 0, &[1; 100], false), damaged]), [1, 1]);
    }

    #[test]
    fn what_must_not_be_merged_is_not() {
        let all =
            [tcp(1, 0, &[1; 100], false), tcp(1, 100, &[1; 100], false), udp(1, &[1; 50]), udp(1, &[2; 50])];
        let batch = batch(&all);
        let mut c = Coalescer::new(4, (true, true), 5);
        for (allowed, sizes) in
            [((true, false), vec![2, 1, 1]), ((false, true), vec![1, 1, 2]), ((true, true), vec![2, 2])]
        {
            c.merge(allowed);
            c.begin(4);
            (0..4).for_each(|n| c.add(&batch, n));
            assert_eq!(c.trains().iter().map(|t| t.members).collect::<Vec<_>>(), sizes, "{allowed:?}");
            assert_eq!(recut(&batch, &c), all);
        }
    }

    #[test]
    fn a_push_or_a_short_segment_ends_a_train() {
        let packets = [
            tcp(1, 0, &[1; 100], true),
            tcp(1, 100, &[1; 100], false),
            tcp(1, 200, &[1; 60], false),
            tcp(1, 260, &[1; 60], false),
        ];
        assert_eq!(sizes(&packets), [1, 2, 1]);
    }

    #[test]
    fn a_longer_segment_does_not_join() {
        assert_eq!(sizes(&[tcp(1, 0, &[1; 100], false), tcp(1, 100, &[1; 101], false)]), [1, 1]);
    }

    /// RFC: T3 (RFC 8085)
    #[test]
    fn nothing_overtakes_within_a_flow() {
        // Data, a bare acknowledgement, data that would continue the first: three in their order.
        let packets = [tcp(1, 0, &[1; 100], false), tcp(1, 100, &[], false), tcp(1, 100, &[1; 100], false)];
        assert_eq!(sizes(&packets), [1, 1, 1]);
    }

    /// RFC: T3 (RFC 8085)
    #[test]
    fn nothing_overtakes_what_travels_alone() {
        let plain = |mark| udp(1, &[mark; 40]);
        for next in [0, 43, 44, 51, 60, 135] {
            let packets = [plain(1), hidden(next, 2), hidden(next, 3), plain(4), plain(5)];
            assert_eq!(recut(&batch(&packets), &coalesce(&batch(&packets))), packets, "behind header {next}");
        }
        let packets = [plain(1), plain(2), plain(3), udp(7, &[4; 40])];
        let mixed = batch_of(&packets, |n| if n == 1 { SUPER } else { Offload::default() });
        assert_eq!(recut(&mixed, &coalesce(&mixed)), packets, "a super-packet in between");
    }

    /// Fragments between other hosts, or errors between the same, are no reason to merge less.
    #[test]
    fn only_what_may_be_of_a_flow_ends_its_train() {
        let mut elsewhere = hidden(44, 1);
        elsewhere[23] = 9;
        let mut error = udp(1, &[0; 40]);
        error[6] = ICMPV6;
        assert_eq!(sizes(&[udp(1, &[1; 40]), elsewhere, error, udp(1, &[2; 40])]), [2, 1, 1]);
    }

    #[test]
    fn datagrams_merge_by_length_and_only_with_checksums() {
        assert_eq!(sizes(&[udp(1, &[1; 50]), udp(1, &[2; 50]), udp(1, &[3; 20]), udp(1, &[3; 20])]), [3, 1]);
        let mut none = udp(1, &[2; 50]);
        none[46..48].fill(0);
        assert_eq!(sizes(&[udp(1, &[1; 50]), none]), [1, 1]);
        assert_eq!(sizes(&[udp(1, &[1; 50]), udp(9, &[1; 50])]), [1, 1]);
    }

    #[test]
    fn trains_stay_below_64_kib_and_128_packets() {
        let long: Vec<_> = (0..60).map(|n| tcp(1, n * 1400, &[0; 1400], false)).collect();
        assert_eq!(sizes(&long), [46, 14]);
        let short: Vec<_> = (0..200).map(|n| tcp(1, n, &[0; 1], false)).collect();
        assert_eq!(sizes(&short), [128, 72]);
    }

    proptest! {
        /// RFC: T2, T3 (RFC 8085)
        #[test]
        fn every_flow_comes_out_as_it_went_in(
            steps in proptest::collection::vec((0u16..5, 1usize..4, any::<bool>(), any::<bool>(), 0u8..12), 1..80)
        ) {
            let mut sequence = [0u32; 5];
            let mut packets = Vec::new();
            for (flow, size, push, is_udp, odd) in steps {
                let payload = vec![flow as u8; size * 40];
                let mut p = if is_udp { udp(flow, &payload) } else { tcp(flow, sequence[flow as usize], &payload, push) };
                if odd == 0 { p[45] ^= 1; }
                if odd == 1 { p[53] ^= 1; }
                if !is_udp { sequence[flow as usize] += payload.len() as u32; }
                packets.push(p);
            }
            let batch = batch(&packets);
            let out = recut(&batch, &coalesce(&batch));
            let of = |all: &[Vec<u8>], flow: u16, kind: u8| -> Vec<Vec<u8>> {
                all.iter().filter(|p| p[6] == kind && p[40..42] == flow.to_be_bytes()).cloned().collect()
            };
            for flow in 0..5 {
                for kind in [TCP, UDP] {
                    prop_assert_eq!(of(&out, flow, kind), of(&packets, flow, kind));
                }
            }
        }

        /// RFC: T3 (RFC 8085)
        #[test]
        fn fragments_and_super_packets_keep_their_places(
            steps in proptest::collection::vec((0u16..3, any::<bool>(), 0u8..8), 1..60)
        ) {
            let mut sequence = [0u32; 3];
            let (mut packets, mut merged) = (Vec::new(), Vec::new());
            for (n, (flow, is_udp, odd)) in steps.into_iter().enumerate() {
                let payload = [n as u8; 40];
                let at = sequence[flow as usize];
                let p = match (odd, is_udp) {
                    (0, _) => hidden(44, n as u8),
                    (1, _) => hidden(60, n as u8),
                    (_, true) => udp(flow, &payload),
                    (_, false) => tcp(flow, at, &payload, false),
                };
                sequence[flow as usize] += if p[6] == TCP { 40 } else { 0 };
                merged.push(odd == 2);
                packets.push(p);
            }
            let batch = batch_of(&packets, |n| if merged[n] { SUPER } else { Offload::default() });
            let out = recut(&batch, &coalesce(&batch));
            // A flow, with all that may be of it.
            let of = |all: &[Vec<u8>], flow: u16, kind: u8| -> Vec<Vec<u8>> {
                let is_its = |p: &&Vec<u8>| p[6] == kind && p[40..42] == flow.to_be_bytes();
                all.iter().filter(|p| is_its(p) || ![TCP, UDP].contains(&p[6])).cloned().collect()
            };
            for flow in 0..3 {
                for kind in [TCP, UDP] {
                    prop_assert_eq!(of(&out, flow, kind), of(&packets, flow, kind));
                }
            }
        }

        #[test]
        fn nonsense_never_panics(packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..120), 1..20)) {
            let packets: Vec<_> = packets.into_iter().map(|mut p| { if p.len() > 6 { p[0] = 0x60; p[6] = if p[5] & 1 == 0 { TCP } else { UDP }; } p }).collect();
            let batch = batch(&packets);
            recut(&batch, &coalesce(&batch));
        }
    }
}
