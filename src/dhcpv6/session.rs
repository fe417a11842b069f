//! What a DHCPv6 server answers (RFC 8415 sections 16 and 18.3): messages in, answers out. Pure.
//!
//! Who may have what is asked of [`Leases`]; whether that is on a disk or in tables is the caller's business, and so is the
//! clock. Randomness is given once, as a secret that addresses are made from. Knows no tunnel but by its name.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Duration;

use dhcproto::v6::{MessageType, Status};
use sixway_dataplane::update::Ipv6Prefix;

use super::audience::{Audience, Place};
use super::auth::{self, Forged, Key, Ring};
use super::calls::{Called, Calls};
use super::codec::{INFINITY, Ia, IaKind, Message, Opt, Part, Relay, Value, code};
use super::lookup::Walks;
use super::relayed::{Relays, unwrap, wrap};
use super::reply::{ended, failed};
pub use super::terms::{Known, Lack, Leases, Life, Line, Origin, Reserved, Terms};
use crate::broker::{BindKey, BindKind, BindWish};

/// Why a message is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Silence {
    /// It cannot be read.
    Malformed,
    /// It lacks an option that it must have, or has one that it must not (RFC 8415 section 16).
    WrongForm,
    /// It is for another server.
    OtherServer,
    /// It came to an address of ours instead of all servers (RFC 9915 section 18.4).
    Unicast,
    /// Servers do not receive such.
    Unexpected,
    /// It came through more than [`MAX_RELAYS`](super::codec::MAX_RELAYS) relays.
    TooDeep,
    /// A Confirm without an address, or from a link that nothing is known of.
    NothingToConfirm,
    /// What it says of who has made it is not true.
    Forged,
    /// It has been here before, as its number says.
    Replayed,
    /// A lease query, of which there are too many for what each costs.
    TooOften,
}

impl Silence {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Malformed,
        Self::WrongForm,
        Self::OtherServer,
        Self::Unicast,
        Self::Unexpected,
        Self::TooDeep,
        Self::NothingToConfirm,
        Self::Forged,
        Self::Replayed,
        Self::TooOften,
    ];

    /// Its name as a count.
    pub fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::WrongForm => "wrong_form",
            Self::OtherServer => "other_server",
            Self::Unicast => "unicast",
            Self::Unexpected => "unexpected",
            Self::TooDeep => "too_deep",
            Self::NothingToConfirm => "nothing_to_confirm",
            Self::Forged => "forged",
            Self::Replayed => "replayed",
            Self::TooOften => "too_often",
        }
    }
}

/// The most identity associations of one message that are dealt with; further ones get no answer.
pub const MAX_IAS: usize = 16;

/// The most octets that relays supply for a client.
const MOST_SUPPLIED: usize = 1024;
/// When clients ask for information again where nothing else is said, in seconds (IRT_DEFAULT, RFC 8415 section 7.6).
const REFRESH: u32 = 86_400;

/// Counts of what was understood and what was given, by name.
pub const COUNTS: [&str; 21] = [
    "solicit",
    "request",
    "confirm",
    "renew",
    "rebind",
    "release",
    "decline",
    "information_request",
    "lease_query",
    "lease_query_not_allowed",
    "relayed",
    "advertise",
    "reply",
    "no_address",
    "no_prefix",
    "no_binding",
    "reconfigure",
    "reconfigure_heard",
    "reconfigure_unheard",
    "reconfigure_too_many",
    "reconfigure_unlisted",
];

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What to send to whoever sent the message.
    pub octets: Vec<u8>,
    /// Whether that was a relay, which listens on the servers' port.
    pub to_relay: bool,
    /// Whether the relay listens on the port that it has sent from instead (RFC 8357).
    pub to_source_port: bool,
    /// Whether it tells of what others have: then whatever that is must be on the disk before it leaves.
    pub tells_of_others: bool,
}

/// The server.
#[derive(Debug)]
pub struct Session {
    pub(super) terms: Terms,
    secret: u128,
    pub(super) counts: BTreeMap<&'static str, u64>,
    pub(super) ring: Option<Ring>,
    pub(super) clock: (u64, u32),
    pub(super) calls: Calls,
    pub(super) audience: Audience,
    pub(super) uptime: Duration,
    pub(super) walks: Walks,
}

