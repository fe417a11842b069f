//! What `sixway connect tsp://` is asked: by an address, or by gogoc's configuration file.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use zeroize::Zeroizing;

use super::connect::{ConnectArgs, secret};
use super::pd;
use super::script::Script;
use crate::broker::Mechanism;
use crate::compat::gogoc::{Gogoc, STOCK_TEMPLATES};
use crate::config::DEFAULT_TUN;
use crate::delegation;
use crate::privileges::told_to_others;
use crate::tsp::codec::Mode;
use crate::tsp::search::Place;
use crate::tsp::setup::House;
use crate::tsp::xml::Name;

/// Where to, and what for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// The broker that is asked first.
    pub(super) place: Place,
    /// The same as the user wrote it.
    pub(super) text: String,
    /// On whose account; empty: nobody's.
    pub(super) user: String,
    /// What type of tunnel.
    pub(super) mode: Mode,
    /// The prefix length of a network, if one is wanted.
    pub(super) prefix: Option<u8>,
    /// Seconds between signs of life; 0: none unless the server wants them.
    pub(super) keepalive: u32,
    /// The only mechanism to log in by.
    pub(super) only: Option<Mechanism>,
    /// Our own IPv4 address, if it is not to be found out.
    pub(super) claimed: Option<Ipv4Addr>,
    /// Name servers for reverse names.
    pub(super) dns: Vec<Name>,
    /// Largest inner packet in octets.
    pub(super) mtu: u16,
    /// The length of a prefix that is asked for inside the tunnel by DHCPv6, in bits.
    pub(super) pd: Option<u8>,
}

/// All that the client needs to run.
#[derive(Debug)]
pub(super) struct Job {
    /// Where to, and what for.
    pub(super) target: Target,
    /// What proves the user.
    pub(super) secret: Zeroizing<Vec<u8>>,
    /// The TUN device.
    pub(super) tun: String,
    /// Whether the default route leads into the tunnel.
    pub(super) routes: bool,
    /// Whether to come back when the tunnel is lost.
    pub(super) again: bool,
    /// Whether only to show it.
    pub(super) print: bool,
    /// The admin socket, if not the usual one.
    pub(super) socket: Option<PathBuf>,
    /// What gives the device its addresses and routes, instead of the router.
    pub(super) script: Option<Script>,
    /// How long to wait after a failure, at first and at most.
    pub(super) delays: (Duration, Duration),
    /// A prefix that is asked for inside the tunnel by DHCPv6.
    pub(super) pd: Option<delegation::Start>,
}

impl Target {
    /// Reads `tsp://[USER@]HOST[:PORT][?KEY=VALUE&...]`.
    pub(super) fn parse(url: &str) -> anyhow::Result<Self> {
        let form = "write tsp://alice@broker.example?tunnel=v6anyv4";
        let rest = url
            .strip_prefix("tsp://")
            .with_context(|| format!("'{url}' is no broker's address; {form}, or dtcp://... for DTCP"))?;
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let place = place.trim_end_matches('/');
        let (user, host) = place.rsplit_once('@').unwrap_or(("", place));
        anyhow::ensure!(
            !user.contains(':'),
            "a password has no place in an address, where everybody sees it; {form}"
        );
        let found = Place::parse(host);
        let place = found.with_context(|| {
            format!("'{host}' is no server: a name or IPv4 address, or with :PORT; {form}")
        })?;
        let (only, text) = (user.is_empty().then_some(Mechanism::Anonymous), host.to_owned());
        let mut target = Self::new(place, text, user.to_owned());
        target.only = only;
        query.split('&').filter(|word| !word.is_empty()).try_for_each(|word| target.set(word))?;
        Ok(target)
    }

    /// What is asked for if nothing more is said.
    pub(super) fn new(place: Place, text: String, user: String) -> Self {
        let (mode, prefix, keepalive, only) = (Mode::V6AnyV4, None, 30, None);
        let (claimed, dns, mtu, pd) = (None, Vec::new(), 1280, None);
        Self { place, text, user, mode, prefix, keepalive, only, claimed, dns, mtu, pd }
    }

