//! What stands in outer headers on the wire: code points and congestion marks, there and back, and the UDP checksum.
//!
//! ```text
//!   C alice ══outer TOS══ S six0 ──IPv6, traffic class── U
//! ```

#![allow(clippy::unwrap_used, reason = "a test has nobody to return an error to")]

use std::net::{SocketAddrV4, UdpSocket};
use std::time::Duration;

use netns_tests::{
    ALICE, C4, CLIENT_PORT, Ends, IPV4, IPV6, Observer, Rig, Router, S4, U6, UDP_PORT, pings, transfer,
    tunnel,
};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Rows: inner Not-ECT, ECT(1), ECT(0), CE. Columns: the same outside (RFC 6040 figure 4). 9: dropped.
const FIGURE: [[u8; 4]; 4] = [[0, 0, 0, 9], [1, 1, 1, 3], [2, 1, 2, 3], [3, 3, 3, 3]];
/// A code point beside the marks.
const INNER: u8 = 0xb8;
const OUTER: u8 = 0x28;

fn class(packet: &[u8]) -> u8 {
    packet[0] << 4 | packet[1] >> 4
}

/// A socket of alice's that says what stands in the outer header.
fn sender(rig: &Rig, encap: &str) -> Socket {
    let port = |encap, port| if encap == "udp" { port } else { 0 };
    let at = |addr: &str, port| SockAddr::from(SocketAddrV4::new(addr.parse().unwrap(), port));
    let (near, far) = (at(C4, port(encap, CLIENT_PORT)), at(S4, port(encap, UDP_PORT)));
    rig.c.inside(|| {
        let socket = match encap {
            "udp" => Socket::new(Domain::IPV4, Type::DGRAM, None),
            _ => Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(41))),
        };
        let socket = socket.unwrap();
        socket.bind(&near).unwrap();
        socket.connect(&far).unwrap();
        socket
    })
}

fn server(rig: &Rig, encap: &str, extra: &str) -> Router {
    rig.server(&Rig::alice(encap, extra))
}

/// RFC: E11, E9 (RFC 6040 section 4.2)
#[test]
fn all_sixteen_combinations_out_of_a_tunnel() {
    for encap in ["proto41", "udp"] {
        let story = format!("congestion marks out of a tunnel, {encap}");
        let Some(rig) = Rig::new_or_skip(&story) else { return };
        for (extra, code) in [("", INNER), ("dscp = \"uniform\"", OUTER)] {
            let server = server(&rig, encap, extra);
            let socket = sender(&rig, encap);
            let seen = Observer::start(&rig.u, IPV6, |frame| {
                let is_echo = frame.len() > 48 && frame[6] == 58 && frame[40] == 128;
                let is_alices =
                    is_echo && frame[8..24] == ALICE.parse::<std::net::Ipv6Addr>().unwrap().octets();
                is_alices.then(|| (u16::from_be_bytes([frame[44], frame[45]]), class(frame)))
            });
            let before = server.drops("ecn");
            for (inner, outer) in (0..16u8).map(|n| (n >> 2, n & 3)) {
                let mut packet = Ends::new(ALICE, U6).echo_request(u16::from(inner << 2 | outer), 1, 64);
                let marked = INNER | inner;
                (packet[0], packet[1]) = (0x60 | marked >> 4, packet[1] & 0x0f | marked << 4);
                socket.set_tos_v4((OUTER | outer).into()).unwrap();
                socket.send(&packet).unwrap();
                std::thread::sleep(Duration::from_millis(20));
            }
            assert_eq!(pings(&rig.u, U6, 1, ""), 1, "the host itself is well");
            std::thread::sleep(Duration::from_secs(1));
            let mut got = seen.finish();
            got.sort_unstable();
            let wanted: Vec<_> = (0..16u8)
                .map(|n| (u16::from(n), FIGURE[usize::from(n >> 2)][usize::from(n & 3)]))
                .filter(|(_, ecn)| *ecn != 9)
                .map(|(id, ecn)| (id, code | ecn))
                .collect();
            assert_eq!(got, wanted, "{encap} {extra}");
            assert_eq!(server.drops("ecn") - before, 1, "Not-ECT inside, CE outside");
            server.stop();
        }
    }
}

