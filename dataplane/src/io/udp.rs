//! UDP sockets of one worker: datagram trains in, each slice an inner packet (RFC 5572 section 4.5).
//!
//! Every worker has a socket of its own for each endpoint; the kernel spreads senders over them (SO_REUSEPORT) and keeps
//! one sender on one socket. Opening is done once, before rights are given up, by [`open`].

use std::io;
use std::net::{SocketAddrV4, UdpSocket};
use std::ops::Range;
use std::os::fd::AsFd;

use socket2::{Domain, Protocol, Socket, Type};

use super::sys::{Inbox, Name, Received, set_option};
use crate::counters::{Event, Tally};
use crate::knobs::Fuse;
use crate::packet::batch::{Arrival, BUFFER, Batch, HEADROOM, Offload, Packet, Sender};
use crate::table::slab::Encap;
use crate::verdict::Reason;

/// Kernel buffer of each socket in octets: 10 Gbit/s for 6 ms; less where the system's limit says so.
const SOCKET_BUFFER: usize = 8 << 20;

/// Opens one socket of the group on `at`; with `gro` the kernel may merge what it receives.
pub fn open(at: SocketAddrV4, gro: bool) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    enlarge_buffers(&socket);
    let fd = socket.as_fd();
    set_option(fd, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
    set_option(fd, libc::IPPROTO_IP, libc::IP_RECVTOS, 1)?;
    // DF stays clear at every static MTU (RFC 4213 section 3.2.1): a long packet is fragmented, never lost.
    set_option(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT)?;
    let _counts_losses_where_known = set_option(fd, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1);
    if gro {
        // Without it every datagram comes alone, which is slower and as right.
        let _is_only_faster = set_option(fd, libc::SOL_UDP, libc::UDP_GRO, 1);
    }
    socket.bind(&std::net::SocketAddr::V4(at).into())?;
    Ok(socket.into())
}

/// As large as the system lets us: beyond its limit with CAP_NET_ADMIN, else up to it.
pub(super) fn enlarge_buffers(socket: &Socket) {
    let fd = socket.as_fd();
    let size = SOCKET_BUFFER as i32;
    if set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, size).is_err() {
        let _as_much_as_allowed = socket.set_recv_buffer_size(SOCKET_BUFFER);
    }
    if set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, size).is_err() {
        let _as_much_as_allowed = socket.set_send_buffer_size(SOCKET_BUFFER);
    }
}

/// One socket with its place in the worker.
#[derive(Debug)]
pub struct UdpPort {
    /// The socket.
    pub socket: UdpSocket,
    at: SocketAddrV4,
    lost: u32,
    /// Whether its device cuts trains.
    pub trains: Fuse,
    /// Something may be waiting in it.
    pub ready: bool,
}

impl UdpPort {
    /// A socket that [`open`] has made for `at`.
    pub fn new(socket: UdpSocket, at: SocketAddrV4) -> Self {
        Self { socket, at, lost: 0, trains: Fuse::new(1), ready: true }
    }

    /// Whether datagrams from `local` are sent by this socket.
    pub fn is_at(&self, local: SocketAddrV4) -> bool {
        self.at.port() == local.port() && (self.at.ip().is_unspecified() || self.at.ip() == local.ip())
    }

    /// Fills the buffers of `batch` with these numbers. Returns how many were used; fewer than there were means
    /// that the socket is empty, and clears `ready`.
    pub fn receive(
        &mut self,
        inbox: &mut Inbox,
        batch: &mut Batch,
        which: Range<usize>,
        tally: &mut Tally,
    ) -> usize {
        let (first, room) = (which.start, which.len());
        let place = (Batch::offset(first) + HEADROOM, BUFFER, BUFFER - HEADROOM);
        let got = inbox.receive(self.socket.as_fd(), &mut batch.arena, room, place);
        let got = got.unwrap_or(0);
        self.ready = got == room;
        tally.event(Event::WireReads, got as u64);
        for n in 0..got {
            self.accept(inbox.message(n), Batch::offset(first + n) + HEADROOM, batch, tally);
        }
        got
    }

    fn accept(&mut self, message: Received, start: usize, batch: &mut Batch, tally: &mut Tally) {
        if let Some(lost) = message.lost {
            tally.event(Event::KernelDrops, u64::from(lost.wrapping_sub(self.lost)));
            self.lost = lost;
        }
        let Name::Inet(remote) = message.name else { return tally.drop(Reason::OddLink, None, 1) };
        if message.truncated {
            return tally.drop(Reason::Truncated, None, 1);
        }
        let local = SocketAddrV4::new(message.local.unwrap_or(*self.at.ip()), self.at.port());
        let sender = Sender { encap: Encap::Udp, remote, local, tos: message.tos };
        let slice = message.merged.map_or(message.len.max(1), usize::from);
        tally.event(Event::WireMerged, u64::from(message.merged.is_some()));
        // An empty datagram is a packet too short, not nothing.
        for at in (0..message.len.max(1)).step_by(slice) {
            let len = slice.min(message.len - at);
            let packet = Packet {
                start: start + at,
                len,
                arrival: Arrival::Wire(sender),
                offload: Offload::default(),
            };
            if !batch.push(packet) {
                tally.drop(Reason::BatchFull, None, 1);
            }
        }
    }
}
