//! What is known of each tunnel's path, and what follows: another MTU, an error for a sender inside, a probe.
//!
//! Pure: `now` and randomness are given, what shall be done is fetched. Decides by RFC 4213 sections 3.2.2 and 3.4, RFC 1191
//! and RFC 8899; the search by probes is [`super::probe`]'s. Refuses to know tables, sockets and packets' headers.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::Ipv6Addr;
use std::ops::Bound;
use std::time::Duration;

use rand::{CryptoRng, RngExt};
use sixway_dataplane::packet::icmp::IcmpError;
use sixway_dataplane::update::TunnelId;

use super::codec::{Kind, Quote, Reply};
use super::doubt::{About, Doubts, SHORTEST, Secret};
use super::probe::{BASE, Search};

/// How a tunnel's MTU is found, where it is not what is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Routers on the way say it.
    Dynamic,
    /// The peer at this address answers echo requests.
    Probe(Ipv6Addr),
}

/// A tunnel's bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// How its MTU is found.
    pub mode: Mode,
    /// The largest inner packet there may be, octets.
    pub ceiling: u16,
    /// Octets around an inner packet.
    pub overhead: u16,
}

/// What shall be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// This is the tunnel's MTU now; `whole`: DF is set in outer packets.
    Set {
        /// Whose.
        tunnel: TunnelId,
        /// Octets of inner packets, at least 1280.
        mtu: u16,
        /// Whether DF is set.
        whole: bool,
    },
    /// Tell the sender of this inner packet, of which only the beginning may be left.
    Tell {
        /// What.
        error: IcmpError,
        /// About what.
        packet: Vec<u8>,
    },
    /// Send the peer an echo request of this length with DF set, which begins with the nonce.
    Probe {
        /// Through which tunnel.
        tunnel: TunnelId,
        /// To whom.
        peer: Ipv6Addr,
        /// Octets of the whole inner packet.
        size: u16,
        /// What must come back.
        nonce: [u8; 16],
    },
    /// Send the peer a packet of this length that has nothing inside but a secret: an error about it is a true one.
    Ask {
        /// Through which tunnel.
        tunnel: TunnelId,
        /// About what; about the length it goes with DF set.
        about: About,
        /// Octets of the whole inner packet.
        size: u16,
        /// The secret.
        secret: Secret,
    },
}

/// What an error's quote has inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inside {
    /// A packet between addresses that the tunnel carries, of the length that the outer header says.
    Plausible,
    /// Too little to see.
    Cut,
    /// Something that was never sent.
    Wrong,
}

/// What became of errors and probes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathCounters {
    /// Errors that lowered an MTU, or ended a search.
    pub lowered: u64,
    /// MTUs that went up: aged errors and answered probes.
    pub raised: u64,
    /// Errors told on to senders inside.
    pub told: u64,
    /// Errors not told on: more than [`TOLD_A_SECOND`].
    pub told_too_often: u64,
    /// Errors that quote no packet of ours, or say what cannot be.
    pub unbelievable: u64,
    /// Packets sent to see whether an error is true.
    pub questions: u64,
    /// Probes sent.
    pub probes: u64,
    /// Probes answered.
    pub answered: u64,
}

/// Errors told on in a second, and at once: a flood of errors makes no flood of ours (RFC 4443 section 2.4(f)).
pub const TOLD_A_SECOND: u32 = 100;
/// The same about packets of one tunnel.
pub const TOLD_OF_TUNNEL: u32 = 10;
/// How long an error is believed (RFC 1191 section 6.3).
pub const BELIEVED: Duration = Duration::from_secs(600);
/// The least MTU of an IPv4 link (RFC 791 section 3.2).
const LEAST: u16 = 68;
/// Steps down for routers that do not say (RFC 1191 section 7.1).
const PLATEAUS: [u16; 10] = [32_000, 17_914, 8166, 4352, 2002, 1492, 1006, 508, 296, LEAST];

#[derive(Debug)]
struct Path {
    terms: Terms,
    /// What the tables were told last.
    set: (u16, bool),
    found: Found,
    nonce: [u8; 16],
    deadline: Option<Duration>,
}

#[derive(Debug)]
enum Found {
    /// By errors: the largest inner packet, until it is forgotten.
    Told(Option<u16>),
    Searched(Search),
}

