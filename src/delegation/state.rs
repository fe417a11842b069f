//! What a delegation has put on this host: brought to what a plan says, and taken back.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use sixway_dataplane::update::Ipv6Prefix;

use super::plan::{Event, Life, Plan, Wish};
use super::report::Given;
use crate::dhcpv6::client::Lease;
use crate::link::{Links, Outcome};
use crate::script;

/// Networks that hosts are told to let go of: the last ones.
const MOST_GONE: usize = 8;

/// What is on this host because of a lease.
pub(super) struct State {
    wish: Wish,
    links: Links,
    lease: Lease,
    /// By interface, address and length.
    addresses: BTreeMap<Given, Life>,
    black_holes: Vec<Ipv6Prefix>,
    gone: Vec<(String, Ipv6Prefix)>,
    notes: Vec<String>,
}

impl State {
    /// Nothing is there yet. Needs a tokio runtime.
    pub(super) fn open(wish: Wish) -> anyhow::Result<Self> {
        let (lease, addresses) = (Lease::default(), BTreeMap::new());
        let (black_holes, gone, notes) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self { wish, links: Links::open()?, lease, addresses, black_holes, gone, notes })
    }

    pub(super) fn wish(&self) -> &Wish {
        &self.wish
    }

    /// What is where.
    pub(super) fn given(&self) -> Vec<Given> {
        self.addresses.keys().cloned().collect()
    }

    /// The tunnel's device is another one now, with nothing of ours on it.
    pub(super) fn forget_device(&mut self) {
        let tun = &self.wish.tun;
        self.addresses.retain(|(interface, ..), _| interface != tun);
    }

    /// Makes this host as the lease wants it, and tells whoever is to be told.
    pub(super) async fn put(&mut self, lease: Lease, now: Duration) {
        let plan = self.wish.plan(&lease, now);
        let event = Event::between(&self.lease, &lease);
        let before = std::mem::replace(&mut self.lease, lease);
        let Some(event) = event else { return };
        // The script takes down what it has put up while it is still there, and has radvd read what hosts are to let go of.
        if event == Event::Down {
            self.note_gone(&plan);
            self.write_radvd(&plan);
            self.run_script(event, &Plan::default(), &before, now).await;
        }
        self.put_black_holes(&plan).await;
        self.put_addresses(&plan).await;
        self.write_radvd(&plan);
        self.tell(event, &plan);
        if event != Event::Down {
            let lease = self.lease.clone();
            self.run_script(event, &plan, &lease, now).await;
        }
    }

    fn tell(&mut self, event: Event, plan: &Plan) {
        let shown =
            |prefixes: &[Ipv6Prefix]| prefixes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        match event {
            Event::Up | Event::Changed => {
                tracing::info!(event = "delegated", "delegated: {}", shown(&plan.black_holes));
            }
            Event::Renewed => tracing::debug!(event = "renewed", "renewed: {}", shown(&plan.black_holes)),
            Event::Informed => tracing::debug!(event = "informed", "name servers and the like have changed"),
            Event::Down => tracing::info!(event = "undelegated", "what was delegated is gone"),
        }
        plan.notes.iter().filter(|note| !self.notes.contains(note)).for_each(|note| tracing::warn!("{note}"));
        self.notes.clone_from(&plan.notes);
    }

    /// Before any address: no packet to what was just delegated is to go round.
    async fn put_black_holes(&mut self, plan: &Plan) {
        for prefix in
            plan.black_holes.iter().filter(|p| !self.black_holes.contains(p)).copied().collect::<Vec<_>>()
        {
            match self.links.add_unreachable(prefix).await {
                Ok(_) => self.black_holes.push(prefix),
                Err(why) => tracing::warn!("what of {prefix} is on no interface is not unreachable: {why}"),
            }
        }
        let over: Vec<_> =
            self.black_holes.extract_if(.., |prefix| !plan.black_holes.contains(prefix)).collect();
        for prefix in over {
            if let Err(why) = self.links.remove_unreachable(prefix).await {
                tracing::warn!("{prefix} stays unreachable: {why}");
            }
        }
    }

    /// Addresses that the plan has no more.
    fn over(&self, plan: &Plan) -> Vec<Given> {
        let is_wanted = |(interface, addr, len): &&Given| {
            plan.addresses.iter().any(|p| (&p.interface, p.addr, p.len) == (interface, *addr, *len))
        };
        self.addresses.keys().filter(|key| !is_wanted(key)).cloned().collect()
    }

    /// Hosts will be told to let go of the networks of these.
    fn note_gone(&mut self, plan: &Plan) {
        for (interface, addr, len) in self.over(plan) {
            let net = Ipv6Prefix::new(addr, len).filter(|_| len < 128).map(|net| (interface, net));
            self.gone.extend(net.filter(|net| !self.gone.contains(net)));
        }
        self.gone.drain(..self.gone.len().saturating_sub(MOST_GONE));
    }

    async fn put_addresses(&mut self, plan: &Plan) {
        self.note_gone(plan);
        let wanted: BTreeMap<_, _> = plan
            .addresses
            .iter()
            .map(|placed| ((placed.interface.clone(), placed.addr, placed.len), placed.life))
            .collect();
        for (interface, addr, len) in self.over(plan) {
            self.addresses.remove(&(interface.clone(), addr, len));
            if let Err(why) = self.links.take_address_back(&interface, addr, len).await {
                tracing::warn!("{addr} stays on {interface}: {why}");
            }
        }
        for (key, life) in wanted {
            let (interface, addr, len) = &key;
            match self.links.lend_address(interface, *addr, *len, life).await {
                Ok(Outcome::Added) => drop(self.addresses.insert(key, life)),
                // What somebody else has put there is not ours to remove.
                Ok(Outcome::AlreadyThere) => {}
                Err(why) => tracing::warn!("{addr}/{len} is not on {interface}: {why}"),
            }
        }
    }

    fn write_radvd(&self, plan: &Plan) {
        let Some(file) = &self.wish.radvd else { return };
        let text = self.wish.radvd(plan, &self.lease, &self.gone, link_mtu);
        if let Err(why) = replace(file, &text) {
            tracing::warn!("cannot write radvd's configuration to {}: {why}", file.display());
        }
    }

    async fn run_script(&self, event: Event, plan: &Plan, lease: &Lease, now: Duration) {
        let Some(path) = &self.wish.script else { return };
        let variables = self.wish.variables(event, plan, lease, now);
        // The prefix is good whatever the script makes of it.
        if let Err(why) = script::run(path, &variables).await {
            tracing::warn!("{why:#}");
        }
    }
}

/// The MTU of an interface, if it is there.
fn link_mtu(interface: &str) -> Option<u32> {
    let text = std::fs::read_to_string(Path::new("/sys/class/net").join(interface).join("mtu"));
    text.ok()?.trim().parse().ok()
}

/// Puts a file in its place, whole or not at all.
fn replace(file: &Path, text: &str) -> std::io::Result<()> {
    let mut beside = file.as_os_str().to_owned();
    beside.push(".new");
    let beside = Path::new(&beside);
    let mut new = std::fs::File::create(beside)?;
    new.write_all(text.as_bytes())?;
    new.sync_all()?;
    std::fs::rename(beside, file)
}
