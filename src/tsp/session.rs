//! One client's way from `VERSION` to its tunnel (RFC 5572 section 4, draft-vg-ngtrans-tsp-01 section 4), over TCP and UDP.
//!
//! Pure: messages, time and answers of the office come in; what is to be said, proven and granted comes out. What goes out
//! keeps to what deployed clients survive: one line is one [`Output::Send`], nothing is said where nothing is read, and
//! over TCP a pause parts the two last lines of a login. Over UDP every message is answered exactly once. Refuses to know
//! sockets, headers and repeated datagrams, and has never seen a secret.

use std::time::Duration;

use super::codec::{Code, Dialect, Line, MAX_REPLY, Mode, Status, Version, first_line};
use super::framing::{BadFrame, Input, frame, unframe};
use super::terms::{Found, Given, Step, Terms, Transport};
use super::want::{Want, want};
use super::xml::{Action, BadXml, Info, Tunnel, emit_list_within};
use crate::auth::{Claim, Mechanism, Next, Server as Login};
use crate::broker::UserName;

/// How long a client may think before its next message; gogoc repeats one message for 66 s.
pub const PATIENCE: Duration = Duration::from_secs(75);
/// How long a message may take from its first octet to its last.
pub const MESSAGE_TIME: Duration = Duration::from_secs(30);
/// The largest answer over UDP: the protocol cannot put fragments together.
const MAX_DATAGRAM: usize = 1200;
/// The same before a login: a list of three brokers or so.
const MAX_GREETING: usize = 512;
/// What the caller must do, in this order.
#[derive(Debug)]
pub enum Output {
    /// Say this: one write over TCP, one datagram over UDP (without its header; it may be empty).
    Send(Vec<u8>),
    /// Over TCP: wait until the client has read what was said.
    Pause,
    /// Look whether the client is who it claims to be, then call [`Session::handle_proof`].
    Prove(Claim),
    /// Get this tunnel, then call [`Session::handle_grant`].
    Grant(Want),
    /// Find this user's tunnel, then call [`Session::handle_found`].
    Find(UserName),
    /// End this user's tunnel, then call [`Session::handle_deleted`].
    Delete(UserName),
    /// The client has taken the tunnel: it lasts without this session from now on. Call [`Session::handle_taken`] once it is
    /// the client's.
    Accepted,
    /// Give back what was granted.
    Release,
    /// Say no more and close; over UDP: forget the session once its last answer need not be repeated.
    Finish,
}

/// Who the client is, once that is known.
type Who = Option<UserName>;

#[derive(Debug)]
enum Stage {
    /// `VERSION` must come.
    Hello,
    /// `AUTHENTICATE` must come.
    Auth,
    /// The mechanism talks.
    AuthX(Login),
    /// The caller looks whether the client is who it claims to be.
    Proving,
    /// Over UDP: success is said when the client asks what else there is.
    Poll(Who),
    /// A request must come.
    Command(Who),
    /// The caller asks the office.
    Asking(Who, Option<Want>),
    /// The client must accept or reject.
    Offered(Who, Info),
    /// The caller sees to it that the tunnel is the client's.
    Taking(Who, Info),
    /// It has a tunnel.
    Established(Who, Info),
    /// There is no more to it.
    Over,
}

/// A session.
#[derive(Debug)]
pub struct Session {
    terms: Terms,
    stage: Stage,
    dialect: Dialect,
    draining: bool,
    input: Input,
    begun: bool,
    deadline: Duration,
    out: Vec<Output>,
}

impl Session {
    /// A session of which nothing has been said yet.
    pub fn new(terms: Terms, now: Duration) -> Self {
        Self {
            terms,
            stage: Stage::Hello,
            dialect: Dialect::Rfc,
            draining: false,
            input: Input::default(),
            begun: false,
            deadline: now + PATIENCE,
            out: Vec::new(),
        }
    }

