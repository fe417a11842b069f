//! A running router: opens everything in the right order, then one loop over punts, questions, timers and signals.
//!
//! One control thread with a single-threaded tokio runtime owns all state, so nothing here is locked. Threads that
//! [`Router::start`] spawns stay in the network namespace of the thread that called it.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc as std_mpsc;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::{SigSet, Signal};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use sixway_dataplane::counters::CounterReader;
use sixway_dataplane::explain::Explainer;
use sixway_dataplane::io::proto41::Receive;
use sixway_dataplane::io::spread::Spread;
use sixway_dataplane::knobs::{Knob, Standing};
use sixway_dataplane::punt::{Punt, PuntReader};
use sixway_dataplane::start::{Facts, Injector, Prepared, Settings, Workers};
use sixway_dataplane::update::Outer;
use sixway_dataplane::verdict::PuntClass;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use crate::admin::server::{AdminSocket, Question};
use crate::admin::status::{BrokerStatus, Reloaded, Sources};
use crate::admin::{Reply, Request, Response};
use crate::advice::{is_within, kernel_tunnels, routed_into};
use crate::audit::Auditor;
use crate::broker::{End, Protocol, UserName};
use crate::churn::{Batch, Churn, MOST_TUNNELS, is_churn};
use crate::config::{self, Config, TunnelConfig};
use crate::dhcp6s::front::Front as LinkServers;
use crate::dhcpv6::server as dhcpv6;
use crate::dtcp::front::Front;
use crate::endpoint::session::Prober;
use crate::explain::{drops, explain as explain_packet};
use crate::network::Network;
use crate::office::{Lent, Move, Office, Written};
use crate::pmtu::server::PathServer;
use crate::privileges::{check_tun_device, explain, make_room};
use crate::punt::Dispatch;
use crate::registry::Registry;
use crate::store::Sqlite;
use crate::tsp;
use crate::watch::Watchers;

/// Punts handled before questions and timers get their turn.
const PUNTS_A_TURN: usize = 256;
/// How often the forwarding threads are looked after.
const HEALTH: Duration = Duration::from_secs(1);

/// A running router.
#[derive(Debug)]
pub struct Router {
    thread: std::thread::JoinHandle<anyhow::Result<()>>,
    stop: Option<oneshot::Sender<()>>,
}

/// Makes a configuration of a file.
pub type Reading = dyn Fn(&Path) -> anyhow::Result<Config> + Send;

/// Reads a configuration again.
pub struct Reread {
    /// The file that it comes from.
    pub file: PathBuf,
    /// Makes a configuration of that file.
    pub read: Box<Reading>,
}

impl std::fmt::Debug for Reread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reread({})", self.file.display())
    }
}

/// What a router is started with.
#[derive(Debug)]
pub struct Start {
    /// The configuration.
    pub config: Config,
    /// Reads it again, for reloads, where that makes sense.
    pub reread: Option<Reread>,
    /// Outer sockets opened beforehand in another network namespace.
    pub prepared: Option<Prepared>,
    /// Whether SIGTERM, SIGINT and SIGHUP are for this router.
    pub signals: bool,
}

impl Router {
    /// Starts a router and returns when it forwards.
    pub fn start(start: Start) -> anyhow::Result<Self> {
        let (ready, is_ready) = std_mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let control = std::thread::Builder::new().name("control".to_owned());
        let thread = control.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(live(start, ready, stopped))
        })?;
        match is_ready.recv() {
            Ok(()) => Ok(Self { thread, stop: Some(stop) }),
            Err(_) => Err(join(thread).err().unwrap_or_else(|| anyhow::anyhow!("the router ended at once"))),
        }
    }

    /// Waits until a signal or a fault ends it.
    pub fn wait(self) -> anyhow::Result<()> {
        // Dropping the sender would stop it.
        let Self { thread, stop } = self;
        let ended = join(thread);
        drop(stop);
        ended
    }

    /// Whether it has ended by itself: a signal, or a fault.
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Stops it and waits until all is put back.
    pub fn stop(mut self) -> anyhow::Result<()> {
        drop(self.stop.take());
        join(self.thread)
    }
}

fn join(thread: std::thread::JoinHandle<anyhow::Result<()>>) -> anyhow::Result<()> {
    thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the control thread has panicked; this is a bug")))
}

fn announce_proto41(receive: Option<Receive>) {
    match receive {
        None => tracing::info!("protocol 41: off"),
        Some(Receive::Raw) => {
            tracing::info!(
                "protocol 41: raw socket; turn GRO off on the outer interface if UDP crosses tunnels"
            );
        }
        Some(Receive::Packet | Receive::Auto) => {
            tracing::info!("protocol 41: packet sockets, merged packets kept whole");
        }
    }
}

