//! What is answered inside a tunnel and what is not, and when advertisements come.

use super::*;
use etherparse::PacketBuilder;
use proptest::prelude::*;

const OURS: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const PEER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
const ROUTER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, 1);
const STRANGER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x100, 1, 0, 0, 0xaa, 0xbbcc);
const NOBODY: Ipv6Addr = Ipv6Addr::UNSPECIFIED;

fn policy() -> RaPolicy {
    let prefix = ["2001:db8:1::/64", "2001:db8:2::/56"].map(|p| p.parse().unwrap()).to_vec();
    RaPolicy { on: true, managed: false, other: true, prefix }
}

fn link(ra: &RaPolicy) -> Link<'_> {
    Link { link_local: OURS, router_addrs: &[ROUTER], mtu: 1280, ra }
}

fn asked(packet: &[u8]) -> Result<Vec<u8>, Silence> {
    answer(&link(&policy()), packet)
}

/// An ICMPv6 packet built by somebody else's code.
fn built(from: Ipv6Addr, to: Ipv6Addr, hops: u8, kind: u8, word: [u8; 4], rest: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ipv6(from.octets(), to.octets(), hops).icmpv6_raw(kind, 0, word);
    let mut packet = Vec::new();
    builder.write(&mut packet, rest).unwrap();
    packet
}

fn solicit(from: Ipv6Addr, to: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    built(from, to, 255, 135, [0; 4], &target.octets())
}

fn advert(from: Ipv6Addr, to: Ipv6Addr, flags: u8, target: Ipv6Addr) -> Vec<u8> {
    built(from, to, 255, 136, [flags, 0, 0, 0], &target.octets())
}

fn ping(from: Ipv6Addr, to: Ipv6Addr, data: &[u8]) -> Vec<u8> {
    built(from, to, 64, 128, [0x12, 0x34, 0, 9], data)
}

fn group(addr: &str) -> Ipv6Addr {
    addr.parse().unwrap()
}

/// RFC: D10 (RFC 4861 section 7.2.4)
#[test]
fn a_solicitation_for_an_address_of_ours_is_answered_from_it() {
    for (from, to, target) in [
        (PEER, group("ff02::1:ff00:1"), OURS),
        (PEER, OURS, OURS),
        (PEER, group("ff02::1:ff00:1"), ROUTER),
        (STRANGER, ROUTER, ROUTER),
    ] {
        let expected = advert(target, from, 0b1110_0000, target);
        assert_eq!(asked(&solicit(from, to, target)), Ok(expected), "{from} asks {to} for {target}");
    }
}

/// RFC: D10 (RFC 4213 section 3.8)
#[test]
fn a_link_layer_option_is_ignored_and_none_is_sent() {
    let mut rest = PEER.octets().to_vec();
    rest[15] = 1;
    rest.extend([1, 1, 0xa, 0xb, 0xc, 0xd, 0xe, 0xf]);
    let packet = built(PEER, OURS, 255, 135, [0; 4], &rest);
    assert_eq!(asked(&packet), Ok(advert(OURS, PEER, 0b1110_0000, OURS)));
}

#[test]
fn solicitations_for_others_or_to_others_get_none() {
    for (from, to, target, why) in [
        (PEER, group("ff02::1:ff00:2"), PEER, Silence::NotForUs),
        (PEER, STRANGER, STRANGER, Silence::NotForUs),
        (PEER, ALL_NODES, OURS, Silence::NotForUs),
        (PEER, group("ff02::1:ff00:1"), group("ff02::1"), Silence::Malformed),
        (group("ff02::7"), OURS, OURS, Silence::BadSource),
        (Ipv6Addr::LOCALHOST, OURS, OURS, Silence::BadSource),
        (OURS, OURS, OURS, Silence::OwnSource),
        (ROUTER, OURS, OURS, Silence::OwnSource),
    ] {
        assert_eq!(asked(&solicit(from, to, target)), Err(why), "{from} asks {to} for {target}");
    }
}

