//! Sessions over UDP, one for each pair of endpoints: which datagram is new and which repeats the one before, what the
//! answer to it is, and which session goes when there is no room (RFC 5572 sections 4.4.1.2 and 4.5.2).
//!
//! Pure, and bounded, for senders may be forged: where there is no room the oldest go first that got no further than
//! `VERSION`, then those that have proven nothing; and one address has no more than its share of these. Every session of every client begins with the same sequence number, so a repeated datagram is
//! known by sequence *and* payload; it is answered with its own header, whose time stamp is new. Knows no socket.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use super::codec::{Code, Line, Status};
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
    /// What was said; `None`: it is being worked on.
    answer: Option<Vec<u8>>,
}

/// All sessions over UDP.
#[derive(Debug)]
pub struct Flows {
    flows: HashMap<Ends, Flow>,
    queue: BTreeMap<Place, Ends>,
    /// The places of each address, those of rank 2 left out.
    unproven: HashMap<Ipv4Addr, BTreeSet<Place>>,
    offer: Arc<Offer>,
    draining: bool,
    seed: RandomState,
    next: u64,
    most: usize,
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
            counters: FlowCounters::default(),
            acts: Vec::new(),
        }
    }

    /// Whether clients are sent elsewhere from now on.
    pub fn set_draining(&mut self, draining: bool) {
        self.draining = draining;
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
        self.counters.messages += 1;
        let request = self.seed.hash_one((header.sequence(), payload));
        if let Some(flow) = self.flows.get_mut(&ends).filter(|flow| flow.request == request) {
            self.counters.repeated += 1;
            flow.header = header;
            // What is being worked on is answered once, to the newest header.
            let again = flow.answer.as_ref().map(|answer| header.wrap(answer));
            self.acts.extend(again.map(|again| Act::Send(ends, again)));
            return;
        }
        match Line::parse(payload) {
            Line::Version(_) => self.greet(ends, header, request, payload, random, now),
            Line::Authenticate(_) | Line::Other => self.go_on(ends, header, request, payload, now),
        }
    }

    /// A new session begins, whatever was before; the tunnel of the one before goes when this one has earned another.
    fn greet(
        &mut self,
        ends: Ends,
        header: Header,
        request: u64,
        payload: &[u8],
        random: [u8; 16],
        now: Duration,
    ) {
        self.drop_flow(ends);
        let terms = Terms {
            transport: Transport::Udp,
            peer: *ends.remote.ip(),
            local: *ends.local.ip(),
            random,
            offer: self.offer.clone(),
        };
        let mut session = Session::new(terms, now);
        session.set_draining(self.draining);
        session.handle_datagram(payload, now);
        if session.is_over() {
            // It is said and done: the same question will get the same answer.
            return self.say_all(ends, header, &mut session);
        }
        self.make_room(ends);
        self.next += 1;
        let place = (session.rank(), now, self.next);
        let flow = Flow { number: self.next, session, place, header, request, answer: None };
        self.enqueue(place, ends);
        self.flows.insert(ends, flow);
        self.settle(ends, now);
    }

    fn say_all(&mut self, ends: Ends, header: Header, session: &mut Session) {
        for output in session.poll_output() {
            if let Output::Send(text) = output {
                self.acts.push(Act::Send(ends, header.wrap(&text)));
            }
        }
    }

    fn go_on(&mut self, ends: Ends, header: Header, request: u64, payload: &[u8], now: Duration) {
        let Some(flow) = self.flows.get_mut(&ends) else {
            // Nothing is known of it: an empty message gets an empty answer, anything else belongs to no session.
            return self.acts.push(Act::Send(ends, header.wrap(&no_session(payload))));
        };
        if !flow.session.wants_input() {
            let text = frame(&Status::plain(Code::InProgress).emit());
            return self.acts.push(Act::Send(ends, header.wrap(text.as_bytes())));
        }
        (flow.header, flow.request, flow.answer) = (header, request, None);
        flow.session.set_draining(self.draining);
        flow.session.handle_datagram(payload, now);
        self.settle(ends, now);
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
        for output in flow.session.poll_output() {
            match output {
                Output::Send(text) => {
                    self.acts.push(Act::Send(ends, flow.header.wrap(&text)));
                    flow.answer = Some(text);
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
    }

    fn enqueue(&mut self, place: Place, ends: Ends) {
        self.queue.insert(place, ends);
        if place.0 < PROVEN {
            self.unproven.entry(*ends.remote.ip()).or_default().insert(place);
        }
    }

    fn dequeue(&mut self, place: Place, ends: Ends) {
        self.queue.remove(&place);
        let Some(here) = self.unproven.get_mut(ends.remote.ip()) else { return };
        here.remove(&place);
        if here.is_empty() {
            self.unproven.remove(ends.remote.ip());
        }
    }

    fn make_room(&mut self, ends: Ends) {
        let here = self.unproven.get(ends.remote.ip());
        // Whoever fills the house alone makes room for himself.
        let own = here.filter(|all| all.len() >= MOST_FROM_ADDRESS).and_then(BTreeSet::first).copied();
        let full = self.flows.len() >= self.most;
        let place = own.or_else(|| self.queue.first_key_value().map(|(place, _)| *place).filter(|_| full));
        if let Some(victim) = place.and_then(|place| self.queue.get(&place)).copied() {
            self.counters.evicted += 1;
            self.drop_flow(victim);
        }
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
        for rank in 0..=PROVEN {
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

/// The rank of those whose endpoint is theirs.
const PROVEN: u8 = 2;

/// What is said to whom no session knows; a client that frames its messages wants a framed answer.
fn no_session(payload: &[u8]) -> Vec<u8> {
    let line = Status::plain(Code::ServerError).emit();
    if payload.is_empty() {
        return Vec::new();
    }
    if unframe(payload) == Err(BadFrame::NoLength) { line.into_bytes() } else { frame(&line).into_bytes() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{Mechanism, Site};
    use crate::tsp::codec::Mode;
    use crate::tsp::terms::Given;

    const S: Duration = Duration::from_secs(1);

    fn flows(most: usize) -> Flows {
        let offer = Offer {
            tunnels: vec![Mode::V6UdpV4],
            mechanisms: vec![Mechanism::DigestMd5, Mechanism::Anonymous],
            site: Site { realm: "x".into(), service: "tsp", salt: [0; 32] },
            brokers: Vec::new(),
            redirect: None,
            lifetime: 1,
            keepalive: None,
            anonymous_keepalive: None,
            dns: Vec::new(),
            domain: None,
            proxy: false,
            public_address: None,
        };
        Flows::new(Arc::new(offer), most)
    }

    fn from(addr: u32, port: u16) -> Ends {
        let local = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 3653);
        Ends { remote: SocketAddrV4::new(addr.into(), port), local }
    }

    /// What one message is answered; grants are made at once.
    fn ask(flows: &mut Flows, ends: Ends, sequence: u32, text: &str, now: Duration) -> Vec<String> {
        let datagram = Header::new(sequence, 7).wrap(text.as_bytes());
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
                    Act::Do(ends, number, Output::Grant(_)) => {
                        let [server, client] = ["2001:db8::1", "2001:db8::2"].map(|a| a.parse().unwrap());
                        let given = Given { server, client, network: None };
                        flows
                            .handle_answer(ends, number, now, |session| session.handle_grant(Ok(given), now));
                    }
                    Act::Do(ends, number, Output::Accepted) => {
                        flows.handle_answer(ends, number, now, |session| session.handle_taken(Ok(()), now));
                    }
                    Act::Do(..) => {}
                }
            }
        }
    }

    fn create() -> String {
        let xml = "<tunnel action=\"create\" type=\"v6udpv4\"><client><address type=\"ipv4\">10.0.0.1</address></client></tunnel>";
        frame(xml)
    }

    #[test]
    fn a_flood_takes_bounded_room_and_the_furthest_stay() {
        let mut flows = flows(1000);
        let (real, half) = (from(1, 1), from(2, 1));
        ask(&mut flows, real, 1, "VERSION=2.0.0", S);
        ask(&mut flows, real, 2, "AUTHENTICATE ANONYMOUS", S);
        assert!(ask(&mut flows, real, 3, &create(), S)[0].contains("200 Success"));
        ask(&mut flows, half, 1, "VERSION=2.0.0", S);
        assert_eq!(ask(&mut flows, half, 2, "AUTHENTICATE DIGEST-MD5", S).len(), 1);
        for n in 0..50_000 {
            assert_eq!(ask(&mut flows, from(0x0a00_0000 + n, 9), 1, "VERSION=2.0.0", S * 2).len(), 1);
        }
        assert_eq!((flows.len(), flows.counters().evicted), (1000, 49_002));
        let accept = frame("<tunnel action=\"accept\"></tunnel>\r\n");
        assert!(ask(&mut flows, real, 4, &accept, S * 3)[0].contains("200 Success"));
        assert_eq!(
            ask(&mut flows, half, 3, "AAAA", S * 3),
            ["300 Authentication failed\r\n"],
            "still a session"
        );
        flows.handle_timeout(S * 80);
        assert!(flows.is_empty() && flows.queue.is_empty() && flows.unproven.is_empty());
    }

    #[test]
    fn one_address_has_its_share() {
        let mut flows = flows(MOST_FLOWS);
        for port in 1..=3000 {
            ask(&mut flows, from(7, port), 1, "VERSION=2.0.0", S);
        }
        ask(&mut flows, from(8, 1), 1, "VERSION=2.0.0", S);
        assert_eq!(flows.len(), MOST_FROM_ADDRESS + 1);
        assert_eq!(
            ask(&mut flows, from(7, 3000), 2, "AUTHENTICATE ANONYMOUS", S),
            ["200 Success\r\n"],
            "the newest stay"
        );
    }

    #[test]
    fn whatever_comes_is_answered_once_or_never() {
        let mut flows = flows(8);
        for payload in ["", "x", "\0", "VERSION=", "Content-length: 1\r\nx", "AUTHENTICATE", "200 Success"] {
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
