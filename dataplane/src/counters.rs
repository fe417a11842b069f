//! What was counted: one writer each, read by anybody, never pushed.
//!
//! Every worker has its own [`Tally`]; a count is a relaxed load and store, no locked instruction. Readers sum.
//! Per tunnel: packets and octets each way, when its peer was last heard, and drops by reason (sparse: most tunnels
//! never drop anything). Knows reasons and numbers of tunnels, nothing of packets.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;

use crate::knobs::{self, Knob};
use crate::packet::batch::Arrival;
use crate::samples::{Board, Course, Pen, Sample};
use crate::update::TunnelId;
use crate::verdict::Reason;

const CHUNK: usize = 4096;
const DROP_SLOTS: usize = 1 << 16;
const DROP_PROBES: usize = 16;
/// Tunnels remembered whose packets were too long; more are found by looking at all of them in turn.
const TOO_LONG: usize = 256;

macro_rules! events {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal,)+) => {
        /// What happened besides drops.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Event { $($(#[doc = $doc])+ $name,)+ }

        impl Event {
            /// All of them, in order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The name in status output and metrics.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }
        }
    };
}

events! {
    /// ICMPv6 errors sent.
    IcmpSent = "icmp_sent",
    /// ICMPv6 errors not sent because of the rate limit (RFC 4443 section 2.4(f)).
    IcmpLimited = "icmp_limited",
    /// Congestion marks outside that their inner packets cannot have got on the way (RFC 6040 section 4.2, marked !!!).
    EcnOdd = "ecn_odd",
    /// Packets handed to the control plane.
    Punted = "punted",
    /// Packets sent for the control plane.
    Injected = "injected",
    /// Packets that the control plane wanted sent and could not be.
    InjectFailed = "inject_failed",
    /// Reads of the TUN device.
    TunReads = "tun_reads",
    /// Writes to the TUN device.
    TunWrites = "tun_writes",
    /// Super-packets taken from or given to the TUN device.
    TunMerged = "tun_merged",
    /// Buffers received from sockets.
    WireReads = "wire_reads",
    /// Messages handed to sockets.
    WireWrites = "wire_writes",
    /// Super-packets received from or handed to sockets.
    WireMerged = "wire_merged",
    /// Segment trains that the kernel refused and that were sent packet by packet.
    WireSplit = "wire_split",
    /// Packets with DF longer than our own interface takes, which were sent in fragments instead (RFC 4213 section 3.2.2).
    WireFragmented = "wire_fragmented",
    /// Super-packets that the TUN device refused and that were written packet by packet.
    TunSplit = "tun_split",
    /// Times an offload was left alone for a while because it had failed.
    OffloadPaused = "offload_paused",
    /// Questions to the kernel's routing: which way a super-packet of protocol 41 goes.
    RoutesAsked = "routes_asked",
    /// Super-packets that were cut because routing could not be asked so often.
    RoutesPutOff = "routes_put_off",
    /// Times a worker went to sleep.
    Sleeps = "sleeps",
    /// Packets that the kernel lost before the socket was read (SO_RXQ_OVFL).
    KernelDrops = "kernel_drops",
    /// Drops whose tunnel could not be noted because the note table is full.
    Unattributed = "drops_unattributed",
    /// Copies of a watched tunnel's packets that found too little room on the way up.
    WatchMissed = "watch_missed",
}

/// Counts of one tunnel by one worker.
#[derive(Debug, Default)]
struct TunnelCounts {
    rx_packets: AtomicU64,
    rx_bytes: AtomicU64,
    tx_packets: AtomicU64,
    tx_bytes: AtomicU64,
}

#[derive(Debug)]
struct Chunk {
    counts: Box<[TunnelCounts]>,
    last_seen: Box<[AtomicU32]>,
}

#[derive(Debug)]
struct DropNote {
    key: AtomicU64,
    count: AtomicU64,
}

/// The counts of one worker.
#[derive(Debug)]
struct Counts {
    drops: CachePadded<[AtomicU64; Reason::COUNT]>,
    events: CachePadded<[AtomicU64; Event::ALL.len()]>,
    /// Super-packets that each offload has moved.
    trains: CachePadded<[AtomicU64; knobs::COUNT]>,
    /// Until when each offload rests here, in seconds since the start.
    pauses: [AtomicU32; knobs::COUNT],
    tunnels: Box<[OnceLock<Chunk>]>,
    notes: Box<[DropNote]>,
    samples: Arc<Board>,
    /// Tunnels of whose packets one was too long for our own interface.
    too_long: ArrayQueue<TunnelId>,
}

