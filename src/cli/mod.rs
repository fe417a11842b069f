//! The command line: one file for each command, which parses, calls and prints; no logic of its own.
//!
//! Exit codes: 0 done; 1 it could not be done, and why is on standard error; 2 the command line was wrong; 130 Ctrl-C.

pub mod bench;
pub mod check;
pub mod demo;
pub mod kick;
pub mod reload;
pub mod run;
pub mod socket;
pub mod status;
pub mod user;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// IPv6 tunnels in userspace: protocol 41 and IPv6-over-UDP, no kernel tunnel driver needed.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, max_term_width = 100)]
#[command(
    after_help = "See it work:      sixway demo\nRun a router:     sixway run --config /etc/sixway/sixway.toml\nLook at it:       sixway status\n\nExit codes: 0 done, 1 could not be done, 2 wrong command line, 130 Ctrl-C."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the router (or the client) in the foreground
    Run(run::RunArgs),
    /// Say whether a configuration file is right, and what it would do
    Check(check::CheckArgs),
    /// Show a running router: tunnels, counters, drops
    Status(status::StatusArgs),
    /// Make a running router read its configuration file again
    Reload(reload::ReloadArgs),
    /// Add, change, remove and list the users who may have tunnels
    User(user::UserArgs),
    /// End a user's tunnels; he may log in again
    Kick(kick::KickArgs),
    /// Measure what a running router stands: tunnels that come and go at a pace
    Bench(bench::BenchArgs),
    /// See the whole thing work: three hosts in one process, both encapsulations, measured
    Demo(demo::DemoArgs),
}

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Reload(args) => reload::run(&args),
        Command::User(args) => user::run(&args),
        Command::Kick(args) => kick::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Demo(args) => demo::run(args, &crate::demo::tunnels::InProcess),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("sixway: {why:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints a line to standard output; a reader that has gone (as `| head` does) is no fault.
pub(crate) fn print_line(line: &str) {
    use std::io::Write;
    if writeln!(std::io::stdout(), "{line}").is_err() {
        std::process::exit(0);
    }
}
