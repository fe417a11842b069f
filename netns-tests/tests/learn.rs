//! `remote = "learn"`: an endpoint is believed only after a nonce sent to it came back through the tunnel.
//!
//! ```text
//!   C 10.71.0.2:*  alice, wherever her NAT puts her ══╗
//!   C 10.71.0.66:* a spoofer who knows her addresses  ══ S ──IPv6── U
//! ```

#![allow(clippy::unwrap_used, reason = "a test has nobody to return an error to")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use netns_tests::{
    ALICE, ALICE_NET, C4, C4_OTHER, Client, Ends, PATIENCE, Rig, Router, S4, U6, echo_requests, icmp, pings,
    tunnel, wait_for,
};

fn begin(story: &str, remote: &str) -> Option<(Rig, Router)> {
    let rig = Rig::new_or_skip(story)?;
    let server = rig.server(&tunnel("alice", "udp", remote, ALICE_NET, ""));
    Some((rig, server))
}

/// A peer at this outer address, with a port of its own.
fn at(rig: &Rig, addr: &str) -> Client {
    Client::udp(&rig.c, &format!("{addr}:0"), ALICE)
}

/// Ping until the router has proven this endpoint and lets packets pass.
fn prove(client: &Client) {
    wait_for("the endpoint to be proven", PATIENCE, || client.ping(U6, Duration::from_millis(300)));
}

#[test]
fn an_endpoint_is_learned_by_proof() {
    let Some((rig, server)) = begin("an endpoint is learned by proof", "learn") else { return };
    let before = server.drops("no_endpoint");
    assert_eq!(pings(&rig.u, ALICE, 2, ""), 0, "nobody knows where she is");
    assert_eq!(server.drops("no_endpoint") - before, 2);
    let alice = at(&rig, C4);
    prove(&alice);
    let serving = alice.serve();
    assert_eq!(pings(&rig.u, ALICE, 5, ""), 5);
    drop(serving);
}

/// RFC: D12 (RFC 8085 section 3.5)
#[test]
fn a_new_port_takes_over_when_it_answers() {
    let Some((rig, _server)) = begin("a NAT changes alice's port", "learn") else { return };
    let old = at(&rig, C4);
    prove(&old);
    let new = at(&rig, C4);
    assert_ne!(old.port(), new.port());
    prove(&new);
    let (at_old, at_new) = (old.serve(), new.serve());
    assert_eq!(pings(&rig.u, ALICE, 5, ""), 5);
    assert!(at_new.answered() >= 5);
    assert_eq!(at_old.answered(), 0, "nothing goes to the old port any more");
}

#[test]
fn a_new_address_takes_over_when_it_answers() {
    let Some((rig, _server)) = begin("alice moves to another address", "learn") else { return };
    prove(&at(&rig, C4));
    let moved = at(&rig, C4_OTHER);
    prove(&moved);
    let serving = moved.serve();
    assert_eq!(pings(&rig.u, ALICE, 3, ""), 3);
    assert!(serving.answered() >= 3);
}

/// RFC: D12
#[test]
fn a_spoofer_moves_nothing_and_is_probed_once_a_second() {
    let Some((rig, _server)) = begin("a spoofer moves nothing", "learn") else { return };
    let alice = at(&rig, C4);
    prove(&alice);
    let seen = echo_requests(&rig.u);
    let serving = alice.serve();
    let spoofer = at(&rig, C4_OTHER).mute();
    let (probes, reached) = thread::scope(|scope| {
        let flood = scope.spawn(|| flood(&spoofer, Duration::from_secs(3)));
        let reached = pings(&rig.u, ALICE, 40, "");
        (flood.join().unwrap(), reached)
    });
    assert_eq!(reached, 40, "alice is reached as if nobody else were there");
    assert!((1..=4).contains(&probes), "{probes} probes in three seconds");
    let passed = seen.finish().iter().filter(|echo| echo.id == SPOOFED).count();
    assert_eq!(passed, 0, "none of the spoofer's packets was forwarded");
    drop(serving);
}

/// Spoof a packet every ten milliseconds; how many packets came back, none of which may be from U.
fn flood(spoofer: &Client, time: Duration) -> usize {
    let (end, mut probes) = (Instant::now() + time, 0);
    while Instant::now() < end {
        spoofer.send(&Ends::new(ALICE, U6).echo_request(SPOOFED, 1, 64));
        let got = spoofer.wait(Duration::from_millis(10), |got| Some((got.src, got.icmp_type())));
        if let Some((src, kind)) = got {
            assert_ne!(src.to_string(), U6, "the spoofer gets alice's packets");
            assert_eq!(kind, Some(icmp::ECHO_REQUEST));
            probes += 1;
        }
    }
    probes
}

