//! The table `[tsp]`: the server for tunnels that clients ask for by TSP (RFC 5572). Without the table there is none.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::time::Duration;

use sixway_dataplane::update::{MAX_MTU, MIN_MTU};

use super::Config;
use super::address::outer_address;
use super::source::{Complaint, Report, Section, choose};
use crate::auth::{Mechanism, Site};
use crate::broker::PoolKind;
use crate::tsp::codec::{Mode, PORT};
use crate::tsp::terms::{MAX_BROKERS, MAX_RESOLVERS, Offer, Step};
use crate::tsp::xml::{BrokerAt, Name};

/// `[tsp]`: the server.
#[derive(Clone, Debug, PartialEq)]
pub struct Tsp {
    /// Where it listens, TCP and UDP.
    pub listen: SocketAddrV4,
    /// Types of tunnel that it gives out.
    pub tunnels: Vec<Mode>,
    /// Ways to log in, the preferred one first.
    pub mechanisms: Vec<Mechanism>,
    /// What DIGEST-MD5 hashes besides.
    pub realm: String,
    /// Other brokers.
    pub brokers: Vec<BrokerAt>,
    /// The step at which everybody is sent there.
    pub redirect: Option<Step>,
    /// Seconds that a tunnel lasts after its client was heard.
    pub lifetime: u32,
    /// Whether clients are told minutes, as the RFC has it.
    pub in_minutes: bool,
    /// Seconds between signs of life that everybody is told; `None`: as the client asks.
    pub keepalive: Option<u32>,
    /// The most seconds between signs of life of clients that do not say who they are; those get it that ask for none.
    pub anonymous_keepalive: u32,
    /// Resolvers that clients are told.
    pub dns: Vec<Ipv6Addr>,
    /// What follows a user's name in the name of its client.
    pub domain: Option<Name>,
    /// Whether a tunnel by protocol 41 may end at another address than the one that asks.
    pub proxy: bool,
    /// Our outer address as clients are told, where a NAT is before us.
    pub public_address: Option<Ipv4Addr>,
    /// The largest inner packet in octets.
    pub mtu: u16,
    /// Whether router advertisements are sent inside the tunnels.
    pub ra: bool,
}

impl Tsp {
    /// What sessions are told. `salt` is random.
    pub fn offer(&self, salt: [u8; 32]) -> Offer {
        Offer {
            tunnels: self.tunnels.clone(),
            mechanisms: self.mechanisms.clone(),
            site: Site { realm: self.realm.clone(), service: "tsp", salt },
            brokers: self.brokers.clone(),
            redirect: self.redirect,
            lifetime: u64::from(self.lifetime) / if self.in_minutes { 60 } else { 1 },
            keepalive: self.keepalive,
            anonymous_keepalive: Some(self.anonymous_keepalive),
            dns: self.dns.clone(),
            domain: self.domain.clone(),
            proxy: self.proxy,
            public_address: self.public_address,
        }
    }

    /// How long a tunnel lasts after its client was heard.
    pub fn lasts(&self) -> Duration {
        Duration::from_secs(self.lifetime.into())
    }
}

/// Reads `[tsp]`; `outer` is the address that tunnels end at.
pub(crate) fn tsp(report: &mut Report<'_>, section: &Section<'_, '_>, outer: Option<Ipv4Addr>) -> Tsp {
    let anywhere = SocketAddrV4::new(outer.unwrap_or(Ipv4Addr::UNSPECIFIED), PORT);
    let mtu = section.integer(report, "mtu", MIN_MTU.into()..=MAX_MTU.into(), "octets of the largest packet");
    let lifetime =
        section.integer(report, "lifetime", 1..=MOST_SECONDS, "seconds that a silent tunnel lasts");
    let keepalive = section.integer(report, "keepalive", 0..=3600, "seconds; 0 is what the client asks for");
    let nobodys = section.integer(report, "anonymous_keepalive", 5..=600, "seconds");
    let listed = section.texts(report, "mechanisms", mechanism);
    let mechanisms = listed.map(|all| section.distinct(report, "mechanisms", all, |one| one.name()));
    let mechanisms =
        mechanisms.map_or(MECHANISMS.to_vec(), |all| all.into_iter().map(|one| one.value).collect());
    let listed = section.texts(report, "tunnels", |text| choose(&TUNNELS, text));
    let tunnels = listed.map(|all| section.distinct(report, "tunnels", all, |one| one.name()));
    let tunnels = tunnels
        .map_or(TUNNELS.map(|(_, mode)| mode).to_vec(), |all| all.into_iter().map(|one| one.value).collect());
    Tsp {
        listen: section.text(report, "listen", super::dtcp::endpoint_at(PORT)).unwrap_or(anywhere),
        tunnels,
        mechanisms,
        realm: section.text(report, "realm", realm).unwrap_or_else(|| REALM.to_owned()),
        brokers: brokers(report, section),
        redirect: section.text(report, "redirect", |text| choose(&STEPS, text)),
        lifetime: lifetime.unwrap_or(WEEK),
        in_minutes: section.text(report, "lifetime_unit", |text| choose(&UNITS, text)).unwrap_or(false),
        keepalive: keepalive.filter(|seconds| *seconds > 0),
        anonymous_keepalive: nobodys.unwrap_or(ANONYMOUS_KEEPALIVE),
        dns: resolvers(report, section),
        domain: section.text(report, "domain", domain),
        proxy: section.boolean(report, "proxy").unwrap_or(false),
        public_address: section.text(report, "public_address", outer_address),
        mtu: mtu.and_then(|mtu| u16::try_from(mtu).ok()).unwrap_or(MIN_MTU),
        ra: section.boolean(report, "ra").unwrap_or(false),
    }
}

