//! What `dhcp6s.conf` means on one link: who may have what, and what everybody is told. Pure.
//!
//! Pools of other interfaces in the file are for clients behind relays: a relay's address on the clients' link says which.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Duration;

use dhcproto::v6::{DhcpOption, NtpSuboption};
use sixway_dataplane::update::Ipv6Prefix;

use crate::compat::dhcp6sconf::{Duid, Interface, Lifetimes, Options, PoolUse, PrefixPool, ServerConf};
use crate::dhcpv6::auth::Key;
use crate::dhcpv6::codec::{Name, Opt, code};
pub use crate::dhcpv6::session::Life;
use crate::dhcpv6::session::Terms;

/// How long a declined address is given to nobody.
const DECLINED: Duration = Duration::from_secs(86_400);

/// Who may have what.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    hosts: HashMap<Box<[u8]>, HostPlan>,
    /// Everything that is set aside for somebody, and for whom.
    set_aside: std::collections::BTreeMap<Ipv6Prefix, Box<[u8]>>,
    here: LinkPlan,
    /// The other interfaces' pools, for relays.
    elsewhere: Vec<LinkPlan>,
    /// What is on the link beside that: the prefixes of the interface's own addresses.
    on_link: BTreeSet<Ipv6Prefix>,
}

/// What strangers get on a link.
#[derive(Clone, Debug, Default)]
pub struct LinkPlan {
    /// Addresses.
    pub pool: Option<Range>,
    /// Prefixes.
    pub spaces: Vec<Space>,
}

/// What one client gets, and nobody else.
#[derive(Clone, Debug, Default)]
pub struct HostPlan {
    /// Its prefixes.
    pub prefixes: Vec<(Ipv6Prefix, Life)>,
    /// Its addresses, as prefixes of 128 bits.
    pub addresses: Vec<(Ipv6Prefix, Life)>,
    /// Where further addresses come from.
    pub pool: Option<Range>,
    /// Where further prefixes come from.
    pub spaces: Vec<Space>,
}

/// Addresses from `first` to `last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The lowest.
    pub first: Ipv6Addr,
    /// The highest.
    pub last: Ipv6Addr,
    /// For how long they are given.
    pub life: Life,
}

/// Space that prefixes of one length are cut from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// All of it.
    pub all: Ipv6Prefix,
    /// The length of each prefix in bits.
    pub len: u8,
    /// For how long they are given.
    pub life: Life,
}

impl Plan {
    /// What the configuration means on `link`, whose own addresses are in the prefixes `on_link`.
    pub fn new(conf: &ServerConf, link: &str, on_link: impl IntoIterator<Item = Ipv6Prefix>) -> Self {
        let mut plan = Self { on_link: on_link.into_iter().collect(), ..Self::default() };
        for host in &conf.hosts {
            let Some(duid) = &host.duid else { continue };
            let single = |(addr, life): &(Ipv6Addr, Lifetimes)| (Ipv6Prefix::host(*addr), self::life(*life));
            let own = HostPlan {
                prefixes: host.prefixes.iter().map(|(prefix, life)| (*prefix, self::life(*life))).collect(),
                addresses: host.addresses.iter().map(single).collect(),
                pool: host.pool.as_ref().map(range),
                spaces: host.prefix_pools.iter().map(space).collect(),
            };
            // Of two hosts with one DUID the first counts.
            plan.hosts.entry(duid.octets().into()).or_insert(own);
        }
        for (client, host) in &plan.hosts {
            let own =
                host.prefixes.iter().chain(&host.addresses).map(|(prefix, _)| (*prefix, client.clone()));
            plan.set_aside.extend(own);
        }
        for (name, interface) in &conf.interfaces {
            let there = link_plan(interface);
            if name == link { plan.here = there } else { plan.elsewhere.push(there) }
        }
        plan
    }

    /// What is set aside for a client, if there is a host statement for it.
    pub fn host(&self, client: &[u8]) -> Option<&HostPlan> {
        self.hosts.get(client)
    }

    /// What strangers get on the link that a relay names, else on ours; `None`: nothing is known of that link.
    pub fn on(&self, relay: Option<Ipv6Addr>) -> Option<&LinkPlan> {
        let is_here = relay.is_none_or(|link| self.on_link.iter().any(|own| own.contains(link)));
        self.named(relay).or_else(|| is_here.then_some(&self.here))
    }

    /// The link that a relay names, if anything is given out there.
    fn named(&self, relay: Option<Ipv6Addr>) -> Option<&LinkPlan> {
        let link = relay?;
        let same = |one: &&LinkPlan| {
            one.pool.is_some_and(|range| subnet(range.first) == subnet(link))
                || one.spaces.iter().any(|space| space.all.contains(link))
        };
        std::iter::once(&self.here).chain(&self.elsewhere).find(same)
    }

