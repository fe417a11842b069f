//! `sixway explain` and `sixway show drops`, inside the router: packets judged dry, and the last ones dropped, in words.
//!
//! Makes the packet that is asked about, has the forwarder judge it on the live tables, and names what it says. Sends and
//! counts nothing.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sixway_dataplane::counters::CounterReader;
use sixway_dataplane::explain::{Belongs, Check, Explainer, Explanation, Standing};
use sixway_dataplane::packet::batch::{Arrival, Sender};
use sixway_dataplane::table::slab::Encap;
use sixway_dataplane::update::{Holder, Ipv6Prefix, Outer, TunnelId};
use sixway_dataplane::verdict::{Reason, Verdict};

use crate::admin::packet::{Seen, course, hex, sender, summary, verdict};
use crate::admin::remedy::remedy;
use crate::admin::status::ends;
use crate::registry::{Live, Registry};

/// The address that stands for ours where a tunnel takes packets to any.
const ANY_OF_OURS: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// The tunnel, by name.
    pub tunnel: String,
    /// The packet's destination.
    pub destination: Ipv6Addr,
    /// Its source; absent: the router's first address, or the first of the tunnel's prefix with `from_wire`.
    #[serde(default)]
    pub source: Option<Ipv6Addr>,
    /// Its octets in all, 40 to 65,575.
    pub len: usize,
    /// Whether the tunnel's peer sends it; otherwise the kernel does.
    pub from_wire: bool,
}

/// A check and how it went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Its name: sender, header, addresses, ...
    pub check: String,
    /// `passed` or `stopped`.
    pub result: String,
    /// What was found.
    pub found: String,
}

/// What would become of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explained {
    /// The packet in words.
    pub packet: String,
    /// Who sends it.
    pub from: String,
    /// The checks that were made, in their order.
    pub checks: Vec<Told>,
    /// What would become of it.
    pub verdict: String,
    /// The drop reason, if it is dropped.
    pub reason: Option<String>,
    /// What that means and what to do about it; empty where nothing is wrong.
    pub advice: Vec<String>,
}

/// What a reason has dropped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// Its name.
    pub reason: String,
    /// How many packets.
    pub count: u64,
    /// What it means.
    pub meaning: String,
    /// What to do about it.
    pub next: String,
    /// The last of them, as far as one was kept.
    pub last: Option<Seen>,
}

fn name(registry: &Registry, id: TunnelId) -> String {
    registry.tunnel(id).map_or_else(|| id.to_string(), |live| live.config.name.to_string())
}

/// Has the forwarder judge the packet that is asked about. `Err` says what is wrong with the question.
pub fn explain(wish: &Wish, registry: &Registry, explainer: &mut Explainer) -> Result<Explained, String> {
    let missing = || registry.no_tunnel(&wish.tunnel);
    let id = registry.by_name(&wish.tunnel).ok_or_else(missing)?;
    let live = registry.tunnel(id).ok_or_else(missing)?;
    let bytes = packet(wish, registry, live)?;
    let arrival = if wish.from_wire { from_peer(live)? } else { Arrival::Tun };
    let said = explainer.explain(arrival, &bytes);
    let names = |id| name(registry, id);
    let checks = said.checks.iter().map(|(check, standing)| Told {
        check: check_name(*check).to_owned(),
        result: standing_words(*standing).to_owned(),
        found: found(*check, *standing, &said, live, &bytes, &names),
    });
    let reason = match said.judged.verdict {
        Verdict::Drop(reason, _) => Some(reason),
        Verdict::ToWire(..) | Verdict::ToTun | Verdict::Punt(_) | Verdict::ToTunAndPunt(_) => None,
    };
    let mut advice: Vec<_> =
        reason.iter().flat_map(|r| [r.meaning(), remedy(*r)]).map(str::to_owned).collect();
    advice.extend(elsewhere(wish, id, &said, &names));
    Ok(Explained {
        packet: summary(&bytes, bytes.len()),
        from: sender(Some(arrival)),
        checks: checks.collect(),
        verdict: verdict(&said.judged.verdict, &names),
        reason: reason.map(|r| r.name().to_owned()),
        advice,
    })
}

