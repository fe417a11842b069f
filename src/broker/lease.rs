//! The broker itself: from wishes to leases and back.
//!
//! All bookkeeping of who holds what is in [`Broker`]; every step says in its [`Outcome`] what must be kept and what the
//! tables must learn. Nothing here waits or fails half way: a wish that is refused has changed nothing.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use sixway_dataplane::update::{Ipv6Prefix, Outer, UdpRemote};

use super::binding::Bindings;
use super::pool::Places;
use super::{
    Account, Accounts, Binding, End, Grant, Keep, LeaseId, Limits, NetworkWish, Outcome, Pair, PairPlace,
    Pool, PoolKind, Protocol, Record, Refusal, Route, Time, UserName, Wish,
};

/// A tunnel in force and what it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// What the client was told.
    pub grant: Grant,
    /// By which protocol it was asked for.
    pub protocol: Protocol,
    /// When.
    pub granted: Time,
}

/// What is to become of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Nothing new.
    Stay,
    /// It lasts for this long from now on.
    Renew(Duration),
    /// It ends: its client is gone.
    End,
}

/// What a store remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// All accounts.
    pub accounts: Vec<Account>,
    /// All leases that have not ended.
    pub leases: Vec<Lease>,
    /// What is in mind for whom, in use or not, and since when.
    pub assigned: Vec<(Ipv6Prefix, Option<UserName>, Time)>,
    /// Accounts that were removed, and when: one of the same name that was added since is another.
    pub departed: Vec<(UserName, Time)>,
    /// What is bound.
    pub bindings: Vec<Binding>,
}

/// What the configuration says to the broker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// The pools, in the order of the file.
    pub pools: Vec<Pool>,
    /// What is never given out of them: the router's own networks and the static tunnels'.
    pub fences: Vec<Ipv6Prefix>,
    /// How much one client may have.
    pub limits: Limits,
}

/// Who may have which tunnel, until when.
#[derive(Debug)]
pub struct Broker {
    pub(super) accounts: Accounts,
    pub(super) terms: Terms,
    pub(super) pools: Vec<Places>,
    /// What the pools were cut around, sorted.
    pub(super) fences: Vec<Ipv6Prefix>,
    /// What was given out of pools that the configuration no longer has.
    elsewhere: HashMap<Ipv6Prefix, (Option<UserName>, Time)>,
    pub(super) leases: HashMap<LeaseId, Lease>,
    /// What clients inside tunnels have.
    pub(super) bindings: Bindings,
    by_user: HashMap<UserName, BTreeSet<LeaseId>>,
    by_address: HashMap<Ipv4Addr, BTreeSet<LeaseId>>,
    /// How many are nobody's in particular.
    anonymous: u32,
    /// Every prefix behind a leased tunnel.
    pub(super) held: HashMap<Ipv6Prefix, LeaseId>,
    names: HashSet<Box<str>>,
    deadlines: BTreeSet<(Time, LeaseId)>,
    next: u64,
}

/// What a wish will be given, worked out and not yet given.
struct Choice {
    places: Vec<(usize, u32)>,
    own: Vec<Ipv6Prefix>,
    /// What clients in the account's other tunnels have of it, which they lose.
    unbound: Vec<Ipv6Prefix>,
    pair: Option<(usize, u32)>,
}

impl Broker {
    /// A broker that remembers nothing; `accounts` are shared with those who check proofs.
    pub fn new(accounts: Accounts, terms: Terms) -> Self {
        let mut broker = Self {
            accounts,
            terms,
            pools: Vec::new(),
            fences: Vec::new(),
            elsewhere: HashMap::new(),
            leases: HashMap::new(),
            bindings: Bindings::default(),
            by_user: HashMap::new(),
            by_address: HashMap::new(),
            anonymous: 0,
            held: HashMap::new(),
            names: HashSet::new(),
            deadlines: BTreeSet::new(),
            next: 1,
        };
        broker.cut_pools();
        broker
    }

