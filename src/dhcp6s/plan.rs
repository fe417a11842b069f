//! What `dhcp6s.conf` means on the links that are served: who may have what, and what everybody is told. Pure.
//!
//! Pools of interfaces that are not served are for clients behind relays: a relay's address on the clients' link says which.
//! What is the server's own, or on one of its links, is nobody's whatever the file says.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Duration;

use dhcproto::v6::{DhcpOption, NtpSuboption};
use sixway_dataplane::update::Ipv6Prefix;

use super::vacancy::{Extent, span};
use crate::broker::BindKind;
use crate::compat::dhcp6sconf::{
    self as compat, Duid, Host, Interface, Lifetimes, Options, PoolUse, PrefixPool, ServerConf, Subnet,
};
use crate::dhcpv6::audience;
use crate::dhcpv6::auth::Key;
use crate::dhcpv6::codec::{MAX_DUID, Name, Opt, code};
pub use crate::dhcpv6::session::Life;
use crate::dhcpv6::session::{Line, Terms};

/// How long a declined address is given to nobody.
const DECLINED: Duration = Duration::from_secs(86_400);

/// Who may have what.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    hosts: HashMap<Box<[u8]>, HostPlan>,
    /// Everything that is set aside for somebody, and for whom.
    set_aside: BTreeMap<Ipv6Prefix, Box<[u8]>>,
    /// The prefix lengths among that.
    lengths: BTreeSet<u8>,
    /// What strangers get, by interface: those that are served, and others for relays.
    links: BTreeMap<Box<str>, LinkPlan>,
    sites: BTreeMap<Box<str>, Site>,
    /// What is somebody's elsewhere.
    elsewhere: BTreeSet<Ipv6Prefix>,
}

/// A link that is served, as it is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Site {
    /// The interface's name.
    pub name: Box<str>,
    /// The server's own addresses on it.
    pub own: BTreeSet<Ipv6Addr>,
    /// The prefixes that these lie in.
    pub on_link: BTreeSet<Ipv6Prefix>,
}

/// What strangers get on a link.
#[derive(Clone, Debug, Default)]
pub struct LinkPlan {
    /// Addresses.
    pub pool: Option<Range>,
    /// Prefixes.
    pub spaces: Vec<Space>,
    /// What of each prefix is the link's.
    pub excluded: Option<Subnet>,
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
    /// What within its prefixes is the link's.
    pub parts: Vec<Ipv6Prefix>,
    /// What of each further prefix is.
    pub excluded: Option<Subnet>,
}

/// Addresses from `first` to `last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The lowest.
    pub first: Ipv6Addr,
    /// The highest.
    pub last: Ipv6Addr,
    /// Whether the lowest free one is given, and none by chance.
    pub lowest_first: bool,
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

impl LinkPlan {
    /// Whether an address is where its pools are.
    fn has(&self, addr: Ipv6Addr) -> bool {
        self.pool.is_some_and(|range| subnet(range.first) == subnet(addr))
            || self.spaces.iter().any(|space| space.all.contains(addr))
    }

    /// An address of its pools.
    fn address(&self) -> Option<Ipv6Addr> {
        let pool = self.pool.map(|range| range.first);
        pool.or_else(|| self.spaces.first().map(|space| space.all.addr()))
    }
}

impl Range {
    /// Where its places lie.
    pub fn extent(&self) -> Extent {
        Extent { first: self.first, last: self.last, len: 128 }
    }
}

impl Space {
    /// Where its places lie.
    pub fn extent(&self) -> Extent {
        let (_, last) = span(self.all);
        Extent { first: self.all.addr(), last: last.into(), len: self.len }
    }
}

impl HostPlan {
    /// For how long it is given this, wherever it is.
    fn life(&self, prefix: Ipv6Prefix) -> Option<Life> {
        let mut own = self.prefixes.iter().chain(&self.addresses).filter(|(own, _)| *own == prefix);
        let own = own.next().map(|(_, life)| *life);
        own.or_else(|| in_pools(self.pool.as_ref(), &self.spaces, prefix))
    }
}

