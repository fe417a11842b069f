//! What the tables cost: a lookup alone and in batches, judging at a million tunnels, and changes while readers read.
//!
//! "serial": each address depends on what the lookup before it found, so that misses cannot overlap. Tunnels are looked
//! up and changed in random order. Changes are timed for each update, in batches of 1 and of 1000, with the table full.
#![expect(clippy::unwrap_used, reason = "a bench that cannot go on should stop")]

use std::hint::black_box;
use std::net::Ipv6Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use shared::{
    BATCH, Dice, empty_tables, host as dense, judge_singly, prepared, sender, tunnel_for, udp, world,
};
use sixway_dataplane::counters::counters;
use sixway_dataplane::forward::judge_all;
use sixway_dataplane::packet::batch::{Arrival, Batch, Packet};
use sixway_dataplane::table::Reader;
use sixway_dataplane::table::editor::Editor;
use sixway_dataplane::update::{Ipv6Prefix, TunnelId, Update};
use sixway_dataplane::verdict::Verdict;

#[allow(dead_code, reason = "each bench uses its part")]
mod shared;

const SIZES: [u32; 3] = [1_000, 100_000, 1_000_000];
const MILLION: u32 = 1_000_000;
/// Octets of the packets that are judged.
const SHORT: usize = 100;
/// Addresses looked up in turn: a power of two.
const ADDRESSES: usize = 1 << 18;

fn main() {
    let mut criterion = shared::criterion();
    lookups(&mut criterion);
    many_lengths(&mut criterion);
    judging(&mut criterion);
    changes(&mut criterion);
    while_it_changes(&mut criterion);
    quiescence(&mut criterion);
    criterion.final_summary();
}

// ---- tables ----

/// The same number of prefixes, strewn over a /12.
fn sparse(id: u32) -> Ipv6Addr {
    let strewn = u128::from(u64::from(id).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 12);
    Ipv6Addr::from((0x2a0 << 116) | strewn << 64 | 9)
}

fn upsert(id: u32, host: fn(u32) -> Ipv6Addr) -> Update {
    tunnel_for(id, vec![Ipv6Prefix::new(host(id), 64).unwrap()])
}

fn full(tunnels: u32, host: fn(u32) -> Ipv6Addr) -> (Editor, Reader) {
    let (mut editor, reader) = empty_tables(tunnels);
    let batch: Vec<_> = (0..tunnels).map(|id| upsert(id, host)).collect();
    let started = Instant::now();
    editor.apply(&batch).unwrap();
    let (took, octets) = (started.elapsed(), editor.memory());
    eprintln!("{tunnels} tunnels in one batch: {took:?}, {} octets a tunnel", octets / tunnels as usize);
    (editor, reader)
}

// ---- lookups ----

fn addresses(tunnels: u32, host: fn(u32) -> Ipv6Addr) -> Vec<Ipv6Addr> {
    let mut dice = Dice(7);
    (0..ADDRESSES).map(|_| host(dice.below(tunnels))).collect()
}

fn serial(criterion: &mut Criterion, name: &str, tunnels: u32, reader: &mut Reader, wanted: &[Ipv6Addr]) {
    let mut at = 0;
    criterion.bench_function(&format!("{name}/{tunnels}"), |b| {
        let view = reader.view();
        b.iter(|| {
            let found = view.longest_match(wanted[at]).unwrap();
            at = (at + 1 + usize::from(found.len >> 7)) % ADDRESSES;
            found.len
        });
    });
}

fn together(criterion: &mut Criterion, name: &str, tunnels: u32, reader: &mut Reader, wanted: &[Ipv6Addr]) {
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Elements(32));
    let mut at = 0;
    group.bench_function(BenchmarkId::from_parameter(tunnels), |b| {
        let view = reader.view();
        b.iter(|| {
            let mut found = 0;
            view.longest_matches(&wanted[at..at + 32], |_, entry| found += usize::from(entry.is_some()));
            assert_eq!(found, 32);
            at = (at + 32) % ADDRESSES;
        });
    });
}

