//! A silent observer: every frame that reaches a namespace from outside, as its kernel sees it.
//!
//! An AF_PACKET socket sits behind the kernel's merging (GRO), so a frame longer than any MTU is the
//! proof that merging happened. Knows nothing of what the frames mean.

use std::io::Read;
use std::net::Ipv6Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::lab::{hear_well, must};
use crate::{Inner, PATIENCE, Space, icmp};

/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;

/// Collects what a filter makes of each frame, on a thread of its own, until [`Observer::finish`].
#[derive(Debug)]
pub struct Observer<T> {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<T>>>,
    thread: JoinHandle<()>,
}

impl<T: Send + 'static> Observer<T> {
    /// Watch the frames of one EtherType that come in on any device of `space`. The filter gets the
    /// network-layer octets, without the link's header.
    #[track_caller]
    pub fn start(
        space: &Space,
        ethertype: u16,
        mut filter: impl FnMut(&[u8]) -> Option<T> + Send + 'static,
    ) -> Self {
        let socket = space.inside(|| open(ethertype));
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (halt, found) = (Arc::clone(&stop), Arc::clone(&seen));
        let thread = thread::spawn(move || {
            let mut buffer = vec![0; 1 << 18];
            loop {
                match (&socket).read(&mut buffer) {
                    Ok(len) => lock(&found).extend(filter(&buffer[..len])),
                    // Only an empty queue may end it: what came before the word to stop is counted.
                    Err(_) if halt.load(Ordering::Relaxed) => return,
                    Err(_) => {}
                }
            }
        });
        Self { stop, seen, thread }
    }

    /// Stop, and hand out what was collected.
    #[track_caller]
    pub fn finish(self) -> Vec<T> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|why| std::panic::resume_unwind(why));
        std::mem::take(&mut *lock(&self.seen))
    }

    /// The same once what has been collected is enough, or nobody would wait for it any longer.
    #[track_caller]
    pub fn finish_when(self, is_enough: impl Fn(&[T]) -> bool) -> Vec<T> {
        let until = Instant::now() + PATIENCE;
        while !is_enough(&lock(&self.seen)) && Instant::now() < until {
            thread::sleep(Duration::from_millis(5));
        }
        self.finish()
    }
}

/// An echo request as it came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo {
    /// Who asks.
    pub src: Ipv6Addr,
    /// The hop limit it came with.
    pub hops: u8,
    /// Its identifier.
    pub id: u16,
}

/// Watch for echo requests that reach a namespace, each with a right checksum or not at all.
#[track_caller]
pub fn echo_requests(space: &Space) -> Observer<Echo> {
    Observer::start(space, IPV6, |frame| {
        let inner = Inner::parse(frame).filter(Inner::checksum_ok)?;
        let (id, _) = inner.echo().filter(|_| inner.icmp_type() == Some(icmp::ECHO_REQUEST))?;
        Some(Echo { src: inner.src, hops: inner.hops, id })
    })
}

fn lock<T>(seen: &Mutex<Vec<T>>) -> MutexGuard<'_, Vec<T>> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

fn open(ethertype: u16) -> Socket {
    // Cooked (DGRAM) packet sockets cut the link header off, so TUN and veth look alike.
    let protocol = Protocol::from(i32::from(ethertype.to_be()));
    let socket = must(Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol)), "open a packet socket");
    must(socket.set_read_timeout(Some(Duration::from_millis(20))), "set a timeout");
    hear_well(&socket);
    socket
}
