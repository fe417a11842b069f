//! Every offload alone off, all off, all on: ping, TCP and UDP both ways arrive whole. And what the kernel refuses
//! while the router runs is sent in pieces, for the peer it is about and no other.
//!
//! ```text
//!   C six0 (alice) ══tunnel══ S six0 ──IPv6── s1 (offloads off) S    U
//! ```

#![allow(clippy::unwrap_used, reason = "a test has nobody to return an error to")]

use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use netns_tests::{
    ALICE, BOB, C4, IPV4, IPV6, Inner, OFFLOADS, Observer, Rig, Router, Space, U6, pings, transfer,
    without_offloads,
};
use nix::sys::socket::{setsockopt, sockopt};

const MTU: u16 = 1400;
/// Octets of the datagrams' data: what fits the tunnel.
const DATA: usize = 1400 - 48;
/// Datagrams of one train, and how many trains.
const TRAIN: u16 = 20;
const TRAINS: u16 = 3;

#[test]
fn all_on_over_udp() {
    story("udp", &[]);
}

#[test]
fn all_on_over_protocol_41() {
    story("proto41", &[]);
}

#[test]
fn all_off_over_udp() {
    story("udp", &OFFLOADS);
}

#[test]
fn all_off_over_protocol_41() {
    story("proto41", &OFFLOADS);
}

#[test]
fn each_one_off_over_udp() {
    OFFLOADS.iter().for_each(|knob| story("udp", &[knob]));
}

/// The UDP sockets' knobs say nothing about protocol 41.
#[test]
fn each_one_off_over_protocol_41() {
    let knobs = OFFLOADS.iter().filter(|knob| !knob.starts_with("udp_"));
    knobs.for_each(|knob| story("proto41", &[knob]));
}

fn story(encap: &'static str, off: &[&str]) {
    let Some(rig) = Rig::new_or_skip(&format!("{encap} without the offloads {off:?}")) else { return };
    rig.merge_at_router();
    // The router's kernel must cut and sum before U: a wrong description of a train shows there.
    rig.s.run("ethtool -K s1 tso off gso off tx off");
    if encap == "proto41" {
        // And the outer interface must cut for itself, so that C sees what a wire would.
        rig.s.run("ethtool -K s0 tx-ipxip4-segmentation off tx off");
    }
    let knobs = without_offloads(off);
    let config = Rig::server_config("", &(knobs.clone() + &Rig::alice(encap, &format!("mtu = {MTU}"))));
    let server = Router::start(&rig.lab, &rig.s, &config);
    let client = rig.client_with(encap, MTU, &knobs);
    let (at_u, at_c) = (sums_at_host(&rig.u), sums_at_client(&rig.c, encap));
    assert_eq!(pings(&rig.c, U6, 2, ""), 2);
    transfer(&rig.c, &rig.u, U6, 4 << 20);
    transfer(&rig.u, &rig.c, ALICE, 4 << 20);
    datagrams(&rig.c, &rig.u, U6);
    datagrams(&rig.u, &rig.c, ALICE);
    for (place, sums) in [("U", at_u.finish()), ("C", at_c.finish())] {
        let wrong = sums.iter().filter(|right| !**right).count();
        println!("    {} packets to {place}, {wrong} with wrong checksums", sums.len());
        assert!(!sums.is_empty() && wrong == 0);
    }
    for router in [&server, &client] {
        expect_states(router, off);
        expect_use(router, encap, off);
        assert_eq!((router.event("tun_split"), router.event("wire_split")), (0, 0), "{}", router.status());
        assert_eq!(router.drops("bad_offload"), 0);
    }
    client.stop();
    server.stop();
}

fn expect_states(router: &Router, off: &[&str]) {
    let status = router.status();
    for knob in OFFLOADS {
        let wanted = if off.contains(&knob) { "off" } else { "on" };
        assert_eq!(status["offload"][knob]["state"], wanted, "{knob} in {status}");
    }
}

/// How many super-packets an offload has moved.
fn trains(router: &Router, knob: &str) -> u64 {
    router.status()["offload"][knob]["trains"].as_u64().unwrap()
}

/// What is off moves no train; while all are on, each that has a part in this encapsulation does: so a knob that nobody
/// heeds is found out.
fn expect_trains(router: &Router, encap: &str, off: &[&str]) {
    let has_part = |knob: &str| match encap {
        "udp" => knob != "proto41_gso",
        _ => !knob.starts_with("udp_"),
    };
    for knob in OFFLOADS {
        let moved = trains(router, knob);
        let must_move = off.is_empty() && has_part(knob);
        assert!(!must_move || moved > 0, "{knob} is on and moved nothing: {}", router.status());
        assert!(!off.contains(&knob) || moved == 0, "{knob} is off and moved {moved} trains");
    }
}

/// Without a proof that trains went that way, on and off would be the same story.
fn expect_use(router: &Router, encap: &str, off: &[&str]) {
    expect_trains(router, encap, off);
    let (tun, wire) = (router.event("tun_merged"), router.event("wire_merged"));
    match off {
        [] if encap == "udp" => assert!(tun > 0 && wire > 0, "no trains: {}", router.status()),
        [] | [_] => assert!(tun > 0, "no trains by TUN: {}", router.status()),
        _ => assert_eq!(tun, 0, "trains by TUN: {}", router.status()),
    }
    // What the kernel merges for packet sockets no knob of ours prevents.
    if encap == "udp" && off.len() == OFFLOADS.len() {
        assert_eq!(wire, 0, "trains by UDP: {}", router.status());
    }
}

/// Of each TCP or UDP packet that reaches the host: is it of the link's size, and its checksum right?
fn sums_at_host(u: &Space) -> Observer<bool> {
    Observer::start(u, IPV6, |frame| {
        let packet = Inner::parse(frame).filter(|p| matches!(p.next, 6 | 17))?;
        Some(packet.checksum_ok() && frame.len() <= 1500)
    })
}