impl Counts {
    fn new(capacity: u32) -> Self {
        let note = |_| DropNote { key: AtomicU64::new(0), count: AtomicU64::new(0) };
        Self {
            drops: CachePadded::new(std::array::from_fn(|_| AtomicU64::new(0))),
            events: CachePadded::new(std::array::from_fn(|_| AtomicU64::new(0))),
            trains: CachePadded::new(std::array::from_fn(|_| AtomicU64::new(0))),
            pauses: std::array::from_fn(|_| AtomicU32::new(0)),
            tunnels: (0..(capacity as usize).div_ceil(CHUNK)).map(|_| OnceLock::new()).collect(),
            notes: (0..DROP_SLOTS).map(note).collect(),
            samples: Arc::new(Board::new()),
            too_long: ArrayQueue::new(TOO_LONG),
        }
    }

    fn chunk(&self, id: TunnelId) -> Option<(&Chunk, usize)> {
        Some((self.tunnels.get(id.0 as usize / CHUNK)?.get()?, id.0 as usize % CHUNK))
    }

    fn note(&self, key: u64) -> impl Iterator<Item = &DropNote> {
        let start = (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize;
        (0..DROP_PROBES).map(move |n| &self.notes[(start + n) % DROP_SLOTS])
    }
}

fn note_key(id: TunnelId, reason: Reason) -> u64 {
    (u64::from(id.0) + 1) << 8 | reason as u64
}

/// Only the owning worker writes, so a load and a store do.
fn bump(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
}

/// Makes the counters of `workers` workers for up to `capacity` tunnels.
pub fn counters(workers: usize, capacity: u32) -> (CounterReader, Vec<Tally>) {
    let all: Vec<_> = (0..workers).map(|_| Arc::new(Counts::new(capacity))).collect();
    let tallies = all.iter().map(|c| Tally(c.clone(), Pen::new(c.samples.clone()))).collect();
    (CounterReader(all), tallies)
}

/// One worker's pen.
#[derive(Debug)]
pub struct Tally(Arc<Counts>, Pen);

impl Tally {
    /// Counts `packets` dropped for `reason`, on behalf of a tunnel if one is known.
    pub fn drop(&mut self, reason: Reason, tunnel: Option<TunnelId>, packets: u64) {
        bump(&self.0.drops[reason as usize], packets);
        if let Some(id) = tunnel {
            self.note_drop(note_key(id, reason), packets);
        }
    }

    fn note_drop(&mut self, key: u64, packets: u64) {
        for note in self.0.note(key) {
            match note.key.load(Ordering::Relaxed) {
                0 => {
                    note.count.store(packets, Ordering::Relaxed);
                    note.key.store(key, Ordering::Release);
                    return;
                }
                held if held == key => return bump(&note.count, packets),
                _ => {}
            }
        }
        bump(&self.0.events[Event::Unattributed as usize], packets);
    }

    /// Keeps what was dropped for people to look at, unless a packet of this reason was kept just now.
    pub fn keep(&mut self, reason: Reason, tunnel: Option<TunnelId>, from: Option<Arrival>, bytes: &[u8]) {
        self.1.keep(reason, tunnel, from.into(), &[bytes]);
    }

    /// The same of a packet that lies in parts.
    pub fn keep_parts(&mut self, reason: Reason, tunnel: Option<TunnelId>, course: Course, parts: &[&[u8]]) {
        self.1.keep(reason, tunnel, course, parts);
    }

    /// From now on it is this late for [`Self::keep`], in milliseconds since the start.
    pub fn set_time(&mut self, now_ms: u64) {
        self.1.set_time(now_ms);
    }

    /// Notes a tunnel of whose packets with DF one was longer than our own interface takes: whoever knows paths should look
    /// at it.
    pub fn too_long(&mut self, tunnel: TunnelId) {
        // Full: others wait to be looked at, and this one's next packet says it again.
        let _noted = self.0.too_long.push(tunnel);
    }

    /// Counts an event.
    pub fn event(&mut self, event: Event, times: u64) {
        bump(&self.0.events[event as usize], times);
    }

    /// Counts super-packets that an offload has moved.
    pub fn trains(&mut self, knob: Knob, how_many: u64) {
        bump(&self.0.trains[knob as usize], how_many);
    }

    /// Notes that an offload rests until then, counted from the start.
    pub fn pause(&mut self, knob: Knob, until: Duration) {
        self.event(Event::OffloadPaused, 1);
        self.0.pauses[knob as usize].store(until.as_secs() as u32, Ordering::Relaxed);
    }

