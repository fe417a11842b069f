//! One device: being told when it goes down and comes up (RFC 3549 section 2.2), and what is on it.
//!
//! Where a device goes down the kernel takes its IPv6 addresses and routes away, and does not bring them back. Refuses to know
//! who had put them there.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::pin;

use futures_util::StreamExt;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags};
use rtnetlink::packet_route::link::{LinkFlags, LinkMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{MulticastGroup, RouteMessageBuilder};
use sixway_dataplane::update::Ipv6Prefix;
use tokio::sync::watch;

use super::answer::{link_name, local_address, output_device, own_route};
use super::error::LinkError;
use super::netlink::Links;

/// What a device has been through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Whether it is up, as its administrator wants it; a cable is another matter.
    pub is_up: bool,
    /// How often it has gone down, or may have while nobody heard.
    pub falls: u64,
}

impl Seen {
    /// It is up or down now.
    fn stands(&mut self, is_up: bool) -> bool {
        let is_news = self.is_up != is_up;
        self.falls += u64::from(self.is_up && !is_up);
        self.is_up = is_up;
        is_news
    }

    /// News were lost: this is how it is now, and it may have fallen meanwhile.
    fn may_have_fallen(&mut self, is_up: bool) -> bool {
        self.is_up = is_up;
        self.falls += 1;
        true
    }
}

/// News of one device of this network namespace. Only the last state waits: it needs no room.
#[derive(Debug)]
pub struct DeviceWatch(watch::Receiver<Seen>);

impl DeviceWatch {
    /// Begins to listen, on the current runtime until it is dropped.
    ///
    /// # Errors
    /// [`LinkError::NoRuntime`] outside a runtime, [`LinkError::Open`] when the socket is refused, or the kernel's refusal to
    /// say how the device is.
    pub async fn open(links: &Links, name: &str) -> Result<Self, LinkError> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| LinkError::NoRuntime)?;
        let (connection, _, mut messages) =
            rtnetlink::new_multicast_connection(&[MulticastGroup::Link]).map_err(LinkError::Open)?;
        // What happens from here on is heard, so nothing is missed between the two.
        let is_up = links.state(name).await?.is_some_and(|(_, is_up)| is_up);
        let (tell, seen) = watch::channel(Seen { is_up, falls: 0 });
        let (name, links) = (name.to_owned(), links.clone());
        runtime.spawn(async move {
            tokio::pin!(connection);
            loop {
                tokio::select! {
                    () = &mut connection => return,
                    () = tell.closed() => return,
                    message = messages.next() => match message.map(|(message, _)| message.payload) {
                        Some(NetlinkPayload::InnerMessage(inner)) => {
                            if let Some(is_up) = news_of(&inner, &name) {
                                tell.send_if_modified(|seen| seen.stands(is_up));
                            }
                        }
                        Some(NetlinkPayload::Overrun(_)) => {
                            let is_up = links.state(&name).await.is_ok_and(|it| it.is_some_and(|(_, is_up)| is_up));
                            tell.send_if_modified(|seen| seen.may_have_fallen(is_up));
                        }
                        Some(_) => {}
                        None => return,
                    }
                }
            }
        });
        Ok(Self(seen))
    }

    /// How it is now.
    pub fn seen(&self) -> Seen {
        *self.0.borrow()
    }

    /// Waits until something has happened since the last time. Dropped at any moment it has lost nothing.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

/// Whether the device of this name is up, if this is about it.
fn news_of(message: &RouteNetlinkMessage, name: &str) -> Option<bool> {
    let is_it = |link: &LinkMessage| link_name(link).as_deref() == Some(name);
    if let RouteNetlinkMessage::NewLink(link) = message
        && is_it(link)
    {
        return Some(link.header.flags.contains(LinkFlags::Up));
    }
    matches!(message, RouteNetlinkMessage::DelLink(link) if is_it(link)).then_some(false)
}

/// What is on a device.
#[derive(Debug, Default)]
pub struct Standing {
    /// Addresses with the length of their network.
    pub addresses: HashSet<(Ipv6Addr, u8)>,
    /// Addresses that the kernel answers for.
    pub locals: HashSet<Ipv6Addr>,
    /// What is routed to it, by the metric that a route has without one.
    pub routes: HashSet<Ipv6Prefix>,
}

/// An address on some device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The device's number.
    pub index: u32,
    /// The address.
    pub addr: Ipv6Addr,
    /// Bits of its network.
    pub len: u8,
    /// Whether another host of the link has it too, so that it is not used.
    pub is_taken: bool,
}

impl Links {
    /// The device's number, and whether it is up; `None`: there is none of this name.
    ///
    /// # Errors
    /// When the kernel refuses the question.
    pub async fn state(&self, name: &str) -> Result<Option<(u32, bool)>, LinkError> {
        let link = self.link_by_name(name).await?;
        Ok(link.map(|link| (link.header.index, link.header.flags.contains(LinkFlags::Up))))
    }

