//! From a prefix to a record's number by its position: a slot for each prefix of one length inside an aggregate.
//!
//! Where prefixes lie side by side, as in a range or a pool, four octets a slot replace a hash index and nothing is
//! compared: the slot *is* the prefix. [`blocks`] finds out where that pays. Knows positions and numbers only.

use std::sync::Arc;

use crate::memory;
use crate::sync::{AtomicU32, Ordering};
use crate::update::mask;

/// Fewer prefixes than this are not worth a block.
pub(super) const LEAST: usize = if cfg!(loom) { 2 } else { 256 };
/// A block has at most two to this power of slots, 64 MiB.
const WIDEST: u8 = 24;
/// A block is made where one slot in so many would be used, so it never takes more than a hash index would.
const SPREAD: usize = 4;
/// A block is given up when fewer than one slot in so many is still used.
const THIN: usize = if cfg!(loom) { 4 } else { 16 };
/// Readers go through the blocks of a length in turn.
const MOST_BLOCKS: usize = 16;

/// The slots of one aggregate; a clone shares them.
#[derive(Clone, Debug)]
pub(super) struct Direct {
    base: u128,
    mask: u128,
    shift: u32,
    slots: Arc<Box<[AtomicU32]>>,
}

impl Direct {
    /// All free.
    pub(super) fn new(block: Block, len: u8) -> Self {
        let shift = 128 - u32::from(len);
        let slots = Arc::new(memory::fill(1 << block.width, |_| AtomicU32::new(0)));
        Self { base: block.first << shift, mask: mask(len - block.width), shift, slots }
    }

    /// How many slots there are.
    pub(super) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Whether so few of the slots are in use that a hash index is better.
    pub(super) fn is_thin(&self, live: usize) -> bool {
        live * THIN < self.slots.len()
    }

    /// What the slot of this prefix says: 0, or a record's number and one. `None` if the prefix lies elsewhere.
    pub(super) fn load(&self, bits: u128) -> Option<u32> {
        Some(self.slot(bits)?.load(Ordering::Acquire))
    }

    /// Lets the prefix lead to a record, or nowhere. `false` if it lies elsewhere.
    pub(super) fn publish(&self, bits: u128, number: Option<u32>) -> bool {
        let Some(slot) = self.slot(bits) else { return false };
        slot.store(number.map_or(0, |n| n + 1), Ordering::Release);
        true
    }

    /// The numbers of all records.
    pub(super) fn numbers(&self) -> impl Iterator<Item = u32> + '_ {
        self.slots.iter().filter_map(|slot| slot.load(Ordering::Relaxed).checked_sub(1))
    }

    fn slot(&self, bits: u128) -> Option<&AtomicU32> {
        if bits & self.mask != self.base {
            return None;
        }
        self.slots.get(((bits ^ self.base) >> self.shift) as usize)
    }
}

/// Two to the `width` prefixes side by side, aligned; prefixes count as numbers, without the bits behind their length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    first: u128,
    width: u8,
}

/// Where direct slots pay, for prefixes in order and all different: the widest blocks that are not too thin.
pub(super) fn blocks(prefixes: &[u128]) -> Vec<Block> {
    let mut found = Vec::new();
    search(prefixes, &mut found);
    // The readers' patience is for the widest.
    found.sort_unstable_by_key(|block| std::cmp::Reverse(block.width));
    found.truncate(MOST_BLOCKS);
    found
}

fn search(prefixes: &[u128], found: &mut Vec<Block>) {
    let (Some(first), Some(last)) = (prefixes.first(), prefixes.last()) else { return };
    if prefixes.len() < LEAST {
        return;
    }
    let width = (128 - (first ^ last).leading_zeros()) as u8;
    if width <= WIDEST && prefixes.len() * SPREAD >= 1 << width {
        return found.push(Block { first: first >> width << width, width });
    }
    let half = prefixes.partition_point(|p| p >> (width - 1) & 1 == 0);
    let (low, high) = prefixes.split_at(half);
    search(low, found);
    search(high, found);
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_one_block_and_strewn_prefixes_are_none() {
        let range: Vec<u128> = (0..5000).map(|n| 0x2_0000 + n).collect();
        assert_eq!(blocks(&range), vec![Block { first: 0x2_0000, width: 13 }]);
        let strewn: Vec<u128> = (0..5000).map(|n| n * 1000).collect();
        assert_eq!(blocks(&strewn), vec![]);
        assert_eq!(blocks(&range[..LEAST - 1]), vec![]);
    }

    #[test]
    fn a_range_across_a_high_bit_is_two_blocks() {
        let range: Vec<u128> = (0..4096).map(|n| (1 << 60) - 2048 + n).collect();
        let low = Block { first: (1 << 60) - 2048, width: 11 };
        assert_eq!(blocks(&range), vec![low, Block { first: 1 << 60, width: 11 }]);
    }

    #[test]
    fn slots_are_found_by_position_and_only_inside() {
        let block = Block { first: 0x2001_0db8_0000_1000, width: 12 };
        let direct = Direct::new(block, 64);
        let bits = 0x2001_0db8_0000_1abc << 64;
        assert!(direct.publish(bits, Some(7)));
        assert_eq!((direct.load(bits), direct.load(bits + (1 << 64))), (Some(8), Some(0)));
        assert_eq!(direct.load(0x2001_0db8_0000_2abc << 64), None);
        assert!(!direct.publish(0x2001_0db8_0000_0fff << 64, Some(1)));
        assert_eq!((direct.numbers().collect::<Vec<_>>(), direct.slots()), (vec![7], 4096));
        assert!(direct.is_thin(255) && !direct.is_thin(256));
        assert!(direct.publish(bits, None));
        assert_eq!(direct.load(bits), Some(0));
    }
}