/// All tunnels whose MTU is not what is written.
#[derive(Debug)]
pub struct Paths<R> {
    rng: R,
    paths: BTreeMap<TunnelId, Path>,
    timers: BTreeSet<(Duration, TunnelId)>,
    outputs: VecDeque<Output>,
    doubts: Doubts,
    counters: PathCounters,
    /// What was told in this second, of which tunnels.
    told: HashMap<TunnelId, u32>,
    second: u64,
}

impl<R: CryptoRng> Paths<R> {
    /// No tunnels yet. The generator must be unpredictable: an answer is believed for what nobody guesses.
    pub fn new(rng: R) -> Self {
        let counters = PathCounters::default();
        let (paths, timers, outputs, doubts, told) = Default::default();
        Self { rng, paths, timers, outputs, doubts, counters, told, second: 0 }
    }

    /// Begins with a tunnel, or begins anew where its terms are other ones now.
    pub fn begin(&mut self, now: Duration, tunnel: TunnelId, terms: Terms) {
        if self.paths.get(&tunnel).is_some_and(|path| path.terms == terms) {
            return;
        }
        self.forget(tunnel);
        let found = match terms.mode {
            Mode::Dynamic => Found::Told(None),
            Mode::Probe(_) => Found::Searched(Search::new(now, terms.ceiling)),
        };
        let nonce = self.rng.random();
        // Nothing was told yet: whatever comes of it is told once.
        self.paths.insert(tunnel, Path { terms, set: (0, false), found, nonce, deadline: None });
        self.settle(tunnel, None);
    }

    /// The tunnel is gone, or its MTU is what is written.
    pub fn forget(&mut self, tunnel: TunnelId) {
        self.doubts.forget(tunnel);
        if let Some(Path { deadline: Some(at), .. }) = self.paths.remove(&tunnel) {
            self.timers.remove(&(at, tunnel));
        }
    }

