//! Leases on a shelf: hosts, pools, relays, declined addresses; and any steps in any order.

use super::*;
use crate::compat::dhcp6sconf::{Anywhere, load};
use crate::dhcp6s::plan::Site;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;

const CONF: &str = "
    interface vs0 { address-pool p 100 200; delegated-prefix-pool 2001:db8:8000::/54 56 100 200; };
    pool p { range 2001:db8:1::10 to 2001:db8:1::17; };
    interface vs1 { address-pool q 10 20; };
    pool q { range 2001:db8:2::10 to 2001:db8:2::17; };
    host a { duid 00:0a; address 2001:db8:1::12 30 40; prefix 2001:db8:a::/48 30 40; prefix 2001:db8:b::/56 30 40; };
    host b { duid 00:0b; prefix 2001:db8:8000:100::/56 infinity; };
";

fn site(name: &str, own: &str) -> Site {
    let addr: Ipv6Addr = own.split('/').next().unwrap().parse().unwrap();
    let on_link = Ipv6Prefix::new(addr, 64).into_iter().collect();
    Site { name: name.into(), own: [addr].into(), on_link }
}

fn plan(text: &str) -> Plan {
    let loaded = load("x", text.as_bytes(), &Anywhere).unwrap_or_else(|wrong| panic!("{wrong:?}"));
    Plan::new(&loaded.conf, [site("vs0", "2001:db8:1::1/64"), site("vs1", "2001:db8:2::1/64")])
}

fn shelf(text: &str) -> Shelf {
    let mut shelf = Shelf::new(plan(text), Vec::new(), 1000);
    shelf.next(1000, "vs0", None);
    shelf
}

