//! How leases are counted: by a clock that runs on whatever becomes of the calendar, and through sleep (CLOCK_BOOTTIME).
//! What is on disk is of the calendar as it was, with a note of how far the calendar has been set since. Pure.
//!
//! ```text
//!   on disk = clock + base          base stays as long as the system runs
//!   calendar = clock + ahead        ahead changes when somebody sets the calendar
//! ```
//!
//! So a step of the calendar moves no lease, neither in a running process nor across its restarts. After a restart of the
//! system the calendar alone can say how long it was away.

/// How far the calendar may be off before that counts as a step, in seconds.
const STEP: i64 = 2;

/// What a clock in an earlier process knew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Epoch {
    /// Which run of the system.
    pub boot: String,
    /// What is on disk less the clock of that run, in seconds.
    pub base: i64,
    /// What the calendar was ahead of that clock when it was looked at last, in seconds.
    pub ahead: i64,
}

impl Epoch {
    /// The clock's beginning: of this run of the system, where the clock shows `uptime` and the calendar `calendar` (both in
    /// seconds), after what was `before`.
    pub fn begin(before: Option<Self>, boot: &str, uptime: u64, calendar: u64) -> Self {
        let ahead = signed(calendar) - signed(uptime);
        let base = match before {
            None => ahead,
            Some(before) if before.boot == boot => before.base,
            Some(before) => before.base - before.ahead + ahead,
        };
        Self { boot: boot.to_owned(), base, ahead }
    }

    /// A time of the clock as it is on disk.
    pub fn to_disk(&self, until: u64) -> i64 {
        signed(until).saturating_add(self.base)
    }

    /// A time on disk as the clock's; what was over before the clock began is at its beginning. Nothing lasts longer than it
    /// would if it was given now, whatever the calendar says.
    pub fn of_disk(&self, until: i64, uptime: u64, valid: u32) -> u64 {
        let until = u64::try_from(until.saturating_sub(self.base)).unwrap_or(0);
        until.min(uptime.saturating_add(valid.into()))
    }

    /// What the calendar is ahead of the clock now, if somebody has set it.
    pub fn look(&mut self, uptime: u64, calendar: u64) -> Option<i64> {
        let ahead = signed(calendar) - signed(uptime);
        if (ahead - self.ahead).abs() < STEP {
            return None;
        }
        self.ahead = ahead;
        Some(ahead)
    }
}

fn signed(seconds: u64) -> i64 {
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_system_that_was_away_has_aged() {
        let one = Epoch::begin(None, "a", 100, 1_700_000_100);
        let disk = one.to_disk(3700);
        let two = Epoch::begin(Some(one), "b", 10, 1_700_001_000);
        assert_eq!(two.of_disk(disk, 10, 3600), 10 + 2700, "900 s later");
        let three = Epoch::begin(Some(two), "c", 10, 1_800_000_000);
        assert_eq!(three.of_disk(disk, 10, 3600), 0, "over");
    }

    #[test]
    fn a_calendar_that_begins_in_1970_makes_nothing_last_longer_than_it_was_given_for() {
        let one = Epoch::begin(None, "a", 100, 1_700_000_100);
        let disk = one.to_disk(200);
        let two = Epoch::begin(Some(one), "b", 10, 10);
        assert_eq!(two.of_disk(disk, 10, 600), 610);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Wait(u64),
        Set(i64),
        Restart,
        Boot(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0_u64..500).prop_map(Step::Wait),
            3 => (-80_000_i64..80_000).prop_map(Step::Set),
            2 => Just(Step::Restart),
            1 => (0_u64..500).prop_map(Step::Boot),
        ]
    }

    proptest! {
        /// Whatever is done to the calendar: a lease ends when the true time says so.
        #[test]
        fn the_calendar_moves_no_lease(steps in prop::collection::vec(step(), 0..40), valid in 1_u32..5000) {
            let (mut truth, mut booted, mut calendar) = (1000_u64, 0_u64, 1_700_000_000_i64);
            let mut run = 0;
            let mut epoch = Epoch::begin(None, "0", truth - booted, calendar as u64);
            let mut disk = epoch.to_disk(truth - booted + u64::from(valid));
            let until = truth + u64::from(valid);
            for step in steps {
                match step {
                    Step::Wait(seconds) => {
                        truth += seconds;
                        calendar += seconds as i64;
                    }
                    // Looked at once before the next thing happens, as the server does.
                    Step::Set(by) => {
                        calendar += by;
                        epoch.look(truth - booted, calendar as u64);
                    }
                    Step::Restart => epoch = Epoch::begin(Some(epoch), &run.to_string(), truth - booted, calendar as u64),
                    Step::Boot(seconds) => {
                        truth += seconds;
                        calendar += seconds as i64;
                        booted = truth;
                        run += 1;
                        epoch = Epoch::begin(Some(epoch), &run.to_string(), 0, calendar as u64);
                    }
                }
                let uptime = truth - booted;
                let left = epoch.of_disk(disk, uptime, valid).saturating_sub(uptime);
                let really = until.saturating_sub(truth);
                prop_assert!(left.abs_diff(really) < 40 * 2, "{left} s left, and really {really}");
                disk = epoch.to_disk(epoch.of_disk(disk, uptime, valid).max(uptime));
            }
        }
    }
}