/// The forwarder's settings for a configuration.
pub fn settings(config: &Config) -> Settings {
    let receive = match config.proto41.receive {
        config::Receive::Auto => Receive::Auto,
        config::Receive::Packet => Receive::Packet,
        config::Receive::Raw => Receive::Raw,
    };
    Settings {
        tun: config.router.tun.clone(),
        workers: usize::from(config.router.workers),
        pin: config.router.pin,
        linger: config.router.linger,
        capacity: config.router.capacity,
        offload: config.offload,
        ttl: config.router.ttl,
        proto41: (config.proto41.enabled != Some(false)).then_some(receive),
    }
}

/// Opens the outer sockets in the network namespace of the calling thread.
pub fn prepare(config: &Config) -> anyhow::Result<Prepared> {
    let settings = settings(config);
    let needed = config.proto41.enabled == Some(true)
        || config.tunnels.iter().any(|t| matches!(t.outer, Outer::Proto41 { .. }));
    let mut prepared = match Prepared::open(settings.clone()) {
        Ok(prepared) => prepared,
        Err(why) if !needed => {
            tracing::info!(
                "{why}; continuing with UDP only (protocol 41 needs root or CAP_NET_RAW; [proto41] enabled = false silences this)"
            );
            Prepared::open(Settings { proto41: None, ..settings }).map_err(explain)?
        }
        Err(why) => return Err(explain(why)),
    };
    for at in config.listen_endpoints() {
        prepared.listen(at).map_err(explain)?;
    }
    Ok(prepared)
}

/// All state of the control loop.
struct Control {
    config: Config,
    reread: Option<Reread>,
    registry: Registry,
    dispatch: Dispatch,
    network: Network,
    /// Where tunnels are granted; `None`: nothing in the configuration is to be given.
    office: Option<Office>,
    /// The server for DTCP, if there is one.
    dtcp: Option<Front>,
    /// The DHCPv6 server inside tunnels, if there is one.
    dhcpv6: Option<dhcpv6::Server>,
    /// The DHCPv6 servers on links, if there are any.
    links: Option<LinkServers>,
    counters: CounterReader,
    facts: Facts,
    started: Instant,
    churn: Churn,
    injector: Injector,
    /// When leases were last looked after.
    patrolled: Instant,
    explainer: Explainer,
    watchers: Watchers,
}

async fn live(
    start: Start,
    ready: std_mpsc::Sender<()>,
    stopped: oneshot::Receiver<()>,
) -> anyhow::Result<()> {
    let Start { config, reread, prepared, signals } = start;
    // First of all: from here on a signal asks, it does not kill.
    let signals = Signals::new(signals)?;
    let admin = AdminSocket::bind(&config.admin.socket)?;
    let mut rng = StdRng::from_rng(&mut rand::rng());
    if config.dtcp.is_some() {
        make_room(config.limits.connections);
    }
    let office = open_office(&config, rng.random())?;
    check_tun_device()?;
    let network = Network::look(&config.router.tun).await?;
    let fresh_network = prepared.is_some();
    let prepared = match prepared {
        Some(prepared) => prepared,
        None => prepare(&config)?,
    };
    if fresh_network {
        network.raise_loopback().await?;
    }
    let plane = prepared.start(rng.next_u64()).map_err(explain)?;
    let path_rng = StdRng::from_rng(&mut rand::rng());
    let prober = Prober::new(rng);
    let paths = PathServer::new(plane.ears, path_rng, prober.ident());
    let registry = Registry::new(plane.writer, plane.counters.clone(), prober.ident());
    let mut control = Control {
        config,
        reread,
        registry,
        dispatch: Dispatch::new(prober, paths, plane.injector.clone(), plane.counters.clone()),
        network,
        office,
        dtcp: None,
        dhcpv6: None,
        links: None,
        counters: plane.counters,
        facts: plane.facts,
        started: plane.started,
        churn: Churn::default(),
        injector: plane.injector,
        patrolled: Instant::now(),
        explainer: plane.explainer,
        watchers: Watchers::default(),
    };
    let outcome = match control.begin().await {
        Ok(()) => {
            let _the_starter_waits = ready.send(());
            control.serve(&admin, plane.punts, &plane.workers, signals, stopped).await
        }
        Err(why) => Err(why),
    };
    drop(control.dtcp.take());
    drop(control.dispatch.tsp.take());
    if let Some(links) = control.links.take() {
        links.close().await;
    }
    if let Some(office) = control.office.take() {
        office.close();
    }
    control.dispatch.farewell(&control.registry);
    control.network.withdraw().await;
    stop_workers(plane.workers, outcome)
}

