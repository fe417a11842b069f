//! A DHCPv6 client (RFC 8415 section 18.2): asks for prefixes and addresses, keeps them, gives them back.
//!
//! ```text
//!            start              Advertise            Reply
//!   idle ──────────► soliciting ────────► requesting ─────► bound ── T1 ──► renewing ── T2 ──► rebinding
//!    ▲                  ▲   └── Reply with Rapid Commit ──►  ▲ ◄── Reply ──────┴──────────────────┘
//!    │ Reply, or 4      │                                    │ NoBinding: requesting
//!    │ tries            └── nothing is valid any more ───────┤
//!    └───────── releasing ◄── stop ──────────────────────────┘ rejoin (the link came back): rebinding at once
//! ```
//!
//! Pure: messages and times in, [`Output`]s out; knows neither tunnel nor socket nor what is done with a prefix. Reconfigure
//! is accepted only with the key that the server gave us (RFC 8415 section 20.4); a server that gives none cannot send any.
//! Left out: Confirm and Decline (where a prefix is held, Rebind asks whether the link is still the same one), and
//! Information-request.

use std::collections::VecDeque;
use std::net::Ipv6Addr;
use std::time::Duration;

use dhcproto::v6::{DhcpOption, MessageType, ORO, OptionCode, Status};
use rand::{Rng, RngExt};
use sixway_dataplane::update::Ipv6Prefix;

use super::codec::{Message, Name, Opt, Packet, Part, code};
use super::holding::{Association, Fate};
pub use super::holding::{Held, Want};
use super::timing::{FIRST_DELAY, Pace, Retransmission};
use super::trust::Trust;

/// Bounds of the longest wait between Solicits that a server may ask for, in seconds (RFC 8415 section 21.24).
const SOL_MAX_RT: std::ops::RangeInclusive<u32> = 60..=86_400;
/// The longest pause after a server has given nothing, before all are asked again.
const LONGEST_PAUSE: Duration = Duration::from_secs(120);
/// The preference that ends the search (RFC 8415 section 18.2.1).
const CERTAIN: u8 = 255;
/// The most of its words that are passed on when a server has nothing, in characters.
const MOST_WORDS: usize = 120;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// What the client calls itself.
    pub duid: Vec<u8>,
    /// What it wants; at least one, no two with the same kind and number.
    pub wants: Vec<Want>,
    /// Whether a Reply to its Solicit will do.
    pub rapid_commit: bool,
}

/// What the caller must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send this to all servers of the link.
    Send(Vec<u8>),
    /// This is what is held now, all of it.
    Have(Lease),
    /// A server has nothing for us, and says why.
    Refused(String),
    /// All is given back: nothing more will be said before [`Client::start`].
    Idle,
}

/// What is held, and what else the server has said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    /// Addresses and prefixes.
    pub held: Vec<Held>,
    /// Name servers.
    pub dns: Vec<Ipv6Addr>,
    /// Domains to search in.
    pub domains: Vec<Name>,
}

/// Why a message was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ignored {
    /// It cannot be read, or is no message between client and server.
    #[error("it cannot be read")]
    Malformed,
    /// Clients do not receive such, or not now.
    #[error("nothing like it is waited for")]
    Unexpected,
    /// It is for another client, or the answer to another question, or from another server.
    #[error("it is not an answer to what was asked")]
    NotOurs,
    /// It offers or says nothing.
    #[error("there is nothing in it")]
    Empty,
    /// A Reconfigure that is not proven, or has been here before.
    #[error("a Reconfigure is not proven")]
    Unproven,
}

/// An Advertise worth a Request.
#[derive(Clone, Debug)]
struct Offer {
    server: Vec<u8>,
    preference: u8,
    /// For each association, in order.
    values: Vec<Vec<Ipv6Prefix>>,
}

impl Offer {
    /// First by preference, then by how much it gives (RFC 8415 section 18.2.9).
    fn rank(&self) -> (u8, usize) {
        (self.preference, self.values.iter().filter(|values| !values.is_empty()).count())
    }
}

/// A message that is out.
#[derive(Clone, Debug)]
struct Exchange {
    kind: MessageType,
    xid: [u8; 3],
    again: Retransmission,
    /// While soliciting: the best so far. While requesting: what is requested.
    offer: Option<Offer>,
}

#[derive(Clone, Debug)]
enum Stage {
    Idle,
    /// A Solicit is due then.
    Waiting(Duration),
    Asking(Exchange),
    Bound,
}

