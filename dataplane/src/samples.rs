//! The last packet that each reason has dropped: its first octets, when, from whom or to whom, for which tunnel.
//!
//! Every worker writes to a board of its own, without locks: a place says before and after that it is being written, and a
//! reader who sees that looks again. A flood costs next to nothing, since a reason keeps one packet in [`PAUSE_MS`].
//! Knows nothing of why a packet was dropped.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::Duration;

use crate::packet::batch::{Arrival, Sender};
use crate::table::slab::Encap;
use crate::update::TunnelId;
use crate::verdict::Reason;

/// Octets of a packet that are kept.
pub const KEPT: usize = 128;
/// After a packet was kept, the next ones of its reason are not for so many milliseconds, by each worker.
pub const PAUSE_MS: u64 = 10;
/// Words before the octets: time, tunnel and how it came, peer, our end, lengths.
const HEAD: usize = 5;
const WORDS: usize = HEAD + KEPT / 8;
/// How often a reader looks at a place that is being written.
const LOOKS: usize = 100;

/// What is known of a packet's way where it was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Course {
    /// Nothing any more.
    Unknown,
    /// How it came.
    From(Arrival),
    /// It was on its way out: the peer is `remote`, and our own end may not have been chosen yet.
    To(Sender),
}

impl From<Option<Arrival>> for Course {
    fn from(arrival: Option<Arrival>) -> Self {
        arrival.map_or(Self::Unknown, Self::From)
    }
}

/// A packet that was dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// When, since the start.
    pub at: Duration,
    /// On whose behalf.
    pub tunnel: Option<TunnelId>,
    /// Where it came from, or was sent.
    pub course: Course,
    /// Its octets in all; of a train that was on its way out, its first packet's.
    pub len: usize,
    /// The first of them, at most [`KEPT`].
    pub bytes: Vec<u8>,
}

/// A place for one sample: an odd turn means that it is being written.
#[derive(Debug)]
struct Place {
    turn: AtomicU64,
    words: [AtomicU64; WORDS],
}

/// The places of one worker, one for each reason.
#[derive(Debug)]
pub(crate) struct Board(Box<[Place]>);

impl Board {
    pub(crate) fn new() -> Self {
        let place = |_| Place { turn: AtomicU64::new(0), words: std::array::from_fn(|_| AtomicU64::new(0)) };
        Self((0..Reason::COUNT).map(place).collect())
    }

    /// What was kept for `reason`, if anything.
    pub(crate) fn read(&self, reason: Reason) -> Option<Sample> {
        let place = self.0.get(reason as usize)?;
        for _ in 0..LOOKS {
            let before = place.turn.load(Ordering::Acquire);
            if before == 0 {
                return None;
            }
            let words = std::array::from_fn(|n| place.words[n].load(Ordering::Relaxed));
            fence(Ordering::Acquire);
            if before % 2 == 0 && place.turn.load(Ordering::Relaxed) == before {
                return Some(decode(&words));
            }
            std::hint::spin_loop();
        }
        None
    }
}

/// Its one writer.
#[derive(Debug)]
pub(crate) struct Pen {
    board: Arc<Board>,
    now_ms: u64,
    /// From when on the next packet of each reason is kept.
    next: [u64; Reason::COUNT],
}

impl Pen {
    pub(crate) fn new(board: Arc<Board>) -> Self {
        Self { board, now_ms: 0, next: [0; Reason::COUNT] }
    }

    /// From now on it is this late, in milliseconds since the start.
    pub(crate) fn set_time(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
    }

    /// Keeps this packet, given in its parts, unless one was kept for the same reason just now.
    pub(crate) fn keep(&mut self, reason: Reason, id: Option<TunnelId>, course: Course, parts: &[&[u8]]) {
        let n = reason as usize;
        if self.now_ms < self.next[n] {
            return;
        }
        self.next[n] = self.now_ms + PAUSE_MS;
        let words = encode(self.now_ms, id, course, parts);
        let place = &self.board.0[n];
        let turn = place.turn.load(Ordering::Relaxed);
        place.turn.store(turn + 1, Ordering::Relaxed);
        // Whoever sees a new word sees the odd turn as well.
        fence(Ordering::Release);
        for (slot, word) in place.words.iter().zip(words) {
            slot.store(word, Ordering::Relaxed);
        }
        place.turn.store(turn + 2, Ordering::Release);
    }
}

const NO_TUNNEL: u64 = u32::MAX as u64;

fn encode(now_ms: u64, id: Option<TunnelId>, course: Course, parts: &[&[u8]]) -> [u64; WORDS] {
    let mut words = [0; WORDS];
    let (kind, remote, local, tos) = match course {
        Course::Unknown => (0, 0, 0, 0),
        Course::From(Arrival::Tun) => (1, 0, 0, 0),
        Course::From(Arrival::Wire(s)) => end_words(2, &s),
        Course::To(s) => end_words(4, &s),
    };
    words[..HEAD].copy_from_slice(&[
        now_ms,
        id.map_or(NO_TUNNEL, |id| u64::from(id.0)) | kind << 32 | tos << 40,
        remote,
        local,
        parts.iter().map(|part| part.len() as u64).sum(),
    ]);
    let mut kept = [0; KEPT];
    let octets = parts.iter().copied().flatten();
    kept.iter_mut().zip(octets).for_each(|(place, octet)| *place = *octet);
    for (word, octets) in words[HEAD..].iter_mut().zip(kept.as_chunks::<8>().0) {
        *word = u64::from_ne_bytes(*octets);
    }
    words
}

