//! The broker itself: from wishes to leases and back.
//!
//! All bookkeeping of who holds what is in [`Broker`]; every step says in its [`Outcome`] what must be kept and what the
//! tables must learn. Nothing here waits or fails half way: a wish that is refused has changed nothing.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use sixway_dataplane::update::{Ipv6Prefix, Outer, UdpRemote};

use super::binding::Bindings;
use super::choice::Choice;
use super::pool::{Order, Places};
use super::{
    Account, Accounts, Binding, End, Grant, Keep, LeaseId, Limits, Outcome, Pair, Pool, PoolKind, Protocol,
    Record, Refusal, Route, Time, Told, UserName, Wish,
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
    /// What its client has said of itself.
    pub told: Told,
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

/// Whether the client of a lease is heard through its tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hearing {
    /// It is, or the lease is new.
    Lately,
    /// It never was, and has had little time yet.
    NotYet,
    /// Not for so long that its endpoint may be somebody else's by now.
    Silent,
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
    /// In what order their places are given.
    order: Order,
    /// What the pools were cut around, sorted.
    pub(super) fences: Vec<Ipv6Prefix>,
    /// What was given out of pools that the configuration no longer has.
    elsewhere: HashMap<Ipv6Prefix, (Option<UserName>, Time)>,
    pub(super) leases: HashMap<LeaseId, Lease>,
    /// What clients inside tunnels have.
    pub(super) bindings: Bindings,
    pub(super) by_user: HashMap<UserName, BTreeSet<LeaseId>>,
    pub(super) by_address: HashMap<Ipv4Addr, BTreeSet<LeaseId>>,
    /// How many are nobody's in particular.
    pub(super) anonymous: u32,
    /// Of these, those through whose tunnels nothing has ever come, as far as anybody has looked.
    pub(super) strangers: BTreeSet<LeaseId>,
    /// Leases whose clients are not heard.
    quiet: HashMap<LeaseId, Hearing>,
    /// Every prefix behind a leased tunnel.
    pub(super) held: HashMap<Ipv6Prefix, LeaseId>,
    names: HashSet<Box<str>>,
    deadlines: BTreeSet<(Time, LeaseId)>,
    next: u64,
}