    /// Takes over what an earlier process left in the store. Leases that last go up again, the others end.
    pub fn recall(&mut self, now: Time, memory: Memory) -> Outcome {
        self.accounts.replace(memory.accounts);
        let departed = memory.departed;
        self.elsewhere.extend(memory.assigned.into_iter().map(|(prefix, user, at)| (prefix, (user, at))));
        for (prefix, lease) in memory.leases.iter().flat_map(|l| l.grant.prefixes().map(move |p| (p, l))) {
            let user = lease.grant.user.clone();
            self.elsewhere.entry(prefix).or_insert((Some(user), lease.granted));
        }
        let ids: Vec<LeaseId> = memory.leases.iter().map(|lease| lease.grant.lease).collect();
        memory.leases.into_iter().for_each(|lease| self.enter(lease));
        for binding in memory.bindings.iter().filter(|binding| !binding.fixed) {
            let known = (Some(binding.owner.clone()), now);
            self.elsewhere.entry(binding.prefix).or_insert(known);
        }
        self.recall_bindings(memory.bindings);
        self.cut_pools();
        let mut outcome = Outcome::default();
        for id in ids {
            let Some(lease) = self.leases.get(&id) else { continue };
            match lease.grant.expires {
                None => outcome.append(self.end(now, id, End::Restart)),
                Some(at) if at <= now => outcome.append(self.end(now, id, End::Expired)),
                Some(_) => outcome.routes.push(Route::Up(lease.grant.clone())),
            }
        }
        outcome.append(self.bury(now, &departed));
        outcome.append(self.withdraw(now));
        outcome.append(self.expire_bindings(now));
        // Behind the tunnels that they are in.
        outcome.routes.append(&mut self.bound_routes());
        outcome
    }

    /// Ends what accounts had that were removed since, even if others of their names have been added.
    fn bury(&mut self, now: Time, departed: &[(UserName, Time)]) -> Outcome {
        let mut outcome = Outcome::default();
        for (user, at) in departed {
            for id in self.leases_of(user) {
                if self.leases.get(&id).is_some_and(|lease| lease.granted <= *at) {
                    outcome.append(self.end(now, id, End::AccountGone));
                }
            }
        }
        outcome
    }

    /// The configuration has changed. Leases of what it no longer gives end.
    pub fn configure(&mut self, now: Time, terms: Terms) -> Outcome {
        if terms == self.terms {
            return Outcome::default();
        }
        self.terms = terms;
        self.cut_pools();
        self.withdraw(now)
    }

    /// The accounts have changed: those that are gone, those that were gone for a moment (`departed`), and those that were
    /// given other prefixes, lose their leases.
    pub fn adopt(&mut self, now: Time, accounts: Vec<Account>, departed: &[(UserName, Time)]) -> Outcome {
        let gone = self.accounts.replace(accounts);
        let mut outcome = self.bury(now, departed);
        for user in &gone {
            for id in self.leases_of(user) {
                outcome.append(self.end(now, id, End::AccountGone));
            }
        }
        // Most changes set nothing aside: then the pools stay as they are.
        if self.fences() != self.fences {
            self.cut_pools();
        }
        for user in &gone {
            outcome.records.append(&mut self.orphan(user, now));
        }
        outcome.append(self.withdraw(now));
        outcome
    }

    /// Nothing is kept in mind for an account that is gone.
    fn orphan(&mut self, user: &UserName, now: Time) -> Vec<Record> {
        let mut records = Vec::new();
        for places in &mut self.pools {
            let pool = places.pool();
            let prefixes = places.orphan(user, now).into_iter().map(|n| pool.place(n));
            records.extend(prefixes.map(|prefix| Record::Assigned { prefix, user: None, since: now }));
        }
        records
    }

    /// Gives what is wished for.
    ///
    /// Leases that must give way to it (the account's oldest, or one between the same outer endpoints) end with it.
    ///
    /// # Errors
    /// Why not; nothing has changed then.
    pub fn grant(&mut self, now: Time, wish: &Wish) -> Result<(Grant, Outcome), Refusal> {
        self.grant_at(now, wish, None)
    }

