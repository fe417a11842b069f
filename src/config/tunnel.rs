//! `[[tunnel]]` and `[[tunnel_range]]`: from tables of the file to tunnels.
//!
//! A range counts up: its name by a decimal number from 0, its prefix by the prefix's own size, its
//! remote by address (protocol 41, or UDP with any port), or by port from the given one to 65535 and
//! then on the next address from the given port again (UDP). Each tunnel is checked by itself here;
//! how tunnels stand to each other is `check`'s business. One with a mistake goes there too, as far as it could be read: with
//! a mistake in the file nothing is run by it.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::ops::Range;

use sixway_dataplane::update::{Ipv6Prefix, MAX_MTU, MIN_MTU, Outer, UdpLocal, UdpRemote};

use super::address::{inner_prefix, martian, narrow_prefix, outer_address, special, udp_local, udp_remote};
use super::care::{Care, Pmtu, care, default_mtu};
use super::schema;
use super::source::{At, Complaint, Report, Section, choose};
use super::{MAX_NAME, MAX_PREFIXES, MAX_RA_PREFIXES, MAX_TUNNELS, Ra, TunnelConfig};

/// What tunnels take from the other tables when they do not say it themselves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Defaults {
    /// Our outer address.
    pub(crate) outer: Option<Ipv4Addr>,
    /// Whether that could be read.
    pub(crate) outer_is_sound: bool,
    /// The first UDP port; `None` when UDP is off.
    pub(crate) udp_port: Option<u16>,
    /// Whether that could be read.
    pub(crate) port_is_sound: bool,
}

impl Defaults {
    /// Whether what this tunnel takes from the other tables is known.
    fn are_known(&self, section: &Section<'_, '_>, outer: &Outer) -> bool {
        let needs_port = matches!(outer, Outer::Udp { .. });
        section.has("local") || (self.outer_is_sound && (self.port_is_sound || !needs_port))
    }
}

/// All tunnels, and the tables they come from.
#[derive(Debug, Default)]
pub(crate) struct Tunnels {
    pub(crate) list: Vec<TunnelConfig>,
    /// In the order of `list`, without gaps.
    pub(crate) blocks: Vec<Block>,
    /// Whether a table is not among them, because too much of it could not be read.
    pub(crate) is_short: bool,
}

/// One table: where its keys stand in the text, and which tunnels it made.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) title: &'static str,
    /// Whether its tunnels have the outer side that is meant, and not [`UNREAD`].
    pub(crate) outer_is_known: bool,
    pub(crate) name_at: usize,
    pub(crate) encap_at: usize,
    pub(crate) remote_at: usize,
    pub(crate) default_route_at: usize,
    prefixes_at: Vec<usize>,
    pub(crate) tunnels: Range<usize>,
}

impl Block {
    /// Where the `n`th prefix of its tunnels stands.
    pub(crate) fn prefix_at(&self, n: usize) -> usize {
        self.prefixes_at.get(n).copied().unwrap_or(self.name_at)
    }
}

/// Stands for an outer side that could not be read: it is like no other one.
const UNREAD: Outer =
    Outer::Udp { local: UdpLocal { addr: None, port: 0 }, remote: UdpRemote::Learned(None) };
/// Stands for a name that could not be read; no name has this character.
pub(crate) const NAMELESS: &str = "?";

/// What a tunnel of this name is called in a mistake.
pub(crate) fn called(name: &str) -> String {
    match name.strip_prefix(NAMELESS) {
        None => format!("tunnel '{name}'"),
        Some("") => "the tunnel whose name cannot be read".to_owned(),
        Some(n) => format!("tunnel {n} of the range whose name cannot be read"),
    }
}

/// Reads all tunnels, those with mistakes as far as they go.
pub(crate) fn tunnels(report: &mut Report<'_>, root: &Section<'_, '_>, defaults: Defaults) -> Tunnels {
    let mut all = Tunnels::default();
    for section in root.tables(report, "tunnel", &schema::TUNNEL) {
        single(report, &section, defaults, &mut all);
    }
    for section in root.tables(report, "tunnel_range", &schema::TUNNEL_RANGE) {
        range(report, &section, defaults, &mut all);
    }
    all
}

