//! Whether what an ICMPv4 error says is true (RFC 5927 section 7, RFC 8899 section 4.6.1).
//!
//! Who knows the outer addresses of a tunnel can write an error about it, from anywhere. So an error is only a reason to ask:
//! a packet of our own, as long as the tunnel's longest, goes the same way with a secret in it, and what is said about
//! *that* packet was said by somebody on the path. It is addressed to all nodes of the tunnel's link and has nothing
//! inside (RFC 8200 section 4.7): a peer that it reaches takes it and is silent. Until then what the sender inside shall hear is
//! held back.
//!
//! Pure. Refuses to know packets' outer headers, tables, and what follows.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv6Addr;
use std::time::Duration;

use rand::{CryptoRng, RngExt};
use sixway_dataplane::update::TunnelId;

/// What an error says something about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum About {
    /// How long packets may be.
    Length,
    /// Whether the peer is there.
    Way,
}

/// What a question carries that nobody guesses.
pub type Secret = [u8; 16];

/// Octets of a question about the way: its header and the secret.
pub const SHORTEST: u16 = 56;

#[derive(Debug)]
struct Doubt {
    secret: Secret,
    size: u16,
    asked: Duration,
    until: Duration,
    is_true: bool,
    /// Beginnings of packets whose senders shall hear of it.
    held: Vec<Vec<u8>>,
}

/// What is asked of all tunnels.
#[derive(Debug, Default)]
pub struct Doubts {
    doubts: HashMap<(TunnelId, About), Doubt>,
    ends: BTreeSet<(Duration, TunnelId, About)>,
    second: u64,
    asked: u32,
}

impl Doubts {
    /// An error says something: returns the secret of a question that shall be asked with so many octets now, if any.
    /// `packet` is what the error quotes, if its sender shall hear of it.
    pub fn raise(
        &mut self,
        now: Duration,
        (tunnel, about): (TunnelId, About),
        size: u16,
        packet: Option<&[u8]>,
        rng: &mut impl CryptoRng,
    ) -> Option<Secret> {
        self.forget_old(now);
        if !self.doubts.contains_key(&(tunnel, about)) && self.doubts.len() >= MOST {
            return None;
        }
        let fresh =
            || Doubt { secret: rng.random(), size, asked: now, until: now, is_true: false, held: Vec::new() };
        let doubt = self.doubts.entry((tunnel, about)).or_insert_with(fresh);
        if let Some(packet) = packet.filter(|_| doubt.held.len() < HELD) {
            doubt.held.push(packet.to_vec());
        }
        let is_new = doubt.until == now;
        if !is_new && now < doubt.asked + AGAIN {
            return None;
        }
        if self.second != now.as_secs() {
            (self.second, self.asked) = (now.as_secs(), 0);
        }
        let may_ask = self.asked < ASKED_A_SECOND;
        self.asked += u32::from(may_ask);
        (doubt.asked, doubt.size) = (now, size);
        let secret = doubt.secret;
        self.keep_until((tunnel, about), now + REMEMBERED);
        may_ask.then_some(secret)
    }

    /// What an error is about that quotes this beginning of a packet of `tunnel`, if that is a question of ours.
    pub fn answers(&self, tunnel: TunnelId, quoted: &[u8]) -> Option<About> {
        [About::Length, About::Way].into_iter().find(|about| {
            let doubt = self.doubts.get(&(tunnel, *about));
            doubt.is_some_and(|doubt| is_question(quoted, &doubt.secret, doubt.size))
        })
    }

    /// It is true: returns the packets whose senders shall hear of it. About the way this holds for a while.
    pub fn settle(&mut self, now: Duration, tunnel: TunnelId, about: About) -> Vec<Vec<u8>> {
        let key = (tunnel, about);
        let Some(doubt) = self.doubts.get_mut(&key) else { return Vec::new() };
        let held = std::mem::take(&mut doubt.held);
        doubt.is_true = true;
        match about {
            About::Length => self.remove(key),
            About::Way => self.keep_until(key, now + TRUE_FOR),
        }
        held
    }

    /// Whether it has been found true a short while ago that the peer is not there.
    pub fn is_away(&self, now: Duration, tunnel: TunnelId) -> bool {
        self.doubts.get(&(tunnel, About::Way)).is_some_and(|doubt| doubt.is_true && now < doubt.until)
    }

    /// The tunnel is gone, or other questions are to be asked.
    pub fn forget(&mut self, tunnel: TunnelId) {
        self.remove((tunnel, About::Length));
        self.remove((tunnel, About::Way));
    }

    fn forget_old(&mut self, now: Duration) {
        while let Some(&(until, tunnel, about)) = self.ends.first().filter(|(until, ..)| *until <= now) {
            self.ends.remove(&(until, tunnel, about));
            self.doubts.remove(&(tunnel, about));
        }
    }

    fn keep_until(&mut self, key: (TunnelId, About), until: Duration) {
        let Some(doubt) = self.doubts.get_mut(&key) else { return };
        self.ends.remove(&(doubt.until, key.0, key.1));
        doubt.until = until;
        self.ends.insert((until, key.0, key.1));
    }

    fn remove(&mut self, key: (TunnelId, About)) {
        if let Some(doubt) = self.doubts.remove(&key) {
            self.ends.remove(&(doubt.until, key.0, key.1));
        }
    }
}

