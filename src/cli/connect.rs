//! `sixway connect` and `dtcpc`: a tunnel from a DTCP server, for as long as this runs. From a TSP server: `tspc`.
//!
//! Asks the server, then runs the router with what was granted: the TUN device, the address, the default route. What was
//! changed is put back at the end. Comes back by itself when the connection is lost; a device that still fits stays.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use sixway_dataplane::update::{MAX_MTU, MIN_MTU};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

use super::background::detach;
use super::password;
use super::pd::{self, Pd, PdArgs};
use super::print_line;
use super::run::start_log;
use super::{fixed, tsp_wish, tspc};
use crate::admin::server::AdminSocket;
use crate::config::{Config, DEFAULT_TUN, usual_socket};
use crate::delegation;
use crate::dtcp::client::{Backoff, Client, End, Output, Wish, configuration};
use crate::dtcp::codec::{Kind, PORT, UdpWish, Up, UpInner};
use crate::privileges::check_tun_is_open;
use crate::router::{Router, Start, hold_signals, release_signals};

/// The environment variable that may hold the password.
const PASSWORD: &str = "SIXWAY_PASSWORD";
/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(10);
/// How long the server may take to hear our last word.
const GOODBYE: Duration = Duration::from_secs(2);

/// Arguments of `sixway connect`.
#[derive(Debug, Args)]
#[command(
    after_help = "tsp://alice@broker.example[:3653][?tunnel=v6anyv4|v6v4|v6udpv4][&prefix=56][&keepalive=30]\n    [&auth=scram-sha-256|digest-md5|plain|anonymous][&client=ADDR][&mtu=1280]\n    [&pd=56]; without a user: anonymously\ndtcp://alice@broker.example[:20200][?type=network|host|tunnelonly][&udp[=PORT]][&nat][&mtu=1280][&pd=56]\n--config FILE: the tunnel of this file, with --pd\n\nThe password: --password-file, else SIXWAY_PASSWORD, else it is asked for. It is not sent (except with auth=plain), only what MD5 or SHA-256 makes of it: whoever listens can try passwords against that, so let it be long and random.\n\nTSP finds out by itself whether a NAT is between. For DTCP, behind a NAT that forwards protocol 41 say `nat`; `udp` works with sixway's server only. Without `type` a DTCP tunnel has link-local addresses only, and no default route leads into it unless --pd asks for a prefix."
)]
pub struct ConnectArgs {
    /// Server, user and what is asked for
    #[arg(required_unless_present_any = ["gogoc_conf", "config"], conflicts_with_all = ["gogoc_conf", "config"], value_parser = address)]
    pub(super) url: Option<String>,
    /// Ask as this configuration file of gogoc (gw6c) says
    #[arg(long, value_name = "FILE")]
    pub(super) gogoc_conf: Option<PathBuf>,
    /// Ask nobody for the tunnel: it is the one in this configuration file of `sixway run`
    #[arg(long, value_name = "FILE", conflicts_with_all = ["gogoc_conf", "script", "socket", "once", "no_route", "tun", "password_file"])]
    pub(super) config: Option<PathBuf>,
    /// TSP: let this script give the device its addresses and routes; it is told by gogoc's TSP_* variables
    #[arg(long, value_name = "FILE")]
    pub(super) script: Option<PathBuf>,
    /// Read the password from this file, or from standard input (-)
    #[arg(long, value_name = "FILE")]
    pub(super) password_file: Option<PathBuf>,
    /// Name of the TUN device
    #[arg(long, value_name = "NAME", default_value = DEFAULT_TUN)]
    pub(super) tun: String,
    /// Ask the server, show the configuration that would run, give the tunnel back
    #[arg(long)]
    pub(super) print: bool,
    /// Set no default route
    #[arg(long)]
    pub(super) no_route: bool,
    /// Exit when the connection is lost
    #[arg(long)]
    pub(super) once: bool,
    /// Admin socket [default: /run/sixway/NAME.sock]
    #[arg(long, value_name = "PATH")]
    pub(super) socket: Option<PathBuf>,
    #[command(flatten)]
    pub(super) pd: PdArgs,
}

/// Where to, and what for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The server's name or address.
    pub host: String,
    /// Its TCP port.
    pub port: u16,
    /// On whose account.
    pub user: String,
    /// What type of tunnel.
    pub kind: Kind,
    /// Whether in UDP, and from which port of ours.
    pub udp: Option<u16>,
    /// Whether a NAT is between.
    pub nat: bool,
    /// Largest inner packet in octets.
    pub mtu: u16,
    /// The length of a prefix that is asked for inside the tunnel, in bits.
    pub pd: Option<u8>,
}

