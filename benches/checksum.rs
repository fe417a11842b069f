//! What the Internet checksum costs, by length, as this processor does it and as any could; and what recognises a checksum that hardware should have completed.
#![expect(clippy::unwrap_used, reason = "a bench that cannot go on should stop")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput};
use sixway_dataplane::offload::segment::{complete, detect_partial};
use sixway_dataplane::packet::checksum::Sum;

#[allow(dead_code, reason = "each bench uses its part")]
mod shared;

fn main() {
    let mut criterion = shared::criterion();
    summing(&mut criterion);
    partial(&mut criterion);
    criterion.final_summary();
}

fn summing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("checksum");
    let bytes: Vec<u8> = (0..64_000u32).map(|n| (n * 7) as u8).collect();
    for len in [64, 1440, 9000, 64_000] {
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(BenchmarkId::new("sum", len), |b| {
            b.iter(|| Sum::default().plus(black_box(&bytes[..len])).fold());
        });
        group.bench_function(BenchmarkId::new("portable", len), |b| {
            b.iter(|| Sum::default().plus_portable(black_box(&bytes[..len])).fold());
        });
    }
}

fn partial(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("checksum");
    let whole = shared::tcp(shared::host(1), 4000, 1, 1340);
    group.bench_function("detect_partial", |b| b.iter(|| detect_partial(black_box(&whole))));
    let mut packet = whole.clone();
    group.bench_function("complete/1400", |b| {
        b.iter(|| complete(black_box(&mut packet), 40, 16).unwrap());
    });
}
