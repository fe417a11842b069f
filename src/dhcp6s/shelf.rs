//! What clients on a link have: leases out of hosts' own addresses and prefixes, and out of pools. Pure.
//!
//! No two live leases have an address in common, and none outlives its time. What changes is collected, to be written
//! down before anybody is told. `now` is Unix seconds, set before each message; who sends it is set likewise.

use std::cell::RefCell;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv6Addr;
use std::time::Duration;

use sixway_dataplane::update::Ipv6Prefix;

use super::plan::{HostPlan, Life, Plan, Range, Space};
use crate::broker::{BindKey, BindKind, BindWish};
use crate::dhcpv6::session::{Lack, Leases};

/// The most leases of one link.
pub const MAX_LEASES: usize = 1 << 20;
/// The most leases of one client.
pub const MAX_OF_CLIENT: usize = 64;
/// How many places are tried where chance leads, before the first free one is looked for.
const TRIES: u64 = 32;
/// When a lease ends that never does.
pub const NEVER: u64 = u64::MAX;

/// Something that a client has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Whose; an empty client: nobody may have it for a while.
    pub key: BindKey,
    /// What; an address is a prefix of 128 bits.
    pub prefix: Ipv6Prefix,
    /// For how long it was last given.
    pub life: Life,
    /// When it ends, in Unix seconds; [`NEVER`].
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

/// The numbers of the last messages that clients have proved to be their own.
pub type Proofs = HashMap<Box<[u8]>, u64>;

/// All leases of one link.
#[derive(Debug)]
pub struct Shelf {
    link: Box<str>,
    plan: Plan,
    all: BTreeMap<Ipv6Prefix, Lease>,
    by_key: HashMap<BindKey, BTreeSet<Ipv6Prefix>>,
    of_client: HashMap<Box<[u8]>, usize>,
    deadlines: BTreeSet<(u64, Ipv6Prefix)>,
    /// How many leases of each prefix length there are.
    lengths: BTreeMap<u8, usize>,
    /// How often something has become free.
    freed: u64,
    /// Pools that were searched in vain, and how often something had become free by then.
    full: RefCell<HashMap<Ipv6Prefix, u64>>,
    changes: Vec<Change>,
    proofs: Proofs,
    new_proofs: Proofs,
    now: u64,
    peer: Option<Ipv6Addr>,
}

impl Shelf {
    /// The leases of a link, with those that were written down.
    pub fn new(link: &str, plan: Plan, kept: Vec<Lease>, now: u64) -> Self {
        let mut shelf = Self {
            link: link.into(),
            plan,
            all: BTreeMap::new(),
            by_key: HashMap::new(),
            of_client: HashMap::new(),
            deadlines: BTreeSet::new(),
            lengths: BTreeMap::new(),
            freed: 0,
            full: RefCell::default(),
            changes: Vec::new(),
            proofs: Proofs::new(),
            new_proofs: Proofs::new(),
            now,
            peer: None,
        };
        for lease in kept {
            // Two that overlap were never written; if a hand has done so, the first stays.
            if shelf.meeting(lease.prefix).is_none() {
                shelf.put(lease);
            }
        }
        shelf.changes.clear();
        shelf.handle_timeout(now);
        shelf.withdraw();
        shelf
    }

    /// From now on this may be given. What is set aside for somebody else now is taken from who has it.
    pub fn configure(&mut self, plan: Plan) {
        self.plan = plan;
        self.full.get_mut().clear();
        self.withdraw();
    }

    fn withdraw(&mut self) {
        let others = |lease: &&Lease| {
            !lease.key.client.is_empty() && self.plan.is_anothers(lease.prefix, &lease.key.client)
        };
        let gone: Vec<Ipv6Prefix> = self.all.values().filter(others).map(|lease| lease.prefix).collect();
        gone.into_iter().for_each(|prefix| self.take(prefix));
    }

    /// The message that comes next: when, and where its sender is on the link.
    pub fn next(&mut self, now: u64, peer: Option<Ipv6Addr>) {
        self.handle_timeout(now);
        self.peer = peer;
    }

