//! A peer made of one socket: honest client, liar, or one whose NAT forgot it.
//!
//! Speaks both encapsulations (RFC 4213 section 3 by a raw socket, bare IPv6 in UDP) and nothing of the
//! program under test. Echo requests that reach it while it waits are answered, unless it is [`Client::mute`].

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv6Addr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::lab::{hear_well, must};
use crate::packet::{Ends, Inner, address, icmp};
use crate::{Space, rig};

/// A pretended peer of the router under test.
#[derive(Clone, Debug)]
pub struct Client {
    wire: Arc<Wire>,
    inner: Ipv6Addr,
    answers: bool,
    /// Only packets to its inner address reach it; else all that come out of the tunnel do.
    alone: bool,
}

/// A client that answers echo requests on a thread of its own until dropped.
pub struct Serving {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

/// Octets that the router's own questions carry.
const NONCE: usize = 16;

#[derive(Debug)]
enum Wire {
    Udp(UdpSocket),
    Proto41(Socket),
}

impl Client {
    /// A peer that speaks UDP from `local` (`"10.71.0.2:5555"`; port 0: any) to the router of a rig.
    #[track_caller]
    pub fn udp(space: &Space, local: &str, inner: &str) -> Self {
        let router = format!("{}:{}", rig::S4, rig::UDP_PORT);
        println!("    a UDP peer at {local} with inner address {inner}");
        let socket = space.inside(|| {
            let socket = must(UdpSocket::bind(local), "bind a UDP peer");
            must(socket.connect(&router), "connect a UDP peer");
            hear_well(&socket);
            socket
        });
        Self::with(Wire::Udp(socket), inner)
    }

    /// A peer that speaks UDP by a socket that is there already, connected to the router.
    #[track_caller]
    pub fn over(socket: &UdpSocket, inner: &str) -> Self {
        hear_well(socket);
        Self::with(Wire::Udp(must(socket.try_clone(), "share a socket")), inner)
    }

