//! How much is said to strangers: octets for each address, so that forged questions do not make a flood of answers.
//!
//! A fixed number of buckets, shared by a seeded hash: no flood of addresses takes memory, and nobody knows who shares his.
//! Pure.

use std::hash::{BuildHasher, RandomState};
use std::net::Ipv4Addr;
use std::time::Duration;

/// Octets a second to one address: a hundred logins or so.
const RATE: u64 = 16 << 10;
/// Octets at once.
const DEPTH: u64 = 64 << 10;
const BUCKETS: usize = 16_384;
/// What a datagram has around it: the headers of IPv4 and UDP.
const AROUND: u64 = 28;

/// Who was said how much.
#[derive(Debug)]
pub struct Allowance {
    /// What is spent and has not grown again, and when that was true.
    buckets: Box<[(u64, Duration)]>,
    seed: RandomState,
}

impl Default for Allowance {
    fn default() -> Self {
        Self { buckets: vec![(0, Duration::ZERO); BUCKETS].into(), seed: RandomState::new() }
    }
}

impl Allowance {
    /// Whether a payload of `octets` may be said to `whom` now; if so, it counts.
    pub fn take(&mut self, whom: Ipv4Addr, octets: usize, now: Duration) -> bool {
        let at = self.seed.hash_one(whom) as usize % BUCKETS;
        let (spent, then) = self.buckets[at];
        let millis = u64::try_from(now.saturating_sub(then).as_millis()).unwrap_or(u64::MAX);
        let spent = spent.saturating_sub(millis.saturating_mul(RATE) / 1000);
        let after = spent + octets as u64 + AROUND;
        let allowed = after <= DEPTH;
        self.buckets[at] = (if allowed { after } else { spent }, now);
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_said_so_much_and_later_more() {
        let mut allowance = Allowance::default();
        let s = Duration::from_secs(1);
        let mut said = |from: u32, now| allowance.take(from.into(), 1000, now);
        let at_once = (0..1000).filter(|_| said(7, s)).count();
        assert_eq!(at_once, 63);
        assert!((8..12).any(|other| (0..63).all(|_| said(other, s))), "others have their own");
        assert_eq!((0..1000).filter(|_| said(7, s * 2)).count(), 16);
        assert_eq!((0..1000).filter(|_| said(7, s * 100)).count(), 63);
    }
}
