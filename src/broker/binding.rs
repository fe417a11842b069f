//! Bindings: addresses and prefixes that clients inside a tunnel have asked for, beside what the tunnel itself has.
//!
//! A binding belongs to a tunnel, a client in it and the client's own number for it. It ends by itself, with its tunnel, or
//! when the configuration no longer gives it. No two have an address in common. Pure like the rest of the broker; which
//! protocol asks it does not know.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv6Addr;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use sixway_dataplane::update::Ipv6Prefix;

use super::{Broker, End, Outcome, Pool, PoolKind, Record, Refusal, Route, Time, UserName};

/// How many addresses are tried in a pool before it counts as used up.
const TRIES: u64 = 64;
/// How many addresses that were declined in one tunnel rest at a time.
const MAX_RESTING_OF_TUNNEL: usize = 4;
/// How many rest in all.
const MAX_RESTING: usize = 4096;

/// What a client asks for with one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BindKind {
    /// An address.
    Address,
    /// A prefix.
    Prefix,
}

impl BindKind {
    /// Its name in the store and in logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Prefix => "prefix",
        }
    }
}

/// Who has a binding.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BindKey {
    /// The tunnel's name.
    pub tunnel: Arc<str>,
    /// What the client calls itself; empty: nobody may have it for a while.
    pub client: Arc<[u8]>,
    /// What for.
    pub kind: BindKind,
    /// The client's number for it.
    pub number: u32,
}

impl BindKey {
    /// The client's DUID as people write it: pairs of hexadecimal digits with colons between them.
    pub fn duid(&self) -> String {
        let pairs: Vec<String> = self.client.iter().map(|octet| format!("{octet:02x}")).collect();
        pairs.join(":")
    }

    /// What is had by this key in the words of a log: an address, or a prefix.
    pub fn shown(&self, prefix: Ipv6Prefix) -> (Option<String>, Option<String>) {
        match self.kind {
            BindKind::Address => (Some(prefix.addr().to_string()), None),
            BindKind::Prefix => (None, Some(prefix.to_string())),
        }
    }
}

/// An address or a prefix in somebody's hands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Whose.
    pub key: BindKey,
    /// What; an address is a prefix of 128 bits.
    pub prefix: Ipv6Prefix,
    /// For whom a pool keeps it in mind.
    pub owner: UserName,
    /// Whether it was set aside for the tunnel or the client, and comes out of no pool.
    pub fixed: bool,
    /// When it ends unless it is renewed.
    pub expires: Time,
    /// Where its client is to be found, if it lets itself be told that something has changed.
    pub reach: Option<Ipv6Addr>,
}

/// What a client may be given, in the order of preference: its tunnel's, its account's, what is set aside for it, a pool's.
#[derive(Clone, Debug)]
pub struct BindWish {
    /// Whose it will be.
    pub key: BindKey,
    /// The account behind the tunnel, if there is one.
    pub user: Option<UserName>,
    /// What its tunnel has itself.
    pub fixed: Vec<Ipv6Prefix>,
    /// What of that is likely to be the tunnel's link itself: not given while there is anything else, unless it is named.
    pub on_link: Vec<Ipv6Prefix>,
    /// What the configuration sets aside for the client.
    pub reserved: Vec<Ipv6Prefix>,
    /// Whether nothing but that (and the account's) will do.
    pub only_fixed: bool,
    /// What the client would like, exactly.
    pub hints: Vec<Ipv6Prefix>,
    /// The prefix length it would like, in bits (RFC 8168).
    pub length: Option<u8>,
    /// An address of the link that the client is on, where a relay has said so.
    pub link: Option<Ipv6Addr>,
    /// Makes addresses that cannot be foreseen.
    pub salt: u64,
    /// The most bindings that its tunnel may have.
    pub most: usize,
    /// Where the client is to be found, if it lets itself be told that something has changed.
    pub reach: Option<Ipv6Addr>,
}

/// All bindings.
#[derive(Debug, Default)]
pub(super) struct Bindings {
    all: BTreeMap<Ipv6Prefix, Binding>,
    by_key: HashMap<BindKey, BTreeSet<Ipv6Prefix>>,
    by_tunnel: HashMap<Arc<str>, BTreeSet<Ipv6Prefix>>,
    deadlines: BTreeSet<(Time, Ipv6Prefix)>,
    resting: Resting,
}

/// What clients have declined, which is nobody's for a while: it outlives the tunnel that it was declined in, and is none of
/// its bindings.
#[derive(Debug, Default)]
struct Resting {
    all: BTreeSet<(Time, Ipv6Prefix)>,
    by_tunnel: HashMap<Arc<str>, BTreeSet<(Time, Ipv6Prefix)>>,
}