    fn set(&mut self, word: &str) -> anyhow::Result<()> {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        match (key, value) {
            ("tunnel", mode) => self.mode = mode_of(mode)?,
            ("prefix", bits) => {
                let bits = bits.trim_start_matches('/').parse().ok().filter(|n| (1..=128).contains(n));
                self.prefix =
                    Some(bits.with_context(|| format!("'{value}' is no prefix length, such as 56"))?);
            }
            ("keepalive", seconds) => {
                let seconds = seconds.parse().with_context(|| format!("'{seconds}' is no number of seconds"));
                self.keepalive = seconds?;
            }
            ("auth", name) => self.only = Some(self.mechanism(name)?),
            ("client", addr) => {
                self.claimed = Some(addr.parse().with_context(|| format!("'{addr}' is no IPv4 address"))?);
            }
            ("mtu", mtu) => self.mtu = mtu.parse().with_context(|| format!("'{mtu}' is no MTU"))?,
            ("pd", len) => self.pd = Some(pd::length(len).map_err(anyhow::Error::msg)?),
            _ => {
                bail!(
                    "'{word}' is not known here; known are tunnel, prefix, keepalive, auth, client, mtu and pd"
                )
            }
        }
        Ok(())
    }

    fn mechanism(&self, name: &str) -> anyhow::Result<Mechanism> {
        let found = Mechanism::parse(name).filter(|one| *one != Mechanism::Apop);
        let one = found.with_context(|| {
            format!("'{name}' is no mechanism of TSP: scram-sha-256, digest-md5, plain or anonymous")
        })?;
        let is_nobody = self.user.is_empty();
        anyhow::ensure!(!is_nobody || one == Mechanism::Anonymous, "{name} needs a user: tsp://alice@...");
        Ok(one)
    }

    /// Whether a password is needed.
    pub(super) fn is_anonymous(&self) -> bool {
        self.user.is_empty() || self.only == Some(Mechanism::Anonymous)
    }
}

fn mode_of(name: &str) -> anyhow::Result<Mode> {
    match name.parse() {
        Ok(mode @ (Mode::V6AnyV4 | Mode::V6V4 | Mode::V6UdpV4)) => Ok(mode),
        Ok(Mode::V4V6) | Err(()) => bail!("'{name}' is no type of tunnel: v6anyv4, v6v4 or v6udpv4"),
    }
}

/// What the command line asks of a TSP server; `None`: it asks another one.
pub(super) fn job(args: &ConnectArgs) -> anyhow::Result<Option<Job>> {
    match (&args.gogoc_conf, &args.url) {
        (Some(file), _) => from_gogoc(args, file).map(Some),
        (None, Some(url)) if !url.starts_with("dtcp://") => from_url(args, url).map(Some),
        (None, _) => Ok(None),
    }
}

fn from_url(args: &ConnectArgs, url: &str) -> anyhow::Result<Job> {
    let target = Target::parse(url)?;
    let script = args.script.as_deref().map(|path| Script::find(path, house(path, None)));
    Ok(Job {
        secret: password(args, &target, None)?,
        pd: args.pd.start(target.pd, &args.tun, target.mtu)?,
        target,
        tun: args.tun.clone(),
        routes: !args.no_route,
        again: !args.once,
        print: args.print,
        socket: args.socket()?,
        script: script.transpose()?,
        delays: (Duration::from_secs(1), Duration::from_secs(60)),
    })
}

fn from_gogoc(args: &ConnectArgs, file: &Path) -> anyhow::Result<Job> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let found = Gogoc::parse(&file.display().to_string(), &Zeroizing::new(text))?;
    if !found.secret.0.is_empty() {
        told_to_others(file).iter().for_each(|said| eprintln!("sixway: {said}"));
    }
    for note in &found.notes {
        eprintln!("{note}");
    }
    let known = Some(Zeroizing::new(found.secret.0.as_bytes().to_vec())).filter(|word| !word.is_empty());
    let target = Target {
        mode: found.mode,
        prefix: found.router.then_some(found.prefix_len),
        keepalive: found.keepalive,
        only: found.mechanism,
        claimed: found.client,
        dns: found.dns,
        ..Target::new(found.server, found.server_text, found.user)
    };
    let home = found.home.filter(|_| found.router);
    let own = template(found.template.as_deref(), Path::new(&found.folder), home.as_deref());
    let script = args
        .script
        .clone()
        .or(own)
        .map(|path| Script::find(&path, House { folder: found.folder.clone(), home: home.clone() }));
    // A device that the file names is what its user knows; another one can be said on the command line.
    let named = found.tun.filter(|_| args.tun == DEFAULT_TUN);
    let tun = named.unwrap_or_else(|| args.tun.clone());
    Ok(Job {
        secret: password(args, &target, known)?,
        pd: args.pd.start(target.pd, &tun, target.mtu)?,
        target,
        tun,
        routes: !args.no_route,
        again: found.retry && !args.once,
        print: args.print,
        socket: args.socket()?,
        script: script.transpose()?,
        delays: found.delays,
    })
}

