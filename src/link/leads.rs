//! Routes of what has been given to neighbours on a link, and of what has been given to nobody.
//!
//! Both carry a protocol number of our own, so that whoever comes after a crash can tell them from an operator's. Refuses
//! to know who gives what to whom.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;
use std::pin::pin;

use futures_util::StreamExt;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType};
use sixway_dataplane::update::Ipv6Prefix;

use super::answer::{is_route_of, output_device};
use super::error::LinkError;
use super::netlink::{Links, gone};

/// The routing protocol that these routes say they come from; nobody has registered it.
pub const PROTOCOL: u8 = 61;
/// The metric of what leads nowhere, less a number for each who says so: any other route of the same prefix comes first.
const LAST: u32 = u32::MAX - 1;
/// The metric the kernel gives to an IPv6 route without one.
const USUAL: u32 = 1024;

impl Links {
    /// What has been led to neighbours on the device, by this process or one before it.
    ///
    /// # Errors
    /// When the kernel refuses the question.
    pub async fn led(&self, index: u32) -> Result<BTreeMap<Ipv6Prefix, Ipv6Addr>, LinkError> {
        let question = RouteMessageBuilder::<Ipv6Addr>::new().build();
        let mut answers = pin!(self.kernel.route().get(question).execute());
        let mut found = BTreeMap::new();
        while let Some(answer) = answers.next().await {
            let route =
                answer.map_err(|error| LinkError::from_kernel("list the routes".to_owned(), "", error))?;
            if route.header.protocol == RouteProtocol::Other(PROTOCOL) && output_device(&route) == Some(index)
            {
                found.extend(route_of(&route));
            }
        }
        Ok(found)
    }

    /// By which devices just these prefixes are routed, with the metric that ours have: their names, for those that have any.
    ///
    /// # Errors
    /// When the kernel refuses the question.
    pub async fn holders(
        &self,
        prefixes: &BTreeSet<Ipv6Prefix>,
    ) -> Result<BTreeMap<Ipv6Prefix, Vec<String>>, LinkError> {
        let failed = |error| LinkError::from_kernel("list the routes".to_owned(), "", error);
        let question = RouteMessageBuilder::<Ipv6Addr>::new().build();
        let mut answers = pin!(self.kernel.route().get(question).execute());
        let mut found: Vec<(Ipv6Prefix, Option<u32>)> = Vec::new();
        while let Some(answer) = answers.next().await {
            let route = answer.map_err(failed)?;
            let prefix = destination_of(&route).filter(|prefix| prefixes.contains(prefix));
            let prefix = prefix.filter(|prefix| is_route_of(&route, *prefix, USUAL));
            found.extend(prefix.map(|prefix| (prefix, output_device(&route))));
        }
        let (mut names, mut holders) = (BTreeMap::new(), BTreeMap::<Ipv6Prefix, Vec<String>>::new());
        for (prefix, device) in found {
            if let Entry::Vacant(unknown) = names.entry(device) {
                unknown.insert(self.name_of(device).await?);
            }
            holders.entry(prefix).or_default().extend(names.get(&device).cloned());
        }
        Ok(holders)
    }

    /// What goes nowhere by the word of `who`, in this process or one before it.
    ///
    /// # Errors
    /// When the kernel refuses the question.
    pub async fn sunk(&self, who: u32) -> Result<BTreeSet<Ipv6Prefix>, LinkError> {
        let question = RouteMessageBuilder::<Ipv6Addr>::new().build();
        let mut answers = pin!(self.kernel.route().get(question).execute());
        let (mut found, own) = (BTreeSet::new(), RouteAttribute::Priority(last(who)));
        while let Some(answer) = answers.next().await {
            let route =
                answer.map_err(|error| LinkError::from_kernel("list the routes".to_owned(), "", error))?;
            let is_ours = route.header.protocol == RouteProtocol::Other(PROTOCOL)
                && route.header.kind == RouteType::BlackHole
                && route.attributes.contains(&own);
            found.extend(destination_of(&route).filter(|_| is_ours));
        }
        Ok(found)
    }

    /// Lets packets to a prefix go nowhere by the word of `who`, unless another route leads them. Others who say the same of it
    /// have a route of their own.
    ///
    /// # Errors
    /// [`LinkError::Denied`], or the kernel's refusal.
    pub async fn sink(&self, prefix: Ipv6Prefix, who: u32) -> Result<(), LinkError> {
        let what = format!("let packets to {prefix} go nowhere");
        let added = self.kernel.route().add(sunk(prefix, who)).replace().execute().await;
        added.map_err(|error| LinkError::from_kernel(what, "", error))
    }

