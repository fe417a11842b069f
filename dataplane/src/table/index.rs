//! From a key to a record's number: open addressing, one writer, any number of readers that never wait.
//!
//! A slot holds a number and six bits of the hash; the key itself lies in the record, so a slot changes by one atomic
//! store and a reader sees the old record or the new one. The six bits spare readers most looks at other keys' records.
//! Slots never move inside an index: growing builds a new one beside it. The hash is seeded, because outer addresses are
//! chosen by strangers.

use crate::memory;
use crate::sync::{AtomicU32, Ordering};

const EMPTY: u32 = 0;
const TOMBSTONE: u32 = 1;
const FIRST: u32 = 2;
/// Bits of a slot that hold the number; the rest holds bits of the hash.
const NUMBER_BITS: u32 = 26;
/// Numbers that fit into a slot.
pub(super) const MOST_NUMBERS: usize = (1 << NUMBER_BITS) - FIRST as usize;

/// What a slot says when record `number` of a key with this hash lies there.
fn slot(hash: u64, number: u32) -> u32 {
    ((hash >> (32 + NUMBER_BITS)) as u32) << NUMBER_BITS | (number + FIRST)
}

/// The number in a slot that is in use.
fn number(slot: u32) -> u32 {
    (slot & ((1 << NUMBER_BITS) - 1)) - FIRST
}

fn is_tagged(slot: u32, hash: u64) -> bool {
    slot >> NUMBER_BITS == (hash >> (32 + NUMBER_BITS)) as u32
}

/// A seeded hash of a 128-bit key.
#[derive(Clone, Copy, Debug)]
pub struct Seed(pub u64);

impl Seed {
    /// Mixes `key` into 64 well-spread bits.
    pub fn hash(self, key: u128) -> u64 {
        let a = (key >> 64) as u64 ^ self.0;
        let b = key as u64 ^ self.0.rotate_left(32) ^ 0x9e37_79b9_7f4a_7c15;
        fold(fold(a ^ 0xa076_1d64_78bd_642f, b ^ 0xe703_7ed1_a0b4_28db), self.0 ^ 0x8ebc_6af0_9c88_c6e3)
    }
}

fn fold(a: u64, b: u64) -> u64 {
    let wide = u128::from(a) * u128::from(b);
    (wide >> 64) as u64 ^ wide as u64
}

/// The slots of one index. The number of slots is a power of two and never changes.
#[derive(Debug)]
pub struct Index {
    slots: Box<[AtomicU32]>,
}

impl Index {
    /// An index that `items` entries fill to at most a half.
    pub fn for_items(items: usize) -> Self {
        let slots = (items * 2).next_power_of_two().max(8);
        Self { slots: memory::fill(slots, |_| AtomicU32::new(EMPTY)) }
    }

    /// How many slots there are.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Loads the slot where the search for this hash begins, so that it is near when it is wanted.
    pub fn touch(&self, hash: u64) -> u32 {
        self.slots[hash as usize & (self.slots.len() - 1)].load(Ordering::Relaxed)
    }

    /// The record that is most likely the one: the first whose slot has the hash's bits.
    pub fn likely(&self, hash: u64) -> Option<u32> {
        self.find(hash, |_| true)
    }

    /// The first record on the key's way for which `is_it` holds.
    pub fn find(&self, hash: u64, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        self.locate(hash, &mut is_it).map(|(_, number)| number)
    }

    fn locate(&self, hash: u64, is_it: &mut impl FnMut(u32) -> bool) -> Option<(usize, u32)> {
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        for _ in 0..=mask {
            match self.slots[at].load(Ordering::Acquire) {
                EMPTY => return None,
                TOMBSTONE => {}
                held if is_tagged(held, hash) && is_it(number(held)) => return Some((at, number(held))),
                _ => {}
            }
            at = (at + 1) & mask;
        }
        None
    }

