//! Pools: address space cut into places of one size, each free, in mind for an account, or in use.
//!
//! A place stays in mind for whoever had it last. New ones are taken in order, or strewn by a key, so that nobody finds a
//! neighbour by counting (RFC 6169 section 5.1); when there is none left, the one that was unused for longest changes hands. Each step takes logarithmic time, whatever the pool's size: only places that were
//! ever given take memory. Fences (the router's own networks, static tunnels, prefixes of accounts) are never given.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::Ipv6Addr;

use sixway_dataplane::update::Ipv6Prefix;

use super::{Pair, Time, UserName};

/// The most bits that number the places of a pool: 2^24 places.
pub const MAX_PLACE_BITS: u8 = 24;
/// How many address pairs a pool has: they end with a number of 16 bits whose last two count within the pair.
pub const PAIRS: u32 = (1 << 14) - 1;
/// Addresses that a pair takes.
const PAIR_SIZE: u128 = 4;

/// `[[pool]]`: address space that is given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pool {
    /// All of it.
    pub prefix: Ipv6Prefix,
    /// In what pieces.
    pub kind: PoolKind,
}

/// In what pieces a pool is given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PoolKind {
    /// Networks of this prefix length in bits, longer than the pool's by at most [`MAX_PLACE_BITS`].
    Networks(u8),
    /// Address pairs; the pool is a /112 or larger.
    Pairs,
    /// Single addresses for clients inside tunnels; they are not numbered.
    Addresses,
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (prefix, places) = (self.prefix, self.places());
        match self.kind {
            PoolKind::Networks(len) => write!(f, "{prefix} ({places} networks of /{len})"),
            PoolKind::Pairs => write!(f, "{prefix} ({places} address pairs)"),
            PoolKind::Addresses => write!(f, "{prefix} (addresses)"),
        }
    }
}

impl Pool {
    /// How many places there are.
    pub fn places(self) -> u32 {
        match self.kind {
            PoolKind::Networks(len) => 1 << len.saturating_sub(self.prefix.prefix_len()).min(MAX_PLACE_BITS),
            PoolKind::Pairs => PAIRS,
            PoolKind::Addresses => 0,
        }
    }

    /// What place `n` is to the tables: a network, or the client's address.
    pub fn place(self, n: u32) -> Ipv6Prefix {
        match self.kind {
            PoolKind::Networks(len) => {
                let bits = self.prefix.bits() + (u128::from(n) << (128 - u32::from(len)).min(127));
                Ipv6Prefix::new(bits.into(), len).unwrap_or(Ipv6Prefix::host(bits.into()))
            }
            PoolKind::Pairs => Ipv6Prefix::host(self.pair(n).client),
            PoolKind::Addresses => self.prefix,
        }
    }

    /// The number of the place that is exactly `prefix`.
    pub fn number(self, prefix: Ipv6Prefix) -> Option<u32> {
        if !self.prefix.covers(prefix) {
            return None;
        }
        let inside = prefix.bits() - self.prefix.bits();
        let n = match self.kind {
            PoolKind::Networks(len) => inside >> (128 - u32::from(len)).min(127),
            PoolKind::Pairs => (inside / PAIR_SIZE).checked_sub(1)?,
            PoolKind::Addresses => return None,
        };
        let n = u32::try_from(n).ok().filter(|n| *n < self.places())?;
        (self.place(n) == prefix).then_some(n)
    }

    /// Address pair `n`.
    pub fn pair(self, n: u32) -> Pair {
        let base = self.prefix.bits() + (u128::from(n) + 1) * PAIR_SIZE;
        Pair { number: n, server: Ipv6Addr::from(base | 1), client: Ipv6Addr::from(base | 2) }
    }

