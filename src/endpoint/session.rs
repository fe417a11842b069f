//! The proof that a peer is where it seems to be: probes, nonces and deadlines (RFC 8085 section 3.5,
//! RFC 4443 section 4).
//!
//! Pure: `now` and the random numbers are given, packets to send and moves to make are fetched. Refuses to know
//! tables, sockets and who owns a tunnel; it only ever says *this tunnel's peer has been proven to be there*.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::{Ipv6Addr, SocketAddrV4};
use std::time::Duration;

use rand::{CryptoRng, RngExt};
use sixway_dataplane::update::TunnelId;

use crate::nd::codec::{self, Echo, Header, Message, Outgoing};

/// A packet whose inner source belongs to a tunnel came from a place that does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The tunnel whose prefix the inner source lies in.
    pub tunnel: TunnelId,
    /// Where the packet came from.
    pub sender: SocketAddrV4,
    /// The local address and port it came to; probes leave from there.
    pub local: SocketAddrV4,
    /// The tunnel's endpoint now, if it has one.
    pub current: Option<SocketAddrV4>,
    /// The packet's inner source, which is asked to answer.
    pub inner_source: Ipv6Addr,
    /// An address of the router's own, which the answer goes to.
    pub probe_source: Ipv6Addr,
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
    /// The tunnel's peer has proven to be at this endpoint: send its traffic there from now on.
    Move {
        /// Which tunnel.
        tunnel: TunnelId,
        /// Its new endpoint.
        remote: SocketAddrV4,
        /// The local address and port that the peer talks to.
        local: SocketAddrV4,
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
    /// Candidates that did not answer within 3 s, among them peers that filter echo.
    pub unanswered: u64,
    /// Candidates not looked at: another one is being probed, the last probe was less than 1 s ago, or this
    /// candidate or its tunnel is held off.
    pub busy: u64,
    /// Candidates not looked at because [`MAX_PROBING`] tunnels are being probed or too many are resting.
    pub full: u64,
    /// Candidates at impossible addresses, and right nonces from a wrong place.
    pub forged: u64,
}

/// Probes candidates and decides. Its memory is bounded by [`MAX_PROBING`] whatever comes in, as long as
/// [`poll_output`](Self::poll_output) is emptied after each call.
#[derive(Debug)]
pub struct Prober<R> {
    rng: R,
    ident: u16,
    tunnels: HashMap<TunnelId, Entry>,
    /// Which tunnel waits for which nonce, the candidate's or the current endpoint's.
    nonces: HashMap<Nonce, TunnelId>,
    /// One deadline for each of `tunnels`.
    timers: BTreeSet<(Duration, TunnelId)>,
    probing: usize,
    outputs: VecDeque<Output>,
    counters: EndpointCounters,
}

type Nonce = [u8; 16];

/// A tunnel with a probe on its way, or with hold-offs to remember.
#[derive(Debug)]
struct Entry {
    probe: Option<Probe>,
    /// No probe before this.
    next_probe: Duration,
    /// Candidates that did not answer, and until when they are not asked again.
    held: Vec<(SocketAddrV4, Duration)>,
    /// Its key in `timers`.
    deadline: Duration,
}

#[derive(Debug)]
struct Probe {
    candidate: Candidate,
    /// What was sent to the candidate.
    asked: Question,
    /// What was sent to the current endpoint.
    asked_current: Option<(SocketAddrV4, Question)>,
    started: Duration,
    answered: bool,
    same_peer: bool,
}

#[derive(Clone, Copy, Debug)]
struct Question {
    nonce: Nonce,
    seq: u16,
}

/// An echo reply that carries our identifier and a nonce.
struct Reply {
    source: Ipv6Addr,
    destination: Ipv6Addr,
    question: Question,
}

/// Where a reply came from.
#[derive(Clone, Copy)]
struct Path {
    tunnel: Option<TunnelId>,
    sender: SocketAddrV4,
    local: SocketAddrV4,
}

/// What a reply with a right nonce proves.
enum Evidence {
    /// The candidate receives what is sent to it.
    Candidate,
    /// The candidate receives what is sent to the current endpoint too.
    SamePeer,
    /// The current endpoint lives.
    Alive,
    /// Nothing: wrong place, or other addresses than asked.
    Forged,
}

impl<R: CryptoRng> Prober<R> {
    /// Nobody is probed yet. The generator has to be unpredictable, since the proof is that nobody guesses.
    pub fn new(mut rng: R) -> Self {
        let ident = rng.random();
        Self {
            rng,
            ident,
            tunnels: HashMap::new(),
            nonces: HashMap::new(),
            timers: BTreeSet::new(),
            probing: 0,
            outputs: VecDeque::new(),
            counters: EndpointCounters::default(),
        }
    }

