//! Ping and TCP both ways over both encapsulations, with the same program at both ends.
//!
//! ```text
//!   C six0 fd00:2:1::2 ══tunnel══ S six0 fd00:2::1 ──IPv6── U fd00:1::2
//!     default route into it         fd00:2:1::/64 behind it
//! ```

use netns_tests::{ALICE, Rig, U6, pings, transfer};

#[test]
fn protocol_41() {
    story("proto41", 1480);
}

#[test]
fn udp() {
    story("udp", 1472);
}

/// RFC: R5 (RFC 4213 section 3.2)
#[test]
fn protocol_41_at_the_default_mtu() {
    story("proto41", 1280);
}

/// RFC: R5 (RFC 4213 section 3.2)
#[test]
fn udp_at_the_default_mtu() {
    story("udp", 1280);
}

fn story(encap: &str, mtu: u16) {
    let Some(rig) = Rig::new_or_skip(&format!("ping and TCP both ways over {encap}, MTU {mtu}")) else {
        return;
    };
    let server = rig.server(&Rig::alice(encap, &format!("mtu = {mtu}")));
    let client = rig.client(encap, mtu);
    assert_eq!(pings(&rig.c, U6, 5, ""), 5);
    assert_eq!(pings(&rig.u, ALICE, 5, ""), 5);

    // The largest inner packet passes whole: 40 octets of IPv6 and 8 of ICMPv6 around the data.
    let largest = format!("-M do -s {}", mtu - 48);
    assert_eq!(pings(&rig.c, U6, 3, &largest), 3);
    assert_eq!(pings(&rig.u, ALICE, 3, &largest), 3);

    let before = server.count("alice", "rx_bytes");
    transfer(&rig.c, &rig.u, U6, 20 << 20);
    assert!(server.count("alice", "rx_bytes") - before >= 20 << 20, "what came is counted");
    let before = server.count("alice", "tx_bytes");
    transfer(&rig.u, &rig.c, ALICE, 20 << 20);
    assert!(server.count("alice", "tx_bytes") - before >= 20 << 20, "what went is counted");

    for reason in ["wrong_outer", "unknown_outer", "source_not_in_prefix", "no_route", "too_big"] {
        assert_eq!(server.drops(reason), 0, "{reason} in {}", server.status());
    }
    assert!(server.tunnel("alice")["last_seen_s"].as_u64().is_some_and(|s| s <= 30));
    assert_eq!(server.tunnel("alice")["mtu"], mtu);
    client.stop();
    server.stop();
}
