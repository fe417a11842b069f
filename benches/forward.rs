//! What the forwarder costs a packet, without a kernel: judging alone, and the whole worker on the in-memory twin.
//!
//! Every packet goes to a random tunnel of 1,000 or 100,000, in batches of 32, so lookups miss caches as they would.
//! The twin copies and allocates for each packet: its figures are for comparison between versions, those of `judge` are
//! the forwarder's own. A super-packet counts as the packets that it is cut into.
#![expect(clippy::unwrap_used, reason = "a bench that cannot go on should stop")]

use std::hint::black_box;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::time::Duration;

use criterion::{BatchSize, BenchmarkGroup, BenchmarkId, Criterion, Throughput, measurement::WallTime};
use etherparse::PacketBuilder;
use sixway_dataplane::forward::judge;
use sixway_dataplane::packet::batch::{Arrival, Batch, Merged, Offload, Packet, Sender};
use sixway_dataplane::start::{InMemory, in_memory};
use sixway_dataplane::table::slab::Encap;
use sixway_dataplane::table::tables;
use sixway_dataplane::update::{Ipv6Prefix, Outer, Tunnel, TunnelId, UdpLocal, UdpRemote, Update};
use sixway_dataplane::verdict::Verdict;

const SIZES: [u32; 2] = [1_000, 100_000];
const BATCH: usize = 32;
const PORT: u16 = 3653;
const OURS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const MTU: u16 = 1400;
/// Octets of a single packet, headers included.
const LENGTH: usize = 1280;
/// Payload octets of each segment of a super-packet, and how many segments it has.
const SEGMENT: usize = 1340;
const SEGMENTS: usize = 45;
/// Packets that are prepared for judging: as many as lie in one batch's arena, many times what a cache holds.
const PREPARED: usize = 16_384;
const STRIDE: usize = 128;

fn main() {
    let config = Criterion::default().sample_size(20);
    let config = config.warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(2));
    let mut criterion = config.configure_from_args();
    judging(&mut criterion);
    working(&mut criterion);
    criterion.final_summary();
}

/// xorshift: the same packets every time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as u32 % n
    }
}

// ---- tunnels and packets ----

fn host(id: u32) -> Ipv6Addr {
    Ipv6Addr::from((0x2001_0db8 << 96) | u128::from(id) << 64 | 9)
}

fn peer(id: u32) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::from(0x0a00_0000 + id / 4), 4000 + (id % 4) as u16)
}

fn sender(id: u32) -> Sender {
    Sender { encap: Encap::Udp, remote: peer(id), local: SocketAddrV4::new(OURS, PORT), tos: 0 }
}

fn tunnel(id: u32) -> Update {
    let local = UdpLocal { addr: Some(OURS), port: PORT };
    let outer = Outer::Udp { local, remote: UdpRemote::Fixed(peer(id)) };
    let prefixes = vec![Ipv6Prefix::new(host(id), 64).unwrap()];
    Update::Upsert(Tunnel { id: TunnelId(id), outer, prefixes, mtu: MTU })
}

fn world() -> Ipv6Addr {
    Ipv6Addr::from(0x3fff << 112 | 1)
}

fn udp(source: Ipv6Addr, destination: Ipv6Addr, len: usize) -> Vec<u8> {
    let mut out = Vec::new();
    let b = PacketBuilder::ipv6(source.octets(), destination.octets(), 64).udp(4000, 5000);
    b.write(&mut out, &vec![7; len - 48]).unwrap();
    out
}

fn train(destination: Ipv6Addr) -> Vec<u8> {
    let mut out = Vec::new();
    let b = PacketBuilder::ipv6(world().octets(), destination.octets(), 64).tcp(4000, 5000, 1, 1000).ack(1);
    b.write(&mut out, &vec![7; SEGMENT * SEGMENTS]).unwrap();
    out
}

const MERGED: Offload = Offload { merged: Some((Merged::Tcp, SEGMENT as u16)), partial: Some((40, 16)) };

// ---- judging alone ----

