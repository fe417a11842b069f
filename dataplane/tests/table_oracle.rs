//! The tables against a stupid twin: the same random batches, the same answers.
//!
//! The twin is a list that is searched from one end to the other and copied before each batch. Universes are small, so that
//! prefixes, endpoints and numbers collide all the time; what is refused must have changed nothing.
#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::num::NonZeroU16;

use proptest::prelude::*;
use sixway_dataplane::manners::Manners;
use sixway_dataplane::table::editor::Editor;
use sixway_dataplane::table::slab::{Encap, Learn, OuterKey, Owner, Path};
use sixway_dataplane::table::{Reader, View, tables};
use sixway_dataplane::update::{
    Holder, Ipv6Prefix, Outer, Rejected, Tunnel, TunnelId, UdpLocal, UdpRemote, Update,
};

const CAPACITY: u32 = 6;
/// Where sockets listen, by the numbers they have.
const SOCKETS: [((u8, u16), u16); 3] = [((0, 1000), 7), ((1, 1000), 8), ((2, 2000), 9)];

/// Addresses of ours and of peers: 0 is "any" or "unknown".
fn v4(n: u8) -> Ipv4Addr {
    if n == 0 { Ipv4Addr::UNSPECIFIED } else { Ipv4Addr::new(10, 0, 0, n) }
}

// ---- the twin ----

#[derive(Clone, Debug, PartialEq)]
struct Held {
    tunnel: Tunnel,
    watched: bool,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Twin {
    tunnels: Vec<Held>,
    reserved: Vec<(Ipv6Prefix, Holder)>,
}

/// What the twin says instead of an error; the table's error must be of this kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum No {
    PrefixTaken,
    PrefixReserved,
    OuterTaken,
    Tunnel,
    NotReserved,
    Full,
    Mtu,
    NotListening,
}

impl Twin {
    fn apply(&mut self, batch: &[Update]) -> Result<(), No> {
        let before = self.clone();
        let done = batch.iter().try_for_each(|update| self.step(update));
        if done.is_err() {
            *self = before;
        }
        done
    }

    fn step(&mut self, update: &Update) -> Result<(), No> {
        match update {
            Update::Upsert(tunnel) => self.upsert(tunnel),
            Update::Remove(id) => self.take(*id).map(|_| ()).ok_or(No::Tunnel),
            Update::Watch(id, on) => {
                let held = self.tunnels.iter_mut().find(|h| h.tunnel.id == *id).ok_or(No::Tunnel)?;
                held.watched = *on;
                Ok(())
            }
            Update::Reserve(prefix, holder) => {
                if self.tunnel_with(*prefix).is_some() {
                    return Err(No::PrefixTaken);
                }
                self.reserved.retain(|(p, _)| p != prefix);
                self.reserved.push((*prefix, *holder));
                Ok(())
            }
            Update::Free(prefix) => {
                let at = self.reserved.iter().position(|(p, _)| p == prefix).ok_or(No::NotReserved)?;
                self.reserved.remove(at);
                Ok(())
            }
            Update::Policy(_) | Update::Meter(..) | Update::Address(..) => Ok(()),
            Update::Listen(_) | Update::Unlisten(_) => Ok(()),
        }
    }

    fn upsert(&mut self, tunnel: &Tunnel) -> Result<(), No> {
        if tunnel.id.0 >= CAPACITY {
            return Err(No::Full);
        }
        if !(1280..=65_000).contains(&tunnel.mtu) {
            return Err(No::Mtu);
        }
        let path = path(tunnel, false).ok_or(No::NotListening)?;
        let watched = self.take(tunnel.id).is_some_and(|old| old.watched);
        for (n, prefix) in tunnel.prefixes.iter().enumerate() {
            if tunnel.prefixes[..n].contains(prefix) || self.tunnel_with(*prefix).is_some() {
                return Err(No::PrefixTaken);
            }
            if self.reserved.iter().any(|(p, _)| p == prefix) {
                return Err(No::PrefixReserved);
            }
        }
        if self.tunnels.iter().any(|h| are_confused(&path, &self::path(&h.tunnel, false).unwrap())) {
            return Err(No::OuterTaken);
        }
        self.tunnels.push(Held { tunnel: tunnel.clone(), watched });
        Ok(())
    }

    fn take(&mut self, id: TunnelId) -> Option<Held> {
        let at = self.tunnels.iter().position(|h| h.tunnel.id == id)?;
        Some(self.tunnels.remove(at))
    }