fn wish(client: u8, kind: BindKind, number: u32) -> BindWish {
    BindWish {
        key: BindKey { tunnel: "vs0".into(), client: [0, client][..].into(), kind, number },
        user: None,
        fixed: Vec::new(),
        on_link: Vec::new(),
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
    let all: Vec<Option<String>> = (0..8).map(|n| bind(&mut shelf, &wish(0x10 + n, Address, 1))).collect();
    assert_eq!(all.iter().flatten().count(), 7, "the host's is not given: {all:?}");
    let all: Vec<Option<String>> = (0..4).map(|n| bind(&mut shelf, &wish(0x10 + n, Prefix, 1))).collect();
    assert_eq!(all.iter().flatten().count(), 3, "{all:?}");
    assert_eq!(
        shelf.lifetimes(&wish(0xa, Address, 1).key, "2001:db8:1::12/128".parse().unwrap(), None),
        Some(Life { preferred: 30, valid: 40 })
    );
}

#[test]
fn nothing_is_promised_that_cannot_be_kept() {
    use BindKind::{Address, Prefix};
    let mut shelf = shelf(CONF);
    let forever = wish(0xb, Prefix, 1);
    bind(&mut shelf, &forever).unwrap();
    bind(&mut shelf, &wish(1, Address, 1)).unwrap();
    let changes = shelf.poll_changes();
    shelf.close();
    shelf.next(1000, "vs0", None);
    assert_eq!((bind(&mut shelf, &forever), shelf.is_refused()), (None, true), "it is not on the disk");
    shelf.kept(&changes, shelf.changes());
    let refused = |shelf: &mut Shelf, what: &dyn Fn(&mut Shelf)| {
        let (before, leases) = (shelf.changes(), shelf.len());
        shelf.next(1001, "vs0", None);
        what(shelf);
        assert_eq!((shelf.changes(), shelf.len()), (before, leases));
        shelf.is_refused()
    };
    assert!(
        !refused(&mut shelf, &|shelf| assert!(bind(shelf, &forever).is_some())),
        "what never ends is kept"
    );
    assert!(refused(&mut shelf, &|shelf| assert!(bind(shelf, &wish(1, Address, 1)).is_none())), "for longer");
    assert!(refused(&mut shelf, &|shelf| assert!(bind(shelf, &wish(2, Address, 1)).is_none())), "new");
    assert!(refused(&mut shelf, &|shelf| assert!(shelf.offer(&[wish(2, Address, 1)])[0].is_err())));
    let key = wish(1, Address, 1).key;
    let own = shelf.bound(&key)[0];
    assert!(refused(&mut shelf, &|shelf| shelf.release(own)));
    assert!(refused(&mut shelf, &|shelf| shelf.decline(&key, own, Duration::from_secs(9))));
    shelf.next(1200, "vs0", None);
    assert_eq!(shelf.len(), 1, "what is over ends all the same");
    shelf.open();
    assert!(bind(&mut shelf, &wish(2, Address, 1)).is_some() && !shelf.is_refused());
}

#[test]
fn what_is_proved_again_is_a_change_again() {
    let mut shelf = shelf(CONF);
    let before = shelf.changes();
    shelf.keep_proof(&[1], 5);
    shelf.keep_proof(&[1], 6);
    assert_eq!(shelf.changes(), before + 2);
    assert_eq!(shelf.poll_proofs(), Proofs::from([([1][..].into(), 6)]));
}

#[test]
fn what_never_ends_is_written_once() {
    let mut shelf = shelf(CONF);
    bind(&mut shelf, &wish(0xb, BindKind::Prefix, 1)).unwrap();
    let first = shelf.poll_changes();
    // Said again before it is on the disk, it has to wait for that as well.
    bind(&mut shelf, &wish(0xb, BindKind::Prefix, 1)).unwrap();
    let (second, number) = (shelf.poll_changes(), shelf.changes());
    assert_eq!((first.len(), second.len()), (1, 1));
    shelf.kept(&first, number - 1);
    bind(&mut shelf, &wish(0xb, BindKind::Prefix, 1)).unwrap();
    assert_eq!(shelf.poll_changes().len(), 1, "the first is, the second is not");
    shelf.kept(&second, shelf.changes());
    bind(&mut shelf, &wish(0xb, BindKind::Prefix, 1)).unwrap();
    assert_eq!(shelf.poll_changes(), []);
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
    let unknown = BindWish { link: Some("2001:db8:3::1".parse().unwrap()), ..wish(3, BindKind::Address, 1) };
    assert_eq!(bind(&mut shelf, &unknown), None, "of no use there");
    for (addr, on_link) in
        [("2001:db8:1::ffff/128", true), ("2001:db8:9::1/128", false), ("2001:db8:8000::/56", true)]
    {
        assert_eq!(shelf.is_on_link(addr.parse().unwrap(), None), on_link, "{addr}");
    }
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
    shelf.next(1500, "vs0", None);
    assert_eq!(bind(&mut shelf, &own).as_deref(), Some("2001:db8:1::12/128"));
    shelf.next(1540, "vs0", None);
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
    assert!(shelf.forget(BindKind::Address, 1, &[0, 0xa]) && !shelf.forget(BindKind::Address, 1, &[0, 0xa]));
    assert_eq!(shelf.bound(&wish(0xa, BindKind::Prefix, 1).key).len(), 1);
}

fn on(link: &str, wish: BindWish) -> BindWish {
    BindWish { key: BindKey { tunnel: link.into(), ..wish.key.clone() }, ..wish }
}

#[test]
fn one_pool_on_two_links_gives_each_prefix_once() {
    let pool = "delegated-prefix-pool 2001:db8:8000::/54 56 100 200;";
    let mut shelf = shelf(&format!("interface vs0 {{ {pool} }}; interface vs1 {{ {pool} }};"));
    let mut given = BTreeSet::new();
    for n in 0..4 {
        let wish = on(["vs0", "vs1"][usize::from(n) % 2], wish(n, BindKind::Prefix, 1));
        assert!(given.insert(bind(&mut shelf, &wish).unwrap()));
    }
    assert_eq!(bind(&mut shelf, &on("vs1", wish(9, BindKind::Prefix, 1))), None);
}

#[test]
fn a_host_that_moves_to_another_link_takes_its_own_along() {
    let mut shelf = shelf("host a { duid 00:0a; prefix 2001:db8:a::/48 30 40; };");
    let (first, second) = (wish(0xa, BindKind::Prefix, 1), on("vs1", wish(0xa, BindKind::Prefix, 7)));
    assert!(bind(&mut shelf, &first).is_some());
    shelf.next(1001, "vs1", Some("fe80::a".parse().unwrap()));
    let offered = shelf.offer(std::slice::from_ref(&second))[0].unwrap().to_string();
    assert_eq!(bind(&mut shelf, &second), Some(offered));
    assert_eq!((shelf.bound(&first.key).len(), shelf.len()), (0, 1));
    assert_eq!(&*shelf.iter().next().unwrap().key.tunnel, "vs1");
}

/// The same wish, which has come through a relay that has this address on the client's link.
fn behind(link: &str, wish: BindWish) -> BindWish {
    BindWish { link: Some(link.parse().unwrap()), ..wish }
}

/// RFC: V9, V19 (RFC 8415 sections 13.1 and 18.3.4). Anybody may call himself by a client's name on another link: what that
/// client was promised stays its own.
#[test]
fn who_moves_to_another_relayed_link_is_given_an_address_there_and_leaves_the_old_one() {
    use BindKind::Address;
    let (x, y) = ("2001:db8:1::9", "2001:db8:2::9");
    let mut shelf = shelf(CONF);
    let first = bind(&mut shelf, &behind(x, wish(1, Address, 1))).unwrap();
    assert!(first.starts_with("2001:db8:1::"), "{first}");
    shelf.poll_changes();
    let moved = behind(y, wish(1, Address, 1));
    let offered = shelf.offer(std::slice::from_ref(&moved))[0].unwrap();
    assert_eq!((shelf.poll_changes(), shelf.bound(&moved.key)), (vec![], vec![first.parse().unwrap()]));
    let second = bind(&mut shelf, &moved).unwrap();
    assert!(second == offered.to_string() && second.starts_with("2001:db8:2::"), "{second}");
    let old: Ipv6Prefix = first.parse().unwrap();
    assert_eq!(shelf.bound(&moved.key), [old, offered], "the old one stays its own until its time is over");
    assert!(shelf.has_here(&moved.key, offered, moved.link));
    assert!(!shelf.has_here(&moved.key, offered, Some(x.parse().unwrap())));
    // Nobody else is given it: the host's aside, all that the link has but this.
    let all = (20..28).filter_map(|n| bind(&mut shelf, &behind(x, wish(n, Address, 1))));
    assert!(all.collect::<BTreeSet<_>>().len() == 6 && shelf.get(old).unwrap().key == moved.key);
    // Asked for on its own link it is extended, and the other is not; and the other way round.
    shelf.next(1010, "vs0", None);
    assert_eq!(bind(&mut shelf, &behind(x, wish(1, Address, 1))), Some(first));
    assert_eq!((shelf.get(old).unwrap().until, shelf.get(offered).unwrap().until), (1210, 1020));
    shelf.next(1019, "vs0", None);
    assert_eq!(bind(&mut shelf, &moved), Some(second));
    assert_eq!((shelf.get(old).unwrap().until, shelf.get(offered).unwrap().until), (1210, 1039));
    shelf.next(1210, "vs0", None);
    assert!(shelf.bound(&moved.key).is_empty(), "each ends at its time");
    assert!(bind(&mut shelf, &behind(x, wish(28, Address, 1))).is_some(), "and is others' then");
}

#[test]
fn who_has_all_that_one_may_have_elsewhere_loses_none_of_it() {
    use BindKind::Address;
    let mut shelf = shelf(
        "interface vs0 { address-pool p 100; }; interface vs1 { address-pool q 100; };
        pool p { range 2001:db8:1::1000 to 2001:db8:1::1fff; }; pool q { range 2001:db8:2::1000 to 2001:db8:2::1fff; };
        host a { duid 00:0a; address 2001:db8:1::12 30 40; };",
    );
    let own = bind(&mut shelf, &wish(1, Address, 0)).unwrap();
    let there = |n| behind("2001:db8:2::9", wish(1, Address, n));
    let wishes: Vec<BindWish> = (0..20).map(there).collect();
    let offered = shelf.offer(&wishes);
    let bound: Vec<_> =
        wishes.iter().map(|wish| shelf.bind(wish, Duration::ZERO).map(|all| all[0])).collect();
    assert_eq!(offered, bound);
    assert_eq!(bound.iter().flatten().count(), MAX_OF_CLIENT - 1);
    assert_eq!(bind(&mut shelf, &wish(1, Address, 0)), Some(own), "extended as ever");
    assert_eq!(shelf.len(), MAX_OF_CLIENT);
}

#[test]
fn a_lease_of_longer_standing_is_not_taken_back_because_it_has_no_route() {
    let mut shelf = shelf("interface vs0 { delegated-prefix-pool 2001:db8:8000::/55 56 100; };");
    let client = wish(1, BindKind::Prefix, 1);
    let own = shelf.bind(&client, Duration::ZERO).unwrap()[0];
    let changes = shelf.poll_changes();
    shelf.settled(&changes);
    let before = shelf.changes();
    shelf.refuse(own);
    assert_eq!((shelf.bound(&client.key), shelf.changes()), (vec![own], before));
    let leases: Vec<Lease> = shelf.iter().cloned().collect();
    let mut anew = Shelf::new(shelf.plan.clone(), leases, 1000);
    anew.refuse(own);
    assert_eq!(anew.bound(&client.key), [own], "nor after a start");
    // Somebody else's, of which nobody has heard, is.
    anew.release(own);
    let other = BindWish { hints: vec![own], ..wish(2, BindKind::Prefix, 1) };
    assert_eq!(anew.bind(&other, Duration::ZERO), Ok(vec![own]));
    anew.settled(&changes);
    anew.refuse(own);
    assert_eq!(anew.bound(&other.key), []);
}

#[test]
fn what_a_client_leaves_is_its_own_until_it_is_over() {
    let mut shelf = shelf(
        "interface vs0 { delegated-prefix-pool 2001:db8:8000::/56 56 100; };
        interface vs1 { address-pool q 100; delegated-prefix-pool 2001:db8:8000::/56 57 50; };
        pool q { range 2001:db8:2::10 to 2001:db8:2::17; };",
    );
    let before = wish(1, BindKind::Prefix, 1);
    assert_eq!(bind(&mut shelf, &before).as_deref(), Some("2001:db8:8000::/56"));
    let moved = |number| behind("2001:db8:2::9", BindWish { salt: 9, ..wish(1, BindKind::Prefix, number) });
    let mut offered = shelf.offer(&[moved(1), moved(2), moved(3)]);
    assert_eq!(offered, [Err(Lack); 3], "it has all of the space");
    shelf.next(1100, "vs0", None);
    offered = shelf.offer(&[moved(1), moved(2), moved(3)]);
    let bound: Vec<_> = (1..4).map(|n| shelf.bind(&moved(n), Duration::ZERO).map(|all| all[0])).collect();
    assert_eq!(offered, bound, "of two halves");
    assert!(offered.pop() == Some(Err(Lack)) && offered.iter().all(|half| half.is_ok()));
    assert_eq!(shelf.len(), 2);
    let life = shelf.lifetimes(&moved(1).key, bound[0].unwrap(), moved(1).link);
    assert_eq!(life, Some(Life { preferred: 50, valid: 50 }));
}

#[test]
fn one_pool_has_the_lifetimes_of_the_link_that_the_client_is_on() {
    let mut shelf = shelf(
        "interface vs0 { address-pool p 100 200; }; interface vs1 { address-pool p 10 20; };
        pool p { range 2001:db8:1::10 to 2001:db8:1::17; };",
    );
    let there = on("vs1", wish(1, BindKind::Address, 1));
    shelf.next(1000, "vs1", None);
    let given = shelf.bind(&there, Duration::ZERO).unwrap()[0];
    let told = shelf.lifetimes(&there.key, given, None).unwrap();
    assert_eq!((told.valid, shelf.get(given).unwrap().until), (20, 1020));
}

/// A prefix that a host takes along behind a relay is the relay's to route.
#[test]
fn who_is_behind_a_relay_of_another_link_is_not_on_this_one_any_more() {
    let mut shelf = shelf(CONF);
    let own = wish(0xa, BindKind::Prefix, 1);
    shelf.next(1001, "vs0", Some("fe80::a".parse().unwrap()));
    bind(&mut shelf, &own);
    shelf.next(1002, "vs0", None);
    for (link, is_here) in [("2001:db8:1::9", true), ("2001:db8:2::9", false)] {
        bind(&mut shelf, &behind(link, own.clone()));
        assert_eq!(shelf.iter().all(|lease| lease.peer.is_some()), is_here, "{link}");
    }
}

#[test]
fn what_is_on_a_link_or_the_server_s_own_is_given_to_nobody() {
    let mut shelf = shelf(
        "interface vs0 { address-pool p 10; delegated-prefix-pool 2001:db8:1::/63 64 10; };
        pool p { range 2001:db8:1::1 to 2001:db8:1::1; };
        host a { duid 00:0a; prefix 2001:db8:2::/64 30 40; prefix 2001:db8:2:0:8000::/65 30; address 2001:db8:2::1 30 40; };
        host b { duid 00:0b; prefix ::/0 30 40; };",
    );
    assert_eq!(bind(&mut shelf, &wish(1, BindKind::Address, 1)), None);
    for client in [0xa, 0xb] {
        assert_eq!(bind(&mut shelf, &wish(client, BindKind::Prefix, 1)), None);
    }
    assert_eq!(bind(&mut shelf, &wish(0xa, BindKind::Address, 1)), None);
    assert_eq!(bind(&mut shelf, &wish(1, BindKind::Prefix, 1)).as_deref(), Some("2001:db8:1:1::/64"));
    assert_eq!(bind(&mut shelf, &wish(2, BindKind::Prefix, 1)), None, "the other half is the link");
    // An address is added to an interface: who had it loses it.
    let mut plan = plan("interface vs0 { delegated-prefix-pool 2001:db8:1::/63 64 10; };");
    assert_eq!(shelf.len(), 1);
    plan = Plan::new(
        &load("x", b"", &Anywhere).unwrap().conf,
        [site("vs0", "2001:db8:1:1::1/64")].into_iter().chain(plan.sites().skip(1).cloned()),
    );
    shelf.configure(plan);
    assert!(shelf.is_empty());
}

#[test]
fn reserved_identifiers_are_skipped() {
    let mut shelf = shelf(
        "interface vs0 { address-pool p 10; }; pool p { range 2001:db8:1::200:5eff:fe00:0 to 2001:db8:1::200:5eff:fe00:5214; };",
    );
    let given = bind(&mut shelf, &wish(1, BindKind::Address, 1));
    assert_eq!(given.as_deref(), Some("2001:db8:1:0:200:5eff:fe00:5214/128"));
}

#[test]
fn an_almost_full_pool_costs_no_more_than_an_empty_one() {
    let mut shelf = shelf(
        "interface vs0 { address-pool p 1000; delegated-prefix-pool 2001:db8:8000::/40 64 1000; };
        pool p { range 2001:db8:1::1000 to 2001:db8:1::f:ffff; }; host z { duid 00:ff; prefix 2001:db8:ff::/48 9; };",
    );
    // All but three addresses.
    let vacancy = shelf.vacancies.values_mut().find(|one| one.extent().len == 128).unwrap();
    for len in 109..128 {
        vacancy.occupy(Ipv6Prefix::new("2001:db8:1::f:0000".parse().unwrap(), 112).unwrap());
        let high = u128::from("2001:db8:1::f:ffff".parse::<Ipv6Addr>().unwrap());
        let apart = Ipv6Prefix::new(Ipv6Addr::from(high ^ (1 << (127 - len))), len + 1).unwrap();
        vacancy.occupy(apart);
    }
    (0..0xf).for_each(|n| {
        vacancy.occupy(Ipv6Prefix::new(format!("2001:db8:1::{n:x}:0").parse().unwrap(), 112).unwrap())
    });
    let free: Ipv6Prefix = "2001:db8:1::7:1234/128".parse().unwrap();
    vacancy.vacate(free, |_| true);
    let wishes: Vec<BindWish> = (0..16).map(|n| wish(1, BindKind::Address, n)).collect();
    let began = std::time::Instant::now();
    for _ in 0..100 {
        let offered = shelf.offer(&wishes);
        assert_eq!(offered.iter().filter(|one| one.is_ok()).count(), 1);
        assert_eq!(offered[0], Ok(free));
    }
    // A search from end to end takes half a second each; this has room for the slowest machine.
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[test]
fn declining_uses_no_pool_up() {
    let mut shelf =
        shelf("interface vs0 { address-pool p 1000; }; pool p { range 2001:db8:1::10 to 2001:db8:1::17; };");
    let day = Duration::from_secs(86_400);
    for n in 0..40 {
        let client = wish(n / 20, BindKind::Address, 1);
        let bound = shelf.bind(&client, Duration::ZERO).unwrap_or_else(|_| panic!("round {n}"));
        shelf.decline(&client.key, bound[0], day);
        let idle = shelf.iter().filter(|lease| lease.key.client.is_empty()).count();
        assert!(idle <= MAX_DECLINED * usize::from(n / 20 + 1), "{idle} after {n}");
    }
    // All are idle or given: others are given what was declined first.
    let all: Vec<Option<String>> =
        (10..19).map(|n| bind(&mut shelf, &wish(n, BindKind::Address, 1))).collect();
    assert_eq!(all.iter().flatten().collect::<BTreeSet<_>>().len(), 8, "{all:?}");
    assert_eq!(all[8], None);
}

#[test]
fn pools_of_two_lengths_or_beginnings_are_two_pools() {
    let mut shelf = shelf(
        "interface vs0 { address-pool p 100; delegated-prefix-pool 2001:db8:8000::/55 56 100; };
        pool p { range 2001:db8:1::1000 to 2001:db8:1::1001; };
        pool p2 { range 2001:db8:1::1000 to 2001:db8:1::10ff; };
        host a { duid 00:0a; address-pool p2 100; delegated-prefix-pool 2001:db8:8000::/55 60 100; };",
    );
    for n in 0..2 {
        assert!(bind(&mut shelf, &wish(n, BindKind::Address, 1)).is_some());
    }
    assert_eq!(bind(&mut shelf, &wish(3, BindKind::Address, 1)), None);
    assert!(bind(&mut shelf, &wish(0xa, BindKind::Address, 1)).is_some());
    assert!(bind(&mut shelf, &wish(0, BindKind::Prefix, 1)).is_some());
    let own = bind(&mut shelf, &wish(0xa, BindKind::Prefix, 1));
    assert!(own.is_some_and(|prefix| prefix.ends_with("/60")));
    assert_eq!(
        bind(&mut shelf, &wish(1, BindKind::Prefix, 1)),
        None,
        "the rest of the other /56 is too small"
    );
}

#[test]
fn who_is_on_the_link_stays_known_there() {
    let mut shelf = shelf(CONF);
    let own = wish(0xa, BindKind::Prefix, 1);
    let (near, far): (Ipv6Addr, Ipv6Addr) = ("fe80::a".parse().unwrap(), "2001:db8:1::a".parse().unwrap());
    let mut peer = |from| {
        shelf.next(1001, "vs0", from);
        bind(&mut shelf, &own);
        shelf.iter().next().unwrap().peer
    };
    assert_eq!(peer(Some(far)), Some(far), "any neighbour will do");
    assert_eq!(peer(Some(near)), Some(near));
    assert_eq!(peer(Some(far)), Some(near), "from another address of its own");
    assert_eq!(peer(None), Some(near), "through a relay");
    assert_eq!(peer(Some("fe80::b".parse().unwrap())), Some("fe80::b".parse().unwrap()));
}

#[test]
fn what_cannot_be_routed_is_given_to_nobody_for_a_while() {
    let mut shelf = shelf("interface vs0 { delegated-prefix-pool 2001:db8:8000::/55 56 100; };");
    let client = wish(1, BindKind::Prefix, 1);
    let first = shelf.bind(&client, Duration::ZERO).unwrap()[0];
    assert_eq!(shelf.poll_told(), [(client.key.clone(), first)]);
    shelf.refuse(first);
    let second = shelf.bind(&client, Duration::ZERO).unwrap()[0];
    assert_ne!(first, second);
    assert_eq!(bind(&mut shelf, &wish(2, BindKind::Prefix, 1)), None);
    shelf.next(1061, "vs0", None);
    assert_eq!(bind(&mut shelf, &wish(2, BindKind::Prefix, 1)), Some(first.to_string()));
}

#[derive(Clone, Debug)]
enum Step {
    Bind {
        client: u8,
        address: bool,
        number: u32,
        link: usize,
        relay: usize,
        hint: Option<u16>,
        only_fixed: bool,
    },
    Release(u8, bool, u32, usize),
    Decline(u8, u32, usize),
    Refuse(usize),
    Wait(u64),
    /// The disk fails for a while: what has changed is written later, or never if the process dies before.
    Disk(bool),
    Restart,
    Reload(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let who = || (8_u8..20, any::<bool>(), 0_u32..3, 0_usize..2);
    let how = (0_usize..5, prop::option::of(0_u16..600), any::<bool>());
    prop_oneof![
        6 => (who(), how).prop_map(|((client, address, number, link), (relay, hint, only_fixed))| {
            Step::Bind { client, address, number, link, relay, hint, only_fixed }
        }),
        2 => who().prop_map(|(c, a, n, l)| Step::Release(c, a, n, l)),
        1 => (8_u8..20, 0_u32..3, 0_usize..2).prop_map(|(c, n, l)| Step::Decline(c, n, l)),
        1 => (0_usize..9).prop_map(Step::Refuse),
        2 => (0_u64..150).prop_map(Step::Wait),
        1 => any::<bool>().prop_map(Step::Disk),
        1 => Just(Step::Restart),
        1 => any::<bool>().prop_map(Step::Reload),
    ]
}

proptest! {
    /// Whatever clients on two links, relays, a failing disk, restarts and reloads do: no two leases overlap, none outlives
    /// its time, nobody has what is set aside for somebody else or on a link, what is free is what nobody has, and who was
    /// told of something (which is after it was written down) has it after any restart until its time is over.
    #[test]
    fn leases_never_overlap_nor_outlive_their_time(steps in prop::collection::vec(step(), 0..80)) {
        const LINKS: [&str; 2] = ["vs0", "vs1"];
        // Of these links one is this one, one the other, one nobody's; half of all messages come through none.
        const RELAYS: [Option<&str>; 5] =
            [None, None, Some("2001:db8:1::9"), Some("2001:db8:2::9"), Some("2001:db8:77::9")];
        let conf = CONF.replace("address-pool q 10 20;", "address-pool q 10 20; delegated-prefix-pool 2001:db8:8000::/54 60 40 80;");
        let other = conf.replace("host a { duid 00:0a;", "host a { duid 00:0c;");
        let mut shelf = shelf(&conf);
        let mut written: BTreeMap<Ipv6Prefix, Lease> = BTreeMap::new();
        let mut unwritten: Vec<Change> = Vec::new();
        // Who has been told of what, and until when.
        let mut told: BTreeMap<Ipv6Prefix, (BindKey, u64)> = BTreeMap::new();
        let (mut now, mut works) = (1000, true);
        let kind = |address| if address { BindKind::Address } else { BindKind::Prefix };
        let of = |client, kind, number, link: usize| on(LINKS[link], wish(client, kind, number));
        for step in steps {
            shelf.next(now, LINKS[0], None);
            let mut answers = Vec::new();
            match step {
                Step::Bind { client, address, number, link, relay, hint, only_fixed } => {
                    let hints = hint.map(|n| {
                        let text = if address { format!("2001:db8:1::{:x}/128", 8 + n % 20) } else { format!("2001:db8:8000:{n:x}0::/60") };
                        text.parse().unwrap()
                    });
                    let wish = BindWish {
                        hints: hints.into_iter().collect(),
                        length: hint.filter(|n| !address && n % 3 == 0).map(|_| 60),
                        link: RELAYS[relay].map(|link| link.parse().unwrap()),
                        only_fixed,
                        ..of(client, kind(address), number, link)
                    };
                    let peer: Option<Ipv6Addr> = wish.link.is_none().then(|| "fe80::7".parse().unwrap());
                    shelf.next(now, LINKS[link], peer);
                    let also = BindWish { key: BindKey { number: number + 7, ..wish.key.clone() }, ..wish.clone() };
                    let offered = shelf.offer(&[wish.clone(), also]);
                    let changes = shelf.poll_changes();
                    prop_assert!(changes.is_empty(), "an offer keeps nothing: {changes:?}");
                    let bound = shelf.bind(&wish, Duration::ZERO).map(|all| all[0]);
                    prop_assert_eq!(offered[0], bound, "what is offered is given");
                    if let Ok(prefix) = bound {
                        let life = shelf.lifetimes(&wish.key, prefix, wish.link);
                        prop_assert_eq!(life, shelf.get(prefix).map(|lease| lease.life), "what is said is kept");
                        prop_assert!(!shelf.is_of_another_link(&wish.key, prefix, wish.link), "of the link that it is on");
                    }
                    answers = shelf.poll_told();
                }
                Step::Release(client, address, number, link) => {
                    for prefix in shelf.bound(&of(client, kind(address), number, link).key) {
                        shelf.release(prefix);
                        told.remove(&prefix);
                    }
                }
                Step::Decline(client, number, link) => {
                    let key = of(client, BindKind::Address, number, link).key;
                    for prefix in shelf.bound(&key) {
                        shelf.decline(&key, prefix, Duration::from_secs(70));
                        told.remove(&prefix);
                    }
                }
                Step::Refuse(n) => {
                    // Whichever it is: what somebody has been told of stays.
                    let some = shelf.iter().nth(n).map(|lease| lease.prefix);
                    some.into_iter().for_each(|prefix| shelf.refuse(prefix));
                }
                Step::Wait(seconds) => now += seconds,
                Step::Disk(is_good) => works = is_good,
                Step::Restart => {
                    unwritten.clear();
                    let lost = shelf.poll_changes();
                    drop(lost);
                    shelf = Shelf::new(shelf.plan.clone(), written.values().cloned().collect(), now);
                }
                Step::Reload(first) => {
                    shelf.configure(plan(if first { &conf } else { &other }));
                    told.retain(|prefix, (key, _)| !shelf.plan.is_anothers(*prefix, &key.client));
                }
            }
            shelf.handle_timeout(now);
            unwritten.extend(shelf.poll_changes());
            if works {
                shelf.settled(&unwritten);
                for change in unwritten.drain(..) {
                    match change {
                        Change::Has(lease) => drop(written.insert(lease.prefix, lease)),
                        Change::Gone(lease) => drop(written.remove(&lease.prefix)),
                    }
                }
                for (key, prefix) in answers {
                    let until = shelf.get(prefix).unwrap().until;
                    told.insert(prefix, (key, until));
                }
                prop_assert_eq!(shelf.iter().collect::<Vec<_>>(), written.values().collect::<Vec<_>>());
            }
            told.retain(|_, (_, until)| *until > now);
            for (prefix, (key, until)) in &told {
                // What can be only once goes along.
                let is_own = shelf.plan.host(&key.client).is_some();
                let moved = is_own && shelf.get(*prefix).is_some_and(|lease| lease.key.client == key.client);
                let has = shelf.get(*prefix).is_some_and(|lease| lease.key == *key && lease.until >= *until);
                prop_assert!(has || moved || !works, "{prefix} was told to {key:?} until {until}, and it is {now}");
            }
            let all: Vec<&Lease> = shelf.iter().collect();
            for (n, one) in all.iter().enumerate() {
                prop_assert!(one.until > now && (one.until == NEVER || one.until <= now + u64::from(one.life.valid)));
                let meets = |two: &&&Lease| one.prefix.covers(two.prefix) || two.prefix.covers(one.prefix);
                prop_assert!(!all[n + 1..].iter().any(|two| meets(&two)), "{:?}", one);
                prop_assert!(!shelf.plan.is_ours(one.prefix));
                let client = &one.key.client;
                prop_assert!(client.is_empty() || !shelf.plan.is_anothers(one.prefix, client), "{one:?}");
            }
            // Who may ask is told the same, whichever way it is asked for.
            shelf.handle_timeout(now);
            for one in shelf.iter() {
                let known = shelf.whose(one.prefix.addr());
                prop_assert_eq!(known.is_some(), !one.key.client.is_empty());
                let Some(known) = known else { continue };
                prop_assert_eq!((known.prefix, &known.client), (one.prefix, &one.key.client));
                prop_assert_eq!(known.left.map(u64::from), (one.until != NEVER).then(|| one.until - now));
                let at = shelf.address_on(&known);
                prop_assert_eq!(shelf.link_at(at), Some(known.link.clone()), "{} is on {:?}", at, known);
                prop_assert!(shelf.is_configured(at) && shelf.all_of(&one.key.client).contains(&known));
            }
            let mut anew = Shelf::new(shelf.plan.clone(), shelf.iter().cloned().collect(), now);
            anew.lay_out();
            for (extent, vacancy) in &anew.vacancies {
                prop_assert_eq!(format!("{vacancy:?}"), format!("{:?}", shelf.vacancies[extent]));
            }
        }
    }
}
