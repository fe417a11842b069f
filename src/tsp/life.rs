//! How long a tunnel lives: to its lifetime, on as long as its client is heard, and no longer than a few missed signs of
//! life where these were agreed (RFC 5572 section 4.6).
//!
//! Pure: how long a client has been silent is told. What was agreed is not remembered over a restart; then the lifetime
//! alone counts, until the client begins a new session.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::broker::{Fate, LeaseId};

/// The shortest silence that ends a tunnel.
const LEAST_SILENCE: Duration = Duration::from_secs(60);
/// The longest time between two looks.
const LONGEST_ROUND: Duration = Duration::from_secs(10);

/// What was agreed for each tunnel, and how long tunnels last.
#[derive(Debug)]
pub struct Life {
    lasts: Duration,
    agreed: Mutex<HashMap<LeaseId, u32>>,
}

impl Life {
    /// Tunnels last for `lasts` after their client was heard.
    pub fn new(lasts: Duration) -> Self {
        Self { lasts, agreed: Mutex::default() }
    }

    /// How long they last.
    pub fn lasts(&self) -> Duration {
        self.lasts
    }

    /// How often to look.
    pub fn round(&self) -> Duration {
        (self.lasts / 8).clamp(Duration::from_secs(1), LONGEST_ROUND)
    }

    /// The client of this tunnel sends a sign of life every `keepalive` seconds; 0: nothing is agreed.
    pub fn agree(&self, lease: LeaseId, keepalive: u32) {
        let mut agreed = self.agreed.lock().unwrap_or_else(PoisonError::into_inner);
        match keepalive {
            0 => drop(agreed.remove(&lease)),
            _ => drop(agreed.insert(lease, keepalive)),
        }
    }

    /// Forgets what was agreed for tunnels that are not there any more.
    pub fn forget(&self, is_there: impl Fn(LeaseId) -> bool) {
        self.agreed.lock().unwrap_or_else(PoisonError::into_inner).retain(|lease, _| is_there(*lease));
    }

    /// What becomes of a tunnel that has been silent for so long, and would end by itself in `left`.
    pub fn fate(&self, lease: LeaseId, silent: Duration, left: Duration) -> Fate {
        let keepalive = self.agreed.lock().unwrap_or_else(PoisonError::into_inner).get(&lease).copied();
        if keepalive.is_some_and(|seconds| silent > longest_silence(seconds)) {
            return Fate::End;
        }
        // What was heard since the lease was made or renewed last prolongs it; seldom, for each time is written to the disk.
        let since = self.lasts.saturating_sub(left);
        if silent < since && left < self.lasts / 2 {
            Fate::Renew(self.lasts.saturating_sub(silent))
        } else {
            Fate::Stay
        }
    }
}

/// Three signs of life missed, and the time to send them.
fn longest_silence(keepalive: u32) -> Duration {
    (Duration::from_secs(keepalive.into()) * 3 + Duration::from_secs(15)).max(LEAST_SILENCE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: LeaseId = LeaseId(1);

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_silent_tunnel_ends_at_its_lifetime_and_a_heard_one_goes_on() {
        let life = Life::new(s(1000));
        assert_eq!(life.fate(ONE, s(900), s(100)), Fate::Stay, "never heard since it was granted");
        assert_eq!(life.fate(ONE, s(10), s(600)), Fate::Stay, "not yet worth a write");
        assert_eq!(life.fate(ONE, s(10), s(400)), Fate::Renew(s(990)), "counted from when it was heard");
        assert_eq!((life.round(), Life::new(s(1)).round()), (s(10), s(1)));
    }

    #[test]
    fn agreed_signs_of_life_are_missed_three_times() {
        let life = Life::new(s(604_800));
        life.agree(ONE, 30);
        assert_eq!(life.fate(ONE, s(105), s(604_000)), Fate::Stay);
        assert_eq!(life.fate(ONE, s(106), s(604_000)), Fate::End);
        life.agree(ONE, 2);
        assert_eq!(life.fate(ONE, s(60), s(604_000)), Fate::Stay, "one minute at least");
        assert_eq!(life.fate(ONE, s(61), s(604_000)), Fate::End);
        life.forget(|_| false);
        assert_eq!(life.fate(ONE, s(61), s(604_000)), Fate::Stay);
    }
}
