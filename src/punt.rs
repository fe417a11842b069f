//! Hands punted packets to whoever deals with them: neighbour discovery, the endpoint prober, or the protocol that
//! registered for the port. What nobody wants is counted.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddrV4;
use std::time::Duration;

use rand::rngs::StdRng;
use sixway_dataplane::counters::CounterReader;
use sixway_dataplane::packet::batch::{Arrival, Sender};
use sixway_dataplane::packet::view::View;
use sixway_dataplane::punt::Punt;
use sixway_dataplane::start::Injector;
use sixway_dataplane::update::{Outer, TunnelId};
use sixway_dataplane::verdict::{PuntClass, Verdict};
use sixway_dataplane::worker::Inject;
use tokio::sync::mpsc;

use crate::endpoint::session::{Candidate, Origin, Output, Prober};
use crate::nd::server::NdServer;
use crate::pmtu::server::PathServer;
use crate::pmtu::wrap::Wraps;
use crate::registry::Registry;
use crate::tsp;

/// A datagram that is not IPv6, from somebody at one of our UDP ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// Who sent it.
    pub remote: SocketAddrV4,
    /// Where it came to.
    pub local: SocketAddrV4,
    /// What is in it.
    pub octets: Vec<u8>,
}

/// Everything above the door that punts are for.
#[derive(Debug)]
pub struct Dispatch {
    /// Neighbour discovery.
    pub nd: NdServer,
    /// The server for TSP, if there is one.
    pub tsp: Option<tsp::server::Server>,
    /// Whoever wants the datagrams that are for no server.
    pub letters: Option<mpsc::Sender<Letter>>,
    /// Path MTU discovery.
    pub paths: PathServer,
    wraps: Wraps,
    prober: Prober<StdRng>,
    injector: Injector,
    counters: CounterReader,
    /// Packets that had come from a tunnel's peer when somebody else began to contend for it: one for each tunnel that ever was
    /// contended for.
    heard: HashMap<TunnelId, u64>,
    /// Tunnels whose peers have moved since that was asked last.
    movers: Vec<TunnelId>,
    unclaimed: u64,
    inject_full: u64,
}

impl Dispatch {
    /// With a prober whose randomness is secret.
    pub fn new(
        prober: Prober<StdRng>,
        paths: PathServer,
        injector: Injector,
        counters: CounterReader,
    ) -> Self {
        let (nd, heard, wraps) = (NdServer::new(), HashMap::new(), Wraps::default());
        Self {
            nd,
            tsp: None,
            letters: None,
            paths,
            wraps,
            prober,
            injector,
            counters,
            heard,
            movers: Vec::new(),
            unclaimed: 0,
            inject_full: 0,
        }
    }

    /// Tunnels came, went or changed: advertise where it is wanted, and no longer where it is not.
    pub fn follow(&mut self, registry: &mut Registry, now: Duration) {
        for (id, packet) in self.nd.follow(registry) {
            self.inject(Inject::Tunnel { id, packet });
        }
        self.paths.follow(registry, now);
        self.drain_paths(registry);
    }

    /// Errors about outer packets may have come.
    pub fn hear(&mut self, registry: &mut Registry, now: Duration) {
        self.paths.hear(registry, now);
        self.drain_paths(registry);
    }

    /// Once a second: what nobody tells of.
    pub fn look(&mut self, registry: &mut Registry, now: Duration) {
        self.paths.look(now);
        for id in self.counters.take_too_long() {
            self.paths.look_at(id, now);
        }
        self.hear(registry, now);
        let counters = &self.counters;
        self.wraps.look(registry.slots(), |id| {
            let may_be_cut = registry.tunnel(id)?.path.is_none_or(|(_, whole)| !whole);
            may_be_cut.then(|| counters.tunnel(id).tx_packets)
        });
    }

    fn drain_paths(&mut self, registry: &mut Registry) {
        for inject in self.paths.drain(registry) {
            self.inject(inject);
        }
    }

    /// Leased tunnels came and went; a number that is free again may be another tunnel's at once.
    pub fn note(&mut self, registry: &mut Registry, gone: &[TunnelId], new: &[TunnelId], now: Duration) {
        for id in gone {
            self.forget(*id);
            self.nd.leave(*id);
        }
        for id in new {
            self.nd.join(registry, *id);
            self.paths.join(registry, *id, now);
        }
        self.drain_paths(registry);
    }

