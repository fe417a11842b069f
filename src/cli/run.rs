//! `sixway run`: the router in the foreground.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::config::Config;
use crate::privileges::leave_network;
use crate::router::{Reread, Router, Start, hold_signals, prepare, release_signals};

/// Arguments of `sixway run`.
#[derive(Debug, Args)]
#[command(
    after_help = "SIGHUP reads the configuration again, SIGTERM stops and leaves nothing behind.\n\nWithout any rights on this host (only /dev/net/tun must be open to you), over UDP:\n  sixway run --unshare --config client.toml -- bash\nThe file must name an admin socket that you may write: [admin] socket = \"/home/bob/sixway.sock\"\n\nExits with the command's own code. Log more or less with SIXWAY_LOG=debug|info|warn|error."
)]
pub struct RunArgs {
    /// Configuration file
    #[arg(long, short, value_name = "FILE", default_value = "/etc/sixway/sixway.toml")]
    config: PathBuf,
    /// Put the TUN device into a user and network namespace of our own; the outer UDP sockets stay in this one
    #[arg(long)]
    unshare: bool,
    /// With --unshare: run this inside, and stop when it ends
    #[arg(last = true, requires = "unshare", value_name = "COMMAND")]
    command: Vec<String>,
}

/// Runs the router until it is told to stop.
pub fn run(args: &RunArgs) -> anyhow::Result<()> {
    start_log(None);
    hold_signals()?;
    let config = Config::load(&args.config)?;
    let prepared = if args.unshare {
        let mut prepared = prepare(&config)?;
        leave_network()?;
        prepared.leave_network();
        Some(prepared)
    } else {
        None
    };
    let file = std::path::absolute(&args.config).unwrap_or_else(|_| args.config.clone());
    let reread = Reread { file, read: Box::new(|file| Ok(Config::load(file)?)) };
    let router =
        Router::start(Start { config, reread: Some(reread), prepared, signals: true, client: None })?;
    release_signals()?;
    match args.command.split_first() {
        None => router.wait(),
        Some((program, arguments)) => run_beside(router, program, arguments),
    }
}

/// Runs a router by this configuration until it is told to stop; `works` is called once it works.
pub(crate) fn serve(
    config: Config,
    reread: Option<Reread>,
    works: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    hold_signals()?;
    let router = Router::start(Start { config, reread, prepared: None, signals: true, client: None })?;
    release_signals()?;
    match works() {
        Ok(()) => router.wait(),
        Err(why) => {
            router.stop()?;
            Err(why)
        }
    }
}

/// Runs a command as long as the router runs; whichever ends first ends the other.
fn run_beside(router: Router, program: &str, arguments: &[String]) -> anyhow::Result<()> {
    let mut child = match Command::new(program).args(arguments).spawn() {
        Ok(child) => child,
        Err(why) => {
            router.stop()?;
            return Err(why).with_context(|| {
                format!("cannot run '{program}': name a program in PATH, or its whole path")
            });
        }
    };
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if router.has_ended() {
            // It may have ended this very moment; else it is asked, and has no network any more anyway.
            let _asked = kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM);
            child.wait()?;
            return router.wait();
        }
        std::thread::sleep(WATCH);
    };
    router.stop()?;
    // The command's own exit code is ours; one that a signal ended counts as failed.
    match status.code() {
        Some(0) => Ok(()),
        Some(code) => std::process::exit(code),
        None => anyhow::bail!("'{program}' ended with {status}"),
    }
}

/// How often the command and the router are looked at.
const WATCH: std::time::Duration = std::time::Duration::from_millis(50);

/// Logs to standard error from now on: as SIXWAY_LOG says, else at this level, else what an operator should know.
pub(crate) fn start_log(level: Option<&str>) {
    let usual =
        level.and_then(|level| level.parse().ok()).unwrap_or(tracing::level_filters::LevelFilter::INFO);
    let filter = tracing_subscriber::EnvFilter::builder()
        .with_env_var("SIXWAY_LOG")
        .with_default_directive(usual.into())
        .from_env_lossy();
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    // A second subscriber is refused: then somebody else has set one up, and it will do.
    let _already_set = log.with_target(false).try_init();
}