    /// The IPv6 addresses of all devices.
    ///
    /// # Errors
    /// When the kernel refuses the question.
    pub async fn ipv6_addresses(&self) -> Result<Vec<Found>, LinkError> {
        let mut request = self.kernel.address().get();
        request.message_mut().header.family = AddressFamily::Inet6;
        let mut answers = pin!(request.execute());
        let mut found = Vec::new();
        while let Some(answer) = answers.next().await {
            let message = answer
                .map_err(|error| LinkError::from_kernel("list the IPv6 addresses".to_owned(), "", error))?;
            let addr = message.attributes.iter().find_map(|attribute| {
                if let AddressAttribute::Address(IpAddr::V6(addr)) = attribute { Some(*addr) } else { None }
            });
            let (index, len) = (message.header.index, message.header.prefix_len);
            let is_taken = message.header.flags.contains(AddressHeaderFlags::Dadfailed);
            found.extend(addr.map(|addr| Found { index, addr, len, is_taken }));
        }
        Ok(found)
    }

    /// What is on the device of this number.
    ///
    /// # Errors
    /// When the kernel refuses the question.
    pub async fn standing(&self, index: u32) -> Result<Standing, LinkError> {
        let addresses = self.ipv6_addresses().await?;
        let addresses = addresses.iter().filter(|found| found.index == index);
        let mut standing = Standing {
            addresses: addresses.map(|found| (found.addr, found.len)).collect(),
            ..Standing::default()
        };
        let question = RouteMessageBuilder::<Ipv6Addr>::new().build();
        let mut answers = pin!(self.kernel.route().get(question).execute());
        while let Some(answer) = answers.next().await {
            let route =
                answer.map_err(|error| LinkError::from_kernel("list the routes".to_owned(), "", error))?;
            if output_device(&route) == Some(index) {
                standing.routes.extend(own_route(&route));
                standing.locals.extend(local_address(&route));
            }
        }
        Ok(standing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::netlink::tests::{cable, in_fresh_namespace, run};

    /// News that are lost count as one more fall.
    async fn comes(watch: &mut DeviceWatch, wanted: Seen) {
        let heard = async {
            while watch.seen().is_up != wanted.is_up || watch.seen().falls < wanted.falls {
                watch.changed().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), heard).await.expect("news");
    }

    #[test]
    fn a_fall_is_heard_of_however_short_and_what_is_left_is_seen() {
        in_fresh_namespace(|| {
            run(async |links| {
                let index = cable(&links).await;
                let mut watch = DeviceWatch::open(&links, "a").await.unwrap();
                assert_eq!(watch.seen(), Seen { is_up: true, falls: 0 });
                let (addr, local) = ("fd00::1".parse().unwrap(), "fd00:7::1".parse().unwrap());
                let prefix: Ipv6Prefix = "2001:db8::/48".parse().unwrap();
                let _added = links.add_address("a", addr, 64).await.unwrap();
                let _added = links.add_local("a", local).await.unwrap();
                for to in [prefix, Ipv6Prefix::ALL] {
                    let _added = links.add_route(to, "a", None).await.unwrap();
                }
                let _other = links.add_route("2001:db8:9::/48".parse().unwrap(), "b", None).await.unwrap();
                let standing = links.standing(index).await.unwrap();
                assert!(standing.addresses.contains(&(addr, 64)));
                assert_eq!(standing.routes, HashSet::from([prefix, Ipv6Prefix::ALL]));
                assert!(standing.locals.contains(&local));
                assert!(
                    std::process::Command::new("ip")
                        .args(["link", "set", "dev", "b", "down"])
                        .status()
                        .unwrap()
                        .success()
                );
                for words in [["link", "set", "dev", "a", "down"], ["link", "set", "dev", "a", "up"]] {
                    assert!(std::process::Command::new("ip").args(words).status().unwrap().success());
                }
                comes(&mut watch, Seen { is_up: true, falls: 1 }).await;
                let standing = links.standing(index).await.unwrap();
                assert!(standing.routes.is_empty() && !standing.addresses.contains(&(addr, 64)));
                assert!(standing.locals.is_empty());
                assert_eq!(links.state("a").await.unwrap(), Some((index, true)));
                links.delete_link("a").await.unwrap();
                comes(&mut watch, Seen { is_up: false, falls: 2 }).await;
                assert_eq!(links.state("a").await.unwrap(), None);
            });
        });
    }

    #[test]
    fn lost_news_may_have_been_bad() {
        let mut seen = Seen { is_up: true, falls: 3 };
        assert!(!seen.stands(true) && seen.may_have_fallen(true));
        assert_eq!(seen, Seen { is_up: true, falls: 4 });
        assert!(seen.may_have_fallen(false));
        assert_eq!(seen, Seen { is_up: false, falls: 5 });
    }
}