impl Resting {
    fn put(&mut self, binding: &Binding) {
        let entry = (binding.expires, binding.prefix);
        self.all.insert(entry);
        self.by_tunnel.entry(binding.key.tunnel.clone()).or_default().insert(entry);
    }

    fn take(&mut self, binding: &Binding) {
        let entry = (binding.expires, binding.prefix);
        self.all.remove(&entry);
        if let Some(own) = self.by_tunnel.get_mut(&binding.key.tunnel) {
            own.remove(&entry);
            if own.is_empty() {
                self.by_tunnel.remove(&binding.key.tunnel);
            }
        }
    }

    /// What comes back first, where more rests than may: of this tunnel's, else of all.
    fn too_many(&self, tunnel: &str) -> Option<Ipv6Prefix> {
        let own = self.by_tunnel.get(tunnel).filter(|own| own.len() > MAX_RESTING_OF_TUNNEL);
        let all = Some(&self.all).filter(|all| all.len() > MAX_RESTING);
        own.or(all)?.first().map(|(_, prefix)| *prefix)
    }
}

impl Bindings {
    fn put(&mut self, binding: Binding) {
        self.take(binding.prefix);
        let Binding { key, prefix, expires, .. } = &binding;
        self.deadlines.insert((*expires, *prefix));
        if key.client.is_empty() {
            self.resting.put(&binding);
        } else {
            self.by_key.entry(key.clone()).or_default().insert(*prefix);
            self.by_tunnel.entry(key.tunnel.clone()).or_default().insert(*prefix);
        }
        self.all.insert(*prefix, binding);
    }

    fn take(&mut self, prefix: Ipv6Prefix) -> Option<Binding> {
        let old = self.all.remove(&prefix)?;
        self.deadlines.remove(&(old.expires, prefix));
        if old.key.client.is_empty() {
            self.resting.take(&old);
            return Some(old);
        }
        if let Some(own) = self.by_key.get_mut(&old.key) {
            own.remove(&prefix);
            if own.is_empty() {
                self.by_key.remove(&old.key);
            }
        }
        if let Some(own) = self.by_tunnel.get_mut(&old.key.tunnel) {
            own.remove(&prefix);
            if own.is_empty() {
                self.by_tunnel.remove(&old.key.tunnel);
            }
        }
        Some(old)
    }

    /// A binding that has an address in common with `prefix`.
    fn meeting(&self, prefix: Ipv6Prefix) -> Option<&Binding> {
        let around = around(prefix).find_map(|p| self.all.get(&p));
        let inside = || self.all.range(prefix..).next().map(|(_, b)| b).filter(|b| prefix.covers(b.prefix));
        around.or_else(inside)
    }

    /// All bindings that have an address in common with `prefix`.
    pub(super) fn all_meeting(&self, prefix: Ipv6Prefix) -> impl Iterator<Item = &Binding> {
        let wider = around(prefix).skip(1).filter_map(|p| self.all.get(&p));
        let inside = self.all.range(prefix..).map(|(_, b)| b).take_while(move |b| prefix.covers(b.prefix));
        wider.chain(inside)
    }

    /// Whether a place of a pool is taken by exactly this.
    pub(super) fn is_pooled(&self, prefix: Ipv6Prefix) -> bool {
        self.all.get(&prefix).is_some_and(|binding| !binding.fixed)
    }
}

/// All prefixes that cover `prefix`, itself included.
fn around(prefix: Ipv6Prefix) -> impl Iterator<Item = Ipv6Prefix> {
    (0..=prefix.prefix_len()).rev().filter_map(move |len| Ipv6Prefix::new(prefix.addr(), len))
}

impl Broker {
    /// What a client has.
    pub fn bound(&self, key: &BindKey) -> Vec<&Binding> {
        let own = self.bindings.by_key.get(key).into_iter().flatten();
        own.filter_map(|prefix| self.bindings.all.get(prefix)).collect()
    }

    /// All bindings in order of their prefixes.
    pub fn bindings(&self) -> impl Iterator<Item = &Binding> {
        self.bindings.all.values()
    }

    /// All behind this one, in the same order.
    pub fn bindings_after(&self, last: Option<Ipv6Prefix>) -> impl Iterator<Item = &Binding> {
        let first = last.map_or(Bound::Unbounded, Bound::Excluded);
        self.bindings.all.range((first, Bound::Unbounded)).map(|(_, binding)| binding)
    }

    /// The binding that an address lies in; what rests is nobody's.
    pub fn binding_at(&self, addr: Ipv6Addr) -> Option<&Binding> {
        self.bindings.meeting(Ipv6Prefix::host(addr)).filter(|binding| !binding.key.client.is_empty())
    }

    /// The binding of just this prefix; what rests is nobody's.
    pub fn binding_of(&self, prefix: Ipv6Prefix) -> Option<&Binding> {
        self.bindings.all.get(&prefix).filter(|binding| !binding.key.client.is_empty())
    }

