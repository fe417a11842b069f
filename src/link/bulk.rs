//! Many routes to neighbours in one call to the kernel: it deals with the requests of one message one after the other, and
//! speaks of those that it refuses.
//!
//! Who stands in the way of one is not found out here.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use sixway_dataplane::update::Ipv6Prefix;

use super::error::LinkError;
use super::leads::led;
use super::netlink::GONE;

/// The most requests of one call: what the kernel says of them all fits its queue for us.
pub const MOST: usize = 128;
/// Octets of an answer: a number, and the request that it is about.
const ANSWER: usize = 1024;

/// A connection to the kernel for that, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Bulk {
    kernel: OwnedFd,
    /// The number of the last request.
    last: u32,
    octets: Vec<u8>,
}

impl Bulk {
    /// Connects.
    ///
    /// # Errors
    /// [`LinkError::Open`] when the socket is refused.
    pub fn open() -> Result<Self, LinkError> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let kernel = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute);
        let kernel = kernel.map_err(|why| LinkError::Open(why.into()))?;
        Ok(Self { kernel, last: 0, octets: Vec::new() })
    }

    /// Routes prefixes to neighbours on the device with this number, where nothing else has just that route; or takes their
    /// routes back where there is no neighbour, and that one is not there is fine. At most [`MOST`] at a time. Returns the places
    /// of those that were not done and why: all of them with `ENOBUFS` where the kernel says nothing.
    pub fn lead(&mut self, wanted: &[(Ipv6Prefix, Option<Ipv6Addr>)], index: u32) -> BTreeMap<usize, Errno> {
        self.ask(wanted, index, NLM_F_EXCL)
    }

    /// The same in the place of whatever has just that route.
    pub fn lead_instead(
        &mut self,
        wanted: &[(Ipv6Prefix, Option<Ipv6Addr>)],
        index: u32,
    ) -> BTreeMap<usize, Errno> {
        self.ask(wanted, index, NLM_F_REPLACE)
    }

    fn ask(
        &mut self,
        wanted: &[(Ipv6Prefix, Option<Ipv6Addr>)],
        index: u32,
        how: u16,
    ) -> BTreeMap<usize, Errno> {
        let first = self.last.wrapping_add(1);
        self.octets.clear();
        for (n, (prefix, via)) in wanted.iter().enumerate() {
            let route = led(*prefix, *via, index);
            let (what, how) = match via {
                Some(_) => (RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE | how),
                None => (RouteNetlinkMessage::DelRoute(route), 0),
            };
            // Of what it has done the kernel speaks once, at the end.
            let last = if n + 1 == wanted.len() { NLM_F_ACK } else { 0 };
            let mut message = NetlinkMessage::from(what);
            message.header.flags = NLM_F_REQUEST | how | last;
            message.header.sequence_number = first.wrapping_add(n as u32);
            message.finalize();
            let begin = self.octets.len();
            self.octets.resize(begin + message.buffer_len(), 0);
            message.serialize(&mut self.octets[begin..]);
        }
        self.last = self.last.wrapping_add(wanted.len() as u32);
        let said = send(self.kernel.as_raw_fd(), &self.octets, MsgFlags::empty());
        let mut refused = match said {
            Ok(_) => self.refused(first, wanted.len()),
            Err(why) => (0..wanted.len()).map(|n| (n, why)).collect(),
        };
        refused.retain(|n, why| wanted.get(*n).is_some_and(|(_, via)| via.is_some()) || !GONE.contains(why));
        refused
    }

    /// What the kernel says: it has dealt with all before the call returned.
    fn refused(&self, first: u32, count: usize) -> BTreeMap<usize, Errno> {
        let mut refused = BTreeMap::new();
        let mut buffer = [0; ANSWER];
        loop {
            let len = match recv(self.kernel.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(len) => len,
                Err(Errno::EINTR) => continue,
                // The end is missing: it has more to say than its queue holds.
                Err(_) => return (0..count).map(|n| (n, Errno::ENOBUFS)).collect(),
            };
            let said =
                NetlinkMessage::<RouteNetlinkMessage>::deserialize(buffer.get(..len).unwrap_or_default());
            let Ok(NetlinkMessage { header, payload: NetlinkPayload::Error(error), .. }) = said else {
                continue;
            };
            // Something of a call before: its end was missing.
            let n = header.sequence_number.wrapping_sub(first) as usize;
            if n >= count {
                continue;
            }
            if let Some(code) = error.code {
                refused.insert(n, Errno::from_raw(code.get().saturating_abs()));
            }
            if n + 1 == count {
                return refused;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::netlink::tests::{cable, in_fresh_namespace, run};

    #[test]
    fn many_come_and_go_in_one_call_and_who_is_refused_is_known() {
        in_fresh_namespace(|| {
            run(async |links| {
                let index = cable(&links).await;
                let via: Ipv6Addr = "fe80::1".parse().unwrap();
                let prefix = |n: usize| format!("2001:db8:{n:x}::/48").parse::<Ipv6Prefix>().unwrap();
                let taken = prefix(7);
                let mut bulk = Bulk::open().unwrap();
                let stranger = Some("fe80::9".parse().unwrap());
                assert!(bulk.lead(&[(taken, stranger)], index).is_empty());
                let all: Vec<_> = (0..MOST).map(|n| (prefix(n), Some(via))).collect();
                assert_eq!(bulk.lead(&all, index), [(7, Errno::EEXIST)].into());
                assert_eq!(links.led(index).await.unwrap().len(), MOST);
                // The last one is refused, or none; a route that is not there is gone.
                let last = [(prefix(MOST), Some(via)), (taken, Some(via))];
                assert_eq!(bulk.lead(&last, index), [(1, Errno::EEXIST)].into());
                assert!(bulk.lead(&[(prefix(900), None)], index).is_empty());
                assert!(bulk.lead_instead(&[(taken, Some(via))], index).is_empty());
                assert_eq!(links.led(index).await.unwrap().get(&taken), Some(&via));
                let back: Vec<_> = (0..MOST).map(|n| (prefix(n), None)).collect();
                assert!(bulk.lead(&back, index).is_empty());
                let left = links.led(index).await.unwrap();
                assert_eq!(left.into_keys().collect::<Vec<_>>(), [prefix(MOST)]);
                // No such device: none is done.
                assert!(bulk.lead(&all[..3], 9999).keys().eq(&[0, 1, 2]));
            });
        });
    }
}
