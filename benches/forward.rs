//! What the forwarder costs a packet, without a kernel: judging alone, and the whole worker.
//!
//! Every packet goes to a random one of 1,000, 100,000 or a million tunnels, so lookups miss caches as they would.
//! `judge` is the forwarder alone. `pipeline` is the worker's whole turn over 64 packets of 100 octets (receive, judge,
//! send, count), between devices that hand over prepared packets and throw away what they get. `twin` is the in-memory
//! twin, which copies and allocates for each packet: for comparison between versions. A super-packet counts as the
//! packets that it is cut into.
#![expect(clippy::unwrap_used, reason = "a bench that cannot go on should stop")]

use std::net::{SocketAddrV4, UdpSocket};
use std::time::Duration;

use criterion::{BatchSize, BenchmarkGroup, BenchmarkId, Criterion, Throughput, measurement::WallTime};
use shared::{
    BATCH, Dice, MERGED, PORT, PREPARED, SEGMENTS, empty_tables, host, judge_singly, prepared, sender, train,
    tunnel, udp, world,
};
use sixway_dataplane::counters::{Tally, counters};
use sixway_dataplane::forward::judge;
use sixway_dataplane::io::outbox::Outbox;
use sixway_dataplane::io::{Destination, PacketIo, Side};
use sixway_dataplane::offload::segment::Layout;
use sixway_dataplane::packet::batch::{Arrival, Batch, Offload, Packet};
use sixway_dataplane::start::{InMemory, in_memory, in_memory_on};
use sixway_dataplane::table::tables;
use sixway_dataplane::update::Update;
use sixway_dataplane::verdict::{Judged, Verdict};

#[allow(dead_code, reason = "each bench uses its part")]
mod shared;

const SIZES: [u32; 3] = [1_000, 100_000, 1_000_000];
/// Octets of the packets that are judged, and of those that go through the twin.
const SHORT: usize = 100;
const LENGTH: usize = 1280;

fn main() {
    let mut criterion = shared::criterion();
    judging(&mut criterion);
    super_packets(&mut criterion);
    working(&mut criterion);
    twin(&mut criterion);
    criterion.final_summary();
}

fn from_wire(id: u32) -> (Arrival, Vec<u8>) {
    (Arrival::Wire(sender(id)), udp(host(id), world(), SHORT))
}

fn from_tun(id: u32) -> (Arrival, Vec<u8>) {
    (Arrival::Tun, udp(world(), host(id), SHORT))
}

// ---- judging alone ----

fn judging(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("judge");
    group.throughput(Throughput::Elements(BATCH as u64));
    for tunnels in SIZES {
        let (mut editor, mut reader) = empty_tables(tunnels);
        editor.apply(&(0..tunnels).map(tunnel).collect::<Vec<_>>()).unwrap();
        let mut bench = |name, mut batch: Batch, is_right: fn(Verdict) -> bool| {
            group.bench_function(BenchmarkId::new(name, tunnels), |b| {
                judge_singly(b, &mut reader, &mut batch, is_right);
            });
        };
        bench("decap", prepared(tunnels, from_wire), |v| matches!(v, Verdict::ToTun));
        bench("encap", prepared(tunnels, from_tun), |v| matches!(v, Verdict::ToWire(..)));
    }
}

/// One super-packet from the kernel: judged, cut, and laid out as messages to a UDP socket.
fn super_packets(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("judge");
    group.throughput(Throughput::Elements(SEGMENTS as u64));
    let (mut editor, mut readers) = tables(1000, 1, 42);
    editor.name_socket(InMemory::any(PORT), 0);
    editor.apply(&(0..1000).map(tunnel).collect::<Vec<_>>()).unwrap();
    let mut reader = readers.pop().unwrap();
    reader.online();
    let view = reader.view();
    let mut bytes = train(host(7));
    let (mut outbox, (_reader, mut tallies)) = (Outbox::new(), counters(1, 1000));
    outbox.begin(true, Duration::ZERO);
    group.bench_function("super_packet_to_iovecs", |b| {
        b.iter(|| {
            let mut packet = Packet { start: 0, len: bytes.len(), arrival: Arrival::Tun, offload: MERGED };
            let judged = judge(&view, &mut packet, &mut bytes);
            let Verdict::ToWire(path, tos) = judged.verdict else { panic!("{judged:?}") };
            let layout = Layout::of(&bytes, &packet.offload, path.mtu).unwrap();
            outbox.push_cut(&path, tos, 0, &bytes, &layout);
            outbox.discard(&bytes, &mut tallies[0]);
        });
    });
}

// ---- the worker between devices that cost nothing ----

/// Hands over prepared packets, one batch a turn from one side; counts and forgets what it is to send.
struct Replay {
    side: Side,
    prepared: Batch,
    next: usize,
    sent: usize,
}