/// It went well, but not into the tunnel that was asked about.
fn elsewhere(
    wish: &Wish,
    id: TunnelId,
    said: &Explanation,
    names: &dyn Fn(TunnelId) -> String,
) -> Option<String> {
    match said.judged.verdict {
        Verdict::ToWire(path, _) if !wish.from_wire && path.tunnel != id => Some(format!(
            "It enters tunnel {}, not {}: that one has the longest match of the destination.",
            names(path.tunnel),
            wish.tunnel
        )),
        Verdict::ToWire(..) | Verdict::ToTun | Verdict::Punt(_) => None,
        Verdict::ToTunAndPunt(_) | Verdict::Drop(..) => None,
    }
}

/// An IPv6 packet without an upper layer: a header, and octets that say that nothing follows (RFC 8200 section 4.7).
fn packet(wish: &Wish, registry: &Registry, live: &Live) -> Result<Vec<u8>, String> {
    const NO_NEXT_HEADER: u8 = 59;
    let payload = wish.len.checked_sub(40).and_then(|len| u16::try_from(len).ok());
    let payload = payload.ok_or_else(|| format!("a packet has 40 to 65575 octets, not {}", wish.len))?;
    let source = match (wish.source, wish.from_wire) {
        (Some(source), _) => source,
        (None, true) => first_host(live)?,
        (None, false) => *registry.local().first().ok_or_else(|| {
            "the router has no address of its own ([router] address): name a source with --src".to_owned()
        })?,
    };
    let mut bytes = vec![0; wish.len];
    (bytes[0], bytes[6], bytes[7]) = (0x60, NO_NEXT_HEADER, 64);
    bytes[4..6].copy_from_slice(&payload.to_be_bytes());
    bytes[8..24].copy_from_slice(&source.octets());
    bytes[24..40].copy_from_slice(&wish.destination.octets());
    Ok(bytes)
}

/// An address behind the tunnel: of a network the second one, of an uplink none.
fn first_host(live: &Live) -> Result<Ipv6Addr, String> {
    let prefix = live.config.prefixes.iter().find(|prefix| prefix.prefix_len() > 0);
    let prefix =
        prefix.ok_or_else(|| format!("name a source with --src: {} is an uplink", live.config.name))?;
    let host = if prefix.prefix_len() < 127 { 2 } else { 0 };
    Ok(Ipv6Addr::from(prefix.bits() | host))
}

/// How packets of the tunnel's peer come.
pub(crate) fn from_peer(live: &Live) -> Result<Arrival, String> {
    match live.outer {
        Outer::Proto41 { local, remote } => {
            Ok(Arrival::Wire(Sender::proto41(remote, local.unwrap_or(ANY_OF_OURS), 0)))
        }
        Outer::Udp { local, remote } => {
            let remote = remote.endpoint().ok_or_else(|| {
                format!("the peer of tunnel '{}' is not known yet: nothing comes from it", live.config.name)
            })?;
            let local = SocketAddrV4::new(local.addr.unwrap_or(ANY_OF_OURS), local.port);
            Ok(Arrival::Wire(Sender { encap: Encap::Udp, remote, local, tos: 0 }))
        }
    }
}

fn check_name(check: Check) -> &'static str {
    match check {
        Check::Sender => "sender",
        Check::Datagram => "IPv6",
        Check::Header => "header",
        Check::Addresses => "addresses",
        Check::Scope => "scope",
        Check::Source => "source",
        Check::Peer => "peer",
        Check::Inside => "inside",
        Check::Marks => "marks",
        Check::Train => "offload",
        Check::Destination => "destination",
        Check::Hairpin => "hairpin",
        Check::Endpoint => "endpoint",
        Check::Size => "size",
        Check::Limit => "limit",
    }
}

fn standing_words(standing: Standing) -> &'static str {
    match standing {
        Standing::Passed => "passed",
        Standing::Stopped => "stopped",
    }
}

