//! Who is behind which inner prefix and which outer endpoint: read by every worker, written by one editor.
//!
//! Inner prefixes: a level for each prefix length, longest first (longest match, RFC 4291 section 2.3), with direct slots
//! where prefixes lie close together and a hash index elsewhere. Outer endpoints: one more index. All lead to records in
//! [`slab`]; [`qsbr`] says when those may be reused. Readers take no lock and do no system call. Refuses to know packets,
//! sockets and time.

mod direct;
pub mod editor;
mod filled;
pub mod index;
mod level;
mod ours;
pub mod owners;
mod prefixes;
pub mod qsbr;
pub mod slab;
mod stage;

use std::hint::black_box;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, OnceLock};

use crate::meter::Meters;
use crate::sync::{AtomicU32, Held, Ordering, Swap};
use crate::update::{Policy, TunnelId};
use index::{Index, MOST_NUMBERS, Seed};
use level::Level;
use ours::Ours;
use qsbr::Quiescence;
use slab::{Entry, NONE, OuterKey, Owner, Path, Slab};

/// What changes rarely and as a whole: which indexes there are, and the policy.
#[derive(Debug)]
struct Root {
    levels: Vec<Level>,
    outer: Arc<Index>,
    policy: Policy,
}

/// Head record of each tunnel by its number, plus one; 0 is nobody.
#[derive(Debug)]
struct ById(Box<[OnceLock<Box<[AtomicU32]>>]>);

/// Numbers of one chunk; each is an object to loom, which can follow only a few.
const ID_CHUNK: usize = if cfg!(loom) { 2 } else { 16_384 };

impl ById {
    fn new(capacity: u32) -> Self {
        Self((0..(capacity as usize).div_ceil(ID_CHUNK)).map(|_| OnceLock::new()).collect())
    }

    fn head(&self, id: TunnelId) -> Option<u32> {
        let chunk = self.0.get(id.0 as usize / ID_CHUNK)?.get()?;
        chunk.get(id.0 as usize % ID_CHUNK)?.load(Ordering::Acquire).checked_sub(1)
    }

    fn publish(&self, id: TunnelId, head: Option<u32>) {
        let Some(chunk) = self.0.get(id.0 as usize / ID_CHUNK) else { return };
        let chunk = chunk.get_or_init(|| (0..ID_CHUNK).map(|_| AtomicU32::new(0)).collect());
        chunk[id.0 as usize % ID_CHUNK].store(head.map_or(0, |h| h + 1), Ordering::Release);
    }

    fn allocated(&self) -> usize {
        self.0.iter().filter(|c| c.get().is_some()).count() * ID_CHUNK * size_of::<AtomicU32>()
    }
}

/// What the editor and the readers share.
#[derive(Debug)]
struct Shared {
    root: Arc<Swap<Root>>,
    slab: Slab,
    by_id: ById,
    quiescence: Quiescence,
    meters: Meters,
    ours: Ours,
    seed: Seed,
}

/// Makes an empty table for up to `capacity` tunnels, its one editor and `readers` readers.
///
/// `seed` should be random: it keeps strangers from choosing colliding outer addresses.
pub fn tables(capacity: u32, readers: usize, seed: u64) -> (editor::Editor, Vec<Reader>) {
    let policy = Policy::default();
    let root = Root { levels: Vec::new(), outer: Arc::new(Index::for_items(8)), policy };
    let shared = Arc::new(Shared {
        root: Arc::new(Swap::from_pointee(root)),
        // Room, not memory: a batch that changes every tunnel holds old, emptied and new records at once.
        slab: Slab::new((capacity as usize * 8 + 4096).min(MOST_NUMBERS)),
        by_id: ById::new(capacity),
        quiescence: Quiescence::new(readers),
        meters: Meters::new(capacity),
        ours: Ours::new(capacity),
        seed: Seed(seed),
    });
    let readers = (0..readers).map(|who| Reader::new(shared.clone(), who)).collect();
    (editor::Editor::new(shared, capacity), readers)
}

/// One worker's access to the tables.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    root: Held<Root>,
    who: usize,
}

impl Reader {
    fn new(shared: Arc<Shared>, who: usize) -> Self {
        let root = Held::new(shared.root.clone());
        Self { shared, root, who }
    }

    /// Wakes up: from now on the editor waits for this reader.
    pub fn online(&mut self) {
        self.shared.quiescence.online(self.who);
    }

    /// Goes to sleep: holds nothing, and is not waited for.
    pub fn offline(&mut self) {
        self.shared.quiescence.offline(self.who);
    }

    /// Between two batches: nothing that an earlier view gave is still held.
    pub fn quiescent(&mut self) {
        self.shared.quiescence.quiescent(self.who);
    }

    /// The tables as they are now, for one batch. Between [`Self::online`] and [`Self::offline`] only.
    pub fn view(&mut self) -> View<'_> {
        View { root: self.root.load(), shared: &self.shared }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.shared.quiescence.offline(self.who);
    }
}

