//! What has happened on the links of a server, by name.

use std::collections::BTreeMap;

use super::Server;
use super::port::Port;
use super::shortage::News;
use super::vacancy::Extent;
use crate::dhcp6ctl::server::Control;

/// What is counted beside what a session counts, by name.
pub const LINK_COUNTS: [&str; 6] =
    ["unsent", "unrouted", "looks", "leases", "lease_query_left_out", "pools_full"];

/// Whether an interface is not there yet: nothing else is counted there.
pub const ABSENT: &str = "absent";
/// What a link counts that is not served because the leases are damaged, and nothing else.
pub const DAMAGED: &str = "damaged";

impl Server {
    /// What has happened, by name: messages, answers, what was not answered and why, and commands. Of all links together.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let mut all: BTreeMap<String, u64> = BTreeMap::new();
        for (name, n) in self.ports.iter().flat_map(counts_of) {
            *all.entry(name).or_default() += n;
        }
        let commands = self.control.as_ref().map(Control::counts).unwrap_or_default();
        all.extend(commands.into_iter().map(|(name, n)| (format!("control_{name}"), n)));
        all.extend(self.own_counts(
            self.ports.iter().map(Port::unsent).sum(),
            self.shelf.len(),
            self.shelf.short().count() as u64,
        ));
        all
    }

    fn own_counts(&self, unsent: u64, leases: usize, full: u64) -> impl Iterator<Item = (String, u64)> {
        let own = LINK_COUNTS.into_iter().zip([
            unsent,
            self.unrouted,
            self.looks,
            leases as u64,
            self.letters.left_out(),
            full,
        ]);
        own.chain([("not_kept", self.not_kept)]).map(|(name, n)| (name.to_owned(), n))
    }

    /// The same of each link; what is counted for all of them stands with each.
    pub(super) fn counts_of_links(&self) -> BTreeMap<String, BTreeMap<String, u64>> {
        let mut leases: BTreeMap<&str, usize> = BTreeMap::new();
        self.shelf.iter().for_each(|lease| *leases.entry(&*lease.key.tunnel).or_default() += 1);
        let of = |port: &Port| {
            let here = leases.get(&*port.name).copied().unwrap_or_default();
            let all =
                counts_of(port).chain(self.own_counts(port.unsent(), here, self.full_pools(&port.name)));
            (port.name.clone(), all.collect())
        };
        let absent = self.absent.iter().map(|name| (name.clone(), BTreeMap::from([(ABSENT.to_owned(), 1)])));
        self.ports.iter().map(of).chain(absent).collect()
    }

    /// Puts into the log which pools have nothing left, or have room again.
    pub(super) fn say_shortages(&mut self) {
        for (pool, news) in self.shelf.poll_shortages() {
            let links: Vec<&str> = self.shelf.plan().links_with(pool).collect();
            let whose = if links.is_empty() { "a host".to_owned() } else { links.join(", ") };
            match news {
                News::Full => tracing::warn!(
                    event = "pool_full",
                    "nothing is left of {pool}, the pool of {whose}: who asks is told so; make it larger, or its lifetimes \
                     shorter (`sixway leases` lists who has what)"
                ),
                News::Room => {
                    tracing::warn!(event = "pool_has_room", "{pool}, the pool of {whose}, has room again")
                }
            }
        }
    }

    /// Of how many pools of a link nothing is left.
    fn full_pools(&self, link: &str) -> u64 {
        let is_here = |pool: &Extent| self.shelf.plan().links_with(*pool).any(|name| name == link);
        self.shelf.short().filter(is_here).count() as u64
    }

    /// Puts into the log what has happened, as far as anything has.
    pub(super) fn say_counts(&self) {
        let counts = self.counts();
        let some: Vec<String> =
            counts.iter().filter(|(_, n)| **n > 0).map(|(name, n)| format!("{name} {n}")).collect();
        tracing::info!(event = "counts", leases = self.leases(), "{}", some.join(", "));
    }
}

fn counts_of(port: &Port) -> impl Iterator<Item = (String, u64)> {
    let all = port.session.counts().iter().map(|(name, n)| (*name, *n));
    all.chain([("listeners", port.session.listeners() as u64)]).map(|(name, n)| (name.to_owned(), n))
}