/// RFC: D12
#[test]
fn a_wrong_nonce_proves_nothing() {
    let Some((rig, _server)) = begin("a wrong nonce proves nothing", "learn") else { return };
    let alice = at(&rig, C4);
    prove(&alice);
    let liar = at(&rig, C4_OTHER).mute();
    for _ in 0..3 {
        liar.send(&Ends::new(ALICE, U6).echo_request(SPOOFED, 1, 64));
        let probe = liar.wait(Duration::from_millis(1200), |got| {
            let word = got.icmp_word()?.to_be_bytes();
            Some((got.src, got.dst, word, got.payload.get(8..)?.to_vec()))
        });
        let Some((src, dst, word, nonce)) = probe else { continue };
        let guess = |flip: u8, word| {
            let data: Vec<u8> = nonce.iter().map(|octet| octet ^ flip).collect();
            liar.send(&Ends::of(dst, src).icmp(icmp::ECHO_REPLY, word, &data));
        };
        // Identifier and sequence may be part of the nonce: each half alone is wrong, and both.
        guess(0xff, word);
        guess(0xff, word.map(|octet| !octet));
        if !nonce.is_empty() {
            guess(0, word.map(|octet| !octet));
        }
    }
    let serving = alice.serve();
    assert_eq!(pings(&rig.u, ALICE, 5, ""), 5);
    assert_eq!(serving.answered(), 5);
}

#[test]
fn who_filters_echo_stays_where_he_is() {
    let Some((rig, _server)) = begin("a peer that filters echo stays where it is", "learn") else { return };
    let alice = at(&rig, C4);
    prove(&alice);
    let elsewhere = at(&rig, C4).mute();
    for _ in 0..3 {
        assert!(elsewhere.ping(U6, Duration::from_millis(700)).is_none(), "unproven, so not forwarded");
    }
    let serving = alice.serve();
    assert_eq!(pings(&rig.u, ALICE, 5, ""), 5);
    assert_eq!(serving.answered(), 5);
}

/// RFC: D12
#[test]
fn who_answers_from_elsewhere_does_not_get_a_live_peers_tunnel() {
    let Some((rig, server)) = begin("a thief answers every probe", "learn") else { return };
    let alice = at(&rig, C4);
    prove(&alice);
    let serving = alice.serve();
    let thief = at(&rig, C4_OTHER);
    for _ in 0..3 {
        assert!(thief.ping(U6, Duration::from_millis(1200)).is_none(), "alice is still there");
    }
    assert_eq!(pings(&rig.u, ALICE, 5, ""), 5);
    assert_eq!(serving.answered(), 5);
    assert!(server.status()["endpoints"]["stayed_alive"].as_u64() >= Some(1));
}

#[test]
fn who_still_sends_keeps_the_tunnel_though_he_filters_echo() {
    let Some((rig, server)) = begin("a thief answers for a peer that filters echo", "learn") else { return };
    let alice = at(&rig, C4);
    prove(&alice);
    let (alice, thief) = (alice.mute(), at(&rig, C4_OTHER));
    let before = server.tunnel("alice")["remote"].clone();
    let end = Instant::now() + Duration::from_secs(4);
    thread::scope(|scope| {
        scope.spawn(|| {
            while Instant::now() < end {
                alice.send(&Ends::new(ALICE, U6).udp(7, 9, b"still here"));
                thread::sleep(Duration::from_millis(50));
            }
        });
        while Instant::now() < end {
            assert!(thief.ping(U6, Duration::from_millis(400)).is_none(), "the thief was served");
        }
    });
    assert!(before.to_string().contains(&format!("{C4}:{}", alice.port())), "she was at {before}");
    assert_eq!(server.tunnel("alice")["remote"], before);
    let endpoints = server.status()["endpoints"].clone();
    assert!(endpoints["stayed_alive"].as_u64() >= Some(1), "{endpoints}");
}

/// The thief chooses an inner source that no host has: alice cannot answer for it, but she lives.
///
/// RFC: D12 (RFC 8085 section 3.5)
#[test]
fn a_thief_with_an_unused_inner_source_does_not_get_an_idle_peers_tunnel() {
    let Some((rig, server)) = begin("a thief names a host that is not there", "learn") else { return };
    let alice = at(&rig, C4).alone();
    prove(&alice);
    // She sends nothing by herself, and answers.
    let serving = alice.serve();
    let before = server.tunnel("alice")["remote"].clone();
    let thief = Client::udp(&rig.c, &format!("{C4_OTHER}:0"), "fd00:2:1::dead");
    let until = Instant::now() + Duration::from_secs(8);
    while Instant::now() < until {
        assert!(thief.ping(U6, Duration::from_millis(400)).is_none(), "the thief was served");
        assert_eq!(server.tunnel("alice")["remote"], before);
    }
    assert_eq!(pings(&rig.u, ALICE, 5, ""), 5);
    assert!(serving.answered() >= 5);
    assert!(server.status()["endpoints"]["stayed_alive"].as_u64() >= Some(1), "{}", server.status());
}