    /// The router ends: hosts in tunnels need not wait until its advertisements run out (RFC 4861 section 6.2.5).
    pub fn farewell(&mut self, registry: &Registry) {
        for (id, packet) in self.nd.farewell(registry) {
            self.inject(Inject::Tunnel { id, packet });
        }
    }

    /// Deals with one packet.
    pub fn handle(&mut self, registry: &mut Registry, punt: &Punt, now: Duration) {
        let Arrival::Wire(sender) = punt.arrival() else { return };
        match (punt.class(), punt.tunnel()) {
            (PuntClass::Link, Some(id)) => {
                if let Some(packet) = self.nd.handle(registry, id, punt.bytes()) {
                    self.inject(Inject::Tunnel { id, packet });
                }
            }
            (PuntClass::EchoReply, Some(id)) => {
                let is_the_peers = matches!(punt.verdict(), Verdict::ToTunAndPunt(_));
                let origin = origin(registry, id, &sender, is_the_peers);
                if !self.prober.handle_packet(now, &origin, punt.bytes()) {
                    self.paths.handle_reply(now, Some(id), punt.bytes());
                    self.drain_paths(registry);
                }
            }
            (PuntClass::Candidate, Some(id)) => self.candidate(registry, id, &sender, punt.bytes(), now),
            (PuntClass::Datagram, _) if self.is_for_tsp(sender.local) => {
                if let Some(tsp) = &self.tsp {
                    tsp.hear(sender.remote, sender.local, punt.bytes());
                }
            }
            (PuntClass::Datagram, _) if self.pass_on(&sender, punt.bytes()) => {}
            (
                PuntClass::Link
                | PuntClass::EchoReply
                | PuntClass::Candidate
                | PuntClass::Datagram
                | PuntClass::Watched,
                _,
            ) => self.unclaimed += 1,
        }
        self.drain_prober(registry, now);
    }

    fn pass_on(&self, sender: &Sender, octets: &[u8]) -> bool {
        let letter = Letter { remote: sender.remote, local: sender.local, octets: octets.to_vec() };
        self.letters.as_ref().is_some_and(|letters| letters.try_send(letter).is_ok())
    }

    fn is_for_tsp(&self, local: SocketAddrV4) -> bool {
        self.tsp.as_ref().is_some_and(|tsp| tsp.is_at(local))
    }

    fn candidate(
        &mut self,
        registry: &Registry,
        tunnel: TunnelId,
        sender: &Sender,
        packet: &[u8],
        now: Duration,
    ) {
        let Some(live) = registry.tunnel(tunnel) else { return };
        let (Outer::Udp { remote, .. }, Outer::Udp { local, .. }) = (live.outer, live.config.outer) else {
            return;
        };
        // Where the configuration names our address, a peer that comes to another one is not ours to follow.
        if local.addr.is_some_and(|addr| addr != *sender.local.ip()) {
            self.unclaimed += 1;
            return;
        }
        // Only the header is needed; of a long packet the punt holds the beginning.
        let Some(inner_source) = source_of(packet) else { return };
        let Some(probe_source) = registry.local().first().copied() else { return };
        self.prober.handle_candidate(
            now,
            Candidate {
                tunnel,
                sender: sender.remote,
                local: sender.local,
                // The same endpoint at another address of ours is no second peer to be asked.
                current: remote.endpoint().filter(|at| *at != sender.remote),
                inner_source,
                probe_source,
            },
        );
    }

    /// Something may be due.
    pub fn handle_timeout(&mut self, registry: &mut Registry, now: Duration) {
        self.prober.handle_timeout(now);
        self.drain_prober(registry, now);
        self.paths.handle_timeout(now);
        self.drain_paths(registry);
        for (id, packet) in self.nd.poll(registry, now) {
            self.inject(Inject::Tunnel { id, packet });
        }
    }

    /// When [`Self::handle_timeout`] must be called next.
    pub fn poll_timeout(&self) -> Option<Duration> {
        [self.prober.poll_timeout(), self.nd.poll_timeout(), self.paths.poll_timeout()]
            .into_iter()
            .flatten()
            .min()
    }

    /// A tunnel is gone or is another one now.
    pub fn forget(&mut self, tunnel: TunnelId) {
        self.heard.remove(&tunnel);
        self.prober.forget(tunnel);
        self.paths.leave(tunnel);
    }

