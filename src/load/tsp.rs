//! Clients of a TSP server in a load: by UDP, each from an address of its own, all out of one socket.
//!
//! The same state machine as `sixway connect` has. The socket is not connected; which client a datagram is from or for is
//! its packet information (`IP_PKTINFO`), so that 100,000 clients take one descriptor. A ping is an ICMPv6 echo in the
//! tunnel. Sets up no tunnel device.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dashmap::DashMap;
use nix::libc::{in_addr, in_pktinfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt, sockopt,
};
use sixway_dataplane::packet::checksum::icmpv6;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use zeroize::Zeroizing;

use super::Dial;
use crate::auth::Identity;
use crate::broker::Mechanism;
use crate::tsp::client::{Client, Granted, Login, Output, Transport, Wish};
use crate::tsp::codec::{Mode, Version};

/// Datagrams that wait for one client; others are lost, as on any network.
const MOST_WAITING: usize = 4;
/// The socket's buffers, in octets, where the system allows it.
const BUFFER: usize = 8 << 20;
/// How long an answer to a ping may take before it is sent again.
const PING_AGAIN: Duration = Duration::from_secs(2);
const VERSION: Version = Version { major: 2, minor: 0, patch: 2 };

/// TSP over UDP.
#[derive(Debug)]
pub struct TspDial {
    post: Arc<Post>,
    users: Users,
    clock: Instant,
}

/// Who asks for what: users `NAME0`, `NAME1`, ... with one secret, by DIGEST-MD5.
#[derive(Clone, Debug)]
pub struct Users {
    /// How their names begin.
    pub name: String,
    /// The secret of all.
    pub secret: Vec<u8>,
    /// The prefix length of the network that each wants, if they want one.
    pub prefix: Option<u8>,
    /// Seconds between signs of life that they ask for.
    pub keepalive: u32,
}

/// The socket, and whom its datagrams are for.
#[derive(Debug)]
struct Post {
    socket: UdpSocket,
    server: SocketAddrV4,
    from: Ipv4Addr,
    boxes: DashMap<u32, mpsc::Sender<Vec<u8>>>,
}

/// A client with a tunnel.
#[derive(Debug)]
pub struct Session {
    post: Arc<Post>,
    n: u32,
    letters: mpsc::Receiver<Vec<u8>>,
    own: Ipv6Addr,
    whom: Ipv6Addr,
    sequence: u16,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.post.boxes.remove(&self.n);
    }
}

impl TspDial {
    /// Opens the socket; client `n` has the address `from + n`. Call it within a runtime.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn open(server: SocketAddrV4, from: Ipv4Addr, users: Users) -> io::Result<Self> {
        let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.set_nonblocking(true)?;
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
        // Less than wished for loses datagrams, which are sent again.
        let _or_less = setsockopt(&socket, sockopt::RcvBufForce, &BUFFER);
        let _or_less = setsockopt(&socket, sockopt::SndBufForce, &BUFFER);
        let post =
            Arc::new(Post { socket: UdpSocket::from_std(socket)?, server, from, boxes: DashMap::new() });
        tokio::spawn(post.clone().sort());
        Ok(Self { post, users, clock: Instant::now() })
    }

    fn wish(&self, n: u32) -> Wish {
        let Users { name, secret, prefix, keepalive } = &self.users;
        let who = Identity { user: format!("{name}{n}"), secret: Zeroizing::new(secret.clone()) };
        Wish {
            login: Login::Account { who, only: Some(Mechanism::DigestMd5) },
            mode: Mode::V6UdpV4,
            claimed: self.post.own(n),
            keepalive: *keepalive,
            prefix: *prefix,
            dns: Vec::new(),
            place: self.post.server.ip().to_string(),
            decline: false,
        }
    }

    async fn ask(&self, n: u32, letters: &mut mpsc::Receiver<Vec<u8>>) -> Result<Granted, String> {
        let mut client =
            Client::new(self.wish(n), VERSION, Transport::Udp, rand::random(), self.clock.elapsed());
        loop {
            for output in client.poll_output() {
                match output {
                    Output::Send(datagram) => self.post.send(n, &datagram).await?,
                    Output::Up(granted) => return Ok(granted),
                    Output::Over(end) => return Err(end.to_string()),
                }
            }
            let Some(due) = client.poll_timeout() else { return Err("the session is over".to_owned()) };
            tokio::select! {
                Some(letter) = letters.recv() => client.handle_datagram(&letter, self.clock.elapsed()),
                () = tokio::time::sleep_until((self.clock + due).into()) => client.handle_timeout(self.clock.elapsed()),
            }
        }
    }
}

impl Dial for TspDial {
    type Session = Session;

    async fn open(&self, n: u32) -> Result<Session, String> {
        let (letter_box, mut letters) = mpsc::channel(MOST_WAITING);
        self.post.boxes.insert(n, letter_box);
        let granted = self.ask(n, &mut letters).await.inspect_err(|_| drop(self.post.boxes.remove(&n)))?;
        let post = self.post.clone();
        let whom = granted.keepalive.1.or(granted.server_v6);
        let whom = whom.ok_or_else(|| "the server has no address in the tunnel".to_owned())?;
        Ok(Session { post, n, letters, own: granted.client_v6, whom, sequence: 0 })
    }

