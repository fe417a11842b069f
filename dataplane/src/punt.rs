//! The way up: packets that the forwarder cannot judge, copied into a bounded queue.
//!
//! Frames are allocated once and go round: a worker takes an empty one, fills it and queues it; the control plane reads it
//! and gives it back by dropping it. When none is empty the packet is dropped and counted. Knows nothing of who reads.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam::queue::ArrayQueue;

use crate::packet::batch::Arrival;
use crate::update::TunnelId;
use crate::verdict::{PuntClass, Verdict};

/// Octets of a packet that are kept: every control message fits, of a longer packet its beginning.
pub const FRAME: usize = 2048;
/// How many frames there are.
pub const FRAMES: usize = 1024;

#[derive(Debug)]
struct Frame {
    class: PuntClass,
    tunnel: Option<TunnelId>,
    arrival: Arrival,
    verdict: Verdict,
    len: usize,
    whole: usize,
    bytes: [u8; FRAME],
}

#[derive(Debug)]
struct Shared {
    full: ArrayQueue<Box<Frame>>,
    empty: ArrayQueue<Box<Frame>>,
    /// The reader sleeps and wants the bell.
    armed: AtomicBool,
    bell: UnixStream,
}

/// A worker's end.
#[derive(Clone, Debug)]
pub struct PuntSender(Arc<Shared>);

/// The control plane's end.
#[derive(Debug)]
pub struct PuntReader {
    shared: Arc<Shared>,
    bell: UnixStream,
}

/// One packet that came up.
#[derive(Debug)]
pub struct Punt {
    frame: Option<Box<Frame>>,
    shared: Arc<Shared>,
}

/// Makes the queue, its frames empty. Fails when no pair of sockets for the bell is to be had.
pub fn queue() -> std::io::Result<(PuntSender, PuntReader)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    theirs.set_nonblocking(true)?;
    let empty = ArrayQueue::new(FRAMES);
    for _ in 0..FRAMES {
        let _fits = empty.push(Box::new(Frame {
            class: PuntClass::Link,
            tunnel: None,
            arrival: Arrival::Tun,
            verdict: Verdict::ToTun,
            len: 0,
            whole: 0,
            bytes: [0; FRAME],
        }));
    }
    let shared =
        Arc::new(Shared { full: ArrayQueue::new(FRAMES), empty, armed: AtomicBool::new(true), bell: ours });
    Ok((PuntSender(shared.clone()), PuntReader { shared, bell: theirs }))
}

impl PuntSender {
    /// Copies a packet into the queue. `false` when there is no frame left for its class; copies of watched packets leave
    /// half of the frames to those that somebody waits for, and datagrams that anybody may send leave a quarter to what
    /// comes out of tunnels.
    pub fn send(
        &self,
        class: PuntClass,
        tunnel: Option<TunnelId>,
        arrival: Arrival,
        verdict: Verdict,
        packet: &[u8],
    ) -> bool {
        let kept_free = match class {
            PuntClass::Watched => FRAMES / 2,
            PuntClass::Datagram => FRAMES / 4,
            PuntClass::Link | PuntClass::Candidate | PuntClass::EchoReply => 0,
        };
        if kept_free > 0 && self.0.empty.len() <= kept_free {
            return false;
        }
        let Some(mut frame) = self.0.empty.pop() else { return false };
        let len = packet.len().min(FRAME);
        frame.bytes[..len].copy_from_slice(&packet[..len]);
        (frame.class, frame.tunnel, frame.arrival, frame.verdict) = (class, tunnel, arrival, verdict);
        (frame.len, frame.whole) = (len, packet.len());
        let sent = self.0.full.push(frame).is_ok();
        // One order with the queue's own: either we see the reader armed, or it sees the frame.
        if self.0.armed.swap(false, Ordering::SeqCst) {
            // A full pipe has a bell in it already.
            let _rung = (&self.0.bell).write(&[1]);
        }
        sent
    }
}

impl PuntReader {
    /// The next packet, if one is there.
    pub fn take(&mut self) -> Option<Punt> {
        let frame = self.shared.full.pop()?;
        Some(Punt { frame: Some(frame), shared: self.shared.clone() })
    }

    /// Says that the reader will wait for [`Self::bell`] to become readable. Returns `true` when a packet has come in
    /// between, so that waiting would be wrong.
    pub fn arm(&mut self) -> bool {
        let mut rung = [0; 64];
        while matches!((&self.bell).read(&mut rung), Ok(1..)) {}
        self.shared.armed.store(true, Ordering::SeqCst);
        !self.shared.full.is_empty()
    }

    /// A stream that becomes readable when a packet has come after [`Self::arm`]; for waiting, not for reading.
    pub fn bell(&self) -> std::io::Result<UnixStream> {
        self.bell.try_clone()
    }
}

impl Punt {
    fn frame(&self) -> &Frame {
        match &self.frame {
            Some(frame) => frame,
            None => unreachable!("only drop takes the frame"),
        }
    }

    /// Why it came up.
    pub fn class(&self) -> PuntClass {
        self.frame().class
    }

    /// The tunnel it belongs to: for a candidate, the one its inner source is in.
    pub fn tunnel(&self) -> Option<TunnelId> {
        self.frame().tunnel
    }

    /// How it came: for packets from peers, the sender and the local address it came to.
    pub fn arrival(&self) -> Arrival {
        self.frame().arrival
    }

    /// What the forwarder did with it.
    pub fn verdict(&self) -> Verdict {
        self.frame().verdict
    }

    /// How many octets it had, of which [`Self::bytes`] may be the beginning.
    pub fn whole(&self) -> usize {
        self.frame().whole
    }

    /// Its octets, at most [`FRAME`] of them.
    pub fn bytes(&self) -> &[u8] {
        let frame = self.frame();
        &frame.bytes[..frame.len]
    }
}

impl Drop for Punt {
    fn drop(&mut self) {
        if let Some(frame) = self.frame.take() {
            let _fits = self.shared.empty.push(frame);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounded_and_reusable() {
        let (sender, mut reader) = queue().unwrap();
        let send =
            |n: u8| sender.send(PuntClass::Link, Some(TunnelId(1)), Arrival::Tun, Verdict::ToTun, &[n; 3000]);
        for n in 0..FRAMES {
            assert!(send(n as u8));
        }
        assert!(!send(0), "all frames are taken");
        let first = reader.take().unwrap();
        assert_eq!((first.bytes(), first.tunnel()), (&[0; FRAME][..], Some(TunnelId(1))));
        assert_eq!(first.whole(), 3000);
        drop(first);
        assert!(send(7));
        assert_eq!(std::iter::from_fn(|| reader.take()).count(), FRAMES);
        assert!(!reader.arm());
        assert!(send(7) && reader.arm());
    }

    #[test]
    fn what_anybody_may_send_leaves_room_for_what_comes_out_of_tunnels() {
        let (sender, _reader) = queue().unwrap();
        let send = |class| sender.send(class, None, Arrival::Tun, Verdict::ToTun, &[0; 9]);
        let mut taken = 0;
        while send(PuntClass::Datagram) {
            taken += 1;
        }
        assert_eq!(taken, FRAMES * 3 / 4);
        assert!(!send(PuntClass::Watched));
        assert_eq!((0..FRAMES).filter(|_| send(PuntClass::Link)).count(), FRAMES / 4);
    }
}
