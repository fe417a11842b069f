//! Being told what becomes of interfaces, their addresses and routes, whoever does it (RFC 3549 section 2.2).
//!
//! Bounded: what is not taken in time is left out, so whoever listens looks for himself now and then as well.

use std::net::Ipv6Addr;

use futures_util::StreamExt;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::RouteProtocol;
use rtnetlink::sys::AsyncSocket;
use sixway_dataplane::update::Ipv6Prefix;
use socket2::{SockFilter, SockRef};
use tokio::sync::mpsc;

use super::error::LinkError;
use super::leads::{PROTOCOL, route_of};

/// News that wait.
const WAITING: usize = 256;

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// Something about an interface or its IPv6 addresses: up, down, there, gone.
    Link {
        /// Its number.
        index: u32,
        /// Its name, where that was said.
        name: Option<Box<str>>,
    },
    /// A route to a neighbour that carries our number is gone.
    Unled(Ipv6Prefix, Ipv6Addr),
}

/// News of this network namespace.
#[derive(Debug)]
pub struct Watch {
    news: mpsc::Receiver<News>,
}

impl Watch {
    /// Begins to listen, on the current runtime until it is dropped.
    ///
    /// # Errors
    /// [`LinkError::NoRuntime`] outside a runtime, [`LinkError::Open`] when the socket is refused.
    pub fn open() -> Result<Self, LinkError> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| LinkError::NoRuntime)?;
        let groups = [MulticastGroup::Link, MulticastGroup::Ipv6Ifaddr, MulticastGroup::Ipv6Route];
        let (mut connection, _, mut messages) =
            rtnetlink::new_multicast_connection(&groups).map_err(LinkError::Open)?;
        // Without it more is heard, and left out.
        let _heard_anyway =
            SockRef::from(connection.socket_mut().socket_ref()).attach_filter(&but_new_routes());
        let (tell, news) = mpsc::channel(WAITING);
        runtime.spawn(async move {
            tokio::pin!(connection);
            loop {
                tokio::select! {
                    () = &mut connection => return,
                    () = tell.closed() => return,
                    message = messages.next() => {
                        let Some((message, _)) = message else { return };
                        let NetlinkPayload::InnerMessage(inner) = message.payload else { continue };
                        // Whoever is told too much looks for himself.
                        news_of(inner).into_iter().for_each(|news| drop(tell.try_send(news)));
                    }
                }
            }
        });
        Ok(Self { news })
    }

    /// What has happened next; never, if there is no more to hear. Dropped at any moment it has lost nothing.
    pub async fn next(&mut self) -> News {
        match self.news.recv().await {
            Some(news) => news,
            None => std::future::pending().await,
        }
    }
}

/// Lets all pass but routes that are new: those are our own, as many as there are new leases.
fn but_new_routes() -> [SockFilter; 4] {
    const LOAD_16_BITS: u16 = 0x28;
    const IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    /// Where a netlink message has its type.
    const TYPE: u32 = 4;
    const RTM_NEWROUTE: u16 = 24;
    // A filter's numbers have their highest octet first, a message's are the host's.
    let new_route = u16::from_be_bytes(RTM_NEWROUTE.to_ne_bytes());
    [
        SockFilter::new(LOAD_16_BITS, 0, 0, TYPE),
        SockFilter::new(IF_EQUAL, 0, 1, new_route.into()),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ]
}

fn news_of(message: RouteNetlinkMessage) -> Option<News> {
    if let RouteNetlinkMessage::DelRoute(route) = message {
        let ours = route.header.protocol == RouteProtocol::Other(PROTOCOL);
        return route_of(&route).filter(|_| ours).map(|(prefix, via)| News::Unled(prefix, via));
    }
    if let RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) = message {
        let mut names = link.attributes.into_iter().filter_map(|attribute| {
            if let LinkAttribute::IfName(name) = attribute { Some(name.into()) } else { None }
        });
        return Some(News::Link { index: link.header.index, name: names.next() });
    }
    if let RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address) = message {
        return Some(News::Link { index: address.header.index, name: None });
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::bulk::Bulk;
    use crate::link::netlink::tests::{in_fresh_namespace, run};

    #[test]
    fn lost_routes_and_changed_links_are_heard_of() {
        in_fresh_namespace(|| {
            run(async |links| {
                links.create_veth("a", "b").await.unwrap();
                let mut watch = Watch::open().unwrap();
                links.set_up("a", None).await.unwrap();
                links.set_up("b", None).await.unwrap();
                let index = links.index("a").await.unwrap().unwrap();
                assert_eq!(watch.next().await, News::Link { index, name: Some("a".into()) });
                let (prefix, via) = ("2001:db8:1::/48".parse().unwrap(), "fe80::1".parse().unwrap());
                let mut bulk = Bulk::open().unwrap();
                assert!(bulk.lead(&[(prefix, Some(via)), (prefix, None)], index).is_empty());
                while watch.next().await != News::Unled(prefix, via) {}
            });
        });
    }
}
