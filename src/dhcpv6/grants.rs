//! The broker as [`Leases`]: what the session asks for is done at once in mind; what must be kept is collected for the
//! office.

use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Duration;

use sixway_dataplane::update::Ipv6Prefix;

use super::codec::INFINITY;
use super::session::{Known, Lack, Leases};
use crate::broker::{BindKey, BindWish, Binding, Broker, End, Outcome, Route, Time};

/// Bindings that are looked at in no time.
const FEW: usize = 10_000;

/// One message's doings.
#[derive(Debug)]
pub struct Grants<'a> {
    broker: &'a mut Broker,
    now: Time,
    /// What must be kept and routed before the answer leaves.
    pub outcome: Outcome,
    /// What clients will be told that they have.
    pub tells: Vec<(BindKey, Ipv6Prefix)>,
}

impl<'a> Grants<'a> {
    /// Nothing is done yet.
    pub fn new(broker: &'a mut Broker, now: Time) -> Self {
        Self { broker, now, outcome: Outcome::default(), tells: Vec::new() }
    }

    fn known(&self, binding: &Binding) -> Known {
        let left = u32::try_from(binding.expires.since(self.now).as_secs()).ok();
        Known {
            client: binding.key.client.clone(),
            link: binding.key.tunnel.clone(),
            prefix: binding.prefix,
            given: None,
            left: left.filter(|left| *left < INFINITY),
        }
    }
}

impl Leases for Grants<'_> {
    fn offer(&mut self, wishes: &[BindWish]) -> Vec<Result<Ipv6Prefix, Lack>> {
        let offered = self.broker.offer(self.now, wishes);
        offered.into_iter().map(|offer| offer.map_err(|_| Lack)).collect()
    }

    fn bind(&mut self, wish: &BindWish, lasts: Duration) -> Result<Vec<Ipv6Prefix>, Lack> {
        let (prefixes, outcome) = self.broker.bind(self.now, wish, lasts).map_err(|why| {
            let BindWish { key, .. } = wish;
            let (tunnel, iaid, duid) = (&key.tunnel, key.number, key.duid());
            tracing::debug!(event = "not_bound", %tunnel, iaid, duid, why = why.to_string());
            Lack
        })?;
        let new = outcome.routes.iter().any(|route| matches!(route, Route::Bind(_)));
        if let Some(link) = prefixes.iter().find(|prefix| new && wish.on_link.contains(prefix)) {
            tracing::warn!(
                "{link} is delegated in tunnel '{}', to which it leads anyway: if the client's end has its address therein, it \
                 cannot have it on another link. Give the tunnel that address (/128), or have a [[pool]] of networks with room",
                wish.key.tunnel
            );
        }
        self.outcome.append(outcome);
        self.tells.extend(prefixes.iter().map(|prefix| (wish.key.clone(), *prefix)));
        Ok(prefixes)
    }

    fn bound(&self, key: &BindKey) -> Vec<Ipv6Prefix> {
        self.broker.bound(key).iter().map(|binding| binding.prefix).collect()
    }

    fn release(&mut self, prefix: Ipv6Prefix) {
        self.outcome.append(self.broker.unbind(self.now, prefix, End::Released));
    }

    fn decline(&mut self, key: &BindKey, prefix: Ipv6Prefix, lasts: Duration) {
        self.outcome.append(self.broker.quarantine(self.now, key, prefix, lasts));
    }

    /// Each tunnel is a link of its own, where an address does nothing that is not bound there.
    fn still_holds(&self, key: &BindKey, prefix: Ipv6Prefix, link: Option<Ipv6Addr>) -> bool {
        self.is_on_link(prefix, link) && self.broker.bound(key).iter().any(|binding| binding.prefix == prefix)
    }

    fn is_on_link(&self, prefix: Ipv6Prefix, link: Option<Ipv6Addr>) -> bool {
        self.broker.is_given_out(prefix, link)
    }

    fn whose(&self, addr: Ipv6Addr) -> Option<Known> {
        self.broker.binding_at(addr).map(|binding| self.known(binding))
    }

    fn all_of(&self, client: &[u8]) -> Vec<Known> {
        self.broker.bindings_of(client).map(|binding| self.known(binding)).collect()
    }

    fn walks(&self) -> bool {
        self.broker.bindings_len() > FEW
    }

    /// A tunnel is known by anything that is bound in it.
    fn link_at(&self, addr: Ipv6Addr) -> Option<Arc<str>> {
        self.broker.binding_at(addr).map(|binding| binding.key.tunnel.clone())
    }

    fn is_configured(&self, addr: Ipv6Addr) -> bool {
        self.broker.is_given_out(Ipv6Prefix::host(addr), None)
    }
}