#[test]
fn duplicate_address_detection_is_answered_to_everybody_for_ours_only() {
    let group_of_1 = group("ff02::1:ff00:1");
    for target in [OURS, ROUTER] {
        let expected = advert(target, ALL_NODES, 0b1010_0000, target);
        assert_eq!(asked(&solicit(NOBODY, group_of_1, target)), Ok(expected));
    }
    let theirs = solicit(NOBODY, group("ff02::1:ff00:2"), PEER);
    assert_eq!(asked(&theirs), Err(Silence::DuplicateAddressDetection));
    assert_eq!(asked(&solicit(NOBODY, OURS, OURS)), Err(Silence::Malformed));
    let mut named = OURS.octets().to_vec();
    named.extend([1, 1, 1, 2, 3, 4, 5, 6]);
    assert_eq!(asked(&built(NOBODY, group_of_1, 255, 135, [0; 4], &named)), Err(Silence::Malformed));
}

/// What [`policy`] makes of a router advertisement behind its first eight octets, spelled out.
const ADVERT_REST: [u8; 80] = [
    0, 0, 0, 0, 0, 0, 0, 0, // reachable time, retransmission timer: unspecified
    5, 1, 0, 0, 0, 0, 5, 0, // MTU 1280
    3, 4, 64, 0x40, 0, 1, 0x51, 0x80, 0, 0, 0x38, 0x40, 0, 0, 0, 0, // /64, A, 86400 s, 14400 s
    0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // 2001:db8:1::
    3, 4, 56, 0, 0, 1, 0x51, 0x80, 0, 0, 0x38, 0x40, 0, 0, 0, 0, // /56: neither L nor A
    0x20, 1, 0xd, 0xb8, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // 2001:db8:2::
];

fn expected_advert(to: Ipv6Addr, lifetime: [u8; 2]) -> Vec<u8> {
    built(OURS, to, 255, 134, [64, 0x40, lifetime[0], lifetime[1]], &ADVERT_REST)
}

#[test]
fn a_router_solicitation_is_answered_to_its_source_or_to_everybody() {
    for (from, to, back) in [(PEER, ALL_ROUTERS, PEER), (PEER, OURS, PEER), (NOBODY, ALL_ROUTERS, ALL_NODES)]
    {
        let packet = built(from, to, 255, 133, [0; 4], &[]);
        assert_eq!(asked(&packet), Ok(expected_advert(back, [0x07, 0x08])), "{from} to {to}");
    }
}

#[test]
fn unsolicited_advertisement_and_withdrawal_differ_in_the_lifetime() {
    let on = policy();
    assert_eq!(advertisement(&link(&on)), Some(expected_advert(ALL_NODES, [0x07, 0x08])));
    assert_eq!(withdrawal(&link(&on)), Some(expected_advert(ALL_NODES, [0, 0])));
    let off = RaPolicy { on: false, ..on };
    assert_eq!(advertisement(&link(&off)), None);
    assert_eq!(withdrawal(&link(&off)), None);
}

#[test]
fn managed_and_other_are_the_two_top_flags_and_the_tunnel_names_its_mtu() {
    let ra = RaPolicy { on: true, managed: true, other: false, prefix: Vec::new() };
    let rest = [0, 0, 0, 0, 0, 0, 0, 0, 5, 1, 0, 0, 0, 0, 0x05, 0xd4];
    let expected = built(OURS, ALL_NODES, 255, 134, [64, 0x80, 0x07, 0x08], &rest);
    assert_eq!(advertisement(&Link { mtu: 1492, ..link(&ra) }), Some(expected));
}

#[test]
fn more_prefixes_than_fit_are_left_out() {
    let prefix = (0..100u128).map(|n| Ipv6Prefix::new((n << 64).into(), 64).unwrap()).collect();
    let ra = RaPolicy { prefix, ..policy() };
    let packet = advertisement(&link(&ra)).unwrap();
    assert_eq!(packet.len(), 64 + 38 * 32);
    assert!(packet.len() <= 1280 && codec::parse(&packet).is_ok());
}

#[test]
fn router_solicitations_that_get_none() {
    let off = RaPolicy::default();
    let fine = built(PEER, ALL_ROUTERS, 255, 133, [0; 4], &[]);
    assert_eq!(answer(&link(&off), &fine), Err(Silence::RaOff));
    let named = built(NOBODY, ALL_ROUTERS, 255, 133, [0; 4], &[1, 1, 1, 2, 3, 4, 5, 6]);
    assert_eq!(asked(&named), Err(Silence::Malformed));
    assert_eq!(asked(&built(STRANGER, ALL_ROUTERS, 255, 133, [0; 4], &[])), Err(Silence::BadSource));
    assert_eq!(asked(&built(PEER, ROUTER, 255, 133, [0; 4], &[])), Err(Silence::NotForUs));
}