fn open_office(config: &Config, seed: [u8; 16]) -> anyhow::Result<Option<Office>> {
    if !config.store.wanted {
        return Ok(None);
    }
    let dtcp = config.dtcp.as_ref();
    let lent = Lent::open(
        dtcp.and_then(|dtcp| dtcp.popauth.as_deref()),
        dtcp.and_then(|dtcp| dtcp.routetable.as_deref()),
    )?;
    let store = Sqlite::open(&config.store.path)?;
    Ok(Some(Office::open_with(Box::new(store), config.terms(), &config.hooks, lent, seed)?))
}

/// A router without an office waits for it in vain.
async fn next_written(office: &mut Option<Office>) -> Written {
    match office {
        Some(office) => office.next().await,
        None => std::future::pending().await,
    }
}

fn stop_workers(workers: Workers, outcome: anyhow::Result<()>) -> anyhow::Result<()> {
    if workers.has_failed() {
        // A thread that has ended empties no queue: waiting for it would never end.
        return outcome.and(Err(anyhow::anyhow!("a forwarding thread has ended; this is a bug")));
    }
    workers.stop();
    outcome
}

impl Control {
    async fn begin(&mut self) -> anyhow::Result<()> {
        self.refuse_own_addresses(&self.config)?;
        self.registry.configure(&self.config)?;
        self.dispatch.follow(&mut self.registry, self.started.elapsed());
        for note in self.network.apply(&self.config).await? {
            tracing::warn!("{note}");
        }
        // Leases that have outlived the process before forward again before anybody hears of this one.
        self.settle_all().await;
        self.serve_dhcpv6()?;
        if let Some(links) = &self.config.links {
            let store = &self.config.store.path;
            self.links = Some(LinkServers::open(&links.interfaces, &links.config, store).await?);
        }
        if let (Some(config), Some(office)) = (&self.config.dtcp, &self.office) {
            let most = self.config.limits.tunnels_per_account;
            self.dtcp = Some(Front::open(config, office.desk(), most)?);
        }
        if let (Some(config), Some(office)) = (&self.config.tsp, &self.office) {
            let (injector, proto41) = (self.injector.clone(), self.facts.proto41.is_some());
            let server =
                tsp::server::Server::start(config, office.desk(), injector, proto41, rand::random())?;
            self.dispatch.tsp = Some(server);
        }
        self.show_pins();
        self.announce();
        Ok(())
    }

    /// Opens, changes or closes the DHCPv6 server as the configuration says.
    fn serve_dhcpv6(&mut self) -> anyhow::Result<()> {
        match (&self.config.dhcpv6, &mut self.dhcpv6) {
            (Some(terms), Some(server)) => server.configure(terms.clone()),
            (Some(terms), None) => {
                let path = self.config.store.path.with_extension("duid");
                let duid = dhcpv6::own_duid(&path, rand::random())
                    .with_context(|| format!("cannot keep the server's DUID in {}", path.display()))?;
                let terms = crate::dhcpv6::session::Terms { duid, ..terms.clone() };
                self.dhcpv6 = Some(dhcpv6::Server::new(terms, rand::random()));
            }
            (None, _) => self.dhcpv6 = None,
        }
        self.withdraw_bindings();
        Ok(())
    }

    /// Ends bindings of what the configuration and the accounts do not give any more.
    fn withdraw_bindings(&mut self) {
        let Some(office) = &mut self.office else { return };
        let (server, registry, broker) = (&self.dhcpv6, &self.registry, office.broker());
        let gives = |b: &_| server.as_ref().is_some_and(|server| server.still_gives(registry, broker, b));
        let gone: Vec<_> = broker.bindings().filter(|b| !gives(b)).map(|b| b.prefix).collect();
        for prefix in gone {
            office.unbind(prefix, End::Withdrawn);
        }
    }

    /// Whether it is a DHCPv6 message, which is dealt with then.
    fn take_dhcpv6(&mut self, punt: &Punt) -> bool {
        let (Some(server), Some(office), Some(id)) = (&mut self.dhcpv6, &mut self.office, punt.tunnel())
        else {
            return false;
        };
        if punt.class() != PuntClass::Link || !dhcpv6::Server::is_for(punt.bytes()) {
            return false;
        }
        if let Some(packet) = server.handle(office, &self.registry, id, punt.bytes()) {
            self.dispatch.send(id, packet);
        }
        true
    }

