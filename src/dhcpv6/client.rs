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
//! Where addresses are held and no prefix, a Confirm asks what Rebind does at `rejoin`. A client that wants neither asks for
//! information alone, again whenever that is to be refreshed (section 18.2.6); so does one that a Reconfigure bids to.
//!
//! Pure: messages and times in, [`Output`]s out; knows neither tunnel nor socket nor what is done with a prefix. Reconfigure
//! is accepted only with the key that the server gave us (RFC 8415 section 20.4); a server that gives none cannot send any.
//! Left out: Decline. Prefixes are never declined, and on a tunnel's device, which has no neighbours, nobody finds out that an
//! address is somebody else's.

mod hearing;
mod saying;
mod view;

use std::collections::VecDeque;
use std::net::Ipv6Addr;
use std::time::Duration;

use dhcproto::v6::{DhcpOption, MessageType, Status};
use rand::{Rng, RngExt};
use sixway_dataplane::update::Ipv6Prefix;

use super::codec::{IaKind, Message, Name, Opt, Packet};
use super::holding::{Association, Fate};
pub use super::holding::{Held, Want};
use super::timing::{FIRST_DELAY, Pace, Retransmission};
use super::trust::Trust;
use hearing::status;
pub use view::View;

/// The longest pause after a server has given nothing, before all are asked again.
const LONGEST_PAUSE: Duration = Duration::from_secs(120);
/// The preference that ends the search (RFC 8415 section 18.2.1).
const CERTAIN: u8 = 255;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// What the client calls itself.
    pub duid: Vec<u8>,
    /// What it wants, no two with the same kind and number; nothing: information alone.
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
    /// All is given back, or nothing was held: nothing more will be said before [`Client::start`].
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
    /// While confirming: some server has said that this is another link.
    is_elsewhere: bool,
    /// Whether a Reconfigure has asked for it.
    is_summoned: bool,
}

#[derive(Clone, Debug)]
enum Stage {
    Idle,
    /// Such a message is due then.
    Waiting(Duration, MessageType),
    Asking(Exchange),
    Bound,
    /// Information is here; then it is to be refreshed, or never.
    Informed(Option<Duration>),
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
    inquire: Pace,
    /// Replies in a row that gave nothing.
    failures: u32,
    out: VecDeque<Output>,
}

impl<R: Rng> Client<R> {
    /// One who has asked for nothing yet.
    pub fn new(wish: Wish, rng: R) -> Self {
        let all = wish.wants.iter().map(|want| Association::new(*want)).collect();
        let (server, dns, domains, out) = (Vec::new(), Vec::new(), Vec::new(), VecDeque::new());
        let (stage, trust) = (Stage::Idle, Trust::default());
        let (solicit, inquire) = (Pace::SOLICIT, Pace::INQUIRE);
        Self { wish, rng, stage, all, server, dns, domains, trust, solicit, inquire, failures: 0, out }
    }

    /// Asks, or, where something is held, asks whether it still holds on this link. Also for a link that has come back.
    pub fn start(&mut self, now: Duration) {
        if self.is_releasing() {
            return;
        }
        self.expire(now);
        let first = match () {
            () if self.wish.wants.is_empty() => MessageType::InformationRequest,
            () if self.holds_nothing() => MessageType::Solicit,
            () if self.holds_a_prefix() => return self.begin(MessageType::Rebind, Pace::REJOIN, None, now),
            () => MessageType::Confirm,
        };
        self.delay(first, now);
    }

    /// It is said within a second, not by all clients of the link at once.
    fn delay(&mut self, first: MessageType, now: Duration) {
        let delay = FIRST_DELAY * self.rng.random_range(0..1000) / 1000;
        self.stage = Stage::Waiting(now + delay, first);
    }

    /// Asks the server for the same again, before it is due.
    pub fn renew(&mut self, now: Duration) {
        match self.stage {
            Stage::Bound => self.begin(MessageType::Renew, Pace::RENEW, None, now),
            Stage::Informed(_) => self.begin(MessageType::InformationRequest, self.inquire, None, now),
            Stage::Idle | Stage::Waiting(..) | Stage::Asking(_) => {}
        }
    }

