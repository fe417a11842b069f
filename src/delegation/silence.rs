//! How long nobody has answered, and when that is worth a word. Pure: time is an argument.
//!
//! The first tries are lost now and then: the tunnel is young, the server starts. After that somebody should know, who then
//! knows.

use std::time::Duration;

/// The silence that is told of.
const LONG: Duration = Duration::from_secs(12);
/// How often it is told of again.
const AGAIN: Duration = Duration::from_secs(3600);

/// A silence, if there is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Silence {
    /// Messages that nobody has answered.
    pub tries: u32,
    /// When the first of them was said.
    pub since: Option<Duration>,
    /// When it was told of last.
    told: Option<Duration>,
}

impl Silence {
    /// Something was asked.
    pub(super) fn asked(&mut self, now: Duration) {
        self.tries = self.tries.saturating_add(1);
        self.since.get_or_insert(now);
    }

    /// A server has spoken, or nothing is asked any more.
    pub(super) fn end(&mut self) {
        *self = Self::default();
    }

    /// When it is to be told of.
    pub(super) fn due(&self) -> Option<Duration> {
        let first = self.since.map(|since| since + LONG);
        self.told.map(|told| told + AGAIN).or(first)
    }

    /// Whether it is to be told of now.
    pub(super) fn tell(&mut self, now: Duration) -> bool {
        let is_due = self.due().is_some_and(|due| due <= now);
        if is_due {
            self.told = Some(now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_told_of_once_and_rarely_after() {
        let at = Duration::from_secs;
        let mut silence = Silence::default();
        assert!(!silence.tell(at(1000)) && silence.due().is_none());
        silence.asked(at(5));
        silence.asked(at(6));
        assert_eq!((silence.due(), silence.tell(at(16))), (Some(at(17)), false));
        silence.asked(at(17));
        assert!(silence.tell(at(17)) && !silence.tell(at(18)));
        assert_eq!((silence.due(), silence.tries), (Some(at(17 + 3600)), 3));
        silence.end();
        silence.asked(at(30));
        assert_eq!((silence.due(), silence.tries), (Some(at(42)), 1), "another silence");
    }
}
