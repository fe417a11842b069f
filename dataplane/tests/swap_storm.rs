//! Readers look up without pause while the editor moves everything: nobody may see half a record or somebody else's.
//!
//! Real threads, real time, about two seconds. Every field of a tunnel follows from its number and its version, so
//! a torn record betrays itself. Some prefixes change hands in every batch but always have a holder: a reader that
//! misses one finds the pool around it. A range of many prefixes side by side comes and goes around one that stays, so
//! that prefixes move from a hash index into direct slots and back under the readers' eyes.
#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use sixway_dataplane::forward::judge_all;
use sixway_dataplane::packet::batch::{Arrival, Batch, Offload, Packet};
use sixway_dataplane::table::editor::Editor;
use sixway_dataplane::table::slab::{Encap, Entry, OuterKey, Owner, Path};
use sixway_dataplane::table::{Reader, View, tables};
use sixway_dataplane::update::{
    Holder, Ipv6Prefix, Outer, Rejected, Tunnel, TunnelId, UdpLocal, UdpRemote, Update,
};
use sixway_dataplane::verdict::Verdict;

const READERS: usize = 3;
const STORM: Duration = Duration::from_millis(1800);
/// Tunnels that are always there and pass prefixes around.
const HOLDERS: u32 = 16;
/// Tunnels that are always there and never change, although they are put again and again.
const QUIET: std::ops::Range<u32> = 16..24;
/// Tunnels that come and go.
const GUESTS: std::ops::Range<u32> = 24..64;
/// Prefixes that always have a holder.
const PREFIXES: u32 = 12;
/// Prefixes side by side, enough for a block of direct slots.
const RANGE: u32 = 512;
/// The tunnel that has every other prefix of the range, when it is there.
const RANGER: u32 = 64;
/// Always there, with one prefix of the range.
const SETTLER: u32 = 65;
/// The settler's place in the range.
const SETTLED: u32 = 77;
/// Prefixes that nobody looks for; with their records the tables are so large that lookups are prepared in batches.
const BALLAST: u32 = 8_500;
/// Tunnels that there is room for, with spare records for the whole range a few times.
const TUNNELS: u32 = 1_024;

/// xorshift: the same storm every time, as far as threads allow.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as u32 % n
    }
}

// ---- what follows from a number and a version ----

fn moving(n: u32) -> Ipv6Prefix {
    Ipv6Prefix::new(Ipv6Addr::from((0x2001_0db8 << 96) | u128::from(n) << 80), 48).unwrap()
}

fn quiet(id: u32) -> Ipv6Prefix {
    Ipv6Prefix::new(Ipv6Addr::from((0x2001_0db9 << 96) | u128::from(id) << 80), 56).unwrap()
}

/// The `n`th prefix of the range.
fn ranged(n: u32) -> Ipv6Prefix {
    Ipv6Prefix::new(Ipv6Addr::from((0x2001_0dbb << 96) | u128::from(n) << 64), 64).unwrap()
}

fn key(id: u32) -> OuterKey {
    OuterKey::new(Encap::Udp, Ipv4Addr::new(192, 0, 2, id as u8), 5000 + id as u16, 1000)
}

fn tunnel(id: u32, version: u8, prefixes: Vec<Ipv6Prefix>) -> Update {
    let remote = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, id as u8), 5000 + id as u16);
    let local = UdpLocal { addr: Some(Ipv4Addr::new(10, version, 0, id as u8)), port: 1000 };
    let outer = Outer::Udp { local, remote: UdpRemote::Fixed(remote) };
    Update::Upsert(Tunnel {
        id: TunnelId(id),
        outer,
        prefixes,
        mtu: 1280 + id as u16 * 256 + u16::from(version),
        manners: Default::default(),
    })
}

