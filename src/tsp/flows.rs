//! Sessions over UDP, one for each pair of endpoints: which datagram is new and which repeats the one before, what the
//! answer to it is, and which session goes when there is no room (RFC 5572 sections 4.4.1.2 and 4.5.2).
//!
//! ```text
//!   VERSION ──► answered, and forgotten           AUTHENTICATE ──► a session; the answer to DIGEST-MD5 comes again ...
//!                                                  ... to one that was given up for want of room ──► the session again
//! ```
//!
//! Pure, and bounded, for senders may be forged. Nothing is kept of those who got no further than `VERSION`. Where there
//! is no room the oldest go first of those that are over, then of those that have proven nothing; one address has no more
//! than its share of these. Those who have their tunnels have half of the room. While many come, nonces are made of the client's endpoint and the time, so that whoever
//! answers one has seen what was sent there: he goes on where he was, though nothing of him was remembered. Every session
//! of every client begins with the same sequence number, so a repeated datagram is known by sequence *and* payload; it is
//! answered with its own header, whose time stamp is new. Knows no socket.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use super::allowance::Allowance;
use super::codec::{Capability, Code, Line, Status};
use super::framing::{BadFrame, frame, unframe};
use super::header::{Datagram, Header};
use super::session::{Output, PATIENCE, Session};
use super::terms::{Offer, Terms, Transport};

/// Sessions at the same time, in all: each takes a kilobyte or two.
pub const MOST_FLOWS: usize = 65_536;
/// Sessions at the same time from one address, unproven.
pub const MOST_FROM_ADDRESS: usize = 1024;

/// The two ends of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ends {
    /// The client's.
    pub remote: SocketAddrV4,
    /// Ours, as the client knows it.
    pub local: SocketAddrV4,
}

/// What has happened, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowCounters {
    /// Datagrams that were messages.
    pub messages: u64,
    /// Of these, repeated ones.
    pub repeated: u64,
    /// `ECHO REQUEST`s answered.
    pub echoes: u64,
    /// Datagrams that are nothing of ours.
    pub strange: u64,
    /// Sessions given up for newer ones.
    pub evicted: u64,
    /// Of these, sessions that went on all the same.
    pub revived: u64,
    /// Answers not given, since too much was said to that address already.
    pub throttled: u64,
    /// Sessions in which nothing came for too long.
    pub timed_out: u64,
}

/// What the caller must do for the session between these ends.
#[derive(Debug)]
pub enum Act {
    /// Send this datagram.
    Send(Ends, Vec<u8>),
    /// Something else of [`Output`]; [`Output::Finish`] says that the session is forgotten. The number is the session's.
    Do(Ends, u64, Output),
}

/// A session's rank, when it was heard last, and its number: the lowest goes first.
type Place = (u8, Duration, u64);

/// A request: its header, and what it is known by when it is repeated.
type Asked = (Header, u64);

/// What a client has said that logs in, in words of ours.
const GREETING: &[u8] = b"VERSION=2.0.0";
/// What a client has said that answers a challenge.
const CHALLENGE_ME: &[u8] = b"AUTHENTICATE DIGEST-MD5";

/// The number of a while as long as clients are waited for.
fn epoch(now: Duration) -> u64 {
    now.as_secs() / PATIENCE.as_secs()
}

/// One session and its last answer.
#[derive(Debug)]
struct Flow {
    number: u64,
    session: Session,
    /// Where it stands in the queue.
    place: Place,
    /// The request that was answered last, or is being worked on.
    header: Header,
    request: u64,
    /// How often it has come again.
    again: u32,
    /// Those before it, the newest last.
    past: VecDeque<u64>,
    /// Whether the client has said its version again since: then it may begin anew.
    greeted: bool,
    /// What was said; `None`: it is being worked on.
    answer: Option<Vec<u8>>,
}

