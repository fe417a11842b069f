//! Reload and the kernel's network: routes and listeners follow as a whole, and nobody notices who is not meant.
//!
//! ```text
//!   C alice ══UDP══ 10.71.0.1 S s1 ──IPv6── U
//!                             six0 fd00:2:1::/64, with a neighbour fd00:2:1::/63
//! ```

#![allow(clippy::unwrap_used, reason = "a test has nobody to return an error to")]

use std::thread;
use std::time::Duration;

use netns_tests::{ALICE, PATIENCE, Rig, Router, S4, U6, pings, program, tunnel, wait_for};

/// Another tunnel, to a port where nobody is.
fn other(name: &str, port: u16, prefix: &str) -> String {
    tunnel(name, "udp", &format!("10.71.0.77:{port}"), prefix, "")
}

#[test]
fn a_route_that_is_taken_refuses_the_whole_reload() {
    let Some(rig) = Rig::new_or_skip("a reload meets a route that is taken") else { return };
    rig.s.run("ip route add fd00:9::/64 dev s1");
    let alice = Rig::alice("udp", "");
    let server = rig.server(&alice);
    let before = rig.s.run("ip -6 route; ip -o addr show six0");
    let taken = alice + &other("free", 4000, "fd00:8::/64") + &other("taken", 4001, "fd00:9::/64");
    let done = server.reload(&Rig::server_config("", &taken));
    assert!(!done.ok && done.text.contains("fd00:9::/64"), "{}", done.text);
    let tunnels = server.status()["tunnels"].as_array().unwrap().clone();
    assert!(tunnels.len() == 1 && tunnels[0]["name"] == "alice", "{tunnels:?}");
    assert_eq!(rig.s.run("ip -6 route; ip -o addr show six0"), before);
    assert!(rig.alice_peer("udp").ping(U6, PATIENCE).is_some());
}

#[test]
fn a_neighbour_whose_route_merges_with_hers_costs_nothing() {
    let Some(rig) = Rig::new_or_skip("a reload merges and splits alice's route") else { return };
    let alone = Rig::server_config("", &Rig::alice("udp", ""));
    let paired =
        Rig::server_config("", &(Rig::alice("udp", "") + &other("neighbour", 4000, "fd00:2:1:1::/64")));
    let server = rig.server(&Rig::alice("udp", ""));
    let peer = rig.alice_peer("udp");
    assert!(peer.ping(U6, PATIENCE).is_some());
    let serving = peer.serve();
    let merged = || rig.s.run("ip -6 route show dev six0").contains("fd00:2:1::/63");
    thread::scope(|scope| {
        let flood = scope.spawn(|| pings(&rig.u, ALICE, FLOOD, "-i 0.002"));
        for _ in 0..10 {
            for (config, one) in [(&paired, true), (&alone, false)] {
                let done = server.reload(config);
                assert!(done.ok, "{}", done.text);
                assert_eq!(merged(), one, "two halves are one route");
            }
        }
        assert!(!flood.is_finished(), "all reloads were amid the traffic");
        assert_eq!(flood.join().unwrap(), FLOOD);
    });
    drop(serving);
}

#[test]
fn the_outer_address_goes_and_comes_back() {
    let Some(rig) = Rig::new_or_skip("a reload lets go of the outer address") else { return };
    let here = Rig::server_config("", &Rig::alice("udp", ""));
    let anywhere = here.replace(&format!("outer = \"{S4}\"\n"), "");
    assert_ne!(here, anywhere);
    let server = rig.server(&Rig::alice("udp", ""));
    let alice = rig.alice_peer("udp");
    for (config, listener) in [(&anywhere, "0.0.0.0:3653"), (&here, "10.71.0.1:3653")] {
        let done = server.reload(config);
        assert!(done.ok, "{}", done.text);
        let listeners = rig.s.run("ss -Hlun");
        assert!(listeners.contains(listener) && !listeners.contains(other_of(listener)), "{listeners}");
        assert!(alice.ping(U6, PATIENCE).is_some());
        let serving = alice.serve();
        assert_eq!(pings(&rig.u, ALICE, 5, ""), 5);
        drop(serving);
    }
}