/// A message on its way to an answer.
pub(super) struct Case<'a> {
    pub(super) origin: &'a Origin<'a>,
    pub(super) message: &'a Message,
    pub(super) client: &'a [u8],
    /// An address of the link that it is on, where a relay has said so.
    pub(super) link: Option<Ipv6Addr>,
    /// What the client has proved the message with, and the answer is proved with.
    pub(super) key: Option<Arc<Key>>,
    /// Whether the client lets itself be told of changes, and can be.
    pub(super) may_be_told: bool,
    /// Where it is told, if it is on the link itself.
    pub(super) reach: Option<Ipv6Addr>,
    /// What relays supply for it.
    pub(super) supplied: Vec<Opt>,
}

impl Case<'_> {
    fn called(&self) -> Called {
        Called { tunnel: self.origin.tunnel.into(), client: self.client.into() }
    }
}

impl Session {
    /// A server with a random `secret`.
    pub fn new(terms: Terms, secret: u128) -> Self {
        let names = COUNTS.into_iter().chain(Silence::ALL.map(Silence::name));
        let counts = names.map(|name| (name, 0)).collect();
        let (calls, audience, uptime) = (Calls::default(), Audience::default(), Duration::ZERO);
        let walks = Walks::default();
        Self { terms, secret, counts, ring: None, clock: (0, 0), calls, audience, uptime, walks }
    }

    /// With this ring messages can be proved; without one nothing is.
    pub fn trust(&mut self, ring: Ring) {
        self.ring = Some(ring);
    }

    /// The time of what comes next, in Unix seconds and parts of a second of 2^-32.
    pub fn set_clock(&mut self, clock: (u64, u32)) {
        self.clock = clock;
    }

    /// The time of what comes next, since any beginning and by a clock that nobody sets.
    pub fn set_uptime(&mut self, uptime: Duration) {
        self.uptime = uptime;
    }

    /// The ring, if it must be kept before anything leaves. Once `keep` has done so, it is good for a while.
    ///
    /// # Errors
    /// What `keep` says; then nothing may leave.
    pub fn keep_ring(&mut self, keep: impl FnOnce(&Ring) -> std::io::Result<()>) -> std::io::Result<()> {
        let Some(ring) = self.ring.as_mut().filter(|ring| ring.must_be_kept()) else { return Ok(()) };
        keep(ring)?;
        ring.has_been_kept();
        Ok(())
    }

    /// From now on this holds.
    pub fn configure(&mut self, terms: Terms) {
        self.terms = terms;
    }

