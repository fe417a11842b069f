//! Rows: marks, segment sizes, and what a tunnel does not let through although its addresses are right.

use sixway_dataplane::manners::{Dscp, Manners};
use sixway_dataplane::update::{Outer, Policy, Tunnel, TunnelId, Update};
use sixway_dataplane::verdict::Reason;

use crate::lab::{
    A, B, C, HOST_A, HOST_B, HOST_C, Kind, ROUTER, Row, UPLINK, WORLD, marked, peer, policy, prefix, row,
    sit, uplink,
};
use crate::packets::{class, hops, syn, udp, with_header, within, within_udp};

const SOURCE_POLICY: Kind = (1, 5, 0);

pub(crate) fn rows() -> Vec<Row> {
    [code_points(), congestion(), segment_sizes(), source_routed(), nested(), six_to_four(), outside()]
        .into_iter()
        .flatten()
        .collect()
}

/// Tunnel A with these manners.
fn mannered(manners: Manners) -> Update {
    let outer = Outer::Proto41 { local: Some("10.0.0.1".parse().unwrap()), remote: *peer(A).remote.ip() };
    let prefixes = vec![prefix("2001:db8:a::/48")];
    Update::Upsert(Tunnel { id: TunnelId(A), outer, prefixes, mtu: 1280, manners })
}

/// RFC 2983 section 3: uniform or pipe, for each tunnel its own.
pub(crate) fn code_points() -> Vec<Row> {
    let (uniform, pipe) = (Dscp::Uniform, Dscp::Pipe(46));
    let out = |name, dscp, inner, outer| {
        let packet = class(udp(WORLD, HOST_A, 100), inner);
        let row = row(name).with(mannered(Manners::PLAIN.with_dscp(dscp)));
        row.tun(&packet).peer_gets(A, outer, &packet)
    };
    let back = |name, dscp, inner, outer, got| {
        let packet = |marks| class(udp(HOST_A, WORLD, 100), marks);
        let row = row(name).with(mannered(Manners::PLAIN.with_dscp(dscp)));
        row.wire(marked(peer(A), outer), &packet(inner)).kernel_gets(A, &packet(got))
    };
    vec![
        out("uniform: copied outwards", uniform, 0xb8, 0xb8),
        out("pipe: one code point for all", pipe, 0x28, 0xb8),
        back("uniform: copied back in", uniform, 0xb8, 0x28, 0x28),
        back("pipe: the inner one is left", pipe, 0x28, 0xb8, 0x28),
    ]
}

/// RFC 6040 section 4.1: copied, or hidden in the compatibility mode; and figure 4 on the way back, whatever the mode.
pub(crate) fn congestion() -> Vec<Row> {
    let mut rows = Vec::new();
    for ecn in 0..4 {
        let packet = class(udp(WORLD, HOST_A, 100), 0xb8 | ecn);
        rows.push(row("normal mode").tun(&packet).peer_gets(A, ecn, &packet));
        let hidden = row("compatibility mode").with(mannered(Manners::PLAIN.with_ecn_hidden(true)));
        rows.push(hidden.tun(&packet).peer_gets(A, 0, &packet));
        let packet = class(udp(WORLD, HOST_C, 100), ecn);
        rows.push(row("UDP likewise").tun(&packet).peer_gets(C, ecn, &packet));
    }
    // Rows: inner Not-ECT, ECT(1), ECT(0), CE. Columns: the same outside. 9: dropped.
    let figure = [[0, 0, 0, 9], [1, 1, 1, 3], [2, 1, 2, 3], [3, 3, 3, 3]];
    for (inner, columns) in (0u8..).zip(figure) {
        for (outer, got) in (0u8..).zip(columns) {
            for (id, host) in [(A, HOST_A), (B, HOST_B)] {
                let packet = |ecn| class(udp(host, WORLD, 100), ecn);
                let row = row("figure 4").wire(marked(peer(id), outer), &packet(inner));
                rows.push(match got {
                    9 => row.drops(Reason::Ecn, Some(id)),
                    got => row.kernel_gets(id, &packet(got)),
                });
            }
        }
    }
    rows
}

/// RFC 9293 section 3.7.1: what TCP offers is lowered to what the tunnel carries, both ways, where that is asked for.
pub(crate) fn segment_sizes() -> Vec<Row> {
    let clamped = || mannered(Manners::PLAIN.with_clamped(true));
    let (to, from) = (|size| syn(WORLD, HOST_A, size), |size| syn(HOST_A, WORLD, size));
    vec![
        row("lowered on the way in").with(clamped()).tun(&to(1440)).peer_gets(A, 0, &to(1220)),
        row("lowered on the way out").with(clamped()).wire(peer(A), &from(1440)).kernel_gets(A, &from(1220)),
        row("less stays").with(clamped()).tun(&to(1000)).peer_gets(A, 0, &to(1000)),
        row("not unless asked for").tun(&to(1440)).peer_gets(A, 0, &to(1440)),
        row("of the tunnel entered, between two")
            .with(clamped())
            .wire(peer(C), &syn(HOST_C, HOST_A, 1440))
            .peer_gets(A, 0, &hops(syn(HOST_C, HOST_A, 1220), 63))
            .received(C, 1, 64),
    ]
}

