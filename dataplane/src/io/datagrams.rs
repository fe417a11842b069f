//! UDP datagrams over IPv6, many in a call, for servers and clients of the control plane and for their load generators.
//!
//! Datagrams of one length to one destination, such as answers through one relay, leave as one message that the kernel cuts
//! apart (UDP_SEGMENT); those of one sender may come merged (UDP_GRO). Knows nothing of what they say, and never waits.

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::sys;
pub use super::sys::Datagram;

/// Messages that are taken in one call, at most; each may be several datagrams.
pub const AT_ONCE: usize = 64;
/// Octets of a message: more does not fit a UDP datagram.
const MESSAGE: usize = 65_536;
/// From one message's place to the next's: somewhat more, or all would use the same part of a processor's cache.
const STRIDE: usize = MESSAGE + 4160;
/// Datagrams that the kernel cuts out of one message, at most (UDP_MAX_SEGMENTS of older ones).
const RUN: usize = 64;
/// Octets of a datagram that no link is too narrow for (RFC 8200 section 5, less both headers): longer ones leave alone.
const NARROW: usize = 1280 - 40 - 8;
/// Messages that one call takes, at most (UIO_MAXIOV); also of datagrams, so that little is done twice when few leave.
const CALL: usize = 1024;
/// How long each datagram leaves alone after the kernel could not cut a message apart.
const ALONE_FOR: Duration = Duration::from_secs(60);

/// Room for messages, and the datagrams of the last call.
#[derive(Debug)]
pub struct Inbox {
    call: sys::Inbox,
    octets: Vec<u8>,
    arrived: Vec<(usize, Arrived)>,
}

/// What has come.
#[derive(Clone, Copy, Debug)]
pub struct Arrived {
    /// How many octets.
    pub len: usize,
    /// Who has sent it.
    pub from: SocketAddrV6,
    /// Where it was sent to; unspecified, if the socket does not ask for that (`IPV6_RECVPKTINFO`).
    pub to: Ipv6Addr,
}

impl Default for Inbox {
    fn default() -> Self {
        let call = sys::Inbox::new(AT_ONCE);
        Self { call, octets: vec![0; AT_ONCE * STRIDE], arrived: Vec::with_capacity(AT_ONCE) }
    }
}

impl Inbox {
    /// Takes what has come, up to [`AT_ONCE`] messages; says whether there may be more.
    ///
    /// # Errors
    /// As the system says; [`io::ErrorKind::WouldBlock`] if nothing has come.
    pub fn receive(&mut self, fd: BorrowedFd<'_>) -> io::Result<bool> {
        self.arrived.clear();
        let taken = self.call.receive(fd, &mut self.octets, AT_ONCE, (0, STRIDE, MESSAGE))?;
        for place in 0..taken {
            let Some(message) = self.call.message6(place) else { continue };
            let to = message.to.unwrap_or(Ipv6Addr::UNSPECIFIED);
            for (start, len) in cuts(message.len, message.merged) {
                self.arrived.push((place * STRIDE + start, Arrived { len, from: message.from, to }));
            }
        }
        Ok(taken == AT_ONCE)
    }

    /// What the last call has taken, in the order in which it came.
    pub fn messages(&self) -> impl Iterator<Item = (&[u8], &Arrived)> {
        let octets = |start: usize, len| self.octets.get(start..)?.get(..len);
        let messages = self.arrived.iter();
        messages.map(move |(start, arrived)| (octets(*start, arrived.len).unwrap_or_default(), arrived))
    }
}

/// Where the datagrams of a message begin, and how long they are. One that is empty is a datagram too.
fn cuts(len: usize, merged: Option<u16>) -> impl Iterator<Item = (usize, usize)> {
    let size = merged.map_or(len, usize::from).max(1);
    let count = len.div_ceil(size).max(1);
    (0..count).map(move |n| (n * size, size.min(len - n * size)))
}

/// Has a socket's datagrams merged by the kernel, where it can: fewer calls bring more.
pub fn merge(fd: BorrowedFd<'_>) {
    // Without, each comes alone.
    let _where_it_can = sys::set_option(fd, libc::SOL_UDP, libc::UDP_GRO, 1);
}

/// Sends datagrams; remembers for a while that the kernel could not cut a message apart.
#[derive(Debug)]
pub struct Sender {
    began: Instant,
    /// Until when each leaves alone, in milliseconds since it began; [`u64::MAX`]: always.
    alone_until: AtomicU64,
}

