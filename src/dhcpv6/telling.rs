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

    /// Has those asked to ask for information again that have done so before, in one tunnel or in all, but none of `bound`. Says
    /// how many are told.
    pub fn call_informed(&mut self, now: Duration, tunnel: Option<&str>, bound: &Bound) -> usize {
        let all = self.audience.informed(self.uptime, tunnel);
        let strangers: Vec<Called> = all.into_iter().filter(|who| !bound.contains_key(who)).collect();
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
