//! Packets on their way to sockets: gathered in order, joined into trains, sent many in one call.
//!
//! A super-packet becomes one header for each segment (written into a header buffer) plus slices of its payload; UDP sends
//! them as trains that the kernel cuts (`UDP_SEGMENT`), and so it does with runs of equally long packets to one peer. What
//! the kernel refuses as a train is sent again packet by packet; whether the socket should go on with trains is its
//! owner's decision, but a peer whose path is too narrow is remembered here. Protocol 41 has no trains. A packet with DF
//! that is longer than our own interface takes goes in fragments, and its tunnel is noted.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::sys::{Outbox as Messages, Outgoing, Part};
use super::udp::set_df;
use crate::counters::{Event, Tally};
use crate::knobs::{self, Knob};
use crate::offload::segment::{Layout, cut};
use crate::packet::batch::Sender;
use crate::samples::Course;
use crate::table::slab::{Encap, Path};
use crate::update::TunnelId;
use crate::verdict::Reason;

const MOST_MESSAGES: usize = 256;
const MOST_PARTS: usize = 4096;
const HEADER_BUFFER: usize = 512 * 1024;
/// Most datagrams of one train: what kernels before 6.9 take.
const MOST_IN_TRAIN: u32 = 64;
/// Most octets of one train: one UDP datagram's.
const MOST_TRAIN_OCTETS: u32 = 65_507;
/// Tunnels whose path is remembered to be narrow; more share places, and are only tried more often.
const NARROW: usize = 64;
/// How long that is remembered: a path may widen again.
const NARROW_FOR: Duration = Duration::from_secs(10);

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

/// A tunnel whose path takes no trains of datagrams so long.
#[derive(Clone, Copy, Debug)]
struct Narrow {
    tunnel: TunnelId,
    size: u32,
    until: Duration,
}

/// What came of the trains in one flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Trains {
    /// There was none, or what became of them says nothing about this socket.
    Untried,
    /// The kernel took all.
    Taken,
    /// The device cannot cut them: the kernel took the same packets one by one.
    Refused,
}

/// Where an outbox is emptied.
#[derive(Clone, Copy, Debug)]
pub struct Outlet<'a> {
    /// The socket.
    pub fd: BorrowedFd<'a>,
    /// Whether it sends with DF set.
    pub whole: bool,
    /// A socket that lets outer packets be fragmented; `None`: this one can be told to.
    pub fragmenting: Option<BorrowedFd<'a>>,
}

impl Outlet<'_> {
    /// Lets `send` send without DF once.
    fn without_df(&self, send: impl FnOnce(BorrowedFd<'_>) -> io::Result<usize>) -> io::Result<usize> {
        match self.fragmenting {
            _ if !self.whole => Err(io::Error::from_raw_os_error(libc::EMSGSIZE)),
            Some(fd) => send(fd),
            None => {
                set_df(self.fd, false)?;
                let sent = send(self.fd);
                // What was set a moment ago can be set again.
                set_df(self.fd, true).and(sent)
            }
        }
    }
}

/// How a socket is asked to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ask {
    /// The messages from a place on, as they are.
    AsTheyAre,
    /// One message, in fragments if it is too long for the interface.
    Fragmented,
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
    narrow: [Narrow; NARROW],
    /// The last tunnel whose device could not cut its trains, and until when that is believed of this tunnel alone.
    uncut: Option<(TunnelId, Duration)>,
    now: Duration,
}

impl Default for Outbox {
    fn default() -> Self {
        Self::new()
    }
}

impl Outbox {
    /// An empty one that makes no trains before [`Self::begin`] says so.
    pub fn new() -> Self {
        let nobody = Narrow { tunnel: TunnelId(0), size: 0, until: Duration::ZERO };
        Self {
            outgoing: Vec::with_capacity(MOST_MESSAGES),
            tickets: Vec::with_capacity(MOST_MESSAGES),
            parts: Vec::with_capacity(MOST_PARTS),
            headers: Vec::with_capacity(HEADER_BUFFER),
            messages: Messages::new(MOST_MESSAGES, MOST_PARTS),
            trains: false,
            narrow: [nobody; NARROW],
            uncut: None,
            now: Duration::ZERO,
        }
    }