    /// The same, with exactly this address pair if one is wished for and `at` says which: a protocol may have its own
    /// rule for that.
    ///
    /// # Errors
    /// Why not; nothing has changed then.
    pub fn grant_at(
        &mut self,
        now: Time,
        wish: &Wish,
        at: Option<PairPlace>,
    ) -> Result<(Grant, Outcome), Refusal> {
        // Its account may have gone since it was proven.
        let account = self.accounts.find(&wish.user).ok_or(Refusal::LoginFailed)?;
        let mut victims = self.victims(wish);
        self.check_address(wish, &victims)?;
        self.check_anonymous(wish, &victims)?;
        let choice = self.choose(&account, wish, at, &mut victims)?;
        let mut outcome = Outcome::default();
        for id in victims {
            outcome.append(self.end(now, id, End::Superseded));
        }
        for prefix in &choice.unbound {
            outcome.append(self.unbind(now, *prefix, End::Superseded));
        }
        let lease = self.lease(now, wish, &choice);
        for (pool, n) in choice.places.iter().chain(&choice.pair) {
            outcome.records.extend(self.occupy(*pool, *n, &wish.user, now));
        }
        outcome.records.push(Record::Lease(lease.clone()));
        outcome.routes.push(Route::Up(lease.grant.clone()));
        let grant = lease.grant.clone();
        self.enter(lease);
        Ok((grant, outcome))
    }

    /// The lease lasts from now on for this long. One that lasts as long as its connection is left as it is.
    ///
    /// # Errors
    /// [`Refusal::NoLease`].
    pub fn renew(
        &mut self,
        now: Time,
        id: LeaseId,
        lasts: Duration,
    ) -> Result<(Option<Time>, Outcome), Refusal> {
        let lease = self.leases.get_mut(&id).ok_or(Refusal::NoLease(id))?;
        let Some(before) = lease.grant.expires else { return Ok((None, Outcome::default())) };
        let expires = now.after(lasts);
        lease.grant.expires = Some(expires);
        self.deadlines.remove(&(before, id));
        self.deadlines.insert((expires, id));
        Ok((Some(expires), Outcome { records: vec![Record::Until(id, expires)], routes: Vec::new() }))
    }

    /// A tunnel's peer was proven to be elsewhere. Kept for a lease that lasts, so that it forwards there after a restart; our
    /// own side stays as it was granted.
    pub fn moved(&mut self, id: LeaseId, to: &Outer) -> Outcome {
        let Some(lease) = self.leases.get_mut(&id) else { return Outcome::default() };
        let was = lease.grant.outer;
        let (Outer::Udp { local, .. }, Outer::Udp { remote, .. }) = (was, *to) else {
            return Outcome::default();
        };
        let outer = Outer::Udp { local, remote };
        if outer == was {
            return Outcome::default();
        }
        lease.grant.outer = outer;
        let lasts = lease.grant.expires.is_some();
        if let Some(peer) = peer(&was) {
            forget(&mut self.by_address, &peer, id);
        }
        if let Some(peer) = peer(&outer) {
            self.by_address.entry(peer).or_default().insert(id);
        }
        let records = if lasts { vec![Record::Moved(id, outer)] } else { Vec::new() };
        Outcome { records, routes: Vec::new() }
    }

    /// Ends a lease; nothing happens when it has ended before.
    pub fn end(&mut self, now: Time, id: LeaseId, why: End) -> Outcome {
        let Some(lease) = self.leases.remove(&id) else { return Outcome::default() };
        let grant = &lease.grant;
        let mut outcome = self.unbind_tunnel(now, &grant.name, why);
        forget(&mut self.by_user, &grant.user, id);
        self.anonymous -= u32::from(grant.user.is_anonymous());
        if let Some(peer) = peer(&grant.outer) {
            forget(&mut self.by_address, &peer, id);
        }
        self.names.remove(&grant.name);
        if let Some(at) = grant.expires {
            self.deadlines.remove(&(at, id));
        }
        outcome.append(Outcome { records: vec![Record::Ended(id)], routes: vec![Route::Down(id, why)] });
        for prefix in grant.prefixes() {
            self.held.remove(&prefix);
            let Some((pool, n)) = self.place_of(prefix) else { continue };
            // What is set aside for an account may lie in a pool, which knows nothing of it then.
            let Some(user) = self.pools[pool].leave(n, now) else { continue };
            outcome.records.push(Record::Assigned { prefix, user, since: now });
        }
        outcome
    }

    /// Ends everything whose time is over.
    pub fn expire(&mut self, now: Time) -> Outcome {
        let mut outcome = Outcome::default();
        while let Some((at, id)) = self.deadlines.first().copied().filter(|(at, _)| *at <= now) {
            self.deadlines.remove(&(at, id));
            outcome.append(self.end(now, id, End::Expired));
        }
        outcome.append(self.expire_bindings(now));
        outcome
    }

