//! `sixway bench dhcp6`: many DHCPv6 clients on a link at a pace, and what they saw of its server, whoever made that.

use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::print_line;
use crate::dhcp6s::here;
use crate::load::dhcp6::{Clients, Pace, Seen, Wanted};
use crate::load::resident;

/// What clients ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// An address (IA_NA)
    Na,
    /// A prefix (IA_PD)
    Pd,
    /// Both
    Both,
}

/// Arguments of `sixway bench dhcp6`.
#[derive(Debug, Args)]
#[command(
    after_help = "Clients have DUIDs of a private kind, and speak from one socket on port 546 of the interface; nobody else may have it.\nAn answer that comes after a second counts as dropped. `scripts/bench-dhcp6` compares servers with it.\n\nExample: sixway bench dhcp6 veth0 --rate 10000 --seconds 10"
)]
pub struct Dhcp6Args {
    /// The interface on the link of the server
    interface: String,
    /// What clients ask for
    #[arg(long, value_name = "KIND", default_value = "na")]
    kind: Kind,
    /// New clients a second, four messages each
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(0..=200_000))]
    rate: u32,
    /// Renewals a second beside them, of clients that have something
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=200_000))]
    renews: u32,
    /// How long
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=3600))]
    seconds: u32,
    /// So many clients come before that, as fast as the server lets them
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    preload: u32,
    /// Of those so many at a time
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    at_once: u32,
    /// The first client's number: other numbers are other clients
    #[arg(long, value_name = "N", default_value_t = 0)]
    first: u32,
    /// Speak from all link-local addresses of the interface in turn, each message by itself; otherwise all speak from one, and
    /// messages that are alike leave and come together, like those that a relay passes on
    #[arg(long)]
    from_all: bool,
    /// Only wait until the server answers one Solicit, and say how long that took
    #[arg(long)]
    first_answer: bool,
    /// The server's process, whose memory is read before and after the preload
    #[arg(long, value_name = "PID")]
    server_pid: Option<u32>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What was seen, as it is printed.
#[derive(Debug, Default, Serialize)]
struct Told {
    #[serde(skip_serializing_if = "Option::is_none")]
    first_answer_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    preload: Option<Seen>,
    /// Octets of the server's memory for each client of the preload.
    #[serde(skip_serializing_if = "Option::is_none")]
    octets_a_lease: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    load: Option<Seen>,
}

/// Lets the clients come, and prints what they saw.
pub fn run(args: &Dhcp6Args) -> anyhow::Result<()> {
    let name = &args.interface;
    let Some(index) = here::index(name) else { bail!("there is no interface '{name}'; `ip link` names all") };
    let wanted = Wanted { addresses: args.kind != Kind::Pd, prefixes: args.kind != Kind::Na };
    let from = if args.from_all { here::link_locals(name) } else { Vec::new() };
    let mut clients = Clients::open((name, index), wanted, args.first, from)
        .with_context(|| format!("cannot open UDP port 546 on {name}; does a DHCPv6 client run here?"))?;
    let mut told = Told::default();
    if args.first_answer {
        let took = clients.first_answer(Duration::from_secs(60)).context("nobody answers")?;
        told.first_answer_ms = Some(took.as_secs_f64() * 1e3);
        return print(args, &told);
    }
    let rss = || args.server_pid.and_then(resident);
    if args.preload > 0 {
        let before = rss();
        told.preload = Some(clients.run(Pace::Closed { count: args.preload, at_once: args.at_once })?);
        let grown = before.zip(rss()).map(|(before, with)| with.saturating_sub(before) * 1024);
        told.octets_a_lease = grown.map(|octets| octets / u64::from(args.preload));
    }
    if args.seconds > 0 {
        let lasts = Duration::from_secs(args.seconds.into());
        told.load = Some(clients.run(Pace::Open { rate: args.rate, renews: args.renews, lasts })?);
    }
    print(args, &told)
}

fn print(args: &Dhcp6Args, told: &Told) -> anyhow::Result<()> {
    if args.json {
        print_line(&serde_json::to_string(told)?);
        return Ok(());
    }
    told.first_answer_ms.iter().for_each(|ms| print_line(&format!("the first answer came after {ms:.1} ms")));
    for (what, seen) in [("preload", &told.preload), ("load", &told.load)] {
        seen.iter().for_each(|seen| print_line(&format!("{what}: {}", words(seen))));
    }
    told.octets_a_lease.iter().for_each(|octets| print_line(&format!("memory: {octets} octets a client")));
    Ok(())
}

fn words(s: &Seen) -> String {
    format!(
        "{} of {} clients answered in {:.1} s, {:.0} a second; not answered: {:.3} % of Solicits, {:.3} % of Requests, \
         {:.3} % of {} Renews; {} of the answers gave nothing; p50 {:.2} ms, p99 {:.2} ms",
        s.replies,
        s.solicits,
        s.seconds,
        s.done_a_second,
        s.solicit_drops,
        s.request_drops,
        s.renew_drops,
        s.renews,
        s.refused,
        s.p50_ms,
        s.p99_ms
    )
}
