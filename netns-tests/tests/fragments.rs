//! Outer fragments by hand: what a peer's path has cut is put together again, whatever its length; what overlaps comes to
//! nothing, and halves without number take no more room than the kernel gives them.
//!
//! ```text
//!   C sends fragments ══ s0 S six0, s1 ──IPv6, long packets── u0 U observes
//! ```

#![allow(clippy::unwrap_used, reason = "a test has nobody to return an error to")]

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use netns_tests::{
    ALICE, C4, CLIENT_PORT, Ends, IPV6, Inner, Observer, Rig, Router, S4, U6, UDP_PORT, wait_for,
};
use socket2::{Domain, Protocol, Socket, Type};

const PATIENCE: Duration = Duration::from_secs(10);
/// Octets of each fragment but the last: a multiple of eight (RFC 791 section 3.2).
const CUT: usize = 1000;
/// Both encapsulations, and both sockets that protocol 41 may be received by.
const WAYS: [(&str, &str); 3] = [("proto41", "packet"), ("proto41", "raw"), ("udp", "auto")];

/// The rig with long packets behind the router, the router, and a socket of alice's for whole IPv4 packets.
struct Story {
    encap: &'static str,
    server: Router,
    wire: Socket,
    rig: Rig,
}

/// What a fragment says of itself: where it begins, in octets, and whether more follow.
type Piece<'a> = (usize, bool, &'a [u8]);

impl Story {
    fn new_or_skip(what: &str, (encap, receive): (&'static str, &str)) -> Option<Self> {
        let rig = Rig::new_or_skip(&format!("{what}, {encap}, {receive} socket"))?;
        rig.s.run("ip link set s1 mtu 9216");
        rig.u.run("ip link set u0 mtu 9216");
        let config = Rig::server_config("", &Rig::alice(encap, ""))
            + &format!("\n[proto41]\nreceive = \"{receive}\"\n");
        let server = Router::start(&rig.lab, &rig.s, &config);
        let raw = || Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255))).unwrap();
        let wire = rig.c.inside(raw);
        Some(Self { encap, server, wire, rig })
    }

    /// A packet of alice's as the outer packet's payload.
    fn payload(&self, inner: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        if self.encap == "udp" {
            // Without a checksum (RFC 768).
            for word in [CLIENT_PORT, UDP_PORT, inner.len() as u16 + 8, 0] {
                out.extend_from_slice(&word.to_be_bytes());
            }
        }
        out.extend_from_slice(inner);
        out
    }

    /// Sends a fragment; the kernel fills length and checksum in.
    fn send(&self, id: u16, (at, more, octets): Piece<'_>) {
        let mut out = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, if self.encap == "udp" { 17 } else { 41 }, 0, 0];
        out[4..6].copy_from_slice(&id.to_be_bytes());
        out[6..8].copy_from_slice(&((at / 8) as u16 | u16::from(more) << 13).to_be_bytes());
        for end in [C4, S4] {
            out.extend_from_slice(&end.parse::<Ipv4Addr>().unwrap().octets());
        }
        out.extend_from_slice(octets);
        let to = SocketAddrV4::new(S4.parse().unwrap(), 0);
        self.wire.send_to(&out, &to.into()).unwrap();
    }

    /// Packets of alice's that reach the host behind the router: their octets, 0 for what is not as it was sent.
    fn observe(&self) -> Observer<usize> {
        Observer::start(&self.rig.u, IPV6, |frame| {
            let inner = Inner::parse(frame).filter(|inner| inner.src.to_string() == ALICE)?;
            Some(if inner.next == 17 && inner.checksum_ok() { frame.len() } else { 0 })
        })
    }

    fn received(&self) -> u64 {
        self.server.count("alice", "rx_bytes")
    }

    /// Sends fragments that make a packet of these octets until it has come in.
    fn expect_one(&self, octets: usize) {
        let before = self.server.count("alice", "rx_packets");
        let mut id = 50_000;
        wait_for("a packet in fragments to come in", PATIENCE, || {
            id += 1;
            let payload = self.payload(&datagram(octets, id));
            pieces(&payload).into_iter().for_each(|piece| self.send(id, piece));
            std::thread::sleep(Duration::from_millis(50));
            (self.server.count("alice", "rx_packets") > before).then_some(())
        });
    }
}

/// A UDP datagram of alice's, so long with its IPv6 header. Those of one flow would be merged on their way.
fn datagram(octets: usize, port: u16) -> Vec<u8> {
    Ends::new(ALICE, U6).udp(port, 9, &vec![7; octets - 48])
}