    /// All that a client has, in whichever tunnels. Looks at all bindings.
    pub fn bindings_of(&self, client: &[u8]) -> impl Iterator<Item = &Binding> {
        self.bindings().filter(move |binding| !client.is_empty() && *binding.key.client == *client)
    }

    /// How many there are.
    pub fn bindings_len(&self) -> usize {
        self.bindings.all.len()
    }

    /// When the next one ends by itself.
    pub(super) fn next_unbinding(&self) -> Option<Time> {
        self.bindings.deadlines.first().map(|(at, _)| *at)
    }

    /// What [`Self::bind`] would give for each wish if all were bound one after the other. Nothing is kept; pools keep in mind
    /// for whom their places were looked at, so that the same is given to those who then ask for it.
    pub fn offer(&mut self, now: Time, wishes: &[BindWish]) -> Vec<Result<Ipv6Prefix, Refusal>> {
        let mut tried = Vec::new();
        let mut offer = |wish: &BindWish| {
            if let Some(binding) = self.bound(&wish.key).first() {
                return Ok(binding.prefix);
            }
            let (prefixes, _) = self.bind(now, wish, Duration::ZERO)?;
            tried.extend(&prefixes);
            prefixes.first().copied().ok_or(Refusal::NothingToGive("nothing was bound"))
        };
        let offered = wishes.iter().map(&mut offer).collect();
        for prefix in tried {
            let _nothing_was_kept = self.unbind(now, prefix, End::Released);
        }
        offered
    }

    /// Gives a client what it wishes for, or lets what it has last longer: from `now` for `lasts`.
    ///
    /// # Errors
    /// Why not; nothing has changed then.
    pub fn bind(
        &mut self,
        now: Time,
        wish: &BindWish,
        lasts: Duration,
    ) -> Result<(Vec<Ipv6Prefix>, Outcome), Refusal> {
        let expires = now.after(lasts);
        let own: Vec<Binding> = self.bound(&wish.key).into_iter().cloned().collect();
        let mut outcome = Outcome::default();
        if !own.is_empty() {
            let prefixes = own.iter().map(|binding| binding.prefix).collect();
            for binding in own {
                outcome.records.push(Record::BoundUntil(binding.prefix, expires, wish.reach));
                self.bindings.put(Binding { expires, reach: wish.reach, ..binding });
            }
            return Ok((prefixes, outcome));
        }
        let (prefix, fixed) = self.choose_binding(wish)?;
        let owner = wish.owner();
        if let Some((pool, n)) = self.place_of(prefix).filter(|_| !fixed) {
            outcome.records.extend(self.occupy(pool, n, &owner, now));
        }
        let reach = wish.reach;
        let binding = Binding { key: wish.key.clone(), prefix, owner, fixed, expires, reach };
        outcome.records.push(Record::Bound(binding.clone()));
        outcome.routes.push(Route::Bind(binding.clone()));
        self.bindings.put(binding);
        Ok((vec![prefix], outcome))
    }

    /// Ends a binding; nothing happens when there is none.
    pub fn unbind(&mut self, now: Time, prefix: Ipv6Prefix, why: End) -> Outcome {
        let Some(binding) = self.bindings.take(prefix) else { return Outcome::default() };
        let mut outcome = Outcome { records: vec![Record::Unbound(prefix)], routes: Vec::new() };
        if let Some((pool, n)) = self.place_of(prefix).filter(|_| !binding.fixed)
            && let Some(user) = self.pools[pool].leave(n, now)
        {
            outcome.records.push(Record::Assigned { prefix, user, since: now });
        }
        if !binding.key.client.is_empty() {
            outcome.routes.push(Route::Unbind(binding, why));
        }
        outcome
    }

    /// The client says that somebody else uses the address: nobody is given it for `lasts`, also when the tunnel goes. What is
    /// set aside comes back after that time too, and the oldest before, where too many rest.
    pub fn quarantine(&mut self, now: Time, key: &BindKey, prefix: Ipv6Prefix, lasts: Duration) -> Outcome {
        let Some(binding) = self.bindings.all.get(&prefix).filter(|binding| binding.key == *key).cloned()
        else {
            return Outcome::default();
        };
        let mut outcome = self.unbind(now, prefix, End::Released);
        let key = BindKey { client: Arc::default(), ..binding.key };
        let kept = Binding { key, expires: now.after(lasts), fixed: true, reach: None, ..binding };
        let tunnel = kept.key.tunnel.clone();
        outcome.records.push(Record::Bound(kept.clone()));
        self.bindings.put(kept);
        while let Some(oldest) = self.bindings.resting.too_many(&tunnel) {
            outcome.append(self.unbind(now, oldest, End::Expired));
        }
        outcome
    }

