//! The calendar's time without its steps: it is read once, and goes on by a clock that nobody sets (CLOCK_BOOTTIME). When the
//! calendar has been set, all that ends at some time is moved along, so that it lasts as long as it was given for.

use nix::time::{ClockId, clock_gettime};

use super::desk::now;
use crate::broker::Time;

/// How far the calendar may be off before that counts as a step, in milliseconds.
const STEP: i64 = 250;

/// A steady clock.
#[derive(Debug)]
pub(super) struct Clock {
    /// What the calendar was ahead of the system's age when it was looked at last, in milliseconds.
    ahead: i64,
}

impl Clock {
    /// The calendar's time as it is now.
    pub(super) fn new() -> Self {
        Self { ahead: signed(now()) - age() }
    }

    /// The time.
    pub(super) fn now(&self) -> Time {
        self.at(age())
    }

    fn at(&self, age: i64) -> Time {
        Time(u64::try_from(age + self.ahead).unwrap_or(0))
    }

    /// Whether the calendar has been set, and by how many milliseconds.
    pub(super) fn look(&mut self) -> Option<i64> {
        self.look_at(age(), signed(now()))
    }

    fn look_at(&mut self, age: i64, calendar: i64) -> Option<i64> {
        let by = calendar - age - self.ahead;
        if by.abs() < STEP {
            return None;
        }
        self.ahead += by;
        Some(by)
    }
}

fn signed(at: Time) -> i64 {
    i64::try_from(at.0).unwrap_or(i64::MAX)
}

/// The system's age in milliseconds, sleep included.
fn age() -> i64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |at| at.tv_sec() * 1000 + at.tv_nsec() / 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_of_the_calendar_is_seen_once_and_not_before_it_is_looked_for() {
        let mut clock = Clock { ahead: 1_700_000_000_000 };
        assert_eq!(clock.at(5000), Time(1_700_000_005_000));
        assert_eq!(clock.look_at(6000, 1_700_000_006_200), None, "that is no step");
        assert_eq!(clock.look_at(7000, 1_700_007_307_000), Some(7_300_000));
        assert_eq!(clock.at(8000), Time(1_700_007_308_000));
        assert_eq!(clock.look_at(9000, 1_700_007_309_000), None);
        assert_eq!(clock.look_at(10_000, 10_000), Some(-1_700_007_300_000));
    }
}
