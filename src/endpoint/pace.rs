//! Who may ask how often: token buckets, a fixed number of them (RFC 8085 section 3.1.3 asks whoever probes to go slowly).
//!
//! Keys share buckets by a secret hash, so nobody can aim at somebody else's bucket, and none makes the table larger. Pure:
//! time is an argument. Refuses to know what a key stands for.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

/// Buckets that all have the same rate and depth.
#[derive(Debug)]
pub struct Pace {
    /// How full each was, in millionths of a token, and when.
    buckets: Box<[(u64, Duration)]>,
    per_second: u64,
    depth: u64,
    secret: u64,
}

const TOKEN: u64 = 1_000_000;

impl Pace {
    /// `places` buckets of `per_second` tokens a second each, at most `burst` at once; the secret is drawn by the caller.
    pub fn new(places: usize, per_second: u32, burst: u32, secret: u64) -> Self {
        let depth = u64::from(burst) * TOKEN;
        let buckets = vec![(depth, Duration::ZERO); places.max(1)].into();
        Self { buckets, per_second: u64::from(per_second), depth, secret }
    }

    /// Takes a token for `key`, if there is one.
    pub fn allows(&mut self, now: Duration, key: impl Hash) -> bool {
        let mut hasher = DefaultHasher::new();
        (self.secret, key).hash(&mut hasher);
        let place = hasher.finish() as usize % self.buckets.len();
        let Some((level, at)) = self.buckets.get_mut(place) else { return false };
        let passed = u64::try_from(now.saturating_sub(*at).as_micros()).unwrap_or(u64::MAX);
        let gained = passed.saturating_mul(self.per_second);
        (*level, *at) = (level.saturating_add(gained).min(self.depth), now);
        let allowed = *level >= TOKEN;
        *level -= if allowed { TOKEN } else { 0 };
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_the_rate_for_each_key() {
        let mut pace = Pace::new(1 << 16, 10, 3, 1);
        let ms = Duration::from_millis;
        assert_eq!([(); 5].map(|()| pace.allows(ms(1000), 7)), [true, true, true, false, false]);
        assert!(pace.allows(ms(1000), 8), "another key has its own");
        assert!(!pace.allows(ms(1099), 7) && pace.allows(ms(1100), 7) && !pace.allows(ms(1101), 7));
        assert_eq!((0..10).filter(|_| pace.allows(ms(900_000), 7)).count(), 3);
    }
}
