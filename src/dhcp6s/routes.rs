//! The kernel's routes of one link: delegated prefixes lead to their clients, what is in no lease leads nowhere.
//!
//! Leases outlive the process, and so do their routes: they are found again at a start, and what is in no lease any more is
//! taken back. What leads nowhere belongs to the process.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;

use sixway_dataplane::update::Ipv6Prefix;

use super::shelf::{Change, Lease};
use crate::broker::BindKind;
use crate::link::{LinkError, Links};

/// The routes of one link.
#[derive(Debug)]
pub struct Routes {
    links: Links,
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
        Ok(Self { links, name: name.to_owned(), index, led, sunk: BTreeSet::new() })
    }

    /// The interface is another one of that name now: its routes have gone with the one before.
    pub fn follow(&mut self, index: u32) {
        self.index = index;
        self.led.clear();
    }

    /// Leases come and go, and their routes with them. A client behind a relay is the relay's to reach (RFC 8987).
    pub async fn change(&mut self, changes: &[Change]) {
        for change in changes {
            let lease = change.lease();
            if !is_routed(lease) {
                continue;
            }
            let wanted = lease.peer.filter(|_| matches!(change, Change::Has(_)));
            say(self.put(lease.prefix, wanted).await);
        }
    }

    /// Just these leases have routes.
    pub async fn set<'a>(&mut self, leases: impl Iterator<Item = &'a Lease>) {
        let routed = leases.filter(|lease| is_routed(lease));
        let wanted: BTreeMap<Ipv6Prefix, Ipv6Addr> =
            routed.filter_map(|lease| Some((lease.prefix, lease.peer?))).collect();
        let stale: Vec<Ipv6Prefix> =
            self.led.keys().filter(|prefix| !wanted.contains_key(prefix)).copied().collect();
        for prefix in stale {
            say(self.put(prefix, None).await);
        }
        for (prefix, via) in wanted {
            say(self.put(prefix, Some(via)).await);
        }
    }

    async fn put(&mut self, prefix: Ipv6Prefix, wanted: Option<Ipv6Addr>) -> Result<(), LinkError> {
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

fn is_routed(lease: &Lease) -> bool {
    lease.key.kind == BindKind::Prefix && !lease.key.client.is_empty()
}

fn say(done: Result<(), LinkError>) {
    if let Err(why) = done {
        tracing::warn!("{why}");
    }
}