/// All sessions over UDP.
#[derive(Debug)]
pub struct Flows {
    flows: HashMap<Ends, Flow>,
    queue: BTreeMap<Place, Ends>,
    /// The places of each address, those of the proven left out.
    unproven: HashMap<Ipv4Addr, BTreeSet<Place>>,
    offer: Arc<Offer>,
    draining: bool,
    seed: RandomState,
    next: u64,
    most: usize,
    /// How many have their tunnels.
    settled: usize,
    /// Until then sessions may be given up for want of room.
    crowded: Duration,
    strangers: Allowance,
    counters: FlowCounters,
    acts: Vec<Act>,
}

impl Flows {
    /// No session yet; at most `most` of them.
    pub fn new(offer: Arc<Offer>, most: usize) -> Self {
        Self {
            flows: HashMap::new(),
            queue: BTreeMap::new(),
            unproven: HashMap::new(),
            offer,
            draining: false,
            seed: RandomState::new(),
            next: 0,
            most: most.max(1),
            settled: 0,
            crowded: Duration::ZERO,
            strangers: Allowance::default(),
            counters: FlowCounters::default(),
            acts: Vec::new(),
        }
    }

    /// What is offered from now on, to new sessions; and whether clients are sent elsewhere.
    pub fn set_terms(&mut self, offer: Arc<Offer>, draining: bool) {
        (self.offer, self.draining) = (offer, draining);
    }

    /// How many sessions there are.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// What has happened.
    pub fn counters(&self) -> FlowCounters {
        self.counters
    }

    /// What is to be done, once.
    pub fn poll_acts(&mut self) -> Vec<Act> {
        std::mem::take(&mut self.acts)
    }

    /// A datagram that is not IPv6 has come; `random` is new for each.
    pub fn handle_datagram(&mut self, ends: Ends, octets: &[u8], random: [u8; 16], now: Duration) {
        let known_legacy = self.flows.get(&ends).is_some_and(|flow| flow.header.is_legacy());
        let (header, payload) = match Datagram::parse(octets, known_legacy) {
            None => return self.counters.strange += 1,
            Some(Datagram::Echo(header)) => {
                self.counters.echoes += 1;
                return self.acts.push(Act::Send(ends, Datagram::echo_reply(header)));
            }
            Some(Datagram::Message { header, payload }) => (header, payload),
        };
        // Whatever answers to answers must not be led on: two servers would talk for ever.
        if is_answer(payload) {
            return self.counters.strange += 1;
        }
        self.counters.messages += 1;
        let request = self.seed.hash_one((header.sequence(), payload));
        let line = Line::parse(payload);
        let is_greeted = self.flows.get(&ends).is_none_or(|flow| flow.greeted);
        let begins = is_greeted && matches!(line, Line::Authenticate(_));
        if self.is_repeated(ends, (header, request), begins, now) {
            return self.counters.repeated += 1;
        }
        match line {
            Line::Version(_) => self.greet(ends, header, payload, now),
            Line::Authenticate(_) if begins => self.begin(ends, (header, request), payload, random, now),
            Line::Authenticate(_) | Line::Other => self.go_on(ends, (header, request), payload, now),
        }
    }

    /// Whether it has come before. The last request is answered again, to the newest header; what is older comes late and
    /// is waited for by nobody.
    fn is_repeated(&mut self, ends: Ends, (header, request): Asked, begins: bool, now: Duration) -> bool {
        let Some(flow) = self.flows.get_mut(&ends) else { return false };
        if flow.request != request {
            // A client that begins anew may say the very same again, but later, by its clock if it has one.
            let is_later = header.timestamp().wrapping_sub(flow.header.timestamp()).cast_signed() > 0;
            return !is_later && !begins && flow.past.contains(&request);
        }
        flow.again += 1;
        if flow.again <= MOST_AGAIN {
            flow.header = header;
            let is_stranger = flow.place.0 < PROVEN;
            // What is being worked on is answered once.
            if let Some(answer) = flow.answer.clone() {
                self.say(ends, header, &answer, is_stranger, now);
            }
        }
        true
    }

