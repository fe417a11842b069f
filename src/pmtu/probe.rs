//! The search for one path's MTU by probes that are answered or not (RFC 8899 section 5).
//!
//! Pure: told of time, answers and errors, it says what to probe and what the MTU is. A probe carries nothing of anybody's
//! (section 4.1): its loss lowers nothing but the next probe. Sizes are octets of inner packets. Knows no packet.

use std::time::Duration;

/// What every path carries, in fragments if need be: never probed (section 5.1.2, BASE_PLPMTU).
pub const BASE: u16 = 1280;
/// How often a size is tried (section 5.1.2, MAX_PROBES).
pub const TRIES: u8 = 3;
/// How long an answer may take: section 5.1.1 wants a second at least. It asks for 15 where nothing is known of the path; an
/// answer through a tunnel that takes 2 is of no use to anybody inside.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// How often the size in use is confirmed (section 5.1.1, CONFIRMATION_TIMER).
pub const CONFIRM: Duration = Duration::from_secs(20);
/// When more is tried again (section 5.1.1, PMTU_RAISE_TIMER).
pub const RAISE: Duration = Duration::from_secs(600);
/// Less than so many octets are not searched for.
const GAP: u16 = 8;

/// One tunnel's search.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Search {
    ceiling: u16,
    /// Answered last: what the tunnel's MTU is.
    confirmed: u16,
    /// The largest size that may still pass.
    high: u16,
    /// To be tried before the middle of what is left: the largest there is, or what a router has named.
    hint: Option<u16>,
    trying: Option<Try>,
    /// When more is tried again, once the search is complete.
    raise: Duration,
    deadline: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Try {
    size: u16,
    tries: u8,
}

impl Search {
    /// Begins at [`BASE`] and will first try `ceiling`.
    pub fn new(now: Duration, ceiling: u16) -> Self {
        let ceiling = ceiling.max(BASE);
        Self {
            ceiling,
            confirmed: BASE,
            high: ceiling,
            hint: Some(ceiling),
            trying: None,
            raise: now,
            deadline: now,
        }
    }

    /// The MTU now.
    pub fn mtu(&self) -> u16 {
        self.confirmed
    }

    /// The size that an answer is awaited to.
    pub fn awaited(&self) -> Option<u16> {
        self.trying.map(|t| t.size)
    }

    /// When [`Self::handle_timeout`] is due.
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// No longer packets than this; the search goes on below, or above if it was less.
    pub fn set_ceiling(&mut self, now: Duration, ceiling: u16) {
        let ceiling = ceiling.max(BASE);
        if ceiling == self.ceiling {
            return;
        }
        let confirmed = self.confirmed.min(ceiling);
        *self = Self { confirmed, ..Self::new(now, ceiling) };
    }

    /// The awaited answer has come: the size passes.
    pub fn handle_answer(&mut self, now: Duration) {
        let Some(Try { size, .. }) = self.trying.take() else { return };
        self.confirmed = self.confirmed.max(size);
        self.go_on(now);
    }

    /// A router says that no packet longer than `size` passes (section 4.6.2); the caller has seen that it was about one of
    /// ours. Below the base it says nothing that could be acted on.
    pub fn handle_too_big(&mut self, now: Duration, size: u16) {
        let longest = self.awaited().unwrap_or(self.confirmed).max(self.confirmed);
        if size < BASE || size >= longest {
            return;
        }
        if size < self.confirmed {
            self.confirmed = BASE;
        }
        self.high = self.high.min(size);
        self.hint = Some(size);
        (self.trying, self.deadline) = (None, now);
    }

    /// Nothing has come in time, or it is time to look again. Returns the size to probe now.
    pub fn handle_timeout(&mut self, now: Duration) -> Option<u16> {
        if now < self.deadline {
            return None;
        }
        match self.trying {
            Some(Try { size, tries }) if tries < TRIES => return self.probe(now, size, tries + 1),
            Some(Try { size, .. }) => self.fail(now, size),
            None if self.is_complete() && now >= self.raise => {
                (self.high, self.hint) = (self.ceiling, Some(self.ceiling));
            }
            None if self.is_complete() => return self.probe(now, self.confirmed, 1),
            None => {}
        }
        if self.is_complete() {
            self.rest(now);
            return None;
        }
        // Most paths take the largest there is, or what a router names.
        let middle = self.confirmed + (self.high - self.confirmed).div_ceil(2);
        let size = self.hint.take().filter(|hint| *hint > self.confirmed).unwrap_or(middle);
        self.probe(now, size, 1)
    }

    fn fail(&mut self, now: Duration, size: u16) {
        self.trying = None;
        if size <= self.confirmed {
            // The size in use does not pass any more: a black hole (section 4.3).
            self.confirmed = BASE;
        }
        self.high = (size - 1).max(self.confirmed);
        self.deadline = now;
    }

    fn go_on(&mut self, now: Duration) {
        if self.is_complete() {
            self.rest(now);
        } else {
            self.deadline = now;
        }
    }

    /// Looks again when the size in use is to be confirmed, or more to be tried.
    fn rest(&mut self, now: Duration) {
        if self.raise <= now {
            self.raise = now + RAISE;
        }
        let confirm = if self.confirmed > BASE { now + CONFIRM } else { self.raise };
        self.deadline = confirm.min(self.raise);
    }

    fn is_complete(&self) -> bool {
        self.high.saturating_sub(self.confirmed) < GAP && self.hint.is_none_or(|hint| hint <= self.confirmed)
    }

