//! `sixway connect tsp://`: a tunnel from a TSP server, for as long as this runs.
//!
//! Finds a broker that gives one ([`crate::tsp::search`]), runs the router with what was granted, or a script in gogoc's
//! style beside it, sends signs of life, renews the tunnel at half its lifetime and comes back when it dies. A tunnel in UDP
//! runs from the port that has asked for it: the socket that talked is closed, and the router listens there. What was
//! changed is put back at the end.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use super::connect::{Signals, ended};
use super::pd::{self, Pd};
use super::pinger::Pinger;
use super::print_line;
use super::run::start_log;
use super::tsp_wish::Job;
use crate::auth::Identity;
use crate::config::Config;
use crate::dtcp::client::Backoff;
use crate::router::{Router, Start, hold_signals};
use crate::tsp::client::{Client, End, Granted, Login, Output, Transport, Wish, echo_request, is_echo_reply};
use crate::tsp::codec::{PORT, Version};
use crate::tsp::keepalive::{Keepalive, Sign};
use crate::tsp::search::{Place, Search, Step};
use crate::tsp::setup::{Occasion, Side, configuration, variables};

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(10);
/// The most addresses of one name that are tried.
const MOST_ADDRESSES: usize = 3;
/// How often brokers of a list are asked how near they are, and how long each question waits.
const ECHOES: u32 = 3;
const ECHO_PATIENCE: Duration = Duration::from_secs(2);
/// A lifetime is not taken to be shorter than this.
const SHORTEST_LIFE: Duration = Duration::from_secs(60);

/// Finds a tunnel, keeps it, and comes back, until a signal or a refusal.
pub(super) fn keep(job: Job) -> anyhow::Result<()> {
    start_log(None);
    hold_signals()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut keeper = Keeper { job, up: None, pd: Pd::default(), started: Instant::now() };
    runtime.block_on(async {
        let kept = keeper.keep().await;
        keeper.pd.finish().await;
        let put_back = keeper.take_down().await;
        kept.and(put_back)
    })
}

/// A tunnel that is set up.
struct Up {
    config: String,
    router: Router,
    /// What the script was told, for when it goes.
    farewell: Vec<(&'static str, String)>,
}

struct Keeper {
    job: Job,
    up: Option<Up>,
    pd: Pd,
    started: Instant,
}

/// A session that has given a tunnel.
struct Won {
    granted: Granted,
    local: SocketAddrV4,
    server: SocketAddrV4,
    /// Kept open as long as the tunnel lives: servers of old may look at it.
    _stream: Option<TcpStream>,
}

/// How one life of the tunnel ended.
enum Left {
    Stopped,
    Anew,
    Ended(End),
}

impl Keeper {
    async fn keep(&mut self) -> anyhow::Result<()> {
        let mut signals = Signals::new()?;
        if !self.job.print {
            self.pd = Pd::start(self.job.pd.take(), &signals.asked())?;
        }
        let (first, most) = self.job.delays;
        let mut backoff = Backoff::between(first, most);
        loop {
            let why = match self.live(&mut signals, &mut backoff).await? {
                Left::Stopped => return Ok(()),
                Left::Anew => continue,
                Left::Ended(End::Lost(why)) if self.job.again && !self.job.print => why,
                Left::Ended(end) => bail!("{end}"),
            };
            let wait = backoff.wait(rand::random());
            tracing::warn!("{why}; trying again in {:.1} s", wait.as_secs_f32());
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                stop = signals.ends() => if stop { return Ok(()) },
            }
        }
    }

    /// From the first question to the end of the tunnel.
    async fn live(&mut self, signals: &mut Signals, backoff: &mut Backoff) -> anyhow::Result<Left> {
        let won = tokio::select! {
            found = self.find() => match found? {
                Ok(won) => won,
                Err(end) => return Ok(Left::Ended(end)),
            },
            stop = signals.ends() => return Ok(if stop { Left::Stopped } else { Left::Anew }),
        };
        if self.set_up(&won).await? {
            return Ok(Left::Stopped);
        }
        let began = Instant::now();
        let left = self.watch(&won.granted, signals).await?;
        if began.elapsed() > Duration::from_secs(60) {
            backoff.reset();
        }
        Ok(left)
    }

