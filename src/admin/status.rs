//! What `sixway status --json` says, field by field. Knows how to read the registry and the counters, not how to print.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sixway_dataplane::counters::{CounterReader, Event};
use sixway_dataplane::io::proto41::Receive;
use sixway_dataplane::knobs::{Knob, Standing};
use sixway_dataplane::start::Facts;
use sixway_dataplane::update::{Outer, TunnelId, UdpRemote};

use super::delegated::ClientStatus;
use crate::broker::{Pool, PoolKind};
use crate::office::Office;
use crate::registry::{Diff, Live, Registry};

/// Most tunnels in a page, whatever was asked.
const MOST_IN_PAGE: usize = 10_000;

/// The state of a running router.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the program.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// The TUN device.
    pub tun: String,
    /// Whether it is up; if not, nothing goes through.
    #[serde(default = "yes")]
    pub tun_is_up: bool,
    /// Seconds since the start.
    pub uptime_s: u64,
    /// Forwarding threads.
    pub workers: usize,
    /// What of the kernel's help was granted.
    pub offload: Offload,
    /// UDP endpoints that are open.
    pub listening: Vec<String>,
    /// Octets of the forwarding tables, without counters.
    pub table_bytes: usize,
    /// All tunnels, of which this answer shows a page.
    pub tunnels_total: usize,
    /// This page, from 1.
    pub page: usize,
    /// How many pages there are.
    pub pages: usize,
    /// The tunnels of this page.
    pub tunnels: Vec<TunnelStatus>,
    /// Drops of all tunnels and of none, by reason.
    pub drops: BTreeMap<String, u64>,
    /// What else was counted.
    pub events: BTreeMap<String, u64>,
    /// What neighbour discovery did not answer, by reason.
    pub nd: BTreeMap<String, u64>,
    /// What became of endpoint probes.
    pub endpoints: BTreeMap<String, u64>,
    /// What became of errors about outer packets, and of path MTU probes.
    #[serde(default)]
    pub pmtu: BTreeMap<String, u64>,
    /// What is granted to users; `null`: this router grants nothing.
    pub broker: Option<BrokerStatus>,
    /// Connections and logins of the DTCP server; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtcp: Option<BTreeMap<String, u64>>,
    /// Counts of the TSP server, if there is one.
    pub tsp: Option<BTreeMap<String, u64>>,
    /// Counts of the DHCPv6 server inside tunnels; `null`: there is none.
    pub dhcpv6: Option<BTreeMap<String, u64>>,
    /// Counts of the DHCPv6 servers on links, by interface; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dhcpv6_links: Option<BTreeMap<String, BTreeMap<String, u64>>>,
    /// The DHCPv6 client of `sixway connect --pd`; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dhcpv6_client: Option<ClientStatus>,
}

/// What routers that do not say so mean.
fn yes() -> bool {
    true
}

/// What is granted to users.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerStatus {
    /// Accounts.
    pub accounts: usize,
    /// Leased tunnels.
    pub leases: usize,
    /// Prefixes and addresses that clients inside tunnels have.
    pub bindings: usize,
    /// Control connections that are open.
    pub connections: u32,
    /// Runs of hooks that were left out, because too many waited.
    pub hooks_missed: u64,
    /// The pools, in the order of the configuration.
    pub pools: Vec<PoolStatus>,
}

/// One pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolStatus {
    /// All of it.
    pub prefix: String,
    /// Prefix length of the networks it is cut into; `null`: it gives out address pairs, or addresses.
    pub assign: Option<u8>,
    /// Whether it gives out addresses inside tunnels.
    pub addresses: bool,
    /// Networks or pairs in use.
    pub in_use: usize,
    /// Networks or pairs there are; 0 for addresses.
    pub places: u32,
}

impl BrokerStatus {
    /// Reads the office.
    pub fn new(office: &Office) -> Self {
        let broker = office.broker();
        let pool = |(pool, in_use): (Pool, usize)| PoolStatus {
            prefix: pool.prefix.to_string(),
            assign: match pool.kind {
                PoolKind::Networks(len) => Some(len),
                PoolKind::Pairs | PoolKind::Addresses => None,
            },
            addresses: pool.kind == PoolKind::Addresses,
            in_use,
            places: pool.places(),
        };
        Self {
            accounts: broker.accounts().len(),
            leases: broker.len(),
            bindings: broker.bindings_len(),
            connections: office.desk().connections(),
            hooks_missed: office.hooks_missed(),
            pools: broker.pools().chain(broker.address_pools_in_use()).map(pool).collect(),
        }
    }
}