    /// Ends all bindings in a tunnel that goes.
    pub(super) fn unbind_tunnel(&mut self, now: Time, tunnel: &str, why: End) -> Outcome {
        let own: Vec<Ipv6Prefix> =
            self.bindings.by_tunnel.get(tunnel).into_iter().flatten().copied().collect();
        let mut outcome = Outcome::default();
        own.into_iter().for_each(|prefix| outcome.append(self.unbind(now, prefix, why)));
        outcome
    }

    /// All bindings end so many milliseconds later, or earlier.
    pub(super) fn shift_bindings(&mut self, by: i64) -> Outcome {
        let mut outcome = Outcome::default();
        let all: Vec<Binding> = self.bindings().cloned().collect();
        for binding in all {
            let expires = binding.expires.shifted(by);
            outcome.records.push(Record::BoundUntil(binding.prefix, expires, binding.reach));
            self.bindings.put(Binding { expires, ..binding });
        }
        outcome
    }

    /// Ends what is over.
    pub(super) fn expire_bindings(&mut self, now: Time) -> Outcome {
        let mut outcome = Outcome::default();
        while let Some((_, prefix)) = self.bindings.deadlines.first().copied().filter(|(at, _)| *at <= now) {
            outcome.append(self.unbind(now, prefix, End::Expired));
        }
        outcome
    }

    /// Takes over what an earlier process left; whether it still may be is asked later.
    pub(super) fn recall_bindings(&mut self, bindings: Vec<Binding>) {
        bindings.into_iter().for_each(|binding| self.bindings.put(binding));
    }

    /// The routes of all bindings.
    pub(super) fn bound_routes(&self) -> Vec<Route> {
        let held = self.bindings().filter(|binding| !binding.key.client.is_empty());
        held.cloned().map(Route::Bind).collect()
    }

    /// Ends bindings of what is not to be given any more. What the configuration sets aside is not known here.
    pub(super) fn withdraw_bindings(&mut self, now: Time) -> Outcome {
        let mut gone = Vec::new();
        for binding in self.bindings().filter(|binding| !binding.fixed) {
            let place = self.place_of(binding.prefix);
            let in_pool = place.is_some_and(|(pool, n)| self.pools[pool].is_within(n));
            let is_address = self.address_pools(None).any(|pool| pool.covers(binding.prefix));
            if !in_pool && (!is_address || self.is_fenced(binding.prefix)) {
                gone.push(binding.prefix);
            }
        }
        let mut outcome = Outcome::default();
        gone.into_iter().for_each(|prefix| outcome.append(self.unbind(now, prefix, End::Withdrawn)));
        outcome
    }

    /// Whether a client may have this address or prefix: it is in a pool, for an address in one of the `link` if there is any.
    pub fn is_given_out(&self, prefix: Ipv6Prefix, link: Option<Ipv6Addr>) -> bool {
        let link = link
            .filter(|link| prefix.prefix_len() == 128 && self.address_pools(Some(*link)).next().is_some());
        let here = |pool: &&Pool| link.is_none_or(|link| pool.prefix.contains(link));
        self.terms.pools.iter().filter(here).any(|pool| pool.prefix.covers(prefix))
    }

    fn choose_binding(&mut self, wish: &BindWish) -> Result<(Ipv6Prefix, bool), Refusal> {
        let here = self.bindings.by_tunnel.get(&wish.key.tunnel).map_or(0, BTreeSet::len);
        if here >= wish.most {
            return Err(Refusal::NothingToGive("the tunnel has as many bindings as it may have"));
        }
        let may = |prefix: &Ipv6Prefix| wish.hints.contains(prefix) || !wish.on_link.contains(prefix);
        if let Some(prefix) = self.choose_fixed(wish, may) {
            return Ok((prefix, true));
        }
        let chosen = self.choose_pooled(wish);
        chosen.map(|prefix| (prefix, false)).or_else(|why| {
            // A pool may serve it another time, when it is asked for as something new.
            let is_of_networks = |pool: &Pool| matches!(pool.kind, PoolKind::Networks(_));
            let waits = wish.only_fixed && self.terms.pools.iter().any(is_of_networks);
            let link = if waits { None } else { self.choose_fixed(wish, |_| true) };
            link.map(|prefix| (prefix, true)).ok_or(why)
        })
    }

    fn choose_pooled(&mut self, wish: &BindWish) -> Result<Ipv6Prefix, Refusal> {
        if wish.only_fixed {
            return Err(Refusal::NothingToGive("nothing is set aside for it"));
        }
        match wish.key.kind {
            BindKind::Address => self.choose_address(wish),
            BindKind::Prefix => self.choose_delegation(wish),
        }
    }