    /// What is set aside or in a pool of this link's: where it is in no lease it leads nowhere. Without what is on the link.
    pub fn spaces_here(&self) -> BTreeSet<Ipv6Prefix> {
        let hosts = self.hosts.values().flat_map(|host| host.prefixes.iter().map(|(prefix, _)| *prefix));
        let of_hosts = self.hosts.values().flat_map(|host| &host.spaces);
        let pools = self.here.spaces.iter().chain(of_hosts).map(|space| space.all);
        let on_link = |prefix: &Ipv6Prefix| self.on_link.iter().any(|own| own.covers(*prefix));
        hosts.chain(pools).filter(|prefix| !on_link(prefix)).collect()
    }

    /// Whether it lies in what is on the link.
    pub fn is_on_the_link_itself(&self, prefix: Ipv6Prefix) -> bool {
        self.on_link.iter().any(|own| own.covers(prefix))
    }

    /// Whether it is, or has an address in common with, what is set aside for anybody.
    pub fn is_set_aside(&self, prefix: Ipv6Prefix) -> bool {
        self.holder(prefix).is_some()
    }

    /// Whether it is set aside for another client than this.
    pub fn is_anothers(&self, prefix: Ipv6Prefix, client: &[u8]) -> bool {
        let own = self.host(client).into_iter().flat_map(|host| host.prefixes.iter().chain(&host.addresses));
        self.holder(prefix).is_some_and(|holder| holder != client)
            && !own.into_iter().any(|(own, _)| *own == prefix)
    }

    fn holder(&self, prefix: Ipv6Prefix) -> Option<&[u8]> {
        let mut around =
            (0..=prefix.prefix_len()).rev().filter_map(|len| Ipv6Prefix::new(prefix.addr(), len));
        let inside = || self.set_aside.range(prefix..).next().filter(|(own, _)| prefix.covers(**own));
        let holder = around.find_map(|wide| self.set_aside.get(&wide));
        holder.or_else(|| inside().map(|(_, holder)| holder)).map(|holder| &**holder)
    }

    /// Whether a client may have it: it is on the link that a relay names, else on ours, or of a kind that is given out here.
    pub fn is_given_here(&self, prefix: Ipv6Prefix, relay: Option<Ipv6Addr>) -> bool {
        if self.set_aside.contains_key(&prefix) {
            return true;
        }
        if prefix.prefix_len() < 128 {
            return self.spaces().any(|space| space.all.covers(prefix));
        }
        let addr = prefix.addr();
        if let Some(pool) = self.named(relay).and_then(|link| link.pool) {
            return subnet(pool.first) == subnet(addr);
        }
        let here = self.on(relay).and_then(|link| link.pool.as_ref());
        let pools = here.into_iter().chain(self.hosts.values().filter_map(|h| h.pool.as_ref()));
        let mut pools = pools.map(|range| subnet(range.first));
        relay.is_none() && self.on_link.iter().any(|own| own.contains(addr))
            || pools.any(|own| own == subnet(addr))
    }

    fn spaces(&self) -> impl Iterator<Item = &Space> {
        let links = std::iter::once(&self.here).chain(&self.elsewhere).flat_map(|link| &link.spaces);
        links.chain(self.hosts.values().flat_map(|host| &host.spaces))
    }

    /// For how long a client is given something that it has; `None` if it would not get it any more.
    pub fn life(&self, client: &[u8], prefix: Ipv6Prefix) -> Option<Life> {
        let host = self.host(client);
        let own = host.and_then(|host| {
            host.prefixes.iter().chain(&host.addresses).find(|(own, _)| *own == prefix).map(|(_, life)| *life)
        });
        let pooled = host.and_then(|host| in_pools(host.pool.as_ref(), &host.spaces, prefix));
        own.or(pooled).or_else(|| self.life_of_offer(prefix).filter(|_| host.is_none()))
    }

    /// For how long something is given that nobody has yet.
    pub fn life_of_offer(&self, prefix: Ipv6Prefix) -> Option<Life> {
        let set_aside = self.set_aside.get(&prefix).and_then(|client| self.hosts.get(client));
        let own = set_aside.and_then(|host| {
            host.prefixes.iter().chain(&host.addresses).find(|(own, _)| *own == prefix).map(|(_, life)| *life)
        });
        let links = std::iter::once(&self.here).chain(&self.elsewhere);
        let pooled = links.map(|link| (link.pool.as_ref(), &link.spaces));
        let pooled = pooled.chain(self.hosts.values().map(|host| (host.pool.as_ref(), &host.spaces)));
        own.or_else(|| pooled.into_iter().find_map(|(range, spaces)| in_pools(range, spaces, prefix)))
    }
}

