//! When a client says a message again, and when it gives up (RFC 8415 sections 7.6 and 15). Pure: times are since some
//! moment of the caller's, randomness is the caller's.

use std::time::Duration;

use rand::{Rng, RngExt};

/// What holds for one kind of message. Zero is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// The first wait (IRT).
    pub first: Duration,
    /// The longest wait (MRT).
    pub longest: Duration,
    /// How often it is said (MRC).
    pub times: u32,
    /// For how long it is said (MRD).
    pub lasting: Duration,
}

impl Pace {
    const fn new(first: u64, longest: u64, times: u32) -> Self {
        let (first, longest) = (Duration::from_secs(first), Duration::from_secs(longest));
        Self { first, longest, times, lasting: Duration::ZERO }
    }

    /// Solicit; its longest wait may be changed by servers (RFC 8415 section 21.24).
    pub const SOLICIT: Self = Self::new(1, 3600, 0);
    /// Request.
    pub const REQUEST: Self = Self::new(1, 30, 10);
    /// Renew, until T2.
    pub const RENEW: Self = Self::new(10, 600, 0);
    /// Rebind, until nothing is valid any more.
    pub const REBIND: Self = Self::new(10, 600, 0);
    /// Confirm, and Rebind by a client who may be on another link now (RFC 8415 section 18.2.12).
    pub const REJOIN: Self = Self { lasting: Duration::from_secs(10), ..Self::new(1, 4, 0) };
    /// Information-request; its longest wait may be changed by servers (RFC 8415 section 21.25).
    pub const INQUIRE: Self = Self::new(1, 3600, 0);
    /// Release.
    pub const RELEASE: Self = Self::new(1, 0, 4);
}

/// How long a client waits before its first message on a link, at most (SOL_MAX_DELAY, CNF_MAX_DELAY, INF_MAX_DELAY).
pub const FIRST_DELAY: Duration = Duration::from_secs(1);

/// A message that is out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retransmission {
    pace: Pace,
    began: Duration,
    said: u32,
    wait: Duration,
    due: Duration,
}

impl Retransmission {
    /// It is said now for the first time. `only_later`: the first wait is never shorter than [`Pace::first`], as Solicit
    /// demands.
    pub fn new(pace: Pace, only_later: bool, now: Duration, rng: &mut impl Rng) -> Self {
        let spread = if only_later { rng.random_range(1..=100) } else { rng.random_range(-100..=100) };
        let wait = vary(pace.first, pace.first, spread);
        Self { pace, began: now, said: 1, wait, due: now + wait }
    }

    /// How often it has been said.
    pub fn said(&self) -> u32 {
        self.said
    }

    /// How long ago it was said first, in hundredths of a second, as far as its option can hold (RFC 8415 section 21.9).
    pub fn elapsed(&self, now: Duration) -> u16 {
        u16::try_from(now.saturating_sub(self.began).as_millis() / 10).unwrap_or(u16::MAX)
    }

    /// When something must be done.
    pub fn due(&self) -> Duration {
        self.ends().map_or(self.due, |ends| ends.min(self.due))
    }

    /// It is to be said no longer than until then.
    pub fn end_at(&mut self, at: Duration) {
        self.pace.lasting = at.saturating_sub(self.began).max(Duration::from_millis(1));
    }

    /// From now on no wait is longer than this.
    pub fn slow_down(&mut self, longest: Duration) {
        self.pace.longest = longest;
    }

    fn ends(&self) -> Option<Duration> {
        (!self.pace.lasting.is_zero()).then(|| self.began + self.pace.lasting)
    }

    /// The time has come: true if it is to be said again, false if it has failed.
    pub fn again(&mut self, now: Duration, rng: &mut impl Rng) -> bool {
        let over = self.ends().is_some_and(|ends| ends <= now);
        if over || self.pace.times != 0 && self.said >= self.pace.times {
            return false;
        }
        self.said = self.said.saturating_add(1);
        let spread = rng.random_range(-100..=100);
        let (last, longest) = (self.wait, self.pace.longest);
        let doubled = vary(last * 2, last, spread);
        let bounded = !longest.is_zero() && doubled > longest;
        self.wait = if bounded { vary(longest, longest, spread) } else { doubled };
        self.due = now + self.wait;
        true
    }
}

/// `base` and `thousandths` of `part`: RAND is a tenth at most, either way.
fn vary(base: Duration, part: Duration, thousandths: i32) -> Duration {
    let more = part * thousandths.unsigned_abs() / 1000;
    if thousandths < 0 { base.saturating_sub(more) } else { base + more }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    fn waits(pace: Pace, only_later: bool, seed: u64) -> Vec<Duration> {
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut now, mut waits) = (Duration::from_secs(7), Vec::new());
        let mut out = Retransmission::new(pace, only_later, now, &mut rng);
        while waits.len() < 12 {
            waits.push(out.due() - now);
            now = out.due();
            if !out.again(now, &mut rng) {
                break;
            }
        }
        waits
    }

    /// RFC: V71 (RFC 8415 section 15)
    #[test]
    fn waits_double_within_a_tenth_up_to_the_longest() {
        for seed in 0..200 {
            let all = waits(Pace::REQUEST, false, seed);
            assert_eq!(all.len(), 10, "it is said ten times");
            assert!((900..=1100).contains(&all[0].as_millis()));
            for pair in all.windows(2) {
                let ratio = pair[1].as_secs_f64() / pair[0].as_secs_f64();
                assert!((1.899..=2.101).contains(&ratio) || (27.0..=33.0).contains(&pair[1].as_secs_f64()));
            }
            let last = all[9].as_secs_f64();
            assert!((27.0..=33.0).contains(&last), "{last}");
        }
    }

    /// RFC: V71 (RFC 8415 section 18.2.1)
    #[test]
    fn the_first_wait_of_a_solicit_is_longer_than_a_second() {
        for seed in 0..200 {
            let first = waits(Pace::SOLICIT, true, seed)[0];
            assert!(first > Duration::from_secs(1) && first <= Duration::from_millis(1100), "{first:?}");
        }
    }

    /// RFC: V71 (RFC 8415 section 15)
    #[test]
    fn a_message_with_an_end_fails_then_and_not_later() {
        let mut rng = StdRng::seed_from_u64(1);
        let start = Duration::from_secs(100);
        let mut out = Retransmission::new(Pace::RENEW, false, start, &mut rng);
        out.end_at(start + Duration::from_secs(25));
        assert!(out.again(out.due(), &mut rng));
        assert_eq!(out.due(), start + Duration::from_secs(25));
        assert!(!out.again(out.due(), &mut rng));
        assert_eq!((out.said(), out.elapsed(start + Duration::from_secs(25))), (2, 2500));
        assert_eq!(out.elapsed(start + Duration::from_secs(100_000)), u16::MAX);
        assert_eq!(waits(Pace::RELEASE, false, 3).len(), 4);
    }
}