/// The script that the file names. Those that came with gogoc do what the router does by itself where they are missing; any
/// other is somebody's own, and has to be there.
fn template(name: Option<&str>, folder: &Path, home: Option<&str>) -> Option<PathBuf> {
    let name = name?;
    let script = folder.join("template").join(format!("{name}.sh"));
    if script.exists() || !STOCK_TEMPLATES.contains(&name) {
        return Some(script);
    }
    let network =
        home.map(|home| format!("; nothing is put on if_prefix={home}: do that by hand, or ask with --pd"));
    eprintln!(
        "sixway: template={name}: there is no {}, so sixway gives the device its address and the default route itself{} \
         (template=none says so without this)",
        script.display(),
        network.unwrap_or_default()
    );
    None
}

fn house(script: &Path, home: Option<String>) -> House {
    let folder = script.parent().map(|folder| folder.display().to_string()).unwrap_or_default();
    House { folder, home }
}

fn password(
    args: &ConnectArgs,
    target: &Target,
    known: Option<Zeroizing<Vec<u8>>>,
) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    match known {
        _ if target.is_anonymous() => Ok(Zeroizing::default()),
        Some(word) if args.password_file.is_none() => Ok(word),
        Some(_) | None => secret(args.password_file.as_deref(), &target.user, &target.place.host),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tsp::codec::PORT;

    #[test]
    fn gogoc_s_own_scripts_need_not_be_there() {
        let nowhere = Path::new("");
        assert_eq!(template(Some("linux"), nowhere, Some("eth0")), None);
        assert_eq!(template(Some("mine"), nowhere, None), Some("template/mine.sh".into()));
        assert_eq!(template(None, nowhere, None), None);
        let folder = std::env::temp_dir().join(format!("sixway-template-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("template")).unwrap();
        std::fs::write(folder.join("template/linux.sh"), "").unwrap();
        assert_eq!(template(Some("linux"), &folder, None), Some(folder.join("template/linux.sh")));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn addresses_say_where_to_and_what_for() {
        let plain = Target::parse("tsp://alice@broker.example").unwrap();
        assert_eq!((plain.mode, plain.prefix, plain.keepalive, plain.mtu), (Mode::V6AnyV4, None, 30, 1280));
        assert!(!plain.is_anonymous() && plain.place.port == PORT);
        let all = "tsp://a@Broker.Example:99/?tunnel=v6udpv4&prefix=56&keepalive=0&auth=digest-md5&mtu=1400&client=10.0.0.2";
        let all = Target::parse(all).unwrap();
        assert_eq!(
            (all.text.as_str(), all.place.to_string().as_str()),
            ("Broker.Example:99", "broker.example:99")
        );
        assert_eq!((all.mode, all.prefix, all.keepalive), (Mode::V6UdpV4, Some(56), 0));
        assert_eq!(
            (all.only, all.mtu, all.claimed),
            (Some(Mechanism::DigestMd5), 1400, Some([10, 0, 0, 2].into()))
        );
        assert!(Target::parse("tsp://broker.example").unwrap().is_anonymous());
        for (wrong, word) in [
            ("http://a@b", "no broker's address"),
            ("tsp://a:pw@b", "password"),
            ("tsp://a@", "no server"),
            ("tsp://a@b:x", "no server"),
            ("tsp://a@[2001:db8::1]", "no server"),
            ("tsp://a@b?tunnel=x", "no type"),
            ("tsp://a@b?tunnel=v4v6", "no type"),
            ("tsp://a@b?prefix=0", "no prefix length"),
            ("tsp://a@b?auth=apop", "no mechanism"),
            ("tsp://b?auth=plain", "needs a user"),
            ("tsp://a@b?mtu=x", "no MTU"),
            ("tsp://a@b?x", "not known"),
        ] {
            let why = format!("{:#}", Target::parse(wrong).unwrap_err());
            assert!(why.contains(word), "{wrong}: {why}");
        }
    }
}