    /// Takes that back; that it is not so (any more) is fine.
    ///
    /// # Errors
    /// [`LinkError::Denied`], or the kernel's refusal.
    pub async fn unsink(&self, prefix: Ipv6Prefix, who: u32) -> Result<(), LinkError> {
        let what = format!("let packets to {prefix} go their way again");
        gone(what, "", self.kernel.route().del(sunk(prefix, who)).execute()).await
    }
}

/// The route of a prefix to a neighbour on a device.
pub(super) fn led(prefix: Ipv6Prefix, via: Option<Ipv6Addr>, index: u32) -> RouteMessage {
    let route = RouteMessageBuilder::<Ipv6Addr>::new()
        .destination_prefix(prefix.addr(), prefix.prefix_len())
        .output_interface(index)
        .priority(USUAL)
        .protocol(RouteProtocol::Other(PROTOCOL));
    via.into_iter().fold(route, RouteMessageBuilder::<Ipv6Addr>::gateway).build()
}

fn last(who: u32) -> u32 {
    LAST.saturating_sub(who)
}

fn sunk(prefix: Ipv6Prefix, who: u32) -> RouteMessage {
    RouteMessageBuilder::<Ipv6Addr>::new()
        .destination_prefix(prefix.addr(), prefix.prefix_len())
        .priority(last(who))
        .kind(RouteType::BlackHole)
        .protocol(RouteProtocol::Other(PROTOCOL))
        .build()
}

/// Where a route leads, if that is to a neighbour.
pub(super) fn route_of(route: &RouteMessage) -> Option<(Ipv6Prefix, Ipv6Addr)> {
    let via = route.attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Gateway(RouteAddress::Inet6(addr)) = attribute { Some(*addr) } else { None }
    });
    Some((destination_of(route)?, via?))
}

fn destination_of(route: &RouteMessage) -> Option<Ipv6Prefix> {
    let destination = route.attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Destination(RouteAddress::Inet6(addr)) = attribute {
            Some(*addr)
        } else {
            None
        }
    });
    Ipv6Prefix::new(destination?, route.header.destination_prefix_length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::bulk::Bulk;
    use crate::link::netlink::tests::{cable, in_fresh_namespace, run};

    #[test]
    fn routes_to_neighbours_are_found_again_and_so_is_who_has_them() {
        in_fresh_namespace(|| {
            run(async |links| {
                let index = cable(&links).await;
                let prefix: Ipv6Prefix = "2001:db8:1::/48".parse().unwrap();
                let via: Ipv6Addr = "fe80::1".parse().unwrap();
                let mut bulk = Bulk::open().unwrap();
                assert!(bulk.lead(&[(prefix, Some(via))], index).is_empty());
                // What leads nowhere comes after what leads somewhere, also for the same prefix.
                links.sink(prefix, 1).await.unwrap();
                links.sink(prefix, 1).await.unwrap();
                // Somebody else says the same of it, and takes back what is said there alone.
                links.sink(prefix, 2).await.unwrap();
                let one = BTreeSet::from([prefix]);
                assert_eq!(links.sunk(2).await.unwrap(), one);
                links.unsink(prefix, 2).await.unwrap();
                assert_eq!(links.sunk(2).await.unwrap(), BTreeSet::new());
                assert_eq!(links.sunk(1).await.unwrap(), one);
                assert_eq!(links.led(index).await.unwrap(), BTreeMap::from([(prefix, via)]));
                let other = "2001:db8:2::/48".parse().unwrap();
                let all = BTreeSet::from([prefix, other, "2001:db8:3::/48".parse().unwrap()]);
                let _added = links.add_route(other, "b", None).await.unwrap();
                let expected = [(prefix, vec!["a".to_owned()]), (other, vec!["b".to_owned()])];
                assert_eq!(links.holders(&all).await.unwrap(), expected.into());
                assert!(bulk.lead(&[(prefix, None)], index).is_empty());
                assert!(links.led(index).await.unwrap().is_empty());
                links.unsink(prefix, 1).await.unwrap();
                links.unsink(prefix, 1).await.unwrap();
                assert_eq!(links.sunk(1).await.unwrap(), BTreeSet::new());
            });
        });
    }
}