#[test]
fn echo_is_answered_from_the_link_local_address() {
    for (from, to) in [(PEER, OURS), (PEER, ALL_NODES), (PEER, ALL_ROUTERS), (STRANGER, OURS)] {
        let expected = built(OURS, from, 64, 129, [0x12, 0x34, 0, 9], b"0123456789abc");
        assert_eq!(asked(&ping(from, to, b"0123456789abc")), Ok(expected), "{from} to {to}");
    }
}

#[test]
fn echo_that_gets_none() {
    for (from, to, why) in [
        (NOBODY, ALL_NODES, Silence::BadSource),
        (group("ff02::1"), OURS, Silence::BadSource),
        (group("::1"), OURS, Silence::BadSource),
        (group("::ffff:10.0.0.1"), OURS, Silence::BadSource),
        (PEER, ROUTER, Silence::NotForUs),
        (PEER, group("ff02::1:2"), Silence::NotForUs),
        (OURS, ALL_NODES, Silence::OwnSource),
        (ROUTER, OURS, Silence::OwnSource),
    ] {
        assert_eq!(asked(&ping(from, to, b"x")), Err(why), "{from} to {to}");
    }
}

#[test]
fn discovery_from_beyond_the_link_is_dropped_and_echo_is_not() {
    for (kind, rest) in [(133, 0), (134, 8), (135, 16), (136, 16), (137, 32)] {
        let packet = built(PEER, OURS, 254, kind, [0; 4], &vec![0; rest]);
        assert_eq!(asked(&packet), Err(Silence::HopLimit), "type {kind}");
    }
    assert!(asked(&built(PEER, OURS, 1, 128, [0; 4], &[])).is_ok());
}

#[test]
fn what_asks_for_nothing_has_its_own_reason() {
    for (kind, rest, why) in [
        (134, 8, Silence::Advertisement),
        (136, 16, Silence::Advertisement),
        (137, 32, Silence::Redirect),
        (129, 5, Silence::EchoReply),
        (130, 16, Silence::MldReport),
        (131, 16, Silence::MldReport),
        (132, 16, Silence::MldReport),
        (143, 20, Silence::MldReport),
        (1, 48, Silence::OtherIcmp),
        (2, 0, Silence::OtherIcmp),
        (200, 0, Silence::OtherIcmp),
    ] {
        assert_eq!(asked(&built(PEER, OURS, 255, kind, [0; 4], &vec![0; rest])), Err(why), "type {kind}");
    }
}

/// The packet with a Hop-by-Hop header of these six option octets before its payload.
fn behind_hop_by_hop(packet: &[u8], options: [u8; 6]) -> Vec<u8> {
    let mut out = packet[..40].to_vec();
    out[4..6].copy_from_slice(&u16::try_from(packet.len() - 40 + 8).unwrap().to_be_bytes());
    out[6] = 0;
    out.extend([58, 0]);
    out.extend(options);
    out.extend(&packet[40..]);
    out
}

#[test]
fn a_listener_report_behind_hop_by_hop_is_recognised() {
    let report = built(PEER, group("ff02::16"), 1, 143, [0, 0, 0, 1], &[0; 20]);
    let alert = behind_hop_by_hop(&report, [5, 2, 0, 0, 1, 0]);
    assert_eq!(asked(&alert), Err(Silence::MldReport));
    let padded = behind_hop_by_hop(&ping(PEER, OURS, b"hi"), [1, 4, 0, 0, 0, 0]);
    assert_eq!(asked(&padded), asked(&ping(PEER, OURS, b"hi")));
    let skippable = behind_hop_by_hop(&ping(PEER, OURS, b"hi"), [0x3e, 4, 0, 0, 0, 0]);
    assert!(asked(&skippable).is_ok());
    for fatal in [0x7e, 0xbe, 0xfe] {
        let packet = behind_hop_by_hop(&ping(PEER, OURS, b"hi"), [fatal, 4, 0, 0, 0, 0]);
        assert_eq!(asked(&packet), Err(Silence::Option));
    }
    let overlong = behind_hop_by_hop(&ping(PEER, OURS, b"hi"), [1, 9, 0, 0, 0, 0]);
    assert_eq!(asked(&overlong), Err(Silence::Malformed));
}

