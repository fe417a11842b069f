//! Who may send what: wrong outer source, spoofed inner source, sources nobody may have.
//!
//! ```text
//!   C 10.71.0.2  alice, proto41  ══╗
//!   C 10.71.0.66 bob, UDP        ══ S ──IPv6── U    what must not pass is looked for at U
//!   C 10.71.0.66 a stranger in protocol 41
//! ```

use std::time::Duration;

use netns_tests::{
    ALICE, BOB, C4_OTHER, Client, Echo, Ends, Observer, PATIENCE, ROUTER6, Rig, Router, U6, echo_requests,
};

struct Scene {
    server: Router,
    alice: Client,
    bob: Client,
    seen: Observer<Echo>,
    rig: Rig,
}

fn begin(story: &str) -> Option<Scene> {
    let rig = Rig::new_or_skip(story)?;
    let server = rig.server(&(Rig::alice("proto41", "") + &Rig::bob("")));
    let (alice, bob) = (rig.alice_peer("proto41"), rig.bob_peer());
    Some(Scene { server, alice, bob, seen: echo_requests(&rig.u), rig })
}

impl Scene {
    /// Everything that reached U, after an honest packet that was sent last has come back.
    fn arrived(self) -> Vec<Echo> {
        assert!(self.alice.ping(U6, PATIENCE).is_some(), "an honest packet passes");
        let honest = |echo: &Echo| echo.id < BAD;
        let (good, bad): (Vec<_>, Vec<_>) = self.seen.finish().into_iter().partition(honest);
        assert!(!good.is_empty(), "the observer is awake");
        bad
    }
}

/// Identifiers from here on mark packets that must not pass; honest pings count from one.
const BAD: u16 = 0x8000;

fn bad(src: &str, dst: &str) -> Vec<u8> {
    Ends::new(src, dst).echo_request(BAD, 1, 64)
}

/// RFC: D1 (RFC 4213 section 3.6)
#[test]
fn a_stranger_with_alices_source_has_the_wrong_outer_one() {
    let Some(scene) = begin("a stranger sends with alice's inner source") else { return };
    let stranger = Client::proto41(&scene.rig.c, C4_OTHER, ALICE);
    scene.server.expect_drops("wrong_outer", 4, || (0..4).for_each(|_| stranger.send(&bad(ALICE, U6))));
    assert_eq!(scene.server.count("alice", "rx_packets"), 0, "it was not counted as alice's");
    assert_eq!(scene.arrived(), []);
}

/// RFC: D1 (RFC 4213 section 3.6)
#[test]
fn a_stranger_with_nobodys_source_is_unknown() {
    let Some(scene) = begin("a stranger sends with nobody's inner source") else { return };
    let stranger = Client::proto41(&scene.rig.c, C4_OTHER, "fd00:9::1");
    scene.server.expect_drops("unknown_outer", 4, || {
        (0..4).for_each(|_| stranger.send(&bad("fd00:9::1", U6)));
    });
    assert_eq!(scene.arrived(), []);
}

/// RFC: D1 (RFC 4213 section 3.6)
#[test]
fn a_stranger_in_udp_does_not_pass_for_bob() {
    let Some(scene) = begin("another port sends with bob's inner source") else { return };
    let stranger = Client::udp(&scene.rig.c, &format!("{C4_OTHER}:0"), BOB);
    for _ in 0..4 {
        stranger.send(&bad(BOB, U6));
    }
    assert!(scene.bob.ping(U6, PATIENCE).is_some());
    assert_eq!(scene.server.count("bob", "rx_packets"), 1, "only the honest packet is bob's");
    assert_eq!(scene.arrived(), []);
}

/// RFC: D4 (RFC 2827)
#[test]
fn a_tunnel_sends_only_from_its_own_prefixes() {
    let Some(scene) = begin("bob sends with alice's source, alice with nobody's") else { return };
    scene.server.expect_drops("source_not_in_prefix", 3, || {
        (0..3).for_each(|_| scene.bob.send(&bad(ALICE, U6)));
    });
    scene.server.expect_drops("source_not_in_prefix", 3, || {
        (0..3).for_each(|_| scene.alice.send(&bad("fd00:9::1", U6)));
    });
    assert_eq!(scene.server.tunnel_drops("bob", "source_not_in_prefix"), 3, "{}", scene.server.status());
    assert_eq!(scene.server.tunnel_drops("alice", "source_not_in_prefix"), 3);
    assert_eq!(scene.arrived(), []);
}

