//! Rows: what peers send, up to the point where it is the kernel's or dead (RFC 4213 section 3.6 and its neighbours).

use sixway_dataplane::table::slab::Encap;
use sixway_dataplane::update::{Ipv6Prefix, Update};
use sixway_dataplane::verdict::{PuntClass, Reason};

use crate::lab::{
    A, B, C, E, HOST_A, HOST_B, HOST_C, HOST_E, NO_ROUTE, NOBODY, ROUTER, ROUTER_IN_A, Row, UPLINK, WORLD,
    at, marked, over_udp, peer, row, sit, uplink,
};
use crate::packets::{bare, class, hops, icmp, ip, udp};

pub(crate) fn rows() -> Vec<Row> {
    [
        accepted(),
        shapes(),
        outer_martians(),
        inner_martians(),
        spoofs(),
        nested(),
        destinations(),
        congestion(),
        on_link(),
        discovery(),
        out_of_the_uplink(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

pub(crate) fn accepted() -> Vec<Row> {
    let (a, b, e) = (udp(HOST_A, WORLD, 100), udp(HOST_B, WORLD, 100), udp(HOST_E, ROUTER, 1480));
    let last_hop = hops(udp(HOST_A, WORLD, 60), 1);
    let spent = hops(udp(HOST_A, WORLD, 60), 0);
    vec![
        row("protocol 41 to the world").wire(peer(A), &a).kernel_gets(A, &a),
        row("UDP to the world").wire(peer(B), &b).kernel_gets(B, &b),
        row("to the router's own address").wire(peer(E), &e).kernel_gets(E, &e),
        row("longer than our MTU is taken")
            .wire(peer(A), &udp(HOST_A, WORLD, 9000))
            .kernel_gets(A, &udp(HOST_A, WORLD, 9000)),
        row("the kernel is the hop, not we").wire(peer(A), &last_hop).kernel_gets(A, &last_hop),
        row("also where none is left").wire(peer(A), &spent).kernel_gets(A, &spent),
    ]
}

pub(crate) fn shapes() -> Vec<Row> {
    let good = udp(HOST_A, WORLD, 100);
    let mut padded = good.clone();
    padded.extend_from_slice(&[0xee; 7]);
    let mut four = good.clone();
    four[0] = 0x45;
    vec![
        row("trailing octets are cut").wire(peer(A), &padded).kernel_gets(A, &good),
        row("no whole header").wire(peer(A), &good[..39]).drops(Reason::TooShort, Some(A)),
        row("no whole header, from nobody")
            .wire(sit("192.0.2.99"), &good[..39])
            .drops(Reason::TooShort, None),
        row("nothing at all").wire(peer(A), &[]).drops(Reason::TooShort, Some(A)),
        row("nothing at all in UDP").wire(peer(B), &[]).drops(Reason::TooShort, Some(B)),
        row("an octet of IPv6 in UDP").wire(peer(B), &[0x60]).drops(Reason::TooShort, Some(B)),
        row("IPv4 in protocol 41").wire(peer(A), &four).drops(Reason::NotIpv6, Some(A)),
        row("an octet of IPv4").wire(peer(A), &[0x45]).drops(Reason::NotIpv6, Some(A)),
        row("less than it says").wire(peer(A), &good[..99]).drops(Reason::Truncated, Some(A)),
    ]
}

pub(crate) fn outer_martians() -> Vec<Row> {
    let good = udp(HOST_A, WORLD, 100);
    let dropped = |name, outer: &str| {
        let row = row(name).wire(sit(outer), &good).drops(Reason::OuterMartian, None);
        row.wire(over_udp(&format!("{outer}:5")), &good).drops(Reason::OuterMartian, None)
    };
    vec![
        dropped("this network", "0.1.2.3"),
        dropped("loopback", "127.0.0.1"),
        dropped("multicast", "224.0.0.1"),
        dropped("the last multicast group", "239.255.255.255"),
        dropped("broadcast", "255.255.255.255"),
        row("ourselves by protocol 41").wire(sit("10.0.0.1"), &good).drops(Reason::OuterMartian, None),
        row("ourselves by UDP").wire(over_udp("10.0.0.1:3653"), &good).drops(Reason::OuterMartian, None),
        row("not even a datagram")
            .wire(over_udp("127.0.0.1:5"), b"datagram")
            .drops(Reason::OuterMartian, None),
    ]
}

pub(crate) fn inner_martians() -> Vec<Row> {
    let dropped = |name, source: &str, destination: &str| {
        row(name).wire(peer(A), &bare(source, destination)).drops(Reason::InnerMartian, Some(A))
    };
    vec![
        dropped("from a group", "ff0e::1", WORLD),
        dropped("from loopback", "::1", WORLD),
        dropped("from nobody", "::", WORLD),
        dropped("from nobody to the router", "::", ROUTER),
        dropped("from a compatible address", "::192.0.2.1", WORLD),
        dropped("from a mapped address", "::ffff:192.0.2.1", WORLD),
        dropped("to loopback", HOST_A, "::1"),
        dropped("to nobody", HOST_A, "::"),
        dropped("to a compatible address", HOST_A, "::192.0.2.1"),
        dropped("to a mapped address", HOST_A, "::ffff:192.0.2.1"),
        row("by nobody's peer")
            .wire(sit("192.0.2.99"), &bare("::1", WORLD))
            .drops(Reason::InnerMartian, None),
    ]
}

/// Wrong outer and spoofed inner are different reasons.
pub(crate) fn spoofs() -> Vec<Row> {
    let from_a = udp(HOST_A, WORLD, 100);
    let elsewhere = peer(A);
    let elsewhere = sixway_dataplane::packet::batch::Sender { local: at("10.0.0.9:0"), ..elsewhere };
    let dropped =
        |name, sender, packet: &[u8], reason, tunnel| row(name).wire(sender, packet).drops(reason, tunnel);
    vec![
        dropped(
            "nobody's peer, nobody's source",
            sit("192.0.2.99"),
            &udp(WORLD, HOST_A, 60),
            Reason::UnknownOuter,
            None,
        ),
        dropped(
            "nobody's peer, unassigned source",
            sit("192.0.2.99"),
            &udp(NOBODY, WORLD, 60),
            Reason::UnknownOuter,
            None,
        ),
        dropped("nobody's peer, A's source", sit("192.0.2.99"), &from_a, Reason::WrongOuter, Some(A)),
        dropped(
            "A's peer by another encapsulation",
            over_udp("192.0.2.1:1"),
            &from_a,
            Reason::WrongOuter,
            Some(A),
        ),
        dropped("A's peer to another address of ours", elsewhere, &from_a, Reason::WrongOuter, Some(A)),
        dropped("B's peer, A's source", peer(B), &from_a, Reason::SourceNotInPrefix, Some(B)),
        dropped(
            "A's peer, the world's source",
            peer(A),
            &udp(WORLD, HOST_C, 60),
            Reason::SourceNotInPrefix,
            Some(A),
        ),
        dropped(
            "A's peer, unassigned source",
            peer(A),
            &udp(NOBODY, WORLD, 60),
            Reason::SourceNotInPrefix,
            Some(A),
        ),
        dropped("A's peer, our source", peer(A), &udp(ROUTER, WORLD, 60), Reason::SourceIsLocal, Some(A)),
        dropped(
            "our source in A's prefix",
            peer(A),
            &udp(ROUTER_IN_A, WORLD, 60),
            Reason::SourceIsLocal,
            Some(A),
        ),
        dropped(
            "nobody's peer, our source",
            sit("192.0.2.99"),
            &udp(ROUTER, WORLD, 60),
            Reason::SourceIsLocal,
            None,
        ),
    ]
}

/// B's prefix lies inside A's: each may use what longest match gives it, and nothing of the other's.
pub(crate) fn nested() -> Vec<Row> {
    let (a, b) = (udp(HOST_A, WORLD, 100), udp(HOST_B, WORLD, 100));
    vec![
        row("A from A's").wire(peer(A), &a).kernel_gets(A, &a),
        row("B from B's").wire(peer(B), &b).kernel_gets(B, &b),
        row("A from B's, inside its own").wire(peer(A), &b).drops(Reason::SourceNotInPrefix, Some(A)),
        row("B from A's, around its own").wire(peer(B), &a).drops(Reason::SourceNotInPrefix, Some(B)),
        row("B gone, A has it all")
            .with(Update::Remove(sixway_dataplane::update::TunnelId(B)))
            .wire(peer(A), &b)
            .kernel_gets(A, &b),
    ]
}

pub(crate) fn destinations() -> Vec<Row> {
    let (nobody, same) = (udp(HOST_A, NOBODY, 300), udp(HOST_A, "2001:db8:a::77", 300));
    let around = udp(HOST_B, "2001:db8:a:b::77", 300);
    let own = udp(HOST_E, ROUTER_IN_A, 300);
    vec![
        row("to nobody")
            .wire(peer(A), &nobody)
            .drops(Reason::Unassigned, Some(A))
            .tells_peer(A, NO_ROUTE, &nobody),
        row("back where it came from")
            .wire(peer(A), &same)
            .drops(Reason::SameTunnel, Some(A))
            .tells_peer(A, NO_ROUTE, &same),
        row("also where the prefix is nested")
            .wire(peer(B), &around)
            .drops(Reason::SameTunnel, Some(B))
            .tells_peer(B, NO_ROUTE, &around),
        row("the router's address inside A's prefix is the router's")
            .wire(peer(E), &own)
            .kernel_gets(E, &own),
        row("also for A itself")
            .wire(peer(A), &udp(HOST_A, ROUTER_IN_A, 80))
            .kernel_gets(A, &udp(HOST_A, ROUTER_IN_A, 80)),
    ]
}

/// RFC 6040 section 4.2; all sixteen combinations are beside the function.
pub(crate) fn congestion() -> Vec<Row> {
    let packet = |marks| class(udp(HOST_A, WORLD, 100), marks);
    let taken = |name, inner, outer, got| {
        row(name).wire(marked(peer(A), outer), &packet(inner)).kernel_gets(A, &packet(got))
    };
    vec![
        taken("no mark outside changes nothing inside", 0xba, 0, 0xba),
        taken("experienced outside is told inside", 0xba, 3, 0xbb),
        taken("ECT(1) outside is told inside", 0xba, 1, 0xb9),
        taken("outer DSCP is not", 0xba, 0xfc, 0xba),
        row("experienced by one who cannot say")
            .wire(marked(peer(A), 3), &packet(0xb8))
            .drops(Reason::Ecn, Some(A)),
    ]
}

pub(crate) fn on_link() -> Vec<Row> {
    let (fe80, routers, dad) = ("fe80::9", "ff02::2", "ff02::1:ff00:9");
    let up = |name, source, destination| {
        let packet = icmp(source, destination, 255, 133, [0; 4]);
        row(name).wire(peer(A), &packet).goes_up(PuntClass::Link, Some(A)).received(A, 1, packet.len())
    };
    let dropped = |name, sender, source, destination, reason, tunnel| {
        row(name).wire(sender, &icmp(source, destination, 255, 133, [0; 4])).drops(reason, tunnel)
    };
    vec![
        up("link-local to all routers", fe80, routers),
        up("link-local to link-local", fe80, "fe80::1"),
        up("link-local to the router", fe80, ROUTER),
        up("its own prefix to all nodes", HOST_A, "ff02::1"),
        up("its own prefix to link-local", HOST_A, "fe80::1"),
        up("duplicate address detection", "::", dad),
        dropped(
            "link-local from nobody's peer",
            sit("192.0.2.99"),
            fe80,
            routers,
            Reason::UnknownOuter,
            None,
        ),
        dropped("B's prefix to all nodes", peer(A), HOST_B, "ff02::1", Reason::SourceNotInPrefix, Some(A)),
        dropped("the router's own to all nodes", peer(A), ROUTER, "ff02::1", Reason::SourceIsLocal, Some(A)),
        dropped("the world to link-local", peer(A), WORLD, "fe80::1", Reason::SourceNotInPrefix, Some(A)),
        dropped("link-local to the world", peer(A), fe80, WORLD, Reason::Scope, Some(A)),
        dropped("link-local to another tunnel", peer(A), fe80, HOST_C, Reason::Scope, Some(A)),
        dropped("interface-local group", peer(A), HOST_A, "ff01::1", Reason::Scope, Some(A)),
        dropped("site-local group", peer(A), HOST_A, "ff05::2", Reason::Scope, Some(A)),
        dropped("global group", peer(A), HOST_A, "ff0e::1", Reason::Scope, Some(A)),
        dropped("nobody to a wider group", peer(A), "::", "ff05::2", Reason::Scope, Some(A)),
    ]
}

/// Solicitations for the router's own addresses; only a neighbour can have sent them with hop limit 255.
fn discovery() -> Vec<Row> {
    let to_router = |kind, hops| icmp(HOST_A, ROUTER, hops, kind, [0; 4]);
    let up = |name, packet: Vec<u8>| {
        row(name).wire(peer(A), &packet).goes_up(PuntClass::Link, Some(A)).received(A, 1, packet.len())
    };
    let passes = |name, packet: Vec<u8>| row(name).wire(peer(A), &packet).kernel_gets(A, &packet);
    vec![
        up("a router solicitation", to_router(133, 255)),
        up("a neighbour solicitation", to_router(135, 255)),
        up("a redirect", to_router(137, 255)),
        passes("from further away", to_router(135, 254)),
        passes("echo is the kernel's", to_router(128, 255)),
        passes("not to the router", icmp(HOST_A, WORLD, 255, 135, [0; 4])),
    ]
}

/// The client's side: everything is behind the tunnel, except what is somebody's.
fn out_of_the_uplink() -> Vec<Row> {
    let to_us = udp(WORLD, ROUTER, 100);
    let through = udp(WORLD, "3fff::77", 100);
    let to_a = udp(WORLD, HOST_A, 100);
    let out = |name| row(name).with(uplink());
    assert_eq!(peer(UPLINK).encap, Encap::Proto41);
    assert!(Ipv6Prefix::ALL.contains(ip(WORLD)));
    vec![
        out("the world to the router").wire(peer(UPLINK), &to_us).kernel_gets(UPLINK, &to_us),
        out("the world to a net behind our kernel")
            .wire(peer(UPLINK), &through)
            .kernel_gets(UPLINK, &through),
        out("the world to A")
            .wire(peer(UPLINK), &to_a)
            .peer_gets(A, 0, &hops(to_a.clone(), 63))
            .received(UPLINK, 1, 100),
        out("it may not speak for A")
            .wire(peer(UPLINK), &udp(HOST_A, ROUTER, 60))
            .drops(Reason::SourceNotInPrefix, Some(UPLINK)),
        out("it may not speak for us")
            .wire(peer(UPLINK), &udp(ROUTER, WORLD, 60))
            .drops(Reason::SourceIsLocal, Some(UPLINK)),
        out("it may not speak for the pool")
            .wire(peer(UPLINK), &udp(NOBODY, ROUTER, 60))
            .drops(Reason::SourceNotInPrefix, Some(UPLINK)),
        out("the world by C's peer")
            .wire(peer(C), &udp(WORLD, ROUTER, 60))
            .drops(Reason::SourceNotInPrefix, Some(C)),
        out("the world by nobody's peer")
            .wire(sit("192.0.2.99"), &udp(WORLD, ROUTER, 60))
            .drops(Reason::WrongOuter, Some(UPLINK)),
        out("C to the world, which is now a hop")
            .wire(peer(C), &udp(HOST_C, WORLD, 100))
            .peer_gets(UPLINK, 0, &hops(udp(HOST_C, WORLD, 100), 63))
            .received(C, 1, 100),
    ]
}
