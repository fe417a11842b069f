//! Packets on their way to sockets: gathered in order, joined into trains, sent many in one call.
//!
//! A super-packet becomes one header for each segment (written into a header buffer) plus slices of its payload; UDP sends
//! them as trains that the kernel cuts (`UDP_SEGMENT`), and so it does with runs of equally long packets to one peer. What
//! the kernel refuses as a train is sent again packet by packet. Protocol 41 has no trains.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::BorrowedFd;

use super::sys::{Outbox as Messages, Outgoing, Part};
use crate::counters::{Event, Tally};
use crate::offload::segment::{Layout, cut};
use crate::table::slab::Path;
use crate::update::TunnelId;
use crate::verdict::Reason;

const MOST_MESSAGES: usize = 256;
const MOST_PARTS: usize = 4096;
const HEADER_BUFFER: usize = 512 * 1024;
/// Most datagrams of one train: what kernels before 6.9 take.
const MOST_IN_TRAIN: u32 = 64;
/// Most octets of one train: one UDP datagram's.
const MOST_TRAIN_OCTETS: u32 = 65_507;

/// What is kept of each message for the counters and for sending it again in pieces.
#[derive(Clone, Copy, Debug)]
struct Ticket {
    tunnel: TunnelId,
    packets: u32,
    octets: u32,
    /// Octets of every datagram but the last.
    size: u32,
    /// The last datagram was shorter: nothing can follow it in this train.
    closed: bool,
}

/// Collects packets for one socket.
#[derive(Debug)]
pub struct Outbox {
    outgoing: Vec<Outgoing>,
    tickets: Vec<Ticket>,
    parts: Vec<Part>,
    headers: Vec<u8>,
    messages: Messages,
    trains: bool,
}

impl Outbox {
    /// For a UDP socket (`trains`) or a raw one.
    pub fn new(trains: bool) -> Self {
        Self {
            outgoing: Vec::with_capacity(MOST_MESSAGES),
            tickets: Vec::with_capacity(MOST_MESSAGES),
            parts: Vec::with_capacity(MOST_PARTS),
            headers: Vec::with_capacity(HEADER_BUFFER),
            messages: Messages::new(MOST_MESSAGES, MOST_PARTS),
            trains,
        }
    }

    /// Whether nothing waits to be sent.
    pub fn is_empty(&self) -> bool {
        self.outgoing.is_empty()
    }

    /// Whether a packet of `segments` segments with `headers` octets of headers each fits without a flush.
    pub fn has_room(&self, segments: usize, headers: usize) -> bool {
        self.outgoing.len() + segments <= MOST_MESSAGES
            && self.parts.len() + 2 * segments <= MOST_PARTS
            && self.headers.len() + segments * headers <= HEADER_BUFFER
    }

    /// Adds a packet that lies at `start` of the arena and is sent as it is.
    pub fn push(&mut self, path: &Path, tos: u8, start: usize, len: usize) {
        let part = Part { in_headers: false, start: start as u32, len: len as u32 };
        self.add(path, tos, &[part], len as u32);
    }

    /// Adds a super-packet that lies at `start` of the arena.
    pub fn push_cut(&mut self, path: &Path, tos: u8, start: usize, packet: &[u8], layout: &Layout) {
        let first = self.headers.len();
        self.headers.resize(first + layout.segments() * layout.headers, 0);
        cut(packet, layout, &mut self.headers[first..]);
        for n in 0..layout.segments() {
            let payload = layout.payload(n);
            let header = (first + n * layout.headers) as u32;
            let parts = [
                Part { in_headers: true, start: header, len: layout.headers as u32 },
                Part { in_headers: false, start: (start + payload.start) as u32, len: payload.len() as u32 },
            ];
            self.add(path, tos, &parts, (layout.headers + payload.len()) as u32);
        }
    }

    fn add(&mut self, path: &Path, tos: u8, parts: &[Part], octets: u32) {
        if self.trains && self.join(path, tos, parts, octets) {
            return;
        }
        self.outgoing.push(Outgoing {
            to: SocketAddrV4::new(path.remote, path.remote_port),
            from: path.local,
            tos,
            segment: 0,
            first_part: self.parts.len() as u32,
            parts: parts.len() as u32,
        });
        self.tickets.push(Ticket { tunnel: path.tunnel, packets: 1, octets, size: octets, closed: false });
        self.parts.extend_from_slice(parts);
    }