fn single(report: &mut Report<'_>, section: &Section<'_, '_>, defaults: Defaults, all: &mut Tunnels) {
    let name = section.required(report, "name", tunnel_name);
    let outer = outer(report, section, defaults);
    let before = report.count();
    let written = section.texts(report, "prefixes", inner_prefix).unwrap_or_default();
    let written = section.distinct(report, "prefixes", written, |prefix| *prefix);
    let prefixes: Vec<Ipv6Prefix> = written.iter().map(|prefix| prefix.value).collect();
    at_most(report, section, "prefixes", prefixes.len(), MAX_PREFIXES);
    let all_read = report.count() == before;
    let default_route = section.boolean(report, "default_route").unwrap_or(false);
    let care = care(report, section);
    let mtu = mtu(report, section, care.pmtu, outer.as_ref());
    let ra = ra(report, section, default_route || prefixes.contains(&Ipv6Prefix::ALL));
    // A prefix that could not be read may be the one that is missed here.
    if all_read {
        leads_everywhere(report, section, default_route, &prefixes);
        advertises_its_own(report, section, &ra, &prefixes);
    }
    let outer = outer.filter(|outer| passes(report, section, *outer, defaults, ""));
    let outer = outer.filter(|outer| defaults.are_known(section, outer));
    // Mistakes do not keep it from being compared with the rest.
    let prefixes_at = written.iter().map(|prefix| prefix.at).collect();
    all.blocks.push(block(section, prefixes_at, outer.is_some(), all.list.len()..all.list.len() + 1));
    all.list.push(TunnelConfig {
        name: name.unwrap_or(NAMELESS).into(),
        outer: outer.unwrap_or(UNREAD),
        prefixes,
        mtu,
        default_route,
        ra,
        care: unusual(care),
    });
}

fn range(report: &mut Report<'_>, section: &Section<'_, '_>, defaults: Defaults, all: &mut Tunnels) {
    section.demand(report, "count");
    let count = section.integer(report, "count", 1..=MAX_TUNNELS, "a range has at least one tunnel");
    let name = section.required(report, "name", tunnel_name);
    let outer = outer(report, section, defaults);
    let prefix = section.required(report, "prefix", narrow_prefix);
    let care = care(report, section);
    let mtu = mtu(report, section, care.pmtu, outer.as_ref());
    let ra = ra(report, section, false);
    if !ra.prefix.is_empty() {
        report.add(
            section.at("ra"),
            "`ra` in [[tunnel_range]] has a `prefix`",
            "the tunnels of a range have different prefixes",
            "leave `prefix` out of `ra`, or write the tunnels one by one",
        );
    }
    let fits = |count: &u32| range_fits(report, section, name.unwrap_or(NAMELESS), *count, all.list.len());
    let (Some(count), Some(prefix)) = (count.filter(fits), prefix) else {
        all.is_short = true;
        return;
    };
    let outer = outer.filter(|outer| defaults.are_known(section, outer));
    let (name, is_known) = (name.unwrap_or(NAMELESS), outer.is_some());
    let seed = Seed { name, outer: outer.unwrap_or(UNREAD), prefix, mtu, ra, care };
    let first = all.list.len();
    all.list.reserve(count as usize);
    for n in 0..count {
        // One that cannot be is reported, and the range is left out.
        let Some(tunnel) = seed.grow(report, section, defaults, n) else {
            all.is_short = true;
            return all.list.truncate(first);
        };
        all.list.push(tunnel);
    }
    all.blocks.push(block(section, vec![section.at("prefix")], is_known, first..all.list.len()));
}

/// What the tunnels of a range have in common, and what they count up from.
struct Seed<'d> {
    name: &'d str,
    outer: Outer,
    prefix: Ipv6Prefix,
    mtu: u16,
    ra: Ra,
    care: Care,
}

impl Seed<'_> {
    /// The `n`th tunnel from 0; `None` when the counting leads somewhere it cannot, which is reported.
    fn grow(
        &self,
        report: &mut Report<'_>,
        section: &Section<'_, '_>,
        defaults: Defaults,
        n: u32,
    ) -> Option<TunnelConfig> {
        let name = format!("{}{n}", self.name);
        let Some(outer) = nth_outer(self.outer, n) else {
            overrun(report, section, "remote", &name, "255.255.255.255");
            return None;
        };
        let Some(prefix) = nth_prefix(self.prefix, n) else {
            overrun(report, section, "prefix", &name, "the last IPv6 address");
            return None;
        };
        if let Some(why) = special(prefix) {
            let what = format!("`prefix` in [[tunnel_range]] counts up to {prefix} for {}", called(&name));
            report.add(section.at("prefix"), what, why, "start lower, or lower `count`");
            return None;
        }
        if !passes(report, section, outer, defaults, &name) {
            return None;
        }
        let (mtu, ra) = (self.mtu, self.ra.clone());
        let (name, prefixes) = (name.into_boxed_str(), vec![prefix]);
        let care = unusual(self.care);
        Some(TunnelConfig { name, outer, prefixes, mtu, default_route: false, ra, care })
    }
}