    /// Ends what is over.
    pub fn handle_timeout(&mut self, now: u64) {
        self.now = now;
        while let Some((_, prefix)) = self.deadlines.first().copied().filter(|(until, _)| *until <= now) {
            self.take(prefix);
        }
    }

    /// When the next lease ends, in Unix seconds.
    pub fn poll_timeout(&self) -> Option<u64> {
        self.deadlines.first().map(|(until, _)| *until)
    }

    /// What has changed since this was asked last.
    pub fn poll_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// How many changes have not been asked for.
    pub fn changes(&self) -> usize {
        self.changes.len() + self.new_proofs.len()
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

    /// Forgets what a client has with one number; says whether there was anything.
    pub fn forget(&mut self, kind: BindKind, number: u32, client: &[u8]) -> bool {
        let key = BindKey { tunnel: self.link.clone(), client: client.into(), kind, number };
        let bound = self.bound(&key);
        bound.iter().for_each(|prefix| self.take(*prefix));
        !bound.is_empty()
    }

    /// The lease of just this.
    pub fn get(&self, prefix: Ipv6Prefix) -> Option<&Lease> {
        self.all.get(&prefix)
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
        self.all.values()
    }

    fn put(&mut self, lease: Lease) {
        self.remove(lease.prefix);
        self.by_key.entry(lease.key.clone()).or_default().insert(lease.prefix);
        *self.of_client.entry(lease.key.client.clone()).or_default() += 1;
        *self.lengths.entry(lease.prefix.prefix_len()).or_default() += 1;
        if lease.until != NEVER {
            self.deadlines.insert((lease.until, lease.prefix));
        }
        self.changes.push(Change::Has(lease.clone()));
        self.all.insert(lease.prefix, lease);
    }

    fn take(&mut self, prefix: Ipv6Prefix) {
        if let Some(lease) = self.remove(prefix) {
            self.freed += 1;
            self.changes.push(Change::Gone(lease));
        }
    }

    fn remove(&mut self, prefix: Ipv6Prefix) -> Option<Lease> {
        let old = self.all.remove(&prefix)?;
        self.deadlines.remove(&(old.until, prefix));
        if let Some(own) = self.by_key.get_mut(&old.key) {
            own.remove(&prefix);
            if own.is_empty() {
                self.by_key.remove(&old.key);
            }
        }
        fewer(&mut self.of_client, old.key.client.clone());
        let len = self.lengths.entry(prefix.prefix_len()).or_insert(1);
        *len -= 1;
        if *len == 0 {
            self.lengths.remove(&prefix.prefix_len());
        }
        Some(old)
    }

    /// A lease that has an address in common with `prefix`.
    fn meeting(&self, prefix: Ipv6Prefix) -> Option<&Lease> {
        let lengths = self.lengths.range(..=prefix.prefix_len()).rev();
        let mut around = lengths.filter_map(|(len, _)| Ipv6Prefix::new(prefix.addr(), *len));
        let inside = || self.all.range(prefix..).next().map(|(_, lease)| lease);
        let around = around.find_map(|wide| self.all.get(&wide));
        around.or_else(|| inside().filter(|lease| prefix.covers(lease.prefix)))
    }

    /// Whether nobody has it and it is not among `taken`.
    fn is_free(&self, prefix: Ipv6Prefix, taken: &[Ipv6Prefix]) -> bool {
        let meets = |other: &Ipv6Prefix| other.covers(prefix) || prefix.covers(*other);
        self.meeting(prefix).is_none() && !taken.iter().any(meets)
    }

    /// What a client would get, beside what is `taken` in the same message.
    fn choose(&self, wish: &BindWish, taken: &[Ipv6Prefix]) -> Option<(Ipv6Prefix, Life)> {
        let own = self.plan.host(&wish.key.client);
        let set_aside = own.and_then(|host| self.set_aside(host, wish, taken));
        if wish.only_fixed || set_aside.is_some() {
            return set_aside;
        }
        let here = self.plan.on(wish.link);
        match wish.key.kind {
            // A host has what its statement says, and nothing of the link's.
            BindKind::Address => {
                let range = match own {
                    Some(host) => host.pool.as_ref(),
                    None => here?.pool.as_ref(),
                }?;
                let addr = self.address(range, wish, taken)?;
                Some((Ipv6Prefix::host(addr), range.life))
            }
            BindKind::Prefix => {
                let spaces = match own {
                    Some(host) => &host.spaces,
                    None => &here?.spaces,
                };
                spaces.iter().find_map(|space| Some((self.prefix(space, wish, taken)?, space.life)))
            }
        }
    }

    /// Of the host's own: what it asks for, else one of the length that it asks for, else the first free one.
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
        let free = || list.iter().filter(|(prefix, _)| self.is_free(*prefix, taken));
        let hinted = free().find(|(prefix, _)| wish.hints.contains(prefix));
        let long = || free().find(|(prefix, _)| Some(prefix.prefix_len()) == wish.length);
        hinted.or_else(long).or_else(|| free().next()).copied()
    }

