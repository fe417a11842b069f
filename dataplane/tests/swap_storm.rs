//! Readers look up without pause while the editor moves everything: nobody may see half a record or somebody else's.
//!
//! Real threads, real time, about two seconds. Every field of a tunnel follows from its number and its version, so
//! a torn record betrays itself. Some prefixes change hands in every batch but always have a holder: a reader that
//! misses one finds the pool around it.
#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sixway_dataplane::table::editor::Editor;
use sixway_dataplane::table::slab::{Encap, OuterKey, Owner, Path};
use sixway_dataplane::table::{Reader, View, tables};
use sixway_dataplane::update::{
    Holder, Ipv6Prefix, Outer, Rejected, Tunnel, TunnelId, UdpLocal, UdpRemote, Update,
};

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
    })
}

/// Fails when the fields do not belong together.
fn assert_whole(path: &Path) {
    let id = path.tunnel.0;
    let version = path.local.octets()[1];
    assert_eq!(path.mtu, 1280 + id as u16 * 256 + u16::from(version), "torn: {path:?}");
    assert_eq!(path.local, Ipv4Addr::new(10, version, 0, id as u8), "torn: {path:?}");
    assert_eq!(path.outer_key(), key(id), "torn: {path:?}");
    assert_eq!((path.encap, path.socket, path.watched), (Encap::Udp, 9, false), "torn: {path:?}");
}

// ---- the editor's side ----

/// Who holds each of the moving prefixes; `None`: the router itself.
struct Storm {
    editor: Editor,
    holder: Vec<Option<u32>>,
    guests: Vec<bool>,
    version: u8,
    dice: Dice,
    batches: u64,
}

impl Storm {
    fn new(mut editor: Editor) -> Self {
        editor.name_socket(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 1000), 9);
        let holder = (0..PREFIXES).map(|n| Some(n % HOLDERS)).collect();
        let guests = vec![false; GUESTS.len()];
        let mut storm = Self { editor, holder, guests, version: 0, dice: Dice(0x5eed), batches: 0 };
        let pool = Update::Reserve(Ipv6Prefix::new(moving(0).addr(), 32).unwrap(), Holder::Unassigned);
        let mut start: Vec<_> = (0..HOLDERS).map(|id| storm.holding(id)).chain([pool]).collect();
        start.extend(QUIET.map(|id| tunnel(id, 0, vec![quiet(id)])));
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
        match self.dice.below(4) {
            0 => self.guest(),
            1 => QUIET.map(|id| tunnel(id, 0, vec![quiet(id)])).collect(),
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

fn read(mut reader: Reader, seed: u64, done: &AtomicBool) -> u64 {
    let mut dice = Dice(seed);
    let mut looks = 0;
    while !done.load(Ordering::Relaxed) {
        reader.online();
        for _ in 0..dice.below(50) {
            let view = reader.view();
            let many = 1 + dice.below(64);
            (0..many).for_each(|_| look(&view, &mut dice));
            looks += u64::from(many);
            reader.quiescent();
        }
        reader.offline();
        if dice.below(8) == 0 {
            std::thread::sleep(Duration::from_micros(50));
        }
    }
    looks
}

#[test]
fn readers_see_whole_records_of_the_right_tunnel() {
    let (editor, readers) = tables(GUESTS.end, READERS, 99);
    let mut storm = Storm::new(editor);
    let done = AtomicBool::new(false);
    let looks: Vec<u64> = std::thread::scope(|scope| {
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
    assert!(looks.iter().all(|n| *n > 1000) && storm.batches > 1000, "{looks:?}, {}", storm.batches);
}
