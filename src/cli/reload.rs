//! `sixway reload`: a running instance reads its configuration again.

use clap::Args;

use super::print_line;
use super::socket::SocketArgs;
use crate::admin::client::ask;
use crate::admin::{Request, Response};

/// Arguments of `sixway reload`.
#[derive(Debug, Args)]
#[command(
    after_help = "Only what differs is changed; tunnels that stay as they were lose no packet. A file with errors changes nothing."
)]
pub struct ReloadArgs {
    #[command(flatten)]
    instance: SocketArgs,
}

/// Asks for the reload and prints what it changed.
pub fn run(args: &ReloadArgs) -> anyhow::Result<()> {
    let asked = ask(&args.instance.path()?, &Request::Reload);
    // Behind what is wrong, which begins with its place in the file.
    let stays = |why| anyhow::anyhow!("{why}\nnot reloaded, the configuration before stays in force");
    let Response::Reloaded(done) = asked.map_err(stays)? else {
        anyhow::bail!("the instance answered something else; is it another version?")
    };
    print_line(&format!(
        "reloaded: {} added, {} removed, {} changed, {} untouched",
        done.added, done.removed, done.changed, done.unchanged
    ));
    done.notes.iter().for_each(|note| print_line(&format!("note: {note}")));
    Ok(())
}
