//! Loads on a control plane: many clients that want a tunnel each, and what they saw of the server.
//!
//! ```text
//!   sockets.rs   from outside, over TCP, each client from an address of its own     ┐
//!   tsp.rs       the same by UDP, all out of one socket                             │
//!   memory.rs    in one process, over the in-memory transport                       ├─ a Dial for each protocol
//!   dtcp.rs      one client: logs in, has a tunnel, pings                           ┘
//!   keep.rs      sessions that are held, with signs of life
//! ```
//!
//! [`dhcp6`] stands by itself: its clients have no sessions.
//!
//! A protocol brings a [`Dial`]; how many come, how fast, and what is counted is the same for all. Knows nothing of the
//! server's inside but for its memory.

pub mod dhcp6;
pub mod dtcp;
pub mod keep;
pub mod memory;
pub mod sockets;
pub mod tsp;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// How long one setup or ping may take; a client that waits longer gives up.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Clients that are under way at once when setups come at a pace: what is beyond is counted as late.
const MOST_UNDER_WAY: usize = 4096;
/// A client that was refused comes again after this, and twice as late each time.
const COME_AGAIN: Duration = Duration::from_millis(100);

/// How client `n` comes to a tunnel, and what it can do with its session.
pub trait Dial: Send + Sync + 'static {
    /// A session with a tunnel; dropped, its connection is gone.
    type Session: Send + 'static;

    /// Connects, logs in, asks for a tunnel.
    fn open(&self, n: u32) -> impl Future<Output = Result<Self::Session, String>> + Send;

    /// Whether the server still answers.
    fn ping(session: &mut Self::Session) -> impl Future<Output = Result<(), String>> + Send;

    /// Gives the tunnel back in good order.
    fn quit(session: Self::Session) -> impl Future<Output = ()> + Send;
}

/// What many clients saw.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Round {
    /// How many tried.
    pub asked: u32,
    /// How many had what they wanted.
    pub done: u32,
    /// How often somebody had to come again.
    pub again: u32,
    /// Why the others did not, and how many.
    pub failed: BTreeMap<String, u32>,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// How many a second.
    pub a_second: f64,
    /// Half of them waited less, milliseconds.
    pub p50_ms: f64,
    /// Of a hundred one waited longer, milliseconds.
    pub p99_ms: f64,
}

impl Round {
    fn new(asked: u32, took: Duration, tally: Tally) -> Self {
        let Tally { mut waits, failed, again } = tally;
        waits.sort_unstable();
        let at = |percent: usize| waits.get((waits.len() * percent / 100).min(waits.len().saturating_sub(1)));
        let ms = |percent| at(percent).map_or(0.0, |wait| wait.as_secs_f64() * 1e3);
        let done = waits.len() as u32;
        let seconds = took.as_secs_f64();
        let a_second = f64::from(done) / seconds.max(1e-9);
        Self { asked, done, again, failed, seconds, a_second, p50_ms: ms(50), p99_ms: ms(99) }
    }

    /// One line for people.
    pub fn told(&self, what: &str) -> String {
        let Self { asked, done, again, failed, seconds, a_second, p50_ms, p99_ms } = self;
        let mut line = format!(
            "{what}: {done} of {asked} in {seconds:.2} s, {a_second:.0} a second; p50 {p50_ms:.1} ms, p99 {p99_ms:.1} ms"
        );
        if *again > 0 {
            line += &format!("; came again {again} times");
        }
        for (why, times) in failed {
            line += &format!("\n  {times} times: {why}");
        }
        line
    }
}

/// What one worker counts.
#[derive(Debug, Default)]
struct Tally {
    waits: Vec<Duration>,
    failed: BTreeMap<String, u32>,
    again: u32,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.waits.extend(other.waits);
        other.failed.into_iter().for_each(|(why, times)| *self.failed.entry(why).or_default() += times);
        self.again += other.again;
    }

    fn fail(&mut self, why: String) {
        *self.failed.entry(why).or_default() += 1;
    }
}

