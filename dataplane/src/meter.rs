//! What a tunnel may carry: packets a second, octets a second, octets in all; both directions together.
//!
//! Token buckets that all workers share, one for each tunnel that has a limit, in atomics: no lock, no allocation on the
//! packet path, and no look at all for a tunnel without a limit. Two workers that take at the same moment may together
//! take one packet too many; it is taken off the next. Time is an argument, in milliseconds.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::update::{Meter, TunnelId};
use crate::verdict::Reason;

const CHUNK: usize = 1024;
/// A token in the bucket's own unit: fractions of it trickle in each millisecond.
const TOKEN: i64 = 1000;

/// One tunnel's limits and what is left of them; a limit of 0 is none.
#[derive(Debug, Default)]
struct Slot {
    packets: AtomicU64,
    octets: AtomicU64,
    quota: AtomicU64,
    at: AtomicU64,
    packets_left: AtomicI64,
    octets_left: AtomicI64,
    used: AtomicU64,
}

/// The limits of all tunnels.
#[derive(Clone, Debug)]
pub struct Meters(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    chunks: Box<[OnceLock<Box<[Slot]>>]>,
    in_use: AtomicBool,
}

impl Meters {
    /// For up to `capacity` tunnels, none of which has a limit yet.
    pub(crate) fn new(capacity: u32) -> Self {
        let chunks = (0..(capacity as usize).div_ceil(CHUNK)).map(|_| OnceLock::new()).collect();
        Self(Arc::new(Shared { chunks, in_use: AtomicBool::new(false) }))
    }

    /// Sets a tunnel's limits. The same ones again change nothing; other rates begin with full buckets, another quota unused.
    pub(crate) fn set(&self, id: TunnelId, meter: Meter) {
        let Some(chunk) = self.0.chunks.get(id.0 as usize / CHUNK) else { return };
        if meter == Meter::NONE && chunk.get().is_none() {
            return;
        }
        let slots = chunk.get_or_init(|| (0..CHUNK).map(|_| Slot::default()).collect());
        let slot = &slots[id.0 as usize % CHUNK];
        if slot.meter() != meter {
            slot.begin(meter);
        }
        if meter != Meter::NONE {
            self.0.in_use.store(true, Ordering::Relaxed);
        }
    }

    /// Whether any tunnel ever had a limit.
    pub(crate) fn is_in_use(&self) -> bool {
        self.0.in_use.load(Ordering::Relaxed)
    }

    /// Takes what a packet, or a train of `packets`, costs the tunnel; else says what is used up.
    pub(crate) fn take(&self, id: TunnelId, packets: u64, octets: u64, now: u64) -> Result<(), Reason> {
        self.slot(id).map_or(Ok(()), |slot| slot.take(packets, octets, now))
    }

    /// What was taken for a packet that goes nowhere in the end.
    pub(crate) fn give_back(&self, id: TunnelId, packets: u64, octets: u64) {
        let Some(slot) = self.slot(id) else { return };
        slot.packets_left.fetch_add(cost(packets), Ordering::Relaxed);
        slot.octets_left.fetch_add(cost(octets), Ordering::Relaxed);
        slot.used.fetch_sub(octets, Ordering::Relaxed);
    }

    /// Whether a packet would be let through now, and if not, why. Takes nothing.
    pub(crate) fn would_take(&self, id: TunnelId, octets: u64, now: u64) -> Result<(), Reason> {
        self.slot(id).map_or(Ok(()), |slot| slot.would_take(octets, now))
    }

    /// The limits that are in force.
    pub fn limits(&self, id: TunnelId) -> Meter {
        self.slot(id).map_or(Meter::NONE, Slot::meter)
    }

    /// Octets that count against a tunnel's quota so far.
    pub fn used(&self, id: TunnelId) -> u64 {
        self.slot(id).map_or(0, |slot| slot.used.load(Ordering::Relaxed))
    }

    fn slot(&self, id: TunnelId) -> Option<&Slot> {
        self.0.chunks.get(id.0 as usize / CHUNK)?.get()?.get(id.0 as usize % CHUNK)
    }
}

