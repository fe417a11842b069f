//! What a client believes of a Reconfigure (RFC 8415 sections 18.2.11 and 20.4): only what is made with the key that its
//! server has given it in a Reply, and only once. Pure.

use dhcproto::v6::{Authentication, DhcpOption, MessageType};
use hmac::{Hmac, KeyInit, Mac};
use md5::Md5;
use zeroize::Zeroizing;

use super::codec::{Message, Opt};

/// Octets of a key and of a digest.
const DIGEST: usize = 16;
/// The protocol of Reconfigure keys, HMAC-MD5, numbers that grow.
const BY_KEY: (u8, u8, u8) = (3, 1, 0);
const HOLDS_KEY: u8 = 1;
const HOLDS_DIGEST: u8 = 2;

/// What a server has given us to know its Reconfigure messages by.
#[derive(Default)]
pub(super) struct Trust {
    key: Option<Zeroizing<[u8; DIGEST]>>,
    last: u64,
}

/// A Reconfigure that our server has made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Summons {
    /// What it asks for.
    pub(super) kind: MessageType,
    number: u64,
}

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Trust(key: {}, last {})", self.key.is_some(), self.last)
    }
}

impl Trust {
    /// Takes the key out of a Reply, if one is in it.
    pub(super) fn learn(&mut self, reply: &Message) {
        let Some(auth) = auth(reply).filter(|auth| is_by_key(auth)) else { return };
        let key = auth.info.strip_prefix(&[HOLDS_KEY]).and_then(|key| <[u8; DIGEST]>::try_from(key).ok());
        if let Some(key) = key {
            (self.key, self.last) = (Some(Zeroizing::new(key)), auth.replay_detection);
        }
    }

    /// What a Reconfigure asks for, if it is our server's: Renew, Rebind or Information-request. It may be heard again until it
    /// has been [obeyed](Self::obeyed).
    pub(super) fn summons(&self, message: &Message) -> Option<Summons> {
        let found = auth(message).filter(|auth| is_by_key(auth))?;
        let digest = found.info.strip_prefix(&[HOLDS_DIGEST]).filter(|digest| digest.len() == DIGEST)?;
        let blank: Vec<Opt> = message.options.iter().map(blanked).collect();
        let octets = Message { options: blank, ..message.clone() }.emit();
        let key = self.key.as_ref()?;
        let mut mac = Hmac::<Md5>::new_from_slice(&key[..]).ok()?;
        mac.update(&octets);
        mac.verify_slice(digest).ok()?;
        // After the digest: who has no key moves nothing.
        let is_later = found.replay_detection.wrapping_sub(self.last) as i64 > 0;
        let mut kinds = message.options.iter().filter_map(|option| {
            if let Opt::Leaf(DhcpOption::ReconfMsg(kind)) = option { Some(*kind) } else { None }
        });
        let kind = kinds.next().filter(|_| is_later)?;
        Some(Summons { kind, number: found.replay_detection })
    }

    /// This one is done, and none of before is heard any more.
    pub(super) fn obeyed(&mut self, summons: &Summons) {
        self.last = summons.number;
    }

    /// Another server will be asked.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }
}

fn auth(message: &Message) -> Option<&Authentication> {
    message.options.iter().find_map(|option| {
        if let Opt::Leaf(DhcpOption::Authentication(auth)) = option { Some(auth) } else { None }
    })
}

fn is_by_key(auth: &Authentication) -> bool {
    (auth.proto, auth.algo, auth.rdm) == BY_KEY
}

/// The option as it is when the digest is made.
fn blanked(option: &Opt) -> Opt {
    let mut option = option.clone();
    if let Opt::Leaf(DhcpOption::Authentication(auth)) = &mut option
        && let Some(digest) = auth.info.get_mut(1..)
    {
        digest.fill(0);
    }
    option
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; DIGEST] = *b"sixteen octets!!";

    fn authentication(replay_detection: u64, info: Vec<u8>) -> Opt {
        let (proto, algo, rdm) = BY_KEY;
        Opt::Leaf(DhcpOption::Authentication(Authentication { proto, algo, rdm, replay_detection, info }))
    }

    fn reconfigure(replay: u64, key: &[u8]) -> Message {
        let client = Opt::Leaf(DhcpOption::ClientId(vec![1, 2]));
        let what = Opt::Leaf(DhcpOption::ReconfMsg(MessageType::Renew));
        let make = |info| vec![client.clone(), what.clone(), authentication(replay, info)];
        let blank = make([&[HOLDS_DIGEST][..], &[0; DIGEST]].concat());
        let blank = Message { kind: MessageType::Reconfigure, xid: [0; 3], options: blank };
        let mut mac = Hmac::<Md5>::new_from_slice(key).unwrap();
        mac.update(&blank.emit());
        let digest = mac.finalize().into_bytes();
        Message { options: make([&[HOLDS_DIGEST][..], &digest].concat()), ..blank }
    }

    #[test]
    fn only_the_key_s_owner_is_believed_and_only_once() {
        let mut trust = Trust::default();
        assert_eq!(trust.summons(&reconfigure(8, &KEY)), None, "no key is known");
        let key = authentication(7, [&[HOLDS_KEY][..], &KEY].concat());
        trust.learn(&Message { kind: MessageType::Reply, xid: [1; 3], options: vec![key] });
        assert_eq!(trust.summons(&reconfigure(8, b"another key is 1")), None);
        assert_eq!(trust.summons(&reconfigure(7, &KEY)), None, "no number that grows");
        let good = reconfigure(8, &KEY);
        let mut forged = good.clone();
        forged.options[1] = Opt::Leaf(DhcpOption::ReconfMsg(MessageType::Rebind));
        assert_eq!(trust.summons(&forged), None);
        let summons = trust.summons(&good).unwrap();
        assert_eq!(summons.kind, MessageType::Renew);
        assert_eq!(trust.summons(&good), Some(summons), "it has not been obeyed yet");
        trust.obeyed(&summons);
        assert_eq!(trust.summons(&good), None, "it has been here before");
        trust.forget();
        assert_eq!(trust.summons(&reconfigure(9, &KEY)), None);
    }
}
