//! What a delegation has put on this host: brought to what a plan says, and taken back.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::Ipv6Addr;
use std::path::Path;
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use sixway_dataplane::update::Ipv6Prefix;

use super::plan::{Event, Life, Plan, Wish};
use super::report::{Absent, Given};
use crate::dhcpv6::client::Lease;
use crate::dhcpv6::codec::IaKind;
use crate::link::device::Found;
use crate::link::pace::Pace;
use crate::link::{Links, Outcome};
use crate::script;

/// Networks that hosts are told to let go of: the last ones.
const MOST_GONE: usize = 8;

/// An interface, an address and the length of its network in bits.
type Key = (String, Ipv6Addr, u8);

/// What is on this host because of a lease.
pub(super) struct State {
    wish: Wish,
    links: Links,
    lease: Lease,
    /// What is ours, and why it is not there if it is not.
    addresses: BTreeMap<Key, Option<Absent>>,
    /// How often is put back what somebody takes away.
    pace: Pace,
    /// Whether something waits for that.
    is_pending: bool,
    black_holes: Vec<Ipv6Prefix>,
    gone: Vec<(String, Ipv6Prefix)>,
    notes: Vec<String>,
}

impl State {
    /// Nothing is there yet. Needs a tokio runtime.
    pub(super) fn open(wish: Wish) -> anyhow::Result<Self> {
        let (lease, addresses) = (Lease::default(), BTreeMap::new());
        let (black_holes, gone, notes) = (Vec::new(), Vec::new(), Vec::new());
        let (links, pace) = (Links::open()?, Pace::default());
        let is_pending = false;
        Ok(Self { wish, links, lease, addresses, pace, is_pending, black_holes, gone, notes })
    }

    pub(super) fn wish(&self) -> &Wish {
        &self.wish
    }

    /// What is where.
    pub(super) fn given(&self) -> Vec<Given> {
        let given = self.addresses.iter().map(|((interface, addr, len), absent)| Given {
            interface: interface.clone(),
            addr: *addr,
            len: *len,
            absent: absent.clone(),
        });
        given.collect()
    }

    /// The tunnel's device is another one now, with nothing of ours on it.
    pub(super) fn forget_device(&mut self) {
        let tun = &self.wish.tun;
        self.addresses.retain(|(interface, ..), _| interface != tun);
    }

