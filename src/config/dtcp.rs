//! The table `[dtcp]`: the server for tunnels that clients ask for by DTCP. Without the table there is none.
//!
//! Its address pairs come out of a pool of their own, which this table stands for.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::path::PathBuf;

use sixway_dataplane::update::{Ipv6Prefix, MAX_MTU, MIN_MTU};

use super::address::{narrow_prefix, outer_address};
use super::broker::Pools;
use super::source::{Complaint, Report, Section};
use super::{Config, MAX_TUNNELS};
use crate::broker::{Pool, PoolKind};
use crate::dtcp::codec::PORT;
use crate::dtcp::interfaces::{Family, LAST_PAIR, Names};

/// `[dtcp]`: the server.
#[derive(Clone, Debug, PartialEq)]
pub struct Dtcp {
    /// Where it listens.
    pub listen: SocketAddrV4,
    /// What address pairs begin with; without it there are none.
    pub prefix: Option<HostPrefix>,
    /// The file that says which prefixes and which interface a user has.
    pub routetable: Option<PathBuf>,
    /// The dump of an APOP database, for users beside those in the store.
    pub popauth: Option<PathBuf>,
    /// The number of the last interface.
    pub interfaces: u32,
    /// Which names tunnels by protocol 41 take.
    pub names: Names,
    /// Which names tunnels in UDP take.
    pub udp_names: Names,
    /// Whether names that were made stand by for the next tunnels.
    pub keep: bool,
    /// Our outer address as clients are told, where a NAT is before us.
    pub public_address: Option<Ipv4Addr>,
    /// Whether clients may ask for IPv6 in UDP.
    pub udp: bool,
    /// The lowest UDP port; each tunnel has one of its own.
    pub udp_port: u16,
    /// The largest inner packet in octets.
    pub mtu: u16,
    /// Seconds that a connection without a tunnel may be silent, and that a line may take.
    pub login_timeout: u32,
    /// Seconds that a connection with a tunnel may be silent.
    pub tunnel_timeout: u32,
    /// Where the number of the process is written.
    pub pid_file: Option<PathBuf>,
}

/// What address pairs begin with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPrefix {
    /// The text that goes on the wire before the last 16 bits; it ends in `::`.
    pub text: Box<str>,
    /// The addresses themselves.
    pub pool: Ipv6Prefix,
}

impl HostPrefix {
    /// Reads `2001:db8:ffff::`, with or without `/64`.
    pub(crate) fn parse(text: &str) -> Result<Self, Complaint> {
        let form = || "write a prefix that ends in '::', as in '2001:db8:ffff::/64'";
        let (begin, len) = text.split_once('/').unwrap_or((text, "64"));
        if !begin.ends_with("::") {
            return Err(Complaint::new("an address is this text with four digits behind it", form()));
        }
        let prefix = narrow_prefix(&format!("{begin}/{len}"))?;
        if prefix.prefix_len() > 112 {
            return Err(Complaint::new("the last 16 bits are the pair's number", "write a /112 or shorter"));
        }
        // `1:2:3:4:5:6::` followed by digits is an address; one group more, and it is still one.
        if format!("{begin}0005").parse::<Ipv6Addr>().is_err() {
            return Err(Complaint::new("no address begins so", form()));
        }
        Ok(Self { text: begin.into(), pool: prefix })
    }
}

impl Dtcp {
    /// The pool that address pairs come out of.
    pub fn pool(&self) -> Option<Pool> {
        self.prefix.as_ref().map(|prefix| Pool { prefix: prefix.pool, kind: PoolKind::Pairs })
    }
}

impl Config {
    /// Puts another `[dtcp]` in the place of the one that was read, its pool included.
    pub fn put_dtcp(&mut self, dtcp: Option<Dtcp>) {
        let pool = |dtcp: &Option<Dtcp>| dtcp.as_ref().and_then(Dtcp::pool);
        let (old, new) = (pool(&self.dtcp), pool(&dtcp));
        if old != new {
            self.pools.retain(|pool| Some(*pool) != old);
            self.pools.extend(new);
        }
        self.dtcp = dtcp;
    }
}

