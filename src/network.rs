//! The router's part of the kernel's network configuration: the TUN device's addresses, MTU and routes.
//!
//! Brings what is there to what the configuration wants, remembers what was added, and takes exactly that away at
//! the end. Knows the device by name only; who opened it is the data plane's business.

use std::collections::HashSet;
use std::net::Ipv6Addr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use sixway_dataplane::update::{Ipv6Prefix, MIN_MTU};

use crate::admin::client::peer_pid;
use crate::broker::Grant;
use crate::config::{Config, Forwarding as Wanted, Routes};
use crate::link::{
    FORWARDING_COMMAND, Forwarding, LinkError, Links, Outcome, forwarding_state, set_forwarding,
};

/// Our ends of leased tunnels that are addresses of the device.
const MOST_ADDRESSES: usize = 1024;

/// What the router has changed about one device.
pub struct Network {
    links: Links,
    tun: String,
    /// The MTU that the device had before us; `None`: there was no device.
    before: Option<u32>,
    _claim: Claim,
    addresses: Vec<(Ipv6Addr, u8)>,
    routes: Vec<Ipv6Prefix>,
    mtu: u16,
    /// Whether tunnels bring routes of their own; not where the operator lists all that there are to be.
    aggregate: bool,
    /// What leased tunnels have brought with them.
    lent_addresses: HashSet<Ipv6Addr>,
    lent_locals: HashSet<Ipv6Addr>,
    lent_routes: HashSet<Ipv6Prefix>,
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Network({}: {:?} {:?})", self.tun, self.addresses, self.routes)
    }
}

impl Network {
    /// Looks at the device before it is opened: what was there is not ours to remove.
    pub async fn look(tun: &str) -> anyhow::Result<Self> {
        let claim = Claim::new(tun)?;
        let links = Links::open()?;
        let before = links.mtu(tun).await?;
        Ok(Self {
            links,
            tun: tun.to_owned(),
            before,
            _claim: claim,
            addresses: Vec::new(),
            routes: Vec::new(),
            mtu: 0,
            aggregate: true,
            lent_addresses: HashSet::new(),
            lent_locals: HashSet::new(),
            lent_routes: HashSet::new(),
        })
    }

    /// In a network namespace that was just made the loopback device is down, and a host does not reach itself.
    pub async fn raise_loopback(&self) -> Result<(), LinkError> {
        self.links.set_up("lo", None).await
    }

    /// Makes the device what `config` wants. Returns advice for the operator, a line each.
    pub async fn apply(&mut self, config: &Config) -> Result<Vec<String>, LinkError> {
        let mtu = config.tunnels.iter().map(|t| t.mtu).max().unwrap_or(MIN_MTU);
        if mtu != self.mtu {
            self.links.set_up(&self.tun, Some(u32::from(mtu))).await?;
            self.mtu = mtu;
        }
        self.aggregate = matches!(config.router.routes, Routes::Aggregate);
        self.apply_addresses(config).await?;
        self.apply_routes(config).await?;
        let mut notes = self.check_mtu(config).await;
        notes.extend(check_forwarding(config)?);
        Ok(notes)
    }

    async fn apply_addresses(&mut self, config: &Config) -> Result<(), LinkError> {
        let wanted: Vec<_> = config.router.address.iter().map(|a| (a.addr, a.prefix_len)).collect();
        for (addr, len) in &wanted {
            if !self.addresses.contains(&(*addr, *len))
                && self.links.add_address(&self.tun, *addr, *len).await? == Outcome::Added
            {
                self.addresses.push((*addr, *len));
            }
        }
        let gone: Vec<_> = self.addresses.iter().copied().filter(|a| !wanted.contains(a)).collect();
        for (addr, len) in gone {
            self.links.remove_address(&self.tun, addr, len).await?;
            self.addresses.retain(|a| *a != (addr, len));
        }
        Ok(())
    }

