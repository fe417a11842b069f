//! The tables `[store]`, `[limits]`, `[hooks]` and `[[pool]]`: what the broker has to give, and to whom.
//!
//! Pools must not overlap each other, nor lie within a tunnel of the configuration. Tunnels, and the router's addresses,
//! may lie within a pool: their part of it is not given out.

use std::path::PathBuf;

use sixway_dataplane::update::Ipv6Prefix;

use super::address::narrow_prefix;
use super::schema;
use super::source::{Complaint, Report, Section};
use super::tunnel::called;
use super::{Config, Dtcp, Hooks, MAX_POOLS, Store};
use crate::broker::pool::MAX_PLACE_BITS;
use crate::broker::{Limits, Pool, PoolKind};

/// All pools, and where the prefix of each stands in the text.
#[derive(Debug, Default)]
pub(crate) struct Pools {
    pub(crate) list: Vec<Pool>,
    pub(crate) at: Vec<usize>,
    /// Prefixes of pools of which nothing else could be read.
    unread: Vec<(Ipv6Prefix, usize)>,
    /// Whether every pool has its prefix.
    is_short: bool,
}

impl Pools {
    /// Whether all of them could be read.
    pub(crate) fn are_known(&self) -> bool {
        !self.is_short && self.unread.is_empty()
    }
}

/// Reads `[store]`; the default follows the TUN device's name.
pub(crate) fn store(report: &mut Report<'_>, section: &Section<'_, '_>, tun: &str, wanted: bool) -> Store {
    let path = section.text(report, "path", absolute);
    Store { path: path.unwrap_or_else(|| super::usual_store(tun)), wanted }
}

fn absolute(text: &str) -> Result<PathBuf, Complaint> {
    if !text.starts_with('/') || text.ends_with('/') || text.contains('\0') {
        let why = "commands run in another directory would not find the file";
        return Err(Complaint::new(why, "write the absolute path of a file"));
    }
    Ok(PathBuf::from(text))
}

/// Reads `[limits]`.
pub(crate) fn limits(report: &mut Report<'_>, section: &Section<'_, '_>) -> Limits {
    let default = Limits::default();
    let mut number = |key, usual, why| section.integer(report, key, 1..=MOST, why).unwrap_or(usual);
    Limits {
        tunnels_per_account: number("tunnels_per_account", default.tunnels_per_account, TUNNELS),
        tunnels_per_address: number("tunnels_per_address", default.tunnels_per_address, TUNNELS),
        anonymous_tunnels: number("anonymous_tunnels", default.anonymous_tunnels, TUNNELS),
        anonymous_per_address: number("anonymous_per_address", default.anonymous_per_address, TUNNELS),
        connections: number("connections", default.connections, CONNECTIONS),
        connections_per_address: number(
            "connections_per_address",
            default.connections_per_address,
            CONNECTIONS,
        ),
        connects_per_minute: number("connects_per_minute", default.connects_per_minute, RATE),
        failed_logins_per_minute: number("failed_logins_per_minute", default.failed_logins_per_minute, RATE),
    }
}

/// Reads `[hooks]`.
pub(crate) fn hooks(report: &mut Report<'_>, section: &Section<'_, '_>) -> Hooks {
    let timeout = section.integer(report, "timeout", 1..=300, "seconds until a program is killed");
    let at_once = section.integer(report, "at_once", 1..=64, "programs that run at the same time");
    Hooks {
        up: section.text(report, "up", absolute),
        down: section.text(report, "down", absolute),
        timeout: timeout.unwrap_or(10),
        at_once: at_once.unwrap_or(8),
    }
}

/// Reads all pools; of those with mistakes only the prefix is kept, to be compared with others.
pub(crate) fn pools(report: &mut Report<'_>, root: &Section<'_, '_>) -> Pools {
    let mut all = Pools::default();
    let sections = root.tables(report, "pool", &schema::POOL);
    if sections.len() > MAX_POOLS {
        let what = format!("there are {} tables [[pool]]", sections.len());
        report.add(sections[MAX_POOLS].at("prefix"), what, format!("there can be {MAX_POOLS}"), "merge some");
    }
    for section in &sections {
        let prefix = section.required(report, "prefix", narrow_prefix);
        let pairs = section.boolean(report, "pairs").unwrap_or(false);
        let addresses = section.boolean(report, "addresses").unwrap_or(false);
        let kind_is_known = ["pairs", "addresses"].iter().all(|key| section.is_sound(report, key));
        if !pairs && !addresses && kind_is_known {
            section.demand(report, "assign");
        }
        let assign = section.integer(report, "assign", 1..=64, "networks of hosts are a /64 or larger");
        let Some(prefix) = prefix else {
            all.is_short = true;
            continue;
        };
        let kind = if addresses {
            addresses_of(report, section, prefix, pairs)
        } else if pairs {
            pairs_of(report, section, prefix)
        } else {
            networks_of(report, section, prefix, assign)
        };
        let Some(kind) = kind else {
            all.unread.push((prefix, section.at("prefix")));
            continue;
        };
        all.list.push(Pool { prefix, kind });
        all.at.push(section.at("prefix"));
    }
    all
}