impl Default for Sender {
    fn default() -> Self {
        Self { began: Instant::now(), alone_until: AtomicU64::new(0) }
    }
}

impl Sender {
    /// Each datagram leaves alone.
    pub fn singly() -> Self {
        Self { alone_until: AtomicU64::new(u64::MAX), ..Self::default() }
    }

    /// Sends the first of `datagrams`, in order, as many as the socket takes now: says how many, or why the first was refused.
    ///
    /// # Errors
    /// As the system says.
    pub fn send(&self, fd: BorrowedFd<'_>, datagrams: &[Datagram<'_>]) -> io::Result<usize> {
        let some = datagrams.get(..CALL).unwrap_or(datagrams);
        let now = self.began.elapsed();
        let runs = runs(some, self.joins(now));
        match sys::send_runs(fd, some, &runs) {
            Ok(sent) => Ok(runs.iter().take(sent).sum()),
            Err(why) if why.kind() == io::ErrorKind::WouldBlock || runs.first() == Some(&1) => Err(why),
            Err(why) => {
                let sent = sys::send_runs(fd, some, &[1])?;
                // What goes alone and not with others is the inability of the kernel, of a device, or of the way to this
                // destination alone (IPsec): so it is tried again.
                let is_unable =
                    [libc::EINVAL, libc::EIO, libc::EMSGSIZE, libc::EOPNOTSUPP, libc::ENOPROTOOPT];
                if why.raw_os_error().is_some_and(|code| is_unable.contains(&code)) {
                    self.part(now);
                }
                Ok(sent)
            }
        }
    }

    /// Whether datagrams leave together at `now`, counted from its beginning.
    fn joins(&self, now: Duration) -> bool {
        let until = self.alone_until.load(Ordering::Relaxed);
        until != u64::MAX && now.as_millis() >= u128::from(until)
    }

    /// From `now` on each leaves alone for a while.
    fn part(&self, now: Duration) {
        let until = u64::try_from((now + ALONE_FOR).as_millis()).unwrap_or(u64::MAX);
        self.alone_until.store(until, Ordering::Relaxed);
    }
}