    fn address(&self, range: &Range, wish: &BindWish, taken: &[Ipv6Prefix]) -> Option<Ipv6Addr> {
        let (first, last) = (u128::from(range.first), u128::from(range.last));
        let free = |addr: &Ipv6Addr| {
            let prefix = Ipv6Prefix::host(*addr);
            is_usable(*addr) && !self.plan.is_set_aside(prefix) && self.is_free(prefix, taken)
        };
        let hints = wish.hints.iter().map(|hint| hint.addr());
        let hinted = hints.filter(|addr| (first..=last).contains(&u128::from(*addr))).find(free);
        let places = (last - first).checked_add(1);
        let chance = || {
            let numbers = (0..TRIES).map(|n| scattered(wish.salt, n));
            numbers.map(|n| Ipv6Addr::from(first + places.map_or(n, |places| n % places))).find(free)
        };
        let in_order = || (first..=last).map(Ipv6Addr::from).take(MAX_LEASES * 2).find(free);
        hinted
            .or_else(|| self.unless_full(Ipv6Prefix::host(range.first), taken, || chance().or_else(in_order)))
    }

    fn prefix(&self, space: &Space, wish: &BindWish, taken: &[Ipv6Prefix]) -> Option<Ipv6Prefix> {
        let free = |prefix: &Ipv6Prefix| !self.plan.is_set_aside(*prefix) && self.is_free(*prefix, taken);
        let fits = |hint: &&Ipv6Prefix| hint.prefix_len() == space.len && space.all.covers(**hint);
        let hinted = wish.hints.iter().filter(fits).find(|hint| free(hint)).copied();
        let places = 1_u128 << (space.len - space.all.prefix_len()).min(127);
        let width = (128 - u32::from(space.len)).min(127);
        let place = |n: u128| Ipv6Prefix::new(Ipv6Addr::from(space.all.bits() | (n << width)), space.len);
        let chance = || (0..TRIES).filter_map(|n| place(scattered(wish.salt, n) % places)).find(free);
        let in_order = || (0..places).take(MAX_LEASES * 2).filter_map(place).find(free);
        hinted.or_else(|| self.unless_full(space.all, taken, || chance().or_else(in_order)))
    }

    /// What is found in a pool; one that was searched in vain is not searched again before something has become free.
    fn unless_full<T>(
        &self,
        pool: Ipv6Prefix,
        taken: &[Ipv6Prefix],
        find: impl FnOnce() -> Option<T>,
    ) -> Option<T> {
        if self.full.borrow().get(&pool) == Some(&self.freed) {
            return None;
        }
        let found = find();
        // What this very message takes is no reason to think so.
        if found.is_none() && taken.is_empty() {
            self.full.borrow_mut().insert(pool, self.freed);
        }
        found
    }

    fn lease(&self, key: &BindKey, prefix: Ipv6Prefix, life: Life) -> Lease {
        let until = if life.valid == u32::MAX { NEVER } else { self.now.saturating_add(life.valid.into()) };
        Lease { key: key.clone(), prefix, life, until, peer: self.peer, reach: None }
    }
}