impl Plan {
    /// What the configuration means on these links.
    pub fn new(conf: &ServerConf, sites: impl IntoIterator<Item = Site>) -> Self {
        let sites = sites.into_iter().map(|site| (site.name.clone(), site)).collect();
        let mut plan = Self { sites, ..Self::default() };
        for host in &conf.hosts {
            let Some(client) = identity(host) else { continue };
            let single = |(addr, life): &(Ipv6Addr, Lifetimes)| (Ipv6Prefix::host(*addr), self::life(*life));
            // Everything is nobody's own.
            let narrow = host.prefixes.iter().filter(|(prefix, _)| prefix.prefix_len() > 0);
            let own = HostPlan {
                prefixes: narrow.map(|(prefix, life)| (*prefix, self::life(*life))).collect(),
                addresses: host.addresses.iter().map(single).collect(),
                pool: host.pool.as_ref().map(range),
                spaces: host.prefix_pools.iter().map(space).collect(),
                parts: host.excluded_prefixes.clone(),
                excluded: host.excluded,
            };
            // Of two hosts with one DUID the first counts, and of two with one prefix.
            if plan.hosts.contains_key(&client) {
                continue;
            }
            for (prefix, _) in own.prefixes.iter().chain(&own.addresses) {
                plan.lengths.insert(prefix.prefix_len());
                plan.set_aside.entry(*prefix).or_insert_with(|| client.clone());
            }
            plan.hosts.insert(client, own);
        }
        for (name, interface) in &conf.interfaces {
            plan.links.insert(name.as_str().into(), link_plan(interface));
        }
        plan
    }

    /// The same, but nothing of these is given to anybody.
    pub fn without(self, elsewhere: BTreeSet<Ipv6Prefix>) -> Self {
        Self { elsewhere, ..self }
    }

    /// The links that are served, as they were when the plan was made.
    pub fn sites(&self) -> impl Iterator<Item = &Site> {
        self.sites.values()
    }

    /// Whether it has an address in common with what is the server's own, or with what is on one of its links; of single
    /// addresses only the server's own count. Nobody is given such, and nobody is given everything.
    pub fn is_ours(&self, prefix: Ipv6Prefix) -> bool {
        let meets = |own: &Ipv6Prefix| own.covers(prefix) || prefix.covers(*own);
        if self.elsewhere.iter().any(meets) {
            return true;
        }
        if prefix.prefix_len() == 128 {
            return self.sites().any(|site| site.own.contains(&prefix.addr()));
        }
        prefix.prefix_len() == 0
            || self.sites().any(|site| {
                site.on_link.iter().any(meets) || site.own.iter().any(|addr| prefix.contains(*addr))
            })
    }

    /// All pools, each once: where their places lie.
    pub fn extents(&self) -> Vec<Extent> {
        let of_links = self.links.values().map(|link| (link.pool, &link.spaces));
        let of_hosts = self.hosts.values().map(|host| (host.pool, &host.spaces));
        let mut all = Vec::new();
        let mut known = HashSet::new();
        for (pool, spaces) in of_links.chain(of_hosts) {
            let pools = pool.iter().map(Range::extent).chain(spaces.iter().map(Space::extent));
            all.extend(pools.filter(|extent| known.insert(*extent)));
        }
        all
    }

    /// The pools that a client's wish of a kind is drawn from, on a link that a relay names, else on this one.
    pub fn pools_for(&self, client: &[u8], kind: BindKind, on: (&str, Option<Ipv6Addr>)) -> Vec<Extent> {
        let of = |pool: Option<Range>, spaces: &[Space]| match kind {
            BindKind::Address => pool.iter().map(Range::extent).collect(),
            BindKind::Prefix => spaces.iter().map(Space::extent).collect(),
        };
        match self.host(client) {
            Some(host) => of(host.pool, &host.spaces),
            None => self.on(on.0, on.1).map(|link| of(link.pool, &link.spaces)).unwrap_or_default(),
        }
    }

    /// The links whose strangers are given something of a pool; none: it is a host's.
    pub fn links_with(&self, pool: Extent) -> impl Iterator<Item = &str> {
        let has = move |link: &LinkPlan| {
            link.pool.is_some_and(|own| own.extent() == pool)
                || link.spaces.iter().any(|own| own.extent() == pool)
        };
        self.links.iter().filter(move |(_, link)| has(link)).map(|(name, _)| &**name)
    }

    /// What is never given out of a pool, as first and last addresses: what is set aside for hosts, what is the server's own,
    /// and for prefixes what is on links and where addresses are given.
    pub fn fences(&self, extent: Extent) -> Vec<(u128, u128)> {
        let fixed = self.set_aside.keys().chain(&self.elsewhere);
        let mut all: Vec<(u128, u128)> = fixed.map(|prefix| span(*prefix)).collect();
        all.extend(
            self.sites().flat_map(|site| &site.own).map(|addr| (u128::from(*addr), u128::from(*addr))),
        );
        if extent.len < 128 {
            all.extend(self.sites().flat_map(|site| &site.on_link).map(|prefix| span(*prefix)));
            let pools = self.links.values().filter_map(|link| link.pool);
            let pools = pools.chain(self.hosts.values().filter_map(|host| host.pool));
            all.extend(pools.map(|range| (range.first.into(), range.last.into())));
        }
        all
    }

