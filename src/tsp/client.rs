//! The other side: a client that asks a TSP server for a tunnel (RFC 5572; draft-vg-ngtrans-tsp-01 where the server is as
//! old as that).
//!
//! One session with one server by one transport and one version. Pure: octets and times in, [`Output`]s out. Reads what
//! real servers write: several lines at once, values without quotes, white space around texts, compressed addresses. Does
//! not know which server is asked next (that is [`super::search`]), nor how the tunnel is set up ([`super::setup`]).

use std::net::Ipv4Addr;
use std::time::Duration;

use super::codec::{Capability, Code, Dialect, Line, Mode, Status, Version};
use super::framing::{BadFrame, Input, frame, split_reply, unframe};
pub use super::granted::Granted;
use super::header::{Datagram, FIRST_SEQUENCE, Header};
pub use super::verdict::End;
use super::verdict::{Asked, elsewhere, lost, refusal, shown};
use super::xml::{Action, Name, Request, emit_bare};
use crate::auth;
use crate::broker::Mechanism;

/// A TCP server that does not answer for so long is gone.
pub const ANSWER: Duration = Duration::from_secs(30);
/// When a datagram is sent, in seconds after the first time, while nobody has answered yet; the last is the end of it.
const KNOCKS: &[u64] = &[0, 2, 4, 6];
/// The same of a server that has answered before.
const REPEATS: &[u64] = &[0, 2, 4, 6, 8, 12, 20, 36, 66];
/// Datagrams of one session: six are needed, and old servers read no higher sequence numbers.
const MOST_DATAGRAMS: u32 = 15;
/// The largest reply that is read, in octets.
const MAX_INPUT: usize = 8192;

/// How the messages travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// In datagrams, with a header in front.
    Udp,
    /// In a stream.
    Tcp,
}

impl std::fmt::Display for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Udp => "UDP",
            Self::Tcp => "TCP",
        })
    }
}

/// Who asks.
#[derive(Clone, Debug)]
pub enum Login {
    /// Nobody in particular.
    Anonymous,
    /// Somebody with an account.
    Account {
        /// Who.
        who: auth::Identity,
        /// By this mechanism only; else by the safest of SCRAM-SHA-256 and DIGEST-MD5 that the server has.
        only: Option<Mechanism>,
    },
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Wish {
    /// By whom.
    pub login: Login,
    /// Which type of tunnel.
    pub mode: Mode,
    /// Our own IPv4 address, as we see it.
    pub claimed: Ipv4Addr,
    /// Seconds between signs of life; 0: none.
    pub keepalive: u32,
    /// The prefix length of a network, if one is wanted.
    pub prefix: Option<u8>,
    /// Name servers for reverse names of that network.
    pub dns: Vec<Name>,
    /// The server as the user wrote it: DIGEST-MD5 hashes it.
    pub place: String,
    /// Only to be shown: what is there already, or else what is offered, which is given back.
    pub decline: bool,
}

/// What the caller must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send these octets: a datagram, or on the stream.
    Send(Vec<u8>),
    /// The tunnel is granted and, unless it was declined, accepted. The session has nothing more to say.
    Up(Granted),
    /// It is over, and why.
    Over(End),
}

/// One session.
#[derive(Debug)]
pub struct Client {
    wish: Wish,
    version: Version,
    over: Transport,
    stage: Stage,
    auth: Option<auth::Client>,
    random: [u8; 16],
    input: Input,
    out: Vec<Output>,
    sequence: u32,
    /// The datagram that is to be answered.
    sent: Option<Sent>,
    /// Whether the server has answered anything.
    heard: bool,
    deadline: Duration,
}

#[derive(Debug)]
struct Sent {
    payload: Vec<u8>,
    first: Duration,
    times: usize,
}

