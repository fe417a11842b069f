//! Any octets as an ICMPv4 error about a packet of ours: read within bounds, believed within bounds, and what is told on
//! is an error that may be sent. What the bounds are is worked out here a second time.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use sixway::pmtu::codec::{Carrier, Kind, Quote, Report, parse, parse_reply};
use sixway::pmtu::doubt;
use sixway::pmtu::session::{Inside, Mode, Output, Paths, Terms};
use sixway_dataplane::packet::icmp::{LARGEST, build_quoted};
use sixway_dataplane::packet::view::{HEADER, View, upper_layer};
use sixway_dataplane::update::TunnelId;

use super::packets::is_intact;

const ROUTER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
/// Whose packets are quoted: by protocol 41, by UDP with errors heeded, by UDP with probes.
const PEERS: [(Carrier, Ipv4Addr, Mode); 3] = [
    (Carrier::Proto41, Ipv4Addr::new(192, 0, 2, 1), Mode::Dynamic),
    (Carrier::Udp, Ipv4Addr::new(192, 0, 2, 2), Mode::Dynamic),
    (Carrier::Udp, Ipv4Addr::new(192, 0, 2, 3), Mode::Probe(ROUTER)),
];
const CEILING: u16 = 1480;

pub(crate) fn quote(octets: &[u8]) {
    let _either = parse_reply(octets);
    let Some((&how, rest)) = octets.split_first() else { return };
    let whole = if how & 1 == 0 { rest.to_vec() } else { error(how, rest) };
    let Ok(report) = parse(&whole) else { return };
    check_report(&report, &whole);
    believe(&report);
}

/// An ICMPv4 error with a right sum about a packet to one of [`PEERS`]: the fuzzer finds none of that by itself. From the
/// octets come type, code, length and MTU, then the quote from its third octet on.
fn error(how: u8, octets: &[u8]) -> Vec<u8> {
    let Some((&[code, length, high, low], quoted)) = octets.split_first_chunk::<4>() else {
        return octets.to_vec();
    };
    let kind = [3, 3, 11, 12][usize::from(how >> 1 & 3)];
    let mut message = vec![kind, code, 0, 0, 0, length, high, low];
    message.extend(quote_of(how, quoted));
    let sum = message
        .chunks(2)
        .fold(0u64, |sum, w| sum + (u64::from(w[0]) << 8 | u64::from(w.get(1).copied().unwrap_or(0))));
    let folded = (sum & 0xffff) + (sum >> 16);
    let right = !(((folded & 0xffff) + (folded >> 16)) as u16);
    message[2..4].copy_from_slice(&right.to_be_bytes());
    let mut out = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 60, 1, 0, 0, 198, 51, 100, 1, 10, 0, 0, 1];
    out.extend(message);
    out
}

fn quote_of(how: u8, octets: &[u8]) -> Vec<u8> {
    let mut quote = vec![0x45, 0];
    quote.extend_from_slice(octets);
    let (carrier, peer, _) = PEERS[usize::from(how >> 3 & 3) % PEERS.len()];
    if let (true, Some(header)) = (how & 0x20 == 0, quote.first_chunk_mut::<20>()) {
        header[9] = if carrier == Carrier::Proto41 { 41 } else { 17 };
        header[16..].copy_from_slice(&peer.octets());
    }
    quote
}

/// Nothing is read that is not there, and nothing behind the quoted packet's own end.
fn check_report(report: &Report<'_>, whole: &[u8]) {
    let quote = &report.quote;
    let ends = |part: &[u8]| whole.windows(part.len().max(1)).any(|w| w == part) || part.is_empty();
    assert!(ends(quote.inner), "the packet inside is a piece of the message");
    let headers = if quote.carrier == Carrier::Udp { 28 } else { 20 };
    assert!(quote.inner.len() + headers <= usize::from(quote.total).max(headers));
    assert!(quote.carrier == Carrier::Udp || (quote.local.port(), quote.remote.port()) == (0, 0));
}

