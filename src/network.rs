//! The router's part of the kernel's network configuration: the TUN device's addresses, MTU and routes.
//!
//! Brings what is there to what the configuration wants, remembers what was added, and takes exactly that away at
//! the end. Knows the device by name only; who opened it is the data plane's business.

use std::collections::{HashMap, HashSet};
use std::net::Ipv6Addr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use sixway_dataplane::update::{Ipv6Prefix, MIN_MTU};

use crate::admin::client::peer_pid;
use crate::broker::Grant;
use crate::config::{Config, Forwarding as Wanted, Routes};
use crate::link::device::DeviceWatch;
use crate::link::{
    FORWARDING_COMMAND, Forwarding, LinkError, Links, Outcome, forwarding_state, set_forwarding,
};

/// Our ends of leased tunnels that are addresses of the device.
const MOST_ADDRESSES: usize = 1024;
/// Things that are put back in one turn of whoever calls.
const TURN: usize = 512;

/// Something of the kernel's on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Thing {
    /// An address of the device, and the length of its network in bits.
    Address(Ipv6Addr, u8),
    /// An address that the kernel only answers for.
    Local(Ipv6Addr),
    Route(Ipv6Prefix),
}

impl std::fmt::Display for Thing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(addr, len) => write!(f, "the address {addr}/{len}"),
            Self::Local(addr) => write!(f, "the address {addr}"),
            Self::Route(prefix) => write!(f, "the route {prefix}"),
        }
    }
}

/// What is to be there, and whether it was us who have put it there: only that is taken away.
type Things = HashMap<Thing, bool>;

/// What has been put back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Back {
    /// Addresses.
    pub addresses: usize,
    /// Routes.
    pub routes: usize,
    /// What the kernel has refused.
    pub refused: usize,
}

impl Back {
    /// Whether nothing was gone after all.
    pub fn is_nothing(self) -> bool {
        self.addresses + self.routes + self.refused == 0
    }

    fn count(&mut self, thing: Thing) {
        match thing {
            Thing::Address(..) | Thing::Local(_) => self.addresses += 1,
            Thing::Route(_) => self.routes += 1,
        }
    }
}

impl std::fmt::Display for Back {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "addresses: {}, routes: {}", self.addresses, self.routes)?;
        if self.refused > 0 { write!(f, ", refused: {}", self.refused) } else { Ok(()) }
    }
}

