//! What has happened on the links of a server, by name.

use std::collections::BTreeMap;

use super::Server;
use super::port::Port;
use crate::dhcp6ctl::server::Control;

impl Server {
    /// What has happened, by name: messages, answers, what was not answered and why, and commands. Of all links together.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let mut all: BTreeMap<String, u64> = BTreeMap::new();
        for (name, n) in self.ports.iter().flat_map(counts_of) {
            *all.entry(name).or_default() += n;
        }
        let commands = self.control.as_ref().map(Control::counts).unwrap_or_default();
        all.extend(commands.into_iter().map(|(name, n)| (format!("control_{name}"), n)));
        all.extend(self.own_counts());
        all.insert("leases".to_owned(), self.shelf.len() as u64);
        all
    }

    fn own_counts(&self) -> [(String, u64); 3] {
        [("not_kept", self.not_kept), ("unrouted", self.unrouted), ("looks", self.looks)]
            .map(|(name, n)| (name.to_owned(), n))
    }

    /// The same of each link; what is counted for all of them stands with each.
    pub(super) fn counts_of_links(&self) -> BTreeMap<String, BTreeMap<String, u64>> {
        let mut leases: BTreeMap<&str, u64> = BTreeMap::new();
        self.shelf.iter().for_each(|lease| *leases.entry(&*lease.key.tunnel).or_default() += 1);
        let of = |port: &Port| {
            let own = counts_of(port);
            let here = leases.get(&*port.name).copied().unwrap_or_default();
            (port.name.clone(), own.chain(self.own_counts()).chain([("leases".to_owned(), here)]).collect())
        };
        self.ports.iter().map(of).collect()
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
    let own = [("unsent", port.unsent()), ("listeners", port.session.listeners() as u64)];
    let all = port.session.counts().iter().map(|(name, n)| (*name, *n));
    all.chain(own).map(|(name, n)| (name.to_owned(), n))
}