/// The same of the inner packets that reach the client, which may come as trains of whole packets.
fn sums_at_client(c: &Space, encap: &'static str) -> Observer<bool> {
    Observer::start(c, IPV4, move |frame| {
        let mut rest = match (encap, frame[9]) {
            ("udp", 17) => &frame[28..],
            ("proto41", 41) => &frame[20..],
            _ => return None,
        };
        let mut right = true;
        while let Some(packet) = Inner::parse(rest) {
            right &= packet.checksum_ok();
            rest = &rest[40 + packet.payload.len()..];
        }
        Some(right && rest.is_empty())
    })
}

/// Trains of datagrams, each with contents of its own, arrive whole and in order.
fn datagrams(from: &Space, to: &Space, at: &str) {
    let receiver = to.inside(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap());
    receiver.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    let port = receiver.local_addr().unwrap().port();
    send_trains(from, SocketAddr::new(at.parse().unwrap(), port));
    let mut buffer = [0; 2048];
    for n in 0..TRAIN * TRAINS {
        let got = receiver.recv(&mut buffer).unwrap_or_else(|why| panic!("datagram {n} at [{at}]: {why}"));
        assert!(buffer[..got] == content(n), "datagram {n} at [{at}] is another, or not in its turn");
    }
    println!("    UDP to [{at}]: {} datagrams", TRAIN * TRAINS);
}

fn send_trains(from: &Space, to: SocketAddr) {
    let sender = from.inside(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap());
    setsockopt(&sender, sockopt::UdpGsoSegment, &i32::try_from(DATA).unwrap()).unwrap();
    for train in 0..TRAINS {
        let whole: Vec<u8> = (0..TRAIN).flat_map(|n| content(train * TRAIN + n)).collect();
        assert_eq!(sender.send_to(&whole, to).unwrap(), whole.len());
    }
}

fn content(n: u16) -> Vec<u8> {
    let [a, b] = n.to_be_bytes();
    let rest = (2..DATA).map(|at| (at * 13 + at / 251 + usize::from(n) * 29).to_le_bytes()[0]);
    [a, b].into_iter().chain(rest).collect()
}

/// RFC: R3, E6 (EMSGSIZE)
#[test]
fn a_path_that_narrows_is_one_peer_s_business() {
    let Some(rig) = Rig::new_or_skip("a path narrows while trains go into it") else { return };
    let mtu = format!("mtu = {MTU}");
    let tunnels = without_offloads(&[]) + &Rig::alice("udp", &mtu) + &Rig::bob(&mtu);
    let server = Router::start(&rig.lab, &rig.s, &Rig::server_config("", &tunnels));
    let client = rig.client_with("udp", MTU, &without_offloads(&[]));
    transfer(&rig.u, &rig.c, ALICE, 4 << 20);
    assert!(server.event("wire_merged") > 0 && server.event("wire_split") == 0, "{}", server.status());

    // To alice's end only, by a link of its own: trains of 1400 octets do not fit, single packets go in fragments.
    rig.lab.veth(&rig.s, "s9", &rig.c, "c9");
    rig.s.run("ip link set s9 mtu 1000 up");
    rig.c.run("ip link set c9 mtu 1000 up");
    rig.s.run(&format!("ip route add {C4}/32 dev s9"));
    transfer(&rig.u, &rig.c, ALICE, 4 << 20);
    let split = server.event("wire_split");
    assert!((1..20).contains(&split), "{split} trains were split: alice's path is remembered");
    let merged = server.event("wire_merged");
    let bob = rig.bob_peer();
    send_trains(&rig.u, SocketAddr::new(BOB.parse().unwrap(), 7));
    let mut got = 0;
    bob.wait(Duration::from_secs(3), |packet| {
        assert!(packet.next != 17 || packet.checksum_ok() && packet.payload[8..] == content(got));
        got += u16::from(packet.next == 17);
        (got == TRAIN * TRAINS).then_some(())
    });
    assert_eq!(got, TRAIN * TRAINS, "bob's datagrams");
    assert!(server.event("wire_merged") > merged, "bob gets trains: {}", server.status());
    assert_eq!(server.event("wire_split"), split);

    // The link itself, for everybody.
    rig.s.run(&format!("ip route del {C4}/32; ip link set s0 mtu 1000"));
    rig.c.run("ip link set c0 mtu 1000");
    transfer(&rig.u, &rig.c, ALICE, 2 << 20);
    transfer(&rig.c, &rig.u, U6, 2 << 20);
    for router in [&server, &client] {
        assert!(router.event("wire_split") > 0, "{}", router.status());
        assert_eq!(router.event("offload_paused"), 0);
        assert_eq!(router.drops("send_failed"), 0);
        expect_states(router, &[]);
    }
}

#[test]
fn without_loopback_they_are_on_untested() {
    let Some(rig) = Rig::new_or_skip("no loopback to try UDP trains on") else { return };
    rig.s.run("ip link set lo down");
    let config = Rig::server_config("", &(without_offloads(&[]) + &Rig::alice("udp", "")));
    let server = Router::start(&rig.lab, &rig.s, &config);
    let status = server.status();
    for knob in ["udp_gso", "udp_gro"] {
        let found = &status["offload"][knob];
        let why = found["why"].as_str().unwrap_or_default();
        assert!(found["state"] == "on" && why.contains("not tested over loopback"), "{found}");
    }
    assert!(server.log().contains("offload udp_gso: on; not tested"), "{}", server.log());
    assert!(rig.alice_peer("udp").ping(U6, Duration::from_secs(2)).is_some());
}