    /// Appends to the last message if that goes to the same peer and the lengths allow.
    fn join(&mut self, path: &Path, tos: u8, parts: &[Part], octets: u32) -> bool {
        let (Some(message), Some(ticket)) = (self.outgoing.last_mut(), self.tickets.last_mut()) else {
            return false;
        };
        let same = ticket.tunnel == path.tunnel
            && message.tos == tos
            && message.from == path.local
            && message.to == SocketAddrV4::new(path.remote, path.remote_port);
        let fits = !ticket.closed
            && octets <= ticket.size
            && ticket.packets < MOST_IN_TRAIN
            && ticket.octets + octets <= MOST_TRAIN_OCTETS;
        if !same || !fits {
            return false;
        }
        message.segment = ticket.size as u16;
        message.parts += parts.len() as u32;
        ticket.packets += 1;
        ticket.octets += octets;
        ticket.closed = octets < ticket.size;
        self.parts.extend_from_slice(parts);
        true
    }

    /// Sends all that waits by `fd` and forgets it.
    pub fn flush(&mut self, fd: BorrowedFd<'_>, arena: &[u8], tally: &mut Tally) {
        let mut at = 0;
        let mut tried_again = false;
        while at < self.outgoing.len() {
            match self.messages.send(fd, &self.outgoing[at..], &self.parts, (arena, &self.headers)) {
                Ok(sent) => {
                    self.count(at..at + sent, tally);
                    at += sent;
                    tried_again = false;
                }
                Err(e) if is_backpressure(&e) && !tried_again => tried_again = true,
                Err(e) => {
                    self.give_up(at, &e, fd, arena, tally);
                    at += 1;
                    tried_again = false;
                }
            }
        }
        self.forget();
    }

    /// Counts all that waits as lost: its socket is gone.
    pub fn discard(&mut self, tally: &mut Tally) {
        for ticket in &self.tickets {
            tally.drop(Reason::SendFailed, Some(ticket.tunnel), u64::from(ticket.packets));
        }
        self.forget();
    }

    /// Empties it without a word.
    pub fn forget(&mut self) {
        self.outgoing.clear();
        self.tickets.clear();
        self.parts.clear();
        self.headers.clear();
    }

    fn count(&self, which: std::ops::Range<usize>, tally: &mut Tally) {
        tally.event(Event::WireWrites, which.len() as u64);
        for ticket in &self.tickets[which] {
            tally.sent(ticket.tunnel, u64::from(ticket.packets), u64::from(ticket.octets));
            if ticket.packets > 1 {
                tally.event(Event::WireMerged, 1);
            }
        }
    }

    /// A train may be sent in pieces; a single message that is refused is lost.
    fn give_up(&mut self, at: usize, error: &io::Error, fd: BorrowedFd<'_>, arena: &[u8], tally: &mut Tally) {
        let (message, ticket) = (self.outgoing[at], self.tickets[at]);
        if message.segment == 0 || is_backpressure(error) {
            tally.drop(Reason::SendFailed, Some(ticket.tunnel), u64::from(ticket.packets));
            return;
        }
        // A path with a smaller MTU refuses this train only; a device without checksums refuses all.
        self.trains &= error.raw_os_error() != Some(libc::EIO);
        tally.event(Event::WireSplit, 1);
        let mut first = message.first_part;
        let end = message.first_part + message.parts;
        while first < end {
            let (parts, octets) = self.datagram(first..end, ticket.size);
            let piece = Outgoing { segment: 0, first_part: first, parts, ..message };
            first += parts;
            match self.messages.send(fd, &[piece], &self.parts, (arena, &self.headers)) {
                Ok(_) => tally.sent(ticket.tunnel, 1, u64::from(octets)),
                Err(_) => tally.drop(Reason::SendFailed, Some(ticket.tunnel), 1),
            }
        }
    }

