//! What the benches share: how long each runs, the dice, tunnels and packets.
//!
//! Knows nothing of what is measured. Every bench is short, so that all of them together stay below five minutes.

use std::hint::black_box;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::time::Duration;

use criterion::{Bencher, Criterion};
use etherparse::PacketBuilder;
use sixway_dataplane::forward::judge;
use sixway_dataplane::packet::batch::{Arrival, Batch, Merged, Offload, Packet, Sender};
use sixway_dataplane::table::editor::Editor;
use sixway_dataplane::table::slab::{Encap, Learn, Path};
use sixway_dataplane::table::{Reader, tables};
use sixway_dataplane::update::{Ipv6Prefix, Outer, Tunnel, TunnelId, UdpLocal, UdpRemote, Update};
use sixway_dataplane::verdict::Verdict;

/// The UDP port of all tunnels.
pub(crate) const PORT: u16 = 3653;
/// Our outer address.
pub(crate) const OURS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// Inner octets of every tunnel.
pub(crate) const MTU: u16 = 1400;
/// Payload octets of each segment of a super-packet: what fits the MTU behind 60 octets of headers.
pub(crate) const SEGMENT: usize = 1340;
/// Segments of a super-packet.
pub(crate) const SEGMENTS: usize = 45;

/// Criterion with short runs; arguments of the command line (a filter, `--quick`) are heeded.
pub(crate) fn criterion() -> Criterion {
    let config = Criterion::default().sample_size(20);
    let config = config.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(1));
    config.configure_from_args()
}

/// xorshift: the same packets every time.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    /// A number below `n`.
    pub(crate) fn below(&mut self, n: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as u32 % n
    }
}

// ---- tunnels ----

/// A host behind tunnel `id`.
pub(crate) fn host(id: u32) -> Ipv6Addr {
    Ipv6Addr::from((0x2001_0db8 << 96) | u128::from(id) << 64 | 9)
}

/// A host out in the world.
pub(crate) fn world() -> Ipv6Addr {
    Ipv6Addr::from(0x3fff << 112 | 1)
}

/// The endpoint of tunnel `id`'s peer.
pub(crate) fn peer(id: u32) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::from(0x0a00_0000 + id / 4), 4000 + (id % 4) as u16)
}

/// That peer as the outer header names it.
pub(crate) fn sender(id: u32) -> Sender {
    Sender { encap: Encap::Udp, remote: peer(id), local: SocketAddrV4::new(OURS, PORT), tos: 0 }
}

/// A UDP tunnel with one /64, where [`host`] lives.
pub(crate) fn tunnel(id: u32) -> Update {
    tunnel_for(id, vec![Ipv6Prefix::new(host(id), 64).unwrap()])
}

/// A UDP tunnel with these prefixes.
pub(crate) fn tunnel_for(id: u32, prefixes: Vec<Ipv6Prefix>) -> Update {
    let local = UdpLocal { addr: Some(OURS), port: PORT };
    let outer = Outer::Udp { local, remote: UdpRemote::Fixed(peer(id)) };
    Update::Upsert(Tunnel { id: TunnelId(id), outer, prefixes, mtu: MTU, manners: Default::default() })
}

/// Tables with room for so many tunnels and one reader, online.
pub(crate) fn empty_tables(capacity: u32) -> (Editor, Reader) {
    let (mut editor, mut readers) = tables(capacity, 1, 42);
    editor.name_socket(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT), 0);
    let mut reader = readers.pop().unwrap();
    reader.online();
    (editor, reader)
}

/// The same tunnel as the packet path sees it.
pub(crate) fn path(id: u32) -> Path {
    Path {
        tunnel: TunnelId(id),
        encap: Encap::Udp,
        mtu: MTU,
        remote: *peer(id).ip(),
        remote_port: peer(id).port(),
        local: OURS,
        local_port: PORT,
        socket: 0,
        learn: Learn::Never,
        manners: Default::default(),
    }
}

// ---- packets ----

/// A UDP packet of `len` octets, headers included.
pub(crate) fn udp(source: Ipv6Addr, destination: Ipv6Addr, len: usize) -> Vec<u8> {
    let mut out = Vec::new();
    let b = PacketBuilder::ipv6(source.octets(), destination.octets(), 64).udp(4000, 5000);
    b.write(&mut out, &vec![7; len - 48]).unwrap();
    out
}

/// A TCP packet from `port` with `payload` octets, starting at `sequence`.
pub(crate) fn tcp(destination: Ipv6Addr, port: u16, sequence: u32, payload: usize) -> Vec<u8> {
    let mut out = Vec::new();
    let b = PacketBuilder::ipv6(world().octets(), destination.octets(), 64);
    b.tcp(port, 5000, sequence, 1000).ack(1).write(&mut out, &vec![7; payload]).unwrap();
    out
}

/// How a super-packet of [`SEGMENTS`] TCP segments is to be cut.
pub(crate) const MERGED: Offload =
    Offload { merged: Some((Merged::Tcp, SEGMENT as u16)), partial: Some((40, 16)) };

/// Such a super-packet.
pub(crate) fn train(destination: Ipv6Addr) -> Vec<u8> {
    tcp(destination, 4000, 1, SEGMENT * SEGMENTS)
}

/// A batch with `packets` in one row.
pub(crate) fn batch(packets: impl IntoIterator<Item = (Arrival, Vec<u8>)>) -> Batch {
    let packets: Vec<_> = packets.into_iter().collect();
    let mut batch = Batch::new(0, 0);
    batch.packets.reserve_exact(packets.len());
    for (arrival, bytes) in packets {
        let start = batch.arena.len();
        batch.arena.extend_from_slice(&bytes);
        assert!(batch.push(Packet { start, len: bytes.len(), arrival, offload: Offload::default() }));
    }
    batch
}

/// Packets that are prepared: many times what a cache holds.
pub(crate) const PREPARED: usize = 16_384;
/// Packets that are judged in one go.
pub(crate) const BATCH: usize = 64;

/// [`PREPARED`] packets, each of or for a random one of the tunnels.
pub(crate) fn prepared(tunnels: u32, packet: impl Fn(u32) -> (Arrival, Vec<u8>)) -> Batch {
    let mut dice = Dice(7);
    batch((0..PREPARED).map(|_| packet(dice.below(tunnels))))
}

/// Judges one prepared packet after the other, [`BATCH`] of them between two quiescent points.
pub(crate) fn judge_singly(
    bencher: &mut Bencher<'_>,
    reader: &mut Reader,
    batch: &mut Batch,
    is_right: fn(Verdict) -> bool,
) {
    let mut next = 0;
    bencher.iter(|| {
        let view = reader.view();
        let arena = &mut batch.arena;
        for packet in &mut batch.packets[next..next + BATCH] {
            let judged = judge(&view, packet, &mut arena[packet.range()]);
            assert!(is_right(black_box(judged).verdict));
        }
        next = (next + BATCH) % PREPARED;
        reader.quiescent();
    });
}
