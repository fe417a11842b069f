//! What is free in a pool: intervals of numbers, so that a free place is found, taken and given back in logarithmic time
//! however full the pool is. Pure; knows no lease.
//!
//! A place's number is its address without the bits behind its prefix length. Where a search begins is chance, so which
//! place is found cannot be foreseen.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv6Addr;

use sixway_dataplane::update::Ipv6Prefix;

/// How often chance alone is tried, before the first free place from some point on is taken.
const TRIES: u64 = 8;
/// How many places that nobody may have are skipped in one search.
const SKIPS: usize = 64;

/// Numbers in intervals that do not touch: from a first one to a last one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Intervals(BTreeMap<u128, u128>);

impl Intervals {
    /// The first number from `n` on.
    fn from(&self, n: u128) -> Option<u128> {
        if self.contains(n) {
            return Some(n);
        }
        self.0.range(n..).next().map(|(first, _)| *first)
    }

    fn contains(&self, n: u128) -> bool {
        self.0.range(..=n).next_back().is_some_and(|(_, last)| *last >= n)
    }

    /// Puts all numbers from `first` to `last` in.
    pub fn insert(&mut self, first: u128, last: u128) {
        let (mut low, mut high) = (first, last);
        let reach = last.saturating_add(1);
        while let Some((f, l)) = self.0.range(..=reach).next_back().map(|(f, l)| (*f, *l)) {
            if l.saturating_add(1) < first {
                break;
            }
            (low, high) = (low.min(f), high.max(l));
            self.0.remove(&f);
        }
        self.0.insert(low, high);
    }

    /// Takes all numbers from `first` to `last` out.
    pub fn remove(&mut self, first: u128, last: u128) {
        while let Some((f, l)) = self.0.range(..=last).next_back().map(|(f, l)| (*f, *l)) {
            if l < first {
                return;
            }
            self.0.remove(&f);
            if f < first {
                self.0.insert(f, first - 1);
            }
            if l > last {
                self.0.insert(last + 1, l);
            }
        }
    }

    /// The intervals that have a number in common with `first` to `last`.
    fn within(&self, first: u128, last: u128) -> Vec<(u128, u128)> {
        let all = self.0.range(..=last).rev().map(|(f, l)| (*f, *l));
        all.take_while(|(_, l)| *l >= first).collect()
    }
}

/// A pool's space: all places of one length from a first address to a last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extent {
    /// The lowest address.
    pub first: Ipv6Addr,
    /// The highest address.
    pub last: Ipv6Addr,
    /// The prefix length of each place in bits.
    pub len: u8,
}

impl Extent {
    fn shift(&self) -> u32 {
        128 - u32::from(self.len)
    }

    /// An address as the number of its place.
    fn number(&self, addr: u128) -> u128 {
        addr.checked_shr(self.shift()).unwrap_or(0)
    }

    /// Whether an address or prefix is a place of it.
    pub fn contains(&self, prefix: Ipv6Prefix) -> bool {
        prefix.prefix_len() == self.len && self.touched(prefix.bits(), prefix.bits()).is_some()
    }

    fn place(&self, n: u128) -> Option<Ipv6Prefix> {
        Ipv6Prefix::new(Ipv6Addr::from(n.checked_shl(self.shift()).unwrap_or(0)), self.len)
    }

    fn numbers(&self) -> (u128, u128) {
        (self.number(self.first.into()), self.number(self.last.into()))
    }

    /// The places that have an address in common with this span of addresses.
    fn touched(&self, first: u128, last: u128) -> Option<(u128, u128)> {
        let (low, high) = self.numbers();
        let (from, to) = (self.number(first).max(low), self.number(last).min(high));
        let (begin, end) = (u128::from(self.first), u128::from(self.last));
        (first <= end && last >= begin && from <= to).then_some((from, to))
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, last, len } = self;
        if *len == 128 {
            return write!(out, "{first} to {last}");
        }
        let wide = (u128::from(*first) ^ u128::from(*last)).leading_zeros();
        write!(out, "{first}/{wide} in pieces of /{len}")
    }
}

/// The first and the last address of a prefix.
pub fn span(prefix: Ipv6Prefix) -> (u128, u128) {
    let host = u128::MAX.checked_shr(prefix.prefix_len().into()).unwrap_or(0);
    (prefix.bits(), prefix.bits() | host)
}