    fn say(&mut self, ends: Ends, header: Header, text: &[u8], is_stranger: bool, now: Duration) {
        let datagram = header.wrap(text);
        if is_stranger && !self.strangers.take(*ends.remote.ip(), datagram.len(), now) {
            return self.counters.throttled += 1;
        }
        self.acts.push(Act::Send(ends, datagram));
    }

    /// A new session is to begin, whatever was before; that goes once the client begins to log in, and its tunnel when
    /// another is earned. The same question will get the same answer, and what is said next tells that this was: it need
    /// not be remembered.
    fn greet(&mut self, ends: Ends, header: Header, payload: &[u8], now: Duration) {
        if let Some(flow) = self.flows.get_mut(&ends) {
            flow.greeted = true;
        }
        let mut session = self.session(ends, [0; 16], now);
        session.handle_datagram(payload, now);
        for output in session.poll_output() {
            if let Output::Send(text) = output {
                self.say(ends, header, &text, true, now);
            }
        }
    }

    fn session(&self, ends: Ends, random: [u8; 16], now: Duration) -> Session {
        let terms = Terms {
            transport: Transport::Udp,
            peer: *ends.remote.ip(),
            local: *ends.local.ip(),
            random,
            offer: self.offer.clone(),
        };
        let mut session = Session::new(terms, now);
        session.set_draining(self.draining);
        session
    }

    /// A session that was greeted, if its greeting left it anything to say.
    fn greeted(&self, ends: Ends, random: [u8; 16], now: Duration) -> Option<Session> {
        let mut session = self.session(ends, random, now);
        session.handle_datagram(GREETING, now);
        let _said_already = session.poll_output();
        (!session.is_over()).then_some(session)
    }

    /// A client logs in.
    fn begin(&mut self, ends: Ends, asked: Asked, payload: &[u8], random: [u8; 16], now: Duration) {
        let random = if self.is_crowded(now) { self.nonce(ends, epoch(now)) } else { random };
        self.drop_flow(ends);
        let Some(mut session) = self.greeted(ends, random, now) else {
            return self.say(ends, asked.0, &no_session(payload), true, now);
        };
        session.handle_datagram(payload, now);
        self.enter(ends, asked, session, now);
    }

    fn enter(&mut self, ends: Ends, (header, request): Asked, session: Session, now: Duration) {
        self.make_room(ends, now);
        self.next += 1;
        let place = (session.rank(), now, self.next);
        let (number, past) = (self.next, VecDeque::new());
        let flow =
            Flow { number, session, place, header, request, again: 0, past, greeted: false, answer: None };
        self.enqueue(place, ends);
        self.flows.insert(ends, flow);
        self.settle(ends, now);
    }

    /// Whoever answers a challenge of ours has been sent it, even if nothing of that is remembered.
    fn revive(&self, ends: Ends, payload: &[u8], now: Duration) -> Option<Session> {
        if !self.is_crowded(now) || payload.is_empty() {
            return None;
        }
        let last = epoch(now);
        [last, last.saturating_sub(1)].into_iter().find_map(|epoch| {
            let mut session = self.greeted(ends, self.nonce(ends, epoch), now)?;
            session.handle_datagram(CHALLENGE_ME, now);
            let _said_already = session.poll_output();
            session.handle_datagram(payload, now);
            // It waits to be proven only if the nonce was right.
            (!session.wants_input()).then_some(session)
        })
    }

    /// Whether sessions are given up for want of room, or soon will be.
    fn is_crowded(&self, now: Duration) -> bool {
        self.flows.len() > self.most / 2 || now < self.crowded
    }

    /// What nobody knows but whoever sees what is sent to this client.
    fn nonce(&self, ends: Ends, epoch: u64) -> [u8; 16] {
        let Ends { remote, local } = ends;
        let text = format!("{remote} {local} {epoch}");
        self.offer.site.token(text.as_bytes())
    }

