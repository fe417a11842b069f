//! DHCPv6 clients of a load: many DUIDs out of one socket on port 546 of a link, four messages each, and renewals.
//!
//! At a pace, whatever the server does (what it does not answer within [`PATIENCE`] counts as dropped), or so many at a time.
//! One thread that looks again at once: it is its own core that it takes. Believes what it reads, as long as it can be read.

use std::io::{self, ErrorKind};
use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use serde::Serialize;
use sixway_dataplane::io::datagrams::{Datagram, Inbox, Sender, arrange, merge};
use socket2::{Domain, Protocol, Socket, Type};

/// An answer that comes later counts as none.
pub const PATIENCE: Duration = Duration::from_secs(1);
/// Exchanges that are remembered: more than come within [`PATIENCE`] at any pace that is allowed.
const SLOTS: usize = 1 << 19;
/// Octets of the socket's buffers.
const BUFFER: usize = 16 << 20;
/// Messages sent before anything is heard again.
const BURST: u64 = 32;
const GROUP: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

/// What the clients ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// An address each (IA_NA).
    pub addresses: bool,
    /// A prefix each (IA_PD).
    pub prefixes: bool,
}

/// How fast they come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// So many new ones a second, and so many renewals, for so long.
    Open {
        /// New clients a second.
        rate: u32,
        /// Renewals a second of clients that have something.
        renews: u32,
        /// How long.
        lasts: Duration,
    },
    /// So many new ones, so many under way at a time; who is not answered comes again.
    Closed {
        /// How many in all.
        count: u32,
        /// How many at a time.
        at_once: u32,
    },
}

/// What they saw.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Seen {
    /// Seconds in which messages were sent.
    pub seconds: f64,
    /// Solicits a second that were sent.
    pub offered: f64,
    /// Four messages a second that came to their end.
    pub done_a_second: f64,
    /// Solicits, and Advertises in time.
    pub solicits: u64,
    /// See there.
    pub advertises: u64,
    /// Requests, and Replies in time.
    pub requests: u64,
    /// See there.
    pub replies: u64,
    /// Renews, and Replies in time.
    pub renews: u64,
    /// See there.
    pub renewed: u64,
    /// Answers that gave nothing.
    pub refused: u64,
    /// Of a hundred Solicits so many were not answered in time; likewise Requests and Renews.
    pub solicit_drops: f64,
    /// See there.
    pub request_drops: f64,
    /// See there.
    pub renew_drops: f64,
    /// From Solicit to Reply half of them took less, milliseconds.
    pub p50_ms: f64,
    /// One of a hundred took longer, milliseconds.
    pub p99_ms: f64,
}

/// Where an exchange is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Over,
    Solicited,
    Requested,
    Renewed,
}

#[derive(Clone, Copy)]
struct Slot {
    xid: u32,
    client: u32,
    stage: Stage,
    at: Instant,
    began: Instant,
}

/// All clients.
pub struct Clients {
    socket: UdpSocket,
    to: SocketAddrV6,
    wanted: Wanted,
    first: u32,
    next: u32,
    xid: u32,
    slots: Vec<Slot>,
    /// What of clients' identity associations to say when they renew, with the server's name in front.
    bound: Vec<(u32, Box<[u8]>)>,
    turn: usize,
    /// Where they are on the link; nowhere: where the kernel says.
    from: Vec<Ipv6Addr>,
    /// Messages that are to be sent, one behind the other, where each ends, and whose it is.
    out: Vec<u8>,
    ends: Vec<(usize, u32)>,
    sender: Sender,
    inbox: Option<Inbox>,
    waits: Vec<Duration>,
    seen: Seen,
    under_way: u32,
}

impl std::fmt::Debug for Clients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Clients({:?} from {}, {} bound)", self.wanted, self.first, self.bound.len())
    }
}