impl Leases for Shelf {
    fn offer(&mut self, wishes: &[BindWish]) -> Vec<Result<Ipv6Prefix, Lack>> {
        let mut taken = Vec::new();
        let offer = |wish: &BindWish| {
            let mut bound = self.bound(&wish.key).into_iter();
            let given = bound.find(|prefix| self.plan.life(&wish.key.client, *prefix).is_some());
            let prefix = given.or_else(|| Some(self.choose(wish, &taken)?.0));
            taken.extend(prefix);
            prefix.ok_or(Lack)
        };
        wishes.iter().map(offer).collect()
    }

    fn bind(&mut self, wish: &BindWish, _lasts: Duration) -> Result<Vec<Ipv6Prefix>, Lack> {
        let bound = self.bound(&wish.key);
        // What is not given any more ends at its time.
        let given = |prefix: &Ipv6Prefix| Some((*prefix, self.plan.life(&wish.key.client, *prefix)?));
        let given: Vec<(Ipv6Prefix, Life)> = bound.iter().filter_map(given).collect();
        if !given.is_empty() {
            for (prefix, life) in &given {
                self.put(Lease { reach: wish.reach, ..self.lease(&wish.key, *prefix, *life) });
            }
            return Ok(given.into_iter().map(|(prefix, _)| prefix).collect());
        }
        let has = self.of_client.get(&wish.key.client).copied().unwrap_or_default();
        if has >= MAX_OF_CLIENT || self.all.len() >= MAX_LEASES {
            return Err(Lack);
        }
        let (prefix, life) = self.choose(wish, &[]).ok_or(Lack)?;
        self.put(Lease { reach: wish.reach, ..self.lease(&wish.key, prefix, life) });
        Ok(vec![prefix])
    }

    fn bound(&self, key: &BindKey) -> Vec<Ipv6Prefix> {
        self.by_key.get(key).into_iter().flatten().copied().collect()
    }

    fn release(&mut self, prefix: Ipv6Prefix) {
        self.take(prefix);
    }

    fn decline(&mut self, key: &BindKey, prefix: Ipv6Prefix, lasts: Duration) {
        self.take(prefix);
        let nobody = BindKey { client: Box::default(), ..key.clone() };
        let life = Life { preferred: 0, valid: u32::try_from(lasts.as_secs()).unwrap_or(u32::MAX - 1) };
        if life.valid > 0 {
            self.put(Lease { peer: None, ..self.lease(&nobody, prefix, life) });
        }
    }

    fn is_on_link(&self, prefix: Ipv6Prefix, link: Option<Ipv6Addr>) -> bool {
        self.plan.is_given_here(prefix, link)
    }

    fn last_proof(&self, client: &[u8]) -> Option<u64> {
        self.proofs.get(client).copied()
    }

    fn keep_proof(&mut self, client: &[u8], number: u64) {
        // Only who has a key comes so far, and those are as many as the configuration has.
        self.proofs.insert(client.into(), number);
        self.new_proofs.insert(client.into(), number);
    }

    fn lifetimes(&self, prefix: Ipv6Prefix) -> Option<Life> {
        let lease = self.all.get(&prefix);
        let planned = lease.and_then(|lease| self.plan.life(&lease.key.client, prefix));
        // Of an offer, nothing has been kept yet: whoever may have it, its times are the same.
        planned.or_else(|| self.plan.life_of_offer(prefix)).or_else(|| lease.map(|lease| lease.life))
    }
}

/// One less; what is none is not kept.
fn fewer(counts: &mut HashMap<Box<[u8]>, usize>, client: Box<[u8]>) {
    if let Entry::Occupied(mut entry) = counts.entry(client) {
        *entry.get_mut() -= 1;
        if *entry.get() == 0 {
            entry.remove();
        }
    }
}

