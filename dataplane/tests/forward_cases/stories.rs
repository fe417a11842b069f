//! What a row cannot say: limits that depend on the clock, what punts carry, what changes hands.

use std::net::Ipv4Addr;
use std::time::Instant;

use sixway_dataplane::counters::Event;
use sixway_dataplane::manners::Manners;
use sixway_dataplane::packet::batch::{Arrival, Offload};
use sixway_dataplane::punt::FRAMES;
use sixway_dataplane::samples::Course;
use sixway_dataplane::start::InMemory;
use sixway_dataplane::update::{Meter, Policy, Rate, TunnelId, UdpRemote, Update};
use sixway_dataplane::verdict::{PuntClass, Reason, Verdict};
use sixway_dataplane::worker::Inject;

use crate::lab::{
    A, B, C, D, HOST_A, HOST_C, HOST_D, NOBODY, WORLD, drain, lab, over_udp, peer, policy, tunnel, udp_outer,
};
use crate::packets::{tcp, udp, udp_train, unfinished};

/// Not IPv6: the first half octet says so.
const DATAGRAM: &[u8] = b"\xf0 signal";

fn wire(lab: &mut InMemory, times: usize, remote: &str, packet: &[u8]) {
    let item = (over_udp(remote), packet.to_vec(), Offload::default());
    lab.worker.io.wire_in.extend(std::iter::repeat_n(item, times));
    drain(lab);
}

fn punts(lab: &mut InMemory) -> usize {
    std::iter::from_fn(|| lab.punts.take()).count()
}

/// More than the burst and what has trickled in since `began` is too many.
fn assert_limited(passed: u64, burst: u64, per_second: u64, began: Instant) {
    let trickled = began.elapsed().as_millis() as u64 * per_second / 1000 + 1;
    assert!(
        (burst..=burst + trickled).contains(&passed),
        "{passed} of a burst of {burst}, {trickled} trickled in"
    );
}

/// RFC: D11 (RFC 5572 section 4.4)
#[test]
fn each_sender_has_its_own_limit_on_punts() {
    let (mut lab, began) = (lab(), Instant::now());
    wire(&mut lab, 300, "192.0.2.99:99", DATAGRAM);
    let passed = punts(&mut lab) as u64;
    assert_limited(passed, 100, 50, began);
    assert_eq!(lab.counters.dropped(Reason::PuntLimited), 300 - passed);
    wire(&mut lab, 1, "192.0.2.98:99", DATAGRAM);
    assert_eq!(punts(&mut lab), 1, "another sender is not held back");
    assert_eq!(lab.counters.happened(Event::Punted), passed + 1);
}

#[test]
fn a_full_way_up_drops_and_counts() {
    let mut lab = lab();
    // Datagrams that anybody may send leave a quarter to what comes out of tunnels.
    let most = FRAMES * 3 / 4;
    for n in 0..most as u32 + 10 {
        let sender = format!("{}:99", Ipv4Addr::from(0xc633_6400 + n));
        wire(&mut lab, 1, &sender, DATAGRAM);
    }
    assert_eq!(lab.counters.drops(), [(Reason::PuntFull, 10)]);
    assert_eq!(punts(&mut lab), most);
    wire(&mut lab, 1, "192.0.2.99:99", DATAGRAM);
    assert_eq!(punts(&mut lab), 1, "frames go round");
}

/// Watching is for people; signalling and neighbour discovery must get through beside it.
#[test]
fn a_watched_tunnel_leaves_room_on_the_way_up() {
    let mut lab = lab();
    lab.apply(&[Update::Watch(TunnelId(B), true)]).unwrap();
    wire(&mut lab, 2 * FRAMES, "192.0.2.2:5555", &udp("2001:db8:a:b::9", WORLD, 60));
    assert_eq!(lab.worker.io.tun_out.len(), 2 * FRAMES, "the packets themselves are not touched");
    wire(&mut lab, 1, "192.0.2.99:99", DATAGRAM);
    let classes: Vec<_> = std::iter::from_fn(|| lab.punts.take()).map(|p| p.class()).collect();
    assert_eq!(classes.last(), Some(&PuntClass::Datagram));
    assert_eq!(lab.counters.happened(Event::WatchMissed), 2 * FRAMES as u64 + 1 - classes.len() as u64);
    assert_eq!(lab.counters.drops(), []);
}

