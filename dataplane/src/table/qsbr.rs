//! When may a record be written again? After every reader has been seen between two batches.
//!
//! Quiescent-state based reclamation: each reader says once a batch that it holds nothing
//! ([`Quiescence::quiescent`]); the writer stamps what it took out of the tables with an epoch and reuses it
//! once all readers have passed that epoch. Reading costs nothing; a sleeping reader is *offline* and never
//! waited for. Knows nothing of tunnels.

use crossbeam::utils::CachePadded;

use crate::sync::{AtomicU64, Ordering, fence};

const OFFLINE: u64 = u64::MAX;

/// The epochs of one writer and a fixed number of readers.
#[derive(Debug)]
pub struct Quiescence {
    epoch: CachePadded<AtomicU64>,
    seen: Box<[CachePadded<AtomicU64>]>,
}

impl Quiescence {
    /// For `readers` readers, all offline.
    pub fn new(readers: usize) -> Self {
        let seen = (0..readers).map(|_| CachePadded::new(AtomicU64::new(OFFLINE))).collect();
        Self { epoch: CachePadded::new(AtomicU64::new(1)), seen }
    }

    /// Reader `who` starts to read; pairs with [`Self::offline`].
    pub fn online(&self, who: usize) {
        let now = self.epoch.load(Ordering::Acquire);
        // Release: the writer may see this store in the place of the one in `offline`, and what we read before that
        // must be over for it as well.
        self.seen[who].store(now, Ordering::Release);
        // Either the writer sees us online, or we see what it has taken out: without the full fence on both
        // sides our first table reads could pass the store above.
        fence(Ordering::SeqCst);
    }

    /// Reader `who` holds no record from before this call.
    pub fn quiescent(&self, who: usize) {
        let now = self.epoch.load(Ordering::Acquire);
        if self.seen[who].load(Ordering::Relaxed) != now {
            self.seen[who].store(now, Ordering::Release);
        }
    }

    /// Reader `who` holds nothing and will not read before it calls [`Self::online`].
    pub fn offline(&self, who: usize) {
        self.seen[who].store(OFFLINE, Ordering::Release);
    }

    /// The writer has taken something out of the tables; returns the stamp to keep with it.
    pub fn retire(&self) -> u64 {
        self.epoch.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// The highest stamp that every reader has passed: what carries it or a lower one may be reused.
    pub fn passed(&self) -> u64 {
        fence(Ordering::SeqCst);
        let now = self.epoch.load(Ordering::Relaxed);
        self.seen.iter().map(|s| s.load(Ordering::Acquire)).fold(now, u64::min)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_reader_holds_reclamation_back_until_it_is_quiescent() {
        let q = Quiescence::new(2);
        q.online(0);
        let stamp = q.retire();
        assert!(q.passed() < stamp);
        q.quiescent(0);
        assert!(q.passed() >= stamp);
    }

    #[test]
    fn an_offline_reader_is_not_waited_for() {
        let q = Quiescence::new(2);
        q.online(1);
        q.offline(1);
        let stamp = q.retire();
        assert!(q.passed() >= stamp);
    }
}
