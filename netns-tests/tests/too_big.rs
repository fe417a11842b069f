//! Packet Too Big (RFC 4443 section 3.2): the world learns a tunnel's MTU, and 1280 octets always pass.
//!
//! ```text
//!   C alice, MTU 1280 ══╗
//!   C bob,   MTU 1440 ══ S ──IPv6, MTU 1500── U
//! ```

use netns_tests::{ALICE, BOB, Rig, pings};

/// RFC: E5, I6 (RFC 8200 section 5)
#[test]
fn over_protocol_41() {
    story("proto41");
}

/// RFC: E5, I6 (RFC 8200 section 5)
#[test]
fn over_udp() {
    story("udp");
}

fn story(encap: &str) {
    let Some(rig) = Rig::new_or_skip(&format!("too big for a tunnel, over {encap}")) else { return };
    let _server = rig.server(&(Rig::alice(encap, "mtu = 1280") + &Rig::bob("mtu = 1440")));
    let (alice, bob) = (rig.alice_peer(encap).serve(), rig.bob_peer().serve());

    assert_eq!(pings(&rig.u, ALICE, 3, "-M do -s 1232"), 3, "1280 octets pass");
    assert_eq!(pings(&rig.u, BOB, 3, "-M do -s 1392"), 3, "1440 octets pass where they may");
    assert_eq!(alice.answered(), 3);
    assert_eq!(pings(&rig.u, ALICE, 2, "-M do -s 1233"), 0, "one octet more does not");
    let learned = rig.u.run(&format!("ip -6 route get {ALICE}"));
    assert!(learned.contains("mtu 1280"), "the sender was told: {learned}");
    assert_eq!(pings(&rig.u, BOB, 2, "-M do -s 1393"), 0);
    let learned = rig.u.run(&format!("ip -6 route get {BOB}"));
    assert!(learned.contains("mtu 1440"), "each tunnel has its own: {learned}");
    assert_eq!((alice.answered(), bob.answered()), (3, 3));
}
