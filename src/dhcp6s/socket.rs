//! The UDP socket on one link: port 547, the groups of all servers and all servers and relays (RFC 8415 section 7.1).
//!
//! Bound to the interface, so that several can stand side by side. Answers leave by it as well, from port 547.

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::AsFd;

use nix::sys::socket::{setsockopt, sockopt};
pub use sixway_dataplane::io::datagrams::{Arrived, Inbox};
use sixway_dataplane::io::datagrams::{Datagram, Sender, arrange, merge};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use crate::dhcpv6::codec::{ALL_SERVERS, SERVER_PORT};

/// All servers of a site, which relays may use.
pub const ALL_SERVERS_OF_SITE: Ipv6Addr = Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 1, 3);
/// Octets of the socket's buffer: a burst of messages waits in it while leases are written.
const BUFFER: usize = 4 << 20;
/// What stays on the link.
const HOPS: u32 = 64;
/// An open socket.
#[derive(Debug)]
pub struct LinkSocket {
    socket: UdpSocket,
    index: u32,
    sender: Sender,
}

/// An answer that is to be sent.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// The message.
    pub octets: &'a [u8],
    /// Where to, and to which port.
    pub to: Ipv6Addr,
    /// See there.
    pub port: u16,
    /// From this address of ours, if it was spoken to; otherwise the kernel chooses.
    pub from: Option<Ipv6Addr>,
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
        merge(socket.as_fd());
        Ok(Self { socket: UdpSocket::from_std(socket.into())?, index, sender: Sender::default() })
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

    /// Takes what has come, as much as one call brings; says whether there may be more.
    ///
    /// # Errors
    /// As the system says; [`io::ErrorKind::WouldBlock`] if nothing has come.
    pub fn take(&self, inbox: &mut Inbox) -> io::Result<bool> {
        let mut some = false;
        let taken = self.socket.try_io(Interest::READABLE, || {
            let more = inbox.receive(self.socket.as_fd())?;
            some = true;
            // Fewer than asked for: no more are there, and nobody has to ask again to find that out.
            if more { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) }
        });
        match taken {
            Err(why) if why.kind() == io::ErrorKind::WouldBlock && some => Ok(false),
            taken => taken.map(|()| true),
        }
    }

    /// Sends answers to addresses on the link or beyond it, those of one length to one address in order. What cannot be sent
    /// is left out.
    pub async fn send(&self, all: &[Answer<'_>]) {
        let scope = |to: &Ipv6Addr| if to.is_unicast_link_local() { self.index } else { 0 };
        let mut all: Vec<Datagram<'_>> = all
            .iter()
            .map(|one| Datagram {
                to: SocketAddrV6::new(one.to, one.port, 0, scope(&one.to)),
                from: one.from,
                octets: one.octets,
            })
            .collect();
        arrange(&mut all);
        let mut left = &all[..];
        while let Some(Datagram { to, .. }) = left.first() {
            let fd = self.socket.as_fd();
            match self.socket.async_io(Interest::WRITABLE, || self.sender.send(fd, left)).await {
                Ok(sent) => left = left.get(sent..).unwrap_or_default(),
                Err(why) => {
                    tracing::debug!("cannot reach {}: {why}", to.ip());
                    left = left.get(1..).unwrap_or_default();
                }
            }
        }
    }
}
