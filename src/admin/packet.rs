//! A packet in words, for `show drops`, `trace` and `capture`: addresses, protocol, ports, and what became of it.
//!
//! Reads as much as is there; of a packet that was cut short, its beginning. Knows nothing of tunnels' names: whoever calls
//! gives them.

use std::fmt::Write;

use serde::{Deserialize, Serialize};
use sixway_dataplane::packet::batch::{Arrival, Sender};
use sixway_dataplane::packet::icmp::IcmpError;
use sixway_dataplane::packet::view::{self, View};
use sixway_dataplane::samples::Course;
use sixway_dataplane::update::TunnelId;
use sixway_dataplane::verdict::{PuntClass, Verdict};

/// A packet of a watched tunnel, or one that was dropped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Microseconds since 1970.
    pub at_us: u64,
    /// The tunnel by its name; `null`: none.
    pub tunnel: Option<String>,
    /// Who sent it: `kernel`, `ENCAPSULATION ADDRESS[:PORT]`, or `-` where that is not known any more; `to` before a peer that
    /// it was being sent to.
    pub from: String,
    /// What became of it, in words.
    pub verdict: String,
    /// Why it was dropped, by its name in docs/counters.md.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The packet in words.
    pub summary: String,
    /// Its octets in all.
    pub len: usize,
    /// The first of them, in hexadecimal.
    pub octets: String,
    /// Packets before it that found no room on their way to the viewer.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub missed: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Seen {
    /// The octets that were kept.
    pub fn bytes(&self) -> Vec<u8> {
        let digit = |c: u8| (c as char).to_digit(16).unwrap_or(0) as u8;
        self.octets.as_bytes().chunks_exact(2).map(|two| digit(two[0]) << 4 | digit(two[1])).collect()
    }
}

/// Octets as two hexadecimal digits each.
pub fn hex(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(2 * bytes.len());
    bytes.iter().for_each(|b| {
        let _never_fails = write!(out, "{b:02x}");
    });
    out
}

/// Who sent it.
pub fn sender(arrival: Option<Arrival>) -> String {
    match arrival {
        None => "-".to_owned(),
        Some(Arrival::Tun) => "kernel".to_owned(),
        Some(Arrival::Wire(s)) => peer(&s),
    }
}

fn peer(s: &Sender) -> String {
    if s.remote.port() == 0 { format!("proto41 {}", s.remote.ip()) } else { format!("udp {}", s.remote) }
}

/// Who sent a packet that was dropped, or to whom it was on its way.
pub fn course(course: Course) -> String {
    match course {
        Course::Unknown => sender(None),
        Course::From(arrival) => sender(Some(arrival)),
        Course::To(s) => format!("to {}", peer(&s)),
    }
}

/// What became of it; `name` gives the names of tunnels.
pub fn verdict(verdict: &Verdict, name: &dyn Fn(TunnelId) -> String) -> String {
    match verdict {
        Verdict::ToWire(path, _) => format!("into tunnel {}", name(path.tunnel)),
        Verdict::ToTun => "to the kernel".to_owned(),
        Verdict::Punt(class) => format!("to the control plane: {}", class_words(*class)),
        Verdict::ToTunAndPunt(class) => {
            format!("to the kernel, a copy to the control plane: {}", class_words(*class))
        }
        Verdict::Drop(reason, None) => format!("dropped: {}", reason.name()),
        Verdict::Drop(reason, Some(error)) => {
            format!("dropped: {}; its sender is told: {}", reason.name(), error_words(*error))
        }
    }
}

fn class_words(class: PuntClass) -> &'static str {
    match class {
        PuntClass::Link => "link-local or neighbour discovery",
        PuntClass::Candidate => "the peer may have moved; this packet goes no further",
        PuntClass::EchoReply => "perhaps the answer to a probe",
        PuntClass::Datagram => "a datagram that is not IPv6",
        PuntClass::Watched => "a copy",
    }
}

