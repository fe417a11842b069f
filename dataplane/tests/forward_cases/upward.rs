//! Rows: what goes to the control plane, and what comes down from it.

use sixway_dataplane::packet::batch::Sender;
use sixway_dataplane::table::slab::Encap;
use sixway_dataplane::update::{TunnelId, Update};
use sixway_dataplane::verdict::{PuntClass, Reason};
use sixway_dataplane::worker::Inject;

use crate::lab::{
    A, B, C, D, F, HOST_A, HOST_B, HOST_C, HOST_D, HOST_F, IDENT, NO_ROUTE, NOBODY, ROUTER, Row, WORLD, at,
    over_udp, peer, row, sit,
};
use crate::packets::{echo_reply, hops, udp};

pub(crate) fn rows() -> Vec<Row> {
    [datagrams(), candidates(), probes(), injects(), watched()].into_iter().flatten().collect()
}

fn datagrams() -> Vec<Row> {
    let signalling = b"\xf0\x00\x00\x01\x00\x00\x00\x02VERSION";
    let up = |name, sender, bytes: &[u8], tunnel| {
        row(name).wire(sender, bytes).goes_up(PuntClass::Datagram, tunnel)
    };
    vec![
        up("signalling by a stranger", over_udp("192.0.2.99:99"), signalling, None),
        up("signalling by a peer", peer(B), signalling, Some(B)),
        up("eight octets will do", over_udp("192.0.2.99:99"), &signalling[..8], None),
        up("IPv4 is not ours to judge", over_udp("192.0.2.99:99"), &[0x45; 20], None),
        row("seven will not").wire(over_udp("192.0.2.99:99"), &signalling[..7]).drops(Reason::TooShort, None),
        row("by protocol 41 there is no signalling")
            .wire(sit("192.0.2.99"), signalling)
            .drops(Reason::NotIpv6, None),
    ]
}

/// The peer may have moved, where the tunnel lets it: asked about, never forwarded.
fn candidates() -> Vec<Row> {
    let up = |name, sender, packet: &[u8], tunnel| {
        row(name).wire(sender, packet).goes_up(PuntClass::Candidate, Some(tunnel))
    };
    let dropped = |name, sender, packet: &[u8], tunnel| {
        row(name).wire(sender, packet).drops(Reason::WrongOuter, Some(tunnel))
    };
    let [b, c, d, f] = [HOST_B, HOST_C, HOST_D, HOST_F].map(|host| udp(host, WORLD, 100));
    let other_port = Sender { local: at("10.0.0.1:3654"), ..over_udp("192.0.2.99:99") };
    let other_address = Sender { local: at("10.0.0.9:3653"), ..over_udp("192.0.2.99:99") };
    vec![
        dropped("fixed never moves", over_udp("192.0.2.2:5556"), &b, B),
        up("another port of the same address", over_udp("192.0.2.3:3334"), &c, C),
        dropped("another address", over_udp("192.0.2.4:3333"), &c, C),
        up("the first port of the address", over_udp("192.0.2.6:9"), &f, F),
        dropped("another address for its first port", over_udp("192.0.2.7:9"), &f, F),
        up("anywhere", over_udp("192.0.2.99:99"), &d, D),
        dropped("to a port that is not the tunnel's", other_port, &d, D),
        up("to another address of ours: the control plane decides", other_address, &d, D),
        dropped("by another encapsulation", sit("192.0.2.99"), &d, D),
        row("somebody's peer cannot be D's").wire(peer(B), &d).drops(Reason::SourceNotInPrefix, Some(B)),
    ]
}

fn probes() -> Vec<Row> {
    let (ours, other) = (echo_reply(HOST_C, ROUTER, IDENT), echo_reply(HOST_C, ROUTER, IDENT + 1));
    let through = echo_reply(HOST_C, WORLD, IDENT);
    let from_d = echo_reply(HOST_D, ROUTER, IDENT);
    vec![
        row("delivered and told")
            .wire(peer(C), &ours)
            .kernel_gets(C, &ours)
            .goes_up(PuntClass::EchoReply, Some(C)),
        row("somebody's ping").wire(peer(C), &other).kernel_gets(C, &other),
        row("not to the router").wire(peer(C), &through).kernel_gets(C, &through),
        row("from where the peer may be: told, not counted as the tunnel's")
            .wire(over_udp("192.0.2.99:99"), &from_d)
            .goes_up(PuntClass::EchoReply, Some(D)),
        row("from where it may not be")
            .wire(over_udp("192.0.2.99:99"), &ours)
            .drops(Reason::WrongOuter, Some(C)),
    ]
}

fn injects() -> Vec<Row> {
    let packet = udp(ROUTER, HOST_A, 100);
    let into = |id| Inject::Tunnel { id: TunnelId(id), packet: packet.clone() };
    let probe = |id| Inject::TunnelAt {
        id: TunnelId(id),
        remote: at("192.0.2.99:99"),
        local: *at("10.0.0.1:0").ip(),
        packet: packet.clone(),
    };
    let (local, remote) = (at("10.0.0.1:3653"), at("192.0.2.99:99"));
    vec![
        row("into a tunnel").inject(into(A)).endpoint_gets(A, peer(A).remote, &packet),
        row("into one that is not there").inject(into(99)).inject_fails(),
        row("into one without an endpoint").inject(into(D)).inject_fails(),
        row("to where its peer may be").inject(probe(D)).endpoint_gets(D, remote, &packet),
        row("nor for a tunnel that is not there").inject(probe(99)).inject_fails(),
        row("a datagram")
            .inject(Inject::Datagram { local, remote, payload: b"VERSION".to_vec() })
            .datagram(local, remote, b"VERSION"),
    ]
}

fn watched() -> Vec<Row> {
    let watch = |name, id| row(name).with(Update::Watch(TunnelId(id), true));
    let copy = PuntClass::Watched;
    let (out, into) = (udp(HOST_A, WORLD, 100), udp(WORLD, HOST_A, 100));
    let (across, lost) = (udp(HOST_A, HOST_C, 100), udp(HOST_A, NOBODY, 100));
    let turned =
        |row: Row| row.wire(peer(A), &across).peer_gets(C, 0, &hops(across.clone(), 63)).received(A, 1, 100);
    assert_eq!(peer(A).encap, Encap::Proto41);
    vec![
        watch("out of it", A).wire(peer(A), &out).kernel_gets(A, &out).goes_up(copy, Some(A)),
        watch("into it", A).tun(&into).peer_gets(A, 0, &into).goes_up(copy, Some(A)),
        turned(watch("across, at the entrance", A)).goes_up(copy, Some(A)),
        turned(watch("across, at the exit", C)).goes_up(copy, Some(C)),
        turned(watch("across, at both", A).with(Update::Watch(TunnelId(C), true)))
            .goes_up(copy, Some(A))
            .goes_up(copy, Some(C)),
        watch("also what dies", A)
            .wire(peer(A), &lost)
            .goes_up(copy, Some(A))
            .drops(Reason::Unassigned, Some(A))
            .tells_peer(A, NO_ROUTE, &lost),
        watch("not the others", B).wire(peer(A), &out).kernel_gets(A, &out),
        watch("no longer", A)
            .with(Update::Watch(TunnelId(A), false))
            .wire(peer(A), &out)
            .kernel_gets(A, &out),
    ]
}