    /// The tunnels from `first` on, with what they were begun with.
    pub fn after(&self, first: Option<TunnelId>) -> impl Iterator<Item = (TunnelId, Terms)> + '_ {
        let from = first.map_or(Bound::Unbounded, Bound::Excluded);
        self.paths.range((from, Bound::Unbounded)).map(|(id, path)| (*id, path.terms))
    }

    /// How many tunnels.
    pub fn len(&self) -> usize {
        self.paths.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    /// What this host knows of the path has changed: no longer packets than this, or as long again.
    pub fn set_ceiling(&mut self, now: Duration, tunnel: TunnelId, ceiling: u16) {
        let Some(path) = self.paths.get_mut(&tunnel).filter(|path| path.terms.ceiling != ceiling) else {
            return;
        };
        path.terms.ceiling = ceiling;
        if let Found::Searched(search) = &mut path.found {
            search.set_ceiling(now, ceiling);
        }
        self.settle(tunnel, None);
    }

    /// An error about a packet of `tunnel`, whose peer and port the caller has compared; `None`: of no tunnel.
    pub fn handle_error(
        &mut self,
        now: Duration,
        tunnel: Option<TunnelId>,
        kind: Kind,
        quote: &Quote<'_>,
        inside: Inside,
    ) {
        let Some(tunnel) = tunnel else { return self.counters.unbelievable += 1 };
        if let Some(about) = self.doubts.answers(tunnel, quote.inner) {
            return self.handle_truth(now, tunnel, about, kind, quote);
        }
        match kind {
            Kind::TooBig(mtu) if self.is_own_probe(tunnel, quote) => {
                self.lower(now, tunnel, mtu, quote.total);
            }
            Kind::Unreachable if inside == Inside::Plausible => self.handle_unreachable(now, tunnel, quote),
            Kind::TooBig(mtu) if inside != Inside::Wrong => {
                self.handle_too_big(now, tunnel, mtu, quote, inside)
            }
            Kind::Unreachable | Kind::TooBig(_) => self.counters.unbelievable += 1,
        }
    }

    /// A probe of the search has a secret in it already.
    fn is_own_probe(&self, tunnel: TunnelId, quote: &Quote<'_>) -> bool {
        let path = self.paths.get(&tunnel);
        path.is_some_and(|path| {
            matches!(path.found, Found::Searched(_)) && Reply::is_probe(quote.inner, &path.nonce)
        })
    }

    fn handle_unreachable(&mut self, now: Duration, tunnel: TunnelId, quote: &Quote<'_>) {
        if self.doubts.is_away(now, tunnel) {
            return self.tell(now, tunnel, IcmpError::AddressUnreachable, quote.inner.to_vec());
        }
        self.doubt(now, (tunnel, About::Way), SHORTEST, Some(quote.inner));
    }

    fn handle_too_big(
        &mut self,
        now: Duration,
        tunnel: TunnelId,
        mtu: u16,
        quote: &Quote<'_>,
        inside: Inside,
    ) {
        let Some(path) = self.paths.get(&tunnel) else { return self.counters.unbelievable += 1 };
        let mtu = if mtu == 0 { plateau_below(quote.total) } else { mtu };
        let inner = mtu.saturating_sub(path.terms.overhead).max(BASE);
        let sent = quote.total.saturating_sub(path.terms.overhead);
        // A packet that could be fragmented, that fits what is said, or that is longer than any of ours, was not too long.
        let is_possible = quote.whole && (LEAST..quote.total).contains(&mtu) && sent <= path.terms.ceiling;
        let mtu = path.set.0;
        let quoted = Some(quote.inner).filter(|_| inside == Inside::Plausible);
        match quoted {
            _ if !is_possible => self.counters.unbelievable += 1,
            _ if inner < mtu => self.doubt(now, (tunnel, About::Length), mtu, quoted),
            // It was on its way when this was found: its sender is told what the next one would be told.
            Some(packet) if sent > mtu => {
                self.tell(now, tunnel, IcmpError::PacketTooBig(mtu), packet.to_vec())
            }
            Some(_) | None => self.counters.unbelievable += 1,
        }
    }

    /// Somebody says so: ask.
    fn doubt(&mut self, now: Duration, (tunnel, about): (TunnelId, About), size: u16, packet: Option<&[u8]>) {
        if let Some(secret) = self.doubts.raise(now, (tunnel, about), size, packet, &mut self.rng) {
            self.counters.questions += 1;
            self.outputs.push_back(Output::Ask { tunnel, about, size, secret });
        }
    }

    /// Somebody on the path says so, about a question of ours.
    fn handle_truth(&mut self, now: Duration, tunnel: TunnelId, about: About, kind: Kind, quote: &Quote<'_>) {
        let error = match (about, kind) {
            (About::Way, Kind::Unreachable) => IcmpError::AddressUnreachable,
            (About::Length, Kind::TooBig(mtu)) => {
                let Some(inner) = self.lower(now, tunnel, mtu, quote.total) else { return };
                IcmpError::PacketTooBig(inner)
            }
            (About::Way, Kind::TooBig(_)) | (About::Length, Kind::Unreachable) => {
                return self.counters.unbelievable += 1;
            }
        };
        for packet in self.doubts.settle(now, tunnel, about) {
            self.tell(now, tunnel, error, packet);
        }
    }

    /// The path takes no longer packets than this: returns the largest inner packet, at least 1280.
    fn lower(&mut self, now: Duration, tunnel: TunnelId, mtu: u16, total: u16) -> Option<u16> {
        let mtu = if mtu == 0 { plateau_below(total) } else { mtu };
        let Some(path) = self.paths.get_mut(&tunnel).filter(|_| (LEAST..total).contains(&mtu)) else {
            self.counters.unbelievable += 1;
            return None;
        };
        let inner = mtu.saturating_sub(path.terms.overhead);
        let now_set = path.set.0;
        let lower = match &mut path.found {
            Found::Told(known) if inner.max(BASE) < now_set => {
                *known = Some(inner.max(BASE));
                Some(now + BELIEVED)
            }
            Found::Told(_) => None,
            Found::Searched(search) => {
                let before = search.clone();
                search.handle_too_big(now, inner);
                (before != *search).then_some(now)
            }
        };
        self.counters.lowered += u64::from(lower.is_some());
        self.settle(tunnel, lower);
        Some(inner.max(BASE))
    }

    fn tell(&mut self, now: Duration, tunnel: TunnelId, error: IcmpError, packet: Vec<u8>) {
        if self.second != now.as_secs() {
            self.second = now.as_secs();
            self.told.clear();
        }
        let (all, of_tunnel) = (self.told.values().sum::<u32>(), self.told.get(&tunnel).copied());
        if all >= TOLD_A_SECOND || of_tunnel.unwrap_or_default() >= TOLD_OF_TUNNEL {
            self.counters.told_too_often += 1;
            return;
        }
        *self.told.entry(tunnel).or_default() += 1;
        self.counters.told += 1;
        self.outputs.push_back(Output::Tell { error, packet });
    }

    /// An echo reply out of `tunnel`; `true` when it answers a probe.
    pub fn handle_reply(&mut self, now: Duration, tunnel: TunnelId, reply: &Reply) -> bool {
        let Some(path) = self.paths.get_mut(&tunnel) else { return false };
        let (Mode::Probe(peer), Found::Searched(search)) = (path.terms.mode, &mut path.found) else {
            return false;
        };
        if reply.source != peer || reply.nonce != path.nonce || search.awaited().is_none() {
            return false;
        }
        search.handle_answer(now);
        // The next size has another: an answer to this one says nothing about that.
        path.nonce = self.rng.random();
        self.counters.answered += 1;
        self.settle(tunnel, None);
        true
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Duration) {
        while let Some(&(at, tunnel)) = self.timers.first() {
            if at > now {
                return;
            }
            self.expire(now, tunnel);
        }
    }

    fn expire(&mut self, now: Duration, tunnel: TunnelId) {
        let Some(path) = self.paths.get_mut(&tunnel) else { return };
        match &mut path.found {
            Found::Told(mtu) => *mtu = None,
            Found::Searched(search) => {
                let before = search.awaited();
                if let (Some(size), Mode::Probe(peer)) = (search.handle_timeout(now), path.terms.mode) {
                    if before != Some(size) {
                        path.nonce = self.rng.random();
                    }
                    self.counters.probes += 1;
                    self.outputs.push_back(Output::Probe { tunnel, peer, size, nonce: path.nonce });
                }
            }
        }
        if let Some(path) = self.paths.get_mut(&tunnel)
            && let Some(at) = path.deadline.take()
        {
            self.timers.remove(&(at, tunnel));
        }
        self.settle(tunnel, None);
    }

    /// When [`Self::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// What was counted.
    pub fn counters(&self) -> PathCounters {
        self.counters
    }

    /// Tells the tables what has changed and sets the timer: a search has its own, what was told ends at `until`.
    fn settle(&mut self, tunnel: TunnelId, until: Option<Duration>) {
        let Some(path) = self.paths.get_mut(&tunnel) else { return };
        let (mtu, deadline) = match &path.found {
            Found::Told(mtu) => {
                let ceiling = path.terms.ceiling.max(BASE);
                (mtu.map_or(ceiling, |mtu| mtu.min(ceiling)), until.or(path.deadline))
            }
            Found::Searched(search) => (search.mtu(), Some(search.deadline())),
        };
        // What is no more than 1280 always gets through, in fragments if need be (RFC 4213 section 3.2.2).
        let set = (mtu, mtu > BASE);
        if path.set != set {
            self.counters.raised += u64::from(path.set.0 != 0 && path.set.0 < mtu);
            path.set = set;
            self.outputs.push_back(Output::Set { tunnel, mtu, whole: set.1 });
        }
        if path.deadline != deadline {
            if let Some(at) = std::mem::replace(&mut path.deadline, deadline) {
                self.timers.remove(&(at, tunnel));
            }
            self.timers.extend(deadline.map(|at| (at, tunnel)));
        }
    }
}

