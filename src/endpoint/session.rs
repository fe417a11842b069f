//! Who a tunnel's peer is now: contenders, questions to the endpoint in use, deadlines (RFC 8085 section 3.5,
//! RFC 4443 section 4).
//!
//! Pure: `now` and the random numbers are given, packets to send and moves to make are fetched. Refuses to know
//! tables, sockets and who owns a tunnel; it only ever says *this tunnel's peer has been proven to be there*.

mod inquiry;
mod tolls;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::{Ipv6Addr, SocketAddrV4};
use std::time::Duration;

use rand::{CryptoRng, RngExt};
use sixway_dataplane::update::TunnelId;

use self::inquiry::{ASKED_AT, Contender, Inquiry, SETTLED};
use self::tolls::{Toll, Tolls};
use super::proof::{Nonce, Question, Sealer, Why};
use crate::nd::codec::{self, Echo, Header, Message, Outgoing};

/// A packet whose inner source belongs to a tunnel came from a place that does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The tunnel whose prefix the inner source lies in.
    pub tunnel: TunnelId,
    /// Where the packet came from.
    pub sender: SocketAddrV4,
    /// The local address and port it came to; questions leave from there.
    pub local: SocketAddrV4,
    /// The tunnel's endpoint now, if it has one.
    pub current: Option<SocketAddrV4>,
    /// The packet's inner source, which is asked to answer.
    pub inner_source: Ipv6Addr,
    /// An address of the router's own, which the answer goes to.
    pub probe_source: Ipv6Addr,
}

/// Where an echo reply came from, and what the tables say of its tunnel now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The tunnel that the inner source belongs to.
    pub tunnel: TunnelId,
    /// The outer sender.
    pub sender: SocketAddrV4,
    /// The local address and port it came to.
    pub local: SocketAddrV4,
    /// The tunnel's endpoint now, if it has one.
    pub current: Option<SocketAddrV4>,
    /// An address of the peer that the configuration says answers.
    pub echo: Option<Ipv6Addr>,
}

/// What shall be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send this packet, in the tunnel's encapsulation, to this endpoint (which need not be the tunnel's).
    Probe {
        /// Whose encapsulation.
        tunnel: TunnelId,
        /// The outer destination.
        remote: SocketAddrV4,
        /// The outer source.
        local: SocketAddrV4,
        /// A whole IPv6 packet.
        packet: Vec<u8>,
    },
    /// Note how many packets have come from the tunnel's endpoint: if there are more when it shall move, it lives.
    Listen {
        /// Which tunnel.
        tunnel: TunnelId,
    },
    /// The tunnel's peer has proven to be at this endpoint: send its traffic there from now on, and say what came of it by
    /// [`Prober::has_moved`] or [`Prober::is_alive`].
    Move {
        /// Which tunnel.
        tunnel: TunnelId,
        /// Its new endpoint.
        remote: SocketAddrV4,
        /// The local address and port that the peer talks to.
        local: SocketAddrV4,
        /// The inner address that has answered there.
        inner: Ipv6Addr,
        /// Whether packets from the endpoint in use since [`Self::Listen`] stand against it.
        unless_heard: bool,
    },
}

/// What became of candidates so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointCounters {
    /// Echo requests sent, to candidates and to current endpoints.
    pub probes_sent: u64,
    /// Endpoints learned or moved.
    pub moved: u64,
    /// Candidates refused because the current endpoint answered.
    pub stayed_alive: u64,
    /// Questions to candidates without an answer so far: forged senders, and peers that filter echo.
    pub unanswered: u64,
    /// Candidates not looked at: asked less than 1 s ago, or held off.
    pub busy: u64,
    /// Candidates not looked at because too many are asked, or [`MOST_TUNNELS`] tunnels have contenders.
    pub full: u64,
    /// Candidates at impossible addresses, and answers that are none to what was asked there.
    pub forged: u64,
}

