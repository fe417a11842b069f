//! Nonces that need no memory: what comes back says by itself to whom it was sent, when, and through which tunnel.
//!
//! A nonce is the tunnel, the time, and the first half of an HMAC-SHA-256 (RFC 2104) over both and everything that the
//! answer must repeat: the place asked, our own, and the addresses inside. So asking a thousand strangers costs nothing, and
//! nobody can answer for a place that he does not receive packets at. Pure: the key is drawn by the caller, `now` is an
//! argument. Refuses to know packets.

use std::net::{Ipv6Addr, SocketAddrV4};
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use sixway_dataplane::update::TunnelId;

/// What an echo request carries, and its answer.
pub type Nonce = [u8; 16];

/// Why somebody is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Whether he is there at all, who seems to be a tunnel's peer.
    Candidate,
    /// Whether he is still there, who is the tunnel's peer.
    Current,
}

/// Everything that an answer must repeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Why.
    pub why: Why,
    /// Through which tunnel.
    pub tunnel: TunnelId,
    /// The outer place asked.
    pub remote: SocketAddrV4,
    /// The outer place that asks.
    pub local: SocketAddrV4,
    /// The inner address asked.
    pub inner: Ipv6Addr,
    /// The inner address that asks.
    pub source: Ipv6Addr,
    /// The echo request's sequence number.
    pub seq: u16,
}

/// How long an answer may take.
pub const LIFETIME: Duration = Duration::from_secs(3);

/// Writes nonces and knows them again.
#[derive(Debug)]
pub struct Sealer {
    key: [u8; 64],
}

impl Sealer {
    /// With a key that nobody guesses.
    pub fn new(key: [u8; 64]) -> Self {
        Self { key }
    }

    /// The nonce of a question asked at `now`.
    pub fn seal(&self, now: Duration, question: &Question) -> Nonce {
        self.at(millis(now), question)
    }

    fn at(&self, time: u32, question: &Question) -> Nonce {
        let mut nonce = [0; 16];
        nonce[..4].copy_from_slice(&question.tunnel.0.to_be_bytes());
        nonce[4..8].copy_from_slice(&time.to_be_bytes());
        let mac = self.mac(&nonce[..8], question);
        nonce[8..].copy_from_slice(&mac);
        nonce
    }

    fn mac(&self, head: &[u8], question: &Question) -> [u8; 8] {
        let mut mac = Hmac::<Sha256>::new(&self.key.into());
        mac.update(head);
        mac.update(&[matches!(question.why, Why::Current).into()]);
        for at in [question.remote, question.local] {
            mac.update(&at.ip().octets());
            mac.update(&at.port().to_be_bytes());
        }
        for addr in [question.inner, question.source] {
            mac.update(&addr.octets());
        }
        mac.update(&question.seq.to_be_bytes());
        let whole: [u8; 32] = mac.finalize().into_bytes().into();
        let [a, b, c, d, e, f, g, h, ..] = whole;
        [a, b, c, d, e, f, g, h]
    }

    /// When this question was asked, if the nonce is its own and not older than [`LIFETIME`].
    pub fn open(&self, now: Duration, nonce: &Nonce, question: &Question) -> Option<Duration> {
        let [.., a, b, c, d, _, _, _, _, _, _, _, _] = *nonce;
        let time = u32::from_be_bytes([a, b, c, d]);
        let age = Duration::from_millis(u64::from(millis(now).wrapping_sub(time)));
        // All octets are compared, however early they differ.
        let wrong = self.at(time, question).iter().zip(nonce).fold(0, |wrong, (a, b)| wrong | (a ^ b));
        (wrong == 0 && age < LIFETIME).then(|| now.saturating_sub(age))
    }
}

/// Milliseconds, beginning anew after 49 days: only differences count.
fn millis(now: Duration) -> u32 {
    now.as_millis() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question() -> Question {
        Question {
            why: Why::Candidate,
            tunnel: TunnelId(7),
            remote: "192.0.2.1:4000".parse().unwrap(),
            local: "10.71.0.1:3653".parse().unwrap(),
            inner: "2001:db8:1::2".parse().unwrap(),
            source: "2001:db8:100::1".parse().unwrap(),
            seq: 5,
        }
    }

    /// RFC: D12 (RFC 8085 section 3.5)
    #[test]
    fn an_answer_is_about_one_question_and_for_a_while() {
        let (sealer, now) = (Sealer::new([3; 64]), Duration::from_secs(4_294_967));
        let q = question();
        let nonce = sealer.seal(now, &q);
        let late = now + LIFETIME;
        assert_eq!(
            sealer.open(late - Duration::from_millis(1), &nonce, &q),
            Some(now),
            "also as the time begins anew"
        );
        assert_eq!(sealer.open(late, &nonce, &q), None);
        let others = [
            Question { why: Why::Current, ..q },
            Question { tunnel: TunnelId(8), ..q },
            Question { remote: "192.0.2.1:4001".parse().unwrap(), ..q },
            Question { local: "10.71.0.2:3653".parse().unwrap(), ..q },
            Question { inner: "2001:db8:1::3".parse().unwrap(), ..q },
            Question { source: "2001:db8:100::2".parse().unwrap(), ..q },
            Question { seq: 6, ..q },
        ];
        for other in others {
            assert_eq!(sealer.open(now, &nonce, &other), None, "{other:?}");
        }
        for bit in 0..128 {
            let mut wrong = nonce;
            wrong[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(sealer.open(now, &wrong, &q), None, "bit {bit}");
        }
        assert_eq!(Sealer::new([4; 64]).open(now, &nonce, &q), None, "another router's");
    }
}