/// How many neighbours leave together each time.
fn runs(datagrams: &[Datagram<'_>], joins: bool) -> Vec<usize> {
    if !joins {
        return vec![1; datagrams.len()];
    }
    let together = |a: &Datagram<'_>, b: &Datagram<'_>| {
        let (one, two) = (a.octets.len(), b.octets.len());
        a.to == b.to && a.from == b.from && one == two && (1..=NARROW).contains(&one)
    };
    let alike = datagrams.chunk_by(together);
    alike.flat_map(|alike| alike.chunks(RUN).map(<[_]>::len)).collect()
}

/// Brings together what can leave together. Datagrams of one length to one destination stay in their order.
pub fn arrange(datagrams: &mut [Datagram<'_>]) {
    datagrams.sort_by_key(|one| (one.to, one.from, one.octets.len()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    fn open() -> (UdpSocket, SocketAddrV6) {
        let socket = UdpSocket::bind("[::1]:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let std::net::SocketAddr::V6(at) = socket.local_addr().unwrap() else { panic!() };
        (socket, at)
    }

    fn to(to: SocketAddrV6, octets: &[u8]) -> Datagram<'_> {
        Datagram { to, from: None, octets }
    }

    fn heard(inbox: &mut Inbox, socket: &UdpSocket) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        while inbox.receive(socket.as_fd()).is_ok() {
            all.extend(inbox.messages().map(|(octets, _)| octets.to_vec()));
        }
        all
    }

    #[test]
    fn all_arrive_whole_whether_they_are_joined_and_merged_or_not() {
        for (sender, merges) in
            [(Sender::default(), true), (Sender::default(), false), (Sender::singly(), true)]
        {
            let ((from, own), (one, a), (two, b)) = (open(), open(), open());
            if merges {
                merge(one.as_fd());
            }
            let texts: Vec<Vec<u8>> = (0..200_u8).map(|n| vec![n; 40 + usize::from(n % 3)]).collect();
            let mut all: Vec<Datagram<'_>> = Vec::new();
            texts.iter().for_each(|text| all.extend([to(a, text), to(b, text)]));
            all.extend([to(a, b""), to(a, &[7; 2000]), to(a, &[8; 2000])]);
            arrange(&mut all);
            let mut left = &all[..];
            while !left.is_empty() {
                let sent = sender.send(from.as_fd(), left).unwrap();
                left = &left[sent..];
            }
            let mut inbox = Inbox::default();
            let (mut at_one, mut at_two) = (heard(&mut inbox, &one), heard(&mut inbox, &two));
            assert_eq!((at_one.len(), at_two.len()), (203, 200));
            at_one.sort();
            at_two.sort();
            assert_eq!(at_two, texts);
            assert!(at_one.iter().filter(|text| (40..43).contains(&text.len())).eq(&texts));
            let again = inbox.receive(one.as_fd()).unwrap_err();
            assert_eq!(again.kind(), io::ErrorKind::WouldBlock);
            one.send_to(b"x", own).unwrap();
            inbox.receive(from.as_fd()).unwrap();
            assert_eq!(
                inbox.messages().map(|(text, from)| (text.to_vec(), from.from)).next(),
                Some((b"x".to_vec(), a))
            );
        }
    }

    #[test]
    fn what_leaves_together_is_of_one_length_and_to_one_place() {
        let at = |port| SocketAddrV6::new(Ipv6Addr::LOCALHOST, port, 0, 0);
        let (long, short, wide) = ([0; 90], [0; 80], [0; NARROW + 1]);
        let mut all = vec![to(at(2), &long), to(at(2), &short), to(at(1), &long), to(at(1), &wide)];
        all.extend([to(at(2), &short), to(at(1), &wide), to(at(9), b""), to(at(9), b"")]);
        all.extend(vec![to(at(7), &short); 70]);
        all.push(Datagram { from: Some(Ipv6Addr::LOCALHOST), ..to(at(7), &short) });
        arrange(&mut all);
        assert_eq!(runs(&all, true), [1, 1, 1, 2, 1, 64, 6, 1, 1, 1]);
        assert_eq!(runs(&all, false), vec![1; 79]);
    }

    #[test]
    fn who_cannot_be_reached_does_not_hold_up_others() {
        let ((from, _), (one, a)) = (open(), open());
        let nowhere = SocketAddrV6::new(*a.ip(), 0, 0, 0);
        let sender = Sender::default();
        assert!(sender.send(from.as_fd(), &[to(nowhere, b"a"), to(nowhere, b"b")]).is_err());
        assert_eq!(sender.send(from.as_fd(), &[to(a, b"a"), to(a, b"b")]).unwrap(), 2);
        assert_eq!(heard(&mut Inbox::default(), &one).len(), 2);
        assert!(sender.joins(sender.began.elapsed()), "that says nothing of joining");
    }

    #[test]
    fn one_way_that_takes_no_trains_does_not_end_them_for_good() {
        let ((from, _), (_one, a)) = (open(), open());
        // Without checksums the kernel does not cut (UDP_NO_CHECK6_TX).
        let unable = |on| sys::set_option(from.as_fd(), libc::SOL_UDP, 101, on).unwrap();
        let sender = Sender::default();
        unable(1);
        assert_eq!(sender.send(from.as_fd(), &[to(a, b"a"), to(a, b"b")]).unwrap(), 1);
        let now = sender.began.elapsed();
        assert!(!sender.joins(now) && !sender.joins(now + ALONE_FOR / 2), "it has found that out");
        assert!(sender.joins(now + ALONE_FOR), "and tries again");
        assert!(!Sender::singly().joins(now + ALONE_FOR));
    }

    #[test]
    fn a_train_comes_merged() {
        let ((from, _), (one, a)) = (open(), open());
        merge(one.as_fd());
        assert_eq!(sys::option(one.as_fd(), libc::SOL_UDP, libc::UDP_GRO).unwrap(), 1);
        let all = [to(a, b"abc"); 2 * AT_ONCE];
        assert_eq!(Sender::default().send(from.as_fd(), &all).unwrap(), all.len());
        let mut inbox = Inbox::default();
        inbox.receive(one.as_fd()).unwrap();
        assert_eq!(inbox.messages().count(), all.len(), "in one call, more than it takes messages");
    }

    #[test]
    fn a_merged_message_is_cut_where_its_datagrams_end() {
        let all = |len, merged| cuts(len, merged).collect::<Vec<_>>();
        assert_eq!(all(25, Some(10)), [(0, 10), (10, 10), (20, 5)]);
        assert_eq!(all(25, None), [(0, 25)]);
        assert_eq!(all(0, None), [(0, 0)]);
        assert_eq!(all(0, Some(3)), [(0, 0)]);
    }
}