fn lookups(criterion: &mut Criterion) {
    for tunnels in SIZES {
        for (name, host) in [("direct", dense as fn(u32) -> Ipv6Addr), ("hash", sparse)] {
            let (_editor, mut reader) = full(tunnels, host);
            let wanted = addresses(tunnels, host);
            serial(criterion, &format!("lookup_{name}/serial"), tunnels, &mut reader, &wanted);
            together(criterion, &format!("lookup_{name}/batch32"), tunnels, &mut reader, &wanted);
        }
    }
}

/// A prefix of each length from 28 to 64, a few hundred of each: what an uplink with many routes has.
fn many_lengths(criterion: &mut Criterion) {
    let (mut editor, mut reader) = empty_tables(10_000);
    let mut dice = Dice(11);
    let mut wanted = Vec::new();
    for id in 0..37 {
        let len = 28 + id as u8;
        let mut prefixes: Vec<_> = (0..300)
            .map(|_| {
                let bits = u128::from(dice.below(u32::MAX)) << 84 | u128::from(dice.below(1 << 20)) << 64;
                Ipv6Prefix::new(Ipv6Addr::from((0x2a0 << 116) | bits), len).unwrap()
            })
            .collect();
        prefixes.sort_unstable();
        prefixes.dedup();
        wanted.extend(prefixes.iter().map(|p| Ipv6Addr::from(p.bits() | 1)));
        editor.apply(&[tunnel_for(id, prefixes)]).unwrap();
    }
    let wanted: Vec<_> = (0..ADDRESSES).map(|_| wanted[dice.below(wanted.len() as u32) as usize]).collect();
    serial(criterion, "lookup_37_lengths/serial", 37, &mut reader, &wanted);
}

// ---- judging ----

/// In batches of 64, and alone; then with the tunnel's counter, as a worker does it.
fn judging(criterion: &mut Criterion) {
    for tunnels in [1_000, MILLION] {
        let (_editor, mut reader) = full(tunnels, dense);
        let decap = prepared(tunnels, |id| (Arrival::Wire(sender(id)), udp(dense(id), world(), SHORT)));
        judge_both(criterion, "decap", tunnels, &mut reader, decap, |v| matches!(v, Verdict::ToTun));
        let encap = prepared(tunnels, |id| (Arrival::Tun, udp(world(), dense(id), SHORT)));
        judge_both(criterion, "encap", tunnels, &mut reader, encap, |v| matches!(v, Verdict::ToWire(..)));
    }
}

fn judge_both(
    criterion: &mut Criterion,
    name: &str,
    tunnels: u32,
    reader: &mut Reader,
    mut batch: Batch,
    is_right: fn(Verdict) -> bool,
) {
    let mut group = criterion.benchmark_group(format!("judge_{name}"));
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function(BenchmarkId::new("serial", tunnels), |b| {
        judge_singly(b, reader, &mut batch, is_right)
    });
    let mut batch = Batches::of(batch);
    let mut judged = Vec::new();
    group.bench_function(BenchmarkId::new("batch64", tunnels), |b| {
        b.iter(|| {
            judge_all(&reader.view(), batch.next(), &mut judged);
            assert!(black_box(&judged).iter().all(|j| is_right(j.verdict)));
            reader.quiescent();
        });
    });
    let (room, mut tallies) = counters(1, tunnels);
    (0..tunnels).for_each(|id| room.make_room(TunnelId(id)));
    let mut tally = tallies.pop().unwrap();
    group.bench_function(BenchmarkId::new("batch64_counted", tunnels), |b| {
        b.iter(|| {
            judge_all(&reader.view(), batch.next(), &mut judged);
            tally.fetch(judged.iter().filter_map(|j| j.tunnel_id()));
            judged.iter().filter_map(|j| j.tunnel_id()).for_each(|id| tally.sent(id, 1, 100));
            reader.quiescent();
        });
    });
}

/// The packets of one arena, a batch at a time.
struct Batches {
    batch: Batch,
    all: Vec<Packet>,
    at: usize,
}

impl Batches {
    fn of(batch: Batch) -> Self {
        let all = batch.packets.clone();
        Self { batch, all, at: 0 }
    }

    fn next(&mut self) -> &mut Batch {
        self.batch.clear();
        self.batch.packets.extend_from_slice(&self.all[self.at..self.at + BATCH]);
        self.at = (self.at + BATCH) % self.all.len();
        &mut self.batch
    }
}