/// RFC 5095 section 3, RFC 6169 section 2.3.
pub(crate) fn source_routed() -> Vec<Row> {
    let routed = |kind, left| with_header(udp(HOST_A, WORLD, 100), 43, [kind, left]);
    let lenient = Update::Policy(Policy { takes_source_routes: true, ..policy() });
    let out = |name, packet: &[u8]| row(name).wire(peer(A), packet);
    let strict_behind = |count| {
        let hidden = (0..count).fold(routed(0, 1), |packet, _| with_header(packet, 60, [1, 4]));
        out("type 0 behind options", &hidden)
    };
    let strict = |name, kind| out(name, &routed(kind, 1)).drops(Reason::SourceRouted, Some(A));
    vec![
        strict("type 0", 0),
        strict("segments", 4),
        out("none left", &routed(0, 0)).kernel_gets(A, &routed(0, 0)),
        out("a mobile node's home address", &routed(2, 1)).kernel_gets(A, &routed(2, 1)),
        out("segments where they are taken", &routed(4, 1))
            .with(lenient.clone())
            .kernel_gets(A, &routed(4, 1)),
        strict("type 0 never is", 0).with(lenient),
        strict_behind(7).drops(Reason::SourceRouted, Some(A)),
        strict_behind(8).drops(Reason::HeaderChain, Some(A)),
    ]
}

/// RFC 2473 section 4.1.1: four tunnels within a tunnel and no more, either way.
pub(crate) fn nested() -> Vec<Row> {
    let layers = |from, to, n| (0..n).fold(udp(from, to, 100), |inner, _| within(from, to, &inner));
    let (four, five) = (layers(HOST_A, WORLD, 4), layers(HOST_A, WORLD, 5));
    let (in_four, in_five) = (layers(WORLD, HOST_A, 4), layers(WORLD, HOST_A, 5));
    let none = Update::Policy(Policy { nesting: 0, ..policy() });
    let datagrams = |n| (0..n).fold(udp(HOST_A, WORLD, 100), |inner, _| within_udp(HOST_A, WORLD, &inner));
    let followed = |n| (0..n).fold(udp(WORLD, HOST_A, 100), |packet, _| with_header(packet, 60, [1, 4]));
    vec![
        row("four out").wire(peer(A), &four).kernel_gets(A, &four),
        row("five out").wire(peer(A), &five).drops(Reason::Nested, Some(A)),
        row("four out by UDP").wire(peer(A), &datagrams(4)).kernel_gets(A, &datagrams(4)),
        row("five out by UDP").wire(peer(A), &datagrams(5)).drops(Reason::Nested, Some(A)),
        row("eight headers in").tun(&followed(8)).peer_gets(A, 0, &followed(8)),
        row("nine headers in").tun(&followed(9)).drops(Reason::HeaderChain, Some(A)),
        row("four in").tun(&in_four).peer_gets(A, 0, &in_four),
        row("five in").tun(&in_five).drops(Reason::Nested, Some(A)),
        row("not one").with(none).tun(&layers(WORLD, HOST_A, 1)).drops(Reason::Nested, Some(A)),
    ]
}

/// RFC 3964 section 5.1: a 6to4 address stands for the IPv4 address in it, which must be one that a site can have.
pub(crate) fn six_to_four() -> Vec<Row> {
    // 192.0.2.7 is the peer of the uplink; 2002:c000:207::/48 is a site's behind it.
    let site = "2002:c000:207::1";
    let own = || {
        let outer = Outer::Proto41 { local: None, remote: *peer(UPLINK).remote.ip() };
        let prefixes = vec![prefix("2002::/16")];
        Update::Upsert(Tunnel { id: TunnelId(UPLINK), outer, prefixes, mtu: 1280, manners: Manners::PLAIN })
    };
    let from = |source| udp(source, ROUTER, 100);
    let mut rows = vec![
        row("its own IPv4 address")
            .with(own())
            .wire(peer(UPLINK), &from(site))
            .kernel_gets(UPLINK, &from(site)),
        row("somebody else's")
            .with(own())
            .wire(peer(UPLINK), &from("2002:c000:208::1"))
            .drops(Reason::SixToFour, Some(UPLINK)),
        row("out of an uplink any")
            .with(uplink())
            .wire(peer(UPLINK), &from("2002:c000:208::1"))
            .kernel_gets(UPLINK, &from("2002:c000:208::1")),
    ];
    for no_site in ["2002:a00:1::1", "2002:7f00:1::1", "2002:e000:1::1", "2002:c0a8:1::1", "2002:ac10:1::1"] {
        let from = row("from no site").with(uplink()).wire(peer(UPLINK), &from(no_site));
        rows.push(from.drops(Reason::SixToFour, Some(UPLINK)));
        rows.push(
            row("to no site").with(uplink()).tun(&udp(ROUTER, no_site, 80)).drops(Reason::SixToFour, None),
        );
    }
    rows
}

/// RFC 4443 section 3.1: told where that is wanted, and only to a tunnel's own peer.
pub(crate) fn outside() -> Vec<Row> {
    let telling = || Update::Policy(Policy { tells_source: true, ..policy() });
    let (from_world, from_b) = (udp(WORLD, HOST_C, 60), udp(HOST_B, WORLD, 60));
    let told = |name, packet: &[u8]| {
        let row = row(name).with(telling()).wire(peer(A), packet);
        row.drops(Reason::SourceNotInPrefix, Some(A)).tells_peer(A, SOURCE_POLICY, packet)
    };
    vec![
        told("the world's source", &from_world),
        told("a neighbour's source", &from_b),
        row("not unless asked for").wire(peer(A), &from_b).drops(Reason::SourceNotInPrefix, Some(A)),
        row("never nobody's peer")
            .with(telling())
            .wire(sit("192.0.2.99"), &from_world)
            .drops(Reason::UnknownOuter, None),
    ]
}