/// The packet that asks: from our link-local address to all nodes, no next header.
pub fn question(source: Ipv6Addr, secret: &Secret, size: u16) -> Vec<u8> {
    let size = size.max(SHORTEST);
    let mut packet = vec![0; usize::from(size)];
    packet[..8].copy_from_slice(&first_words(secret, size));
    packet[8..24].copy_from_slice(&source.octets());
    packet[24..40].copy_from_slice(&ALL_NODES.octets());
    packet[40..56].copy_from_slice(secret);
    packet
}

/// The first eight octets: of some quotes there is no more (RFC 792). Flow label and hop limit are secret too, 26 bits.
fn first_words(secret: &Secret, size: u16) -> [u8; 8] {
    let [a, b, c, d, ..] = *secret;
    let [high, low] = (size - 40).to_be_bytes();
    [0x60, a & 0x0f, b, c, high, low, NO_NEXT_HEADER, 0x40 | d & 0x3f]
}

fn is_question(quoted: &[u8], secret: &Secret, size: u16) -> bool {
    let first = quoted.first_chunk::<8>() == Some(&first_words(secret, size.max(SHORTEST)));
    match quoted.get(40..) {
        Some(rest) if !rest.is_empty() => first && secret.starts_with(&rest[..rest.len().min(secret.len())]),
        Some(_) | None => first,
    }
}

const NO_NEXT_HEADER: u8 = 59;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// Tunnels asked about at the same time.
const MOST: usize = 1024;
/// Packets held for each.
const HELD: usize = 4;
/// Questions in a second, about all tunnels.
const ASKED_A_SECOND: u32 = 500;
/// The least time between two questions about the same.
const AGAIN: Duration = Duration::from_secs(1);
/// How long an answer to a question is waited for.
const REMEMBERED: Duration = Duration::from_secs(4);
/// How long it is believed without asking that a peer is not there.
const TRUE_FOR: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    const T: TunnelId = TunnelId(5);

    fn s(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn raise(doubts: &mut Doubts, now: Duration, tunnel: TunnelId) -> Option<Secret> {
        doubts.raise(
            now,
            (tunnel, About::Length),
            1480,
            Some(&[1]),
            &mut StdRng::seed_from_u64(tunnel.0.into()),
        )
    }

    #[test]
    fn a_question_has_nothing_inside() {
        let source: Ipv6Addr = "fe80::a47:1".parse().unwrap();
        for size in [SHORTEST, 1280, 1480] {
            let packet = question(source, &[0xff; 16], size);
            let view = sixway_dataplane::packet::view::View::parse(&packet).unwrap();
            assert_eq!((view.len, view.next_header), (usize::from(size), 59));
            assert_eq!((view.source, view.destination), (source, ALL_NODES));
            assert!(view.hop_limit >= 64);
        }
    }

    /// RFC: I1 (RFC 5927 section 7, RFC 8899 section 4.6.1)
    #[test]
    fn only_the_question_itself_is_an_answer() {
        let mut doubts = Doubts::default();
        let secret = raise(&mut doubts, s(1), T).unwrap();
        let packet = question(Ipv6Addr::LOCALHOST, &secret, 1480);
        for quoted in [8, 9, 39, 40, 41, 56, 500] {
            assert_eq!(doubts.answers(T, &packet[..quoted]), Some(About::Length), "{quoted} octets");
        }
        assert_eq!(doubts.answers(T, &packet[..7]), None);
        assert_eq!(doubts.answers(TunnelId(6), &packet), None);
        for at in (1..8).chain(40..56) {
            let mut other = packet.clone();
            other[at] ^= 1;
            assert_eq!(doubts.answers(T, &other), None, "octet {at}");
        }
        assert_eq!(doubts.settle(s(1), T, About::Length), [[1]]);
        assert_eq!(doubts.answers(T, &packet), None, "once");
    }

    #[test]
    fn errors_make_few_questions() {
        let mut doubts = Doubts::default();
        let asked = (0..100).filter(|n| raise(&mut doubts, Duration::from_millis(n * 100), T).is_some());
        assert_eq!(asked.count(), 10, "one a second");
        let mut doubts = Doubts::default();
        let asked = (0..5000).filter(|n| raise(&mut doubts, s(1), TunnelId(*n)).is_some());
        assert_eq!(asked.count(), ASKED_A_SECOND as usize);
        assert!(doubts.doubts.len() <= MOST && doubts.ends.len() == doubts.doubts.len());
        raise(&mut doubts, s(60), T);
        assert_eq!((doubts.doubts.len(), doubts.ends.len()), (1, 1));
        doubts.forget(T);
        assert_eq!((doubts.doubts.len(), doubts.ends.len()), (0, 0));
    }

    #[test]
    fn a_peer_that_is_away_is_so_for_a_while() {
        let mut doubts = Doubts::default();
        let mut rng = StdRng::seed_from_u64(1);
        for _ in 0..9 {
            doubts.raise(s(1), (T, About::Way), SHORTEST, Some(&[1]), &mut rng);
        }
        assert!(!doubts.is_away(s(1), T));
        assert_eq!(doubts.settle(s(1), T, About::Way).len(), HELD);
        assert!(doubts.is_away(s(10), T) && !doubts.is_away(s(11), T));
    }
}