/// What of the kernel's help was granted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offload {
    /// How protocol 41 is received: packet, raw, off.
    pub proto41: String,
    /// Who spreads UDP senders over the forwarding threads: sender (our rule, by address and port), kernel.
    pub udp_spread: String,
    /// Each offload by its name in the configuration.
    #[serde(flatten)]
    pub knobs: BTreeMap<String, OffloadState>,
}

/// One offload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffloadState {
    /// `on`; `off` by configuration; `refused` by the kernel; `paused` somewhere after errors.
    pub state: String,
    /// Super-packets that it has moved so far.
    #[serde(default)]
    pub trains: u64,
    /// What the kernel said, why it could not be tested, or when a pause ends.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
}

/// One tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelStatus {
    /// Its name in the configuration.
    pub name: String,
    /// `proto41` or `udp`.
    pub encap: String,
    /// Our outer endpoint; `*` for any address.
    pub local: String,
    /// The peer's outer endpoint, or what is known of it.
    pub remote: String,
    /// Inner prefixes.
    pub prefixes: Vec<String>,
    /// Inner MTU, octets.
    pub mtu: u16,
    /// Packets that came out of the tunnel.
    pub rx_packets: u64,
    /// Their octets.
    pub rx_bytes: u64,
    /// Packets that went into the tunnel.
    pub tx_packets: u64,
    /// Their octets.
    pub tx_bytes: u64,
    /// Seconds since its peer was last heard; `null`: never.
    pub last_seen_s: Option<u64>,
    /// Drops by reason.
    pub drops: BTreeMap<String, u64>,
}

/// What a reload changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// New tunnels.
    pub added: usize,
    /// Tunnels that are gone.
    pub removed: usize,
    /// Tunnels with another setting.
    pub changed: usize,
    /// Tunnels that nothing touched.
    pub unchanged: usize,
    /// What needs a restart, and other advice.
    pub notes: Vec<String>,
}

impl Reloaded {
    /// A diff with advice.
    pub fn new(diff: Diff, notes: Vec<String>) -> Self {
        let Diff { added, removed, changed, unchanged } = diff;
        Self { added, removed, changed, unchanged, notes }
    }
}

/// What the status is read from.
#[derive(Debug)]
pub struct Sources<'a> {
    /// Live tunnels.
    pub registry: &'a Registry,
    /// Counters.
    pub counters: &'a CounterReader,
    /// What was granted.
    pub facts: &'a Facts,
    /// The TUN device.
    pub tun: &'a str,
    /// Whether it is up.
    pub tun_is_up: bool,
    /// Seconds since the start.
    pub uptime_s: u64,
    /// Counts of neighbour discovery.
    pub nd: BTreeMap<String, u64>,
    /// Counts of endpoint probing.
    pub endpoints: BTreeMap<String, u64>,
    /// Counts of path MTU discovery.
    pub pmtu: BTreeMap<String, u64>,
    /// Datagrams that nobody wanted.
    pub unclaimed: u64,
    /// What is granted to users.
    pub broker: Option<BrokerStatus>,
    /// Counts of the DTCP server, if there is one.
    pub dtcp: Option<BTreeMap<String, u64>>,
    /// Counts of the TSP server, if there is one.
    pub tsp: Option<BTreeMap<String, u64>>,
    /// Counts of the DHCPv6 server, if there is one.
    pub dhcpv6: Option<BTreeMap<String, u64>>,
    /// The same of those on links, by interface.
    pub dhcpv6_links: Option<BTreeMap<String, BTreeMap<String, u64>>>,
    /// The DHCPv6 client, if there is one.
    pub dhcpv6_client: Option<ClientStatus>,
}