    /// The echo identifier of all our probes, drawn once.
    pub fn ident(&self) -> u16 {
        self.ident
    }

    /// Whether a packet is an echo reply with our identifier, for whoever sorts what came for the router's own
    /// address. It may still not be ours: [`handle_packet`](Self::handle_packet) decides by the nonce.
    pub fn is_reply(&self, packet: &[u8]) -> bool {
        reply_to(self.ident, packet).is_some()
    }

    /// What became of candidates so far.
    pub fn counters(&self) -> EndpointCounters {
        self.counters
    }

    /// A packet for a tunnel came from a place that is not its endpoint: probe it, or count why not.
    pub fn handle_candidate(&mut self, now: Duration, candidate: Candidate) {
        self.handle_timeout(now);
        if candidate.current == Some(candidate.sender) {
            return;
        }
        if !candidate.is_possible() {
            self.counters.forged += 1;
            return;
        }
        if self.tunnels.get(&candidate.tunnel).is_some_and(|entry| entry.refuses(now, candidate.sender)) {
            self.counters.busy += 1;
            return;
        }
        let known = self.tunnels.contains_key(&candidate.tunnel);
        if self.probing >= MAX_PROBING || (!known && self.tunnels.len() >= MAX_TUNNELS) {
            self.counters.full += 1;
            return;
        }
        self.start(now, candidate);
    }