    /// What is set aside for a client, if there is a host statement for it.
    pub fn host(&self, client: &[u8]) -> Option<&HostPlan> {
        self.hosts.get(client)
    }

    /// What strangers get on the link that a relay names, else on this one; `None`: nothing is known of that link.
    pub fn on(&self, link: &str, relay: Option<Ipv6Addr>) -> Option<&LinkPlan> {
        const NOTHING: LinkPlan = LinkPlan { pool: None, spaces: Vec::new(), excluded: None };
        let name = self.name(link, relay)?;
        Some(self.links.get(name).unwrap_or(const { &NOTHING }))
    }

    /// Whether a client is on this link, and a relay names no other one.
    pub fn is_here(&self, link: &str, relay: Option<Ipv6Addr>) -> bool {
        self.name(link, relay) == Some(link)
    }

    /// Whether enough is known of the link that a relay names, else of this one, to say that an address is none of it.
    pub fn knows(&self, link: &str, relay: Option<Ipv6Addr>) -> bool {
        let Some(name) = self.name(link, relay) else { return false };
        self.links.get(name).is_some_and(|link| link.pool.is_some())
            || self.sites.get(name).is_some_and(|site| !site.on_link.is_empty())
    }

    /// The link that a relay names, else this one; `None`: nothing is known of it.
    pub fn name<'a>(&'a self, link: &'a str, relay: Option<Ipv6Addr>) -> Option<&'a str> {
        let Some(addr) = relay else { return Some(link) };
        let served = || self.sites().find(|site| site.on_link.iter().any(|own| own.contains(addr)));
        self.named(relay).map(|(name, _)| name).or_else(|| served().map(|site| &*site.name))
    }

    /// The link that a relay names, if anything is given out there.
    fn named(&self, relay: Option<Ipv6Addr>) -> Option<(&str, &LinkPlan)> {
        let link = relay?;
        self.links.iter().find(|(_, one)| one.has(link)).map(|(name, one)| (&**name, one))
    }

    /// The name of the link that something is on which was given there to a client that was heard on `heard`: the interface
    /// whose pools it is of, else the one whose prefix it has.
    pub fn link_of<'a>(&'a self, heard: &'a str, prefix: Ipv6Prefix) -> &'a str {
        let gives = |link: &LinkPlan| in_pools(link.pool.as_ref(), &link.spaces, prefix).is_some();
        if self.links.get(heard).is_some_and(gives) {
            return heard;
        }
        let pooled = self.links.iter().find(|(_, link)| gives(link)).map(|(name, _)| &**name);
        let single = Some(prefix.addr()).filter(|_| prefix.prefix_len() == 128);
        pooled.or_else(|| self.link_at(single?)).unwrap_or(heard)
    }

    /// The name of the link that an address is on, or of whose pools it is.
    pub fn link_at(&self, addr: Ipv6Addr) -> Option<&str> {
        self.name("", Some(addr))
    }

    /// An address on a link, or of its pools; `None`: nothing is known of any.
    pub fn address_on(&self, link: &str) -> Option<Ipv6Addr> {
        let own = self.sites.get(link).and_then(|site| site.own.first()).copied();
        let pools = || self.links.get(link)?.address();
        own.or_else(pools)
    }

    /// Whether an address is on a link, in a pool, or set aside for somebody.
    pub fn is_known(&self, addr: Ipv6Addr) -> bool {
        let range = |range: &Range| (range.first..=range.last).contains(&addr);
        let pooled = |host: &HostPlan| {
            host.pool.as_ref().is_some_and(range) || host.spaces.iter().any(|space| space.all.contains(addr))
        };
        self.link_at(addr).is_some()
            || self.is_set_aside(Ipv6Prefix::host(addr))
            || self.hosts.values().any(pooled)
    }

    /// What is set aside or in a pool of a link that is served: where it is in no lease it leads nowhere. Without what is on
    /// those links.
    pub fn spaces_here(&self) -> BTreeSet<Ipv6Prefix> {
        let hosts = self.hosts.values().flat_map(|host| host.prefixes.iter().map(|(prefix, _)| *prefix));
        let of_hosts = self.hosts.values().flat_map(|host| &host.spaces);
        let served = self.sites.keys().filter_map(|name| self.links.get(name));
        let pools = served.flat_map(|link| &link.spaces).chain(of_hosts).map(|space| space.all);
        let on_link =
            |prefix: &Ipv6Prefix| self.sites().flat_map(|site| &site.on_link).any(|own| own.covers(*prefix));
        let all = hosts.chain(pools).filter(|prefix| prefix.prefix_len() > 0 && !on_link(prefix));
        all.collect()
    }

