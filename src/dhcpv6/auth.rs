//! Who has made a message: the Authentication option (RFC 8415 section 21.11), delayed authentication (RFC 3315 section
//! 21.4) and the protocol of Reconfigure keys (RFC 8415 section 20.4). Pure.
//!
//! HMAC-MD5 over the whole message with the digest as zeros is what both say. The digest is the end of the option, and in
//! our own messages the option is the end of the message. Which client has which key is known elsewhere.

use std::ops::Range;

use dhcproto::v6::{Authentication, DhcpOption};
use hmac::{Hmac, KeyInit, Mac};
use md5::Md5;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::codec::{Opt, code};

/// Octets of a digest, and of a Reconfigure key.
pub const DIGEST: usize = 16;
/// Octets of the secret that Reconfigure keys are made of.
pub const SECRET: usize = 32;
/// Delayed authentication (RFC 3315 section 21.4).
const DELAYED: u8 = 2;
/// Reconfigure keys (RFC 8415 section 20.4).
const RECONFIGURE: u8 = 3;
const HMAC_MD5: u8 = 1;
/// Replay detection by a number that grows.
const MONOTONE: u8 = 0;
/// What a Reconfigure key option holds: the key, or a digest made with it.
const HOLDS_KEY: u8 = 1;
const HOLDS_DIGEST: u8 = 2;
/// Seconds from 1900 to 1970 (RFC 5905 section 6).
const NTP_AT_UNIX: u64 = 2_208_988_800;
/// Values that are set aside at once on the disk: ten minutes of the clock.
const AHEAD: u64 = 600 << 32;

/// A key that a client and the server have in common.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    /// The realm, as it goes on the wire.
    pub realm: Vec<u8>,
    /// The key's number in it.
    pub id: u32,
    /// The secret.
    pub secret: Zeroizing<Vec<u8>>,
    /// Unix seconds after which it does not count; `None` for ever.
    pub expires: Option<u64>,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key(realm {}, id {})", self.realm.escape_ascii(), self.id)
    }
}

/// Why a message is not its client's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forged {
    /// No key, another key, one that is over, or a digest that was not made with it.
    Digest,
    /// The number does not grow: it has been here before.
    Replayed,
}

/// Whether this is delayed authentication in the one way that there is.
pub fn is_delayed(auth: &Authentication) -> bool {
    (auth.proto, auth.algo, auth.rdm) == (DELAYED, HMAC_MD5, MONOTONE)
}

impl Key {
    /// Whether it counts at this time, in Unix seconds.
    pub fn is_good(&self, now: u64) -> bool {
        self.expires.is_none_or(|expires| now <= expires)
    }

    /// Whether a message that says so was made with this key, and later than the one with the number `last`.
    ///
    /// # Errors
    /// [`Forged`].
    pub fn prove(&self, auth: &Authentication, octets: &[u8], last: Option<u64>) -> Result<(), Forged> {
        let named = [&self.realm[..], &self.id.to_be_bytes()].concat();
        let digest = auth.info.strip_prefix(&named[..]).filter(|digest| digest.len() == DIGEST);
        let (Some(digest), Some(at)) = (digest, digest_at(octets)) else { return Err(Forged::Digest) };
        let zeros = [0; DIGEST];
        let parts = [&octets[..at.start], &zeros, &octets[at.end..]];
        if mac(&self.secret, &parts).verify_slice(digest).is_err() {
            return Err(Forged::Digest);
        }
        // Before the number: who has no key learns nothing of it, and moves nothing.
        if last.is_some_and(|last| !is_later(auth.replay_detection, last)) {
            return Err(Forged::Replayed);
        }
        Ok(())
    }

    /// The option with room for the digest, for the end of a message.
    pub fn option(&self, replay: u64) -> Opt {
        let info = [&self.realm[..], &self.id.to_be_bytes(), &[0; DIGEST]].concat();
        option(DELAYED, replay, info)
    }
}

/// Numbers of 64 bits wrap like times.
fn is_later(number: u64, last: u64) -> bool {
    (number.wrapping_sub(last) as i64) > 0
}

/// The option that gives a client the key that Reconfigure messages will be made with.
pub fn key_option(replay: u64, key: &[u8; DIGEST]) -> Opt {
    option(RECONFIGURE, replay, [&[HOLDS_KEY][..], key].concat())
}

/// The option of a Reconfigure message, with room for the digest.
pub fn call_option(replay: u64) -> Opt {
    option(RECONFIGURE, replay, [&[HOLDS_DIGEST][..], &[0; DIGEST]].concat())
}

fn option(proto: u8, replay_detection: u64, info: Vec<u8>) -> Opt {
    let (algo, rdm) = (HMAC_MD5, MONOTONE);
    Opt::Leaf(DhcpOption::Authentication(Authentication { proto, algo, rdm, replay_detection, info }))
}

/// Puts the digest into the zeros at the end of a message that has been written.
pub fn sign(octets: &mut [u8], secret: &[u8]) {
    let digest = mac(secret, &[octets]).finalize().into_bytes();
    if let Some(end) = octets.len().checked_sub(DIGEST).and_then(|at| octets.get_mut(at..)) {
        end.copy_from_slice(&digest);
    }
}

fn mac(secret: &[u8], parts: &[&[u8]]) -> Hmac<Md5> {
    // A key of any length will do: the error cannot come.
    let mut mac = Hmac::<Md5>::new_from_slice(secret).unwrap_or_else(|_| Hmac::new(&Default::default()));
    parts.iter().for_each(|part| mac.update(part));
    mac
}