    /// Accounts may have changed, and with them who is pinned to which interface.
    fn show_pins(&mut self) {
        let pins = self.office.as_mut().and_then(Office::new_pins);
        if pins.is_some() {
            self.withdraw_bindings();
        }
        if let (Some(pins), Some(dtcp)) = (pins, &self.dtcp) {
            dtcp.server.hall().pin(pins);
        }
    }

    /// Until nothing waits to be written.
    async fn settle_all(&mut self) {
        while self.office.as_ref().is_some_and(|office| !office.is_idle()) {
            let written = next_written(&mut self.office).await;
            self.settle(written).await;
        }
    }

    /// Does what is on disk now: tables, kernel, answers, in this order.
    async fn settle(&mut self, written: Written) {
        let Some(office) = &mut self.office else { return };
        let settled = office.settle(written, &mut self.registry);
        for moved in &settled.moves {
            match moved {
                Move::Up(grant) => self.network.lend(grant).await,
                Move::Down(grant, _) => self.network.take_back(grant).await,
                Move::Bound(binding) => self.network.lend_route(binding.prefix).await,
                Move::Unbound(binding, _) => self.network.take_route_back(binding.prefix).await,
            }
        }
        self.dispatch.note(&self.registry, &settled.gone, &settled.new);
        if let Some(server) = &mut self.dhcpv6 {
            for (id, packet) in server.settled(&self.registry, &settled.acted) {
                self.dispatch.send(id, packet);
            }
        }
        office.answer(settled);
    }

    /// One line for each listener, and which rung was taken.
    fn announce(&self) {
        let Facts { workers, offload, proto41, udp_spread } = &self.facts;
        tracing::info!("TUN {}: {workers} queues", self.config.router.tun);
        for knob in Knob::ALL {
            let name = knob.name();
            match offload.of(*knob) {
                Standing::On => tracing::debug!("offload {name}: on"),
                Standing::Off => tracing::info!("offload {name}: off by configuration"),
                Standing::Untested(why) => tracing::info!("offload {name}: on; {why}"),
                Standing::Refused(why) => tracing::warn!("offload {name}: off; {why}"),
            }
        }
        for at in self.registry.listening() {
            tracing::info!("UDP {at}: listening");
        }
        if *udp_spread == Spread::ByKernel && *workers > 1 {
            tracing::info!(
                "UDP: this kernel takes no rule of ours; it spreads senders over the workers by its own"
            );
        }
        if let Some(dtcp) = &self.dtcp {
            tracing::info!("DTCP {}: listening", dtcp.server.at());
        }
        if let Some(tsp) = &self.dispatch.tsp {
            tracing::info!("TSP {}: listening, TCP and UDP", tsp.at());
        }
        if self.dhcpv6.is_some() {
            tracing::info!("DHCPv6: answers inside every tunnel");
        }
        announce_proto41(*proto41);
        if !self.dispatch.paths.hears() {
            tracing::info!(
                "no right to hear ICMP errors (needs CAP_NET_RAW): `pmtu = \"dynamic\"` learns nothing; \"probe\" works"
            );
        }
        if let (Some(advice), true) = (kernel_tunnels(Path::new("/")), proto41.is_some()) {
            tracing::warn!("{advice}");
        }
        let (tunnels, socket) = (self.registry.len(), self.config.admin.socket.display());
        let version = env!("CARGO_PKG_VERSION");
        tracing::info!("sixway {version} runs; tunnels: {tunnels}; admin socket: {socket}");
        if tunnels == 0 && self.office.is_none() {
            tracing::warn!("no tunnels; add a [[tunnel]] to the configuration and run `sixway reload`");
        }
    }

