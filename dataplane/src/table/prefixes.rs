//! The writer's side of all inner prefixes: which structure each length lives in, and when that changes.
//!
//! Each length in use has a level (`level`): direct slots for what lies close together, a hash index for the rest. Nobody
//! declares pools or ranges: blocks of direct slots are found when a batch brings many prefixes and when a hash index would
//! have to grow. So they follow whatever brings the prefixes, one at a time or all at once, and go when these go. Whatever
//! is rebuilt is built beside the old one, which stays true to the end of the readers' batch.
//!
//! Many lengths cost a probe each; six bits of the hash in each slot keep these probes from reading records. A plain trie
//! of four bits a step was tried with 300 strewn prefixes of each of 37 lengths and not kept: lookups one after the other
//! took from 130 to 460 ns, against 190 ns for the probes. Its nodes lie apart and follow each other, where the probes
//! of all lengths overlap.

use super::direct::{self, Direct, blocks};
use super::filled::Filled;
use super::index::Seed;
use super::level::{Level, prefix_hash};
use super::slab::Slab;
use crate::update::{Ipv6Prefix, mask};

/// Prefixes of one length.
#[derive(Debug)]
struct Length {
    len: u8,
    direct: Vec<(Direct, usize)>,
    sparse: Filled,
    /// Blocks were looked for in vain when so many prefixes were in `sparse`.
    in_vain: usize,
}

/// All inner prefixes. Methods that return a flag say whether readers need a new root.
#[derive(Debug)]
pub(super) struct Prefixes {
    seed: Seed,
    /// Longest first.
    levels: Vec<Length>,
}

impl Prefixes {
    pub(super) fn new(seed: Seed) -> Self {
        Self { seed, levels: Vec::new() }
    }

    /// What readers need.
    pub(super) fn published(&self) -> Vec<Level> {
        let level = |length: &Length| Level {
            len: length.len,
            mask: mask(length.len),
            direct: length.direct.iter().map(|(direct, _)| direct.clone()).collect(),
            sparse: (length.sparse.live > 0).then(|| length.sparse.index.clone()),
        };
        self.levels.iter().map(level).collect()
    }

    /// Octets taken.
    pub(super) fn memory(&self) -> usize {
        let direct = |l: &Length| l.direct.iter().map(|(d, _)| d.slots() * size_of::<u32>()).sum::<usize>();
        self.levels.iter().map(|l| l.sparse.memory() + direct(l)).sum()
    }

    /// The record of exactly this prefix.
    pub(super) fn find(&self, prefix: Ipv6Prefix, slab: &Slab) -> Option<u32> {
        let (bits, len) = (prefix.bits(), prefix.prefix_len());
        let length = self.levels.iter().find(|l| l.len == len)?;
        if let Some(held) = length.direct.iter().find_map(|(direct, _)| direct.load(bits)) {
            return held.checked_sub(1);
        }
        length.sparse.index.find(prefix_hash(self.seed, bits, len), |n| slab.prefix(n) == Some((bits, len)))
    }

    /// Loads the slot where the search for this prefix begins, so that it is near when it is wanted.
    pub(super) fn touch(&self, prefix: Ipv6Prefix) -> u32 {
        let (bits, len) = (prefix.bits(), prefix.prefix_len());
        let Some(length) = self.levels.iter().find(|l| l.len == len) else { return 0 };
        let direct = length.direct.iter().find_map(|(direct, _)| direct.load(bits));
        direct.unwrap_or_else(|| length.sparse.index.touch(prefix_hash(self.seed, bits, len)))
    }

    /// Lets a prefix that leads nowhere lead to record `number`.
    pub(super) fn insert(&mut self, prefix: Ipv6Prefix, number: u32, slab: &Slab) -> bool {
        let len = prefix.prefix_len();
        let (at, changed) = match self.levels.iter().position(|l| l.len == len) {
            Some(at) => (at, false),
            None => (self.add_level(len), true),
        };
        self.levels[at].insert(self.seed, prefix.bits(), number, slab) || changed
    }

    /// Lets a prefix lead from record `old` to record `new` in one step.
    pub(super) fn replace(&self, prefix: Ipv6Prefix, old: u32, new: u32) {
        let (bits, len) = (prefix.bits(), prefix.prefix_len());
        if let Some(length) = self.levels.iter().find(|l| l.len == len) {
            let is_direct = length.direct.iter().any(|(direct, _)| direct.publish(bits, Some(new)));
            if !is_direct {
                length.sparse.index.replace(prefix_hash(self.seed, bits, len), old, new);
            }
        }
    }