fn in_pools(range: Option<&Range>, spaces: &[Space], prefix: Ipv6Prefix) -> Option<Life> {
    if prefix.prefix_len() == 128 {
        return range
            .filter(|range| (range.first..=range.last).contains(&prefix.addr()))
            .map(|range| range.life);
    }
    spaces
        .iter()
        .find(|space| space.len == prefix.prefix_len() && space.all.covers(prefix))
        .map(|space| space.life)
}

fn subnet(addr: Ipv6Addr) -> u64 {
    (u128::from(addr) >> 64) as u64
}

fn link_plan(interface: &Interface) -> LinkPlan {
    LinkPlan {
        pool: interface.pool.as_ref().map(range),
        spaces: interface.prefix_pools.iter().map(space).collect(),
    }
}

fn range(pool: &PoolUse) -> Range {
    Range { first: pool.first, last: pool.last, life: life(pool.lifetimes) }
}

fn space(pool: &PrefixPool) -> Space {
    Space { all: pool.space, len: pool.len, life: life(pool.lifetimes) }
}

fn life(lifetimes: Lifetimes) -> Life {
    Life { preferred: lifetimes.preferred, valid: lifetimes.valid }
}

/// What everybody on `link` is told, by a server of this name.
pub fn terms(conf: &ServerConf, link: &str, duid: &Duid) -> Terms {
    let interface = conf.interfaces.get(link);
    Terms {
        duid: duid.octets().to_vec(),
        rapid_commit: interface.is_some_and(|interface| interface.rapid_commit),
        preference: interface.and_then(|interface| interface.preference),
        options: options(&conf.options, interface),
        always: interface.map(|interface| interface.unasked.clone()).unwrap_or_default(),
        refresh: conf.options.refresh_time,
        decline: interface.and_then(|i| i.decline_time).map_or(DECLINED, |s| Duration::from_secs(s.into())),
        most: super::shelf::MAX_OF_CLIENT,
        relays: relays(conf),
        reconfigure: conf.reconfigure,
        authenticates: true,
        keys: keys(conf),
        ..Terms::default()
    }
}

/// Links by what relays call them: an address on each, which chooses its pools.
fn relays(conf: &ServerConf) -> HashMap<Box<[u8]>, Ipv6Addr> {
    let mut all = HashMap::new();
    for interface in conf.interfaces.values() {
        let pool = interface.pool.as_ref().map(|pool| pool.first);
        let space = || interface.prefix_pools.first().map(|pool| pool.space.addr());
        let Some(addr) = pool.or_else(space) else { continue };
        all.extend(interface.relay_ids.iter().map(|id| (id.clone().into_boxed_slice(), addr)));
    }
    all
}

/// Keys by clients; of two hosts with one DUID the first counts.
fn keys(conf: &ServerConf) -> HashMap<Box<[u8]>, Arc<Key>> {
    let mut all = HashMap::new();
    for host in &conf.hosts {
        let (Some(duid), Some(key)) = (&host.duid, &host.key) else { continue };
        let (realm, secret) = (key.realm.clone().into_bytes(), key.secret.clone());
        let key = Key { realm, id: key.id, secret, expires: key.expires };
        all.entry(duid.octets().into()).or_insert_with(|| Arc::new(key));
    }
    all
}

/// Options in the order of their codes; servers for NTP by the old option and by the new one (RFC 5908).
fn options(options: &Options, interface: Option<&Interface>) -> Vec<Opt> {
    let mut all: Vec<Opt> =
        options.addresses.iter().map(|(code, list)| Opt::Addresses(*code, list.clone())).collect();
    if let Some(servers) = options.addresses.get(&code::SNTP_SERVERS) {
        let servers = servers.iter().map(|addr| NtpSuboption::ServerAddress(*addr)).collect();
        all.push(Opt::Leaf(DhcpOption::NtpServer(servers)));
    }
    for (code, names) in &options.names {
        let names: Vec<Name> = names.iter().filter_map(|name| Name::from_text(name)).collect();
        if !names.is_empty() {
            all.push(Opt::Names(*code, names));
        }
    }
    let max_rts = interface.into_iter().flat_map(|interface| &interface.max_rts);
    all.extend(max_rts.map(|(code, seconds)| Opt::Seconds(*code, *seconds)));
    all.sort_by_key(Opt::code);
    all
}