    async fn serve(
        &mut self,
        admin: &AdminSocket,
        punts: PuntReader,
        workers: &Workers,
        mut signals: Signals,
        mut stopped: oneshot::Receiver<()>,
    ) -> anyhow::Result<()> {
        let (ask, mut questions) = mpsc::channel(16);
        let mut punts = Punts::new(punts)?;
        let mut health = tokio::time::interval(HEALTH);
        let errors = Errors::new(self.dispatch.paths.waiting())?;
        let listening = admin.serve(ask);
        tokio::pin!(listening);
        loop {
            let due = self.dispatch.poll_timeout().map(|at| self.started + at);
            tokio::select! {
                _ = &mut stopped => return Ok(()),
                wish = signals.next() => match wish {
                    Wish::Stop => {
                        tracing::info!("stopping");
                        return Ok(());
                    }
                    Wish::Reload => {
                        // The log has said what came of it.
                        let _logged = self.reload_and_log().await;
                    }
                },
                written = next_written(&mut self.office) => self.settle(written).await,
                () = punts.ready() => self.take_punts(&mut punts.reader),
                Some(question) = questions.recv() => self.answer(question).await,
                () = errors.ready() => self.dispatch.hear(&mut self.registry, self.started.elapsed()),
                () = sleep_until(due) => {
                    // An answer that has come counts before the time that it was given.
                    self.take_punts(&mut punts.reader);
                    self.dispatch.handle_timeout(&mut self.registry, self.started.elapsed());
                    self.keep_moves();
                }
                _ = health.tick() => {
                    self.check_health(workers)?;
                    self.end_stale_churn();
                    self.patrol();
                    self.watchers.sweep(&mut self.registry);
                    self.dispatch.look(&mut self.registry, self.started.elapsed());
                    self.office.iter_mut().for_each(Office::look);
                    self.show_pins();
                }
                () = &mut listening => {}
            }
        }
    }

    fn check_health(&self, workers: &Workers) -> anyhow::Result<()> {
        anyhow::ensure!(!workers.has_failed(), "a forwarding thread has ended; this is a bug");
        let store_failed = self.office.as_ref().is_some_and(Office::has_failed);
        anyhow::ensure!(!store_failed, "the store's thread has ended; this is a bug");
        anyhow::ensure!(
            self.network.is_there(),
            "the TUN device '{}' is gone: somebody has deleted it; start sixway again to have it back",
            self.config.router.tun
        );
        Ok(())
    }

    /// Tunnels whose clients are heard go on; those that miss their signs of life end.
    fn patrol(&mut self) {
        let (Some(tsp), Some(office)) = (&self.dispatch.tsp, &mut self.office) else { return };
        if self.patrolled.elapsed() < tsp.round() {
            return;
        }
        self.patrolled = Instant::now();
        let (uptime, registry) = (self.started.elapsed(), &self.registry);
        office.patrol(Protocol::Tsp, |lease, now| {
            let heard = registry.last_heard(lease.grant.lease).map(|at| Duration::from_secs(at.into()));
            let silent = uptime.saturating_sub(heard.unwrap_or_default()).min(now.since(lease.granted));
            tsp.fate(lease, silent, lease.grant.expires.map_or(Duration::MAX, |at| at.since(now)))
        });
        tsp.forget(|lease| registry.has_lease(lease));
    }

    fn end_stale_churn(&mut self) {
        match self.churn.expire(&mut self.registry, self.started.elapsed()) {
            Ok(true) => tracing::warn!("whoever measured is gone; the tunnels of the churn are removed"),
            Ok(false) => {}
            Err(why) => tracing::error!("tunnels of the churn stay until the next reload: {why}"),
        }
    }

    fn take_punts(&mut self, punts: &mut PuntReader) {
        for punt in std::iter::from_fn(|| punts.take()).take(PUNTS_A_TURN) {
            if punt.class() == PuntClass::Watched {
                self.watchers.show(&self.registry, &self.counters, &punt);
            } else if !self.take_dhcpv6(&punt) {
                self.dispatch.handle(&mut self.registry, &punt, self.started.elapsed());
            }
        }
        self.keep_moves();
    }

    /// Where peers of leased tunnels are now survives a restart.
    fn keep_moves(&mut self) {
        let Some(office) = &mut self.office else { return drop(self.dispatch.take_movers()) };
        for live in self.dispatch.take_movers().into_iter().filter_map(|id| self.registry.tunnel(id)) {
            live.lease.iter().for_each(|lease| office.moved(*lease, &live.outer));
        }
    }

