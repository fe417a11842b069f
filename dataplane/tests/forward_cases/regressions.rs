//! Faults that other programs shipped, one test each, named after them. Those that need devices are elsewhere:
//! `docs/rfc.md`, rows R, names all.

use sixway_dataplane::packet::batch::Offload;
use sixway_dataplane::update::{TunnelId, UdpRemote, Update};
use sixway_dataplane::verdict::Reason;

use crate::lab::{
    A, B, C, HOST_A, HOST_B, HOST_C, Row, WORLD, drain, lab, over_udp, peer, row, run, tunnel, udp_outer,
};
use crate::packets::{Train, tcp_train, udp, udp_train};

/// RFC: R1 (RFC 3704 section 2)
#[test]
fn gotatun_nested_prefix_spoof() {
    let (from_a, from_b) = (udp(HOST_A, WORLD, 100), udp(HOST_B, WORLD, 100));
    run(vec![
        row("the outer tunnel with the inner one's source")
            .wire(peer(A), &from_b)
            .drops(Reason::SourceNotInPrefix, Some(A)),
        row("and the reverse").wire(peer(B), &from_a).drops(Reason::SourceNotInPrefix, Some(B)),
    ]);
}

/// RFC: R2 (RFC 791 section 3.1)
#[test]
fn gotatun_oversize_datagram() {
    let (from_b, to_b) = (udp(HOST_B, WORLD, 65_507), udp(WORLD, HOST_B, 65_575));
    run(vec![
        row("out of a tunnel").wire(peer(B), &from_b).kernel_gets(B, &from_b),
        row("into one").tun(&to_b).drops(Reason::TooBig, Some(B)).tells_kernel((2, 0, 1400), &to_b),
        row("less than it says").wire(peer(B), &from_b[..65_506]).drops(Reason::Truncated, Some(B)),
    ]);
}

/// RFC: R8 (virtio 1.2 section 5.1.6)
#[test]
fn vpp_super_packets_into_a_tunnel_of_mtu_1450() {
    let narrow = || {
        let outer = udp_outer(UdpRemote::Fixed(peer(B).remote));
        row("MTU 1450").with(tunnel(B, outer, "2001:db8:a:b::/64", 1450))
    };
    let fits = |train: Train| -> Row {
        let sent = narrow().tun_as(&train.whole, train.offload);
        train.parts.iter().fold(sent, |row, part| row.peer_gets(B, 0, part))
    };
    let long = tcp_train(WORLD, HOST_B, 5000, 1391);
    run(vec![
        fits(tcp_train(WORLD, HOST_B, 5000, 1390)),
        fits(udp_train(WORLD, HOST_B, 5000, 1402)),
        narrow()
            .tun_as(&long.whole, long.offload)
            .drops_many(Reason::TooBig, Some(B), 4)
            .tells_kernel((2, 0, 1450), &long.whole),
    ]);
}

/// RFC: R10 (RFC 4213 section 5)
#[test]
fn stale_peer_traffic_to_the_next_holder_of_an_address() {
    let mut lab = lab();
    let outer = udp_outer(UdpRemote::Fixed(peer(C).remote));
    // C's tunnel is gone; whoever has its address now has a tunnel of its own.
    lab.apply(&[Update::Remove(TunnelId(C))]).unwrap();
    lab.apply(&[tunnel(20, outer, "2001:db8:20::/48", 1280)]).unwrap();
    let stale = (over_udp("192.0.2.3:3333"), udp(HOST_C, WORLD, 60), Offload::default());
    lab.worker.io.wire_in.push_back(stale);
    lab.worker.io.tun_in.push_back((udp(WORLD, HOST_C, 60), Offload::default()));
    drain(&mut lab);
    assert_eq!(lab.counters.drops(), [(Reason::SourceNotInPrefix, 1), (Reason::Unassigned, 1)]);
    assert_eq!(lab.worker.io.wire_out.len(), 0, "nothing for C goes to the next holder");
}