/// Asks candidates and decides. Its memory is bounded whatever comes in, as long as [`poll_output`](Self::poll_output) is
/// emptied after each call: a candidate takes none before it has answered, and those who have answered are
/// [`MOST_TUNNELS`] times four at most.
#[derive(Debug)]
pub struct Prober<R> {
    rng: R,
    ident: u16,
    sealer: Sealer,
    tolls: Tolls,
    inquiries: HashMap<TunnelId, Inquiry>,
    /// One deadline for each of `inquiries`.
    timers: BTreeSet<(Duration, TunnelId)>,
    /// Inner addresses that have answered from a tunnel's own endpoint.
    shown: HashMap<TunnelId, Vec<Ipv6Addr>>,
    /// Tunnels gone a short while ago: what was asked about them proves nothing about whoever has their number now.
    gone: HashMap<TunnelId, Duration>,
    /// The latest `now`.
    now: Duration,
    outputs: VecDeque<Output>,
    asked: u64,
    answered: u64,
    counters: EndpointCounters,
}

/// An echo reply that carries our identifier and what may be a nonce.
struct Reply {
    source: Ipv6Addr,
    destination: Ipv6Addr,
    nonce: Nonce,
    seq: u16,
}

impl<R: CryptoRng> Prober<R> {
    /// Nobody is asked yet. The generator has to be unpredictable, since the proof is that nobody guesses.
    pub fn new(mut rng: R) -> Self {
        let ident = rng.random();
        let sealer = Sealer::new(rng.random());
        let tolls = Tolls::new(rng.random());
        Self {
            rng,
            ident,
            sealer,
            tolls,
            inquiries: HashMap::new(),
            timers: BTreeSet::new(),
            shown: HashMap::new(),
            gone: HashMap::new(),
            now: Duration::ZERO,
            outputs: VecDeque::new(),
            asked: 0,
            answered: 0,
            counters: EndpointCounters::default(),
        }
    }

    /// The echo identifier of all our questions, drawn once.
    pub fn ident(&self) -> u16 {
        self.ident
    }

    /// What became of candidates so far.
    pub fn counters(&self) -> EndpointCounters {
        EndpointCounters { unanswered: self.asked.saturating_sub(self.answered), ..self.counters }
    }

    /// A packet for a tunnel came from a place that is not its endpoint: ask there, or count why not.
    pub fn handle_candidate(&mut self, now: Duration, candidate: Candidate) {
        self.handle_timeout(now);
        if candidate.current == Some(candidate.sender) {
            return;
        }
        if !candidate.is_possible() {
            self.counters.forged += 1;
            return;
        }
        let inquiry = self.inquiries.get(&candidate.tunnel);
        if inquiry.is_some_and(|inquiry| inquiry.is_held(now, candidate.sender)) {
            self.counters.busy += 1;
            return;
        }
        match self.tolls.refusal(now, &candidate) {
            None => {}
            Some(Toll::Again) => return self.counters.busy += 1,
            Some(Toll::TooMany) => return self.counters.full += 1,
        }
        self.asked += 1;
        let Candidate { tunnel, sender: remote, local, inner_source: inner, probe_source: source, .. } =
            candidate;
        let seq = self.rng.random();
        self.ask(now, &Question { why: Why::Candidate, tunnel, remote, local, inner, source, seq });
    }

    /// Looks at an echo reply from anywhere; `true` when it carries an answer for us, right or not, and is done with.
    pub fn handle_packet(&mut self, now: Duration, origin: &Origin, packet: &[u8]) -> bool {
        self.handle_timeout(now);
        let Some(reply) = reply_to(self.ident, packet) else {
            return false;
        };
        let known = origin.current.is_some_and(|current| self.hear_of_current(now, current, origin, &reply));
        if !known && !self.hear_of_candidate(now, origin, &reply) {
            self.counters.forged += 1;
        }
        true
    }

