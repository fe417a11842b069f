//! `sixway leases`: who has what by DHCPv6, in a running router or in the file of leases of a `dhcp6s`.

use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;

use super::dhcp6s::usual_leases;
use super::socket::SocketArgs;
use crate::admin::client::ask;
use crate::admin::leases::{Held, Sieve, Wish};
use crate::admin::{Request, Response};
use crate::dhcp6s::{glance, here};

/// How often a router is asked for the same again that has been too busy, and how long is waited in between.
const TRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(100);

/// Arguments of `sixway leases`.
#[derive(Debug, Args)]
#[command(
    after_help = "A running router is asked: what clients in its tunnels have, and on its links. A dhcp6s has no socket to ask at; with --interface or --lease-file its file is read, while it runs and when it does not, and nothing is done to it.\n\nExamples:\n  sixway leases\n  sixway leases --interface eth1                     # of `dhcp6s eth1`\n  sixway leases --prefix 2001:db8:8000::/40 --json | jq .duid\n\nTo end one of a router: `sixway kick PREFIX`. Of a dhcp6s, with the words of its line:\n  dhcp6ctl -S remove binding IA KIND IAID DUID\n\nExit codes: 0 told, also where nobody has anything; 1 not told, or the file is damaged and only what is sound was told."
)]
pub struct LeasesArgs {
    /// Only what the client of this DUID has
    #[arg(long, value_name = "DUID")]
    duid: Option<String>,
    /// Only what lies in this prefix, or around it; an address will do
    #[arg(long, value_name = "PREFIX")]
    prefix: Option<String>,
    /// Only what is in this tunnel, or on this link
    #[arg(long, value_name = "NAME")]
    on: Option<String>,
    /// So many at most
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Print JSON: one object on each line
    #[arg(long)]
    json: bool,
    /// Read the file of leases of `dhcp6s INTERFACE`, where it usually is
    #[arg(long, value_name = "INTERFACE", conflicts_with_all = ["config", "socket"])]
    interface: Option<String>,
    /// Read this file of leases
    #[arg(long, value_name = "FILE", conflicts_with_all = ["config", "socket"])]
    lease_file: Option<PathBuf>,
    #[command(flatten)]
    instance: SocketArgs,
}

/// Prints what is found, as it comes.
pub fn run(args: &LeasesArgs) -> anyhow::Result<()> {
    let wish = Wish {
        duid: args.duid.as_ref().map(|duid| duid.to_lowercase()),
        prefix: args.prefix.clone(),
        on: args.on.clone(),
        after: None,
    };
    let sieve = Sieve::new(&wish).map_err(anyhow::Error::msg)?;
    let left = args.limit.unwrap_or(usize::MAX);
    let mut out = Printer { out: BufWriter::new(io::stdout().lock()), json: args.json, left, printed: 0 };
    let usual = args.interface.as_deref().map(usual_leases);
    let done = match args.lease_file.clone().or(usual) {
        Some(file) => of_file(&file, args.interface.as_deref().unwrap_or_default(), &sieve, &mut out),
        None => of_router(&args.path()?, wish, &mut out),
    };
    match done.and_then(|()| Ok(out.finish()?)) {
        // A reader that has gone, as `| head` does, has had enough.
        Err(why) if is_gone(&why) => Ok(()),
        done => done,
    }
}

fn is_gone(why: &anyhow::Error) -> bool {
    why.downcast_ref::<io::Error>().is_some_and(|why| why.kind() == ErrorKind::BrokenPipe)
}

impl LeasesArgs {
    /// The router's socket; where there is none, the files that may have been meant.
    fn path(&self) -> anyhow::Result<PathBuf> {
        self.instance.path().map_err(|why| match kept_by_dhcp6s() {
            files if files.is_empty() => why,
            files => why.context(format!(
                "no router is found to ask; what dhcp6s has is in its file: `sixway leases --lease-file {}`",
                files.join("`, or `sixway leases --lease-file ")
            )),
        })
    }
}

