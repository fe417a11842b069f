//! `sixway drain`: a running instance sends new clients to other brokers.

use clap::Args;

use super::print_line;
use super::socket::SocketArgs;
use crate::admin::client::ask;
use crate::admin::{Request, Response};

/// Arguments of `sixway drain`.
#[derive(Debug, Args)]
#[command(
    after_help = "Tunnels that are up stay. Clients that ask by TSP are sent to the brokers in [tsp], or told to come \
                        later where there are none. It is forgotten at the next start."
)]
pub struct DrainArgs {
    /// Serve new clients again
    #[arg(long)]
    stop: bool,
    #[command(flatten)]
    instance: SocketArgs,
}

/// Asks for it and prints what new clients are told.
pub fn run(args: &DrainArgs) -> anyhow::Result<()> {
    let Response::Drained { on, brokers } = ask(&args.instance.path()?, &Request::Drain { on: !args.stop })?
    else {
        anyhow::bail!("the instance answered something else; is it another version?")
    };
    match (on, brokers) {
        (false, _) => print_line("new clients are served"),
        (true, 0) => print_line("new clients are told to come later"),
        (true, brokers) => print_line(&format!("new clients are sent to {brokers} other brokers")),
    }
    Ok(())
}
