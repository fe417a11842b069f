//! Proofs of who somebody is, shared by protocols: SASL mechanisms (RFC 4422), the server's half and the client's.
//!
//! ```text
//!   server: Server::begin ─► Say(challenge) │ Listen      client: Client::begin ─► first message, if any
//!           Server::step  ─► Say │ Prove(claim) │ Failed          Client::step  ─► next message, if any
//!           claim.prove(secret) ─► last line │ None               Client::is_convinced, before success is believed
//! ```
//!
//! Messages are lines without their ends: base64 for DIGEST-MD5 and SCRAM-SHA-256, bare for PLAIN. Pure: the caller brings
//! randomness and the account's secret; what is compared is compared in constant time. Knows no protocol around it, no
//! sockets and no store.
//!
//! SCRAM-SHA-256 is made here of HMAC, SHA-256 and PBKDF2, not taken from a SASL library. rsasl, the one that is kept and
//! has both halves, draws its nonces by itself, so that no talk could be repeated octet by octet; it wants the account's
//! keys before anybody has claimed to know them; and it brings an older generation of five crates that are here already.
//! PASSDSS-3DES-1 is not here: SHA-1, single DSA keys of 1024 bits and
//! Triple-DES, asked for by nobody whose client does not know DIGEST-MD5 too.

mod digest;
mod plain;
mod scram;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use zeroize::Zeroizing;

pub use crate::broker::{Mechanism, Mechanisms};

/// The longest message of either side, in octets.
pub const MAX_MESSAGE: usize = 4096;

/// What all proofs at one server have in common.
#[derive(Clone)]
pub struct Site {
    /// The realm: part of what DIGEST-MD5 hashes.
    pub realm: String,
    /// The protocol's name in `digest-uri`, such as `tsp`.
    pub service: &'static str,
    /// Makes the salts of SCRAM: random, the same for as long as the server runs.
    pub salt: [u8; 32],
}

impl Site {
    /// 16 octets that nobody can tell from `text` who does not know the salt; they have nothing to do with those that
    /// users' salts are made of.
    pub fn token(&self, text: &[u8]) -> [u8; 16] {
        // No name of a user begins like that: it is no UTF-8.
        let mac = scram::hmac(&self.salt, &[b"\xff", text].concat());
        std::array::from_fn(|n| mac[n])
    }
}

impl std::fmt::Debug for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Site({}, {})", self.realm, self.service)
    }
}

/// What the server does next.
#[derive(Debug)]
pub enum Next {
    /// Say this line, without its end, and hear the answer.
    Say(Vec<u8>),
    /// There is nothing to say before the client's next message.
    Listen,
    /// The client claims to be somebody: look whether it is, by [`Claim::prove`].
    Prove(Claim),
    /// The client is nobody in particular.
    Anonymous,
    /// The login has failed; for the log, why.
    Failed(&'static str),
}

/// The server's half of one login.
#[derive(Debug)]
pub struct Server(Half);

#[derive(Debug)]
enum Half {
    Plain,
    Digest(digest::Server),
    Scram(scram::Server),
    Over,
}

impl Server {
    /// A client has chosen `mechanism`. `random` is new for each login.
    pub fn begin(site: &Site, mechanism: Mechanism, random: [u8; 16]) -> (Self, Next) {
        let (half, next) = match mechanism {
            Mechanism::Anonymous => (Half::Over, Next::Anonymous),
            Mechanism::Plain => (Half::Plain, Next::Listen),
            Mechanism::DigestMd5 => {
                let server = digest::Server::new(site, nonce(random));
                let challenge = encode(server.challenge().as_bytes());
                (Half::Digest(server), Next::Say(challenge))
            }
            Mechanism::ScramSha256 => (Half::Scram(scram::Server::new(site, nonce(random))), Next::Listen),
            Mechanism::Apop => (Half::Over, Next::Failed("APOP is no SASL mechanism")),
        };
        (Self(half), next)
    }

    /// The client's next message: a line without its end. No challenge is answered twice.
    pub fn step(&mut self, message: &[u8]) -> Next {
        if message.len() > MAX_MESSAGE {
            self.0 = Half::Over;
            return Next::Failed("the message is too long");
        }
        match std::mem::replace(&mut self.0, Half::Over) {
            Half::Plain => plain::claim(message).map_or_else(Next::Failed, Next::Prove),
            Half::Digest(server) => server.claim(message).map_or_else(Next::Failed, Next::Prove),
            Half::Scram(server) => match server.step(message) {
                Ok((server, next)) => {
                    self.0 = server.map_or(Half::Over, Half::Scram);
                    next
                }
                Err(why) => Next::Failed(why),
            },
            Half::Over => Next::Failed("the login is over"),
        }
    }
}

/// Somebody claims to be this user.
#[derive(Debug)]
pub struct Claim {
    user: String,
    mechanism: Mechanism,
    proof: Proof,
}

#[derive(Debug)]
enum Proof {
    Plain(Zeroizing<Vec<u8>>),
    Digest(digest::Response),
    Scram(scram::Response),
}

impl Claim {
    /// Whom; any text, not yet looked up.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// By which mechanism, for the account's policy.
    pub fn mechanism(&self) -> Mechanism {
        self.mechanism
    }