fn pieces(payload: &[u8]) -> Vec<Piece<'_>> {
    let last = (payload.len() - 1) / CUT;
    payload.chunks(CUT).enumerate().map(|(n, octets)| (n * CUT, n < last, octets)).collect()
}

/// RFC: D7 (RFC 4213 section 3.6: up to the larger of 1500 and the largest MTU, and here as far as IPv4 goes)
#[test]
fn packets_of_any_length_come_out_of_fragments_in_any_order() {
    for way in WAYS {
        let Some(story) = Story::new_or_skip("long packets in fragments", way) else { return };
        let seen = story.observe();
        let lengths = [1280, 1500, 1501, 4000, 9000];
        for (n, octets) in lengths.into_iter().enumerate() {
            let payload = story.payload(&datagram(octets, n as u16 + 1));
            let mut all = pieces(&payload);
            story.send(n as u16 + 1, all[0]);
            all[1..].reverse();
            all[1..].iter().for_each(|piece| story.send(n as u16 + 1, *piece));
            // The last fragment first, too.
            let payload = story.payload(&datagram(octets, n as u16 + 101));
            pieces(&payload).into_iter().rev().for_each(|piece| story.send(n as u16 + 100, piece));
        }
        let all: u64 = lengths.iter().map(|octets| 2 * *octets as u64).sum();
        wait_for("all of them", PATIENCE, || (story.received() == all).then_some(()));
        // The longest that the outer packet can say: no link behind the router takes it, but it has come in.
        let longest = if story.encap == "udp" { 65_507 } else { 65_515 };
        story.expect_one(longest);
        std::thread::sleep(Duration::from_millis(200));
        let mut seen = seen.finish();
        seen.sort_unstable();
        assert_eq!(seen, lengths.map(|octets| [octets; 2]).concat(), "{}", story.server.status());
        story.server.stop();
    }
}

/// RFC: D7 (RFC 3128; RFC 4963)
#[test]
fn fragments_that_overlap_come_to_nothing() {
    for way in WAYS {
        let Some(story) = Story::new_or_skip("fragments that overlap", way) else { return };
        let seen = story.observe();
        let payload = |port| story.payload(&datagram(2400, port));
        let lies = vec![0xee; payload(0).len()];
        let send = |id, (at, more, second): Piece<'_>| {
            let payload = payload(id);
            story.send(id, (0, true, &payload[..CUT]));
            story.send(id, (at, more, second));
            story.send(id, (CUT, false, &payload[CUT..]));
        };
        // The second says something about the end of the first: the same, or something else.
        send(1, (992, false, &payload(1)[992..]));
        send(2, (992, false, &lies[992..]));
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(story.received(), 0, "{}", story.server.status());
        // About what is there already: it may be passed over, but is not taken.
        send(3, (80, true, &lies[80..400]));
        send(4, (0, true, &lies[..CUT]));
        story.expect_one(2400);
        std::thread::sleep(Duration::from_millis(200));
        let seen = seen.finish();
        assert!(!seen.is_empty() && seen.iter().all(|octets| *octets == 2400), "{seen:?}");
        story.server.stop();
    }
}

/// RFC: D7 (RFC 4963: bounded)
#[test]
fn halves_without_number_take_a_bounded_room_and_give_it_back() {
    const ROOM: u64 = 1 << 20;
    for way in WAYS {
        let Some(story) = Story::new_or_skip("halves without number", way) else { return };
        story.rig.s.run(&format!(
            "sysctl -qw net.ipv4.ipfrag_low_thresh={} net.ipv4.ipfrag_high_thresh={ROOM} net.ipv4.ipfrag_time=2",
            ROOM / 2
        ));
        let memory = || resident(story.server.pid());
        let before = memory();
        let payload = story.payload(&datagram(2000, 1));
        for id in 0..5000 {
            story.send(id, (0, true, &payload[..CUT]));
        }
        let text = story.rig.s.run("cat /proc/net/sockstat");
        let held = text.lines().find_map(|line| line.strip_prefix("FRAG: ")).unwrap();
        let held: u64 = held.rsplit(' ').next().unwrap().parse().unwrap();
        assert!((1..=ROOM + 8192).contains(&held), "{held} octets of fragments");
        assert!(memory() < before + 4096, "{before} KiB before, then {}", memory());
        // Whole packets pass meanwhile, and fragments again when the halves have gone.
        let alice = story.rig.alice_peer(story.encap);
        assert!(alice.ping(U6, PATIENCE).is_some());
        story.expect_one(2000);
        story.server.stop();
    }
}

/// Resident memory in KiB.
fn resident(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
