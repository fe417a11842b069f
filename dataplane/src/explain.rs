//! What would become of a packet, check by check, on the live tables: the real judgement, dry.
//!
//! [`Explainer::explain`] judges a packet as a worker would and says which checks it passed, where it stopped and what the
//! tables say about its addresses. Sends nothing, counts nothing, takes no token. The checks are in the order of
//! `forward`; a reason belongs to exactly one check of each side.

use std::net::Ipv6Addr;

use crate::forward::{self, is_for_link};
use crate::packet::batch::{Arrival, Offload, Packet};
use crate::packet::view::View;
use crate::table::slab::{Encap, Entry, OuterKey, Owner};
use crate::table::{self, Reader};
use crate::update::{Holder, Ipv6Prefix, TunnelId};
use crate::verdict::{Judged, PuntClass, Reason, Verdict};

/// One thing that is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Check {
    /// Can the outer source be a peer at all?
    Sender,
    /// Is it IPv6, or a datagram for the control plane?
    Datagram,
    /// Is there an IPv6 header with an honest length?
    Header,
    /// Are the addresses such as may cross a tunnel?
    Addresses,
    /// May the packet leave its link?
    Scope,
    /// Is the sender the peer of the tunnel that the inner source belongs to?
    Source,
    /// Does it carry what may not come out of a tunnel, or too many tunnels?
    Inside,
    /// Can the packet carry the congestion mark that it got outside?
    Marks,
    /// Can a merged packet be cut, a left checksum be completed?
    Train,
    /// Who has the destination?
    Destination,
    /// May it go from this tunnel to that one?
    Hairpin,
    /// Is the tunnel's peer known?
    Endpoint,
    /// Does it fit the tunnel's MTU?
    Size,
}

const FROM_TUN: &[Check] = &[
    Check::Header,
    Check::Addresses,
    Check::Scope,
    Check::Source,
    Check::Destination,
    Check::Endpoint,
    Check::Size,
    Check::Inside,
    Check::Train,
];
const FROM_WIRE: &[Check] = &[
    Check::Sender,
    Check::Datagram,
    Check::Header,
    Check::Addresses,
    Check::Source,
    Check::Inside,
    Check::Marks,
    Check::Train,
    Check::Destination,
    Check::Hairpin,
    Check::Endpoint,
    Check::Size,
];
/// Link-local and multicast out of a tunnel: it goes to the control plane or nowhere.
const ON_LINK: &[Check] =
    &[Check::Sender, Check::Datagram, Check::Header, Check::Addresses, Check::Source, Check::Scope];

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The packet went on.
    Passed,
    /// Here it was decided.
    Stopped,
    /// It did not come so far, or did not need to.
    NotReached,
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
    /// The checks in order.
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
pub struct Explainer(Reader);

impl Explainer {
    pub(crate) fn new(reader: Reader) -> Self {
        Self(reader)
    }

    /// Judges `bytes` as if they had come this way.
    pub fn explain(&mut self, arrival: Arrival, bytes: &[u8]) -> Explanation {
        self.0.online();
        let explanation = explain(&self.0.view(), arrival, bytes);
        self.0.offline();
        explanation
    }
}

fn explain(tables: &table::View<'_>, arrival: Arrival, bytes: &[u8]) -> Explanation {
    let mut dry = bytes.to_vec();
    let mut packet = Packet { start: 0, len: dry.len(), arrival, offload: Offload::default() };
    let judged = forward::judge(tables, &mut packet, &mut dry);
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
        checks: checks(arrival, view.as_ref(), &judged.verdict),
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

/// The checks in the order in which this packet met them, and how far it came.
fn checks(arrival: Arrival, view: Option<&View>, verdict: &Verdict) -> Vec<(Check, Standing)> {
    let all = match arrival {
        Arrival::Tun => FROM_TUN,
        Arrival::Wire(_) if view.is_some_and(is_for_link) => ON_LINK,
        Arrival::Wire(_) => FROM_WIRE,
    };
    let decided = match verdict {
        Verdict::Drop(reason, _) => check_of(*reason),
        Verdict::Punt(PuntClass::Datagram) => Some(Check::Datagram),
        Verdict::Punt(PuntClass::Candidate | PuntClass::EchoReply) => Some(Check::Source),
        Verdict::Punt(PuntClass::Link | PuntClass::Watched) | Verdict::ToTunAndPunt(_) => None,
        Verdict::ToWire(..) => None,
        Verdict::ToTun => return passed_to_kernel(all),
    };
    let end = decided.and_then(|check| all.iter().position(|c| *c == check)).unwrap_or(all.len());
    let standing = |n: usize| match n.cmp(&end) {
        std::cmp::Ordering::Less => Standing::Passed,
        std::cmp::Ordering::Equal => Standing::Stopped,
        std::cmp::Ordering::Greater => Standing::NotReached,
    };
    all.iter().enumerate().map(|(n, check)| (*check, standing(n))).collect()
}

/// What goes to the kernel enters no other tunnel.
fn passed_to_kernel(all: &[Check]) -> Vec<(Check, Standing)> {
    let standing = |check: &Check| match check {
        Check::Hairpin | Check::Endpoint | Check::Size => Standing::NotReached,
        Check::Sender | Check::Datagram | Check::Header | Check::Addresses => Standing::Passed,
        Check::Scope | Check::Source | Check::Inside => Standing::Passed,
        Check::Marks | Check::Train => Standing::Passed,
        Check::Destination => Standing::Passed,
    };
    all.iter().map(|check| (*check, standing(check))).collect()
}

/// The check that a reason belongs to; `None` for those that no judgement gives: devices, queues, limits.
fn check_of(reason: Reason) -> Option<Check> {
    Some(match reason {
        Reason::OuterMartian => Check::Sender,
        Reason::TooShort | Reason::NotIpv6 | Reason::Truncated => Check::Header,
        Reason::InnerMartian | Reason::SixToFour => Check::Addresses,
        Reason::Scope => Check::Scope,
        Reason::UnknownOuter | Reason::WrongOuter => Check::Source,
        Reason::SourceNotInPrefix | Reason::SourceIsLocal | Reason::SourceInTunnel => Check::Source,
        Reason::SourceRouted | Reason::Nested => Check::Inside,
        Reason::Ecn => Check::Marks,
        Reason::BadOffload => Check::Train,
        Reason::NoRoute | Reason::Unassigned => Check::Destination,
        Reason::SameTunnel | Reason::HairpinOff | Reason::HopLimit => Check::Hairpin,
        Reason::NoEndpoint => Check::Endpoint,
        Reason::TooBig => Check::Size,
        Reason::OuterHeader | Reason::OuterFragment | Reason::NotOurs | Reason::OddLink => return None,
        Reason::PuntFull | Reason::PuntLimited | Reason::Unclaimed => return None,
        Reason::RateLimited | Reason::QuotaSpent => return None,
        Reason::SendFailed | Reason::TunFull | Reason::BatchFull => return None,
    })
}
