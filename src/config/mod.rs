//! The configuration file: TOML text in, a checked [`Config`] or all of its mistakes out.
//!
//! Every bound is tested here and nowhere else: whoever holds a `Config` need not doubt it. Pure but for
//! [`Config::load`], which reads the file. Refuses to know how any of it is carried out: no socket, no
//! device, no clock. Every key is explained in `docs/config.md`.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sixway_dataplane::knobs::Knobs;
use sixway_dataplane::update::{Ipv6Prefix, Outer};
use toml::de::DeTable;

mod address;
mod aggregate;
mod broker;
mod care;
mod check;
pub mod dhcpv6;
mod doubts;
mod dtcp;
mod schema;
mod sections;
mod source;
#[cfg(test)]
mod tests;
mod tsp;
mod tunnel;

pub use aggregate::aggregate;
pub use care::{Care, Guard, Leased, Pmtu};
pub use dtcp::{Dtcp, HostPrefix};
pub use source::{ConfigError, ConfigErrors, Place, Position};
pub use tsp::Tsp;

pub(crate) use source::nearest;
use source::{Report, Section};

use crate::broker::{Limits, Pool, Protocol, Terms};
use crate::dhcpv6::session as dhcpv6_session;

/// Where the configuration is looked for when nothing else is said.
pub const DEFAULT_PATH: &str = "/etc/sixway/sixway.toml";

/// Where the admin socket of the router with this TUN device is, unless `[admin]` says otherwise.
pub fn usual_socket(tun: &str) -> PathBuf {
    PathBuf::from(format!("/run/sixway/{tun}.sock"))
}

/// Where the store of the router with this TUN device is, unless `[store]` says otherwise.
pub fn usual_store(tun: &str) -> PathBuf {
    PathBuf::from(format!("/var/lib/sixway/{tun}.db"))
}
/// The TUN device's name when nothing else is said.
pub const DEFAULT_TUN: &str = "six0";
/// The UDP port when nothing else is said: the one of the Tunnel Setup Protocol (RFC 5572 section 9).
pub const DEFAULT_UDP_PORT: u16 = 3653;
/// How many tunnels the table holds when nothing else is said and no more are configured.
pub const DEFAULT_CAPACITY: u32 = 1 << 20;
/// The most tunnels there can be.
pub const MAX_TUNNELS: u32 = 1 << 22;
/// The most forwarding threads.
pub const MAX_WORKERS: u16 = 256;
/// The most prefixes of one tunnel.
pub const MAX_PREFIXES: usize = 64;
/// The most prefixes in one router advertisement: so many fit into 1280 octets (RFC 4861 section 4.2).
pub const MAX_RA_PREFIXES: usize = 32;
/// The most pools.
pub const MAX_POOLS: usize = 64;
/// The longest name of a tunnel, in characters.
pub const MAX_NAME: usize = 32;

/// A checked configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The machine itself.
    pub router: Router,
    /// How to ask the running router.
    pub admin: Admin,
    /// The UDP encapsulation.
    pub udp: Udp,
    /// The protocol 41 encapsulation.
    pub proto41: Proto41,
    /// Which of the kernel's offloads are wanted.
    pub offload: Knobs,
    /// What may not pass, and what is said about it.
    pub guard: Guard,
    /// How tunnels that are granted treat their packets.
    pub leased: Leased,
    /// All tunnels: those written out, then those of the ranges, each in the order of the file.
    pub tunnels: Vec<TunnelConfig>,
    /// What must survive the process.
    pub store: Store,
    /// Address space that is given out, in the order of the file; no two overlap.
    pub pools: Vec<Pool>,
    /// How much one client may ask for.
    pub limits: Limits,
    /// Programs that are run when leased tunnels come and go.
    pub hooks: Hooks,
    /// The server for tunnels by DTCP; `None`: there is none. Change it by [`Config::put_dtcp`].
    pub dtcp: Option<Dtcp>,
    /// The server for tunnels by TSP; `None`: there is none.
    pub tsp: Option<Tsp>,
    /// The DHCPv6 server inside tunnels; `None`: there is none.
    pub dhcpv6: Option<dhcpv6_session::Terms>,
    /// Links that are served by DHCPv6 beside the tunnels; `None`: there are none.
    pub links: Option<dhcpv6::Links>,
}

