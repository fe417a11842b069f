//! One client's connection to the DTCP server: what is answered, what is wished for, when it ends.
//!
//! Pure: octets and times in, [`Output`]s out. Does not know where a connection comes from, how a user is looked up,
//! who gives tunnels away, or that there are other connections.
//!
//! Departures from the KAME program, none of which a client can stumble over: a line has an end within [`LOGIN_TIME`] and
//! [`MAX_LINE`] octets, a connection has one tunnel, a failed login keeps the shorter timer, sold out is said.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::codec::{
    Challenge, Command, Kind, MAX_LINE, Net, Reply, TunnelWords, UdpWish, Up, UpInner, proves,
};

/// A connection without a tunnel ends after so long without a line, and a line must be complete within it.
pub const LOGIN_TIME: Duration = Duration::from_secs(60);
/// A connection with a tunnel ends after so long: five pings of the client are missing then.
pub const TUNNEL_TIME: Duration = Duration::from_secs(300);

/// What a session knows from its beginning.
#[derive(Clone, Debug)]
pub struct Terms {
    /// What the client shall hash; random, and another one for each connection.
    pub challenge: Challenge,
    /// The client's address as it came here.
    pub client: Ipv4Addr,
    /// Our address as the client is told: the one it came to, or the one that `public_address` names.
    pub server: Ipv4Addr,
    /// What address pairs begin with, as text that ends in `::`; without it there are none.
    pub host_prefix: Option<Box<str>>,
    /// Whether IPv6 in UDP may be asked for.
    pub udp: bool,
    /// How long a connection without a tunnel may be silent, and a line may take: [`LOGIN_TIME`], unless the operator wants
    /// another.
    pub login_time: Duration,
    /// How long one with a tunnel may be silent: [`TUNNEL_TIME`], likewise.
    pub tunnel_time: Duration,
}

/// What the caller must do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send these octets.
    Send(Vec<u8>),
    /// Say by [`Session::handle_proof`] whether the user has proven to be one.
    Prove(Claim),
    /// Say by [`Session::handle_grant`] what this user is given.
    Grant(Want),
    /// The tunnel goes back.
    Release,
    /// Say no more (half-close), read what still comes for a while, then close.
    Finish,
}

/// Who somebody says to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The name.
    pub user: String,
    digest: String,
    challenge: Challenge,
}

impl Claim {
    /// Whether somebody with this secret has made the claim.
    pub fn is_by(&self, secret: &[u8]) -> bool {
        proves(&self.digest, &self.user, self.challenge, secret)
    }
}

/// What a proven user wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    /// Who.
    pub user: String,
    /// What type.
    pub kind: Kind,
    /// Not by protocol 41 but in UDP.
    pub udp: Option<UdpWish>,
}

/// What the user is given. The tunnel carries packets already.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// The number of its interface, which the address pair follows from.
    pub number: u32,
    /// Its prefixes.
    pub networks: Vec<Net>,
    /// Where it ends on our side, if it is in UDP.
    pub udp_port: Option<u16>,
}

/// Why there is no tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// The account is gone or never was.
    Login,
    /// No interface, address pair or UDP port is free.
    SoldOut,
    /// The user's interface has no number.
    InterfaceName,
    /// Anything else, in words for the client.
    Other(String),
}

/// One connection.
#[derive(Debug)]
pub struct Session {
    terms: Terms,
    stage: Stage,
    /// What was read and not yet understood: at most a line and what came with its end.
    input: Vec<u8>,
    out: Vec<Output>,
    deadline: Duration,
    had_tunnel: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    /// No tunnel.
    Bare,
    /// The caller looks up whether this is proven.
    Proving(Want, String),
    /// The caller gets the tunnel.
    Asking(Want),
    /// There is one.
    Up,
    /// Nothing is answered any more.
    Over,
}