/// RFC: I5 (RFC 4443 section 2.4(f))
#[test]
fn errors_are_limited_for_each_tunnel() {
    let (mut lab, began) = (lab(), Instant::now());
    wire(&mut lab, 200, "192.0.2.3:3333", &udp(HOST_C, NOBODY, 100));
    let sent = lab.worker.io.wire_out.len() as u64;
    assert_limited(sent, 50, 100, began);
    assert_eq!(lab.counters.happened(Event::IcmpSent), sent);
    assert_eq!(lab.counters.happened(Event::IcmpLimited), 200 - sent);
    assert_eq!(lab.counters.dropped(Reason::Unassigned), 200, "dropping is not limited");
    wire(&mut lab, 1, "192.0.2.2:5555", &udp("2001:db8:a:b::9", NOBODY, 100));
    assert_eq!(lab.worker.io.wire_out.last().map(|o| o.path.tunnel), Some(TunnelId(B)));
}

/// RFC: I5 (RFC 4443 section 2.4(f))
#[test]
fn errors_are_limited_in_all() {
    let (mut lab, began) = (lab(), Instant::now());
    let remote = |n: u32| UdpRemote::Fixed(format!("198.51.100.{n}:7").parse().unwrap());
    for n in 10..60 {
        lab.apply(&[tunnel(n, udp_outer(remote(n)), &format!("2001:db8:{n:x}00::/48"), 1280)]).unwrap();
        wire(&mut lab, 20, &format!("198.51.100.{n}:7"), &udp(&format!("2001:db8:{n:x}00::9"), NOBODY, 100));
    }
    assert_limited(lab.counters.happened(Event::IcmpSent), 200, 1000, began);
    assert_eq!(lab.counters.happened(Event::IcmpSent) + lab.counters.happened(Event::IcmpLimited), 1000);
}

/// RFC: I6 (RFC 4443 section 2.2)
#[test]
fn an_error_comes_from_our_address_in_its_tunnel() {
    let mut lab = lab();
    let ours: std::net::Ipv6Addr = "2001:db8:c::1".parse().unwrap();
    let sources = |lab: &mut InMemory| -> Vec<std::net::Ipv6Addr> {
        let source = |packet: &[u8]| <[u8; 16]>::try_from(&packet[8..24]).unwrap().into();
        lab.worker.io.wire_out.drain(..).map(|out| source(&out.packet)).collect()
    };
    lab.apply(&[Update::Address(TunnelId(C), Some(ours))]).unwrap();
    wire(&mut lab, 1, "192.0.2.3:3333", &udp(HOST_C, NOBODY, 100));
    assert_eq!(sources(&mut lab), [ours]);
    wire(&mut lab, 1, "192.0.2.2:5555", &udp("2001:db8:a:b::9", NOBODY, 100));
    assert_eq!(sources(&mut lab), [policy().error_source.unwrap()], "another tunnel has none");
    lab.apply(&[Update::Address(TunnelId(C), None)]).unwrap();
    wire(&mut lab, 1, "192.0.2.3:3333", &udp(HOST_C, NOBODY, 100));
    assert_eq!(sources(&mut lab), [policy().error_source.unwrap()]);
    lab.apply(&[Update::Address(TunnelId(C), Some(ours)), Update::Remove(TunnelId(C))]).unwrap();
    let c = tunnel(C, udp_outer(UdpRemote::Fixed(peer(C).remote)), "2001:db8:c::/48", 1280);
    lab.apply(&[c]).unwrap();
    wire(&mut lab, 1, "192.0.2.3:3333", &udp(HOST_C, NOBODY, 100));
    assert_eq!(sources(&mut lab), [policy().error_source.unwrap()], "a new tunnel of that number has none");
    assert!(lab.apply(&[Update::Address(TunnelId(99), None)]).is_err());
}

/// The size of the segments is the client's choice, and no discount.
#[test]
fn a_quota_counts_what_is_on_the_wire_merged_or_not() {
    let train = udp_train(HOST_C, WORLD, 2000, 100);
    let octets: u64 = train.parts.iter().map(|part| part.len() as u64).sum();
    for (quota, passes) in [(octets, true), (octets - 1, false)] {
        let mut lab = limited(Meter { quota, ..Meter::NONE });
        lab.worker.io.wire_in.push_back((peer(C), train.whole.clone(), train.offload));
        drain(&mut lab);
        assert_eq!(!lab.worker.io.tun_out.is_empty(), passes, "{quota} for {octets}");
        let counted = if passes { octets } else { 0 };
        assert_eq!(lab.counters.tunnel(TunnelId(C)).rx_bytes, counted);
    }
}