    /// Whether whoever claims it knows `secret`; if so, the line by which the server proves that it knows it too, empty
    /// where the mechanism has none. Say it before success is said.
    pub fn prove(&self, secret: &[u8]) -> Option<Vec<u8>> {
        match &self.proof {
            Proof::Plain(said) => crate::broker::account::same(said, secret).then(Vec::new),
            Proof::Digest(response) => response.prove(&self.user, secret).map(|line| encode(line.as_bytes())),
            Proof::Scram(response) => response.prove(secret).map(|line| encode(line.as_bytes())),
        }
    }
}

/// Why a client does not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server's {mechanism} message is wrong: {why}", mechanism = mechanism.name())]
pub struct BadServer {
    /// In which mechanism.
    pub mechanism: Mechanism,
    /// What is wrong.
    pub why: &'static str,
}

/// Who a client is.
#[derive(Clone)]
pub struct Identity {
    /// The user's name.
    pub user: String,
    /// What proves it; overwritten in memory when it goes.
    pub secret: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({}, secret)", self.user)
    }
}

/// The client's half of one login.
#[derive(Debug)]
pub struct Client {
    mechanism: Mechanism,
    who: Identity,
    half: ClientHalf,
}

#[derive(Debug)]
enum ClientHalf {
    Bare,
    Digest(digest::Client),
    Scram(scram::Client),
}

impl Client {
    /// `place` is what DIGEST-MD5 calls digest-uri: `tsp/broker.example`. `random` is new for each login.
    pub fn new(mechanism: Mechanism, who: Identity, place: &str, random: [u8; 16]) -> Self {
        let half = match mechanism {
            Mechanism::DigestMd5 => ClientHalf::Digest(digest::Client::new(place, nonce(random))),
            Mechanism::ScramSha256 => ClientHalf::Scram(scram::Client::new(&who.user, nonce(random))),
            Mechanism::Anonymous | Mechanism::Plain | Mechanism::Apop => ClientHalf::Bare,
        };
        Self { mechanism, who, half }
    }

    /// The first message, a line without its end, where the client speaks first.
    pub fn begin(&self) -> Option<Vec<u8>> {
        match (&self.half, self.mechanism) {
            (ClientHalf::Scram(client), _) => Some(encode(client.first().as_bytes())),
            (ClientHalf::Bare, Mechanism::Plain) => Some(plain::message(&self.who)),
            (ClientHalf::Bare | ClientHalf::Digest(_), _) => None,
        }
    }

    /// The server has said a line; the answer, if one is due. None is due to the server's own proof.
    ///
    /// # Errors
    /// That the server is not to be trusted, or not understood.
    pub fn step(&mut self, line: &[u8]) -> Result<Option<Vec<u8>>, BadServer> {
        let answer = match &mut self.half {
            ClientHalf::Bare => Err("nothing is expected there"),
            ClientHalf::Digest(client) => client.step(&self.who, line),
            ClientHalf::Scram(client) => client.step(&self.who, line),
        };
        let answer = answer.map_err(|why| BadServer { mechanism: self.mechanism, why })?;
        Ok(answer.map(|text| encode(text.as_bytes())))
    }

    /// Whether the server has proven all that the mechanism has it prove. Only then success is believed.
    pub fn is_convinced(&self) -> bool {
        match &self.half {
            ClientHalf::Bare => true,
            ClientHalf::Digest(client) => client.is_convinced(),
            ClientHalf::Scram(client) => client.is_convinced(),
        }
    }
}

/// Lower-case digits: nothing in it has to be quoted or can be mistaken.
fn hexadecimal(octets: &[u8]) -> String {
    use std::fmt::Write;
    octets.iter().fold(String::new(), |mut text, octet| {
        let _never_fails = write!(text, "{octet:02x}");
        text
    })
}

fn nonce(random: [u8; 16]) -> String {
    hexadecimal(&random)
}

/// With padding when written, with or without when read.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

fn encode(octets: &[u8]) -> Vec<u8> {
    BASE64.encode(octets).into_bytes()
}