/// Files of leases where they usually are.
fn kept_by_dhcp6s() -> Vec<String> {
    let any = usual_leases("");
    let all = any.parent().and_then(|folder| std::fs::read_dir(folder).ok()).into_iter().flatten().flatten();
    let names = all.filter(|one| {
        let name = one.file_name().to_string_lossy().into_owned();
        name.starts_with("dhcp6s_leases_") && name.ends_with(".db")
    });
    let mut names: Vec<String> = names.map(|one| one.path().display().to_string()).collect();
    names.sort();
    names.truncate(8);
    names
}

fn of_file(file: &Path, link: &str, sieve: &Sieve, out: &mut Printer<impl Write>) -> anyhow::Result<()> {
    let (leases, damage) = glance::of_file(file, link)?;
    let now = here::uptime();
    for lease in leases.iter().filter(|lease| sieve.lets(&lease.key, lease.prefix)) {
        if !out.print(&glance::held(lease, now))? {
            break;
        }
    }
    out.out.flush()?;
    ensure!(
        damage.is_none(),
        "{} is damaged: {damage}; what is sound was told. `dhcp6s --mend-leases` mends it",
        file.display()
    );
    Ok(())
}

fn of_router(socket: &Path, mut wish: Wish, out: &mut Printer<impl Write>) -> anyhow::Result<()> {
    let mut tries = 0;
    loop {
        let Response::Leases(page) = ask(socket, &Request::Leases(wish.clone()))? else {
            bail!("the instance answered something else; is it another version?")
        };
        for held in &page.leases {
            if !out.print(held)? {
                return Ok(());
            }
        }
        let Some(next) = page.next else { return Ok(()) };
        tries = if wish.after.as_ref() == Some(&next) { tries + 1 } else { 0 };
        ensure!(tries < TRIES, "the router's DHCPv6 server on links does not answer; its log says why");
        if tries > 0 {
            std::thread::sleep(PAUSE);
        }
        wish.after = Some(next);
    }
}

/// Rows on their way out.
struct Printer<W> {
    out: W,
    json: bool,
    left: usize,
    printed: u64,
}

impl<W: Write> Printer<W> {
    /// Says whether more are wanted.
    fn print(&mut self, held: &Held) -> anyhow::Result<bool> {
        let Some(left) = self.left.checked_sub(1) else { return Ok(false) };
        if self.json {
            writeln!(self.out, "{}", serde_json::to_string(held).context("cannot write JSON")?)?;
        } else {
            if self.printed == 0 {
                writeln!(self.out, "{}", Held::heading())?;
            }
            writeln!(self.out, "{}", held.line_of_text())?;
        }
        (self.left, self.printed) = (left, self.printed + 1);
        Ok(left > 0)
    }

    fn finish(&mut self) -> io::Result<()> {
        if self.printed == 0 && !self.json {
            writeln!(self.out, "nobody has anything like that")?;
        }
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(n: u8) -> Held {
        serde_json::from_value(serde_json::json!({
            "prefix": format!("2001:db8::{n}"), "kind": "IA_NA", "iaid": n, "duid": "00:03", "state": "bound",
            "left_s": 9, "link": "eth1", "peer": null,
        }))
        .unwrap()
    }

    #[test]
    fn rows_are_printed_up_to_the_limit() {
        for (json, left, expected) in [(false, 2, 3), (true, 2, 2), (true, usize::MAX, 5), (false, 0, 1)] {
            let mut out = Printer { out: Vec::new(), json, left, printed: 0 };
            let _wanted: Vec<bool> = (0..5).map(|n| out.print(&held(n)).unwrap()).collect();
            out.finish().unwrap();
            let text = String::from_utf8(out.out).unwrap();
            assert_eq!(text.lines().count(), expected, "{text}");
            let reads_back = |line: &str| serde_json::from_str::<Held>(line).is_ok();
            assert_eq!(text.lines().all(reads_back), json, "{text}");
        }
    }
}