    /// Gives everything back; it is not held any more from here on. [`Output::Idle`] says when that is done with.
    pub fn stop(&mut self, now: Duration) {
        if self.is_releasing() || matches!(self.stage, Stage::Idle) {
            return;
        }
        // What is given back must not be used any more when it is said (RFC 8415 section 18.2.7).
        if self.lease() != Lease::default() {
            self.out.push_back(Output::Have(Lease::default()));
        }
        if self.holds_nothing() || self.server.is_empty() {
            return self.rest();
        }
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
            Stage::Waiting(at, _) => Some(*at),
            Stage::Asking(exchange) if exchange.kind == MessageType::InformationRequest => {
                Some(exchange.again.due()).into_iter().chain(self.next_renewal()).min()
            }
            Stage::Asking(exchange) => Some(exchange.again.due()),
            Stage::Bound => self.next_renewal(),
            Stage::Informed(refresh) => *refresh,
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
            Stage::Waiting(at, kind) if at <= now => self.begin_waited(kind, now),
            Stage::Bound => self.look(now),
            Stage::Informed(Some(at)) if at <= now => self.delay(MessageType::InformationRequest, now),
            // Who asks for what is held is told everything else as well.
            Stage::Asking(exchange)
                if exchange.kind == MessageType::InformationRequest
                    && self.next_renewal().is_some_and(|at| at <= now) =>
            {
                self.look(now);
            }
            Stage::Asking(exchange) if exchange.again.due() <= now => self.overdue(exchange, now),
            other @ (Stage::Waiting(..) | Stage::Asking(_) | Stage::Informed(_)) => self.stage = other,
        }
        self.discover_if_lost(now);
    }

    fn begin_waited(&mut self, kind: MessageType, now: Duration) {
        match () {
            () if kind == MessageType::InformationRequest => self.begin(kind, self.inquire, None, now),
            () if kind == MessageType::Confirm && !self.holds_nothing() => {
                self.begin(kind, Pace::REJOIN, None, now);
            }
            () => self.begin(MessageType::Solicit, self.solicit, None, now),
        }
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
        if exchange.is_elsewhere {
            return self.lose(now);
        }
        if exchange.again.again(now, &mut self.rng) {
            self.stage = Stage::Asking(exchange);
            return self.say(now);
        }
        use MessageType as M;
        match () {
            () if exchange.kind == M::Release => self.rest(),
            () if exchange.kind == M::Renew => self.begin(M::Rebind, Pace::REBIND, None, now),
            // Whom nobody contradicts goes on (RFC 8415 section 18.2.3).
            () if exchange.kind == M::Confirm => self.stage = Stage::Bound,
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
            (MessageType::Reply, MessageType::Confirm) => {
                self.confirmed(&message);
                Ok(())
            }
            (MessageType::Reply, MessageType::InformationRequest)
                if !exchange.is_summoned || server == self.server =>
            {
                self.informed(&message, server, now)
            }
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

    /// A server says that something has changed. While something else is out this waits: it will be said again.
    fn summoned(&mut self, message: &Message, server: &[u8], now: Duration) -> Result<(), Ignored> {
        if server != self.server || message.xid != [0; 3] {
            return Err(Ignored::NotOurs);
        }
        let summons = self.trust.summons(message).ok_or(Ignored::Unproven)?;
        let kind = summons.kind;
        match (&self.stage, kind) {
            (Stage::Bound, MessageType::Renew) => self.begin(kind, Pace::RENEW, None, now),
            (Stage::Bound, MessageType::Rebind) => self.begin(kind, Pace::REBIND, None, now),
            (Stage::Bound | Stage::Informed(_), MessageType::InformationRequest) => {
                self.ask(kind, self.inquire, None, true, now);
            }
            _ => return Err(Ignored::Unexpected),
        }
        self.trust.obeyed(&summons);
        Ok(())
    }

    /// This is our server; another one's key is none of its.
    fn choose(&mut self, server: Vec<u8>) {
        if self.server != server {
            self.trust.forget();
        }
        self.server = server;
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
        self.choose(offer.server.clone());
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
        self.choose(server);
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
        self.stage = Stage::Waiting(now + pause, MessageType::Solicit);
    }

    /// Forgets everything and says nothing more.
    fn rest(&mut self) {
        self.all.iter_mut().for_each(|one| *one = Association::new(one.want));
        self.server.clear();
        self.dns.clear();
        self.domains.clear();
        self.trust.forget();
        self.stage = Stage::Idle;
        self.out.push_back(Output::Idle);
    }

    fn begin(&mut self, kind: MessageType, pace: Pace, offer: Option<Offer>, now: Duration) {
        self.ask(kind, pace, offer, false, now);
    }

    fn ask(&mut self, kind: MessageType, pace: Pace, offer: Option<Offer>, is_summoned: bool, now: Duration) {
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
        let xid = [a, b, c];
        self.stage = Stage::Asking(Exchange { kind, xid, again, offer, is_elsewhere: false, is_summoned });
        self.say(now);
    }

    fn is_releasing(&self) -> bool {
        matches!(&self.stage, Stage::Asking(Exchange { kind: MessageType::Release, .. }))
    }

    fn holds_nothing(&self) -> bool {
        self.all.iter().all(|one| one.held.is_empty())
    }

    fn holds_a_prefix(&self) -> bool {
        self.all.iter().any(|one| one.want.kind == IaKind::Prefix && !one.held.is_empty())
    }

    /// T1 or T2, whichever is sooner; `None`: never.
    fn next_renewal(&self) -> Option<Duration> {
        self.soonest(|one| one.renew).into_iter().chain(self.soonest(|one| one.rebind)).min()
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
            Stage::Asking(exchange) => {
                !matches!(exchange.kind, MessageType::Solicit | MessageType::Request | MessageType::Release)
            }
            Stage::Idle | Stage::Waiting(..) | Stage::Informed(_) => false,
        };
        if needs_a_lease && !self.wish.wants.is_empty() && self.holds_nothing() {
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
