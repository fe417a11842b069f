//! What must hold between tunnels, and between tunnels and the rest of the file.
//!
//! Sorts and hashes: a million tunnels are compared in linear memory and near-linear time. Two tables
//! that clash in many tunnels are reported once. Knows no text, only where each tunnel came from. Runs whatever other
//! mistakes there are; what could not be read is compared with nothing.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddrV4};

use sixway_dataplane::update::{Ipv6Prefix, Outer, UdpRemote};

use super::source::{Report, Section};
use super::tunnel::{Block, NAMELESS, called};
use super::{Config, TunnelConfig};

/// Reports everything that does not fit together. `is_short`: there are more tunnels than could be read.
pub(crate) fn together(
    report: &mut Report<'_>,
    config: &Config,
    (blocks, is_short): (&[Block], bool),
    router: &Section<'_, '_>,
) {
    let addresses_are_known = router.is_sound(report, "address");
    let mut check = Check { report, tunnels: &config.tunnels, blocks };
    check.names();
    check.prefixes();
    check.own_addresses(config);
    check.proto41_pairs();
    check.udp_pairs();
    check.default_routes();
    if addresses_are_known {
        check.learners(config);
    }
    check.proto41_is_on(config);
    if !is_short && router.is_sound(report, "capacity") {
        capacity(report, config, router.at("capacity"));
    }
}

fn capacity(report: &mut Report<'_>, config: &Config, at: usize) {
    let count = count(config);
    if count > config.router.capacity {
        let what = format!("`capacity` in [router] is {}", config.router.capacity);
        let why = format!("{count} tunnels are configured");
        report.add(at, what, why, format!("write `capacity = {count}` or more, or leave it out"));
    }
}

/// How many tunnels there are; [`super::MAX_TUNNELS`] was held while they were read.
pub(crate) fn count(config: &Config) -> u32 {
    u32::try_from(config.tunnels.len()).unwrap_or(u32::MAX)
}

struct Check<'a, 't> {
    report: &'a mut Report<'t>,
    tunnels: &'a [TunnelConfig],
    blocks: &'a [Block],
}

/// Two tunnels that cannot both be, by their numbers, the earlier first; and the prefix's number in each
/// where it is about a prefix.
#[derive(Clone, Copy)]
struct Clash {
    first: usize,
    second: usize,
    nth: (usize, usize),
}

impl Clash {
    fn of(a: usize, b: usize) -> Self {
        Self { first: a.min(b), second: a.max(b), nth: (0, 0) }
    }
}

impl Check<'_, '_> {
    fn names(&mut self) {
        let mut seen: HashMap<&str, usize> = HashMap::with_capacity(self.tunnels.len());
        let mut clashes = Vec::new();
        for (n, tunnel) in self.tunnels.iter().enumerate().filter(|(_, t)| !t.name.starts_with(NAMELESS)) {
            let first = *seen.entry(&tunnel.name).or_insert(n);
            if first != n {
                clashes.push(Clash::of(first, n));
            }
        }
        for (clash, more) in self.by_table(clashes) {
            let at = self.block(clash.second).name_at;
            let first_line = self.report.line(self.block(clash.first).name_at);
            let what = format!("tunnel name '{}' is used twice{more}", self.tunnels[clash.second].name);
            let why = format!("`name` on line {first_line} makes a tunnel of that name");
            self.report.add(at, what, why, "give each tunnel a name of its own");
        }
    }

