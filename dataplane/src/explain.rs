//! What would become of a packet, check by check, on the live tables: the real judgement, dry.
//!
//! [`Explainer::explain`] judges a packet as a worker would, by the same code, which names each check as it makes it. Says
//! what the tables know of the packet's addresses besides. Sends nothing, counts nothing, takes no token.

use std::net::Ipv6Addr;
use std::time::Instant;

use crate::forward;
use crate::packet::batch::{Arrival, Offload, Packet};
use crate::packet::view::View;
use crate::table::slab::{Encap, Entry, OuterKey, Owner};
use crate::table::{self, Reader};
use crate::update::{Holder, Ipv6Prefix, Meter, TunnelId};
pub use crate::verdict::Check;
use crate::verdict::{Judged, PuntClass, Verdict};

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The packet went on.
    Passed,
    /// Here it was decided.
    Stopped,
}

/// Whom an address belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Belongs {
    /// A tunnel.
    Tunnel(TunnelId),
    /// The router, or a pool's spare space.
    Reserved(Holder),
}

/// What would become of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The checks that were made, in their order.
    pub checks: Vec<(Check, Standing)>,
    /// The verdict.
    pub judged: Judged,
    /// The longest match of the inner source.
    pub source: Option<(Ipv6Prefix, Belongs)>,
    /// The longest match of the inner destination.
    pub destination: Option<(Ipv6Prefix, Belongs)>,
    /// The tunnel whose peer the sender is.
    pub sender: Option<TunnelId>,
}

/// A reader of the tables beside the workers.
#[derive(Debug)]
pub struct Explainer(Reader, Instant);

impl Explainer {
    /// `started` is when the workers' clocks began.
    pub(crate) fn new(reader: Reader, started: Instant) -> Self {
        Self(reader, started)
    }

    /// Judges `bytes` as if they had come this way.
    pub fn explain(&mut self, arrival: Arrival, bytes: &[u8]) -> Explanation {
        self.0.online();
        let explanation = explain(&self.0.view(), arrival, bytes, self.1.elapsed().as_millis() as u64);
        self.0.offline();
        explanation
    }

    /// Whose an address is, by the longest match.
    pub fn owner(&mut self, addr: Ipv6Addr) -> Option<(Ipv6Prefix, Belongs)> {
        self.0.online();
        let found = self.0.view().longest_match(addr).and_then(|entry| belongs(&entry));
        self.0.offline();
        found
    }

    /// The limits that a tunnel's packets meet in the forwarder.
    pub fn limits(&mut self, id: TunnelId) -> Meter {
        self.0.online();
        let view = self.0.view();
        let is_metered = view.tunnel(id).is_some_and(|path| path.manners.is_metered());
        let limits = if is_metered { view.meters().limits(id) } else { Meter::NONE };
        self.0.offline();
        limits
    }
}

fn explain(tables: &table::View<'_>, arrival: Arrival, bytes: &[u8], now: u64) -> Explanation {
    let mut dry = bytes.to_vec();
    let mut packet = Packet { start: 0, len: dry.len(), arrival, offload: Offload::default() };
    let mut met = Vec::new();
    let mut judged = forward::judge_before(tables, &mut packet, &mut dry, &mut met);
    if judged.is_carried() {
        charge(tables, &mut judged, packet.len as u64, now, &mut met);
    }
    let view = View::parse(bytes).ok();
    let find = |addr: Option<Ipv6Addr>| tables.longest_match(addr?).and_then(|entry| belongs(&entry));
    let sender = match arrival {
        Arrival::Tun => None,
        Arrival::Wire(s) => {
            let port = |port| if s.encap == Encap::Udp { port } else { 0 };
            let key = OuterKey::new(s.encap, *s.remote.ip(), port(s.remote.port()), port(s.local.port()));
            tables.by_outer(key, *s.local.ip()).map(|path| path.tunnel)
        }
    };
    Explanation {
        checks: standings(&met, &judged.verdict),
        judged,
        source: find(view.map(|v| v.source)),
        destination: find(view.map(|v| v.destination)),
        sender,
    }
}

fn belongs(entry: &Entry) -> Option<(Ipv6Prefix, Belongs)> {
    let whose = match entry.owner {
        Owner::Tunnel(path) => Belongs::Tunnel(path.tunnel),
        Owner::Reserved(holder) => Belongs::Reserved(holder),
    };
    Some((entry.prefix()?, whose))
}

/// The limits of the tunnels that would carry it, as a worker asks them behind the judgement.
fn charge(tables: &table::View<'_>, judged: &mut Judged, octets: u64, now: u64, met: &mut Vec<Check>) {
    for path in judged.carriers().filter(|path| path.manners.is_metered()) {
        met.push(Check::Limit);
        if let Err(reason) = tables.meters().would_take(path.tunnel, octets, now) {
            judged.verdict = Verdict::over(reason);
            return;
        }
    }
}

/// How each went: all are passed but the last, unless the packet went on behind that too.
fn standings(met: &[Check], verdict: &Verdict) -> Vec<(Check, Standing)> {
    let goes_on = match verdict {
        Verdict::ToWire(..) | Verdict::ToTun | Verdict::ToTunAndPunt(_) => true,
        Verdict::Punt(PuntClass::Link | PuntClass::Watched) => true,
        Verdict::Punt(PuntClass::Datagram | PuntClass::Candidate | PuntClass::EchoReply) => false,
        Verdict::Drop(..) => false,
    };
    let standing = |n| if goes_on || n + 1 < met.len() { Standing::Passed } else { Standing::Stopped };
    met.iter().enumerate().map(|(n, check)| (*check, standing(n))).collect()
}