    /// The places that have an address in common with `fence`: from the first to the last.
    fn touched(self, fence: Ipv6Prefix) -> Option<(u32, u32)> {
        let last = self.places().checked_sub(1)?;
        if fence.covers(self.prefix) {
            return Some((0, last));
        }
        if !self.prefix.covers(fence) {
            return None;
        }
        let low = fence.bits() - self.prefix.bits();
        let high = low | u128::MAX.checked_shr(fence.prefix_len().into()).unwrap_or(0);
        let number = |inside: u128| match self.kind {
            PoolKind::Networks(len) => Some(inside >> (128 - u32::from(len)).min(127)),
            PoolKind::Pairs => (inside / PAIR_SIZE).checked_sub(1),
            PoolKind::Addresses => None,
        };
        let first = number(low).unwrap_or(0);
        let end = number(high)?;
        let first = u32::try_from(first).ok().filter(|n| *n <= last)?;
        Some((first, u32::try_from(end).unwrap_or(last).min(last)))
    }
}

/// Whose a place is.
#[derive(Clone, Debug)]
struct Place {
    user: Option<UserName>,
    in_use: bool,
    since: Time,
}

/// A pool with what became of its places.
#[derive(Debug)]
pub struct Places {
    pool: Pool,
    /// Places that were ever given.
    known: HashMap<u32, Place>,
    by_user: HashMap<UserName, BTreeSet<u32>>,
    /// Known places that nobody uses, longest unused first.
    idle: BTreeSet<(Time, u32)>,
    /// Ranges that are never given, by their first place, with their last; they do not touch.
    fenced: BTreeMap<u32, u32>,
    /// Every place that comes before in `order` is known, spare or fenced.
    next: u32,
    order: Order,
    /// Places that were given and are in mind for nobody.
    spare: BTreeSet<u32>,
    /// Places behind no fence that are not known.
    untouched: u32,
}

/// In what order places are given for the first time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// From the first to the last.
    #[default]
    Counted,
    /// All over the pool, by a secret. What was given is remembered as it is, so every start may have a key of its own.
    Strewn(u64),
}

impl Order {
    /// The `n`th of `places` places: each is met exactly once.
    fn place(self, n: u32, places: u32) -> u32 {
        let Self::Strewn(key) = self else { return n };
        let half = (u32::BITS - places.saturating_sub(1).leading_zeros()).div_ceil(2).max(1);
        let mut at = n;
        // The permutation is of a power of four; where that is more than there are places, it is gone along further.
        loop {
            at = strew(at, key, half);
            if at < places {
                return at;
            }
        }
    }
}

/// A permutation of the numbers of twice `half` bits by a key: a Feistel network of four rounds, which tells a client that
/// knows some places nothing useful about others. No cipher: a place is no secret once it is in use.
fn strew(n: u32, key: u64, half: u32) -> u32 {
    let mask = (1u32 << half) - 1;
    let (mut left, mut right) = (n >> half & mask, n & mask);
    for round in 1..=4u64 {
        // The finalizer of SplitMix64.
        let mut mixed = (u64::from(right) ^ key.rotate_left(round as u32 * 16)).wrapping_add(round << 40);
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (left, right) = (right, left ^ (mixed ^ mixed >> 31) as u32 & mask);
    }
    left << half | right
}

impl Places {
    /// A pool of which nothing was given, and what of it never is.
    pub fn new(pool: Pool, fences: &[Ipv6Prefix], order: Order) -> Self {
        let mut ranges: Vec<_> = fences.iter().filter_map(|fence| pool.touched(*fence)).collect();
        ranges.sort_unstable();
        let mut fenced: BTreeMap<u32, u32> = BTreeMap::new();
        for (first, last) in ranges {
            match fenced.last_entry() {
                Some(mut before) if first <= before.get().saturating_add(1) => {
                    let end = (*before.get()).max(last);
                    before.insert(end);
                }
                Some(_) | None => drop(fenced.insert(first, last)),
            }
        }
        let (known, by_user, idle) = (HashMap::new(), HashMap::new(), BTreeSet::new());
        let behind: u32 = fenced.iter().map(|(first, last)| last - first + 1).sum();
        let untouched = pool.places().saturating_sub(behind);
        Self { pool, known, by_user, idle, fenced, next: 0, spare: BTreeSet::new(), order, untouched }
    }

