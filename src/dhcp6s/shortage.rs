//! Pools that have nothing left: each is said once when somebody is refused, and once when there has been room again for a
//! while, so that a pool at its limit does not fill the log. Pure.

use std::collections::HashMap;

use super::vacancy::Extent;

/// For how long nobody is refused before there counts as room again, in seconds.
const QUIET: u64 = 60;

/// A pool that somebody was refused something of.
#[derive(Clone, Copy, Debug)]
struct Short {
    /// When that was last, by the clock of leases.
    last: u64,
    is_said: bool,
}

/// What there is to be said of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// Nothing is left of it.
    Full,
    /// It has room again.
    Room,
}

/// The pools that have nothing left; as many as there are pools at most.
#[derive(Debug, Default)]
pub struct Shortages {
    all: HashMap<Extent, Short>,
    is_news: bool,
}

impl Shortages {
    /// Somebody was refused something of this pool.
    pub fn note(&mut self, pool: Extent, now: u64) {
        let mut is_new = false;
        let short = self.all.entry(pool).or_insert_with(|| {
            is_new = true;
            Short { last: now, is_said: false }
        });
        short.last = now;
        self.is_news |= is_new;
    }

    /// Whether something is to be said at once.
    pub fn is_news(&self) -> bool {
        self.is_news
    }

    /// What is to be said at `now`. `has_room` knows whether anything of a pool is free; `None`: it is no pool any more.
    pub fn poll(&mut self, now: u64, has_room: impl Fn(Extent) -> Option<bool>) -> Vec<(Extent, News)> {
        self.is_news = false;
        let mut said = Vec::new();
        self.all.retain(|pool, short| {
            let room = has_room(*pool);
            if !std::mem::replace(&mut short.is_said, true) {
                said.push((*pool, News::Full));
            }
            let is_over = room == Some(true) && now.saturating_sub(short.last) >= QUIET;
            said.extend(is_over.then_some((*pool, News::Room)));
            room.is_some() && !is_over
        });
        said
    }

    /// The pools that nothing is left of.
    pub fn pools(&self) -> impl Iterator<Item = Extent> {
        self.all.keys().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_said_once_until_there_has_been_room_for_a_while() {
        let pool = Extent { first: 1.into(), last: 4.into(), len: 128 };
        let mut shortages = Shortages::default();
        let mut said = Vec::new();
        for now in 0..1000 {
            // Full in the first hundred seconds, and at its limit for as long: somebody is refused now and then.
            let is_refused = now < 100 || (now < 200 && now % 10 == 0);
            if is_refused {
                shortages.note(pool, now);
            }
            let news = shortages.poll(now, |_| Some(now >= 100 && !is_refused));
            said.extend(news.into_iter().map(|(_, news)| (now, news)));
        }
        assert_eq!(said, [(0, News::Full), (250, News::Room)]);
        assert_eq!(shortages.pools().count(), 0);
        shortages.note(pool, 1000);
        assert!(shortages.is_news());
        assert_eq!(shortages.poll(1000, |_| None), [(pool, News::Full)]);
        assert_eq!((shortages.pools().count(), shortages.is_news()), (0, false), "it is no pool any more");
    }
}