impl Sources<'_> {
    /// Page `page` (from 1) of at most `limit` tunnels, or the one tunnel `only`. `Err` says what is wrong.
    pub fn status(&self, page: usize, limit: usize, only: Option<&str>) -> Result<Status, String> {
        let limit = limit.clamp(1, MOST_IN_PAGE);
        let (total, tunnels) = match only {
            Some(name) => {
                let id = self.registry.by_name(name).ok_or_else(|| self.registry.no_tunnel(name))?;
                (1, self.registry.tunnel(id).map(|live| self.tunnel(id, live)).into_iter().collect())
            }
            None => (self.registry.len(), self.page(page, limit)),
        };
        let pages = total.div_ceil(limit).max(1);
        if page == 0 || page > pages {
            return Err(format!("there is no page {page}; the pages are 1 to {pages}"));
        }
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            tun: self.tun.to_owned(),
            tun_is_up: self.tun_is_up,
            uptime_s: self.uptime_s,
            workers: self.facts.workers,
            offload: self.offload(),
            listening: self.registry.listening().iter().map(ToString::to_string).collect(),
            table_bytes: self.registry.table_memory(),
            tunnels_total: total,
            page,
            pages,
            tunnels,
            drops: self.drops(),
            events: Event::ALL.iter().map(|e| (e.name().to_owned(), self.counters.happened(*e))).collect(),
            nd: self.nd.clone(),
            endpoints: self.endpoints.clone(),
            pmtu: self.pmtu.clone(),
            broker: self.broker.clone(),
            dtcp: self.dtcp.clone(),
            tsp: self.tsp.clone(),
            dhcpv6: self.dhcpv6.clone(),
            dhcpv6_links: self.dhcpv6_links.clone(),
            dhcpv6_client: self.dhcpv6_client.clone(),
        })
    }

    fn page(&self, page: usize, limit: usize) -> Vec<TunnelStatus> {
        let skip = page.saturating_sub(1).saturating_mul(limit);
        self.registry.iter().skip(skip).take(limit).map(|(id, live)| self.tunnel(id, live)).collect()
    }

    fn drops(&self) -> BTreeMap<String, u64> {
        let mut drops: BTreeMap<_, _> =
            self.counters.drops().into_iter().map(|(r, n)| (r.name().to_owned(), n)).collect();
        if self.unclaimed > 0 {
            *drops.entry("unclaimed".to_owned()).or_default() += self.unclaimed;
        }
        drops
    }

    fn offload(&self) -> Offload {
        let proto41 = match self.facts.proto41 {
            None => "off",
            Some(Receive::Raw) => "raw",
            Some(Receive::Packet | Receive::Auto) => "packet",
        };
        let knobs = Knob::ALL.iter().map(|knob| (knob.name().to_owned(), self.offload_state(*knob)));
        let udp_spread = self.facts.udp_spread.name().to_owned();
        Offload { proto41: proto41.to_owned(), udp_spread, knobs: knobs.collect() }
    }

    fn offload_state(&self, knob: Knob) -> OffloadState {
        let trains = self.counters.trains(knob);
        let state =
            |state: &str, why: &str| OffloadState { state: state.to_owned(), trains, why: why.to_owned() };
        let now = u32::try_from(self.uptime_s).unwrap_or(u32::MAX);
        match (self.facts.offload.of(knob), self.counters.paused(knob, now)) {
            (Standing::Off, _) => state("off", ""),
            (Standing::Refused(why), _) => state("refused", why),
            (_, Some(left)) => {
                state("paused", &format!("the kernel refused it in use; tried again in {left} s"))
            }
            (Standing::Untested(why), None) => state("on", why),
            (Standing::On, None) => state("on", ""),
        }
    }

    fn tunnel(&self, id: TunnelId, live: &Live) -> TunnelStatus {
        let totals = self.registry.totals(id);
        let (encap, local, remote) = ends(&live.outer);
        TunnelStatus {
            name: live.config.name.to_string(),
            encap: encap.to_owned(),
            local,
            remote,
            prefixes: live.prefixes().map(|prefix| prefix.to_string()).collect(),
            mtu: live.mtu(),
            rx_packets: totals.rx_packets,
            rx_bytes: totals.rx_bytes,
            tx_packets: totals.tx_packets,
            tx_bytes: totals.tx_bytes,
            last_seen_s: totals.last_seen.map(|at| self.uptime_s.saturating_sub(u64::from(at))),
            drops: totals.drops.iter().map(|(r, n)| (r.name().to_owned(), *n)).collect(),
        }
    }
}

/// Encapsulation and both ends, as the configuration writes them.
pub fn ends(outer: &Outer) -> (&'static str, String, String) {
    let any = |addr: Option<std::net::Ipv4Addr>| addr.map_or_else(|| "*".to_owned(), |a| a.to_string());
    match outer {
        Outer::Proto41 { local, remote } => ("proto41", any(*local), remote.to_string()),
        Outer::Udp { local, remote } => {
            let peer = match remote {
                UdpRemote::AnyPort { addr, port: None } => format!("{addr}:*"),
                UdpRemote::Learned(None) => "learn".to_owned(),
                UdpRemote::Fixed(_) | UdpRemote::AnyPort { .. } | UdpRemote::Learned(Some(_)) => {
                    remote.endpoint().map_or_else(String::new, |at| at.to_string())
                }
            };
            ("udp", format!("{}:{}", any(local.addr), local.port), peer)
        }
    }
}