    /// Whether a reply answers what this place was asked.
    fn is_answer(
        &self,
        now: Duration,
        why: Why,
        remote: SocketAddrV4,
        origin: &Origin,
        reply: &Reply,
    ) -> Option<Duration> {
        let Origin { tunnel, local, .. } = *origin;
        let (inner, source, seq) = (reply.source, reply.destination, reply.seq);
        let asked = self.sealer.open(
            now,
            &reply.nonce,
            &Question { why, tunnel, remote, local, inner, source, seq },
        )?;
        self.gone.get(&tunnel).is_none_or(|gone| asked > *gone).then_some(asked)
    }

    /// Whether the reply answers a question to the current endpoint; then that lives, or a contender gets its packets too.
    fn hear_of_current(
        &mut self,
        now: Duration,
        current: SocketAddrV4,
        origin: &Origin,
        reply: &Reply,
    ) -> bool {
        let Some(asked) = self.is_answer(now, Why::Current, current, origin, reply) else { return false };
        let tunnel = origin.tunnel;
        let Some(inquiry) = self.inquiries.get_mut(&tunnel) else { return true };
        if origin.sender == current {
            self.remember(tunnel, reply.source);
            self.stay(now, tunnel);
            return true;
        }
        // Only of this inquiry, only by one who has proven to be where he is: else somebody has copied an answer.
        let of_this = asked >= inquiry.started && inquiry.current == current;
        let contender = inquiry.contenders.iter().position(|c| of_this && c.sender == origin.sender);
        match contender {
            Some(at) => self.relocate(now, tunnel, at, false),
            None => self.counters.forged += 1,
        }
        true
    }

    /// Whether the reply answers a question to a candidate, which then contends for the tunnel, or has it at once.
    fn hear_of_candidate(&mut self, now: Duration, origin: &Origin, reply: &Reply) -> bool {
        let Origin { tunnel, sender, local, current, echo } = *origin;
        if self.is_answer(now, Why::Candidate, sender, origin, reply).is_none() {
            return false;
        }
        let contender = Contender { sender, local, inner: reply.source, source: reply.destination };
        match current {
            Some(current) if current == sender => {}
            Some(current) => self.contend(now, tunnel, contender, (current, echo)),
            None => {
                self.answered += 1;
                self.move_to(tunnel, contender, false);
            }
        }
        true
    }

    fn contend(
        &mut self,
        now: Duration,
        tunnel: TunnelId,
        contender: Contender,
        (current, echo): (SocketAddrV4, Option<Ipv6Addr>),
    ) {
        if !self.inquiries.contains_key(&tunnel) && self.inquiries.len() >= MOST_TUNNELS {
            self.counters.full += 1;
            return;
        }
        self.begin(now, tunnel, current, echo);
        let Some(inquiry) = self.inquiries.get_mut(&tunnel) else { return };
        if inquiry.contenders.iter().any(|c| c.sender == contender.sender) {
            return;
        }
        if inquiry.contenders.len() >= CONTENDERS || inquiry.is_held(now, contender.sender) {
            self.counters.busy += 1;
            return;
        }
        if inquiry.contenders.is_empty() {
            (inquiry.started, inquiry.asked, inquiry.listening) = (now.max(inquiry.next), 0, false);
        }
        inquiry.contenders.push(contender);
        self.answered += 1;
        self.expire(now, tunnel);
    }

    /// There is an inquiry into this tunnel, about this endpoint.
    fn begin(&mut self, now: Duration, tunnel: TunnelId, current: SocketAddrV4, echo: Option<Ipv6Addr>) {
        let inquiry = self.inquiries.entry(tunnel).or_insert_with(|| Inquiry::new(now, current));
        if inquiry.current != current {
            // It has moved meanwhile: who contended for it did so with somebody else.
            (inquiry.current, inquiry.held) = (current, Vec::new());
            inquiry.contenders.clear();
        }
        inquiry.echo = echo;
        self.schedule(tunnel);
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Duration) {
        self.now = self.now.max(now);
        while let Some(&(at, tunnel)) = self.timers.first() {
            if at > now {
                return;
            }
            self.expire(now, tunnel);
        }
    }