#[derive(Debug)]
enum Stage {
    /// The version is said.
    Hello,
    /// The mechanism is named; it is ours to begin, once the server listens.
    Named,
    /// The mechanism talks.
    Talking,
    /// The server has proven itself, and is to say that we have too.
    Verdict,
    /// A status has sent us elsewhere; the list follows.
    Listed,
    /// It is asked whether there is a tunnel already: one that is only to be shown must end none.
    Looked,
    /// The tunnel is asked for.
    Asked,
    /// It is offered; over UDP the server must hear that we take it, or do not.
    Answered(Box<Granted>),
    Over,
}

impl Client {
    /// A session that begins now. `random` is new for each.
    pub fn new(wish: Wish, version: Version, over: Transport, random: [u8; 16], now: Duration) -> Self {
        let mut client = Self {
            wish,
            version,
            over,
            stage: Stage::Hello,
            auth: None,
            random,
            input: Input::new(MAX_INPUT),
            out: Vec::new(),
            sequence: FIRST_SEQUENCE,
            sent: None,
            heard: false,
            deadline: now + ANSWER,
        };
        client.say(Line::Version(Some(version)).emit().into_bytes(), now);
        client
    }

    /// A datagram has come from the server.
    pub fn handle_datagram(&mut self, datagram: &[u8], now: Duration) {
        let Some(Datagram::Message { header, payload }) = Datagram::parse(datagram, false) else { return };
        // What was sent twice is answered twice: only the first answer counts.
        if self.over != Transport::Udp
            || self.sent.is_none()
            || header.sequence() != Header::new(self.sequence, 0).sequence()
        {
            return;
        }
        self.sent = None;
        self.heard = true;
        self.sequence += 1;
        if self.sequence > FIRST_SEQUENCE + MOST_DATAGRAMS {
            return self.finish(Err(lost("the server never comes to an end")));
        }
        let done = self.handle_payload(payload, now);
        self.finish(done);
    }

    /// Octets have come on the stream.
    pub fn handle_input(&mut self, octets: &[u8], now: Duration) {
        if matches!(self.stage, Stage::Over) {
            return;
        }
        self.input.push(octets);
        self.heard = true;
        loop {
            match self.handle_next(now) {
                Ok(true) => {}
                Ok(false) => return,
                Err(end) => return self.finish(Err(end)),
            }
        }
    }

    /// The server has ended the stream, or nobody listens at that port.
    pub fn handle_end(&mut self) {
        let end = match (&self.stage, self.heard) {
            (_, false) => End::Silent,
            (Stage::Hello, true) => lost("the server closed the connection at once"),
            (_, true) => lost("the server closed the connection before it gave a tunnel"),
        };
        self.finish(Err(end));
    }

    /// The time has come that [`Self::poll_timeout`] said.
    pub fn handle_timeout(&mut self, now: Duration) {
        if self.poll_timeout().is_none_or(|at| at > now) {
            return;
        }
        let heard = self.heard;
        let silent = move || if heard { lost("the server does not answer any more") } else { End::Silent };
        let Some(sent) = &mut self.sent else { return self.finish(Err(silent())) };
        sent.times += 1;
        let (first, times) = (sent.first, sent.times);
        let datagram = Header::new(self.sequence, stamp(now)).wrap(&sent.payload);
        match self.ladder().get(times..) {
            Some([_, next, ..]) => {
                self.deadline = first + Duration::from_secs(*next);
                self.out.push(Output::Send(datagram));
            }
            Some([_] | []) | None => self.finish(Err(silent())),
        }
    }

    /// When [`Self::handle_timeout`] must be called; `None` when it is over.
    pub fn poll_timeout(&self) -> Option<Duration> {
        (!matches!(self.stage, Stage::Over)).then_some(self.deadline)
    }

