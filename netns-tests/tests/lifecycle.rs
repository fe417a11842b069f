//! Start, end, crash and start again: nothing is left behind, nothing stands in the way.
//!
//! ```text
//!   C alice ══ S ──IPv6── U
//! ```

use std::time::Duration;

use netns_tests::{ALICE, Client, PATIENCE, Rig, Router, U6, pings};
use nix::sys::signal::Signal;

/// Devices, addresses and routes of the router's namespace.
fn traces(rig: &Rig) -> String {
    rig.s.run("ip -o -d link 2>/dev/null; ip -o addr; ip route; ip -6 route show table all; sysctl net.ipv6.conf.all.forwarding")
}

#[test]
fn sigterm_leaves_nothing_behind() {
    let Some(rig) = Rig::new_or_skip("SIGTERM leaves nothing behind") else { return };
    let before = traces(&rig);
    let server = rig.server(&(Rig::alice("proto41", "") + &Rig::bob("")));
    let alice = rig.alice_peer("proto41");
    assert!(alice.ping(U6, PATIENCE).is_some());
    let running = traces(&rig);
    assert!(running.contains("six0") && running.contains("fd00:2:1::/64"), "{running}");
    let socket = server.socket().to_owned();
    assert!(socket.exists());
    server.stop();
    assert_eq!(traces(&rig), before);
    assert!(!socket.exists(), "its socket file stayed");
}

#[test]
fn sigint_ends_it_as_well() {
    let Some(rig) = Rig::new_or_skip("Ctrl-C leaves nothing behind") else { return };
    let before = traces(&rig);
    rig.server(&Rig::alice("udp", "")).end_by(Signal::SIGINT);
    assert_eq!(traces(&rig), before);
}

#[test]
fn a_device_that_was_there_before_stays() {
    let Some(rig) = Rig::new_or_skip("a TUN device that was there before stays") else { return };
    rig.s.run("ip tuntap add dev six0 mode tun multi_queue");
    let server = rig.server(&Rig::alice("proto41", ""));
    assert!(rig.alice_peer("proto41").ping(U6, PATIENCE).is_some());
    server.stop();
    assert!(rig.s.run("ip -o link").contains("six0"));
    let routes = rig.s.run("ip -6 route show table all");
    assert!(!routes.contains("fd00:2:1::/64"), "our routes go, though the device stays: {routes}");
}

#[test]
fn it_starts_again_after_an_end_and_after_a_crash() {
    let Some(rig) = Rig::new_or_skip("restart") else { return };
    let config = Rig::server_config("", &(Rig::alice("proto41", "") + &Rig::bob("")));
    let config = format!("{config}\n[admin]\nsocket = \"{}\"\n", rig.lab.path("s.sock").display());
    let (alice, bob) = (rig.alice_peer("proto41"), rig.bob_peer());
    let works = |alice: &Client, bob: &Client| {
        assert!(alice.ping(U6, PATIENCE).is_some() && bob.ping(U6, PATIENCE).is_some());
    };
    let first = Router::start(&rig.lab, &rig.s, &config);
    works(&alice, &bob);
    first.stop();
    assert!(alice.ping(U6, Duration::from_millis(300)).is_none());
    let second = Router::start(&rig.lab, &rig.s, &config);
    works(&alice, &bob);
    second.crash();
    assert!(rig.lab.path("s.sock").exists(), "a crash leaves its socket file");
    let third = Router::start(&rig.lab, &rig.s, &config);
    works(&alice, &bob);
    let serving = alice.serve();
    assert_eq!(pings(&rig.u, ALICE, 3, ""), 3);
    drop(serving);
    third.stop();
    assert!(!rig.lab.path("s.sock").exists());
}
