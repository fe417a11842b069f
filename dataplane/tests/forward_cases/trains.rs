//! Rows: super-packets; cut where sockets want packets, whole where a kernel takes them.

use sixway_dataplane::packet::batch::{Merged, Offload};
use sixway_dataplane::verdict::Reason;

use crate::lab::{A, B, C, E, HOST_A, HOST_B, HOST_C, HOST_E, Row, TIME_EXCEEDED, WORLD, marked, peer, row};
use crate::packets::{Train, class, hops, tcp, tcp_train, udp, udp_train};

pub(crate) fn rows() -> Vec<Row> {
    [from_kernel(), to_kernel(), hairpin(), size_hidden(), nonsense()].into_iter().flatten().collect()
}

fn sent(row: Row, to: u32, tos: u8, train: &Train) -> Row {
    train.parts.iter().fold(row, |row, part| row.peer_gets(to, tos, part))
}

/// `hdr_len + gso_size` is what the MTU is compared with, not the whole.
fn from_kernel() -> Vec<Row> {
    let cut = |name, to, train: Train| sent(row(name).tun_as(&train.whole, train.offload), to, 0, &train);
    let big_tcp = tcp_train(WORLD, HOST_A, 3000, 1221);
    let big_udp = udp_train(WORLD, HOST_C, 3000, 1233);
    let marked = tcp_train(WORLD, HOST_A, 3000, 1220).change(|p| class(p, 0x2a));
    vec![
        cut("TCP that just fits", A, tcp_train(WORLD, HOST_A, 3000, 1220)),
        cut("TCP into a wider tunnel", E, tcp_train(WORLD, HOST_E, 64_000, 1420)),
        cut("UDP that just fits", C, udp_train(WORLD, HOST_C, 3000, 1232)),
        cut("a train of one", B, tcp_train(WORLD, HOST_B, 500, 1340)),
        cut("whose size is larger than all of it", A, tcp_train(WORLD, HOST_A, 500, 9000)),
        sent(row("each with its marks").tun_as(&marked.whole, marked.offload), A, 2, &marked),
        row("TCP one octet over")
            .tun_as(&big_tcp.whole, big_tcp.offload)
            .drops_many(Reason::TooBig, Some(A), 3)
            .tells_kernel((2, 0, 1280), &big_tcp.whole),
        row("UDP one octet over")
            .tun_as(&big_udp.whole, big_udp.offload)
            .drops_many(Reason::TooBig, Some(C), 3)
            .tells_kernel((2, 0, 1280), &big_udp.whole),
    ]
}

fn to_kernel() -> Vec<Row> {
    let train = tcp_train(HOST_A, WORLD, 3000, 1220);
    let marks = |m| tcp_train(HOST_A, WORLD, 3000, 1220).change(|p| class(p, m)).whole;
    vec![
        row("whole").wire_as(peer(A), &train.whole, train.offload).kernel_gets_as(
            A,
            &train.whole,
            train.offload,
            3,
        ),
        row("marked as a whole").wire_as(marked(peer(A), 3), &marks(2), train.offload).kernel_gets_as(
            A,
            &marks(3),
            train.offload,
            3,
        ),
        row("a mark nobody can carry, three times")
            .wire_as(marked(peer(A), 3), &train.whole, train.offload)
            .drops_many(Reason::Ecn, Some(A), 3),
    ]
}

fn hairpin() -> Vec<Row> {
    let turned = |name, from, to, train: Train| {
        let row = row(name).wire_as(peer(from), &train.whole, train.offload);
        let row = row.received(from, train.parts.len() as u64, train.parts.iter().map(Vec::len).sum());
        sent(row, to, 0, &train.change(|p| hops(p, 63)))
    };
    let big = tcp_train(HOST_E, HOST_A, 4000, 1400);
    let spent = tcp_train(HOST_E, HOST_A, 2400, 1200).change(|p| hops(p, 1));
    vec![
        turned("TCP is cut", A, C, tcp_train(HOST_A, HOST_C, 3000, 1220)),
        turned("UDP is cut", A, C, udp_train(HOST_A, HOST_C, 3000, 1000)),
        row("too big for the other")
            .wire_as(peer(E), &big.whole, big.offload)
            .drops_many(Reason::TooBig, Some(E), 3)
            .tells_peer(E, (2, 0, 1280), &big.whole),
        row("no hop left")
            .wire_as(peer(E), &spent.whole, spent.offload)
            .drops_many(Reason::HopLimit, Some(E), 2)
            .tells_peer(E, TIME_EXCEEDED, &spent.whole),
    ]
}

/// A raw socket hides how large the segments were: the tunnel's MTU bounds them.
fn size_hidden() -> Vec<Row> {
    let long = tcp_train(HOST_A, WORLD, 3000, 1220).size_hidden();
    let settled = Offload { merged: Some((Merged::Tcp, 1220)), ..long.offload };
    let short = tcp_train(HOST_A, WORLD, 900, 300).size_hidden();
    let single = Offload { merged: None, ..short.offload };
    let across = tcp_train(HOST_A, HOST_C, 3000, 1220).size_hidden();
    let one = tcp(HOST_A, HOST_C, 0xffff_fc00, true, &across.whole[60..960]);
    let short_across = tcp_train(HOST_A, HOST_C, 900, 300).size_hidden();
    let wide = tcp_train(HOST_E, HOST_C, 3000, 1220).size_hidden();
    let turned =
        row("cut by the tunnel's MTU").wire_as(peer(A), &across.whole, across.offload).received(A, 3, 3180);
    vec![
        row("longer than the MTU").wire_as(peer(A), &long.whole, long.offload).kernel_gets_as(
            A,
            &long.whole,
            settled,
            3,
        ),
        row("shorter: may as well be one").wire_as(peer(A), &short.whole, short.offload).kernel_gets_as(
            A,
            &short.whole,
            single,
            1,
        ),
        sent(turned, C, 0, &across.change(|p| hops(p, 63))),
        row("shorter, summed and sent on")
            .wire_as(peer(A), &short_across.whole, short_across.offload)
            .received(A, 1, 960)
            .peer_gets(C, 0, &hops(one, 63)),
        row("of a wider tunnel: perhaps too big")
            .wire_as(peer(E), &wide.whole, wide.offload)
            .drops_many(Reason::TooBig, Some(E), 3)
            .tells_peer(E, (2, 0, 1280), &wide.whole),
    ]
}

fn nonsense() -> Vec<Row> {
    let tcp = tcp_train(WORLD, HOST_A, 3000, 1220);
    let as_udp = Offload { merged: Some((Merged::Udp, 1220)), ..tcp.offload };
    let datagram = udp(WORLD, HOST_A, 1000);
    let hidden_udp = Offload { merged: Some((Merged::Udp, 0)), partial: Some((40, 6)) };
    let crumbs = Offload { merged: Some((Merged::Tcp, 1)), ..tcp.offload };
    let from_a = udp(HOST_A, HOST_C, 2000);
    let as_tcp = Offload { merged: Some((Merged::Tcp, 0)), partial: Some((40, 16)) };
    vec![
        row("TCP as UDP").tun_as(&tcp.whole, as_udp).drops(Reason::BadOffload, Some(A)),
        row("UDP of unknown size").tun_as(&datagram, hidden_udp).drops(Reason::BadOffload, Some(A)),
        row("more segments than can be").tun_as(&tcp.whole, crumbs).drops(Reason::BadOffload, Some(A)),
        row("UDP as TCP of unknown size")
            .wire_as(peer(A), &from_a, as_tcp)
            .drops(Reason::BadOffload, Some(A)),
    ]
}
