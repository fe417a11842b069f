//! Rows: what the kernel routed to us, and tunnel to tunnel (RFC 8200 section 3: there we are the hop).

use sixway_dataplane::packet::batch::Offload;
use sixway_dataplane::update::{Policy, Update};
use sixway_dataplane::verdict::Reason;

use crate::lab::{
    A, B, C, D, E, HOST_A, HOST_B, HOST_C, HOST_D, HOST_E, HOST_F, NO_ROUTE, NOBODY, PROHIBITED, ROUTER,
    ROUTER_IN_A, Row, TIME_EXCEEDED, UNREACHABLE, UPLINK, WORLD, marked, peer, policy, row, uplink,
};
use crate::packets::{bare, class, hops, icmp, tcp, udp, unfinished};

pub(crate) fn rows() -> Vec<Row> {
    [
        entered(),
        shapes(),
        refused(),
        scopes(),
        martians(),
        sizes(),
        errors(),
        hairpin(),
        hairpin_refused(),
        checksums(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn entered() -> Vec<Row> {
    let sent = |name, id, packet: Vec<u8>| row(name).tun(&packet).peer_gets(id, 0, &packet);
    vec![
        sent("by protocol 41", A, udp(WORLD, HOST_A, 100)),
        sent("by UDP", C, udp(WORLD, HOST_C, 100)),
        sent("by longest match", B, udp(WORLD, HOST_B, 100)),
        sent("from the router itself", A, udp(ROUTER, HOST_A, 100)),
        sent("the kernel was the hop", A, hops(udp(WORLD, HOST_A, 100), 1)),
        sent("from the pool's spare space", A, udp(NOBODY, HOST_A, 100)),
        row("ECN is copied, DSCP is not").tun(&class(udp(WORLD, HOST_A, 100), 0xba)).peer_gets(
            A,
            2,
            &class(udp(WORLD, HOST_A, 100), 0xba),
        ),
        sent("out by the uplink", UPLINK, udp(ROUTER, WORLD, 100)).with(uplink()),
        sent("the uplink covers no source", UPLINK, udp("3fff::77", WORLD, 100)).with(uplink()),
        sent("tunnels before the uplink", A, udp(WORLD, HOST_A, 100)).with(uplink()),
    ]
}

pub(crate) fn shapes() -> Vec<Row> {
    let good = udp(WORLD, HOST_A, 100);
    let mut padded = good.clone();
    padded.push(0xee);
    let mut four = good.clone();
    four[0] = 0x45;
    vec![
        row("trailing octets are cut").tun(&padded).peer_gets(A, 0, &good),
        row("no whole header").tun(&good[..39]).drops(Reason::TooShort, None),
        row("IPv4").tun(&four).drops(Reason::NotIpv6, None),
        row("less than it says").tun(&good[..99]).drops(Reason::Truncated, None),
    ]
}

pub(crate) fn refused() -> Vec<Row> {
    let (unknown, nobody) = (udp(ROUTER, WORLD, 100), udp(ROUTER, NOBODY, 100));
    let (to_d, to_f) = (udp(WORLD, HOST_D, 100), udp(WORLD, HOST_F, 100));
    vec![
        row("no route").tun(&unknown).drops(Reason::NoRoute, None).tells_kernel(NO_ROUTE, &unknown),
        row("unassigned").tun(&nobody).drops(Reason::Unassigned, None).tells_kernel(NO_ROUTE, &nobody),
        row("the router's own came back").tun(&udp(WORLD, ROUTER, 100)).drops(Reason::NoRoute, None),
        row("inside A's prefix too").tun(&udp(WORLD, ROUTER_IN_A, 100)).drops(Reason::NoRoute, None),
        row("nothing learned").tun(&to_d).drops(Reason::NoEndpoint, Some(D)).tells_kernel(UNREACHABLE, &to_d),
        row("no port learned")
            .tun(&to_f)
            .drops(Reason::NoEndpoint, Some(crate::lab::F))
            .tells_kernel(UNREACHABLE, &to_f),
        row("A's source").tun(&udp(HOST_A, HOST_C, 100)).drops(Reason::SourceInTunnel, Some(A)),
        row("B's source").tun(&udp(HOST_B, HOST_C, 100)).drops(Reason::SourceInTunnel, Some(B)),
        row("A's source with an uplink")
            .with(uplink())
            .tun(&udp(HOST_A, WORLD, 100))
            .drops(Reason::SourceInTunnel, Some(A)),
    ]
}

pub(crate) fn scopes() -> Vec<Row> {
    let dropped = |name, source, destination| {
        row(name).with(uplink()).tun(&udp(source, destination, 60)).drops(Reason::Scope, None)
    };
    vec![
        dropped("from link-local", "fe80::1", HOST_A),
        dropped("to link-local", ROUTER, "fe80::1"),
        dropped("to a link's group", ROUTER, "ff02::1"),
        dropped("to a global group", ROUTER, "ff0e::1"),
        dropped("duplicate address detection", "::", "ff02::1:ff00:1"),
    ]
}

/// Not even to an uplink, which has room for every address (RFC 4291 section 2.5).
pub(crate) fn martians() -> Vec<Row> {
    let dropped = |name, source, destination| {
        row(name).with(uplink()).tun(&bare(source, destination)).drops(Reason::InnerMartian, None)
    };
    vec![
        dropped("from a group", "ff0e::1", WORLD),
        dropped("from nobody", "::", WORLD),
        dropped("from loopback", "::1", WORLD),
        dropped("from a mapped address", "::ffff:192.0.2.1", WORLD),
        dropped("to loopback", ROUTER, "::1"),
        dropped("to nobody", ROUTER, "::"),
        dropped("to a compatible address", ROUTER, "::192.0.2.1"),
        dropped("to a mapped address", ROUTER, "::ffff:192.0.2.1"),
    ]
}

pub(crate) fn sizes() -> Vec<Row> {
    let fits = |name, id, packet: Vec<u8>| row(name).tun(&packet).peer_gets(id, 0, &packet);
    let too_big = |name, id, packet: Vec<u8>, mtu| {
        row(name).tun(&packet).drops(Reason::TooBig, Some(id)).tells_kernel((2, 0, mtu), &packet)
    };
    vec![
        fits("1280 always", A, udp(WORLD, HOST_A, 1280)),
        too_big("1281 not into A", A, udp(WORLD, HOST_A, 1281), 1280),
        fits("1400 into B", B, udp(WORLD, HOST_B, 1400)),
        too_big("1401 not into B", B, udp(WORLD, HOST_B, 1401), 1400),
        fits("1480 into E", E, udp(WORLD, HOST_E, 1480)),
        too_big("1481 not into E", E, udp(WORLD, HOST_E, 1481), 1480),
        too_big("64 KiB", E, udp(WORLD, HOST_E, 65_535), 1480),
    ]
}

/// RFC 4443 section 2.4(e).
pub(crate) fn errors() -> Vec<Row> {
    let unreachable = icmp(ROUTER, WORLD, 64, 1, [0; 4]);
    let echo = icmp(ROUTER, WORLD, 64, 128, [0; 4]);
    let silent = Update::Policy(Policy { error_source: None, ..policy() });
    vec![
        row("never about an error").tun(&unreachable).drops(Reason::NoRoute, None),
        row("never about a redirect").tun(&icmp(ROUTER, WORLD, 64, 137, [0; 4])).drops(Reason::NoRoute, None),
        row("about an echo request").tun(&echo).drops(Reason::NoRoute, None).tells_kernel(NO_ROUTE, &echo),
        row("never without an address of our own").with(silent).tun(&echo).drops(Reason::NoRoute, None),
    ]
}

pub(crate) fn hairpin() -> Vec<Row> {
    let packet = udp(HOST_A, HOST_C, 100);
    let turned = |name, hops_in, hops_out| {
        row(name)
            .wire(peer(A), &hops(packet.clone(), hops_in))
            .peer_gets(C, 0, &hops(packet.clone(), hops_out))
            .received(A, 1, 100)
    };
    let (to_b, to_a) = (udp(HOST_A, HOST_B, 100), udp(HOST_B, HOST_A, 100));
    let marks = |m| class(packet.clone(), m);
    vec![
        turned("we are a hop", 64, 63),
        turned("the last but one", 2, 1),
        turned("the most", 255, 254),
        row("into the nested prefix")
            .wire(peer(A), &to_b)
            .peer_gets(B, 0, &hops(to_b.clone(), 63))
            .received(A, 1, 100),
        row("out of the nested prefix")
            .wire(peer(B), &to_a)
            .peer_gets(A, 0, &hops(to_a.clone(), 63))
            .received(B, 1, 100),
        row("congestion goes through")
            .wire(marked(peer(A), 3), &marks(0x0a))
            .peer_gets(C, 3, &hops(marks(0x0b), 63))
            .received(A, 1, 100),
    ]
}

pub(crate) fn hairpin_refused() -> Vec<Row> {
    let packet = udp(HOST_A, HOST_C, 100);
    let (spent, last) = (hops(packet.clone(), 0), hops(packet.clone(), 1));
    let (long, to_d) = (udp(HOST_E, HOST_A, 1281), udp(HOST_A, HOST_D, 100));
    let off = Update::Policy(Policy { hairpin: false, ..policy() });
    let refused = |name, id, packet: &[u8], reason, kind| {
        row(name).wire(peer(id), packet).drops(reason, Some(id)).tells_peer(id, kind, packet)
    };
    let error = hops(icmp(HOST_A, HOST_C, 64, 3, [0; 4]), 1);
    vec![
        refused("no hop left", A, &last, Reason::HopLimit, TIME_EXCEEDED),
        refused("less than none", A, &spent, Reason::HopLimit, TIME_EXCEEDED),
        row("no error about an error").wire(peer(A), &error).drops(Reason::HopLimit, Some(A)),
        refused("forbidden", A, &packet, Reason::HairpinOff, PROHIBITED).with(off.clone()),
        row("which the kernel is not")
            .with(off)
            .wire(peer(A), &udp(HOST_A, WORLD, 60))
            .kernel_gets(A, &udp(HOST_A, WORLD, 60)),
        refused("too big for the other", E, &long, Reason::TooBig, (2, 0, 1280)),
        refused("the other is not there yet", A, &to_d, Reason::NoEndpoint, UNREACHABLE),
    ]
}

/// Sums that a kernel left to hardware: nobody behind us would do them.
fn checksums() -> Vec<Row> {
    let left = |whole: &[u8], offset| {
        let (packet, partial) = unfinished(whole.to_vec(), offset);
        (packet, Offload { merged: None, partial: Some(partial) })
    };
    let from_kernel = tcp(WORLD, HOST_A, 5, true, b"odd");
    let datagram = udp(WORLD, HOST_C, 101);
    let from_peer = tcp(HOST_A, HOST_C, 5, true, b"odd");
    let up = tcp(HOST_A, WORLD, 5, true, b"odd");
    let ((tcp_in, tcp_how), (udp_in, udp_how)) = (left(&from_kernel, 16), left(&datagram, 6));
    let ((peer_in, peer_how), (up_in, up_how)) = (left(&from_peer, 16), left(&up, 16));
    let beyond = Offload { merged: None, partial: Some((40, 1000)) };
    let within = Offload { merged: None, partial: Some((6, 16)) };
    vec![
        row("TCP from the kernel").tun_as(&tcp_in, tcp_how).peer_gets(A, 0, &from_kernel),
        row("UDP from the kernel").tun_as(&udp_in, udp_how).peer_gets(C, 0, &datagram),
        row("tunnel to tunnel")
            .wire_as(peer(A), &peer_in, peer_how)
            .peer_gets(C, 0, &hops(from_peer.clone(), 63))
            .received(A, 1, from_peer.len()),
        row("the kernel does its own").wire_as(peer(A), &up_in, up_how).kernel_gets_as(A, &up_in, up_how, 1),
        row("a field beyond the packet").tun_as(&from_kernel, beyond).drops(Reason::BadOffload, Some(A)),
        row("a sum of the header itself").tun_as(&from_kernel, within).drops(Reason::BadOffload, Some(A)),
        row("the same from a peer").wire_as(peer(A), &from_peer, beyond).drops(Reason::BadOffload, Some(A)),
    ]
}