    fn tunnel_with(&self, prefix: Ipv6Prefix) -> Option<&Held> {
        self.tunnels.iter().find(|h| h.tunnel.prefixes.contains(&prefix))
    }

    fn longest_match(&self, addr: Ipv6Addr) -> Option<(Ipv6Prefix, Owner)> {
        let tunnels = self.tunnels.iter().flat_map(|h| {
            let owner = Owner::Tunnel(path(&h.tunnel, h.watched).unwrap());
            h.tunnel.prefixes.iter().map(move |p| (*p, owner))
        });
        let reserved = self.reserved.iter().map(|(p, holder)| (*p, Owner::Reserved(*holder)));
        tunnels.chain(reserved).filter(|(p, _)| p.contains(addr)).max_by_key(|(p, _)| p.prefix_len())
    }

    fn by_outer(&self, key: OuterKey, local: Ipv4Addr) -> Option<Path> {
        let mut all = self.tunnels.iter().map(|h| path(&h.tunnel, h.watched).unwrap());
        all.find(|p| is_known(p) && p.outer_key() == key && (p.local == local || p.local == v4(0)))
    }

    fn uses_socket(&self, number: u16) -> bool {
        let mut all = self.tunnels.iter().map(|h| path(&h.tunnel, h.watched).unwrap());
        all.any(|p| p.encap == Encap::Udp && p.socket == number)
    }

    fn tunnel(&self, id: TunnelId) -> Option<Path> {
        self.tunnels.iter().find(|h| h.tunnel.id == id).map(|h| path(&h.tunnel, h.watched).unwrap())
    }
}

fn is_known(path: &Path) -> bool {
    path.remote != v4(0) && (path.encap == Encap::Proto41 || path.remote_port != 0)
}

/// Whether a packet could be from either peer.
fn are_confused(a: &Path, b: &Path) -> bool {
    let same_local = a.local == b.local || a.local == v4(0) || b.local == v4(0);
    is_known(a) && is_known(b) && a.outer_key() == b.outer_key() && same_local
}

/// What the forwarder should know of a tunnel; `None` where no socket listens.
fn path(t: &Tunnel, watched: bool) -> Option<Path> {
    let (encap, remote, remote_port, local, local_port, learn) = match t.outer {
        Outer::Proto41 { local, remote } => (Encap::Proto41, remote, 0, local, 0, Learn::Never),
        Outer::Udp { local, remote } => {
            let (at, port, learn) = match remote {
                UdpRemote::Fixed(at) => (*at.ip(), at.port(), Learn::Never),
                UdpRemote::AnyPort { addr, port } => (addr, port.map_or(0, NonZeroU16::get), Learn::Port),
                UdpRemote::Learned(at) => {
                    (at.map_or(v4(0), |at| *at.ip()), at.map_or(0, |at| at.port()), Learn::Anywhere)
                }
            };
            (Encap::Udp, at, port, local.addr, local.port, learn)
        }
    };
    let socket = match encap {
        Encap::Proto41 => 0,
        Encap::Udp => socket(local, local_port)?,
    };
    let local = local.unwrap_or(v4(0));
    Some(Path {
        tunnel: t.id,
        encap,
        mtu: t.mtu,
        remote,
        remote_port,
        local,
        local_port,
        socket,
        learn,
        manners: t.manners.with_watched(watched),
    })
}

/// The socket on just this address, else the one on all; who does not care takes any.
fn socket(local: Option<Ipv4Addr>, port: u16) -> Option<u16> {
    let on = |addr: Option<Ipv4Addr>| {
        SOCKETS
            .iter()
            .find(|((a, p), _)| *p == port && addr.is_none_or(|addr| v4(*a) == addr))
            .map(|(_, n)| *n)
    };
    local.and_then(|addr| on(Some(addr))).or(on(Some(v4(0)))).or_else(|| local.is_none().then(|| on(None))?)
}

fn kind(rejected: &Rejected) -> No {
    match rejected {
        Rejected::PrefixTaken { .. } => No::PrefixTaken,
        Rejected::PrefixReserved { .. } => No::PrefixReserved,
        Rejected::OuterTaken { .. } => No::OuterTaken,
        Rejected::NoTunnel(_) => No::Tunnel,
        Rejected::NotReserved(_) => No::NotReserved,
        Rejected::Full { .. } => No::Full,
        Rejected::Mtu { .. } => No::Mtu,
        Rejected::NotListening { .. } => No::NotListening,
        Rejected::Listen { .. } | Rejected::Unlisten { .. } => panic!("nobody asked to listen: {rejected}"),
    }
}

// ---- what can be asked ----

