//! Neighbour discovery and echo inside a tunnel, where no kernel interface per tunnel exists
//! (RFC 4861; RFC 4213 sections 3.7 and 3.8).
//!
//! ```text
//!   C alice fe80::c ══ S answers by its own link-local address in that tunnel
//! ```

#![allow(clippy::unwrap_used, reason = "a test has nobody to return an error to")]

use std::net::Ipv6Addr;
use std::time::Duration;

use netns_tests::{Client, Ends, Inner, PATIENCE, ROUTER6, Rig, Router, icmp};

const US: &str = "fe80::c";
const BRIEF: Duration = Duration::from_millis(400);

fn begin(story: &str, encap: &str, extra: &str) -> Option<(Rig, Router, Client)> {
    let rig = Rig::new_or_skip(&format!("{story}, over {encap}"))?;
    let server = rig.server(&Rig::alice(encap, extra));
    let alice = rig.alice_peer(encap);
    Some((rig, server, alice))
}

/// RFC: D10 (RFC 4213 section 3.8)
#[test]
fn over_protocol_41() {
    router_discovery("proto41");
    echo("proto41");
    reachability("proto41");
}

/// RFC: D10 (RFC 4213 section 3.8)
#[test]
fn over_udp() {
    router_discovery("udp");
    echo("udp");
    reachability("udp");
}

fn router_discovery(encap: &str) {
    let extra = "ra = { on = true, managed = true, other = false, prefix = [] }";
    let Some((_rig, _server, alice)) = begin("a router solicitation is answered", encap, extra) else {
        return;
    };
    let (hops, flags, lifetime) = solicit(&alice, PATIENCE).unwrap_or_else(|| panic!("no advertisement"));
    assert_eq!(hops, 255, "RFC 4861 section 6.1.2");
    assert_eq!(flags & 0xc0, 0x80, "managed, and not other");
    assert!(lifetime > 0, "a default router");
}

/// Solicit; hop limit, flags and router lifetime of the advertisement that comes back.
fn solicit(alice: &Client, patience: Duration) -> Option<(u8, u8, u16)> {
    alice.send(&Ends::new(US, "ff02::2").hops(255).icmp(icmp::ROUTER_SOLICITATION, [0; 4], &[]));
    alice.wait(patience, |got| {
        let advert = got.icmp_type() == Some(icmp::ROUTER_ADVERTISEMENT) && got.checksum_ok();
        let from_link = got.src.is_unicast_link_local() && advert;
        let [_, flags, hi, lo] = got.icmp_word()?.to_be_bytes();
        from_link.then_some((got.hops, flags, u16::from_be_bytes([hi, lo])))
    })
}

#[test]
fn no_advertisement_where_it_is_off() {
    let extra = "ra = { on = false }";
    let Some((_rig, _server, alice)) = begin("no advertisement where it is off", "udp", extra) else {
        return;
    };
    assert_eq!(solicit(&alice, BRIEF), None);
    assert!(router_link_local(&alice).is_some(), "though the router is awake");
}

#[test]
fn a_solicitation_from_afar_is_not_answered() {
    let extra = "ra = { on = true }";
    let Some((_rig, _server, alice)) = begin("hop limit 254 is from afar", "udp", extra) else { return };
    let stale = Ends::new(US, "ff02::2").hops(254).icmp(icmp::ROUTER_SOLICITATION, [0; 4], &[]);
    alice.send(&stale);
    // An answer would be sent to us; one to ff02::1 is the router's own initiative, which may come at any time.
    let advert = |got: &Inner<'_>| {
        let answer = got.icmp_type() == Some(icmp::ROUTER_ADVERTISEMENT) && got.dst.to_string() == US;
        answer.then_some(())
    };
    assert!(alice.wait(BRIEF, advert).is_none(), "RFC 4861 section 6.1.1");
    assert!(solicit(&alice, PATIENCE).is_some());
}

#[test]
fn advertising_that_ends_is_withdrawn() {
    let extra = "ra = { on = true }";
    let Some((_rig, server, alice)) = begin("a router that stops advertising says so", "udp", extra) else {
        return;
    };
    let last = |got: &Inner<'_>| {
        let advert = got.icmp_type() == Some(icmp::ROUTER_ADVERTISEMENT) && got.dst.to_string() == "ff02::1";
        (advert && got.icmp_word()?.to_be_bytes()[2..] == [0, 0]).then_some(())
    };
    assert!(solicit(&alice, PATIENCE).is_some());
    assert!(server.reload(&Rig::server_config("", &Rig::alice("udp", "ra = { on = false }"))).ok);
    assert!(alice.wait(PATIENCE, last).is_some(), "turned off by a reload: RFC 4861 section 6.2.5");
    assert!(server.reload(&Rig::server_config("", &Rig::alice("udp", extra))).ok);
    assert!(solicit(&alice, PATIENCE).is_some());
    server.stop();
    assert!(alice.wait(PATIENCE, last).is_some(), "at the router's own end");
}

/// Who answers an echo request to `dst`, sent from our link-local address.
fn who_answers(alice: &Client, dst: &str) -> Option<Ipv6Addr> {
    alice.send(&Ends::new(US, dst).echo_request(0x11d, 1, 32));
    alice.wait(PATIENCE, |got| {
        let reply = got.icmp_type() == Some(icmp::ECHO_REPLY) && got.echo() == Some((0x11d, 1));
        (reply && got.checksum_ok() && got.payload.len() == 40 && got.dst.to_string() == US)
            .then_some(got.src)
    })
}

fn router_link_local(alice: &Client) -> Option<Ipv6Addr> {
    who_answers(alice, "ff02::2").filter(Ipv6Addr::is_unicast_link_local)
}

fn echo(encap: &str) {
    let Some((_rig, _server, alice)) = begin("echo to the link-local addresses", encap, "") else { return };
    let router = router_link_local(&alice).unwrap_or_else(|| panic!("no answer from ff02::2"));
    println!("    the router is {router} in this tunnel");
    assert_eq!(who_answers(&alice, "ff02::1"), Some(router), "all nodes");
    assert_eq!(who_answers(&alice, &router.to_string()), Some(router), "itself");
}

fn reachability(encap: &str) {
    let story = "neighbour solicitations for the router's addresses";
    let Some((_rig, _server, alice)) = begin(story, encap, "") else { return };
    let router = router_link_local(&alice).unwrap_or_else(|| panic!("no answer from ff02::2")).to_string();
    assert!(advertised(&alice, &router, 255), "its link-local address");
    assert!(advertised(&alice, ROUTER6, 255), "its address inside");
    assert!(!advertised(&alice, &router, 64), "not to a solicitation from afar (RFC 4861 section 7.1.1)");
    assert!(!advertised(&alice, "fe80::dead:beef", 255), "not for an address that is not its own");
}

/// Whether a solicited advertisement for `target` comes back (RFC 4861 section 4.4).
fn advertised(alice: &Client, target: &str, hops: u8) -> bool {
    let address: Ipv6Addr = target.parse().unwrap();
    let question =
        Ends::new(US, target).hops(hops).icmp(icmp::NEIGHBOUR_SOLICITATION, [0; 4], &address.octets());
    alice.send(&question);
    let answer = alice.wait(BRIEF, |got| {
        let advert = got.icmp_type() == Some(icmp::NEIGHBOUR_ADVERTISEMENT) && got.checksum_ok();
        let right = advert && got.hops == 255 && got.payload.get(8..24) == Some(&address.octets()[..]);
        (right && got.payload[4] & 0x40 != 0).then_some(())
    });
    answer.is_some()
}
