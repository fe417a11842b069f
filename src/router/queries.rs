//! Lease queries about tunnels (RFC 5007) that come through the kernel: from this host itself, on `lo`, and from inside a tunnel
//! to an address of the router's, on the TUN device. What is sent to ff02::1:2 inside a tunnel never gets to the kernel.
//!
//! Open while the configuration names somebody who may ask; nothing but queries is heard. With links that are served `lo` is
//! theirs.

use std::collections::HashMap;

use super::Control;
use crate::dhcp6s::here;
use crate::dhcp6s::socket::{Answer, Arrived, Inbox, LinkSocket};

/// The interface of what a host says to itself.
const LOOPBACK: &str = "lo";
/// Answers that wait for the disk; whoever asks more asks again.
const MOST_WAITING: usize = 1024;

/// Which socket a query has come to, and how.
type Asked = (usize, Arrived);

/// The sockets, and answers that wait for what they tell of to be on the disk.
#[derive(Default)]
pub(super) struct Queries {
    ears: Vec<LinkSocket>,
    inbox: Option<Inbox>,
    waiting: HashMap<u64, (Asked, Vec<u8>)>,
}

impl Queries {
    /// Opens the sockets, or closes them.
    pub(super) fn listen(&mut self, wanted: bool, interfaces: &[&str]) {
        if !wanted {
            *self = Self::default();
            return;
        }
        if !self.ears.is_empty() {
            return;
        }
        for name in interfaces {
            match here::index(name).map(|index| LinkSocket::open(name, index)) {
                Some(Ok(socket)) => self.ears.push(socket),
                Some(Err(why)) => {
                    tracing::warn!(
                        "lease queries to UDP port 547 on {name} are not heard: {why}; another DHCPv6 server may have it"
                    );
                }
                None => tracing::warn!("lease queries on {name} are not heard: there is no such interface"),
            }
        }
    }

    /// Waits until one of the sockets has something.
    pub(super) async fn ready(&self) -> usize {
        if self.ears.is_empty() {
            return std::future::pending().await;
        }
        let all = self.ears.iter().map(|ear| Box::pin(ear.readable()));
        let (_, nth, _) = futures_util::future::select_all(all).await;
        nth
    }

    /// What finds no room leaves with the next answer.
    fn send(&mut self, (nth, asked): Asked, octets: &[u8]) {
        let from = Some(asked.to).filter(|to| !to.is_multicast());
        let answer = Answer { octets, to: *asked.from.ip(), port: asked.from.port(), from };
        if let Some(ear) = self.ears.get_mut(nth) {
            ear.send(&[answer]);
        }
    }

    /// Sends what has waited for this.
    pub(super) fn settled(&mut self, acted: &[(u64, bool)]) {
        for (ticket, kept) in acted {
            if let Some((asked, octets)) = self.waiting.remove(ticket).filter(|_| *kept) {
                self.send(asked, &octets);
            }
        }
    }
}

impl Control {
    /// Listens for queries as the configuration says.
    pub(super) fn serve_queries(&mut self) {
        let wanted = self.config.dhcpv6.as_ref().is_some_and(|terms| !terms.requestors.is_empty());
        let tun = self.config.router.tun.as_str();
        let interfaces: &[&str] = if self.config.links.is_some() { &[tun] } else { &[tun, LOOPBACK] };
        self.queries.listen(wanted, interfaces);
    }

    /// Answers what has come to a socket.
    pub(super) fn take_queries(&mut self, nth: usize) {
        let mut inbox = self.queries.inbox.take().unwrap_or_default();
        let heard = self.queries.ears.get(nth).is_some_and(|ear| ear.take(&mut inbox).is_ok());
        if heard {
            for (octets, arrived) in inbox.messages() {
                self.answer_query((nth, *arrived), octets);
            }
        }
        self.queries.inbox = Some(inbox);
    }

    fn answer_query(&mut self, asked: Asked, octets: &[u8]) {
        let (Some(server), Some(office)) = (&mut self.dhcpv6, &mut self.office) else { return };
        let from = asked.1.from;
        let Some((answer, ticket)) = server.look_up(office, (*from.ip(), from.port()), octets) else {
            return;
        };
        match ticket {
            None => self.queries.send(asked, &answer),
            Some(ticket) if self.queries.waiting.len() < MOST_WAITING => {
                self.queries.waiting.insert(ticket, (asked, answer));
            }
            Some(_) => {}
        }
    }
}
