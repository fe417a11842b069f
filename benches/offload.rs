//! What super-packets cost a segment: cutting them for the wire, putting packets together for the kernel.
//!
//! `gso` cuts a TCP super-packet of 45 segments: the headers alone; as messages to a UDP socket (headers and slices of
//! payload, all but the system call); and with the payload copied, which only the in-memory twin does. `gro` looks at
//! packets of 1400 octets, checksums included.
#![expect(clippy::unwrap_used, reason = "a bench that cannot go on should stop")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput};
use shared::{MERGED, SEGMENT, SEGMENTS, host, path, tcp, train};
use sixway_dataplane::counters::counters;
use sixway_dataplane::io::outbox::Outbox;
use sixway_dataplane::offload::coalesce::Coalescer;
use sixway_dataplane::offload::segment::{Layout, cut};
use sixway_dataplane::packet::batch::{Arrival, Batch};

#[allow(dead_code, reason = "each bench uses its part")]
mod shared;

fn main() {
    let mut criterion = shared::criterion();
    cutting(&mut criterion);
    merging(&mut criterion);
    criterion.final_summary();
}

fn cutting(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("gso");
    group.throughput(Throughput::Elements(SEGMENTS as u64));
    let packet = train(host(1));
    let layout = || Layout::of(black_box(&packet), &MERGED, shared::MTU).unwrap();
    let mut headers = vec![0; SEGMENTS * layout().headers];
    group.bench_function("headers", |b| b.iter(|| cut(&packet, &layout(), black_box(&mut headers))));

    let mut outbox = Outbox::new();
    outbox.begin(true, std::time::Duration::ZERO);
    let (_reader, mut tallies) = counters(1, 1);
    group.bench_function("iovecs", |b| {
        b.iter(|| {
            outbox.push_cut(&path(1), 0, 0, &packet, &layout());
            outbox.discard(&packet, &mut tallies[0]);
        });
    });

    let mut copies = Vec::with_capacity(2 * packet.len());
    group.bench_function("copies", |b| {
        b.iter(|| {
            let layout = layout();
            copies.clear();
            cut(&packet, &layout, &mut headers);
            for (n, header) in headers.chunks_exact(layout.headers).enumerate() {
                copies.extend_from_slice(header);
                copies.extend_from_slice(&packet[layout.payload(n)]);
            }
            black_box(&copies);
        });
    });
}

/// As many packets as one super-packet holds, taking turns between `flows` flows.
fn packets(flows: u32) -> Batch {
    let n = SEGMENTS as u32;
    shared::batch((0..n).map(|n| {
        let sequence = n / flows * SEGMENT as u32;
        (Arrival::Tun, tcp(host(1), 4000 + (n % flows) as u16, sequence, SEGMENT))
    }))
}

fn merging(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("gro");
    group.throughput(Throughput::Elements(SEGMENTS as u64));
    for (name, flows) in [("one_flow", 1), ("16_flows", 16), ("all_distinct", SEGMENTS as u32)] {
        let batch = packets(flows);
        let mut coalescer = Coalescer::new(SEGMENTS, (true, true), 42);
        group.bench_function(BenchmarkId::from_parameter(name), |b| {
            b.iter(|| {
                coalescer.begin(SEGMENTS);
                (0..SEGMENTS).for_each(|n| coalescer.add(&batch, n));
                black_box(coalescer.trains().len())
            });
        });
    }
}