fn error_words(error: IcmpError) -> String {
    match error {
        IcmpError::PacketTooBig(mtu) => format!("packet too big, MTU {mtu}"),
        IcmpError::HopLimitExceeded => "time exceeded".to_owned(),
        IcmpError::NoRoute => "no route".to_owned(),
        IcmpError::AddressUnreachable => "address unreachable".to_owned(),
        IcmpError::Prohibited => "administratively prohibited".to_owned(),
        IcmpError::SourcePolicy => "source address failed policy".to_owned(),
    }
}

/// One line about a packet of which `bytes` are the beginning and `len` octets there were.
pub fn summary(bytes: &[u8], len: usize) -> String {
    let Some(fixed) = bytes.first_chunk::<40>().filter(|header| header[0] >> 4 == 6) else {
        return if bytes.is_empty() { "octets not kept".to_owned() } else { "not IPv6".to_owned() };
    };
    // The header alone is always whole, whatever was cut behind it.
    let mut header = *fixed;
    header[4..6].fill(0);
    let Ok(seen) = View::parse(&header) else { return "not IPv6".to_owned() };
    let (upper, protocol) = match view::upper_layer(bytes) {
        Some((at, protocol, false)) => (bytes.get(at..).unwrap_or_default(), protocol),
        Some((_, protocol, true)) => (&[][..], protocol),
        None => (&[][..], bytes[6]),
    };
    let what = upper_words(protocol, upper);
    format!("{} > {}: {what}, {len} octets, hop limit {}", seen.source, seen.destination, seen.hop_limit)
}

fn upper_words(protocol: u8, upper: &[u8]) -> String {
    let ports = |name: &str| match upper.first_chunk::<4>() {
        Some([a, b, c, d]) => {
            format!("{name} {} > {}", u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]))
        }
        None => name.to_owned(),
    };
    match (protocol, upper) {
        (view::TCP, _) => ports("TCP"),
        (view::UDP, _) => ports("UDP"),
        (view::ICMPV6, [kind, code, ..]) => format!("ICMPv6 {}", icmp_words(*kind, *code)),
        (59, _) => "no payload".to_owned(),
        (protocol, _) => format!("protocol {protocol}"),
    }
}

fn icmp_words(kind: u8, code: u8) -> String {
    let name = match kind {
        1 => "unreachable",
        2 => "packet too big",
        3 => "time exceeded",
        4 => "parameter problem",
        128 => "echo request",
        129 => "echo reply",
        133 => "router solicitation",
        134 => "router advertisement",
        135 => "neighbour solicitation",
        136 => "neighbour advertisement",
        _ => return format!("type {kind} code {code}"),
    };
    if kind < 128 { format!("{name} code {code}") } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(next: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![0x60, 0, 0, 0, 0, payload.len() as u8, next, 64];
        for last in [1, 2] {
            out.extend_from_slice(&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        }
        out.extend_from_slice(payload);
        out
    }

    #[test]
    fn packets_are_told_in_a_line_even_when_cut_short() {
        let udp = packet(17, &[0x0f, 0xa0, 0x13, 0x88, 0, 8, 0, 0]);
        let ends = "2001:db8::1 > 2001:db8::2: ";
        assert_eq!(summary(&udp, 48), format!("{ends}UDP 4000 > 5000, 48 octets, hop limit 64"));
        assert_eq!(summary(&udp[..42], 48), format!("{ends}UDP, 48 octets, hop limit 64"));
        assert_eq!(
            summary(&packet(58, &[2, 0]), 42),
            format!("{ends}ICMPv6 packet too big code 0, 42 octets, hop limit 64")
        );
        assert_eq!(
            (summary(&udp[..39], 39), summary(&[], 9)),
            ("not IPv6".to_owned(), "octets not kept".to_owned())
        );
    }

    #[test]
    fn octets_survive_the_way_to_the_viewer() {
        let all: Vec<u8> = (0..=255).collect();
        let seen = Seen {
            at_us: 0,
            tunnel: None,
            from: sender(None),
            verdict: String::new(),
            reason: None,
            summary: String::new(),
            len: 256,
            octets: hex(&all),
            missed: 0,
        };
        assert_eq!(seen.bytes(), all);
    }
}
