//! Bodies about single packets: headers, ICMPv6 errors of our own, what the router answers inside a tunnel, probes.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use sixway::endpoint::session::{Candidate, Origin, Output, Prober};
use sixway::nd::codec;
use sixway::nd::session::{Link, RaPolicy, advertisement, answer};
use sixway_dataplane::encap::{inner_class, outer_tos, proto41};
use sixway_dataplane::io::vnet;
use sixway_dataplane::manners::Manners;
use sixway_dataplane::packet::checksum::{Sum, icmpv6};
use sixway_dataplane::packet::icmp::{IcmpError, LARGEST, build};
use sixway_dataplane::packet::view::{self, HEADER, ICMPV6, View};
use sixway_dataplane::update::TunnelId;

/// The router's own address here.
const ROUTER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// An IPv6 header is read within its octets, and says what stands there.
pub(crate) fn view(octets: &[u8]) {
    if let Some((at, _, _)) = view::upper_layer(octets) {
        assert!(at >= HEADER && octets.len() > 6);
    }
    let Ok(seen) = View::parse(octets) else { return };
    assert!(seen.len >= HEADER && seen.len <= octets.len());
    assert_eq!(seen.len - HEADER, usize::from(u16::from_be_bytes([octets[4], octets[5]])));
    let _any = seen.icmpv6_type(octets);
    let mut changed = octets.to_vec();
    view::set_traffic_class(&mut changed, !seen.traffic_class);
    view::set_hop_limit(&mut changed, seen.hop_limit.wrapping_sub(1));
    let again = View::parse(&changed).unwrap();
    let back = View { traffic_class: seen.traffic_class, hop_limit: seen.hop_limit, ..again };
    assert_eq!(back, seen, "nothing else has changed");
    assert_eq!(again.traffic_class, !seen.traffic_class);
    for outer in 0..=255 {
        // Not even the outer mark of another packet changes an inner DSCP (RFC 2983 section 3).
        let marked = inner_class(Manners::PLAIN, seen.traffic_class, outer);
        assert!(marked.is_none_or(|class| class >> 2 == seen.traffic_class >> 2));
    }
    assert_eq!(outer_tos(Manners::PLAIN, seen.traffic_class) & 3, seen.traffic_class & 3);
}

/// The outer header of protocol 41 and the kernel's description of a super-packet.
pub(crate) fn outer(octets: &[u8]) {
    if let Ok(header) = proto41::unwrap(octets) {
        assert!(header.len >= 20 && header.len <= header.total && header.total <= octets.len());
        assert_eq!(octets[9], proto41::PROTOCOL);
        let out = proto41::wrap(
            (header.source, header.destination),
            (header.tos, 64),
            header.total as u16,
            7,
            false,
        );
        let whole = [&out[..], &vec![0; header.total.saturating_sub(20)]].concat();
        let again = proto41::unwrap(&whole).unwrap();
        assert_eq!(
            (again.source, again.destination, again.tos),
            (header.source, header.destination, header.tos)
        );
    }
    if let Some(header) = octets.first_chunk::<{ vnet::LEN }>()
        && let Ok(offload) = vnet::parse(header, 0)
    {
        assert_eq!(vnet::parse(&vnet::emit(&offload, 60, false), 0), Ok(offload));
        let _shorter = vnet::parse(header, usize::from(octets[0]));
    }
}

/// An error of ours is a packet of its own, about the packet that it is about, and never about what none may be sent for
/// (RFC 4443 section 2.4).
pub(crate) fn icmp(octets: &[u8]) {
    let Some((how, packet)) = octets.split_first() else { return };
    let error = match how % 5 {
        0 => IcmpError::PacketTooBig(u16::from(*how) * 257),
        1 => IcmpError::HopLimitExceeded,
        2 => IcmpError::NoRoute,
        3 => IcmpError::AddressUnreachable,
        _ => IcmpError::Prohibited,
    };
    let mut out = [0; LARGEST];
    if let Some(len) = build(error, ROUTER, packet, &mut out) {
        check_error(&out[..len], packet, ROUTER);
    }
}

