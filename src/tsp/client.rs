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
use super::search::Place;
use super::xml::{Action, Name, Request, Tunnel, emit_bare};
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
/// The most brokers of a list that are looked at.
const MOST_BROKERS: usize = 50;
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
    /// Only to be shown: what is offered is given back.
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

/// Why it is over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum End {
    /// The server does not want us, and will not the next time.
    #[error("{0}")]
    Refused(String),
    /// It did not work; the next time it may.
    #[error("{0}")]
    Lost(String),
    /// Nobody answers by this transport.
    #[error("there is no answer")]
    Silent,
    /// The server does not speak this version.
    #[error("the server does not speak this version of TSP")]
    OtherVersion,
    /// Other brokers are to be asked.
    #[error("the server sends us to other brokers")]
    Elsewhere(Vec<Place>),
}

fn lost(why: impl Into<String>) -> End {
    End::Lost(why.into())
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
            Stage::Asked => {
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
            Stage::Asked => {
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
            Stage::Listed | Stage::Asked | Stage::Answered(_) | Stage::Over => {}
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
            (_, Some(status)) => Err(refusal(status, line)),
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
            End::Refused(format!(
                "the server takes no login by {}; it offers: {}",
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
        let Wish { mode, claimed: client, keepalive, prefix, dns, .. } = self.wish.clone();
        let request = Request { mode, client, proxy: false, keepalive, prefix, dns };
        self.stage = Stage::Asked;
        self.say(frame(&request.emit()).into_bytes(), now);
        Ok(())
    }

    /// The answer to what was asked for.
    fn handle_reply(&mut self, body: &[u8], now: Duration) -> Result<(), End> {
        let Some((status, xml)) = split_reply(body) else {
            return Err(lost(format!("'{}' is no answer to a request", shown(body))));
        };
        if status.redirect {
            return Err(elsewhere(xml));
        }
        if status.code != Code::Success {
            return Err(refusal(status, body));
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
                Err(refusal(status, body))
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

/// What a status other than success means for us.
fn refusal(status: Status, line: &[u8]) -> End {
    let line = line.split(|octet| *octet == b'\n').next().unwrap_or_default();
    let said = format!("the server said: {}", shown(line.trim_ascii()));
    match status.code {
        Code::UnsupportedVersion => End::OtherVersion,
        Code::AuthenticationFailed => {
            End::Refused(format!("{said}; user or password may be wrong, or the account may not log in so"))
        }
        Code::UnsupportedTunnelType
        | Code::InvalidRequest
        | Code::InvalidIpv4
        | Code::InvalidIpv6
        | Code::PrefixUnsupported
        | Code::PrefixMissing
        | Code::PrefixForAnonymous => End::Refused(said),
        Code::Success
        | Code::NoMoreTunnels
        | Code::ServerError
        | Code::Ipv4InUse
        | Code::PrefixUnavailable
        | Code::DnsDelegation
        | Code::InProgress
        | Code::Busy
        | Code::Unknown(_) => End::Lost(said),
    }
}

/// The brokers of a list.
fn elsewhere(xml: &[u8]) -> End {
    let Ok(tunnel) = Tunnel::parse(xml.trim_ascii()) else {
        return lost("the server sends us elsewhere, but its list of brokers cannot be read");
    };
    let texts = tunnel.brokers.iter().flat_map(|broker| &broker.0).map(|address| address.text.as_str());
    let mut places: Vec<Place> = Vec::new();
    for place in texts.filter_map(Place::parse).take(MOST_BROKERS) {
        if !places.contains(&place) {
            places.push(place);
        }
    }
    if places.is_empty() {
        return lost("the server sends us elsewhere, and names no broker that can be asked by IPv4");
    }
    End::Elsewhere(places)
}

/// What a stranger said, safe to be shown.
fn shown(octets: &[u8]) -> String {
    let text = String::from_utf8_lossy(&octets[..octets.len().min(120)]).into_owned();
    text.trim_end().escape_debug().to_string()
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
mod tests {
    use std::net::Ipv6Addr;

    use proptest::prelude::*;
    use zeroize::Zeroizing;

    use super::*;
    use crate::tsp::xml::{BrokerAt, emit_list};

    const CAPABILITY: &str =
        "CAPABILITY TUNNEL=V6V4 TUNNEL=V6UDPV4 AUTH=DIGEST-MD5 AUTH=PLAIN AUTH=ANONYMOUS\r\n";
    /// What gogoc 1.2 asked with host_type=router, and what it was given, octet by octet.
    const CREATE: &str = "Content-length: 399\r\n\
        <tunnel action=\"create\" type=\"v6v4\" proxy=\"no\">\r\n \
        <client>\r\n  \
        <address type=\"ipv4\">192.0.2.9</address>\r\n  \
        <keepalive interval=\"30\">\r\n    \
        <address type=\"ipv6\">::</address>\r\n  \
        </keepalive>\r\n  \
        <router>\r\n   \
        <prefix length=\"48\"/>\r\n   \
        <dns_server>\r\n     \
        <address type=\"dn\">ns1.example.org</address>\r\n     \
        <address type=\"dn\">ns2.example.org</address>\r\n   \
        </dns_server>\r\n  \
        </router>\r\n \
        </client>\r\n\
        </tunnel>\r\n";
    const OFFER: &str = "Content-length: 739\r\n\
        200 Success\r\n\
        <tunnel action=\"info\" type=\"v6v4\" lifetime=\"604800\">\r\n \
        <server>\r\n  \
        <address type=\"ipv4\">192.0.2.1</address>\r\n  \
        <address type=\"ipv6\">2001:0db8:00f0:0000:0000:0000:0000:0001</address>\r\n \
        </server>\r\n \
        <client>\r\n  \
        <address type=\"ipv4\">192.0.2.9</address>\r\n  \
        <address type=\"ipv6\">2001:0db8:00f0:0000:0000:0000:0000:0002</address>\r\n  \
        <address type=\"dn\">alice.broker.example</address>\r\n  \
        <dns_server>\r\n   \
        <address type=\"ipv6\">2001:0db8:0000:0000:0000:0000:0000:0053</address>\r\n  \
        </dns_server>\r\n  \
        <router>\r\n   \
        <prefix length=\"48\">2001:0db8:1234:0000:0000:0000:0000:0000</prefix>\r\n  \
        </router>\r\n  \
        <keepalive interval=\"30\">\r\n   \
        <address type=\"ipv6\">2001:0db8:00f0:0000:0000:0000:0000:0001</address>\r\n  \
        </keepalive>\r\n \
        </client>\r\n\
        </tunnel>\r\n";
    const ACCEPT: &str = "Content-length: 35\r\n<tunnel action=\"accept\"></tunnel>\r\n";

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn wish(login: Login) -> Wish {
        let name = |text| Name::parse(text).unwrap();
        Wish {
            login,
            mode: Mode::V6V4,
            claimed: Ipv4Addr::new(192, 0, 2, 9),
            keepalive: 30,
            prefix: Some(48),
            dns: vec![name("ns1.example.org"), name("ns2.example.org")],
            place: "broker.example".to_owned(),
            decline: false,
        }
    }

    fn alice(only: Option<Mechanism>) -> Login {
        let secret = Zeroizing::new(b"wonderland".to_vec());
        Login::Account { who: auth::Identity { user: "alice".to_owned(), secret }, only }
    }

    fn client(wish: Wish, over: Transport) -> Client {
        Client::new(wish, Version { major: 2, minor: 0, patch: 2 }, over, [7; 16], s(0))
    }

    fn by(text: &str) -> Login {
        alice(Mechanism::parse(text))
    }

    /// The payload of the only datagram to be sent, its header checked, and the header.
    fn sent(client: &mut Client, sequence: u32) -> (Header, String) {
        let out = client.poll_output();
        let [Output::Send(datagram)] = &out[..] else { panic!("{out:?}") };
        let Some(Datagram::Message { header, payload }) = Datagram::parse(datagram, false) else {
            panic!("{datagram:?}")
        };
        assert_eq!(header.sequence(), 0xf000_0000 + sequence);
        (header, String::from_utf8(payload.to_vec()).unwrap())
    }

    /// Talks by UDP: each line of ours and the server's answer to it.
    fn talks(client: &mut Client, talk: &[(&str, &str)]) {
        for (n, (ours, theirs)) in talk.iter().enumerate() {
            let (header, payload) = sent(client, 0xf0 + u32::try_from(n).unwrap());
            assert_eq!(payload, *ours, "message {n}");
            client.handle_datagram(&header.wrap(theirs.as_bytes()), s(1));
        }
    }

    fn granted(client: &mut Client) -> Granted {
        let out = client.poll_output();
        let [Output::Up(granted)] = &out[..] else { panic!("{out:?}") };
        assert_eq!(client.poll_timeout(), None);
        granted.clone()
    }

    fn over(client: &mut Client) -> End {
        let out = client.poll_output();
        let Some(Output::Over(end)) = out.last() else { panic!("{out:?}") };
        assert_eq!(client.poll_timeout(), None);
        end.clone()
    }

    fn text(line: Vec<u8>) -> String {
        String::from_utf8(line).unwrap() + "\r\n"
    }

    /// A mechanism's lines as a server that knows the password says them.
    struct Knowing(auth::Server);

    impl Knowing {
        fn begin(mechanism: Mechanism) -> (Self, String) {
            let site = auth::Site { realm: "broker.example".to_owned(), service: "tsp", salt: [1; 32] };
            let (server, next) = auth::Server::begin(&site, mechanism, [5; 16]);
            (Self(server), Self::said(next))
        }

        fn hears(&mut self, line: &str) -> String {
            Self::said(self.0.step(line.trim_end().as_bytes()))
        }

        fn said(next: auth::Next) -> String {
            match next {
                auth::Next::Say(line) => text(line),
                auth::Next::Listen => String::new(),
                auth::Next::Prove(claim) => text(claim.prove(b"wonderland").expect("the password is right")),
                auth::Next::Anonymous | auth::Next::Failed(_) => panic!("{next:?}"),
            }
        }
    }

    #[test]
    fn a_session_in_datagrams_with_digest_md5() {
        let mut client = client(wish(alice(None)), Transport::Udp);
        talks(&mut client, &[("VERSION=2.0.2\r\n", CAPABILITY)]);
        let (mut server, challenge) = Knowing::begin(Mechanism::DigestMd5);
        let (header, payload) = sent(&mut client, 0xf1);
        assert_eq!(payload, "AUTHENTICATE DIGEST-MD5\r\n");
        client.handle_datagram(&header.wrap(challenge.as_bytes()), s(1));
        let (header, response) = sent(&mut client, 0xf2);
        client.handle_datagram(&header.wrap(server.hears(&response).as_bytes()), s(1));
        let (header, poll) = sent(&mut client, 0xf3);
        assert_eq!(poll, "", "an empty datagram asks for the next line");
        client.handle_datagram(&header.wrap(b"200 Success\r\n"), s(1));
        let (header, create) = sent(&mut client, 0xf4);
        assert_eq!(create, CREATE);
        client.handle_datagram(&header.wrap(OFFER.as_bytes()), s(1));
        let (header, accept) = sent(&mut client, 0xf5);
        assert_eq!(accept, ACCEPT);
        client.handle_datagram(&header.wrap(b""), s(1));
        let granted = granted(&mut client);
        assert_eq!((granted.mode, granted.server_v4), (Mode::V6V4, Some(Ipv4Addr::new(192, 0, 2, 1))));
        assert_eq!(granted.client_v6, "2001:db8:f0::2".parse::<Ipv6Addr>().unwrap());
        assert_eq!(granted.prefix, Some(("2001:db8:1234::".parse().unwrap(), 48)));
        assert_eq!(granted.keepalive, (30, granted.server_v6));
        assert_eq!(granted.dns, ["2001:db8::53".parse::<Ipv6Addr>().unwrap()]);
        assert_eq!(granted.name.as_deref(), Some("alice.broker.example"));
        assert_eq!(granted.lifetime, Some(s(604_800)));
    }

    /// Over TCP lines come as the network cuts them: all at once, or octet by octet.
    #[test]
    fn a_session_in_a_stream_with_every_mechanism() {
        for (name, piece) in
            [("DIGEST-MD5", 1), ("DIGEST-MD5", 9999), ("SCRAM-SHA-256", 3), ("SCRAM-SHA-256", 9999)]
        {
            let mechanism = Mechanism::parse(name).unwrap();
            let mut client = client(wish(alice(Some(mechanism))), Transport::Tcp);
            let said = |client: &mut Client| -> String {
                let out = client.poll_output().into_iter().map(|output| match output {
                    Output::Send(octets) => String::from_utf8(octets).unwrap(),
                    other @ (Output::Up(_) | Output::Over(_)) => panic!("{other:?}"),
                });
                out.collect()
            };
            let hear = |client: &mut Client, text: &str| {
                text.as_bytes().chunks(piece).for_each(|octets| client.handle_input(octets, s(1)));
            };
            assert_eq!(said(&mut client), "VERSION=2.0.2\r\n");
            hear(&mut client, &CAPABILITY.replace("AUTH=PLAIN", "AUTH=SCRAM-SHA-256"));
            let (mut server, challenge) = Knowing::begin(mechanism);
            let begun = said(&mut client);
            let first = begun.strip_prefix(&format!("AUTHENTICATE {name}\r\n")).unwrap();
            let challenge = if first.is_empty() { challenge } else { server.hears(first) };
            hear(&mut client, &challenge);
            let proof = server.hears(&said(&mut client));
            hear(&mut client, &format!("{proof}200 Success\r\n"));
            assert_eq!(said(&mut client), CREATE, "{name}");
            hear(&mut client, OFFER);
            let out = client.poll_output();
            let [Output::Send(accept), Output::Up(granted)] = &out[..] else { panic!("{out:?}") };
            assert_eq!((accept.as_slice(), granted.mode), (ACCEPT.as_bytes(), Mode::V6V4));
        }
    }

    #[test]
    fn a_nat_is_noticed_by_the_server_with_plain() {
        let login = by("PLAIN");
        let wish = Wish {
            mode: Mode::V6AnyV4,
            claimed: [10, 1, 1, 1].into(),
            prefix: None,
            dns: vec![],
            ..wish(login)
        };
        let mut client = client(wish, Transport::Udp);
        let offer = OFFER.replace("\"v6v4\"", "\"v6udpv4\"").replace("739", "742");
        talks(
            &mut client,
            &[
                ("VERSION=2.0.2\r\n", "CAPABILITY TUNNEL=V6V4 TUNNEL=V6UDPV4 AUTH=PLAIN\r\n"),
                ("AUTHENTICATE PLAIN\r\n", ""),
                ("\0alice\0wonderland\r\n", "200 Success\r\n"),
            ],
        );
        let (header, create) = sent(&mut client, 0xf3);
        assert!(create.contains("type=\"v6anyv4\"") && create.contains("10.1.1.1"), "{create}");
        client.handle_datagram(&header.wrap(offer.as_bytes()), s(1));
        let (header, _) = sent(&mut client, 0xf4);
        client.handle_datagram(&header.wrap(b"Content-length: 13\r\n200 Success\r\n"), s(1));
        assert_eq!(granted(&mut client).mode, Mode::V6UdpV4);
    }

    #[test]
    fn the_draft_knows_no_acknowledgement() {
        let wish = Wish { prefix: None, keepalive: 0, dns: vec![], ..wish(Login::Anonymous) };
        let version = Version { major: 1, minor: 0, patch: 0 };
        let mut client = Client::new(wish, version, Transport::Tcp, [7; 16], s(0));
        assert_eq!(client.poll_output(), [Output::Send(b"VERSION=1.0\r\n".to_vec())]);
        client.handle_input(b"CAPABILITY TUNNEL=V6V4 AUTH=DIGEST-MD5 AUTH=ANONYMOUS\r\n", s(1));
        assert_eq!(client.poll_output(), [Output::Send(b"AUTHENTICATE ANONYMOUS\r\n".to_vec())]);
        client.handle_input(b"200 Authentication successful\r\n", s(1));
        let [Output::Send(create)] = &client.poll_output()[..] else { panic!() };
        assert!(create.starts_with(b"Content-length: "));
        client.handle_input(OFFER.as_bytes(), s(1));
        assert_eq!(granted(&mut client).prefix.map(|(_, len)| len), Some(48));
    }

    #[test]
    fn what_is_not_answered_is_said_again_with_a_new_time() {
        let mut client = client(wish(alice(None)), Transport::Udp);
        let (first, _) = sent(&mut client, 0xf0);
        for at in [2, 4] {
            assert_eq!(client.poll_timeout(), Some(s(at)));
            client.handle_timeout(s(at));
            let (again, payload) = sent(&mut client, 0xf0);
            assert_eq!(
                (again.timestamp() - first.timestamp(), payload.as_str()),
                (u32::try_from(at * 1000).unwrap(), "VERSION=2.0.2\r\n")
            );
        }
        client.handle_timeout(s(6));
        assert_eq!(over(&mut client), End::Silent);
    }

    #[test]
    fn a_server_that_has_answered_is_waited_for() {
        let mut client = client(wish(alice(None)), Transport::Udp);
        let (header, _) = sent(&mut client, 0xf0);
        client.handle_datagram(&header.wrap(CAPABILITY.as_bytes()), s(10));
        sent(&mut client, 0xf1);
        // The same answer again, and answers to nothing of ours.
        client.handle_datagram(&header.wrap(CAPABILITY.as_bytes()), s(10));
        client.handle_datagram(b"200 Success", s(10));
        for at in [2, 4, 6, 8, 12, 20, 36] {
            client.handle_timeout(s(10 + at));
            sent(&mut client, 0xf1);
        }
        client.handle_timeout(s(75));
        assert!(client.poll_output().is_empty());
        client.handle_timeout(s(76));
        assert!(matches!(over(&mut client), End::Lost(_)));
    }

    /// What becomes of the session when the server answers the version with this.
    fn after(payload: &str) -> End {
        let mut udp = client(wish(alice(None)), Transport::Udp);
        talks(&mut udp, &[("VERSION=2.0.2\r\n", payload)]);
        let mut tcp = client(wish(alice(None)), Transport::Tcp);
        tcp.poll_output();
        tcp.handle_input(payload.as_bytes(), s(1));
        let end = over(&mut udp);
        assert_eq!(over(&mut tcp), end, "the same by TCP");
        end
    }

    #[test]
    fn refusals_are_told_from_losses() {
        assert_eq!(after("302 Unsupported client version\r\n"), End::OtherVersion);
        assert!(matches!(after("530 Server too busy\r\n"), End::Lost(why) if why.contains("too busy")));
        assert!(matches!(after("SSH-2.0-x\r\n"), End::Lost(why) if why.contains("port right")));
        assert!(
            matches!(after("CAPABILITY TUNNEL=V4V6 AUTH=PLAIN\r\n"), End::Refused(why) if why.contains("v4v6"))
        );
        let plain = after("CAPABILITY TUNNEL=V6V4 AUTH=PLAIN AUTH=ANONYMOUS\r\n");
        assert!(matches!(plain, End::Refused(why) if why.contains("PLAIN, ANONYMOUS")), "never unasked");
        let list = ["192.0.2.7", "ts1.example.net:99", "2001:db8::1", "192.0.2.7"]
            .map(|text| BrokerAt::parse(text).unwrap());
        let list = emit_list(&list);
        let places: Vec<Place> =
            ["192.0.2.7", "ts1.example.net:99"].map(|text| Place::parse(text).unwrap()).to_vec();
        assert_eq!(after(&format!("1302 Unsupported client version\r\n{list}")), End::Elsewhere(places));
        assert!(matches!(after("1200 Redirection\r\n<tunnel action=\"list\"></tunnel>\r\n"), End::Lost(_)));
    }

    #[test]
    fn the_answer_to_the_wish_may_be_no() {
        for (reply, wanted) in
            [("303 x", "303"), ("507 x", "507"), ("1301 x\r\n<tunnel/>", "list"), ("x", "no answer")]
        {
            let mut client = client(wish(Login::Anonymous), Transport::Udp);
            talks(
                &mut client,
                &[("VERSION=2.0.2\r\n", CAPABILITY), ("AUTHENTICATE ANONYMOUS\r\n", "200 OK\r\n")],
            );
            let (header, _) = sent(&mut client, 0xf2);
            client.handle_datagram(&header.wrap(frame(&format!("{reply}\r\n")).as_bytes()), s(1));
            let end = over(&mut client);
            assert_eq!(matches!(end, End::Refused(_)), reply.starts_with("303"), "{end}");
            assert!(end.to_string().contains(wanted), "{end}");
        }
    }

    #[test]
    fn a_wrong_password_is_final_and_success_is_not_believed_too_soon() {
        let (_, challenge) = Knowing::begin(Mechanism::DigestMd5);
        for (answer, why) in
            [("300 Authentication failed\r\n", "password may be wrong"), ("200 Success\r\n", "not proven")]
        {
            let mut client = client(wish(alice(None)), Transport::Udp);
            talks(
                &mut client,
                &[("VERSION=2.0.2\r\n", CAPABILITY), ("AUTHENTICATE DIGEST-MD5\r\n", &challenge)],
            );
            let (header, _) = sent(&mut client, 0xf2);
            client.handle_datagram(&header.wrap(answer.as_bytes()), s(1));
            assert!(matches!(over(&mut client), End::Refused(told) if told.contains(why)));
        }
    }

    #[test]
    fn what_is_only_to_be_shown_is_given_back() {
        let mut client = client(Wish { decline: true, ..wish(Login::Anonymous) }, Transport::Udp);
        talks(
            &mut client,
            &[
                ("VERSION=2.0.2\r\n", CAPABILITY),
                ("AUTHENTICATE ANONYMOUS\r\n", "200 Success\r\n"),
                (CREATE, OFFER),
                ("Content-length: 35\r\n<tunnel action=\"reject\"></tunnel>\r\n", ""),
            ],
        );
        granted(&mut client);
    }

    #[test]
    fn the_end_of_a_stream_is_silence_or_a_loss() {
        let mut tcp = client(wish(alice(None)), Transport::Tcp);
        tcp.handle_end();
        assert_eq!(over(&mut tcp), End::Silent);
        let mut tcp = client(wish(alice(None)), Transport::Tcp);
        tcp.handle_input(CAPABILITY.as_bytes(), s(1));
        tcp.handle_end();
        assert!(matches!(over(&mut tcp), End::Lost(_)));
        let mut tcp = client(wish(alice(None)), Transport::Tcp);
        tcp.handle_timeout(ANSWER);
        assert_eq!(over(&mut tcp), End::Silent);
        let mut tcp = client(wish(alice(None)), Transport::Tcp);
        tcp.poll_output();
        tcp.handle_input(&[b'x'; MAX_INPUT + 1], s(1));
        assert!(matches!(over(&mut tcp), End::Lost(_)));
    }

    #[test]
    fn brokers_are_timed_by_a_question_of_20_octets() {
        let asked = echo_request(s(1));
        assert_eq!(asked, b"\xf0\0\0\xf0\0\0\x03\xe8ECHO REQUEST");
        assert!(is_echo_reply(b"\xf0\0\0\xf0\0\0\x03\xe8200 Success\r\n") && is_echo_reply(b"200 OK"));
        assert!(
            !is_echo_reply(&asked) && !is_echo_reply(b"") && !is_echo_reply(b"\xf0\0\0\xf0\0\0\x03\xe8530 x")
        );
    }

    proptest! {
        #[test]
        fn no_answers_harm_the_client(
            answers in proptest::collection::vec("[ -~\r\n\0]{0,60}|200 Success\r\n|CAPABILITY TUNNEL=V6V4 AUTH=ANONYMOUS\r\n|Content-length: 9\r\n200 x\r\n<a", 1..20)
        ) {
            let mut udp = client(wish(Login::Anonymous), Transport::Udp);
            let mut tcp = client(wish(Login::Anonymous), Transport::Tcp);
            let mut sent = 0;
            for answer in &answers {
                tcp.handle_input(answer.as_bytes(), s(1));
                let header = Header::new(udp.sequence, 0);
                udp.handle_datagram(&header.wrap(answer.as_bytes()), s(1));
                sent += udp.poll_output().len();
            }
            prop_assert!(sent <= MOST_DATAGRAMS as usize + 2);
        }
    }
}