/// Kind (`first`, and one more for UDP), the other end, ours, and the type of service.
fn end_words(first: u64, s: &Sender) -> (u64, u64, u64, u64) {
    let end = |at: SocketAddrV4| u64::from(u32::from(*at.ip())) << 16 | u64::from(at.port());
    (first + u64::from(s.encap == Encap::Udp), end(s.remote), end(s.local), u64::from(s.tos))
}

fn decode(words: &[u64; WORDS]) -> Sample {
    let end = |word: u64| SocketAddrV4::new(Ipv4Addr::from((word >> 16) as u32), word as u16);
    let [at, head, remote, local, len] =
        [words[0], words[1], end_word(words[2]), end_word(words[3]), words[4]];
    let sender = |encap| Sender { encap, remote: end(remote), local: end(local), tos: (head >> 40) as u8 };
    let course = match head >> 32 & 0xff {
        1 => Course::From(Arrival::Tun),
        2 => Course::From(Arrival::Wire(sender(Encap::Proto41))),
        3 => Course::From(Arrival::Wire(sender(Encap::Udp))),
        4 => Course::To(sender(Encap::Proto41)),
        5 => Course::To(sender(Encap::Udp)),
        _ => Course::Unknown,
    };
    let tunnel = Some(head & NO_TUNNEL).filter(|id| *id != NO_TUNNEL).map(|id| TunnelId(id as u32));
    let len = len as usize;
    let mut bytes: Vec<u8> = words[HEAD..].iter().flat_map(|word| word.to_ne_bytes()).collect();
    bytes.truncate(len);
    Sample { at: Duration::from_millis(at), tunnel, course, len, bytes }
}

/// Address and port, nothing else.
fn end_word(word: u64) -> u64 {
    word & 0xffff_ffff_ffff
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn sender(encap: Encap) -> Sender {
        let at = |text: &str| text.parse().unwrap();
        Sender { encap, remote: at("192.0.2.1:5"), local: at("255.255.255.255:65535"), tos: 255 }
    }

    #[test]
    fn what_was_kept_is_read_as_it_was() {
        let board = Arc::new(Board::new());
        let mut pen = Pen::new(board.clone());
        assert_eq!(board.read(Reason::TooBig), None);
        let cases = [
            (Some(TunnelId(7)), Course::From(Arrival::Wire(sender(Encap::Udp))), vec![9; 1500]),
            (None, Course::From(Arrival::Wire(sender(Encap::Proto41))), vec![1, 2, 3]),
            (Some(TunnelId(0)), Course::From(Arrival::Tun), vec![]),
            (Some(TunnelId(1)), Course::To(sender(Encap::Udp)), (0..200).collect()),
            (None, Course::To(sender(Encap::Proto41)), vec![5; 127]),
            (None, Course::Unknown, (0..128).collect()),
        ];
        for (n, (tunnel, course, bytes)) in cases.into_iter().enumerate() {
            let at = Duration::from_millis(n as u64 * PAUSE_MS);
            pen.set_time(n as u64 * PAUSE_MS);
            // Wherever it is cut into parts.
            let (first, second) = bytes.split_at(bytes.len() / (n + 1));
            pen.keep(Reason::TooBig, tunnel, course, &[first, second]);
            let kept = bytes[..bytes.len().min(KEPT)].to_vec();
            let wanted = Sample { at, tunnel, course, len: bytes.len(), bytes: kept };
            assert_eq!(board.read(Reason::TooBig), Some(wanted));
        }
        assert_eq!(board.read(Reason::NoRoute), None, "each reason has its own place");
    }

    #[test]
    fn a_flood_is_kept_once_in_a_while() {
        let board = Arc::new(Board::new());
        let mut pen = Pen::new(board.clone());
        for n in 0..100 {
            pen.keep(Reason::Ecn, Some(TunnelId(n)), Course::Unknown, &[]);
        }
        assert_eq!(board.read(Reason::Ecn).and_then(|s| s.tunnel), Some(TunnelId(0)));
        pen.set_time(PAUSE_MS);
        pen.keep(Reason::Ecn, Some(TunnelId(100)), Course::Unknown, &[]);
        assert_eq!(board.read(Reason::Ecn).and_then(|s| s.tunnel), Some(TunnelId(100)));
    }

    #[test]
    fn a_reader_never_sees_half_a_packet() {
        let board = Arc::new(Board::new());
        let mut pen = Pen::new(board.clone());
        let done = Arc::new(AtomicU64::new(0));
        let stop = done.clone();
        let writer = std::thread::spawn(move || {
            for n in 0.. {
                pen.set_time(n * PAUSE_MS);
                pen.keep(Reason::Ecn, Some(TunnelId(n as u32 % 256)), Course::Unknown, &[&[n as u8; KEPT]]);
                if stop.load(Ordering::Relaxed) > 0 {
                    return;
                }
            }
        });
        let until = Instant::now() + Duration::from_secs(20);
        let mut seen = 0;
        while seen < 10_000 && Instant::now() < until {
            let Some(sample) = board.read(Reason::Ecn) else { continue };
            let id = sample.tunnel.unwrap().0 as u8;
            assert_eq!(sample.bytes, [id; KEPT]);
            seen += 1;
        }
        done.store(1, Ordering::Relaxed);
        writer.join().unwrap();
        assert!(seen > 0);
    }
}