#[test]
fn form_is_checked_before_meaning() {
    let good = solicit(PEER, OURS, OURS);
    for cut in 0..good.len() {
        assert_eq!(asked(&good[..cut]), Err(Silence::Malformed), "cut to {cut}");
    }
    let mut summed_wrong = good.clone();
    summed_wrong[42] ^= 1;
    assert_eq!(asked(&summed_wrong), Err(Silence::BadChecksum));
    let mut version_4 = good.clone();
    version_4[0] = 0x40;
    assert_eq!(asked(&version_4), Err(Silence::Malformed));
    let mut udp = good.clone();
    udp[6] = 17;
    assert_eq!(asked(&udp), Err(Silence::NotIcmp));
    let short_target = built(PEER, OURS, 255, 135, [0; 4], &[0; 15]);
    assert_eq!(asked(&short_target), Err(Silence::Malformed));
    let endless_option = [&OURS.octets()[..], &[1, 0, 0, 0, 0, 0, 0, 0]].concat();
    assert_eq!(asked(&built(PEER, OURS, 255, 135, [0; 4], &endless_option)), Err(Silence::Malformed));
    let mut trailing = good;
    trailing.push(0xff);
    assert!(asked(&trailing).is_ok(), "link padding behind the packet is no part of it");
}

#[test]
fn a_message_code_other_than_zero_is_malformed() {
    let mut packet = Vec::new();
    let builder = PacketBuilder::ipv6(PEER.octets(), OURS.octets(), 255);
    builder.icmpv6_raw(135, 1, [0; 4]).write(&mut packet, &OURS.octets()).unwrap();
    assert_eq!(asked(&packet), Err(Silence::Malformed));
}

#[test]
fn reasons_are_numbered_as_listed() {
    for (n, why) in Silence::ALL.into_iter().enumerate() {
        assert_eq!(why as usize, n);
    }
}

/// Packets that are answered, with room for what each kind may vary in.
fn answerable_packet() -> impl Strategy<Value = Vec<u8>> {
    let from = prop_oneof![Just(PEER), Just(STRANGER), Just(NOBODY)];
    let to = prop_oneof![
        Just(OURS),
        Just(ROUTER),
        Just(ALL_NODES),
        Just(ALL_ROUTERS),
        Just(group("ff02::1:ff00:1"))
    ];
    let target = prop_oneof![Just(OURS), Just(ROUTER), Just(PEER)];
    let data = proptest::collection::vec(any::<u8>(), 0..64);
    (from, to, target, data, 0..3u8).prop_map(|(from, to, target, data, kind)| match kind {
        0 => solicit(from, to, target),
        1 => built(from, to, 255, 133, [0; 4], &[]),
        _ => ping(from, to, &data),
    })
}

/// Where the ICMPv6 message begins and what its checksum should be.
fn right_sum(packet: &[u8]) -> Option<(usize, u16)> {
    let sliced = etherparse::SlicedPacket::from_ip(packet).ok()?;
    let (Some(etherparse::NetSlice::Ipv6(ip)), Some(etherparse::TransportSlice::Icmpv6(icmp))) =
        (sliced.net, sliced.transport)
    else {
        return None;
    };
    let header = ip.header();
    let sum = icmp.icmp_type().calc_checksum(header.source(), header.destination(), icmp.payload()).ok()?;
    // Not from the header's payload length: a mutation may have made that 0.
    Some((40 + ip.extensions().slice().len(), sum))
}

fn resum(packet: &mut [u8]) {
    if let Some((at, sum)) = right_sum(packet) {
        packet[at + 2..at + 4].copy_from_slice(&sum.to_be_bytes());
    }
}