fn any_prefix() -> impl Strategy<Value = Ipv6Prefix> {
    let bits = (0u128..4, 0u128..3, 0u128..3);
    (bits, prop::sample::select(vec![0u8, 32, 47, 48, 64, 127, 128])).prop_map(|((a, b, c), len)| {
        Ipv6Prefix::new(Ipv6Addr::from(0x2001_0db8 << 96 | a << 79 | b << 64 | c), len).unwrap()
    })
}

fn any_remote() -> impl Strategy<Value = SocketAddrV4> {
    (0u8..4, 0u16..3).prop_map(|(addr, port)| SocketAddrV4::new(v4(addr), port))
}

fn any_local() -> impl Strategy<Value = Option<Ipv4Addr>> {
    prop::option::of((1u8..4).prop_map(v4))
}

fn any_outer() -> impl Strategy<Value = Outer> {
    let udp = prop_oneof![
        any_remote().prop_map(UdpRemote::Fixed),
        any_remote().prop_map(|at| UdpRemote::AnyPort { addr: *at.ip(), port: NonZeroU16::new(at.port()) }),
        prop::option::of(any_remote()).prop_map(UdpRemote::Learned),
    ];
    let port = prop::sample::select(vec![1000u16, 1000, 1000, 2000, 3000]);
    prop_oneof![
        (any_local(), 0u8..4).prop_map(|(local, n)| Outer::Proto41 { local, remote: v4(n) }),
        (any_local(), port, udp)
            .prop_map(|(addr, port, remote)| Outer::Udp { local: UdpLocal { addr, port }, remote }),
    ]
}

fn any_id() -> impl Strategy<Value = TunnelId> {
    (0..=CAPACITY).prop_map(TunnelId)
}

fn any_tunnel() -> impl Strategy<Value = Tunnel> {
    let mtu = prop::sample::select(vec![1280u16, 1280, 1480, 1480, 65_000, 1279, 65_001]);
    (any_id(), any_outer(), prop::collection::vec(any_prefix(), 0..4), mtu).prop_map(
        |(id, outer, prefixes, mtu)| Tunnel {
            id,
            outer,
            prefixes,
            mtu,
            manners: Manners::from_bits(mtu & 0x7ff),
        },
    )
}

fn any_update() -> impl Strategy<Value = Update> {
    prop_oneof![
        6 => any_tunnel().prop_map(Update::Upsert),
        2 => any_id().prop_map(Update::Remove),
        2 => (any_prefix(), any::<bool>()).prop_map(|(p, local)| {
            Update::Reserve(p, if local { Holder::Local } else { Holder::Unassigned })
        }),
        1 => any_prefix().prop_map(Update::Free),
        1 => (any_id(), any::<bool>()).prop_map(|(id, on)| Update::Watch(id, on)),
    ]
}

/// Mostly short batches: long ones are nearly always refused.
fn any_batch() -> impl Strategy<Value = Vec<Update>> {
    prop_oneof![4 => prop::collection::vec(any_update(), 1..2), 2 => prop::collection::vec(any_update(), 2..4), 1 => prop::collection::vec(any_update(), 0..9)]
}

fn table() -> (Editor, Reader) {
    let (mut editor, mut readers) = tables(CAPACITY, 1, 7);
    for ((addr, port), number) in SOCKETS {
        editor.name_socket(SocketAddrV4::new(v4(addr), port), number);
    }
    let mut reader = readers.pop().unwrap();
    reader.online();
    (editor, reader)
}

/// Every address on either side of every boundary, every endpoint, every number.
fn compare(view: &View<'_>, twin: &Twin) -> Result<(), TestCaseError> {
    for (a, b, c) in (0u128..5).flat_map(|a| (0u128..4).flat_map(move |b| (0u128..4).map(move |c| (a, b, c))))
    {
        for base in [0x2001_0db8u128, 0x2001_0db9] {
            let addr = Ipv6Addr::from(base << 96 | a << 79 | b << 64 | c);
            let got =
                view.longest_match(addr).map(|e| (Ipv6Prefix::new(e.bits.into(), e.len).unwrap(), e.owner));
            prop_assert_eq!(got, twin.longest_match(addr), "{}", addr);
        }
    }
    for (remote, port, local, local_port) in endpoints() {
        for encap in [Encap::Proto41, Encap::Udp] {
            let key = OuterKey::new(encap, remote, port, local_port);
            prop_assert_eq!(view.by_outer(key, local), twin.by_outer(key, local), "{:?} {}", key, local);
        }
    }
    for id in (0..CAPACITY + 2).map(TunnelId) {
        prop_assert_eq!(view.tunnel(id), twin.tunnel(id), "{}", id);
    }
    Ok(())
}

