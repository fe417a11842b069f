//! `sixway status`: one screen of a running instance, or JSON.

use clap::Args;

use super::print_line;
use super::socket::SocketArgs;
use crate::admin::client::ask;
use crate::admin::screen::screen;
use crate::admin::{PAGE, Request, Response};

/// Arguments of `sixway status`.
#[derive(Debug, Args)]
#[command(
    after_help = "Tunnels come in pages of 1000 (see --page, --limit); the JSON names `page`, `pages` and `tunnels_total`. docs/counters.md explains every drop reason."
)]
pub struct StatusArgs {
    #[command(flatten)]
    instance: SocketArgs,
    /// JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Page of tunnels to show
    #[arg(long, default_value_t = 1, value_name = "N")]
    page: usize,
    /// Tunnels in a page
    #[arg(long, default_value_t = PAGE, value_name = "N")]
    limit: usize,
    /// Only this tunnel
    #[arg(long, value_name = "NAME")]
    tunnel: Option<String>,
}

/// Asks for the status and prints it.
pub fn run(args: &StatusArgs) -> anyhow::Result<()> {
    let request = Request::Status { page: args.page, limit: args.limit, tunnel: args.tunnel.clone() };
    let Response::Status(status) = ask(&args.instance.path()?, &request)? else {
        anyhow::bail!("the instance answered something else; is it another version?")
    };
    if args.json {
        print_line(&serde_json::to_string(&status)?);
    } else {
        screen(&status).iter().for_each(|line| print_line(line));
    }
    Ok(())
}