    /// Looks at a packet from anywhere; `true` when it answered a probe of ours and is done with. `tunnel` is the
    /// one whose endpoint the sender is, if any.
    pub fn handle_packet(
        &mut self,
        now: Duration,
        tunnel: Option<TunnelId>,
        sender: SocketAddrV4,
        local: SocketAddrV4,
        packet: &[u8],
    ) -> bool {
        self.handle_timeout(now);
        let Some(reply) = reply_to(self.ident, packet) else {
            return false;
        };
        let Some(&id) = self.nonces.get(&reply.question.nonce) else {
            return false;
        };
        let path = Path { tunnel, sender, local };
        match self.tunnels.get(&id).and_then(|entry| entry.probe.as_ref()).map(|p| p.judge(path, &reply)) {
            Some(Evidence::Candidate) => self.note(now, id, |probe| probe.answered = true),
            Some(Evidence::SamePeer) => self.note(now, id, |probe| probe.same_peer = true),
            Some(Evidence::Alive) => self.stay(now, id),
            Some(Evidence::Forged) | None => self.counters.forged += 1,
        }
        true
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Duration) {
        while let Some(&(at, id)) = self.timers.first() {
            if at > now {
                return;
            }
            self.expire(now, id);
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

    /// The tunnel is gone or was configured anew: nothing pending about it counts any more.
    pub fn forget(&mut self, tunnel: TunnelId) {
        self.end_probe(tunnel);
        if let Some(entry) = self.tunnels.remove(&tunnel) {
            self.timers.remove(&(entry.deadline, tunnel));
        }
        self.outputs.retain(|output| output.tunnel() != tunnel);
    }

    fn start(&mut self, now: Duration, candidate: Candidate) {
        let asked = self.ask(&candidate, candidate.sender);
        let asked_current = candidate.current.map(|at| (at, self.ask(&candidate, at)));
        let probe =
            Probe { candidate, asked, asked_current, started: now, answered: false, same_peer: false };
        let entry = self.tunnels.entry(candidate.tunnel).or_insert_with(|| Entry::new(now));
        entry.probe = Some(probe);
        entry.next_probe = now + PROBE_INTERVAL;
        self.probing += 1;
        self.schedule(candidate.tunnel);
    }

    /// Sends an echo request with a fresh nonce.
    fn ask(&mut self, candidate: &Candidate, remote: SocketAddrV4) -> Question {
        let question = Question { nonce: self.rng.random(), seq: self.rng.random() };
        let header = Header {
            source: candidate.probe_source,
            destination: candidate.inner_source,
            hop_limit: PROBE_HOPS,
        };
        let echo = Echo { ident: self.ident, seq: question.seq, data: &question.nonce };
        let packet = codec::emit(&header, &Outgoing::EchoRequest(echo));
        let Candidate { tunnel, local, .. } = *candidate;
        self.outputs.push_back(Output::Probe { tunnel, remote, local, packet });
        self.nonces.insert(question.nonce, tunnel);
        self.counters.probes_sent += 1;
        question
    }

    /// Writes evidence down and moves if it suffices.
    fn note(&mut self, now: Duration, id: TunnelId, write: impl FnOnce(&mut Probe)) {
        let Some(probe) = self.tunnels.get_mut(&id).and_then(|entry| entry.probe.as_mut()) else {
            return;
        };
        write(probe);
        if probe.is_proven(now) {
            self.relocate(id);
        }
        self.schedule(id);
    }

    fn relocate(&mut self, id: TunnelId) {
        if let Some(Probe { candidate, .. }) = self.end_probe(id) {
            self.counters.moved += 1;
            let Candidate { tunnel, sender: remote, local, .. } = candidate;
            self.outputs.push_back(Output::Move { tunnel, remote, local });
        }
    }

    fn stay(&mut self, now: Duration, id: TunnelId) {
        if self.end_probe(id).is_some() {
            self.counters.stayed_alive += 1;
        }
        if let Some(entry) = self.tunnels.get_mut(&id) {
            entry.next_probe = now + HOLD_OFF;
        }
        self.schedule(id);
    }

    /// A tunnel's deadline has come: move, give up, or forget its rest.
    fn expire(&mut self, now: Duration, id: TunnelId) {
        let proven = self.tunnels.get(&id).and_then(|entry| entry.probe.as_ref()).map(|p| p.is_proven(now));
        match proven {
            Some(true) => self.relocate(id),
            Some(false) => self.give_up(now, id),
            None => return self.forget_rest(id),
        }
        self.schedule(id);
    }

    fn give_up(&mut self, now: Duration, id: TunnelId) {
        let Some(probe) = self.end_probe(id) else {
            return;
        };
        self.counters.unanswered += 1;
        if let Some(entry) = self.tunnels.get_mut(&id) {
            entry.held.retain(|&(_, until)| until > now);
            // One candidate in 3 s and 10 s each: there are never more than four.
            entry.held.push((probe.candidate.sender, now + HOLD_OFF));
        }
    }

    fn forget_rest(&mut self, id: TunnelId) {
        if let Some(entry) = self.tunnels.remove(&id) {
            self.timers.remove(&(entry.deadline, id));
        }
    }

    /// Takes the probe away, so that its nonces prove nothing any more.
    fn end_probe(&mut self, id: TunnelId) -> Option<Probe> {
        let probe = self.tunnels.get_mut(&id)?.probe.take()?;
        self.probing -= 1;
        self.nonces.remove(&probe.asked.nonce);
        if let Some((_, question)) = probe.asked_current {
            self.nonces.remove(&question.nonce);
        }
        Some(probe)
    }

    /// Sets the tunnel's timer anew after any change.
    fn schedule(&mut self, id: TunnelId) {
        if let Some(entry) = self.tunnels.get_mut(&id) {
            self.timers.remove(&(entry.deadline, id));
            entry.deadline = entry.next_deadline();
            self.timers.insert((entry.deadline, id));
        }
    }
}

impl Output {
    fn tunnel(&self) -> TunnelId {
        match self {
            Self::Probe { tunnel, .. } | Self::Move { tunnel, .. } => *tunnel,
        }
    }
}

impl Candidate {
    /// Whether one peer can be at these addresses; probes go to nothing else, least of all to groups.
    fn is_possible(&self) -> bool {
        let outer = self.sender.ip();
        let outer_fine = !outer.is_multicast() && !outer.is_broadcast() && !outer.is_unspecified();
        let inner = self.inner_source;
        let inner_fine = !inner.is_multicast() && !inner.is_unspecified() && !inner.is_loopback();
        outer_fine && self.sender.port() != 0 && inner_fine && inner != self.probe_source
    }
}

impl Entry {
    fn new(now: Duration) -> Self {
        Self { probe: None, next_probe: now, held: Vec::new(), deadline: now }
    }

    fn refuses(&self, now: Duration, sender: SocketAddrV4) -> bool {
        self.probe.is_some()
            || now < self.next_probe
            || self.held.iter().any(|&(held, until)| held == sender && now < until)
    }

    /// When something happens to the probe, or when there is nothing left to remember.
    fn next_deadline(&self) -> Duration {
        match &self.probe {
            Some(probe) if probe.answered => probe.started + CURRENT_PATIENCE,
            Some(probe) => probe.started + CANDIDATE_PATIENCE,
            None => self.held.iter().map(|&(_, until)| until).fold(self.next_probe, Duration::max),
        }
    }
}

impl Probe {
    fn judge(&self, path: Path, reply: &Reply) -> Evidence {
        let from_candidate = path.sender == self.candidate.sender && path.local == self.candidate.local;
        let addressed = reply.source == self.candidate.inner_source
            && reply.destination == self.candidate.probe_source
            && path.tunnel.is_none_or(|tunnel| tunnel == self.candidate.tunnel);
        if !addressed {
            return Evidence::Forged;
        }
        if self.asked.matches(reply) {
            return if from_candidate { Evidence::Candidate } else { Evidence::Forged };
        }
        match self.asked_current {
            Some((at, question)) if question.matches(reply) && path.sender == at => Evidence::Alive,
            Some((_, question)) if question.matches(reply) && from_candidate => Evidence::SamePeer,
            Some(_) | None => Evidence::Forged,
        }
    }

    /// Whether the candidate has answered and nobody at the current endpoint stands against it.
    fn is_proven(&self, now: Duration) -> bool {
        let unopposed = self.asked_current.is_none() || now >= self.started + CURRENT_PATIENCE;
        self.answered && (self.same_peer || unopposed)
    }
}

impl Question {
    /// Compares in full: a part of a nonce proves nothing.
    fn matches(&self, reply: &Reply) -> bool {
        self.nonce == reply.question.nonce && self.seq == reply.question.seq
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
    let question = Question { nonce, seq: echo.seq };
    Some(Reply { source: header.source, destination: header.destination, question })
}

/// Tunnels that are probed at the same time, at most.
pub const MAX_PROBING: usize = 4096;

/// Tunnels remembered at most: those probed, and about as many again for each 3 s that a hold-off lasts.
const MAX_TUNNELS: usize = 4 * MAX_PROBING;
/// The least time between two probes of one tunnel.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// How long the current endpoint may take to answer before a candidate that has answered wins.
const CURRENT_PATIENCE: Duration = Duration::from_secs(1);
/// How long a candidate may take to answer.
const CANDIDATE_PATIENCE: Duration = Duration::from_secs(3);
/// How long a silent candidate, or all candidates of a tunnel whose endpoint lives, are not asked again.
const HOLD_OFF: Duration = Duration::from_secs(10);
/// The hop limit of probes.
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
    const NEW: &str = "198.51.100.9:61000";
    const OTHER: &str = "203.0.113.5:5353";

    fn at(text: &str) -> SocketAddrV4 {
        text.parse().unwrap()
    }

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn local() -> SocketAddrV4 {
        at("10.71.0.1:3653")
    }

    fn candidate(sender: &str, current: Option<&str>) -> Candidate {
        Candidate {
            tunnel: T,
            sender: at(sender),
            local: local(),
            current: current.map(at),
            inner_source: "2001:db8:1::2".parse().unwrap(),
            probe_source: "2001:db8:100::1".parse().unwrap(),
        }
    }

    fn prober() -> Prober<StdRng> {
        Prober::new(StdRng::seed_from_u64(1))
    }

    fn outputs(prober: &mut Prober<StdRng>) -> Vec<Output> {
        std::iter::from_fn(|| prober.poll_output()).collect()
    }

    /// The probes just made, by where they go; fails on anything else.
    fn probes(prober: &mut Prober<StdRng>) -> HashMap<SocketAddrV4, Vec<u8>> {
        let sent = outputs(prober).into_iter().map(|output| match output {
            Output::Probe { remote, packet, local: from, .. } => {
                assert_eq!(from, local());
                (remote, packet)
            }
            Output::Move { .. } => panic!("moved without proof"),
        });
        sent.collect()
    }

    fn moved_to(text: &str) -> Vec<Output> {
        vec![Output::Move { tunnel: T, remote: at(text), local: local() }]
    }

    fn echo_reply(from: [u8; 16], to: [u8; 16], ident: u16, seq: u16, data: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        PacketBuilder::ipv6(from, to, 60).icmpv6_echo_reply(ident, seq).write(&mut packet, data).unwrap();
        packet
    }

    /// Source, destination, identifier, sequence number and payload of a probe.
    fn read(probe: &[u8]) -> ([u8; 16], [u8; 16], u16, u16, Vec<u8>) {
        let sliced = SlicedPacket::from_ip(probe).unwrap();
        let (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Icmpv6(icmp))) = (sliced.net, sliced.transport)
        else {
            panic!("a probe is ICMPv6 in IPv6");
        };
        let header = ip.header();
        assert!(icmp.is_checksum_valid(header.source(), header.destination()));
        let Icmpv6Type::EchoRequest(echo) = icmp.icmp_type() else {
            panic!("a probe is an echo request");
        };
        (header.source(), header.destination(), echo.id, echo.seq, icmp.payload().to_vec())
    }

    /// What any IPv6 host makes of an echo request.
    fn reply(probe: &[u8]) -> Vec<u8> {
        let (source, destination, ident, seq, data) = read(probe);
        echo_reply(destination, source, ident, seq, &data)
    }

    #[test]
    fn a_probe_is_an_echo_request_with_a_nonce_from_the_router_to_the_inner_source() {
        let mut prober = prober();
        prober.handle_candidate(ms(0), candidate(NEW, Some(OLD)));
        let sent = probes(&mut prober);
        let (source, destination, ident, _, nonce) = read(&sent[&at(NEW)]);
        assert_eq!(Ipv6Addr::from(source), candidate(NEW, None).probe_source);
        assert_eq!(Ipv6Addr::from(destination), candidate(NEW, None).inner_source);
        assert_eq!((ident, nonce.len()), (prober.ident(), 16));
        assert_ne!(read(&sent[&at(OLD)]).4, nonce);
        assert!(prober.is_reply(&reply(&sent[&at(NEW)])));
        assert!(!prober.is_reply(&sent[&at(NEW)]), "a request is no reply");
    }

    #[test]
    fn a_tunnel_without_endpoint_learns_it_at_once() {
        let mut prober = prober();
        prober.handle_candidate(ms(0), candidate(NEW, None));
        let sent = probes(&mut prober);
        assert_eq!(sent.len(), 1);
        assert!(prober.handle_packet(ms(40), None, at(NEW), local(), &reply(&sent[&at(NEW)])));
        assert_eq!(outputs(&mut prober), moved_to(NEW));
        let expected = EndpointCounters { probes_sent: 1, moved: 1, ..EndpointCounters::default() };
        assert_eq!(prober.counters(), expected);
    }

    #[test]
    fn after_nat_rebinding_the_dead_endpoint_is_given_up_after_one_second() {
        let mut prober = prober();
        prober.handle_candidate(ms(0), candidate(NEW, Some(OLD)));
        let sent = probes(&mut prober);
        assert!(prober.handle_packet(ms(30), None, at(NEW), local(), &reply(&sent[&at(NEW)])));
        assert_eq!(outputs(&mut prober), [], "the old endpoint still has time to answer");
        assert_eq!(prober.poll_timeout(), Some(ms(1000)));
        prober.handle_timeout(ms(999));
        assert_eq!(outputs(&mut prober), []);
        prober.handle_timeout(ms(1000));
        assert_eq!(outputs(&mut prober), moved_to(NEW));
    }

    #[test]
    fn a_slow_candidate_moves_when_its_answer_comes() {
        let mut prober = prober();
        prober.handle_candidate(ms(0), candidate(NEW, Some(OLD)));
        let sent = probes(&mut prober);
        prober.handle_timeout(ms(1500));
        assert!(prober.handle_packet(ms(2900), None, at(NEW), local(), &reply(&sent[&at(NEW)])));
        assert_eq!(outputs(&mut prober), moved_to(NEW));
    }

    #[test]
    fn a_forged_source_moves_nothing_and_is_probed_once_a_second_at_most() {
        let mut prober = prober();
        let mut sent = Vec::new();
        for n in 0..2000u64 {
            let forged = format!("203.0.113.{}:{}", n % 250 + 1, n + 1);
            prober.handle_candidate(ms(n * 10), candidate(&forged, Some(OLD)));
            for (remote, _) in probes(&mut prober) {
                if remote == at(&forged) {
                    sent.push(n * 10);
                }
            }
        }
        assert!(sent.len() > 3 && sent.windows(2).all(|w| w[1] - w[0] >= 1000), "{sent:?}");
        let counters = prober.counters();
        assert_eq!((counters.moved, counters.unanswered), (0, sent.len() as u64 - 1));
        assert_eq!(counters.busy, 2000 - sent.len() as u64);
    }

    #[test]
    fn a_tunnel_is_probed_once_a_second_even_when_each_probe_is_answered() {
        let mut prober = prober();
        prober.handle_candidate(ms(0), candidate(NEW, None));
        let sent = probes(&mut prober);
        prober.handle_packet(ms(1), None, at(NEW), local(), &reply(&sent[&at(NEW)]));
        assert_eq!(outputs(&mut prober), moved_to(NEW));
        prober.handle_candidate(ms(999), candidate(OTHER, Some(NEW)));
        assert_eq!(probes(&mut prober).len(), 0);
        assert_eq!(prober.counters().busy, 1);
        prober.handle_candidate(ms(1000), candidate(OTHER, Some(NEW)));
        assert_eq!(probes(&mut prober).len(), 2);
    }

    /// RFC: D12
    #[test]
    fn an_attacker_with_an_address_of_its_own_does_not_get_a_living_peers_tunnel() {
        for attacker_first in [true, false] {
            let mut prober = prober();
            prober.handle_candidate(ms(0), candidate(NEW, Some(OLD)));
            let sent = probes(&mut prober);
            let (fast, slow) = if attacker_first { (20, 990) } else { (20, 10) };
            let attack = (fast, None, at(NEW), reply(&sent[&at(NEW)]));
            let honest = (slow, Some(T), at(OLD), reply(&sent[&at(OLD)]));
            let mut order = [attack, honest];
            order.sort_by_key(|packet| packet.0);
            for (when, tunnel, from, packet) in order {
                prober.handle_packet(ms(when), tunnel, from, local(), &packet);
            }
            prober.handle_timeout(ms(9000));
            assert_eq!(outputs(&mut prober), []);
            assert_eq!((prober.counters().stayed_alive, prober.counters().moved), (1, 0));
        }
    }

    #[test]
    fn after_a_sign_of_life_the_tunnel_is_held_off_for_ten_seconds() {
        let mut prober = prober();
        prober.handle_candidate(ms(0), candidate(NEW, Some(OLD)));
        let sent = probes(&mut prober);
        assert!(prober.handle_packet(ms(50), Some(T), at(OLD), local(), &reply(&sent[&at(OLD)])));
        for from in [NEW, OTHER] {
            prober.handle_candidate(ms(10_049), candidate(from, Some(OLD)));
            assert_eq!(probes(&mut prober).len(), 0);
        }
        assert_eq!(prober.counters().busy, 2);
        prober.handle_candidate(ms(10_050), candidate(NEW, Some(OLD)));
        assert_eq!(probes(&mut prober).len(), 2);
    }

    #[test]
    fn old_and_new_being_the_same_peer_moves_at_once() {
        for order in [[NEW, OLD], [OLD, NEW]] {
            let mut prober = prober();
            prober.handle_candidate(ms(0), candidate(NEW, Some(OLD)));
            let sent = probes(&mut prober);
            assert!(prober.handle_packet(ms(20), None, at(NEW), local(), &reply(&sent[&at(order[0])])));
            assert_eq!(outputs(&mut prober), []);
            assert!(prober.handle_packet(ms(30), None, at(NEW), local(), &reply(&sent[&at(order[1])])));
            assert_eq!(outputs(&mut prober), moved_to(NEW));
            assert_eq!(prober.counters().forged, 0);
        }
    }

    #[test]
    fn the_right_nonce_from_a_third_place_is_counted_and_proves_nothing() {
        let mut prober = prober();
        prober.handle_candidate(ms(0), candidate(NEW, Some(OLD)));
        let sent = probes(&mut prober);
        for (from, probed) in [(OTHER, NEW), (OTHER, OLD), (OLD, NEW)] {
            assert!(prober.handle_packet(ms(20), None, at(from), local(), &reply(&sent[&at(probed)])));
        }
        let elsewhere = at("10.71.0.2:3653");
        assert!(prober.handle_packet(ms(20), None, at(NEW), elsewhere, &reply(&sent[&at(NEW)])));
        let another = Some(TunnelId(8));
        assert!(prober.handle_packet(ms(20), another, at(NEW), local(), &reply(&sent[&at(NEW)])));
        prober.handle_timeout(ms(5000));
        assert_eq!(outputs(&mut prober), []);
        assert_eq!((prober.counters().forged, prober.counters().unanswered), (5, 1));
    }

    #[test]
    fn a_reply_has_to_come_back_whole() {
        let mut prober = prober();
        prober.handle_candidate(ms(0), candidate(NEW, None));
        let sent = probes(&mut prober);
        let (us, peer, ident, seq, nonce) = read(&sent[&at(NEW)]);
        let mut wrong_nonce = nonce.clone();
        wrong_nonce[15] ^= 1;
        let not_ours = [
            echo_reply(peer, us, ident, seq, &nonce[..15]),
            echo_reply(peer, us, ident, seq, &[&nonce[..], &[0]].concat()),
            echo_reply(peer, us, ident, seq, &wrong_nonce),
            echo_reply(peer, us, ident.wrapping_add(1), seq, &nonce),
            sent[&at(NEW)].clone(),
        ];
        for packet in not_ours {
            assert!(!prober.handle_packet(ms(9), None, at(NEW), local(), &packet), "left to others");
        }
        let mut summed_wrong = reply(&sent[&at(NEW)]);
        summed_wrong[42] ^= 1;
        assert!(!prober.handle_packet(ms(9), None, at(NEW), local(), &summed_wrong));
        for (from, to, seq) in [(us, us, seq), (peer, peer, seq), (peer, us, seq.wrapping_add(1))] {
            assert!(prober.handle_packet(
                ms(9),
                None,
                at(NEW),
                local(),
                &echo_reply(from, to, ident, seq, &nonce)
            ));
        }
        assert_eq!((prober.counters().forged, prober.counters().moved), (3, 0));
        assert_eq!(outputs(&mut prober), []);
    }

    /// RFC: D12
    #[test]
    fn a_replayed_reply_of_an_earlier_proof_moves_nothing() {
        let mut prober = prober();
        prober.handle_candidate(ms(0), candidate(NEW, None));
        let recorded = reply(&probes(&mut prober)[&at(NEW)]);
        prober.handle_packet(ms(10), None, at(NEW), local(), &recorded);
        assert_eq!(outputs(&mut prober), moved_to(NEW));
        // The peer went on to another place; somebody who took its old address over plays the old answer.
        assert!(!prober.handle_packet(ms(20), None, at(NEW), local(), &recorded));
        prober.handle_candidate(ms(2000), candidate(NEW, Some(OTHER)));
        assert_eq!(probes(&mut prober).len(), 2);
        assert!(!prober.handle_packet(ms(2010), None, at(NEW), local(), &recorded));
        prober.handle_timeout(ms(60_000));
        assert_eq!(outputs(&mut prober), []);
        assert_eq!((prober.counters().moved, prober.counters().unanswered), (1, 1));
    }

    #[test]
    fn an_answer_that_comes_too_late_is_none() {
        let mut prober = prober();
        prober.handle_candidate(ms(0), candidate(NEW, None));
        let sent = probes(&mut prober);
        assert!(!prober.handle_packet(ms(3000), None, at(NEW), local(), &reply(&sent[&at(NEW)])));
        assert_eq!(outputs(&mut prober), []);
        assert_eq!(prober.counters().unanswered, 1);
    }

    #[test]
    fn a_peer_that_filters_echo_stays_where_it_is_and_is_held_off() {
        let mut prober = prober();
        for n in 0..200 {
            prober.handle_candidate(ms(n * 100), candidate(NEW, Some(OLD)));
            probes(&mut prober);
        }
        // Probed at 0 s, given up at 3 s, held off until 13 s, probed again, given up at 16 s.
        let counters = prober.counters();
        assert_eq!((counters.probes_sent, counters.unanswered, counters.moved), (4, 2, 0));
    }

    #[test]
    fn after_a_silent_candidate_another_one_gets_the_next_slot() {
        let mut prober = prober();
        prober.handle_candidate(ms(0), candidate(OTHER, Some(OLD)));
        probes(&mut prober);
        prober.handle_candidate(ms(100), candidate(NEW, Some(OLD)));
        assert_eq!(prober.counters().busy, 1);
        prober.handle_candidate(ms(3000), candidate(OTHER, Some(OLD)));
        assert_eq!(prober.counters().busy, 2);
        prober.handle_candidate(ms(3001), candidate(NEW, Some(OLD)));
        let sent = probes(&mut prober);
        prober.handle_packet(ms(3050), None, at(NEW), local(), &reply(&sent[&at(NEW)]));
        prober.handle_timeout(ms(4001));
        assert_eq!(outputs(&mut prober), moved_to(NEW));
    }

    #[test]
    fn impossible_addresses_are_never_probed() {
        let mut prober = prober();
        for sender in ["224.0.0.1:5", "255.255.255.255:5", "0.0.0.0:5", "192.0.2.1:0"] {
            prober.handle_candidate(ms(0), candidate(sender, None));
        }
        for inner in ["ff02::1", "::", "::1", "2001:db8:100::1"] {
            prober.handle_candidate(
                ms(0),
                Candidate { inner_source: inner.parse().unwrap(), ..candidate(NEW, None) },
            );
        }
        prober.handle_candidate(ms(0), candidate(NEW, Some(NEW)));
        assert_eq!(outputs(&mut prober), []);
        assert_eq!((prober.counters().forged, prober.poll_timeout()), (8, None));
    }

    #[test]
    fn a_forgotten_tunnel_leaves_nothing_behind() {
        let mut prober = prober();
        prober.handle_candidate(ms(0), candidate(NEW, None));
        let sent = probes(&mut prober);
        prober.forget(T);
        assert!(!prober.handle_packet(ms(10), None, at(NEW), local(), &reply(&sent[&at(NEW)])));
        prober.handle_candidate(ms(10), candidate(NEW, None));
        prober.forget(T);
        assert_eq!((outputs(&mut prober), prober.poll_timeout()), (vec![], None));
        assert!(prober.tunnels.is_empty() && prober.nonces.is_empty() && prober.timers.is_empty());
        assert_eq!(prober.probing, 0);
    }

    /// RFC: D12
    #[test]
    fn a_flood_over_all_tunnels_stays_within_bounds_and_drains() {
        let mut prober = prober();
        for second in 0..40 {
            for n in 0..20_000 {
                let tunnel = TunnelId((second * 20_000 + n) % 50_000);
                prober.handle_candidate(
                    ms(second.into()) * 1000,
                    Candidate { tunnel, ..candidate(NEW, Some(OLD)) },
                );
                outputs(&mut prober);
            }
            assert!(prober.probing <= MAX_PROBING && prober.tunnels.len() <= MAX_TUNNELS);
            assert!(prober.nonces.len() <= 2 * MAX_PROBING && prober.timers.len() == prober.tunnels.len());
        }
        assert!(prober.counters().full > 0 && prober.counters().unanswered > 0);
        prober.handle_timeout(ms(50_000));
        prober.handle_timeout(ms(60_000));
        assert!(prober.tunnels.is_empty() && prober.nonces.is_empty() && prober.poll_timeout().is_none());
        assert_eq!(prober.probing, 0);
    }

    /// One thing that somebody who never sees a candidate's nonce can do. Places are numbers below 4.
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
        /// Answers a probe seen at the current endpoint, from anywhere.
        AnswerOther {
            from: u16,
            pick: prop::sample::Index,
            tunnel: Option<u32>,
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
        let other = (0..4u16, any::<prop::sample::Index>(), prop::option::of(0..3u32))
            .prop_map(|(from, pick, tunnel)| Act::AnswerOther { from, pick, tunnel });
        let misplace =
            (1..4u16, any::<prop::sample::Index>()).prop_map(|(shift, pick)| Act::Misplace { shift, pick });
        let wait = (0..4000u64).prop_map(Act::Wait);
        let act = prop_oneof![
            4 => candidate, 1 => guess, 3 => other, 3 => misplace, 3 => wait, 1 => (0..3u32).prop_map(Act::Forget)
        ];
        prop::collection::vec(act, 0..80)
    }

    fn place(n: u16) -> SocketAddrV4 {
        SocketAddrV4::new([192, 0, 2, 1].into(), 1000 + n % 4)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        /// RFC: D12 (RFC 8085 section 3.5)
        #[test]
        fn nothing_moves_without_the_candidates_nonce_from_the_candidate(acts in acts()) {
            let mut prober = prober();
            let mut now = ms(0);
            let mut to_current: Vec<Vec<u8>> = Vec::new();
            let mut to_candidate: Vec<(u16, Vec<u8>)> = Vec::new();
            for act in acts {
                match act {
                    Act::Candidate { tunnel, from, current } => {
                        let c = Candidate {
                            tunnel: TunnelId(tunnel),
                            sender: place(from),
                            current: current.map(place),
                            ..candidate(NEW, None)
                        };
                        prober.handle_candidate(now, c);
                        for (remote, packet) in probes(&mut prober) {
                            if remote == place(from) {
                                to_candidate.push((from, reply(&packet)));
                            } else {
                                to_current.push(reply(&packet));
                            }
                        }
                    }
                    Act::Guess { from, nonce, seq } => {
                        let c = candidate(NEW, None);
                        let (peer, us) = (c.inner_source.octets(), c.probe_source.octets());
                        let packet = echo_reply(peer, us, prober.ident(), seq, &nonce);
                        prober.handle_packet(now, None, place(from), local(), &packet);
                    }
                    Act::AnswerOther { from, pick, tunnel } if !to_current.is_empty() => {
                        let packet = pick.get(&to_current);
                        prober.handle_packet(now, tunnel.map(TunnelId), place(from), local(), packet);
                    }
                    Act::Misplace { shift, pick } if !to_candidate.is_empty() => {
                        let (from, packet) = pick.get(&to_candidate);
                        prober.handle_packet(now, None, place(from + shift), local(), packet);
                    }
                    Act::AnswerOther { .. } | Act::Misplace { .. } => {}
                    Act::Wait(n) => {
                        now += ms(n);
                        prober.handle_timeout(now);
                    }
                    Act::Forget(n) => prober.forget(TunnelId(n)),
                }
                prop_assert_eq!(outputs(&mut prober), vec![]);
                prop_assert_eq!(prober.tunnels.values().filter(|entry| entry.probe.is_some()).count(), prober.probing);
                prop_assert_eq!(prober.timers.len(), prober.tunnels.len());
                prop_assert!(prober.tunnels.values().all(|entry| entry.held.len() <= 4));
                prop_assert!(prober.poll_timeout().is_none_or(|at| at > now));
            }
            prop_assert_eq!(prober.counters().moved, 0);
        }

        #[test]
        fn arbitrary_packets_are_nobodys(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(!prober().handle_packet(ms(0), Some(T), at(NEW), local(), &bytes));
        }
    }
}