fn resolvers(report: &mut Report<'_>, section: &Section<'_, '_>) -> Vec<Ipv6Addr> {
    let listed = section.texts(report, "dns", resolver).unwrap_or_default();
    if listed.len() > MAX_RESOLVERS {
        let what = format!("`dns` in [tsp] has {} entries", listed.len());
        let why = format!("a reply with more than {MAX_RESOLVERS} does not fit what clients read");
        report.add(section.at("dns"), what, why, "leave some out");
    }
    listed.into_iter().map(|one| one.value).collect()
}

fn brokers(report: &mut Report<'_>, section: &Section<'_, '_>) -> Vec<BrokerAt> {
    let read = |text: &str| {
        BrokerAt::parse(text).ok_or_else(|| {
            Complaint::new("it is no broker", "write 'ts1.example.net', '192.0.2.7' or '[2001:db8::7]:3653'")
        })
    };
    let listed = section.texts(report, "brokers", read).unwrap_or_default();
    if listed.len() > MAX_BROKERS {
        let what = format!("`brokers` in [tsp] has {} entries", listed.len());
        report.add(section.at("brokers"), what, format!("clients keep {MAX_BROKERS}"), "leave some out");
    }
    listed.into_iter().map(|one| one.value).collect()
}

/// Reports what `[tsp]` wants of other tables that do not have it, and what does not go together in it.
/// `pools_are_known`: there are no others than those that were read.
pub(crate) fn together(
    report: &mut Report<'_>,
    config: &Config,
    section: &Section<'_, '_>,
    pools_are_known: bool,
) {
    let Some(tsp) = &config.tsp else { return };
    if pools_are_known && !config.pools.iter().any(|pool| pool.kind == PoolKind::Pairs) {
        report.add(
            section.at("listen"),
            "[tsp] has no addresses to give out",
            "each client gets an address of a pair",
            "add for example `[[pool]]` with `prefix = \"2001:db8:ffff::/64\"` and `pairs = true`",
        );
    }
    if tsp.redirect.is_some() && tsp.brokers.is_empty() && section.is_sound(report, "brokers") {
        let why = "there is nowhere to send clients to";
        report.add(
            section.at("redirect"),
            "`redirect` in [tsp] stands without `brokers`",
            why,
            "add `brokers = [...]`, or take it out",
        );
    }
    let only41 = tsp.tunnels == [Mode::V6V4] && section.is_sound(report, "tunnels");
    if config.proto41.enabled == Some(false) && only41 {
        let why = "`enabled = false` in [proto41] turns that off";
        report.add(
            section.at("tunnels"),
            "[tsp] gives out tunnels by protocol 41 only",
            why,
            "add \"v6udpv4\" to `tunnels`",
        );
    }
    for (key, is_empty) in [("mechanisms", tsp.mechanisms.is_empty()), ("tunnels", tsp.tunnels.is_empty())] {
        if is_empty && section.has(key) && section.is_sound(report, key) {
            let next = "name one, or take [tsp] out";
            report.add(
                section.at(key),
                format!("`{key}` in [tsp] is empty"),
                "no client could connect",
                next,
            );
        }
    }
}

fn mechanism(text: &str) -> Result<Mechanism, Complaint> {
    let known = Mechanism::parse(text).filter(|one| KNOWN.contains(one));
    known.ok_or_else(|| {
        let why = if text.eq_ignore_ascii_case("PASSDSS-3DES-1") {
            "it rests on SHA-1, DSA of 1024 bits and Triple-DES, and whoever knows it knows DIGEST-MD5 too"
        } else {
            "it is no mechanism that this server has"
        };
        let names: Vec<&str> = KNOWN.iter().map(|one| one.name()).collect();
        Complaint::new(why, format!("write some of {}", names.join(", ")))
    })
}

fn realm(text: &str) -> Result<String, Complaint> {
    let odd = |c: char| !c.is_ascii_graphic() || "\"\\,".contains(c);
    if text.is_empty() || text.len() > 128 || text.contains(odd) {
        let why = "deployed clients read it with neither quotes nor escapes";
        return Err(Complaint::new(
            why,
            "write 1 to 128 letters, digits, dots and the like, as in 'broker.example'",
        ));
    }
    Ok(text.to_owned())
}

fn domain(text: &str) -> Result<Name, Complaint> {
    Name::parse(text)
        .ok_or_else(|| Complaint::new("it is no domain name", "write a name as in 'users.example.net'"))
}

fn resolver(text: &str) -> Result<Ipv6Addr, Complaint> {
    text.parse().map_err(|_| Complaint::new("it is no IPv6 address", "write an address as in '2001:db8::53'"))
}

const TUNNELS: [(&str, Mode); 2] = [("v6v4", Mode::V6V4), ("v6udpv4", Mode::V6UdpV4)];
const STEPS: [(&str, Step); 3] =
    [("version", Step::Version), ("login", Step::Login), ("create", Step::Create)];
const UNITS: [(&str, bool); 2] = [("seconds", false), ("minutes", true)];
/// In clear the secret could be read by everybody: PLAIN is there only where it is written.
const MECHANISMS: [Mechanism; 2] = [Mechanism::DigestMd5, Mechanism::ScramSha256];
const KNOWN: [Mechanism; 4] =
    [Mechanism::DigestMd5, Mechanism::ScramSha256, Mechanism::Plain, Mechanism::Anonymous];
const REALM: &str = "sixway";
/// Signs of life of anonymous clients.
const ANONYMOUS_KEEPALIVE: u32 = 30;
/// What every server that was seen said.
const WEEK: u32 = 604_800;
/// A year.
const MOST_SECONDS: u32 = 31_536_000;
