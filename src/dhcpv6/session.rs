//! What a DHCPv6 server answers (RFC 8415 sections 16 and 18.3): messages in, answers out. Pure.
//!
//! Who may have what is asked of [`Leases`]; whether that is on a disk or in tables is the caller's business, and so is the
//! clock. Randomness is given once, as a secret that addresses are made from. Knows no tunnel but by its name.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Duration;

use dhcproto::v6::{MessageType, Status};
use sixway_dataplane::update::Ipv6Prefix;

use super::auth::{self, Forged, Key, Ring};
use super::calls::{Called, Calls};
use super::codec::{INFINITY, Ia, IaKind, MAX_RELAYS, Message, Opt, Packet, Part, Relay, Value};
use super::reply::{ended, failed};
use crate::broker::{BindKey, BindKind, BindWish, UserName};

/// What the configuration says to the server.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Terms {
    /// What the server calls itself.
    pub duid: Vec<u8>,
    /// Preferred lifetime of what is given, in seconds; [`INFINITY`] for no end.
    pub preferred: u32,
    /// Valid lifetime, not shorter.
    pub valid: u32,
    /// Whether a Solicit with Rapid Commit is answered by a Reply.
    pub rapid_commit: bool,
    /// The preference that Advertise messages carry; `None`: they carry none, which means 0.
    pub preference: Option<u8>,
    /// Information for clients, in the order of option codes.
    pub options: Vec<Opt>,
    /// When clients are to ask for information again, in seconds.
    pub refresh: Option<u32>,
    /// Options that are sent unasked, by code.
    pub always: Vec<u16>,
    /// For how long a declined address is given to nobody.
    pub decline: Duration,
    /// The most bindings of one tunnel.
    pub most: usize,
    /// What is set aside for a client by its DUID.
    pub reserved: HashMap<Box<[u8]>, Vec<Reserved>>,
    /// Links by the names that relays have for the clients' interfaces: an address on each.
    pub relays: HashMap<Box<[u8]>, Ipv6Addr>,
    /// Whether clients that let themselves be told of changes are told.
    pub reconfigure: bool,
    /// Whether clients may prove who they are by delayed authentication (RFC 3315 section 21.4).
    pub authenticates: bool,
    /// Their keys, by their DUIDs.
    pub keys: HashMap<Box<[u8]>, Arc<Key>>,
}

/// What is set aside for a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// In this tunnel only; `None`: in any.
    pub tunnel: Option<Box<str>>,
    /// Prefixes, and addresses as prefixes of 128 bits.
    pub prefixes: Vec<Ipv6Prefix>,
}

/// Where a message came from.
#[derive(Clone, Debug)]
pub struct Origin<'a> {
    /// The tunnel's name.
    pub tunnel: &'a str,
    /// The account behind it, if there is one.
    pub user: Option<&'a UserName>,
    /// What the tunnel itself has.
    pub fixed: &'a [Ipv6Prefix],
    /// Whether it was sent to an address of ours and not to all servers.
    pub is_unicast: bool,
    /// Who has sent it: the client, or the relay that is nearest.
    pub from: Option<Ipv6Addr>,
}

/// Preferred and valid lifetime in seconds; [`INFINITY`] for no end. Preferred is never above valid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Life {
    /// How long it is good for new connections.
    pub preferred: u32,
    /// How long it is good at all.
    pub valid: u32,
}

/// Why a client gets nothing with one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lack;

/// Who may have what. An implementation remembers what it is told.
pub trait Leases {
    /// What [`Self::bind`] would give for each wish if all were bound one after the other. Nothing is kept.
    fn offer(&mut self, wishes: &[BindWish]) -> Vec<Result<Ipv6Prefix, Lack>>;

    /// Gives a client what it has already, or something new, for `lasts` from now on.
    ///
    /// # Errors
    /// There is nothing for it.
    fn bind(&mut self, wish: &BindWish, lasts: Duration) -> Result<Vec<Ipv6Prefix>, Lack>;

    /// What a client has.
    fn bound(&self, key: &BindKey) -> Vec<Ipv6Prefix>;

    /// The client gives it back.
    fn release(&mut self, prefix: Ipv6Prefix);

    /// The client says that somebody else uses it.
    fn decline(&mut self, key: &BindKey, prefix: Ipv6Prefix, lasts: Duration);

    /// Whether it is of the kind that is given out here, on the link of a relay that has an address there.
    fn is_on_link(&self, prefix: Ipv6Prefix, link: Option<Ipv6Addr>) -> bool;

    /// Whether a client that has come back may go on using it where it is now.
    fn still_holds(&self, _key: &BindKey, prefix: Ipv6Prefix, link: Option<Ipv6Addr>) -> bool {
        self.is_on_link(prefix, link)
    }