/// Fails when the fields do not belong together.
fn assert_whole(path: &Path) {
    let id = path.tunnel.0;
    let version = path.local.octets()[1];
    assert_eq!(path.mtu, 1280 + id as u16 * 256 + u16::from(version), "torn: {path:?}");
    assert_eq!(path.local, Ipv4Addr::new(10, version, 0, id as u8), "torn: {path:?}");
    assert_eq!(path.outer_key(), key(id), "torn: {path:?}");
    assert_eq!(
        (path.encap, path.socket, path.manners),
        (Encap::Udp, 9, Default::default()),
        "torn: {path:?}"
    );
}

// ---- the editor's side ----

/// Who holds each of the moving prefixes; `None`: the router itself.
struct Storm {
    editor: Editor,
    holder: Vec<Option<u32>>,
    guests: Vec<bool>,
    range: Range,
    version: u8,
    dice: Dice,
    batches: u64,
}

/// Who has all of the range but the settler's place.
#[derive(Clone, Copy, PartialEq)]
enum Range {
    Free,
    Tunnel,
    Router,
}

impl Storm {
    fn new(mut editor: Editor) -> Self {
        editor.name_socket(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 1000), 9);
        let holder = (0..PREFIXES).map(|n| Some(n % HOLDERS)).collect();
        let guests = vec![false; GUESTS.len()];
        let mut storm =
            Self { editor, holder, guests, range: Range::Free, version: 0, dice: Dice(0x5eed), batches: 0 };
        let pool = Update::Reserve(Ipv6Prefix::new(moving(0).addr(), 32).unwrap(), Holder::Unassigned);
        let mut start: Vec<_> = (0..HOLDERS).map(|id| storm.holding(id)).chain([pool]).collect();
        start.extend(QUIET.map(|id| tunnel(id, 0, vec![quiet(id)])));
        start.push(tunnel(SETTLER, 0, vec![ranged(SETTLED)]));
        let far = |n| Ipv6Addr::from((0x2001_0dbc << 96) | u128::from(n) << 68);
        let ballast = |n| Update::Reserve(Ipv6Prefix::new(far(n), 60).unwrap(), Holder::Local);
        start.extend((0..BALLAST).map(ballast));
        storm.editor.apply(&start).unwrap();
        storm
    }

    /// A holder with all that it should hold now.
    fn holding(&self, id: u32) -> Update {
        let mine = (0..PREFIXES).filter(|n| self.holder[*n as usize] == Some(id)).map(moving);
        tunnel(id, self.version, mine.collect())
    }

    fn batch(&mut self) -> Vec<Update> {
        self.version = self.version.wrapping_add(1);
        match self.dice.below(40) {
            0 => self.reach(),
            1..4 => vec![tunnel(SETTLER, self.version, vec![ranged(SETTLED)])],
            4..12 => self.guest(),
            12..20 => QUIET.map(|id| tunnel(id, 0, vec![quiet(id)])).collect(),
            _ => self.pass_on(),
        }
    }

    /// One prefix changes hands, between tunnels or to the router and back.
    fn pass_on(&mut self) -> Vec<Update> {
        let n = self.dice.below(PREFIXES);
        let was = self.holder[n as usize];
        let next = Some(self.dice.below(HOLDERS + 2)).filter(|id| *id < HOLDERS && Some(*id) != was);
        self.holder[n as usize] = next;
        let take = match was {
            Some(id) => self.holding(id),
            None if next.is_none() => return vec![Update::Reserve(moving(n), Holder::Local)],
            None => Update::Free(moving(n)),
        };
        let give = next.map_or(Update::Reserve(moving(n), Holder::Local), |id| self.holding(id));
        vec![take, give]
    }

    /// The range comes, one update or many, and with it a block of direct slots; or it goes, and the block with it.
    fn reach(&mut self) -> Vec<Update> {
        let places = (0..RANGE).filter(|n| *n != SETTLED).map(ranged);
        let next = if self.dice.below(2) == 0 { Range::Tunnel } else { Range::Router };
        let was = std::mem::replace(&mut self.range, next);
        if was != Range::Free {
            self.range = Range::Free;
        }
        match (was, next) {
            (Range::Tunnel, _) => vec![Update::Remove(TunnelId(RANGER))],
            (Range::Router, _) => places.map(Update::Free).collect(),
            (Range::Free, Range::Tunnel) => vec![tunnel(RANGER, self.version, places.collect())],
            (Range::Free, _) => places.map(|p| Update::Reserve(p, Holder::Local)).collect(),
        }
    }

    /// Guests bring levels and let indexes grow; they leave both behind.
    fn guest(&mut self) -> Vec<Update> {
        let at = self.dice.below(GUESTS.len() as u32) as usize;
        let id = GUESTS.start + at as u32;
        self.guests[at] = !self.guests[at];
        if !self.guests[at] {
            return vec![Update::Remove(TunnelId(id))];
        }
        let len = 57 + self.dice.below(72) as u8;
        let addr = |n: u128| Ipv6Addr::from((0x2001_0dba << 96) | u128::from(id) << 80 | n << 71);
        let prefixes = (0..u128::from(self.dice.below(30))).map(|n| Ipv6Prefix::new(addr(n), len).unwrap());
        let mut distinct: Vec<_> = prefixes.collect();
        distinct.sort_unstable();
        distinct.dedup();
        vec![tunnel(id, self.version, distinct)]
    }

    fn rage(&mut self, until: Instant) {
        while Instant::now() < until {
            let batch = self.batch();
            while let Err(why) = self.editor.apply(&batch) {
                // All spare records wait for a reader that is not running just now.
                assert!(matches!(why, Rejected::Full { .. }), "{why} in {batch:?}");
                std::thread::yield_now();
            }
            self.batches += 1;
        }
    }
}

