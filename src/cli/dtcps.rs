//! `dtcps`: the DTCP server with the old program's flags, by its own name or as `sixway dtcps`.
//!
//! The same router as `sixway run`, with the flags put over its configuration file, if there is one. Without `-D` it goes
//! to the background once it works: what stands against that is said, and told by the exit code, before.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;

use super::background::{detach, into_background};
use super::run::{serve, start_log};
use crate::compat::dtcps::{Flags, POPAUTH, ROUTETABLE};
use crate::config::{Config, DEFAULT_PATH};
use crate::router::Reread;

/// Arguments of `dtcps`.
#[derive(Debug, Args)]
#[command(
    disable_version_flag = true,
    after_help = "Users and their passwords: `dtcpauth`, or `sixway user`. Prefixes: /usr/local/etc/routetable, or [dtcp] routetable in the configuration file, whose other keys hold too where no flag says otherwise.\n\n-U gives IPv6 in UDP to clients who ask in sixway's own words: how dtcpc asks is not known."
)]
pub struct DtcpsArgs {
    /// Address pairs of `host` tunnels begin so, as in 2001:db8:ffff::
    prefix: Option<String>,
    /// An interface name that names are counted up from (gif10), or an expression that they match (gif7[0-9])
    #[arg(short, value_name = "INTERFACES")]
    interfaces: Option<String>,
    /// What -i says is always an expression
    #[arg(short = 'c')]
    no_cloning: bool,
    /// Names that were made stay, and are used again first
    #[arg(short = 'o')]
    keep: bool,
    /// Our IPv4 address as clients are told, where a NAT is before us
    #[arg(short = 'g', value_name = "ADDRESS")]
    public_address: Option<String>,
    /// TCP port [default: 20200]
    #[arg(short, value_name = "PORT")]
    port: Option<u16>,
    /// Give out IPv6 in UDP too
    #[arg(short = 'U')]
    udp: bool,
    /// Lowest UDP port, one for each tunnel [default: 4028]
    #[arg(short = 'b', value_name = "UDP-PORT")]
    udp_port: Option<u16>,
    /// Name that those of UDP tunnels are counted up from (ng0)
    #[arg(short = 'I', value_name = "UDP-INTERFACE")]
    udp_interface: Option<String>,
    /// Stay in the foreground
    #[arg(short = 'D')]
    foreground: bool,
    /// Log what is done, to standard error
    #[arg(short)]
    debug: bool,
    /// Configuration file [default: /etc/sixway/sixway.toml, where it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Say so on standard output when it works (used by the process that waits for it)
    #[arg(long, hide = true)]
    child: bool,
}

/// Runs the server until it is told to stop; without `-D` in a process of its own.
pub fn run(args: &DtcpsArgs) -> anyhow::Result<()> {
    if !args.foreground && !args.child {
        // First here, where mistakes are seen.
        configuration(args)?;
        return into_background("dtcps");
    }
    start_log(args.debug.then_some("debug"));
    let (config, file) = configuration(args)?;
    let (child, flags) = (args.child, flags(args));
    // The flags hold after a reload too.
    let reread = file.map(|file| Reread { file, read: Box::new(move |file| over(&flags, Some(file))) });
    serve(config, reread, || if child { detach() } else { Ok(()) })
}

fn configuration(args: &DtcpsArgs) -> anyhow::Result<(Config, Option<PathBuf>)> {
    let usual = Path::new(DEFAULT_PATH);
    let file = args.config.clone().or_else(|| usual.exists().then(|| usual.to_owned()));
    // The process will have another directory in the background.
    let file = file.map(std::path::absolute).transpose()?;
    Ok((over(&flags(args), file.as_deref())?, file))
}

/// The configuration of the file, if there is one, with the flags over it.
fn over(flags: &Flags, file: Option<&Path>) -> anyhow::Result<Config> {
    let base = match file {
        Some(file) => {
            // For its own mistakes, with their lines.
            Config::load(file)?;
            std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?
        }
        None => String::new(),
    };
    let text = flags.over(&base).map_err(anyhow::Error::msg)?;
    Ok(Config::parse("dtcps", &text)?)
}

fn flags(args: &DtcpsArgs) -> Flags {
    Flags {
        port: args.port,
        prefix: args.prefix.clone(),
        interfaces: args.interfaces.clone(),
        no_cloning: args.no_cloning,
        keep: args.keep,
        public_address: args.public_address.clone(),
        udp: args.udp,
        udp_port: args.udp_port,
        udp_interface: args.udp_interface.clone(),
        routetable: Some(ROUTETABLE.to_owned()),
        popauth: Some(POPAUTH.to_owned()),
    }
}