    async fn answer(&mut self, question: Question) {
        let response = match question.request {
            Request::Explain(wish) => explain_packet(&wish, &self.registry, &mut self.explainer)
                .map_or_else(Response::Error, |said| Response::Explained(Box::new(said))),
            Request::Drops => {
                let (uptime, unclaimed) = (self.started.elapsed(), self.dispatch.unclaimed());
                Response::Drops(drops(&self.registry, &self.counters, uptime, unclaimed))
            }
            Request::Watch { tunnel } => {
                let opened = self.watchers.open(&mut self.registry, &self.counters, &tunnel);
                let reply = match opened {
                    Ok(more) => Reply { first: Response::Watching, more: Some(more) },
                    Err(why) => Response::Error(why).into(),
                };
                let _the_asker_may_have_left = question.reply.send(reply);
                return;
            }
            Request::Audit => Response::Audited(self.auditor().findings()),
            Request::Status { page, limit, tunnel } => {
                let status = self.sources().status(page, limit, tunnel.as_deref());
                status.map_or_else(Response::Error, |s| Response::Status(Box::new(s)))
            }
            Request::Reload => match self.reload_and_log().await {
                Ok(reloaded) => Response::Reloaded(reloaded),
                Err(why) => Response::Error(format!("{why:#}")),
            },
            Request::Churn { session, tunnels, updates } => {
                self.next_churn(Batch { session, tunnels, updates }).unwrap_or_else(Response::Error)
            }
            Request::ChurnEnd { session } => {
                let ended = self.churn.end(&mut self.registry, session);
                ended.map_or_else(Response::Error, |()| Response::Churned { applied: 0, refused: None })
            }
            Request::Kick { who } => self.kick(&who),
            Request::Drain { on } => self.drain(on),
        };
        let _the_asker_may_have_left = question.reply.send(response.into());
    }

    fn next_churn(&mut self, batch: Batch) -> Result<Response, String> {
        if !(1..=MOST_TUNNELS).contains(&batch.tunnels) {
            return Err(format!("a churn has 1 to {MOST_TUNNELS} tunnels, not {}", batch.tunnels));
        }
        let done = self.churn.batch(&mut self.registry, batch, self.started.elapsed())?;
        Ok(Response::Churned { applied: done.applied, refused: done.refused })
    }

    /// Sends new clients to other brokers, or no longer.
    fn drain(&self, on: bool) -> Response {
        let Some(tsp) = &self.dispatch.tsp else {
            let why = "this router has no server that could send clients elsewhere: there is no [tsp] in its configuration";
            return Response::Error(why.to_owned());
        };
        tsp.drain(on);
        tracing::info!(event = "drain", on);
        Response::Drained { on, brokers: self.config.tsp.as_ref().map_or(0, |tsp| tsp.brokers.len()) }
    }

    /// Ends the leased tunnel of that name, or all of that user's.
    fn kick(&mut self, who: &str) -> Response {
        let Some(office) = &mut self.office else {
            return Response::Error(
                "this router grants nothing: there is no [store] and no [[pool]] in its configuration"
                    .to_owned(),
            );
        };
        let by_name = self.registry.by_name(who).and_then(|id| self.registry.tunnel(id));
        if let Some(live) = by_name {
            let Some(lease) = live.lease else {
                if is_churn(who) {
                    return Response::Error(format!(
                        "tunnel '{who}' belongs to a running `sixway bench churn`, and goes when that ends"
                    ));
                }
                let advice = "take it out of the configuration and run `sixway reload`";
                return Response::Error(format!(
                    "tunnel '{who}' is in the configuration; to end it, {advice}"
                ));
            };
            office.kick(lease);
            return Response::Kicked { tunnels: 1 };
        }
        if who.parse().is_ok_and(|prefix| office.unbind(prefix, End::Kicked)) {
            return Response::Kicked { tunnels: 1 };
        }
        match UserName::parse(who).map_or(0, |user| office.kick_user(&user)) {
            0 => Response::Error(format!("no leased tunnel '{who}', and no user '{who}' who has one")),
            tunnels => Response::Kicked { tunnels },
        }
    }

