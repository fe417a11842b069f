//! The shell of path MTU discovery: errors heard, tunnels found, tables told, probes sent.

use std::collections::{BTreeMap, HashSet};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rand::rngs::StdRng;
use sixway_dataplane::io::ears::{Ears, LARGEST};
use sixway_dataplane::packet::icmp;
use sixway_dataplane::packet::view::{HEADER, View};
use sixway_dataplane::table::owners::Owners;
use sixway_dataplane::table::slab::Encap;
use sixway_dataplane::update::{MIN_MTU, Outer, TunnelId};
use sixway_dataplane::worker::Inject;

use super::codec::{self, Carrier, Quote};
use super::doubt::{self, About};
use super::session::{Inside, Mode, Output, Paths, Terms};
use crate::config::Pmtu;
use crate::nd::codec::{Echo, Header, Outgoing, emit};
use crate::nd::server::link_local;
use crate::registry::{Live, Registry};

/// Errors read before anything else gets its turn: more than wait at once.
const ERRORS_A_TURN: usize = 1024;
/// Tunnels whose first link is looked at in a second.
const LOOKED_AT: usize = 256;
/// The hop limit of probes.
const HOPS: u8 = 64;

/// What a tunnel was begun with: where that changes, all is found anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Begun {
    mode: Mode,
    mtu: u16,
    outer: Outer,
}

/// Path MTU discovery of all tunnels.
#[derive(Debug)]
pub struct PathServer {
    paths: Paths<StdRng>,
    ears: Ears,
    owners: Owners,
    begun: BTreeMap<TunnelId, Begun>,
    looked_at: Option<TunnelId>,
    ident: u16,
    malformed: u64,
}

impl PathServer {
    /// With randomness that is secret; `ident` marks the echo replies that the forwarder hands up.
    pub fn new(ears: Ears, owners: Owners, rng: StdRng, ident: u16) -> Self {
        let (begun, looked_at) = (BTreeMap::new(), None);
        Self { paths: Paths::new(rng), ears, owners, begun, looked_at, ident, malformed: 0 }
    }

    /// What to wait on for [`Self::hear`], if errors are heard at all.
    pub fn waiting(&self) -> Option<OwnedFd> {
        self.ears.fd()?.try_clone_to_owned().ok()
    }

    /// Whether errors are heard.
    pub fn hears(&self) -> bool {
        self.ears.hears()
    }

    /// The IPv4 addresses of the network that this process is in.
    pub fn own_addresses(&self) -> HashSet<Ipv4Addr> {
        self.ears.own_addresses().into_iter().collect()
    }

    /// Tunnels came, went, changed or moved.
    pub fn follow(&mut self, registry: &Registry, now: Duration) {
        let gone: Vec<_> = self.begun.keys().copied().filter(|id| begun(registry, *id).is_none()).collect();
        gone.into_iter().for_each(|id| self.leave(id));
        let wanted = registry.iter().filter(|(_, live)| live.config.care().pmtu != Pmtu::Static);
        for id in wanted.map(|(id, _)| id).collect::<Vec<_>>() {
            self.join(registry, id, now);
        }
    }

    /// A tunnel is new, or has changed or moved.
    pub fn join(&mut self, registry: &Registry, id: TunnelId, now: Duration) {
        let Some(wanted) = begun(registry, id) else { return self.leave(id) };
        if self.begun.insert(id, wanted) == Some(wanted) {
            return;
        }
        self.paths.forget(id);
        let (ceiling, overhead) = (self.ceiling(&wanted), wanted.outer.overhead());
        self.paths.begin(now, id, Terms { mode: wanted.mode, ceiling, overhead });
    }

    /// A tunnel is gone.
    pub fn leave(&mut self, id: TunnelId) {
        self.begun.remove(&id);
        self.paths.forget(id);
    }

    /// The largest inner packet: what is configured, or less where this host's way to the peer takes less.
    fn ceiling(&mut self, begun: &Begun) -> u16 {
        let local = begun.outer.local().unwrap_or(Ipv4Addr::UNSPECIFIED);
        let way = begun.outer.peer().and_then(|peer| self.ears.path_mtu(peer, local));
        let inside = way.map_or(u16::MAX, |mtu| mtu.saturating_sub(begun.outer.overhead()));
        begun.mtu.min(inside).max(MIN_MTU)
    }

    /// Once a second: some tunnels' first links may have changed.
    pub fn look(&mut self, now: Duration) {
        let next: Vec<_> = self.paths.after(self.looked_at).take(LOOKED_AT).map(|(id, _)| id).collect();
        for id in &next {
            self.look_at(*id, now);
        }
        // Fewer than asked for: the round is over.
        self.looked_at = next.last().copied().filter(|_| next.len() == LOOKED_AT);
    }

    /// This host has refused packets of this tunnel as too long: its first link has changed.
    pub fn look_at(&mut self, id: TunnelId, now: Duration) {
        if let Some(begun) = self.begun.get(&id).copied() {
            let ceiling = self.ceiling(&begun);
            self.paths.set_ceiling(now, id, ceiling);
        }
    }

    /// Deals with errors that have come.
    pub fn hear(&mut self, registry: &Registry, now: Duration) {
        let mut buffer = [0; LARGEST];
        for _ in 0..ERRORS_A_TURN {
            let Some(packet) = self.ears.hear(&mut buffer) else { return };
            match codec::parse(packet) {
                Ok(report) => {
                    let tunnel = owner(registry, &report.quote);
                    let inside = inside(&mut self.owners, registry, tunnel, &report.quote);
                    self.paths.handle_error(now, tunnel, report.kind, &report.quote, inside);
                }
                Err(_) => self.malformed += 1,
            }
        }
    }