/// Where the digest stands in a message between client and server: the end of its Authentication option.
fn digest_at(octets: &[u8]) -> Option<Range<usize>> {
    let mut at = 4;
    loop {
        let head = octets.get(at..at + 4)?;
        let len = usize::from(u16::from_be_bytes([head[2], head[3]]));
        let end = at + 4 + len;
        if u16::from_be_bytes([head[0], head[1]]) == code::AUTH {
            let begin = end.checked_sub(DIGEST).filter(|begin| *begin >= at + 4)?;
            return (end <= octets.len()).then_some(begin..end);
        }
        at = end;
    }
}

/// What a server makes keys and numbers of. The numbers are the time as NTP writes it, and only grow, also when the clock
/// is set back and over restarts; for that, some are set aside ahead of time.
#[derive(Clone)]
pub struct Ring {
    secret: Zeroizing<[u8; SECRET]>,
    last: u64,
    kept: u64,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ring(last {})", self.last)
    }
}

impl Ring {
    /// With a random secret, and the mark up to which numbers may have been used.
    pub fn new(secret: [u8; SECRET], mark: u64) -> Self {
        Self { secret: Zeroizing::new(secret), last: mark, kept: mark }
    }

    /// The secret and a mark up to which numbers are set aside; both to be kept before anything leaves while
    /// [`Self::must_be_kept`].
    pub fn parts(&self) -> (&[u8; SECRET], u64) {
        (&self.secret, if self.must_be_kept() { self.last.saturating_add(AHEAD) } else { self.kept })
    }

    /// Whether numbers have been used that were not set aside.
    pub fn must_be_kept(&self) -> bool {
        self.last > self.kept
    }

    /// [`Self::parts`] are on the disk now.
    pub fn has_been_kept(&mut self) {
        self.kept = self.parts().1;
    }

    /// The next number, at this time in Unix seconds and parts of a second of 2^-32.
    pub(super) fn next(&mut self, (seconds, parts): (u64, u32)) -> u64 {
        let clock = (seconds.wrapping_add(NTP_AT_UNIX) << 32) | u64::from(parts);
        self.last = clock.max(self.last.saturating_add(1));
        self.last
    }

    /// The key of one client: nobody who has not the secret can tell it from chance.
    pub(super) fn key(&self, tunnel: &str, client: &[u8]) -> [u8; DIGEST] {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.secret[..])
            .unwrap_or_else(|_| Hmac::new(&Default::default()));
        [tunnel.as_bytes(), &[0], client].iter().for_each(|part| mac.update(part));
        let made = mac.finalize().into_bytes();
        std::array::from_fn(|n| made[n])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_only_grow_and_are_set_aside_before_they_are_used_up() {
        let mut ring = Ring::new([7; SECRET], 0);
        let first = ring.next((1_800_000_000, 5));
        assert_eq!(first, ((1_800_000_000 + NTP_AT_UNIX) << 32) | 5);
        assert!(ring.must_be_kept() && ring.must_be_kept(), "until it has been");
        ring.has_been_kept();
        assert!(!ring.must_be_kept());
        assert!(ring.next((1_700_000_000, 0)) > first, "the clock was set back");
        ring.next((1_800_000_300, 0));
        assert!(!ring.must_be_kept(), "ten minutes ahead");
        let last = ring.next((1_800_000_601, 0));
        assert!(ring.must_be_kept());
        let (secret, mark) = ring.parts();
        let mut again = Ring::new(*secret, mark);
        assert!(again.next((1_800_000_602, 0)) > last, "a restart");
        assert!(again.must_be_kept());
        assert_eq!(again.key("t", &[1]), ring.key("t", &[1]));
        assert_ne!(again.key("t", &[1]), again.key("t", &[2]));
        assert_ne!(again.key("t", &[1]), again.key("u", &[1]));
    }

    #[test]
    fn a_digest_is_found_and_checked_wherever_the_option_stands() {
        let key = Key { realm: b"r".to_vec(), id: 7, secret: Zeroizing::new(vec![1, 2]), expires: Some(9) };
        assert!(key.is_good(9) && !key.is_good(10));
        let mut octets = vec![3, 1, 2, 3, 0, 1, 0, 1, 9];
        key.option(77).emit(&mut octets);
        sign(&mut octets, &key.secret);
        let Opt::Leaf(DhcpOption::Authentication(auth)) = parse(&octets) else { panic!() };
        assert!(is_delayed(&auth));
        assert_eq!(key.prove(&auth, &octets, None), Ok(()));
        assert_eq!(key.prove(&auth, &octets, Some(76)), Ok(()));
        assert_eq!(key.prove(&auth, &octets, Some(77)), Err(Forged::Replayed));
        assert_eq!(key.prove(&auth, &octets, Some(78)), Err(Forged::Replayed));
        for other in [Key { id: 8, ..key.clone() }, Key { realm: Vec::new(), ..key.clone() }] {
            assert_eq!(other.prove(&auth, &octets, None), Err(Forged::Digest));
        }
        for at in 0..octets.len() {
            let mut changed = octets.clone();
            changed[at] ^= 1;
            assert_eq!(key.prove(&auth, &changed, None).is_err(), !is_digest(at, &octets), "octet {at}");
        }
        assert_eq!(key.prove(&auth, &octets[..9], None), Err(Forged::Digest));
    }

    /// What stands where the digest is counts as zeros; the digest itself is what the option said when it was read.
    fn is_digest(at: usize, octets: &[u8]) -> bool {
        at >= octets.len() - DIGEST
    }

    fn parse(octets: &[u8]) -> Opt {
        let Ok(super::super::codec::Packet::Message(message)) = super::super::codec::Packet::parse(octets)
        else {
            panic!()
        };
        message.options.into_iter().nth(1).unwrap()
    }
}
