//! The UDP socket on one link: port 547, the groups of all servers and all servers and relays (RFC 8415 section 7.1).
//!
//! Bound to the interface, so that several can stand side by side. Answers leave by it as well, from port 547.

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, MultiHeaders, RecvMsg, SockaddrIn6, recvmmsg, setsockopt, sockopt,
};
use sixway_dataplane::io::sys::send_datagrams;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use crate::dhcpv6::codec::{ALL_SERVERS, SERVER_PORT};

/// All servers of a site, which relays may use.
pub const ALL_SERVERS_OF_SITE: Ipv6Addr = Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 1, 3);
/// Octets of the socket's buffer: a burst of messages waits in it while leases are written.
const BUFFER: usize = 4 << 20;
/// Octets of what the kernel says about a packet: its destination and its interface (RFC 3542 section 6).
const PACKET_INFO: usize = 20;
/// What stays on the link.
const HOPS: u32 = 64;
/// Messages that are taken in one call, at most.
pub const AT_ONCE: usize = 64;
/// Octets of a message: more does not fit a UDP datagram.
const MESSAGE: usize = 65_536;
/// From one message's place to the next's: somewhat more, or all would use the same part of a processor's cache.
const STRIDE: usize = MESSAGE + 4160;

/// An open socket.
#[derive(Debug)]
pub struct LinkSocket {
    socket: UdpSocket,
    index: u32,
}

/// Room for messages, and those of the last call.
#[derive(Debug)]
pub struct Inbox {
    octets: Vec<u8>,
    arrived: Vec<(usize, Arrived)>,
}

impl Default for Inbox {
    fn default() -> Self {
        Self { octets: vec![0; AT_ONCE * STRIDE], arrived: Vec::with_capacity(AT_ONCE) }
    }
}

impl Inbox {
    /// What the last call has taken.
    pub fn messages(&self) -> impl Iterator<Item = (&[u8], &Arrived)> {
        let octets = |place: usize, len| self.octets.get(place * STRIDE..)?.get(..len);
        let messages = self.arrived.iter();
        messages.map(move |(place, arrived)| (octets(*place, arrived.len).unwrap_or_default(), arrived))
    }
}

/// What has come.
#[derive(Clone, Copy, Debug)]
pub struct Arrived {
    /// How many octets.
    pub len: usize,
    /// Who has sent it.
    pub from: SocketAddrV6,
    /// Where it was sent to.
    pub to: Ipv6Addr,
}

impl LinkSocket {
    /// Opens it on the interface of that name and number.
    ///
    /// # Errors
    /// As the system says.
    pub fn open(name: &str, index: u32) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV6, Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
        socket.set_only_v6(true)?;
        socket.bind_device(Some(name.as_bytes()))?;
        // The system may allow less; then less waits.
        if setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).is_err() {
            let _as_much_as_may_be = socket.set_recv_buffer_size(BUFFER);
        }
        socket.set_multicast_hops_v6(HOPS)?;
        socket.set_unicast_hops_v6(HOPS)?;
        setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        socket.bind(&SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, SERVER_PORT, 0, 0).into())?;
        socket.join_multicast_v6(&ALL_SERVERS, index)?;
        socket.join_multicast_v6(&ALL_SERVERS_OF_SITE, index)?;
        Ok(Self { socket: UdpSocket::from_std(socket.into())?, index })
    }

    /// The interface's number.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Waits until something has come.
    ///
    /// # Errors
    /// As the system says.
    pub async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    /// Takes what has come, up to [`AT_ONCE`]; says whether there may be more.
    ///
    /// # Errors
    /// As the system says; [`io::ErrorKind::WouldBlock`] if nothing has come.
    pub fn take(&self, inbox: &mut Inbox) -> io::Result<bool> {
        inbox.arrived.clear();
        let taken = self.socket.try_io(Interest::READABLE, || {
            let taken = self.receive(inbox)?;
            // Fewer than asked for: no more are there, and nobody has to ask again to find that out.
            if taken < AT_ONCE { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        match taken {
            Err(why) if why.kind() == io::ErrorKind::WouldBlock && !inbox.arrived.is_empty() => Ok(false),
            taken => taken.map(|()| true),
        }
    }

    fn receive(&self, inbox: &mut Inbox) -> io::Result<usize> {
        let Inbox { octets, arrived } = inbox;
        let places = octets.chunks_exact_mut(STRIDE).map(|place| place.split_at_mut(MESSAGE).0);
        let mut parts: Vec<[io::IoSliceMut<'_>; 1]> =
            places.map(|place| [io::IoSliceMut::new(place)]).collect();
        let control = nix::cmsg_space!([u8; PACKET_INFO]);
        let mut headers = MultiHeaders::<SockaddrIn6>::preallocate(AT_ONCE, Some(control));
        let flags = MsgFlags::MSG_DONTWAIT;
        let messages = recvmmsg(self.socket.as_raw_fd(), &mut headers, parts.iter_mut(), flags, None)?;
        let mut taken = 0;
        for (place, message) in messages.enumerate() {
            taken += 1;
            arrived.extend(read(&message).map(|arrived| (place, arrived)));
        }
        Ok(taken)
    }

    /// Sends answers to addresses on the link or beyond it, in order. What cannot be sent is left out.
    pub async fn send(&self, all: &[(&[u8], Ipv6Addr, u16)]) {
        let scope = |to: &Ipv6Addr| if to.is_unicast_link_local() { self.index } else { 0 };
        let all: Vec<(&[u8], SocketAddrV6)> = all
            .iter()
            .map(|(octets, to, port)| (*octets, SocketAddrV6::new(*to, *port, 0, scope(to))))
            .collect();
        let mut left = &all[..];
        while let Some((_, to)) = left.first() {
            let fd = self.socket.as_fd();
            match self.socket.async_io(Interest::WRITABLE, || send_datagrams(fd, left)).await {
                Ok(sent) => left = left.get(sent..).unwrap_or_default(),
                Err(why) => {
                    tracing::debug!("cannot reach {}: {why}", to.ip());
                    left = left.get(1..).unwrap_or_default();
                }
            }
        }
    }
}

/// What the kernel says of a message; nothing, if it says too little.
fn read(message: &RecvMsg<'_, '_, SockaddrIn6>) -> Option<Arrived> {
    let to = message.cmsgs().ok()?.find_map(|part| {
        let ControlMessageOwned::Ipv6PacketInfo(info) = part else { return None };
        Some(Ipv6Addr::from(info.ipi6_addr.s6_addr))
    });
    Some(Arrived { len: message.bytes, from: SocketAddrV6::from(message.address?), to: to? })
}
