//! The tables `[dhcpv6]` and `[[dhcpv6_host]]`: what clients inside tunnels are given and told. Without the first there is
//! no server; a client that is set something aside by its DUID has a table of the second kind.

use std::collections::HashSet;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::time::Duration;

use dhcproto::v6::{DhcpOption, NtpSuboption};
use sixway_dataplane::update::Ipv6Prefix;

use super::Config;
use super::address::narrow_prefix;
use super::schema;
use super::source::{At, Complaint, Report, Section};
use super::tunnel::called;
use crate::dhcpv6::codec::{INFINITY, Name, Opt, code};
use crate::dhcpv6::server::parse_duid;
use crate::dhcpv6::session::{Reserved, Terms};

/// Octets that all options together may have, so that an answer with prefixes and addresses fits 1280 octets.
const MOST_OCTETS: usize = 800;

/// Lists of addresses by their keys.
const ADDRESSES: [(&str, u16); 6] = [
    ("sip", code::SIP_SERVERS),
    ("dns", code::DNS_SERVERS),
    ("nis", code::NIS_SERVERS),
    ("nisp", code::NISP_SERVERS),
    ("ntp", code::SNTP_SERVERS),
    ("bcmcs", code::BCMCS_SERVERS),
];
/// Lists of names by their keys.
const NAMES: [(&str, u16); 5] = [
    ("sip_domains", code::SIP_NAMES),
    ("domains", code::DOMAIN_LIST),
    ("nis_domain", code::NIS_NAME),
    ("nisp_domain", code::NISP_NAME),
    ("bcmcs_domains", code::BCMCS_NAMES),
];
/// Times for clients by their keys.
const TIMES: [(&str, u16); 2] = [("sol_max_rt", code::SOL_MAX_RT), ("inf_max_rt", code::INF_MAX_RT)];

/// What both tables say.
pub(crate) struct Served {
    /// Inside tunnels.
    pub(crate) inside: Option<Terms>,
    /// On links.
    pub(crate) links: Option<Links>,
    /// Tunnels that clients are expected in, and where each name stands.
    tunnels: Vec<At<Box<str>>>,
}

/// Reads both tables.
pub(crate) fn served(report: &mut Report<'_>, root: &Section<'_, '_>) -> Served {
    let section = root.table(report, "dhcpv6", &schema::DHCPV6);
    let mut terms = dhcpv6(report, &section);
    let tunnels = hosts(report, root, &mut terms);
    let links = links(report, &section);
    Served { inside: root.has("dhcpv6").then_some(terms), links, tunnels }
}

/// Reports clients that are expected in a tunnel of the configuration which is not there. What is granted is called
/// `USER@PROTOCOL` and comes and goes.
pub(crate) fn together(report: &mut Report<'_>, config: &Config, served: &Served) {
    if served.tunnels.is_empty() {
        return;
    }
    let known: HashSet<&str> = config.tunnels.iter().map(|tunnel| &*tunnel.name).collect();
    let strange = |name: &At<Box<str>>| !name.value.contains('@') && !known.contains(&*name.value);
    for name in served.tunnels.iter().filter(|name| strange(name)) {
        let what = format!("`tunnel` in [[dhcpv6_host]] is '{}'", name.value);
        let next = "write the `name` of a [[tunnel]], USER@tsp or USER@dtcp for one that is granted, or leave it out";
        report.add(
            name.at,
            what,
            "there is no tunnel of that name, so nobody would have what is set aside",
            next,
        );
    }
}

