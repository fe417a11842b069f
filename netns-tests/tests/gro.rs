//! GRO really merging: the router's kernel glues wire packets together before any socket sees them,
//! leaving a partial inner checksum; what comes out behind the router must be whole and right all the same.
//!
//! ```text
//!   C c0 (TSO off) ──── (GRO on, flush timeout) s0 S s1 (offloads off) ──── u0 U observes
//! ```

#![allow(clippy::unwrap_used, reason = "a test has nobody to return an error to")]

use netns_tests::{
    ALICE, Client, Ends, IPV4, IPV6, Inner, Observer, PATIENCE, Rig, Router, S4, U6, echo_requests, transfer,
    wait_for,
};

const SEGMENTS: u32 = 40;
const LEN: usize = 1200;

/// RFC: T2 (virtio 1.2 section 5.1.6)
#[test]
fn protocol_41_segments_come_out_as_they_went_in() {
    segments("proto41", "");
}

/// RFC: T2 (virtio 1.2 section 5.1.6)
#[test]
fn udp_segments_come_out_as_they_went_in() {
    segments("udp", "");
}

/// RFC: T2
#[test]
fn so_they_do_with_a_raw_socket() {
    segments("proto41", "[proto41]\nreceive = \"raw\"\n");
}

#[test]
fn tcp_over_protocol_41_is_whole() {
    stream("proto41", "");
}

#[test]
fn tcp_over_udp_is_whole() {
    stream("udp", "");
}

#[test]
fn tcp_by_a_raw_socket_is_whole() {
    stream("proto41", "[proto41]\nreceive = \"raw\"\n");
}

/// Bursts of handmade TCP segments of one flow, each with content of its own.
fn segments(encap: &str, extra: &str) {
    let Some(rig) = Rig::new_or_skip(&format!("merged TCP segments over {encap} {extra}")) else { return };
    let _server = begin(&rig, encap, extra, "mtu = 1400");
    // With offloads off the router's kernel must cut and sum before U: a wrong partial checksum shows.
    rig.s.run("ethtool -K s1 tso off gso off tx off");
    let outer = outer_lengths(&rig, encap);
    let inner = Observer::start(&rig.u, IPV6, |frame| {
        let packet = Inner::parse(frame)?;
        let (from, _, seq, data) = packet.tcp()?;
        (from == 1000 && !data.is_empty()).then(|| (seq, data.to_vec(), packet.checksum_ok(), frame.len()))
    });
    burst(&rig.alice_peer(encap));
    let whole: usize = (0..SEGMENTS).map(|n| content(n).len()).sum();
    let mut got = inner.finish_when(|got| got.iter().map(|(_, data, ..)| data.len()).sum::<usize>() >= whole);
    expect_merging(encap, &outer.finish());
    assert!(got.iter().all(|(.., sound, len)| *sound && *len <= 1500), "checksum or size is wrong");
    got.sort_unstable_by_key(|(seq, ..)| *seq);
    let (got, sent): (Vec<u8>, Vec<u8>) =
        (got.into_iter().flat_map(|(_, data, ..)| data).collect(), (0..SEGMENTS).flat_map(content).collect());
    assert_eq!(got.len(), sent.len(), "octets that came out");
    assert!(got == sent, "the octets that came out are not those that went in");
}

/// A real stream from the same program's client, and the other way, while the kernel merges.
fn stream(encap: &str, extra: &str) {
    let Some(rig) = Rig::new_or_skip(&format!("a merged TCP stream over {encap} {extra}")) else { return };
    let _server = begin(&rig, encap, extra, "mtu = 1400");
    let _client = rig.client(encap, 1400);
    let outer = outer_lengths(&rig, encap);
    transfer(&rig.c, &rig.u, U6, 20 << 20);
    expect_merging(encap, &outer.finish());
    transfer(&rig.u, &rig.c, ALICE, 20 << 20);
}

#[test]
fn echo_is_untouched_by_it() {
    let Some(rig) = Rig::new_or_skip("echo passes while the kernel merges") else { return };
    let server = begin(&rig, "proto41", "", "");
    let seen = echo_requests(&rig.u);
    let alice = rig.alice_peer("proto41");
    for n in 0..50 {
        alice.send(&Ends::new(ALICE, U6).echo_request(n, 1, 300));
    }
    wait_for("fifty echo requests to be counted", PATIENCE, || {
        (server.count("alice", "rx_packets") >= 50).then_some(())
    });
    assert_eq!(seen.finish_when(|seen| seen.len() >= 50).len(), 50);
}

fn begin(rig: &Rig, encap: &str, extra: &str, tunnel: &str) -> Router {
    rig.merge_at_router();
    let config = Rig::server_config("", &(extra.to_owned() + &Rig::alice(encap, tunnel)));
    Router::start(&rig.lab, &rig.s, &config)
}

fn burst(alice: &Client) {
    let ends = Ends::new(ALICE, U6);
    for n in 0..SEGMENTS {
        alice.send(&ends.tcp(1000, 2000, 1 + n * u32::try_from(LEN).unwrap(), &content(n)));
    }
}

fn content(n: u32) -> Vec<u8> {
    (0..LEN).map(|at| (at * 7 + at / 256 + usize::try_from(n).unwrap() * 31).to_le_bytes()[0]).collect()
}

/// The lengths of outer packets to the router, behind its kernel's merging.
fn outer_lengths(rig: &Rig, encap: &str) -> Observer<usize> {
    let protocol = if encap == "udp" { 17 } else { 41 };
    let router: std::net::Ipv4Addr = S4.parse().unwrap();
    Observer::start(&rig.s, IPV4, move |frame| {
        (frame[9] == protocol && frame[16..20] == router.octets()).then_some(frame.len())
    })
}

/// A story about merging in which nothing was merged proves nothing. UDP is merged only for sockets that
/// ask for it (UDP_GRO), which is the router's choice; protocol 41 always is.
fn expect_merging(encap: &str, lengths: &[usize]) {
    let merged = lengths.iter().filter(|len| **len > 1500).count();
    println!(
        "    {merged} of {} outer frames were merged, longest {:?}",
        lengths.len(),
        lengths.iter().max()
    );
    assert!(!lengths.is_empty());
    assert!(encap == "udp" || merged > 0, "the kernel merged nothing: {lengths:?}");
}