    /// Whether just this is set aside for anybody.
    pub fn is_own(&self, prefix: Ipv6Prefix) -> bool {
        self.set_aside.contains_key(&prefix)
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
        let mut around = self
            .lengths
            .range(..=prefix.prefix_len())
            .rev()
            .filter_map(|len| Ipv6Prefix::new(prefix.addr(), *len));
        let inside = || self.set_aside.range(prefix..).next().filter(|(own, _)| prefix.covers(**own));
        let holder = around.find_map(|wide| self.set_aside.get(&wide));
        holder.or_else(|| inside().map(|(_, holder)| holder)).map(|holder| &**holder)
    }

    /// Whether a client may have it: it is on the link that a relay names, else on this one, or of a kind that is given out here.
    pub fn is_given_here(&self, link: &str, prefix: Ipv6Prefix, relay: Option<Ipv6Addr>) -> bool {
        if self.set_aside.contains_key(&prefix) {
            return true;
        }
        let here = self.on(link, relay);
        if prefix.prefix_len() < 128 {
            let of_hosts = self.hosts.values().flat_map(|host| &host.spaces);
            let mut spaces = here.into_iter().flat_map(|link| &link.spaces).chain(of_hosts);
            return spaces.any(|space| space.all.covers(prefix));
        }
        let addr = prefix.addr();
        if let Some(pool) = self.named(relay).and_then(|(_, link)| link.pool) {
            return subnet(pool.first) == subnet(addr);
        }
        let here = here.and_then(|link| link.pool.as_ref());
        let pools = here.into_iter().chain(self.hosts.values().filter_map(|host| host.pool.as_ref()));
        let mut pools = pools.map(|range| subnet(range.first));
        let site = self.name(link, relay).and_then(|name| self.sites.get(name)).into_iter();
        site.flat_map(|site| &site.on_link).any(|own| own.contains(addr))
            || pools.any(|own| own == subnet(addr))
    }

    /// For how long a client is given something on the link that a relay names, else on this one; `None` if it is not given that
    /// there. Of a link that nothing is known of nobody can say that it is for another one.
    pub fn life_on(
        &self,
        client: &[u8],
        prefix: Ipv6Prefix,
        (link, relay): (&str, Option<Ipv6Addr>),
    ) -> Option<Life> {
        match self.on(link, relay).filter(|_| self.host(client).is_none()) {
            Some(here) => in_pools(here.pool.as_ref(), &here.spaces, prefix),
            None => self.lives(client, prefix).next(),
        }
    }

    /// For how long a client is given something on one link or another; none if it would not get it any more.
    pub fn lives(&self, client: &[u8], prefix: Ipv6Prefix) -> impl Iterator<Item = Life> {
        let host = self.host(client);
        let strangers = self.links.values().filter(move |_| host.is_none());
        let pooled = strangers.filter_map(move |link| in_pools(link.pool.as_ref(), &link.spaces, prefix));
        host.and_then(|host| host.life(prefix)).into_iter().chain(pooled)
    }

    /// What within a delegated prefix is the link's, and not its client's (RFC 6603).
    pub fn excluded(&self, client: &[u8], prefix: Ipv6Prefix) -> Option<Ipv6Prefix> {
        let host = self.host(client);
        let part = host.and_then(|host| host.parts.iter().find(|part| prefix.covers(**part)));
        let of = |spaces: &[Space], excluded: Option<Subnet>| {
            in_pools(None, spaces, prefix)?;
            subnet_of(prefix, excluded?)
        };
        let pooled = || match host {
            Some(host) => of(&host.spaces, host.excluded),
            None => self.links.values().find_map(|link| of(&link.spaces, link.excluded)),
        };
        part.copied().or_else(pooled)
    }
}

/// Whether nothing in the file is also given out `elsewhere`, or somebody's there.
///
/// # Errors
/// All that is, and where.
pub fn check(conf: &ServerConf, elsewhere: &[(Ipv6Prefix, String)]) -> anyhow::Result<()> {
    let (mut wrong, elsewhere) = (Vec::new(), contested(conf, elsewhere));
    for (what, first, last) in claims(conf) {
        let meets = |other: &&(Ipv6Prefix, String)| {
            let (low, high) = span(other.0);
            first <= high && low <= last
        };
        wrong.extend(elsewhere.iter().filter(meets).map(|(prefix, name)| {
            format!("{what} has addresses in common with {prefix} ({name}); give each its own space")
        }));
    }
    if wrong.is_empty() { Ok(()) } else { Err(anyhow::anyhow!(wrong.join("\n"))) }
}

