//! Signs of life of a client (RFC 5572 section 4.6): an ICMPv6 echo through the tunnel now and then, and when to give up.
//!
//! Each wait is somewhere between three quarters of the interval and all of it, so that not all clients of a server ask in
//! the same moment. Three questions in a row without an answer within [`PATIENCE`], and the tunnel is dead. Pure: what
//! the packets look like, and how they are sent, is the caller's business.

use std::time::Duration;

use rand::{Rng, RngExt};

/// How long an answer may take.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// So many questions in a row without an answer.
const MISSES: u32 = 3;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// Send an echo request with this sequence number.
    Ask(u16),
    /// Nobody answers.
    Dead,
}

/// The signs of life of one tunnel.
#[derive(Debug)]
pub struct Keepalive<R> {
    interval: Duration,
    rng: R,
    sequence: u16,
    due: Duration,
    /// The number of the question that is out.
    asked: Option<u16>,
    misses: u32,
}

impl<R: Rng> Keepalive<R> {
    /// The tunnel is up; the first question comes an interval later.
    pub fn new(interval: Duration, rng: R, now: Duration) -> Self {
        let interval = interval.max(Duration::from_secs(1));
        let mut made = Self { interval, rng, sequence: 0, due: now, asked: None, misses: 0 };
        made.due = now + made.wait();
        made
    }

    fn wait(&mut self) -> Duration {
        self.interval * self.rng.random_range(750..=1000) / 1000
    }

    /// When [`Self::poll`] must be called.
    pub fn poll_timeout(&self) -> Duration {
        self.due
    }

    /// What is to be done now, if anything.
    pub fn poll(&mut self, now: Duration) -> Option<Sign> {
        if now < self.due {
            return None;
        }
        if self.asked.take().is_some() {
            self.misses += 1;
            if self.misses >= MISSES {
                return Some(Sign::Dead);
            }
        }
        self.sequence = self.sequence.wrapping_add(1);
        self.asked = Some(self.sequence);
        self.due = now + PATIENCE;
        Some(Sign::Ask(self.sequence))
    }

    /// An answer has come. Only one to the question that is out counts.
    pub fn handle_answer(&mut self, sequence: u16, now: Duration) {
        if self.asked == Some(sequence) {
            (self.asked, self.misses) = (None, 0);
            self.due = now + self.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn keepalive() -> Keepalive<StdRng> {
        Keepalive::new(s(40), StdRng::seed_from_u64(1), s(100))
    }

    #[test]
    fn questions_are_spread_over_the_last_quarter() {
        let (mut keepalive, mut now, mut waits) = (keepalive(), s(100), Vec::new());
        for n in 1..=50 {
            waits.push(keepalive.poll_timeout() - now);
            now = keepalive.poll_timeout();
            assert_eq!(keepalive.poll(now - s(1)), None);
            assert_eq!(keepalive.poll(now), Some(Sign::Ask(n)));
            keepalive.handle_answer(n, now);
        }
        assert!(waits.iter().all(|wait| (s(30)..=s(40)).contains(wait)));
        waits.sort();
        waits.dedup();
        assert!(waits.len() > 30, "they differ");
    }

    #[test]
    fn three_misses_in_a_row_are_death() {
        let mut keepalive = keepalive();
        let mut now = keepalive.poll_timeout();
        assert_eq!(keepalive.poll(now), Some(Sign::Ask(1)));
        now += PATIENCE;
        assert_eq!(keepalive.poll(now), Some(Sign::Ask(2)));
        keepalive.handle_answer(1, now);
        keepalive.handle_answer(2, now);
        assert!(keepalive.poll_timeout() >= now + s(30), "one answer makes all well");
        now = keepalive.poll_timeout();
        for wanted in [Sign::Ask(3), Sign::Ask(4), Sign::Ask(5), Sign::Dead] {
            assert_eq!(keepalive.poll(now), Some(wanted));
            now += PATIENCE;
        }
    }
}
