//! What clients on the links of a process have: leases out of hosts' own addresses and prefixes, and out of pools. Pure.
//!
//! One shelf for all links: no two live leases have an address in common, and none outlives its time. What changes is
//! collected, to be written down before anybody is told. `now` is seconds of a clock that nobody sets; it, the link and the
//! sender are set before each message.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::net::Ipv6Addr;
use std::sync::Arc;

use sixway_dataplane::update::Ipv6Prefix;

use super::index::Index;
use super::plan::{HostPlan, Life, Plan, Space};
use super::shortage::{News, Shortages};
use super::vacancy::{Extent, Vacancy};
use crate::broker::binding::{mix, reserved_until};
use crate::broker::{BindKey, BindKind, BindWish};
use crate::dhcpv6::session::{Known, Lack, Leases};

/// The most leases of all links.
pub const MAX_LEASES: usize = 1 << 20;
/// The most leases of one client, on all links.
pub const MAX_OF_CLIENT: usize = 16;
/// How many addresses that a client has declined are given to nobody at a time; one more frees its oldest.
pub const MAX_DECLINED: usize = 4;
/// How many declined addresses are looked through for one of a pool that has nothing else.
const DECLINED_LOOKED_AT: usize = 1024;
/// For how long a prefix is given to nobody that could not be routed, in seconds.
const UNROUTABLE: u32 = 60;
/// Leases that there is always room to know as not on the disk yet.
const UNKEPT: usize = 1 << 16;
/// When a lease ends that never does.
pub const NEVER: u64 = u64::MAX;

/// Something that a client has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Whose, and on which link; an empty client: nobody may have it for a while.
    pub key: BindKey,
    /// What; an address is a prefix of 128 bits.
    pub prefix: Ipv6Prefix,
    /// For how long it was last given.
    pub life: Life,
    /// When it ends, in seconds of the shelf's clock; [`NEVER`].
    pub until: u64,
    /// Where the client is on the link, if it is on it and not behind a relay.
    pub peer: Option<Ipv6Addr>,
    /// The same, if the client lets itself be told that something has changed.
    pub reach: Option<Ipv6Addr>,
}

/// What has become of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is there, new or for longer.
    Has(Lease),
    /// It is not there any more.
    Gone(Lease),
}

impl Change {
    /// The lease.
    pub fn lease(&self) -> &Lease {
        let (Self::Has(lease) | Self::Gone(lease)) = self;
        lease
    }
}

/// What a wish comes to.
enum Due {
    /// What the client has already, at least one.
    Has(Vec<(Ipv6Prefix, Life)>),
    /// Something else, beside what it has on other links until that is over; or what is its own wherever it is.
    New { prefix: Ipv6Prefix, life: Life },
}

impl Due {
    fn first(&self) -> Option<Ipv6Prefix> {
        match self {
            Self::Has(given) => given.first().map(|(prefix, _)| *prefix),
            Self::New { prefix, .. } => Some(*prefix),
        }
    }
}

/// The numbers of the last messages that clients have proved to be their own.
pub type Proofs = HashMap<Box<[u8]>, u64>;

/// All leases of a process.
#[derive(Debug)]
pub struct Shelf {
    plan: Plan,
    all: Index,
    /// What is free in each pool.
    vacancies: HashMap<Extent, Vacancy>,
    /// Leases of nobody, those that end first in front.
    idle: BTreeSet<(u64, Ipv6Prefix)>,
    /// What clients have declined, oldest first; some may have ended.
    declined: HashMap<Box<[u8]>, VecDeque<Ipv6Prefix>>,
    changes: Vec<Change>,
    /// How many there have been.
    changed: u64,
    /// Leases that are not on the disk as they are here, with the number of their last change.
    unkept: HashMap<Ipv6Prefix, u64>,
    /// Nothing can be kept now, so nothing is promised.
    is_closed: bool,
    is_refused: bool,
    /// Leases that have not been settled yet: nobody has been told of them.
    fresh: HashSet<Ipv6Prefix>,
    /// Which link relays have named for what is set aside for hosts, if it is not the one that they were heard on.
    away: HashMap<Ipv6Prefix, Arc<str>>,
    /// What those who are known by their lines have called themselves last.
    faces: HashMap<Arc<[u8]>, Arc<[u8]>>,
    /// What the answer to this message tells of.
    told: Vec<(BindKey, Ipv6Prefix)>,
    proofs: Proofs,
    new_proofs: Proofs,
    shortages: Shortages,
    now: u64,
    link: Arc<str>,
    peer: Option<Ipv6Addr>,
}