impl Broker {
    /// A broker that remembers nothing; `accounts` are shared with those who check proofs.
    pub fn new(accounts: Accounts, terms: Terms) -> Self {
        let mut broker = Self {
            accounts,
            terms,
            pools: Vec::new(),
            order: Order::Counted,
            fences: Vec::new(),
            elsewhere: HashMap::new(),
            leases: HashMap::new(),
            bindings: Bindings::default(),
            by_user: HashMap::new(),
            by_address: HashMap::new(),
            anonymous: 0,
            strangers: BTreeSet::new(),
            quiet: HashMap::new(),
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
        self.strangers.remove(&id);
        self.quiet.remove(&id);
        if let Some(at) = grant.expires {
            self.deadlines.remove(&(at, id));
        }
        outcome.append(Outcome { records: vec![Record::Ended(id)], routes: vec![Route::Down(id, why)] });
        for prefix in grant.prefixes() {
            self.held.remove(&prefix);
            let Some((pool, n)) = self.place_of(prefix) else { continue };
            if grant.user.is_anonymous() {
                self.pools[pool].vacate(n);
                continue;
            }
            // What is set aside for an account may lie in a pool, which knows nothing of it then.
            let Some(user) = self.pools[pool].leave(n, now) else { continue };
            outcome.records.push(Record::Assigned { prefix, user, since: now });
        }
        outcome
    }

    /// The calendar was set by so many milliseconds: all that ends at some time ends as much later, or earlier.
    pub fn shift(&mut self, by: i64) -> Outcome {
        let mut outcome = Outcome::default();
        self.deadlines.clear();
        for (id, lease) in &mut self.leases {
            lease.granted = lease.granted.shifted(by);
            let Some(at) = lease.grant.expires.map(|at| at.shifted(by)) else { continue };
            lease.grant.expires = Some(at);
            self.deadlines.insert((at, *id));
            outcome.records.push(Record::Until(*id, at));
        }
        outcome.append(self.shift_bindings(by));
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

    /// Lets `look` at each lease of this protocol, does what it says, and notes who is heard.
    pub fn patrol(
        &mut self,
        now: Time,
        protocol: Protocol,
        look: impl Fn(&Lease) -> (Fate, Hearing),
    ) -> Outcome {
        let all = self.leases.values().filter(|lease| lease.protocol == protocol);
        let mut seen: Vec<_> = all.map(|lease| (lease.grant.lease, look(lease))).collect();
        seen.iter().for_each(|(id, (_, hearing))| self.note_hearing(*id, *hearing));
        seen.retain(|(_, (fate, _))| *fate != Fate::Stay);
        seen.sort_unstable_by_key(|(id, _)| *id);
        let mut outcome = Outcome::default();
        for (id, (fate, _)) in seen {
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

    fn note_hearing(&mut self, id: LeaseId, hearing: Hearing) {
        match hearing {
            Hearing::Lately => drop(self.quiet.remove(&id)),
            Hearing::NotYet | Hearing::Silent => drop(self.quiet.insert(id, hearing)),
        }
        let nobody = self.leases.get(&id).is_some_and(|lease| lease.grant.user.is_anonymous());
        if nobody && hearing == Hearing::NotYet {
            self.strangers.insert(id);
        } else {
            self.strangers.remove(&id);
        }
    }

    /// Whether the client of a lease was heard when somebody looked last.
    pub(super) fn hearing(&self, id: LeaseId) -> Hearing {
        self.quiet.get(&id).copied().unwrap_or(Hearing::Lately)
    }

    /// The leases of an account by this protocol, oldest first.
    pub fn find(&self, user: &UserName, protocol: Protocol) -> Vec<Lease> {
        let leases = self.leases_of(user).into_iter().filter_map(|id| self.leases.get(&id));
        leases.filter(|lease| lease.protocol == protocol).cloned().collect()
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

    pub(super) fn lease(&self, now: Time, wish: &Wish, choice: &Choice) -> Lease {
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
                Keep::For(lasts) | Keep::WhileHeard { lasts, .. } => Some(now.after(lasts)),
            },
        };
        let told = match wish.keep {
            Keep::WithConnection | Keep::For(_) => Told::default(),
            Keep::WhileHeard { told, .. } => told,
        };
        Lease { grant, protocol: wish.protocol, granted: now, told }
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
    pub(super) fn enter(&mut self, lease: Lease) {
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

    /// Gives places that nobody had all over the pools instead of in order, by a secret: so nobody finds a client by counting
    /// from another (RFC 6169 section 5.1). Who has a place keeps it.
    pub fn strew(&mut self, key: u64) {
        self.order = Order::Strewn(key);
        self.cut_pools();
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
        self.pools = cut.map(|pool| Places::new(*pool, &self.fences, self.order)).collect();
        for (prefix, (user, at)) in std::mem::take(&mut self.elsewhere) {
            match self.place_of(prefix) {
                Some((pool, n)) => {
                    let in_use = self.held.contains_key(&prefix) || self.bindings.is_pooled(prefix);
                    // Nothing is kept in mind for nobody in particular.
                    if in_use || !user.as_ref().is_some_and(UserName::is_anonymous) {
                        self.pools[pool].assign(n, user, in_use, at);
                    }
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

/// The client's outer address, where it is known.
pub fn peer(outer: &Outer) -> Option<Ipv4Addr> {
    match outer {
        Outer::Proto41 { remote, .. } => Some(*remote),
        Outer::Udp { remote: UdpRemote::AnyPort { addr, .. }, .. } => Some(*addr),
        Outer::Udp { remote, .. } => remote.endpoint().map(|at| *at.ip()),
    }
}

fn forget<K: std::hash::Hash + Eq>(map: &mut HashMap<K, BTreeSet<LeaseId>>, key: &K, id: LeaseId) {
    let Some(ids) = map.get_mut(key) else { return };
    ids.remove(&id);
    if ids.is_empty() {
        map.remove(key);
    }
}
