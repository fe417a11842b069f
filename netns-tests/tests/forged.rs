//! ICMPv4 errors that no router on the path has sent: anybody can write one, and nothing comes of it.
//!
//! ```text
//!   C 10.71.0.2:*  alice ════════════════════════════════╗
//!   C 10.71.0.66   somebody who knows her addresses ──ICMPv4── S ──IPv6── U
//! ```

#![allow(clippy::unwrap_used, reason = "a test has nobody to return an error to")]

use std::time::Duration;

use netns_tests::{
    ALICE, C4, C4_OTHER, CLIENT_PORT, Ends, IPV4, IPV6, Inner, Observer, PATIENCE, Rig, Router, S4, U6,
    UDP_PORT, forge, pings, wait_for,
};

/// What somebody writes who knows the outer addresses and guesses the rest: total octets, DF, what is inside.
fn quote(encap: &str, total: u16, df: bool) -> Vec<u8> {
    let ports = (encap == "udp").then_some((UDP_PORT, CLIENT_PORT));
    let overhead = if encap == "udp" { 28 } else { 20 };
    let mut inner = Ends::new(U6, ALICE).udp(1, 2, &vec![7; usize::from(total) - overhead - 48]);
    inner.truncate(500);
    forge::quote((S4, C4), ports, total, df, &inner)
}

/// The same error, again and again, about packets of every length there may be.
fn forge_all(rig: &Rig, encap: &str) {
    for mtu in [576, 1280, 1300, 1400] {
        for df in [true, false] {
            forge::unreachable(&rig.c, (C4_OTHER, S4), 4, mtu, &quote(encap, 1500, df));
        }
    }
}

/// Octets of outer packets to alice, and whether they are fragments.
fn outer_packets(rig: &Rig) -> Observer<(usize, bool)> {
    Observer::start(&rig.c, IPV4, |packet| {
        let to_alice = packet.get(12..20)? == [10, 71, 0, 1, 10, 71, 0, 2] && [17, 41].contains(&packet[9]);
        let cut = u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff != 0;
        to_alice.then_some((packet.len(), cut))
    })
}

fn serves_long_packets(rig: &Rig, server: &Router, what: &str) {
    let seen = outer_packets(rig);
    assert_eq!(pings(&rig.u, ALICE, 5, "-M do -s 1232"), 5, "{what}");
    let seen = seen.finish();
    assert!(seen.iter().any(|(len, _)| *len > 1280), "{what}: {seen:?}");
    assert!(seen.iter().all(|(_, cut)| !cut), "{what}: fragments after a forged error: {seen:?}");
    assert_eq!(server.drops("send_failed"), 0, "{what}");
}

/// RFC: E3, E6, I1 (RFC 4213 section 3.2.1)
#[test]
fn a_static_tunnels_packets_stay_whole() {
    for encap in ["proto41", "udp"] {
        let Some(rig) = Rig::new_or_skip(&format!("forged errors about a static tunnel over {encap}")) else {
            return;
        };
        let server = rig.server(&Rig::alice(encap, "mtu = 1472"));
        let alice = rig.alice_peer(encap);
        let serving = alice.serve();
        serves_long_packets(&rig, &server, "before");
        forge_all(&rig, encap);
        std::thread::sleep(Duration::from_millis(200));
        serves_long_packets(&rig, &server, encap);
        // The kernel has learned nothing that our own questions would find either.
        let said = rig.s.run(&format!("ip route get {C4}"));
        assert!(!said.contains("mtu"), "{said}");
        drop(serving);
    }
}

/// RFC: E4, I1 (RFC 5927 section 7, RFC 8899 section 4.6.1)
#[test]
fn a_dynamic_tunnels_packets_stay_as_long() {
    for encap in ["proto41", "udp"] {
        let Some(rig) = Rig::new_or_skip(&format!("forged errors about a dynamic tunnel over {encap}"))
        else {
            return;
        };
        let server = rig.server(&Rig::alice(encap, "pmtu = \"dynamic\""));
        let alice = rig.alice_peer(encap);
        let serving = alice.serve();
        let most = server.count("alice", "mtu");
        for _ in 0..3 {
            forge_all(&rig, encap);
            std::thread::sleep(Duration::from_millis(400));
        }
        assert_eq!(server.count("alice", "mtu"), most, "{}", server.status());
        let whole = format!("-M do -s {}", most - 48);
        assert_eq!(pings(&rig.u, ALICE, 5, &whole), 5, "{}", server.status());
        let counts = server.status()["pmtu"].clone();
        assert!(counts["questions"].as_u64() >= Some(1), "{counts}");
        assert_eq!((counts["lowered"].as_u64(), counts["told"].as_u64()), (Some(0), Some(0)), "{counts}");
        drop(serving);
    }
}

/// Nobody makes the router tell anybody anything: neither about packets that no tunnel carries, nor about those that one
/// could have carried.
///
/// RFC: I2 (RFC 4213 section 3.4)
#[test]
fn nobody_is_told_what_nobody_on_the_path_has_said() {
    let Some(rig) = Rig::new_or_skip("forged errors quote anything inside") else { return };
    let server = rig.server(&Rig::alice("proto41", ""));
    // Somebody is there: else her kernel would say the truth.
    let _alice = rig.alice_peer("proto41");
    let told = Observer::start(&rig.u, IPV6, |frame| {
        let kind = Inner::parse(frame)?.icmp_type()?;
        (kind < 128).then_some::<u8>(kind)
    });
    let ends =
        [(U6, ALICE), (U6, "2001:db8:dead::1"), ("2001:db8:7::7", ALICE), (ALICE, ALICE), ("fe80::1", ALICE)];
    for (from, to) in ends {
        let inner = Ends::new(from, to).udp(1, 2, &[7; 100]);
        for code in [0, 1, 3, 4, 13] {
            let quote = forge::quote((S4, C4), None, 168, true, &inner);
            forge::unreachable(&rig.c, (C4_OTHER, S4), code, 100, &quote);
        }
    }
    let counts = wait_for("all to be judged", PATIENCE, || {
        Some(server.status()["pmtu"].clone()).filter(|counts| counts["unbelievable"].as_u64() >= Some(16))
    });
    assert_eq!(counts["told"], 0, "{counts}");
    let told = told.finish();
    assert!(told.is_empty(), "errors for U: {told:?}");
}