impl Shelf {
    /// The leases of all links, with those that were written down.
    pub fn new(plan: Plan, kept: Vec<Lease>, now: u64) -> Self {
        let mut shelf = Self {
            plan,
            all: Index::default(),
            vacancies: HashMap::new(),
            idle: BTreeSet::new(),
            declined: HashMap::new(),
            changes: Vec::new(),
            changed: 0,
            unkept: HashMap::new(),
            is_closed: false,
            is_refused: false,
            fresh: HashSet::new(),
            away: HashMap::new(),
            faces: HashMap::new(),
            told: Vec::new(),
            proofs: Proofs::new(),
            new_proofs: Proofs::new(),
            shortages: Shortages::default(),
            now,
            link: Arc::default(),
            peer: None,
        };
        for lease in kept {
            // Two that overlap were never written; if a hand has done so, the first stays.
            if shelf.all.meeting(lease.prefix).is_none() {
                shelf.put(lease);
            }
        }
        // On the disk, all of them.
        (shelf.changes, shelf.unkept, shelf.fresh) = (Vec::new(), HashMap::new(), HashSet::new());
        shelf.handle_timeout(now);
        shelf.withdraw();
        shelf.lay_out();
        shelf
    }

    /// From now on this may be given. What is set aside for somebody else now, or is the server's own, is taken from who has
    /// it.
    pub fn configure(&mut self, plan: Plan) {
        self.plan = plan;
        // Links may have other names now. Who is not known any more is not known by any name.
        self.away.clear();
        self.faces.retain(|line, _| self.plan.host(line).is_some());
        self.withdraw();
        self.lay_out();
    }