    /// What has happened, by name.
    pub fn counts(&self) -> &BTreeMap<&'static str, u64> {
        &self.counts
    }

    pub(super) fn count(&mut self, name: &'static str) {
        *self.counts.entry(name).or_default() += 1;
    }

    /// The answer to a message; `None`: it deserves none, and is counted.
    pub fn handle(&mut self, origin: &Origin<'_>, octets: &[u8], leases: &mut dyn Leases) -> Option<Answer> {
        match self.judge(origin, octets, leases) {
            Ok(answer) => Some(answer),
            Err(why) => {
                self.count(why.name());
                None
            }
        }
    }

    fn judge(
        &mut self,
        origin: &Origin<'_>,
        octets: &[u8],
        leases: &mut dyn Leases,
    ) -> Result<Answer, Silence> {
        let (relays, message) = unwrap(octets)?;
        if message.kind == MessageType::LeaseQuery {
            return self.answer_query(origin, &relays, &message, leases);
        }
        if origin.is_unicast && relays.is_empty() {
            return Err(Silence::Unicast);
        }
        self.check(&message)?;
        let key = self.prove(&message, relays.innermost(octets), leases)?;
        let line = message.client().and_then(|_| self.line(&relays));
        let client = line.as_deref().or(message.client()).unwrap_or_default();
        // Whoever is on a line is its client; none of them is told by a name that is not its own.
        let can_be_told =
            self.terms.reconfigure && self.ring.is_some() && line.is_none() && !client.is_empty();
        let may_be_told = can_be_told && key.is_none() && message.accepts_reconfigure();
        let reach = origin.from.filter(|_| may_be_told && relays.is_empty());
        let (link, supplied) = (self.link(&relays), self.supplied(&relays));
        let case = Case { origin, message: &message, client, link, key, may_be_told, reach, supplied };
        let answer = self.answer(&case, leases)?;
        if let (Some(line), Some(duid)) = (&line, message.client()) {
            leases.hear(line, duid);
        }
        self.remember(&case, &relays, &answer);
        self.count(if answer.kind == MessageType::Advertise { "advertise" } else { "reply" });
        if !relays.is_empty() {
            self.count("relayed");
        }
        let mut inner = answer.emit();
        case.key.iter().for_each(|key| auth::sign(&mut inner, &key.secret));
        let (to_relay, to_source_port) = (!relays.is_empty(), relays.listen_on_own_port());
        let octets = wrap(&relays.way_back(), inner);
        Ok(Answer { octets, to_relay, to_source_port, tells_of_others: false })
    }

    /// An address of the link that relays say the client is on: by the innermost name of an interface that is known, else by
    /// the innermost address that says anything (RFC 8415 section 13.1).
    fn link(&self, relays: &Relays) -> Option<Ipv6Addr> {
        let mut named = relays.inside_out().filter_map(|relay| self.terms.relays.get(relay.interface()?));
        let useful = |link: &Ipv6Addr| !link.is_unspecified() && !link.is_unicast_link_local();
        named.next().copied().or_else(|| relays.inside_out().map(|relay| relay.link).find(useful))
    }

    /// Remembers where a client is that has been given a key, if no binding will say so; or that it is not to be told any more.
    fn remember(&mut self, case: &Case<'_>, relays: &Relays, answer: &Message) {
        if !gives_key(case.message.kind, answer.kind) || case.client.is_empty() {
            return;
        }
        let informs = case.message.kind == MessageType::InformationRequest;
        let is_bound_here = relays.is_empty() && !informs;
        if self.audience.is_empty() && (is_bound_here || !case.may_be_told) {
            return;
        }
        let who = case.called();
        if !case.may_be_told {
            self.audience.drop_out(&who);
            return;
        }
        if is_bound_here && !self.audience.knows(&who) {
            return;
        }
        let refresh = self.terms.refresh.unwrap_or(REFRESH);
        let given = answer.ias().flat_map(Ia::values).map(|value| u64::from(value.valid)).max();
        let asks_again = informs.then_some(2 * u64::from(refresh));
        let Some(lasts) = given.max(asks_again).filter(|seconds| *seconds > 0) else { return };
        let place = case.origin.from.and_then(|from| Place::of((from, case.origin.port), relays));
        let (now, lasts, most) = (self.uptime, Duration::from_secs(lasts), self.terms.listeners);
        if !place.is_some_and(|place| self.audience.hear(now, &who, (place, informs), lasts, most)) {
            self.count("reconfigure_unlisted");
        }
    }

    /// Who a client is by its line, as far as the relay that is nearest to it says anything that is known.
    fn line(&self, relays: &Relays) -> Option<Box<[u8]>> {
        if self.terms.lines.is_empty() {
            return None;
        }
        let said = relays.inside_out().flat_map(Relay::lines);
        said.into_iter().find_map(|(code, octets)| self.terms.lines.get(&(code, octets.into())).cloned())
    }

    /// What relays supply for the client, those that are nearest to it first: of each option one (RFC 6422 section 6).
    fn supplied(&self, relays: &Relays) -> Vec<Opt> {
        let mut all: Vec<Opt> = Vec::new();
        let mut room = MOST_SUPPLIED;
        for (code, octets) in relays.inside_out().flat_map(Relay::supplied) {
            let may = code == code::ERP_LOCAL_DOMAIN_NAME || self.terms.supplied.contains(&code);
            let own = self.terms.options.iter().chain(&all).any(|option| option.code() == code);
            if may && !own && octets.len() <= room {
                room -= octets.len();
                all.push(Opt::Other(code, octets.to_vec()));
            }
        }
        all
    }

    /// The key that a client has proved its message with; `None`: it has not tried to (RFC 3315 section 21.4.5.2).
    fn prove(
        &self,
        message: &Message,
        octets: &[u8],
        leases: &mut dyn Leases,
    ) -> Result<Option<Arc<Key>>, Silence> {
        let Some(auth) = message.auth().filter(|_| self.terms.authenticates) else { return Ok(None) };
        let client = message.client().unwrap_or_default();
        let good = |key: &&Arc<Key>| auth::is_delayed(auth) && key.is_good(self.clock.0);
        let key = self.terms.keys.get(client).filter(good);
        if message.kind == MessageType::Solicit {
            // It only asks for proofs; without a key there are none.
            return Ok(key.cloned());
        }
        let key = key.ok_or(Silence::Forged)?;
        key.prove(auth, octets, leases.last_proof(client)).map_err(|why| match why {
            Forged::Digest => Silence::Forged,
            Forged::Replayed => Silence::Replayed,
        })?;
        leases.keep_proof(client, auth.replay_detection);
        Ok(Some(key.clone()))
    }

    /// Whether the message has what it must have and nothing that it must not (RFC 8415 section 16).
    fn check(&self, message: &Message) -> Result<(), Silence> {
        use MessageType as M;
        let (client, server) = (message.client().is_some(), message.server());
        let ours = server == Some(&self.terms.duid[..]);
        let with_server = matches!(message.kind, M::Request | M::Renew | M::Decline | M::Release);
        let without = matches!(message.kind, M::Solicit | M::Confirm | M::Rebind);
        if message.kind == M::InformationRequest {
            let temporary = message.options.iter().any(|o| matches!(o, Opt::Other(4, _)));
            return match server {
                _ if temporary || message.ias().next().is_some() => Err(Silence::WrongForm),
                Some(_) if !ours => Err(Silence::OtherServer),
                Some(_) | None => Ok(()),
            };
        }
        match () {
            () if !with_server && !without => Err(Silence::Unexpected),
            () if !client || server.is_some() == without => Err(Silence::WrongForm),
            () if with_server && !ours => Err(Silence::OtherServer),
            () => Ok(()),
        }
    }

    fn answer(&mut self, case: &Case<'_>, leases: &mut dyn Leases) -> Result<Message, Silence> {
        use MessageType as M;
        let (kind, name) = named(case.message.kind).ok_or(Silence::Unexpected)?;
        let rapid = kind == M::Solicit && self.terms.rapid_commit && case.message.has_rapid_commit();
        let ias = match () {
            () if rapid || kind == M::Request => self.grant(case, leases),
            () if kind == M::Solicit => self.offer(case, leases),
            () if matches!(kind, M::Renew | M::Rebind) => self.extend(case, leases, kind == M::Rebind),
            () if matches!(kind, M::Release | M::Decline) => self.give_back(case, leases, kind == M::Decline),
            () => Vec::new(),
        };
        let status = match () {
            () if kind == M::Confirm => Some(self.confirm(case, leases).ok_or(Silence::NothingToConfirm)?),
            () if matches!(kind, M::Release | M::Decline) => Some(Status::Success),
            () => None,
        };
        self.count(name);
        if !self.calls.is_empty() && self.calls.handle_message(&case.called(), kind) {
            self.count("reconfigure_heard");
        }
        if matches!(kind, M::Solicit | M::Request | M::Renew | M::Rebind) && !self.audience.is_empty() {
            self.audience.console(&case.called());
        }
        let reply = self.reply(case, ias, status, rapid);
        let is_offer = kind == M::Solicit && !rapid;
        Ok(if is_offer { Message { kind: M::Advertise, ..reply } } else { reply })
    }

    /// What a Solicit is told that a Request would get (RFC 8415 section 18.3.9).
    fn offer(&mut self, case: &Case<'_>, leases: &mut dyn Leases) -> Vec<Ia> {
        let wishes: Vec<BindWish> = case.message.ias().map(|ia| self.wish(case, ia, false)).collect();
        let offered = leases.offer(&wishes);
        let ias = case.message.ias().zip(offered);
        ias.map(|(ia, offer)| match offer {
            Ok(prefix) => self.filled(case, ia, &[prefix], leases),
            Err(Lack) => self.lacking(ia),
        })
        .collect()
    }

    fn grant(&mut self, case: &Case<'_>, leases: &mut dyn Leases) -> Vec<Ia> {
        let request = case.message.kind == MessageType::Request;
        let mut ias = Vec::new();
        for ia in case.message.ias() {
            let strays = |value: &Value| !self.is_on_link(case, ia, value, leases);
            if request && ia.kind == IaKind::Address && ia.values().any(strays) {
                ias.push(failed(ia, Status::NotOnLink));
                continue;
            }
            let wish = self.wish(case, ia, false);
            ias.push(match leases.bind(&wish, self.lasts()) {
                Ok(prefixes) => self.filled(case, ia, &prefixes, leases),
                Err(Lack) => self.lacking(ia),
            });
        }
        ias
    }

    /// Renew and Rebind (RFC 8415 sections 18.3.4 and 18.3.5): what is bound lasts longer; of what is set aside a binding is
    /// made; with Rapid Commit allowed a Rebind makes one of anything. Of what is for another link than the client is on now it
    /// is told the end.
    fn extend(&mut self, case: &Case<'_>, leases: &mut dyn Leases, rebind: bool) -> Vec<Ia> {
        let mut ias = Vec::new();
        for ia in case.message.ias() {
            let only_fixed = !(rebind && self.terms.rapid_commit);
            let wish = self.wish(case, ia, only_fixed);
            let strays = |value: &Value| !self.is_on_link(case, ia, value, leases);
            let off_link: Vec<Value> = ia.values().filter(|value| strays(value)).map(ended).collect();
            let is_known = rebind || !leases.bound(&wish.key).is_empty();
            ias.push(match leases.bind(&wish, self.lasts()) {
                Ok(prefixes) => {
                    let mut filled = self.filled(case, ia, &prefixes, leases);
                    let foreign = ia.values().filter(|value| !prefixes.iter().any(|p| is(value, *p)));
                    filled.parts.extend(foreign.map(ended).map(Part::Value));
                    filled
                }
                Err(Lack) if is_known && !off_link.is_empty() => {
                    Ia { t1: 0, t2: 0, parts: off_link.into_iter().map(Part::Value).collect(), ..ia.clone() }
                }
                Err(Lack) => {
                    self.count("no_binding");
                    failed(ia, Status::NoBinding)
                }
            });
        }
        ias
    }

    /// Whether all addresses are of this link; `None`: there is none, or nobody can say (RFC 8415 section 18.3.3).
    fn confirm(&self, case: &Case<'_>, leases: &dyn Leases) -> Option<Status> {
        let ias = case.message.ias().filter(|ia| ia.kind == IaKind::Address);
        let mut on_link = ias.flat_map(|ia| ia.values().map(move |value| (ia, value))).peekable();
        on_link.peek()?;
        let own = |prefix: Ipv6Prefix| case.origin.fixed.iter().any(|own| own.covers(prefix));
        let all = on_link.all(|(ia, value)| {
            let prefix = Ipv6Prefix::new(value.addr, value.len);
            prefix.is_some_and(|prefix| own(prefix) || leases.still_holds(&key(case, ia), prefix, case.link))
        });
        if all {
            return Some(Status::Success);
        }
        leases.knows_link(case.link).then_some(Status::NotOnLink)
    }

    /// Release and Decline (RFC 8415 sections 18.3.7 and 18.3.8); returns what was not bound.
    fn give_back(&mut self, case: &Case<'_>, leases: &mut dyn Leases, declined: bool) -> Vec<Ia> {
        let mut unknown = Vec::new();
        for ia in case.message.ias().filter(|ia| !declined || ia.kind == IaKind::Address) {
            let key = key(case, ia);
            let bound = leases.bound(&key);
            if bound.is_empty() {
                self.count("no_binding");
                unknown.push(failed(ia, Status::NoBinding));
                continue;
            }
            for prefix in bound.into_iter().filter(|prefix| ia.values().any(|value| is(value, *prefix))) {
                if declined {
                    leases.decline(&key, prefix, self.terms.decline);
                } else {
                    leases.release(prefix);
                }
            }
        }
        unknown
    }

    /// Whether a value is one that a client here may have: set aside for it, bound to it, or of a pool.
    fn is_on_link(&self, case: &Case<'_>, ia: &Ia, value: &Value, leases: &dyn Leases) -> bool {
        let Some(prefix) = Ipv6Prefix::new(value.addr, value.len) else { return false };
        // A hint at a length says nothing of a place (RFC 8168).
        let is_hint = ia.kind == IaKind::Prefix && value.addr.is_unspecified();
        is_hint
            || leases.is_on_link(prefix, case.link)
            || case.origin.fixed.iter().any(|own| own.covers(prefix))
            || self.reserved(case).iter().any(|own| own.covers(prefix))
            || leases.has_here(&key(case, ia), prefix, case.link)
    }

    /// What is set aside for the client in its tunnel.
    fn reserved(&self, case: &Case<'_>) -> Vec<Ipv6Prefix> {
        self.sets(case).flat_map(|set| set.prefixes.iter().copied()).collect()
    }

    pub(super) fn sets<'a>(&'a self, case: &Case<'a>) -> impl Iterator<Item = &'a Reserved> {
        let tunnel = case.origin.tunnel;
        let here = move |set: &&Reserved| set.tunnel.as_deref().is_none_or(|name| name == tunnel);
        self.terms.reserved.get(case.client).into_iter().flatten().filter(here)
    }

    fn wish(&self, case: &Case<'_>, ia: &Ia, only_fixed: bool) -> BindWish {
        let key = key(case, ia);
        let mut hasher = DefaultHasher::new();
        (self.secret, &key).hash(&mut hasher);
        let named = ia.values().filter(|value| !value.addr.is_unspecified());
        let lengths = ia.values().map(|value| value.len).filter(|len| *len > 0);
        BindWish {
            user: case.origin.user.cloned(),
            fixed: case.origin.fixed.to_vec(),
            on_link: likely_link(case.origin.fixed),
            reserved: self.reserved(case),
            only_fixed,
            hints: named.filter_map(|value| Ipv6Prefix::new(value.addr, value.len)).collect(),
            length: lengths.min().filter(|_| ia.kind == IaKind::Prefix),
            link: case.link,
            salt: hasher.finish(),
            most: self.terms.most,
            reach: case.reach,
            key,
        }
    }

    fn lasts(&self) -> Duration {
        match self.terms.valid {
            INFINITY => Duration::MAX,
            valid => Duration::from_secs(valid.into()),
        }
    }
}