impl Session {
    /// A connection that has just come in, at `now` on any clock that only runs forward. Greets.
    pub fn new(terms: Terms, now: Duration) -> Self {
        let greeting = Reply::Greeting(terms.challenge);
        let (input, deadline) = (Vec::new(), now + terms.login_time);
        let mut session =
            Self { terms, stage: Stage::Bare, input, out: Vec::new(), deadline, had_tunnel: false };
        session.say(&greeting);
        session
    }

    /// Whether more octets may be given to it: not while the caller owes it an answer.
    pub fn wants_input(&self) -> bool {
        !matches!(self.stage, Stage::Proving(..) | Stage::Asking(_))
    }

    /// Whether the client had a tunnel at some time.
    pub fn had_tunnel(&self) -> bool {
        self.had_tunnel
    }

    /// Octets have come.
    pub fn handle_input(&mut self, octets: &[u8], now: Duration) {
        if self.stage == Stage::Over {
            return;
        }
        if self.input.is_empty() && !octets.is_empty() {
            self.deadline = now + self.line_time();
        }
        self.input.extend_from_slice(octets);
        self.read_lines(now);
    }

    /// The client will say nothing more, or the connection is broken.
    pub fn handle_end(&mut self) {
        self.finish();
    }

    /// The answer to [`Output::Prove`]. A claim may not be looked at too often: then it is `Err` with a text for the client.
    pub fn handle_proof(&mut self, proof: Result<bool, String>, now: Duration) {
        let Stage::Proving(want, word) = self.stage.clone() else { return };
        self.stage = Stage::Bare;
        match proof {
            Err(why) => self.say(&Reply::Refused(why)),
            Ok(false) => self.say(&Reply::LoginFailed),
            // An unknown type is told to proven users only.
            Ok(true) if !self.serves(&word) => self.say(&Reply::UnsupportedType(word)),
            Ok(true) => {
                self.out.push(Output::Grant(want.clone()));
                self.stage = Stage::Asking(want);
                return;
            }
        }
        self.read_lines(now);
    }

    /// The answer to [`Output::Grant`].
    pub fn handle_grant(&mut self, grant: Result<Given, Denied>, now: Duration) {
        let Stage::Asking(want) = self.stage.clone() else { return };
        self.stage = Stage::Bare;
        match grant {
            Ok(given) => {
                let up = self.up(want.kind, given);
                self.stage = Stage::Up;
                self.had_tunnel = true;
                self.say(&Reply::Up(up));
            }
            Err(Denied::Login) => self.say(&Reply::LoginFailed),
            Err(Denied::SoldOut) => self.say(&Reply::SoldOut),
            Err(Denied::InterfaceName) => self.say(&Reply::InterfaceName),
            Err(Denied::Other(why)) => self.say(&Reply::Refused(why)),
        }
        self.deadline = now + self.patience();
        self.read_lines(now);
    }

    /// Somebody else has ended the tunnel: a newer session of the user, the operator, the configuration.
    ///
    /// No word is said: a KAME client would take it for the answer to its next ping, and notice the end a minute later.
    pub fn handle_loss(&mut self) {
        if self.stage == Stage::Up {
            self.stage = Stage::Bare;
            self.finish();
        }
    }

    /// The time has come that [`Self::poll_timeout`] said.
    pub fn handle_timeout(&mut self, now: Duration) {
        if self.poll_timeout().is_some_and(|at| at <= now) {
            self.say(&Reply::TimedOut);
            self.finish();
        }
    }

    /// When [`Self::handle_timeout`] must be called; `None` while the caller owes it an answer, and when it is over.
    pub fn poll_timeout(&self) -> Option<Duration> {
        (self.wants_input() && self.stage != Stage::Over).then_some(self.deadline)
    }

    /// Whether something is to be done.
    pub fn has_output(&self) -> bool {
        !self.out.is_empty()
    }

