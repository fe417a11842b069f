//! The UDP socket on one link: port 547, the groups of all servers and all servers and relays (RFC 8415 section 7.1).
//!
//! Bound to the interface, so that several can stand side by side. Answers leave by it as well, from port 547, and nobody waits
//! for that: while its neighbours are being looked for, a link's answers wait here, and only so many.

use std::collections::VecDeque;
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
/// Octets of the one that answers leave by.
const SEND_BUFFER: usize = 1 << 20;
/// Answers that wait until the system has room for them.
const MOST_UNSENT: usize = 1024;
/// What stays on the link.
const HOPS: u32 = 64;

/// An open socket.
#[derive(Debug)]
pub struct LinkSocket {
    socket: UdpSocket,
    index: u32,
    sender: Sender,
    outbox: VecDeque<Unsent>,
    unsent: u64,
}

/// An answer that waits until there is room for it.
#[derive(Debug)]
struct Unsent {
    to: SocketAddrV6,
    from: Option<Ipv6Addr>,
    octets: Box<[u8]>,
}

impl Unsent {
    fn of(datagram: &Datagram<'_>) -> Self {
        Self { to: datagram.to, from: datagram.from, octets: datagram.octets.into() }
    }

    fn datagram(&self) -> Datagram<'_> {
        Datagram { to: self.to, from: self.from, octets: &self.octets }
    }
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
        if setsockopt(&socket, sockopt::SndBufForce, &SEND_BUFFER).is_err() {
            let _as_much_as_may_be = socket.set_send_buffer_size(SEND_BUFFER);
        }
        socket.set_multicast_hops_v6(HOPS)?;
        socket.set_unicast_hops_v6(HOPS)?;
        setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        socket.bind(&SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, SERVER_PORT, 0, 0).into())?;
        socket.join_multicast_v6(&ALL_SERVERS, index)?;
        socket.join_multicast_v6(&ALL_SERVERS_OF_SITE, index)?;
        merge(socket.as_fd());
        let (socket, outbox) = (UdpSocket::from_std(socket.into())?, VecDeque::new());
        Ok(Self { socket, index, sender: Sender::default(), outbox, unsent: 0 })
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

    /// Waits until there may be room for what could not be sent yet.
    ///
    /// # Errors
    /// As the system says.
    pub async fn writable(&self) -> io::Result<()> {
        self.socket.writable().await
    }

    /// Whether answers wait until the system has room for them.
    pub fn has_unsent(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// How many answers have been left out: there was no room for them, or the system refused them.
    pub fn unsent(&self) -> u64 {
        self.unsent
    }

    /// Sends answers to addresses on the link or beyond it, those of one length to one address in order, and without waiting.
    /// For what there is no room now [`Self::flush`] tries it later; what cannot be sent, or finds too many before it, is left
    /// out and counted.
    pub fn send(&mut self, all: &[Answer<'_>]) {
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
        self.flush();
        let sent = if self.has_unsent() { 0 } else { self.send_some(&all) };
        let left = all.get(sent..).unwrap_or_default();
        let room = MOST_UNSENT.saturating_sub(self.outbox.len());
        self.outbox.extend(left.iter().take(room).map(Unsent::of));
        self.unsent += left.len().saturating_sub(room) as u64;
    }

    /// Sends what could not be sent yet, as far as there is room for it now.
    pub fn flush(&mut self) {
        if self.outbox.is_empty() {
            return;
        }
        let waiting = std::mem::take(&mut self.outbox);
        let all: Vec<Datagram<'_>> = waiting.iter().map(Unsent::datagram).collect();
        let sent = self.send_some(&all);
        self.outbox = waiting;
        self.outbox.drain(..sent);
    }

    /// Sends the first of these; says how many are dealt with, because they went out or never will.
    fn send_some(&mut self, all: &[Datagram<'_>]) -> usize {
        let mut done = 0;
        while let Some(Datagram { to, .. }) = all.get(done) {
            let (left, fd) = (all.get(done..).unwrap_or_default(), self.socket.as_fd());
            match self.socket.try_io(Interest::WRITABLE, || self.sender.send(fd, left)) {
                Ok(sent) => done += sent,
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => break,
                Err(why) => {
                    tracing::debug!("cannot reach {}: {why}", to.ip());
                    self.unsent += 1;
                    done += 1;
                }
            }
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dhcpv6::codec::CLIENT_PORT;
    use crate::link::netlink::tests::{in_fresh_namespace, run};
    use std::time::{Duration, Instant};

    /// Neighbours that nobody is: the kernel looks for each of them, and keeps what is for it meanwhile.
    #[test]
    fn a_link_full_of_neighbours_that_do_not_answer_stops_nobody_and_comes_to_itself() {
        in_fresh_namespace(|| {
            run(async |links| {
                links.create_veth("a", "b").await.unwrap();
                let index = links.index("a").await.unwrap().unwrap();
                for (name, addr) in [("a", "fd00::1"), ("b", "fd00::2")] {
                    links.set_up(name, None).await.unwrap();
                    let _added = links.add_address(name, addr.parse().unwrap(), 64).await.unwrap();
                }
                let mut socket = LinkSocket::open("a", index).unwrap();
                let merged = nix::sys::socket::getsockopt(&socket.socket, sockopt::UdpGroSegment);
                assert!(merged.unwrap(), "several come at once");
                tokio::time::timeout(Duration::from_secs(5), socket.writable()).await.unwrap().unwrap();
                let octets = [7; 1200];
                let nobody: Vec<Ipv6Addr> =
                    (0..128).map(|n| Ipv6Addr::from(0xfd00 << 112 | 0xdead_0000 | n)).collect();
                let answer =
                    |to: &Ipv6Addr| Answer { octets: &octets, to: *to, port: CLIENT_PORT, from: None };
                let all: Vec<_> = nobody.iter().map(answer).collect();
                let began = Instant::now();
                (0..100).for_each(|_| socket.send(&all));
                assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
                assert_eq!(socket.outbox.len(), MOST_UNSENT);
                let lost = socket.unsent();
                assert!(lost > 0, "bounded, and counted");
                // Their queues are given up after three seconds.
                let came = async {
                    while socket.has_unsent() {
                        socket.writable().await.unwrap();
                        socket.flush();
                    }
                };
                tokio::time::timeout(Duration::from_secs(30), came).await.unwrap();
            });
        });
    }
}
