//! How often something is done again that somebody else keeps undoing: at once, then at longer and longer intervals.
//!
//! Pure: time is an argument. Refuses to know what is done.

use std::time::Duration;

/// The time between the first two.
const FIRST: Duration = Duration::from_secs(1);
/// The longest time between two.
const MOST: Duration = Duration::from_secs(16);

/// When it may be done next.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    last: Option<Duration>,
    pause: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { last: None, pause: FIRST }
    }
}

impl Pace {
    /// The time from which on it may be done.
    pub fn due(&self) -> Duration {
        self.last.map_or(Duration::ZERO, |last| last + self.pause)
    }

    /// It is done now. What has held for four pauses begins anew.
    pub fn did(&mut self, now: Duration) {
        let is_quick = self.last.is_some_and(|last| now < last + self.pause * 4);
        self.pause = if is_quick { (self.pause * 2).min(MOST) } else { FIRST };
        self.last = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_undone_at_once_is_done_again_ever_later() {
        let (mut pace, mut now) = (Pace::default(), Duration::ZERO);
        assert_eq!(pace.due(), Duration::ZERO);
        let mut pauses = Vec::new();
        for _ in 0..7 {
            pace.did(now);
            pauses.push((pace.due() - now).as_secs());
            now = pace.due();
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 16, 16]);
        now += Duration::from_secs(60);
        pace.did(now);
        assert_eq!(pace.due() - now, FIRST, "it had held");
    }
}