/// Somebody else's opinion of the answer: whole, summed right, from us, to no address of ours.
fn judge(packet: &[u8]) {
    let sliced = etherparse::SlicedPacket::from_ip(packet).unwrap();
    let (Some(etherparse::NetSlice::Ipv6(ip)), Some(etherparse::TransportSlice::Icmpv6(icmp))) =
        (sliced.net, sliced.transport)
    else {
        panic!("not ICMPv6 in IPv6: {packet:02x?}");
    };
    let (from, to) = (ip.header().source_addr(), ip.header().destination_addr());
    assert_eq!(usize::from(ip.header().payload_length()) + 40, packet.len());
    assert!(icmp.is_checksum_valid(ip.header().source(), ip.header().destination()));
    assert!([OURS, ROUTER].contains(&from) && ![OURS, ROUTER].contains(&to) && to != NOBODY);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..160)) {
        if let Ok(packet) = asked(&bytes) {
            judge(&packet);
        }
    }

    #[test]
    fn mutated_packets_never_panic_and_answers_hold(
        mut packet in answerable_packet(),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..6),
        resummed: bool,
    ) {
        for (at, octet) in changes {
            let at = at.index(packet.len());
            packet[at] = octet;
        }
        if resummed {
            resum(&mut packet);
        }
        if let Ok(back) = asked(&packet) {
            judge(&back);
        }
    }

    /// RFC: L2 (no ping-pong between two routers)
    #[test]
    fn an_answer_is_not_answered(packet in answerable_packet()) {
        let ra = policy();
        if let Ok(back) = asked(&packet) {
            prop_assert!(asked(&back).is_err());
            for link_local in [PEER, group("fe80::3")] {
                let other = Link { link_local, router_addrs: &[STRANGER], mtu: 1280, ra: &ra };
                prop_assert!(answer(&other, &back).is_err());
            }
        }
    }
}

fn seconds(s: f64) -> Duration {
    Duration::from_secs_f64(s)
}

#[test]
fn every_tunnel_comes_up_every_400_seconds_without_bursts() {
    let mut schedule = AdvertSchedule::new();
    for n in 0..100_000 {
        assert!(schedule.add(TunnelId(n)));
    }
    let mut last = vec![None; 100_000];
    for tick in 0..9000 {
        let now = TICK * tick;
        let due: Vec<_> = schedule.due(now).collect();
        assert_eq!(due.len(), 25, "at {now:?}");
        for id in due {
            let before = last[id.0 as usize].replace(now);
            assert!(before.is_none_or(|before| now - before == seconds(400.0)));
        }
    }
    assert!(last.iter().all(|at| at.is_some_and(|at| at > seconds(498.0))));
}

#[test]
fn a_shell_that_sleeps_until_the_next_turn_misses_none() {
    let mut schedule = AdvertSchedule::new();
    assert_eq!(schedule.poll_timeout(), None);
    let mut now = seconds(5000.03);
    for n in 0..3 {
        schedule.add(TunnelId(n));
    }
    let mut turns = vec![Vec::new(); 3];
    for _ in 0..30 {
        now = now.max(schedule.poll_timeout().unwrap());
        for id in schedule.due(now) {
            turns[id.0 as usize].push(now);
        }
    }
    for times in turns {
        assert!(times.len() >= 9);
        // The first turn may come while the ring still catches up with the clock.
        assert!(times.windows(2).skip(1).all(|w| w[1] - w[0] == seconds(400.0)), "{times:?}");
    }
}

#[test]
fn a_machine_that_slept_sends_no_burst_and_no_early_turn() {
    let mut schedule = AdvertSchedule::new();
    (0..40_000).for_each(|n| assert!(schedule.add(TunnelId(n))));
    let mut last: HashMap<TunnelId, Duration> = HashMap::new();
    let mut now = Duration::ZERO;
    for step in 0..20_000 {
        now += if step % 5000 == 4999 { seconds(3600.0) } else { TICK };
        let due: Vec<_> = schedule.due(now).collect();
        assert!(due.len() <= 100, "{} at once", due.len());
        for id in due {
            let before = last.insert(id, now);
            assert!(before.is_none_or(|before| now - before >= seconds(399.0)));
        }
    }
    assert_eq!(last.len(), 40_000);
}

proptest! {
    #[test]
    fn adding_and_removing_agrees_with_a_set(ops in proptest::collection::vec((any::<bool>(), 0..50u32), 0..400)) {
        let mut schedule = AdvertSchedule::new();
        let mut twin = std::collections::BTreeSet::new();
        for (add, n) in ops {
            let id = TunnelId(n);
            let (ours, theirs) =
                if add { (schedule.add(id), twin.insert(id)) } else { (schedule.remove(id), twin.remove(&id)) };
            prop_assert_eq!(ours, theirs);
        }
        prop_assert_eq!(schedule.len(), twin.len());
        let mut seen: Vec<_> = (0..4000).flat_map(|n| schedule.due(TICK * n).collect::<Vec<_>>()).collect();
        seen.sort();
        prop_assert_eq!(seen, twin.into_iter().collect::<Vec<_>>());
    }
}