    /// Lets `fate` look at each lease of this protocol, and does what it says.
    pub fn patrol(&mut self, now: Time, protocol: Protocol, fate: impl Fn(&Lease) -> Fate) -> Outcome {
        let all = self.leases.values().filter(|lease| lease.protocol == protocol);
        let mut due: Vec<(LeaseId, Fate)> = all.map(|lease| (lease.grant.lease, fate(lease))).collect();
        due.retain(|(_, fate)| *fate != Fate::Stay);
        due.sort_unstable_by_key(|(id, _)| *id);
        let mut outcome = Outcome::default();
        for (id, fate) in due {
            match fate {
                Fate::Stay => {}
                Fate::Renew(lasts) => {
                    outcome.append(self.renew(now, id, lasts).map_or_else(|_| Outcome::default(), |(_, o)| o))
                }
                Fate::End => outcome.append(self.end(now, id, End::Expired)),
            }
        }
        outcome
    }

    /// The leases of an account by this protocol, oldest first.
    pub fn find(&self, user: &UserName, protocol: Protocol) -> Vec<Grant> {
        let leases = self.leases_of(user).into_iter().filter_map(|id| self.leases.get(&id));
        leases.filter(|lease| lease.protocol == protocol).map(|lease| lease.grant.clone()).collect()
    }

    /// When the next lease ends by itself.
    pub fn poll_timeout(&self) -> Option<Time> {
        let lease = self.deadlines.first().map(|(at, _)| *at);
        [lease, self.next_unbinding()].into_iter().flatten().min()
    }

    /// The accounts, to check proofs with.
    pub fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    /// The pools, each with how many of its places are in use.
    pub fn pools(&self) -> impl Iterator<Item = (Pool, usize)> {
        self.pools.iter().map(|places| (places.pool(), places.in_use()))
    }

    /// Whose a lease is.
    pub fn user_of(&self, id: LeaseId) -> Option<&UserName> {
        self.leases.get(&id).map(|lease| &lease.grant.user)
    }

    /// The leases of an account, oldest first.
    pub fn leases_of(&self, user: &UserName) -> Vec<LeaseId> {
        self.by_user.get(user).into_iter().flatten().copied().collect()
    }

    /// How many leases are in force.
    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    /// Who must give way: of this account the oldest beyond what it may have, and whoever has the same outer endpoints.
    fn victims(&self, wish: &Wish) -> BTreeSet<LeaseId> {
        let own = self.leases_of(&wish.user);
        // Nobody in particular makes nobody in particular give way: they may be two.
        let limit = if wish.user.is_anonymous() { u32::MAX } else { self.terms.limits.tunnels_per_account };
        let most = (limit as usize).max(1);
        let mut victims: BTreeSet<_> =
            own.iter().copied().take((own.len() + 1).saturating_sub(most)).collect();
        let here = peer(&wish.outer).and_then(|at| self.by_address.get(&at)).into_iter().flatten();
        let same =
            |id: &&LeaseId| self.leases.get(id).is_some_and(|lease| clashes(&lease.grant.outer, &wish.outer));
        victims.extend(here.filter(same));
        victims
    }

    fn check_address(&self, wish: &Wish, victims: &BTreeSet<LeaseId>) -> Result<(), Refusal> {
        let Some(peer) = peer(&wish.outer) else { return Ok(()) };
        let most = self.terms.limits.tunnels_per_address;
        let here = self.by_address.get(&peer).into_iter().flatten().filter(|id| !victims.contains(id));
        if here.count() >= most as usize {
            return Err(Refusal::TooManyTunnels { peer, most });
        }
        Ok(())
    }