    /// What is to be done, once.
    pub fn poll_output(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.out)
    }

    fn patience(&self) -> Duration {
        if self.stage == Stage::Up { self.terms.tunnel_time } else { self.terms.login_time }
    }

    fn line_time(&self) -> Duration {
        self.terms.login_time.min(self.patience())
    }

    fn read_lines(&mut self, now: Duration) {
        while self.wants_input() && self.stage != Stage::Over {
            let Some(end) = self.input.iter().position(|octet| *octet == b'\n') else {
                if self.input.len() > MAX_LINE {
                    self.too_long();
                }
                break;
            };
            if end > MAX_LINE {
                self.too_long();
                break;
            }
            let line: Vec<u8> = self.input.drain(..=end).collect();
            self.handle_line(&line);
            // What stands behind it has come with it: a line that begins there begins now.
            self.deadline = now + if self.input.is_empty() { self.patience() } else { self.line_time() };
        }
        if self.input.is_empty() {
            // Thousands of silent clients hold no buffer.
            self.input = Vec::new();
        }
    }

    fn too_long(&mut self) {
        self.say(&Reply::Refused(format!("a line has at most {MAX_LINE} octets, disconnecting")));
        self.finish();
    }

    fn handle_line(&mut self, line: &[u8]) {
        match Command::parse(line, self.terms.udp) {
            Command::Tunnel(_) if self.stage == Stage::Up => {
                self.say(&Reply::Refused("this connection has a tunnel already".to_owned()));
            }
            Command::Tunnel(words) => self.claim(words),
            Command::BadTunnel => self.say(&Reply::LoginFailed),
            Command::Ping => self.say(&Reply::Pong),
            Command::Help => self.say(&Reply::Commands),
            Command::Quit => {
                self.say(&Reply::Bye);
                self.finish();
            }
            Command::Unknown => self.say(&Reply::InvalidCommand),
        }
    }

    fn claim(&mut self, words: TunnelWords) {
        let TunnelWords { user, digest, kind, udp } = words;
        self.out.push(Output::Prove(Claim { user: user.clone(), digest, challenge: self.terms.challenge }));
        // Of a type that is not served only the word matters.
        let known = Kind::parse(&kind).unwrap_or(Kind::TunnelOnly);
        self.stage = Stage::Proving(Want { user, kind: known, udp }, kind);
    }

    fn serves(&self, word: &str) -> bool {
        match Kind::parse(word) {
            Some(Kind::Host) => self.terms.host_prefix.is_some(),
            Some(Kind::TunnelOnly | Kind::Network) => true,
            None => false,
        }
    }

    fn up(&self, kind: Kind, given: Given) -> Up {
        let inner = match (kind, &self.terms.host_prefix) {
            (Kind::Host, Some(prefix)) => {
                let [server, client] = pair(prefix, given.number);
                UpInner::Host { client, server }
            }
            (Kind::Network, _) => UpInner::Network(given.networks),
            (Kind::TunnelOnly | Kind::Host, _) => UpInner::TunnelOnly,
        };
        Up { client: self.terms.client, server: self.terms.server, inner, udp_port: given.udp_port }
    }

    /// The tunnel goes back, and the last word is said. Nothing happens the second time.
    fn finish(&mut self) {
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Up | Stage::Asking(_) => self.out.push(Output::Release),
            Stage::Bare | Stage::Proving(..) => {}
            Stage::Over => return,
        }
        self.input = Vec::new();
        self.out.push(Output::Finish);
    }

    fn say(&mut self, reply: &Reply) {
        match self.out.last_mut() {
            Some(Output::Send(octets)) => reply.emit(octets),
            Some(_) | None => {
                let mut octets = Vec::new();
                reply.emit(&mut octets);
                self.out.push(Output::Send(octets));
            }
        }
    }
}

