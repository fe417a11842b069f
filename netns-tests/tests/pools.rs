//! Pools, leases and accounts with a real kernel: what nobody has is a black hole, what lasts forwards again by itself.
//!
//! ```text
//!   C alice ══UDP══ 10.71.0.1 S s1 fd00:1::1 ──IPv6── U fd00:1::2
//!       fd00:2:8100::/56, out of the pool fd00:2:8000::/33
//! ```

#![allow(clippy::unwrap_used, reason = "a test has nobody to return an error to")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use netns_tests::{
    BOB, BOB_NET, C4_OTHER, CLIENT_PORT, Client, PATIENCE, Rig, Router, S4, U6, UDP_PORT, pings, program,
    wait_for,
};
use sixway::broker::{
    Account, Grant, Lease, LeaseId, Mechanisms, Pair, Protocol, Record, Secret, Time, UserName,
};
use sixway::store::{Sqlite, Store};
use sixway_dataplane::update::{Ipv6Prefix, Outer, UdpLocal, UdpRemote};

const POOL: &str = "[[pool]]\nprefix = \"fd00:2:8000::/33\"\nassign = 56\n";
const PAIRS: &str = "[[pool]]\nprefix = \"fd00:2:9::/64\"\npairs = true\n";
const ALICE_INSIDE: &str = "fd00:2:8100::2";
const NOBODY: &str = "fd00:2:8200::2";
/// Our end of pair 0, and alice's.
const PAIR_SERVER: &str = "fd00:2:9::5";

struct Told {
    ok: bool,
    text: String,
}

/// Calls the program with these words.
fn sixway(words: &[&str]) -> Told {
    let out = Command::new(program()).args(words).output().unwrap();
    let text = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
    Told { ok: out.status.success(), text }
}

fn config(rig: &Rig, more: &str) -> (PathBuf, String) {
    let store = rig.lab.path("six0.db");
    let tables = format!("{POOL}{PAIRS}[store]\npath = \"{}\"\n{more}", store.display());
    (store, Rig::server_config("", &tables))
}

fn account(name: &str, prefixes: &[&str]) -> Account {
    let secret = Secret::parse(zeroize::Zeroizing::new(b"hush".to_vec())).unwrap();
    let prefixes = prefixes.iter().map(|p| p.parse().unwrap()).collect();
    Account {
        name: UserName::parse(name).unwrap(),
        secret,
        prefixes,
        pair: None,
        mechanisms: Mechanisms::ANY,
    }
}

fn lease(id: u64, user: &str, from: &str, network: &str, pair: Option<Pair>) -> Record {
    let networks: Vec<Ipv6Prefix> = vec![network.parse().unwrap()];
    let local = UdpLocal { addr: Some(S4.parse().unwrap()), port: UDP_PORT };
    let outer = Outer::Udp { local, remote: UdpRemote::Fixed(from.parse().unwrap()) };
    let user = UserName::parse(user).unwrap();
    let name = format!("{user}@tsp").into();
    // Far away: the year 2096.
    let expires = Some(Time(4_000_000_000_000));
    let grant = Grant {
        lease: LeaseId(id),
        user,
        protocol: Protocol::Tsp,
        name,
        outer,
        pair,
        networks,
        mtu: 1280,
        expires,
    };
    Record::Lease(Lease {
        grant,
        protocol: Protocol::Tsp,
        granted: Time(1),
        told: sixway::broker::Told::default(),
    })
}

/// A store as an earlier process has left it: alice has a network out of the pool, and a pair; bob one of his own.
fn with_leases(store: &Path) {
    let at = |addr: &str| format!("{addr}:{CLIENT_PORT}");
    let [server, client] = [PAIR_SERVER, "fd00:2:9::6"].map(|addr| addr.parse().unwrap());
    let pair = Some(Pair { number: 0, server, client });
    let records = [
        Record::Account(account("alice", &[])),
        Record::Account(account("bob", &[BOB_NET])),
        lease(1, "alice", &at("10.71.0.2"), "fd00:2:8100::/56", pair),
        lease(2, "bob", &at(C4_OTHER), BOB_NET, None),
    ];
    Sqlite::open_beside(store).unwrap().append(&records).unwrap();
}

fn alice(rig: &Rig) -> Client {
    Client::udp(&rig.c, &format!("10.71.0.2:{CLIENT_PORT}"), ALICE_INSIDE)
}

/// RFC: X3 (RFC 7084 WPD-5)
#[test]
fn what_of_a_pool_nobody_has_is_a_black_hole() {
    let Some(rig) = Rig::new_or_skip("a pool that nobody has anything of") else { return };
    let (_, config) = config(&rig, &Rig::alice("udp", ""));
    let server = Router::start(&rig.lab, &rig.s, &config);
    let routes = rig.s.run("ip -6 route show dev six0");
    assert!(routes.contains("fd00:2:8000::/33"), "{routes}");
    let before = server.drops("unassigned");
    let told = rig.u.attempt(&format!("ping -n -c 1 -W 2 {NOBODY}")).text;
    assert!(told.contains("No route"), "it hears so at once: {told}");
    assert!(server.drops("unassigned") > before);
    assert!(
        rig.alice_peer("udp").ping(U6, PATIENCE).is_some(),
        "a tunnel of the configuration is not touched"
    );
    server.stop();
}