impl Slot {
    fn meter(&self) -> Meter {
        let read = |field: &AtomicU64| field.load(Ordering::Relaxed);
        Meter {
            packets_per_second: read(&self.packets),
            octets_per_second: read(&self.octets),
            quota: read(&self.quota),
        }
    }

    fn begin(&self, meter: Meter) {
        self.packets_left.store(full(meter.packets_per_second), Ordering::Relaxed);
        self.octets_left.store(full(meter.octets_per_second), Ordering::Relaxed);
        if meter.quota != self.quota.load(Ordering::Relaxed) {
            self.used.store(0, Ordering::Relaxed);
        }
        self.packets.store(meter.packets_per_second, Ordering::Relaxed);
        self.octets.store(meter.octets_per_second, Ordering::Relaxed);
        self.quota.store(meter.quota, Ordering::Relaxed);
    }

    fn take(&self, packets: u64, octets: u64, now: u64) -> Result<(), Reason> {
        let meter = self.meter();
        if meter.is_spent_by(self.used.load(Ordering::Relaxed), octets) {
            return Err(Reason::QuotaSpent);
        }
        self.trickle(&meter, now);
        let (packets_cost, octets_cost) = (cost(packets), cost(octets));
        if !pay(&self.packets_left, packets_cost, meter.packets_per_second) {
            return Err(Reason::RateLimited);
        }
        if !pay(&self.octets_left, octets_cost, meter.octets_per_second) {
            self.packets_left.fetch_add(packets_cost, Ordering::Relaxed);
            return Err(Reason::RateLimited);
        }
        self.used.fetch_add(octets, Ordering::Relaxed);
        Ok(())
    }

    fn would_take(&self, octets: u64, now: u64) -> Result<(), Reason> {
        let meter = self.meter();
        if meter.is_spent_by(self.used.load(Ordering::Relaxed), octets) {
            return Err(Reason::QuotaSpent);
        }
        let passed = now.saturating_sub(self.at.load(Ordering::Relaxed));
        let is_empty = |left: &AtomicI64, rate: u64| {
            rate > 0 && left.load(Ordering::Relaxed).saturating_add(gained(passed, rate)) <= 0
        };
        let too_fast = is_empty(&self.packets_left, meter.packets_per_second)
            || is_empty(&self.octets_left, meter.octets_per_second);
        if too_fast { Err(Reason::RateLimited) } else { Ok(()) }
    }

    /// Whoever moves the clock on adds what has come since.
    fn trickle(&self, meter: &Meter, now: u64) {
        let last = self.at.load(Ordering::Relaxed);
        let is_mine =
            now > last && self.at.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if !is_mine {
            return;
        }
        for (left, rate) in
            [(&self.packets_left, meter.packets_per_second), (&self.octets_left, meter.octets_per_second)]
        {
            let gained = gained(now - last, rate);
            let filled = |level: i64| Some(level.saturating_add(gained).min(full(rate)));
            // The closure never declines.
            let _level_before = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, filled);
        }
    }
}

impl Meter {
    /// Whether its quota, of which so much is `used`, has no room for `octets` more.
    fn is_spent_by(&self, used: u64, octets: u64) -> bool {
        self.quota > 0 && used.saturating_add(octets) > self.quota
    }
}

/// What trickles into a bucket in so many milliseconds.
fn gained(milliseconds: u64, per_second: u64) -> i64 {
    i64::try_from(milliseconds.saturating_mul(per_second)).unwrap_or(i64::MAX)
}

/// A bucket holds what comes in a tenth of a second, and at least one train of 64 KiB or 64 packets.
fn full(per_second: u64) -> i64 {
    let least = if per_second >= 65_536 { 65_536 } else { 64 };
    cost((per_second / 10).max(least))
}

fn cost(tokens: u64) -> i64 {
    i64::try_from(tokens).unwrap_or(i64::MAX).saturating_mul(TOKEN)
}