/// The outer octet for an inner one.
type Outside = fn(u8) -> u8;

/// RFC: E9, E10 (RFC 6040 section 4.1, RFC 2983 section 3)
#[test]
fn every_mark_on_its_way_into_a_tunnel() {
    for encap in ["proto41", "udp"] {
        let Some(rig) = Rig::new_or_skip(&format!("marks on their way into a tunnel, {encap}")) else {
            return;
        };
        let kinds: [(&str, Outside); 4] = [
            ("", |inner| inner & 3),
            ("dscp = \"uniform\"", |inner| inner),
            ("dscp = 46", |inner| 46 << 2 | inner & 3),
            ("ecn = \"compatibility\"", |_| 0),
        ];
        for (extra, outside) in kinds {
            let server = server(&rig, encap, extra);
            let alice = rig.alice_peer(encap);
            let seen = Observer::start(&rig.c, IPV4, |frame| {
                let inner =
                    frame.get(usize::from(frame[0] & 15) * 4 + if frame[9] == 17 { 8 } else { 0 }..)?;
                let is_echo = matches!(frame[9], 17 | 41) && inner.len() > 48 && inner[40] == 128;
                is_echo.then(|| (class(inner), frame[1]))
            });
            let serving = alice.serve();
            for inner in [0, 1, 2, 3, INNER, INNER | 1, INNER | 2, INNER | 3] {
                assert_eq!(pings(&rig.u, ALICE, 1, &format!("-Q {inner}")), 1, "{encap} {extra} {inner:#x}");
            }
            drop(serving);
            let got = seen.finish();
            assert_eq!(got.len(), 8, "{got:x?}");
            assert!(got.iter().all(|(inner, tos)| *tos == outside(*inner)), "{encap} '{extra}': {got:x?}");
            server.stop();
        }
    }
}

/// What the sum over an IPv4 header comes to: 0xffff if it is right (RFC 791 section 3.1).
fn header_sum(header: &[u8]) -> u32 {
    let sum = header.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1])).sum::<u32>();
    (sum & 0xffff) + (sum >> 16)
}

/// Of single packets, of what the router cuts and of what the interface cuts: all outer headers as configured.
///
/// RFC: E1 (RFC 4213 sections 3.1, 3.3 and 3.5)
#[test]
fn the_outer_header_is_as_configured_on_the_wire() {
    const ANOTHER: &str = "10.71.0.77";
    for (ttl, local, trains) in [(64, S4, true), (17, ANOTHER, true), (255, ANOTHER, false)] {
        let story = format!("outer headers from {local}, time to live {ttl}, trains {trains}");
        let Some(rig) = Rig::new_or_skip(&story) else { return };
        rig.s.run("ip addr add 10.71.0.77/24 dev s0; ethtool -K s0 tx-ipxip4-segmentation off");
        rig.c.run("ethtool -K c0 gro off");
        let router = if ttl == 64 { String::new() } else { format!("ttl = {ttl}") };
        let alice = Rig::alice("proto41", &format!("local = \"{local}\"\nmtu = 1480"));
        let config = Rig::server_config(&router, &alice) + &format!("\n[offload]\nproto41_gso = {trains}\n");
        let server = Router::start(&rig.lab, &rig.s, &config);
        let up = tunnel("up", "proto41", local, "::/0", "mtu = 1480\ndefault_route = true");
        let client = format!("[router]\naddress = [\"{ALICE}/64\"]\nouter = \"{C4}\"\n{up}");
        let client = Router::start(&rig.lab, &rig.c, &client);
        let seen = Observer::start(&rig.c, IPV4, |frame| {
            (frame[9] == 41).then(|| (<[u8; 20]>::try_from(&frame[..20]).unwrap(), frame.len()))
        });
        assert_eq!(pings(&rig.u, ALICE, 3, ""), 3);
        transfer(&rig.u, &rig.c, ALICE, 1 << 20);
        let seen = seen.finish();
        let ends = [local, C4].map(|end| end.parse::<std::net::Ipv4Addr>().unwrap().octets()).concat();
        for (header, len) in &seen {
            assert_eq!((header[0], header[9], header[8]), (0x45, 41, ttl), "{header:x?}");
            assert_eq!((&header[12..], header_sum(header)), (&ends[..], 0xffff), "{header:x?}");
            assert_eq!(usize::from(u16::from_be_bytes([header[2], header[3]])), *len, "{header:x?}");
        }
        let long = seen.iter().filter(|(_, len)| *len > 1400).count();
        assert!(long > 600 && seen.len() - long >= 3, "{long} long ones of {}", seen.len());
        let moved = server.status()["events"]["wire_merged"].as_u64().unwrap();
        assert_eq!(moved > 0, trains, "{}", server.status());
        client.stop();
        server.stop();
    }
}

