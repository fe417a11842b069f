//! All leases of a process, found by what they are, by whose they are and by when they end. Pure.
//!
//! Each lease is there once; the three ways to it are numbers of places. Who may have what is not asked here: whoever puts
//! one in has seen to it that it meets no other.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};
use std::ops::Bound;

use sixway_dataplane::update::Ipv6Prefix;

use super::shelf::{Lease, NEVER};
use crate::broker::BindKey;

/// No place.
const NONE: u32 = u32::MAX;

/// All leases.
#[derive(Debug, Default)]
pub struct Index {
    places: Vec<Place>,
    free: Vec<u32>,
    by_prefix: BTreeMap<Wire, u32>,
    /// The first place of each client, by what its name comes to; two names may come to the same.
    by_client: HashMap<u64, u32, BuildHasherDefault<AsItIs>>,
    /// What ends when, in seconds of the leases' clock.
    ends: BTreeMap<u64, Vec<u32>>,
    /// How many leases of each prefix length there are.
    lengths: BTreeMap<u8, usize>,
    names: RandomState,
}

#[derive(Debug)]
struct Place {
    lease: Option<Lease>,
    /// The next place of the same client.
    next: u32,
    /// Where it stands among those that end at the same time.
    at: u32,
}

/// A prefix in 17 octets instead of 32: its bits as numbers are kept here, and its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wire([u8; 16], u8);

impl From<Ipv6Prefix> for Wire {
    fn from(prefix: Ipv6Prefix) -> Self {
        Self(prefix.bits().to_ne_bytes(), prefix.prefix_len())
    }
}

impl Ord for Wire {
    fn cmp(&self, other: &Self) -> Ordering {
        u128::from_ne_bytes(self.0).cmp(&u128::from_ne_bytes(other.0)).then(self.1.cmp(&other.1))
    }
}

impl PartialOrd for Wire {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Numbers that are chance already need no hashing.
#[derive(Debug, Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, octets: &[u8]) {
        octets.iter().for_each(|octet| self.0 = (self.0 << 8) | u64::from(*octet));
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = n;
    }
}

impl Index {
    /// How many leases there are.
    pub fn len(&self) -> usize {
        self.by_prefix.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_prefix.is_empty()
    }

    /// The lease of just this.
    pub fn get(&self, prefix: Ipv6Prefix) -> Option<&Lease> {
        self.lease(*self.by_prefix.get(&prefix.into())?)
    }

    /// All leases in the order of their prefixes, behind this one.
    pub fn after(&self, last: Option<Ipv6Prefix>) -> impl Iterator<Item = &Lease> {
        let first = last.map_or(Bound::Unbounded, |last| Bound::Excluded(Wire::from(last)));
        self.by_prefix.range((first, Bound::Unbounded)).filter_map(|(_, place)| self.lease(*place))
    }

    /// All leases in the order of their prefixes.
    pub fn iter(&self) -> impl Iterator<Item = &Lease> {
        self.by_prefix.values().filter_map(|place| self.lease(*place))
    }

    /// What a client has with one number, the oldest first. Nothing is nobody's.
    pub fn of(&self, key: &BindKey) -> impl Iterator<Item = Ipv6Prefix> {
        self.of_client(&key.client).filter(|lease| lease.key == *key).map(|lease| lease.prefix)
    }

    /// All that a client has. Nothing is nobody's.
    pub fn of_client(&self, client: &[u8]) -> impl Iterator<Item = &Lease> {
        let first = self.by_client.get(&self.names.hash_one(client)).copied();
        let chain = std::iter::successors(first, |place| self.places.get(*place as usize).map(|p| p.next));
        chain.map_while(|place| self.lease(place)).filter(move |lease| *lease.key.client == *client)
    }

    /// A lease that has an address in common with `prefix`.
    pub fn meeting(&self, prefix: Ipv6Prefix) -> Option<&Lease> {
        let lengths = self.lengths.range(..=prefix.prefix_len()).rev();
        let mut around = lengths.filter_map(|(len, _)| Ipv6Prefix::new(prefix.addr(), *len));
        let around = around.find_map(|wide| self.get(wide));
        let inside = || {
            let (_, place) = self.by_prefix.range(Wire::from(prefix)..).next()?;
            self.lease(*place).filter(|lease| prefix.covers(lease.prefix))
        };
        around.or_else(inside)
    }