    /// What is added from now on may become trains, or not; `now` counts from the start.
    pub fn begin(&mut self, trains: bool, now: Duration) {
        (self.trains, self.now) = (trains, now);
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
        let narrow = &self.narrow[ticket.tunnel.0 as usize % NARROW];
        if narrow.tunnel == ticket.tunnel && ticket.size >= narrow.size && self.now < narrow.until {
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

    /// Sends all that waits by `outlet` and forgets it.
    pub fn flush(&mut self, outlet: Outlet<'_>, arena: &[u8], tally: &mut Tally) -> Trains {
        let mut messages = std::mem::take(&mut self.messages);
        let trains = self.flush_by(arena, tally, |b, at, ask| match ask {
            Ask::AsTheyAre => messages.send(outlet.fd, &b.outgoing[at..], &b.parts, (arena, &b.headers)),
            Ask::Fragmented => {
                outlet.without_df(|fd| messages.send(fd, &b.outgoing[at..=at], &b.parts, (arena, &b.headers)))
            }
        });
        self.messages = messages;
        trains
    }

    /// `send` tries the messages from a place on, and says how many went out or why the first did not.
    fn flush_by(
        &mut self,
        arena: &[u8],
        tally: &mut Tally,
        mut send: impl FnMut(&Self, usize, Ask) -> io::Result<usize>,
    ) -> Trains {
        let mut at = 0;
        let mut tried_again = false;
        let mut trains = Trains::Untried;
        let mut suspect = false;
        while at < self.outgoing.len() {
            match send(self, at, Ask::AsTheyAre) {
                Ok(sent) => {
                    trains = self.conclude(at..at + sent, trains, suspect);
                    self.count(at..at + sent, tally);
                    at += sent;
                    (tried_again, suspect) = (false, false);
                }
                Err(e) if is_backpressure(&e) && !tried_again => tried_again = true,
                Err(e) if self.outgoing[at].segment != 0 && is_refusal(&e) => {
                    // A path too narrow is about this peer, and so may be a way that cannot cut (IPsec, another device); a
                    // second such peer makes it the socket's.
                    suspect = e.raw_os_error() == Some(libc::EIO) && self.is_second_uncut(at);
                    self.note_narrow(at, e.raw_os_error() == Some(libc::EIO));
                    self.split(at..if suspect { self.outgoing.len() } else { at + 1 }, tally);
                    tried_again = false;
                }
                Err(e) => {
                    let is_too_long = e.raw_os_error() == Some(libc::EMSGSIZE);
                    let in_fragments = is_too_long.then(|| send(self, at, Ask::Fragmented));
                    self.settle(at, in_fragments, arena, tally);
                    at += 1;
                    (tried_again, suspect) = (false, false);
                }
            }
        }
        self.forget();
        trains
    }

    /// What is left to do for a packet that was refused; one that was too long has been tried again in fragments.
    fn settle(&self, at: usize, in_fragments: Option<io::Result<usize>>, arena: &[u8], tally: &mut Tally) {
        if in_fragments.is_some() {
            tally.too_long(self.tickets[at].tunnel);
        }
        match in_fragments {
            Some(Ok(_)) => {
                self.count(at..at + 1, tally);
                tally.event(Event::WireFragmented, 1);
            }
            Some(Err(why)) if !is_backpressure(&why) => self.lose(Reason::TooBig, at, arena, tally),
            Some(Err(_)) | None => self.lose(Reason::SendFailed, at, arena, tally),
        }
    }

    /// Counts a message as lost, and keeps the beginning of its first packet.
    fn lose(&self, reason: Reason, at: usize, arena: &[u8], tally: &mut Tally) {
        let (message, lost) = (&self.outgoing[at], self.tickets[at]);
        tally.drop(reason, Some(lost.tunnel), u64::from(lost.packets));
        let encap = if message.to.port() == 0 { Encap::Proto41 } else { Encap::Udp };
        let local = SocketAddrV4::new(message.from, 0);
        let course = Course::To(Sender { encap, remote: message.to, local, tos: message.tos });
        tally.keep_parts(reason, Some(lost.tunnel), course, &self.first_packet(at, arena));
    }

    /// The first packet of a message: its headers, where they were written anew, and the rest.
    fn first_packet<'a>(&'a self, at: usize, arena: &'a [u8]) -> [&'a [u8]; 2] {
        let first = self.outgoing[at].first_part;
        let (count, _) = self.datagram(first..first + self.outgoing[at].parts, self.tickets[at].size);
        let octets = |part: &Part| {
            let from = if part.in_headers { &self.headers[..] } else { arena };
            from.get(part.start as usize..(part.start + part.len) as usize).unwrap_or_default()
        };
        let mut parts = self.parts[first as usize..][..count as usize].iter().map(octets);
        [parts.next().unwrap_or_default(), parts.next().unwrap_or_default()]
    }

    /// What these messages, which have been sent, say about trains; `suspect`: they were one before.
    fn conclude(&self, sent: Range<usize>, before: Trains, suspect: bool) -> Trains {
        let any = self.outgoing[sent].iter().any(|m| m.segment != 0);
        match before {
            Trains::Untried | Trains::Taken if suspect => Trains::Refused,
            Trains::Untried if any => Trains::Taken,
            Trains::Untried | Trains::Taken | Trains::Refused => before,
        }
    }

    fn note_narrow(&mut self, at: usize, uncut: bool) {
        let ticket = self.tickets[at];
        let (size, pause) = if uncut { (0, knobs::PAUSE) } else { (ticket.size, NARROW_FOR) };
        let narrow = Narrow { tunnel: ticket.tunnel, size, until: self.now + pause };
        self.narrow[ticket.tunnel.0 as usize % NARROW] = narrow;
    }

    /// Notes that nothing on the way to this peer cuts trains; whether that was found of another one a short while ago.
    fn is_second_uncut(&mut self, at: usize) -> bool {
        let tunnel = self.tickets[at].tunnel;
        let before = self.uncut.replace((tunnel, self.now + knobs::PAUSE));
        before.is_some_and(|(other, until)| other != tunnel && self.now < until)
    }

    /// Puts the single packets in the place of the trains among these messages.
    fn split(&mut self, which: Range<usize>, tally: &mut Tally) {
        let (mut outgoing, mut tickets) = (Vec::new(), Vec::new());
        for at in which.clone() {
            let (message, ticket) = (self.outgoing[at], self.tickets[at]);
            tally.event(Event::WireSplit, u64::from(message.segment != 0));
            let mut first = message.first_part;
            let end = message.first_part + message.parts;
            while first < end {
                let (parts, octets) = self.datagram(first..end, ticket.size);
                outgoing.push(Outgoing { segment: 0, first_part: first, parts, ..message });
                tickets.push(Ticket { packets: 1, octets, size: octets, ..ticket });
                first += parts;
            }
        }
        self.outgoing.splice(which.clone(), outgoing);
        self.tickets.splice(which, tickets);
    }

    /// Counts all that waits as lost: its socket is gone.
    pub fn discard(&mut self, arena: &[u8], tally: &mut Tally) {
        (0..self.outgoing.len()).for_each(|at| self.lose(Reason::SendFailed, at, arena, tally));
        self.forget();
    }

    /// Empties it without a word.
    pub fn forget(&mut self) {
        self.outgoing.clear();
        self.tickets.clear();
        self.parts.clear();
        self.headers.clear();
    }

    fn count(&self, which: Range<usize>, tally: &mut Tally) {
        tally.event(Event::WireWrites, which.len() as u64);
        for ticket in &self.tickets[which] {
            tally.sent(ticket.tunnel, u64::from(ticket.packets), u64::from(ticket.octets));
            if ticket.packets > 1 {
                tally.event(Event::WireMerged, 1);
                tally.trains(Knob::UdpGso, 1);
            }
        }
    }

    /// How many of the parts from `which` on make up the next datagram of `size` octets.
    fn datagram(&self, which: Range<u32>, size: u32) -> (u32, u32) {
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

/// Cut here, it may pass. Other errors, such as no route, are about each packet as well.
fn is_refusal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE | libc::EOPNOTSUPP))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::{CounterReader, counters};
    use crate::table::slab::Learn;
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
            manners: Default::default(),
        }
    }

    fn receiver() -> (UdpSocket, SocketAddrV4) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let std::net::SocketAddr::V4(at) = socket.local_addr().unwrap() else { panic!() };
        (socket, at)
    }

    fn by(socket: &UdpSocket) -> Outlet<'_> {
        Outlet { fd: socket.as_fd(), whole: false, fragmenting: None }
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
        let mut outbox = Outbox::new();
        outbox.begin(true, Duration::ZERO);
        for (start, len) in [(0, 50), (50, 50), (100, 20), (120, 50), (170, 60)] {
            outbox.push(&path(at), 0, start, len);
        }
        assert_eq!(outbox.outgoing.iter().map(|m| m.segment).collect::<Vec<_>>(), [50, 0, 0]);
        assert_eq!(outbox.flush(by(&from), &arena, &mut tally[0]), Trains::Taken);
        let expected: Vec<&[u8]> =
            vec![&arena[..50], &arena[50..100], &arena[100..120], &arena[120..170], &arena[170..230]];
        assert_eq!(received(&to), expected);
        assert_eq!((reader.tunnel(TunnelId(0)).tx_packets, reader.tunnel(TunnelId(0)).tx_bytes), (5, 230));
    }

    /// RFC: R3 (EMSGSIZE)
    #[test]
    fn a_refused_train_is_sent_packet_by_packet() {
        let (to, at) = receiver();
        let from = UdpSocket::bind("127.0.0.1:0").unwrap();
        // A socket that sends no checksums cannot have its trains cut: EINVAL (pitfall of UDP_SEGMENT).
        super::super::sys::set_option(from.as_fd(), libc::SOL_SOCKET, libc::SO_NO_CHECK, 1).unwrap();
        let arena = vec![7; 300];
        let (reader, mut tally) = counters(1, 1);
        reader.make_room(TunnelId(0));
        let mut outbox = Outbox::new();
        outbox.begin(true, Duration::ZERO);
        for start in [0, 100, 200] {
            outbox.push(&path(at), 0, start, 100);
        }
        assert_eq!(outbox.flush(by(&from), &arena, &mut tally[0]), Trains::Untried);
        assert_eq!(received(&to).len(), 3);
        assert_eq!(reader.happened(Event::WireSplit), 1);
        assert_eq!(reader.tunnel(TunnelId(0)).tx_packets, 3);
    }

    /// An outbox with two trains to each of two tunnels and a single packet in between.
    fn loaded() -> (Outbox, CounterReader, Tally) {
        let (reader, mut tallies) = counters(1, 2);
        [0, 1].iter().for_each(|id| reader.make_room(TunnelId(*id)));
        let mut outbox = Outbox::new();
        outbox.begin(true, Duration::ZERO);
        load(&mut outbox);
        (outbox, reader, tallies.remove(0))
    }

    fn load(outbox: &mut Outbox) {
        let to = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9);
        let mut start = 0;
        for (tunnel, len) in
            [(0, 100), (0, 100), (0, 60), (1, 100), (1, 100), (0, 50), (1, 80), (1, 80), (0, 100), (0, 100)]
        {
            outbox.push(&Path { tunnel: TunnelId(tunnel), ..path(to) }, 0, start, len);
            start += len;
        }
    }

    fn segments(outbox: &Outbox) -> Vec<u16> {
        outbox.outgoing.iter().map(|m| m.segment).collect()
    }

    /// A socket that refuses some messages: what it took, as (segment size, first octet, octets).
    fn refusing<'a>(
        error: i32,
        refuses: impl Fn(&Outgoing) -> bool + 'a,
        took: &'a mut Vec<(u16, u32, u32)>,
    ) -> impl FnMut(&Outbox, usize, Ask) -> io::Result<usize> + 'a {
        move |b, at, ask| {
            if ask == Ask::Fragmented {
                return Err(io::Error::from_raw_os_error(error));
            }
            let waiting = &b.outgoing[at..];
            let sent = waiting.iter().take_while(|m| !refuses(m)).count();
            for m in &waiting[..sent] {
                let parts = &b.parts[m.first_part as usize..][..m.parts as usize];
                took.push((m.segment, parts[0].start, parts.iter().map(|p| p.len).sum()));
            }
            if sent == 0 { Err(io::Error::from_raw_os_error(error)) } else { Ok(sent) }
        }
    }

    /// Octets that say which hundred they stand in.
    const ARENA: &[u8] = &{
        let mut all = [0; 870];
        let mut n = 0;
        while n < all.len() {
            all[n] = (n / 100) as u8;
            n += 1;
        }
        all
    };

    const SINGLES: [(u16, u32, u32); 10] = [
        (0, 0, 100),
        (0, 100, 100),
        (0, 200, 60),
        (0, 260, 100),
        (0, 360, 100),
        (0, 460, 50),
        (0, 510, 80),
        (0, 590, 80),
        (0, 670, 100),
        (0, 770, 100),
    ];

    #[test]
    fn a_device_that_cannot_cut_gets_single_packets_in_their_order() {
        let (mut outbox, reader, mut tally) = loaded();
        assert_eq!(segments(&outbox), [100, 100, 0, 80, 100]);
        let mut took = Vec::new();
        let fate = outbox.flush_by(ARENA, &mut tally, refusing(libc::EIO, |m| m.segment != 0, &mut took));
        assert_eq!((fate, &took[..]), (Trains::Refused, &SINGLES[..]));
        assert_eq!((reader.happened(Event::WireSplit), reader.happened(Event::WireWrites)), (4, 10));
        assert_eq!((reader.tunnel(TunnelId(0)).tx_packets, reader.tunnel(TunnelId(1)).tx_bytes), (6, 360));
        assert_eq!(reader.drops(), []);
    }

    /// RFC: R3 (EMSGSIZE)
    #[test]
    fn a_narrow_path_is_one_peer_s_and_remembered_for_a_while() {
        // So is a way on which nothing cuts, as IPsec's, until a second peer shows that it is the device.
        let errors = [(libc::EMSGSIZE, NARROW_FOR), (libc::EINVAL, NARROW_FOR), (libc::EIO, knobs::PAUSE)];
        for (error, lasts) in errors {
            let (mut outbox, reader, mut tally) = loaded();
            let narrow = |m: &Outgoing| m.segment == 100 && m.first_part < 3;
            let mut took = Vec::new();
            let fate = outbox.flush_by(ARENA, &mut tally, refusing(error, narrow, &mut took));
            let expected = [&SINGLES[..3], &[(100, 260, 200), (0, 460, 50), (80, 510, 160), (100, 670, 200)]];
            assert_eq!((fate, took), (Trains::Taken, expected.concat()));
            assert_eq!(reader.happened(Event::WireSplit), 1);
            // The next trains are made for the other tunnel only, until it is forgotten.
            load(&mut outbox);
            assert_eq!(segments(&outbox), [0, 0, 0, 100, 0, 80, 0, 0]);
            outbox.forget();
            outbox.begin(true, lasts);
            load(&mut outbox);
            assert_eq!(segments(&outbox), [100, 100, 0, 80, 100]);
        }
    }

    #[test]
    fn what_nobody_takes_is_lost_and_says_nothing_about_trains() {
        let (mut outbox, reader, mut tally) = loaded();
        assert_eq!(
            outbox.flush_by(ARENA, &mut tally, refusing(libc::EIO, |_| true, &mut Vec::new())),
            Trains::Untried
        );
        assert_eq!(reader.dropped(Reason::SendFailed), 10);
        let (mut outbox, reader, mut tally) = loaded();
        let mut took = Vec::new();
        let fate =
            outbox.flush_by(ARENA, &mut tally, refusing(libc::ENETUNREACH, |m| m.segment == 80, &mut took));
        assert_eq!((fate, took.len(), reader.happened(Event::WireSplit)), (Trains::Taken, 4, 0));
        assert_eq!(reader.tunnel(TunnelId(1)).drops, [(Reason::SendFailed, 2)]);
        // Of the train, its first packet.
        let kept = reader.sample(Reason::SendFailed).unwrap();
        assert_eq!((kept.tunnel, kept.len, &kept.bytes[..]), (Some(TunnelId(1)), 80, &ARENA[510..590]));
        assert_eq!(kept.course, to_peer());
    }

    fn to_peer() -> Course {
        let at = |ip, port| SocketAddrV4::new(ip, port);
        let (remote, local) = (at(Ipv4Addr::LOCALHOST, 9), at(Ipv4Addr::UNSPECIFIED, 0));
        Course::To(Sender { encap: Encap::Udp, remote, local, tos: 0 })
    }

    #[test]
    fn what_waits_for_a_socket_that_is_gone_is_counted_and_the_last_of_it_kept() {
        let (mut outbox, reader, mut tally) = loaded();
        outbox.discard(ARENA, &mut tally);
        assert!(outbox.is_empty());
        assert_eq!(reader.dropped(Reason::SendFailed), 10);
        let kept = reader.sample(Reason::SendFailed).unwrap();
        assert_eq!((kept.course, kept.len, &kept.bytes[..]), (to_peer(), 100, &ARENA[..100]));
    }

    /// RFC: E4 (RFC 4213 section 3.2.2)
    #[test]
    fn a_packet_too_long_for_the_interface_goes_in_fragments_and_its_tunnel_is_noted() {
        // What fragments meet: they leave, are refused as well, or find the socket full.
        for fate in [None, Some(libc::EMSGSIZE), Some(libc::EAGAIN)] {
            let (mut outbox, reader, mut tally) = loaded();
            let mut asked = Vec::new();
            let trains = outbox.flush_by(ARENA, &mut tally, |b, at, ask| {
                asked.push((at, ask));
                let waiting = &b.outgoing[at..];
                match ask {
                    Ask::Fragmented => fate.map_or(Ok(1), |code| Err(io::Error::from_raw_os_error(code))),
                    // Longer than 90 octets is too long.
                    Ask::AsTheyAre if b.tickets[at].size <= 90 => {
                        Ok(waiting.iter().zip(&b.tickets[at..]).take_while(|(_, t)| t.size <= 90).count())
                    }
                    Ask::AsTheyAre => Err(io::Error::from_raw_os_error(libc::EMSGSIZE)),
                }
            });
            assert_eq!(trains, Trains::Taken, "one that is not too long: 160 octets in two");
            assert_eq!(asked.iter().filter(|(_, ask)| *ask == Ask::Fragmented).count(), 6);
            assert_eq!(reader.take_too_long(), [TunnelId(0), TunnelId(1)]);
            let (sent, too_big, failed) = match fate {
                None => (6, 0, 0),
                Some(libc::EMSGSIZE) => (0, 6, 0),
                Some(_) => (0, 0, 6),
            };
            let lost = [Reason::TooBig, Reason::SendFailed].map(|reason| reader.dropped(reason));
            assert_eq!((reader.happened(Event::WireFragmented), lost), (sent, [too_big, failed]));
            let carried = [0, 1].map(|id| reader.tunnel(TunnelId(id)).tx_packets).iter().sum::<u64>();
            assert_eq!(carried, 4 + sent);
        }
    }

    #[test]
    fn full_buffers_get_a_second_try_and_no_more() {
        let (mut outbox, reader, mut tally) = loaded();
        let mut tries = 0;
        let fate = outbox.flush_by(ARENA, &mut tally, |b, at, _| {
            tries += 1;
            if tries % 2 == 1 {
                Err(io::Error::from_raw_os_error(libc::EAGAIN))
            } else {
                Ok(b.outgoing.len() - at)
            }
        });
        assert_eq!((fate, tries, reader.drops().len()), (Trains::Taken, 2, 0));
        let (mut outbox, reader, mut tally) = loaded();
        let _lost = outbox.flush_by(ARENA, &mut tally, refusing(libc::ENOBUFS, |_| true, &mut Vec::new()));
        assert_eq!(reader.dropped(Reason::SendFailed), 10);
    }
}