// ---- changes ----

/// Times `each` update of `times` in batches of `many`; between two rounds `undo` puts the table back, untimed.
fn timed(
    editor: &mut Editor,
    reader: &mut Reader,
    (times, many): (u64, usize),
    each: impl Fn(u32) -> Update,
    undo: impl Fn(u32) -> Update,
) -> Duration {
    let mut dice = Dice(13);
    let mut took = Duration::ZERO;
    let mut left = times as usize;
    while left > 0 {
        let mut ids: Vec<_> = (0..left.min(10_000)).map(|_| dice.below(MILLION)).collect();
        ids.sort_unstable();
        ids.dedup();
        // Random order again.
        ids.sort_unstable_by_key(|id| id.wrapping_mul(0x9e37_79b1));
        left = left.saturating_sub(ids.len().max(1));
        let updates: Vec<_> = ids.iter().map(|id| each(*id)).collect();
        let back: Vec<_> = ids.iter().map(|id| undo(*id)).collect();
        let started = Instant::now();
        for batch in updates.chunks(many) {
            editor.apply(batch).unwrap();
            reader.quiescent();
        }
        took += started.elapsed();
        editor.apply(&back).unwrap();
        reader.quiescent();
    }
    took
}

fn changes(criterion: &mut Criterion) {
    for (name, host) in [("direct", dense as fn(u32) -> Ipv6Addr), ("hash", sparse)] {
        let (mut editor, mut reader) = full(MILLION, host);
        let mut group = criterion.benchmark_group(format!("change_{name}"));
        for many in [1, 1000] {
            group.bench_function(BenchmarkId::new("remove", many), |b| {
                b.iter_custom(|times| {
                    let remove = |id| Update::Remove(TunnelId(id));
                    timed(&mut editor, &mut reader, (times, many), remove, |id| upsert(id, host))
                });
            });
            group.bench_function(BenchmarkId::new("replace", many), |b| {
                b.iter_custom(|times| {
                    let put = |id| upsert(id, host);
                    timed(&mut editor, &mut reader, (times, many), put, put)
                });
            });
        }
        drop((editor, reader));
        insertions(&mut group, host);
    }
}

fn insertions(
    group: &mut criterion::BenchmarkGroup<'_, criterion::measurement::WallTime>,
    host: fn(u32) -> Ipv6Addr,
) {
    // Twice the numbers: odd ones are there, even ones come and go.
    let (mut editor, mut reader) = empty_tables(2 * MILLION);
    let odd: Vec<_> = (0..MILLION).map(|id| upsert(2 * id + 1, host)).collect();
    editor.apply(&odd).unwrap();
    for many in [1, 1000] {
        group.bench_function(BenchmarkId::new("insert", many), |b| {
            b.iter_custom(|times| {
                let put = |id: u32| upsert(2 * id, host);
                timed(&mut editor, &mut reader, (times, many), put, |id| Update::Remove(TunnelId(2 * id)))
            });
        });
    }
}

/// Lookups of one reader while nothing happens, and during ten thousand updates a second.
fn while_it_changes(criterion: &mut Criterion) {
    let (mut editor, mut reader) = full(MILLION, dense);
    let wanted = addresses(MILLION, dense);
    serial(criterion, "readers/quiet", MILLION, &mut reader, &wanted);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut dice = Dice(17);
            while !done.load(Ordering::Relaxed) {
                let batch: Vec<_> = (0..10).map(|_| upsert(dice.below(MILLION), dense)).collect();
                editor.apply(&batch).unwrap();
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let mut at = 0;
        criterion.bench_function("readers/10k_updates_a_second", |b| {
            b.iter(|| {
                let found = reader.view().longest_match(wanted[at]).unwrap();
                at = (at + 1 + usize::from(found.len >> 7)) % ADDRESSES;
                reader.quiescent();
                found.len
            });
        });
        done.store(true, Ordering::Relaxed);
    });
}

fn quiescence(criterion: &mut Criterion) {
    let (_editor, mut reader) = empty_tables(1);
    criterion.bench_function("quiescent_point", |b| b.iter(|| reader.quiescent()));
    criterion.bench_function("view", |b| b.iter(|| black_box(reader.view().policy().hairpin)));
}
