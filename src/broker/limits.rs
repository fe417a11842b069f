//! How much one client may ask for: connections, attempts to log in, tunnels.
//!
//! A reconnect storm must pass, guessing of secrets must not: connections are limited to each address by a generous
//! rate and a number, failed logins to each address and each account by a small rate. Rates are kept in a fixed number of
//! buckets chosen by a seeded hash, so no flood of addresses takes memory, and nobody knows who shares a bucket. Times are
//! on any clock that only runs forward.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::Ipv4Addr;
use std::time::Duration;

use super::{Refusal, Time};

/// `[limits]`: how much one client may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Leased tunnels of one account at the same time; the newest ones stay.
    pub tunnels_per_account: u32,
    /// Leased tunnels to one outer address at the same time.
    pub tunnels_per_address: u32,
    /// Leased tunnels of clients that did not say who they are, in all.
    pub anonymous_tunnels: u32,
    /// The same to one outer address; who comes later gets none.
    pub anonymous_per_address: u32,
    /// Control connections at the same time, in all.
    pub connections: u32,
    /// Control connections from one address at the same time.
    pub connections_per_address: u32,
    /// New control connections from one address in a minute; as many at once after a pause.
    pub connects_per_minute: u32,
    /// Failed logins from one address, and to one account, in a minute; as many at once after a pause.
    pub failed_logins_per_minute: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            tunnels_per_account: 1,
            tunnels_per_address: 256,
            anonymous_tunnels: 1024,
            anonymous_per_address: 4,
            connections: 65_536,
            connections_per_address: 256,
            connects_per_minute: 600,
            failed_logins_per_minute: 20,
        }
    }
}

/// Where somebody who wants to prove who he is comes from. The failures of one kind are not counted with the other's, so that
/// nobody is shut out in another's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Whence {
    /// From there: what was sent to that address has been seen.
    Seen(Ipv4Addr),
    /// From there, as he says.
    Said(Ipv4Addr),
}

impl From<Ipv4Addr> for Whence {
    /// The other end of a connection.
    fn from(peer: Ipv4Addr) -> Self {
        Self::Seen(peer)
    }
}

impl Whence {
    /// The address.
    pub fn peer(self) -> Ipv4Addr {
        match self {
            Self::Seen(peer) | Self::Said(peer) => peer,
        }
    }
}

/// Buckets of one kind.
const BUCKETS: usize = 16_384;

/// Who may come in, and who may try a secret.
#[derive(Debug)]
pub struct Doorman {
    limits: Limits,
    seed: RandomState,
    open: HashMap<Ipv4Addr, u32>,
    all: u32,
    connects: Rates,
    /// By address and by account, in the same buckets.
    failures: Rates,
}

impl Doorman {
    /// Nobody is inside.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            seed: RandomState::new(),
            open: HashMap::new(),
            all: 0,
            connects: Rates::new(),
            failures: Rates::new(),
        }
    }

    /// From now on these limits hold; who is inside stays.
    pub fn configure(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// How many connections are open.
    pub fn open(&self) -> u32 {
        self.all
    }

    /// A connection comes in, and is counted until [`Self::leave`].
    ///
    /// # Errors
    /// [`Refusal::TooManyConnections`], [`Refusal::Throttled`]; then it is not counted.
    pub fn enter(&mut self, now: Time, peer: Ipv4Addr) -> Result<(), Refusal> {
        let from_here = self.open.get(&peer).copied().unwrap_or(0);
        if self.all >= self.limits.connections {
            return Err(Refusal::TooManyConnections { peer, open: self.all, key: "connections" });
        }
        if from_here >= self.limits.connections_per_address {
            return Err(Refusal::TooManyConnections {
                peer,
                open: from_here,
                key: "connections_per_address",
            });
        }
        let at = self.seed.hash_one(peer);
        self.connects
            .take(at, now, self.limits.connects_per_minute)
            .map_err(|wait| Refusal::Throttled { peer, wait })?;
        self.open.insert(peer, from_here + 1);
        self.all += 1;
        Ok(())
    }

    /// A connection that came in has ended.
    pub fn leave(&mut self, peer: Ipv4Addr) {
        let Some(open) = self.open.get_mut(&peer) else { return };
        *open -= 1;
        if *open == 0 {
            self.open.remove(&peer);
        }
        self.all -= 1;
    }

    /// Whether somebody at `peer` may try a secret of `user` now.
    ///
    /// # Errors
    /// [`Refusal::Throttled`]: too many failed before.
    pub fn may_try(&self, now: Time, whence: Whence, user: &str) -> Result<(), Refusal> {
        let (rate, peer) = (self.limits.failed_logins_per_minute, whence.peer());
        let wait = self
            .failure_keys(whence, user)
            .into_iter()
            .filter_map(|at| self.failures.wait(at, now, rate))
            .max();
        wait.map_or(Ok(()), |wait| Err(Refusal::Throttled { peer, wait }))
    }

    /// The secret was wrong.
    pub fn failed(&mut self, now: Time, whence: Whence, user: &str) {
        for at in self.failure_keys(whence, user) {
            let _noted_even_if_empty = self.failures.take(at, now, self.limits.failed_logins_per_minute);
        }
    }

    /// An account is not locked against its owner by strangers: it is counted together with the address's /16.
    fn failure_keys(&self, whence: Whence, user: &str) -> [u64; 2] {
        let [a, b, ..] = whence.peer().octets();
        let is_seen = matches!(whence, Whence::Seen(_));
        [self.seed.hash_one(whence), self.seed.hash_one((is_seen, a, b, user))]
    }
}

