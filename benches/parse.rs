//! What reading and writing headers costs a packet.
//!
//! The kernel writes the outer header of what we send, so there is no template to fill: `outer/queue_message` is what
//! stands in its place, the message with peer, source address and type of service, queued for a socket. Of UDP the
//! kernel reads the outer header too; `outer/udp` is what is left, the inner one.
#![expect(clippy::unwrap_used, reason = "a bench that cannot go on should stop")]

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use etherparse::{IpNumber, Ipv4Header};
use shared::{host, path, sender, udp, world};
use sixway_dataplane::encap::{inner_class, outer_tos, proto41};
use sixway_dataplane::io::outbox::Outbox;
use sixway_dataplane::manners::Manners;
use sixway_dataplane::packet::view::View;
use sixway_dataplane::table::slab::{OuterKey, Owner};
use sixway_dataplane::table::tables;

#[allow(dead_code, reason = "each bench uses its part")]
mod shared;

const BATCH: usize = 32;

fn main() {
    let mut criterion = shared::criterion();
    outer(&mut criterion);
    validating(&mut criterion);
    criterion.final_summary();
}

/// Packets of 100 octets, more than one, so that nothing is guessed from the last.
fn packets(outer: bool) -> Vec<Vec<u8>> {
    let with_outer = |id| {
        let inner = udp(host(id), world(), 100);
        let mut out = Vec::new();
        let header = Ipv4Header::new(100, 64, IpNumber::IPV6, [10, 0, 0, id as u8], [192, 0, 2, 1]).unwrap();
        header.write(&mut out).unwrap();
        out.extend_from_slice(&inner);
        out
    };
    let plain = |id| udp(host(id), world(), 100);
    (0..BATCH as u32).map(|id| if outer { with_outer(id) } else { plain(id) }).collect()
}

fn outer(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("outer");
    group.throughput(Throughput::Elements(BATCH as u64));
    let (framed, plain) = (packets(true), packets(false));
    group.bench_function("proto41", |b| {
        b.iter(|| {
            for packet in &framed {
                let outer = proto41::unwrap(black_box(packet)).unwrap();
                black_box(View::parse(&packet[outer.len..outer.total]).unwrap());
            }
        });
    });
    group.bench_function("udp", |b| {
        b.iter(|| {
            for packet in &plain {
                black_box(View::parse(black_box(packet)).unwrap());
            }
        });
    });
    group.bench_function("ecn_decap", |b| {
        b.iter(|| {
            for n in 0..BATCH as u8 {
                black_box(inner_class(Manners::PLAIN, black_box(2), n & 1));
            }
        });
    });
    let mut outbox = Outbox::new();
    outbox.begin(true, std::time::Duration::ZERO);
    let paths: Vec<_> = (0..BATCH as u32).map(path).collect();
    group.bench_function("queue_message", |b| {
        b.iter(|| {
            for (n, path) in paths.iter().enumerate() {
                outbox.push(black_box(path), outer_tos(Manners::PLAIN, 2), n * 100, 100);
            }
            outbox.forget();
        });
    });
}

/// What it costs to compare the sender with the tunnel that the inner source belongs to, beside finding that tunnel.
fn validating(criterion: &mut Criterion) {
    const TUNNELS: u32 = 1000;
    let (mut editor, mut readers) = tables(TUNNELS, 1, 42);
    editor.name_socket(sixway_dataplane::start::InMemory::any(shared::PORT), 0);
    editor.apply(&(0..TUNNELS).map(shared::tunnel).collect::<Vec<_>>()).unwrap();
    let mut reader = readers.pop().unwrap();
    reader.online();
    let view = reader.view();
    let senders: Vec<_> = (0..BATCH as u32).map(|n| (host(n * 31), sender(n * 31))).collect();
    let mut group = criterion.benchmark_group("decap_validate");
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("source", |b| {
        b.iter(|| {
            for (source, _) in &senders {
                black_box(view.longest_match(black_box(*source)));
            }
        });
    });
    group.bench_function("source_and_sender", |b| {
        b.iter(|| {
            for (source, sender) in &senders {
                let found = view.longest_match(black_box(*source)).map(|e| e.owner);
                let Some(Owner::Tunnel(path)) = found else { panic!("no tunnel") };
                let key = OuterKey::new(
                    sender.encap,
                    *sender.remote.ip(),
                    sender.remote.port(),
                    sender.local.port(),
                );
                assert!(path.is_sender(black_box(key), *sender.local.ip()));
                black_box(path);
            }
        });
    });
}