fn overrun(report: &mut Report<'_>, section: &Section<'_, '_>, key: &str, name: &str, end: &str) {
    let what = format!("`{key}` in [[tunnel_range]] cannot be counted up to {}", called(name));
    report.add(section.at(key), what, format!("it would pass {end}"), "start lower, or lower `count`");
}

fn range_fits(
    report: &mut Report<'_>,
    section: &Section<'_, '_>,
    name: &str,
    count: u32,
    before: usize,
) -> bool {
    let last = format!("{name}{}", count - 1);
    if last.len() > MAX_NAME {
        let what = format!("`name` in [[tunnel_range]] counts up to '{last}'");
        let why = format!("a name has at most {MAX_NAME} characters");
        report.add(section.at("name"), what, why, "write a shorter name");
        return false;
    }
    if before + count as usize > MAX_TUNNELS as usize {
        let what = format!("`count` in [[tunnel_range]] makes {} tunnels in all", before + count as usize);
        let why = format!("there can be {MAX_TUNNELS}");
        report.add(section.at("count"), what, why, "lower `count`");
        return false;
    }
    true
}

fn nth_outer(first: Outer, n: u32) -> Option<Outer> {
    let up = |addr: Ipv4Addr, n| u32::from(addr).checked_add(n).map(Ipv4Addr::from);
    match first {
        Outer::Proto41 { local, remote } => Some(Outer::Proto41 { local, remote: up(remote, n)? }),
        Outer::Udp { local, remote: UdpRemote::Fixed(at) } => {
            let ports = u32::from(u16::MAX) + 1 - u32::from(at.port());
            let port = u16::try_from(u32::from(at.port()) + n % ports).ok()?;
            let at = SocketAddrV4::new(up(*at.ip(), n / ports)?, port);
            Some(Outer::Udp { local, remote: UdpRemote::Fixed(at) })
        }
        Outer::Udp { local, remote: UdpRemote::AnyPort { addr, port } } => {
            Some(Outer::Udp { local, remote: UdpRemote::AnyPort { addr: up(addr, n)?, port } })
        }
        Outer::Udp { remote: UdpRemote::Learned(_), .. } => Some(first),
    }
}

fn nth_prefix(first: Ipv6Prefix, n: u32) -> Option<Ipv6Prefix> {
    let size = 1u128.checked_shl(128 - u32::from(first.prefix_len()))?;
    let bits = size.checked_mul(n.into()).and_then(|distance| first.bits().checked_add(distance))?;
    Ipv6Prefix::new(Ipv6Addr::from(bits), first.prefix_len())
}

/// Whether the peer's address is one that a tunnel can run to; reported if not.
fn passes(
    report: &mut Report<'_>,
    section: &Section<'_, '_>,
    outer: Outer,
    defaults: Defaults,
    counted: &str,
) -> bool {
    let (local, remote) = match outer {
        Outer::Proto41 { local, remote } => (local, remote),
        Outer::Udp { local, remote: UdpRemote::Fixed(at) } => (local.addr, *at.ip()),
        Outer::Udp { local, remote: UdpRemote::AnyPort { addr, .. } } => (local.addr, addr),
        Outer::Udp { remote: UdpRemote::Learned(_), .. } => return true,
    };
    let why = match martian(remote) {
        Some(why) => why,
        None if Some(remote) == defaults.outer => "it equals `outer` in [router], so packets would loop",
        None if Some(remote) == local => "it equals the tunnel's own `local` address, so packets would loop",
        None => return true,
    };
    let to = if counted.is_empty() { String::new() } else { format!(" for tunnel '{counted}'") };
    let what = format!("`remote` in {} is {remote}{to}", section.place());
    report.add(section.at("remote"), what, why, "write the address of the other end");
    false
}

fn block(
    section: &Section<'_, '_>,
    prefixes_at: Vec<usize>,
    outer_is_known: bool,
    tunnels: Range<usize>,
) -> Block {
    let name_at = section.at("name");
    let ranged = section.place() == schema::TUNNEL_RANGE.title;
    let default_route_at = if ranged { name_at } else { section.at("default_route") };
    Block {
        title: section.place(),
        outer_is_known,
        name_at,
        encap_at: section.at("encap"),
        remote_at: section.at("remote"),
        default_route_at,
        prefixes_at,
        tunnels,
    }
}