    /// What is set aside for the tunnel, its account or the client, is nobody else's now, and `may` be given.
    fn choose_fixed(&self, wish: &BindWish, may: impl Fn(&Ipv6Prefix) -> bool) -> Option<Ipv6Prefix> {
        let account = wish.user.as_ref().and_then(|user| self.accounts.find(user));
        let own = account.map(|account| account.prefixes).unwrap_or_default();
        let of_kind =
            |prefix: &Ipv6Prefix| (prefix.prefix_len() == 128) == (wish.key.kind == BindKind::Address);
        let all = wish.fixed.iter().copied().chain(own).chain(wish.reserved.iter().copied()).filter(of_kind);
        let free = |prefix: &Ipv6Prefix| may(prefix) && self.is_free(*prefix, &wish.key.tunnel);
        let free: Vec<Ipv6Prefix> = all.filter(free).collect();
        let hinted = free.iter().find(|prefix| wish.hints.contains(prefix));
        let fitting = || free.iter().min_by_key(|prefix| wish.distance(prefix.prefix_len()));
        hinted.or_else(fitting).copied()
    }

    /// Whether a prefix that is set aside may be given inside this tunnel.
    fn is_free(&self, prefix: Ipv6Prefix, tunnel: &str) -> bool {
        let holder = around(prefix).find_map(|p| self.held.get(&p)).and_then(|id| self.leases.get(id));
        let theirs = holder.is_none_or(|lease| *lease.grant.name == *tunnel);
        theirs && self.bindings.meeting(prefix).is_none()
    }

    fn choose_delegation(&mut self, wish: &BindWish) -> Result<Ipv6Prefix, Refusal> {
        let lens = self.pools.iter().enumerate().filter_map(|(at, places)| match places.pool().kind {
            PoolKind::Networks(len) => Some((at, len)),
            PoolKind::Pairs | PoolKind::Addresses => None,
        });
        let lens: Vec<(usize, u8)> = lens.collect();
        let Some(first) = lens.first().map(|(at, _)| self.pools[*at].pool().prefix) else {
            return Err(Refusal::NothingToGive("there is no [[pool]] of networks"));
        };
        // The length that is closest to what is wished for, then the others; without a wish as the file has them.
        let mut order: Vec<u8> = Vec::new();
        for (_, len) in &lens {
            if !order.contains(len) {
                order.push(*len);
            }
        }
        order.sort_by_key(|len| wish.distance(*len));
        let owner = wish.owner();
        for wanted in order {
            let pools: Vec<usize> =
                lens.iter().filter(|(_, len)| *len == wanted).map(|(at, _)| *at).collect();
            if let Some(found) = self.choose_network_of(&pools, wish, &owner) {
                return Ok(found);
            }
        }
        Err(Refusal::Exhausted(first))
    }

    /// Out of pools of one length: what is hinted at, what the owner had before, a new one, the one unused for longest.
    fn choose_network_of(
        &mut self,
        pools: &[usize],
        wish: &BindWish,
        owner: &UserName,
    ) -> Option<Ipv6Prefix> {
        for prefix in &wish.hints {
            let Some((pool, n)) = self.place_of(*prefix) else { continue };
            let places = &self.pools[pool];
            let theirs = places.user(n).is_none_or(|user| user == owner);
            let is_free = places.is_open(n) && self.bindings.meeting(*prefix).is_none();
            if pools.contains(&pool) && theirs && is_free {
                return Some(*prefix);
            }
        }
        for at in pools {
            if let Some(n) = self.pools[*at].of(owner).find(|n| self.pools[*at].is_open(*n)) {
                return Some(self.pools[*at].pool().place(n));
            }
        }
        for at in pools {
            let places = &mut self.pools[*at];
            if let Some(n) = places.fresh() {
                return Some(places.pool().place(n));
            }
        }
        let idle = pools.iter().find_map(|at| Some((*at, self.pools[*at].longest_idle()?)));
        idle.map(|(at, n)| self.pools[at].pool().place(n))
    }

    /// The pools of addresses; on one link only those that its address lies in.
    fn address_pools(&self, link: Option<Ipv6Addr>) -> impl Iterator<Item = Ipv6Prefix> {
        let pools = self.terms.pools.iter().filter(|pool| pool.kind == PoolKind::Addresses);
        pools.map(|pool| pool.prefix).filter(move |pool| link.is_none_or(|link| pool.contains(link)))
    }

    fn is_fenced(&self, prefix: Ipv6Prefix) -> bool {
        self.fences.iter().any(|fence| fence.covers(prefix))
    }