/// All that a client needs to run.
#[derive(Debug)]
pub struct Job {
    /// Where to, and what for.
    pub target: Target,
    /// What proves the user.
    pub secret: zeroize::Zeroizing<Vec<u8>>,
    /// The TUN device.
    pub tun: String,
    /// Whether the default route leads into the tunnel.
    pub way: Way,
    /// Whether to come back when the connection is lost.
    pub again: bool,
    /// Whether only to show it.
    pub print: bool,
    /// The admin socket, if not the usual one.
    pub socket: Option<PathBuf>,
    /// Whether somebody waits until this can go to the background.
    pub background: bool,
    /// A prefix that is asked for inside the tunnel.
    pub pd: Option<delegation::Start>,
}

/// A word that is no address of any broker belongs to a flag before it, which takes it only behind `=`.
fn address(text: &str) -> Result<String, String> {
    let is_number = !text.is_empty() && text.trim_start_matches('/').bytes().all(|b| b.is_ascii_digit());
    match () {
        () if is_number => {
            Err(format!("it is no broker's address; if it is a prefix's length, write --pd={text}"))
        }
        () if text.starts_with('/') => {
            Err(format!("it is no broker's address; if it is the key file, write --pd-ctl={text}"))
        }
        () => Ok(text.to_owned()),
    }
}

impl ConnectArgs {
    /// The admin socket; as a configuration names it, wherever this runs.
    pub(super) fn socket(&self) -> anyhow::Result<Option<PathBuf>> {
        Ok(self.socket.as_ref().map(std::path::absolute).transpose()?)
    }
}

/// When the default route leads into the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Never.
    Closed,
    /// When the tunnel has an address that the world can answer to.
    WithAddress,
    /// Always: addresses come from elsewhere.
    Open,
}

impl Way {
    /// Whether it leads into this tunnel.
    fn leads_into(self, up: &Up) -> bool {
        match (self, &up.inner) {
            (Self::Closed, _) | (Self::WithAddress, UpInner::TunnelOnly) => false,
            (Self::Open, _) | (Self::WithAddress, UpInner::Host { .. } | UpInner::Network(_)) => true,
        }
    }
}

/// Keeps a tunnel until a signal ends it.
pub fn run(args: &ConnectArgs) -> anyhow::Result<()> {
    if let Some(file) = &args.config {
        return fixed::keep(args, file);
    }
    if let Some(job) = tsp_wish::job(args)? {
        return tspc::keep(job);
    }
    anyhow::ensure!(args.script.is_none(), "--script is for TSP: there are no scripts for DTCP");
    let target = Target::parse(args.url.as_deref().unwrap_or_default())?;
    let (tun, socket) = (args.tun.clone(), args.socket()?);
    let pd = args.pd.start(target.pd, &tun, target.mtu)?;
    let secret = secret(args.password_file.as_deref(), &target.user, &target.host)?;
    let way = match (args.no_route, &pd) {
        (true, _) => Way::Closed,
        // Hosts behind us have addresses of the prefix, whatever the tunnel has.
        (false, Some(_)) => Way::Open,
        (false, None) => Way::WithAddress,
    };
    keep(Job {
        target,
        secret,
        tun,
        way,
        again: !args.once,
        print: args.print,
        socket,
        background: false,
        pd,
    })
}

/// The password: from the file, else out of the environment, else asked for.
pub fn secret(file: Option<&Path>, user: &str, host: &str) -> anyhow::Result<zeroize::Zeroizing<Vec<u8>>> {
    if let Some(file) = file {
        return password::from_file(file);
    }
    match std::env::var_os(PASSWORD) {
        Some(word) => Ok(zeroize::Zeroizing::new(std::os::unix::ffi::OsStringExt::into_vec(word))),
        None => password::ask(&format!("Password of {user} at {host}: ")),
    }
}

