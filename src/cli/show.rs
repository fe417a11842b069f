//! `sixway show drops`: the last packet that each reason has dropped, decoded.

use clap::{Args, Subcommand};

use super::print_line;
use super::socket::SocketArgs;
use crate::admin::client::ask;
use crate::admin::{Request, Response};
use crate::explain::Dropped;

/// Arguments of `sixway show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Every drop reason that has occurred, and the last packet of each: who sent it, when, its first octets
    Drops(DropsArgs),
}

#[derive(Debug, Args)]
struct DropsArgs {
    /// JSON instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    instance: SocketArgs,
}

/// Asks and prints.
pub fn run(args: &ShowArgs) -> anyhow::Result<()> {
    let What::Drops(args) = &args.what;
    let Response::Drops(all) = ask(&args.instance.path()?, &Request::Drops)? else {
        anyhow::bail!("the instance answered something else; is it another version?")
    };
    if args.json {
        print_line(&serde_json::to_string(&all)?);
        return Ok(());
    }
    if all.is_empty() {
        print_line("nothing was dropped");
    }
    all.iter().flat_map(screen).for_each(|line| print_line(&line));
    Ok(())
}

fn screen(dropped: &Dropped) -> Vec<String> {
    let mut lines = vec![format!("{}  {}", dropped.reason, dropped.count), format!("  {}", dropped.meaning)];
    if let Some(last) = &dropped.last {
        let tunnel = last.tunnel.as_ref().map_or_else(String::new, |name| format!(", tunnel {name}"));
        let from = if last.from.starts_with("to ") { "" } else { "from " };
        lines.push(format!("  last: {} ago, {from}{}{tunnel}", ago(last.at_us), last.from));
        lines.push(format!("    {}", last.summary));
        lines.extend(dump(&last.bytes()));
    }
    lines.push(format!("  next: {}", dropped.next));
    lines.push(String::new());
    lines
}

fn ago(at_us: u64) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let seconds = (now.as_micros() as u64).saturating_sub(at_us) / 1_000_000;
    crate::admin::table::duration(seconds)
}

/// Sixteen octets a line.
fn dump(bytes: &[u8]) -> Vec<String> {
    let line = |(n, row): (usize, &[u8])| {
        let pairs: Vec<_> = row.chunks(2).map(crate::admin::packet::hex).collect();
        format!("    {:04x}  {}", n * 16, pairs.join(" "))
    };
    bytes.chunks(16).enumerate().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octets_stand_sixteen_in_a_line() {
        let bytes: Vec<u8> = (0..18).collect();
        let lines = dump(&bytes);
        assert_eq!(lines, ["    0000  0001 0203 0405 0607 0809 0a0b 0c0d 0e0f", "    0010  1011"]);
    }
}