    fn prefixes(&mut self) {
        let mut all: Vec<(Ipv6Prefix, usize, usize)> = Vec::with_capacity(self.tunnels.len());
        for (n, tunnel) in self.tunnels.iter().enumerate() {
            all.extend(tunnel.prefixes.iter().enumerate().map(|(nth, &prefix)| (prefix, n, nth)));
        }
        all.sort_unstable();
        let mut clashes = Vec::new();
        for group in all.chunk_by(|a, b| a.0 == b.0) {
            let (_, first, nth) = group[0];
            clashes.extend(group[1..].iter().map(|&(_, second, n)| Clash { first, second, nth: (nth, n) }));
        }
        for (clash, more) in self.by_table(clashes) {
            let at = self.block(clash.second).prefix_at(clash.nth.1);
            let first_line = self.report.line(self.block(clash.first).prefix_at(clash.nth.0));
            let prefix = self.tunnels[clash.second].prefixes[clash.nth.1];
            let second = self.called(clash.second);
            let whose = match self.name(clash.first) {
                Some(name) => format!("tunnel '{name}'s"),
                None => format!("{}'s", self.called(clash.first)),
            };
            let what = format!("{second} has prefix {prefix}, which is {whose}{more}");
            let that = self.called_again(clash.first);
            let why = format!("{that} has it on line {first_line}, and a prefix leads into one tunnel");
            self.report.add(
                at,
                what,
                why,
                "give it to one of them; a longer prefix inside it may be another's",
            );
        }
    }

    fn own_addresses(&mut self, config: &Config) {
        let own: HashSet<_> = config.router.address.iter().map(|own| Ipv6Prefix::host(own.addr)).collect();
        for (n, tunnel) in self.tunnels.iter().enumerate() {
            for (nth, prefix) in tunnel.prefixes.iter().enumerate().filter(|(_, p)| own.contains(p)) {
                let called = self.called(n);
                self.report.add(
                    self.block(n).prefix_at(nth),
                    format!("prefix {prefix} of {called} is the router's own"),
                    "it is in `address` in [router]",
                    "take it from one of them",
                );
            }
        }
    }

    fn proto41_pairs(&mut self) {
        let ends = self.tunnels.iter().enumerate().filter_map(|(n, tunnel)| match tunnel.outer {
            Outer::Proto41 { local, remote } => Some((remote, local, n)),
            Outer::Udp { .. } => None,
        });
        for (clash, more) in self.by_table(clashing_ends(ends.collect())) {
            let next = "give one of them another `local` or `remote`, or let one run over UDP";
            self.same_ends(clash, &more, "protocol 41 has no ports to tell two tunnels apart", next);
        }
    }

    fn udp_pairs(&mut self) {
        let ends = self.tunnels.iter().enumerate().filter_map(|(n, tunnel)| match tunnel.outer {
            Outer::Udp { local, remote: UdpRemote::Fixed(at) } => Some(((at, local.port), local.addr, n)),
            Outer::Udp { .. } | Outer::Proto41 { .. } => None,
        });
        let ends: Vec<((SocketAddrV4, u16), Option<Ipv4Addr>, usize)> = ends.collect();
        for (clash, more) in self.by_table(clashing_ends(ends)) {
            let next = "give one of them another port in `local` or `remote`";
            self.same_ends(clash, &more, "a packet could be from either", next);
        }
    }

    fn same_ends(&mut self, clash: Clash, more: &str, reason: &str, next: &str) {
        let at = self.block(clash.second).remote_at;
        let first_line = self.report.line(self.block(clash.first).remote_at);
        let both = match [clash.first, clash.second].map(|tunnel| self.name(tunnel)) {
            [Some(first), Some(second)] => format!("tunnels '{first}' and '{second}'"),
            [..] => format!("{} and {}", self.called(clash.first), self.called(clash.second)),
        };
        let what = format!("`remote`: {both} run between the same outer endpoints{more}");
        let why = format!("{} has them on line {first_line}, and {reason}", self.called_again(clash.first));
        self.report.add(at, what, why, next);
    }

    fn default_routes(&mut self) {
        let mut wanting = self.tunnels.iter().enumerate().filter(|(_, tunnel)| tunnel.default_route);
        let Some((first, _)) = wanting.next() else { return };
        for (second, _) in wanting {
            let first_line = self.report.line(self.block(first).default_route_at);
            let what = format!("`default_route` of {} is the second one", self.called(second));
            let why = format!("{} has the default route on line {first_line}", self.called(first));
            let at = self.block(second).default_route_at;
            self.report.add(at, what, why, "write `default_route = false` in one of them");
        }
    }