    fn auditor(&mut self) -> Auditor<'_> {
        Auditor {
            config: &self.config,
            file: self.reread.as_ref().map(|reread| reread.file.as_path()),
            registry: &self.registry,
            explainer: &mut self.explainer,
            proto41: self.facts.proto41.is_some(),
        }
    }

    fn sources(&self) -> Sources<'_> {
        Sources {
            registry: &self.registry,
            counters: &self.counters,
            facts: &self.facts,
            tun: &self.config.router.tun,
            uptime_s: self.started.elapsed().as_secs(),
            nd: self.dispatch.nd.counts(),
            endpoints: self.dispatch.endpoint_counts(),
            pmtu: self.dispatch.path_counts(),
            unclaimed: self.dispatch.unclaimed(),
            broker: self.office.as_ref().map(BrokerStatus::new),
            dtcp: self.dtcp.as_ref().map(|dtcp| dtcp.server.hall().counts()),
            tsp: self.dispatch.tsp.as_ref().map(tsp::server::Server::counts),
            dhcpv6: self.dhcpv6.as_ref().map(dhcpv6::Server::counts),
        }
    }

    async fn reload(&mut self) -> anyhow::Result<Reloaded> {
        let Some(reread) = &self.reread else { anyhow::bail!("this instance was not started from a file") };
        let mut wanted = (reread.read)(&reread.file)?;
        let mut notes = keep_what_needs_a_restart(&self.config, &mut wanted);
        self.check_encapsulations(&wanted)?;
        self.refuse_own_addresses(&wanted)?;
        // The first [store] or [[pool]]: before anything is changed it must be there.
        let opened = if self.office.is_none() { open_office(&wanted, rand::random())? } else { None };
        // All or nothing here too: what the kernel or the tables refuse leaves the configuration before in force.
        match self.network.apply(&wanted).await {
            Ok(advice) => notes.extend(advice),
            Err(why) => {
                self.put_network_back().await;
                return Err(why.into());
            }
        }
        let (diff, touched) = match self.registry.configure(&wanted) {
            Ok(done) => done,
            Err(why) => {
                self.put_network_back().await;
                return Err(why.into());
            }
        };
        if let Some(office) = &mut self.office {
            office.configure(wanted.terms(), &wanted.hooks);
        }
        if let Some(dtcp) = &self.dtcp {
            dtcp.server.hall().limit(wanted.limits.tunnels_per_account);
        }
        self.config = wanted;
        if opened.is_some() {
            self.office = opened;
            self.settle_all().await;
        }
        self.churn.forget();
        touched.into_iter().for_each(|id| self.dispatch.forget(id));
        self.dispatch.follow(&mut self.registry, self.started.elapsed());
        self.serve_dhcpv6()?;
        if let Some(links) = &self.links {
            links.reload().await;
        }
        Ok(Reloaded::new(diff, notes))
    }

    /// A tunnel to an address of this host would lead into itself (RFC 2473 section 4.1.2).
    fn refuse_own_addresses(&self, wanted: &Config) -> anyhow::Result<()> {
        let own = self.dispatch.paths.own_addresses();
        let loops = |t: &&TunnelConfig| t.outer.peer().is_some_and(|peer| own.contains(&peer));
        let routes = std::fs::read_to_string("/proc/thread-self/net/route").unwrap_or_default();
        let inside = routed_into(&wanted.router.tun, &routes);
        let through_itself = |t: &&TunnelConfig| t.outer.peer().is_some_and(|peer| is_within(peer, &inside));
        if let Some(tunnel) = wanted.tunnels.iter().filter(|_| !inside.is_empty()).find(through_itself) {
            anyhow::bail!(
                "tunnel '{}': this host's route to its peer leads into {}, so into the tunnel itself; take that IPv4 \
                 route away, or add one to the peer by another interface",
                tunnel.name,
                wanted.router.tun
            );
        }
        match wanted.tunnels.iter().find(loops) {
            Some(tunnel) => anyhow::bail!(
                "tunnel '{}' leads to {}, which is an address of this host: its packets would go round for ever; write \
                 the address of the other end",
                tunnel.name,
                tunnel.outer.peer().unwrap_or(std::net::Ipv4Addr::UNSPECIFIED)
            ),
            None => Ok(()),
        }
    }

    /// What was not opened at the start cannot carry a tunnel now.
    fn check_encapsulations(&self, wanted: &Config) -> anyhow::Result<()> {
        let proto41 = wanted.tunnels.iter().find(|t| matches!(t.outer, Outer::Proto41 { .. }));
        match (proto41, &self.facts.proto41) {
            (Some(tunnel), None) => anyhow::bail!(
                "tunnel '{}' needs protocol 41, which this instance was started without; restart it (with root or \
                 CAP_NET_RAW)",
                tunnel.name
            ),
            _ => Ok(()),
        }
    }

    async fn put_network_back(&mut self) {
        if let Err(why) = self.network.apply(&self.config).await {
            tracing::error!(%why, "the device's addresses and routes could not be put back; restart");
        }
    }

    async fn reload_and_log(&mut self) -> anyhow::Result<Reloaded> {
        let done = self.reload().await;
        match &done {
            Ok(Reloaded { added, removed, changed, unchanged, notes }) => {
                tracing::info!(added, removed, changed, unchanged, "reloaded");
                notes.iter().for_each(|note| tracing::warn!("{note}"));
            }
            Err(why) => tracing::error!("not reloaded, the configuration before stays in force: {why:#}"),
        }
        done
    }
}

