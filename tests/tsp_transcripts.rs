//! Sessions with the TSP server, octet by octet: every file in `tests/transcripts/tsp/` is played.
//!
//! ```text
//! # what is played
//! @ udp                     over UDP: lines begin with a header of 16 digits; over TCP unless this is said
//! @ mechanisms A B          what is offered           @ tunnels v6v4 v6udpv4    what is given out
//! @ brokers A B             where else to go          @ redirect version|login|create
//! @ keepalive 30            what everybody is told    @ domain broker.example   behind users' names
//! @ proxy                   tunnels to other boxes    @ public 203.0.113.1      behind a NAT of our own
//! @ network 2001:db8:1234::/48   what is given to those who want a network
//! @ refuse 301              grants are refused        @ slow / @ now            grants wait / are decided
//! @ has v6v4                the user has a tunnel     @ drain                   clients are sent elsewhere
//! @ after 60                seconds go by             @ from 192.0.2.9:4000     where the client is
//! C: octets from the client (\r \n \0 escaped), or FIN
//! S: exactly one write or one datagram of the server, or FIN, (pause), (taken), (down), (forgotten); S: nothing
//! ```
//!
//! The users are alice with the secret wonderland, and nobody. The server is 192.0.2.1, port 3653, and its realm
//! broker.example; the nonce of every login is 000102...0f.

#![expect(clippy::unwrap_used, reason = "a test has nobody to return an error to")]

use std::collections::VecDeque;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sixway::auth::{Mechanism, Site};
use sixway::broker::UserName;
use sixway::tsp::codec::{Code, Mode};
use sixway::tsp::flows::{Act, Ends, Flows};
use sixway::tsp::session::{Output, Session};
use sixway::tsp::terms::{Found, Given, Offer, Step, Terms, Transport};
use sixway::tsp::want::{Network, Want};
use sixway::tsp::xml::{BrokerAt, Name, Net};

const RANDOM: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// One session or one endpoint's sessions, and what was said that no line of the transcript has matched yet.
struct Play {
    offer: Offer,
    udp: bool,
    ends: Ends,
    now: Duration,
    network: Option<Net>,
    refusal: Option<Code>,
    /// Why an offer cannot be had any more when it is accepted.
    late: Option<Code>,
    slow: bool,
    draining: bool,
    has: Option<Mode>,
    agreed: u32,
    waiting: Option<(u64, Want)>,
    session: Option<Session>,
    flows: Option<Flows>,
    said: VecDeque<Vec<u8>>,
}

fn mechanism(name: &str) -> Mechanism {
    Mechanism::parse(name).unwrap()
}

impl Play {
    fn new() -> Self {
        let site = Site { realm: "broker.example".into(), service: "tsp", salt: [7; 32] };
        let offer = Offer {
            tunnels: vec![Mode::V6V4, Mode::V6UdpV4],
            mechanisms: ["DIGEST-MD5", "PLAIN", "ANONYMOUS"].map(mechanism).into(),
            site,
            brokers: Vec::new(),
            redirect: None,
            lifetime: 604_800,
            keepalive: None,
            anonymous_keepalive: None,
            dns: vec!["2001:db8::53".parse().unwrap()],
            domain: None,
            proxy: false,
            public_address: None,
        };
        let [remote, local] =
            ["192.0.2.9:40000", "192.0.2.1:3653"].map(|at| at.parse::<SocketAddrV4>().unwrap());
        Self {
            offer,
            udp: false,
            ends: Ends { remote, local },
            now: Duration::from_secs(1000),
            network: Some(("2001:db8:1234::".parse().unwrap(), 48)),
            refusal: None,
            late: None,
            slow: false,
            draining: false,
            has: None,
            agreed: 0,
            waiting: None,
            session: None,
            flows: None,
            said: VecDeque::new(),
        }
    }

