//! `sixway kick`: a running instance ends leased tunnels.

use clap::Args;

use super::print_line;
use super::socket::SocketArgs;
use crate::admin::client::ask;
use crate::admin::table::duration;
use crate::admin::{EvictedStatus, Request, Response};

/// Arguments of `sixway kick`.
#[derive(Debug, Args)]
#[command(
    after_help = "The user may log in again at once; `sixway user del NAME` removes the account and ends its tunnels.\nA DHCPv6 client is told that it has lost its prefix or address if it lets itself be told (Reconfigure), and may ask for it again; else the command says for how long it does not know."
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
    let Response::Kicked { tunnels, client } = ask(&args.instance.path()?, &request)? else {
        anyhow::bail!("the instance answered something else; is it another version?")
    };
    print_line(&format!("ended: {tunnels}"));
    client.iter().for_each(|client| print_line(&what_becomes(*client)));
    Ok(())
}

/// What becomes of the DHCPv6 client that had it.
fn what_becomes(client: EvictedStatus) -> String {
    if client.told {
        return "its client is told (Reconfigure), and asks anew".to_owned();
    }
    let most = client.believes_s.map_or_else(
        || "which it may never do".to_owned(),
        |left| format!("in {} at the latest", duration(left)),
    );
    format!(
        "its client cannot be told (it accepts no Reconfigure, or `reconfigure` is off): it goes on believing that it has this \
         until it renews or forgets it, {most}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_becomes_of_a_client_is_said() {
        let said = |told, believes_s| what_becomes(EvictedStatus { told, believes_s });
        assert!(said(true, Some(60)).contains("asks anew"));
        let unaware = said(false, Some(3600));
        assert!(unaware.contains("goes on believing") && unaware.contains("1h"), "{unaware}");
        assert!(said(false, None).contains("may never"));
    }
}