/// Reads `[dhcpv6]`; the server's own DUID is not in the file.
fn dhcpv6(report: &mut Report<'_>, section: &Section<'_, '_>) -> Terms {
    let seconds = "seconds; 4294967295 is for ever";
    let preferred = section.integer(report, "preferred", 60..=INFINITY, seconds).unwrap_or(PREFERRED);
    let valid = section.integer(report, "valid", 60..=INFINITY, seconds);
    let valid = valid.unwrap_or(preferred.saturating_mul(2));
    if preferred > valid && ["preferred", "valid"].iter().all(|key| section.is_sound(report, key)) {
        let what = format!("`valid` in [dhcpv6] is {valid}, and `preferred` is {preferred}");
        let why = "what is no longer valid is not preferred either";
        report.add(section.at("valid"), what, why, "write a longer `valid` or a shorter `preferred`");
    }
    let preference = section.integer(report, "preference", 0..=255, "255 is taken at once");
    let refresh = section.integer(report, "refresh_time", 600..=INFINITY - 1, "RFC 8415 section 21.23");
    let decline = section.integer(report, "decline_time", 0..=31_536_000, "seconds");
    let most =
        section.integer(report, "bindings_per_tunnel", 1..=1024, "prefixes and addresses in one tunnel");
    let relays = section.texts(report, "relays", relay).unwrap_or_default();
    let supplied = section.integers(report, "relay_supplied", 1..=u16::MAX.into(), "codes of options");
    let supplied = codes_for_relays(report, section, supplied.unwrap_or_default());
    let requestors = section.texts(report, "lease_query", requestor).unwrap_or_default();
    let always = section.integers(report, "always", 1..=u16::MAX.into(), "codes of options");
    let always = always.unwrap_or_default().into_iter().filter_map(|at| u16::try_from(at.value).ok());
    Terms {
        duid: Vec::new(),
        preferred,
        valid,
        rapid_commit: section.boolean(report, "rapid_commit").unwrap_or(false),
        preference: preference.and_then(|n| u8::try_from(n).ok()),
        options: options(report, section),
        refresh,
        always: always.collect(),
        decline: Duration::from_secs(decline.unwrap_or(86_400).into()),
        most: most.unwrap_or(16) as usize,
        reserved: std::collections::HashMap::new(),
        lines: std::collections::HashMap::new(),
        relays: relays.into_iter().map(|at| at.value).collect(),
        reconfigure: section.boolean(report, "reconfigure").unwrap_or(true),
        listeners: LISTENERS,
        supplied,
        requestors: requestors.into_iter().map(|at| at.value).collect(),
        authenticates: false,
        keys: std::collections::HashMap::new(),
    }
}

/// How many clients of one tunnel are remembered to be told of changes, beside those that are where their bindings say.
const LISTENERS: usize = 64;

/// Codes of options that relays may supply: none that the server itself speaks by.
fn codes_for_relays(report: &mut Report<'_>, section: &Section<'_, '_>, codes: Vec<At<u32>>) -> Vec<u16> {
    let known: Vec<u16> = codes.into_iter().filter_map(|at| u16::try_from(at.value).ok()).collect();
    if let Some(own) = known.iter().find(|code| !code::is_suppliable(**code)) {
        let what = format!("`relay_supplied` in [dhcpv6] names option {own}");
        let why = "a server and its clients speak by it, so no relay can supply it";
        report.add(section.at("relay_supplied"), what, why, "leave it out");
    }
    known
}

/// Links that are served beside the tunnels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Links {
    /// The interfaces, at least one.
    pub interfaces: Vec<String>,
    /// The `dhcp6s.conf` that holds for all of them.
    pub config: PathBuf,
}

/// Reads `interfaces` and `link_config` of `[dhcpv6]`; without the first there are no links.
fn links(report: &mut Report<'_>, section: &Section<'_, '_>) -> Option<Links> {
    let interfaces = section.texts(report, "interfaces", interface);
    let config = section.text(report, "link_config", |text| Ok(PathBuf::from(text)));
    let interfaces: Vec<String> = interfaces?.into_iter().map(|at| at.value).collect();
    if let Some(twice) = interfaces.iter().enumerate().find(|(n, name)| interfaces[..*n].contains(name)) {
        let what = format!("'{}' stands twice in `interfaces` of [dhcpv6]", twice.1);
        report.add(section.at("interfaces"), what, "one server serves a link", "leave one of them out");
    }
    let config = config.unwrap_or_else(|| PathBuf::from(LINK_CONFIG));
    (!interfaces.is_empty()).then_some(Links { interfaces, config })
}

impl Config {
    /// What is given out or set aside here, and what that is called: pools, what is behind tunnels, what is set aside for
    /// clients in them, and the router's own addresses. Links must have nothing in common with it. A tunnel to most of the
    /// world is none of it: it is the way out.
    pub fn given_out(&self) -> Vec<(Ipv6Prefix, String)> {
        let pools = self.pools.iter().map(|pool| (pool.prefix, format!("[[pool]] {}", pool.prefix)));
        let own =
            self.router.address.iter().map(|own| (Ipv6Prefix::host(own.addr), "[router] address".to_owned()));
        let mut all: Vec<(Ipv6Prefix, String)> = pools.chain(own).collect();
        for tunnel in &self.tunnels {
            let behind = tunnel.prefixes.iter().filter(|prefix| prefix.prefix_len() >= LEAST_OF_ITS_OWN);
            all.extend(behind.map(|prefix| (*prefix, called(&tunnel.name))));
        }
        let sets = self.dhcpv6.iter().flat_map(|terms| terms.reserved.values().flatten());
        all.extend(sets.flat_map(|set| &set.prefixes).map(|prefix| (*prefix, "[[dhcpv6_host]]".to_owned())));
        all
    }
}