    fn set(&mut self, words: &[&str]) {
        match words {
            ["udp"] => self.udp = true,
            ["mechanisms", names @ ..] => {
                self.offer.mechanisms = names.iter().map(|name| mechanism(name)).collect()
            }
            ["tunnels", names @ ..] => {
                self.offer.tunnels = names.iter().map(|name| name.parse().unwrap()).collect()
            }
            ["brokers", all @ ..] => {
                self.offer.brokers = all.iter().map(|at| BrokerAt::parse(at).unwrap()).collect()
            }
            ["redirect", "version"] => self.offer.redirect = Some(Step::Version),
            ["redirect", "login"] => self.offer.redirect = Some(Step::Login),
            ["redirect", "create"] => self.offer.redirect = Some(Step::Create),
            ["keepalive", seconds] => self.offer.keepalive = Some(seconds.parse().unwrap()),
            ["anonymous-keepalive", seconds] => {
                self.offer.anonymous_keepalive = Some(seconds.parse().unwrap())
            }
            ["agreed", seconds] => self.agreed = seconds.parse().unwrap(),
            ["domain", name] => self.offer.domain = Name::parse(name),
            ["proxy"] => self.offer.proxy = true,
            ["public", addr] => self.offer.public_address = Some(addr.parse().unwrap()),
            ["network", net] => self.network = Some(network(net)),
            ["late", code] => self.late = Some(Code::from_number(code.parse().unwrap())),
            ["refuse", code] => self.refusal = Some(Code::from_number(code.parse().unwrap())),
            ["slow"] => self.slow = true,
            ["now"] => self.decide(),
            ["has", mode] => self.has = Some(mode.parse().unwrap()),
            ["drain"] => self.draining = true,
            ["from", at] => self.ends.remote = at.parse().unwrap(),
            ["after", seconds] => {
                self.now += Duration::from_secs(seconds.parse().unwrap());
                let now = self.now;
                if self.udp {
                    self.flows().handle_timeout(now)
                } else {
                    self.session().handle_timeout(now)
                }
                self.obey();
            }
            _ => panic!("unknown directive {words:?}"),
        }
    }

    fn session(&mut self) -> &mut Session {
        let terms = Terms {
            transport: Transport::Tcp,
            peer: *self.ends.remote.ip(),
            local: *self.ends.local.ip(),
            random: RANDOM,
            offer: Arc::new(self.offer.clone()),
        };
        let session = self.session.get_or_insert_with(|| Session::new(terms, self.now));
        session.set_draining(self.draining);
        session
    }

    fn flows(&mut self) -> &mut Flows {
        let flows = self.flows.get_or_insert_with(|| Flows::new(Arc::new(self.offer.clone()), 100));
        flows.set_terms(Arc::new(self.offer.clone()), self.draining);
        flows
    }

    fn say(&mut self, what: &str) {
        self.said.push_back(what.as_bytes().to_vec());
    }

    fn obey(&mut self) {
        loop {
            let acts: Vec<(Option<u64>, Output)> = if self.udp {
                let all = self.flows().poll_acts().into_iter().map(|act| match act {
                    Act::Send(_, payload) => (None, Output::Send(payload)),
                    Act::Do(_, number, output) => (Some(number), output),
                });
                all.collect()
            } else {
                self.session().poll_output().into_iter().map(|output| (Some(0), output)).collect()
            };
            if acts.is_empty() {
                return;
            }
            for (number, output) in acts {
                self.act(number.unwrap_or_default(), output);
            }
        }
    }

    fn act(&mut self, number: u64, output: Output) {
        match output {
            Output::Send(octets) => self.said.push_back(octets),
            Output::Pause => self.say("(pause)"),
            Output::Accepted => {
                self.say("(taken)");
                let taken = self.late.map_or(Ok(()), Err);
                self.tell(number, |session, now| session.handle_taken(taken, now));
            }
            Output::Release => self.say("(down)"),
            Output::Finish if self.udp => self.say("(forgotten)"),
            Output::Finish => self.say("FIN"),
            Output::Prove(claim) => {
                let secret: &[u8] = if claim.user() == "alice" { b"wonderland" } else { b"(nobody's)" };
                let line = claim.prove(secret);
                let user = UserName::parse(claim.user()).ok().filter(|user| user.as_str() == "alice");
                let proof = user.zip(line);
                self.tell(number, |session, now| session.handle_proof(proof, now));
            }
            Output::Grant(want) => {
                self.waiting = Some((number, want));
                if !self.slow {
                    self.decide();
                }
            }
            Output::Find(user) => {
                assert_eq!(user.as_str(), "alice");
                let given = self.given(Network::Any);
                let (end, keepalive) = (Ipv4Addr::new(192, 0, 2, 9), self.agreed);
                let found = self.has.map(|mode| Found { mode, end, given, keepalive });
                self.tell(number, |session, now| session.handle_found(found, now));
            }
            Output::Delete(_) => {
                self.say("(down)");
                self.tell(number, |session, now| session.handle_deleted(now));
            }
        }
    }

    fn decide(&mut self) {
        let (number, want) = self.waiting.take().unwrap();
        let given = self.given(want.network);
        let answer = self.refusal.map_or(Ok(given), Err);
        self.tell(number, |session, now| session.handle_grant(answer, now));
        self.obey();
    }

    fn given(&self, wanted: Network) -> Given {
        let address = |text: &str| text.parse::<Ipv6Addr>().unwrap();
        let network = self.network.filter(|_| wanted != Network::None);
        Given { server: address("2001:db8:f0::1"), client: address("2001:db8:f0::2"), network }
    }