fn tunnel_name(text: &str) -> Result<&str, Complaint> {
    let next = "write a name such as 'alice'";
    if text.is_empty() || text.len() > MAX_NAME {
        return Err(Complaint::new(format!("a name has 1 to {MAX_NAME} characters"), next));
    }
    if !text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) {
        return Err(Complaint::new("a name is made of A-Z, a-z, 0-9, '.', '_' and '-'", next));
    }
    Ok(text)
}

#[derive(Clone, Copy)]
enum Encap {
    Proto41,
    Udp,
}

fn outer(report: &mut Report<'_>, section: &Section<'_, '_>, defaults: Defaults) -> Option<Outer> {
    let known = [("proto41", Encap::Proto41), ("udp", Encap::Udp)];
    let encap = section.required(report, "encap", |text| choose(&known, text));
    section.demand(report, "remote");
    match encap? {
        Encap::Proto41 => {
            let local = section.text(report, "local", outer_address);
            let remote = section.text(report, "remote", outer_address)?;
            if section.has("local") && local.is_none() {
                return None;
            }
            Some(Outer::Proto41 { local: local.or(defaults.outer), remote })
        }
        Encap::Udp => {
            let local = local_end(report, section, defaults);
            let remote = section.text(report, "remote", udp_remote)?;
            Some(Outer::Udp { local: local?, remote })
        }
    }
}

fn local_end(report: &mut Report<'_>, section: &Section<'_, '_>, defaults: Defaults) -> Option<UdpLocal> {
    if section.has("local") {
        return section.text(report, "local", udp_local);
    }
    if let Some(port) = defaults.udp_port {
        return Some(UdpLocal { addr: defaults.outer, port });
    }
    report.add(
        section.at("local"),
        format!("`local` is missing in {}", section.place()),
        "its default is the first of `ports` in [udp], and there is none",
        "write for example `local = \"10.71.0.1:3653\"`, or a port into `ports`",
    );
    None
}

/// Among a million tunnels most ask for nothing, and take no memory for it.
fn unusual(care: Care) -> Option<Box<Care>> {
    (care != Care::default()).then(|| Box::new(care))
}

fn mtu(report: &mut Report<'_>, section: &Section<'_, '_>, pmtu: Pmtu, outer: Option<&Outer>) -> u16 {
    let why = "from what every IPv6 link carries to what fits an IPv4 packet with its outer header";
    let mtu = section.integer(report, "mtu", MIN_MTU.into()..=MAX_MTU.into(), why);
    mtu.and_then(|mtu| u16::try_from(mtu).ok()).unwrap_or_else(|| default_mtu(pmtu, outer))
}

fn ra(report: &mut Report<'_>, tunnel: &Section<'_, '_>, uplink: bool) -> Ra {
    let section = tunnel.table(report, "ra", &schema::RA);
    let written = section.texts(report, "prefix", narrow_prefix).unwrap_or_default();
    let written = section.distinct(report, "prefix", written, |prefix| *prefix);
    at_most(report, &section, "prefix", written.len(), MAX_RA_PREFIXES);
    Ra {
        // Behind an uplink is the router that we listen to.
        on: section.boolean(report, "on").unwrap_or(!uplink),
        managed: section.boolean(report, "managed").unwrap_or(false),
        other: section.boolean(report, "other").unwrap_or(false),
        prefix: written.into_iter().map(|At { value, .. }| value).collect(),
    }
}

fn leads_everywhere(
    report: &mut Report<'_>,
    section: &Section<'_, '_>,
    default_route: bool,
    own: &[Ipv6Prefix],
) {
    if default_route && !own.contains(&Ipv6Prefix::ALL) {
        report.add(
            section.at("default_route"),
            "`default_route` in [[tunnel]] needs ::/0 among the prefixes",
            "what comes back from everywhere would not be from this tunnel's prefixes, and is dropped",
            "write `prefixes = [\"::/0\"]`, or `default_route = false`",
        );
    }
}

fn advertises_its_own(report: &mut Report<'_>, section: &Section<'_, '_>, ra: &Ra, own: &[Ipv6Prefix]) {
    let foreign = ra.prefix.iter().filter(|&&prefix| !own.iter().any(|own| own.covers(prefix)));
    for prefix in foreign {
        report.add(
            section.at("ra"),
            format!("`ra` in [[tunnel]] has prefix '{prefix}'"),
            "hosts would take addresses from it that are not in the tunnel's prefixes and are dropped",
            "advertise only what is in `prefixes`",
        );
    }
}

fn at_most(report: &mut Report<'_>, section: &Section<'_, '_>, key: &str, count: usize, max: usize) {
    if count > max {
        let what = format!("`{key}` in {} lists {count} prefixes", section.place());
        report.add(section.at(key), what, format!("there can be {max}"), "merge some, or leave some out");
    }
}