    /// Loads the counts of these tunnels, so that they are near when they are wanted: one after the other, each would be
    /// waited for.
    pub fn fetch(&self, tunnels: impl Iterator<Item = TunnelId>) {
        let first = |id| {
            self.0.chunk(id).map_or(0, |(chunk, at)| chunk.counts[at].rx_packets.load(Ordering::Relaxed))
        };
        // The optimiser must not find out that nobody wants them.
        std::hint::black_box(tunnels.fold(0, |seen, id| seen ^ first(id)));
    }

    /// Counts what came out of a tunnel; `now` is in seconds since the start.
    pub fn received(&mut self, id: TunnelId, packets: u64, bytes: u64, now: u32) {
        let Some((chunk, at)) = self.0.chunk(id) else { return };
        bump(&chunk.counts[at].rx_packets, packets);
        bump(&chunk.counts[at].rx_bytes, bytes);
        if chunk.last_seen[at].load(Ordering::Relaxed) != now + 1 {
            chunk.last_seen[at].store(now + 1, Ordering::Relaxed);
        }
    }

    /// Counts what went into a tunnel.
    pub fn sent(&mut self, id: TunnelId, packets: u64, bytes: u64) {
        let Some((chunk, at)) = self.0.chunk(id) else { return };
        bump(&chunk.counts[at].tx_packets, packets);
        bump(&chunk.counts[at].tx_bytes, bytes);
    }
}

/// The sums of one tunnel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TunnelTotals {
    /// Inner packets that came out of it.
    pub rx_packets: u64,
    /// Their octets.
    pub rx_bytes: u64,
    /// Inner packets that went into it.
    pub tx_packets: u64,
    /// Their octets.
    pub tx_bytes: u64,
    /// When its peer was last heard, in seconds since the start.
    pub last_seen: Option<u32>,
    /// What was dropped on its behalf.
    pub drops: Vec<(Reason, u64)>,
}

/// Reads the counters of all workers.
#[derive(Clone, Debug)]
pub struct CounterReader(Vec<Arc<Counts>>);

impl CounterReader {
    /// How many workers count.
    pub fn workers(&self) -> usize {
        self.0.len()
    }

    /// Makes room for a tunnel's counts; the table's writer calls this before it publishes the tunnel.
    pub fn make_room(&self, id: TunnelId) {
        for worker in &self.0 {
            if let Some(chunk) = worker.tunnels.get(id.0 as usize / CHUNK) {
                chunk.get_or_init(|| Chunk {
                    counts: (0..CHUNK).map(|_| TunnelCounts::default()).collect(),
                    last_seen: (0..CHUNK).map(|_| AtomicU32::new(0)).collect(),
                });
            }
        }
    }

    /// All drops of one reason.
    pub fn dropped(&self, reason: Reason) -> u64 {
        self.0.iter().map(|w| w.drops[reason as usize].load(Ordering::Relaxed)).sum()
    }