/// Prefixes of tunnels that are shorter are routes to the world, and not somebody's own.
const LEAST_OF_ITS_OWN: u8 = 20;

/// A name that an interface can have.
fn interface(text: &str) -> Result<String, Complaint> {
    let fits = (1..=15).contains(&text.len()) && !text.contains(['/', ' ']);
    let what = "an interface's name has 1 to 15 characters, without blanks and '/'";
    fits.then(|| text.to_owned()).ok_or_else(|| Complaint::new(what, "write it as `ip link` does"))
}

/// Where WIDE's dhcp6s has its configuration.
const LINK_CONFIG: &str = "/etc/wide-dhcpv6/dhcp6s.conf";

fn options(report: &mut Report<'_>, section: &Section<'_, '_>) -> Vec<Opt> {
    let mut all = Vec::new();
    for (key, code) in ADDRESSES {
        let listed: Vec<Ipv6Addr> =
            section.texts(report, key, address).unwrap_or_default().into_iter().map(|at| at.value).collect();
        if listed.is_empty() {
            continue;
        }
        if code == code::SNTP_SERVERS {
            let servers = listed.iter().map(|addr| NtpSuboption::ServerAddress(*addr)).collect();
            all.push(Opt::Leaf(DhcpOption::NtpServer(servers)));
        }
        all.push(Opt::Addresses(code, listed));
    }
    for (key, code) in NAMES {
        let listed: Vec<Name> =
            section.texts(report, key, name).unwrap_or_default().into_iter().map(|at| at.value).collect();
        if !listed.is_empty() {
            all.push(Opt::Names(code, listed));
        }
    }
    for (key, code) in TIMES {
        let seconds = section.integer(report, key, 60..=86_400, "seconds (RFC 8415 section 21.24)");
        all.extend(seconds.map(|seconds| Opt::Seconds(code, seconds)));
    }
    all.sort_by_key(Opt::code);
    let mut octets = Vec::new();
    all.iter().for_each(|option| option.emit(&mut octets));
    if octets.len() > MOST_OCTETS {
        let what = format!("the options in [dhcpv6] take {} octets", octets.len());
        let why = format!("an answer fits a packet of 1280 octets with {MOST_OCTETS} of them");
        report.add(section.at("dns"), what, why, "leave out what clients need least");
    }
    all
}

/// Reads every `[[dhcpv6_host]]` into `terms`; returns the tunnels that they name.
fn hosts(report: &mut Report<'_>, root: &Section<'_, '_>, terms: &mut Terms) -> Vec<At<Box<str>>> {
    let mut tunnels = Vec::new();
    let mut all: Vec<(Ipv6Prefix, usize)> = Vec::new();
    for section in root.tables(report, "dhcpv6_host", &schema::DHCPV6_HOST) {
        let duid = section.required(report, "duid", duid);
        if !root.has("dhcpv6") && tunnels.is_empty() && all.is_empty() {
            let why = "there is no DHCPv6 server without that table, so nobody would have what is set aside";
            let next = "write [dhcpv6], or leave [[dhcpv6_host]] out";
            report.add(section.at("duid"), "[[dhcpv6_host]] stands here without [dhcpv6]", why, next);
        }
        let tunnel = section.text(report, "tunnel", |text| Ok(Box::<str>::from(text)));
        tunnels.extend(tunnel.clone().map(|value| At { value, at: section.at("tunnel") }));
        let networks = section.texts(report, "prefixes", network).unwrap_or_default();
        let hosts = section.texts(report, "addresses", address).unwrap_or_default();
        let hosts = hosts.into_iter().map(|at| (Ipv6Prefix::host(at.value), at.at));
        let set: Vec<(Ipv6Prefix, usize)> =
            networks.into_iter().map(|at| (at.value, at.at)).chain(hosts).collect();
        let prefixes: Vec<Ipv6Prefix> = set.iter().map(|(prefix, _)| *prefix).collect();
        all.extend(set);
        let Some(duid) = duid else { continue };
        let excluded = excluded(report, &section, &prefixes);
        terms.reserved.entry(duid.into()).or_default().push(Reserved { tunnel, prefixes, excluded });
    }
    all.sort_unstable();
    for pair in all.windows(2) {
        let [(first, one), (second, two)] = pair else { continue };
        if first.covers(*second) {
            let what = format!("{second} is set aside twice");
            let why = format!("{first} is on line {} already", report.line(*one.min(two)));
            report.add(*one.max(two), what, why, "give each client something of its own");
        }
    }
    tunnels
}