/// RFC: D5 (RFC 6169 section 2.2)
#[test]
fn nobody_sends_from_the_routers_own_address() {
    let Some(scene) = begin("alice sends from the router's address") else { return };
    scene.server.expect_drops("source_is_local", 2, || {
        (0..2).for_each(|_| scene.alice.send(&bad(ROUTER6, U6)));
    });
    assert_eq!(scene.arrived(), []);
}

/// RFC: D2, D3 (RFC 4213 section 3.6)
#[test]
fn martians_stay_outside() {
    let Some(scene) = begin("inner sources that no packet may have (RFC 4213 section 3.6)") else { return };
    for martian in ["::1", "ff02::1", "ff0e::1", "::ffff:10.71.0.2", "::10.71.0.2"] {
        println!("    from {martian}");
        scene.server.expect_drops("inner_martian", 1, || scene.alice.send(&bad(martian, U6)));
    }
    assert_eq!(scene.arrived(), []);
}

/// RFC: D9 (RFC 4291 section 2.5.6)
#[test]
fn link_local_packets_are_never_forwarded() {
    let Some(scene) = begin("a link-local source goes no further than the router") else { return };
    scene.alice.send(&bad("fe80::2", U6));
    scene.alice.send(&bad("fe80::2", BOB));
    scene.alice.send(&bad(ALICE, "ff02::1"));
    let crossed = scene.bob.wait(Duration::from_millis(300), |got| got.echo());
    assert_eq!(crossed, None, "not to another tunnel");
    assert_eq!(scene.arrived(), []);
}

/// RFC: D6 (RFC 4213 section 3.6)
#[test]
fn what_is_no_whole_ipv6_packet_is_named() {
    let Some(scene) = begin("octets that are no IPv6 packet") else { return };
    let packet = Ends::new(ALICE, U6).echo_request(BAD, 1, 64);
    let mut version_4 = packet.clone();
    version_4[0] = 0x45;
    scene.server.expect_drops("too_short", 1, || scene.alice.send(&packet[..39]));
    scene.server.expect_drops("not_ipv6", 1, || scene.alice.send(&version_4));
    scene.server.expect_drops("truncated", 1, || scene.alice.send(&packet[..packet.len() - 1]));
    assert_eq!(scene.arrived(), []);
}

/// RFC: D6 (RFC 4213 section 3.6)
#[test]
fn octets_behind_the_packet_are_cut_off() {
    let Some(rig) = Rig::new_or_skip("octets behind the inner packet are cut off") else { return };
    let _server = rig.server(&(Rig::alice("proto41", "") + &Rig::bob("")));
    let (alice, bob) = (rig.alice_peer("proto41"), rig.bob_peer());
    let mut padded = Ends::new(ALICE, BOB).echo_request(7, 1, 64);
    let honest = padded.len();
    padded.extend([0xff; 100]);
    alice.send(&padded);
    let got = bob.wait(PATIENCE, |got| (got.echo() == Some((7, 1))).then(|| got.payload.len() + 40));
    assert_eq!(got, Some(honest));
    assert!(bob.wait(Duration::from_millis(100), |_| Some(())).is_none(), "and nothing follows it");
}

/// RFC: D5 (RFC 2827)
#[test]
fn the_world_does_not_speak_for_a_tunnel() {
    let Some(scene) = begin("a host behind the router sends with alice's source") else { return };
    let fake = "fd00:2:1::77";
    scene.rig.u.run(&format!("ip addr add {fake}/128 dev lo"));
    scene.server.expect_drops("source_in_tunnel", 3, || {
        assert_eq!(netns_tests::pings(&scene.rig.u, BOB, 3, &format!("-I {fake}")), 0);
    });
    let crossed = scene.bob.wait(Duration::from_millis(200), |got| got.echo());
    assert_eq!(crossed, None);
}

#[test]
fn an_address_of_no_tunnel_is_no_route() {
    let Some(rig) = Rig::new_or_skip("a packet for an address of no tunnel") else { return };
    let config = Rig::server_config("routes = [\"fd00:2::/32\"]", &Rig::alice("proto41", ""));
    let server = Router::start(&rig.lab, &rig.s, &config);
    server.expect_drops("no_route", 2, || {
        assert_eq!(netns_tests::pings(&rig.u, "fd00:2:dead::1", 2, ""), 0);
    });
}
