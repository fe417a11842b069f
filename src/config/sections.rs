//! The tables `[router]`, `[admin]`, `[udp]`, `[proto41]` and `[offload]`: their keys, defaults and bounds.
//!
//! Knows nothing of tunnels; what must fit between tables is `check`'s business.

use std::path::PathBuf;
use std::time::Duration;

use sixway_dataplane::encap::OUTER_TTL;
use sixway_dataplane::knobs::{Knob, Knobs};

use super::address::{narrow_prefix, outer_address, router_address};
use super::source::{Complaint, Report, Section, choose};
use super::{
    Admin, DEFAULT_CAPACITY, DEFAULT_TUN, DEFAULT_UDP_PORT, Forwarding, MAX_TUNNELS, MAX_WORKERS, Proto41,
    Receive, Router, RouterAddress, Routes, Udp,
};

/// Reads `[router]`; the capacity is what is written there or the default, whatever the tunnels need.
pub(crate) fn router(report: &mut Report<'_>, section: &Section<'_, '_>) -> Router {
    let tun = section.text(report, "tun", tun_name).unwrap_or_else(|| DEFAULT_TUN.to_owned());
    let forwarding = section.text(report, "forwarding", |text| choose(&FORWARDING, text));
    let workers = section.integer(report, "workers", 0..=MAX_WORKERS.into(), "0 is one a processor core");
    let linger = section.integer(report, "linger_us", 0..=MAX_LINGER, "0 is to sleep at once");
    let why = "0 is never to look for longer than `linger_us`";
    let linger_most = section.integer(report, "linger_most_us", 0..=MAX_LINGER_MOST, why);
    let why = "each tunnel that may exist takes memory";
    let capacity = section.integer(report, "capacity", 1..=MAX_TUNNELS, why);
    let ttl = section.integer(report, "ttl", 1..=255, "that many routers may be on the way");
    Router {
        tun,
        address: addresses(report, section),
        outer: section.text(report, "outer", outer_address),
        routes: routes(report, section),
        forwarding: forwarding.unwrap_or(Forwarding::Check),
        hairpin: section.boolean(report, "hairpin").unwrap_or(true),
        workers: workers.and_then(|n| u16::try_from(n).ok()).unwrap_or(0),
        pin: section.boolean(report, "pin").unwrap_or(false),
        linger: Duration::from_micros(linger.map_or(LINGER, u64::from)),
        linger_most: linger_most.map(|us| Duration::from_micros(us.into())),
        ttl: ttl.and_then(|n| u8::try_from(n).ok()).unwrap_or(OUTER_TTL),
        capacity: capacity.unwrap_or(DEFAULT_CAPACITY),
    }
}

fn addresses(report: &mut Report<'_>, section: &Section<'_, '_>) -> Vec<RouterAddress> {
    let written = section.texts(report, "address", router_address).unwrap_or_default();
    let distinct = section.distinct(report, "address", written, |address| address.addr);
    distinct.into_iter().map(|address| address.value).collect()
}

fn routes(report: &mut Report<'_>, section: &Section<'_, '_>) -> Routes {
    if !section.has("routes") {
        return Routes::Aggregate;
    }
    if section.is_text("routes") {
        let only = |text: &str| match text {
            "aggregate" => Ok(()),
            _ => Err(Complaint::new(
                "it is \"aggregate\" or a list of prefixes",
                "write `routes = \"aggregate\"`, `routes = []` or `routes = [\"2001:db8:100::/40\"]`",
            )),
        };
        section.text(report, "routes", only);
        return Routes::Aggregate;
    }
    let written = section.texts(report, "routes", narrow_prefix).unwrap_or_default();
    let distinct = section.distinct(report, "routes", written, |prefix| *prefix);
    Routes::List(distinct.into_iter().map(|prefix| prefix.value).collect())
}

fn tun_name(text: &str) -> Result<String, Complaint> {
    let next = format!("write a name such as '{DEFAULT_TUN}'");
    if text.is_empty() || text.len() > MAX_TUN_NAME {
        return Err(Complaint::new(format!("an interface name has 1 to {MAX_TUN_NAME} characters"), next));
    }
    let refused = |c: char| c.is_whitespace() || c.is_control() || "/:%".contains(c);
    if text.contains(refused) || text == "." || text == ".." {
        return Err(Complaint::new("an interface name has no space, '/', ':' or '%' in it", next));
    }
    Ok(text.to_owned())
}

/// Reads `[admin]`; the default follows the TUN device's name.
pub(crate) fn admin(report: &mut Report<'_>, section: &Section<'_, '_>, tun: &str) -> Admin {
    let socket = section.text(report, "socket", socket_path);
    Admin { socket: socket.unwrap_or_else(|| super::usual_socket(tun)) }
}

fn socket_path(text: &str) -> Result<PathBuf, Complaint> {
    if !text.starts_with('/') {
        let why = "commands run in another directory would not find the socket";
        return Err(Complaint::new(why, "write an absolute path"));
    }
    if text.len() > MAX_SOCKET_PATH || text.contains('\0') {
        let why = format!("a socket's path has at most {MAX_SOCKET_PATH} octets, none of them zero");
        return Err(Complaint::new(why, "choose a shorter path, such as one under /run/sixway"));
    }
    Ok(PathBuf::from(text))
}

/// Reads `[udp]`.
pub(crate) fn udp(report: &mut Report<'_>, section: &Section<'_, '_>) -> Udp {
    Udp { ports: ports(report, section).unwrap_or_else(|| vec![DEFAULT_UDP_PORT]) }
}

/// Reads `[offload]`: every key is a knob's name, and all are on unless told otherwise.
pub(crate) fn offload(report: &mut Report<'_>, section: &Section<'_, '_>) -> Knobs {
    Knob::ALL.iter().fold(Knobs::ON, |knobs, knob| {
        let on = section.boolean(report, knob.name()).unwrap_or(true);
        knobs.with(*knob, on)
    })
}

fn ports(report: &mut Report<'_>, section: &Section<'_, '_>) -> Option<Vec<u16>> {
    let written = section.integers(report, "ports", 1..=u16::MAX.into(), "UDP ports")?;
    let distinct = section.distinct(report, "ports", written, |port| *port);
    Some(distinct.into_iter().filter_map(|port| u16::try_from(port.value).ok()).collect())
}

/// Reads `[proto41]`.
pub(crate) fn proto41(report: &mut Report<'_>, section: &Section<'_, '_>) -> Proto41 {
    let receive = section.text(report, "receive", |text| choose(&RECEIVE, text));
    Proto41 { enabled: section.boolean(report, "enabled"), receive: receive.unwrap_or(Receive::Auto) }
}

/// Waking a thread up takes about as long, microseconds.
const LINGER: u64 = 30;
/// More would be a busy loop by another name, microseconds.
const MAX_LINGER: u32 = 1000;
/// Longest of `linger_most_us`.
const MAX_LINGER_MOST: u32 = 10_000;
/// An interface name's longest, without the closing zero (Linux `IFNAMSIZ`).
const MAX_TUN_NAME: usize = 15;
/// A Unix socket path's longest, without the closing zero (Linux `sockaddr_un`).
const MAX_SOCKET_PATH: usize = 107;
const FORWARDING: [(&str, Forwarding); 2] = [("check", Forwarding::Check), ("set", Forwarding::Set)];
const RECEIVE: [(&str, Receive); 3] =
    [("auto", Receive::Auto), ("packet", Receive::Packet), ("raw", Receive::Raw)];