/// What the router has changed about one device.
pub struct Network {
    links: Links,
    tun: String,
    /// The MTU that the device had before us; `None`: there was no device.
    before: Option<u32>,
    _claim: Claim,
    mtu: u16,
    /// What the configuration wants.
    own: Things,
    /// What leased tunnels have brought with them.
    lent: Things,
    /// How many of those are addresses of the device.
    lent_addresses: usize,
    /// Whether tunnels bring routes of their own; not where the operator lists all that there are to be.
    aggregate: bool,
    /// What is gone and is to be put back.
    owed: Vec<Thing>,
    back: Back,
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Network({}: {:?})", self.tun, self.own)
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
            mtu: 0,
            own: HashMap::new(),
            lent: HashMap::new(),
            lent_addresses: 0,
            aggregate: true,
            owed: Vec::new(),
            back: Back::default(),
        })
    }

    /// In a network namespace that was just made the loopback device is down, and a host does not reach itself.
    pub async fn raise_loopback(&self) -> Result<(), LinkError> {
        self.links.set_up("lo", None).await
    }

    /// News of the device's ups and downs from now on.
    pub async fn watch(&self) -> Result<DeviceWatch, LinkError> {
        DeviceWatch::open(&self.links, &self.tun).await
    }

    /// Makes the device what `config` wants, as far as that differs from what was wanted before: what somebody has taken away
    /// meanwhile [`Self::look_for_losses`] finds. Sets it up, whoever has set it down. Returns advice for the operator, a line
    /// each.
    pub async fn apply(&mut self, config: &Config) -> Result<Vec<String>, LinkError> {
        let mtu = config.tunnels.iter().map(|t| t.mtu).max().unwrap_or(MIN_MTU);
        self.links.set_up(&self.tun, Some(u32::from(mtu))).await?;
        self.mtu = mtu;
        self.aggregate = matches!(config.router.routes, Routes::Aggregate);
        self.apply_things(config).await?;
        let mut notes = self.check_mtu(config).await;
        notes.extend(check_forwarding(config)?);
        Ok(notes)
    }

    async fn apply_things(&mut self, config: &Config) -> Result<(), LinkError> {
        let addresses = config.router.address.iter().map(|a| Thing::Address(a.addr, a.prefix_len));
        let routes = config.kernel_routes().into_iter().map(Thing::Route);
        let default = config.tunnels.iter().any(|t| t.default_route).then_some(Thing::Route(Ipv6Prefix::ALL));
        let wanted: Vec<Thing> = addresses.chain(routes).chain(default).collect();
        // First what is new: merged routes grow and shrink with their neighbours, and no moment may be without one.
        for thing in &wanted {
            if !self.own.contains_key(thing) {
                let is_ours = self.add(*thing).await? == Outcome::Added;
                self.own.insert(*thing, is_ours);
            }
        }
        let wanted: HashSet<Thing> = wanted.into_iter().collect();
        let over: Vec<(Thing, bool)> = self
            .own
            .iter()
            .filter(|(thing, _)| !wanted.contains(thing))
            .map(|(t, ours)| (*t, *ours))
            .collect();
        for (thing, is_ours) in over {
            match self.lent.get_mut(&thing) {
                Some(lent) => *lent |= is_ours,
                None if is_ours => self.remove(thing).await?,
                None => {}
            }
            self.own.remove(&thing);
        }
        Ok(())
    }

    async fn add(&self, thing: Thing) -> Result<Outcome, LinkError> {
        match thing {
            Thing::Address(addr, len) => self.links.add_address(&self.tun, addr, len).await,
            Thing::Local(addr) => self.links.add_local(&self.tun, addr).await,
            Thing::Route(prefix) => self.links.add_route(prefix, &self.tun, None).await,
        }
    }

    async fn remove(&self, thing: Thing) -> Result<(), LinkError> {
        match thing {
            Thing::Address(addr, len) => self.links.remove_address(&self.tun, addr, len).await,
            Thing::Local(addr) => self.links.remove_local(&self.tun, addr).await,
            Thing::Route(prefix) => self.links.remove_route(prefix, &self.tun, None).await,
        }
    }

    /// What is to be on the device and is not.
    async fn missing(&self) -> Result<Vec<Thing>, LinkError> {
        let Some((index, _)) = self.links.state(&self.tun).await? else { return Ok(Vec::new()) };
        let standing = self.links.standing(index).await?;
        let is_ours = |thing: &Thing| [&self.own, &self.lent].iter().any(|all| all.get(thing) == Some(&true));
        let is_there = |thing: &Thing| match thing {
            // One that somebody else has given the device may have another length: the kernel takes no second one.
            Thing::Address(addr, _) if !is_ours(thing) => {
                standing.addresses.iter().any(|(one, _)| one == addr)
            }
            Thing::Address(addr, len) => standing.addresses.contains(&(*addr, *len)),
            Thing::Local(addr) => standing.locals.contains(addr),
            Thing::Route(prefix) => standing.routes.contains(prefix),
        };
        let mut missing: Vec<Thing> =
            self.own.keys().chain(self.lent.keys()).filter(|thing| !is_there(thing)).copied().collect();
        // A route may lead to what an address brings; and the same things are always told in the same order.
        missing.sort_by_cached_key(|thing| (matches!(thing, Thing::Route(_)), thing.to_string()));
        missing.dedup();
        Ok(missing)
    }

    /// Finds what is gone: [`Self::put_back`] has it to do then. The MTU is put right here.
    pub async fn look_for_losses(&mut self) -> Result<(), LinkError> {
        self.owed = self.missing().await?;
        self.owed.reverse();
        self.back = Back::default();
        if self.links.mtu(&self.tun).await?.is_some_and(|mtu| mtu != u32::from(self.mtu)) {
            self.links.set_up(&self.tun, Some(u32::from(self.mtu))).await?;
        }
        Ok(())
    }

    /// Whether there is something to put back.
    pub fn owes(&self) -> bool {
        self.owing() > 0
    }

    /// How many things there are to put back.
    pub fn owing(&self) -> usize {
        self.owed.len()
    }

    /// Puts back some of what is gone; what was, once that was the last of it. What the kernel refuses is left out.
    pub async fn put_back(&mut self) -> Option<Back> {
        for _ in 0..TURN {
            let Some(thing) = self.owed.pop() else { break };
            if self.own.contains_key(&thing) || self.lent.contains_key(&thing) {
                self.put_thing_back(thing).await;
            }
        }
        self.owed.is_empty().then_some(self.back)
    }

    async fn put_thing_back(&mut self, thing: Thing) {
        let added = match thing {
            // It is not on this device, so it is on another. Which one is said of the first: that takes a look at all routes.
            Thing::Route(prefix) if self.back.refused > 0 => {
                match self.links.offer_route(prefix, &self.tun).await {
                    Ok(Outcome::AlreadyThere) => return self.back.refused += 1,
                    other => other,
                }
            }
            Thing::Address(..) | Thing::Local(_) | Thing::Route(_) => self.add(thing).await,
        };
        match added {
            Ok(Outcome::Added) => {
                self.back.count(thing);
                let held = if self.own.contains_key(&thing) { &mut self.own } else { &mut self.lent };
                held.insert(thing, true);
            }
            Ok(Outcome::AlreadyThere) => {}
            Err(why) => {
                if self.back.refused == 0 {
                    tracing::warn!(why = why.to_string(), "{thing} is not put back");
                }
                self.back.refused += 1;
            }
        }
    }

    /// How the device stands, for `sixway audit`: what is there, or `Err` with what is wrong.
    pub async fn judge(&self) -> Result<String, String> {
        let tun = &self.tun;
        let unknown = |why: LinkError| format!("it cannot be looked at: {why}");
        match self.links.state(tun).await.map_err(unknown)? {
            None => return Err(format!("{tun} is gone")),
            Some((_, false)) => return Err(format!("{tun} is down, and without addresses and routes")),
            Some((_, true)) => {}
        }
        let missing = self.missing().await.map_err(unknown)?;
        if missing.is_empty() {
            let count = self.own.len() + self.lent.len();
            return Ok(format!("{tun} is up; its addresses and routes are there, {count} in all"));
        }
        let shown: Vec<_> = missing.iter().take(5).map(ToString::to_string).collect();
        Err(format!("not on {tun}: {}; {} in all", shown.join(", "), missing.len()))
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
        let is_address = self.lent_addresses < MOST_ADDRESSES;
        self.lend_thing(if is_address { Thing::Address(addr, 128) } else { Thing::Local(addr) }).await;
    }

    async fn take_address_back(&mut self, addr: Ipv6Addr) {
        for thing in [Thing::Address(addr, 128), Thing::Local(addr)] {
            self.take_thing_back(thing).await;
        }
    }

    /// What the kernel refuses is remembered all the same: a device that is down may be up later.
    async fn lend_thing(&mut self, thing: Thing) {
        let added = self.add(thing).await;
        if let Err(why) = &added {
            tracing::warn!(why = why.to_string(), "{thing} is missing");
        }
        let before = self.lent.get(&thing).copied();
        self.lent.insert(thing, matches!(added, Ok(Outcome::Added)) || before == Some(true));
        self.lent_addresses += usize::from(before.is_none() && matches!(thing, Thing::Address(..)));
    }

    async fn take_thing_back(&mut self, thing: Thing) {
        let Some(is_ours) = self.lent.remove(&thing) else { return };
        self.lent_addresses -= usize::from(matches!(thing, Thing::Address(..)));
        if let Some(own) = self.own.get_mut(&thing) {
            *own |= is_ours;
            return;
        }
        if !is_ours {
            return;
        }
        if let Err(why) = self.remove(thing).await {
            tracing::warn!(why = why.to_string(), "{thing} stays");
        }
    }

    /// A route to what is behind a tunnel now, unless one of the configuration leads there.
    pub async fn lend_route(&mut self, prefix: Ipv6Prefix) {
        let covers = |thing: &Thing| matches!(thing, Thing::Route(route) if *route != Ipv6Prefix::ALL && route.covers(prefix));
        if self.aggregate && !self.own.keys().any(covers) {
            self.lend_thing(Thing::Route(prefix)).await;
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
        self.take_thing_back(Thing::Route(prefix)).await;
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
        let mut all: Vec<Thing> = self
            .lent
            .drain()
            .chain(self.own.drain())
            .filter(|(_, ours)| *ours)
            .map(|(thing, _)| thing)
            .collect();
        // An address takes the routes with it that its network has brought.
        all.sort_by_key(|thing| !matches!(thing, Thing::Route(_)));
        for thing in all {
            if let Err(why) = self.remove(thing).await {
                tracing::warn!(why = why.to_string(), "{thing} stays");
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::netlink::tests::{cable, in_fresh_namespace, run};

    async fn network() -> Network {
        let mut network = Network::look("a").await.unwrap();
        network.mtu = 1400;
        network
    }

    #[test]
    fn an_address_that_the_operator_gave_with_another_length_is_there() {
        in_fresh_namespace(|| {
            run(async |links| {
                cable(&links).await;
                let addr = "2001:db8::1".parse().unwrap();
                let _theirs = links.add_address("a", addr, 128).await.unwrap();
                let mut network = network().await;
                let thing = Thing::Address(addr, 64);
                let is_ours = network.add(thing).await.unwrap() == Outcome::Added;
                assert!(!is_ours, "the kernel takes no second one");
                network.own.insert(thing, is_ours);
                network.look_for_losses().await.unwrap();
                assert!(!network.owes());
                assert!(network.judge().await.is_ok());
                // Once it is gone ours comes in its place, with our length.
                links.remove_address("a", addr, 128).await.unwrap();
                assert!(network.judge().await.is_err());
                network.look_for_losses().await.unwrap();
                assert_eq!(network.put_back().await.map(|back| back.addresses), Some(1));
                assert!(network.judge().await.is_ok() && network.own[&thing]);
                links.remove_address("a", addr, 64).await.unwrap();
                let _theirs = links.add_address("a", addr, 128).await.unwrap();
                assert!(network.judge().await.is_err(), "ours is gone");
            });
        });
    }

    #[test]
    fn routes_that_others_have_are_refused_and_the_rest_comes_back_in_slices() {
        in_fresh_namespace(|| {
            run(async |links| {
                cable(&links).await;
                let mut network = network().await;
                for n in 0..TURN + 8 {
                    let prefix = format!("2001:db8:{n:x}::/48").parse().unwrap();
                    if n % 100 == 0 {
                        let _theirs = links.add_route(prefix, "b", None).await.unwrap();
                    }
                    network.own.insert(Thing::Route(prefix), true);
                }
                network.look_for_losses().await.unwrap();
                assert_eq!(network.owing(), TURN + 8);
                assert!(network.put_back().await.is_none(), "there is more");
                assert_eq!(network.owing(), 8);
                let back = network.put_back().await.unwrap();
                assert_eq!((back.routes, back.refused), (TURN + 2, 6));
            });
        });
    }
}
