//! A running router: opens everything in the right order, then one loop over punts, questions, timers and signals.
//!
//! One control thread with a single-threaded tokio runtime owns all state, so nothing here is locked. Threads that
//! [`Router::start`] spawns stay in the network namespace of the thread that called it.

use std::path::Path;
use std::sync::mpsc as std_mpsc;
use std::time::{Duration, Instant};

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
use tokio::sync::{mpsc, oneshot};

use crate::admin::server::AdminSocket;
use crate::advice::kernel_tunnels;
use crate::allowance;
use crate::broker::Binding;
use crate::churn::Churn;
use crate::config::{self, Config};
use crate::delegation::line::Port;
use crate::dhcp6s::front::Front as LinkServers;
use crate::dhcpv6::server as dhcpv6;
use crate::dtcp::front::Front;
use crate::endpoint::session::Prober;
use crate::network::Network;
use crate::office::{Lent, Move, Office, Written};
use crate::pmtu::server::PathServer;
use crate::privileges::{check_tun_device, explain, leave_no_core, make_room};
use crate::punt::{Dispatch, Letter};
use crate::registry::Registry;
use crate::store::Sqlite;
use crate::tsp;
use crate::watch::Watchers;

mod answers;
mod bindings;
mod device;
mod handle;
mod holdings;
mod queries;
mod reload;
mod rounds;
mod signals;
mod voice;
mod waits;

use device::Device;
pub use handle::{Reading, Reread, Router, Start};
use queries::Queries;
use signals::{Signals, Wish};
pub use signals::{hold_signals, release_signals};
pub use voice::Voice;
use waits::{Errors, Punts, sleep_until};

/// How long a forwarding thread looks for packets that keep coming, unless the configuration says otherwise.
const LINGER_MOST: Duration = Duration::from_millis(3);
/// Punts handled before questions and timers get their turn.
const PUNTS_A_TURN: usize = 256;
/// How often the forwarding threads are looked after.
const HEALTH: Duration = Duration::from_secs(1);

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

/// How long threads look that packets keep waking; not where each process has its own measure of processor time, which would
/// go into looking.
fn linger_most() -> Duration {
    if allowance::processor_is_metered() { Duration::ZERO } else { LINGER_MOST }
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
        linger_most: config.router.linger_most.unwrap_or_else(linger_most),
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
    device: Option<Device>,
    /// Where tunnels are granted; `None`: nothing in the configuration is to be given.
    office: Option<Office>,
    /// The server for DTCP, if there is one.
    dtcp: Option<Front>,
    /// The DHCPv6 server inside tunnels, if there is one.
    dhcpv6: Option<dhcpv6::Server>,
    /// The DHCPv6 client inside a tunnel, if there is one.
    client: Option<Port>,
    /// The DHCPv6 servers on links, if there are any.
    links: Option<LinkServers>,
    /// Lease queries that come through the kernel.
    queries: Queries,
    counters: CounterReader,
    facts: Facts,
    started: Instant,
    churn: Churn,
    injector: Injector,
    /// When leases were last looked after.
    patrolled: Instant,
    /// Bindings that were taken from clients which do not know it yet.
    lost: Vec<Binding>,
    explainer: Explainer,
    watchers: Watchers,
}

