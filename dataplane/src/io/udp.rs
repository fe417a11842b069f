//! UDP sockets of one worker: datagram trains in, each slice an inner packet (RFC 5572 section 4.5).
//!
//! Every worker has a socket of its own for each endpoint; the kernel spreads senders over them (SO_REUSEPORT) by the
//! rule in [`super::spread`] and keeps one sender on one socket. All of a group are opened at once, by [`open_group`].

use std::io;
use std::net::{SocketAddrV4, UdpSocket};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};

use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, Type};

use super::outbox::Outlet;
use super::spread::{self, Spread};
use super::sys::{Inbox, Name, Received, set_option};
use crate::counters::{Event, Tally};
use crate::knobs::{Fuse, Knob};
use crate::packet::batch::{Arrival, BUFFER, Batch, HEADROOM, Offload, Packet, Sender};
use crate::table::slab::Encap;
use crate::verdict::Reason;

/// Kernel buffer of each socket in octets: 10 Gbit/s for 6 ms; less where the system's limit says so.
const SOCKET_BUFFER: usize = 8 << 20;

/// Opens the sockets of all workers on `at`, in the workers' order; [`spread::worker_of`] says who gets which sender
/// unless `spread` leaves that to the kernel.
///
/// While the group grows, the choice changes with every socket, so until all are there and the rule holds, each refuses
/// what comes: those datagrams are lost, and counted by the socket, but none is ever in a wrong worker's queue.
pub fn open_group(at: SocketAddrV4, workers: usize, gro: bool, spread: Spread) -> io::Result<Vec<UdpSocket>> {
    let all = (0..workers).map(|_| open_deaf(at, gro)).collect::<io::Result<Vec<UdpSocket>>>()?;
    if let (Spread::BySender, Some(first)) = (spread, all.first()) {
        spread::attach(first.as_fd(), workers)?;
    }
    all.iter().try_for_each(|socket| SockRef::from(socket).detach_filter())?;
    Ok(all)
}

/// Makes all sockets of a group refuse what comes, before the first of them is closed: with each that leaves, the choice
/// among the others changes, and a sender would be in two workers' queues.
pub fn deafen(group: &[UdpSocket]) {
    for socket in group {
        // One that goes on hearing loses nothing; what it hears may be out of order.
        let _is_deaf = SockRef::from(socket).attach_filter(&[REFUSE]);
    }
}

/// One socket of a group, bound, which still refuses every datagram.
fn open_deaf(at: SocketAddrV4, gro: bool) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    enlarge_buffers(&socket);
    let fd = socket.as_fd();
    set_option(fd, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
    set_option(fd, libc::IPPROTO_IP, libc::IP_RECVTOS, 1)?;
    // DF stays clear at every static MTU (RFC 4213 section 3.2.1): a long packet is fragmented, never lost. What anybody
    // says in an ICMPv4 error about the path is not believed: fragments are as long as the interface takes.
    set_option(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_OMIT)?;
    let _counts_losses_where_known = set_option(fd, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1);
    if gro {
        // Without it every datagram comes alone, which is slower and as right.
        let _is_only_faster = set_option(fd, libc::SOL_UDP, libc::UDP_GRO, 1);
    }
    socket.attach_filter(&[REFUSE])?;
    socket.bind(&std::net::SocketAddr::V4(at).into())?;
    Ok(socket.into())
}

/// Classic BPF: return 0, which lets nothing in.
pub(super) const REFUSE: SockFilter = SockFilter::new(0x06, 0, 0, 0);

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

/// What a socket sends from now on has DF set, or not.
pub(super) fn set_df(fd: BorrowedFd<'_>, whole: bool) -> io::Result<()> {
    let mode = if whole { libc::IP_PMTUDISC_PROBE } else { libc::IP_PMTUDISC_OMIT };
    set_option(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, mode)
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
    whole: bool,
    /// Something may be waiting in it.
    pub ready: bool,
}

impl UdpPort {
    /// A socket that [`open_group`] has made for `at`.
    pub fn new(socket: UdpSocket, at: SocketAddrV4) -> Self {
        Self { socket, at, lost: 0, trains: Fuse::new(1), whole: false, ready: true }
    }

    /// Whether datagrams from `local` are sent by this socket.
    pub fn is_at(&self, local: SocketAddrV4) -> bool {
        self.at.port() == local.port() && (self.at.ip().is_unspecified() || self.at.ip() == local.ip())
    }