impl PacketIo for Replay {
    fn receive(&mut self, side: Side, batch: &mut Batch, _tally: &mut Tally) -> bool {
        if side != self.side {
            return false;
        }
        let mut at = 0;
        for packet in &self.prepared.packets[self.next..self.next + BATCH] {
            batch.arena[at..at + packet.len].copy_from_slice(self.prepared.bytes(packet));
            batch.push(Packet { start: at, ..*packet });
            at += packet.len;
        }
        self.next = (self.next + BATCH) % PREPARED;
        false
    }

    fn transmit(&mut self, batch: &Batch, judged: &[Judged], _now: Duration, tally: &mut Tally) {
        for (packet, judged) in batch.packets.iter().zip(judged) {
            match judged.verdict {
                Verdict::ToWire(path, _) => tally.sent(path.tunnel, 1, packet.len as u64),
                Verdict::ToTun => {}
                Verdict::ToTunAndPunt(_) | Verdict::Punt(_) | Verdict::Drop(..) => continue,
            }
            self.sent += 1;
        }
    }

    fn emit(&mut self, _to: Destination, _packet: &[u8], _tally: &mut Tally) -> bool {
        false
    }

    fn open(&mut self, _number: u16, _at: SocketAddrV4, _socket: UdpSocket) {}

    fn close(&mut self, _number: u16) {}

    fn wait(&mut self, _most: Option<Duration>, _tally: &mut Tally) -> bool {
        false
    }
}

fn working(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pipeline");
    group.throughput(Throughput::Elements(BATCH as u64));
    for tunnels in SIZES {
        let replay = Replay { side: Side::Wire, prepared: Batch::new(0, 0), next: 0, sent: 0 };
        let mut lab = in_memory_on(replay, tunnels, 42).unwrap();
        lab.apply(&everything(tunnels)).unwrap();
        type Kind = (&'static str, Side, fn(u32) -> (Arrival, Vec<u8>));
        let kinds: [Kind; 2] = [("decap", Side::Wire, from_wire), ("encap", Side::Tun, from_tun)];
        for (name, side, packet) in kinds {
            lab.worker.io.side = side;
            lab.worker.io.prepared = prepared(tunnels, packet);
            group.bench_function(BenchmarkId::new(name, tunnels), |b| {
                b.iter(|| {
                    lab.worker.io.sent = 0;
                    lab.worker.turn();
                    assert_eq!(lab.worker.io.sent, BATCH);
                });
            });
        }
    }
}

fn everything(tunnels: u32) -> Vec<Update> {
    let listen = Update::Listen(InMemory::any(PORT));
    std::iter::once(listen).chain((0..tunnels).map(tunnel)).collect()
}

// ---- the worker on the in-memory twin ----

fn turn(lab: &mut InMemory) -> usize {
    while lab.worker.turn() {}
    let io = &mut lab.worker.io;
    let out = io.tun_out.len() + io.wire_out.len();
    io.tun_out.clear();
    io.wire_out.clear();
    out
}

type Group<'a> = BenchmarkGroup<'a, WallTime>;

/// Packets of one turn: as many as the worker has buffers.
const TURN: usize = 32;

/// Times one turn over what `feed` has queued; `packets` must come out.
fn bench(group: &mut Group<'_>, name: &str, tunnels: u32, packets: usize, feed: fn(&mut InMemory, u32)) {
    let mut lab = in_memory(tunnels, 42).unwrap();
    lab.apply(&everything(tunnels)).unwrap();
    let lab = std::cell::RefCell::new(lab);
    let mut dice = Dice(7);
    group.throughput(Throughput::Elements(packets as u64));
    group.bench_function(BenchmarkId::new(name, tunnels), |b| {
        let queue = || (0..TURN).for_each(|_| feed(&mut lab.borrow_mut(), dice.below(tunnels)));
        b.iter_batched(queue, |()| assert_eq!(turn(&mut lab.borrow_mut()), packets), BatchSize::PerIteration);
    });
}

fn twin(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("twin");
    for tunnels in SIZES[..2].iter().copied() {
        bench(&mut group, "decap", tunnels, TURN, |lab, id| {
            let packet = udp(host(id), world(), LENGTH);
            lab.worker.io.wire_in.push_back((sender(id), packet, Offload::default()));
        });
        bench(&mut group, "encap", tunnels, TURN, |lab, id| {
            lab.worker.io.tun_in.push_back((udp(world(), host(id), LENGTH), Offload::default()));
        });
        bench(&mut group, "encap_tcp_train", tunnels, TURN * SEGMENTS, |lab, id| {
            lab.worker.io.tun_in.push_back((train(host(id)), MERGED));
        });
    }
}
