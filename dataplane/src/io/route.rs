//! Which interface leads to a peer, and how long a packet may be on it: what the kernel's routing says (RFC 1122 section
//! 3.3.1), asked by netlink and remembered for a second.
//!
//! Only super-packets need to know: everything else is routed by the kernel as it is sent. Not done: choosing among
//! equal routes packet by packet; one answer serves for a second.

use std::io;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// How long an answer holds.
const LIFETIME: Duration = Duration::from_secs(1);
/// Answers kept; peers that share a place push each other out and are asked for again.
const PLACES: usize = 1024;
const ANSWER: usize = 8192;

/// The way to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// Number of the interface.
    pub interface: u32,
    /// Octets of the largest IPv4 packet on it.
    pub mtu: u32,
    /// The address to send from.
    pub source: Ipv4Addr,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    peer: Ipv4Addr,
    local: Ipv4Addr,
    way: Option<Way>,
    until: Instant,
}

/// Asks and remembers; belongs to the network namespace that it was made in.
#[derive(Debug)]
pub struct Routes {
    socket: Socket,
    known: Vec<Option<Known>>,
    answer: Vec<u8>,
    sequence: u32,
}

impl Routes {
    /// Connects to the kernel.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // The kernel answers within the request; should it ever not, a worker must not stand still.
        socket.set_non_blocking(true)?;
        Ok(Self { socket, known: vec![None; PLACES], answer: Vec::with_capacity(ANSWER), sequence: 0 })
    }

    /// The way from our address `local` (unspecified: any) to `peer`; `None` when there is none that leads out of
    /// this host.
    pub fn way(&mut self, peer: Ipv4Addr, local: Ipv4Addr) -> Option<Way> {
        let now = Instant::now();
        // Neighbouring clients get different places.
        let place = u32::from(peer).wrapping_mul(0x9e37_79b9) as usize >> 16 & (PLACES - 1);
        if let Some(known) = self.known[place].filter(|k| k.peer == peer && k.local == local && now < k.until)
        {
            return known.way;
        }
        let way = self.look_up(peer, local).unwrap_or(None);
        self.known[place] = Some(Known { peer, local, way, until: now + LIFETIME });
        way
    }

    fn look_up(&mut self, peer: Ipv4Addr, local: Ipv4Addr) -> io::Result<Option<Way>> {
        let Some(RouteNetlinkMessage::NewRoute(route)) = self.ask(route_request(peer, local))? else {
            return Ok(None);
        };
        let Some((interface, limit, source)) = read_route(&route, local) else { return Ok(None) };
        let Some(RouteNetlinkMessage::NewLink(link)) = self.ask(link_request(interface))? else {
            return Ok(None);
        };
        let mtu =
            link.attributes.iter().find_map(|a| if let LinkAttribute::Mtu(n) = a { Some(*n) } else { None });
        Ok(mtu.map(|mtu| Way { interface, mtu: mtu.min(limit), source }))
    }

    /// One question, one answer; an error message is no answer.
    fn ask(&mut self, question: RouteNetlinkMessage) -> io::Result<Option<RouteNetlinkMessage>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        (header.flags, header.sequence_number) = (NLM_F_REQUEST, self.sequence);
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(question));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        loop {
            self.answer.clear();
            self.socket.recv(&mut self.answer, 0)?;
            let got = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&self.answer);
            let Ok(got) = got else { return Ok(None) };
            // An answer that came too late for its own question.
            if got.header.sequence_number != self.sequence {
                continue;
            }
            let NetlinkPayload::InnerMessage(answer) = got.payload else { return Ok(None) };
            return Ok(Some(answer));
        }
    }
}

fn route_request(peer: Ipv4Addr, local: Ipv4Addr) -> RouteNetlinkMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = AddressFamily::Inet;
    route.header.destination_prefix_length = 32;
    route.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(peer)));
    if !local.is_unspecified() {
        route.header.source_prefix_length = 32;
        route.attributes.push(RouteAttribute::Source(RouteAddress::Inet(local)));
    }
    RouteNetlinkMessage::GetRoute(route)
}

fn link_request(interface: u32) -> RouteNetlinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = interface;
    RouteNetlinkMessage::GetLink(link)
}

/// Interface, route's own limit of the packet length, source address.
fn read_route(route: &RouteMessage, local: Ipv4Addr) -> Option<(u32, u32, Ipv4Addr)> {
    if route.header.kind != RouteType::Unicast {
        return None;
    }
    let (mut interface, mut limit) = (None, u32::MAX);
    let mut source = Some(local).filter(|l| !l.is_unspecified());
    for attribute in &route.attributes {
        if let RouteAttribute::Oif(number) = attribute {
            interface = Some(*number);
        } else if let RouteAttribute::PrefSource(RouteAddress::Inet(addr)) = attribute {
            source = source.or(Some(*addr));
        } else if let RouteAttribute::Metrics(metrics) = attribute {
            let mtu = metrics.iter().find_map(|m| if let RouteMetric::Mtu(n) = m { Some(*n) } else { None });
            limit = mtu.unwrap_or(limit);
        }
    }
    Some((interface?, limit, source?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_is_not_a_way_out() {
        let mut routes = Routes::open().unwrap();
        assert_eq!(routes.way(Ipv4Addr::LOCALHOST, Ipv4Addr::UNSPECIFIED), None);
        // Remembered, also that there is none.
        assert_eq!(routes.way(Ipv4Addr::LOCALHOST, Ipv4Addr::UNSPECIFIED), None);
        assert_eq!(routes.sequence, 1);
    }
}
