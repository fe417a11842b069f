//! SCRAM-SHA-256 (RFC 5802, RFC 7677): neither side learns the secret from the other, and both prove to know it.
//!
//! No channel binding, since what it would be bound to is not encrypted. Names and secrets are taken as they are: those of
//! accounts are printable ASCII nearly always, and SASLprep (RFC 4013) changes nothing in them.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::{Claim, Identity, Mechanism, Next, Proof, Site, decode, encode};

/// Rounds of PBKDF2: the least that RFC 7677 section 4 allows. A login costs the server so many.
const ROUNDS: u32 = 4096;
/// The most that a client computes for a server: a third of a second or so.
const MOST_ROUNDS: u32 = 1_000_000;
/// `n,,` in base64: no channel binding, nobody else's name.
const NO_BINDING: &str = "biws";
/// The header of a client that could bind if the server could, in base64.
const UNUSED_BINDING: &str = "eSws";

pub(super) type Key = Zeroizing<[u8; 32]>;

pub(super) fn hmac(key: &[u8], text: &[u8]) -> Key {
    // HMAC takes keys of any length.
    let Ok(mut mac) = <Hmac<Sha256> as KeyInit>::new_from_slice(key) else { return Key::default() };
    mac.update(text);
    Zeroizing::new(mac.finalize().into_bytes().into())
}

fn salted(secret: &[u8], salt: &[u8], rounds: u32) -> Key {
    let mut key = Key::default();
    pbkdf2::pbkdf2_hmac::<Sha256>(secret, salt, rounds, key.as_mut_slice());
    key
}

/// What proves a side's knowledge of `salted`, for this talk.
fn proof_of_client(salted: &Key, talk: &str) -> [u8; 32] {
    let key = hmac(salted.as_slice(), b"Client Key");
    let stored: [u8; 32] = Sha256::digest(key.as_slice()).into();
    let signature = hmac(&stored, talk.as_bytes());
    std::array::from_fn(|n| key[n] ^ signature[n])
}

fn proof_of_server(salted: &Key, talk: &str) -> Key {
    let key = hmac(salted.as_slice(), b"Server Key");
    hmac(key.as_slice(), talk.as_bytes())
}

/// `r=...` at the beginning of a part.
fn part(part: Option<&str>, letter: char) -> Result<&str, &'static str> {
    let rest = part.and_then(|text| text.strip_prefix(letter)?.strip_prefix('='));
    rest.ok_or("a part of it is missing or in the wrong place")
}

/// The server's half.
#[derive(Debug)]
pub(super) struct Server {
    salts: [u8; 32],
    nonce: String,
    asked: Option<Asked>,
}

/// The client's first message is in.
#[derive(Debug)]
struct Asked {
    user: String,
    salt: [u8; 16],
    /// Both sides' nonces.
    nonces: String,
    /// What the client's last message must begin with.
    binding: &'static str,
    /// Both first messages.
    talk: String,
}

impl Server {
    pub(super) fn new(site: &Site, nonce: String) -> Self {
        Self { salts: site.salt, nonce, asked: None }
    }

    pub(super) fn step(mut self, message: &[u8]) -> Result<(Option<Self>, Next), &'static str> {
        let text = decode(message)?;
        let Some(asked) = self.asked.take() else {
            let (asked, answer) = self.first(&text)?;
            self.asked = Some(asked);
            return Ok((Some(self), Next::Say(encode(answer.as_bytes()))));
        };
        Ok((None, Next::Prove(asked.claim(&text)?)))
    }

    fn first(&self, text: &str) -> Result<(Asked, String), &'static str> {
        let mut header = text.splitn(3, ',');
        let binding = match header.next() {
            Some("n") => NO_BINDING,
            Some("y") => UNUSED_BINDING,
            Some(_) | None => return Err("channels are not bound"),
        };
        if header.next() != Some("") {
            return Err("nobody can act for another user");
        }
        let bare = header.next().ok_or("a part of it is missing or in the wrong place")?;
        let mut parts = bare.split(',');
        let user = unescaped(part(parts.next(), 'n')?)?;
        let theirs = part(parts.next(), 'r')?;
        if theirs.is_empty() || !theirs.bytes().all(|octet| octet.is_ascii_graphic()) {
            return Err("the nonce is none");
        }
        let (salt, nonces) = (self.salt(&user), format!("{theirs}{}", self.nonce));
        let answer = format!("r={nonces},s={},i={ROUNDS}", text_of(&salt));
        let talk = format!("{bare},{answer}");
        Ok((Asked { user, salt, nonces, binding, talk }, answer))
    }

    /// The same for a user each time, whether there is such a user or not.
    fn salt(&self, user: &str) -> [u8; 16] {
        let mac = hmac(&self.salts, user.as_bytes());
        std::array::from_fn(|n| mac[n])
    }
}