    /// When to call [`handle_timeout`](Self::handle_timeout) next; `None` while nothing is pending.
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.timers.first().map(|&(at, _)| at)
    }

    /// The next thing to do, oldest first.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The tunnel is gone or was configured anew: nothing pending about it counts any more, nor what it has shown.
    pub fn forget(&mut self, tunnel: TunnelId) {
        self.forget_inquiry(tunnel);
        self.shown.remove(&tunnel);
        self.outputs.retain(|output| output.tunnel() != tunnel);
        if self.gone.len() >= MOST_GONE {
            // Another key has the same effect, on all that is asked at this moment: it is asked again.
            self.sealer = Sealer::new(self.rng.random());
            self.gone.clear();
        }
        self.gone.insert(tunnel, self.now);
    }

    /// A move has been made: this inner address is one of the tunnel's peer.
    pub fn has_moved(&mut self, tunnel: TunnelId, inner: Ipv6Addr) {
        self.counters.moved += 1;
        self.remember(tunnel, inner);
    }

    /// A move has not been made, since packets came from the endpoint in use: who wanted it is held off.
    pub fn is_alive(&mut self, now: Duration, tunnel: TunnelId, remote: SocketAddrV4) {
        self.counters.stayed_alive += 1;
        if let Some(inquiry) = self.inquiries.get_mut(&tunnel) {
            inquiry.hold(now, remote);
        }
        self.schedule(tunnel);
    }

    fn remember(&mut self, tunnel: TunnelId, inner: Ipv6Addr) {
        let shown = self.shown.entry(tunnel).or_default();
        shown.retain(|addr| *addr != inner);
        shown.insert(0, inner);
        shown.truncate(SHOWN);
    }

    /// The endpoint in use has answered.
    fn stay(&mut self, now: Duration, tunnel: TunnelId) {
        let Some(inquiry) = self.inquiries.get_mut(&tunnel) else { return };
        for contender in std::mem::take(&mut inquiry.contenders) {
            self.counters.stayed_alive += 1;
            inquiry.hold(now, contender.sender);
        }
        inquiry.next = now + INTERVAL;
        self.schedule(tunnel);
    }

    fn relocate(&mut self, now: Duration, tunnel: TunnelId, contender: usize, unless_heard: bool) {
        let Some(inquiry) = self.inquiries.get_mut(&tunnel) else { return };
        let contenders = std::mem::take(&mut inquiry.contenders);
        inquiry.next = now + INTERVAL;
        if let Some(contender) = contenders.get(contender) {
            self.move_to(tunnel, *contender, unless_heard);
        }
        self.schedule(tunnel);
    }

    fn move_to(&mut self, tunnel: TunnelId, contender: Contender, unless_heard: bool) {
        let Contender { sender: remote, local, inner, .. } = contender;
        self.outputs.push_back(Output::Move { tunnel, remote, local, inner, unless_heard });
    }

    /// A tunnel's deadline may have come: ask again, listen, move, or forget its rest.
    fn expire(&mut self, now: Duration, tunnel: TunnelId) {
        let shown = self.shown.get(&tunnel).map_or(&[][..], Vec::as_slice);
        let Some(inquiry) = self.inquiries.get_mut(&tunnel) else { return };
        if inquiry.contenders.is_empty() {
            if inquiry.rests_until() <= now {
                return self.forget_inquiry(tunnel);
            }
            return self.schedule(tunnel);
        }
        if now >= inquiry.decides_at(shown) {
            let best = inquiry.best(shown);
            return self.relocate(now, tunnel, best, true);
        }
        let due = ASKED_AT.get(inquiry.asked).is_some_and(|at| now >= inquiry.started + *at);
        inquiry.asked += usize::from(due);
        let listens = !inquiry.listening && now >= inquiry.started + SETTLED;
        inquiry.listening |= listens;
        if listens {
            self.outputs.push_back(Output::Listen { tunnel });
        }
        if due {
            self.ask_current(now, tunnel);
        }
        self.schedule(tunnel);
    }

    /// Asks the endpoint in use by all inner addresses that may answer there. Those that it has shown itself come first: what
    /// a contender names may be nobody's.
    fn ask_current(&mut self, now: Duration, tunnel: TunnelId) {
        let Some(inquiry) = self.inquiries.get(&tunnel) else { return };
        let Some(Contender { local, source, .. }) = inquiry.contenders.first().copied() else { return };
        let mut targets = self.shown.get(&tunnel).cloned().unwrap_or_default();
        for inner in inquiry.echo.into_iter().chain(inquiry.contenders.iter().map(|c| c.inner)) {
            if !targets.contains(&inner) {
                targets.push(inner);
            }
        }
        let remote = inquiry.current;
        for inner in targets {
            let seq = self.rng.random();
            self.ask(now, &Question { why: Why::Current, tunnel, remote, local, inner, source, seq });
        }
    }

    /// Sends an echo request.
    fn ask(&mut self, now: Duration, question: &Question) {
        let nonce = self.sealer.seal(now, question);
        let Question { tunnel, remote, local, inner, source, seq, .. } = *question;
        let header = Header { source, destination: inner, hop_limit: PROBE_HOPS };
        let echo = Echo { ident: self.ident, seq, data: &nonce };
        let packet = codec::emit(&header, &Outgoing::EchoRequest(echo));
        self.outputs.push_back(Output::Probe { tunnel, remote, local, packet });
        self.counters.probes_sent += 1;
    }

    fn forget_inquiry(&mut self, tunnel: TunnelId) {
        if let Some(inquiry) = self.inquiries.remove(&tunnel) {
            self.timers.remove(&(inquiry.deadline, tunnel));
        }
    }

    /// Sets the tunnel's timer anew after any change.
    fn schedule(&mut self, tunnel: TunnelId) {
        let shown = self.shown.get(&tunnel).map_or(&[][..], Vec::as_slice);
        if let Some(inquiry) = self.inquiries.get_mut(&tunnel) {
            self.timers.remove(&(inquiry.deadline, tunnel));
            inquiry.deadline = inquiry.next_deadline(shown);
            self.timers.insert((inquiry.deadline, tunnel));
        }
    }
}