fn prepared(tunnels: u32, packet: impl Fn(u32) -> (Arrival, Vec<u8>)) -> Batch {
    let mut batch = Batch::new(BATCH, PREPARED / BATCH);
    let mut dice = Dice(7);
    for n in 0..PREPARED {
        let (arrival, bytes) = packet(dice.below(tunnels));
        let start = n * STRIDE;
        batch.arena[start..start + bytes.len()].copy_from_slice(&bytes);
        assert!(batch.push(Packet { start, len: bytes.len(), arrival, offload: Offload::default() }));
    }
    batch
}

fn judging(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("judge");
    group.throughput(Throughput::Elements(BATCH as u64));
    for tunnels in SIZES {
        let (mut editor, mut readers) = tables(tunnels, 1, 42);
        editor.name_socket(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT), 0);
        editor.apply(&(0..tunnels).map(tunnel).collect::<Vec<_>>()).unwrap();
        let mut reader = readers.pop().unwrap();
        reader.online();
        let mut bench = |name, mut batch: Batch, is_right: fn(Verdict) -> bool| {
            let mut next = 0;
            group.bench_function(BenchmarkId::new(name, tunnels), |b| {
                b.iter(|| {
                    let view = reader.view();
                    let arena = &mut batch.arena;
                    for packet in &mut batch.packets[next..next + BATCH] {
                        let judged = judge(&view, packet, &mut arena[packet.range()]);
                        assert!(is_right(black_box(judged).verdict));
                    }
                    next = (next + BATCH) % PREPARED;
                    reader.quiescent();
                });
            });
        };
        let decap = prepared(tunnels, |id| (Arrival::Wire(sender(id)), udp(host(id), world(), 100)));
        bench("decap", decap, |v| matches!(v, Verdict::ToTun));
        let encap = prepared(tunnels, |id| (Arrival::Tun, udp(world(), host(id), 100)));
        bench("encap", encap, |v| matches!(v, Verdict::ToWire(..)));
    }
}

// ---- the whole worker ----

fn lab(tunnels: u32) -> InMemory {
    let mut lab = in_memory(tunnels, 42).unwrap();
    let listen = Update::Listen(InMemory::any(PORT));
    let batch: Vec<_> = std::iter::once(listen).chain((0..tunnels).map(tunnel)).collect();
    lab.apply(&batch).unwrap();
    lab
}

fn turn(lab: &mut InMemory) -> usize {
    while lab.worker.turn() {}
    let io = &mut lab.worker.io;
    let out = io.tun_out.len() + io.wire_out.len();
    io.tun_out.clear();
    io.wire_out.clear();
    out
}

type Group<'a> = BenchmarkGroup<'a, WallTime>;

/// Times one turn over what `feed` has queued; `packets` must come out.
fn bench(group: &mut Group<'_>, name: &str, tunnels: u32, packets: usize, feed: fn(&mut InMemory, u32)) {
    let lab = std::cell::RefCell::new(lab(tunnels));
    let mut dice = Dice(7);
    group.throughput(Throughput::Elements(packets as u64));
    group.bench_function(BenchmarkId::new(name, tunnels), |b| {
        let queue = || (0..BATCH).for_each(|_| feed(&mut lab.borrow_mut(), dice.below(tunnels)));
        b.iter_batched(queue, |()| assert_eq!(turn(&mut lab.borrow_mut()), packets), BatchSize::PerIteration);
    });
}

fn working(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("worker");
    for tunnels in SIZES {
        bench(&mut group, "decap", tunnels, BATCH, |lab, id| {
            let packet = udp(host(id), world(), LENGTH);
            lab.worker.io.wire_in.push_back((sender(id), packet, Offload::default()));
        });
        bench(&mut group, "encap", tunnels, BATCH, |lab, id| {
            lab.worker.io.tun_in.push_back((udp(world(), host(id), LENGTH), Offload::default()));
        });
        bench(&mut group, "encap_tcp_train", tunnels, BATCH * SEGMENTS, |lab, id| {
            lab.worker.io.tun_in.push_back((train(host(id)), MERGED));
        });
    }
}
