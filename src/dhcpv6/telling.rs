//! Reconfigure messages (RFC 8415 section 18.3.11): who is told of a change, what is said, and through which relays. Pure.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::time::Duration;

use dhcproto::v6::{DhcpOption, MessageType};

use super::audience::Place;
use super::auth;
use super::calls::Called;
use super::codec::{Message, Opt};
use super::session::Session;

/// What a client had and has not any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Whose it was.
    pub who: Called,
    /// Where it is on the link, if it is there itself and lets itself be told.
    pub reach: Option<Ipv6Addr>,
    /// For how long it would believe that it has it.
    pub lasts: Duration,
}

/// What becomes of a client whose binding the operator has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evicted {
    /// Whether it is told, and asks anew.
    pub is_told: bool,
    /// For how long it would else go on using what it had, if it did not renew it before; `None`: for ever.
    pub believes: Option<Duration>,
}

/// Clients that have bindings, each with where it is on the link if it is there itself and lets itself be told.
pub type Bound = BTreeMap<Called, Option<Ipv6Addr>>;

impl Session {
    /// Has clients asked to renew what they have, or else only to ask for information again: each is told so until it does.
    /// `now` is the time since any beginning. Says how many are told; one that does not let itself be told is not.
    pub fn call_bound(&mut self, now: Duration, bound: &Bound, renew: bool) -> usize {
        let known = |session: &Self, who: &Called| session.audience.place(session.uptime, who).cloned();
        let wanted = if renew { MessageType::Renew } else { MessageType::InformationRequest };
        let mut many = 0;
        for (who, reach) in bound {
            let Some(place) = reach.map(Place::on_link).or_else(|| known(self, who)) else { continue };
            self.call(now, who.clone(), place, wanted);
            many += 1;
        }
        many
    }

    /// Has a client asked to renew what it has no more, so that it learns that; until it does it is among those of
    /// [`Self::call_bereft`]. Says whether it can be told.
    pub fn call_loser(&mut self, now: Duration, loss: Loss) -> bool {
        let Loss { who, reach, lasts } = loss;
        let (uptime, most) = (self.uptime, self.terms.listeners);
        let place = reach.map(Place::on_link).or_else(|| self.audience.place(uptime, &who).cloned());
        let Some(place) = place.filter(|_| self.terms.reconfigure) else { return false };
        if !self.audience.bereave(uptime, &who, Some(place.clone()), lasts, most) {
            self.count("reconfigure_unlisted");
        }
        self.call(now, who, place, MessageType::Renew);
        true
    }

    /// Whether a client lets itself be told of changes, and where it is is known: `reach`, or where it was heard.
    pub fn can_tell(&self, who: &Called, reach: Option<Ipv6Addr>) -> bool {
        let is_known = || self.audience.place(self.uptime, who).is_some();
        self.terms.reconfigure && (reach.is_some() || is_known())
    }

    /// Has those asked to renew that have lost something and not asked since, in one tunnel or in all, but none of `bound`. Says
    /// how many are told.
    pub fn call_bereft(&mut self, now: Duration, tunnel: Option<&str>, bound: &Bound) -> usize {
        let all = self.audience.bereft(self.uptime, tunnel).into_iter();
        let all: Bound = all.filter(|who| !bound.contains_key(who)).map(|who| (who, None)).collect();
        self.call_bound(now, &all, true)
    }

    /// Has those asked to ask for information again that have done so before, in one tunnel or in all, but none of `bound`. Says
    /// how many are told.
    pub fn call_informed(&mut self, now: Duration, tunnel: Option<&str>, bound: &Bound) -> usize {
        let all = self.audience.informed(self.uptime, tunnel);
        let is_bereft = |who: &Called| self.audience.is_bereft(who);
        let is_other = |who: &Called| !bound.contains_key(who) && !is_bereft(who);
        let strangers: Vec<Called> = all.into_iter().filter(is_other).collect();
        let many = strangers.len();
        for who in strangers {
            if let Some(place) = self.audience.place(self.uptime, &who).cloned() {
                self.call(now, who, place, MessageType::InformationRequest);
            }
        }
        many
    }

    fn call(&mut self, now: Duration, who: Called, place: Place, wanted: MessageType) {
        if self.ring.is_none() {
            return;
        }
        // Who has not renewed yet, as it was told to, hears of everything else by that.
        let renews = self.calls.wanted(&who) == Some(MessageType::Renew);
        let called = self.calls.call(now, who, place, if renews { MessageType::Renew } else { wanted });
        self.count(if called { "reconfigure" } else { "reconfigure_too_many" });
    }

    /// What asks a client for a message of this type. Each has a number of its own: what the client has been told since may
    /// have one that is larger than the last one's.
    fn reconfigure(&mut self, who: &Called, wanted: MessageType) -> Option<Vec<u8>> {
        let clock = self.clock;
        let ring = self.ring.as_mut()?;
        let (key, replay) = (ring.key(&who.tunnel, &who.client), ring.next(clock));
        let options = vec![
            Opt::Leaf(DhcpOption::ClientId(who.client.to_vec())),
            Opt::Leaf(DhcpOption::ServerId(self.terms.duid.clone())),
            Opt::Leaf(DhcpOption::ReconfMsg(wanted)),
            auth::call_option(replay),
        ];
        let mut octets = Message { kind: MessageType::Reconfigure, xid: [0; 3], options }.emit();
        auth::sign(&mut octets, &key);
        Some(octets)
    }

    /// The next Reconfigure message that is due: for whom, to which address and port, and what. It leaves once
    /// [`Self::keep_ring`] has been asked.
    pub fn poll_call(&mut self, now: Duration) -> Option<(Called, (Ipv6Addr, u16), Vec<u8>)> {
        let next = self.calls.poll_call(now);
        self.counts.insert("reconfigure_unheard", self.calls.unheard);
        for who in self.calls.poll_given_up() {
            self.audience.drop_out(&who);
        }
        let (who, place, wanted) = next?;
        let octets = self.reconfigure(&who, wanted)?;
        Some((who, (place.to, place.port), place.wrap(octets)))
    }

    /// A client is not told any more: its tunnel is gone.
    pub fn call_off(&mut self, who: &Called) {
        self.calls.call_off(who);
    }

    /// A tunnel or link is gone, and with it all that is known of where its clients are.
    pub fn leave(&mut self, tunnel: &str) {
        self.audience.leave(tunnel);
    }

    /// The same of all tunnels and links that are not `there`.
    pub fn leave_all_but(&mut self, there: impl Fn(&str) -> bool) {
        self.audience.leave_all_but(there);
    }

    /// How many clients are known that no binding leads to.
    pub fn listeners(&self) -> usize {
        self.audience.len()
    }

    /// When the next is due.
    pub fn poll_call_timeout(&self) -> Option<Duration> {
        self.calls.poll_timeout()
    }
}