    /// A peer that speaks protocol 41 from the address `local` to the router of a rig.
    #[track_caller]
    pub fn proto41(space: &Space, local: &str, inner: &str) -> Self {
        println!("    a protocol-41 peer at {local} with inner address {inner}");
        let socket = space.inside(|| {
            let opened = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(41)));
            let socket = must(opened, "open a raw socket");
            must(socket.bind(&outer(local)), "bind a raw socket");
            must(socket.connect(&outer(rig::S4)), "connect a raw socket");
            hear_well(&socket);
            socket
        });
        Self::with(Wire::Proto41(socket), inner)
    }

    fn with(wire: Wire, inner: &str) -> Self {
        Self { wire: Arc::new(wire), inner: address(inner), answers: true, alone: false }
    }

    /// The same socket as a peer that answers no echo request.
    pub fn mute(self) -> Self {
        Self { answers: false, ..self }
    }

    /// The same socket as a host that answers for its own inner address only, not for all that come out of the tunnel.
    pub fn alone(self) -> Self {
        Self { alone: true, ..self }
    }

    /// From now on the same UDP socket speaks to another address of the router, and hears nobody else.
    #[track_caller]
    pub fn turn_to(&self, router: &str) {
        let Wire::Udp(socket) = &*self.wire else { panic!("only a UDP peer can turn to another address") };
        must(socket.connect(format!("{router}:{}", rig::UDP_PORT)), "connect a UDP peer anew");
    }

    /// The same to another port too.
    #[track_caller]
    pub fn turn_to_port(&self, router: &str, port: u16) {
        let Wire::Udp(socket) = &*self.wire else { panic!("only a UDP peer can turn to another port") };
        must(socket.connect(format!("{router}:{port}")), "connect a UDP peer anew");
    }

    /// Its inner address.
    pub fn inner(&self) -> Ipv6Addr {
        self.inner
    }

    /// The outer port it speaks from; 0 for protocol 41.
    pub fn port(&self) -> u16 {
        match &*self.wire {
            Wire::Udp(socket) => must(socket.local_addr(), "ask for a port").port(),
            Wire::Proto41(_) => 0,
        }
    }

    /// Send octets through the tunnel, whatever they are.
    #[track_caller]
    pub fn send(&self, packet: &[u8]) {
        let sent = match &*self.wire {
            Wire::Udp(socket) => socket.send(packet),
            Wire::Proto41(socket) => socket.send(packet),
        };
        // An ICMP error for an earlier packet is reported on this one; the next goes out again.
        let refused = sent.as_ref().is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused);
        assert!(refused || sent.is_ok(), "cannot send {} octets: {sent:?}", packet.len());
    }

    /// The next packet out of the tunnel that `pick` makes something of, within `patience`.
    pub fn wait<T>(&self, patience: Duration, mut pick: impl FnMut(&Inner<'_>) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + patience;
        let mut buffer = vec![0; 65_536];
        while let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|d| !d.is_zero()) {
            let Some(inner) = self.read(&mut buffer, left) else { continue };
            if let Some(picked) = pick(&inner) {
                return Some(picked);
            }
            self.answer(&inner);
        }
        None
    }

    /// Send one echo request and wait for its reply; `None` when none came in `patience`.
    pub fn ping(&self, dst: &str, patience: Duration) -> Option<Duration> {
        let id = PINGS.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        let id = u16::from_be_bytes([id[6], id[7]]);
        let begin = Instant::now();
        self.send(&Ends::of(self.inner, address(dst)).echo_request(id, 1, 56));
        self.wait(patience, |got| {
            let reply = got.icmp_type() == Some(icmp::ECHO_REPLY) && got.echo() == Some((id, 1));
            (reply && got.checksum_ok()).then(|| begin.elapsed())
        })
    }

    /// Answer echo requests in the background until the handle is dropped.
    pub fn serve(&self) -> Serving {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (client, halt, count) = (self.clone(), Arc::clone(&stop), Arc::clone(&answered));
        let thread = thread::spawn(move || {
            while !halt.load(Ordering::Relaxed) {
                client.wait(Duration::from_millis(50), |got| {
                    // The router asks too, to see who is still there; that is not what a story counts.
                    let by_router = got.src.to_string() == rig::ROUTER6 && got.payload.len() == 8 + NONCE;
                    let asked = got.icmp_type() == Some(icmp::ECHO_REQUEST) && !by_router;
                    count.fetch_add(u64::from(asked), Ordering::Relaxed);
                    None::<()>
                });
            }
        });
        Serving { stop, answered, thread: Some(thread) }
    }

    fn answer(&self, got: &Inner<'_>) {
        let Some((id, seq)) = got.echo().filter(|_| self.answers) else { return };
        let is_nobodys = got.dst.is_multicast() || self.alone && got.dst != self.inner;
        if got.icmp_type() != Some(icmp::ECHO_REQUEST) || is_nobodys {
            return;
        }
        let ([a, b], [c, d]) = (id.to_be_bytes(), seq.to_be_bytes());
        let data = got.payload.get(8..).unwrap_or_default();
        self.send(&Ends::of(got.dst, got.src).icmp(icmp::ECHO_REPLY, [a, b, c, d], data));
    }

    /// One inner packet, or nothing when the time is over or what came was none.
    fn read<'a>(&self, buffer: &'a mut [u8], patience: Duration) -> Option<Inner<'a>> {
        // A zero timeout would mean for ever.
        let patience = Some(patience.max(Duration::from_millis(1)));
        let (got, begin) = match &*self.wire {
            Wire::Udp(socket) => {
                must(socket.set_read_timeout(patience), "set a timeout");
                (socket.recv(buffer), 0)
            }
            Wire::Proto41(socket) => {
                must(socket.set_read_timeout(patience), "set a timeout");
                let got = (&*socket).read(buffer);
                // A raw socket shows the outer header (raw(7)); its length is in its first octet.
                (got, usize::from(buffer[0] & 0xf) * 4)
            }
        };
        Inner::parse(buffer.get(begin..got.ok()?)?)
    }
}

impl Serving {
    /// How many echo requests it has seen.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Serving({} answered)", self.answered())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let panicked = self.thread.take().is_some_and(|thread| thread.join().is_err());
        if panicked {
            // Not a second panic: one may already be on its way through here.
            drop(writeln!(std::io::stderr(), "a serving client panicked"));
        }
    }
}

fn outer(addr: &str) -> SockAddr {
    let addr = addr.parse().unwrap_or_else(|_| panic!("'{addr}' is not an IPv4 address"));
    SockAddr::from(SocketAddrV4::new(addr, 0))
}

static PINGS: AtomicU64 = AtomicU64::new(1);
