//! Token buckets, a fixed number of them: who asks too often waits, and memory stays where it is.
//!
//! Keys share buckets by a seeded hash, so a stranger cannot aim at somebody else's bucket, nor make new ones.
//! Time is an argument, in milliseconds.

use crate::table::index::Seed;
use crate::update::Rate;

const BUCKETS: usize = 1024;
/// A token in the bucket's own unit: fractions of it trickle in each millisecond.
const TOKEN: u64 = 1000;

#[derive(Clone, Copy, Debug)]
struct Bucket {
    level: u64,
    at: u64,
}

/// Buckets that all have the same rate and depth.
#[derive(Debug)]
pub(crate) struct Buckets {
    buckets: Box<[Bucket]>,
    per_second: u64,
    depth: u64,
    seed: Seed,
}

impl Buckets {
    /// `per_second` tokens a second for each key, at most `burst` at once.
    pub(crate) fn new(per_second: u32, burst: u32, seed: u64) -> Self {
        let depth = u64::from(burst) * TOKEN;
        let buckets = vec![Bucket { level: depth, at: 0 }; BUCKETS].into();
        Self { buckets, per_second: u64::from(per_second), depth, seed: Seed(seed) }
    }

    /// The same by a rate.
    pub(crate) fn of(rate: Rate, seed: u64) -> Self {
        Self::new(rate.per_second, rate.burst, seed)
    }

    /// Full buckets of another rate, shared by the same keys.
    pub(crate) fn with_rate(&self, rate: Rate) -> Self {
        Self::of(rate, self.seed.0)
    }

    /// Takes a token for `key` if there is one.
    pub(crate) fn allow(&mut self, key: u64, now: u64) -> bool {
        let at = self.seed.hash(u128::from(key)) as usize % BUCKETS;
        let bucket = &mut self.buckets[at];
        let gained = now.saturating_sub(bucket.at).saturating_mul(self.per_second);
        bucket.level = bucket.level.saturating_add(gained).min(self.depth);
        bucket.at = now;
        let allowed = bucket.level >= TOKEN;
        bucket.level -= if allowed { TOKEN } else { 0 };
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_the_rate() {
        let mut b = Buckets::new(10, 3, 1);
        let taken: Vec<_> = (0..5).map(|_| b.allow(7, 1000)).collect();
        assert_eq!(taken, [true, true, true, false, false]);
        assert!(!b.allow(7, 1099) && b.allow(7, 1100) && !b.allow(7, 1101));
        assert_eq!((0..10).filter(|_| b.allow(7, 900_000)).count(), 3);
    }

    #[test]
    fn another_key_has_its_own() {
        let mut b = Buckets::new(1, 1, 99);
        assert!(b.allow(1, 0) && !b.allow(1, 0) && b.allow(2, 0));
    }
}
