//! How prefixes and outer sides stand in the store: as text that people can read.

use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::num::NonZeroU16;

use sixway_dataplane::update::{Ipv6Prefix, Outer, UdpLocal, UdpRemote};

/// Prefixes, separated by a comma; nothing for none.
pub(super) fn emit_prefixes(prefixes: &[Ipv6Prefix]) -> String {
    let mut text = String::new();
    for prefix in prefixes {
        let comma = if text.is_empty() { "" } else { "," };
        let _never_fails = write!(text, "{comma}{prefix}");
    }
    text
}

/// The reverse of [`emit_prefixes`].
pub(super) fn parse_prefixes(text: &str) -> Option<Vec<Ipv6Prefix>> {
    text.split(',').filter(|part| !part.is_empty()).map(|part| part.parse().ok()).collect()
}

/// `proto41 LOCAL REMOTE`, `udp LOCAL:PORT fixed|port|learn REMOTE:PORT`; `*` where something is open.
pub(super) fn emit_outer(outer: &Outer) -> String {
    let any = |addr: &Option<Ipv4Addr>| addr.map_or_else(|| "*".to_owned(), |a| a.to_string());
    match outer {
        Outer::Proto41 { local, remote } => format!("proto41 {} {remote}", any(local)),
        Outer::Udp { local, remote } => {
            let (kind, at) = match remote {
                UdpRemote::Fixed(at) => ("fixed", at.to_string()),
                UdpRemote::AnyPort { addr, port } => {
                    ("port", format!("{addr}:{}", port.map_or_else(|| "*".to_owned(), |p| p.to_string())))
                }
                UdpRemote::Learned(at) => ("learn", at.map_or_else(|| "*".to_owned(), |at| at.to_string())),
            };
            format!("udp {}:{} {kind} {at}", any(&local.addr), local.port)
        }
    }
}

/// The reverse of [`emit_outer`].
pub(super) fn parse_outer(text: &str) -> Option<Outer> {
    let words: Vec<&str> = text.split(' ').collect();
    match words[..] {
        ["proto41", local, remote] => {
            Some(Outer::Proto41 { local: open(local)?, remote: remote.parse().ok()? })
        }
        ["udp", local, kind, at] => {
            let (addr, port) = local.rsplit_once(':')?;
            let local = UdpLocal { addr: open(addr)?, port: port.parse().ok()? };
            Some(Outer::Udp { local, remote: parse_remote(kind, at)? })
        }
        _ => None,
    }
}

fn parse_remote(kind: &str, at: &str) -> Option<UdpRemote> {
    match kind {
        "fixed" => Some(UdpRemote::Fixed(at.parse().ok()?)),
        "port" => {
            let (addr, port) = at.split_once(':')?;
            Some(UdpRemote::AnyPort { addr: addr.parse().ok()?, port: open::<NonZeroU16>(port)? })
        }
        "learn" => Some(UdpRemote::Learned(open::<SocketAddrV4>(at)?)),
        _ => None,
    }
}

/// `Some(None)` for a star, `None` for nonsense.
fn open<T: std::str::FromStr>(text: &str) -> Option<Option<T>> {
    if text == "*" {
        return Some(None);
    }
    text.parse().ok().map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let at: SocketAddrV4 = "192.0.2.7:4028".parse().unwrap();
        let (v4, port) = (*at.ip(), NonZeroU16::new(9));
        let all = [
            Outer::Proto41 { local: None, remote: v4 },
            Outer::Proto41 { local: Some(v4), remote: v4 },
            Outer::Udp { local: UdpLocal { addr: None, port: 1 }, remote: UdpRemote::Fixed(at) },
            Outer::Udp {
                local: UdpLocal { addr: Some(v4), port: 1 },
                remote: UdpRemote::AnyPort { addr: v4, port: None },
            },
            Outer::Udp {
                local: UdpLocal { addr: None, port: 1 },
                remote: UdpRemote::AnyPort { addr: v4, port },
            },
            Outer::Udp { local: UdpLocal { addr: None, port: 1 }, remote: UdpRemote::Learned(None) },
            Outer::Udp { local: UdpLocal { addr: None, port: 1 }, remote: UdpRemote::Learned(Some(at)) },
        ];
        for outer in all {
            assert_eq!(parse_outer(&emit_outer(&outer)), Some(outer), "{}", emit_outer(&outer));
        }
        let prefixes: Vec<Ipv6Prefix> =
            ["2001:db8::/48", "::1/128"].iter().map(|p| p.parse().unwrap()).collect();
        assert_eq!(parse_prefixes(&emit_prefixes(&prefixes)), Some(prefixes));
        assert_eq!(parse_prefixes(""), Some(vec![]));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in
            ["", "proto41 *", "proto41 x 192.0.2.1", "udp 1 fixed 1", "udp *:1 moon 192.0.2.1:1", "gre * *"]
        {
            assert_eq!(parse_outer(text), None, "{text}");
        }
        assert_eq!(parse_prefixes("2001:db8::/48,x"), None);
    }
}