    async fn apply_routes(&mut self, config: &Config) -> Result<(), LinkError> {
        let mut wanted = config.kernel_routes();
        if config.tunnels.iter().any(|t| t.default_route) {
            wanted.push(Ipv6Prefix::ALL);
        }
        // First what is new: merged routes grow and shrink with their neighbours, and no moment may be without one.
        for prefix in &wanted {
            if !self.routes.contains(prefix)
                && self.links.add_route(*prefix, &self.tun, None).await? == Outcome::Added
            {
                self.routes.push(*prefix);
            }
        }
        let gone: Vec<_> = self.routes.iter().copied().filter(|r| !wanted.contains(r)).collect();
        for prefix in gone {
            self.links.remove_route(prefix, &self.tun, None).await?;
            self.routes.retain(|r| *r != prefix);
        }
        Ok(())
    }

    /// A tunnel MTU that the way to the peer cannot carry whole works, in fragments; its operator should know.
    async fn check_mtu(&self, config: &Config) -> Vec<String> {
        let mut notes = Vec::new();
        // Looking up a route for each of a million tunnels would hold up the start: the first ones tell enough.
        for tunnel in config.tunnels.iter().filter(|t| t.mtu > MIN_MTU).take(100) {
            let Some(remote) = peer(tunnel) else { continue };
            // Advice only: what cannot be looked up is not advised on.
            let Ok(most) = self.links.link_mtu_towards(remote).await else { continue };
            let fits = most.map(|m| m.saturating_sub(u32::from(tunnel.outer.overhead())));
            if let Some(fits) = fits.filter(|f| u32::from(tunnel.mtu) > *f) {
                notes.push(format!(
                    "tunnel '{}': an MTU of {} does not fit the link towards {remote} unfragmented; at most {fits} does",
                    tunnel.name, tunnel.mtu
                ));
            }
        }
        notes
    }

    /// What a leased tunnel needs of the kernel: our end of its address pair, and routes to what no pool has. A tunnel works
    /// without them towards other tunnels, so what the kernel refuses is logged.
    pub async fn lend(&mut self, grant: &Grant) {
        if let Some(pair) = grant.pair {
            self.lend_address(pair.server).await;
        }
        for prefix in &grant.networks {
            self.lend_route(*prefix).await;
        }
    }

    /// The first ones are addresses of the device, which programs can be bound to. The kernel looks at all of these each
    /// time that one comes: where there are many, it only answers for the others.
    async fn lend_address(&mut self, addr: Ipv6Addr) {
        let (lent, added) = if self.lent_addresses.len() < MOST_ADDRESSES {
            (&mut self.lent_addresses, self.links.add_address(&self.tun, addr, 128).await)
        } else {
            (&mut self.lent_locals, self.links.add_local(&self.tun, addr).await)
        };
        match added {
            Ok(Outcome::Added) => drop(lent.insert(addr)),
            Ok(_) => {}
            Err(why) => tracing::warn!(%addr, why = why.to_string(), "an address is missing"),
        }
    }

    async fn take_address_back(&mut self, addr: Ipv6Addr) {
        let gone = if self.lent_addresses.remove(&addr) {
            self.links.remove_address(&self.tun, addr, 128).await
        } else if self.lent_locals.remove(&addr) {
            self.links.remove_local(&self.tun, addr).await
        } else {
            Ok(())
        };
        if let Err(why) = gone {
            tracing::warn!(%addr, why = why.to_string(), "an address stays");
        }
    }

    /// A route to what is behind a tunnel now, unless one of the configuration leads there.
    pub async fn lend_route(&mut self, prefix: Ipv6Prefix) {
        let covered = self.routes.iter().any(|route| *route != Ipv6Prefix::ALL && route.covers(prefix));
        if !self.aggregate || covered {
            return;
        }
        match self.links.add_route(prefix, &self.tun, None).await {
            Ok(Outcome::Added) => drop(self.lent_routes.insert(prefix)),
            Ok(_) => {}
            Err(why) => tracing::warn!(%prefix, why = why.to_string(), "a route is missing"),
        }
    }

    /// The tunnel is gone, and what it had brought with it goes too.
    pub async fn take_back(&mut self, grant: &Grant) {
        if let Some(pair) = grant.pair {
            self.take_address_back(pair.server).await;
        }
        for prefix in &grant.networks {
            self.take_route_back(*prefix).await;
        }
    }

