//! The kernel's routes of one link: delegated prefixes lead to their clients, what is in no lease leads nowhere.
//!
//! Leases outlive the process, and so do their routes: they are found again at a start, and what is in no lease any more is
//! taken back. What leads nowhere belongs to the process. What the kernel has lost, or could not take, is set again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;

use sixway_dataplane::update::Ipv6Prefix;

use super::shelf::Lease;
use crate::broker::BindKind;
use crate::link::bulk::{self, Bulk};
use crate::link::{LinkError, Links};

/// The routes of one link.
#[derive(Debug)]
pub struct Routes {
    links: Links,
    bulk: Bulk,
    name: String,
    index: u32,
    led: BTreeMap<Ipv6Prefix, Ipv6Addr>,
    sunk: BTreeSet<Ipv6Prefix>,
}

impl Routes {
    /// The routes of the interface with this name and number, with those that an earlier process has left.
    ///
    /// # Errors
    /// The kernel's routes cannot be read.
    pub async fn open(name: &str, index: u32) -> Result<Self, LinkError> {
        let links = Links::open()?;
        let led = links.led(index).await?;
        Ok(Self { links, bulk: Bulk::open()?, name: name.to_owned(), index, led, sunk: BTreeSet::new() })
    }

    /// The interface has this number now; what it has lost by that, or by anything else, is known afterwards.
    pub async fn look(&mut self, index: u32) {
        self.index = index;
        match self.links.led(index).await {
            Ok(led) => self.led = led,
            Err(why) => tracing::warn!("{why}"),
        }
    }

    /// Whether this prefix leads to a client here.
    pub fn leads(&self, prefix: Ipv6Prefix) -> bool {
        self.led.contains_key(&prefix)
    }

    /// A prefix leads to this neighbour, or to none any more.
    ///
    /// # Errors
    /// Why it cannot.
    pub async fn put(&mut self, prefix: Ipv6Prefix, wanted: Option<Ipv6Addr>) -> Result<(), LinkError> {
        if self.led.get(&prefix).copied() == wanted {
            return Ok(());
        }
        let dev = (&*self.name, self.index);
        match wanted {
            Some(via) => {
                self.links.lead(prefix, via, dev).await?;
                self.led.insert(prefix, via);
            }
            None => {
                self.led.remove(&prefix);
                self.links.unlead(prefix, dev).await?;
            }
        }
        Ok(())
    }

    /// Prefixes lead to their neighbours, or to none any more. Returns what cannot be so, and why.
    pub async fn put_all(&mut self, all: &[(Ipv6Prefix, Option<Ipv6Addr>)]) -> Vec<(Ipv6Prefix, LinkError)> {
        let is_new = |(prefix, via): &&(Ipv6Prefix, Option<Ipv6Addr>)| self.led.get(prefix) != via.as_ref();
        let new: Vec<_> = all.iter().filter(is_new).copied().collect();
        let mut failed = Vec::new();
        for some in new.chunks(bulk::MOST) {
            let refused = self.bulk.lead(some, self.index);
            for (n, (prefix, via)) in some.iter().enumerate() {
                if refused.contains(&n) {
                    // Something stands in the way, and may give way to this alone.
                    failed.extend(self.put(*prefix, *via).await.err().map(|why| (*prefix, why)));
                    continue;
                }
                match via {
                    Some(via) => drop(self.led.insert(*prefix, *via)),
                    None => drop(self.led.remove(prefix)),
                }
            }
        }
        failed
    }

    /// Just these leases have routes here; what cannot have one now is tried again the next time.
    pub async fn set<'a>(&mut self, leases: impl Iterator<Item = &'a Lease>) {
        let here = leases.filter(|lease| *lease.key.tunnel == *self.name);
        let wanted: BTreeMap<Ipv6Prefix, Ipv6Addr> =
            here.filter_map(|lease| Some((lease.prefix, way(lease)?))).collect();
        let stale = self.led.keys().filter(|prefix| !wanted.contains_key(prefix));
        let mut all: Vec<(Ipv6Prefix, Option<Ipv6Addr>)> = stale.map(|prefix| (*prefix, None)).collect();
        all.extend(wanted.into_iter().map(|(prefix, via)| (prefix, Some(via))));
        for (_, why) in self.put_all(&all).await {
            tracing::warn!("{why}");
        }
    }

    /// Just these go nowhere, as far as they are in no lease.
    pub async fn sink(&mut self, wanted: BTreeSet<Ipv6Prefix>) {
        let stale: Vec<Ipv6Prefix> = self.sunk.difference(&wanted).copied().collect();
        for prefix in stale {
            self.sunk.remove(&prefix);
            say(self.links.unsink(prefix).await);
        }
        for prefix in wanted {
            if self.sunk.insert(prefix) {
                say(self.links.sink(prefix).await);
            }
        }
    }
}

/// Where a lease is to lead: only prefixes do, and a client behind a relay is the relay's to reach (RFC 8987).
pub fn way(lease: &Lease) -> Option<Ipv6Addr> {
    let routed = lease.key.kind == BindKind::Prefix && !lease.key.client.is_empty();
    lease.peer.filter(|_| routed)
}

fn say(done: Result<(), LinkError>) {
    if let Err(why) = done {
        tracing::warn!("{why}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::BindKey;
    use crate::dhcp6s::plan::Life;
    use crate::link::netlink::tests::{cable, in_fresh_namespace, run};

    fn lease(prefix: &str, peer: &str) -> Lease {
        let key = BindKey { tunnel: "a".into(), client: [1].into(), kind: BindKind::Prefix, number: 1 };
        let life = Life { preferred: 1, valid: 1 };
        let peer = Some(peer.parse().unwrap());
        Lease { key, prefix: prefix.parse().unwrap(), life, until: 1, peer, reach: None }
    }

    #[test]
    fn what_a_dead_process_left_goes_and_what_the_kernel_lost_comes_back() {
        in_fresh_namespace(|| {
            run(async |links| {
                let index = cable(&links).await;
                let stale = "2001:db8:dead::/48".parse().unwrap();
                links.lead(stale, "fe80::9".parse().unwrap(), ("a", index)).await.unwrap();
                let lease = lease("2001:db8:1::/48", "fe80::1");
                let mut routes = Routes::open("a", index).await.unwrap();
                assert!(routes.leads(stale));
                routes.set([&lease].into_iter()).await;
                let expected = BTreeMap::from([(lease.prefix, lease.peer.unwrap())]);
                assert_eq!(links.led(index).await.unwrap(), expected, "nobody has the other");
                // Somebody takes it away, as the kernel does with all when an interface goes down.
                links.unlead(lease.prefix, ("a", index)).await.unwrap();
                routes.look(index).await;
                routes.set([&lease].into_iter()).await;
                assert_eq!(links.led(index).await.unwrap(), expected);
                // Leases of another link have no route here.
                let elsewhere = Lease { key: BindKey { tunnel: "b".into(), ..lease.key.clone() }, ..lease };
                routes.set([&elsewhere].into_iter()).await;
                assert!(links.led(index).await.unwrap().is_empty());
            });
        });
    }
}
