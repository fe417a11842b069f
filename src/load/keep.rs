//! Sessions that are held: each sends a sign of life now and then, as its client would, while others still come.
//!
//! A session's next sign is due three quarters of the interval to all of it after the one before (RFC 5572 section 4.6).
//! All wait in one queue by their time; a sign that is out waits in a task of its own. Knows no protocol.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::{Duration, Instant};

use rand::RngExt;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{Dial, Round, Tally, within};

/// What became of signs of life.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Kept {
    /// All signs that were sent, and how long answers took.
    pub signs: Round,
    /// The fewest answers that any session had.
    pub least: u32,
    /// Seconds between two signs at most.
    pub every: u64,
}

/// A session, and how many of its signs were answered.
struct Held<S> {
    session: S,
    answered: u32,
}

/// Keeps every session that comes by `opened` while `story` goes on; returns them all, and how it ended.
pub async fn keep_all<D: Dial, T>(
    mut opened: mpsc::UnboundedReceiver<D::Session>,
    every: Duration,
    story: impl Future<Output = T>,
) -> (Vec<D::Session>, Kept, T) {
    let mut waiting = Queue { every, at: BinaryHeap::new(), held: HashMap::new(), next: 0 };
    let (mut out, mut tally, mut asked) = (JoinSet::new(), Tally::default(), 0);
    let begin = Instant::now();
    tokio::pin!(story);
    let end = loop {
        let due = waiting.due();
        tokio::select! {
            end = &mut story => break end,
            Some(session) = opened.recv() => waiting.put(Held { session, answered: 0 }),
            () = tokio::time::sleep_until(due.into()) => {
                while let Some(held) = waiting.take(Instant::now()) {
                    asked += 1;
                    out.spawn(sign::<D>(held));
                }
            }
            Some(Ok(answer)) = out.join_next() => waiting.put(note(answer, &mut tally)),
        }
    };
    while let Some(answer) = out.join_next().await {
        if let Ok(answer) = answer {
            waiting.put(note(answer, &mut tally));
        }
    }
    let all: Vec<_> = waiting.held.into_values().collect();
    let least = all.iter().map(|held| held.answered).min().unwrap_or(0);
    let signs = Round::new(asked, begin.elapsed(), tally);
    (all.into_iter().map(|held| held.session).collect(), Kept { signs, least, every: every.as_secs() }, end)
}

type Answer<S> = (Held<S>, Result<Duration, String>);

async fn sign<D: Dial>(mut held: Held<D::Session>) -> Answer<D::Session> {
    let asked = Instant::now();
    let answer = within(D::ping(&mut held.session)).await;
    (held, answer.map(|()| asked.elapsed()))
}

fn note<S>((mut held, answer): Answer<S>, tally: &mut Tally) -> Held<S> {
    match answer {
        Ok(waited) => {
            held.answered += 1;
            tally.waits.push(waited);
        }
        Err(why) => tally.fail(why),
    }
    held
}

/// Sessions by when their next sign is due.
struct Queue<S> {
    every: Duration,
    at: BinaryHeap<Reverse<(Instant, u64)>>,
    held: HashMap<u64, Held<S>>,
    next: u64,
}

impl<S> Queue<S> {
    fn put(&mut self, held: Held<S>) {
        let wait = self.every * rand::rng().random_range(750..=1000) / 1000;
        self.next += 1;
        self.at.push(Reverse((Instant::now() + wait, self.next)));
        self.held.insert(self.next, held);
    }

    /// When the first is due; a while from now if there is none.
    fn due(&self) -> Instant {
        self.at.peek().map_or_else(|| Instant::now() + self.every, |Reverse((at, _))| *at)
    }

    fn take(&mut self, now: Instant) -> Option<Held<S>> {
        let Reverse((_, number)) = *self.at.peek().filter(|Reverse((at, _))| *at <= now)?;
        self.at.pop();
        self.held.remove(&number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers all but every third sign.
    struct Moody;

    impl Dial for Moody {
        type Session = u32;

        async fn open(&self, n: u32) -> Result<u32, String> {
            Ok(n)
        }

        async fn ping(session: &mut u32) -> Result<(), String> {
            *session += 1;
            if session.is_multiple_of(3) { Err("moody".to_owned()) } else { Ok(()) }
        }

        async fn quit(_: u32) {}
    }

    #[test]
    fn every_session_sends_its_signs_until_it_is_enough() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (sessions, kept, ()) = runtime.block_on(async {
            let (open, opened) = mpsc::unbounded_channel();
            (0..10).for_each(|_| open.send(0).unwrap());
            let enough = tokio::time::sleep(Duration::from_millis(500));
            keep_all::<Moody, _>(opened, Duration::from_millis(100), enough).await
        });
        assert_eq!(sessions.len(), 10);
        assert!(sessions.iter().all(|signs| (4..=7).contains(signs)), "{sessions:?}");
        assert_eq!(kept.signs.asked, sessions.iter().sum::<u32>());
        assert!(kept.least >= 3 && kept.signs.failed["moody"] >= 10, "{kept:?}");
        assert_eq!(kept.signs.done + kept.signs.failed["moody"], kept.signs.asked);
    }
}