    fn drain_prober(&mut self, registry: &mut Registry, now: Duration) {
        let mut moved = Vec::new();
        while let Some(output) = self.prober.poll_output() {
            match output {
                Output::Listen { tunnel } => {
                    let heard = self.counters.tunnel(tunnel).rx_packets;
                    self.heard.insert(tunnel, heard);
                }
                Output::Probe { tunnel, remote, local, packet } => {
                    self.inject(Inject::TunnelAt { id: tunnel, remote, local: *local.ip(), packet });
                }
                Output::Move { tunnel, remote, local, inner, unless_heard } => {
                    // Echo may be filtered; packets that the tunnel took from its peer meanwhile are a sign of life too.
                    let heard = self.heard.remove(&tunnel).filter(|_| unless_heard);
                    if heard.is_some_and(|before| self.counters.tunnel(tunnel).rx_packets > before) {
                        self.prober.is_alive(now, tunnel, remote);
                        continue;
                    }
                    if self.relocate(registry, tunnel, (remote, local)) {
                        self.prober.has_moved(tunnel, inner);
                        moved.push(tunnel);
                    }
                }
            }
        }
        self.follow_moved(registry, moved, now);
    }

    /// Sends a tunnel's traffic to where its peer has proven to be. Returns whether it goes there now.
    fn relocate(
        &mut self,
        registry: &mut Registry,
        tunnel: TunnelId,
        (remote, local): (SocketAddrV4, SocketAddrV4),
    ) -> bool {
        let name = registry.tunnel(tunnel).map(|l| l.config.name.to_string()).unwrap_or_default();
        match registry.move_endpoint(tunnel, remote, local) {
            Some(Ok(())) => {
                self.movers.push(tunnel);
                tracing::info!("tunnel {name}: its peer is at {remote}, proven by echo");
                true
            }
            Some(Err(why)) => {
                tracing::warn!("tunnel {name}: its peer cannot move to {remote}: {why}");
                false
            }
            None => false,
        }
    }

    /// Paths to new places have MTUs of their own.
    fn follow_moved(&mut self, registry: &mut Registry, moved: Vec<TunnelId>, now: Duration) {
        for id in moved {
            self.paths.join(registry, id, now);
        }
        self.drain_paths(registry);
    }

    /// Sends a packet to a tunnel's peer.
    pub fn send(&mut self, id: TunnelId, packet: Vec<u8>) {
        self.inject(Inject::Tunnel { id, packet });
    }

    fn inject(&mut self, inject: Inject) {
        self.inject_full += u64::from(self.injector.inject(inject).is_err());
    }

    /// Tunnels whose peers have moved since the last call.
    pub fn take_movers(&mut self) -> Vec<TunnelId> {
        std::mem::take(&mut self.movers)
    }

    /// Packets that nobody wanted.
    pub fn unclaimed(&self) -> u64 {
        self.unclaimed
    }

    /// What became of path MTU discovery.
    pub fn path_counts(&self) -> BTreeMap<String, u64> {
        let mut counts = self.paths.counts();
        counts.insert("id_wrap_risk".to_owned(), self.wraps.risks());
        counts
    }

    /// What became of endpoint probes.
    pub fn endpoint_counts(&self) -> BTreeMap<String, u64> {
        let c = self.prober.counters();
        let all = [
            ("probes_sent", c.probes_sent),
            ("moved", c.moved),
            ("stayed_alive", c.stayed_alive),
            ("unanswered", c.unanswered),
            ("busy", c.busy),
            ("full", c.full),
            ("forged", c.forged),
            ("inject_queue_full", self.inject_full),
        ];
        all.into_iter().map(|(name, n)| (name.to_owned(), n)).collect()
    }
}

/// Where an echo reply came from. Unless it came from the tunnel's peer, an endpoint in use that looks the same is the same
/// peer at another address of ours, and nobody to be asked.
fn origin(registry: &Registry, tunnel: TunnelId, sender: &Sender, is_the_peers: bool) -> Origin {
    let live = registry.tunnel(tunnel);
    let current = live.and_then(|live| match live.outer {
        Outer::Udp { remote, .. } => remote.endpoint(),
        Outer::Proto41 { .. } => None,
    });
    let current = current.filter(|at| is_the_peers || *at != sender.remote);
    let echo = live.and_then(|live| live.config.care().echo);
    Origin { tunnel, sender: sender.remote, local: sender.local, current, echo }
}

/// The source address in an IPv6 header, of a packet that may have been cut short behind it.
fn source_of(packet: &[u8]) -> Option<std::net::Ipv6Addr> {
    let mut header = packet.get(..40)?.to_vec();
    header[4..6].fill(0);
    View::parse(&header).ok().map(|v| v.source)
}