    fn go_on(&mut self, ends: Ends, asked: Asked, payload: &[u8], now: Duration) {
        let (header, request) = asked;
        let Some(flow) = self.flows.get_mut(&ends) else {
            if let Some(session) = self.revive(ends, payload, now) {
                self.counters.revived += 1;
                return self.enter(ends, asked, session, now);
            }
            return self.turn_away(ends, header, payload, now);
        };
        if !flow.session.wants_input() {
            let text = frame(&Status::plain(Code::InProgress).emit());
            return self.say(ends, header, text.as_bytes(), true, now);
        }
        flow.past.push_back(flow.request);
        if flow.past.len() > MOST_PAST {
            flow.past.pop_front();
        }
        (flow.header, flow.request, flow.again, flow.answer) = (header, request, 0, None);
        flow.session.set_draining(self.draining);
        flow.session.handle_datagram(payload, now);
        self.settle(ends, now);
    }

    /// Nothing is known of whoever says this: an empty message gets an empty answer, anything else belongs to no session.
    /// No client asks from a port like ours, or from that of another service.
    fn turn_away(&mut self, ends: Ends, header: Header, payload: &[u8], now: Duration) {
        if ends.remote.port() == ends.local.port() || ends.remote.port() < FIRST_PORT {
            return self.counters.strange += 1;
        }
        self.say(ends, header, &no_session(payload), true, now);
    }

    /// Lets `answer` tell the session what it waits for, if it is still the same one.
    pub fn handle_answer(
        &mut self,
        ends: Ends,
        number: u64,
        now: Duration,
        answer: impl FnOnce(&mut Session),
    ) -> bool {
        let Some(flow) = self.flows.get_mut(&ends).filter(|flow| flow.number == number) else { return false };
        answer(&mut flow.session);
        self.settle(ends, now);
        true
    }

    /// Passes on what a session says, and puts it where it belongs in the queue.
    fn settle(&mut self, ends: Ends, now: Duration) {
        let Some(flow) = self.flows.get_mut(&ends) else { return };
        let is_stranger = flow.place.0 < PROVEN && flow.session.rank() < PROVEN;
        let (header, mut said) = (flow.header, None);
        for output in flow.session.poll_output() {
            match output {
                Output::Send(text) => {
                    flow.answer = Some(text.clone());
                    said = Some(text);
                }
                // Datagrams are lines of their own; a session that is over is kept for those who did not hear its end.
                Output::Pause | Output::Finish => {}
                other @ (Output::Prove(_)
                | Output::Grant(_)
                | Output::Find(_)
                | Output::Delete(_)
                | Output::Accepted
                | Output::Release) => self.acts.push(Act::Do(ends, flow.number, other)),
            }
        }
        let (was, is) = (flow.place, (flow.session.rank(), now, flow.number));
        flow.place = is;
        self.dequeue(was, ends);
        self.enqueue(is, ends);
        if let Some(text) = said {
            self.say(ends, header, &text, is_stranger, now);
        }
    }

    fn enqueue(&mut self, place: Place, ends: Ends) {
        self.queue.insert(place, ends);
        self.settled += usize::from(place.0 == SETTLED);
        if place.0 < PROVEN {
            self.unproven.entry(*ends.remote.ip()).or_default().insert(place);
        }
    }

    fn dequeue(&mut self, place: Place, ends: Ends) {
        self.queue.remove(&place);
        self.settled -= usize::from(place.0 == SETTLED);
        let Some(here) = self.unproven.get_mut(ends.remote.ip()) else { return };
        here.remove(&place);
        if here.is_empty() {
            self.unproven.remove(ends.remote.ip());
        }
    }

    fn make_room(&mut self, ends: Ends, now: Duration) {
        let here = self.unproven.get(ends.remote.ip());
        // Whoever fills the house alone makes room for himself.
        let own = here.filter(|all| all.len() >= MOST_FROM_ADDRESS).and_then(BTreeSet::first).copied();
        let full = self.flows.len() >= self.most;
        let place = own.or_else(|| self.least().filter(|_| full));
        if let Some(victim) = place.and_then(|place| self.queue.get(&place)).copied() {
            self.counters.evicted += 1;
            self.crowded = now + PATIENCE;
            self.drop_flow(victim);
        }
    }

