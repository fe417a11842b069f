//! Which interface leads to a peer, and how long a packet may be on it: what the kernel's routing says (RFC 1122 section
//! 3.3.1), asked by netlink and remembered ([`super::ways`]) until the kernel tells of a change.
//!
//! Only super-packets need to know: everything else is routed by the kernel as it is sent. Once a second it is looked
//! whether routes, addresses, rules or interfaces have changed, and whether there are IPsec policies. Not done: choosing
//! among equal routes packet by packet.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::time::Duration;

use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::{NETLINK_ROUTE, NETLINK_XFRM};
use netlink_sys::{Socket, SocketAddr};

use super::sys;
use super::ways::{Found, Ways};

/// How often changes are looked for.
const LOOK: Duration = Duration::from_secs(1);
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

/// Asks; belongs to the network namespace that it was made in.
#[derive(Debug)]
pub struct Routes {
    socket: Socket,
    policies: Policies,
    answer: Vec<u8>,
    sequence: u32,
}

/// Asks and remembers.
#[derive(Debug)]
pub struct KnownRoutes {
    routes: Routes,
    news: News,
    ways: Ways,
    /// When changes were looked for last, and whether IPsec policies may apply since.
    looked: Option<(Duration, bool)>,
    /// Whether something was heard at the last look.
    heard: bool,
}

impl KnownRoutes {
    /// Connects to the kernel.
    pub fn open() -> io::Result<Self> {
        // Before anything is asked: no change comes unheard after it.
        let news = News::open()?;
        Ok(Self { routes: Routes::open()?, news, heard: false, ways: Ways::default(), looked: None })
    }

    /// The way from our address `local` (unspecified: any) to `peer` at `now`, counted from the start; `None` when there is
    /// none that leads out of this host, or it is not known now.
    pub fn way(&mut self, peer: Ipv4Addr, local: Ipv4Addr, now: Duration) -> Option<Way> {
        if self.has_policies(now) {
            return None;
        }
        let ends = (local, peer);
        match self.ways.find(ends, now) {
            Found::Way(way) => way,
            Found::Later => None,
            Found::Ask => {
                let answer = self.routes.way(peer, local).map_err(|_| ());
                self.ways.learn(ends, answer, now);
                answer.unwrap_or(None)
            }
        }
    }

    /// Questions asked of the kernel, and packets that had to do without one, since this was called last.
    pub fn take_questions(&mut self) -> (u64, u64) {
        self.ways.take_counts()
    }

    /// Whether IPsec may apply to what is sent; looks for changes when it is time to.
    fn has_policies(&mut self, now: Duration) -> bool {
        if let Some((_, may_apply)) = self.looked.filter(|(at, _)| now < *at + LOOK) {
            return may_apply;
        }
        // The kernel may speak before it acts: what was asked meanwhile is asked once more.
        let heard = self.news.any();
        if heard || self.heard {
            self.ways.change();
        }
        self.heard = heard;
        let may_apply = self.routes.policies.may_apply();
        self.looked = Some((now, may_apply));
        may_apply
    }
}

impl Routes {
    /// Connects to the kernel.
    pub fn open() -> io::Result<Self> {
        Ok(Self {
            socket: connect(NETLINK_ROUTE)?,
            policies: Policies::open()?,
            answer: Vec::with_capacity(ANSWER),
            sequence: 0,
        })
    }

    /// The way from our address `local` (unspecified: any) to `peer`; `None` when there is none that leads out of this
    /// host, or IPsec may apply.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn look_up(&mut self, peer: Ipv4Addr, local: Ipv4Addr) -> io::Result<Option<Way>> {
        if self.policies.may_apply() {
            return Ok(None);
        }
        self.way(peer, local)
    }

    /// The same without looking at policies.
    fn way(&mut self, peer: Ipv4Addr, local: Ipv4Addr) -> io::Result<Option<Way>> {
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
            let got = got.map_err(|why| io::Error::other(format!("an answer that cannot be read: {why}")))?;
            // An answer that came too late for its own question.
            if got.header.sequence_number != self.sequence {
                continue;
            }
            if let NetlinkPayload::Error(error) = got.payload {
                return no_way(error.to_io()).map(|()| None);
            }
            let NetlinkPayload::InnerMessage(answer) = got.payload else { return Ok(None) };
            return Ok(Some(answer));
        }
    }
}

/// Whether this error says that there is no way, which is an answer; another one is none.
fn no_way(why: io::Error) -> io::Result<()> {
    const NONE: [i32; 4] = [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EACCES, libc::EINVAL];
    if why.raw_os_error().is_some_and(|code| NONE.contains(&code)) { Ok(()) } else { Err(why) }
}

/// The kernel answers these questions within the request and without its great lock (RTM_GETLINK would take it).
fn connect(protocol: isize) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.set_non_blocking(true)?;
    Ok(socket)
}

/// What the kernel tells of changes, unread: that there is something is all that matters.
#[derive(Debug)]
struct News(Socket);

impl News {
    fn open() -> io::Result<Self> {
        // RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV4_RULE (include/uapi/linux/rtnetlink.h).
        const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x80;
        const NEXT_HOPS: u32 = 32;
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.set_non_blocking(true)?;
        // A flood of news is as good as one, and soon read.
        let _it_only_takes_longer_to_read = socket.set_rx_buf_sz(4096);
        socket.bind(&SocketAddr::new(0, GROUPS))?;
        let _older_kernels_have_none = socket.add_membership(NEXT_HOPS);
        Ok(Self(socket))
    }

    /// Whether there has been anything since this was asked last.
    fn any(&self) -> bool {
        const AT_ONCE: usize = 256;
        let mut heard = false;
        for _ in 0..AT_ONCE {
            match self.0.recv(&mut &mut [0; 16][..], 0) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return heard,
                // ENOBUFS: there was more than fits.
                Ok(_) | Err(_) => heard = true,
            }
        }
        heard
    }
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
        let mut routes = KnownRoutes::open().unwrap();
        let mut way =
            |seconds| routes.way(Ipv4Addr::LOCALHOST, Ipv4Addr::UNSPECIFIED, Duration::from_secs(seconds));
        assert_eq!((way(0), way(0)), (None, None));
        // Remembered, also that there is none.
        assert_eq!(routes.routes.sequence, 1);
    }
}
