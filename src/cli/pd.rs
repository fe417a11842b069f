//! `sixway connect --pd`: what is asked for inside the tunnel, and what the keepers of tunnels do for it.

use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use tokio::sync::Notify;
use zeroize::Zeroizing;

use super::print_line;
use crate::compat::ctlkey;
use crate::delegation::line::{Line, Port, line};
use crate::delegation::plan::{Place, Wish};
use crate::delegation::radvd::can_name;
use crate::delegation::{Delegation, Start};
use crate::dhcp6ctl::{CLIENT_KEY, CLIENT_PORT};
use crate::privileges::told_to_others;
use crate::script;

/// The prefix length that is asked for if none is said.
const USUAL: &str = "56";
/// Where the DUID is kept if no place is said.
const USUAL_DUID: &str = "/var/lib/sixway/connect.duid";
/// The most interfaces.
const MOST_PLACES: usize = 64;

/// What is asked for by DHCPv6.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "A prefix inside the tunnel (DHCPv6)")]
pub(super) struct PdArgs {
    /// Ask for a prefix of this length [default: 56]
    #[arg(long, value_name = "LEN", num_args = 0..=1, require_equals = true, default_missing_value = USUAL, value_parser = length)]
    pd: Option<u8>,
    /// Ask for no prefix, only for name servers and search domains, which the script is told
    #[arg(long, conflicts_with_all = ["pd", "pd_to", "pd_address"], requires = "pd_script")]
    pd_info: bool,
    /// Ask for an address too, for the tunnel's device
    #[arg(long)]
    pd_address: bool,
    /// Give this interface the Nth /64 of it, from 1, and the first address therein; may be said again
    #[arg(long, value_name = "IF[:N]", value_parser = Place::parse)]
    pd_to: Vec<Place>,
    /// Write radvd's configuration for these interfaces to this file
    #[arg(long, value_name = "FILE", requires = "pd_to")]
    pd_radvd: Option<PathBuf>,
    /// Run this script when the prefix comes, is renewed, changes or goes; it is told by SIXWAY_* variables
    #[arg(long, value_name = "FILE")]
    pd_script: Option<PathBuf>,
    /// What the client calls itself is kept here [default: /var/lib/sixway/connect.duid]
    #[arg(long, value_name = "FILE")]
    pd_duid: Option<PathBuf>,
    /// Obey dhcp6ctl -C, with the key in this file [default: /etc/wide-dhcpv6/dhcp6cctlkey]
    #[arg(long, value_name = "KEYFILE", num_args = 0..=1, require_equals = true, default_missing_value = CLIENT_KEY)]
    pd_ctl: Option<PathBuf>,
    /// The port on ::1 for that
    #[arg(long, value_name = "PORT", default_value_t = CLIENT_PORT, requires = "pd_ctl")]
    pd_ctl_port: u16,
}

/// The prefix length in this text.
pub(super) fn length(text: &str) -> Result<u8, String> {
    let text = if text.is_empty() { USUAL } else { text.trim_start_matches('/') };
    let len = text.parse().ok().filter(|len| (16..=64).contains(len));
    len.ok_or_else(|| format!("'{text}' is no length of a prefix to ask for: 16 to 64, such as 56"))
}

impl PdArgs {
    /// What is to be asked for in the tunnel of this device, if anything; a length in the address counts if none is said here.
    pub(super) fn start(&self, in_address: Option<u8>, tun: &str, mtu: u16) -> anyhow::Result<Option<Start>> {
        let len = self.pd.or(in_address);
        anyhow::ensure!(
            !self.pd_info || len.is_none(),
            "--pd-info asks for no prefix, and ?pd= in the address asks for one; leave one of them out"
        );
        if len.is_none() && !self.pd_info {
            let idle = self.pd_address
                || !self.pd_to.is_empty()
                || self.pd_script.is_some()
                || self.pd_duid.is_some()
                || self.pd_ctl.is_some();
            anyhow::ensure!(
                !idle,
                "--pd-to and the like say what is done with a prefix; ask for one with --pd"
            );
            return Ok(None);
        }
        self.check_places(tun)?;
        let (duid, is_usual) = self.duid()?;
        let wish = Wish {
            len,
            address: self.pd_address,
            to: self.pd_to.clone(),
            radvd: self.pd_radvd.as_ref().map(std::path::absolute).transpose()?,
            script: self.pd_script.as_deref().map(script::find).transpose()?,
            tun: tun.to_owned(),
            mtu,
        };
        let control = self.pd_ctl.as_deref().map(secret).transpose()?;
        let control = control.map(|secret| ((Ipv6Addr::LOCALHOST, self.pd_ctl_port).into(), secret));
        Ok(Some(Start { wish, duid, is_usual, control }))
    }

    /// No two interfaces have the same network, and the tunnel itself has none.
    fn check_places(&self, tun: &str) -> anyhow::Result<()> {
        anyhow::ensure!(self.pd_to.len() <= MOST_PLACES, "--pd-to can be said {MOST_PLACES} times");
        anyhow::ensure!(
            self.pd_to.iter().all(|place| place.interface != tun),
            "--pd-to {tun}: that is the tunnel's own device, and hosts are behind other interfaces; --pd-address asks for an \
             address for it"
        );
        for (n, place) in self.pd_to.iter().enumerate() {
            let twice = self.pd_to[..n].iter().find(|other| other.number == place.number);
            if let Some(other) = twice {
                anyhow::bail!(
                    "--pd-to: {} and {} would have the same network; write {}:{}",
                    other.interface,
                    place.interface,
                    place.interface,
                    n + 1
                );
            }
        }
        if let Some(place) =
            self.pd_to.iter().find(|place| self.pd_radvd.is_some() && !can_name(&place.interface))
        {
            anyhow::bail!(
                "--pd-radvd: radvd takes '{}' for a word of its own; rename the interface",
                place.interface
            );
        }
        Ok(())
    }