/// A client.
#[derive(Debug)]
pub struct Client<R> {
    wish: Wish,
    rng: R,
    stage: Stage,
    all: Vec<Association>,
    server: Vec<u8>,
    dns: Vec<Ipv6Addr>,
    domains: Vec<Name>,
    trust: Trust,
    solicit: Pace,
    /// Replies in a row that gave nothing.
    failures: u32,
    out: VecDeque<Output>,
}

impl<R: Rng> Client<R> {
    /// One who has asked for nothing yet.
    pub fn new(wish: Wish, rng: R) -> Self {
        let all = wish.wants.iter().map(|want| Association::new(*want)).collect();
        let (server, dns, domains, out) = (Vec::new(), Vec::new(), Vec::new(), VecDeque::new());
        let (stage, trust, solicit) = (Stage::Idle, Trust::default(), Pace::SOLICIT);
        Self { wish, rng, stage, all, server, dns, domains, trust, solicit, failures: 0, out }
    }

    /// Asks, or, where something is held, asks whether it still holds on this link. Also for a link that has come back.
    pub fn start(&mut self, now: Duration) {
        if self.is_releasing() {
            return;
        }
        self.expire(now);
        if self.holds_nothing() {
            let delay = FIRST_DELAY * self.rng.random_range(0..1000) / 1000;
            self.stage = Stage::Waiting(now + delay);
            return;
        }
        self.begin(MessageType::Rebind, Pace::REJOIN, None, now);
    }

    /// Asks the server for the same again, before it is due.
    pub fn renew(&mut self, now: Duration) {
        if matches!(self.stage, Stage::Bound) {
            self.begin(MessageType::Renew, Pace::RENEW, None, now);
        }
    }

    /// Gives everything back; it is not held any more from here on. [`Output::Idle`] says when that is done with.
    pub fn stop(&mut self, now: Duration) {
        if self.is_releasing() || matches!(self.stage, Stage::Idle) {
            return;
        }
        if self.holds_nothing() || self.server.is_empty() {
            return self.rest();
        }
        // What is given back must not be used any more when it is said (RFC 8415 section 18.2.7).
        self.out.push_back(Output::Have(Lease::default()));
        self.begin(MessageType::Release, Pace::RELEASE, None, now);
    }

    /// Whether it has nothing to say before [`Self::start`].
    pub fn is_idle(&self) -> bool {
        matches!(self.stage, Stage::Idle)
    }

    /// What is to be done, once, in order.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// When [`Self::handle_timeout`] must be called; `None`: not before something else happens.
    pub fn poll_timeout(&self) -> Option<Duration> {
        let own = match &self.stage {
            Stage::Idle => return None,
            Stage::Waiting(at) => Some(*at),
            Stage::Asking(exchange) => Some(exchange.again.due()),
            Stage::Bound => {
                self.soonest(|one| one.renew).into_iter().chain(self.soonest(|one| one.rebind)).min()
            }
        };
        own.into_iter().chain(self.first_end().filter(|_| !self.is_releasing())).min()
    }

    /// What is held now.
    pub fn lease(&self) -> Lease {
        let held = self.all.iter().flat_map(|one| one.held.iter().copied()).collect();
        Lease { held, dns: self.dns.clone(), domains: self.domains.clone() }
    }

