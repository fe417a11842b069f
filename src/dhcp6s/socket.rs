//! The UDP socket on one link: port 547, the groups of all servers and all servers and relays (RFC 8415 section 7.1).
//!
//! Bound to the interface, so that several can stand side by side. Answers leave by it as well, from port 547.

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::AsRawFd;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg, setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};
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

/// An open socket.
#[derive(Debug)]
pub struct LinkSocket {
    socket: UdpSocket,
    index: u32,
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
        let _as_much_as_may_be = socket.set_recv_buffer_size(BUFFER);
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

    /// Takes what has come, if anything.
    ///
    /// # Errors
    /// As the system says; [`io::ErrorKind::WouldBlock`] if nothing has come.
    pub fn take(&self, buffer: &mut [u8]) -> io::Result<Arrived> {
        self.socket.try_io(tokio::io::Interest::READABLE, || {
            let mut parts = [io::IoSliceMut::new(buffer)];
            let mut control = nix::cmsg_space!([u8; PACKET_INFO]);
            let fd = self.socket.as_raw_fd();
            let message = recvmsg::<SockaddrIn6>(fd, &mut parts, Some(&mut control), MsgFlags::empty())?;
            let from = message.address.ok_or(io::ErrorKind::InvalidData)?;
            let to = message.cmsgs()?.find_map(|part| {
                let ControlMessageOwned::Ipv6PacketInfo(info) = part else { return None };
                Some(Ipv6Addr::from(info.ipi6_addr.s6_addr))
            });
            let to = to.ok_or(io::ErrorKind::InvalidData)?;
            Ok(Arrived { len: message.bytes, from: SocketAddrV6::from(from), to })
        })
    }

    /// Sends an answer to an address on the link or beyond it.
    ///
    /// # Errors
    /// As the system says.
    pub async fn send(&self, octets: &[u8], to: Ipv6Addr, port: u16) -> io::Result<()> {
        let scope = if to.is_unicast_link_local() { self.index } else { 0 };
        let to = SocketAddrV6::new(to, port, 0, scope);
        self.socket.send_to(octets, std::net::SocketAddr::V6(to)).await.map(|_| ())
    }
}