    fn choose_address(&self, wish: &BindWish) -> Result<Ipv6Prefix, Refusal> {
        let pools: Vec<Ipv6Prefix> = self.address_pools(wish.link).collect();
        let Some(first) = pools.first() else {
            return Err(Refusal::NothingToGive("there is no [[pool]] of addresses for this link"));
        };
        let may = |prefix: &Ipv6Prefix| {
            !is_reserved(prefix.addr()) && !self.is_fenced(*prefix) && self.is_free(*prefix, "")
        };
        let hinted = wish.hints.iter().filter(|hint| pools.iter().any(|pool| pool.covers(**hint)));
        if let Some(hint) = hinted.copied().find(may) {
            return Ok(hint);
        }
        for pool in &pools {
            let made = (0..TRIES).map(|n| address_in(*pool, wish.salt, n));
            if let Some(found) = made.map(Ipv6Prefix::host).find(may) {
                return Ok(found);
            }
        }
        Err(Refusal::Exhausted(*first))
    }

    /// The pools of addresses, each with how many are in use.
    pub fn address_pools_in_use(&self) -> Vec<(Pool, usize)> {
        let pools = self.terms.pools.iter().filter(|pool| pool.kind == PoolKind::Addresses);
        let count = |pool: &Pool| self.bindings().filter(|b| pool.prefix.covers(b.prefix)).count();
        pools.map(|pool| (*pool, count(pool))).collect()
    }
}

impl BindWish {
    /// For whom pools keep it in mind: the account, or the tunnel itself.
    fn owner(&self) -> UserName {
        let tunnel = || UserName::parse(&format!("{}@tunnel", self.key.tunnel)).ok();
        // A tunnel's name is made of characters that a user's may have, and is shorter.
        let nobody = || UserName::parse("@tunnel").ok();
        let found = self.user.clone().or_else(tunnel).or_else(nobody);
        found.unwrap_or_else(UserName::nobody)
    }

    /// How far a prefix length is from the wanted one; a larger network before a smaller one.
    pub fn distance(&self, len: u8) -> (u8, u8) {
        self.length.map_or((0, 0), |wanted| (len.abs_diff(wanted), len))
    }
}

/// The `n`th address in a pool that the salt leads to.
fn address_in(pool: Ipv6Prefix, salt: u64, n: u64) -> Ipv6Addr {
    let low = u128::from(mix(salt.wrapping_add(n)));
    let high = u128::from(mix(salt.wrapping_add(n) ^ 0x9e37_79b9_7f4a_7c15));
    let host = u128::MAX.checked_shr(pool.prefix_len().into()).unwrap_or(0);
    Ipv6Addr::from(pool.bits() | (((high << 64) | low) & host))
}