/// What of a client's prefixes is its link's: a part of one of them, of each one at most.
fn excluded(report: &mut Report<'_>, section: &Section<'_, '_>, prefixes: &[Ipv6Prefix]) -> Vec<Ipv6Prefix> {
    let parts = section.texts(report, "excluded", narrow_prefix).unwrap_or_default();
    let within = |part: Ipv6Prefix| prefixes.iter().find(|p| **p != part && p.covers(part)).copied();
    for (n, part) in parts.iter().enumerate() {
        let around = within(part.value);
        let earlier = parts.get(..n).unwrap_or_default();
        let what = match around {
            None => format!("{} is no part of one of the `prefixes`", part.value),
            Some(wide) if earlier.iter().any(|other| within(other.value) == Some(wide)) => {
                format!("{} is the second part of {wide} that is excluded", part.value)
            }
            Some(_) => continue,
        };
        let why = "of each delegated prefix one part can be the link's (RFC 6603)";
        report.add(part.at, what, why, "write one smaller prefix within each of the `prefixes` at most");
    }
    parts.into_iter().map(|part| part.value).collect()
}

fn duid(text: &str) -> Result<Vec<u8>, Complaint> {
    let next = "write pairs of hexadecimal digits, with colons between them or without, as in '00:03:00:01:02:00:00:00:53:02'";
    parse_duid(text).ok_or_else(|| Complaint::new("it is no DUID of 1 to 130 octets", next))
}

/// What a relay calls an interface, and an address on the link behind it.
fn relay(text: &str) -> Result<(Box<[u8]>, Ipv6Addr), Complaint> {
    let next =
        "write what the relay calls the interface, a blank and an address, such as 'eth7 2001:db8:6::1'";
    let (name, addr) =
        text.rsplit_once(' ').ok_or_else(|| Complaint::new("there is no address in it", next))?;
    let addr = addr.parse().map_err(|_| Complaint::new("it ends in no IPv6 address", next))?;
    Ok((name.as_bytes().into(), addr))
}

/// Where somebody is who may ask who has what: an address, or a prefix.
fn requestor(text: &str) -> Result<Ipv6Prefix, Complaint> {
    let next =
        "write an address or a prefix, such as '2001:db8:53::/48', or 'fe80::/10' for whoever is in a tunnel";
    let prefix = text.parse::<Ipv6Prefix>().ok().or_else(|| text.parse().ok().map(Ipv6Prefix::host));
    let prefix = prefix.ok_or_else(|| Complaint::new("it is neither an IPv6 address nor a prefix", next))?;
    if prefix.addr().is_multicast() {
        return Err(Complaint::new("nobody asks from a multicast address", next));
    }
    Ok(prefix)
}

fn address(text: &str) -> Result<Ipv6Addr, Complaint> {
    let next = "write an address such as '2001:db8:53::53'";
    let addr: Ipv6Addr = text.parse().map_err(|_| Complaint::new("it is no IPv6 address", next))?;
    if addr.is_unspecified() || addr.is_multicast() || addr.is_loopback() || addr.is_unicast_link_local() {
        return Err(Complaint::new("a client cannot use it from where it is", next));
    }
    Ok(addr)
}

fn network(text: &str) -> Result<Ipv6Prefix, Complaint> {
    let prefix = narrow_prefix(text)?;
    if prefix.prefix_len() > 64 {
        return Err(Complaint::new(
            "networks of hosts are a /64 or larger",
            "write single addresses into `addresses`",
        ));
    }
    Ok(prefix)
}

fn name(text: &str) -> Result<Name, Complaint> {
    let why = "a domain name has labels of 1 to 63 letters, digits, '-' and '_', with no '-' at either end";
    Name::from_text(text).ok_or_else(|| Complaint::new(why, "write a name such as 'example.com'"))
}

/// The preferred lifetime when nothing else is said, in seconds.
const PREFERRED: u32 = 3600;