// ---- the readers' side ----

fn look(view: &View<'_>, dice: &mut Dice) {
    let n = dice.below(PREFIXES);
    let host = Ipv6Addr::from(moving(n).bits() + 1 + u128::from(dice.below(9)));
    let entry = view.longest_match(host).unwrap();
    assert_eq!(
        (entry.bits, entry.len),
        (moving(n).bits(), 48),
        "missed {}, which always has a holder",
        moving(n)
    );
    match entry.owner {
        Owner::Tunnel(path) => {
            assert!(path.tunnel.0 < HOLDERS, "foreign: {path:?}");
            assert_whole(&path);
        }
        Owner::Reserved(holder) => assert_eq!(holder, Holder::Local),
    }
    let id = QUIET.start + dice.below(QUIET.len() as u32);
    let path = view.by_outer(key(id), Ipv4Addr::new(10, 0, 0, id as u8)).unwrap();
    assert_eq!(path.tunnel, TunnelId(id));
    assert_whole(&path);
    assert_eq!(view.longest_match(quiet(id).addr()).and_then(|e| e.owner.path()), Some(path));
    let id = dice.below(GUESTS.end);
    match view.tunnel(TunnelId(id)) {
        Some(path) => {
            assert_eq!(path.tunnel, TunnelId(id));
            assert_whole(&path);
        }
        None => assert!(GUESTS.contains(&id), "tunnel {id} is always there"),
    }
    if let Some(entry) = view.longest_match(Ipv6Addr::from((0x2001_0dba << 96) | u128::from(id) << 80)) {
        let path = entry.owner.path().unwrap();
        assert_eq!(path.tunnel, TunnelId(id), "foreign: {path:?}");
        assert_whole(&path);
    }
}

/// What is right for a place of the range: the settler is always there, all others come and go.
fn assert_ranged(n: u32, found: Option<Entry>) {
    let Some(entry) = found else { return assert!(n != SETTLED, "missed the settler") };
    assert_eq!(entry.prefix(), Some(ranged(n)), "foreign: {entry:?}");
    match entry.owner {
        Owner::Tunnel(path) => {
            assert_eq!(path.tunnel.0, if n == SETTLED { SETTLER } else { RANGER }, "foreign: {path:?}");
            assert_whole(&path);
        }
        Owner::Reserved(holder) => assert!(n != SETTLED && holder == Holder::Local, "foreign: {entry:?}"),
    }
}

