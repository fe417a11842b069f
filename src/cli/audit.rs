//! `sixway audit`: pass or fail per requirement for the running router.

use clap::Args;

use super::print_line;
use super::socket::SocketArgs;
use crate::admin::client::ask;
use crate::admin::table::columns;
use crate::admin::{Request, Response};
use crate::audit::{Finding, Outcome};

/// Arguments of `sixway audit`.
#[derive(Debug, Args)]
#[command(
    after_help = "Packets that must not pass are judged on the live tables; files and switches are looked at. Nothing is changed. Exit code 1 when a requirement fails. docs/diagnose.md lists them."
)]
pub struct AuditArgs {
    /// JSON instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    instance: SocketArgs,
}

/// Asks and prints; an error when something fails.
pub fn run(args: &AuditArgs) -> anyhow::Result<()> {
    let Response::Audited(all) = ask(&args.instance.path()?, &Request::Audit)? else {
        anyhow::bail!("the instance answered something else; is it another version?")
    };
    if args.json {
        print_line(&serde_json::to_string(&all)?);
    } else {
        screen(&all).iter().for_each(|line| print_line(line));
    }
    let failed = all.iter().filter(|finding| finding.outcome == Outcome::Fail).count();
    // What applies to nothing here has not been passed either.
    let judged = all.iter().filter(|finding| finding.outcome != Outcome::NotApplicable).count();
    anyhow::ensure!(failed == 0, "{failed} of {judged} requirements fail");
    Ok(())
}

fn screen(all: &[Finding]) -> Vec<String> {
    let word = |outcome| match outcome {
        Outcome::Pass => "pass",
        Outcome::Fail => "FAIL",
        Outcome::NotApplicable => "-",
    };
    let rows: Vec<_> =
        all.iter().map(|f| vec![word(f.outcome).to_owned(), f.name.clone(), f.found.clone()]).collect();
    let lines = columns(&rows, &[]).into_iter().zip(all);
    let told = lines.flat_map(|(line, f)| {
        let next = (!f.next.is_empty()).then(|| format!("      next: {}", f.next));
        std::iter::once(line).chain(next)
    });
    told.collect()
}