/// What of a tunnel's own prefixes is likely to be its link, where the client's end has its address: those of 64 bits, unless the
/// tunnel has an address by itself, which is the client's then.
pub fn likely_link(own: &[Ipv6Prefix]) -> Vec<Ipv6Prefix> {
    if own.iter().any(|prefix| prefix.prefix_len() == 128) {
        return Vec::new();
    }
    own.iter().copied().filter(|prefix| prefix.prefix_len() == 64).collect()
}

/// Whether a client that lets itself be told is given a key in the answer of this type to a message of that (RFC 8415 section
/// 20.4.2).
pub(super) fn gives_key(asked: MessageType, answer: MessageType) -> bool {
    use MessageType as M;
    let asks = matches!(asked, M::Solicit | M::Request | M::Renew | M::Rebind | M::InformationRequest);
    asks && answer == M::Reply
}

/// The messages that servers receive, and by what name they are counted.
fn named(kind: MessageType) -> Option<(MessageType, &'static str)> {
    use MessageType as M;
    let all = [
        (M::Solicit, "solicit"),
        (M::Request, "request"),
        (M::Confirm, "confirm"),
        (M::Renew, "renew"),
        (M::Rebind, "rebind"),
        (M::Release, "release"),
        (M::Decline, "decline"),
        (M::InformationRequest, "information_request"),
    ];
    all.into_iter().find(|(known, _)| *known == kind)
}

pub(super) fn key(case: &Case<'_>, ia: &Ia) -> BindKey {
    let kind = match ia.kind {
        IaKind::Address => BindKind::Address,
        IaKind::Prefix => BindKind::Prefix,
    };
    BindKey { tunnel: case.origin.tunnel.into(), client: case.client.into(), kind, number: ia.iaid }
}

fn is(value: &Value, prefix: Ipv6Prefix) -> bool {
    Ipv6Prefix::new(value.addr, value.len) == Some(prefix)
}