    /// Whose session would be missed least. Those who have their tunnels only need it to hear so again, and may have half of
    /// the room; else many who come one after the other would leave none to those who are under way.
    fn least(&self) -> Option<Place> {
        if self.settled > self.most / 2 {
            return self.queue.range((SETTLED, Duration::ZERO, 0)..).next().map(|(place, _)| *place);
        }
        self.queue.first_key_value().map(|(place, _)| *place)
    }

    fn drop_flow(&mut self, ends: Ends) {
        let Some(mut flow) = self.flows.remove(&ends) else { return };
        self.dequeue(flow.place, ends);
        flow.session.handle_end();
        let kept = |output: &Output| matches!(output, Output::Release);
        let outputs = flow.session.poll_output().into_iter().filter(kept).chain([Output::Finish]);
        self.acts.extend(outputs.map(|output| Act::Do(ends, flow.number, output)));
    }

    /// Forgets those of whom nothing was heard for too long. What was offered and not accepted goes back.
    pub fn handle_timeout(&mut self, now: Duration) {
        for rank in 0..=SETTLED {
            let kind = (rank, Duration::ZERO, 0)..(rank, now.saturating_sub(PATIENCE), u64::MAX);
            let due: Vec<Ends> = self.queue.range(kind).map(|(_, ends)| *ends).collect();
            for ends in due {
                let waits = self.flows.get(&ends).is_some_and(|flow| !flow.session.wants_input());
                if !waits {
                    let ended = self
                        .flows
                        .get(&ends)
                        .is_some_and(|f| f.session.is_over() || f.session.is_established());
                    self.counters.timed_out += u64::from(!ended);
                    self.drop_flow(ends);
                }
            }
        }
    }
}

/// The lowest rank of those whose endpoint is theirs.
const PROVEN: u8 = 2;
/// The rank of those who have their tunnels.
const SETTLED: u8 = 3;
/// How often one request is answered: gogoc repeats it seven times.
const MOST_AGAIN: u32 = 16;
/// Requests of a session that are known again when they come late; most have six in all.
const MOST_PAST: usize = 8;
/// Below are the ports of services that answer to everything.
const FIRST_PORT: u16 = 1024;

/// Whether only servers say such things: a status, what they offer, or either in a frame.
fn is_answer(payload: &[u8]) -> bool {
    let body = unframe(payload).unwrap_or(payload);
    let digits = body.iter().take_while(|b| b.is_ascii_digit()).count();
    let is_status =
        (3..=4).contains(&digits) && matches!(body.get(digits), None | Some(b' ' | b'\r' | b'\n'));
    is_status || (body.first() == Some(&b'C') && Capability::parse(body).is_some())
}