impl Target {
    /// Reads `dtcp://USER@HOST[:PORT][?KEY=VALUE&...]`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(url: &str) -> anyhow::Result<Self> {
        let form = "write dtcp://alice@broker.example?type=network";
        let rest =
            url.strip_prefix("dtcp://").with_context(|| format!("'{url}' is no DTCP address; {form}"))?;
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (user, host) = place
            .trim_end_matches('/')
            .rsplit_once('@')
            .with_context(|| format!("the user is missing; {form}"))?;
        anyhow::ensure!(
            !user.contains(':'),
            "a password has no place in an address, where everybody sees it; {form}"
        );
        let (host, port) = match host.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().with_context(|| format!("'{port}' is no port"))?),
            None => (host, PORT),
        };
        anyhow::ensure!(!user.is_empty() && !host.is_empty(), "user and server are both needed; {form}");
        let (user, host) = (user.to_owned(), host.to_owned());
        let (kind, udp, nat, mtu, pd) = (Kind::TunnelOnly, None, false, 1280, None);
        let mut target = Self { host, port, user, kind, udp, nat, mtu, pd };
        query.split('&').filter(|word| !word.is_empty()).try_for_each(|word| target.set(word))?;
        Ok(target)
    }

    fn set(&mut self, word: &str) -> anyhow::Result<()> {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        match (key, value) {
            ("type", kind) => self.kind = kind_of(kind)?,
            ("udp", "") => self.udp = Some(UDP_PORT),
            ("udp", port) => {
                self.udp = Some(
                    port.parse().ok().filter(|p| *p != 0).with_context(|| format!("'{port}' is no port"))?,
                );
            }
            ("nat", "") => self.nat = true,
            ("mtu", mtu) => self.mtu = mtu_of(mtu)?,
            ("pd", len) => self.pd = Some(pd::length(len).map_err(anyhow::Error::msg)?),
            _ => bail!("'{word}' is not known here; known are type, udp, nat, mtu and pd"),
        }
        Ok(())
    }
}

/// The type of that name.
pub fn kind_of(name: &str) -> anyhow::Result<Kind> {
    Kind::parse(name).with_context(|| format!("'{name}' is no type of tunnel: network, host or tunnelonly"))
}

/// The MTU in this text.
pub fn mtu_of(text: &str) -> anyhow::Result<u16> {
    let mtu = text.parse().ok().filter(|mtu| (MIN_MTU..=MAX_MTU).contains(mtu));
    mtu.with_context(|| format!("'{text}' is no MTU of a tunnel: {MIN_MTU} to {MAX_MTU}"))
}

/// The UDP port that the old client sends from.
pub const UDP_PORT: u16 = 4028;

/// Asks, sets up, keeps, and comes back, until a signal or a refusal.
pub fn keep(job: Job) -> anyhow::Result<()> {
    start_log(None);
    hold_signals()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if job.background && job.again {
        // It will come about some time: nobody has to wait for that.
        detach()?;
    }
    let mut keeper = Keeper { job, up: None, pd: Pd::default(), started: Instant::now() };
    let kept = runtime.block_on(async {
        let kept = keeper.keep().await;
        keeper.pd.finish().await;
        kept
    });
    let put_back = keeper.up.take().map_or(Ok(()), |(_, router)| router.stop());
    kept.and(put_back)
}

struct Keeper {
    job: Job,
    /// What runs, and by which configuration.
    up: Option<(String, Router)>,
    pd: Pd,
    started: Instant,
}

pub(super) struct Signals([Signal; 3], Arc<Notify>);

impl Signals {
    pub(super) fn new() -> anyhow::Result<Self> {
        let [term, int, hup] =
            [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal);
        let taken = Self([term?, int?, hup?], Arc::default());
        release_signals()?;
        Ok(taken)
    }

    /// Whoever tells this wants the end as well.
    pub(super) fn asked(&self) -> Arc<Notify> {
        self.1.clone()
    }

    /// SIGTERM and Ctrl-C end it (true), SIGHUP connects anew (false).
    pub(super) async fn ends(&mut self) -> bool {
        let [term, int, hup] = &mut self.0;
        tokio::select! {
            () = self.1.notified() => true,
            _ = term.recv() => true,
            _ = int.recv() => true,
            _ = hup.recv() => false,
        }
    }
}

/// What stands against a tunnel here is said before a broker is asked: a login that leads to nothing would take the place of
/// a tunnel that works.
pub(super) fn check_here(tun: &str, socket: Option<&Path>) -> anyhow::Result<()> {
    check_tun_is_open()?;
    drop(AdminSocket::bind(socket.unwrap_or(&usual_socket(tun)))?);
    Ok(())
}

/// Waits before the next attempt; true: it was to end.
pub(super) async fn pause(why: &str, backoff: &mut Backoff, signals: &mut Signals) -> bool {
    let wait = backoff.wait(rand::random());
    tracing::warn!("{why}; trying again in {:.1} s", wait.as_secs_f32());
    tokio::select! {
        () = tokio::time::sleep(wait) => false,
        stop = signals.ends() => stop,
    }
}

/// How one connection ended.
enum Left {
    Stopped,
    Anew,
    Ended(End),
}