    /// How many of the parts from `which` on make up the next datagram of `size` octets.
    fn datagram(&self, which: std::ops::Range<u32>, size: u32) -> (u32, u32) {
        let (mut count, mut octets) = (0, 0);
        for part in &self.parts[which.start as usize..which.end as usize] {
            if octets + part.len > size {
                break;
            }
            count += 1;
            octets += part.len;
            if octets == size {
                break;
            }
        }
        (count.max(1), octets)
    }

    /// Sends one datagram from `local` to `remote` now.
    pub fn send_now(
        &mut self,
        fd: BorrowedFd<'_>,
        local: Ipv4Addr,
        remote: SocketAddrV4,
        tos: u8,
        bytes: &[u8],
    ) -> bool {
        let message = Outgoing { to: remote, from: local, tos, segment: 0, first_part: 0, parts: 1 };
        let part = Part { in_headers: false, start: 0, len: bytes.len() as u32 };
        self.messages.send(fd, &[message], &[part], (bytes, &[])).is_ok()
    }
}

fn is_backpressure(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOBUFS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::counters;
    use crate::table::slab::{Encap, Learn};
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    fn path(to: SocketAddrV4) -> Path {
        Path {
            tunnel: TunnelId(0),
            encap: Encap::Udp,
            mtu: 1280,
            remote: *to.ip(),
            remote_port: to.port(),
            local: Ipv4Addr::UNSPECIFIED,
            local_port: 1,
            socket: 0,
            learn: Learn::Never,
            watched: false,
        }
    }

    fn receiver() -> (UdpSocket, SocketAddrV4) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let std::net::SocketAddr::V4(at) = socket.local_addr().unwrap() else { panic!() };
        (socket, at)
    }

    fn received(socket: &UdpSocket) -> Vec<Vec<u8>> {
        let mut buffer = [0; 70_000];
        std::iter::from_fn(|| socket.recv(&mut buffer).ok().map(|n| buffer[..n].to_vec())).collect()
    }

    #[test]
    fn runs_of_equal_packets_become_a_train_and_arrive_one_by_one() {
        let (to, at) = receiver();
        let from = UdpSocket::bind("127.0.0.1:0").unwrap();
        let arena: Vec<u8> = (0..=255).collect();
        let (reader, mut tally) = counters(1, 1);
        reader.make_room(TunnelId(0));
        let mut outbox = Outbox::new(true);
        for (start, len) in [(0, 50), (50, 50), (100, 20), (120, 50), (170, 60)] {
            outbox.push(&path(at), 0, start, len);
        }
        assert_eq!(outbox.outgoing.iter().map(|m| m.segment).collect::<Vec<_>>(), [50, 0, 0]);
        outbox.flush(from.as_fd(), &arena, &mut tally[0]);
        let expected: Vec<&[u8]> =
            vec![&arena[..50], &arena[50..100], &arena[100..120], &arena[120..170], &arena[170..230]];
        assert_eq!(received(&to), expected);
        assert_eq!((reader.tunnel(TunnelId(0)).tx_packets, reader.tunnel(TunnelId(0)).tx_bytes), (5, 230));
    }

    #[test]
    fn a_refused_train_is_sent_packet_by_packet() {
        let (to, at) = receiver();
        let from = UdpSocket::bind("127.0.0.1:0").unwrap();
        // A socket that sends no checksums cannot have its trains cut: EINVAL (pitfall of UDP_SEGMENT).
        super::super::sys::set_option(from.as_fd(), libc::SOL_SOCKET, libc::SO_NO_CHECK, 1).unwrap();
        let arena = vec![7; 300];
        let (reader, mut tally) = counters(1, 1);
        reader.make_room(TunnelId(0));
        let mut outbox = Outbox::new(true);
        for start in [0, 100, 200] {
            outbox.push(&path(at), 0, start, 100);
        }
        outbox.flush(from.as_fd(), &arena, &mut tally[0]);
        assert_eq!(received(&to).len(), 3);
        assert_eq!(reader.happened(Event::WireSplit), 1);
        assert_eq!(reader.tunnel(TunnelId(0)).tx_packets, 3);
    }
}
