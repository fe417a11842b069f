//! The router's own addresses: ping to and from them, and TCP, by way of its kernel.
//!
//! ```text
//!   C alice fd00:2:1::2 ══ S fd00:2::1 (inside), fd00:1::1 (outside) ──IPv6── U
//! ```

use netns_tests::{ALICE, PATIENCE, ROUTER6, Rig, S6, pings, transfer};

#[test]
fn over_protocol_41() {
    story("proto41");
}

#[test]
fn over_udp() {
    story("udp");
}

fn story(encap: &str) {
    let Some(rig) = Rig::new_or_skip(&format!("the router's own addresses over {encap}")) else { return };
    let server = rig.server(&Rig::alice(encap, ""));
    let alice = rig.alice_peer(encap);
    assert!(alice.ping(ROUTER6, PATIENCE).is_some(), "to the address inside");
    assert!(alice.ping(S6, PATIENCE).is_some(), "to the address outside");
    let serving = alice.serve();
    assert_eq!(pings(&rig.s, ALICE, 3, ""), 3, "from the router");
    assert_eq!(pings(&rig.s, ALICE, 3, &format!("-I {ROUTER6}")), 3, "from its address inside");
    assert_eq!(pings(&rig.s, ALICE, 3, &format!("-I {S6}")), 3, "from its address outside");
    assert_eq!(serving.answered(), 9);
    drop((serving, alice));
    assert_eq!(pings(&rig.u, ROUTER6, 3, ""), 3, "from the world");

    let _client = rig.client(encap, 1280);
    transfer(&rig.c, &rig.s, ROUTER6, 2 << 20);
    transfer(&rig.s, &rig.c, ALICE, 2 << 20);
    assert_eq!(server.drops("source_is_local"), 0);
}