    /// Anonymous clients have a quota of their own, and take no endpoint from anybody else: theirs may be forged.
    fn check_anonymous(&self, wish: &Wish, victims: &BTreeSet<LeaseId>) -> Result<(), Refusal> {
        if !wish.user.is_anonymous() {
            return Ok(());
        }
        let is_own = |id: &LeaseId| self.leases.get(id).is_some_and(|lease| lease.grant.user == wish.user);
        if !victims.iter().all(is_own) {
            return Err(Refusal::EndpointTaken);
        }
        let here = self.by_user.get(&wish.user).map_or(0, BTreeSet::len) - victims.len();
        let Limits { anonymous_tunnels, anonymous_per_address, .. } = self.terms.limits;
        if here >= anonymous_per_address as usize {
            return Err(Refusal::TooManyAnonymous {
                most: anonymous_per_address,
                key: "anonymous_per_address",
            });
        }
        if (self.anonymous as usize).saturating_sub(victims.len()) >= anonymous_tunnels as usize {
            return Err(Refusal::TooManyAnonymous { most: anonymous_tunnels, key: "anonymous_tunnels" });
        }
        Ok(())
    }

    fn choose(
        &mut self,
        account: &Account,
        wish: &Wish,
        at: Option<PairPlace>,
        victims: &mut BTreeSet<LeaseId>,
    ) -> Result<Choice, Refusal> {
        let mut choice = Choice { places: Vec::new(), own: Vec::new(), unbound: Vec::new(), pair: None };
        if let Some(network) = wish.wants.network {
            choice.own = own_networks(account, network);
            if choice.own.is_empty() && network != NetworkWish::Own {
                choice.places.push(self.choose_network(account, network, victims)?);
            }
            choice.unbound = self.claim_own(account, &choice.own, victims)?;
        }
        if wish.wants.pair {
            choice.pair = Some(self.choose_pair(account, at, victims)?);
        }
        Ok(choice)
    }

    /// What is set aside for an account is taken from its older tunnel, and from clients in its tunnels, but from nobody
    /// else. Returns what clients are to lose.
    fn claim_own(
        &self,
        account: &Account,
        own: &[Ipv6Prefix],
        victims: &mut BTreeSet<LeaseId>,
    ) -> Result<Vec<Ipv6Prefix>, Refusal> {
        let mut unbound = Vec::new();
        for prefix in own {
            for binding in self.bindings.all_meeting(*prefix) {
                if binding.owner != account.name {
                    return Err(Refusal::Taken(*prefix));
                }
                unbound.push(binding.prefix);
            }
            let Some(holder) = self.held.get(prefix).filter(|id| !victims.contains(id)) else { continue };
            match self.leases.get(holder) {
                Some(lease) if lease.grant.user != account.name => return Err(Refusal::Taken(*prefix)),
                Some(_) | None => drop(victims.insert(*holder)),
            }
        }
        Ok(unbound)
    }

    fn choose_network(
        &mut self,
        account: &Account,
        wanted: NetworkWish,
        victims: &BTreeSet<LeaseId>,
    ) -> Result<(usize, u32), Refusal> {
        let lens = self.pools.iter().enumerate().filter_map(|(at, places)| match places.pool().kind {
            PoolKind::Networks(len) => Some((at, len)),
            PoolKind::Pairs | PoolKind::Addresses => None,
        });
        let fitting: Vec<(usize, u8)> = match wanted {
            NetworkWish::Length(len) => lens.filter(|(_, l)| *l == len).collect(),
            NetworkWish::Any | NetworkWish::Own => {
                let all: Vec<_> = lens.collect();
                let first = all.first().map(|(_, len)| *len);
                all.into_iter().filter(|(_, len)| Some(*len) == first).collect()
            }
        };
        let fitting: Vec<usize> = fitting.into_iter().map(|(at, _)| at).collect();
        let nothing =
            "the account has no such network of its own, and there is no [[pool]] that gives one out";
        self.choose_place(&fitting, account, victims, nothing)
    }

    fn choose_pair(
        &mut self,
        account: &Account,
        at: Option<PairPlace>,
        victims: &BTreeSet<LeaseId>,
    ) -> Result<(usize, u32), Refusal> {
        let pools = self.pools.iter().enumerate();
        let wanted = |pool: Pool| pool.kind == PoolKind::Pairs && at.is_none_or(|at| at.pool == pool.prefix);
        let pairs: Vec<usize> = pools.filter(|(_, p)| wanted(p.pool())).map(|(n, _)| n).collect();
        let number = at.map(|at| at.number).or(account.pair);
        let Some((pinned, pool)) = number.zip(pairs.first().copied()) else {
            return self.choose_place(&pairs, account, victims, "there is no [[pool]] of address pairs");
        };
        if self.may_have(pool, pinned, victims) {
            return Ok((pool, pinned));
        }
        Err(Refusal::Taken(self.pools[pool].pool().place(pinned)))
    }

