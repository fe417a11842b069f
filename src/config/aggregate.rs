//! The fewest prefixes that hold exactly the same addresses (RFC 4632 section 5.1, for IPv6).
//!
//! Pure: prefixes in, prefixes out. Does not know what the prefixes are for.

use sixway_dataplane::update::Ipv6Prefix;

/// Drops prefixes inside others and joins the two halves of a prefix, again and again. The result is
/// sorted by address and free of overlap.
pub fn aggregate(mut prefixes: Vec<Ipv6Prefix>) -> Vec<Ipv6Prefix> {
    // By address, wide before narrow: whatever covers a prefix comes before it.
    prefixes.sort_unstable_by_key(|p| (p.bits(), p.prefix_len()));
    let mut merged: Vec<Ipv6Prefix> = Vec::new();
    for prefix in prefixes {
        if merged.last().is_some_and(|last| last.covers(prefix)) {
            continue;
        }
        push_joined(&mut merged, prefix);
    }
    merged
}

fn push_joined(merged: &mut Vec<Ipv6Prefix>, mut prefix: Ipv6Prefix) {
    while let Some(whole) = merged.last().and_then(|&last| joined(last, prefix)) {
        merged.pop();
        prefix = whole;
    }
    merged.push(prefix);
}

/// The prefix that two distinct prefixes are the halves of.
fn joined(low: Ipv6Prefix, high: Ipv6Prefix) -> Option<Ipv6Prefix> {
    if low.prefix_len() != high.prefix_len() {
        return None;
    }
    let whole = Ipv6Prefix::new(low.addr(), low.prefix_len().checked_sub(1)?)?;
    whole.covers(high).then_some(whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::Ipv6Addr;

    fn list(texts: &[&str]) -> Vec<Ipv6Prefix> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn halves_join_and_inner_ones_vanish() {
        let input = list(&["2001:db8:3::/48", "2001:db8::/48", "2001:db8:1::/48", "2001:db8:2::/48"]);
        assert_eq!(aggregate(input), list(&["2001:db8::/46"]));
        let nested = list(&["2001:db8:0:1::/64", "2001:db8::/48", "2001:db8::/48"]);
        assert_eq!(aggregate(nested), list(&["2001:db8::/48"]));
        let apart = list(&["2001:db8:2::/48", "2001:db8:1::/48"]);
        assert_eq!(aggregate(apart), list(&["2001:db8:1::/48", "2001:db8:2::/48"]));
        assert_eq!(aggregate(list(&["8000::/1", "::/1"])), vec![Ipv6Prefix::ALL]);
        assert_eq!(aggregate(Vec::new()), Vec::new());
    }

    #[test]
    fn a_million_neighbours_become_one() {
        let base = u128::from("2001:db8::".parse::<Ipv6Addr>().unwrap());
        let prefixes = (0..1u128 << 20).rev();
        let prefixes = prefixes.map(|n| Ipv6Prefix::new(Ipv6Addr::from(base | n << 64), 64).unwrap());
        assert_eq!(aggregate(prefixes.collect()), list(&["2001:db8::/44"]));
    }

    /// Prefixes in a universe of 256 blocks (the top eight bits), small enough to try every address.
    fn small_prefix() -> impl Strategy<Value = Ipv6Prefix> {
        (any::<u8>(), 0u8..=8)
            .prop_map(|(top, len)| Ipv6Prefix::new(Ipv6Addr::from(u128::from(top) << 120), len).unwrap())
    }

    fn any_prefix() -> impl Strategy<Value = Ipv6Prefix> {
        // Few distinct addresses, so that prefixes nest and touch.
        (0u128..16, 0u8..=128).prop_map(|(low, len)| {
            Ipv6Prefix::new(Ipv6Addr::from(low | low << 124 | low << 62), len).unwrap()
        })
    }

    proptest! {
        #[test]
        fn the_same_addresses_are_in(prefixes in prop::collection::vec(small_prefix(), 0..40)) {
            let merged = aggregate(prefixes.clone());
            for top in 0..256u128 {
                let addr = Ipv6Addr::from(top << 120 | 7);
                let stupid = prefixes.iter().any(|p| p.contains(addr));
                let holders = merged.iter().filter(|p| p.contains(addr)).count();
                prop_assert_eq!(holders, usize::from(stupid), "{}", addr);
            }
        }

        #[test]
        fn edges_of_prefixes_of_all_lengths_stay(prefixes in prop::collection::vec(any_prefix(), 0..40)) {
            let merged = aggregate(prefixes.clone());
            for prefix in &prefixes {
                let size = 1u128.checked_shl(128 - u32::from(prefix.prefix_len())).unwrap_or(0);
                let last = prefix.bits().wrapping_add(size).wrapping_sub(1);
                let around = [prefix.bits().wrapping_sub(1), prefix.bits(), last, last.wrapping_add(1)];
                for addr in around.map(Ipv6Addr::from) {
                    let stupid = prefixes.iter().any(|p| p.contains(addr));
                    let holders = merged.iter().filter(|p| p.contains(addr)).count();
                    prop_assert_eq!(holders, usize::from(stupid), "{}", addr);
                }
            }
        }

        #[test]
        fn nothing_is_left_to_join(prefixes in prop::collection::vec(any_prefix(), 0..40)) {
            let merged = aggregate(prefixes);
            prop_assert!(merged.is_sorted());
            for (n, a) in merged.iter().enumerate() {
                for b in &merged[n + 1..] {
                    prop_assert!(!a.covers(*b) && !b.covers(*a));
                    prop_assert_eq!(joined(*a, *b), None);
                }
            }
        }
    }
}