    /// Something may be due.
    pub fn handle_timeout(&mut self, now: Duration) {
        if !self.is_releasing() && self.expire(now) {
            self.out.push_back(Output::Have(self.lease()));
        }
        match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Idle => {}
            Stage::Waiting(at) if at <= now => self.begin(MessageType::Solicit, self.solicit, None, now),
            Stage::Bound => self.look(now),
            Stage::Asking(exchange) if exchange.again.due() <= now => self.overdue(exchange, now),
            other @ (Stage::Waiting(_) | Stage::Asking(_)) => self.stage = other,
        }
        self.discover_if_lost(now);
    }

    /// What is bound may be due.
    fn look(&mut self, now: Duration) {
        let due = |at: Option<Duration>| at.is_some_and(|at| at <= now);
        let (renew, rebind) = (self.soonest(|one| one.renew), self.soonest(|one| one.rebind));
        self.stage = Stage::Bound;
        if due(rebind) {
            self.begin(MessageType::Rebind, Pace::REBIND, None, now);
        } else if due(renew) {
            self.begin(MessageType::Renew, Pace::RENEW, None, now);
        }
    }

    /// An answer has not come in time.
    fn overdue(&mut self, mut exchange: Exchange, now: Duration) {
        if let (MessageType::Solicit, Some(offer)) = (exchange.kind, exchange.offer.take()) {
            return self.request(offer, now);
        }
        if exchange.again.again(now, &mut self.rng) {
            self.stage = Stage::Asking(exchange);
            return self.say(now);
        }
        use MessageType as M;
        match () {
            () if exchange.kind == M::Release => self.rest(),
            () if exchange.kind == M::Renew => self.begin(M::Rebind, Pace::REBIND, None, now),
            // Nobody here knows us, or the server is away; what is held is good until it is over.
            () => self.begin(M::Solicit, self.solicit, None, now),
        }
    }

    /// A message has come.
    ///
    /// # Errors
    /// Why it changes nothing.
    pub fn handle_message(&mut self, octets: &[u8], now: Duration) -> Result<(), Ignored> {
        let Ok(Packet::Message(message)) = Packet::parse(octets) else { return Err(Ignored::Malformed) };
        let server = message.server().ok_or(Ignored::NotOurs)?.to_vec();
        if message.client() != Some(&self.wish.duid[..]) {
            return Err(Ignored::NotOurs);
        }
        if message.kind == MessageType::Reconfigure {
            return self.summoned(&message, &server, now);
        }
        let Stage::Asking(exchange) = &self.stage else { return Err(Ignored::Unexpected) };
        if message.xid != exchange.xid {
            return Err(Ignored::NotOurs);
        }
        match (message.kind, exchange.kind) {
            (MessageType::Advertise, MessageType::Solicit) => self.advertised(&message, server, now),
            (MessageType::Reply, MessageType::Solicit) if self.may_commit(&message) => {
                self.replied(&message, server, now)
            }
            (MessageType::Reply, MessageType::Rebind) => self.replied(&message, server, now),
            (MessageType::Reply, MessageType::Request | MessageType::Renew) if server == self.server => {
                self.replied(&message, server, now)
            }
            (MessageType::Reply, MessageType::Release) if server == self.server => {
                self.rest();
                Ok(())
            }
            _ => Err(Ignored::Unexpected),
        }
    }

    /// A server says that something has changed. While something else is out, that will bring it to light.
    fn summoned(&mut self, message: &Message, server: &[u8], now: Duration) -> Result<(), Ignored> {
        if server != self.server || message.xid != [0; 3] {
            return Err(Ignored::NotOurs);
        }
        let kind = self.trust.summons(message).ok_or(Ignored::Unproven)?;
        match (&self.stage, kind) {
            (Stage::Bound, MessageType::Renew) => self.begin(kind, Pace::RENEW, None, now),
            (Stage::Bound, MessageType::Rebind) => self.begin(kind, Pace::REBIND, None, now),
            // Information comes with every Reply, so it is asked for by a Renew too.
            (Stage::Bound, MessageType::InformationRequest) => self.renew(now),
            _ => return Err(Ignored::Unexpected),
        }
        Ok(())
    }

    fn may_commit(&self, message: &Message) -> bool {
        self.wish.rapid_commit && message.has_rapid_commit()
    }

    fn advertised(&mut self, message: &Message, server: Vec<u8>, now: Duration) -> Result<(), Ignored> {
        self.learn_pace(message);
        let values: Vec<_> = self.all.iter().map(|one| one.offered(message)).collect();
        if values.iter().all(Vec::is_empty) {
            self.refused(message);
            return Err(Ignored::Empty);
        }
        let offer = Offer { server, preference: preference(message), values };
        let Stage::Asking(exchange) = &mut self.stage else { return Err(Ignored::Unexpected) };
        // Once the first wait is over any offer will do.
        if offer.preference == CERTAIN || exchange.again.said() > 1 {
            self.request(offer, now);
        } else if exchange.offer.as_ref().is_none_or(|best| best.rank() < offer.rank()) {
            exchange.offer = Some(offer);
        }
        Ok(())
    }

    fn request(&mut self, offer: Offer, now: Duration) {
        if self.server != offer.server {
            self.trust.forget();
        }
        self.server.clone_from(&offer.server);
        self.begin(MessageType::Request, Pace::REQUEST, Some(offer), now);
    }

    fn replied(&mut self, message: &Message, server: Vec<u8>, now: Duration) -> Result<(), Ignored> {
        self.learn_pace(message);
        let Stage::Asking(Exchange { kind, .. }) = &self.stage else { return Err(Ignored::Unexpected) };
        let anew = matches!(kind, MessageType::Request | MessageType::Solicit);
        if matches!(status(message), Some((Status::UnspecFail, _))) {
            // It is asked again at its pace (RFC 8415 section 18.2.10).
            self.refused(message);
            return Err(Ignored::Empty);
        }
        let fates: Vec<Fate> = self.all.iter_mut().filter_map(|one| one.take(message, anew, now)).collect();
        if fates.is_empty() && !anew {
            return Err(Ignored::Empty);
        }
        if self.server != server {
            self.trust.forget();
        }
        self.server = server;
        self.trust.learn(message);
        self.inform(message);
        self.out.push_back(Output::Have(self.lease()));
        if fates.contains(&Fate::Unknown) && !anew {
            let values = self.all.iter().map(|_| Vec::new()).collect();
            let offer = Offer { server: self.server.clone(), preference: 0, values };
            self.request(offer, now);
            return Ok(());
        }
        if self.holds_nothing() {
            self.refused(message);
            self.pause(now);
            return Ok(());
        }
        self.all.iter_mut().for_each(|one| one.postpone(now));
        (self.stage, self.failures) = (Stage::Bound, 0);
        Ok(())
    }

    /// All servers are asked again, a little later each time.
    fn pause(&mut self, now: Duration) {
        let pause = Duration::from_secs(1 << self.failures.min(10)).min(LONGEST_PAUSE);
        self.failures = self.failures.saturating_add(1);
        self.stage = Stage::Waiting(now + pause);
    }

    fn learn_pace(&mut self, message: &Message) {
        let known = |option: &Opt| {
            let Opt::Seconds(code::SOL_MAX_RT, seconds) = option else { return None };
            SOL_MAX_RT.contains(seconds).then(|| Duration::from_secs((*seconds).into()))
        };
        let Some(longest) = message.options.iter().find_map(known) else { return };
        self.solicit.longest = longest;
        if let Stage::Asking(Exchange { kind: MessageType::Solicit, again, .. }) = &mut self.stage {
            again.slow_down(longest);
        }
    }

    fn inform(&mut self, message: &Message) {
        for option in &message.options {
            if let Opt::Addresses(code::DNS_SERVERS, all) = option {
                self.dns.clone_from(all);
            } else if let Opt::Names(code::DOMAIN_LIST, all) = option {
                self.domains.clone_from(all);
            }
        }
    }

    /// Passes on what a server says of why it has nothing.
    fn refused(&mut self, message: &Message) {
        let inside = message.ias().flat_map(|ia| &ia.parts).find_map(|part| {
            let Part::Status(status, text) = part else { return None };
            (*status != Status::Success).then_some((*status, text.as_str()))
        });
        let Some((code, text)) = status(message).or(inside) else { return };
        let text: String = text.chars().filter(|c| !c.is_control()).take(MOST_WORDS).collect();
        self.out.push_back(Output::Refused(words(code, &text)));
    }

    /// Forgets everything and says nothing more.
    fn rest(&mut self) {
        self.all.iter_mut().for_each(|one| *one = Association::new(one.want));
        self.server.clear();
        self.trust.forget();
        self.stage = Stage::Idle;
        self.out.push_back(Output::Idle);
    }

    fn begin(&mut self, kind: MessageType, pace: Pace, offer: Option<Offer>, now: Duration) {
        let mut again = Retransmission::new(pace, kind == MessageType::Solicit, now, &mut self.rng);
        let end = match () {
            () if !pace.lasting.is_zero() => None,
            () if kind == MessageType::Renew => self.soonest(|one| one.rebind).or_else(|| self.last_end()),
            () if kind == MessageType::Rebind => self.last_end(),
            () => None,
        };
        if let Some(end) = end {
            again.end_at(end);
        }
        let [a, b, c, _] = self.rng.random::<u32>().to_be_bytes();
        self.stage = Stage::Asking(Exchange { kind, xid: [a, b, c], again, offer });
        self.say(now);
    }

    /// Says, once or again, what is out.
    fn say(&mut self, now: Duration) {
        let Stage::Asking(exchange) = &self.stage else { return };
        let kind = exchange.kind;
        let mut options = vec![DhcpOption::ClientId(self.wish.duid.clone())];
        if matches!(kind, MessageType::Request | MessageType::Renew | MessageType::Release) {
            options.push(DhcpOption::ServerId(self.server.clone()));
        }
        options.push(DhcpOption::ElapsedTime(exchange.again.elapsed(now)));
        if kind != MessageType::Release {
            let asked = [code::DNS_SERVERS, code::DOMAIN_LIST, code::SOL_MAX_RT];
            options.push(DhcpOption::ORO(ORO { opts: asked.into_iter().map(OptionCode::from).collect() }));
        }
        if kind != MessageType::Release {
            options.push(DhcpOption::ReconfAccept);
        }
        if kind == MessageType::Solicit && self.wish.rapid_commit {
            options.push(DhcpOption::RapidCommit);
        }
        let mut options: Vec<Opt> = options.into_iter().map(Opt::Leaf).collect();
        let values = |n: usize| Some(exchange.offer.as_ref()?.values.get(n)?.as_slice());
        let asked = self
            .all
            .iter()
            .enumerate()
            .filter(|(_, one)| kind != MessageType::Release || !one.held.is_empty());
        options.extend(
            asked.map(|(n, one)| Opt::Ia(one.ask(values(n).filter(|_| kind == MessageType::Request)))),
        );
        let message = Message { kind, xid: exchange.xid, options };
        self.out.push_back(Output::Send(message.emit()));
    }

    fn is_releasing(&self) -> bool {
        matches!(&self.stage, Stage::Asking(Exchange { kind: MessageType::Release, .. }))
    }

    fn holds_nothing(&self) -> bool {
        self.all.iter().all(|one| one.held.is_empty())
    }

    fn soonest(&self, when: impl Fn(&Association) -> Option<Duration>) -> Option<Duration> {
        self.all.iter().filter(|one| !one.held.is_empty()).filter_map(when).min()
    }

    /// When the first of what is held is over; `None`: never.
    fn first_end(&self) -> Option<Duration> {
        self.all.iter().flat_map(|one| &one.held).filter_map(|held| held.valid).min()
    }

    /// When all of it is; `None`: never.
    fn last_end(&self) -> Option<Duration> {
        let ends: Option<Vec<_>> = self.all.iter().flat_map(|one| &one.held).map(|held| held.valid).collect();
        ends.and_then(|ends| ends.into_iter().max())
    }

    fn expire(&mut self, now: Duration) -> bool {
        self.all.iter_mut().fold(false, |any, one| one.expire(now) | any)
    }

    /// What is not valid any more cannot be renewed: all servers are asked.
    fn discover_if_lost(&mut self, now: Duration) {
        let needs_a_lease = match &self.stage {
            Stage::Bound => true,
            Stage::Asking(exchange) => matches!(exchange.kind, MessageType::Renew | MessageType::Rebind),
            Stage::Idle | Stage::Waiting(_) => false,
        };
        if needs_a_lease && self.holds_nothing() {
            self.begin(MessageType::Solicit, self.solicit, None, now);
        }
    }
}