    /// Asks brokers until one gives a tunnel.
    async fn find(&self) -> anyhow::Result<Result<Won, End>> {
        let mut search = Search::new(self.job.target.place.clone(), self.job.target.mode);
        loop {
            match search.step() {
                Step::Over(end) => return Ok(Err(end)),
                Step::Time(places) => search.handle_times(&self.time_all(&places).await),
                Step::Ask { at, over, version } => {
                    tracing::debug!("asking {at} by {over:?}, TSP {version}");
                    match self.ask(&at, over, version).await? {
                        Ok(won) => return Ok(Ok(won)),
                        Err(end) => {
                            tracing::debug!("{at} by {over:?}: {end}");
                            search.handle_end(end);
                        }
                    }
                }
            }
        }
    }

    /// A session with each address of a broker, until one answers.
    async fn ask(&self, at: &Place, over: Transport, version: Version) -> anyhow::Result<Result<Won, End>> {
        let addresses = match find(at).await {
            Ok(addresses) => addresses,
            Err(why) => return Ok(Err(End::Lost(format!("{why:#}")))),
        };
        for server in addresses {
            let done = match over {
                Transport::Udp => self.ask_by_udp(at, server, version).await?,
                Transport::Tcp => self.ask_by_tcp(at, server, version).await?,
            };
            if !matches!(done, Err(End::Silent)) {
                return Ok(done);
            }
        }
        Ok(Err(End::Silent))
    }

