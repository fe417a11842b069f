//! Sessions with the DTCP server, octet by octet: every file in `tests/transcripts/dtcp/` is played.
//!
//! ```text
//! # what is played
//! @ challenge 32 digits     what the greeting carries          @ udp           the extension is on
//! @ prefix 3ffe::           what address pairs begin with      @ give 0 [NETS] [udp/PORT]   what is granted
//! @ refuse KIND             grants are refused                 @ after 60      seconds go by, silently
//! @ lost                    a newer session takes the tunnel   @ throttled     no claim is looked at
//! C: octets from the client (\r \n escaped), or FIN
//! S: exactly the octets that the server says, or FIN; (up) and (down) are what happens to the tunnel
//! ```
//!
//! The only user is foo, with the secret bar. The client is 10.77.0.2 and the server 10.77.0.1, unless `@ ends` says else.

#![expect(clippy::unwrap_used, reason = "a test has nobody to return an error to")]

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use sixway::dtcp::codec::Challenge;
use sixway::dtcp::session::{Denied, Given, LOGIN_TIME, Output, Session, TUNNEL_TIME, Terms};

/// The server's side of one session, and what it has said that no line of the transcript has matched yet.
struct Play {
    terms: Terms,
    session: Option<Session>,
    now: Duration,
    grant: Result<Given, Denied>,
    throttled: bool,
    said: Vec<u8>,
}

impl Play {
    fn new() -> Self {
        let [client, server] = [[10, 77, 0, 2], [10, 77, 0, 1]].map(Ipv4Addr::from);
        let challenge = Challenge::new([0; 16]);
        Self {
            terms: Terms {
                challenge,
                client,
                server,
                host_prefix: None,
                udp: false,
                login_time: LOGIN_TIME,
                tunnel_time: TUNNEL_TIME,
            },
            session: None,
            now: Duration::from_secs(1000),
            grant: Ok(Given::default()),
            throttled: false,
            said: Vec::new(),
        }
    }

    fn set(&mut self, words: &[&str]) {
        match words {
            ["challenge", digits] => self.terms.challenge = challenge(digits),
            ["prefix", text] => self.terms.host_prefix = Some((*text).into()),
            ["udp"] => self.terms.udp = true,
            ["ends", client, server] => {
                (self.terms.client, self.terms.server) = (client.parse().unwrap(), server.parse().unwrap());
            }
            ["give", number, rest @ ..] => self.grant = Ok(given(number, rest)),
            ["refuse", "sold-out"] => self.grant = Err(Denied::SoldOut),
            ["refuse", "unnumbered"] => self.grant = Err(Denied::InterfaceName),
            ["refuse", "gone"] => self.grant = Err(Denied::Login),
            ["refuse", "other", why @ ..] => self.grant = Err(Denied::Other(why.join(" "))),
            ["throttled"] => self.throttled = true,
            ["lost"] => self.act(|session, _| session.handle_loss()),
            ["after", seconds] => {
                self.now += Duration::from_secs(seconds.parse().unwrap());
                self.act(|session, now| session.handle_timeout(now));
            }
            _ => panic!("unknown directive {words:?}"),
        }
    }

    fn act(&mut self, f: impl FnOnce(&mut Session, Duration)) {
        let now = self.now;
        let session = self.session.get_or_insert_with(|| Session::new(self.terms.clone(), now));
        f(session, now);
        loop {
            let outputs = session.poll_output();
            if outputs.is_empty() {
                return;
            }
            for output in outputs {
                match output {
                    Output::Send(octets) => self.said.extend(octets),
                    Output::Prove(_) if self.throttled => {
                        session.handle_proof(Err("too many attempts, try again in 60 s".to_owned()), now);
                    }
                    Output::Prove(claim) => {
                        session.handle_proof(Ok(claim.user == "foo" && claim.is_by(b"bar")), now)
                    }
                    Output::Grant(_) => {
                        // The tunnel carries packets before anybody is told.
                        self.said.extend(self.grant.is_ok().then_some(b"(up)").into_iter().flatten());
                        session.handle_grant(self.grant.clone(), now);
                    }
                    Output::Release => self.said.extend(b"(down)"),
                    Output::Finish => self.said.extend(b"FIN"),
                }
            }
        }
    }

    fn hear(&mut self, text: &str) {
        match text {
            "FIN" => self.act(|session, _| session.handle_end()),
            _ => self.act(|session, now| session.handle_input(&unescape(text), now)),
        }
    }

    fn expect(&mut self, text: &str, place: &str) {
        self.act(|_, _| ());
        let wanted = if text == "FIN" { b"FIN".to_vec() } else { unescape(text) };
        let said = &self.said[..wanted.len().min(self.said.len())];
        let shown = String::from_utf8_lossy(&self.said);
        assert_eq!(
            String::from_utf8_lossy(said),
            String::from_utf8_lossy(&wanted),
            "{place}; all: {shown:?}"
        );
        self.said.drain(..wanted.len());
    }
}

fn challenge(digits: &str) -> Challenge {
    let number = u128::from_str_radix(digits, 16).unwrap();
    Challenge::new(number.to_be_bytes())
}

fn given(number: &str, rest: &[&str]) -> Given {
    let mut given = Given { number: number.parse().unwrap(), ..Given::default() };
    for word in rest {
        match word.strip_prefix("udp/") {
            Some(port) => given.udp_port = Some(port.parse().unwrap()),
            None => given.networks = word.split(',').map(|net| net.parse().unwrap()).collect(),
        }
    }
    given
}

fn unescape(text: &str) -> Vec<u8> {
    text.replace("\\r", "\r").replace("\\n", "\n").into_bytes()
}

fn play(path: &Path) {
    let name = path.file_name().unwrap().to_string_lossy();
    let mut play = Play::new();
    for (n, line) in fs::read_to_string(path).unwrap().lines().enumerate() {
        let place = format!("{name}:{}: {line}", n + 1);
        match line.split_once(' ') {
            Some(("@", rest)) => play.set(&rest.split(' ').collect::<Vec<_>>()),
            Some(("C:", text)) => {
                assert!(
                    play.said.is_empty(),
                    "{place}: not said by then: {:?}",
                    String::from_utf8_lossy(&play.said)
                );
                play.hear(text);
            }
            Some(("S:", text)) => play.expect(text, &place),
            _ if line.is_empty() || line.starts_with('#') => {}
            _ => panic!("{place}: what is this?"),
        }
    }
    assert!(play.said.is_empty(), "{name}: at the end, besides: {:?}", String::from_utf8_lossy(&play.said));
}

#[test]
fn every_transcript_is_played_to_the_octet() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts/dtcp");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 15, "{} transcripts", files.len());
    files.iter().for_each(|path| play(path));
}

#[test]
fn every_reply_is_in_a_transcript() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts/dtcp");
    let all: String = fs::read_dir(folder)
        .unwrap()
        .map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap())
        .collect();
    for text in [
        "S: +OK hi, happy to hear from you",
        "S: +OK valid commands are: TUNNEL PING QUIT",
        "S: +OK see you soon.",
        "S: -ERR invalid command",
        "S: -ERR authentication failed.",
        "S: -ERR unsupported tunnel type ",
        "S: -ERR tunnel interface sold out",
        "S: -ERR internal error: tunnel interface name format is wrong",
        "S: -ERR connection timed out, disconnecting",
    ] {
        assert!(all.contains(text), "no transcript has {text}");
    }
}