    /// The pool itself.
    pub fn pool(&self) -> Pool {
        self.pool
    }

    /// How many places are in use.
    pub fn in_use(&self) -> usize {
        self.known.len() - self.idle.len()
    }

    /// The last place of the fence that place `n` is behind.
    fn fence(&self, n: u32) -> Option<u32> {
        let (_, last) = self.fenced.range(..=n).next_back()?;
        (*last >= n).then_some(*last)
    }

    /// Whether place `n` is one that is given at all: in the pool, and behind no fence.
    pub fn is_within(&self, n: u32) -> bool {
        n < self.pool.places() && self.fence(n).is_none()
    }

    /// Whether place `n` may be given now: nobody uses it.
    pub fn is_open(&self, n: u32) -> bool {
        self.is_within(n) && self.known.get(&n).is_none_or(|place| !place.in_use)
    }

    /// The places in mind for `user`.
    pub fn of(&self, user: &UserName) -> impl Iterator<Item = u32> {
        self.by_user.get(user).into_iter().flatten().copied()
    }

    /// For whom place `n` is in mind.
    pub fn user(&self, n: u32) -> Option<&UserName> {
        self.known.get(&n)?.user.as_ref()
    }

    /// The unused place that was so for longest.
    pub fn longest_idle(&self) -> Option<u32> {
        // A place may have been fenced since it was given; those are few.
        self.idle.iter().map(|(_, n)| *n).find(|n| self.fence(*n).is_none())
    }

    /// A place that is in mind for nobody.
    pub fn fresh(&mut self) -> Option<u32> {
        // One may have been fenced since it was vacated; those are few.
        if let Some(n) = self.spare.iter().copied().find(|n| self.fence(*n).is_none()) {
            return Some(n);
        }
        let places = self.pool.places();
        while self.untouched > 0 && self.next < places {
            let n = self.order.place(self.next, places);
            match self.fence(n) {
                Some(last) if self.order == Order::Counted => self.next = last.saturating_add(1),
                Some(_) => self.next += 1,
                None if self.known.contains_key(&n) => self.next += 1,
                None => return Some(n),
            }
        }
        None
    }

    /// Place `n` is this user's from now on, in use or only in mind.
    pub fn assign(&mut self, n: u32, user: Option<UserName>, in_use: bool, since: Time) {
        self.forget(n);
        self.spare.remove(&n);
        if let Some(user) = &user {
            self.by_user.entry(user.clone()).or_default().insert(n);
        }
        if !in_use {
            self.idle.insert((since, n));
        }
        self.known.insert(n, Place { user, in_use, since });
        self.untouched -= u32::from(self.is_within(n));
    }

    fn forget(&mut self, n: u32) {
        let Some(old) = self.known.remove(&n) else { return };
        self.untouched += u32::from(self.is_within(n));
        self.idle.remove(&(old.since, n));
        let Some(user) = old.user else { return };
        if let Some(own) = self.by_user.get_mut(&user) {
            own.remove(&n);
            if own.is_empty() {
                self.by_user.remove(&user);
            }
        }
    }

    /// Everything that is in mind for anybody: the place, for whom, and since when.
    pub fn known(&self) -> impl Iterator<Item = (u32, Option<&UserName>, Time)> {
        self.known.iter().map(|(n, place)| (*n, place.user.as_ref(), place.since))
    }

    /// Nobody uses place `n` any more; it stays in mind for its user. Says for whom; `None`: it was never given.
    pub fn leave(&mut self, n: u32, now: Time) -> Option<Option<UserName>> {
        let user = self.known.get(&n)?.user.clone();
        self.assign(n, user.clone(), false, now);
        Some(user)
    }

