//! `host` statements: who each is, and what is set aside for it.

use std::collections::{BTreeSet, HashMap};

use sixway_dataplane::update::Ipv6Prefix;

use super::super::parser::{Block, HostDecl};
use super::super::values::Lifetimes;
use super::super::{Host, Line, Place};
use super::{NO_PAIRS, Whole, relay_id};

/// What is excluded from delegated prefixes, and where that was said.
#[derive(Default)]
struct Excluded {
    at: Option<Place>,
    parts: Vec<(Place, Ipv6Prefix)>,
    decided: BTreeSet<&'static str>,
}

impl Whole<'_> {
    pub(super) fn host(&mut self, block: Block<HostDecl>) -> Option<Host> {
        let Block { place, name, decls } = block;
        let mut host = Host {
            name,
            duid: None,
            line: None,
            prefixes: Vec::new(),
            addresses: Vec::new(),
            pool: None,
            prefix_pools: Vec::new(),
            excluded_prefixes: Vec::new(),
            excluded: None,
            key: None,
        };
        let mut excluded = Excluded::default();
        let mut decided = BTreeSet::new();
        for (at, decl) in decls {
            match decl {
                HostDecl::Duid(_) if host.duid.is_some() => {
                    self.refuse(&at, format!("host '{}' has a DUID already; write a second host", host.name));
                }
                HostDecl::Duid(duid) => host.duid = Some(duid),
                HostDecl::Prefix(addr, len, life) => {
                    let prefix =
                        self.prefix(&at, addr, len).and_then(|p| Some((p, self.lifetimes(&at, life)?)));
                    host.prefixes.extend(self.once(&at, prefix, &host.prefixes));
                }
                HostDecl::Address(addr, life) => {
                    let addr = self.usable(&at, addr).and_then(|a| Some((a, self.lifetimes(&at, life)?)));
                    host.addresses.extend(self.once(&at, addr, &host.addresses));
                }
                HostDecl::Pool(pool) => {
                    self.last_counts(&at, &mut decided, "address-pool");
                    host.pool = self.pool_use(&at, pool).or(host.pool);
                }
                HostDecl::PrefixPool(pool) => self.prefix_pool(&at, &pool, &mut host.prefix_pools),
                other @ (HostDecl::ExcludedPrefix(..)
                | HostDecl::ExcludedSubnet(_)
                | HostDecl::RemoteId(..)
                | HostDecl::SubscriberId(_)) => self.own_host_words(at, other, &mut host, &mut excluded),
                HostDecl::DelayedKey(name) => {
                    self.last_counts(&at, &mut decided, "delayedkey");
                    host.key = self.keys.get(&name).cloned();
                    if host.key.is_none() {
                        self.refuse(&at, format!("there is no keyinfo '{name}', or it is wrong itself"));
                    }
                }
            }
        }
        self.fits_pools(excluded.at, host.excluded, &host.prefix_pools);
        self.parts_of(excluded.parts, &mut host);
        self.is_somebody(&place, &host);
        Some(host)
    }

    /// What only our own words say.
    fn own_host_words(&mut self, at: Place, decl: HostDecl, host: &mut Host, excluded: &mut Excluded) {
        match decl {
            HostDecl::ExcludedPrefix(addr, len) => {
                excluded.parts.extend(self.prefix(&at, addr, len).map(|part| (at, part)));
            }
            HostDecl::ExcludedSubnet(subnet) => {
                self.last_counts(&at, &mut excluded.decided, "excluded-subnet");
                host.excluded = self.subnet(&at, &subnet).or(host.excluded);
                excluded.at = Some(at);
            }
            HostDecl::RemoteId(number, text) => {
                let number = u32::try_from(number).map_err(|_| format!("a number is 0 to {}", u32::MAX));
                let id = relay_id(&text).ok_or_else(|| NO_PAIRS.to_owned());
                let line = number.and_then(|number| Ok(Line::Remote(number, id?)));
                self.line(&at, line, host);
            }
            HostDecl::SubscriberId(text) => {
                let id = relay_id(&text).ok_or_else(|| NO_PAIRS.to_owned());
                self.line(&at, id.map(Line::Subscriber), host);
            }
            HostDecl::Duid(_)
            | HostDecl::Prefix(..)
            | HostDecl::Address(..)
            | HostDecl::Pool(_)
            | HostDecl::PrefixPool(_)
            | HostDecl::DelayedKey(_) => {}
        }
    }

    /// Whether anybody can be this host, and in one way.
    fn is_somebody(&mut self, place: &Place, host: &Host) {
        if host.duid.is_some() && host.line.is_some() {
            let what = format!("host '{}' is known by its DUID or by its line; write two hosts", host.name);
            self.refuse(place, what);
        }
        if host.line.is_some() && host.key.is_some() {
            self.notes.push(
                place,
                "a key is its client's, and who is on a line may be anybody; 'delayedkey' is ignored",
            );
        }
        if host.duid.is_none() && host.line.is_none() {
            self.notes.push(place, format!("host '{}' has no DUID, so nobody is this host", host.name));
        }
    }

    fn line(&mut self, at: &Place, line: Result<Line, String>, host: &mut Host) {
        let line = self.taken(at, line);
        if host.line.is_some() {
            self.refuse(at, format!("host '{}' has a line already; write a second host", host.name));
        }
        host.line = line.or(host.line.take());
    }

    /// Excluded are parts of the host's own prefixes, of each one at most.
    fn parts_of(&mut self, parts: Vec<(Place, Ipv6Prefix)>, host: &mut Host) {
        let mut around = BTreeSet::new();
        for (at, part) in parts {
            let wide = host.prefixes.iter().find(|(wide, _)| *wide != part && wide.covers(part));
            match wide {
                None => self.refuse(&at, format!("{part} is no part of a prefix of host '{}'", host.name)),
                Some((wide, _)) if !around.insert(*wide) => {
                    self.refuse(
                        &at,
                        format!("{part} is the second part of {wide} that is excluded; one can be"),
                    );
                }
                Some(_) => host.excluded_prefixes.push(part),
            }
        }
    }

    /// Of two hosts that are given the same, or one a part of the other's, the first has it; that is worth knowing.
    pub(super) fn overlaps(&mut self, hosts: &[Host], places: &[Place]) {
        let mut all: Vec<(Ipv6Prefix, usize)> = Vec::new();
        let (mut known, mut lines) = (HashMap::new(), HashMap::new());
        for (n, host) in hosts.iter().enumerate() {
            // What nobody is, and what somebody is already, takes nothing from others.
            let before = match (&host.duid, &host.line) {
                (Some(duid), _) => known.insert(duid, &host.name).map(|before| ("DUID", before)),
                (None, Some(line)) => lines.insert(line, &host.name).map(|before| ("line", before)),
                (None, None) => continue,
            };
            if let (Some((what, before)), Some(place)) = (before, places.get(n)) {
                let why = format!(
                    "host '{before}' has the same {what} and counts; host '{}' says nothing",
                    host.name
                );
                self.notes.push(place, why);
                continue;
            }
            let single = host.addresses.iter().map(|(addr, _)| Ipv6Prefix::host(*addr));
            all.extend(
                host.prefixes.iter().map(|(prefix, _)| *prefix).chain(single).map(|prefix| (prefix, n)),
            );
        }
        all.sort_unstable();
        // In this order whatever covers a prefix stands before it, and all between them is covered as well.
        let mut around: Vec<(Ipv6Prefix, usize)> = Vec::new();
        for (prefix, n) in all {
            while around.last().is_some_and(|(wide, _)| !wide.covers(prefix)) {
                around.pop();
            }
            if let Some((wide, other)) = around.iter().rev().find(|(_, other)| *other != n) {
                let (Some(one), Some(two), Some(place)) =
                    (hosts.get(*other), hosts.get(n), places.get(n.max(*other)))
                else {
                    continue;
                };
                let what = format!(
                    "{prefix} of host '{}' has addresses in common with {wide} of host '{}'; the first host has them",
                    two.name, one.name
                );
                self.notes.push(place, what);
            }
            if prefix.prefix_len() == 0
                && let (Some(host), Some(place)) = (hosts.get(n), places.get(n))
            {
                self.notes.push(place, format!("host '{}' is given everything, which nobody is", host.name));
            }
            around.push((prefix, n));
        }
    }

    /// What is not in the list yet.
    fn once<T: PartialEq + std::fmt::Display + Copy>(
        &mut self,
        at: &Place,
        new: Option<(T, Lifetimes)>,
        list: &[(T, Lifetimes)],
    ) -> Option<(T, Lifetimes)> {
        let (value, lifetimes) = new?;
        if list.iter().any(|(other, _)| *other == value) {
            self.refuse(at, format!("{value} stands in this host twice"));
            return None;
        }
        Some((value, lifetimes))
    }
}