    async fn ask_by_udp(
        &self,
        at: &Place,
        server: SocketAddrV4,
        version: Version,
    ) -> anyhow::Result<Result<Won, End>> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.context("cannot open a UDP socket")?;
        if let Err(why) = socket.connect(server).await {
            return Ok(Err(End::Lost(format!("cannot reach {server}: {why}"))));
        }
        let SocketAddr::V4(local) = socket.local_addr()? else { return Ok(Err(End::Silent)) };
        let mut client = self.client(at, *local.ip(), version, Transport::Udp);
        let mut octets = vec![0; 8192];
        loop {
            for output in client.poll_output() {
                match output {
                    // What cannot be sent now is sent again.
                    Output::Send(datagram) => drop(socket.send(&datagram).await),
                    Output::Up(granted) => return Ok(Ok(Won { granted, local, server, _stream: None })),
                    Output::Over(end) => return Ok(Err(end)),
                }
            }
            let Some(due) = client.poll_timeout() else { return Ok(Err(End::Silent)) };
            tokio::select! {
                read = socket.recv(&mut octets) => match read {
                    Ok(len) => client.handle_datagram(&octets[..len], self.started.elapsed()),
                    // Nobody listens there.
                    Err(_) => client.handle_end(),
                },
                () = tokio::time::sleep_until((self.started + due).into()) => {
                    client.handle_timeout(self.started.elapsed());
                }
            }
        }
    }

    async fn ask_by_tcp(
        &self,
        at: &Place,
        server: SocketAddrV4,
        version: Version,
    ) -> anyhow::Result<Result<Won, End>> {
        let Ok(Ok(mut stream)) = tokio::time::timeout(CONNECT, TcpStream::connect(server)).await else {
            return Ok(Err(End::Silent));
        };
        let SocketAddr::V4(local) = stream.local_addr()? else { return Ok(Err(End::Silent)) };
        let _or_slower = stream.set_nodelay(true);
        let mut client = self.client(at, *local.ip(), version, Transport::Tcp);
        let mut octets = vec![0; 4096];
        loop {
            for output in client.poll_output() {
                match output {
                    Output::Send(said) => {
                        if stream.write_all(&said).await.is_err() {
                            client.handle_end();
                        }
                    }
                    Output::Up(granted) => {
                        return Ok(Ok(Won { granted, local, server, _stream: Some(stream) }));
                    }
                    Output::Over(end) => return Ok(Err(end)),
                }
            }
            // The end of a session is in its outputs: none is left behind.
            let Some(due) = client.poll_timeout() else { continue };
            tokio::select! {
                read = stream.read(&mut octets) => match read {
                    Ok(len) if len > 0 => client.handle_input(&octets[..len], self.started.elapsed()),
                    Ok(_) | Err(_) => client.handle_end(),
                },
                () = tokio::time::sleep_until((self.started + due).into()) => {
                    client.handle_timeout(self.started.elapsed());
                }
            }
        }
    }

    fn client(&self, at: &Place, local: Ipv4Addr, version: Version, over: Transport) -> Client {
        let Job { target, secret, print, .. } = &self.job;
        let login = match target.is_anonymous() {
            true => Login::Anonymous,
            false => {
                let who = Identity { user: target.user.clone(), secret: secret.clone() };
                Login::Account { who, only: target.only }
            }
        };
        // The old servers know themselves by the name that their users write.
        let place = if *at == target.place { target.text.clone() } else { at.to_string() };
        let wish = Wish {
            login,
            mode: target.mode,
            claimed: target.claimed.unwrap_or(local),
            keepalive: target.keepalive,
            prefix: target.prefix,
            dns: target.dns.clone(),
            place,
            decline: *print,
        };
        Client::new(wish, version, over, rand::random(), self.started.elapsed())
    }

    /// How long each of the brokers takes to answer.
    async fn time_all(&self, places: &[Place]) -> Vec<Option<Duration>> {
        let timed = places.iter().map(|place| time(place, self.started));
        futures_util::future::join_all(timed).await
    }

    /// Runs what was granted; true: it was only to be shown.
    async fn set_up(&mut self, won: &Won) -> anyhow::Result<bool> {
        let Won { granted, local, server, .. } = won;
        let Job { target, tun, routes, script, socket, .. } = &self.job;
        let side = Side {
            local: *local,
            server: *server,
            tun: tun.clone(),
            mtu: target.mtu,
            default_route: *routes,
            scripted: script.is_some(),
        };
        let mut text = configuration(granted, &side);
        if let Some(socket) = socket {
            text += &format!("\n[admin]\nsocket = \"{}\"\n", socket.display());
        }
        if self.job.print {
            text.lines().for_each(print_line);
            pd::print(self.job.pd.as_ref());
            return Ok(true);
        }
        if self.up.as_ref().is_some_and(|up| up.config == text && !up.router.has_ended()) {
            tracing::info!("the tunnel is renewed, with the same addresses");
            self.pd.again().await;
            return Ok(false);
        }
        self.take_down().await?;
        let config = Config::parse("what the server granted", &text)?;
        let (client, line) = self.pd.line("tsp");
        let router = Router::start(Start { config, reread: None, prepared: None, signals: false, client })?;
        let mut up = Up { config: text, router, farewell: Vec::new() };
        if let Some(script) = &self.job.script {
            up.farewell = variables(granted, &side, &script.house, Occasion::Down);
            let told = variables(granted, &side, &script.house, Occasion::Up);
            if let Err(why) = script.run(&told).await {
                let _the_script_is_what_failed = up.router.stop();
                return Err(why);
            }
        }
        tracing::info!("the tunnel is up: {}", shown(granted, *server));
        self.up = Some(up);
        self.pd.up(line).await;
        Ok(false)
    }

    /// Puts back what [`Self::set_up`] has done.
    async fn take_down(&mut self) -> anyhow::Result<()> {
        let Some(Up { router, farewell, .. }) = self.up.take() else { return Ok(()) };
        let said = match &self.job.script {
            Some(script) => script.run(&farewell).await,
            None => Ok(()),
        };
        router.stop()?;
        said
    }

    /// Waits until the tunnel has to be asked for again.
    async fn watch(&self, granted: &Granted, signals: &mut Signals) -> anyhow::Result<Left> {
        // Nobody in particular is somebody else the next time: only signs of life keep such a tunnel.
        let lifetime = granted.lifetime.filter(|_| !self.job.target.is_anonymous());
        let renewal = lifetime.map(|lasts| lasts.max(SHORTEST_LIFE) / 2);
        let renewal = tokio::time::sleep(renewal.unwrap_or(Duration::from_secs(u64::from(u32::MAX))));
        tokio::pin!(renewal);
        let asked = granted.keepalive.1.or(granted.server_v6);
        let pinger = match (granted.keepalive.0, asked) {
            (interval @ 1.., Some(whom)) => match Pinger::to(whom, granted.client_v6, &self.job.tun) {
                Ok(pinger) => Some((pinger, Duration::from_secs(u64::from(interval)))),
                Err(why) => {
                    tracing::warn!("no signs of life are sent, so the server may end the tunnel: {why:#}");
                    None
                }
            },
            (_, _) => None,
        };
        tokio::select! {
            () = self.stay_alive(pinger) => {
                tracing::warn!("the server does not answer through the tunnel; asking for it again");
                Ok(if self.job.again { Left::Anew } else { Left::Ended(End::Lost("the tunnel is dead".to_owned())) })
            }
            () = &mut renewal => Ok(Left::Anew),
            () = ended(|| self.up.as_ref().is_some_and(|up| up.router.has_ended())) => {
                bail!("the router has ended by itself; its log says why")
            }
            stop = signals.ends() => Ok(if stop { Left::Stopped } else { Left::Anew }),
        }
    }

    /// Sends signs of life; returns when nobody answers any more.
    async fn stay_alive(&self, pinger: Option<(Pinger, Duration)>) {
        let Some((pinger, interval)) = pinger else { return std::future::pending().await };
        let rng = StdRng::from_rng(&mut rand::rng());
        let mut keepalive = Keepalive::new(interval, rng, self.started.elapsed());
        loop {
            let due = self.started + keepalive.poll_timeout();
            tokio::select! {
                sequence = pinger.answer() => keepalive.handle_answer(sequence, self.started.elapsed()),
                () = tokio::time::sleep_until(due.into()) => match keepalive.poll(self.started.elapsed()) {
                    Some(Sign::Ask(sequence)) => pinger.ask(sequence).await,
                    Some(Sign::Dead) => return,
                    None => {}
                },
            }
        }
    }
}