    /// The account's own place of before, a new one, or the one unused for longest.
    fn choose_place(
        &mut self,
        pools: &[usize],
        account: &Account,
        victims: &BTreeSet<LeaseId>,
        nothing: &'static str,
    ) -> Result<(usize, u32), Refusal> {
        for at in pools {
            if let Some(n) = self.pools[*at].of(&account.name).find(|n| self.may_have(*at, *n, victims)) {
                return Ok((*at, n));
            }
        }
        for at in pools {
            if let Some(n) = self.pools[*at].fresh() {
                return Ok((*at, n));
            }
        }
        let idle = pools.iter().find_map(|at| Some((*at, self.pools[*at].longest_idle()?)));
        let all = pools.first().map(|at| self.pools[*at].pool().prefix);
        idle.ok_or(all.map_or(Refusal::NothingToGive(nothing), Refusal::Exhausted))
    }

    fn may_have(&self, pool: usize, n: u32, victims: &BTreeSet<LeaseId>) -> bool {
        let places = &self.pools[pool];
        let holder = self.held.get(&places.pool().place(n));
        places.is_open(n) || (places.is_within(n) && holder.is_some_and(|id| victims.contains(id)))
    }

    pub(super) fn occupy(&mut self, pool: usize, n: u32, user: &UserName, now: Time) -> Option<Record> {
        let places = &mut self.pools[pool];
        let known = places.user(n) == Some(user);
        places.assign(n, Some(user.clone()), true, now);
        let prefix = places.pool().place(n);
        (!known).then(|| Record::Assigned { prefix, user: Some(user.clone()), since: now })
    }

    fn lease(&mut self, now: Time, wish: &Wish, choice: &Choice) -> Lease {
        let from_pools = choice.places.iter().map(|(pool, n)| self.pools[*pool].pool().place(*n));
        let grant = Grant {
            lease: LeaseId(self.next),
            user: wish.user.clone(),
            protocol: wish.protocol,
            name: self.name(wish),
            outer: wish.outer,
            pair: choice.pair.map(|(pool, n)| self.pools[pool].pool().pair(n)),
            networks: choice.own.iter().copied().chain(from_pools).collect(),
            mtu: wish.mtu,
            expires: match wish.keep {
                Keep::WithConnection => None,
                Keep::For(lasts) => Some(now.after(lasts)),
            },
        };
        Lease { grant, protocol: wish.protocol, granted: now }
    }

    /// `alice@dtcp`, or `alice@dtcp-2` for her second tunnel.
    fn name(&self, wish: &Wish) -> Box<str> {
        let plain = format!("{}@{}", wish.user, wish.protocol.name());
        if !self.names.contains(plain.as_str()) {
            return plain.into();
        }
        let numbered = (2u64..).map(|n| format!("{plain}-{n}"));
        numbered.map(Box::from).find(|name| !self.names.contains(name)).unwrap_or(plain.into())
    }

    /// Notes a lease everywhere; whether it may be was decided before.
    fn enter(&mut self, lease: Lease) {
        let grant = &lease.grant;
        let id = grant.lease;
        self.next = self.next.max(id.0.saturating_add(1));
        self.by_user.entry(grant.user.clone()).or_default().insert(id);
        self.anonymous += u32::from(grant.user.is_anonymous());
        if let Some(peer) = peer(&grant.outer) {
            self.by_address.entry(peer).or_default().insert(id);
        }
        self.held.extend(grant.prefixes().map(|prefix| (prefix, id)));
        self.names.insert(grant.name.clone());
        self.deadlines.extend(grant.expires.map(|at| (at, id)));
        self.leases.insert(id, lease);
    }

    /// Lays the pools out anew, with all that is remembered of them.
    fn cut_pools(&mut self) {
        for places in self.pools.drain(..) {
            let pool = places.pool();
            let known = places.known().map(|(n, user, at)| (pool.place(n), (user.cloned(), at)));
            self.elsewhere.extend(known);
        }
        self.fences = self.fences();
        let cut = self.terms.pools.iter().filter(|pool| pool.kind != PoolKind::Addresses);
        self.pools = cut.map(|pool| Places::new(*pool, &self.fences)).collect();
        for (prefix, (user, at)) in std::mem::take(&mut self.elsewhere) {
            match self.place_of(prefix) {
                Some((pool, n)) => {
                    let in_use = self.held.contains_key(&prefix) || self.bindings.is_pooled(prefix);
                    self.pools[pool].assign(n, user, in_use, at);
                }
                None => drop(self.elsewhere.insert(prefix, (user, at))),
            }
        }
    }