    /// Lets a prefix that leads to record `number` lead nowhere.
    pub(super) fn remove(&mut self, prefix: Ipv6Prefix, number: u32, slab: &Slab) -> bool {
        let (bits, len) = (prefix.bits(), prefix.prefix_len());
        let Some(at) = self.levels.iter().position(|l| l.len == len) else { return false };
        let changed = self.levels[at].remove(self.seed, bits, number, slab);
        if self.levels[at].live() > 0 {
            return changed;
        }
        self.levels.remove(at);
        true
    }

    /// Makes room at once for the new prefixes that a large batch brings.
    pub(super) fn expect(&mut self, mut coming: Vec<Ipv6Prefix>, slab: &Slab) -> bool {
        let mut changed = false;
        coming.retain(|prefix| self.find(*prefix, slab).is_none());
        coming.sort_unstable_by_key(|p| (p.prefix_len(), p.bits()));
        for group in coming.chunk_by(|a, b| a.prefix_len() == b.prefix_len()) {
            let len = group[0].prefix_len();
            let at = self.levels.iter().position(|l| l.len == len);
            let held = at.map_or(0, |at| self.levels[at].live());
            // Few beside what is there: growing as usual is cheaper than looking at everything.
            if group.len() < direct::LEAST || group.len() * 4 < held {
                continue;
            }
            let at = match at {
                Some(at) => at,
                None => self.add_level(len),
            };
            let coming: Vec<u128> = group.iter().map(|p| p.bits()).collect();
            self.levels[at].rebuild(self.seed, &coming, slab);
            changed = true;
        }
        changed
    }

    /// A level for this length. Returns where it stands.
    fn add_level(&mut self, len: u8) -> usize {
        let at = self.levels.partition_point(|l| l.len > len);
        self.levels.insert(at, Length::new(len));
        at
    }
}

impl Length {
    fn new(len: u8) -> Self {
        Self { len, direct: Vec::new(), sparse: Filled::for_items(0), in_vain: 0 }
    }

    fn live(&self) -> usize {
        self.sparse.live + self.direct.iter().map(|(_, live)| live).sum::<usize>()
    }