/// Reads `[dtcp]`, and puts its pool behind the others unless it is one of them.
pub(crate) fn dtcp(report: &mut Report<'_>, section: &Section<'_, '_>, pools: &mut Pools) -> Dtcp {
    let seconds = "seconds of silence";
    let mtu = section.integer(report, "mtu", MIN_MTU.into()..=MAX_MTU.into(), "octets of the largest packet");
    let udp_port = section.integer(report, "udp_port", 1..=u16::MAX.into(), "the lowest UDP port");
    let login = section.integer(report, "login_timeout", 1..=3600, seconds);
    let tunnel = section.integer(report, "tunnel_timeout", 1..=86_400, seconds);
    let why = "the number of the last interface";
    let interfaces = section.integer(report, "interfaces", 0..=MAX_TUNNELS - 1, why);
    let is_pattern = section.boolean(report, "cloning") == Some(false);
    let names = |text: &str, family, is_pattern| {
        let next =
            format!("write an exact name as '{0}10', or an expression as '{0}7[0-9]'", Family::name(family));
        Names::parse(text, family, is_pattern).map_err(|why| Complaint::new(why.to_string(), next))
    };
    let dtcp = Dtcp {
        listen: section.text(report, "listen", endpoint_at(PORT)).unwrap_or(ANYWHERE),
        prefix: section.text(report, "prefix", HostPrefix::parse),
        routetable: section.text(report, "routetable", file),
        popauth: section.text(report, "popauth", file),
        interfaces: interfaces.unwrap_or(LAST_PAIR),
        names: section.text(report, "names", |t| names(t, Family::Gif, is_pattern)).unwrap_or(Names::All),
        udp_names: section.text(report, "udp_names", |t| names(t, Family::Ng, false)).unwrap_or(Names::All),
        keep: section.boolean(report, "keep").unwrap_or(false),
        public_address: section.text(report, "public_address", outer_address),
        udp: section.boolean(report, "udp").unwrap_or(false),
        udp_port: udp_port.and_then(|port| u16::try_from(port).ok()).unwrap_or(UDP_PORT),
        mtu: mtu.and_then(|mtu| u16::try_from(mtu).ok()).unwrap_or(MIN_MTU),
        login_timeout: login.unwrap_or(60),
        tunnel_timeout: tunnel.unwrap_or(300),
        pid_file: section.text(report, "pid_file", file),
    };
    if let Some(pool) = dtcp.pool().filter(|pool| !pools.list.contains(pool)) {
        pools.list.push(pool);
        pools.at.push(section.at("prefix"));
    }
    dtcp
}

/// Reports what `[dtcp]` wants of other tables that do not have it.
pub(crate) fn together(
    report: &mut Report<'_>,
    config: &Config,
    section: &Section<'_, '_>,
    router: &Section<'_, '_>,
) {
    let Some(dtcp) = &config.dtcp else { return };
    if dtcp.udp && config.router.address.is_empty() && router.is_sound(report, "address") {
        report.add(
            section.at("udp"),
            "`udp` in [dtcp] is true, and the router has no address",
            "where a client's UDP comes from is believed only after an echo request from the router's address was answered",
            "write for example `address = [\"2001:db8:100::1/64\"]` in [router]",
        );
    }
    if config.proto41.enabled == Some(false) && !dtcp.udp && section.is_sound(report, "udp") {
        report.add(
            section.at("listen"),
            "[dtcp] gives out tunnels by protocol 41 only",
            "`enabled = false` in [proto41] turns that off",
            "take it out, or write `udp = true` in [dtcp]",
        );
    }
}

/// Reads where to listen; `usual` is the port in the advice.
pub(crate) fn endpoint_at(usual: u16) -> impl Fn(&str) -> Result<SocketAddrV4, Complaint> {
    move |text| endpoint(text, usual)
}

fn endpoint(text: &str, usual: u16) -> Result<SocketAddrV4, Complaint> {
    let form =
        || Complaint::new("it is no place to listen at", format!("write ':{usual}' or '10.71.0.1:{usual}'"));
    let (addr, port) = text.rsplit_once(':').ok_or_else(form)?;
    let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(form)?;
    match addr {
        "" | "*" => Ok(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)),
        _ => Ok(SocketAddrV4::new(addr.parse().map_err(|_| form())?, port)),
    }
}

fn file(text: &str) -> Result<PathBuf, Complaint> {
    if !text.starts_with('/') || text.ends_with('/') || text.contains('\0') {
        let why = "the router may run in another directory";
        return Err(Complaint::new(why, "write the absolute path of a file"));
    }
    Ok(PathBuf::from(text))
}

const ANYWHERE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT);
/// The lowest UDP port when nothing else is said.
const UDP_PORT: u16 = 4028;