fn addresses_of(
    report: &mut Report<'_>,
    section: &Section<'_, '_>,
    prefix: Ipv6Prefix,
    pairs: bool,
) -> Option<PoolKind> {
    if pairs || section.has("assign") {
        let what = "`addresses` in [[pool]] stands beside `assign` or `pairs`";
        let why = "a pool gives out one kind of thing";
        report.add(section.at("addresses"), what, why, "make a table [[pool]] for each");
        return None;
    }
    if prefix.prefix_len() > LONGEST_OF_ADDRESSES {
        let what = format!("`prefix` in [[pool]] is {prefix}, and gives out addresses");
        let why = "addresses are chosen so that nobody can foresee them, which takes room";
        let next = format!("write a /{LONGEST_OF_ADDRESSES} or larger, such as a /64");
        report.add(section.at("prefix"), what, why, next);
        return None;
    }
    Some(PoolKind::Addresses)
}

fn pairs_of(report: &mut Report<'_>, section: &Section<'_, '_>, prefix: Ipv6Prefix) -> Option<PoolKind> {
    if section.has("assign") {
        let what = "`assign` in [[pool]] stands beside `pairs`";
        let why = "a pool gives out networks or address pairs, not both";
        report.add(
            section.at("assign"),
            what,
            why,
            "make two tables [[pool]] of it, each with half of the prefix",
        );
        return None;
    }
    if prefix.prefix_len() > LONGEST_OF_PAIRS {
        let what = format!("`prefix` in [[pool]] is {prefix}, and gives out address pairs");
        let why = "the number of a pair takes 16 bits";
        report.add(
            section.at("prefix"),
            what,
            why,
            format!("write a /{LONGEST_OF_PAIRS} or larger, such as a /64"),
        );
        return None;
    }
    Some(PoolKind::Pairs)
}

fn networks_of(
    report: &mut Report<'_>,
    section: &Section<'_, '_>,
    prefix: Ipv6Prefix,
    assign: Option<u32>,
) -> Option<PoolKind> {
    let len = u8::try_from(assign?).ok()?;
    let shortest = prefix.prefix_len() + 1;
    let longest = prefix.prefix_len().saturating_add(MAX_PLACE_BITS).min(64);
    if (shortest..=longest).contains(&len) {
        return Some(PoolKind::Networks(len));
    }
    let what = format!("`assign` in [[pool]] cuts {prefix} into /{len}");
    let (why, next) = if len < shortest {
        let next = if shortest <= 64 { format!("write {shortest} to {longest}") } else { String::new() };
        ("a pool is larger than the pieces it is cut into".to_owned(), next)
    } else {
        let why = format!("a pool has at most 2^{MAX_PLACE_BITS} pieces");
        (why, format!("write {shortest} to {longest}, or several tables [[pool]]"))
    };
    let next = if next.is_empty() { "write a shorter `prefix`".to_owned() } else { next };
    report.add(section.at("assign"), what, why, next);
    None
}

/// Reports pools that cannot be together with each other, or with a tunnel.
pub(crate) fn together(report: &mut Report<'_>, config: &Config, read: &Pools) {
    // One that could not be read may be the one of [dtcp], which may stand twice.
    let twin = config.dtcp.as_ref().and_then(Dtcp::pool).map(|pool| pool.prefix);
    let unread = read.unread.iter().copied().filter(|(prefix, _)| Some(*prefix) != twin);
    let pools = config.pools.iter().map(|pool| pool.prefix).zip(read.at.iter().copied()).chain(unread);
    let mut pools: Vec<(Ipv6Prefix, usize)> = pools.collect();
    pools.sort_by_key(|(_, at)| *at);
    for (n, (prefix, at)) in pools.iter().enumerate() {
        if let Some((other, first)) = pools[..n].iter().find(|(p, _)| p.covers(*prefix) || prefix.covers(*p))
        {
            let what = format!("pool {prefix} and pool {other} overlap");
            let why = format!("the one on line {} would give out the same addresses", report.line(*first));
            report.add(*at, what, why, "cut them apart, or leave one out");
        }
        let around = |p: &Ipv6Prefix| *p != Ipv6Prefix::ALL && p.covers(*prefix);
        if let Some(tunnel) = config.tunnels.iter().find(|tunnel| tunnel.prefixes.iter().any(around)) {
            let what = format!("pool {prefix} is behind {}", called(&tunnel.name));
            let next = "give the tunnel a part of the pool instead: that part is not given out";
            report.add(*at, what, "all of its addresses belong to that tunnel already", next);
        }
    }
}

/// The largest number that makes sense as a limit.
const MOST: u32 = 1 << 22;
/// The longest prefix that addresses come out of.
const LONGEST_OF_ADDRESSES: u8 = 112;
/// The longest prefix that pairs come out of.
const LONGEST_OF_PAIRS: u8 = 112;
const TUNNELS: &str = "tunnels at the same time";
const CONNECTIONS: &str = "connections at the same time";
const RATE: &str = "as many at once after a pause";