fn preference(message: &Message) -> u8 {
    let found = message
        .options
        .iter()
        .find_map(|option| if let Opt::Leaf(DhcpOption::Preference(n)) = option { Some(*n) } else { None });
    found.unwrap_or(0)
}

/// A status (RFC 8415 section 21.13) in words, with its name and what the server says to it.
fn words(status: Status, text: &str) -> String {
    const KNOWN: [(Status, &str, &str); 5] = [
        (Status::UnspecFail, "it has failed", "UnspecFail"),
        (Status::NoAddrsAvail, "it has no addresses left", "NoAddrsAvail"),
        (Status::NoBinding, "it knows of no such binding", "NoBinding"),
        (Status::NotOnLink, "what is asked for does not belong on this link", "NotOnLink"),
        (Status::NoPrefixAvail, "it has no prefixes left", "NoPrefixAvail"),
    ];
    let said = if text.is_empty() { String::new() } else { format!(": {text}") };
    match KNOWN.iter().find(|(known, ..)| *known == status) {
        Some((_, words, name)) => format!("{words} ({name}{said})"),
        None => format!("it says so with status {}{said}", u16::from(status)),
    }
}

/// What the server says of the message as a whole, if it is no success.
fn status(message: &Message) -> Option<(Status, &str)> {
    message.options.iter().find_map(|option| {
        let Opt::Leaf(DhcpOption::StatusCode(said)) = option else { return None };
        (said.status != Status::Success).then_some((said.status, said.msg.as_str()))
    })
}
