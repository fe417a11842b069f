//! ICMPv4 errors that no router on the path has sent: anybody can write one, and nothing comes of it.
//!
//! ```text
//!   C 10.71.0.2:*  alice ════════════════════════════════╗
//!   C 10.71.0.66   somebody who knows her addresses ──ICMPv4── S ──IPv6── U
//! ```

#![allow(clippy::unwrap_used, reason = "a test has nobody to return an error to")]

use std::time::Duration;

use netns_tests::{
    ALICE, C4, C4_OTHER, CLIENT_PORT, Ends, IPV4, Observer, Rig, Router, S4, U6, UDP_PORT, forge, pings,
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
