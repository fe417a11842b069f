//! `sixway trace`: one tunnel's packets as they pass, with what becomes of each.

use clap::Args;

use super::print_line;
use super::socket::SocketArgs;
use crate::admin::client::view;
use crate::admin::packet::Seen;

/// Arguments of `sixway trace`.
#[derive(Debug, Args)]
#[command(
    after_help = "Ends with Ctrl-C, after --count packets, or when the tunnel goes. A merged packet is one line. Packets that the router itself sends (answers, errors, probes) are not shown. What passes too fast to be shown is counted and told."
)]
pub struct TraceArgs {
    /// The tunnel
    #[arg(value_name = "TUNNEL")]
    tunnel: String,
    /// End after so many packets
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// JSON lines instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    instance: SocketArgs,
}

/// Shows packets until there are no more.
pub fn run(args: &TraceArgs) -> anyhow::Result<()> {
    let mut left = args.count.unwrap_or(u64::MAX);
    view(&args.instance.path()?, &args.tunnel, |seen| {
        if args.json {
            print_line(&serde_json::to_string(&seen)?);
        } else {
            lines(&seen).iter().for_each(|line| print_line(line));
        }
        left = left.saturating_sub(1);
        Ok(left > 0)
    })
}

fn lines(seen: &Seen) -> Vec<String> {
    let missed = (seen.missed > 0).then(|| format!("              {} packets were not shown", seen.missed));
    let (seconds, micros) = (seen.at_us / 1_000_000 % 86_400, seen.at_us % 1_000_000);
    let time = format!("{:02}:{:02}:{:02}.{micros:06}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    let line = format!("{time} {} -> {}\n              {}", seen.from, seen.verdict, seen.summary);
    missed.into_iter().chain([line]).collect()
}