    /// A learned endpoint is proven by an echo request, which needs a source address.
    fn learners(&mut self, config: &Config) {
        if !config.router.address.is_empty() {
            return;
        }
        for block in self.blocks.iter().filter(|block| block.outer_is_known) {
            let written = match self.tunnels[block.tunnels.start].outer {
                Outer::Udp { remote: UdpRemote::Learned(_), .. } => "learn".to_owned(),
                Outer::Udp { remote: UdpRemote::AnyPort { addr, .. }, .. } => format!("{addr}:*"),
                Outer::Udp { remote: UdpRemote::Fixed(_), .. } | Outer::Proto41 { .. } => continue,
            };
            self.report.add(
                block.remote_at,
                format!("`remote` in {} is '{written}', and the router has no address", block.title),
                "an endpoint is learned only after an echo request from the router's address was answered",
                "write for example `address = [\"2001:db8:100::1/64\"]` in [router]",
            );
        }
    }

    fn proto41_is_on(&mut self, config: &Config) {
        if config.proto41.enabled != Some(false) {
            return;
        }
        for block in self.blocks {
            if matches!(self.tunnels[block.tunnels.start].outer, Outer::Proto41 { .. }) {
                self.report.add(
                    block.encap_at,
                    format!("`encap` in {} is 'proto41'", block.title),
                    "`enabled = false` in [proto41] turns that off",
                    "write `encap = \"udp\"`, or `enabled = true` in [proto41]",
                );
            }
        }
    }

    fn block(&self, tunnel: usize) -> &Block {
        &self.blocks[self.blocks.partition_point(|block| block.tunnels.end <= tunnel)]
    }

    /// A tunnel's name, if it could be read.
    fn name(&self, tunnel: usize) -> Option<&str> {
        Some(&*self.tunnels[tunnel].name).filter(|name| !name.starts_with(NAMELESS))
    }

    /// What a tunnel is called: by its name, or by where it stands.
    fn called(&self, tunnel: usize) -> String {
        let (block, name) = (self.block(tunnel), &*self.tunnels[tunnel].name);
        let line = self.report.line(block.name_at);
        match name.strip_prefix(NAMELESS) {
            None => called(name),
            Some("") => format!("the tunnel on line {line}"),
            Some(n) => format!("tunnel {n} of the range on line {line}"),
        }
    }

    /// The same where it has been spoken of just now.
    fn called_again(&self, tunnel: usize) -> String {
        self.name(tunnel).map_or_else(|| self.called(tunnel), |name| format!("'{name}'"))
    }

    /// The first clash between each two tables, with words for how many more there are.
    fn by_table(&self, mut clashes: Vec<Clash>) -> Vec<(Clash, String)> {
        clashes.sort_unstable_by_key(|clash| (clash.second, clash.first));
        let mut tables: BTreeMap<(usize, usize), (Clash, usize)> = BTreeMap::new();
        for clash in clashes {
            let key = (self.block(clash.second).name_at, self.block(clash.first).name_at);
            match tables.entry(key) {
                Entry::Vacant(entry) => drop(entry.insert((clash, 0))),
                Entry::Occupied(mut entry) => entry.get_mut().1 += 1,
            }
        }
        let words = |more| if more == 0 { String::new() } else { format!(" (and {more} more like it)") };
        tables.into_values().map(|(clash, more)| (clash, words(more))).collect()
    }
}

/// Tunnels that run to the same remote end and cannot be told apart on ours: any local address is also
/// each other one.
fn clashing_ends<R: Ord + Copy>(mut ends: Vec<(R, Option<Ipv4Addr>, usize)>) -> Vec<Clash> {
    ends.sort_unstable();
    let mut clashes = Vec::new();
    for group in ends.chunk_by(|a, b| a.0 == b.0) {
        // `None` sorts first: what it clashes with is the rest of the group.
        let mut holder = group[0];
        for &end in &group[1..] {
            if holder.1.is_none() || holder.1 == end.1 {
                clashes.push(Clash::of(holder.2, end.2));
            } else {
                holder = end;
            }
        }
    }
    clashes
}