    /// The plan in force.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    fn withdraw(&mut self) {
        let lost = |lease: &&Lease| {
            let of_somebody = !lease.key.client.is_empty();
            of_somebody
                && (self.plan.is_anothers(lease.prefix, &lease.key.client) || self.plan.is_ours(lease.prefix))
        };
        let gone: Vec<Ipv6Prefix> = self.all.iter().filter(lost).map(|lease| lease.prefix).collect();
        gone.into_iter().for_each(|prefix| self.take(prefix));
    }

    /// Finds out anew what is free in each pool.
    fn lay_out(&mut self) {
        self.vacancies.clear();
        for extent in self.plan.extents() {
            let mut vacancy = Vacancy::new(extent, self.plan.fences(extent));
            self.all.iter().for_each(|lease| vacancy.occupy(lease.prefix));
            self.vacancies.insert(extent, vacancy);
        }
    }

    /// The message that comes next: when, on which link, and where its sender is on it if that is no relay.
    pub fn next(&mut self, now: u64, link: &str, peer: Option<Ipv6Addr>) {
        self.handle_timeout(now);
        if *self.link != *link {
            self.link = link.into();
        }
        self.peer = peer;
        self.told.clear();
        self.is_refused = false;
    }

    /// Nothing can be kept: from now on nothing is given, for longer or taken back, but what is on the disk as it is here.
    /// What is over ends all the same.
    pub fn close(&mut self) {
        self.is_closed = true;
    }

    /// All is as ever again.
    pub fn open(&mut self) {
        self.is_closed = false;
    }

    /// Whether something was refused to the last message because nothing can be kept.
    pub fn is_refused(&self) -> bool {
        self.is_refused
    }

    /// These changes are on the disk; the last of them, or one that came with no other, had this number.
    pub fn kept(&mut self, changes: &[Change], last: u64) {
        for prefix in changes.iter().map(|change| change.lease().prefix) {
            if let Entry::Occupied(own) = self.unkept.entry(prefix)
                && *own.get() <= last
            {
                own.remove();
            }
        }
        // What a slow disk has made it need once it does not keep.
        if self.unkept.is_empty() && self.unkept.capacity() > UNKEPT {
            self.unkept = HashMap::new();
        }
    }

    /// Whether nothing can be kept, which the message is refused for.
    fn refuses(&mut self) -> bool {
        self.is_refused |= self.is_closed;
        self.is_closed
    }

    /// Ends what is over.
    pub fn handle_timeout(&mut self, now: u64) {
        self.now = now;
        while let Some(prefix) = self.all.over(now) {
            self.take(prefix);
        }
    }

    /// When the next lease ends, by the shelf's clock.
    pub fn poll_timeout(&self) -> Option<u64> {
        self.all.first_end()
    }

    /// What has changed since this was asked last.
    pub fn poll_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// What the answer to the last message tells of, and whose that is.
    pub fn poll_told(&mut self) -> Vec<(BindKey, Ipv6Prefix)> {
        std::mem::take(&mut self.told)
    }

    /// Whether there are changes that have not been asked for.
    pub fn has_news(&self) -> bool {
        !self.changes.is_empty() || !self.new_proofs.is_empty()
    }

    /// How many changes there have been, each of what clients have proved too: the number of the last one.
    pub fn changes(&self) -> u64 {
        self.changed
    }

    /// Takes over what clients had proved before.
    pub fn recall_proofs(&mut self, proofs: Proofs) {
        self.proofs = proofs;
    }

    /// What clients have proved since this was asked last.
    pub fn poll_proofs(&mut self) -> Proofs {
        std::mem::take(&mut self.new_proofs)
    }

    /// What is set aside or in a pool here, and in no lease must lead anywhere.
    pub fn spaces(&self) -> BTreeSet<Ipv6Prefix> {
        self.plan.spaces_here()
    }

    /// Forgets what a client has with one number, on any link; says whether there was anything.
    pub fn forget(&mut self, kind: BindKind, number: u32, client: &[u8]) -> bool {
        let links = self.plan.sites().map(|site| site.name.clone());
        let client: Arc<[u8]> = client.into();
        let keys =
            links.map(|tunnel| BindKey { tunnel: tunnel.into(), client: client.clone(), kind, number });
        let bound: Vec<Ipv6Prefix> = keys.flat_map(|key| self.bound(&key)).collect();
        bound.iter().for_each(|prefix| self.take(*prefix));
        !bound.is_empty()
    }

    /// Ends the lease of just this; says whether there was one.
    pub fn end(&mut self, prefix: Ipv6Prefix) -> bool {
        let was = self.all.get(prefix).is_some();
        self.take(prefix);
        was
    }

    /// These changes are on the disk, and what could be routed of them is: whoever has them from now on may have been told.
    pub fn settled(&mut self, changes: &[Change]) {
        for Lease { key, prefix, .. } in changes.iter().map(Change::lease) {
            if self.all.get(*prefix).is_none_or(|now| now.key == *key) {
                self.fresh.remove(prefix);
            }
        }
        // What many at once have made it need once it does not keep.
        if self.fresh.is_empty() && self.fresh.capacity() > UNKEPT {
            self.fresh = HashSet::new();
        }
    }

    /// A lease could not be routed. One that nobody has been told of is taken back, and the prefix given to nobody for a while, so
    /// that its client is given another one; one of longer standing stays as it was promised.
    pub fn refuse(&mut self, prefix: Ipv6Prefix) {
        let Some(lease) = self.all.get(prefix).filter(|_| self.fresh.contains(&prefix)).cloned() else {
            return;
        };
        self.take(prefix);
        let nobody = BindKey { client: Arc::default(), ..lease.key };
        let life = Life { preferred: 0, valid: UNROUTABLE };
        let until = self.now.saturating_add(UNROUTABLE.into());
        self.put(Lease { key: nobody, prefix, life, until, peer: None, reach: None });
    }

    /// Whether it is to be said at once that a pool has nothing left.
    pub fn is_short_anew(&self) -> bool {
        self.shortages.is_news()
    }

    /// Pools that have nothing left since this was asked last, and those that have room again.
    pub fn poll_shortages(&mut self) -> Vec<(Extent, News)> {
        let has_room = |pool| self.vacancies.get(&pool).map(Vacancy::has_room);
        self.shortages.poll(self.now, has_room)
    }

    /// Pools that somebody was refused something of, and that have had no room since.
    pub fn short(&self) -> impl Iterator<Item = Extent> {
        self.shortages.pools()
    }

    /// The lease of just this.
    pub fn get(&self, prefix: Ipv6Prefix) -> Option<&Lease> {
        self.all.get(prefix)
    }

    /// How many leases there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// All leases.
    pub fn iter(&self) -> impl Iterator<Item = &Lease> {
        self.all.iter()
    }

    /// All leases behind this prefix, in the order of prefixes.
    pub fn after(&self, last: Option<Ipv6Prefix>) -> impl Iterator<Item = &Lease> {
        self.all.after(last)
    }

    /// What may be told of a lease; nothing of what is nobody's.
    fn known(&self, lease: &Lease) -> Option<Known> {
        let Lease { key, prefix, life, until, .. } = lease;
        let left = u32::try_from(until.saturating_sub(self.now)).ok().filter(|_| *until != NEVER);
        (!key.client.is_empty()).then(|| Known {
            client: key.client.clone(),
            link: self
                .away
                .get(prefix)
                .cloned()
                .unwrap_or_else(|| self.plan.link_of(&key.tunnel, *prefix).into()),
            prefix: *prefix,
            given: Some(*life),
            left,
        })
    }

    fn put(&mut self, mut lease: Lease) {
        // Leases of one link have its name in common.
        if *lease.key.tunnel == *self.link {
            lease.key.tunnel = self.link.clone();
        }
        let (prefix, until) = (lease.prefix, lease.until);
        if let Some(old) = self.all.get(prefix).filter(|old| old.key.client.is_empty()) {
            self.idle.remove(&(old.until, prefix));
        }
        if lease.key.client.is_empty() {
            self.idle.insert((until, prefix));
        }
        self.changed += 1;
        self.unkept.insert(prefix, self.changed);
        self.changes.push(Change::Has(lease.clone()));
        if !lease.key.client.is_empty() && self.all.get(prefix).is_none_or(|old| old.key != lease.key) {
            self.fresh.insert(prefix);
        }
        if !self.all.put(lease) {
            self.vacancies.values_mut().for_each(|vacancy| vacancy.occupy(prefix));
        }
    }

    fn take(&mut self, prefix: Ipv6Prefix) {
        if let Some(lease) = self.all.take(prefix) {
            self.idle.remove(&(lease.until, prefix));
            self.vacate(prefix);
            self.changed += 1;
            self.unkept.remove(&prefix);
            self.fresh.remove(&prefix);
            self.away.remove(&prefix);
            self.changes.push(Change::Gone(lease));
        }
    }

    fn vacate(&mut self, prefix: Ipv6Prefix) {
        let mut vacancies = std::mem::take(&mut self.vacancies);
        vacancies.values_mut().for_each(|vacancy| {
            vacancy.vacate(prefix, |place| self.all.meeting(place).is_none());
        });
        self.vacancies = vacancies;
    }

    /// What a client would get, beside what is `taken` in the same message.
    fn choose(&self, wish: &BindWish, taken: &[Ipv6Prefix]) -> Option<(Ipv6Prefix, Life)> {
        let own = self.plan.host(&wish.key.client);
        let set_aside = own.and_then(|host| self.set_aside(host, wish, taken));
        if wish.only_fixed || set_aside.is_some() {
            return set_aside;
        }
        let here = self.plan.on(&wish.key.tunnel, wish.link);
        match wish.key.kind {
            // A host has what its statement says, and nothing of the link's.
            BindKind::Address => {
                let range = match own {
                    Some(host) => host.pool.as_ref(),
                    None => here?.pool.as_ref(),
                }?;
                Some((self.pooled(range.extent(), range.lowest_first, wish, taken)?, range.life))
            }
            BindKind::Prefix => {
                let spaces = match own {
                    Some(host) => &host.spaces,
                    None => &here?.spaces,
                };
                let mut spaces: Vec<_> = spaces.iter().collect();
                spaces.sort_by_key(|space| wish.distance(space.len));
                let found = |space: &&Space| self.pooled(space.extent(), false, wish, taken);
                spaces.iter().find_map(|space| Some((found(space)?, space.life)))
            }
        }
    }

    /// Of the host's own: what it asks for, else one of the length that it asks for, else the first free one. What it has on
    /// another link comes last: it has moved.
    fn set_aside(
        &self,
        host: &HostPlan,
        wish: &BindWish,
        taken: &[Ipv6Prefix],
    ) -> Option<(Ipv6Prefix, Life)> {
        let list = match wish.key.kind {
            BindKind::Address => &host.addresses,
            BindKind::Prefix => &host.prefixes,
        };
        let untaken = |prefix: Ipv6Prefix| {
            let meets = |other: &Ipv6Prefix| other.covers(prefix) || prefix.covers(*other);
            !self.plan.is_ours(prefix)
                && !self.plan.is_anothers(prefix, &wish.key.client)
                && !taken.iter().any(meets)
        };
        let free =
            || list.iter().filter(|(prefix, _)| untaken(*prefix) && self.all.meeting(*prefix).is_none());
        let hinted = free().find(|(prefix, _)| wish.hints.contains(prefix));
        let long = || free().find(|(prefix, _)| Some(prefix.prefix_len()) == wish.length);
        let moved = || {
            let left =
                |lease: &Lease| lease.key.client == wish.key.client && lease.key.tunnel != wish.key.tunnel;
            list.iter().find(|(prefix, _)| untaken(*prefix) && self.all.get(*prefix).is_some_and(left))
        };
        hinted.or_else(long).or_else(|| free().next()).or_else(moved).copied()
    }

    /// Out of a pool: what is asked for if it is free, else a free place where chance leads or the lowest one, else what
    /// somebody has declined and will come back first.
    fn pooled(
        &self,
        extent: Extent,
        lowest_first: bool,
        wish: &BindWish,
        taken: &[Ipv6Prefix],
    ) -> Option<Ipv6Prefix> {
        let vacancy = self.vacancies.get(&extent)?;
        let is_address = extent.len == 128;
        let usable = |addr: Ipv6Addr| if is_address { is_usable(addr) } else { Ok(()) };
        let hinted = wish.hints.iter().find(|hint| vacancy.is_free(**hint) && usable(hint.addr()).is_ok());
        let chance = |n| scattered(wish.salt, n);
        let free = || if lowest_first { vacancy.lowest(usable) } else { vacancy.choose(chance, usable) };
        hinted.copied().or_else(free).or_else(|| {
            let idle = self.idle.iter().take(DECLINED_LOOKED_AT).map(|(_, prefix)| *prefix);
            idle.filter(|_| is_address).find(|prefix| {
                extent.contains(*prefix) && !taken.contains(prefix) && !self.plan.is_set_aside(*prefix)
            })
        })
    }

    /// The client has this, from now on; a lease that is on the disk just so needs nothing.
    fn renew(&mut self, wish: &BindWish, prefix: Ipv6Prefix, life: Life) -> Result<(), Lack> {
        let lease = self.wished(wish, prefix, life);
        if self.all.get(prefix) == Some(&lease) && !self.unkept.contains_key(&prefix) {
            self.stand(wish, prefix);
            return Ok(());
        }
        if self.refuses() {
            return Err(Lack);
        }
        self.put(lease);
        self.stand(wish, prefix);
        Ok(())
    }

    /// Keeps in mind on which link that is which says nothing of it itself: as many as are set aside.
    fn stand(&mut self, wish: &BindWish, prefix: Ipv6Prefix) {
        let link = self.plan.name(&wish.key.tunnel, wish.link);
        match link.filter(|link| **link != *wish.key.tunnel && self.plan.is_own(prefix)) {
            Some(link) => drop(self.away.insert(prefix, link.into())),
            None if link.is_some() => drop(self.away.remove(&prefix)),
            // A link that nobody knows says nothing.
            None => {}
        }
    }

    /// A lease from now on, of whoever sends this message. Who was on the link stays known there, whatever address a message
    /// comes from and through whatever relay.
    fn lease(&self, key: &BindKey, prefix: Ipv6Prefix, life: Life) -> Lease {
        let until = if life.valid == u32::MAX { NEVER } else { self.now.saturating_add(life.valid.into()) };
        let before = self.all.get(prefix).filter(|lease| lease.key == *key).and_then(|lease| lease.peer);
        let peer = self.peer.filter(Ipv6Addr::is_unicast_link_local).or(before).or(self.peer);
        Lease { key: key.clone(), prefix, life, until, peer, reach: None }
    }

    /// The same for a wish: whom a relay has heard on another link is not on this one any more.
    fn wished(&self, wish: &BindWish, prefix: Ipv6Prefix, life: Life) -> Lease {
        let lease = self.lease(&wish.key, prefix, life);
        let peer = lease.peer.filter(|_| self.plan.is_here(&wish.key.tunnel, wish.link));
        Lease { peer, reach: wish.reach, ..lease }
    }

    /// What a wish comes to, beside what is `taken` in the same message. Offers and leases are judged by this alone.
    fn judge(&mut self, wish: &BindWish, taken: &[Ipv6Prefix]) -> Option<Due> {
        let (client, place) = (&wish.key.client, (&*wish.key.tunnel, wish.link));
        let bound = self.bound(&wish.key);
        let given = |prefix: &Ipv6Prefix| Some((*prefix, self.plan.life_on(client, *prefix, place)?));
        let given: Vec<(Ipv6Prefix, Life)> = bound.iter().filter_map(given).collect();
        if !given.is_empty() {
            return Some(Due::Has(given));
        }
        // Who has something that is not given here, or not any more, is known, and is given something beside it.
        let only_fixed = wish.only_fixed && bound.is_empty();
        let chosen = self.choose(&BindWish { only_fixed, ..wish.clone() }, taken);
        if chosen.is_none() && !only_fixed {
            let pools = self.plan.pools_for(client, wish.key.kind, place);
            pools.into_iter().for_each(|pool| self.shortages.note(pool, self.now));
        }
        let (prefix, life) = chosen?;
        // What moves is no more than before. All else that the client has counts, on whichever link: anybody may call himself by
        // its name there, so none of it gives way before its time is over.
        let moves = |prefix: &Ipv6Prefix| self.all.get(*prefix).is_some_and(|old| old.key.client == *client);
        let more = taken.iter().filter(|prefix| !moves(prefix)).count();
        let of_client = self.all.of_client(client).count() + more;
        let has_room = of_client < MAX_OF_CLIENT && self.all.len() + taken.len() < MAX_LEASES;
        (has_room || moves(&prefix)).then_some(Due::New { prefix, life })
    }

    /// Whether a client that has it has left the link that it is given on.
    fn is_of_another_link(&self, key: &BindKey, prefix: Ipv6Prefix, link: Option<Ipv6Addr>) -> bool {
        let is_given = self.plan.lives(&key.client, prefix).next().is_some();
        is_given && self.plan.life_on(&key.client, prefix, (&key.tunnel, link)).is_none()
    }
}

/// A number that says nothing of the one before it.
fn scattered(salt: u64, n: u64) -> u128 {
    let low = mix(salt.wrapping_add(n));
    (u128::from(mix(!low)) << 64) | u128::from(low)
}

/// Whether a host may have the address, else up to where none may: none of link scope or multicast, none with a reserved
/// identifier (RFC 4291 section 2.6.1, RFC 5453).
fn is_usable(addr: Ipv6Addr) -> Result<(), u128> {
    if addr.is_multicast() {
        return Err(u128::MAX);
    }
    if addr.is_unicast_link_local() {
        return Err(u128::from(addr) | (u128::MAX >> 10));
    }
    reserved_until(addr).map_or(Ok(()), Err)
}

mod leases;
#[cfg(test)]
mod tests;
