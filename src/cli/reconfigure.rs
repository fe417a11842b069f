//! `sixway reconfigure`: a running instance has DHCPv6 clients ask anew (RFC 8415 section 18.3.11).

use clap::Args;

use super::print_line;
use super::socket::SocketArgs;
use crate::admin::client::ask;
use crate::admin::{Request, Response};

/// Arguments of `sixway reconfigure`.
#[derive(Debug, Args)]
#[command(
    after_help = "Reached are clients that have said that they let themselves be told: those that have an address or a prefix, behind relays too, and those that have asked for information alone. After a reload of a changed configuration this is done without being asked for. `dhcpv6` in `sixway status --json` counts who was told, who asked and who did not."
)]
pub struct ReconfigureArgs {
    /// Only clients in this tunnel
    #[arg(value_name = "TUNNEL")]
    tunnel: Option<String>,
    #[command(flatten)]
    instance: SocketArgs,
}

/// Asks for it and prints how many clients are told.
pub fn run(args: &ReconfigureArgs) -> anyhow::Result<()> {
    let request = Request::Reconfigure { tunnel: args.tunnel.clone() };
    let Response::Reconfigured { clients } = ask(&args.instance.path()?, &request)? else {
        anyhow::bail!("the instance answered something else; is it another version?")
    };
    print_line(&format!("clients in tunnels that are told: {clients}"));
    Ok(())
}