    /// From the next send on DF is set in outer headers, or not (RFC 4213 section 3.2.2). With it a packet longer than the
    /// interface takes is refused; what this host has learned of the path is the control plane's business, not the socket's.
    pub fn send_whole(&mut self, whole: bool) {
        if self.whole == whole {
            return;
        }
        let set = set_df(self.socket.as_fd(), whole);
        self.whole = if set.is_ok() { whole } else { self.whole };
    }

    /// Where the outbox of this socket is emptied.
    pub fn outlet(&self) -> Outlet<'_> {
        Outlet { fd: self.socket.as_fd(), whole: self.whole, fragmenting: None }
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
        let Name::Inet(remote) = message.name else {
            tally.keep(Reason::OddLink, None, None, &batch.arena[start..start + message.len]);
            return tally.drop(Reason::OddLink, None, 1);
        };
        let local = SocketAddrV4::new(message.local.unwrap_or(*self.at.ip()), self.at.port());
        let sender = Sender { encap: Encap::Udp, remote, local, tos: message.tos };
        if message.truncated {
            tally.keep(
                Reason::Truncated,
                None,
                Some(Arrival::Wire(sender)),
                &batch.arena[start..start + message.len],
            );
            return tally.drop(Reason::Truncated, None, 1);
        }
        let slice = message.merged.map_or(message.len.max(1), usize::from);
        tally.event(Event::WireMerged, u64::from(message.merged.is_some()));
        tally.trains(Knob::UdpGro, u64::from(message.merged.is_some()));
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
                tally.keep(Reason::BatchFull, None, Some(packet.arrival), &batch.arena[packet.range()]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::spread::worker_of;

    fn free_endpoint() -> SocketAddrV4 {
        let probe = UdpSocket::bind("127.0.0.1:0").unwrap();
        let std::net::SocketAddr::V4(at) = probe.local_addr().unwrap() else { panic!("IPv4 was asked for") };
        at
    }

    fn v4(socket: &UdpSocket) -> SocketAddrV4 {
        let std::net::SocketAddr::V4(at) = socket.local_addr().unwrap() else { panic!("an IPv4 socket") };
        at
    }

    /// Sends one datagram from a new socket and says who sent it; `options` gives the IPv4 header four octets more.
    fn send(to: SocketAddrV4, options: bool) -> SocketAddrV4 {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        if options {
            // No operation, three times, and the end of the list.
            let list = i32::from_ne_bytes([1, 1, 1, 0]);
            set_option(socket.as_fd(), libc::IPPROTO_IP, libc::IP_OPTIONS, list).unwrap();
        }
        socket.send_to(b"x", to).unwrap();
        v4(&socket)
    }

    #[test]
    fn the_kernel_gives_each_sender_to_the_worker_that_the_rule_names() {
        for workers in [1, 2, 3, 5] {
            let at = free_endpoint();
            let all = open_group(at, workers, false, Spread::BySender).unwrap();
            for n in 0..60 {
                let sender = send(at, n % 3 == 0);
                let expected = worker_of(sender, workers as u32) as usize;
                let mut buffer = [0; 8];
                for (n, socket) in all.iter().enumerate() {
                    let got = socket.recv_from(&mut buffer).ok().map(|(_, from)| from);
                    assert_eq!(got, (n == expected).then_some(sender.into()), "worker {n} of {workers}");
                }
            }
        }
    }

    #[test]
    fn a_socket_hears_nothing_until_all_of_its_group_are_there() {
        let at = free_endpoint();
        let one = open_deaf(at, false).unwrap();
        send(at, false);
        assert!(one.recv_from(&mut [0; 8]).is_err());
        drop(one);
        let all = open_group(at, 2, false, Spread::ByKernel).unwrap();
        send(at, false);
        assert_eq!(all.iter().filter(|s| s.recv_from(&mut [0; 8]).is_ok()).count(), 1);
    }

    #[test]
    fn a_closing_group_hears_nothing_more() {
        let at = free_endpoint();
        let all = open_group(at, 3, false, Spread::BySender).unwrap();
        deafen(&all);
        (0..20).for_each(|_| assert_ne!(send(at, false), at));
        assert!(all.iter().all(|s| s.recv_from(&mut [0; 8]).is_err()));
    }

    #[test]
    fn this_kernel_takes_the_rule() {
        assert_eq!(Spread::granted(), Spread::BySender);
    }
}
