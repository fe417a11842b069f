//! How long a tunnel lives: to its lifetime, on as long as its client is heard, and no longer than a few missed signs of
//! life where these were agreed (RFC 5572 section 4.6). A tunnel of nobody in particular lives only by its signs of life.
//!
//! Pure: how long a client has been silent is told, and what was agreed stands with the lease, which outlives a restart.

use std::time::Duration;

use crate::broker::{Fate, Hearing, Lease};

/// The shortest silence that ends a tunnel.
const LEAST_SILENCE: Duration = Duration::from_secs(60);
/// An anonymous tunnel through which nothing has ever come ends after this: whoever asked for it may not even be there.
const NEVER_HEARD: Duration = Duration::from_secs(120);
/// Signs of life of an anonymous client with whom none were agreed.
const ANONYMOUS_KEEPALIVE: u32 = 30;
/// After so long a silence a client may have gone, and its address be somebody else's.
const GONE: Duration = Duration::from_secs(120);
/// The longest time between two looks.
const LONGEST_ROUND: Duration = Duration::from_secs(10);

/// How long tunnels last.
#[derive(Clone, Copy, Debug)]
pub struct Life {
    lasts: Duration,
}

impl Life {
    /// Tunnels last for `lasts` after their client was heard.
    pub fn new(lasts: Duration) -> Self {
        Self { lasts }
    }

    /// How long they last.
    pub fn lasts(&self) -> Duration {
        self.lasts
    }

    /// How often to look.
    pub fn round(&self) -> Duration {
        (self.lasts / 8).clamp(Duration::from_secs(1), LONGEST_ROUND)
    }

    /// What becomes of a tunnel that has been silent for so long, and would end by itself in `left`; and whether its client is
    /// there. `heard`: whether it ever was, since the router has started.
    pub fn look(&self, lease: &Lease, heard: bool, silent: Duration, left: Duration) -> (Fate, Hearing) {
        let hearing = match (silent > GONE.max(longest_silence(lease.told.keepalive)), heard) {
            (true, _) => Hearing::Silent,
            (false, true) => Hearing::Lately,
            (false, false) => Hearing::NotYet,
        };
        if longest(lease, heard).is_some_and(|most| silent > most) {
            return (Fate::End, hearing);
        }
        // What was heard since the lease was made or renewed last prolongs it; seldom, for each time is written to the disk.
        let since = self.lasts.saturating_sub(left);
        if silent < since && left < self.lasts / 2 {
            (Fate::Renew(self.lasts.saturating_sub(silent)), hearing)
        } else {
            (Fate::Stay, hearing)
        }
    }
}

/// The longest silence before a tunnel ends; `None`: only its lifetime counts.
fn longest(lease: &Lease, heard: bool) -> Option<Duration> {
    let (keepalive, nobody) = (lease.told.keepalive, lease.grant.user.is_anonymous());
    match (keepalive, nobody) {
        (0, false) => None,
        (seconds, false) => Some(longest_silence(seconds)),
        (seconds, true) => {
            let seconds = if seconds == 0 { ANONYMOUS_KEEPALIVE } else { seconds };
            let first = NEVER_HEARD.max(Duration::from_secs(u64::from(seconds) + 15));
            let most = longest_silence(seconds);
            Some(if heard { most } else { most.min(first) })
        }
    }
}

/// Three signs of life missed, and the time to send them.
fn longest_silence(keepalive: u32) -> Duration {
    (Duration::from_secs(keepalive.into()) * 3 + Duration::from_secs(15)).max(LEAST_SILENCE)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use sixway_dataplane::update::Outer;

    use super::*;
    use crate::broker::{Grant, LeaseId, Protocol, Time, Told, UserName};

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn lease(user: &str, keepalive: u32) -> Lease {
        let grant = Grant {
            lease: LeaseId(1),
            user: UserName::parse(user).unwrap(),
            protocol: Protocol::Tsp,
            name: "x@tsp".into(),
            outer: Outer::Proto41 { local: None, remote: Ipv4Addr::new(192, 0, 2, 9) },
            pair: None,
            networks: Vec::new(),
            mtu: 1280,
            expires: Some(Time(1)),
        };
        let told = Told { keepalive, claimed: None };
        Lease { grant, protocol: Protocol::Tsp, granted: Time(0), told }
    }

    fn fate(life: Life, lease: &Lease, silent: u64, left: u64) -> Fate {
        life.look(lease, true, s(silent), s(left)).0
    }

    #[test]
    fn a_silent_tunnel_ends_at_its_lifetime_and_a_heard_one_goes_on() {
        let (life, alice) = (Life::new(s(1000)), lease("alice", 0));
        assert_eq!(fate(life, &alice, 900, 100), Fate::Stay, "never heard since it was granted");
        assert_eq!(fate(life, &alice, 10, 600), Fate::Stay, "not yet worth a write");
        assert_eq!(fate(life, &alice, 10, 400), Fate::Renew(s(990)), "counted from when it was heard");
        assert_eq!((life.round(), Life::new(s(1)).round()), (s(10), s(1)));
    }

    #[test]
    fn agreed_signs_of_life_are_missed_three_times() {
        let life = Life::new(s(604_800));
        assert_eq!(fate(life, &lease("alice", 30), 105, 604_000), Fate::Stay);
        assert_eq!(fate(life, &lease("alice", 30), 106, 604_000), Fate::End);
        assert_eq!(fate(life, &lease("alice", 2), 60, 604_000), Fate::Stay, "one minute at least");
        assert_eq!(fate(life, &lease("alice", 2), 61, 604_000), Fate::End);
        assert_eq!(fate(life, &lease("alice", 0), 600_800, 4_000), Fate::Stay, "none were agreed");
    }

    #[test]
    fn nobody_s_tunnel_lives_by_its_signs_of_life_whether_they_were_agreed_or_not() {
        let (life, name) = (Life::new(s(604_800)), "anonymous@192.0.2.9");
        assert_eq!(fate(life, &lease(name, 0), 105, 604_000), Fate::Stay);
        assert_eq!(fate(life, &lease(name, 0), 106, 604_000), Fate::End);
        let rare = lease(name, 100);
        assert_eq!(life.look(&rare, true, s(300), s(604_000)), (Fate::Stay, Hearing::Lately));
        assert_eq!(life.look(&rare, false, s(120), s(604_000)).0, Fate::Stay);
        assert_eq!(life.look(&rare, false, s(121), s(604_000)).0, Fate::End, "nothing has ever come");
    }

    #[test]
    fn a_client_is_gone_after_two_minutes_or_its_signs_of_life() {
        let life = Life::new(s(604_800));
        let hearing = |keepalive, heard, silent| life.look(&lease("a", keepalive), heard, s(silent), s(9)).1;
        assert_eq!(hearing(0, true, 120), Hearing::Lately);
        assert_eq!(hearing(0, true, 121), Hearing::Silent);
        assert_eq!(hearing(0, false, 9), Hearing::NotYet);
        assert_eq!(hearing(60, true, 195), Hearing::Lately, "as agreed");
    }
}