    /// Makes this host as the lease wants it, and tells whoever is to be told.
    pub(super) async fn put(&mut self, lease: Lease, now: Duration) {
        let plan = self.wish.plan(&lease, &on_link(&self.wish.tun), now);
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
        let held = self.lease.held.iter().filter(|held| held.kind == IaKind::Prefix);
        let held = held.map(|held| held.prefix.to_string()).collect::<Vec<_>>().join(", ");
        match event {
            Event::Up | Event::Changed => {
                tracing::info!(event = "delegated", "delegated: {held}");
            }
            Event::Renewed => tracing::debug!(event = "renewed", "renewed: {held}"),
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
    fn over(&self, plan: &Plan) -> Vec<Key> {
        let is_wanted = |(interface, addr, len): &&Key| {
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
            self.place(key, life).await;
        }
    }

    /// Puts an address where it belongs, if there is such a place now.
    async fn place(&mut self, key: Key, life: Life) {
        let (interface, addr, len) = &key;
        let absent = match self.links.state(interface).await {
            Ok(None) => Some(Absent::NoInterface),
            // What is put on an interface that is down goes or stays, by how long it lasts; and no route comes with it.
            Ok(Some((_, false))) => Some(Absent::Down),
            Ok(Some((_, true))) => match self.links.lend_address(interface, *addr, *len, life).await {
                Ok(Outcome::Added) => None,
                // Ours, and for ever: it is as it was put there.
                Ok(Outcome::AlreadyThere) if self.addresses.get(&key) == Some(&None) => return,
                // What somebody else has put there is not ours to remove.
                Ok(Outcome::AlreadyThere) => {
                    self.addresses.remove(&key);
                    return;
                }
                Err(why) => Some(Absent::Refused(why.to_string())),
            },
            Err(why) => Some(Absent::Refused(why.to_string())),
        };
        self.note(key, absent);
    }

    /// How it is with an address, in the log as well if that is news.
    fn note(&mut self, key: Key, absent: Option<Absent>) {
        let (interface, addr, len) = &key;
        let before = self.addresses.get(&key);
        match (before, &absent) {
            (Some(was), now) if was == now => return,
            (Some(Some(_)), None) => {
                tracing::info!(event = "given", "{addr}/{len} is on {interface} now");
            }
            (_, None) => {}
            (_, Some(why)) => tracing::warn!(
                event = "not_given",
                "{addr}/{len} is not on {interface}: {why}; it is put there as soon as that is possible"
            ),
        }
        self.addresses.insert(key, absent);
    }

    /// When somebody should look again because what was taken away could not be put back at once, by the same clock as `now`.
    pub(super) fn due(&self) -> Option<Duration> {
        self.is_pending.then(|| self.pace.due())
    }

    /// Something has become of interfaces or addresses: what is missing where it can be is put there again.
    pub(super) async fn look(&mut self, now: Duration) {
        self.is_pending = false;
        if self.addresses.is_empty() {
            return;
        }
        // Who cannot look now looks again at the next turn.
        let Ok(found) = self.links.ipv6_addresses().await else { return };
        let plan = self.wish.plan(&self.lease, &on_link(&self.wish.tun), now);
        let keys: Vec<Key> = self.addresses.keys().cloned().collect();
        let mut missing = Vec::new();
        for key in keys {
            match self.links.state(&key.0).await {
                Ok(Some((index, true))) => match on(&found, &key, index) {
                    Some(found) => self.note(key, found.is_taken.then_some(Absent::Taken)),
                    None => missing.push(key),
                },
                Ok(Some((_, false))) => self.note(key, Some(Absent::Down)),
                Ok(None) => self.note(key, Some(Absent::NoInterface)),
                Err(_) => {}
            }
        }
        if !missing.is_empty() {
            self.place_again(missing, &plan, now).await;
        }
    }

    async fn place_again(&mut self, missing: Vec<Key>, plan: &Plan, now: Duration) {
        self.is_pending = now < self.pace.due();
        for key in missing {
            let was_there = self.addresses.get(&key) == Some(&None);
            let placed =
                plan.addresses.iter().find(|p| (&p.interface, p.addr, p.len) == (&key.0, key.1, key.2));
            let Some(placed) = placed.filter(|placed| placed.life.1 > 0) else { continue };
            if self.is_pending {
                if was_there {
                    self.note(key, Some(Absent::Lost));
                }
                continue;
            }
            self.place(key.clone(), placed.life).await;
            if was_there && self.addresses.get(&key) == Some(&None) {
                let (interface, addr, len) = key;
                tracing::info!(event = "given", "{addr}/{len} was gone from {interface} and is put back");
            }
        }
        if !self.is_pending {
            self.pace.did(now);
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

/// The address on the device of this number, if it is there.
fn on<'a>(found: &'a [Found], (_, addr, len): &Key, index: u32) -> Option<&'a Found> {
    found.iter().find(|one| (one.index, one.addr, one.len) == (index, *addr, *len))
}

/// The prefixes that lie on a device, by its own addresses.
fn on_link(device: &str) -> Vec<Ipv6Prefix> {
    let own = getifaddrs().into_iter().flatten().filter(|one| one.interface_name == device);
    let own = own.filter_map(|one| {
        let addr = one.address.as_ref()?.as_sockaddr_in6()?.ip();
        let mask = one.netmask.as_ref()?.as_sockaddr_in6()?.ip();
        let len = u128::from(mask).leading_ones() as u8;
        Ipv6Prefix::new(addr, len).filter(|_| len < 128 && !addr.is_unicast_link_local())
    });
    own.collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delegation::plan::tests::{lease, wish};
    use crate::link::netlink::tests::{cable, in_fresh_namespace, run};

    #[test]
    fn what_is_given_for_ever_stays_ours_and_where_nothing_is_nothing_waits() {
        in_fresh_namespace(|| {
            run(async |links| {
                cable(&links).await;
                let wish = Wish { radvd: None, tun: "b".to_owned(), ..wish(&["a"]) };
                let mut state = State::open(wish).unwrap();
                let mut endless = lease("2001:db8:200::/56");
                endless.held.iter_mut().for_each(|held| (held.preferred, held.valid) = (None, None));
                let now = Duration::ZERO;
                let on_a = |state: &State| state.given().iter().any(|given| given.interface == "a");
                for _ in 0..2 {
                    state.put(endless.clone(), now).await;
                    assert!(on_a(&state), "however often it is put there");
                }
                // What waited to be put back is nobody's now.
                state.is_pending = true;
                state.put(Lease::default(), now).await;
                state.look(now).await;
                assert_eq!((state.due(), on_a(&state)), (None, false));
                let left = links.ipv6_addresses().await.unwrap();
                assert!(
                    left.iter().all(|found| found.addr.is_unicast_link_local() || found.addr.is_loopback())
                );
            });
        });
    }
}