/// The same to one who answers no echo and sends something every second and a half.
///
/// RFC: D12 (RFC 8085 section 3.5)
#[test]
fn a_thief_with_an_unused_inner_source_does_not_get_a_slow_peers_tunnel() {
    let Some((rig, server)) = begin("a thief while alice sends now and then", "learn") else { return };
    let alice = at(&rig, C4);
    prove(&alice);
    let before = server.tunnel("alice")["remote"].clone();
    let (alice, thief) = (alice.mute(), Client::udp(&rig.c, &format!("{C4_OTHER}:0"), "fd00:2:1::dead"));
    let end = Instant::now() + Duration::from_secs(14);
    thread::scope(|scope| {
        scope.spawn(|| {
            while Instant::now() < end {
                alice.send(&Ends::new(ALICE, U6).udp(7, 9, b"still here"));
                thread::sleep(Duration::from_millis(1500));
            }
        });
        while Instant::now() < end {
            assert!(thief.ping(U6, Duration::from_millis(400)).is_none(), "the thief was served");
        }
    });
    assert_eq!(server.tunnel("alice")["remote"], before);
}

/// Somebody sends with her inner address from two hundred ports, a hundred a second, and answers nothing.
///
/// RFC: D12 (RFC 8085 section 3.5)
#[test]
fn a_flood_of_candidates_does_not_keep_who_moved() {
    let Some((rig, server)) = begin("alice's port changes in a flood", "learn") else { return };
    prove(&at(&rig, C4));
    let forgers: Vec<_> = (0..200).map(|_| at(&rig, C4_OTHER).mute()).collect();
    let alice = at(&rig, C4);
    let (begin, done) = (Instant::now(), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            for forger in forgers
                .iter()
                .cycle()
                .take_while(|_| !done.load(Ordering::Relaxed) && begin.elapsed() < PATIENCE * 2)
            {
                forger.send(&Ends::new(ALICE, U6).echo_request(SPOOFED, 1, 64));
                thread::sleep(Duration::from_millis(10));
            }
        });
        thread::sleep(Duration::from_secs(1));
        // One packet only: a client that sends a sign of life every 30 s has no other.
        alice.send(&Ends::new(ALICE, U6).udp(7, 9, b"here I am"));
        let _serving = alice.serve();
        let here = format!("{C4}:{}", alice.port());
        wait_for("the tunnel to follow her", PATIENCE, || {
            server.tunnel("alice")["remote"].as_str().is_some_and(|at| at == here).then_some(())
        });
        done.store(true, Ordering::Relaxed);
    });
    println!("    she was followed after {:?}", begin.elapsed() - Duration::from_secs(1));
}

#[test]
fn a_peer_that_turns_to_another_address_of_ours_is_served_there() {
    let Some(rig) = Rig::new_or_skip("a peer turns to the router's other address") else { return };
    rig.s.run("ip addr add 10.71.0.9/24 dev s0");
    let fixed = Rig::server_config("", &tunnel("alice", "udp", "learn", ALICE_NET, ""));
    let server = Router::start(&rig.lab, &rig.s, &fixed.replace(&format!("outer = \"{S4}\"\n"), ""));
    let alice = at(&rig, C4);
    prove(&alice);
    alice.turn_to("10.71.0.9");
    // Her socket is connected: what comes from the address before does not reach her.
    prove(&alice);
    let serving = alice.serve();
    assert_eq!(pings(&rig.u, ALICE, 5, ""), 5);
    assert_eq!(serving.answered(), 5);
    let here = server.tunnel("alice");
    assert!(here.to_string().contains("10.71.0.9"), "{here}");
}

#[test]
fn a_fixed_address_learns_only_its_port() {
    let Some((rig, _server)) = begin("address fixed, port learned", &format!("{C4}:*")) else { return };
    prove(&at(&rig, C4));
    let alice = at(&rig, C4);
    prove(&alice);
    let other = at(&rig, C4_OTHER);
    for _ in 0..3 {
        assert!(other.ping(U6, Duration::from_millis(700)).is_none(), "another address is nobody");
    }
    let serving = alice.serve();
    assert_eq!(pings(&rig.u, ALICE, 3, ""), 3);
    assert_eq!(serving.answered(), 3);
}

const SPOOFED: u16 = 0x6666;
