//! The tables in the shapes that large ones take, against a map that is asked for each length in turn.
//!
//! Ranges come and go in one batch and one by one, so that blocks of direct slots are made, thinned out and given up;
//! tunnels with prefixes of dozens of lengths fill dozens of hash indexes. After each batch, lookups
//! one by one and in batches must agree with the map.
#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::collections::{BTreeSet, HashMap};
use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use sixway_dataplane::table::editor::Editor;
use sixway_dataplane::table::{Reader, View, tables};
use sixway_dataplane::update::{Holder, Ipv6Prefix, Outer, Tunnel, TunnelId, Update};

const CAPACITY: u32 = 20_000;
/// Tunnels of ranges have numbers below; then come those of many prefixes.
const RANGED: u32 = 16_000;

/// Prefixes side by side: position, how many.
type Range = (u32, u32);

#[derive(Clone, Debug)]
enum Wish {
    Range(Range),
    OneByOne(Range),
    Drop(Range),
    DropOneByOne(Range),
    /// This tunnel's prefixes are drawn anew from this seed; few lengths or many.
    Foreign(u32, u64, bool),
    DropForeign(u32),
    Reserve(u32),
}

#[derive(Default)]
struct Twin {
    prefixes: HashMap<Ipv6Prefix, u32>,
    foreign: HashMap<u32, Vec<Ipv6Prefix>>,
}

/// Ranges lie in two aggregates, of which one begins just below a high bit.
fn ranged(position: u32) -> Ipv6Prefix {
    let half = RANGED / 2;
    let base =
        if position < half { 0x2001_0db8_0000_0000 } else { 0x2001_0dba_0000_0000 - 2000 - u128::from(half) };
    Ipv6Prefix::new(Ipv6Addr::from((base + u128::from(position)) << 64), 64).unwrap()
}

fn drawn(seed: u64, many_lengths: bool) -> Vec<Ipv6Prefix> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let draw = |bits: u64, salt: u64| {
        let len = if many_lengths { salt % 129 } else { 40 + salt % 2 * 24 };
        // Few different bits, so that prefixes of different tunnels lie in each other.
        let addr =
            (0x2001_0db8u128 << 96) | u128::from(bits & 0x0003_0007_0000_0003) << 48 | u128::from(bits >> 60);
        Ipv6Prefix::new(Ipv6Addr::from(addr), len as u8).unwrap()
    };
    let mut all: Vec<_> = (0..next() % 90).map(|_| draw(next(), next() >> 20)).collect();
    all.sort_unstable();
    all.dedup();
    all
}

fn upsert(id: u32, prefixes: Vec<Ipv6Prefix>) -> Update {
    let outer = Outer::Proto41 { local: None, remote: Ipv4Addr::from(0x0a00_0000 + id) };
    Update::Upsert(Tunnel { id: TunnelId(id), outer, prefixes, mtu: 1280, manners: Default::default() })
}

impl Twin {
    fn longest_match(&self, addr: Ipv6Addr) -> Option<(Ipv6Prefix, u32)> {
        let around = (0..=128).rev().map(|len| Ipv6Prefix::new(addr, len).unwrap());
        around.into_iter().find_map(|p| Some((p, *self.prefixes.get(&p)?)))
    }

    /// What the wish means now, in batches; prefixes that somebody has are left out.
    fn batches(&mut self, wish: &Wish) -> Vec<Vec<Update>> {
        let alone = |all: Vec<Update>| all.into_iter().map(|u| vec![u]).collect();
        match wish {
            Wish::Range(range) => vec![self.put(*range)],
            Wish::OneByOne(range) => alone(self.put(*range)),
            Wish::Drop(range) => vec![self.drop(*range)],
            Wish::DropOneByOne(range) => alone(self.drop(*range)),
            Wish::Foreign(id, seed, many) => {
                self.forget(*id);
                let free = |p: &Ipv6Prefix| !self.prefixes.contains_key(p);
                let prefixes: Vec<_> = drawn(*seed, *many).into_iter().filter(free).collect();
                self.prefixes.extend(prefixes.iter().map(|p| (*p, *id)));
                self.foreign.insert(*id, prefixes.clone());
                vec![vec![upsert(*id, prefixes)]]
            }
            Wish::DropForeign(id) if self.foreign.contains_key(id) => {
                self.forget(*id);
                self.foreign.remove(id);
                vec![vec![Update::Remove(TunnelId(*id))]]
            }
            Wish::Reserve(position) => {
                let prefix = ranged(*position);
                match self.prefixes.get(&prefix) {
                    None => {
                        self.prefixes.insert(prefix, u32::MAX);
                        vec![vec![Update::Reserve(prefix, Holder::Unassigned)]]
                    }
                    Some(&u32::MAX) => {
                        self.prefixes.remove(&prefix);
                        vec![vec![Update::Free(prefix)]]
                    }
                    Some(_) => Vec::new(),
                }
            }
            Wish::DropForeign(_) => Vec::new(),
        }
    }

    fn forget(&mut self, id: u32) {
        for prefix in self.foreign.get(&id).into_iter().flatten() {
            self.prefixes.remove(prefix);
        }
    }

