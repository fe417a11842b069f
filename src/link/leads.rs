//! Routes of what has been given to neighbours on a link, and of what has been given to nobody.
//!
//! Both carry a protocol number of our own, so that whoever comes after a crash can tell them from an operator's. Refuses
//! to know who gives what to whom.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::pin::pin;

use futures_util::StreamExt;
use nix::errno::Errno;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType};
use sixway_dataplane::update::Ipv6Prefix;

use super::answer::output_device;
use super::error::{LinkError, errno};
use super::netlink::{Links, gone};

/// The routing protocol that these routes say they come from; nobody has registered it.
pub const PROTOCOL: u8 = 61;
/// The metric of what leads nowhere: any other route of the same prefix comes first.
const LAST: u32 = u32::MAX - 1;
/// The metric the kernel gives to an IPv6 route without one.
const USUAL: u32 = 1024;

impl Links {
    /// Routes a prefix to a neighbour on the device, in the place of any route of the same prefix to that device.
    ///
    /// # Errors
    /// [`LinkError::RouteTaken`] when an equal route leads elsewhere, [`LinkError::NoDevice`], [`LinkError::Denied`],
    /// or the kernel's refusal.
    pub async fn lead(&self, prefix: Ipv6Prefix, via: Ipv6Addr, dev: (&str, u32)) -> Result<(), LinkError> {
        let what = format!("route {prefix} to {via} on '{}'", dev.0);
        let failed = |error| LinkError::from_kernel(what.clone(), dev.0, error);
        match self.kernel.route().add(led(prefix, Some(via), dev.1)).execute().await {
            Ok(()) => Ok(()),
            Err(error) if errno(&error) == Some(Errno::EEXIST) => {
                self.expect_route_to(prefix, dev.0, dev.1, None).await?;
                self.kernel
                    .route()
                    .add(led(prefix, Some(via), dev.1))
                    .replace()
                    .execute()
                    .await
                    .map_err(failed)
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// Takes such a route back; that it is not there (any more) is fine.
    ///
    /// # Errors
    /// [`LinkError::Denied`], or the kernel's refusal.
    pub async fn unlead(&self, prefix: Ipv6Prefix, dev: (&str, u32)) -> Result<(), LinkError> {
        let what = format!("remove the route of {prefix} to '{}'", dev.0);
        gone(what, dev.0, self.kernel.route().del(led(prefix, None, dev.1)).execute()).await
    }

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

    /// Lets packets to a prefix go nowhere, unless another route leads them.
    ///
    /// # Errors
    /// [`LinkError::Denied`], or the kernel's refusal.
    pub async fn sink(&self, prefix: Ipv6Prefix) -> Result<(), LinkError> {
        let what = format!("let packets to {prefix} go nowhere");
        let added = self.kernel.route().add(sunk(prefix)).replace().execute().await;
        added.map_err(|error| LinkError::from_kernel(what, "", error))
    }

    /// Takes that back; that it is not so (any more) is fine.
    ///
    /// # Errors
    /// [`LinkError::Denied`], or the kernel's refusal.
    pub async fn unsink(&self, prefix: Ipv6Prefix) -> Result<(), LinkError> {
        let what = format!("let packets to {prefix} go their way again");
        gone(what, "", self.kernel.route().del(sunk(prefix)).execute()).await
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

fn sunk(prefix: Ipv6Prefix) -> RouteMessage {
    RouteMessageBuilder::<Ipv6Addr>::new()
        .destination_prefix(prefix.addr(), prefix.prefix_len())
        .priority(LAST)
        .kind(RouteType::BlackHole)
        .protocol(RouteProtocol::Other(PROTOCOL))
        .build()
}

/// Where a route leads, if that is to a neighbour.
pub(super) fn route_of(route: &RouteMessage) -> Option<(Ipv6Prefix, Ipv6Addr)> {
    let destination = route.attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Destination(RouteAddress::Inet6(addr)) = attribute {
            Some(*addr)
        } else {
            None
        }
    });
    let via = route.attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Gateway(RouteAddress::Inet6(addr)) = attribute { Some(*addr) } else { None }
    });
    Some((Ipv6Prefix::new(destination?, route.header.destination_prefix_length)?, via?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::netlink::tests::{cable, in_fresh_namespace, run};

    #[test]
    fn routes_to_neighbours_move_and_are_found_again() {
        in_fresh_namespace(|| {
            run(async |links| {
                let index = cable(&links).await;
                let (dev, prefix) = (("a", index), "2001:db8:1::/48".parse().unwrap());
                let (one, two) = ("fe80::1".parse().unwrap(), "fe80::2".parse().unwrap());
                links.lead(prefix, one, dev).await.unwrap();
                assert_eq!(links.led(index).await.unwrap(), BTreeMap::from([(prefix, one)]));
                links.lead(prefix, two, dev).await.unwrap();
                assert_eq!(links.led(index).await.unwrap(), BTreeMap::from([(prefix, two)]));
                // What leads nowhere comes after what leads somewhere, also for the same prefix.
                links.sink(prefix).await.unwrap();
                links.sink(prefix).await.unwrap();
                assert_eq!(links.led(index).await.unwrap(), BTreeMap::from([(prefix, two)]));
                links.unlead(prefix, dev).await.unwrap();
                links.unlead(prefix, dev).await.unwrap();
                assert!(links.led(index).await.unwrap().is_empty());
                links.unsink(prefix).await.unwrap();
                links.unsink(prefix).await.unwrap();
                // An operator's route to another device is left alone.
                let _added = links.add_route(prefix, "b", None).await.unwrap();
                assert!(matches!(links.lead(prefix, one, dev).await, Err(LinkError::RouteTaken { .. })));
            });
        });
    }
}