#[test]
fn a_punt_tells_who_sent_what_to_where() {
    let mut lab = lab();
    wire(&mut lab, 1, "192.0.2.99:99", DATAGRAM);
    let punt = lab.punts.take().unwrap();
    assert_eq!((punt.class(), punt.tunnel(), punt.bytes()), (PuntClass::Datagram, None, DATAGRAM));
    assert_eq!(punt.arrival(), Arrival::Wire(over_udp("192.0.2.99:99")));
    assert_eq!(punt.verdict(), Verdict::Punt(PuntClass::Datagram));
}

#[test]
fn a_copy_tells_what_became_of_the_packet() {
    let mut lab = lab();
    lab.apply(&[Update::Watch(TunnelId(A), true)]).unwrap();
    let (good, bad) = (udp(HOST_A, WORLD, 60), udp(HOST_C, WORLD, 60));
    lab.worker.io.wire_in.extend([&good, &bad].map(|p| (peer(A), p.clone(), Offload::default())));
    drain(&mut lab);
    let copies: Vec<_> =
        std::iter::from_fn(|| lab.punts.take()).map(|p| (p.verdict(), p.bytes().to_vec())).collect();
    assert_eq!(copies, [(Verdict::ToTun, good), (Verdict::Drop(Reason::SourceNotInPrefix, None), bad)]);
}

#[test]
fn a_sum_left_to_hardware_is_completed_on_the_way_up() {
    let mut lab = lab();
    let whole = tcp(HOST_D, WORLD, 1, true, b"hello");
    let (packet, partial) = unfinished(whole.clone(), 16);
    let offload = Offload { merged: None, partial: Some(partial) };
    lab.worker.io.wire_in.push_back((over_udp("192.0.2.99:99"), packet, offload));
    drain(&mut lab);
    assert_eq!(lab.punts.take().unwrap().bytes(), whole);
}

/// The whole of learning, as far as the forwarder sees it: old, candidate, moved.
#[test]
fn a_moved_endpoint_takes_the_tunnel_with_it() {
    let mut lab = lab();
    let packet = udp(HOST_D, WORLD, 60);
    wire(&mut lab, 1, "192.0.2.99:99", &packet);
    assert_eq!(lab.punts.take().map(|p| p.class()), Some(PuntClass::Candidate));
    let moved = UdpRemote::Learned(None).moved_to("192.0.2.99:99".parse().unwrap()).unwrap();
    lab.apply(&[tunnel(D, udp_outer(moved), "2001:db8:d::/48", 1280)]).unwrap();
    wire(&mut lab, 1, "192.0.2.99:99", &packet);
    assert_eq!(lab.worker.io.tun_out.pop().map(|(p, _)| p), Some(packet.clone()));
    wire(&mut lab, 1, "192.0.2.98:99", &packet);
    assert_eq!(
        lab.punts.take().map(|p| p.class()),
        Some(PuntClass::Candidate),
        "the next one is asked again"
    );
    assert!(lab.worker.io.tun_out.is_empty());
}

/// Traffic for one who has gone must not reach the next holder of his address.
/// RFC: R10 (RFC 4213 section 5)
#[test]
fn a_removed_tunnel_is_a_stranger() {
    let mut lab = lab();
    lab.apply(&[Update::Remove(TunnelId(C))]).unwrap();
    wire(&mut lab, 1, "192.0.2.3:3333", &udp(HOST_C, WORLD, 60));
    lab.worker.io.tun_in.push_back((udp(WORLD, HOST_C, 60), Offload::default()));
    drain(&mut lab);
    assert_eq!(lab.counters.drops(), [(Reason::UnknownOuter, 1), (Reason::Unassigned, 1)]);
}

#[test]
fn the_last_packet_of_each_reason_is_kept() {
    let mut lab = lab();
    let packet = udp(HOST_A, WORLD, 300);
    wire(&mut lab, 1, "192.0.2.2:5555", &packet);
    let kept = lab.counters.sample(Reason::SourceNotInPrefix).unwrap();
    assert_eq!((kept.len, &kept.bytes[..], kept.tunnel), (300, &packet[..128], Some(TunnelId(B))));
    assert_eq!(kept.course, Course::From(Arrival::Wire(over_udp("192.0.2.2:5555"))));
    assert_eq!(lab.counters.sample(Reason::WrongOuter), None);
}

