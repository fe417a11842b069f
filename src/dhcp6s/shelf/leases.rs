//! What sessions ask of the shelf: offers, leases, what is given back or refused, and what clients have proved. Pure.

use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Duration;

use sixway_dataplane::update::Ipv6Prefix;

use super::{Due, Lease, MAX_DECLINED, Shelf};
use crate::broker::{BindKey, BindWish};
use crate::dhcp6s::plan::Life;
use crate::dhcpv6::session::{Known, Lack, Leases};

impl Leases for Shelf {
    fn offer(&mut self, wishes: &[BindWish]) -> Vec<Result<Ipv6Prefix, Lack>> {
        if self.refuses() {
            return wishes.iter().map(|_| Err(Lack)).collect();
        }
        let mut taken = Vec::new();
        let mut offered = Vec::with_capacity(wishes.len());
        // What is offered for one wish must not be for the next.
        let several = wishes.len() > 1;
        for wish in wishes {
            let due = self.judge(wish, &taken);
            if let Some(Due::New { prefix, .. }) = due.as_ref().filter(|_| several) {
                self.vacancies.values_mut().for_each(|vacancy| vacancy.occupy(*prefix));
                taken.push(*prefix);
            }
            offered.push(due.and_then(|due| due.first()).ok_or(Lack));
        }
        // Nothing is kept.
        taken.retain(|prefix| self.all.get(*prefix).is_none());
        taken.into_iter().for_each(|prefix| self.vacate(prefix));
        offered
    }

    fn bind(&mut self, wish: &BindWish, _lasts: Duration) -> Result<Vec<Ipv6Prefix>, Lack> {
        let given = match self.judge(wish, &[]) {
            // What is not given any more beside that ends at its time.
            Some(Due::Has(given)) => given,
            _ if self.refuses() => return Err(Lack),
            None => return Err(Lack),
            Some(Due::New { prefix, life }) => {
                // The client's own on the link that it has left, or nobody's and wanted again.
                self.take(prefix);
                vec![(prefix, life)]
            }
        };
        for (prefix, life) in &given {
            self.renew(wish, *prefix, *life)?;
        }
        self.told.extend(given.iter().map(|(prefix, _)| (wish.key.clone(), *prefix)));
        Ok(given.into_iter().map(|(prefix, _)| prefix).collect())
    }

    fn bound(&self, key: &BindKey) -> Vec<Ipv6Prefix> {
        self.all.of(key).collect()
    }

    fn release(&mut self, prefix: Ipv6Prefix) {
        if !self.refuses() {
            self.take(prefix);
        }
    }

    fn decline(&mut self, key: &BindKey, prefix: Ipv6Prefix, lasts: Duration) {
        if self.refuses() {
            return;
        }
        self.take(prefix);
        let nobody = BindKey { client: Arc::default(), ..key.clone() };
        let life = Life { preferred: 0, valid: u32::try_from(lasts.as_secs()).unwrap_or(u32::MAX - 1) };
        if life.valid == 0 {
            return;
        }
        self.put(Lease { peer: None, ..self.lease(&nobody, prefix, life) });
        let is_idle =
            |prefix: &Ipv6Prefix| self.all.get(*prefix).is_some_and(|lease| lease.key.client.is_empty());
        // Most have few or none; what has ended is swept out when it is more than what has not.
        if self.declined.len() > 2 * self.idle.len() {
            self.declined.retain(|_, own| own.iter().any(is_idle));
        }
        let own = self.declined.entry((*key.client).into()).or_default();
        own.retain(is_idle);
        own.push_back(prefix);
        let oldest = own.front().copied().filter(|_| own.len() > MAX_DECLINED);
        if let Some(oldest) = oldest {
            self.take(oldest);
        }
    }

    fn is_on_link(&self, prefix: Ipv6Prefix, link: Option<Ipv6Addr>) -> bool {
        self.plan.is_given_here(&self.link, prefix, link)
    }

    fn has_here(&self, key: &BindKey, prefix: Ipv6Prefix, link: Option<Ipv6Addr>) -> bool {
        self.bound(key).contains(&prefix) && !self.is_of_another_link(key, prefix, link)
    }

    fn knows_link(&self, link: Option<Ipv6Addr>) -> bool {
        self.plan.knows(&self.link, link)
    }

    fn excluded(&self, client: &[u8], prefix: Ipv6Prefix) -> Option<Ipv6Prefix> {
        self.plan.excluded(client, prefix)
    }

    fn last_proof(&self, client: &[u8]) -> Option<u64> {
        self.proofs.get(client).copied()
    }

    fn keep_proof(&mut self, client: &[u8], number: u64) {
        // Only who has a key comes so far, and those are as many as the configuration has.
        self.changed += 1;
        self.proofs.insert(client.into(), number);
        self.new_proofs.insert(client.into(), number);
    }

    fn whose(&self, addr: Ipv6Addr) -> Option<Known> {
        self.all.meeting(Ipv6Prefix::host(addr)).and_then(|lease| self.known(lease))
    }

    fn all_of(&self, client: &[u8]) -> Vec<Known> {
        self.all.of_client(client).filter_map(|lease| self.known(lease)).collect()
    }

    fn hear(&mut self, line: &[u8], duid: &[u8]) {
        // As many as the configuration has lines.
        let is_known = self.faces.get(line).is_some_and(|known| **known == *duid);
        if !is_known && self.plan.host(line).is_some() {
            self.faces.insert(line.into(), duid.into());
        }
    }

    fn duid_of(&self, line: &[u8]) -> Option<Arc<[u8]>> {
        self.faces.get(line).cloned()
    }

    fn lines_of(&self, duid: &[u8]) -> Vec<Arc<[u8]>> {
        let own = self.faces.iter().filter(|(_, known)| ***known == *duid);
        own.map(|(line, _)| line.clone()).collect()
    }

    fn link_at(&self, addr: Ipv6Addr) -> Option<Arc<str>> {
        // Links may have pools in common: whoever has the address knows best.
        let by_lease = self.whose(addr).map(|known| known.link);
        by_lease.or_else(|| self.plan.link_at(addr).map(Arc::from))
    }

    fn address_on(&self, known: &Known) -> Ipv6Addr {
        let found = |addr: &Ipv6Addr| self.link_at(*addr).as_ref() == Some(&known.link);
        self.plan.address_on(&known.link).filter(found).unwrap_or(known.prefix.addr())
    }

    fn is_configured(&self, addr: Ipv6Addr) -> bool {
        self.plan.is_known(addr)
    }

    fn lifetimes(&self, key: &BindKey, prefix: Ipv6Prefix, link: Option<Ipv6Addr>) -> Option<Life> {
        // Of an offer, nothing has been kept yet.
        let planned = self.plan.life_on(&key.client, prefix, (&key.tunnel, link));
        planned.or_else(|| self.all.get(prefix).map(|lease| lease.life))
    }
}