    /// For how long this is given; `None`: as the terms say.
    fn lifetimes(&self, _prefix: Ipv6Prefix) -> Option<Life> {
        None
    }

    /// The number of the last message that a client has proved to be its own.
    fn last_proof(&self, _client: &[u8]) -> Option<u64> {
        None
    }

    /// A client has proved a message with this number to be its own.
    fn keep_proof(&mut self, _client: &[u8], _number: u64) {}
}

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
    /// It came through more than [`MAX_RELAYS`] relays.
    TooDeep,
    /// A Confirm without an address.
    NothingToConfirm,
    /// What it says of who has made it is not true.
    Forged,
    /// It has been here before, as its number says.
    Replayed,
}

impl Silence {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Malformed,
        Self::WrongForm,
        Self::OtherServer,
        Self::Unicast,
        Self::Unexpected,
        Self::TooDeep,
        Self::NothingToConfirm,
        Self::Forged,
        Self::Replayed,
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
        }
    }
}

/// The most identity associations of one message that are dealt with; further ones get no answer.
pub const MAX_IAS: usize = 16;

/// Counts of what was understood and what was given, by name.
pub const COUNTS: [&str; 18] = [
    "solicit",
    "request",
    "confirm",
    "renew",
    "rebind",
    "release",
    "decline",
    "information_request",
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
}

/// A message on its way to an answer.
pub(super) struct Case<'a> {
    pub(super) origin: &'a Origin<'a>,
    pub(super) message: &'a Message,
    pub(super) client: &'a [u8],
    link: Option<Ipv6Addr>,
    /// What the client has proved the message with, and the answer is proved with.
    pub(super) key: Option<Arc<Key>>,
    /// Where the client is told of changes, if it lets itself be told.
    pub(super) reach: Option<Ipv6Addr>,
}

impl Session {
    /// A server with a random `secret`.
    pub fn new(terms: Terms, secret: u128) -> Self {
        let names = COUNTS.into_iter().chain(Silence::ALL.map(Silence::name));
        let counts = names.map(|name| (name, 0)).collect();
        Self { terms, secret, counts, ring: None, clock: (0, 0), calls: Calls::default() }
    }

    /// With this ring messages can be proved; without one nothing is.
    pub fn trust(&mut self, ring: Ring) {
        self.ring = Some(ring);
    }

    /// The time of what comes next, in Unix seconds and parts of a second of 2^-32.
    pub fn set_clock(&mut self, clock: (u64, u32)) {
        self.clock = clock;
    }

    /// The ring, if it must be kept before anything leaves that was made since this was asked last.
    pub fn ring_to_keep(&mut self) -> Option<&Ring> {
        let ring = self.ring.as_mut()?;
        ring.must_be_kept().then_some(&*ring)
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
        if origin.is_unicast && relays.is_empty() {
            return Err(Silence::Unicast);
        }
        self.check(&message)?;
        let key = self.prove(&message, relays.last().and_then(Relay::relayed).unwrap_or(octets), leases)?;
        let client = message.client().unwrap_or_default();
        let may_be_told = self.terms.reconfigure && key.is_none() && message.accepts_reconfigure();
        let reach = origin.from.filter(|_| may_be_told && relays.is_empty() && self.ring.is_some());
        let case = Case { origin, message: &message, client, link: self.link(&relays), key, reach };
        let answer = self.answer(&case, leases)?;
        self.count(if answer.kind == MessageType::Advertise { "advertise" } else { "reply" });
        if !relays.is_empty() {
            self.count("relayed");
        }
        let mut inner = answer.emit();
        case.key.iter().for_each(|key| auth::sign(&mut inner, &key.secret));
        let (to_relay, to_source_port) =
            (!relays.is_empty(), relays.first().is_some_and(Relay::has_own_port));
        let octets = relays.into_iter().rev().fold(inner, |inner, relay| wrap(relay, inner));
        Ok(Answer { octets, to_relay, to_source_port })
    }