impl Keeper {
    async fn keep(&mut self) -> anyhow::Result<()> {
        let mut signals = Signals::new()?;
        if !self.job.print {
            check_here(&self.job.tun, self.job.socket.as_deref())?;
            self.pd = Pd::start(self.job.pd.take(), &signals.asked())?;
        }
        let mut backoff = Backoff::default();
        let Target { host, port, kind, .. } = &self.job.target;
        tracing::info!("asking {host}, TCP port {port}, for a tunnel of type {}", kind.name());
        loop {
            let began = Instant::now();
            let left = tokio::select! {
                stream = connect(&self.job.target) => match stream {
                    Ok(stream) => self.talk(stream, &mut signals).await?,
                    Err(why) => Left::Ended(End::Lost(format!("{why:#}"))),
                },
                stop = signals.ends() => if stop { Left::Stopped } else { Left::Anew },
            };
            let why = match left {
                Left::Stopped => return Ok(()),
                Left::Anew => continue,
                Left::Ended(End::Refused(why)) => bail!("{why}"),
                Left::Ended(End::Lost(why)) if !self.job.again || self.job.print => bail!("{why}"),
                Left::Ended(End::Lost(why)) => why,
            };
            if began.elapsed() > Duration::from_secs(60) {
                backoff.reset();
            }
            if pause(&why, &mut backoff, &mut signals).await {
                return Ok(());
            }
        }
    }

    async fn talk(&mut self, mut stream: TcpStream, signals: &mut Signals) -> anyhow::Result<Left> {
        let local = stream.local_addr()?.ip();
        let mut client = Client::new(self.wish(), local, self.started.elapsed());
        let mut octets = [0; 512];
        loop {
            let outputs = client.poll_output();
            let said_all = outputs.is_empty();
            for output in outputs {
                match output {
                    Output::Send(said) => {
                        if stream.write_all(&said).await.is_err() {
                            client.handle_end();
                        }
                    }
                    Output::Up(up) => {
                        if self.set_up(&up, local).await? {
                            client.quit();
                        }
                    }
                    Output::Over(end) => return Ok(goodbye(stream, Left::Ended(end)).await),
                }
            }
            if !said_all {
                continue;
            }
            let Some(due) = client.poll_timeout() else { return Ok(goodbye(stream, Left::Stopped).await) };
            tokio::select! {
                read = stream.read(&mut octets) => match read {
                    Ok(len) if len > 0 => client.handle_input(&octets[..len], self.started.elapsed()),
                    Ok(_) | Err(_) => client.handle_end(),
                },
                () = tokio::time::sleep_until((self.started + due).into()) => client.handle_timeout(self.started.elapsed()),
                () = ended(|| self.up.as_ref().is_some_and(|(_, router)| router.has_ended())) => bail!("the router has ended by itself; its log says why"),
                stop = signals.ends() => {
                    if stop {
                        self.pd.finish().await;
                    }
                    client.quit();
                    for output in client.poll_output() {
                        if let Output::Send(said) = output {
                            let _or_gone = stream.write_all(&said).await;
                        }
                    }
                    return Ok(goodbye(stream, if stop { Left::Stopped } else { Left::Anew }).await);
                }
            }
        }
    }

    fn wish(&self) -> Wish {
        let Job { target, secret, .. } = &self.job;
        // Behind a NAT nobody knows from which port we come: the server learns it.
        let udp = target.udp.map(|port| UdpWish { port: Some(port).filter(|_| !target.nat) });
        let behind_nat = target.nat;
        Wish { user: target.user.clone(), secret: secret.clone(), kind: target.kind, udp, behind_nat }
    }

    /// Runs what was granted; true: it was only to be shown.
    async fn set_up(&mut self, up: &Up, local: IpAddr) -> anyhow::Result<bool> {
        let IpAddr::V4(local) = local else {
            bail!("the tunnel's outer side is IPv4, and the server was reached by IPv6")
        };
        let Job { target, tun, way, socket, .. } = &self.job;
        let leads = way.leads_into(up);
        if !leads && *way != Way::Closed {
            tracing::warn!(
                "the tunnel has link-local addresses only, so no default route leads into it: ask for an address with \
                 ?type=host or for a network with ?type=network (dtcpc: -t); if you give addresses by hand, `ip -6 route add \
                 default dev {tun}`"
            );
        }
        let mut text = configuration(up, local, target.udp, tun, target.mtu, leads);
        if let Some(socket) = socket {
            text += &format!("\n[admin]\nsocket = \"{}\"\n", socket.display());
        }
        if self.job.print {
            text.lines().for_each(print_line);
            pd::print(self.job.pd.as_ref());
            return Ok(true);
        }
        if self.up.as_ref().is_some_and(|(before, router)| *before == text && !router.has_ended()) {
            tracing::info!("the tunnel is back, with the same addresses");
            self.pd.again().await;
            return Ok(false);
        }
        if let Some((_, router)) = self.up.take() {
            router.stop()?;
        }
        let config = Config::parse("what the server granted", &text)?;
        let (client, line) = self.pd.line("dtcp");
        let router = Router::start(Start { config, reread: None, prepared: None, signals: false, client });
        // Its own advice is for those who have written a configuration.
        let router = router.context(
            "a tunnel was granted and cannot be set up here (--tun names another device, --socket another admin socket, \
             --no-route leaves the default route alone)",
        )?;
        tracing::info!("the tunnel is up: {}", shown(up));
        if self.job.background && !self.job.again {
            detach()?;
        }
        self.up = Some((text, router));
        self.pd.up(line).await;
        Ok(false)
    }
}

