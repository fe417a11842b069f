//! What a DHCPv6 client holds: identity associations, what servers have put into them, and until when (RFC 8415 section
//! 18.2.10.1). Pure: `now` is since some moment of the caller's.

use std::net::Ipv6Addr;
use std::time::Duration;

use dhcproto::v6::Status;
use sixway_dataplane::update::Ipv6Prefix;

use super::codec::{INFINITY, Ia, IaKind, Message, Part, Value};

/// The most values of one identity association that are taken.
pub const MOST_VALUES: usize = 16;
/// How long a client waits where a server has not said how long: REN_TIMEOUT (RFC 8415 section 7.6).
const PAUSE: Duration = Duration::from_secs(10);
/// A server is not asked again sooner than this, whatever it says.
const SOONEST: Duration = Duration::from_secs(1);

/// What is wanted under one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// An address or a prefix.
    pub kind: IaKind,
    /// The client's number for it.
    pub iaid: u32,
    /// The prefix length wished for, in bits (RFC 8168); 0: none in particular.
    pub len: u8,
}

/// An address (a prefix of 128 bits) or a prefix in the client's hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// What for.
    pub kind: IaKind,
    /// What.
    pub prefix: Ipv6Prefix,
    /// Until when it is good for new connections; `None`: for ever.
    pub preferred: Option<Duration>,
    /// Until when it is good at all; `None`: for ever.
    pub valid: Option<Duration>,
}

/// What became of an identity association in a Reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Something is held under it.
    Held,
    /// The server knows nothing of it: it is to be requested.
    Unknown,
    /// There is nothing for it.
    Nothing,
}

/// One identity association.
#[derive(Clone, Debug)]
pub struct Association {
    /// What is wanted.
    pub want: Want,
    /// What is held.
    pub held: Vec<Held>,
    /// When the server is to be asked; `None`: never.
    pub renew: Option<Duration>,
    /// When any server is to be asked; `None`: never.
    pub rebind: Option<Duration>,
}

impl Association {
    /// Nothing is held yet.
    pub fn new(want: Want) -> Self {
        Self { want, held: Vec::new(), renew: None, rebind: None }
    }