/// The free places of a pool.
#[derive(Clone, Debug)]
pub struct Vacancy {
    extent: Extent,
    free: Intervals,
    /// What is never given.
    fenced: Intervals,
}

impl Vacancy {
    /// A pool of which nothing is given; what has an address in common with a fence never is.
    pub fn new(extent: Extent, fences: impl IntoIterator<Item = (u128, u128)>) -> Self {
        let (first, last) = extent.numbers();
        let mut new = Self { extent, free: Intervals::default(), fenced: Intervals::default() };
        if first <= last {
            new.free.insert(first, last);
        }
        for (low, high) in fences {
            if let Some((from, to)) = extent.touched(low, high) {
                new.free.remove(from, to);
                new.fenced.insert(from, to);
            }
        }
        new
    }

    /// Whether anything of it is free.
    pub fn has_room(&self) -> bool {
        !self.free.0.is_empty()
    }

    /// Its space.
    pub fn extent(&self) -> Extent {
        self.extent
    }

    /// Somebody has this now.
    pub fn occupy(&mut self, prefix: Ipv6Prefix) {
        let (low, high) = span(prefix);
        if let Some((from, to)) = self.extent.touched(low, high) {
            self.free.remove(from, to);
        }
    }

    /// Nobody has this any more. `is_clear` says whether nobody has anything else in a place that is larger than it.
    pub fn vacate(&mut self, prefix: Ipv6Prefix, is_clear: impl Fn(Ipv6Prefix) -> bool) {
        let (low, high) = span(prefix);
        let Some((from, to)) = self.extent.touched(low, high) else { return };
        let is_larger = prefix.prefix_len() > self.extent.len;
        if is_larger && !self.extent.place(from).is_some_and(is_clear) {
            return;
        }
        self.free.insert(from, to);
        for (first, last) in self.fenced.within(from, to) {
            self.free.remove(first, last);
        }
    }

    /// Whether just this is a place of it that nobody has.
    pub fn is_free(&self, prefix: Ipv6Prefix) -> bool {
        self.extent.contains(prefix) && self.free.contains(self.extent.number(prefix.bits()))
    }

    /// A free place where chance leads. `usable` says of an address that nobody may have it, and up to where that is so.
    pub fn choose(
        &self,
        chance: impl Fn(u64) -> u128,
        usable: impl Fn(Ipv6Addr) -> Result<(), u128>,
    ) -> Option<Ipv6Prefix> {
        let (first, last) = self.extent.numbers();
        let some = |n: u64| match (last - first).checked_add(1) {
            Some(places) => first + chance(n) % places,
            None => chance(n),
        };
        let fits = |n: u128| self.extent.place(n).is_some_and(|place| usable(place.addr()).is_ok());
        let found = (0..TRIES).map(some).find(|n| self.free.contains(*n) && fits(*n));
        let found =
            found.or_else(|| self.search(some(TRIES), &usable)).or_else(|| self.search(first, &usable));
        self.extent.place(found?)
    }

    /// The lowest free place; `usable` as for [`Self::choose`].
    pub fn lowest(&self, usable: impl Fn(Ipv6Addr) -> Result<(), u128>) -> Option<Ipv6Prefix> {
        let (first, _) = self.extent.numbers();
        self.extent.place(self.search(first, &usable)?)
    }