    /// An address of the link that relays say the client is on: by the innermost name of an interface that is known, else by
    /// the innermost address that says anything (RFC 8415 section 13.1).
    fn link(&self, relays: &[Relay]) -> Option<Ipv6Addr> {
        let mut named = relays.iter().rev().filter_map(|relay| self.terms.relays.get(relay.interface()?));
        let useful = |link: &Ipv6Addr| !link.is_unspecified() && !link.is_unicast_link_local();
        named.next().copied().or_else(|| relays.iter().rev().map(|relay| relay.link).find(useful))
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
        if matches!(kind, M::Renew | M::Rebind | M::InformationRequest) && !self.calls.is_empty() {
            let called = Called { tunnel: case.origin.tunnel.into(), client: case.client.into() };
            if self.calls.handle_answer(&called) {
                self.count("reconfigure_heard");
            }
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
            Ok(prefix) => self.filled(ia, &[prefix], leases),
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
                Ok(prefixes) => self.filled(ia, &prefixes, leases),
                Err(Lack) => self.lacking(ia),
            });
        }
        ias
    }

    /// Renew and Rebind (RFC 8415 sections 18.3.4 and 18.3.5): what is bound lasts longer; of what is set aside a binding is
    /// made; with Rapid Commit allowed a Rebind makes one of anything.
    fn extend(&mut self, case: &Case<'_>, leases: &mut dyn Leases, rebind: bool) -> Vec<Ia> {
        let mut ias = Vec::new();
        for ia in case.message.ias() {
            let only_fixed = !(rebind && self.terms.rapid_commit);
            let wish = self.wish(case, ia, only_fixed);
            let strays = |value: &Value| !self.is_on_link(case, ia, value, leases);
            let off_link: Vec<Value> = ia.values().filter(|value| strays(value)).map(ended).collect();
            let bound = leases.bind(&wish, self.lasts());
            ias.push(match bound {
                Ok(prefixes) => {
                    let mut filled = self.filled(ia, &prefixes, leases);
                    let foreign = ia.values().filter(|value| !prefixes.iter().any(|p| is(value, *p)));
                    filled.parts.extend(foreign.map(ended).map(Part::Value));
                    filled
                }
                Err(Lack) if rebind && !off_link.is_empty() => {
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

    /// Whether all addresses are of this link; `None`: there is none (RFC 8415 section 18.3.3).
    fn confirm(&self, case: &Case<'_>, leases: &dyn Leases) -> Option<Status> {
        let ias = case.message.ias().filter(|ia| ia.kind == IaKind::Address);
        let mut on_link = ias.flat_map(|ia| ia.values().map(move |value| (ia, value))).peekable();
        on_link.peek()?;
        let own = |prefix: Ipv6Prefix| case.origin.fixed.iter().any(|own| own.covers(prefix));
        let all = on_link.all(|(ia, value)| {
            let prefix = Ipv6Prefix::new(value.addr, value.len);
            prefix.is_some_and(|prefix| own(prefix) || leases.still_holds(&key(case, ia), prefix, case.link))
        });
        Some(if all { Status::Success } else { Status::NotOnLink })
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
            || leases.bound(&key(case, ia)).contains(&prefix)
    }

    /// What is set aside for the client in its tunnel.
    fn reserved(&self, case: &Case<'_>) -> Vec<Ipv6Prefix> {
        let here = |set: &&Reserved| set.tunnel.as_deref().is_none_or(|name| name == case.origin.tunnel);
        let sets = self.terms.reserved.get(case.client).into_iter().flatten().filter(here);
        sets.flat_map(|set| set.prefixes.iter().copied()).collect()
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

fn unwrap(octets: &[u8]) -> Result<(Vec<Relay>, Message), Silence> {
    let mut relays: Vec<Relay> = Vec::new();
    loop {
        let inner = match relays.last() {
            Some(relay) => relay.relayed().ok_or(Silence::WrongForm)?,
            None => octets,
        };
        match Packet::parse(inner).map_err(|_| Silence::Malformed)? {
            Packet::Message(mut message) => {
                message.keep_few_ias(MAX_IAS);
                return Ok((relays, message));
            }
            Packet::Relay(relay) if relay.is_reply => return Err(Silence::Unexpected),
            Packet::Relay(_) if relays.len() == MAX_RELAYS => return Err(Silence::TooDeep),
            Packet::Relay(relay) => relays.push(relay),
        }
    }
}

/// The answer's way back through a relay, with what the relay must find in it again (RFC 8415 section 19.3).
fn wrap(relay: Relay, inner: Vec<u8>) -> Vec<u8> {
    let options = std::iter::once(Opt::Relayed(inner)).chain(relay.echoed().cloned()).collect();
    Packet::Relay(Relay { is_reply: true, options, ..relay }).emit()
}

fn key(case: &Case<'_>, ia: &Ia) -> BindKey {
    let kind = match ia.kind {
        IaKind::Address => BindKind::Address,
        IaKind::Prefix => BindKind::Prefix,
    };
    BindKey { tunnel: case.origin.tunnel.into(), client: case.client.into(), kind, number: ia.iaid }
}

fn is(value: &Value, prefix: Ipv6Prefix) -> bool {
    Ipv6Prefix::new(value.addr, value.len) == Some(prefix)
}