fn plateau_below(total: u16) -> u16 {
    PLATEAUS.into_iter().find(|step| *step < total).unwrap_or(0)
}

impl Reply {
    /// Whether what is left of a packet is an echo request with this nonce.
    fn is_probe(packet: &[u8], nonce: &[u8; 16]) -> bool {
        packet.get(48..64) == Some(nonce)
    }
}

#[cfg(test)]
mod tests {
    use super::super::codec::Carrier;
    use super::super::codec::tests::{LOCAL, PEER, inner};
    use super::super::doubt::question;
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use std::net::SocketAddrV4;

    const T: TunnelId = TunnelId(5);
    const ECHO: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);

    fn s(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn paths(mode: Mode) -> Paths<StdRng> {
        let mut paths = Paths::new(StdRng::seed_from_u64(3));
        paths.begin(s(1), T, Terms { mode, ceiling: 1480, overhead: 20 });
        paths
    }

    fn outputs(paths: &mut Paths<StdRng>) -> Vec<Output> {
        std::iter::from_fn(|| paths.poll_output()).collect()
    }

    fn set(mtu: u16, whole: bool) -> Output {
        Output::Set { tunnel: T, mtu, whole }
    }

    fn quote(packet: &[u8], whole: bool) -> Quote<'_> {
        let at = |addr: [u8; 4]| SocketAddrV4::new(addr.into(), 0);
        let (local, remote, total) = (at(LOCAL), at(PEER), packet.len() as u16 + 20);
        Quote {
            carrier: Carrier::Proto41,
            local,
            remote,
            total,
            whole,
            inner: &packet[..packet.len().min(200)],
        }
    }

    /// What comes of an error by a router on the path, which says the same about our question.
    fn too_big(paths: &mut Paths<StdRng>, now: Duration, packet: &[u8], mtu: u16) -> Vec<Output> {
        paths.handle_error(now, Some(T), Kind::TooBig(mtu), &quote(packet, true), Inside::Plausible);
        confirmed(paths, now, Kind::TooBig(mtu))
    }

    fn confirmed(paths: &mut Paths<StdRng>, now: Duration, kind: Kind) -> Vec<Output> {
        let mut all = outputs(paths);
        if let Some(Output::Ask { tunnel, size, secret, .. }) = all.last().cloned() {
            all.pop();
            let question = question(Ipv6Addr::LOCALHOST, &secret, size);
            paths.handle_error(now, Some(tunnel), kind, &quote(&question, true), Inside::Wrong);
            all.extend(outputs(paths));
        }
        all
    }

    fn told(mtu: u16, packet: &[u8]) -> Output {
        Output::Tell { error: IcmpError::PacketTooBig(mtu), packet: packet[..200].to_vec() }
    }

    /// RFC: E4, I1 (RFC 4213 section 3.2.2)
    #[test]
    fn dynamic_mtu_follows_rfc_4213_section_3_2_2() {
        let mut paths = paths(Mode::Dynamic);
        assert_eq!(outputs(&mut paths), [set(1480, true)], "DF where more than 1280 passes");
        let packet = inner(1480);
        // path - 20 > 1280: that is the MTU, and DF stays.
        assert_eq!(too_big(&mut paths, s(2), &packet, 1400), [set(1380, true), told(1380, &packet)]);
        // path - 20 <= 1280: 1280, and no DF.
        let packet = inner(1380);
        assert_eq!(too_big(&mut paths, s(3), &packet, 1300), [set(1280, false), told(1280, &packet)]);
        assert_eq!(too_big(&mut paths, s(4), &packet, 1280), [told(1280, &packet)]);
        assert_eq!(paths.counters().lowered, 2);
    }

    /// RFC: I1 (RFC 1191 section 6.3)
    #[test]
    fn what_was_told_is_forgotten_after_ten_minutes() {
        let mut paths = paths(Mode::Dynamic);
        too_big(&mut paths, s(2), &inner(1480), 1400);
        assert_eq!(paths.poll_timeout(), Some(s(602)));
        paths.handle_timeout(s(601));
        assert_eq!(outputs(&mut paths), []);
        paths.handle_timeout(s(602));
        assert_eq!((outputs(&mut paths), paths.poll_timeout()), (vec![set(1480, true)], None));
        assert_eq!(paths.counters().raised, 1);
    }

    /// RFC: I1 (RFC 8899 section 4.6.1)
    #[test]
    fn what_cannot_be_is_not_believed() {
        let mut paths = paths(Mode::Dynamic);
        outputs(&mut paths);
        let packet = inner(1400);
        for mtu in [1420, 9000, 67, 1] {
            assert_eq!(too_big(&mut paths, s(2), &packet, mtu), [], "{mtu}");
        }
        let fine = Inside::Plausible;
        let said = Kind::TooBig(1300);
        paths.handle_error(s(2), Some(T), said, &quote(&packet, false), fine);
        paths.handle_error(s(2), Some(T), said, &quote(&packet, true), Inside::Wrong);
        paths.handle_error(s(2), Some(T), said, &quote(&inner(1481), true), fine);
        paths.handle_error(s(2), Some(TunnelId(6)), said, &quote(&packet, true), fine);
        paths.handle_error(s(2), None, Kind::Unreachable, &quote(&packet, true), fine);
        for inside in [Inside::Cut, Inside::Wrong] {
            paths.handle_error(s(2), Some(T), Kind::Unreachable, &quote(&packet, true), inside);
        }
        assert_eq!((outputs(&mut paths), paths.counters().unbelievable), (vec![], 11));
    }

    /// Whatever an error says that nobody repeats about our question, and however often: one question a second.
    ///
    /// RFC: I1 (RFC 8899 section 4.6.1)
    #[test]
    fn what_nobody_repeats_is_not_believed() {
        let mut paths = paths(Mode::Dynamic);
        outputs(&mut paths);
        for n in 0..100 {
            let now = s(2) + Duration::from_millis(n * 50);
            paths.handle_error(
                now,
                Some(T),
                Kind::TooBig(576),
                &quote(&inner(1480), true),
                Inside::Plausible,
            );
            paths.handle_error(
                now,
                Some(T),
                Kind::Unreachable,
                &quote(&inner(1480), true),
                Inside::Plausible,
            );
        }
        let all = outputs(&mut paths);
        let long = |o: &&Output| matches!(o, Output::Ask { about: About::Length, size: 1480, .. });
        let short = |o: &&Output| matches!(o, Output::Ask { about: About::Way, size: SHORTEST, .. });
        let counted = (all.len(), all.iter().filter(long).count(), all.iter().filter(short).count());
        assert_eq!(counted, (10, 5, 5), "{all:?}");
        assert_eq!((paths.counters().lowered, paths.counters().told), (0, 0));
    }

    /// A router that quotes 28 octets (RFC 792) says it about our question too.
    #[test]
    fn short_quotes_are_enough_to_ask() {
        let mut paths = paths(Mode::Dynamic);
        outputs(&mut paths);
        let packet = inner(1480);
        let short = |packet| Quote { inner: &[], ..quote(packet, true) };
        paths.handle_error(s(2), Some(T), Kind::TooBig(1400), &short(&packet), Inside::Cut);
        let Some(Output::Ask { secret, size, .. }) = paths.poll_output() else { panic!("nobody was asked") };
        let question = question(Ipv6Addr::LOCALHOST, &secret, size);
        let eight = Quote { inner: &question[..8], ..quote(&question, true) };
        paths.handle_error(s(2), Some(T), Kind::TooBig(1400), &eight, Inside::Cut);
        assert_eq!(outputs(&mut paths), [set(1380, true)], "and nobody inside is told");
    }

    #[test]
    fn routers_that_do_not_say_are_guessed_at() {
        let mut paths = paths(Mode::Dynamic);
        outputs(&mut paths);
        let packet = inner(1480);
        assert_eq!(too_big(&mut paths, s(2), &packet, 0), [set(1472, true), told(1472, &packet)]);
        let packet = inner(1472);
        assert_eq!(too_big(&mut paths, s(2), &packet, 0), [set(1280, false), told(1280, &packet)]);
    }

    /// RFC: I2 (RFC 4213 section 3.4)
    #[test]
    fn other_errors_tell_the_sender_and_change_nothing() {
        let mut paths = paths(Mode::Dynamic);
        outputs(&mut paths);
        let packet = inner(600);
        let (quoted, fine) = (quote(&packet, false), Inside::Plausible);
        paths.handle_error(s(2), Some(TunnelId(77)), Kind::Unreachable, &quoted, fine);
        let error = IcmpError::AddressUnreachable;
        assert_eq!(
            confirmed(&mut paths, s(2), Kind::Unreachable),
            [Output::Tell { error, packet: packet[..200].to_vec() }]
        );
    }

    #[test]
    fn a_flood_of_errors_makes_no_flood_of_ours() {
        let mut paths = paths(Mode::Dynamic);
        outputs(&mut paths);
        let packet = inner(600);
        let away = |paths: &mut Paths<StdRng>, now, tunnel| {
            paths.handle_error(
                now,
                Some(tunnel),
                Kind::Unreachable,
                &quote(&packet, true),
                Inside::Plausible,
            );
            confirmed(paths, now, Kind::Unreachable).len()
        };
        let of_one: usize = (0..1000).map(|_| away(&mut paths, s(2), T)).sum();
        assert_eq!(of_one, TOLD_OF_TUNNEL as usize);
        let others: usize = (0..1000).map(|n| away(&mut paths, s(2), TunnelId(100 + n % 20))).sum();
        assert_eq!(others, (TOLD_A_SECOND - TOLD_OF_TUNNEL) as usize);
        assert_eq!(paths.counters().told_too_often, 2000 - u64::from(TOLD_A_SECOND));
        assert_eq!(away(&mut paths, s(3), T), 1);
    }

    /// RFC: P1 (RFC 8899 section 5)
    #[test]
    fn probing_begins_at_1280_and_rises_with_the_answers() {
        let mut paths = paths(Mode::Probe(ECHO));
        assert_eq!(outputs(&mut paths), [set(1280, false)]);
        paths.handle_timeout(s(1));
        let probes = outputs(&mut paths);
        let [Output::Probe { tunnel: T, peer: ECHO, size: 1480, nonce }] = probes[..] else {
            panic!("{probes:?}")
        };
        let right = Reply { source: ECHO, ident: 1, nonce };
        let liar = Reply { nonce: [0; 16], ..right };
        let other = Reply { source: Ipv6Addr::LOCALHOST, ..right };
        assert!(!paths.handle_reply(s(1), T, &liar) && !paths.handle_reply(s(1), T, &other));
        assert!(!paths.handle_reply(s(1), TunnelId(9), &right));
        assert!(paths.handle_reply(s(1), T, &right));
        assert_eq!(outputs(&mut paths), [set(1480, true)]);
        assert!(!paths.handle_reply(s(1), T, &right), "an answer counts once");
    }

    /// RFC: P2 (RFC 8899 section 3)
    #[test]
    fn a_lost_probe_costs_the_users_nothing() {
        let mut paths = paths(Mode::Probe(ECHO));
        outputs(&mut paths);
        for n in 1..100 {
            paths.handle_timeout(s(n));
        }
        let all = outputs(&mut paths);
        assert!(all.len() > 3 && all.iter().all(|o| matches!(o, Output::Probe { .. })), "{all:?}");
        assert_eq!(paths.counters().lowered, 0);
    }

    #[test]
    fn an_error_about_a_probe_is_nobodys_inside() {
        let mut paths = paths(Mode::Probe(ECHO));
        paths.handle_timeout(s(1));
        let probes = outputs(&mut paths);
        let Some(Output::Probe { nonce, .. }) = probes.last() else { panic!("{probes:?}") };
        let mut packet = inner(1480);
        packet[48..64].copy_from_slice(nonce);
        assert_eq!(too_big(&mut paths, s(1), &packet, 1400), []);
        paths.handle_timeout(s(1));
        let probes = outputs(&mut paths);
        assert!(matches!(probes[..], [Output::Probe { size: 1380, .. }]), "{probes:?}");
    }

    #[test]
    fn this_hosts_own_bound_moves_both_ways() {
        let mut paths = paths(Mode::Dynamic);
        outputs(&mut paths);
        paths.set_ceiling(s(2), T, 1400);
        assert_eq!(outputs(&mut paths), [set(1400, true)]);
        paths.set_ceiling(s(3), T, 900);
        assert_eq!(outputs(&mut paths), [set(1280, false)]);
        paths.set_ceiling(s(4), T, 1480);
        assert_eq!(outputs(&mut paths), [set(1480, true)]);
        too_big(&mut paths, s(5), &inner(1480), 1400);
        paths.set_ceiling(s(6), T, 1450);
        assert_eq!(outputs(&mut paths), [], "what a router said still holds");
    }

    #[test]
    fn other_terms_begin_anew_and_the_same_do_not() {
        let mut paths = paths(Mode::Dynamic);
        outputs(&mut paths);
        too_big(&mut paths, s(2), &inner(1480), 1400);
        paths.begin(s(3), T, Terms { mode: Mode::Dynamic, ceiling: 1480, overhead: 20 });
        assert_eq!(outputs(&mut paths), []);
        paths.begin(s(3), T, Terms { mode: Mode::Dynamic, ceiling: 1480, overhead: 28 });
        assert_eq!(outputs(&mut paths), [set(1480, true)]);
        paths.forget(T);
        assert!(paths.is_empty() && paths.poll_timeout().is_none());
    }
}