#[test]
fn the_first_pool_comes_by_a_reload() {
    let Some(rig) = Rig::new_or_skip("a router without a broker, then with one") else { return };
    let server = Router::start(&rig.lab, &rig.s, &Rig::server_config("", &Rig::bob("")));
    assert!(server.status()["broker"].is_null());
    let (store, config) = config(&rig, "");
    with_leases(&store);
    let done = server.reload(&config);
    assert!(done.ok && !done.text.contains("next start"), "{}", done.text);
    assert_eq!(server.status()["broker"]["leases"], 2, "{}", server.log());
    assert_eq!(server.tunnel("alice@tsp")["mtu"], 1280);
    assert!(alice(&rig).ping(U6, PATIENCE).is_some(), "{}", server.log());
    server.stop();
}

#[test]
fn leases_that_last_forward_again_before_anybody_connects() {
    let Some(rig) = Rig::new_or_skip("leases after a restart, and after a crash") else { return };
    let (store, config) = config(&rig, "");
    with_leases(&store);
    let mut server = Router::start(&rig.lab, &rig.s, &config);
    for round in 0..2 {
        let alice = alice(&rig);
        assert!(alice.ping(U6, PATIENCE).is_some(), "round {round}: {}", server.log());
        let serving = alice.serve();
        assert_eq!(pings(&rig.u, ALICE_INSIDE, 2, ""), 2, "round {round}");
        drop((serving, alice));
        let bob = Client::udp(&rig.c, &format!("{C4_OTHER}:{CLIENT_PORT}"), BOB);
        assert!(bob.ping(U6, PATIENCE).is_some(), "his own prefix has a route of its own");
        let inside = Client::udp(&rig.c, &format!("10.71.0.2:{CLIENT_PORT}"), "fd00:2:9::6");
        assert!(inside.ping(PAIR_SERVER, PATIENCE).is_some(), "our end of the pair answers");
        assert_eq!(server.tunnel("alice@tsp")["mtu"], 1280);
        let granted = server.status()["broker"].clone();
        assert_eq!((&granted["leases"], &granted["accounts"]), (&2.into(), &2.into()), "{granted}");
        assert_eq!((&granted["pools"][0]["in_use"], &granted["pools"][1]["in_use"]), (&1.into(), &1.into()));
        if round == 0 {
            server.crash();
            server = Router::start(&rig.lab, &rig.s, &config);
        }
    }
    server.stop();
    assert_eq!(Sqlite::open_beside(&store).unwrap().load().unwrap().leases.len(), 2);
}

#[test]
fn a_kicked_tunnel_and_a_removed_user_s_are_gone() {
    let Some(rig) = Rig::new_or_skip("kick, and the end of an account") else { return };
    let hook = rig.lab.write(
        "hook",
        "#!/bin/sh\nenv | grep ^SIXWAY_ | sort | tr '\\n' ' ' >> \"$0.log\"; echo >> \"$0.log\"\n",
    );
    rig.s.run(&format!("chmod 755 {}", hook.display()));
    let hooks = format!("[hooks]\nup = \"{0}\"\ndown = \"{0}\"\n", hook.display());
    let (store, config) = config(&rig, &hooks);
    with_leases(&store);
    let server = Router::start(&rig.lab, &rig.s, &config);
    let socket = server.socket().to_string_lossy().into_owned();
    let refused = sixway(&["kick", "carol", "--socket", &socket]);
    assert!(!refused.ok && refused.text.contains("no leased tunnel 'carol'"), "{}", refused.text);
    let done = sixway(&["kick", "alice", "--socket", &socket]);
    assert!(done.ok && done.text.contains("ended: 1"), "{}", done.text);
    let gone = |name: &str| {
        let tunnels = server.status()["tunnels"].clone();
        !tunnels.as_array().unwrap().iter().any(|t| t["name"] == name)
    };
    wait_for("alice's tunnel to go", PATIENCE, || gone("alice@tsp").then_some(()));
    assert!(alice(&rig).ping(U6, Duration::from_millis(300)).is_none());
    assert!(!rig.s.run("ip -o addr show six0").contains(PAIR_SERVER), "our end of the pair went with it");
    let del = sixway(&["user", "del", "bob", "--store", &store.to_string_lossy()]);
    assert!(del.ok, "{}", del.text);
    wait_for("bob's tunnel to go", PATIENCE, || gone("bob@tsp").then_some(()));
    assert!(!rig.s.run("ip -6 route").contains(BOB_NET));
    let log = hook.with_extension("log");
    let ran = wait_for("the hooks to run", PATIENCE, || {
        fs::read_to_string(&log).ok().filter(|text| text.lines().count() == 4)
    });
    let line = |words: &[&str]| ran.lines().any(|line| words.iter().all(|word| line.contains(word)));
    assert!(
        line(&["EVENT=up", "TUNNEL=alice@tsp", "NETWORKS=fd00:2:8100::/56", "CLIENT_ADDRESS=fd00:2:9::6"]),
        "{ran}"
    );
    assert!(line(&["EVENT=down", "REASON=kicked", "USER=alice"]), "{ran}");
    assert!(line(&["EVENT=down", "REASON=account_gone", "USER=bob"]), "{ran}");
    assert!(!server.log().contains("hush") && !ran.contains("hush"), "no secret is told");
    server.stop();
    assert!(Sqlite::open_beside(&store).unwrap().load().unwrap().leases.is_empty());
}

#[test]
fn a_store_has_one_router() {
    let Some(rig) = Rig::new_or_skip("two routers and one store") else { return };
    let (_, config) = config(&rig, "");
    let server = Router::start(&rig.lab, &rig.s, &config);
    let second = Router::refused(&rig.lab, &rig.c, &config);
    assert!(!second.ok && second.text.contains("another running router"), "{}", second.text);
    server.stop();
}
