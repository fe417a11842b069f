//! How tunnels treat their packets: the keys of `[[tunnel]]` and `[[tunnel_range]]` that are left out in most files, and
//! `[guard]`.
//!
//! Knows nothing of outer addresses and prefixes; what a key makes of packets is the data plane's business.

use std::net::Ipv6Addr;

use sixway_dataplane::manners::{Dscp, Manners};
use sixway_dataplane::update::{MIN_MTU, Meter, Outer, Rate};

use super::source::{Complaint, Report, Section, choose};

/// How a tunnel's MTU is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pmtu {
    /// It is what is written; outer packets may be fragmented (RFC 4213 section 3.2.1).
    #[default]
    Static,
    /// Routers on the way say it (RFC 4213 section 3.2.2).
    Dynamic,
    /// It is tried (RFC 8899).
    Probe,
}

/// What few tunnels ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Care {
    /// How the MTU is found; what is written is then the most that is looked for.
    pub pmtu: Pmtu,
    /// The peer's address that answers probes.
    pub echo: Option<Ipv6Addr>,
    /// How packets are treated.
    pub manners: Manners,
    /// What may be carried.
    pub meter: Meter,
}

/// `[guard]`: what holds for all tunnels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    /// ICMPv6 errors a second.
    pub icmp_errors: Rate,
    /// ICMPv6 errors a second about packets of one tunnel.
    pub icmp_errors_of_tunnel: Rate,
    /// Whether who sends from outside his prefixes is told.
    pub tell_source: bool,
    /// Whether packets with routing headers come out of tunnels.
    pub source_routes: bool,
    /// How many tunnels a packet may carry inside itself.
    pub nesting: u8,
}

/// `[leased]`: what tunnels ask for that DTCP, TSP and other protocols grant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leased(Care);

impl Leased {
    /// What a tunnel asks for whose client is at this address inside, if it was given one: that is who answers probes. A
    /// tunnel without has its MTU told by routers.
    pub fn care(&self, client: Option<Ipv6Addr>) -> Care {
        let pmtu = match (self.0.pmtu, client) {
            (Pmtu::Probe, None) => Pmtu::Dynamic,
            (pmtu, _) => pmtu,
        };
        Care { pmtu, echo: client.filter(|_| pmtu == Pmtu::Probe), ..self.0 }
    }
}

/// Reads `[leased]`.
pub(crate) fn leased(report: &mut Report<'_>, section: &Section<'_, '_>) -> Leased {
    let pmtu = section.text(report, "pmtu", |text| choose(&PMTU, text)).unwrap_or_default();
    Leased(Care { pmtu, echo: None, manners: manners(report, section), meter: meter(report, section) })
}

/// The largest MTU that a path of Ethernet carries, outer header included.
const ETHERNET: u16 = 1500;
const KBIT: u64 = 1000 / 8;
const MEBIBYTE: u64 = 1 << 20;

/// Reads what a tunnel asks for.
pub(crate) fn care(report: &mut Report<'_>, section: &Section<'_, '_>) -> Care {
    let pmtu = section.text(report, "pmtu", |text| choose(&PMTU, text)).unwrap_or_default();
    let is_range = section.place() == super::schema::TUNNEL_RANGE.title;
    let echo = if is_range { None } else { section.text(report, "echo", echo_address) };
    if pmtu == Pmtu::Probe && echo.is_none() {
        let (what, next) = if is_range {
            (
                "`pmtu` in [[tunnel_range]] is \"probe\"",
                "write `pmtu = \"dynamic\"`, or the tunnels one by one",
            )
        } else {
            (
                "`echo` is missing in [[tunnel]]",
                "write an address of the peer, `echo = \"2001:db8:100:1::1\"`",
            )
        };
        let why = "`pmtu = \"probe\"` asks an address of the peer inside the tunnel for echoes";
        report.add(section.at("pmtu"), what, why, next);
    }
    Care { pmtu, echo, manners: manners(report, section), meter: meter(report, section) }
}

fn manners(report: &mut Report<'_>, section: &Section<'_, '_>) -> Manners {
    let hidden = section.text(report, "ecn", |text| choose(&ECN, text)).unwrap_or(false);
    let clamped = section.boolean(report, "mss_clamp").unwrap_or(false);
    Manners::PLAIN.with_dscp(dscp(report, section)).with_ecn_hidden(hidden).with_clamped(clamped)
}

fn dscp(report: &mut Report<'_>, section: &Section<'_, '_>) -> Dscp {
    if section.has("dscp") && section.is_text("dscp") {
        return section.text(report, "dscp", |text| choose(&DSCP, text)).unwrap_or(Dscp::Pipe(0));
    }
    let code = section.integer(report, "dscp", 0..=63, "a code point has six bits; or write \"uniform\"");
    Dscp::Pipe(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(0))
}

fn meter(report: &mut Report<'_>, section: &Section<'_, '_>) -> Meter {
    let mut limit = |key, why| section.integer(report, key, 1..=u32::MAX, why).map_or(0, u64::from);
    Meter {
        packets_per_second: limit("packets_per_second", "leave it out for no limit"),
        octets_per_second: limit("kbit_per_second", "leave it out for no limit") * KBIT,
        quota: limit("quota_mib", "leave it out for no limit") * MEBIBYTE,
    }
}

/// The default MTU where it is looked for: as much as Ethernet carries.
pub(crate) fn default_mtu(pmtu: Pmtu, outer: Option<&Outer>) -> u16 {
    match (pmtu, outer) {
        (Pmtu::Dynamic | Pmtu::Probe, Some(outer)) => ETHERNET - outer.overhead(),
        (Pmtu::Static, _) | (_, None) => MIN_MTU,
    }
}

fn echo_address(text: &str) -> Result<Ipv6Addr, Complaint> {
    let next = "write an address of the peer that answers echo requests";
    let addr: Ipv6Addr = text.parse().map_err(|_| Complaint::new("it is no IPv6 address", next))?;
    if addr.is_multicast() || addr.is_unspecified() || addr.is_loopback() || addr.is_unicast_link_local() {
        return Err(Complaint::new("the answer could not be told from others'", next));
    }
    Ok(addr)
}

/// Reads `[guard]`.
pub(crate) fn guard(report: &mut Report<'_>, section: &Section<'_, '_>) -> Guard {
    let why = "0 sends none";
    let errors = section.integer(report, "icmp_errors", 0..=MOST_ERRORS, why).unwrap_or(1000);
    let of_tunnel = section.integer(report, "icmp_errors_of_tunnel", 0..=MOST_ERRORS, why).unwrap_or(100);
    let nesting = section.integer(report, "nesting", 0..=8, "0 lets no tunnel through a tunnel");
    Guard {
        icmp_errors: Rate { per_second: errors, burst: errors.div_ceil(5) },
        icmp_errors_of_tunnel: Rate { per_second: of_tunnel, burst: of_tunnel.div_ceil(2) },
        tell_source: section.boolean(report, "tell_source").unwrap_or(false),
        source_routes: section.boolean(report, "source_routes").unwrap_or(false),
        nesting: nesting.and_then(|n| u8::try_from(n).ok()).unwrap_or(4),
    }
}

const MOST_ERRORS: u32 = 1_000_000;
const PMTU: [(&str, Pmtu); 3] =
    [("static", Pmtu::Static), ("dynamic", Pmtu::Dynamic), ("probe", Pmtu::Probe)];
const ECN: [(&str, bool); 2] = [("normal", false), ("compatibility", true)];
const DSCP: [(&str, Dscp); 1] = [("uniform", Dscp::Uniform)];