/// What of the kernel's is in the router's hands: addresses of the device, and routes to it.
fn kernel(rig: &Rig) -> String {
    rig.s.run("ip -6 -o addr show dev six0 scope global; ip -6 route show dev six0 | grep -v fe80; ip link show six0 | grep -o 'mtu [0-9]*'")
}

fn audited(rig: &Rig, server: &Router) -> String {
    let ask = format!("{} audit --socket {}", program().display(), server.socket().display());
    let said = rig.s.attempt(&ask).text;
    said.lines().skip_while(|line| !line.contains("device ")).take(2).collect::<Vec<_>>().join("\n")
}

#[track_caller]
fn is_back(rig: &Rig, server: &Router, before: &str) {
    wait_for(&format!("all that was on six0: {}", server.log()), PATIENCE, || {
        (kernel(rig) == before).then_some(())
    });
    assert!(rig.alice_peer("udp").ping(U6, PATIENCE).is_some());
    assert!(audited(rig, server).starts_with("pass"), "{}", audited(rig, server));
}

#[test]
fn what_falls_with_the_device_is_put_back() {
    let Some(rig) = Rig::new_or_skip("the router's device goes down and up") else { return };
    let config = Rig::server_config("", &(Rig::alice("udp", "") + &Rig::bob("mtu = 1400")));
    let server = Router::start(&rig.lab, &rig.s, &config);
    let before = kernel(&rig);
    assert!(
        before.contains("fd00:2::1/64") && before.contains("fd00:2:2::/64") && before.contains("1400"),
        "{before}"
    );
    assert_eq!(server.status()["tun_is_up"], true);
    is_back(&rig, &server, &before);

    rig.s.run("ip link set six0 down");
    wait_for("a word", PATIENCE, || server.log().contains("six0 is down").then_some(()));
    assert_eq!(server.status()["tun_is_up"], false);
    let shown = rig.s.run(&format!("{} status --socket {}", program().display(), server.socket().display()));
    assert!(shown.contains("six0 is DOWN"), "{shown}");
    assert!(audited(&rig, &server).contains("FAIL") && audited(&rig, &server).contains("is down"));
    rig.s.run("ip link set six0 up");
    is_back(&rig, &server, &before);
    assert!(server.log().contains("put back: addresses: 1, routes: 2"), "{}", server.log());

    // Also faster than anybody looks, again and again.
    for _ in 0..3 {
        rig.s.run("ip link set six0 down; ip link set six0 up");
        is_back(&rig, &server, &before);
    }
    assert!(server.log().matches("put back").count() <= 4, "{}", server.log());

    // What is taken away from a device that is up stays away, until a reload.
    rig.s.run("ip -6 addr del fd00:2::1/64 dev six0; ip link set six0 mtu 1300");
    thread::sleep(Duration::from_secs(2));
    assert!(!kernel(&rig).contains("fd00:2::1/64"), "{}", kernel(&rig));
    assert!(
        audited(&rig, &server).contains("not on six0: the address fd00:2::1/64"),
        "{}",
        audited(&rig, &server)
    );
    let done = server.reload(&config);
    assert!(done.ok && done.text.contains("put back: addresses: 1, routes: 0"), "{}", done.text);
    is_back(&rig, &server, &before);
    rig.s.run("ip link set six0 down");
    assert!(server.reload(&config).ok);
    is_back(&rig, &server, &before);
    let done = server.reload(&config);
    assert!(done.ok && !done.text.contains("put back"), "{}", done.text);
    server.stop();
}

fn other_of(listener: &str) -> &'static str {
    if listener.starts_with('0') { "10.71.0.1:3653" } else { "0.0.0.0:3653" }
}

const FLOOD: u32 = 2000;