impl Asked {
    fn claim(self, text: &str) -> Result<Claim, &'static str> {
        let (bare, proof) = text.rsplit_once(",p=").ok_or("a part of it is missing or in the wrong place")?;
        let mut parts = bare.split(',');
        if part(parts.next(), 'c')? != self.binding {
            return Err("the channel binding is not what was said first");
        }
        let right: bool = part(parts.next(), 'r')?.as_bytes().ct_eq(self.nonces.as_bytes()).into();
        if !right {
            return Err("the nonce is not ours");
        }
        let proof = octets_of(proof).and_then(|octets| octets.try_into().ok()).ok_or("the proof is none")?;
        let response = Response { salt: self.salt, talk: format!("{},{bare}", self.talk), proof };
        let mechanism = Mechanism::ScramSha256;
        Ok(Claim { user: self.user, mechanism, proof: Proof::Scram(response) })
    }
}

/// A proof that has not been looked at.
#[derive(Debug)]
pub(super) struct Response {
    salt: [u8; 16],
    talk: String,
    proof: [u8; 32],
}

impl Response {
    /// The server's own proof, where the client knows `secret`.
    pub(super) fn prove(&self, secret: &[u8]) -> Option<String> {
        let salted = salted(secret, &self.salt, ROUNDS);
        let right: bool = proof_of_client(&salted, &self.talk).ct_eq(&self.proof).into();
        right.then(|| format!("v={}", text_of(proof_of_server(&salted, &self.talk).as_slice())))
    }
}

/// The client's half.
#[derive(Debug)]
pub(super) struct Client {
    nonce: String,
    bare: String,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    First,
    /// The server must prove itself by this.
    Answered(Key),
    Convinced,
    Failed,
}

impl Client {
    pub(super) fn new(user: &str, nonce: String) -> Self {
        let name = user.replace('=', "=3D").replace(',', "=2C");
        Self { bare: format!("n={name},r={nonce}"), nonce, stage: Stage::First }
    }

    pub(super) fn first(&self) -> String {
        format!("n,,{}", self.bare)
    }

    pub(super) fn is_convinced(&self) -> bool {
        matches!(self.stage, Stage::Convinced)
    }

    pub(super) fn step(&mut self, who: &Identity, line: &[u8]) -> Result<Option<String>, &'static str> {
        let text = decode(line)?;
        match std::mem::replace(&mut self.stage, Stage::Failed) {
            Stage::First => self.answer(who, &text).map(Some),
            Stage::Answered(wanted) => {
                if text.starts_with("e=") {
                    return Err("it does not believe us");
                }
                let said = octets_of(part(text.split(',').next(), 'v')?).ok_or("the proof is none")?;
                let right: bool = said.ct_eq(wanted.as_slice()).into();
                if !right {
                    return Err("it does not know our password");
                }
                self.stage = Stage::Convinced;
                Ok(None)
            }
            Stage::Convinced | Stage::Failed => Err("nothing is expected there"),
        }
    }

    fn answer(&mut self, who: &Identity, first: &str) -> Result<String, &'static str> {
        let mut parts = first.split(',');
        let nonces = part(parts.next(), 'r')?;
        if nonces.strip_prefix(&self.nonce).is_none_or(str::is_empty) {
            return Err("the nonce is not ours");
        }
        let salt = octets_of(part(parts.next(), 's')?).ok_or("the salt is none")?;
        let rounds: u32 = part(parts.next(), 'i')?.parse().map_err(|_| "the number of rounds is none")?;
        if !(ROUNDS..=MOST_ROUNDS).contains(&rounds) {
            return Err("it wants too few rounds to be safe, or too many");
        }
        let bare = format!("c={NO_BINDING},r={nonces}");
        let talk = format!("{},{first},{bare}", self.bare);
        let salted = salted(&who.secret, &salt, rounds);
        self.stage = Stage::Answered(proof_of_server(&salted, &talk));
        Ok(format!("{bare},p={}", text_of(&proof_of_client(&salted, &talk))))
    }
}

fn unescaped(name: &str) -> Result<String, &'static str> {
    let mut parts = name.split('=');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for rest in parts {
        let (letter, rest) = match rest.split_at_checked(2) {
            Some(("2C", rest)) => (',', rest),
            Some(("3D", rest)) => ('=', rest),
            Some(_) | None => return Err("the name is not escaped"),
        };
        text.push(letter);
        text.push_str(rest);
    }
    if text.is_empty() { Err("the name is missing") } else { Ok(text) }
}

