//! What is rare, and what is counted: a packet's way up to the control plane, an ICMPv6 error, a tunnel's counters.
#![expect(clippy::unwrap_used, reason = "a bench that cannot go on should stop")]

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use shared::{Dice, host, udp, world};
use sixway_dataplane::counters::counters;
use sixway_dataplane::packet::batch::Arrival;
use sixway_dataplane::packet::icmp::{IcmpError, LARGEST, build};
use sixway_dataplane::punt;
use sixway_dataplane::update::TunnelId;
use sixway_dataplane::verdict::{PuntClass, Verdict};

#[allow(dead_code, reason = "each bench uses its part")]
mod shared;

const TUNNELS: u32 = 1_000_000;
const BATCH: usize = 64;

fn main() {
    let mut criterion = shared::criterion();
    punting(&mut criterion);
    errors(&mut criterion);
    counting(&mut criterion);
    criterion.final_summary();
}

fn punting(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("punt");
    let (sender, mut reader) = punt::queue().unwrap();
    let packet = udp(host(1), world(), 100);
    let arrival = Arrival::Wire(shared::sender(1));
    let verdict = Verdict::Punt(PuntClass::Link);
    group.bench_function("push_and_pop", |b| {
        b.iter(|| {
            assert!(sender.send(PuntClass::Link, Some(TunnelId(1)), arrival, verdict, black_box(&packet)));
            black_box(reader.take().unwrap());
        });
    });
}

fn errors(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("icmp");
    let packet = udp(host(1), world(), 1500);
    let mut out = [0; LARGEST];
    group.bench_function("packet_too_big", |b| {
        b.iter(|| build(IcmpError::PacketTooBig(1400), world(), black_box(&packet), &mut out).unwrap());
    });
}

/// Packets of random tunnels, as a worker counts what came out of them; nothing is fetched ahead.
fn counting(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("counters");
    group.throughput(Throughput::Elements(BATCH as u64));
    let (reader, mut tallies) = counters(1, TUNNELS);
    (0..TUNNELS).for_each(|id| reader.make_room(TunnelId(id)));
    let mut dice = Dice(7);
    group.bench_function("64_of_1000000", |b| {
        b.iter(|| {
            for _ in 0..BATCH {
                tallies[0].received(TunnelId(dice.below(TUNNELS)), 1, 100, 7);
            }
        });
    });
}