/// Most addresses that [`View::fetch`] takes: what it loads for them must stay in the nearest cache until it is used.
pub const FETCH: usize = 64;

/// The tables during one batch.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    root: &'a Root,
    shared: &'a Shared,
}

impl View<'_> {
    /// The longest prefix that `addr` lies in.
    pub fn longest_match(&self, addr: Ipv6Addr) -> Option<Entry> {
        self.shared.slab.read(self.longest(addr.into())?)
    }

    fn longest(&self, addr: u128) -> Option<u32> {
        let (seed, slab) = (self.shared.seed, &self.shared.slab);
        self.root.levels.iter().find_map(|level| level.find(addr, seed, slab))
    }

    /// What [`Self::longest`] will most likely find, without a look at any record.
    fn likely(&self, addr: u128) -> Option<u32> {
        self.root.levels.iter().find_map(|level| level.likely(addr, self.shared.seed))
    }

    /// Whether the tables are so large that [`Self::fetch`] pays.
    pub fn is_large(&self) -> bool {
        self.shared.slab.is_large()
    }

    /// Loads what [`Self::longest_match`] will look at for each of up to [`FETCH`] addresses (more are left alone), so
    /// that their misses in the caches overlap instead of following each other. Changes no answer.
    pub fn fetch(&self, addrs: &[u128]) {
        self.fetch_numbers(addrs, &mut [NONE; FETCH]);
    }

    /// Besides, says which records are likely the answers; [`NONE`] is certain.
    fn fetch_numbers(&self, addrs: &[u128], numbers: &mut [u32; FETCH]) {
        let addrs = &addrs[..addrs.len().min(FETCH)];
        let seed = self.shared.seed;
        // The slots of all first. Nothing depends on what is loaded, so the processor goes on to the next at once.
        let mut seen = 0;
        for level in &self.root.levels {
            seen = addrs.iter().fold(seen, |seen, addr| seen ^ level.touch(*addr, seed));
        }
        // The optimiser must not find out that nobody wants them.
        black_box(seen);
        for (number, addr) in numbers.iter_mut().zip(addrs) {
            *number = self.likely(*addr).unwrap_or(NONE);
        }
        let slab = &self.shared.slab;
        black_box(numbers[..addrs.len()].iter().fold(0, |seen, number| seen ^ slab.touch(*number)));
    }

    /// [`Self::longest_match`] of many addresses at once; `each` is given the place of the address and its answer.
    pub fn longest_matches(&self, addrs: &[Ipv6Addr], mut each: impl FnMut(usize, Option<Entry>)) {
        let mut wanted = [0; FETCH];
        let mut numbers = [NONE; FETCH];
        for (n, chunk) in addrs.chunks(FETCH).enumerate() {
            for (wanted, addr) in wanted.iter_mut().zip(chunk) {
                *wanted = (*addr).into();
            }
            self.fetch_numbers(&wanted[..chunk.len()], &mut numbers);
            for (m, (addr, number)) in chunk.iter().zip(numbers).enumerate() {
                each(n * FETCH + m, self.entry_of(*addr, number));
            }
        }
    }

    /// The record `number` if it is about a prefix around `addr`; else its hash only looked like it.
    fn entry_of(&self, addr: Ipv6Addr, number: u32) -> Option<Entry> {
        if number == NONE {
            return None;
        }
        let entry = self.shared.slab.read(number);
        if entry.is_some_and(|e| e.prefix().is_some_and(|p| p.contains(addr))) {
            return entry;
        }
        self.longest_match(addr)
    }

    /// The tunnel whose peer sends from this endpoint to our address `local`.
    pub fn by_outer(&self, key: OuterKey, local: Ipv4Addr) -> Option<Path> {
        let mut found = None;
        self.root.outer.find(self.shared.seed.hash(key.bits()), |n| {
            let path = self.shared.slab.read(n).and_then(|e| e.owner.path());
            found = path.filter(|p| p.is_sender(key, local));
            found.is_some()
        });
        found
    }

    /// The tunnel with this number.
    pub fn tunnel(&self, id: TunnelId) -> Option<Path> {
        let head = self.shared.by_id.head(id)?;
        self.shared.slab.read(head)?.owner.path()
    }

    /// Our own address in a tunnel, where there is one.
    pub fn ours(&self, id: TunnelId) -> Option<Ipv6Addr> {
        self.shared.ours.of(id)
    }

    /// What of tunnels' limits is left.
    pub(crate) fn meters(&self) -> &Meters {
        &self.shared.meters
    }

    /// What holds for all tunnels.
    pub fn policy(&self) -> &Policy {
        &self.root.policy
    }
}

impl Owner {
    /// The tunnel, if it is one.
    pub fn path(self) -> Option<Path> {
        match self {
            Self::Reserved(_) => None,
            Self::Tunnel(path) => Some(path),
        }
    }
}