    /// Takes such a route away.
    pub async fn take_route_back(&mut self, prefix: Ipv6Prefix) {
        if !self.lent_routes.remove(&prefix) || self.routes.contains(&prefix) {
            return;
        }
        if let Err(why) = self.links.remove_route(prefix, &self.tun, None).await {
            tracing::warn!(%prefix, why = why.to_string(), "a route stays");
        }
    }

    /// Whether the device is still there: somebody may have deleted it. Where nobody can say, for lack of descriptors, it is.
    pub fn is_there(&self) -> bool {
        nix::net::if_::if_nametoindex(self.tun.as_str()) != Err(nix::errno::Errno::ENODEV)
    }

    /// Takes away what was added. A device that the data plane created goes with its last descriptor, and all this
    /// with it.
    pub async fn withdraw(&mut self) {
        let Some(mtu) = self.before else { return };
        if let Err(why) = self.links.set_up(&self.tun, Some(mtu)).await {
            tracing::warn!(why = why.to_string(), "the device's MTU stays changed");
        }
        let lent = self.lent_routes.drain();
        for prefix in std::mem::take(&mut self.routes).into_iter().chain(lent) {
            if let Err(why) = self.links.remove_route(prefix, &self.tun, None).await {
                tracing::warn!(%prefix, why = why.to_string(), "a route stays");
            }
        }
        let locals: Vec<Ipv6Addr> = self.lent_locals.iter().copied().collect();
        for addr in locals {
            self.take_address_back(addr).await;
        }
        let lent = self.lent_addresses.drain().map(|addr| (addr, 128));
        for (addr, len) in std::mem::take(&mut self.addresses).into_iter().chain(lent) {
            if let Err(why) = self.links.remove_address(&self.tun, addr, len).await {
                tracing::warn!(%addr, why = why.to_string(), "an address stays");
            }
        }
    }
}

/// Says that this process has the device: a name in the abstract namespace of Unix sockets, which every network
/// namespace has for itself and which goes with its process.
#[derive(Debug)]
struct Claim(#[expect(dead_code, reason = "held open, never read")] UnixListener);

impl Claim {
    fn new(tun: &str) -> anyhow::Result<Self> {
        let name = SocketAddr::from_abstract_name(format!("sixway/tun/{tun}"))?;
        match UnixListener::bind_addr(&name) {
            Ok(listener) => Ok(Self(listener)),
            Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => {
                let pid = UnixStream::connect_addr(&name).ok().map(|s| peer_pid(&s));
                let holder = pid.map_or_else(String::new, |pid| format!(": process {pid}"));
                anyhow::bail!(
                    "another sixway has the device '{tun}' in this network namespace{holder}; stop it, or choose another \
                     name with [router] tun"
                )
            }
            Err(e) => Err(anyhow::anyhow!("cannot claim the device '{tun}': {e}")),
        }
    }
}

fn peer(tunnel: &crate::config::TunnelConfig) -> Option<std::net::Ipv4Addr> {
    use sixway_dataplane::update::{Outer, UdpRemote};
    match tunnel.outer {
        Outer::Proto41 { remote, .. } => Some(remote),
        Outer::Udp { remote: UdpRemote::AnyPort { addr, .. }, .. } => Some(addr),
        Outer::Udp { remote, .. } => remote.endpoint().map(|at| *at.ip()),
    }
}

fn check_forwarding(config: &Config) -> Result<Option<String>, LinkError> {
    match config.router.forwarding {
        // Who writes it may have hosts behind a tunnel that is our way out.
        Wanted::Set => set_forwarding().map(|_| None),
        Wanted::Check if !config.needs_forwarding() => Ok(None),
        Wanted::Check => Ok(match forwarding_state() {
            Ok(Forwarding::On) | Err(_) => None,
            Ok(Forwarding::Off) => Some(format!(
                "the kernel does not forward IPv6, so tunnels reach only this host and each other; switch it on with \
                 `{FORWARDING_COMMAND}`, or let the router do it: [router] forwarding = \"set\""
            )),
        }),
    }
}
