//! Why a client's session has ended without a tunnel, in words that say what to do (RFC 5572 appendix B).
//!
//! Pure. Decides only whether it may be better the next time; who asks again is [`super::search`] and its caller.

use std::net::Ipv4Addr;

use super::client::Transport;
use super::codec::{Code, Mode, Status};
use super::search::Place;
use super::xml::Tunnel;

/// The most brokers of a list that are looked at.
const MOST_BROKERS: usize = 50;

/// Why it is over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum End {
    /// The server does not want us, and will not the next time.
    #[error("{0}")]
    Refused(String),
    /// It did not work; the next time it may.
    #[error("{0}")]
    Lost(String),
    /// Nobody answers by this transport.
    #[error("there is no answer")]
    Silent,
    /// The server does not speak this version.
    #[error("the server does not speak this version of TSP")]
    OtherVersion,
    /// Other brokers are to be asked.
    #[error("the server sends us to other brokers")]
    Elsewhere(Vec<Place>),
}

/// What was asked for, as far as a refusal may be about it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) mode: Mode,
    pub(super) claimed: Ipv4Addr,
    pub(super) prefix: Option<u8>,
    pub(super) over: Transport,
}

pub(super) fn lost(why: impl Into<String>) -> End {
    End::Lost(why.into())
}

/// What a status other than success means for us.
pub(super) fn refusal(status: Status, line: &[u8], asked: Asked) -> End {
    let line = line.split(|octet| *octet == b'\n').next().unwrap_or_default();
    let advice = advice(status.code, asked);
    let said = format!("the server said: {}{advice}", shown(line.trim_ascii()));
    match status.code {
        Code::UnsupportedVersion => End::OtherVersion,
        Code::AuthenticationFailed
        | Code::UnsupportedTunnelType
        | Code::InvalidRequest
        | Code::InvalidIpv4
        | Code::InvalidIpv6
        | Code::PrefixUnavailable
        | Code::PrefixUnsupported
        | Code::PrefixMissing
        | Code::PrefixForAnonymous
        | Code::DnsDelegation => End::Refused(said),
        Code::Success
        | Code::NoMoreTunnels
        | Code::ServerError
        | Code::Ipv4InUse
        | Code::InProgress
        | Code::Busy
        | Code::Unknown(_) => End::Lost(said),
    }
}

/// What a user may do about it; empty, or behind a semicolon.
fn advice(code: Code, asked: Asked) -> String {
    let Asked { mode, claimed, prefix, over } = asked;
    let bits = prefix.map_or_else(|| "network".to_owned(), |bits| format!("/{bits}"));
    match code {
        Code::AuthenticationFailed => {
            "; user or password may be wrong, or the account may not log in so".to_owned()
        }
        Code::UnsupportedTunnelType if over == Transport::Tcp => format!(
            "; it gives no {} by TCP: UDP port 3653 is blocked on the way, and behind a NAT a tunnel needs that; have it opened",
            mode.name()
        ),
        Code::UnsupportedTunnelType => {
            format!("; it gives no {} here: ask for another with tunnel=", mode.name())
        }
        Code::InvalidIpv4 => format!(
            "; it sees us at another address than {claimed}: behind a NAT only tunnel=v6udpv4 works; else say \
             our address with client="
        ),
        Code::PrefixUnavailable => {
            format!("; it has no {bits} for us: ask for another length with prefix=, or for none")
        }
        Code::PrefixUnsupported | Code::PrefixMissing => {
            "; ask for another length with prefix=, such as 56, or for none".to_owned()
        }
        Code::PrefixForAnonymous => "; a network needs an account: tsp://alice@...".to_owned(),
        Code::DnsDelegation => "; it does not take our name servers: leave dns_server out".to_owned(),
        Code::NoMoreTunnels => "; its addresses or our quota of tunnels are used up".to_owned(),
        Code::Ipv4InUse => format!(
            "; a tunnel of another account runs from {claimed}; its place is free two minutes after it falls silent"
        ),
        Code::Busy => "; it takes nobody now, and may later".to_owned(),
        Code::ServerError => "; the reason is in the server's log".to_owned(),
        Code::Success
        | Code::UnsupportedVersion
        | Code::InvalidRequest
        | Code::InvalidIpv6
        | Code::InProgress
        | Code::Unknown(_) => String::new(),
    }
}

/// The brokers of a list.
pub(super) fn elsewhere(xml: &[u8]) -> End {
    let Ok(tunnel) = Tunnel::parse(xml.trim_ascii()) else {
        return lost("the server sends us elsewhere, but its list of brokers cannot be read");
    };
    let texts = tunnel.brokers.iter().flat_map(|broker| &broker.0).map(|address| address.text.as_str());
    let mut places: Vec<Place> = Vec::new();
    for place in texts.filter_map(Place::parse).take(MOST_BROKERS) {
        if !places.contains(&place) {
            places.push(place);
        }
    }
    if places.is_empty() {
        return lost("the server sends us elsewhere, and names no broker that can be asked by IPv4");
    }
    End::Elsewhere(places)
}

/// What a stranger said, safe to be shown.
pub(super) fn shown(octets: &[u8]) -> String {
    let text = String::from_utf8_lossy(&octets[..octets.len().min(120)]).into_owned();
    text.trim_end().escape_debug().to_string()
}
