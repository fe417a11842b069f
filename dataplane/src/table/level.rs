//! All prefixes of one length, as readers see them: direct slots where they lie close together, a hash index elsewhere.
//!
//! A prefix inside a block of direct slots is there and nowhere else, so an empty slot ends the search in this length.
//! Which blocks there are is the writer's decision (`prefixes`); this only looks.

use std::sync::Arc;

use super::direct::Direct;
use super::index::{Index, Seed};
use super::slab::Slab;

/// What finds the prefixes of one length.
#[derive(Clone, Debug)]
pub(super) struct Level {
    /// The length.
    pub(super) len: u8,
    /// Its netmask.
    pub(super) mask: u128,
    /// Where they lie close together.
    pub(super) direct: Vec<Direct>,
    /// All others; `None` while there are none.
    pub(super) sparse: Option<Arc<Index>>,
}

impl Level {
    /// The record of the prefix of this length around `addr`.
    pub(super) fn find(&self, addr: u128, seed: Seed, slab: &Slab) -> Option<u32> {
        let bits = addr & self.mask;
        if let Some(held) = self.direct.iter().find_map(|direct| direct.load(bits)) {
            return held.checked_sub(1);
        }
        let wanted = Some((bits, self.len));
        self.sparse.as_ref()?.find(prefix_hash(seed, bits, self.len), |n| slab.prefix(n) == wanted)
    }

    /// Loads the slot where the search for `addr` begins, so that it is near when it is wanted.
    pub(super) fn touch(&self, addr: u128, seed: Seed) -> u32 {
        let bits = addr & self.mask;
        if let Some(held) = self.direct.iter().find_map(|direct| direct.load(bits)) {
            return held;
        }
        self.sparse.as_ref().map_or(0, |sparse| sparse.touch(prefix_hash(seed, bits, self.len)))
    }

    /// The record that [`Self::find`] will most likely look at, without looking at it.
    pub(super) fn likely(&self, addr: u128, seed: Seed) -> Option<u32> {
        let bits = addr & self.mask;
        if let Some(held) = self.direct.iter().find_map(|direct| direct.load(bits)) {
            return held.checked_sub(1);
        }
        self.sparse.as_ref()?.likely(prefix_hash(seed, bits, self.len))
    }
}

/// The hash of a prefix: the same bits with another length have another.
pub(super) fn prefix_hash(seed: Seed, bits: u128, len: u8) -> u64 {
    Seed(seed.0 ^ u64::from(len).wrapping_mul(0xff51_afd7_ed55_8ccd)).hash(bits)
}