/// `[store]`: what must survive the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Store {
    /// The file, an absolute path.
    pub path: PathBuf,
    /// Whether there is anything to keep: `[store]`, `[dtcp]`, `[tsp]`, `[dhcpv6]` or a `[[pool]]` is written.
    pub wanted: bool,
}

/// `[hooks]`: programs that are run when leased tunnels come and go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hooks {
    /// Run when one is up, an absolute path.
    pub up: Option<PathBuf>,
    /// Run when one is gone, an absolute path.
    pub down: Option<PathBuf>,
    /// Seconds after which a program is killed, 1 to 300.
    pub timeout: u32,
    /// How many may run at once, 1 to 64.
    pub at_once: u32,
}

/// `[router]`: the machine itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Router {
    /// The TUN device's name, 1 to 15 octets.
    pub tun: String,
    /// The router's own addresses inside, all different.
    pub address: Vec<RouterAddress>,
    /// The IPv4 address that tunnels end at; `None`: whatever local address a packet came to.
    pub outer: Option<Ipv4Addr>,
    /// Which kernel routes lead to the TUN device.
    pub routes: Routes,
    /// What to do about the kernel's forwarding switch.
    pub forwarding: Forwarding,
    /// Whether packets pass from tunnel to tunnel inside the forwarder.
    pub hairpin: bool,
    /// Forwarding threads, at most [`MAX_WORKERS`]; 0 is one a core.
    pub workers: u16,
    /// Whether each forwarding thread stays on a core of its own.
    pub pin: bool,
    /// How long a thread that has nothing to do goes on looking before it sleeps: 0 to 1000 microseconds.
    pub linger: Duration,
    /// And how long where its packets keep coming that soon: 0 to 10,000 microseconds; `None`: what suits this machine.
    pub linger_most: Option<Duration>,
    /// Time to live of outer packets, 1 to 255.
    pub ttl: u8,
    /// How many tunnels the table holds, 1 to [`MAX_TUNNELS`], not fewer than are configured.
    pub capacity: u32,
}

/// An address of the router inside, with the length of the prefix it lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RouterAddress {
    /// The address.
    pub addr: Ipv6Addr,
    /// The prefix length in bits, 1 to 128.
    pub prefix_len: u8,
}

/// Which kernel routes lead to the TUN device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Routes {
    /// Those of all tunnels, merged.
    Aggregate,
    /// Exactly these.
    List(Vec<Ipv6Prefix>),
}

/// What to do about the kernel's forwarding switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarding {
    /// Look, and say what is missing.
    Check,
    /// Turn it on.
    Set,
}

/// `[admin]`: how to ask the running router.
#[derive(Clone, Debug, PartialEq)]
pub struct Admin {
    /// The local socket, an absolute path of at most 107 octets.
    pub socket: PathBuf,
}

/// `[udp]`: the UDP encapsulation.
#[derive(Clone, Debug, PartialEq)]
pub struct Udp {
    /// The ports to listen on, all different, none 0; none at all turns UDP off.
    pub ports: Vec<u16>,
}

/// `[proto41]`: the protocol 41 encapsulation.
#[derive(Clone, Debug, PartialEq)]
pub struct Proto41 {
    /// What was written; `None`: nothing, so it is on where the rights suffice.
    pub enabled: Option<bool>,
    /// How packets are received.
    pub receive: Receive,
}

/// How protocol 41 packets are received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receive {
    /// By packet sockets where possible, else by raw sockets.
    Auto,
    /// By packet sockets (`AF_PACKET`).
    Packet,
    /// By raw sockets.
    Raw,
}