/// Returns how many of the range were there.
fn look_along_the_range(view: &View<'_>, dice: &mut Dice) -> u64 {
    let mut places: Vec<u32> = (0..70).map(|_| dice.below(RANGE)).collect();
    places[dice.below(70) as usize] = SETTLED;
    assert_ranged(SETTLED, view.longest_match(ranged(SETTLED).addr()));
    assert_ranged(places[0], view.longest_match(ranged(places[0]).addr()));
    let addrs: Vec<Ipv6Addr> = places.iter().map(|n| ranged(*n).addr()).collect();
    let mut found = 0;
    view.longest_matches(&addrs, |at, entry| {
        assert_ranged(places[at], entry);
        found += u64::from(entry.is_some());
    });
    judge_along_the_range(view, &places);
    found
}

/// Sends a packet to each of the places.
fn judge_along_the_range(view: &View<'_>, places: &[u32]) {
    let mut batch = Batch::new(1, places.len());
    let stride = batch.arena.len() / places.len();
    for (at, n) in places.iter().enumerate() {
        let start = at * stride;
        let from = Ipv6Addr::from(0x3fff << 112 | 1);
        let mut out = &mut batch.arena[start..];
        let packet = PacketBuilder::ipv6(from.octets(), ranged(*n).addr().octets(), 64).udp(4000, 5000);
        packet.write(&mut out, &[7; 8]).unwrap();
        assert!(batch.push(Packet { start, len: 56, arrival: Arrival::Tun, offload: Offload::default() }));
    }
    assert!(view.is_large(), "lookups are not prepared in batches");
    let mut judged = Vec::new();
    judge_all(view, &mut batch, &mut judged);
    for (n, judged) in places.iter().zip(judged) {
        let Verdict::ToWire(path, _) = judged.verdict else {
            assert!(*n != SETTLED, "missed the settler: {:?}", judged.verdict);
            continue;
        };
        assert_eq!(path.tunnel.0, if *n == SETTLED { SETTLER } else { RANGER }, "foreign: {path:?}");
        assert_whole(&path);
    }
}

/// Returns how many looks there were, and how many places of the range were held.
fn read(mut reader: Reader, seed: u64, done: &AtomicBool) -> (u64, u64) {
    let mut dice = Dice(seed);
    let (mut looks, mut along) = (0, 0);
    while !done.load(Ordering::Relaxed) {
        reader.online();
        for _ in 0..dice.below(50) {
            let view = reader.view();
            let many = 1 + dice.below(64);
            (0..many).for_each(|_| look(&view, &mut dice));
            looks += u64::from(many);
            along += look_along_the_range(&view, &mut dice);
            reader.quiescent();
        }
        reader.offline();
        if dice.below(8) == 0 {
            std::thread::sleep(Duration::from_micros(50));
        }
    }
    (looks, along)
}

#[test]
fn readers_see_whole_records_of_the_right_tunnel() {
    let (editor, readers) = tables(TUNNELS, READERS, 99);
    let mut storm = Storm::new(editor);
    let done = AtomicBool::new(false);
    let looks: Vec<(u64, u64)> = std::thread::scope(|scope| {
        let seeds = 1u64..;
        let spawn = |(reader, seed)| {
            let done = &done;
            scope.spawn(move || read(reader, seed, done))
        };
        let threads: Vec<_> = readers.into_iter().zip(seeds).map(spawn).collect();
        storm.rage(Instant::now() + STORM);
        done.store(true, Ordering::Relaxed);
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let enough = looks.iter().all(|(looks, along)| *looks > 1000 && *along > 1000);
    assert!(enough && storm.batches > 1000, "{looks:?}, {}", storm.batches);
}