/// What the server gave, for the log.
fn shown(up: &Up) -> String {
    let inner = match &up.inner {
        UpInner::TunnelOnly => "link-local addresses only".to_owned(),
        // Servers write it with all digits.
        UpInner::Host { client, .. } => {
            client.parse().map_or_else(|_| client.clone(), |addr: Ipv6Addr| addr.to_string())
        }
        UpInner::Network(nets) => nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    };
    format!("{inner} by {}", up.server)
}

/// Waits until the router has ended by itself, which it should not.
pub(super) async fn ended(has_ended: impl Fn() -> bool) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        if has_ended() {
            return;
        }
    }
}

async fn connect(target: &Target) -> anyhow::Result<TcpStream> {
    let name = format!("{}:{}", target.host, target.port);
    let found =
        tokio::net::lookup_host(&name).await.with_context(|| format!("cannot find {}", target.host))?;
    // The tunnel runs between the ends of this connection, and those are IPv4.
    let all: Vec<SocketAddr> = found.filter(SocketAddr::is_ipv4).collect();
    let mut last = anyhow::anyhow!("{} has no IPv4 address", target.host);
    for at in all {
        match tokio::time::timeout(CONNECT, TcpStream::connect(at)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(why)) => last = anyhow::anyhow!("cannot reach {at}: {why}"),
            Err(_) => last = anyhow::anyhow!("cannot reach {at}: no answer in {} s", CONNECT.as_secs()),
        }
    }
    Err(last)
}

/// Lets the server hear our last word before the connection goes.
async fn goodbye(mut stream: TcpStream, left: Left) -> Left {
    let _or_gone = tokio::time::timeout(GOODBYE, async {
        stream.shutdown().await?;
        let mut octets = [0; 512];
        while stream.read(&mut octets).await? > 0 {}
        std::io::Result::Ok(())
    })
    .await;
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_default_route_leads_to_where_nobody_can_answer() {
        let (server, client) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let up = |inner| Up { client, server, inner, udp_port: None };
        let bare = up(UpInner::TunnelOnly);
        let host = up(UpInner::Host { client: "2001:db8::6".to_owned(), server: "2001:db8::5".to_owned() });
        let leads = |up: &Up| [Way::Closed, Way::WithAddress, Way::Open].map(|way| way.leads_into(up));
        assert_eq!((leads(&bare), leads(&host)), ([false, false, true], [false, true, true]));
    }

    #[test]
    fn addresses_say_where_to_and_what_for() {
        let plain = Target::parse("dtcp://alice@broker.example").unwrap();
        assert_eq!((plain.port, plain.kind, plain.mtu), (PORT, Kind::TunnelOnly, 1280));
        let all =
            Target::parse("dtcp://a@10.0.0.1:99/?type=tunnelroute&udp=5000&nat&mtu=1400&pd=48").unwrap();
        let (host, user) = ("10.0.0.1".to_owned(), "a".to_owned());
        let wanted = Target {
            host,
            port: 99,
            user,
            kind: Kind::Network,
            udp: Some(5000),
            nat: true,
            mtu: 1400,
            pd: Some(48),
        };
        assert_eq!(all, wanted);
        for (wrong, word) in [
            ("http://a@b", "no DTCP address"),
            ("dtcp://b", "user is missing"),
            ("dtcp://a:pw@b", "password"),
            ("dtcp://@b", "both needed"),
            ("dtcp://a@b:x", "no port"),
            ("dtcp://a@b?type=x", "no type"),
            ("dtcp://a@b?udp=0", "no port"),
            ("dtcp://a@b?mtu=1279", "1280 to 65000"),
            ("dtcp://a@b?pd=7", "no length of a prefix"),
            ("dtcp://a@b?x", "not known"),
        ] {
            let why = format!("{:#}", Target::parse(wrong).unwrap_err());
            assert!(why.contains(word), "{wrong}: {why}");
        }
    }
}