    fn probe(&mut self, now: Duration, size: u16, tries: u8) -> Option<u16> {
        self.trying = Some(Try { size, tries });
        self.deadline = now + PATIENCE;
        Some(size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn s(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    /// Lets time pass over a path that takes `path` octets inside. Returns the sizes probed, with when.
    fn run(search: &mut Search, path: u16, from: Duration, to: Duration) -> Vec<(Duration, u16)> {
        let mut probed = Vec::new();
        let mut now = from;
        while search.deadline() <= to {
            now = search.deadline().max(now);
            if let Some(size) = search.handle_timeout(now) {
                probed.push((now, size));
                if size <= path {
                    search.handle_answer(now + Duration::from_millis(20));
                }
            }
        }
        probed
    }

    #[test]
    fn a_clear_path_is_known_at_once_and_confirmed() {
        let mut search = Search::new(s(5), 1480);
        assert_eq!(search.mtu(), BASE);
        let probed = run(&mut search, 1480, s(5), s(30));
        assert_eq!(search.mtu(), 1480);
        assert_eq!(probed.iter().map(|p| p.1).collect::<Vec<_>>(), [1480, 1480]);
    }

    /// RFC: P1 (RFC 8899 section 5.1)
    #[test]
    fn a_size_is_tried_three_times_and_the_search_ends_close_below_the_path() {
        let mut search = Search::new(s(0), 1480);
        let probed = run(&mut search, 1400, s(0), s(40));
        assert!((1400 - GAP..=1400).contains(&search.mtu()), "{}", search.mtu());
        let first: Vec<_> = probed[..3].to_vec();
        assert_eq!(first, [(s(0), 1480), (s(2), 1480), (s(4), 1480)]);
        assert!(
            probed
                .iter()
                .all(|(_, size)| probed.iter().filter(|(_, s)| s == size).count() <= 3 || *size <= 1400)
        );
    }

    #[test]
    fn a_router_that_says_its_size_ends_the_search() {
        let mut search = Search::new(s(0), 1480);
        assert_eq!(search.handle_timeout(s(0)), Some(1480));
        search.handle_too_big(s(0), 1380);
        assert_eq!(search.handle_timeout(s(0)), Some(1380), "it is tried, not believed");
        assert_eq!(search.mtu(), BASE);
        search.handle_answer(s(1));
        assert_eq!((search.mtu(), search.deadline()), (1380, s(1) + CONFIRM));
    }

    /// RFC: P1 (RFC 8899 section 5.1)
    #[test]
    fn a_black_hole_is_noticed_and_left() {
        let mut search = Search::new(s(0), 1480);
        run(&mut search, 1480, s(0), s(1));
        run(&mut search, 1300, s(1), s(28));
        assert!(search.mtu() < 1480, "after {CONFIRM:?} and three tries");
        run(&mut search, 1300, s(28), s(100));
        assert!((1300 - GAP..=1300).contains(&search.mtu()), "{}", search.mtu());
    }

    /// RFC: P1 (RFC 8899 section 5.1)
    #[test]
    fn more_is_tried_after_ten_minutes() {
        let mut search = Search::new(s(0), 1480);
        run(&mut search, 1400, s(0), s(500));
        let low = search.mtu();
        run(&mut search, 1480, s(500), s(590));
        assert_eq!(search.mtu(), low);
        run(&mut search, 1480, s(590), s(700));
        assert_eq!(search.mtu(), 1480);
    }

    #[test]
    fn who_never_answers_costs_three_probes_in_ten_minutes_a_size_and_nothing_else() {
        let mut search = Search::new(s(0), 1480);
        let probed = run(&mut search, 0, s(0), s(600));
        assert_eq!(search.mtu(), BASE);
        assert!(probed.len() <= 21, "{}", probed.len());
    }

    #[test]
    fn errors_of_no_consequence() {
        let mut search = Search::new(s(0), 1480);
        run(&mut search, 1480, s(0), s(1));
        let before = search.clone();
        for size in [0, 576, 1279, 1480, 9000] {
            search.handle_too_big(s(2), size);
            assert_eq!(search, before, "{size}");
        }
        search.handle_too_big(s(2), 1400);
        assert_eq!(search.mtu(), BASE, "what was confirmed is in doubt");
        assert_eq!(search.handle_timeout(s(2)), Some(1400));
    }

    proptest! {
        #[test]
        fn it_ends_below_the_path_and_never_beyond(ceiling in 1280u16..9000, path in 1280u16..9000) {
            let mut search = Search::new(s(0), ceiling);
            let probed = run(&mut search, path, s(0), s(590));
            let right = path.min(ceiling);
            prop_assert!(search.mtu() <= right && search.mtu() + GAP >= right, "{} of {right}", search.mtu());
            prop_assert!(probed.iter().all(|(_, size)| *size <= ceiling));
            for pair in probed.windows(4) {
                let same = pair.iter().all(|(_, size)| *size == pair[0].1);
                prop_assert!(!same || pair[0].1 <= path, "four probes of one size: {pair:?}");
            }
        }

        #[test]
        fn nothing_that_is_said_takes_it_beyond_its_bounds(
            ceiling in 0u16..9000,
            said in proptest::collection::vec((0u8..4, any::<u16>()), 0..40),
        ) {
            let mut search = Search::new(s(0), ceiling);
            for (n, (what, size)) in (0u64..).zip(said) {
                match what {
                    0 => search.handle_answer(s(n)),
                    1 => search.handle_too_big(s(n), size),
                    2 => search.set_ceiling(s(n), size),
                    _ => drop(search.handle_timeout(s(n * 3))),
                }
                prop_assert!(search.mtu() >= BASE && search.mtu() <= search.ceiling);
            }
        }
    }
}