/// Token buckets, refilled by the minute.
#[derive(Debug)]
struct Rates(Box<[Bucket]>);

#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    /// Tokens taken and not grown again, in thousandths.
    spent: u64,
    at: Time,
}

impl Rates {
    fn new() -> Self {
        Self(vec![Bucket::default(); BUCKETS].into_boxed_slice())
    }

    /// Thousandths of tokens that are taken at `now`.
    fn spent(&self, at: u64, now: Time, per_minute: u32) -> u64 {
        let bucket = self.0[at as usize % BUCKETS];
        let millis = u64::try_from(now.since(bucket.at).as_millis()).unwrap_or(u64::MAX);
        bucket.spent.saturating_sub(millis.saturating_mul(per_minute.into()) / 60)
    }

    /// How long until there is a token; `None`: there is one.
    fn wait(&self, at: u64, now: Time, per_minute: u32) -> Option<Duration> {
        let over = (self.spent(at, now, per_minute) + 1000).checked_sub(u64::from(per_minute) * 1000)?;
        (over > 0).then(|| Duration::from_millis((over * 60).div_ceil(u64::from(per_minute.max(1)))))
    }

    fn take(&mut self, at: u64, now: Time, per_minute: u32) -> Result<(), Duration> {
        if let Some(wait) = self.wait(at, now, per_minute) {
            return Err(wait);
        }
        let spent = self.spent(at, now, per_minute) + 1000;
        self.0[at as usize % BUCKETS] = Bucket { spent, at: now };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    const B: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

    fn doorman() -> Doorman {
        Doorman::new(Limits {
            connections: 4,
            connections_per_address: 3,
            connects_per_minute: 5,
            failed_logins_per_minute: 2,
            ..Limits::default()
        })
    }

    #[test]
    fn connections_are_counted_in_and_out() {
        let mut door = doorman();
        (0..3).for_each(|_| door.enter(Time(0), A).unwrap());
        let full = door.enter(Time(0), A).unwrap_err();
        assert!(matches!(full, Refusal::TooManyConnections { open: 3, key: "connections_per_address", .. }));
        door.enter(Time(0), B).unwrap();
        assert!(matches!(
            door.enter(Time(0), B),
            Err(Refusal::TooManyConnections { key: "connections", .. })
        ));
        door.leave(A);
        door.enter(Time(0), A).unwrap();
        (0..3).for_each(|_| door.leave(A));
        door.leave(B);
        assert_eq!(door.open(), 0);
        door.leave(B);
        assert_eq!(door.open(), 0, "nobody was inside");
    }

    #[test]
    fn a_rate_is_spent_and_grows_again() {
        let mut door = doorman();
        for _ in 0..5 {
            door.enter(Time(1_000_000), A).unwrap();
            door.leave(A);
        }
        let Err(Refusal::Throttled { wait, .. }) = door.enter(Time(1_000_000), A) else { panic!("let in") };
        assert_eq!(wait, Duration::from_secs(12), "five a minute");
        assert!(door.enter(Time(1_000_000).after(wait - Duration::from_millis(1)), A).is_err());
        assert_eq!(door.enter(Time(1_000_000).after(wait), A), Ok(()));
    }

    #[test]
    fn failed_logins_close_the_door_for_address_and_account() {
        let mut door = doorman();
        let near = Ipv4Addr::new(192, 0, 7, 7);
        for _ in 0..2 {
            door.may_try(Time(0), A.into(), "alice").unwrap();
            door.failed(Time(0), A.into(), "alice");
        }
        assert!(door.may_try(Time(0), A.into(), "bob").is_err(), "the address");
        assert!(door.may_try(Time(0), near.into(), "alice").is_err(), "the account, from the same network");
        assert_eq!(door.may_try(Time(0), B.into(), "alice"), Ok(()), "her owner elsewhere is not locked out");
        assert_eq!(door.may_try(Time(60_000), A.into(), "alice"), Ok(()));
        for n in 0..99 {
            door.failed(Time(60_000), Whence::Said(A), if n < 50 { "alice" } else { "bob" });
        }
        assert!(door.may_try(Time(60_000), Whence::Said(A), "carol").is_err());
        assert_eq!(door.may_try(Time(60_000), A.into(), "alice"), Ok(()), "nobody fails in her name");
    }

    #[test]
    fn a_clock_set_back_does_no_harm() {
        let mut door = doorman();
        door.enter(Time(1_000_000), A).unwrap();
        door.enter(Time(5), A).unwrap();
        assert_eq!(door.open(), 2);
    }
}