/// The sum of a UDP datagram in IPv4 with its pseudo-header (RFC 768): 0xffff if it is right.
fn sum(frame: &[u8]) -> u16 {
    let header = usize::from(frame[0] & 15) * 4;
    let end = usize::from(u16::from_be_bytes([frame[2], frame[3]]));
    let words = |octets: &[u8]| {
        octets
            .chunks(2)
            .map(|w| u32::from(w[0]) << 8 | u32::from(w.get(1).copied().unwrap_or(0)))
            .sum::<u32>()
    };
    let mut sum = words(&frame[12..20]) + 17 + (end - header) as u32 + words(&frame[header..end]);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// RFC: E8 (RFC 768)
#[test]
fn udp_datagrams_have_a_checksum_alone_and_in_trains() {
    let Some(rig) = Rig::new_or_skip("the UDP checksum on the wire") else { return };
    // Nothing is left to hardware, and nothing merged before we see it.
    rig.s.run("ethtool -K s0 tx off");
    rig.c.run("ethtool -K c0 gro off");
    let server = server(&rig, "udp", "mtu = 1400");
    let client = rig.client("udp", 1400);
    let seen = Observer::start(&rig.c, IPV4, |frame| {
        (frame[9] == 17).then(|| (frame.len(), frame[26..28] != [0, 0], sum(frame)))
    });
    assert_eq!(pings(&rig.u, ALICE, 3, ""), 3);
    transfer(&rig.u, &rig.c, ALICE, 1 << 20);
    let got = seen.finish();
    let long = got.iter().filter(|(len, ..)| *len > 1300).count();
    assert!(long > 700, "{long} long ones of {}", got.len());
    let bad: Vec<_> = got.iter().filter(|(_, has, sum)| !has || *sum != 0xffff).collect();
    assert!(bad.is_empty(), "{} of {}: {:?}", bad.len(), got.len(), &bad[..bad.len().min(5)]);
    client.stop();
    server.stop();
}

/// RFC: E8 (RFC 768)
#[test]
fn a_peer_without_checksums_is_heard() {
    let Some(rig) = Rig::new_or_skip("a UDP peer that sends no checksums") else { return };
    let server = server(&rig, "udp", "");
    let ear = rig.c.inside(|| UdpSocket::bind((C4, CLIENT_PORT)).unwrap());
    ear.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    // A header of our own: the kernel leaves the zero in it alone.
    let raw = rig.c.inside(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::UDP)).unwrap());
    raw.connect(&SockAddr::from(SocketAddrV4::new(S4.parse().unwrap(), 0))).unwrap();
    let packet = Ends::new(ALICE, U6).echo_request(7, 9, 64);
    let mut datagram = Vec::new();
    for word in [CLIENT_PORT, UDP_PORT, packet.len() as u16 + 8, 0] {
        datagram.extend_from_slice(&word.to_be_bytes());
    }
    datagram.extend_from_slice(&packet);
    raw.send(&datagram).unwrap();
    let mut reply = [0; 200];
    // The router advertises itself into the tunnel as well, now and then.
    let answered = (0..5).any(|_| ear.recv(&mut reply).unwrap() > 48 && reply[40] == 129);
    assert!(answered, "{reply:x?}");
    server.stop();
}