impl Clients {
    /// Clients on the interface with this name and number; the first one has the number `first` in its DUID. They speak from
    /// the addresses `from` in turn, each message by itself; from none: all from the one that the kernel chooses, and messages
    /// that are alike leave and come together, like those that one relay passes on.
    ///
    /// # Errors
    /// As the system says.
    pub fn open(
        (name, index): (&str, u32),
        wanted: Wanted,
        first: u32,
        from: Vec<Ipv6Addr>,
    ) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV6, Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
        socket.bind_device(Some(name.as_bytes()))?;
        // The system may allow less.
        let _as_much_as_may_be = socket.set_recv_buffer_size(BUFFER);
        let _as_much_as_may_be = socket.set_send_buffer_size(BUFFER);
        socket.set_multicast_if_v6(index)?;
        socket.bind(&SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 546, 0, 0).into())?;
        let singly = !from.is_empty();
        if !singly {
            merge(socket.as_fd());
        }
        let now = Instant::now();
        let slot = Slot { xid: u32::MAX, client: 0, stage: Stage::Over, at: now, began: now };
        Ok(Self {
            socket: socket.into(),
            to: SocketAddrV6::new(GROUP, 547, 0, index),
            wanted,
            first,
            next: first,
            xid: 0,
            slots: vec![slot; SLOTS],
            bound: Vec::new(),
            turn: 0,
            from,
            out: Vec::with_capacity(1 << 16),
            ends: Vec::new(),
            sender: if singly { Sender::singly() } else { Sender::default() },
            inbox: Some(Inbox::default()),
            waits: Vec::new(),
            seen: Seen::default(),
            under_way: 0,
        })
    }

    /// Lets them come, and says what they saw.
    ///
    /// # Errors
    /// The system refuses to send or to receive.
    pub fn run(&mut self, pace: Pace) -> io::Result<Seen> {
        self.seen = Seen::default();
        self.waits.clear();
        self.under_way = 0;
        let begin = Instant::now();
        match pace {
            Pace::Open { rate, renews, lasts } => self.keep_pace(begin, rate, renews, lasts)?,
            Pace::Closed { count, at_once } => self.keep_full(count, at_once)?,
        }
        let took = begin.elapsed();
        self.listen_until(Instant::now() + PATIENCE)?;
        Ok(self.sum_up(took))
    }

    /// Asks again and again until somebody answers; says how long that took.
    ///
    /// # Errors
    /// The system refuses to receive, or nobody answers in `patience`.
    pub fn first_answer(&mut self, patience: Duration) -> io::Result<Duration> {
        let begin = Instant::now();
        while begin.elapsed() < patience {
            self.solicit();
            let again = Instant::now() + Duration::from_millis(5);
            while Instant::now() < again {
                self.listen()?;
                if self.seen.advertises > 0 {
                    return Ok(begin.elapsed());
                }
            }
        }
        Err(ErrorKind::TimedOut.into())
    }

    fn keep_pace(&mut self, begin: Instant, rate: u32, renews: u32, lasts: Duration) -> io::Result<()> {
        loop {
            let since = begin.elapsed();
            if since >= lasts {
                return Ok(());
            }
            let due = |rate: u32| (since.as_secs_f64() * f64::from(rate)) as u64;
            for _ in 0..due(rate).saturating_sub(self.seen.solicits).min(BURST) {
                self.solicit();
            }
            for _ in 0..due(renews).saturating_sub(self.seen.renews).min(BURST) {
                self.renew();
            }
            self.listen()?;
        }
    }

    fn keep_full(&mut self, count: u32, at_once: u32) -> io::Result<()> {
        let wanted = self.seen.replies + u64::from(count);
        let mut heard = (self.seen.advertises, Instant::now());
        while self.seen.replies < wanted {
            let left = wanted - self.seen.replies;
            while self.under_way < at_once && u64::from(self.under_way) < left {
                self.under_way += 1;
                self.solicit();
            }
            self.listen()?;
            let answers = self.seen.advertises + self.seen.replies;
            if answers != heard.0 {
                heard = (answers, Instant::now());
            } else if heard.1.elapsed() > PATIENCE {
                // All that are under way are lost: others come in their place.
                self.under_way = 0;
                heard.1 = Instant::now();
                if self.seen.solicits > 50 * u64::from(count) + 10_000 {
                    return Err(io::Error::new(ErrorKind::TimedOut, "the server answers too few"));
                }
            }
        }
        Ok(())
    }

    fn listen_until(&mut self, end: Instant) -> io::Result<()> {
        while Instant::now() < end {
            self.listen()?;
        }
        Ok(())
    }

    fn sum_up(&mut self, took: Duration) -> Seen {
        let mut seen = std::mem::take(&mut self.seen);
        seen.seconds = took.as_secs_f64();
        seen.offered = seen.solicits as f64 / seen.seconds;
        seen.done_a_second = seen.replies as f64 / seen.seconds;
        let drops = |asked: u64, heard: u64| 100.0 * asked.saturating_sub(heard) as f64 / asked.max(1) as f64;
        seen.solicit_drops = drops(seen.solicits, seen.advertises);
        seen.request_drops = drops(seen.requests, seen.replies);
        seen.renew_drops = drops(seen.renews, seen.renewed);
        self.waits.sort_unstable();
        let at = |percent: usize| self.waits.get(self.waits.len() * percent / 100);
        let ms = |percent| at(percent).map_or(0.0, |wait| wait.as_secs_f64() * 1e3);
        (seen.p50_ms, seen.p99_ms) = (ms(50), ms(99));
        seen
    }

    fn begin(&mut self, kind: u8, client: u32, stage: Stage, began: Instant) {
        self.xid = (self.xid + 1) & 0x00ff_ffff;
        let xid = self.xid;
        let slot = Slot { xid, client, stage, at: Instant::now(), began };
        if let Some(place) = self.slots.get_mut(xid as usize % SLOTS) {
            *place = slot;
        }
        self.out.push(kind);
        self.out.extend_from_slice(&xid.to_be_bytes()[1..]);
        // A DUID of a private kind (RFC 8415 section 11.3): one that no real client has.
        option(&mut self.out, 1, &[&[0, 2, 0, 0, 0xff, 0xfe][..], &client.to_be_bytes()].concat());
        option(&mut self.out, 8, &[0, 0]);
    }

    fn solicit(&mut self) {
        let client = self.next;
        self.next = self.next.wrapping_add(1);
        self.begin(1, client, Stage::Solicited, Instant::now());
        for (code, wanted) in [(3, self.wanted.addresses), (25, self.wanted.prefixes)] {
            if wanted {
                option(&mut self.out, code, &[&client.to_be_bytes()[..], &[0; 8]].concat());
            }
        }
        self.seen.solicits += 1;
        self.close(client);
    }

    fn renew(&mut self) {
        self.seen.renews += 1;
        if self.bound.is_empty() {
            return;
        }
        self.turn = (self.turn + 1) % self.bound.len();
        let Some((client, said)) = self.bound.get_mut(self.turn).map(|(c, said)| (*c, std::mem::take(said)))
        else {
            return;
        };
        self.begin(5, client, Stage::Renewed, Instant::now());
        self.out.extend_from_slice(&said);
        if let Some(place) = self.bound.get_mut(self.turn) {
            place.1 = said;
        }
        self.close(client);
    }

    /// The message that is being written is whole, and is sent with the next ones.
    fn close(&mut self, client: u32) {
        self.ends.push((self.out.len(), client));
    }

    fn send(&mut self) -> io::Result<()> {
        let begins = std::iter::once(0).chain(self.ends.iter().map(|(end, _)| *end));
        let from = |client: u32| self.from.get(client as usize % self.from.len().max(1)).copied();
        let message = |(begin, (end, client)): (usize, &(usize, u32))| Datagram {
            to: self.to,
            from: from(*client),
            octets: &self.out[begin..*end],
        };
        let mut all: Vec<Datagram<'_>> = begins.zip(&self.ends).map(message).collect();
        arrange(&mut all);
        let mut left = &all[..];
        while !left.is_empty() {
            match self.sender.send(self.socket.as_fd(), left) {
                Err(why) if why.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
                Err(why) => return Err(why),
                Ok(sent) => left = &left[sent..],
            }
        }
        self.out.clear();
        self.ends.clear();
        Ok(())
    }

    /// Sends what is to be sent, and takes what has come, a bounded number.
    fn listen(&mut self) -> io::Result<()> {
        self.send()?;
        let Some(mut inbox) = self.inbox.take() else { return Ok(()) };
        let taken = inbox.receive(self.socket.as_fd());
        if taken.is_ok() {
            inbox.messages().for_each(|(octets, _)| self.handle(octets));
        }
        self.inbox = Some(inbox);
        match taken {
            Err(why) if why.kind() != ErrorKind::WouldBlock => Err(why),
            _ => self.send(),
        }
    }

    fn handle(&mut self, octets: &[u8]) {
        let [kind, a, b, c, options @ ..] = octets else { return };
        let xid = u32::from_be_bytes([0, *a, *b, *c]);
        let now = Instant::now();
        let Some(slot) = self.slots.get_mut(xid as usize % SLOTS).filter(|slot| slot.xid == xid) else {
            return;
        };
        if now.duration_since(slot.at) > PATIENCE {
            return;
        }
        let before = *slot;
        slot.stage = Stage::Over;
        let (said, gives) = said_again(options);
        if !gives && before.stage != Stage::Over {
            self.seen.refused += 1;
        }
        match (kind, before.stage) {
            (2, Stage::Solicited) => {
                self.seen.advertises += 1;
                self.seen.requests += 1;
                self.begin(3, before.client, Stage::Requested, before.began);
                self.out.extend_from_slice(&said);
                self.close(before.client);
            }
            (7, Stage::Requested) => {
                self.seen.replies += 1;
                self.under_way = self.under_way.saturating_sub(1);
                self.waits.push(now.duration_since(before.began));
                self.bound.push((before.client, said.into()));
            }
            (7, Stage::Renewed) => self.seen.renewed += 1,
            _ => {}
        }
    }
}