    /// When the next lease ends.
    pub fn first_end(&self) -> Option<u64> {
        self.ends.first_key_value().map(|(until, _)| *until)
    }

    /// Something that is over at this time.
    pub fn over(&self, now: u64) -> Option<Ipv6Prefix> {
        let (_, places) = self.ends.first_key_value().filter(|(until, _)| **until <= now)?;
        self.lease(*places.last()?).map(|lease| lease.prefix)
    }

    /// Puts one in, in the place of one of the same prefix; says whether there was one.
    pub fn put(&mut self, lease: Lease) -> bool {
        let there = self.by_prefix.get(&lease.prefix.into()).copied();
        if let Some(place) = there
            && self.lease(place).is_some_and(|before| before.key == lease.key)
        {
            self.leave_end(place);
            if let Some(own) = self.places.get_mut(place as usize) {
                own.lease = Some(lease);
            }
            self.join_end(place);
            return true;
        }
        let was = self.take(lease.prefix).is_some();
        let place = self.room();
        self.by_prefix.insert(lease.prefix.into(), place);
        *self.lengths.entry(lease.prefix.prefix_len()).or_default() += 1;
        self.places[place as usize] = Place { lease: Some(lease), next: NONE, at: 0 };
        self.join_client(place);
        self.join_end(place);
        was
    }

    /// Takes one out.
    pub fn take(&mut self, prefix: Ipv6Prefix) -> Option<Lease> {
        let place = self.by_prefix.remove(&prefix.into())?;
        self.leave_client(place);
        self.leave_end(place);
        let len = self.lengths.entry(prefix.prefix_len()).or_insert(1);
        *len -= 1;
        if *len == 0 {
            self.lengths.remove(&prefix.prefix_len());
        }
        self.free.push(place);
        self.places.get_mut(place as usize)?.lease.take()
    }

    fn lease(&self, place: u32) -> Option<&Lease> {
        self.places.get(place as usize)?.lease.as_ref()
    }

