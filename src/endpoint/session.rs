//! Who a tunnel's peer is now: contenders, questions to the endpoint in use, deadlines (RFC 8085 section 3.5,
//! RFC 4443 section 4).
//!
//! Pure: `now` and the random numbers are given, packets to send and moves to make are fetched. Refuses to know
//! tables, sockets and who owns a tunnel; it only ever says *this tunnel's peer has been proven to be there*.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::{Ipv6Addr, SocketAddrV4};
use std::time::Duration;

use rand::{CryptoRng, RngExt};
use sixway_dataplane::update::TunnelId;

use super::pace::Pace;
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

/// How often candidates are asked.
#[derive(Debug)]
struct Tolls {
    endpoint: Pace,
    address: Pace,
    sender: Pace,
    tunnel: Pace,
    all: Pace,
}

/// A tunnel with contenders, or with hold-offs to remember.
#[derive(Debug)]
struct Inquiry {
    /// Those who have answered from other places than the tunnel's own, first come first.
    contenders: Vec<Contender>,
    /// Whom they would replace.
    current: SocketAddrV4,
    /// The peer's address by configuration.
    echo: Option<Ipv6Addr>,
    started: Duration,
    /// How often the current endpoint was asked.
    asked: usize,
    listening: bool,
    /// Contenders not heard until then; port 0: from no port.
    held: Vec<(SocketAddrV4, Duration)>,
    /// No other inquiry before this.
    next: Duration,
    /// Its key in `timers`.
    deadline: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Contender {
    sender: SocketAddrV4,
    local: SocketAddrV4,
    inner: Ipv6Addr,
    source: Ipv6Addr,
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

/// Why a candidate is not asked.
enum Toll {
    /// It was asked just now.
    Again,
    /// So are too many others.
    TooMany,
}

impl Tolls {
    fn new([a, b, c, d, e]: [u64; 5]) -> Self {
        Self {
            endpoint: Pace::new(1 << 16, 1, 1, a),
            address: Pace::new(1 << 14, 20, 20, b),
            sender: Pace::new(1 << 14, 200, 400, c),
            tunnel: Pace::new(1 << 14, 100, 100, d),
            all: Pace::new(1, 5000, 5000, e),
        }
    }

    /// A candidate at the address of the endpoint in use, with another port, is more likely than others to be the same peer
    /// behind a NAT; so it does not share a bucket with them.
    fn refusal(&mut self, now: Duration, candidate: &Candidate) -> Option<Toll> {
        let Candidate { tunnel: TunnelId(tunnel), sender, current, .. } = *candidate;
        let addr: u32 = (*sender.ip()).into();
        let stays = current.is_some_and(|at| at.ip() == sender.ip());
        if !self.endpoint.allows(now, (tunnel, addr, sender.port()))
            || !self.address.allows(now, (tunnel, addr))
        {
            return Some(Toll::Again);
        }
        let fits = self.sender.allows(now, addr)
            && self.tunnel.allows(now, (tunnel, stays))
            && (stays || self.all.allows(now, ()));
        (!fits).then_some(Toll::TooMany)
    }
}

impl Inquiry {
    fn new(now: Duration, current: SocketAddrV4) -> Self {
        Self {
            contenders: Vec::new(),
            current,
            echo: None,
            started: now,
            asked: 0,
            listening: false,
            held: Vec::new(),
            next: now,
            deadline: now,
        }
    }

    fn is_held(&self, now: Duration, sender: SocketAddrV4) -> bool {
        let is_it = |held: SocketAddrV4| {
            held.ip() == sender.ip() && (held.port() == 0 || held.port() == sender.port())
        };
        self.held.iter().any(|&(held, until)| is_it(held) && now < until)
    }

    /// Holds a refuted contender off: all of its address, unless that is the endpoint's own, whose port a NAT may change.
    fn hold(&mut self, now: Duration, sender: SocketAddrV4) {
        self.held.retain(|&(_, until)| until > now);
        if self.held.len() >= HELD {
            self.held.remove(0);
        }
        let is_neighbour = sender.ip() == self.current.ip();
        let port = if is_neighbour { sender.port() } else { 0 };
        self.held.push((SocketAddrV4::new(*sender.ip(), port), now + HOLD_OFF));
    }

    /// The contender that is most likely the same peer: behind the same NAT, or with an address inside that the peer has
    /// shown; among equals the first.
    fn best(&self, shown: &[Ipv6Addr]) -> usize {
        let rank = |c: &Contender| (c.sender.ip() != self.current.ip(), !shown.contains(&c.inner));
        let ranked = self.contenders.iter().enumerate().min_by_key(|(_, c)| rank(c));
        ranked.map_or(0, |(at, _)| at)
    }

    /// When the endpoint in use has been silent for long enough.
    fn decides_at(&self, shown: &[Ipv6Addr]) -> Duration {
        let is_likely = |c: &Contender| c.sender.ip() == self.current.ip() && shown.contains(&c.inner);
        let patience = if self.contenders.iter().any(is_likely) { PATIENCE_WITH_NAT } else { PATIENCE };
        self.started + patience
    }

    /// When there is nothing left to remember.
    fn rests_until(&self) -> Duration {
        self.held.iter().map(|&(_, until)| until).fold(self.next, Duration::max)
    }

    fn next_deadline(&self, shown: &[Ipv6Addr]) -> Duration {
        if self.contenders.is_empty() {
            return self.rests_until();
        }
        let listens = Some(self.started + SETTLED).filter(|_| !self.listening);
        let asks = ASKED_AT.get(self.asked).map(|at| self.started + *at);
        [listens, asks].into_iter().flatten().fold(self.decides_at(shown), Duration::min)
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
/// Held-off contenders remembered for each tunnel.
const HELD: usize = 16;
/// Inner addresses remembered for each tunnel.
const SHOWN: usize = 3;
/// Tunnels gone within the lifetime of a question.
const MOST_GONE: usize = 8192;
/// When the endpoint in use is asked, after the first contender has answered: a lost packet or two are no silence.
const ASKED_AT: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(500),
    Duration::from_millis(1000),
    Duration::from_millis(2000),
    Duration::from_millis(3000),
];
/// What the old endpoint has sent may arrive for so long after the first packet from the new one.
const SETTLED: Duration = Duration::from_millis(500);
/// How long the endpoint in use may be silent. A router on its side that is asked for a host that is not there says so after
/// 3 s (RFC 4861 section 10), which is a sign of life too.
const PATIENCE: Duration = Duration::from_secs(4);
/// The same where only the port is another one and the inner address is known: a NAT has lost its mind.
const PATIENCE_WITH_NAT: Duration = Duration::from_millis(1500);
/// The least time between two inquiries into one tunnel.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long a contender whose tunnel's endpoint lives is not heard again.
const HOLD_OFF: Duration = Duration::from_secs(10);
/// The hop limit of questions.
const PROBE_HOPS: u8 = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{Icmpv6Type, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    const T: TunnelId = TunnelId(7);
    const OLD: &str = "192.0.2.1:4000";
    /// The same NAT, another port.
    const NEAR: &str = "192.0.2.1:4001";
    const NEW: &str = "198.51.100.9:61000";
    const OTHER: &str = "203.0.113.5:5353";
    const PEER: &str = "2001:db8:1::2";
    const NOBODY: &str = "2001:db8:1::dead";

    fn at(text: &str) -> SocketAddrV4 {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> Ipv6Addr {
        text.parse().unwrap()
    }

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn local() -> SocketAddrV4 {
        at("10.71.0.1:3653")
    }

    fn candidate(sender: &str, current: Option<&str>) -> Candidate {
        by(sender, current, PEER)
    }

    fn by(sender: &str, current: Option<&str>, inner: &str) -> Candidate {
        Candidate {
            tunnel: T,
            sender: at(sender),
            local: local(),
            current: current.map(at),
            inner_source: ip(inner),
            probe_source: ip("2001:db8:100::1"),
        }
    }

    fn from(sender: &str, current: Option<&str>) -> Origin {
        Origin { tunnel: T, sender: at(sender), local: local(), current: current.map(at), echo: None }
    }

    fn prober() -> Prober<StdRng> {
        Prober::new(StdRng::seed_from_u64(1))
    }

    /// One whose tunnel's peer has been proven to be at [`OLD`], with [`PEER`] inside.
    fn settled() -> Prober<StdRng> {
        let mut prober = prober();
        prober.has_moved(T, ip(PEER));
        prober
    }

    fn outputs(prober: &mut Prober<StdRng>) -> Vec<Output> {
        std::iter::from_fn(|| prober.poll_output()).collect()
    }

    /// The questions just asked: to whom, by which inner address, the packet; fails on moves.
    fn asked(prober: &mut Prober<StdRng>) -> Vec<(SocketAddrV4, Ipv6Addr, Vec<u8>)> {
        let all = outputs(prober).into_iter().filter_map(|output| match output {
            Output::Probe { remote, packet, local: from, .. } => {
                assert_eq!(from, local());
                Some((remote, read(&packet).1.into(), packet))
            }
            Output::Listen { .. } => None,
            Output::Move { .. } => panic!("moved without proof"),
        });
        all.collect()
    }

    fn moves(prober: &mut Prober<StdRng>) -> Vec<(SocketAddrV4, Ipv6Addr)> {
        let all = outputs(prober).into_iter().filter_map(|output| match output {
            Output::Move { remote, inner, .. } => Some((remote, inner)),
            Output::Probe { .. } | Output::Listen { .. } => None,
        });
        all.collect()
    }

    fn echo_reply(from: [u8; 16], to: [u8; 16], ident: u16, seq: u16, data: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        PacketBuilder::ipv6(from, to, 60).icmpv6_echo_reply(ident, seq).write(&mut packet, data).unwrap();
        packet
    }

    /// Source, destination, identifier, sequence number and payload of a question.
    fn read(probe: &[u8]) -> ([u8; 16], [u8; 16], u16, u16, Vec<u8>) {
        let sliced = SlicedPacket::from_ip(probe).unwrap();
        let (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Icmpv6(icmp))) = (sliced.net, sliced.transport)
        else {
            panic!("a question is ICMPv6 in IPv6");
        };
        let header = ip.header();
        assert!(icmp.is_checksum_valid(header.source(), header.destination()));
        let Icmpv6Type::EchoRequest(echo) = icmp.icmp_type() else {
            panic!("a question is an echo request");
        };
        (header.source(), header.destination(), echo.id, echo.seq, icmp.payload().to_vec())
    }

    /// What any IPv6 host makes of an echo request.
    fn reply(probe: &[u8]) -> Vec<u8> {
        let (source, destination, ident, seq, data) = read(probe);
        echo_reply(destination, source, ident, seq, &data)
    }

    /// This candidate comes, is asked, and answers at once; what the current endpoint is asked then.
    fn contend(
        prober: &mut Prober<StdRng>,
        now: Duration,
        c: Candidate,
    ) -> Vec<(SocketAddrV4, Ipv6Addr, Vec<u8>)> {
        prober.handle_candidate(now, c);
        let questions = asked(prober);
        let question = questions.iter().find(|(remote, ..)| *remote == c.sender).expect("nobody asked it");
        let origin = Origin { tunnel: T, sender: c.sender, local: c.local, current: c.current, echo: None };
        assert!(prober.handle_packet(now, &origin, &reply(&question.2)));
        asked(prober)
    }

    #[test]
    fn a_question_is_an_echo_request_from_the_router_to_the_inner_source() {
        let mut prober = prober();
        prober.handle_candidate(ms(0), candidate(NEW, Some(OLD)));
        let questions = asked(&mut prober);
        let [(remote, _, packet)] = &questions[..] else { panic!("{questions:?}") };
        assert_eq!(*remote, at(NEW), "the endpoint in use is left alone as long as nobody has answered");
        let (source, destination, ident, _, nonce) = read(packet);
        assert_eq!((Ipv6Addr::from(source), Ipv6Addr::from(destination)), (ip("2001:db8:100::1"), ip(PEER)));
        assert_eq!((ident, nonce.len()), (prober.ident(), 16));
        assert!(!prober.handle_packet(ms(1), &from(NEW, Some(OLD)), packet), "a request is no reply");
    }

    #[test]
    fn a_tunnel_without_endpoint_learns_it_at_once() {
        let mut prober = prober();
        prober.handle_candidate(ms(0), candidate(NEW, None));
        let question = asked(&mut prober).remove(0).2;
        assert!(prober.handle_packet(ms(40), &from(NEW, None), &reply(&question)));
        assert_eq!(moves(&mut prober), [(at(NEW), ip(PEER))]);
        let counters = prober.counters();
        assert_eq!((counters.probes_sent, counters.unanswered, prober.poll_timeout()), (1, 0, None));
    }

    /// RFC: D12 (RFC 8085 section 3.5)
    #[test]
    fn a_dead_endpoint_is_given_up_sooner_behind_the_same_nat() {
        for (sender, patience) in [(NEAR, 1500), (NEW, 4000)] {
            let mut prober = settled();
            assert_eq!(contend(&mut prober, ms(0), candidate(sender, Some(OLD))).len(), 1);
            prober.handle_timeout(ms(patience - 1));
            let again = asked(&mut prober);
            assert!(again.len() >= 2 && again.iter().all(|(to, ..)| *to == at(OLD)), "{again:?}");
            prober.handle_timeout(ms(patience));
            assert_eq!(moves(&mut prober), [(at(sender), ip(PEER))]);
        }
    }

    /// The attacker chooses an inner source that no host has: the living peer cannot answer for that, but for its own.
    ///
    /// RFC: D12 (RFC 8085 section 3.5)
    #[test]
    fn life_is_asked_by_an_address_that_the_endpoint_has_shown() {
        for answers_at in [10, 3600] {
            let mut prober = settled();
            let mut questions = contend(&mut prober, ms(0), by(NEW, Some(OLD), NOBODY));
            for now in (0..=answers_at).step_by(10) {
                prober.handle_timeout(ms(now));
                questions.extend(asked(&mut prober));
            }
            let last =
                questions.iter().rev().find(|(_, inner, _)| *inner == ip(PEER)).expect("asked by its own");
            assert!(prober.handle_packet(ms(answers_at), &from(OLD, Some(OLD)), &reply(&last.2)));
            prober.handle_timeout(ms(60_000));
            assert_eq!(moves(&mut prober), []);
            assert_eq!((prober.counters().stayed_alive, prober.counters().forged), (1, 0));
        }
    }

    #[test]
    fn it_is_asked_by_all_addresses_that_may_answer() {
        let mut prober = settled();
        for inner in ["2001:db8:1::3", "2001:db8:1::4", "2001:db8:1::5"] {
            prober.has_moved(T, ip(inner));
        }
        prober.handle_candidate(ms(0), by(NEW, Some(OLD), NOBODY));
        let question = asked(&mut prober).remove(0).2;
        let origin = Origin { echo: Some(ip("2001:db8:1::ec")), ..from(NEW, Some(OLD)) };
        prober.handle_packet(ms(0), &origin, &reply(&question));
        let inner: Vec<_> = asked(&mut prober).into_iter().map(|(_, inner, _)| inner).collect();
        let expected = ["2001:db8:1::5", "2001:db8:1::4", "2001:db8:1::3", "2001:db8:1::ec", NOBODY];
        assert_eq!(inner, expected.map(ip), "the latest three, what is configured, what the contender says");
    }

    /// RFC: D12
    #[test]
    fn a_refuted_contender_is_held_off_and_nobody_else() {
        let mut prober = settled();
        let questions = contend(&mut prober, ms(0), by(NEW, Some(OLD), NOBODY));
        prober.handle_packet(ms(50), &from(OLD, Some(OLD)), &reply(&questions[0].2));
        outputs(&mut prober);
        let same_address = "198.51.100.9:7";
        for sender in [NEW, same_address] {
            prober.handle_candidate(ms(9000), candidate(sender, Some(OLD)));
            assert_eq!(asked(&mut prober), [], "{sender}");
        }
        assert_eq!(prober.counters().busy, 2);
        prober.handle_candidate(ms(9000), candidate(OTHER, Some(OLD)));
        assert_eq!(asked(&mut prober).len(), 1, "the peer itself may have moved meanwhile");
        prober.handle_candidate(ms(10_050), candidate(NEW, Some(OLD)));
        assert_eq!(asked(&mut prober).len(), 1);
    }

    #[test]
    fn who_lies_behind_the_peers_nat_is_held_off_by_port() {
        let mut prober = settled();
        let questions = contend(&mut prober, ms(0), candidate(NEAR, Some(OLD)));
        prober.handle_packet(ms(50), &from(OLD, Some(OLD)), &reply(&questions[0].2));
        outputs(&mut prober);
        prober.handle_candidate(ms(2000), candidate(NEAR, Some(OLD)));
        assert_eq!(asked(&mut prober), []);
        prober.handle_candidate(ms(2000), candidate("192.0.2.1:9", Some(OLD)));
        assert_eq!(asked(&mut prober).len(), 1, "the NAT may have changed the peer's port");
    }

    /// A move that the caller has not made, since packets came from the old endpoint.
    ///
    /// RFC: D12
    #[test]
    fn a_veto_holds_off_too() {
        let mut prober = settled();
        contend(&mut prober, ms(0), by(NEW, Some(OLD), NOBODY));
        prober.handle_timeout(ms(500));
        assert!(outputs(&mut prober).contains(&Output::Listen { tunnel: T }));
        prober.handle_timeout(ms(4000));
        assert_eq!(moves(&mut prober), [(at(NEW), ip(NOBODY))]);
        prober.is_alive(ms(4000), T, at(NEW));
        for now in [5000, 8000, 13_999] {
            prober.handle_candidate(ms(now), by(NEW, Some(OLD), NOBODY));
            assert_eq!(asked(&mut prober), [], "{now}");
        }
        assert_eq!(prober.counters().stayed_alive, 1);
    }

    #[test]
    fn old_and_new_being_the_same_peer_moves_at_once() {
        let mut prober = settled();
        let questions = contend(&mut prober, ms(0), candidate(NEW, Some(OLD)));
        assert!(prober.handle_packet(ms(30), &from(NEW, Some(OLD)), &reply(&questions[0].2)));
        assert_eq!(moves(&mut prober), [(at(NEW), ip(PEER))]);
        assert_eq!(prober.counters().forged, 0);
    }

    /// RFC: D12
    #[test]
    fn an_answer_from_a_third_place_proves_nothing() {
        let mut prober = settled();
        prober.handle_candidate(ms(0), candidate(NEW, Some(OLD)));
        let to_new = asked(&mut prober).remove(0).2;
        let elsewhere = Origin { local: at("10.71.0.2:3653"), ..from(NEW, Some(OLD)) };
        let another = Origin { tunnel: TunnelId(8), ..from(NEW, Some(OLD)) };
        for origin in [from(OTHER, Some(OLD)), from(OLD, Some(OLD)), elsewhere, another] {
            assert!(prober.handle_packet(ms(20), &origin, &reply(&to_new)));
        }
        assert_eq!((prober.counters().forged, prober.counters().unanswered), (4, 1));
        let to_old = contend(&mut prober, ms(1000), candidate(NEW, Some(OLD))).remove(0).2;
        // Copied on its way, and sent by somebody who has proven nothing.
        assert!(prober.handle_packet(ms(1020), &from(OTHER, Some(OLD)), &reply(&to_old)));
        assert_eq!((moves(&mut prober), prober.counters().forged), (vec![], 5));
    }

    #[test]
    fn a_reply_has_to_come_back_whole() {
        let mut prober = prober();
        prober.handle_candidate(ms(0), candidate(NEW, None));
        let question = asked(&mut prober).remove(0).2;
        let (us, peer, ident, seq, nonce) = read(&question);
        let not_ours = [
            echo_reply(peer, us, ident, seq, &nonce[..15]),
            echo_reply(peer, us, ident, seq, &[&nonce[..], &[0]].concat()),
            echo_reply(peer, us, ident.wrapping_add(1), seq, &nonce),
        ];
        let mut summed_wrong = reply(&question);
        summed_wrong[42] ^= 1;
        for packet in not_ours.into_iter().chain([summed_wrong]) {
            assert!(!prober.handle_packet(ms(9), &from(NEW, None), &packet), "left to others");
        }
        let mut wrong = nonce.clone();
        wrong[15] ^= 1;
        let forged = [
            echo_reply(peer, us, ident, seq, &wrong),
            echo_reply(us, us, ident, seq, &nonce),
            echo_reply(peer, peer, ident, seq, &nonce),
            echo_reply(peer, us, ident, seq.wrapping_add(1), &nonce),
        ];
        for packet in forged {
            assert!(prober.handle_packet(ms(9), &from(NEW, None), &packet));
        }
        assert_eq!((prober.counters().forged, outputs(&mut prober)), (4, vec![]));
    }

    /// RFC: D12
    #[test]
    fn a_replayed_reply_of_an_earlier_proof_moves_nothing() {
        let mut prober = prober();
        prober.handle_candidate(ms(0), candidate(NEW, None));
        let recorded = reply(&asked(&mut prober).remove(0).2);
        prober.handle_packet(ms(10), &from(NEW, None), &recorded);
        assert_eq!(moves(&mut prober).len(), 1);
        prober.has_moved(T, ip(PEER));
        // At once, from where she is and from elsewhere; and when she went on and somebody has her old place.
        for (now, sender, current) in [(20, NEW, NEW), (20, OTHER, NEW), (5000, NEW, OTHER)] {
            assert!(prober.handle_packet(ms(now), &from(sender, Some(current)), &recorded));
        }
        prober.handle_timeout(ms(60_000));
        assert_eq!((moves(&mut prober), prober.counters().moved), (vec![], 1));
    }

    #[test]
    fn an_answer_that_comes_too_late_is_none() {
        let mut prober = prober();
        prober.handle_candidate(ms(0), candidate(NEW, None));
        let question = asked(&mut prober).remove(0).2;
        assert!(prober.handle_packet(ms(3000), &from(NEW, None), &reply(&question)));
        assert_eq!((outputs(&mut prober), prober.counters().unanswered), (vec![], 1));
    }

    #[test]
    fn who_does_not_answer_is_asked_once_a_second() {
        let mut prober = settled();
        for n in 0..=100 {
            prober.handle_candidate(ms(n * 100), candidate(NEW, Some(OLD)));
        }
        assert_eq!((asked(&mut prober).len(), prober.counters().unanswered), (11, 11));
        assert_eq!((prober.counters().busy, prober.poll_timeout()), (90, None));
    }

    /// Forged candidates take no place, whether one address has them from all its ports or all addresses are forged.
    ///
    /// RFC: D12 (RFC 8085 section 3.5)
    #[test]
    fn a_flood_of_silent_candidates_does_not_keep_a_peer_that_moved() {
        for spread in [false, true] {
            let mut prober = settled();
            for n in 0..20_000u64 {
                let address = if spread { 0xcb00_0000 + n as u32 } else { 0xcb00_0001 };
                let forged = SocketAddrV4::new(address.into(), 1000 + (n % 60_000) as u16);
                let c = Candidate { sender: forged, ..candidate(OTHER, Some(OLD)) };
                prober.handle_candidate(ms(n / 10), c);
            }
            outputs(&mut prober);
            assert!(prober.counters().busy + prober.counters().full > 10_000);
            // Behind her NAT, with another port.
            contend(&mut prober, ms(2000), candidate(NEAR, Some(OLD)));
            prober.handle_timeout(ms(3500));
            assert_eq!(moves(&mut prober), [(at(NEAR), ip(PEER))], "spread {spread}");
        }
    }

    #[test]
    fn the_likelier_contender_wins() {
        let mut prober = settled();
        contend(&mut prober, ms(0), by(OTHER, Some(OLD), NOBODY));
        contend(&mut prober, ms(100), candidate(NEW, Some(OLD)));
        prober.handle_timeout(ms(4000));
        assert_eq!(moves(&mut prober), [(at(NEW), ip(PEER))], "its inner address is known");
        let mut prober = settled();
        contend(&mut prober, ms(0), candidate(NEW, Some(OLD)));
        contend(&mut prober, ms(1000), candidate(NEAR, Some(OLD)));
        prober.handle_timeout(ms(1500));
        assert_eq!(moves(&mut prober), [(at(NEAR), ip(PEER))], "it is behind the same NAT");
    }

    #[test]
    fn impossible_addresses_are_never_asked() {
        let mut prober = prober();
        for sender in ["224.0.0.1:5", "255.255.255.255:5", "0.0.0.0:5", "192.0.2.1:0"] {
            prober.handle_candidate(ms(0), candidate(sender, None));
        }
        for inner in ["ff02::1", "::", "::1", "2001:db8:100::1"] {
            prober.handle_candidate(ms(0), by(NEW, None, inner));
        }
        prober.handle_candidate(ms(0), candidate(NEW, Some(NEW)));
        assert_eq!(outputs(&mut prober), []);
        assert_eq!((prober.counters().forged, prober.poll_timeout()), (8, None));
    }

    /// The number may be another tunnel's at once, whose own peer shows itself.
    ///
    /// RFC: D12
    #[test]
    fn a_forgotten_tunnel_leaves_nothing_behind() {
        let mut prober = settled();
        prober.handle_candidate(ms(5), candidate(NEW, None));
        let question = asked(&mut prober).remove(0).2;
        contend(&mut prober, ms(5), candidate(OTHER, Some(OLD)));
        prober.forget(T);
        assert!(prober.handle_packet(ms(10), &from(NEW, None), &reply(&question)));
        assert_eq!((outputs(&mut prober), prober.poll_timeout()), (vec![], None));
        assert!(prober.inquiries.is_empty() && prober.timers.is_empty() && prober.shown.is_empty());
        prober.handle_candidate(ms(1010), candidate(NEW, None));
        let question = asked(&mut prober).remove(0).2;
        for n in 0..10_000 {
            prober.forget(TunnelId(100 + n));
        }
        assert!(prober.gone.len() <= MOST_GONE);
        prober.handle_packet(ms(1020), &from(NEW, None), &reply(&question));
        assert_eq!(outputs(&mut prober), [], "asked before a churn like that: asked again");
    }

    /// RFC: D12
    #[test]
    fn contenders_for_all_tunnels_stay_within_bounds_and_drain() {
        let mut prober = prober();
        for n in 0..40_000u32 {
            let sender = SocketAddrV4::new((0xcb00_0000 + n / 4).into(), 1000);
            let tunnel = TunnelId(n % 20_000);
            let c = Candidate { tunnel, sender, ..candidate(NEW, Some(OLD)) };
            let now = ms(u64::from(n) / 5);
            prober.handle_candidate(now, c);
            for (remote, _, packet) in outputs(&mut prober).into_iter().filter_map(|output| match output {
                Output::Probe { remote, packet, .. } => Some((remote, (), packet)),
                Output::Listen { .. } | Output::Move { .. } => None,
            }) {
                let origin = Origin { tunnel, sender, ..from(NEW, Some(OLD)) };
                if remote == sender {
                    prober.handle_packet(now, &origin, &reply(&packet));
                }
            }
            assert!(prober.inquiries.len() <= MOST_TUNNELS && prober.timers.len() == prober.inquiries.len());
        }
        outputs(&mut prober);
        for now in [10_000, 20_000, 60_000] {
            prober.handle_timeout(ms(now));
            outputs(&mut prober);
        }
        assert!(prober.inquiries.is_empty() && prober.poll_timeout().is_none());
    }

    /// One thing that somebody who never sees what a candidate is asked can do. Places are numbers below 4.
    #[derive(Clone, Debug)]
    enum Act {
        Candidate {
            tunnel: u32,
            from: u16,
            current: Option<u16>,
        },
        Guess {
            from: u16,
            nonce: [u8; 16],
            seq: u16,
        },
        /// Has a candidate's answer come from everywhere but the candidate.
        Misplace {
            shift: u16,
            pick: prop::sample::Index,
        },
        Wait(u64),
        Forget(u32),
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let candidate = (0..3u32, 0..4u16, prop::option::of(0..4u16))
            .prop_map(|(tunnel, from, current)| Act::Candidate { tunnel, from, current });
        let guess = (0..4u16, any::<[u8; 16]>(), any::<u16>()).prop_map(|(from, nonce, seq)| Act::Guess {
            from,
            nonce,
            seq,
        });
        let misplace =
            (1..4u16, any::<prop::sample::Index>()).prop_map(|(shift, pick)| Act::Misplace { shift, pick });
        let wait = (0..4000u64).prop_map(Act::Wait);
        let act = prop_oneof![
            4 => candidate, 1 => guess, 3 => misplace, 3 => wait, 1 => (0..3u32).prop_map(Act::Forget)
        ];
        prop::collection::vec(act, 0..80)
    }

    fn place(n: u16) -> SocketAddrV4 {
        SocketAddrV4::new([192, 0, 2, 1].into(), 1000 + n % 4)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// RFC: D12 (RFC 8085 section 3.5)
        #[test]
        fn nothing_moves_without_the_candidates_nonce_from_the_candidate(acts in acts()) {
            let mut prober = prober();
            let mut now = ms(0);
            let mut seen: Vec<(u16, u32, Vec<u8>)> = Vec::new();
            for act in acts {
                match act {
                    Act::Candidate { tunnel, from, current } => {
                        let (tunnel, sender) = (TunnelId(tunnel), place(from));
                        prober.handle_candidate(now, Candidate { tunnel, sender, current: current.map(place), ..candidate(NEW, None) });
                        seen.extend(asked(&mut prober).into_iter().map(|(_, _, p)| (from, tunnel.0, reply(&p))));
                    }
                    Act::Guess { from: n, nonce, seq } => {
                        let c = candidate(NEW, None);
                        let (peer, us) = (c.inner_source.octets(), c.probe_source.octets());
                        let packet = echo_reply(peer, us, prober.ident(), seq, &nonce);
                        prober.handle_packet(now, &Origin { sender: place(n), ..from(NEW, None) }, &packet);
                    }
                    Act::Misplace { shift, pick } if !seen.is_empty() => {
                        let (n, tunnel, packet) = pick.get(&seen);
                        let origin = Origin { tunnel: TunnelId(*tunnel), sender: place(n + shift), ..from(NEW, None) };
                        prober.handle_packet(now, &origin, packet);
                    }
                    Act::Misplace { .. } => {}
                    Act::Wait(n) => {
                        now += ms(n);
                        prober.handle_timeout(now);
                    }
                    Act::Forget(n) => prober.forget(TunnelId(n)),
                }
                prop_assert_eq!(outputs(&mut prober), vec![]);
                prop_assert_eq!(prober.timers.len(), prober.inquiries.len());
            }
        }

        #[test]
        fn arbitrary_packets_are_nobodys(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(!prober().handle_packet(ms(0), &from(OLD, Some(OLD)), &bytes));
        }
    }
}