/// Tunnel C with these limits.
fn limited(meter: Meter) -> InMemory {
    let mut lab = lab();
    let Update::Upsert(mut c) =
        tunnel(C, udp_outer(UdpRemote::Fixed(peer(C).remote)), "2001:db8:c::/48", 1280)
    else {
        panic!("a tunnel is put")
    };
    c.manners = Manners::PLAIN.with_metered(true);
    lab.apply(&[Update::Upsert(c), Update::Meter(TunnelId(C), meter)]).unwrap();
    lab
}

#[test]
fn a_tunnel_carries_as_many_packets_as_its_rate_both_ways_together() {
    let (mut lab, began) = (limited(Meter { packets_per_second: 100, ..Meter::NONE }), Instant::now());
    let out = (peer(C), udp(HOST_C, WORLD, 100), Offload::default());
    lab.worker.io.wire_in.extend(std::iter::repeat_n(out, 100));
    lab.worker.io.tun_in.extend(std::iter::repeat_n((udp(WORLD, HOST_C, 100), Offload::default()), 100));
    drain(&mut lab);
    let passed = (lab.worker.io.tun_out.len() + lab.worker.io.wire_out.len()) as u64;
    assert_limited(passed, 64, 100, began);
    assert_eq!(lab.counters.dropped(Reason::RateLimited), 200 - passed);
    lab.worker.io.tun_in.push_back((udp(WORLD, HOST_A, 100), Offload::default()));
    drain(&mut lab);
    assert_eq!(lab.worker.io.wire_out.last().map(|out| out.path.tunnel), Some(TunnelId(A)));
}

#[test]
fn a_quota_ends_and_the_sender_is_told() {
    let mut lab = limited(Meter { quota: 250, ..Meter::NONE });
    lab.worker.io.tun_in.extend(std::iter::repeat_n((udp(WORLD, HOST_C, 100), Offload::default()), 4));
    drain(&mut lab);
    assert_eq!(lab.worker.io.wire_out.len(), 2);
    assert_eq!(lab.counters.dropped(Reason::QuotaSpent), 2);
    let told: Vec<_> = lab.worker.io.tun_out.iter().map(|(packet, _)| packet[40..42].to_vec()).collect();
    assert_eq!(told, [[1, 1], [1, 1]], "administratively prohibited");
}

/// RFC: I5 (RFC 4443 section 2.4(f))
#[test]
fn the_rates_of_errors_are_the_policys() {
    let mut lab = lab();
    let none = Rate { per_second: 0, burst: 0 };
    let offending = (udp(WORLD, NOBODY, 100), Offload::default());
    for (errors, errors_of_tunnel, told) in
        [(none, policy().errors_of_tunnel, 0), (policy().errors, Rate { per_second: 0, burst: 3 }, 3)]
    {
        lab.apply(&[Update::Policy(Policy { errors, errors_of_tunnel, ..policy() })]).unwrap();
        lab.worker.io.tun_in.extend(std::iter::repeat_n(offending.clone(), 10));
        drain(&mut lab);
        assert_eq!(lab.worker.io.tun_out.drain(..).count(), told);
    }
}

#[test]
fn what_goes_whole_has_df_and_what_goes_towards_finds_its_way() {
    let mut lab = lab();
    let (big, home, out) = (udp(WORLD, HOST_A, 1400), udp(WORLD, HOST_C, 90), udp(HOST_A, WORLD, 80));
    let injects = [
        Inject::Whole { id: TunnelId(A), packet: big.clone() },
        Inject::Toward { packet: home.clone() },
        Inject::Toward { packet: out.clone() },
    ];
    injects.into_iter().for_each(|inject| assert!(lab.commands.inject(inject)));
    drain(&mut lab);
    let sent: Vec<_> =
        lab.worker.io.wire_out.iter().map(|o| (o.path.tunnel.0, o.path.manners.is_whole())).collect();
    assert_eq!(sent, [(A, true), (C, false)]);
    assert_eq!((&lab.worker.io.wire_out[0].packet, &lab.worker.io.wire_out[1].packet), (&big, &home));
    assert_eq!(lab.worker.io.tun_out, [(out, Offload::default())]);
}