    /// Whether the operator sends clients elsewhere from now on.
    pub fn set_draining(&mut self, draining: bool) {
        self.draining = draining;
    }

    /// Whether more may be given to it: not while the caller owes it an answer.
    pub fn wants_input(&self) -> bool {
        !matches!(self.stage, Stage::Proving | Stage::Asking(..) | Stage::Taking(..))
    }

    /// Whether there is no more to it.
    pub fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Over)
    }

    /// Whether the client has its tunnel: nothing that happens to the session matters to that any more.
    pub fn is_established(&self) -> bool {
        matches!(self.stage, Stage::Established(..))
    }

    /// How much would be lost with it, where room is short: 0 where nothing is known or it is over, 1 where the endpoint
    /// has not been seen to be the client's, 2 under way, 3 once the client has its tunnel.
    pub fn rank(&self) -> u8 {
        match &self.stage {
            Stage::Hello | Stage::Auth | Stage::Over => 0,
            // Nobody in particular proves nothing, however far he gets.
            Stage::AuthX(_)
            | Stage::Poll(None)
            | Stage::Command(None)
            | Stage::Asking(None, _)
            | Stage::Offered(None, _)
            | Stage::Taking(None, _)
            | Stage::Established(None, _) => 1,
            Stage::Proving
            | Stage::Poll(Some(_))
            | Stage::Command(Some(_))
            | Stage::Asking(Some(_), _)
            | Stage::Offered(Some(_), _)
            | Stage::Taking(Some(_), _) => 2,
            Stage::Established(Some(_), _) => 3,
        }
    }

    /// Octets have come over TCP.
    pub fn handle_input(&mut self, octets: &[u8], now: Duration) {
        if self.is_over() {
            return;
        }
        self.input.push(octets);
        self.read(now);
    }

    /// A message has come over UDP, without its header.
    pub fn handle_datagram(&mut self, payload: &[u8], now: Duration) {
        self.deadline = now + PATIENCE;
        if payload.is_empty() {
            return self.poll();
        }
        match &self.stage {
            Stage::Command(_) | Stage::Offered(..) | Stage::Established(..) => match unframe(payload) {
                Ok(body) => {
                    let body = body.to_vec();
                    self.handle_request(&body);
                }
                // What is no frame at all belongs to another state; what is a broken one is a bad request.
                Err(BadFrame::NoLength) if is_login(payload) => self.refuse_login(),
                Err(BadFrame::NoLength) => self.fail(Code::ServerError),
                Err(BadFrame::TooLong | BadFrame::Short) => self.fail(Code::InvalidRequest),
            },
            Stage::AuthX(_) => {
                // PLAIN has NULs within: only its line end is cut.
                let end = payload.iter().position(|b| matches!(b, b'\r' | b'\n')).unwrap_or(payload.len());
                self.handle_line(&payload[..end]);
            }
            Stage::Hello | Stage::Auth => self.handle_line(first_line(payload)),
            Stage::Poll(_) | Stage::Over if is_login(payload) => self.refuse_login(),
            Stage::Poll(_) | Stage::Over => self.fail(Code::ServerError),
            Stage::Proving | Stage::Asking(..) | Stage::Taking(..) => {}
        }
    }

    /// The answer to [`Output::Prove`]: who it is, and the line by which we prove ourselves, empty for none. `None`: it is
    /// not who it claims to be.
    pub fn handle_proof(&mut self, proof: Option<(UserName, Vec<u8>)>, now: Duration) {
        if !matches!(self.stage, Stage::Proving) {
            return;
        }
        self.deadline = now + PATIENCE;
        match proof {
            None => self.fail(Code::AuthenticationFailed),
            Some((user, line)) if line.is_empty() => self.admit(Some(user)),
            Some((user, mut line)) => {
                line.extend_from_slice(b"\r\n");
                self.out.push(Output::Send(line));
                if self.terms.transport == Transport::Udp {
                    self.stage = Stage::Poll(Some(user));
                    return;
                }
                // Read in one go with the line before it, success would never be seen.
                self.out.push(Output::Pause);
                self.admit(Some(user));
            }
        }
        self.read(now);
    }

    /// The answer to [`Output::Grant`].
    pub fn handle_grant(&mut self, grant: Result<Given, Code>, now: Duration) {
        let Stage::Asking(who, Some(want)) = self.take() else { return };
        self.deadline = now + PATIENCE;
        let given = match grant {
            Ok(given) => given,
            Err(code) => {
                self.stage = Stage::Command(who);
                return self.refuse(code);
            }
        };
        let found = Found { mode: want.mode, end: want.claimed, given, keepalive: want.keepalive };
        let info = self.terms.info(found, who.as_ref());
        self.say_framed(&info.emit());
        self.stage = match self.dialect {
            // No accept comes.
            Dialect::Draft => {
                self.out.push(Output::Accepted);
                Stage::Established(who, info)
            }
            Dialect::Rfc => Stage::Offered(who, info),
        };
        self.read(now);
    }

    /// The answer to [`Output::Accepted`]: the tunnel is the client's, or why it cannot be any more.
    pub fn handle_taken(&mut self, taken: Result<(), Code>, now: Duration) {
        if !matches!(self.stage, Stage::Taking(..)) {
            return;
        }
        let Stage::Taking(who, info) = self.take() else { return };
        self.deadline = now + PATIENCE;
        match taken {
            Ok(()) => {
                self.stage = Stage::Established(who, info);
                self.acknowledge();
            }
            Err(code) => {
                self.stage = Stage::Command(who);
                self.refuse(code);
            }
        }
        self.read(now);
    }

    /// The answer to [`Output::Find`].
    pub fn handle_found(&mut self, found: Option<Found>, now: Duration) {
        let Stage::Asking(who, None) = self.take() else { return };
        let info = found.map(|found| self.terms.info(found, who.as_ref()).emit());
        self.stage = Stage::Command(who);
        self.say_framed(&info.unwrap_or_default());
        self.deadline = now + PATIENCE;
        self.read(now);
    }

    /// [`Output::Delete`] is done.
    pub fn handle_deleted(&mut self, now: Duration) {
        let Stage::Asking(who, None) = self.take() else { return };
        self.stage = Stage::Command(who);
        self.say_framed("");
        self.deadline = now + PATIENCE;
        self.read(now);
    }

    /// The client says no more, or the connection is broken. A tunnel that was accepted stays.
    pub fn handle_end(&mut self) {
        self.finish();
    }

    /// The time has come that [`Self::poll_timeout`] said.
    pub fn handle_timeout(&mut self, now: Duration) {
        if self.poll_timeout().is_some_and(|at| at <= now) {
            self.finish();
        }
    }

    /// When [`Self::handle_timeout`] must be called; `None` while the caller owes it an answer, and where there is nothing
    /// to wait for: over TCP a client keeps its connection as long as its tunnel.
    pub fn poll_timeout(&self) -> Option<Duration> {
        let lasts = self.is_established() && self.terms.transport == Transport::Tcp;
        (self.wants_input() && !lasts && !self.is_over()).then_some(self.deadline)
    }

    /// Whether something is to be done.
    pub fn has_output(&self) -> bool {
        !self.out.is_empty()
    }

    /// What is to be done, once.
    pub fn poll_output(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.out)
    }

    // ---- what comes ----

    fn read(&mut self, now: Duration) {
        while self.terms.transport == Transport::Tcp && self.wants_input() && !self.is_over() {
            let framed =
                matches!(self.stage, Stage::Command(_) | Stage::Offered(..) | Stage::Established(..));
            let message = if framed { self.input.frame() } else { self.input.line() };
            match message {
                Ok(None) => break,
                Ok(Some(message)) => {
                    self.begun = false;
                    self.deadline = now + PATIENCE;
                    if framed { self.handle_request(&message) } else { self.handle_line(&message) }
                }
                Err(_) => self.fail(Code::InvalidRequest),
            }
        }
        // A message must be whole some time after its first octet; one that has been waiting began long ago.
        if !self.input.is_empty() && !self.begun {
            (self.begun, self.deadline) = (true, now + MESSAGE_TIME);
        }
        if self.is_over() {
            self.input = Input::default();
        }
    }

    /// An empty datagram: what else is there to be said?
    fn poll(&mut self) {
        if !matches!(self.stage, Stage::Poll(_)) {
            return self.out.push(Output::Send(Vec::new()));
        }
        let Stage::Poll(who) = self.take() else { return };
        self.admit(who);
    }

    fn handle_line(&mut self, line: &[u8]) {
        match &self.stage {
            Stage::Hello => self.handle_version(line),
            Stage::Auth => self.handle_authenticate(line),
            Stage::AuthX(_) => {
                let Stage::AuthX(mut login) = self.take() else { return };
                let next = login.step(line);
                self.go_on(login, next);
            }
            Stage::Proving
            | Stage::Poll(_)
            | Stage::Command(_)
            | Stage::Asking(..)
            | Stage::Offered(..)
            | Stage::Taking(..)
            | Stage::Established(..)
            | Stage::Over => self.fail(Code::ServerError),
        }
    }

    fn handle_version(&mut self, line: &[u8]) {
        if is_login(line) {
            return self.refuse_login();
        }
        let Line::Version(version) = Line::parse(line) else { return self.fail(Code::ServerError) };
        let dialect = version.and_then(Version::dialect);
        // The draft has no UDP, neither for what is said nor for tunnels.
        let has_v6v4 = self.terms.offer.tunnels.contains(&Mode::V6V4);
        let fits = |d: &Dialect| *d == Dialect::Rfc || (self.terms.transport == Transport::Tcp && has_v6v4);
        let served = dialect.filter(fits);
        let Some(dialect) = served else {
            let redirects = !self.terms.offer.brokers.is_empty() && dialect.is_none();
            return self.end_with(Status { code: Code::UnsupportedVersion, redirect: redirects });
        };
        self.dialect = dialect;
        if let Some(status) = self.elsewhere(Step::Version) {
            return self.end_with(status);
        }
        let line = self.terms.offer.capability(self.dialect).emit();
        self.stage = Stage::Auth;
        self.out.push(Output::Send(line.into_bytes()));
    }

    fn handle_authenticate(&mut self, line: &[u8]) {
        let Line::Authenticate(name) = Line::parse(line) else { return self.fail(Code::ServerError) };
        if let Some(status) = self.elsewhere(Step::Login).filter(|status| status.redirect) {
            return self.end_with(status);
        }
        let known = Mechanism::parse(&name).filter(|one| self.terms.offer.mechanisms.contains(one));
        // Any other code crashes gogoc here.
        let Some(mechanism) = known else { return self.fail(Code::AuthenticationFailed) };
        let (login, next) = Login::begin(&self.terms.offer.site, mechanism, self.terms.random);
        self.go_on(login, next);
    }

    fn go_on(&mut self, login: Login, next: Next) {
        match next {
            Next::Say(mut line) => {
                line.extend_from_slice(b"\r\n");
                self.stage = Stage::AuthX(login);
                self.out.push(Output::Send(line));
            }
            Next::Listen => {
                self.stage = Stage::AuthX(login);
                if self.terms.transport == Transport::Udp {
                    // Over TCP an answer here would be taken for the login's result.
                    self.out.push(Output::Send(Vec::new()));
                }
            }
            Next::Prove(claim) => {
                self.stage = Stage::Proving;
                self.out.push(Output::Prove(claim));
            }
            Next::Anonymous => self.admit(None),
            Next::Failed(_) => self.fail(Code::AuthenticationFailed),
        }
    }

    fn admit(&mut self, who: Who) {
        self.stage = Stage::Command(who);
        let line = match self.dialect {
            Dialect::Rfc => Status::plain(Code::Success).emit(),
            Dialect::Draft => "200 Authentication successful\r\n".to_owned(),
        };
        self.out.push(Output::Send(line.into_bytes()));
    }

    fn handle_request(&mut self, body: &[u8]) {
        let request = match Tunnel::parse(body) {
            Ok(request) => request,
            Err(
                BadXml::TooLong | BadXml::TooMuch | BadXml::DocType | BadXml::Malformed(_) | BadXml::NoTunnel,
            ) => {
                return self.refuse(Code::InvalidRequest);
            }
        };
        match (&request.action, self.take()) {
            (Action::Create, Stage::Command(who) | Stage::Established(who, _)) => self.create(&request, who),
            (Action::Create, Stage::Offered(who, _)) => {
                self.out.push(Output::Release);
                self.create(&request, who);
            }
            (Action::Accept, Stage::Offered(who, info)) => {
                self.stage = Stage::Taking(who, info);
                self.out.push(Output::Accepted);
            }
            // A 1.0 client that accepts all the same, and one that says so twice.
            (Action::Accept, Stage::Established(who, info)) => {
                self.stage = Stage::Established(who, info);
                self.acknowledge();
            }
            (Action::Reject, Stage::Offered(who, _)) => {
                self.out.push(Output::Release);
                self.stage = Stage::Command(who);
                self.acknowledge();
            }
            (Action::Info, Stage::Offered(who, info)) => {
                self.say_framed(&info.emit());
                self.stage = Stage::Offered(who, info);
            }
            (Action::Info, Stage::Established(who, info)) => {
                self.say_framed(&info.emit());
                self.stage = Stage::Established(who, info);
            }
            (Action::Info, Stage::Command(Some(user))) => self.ask(Output::Find(user.clone()), user),
            (
                Action::Delete,
                Stage::Command(Some(user))
                | Stage::Offered(Some(user), _)
                | Stage::Established(Some(user), _),
            ) => {
                self.ask(Output::Delete(user.clone()), user);
            }
            // Nobody in particular has nothing but what this session was given.
            (Action::Info, Stage::Command(None)) => {
                self.stage = Stage::Command(None);
                self.say_framed("");
            }
            (
                Action::Delete,
                Stage::Command(None) | Stage::Offered(None, _) | Stage::Established(None, _),
            ) => {
                self.out.push(Output::Release);
                self.stage = Stage::Command(None);
                self.say_framed("");
            }
            (Action::Accept | Action::Reject, stage) => {
                self.stage = stage;
                self.refuse(Code::ServerError);
            }
            (_, stage) => {
                self.stage = stage;
                self.refuse(Code::InvalidRequest);
            }
        }
    }

    fn ask(&mut self, question: Output, user: UserName) {
        self.stage = Stage::Asking(Some(user), None);
        self.out.push(question);
    }

    fn create(&mut self, request: &Tunnel, who: Who) {
        self.stage = Stage::Command(who.clone());
        if let Some(status) = self.elsewhere(Step::Create) {
            return self.end_framed(status);
        }
        match want(&self.terms, request, who.clone(), self.dialect == Dialect::Draft) {
            Ok(want) => {
                self.stage = Stage::Asking(who, Some(want.clone()));
                self.out.push(Output::Grant(want));
            }
            Err(code) => self.refuse(code),
        }
    }

    // ---- what is said ----

    /// Where clients are sent at this step, if they are; without other brokers, that we are busy.
    fn elsewhere(&self, step: Step) -> Option<Status> {
        let offer = &self.terms.offer;
        let away = self.draining || offer.redirect.is_some_and(|at| at == step);
        let has_list = !offer.brokers.is_empty();
        let status = if has_list { Status::elsewhere(Code::Success) } else { Status::plain(Code::Busy) };
        // The draft knows no redirection without a reason.
        let is_bare = has_list && self.dialect == Dialect::Draft;
        let code = if is_bare { Code::NoMoreTunnels } else { self.known(status.code) };
        away.then_some(Status { code, ..status })
    }

    /// A line, with a list behind it where there is one to go to; then the end.
    fn end_with(&mut self, status: Status) {
        let text = status.emit() + &self.list(status);
        self.out.push(Output::Send(text.into_bytes()));
        self.finish();
    }

    fn end_framed(&mut self, status: Status) {
        let text = frame(&(status.emit() + &self.list(status)));
        self.out.push(Output::Send(text.into_bytes()));
        self.finish();
    }

    fn list(&self, status: Status) -> String {
        if !status.redirect {
            return String::new();
        }
        let most = match (self.terms.transport, &self.stage) {
            (Transport::Tcp, _) => MAX_REPLY,
            // Whoever has not logged in may be anybody: hardly more is said to him than he has said.
            (Transport::Udp, Stage::Hello | Stage::Auth) => MAX_GREETING,
            (Transport::Udp, _) => MAX_DATAGRAM,
        };
        // The status line and the length take some, too.
        emit_list_within(&self.terms.offer.brokers, most - 100)
    }

    fn say_framed(&mut self, xml: &str) {
        let line = match self.dialect {
            Dialect::Rfc => Status::plain(Code::Success).emit(),
            Dialect::Draft => "200 OK\r\n".to_owned(),
        };
        self.out.push(Output::Send(frame(&(line + xml)).into_bytes()));
    }

    /// Over TCP nobody reads an answer to `accept`; over UDP it is missed.
    fn acknowledge(&mut self) {
        if self.terms.transport == Transport::Udp {
            self.say_framed("");
        }
    }

    /// An error where lines are spoken; in the command phase it is framed.
    fn fail(&mut self, code: Code) {
        match self.stage {
            Stage::Command(_) | Stage::Offered(..) | Stage::Established(..) => self.refuse(code),
            Stage::Hello
            | Stage::Auth
            | Stage::AuthX(_)
            | Stage::Proving
            | Stage::Poll(_)
            | Stage::Asking(..)
            | Stage::Taking(..)
            | Stage::Over => self.end_with(Status::plain(self.known(code))),
        }
    }

    /// A login out of turn: any code but this one crashes gogoc there.
    fn refuse_login(&mut self) {
        self.end_with(Status::plain(Code::AuthenticationFailed));
    }

    /// An error to a request. Those of which another broker may know better go with a list.
    fn refuse(&mut self, code: Code) {
        let elsewhere =
            matches!(code, Code::NoMoreTunnels | Code::Busy) && !self.terms.offer.brokers.is_empty();
        self.end_framed(Status { code: self.known(code), redirect: elsewhere });
    }

    fn known(&self, code: Code) -> Code {
        if self.dialect == Dialect::Draft { code.in_draft() } else { code }
    }

    /// The last word is said. What was offered and not accepted goes back.
    fn finish(&mut self) {
        match self.take() {
            Stage::Offered(..) | Stage::Asking(_, Some(_)) => self.out.push(Output::Release),
            Stage::Over => return,
            Stage::Hello
            | Stage::Auth
            | Stage::AuthX(_)
            | Stage::Proving
            | Stage::Poll(_)
            | Stage::Command(_)
            | Stage::Asking(_, None)
            | Stage::Taking(..)
            | Stage::Established(..) => {}
        }
        self.out.push(Output::Finish);
    }

    fn take(&mut self) -> Stage {
        std::mem::replace(&mut self.stage, Stage::Over)
    }
}

fn is_login(message: &[u8]) -> bool {
    matches!(Line::parse(message), Line::Authenticate(_))
}