fn option(out: &mut Vec<u8>, code: u16, body: &[u8]) {
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(&(body.len() as u16).to_be_bytes());
    out.extend_from_slice(body);
}

/// Of an answer's options those that the next message has too: the server's name and the identity associations. Says whether
/// each of those gives something.
fn said_again(mut options: &[u8]) -> (Vec<u8>, bool) {
    let (mut said, mut gives) = (Vec::with_capacity(160), true);
    while let [a, b, c, d, rest @ ..] = options {
        let len = usize::from(u16::from_be_bytes([*c, *d]));
        let Some((body, rest)) = rest.split_at_checked(len) else { break };
        let code = u16::from_be_bytes([*a, *b]);
        if matches!(code, 2 | 3 | 25) {
            option(&mut said, code, body);
        }
        if code == 3 || code == 25 {
            let inner = body.get(12..14).map(|code| [code[0], code[1]]);
            gives &= matches!(inner, Some([0, 5 | 26]));
        }
        options = rest;
    }
    (said, gives)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_message_says_again_what_was_given() {
        let mut answer = Vec::new();
        option(&mut answer, 1, &[9, 9]);
        option(&mut answer, 2, &[7]);
        option(&mut answer, 23, &[0; 16]);
        let mut ia = vec![0; 12];
        option(&mut ia, 5, &[0; 24]);
        option(&mut answer, 3, &ia);
        let (said, gives) = said_again(&answer);
        assert!(gives && said.len() == 5 + 4 + ia.len());
        let mut ia = vec![0; 12];
        option(&mut ia, 13, &[0, 2]);
        option(&mut answer, 25, &ia);
        assert!(!said_again(&answer).1, "one of them was refused");
        assert_eq!(said_again(&[0, 2, 0, 9, 1]), (Vec::new(), true), "cut short");
    }
}