    fn search(&self, start: u128, usable: &impl Fn(Ipv6Addr) -> Result<(), u128>) -> Option<u128> {
        let mut at = start;
        for _ in 0..SKIPS {
            let n = self.free.from(at)?;
            match usable(self.extent.place(n)?.addr()) {
                Ok(()) => return Some(n),
                Err(until) => at = self.extent.number(until).max(n).checked_add(1)?,
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn extent(first: &str, last: &str, len: u8) -> Extent {
        Extent { first: first.parse().unwrap(), last: last.parse().unwrap(), len }
    }

    fn prefix(text: &str) -> Ipv6Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn the_last_free_place_of_a_large_pool_is_found_at_once() {
        let mut pool = Vacancy::new(extent("2001:db8::", "2001:db8::f:ffff", 128), []);
        let last = prefix("2001:db8::7:1234/128");
        pool.free.remove(last.bits() - 0x7_1234, last.bits() - 1);
        pool.free.remove(last.bits() + 1, last.bits() + 0x8_edcb);
        assert_eq!(pool.choose(|n| n.into(), |_| Ok(())), Some(last));
        pool.occupy(last);
        assert_eq!(pool.choose(|n| n.into(), |_| Ok(())), None);
        pool.vacate(last, |_| true);
        assert!(pool.is_free(last));
    }

    #[test]
    fn fences_stay_and_what_nobody_may_have_is_skipped() {
        let fences = [span(prefix("2001:db8:0:100::/56")), span(prefix("2001:db8::1/128"))];
        let mut pool = Vacancy::new(extent("2001:db8::", "2001:db8:0:3ff:ffff:ffff:ffff:ffff", 56), fences);
        pool.occupy(prefix("2001:db8::/52"));
        assert_eq!(pool.choose(|n| n.into(), |_| Ok(())), None);
        pool.vacate(prefix("2001:db8::/52"), |_| true);
        let all: BTreeSet<String> = (0..64)
            .filter_map(|salt| pool.choose(|n| (salt * 7 + n).into(), |_| Ok(())))
            .map(|p| p.to_string())
            .collect();
        assert_eq!(all.into_iter().collect::<Vec<_>>(), ["2001:db8:0:200::/56", "2001:db8:0:300::/56"]);
        let skip = |addr: Ipv6Addr| {
            let last = u128::from("2001:db8:0:2ff::".parse::<Ipv6Addr>().unwrap());
            if u128::from(addr) > last { Ok(()) } else { Err(last) }
        };
        assert_eq!(pool.choose(|n| n.into(), skip), Some(prefix("2001:db8:0:300::/56")));
        // Something smaller in a place: it is free when nothing else is in it.
        pool.occupy(prefix("2001:db8:0:300::/64"));
        pool.vacate(prefix("2001:db8:0:300::/64"), |place| place != prefix("2001:db8:0:300::/56"));
        assert!(!pool.is_free(prefix("2001:db8:0:300::/56")));
    }

    #[test]
    fn pools_are_called_by_what_is_in_them() {
        let addresses = extent("2001:db8::5", "2001:db8::9", 128).to_string();
        assert_eq!(addresses, "2001:db8::5 to 2001:db8::9");
        let prefixes = extent("2001:db8:8000::", "2001:db8:80ff:ffff:ffff:ffff:ffff:ffff", 56).to_string();
        assert_eq!(prefixes, "2001:db8:8000::/40 in pieces of /56");
    }

    #[test]
    fn all_addresses_there_are_make_a_pool() {
        let all = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        let mut pool = Vacancy::new(extent("::", all, 128), []);
        pool.occupy(Ipv6Prefix::ALL);
        assert_eq!(pool.choose(|n| n.into(), |_| Ok(())), None);
        pool.vacate(Ipv6Prefix::ALL, |_| true);
        assert!(pool.choose(|n| u128::MAX - u128::from(n), |_| Ok(())).is_some());
        assert!(Vacancy::new(extent("::", all, 0), []).choose(|n| n.into(), |_| Ok(())).is_some());
    }

    proptest! {
        /// The same as a set of numbers does, searched from end to end.
        #[test]
        fn intervals_are_sets(steps in prop::collection::vec((any::<bool>(), 0_u128..60, 0_u128..12, 0_u128..64), 0..60)) {
            let (mut ours, mut twin) = (Intervals::default(), BTreeSet::new());
            for (put, first, more, asked) in steps {
                if put {
                    ours.insert(first, first + more);
                    twin.extend(first..=first + more);
                } else {
                    ours.remove(first, first + more);
                    twin.retain(|n| !(first..=first + more).contains(n));
                }
                prop_assert_eq!(ours.contains(asked), twin.contains(&asked));
                prop_assert_eq!(ours.from(asked), twin.range(asked..).next().copied());
                let all: Vec<u128> = ours.0.iter().flat_map(|(first, last)| *first..=*last).collect();
                prop_assert_eq!(all, twin.iter().copied().collect::<Vec<_>>());
                prop_assert!(ours.0.iter().zip(ours.0.iter().skip(1)).all(|(a, b)| *a.1 + 1 < *b.0));
            }
        }
    }
}
