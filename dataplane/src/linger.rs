//! How long a worker that has nothing to do goes on looking before it sleeps.
//!
//! To be woken costs tens of microseconds where the processor has been halted (in virtual machines above all), a look a
//! fraction of one. So whose packets keep coming soon is awake when the next one comes; that is paid from a budget, and who
//! is left alone for longer sleeps after the least time. Knows no clock: what the time is, its caller says.

use std::time::Duration;

/// Share of the time that may go into looking for longer than the least: one part of so many.
const SHARE: u32 = 5;
/// What may be saved up of it.
const RESERVE: Duration = Duration::from_secs(2);
/// Who has nothing left saves so much before he spends again.
const SAVED: Duration = Duration::from_millis(500);

/// One worker's patience.
#[derive(Clone, Debug)]
pub(crate) struct Linger {
    least: Duration,
    most: Duration,
    patience: Duration,
    budget: Duration,
    paid: Duration,
    saving: bool,
}

impl Linger {
    /// It looks for `least` always, and up to `most` where that is worth it and paid for. With `most` not above `least` all
    /// looking is equally long; with no `least` there is none.
    pub(crate) fn new(least: Duration, most: Duration) -> Self {
        let most = if least.is_zero() { least } else { most.max(least) };
        Self { least, most, patience: least, budget: RESERVE, paid: Duration::ZERO, saving: false }
    }

    /// How long to look now, at `now` on any clock that only goes on.
    pub(crate) fn patience(&mut self, now: Duration) -> Duration {
        let earned = now.saturating_sub(self.paid) / SHARE;
        self.paid = now;
        self.budget = (self.budget + earned).min(RESERVE);
        // Half a wait is worth nothing: who cannot pay saves first.
        self.saving = self.budget < if self.saving { SAVED } else { self.most };
        if self.saving { self.least } else { self.patience }
    }

    /// Whether this patience is more than the least.
    pub(crate) fn is_long(&self, patience: Duration) -> bool {
        patience > self.least
    }

    /// It has looked for so long.
    pub(crate) fn looked(&mut self, took: Duration) {
        self.budget = self.budget.saturating_sub(took.saturating_sub(self.least));
    }

    /// It has had to sleep, and from its last packet to the next it was so long: is it worth looking longer next time?
    pub(crate) fn slept(&mut self, gap: Duration) {
        let worth = gap <= self.most;
        self.patience = if worth { (self.patience * 2).min(self.most) } else { self.least };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: Duration = Duration::from_micros(30);
    const MOST: Duration = Duration::from_millis(3);

    /// Packets that come every `gap`, for `time`: how long it looked in all, and how many found it asleep.
    fn every(linger: &mut Linger, began: Duration, gap: Duration, time: Duration) -> (Duration, u32) {
        let (mut looked, mut asleep, mut now) = (Duration::ZERO, 0, began);
        while now < began + time {
            let took = linger.patience(now).min(gap);
            linger.looked(took);
            looked += took;
            if took < gap {
                linger.slept(gap);
                asleep += 1;
            }
            now += gap;
        }
        (looked, asleep)
    }

    #[test]
    fn whose_packets_come_soon_is_soon_awake_for_them() {
        let mut linger = Linger::new(LEAST, MOST);
        let (_, asleep) =
            every(&mut linger, Duration::ZERO, Duration::from_millis(2), Duration::from_secs(1));
        assert_eq!(asleep, 7, "30 microseconds doubled seven times are more than two milliseconds");
    }

    #[test]
    fn who_is_left_alone_sleeps_after_the_least() {
        let mut linger = Linger::new(LEAST, MOST);
        let (_, asleep) =
            every(&mut linger, Duration::ZERO, Duration::from_millis(2), Duration::from_secs(1));
        assert_eq!(asleep, 7);
        let seldom = Duration::from_millis(20);
        let (looked, asleep) = every(&mut linger, Duration::from_secs(1), seldom, Duration::from_secs(1));
        assert_eq!(asleep, 50);
        assert!(looked <= MOST + 49 * LEAST, "{looked:?}: it learns from the first");
    }

    #[test]
    fn looking_never_costs_more_than_its_share() {
        let mut linger = Linger::new(LEAST, MOST);
        let minute = Duration::from_secs(60);
        let (looked, asleep) = every(&mut linger, Duration::ZERO, Duration::from_millis(1), minute);
        let always = LEAST * 60_000;
        assert!(looked <= RESERVE + minute / SHARE + always, "{looked:?}");
        assert!(looked >= RESERVE + minute / SHARE / 2, "and what is paid for is used: {looked:?}");
        assert!(asleep > 0);
    }

    #[test]
    fn what_is_short_is_free() {
        let mut linger = Linger::new(LEAST, MOST);
        every(&mut linger, Duration::ZERO, Duration::from_micros(20), Duration::from_secs(10));
        assert_eq!(linger.budget, RESERVE);
    }

    #[test]
    fn there_may_be_one_time_for_all_or_none() {
        for (least, most) in [(LEAST, Duration::ZERO), (Duration::ZERO, MOST)] {
            let mut linger = Linger::new(least, most);
            for _ in 0..9 {
                linger.slept(Duration::from_micros(1));
                assert_eq!(linger.patience(Duration::from_secs(1)), least);
            }
        }
    }
}