/// What is said to whom no session knows; a client that frames its messages wants a framed answer.
fn no_session(payload: &[u8]) -> Vec<u8> {
    let line = Status::plain(Code::ServerError).emit();
    if payload.is_empty() {
        return Vec::new();
    }
    // Any other code crashes gogoc there.
    if matches!(Line::parse(payload), Line::Authenticate(_)) {
        return Status::plain(Code::AuthenticationFailed).emit().into_bytes();
    }
    if unframe(payload) == Err(BadFrame::NoLength) { line.into_bytes() } else { frame(&line).into_bytes() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Mechanism;
    use crate::broker::UserName;
    use crate::tsp::codec::Mode;
    use crate::tsp::terms::Given;

    const S: Duration = Duration::from_secs(1);

    fn flows(most: usize) -> Flows {
        let offer = Offer::plain(Mode::V6UdpV4, vec![Mechanism::DigestMd5, Mechanism::Anonymous]);
        Flows::new(Arc::new(offer), most)
    }

    fn from(addr: u32, port: u16) -> Ends {
        let local = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 3653);
        Ends { remote: SocketAddrV4::new(addr.into(), FIRST_PORT + port), local }
    }

    /// What one message is answered; proofs are good, and grants are made at once.
    fn ask(flows: &mut Flows, ends: Ends, sequence: u32, text: &str, now: Duration) -> Vec<String> {
        ask_at(flows, ends, (sequence, 7), text, now)
    }

    /// The same of a message that says when it was sent.
    fn ask_at(
        flows: &mut Flows,
        ends: Ends,
        (sequence, stamp): (u32, u32),
        text: &str,
        now: Duration,
    ) -> Vec<String> {
        let datagram = Header::new(sequence, stamp).wrap(text.as_bytes());
        flows.handle_datagram(ends, &datagram, [1; 16], now);
        let mut said = Vec::new();
        loop {
            let acts = flows.poll_acts();
            if acts.is_empty() {
                return said;
            }
            for act in acts {
                match act {
                    Act::Send(_, payload) => said.push(String::from_utf8_lossy(&payload[8..]).into_owned()),
                    Act::Do(ends, number, output) => carry_out(flows, ends, number, output, now),
                }
            }
        }
    }

    fn carry_out(flows: &mut Flows, ends: Ends, number: u64, output: Output, now: Duration) {
        flows.handle_answer(ends, number, now, |session| match output {
            Output::Grant(_) => {
                let [server, client] = ["2001:db8::1", "2001:db8::2"].map(|a| a.parse().unwrap());
                session.handle_grant(Ok(Given { server, client, network: None }), now);
            }
            Output::Accepted => session.handle_taken(Ok(()), now),
            Output::Prove(_) => {
                let alice = UserName::parse("alice").unwrap();
                session.handle_proof(Some((alice, Vec::new())), now);
            }
            Output::Send(_) | Output::Pause | Output::Find(_) | Output::Delete(_) => {}
            Output::Release | Output::Finish => {}
        });
    }

    fn log_in(flows: &mut Flows, ends: Ends, now: Duration) {
        let nonce = nonce_in(&ask(flows, ends, 1, "AUTHENTICATE DIGEST-MD5", now));
        assert_eq!(ask(flows, ends, 2, &response(&nonce), now), ["200 Success\r\n"]);
    }

    fn create() -> String {
        let xml = "<tunnel action=\"create\" type=\"v6udpv4\"><client><address type=\"ipv4\">10.0.0.1</address></client></tunnel>";
        frame(xml)
    }

    /// The nonce of a challenge.
    fn nonce_in(said: &[String]) -> String {
        let challenge = String::from_utf8(base64(said[0].trim_end())).unwrap();
        challenge.split("nonce=\"").nth(1).unwrap().split('"').next().unwrap().to_owned()
    }

    fn base64(text: &str) -> Vec<u8> {
        use base64::Engine;
        base64::engine::general_purpose::STANDARD.decode(text).unwrap()
    }

    /// An answer to a challenge; whether it proves anything is not looked at here.
    fn response(nonce: &str) -> String {
        use base64::Engine;
        let text = format!(
            "username=\"a\",realm=\"x\",nonce=\"{nonce}\",nc=00000001,cnonce=\"c\",digest-uri=\"tsp/x\",response=r,qop=auth"
        );
        base64::engine::general_purpose::STANDARD.encode(text)
    }

    #[test]
    fn greetings_leave_nothing_behind() {
        let mut flows = flows(1000);
        for n in 0..50_000 {
            let said = ask(&mut flows, from(0x0a00_0000 + n, 9), 1, "VERSION=2.0.0", S);
            assert_eq!(said, ["CAPABILITY TUNNEL=V6UDPV4 AUTH=DIGEST-MD5 AUTH=ANONYMOUS\r\n"]);
        }
        assert!(flows.is_empty() && flows.counters().evicted == 0);
        assert_eq!(
            ask(&mut flows, from(0x0a00_0000, 9), 2, "AUTHENTICATE ANONYMOUS", S * 60),
            ["200 Success\r\n"],
            "however late he goes on"
        );
    }

    #[test]
    fn a_flood_takes_bounded_room_and_the_furthest_stay() {
        let mut flows = flows(1000);
        let real = from(1, 1);
        log_in(&mut flows, real, S);
        assert!(ask(&mut flows, real, 3, &create(), S)[0].contains("200 Success"));
        for n in 0..50_000 {
            let from = from(0x0a00_0000 + n, 9);
            assert_eq!(ask(&mut flows, from, 1, "AUTHENTICATE DIGEST-MD5", S * 2).len(), 1);
        }
        assert_eq!((flows.len(), flows.counters().evicted), (1000, 49_001));
        let accept = frame("<tunnel action=\"accept\"></tunnel>\r\n");
        assert!(ask(&mut flows, real, 4, &accept, S * 3)[0].contains("200 Success"));
        flows.handle_timeout(S * 80);
        assert!(flows.is_empty() && flows.queue.is_empty() && flows.unproven.is_empty());
    }

    #[test]
    fn those_who_have_their_tunnels_leave_room_for_those_who_come() {
        let mut flows = flows(100);
        let accept = frame("<tunnel action=\"accept\"></tunnel>\r\n");
        for n in 0..200 {
            log_in(&mut flows, from(n, 1), S);
            assert!(ask(&mut flows, from(n, 1), 3, &create(), S)[0].contains("200 "));
            assert!(ask(&mut flows, from(n, 1), 4, &accept, S)[0].contains("200 "));
        }
        assert!(ask(&mut flows, from(199, 1), 4, &accept, S)[0].contains("200 "), "said again to the newest");
        let coming = || (1000..1045).map(|n| from(n, 1));
        let nonces: Vec<_> = coming()
            .map(|ends| nonce_in(&ask(&mut flows, ends, 1, "AUTHENTICATE DIGEST-MD5", S * 2)))
            .collect();
        for (ends, nonce) in coming().zip(nonces) {
            assert_eq!(ask(&mut flows, ends, 2, &response(&nonce), S * 2), ["200 Success\r\n"]);
        }
        assert_eq!((flows.len(), flows.counters().revived), (100, 0));
        flows.handle_timeout(S * 80);
        assert!(flows.is_empty() && flows.settled == 0);
    }

    #[test]
    fn whoever_was_given_up_goes_on_if_he_answers_what_was_asked() {
        let mut flows = flows(100);
        for n in 0..60 {
            ask(&mut flows, from(0x0a00_0000 + n, 9), 1, "AUTHENTICATE DIGEST-MD5", S);
        }
        let (real, forger) = (from(1, 1), from(2, 1));
        let nonce = nonce_in(&ask(&mut flows, real, 2, "AUTHENTICATE DIGEST-MD5", S * 70));
        for n in 0..1000 {
            ask(&mut flows, from(0x0b00_0000 + n, 9), 1, "AUTHENTICATE DIGEST-MD5", S * 71);
        }
        let wrong = [response(&nonce), response("00"), "AAAA".to_owned(), create(), String::new()];
        for text in wrong {
            let said = ask(&mut flows, forger, 3, &text, S * 72);
            assert!(said == [""] || said[0].contains("310 "), "what another was asked: {said:?}");
        }
        assert_eq!(flows.counters().revived, 0);
        // The moment is in the next while already.
        assert_eq!(ask(&mut flows, real, 3, &response(&nonce), S * 76), ["200 Success\r\n"]);
        assert_eq!(flows.counters().revived, 1);
    }

    #[test]
    fn nonces_are_random_while_there_is_room() {
        let mut flows = flows(100);
        let one = from(1, 1);
        let nonce = nonce_in(&ask(&mut flows, one, 2, "AUTHENTICATE DIGEST-MD5", S));
        assert_eq!(nonce, "01".repeat(16));
        flows.handle_timeout(S * 100);
        assert!(
            ask(&mut flows, one, 3, &response(&nonce), S * 100)[0].starts_with("310 "),
            "it is forgotten"
        );
    }

    #[test]
    fn no_answer_leads_to_another() {
        let mut flows = flows(100);
        let other = Ends { remote: SocketAddrV4::new(7.into(), 3653), ..from(7, 1) };
        for text in
            ["310 Server side error\r\n", "200 Success", "1200 x", "CAPABILITY TUNNEL=V6V4 AUTH=X\r\n"]
        {
            for ends in [from(7, 9000), other] {
                assert_eq!(ask(&mut flows, ends, 1, text, S), [""; 0], "{text}");
                assert_eq!(ask(&mut flows, ends, 1, &frame(text), S), [""; 0], "{text}");
            }
        }
        for text in ["", "AAAA"] {
            assert_eq!(ask(&mut flows, other, 1, text, S), [""; 0], "that is a server");
            assert_eq!(ask(&mut flows, from(7, 9000), 1, text, S).len(), 1);
        }
        // Somebody at that address says all again that he hears.
        let mut heard = ask(&mut flows, from(7, 9000), 1, "AUTHENTICATE DIGEST-MD5", S);
        let mut rounds = 0;
        while let Some(said) = heard.pop() {
            heard = ask(&mut flows, from(7, 9000), 1, &said, S);
            rounds += 1;
        }
        assert_eq!(rounds, 2, "the challenge is a wrong answer to itself, and that is the end");
        ask(&mut flows, from(7, 9000), 9, "VERSION=2.0.0", S);
        ask(&mut flows, from(7, 9000), 2, "AUTHENTICATE ANONYMOUS", S);
        let polls = (0..1000).map(|_| ask(&mut flows, from(7, 9000), 3, "", S).len()).sum::<usize>();
        assert_eq!(polls, 1 + MOST_AGAIN as usize);
    }

    #[test]
    fn what_comes_late_is_known_again() {
        let mut flows = flows(100);
        let one = from(1, 5000);
        let mut say =
            |stamp: u32, sequence, text: &str| ask_at(&mut flows, one, (sequence, stamp), text, S).len();
        let accept = frame("<tunnel action=\"accept\"></tunnel>\r\n");
        let all = ["VERSION=2.0.2", "AUTHENTICATE ANONYMOUS", &create(), &accept];
        for (n, text) in all.iter().enumerate() {
            assert_eq!(say(100 + n as u32, n as u32, text), 1, "{text}");
        }
        assert_eq!(say(102, 2, &create()), 0, "the very same datagram again: no other tunnel");
        assert_eq!(say(101, 1, "AUTHENTICATE ANONYMOUS"), 0);
        assert_eq!(say(100, 0, "VERSION=2.0.2"), 1, "which changes nothing");
        assert_eq!(say(103, 3, &accept), 1, "the last one is answered again");
        // And the same from the beginning, as a client does that has lost its tunnel.
        let asked: Vec<_> = (0..3).map(|n| say(200 + n, n, all[n as usize])).collect();
        assert_eq!(asked, [1, 1, 1]);
    }

    #[test]
    fn one_address_has_its_share() {
        let mut flows = flows(MOST_FLOWS);
        for port in 1..=3000 {
            ask(&mut flows, from(7, port), 1, "AUTHENTICATE DIGEST-MD5", S);
        }
        assert!(flows.counters().throttled > 1000, "much is asked, and not all of it answered");
        ask(&mut flows, from(8, 1), 1, "AUTHENTICATE DIGEST-MD5", S);
        assert_eq!(flows.len(), MOST_FROM_ADDRESS + 1);
        let wrong = ask(&mut flows, from(7, 3000), 2, "AAAA", S * 60);
        assert_eq!(wrong, ["300 Authentication failed\r\n"], "the newest stay");
    }

    #[test]
    fn whatever_comes_is_answered_once_or_never() {
        let mut flows = flows(8);
        for payload in ["", "x", "\0", "VERSION=", "Content-length: 1\r\nx", "AUTHENTICATE"] {
            for sequence in 0..4 {
                assert_eq!(ask(&mut flows, from(9, 9), sequence, payload, S).len(), 1, "{payload:?}");
            }
        }
        flows.handle_datagram(from(9, 9), &[0x45; 20], [0; 16], S);
        flows.handle_datagram(from(9, 9), &[0; 8], [0; 16], S);
        assert!(flows.poll_acts().is_empty());
        assert_eq!(flows.counters().strange, 2);
    }
}