fn text_of(octets: &[u8]) -> String {
    String::from_utf8_lossy(&encode(octets)).into_owned()
}

fn octets_of(text: &str) -> Option<Vec<u8>> {
    base64::Engine::decode(&super::BASE64, text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
    const NONCES: &str = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    const SALT: &str = "W22ZaJ0SNY7soEsUEjb6gQ==";
    const FINAL: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
    const LAST: &str = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";

    fn line(text: &str) -> Vec<u8> {
        encode(text.as_bytes())
    }

    fn user() -> Identity {
        Identity { user: "user".to_owned(), secret: Zeroizing::new(b"pencil".to_vec()) }
    }

    fn client() -> Client {
        Client::new("user", "rOprNGfwEbeRWgbNEkqO".to_owned())
    }

    fn server_first() -> String {
        format!("{NONCES},s={SALT},i=4096")
    }

    /// RFC 7677 section 3.
    #[test]
    fn the_client_talks_as_the_rfc_s_does() {
        let mut client = client();
        assert_eq!(client.first(), FIRST);
        let answer = client.step(&user(), &line(&server_first())).unwrap();
        assert_eq!(answer.as_deref(), Some(FINAL));
        assert_eq!(client.step(&user(), &line(LAST)), Ok(None));
        assert!(client.is_convinced());
    }

    #[test]
    fn the_server_talks_as_the_rfc_s_does() {
        let asked = Asked {
            user: "user".to_owned(),
            salt: octets_of(SALT).unwrap().try_into().unwrap(),
            nonces: NONCES[2..].to_owned(),
            binding: NO_BINDING,
            talk: format!("{},{}", &FIRST[3..], server_first()),
        };
        let claim = asked.claim(FINAL).unwrap();
        assert_eq!(claim.prove(b"pencil"), Some(line(LAST)));
        assert_eq!(claim.prove(b"pen"), None);
    }

    fn server() -> Server {
        Server { salts: [7; 32], nonce: "abc".to_owned(), asked: None }
    }

    fn said(server: Server, text: &str) -> Result<(Option<Server>, String), &'static str> {
        match server.step(&line(text))? {
            (server, Next::Say(said)) => Ok((server, decode(&said)?)),
            (_, other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_user_has_one_salt_whether_there_is_one_or_not() {
        let (_, first) = said(server(), "n,,n=a=2Cb=3D,r=x").unwrap();
        let (_, again) = said(server(), "y,,n=a=2Cb=3D,r=x").unwrap();
        let (_, other) = said(server(), "n,,n=bob,r=x").unwrap();
        assert!(first.starts_with("r=xabc,s=") && first.ends_with(",i=4096"));
        assert!(first == again && first != other);
    }

    #[test]
    fn what_is_wrong_with_messages_is_seen() {
        for wrong in [
            "",
            "n",
            "p=tls-unique,,n=a,r=x",
            "n,a=b,n=a,r=x",
            "n,,r=x",
            "n,,n=a",
            "n,,n=,r=x",
            "n,,n=a=,r=x",
            "n,,n=a,r=",
            "n,,m=x,n=a,r=x",
        ] {
            assert!(said(server(), wrong).is_err(), "{wrong}");
        }
        for wrong in
            ["", "c=biws,r=xabc", "c=eSws,r=xabc,p=AAAA", "c=biws,r=xabd,p=AAAA", "c=biws,r=xabc,p=AAAA"]
        {
            let (next, _) = said(server(), "n,,n=a,r=x").unwrap();
            assert!(next.unwrap().step(&line(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_server_that_cheats_is_not_believed() {
        for wrong in [
            format!("r=rOprNGfwEbeRWgbNEkqO,s={SALT},i=4096"),
            format!("r=other,s={SALT},i=4096"),
            format!("{NONCES},s={SALT},i=1"),
            format!("{NONCES},s={SALT},i=100000000"),
            format!("{NONCES},s=!,i=4096"),
        ] {
            assert!(client().step(&user(), &line(&wrong)).is_err(), "{wrong}");
        }
        for wrong in ["e=invalid-proof", "v=AAAA", "x", LAST.trim_end_matches('=')] {
            let mut client = client();
            client.step(&user(), &line(&server_first())).unwrap();
            let is_right = wrong == LAST.trim_end_matches('=');
            assert_eq!(client.step(&user(), &line(wrong)).is_ok(), is_right, "{wrong}");
            assert_eq!(client.is_convinced(), is_right);
        }
    }
}