fn found(
    check: Check,
    standing: Standing,
    said: &Explanation,
    asked: &Live,
    bytes: &[u8],
    names: &dyn Fn(TunnelId) -> String,
) -> String {
    let passed = standing == Standing::Passed;
    let or = |good: &str, bad: &str| if passed { good.to_owned() } else { bad.to_owned() };
    let peer =
        || said.sender.map_or_else(|| "no tunnel's".to_owned(), |id| format!("tunnel {}'s", names(id)));
    match check {
        Check::Sender => or("an address that a peer can have", "no peer can have this address"),
        Check::Datagram => or("it is", "a datagram for the control plane"),
        Check::Header => format!("{} octets", bytes.len()),
        Check::Addresses => or("may cross a tunnel", "one of them may not cross a tunnel"),
        Check::Scope => or("for its link", "stays on its link"),
        Check::Source => place(said.source, names),
        Check::Peer => format!("the sender is {} peer", peer()),
        Check::Limit => or("within its rate and quota", "its rate or quota has no room for it"),
        Check::Inside => {
            or("no source route, no tunnels too many", "a source route, or too many tunnels in each other")
        }
        Check::Marks => or("no congestion, or it can be marked", "congestion cannot be marked"),
        Check::Train => or("nothing merged", "cannot be cut"),
        Check::Destination => place(said.destination, names),
        Check::Hairpin => or("from one tunnel to another", "not from this tunnel to that one"),
        Check::Endpoint => {
            let (encap, _, remote) = ends(&asked.outer);
            match said.judged.verdict {
                Verdict::ToWire(path, _) => format!("{} of tunnel {}", path.remote, names(path.tunnel)),
                Verdict::ToTun | Verdict::Punt(_) => String::new(),
                Verdict::ToTunAndPunt(_) | Verdict::Drop(..) => format!("{encap} {remote}"),
            }
        }
        Check::Size => match said.judged.verdict {
            Verdict::ToWire(path, _) => format!("{} octets, MTU {}", bytes.len(), path.mtu),
            Verdict::ToTun | Verdict::Punt(_) | Verdict::ToTunAndPunt(_) | Verdict::Drop(..) => {
                format!("{} octets {}", bytes.len(), or("fit", "are too many"))
            }
        },
    }
}

fn place(found: Option<(Ipv6Prefix, Belongs)>, names: &dyn Fn(TunnelId) -> String) -> String {
    match found {
        None => "in no prefix here".to_owned(),
        Some((prefix, Belongs::Tunnel(id))) => format!("in {prefix} of tunnel {}", names(id)),
        Some((prefix, Belongs::Reserved(Holder::Local))) => format!("{prefix} is the router's own"),
        Some((prefix, Belongs::Reserved(Holder::Unassigned))) => format!("in {prefix}, which nobody has"),
    }
}

/// Every reason that has dropped something, with the last packet of each; `started` is when the forwarder began, and
/// `unclaimed` what nobody above it wanted.
pub fn drops(
    registry: &Registry,
    counters: &CounterReader,
    uptime: Duration,
    unclaimed: u64,
) -> Vec<Dropped> {
    let names = |id| name(registry, id);
    let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(uptime);
    let all = Reason::ALL.iter().map(|reason| {
        let more = if *reason == Reason::Unclaimed { unclaimed } else { 0 };
        (*reason, counters.dropped(*reason) + more)
    });
    let told = all.filter(|(_, count)| *count > 0).map(|(reason, count)| Dropped {
        reason: reason.name().to_owned(),
        count,
        meaning: reason.meaning().to_owned(),
        next: remedy(reason).to_owned(),
        last: counters.sample(reason).map(|sample| Seen {
            at_us: (began + sample.at).as_micros() as u64,
            tunnel: sample.tunnel.map(names),
            from: course(sample.course),
            verdict: format!("dropped: {}", reason.name()),
            reason: Some(reason.name().to_owned()),
            summary: summary(&sample.bytes, sample.len),
            len: sample.len,
            octets: hex(&sample.bytes),
            missed: 0,
        }),
    });
    told.collect()
}