fn endpoints() -> impl Iterator<Item = (Ipv4Addr, u16, Ipv4Addr, u16)> {
    let all = (0u8..4).flat_map(|r| (0u16..3).flat_map(move |p| (1u8..4).map(move |l| (v4(r), p, v4(l)))));
    all.flat_map(|(r, p, l)| [0, 1000, 2000].map(|port| (r, p, l, port)))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// RFC: D4 (longest match)
    #[test]
    fn the_table_is_its_stupid_twin(batches in prop::collection::vec(any_batch(), 1..40), asleep in any::<bool>()) {
        let (mut editor, mut reader) = table();
        let mut twin = Twin::default();
        if asleep {
            reader.offline();
        }
        for (n, batch) in batches.iter().enumerate() {
            let wanted = twin.apply(batch);
            let got = editor.apply(batch).map(|_| ()).map_err(|e| kind(&e));
            prop_assert_eq!(got, wanted, "batch {}: {:?}", n, batch);
            prop_assert_eq!(editor.tunnels() as usize, twin.tunnels.len());
            for (_, socket) in SOCKETS {
                prop_assert_eq!(editor.uses_socket(socket), twin.uses_socket(socket));
            }
            compare(&reader.view(), &twin)?;
            // Now and then a reader takes long, so that records wait for it.
            if n % 3 != 0 && !asleep {
                reader.quiescent();
            }
        }
    }
}

/// How often the strategy reaches what: a property over batches that are all refused would say nothing.
#[test]
fn the_batches_are_accepted_and_refused_for_every_reason() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..200 {
        let mut twin = Twin::default();
        for batch in prop::collection::vec(any_batch(), 20).new_tree(&mut runner).unwrap().current() {
            *seen.entry(format!("{:?}", twin.apply(&batch))).or_default() += 1;
        }
    }
    assert_eq!(seen.len(), 9, "{seen:?}");
    assert!(seen["Ok(())"] > 1000 && seen.values().all(|n| *n > 10), "{seen:?}");
}

/// RFC: R7
#[test]
fn records_run_out_with_an_error_and_nothing_changed() {
    let (mut editor, mut reader) = table();
    let spare = |n: u128| Ipv6Prefix::host(Ipv6Addr::from(0x2001_0db9 << 96 | n));
    let reserve = |from: u128, to: u128| -> Vec<_> {
        (from..to).map(|n| Update::Reserve(spare(n), Holder::Unassigned)).collect()
    };
    assert_eq!(editor.apply(&reserve(0, 100_000)).map_err(|e| kind(&e)), Err(No::Full));
    assert_eq!(reader.view().longest_match(spare(0).addr()), None);
    let most = (0..).find(|n| editor.apply(&reserve(*n, n + 1)).is_err()).unwrap();
    assert!(most > 4096);
    for n in 0..most {
        let got = reader.view().longest_match(spare(n).addr()).map(|e| e.owner);
        assert_eq!(got, Some(Owner::Reserved(Holder::Unassigned)));
    }
    editor.apply(&[Update::Free(spare(1)), Update::Free(spare(2))]).unwrap();
    assert!(editor.apply(&reserve(most, most + 1)).is_err(), "a reader may still look at what was freed");
    reader.quiescent();
    editor.apply(&reserve(most, most + 2)).unwrap();
}

/// A tunnel that is new in the batch counts with all its prefixes when it is watched as well.
#[test]
fn watching_a_new_tunnel_takes_records_too() {
    let (mut editor, mut reader) = table();
    let prefixes =
        |many: u128| (0..many).map(|n| Ipv6Prefix::host(Ipv6Addr::from(0x2001_0db9 << 96 | n))).collect();
    let outer = Outer::Proto41 { local: None, remote: v4(1) };
    let batch = |many| {
        let tunnel =
            Tunnel { id: TunnelId(1), outer, prefixes: prefixes(many), mtu: 1280, manners: Manners::PLAIN };
        [Update::Upsert(tunnel), Update::Watch(TunnelId(1), true)]
    };
    assert_eq!(editor.apply(&batch(5000)).map_err(|e| kind(&e)), Err(No::Full));
    assert_eq!(reader.view().tunnel(TunnelId(1)), None);
    editor.apply(&batch(4000)).unwrap();
    assert!(reader.view().tunnel(TunnelId(1)).unwrap().manners.is_watched());
}