/// A permutation of 64-bit numbers whose results look unrelated (the finaliser of SplitMix64).
pub fn mix(n: u64) -> u64 {
    let n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

/// Up to which identifier, if `addr` has an interface identifier that no host may have, that is so behind its prefix.
pub fn reserved_until(addr: Ipv6Addr) -> Option<u128> {
    is_reserved(addr).then(|| {
        let id = u128::from(addr) as u64;
        let last = match id {
            0 => 0,
            id if id >= ANYCAST_FIRST => ANYCAST_LAST,
            _ => IANA_LAST,
        };
        u128::from(addr) - u128::from(id) + u128::from(last)
    })
}

const ANYCAST_FIRST: u64 = 0xfdff_ffff_ffff_ff80;
const ANYCAST_LAST: u64 = 0xfdff_ffff_ffff_ffff;
const IANA_FIRST: u64 = 0x0200_5eff_fe00_0000;
const IANA_LAST: u64 = 0x0200_5eff_fe00_5213;

/// Interface identifiers that no host may have (RFC 5453): the routers' anycast address, the subnet anycast addresses, and
/// those that carry an Ethernet number of the IANA.
fn is_reserved(addr: Ipv6Addr) -> bool {
    let id = u128::from(addr) as u64;
    id == 0 || (ANYCAST_FIRST..=ANYCAST_LAST).contains(&id) || (IANA_FIRST..=IANA_LAST).contains(&id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{
        Account, Accounts, Keep, Mechanisms, Memory, NetworkWish, Protocol, Secret, Terms, Wants, Wish,
    };
    use sixway_dataplane::update::Outer;
    use zeroize::Zeroizing;

    #[test]
    fn reserved_identifiers_are_known() {
        for text in [
            "2001:db8::",
            "2001:db8::fdff:ffff:ffff:ff80",
            "2001:db8::fdff:ffff:ffff:ffff",
            "2001:db8::200:5eff:fe00:5213",
        ] {
            assert!(is_reserved(text.parse().unwrap()), "{text}");
        }
        for text in ["2001:db8::1", "2001:db8::fe00:0:0:0", "2001:db8::200:5eff:feff:1"] {
            assert!(!is_reserved(text.parse().unwrap()), "{text}");
        }
    }

    fn broker(prefixes: &[&str]) -> Broker {
        let secret = Secret::parse(Zeroizing::new(b"hush".to_vec())).unwrap();
        let alice = Account {
            name: UserName::parse("alice").unwrap(),
            secret,
            prefixes: prefixes.iter().map(|text| text.parse().unwrap()).collect(),
            pair: None,
            mechanisms: Mechanisms::ANY,
        };
        let pool = |text: &str, len| Pool { prefix: text.parse().unwrap(), kind: PoolKind::Networks(len) };
        let pools = vec![pool("2001:db8:100::/55", 56), pool("2001:db8:200::/63", 64)];
        let terms = Terms { pools, ..Terms::default() };
        let mut broker = Broker::new(Accounts::new([7; 16]), terms);
        let memory = Memory { accounts: vec![alice], ..Memory::default() };
        assert!(broker.recall(Time(0), memory).is_empty());
        broker
    }

    fn wish(number: u32, length: Option<u8>, user: Option<&str>) -> BindWish {
        BindWish {
            key: BindKey { tunnel: "t".into(), client: [1].into(), kind: BindKind::Prefix, number },
            user: user.map(|name| UserName::parse(name).unwrap()),
            fixed: Vec::new(),
            on_link: Vec::new(),
            reserved: Vec::new(),
            only_fixed: false,
            hints: Vec::new(),
            length,
            link: None,
            salt: 7,
            most: 9,
            reach: None,
        }
    }

    #[test]
    fn what_was_granted_lasts_as_long_as_before_when_the_calendar_is_set() {
        let second = Duration::from_secs(1);
        for by in [7_300_000_i64, -500_000] {
            let mut broker = broker(&[]);
            let begin = Time(1_000_000);
            broker.bind(begin, &wish(1, None, None), 9 * second).unwrap();
            let asked = Wish {
                user: UserName::parse("alice").unwrap(),
                protocol: Protocol::Tsp,
                outer: Outer::Proto41 { local: None, remote: std::net::Ipv4Addr::new(192, 0, 2, 9) },
                mtu: 1280,
                wants: Wants { pair: false, network: Some(NetworkWish::Any) },
                keep: Keep::For(20 * second),
            };
            let (grant, _) = broker.grant(begin, &asked).unwrap();
            let outcome = broker.shift(by);
            let prefix = broker.bindings().next().unwrap().prefix;
            let (early, late) = (begin.after(9 * second).shifted(by), begin.after(20 * second).shifted(by));
            let kept = [Record::Until(grant.lease, late), Record::BoundUntil(prefix, early, None)];
            assert_eq!((outcome.records, outcome.routes), (kept.to_vec(), Vec::new()));
            assert!(broker.expire(begin.shifted(by)).is_empty());
            assert_eq!(broker.poll_timeout(), Some(early));
            assert_eq!(broker.expire(early).records[0], Record::Unbound(prefix));
            assert_eq!(broker.poll_timeout(), Some(late));
        }
    }

    #[test]
    fn when_one_length_is_used_up_another_is_given() {
        for (hint, expected) in
            [(None, [56, 56, 64, 64]), (Some(64), [64, 64, 56, 56]), (Some(48), [56, 56, 64, 64])]
        {
            let mut broker = broker(&[]);
            let given = expected.map(|_| {
                let number = broker.bindings_len() as u32;
                let (all, _) =
                    broker.bind(Time(0), &wish(number, hint, None), Duration::from_secs(9)).unwrap();
                all[0].prefix_len()
            });
            assert_eq!(given, expected);
            assert!(broker.bind(Time(0), &wish(9, hint, None), Duration::from_secs(9)).is_err());
        }
    }

    #[test]
    fn what_is_likely_the_link_is_given_only_where_nothing_else_is() {
        let p = |text: &str| -> Ipv6Prefix { text.parse().unwrap() };
        let (link, second) = (p("2001:db8:1::/64"), Duration::from_secs(9));
        let asked = |number, fixed: &[Ipv6Prefix], hints: &[Ipv6Prefix]| BindWish {
            fixed: fixed.to_vec(),
            on_link: vec![link],
            hints: hints.to_vec(),
            ..wish(number, Some(56), None)
        };
        let given = |broker: &mut Broker, wish: &BindWish| {
            broker.bind(Time(0), wish, second).map(|(all, _)| all[0]).ok()
        };
        let mut full = broker(&[]);
        let pooled = given(&mut full, &asked(1, &[link], &[])).unwrap();
        assert_eq!(pooled.prefix_len(), 56, "a pool serves it");
        assert_eq!(given(&mut full, &asked(2, &[link], &[link])), Some(link), "it asks for just that");
        full.unbind(Time(0), link, End::Released);
        assert_eq!(
            given(&mut full, &asked(2, &[link, p("2001:db8:2::/60")], &[])),
            Some(p("2001:db8:2::/60"))
        );
        let only = |number| BindWish { only_fixed: true, ..asked(number, &[link], &[]) };
        assert_eq!(given(&mut full, &only(3)), None, "it is to ask anew, and a pool serves it");
        for number in 4..7 {
            assert!(given(&mut full, &asked(number, &[link], &[])).is_some_and(|p| p != link));
        }
        assert_eq!(given(&mut full, &asked(7, &[link], &[])), Some(link), "all pools are used up");
        let mut none = Broker::new(Accounts::new([7; 16]), Terms::default());
        assert_eq!(given(&mut none, &only(1)), Some(link), "there is no pool");
        let told = BindWish { on_link: Vec::new(), ..asked(8, &[link], &[]) };
        none.unbind(Time(0), link, End::Released);
        assert_eq!(given(&mut none, &told), Some(link));
    }

    #[test]
    fn an_account_s_network_is_taken_from_a_client_in_its_own_tunnel_and_from_nobody_else() {
        let asked = |user: &str| Wish {
            user: UserName::parse(user).unwrap(),
            protocol: Protocol::Tsp,
            outer: Outer::Proto41 { local: None, remote: std::net::Ipv4Addr::new(192, 0, 2, 9) },
            mtu: 1280,
            wants: Wants { pair: false, network: Some(NetworkWish::Own) },
            keep: Keep::WithConnection,
        };
        let own = "2001:db8:a::/48".parse().unwrap();
        let mut broker = broker(&["2001:db8:a::/48"]);
        broker.bind(Time(0), &wish(1, None, Some("alice")), Duration::from_secs(9)).unwrap();
        assert_eq!(broker.bound(&wish(1, None, None).key)[0].prefix, own);
        let (grant, outcome) = broker.grant(Time(0), &asked("alice")).unwrap();
        assert_eq!(grant.networks, [own]);
        assert!(outcome.records.contains(&Record::Unbound(own)), "{outcome:?}");
        assert!(
            matches!(outcome.routes[..], [Route::Unbind(..), Route::Up(_)]),
            "the tables make room first"
        );
        assert_eq!(broker.bindings_len(), 0);
        // A client that is set it aside by the configuration keeps it.
        broker.end(Time(0), grant.lease, End::Released);
        let theirs = BindWish { reserved: vec![own], ..wish(2, None, None) };
        broker.bind(Time(0), &theirs, Duration::from_secs(9)).unwrap();
        assert_eq!(broker.grant(Time(0), &asked("alice")).unwrap_err(), Refusal::Taken(own));
        assert_eq!(broker.bindings_len(), 1);
    }

    /// RFC: V14 (RFC 8415 section 18.3.8)
    #[test]
    fn a_declined_address_rests_beyond_its_tunnel_and_a_few_of_each_do() {
        let pool = Pool { prefix: "2001:db8:5::/64".parse().unwrap(), kind: PoolKind::Addresses };
        let terms = Terms { pools: vec![pool], ..Terms::default() };
        let mut broker = Broker::new(Accounts::new([7; 16]), terms);
        assert!(broker.recall(Time(0), Memory::default()).is_empty());
        let (day, second) = (Duration::from_secs(86_400), Duration::from_secs(1));
        let key = BindKey { kind: BindKind::Address, ..wish(1, None, None).key };
        let asked = BindWish { key: key.clone(), most: 1, ..wish(1, None, None) };
        let mut declined = Vec::new();
        for n in 0..6 {
            let now = Time(0).after(second * n);
            let (given, _) = broker.bind(now, &asked, day).unwrap();
            let resting = &declined[declined.len().saturating_sub(MAX_RESTING_OF_TUNNEL)..];
            assert!(!resting.contains(&given[0]), "{given:?}: it rests, and fills no place of the tunnel's");
            broker.quarantine(now, &key, given[0], day);
            declined.extend(given);
            let outcome = broker.unbind_tunnel(now, "t", End::Released);
            assert!(outcome.records.is_empty(), "the tunnel comes and goes: {outcome:?}");
        }
        let resting: BTreeSet<Ipv6Prefix> = broker.bindings().map(|binding| binding.prefix).collect();
        assert_eq!(resting, declined[2..].iter().copied().collect(), "the oldest have come back");
        broker.expire(Time(0).after(day + second * 6));
        assert_eq!(broker.bindings_len(), 0);
        assert!(broker.bindings.resting.all.is_empty() && broker.bindings.resting.by_tunnel.is_empty());
    }

    #[test]
    fn addresses_stay_in_their_pool_and_look_random() {
        let pool: Ipv6Prefix = "2001:db8:5::/64".parse().unwrap();
        let made: BTreeSet<_> = (0..1000).map(|n| address_in(pool, 7, n)).collect();
        assert_eq!(made.len(), 1000);
        assert!(made.iter().all(|addr| pool.contains(*addr)));
        assert_ne!(address_in(pool, 7, 0), address_in(pool, 8, 0));
        let one: Ipv6Prefix = "2001:db8:5::1/128".parse().unwrap();
        assert_eq!(address_in(one, 7, 0), one.addr());
    }
}