    fn tell(&mut self, number: u64, answer: impl FnOnce(&mut Session, Duration)) {
        let (ends, now) = (self.ends, self.now);
        if self.udp {
            if !self.flows().handle_answer(ends, number, now, |session| answer(session, now)) {
                self.say("(nobody)");
            }
        } else {
            answer(self.session(), now);
        }
    }

    fn hear(&mut self, text: &str) {
        let now = self.now;
        match text {
            "FIN" => self.session().handle_end(),
            _ if self.udp => {
                let (ends, octets) = (self.ends, datagram(text));
                self.flows().handle_datagram(ends, &octets, RANDOM, now);
            }
            _ => self.session().handle_input(&unescape(text), now),
        }
        self.obey();
    }

    fn expect(&mut self, text: &str, place: &str) {
        let is_event = text == "FIN" || text.starts_with('(');
        let wanted = if self.udp && !is_event { datagram(text) } else { unescape(text) };
        let said = self.said.pop_front().unwrap_or_else(|| panic!("{place}: nothing more was said"));
        assert_eq!(escape(&said), escape(&wanted), "{place}");
    }
}

fn network(text: &str) -> Net {
    let (addr, len) = text.split_once('/').unwrap();
    (addr.parse().unwrap(), len.parse().unwrap())
}

/// A header of 16 digits, a blank, then text; without a header where a `=` stands in front.
fn datagram(text: &str) -> Vec<u8> {
    if let Some(bare) = text.strip_prefix('=') {
        return unescape(bare);
    }
    let (header, payload) = text.split_once(' ').unwrap_or((text, ""));
    let header = u64::from_str_radix(header, 16).unwrap().to_be_bytes();
    [&header[..], &unescape(payload)].concat()
}

fn unescape(text: &str) -> Vec<u8> {
    text.replace("\\r", "\r").replace("\\n", "\n").replace("\\0", "\0").into_bytes()
}

fn escape(octets: &[u8]) -> String {
    octets.escape_ascii().to_string()
}

fn play(path: &Path) {
    let name = path.file_name().unwrap().to_string_lossy();
    let mut play = Play::new();
    for (n, line) in fs::read_to_string(path).unwrap().lines().enumerate() {
        let place = format!("{name}:{}: {line}", n + 1);
        match line.split_once(' ') {
            Some(("@", rest)) => play.set(&rest.split(' ').collect::<Vec<_>>()),
            Some(("C:", text)) => {
                let left: Vec<String> = play.said.iter().map(|said| escape(said)).collect();
                assert!(left.is_empty(), "{place}: not said by then: {left:?}");
                play.hear(text);
            }
            Some(("S:", "nothing")) => {
                assert!(play.said.is_empty(), "{place}: {:?}", play.said.front().map(|s| escape(s)))
            }
            Some(("S:", text)) => play.expect(text, &place),
            _ if line.is_empty() || line.starts_with('#') => {}
            _ => panic!("{place}: what is this?"),
        }
    }
    let left: Vec<String> = play.said.iter().map(|said| escape(said)).collect();
    assert!(left.is_empty(), "{name}: at the end, besides: {left:?}");
}

fn files() -> Vec<std::path::PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts/tsp");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn every_transcript_is_played_to_the_octet() {
    let files = files();
    assert!(files.len() >= 30, "{} transcripts", files.len());
    files.iter().for_each(|path| play(path));
}

#[test]
fn every_status_code_is_in_a_transcript() {
    let all: String = files().iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    for code in Code::ALL {
        let line = format!("{} {}\\r\\n", code.number(), code.text());
        assert!(all.contains(&line), "no transcript has {line}");
    }
    for list in
        ["1200 Redirection", "1301 No more tunnels", "1302 Unsupported client", "1530 Server too busy"]
    {
        assert!(all.contains(list), "no transcript has {list}");
    }
}

#[test]
fn every_reply_keeps_the_rules_that_clients_survive_by() {
    for path in files() {
        for line in fs::read_to_string(&path).unwrap().lines() {
            let Some(text) = line.strip_prefix("S: ").filter(|text| text.contains("Content-length")) else {
                continue;
            };
            let octets = unescape(text);
            let text = String::from_utf8(octets).unwrap();
            let (_, framed) = text.split_once("Content-length: ").unwrap();
            let (length, body) = framed.split_once("\r\n").unwrap();
            assert_eq!(length.parse::<usize>().unwrap(), body.len(), "{path:?}: {line}");
            assert!(
                !body.contains("<?") && !body.contains('\'') && !body.contains("/>") && !body.contains('&')
            );
            assert!(text.len() < 4096 && body.ends_with("\r\n"));
            assert_eq!(
                body.contains("<keepalive"),
                body.contains("</address>\r\n    </keepalive>"),
                "{line}"
            );
            assert_eq!(body.contains("action=\"info\""), body.contains("<dns_server>"), "{line}");
        }
    }
}