/// Opens sessions of clients 0 to `count`, `at_once` at a time. Each client comes `tries` times at most.
pub async fn open_all<D: Dial>(
    dial: &Arc<D>,
    count: u32,
    at_once: u32,
    tries: u32,
) -> (Vec<D::Session>, Round) {
    let (open, mut opened) = mpsc::unbounded_channel();
    let round = open_into(dial, count, at_once, tries, open).await;
    let mut sessions = Vec::with_capacity(round.done as usize);
    while let Ok(session) = opened.try_recv() {
        sessions.push(session);
    }
    (sessions, round)
}

/// The same, handing each session on as soon as it is there. Not bounded by itself: there are `count` of them.
pub async fn open_into<D: Dial>(
    dial: &Arc<D>,
    count: u32,
    at_once: u32,
    tries: u32,
    open: mpsc::UnboundedSender<D::Session>,
) -> Round {
    let next = Arc::new(AtomicU32::new(0));
    let begin = Instant::now();
    let mut workers = JoinSet::new();
    for _ in 0..at_once.min(count) {
        workers.spawn(work(dial.clone(), next.clone(), (count, tries), open.clone()));
    }
    let mut tally = Tally::default();
    while let Some(worked) = workers.join_next().await {
        tally.add(worked.unwrap_or_default());
    }
    Round::new(count, begin.elapsed(), tally)
}

async fn work<D: Dial>(
    dial: Arc<D>,
    next: Arc<AtomicU32>,
    (count, tries): (u32, u32),
    open: mpsc::UnboundedSender<D::Session>,
) -> Tally {
    let mut tally = Tally::default();
    loop {
        let n = next.fetch_add(1, Ordering::Relaxed);
        if n >= count {
            return tally;
        }
        let asked = Instant::now();
        match insist(&*dial, n, tries, &mut tally.again).await {
            Ok(session) => {
                tally.waits.push(asked.elapsed());
                let _or_nobody_wants_it = open.send(session);
            }
            Err(why) => tally.fail(why),
        }
    }
}

async fn insist<D: Dial>(dial: &D, n: u32, tries: u32, again: &mut u32) -> Result<D::Session, String> {
    let mut wait = COME_AGAIN;
    for _ in 1..tries {
        if let Ok(session) = within(dial.open(n)).await {
            return Ok(session);
        }
        *again += 1;
        tokio::time::sleep(wait).await;
        wait *= 2;
    }
    within(dial.open(n)).await
}

async fn within<T>(done: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let timed_out = |_| Err(format!("no answer in {} s", PATIENCE.as_secs()));
    tokio::time::timeout(PATIENCE, done).await.unwrap_or_else(timed_out)
}

/// Pings every session once, one after the other.
pub async fn ping_all<D: Dial>(sessions: &mut [D::Session]) -> Round {
    let (begin, mut tally) = (Instant::now(), Tally::default());
    for session in sessions.iter_mut() {
        let asked = Instant::now();
        match within(D::ping(session)).await {
            Ok(()) => tally.waits.push(asked.elapsed()),
            Err(why) => tally.fail(why),
        }
    }
    Round::new(sessions.len() as u32, begin.elapsed(), tally)
}

/// Opens `rate` sessions a second for so many seconds and gives each back at once; clients 0 to `count` in turn.
pub async fn keep_pace<D: Dial>(dial: &Arc<D>, count: u32, rate: u32, seconds: u32) -> Round {
    let (begin, all) = (Instant::now(), rate.saturating_mul(seconds));
    let (mut under_way, mut tally) = (JoinSet::new(), Tally::default());
    for n in 0..all {
        let due = Duration::from_micros(u64::from(n) * 1_000_000 / u64::from(rate.max(1)));
        if due > begin.elapsed() {
            tokio::time::sleep_until((begin + due).into()).await;
        }
        if under_way.len() >= MOST_UNDER_WAY {
            tally.fail(format!("not tried: {MOST_UNDER_WAY} clients were under way"));
        } else {
            under_way.spawn(come_and_go(dial.clone(), n % count.max(1)));
        }
        while let Some(done) = under_way.try_join_next() {
            note(&mut tally, done.unwrap_or_else(|why| Err(why.to_string())));
        }
    }
    while let Some(done) = under_way.join_next().await {
        note(&mut tally, done.unwrap_or_else(|why| Err(why.to_string())));
    }
    Round::new(all, begin.elapsed(), tally)
}