    fn put(&mut self, (from, count): Range) -> Vec<Update> {
        let ids = (from..(from + count).min(RANGED)).filter(|id| match self.prefixes.get(&ranged(*id)) {
            None => true,
            Some(held_by) => held_by == id,
        });
        let ids: Vec<_> = ids.collect();
        self.prefixes.extend(ids.iter().map(|id| (ranged(*id), *id)));
        ids.into_iter().map(|id| upsert(id, vec![ranged(id)])).collect()
    }

    fn drop(&mut self, (from, count): Range) -> Vec<Update> {
        let ids = (from..(from + count).min(RANGED)).filter(|id| self.prefixes.get(&ranged(*id)) == Some(id));
        let ids: BTreeSet<u32> = ids.collect();
        self.prefixes.retain(|_, held_by| !ids.contains(held_by));
        ids.into_iter().map(|id| Update::Remove(TunnelId(id))).collect()
    }
}

fn any_range() -> impl Strategy<Value = Range> {
    (0..RANGED, prop_oneof![1u32..30, 200u32..600, 1000u32..5000])
}

fn any_wish() -> impl Strategy<Value = Wish> {
    prop_oneof![
        3 => any_range().prop_map(Wish::Range),
        2 => any_range().prop_map(Wish::OneByOne),
        2 => any_range().prop_map(Wish::Drop),
        2 => any_range().prop_map(Wish::DropOneByOne),
        4 => (RANGED..RANGED + 6, any::<u64>(), any::<bool>()).prop_map(|(id, s, m)| Wish::Foreign(id, s, m)),
        2 => (RANGED..RANGED + 6).prop_map(Wish::DropForeign),
        2 => (0..RANGED).prop_map(Wish::Reserve),
    ]
}

/// Addresses in and beside what is there and what was touched last.
fn addresses(twin: &Twin, wish: &Wish) -> Vec<Ipv6Addr> {
    let touched: Vec<Ipv6Prefix> = match wish {
        Wish::Range((from, count)) | Wish::OneByOne((from, count)) => {
            (from.saturating_sub(2)..from + count + 2).step_by(7).map(ranged).collect()
        }
        Wish::Drop((from, count)) | Wish::DropOneByOne((from, count)) => {
            (from.saturating_sub(2)..from + count + 2).step_by(7).map(ranged).collect()
        }
        Wish::Foreign(_, seed, many) => drawn(*seed, *many),
        Wish::DropForeign(_) => Vec::new(),
        Wish::Reserve(position) => vec![ranged(*position)],
    };
    let there = twin.prefixes.keys().step_by(twin.prefixes.len() / 200 + 1).copied();
    let beside = |p: Ipv6Prefix| {
        let size = 1u128.checked_shl(128 - u32::from(p.prefix_len())).unwrap_or(0);
        [p.bits(), p.bits() | size.wrapping_sub(1), p.bits().wrapping_sub(1), p.bits().wrapping_add(size)]
    };
    touched.into_iter().chain(there).flat_map(beside).map(Ipv6Addr::from).collect()
}

fn compare(view: &View<'_>, twin: &Twin, wish: &Wish) -> Result<(), TestCaseError> {
    let addrs = addresses(twin, wish);
    let held_by = |e: sixway_dataplane::table::slab::Entry| {
        (e.prefix().unwrap(), e.owner.path().map_or(u32::MAX, |p| p.tunnel.0))
    };
    let mut together = vec![None; addrs.len()];
    view.longest_matches(&addrs, |n, found| together[n] = Some(found.map(held_by)));
    for (addr, together) in addrs.iter().zip(together) {
        let wanted = twin.longest_match(*addr);
        prop_assert_eq!(view.longest_match(*addr).map(held_by), wanted, "{}", addr);
        prop_assert_eq!(together, Some(wanted), "{} in a batch", addr);
    }
    Ok(())
}

fn table() -> (Editor, Reader) {
    let (editor, mut readers) = tables(CAPACITY, 1, 7);
    let mut reader = readers.pop().unwrap();
    reader.online();
    (editor, reader)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn large_tables_are_their_map(wishes in prop::collection::vec(any_wish(), 1..25)) {
        let (mut editor, mut reader) = table();
        let mut twin = Twin::default();
        for wish in &wishes {
            for batch in twin.batches(wish) {
                prop_assert!(editor.apply(&batch).is_ok(), "{:?}", wish);
                reader.quiescent();
            }
            compare(&reader.view(), &twin, wish)?;
        }
    }
}

/// Prefixes of every length at once, one in the other and side by side.
#[test]
fn every_length_at_once() {
    let (mut editor, mut reader) = table();
    let mut twin = Twin::default();
    for seed in 1..40_u64 {
        let wish = Wish::Foreign(RANGED + seed as u32 % 6, seed.wrapping_mul(0x9e37_79b9_7f4a_7c15), true);
        for batch in twin.batches(&wish) {
            editor.apply(&batch).unwrap();
            reader.quiescent();
        }
        compare(&reader.view(), &twin, &wish).unwrap();
    }
    let mut lengths: Vec<_> = twin.prefixes.keys().map(|p| p.prefix_len()).collect();
    lengths.sort_unstable();
    lengths.dedup();
    assert!(lengths.len() > 33, "{lengths:?}");
}