    /// It among those of a message.
    fn find<'a>(&self, message: &'a Message) -> Option<&'a Ia> {
        message.ias().find(|ia| (ia.kind, ia.iaid) == (self.want.kind, self.want.iaid))
    }

    /// As it is asked for: with these values, else with what is held, else with the wish.
    pub fn ask(&self, offered: Option<&[Ipv6Prefix]>) -> Ia {
        let held: Vec<Ipv6Prefix> = self.held.iter().map(|held| held.prefix).collect();
        let named = offered.filter(|offered| !offered.is_empty()).unwrap_or(&held);
        let wish = Ipv6Prefix::new(Ipv6Addr::UNSPECIFIED, self.want.len);
        let wish = wish.filter(|wish| wish.prefix_len() > 0 && named.is_empty());
        let parts = named.iter().copied().chain(wish).map(part).collect();
        let Want { kind, iaid, .. } = self.want;
        Ia { kind, iaid, t1: 0, t2: 0, parts }
    }

    /// What an Advertise would give.
    pub fn offered(&self, message: &Message) -> Vec<Ipv6Prefix> {
        let values = self.find(message).into_iter().flat_map(Ia::values);
        let good = values.filter(|value| value.valid > 0).filter_map(|value| self.sound(value));
        good.take(MOST_VALUES).collect()
    }

    /// Takes what a Reply says; `None` if it says nothing of this. `anew`: what it does not name is not held any more.
    pub fn take(&mut self, message: &Message, anew: bool, now: Duration) -> Option<Fate> {
        let ia = self.find(message)?;
        let status = status(ia);
        if status == Status::NoBinding && !anew {
            return Some(Fate::Unknown);
        }
        // No other code leaves anything to be held, whichever it is.
        if status != Status::Success {
            if anew {
                self.held.clear();
            }
            return Some(Fate::Nothing);
        }
        // Times that contradict each other are an error of the server's (RFC 8415 sections 21.4 and 21.21).
        if ia.t2 > 0 && ia.t1 > ia.t2 {
            return None;
        }
        if anew {
            self.held.clear();
        }
        for value in ia.values() {
            self.take_value(value, now);
        }
        self.time(ia, now);
        Some(if self.held.is_empty() { Fate::Nothing } else { Fate::Held })
    }

    fn take_value(&mut self, value: &Value, now: Duration) {
        let Some(prefix) = self.sound(value) else { return };
        self.held.retain(|held| held.prefix != prefix);
        if value.valid == 0 || self.held.len() >= MOST_VALUES {
            return;
        }
        let (preferred, valid) = (end(value.preferred, now), end(value.valid, now));
        self.held.push(Held { kind: self.want.kind, prefix, preferred, valid });
    }

    /// What may be held of what a server says: of the right kind, no special address, lifetimes in order.
    fn sound(&self, value: &Value) -> Option<Ipv6Prefix> {
        let is_address = self.want.kind == IaKind::Address;
        let right_len = if is_address { value.len == 128 } else { (8..=127).contains(&value.len) };
        let addr = value.addr;
        let special = addr.is_multicast()
            || addr.is_unicast_link_local()
            || addr.is_loopback()
            || addr.to_ipv4_mapped().is_some()
            || addr.octets()[0] == 0;
        let sound = right_len && !special && value.preferred <= value.valid;
        Ipv6Prefix::new(addr, value.len).filter(|_| sound)
    }

    /// T1 and T2; where the server leaves them to us, half and four fifths of the shortest preferred lifetime.
    fn time(&mut self, ia: &Ia, now: Duration) {
        let values = ia.values().filter(|v| v.valid > 0 && self.sound(v).is_some());
        let shortest = values.map(|v| if v.preferred > 0 { v.preferred } else { v.valid }).min();
        let Some(shortest) = shortest.map(u64::from) else { return };
        let own = |share: u64| {
            let endless = shortest == u64::from(INFINITY);
            (!endless).then(|| now + Duration::from_secs(shortest * share / 10).max(SOONEST))
        };
        let said = |seconds: u32, share| match seconds {
            0 => own(share),
            INFINITY => None,
            _ => Some(now + Duration::from_secs(seconds.into()).max(SOONEST)),
        };
        (self.renew, self.rebind) = (said(ia.t1, 5), said(ia.t2, 8));
        // One of them said and the other left to us may cross.
        self.renew = self.renew.into_iter().chain(self.rebind).min();
    }

    /// A server that has said nothing of when to ask again, or nonsense, is not asked at once.
    pub fn postpone(&mut self, now: Duration) {
        let later = |at: Option<Duration>, pause| at.map(|at| if at <= now { now + pause } else { at });
        self.renew = later(self.renew, PAUSE);
        self.rebind = later(self.rebind, 2 * PAUSE);
    }

    /// Forgets what is over; true if there was anything.
    pub fn expire(&mut self, now: Duration) -> bool {
        let before = self.held.len();
        self.held.retain(|held| held.valid.is_none_or(|until| until > now));
        self.held.len() < before
    }
}

/// An address or prefix as a client names it: lifetimes are the server's business.
fn part(prefix: Ipv6Prefix) -> Part {
    let (addr, len) = (prefix.addr(), prefix.prefix_len());
    Part::Value(Value { addr, len, preferred: 0, valid: 0, options: Vec::new() })
}

fn end(seconds: u32, now: Duration) -> Option<Duration> {
    (seconds != INFINITY).then(|| now + Duration::from_secs(seconds.into()))
}

/// What the server says of an identity association.
fn status(ia: &Ia) -> Status {
    let mut parts = ia.parts.iter();
    let found = parts.find_map(|part| if let Part::Status(status, _) = part { Some(*status) } else { None });
    found.unwrap_or(Status::Success)
}