    /// Nobody uses place `n` any more, and it is kept in mind for nobody.
    pub fn vacate(&mut self, n: u32) {
        self.forget(n);
        if n < self.pool.places() {
            self.spare.insert(n);
        }
    }

    /// The account is gone: unused places of it are nobody's, and behind all others when places run out. Returns them.
    pub fn orphan(&mut self, user: &UserName, now: Time) -> Vec<u32> {
        let own: Vec<u32> = self.by_user.get(user).into_iter().flatten().copied().collect();
        let unused: Vec<u32> =
            own.into_iter().filter(|n| self.known.get(n).is_some_and(|place| !place.in_use)).collect();
        unused.iter().for_each(|n| self.assign(*n, None, false, now));
        unused
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Ipv6Prefix {
        text.parse().unwrap()
    }

    fn user(name: &str) -> UserName {
        UserName::parse(name).unwrap()
    }

    fn networks(text: &str, len: u8) -> Pool {
        Pool { prefix: prefix(text), kind: PoolKind::Networks(len) }
    }

    /// What a grant does to a pool.
    fn take(places: &mut Places, name: &str) -> Option<u32> {
        let own = places.of(&user(name)).find(|n| places.is_open(*n));
        let n = own.or_else(|| places.fresh()).or_else(|| places.longest_idle())?;
        places.assign(n, Some(user(name)), true, Time(0));
        Some(n)
    }

    #[test]
    fn places_and_numbers_belong_together() {
        let pool = networks("2001:db8:100::/40", 56);
        assert_eq!(pool.places(), 1 << 16);
        assert_eq!(pool.place(0x1234), prefix("2001:db8:112:3400::/56"));
        for n in [0, 1, 77, 0xffff] {
            assert_eq!(pool.number(pool.place(n)), Some(n));
        }
        assert_eq!(pool.number(prefix("2001:db8:100::/64")), None, "another length");
        assert_eq!(pool.number(prefix("2001:db8:200::/56")), None, "elsewhere");
        let pairs = Pool { prefix: prefix("2001:db8::/64"), kind: PoolKind::Pairs };
        assert_eq!(pairs.pair(10).server, "2001:db8::2d".parse::<Ipv6Addr>().unwrap());
        assert_eq!(pairs.pair(10).client, "2001:db8::2e".parse::<Ipv6Addr>().unwrap());
        assert_eq!(pairs.number(pairs.place(10)), Some(10));
        assert_eq!(pairs.number(prefix("2001:db8::2d/128")), None, "our end");
        assert_eq!(pairs.place(PAIRS - 1), prefix("2001:db8::fffe/128"));
    }

    #[test]
    fn fences_are_walked_around() {
        let fences = ["2001:db8::/64", "2001:db8:0:2::1/128", "2001:db8:0:3::/64", "2001:db8:1::/48"];
        let mut places = Places::new(networks("2001:db8::/61", 64), &fences.map(prefix), Order::Counted);
        let given: Vec<_> = (0..8).map_while(|n| take(&mut places, &format!("u{n}"))).collect();
        assert_eq!(given, [1, 4, 5, 6, 7]);
        let all = Places::new(networks("2001:db8::/61", 64), &[prefix("2001:db8::/32")], Order::Counted);
        assert!((0..8).all(|n| !all.is_open(n)), "the fence is around the pool");
        let pairs = Pool { prefix: prefix("2001:db8::/64"), kind: PoolKind::Pairs };
        let mut pairs =
            Places::new(pairs, &[prefix("2001:db8::1/128"), prefix("2001:db8::a/128")], Order::Counted);
        assert_eq!(take(&mut pairs, "a"), Some(0), "::1 belongs to no pair");
        assert_eq!(take(&mut pairs, "b"), Some(2), "::a is the client's end of pair 1");
    }

    #[test]
    fn the_same_user_has_the_same_place_until_it_is_needed() {
        let mut places = Places::new(networks("2001:db8::/63", 64), &[], Order::Counted);
        assert_eq!((take(&mut places, "a"), take(&mut places, "b")), (Some(0), Some(1)));
        assert_eq!(take(&mut places, "c"), None, "all in use");
        places.leave(1, Time(5));
        places.leave(0, Time(9));
        assert_eq!(take(&mut places, "a"), Some(0));
        places.leave(0, Time(10));
        assert_eq!(take(&mut places, "c"), Some(1), "unused for longer");
        assert_eq!(take(&mut places, "b"), Some(0));
        assert_eq!(places.in_use(), 2);
    }

    /// RFC: X1 (RFC 6169 section 5.1)
    #[test]
    fn strewn_places_are_all_given_once_and_in_another_order_for_each_key() {
        let first = |key, pool: Pool, fences: &[Ipv6Prefix]| {
            let mut places = Places::new(pool, fences, Order::Strewn(key));
            (0..40).map_while(|n| take(&mut places, &format!("u{n}"))).collect::<Vec<_>>()
        };
        let wide = networks("2001:db8:100::/40", 56);
        let (one, other) = (first(1, wide, &[]), first(2, wide, &[]));
        assert!(one.len() == 40 && one != other, "{one:?}");
        let steps: BTreeSet<_> = one.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])).collect();
        assert!(steps.len() > 35, "no step comes again and again: {one:?}");
        // All of them, fences apart, in pools of any size.
        for (len, most) in [(61, 8), (62, 4), (63, 2), (64, 1)] {
            let pool = networks(&format!("2001:db8::/{len}"), 64);
            let mut given = first(7, pool, &[]);
            given.sort_unstable();
            assert_eq!(given, (0..most).collect::<Vec<u32>>());
        }
        let mut given =
            first(7, networks("2001:db8::/61", 64), &["2001:db8:0:2::/63", "2001:db8::/64"].map(prefix));
        given.sort_unstable();
        assert_eq!(given, [1, 4, 5, 6, 7]);
        for places in [1, 2, 3, 5, 1000, PAIRS] {
            let all: BTreeSet<_> = (0..places).map(|n| Order::Strewn(99).place(n, places)).collect();
            assert_eq!((all.len() as u32, all.last()), (places, Some(&(places - 1))));
        }
    }

    /// RFC: X1 (RFC 6169 section 5.1)
    #[test]
    fn a_strewn_place_stays_its_users_under_another_key() {
        let pool = networks("2001:db8:100::/40", 56);
        let mut before = Places::new(pool, &[], Order::Strewn(1));
        let own = take(&mut before, "a").unwrap();
        let mut after = Places::new(pool, &[], Order::Strewn(2));
        after.assign(own, Some(user("a")), false, Time(1));
        assert_eq!(take(&mut after, "a"), Some(own));
        assert_ne!(take(&mut after, "b"), Some(own));
    }

    #[test]
    fn a_vacated_place_is_given_before_a_new_one() {
        let mut places = Places::new(networks("2001:db8::/62", 64), &[], Order::Counted);
        assert_eq!((take(&mut places, "a"), take(&mut places, "b")), (Some(0), Some(1)));
        places.vacate(0);
        assert_eq!((places.in_use(), places.known().count()), (1, 1), "in mind for nobody");
        assert_eq!((take(&mut places, "c"), take(&mut places, "a")), (Some(0), Some(2)));
    }

    #[test]
    fn what_a_deleted_account_had_is_nobody_s() {
        let mut places = Places::new(networks("2001:db8::/62", 64), &[], Order::Counted);
        take(&mut places, "a");
        places.leave(0, Time(1));
        assert_eq!(places.orphan(&user("a"), Time(2)), [0]);
        assert_eq!(take(&mut places, "a"), Some(1), "a new account of that name is another one");
    }
}