async fn live(
    start: Start,
    ready: std_mpsc::Sender<Injector>,
    stopped: oneshot::Receiver<()>,
    letters: Option<mpsc::Sender<Letter>>,
) -> anyhow::Result<()> {
    let Start { config, reread, prepared, signals, client } = start;
    // First of all: from here on a signal asks, it does not kill.
    let signals = Signals::new(signals)?;
    let admin = AdminSocket::bind(&config.admin.socket)?;
    let mut rng = StdRng::from_rng(&mut rand::rng());
    if config.store.wanted {
        leave_no_core();
    }
    if config.dtcp.is_some() || config.tsp.is_some() {
        make_room(config.limits.connections);
    }
    allowance::check(config.tunnels.len())?;
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
    let paths = PathServer::new(plane.ears, plane.owners, path_rng, prober.ident());
    let registry = Registry::new(plane.writer, plane.counters.clone(), prober.ident());
    let mut control = Control {
        config,
        reread,
        registry,
        dispatch: Dispatch::new(prober, paths, plane.injector.clone(), plane.counters.clone()),
        network,
        device: None,
        office,
        dtcp: None,
        dhcpv6: None,
        client,
        links: None,
        queries: Queries::default(),
        counters: plane.counters,
        facts: plane.facts,
        started: plane.started,
        churn: Churn::default(),
        injector: plane.injector,
        patrolled: Instant::now(),
        lost: Vec::new(),
        explainer: plane.explainer,
        watchers: Watchers::default(),
    };
    control.dispatch.letters = letters;
    let outcome = match control.begin().await {
        Ok(()) => {
            let _the_starter_waits = ready.send(control.injector.clone());
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
    let mut office = Office::open_with(Box::new(store), config.terms(), &config.hooks, lent, seed)?;
    office.strew(rand::random());
    Ok(Some(office))
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
        self.config.doubts().iter().for_each(|doubt| tracing::warn!("{doubt}"));
        // Leases that have outlived the process before forward again before anybody hears of this one.
        self.settle_all().await;
        self.serve_dhcpv6()?;
        if let Some(links) = &self.config.links {
            let store = &self.config.store.path;
            self.links = Some(
                LinkServers::open(
                    &links.interfaces,
                    &links.config,
                    store,
                    &self.given_elsewhere(&self.config),
                )
                .await?,
            );
        }
        if let (Some(config), Some(office)) = (&self.config.dtcp, &self.office) {
            let most = self.config.limits.tunnels_per_account;
            self.dtcp = Some(Front::open(config, office.desk(), most)?);
        }
        self.serve_tsp()?;
        self.show_pins().await;
        self.device = Some(Device::watch(&self.network).await?);
        self.announce();
        Ok(())
    }

    /// Opens or changes the TSP server as the configuration says. It is never closed: tunnels need it.
    fn serve_tsp(&mut self) -> anyhow::Result<()> {
        let (Some(config), Some(office)) = (&self.config.tsp, &self.office) else { return Ok(()) };
        if let Some(server) = &self.dispatch.tsp {
            server.configure(config);
            return Ok(());
        }
        let (injector, proto41) = (self.injector.clone(), self.facts.proto41.is_some());
        let server = tsp::server::Server::start(config, office.desk(), injector, proto41, rand::random())?;
        self.dispatch.tsp = Some(server);
        Ok(())
    }

    /// Whether it is a DHCPv6 message, which is dealt with then.
    fn take_dhcpv6(&mut self, punt: &Punt) -> bool {
        if let (Some(client), Some(id), PuntClass::Link) = (&self.client, punt.tunnel(), punt.class())
            && client.take(&self.registry, id, punt.bytes())
        {
            return true;
        }
        let (Some(server), Some(office), Some(id)) = (&mut self.dhcpv6, &mut self.office, punt.tunnel())
        else {
            return false;
        };
        if punt.class() != PuntClass::Link || !dhcpv6::Server::is_for(punt.bytes()) {
            return false;
        }
        for packet in server.handle(office, &self.registry, id, punt.bytes()) {
            self.dispatch.send(id, packet);
        }
        true
    }

    /// What the client in a tunnel says.
    fn say(&mut self, message: &[u8]) {
        let packet = self.client.as_ref().and_then(|client| client.packet(&self.registry, message));
        if let Some((id, packet)) = packet {
            self.dispatch.send(id, packet);
        }
    }

    /// Accounts may have changed, and with them who is pinned to which interface.
    async fn show_pins(&mut self) {
        let pins = self.office.as_mut().and_then(Office::new_pins);
        if pins.is_some() {
            self.withdraw_bindings();
            if let Some(links) = &self.links {
                links.keep_clear_of(self.given_elsewhere(&self.config)).await;
            }
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
                Move::Down(grant, _) => {
                    self.network.take_back(grant).await;
                    self.dhcpv6.iter_mut().for_each(|server| server.leave(&grant.name));
                }
                Move::Bound(binding) => self.network.lend_route(binding.prefix).await,
                Move::Unbound(binding, why) => {
                    self.network.take_route_back(binding.prefix).await;
                    self.lost.extend(dhcpv6::Server::is_news(*why).then(|| binding.clone()));
                }
            }
        }
        let now = self.started.elapsed();
        self.dispatch.note(&mut self.registry, &settled.gone, &settled.new, now);
        if let Some(server) = &mut self.dhcpv6 {
            for (id, packet) in server.settled(&self.registry, office.broker(), &settled.acted) {
                self.dispatch.send(id, packet);
            }
            self.queries.settled(&settled.acted);
        }
        office.answer(settled);
        // They are told when nothing is routed to them any more.
        self.tell_losers();
    }

    /// One line for each listener, and which rung was taken.
    fn announce(&self) {
        let Facts { workers, offload, proto41, udp_spread } = &self.facts;
        tracing::debug!("TUN {}: {workers} queues", self.config.router.tun);
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
            let call =
                self.dhcpv6.as_ref().and_then(dhcpv6::Server::poll_timeout).map(|at| self.started + at);
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
                message = Port::next(&mut self.client) => self.say(&message),
                turn = Device::next(&mut self.device, self.network.owes()) => self.tend_device(turn).await,
                () = punts.ready() => self.take_punts(&mut punts.reader),
                Some(question) = questions.recv() => self.answer(question).await,
                () = errors.ready() => self.dispatch.hear(&mut self.registry, self.started.elapsed()),
                () = sleep_until(due) => {
                    // An answer that has come counts before the time that it was given.
                    self.take_punts(&mut punts.reader);
                    self.dispatch.handle_timeout(&mut self.registry, self.started.elapsed());
                    self.keep_moves();
                }
                () = sleep_until(call) => self.call_clients(),
                nth = self.queries.ready() => self.take_queries(nth),
                _ = health.tick() => {
                    self.check_health(workers)?;
                    self.end_stale_churn();
                    self.patrol();
                    self.watchers.sweep(&mut self.registry);
                    self.dispatch.look(&mut self.registry, self.started.elapsed());
                    self.office.iter_mut().for_each(Office::look);
                    self.show_pins().await;
                }
                () = &mut listening => {}
            }
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
}