/// What holds for every error about `offending`.
pub(crate) fn check_error(error: &[u8], offending: &[u8], source: Ipv6Addr) {
    let (seen, about) = (View::parse(error).unwrap(), View::parse(offending).unwrap());
    assert_eq!((seen.len, seen.source, seen.destination), (error.len(), source, about.source));
    assert!(error.len() <= LARGEST && seen.next_header == ICMPV6);
    let message = &error[HEADER..];
    assert!((1..=4).contains(&message[0]), "it is an error");
    let mut blank = message.to_vec();
    blank[2..4].fill(0);
    assert_eq!(icmpv6(seen.source, seen.destination, &blank), message[2..4]);
    let quote = &message[8..];
    assert_eq!(quote, &offending[..quote.len()], "it quotes what it is about");
    assert!(quote.len() == about.len || error.len() == LARGEST, "as much as fits");
    assert!(!about.source.is_multicast() && !about.source.is_unspecified());
    let is_too_big = message[0] == 2;
    assert!(!about.destination.is_multicast() || is_too_big);
    if is_too_big {
        assert!(u32::from_be_bytes([message[4], message[5], message[6], message[7]]) >= 1280);
    }
    if let Some((at, ICMPV6, false)) = view::upper_layer(&offending[..about.len]) {
        let kind = offending[at];
        assert!(kind >= 128 && kind != 137, "no error about an error or a redirect");
    }
}

/// What our end of a tunnel's link answers is whole, from us, and not answered in turn.
pub(crate) fn nd(octets: &[u8]) {
    let ra = RaPolicy { on: true, ..RaPolicy::default() };
    let link_local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    let link = Link { link_local, router_addrs: &[ROUTER], mtu: 1480, ra: &ra };
    assert!(advertisement(&link).is_some());
    let mut packet = octets.to_vec();
    if let (Ok(seen), true) = (View::parse(octets), octets.len() > HEADER + 4) {
        // Half of the inputs with the sum put right: the fuzzer finds none by itself.
        if octets[HEADER + 2] & 1 == 0 {
            packet.truncate(seen.len);
            if packet.len() > HEADER + 4 {
                packet[HEADER + 2..HEADER + 4].fill(0);
                let sum = icmpv6(seen.source, seen.destination, &packet[HEADER..]);
                packet[HEADER + 2..HEADER + 4].copy_from_slice(&sum);
            }
        }
    }
    let _either = codec::parse(&packet);
    let Ok(reply) = answer(&link, &packet) else { return };
    let seen = View::parse(&reply).unwrap();
    assert_eq!(seen.len, reply.len());
    assert!(seen.source == link_local || seen.source == ROUTER, "it comes from us");
    assert!(codec::parse(&reply).is_ok());
    assert!(answer(&link, &reply).is_err(), "an answer is not answered");
}

/// No packet but the echoed nonce moves an endpoint (draft-gai-intarea-ip-tunnel-node-security; RFC 8085 section 3.5).
pub(crate) fn probe(octets: &[u8]) {
    let mut prober = Prober::new(StdRng::seed_from_u64(octets.len() as u64));
    let at = |n: u8| SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, n), 3653);
    let (tunnel, local) = (TunnelId(1), at(200));
    let current = octets.first().filter(|b| *b & 1 == 1).map(|_| at(2));
    prober.handle_candidate(
        Duration::ZERO,
        Candidate {
            tunnel,
            sender: at(1),
            local,
            current,
            inner_source: Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 9),
            probe_source: ROUTER,
        },
    );
    for (n, packet) in octets.chunks(80).enumerate() {
        let now = Duration::from_millis(n as u64);
        let mut marked = packet.to_vec();
        if marked.len() > HEADER + 8 {
            marked[HEADER + 4..HEADER + 6].copy_from_slice(&prober.ident().to_be_bytes());
        }
        for packet in [packet, &marked] {
            let origin = Origin { tunnel, sender: at(1), local, current, echo: None };
            prober.handle_packet(now, &origin, packet);
        }
    }
    prober.handle_timeout(Duration::from_secs(60));
    while let Some(output) = prober.poll_output() {
        assert!(matches!(output, Output::Probe { .. }), "nobody knows the nonce: {output:?}");
    }
}

/// The sum over all, as a receiver takes it.
pub(crate) fn is_intact(packet: &[u8], protocol: u8) -> bool {
    let upper = (packet.len() - HEADER) as u32;
    Sum::pseudo(&packet[8..40], upper, protocol).plus(&packet[HEADER..]).is_intact()
}