    /// Looks at an echo reply out of a tunnel.
    pub fn handle_reply(&mut self, now: Duration, tunnel: Option<TunnelId>, packet: &[u8]) {
        if let (Some(id), Some(reply)) = (tunnel, codec::parse_reply(packet))
            && reply.ident == self.ident
        {
            self.paths.handle_reply(now, id, &reply);
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Duration) {
        self.paths.handle_timeout(now);
    }

    /// When [`Self::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.paths.poll_timeout()
    }

    /// Tells the tables what was found; returns what is to be sent.
    pub fn drain(&mut self, registry: &mut Registry) -> Vec<Inject> {
        let mut out = Vec::new();
        let source = registry.local().first().copied();
        while let Some(output) = self.paths.poll_output() {
            set(registry, &output);
            match (output, source) {
                (Output::Ask { tunnel, about, size, secret }, _) => {
                    let Some(live) = registry.tunnel(tunnel) else { continue };
                    let packet = doubt::question(link_local(&live.outer), &secret, size);
                    out.push(match about {
                        About::Length => Inject::Whole { id: tunnel, packet },
                        About::Way => Inject::Tunnel { id: tunnel, packet },
                    });
                }
                (Output::Tell { error, packet }, Some(source)) => {
                    let mut built = [0; icmp::LARGEST];
                    let len = icmp::build_quoted(error, source, &packet, &mut built);
                    out.extend(len.map(|len| Inject::Toward { packet: built[..len].to_vec() }));
                }
                (Output::Probe { tunnel, peer, size, nonce }, Some(source)) => {
                    let header = Header { source, destination: peer, hop_limit: HOPS };
                    let mut data = vec![0; usize::from(size).saturating_sub(48)];
                    data[..16].copy_from_slice(&nonce);
                    let echo = Echo { ident: self.ident, seq: size, data: &data };
                    let packet = emit(&header, &Outgoing::EchoRequest(echo));
                    out.push(Inject::Whole { id: tunnel, packet });
                }
                // Without an address of its own the router can neither tell nor probe.
                (Output::Set { .. } | Output::Tell { .. } | Output::Probe { .. }, _) => {}
            }
        }
        out
    }

    /// What was counted.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let c = self.paths.counters();
        let all = [
            ("lowered", c.lowered),
            ("raised", c.raised),
            ("told", c.told),
            ("told_too_often", c.told_too_often),
            ("unbelievable", c.unbelievable),
            ("malformed", self.malformed),
            ("questions", c.questions),
            ("probes", c.probes),
            ("answered", c.answered),
        ];
        all.into_iter().map(|(name, n)| (name.to_owned(), n)).collect()
    }
}

fn begun(registry: &Registry, id: TunnelId) -> Option<Begun> {
    let Live { config, outer, .. } = registry.tunnel(id)?;
    let care = config.care();
    let mode = match care.pmtu {
        Pmtu::Static => return None,
        Pmtu::Dynamic => Mode::Dynamic,
        Pmtu::Probe => Mode::Probe(care.echo?),
    };
    Some(Begun { mode, mtu: config.mtu, outer: *outer })
}

fn set(registry: &mut Registry, output: &Output) {
    let Output::Set { tunnel, mtu, whole } = *output else { return };
    let Some(name) = registry.tunnel(tunnel).map(|live| live.config.name.to_string()) else { return };
    match registry.set_path(tunnel, mtu, whole) {
        Ok(()) => tracing::debug!("tunnel {name}: its path takes {mtu} octets inside"),
        Err(why) => tracing::warn!("tunnel {name}: its MTU stays as it is: {why}"),
    }
}

/// The tunnel that a quoted packet was sent by.
fn owner(registry: &Registry, quote: &Quote<'_>) -> Option<TunnelId> {
    let encap = match quote.carrier {
        Carrier::Proto41 => Encap::Proto41,
        Carrier::Udp => Encap::Udp,
    };
    let (local, remote): (SocketAddrV4, SocketAddrV4) = (quote.local, quote.remote);
    registry.tunnel_to(encap, local, remote)
}

/// Whether what is quoted inside can have been sent through this tunnel: to an address behind it, from one that is not, and
/// as long as the outer header says.
fn inside(owners: &mut Owners, registry: &Registry, tunnel: Option<TunnelId>, quote: &Quote<'_>) -> Inside {
    let Some(live) = tunnel.and_then(|id| registry.tunnel(id)) else { return Inside::Wrong };
    if quote.inner.len() < HEADER {
        return Inside::Cut;
    }
    let Ok(view) = View::parse_cut(quote.inner) else { return Inside::Wrong };
    let from = view.source;
    let is_scoped =
        from.is_multicast() || from.is_unspecified() || from.is_loopback() || from.is_unicast_link_local();
    let fits = view.len + usize::from(live.outer.overhead()) == usize::from(quote.total);
    let is_behind = owners.of(view.destination).map(|(id, _)| id) == tunnel;
    let is_before = owners.of(from).is_none_or(|(id, len)| len == 0 || Some(id) != tunnel);
    let goes_there = is_behind && is_before;
    if fits && goes_there && !is_scoped { Inside::Plausible } else { Inside::Wrong }
}