/// One tunnel.
#[derive(Clone, Debug, PartialEq)]
pub struct TunnelConfig {
    /// Its name, 1 to 32 of `A-Z a-z 0-9 . _ -`, unlike all others.
    pub name: Box<str>,
    /// Encapsulation and outer addresses; nothing is learned yet.
    pub outer: Outer,
    /// The prefixes behind it, at most [`MAX_PREFIXES`], none of them another tunnel's.
    pub prefixes: Vec<Ipv6Prefix>,
    /// The largest inner packet in octets, `MIN_MTU` to `MAX_MTU` of the data plane.
    pub mtu: u16,
    /// Whether the kernel's default route leads into this tunnel; of at most one tunnel.
    pub default_route: bool,
    /// Router advertisements inside it.
    pub ra: Ra,
    /// What few tunnels ask for; use [`Self::care`].
    pub care: Option<Box<Care>>,
}

impl TunnelConfig {
    /// What it asks for beside the ordinary.
    pub fn care(&self) -> Care {
        self.care.as_deref().copied().unwrap_or_default()
    }
}

/// Router advertisements inside a tunnel (RFC 4861 section 4.2).
#[derive(Clone, Debug, PartialEq)]
pub struct Ra {
    /// Whether they are sent: on unless the tunnel is our own way out.
    pub on: bool,
    /// The flag M: addresses are to be had by DHCPv6.
    pub managed: bool,
    /// The flag O: other things are to be had by DHCPv6.
    pub other: bool,
    /// The prefixes advertised, each within one of the tunnel's.
    pub prefix: Vec<Ipv6Prefix>,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// That the file cannot be read, or all mistakes in it.
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        let file = path.display().to_string();
        let octets = std::fs::read(path).map_err(|error| unreadable(&file, &error))?;
        Self::parse(&file, std::str::from_utf8(&octets).map_err(|error| no_text(&file, &octets, error))?)
    }

    /// Checks the text of a file; `file` is only its name in error messages.
    ///
    /// # Errors
    /// All mistakes in it, but those that would show only when another one is mended; where the text is not TOML, only those
    /// that make it so.
    pub fn parse(file: &str, text: &str) -> Result<Self, ConfigErrors> {
        let mut report = Report::new(file, text);
        let (document, errors) = DeTable::parse_recoverable(text);
        syntax(&mut report, &errors);
        // A text that was guessed at has no meaning to check.
        let config = errors.is_empty().then(|| interpret(&mut report, document.get_ref()));
        config.filter(|_| report.count() == 0).ok_or_else(|| report.into_errors())
    }

    /// The endpoints that UDP sockets are needed on: the ports of `[udp]` on `outer` (or on all
    /// addresses) and every tunnel's own; where one is on all addresses, no other has its port. Sorted.
    pub fn listen_endpoints(&self) -> Vec<SocketAddrV4> {
        let on =
            |addr: Option<Ipv4Addr>, port| SocketAddrV4::new(addr.unwrap_or(Ipv4Addr::UNSPECIFIED), port);
        let mut all: BTreeSet<_> = self.udp.ports.iter().map(|&port| on(self.router.outer, port)).collect();
        all.extend(self.tsp.iter().map(|tsp| tsp.listen));
        all.extend(self.tunnels.iter().filter_map(|tunnel| match tunnel.outer {
            Outer::Proto41 { .. } => None,
            Outer::Udp { local, .. } => Some(on(local.addr, local.port)),
        }));
        let alone = |at: &&SocketAddrV4| at.ip().is_unspecified() || !all.contains(&on(None, at.port()));
        all.iter().filter(alone).copied().collect()
    }

    /// The kernel routes that lead to the TUN device, the default route aside. Sorted if aggregated.
    pub fn kernel_routes(&self) -> Vec<Ipv6Prefix> {
        match &self.router.routes {
            Routes::List(list) => list.clone(),
            Routes::Aggregate => {
                let all = self.tunnels.iter().flat_map(|tunnel| &tunnel.prefixes).copied();
                let all = all.chain(self.pools.iter().map(|pool| pool.prefix));
                aggregate(all.filter(|&prefix| prefix != Ipv6Prefix::ALL).collect())
            }
        }
    }

    /// Whether the kernel has to forward packets: there is a tunnel that is not our own way out.
    pub fn needs_forwarding(&self) -> bool {
        !self.pools.is_empty()
            || self.dtcp.is_some()
            || self.tsp.is_some()
            || self.tunnels.iter().any(|t| !t.default_route && !t.prefixes.contains(&Ipv6Prefix::ALL))
    }

    /// Protocols inside whose tunnels there are no router advertisements.
    pub fn unadvertised(&self) -> Vec<Protocol> {
        let quiet = self.tsp.as_ref().is_none_or(|tsp| !tsp.ra);
        if quiet { vec![Protocol::Tsp] } else { Vec::new() }
    }

    /// What the broker must know. Never given out of a pool are the networks that the router's own addresses lie in (of
    /// one that is as wide as the pool, the address itself), what is behind tunnels of the configuration, and what is set aside
    /// for clients by their DUID.
    pub fn terms(&self) -> Terms {
        let own = self.router.address.iter().map(|own| {
            let network = Ipv6Prefix::new(own.addr, own.prefix_len).unwrap_or(Ipv6Prefix::ALL);
            let too_wide = self.pools.iter().any(|pool| network.covers(pool.prefix));
            if too_wide { Ipv6Prefix::host(own.addr) } else { network }
        });
        let behind = self.tunnels.iter().flat_map(|tunnel| &tunnel.prefixes).copied();
        let reserved = self.dhcpv6.iter().flat_map(|dhcpv6| dhcpv6.reserved.values().flatten());
        let reserved = reserved.flat_map(|set| set.prefixes.iter().copied());
        let behind = behind.filter(|prefix| *prefix != Ipv6Prefix::ALL);
        let fences = own.chain(behind).chain(reserved).collect();
        Terms { pools: self.pools.clone(), fences, limits: self.limits }
    }
}

