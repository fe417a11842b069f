//! Peers that move, forgers who would like them to, and what is asked of whom.

use super::*;
use etherparse::{Icmpv6Type, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

const T: TunnelId = TunnelId(7);
const OLD: &str = "192.0.2.1:4000";
/// The same NAT, another port.
const NEAR: &str = "192.0.2.1:4001";
const NEW: &str = "198.51.100.9:61000";
const OTHER: &str = "203.0.113.5:5353";
const PEER: &str = "2001:db8:1::2";
const NOBODY: &str = "2001:db8:1::dead";

fn at(text: &str) -> SocketAddrV4 {
    text.parse().unwrap()
}

fn ip(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn local() -> SocketAddrV4 {
    at("10.71.0.1:3653")
}

fn candidate(sender: &str, current: Option<&str>) -> Candidate {
    by(sender, current, PEER)
}

fn by(sender: &str, current: Option<&str>, inner: &str) -> Candidate {
    Candidate {
        tunnel: T,
        sender: at(sender),
        local: local(),
        current: current.map(at),
        inner_source: ip(inner),
        probe_source: ip("2001:db8:100::1"),
    }
}

fn from(sender: &str, current: Option<&str>) -> Origin {
    Origin { tunnel: T, sender: at(sender), local: local(), current: current.map(at), echo: None }
}

fn prober() -> Prober<StdRng> {
    Prober::new(StdRng::seed_from_u64(1))
}

/// One whose tunnel's peer has been proven to be at [`OLD`], with [`PEER`] inside.
fn settled() -> Prober<StdRng> {
    let mut prober = prober();
    prober.has_moved(T, ip(PEER));
    prober
}

fn outputs(prober: &mut Prober<StdRng>) -> Vec<Output> {
    std::iter::from_fn(|| prober.poll_output()).collect()
}

/// The questions just asked: to whom, by which inner address, the packet; fails on moves.
fn asked(prober: &mut Prober<StdRng>) -> Vec<(SocketAddrV4, Ipv6Addr, Vec<u8>)> {
    let all = outputs(prober).into_iter().filter_map(|output| match output {
        Output::Probe { remote, packet, local: from, .. } => {
            assert_eq!(from, local());
            Some((remote, read(&packet).1.into(), packet))
        }
        Output::Listen { .. } => None,
        Output::Move { .. } => panic!("moved without proof"),
    });
    all.collect()
}

fn moves(prober: &mut Prober<StdRng>) -> Vec<(SocketAddrV4, Ipv6Addr)> {
    let all = outputs(prober).into_iter().filter_map(|output| match output {
        Output::Move { remote, inner, .. } => Some((remote, inner)),
        Output::Probe { .. } | Output::Listen { .. } => None,
    });
    all.collect()
}

fn echo_reply(from: [u8; 16], to: [u8; 16], ident: u16, seq: u16, data: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ipv6(from, to, 60).icmpv6_echo_reply(ident, seq).write(&mut packet, data).unwrap();
    packet
}

/// Source, destination, identifier, sequence number and payload of a question.
fn read(probe: &[u8]) -> ([u8; 16], [u8; 16], u16, u16, Vec<u8>) {
    let sliced = SlicedPacket::from_ip(probe).unwrap();
    let (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Icmpv6(icmp))) = (sliced.net, sliced.transport)
    else {
        panic!("a question is ICMPv6 in IPv6");
    };
    let header = ip.header();
    assert!(icmp.is_checksum_valid(header.source(), header.destination()));
    let Icmpv6Type::EchoRequest(echo) = icmp.icmp_type() else {
        panic!("a question is an echo request");
    };
    (header.source(), header.destination(), echo.id, echo.seq, icmp.payload().to_vec())
}

/// What any IPv6 host makes of an echo request.
fn reply(probe: &[u8]) -> Vec<u8> {
    let (source, destination, ident, seq, data) = read(probe);
    echo_reply(destination, source, ident, seq, &data)
}

/// This candidate comes, is asked, and answers at once; what the current endpoint is asked then.
fn contend(
    prober: &mut Prober<StdRng>,
    now: Duration,
    c: Candidate,
) -> Vec<(SocketAddrV4, Ipv6Addr, Vec<u8>)> {
    prober.handle_candidate(now, c);
    let questions = asked(prober);
    let question = questions.iter().find(|(remote, ..)| *remote == c.sender).expect("nobody asked it");
    let origin = Origin { tunnel: T, sender: c.sender, local: c.local, current: c.current, echo: None };
    assert!(prober.handle_packet(now, &origin, &reply(&question.2)));
    asked(prober)
}

#[test]
fn a_question_is_an_echo_request_from_the_router_to_the_inner_source() {
    let mut prober = prober();
    prober.handle_candidate(ms(0), candidate(NEW, Some(OLD)));
    let questions = asked(&mut prober);
    let [(remote, _, packet)] = &questions[..] else { panic!("{questions:?}") };
    assert_eq!(*remote, at(NEW), "the endpoint in use is left alone as long as nobody has answered");
    let (source, destination, ident, _, nonce) = read(packet);
    assert_eq!((Ipv6Addr::from(source), Ipv6Addr::from(destination)), (ip("2001:db8:100::1"), ip(PEER)));
    assert_eq!((ident, nonce.len()), (prober.ident(), 16));
    assert!(!prober.handle_packet(ms(1), &from(NEW, Some(OLD)), packet), "a request is no reply");
}

#[test]
fn a_tunnel_without_endpoint_learns_it_at_once() {
    let mut prober = prober();
    prober.handle_candidate(ms(0), candidate(NEW, None));
    let question = asked(&mut prober).remove(0).2;
    assert!(prober.handle_packet(ms(40), &from(NEW, None), &reply(&question)));
    assert_eq!(moves(&mut prober), [(at(NEW), ip(PEER))]);
    let counters = prober.counters();
    assert_eq!((counters.probes_sent, counters.unanswered, prober.poll_timeout()), (1, 0, None));
}

/// RFC: D12 (RFC 8085 section 3.5)
#[test]
fn a_dead_endpoint_is_given_up_sooner_behind_the_same_nat() {
    for (sender, patience) in [(NEAR, 1500), (NEW, 4000)] {
        let mut prober = settled();
        assert_eq!(contend(&mut prober, ms(0), candidate(sender, Some(OLD))).len(), 1);
        prober.handle_timeout(ms(patience - 1));
        let again = asked(&mut prober);
        assert!(again.len() >= 2 && again.iter().all(|(to, ..)| *to == at(OLD)), "{again:?}");
        prober.handle_timeout(ms(patience));
        assert_eq!(moves(&mut prober), [(at(sender), ip(PEER))]);
    }
}

/// The attacker chooses an inner source that no host has: the living peer cannot answer for that, but for its own.
///
/// RFC: D12 (RFC 8085 section 3.5)
#[test]
fn life_is_asked_by_an_address_that_the_endpoint_has_shown() {
    for answers_at in [10, 3600] {
        let mut prober = settled();
        let mut questions = contend(&mut prober, ms(0), by(NEW, Some(OLD), NOBODY));
        for now in (0..=answers_at).step_by(10) {
            prober.handle_timeout(ms(now));
            questions.extend(asked(&mut prober));
        }
        let last = questions.iter().rev().find(|(_, inner, _)| *inner == ip(PEER)).expect("asked by its own");
        assert!(prober.handle_packet(ms(answers_at), &from(OLD, Some(OLD)), &reply(&last.2)));
        prober.handle_timeout(ms(60_000));
        assert_eq!(moves(&mut prober), []);
        assert_eq!((prober.counters().stayed_alive, prober.counters().forged), (1, 0));
    }
}

#[test]
fn it_is_asked_by_all_addresses_that_may_answer() {
    let mut prober = settled();
    for inner in ["2001:db8:1::3", "2001:db8:1::4", "2001:db8:1::5"] {
        prober.has_moved(T, ip(inner));
    }
    prober.handle_candidate(ms(0), by(NEW, Some(OLD), NOBODY));
    let question = asked(&mut prober).remove(0).2;
    let origin = Origin { echo: Some(ip("2001:db8:1::ec")), ..from(NEW, Some(OLD)) };
    prober.handle_packet(ms(0), &origin, &reply(&question));
    let inner: Vec<_> = asked(&mut prober).into_iter().map(|(_, inner, _)| inner).collect();
    let expected = ["2001:db8:1::5", "2001:db8:1::4", "2001:db8:1::3", "2001:db8:1::ec", NOBODY];
    assert_eq!(inner, expected.map(ip), "the latest three, what is configured, what the contender says");
}

/// RFC: D12
#[test]
fn a_refuted_contender_is_held_off_and_nobody_else() {
    let mut prober = settled();
    let questions = contend(&mut prober, ms(0), by(NEW, Some(OLD), NOBODY));
    prober.handle_packet(ms(50), &from(OLD, Some(OLD)), &reply(&questions[0].2));
    outputs(&mut prober);
    let same_address = "198.51.100.9:7";
    for sender in [NEW, same_address] {
        prober.handle_candidate(ms(9000), candidate(sender, Some(OLD)));
        assert_eq!(asked(&mut prober), [], "{sender}");
    }
    assert_eq!(prober.counters().busy, 2);
    prober.handle_candidate(ms(9000), candidate(OTHER, Some(OLD)));
    assert_eq!(asked(&mut prober).len(), 1, "the peer itself may have moved meanwhile");
    prober.handle_candidate(ms(10_050), candidate(NEW, Some(OLD)));
    assert_eq!(asked(&mut prober).len(), 1);
}

#[test]
fn who_lies_behind_the_peers_nat_is_held_off_by_port() {
    let mut prober = settled();
    let questions = contend(&mut prober, ms(0), candidate(NEAR, Some(OLD)));
    prober.handle_packet(ms(50), &from(OLD, Some(OLD)), &reply(&questions[0].2));
    outputs(&mut prober);
    prober.handle_candidate(ms(2000), candidate(NEAR, Some(OLD)));
    assert_eq!(asked(&mut prober), []);
    prober.handle_candidate(ms(2000), candidate("192.0.2.1:9", Some(OLD)));
    assert_eq!(asked(&mut prober).len(), 1, "the NAT may have changed the peer's port");
}

/// A move that the caller has not made, since packets came from the old endpoint.
///
/// RFC: D12
#[test]
fn a_veto_holds_off_too() {
    let mut prober = settled();
    contend(&mut prober, ms(0), by(NEW, Some(OLD), NOBODY));
    prober.handle_timeout(ms(500));
    assert!(outputs(&mut prober).contains(&Output::Listen { tunnel: T }));
    prober.handle_timeout(ms(4000));
    assert_eq!(moves(&mut prober), [(at(NEW), ip(NOBODY))]);
    prober.is_alive(ms(4000), T, at(NEW));
    for now in [5000, 8000, 13_999] {
        prober.handle_candidate(ms(now), by(NEW, Some(OLD), NOBODY));
        assert_eq!(asked(&mut prober), [], "{now}");
    }
    assert_eq!(prober.counters().stayed_alive, 1);
}

#[test]
fn old_and_new_being_the_same_peer_moves_at_once() {
    let mut prober = settled();
    let questions = contend(&mut prober, ms(0), candidate(NEW, Some(OLD)));
    assert!(prober.handle_packet(ms(30), &from(NEW, Some(OLD)), &reply(&questions[0].2)));
    assert_eq!(moves(&mut prober), [(at(NEW), ip(PEER))]);
    assert_eq!(prober.counters().forged, 0);
}

/// RFC: D12
#[test]
fn an_answer_from_a_third_place_proves_nothing() {
    let mut prober = settled();
    prober.handle_candidate(ms(0), candidate(NEW, Some(OLD)));
    let to_new = asked(&mut prober).remove(0).2;
    let elsewhere = Origin { local: at("10.71.0.2:3653"), ..from(NEW, Some(OLD)) };
    let another = Origin { tunnel: TunnelId(8), ..from(NEW, Some(OLD)) };
    for origin in [from(OTHER, Some(OLD)), from(OLD, Some(OLD)), elsewhere, another] {
        assert!(prober.handle_packet(ms(20), &origin, &reply(&to_new)));
    }
    assert_eq!((prober.counters().forged, prober.counters().unanswered), (4, 1));
    let to_old = contend(&mut prober, ms(1000), candidate(NEW, Some(OLD))).remove(0).2;
    // Copied on its way, and sent by somebody who has proven nothing.
    assert!(prober.handle_packet(ms(1020), &from(OTHER, Some(OLD)), &reply(&to_old)));
    assert_eq!((moves(&mut prober), prober.counters().forged), (vec![], 5));
}

#[test]
fn a_reply_has_to_come_back_whole() {
    let mut prober = prober();
    prober.handle_candidate(ms(0), candidate(NEW, None));
    let question = asked(&mut prober).remove(0).2;
    let (us, peer, ident, seq, nonce) = read(&question);
    let not_ours = [
        echo_reply(peer, us, ident, seq, &nonce[..15]),
        echo_reply(peer, us, ident, seq, &[&nonce[..], &[0]].concat()),
        echo_reply(peer, us, ident.wrapping_add(1), seq, &nonce),
    ];
    let mut summed_wrong = reply(&question);
    summed_wrong[42] ^= 1;
    for packet in not_ours.into_iter().chain([summed_wrong]) {
        assert!(!prober.handle_packet(ms(9), &from(NEW, None), &packet), "left to others");
    }
    let mut wrong = nonce.clone();
    wrong[15] ^= 1;
    let forged = [
        echo_reply(peer, us, ident, seq, &wrong),
        echo_reply(us, us, ident, seq, &nonce),
        echo_reply(peer, peer, ident, seq, &nonce),
        echo_reply(peer, us, ident, seq.wrapping_add(1), &nonce),
    ];
    for packet in forged {
        assert!(prober.handle_packet(ms(9), &from(NEW, None), &packet));
    }
    assert_eq!((prober.counters().forged, outputs(&mut prober)), (4, vec![]));
}

/// RFC: D12
#[test]
fn a_replayed_reply_of_an_earlier_proof_moves_nothing() {
    let mut prober = prober();
    prober.handle_candidate(ms(0), candidate(NEW, None));
    let recorded = reply(&asked(&mut prober).remove(0).2);
    prober.handle_packet(ms(10), &from(NEW, None), &recorded);
    assert_eq!(moves(&mut prober).len(), 1);
    prober.has_moved(T, ip(PEER));
    // At once, from where she is and from elsewhere; and when she went on and somebody has her old place.
    for (now, sender, current) in [(20, NEW, NEW), (20, OTHER, NEW), (5000, NEW, OTHER)] {
        assert!(prober.handle_packet(ms(now), &from(sender, Some(current)), &recorded));
    }
    prober.handle_timeout(ms(60_000));
    assert_eq!((moves(&mut prober), prober.counters().moved), (vec![], 1));
}

#[test]
fn an_answer_that_comes_too_late_is_none() {
    let mut prober = prober();
    prober.handle_candidate(ms(0), candidate(NEW, None));
    let question = asked(&mut prober).remove(0).2;
    assert!(prober.handle_packet(ms(3000), &from(NEW, None), &reply(&question)));
    assert_eq!((outputs(&mut prober), prober.counters().unanswered), (vec![], 1));
}

#[test]
fn who_does_not_answer_is_asked_once_a_second() {
    let mut prober = settled();
    for n in 0..=100 {
        prober.handle_candidate(ms(n * 100), candidate(NEW, Some(OLD)));
    }
    assert_eq!((asked(&mut prober).len(), prober.counters().unanswered), (11, 11));
    assert_eq!((prober.counters().busy, prober.poll_timeout()), (90, None));
}

/// Forged candidates take no place, whether one address has them from all its ports or all addresses are forged.
///
/// RFC: D12 (RFC 8085 section 3.5)
#[test]
fn a_flood_of_silent_candidates_does_not_keep_a_peer_that_moved() {
    for spread in [false, true] {
        let mut prober = settled();
        for n in 0..20_000u64 {
            let address = if spread { 0xcb00_0000 + n as u32 } else { 0xcb00_0001 };
            let forged = SocketAddrV4::new(address.into(), 1000 + (n % 60_000) as u16);
            let c = Candidate { sender: forged, ..candidate(OTHER, Some(OLD)) };
            prober.handle_candidate(ms(n / 10), c);
        }
        outputs(&mut prober);
        assert!(prober.counters().busy + prober.counters().full > 10_000);
        // Behind her NAT, with another port.
        contend(&mut prober, ms(2000), candidate(NEAR, Some(OLD)));
        prober.handle_timeout(ms(3500));
        assert_eq!(moves(&mut prober), [(at(NEAR), ip(PEER))], "spread {spread}");
    }
}

#[test]
fn the_likelier_contender_wins() {
    let mut prober = settled();
    contend(&mut prober, ms(0), by(OTHER, Some(OLD), NOBODY));
    contend(&mut prober, ms(100), candidate(NEW, Some(OLD)));
    prober.handle_timeout(ms(4000));
    assert_eq!(moves(&mut prober), [(at(NEW), ip(PEER))], "its inner address is known");
    let mut prober = settled();
    contend(&mut prober, ms(0), candidate(NEW, Some(OLD)));
    contend(&mut prober, ms(1000), candidate(NEAR, Some(OLD)));
    prober.handle_timeout(ms(1500));
    assert_eq!(moves(&mut prober), [(at(NEAR), ip(PEER))], "it is behind the same NAT");
}

#[test]
fn impossible_addresses_are_never_asked() {
    let mut prober = prober();
    for sender in ["224.0.0.1:5", "255.255.255.255:5", "0.0.0.0:5", "192.0.2.1:0"] {
        prober.handle_candidate(ms(0), candidate(sender, None));
    }
    for inner in ["ff02::1", "::", "::1", "2001:db8:100::1"] {
        prober.handle_candidate(ms(0), by(NEW, None, inner));
    }
    prober.handle_candidate(ms(0), candidate(NEW, Some(NEW)));
    assert_eq!(outputs(&mut prober), []);
    assert_eq!((prober.counters().forged, prober.poll_timeout()), (8, None));
}

/// The number may be another tunnel's at once, whose own peer shows itself.
///
/// RFC: D12
#[test]
fn a_forgotten_tunnel_leaves_nothing_behind() {
    let mut prober = settled();
    prober.handle_candidate(ms(5), candidate(NEW, None));
    let question = asked(&mut prober).remove(0).2;
    contend(&mut prober, ms(5), candidate(OTHER, Some(OLD)));
    prober.forget(T);
    assert!(prober.handle_packet(ms(10), &from(NEW, None), &reply(&question)));
    assert_eq!((outputs(&mut prober), prober.poll_timeout()), (vec![], None));
    assert!(prober.inquiries.is_empty() && prober.timers.is_empty() && prober.shown.is_empty());
    prober.handle_candidate(ms(1010), candidate(NEW, None));
    let question = asked(&mut prober).remove(0).2;
    for n in 0..10_000 {
        prober.forget(TunnelId(100 + n));
    }
    assert!(prober.gone.len() <= MOST_GONE);
    prober.handle_packet(ms(1020), &from(NEW, None), &reply(&question));
    assert_eq!(outputs(&mut prober), [], "asked before a churn like that: asked again");
}

/// RFC: D12
#[test]
fn contenders_for_all_tunnels_stay_within_bounds_and_drain() {
    let mut prober = prober();
    for n in 0..40_000u32 {
        let sender = SocketAddrV4::new((0xcb00_0000 + n / 4).into(), 1000);
        let tunnel = TunnelId(n % 20_000);
        let c = Candidate { tunnel, sender, ..candidate(NEW, Some(OLD)) };
        let now = ms(u64::from(n) / 5);
        prober.handle_candidate(now, c);
        for (remote, _, packet) in outputs(&mut prober).into_iter().filter_map(|output| match output {
            Output::Probe { remote, packet, .. } => Some((remote, (), packet)),
            Output::Listen { .. } | Output::Move { .. } => None,
        }) {
            let origin = Origin { tunnel, sender, ..from(NEW, Some(OLD)) };
            if remote == sender {
                prober.handle_packet(now, &origin, &reply(&packet));
            }
        }
        assert!(prober.inquiries.len() <= MOST_TUNNELS && prober.timers.len() == prober.inquiries.len());
    }
    outputs(&mut prober);
    for now in [10_000, 20_000, 60_000] {
        prober.handle_timeout(ms(now));
        outputs(&mut prober);
    }
    assert!(prober.inquiries.is_empty() && prober.poll_timeout().is_none());
}

/// One thing that somebody who never sees what a candidate is asked can do. Places are numbers below 4.
#[derive(Clone, Debug)]
enum Act {
    Candidate {
        tunnel: u32,
        from: u16,
        current: Option<u16>,
    },
    Guess {
        from: u16,
        nonce: [u8; 16],
        seq: u16,
    },
    /// Has a candidate's answer come from everywhere but the candidate.
    Misplace {
        shift: u16,
        pick: prop::sample::Index,
    },
    Wait(u64),
    Forget(u32),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let candidate = (0..3u32, 0..4u16, prop::option::of(0..4u16))
        .prop_map(|(tunnel, from, current)| Act::Candidate { tunnel, from, current });
    let guess = (0..4u16, any::<[u8; 16]>(), any::<u16>()).prop_map(|(from, nonce, seq)| Act::Guess {
        from,
        nonce,
        seq,
    });
    let misplace =
        (1..4u16, any::<prop::sample::Index>()).prop_map(|(shift, pick)| Act::Misplace { shift, pick });
    let wait = (0..4000u64).prop_map(Act::Wait);
    let act = prop_oneof![
        4 => candidate, 1 => guess, 3 => misplace, 3 => wait, 1 => (0..3u32).prop_map(Act::Forget)
    ];
    prop::collection::vec(act, 0..80)
}

fn place(n: u16) -> SocketAddrV4 {
    SocketAddrV4::new([192, 0, 2, 1].into(), 1000 + n % 4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// RFC: D12 (RFC 8085 section 3.5)
    #[test]
    fn nothing_moves_without_the_candidates_nonce_from_the_candidate(acts in acts()) {
        let mut prober = prober();
        let mut now = ms(0);
        let mut seen: Vec<(u16, u32, Vec<u8>)> = Vec::new();
        for act in acts {
            match act {
                Act::Candidate { tunnel, from, current } => {
                    let (tunnel, sender) = (TunnelId(tunnel), place(from));
                    prober.handle_candidate(now, Candidate { tunnel, sender, current: current.map(place), ..candidate(NEW, None) });
                    seen.extend(asked(&mut prober).into_iter().map(|(_, _, p)| (from, tunnel.0, reply(&p))));
                }
                Act::Guess { from: n, nonce, seq } => {
                    let c = candidate(NEW, None);
                    let (peer, us) = (c.inner_source.octets(), c.probe_source.octets());
                    let packet = echo_reply(peer, us, prober.ident(), seq, &nonce);
                    prober.handle_packet(now, &Origin { sender: place(n), ..from(NEW, None) }, &packet);
                }
                Act::Misplace { shift, pick } if !seen.is_empty() => {
                    let (n, tunnel, packet) = pick.get(&seen);
                    let origin = Origin { tunnel: TunnelId(*tunnel), sender: place(n + shift), ..from(NEW, None) };
                    prober.handle_packet(now, &origin, packet);
                }
                Act::Misplace { .. } => {}
                Act::Wait(n) => {
                    now += ms(n);
                    prober.handle_timeout(now);
                }
                Act::Forget(n) => prober.forget(TunnelId(n)),
            }
            prop_assert_eq!(outputs(&mut prober), vec![]);
            prop_assert_eq!(prober.timers.len(), prober.inquiries.len());
        }
    }

    #[test]
    fn arbitrary_packets_are_nobodys(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        prop_assert!(!prober().handle_packet(ms(0), &from(OLD, Some(OLD)), &bytes));
    }
}