/// Of what is given out `elsewhere`, or somebody's there, that which the file gives as well.
pub fn contested(conf: &ServerConf, elsewhere: &[(Ipv6Prefix, String)]) -> Vec<(Ipv6Prefix, String)> {
    let mut own: Vec<(u128, u128)> = claims(conf).into_iter().map(|(_, first, last)| (first, last)).collect();
    own.sort_unstable();
    // To each the furthest end of all that begin before it: whatever begins before a prefix ends and ends behind its
    // beginning meets it.
    let mut furthest = 0;
    for (_, last) in &mut own {
        furthest = furthest.max(*last);
        *last = furthest;
    }
    let meets = |(prefix, _): &&(Ipv6Prefix, String)| {
        let (low, high) = span(*prefix);
        let before = own.partition_point(|(first, _)| *first <= high);
        before.checked_sub(1).and_then(|at| own.get(at)).is_some_and(|(_, last)| *last >= low)
    };
    elsewhere.iter().filter(meets).cloned().collect()
}

/// Everything that the file gives to anybody: what it is called, and its first and last address.
fn claims(conf: &ServerConf) -> Vec<(String, u128, u128)> {
    let mut all = Vec::new();
    let mut claim = |what: String, (first, last): (u128, u128)| all.push((what, first, last));
    let links =
        conf.interfaces.iter().map(|(name, one)| (format!("interface {name}"), &one.pool, &one.prefix_pools));
    let hosts = conf.hosts.iter().map(|one| (format!("host {}", one.name), &one.pool, &one.prefix_pools));
    for (name, pool, spaces) in links.chain(hosts) {
        if let Some(pool) = pool {
            let what = format!("the pool '{}' ({} to {}) of {name}", pool.name, pool.first, pool.last);
            claim(what, (pool.first.into(), pool.last.into()));
        }
        for space in spaces {
            claim(format!("the delegated-prefix-pool {} of {name}", space.space), span(space.space));
        }
    }
    for host in &conf.hosts {
        let addresses = host.addresses.iter().map(|(addr, _)| Ipv6Prefix::host(*addr));
        for prefix in host.prefixes.iter().map(|(prefix, _)| *prefix).chain(addresses) {
            claim(format!("{prefix} of host {}", host.name), span(prefix));
        }
    }
    all
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

/// One of the networks within a prefix.
fn subnet_of(prefix: Ipv6Prefix, which: Subnet) -> Option<Ipv6Prefix> {
    let shift = 128_u32.checked_sub(which.len.into())?;
    let bits = prefix.bits() | u128::from(which.number).checked_shl(shift)?;
    Ipv6Prefix::new(bits.into(), which.len).filter(|part| prefix.covers(*part))
}

fn subnet(addr: Ipv6Addr) -> u64 {
    (u128::from(addr) >> 64) as u64
}

fn link_plan(interface: &Interface) -> LinkPlan {
    LinkPlan {
        pool: interface.pool.as_ref().map(range),
        spaces: interface.prefix_pools.iter().map(space).collect(),
        excluded: interface.excluded,
    }
}

fn range(pool: &PoolUse) -> Range {
    let PoolUse { first, last, lowest_first, .. } = *pool;
    Range { first, last, lowest_first, life: life(pool.lifetimes) }
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
        lines: lines(conf),
        reconfigure: conf.reconfigure,
        requestors: conf.requestors.clone(),
        listeners: audience::MOST,
        supplied: interface.map(|interface| interface.supplied.clone()).unwrap_or_default(),
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

/// What a host's leases are kept under: its DUID, or its line in a form that is longer than any DUID.
fn identity(host: &Host) -> Option<Box<[u8]>> {
    let by_line = || {
        let (code, octets) = said(host.line.as_ref()?);
        Some([&[0; MAX_DUID + 1][..], &code.to_be_bytes(), &octets].concat().into())
    };
    host.duid.as_ref().map(|duid| duid.octets().into()).or_else(by_line)
}

/// What a relay says of a line: the option's code and octets.
fn said(line: &compat::Line) -> Line {
    match line {
        compat::Line::Remote(number, id) => {
            (code::REMOTE_ID, [&number.to_be_bytes()[..], id].concat().into())
        }
        compat::Line::Subscriber(id) => (code::SUBSCRIBER_ID, id[..].into()),
    }
}

/// Hosts by their lines.
fn lines(conf: &ServerConf) -> HashMap<Line, Box<[u8]>> {
    let lines = conf.hosts.iter().filter_map(|host| Some((said(host.line.as_ref()?), identity(host)?)));
    lines.collect()
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