/// A number that says nothing of the one before it.
fn scattered(salt: u64, n: u64) -> u128 {
    let mix = |x: u64| {
        // The finaliser of SplitMix64.
        let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    };
    let low = mix(salt.wrapping_add(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    (u128::from(mix(!low)) << 64) | u128::from(low)
}

/// Whether a host may have the address: none of link scope or multicast, not all zeros behind the link's prefix (RFC 4291
/// section 2.6.1), none of the reserved identifiers at the end (RFC 5453).
fn is_usable(addr: Ipv6Addr) -> bool {
    let identifier = u128::from(addr) as u64;
    let reserved = (0xfdff_ffff_ffff_ff80..=0xfdff_ffff_ffff_ffff).contains(&identifier);
    !(addr.is_multicast() || addr.is_unicast_link_local() || identifier == 0 || reserved)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compat::dhcp6sconf::{Surroundings, load};
    use proptest::prelude::*;
    use std::io;

    /// A host where every interface is there.
    struct Anywhere;

    impl Surroundings for Anywhere {
        fn read(&self, _: &str) -> io::Result<Vec<u8>> {
            Err(io::ErrorKind::NotFound.into())
        }
        fn has_interface(&self, _: &str) -> bool {
            true
        }
        fn now(&self) -> u64 {
            0
        }
        fn today(&self) -> (i16, i8, i8) {
            (2026, 1, 1)
        }
        fn unix_time(&self, _: (i16, i8, i8), _: (i8, i8)) -> Option<u64> {
            None
        }
    }

    const CONF: &str = "
        interface vs0 { address-pool p 100 200; delegated-prefix-pool 2001:db8:8000::/54 56 100 200; };
        pool p { range 2001:db8:1::10 to 2001:db8:1::17; };
        interface vs1 { address-pool q 10 20; };
        pool q { range 2001:db8:2::10 to 2001:db8:2::17; };
        host a { duid 00:0a; address 2001:db8:1::12 30 40; prefix 2001:db8:a::/48 30 40; prefix 2001:db8:b::/56 30 40; };
        host b { duid 00:0b; prefix 2001:db8:8000:100::/56 infinity; };
    ";

    fn plan(text: &str) -> Plan {
        let loaded = load("x", text.as_bytes(), &Anywhere).unwrap_or_else(|wrong| panic!("{wrong:?}"));
        Plan::new(&loaded.conf, "vs0", ["2001:db8:1::/64".parse().unwrap()])
    }

    fn shelf(text: &str) -> Shelf {
        Shelf::new("vs0", plan(text), Vec::new(), 1000)
    }

    fn wish(client: u8, kind: BindKind, number: u32) -> BindWish {
        BindWish {
            key: BindKey { tunnel: "vs0".into(), client: [0, client][..].into(), kind, number },
            user: None,
            fixed: Vec::new(),
            reserved: Vec::new(),
            only_fixed: false,
            hints: Vec::new(),
            length: None,
            link: None,
            salt: (u64::from(client) << 32) | u64::from(number),
            most: 9,
            reach: None,
        }
    }

    fn bind(shelf: &mut Shelf, wish: &BindWish) -> Option<String> {
        shelf.bind(wish, Duration::ZERO).ok().map(|prefixes| prefixes[0].to_string())
    }

    #[test]
    fn hosts_have_their_own_and_nobody_else_has() {
        let mut shelf = shelf(CONF);
        use BindKind::{Address, Prefix};
        assert_eq!(bind(&mut shelf, &wish(0xa, Address, 1)).as_deref(), Some("2001:db8:1::12/128"));
        assert_eq!(bind(&mut shelf, &wish(0xa, Prefix, 1)).as_deref(), Some("2001:db8:a::/48"));
        // Not the same prefix for a second number, and the right one by its length.
        let second = BindWish { length: Some(56), ..wish(0xa, Prefix, 2) };
        assert_eq!(bind(&mut shelf, &second).as_deref(), Some("2001:db8:b::/56"));
        assert_eq!(bind(&mut shelf, &wish(0xa, Prefix, 3)), None);
        assert_eq!(bind(&mut shelf, &wish(0xb, Address, 1)), None, "a host has nothing of the link's");
        let all: Vec<Option<String>> =
            (0..8).map(|n| bind(&mut shelf, &wish(0x10 + n, Address, 1))).collect();
        assert_eq!(all.iter().flatten().count(), 7, "the host's is not given: {all:?}");
        let all: Vec<Option<String>> = (0..4).map(|n| bind(&mut shelf, &wish(0x10 + n, Prefix, 1))).collect();
        assert_eq!(all.iter().flatten().count(), 3, "{all:?}");
        assert_eq!(
            shelf.lifetimes("2001:db8:1::12/128".parse().unwrap()),
            Some(Life { preferred: 30, valid: 40 })
        );
    }

    #[test]
    fn hints_are_heard_and_relays_choose_their_link() {
        let mut shelf = shelf(CONF);
        let hint =
            BindWish { hints: vec!["2001:db8:1::15/128".parse().unwrap()], ..wish(1, BindKind::Address, 1) };
        assert_eq!(shelf.offer(std::slice::from_ref(&hint))[0], Ok("2001:db8:1::15/128".parse().unwrap()));
        assert_eq!(shelf.poll_changes(), [], "an offer keeps nothing");
        assert_eq!(bind(&mut shelf, &hint).as_deref(), Some("2001:db8:1::15/128"));
        let elsewhere =
            BindWish { link: Some("2001:db8:2::1".parse().unwrap()), ..wish(2, BindKind::Address, 1) };
        assert!(bind(&mut shelf, &elsewhere).unwrap().starts_with("2001:db8:2::1"));
        let unknown =
            BindWish { link: Some("2001:db8:3::1".parse().unwrap()), ..wish(3, BindKind::Address, 1) };
        assert_eq!(bind(&mut shelf, &unknown), None, "of no use there");
        for (addr, on_link) in
            [("2001:db8:1::ffff/128", true), ("2001:db8:9::1/128", false), ("2001:db8:8000::/56", true)]
        {
            assert_eq!(shelf.is_on_link(addr.parse().unwrap(), None), on_link, "{addr}");
        }
    }

    #[test]
    fn a_full_pool_is_searched_once() {
        let mut shelf = shelf(
            "interface vs0 { address-pool p 10; }; pool p { range 2001:db8:1::10 to 2001:db8:1::11; };",
        );
        let (a, b, c) =
            (wish(1, BindKind::Address, 1), wish(2, BindKind::Address, 1), wish(3, BindKind::Address, 1));
        assert!(bind(&mut shelf, &a).is_some() && bind(&mut shelf, &b).is_some());
        let offered = shelf.offer(&[c.clone(), c.clone()]);
        assert_eq!(offered, [Err(Lack), Err(Lack)]);
        assert_eq!(shelf.full.borrow().len(), 1);
        shelf.next(1010, None);
        assert!(bind(&mut shelf, &c).is_some(), "both have ended");
    }

    #[test]
    fn leases_end_in_time_and_declined_addresses_come_back() {
        let mut shelf = shelf(CONF);
        let own = wish(0xa, BindKind::Address, 1);
        let addr: Ipv6Prefix = "2001:db8:1::12/128".parse().unwrap();
        bind(&mut shelf, &own);
        assert_eq!(shelf.poll_timeout(), Some(1040));
        shelf.decline(&own.key, addr, Duration::from_secs(500));
        assert_eq!(bind(&mut shelf, &own), None);
        shelf.next(1500, None);
        assert_eq!(bind(&mut shelf, &own).as_deref(), Some("2001:db8:1::12/128"));
        shelf.next(1540, None);
        assert_eq!((shelf.iter().count(), shelf.poll_timeout()), (0, None));
        bind(&mut shelf, &wish(0xb, BindKind::Prefix, 1));
        assert_eq!(shelf.poll_timeout(), None, "for ever");
    }

    #[test]
    fn a_reload_leaves_bindings_but_not_what_is_somebody_else_s_now() {
        let mut shelf = shelf(CONF);
        let (kept, lost) = (wish(1, BindKind::Address, 1), wish(0xa, BindKind::Prefix, 1));
        let addr = bind(&mut shelf, &kept);
        bind(&mut shelf, &lost);
        shelf.configure(plan("host c { duid 00:0c; prefix 2001:db8:a::/48 5; };"));
        let addr: Ipv6Prefix = addr.unwrap().parse().unwrap();
        assert_eq!(bind(&mut shelf, &kept), None, "it is not given any more");
        assert_eq!(shelf.bound(&kept.key), [addr], "and ends at its time");
        shelf.handle_timeout(1199);
        assert_eq!(shelf.bound(&kept.key), [addr]);
        shelf.handle_timeout(1200);
        assert!(shelf.bound(&kept.key).is_empty());
        assert_eq!(bind(&mut shelf, &lost), None);
        assert_eq!(bind(&mut shelf, &wish(0xc, BindKind::Prefix, 1)).as_deref(), Some("2001:db8:a::/48"));
    }

    #[test]
    fn the_kind_that_is_named_is_forgotten() {
        let mut shelf = shelf(CONF);
        bind(&mut shelf, &wish(0xa, BindKind::Address, 1));
        bind(&mut shelf, &wish(0xa, BindKind::Prefix, 1));
        assert!(
            shelf.forget(BindKind::Address, 1, &[0, 0xa]) && !shelf.forget(BindKind::Address, 1, &[0, 0xa])
        );
        assert_eq!(shelf.bound(&wish(0xa, BindKind::Prefix, 1).key).len(), 1);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Bind(u8, bool, u32),
        Release(u8, bool, u32),
        Decline(u8, u32),
        Wait(u64),
        Back(u64),
        Restart,
        Reload(bool),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (8_u8..20, any::<bool>(), 0_u32..3).prop_map(|(c, a, n)| Step::Bind(c, a, n)),
            2 => (8_u8..20, any::<bool>(), 0_u32..3).prop_map(|(c, a, n)| Step::Release(c, a, n)),
            1 => (8_u8..20, 0_u32..3).prop_map(|(c, n)| Step::Decline(c, n)),
            2 => (0_u64..150).prop_map(Step::Wait),
            1 => (0_u64..50).prop_map(Step::Back),
            1 => Just(Step::Restart),
            1 => any::<bool>().prop_map(Step::Reload),
        ]
    }

    proptest! {
        /// Whatever clients, restarts and the clock do: no two leases overlap, none outlives its time, and what has been
        /// written down is what there is.
        #[test]
        fn leases_never_overlap_nor_outlive_their_time(steps in prop::collection::vec(step(), 0..80)) {
            let other = CONF.replace("host a { duid 00:0a;", "host a { duid 00:0c;");
            let mut shelf = shelf(CONF);
            let mut written: BTreeMap<Ipv6Prefix, Lease> = BTreeMap::new();
            let mut now = 1000;
            let kind = |address| if address { BindKind::Address } else { BindKind::Prefix };
            for step in steps {
                shelf.next(now, None);
                match step {
                    Step::Bind(client, address, number) => {
                        let wish = wish(client, kind(address), number);
                        let offered = shelf.offer(std::slice::from_ref(&wish))[0];
                        let bound = shelf.bind(&wish, Duration::ZERO).map(|all| all[0]);
                        prop_assert_eq!(offered, bound, "what is offered is given");
                    }
                    Step::Release(client, address, number) => {
                        let bound = shelf.bound(&wish(client, kind(address), number).key);
                        bound.into_iter().for_each(|prefix| shelf.release(prefix));
                    }
                    Step::Decline(client, number) => {
                        let key = wish(client, BindKind::Address, number).key;
                        for prefix in shelf.bound(&key) {
                            shelf.decline(&key, prefix, Duration::from_secs(70));
                        }
                    }
                    Step::Wait(seconds) => now += seconds,
                    Step::Back(seconds) => now -= seconds,
                    Step::Restart => {
                        shelf = Shelf::new("vs0", shelf.plan.clone(), written.values().cloned().collect(), now);
                    }
                    Step::Reload(first) => shelf.configure(plan(if first { CONF } else { &other })),
                }
                shelf.handle_timeout(now);
                for change in shelf.poll_changes() {
                    match change {
                        Change::Has(lease) => drop(written.insert(lease.prefix, lease)),
                        Change::Gone(lease) => drop(written.remove(&lease.prefix)),
                    }
                }
                let all: Vec<&Lease> = shelf.iter().collect();
                prop_assert_eq!(&all, &written.values().collect::<Vec<_>>());
                prop_assert!(all.iter().all(|lease| lease.until > now));
                for (n, one) in all.iter().enumerate() {
                    let meets = |two: &&&Lease| one.prefix.covers(two.prefix) || two.prefix.covers(one.prefix);
                    prop_assert!(!all[n + 1..].iter().any(|two| meets(&two)), "{:?}", one);
                }
            }
        }
    }
}