    /// The tunnels of whose packets one was too long for our own interface since this was asked last.
    pub fn take_too_long(&self) -> Vec<TunnelId> {
        let all = self.0.iter().flat_map(|w| std::iter::from_fn(|| w.too_long.pop()).take(TOO_LONG));
        let mut all: Vec<_> = all.collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The reasons that have dropped anything.
    pub fn drops(&self) -> Vec<(Reason, u64)> {
        let all = Reason::ALL.iter().map(|r| (*r, self.dropped(*r)));
        all.filter(|(_, n)| *n > 0).collect()
    }

    /// The last packet that this reason has dropped, as far as one was kept.
    pub fn sample(&self, reason: Reason) -> Option<Sample> {
        self.0.iter().filter_map(|w| w.samples.read(reason)).max_by_key(|sample| sample.at)
    }

    /// How often something happened.
    pub fn happened(&self, event: Event) -> u64 {
        self.0.iter().map(|w| w.events[event as usize].load(Ordering::Relaxed)).sum()
    }

    /// How many super-packets an offload has moved.
    pub fn trains(&self, knob: Knob) -> u64 {
        self.0.iter().map(|w| w.trains[knob as usize].load(Ordering::Relaxed)).sum()
    }

    /// How many more seconds an offload rests, somewhere, at second `now` since the start; `None`: nowhere.
    pub fn paused(&self, knob: Knob, now: u32) -> Option<u32> {
        let until = self.0.iter().map(|w| w.pauses[knob as usize].load(Ordering::Relaxed)).max();
        until?.checked_sub(now).filter(|left| *left > 0)
    }

    /// The sums of one tunnel, over all tunnels that have had its number.
    pub fn tunnel(&self, id: TunnelId) -> TunnelTotals {
        let mut sum = TunnelTotals::default();
        for (chunk, at) in self.0.iter().filter_map(|w| w.chunk(id)) {
            let counts = &chunk.counts[at];
            sum.rx_packets += counts.rx_packets.load(Ordering::Relaxed);
            sum.rx_bytes += counts.rx_bytes.load(Ordering::Relaxed);
            sum.tx_packets += counts.tx_packets.load(Ordering::Relaxed);
            sum.tx_bytes += counts.tx_bytes.load(Ordering::Relaxed);
            sum.last_seen = sum.last_seen.max(chunk.last_seen[at].load(Ordering::Relaxed).checked_sub(1));
        }
        sum.drops =
            Reason::ALL.iter().map(|r| (*r, self.tunnel_drops(id, *r))).filter(|(_, n)| *n > 0).collect();
        sum
    }

    /// When a tunnel's peer was last heard, in seconds since the start, over all tunnels that have had its number.
    pub fn last_seen(&self, id: TunnelId) -> Option<u32> {
        let seen = self.0.iter().filter_map(|w| w.chunk(id));
        seen.filter_map(|(chunk, at)| chunk.last_seen[at].load(Ordering::Relaxed).checked_sub(1)).max()
    }

    fn tunnel_drops(&self, id: TunnelId, reason: Reason) -> u64 {
        let key = note_key(id, reason);
        let of = |w: &Arc<Counts>| {
            let note = w.note(key).find(|n| n.key.load(Ordering::Acquire) == key);
            note.map_or(0, |n| n.count.load(Ordering::Relaxed))
        };
        self.0.iter().map(of).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_add_up_and_tunnels_stay_apart() {
        let (reader, mut tallies) = counters(2, 10_000);
        reader.make_room(TunnelId(5000));
        tallies[0].received(TunnelId(5000), 2, 100, 7);
        tallies[1].received(TunnelId(5000), 1, 50, 9);
        tallies[1].sent(TunnelId(5000), 3, 60);
        tallies[0].drop(Reason::TooBig, Some(TunnelId(5000)), 4);
        tallies[1].drop(Reason::TooBig, Some(TunnelId(5001)), 1);
        let got = reader.tunnel(TunnelId(5000));
        assert_eq!((got.rx_packets, got.rx_bytes, got.tx_packets, got.tx_bytes), (3, 150, 3, 60));
        assert_eq!(reader.last_seen(TunnelId(5000)), Some(9));
        assert_eq!((got.last_seen, got.drops), (Some(9), vec![(Reason::TooBig, 4)]));
        assert_eq!(reader.drops(), vec![(Reason::TooBig, 5)]);
        assert_eq!(reader.tunnel(TunnelId(1)).last_seen, None);
        assert_eq!(reader.tunnel(TunnelId(99_999_999)), TunnelTotals::default());
    }

    #[test]
    fn trains_are_counted_for_each_offload() {
        let (reader, mut tallies) = counters(2, 1);
        tallies[0].trains(Knob::UdpGro, 2);
        tallies[1].trains(Knob::UdpGro, 3);
        assert_eq!((reader.trains(Knob::UdpGro), reader.trains(Knob::UdpGso)), (5, 0));
    }

    #[test]
    fn an_offload_rests_while_any_worker_says_so() {
        let (reader, mut tallies) = counters(2, 1);
        assert_eq!(reader.paused(Knob::UdpGso, 0), None);
        tallies[0].pause(Knob::UdpGso, Duration::from_secs(70));
        tallies[1].pause(Knob::UdpGso, Duration::from_secs(65));
        assert_eq!((reader.paused(Knob::UdpGso, 10), reader.paused(Knob::UdpGso, 70)), (Some(60), None));
        assert_eq!((reader.paused(Knob::MergeTcp, 10), reader.happened(Event::OffloadPaused)), (None, 2));
    }

    #[test]
    fn tunnels_whose_packets_are_too_long_are_named_once() {
        let (reader, mut tallies) = counters(2, 10);
        for n in 0..1000 {
            tallies[n % 2].too_long(TunnelId(3));
        }
        assert_eq!((reader.take_too_long(), reader.take_too_long()), (vec![TunnelId(3)], vec![]));
    }

    #[test]
    fn more_notes_than_fit_are_counted_as_such() {
        let (reader, mut tallies) = counters(1, 1);
        for id in 0..200_000 {
            tallies[0].drop(Reason::TooBig, Some(TunnelId(id)), 1);
        }
        let noted: u64 = (0..200_000).map(|id| reader.tunnel_drops(TunnelId(id), Reason::TooBig)).sum();
        assert!(noted > 30_000);
        assert_eq!(noted + reader.happened(Event::Unattributed), 200_000);
    }
}