impl Output {
    fn tunnel(&self) -> TunnelId {
        match self {
            Self::Probe { tunnel, .. } | Self::Listen { tunnel } | Self::Move { tunnel, .. } => *tunnel,
        }
    }
}

impl Candidate {
    /// Whether one peer can be at these addresses; questions go to nothing else, least of all to groups.
    fn is_possible(&self) -> bool {
        let outer = self.sender.ip();
        let outer_fine = !outer.is_multicast() && !outer.is_broadcast() && !outer.is_unspecified();
        let inner = self.inner_source;
        let inner_fine = !inner.is_multicast() && !inner.is_unspecified() && !inner.is_loopback();
        outer_fine && self.sender.port() != 0 && inner_fine && inner != self.probe_source
    }
}

fn reply_to(ident: u16, packet: &[u8]) -> Option<Reply> {
    let (header, Message::EchoReply(echo)) = codec::parse(packet).ok()? else {
        return None;
    };
    if echo.ident != ident {
        return None;
    }
    let nonce = echo.data.try_into().ok()?;
    Some(Reply { source: header.source, destination: header.destination, nonce, seq: echo.seq })
}

/// Tunnels with contenders, or with contenders held off, at most.
pub const MOST_TUNNELS: usize = 16_384;

/// Contenders for one tunnel.
const CONTENDERS: usize = 4;
/// Inner addresses remembered for each tunnel.
const SHOWN: usize = 3;
/// Tunnels gone within the lifetime of a question.
const MOST_GONE: usize = 8192;
/// The least time between two inquiries into one tunnel.
const INTERVAL: Duration = Duration::from_secs(1);
/// The hop limit of questions.
const PROBE_HOPS: u8 = 64;

#[cfg(test)]
mod tests;