/// Address pair `number` as it goes on the wire: text behind text, our end first.
pub fn pair(prefix: &str, number: u32) -> [String; 2] {
    let base = (number + 1) * 4;
    [base + 1, base + 2].map(|last| format!("{prefix}{last:04x}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtcp::codec::digest;
    use proptest::prelude::*;

    const SECRET: &[u8] = b"bar";

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn session() -> Session {
        let [client, server] = [[10, 77, 0, 2], [10, 77, 0, 1]].map(Ipv4Addr::from);
        let host_prefix = Some("3ffe:ffff:ffff:ffff::".into());
        let (challenge, login_time, tunnel_time) = (Challenge::new([7; 16]), LOGIN_TIME, TUNNEL_TIME);
        let terms = Terms { challenge, client, server, host_prefix, udp: true, login_time, tunnel_time };
        let mut session = Session::new(terms, s(0));
        session.poll_output();
        session
    }

    fn login(kind: &str) -> String {
        let challenge = Challenge::new([7; 16]);
        format!("tunnel foo {} {kind}\r\n", digest("foo", challenge.as_str(), SECRET))
    }

    fn given() -> Given {
        Given { number: 0, networks: vec!["2001:db8::/48".parse().unwrap()], udp_port: None }
    }

    /// What is sent, with every question answered in favour.
    fn answers(session: &mut Session, now: Duration) -> String {
        let mut said = String::new();
        loop {
            let outputs = session.poll_output();
            if outputs.is_empty() {
                return said;
            }
            for output in outputs {
                match output {
                    Output::Send(octets) => said += std::str::from_utf8(&octets).unwrap(),
                    Output::Prove(claim) => session.handle_proof(Ok(claim.is_by(SECRET)), now),
                    Output::Grant(_) => session.handle_grant(Ok(given()), now),
                    Output::Release => said += "(release)",
                    Output::Finish => said += "(finish)",
                }
            }
        }
    }

    fn tell(session: &mut Session, text: &str, now: Duration) -> String {
        session.handle_input(text.as_bytes(), now);
        answers(session, now)
    }

    #[test]
    fn pairs_follow_from_the_interface_s_number() {
        let texts = |n| pair("3ffe:ffff:ffff:ffff::", n).map(|mut t| t.split_off(21));
        assert_eq!(texts(0), ["0005", "0006"]);
        assert_eq!(texts(1), ["0009", "000a"]);
        assert_eq!(texts(10), ["002d", "002e"]);
        assert_eq!(texts(16_382), ["fffd", "fffe"]);
    }

    #[test]
    fn lines_in_pieces_and_many_in_one_are_answered_in_order() {
        let mut session = session();
        assert_eq!(tell(&mut session, "pi", s(1)), "");
        assert_eq!(tell(&mut session, "ng\r\nhelp\n\npi", s(2)).lines().count(), 3);
        let all = tell(&mut session, &format!("ng\r\n{}ping\r\nquit\r\n", login("tunnelonly")), s(3));
        let lines: Vec<&str> = all.lines().collect();
        assert_eq!(lines[0], "+OK hi, happy to hear from you");
        assert_eq!(lines[1], "+OK 10.77.0.2 10.77.0.1");
        assert_eq!(lines[3], "+OK see you soon.");
        assert_eq!(lines[4], "(release)(finish)");
    }

    #[test]
    fn the_timer_is_longer_with_a_tunnel() {
        let mut session = session();
        assert_eq!(session.poll_timeout(), Some(s(60)));
        tell(&mut session, "ping\r\n", s(50));
        assert_eq!(session.poll_timeout(), Some(s(110)));
        tell(&mut session, "tunnel foo x host\r\n", s(60));
        assert_eq!(session.poll_timeout(), Some(s(120)), "a failed login changes nothing");
        tell(&mut session, &login("host"), s(70));
        assert_eq!(session.poll_timeout(), Some(s(370)));
        session.handle_timeout(s(369));
        assert_eq!(answers(&mut session, s(369)), "");
        session.handle_timeout(s(370));
        let said = answers(&mut session, s(370));
        assert_eq!(said, "-ERR connection timed out, disconnecting\r\n(release)(finish)");
        assert_eq!(session.poll_timeout(), None);
    }

    #[test]
    fn a_line_must_end_in_time_and_within_bounds() {
        let mut slow = session();
        tell(&mut slow, &login("host"), s(0));
        for n in 0..59 {
            assert_eq!(tell(&mut slow, "p", s(100 + n)), "");
        }
        assert_eq!(slow.poll_timeout(), Some(s(160)), "counted from its first octet");
        let mut long = session();
        assert_eq!(tell(&mut long, &"x".repeat(MAX_LINE), s(1)), "");
        assert!(tell(&mut long, "x", s(1)).starts_with("-ERR a line has"));
        assert_eq!(tell(&mut long, "ping\r\n", s(1)), "", "it is over");
        let mut exact = session();
        assert_eq!(tell(&mut exact, &("x".repeat(MAX_LINE) + "\n"), s(1)), "-ERR invalid command\r\n");
    }

    #[test]
    fn the_end_of_the_connection_is_the_end_of_the_tunnel() {
        let mut with = session();
        tell(&mut with, &login("host"), s(0));
        with.handle_end();
        assert_eq!(answers(&mut with, s(0)), "(release)(finish)");
        with.handle_end();
        assert_eq!(answers(&mut with, s(0)), "");
        let mut without = session();
        without.handle_end();
        assert_eq!(answers(&mut without, s(0)), "(finish)");
        let mut asking = session();
        asking.handle_input(login("host").as_bytes(), s(0));
        asking.poll_output();
        asking.handle_proof(Ok(true), s(0));
        assert!(matches!(asking.poll_output()[..], [Output::Grant(_)]));
        assert!(!asking.wants_input());
        asking.handle_end();
        assert_eq!(asking.poll_output(), [Output::Release, Output::Finish], "what was asked for is not kept");
    }

    #[test]
    fn an_answer_that_comes_too_late_wakes_nobody() {
        let mut session = session();
        session.handle_input(login("host").as_bytes(), s(0));
        session.handle_end();
        session.handle_proof(Ok(true), s(0));
        session.handle_grant(Ok(given()), s(0));
        session.handle_input(b"ping\r\n", s(1));
        assert!(matches!(session.poll_output()[..], [Output::Prove(_), Output::Finish]));
        assert_eq!(session.poll_timeout(), None);
    }

    #[test]
    fn one_tunnel_a_connection_and_none_is_lost_silently() {
        let mut session = session();
        tell(&mut session, &login("host"), s(0));
        assert_eq!(tell(&mut session, &login("host"), s(0)), "-ERR this connection has a tunnel already\r\n");
        session.handle_loss();
        assert_eq!(answers(&mut session, s(1)), "(finish)", "nothing to give back, nothing to say");
    }

    #[test]
    fn types_are_told_to_proven_users_only() {
        let mut session = session();
        assert_eq!(tell(&mut session, "tunnel foo x y\r\n", s(0)), "-ERR authentication failed.\r\n");
        assert_eq!(tell(&mut session, &login("HOST"), s(0)), "-ERR unsupported tunnel type HOST\r\n");
        assert_eq!(
            tell(&mut session, &login("tunnelroute udp"), s(0)),
            "+OK 10.77.0.2 10.77.0.1 2001:db8::/48\r\n"
        );
    }

    #[test]
    fn silent_sessions_hold_no_buffer() {
        let mut session = session();
        tell(&mut session, &login("host"), s(0));
        tell(&mut session, "ping\r\n", s(60));
        assert_eq!((session.input.capacity(), session.out.capacity()), (0, 0));
    }

    proptest! {
        #[test]
        fn any_octets_end_in_bounded_input(chunks in prop::collection::vec("(ping|quit|tunnel a b c|x|\r\n|\n| ){0,9}", 0..9)) {
            let mut session = session();
            for (n, chunk) in chunks.iter().enumerate() {
                tell(&mut session, chunk, s(n as u64));
                prop_assert!(session.input.len() <= MAX_LINE);
            }
        }
    }
}
