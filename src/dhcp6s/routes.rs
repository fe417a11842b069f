//! The kernel's routes of one link: delegated prefixes lead to their clients, what is in no lease leads nowhere.
//!
//! Leases outlive the process, and so do their routes: they are found again at a start, and what is in no lease any more is
//! taken back. What leads nowhere belongs to the process. What the kernel has lost, or could not take, is set again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;

use nix::errno::Errno;
use sixway_dataplane::update::Ipv6Prefix;

use super::shelf::Lease;
use crate::broker::BindKind;
use crate::link::bulk::{self, Bulk};
use crate::link::{LinkError, Links};

/// How many failures of one time are put into the log, each with its reason.
const SAID: usize = 8;

/// A prefix, where it was to lead, and why it does not.
type Step = (Ipv6Prefix, Option<Ipv6Addr>, Errno);

/// What is not as it was to be.
#[derive(Debug)]
pub struct Refused {
    /// Whose route.
    pub prefix: Ipv6Prefix,
    /// Whether there was to be one, or none any more.
    pub is_wanted: bool,
    /// Why that is not so.
    pub why: LinkError,
}

/// The routes of one link.
#[derive(Debug)]
pub struct Routes {
    links: Links,
    bulk: Bulk,
    name: String,
    index: u32,
    led: BTreeMap<Ipv6Prefix, Ipv6Addr>,
    sunk: BTreeSet<Ipv6Prefix>,
    /// Whose word it is that those go nowhere: each server has a link that no other one has.
    who: u32,
}

impl Routes {
    /// The routes of the interface with this name and number, with those that an earlier process has left.
    ///
    /// # Errors
    /// The kernel's routes cannot be read.
    pub async fn open(name: &str, index: u32) -> Result<Self, LinkError> {
        let links = Links::open()?;
        let (led, sunk) = (links.led(index).await?, links.sunk(index).await?);
        Ok(Self { links, bulk: Bulk::open()?, name: name.to_owned(), index, led, sunk, who: index })
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

    /// Prefixes lead to their neighbours, or to none any more. Returns what cannot be so, and why.
    pub async fn put_all(&mut self, all: &[(Ipv6Prefix, Option<Ipv6Addr>)]) -> Vec<Refused> {
        let mut steps = Vec::new();
        for (prefix, via) in all.iter().filter(|(prefix, via)| self.led.get(prefix) != via.as_ref()) {
            // What leads to another neighbour goes first.
            let moves = via.is_some() && self.led.contains_key(prefix);
            steps.extend(Some((*prefix, None)).filter(|_| moves));
            steps.push((*prefix, *via));
        }
        let refused = self.ask(&steps, Bulk::lead);
        let is_unclear = |step: &Step| matches!(step.2, Errno::EEXIST | Errno::ENOBUFS);
        let (unclear, refused): (Vec<Step>, Vec<Step>) = refused.into_iter().partition(is_unclear);
        let mut failed: Vec<Refused> = refused.into_iter().map(|step| self.failed(step)).collect();
        if !unclear.is_empty() {
            failed.extend(self.put_instead(unclear).await);
        }
        failed
    }

    /// Something stands in the way, or nothing was heard: one look at all routes says what there is. What is on this device is
    /// replaced, what is on another one stays.
    async fn put_instead(&mut self, unclear: Vec<Step>) -> Vec<Refused> {
        let prefixes = unclear.iter().map(|(prefix, ..)| *prefix).collect();
        let holders = match self.links.holders(&prefixes).await {
            Ok(holders) => holders,
            Err(why) => {
                tracing::warn!("{why}");
                return unclear.into_iter().map(|step| self.failed(step)).collect();
            }
        };
        let (mut again, mut failed) = (Vec::new(), Vec::new());
        for (prefix, via, _) in unclear {
            let held = holders.get(&prefix).filter(|names| via.is_some() && !names.contains(&self.name));
            match held.and_then(|names| names.first()) {
                Some(held) => {
                    let (wanted, held) = (self.name.clone(), held.clone());
                    let why = LinkError::RouteTaken { prefix, wanted, held };
                    failed.push(Refused { prefix, is_wanted: true, why });
                }
                None => again.push((prefix, via)),
            }
        }
        let refused = self.ask(&again, Bulk::lead_instead);
        failed.extend(refused.into_iter().map(|step| self.failed(step)));
        failed
    }

    /// Returns what the kernel has refused.
    fn ask(
        &mut self,
        steps: &[(Ipv6Prefix, Option<Ipv6Addr>)],
        how: impl Fn(&mut Bulk, &[(Ipv6Prefix, Option<Ipv6Addr>)], u32) -> BTreeMap<usize, Errno>,
    ) -> Vec<Step> {
        let mut refused = Vec::new();
        for some in steps.chunks(bulk::MOST) {
            let not_done = how(&mut self.bulk, some, self.index);
            for (n, (prefix, via)) in some.iter().enumerate() {
                let why = not_done.get(&n);
                match via.filter(|_| why.is_none()) {
                    Some(via) => drop(self.led.insert(*prefix, via)),
                    None => drop(self.led.remove(prefix)),
                }
                refused.extend(why.map(|why| (*prefix, *via, *why)));
            }
        }
        refused
    }

    fn failed(&self, (prefix, via, why): Step) -> Refused {
        let what = match via {
            Some(via) => format!("route {prefix} to {via} on '{}'", self.name),
            None => format!("remove the route of {prefix} to '{}'", self.name),
        };
        Refused { prefix, is_wanted: via.is_some(), why: LinkError::from_errno(what, &self.name, why) }
    }

    /// Just these leases have routes here; what cannot have one now is tried again the next time.
    pub async fn set<'a>(&mut self, leases: impl Iterator<Item = &'a Lease>) {
        let here = leases.filter(|lease| *lease.key.tunnel == *self.name);
        let wanted: BTreeMap<Ipv6Prefix, Ipv6Addr> =
            here.filter_map(|lease| Some((lease.prefix, way(lease)?))).collect();
        let stale = self.led.keys().filter(|prefix| !wanted.contains_key(prefix));
        let mut all: Vec<(Ipv6Prefix, Option<Ipv6Addr>)> = stale.map(|prefix| (*prefix, None)).collect();
        all.extend(wanted.into_iter().map(|(prefix, via)| (prefix, Some(via))));
        let failed = self.put_all(&all).await;
        say_all(&failed);
    }