    /// Publishes record `number`, which must not be in the index. Returns whether a slot that was empty is
    /// now in use (a tombstone may have been taken instead). The caller keeps the index at most half full.
    pub fn insert(&self, hash: u64, number: u32) -> bool {
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        loop {
            let held = self.slots[at].load(Ordering::Relaxed);
            if held == EMPTY || held == TOMBSTONE {
                self.slots[at].store(slot(hash, number), Ordering::Release);
                return held == EMPTY;
            }
            at = (at + 1) & mask;
        }
    }

    /// Puts record `new` where record `old` was, in one step. `false` when `old` is not there.
    pub fn replace(&self, hash: u64, old: u32, new: u32) -> bool {
        let Some((at, _)) = self.locate(hash, &mut |n| n == old) else { return false };
        self.slots[at].store(slot(hash, new), Ordering::Release);
        true
    }

    /// Takes record `old` out. Returns how many slots have become empty by that, `None` when it is not there.
    pub fn remove(&self, hash: u64, old: u32) -> Option<usize> {
        let (mut at, _) = self.locate(hash, &mut |n| n == old)?;
        let mask = self.slots.len() - 1;
        if self.slots[(at + 1) & mask].load(Ordering::Relaxed) != EMPTY {
            self.slots[at].store(TOMBSTONE, Ordering::Release);
            return Some(0);
        }
        // Nobody's way leads past this slot, nor past the tombstones before it.
        let mut freed = 0;
        loop {
            self.slots[at].store(EMPTY, Ordering::Release);
            freed += 1;
            at = at.wrapping_sub(1) & mask;
            if self.slots[at].load(Ordering::Relaxed) != TOMBSTONE {
                return Some(freed);
            }
        }
    }

    /// The numbers of all records, for building a larger index.
    pub fn numbers(&self) -> impl Iterator<Item = u32> + '_ {
        let all = self.slots.iter().map(|s| s.load(Ordering::Relaxed));
        all.filter(|held| *held >= FIRST).map(number)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn finds_what_was_put_in_through_collisions_and_tombstones() {
        let index = Index::for_items(8);
        for n in 0..8 {
            index.insert(3, n);
        }
        assert_eq!(index.remove(3, 4), Some(0));
        assert_eq!(index.find(3, |n| n == 7), Some(7));
        assert_eq!(index.find(3, |n| n == 4), None);
        assert!(!index.insert(3, 40), "the tombstone is taken first");
        assert!(index.replace(3, 40, 41));
        assert_eq!(index.find(3, |n| n == 41), Some(41));
        assert!(index.remove(3, 40).is_none() && !index.replace(3, 40, 1));
        assert_eq!(index.numbers().count(), 8);
        for n in [0, 1, 2, 3, 41, 5, 6] {
            assert_eq!(index.remove(3, n), Some(0));
        }
        assert_eq!(index.remove(3, 7), Some(8), "the last one takes its tombstones with it");
        assert_eq!(index.find(3, |_| true), None);
    }

    #[test]
    fn other_keys_are_told_apart_before_their_records_are_looked_at() {
        let index = Index::for_items(64);
        for n in 0..64 {
            index.insert(u64::from(n) << 58, n);
        }
        let mut looked = Vec::new();
        let found = index.find(17 << 58, |n| {
            looked.push(n);
            n == 17
        });
        assert_eq!((found, looked), (Some(17), vec![17]));
        assert_eq!(index.likely(18 << 58), Some(18));
    }

    #[test]
    fn a_full_index_ends_its_search() {
        let index = Index::for_items(4);
        for n in 0..8 {
            index.insert(0, n);
        }
        assert_eq!(index.find(0, |_| false), None);
    }

    #[test]
    fn the_hash_spreads_neighbouring_prefixes() {
        let seed = Seed(42);
        let mut buckets = [0u32; 256];
        for n in 0..65_536u128 {
            buckets[seed.hash(0x2001_0db8 << 96 | n << 64) as usize & 255] += 1;
        }
        assert!(buckets.iter().all(|b| (150..400).contains(b)), "{buckets:?}");
    }
}