    fn room(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.places.push(Place { lease: None, next: NONE, at: 0 });
            // There are far fewer leases than numbers.
            (self.places.len() - 1) as u32
        })
    }

    /// What the name of the client of a place comes to; `None`: it is nobody's.
    fn name(&self, place: u32) -> Option<u64> {
        let client = &self.lease(place)?.key.client;
        (!client.is_empty()).then(|| self.names.hash_one(&**client))
    }

    fn join_client(&mut self, place: u32) {
        let Some(name) = self.name(place) else { return };
        let mut last = *self.by_client.entry(name).or_insert(place);
        if last == place {
            return;
        }
        while let Some(own) = self.places.get_mut(last as usize) {
            if own.next == NONE {
                own.next = place;
                return;
            }
            last = own.next;
        }
    }

    fn leave_client(&mut self, place: u32) {
        let Some(name) = self.name(place) else { return };
        let next = self.places[place as usize].next;
        let Some(first) = self.by_client.get_mut(&name) else { return };
        if *first == place {
            *first = next;
            if next == NONE {
                self.by_client.remove(&name);
            }
            return;
        }
        let mut before = *first;
        while let Some(own) = self.places.get_mut(before as usize) {
            if own.next == place {
                own.next = next;
                return;
            }
            before = own.next;
        }
    }

    fn join_end(&mut self, place: u32) {
        let Some(until) = self.lease(place).map(|lease| lease.until).filter(|until| *until != NEVER) else {
            return;
        };
        let together = self.ends.entry(until).or_default();
        self.places[place as usize].at = together.len() as u32;
        together.push(place);
    }

    fn leave_end(&mut self, place: u32) {
        let Some(until) = self.lease(place).map(|lease| lease.until) else { return };
        let Some(together) = self.ends.get_mut(&until) else { return };
        let at = self.places[place as usize].at;
        together.swap_remove(at as usize);
        if let Some(moved) = together.get(at as usize) {
            self.places[*moved as usize].at = at;
        }
        if together.is_empty() {
            self.ends.remove(&until);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::BindKind;
    use crate::dhcp6s::plan::Life;
    use proptest::prelude::*;

    fn lease(n: u8, client: u8, number: u32, until: u64) -> Lease {
        let client: &[u8] = if client == 0 { &[] } else { &[client] };
        let key = BindKey { tunnel: "a".into(), client: client.into(), kind: BindKind::Prefix, number };
        // Of three lengths, none of which meet: the last bits of the longer ones say so.
        let len = 56 + n % 3 * 4;
        let prefix = Ipv6Prefix::new(format!("2001:db8:{n:x}:{:x}::", n % 3 * 16).parse().unwrap(), len);
        Lease {
            key,
            prefix: prefix.unwrap(),
            life: Life { preferred: 1, valid: 2 },
            until: if until == 0 { NEVER } else { until },
            peer: None,
            reach: None,
        }
    }

    #[test]
    fn what_meets_is_found_from_above_and_from_below() {
        let mut index = Index::default();
        assert!(!index.put(lease(1, 1, 1, 5)));
        let own = lease(1, 1, 1, 5).prefix;
        let wide: Ipv6Prefix = "2001:db8::/32".parse().unwrap();
        let narrow = Ipv6Prefix::host(own.addr());
        for prefix in [own, wide, narrow] {
            assert_eq!(index.meeting(prefix).map(|lease| lease.prefix), Some(own));
        }
        assert!(index.meeting("2001:db8:2::/48".parse().unwrap()).is_none());
        assert!(index.put(lease(1, 2, 1, 6)), "another's in its place");
        assert_eq!((index.of_client(&[1]).count(), index.of_client(&[2]).count(), index.len()), (0, 1, 1));
        assert!(index.take(own).is_some() && index.take(own).is_none() && index.is_empty());
        assert!(index.meeting(wide).is_none() && index.first_end().is_none());
    }

    proptest! {
        /// The same as a list does, searched from end to end.
        #[test]
        fn every_way_leads_to_the_same_leases(
            steps in prop::collection::vec((any::<bool>(), 0_u8..12, 0_u8..4, 0_u32..2, 0_u64..6), 0..120),
        ) {
            let mut index = Index::default();
            let mut twin: Vec<Lease> = Vec::new();
            for (put, n, client, number, until) in steps {
                let one = lease(n, client, number, until);
                let before = twin.iter().position(|lease| lease.prefix == one.prefix);
                if put {
                    prop_assert_eq!(index.put(one.clone()), before.is_some());
                    match before {
                        Some(at) if twin[at].key == one.key => twin[at] = one,
                        Some(at) => { twin.remove(at); twin.push(one); }
                        None => twin.push(one),
                    }
                } else {
                    let taken = before.map(|at| twin.remove(at));
                    prop_assert_eq!(index.take(one.prefix), taken);
                }
                prop_assert_eq!(index.len(), twin.len());
                let mut sorted: Vec<&Lease> = twin.iter().collect();
                sorted.sort_by_key(|lease| lease.prefix);
                prop_assert_eq!(index.iter().collect::<Vec<_>>(), sorted);
                let ends = twin.iter().map(|lease| lease.until).filter(|until| *until != NEVER);
                prop_assert_eq!(index.first_end(), ends.min());
                let over = index.over(3).and_then(|prefix| index.get(prefix));
                prop_assert_eq!(over.is_some(), twin.iter().any(|lease| lease.until <= 3));
                prop_assert!(over.is_none_or(|lease| Some(lease.until) == index.first_end()));
                for client in 1_u8..4 {
                    for number in 0..2 {
                        let key = lease(0, client, number, 1).key;
                        let own: Vec<Ipv6Prefix> = twin.iter().filter(|l| l.key == key).map(|l| l.prefix).collect();
                        prop_assert_eq!(index.of(&key).collect::<Vec<_>>(), own);
                    }
                }
                prop_assert_eq!(index.of_client(&[]).count(), 0);
            }
        }
    }
}