    /// Just these go nowhere, as far as they are in no lease.
    pub async fn sink(&mut self, wanted: BTreeSet<Ipv6Prefix>) {
        let stale: Vec<Ipv6Prefix> = self.sunk.difference(&wanted).copied().collect();
        for prefix in stale {
            self.sunk.remove(&prefix);
            say(self.links.unsink(prefix, self.who).await);
        }
        for prefix in wanted {
            if self.sunk.insert(prefix) {
                say(self.links.sink(prefix, self.who).await);
            }
        }
    }
}

/// Where a lease is to lead: only prefixes do, and a client behind a relay is the relay's to reach (RFC 8987).
pub fn way(lease: &Lease) -> Option<Ipv6Addr> {
    let routed = lease.key.kind == BindKind::Prefix && !lease.key.client.is_empty();
    lease.peer.filter(|_| routed)
}

/// Puts failures into the log: there may be as many as leases.
pub fn say_all(failed: &[Refused]) {
    for Refused { why, .. } in failed.iter().take(SAID) {
        tracing::warn!("{why}");
    }
    if let Some(further) = failed.len().checked_sub(SAID).filter(|further| *further > 0) {
        tracing::warn!("the same with {further} further prefixes");
    }
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
                let mut bulk = Bulk::open().unwrap();
                assert!(bulk.lead(&[(stale, Some("fe80::9".parse().unwrap()))], index).is_empty());
                let lease = lease("2001:db8:1::/48", "fe80::1");
                let mut routes = Routes::open("a", index).await.unwrap();
                assert!(routes.leads(stale));
                routes.set([&lease].into_iter()).await;
                let expected = BTreeMap::from([(lease.prefix, lease.peer.unwrap())]);
                assert_eq!(links.led(index).await.unwrap(), expected, "nobody has the other");
                // Somebody takes it away, as the kernel does with all when an interface goes down.
                assert!(bulk.lead(&[(lease.prefix, None)], index).is_empty());
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
    /// A thousand that others have, and a thousand that lead elsewhere than was known: each time one look, and no more.
    #[test]
    fn many_that_are_refused_cost_little_more_than_one() {
        in_fresh_namespace(|| {
            run(async |links| {
                let index = cable(&links).await;
                let other = links.index("b").await.unwrap().unwrap();
                let prefix = |n: u32| format!("2001:db8:{n:x}::/48").parse::<Ipv6Prefix>().unwrap();
                let (one, two) = (Some("fe80::1".parse().unwrap()), Some("fe80::2".parse().unwrap()));
                let mut bulk = Bulk::open().unwrap();
                let mut routes = Routes::open("a", index).await.unwrap();
                let theirs: Vec<_> = (0..1000).map(|n| (prefix(n), one)).collect();
                let strange: Vec<_> = (1000..2000).map(|n| (prefix(n), one)).collect();
                theirs.chunks(bulk::MOST).for_each(|some| assert!(bulk.lead(some, other).is_empty()));
                strange.chunks(bulk::MOST).for_each(|some| assert!(bulk.lead(some, index).is_empty()));
                let all: Vec<_> = (0..3000).map(|n| (prefix(n), two)).collect();
                let began = std::time::Instant::now();
                let failed = routes.put_all(&all).await;
                // A look at all routes for each refusal took minutes.
                assert!(began.elapsed() < std::time::Duration::from_secs(20), "{:?}", began.elapsed());
                assert!(
                    failed
                        .iter()
                        .map(|one| (one.prefix, None))
                        .eq(theirs.iter().map(|(p, _)| (*p, None::<()>)))
                );
                let why = failed[0].why.to_string();
                assert!(failed[0].is_wanted && why.contains("already leads to 'b'"), "{why}");
                let led = links.led(index).await.unwrap();
                assert!(led.len() == 2000 && led.values().all(|via| Some(*via) == two));
                // A client has another address now: its route moves, and nobody looks at all.
                assert!(routes.put_all(&[(prefix(2500), one)]).await.is_empty());
                assert_eq!(links.led(index).await.unwrap().get(&prefix(2500)).copied(), one);
                let none: Vec<_> = all.iter().map(|(prefix, _)| (*prefix, None)).collect();
                assert!(routes.put_all(&none).await.is_empty() && links.led(index).await.unwrap().is_empty());
            });
        });
    }
}
