//! Neighbour discovery and echo of all tunnels: the shell around `session`, fed by punts and the clock.

use std::collections::{BTreeMap, HashSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use sixway_dataplane::update::{Outer, TunnelId};

use super::session::{AdvertSchedule, Link, RaPolicy, Silence, advertisement, answer, withdrawal};
use crate::registry::{Live, Registry};

/// The router's end of every tunnel's link.
#[derive(Debug, Default)]
pub struct NdServer {
    schedule: AdvertSchedule,
    advertised_in: HashSet<TunnelId>,
    answered: u64,
    advertised: u64,
    silences: BTreeMap<String, u64>,
}

impl NdServer {
    /// No tunnels yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Tunnels came, went or changed: advertise in those that want it. Returns the last words to those that do no longer
    /// (RFC 4861 section 6.2.5).
    pub fn follow(&mut self, registry: &Registry) -> Vec<(TunnelId, Vec<u8>)> {
        let wants = |id: TunnelId| registry.tunnel(id).is_some_and(|live| live.config.ra.on);
        let gone: Vec<_> = self.advertised_in.iter().copied().filter(|id| !wants(*id)).collect();
        for id in &gone {
            self.advertised_in.remove(id);
            self.schedule.remove(*id);
        }
        for (id, _) in registry.iter().filter(|(_, live)| live.config.ra.on) {
            if self.advertised_in.insert(id) {
                self.schedule.add(id);
            }
        }
        gone.into_iter().filter_map(|id| last_words(registry, id)).collect()
    }

    /// A tunnel is new: advertise in it if it wants that.
    pub fn join(&mut self, registry: &Registry, id: TunnelId) {
        let wants = registry.tunnel(id).is_some_and(|live| live.config.ra.on);
        if wants && self.advertised_in.insert(id) {
            self.schedule.add(id);
        }
    }

    /// A tunnel is gone; there is nobody left to hear last words.
    pub fn leave(&mut self, id: TunnelId) {
        if self.advertised_in.remove(&id) {
            self.schedule.remove(id);
        }
    }

    /// The last words to all tunnels that were advertised in.
    pub fn farewell(&self, registry: &Registry) -> Vec<(TunnelId, Vec<u8>)> {
        self.advertised_in.iter().filter_map(|id| last_words(registry, *id)).collect()
    }

    /// The answer to a packet that came out of tunnel `id`, if it deserves one.
    pub fn handle(&mut self, registry: &Registry, id: TunnelId, packet: &[u8]) -> Option<Vec<u8>> {
        let live = registry.tunnel(id)?;
        match answer(&link(live, registry.local(), &policy(live)), packet) {
            Ok(reply) => {
                self.answered += 1;
                Some(reply)
            }
            Err(why) => {
                *self.silences.entry(name(why)).or_default() += 1;
                None
            }
        }
    }

    /// The unsolicited advertisements that are due.
    pub fn poll(&mut self, registry: &Registry, now: Duration) -> Vec<(TunnelId, Vec<u8>)> {
        let due: Vec<_> = self.schedule.due(now).collect();
        let advert = |id| {
            let live = registry.tunnel(id)?;
            Some((id, advertisement(&link(live, registry.local(), &policy(live)))?))
        };
        let out: Vec<_> = due.into_iter().filter_map(advert).collect();
        self.advertised += out.len() as u64;
        out
    }

    /// When [`Self::poll`] has something to do next.
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.schedule.poll_timeout()
    }

    /// What was answered, and what was not and why.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let mut counts = self.silences.clone();
        counts.insert("answered".to_owned(), self.answered);
        counts.insert("advertised".to_owned(), self.advertised);
        counts
    }
}

/// `Silence::HopLimit` is counted as `hop_limit`.
fn name(why: Silence) -> String {
    let mut name = String::new();
    for c in format!("{why:?}").chars() {
        if c.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(c.to_ascii_lowercase());
    }
    name
}

fn last_words(registry: &Registry, id: TunnelId) -> Option<(TunnelId, Vec<u8>)> {
    let live = registry.tunnel(id)?;
    let policy = RaPolicy { on: true, ..policy(live) };
    Some((id, withdrawal(&link(live, registry.local(), &policy))?))
}

fn policy(live: &Live) -> RaPolicy {
    let ra = &live.config.ra;
    RaPolicy { on: ra.on, managed: ra.managed, other: ra.other, prefix: ra.prefix.clone() }
}

fn link<'a>(live: &'a Live, router_addrs: &'a [Ipv6Addr], ra: &'a RaPolicy) -> Link<'a> {
    Link { link_local: link_local(&live.outer), router_addrs, mtu: live.config.mtu, ra }
}

/// Our link-local address in a tunnel: the outer IPv4 address in its last 32 bits (RFC 4213 section 3.7), or fe80::1
/// where no outer address is fixed. Every tunnel is a link of its own, so the same address in many does not clash.
pub fn link_local(outer: &Outer) -> Ipv6Addr {
    let addr = match outer {
        Outer::Proto41 { local, .. } => *local,
        Outer::Udp { local, .. } => local.addr,
    };
    let last = u32::from(addr.unwrap_or(Ipv4Addr::new(0, 0, 0, 1)));
    Ipv6Addr::from((0xfe80u128 << 112) | u128::from(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_local_address_carries_the_outer_one() {
        let outer = Outer::Proto41 { local: Some(Ipv4Addr::new(10, 71, 0, 1)), remote: Ipv4Addr::LOCALHOST };
        assert_eq!(link_local(&outer), "fe80::a47:1".parse::<Ipv6Addr>().unwrap());
        let any = Outer::Proto41 { local: None, remote: Ipv4Addr::LOCALHOST };
        assert_eq!(link_local(&any), "fe80::1".parse::<Ipv6Addr>().unwrap());
    }

    #[test]
    fn reasons_for_silence_are_counted_in_snake_case() {
        assert_eq!(name(Silence::HopLimit), "hop_limit");
    }
}
