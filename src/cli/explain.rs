//! `sixway explain`: what would become of a packet, check by check.

use std::net::Ipv6Addr;

use clap::Args;

use super::print_line;
use super::socket::SocketArgs;
use crate::admin::client::ask;
use crate::admin::table::columns;
use crate::admin::{Request, Response};
use crate::explain::{Explained, Wish};

/// Arguments of `sixway explain`.
#[derive(Debug, Args)]
#[command(
    after_help = "The running router judges the packet on its live tables; nothing is sent and nothing counted.\nA tunnel's rate and quota are asked, and not used up.\n\nsixway explain --tunnel alice --dst 2001:db8::1 --len 1480 --from-wire"
)]
pub struct ExplainArgs {
    /// The tunnel that it is about
    #[arg(long, value_name = "NAME")]
    tunnel: String,
    /// Destination of the packet
    #[arg(long, value_name = "ADDRESS")]
    dst: Ipv6Addr,
    /// Source [default: the router's own address; with --from-wire one of the tunnel's]
    #[arg(long, value_name = "ADDRESS")]
    src: Option<Ipv6Addr>,
    /// Octets of the packet with its header
    #[arg(long, default_value_t = 100, value_name = "OCTETS")]
    len: usize,
    /// The tunnel's peer sends it, not the kernel
    #[arg(long)]
    from_wire: bool,
    /// JSON instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    instance: SocketArgs,
}

/// Asks and prints.
pub fn run(args: &ExplainArgs) -> anyhow::Result<()> {
    let wish = Wish {
        tunnel: args.tunnel.clone(),
        destination: args.dst,
        source: args.src,
        len: args.len,
        from_wire: args.from_wire,
    };
    let Response::Explained(said) = ask(&args.instance.path()?, &Request::Explain(wish))? else {
        anyhow::bail!("the instance answered something else; is it another version?")
    };
    if args.json {
        print_line(&serde_json::to_string(&said)?);
    } else {
        screen(&said).iter().for_each(|line| print_line(line));
    }
    Ok(())
}

fn screen(said: &Explained) -> Vec<String> {
    let mut lines = vec![format!("{}, from {}", said.packet, said.from), String::new()];
    let rows: Vec<_> = said
        .checks
        .iter()
        .enumerate()
        .map(|(n, told)| {
            vec![(n + 1).to_string(), told.check.clone(), told.result.clone(), told.found.clone()]
        })
        .collect();
    lines.extend(columns(&rows, &[0]));
    lines.extend([String::new(), format!("verdict: {}", said.verdict)]);
    lines.extend(said.advice.iter().map(|advice| format!("  {advice}")));
    lines
}
