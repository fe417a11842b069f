//! Which interface leads to a peer, and how long a packet may be on it: what the kernel's routing says (RFC 1122 section
//! 3.3.1), asked by netlink and remembered for a second.
//!
//! Only super-packets need to know: everything else is routed by the kernel as it is sent. Not done: choosing among
//! equal routes packet by packet; one answer serves for a second.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::{NETLINK_ROUTE, NETLINK_XFRM};
use netlink_sys::{Socket, SocketAddr};

use super::sys;

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
    policies: Policies,
    known: Vec<Option<Known>>,
    answer: Vec<u8>,
    sequence: u32,
}

impl Routes {
    /// Connects to the kernel.
    pub fn open() -> io::Result<Self> {
        let socket = connect(NETLINK_ROUTE)?;
        Ok(Self {
            socket,
            policies: Policies::open()?,
            known: vec![None; PLACES],
            answer: Vec::with_capacity(ANSWER),
            sequence: 0,
        })
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

    /// The same without looking at what is remembered.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn look_up(&mut self, peer: Ipv4Addr, local: Ipv4Addr) -> io::Result<Option<Way>> {
        if self.policies.may_apply() {
            return Ok(None);
        }
        let Some(RouteNetlinkMessage::NewRoute(route)) = self.ask(route_request(peer, local))? else {
            return Ok(None);
        };
        let Some((interface, limit, source)) = read_route(&route, local) else { return Ok(None) };
        let mtu = sys::interface_mtu(self.socket.as_fd(), interface)?;
        Ok(Some(Way { interface, mtu: mtu.min(limit), source }))
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

/// The kernel answers these questions within the request and without its great lock (RTM_GETLINK would take it).
fn connect(protocol: isize) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.set_non_blocking(true)?;
    Ok(socket)
}

/// Outbound IPsec policies (RFC 4301 section 4.4.1): what is sent past the kernel's output path would pass them by.
#[derive(Debug)]
struct Policies(Option<Socket>);

impl Policies {
    /// A kernel without IPsec has none.
    fn open() -> io::Result<Self> {
        match connect(NETLINK_XFRM) {
            Ok(socket) => Ok(Self(Some(socket))),
            Err(e) if e.raw_os_error() == Some(libc::EPROTONOSUPPORT) => Ok(Self(None)),
            Err(e) => Err(e),
        }
    }

    /// Whether there is any, for whatever packets; also when the kernel does not say.
    fn may_apply(&self) -> bool {
        self.0.as_ref().is_some_and(|socket| outbound_policies(socket).is_none_or(|count| count > 0))
    }
}

/// Asks by XFRM_MSG_GETSPDINFO (include/uapi/linux/xfrm.h).
fn outbound_policies(socket: &Socket) -> Option<u32> {
    const GET_SPD_INFO: u16 = 0x25;
    const NEW_SPD_INFO: u16 = 0x24;
    const SPD_INFO: u16 = 1;
    let mut question = [0; 20];
    question[..4].copy_from_slice(&20u32.to_ne_bytes());
    question[4..6].copy_from_slice(&GET_SPD_INFO.to_ne_bytes());
    question[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    socket.send(&question, 0).ok()?;
    let mut answer = Vec::with_capacity(ANSWER);
    socket.recv(&mut answer, 0).ok()?;
    let number = |at: usize| Some(u16::from_ne_bytes(*answer.get(at..)?.first_chunk()?));
    // After the header (16) and the flags (4): one attribute, whose second word counts outbound policies.
    if number(4)? != NEW_SPD_INFO || number(22)? != SPD_INFO {
        return None;
    }
    Some(u32::from_ne_bytes(*answer.get(28..)?.first_chunk()?))
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

/// Interface, route's own limit of the packet length, source address.
fn read_route(route: &RouteMessage, local: Ipv4Addr) -> Option<(u32, u32, Ipv4Addr)> {
    if route.header.kind != RouteType::Unicast {
        return None;
    }
    let (mut interface, mut limit, mut learned) = (None, u32::MAX, false);
    let mut source = Some(local).filter(|l| !l.is_unspecified());
    for attribute in &route.attributes {
        // Something else would be put around the packet on this route.
        if matches!(attribute, RouteAttribute::EncapType(_) | RouteAttribute::Encap(_)) {
            return None;
        }
        if let RouteAttribute::Oif(number) = attribute {
            interface = Some(*number);
        } else if let RouteAttribute::PrefSource(RouteAddress::Inet(addr)) = attribute {
            source = source.or(Some(*addr));
        } else if let RouteAttribute::Metrics(metrics) = attribute {
            let mtu = metrics.iter().find_map(|m| if let RouteMetric::Mtu(n) = m { Some(*n) } else { None });
            limit = mtu.unwrap_or(limit);
        } else if let RouteAttribute::CacheInfo(info) = attribute {
            learned = info.expires != 0;
        }
    }
    // A length that expires is one that the kernel has from an ICMPv4 error, which anybody may have sent.
    Some((interface?, if learned { u32::MAX } else { limit }, source?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_counted() {
        // As whoever runs the tests: nobody has set one up here, or the kernel will not say.
        let policies = Policies::open().unwrap();
        let count = policies.0.as_ref().map(outbound_policies);
        assert_eq!(policies.may_apply(), count.is_some_and(|c| c != Some(0)));
    }

    #[test]
    fn an_interface_has_its_mtu() {
        let routes = Routes::open().unwrap();
        assert_eq!(sys::interface_mtu(routes.socket.as_fd(), 1).unwrap(), 65_536, "the loopback device");
        assert!(sys::interface_mtu(routes.socket.as_fd(), 4_000_000).is_err());
    }

    #[test]
    fn this_host_is_not_a_way_out() {
        let mut routes = Routes::open().unwrap();
        assert_eq!(routes.way(Ipv4Addr::LOCALHOST, Ipv4Addr::UNSPECIFIED), None);
        // Remembered, also that there is none.
        assert_eq!(routes.way(Ipv4Addr::LOCALHOST, Ipv4Addr::UNSPECIFIED), None);
        assert_eq!(routes.sequence, 1);
    }
}