/// What is fixed for the life of a process stays; its new value is named as waiting for a restart.
fn keep_what_needs_a_restart(now: &Config, wanted: &mut Config) -> Vec<String> {
    let mut notes = Vec::new();
    let mut keep = |key: &str, differs: bool| {
        if differs {
            notes.push(format!("{key} takes effect at the next start"));
        }
    };
    keep("[router] tun", now.router.tun != wanted.router.tun);
    keep("[router] workers", now.router.workers != wanted.router.workers);
    keep("[router] pin", now.router.pin != wanted.router.pin);
    keep("[router] linger_us", now.router.linger != wanted.router.linger);
    keep("[router] ttl", now.router.ttl != wanted.router.ttl);
    keep("[router] capacity", now.router.capacity != wanted.router.capacity);
    keep("[admin] socket", now.admin != wanted.admin);
    keep("[proto41]", now.proto41 != wanted.proto41);
    keep("[offload]", now.offload != wanted.offload);
    keep("[store] path", now.store.wanted && now.store.path != wanted.store.path);
    keep("[dtcp]", now.dtcp != wanted.dtcp);
    keep("[tsp]", now.tsp != wanted.tsp);
    wanted.tsp.clone_from(&now.tsp);
    keep("[dhcpv6] interfaces and link_config", now.links != wanted.links);
    wanted.links.clone_from(&now.links);
    wanted.put_dtcp(now.dtcp.clone());
    // The first store is opened by a reload; one that is open stays.
    if now.store.wanted {
        wanted.store = now.store.clone();
    }
    wanted.router.tun.clone_from(&now.router.tun);
    wanted.router.workers = now.router.workers;
    wanted.router.pin = now.router.pin;
    wanted.router.linger = now.router.linger;
    wanted.router.ttl = now.router.ttl;
    wanted.router.capacity = now.router.capacity;
    wanted.admin = now.admin.clone();
    wanted.proto41 = now.proto41.clone();
    wanted.offload = now.offload;
    notes
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// The punt queue as something to wait for.
struct Punts {
    reader: PuntReader,
    bell: tokio::net::UnixStream,
}

impl Punts {
    fn new(reader: PuntReader) -> std::io::Result<Self> {
        let bell = tokio::net::UnixStream::from_std(reader.bell()?)?;
        Ok(Self { reader, bell })
    }

    async fn ready(&mut self) {
        loop {
            if self.reader.arm() {
                return;
            }
            // `arm` has emptied the pipe behind tokio's back; an empty read tells tokio so.
            let _empty = self.bell.try_read(&mut [0; 64]);
            if self.reader.arm() || self.bell.readable().await.is_err() {
                return;
            }
        }
    }
}

/// Errors about outer packets as something to wait for.
struct Errors(Option<tokio::net::UdpSocket>);

impl Errors {
    /// Any socket of datagrams can be waited on as one of UDP.
    fn new(socket: Option<OwnedFd>) -> std::io::Result<Self> {
        let socket = socket.map(std::net::UdpSocket::from);
        Ok(Self(socket.map(tokio::net::UdpSocket::from_std).transpose()?))
    }

    /// What comes while the last errors are read is told of again.
    async fn ready(&self) {
        if let Some(socket) = &self.0
            && socket.readable().await.is_ok()
        {
            // It is read behind tokio's back; to find nothing tells tokio so.
            let empty = || Err::<(), _>(std::io::ErrorKind::WouldBlock.into());
            let _emptied = socket.try_io(tokio::io::Interest::READABLE, empty);
            return;
        }
        std::future::pending().await
    }
}

/// Holds back the signals that an operator sends until the router can take them: from here on none kills the process
/// halfway. Call it before any thread is started.
pub fn hold_signals() -> anyhow::Result<()> {
    Ok(asked_signals().thread_block()?)
}

/// Lets them through in this thread again: a program that it starts inherits what is held back.
pub fn release_signals() -> anyhow::Result<()> {
    Ok(asked_signals().thread_unblock()?)
}

fn asked_signals() -> SigSet {
    SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP])
}

enum Wish {
    Stop,
    Reload,
}

/// The signals that an operator sends.
struct Signals(Option<[tokio::signal::unix::Signal; 3]>);

impl Signals {
    fn new(wanted: bool) -> std::io::Result<Self> {
        if !wanted {
            return Ok(Self(None));
        }
        let [term, int, hup] =
            [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal);
        let taken = Self(Some([term?, int?, hup?]));
        // What came since `hold_signals` is delivered now.
        release_signals().map_err(std::io::Error::other)?;
        Ok(taken)
    }

    async fn next(&mut self) -> Wish {
        let Some([term, int, hup]) = &mut self.0 else { return std::future::pending().await };
        tokio::select! {
            _ = term.recv() => Wish::Stop,
            _ = int.recv() => Wish::Stop,
            _ = hup.recv() => Wish::Reload,
        }
    }
}
