//! `sixway bench`: what a running instance stands: updates at a pace through the admin socket (`churn`), and clients of a
//! control protocol (`sessions`, `dhcp6`).

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use clap::{Args, Subcommand};

use super::bench_dhcp6::{self, Dhcp6Args};
use super::print_line;
use super::sessions::{self, SessionsArgs};
use super::socket::SocketArgs;
use crate::admin::client::ask;
use crate::admin::{Request, Response};
use crate::churn::{MOST_TUNNELS, MOST_UPDATES};
use crate::demo::interrupt;

/// Batches in a second, where the rate is not lower.
const BATCHES: u64 = 100;

/// Arguments of `sixway bench`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples: sixway bench churn --rate 10000 --seconds 10\n          sixway bench sessions 192.0.2.1:20200 --count 100 --secret-file pw"
)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Add, change and remove tunnels of a running instance at a pace, to see what that does to its forwarding
    Churn(ChurnArgs),
    /// Let many clients of a control protocol come, and see what they see of the server
    Sessions(Box<SessionsArgs>),
    /// Let many DHCPv6 clients come on a link, and see what they see of its server
    Dhcp6(Dhcp6Args),
}

#[derive(Debug, Args)]
#[command(
    after_help = "The tunnels are beside the configured ones, in ranges set aside for measurements: 2001:2::/48 (RFC 5180) and 198.18.0.0/15 (RFC 2544); an instance that uses those refuses. They go at the end, at Ctrl-C, and two to three seconds after this command has died. They need room in [router] capacity. A reload removes them too."
)]
struct ChurnArgs {
    #[command(flatten)]
    instance: SocketArgs,
    /// Updates a second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
    /// How long
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// How many tunnels come, change and go in turn
    #[arg(long, value_name = "M", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_TUNNELS)))]
    tunnels: u32,
}

/// Runs the measurement and prints what came of it.
pub fn run(args: &BenchArgs) -> anyhow::Result<()> {
    match &args.what {
        What::Churn(args) => churn(args),
        What::Sessions(args) => sessions::run(args),
        What::Dhcp6(args) => bench_dhcp6::run(args),
    }
}

fn churn(args: &ChurnArgs) -> anyhow::Result<()> {
    let most = u64::from(args.rate).div_ceil(pace(args.rate));
    ensure!(
        most <= u64::from(args.tunnels.min(MOST_UPDATES)),
        "at {} updates a second a batch has {most}, and each needs a tunnel of its own: use --tunnels {most} or more",
        args.rate
    );
    let signals = interrupt::hold()?;
    let client = Client { path: args.instance.path()?, session: std::process::id(), tunnels: args.tunnels };
    // Whoever holds it may ask; who cleans up keeps it.
    let turn = Arc::new(Mutex::new(()));
    let (last, lock) = (client.clone(), turn.clone());
    interrupt::watch(signals, move || {
        let kept = lock.lock();
        if let Err(why) = last.end() {
            eprintln!("sixway: {why:#}");
        }
        std::mem::forget(kept);
    })?;
    let figures = drive(&client, args, &turn);
    let _mine = turn.lock();
    client.end()?;
    report(args, &figures?);
    Ok(())
}

#[derive(Clone)]
struct Client {
    path: PathBuf,
    session: u32,
    tunnels: u32,
}

impl Client {
    fn batch(&self, updates: u32) -> anyhow::Result<(u32, Option<String>)> {
        let request = Request::Churn { session: self.session, tunnels: self.tunnels, updates };
        answer(&self.path, &request)
    }

    fn end(&self) -> anyhow::Result<()> {
        answer(&self.path, &Request::ChurnEnd { session: self.session }).map(std::mem::drop)
    }
}

fn answer(path: &Path, request: &Request) -> anyhow::Result<(u32, Option<String>)> {
    let Response::Churned { applied, refused } = ask(path, request)? else {
        bail!("the instance answered something else; is it another version?")
    };
    Ok((applied, refused))
}

/// What was measured.
#[derive(Default)]
struct Figures {
    took: Duration,
    applied: u64,
    rejected: u64,
    why: Option<String>,
    batches: Vec<Duration>,
}

/// Batches in a second for a rate of updates.
fn pace(rate: u32) -> u64 {
    u64::from(rate).min(BATCHES)
}

/// Updates of batch `n`: over a second they sum up to the rate exactly.
fn share(rate: u32, n: u64) -> u32 {
    let until = |n: u64| n * u64::from(rate) / pace(rate);
    (until(n + 1) - until(n)) as u32
}

fn drive(client: &Client, args: &ChurnArgs, turn: &Mutex<()>) -> anyhow::Result<Figures> {
    let (begin, mut figures) = (Instant::now(), Figures::default());
    let end = Duration::from_secs(args.seconds.into());
    for n in 0.. {
        let due = Duration::from_micros(n * 1_000_000 / pace(args.rate));
        if due >= end || begin.elapsed() >= end {
            break;
        }
        // An instance that falls behind is asked at once, until it has caught up or the time is over.
        std::thread::sleep(due.saturating_sub(begin.elapsed()));
        let _mine = turn.lock().unwrap_or_else(PoisonError::into_inner);
        let (updates, asked) = (share(args.rate, n), Instant::now());
        let (applied, refused) = client.batch(updates)?;
        figures.batches.push(asked.elapsed());
        figures.applied += u64::from(applied);
        figures.rejected += u64::from(updates - applied);
        figures.why = figures.why.or(refused);
    }
    figures.took = begin.elapsed().max(end);
    Ok(figures)
}

fn report(args: &ChurnArgs, figures: &Figures) {
    let mut batches = figures.batches.clone();
    batches.sort_unstable();
    let at =
        |percent: usize| batches.get((batches.len() * percent / 100).min(batches.len().saturating_sub(1)));
    let ms = |percent| at(percent).map_or(0.0, |d: &Duration| d.as_secs_f64() * 1e3);
    let seconds = figures.took.as_secs_f64();
    print_line(&format!(
        "churn: {} updates in {seconds:.2} s, {:.0} a second of {} wanted; {} rejected",
        figures.applied,
        figures.applied as f64 / seconds,
        args.rate,
        figures.rejected
    ));
    print_line(&format!("batches: {}, p50 {:.2} ms, p99 {:.2} ms", batches.len(), ms(50), ms(99)));
    if let Some(why) = &figures.why {
        print_line(&format!("first refusal: {why}"));
    }
    print_line("its tunnels are removed");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_s_batches_sum_up_to_the_rate() {
        for rate in [1, 7, 99, 100, 150, 10_000, 1_000_000] {
            let sum: u32 = (0..pace(rate)).map(|n| share(rate, n)).sum();
            assert_eq!(sum, rate);
            let most = (0..pace(rate)).map(|n| share(rate, n)).max();
            assert!(most.is_some_and(|m| u64::from(m) <= u64::from(rate).div_ceil(pace(rate))));
        }
    }
}