    async fn ping(session: &mut Session) -> Result<(), String> {
        session.sequence = session.sequence.wrapping_add(1);
        let question = echo(128, session.own, session.whom, session.sequence);
        let answer = echo(129, session.whom, session.own, session.sequence);
        // Echo replies of another age, and what the router says unasked, are nobody's.
        while session.letters.try_recv().is_ok() {}
        loop {
            session.post.send(session.n, &question).await?;
            let heard = async {
                while let Some(letter) = session.letters.recv().await {
                    if letter.get(40..) == Some(&answer[40..]) {
                        return;
                    }
                }
            };
            if tokio::time::timeout(PING_AGAIN, heard).await.is_ok() {
                return Ok(());
            }
        }
    }

    /// There is no good-bye in TSP.
    async fn quit(_: Session) {}
}

impl Post {
    fn own(&self, n: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.from).saturating_add(n))
    }

    async fn send(&self, n: u32, datagram: &[u8]) -> Result<(), String> {
        let source = in_addr { s_addr: u32::from_ne_bytes(self.own(n).octets()) };
        let info = in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: source, ipi_addr: in_addr { s_addr: 0 } };
        let server = SockaddrIn::from(self.server);
        let write = || {
            let (text, extra) = ([IoSlice::new(datagram)], [ControlMessage::Ipv4PacketInfo(&info)]);
            let fd = self.socket.as_raw_fd();
            Ok(sendmsg(fd, &text, &extra, MsgFlags::empty(), Some(&server)).map(drop)?)
        };
        let sent = self.socket.async_io(Interest::WRITABLE, write).await;
        sent.map_err(|why| format!("cannot send: {why}"))
    }

    /// Puts what comes into the clients' boxes, for ever.
    async fn sort(self: Arc<Self>) {
        let mut octets = [0; 2048];
        loop {
            let read = self.socket.async_io(Interest::READABLE, || self.receive(&mut octets)).await;
            // An error of one client's path says nothing of the others'.
            let Ok(Some((len, to))) = read else { continue };
            let n = u32::from(to).wrapping_sub(u32::from(self.from));
            if let Some(letter_box) = self.boxes.get(&n) {
                let _or_lost = letter_box.try_send(octets[..len].to_vec());
            }
        }
    }

    /// One datagram, and to which of our addresses it came.
    fn receive(&self, octets: &mut [u8]) -> io::Result<Option<(usize, Ipv4Addr)>> {
        let mut text = [IoSliceMut::new(octets)];
        let mut space = nix::cmsg_space!(in_pktinfo);
        let fd = self.socket.as_raw_fd();
        let read = recvmsg::<SockaddrIn>(fd, &mut text, Some(&mut space), MsgFlags::empty())?;
        let mut to = None;
        for extra in read.cmsgs()? {
            if let ControlMessageOwned::Ipv4PacketInfo(info) = extra {
                to = Some(Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes()));
            }
        }
        Ok(to.map(|to| (read.bytes, to)))
    }
}

/// An ICMPv6 echo message in its packet (RFC 4443 section 4), as long as gogoc's.
fn echo(kind: u8, from: Ipv6Addr, to: Ipv6Addr, sequence: u16) -> Vec<u8> {
    let [high, low] = sequence.to_be_bytes();
    let mut message = [0x36; 24];
    message[..8].copy_from_slice(&[kind, 0, 0, 0, b'6', b'w', high, low]);
    let sum = icmpv6(from, to, &message);
    message[2..4].copy_from_slice(&sum);
    let header = [0x60, 0, 0, 0, 0, 24, 58, 64];
    [&header[..], &from.octets(), &to.octets(), &message].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_told_apart_by_their_addresses() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let std::net::SocketAddr::V4(at) = server.local_addr().unwrap() else { panic!("IPv4") };
            let users = Users { name: "u".to_owned(), secret: b"x".to_vec(), prefix: None, keepalive: 30 };
            let dial = TspDial::open(at, Ipv4Addr::new(127, 0, 9, 0), users).unwrap();
            let (one, mut first) = mpsc::channel(4);
            let (two, mut second) = mpsc::channel(4);
            dial.post.boxes.insert(1, one);
            dial.post.boxes.insert(2, two);
            for n in [2, 1] {
                dial.post.send(n, &[n as u8]).await.unwrap();
                let mut octets = [0; 9];
                let (len, from) = server.recv_from(&mut octets).await.unwrap();
                assert_eq!((&octets[..len], from.ip().to_string()), (&[n as u8][..], format!("127.0.9.{n}")));
                server.send_to(&octets[..len], from).await.unwrap();
            }
            assert_eq!((first.recv().await, second.recv().await), (Some(vec![1]), Some(vec![2])));
        });
    }

    #[test]
    fn echoes_have_a_right_checksum() {
        let (a, b) = ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap());
        let packet = echo(128, a, b, 7);
        assert_eq!(packet.len(), 64);
        let mut message = packet[40..].to_vec();
        let sum = [message[2], message[3]];
        message[2..4].fill(0);
        assert_eq!(icmpv6(a, b, &message), sum);
    }
}