    /// The DUID's file, and whether it is the usual one.
    fn duid(&self) -> anyhow::Result<(PathBuf, bool)> {
        let Some(file) = &self.pd_duid else { return Ok((USUAL_DUID.into(), true)) };
        let file = std::path::absolute(file)?;
        let folder = file.parent().unwrap_or(Path::new("/"));
        anyhow::ensure!(
            folder.is_dir(),
            "--pd-duid {}: there is no folder {}; make it, or name another file",
            file.display(),
            folder.display()
        );
        Ok((file, false))
    }
}

/// The secret in the key file for dhcp6ctl.
fn secret(file: &Path) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let octets = std::fs::read(file).with_context(|| {
        let shown = file.display();
        format!(
            "cannot read the key file {shown}, which --pd-ctl needs; (umask 077; head -c 32 /dev/urandom | base64 > {shown}) \
             makes one, and dhcp6ctl is given the same"
        )
    })?;
    let secret = ctlkey::parse(&octets).with_context(|| format!("the key file {}", file.display()))?;
    told_to_others(file).iter().for_each(|said| eprintln!("sixway: {said}"));
    Ok(secret)
}

/// Shows what would be done, as comments in a configuration.
pub(super) fn print(start: Option<&Start>) {
    let lines = start.map(|start| start.wish.intent()).unwrap_or_default();
    lines.iter().for_each(|line| print_line(&format!("# --pd: {line}")));
}

/// A delegation, if one is wanted.
#[derive(Debug, Default)]
pub(super) struct Pd(Option<Delegation>);

impl Pd {
    /// Gets it ready; `stop` is told when dhcp6ctl wants the end.
    pub(super) fn start(wanted: Option<Start>, stop: &Arc<Notify>) -> anyhow::Result<Self> {
        wanted.map(|start| Delegation::start(start, stop.clone())).transpose().map(Self)
    }

    /// A line into the tunnel of this name: the router's end and ours.
    pub(super) fn line(&self, tunnel: &str) -> (Option<Port>, Option<Line>) {
        self.0.as_ref().map(|delegation| line(tunnel, delegation.report())).unzip()
    }

    /// The tunnel is up.
    pub(super) async fn up(&self, line: Option<Line>) {
        if let (Some(delegation), Some(line)) = (&self.0, line) {
            delegation.up(line).await;
        }
    }

    /// It has been granted anew, as it was.
    pub(super) async fn again(&self) {
        if let Some(delegation) = &self.0 {
            delegation.again().await;
        }
    }

    /// The prefix goes back, while the tunnel is up.
    pub(super) async fn finish(&mut self) {
        if let Some(delegation) = self.0.take() {
            delegation.finish().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        pd: PdArgs,
    }

    fn asked(line: &str, in_address: Option<u8>) -> Result<Option<(Option<u8>, usize)>, String> {
        let line = Line::try_parse_from(line.split_whitespace()).map_err(|why| why.to_string())?;
        let start = line.pd.start(in_address, "six0", 1280).map_err(|why| format!("{why:#}"))?;
        Ok(start.map(|start| (start.wish.len, start.wish.to.len())))
    }

    #[test]
    fn what_is_asked_for_is_read() {
        assert_eq!(asked("x", None), Ok(None));
        assert_eq!(asked("x --pd", None), Ok(Some((Some(56), 0))));
        assert_eq!(asked("x --pd=48 --pd-to eth1 --pd-to eth2:2", Some(60)), Ok(Some((Some(48), 2))));
        assert_eq!(asked("x --pd-to eth1:1", Some(60)), Ok(Some((Some(60), 1))));
        assert_eq!(asked("x --pd-info --pd-script /bin/true", None), Ok(Some((None, 0))));
        let both = asked("x --pd-info --pd-script /bin/true", Some(56)).unwrap_err();
        assert!(both.contains("leave one of them out"), "{both}");
        for (wrong, word) in [
            ("x --pd-info", "--pd-script"),
            ("x --pd-info --pd --pd-script /bin/true", "cannot be used with"),
            ("x --pd=65", "no length"),
            ("x --pd-to eth1", "ask for one with --pd"),
            ("x --pd --pd-to eth1:0", "Nth /64"),
            ("x --pd --pd-to eth1 --pd-to eth2", "same network; write eth2:2"),
            ("x --pd --pd-radvd f", "--pd-to"),
            ("x --pd --pd-script /nowhere", "cannot read the script"),
            ("x --pd --pd-ctl=/nowhere", "head -c 32 /dev/urandom | base64 > /nowhere"),
            ("x --pd --pd-ctl-port 7", "--pd-ctl"),
            ("x --pd --pd-to eth1 --pd-to six0:2", "the tunnel's own device"),
            ("x --pd --pd-duid /nowhere/duid", "there is no folder /nowhere"),
            ("x --pd-duid /duid", "ask for one with --pd"),
        ] {
            let why = asked(wrong, None).unwrap_err();
            assert!(why.contains(word), "{wrong}: {why}");
        }
    }
}