    /// What is to be done, once.
    pub fn poll_output(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.out)
    }

    fn ladder(&self) -> &'static [u64] {
        if self.heard { REPEATS } else { KNOCKS }
    }

    fn say(&mut self, payload: Vec<u8>, now: Duration) {
        match self.over {
            Transport::Tcp => {
                self.deadline = now + ANSWER;
                self.out.push(Output::Send(payload));
            }
            Transport::Udp => {
                self.deadline = now + Duration::from_secs(self.ladder()[1]);
                self.out.push(Output::Send(Header::new(self.sequence, stamp(now)).wrap(&payload)));
                self.sent = Some(Sent { payload, first: now, times: 0 });
            }
        }
    }

    fn say_line(&mut self, mut line: Vec<u8>, now: Duration) {
        line.extend_from_slice(b"\r\n");
        self.say(line, now);
    }

    fn finish(&mut self, done: Result<(), End>) {
        if let (Err(end), false) = (done, matches!(self.stage, Stage::Over)) {
            self.stage = Stage::Over;
            self.sent = None;
            self.out.push(Output::Over(end));
        }
    }

    /// The next message of the stream; false: it is not there yet.
    fn handle_next(&mut self, now: Duration) -> Result<bool, End> {
        let broken = |why: BadFrame| lost(format!("the server's answer cannot be read: {why}"));
        match self.stage {
            Stage::Over | Stage::Answered(_) => Ok(false),
            Stage::Listed => {
                let list = self.input.until(b"</tunnel>").map_err(broken)?;
                list.map_or(Ok(false), |xml| Err(elsewhere(&xml)))
            }
            Stage::Looked | Stage::Asked => {
                let Some(body) = self.input.frame().map_err(broken)? else { return Ok(false) };
                self.handle_reply(&body, now).map(|()| true)
            }
            Stage::Hello | Stage::Named | Stage::Talking | Stage::Verdict => {
                let Some(line) = self.input.line().map_err(broken)? else { return Ok(false) };
                if Status::parse(&line).is_some_and(|status| status.redirect) {
                    self.stage = Stage::Listed;
                    return Ok(true);
                }
                self.handle_line(&line, now).map(|()| true)
            }
        }
    }

    /// What a datagram says.
    fn handle_payload(&mut self, payload: &[u8], now: Duration) -> Result<(), End> {
        match &self.stage {
            Stage::Over | Stage::Listed => return Ok(()),
            Stage::Answered(_) => return self.handle_acknowledgement(payload),
            Stage::Looked | Stage::Asked => {
                let body = unframe(payload);
                let body = body.map_err(|why| lost(format!("the server's answer cannot be read: {why}")))?;
                return self.handle_reply(body, now);
            }
            Stage::Hello | Stage::Named | Stage::Talking | Stage::Verdict => {}
        }
        if let Some((status, xml)) = split_reply(payload).filter(|(status, _)| status.redirect) {
            tracing::debug!("status {}", status.number());
            return Err(elsewhere(xml));
        }
        let lines = payload.split(|octet| *octet == b'\n').map(<[u8]>::trim_ascii);
        for line in lines.filter(|line| line.iter().any(|octet| *octet != 0)) {
            self.handle_line(line, now)?;
        }
        match self.stage {
            // It is ours to begin, and now the server listens.
            Stage::Named if self.sent.is_none() => self.begin(now),
            // The verdict is the next line, and a server speaks only when it is asked.
            Stage::Verdict if self.sent.is_none() => self.say(Vec::new(), now),
            Stage::Hello | Stage::Talking if self.sent.is_none() => {
                return Err(lost("the server has nothing to say where it should"));
            }
            Stage::Hello | Stage::Named | Stage::Talking | Stage::Verdict => {}
            Stage::Listed | Stage::Looked | Stage::Asked | Stage::Answered(_) | Stage::Over => {}
        }
        Ok(())
    }

    fn handle_line(&mut self, line: &[u8], now: Duration) -> Result<(), End> {
        let status = Status::parse(line);
        match (&self.stage, status) {
            (Stage::Hello, Some(Status { code: Code::UnsupportedVersion, .. })) => Err(End::OtherVersion),
            (Stage::Hello, None) => self.handle_capability(line, now),
            (Stage::Named | Stage::Talking | Stage::Verdict, Some(Status { code: Code::Success, .. })) => {
                self.handle_success(now)
            }
            (Stage::Talking, None) => self.handle_challenge(line, now),
            (_, Some(status)) => Err(self.refusal(status, line)),
            (_, None) => Err(lost(format!("the server said '{}'", shown(line)))),
        }
    }

    fn handle_capability(&mut self, line: &[u8], now: Duration) -> Result<(), End> {
        let Some(offer) = Capability::parse(line) else {
            return Err(lost(format!(
                "'{}' is not how a TSP server begins: is the port right?",
                shown(line)
            )));
        };
        self.check_tunnels(&offer)?;
        let mechanism = self.choose(&offer)?;
        let who = match &self.wish.login {
            Login::Account { who, .. } => who.clone(),
            Login::Anonymous => auth::Identity { user: String::new(), secret: zeroize::Zeroizing::default() },
        };
        let place = format!("tsp/{}", self.wish.place);
        let auth = auth::Client::new(mechanism, who, &place, self.random);
        self.stage = if auth.begin().is_some() { Stage::Named } else { Stage::Talking };
        self.auth = Some(auth);
        self.say(Line::Authenticate(mechanism.name().to_owned()).emit().into_bytes(), now);
        if self.over == Transport::Tcp && matches!(self.stage, Stage::Named) {
            self.begin(now);
        }
        Ok(())
    }

    /// The first message of a mechanism in which the client speaks first.
    fn begin(&mut self, now: Duration) {
        self.stage = Stage::Talking;
        if let Some(message) = self.auth.as_ref().and_then(auth::Client::begin) {
            self.say_line(message, now);
        }
    }

    fn check_tunnels(&self, offer: &Capability) -> Result<(), End> {
        let has = |mode: Mode| offer.tunnels.contains(&mode);
        let fits = match (self.wish.mode, self.over) {
            (Mode::V6AnyV4, Transport::Udp) => has(Mode::V6V4) || has(Mode::V6UdpV4),
            (Mode::V6AnyV4, Transport::Tcp) => has(Mode::V6V4),
            (mode, _) => has(mode),
        };
        let names: Vec<&str> = offer.tunnels.iter().map(|mode| mode.name()).collect();
        let (wanted, offered) = (self.wish.mode.name(), names.join(", "));
        if fits {
            return Ok(());
        }
        Err(End::Refused(format!("the server has no tunnels of type {wanted}; it offers: {offered}")))
    }

    fn choose(&self, offer: &Capability) -> Result<Mechanism, End> {
        let wanted: &[Mechanism] = match &self.wish.login {
            Login::Anonymous => &[Mechanism::Anonymous],
            Login::Account { only: Some(one), .. } => std::slice::from_ref(one),
            // PLAIN only where the user asks for it by name: whoever is between could take all others off the offer.
            Login::Account { only: None, .. } => &[Mechanism::ScramSha256, Mechanism::DigestMd5],
        };
        let is_offered = |one: &&Mechanism| offer.mechanisms.iter().any(|name| name.as_str() == one.name());
        wanted.iter().find(is_offered).copied().ok_or_else(|| {
            let names: Vec<&str> = wanted.iter().map(|one| one.name()).collect();
            let next = match &self.wish.login {
                Login::Anonymous => "; say who you are: tsp://USER@...",
                Login::Account { .. } => "",
            };
            End::Refused(format!(
                "the server takes no login by {}; it offers: {}{next}",
                names.join(" or "),
                offer.mechanisms.join(", ")
            ))
        })
    }

    fn handle_challenge(&mut self, line: &[u8], now: Duration) -> Result<(), End> {
        let Some(auth) = &mut self.auth else { return Err(lost("the server goes on too soon")) };
        match auth.step(line).map_err(|why| End::Refused(why.to_string()))? {
            Some(answer) => self.say_line(answer, now),
            None => self.stage = Stage::Verdict,
        }
        Ok(())
    }

    fn handle_success(&mut self, now: Duration) -> Result<(), End> {
        if !self.auth.as_ref().is_some_and(auth::Client::is_convinced) {
            return Err(End::Refused("the server has not proven that it knows the password".to_owned()));
        }
        self.auth = None;
        // The draft has no such question.
        let may_look = self.wish.decline && self.version.dialect() == Some(Dialect::Rfc);
        if may_look {
            self.stage = Stage::Looked;
            self.say(frame(&emit_bare(&Action::Info)).into_bytes(), now);
        } else {
            self.create(now);
        }
        Ok(())
    }

    fn create(&mut self, now: Duration) {
        let Wish { mode, claimed: client, keepalive, prefix, dns, .. } = self.wish.clone();
        let request = Request { mode, client, proxy: false, keepalive, prefix, dns };
        self.stage = Stage::Asked;
        self.say(frame(&request.emit()).into_bytes(), now);
    }

    /// Whether a tunnel is there already, of which nothing more need be asked.
    fn handle_look(&mut self, status: Status, xml: &[u8], now: Duration) -> Result<(), End> {
        let found = Granted::parse(xml, self.wish.mode, self.over).ok();
        match found.filter(|_| status == Status::plain(Code::Success)) {
            Some(granted) => self.done(granted),
            None => {
                self.create(now);
                Ok(())
            }
        }
    }

    fn refusal(&self, status: Status, line: &[u8]) -> End {
        let Wish { mode, claimed, prefix, .. } = self.wish;
        refusal(status, line, Asked { mode, claimed, prefix, over: self.over })
    }

    /// The answer to what was asked for.
    fn handle_reply(&mut self, body: &[u8], now: Duration) -> Result<(), End> {
        let Some((status, xml)) = split_reply(body) else {
            return Err(lost(format!("'{}' is no answer to a request", shown(body))));
        };
        if matches!(self.stage, Stage::Looked) {
            return self.handle_look(status, xml, now);
        }
        if status.redirect {
            return Err(elsewhere(xml));
        }
        if status.code != Code::Success {
            return Err(self.refusal(status, body));
        }
        let granted = Granted::parse(xml, self.wish.mode, self.over)
            .map_err(|why| lost(format!("the server's offer is of no use: {why}")))?;
        // The draft knows no acknowledgement: what is given is given.
        if self.version.dialect() == Some(Dialect::Draft) {
            return self.done(granted);
        }
        let word = if self.wish.decline { Action::Reject } else { Action::Accept };
        self.stage = Stage::Answered(Box::new(granted));
        self.say(frame(&emit_bare(&word)).into_bytes(), now);
        match self.over {
            // Over TCP nothing is said to it.
            Transport::Tcp => self.handle_acknowledgement(b""),
            Transport::Udp => Ok(()),
        }
    }

    /// Bare, a status, or a status in a frame.
    fn handle_acknowledgement(&mut self, payload: &[u8]) -> Result<(), End> {
        let body = unframe(payload).unwrap_or(payload);
        let refused = Status::parse(body).filter(|status| status.code != Code::Success);
        match (refused, std::mem::replace(&mut self.stage, Stage::Over)) {
            (Some(status), stage) => {
                self.stage = stage;
                Err(self.refusal(status, body))
            }
            (None, Stage::Answered(granted)) => self.done(*granted),
            (None, _) => Ok(()),
        }
    }

    fn done(&mut self, granted: Granted) -> Result<(), End> {
        self.stage = Stage::Over;
        self.out.push(Output::Up(granted));
        Ok(())
    }
}

/// Milliseconds on our own clock, as the header has them.
fn stamp(now: Duration) -> u32 {
    u32::try_from(now.as_millis() & u128::from(u32::MAX)).unwrap_or(0)
}

/// The question by which brokers are timed.
pub fn echo_request(now: Duration) -> Vec<u8> {
    Header::new(FIRST_SEQUENCE, stamp(now)).wrap(b"ECHO REQUEST")
}

/// Whether that is an answer to it.
pub fn is_echo_reply(datagram: &[u8]) -> bool {
    let payload = match Datagram::parse(datagram, false) {
        Some(Datagram::Message { payload, .. }) => payload,
        Some(Datagram::Echo(_)) | None => datagram,
    };
    Status::parse(payload).is_some_and(|status| status == Status::plain(Code::Success))
}

#[cfg(test)]
mod tests;