/// A bucket in which anything is left pays, and goes into debt: else a train longer than the bucket would never pass.
fn pay(left: &AtomicI64, cost: i64, per_second: u64) -> bool {
    if per_second == 0 {
        return true;
    }
    if left.load(Ordering::Relaxed) <= 0 {
        return false;
    }
    left.fetch_sub(cost, Ordering::Relaxed);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: TunnelId = TunnelId(3);

    fn limited(packets_per_second: u64, octets_per_second: u64, quota: u64) -> Meters {
        let meters = Meters::new(10);
        meters.set(ID, Meter { packets_per_second, octets_per_second, quota });
        meters
    }

    /// How many packets of 100 octets pass in ten seconds, of ten each millisecond.
    fn passed(meters: &Meters) -> u64 {
        let tries = (0..10_000).flat_map(|ms| [ms; 10]);
        tries.filter(|ms| meters.take(ID, 1, 100, *ms).is_ok()).count() as u64
    }

    #[test]
    fn as_many_packets_as_the_rate_says() {
        let got = passed(&limited(1000, 0, 0));
        assert!((9_990..=10_110).contains(&got), "{got}");
    }

    #[test]
    fn as_many_octets_as_the_rate_says() {
        let got = passed(&limited(0, 200_000, 0));
        assert!((19_900..=20_700).contains(&got), "{got}");
    }

    #[test]
    fn a_quota_ends_and_nothing_else_does() {
        let meters = limited(0, 0, 5_000);
        assert_eq!(passed(&meters), 50);
        assert_eq!((meters.take(ID, 1, 1, 0), meters.used(ID)), (Err(Reason::QuotaSpent), 5_000));
        assert_eq!(meters.take(TunnelId(4), 1, 1 << 40, 0), Ok(()), "another tunnel");
    }

    #[test]
    fn asking_takes_nothing_and_says_what_taking_would() {
        let meters = limited(100, 0, 0);
        assert!((0..1000).all(|_| meters.would_take(ID, 1, 0).is_ok()));
        assert!(meters.take(ID, 200, 1, 0).is_ok());
        for (now, expected) in
            [(0, Err(Reason::RateLimited)), (1000, Err(Reason::RateLimited)), (1400, Ok(()))]
        {
            assert_eq!(meters.would_take(ID, 1, now), expected, "at {now}");
        }
        let meters = limited(0, 0, 100);
        assert_eq!(
            (meters.would_take(ID, 100, 0), meters.would_take(ID, 101, 0)),
            (Ok(()), Err(Reason::QuotaSpent))
        );
        assert_eq!(meters.take(ID, 1, 100, 0), Ok(()));
        meters.give_back(ID, 1, 100);
        assert_eq!((meters.used(ID), meters.take(ID, 1, 100, 0)), (0, Ok(())));
        assert_eq!((meters.limits(ID).quota, meters.limits(TunnelId(4))), (100, Meter::NONE));
    }

    #[test]
    fn the_same_limit_again_changes_nothing_and_another_begins_anew() {
        let meters = limited(0, 0, 150);
        assert!(meters.take(ID, 1, 100, 0).is_ok() && meters.take(ID, 1, 100, 0).is_err());
        meters.set(ID, Meter { quota: 150, ..Meter::NONE });
        assert!(meters.take(ID, 1, 100, 0).is_err());
        meters.set(ID, Meter { quota: 150, packets_per_second: 1000, ..Meter::NONE });
        assert_eq!(meters.take(ID, 1, 100, 0), Err(Reason::QuotaSpent), "another rate is no new quota");
        meters.set(ID, Meter { quota: 1000, ..Meter::NONE });
        assert!(meters.take(ID, 1, 100, 0).is_ok());
        meters.set(ID, Meter::NONE);
        assert!(meters.take(ID, 1, u64::MAX, 0).is_ok());
    }

    #[test]
    fn a_train_longer_than_the_bucket_passes_and_is_paid_for_later() {
        let meters = limited(100, 0, 0);
        assert!(meters.take(ID, 200, 1, 0).is_ok());
        assert_eq!(meters.take(ID, 1, 1, 1000), Err(Reason::RateLimited));
        assert!(meters.take(ID, 1, 1, 1400).is_ok());
    }
}
