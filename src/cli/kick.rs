//! `sixway kick`: a running instance ends leased tunnels.

use clap::Args;

use super::print_line;
use super::socket::SocketArgs;
use crate::admin::client::ask;
use crate::admin::{Request, Response};

/// Arguments of `sixway kick`.
#[derive(Debug, Args)]
#[command(
    after_help = "The user may log in again at once; `sixway user del NAME` removes the account and ends its tunnels."
)]
pub struct KickArgs {
    /// A user, one leased tunnel such as alice@dtcp, or a prefix or address that a DHCPv6 client has
    #[arg(value_name = "NAME|PREFIX")]
    who: String,
    #[command(flatten)]
    instance: SocketArgs,
}

/// Asks for it and prints how many have ended.
pub fn run(args: &KickArgs) -> anyhow::Result<()> {
    let request = Request::Kick { who: args.who.clone() };
    let Response::Kicked { tunnels } = ask(&args.instance.path()?, &request)? else {
        anyhow::bail!("the instance answered something else; is it another version?")
    };
    print_line(&format!("ended: {tunnels}"));
    Ok(())
}