/// What a router makes of it: nothing but a question; and when the same is said about that, an MTU within its bounds, forgotten
/// in time, and an error for the sender inside.
fn believe(report: &Report<'_>) {
    let mut paths = Paths::new(StdRng::seed_from_u64(7));
    let second = Duration::from_secs;
    for (n, (carrier, _, mode)) in PEERS.into_iter().enumerate() {
        let overhead = if carrier == Carrier::Udp { 28 } else { 20 };
        paths.begin(second(1), TunnelId(n as u32), Terms { mode, ceiling: CEILING, overhead });
    }
    while paths.poll_output().is_some() {}
    let owner = owner(report.quote.carrier, report.quote.remote);
    let inside = if report.quote.inner.len() < HEADER { Inside::Cut } else { Inside::Plausible };
    paths.handle_error(second(2), owner, report.kind, &report.quote, inside);
    let mut lowered = None;
    let mut is_true = false;
    while let Some(output) = paths.poll_output() {
        match output {
            Output::Ask { tunnel, size, secret, .. } => {
                assert!(!is_true && owner == Some(tunnel) && size <= CEILING, "one question, about its own");
                is_true = true;
                let inner = doubt::question(ROUTER, &secret, size);
                let overhead = if report.quote.carrier == Carrier::Udp { 28 } else { 20 };
                let quote = Quote { total: size + overhead, whole: true, inner: &inner, ..report.quote };
                paths.handle_error(second(2), owner, report.kind, &quote, Inside::Wrong);
            }
            Output::Set { tunnel, mtu, whole } => {
                assert!(is_true, "nothing is believed that nobody repeats");
                assert!(matches!(report.kind, Kind::TooBig(_)) && owner == Some(tunnel), "only its own");
                assert!((1280..=CEILING).contains(&mtu) && whole == (mtu > 1280));
                assert!(report.quote.whole, "a packet that may be cut is not too long");
                lowered = Some(tunnel);
            }
            Output::Tell { error, packet } => {
                assert!(owner.is_some(), "nobody is told of a stranger's");
                assert_eq!(packet, report.quote.inner);
                let mut out = [0; LARGEST];
                if let Some(len) = build_quoted(error, ROUTER, &packet, &mut out) {
                    check_told(&out[..len], &packet);
                }
            }
            Output::Probe { .. } => panic!("a probe waits for its time"),
        }
    }
    // What was believed of a path that is not probed is forgotten after ten minutes (RFC 1191 section 6.3).
    paths.handle_timeout(second(2 + 600));
    let back = std::iter::from_fn(|| paths.poll_output())
        .any(|output| matches!(output, Output::Set { tunnel, mtu: CEILING, whole: true } if Some(tunnel) == lowered));
    let is_probed = lowered.is_some_and(|id| PEERS[id.0 as usize].2 != Mode::Dynamic);
    assert!(lowered.is_none() || is_probed || back, "it is forgotten");
}

fn owner(carrier: Carrier, remote: SocketAddrV4) -> Option<TunnelId> {
    let found = PEERS.iter().position(|(by, peer, _)| *by == carrier && peer == remote.ip());
    found.map(|n| TunnelId(n as u32))
}

/// The error that goes on: whole, summed, to the sender of what it quotes, never about an error.
fn check_told(error: &[u8], quoted: &[u8]) {
    let (seen, about) = (View::parse(error).unwrap(), View::parse_cut(quoted).unwrap());
    assert_eq!((seen.len, seen.source, seen.destination), (error.len(), ROUTER, about.source));
    assert!(is_intact(error, seen.next_header) && error.len() <= LARGEST);
    let quote = &error[HEADER + 8..];
    assert_eq!(quote, &quoted[..quote.len()]);
    assert!(!about.source.is_multicast() && !about.source.is_unspecified());
    if error[HEADER] == 2 {
        assert!(u32::from_be_bytes([error[44], error[45], error[46], error[47]]) >= 1280);
    } else {
        assert!(error[HEADER] == 1 && !about.destination.is_multicast());
    }
    if let Some((at, 58, false)) = upper_layer(quote) {
        assert!(quote.get(at).is_none_or(|kind| *kind >= 128 && *kind != 137), "no error about an error");
    }
}
