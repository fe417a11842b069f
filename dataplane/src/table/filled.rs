//! An index together with what its writer must know to keep it at most half full.
//!
//! Readers hold the index itself; this is the writer's side of it. Growing builds a new index beside the old one, which
//! readers use to the end of their batch. Knows hashes and numbers, not what they stand for.

use std::sync::Arc;

use super::index::Index;

/// The least room of an index.
const LEAST: usize = 8;

/// An index and how full it is.
#[derive(Debug)]
pub(super) struct Filled {
    /// What readers get.
    pub(super) index: Arc<Index>,
    /// Records in it.
    pub(super) live: usize,
    /// Slots in use, by records or by tombstones.
    used: usize,
}

impl Filled {
    /// Empty, with room for `items`.
    pub(super) fn for_items(items: usize) -> Self {
        Self { index: Arc::new(Index::for_items(items.max(LEAST))), used: 0, live: 0 }
    }

    /// Whether `more` records fit.
    pub(super) fn has_room(&self, more: usize) -> bool {
        (self.used + more) * 2 <= self.index.slots()
    }

    /// Room for a batch of `more` records, or else for as many again as there are.
    pub(super) fn wanted(&self, more: usize) -> usize {
        self.live + more.max(self.live)
    }

    /// Publishes a record.
    pub(super) fn insert(&mut self, hash: u64, number: u32) {
        self.used += usize::from(self.index.insert(hash, number));
        self.live += 1;
    }

    /// Takes a record out.
    pub(super) fn remove(&mut self, hash: u64, number: u32) {
        if let Some(freed) = self.index.remove(hash, number) {
            self.used -= freed;
            self.live -= 1;
        }
    }

    /// A copy without tombstones and with room for `items`.
    pub(super) fn grown(&self, items: usize, hash: impl Fn(u32) -> Option<u64>) -> Self {
        let mut new = Self::for_items(items);
        for number in self.index.numbers() {
            if let Some(hash) = hash(number) {
                new.insert(hash, number);
            }
        }
        new
    }

    /// Octets of its slots.
    pub(super) fn memory(&self) -> usize {
        self.index.slots() * size_of::<u32>()
    }
}