/// A prefix that a user may be given: nothing special, and not everything.
///
/// # Errors
/// Why not, and what to write instead.
pub fn network(text: &str) -> Result<Ipv6Prefix, String> {
    address::narrow_prefix(text).map_err(|complaint| format!("{}; {}", complaint.why, complaint.next))
}

fn interpret(report: &mut Report<'_>, document: &DeTable<'_>) -> Config {
    let root = Section::open(report, &schema::ROOT, document, 0);
    // All of them first: what is unknown in one may be meant for another.
    let mut table = |key, schema| root.table(report, key, schema);
    let router_section = table("router", &schema::ROUTER);
    let udp_section = table("udp", &schema::UDP);
    let dtcp_section = table("dtcp", &schema::DTCP);
    let tsp_section = table("tsp", &schema::TSP);
    let [admin, store] = [table("admin", &schema::ADMIN), table("store", &schema::STORE)];
    let [proto41, offload] = [table("proto41", &schema::PROTO41), table("offload", &schema::OFFLOAD)];
    let [guard, leased] = [table("guard", &schema::GUARD), table("leased", &schema::LEASED)];
    let [limits, hooks] = [table("limits", &schema::LIMITS), table("hooks", &schema::HOOKS)];
    let router = sections::router(report, &router_section);
    let udp = sections::udp(report, &udp_section);
    let mut pools = broker::pools(report, &root);
    let dtcp = root.has("dtcp").then(|| dtcp::dtcp(report, &dtcp_section, &mut pools));
    let tsp = root.has("tsp").then(|| tsp::tsp(report, &tsp_section, router.outer));
    let mut dhcpv6 = dhcpv6::served(report, &root);
    let served = dtcp.is_some() || tsp.is_some() || dhcpv6.inside.is_some();
    let wanted = served || root.has("store") || !pools.list.is_empty();
    let port_is_sound = udp_section.is_sound(report, "ports");
    let guess = (!port_is_sound).then_some(DEFAULT_UDP_PORT);
    let defaults = tunnel::Defaults {
        outer: router.outer,
        outer_is_sound: router_section.is_sound(report, "outer"),
        udp_port: udp.ports.first().copied().or(guess),
        port_is_sound,
    };
    let tunnel::Tunnels { list, blocks, is_short } = tunnel::tunnels(report, &root, defaults);
    let mut config = Config {
        admin: sections::admin(report, &admin, &router.tun),
        udp,
        proto41: sections::proto41(report, &proto41),
        offload: sections::offload(report, &offload),
        guard: care::guard(report, &guard),
        leased: care::leased(report, &leased),
        tunnels: list,
        store: broker::store(report, &store, &router.tun, wanted),
        pools: std::mem::take(&mut pools.list),
        limits: broker::limits(report, &limits),
        hooks: broker::hooks(report, &hooks),
        router,
        dtcp,
        tsp,
        dhcpv6: dhcpv6.inside.take(),
        links: dhcpv6.links.take(),
    };
    if !router_section.has("capacity") {
        config.router.capacity = DEFAULT_CAPACITY.max(check::count(&config));
    }
    let sections = [&root, &router_section, &dtcp_section, &tsp_section];
    compare(report, &config, sections, &pools, (&blocks, is_short), &dhcpv6);
    config
}