/// The text behind a line of base64; white space and NULs around it do not count.
fn decode(line: &[u8]) -> Result<String, &'static str> {
    let kept = |octet: &u8| !octet.is_ascii_whitespace() && *octet != 0;
    let first = line.iter().position(kept).unwrap_or(line.len());
    let last = line.iter().rposition(kept).map_or(first, |at| at + 1);
    let octets = BASE64.decode(&line[first..last]).map_err(|_| "it is no base64")?;
    String::from_utf8(octets).map_err(|_| "it is no UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn site() -> Site {
        Site { realm: "broker.example".to_owned(), service: "tsp", salt: [9; 32] }
    }

    fn alice(secret: &str) -> Identity {
        Identity { user: "alice".to_owned(), secret: Zeroizing::new(secret.into()) }
    }

    /// Both halves talk until one has had enough: the user whom the server believes, and whether the client does.
    fn talk(mechanism: Mechanism, said: &str, kept: &str) -> (Option<String>, bool) {
        let (mut server, mut next) = Server::begin(&site(), mechanism, [1; 16]);
        let mut client = Client::new(mechanism, alice(said), "tsp/broker.example", [2; 16]);
        let mut message = client.begin();
        for _ in 0..4 {
            next = match next {
                Next::Say(line) => {
                    message = client.step(&line).unwrap();
                    server.step(&message.take().unwrap())
                }
                Next::Listen => server.step(&message.take().unwrap()),
                Next::Prove(claim) => {
                    assert_eq!(claim.mechanism(), mechanism);
                    let Some(line) = claim.prove(kept.as_bytes()) else {
                        return (None, client.is_convinced());
                    };
                    if !line.is_empty() {
                        assert_eq!(client.step(&line), Ok(None));
                    }
                    return (Some(claim.user().to_owned()), client.is_convinced());
                }
                Next::Anonymous => return (Some(String::new()), client.is_convinced()),
                Next::Failed(why) => panic!("{why}"),
            };
        }
        panic!("no end");
    }

    #[test]
    fn the_right_secret_convinces_both_and_a_wrong_one_nobody() {
        for mechanism in [Mechanism::Plain, Mechanism::DigestMd5, Mechanism::ScramSha256] {
            assert_eq!(talk(mechanism, "hush", "hush"), (Some("alice".to_owned()), true));
            assert_eq!(talk(mechanism, "hush", "hus").0, None);
            assert_eq!(talk(mechanism, "höß, 字", "höß, 字").0, Some("alice".to_owned()));
        }
        assert!(!talk(Mechanism::DigestMd5, "hush", "x").1 && !talk(Mechanism::ScramSha256, "hush", "x").1);
        assert_eq!(talk(Mechanism::Anonymous, "", ""), (Some(String::new()), true));
    }

    #[test]
    fn a_challenge_is_answered_once() {
        for mechanism in [Mechanism::Plain, Mechanism::DigestMd5, Mechanism::ScramSha256] {
            let (mut server, _) = Server::begin(&site(), mechanism, [1; 16]);
            server.step(b"AAAA");
            assert!(matches!(server.step(b"AAAA"), Next::Failed("the login is over")), "{mechanism:?}");
        }
        let (mut server, next) = Server::begin(&site(), Mechanism::Apop, [1; 16]);
        assert!(matches!(next, Next::Failed(_)) && matches!(server.step(b"x"), Next::Failed(_)));
    }

    #[test]
    fn base64_is_read_with_and_without_padding() {
        assert_eq!(decode(b"YWI=\r\n\0"), Ok("ab".to_owned()));
        assert_eq!(decode(b" YWI"), Ok("ab".to_owned()));
        assert_eq!(decode(b""), Ok(String::new()));
        assert!(decode(b"!").is_err() && decode(b"//8=").is_err());
    }

    proptest! {
        #[test]
        fn no_message_harms_either_half(message: Vec<u8>, text in "[a-z0-9=,\"\\\\ ]{0,80}") {
            for mechanism in Mechanism::ALL {
                for octets in [message.clone(), encode(text.as_bytes())] {
                    let (mut server, _) = Server::begin(&site(), mechanism, [1; 16]);
                    if let Next::Prove(claim) = server.step(&octets) {
                        prop_assert!(mechanism == Mechanism::Plain || claim.prove(b"x").is_none());
                    }
                    let mut client = Client::new(mechanism, alice("x"), "tsp/x", [2; 16]);
                    let _any = client.step(&octets);
                    let _any = client.step(&octets);
                    prop_assert!(matches!(client.half, ClientHalf::Bare) || !client.is_convinced());
                }
            }
        }
    }
}