    fn numbers(&self) -> impl Iterator<Item = u32> + '_ {
        self.sparse.index.numbers().chain(self.direct.iter().flat_map(|(direct, _)| direct.numbers()))
    }

    fn insert(&mut self, seed: Seed, bits: u128, number: u32, slab: &Slab) -> bool {
        if let Some((_, live)) = self.direct.iter_mut().find(|(d, _)| d.publish(bits, Some(number))) {
            *live += 1;
            return false;
        }
        if self.sparse.has_room(1) {
            self.sparse.insert(prefix_hash(seed, bits, self.len), number);
            // An index that was empty is not in the root.
            return self.sparse.live == 1;
        }
        self.grow(seed, slab);
        self.insert(seed, bits, number, slab);
        true
    }

    fn remove(&mut self, seed: Seed, bits: u128, number: u32, slab: &Slab) -> bool {
        let Some((direct, live)) = self.direct.iter_mut().find(|(d, _)| d.publish(bits, None)) else {
            self.sparse.remove(prefix_hash(seed, bits, self.len), number);
            return false;
        };
        *live -= 1;
        if !direct.is_thin(*live) {
            return false;
        }
        self.dissolve(seed, slab);
        true
    }

    /// Moves what thin blocks still hold into the hash index.
    fn dissolve(&mut self, seed: Seed, slab: &Slab) {
        let is_thick = |(direct, live): &(Direct, usize)| !direct.is_thin(*live);
        let (thick, thin) = std::mem::take(&mut self.direct).into_iter().partition(is_thick);
        self.direct = thick;
        let thin: Vec<(Direct, usize)> = thin;
        let more = thin.iter().map(|(_, live)| live).sum();
        if !self.sparse.has_room(more) {
            self.enlarge(more, seed, slab);
        }
        for number in thin.iter().flat_map(|(direct, _)| direct.numbers()) {
            if let Some((bits, len)) = slab.prefix(number) {
                self.sparse.insert(prefix_hash(seed, bits, len), number);
            }
        }
    }

    fn enlarge(&mut self, more: usize, seed: Seed, slab: &Slab) {
        let hash = |n| slab.prefix(n).map(|(bits, len)| prefix_hash(seed, bits, len));
        self.sparse = self.sparse.grown(self.sparse.wanted(more), hash);
    }

    /// More room in the hash index, or none needed there because blocks have been found.
    fn grow(&mut self, seed: Seed, slab: &Slab) {
        // Looking for blocks means looking at everything: only when the strewn ones have become many.
        let strewn = self.sparse.live;
        if strewn >= direct::LEAST && strewn * 4 >= self.live() && strewn >= self.in_vain * 4 {
            self.rebuild(seed, &[], slab);
            self.in_vain = self.sparse.live;
        }
        if !self.sparse.has_room(1) {
            self.enlarge(1, seed, slab);
        }
    }

    /// Everything anew: blocks where prefixes lie close together, those that are coming included.
    fn rebuild(&mut self, seed: Seed, coming: &[u128], slab: &Slab) {
        let held: Vec<(u128, u32)> = self.numbers().filter_map(|n| Some((slab.prefix(n)?.0, n))).collect();
        let shift = 128 - u32::from(self.len);
        let position = |bits: u128| bits.checked_shr(shift).unwrap_or(0);
        let mut all: Vec<u128> =
            held.iter().map(|(bits, _)| *bits).chain(coming.iter().copied()).map(position).collect();
        all.sort_unstable();
        all.dedup();
        self.direct = blocks(&all).into_iter().map(|block| (Direct::new(block, self.len), 0)).collect();
        let is_strewn = |bits: &u128| !self.direct.iter().any(|(d, _)| d.load(*bits).is_some());
        let strewn = all.iter().filter(|p| is_strewn(&(**p << shift.min(127)))).count();
        self.sparse = Filled::for_items(strewn + strewn / 8 + 1);
        for (bits, number) in held {
            match self.direct.iter_mut().find(|(d, _)| d.publish(bits, Some(number))) {
                Some((_, live)) => *live += 1,
                None => self.sparse.insert(prefix_hash(seed, bits, self.len), number),
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::table::slab::{Entry, NONE, Owner};
    use crate::update::Holder;

    /// Writes records as the editor does, but never reuses one.
    struct Bench {
        prefixes: Prefixes,
        slab: Slab,
        held: Vec<Ipv6Prefix>,
    }

    impl Bench {
        fn new() -> Self {
            Self { prefixes: Prefixes::new(Seed(3)), slab: Slab::new(100_000), held: Vec::new() }
        }

        fn put(&mut self, bits: u128, len: u8) {
            let prefix = Ipv6Prefix::new(bits.into(), len).unwrap_or(Ipv6Prefix::ALL);
            let number = self.held.len() as u32;
            let owner = Owner::Reserved(Holder::Local);
            assert!(self.slab.write(number, &Entry { bits: prefix.bits(), len, owner, next: NONE }));
            self.prefixes.insert(prefix, number, &self.slab);
            self.held.push(prefix);
        }

        fn take(&mut self, number: usize) {
            assert_eq!(self.prefixes.find(self.held[number], &self.slab), Some(number as u32));
            self.prefixes.remove(self.held[number], number as u32, &self.slab);
        }

        fn shape(&self) -> Vec<(u8, usize, usize)> {
            self.prefixes.levels.iter().map(|l| (l.len, l.direct.len(), l.sparse.live)).collect()
        }
    }

    fn nth(n: u128) -> u128 {
        0x2001_0db8 << 96 | n << 64
    }

    #[test]
    fn a_range_becomes_direct_however_it_comes() {
        let mut one_by_one = Bench::new();
        (0..3000).for_each(|n| one_by_one.put(nth(n), 64));
        let [(64, blocks, strewn)] = one_by_one.shape()[..] else { panic!("{:?}", one_by_one.shape()) };
        assert!(blocks > 0 && strewn < 1500, "{blocks} {strewn}");

        let mut at_once = Bench::new();
        let coming = (0..3000).map(|n| Ipv6Prefix::new(nth(n).into(), 64).unwrap()).collect();
        assert!(at_once.prefixes.expect(coming, &at_once.slab));
        (0..3000).for_each(|n| at_once.put(nth(n), 64));
        assert_eq!(at_once.shape(), vec![(64, 1, 0)]);
        assert!(at_once.prefixes.memory() <= 4096 * 4 + 64);
        (100..3000).for_each(|n| at_once.take(n));
        assert_eq!(at_once.shape(), vec![(64, 0, 100)], "a thin block is given up");
        (0..100).for_each(|n| at_once.take(n));
        assert_eq!(at_once.shape(), vec![]);
    }

    #[test]
    fn strewn_prefixes_stay_in_the_hash_index() {
        let mut bench = Bench::new();
        (0..3000).for_each(|n| bench.put(nth(n * 1009), 64));
        assert_eq!(bench.shape(), vec![(64, 0, 3000)]);
    }
}
