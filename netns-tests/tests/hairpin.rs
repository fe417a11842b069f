//! From tunnel to tunnel inside the forwarder, one hop, and where that is refused.
//!
//! ```text
//!   C alice 10.71.0.2  proto41, MTU 1480 ══╗
//!                                          S    neither packet touches the TUN
//!   C bob   10.71.0.66 UDP,     MTU 1280 ══╝
//! ```

use std::time::Duration;

use netns_tests::{ALICE, BOB, Client, Ends, Inner, PATIENCE, Rig, Router, icmp, pings};

fn begin(story: &str, router: &str) -> Option<(Rig, Router, Client, Client)> {
    let rig = Rig::new_or_skip(story)?;
    let tunnels = Rig::alice("proto41", "mtu = 1480") + &Rig::bob("mtu = 1280");
    let server = Router::start(&rig.lab, &rig.s, &Rig::server_config(router, &tunnels));
    let (alice, bob) = (rig.alice_peer("proto41"), rig.bob_peer());
    Some((rig, server, alice, bob))
}

/// RFC: E2 (RFC 8200 section 3)
#[test]
fn a_packet_passes_from_tunnel_to_tunnel_and_loses_one_hop() {
    let Some((rig, server, alice, bob)) = begin("a packet passes from tunnel to tunnel", "") else { return };
    alice.send(&Ends::new(ALICE, BOB).hops(9).echo_request(77, 1, 500));
    let hops =
        bob.wait(PATIENCE, |got| (got.echo() == Some((77, 1)) && got.checksum_ok()).then_some(got.hops));
    assert_eq!(hops, Some(8));

    let serving = bob.serve();
    assert!(alice.ping(BOB, PATIENCE).is_some(), "and back again");
    drop(serving);
    assert_eq!(server.drops("hop_limit"), 0);
    // The kernel of the router has seen none of it: it forwarded nothing.
    let forwarded = rig.s.run("grep Ip6OutForwDatagrams /proc/net/snmp6");
    assert_eq!(forwarded.split_whitespace().last(), Some("0"));
}

/// RFC: E2 (RFC 4443 section 3.3)
#[test]
fn the_last_hop_ends_here_and_the_sender_is_told() {
    let Some((_rig, server, alice, bob)) = begin("the last hop ends at the router", "") else { return };
    let sent = Ends::new(ALICE, BOB).hops(1).echo_request(78, 1, 64);
    server.expect_drops("hop_limit", 1, || alice.send(&sent));
    let quoted = alice.wait(PATIENCE, |got| error_about(got, icmp::TIME_EXCEEDED, &sent));
    assert!(quoted.is_some(), "a Time Exceeded that quotes the packet (RFC 4443 section 3.3)");
    assert!(bob.wait(Duration::from_millis(200), |got| got.echo()).is_none());
}

#[test]
fn what_is_too_big_for_the_other_tunnel_is_told_its_mtu() {
    let Some((_rig, server, alice, bob)) = begin("too big for the other tunnel", "") else { return };
    let sent = Ends::new(ALICE, BOB).echo_request(79, 1, 1400 - 48);
    server.expect_drops("too_big", 1, || alice.send(&sent));
    let mtu = alice.wait(PATIENCE, |got| error_about(got, icmp::TOO_BIG, &sent));
    assert_eq!(mtu, Some(1280));
    alice.send(&Ends::new(ALICE, BOB).echo_request(80, 1, 1280 - 48));
    assert!(bob.wait(PATIENCE, |got| (got.echo() == Some((80, 1))).then_some(())).is_some());
}

/// RFC: L2 (RFC 6324 section 3)
#[test]
fn a_packet_does_not_leave_by_the_tunnel_it_came_from() {
    let Some((_rig, server, alice, _bob)) = begin("nothing leaves by the tunnel it came from", "") else {
        return;
    };
    let to_itself = Ends::new(ALICE, "fd00:2:1::99").echo_request(81, 1, 64);
    server.expect_drops("same_tunnel", 3, || (0..3).for_each(|_| alice.send(&to_itself)));
    assert!(alice.wait(Duration::from_millis(200), |got| got.echo()).is_none());
}

/// RFC: L2, I7 (RFC 4443 section 3.1)
#[test]
fn hairpin_can_be_turned_off() {
    let Some((rig, server, alice, bob)) = begin("hairpin = false", "hairpin = false") else { return };
    let sent = Ends::new(ALICE, BOB).echo_request(82, 1, 64);
    server.expect_drops("hairpin_off", 2, || (0..2).for_each(|_| alice.send(&sent)));
    assert!(bob.wait(Duration::from_millis(200), |got| got.echo()).is_none());
    let serving = bob.serve();
    assert_eq!(pings(&rig.u, BOB, 2, ""), 2, "the world still reaches both");
    drop(serving);
}

/// The message's second word when `got` is a well-formed ICMPv6 error of this type about `sent`.
fn error_about(got: &Inner<'_>, kind: u8, sent: &[u8]) -> Option<u32> {
    let fits = got.payload.len() + 40 <= 1280 && got.checksum_ok();
    let quote = got.payload.get(8..)?;
    // The hop limit of the quote may have been counted down already.
    let same = quote.len() > 48 && quote[8..40] == sent[8..40] && quote[40..] == sent[40..quote.len()];
    (got.icmp_type() == Some(kind) && fits && same).then(|| got.icmp_word()).flatten()
}
