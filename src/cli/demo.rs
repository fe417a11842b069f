//! `sixway demo`: arguments in, report out. What is shown and how lives in [`crate::demo`].

use std::io::{self, IsTerminal, Write};

use crate::demo::{self, Options, Tunnelers, table};

/// See both encapsulations carry real traffic, on this machine, in a few seconds.
///
/// Makes three private network namespaces (a client, a router, an IPv6 host behind it), starts a
/// sixway router at both ends of a tunnel between the first two, pings across and measures TCP each
/// way. Nothing on this machine is configured, opened or left behind, and no other program is needed.
/// Works as root, and as an ordinary user where user namespaces and /dev/net/tun allow it.
#[derive(Clone, Copy, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct DemoArgs {
    /// How long TCP runs in each direction, for each encapsulation; from 1 to 60
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=60))]
    pub seconds: u8,
    /// Print one JSON object instead of the table, and no progress bar
    #[arg(long)]
    pub json: bool,
}

/// Runs the demo and prints what it measured to stdout.
///
/// Call it first in the process: an ordinary user's namespace can only be entered before any thread
/// has been started.
///
/// # Errors
/// Missing rights or devices with the command that gives them; a tunnel that does not carry packets.
pub fn run(args: DemoArgs, tunnelers: &dyn Tunnelers) -> anyhow::Result<()> {
    let report = demo::run(Options { seconds: args.seconds, progress: !args.json }, tunnelers)?;
    let text = if args.json {
        serde_json::to_string(&report)? + "\n"
    } else {
        table::draw(&report, args.seconds, table::Colour::for_stream(io::stdout().is_terminal()))
    };
    Ok(io::stdout().write_all(text.as_bytes())?)
}

const EXAMPLES: &str = "\
Examples:
  sixway demo                       both encapsulations, 3 s each way, about 13 s in all
  sixway demo --seconds 10          longer, for steadier figures
  sixway demo --json | jq '.runs[].down_gbps'

Exit codes: 0 all well, 1 something is missing or broken (the message says what to do), 130 Ctrl-C.";

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        demo: DemoArgs,
    }

    #[test]
    fn seconds_have_a_default_and_bounds() {
        let line = |args: &[&str]| Line::try_parse_from([&["demo"], args].concat());
        assert_eq!(line(&[]).unwrap().demo.seconds, 3);
        assert_eq!(line(&["--seconds", "60", "--json"]).unwrap().demo.seconds, 60);
        assert!(line(&["--seconds", "0"]).is_err() && line(&["--seconds", "61"]).is_err());
    }
}