    fn fences(&self) -> Vec<Ipv6Prefix> {
        let mut fences = self.terms.fences.clone();
        self.accounts.each(|account| fences.extend(&account.prefixes));
        fences.sort_unstable();
        fences
    }

    /// Ends the leases of what is not to be given any more.
    fn withdraw(&mut self, now: Time) -> Outcome {
        let mut ids: Vec<LeaseId> = self.leases.keys().copied().collect();
        ids.sort_unstable();
        let mut outcome = Outcome::default();
        for id in ids {
            if self.leases.get(&id).is_some_and(|lease| !self.is_due(&lease.grant)) {
                outcome.append(self.end(now, id, End::Withdrawn));
            }
        }
        outcome.append(self.withdraw_bindings(now));
        outcome
    }

    /// Whether all that was granted would still be given to its account.
    fn is_due(&self, grant: &Grant) -> bool {
        let Some(account) = self.accounts.find(&grant.user) else { return false };
        grant.prefixes().all(|prefix| {
            let place = self.place_of(prefix);
            let theirs = |pool: usize, n| {
                self.pools[pool].is_within(n) && self.pools[pool].user(n) == Some(&grant.user)
            };
            account.prefixes.contains(&prefix) || place.is_some_and(|(pool, n)| theirs(pool, n))
        })
    }

    pub(super) fn place_of(&self, prefix: Ipv6Prefix) -> Option<(usize, u32)> {
        let pools = self.pools.iter().enumerate();
        pools.filter_map(|(at, places)| Some((at, places.pool().number(prefix)?))).next()
    }
}

impl Grant {
    /// All prefixes behind the tunnel: the client's address of the pair, and the networks.
    pub fn prefixes(&self) -> impl Iterator<Item = Ipv6Prefix> {
        let client = self.pair.map(|Pair { client, .. }| Ipv6Prefix::host(client));
        client.into_iter().chain(self.networks.iter().copied())
    }
}

fn own_networks(account: &Account, wanted: NetworkWish) -> Vec<Ipv6Prefix> {
    let fits = |prefix: &&Ipv6Prefix| match wanted {
        NetworkWish::Any | NetworkWish::Own => true,
        NetworkWish::Length(len) => prefix.prefix_len() == len,
    };
    account.prefixes.iter().filter(fits).copied().collect()
}

/// The client's outer address, where it is known.
pub fn peer(outer: &Outer) -> Option<Ipv4Addr> {
    match outer {
        Outer::Proto41 { remote, .. } => Some(*remote),
        Outer::Udp { remote: UdpRemote::AnyPort { addr, .. }, .. } => Some(*addr),
        Outer::Udp { remote, .. } => remote.endpoint().map(|at| *at.ip()),
    }
}

/// Whether packets of the two could not be told apart.
fn clashes(a: &Outer, b: &Outer) -> bool {
    let meet = |a: Option<Ipv4Addr>, b: Option<Ipv4Addr>| a.is_none() || b.is_none() || a == b;
    match (a, b) {
        (Outer::Proto41 { local: la, remote: ra }, Outer::Proto41 { local: lb, remote: rb }) => {
            ra == rb && meet(*la, *lb)
        }
        (Outer::Udp { local: la, remote: ra }, Outer::Udp { local: lb, remote: rb }) => {
            let same = ra.endpoint().is_some_and(|at| rb.endpoint() == Some(at));
            same && la.port == lb.port && meet(la.addr, lb.addr)
        }
        (Outer::Proto41 { .. }, Outer::Udp { .. }) | (Outer::Udp { .. }, Outer::Proto41 { .. }) => false,
    }
}

fn forget<K: std::hash::Hash + Eq>(map: &mut HashMap<K, BTreeSet<LeaseId>>, key: &K, id: LeaseId) {
    let Some(ids) = map.get_mut(key) else { return };
    ids.remove(&id);
    if ids.is_empty() {
        map.remove(key);
    }
}