/// Reports what does not fit together. Each part leaves out what hangs on something that could not be read: no mistakes are
/// derived from guesses.
fn compare(
    report: &mut Report<'_>,
    config: &Config,
    [root, router, dtcp, tsp]: [&Section<'_, '_>; 4],
    pools: &broker::Pools,
    (blocks, is_short): (&[tunnel::Block], bool),
    dhcpv6: &dhcpv6::Served,
) {
    check::together(report, config, (blocks, is_short), router);
    broker::together(report, config, pools);
    dtcp::together(report, config, dtcp, router);
    let may_have_more = |key| !root.has(key) && !root.is_sound(report, key);
    let pools_are_known = pools.are_known()
        && dtcp.is_sound(report, "prefix")
        && !["pool", "dtcp"].into_iter().any(may_have_more);
    tsp::together(report, config, tsp, pools_are_known);
    if !is_short {
        dhcpv6::together(report, config, dhcpv6);
    }
}

/// One mistake a line: what the TOML parser finds behind the first is mostly its consequence.
fn syntax(report: &mut Report<'_>, errors: &[toml::de::Error]) {
    let mut reported = BTreeSet::new();
    for error in errors {
        let at = error.span().map_or(0, |span| span.start);
        if reported.insert(report.line(at)) {
            let mut message = error.message().lines().collect::<Vec<_>>().join(", ");
            if message == "duplicate key" {
                message += &format!(" `{}`", error.span().map_or("", |span| report.written(span)).trim());
            }
            let why = "this is not TOML (https://toml.io)";
            report.add(at, message, why, "correct the line, then check again");
        }
    }
}

fn no_text(file: &str, octets: &[u8], error: std::str::Utf8Error) -> ConfigErrors {
    let good = String::from_utf8_lossy(&octets[..error.valid_up_to()]);
    let mut report = Report::new(file, &good);
    let why = "a configuration is text in UTF-8, and here it is not";
    report.add(good.len(), "this cannot be read", why, "name a TOML file, or save this one as UTF-8");
    report.into_errors()
}

fn unreadable(file: &str, error: &std::io::Error) -> ConfigErrors {
    ConfigErrors(vec![ConfigError {
        place: Place { file: file.to_owned(), position: None },
        what: "cannot read the configuration".to_owned(),
        why: error.to_string(),
        next: if error.kind() == std::io::ErrorKind::NotFound {
            format!(
                "write it (README.md has examples; the default place is {DEFAULT_PATH}), or name another file"
            )
        } else if error.kind() == std::io::ErrorKind::PermissionDenied {
            "use sudo, or let this user read it".to_owned()
        } else {
            "name a TOML file".to_owned()
        },
    }])
}