/// The IPv4 addresses of a broker.
async fn find(at: &Place) -> anyhow::Result<Vec<SocketAddrV4>> {
    let Place { host, port } = at;
    let found = tokio::net::lookup_host((host.as_str(), *port)).await;
    let found = found.with_context(|| format!("cannot find {host}"))?;
    let ipv4 = |addr: SocketAddr| match addr {
        SocketAddr::V4(addr) => Some(addr),
        SocketAddr::V6(_) => None,
    };
    let all: Vec<SocketAddrV4> = found.filter_map(ipv4).take(MOST_ADDRESSES).collect();
    anyhow::ensure!(!all.is_empty(), "{host} has no IPv4 address");
    Ok(all)
}

/// How long a broker takes to answer `ECHO REQUEST`, which it does at the usual port whatever port it is asked at else.
async fn time(place: &Place, clock: Instant) -> Option<Duration> {
    let addr = *find(place).await.ok()?.first()?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.ok()?;
    socket.connect((*addr.ip(), PORT)).await.ok()?;
    let mut octets = [0; 256];
    for _ in 0..ECHOES {
        let asked = Instant::now();
        let _or_asked_again = socket.send(&echo_request(clock.elapsed())).await;
        let answered = async {
            loop {
                let len = socket.recv(&mut octets).await?;
                if is_echo_reply(&octets[..len]) {
                    return std::io::Result::Ok(());
                }
            }
        };
        match tokio::time::timeout(ECHO_PATIENCE, answered).await {
            Ok(Ok(())) => return Some(asked.elapsed()),
            Ok(Err(_)) => return None,
            Err(_) => {}
        }
    }
    None
}

/// What the server gave, for the log.
fn shown(granted: &Granted, server: SocketAddrV4) -> String {
    let Granted { mode, client_v6, prefix, .. } = granted;
    let network = prefix.map(|(addr, len)| format!(" and {addr}/{len}")).unwrap_or_default();
    format!("{client_v6}{network} by {}, {}", server.ip(), mode.name())
}