async fn come_and_go<D: Dial>(dial: Arc<D>, n: u32) -> Result<Duration, String> {
    let asked = Instant::now();
    let session = within(dial.open(n)).await?;
    let waited = asked.elapsed();
    let _or_too_slow = tokio::time::timeout(PATIENCE, D::quit(session)).await;
    Ok(waited)
}

fn note(tally: &mut Tally, done: Result<Duration, String>) {
    match done {
        Ok(waited) => tally.waits.push(waited),
        Err(why) => tally.fail(why),
    }
}

/// Memory that a process occupies, in KiB; `None` where it cannot be told.
pub fn resident(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}

/// Processor time that a process has used since it began; `None` where it cannot be told.
pub fn processor(pid: u32) -> Option<Duration> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in front, in parentheses, may hold anything. Behind it, user time is the 12th field, system time the next.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11);
    let ticks: [u64; 2] = [fields.next()?.parse().ok()?, fields.next()?.parse().ok()?];
    Some(Duration::from_millis(ticks.iter().sum::<u64>() * 1000 / TICKS))
}

/// Ticks a second in `/proc/PID/stat`, the same on every Linux that there is (`USER_HZ`).
const TICKS: u64 = 100;

/// What sessions cost in memory.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Memory {
    /// Before, KiB.
    pub before_kib: u64,
    /// With all of them, KiB.
    pub with_kib: u64,
    /// The difference for each, octets.
    pub a_session: u64,
}

impl Memory {
    /// Of so many sessions.
    pub fn of(before_kib: u64, with_kib: u64, sessions: usize) -> Self {
        let a_session = with_kib.saturating_sub(before_kib) * 1024 / (sessions.max(1) as u64);
        Self { before_kib, with_kib, a_session }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Refuses each client so many times; a session is the client's number.
    struct Moody(u32, Mutex<BTreeMap<u32, u32>>);

    impl Dial for Moody {
        type Session = u32;

        async fn open(&self, n: u32) -> Result<u32, String> {
            let mut all = self.1.lock().unwrap();
            let times = all.entry(n).or_default();
            *times += 1;
            if *times > self.0 { Ok(n) } else { Err("moody".to_owned()) }
        }

        async fn ping(session: &mut u32) -> Result<(), String> {
            if *session == 3 { Err("three".to_owned()) } else { Ok(()) }
        }

        async fn quit(_: u32) {}
    }

    fn run<T>(story: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(story)
    }

    #[test]
    fn every_client_comes_once_and_again_where_it_was_refused() {
        let (sessions, round) = run(open_all(&Arc::new(Moody(1, Mutex::default())), 9, 2, 3));
        assert_eq!((sessions.len(), round.done, round.again), (9, 9, 9));
        let (sessions, round) = run(open_all(&Arc::new(Moody(5, Mutex::default())), 4, 9, 2));
        assert_eq!((sessions.len(), round.failed.get("moody")), (0, Some(&4)));
    }

    #[test]
    fn pings_that_fail_are_counted() {
        let round = run(ping_all::<Moody>(&mut [1, 2, 3]));
        assert_eq!((round.asked, round.done, round.failed.get("three")), (3, 2, Some(&1)));
        assert!(round.told("pings").starts_with("pings: 2 of 3 in "));
    }

    #[test]
    fn a_pace_is_kept_for_its_time() {
        let round = run(keep_pace(&Arc::new(Moody(0, Mutex::default())), 3, 500, 1));
        assert_eq!((round.asked, round.done), (500, 500));
        assert!(round.seconds > 0.9, "{round:?}");
    }

    #[test]
    fn memory_and_time_are_told_of_a_living_process() {
        assert!(resident(std::process::id()).is_some_and(|kib| kib > 100));
        assert_eq!((resident(u32::MAX), processor(u32::MAX)), (None, None));
        let (begin, used) = (Instant::now(), processor(std::process::id()).unwrap());
        while begin.elapsed() < Duration::from_millis(100) {}
        assert!(processor(std::process::id()).unwrap() > used);
        assert_eq!(Memory::of(100, 300, 100).a_session, 2048);
    }
}
