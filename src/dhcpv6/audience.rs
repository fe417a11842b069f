//! Clients that let themselves be told of changes and that no binding leads to: those behind relays, those that have asked for
//! information alone, and those that have lost what they had and do not know it yet (RFC 8415 section 18.3.11). Pure;
//! in memory only: after a restart they are known when they ask again.
//!
//! Bounded in all and in each tunnel, where the one that was heard least recently makes room; who is not heard in time is
//! forgotten, and whose tunnel is gone. `now` is the time since any beginning.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Duration;

use super::calls::Called;
use super::codec::{CLIENT_PORT, SERVER_PORT};
use super::relayed::{Relays, wrap};

/// The most clients that are known.
pub const MOST: usize = 16_384;
/// How often those are looked for that need not be known any more, at most.
const SWEPT: Duration = Duration::from_secs(1);
/// The most octets of what relays must find again around a message: a longer way is not kept.
pub const LONGEST_WAY: usize = 512;

/// Where a client is: whom a message for it is sent to, and what relays must find around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The client, or the relay that is nearest.
    pub to: Ipv6Addr,
    /// The port that it listens on.
    pub port: u16,
    way: Relays,
}

impl Place {
    /// On the link itself.
    pub fn on_link(to: Ipv6Addr) -> Self {
        Self { to, port: CLIENT_PORT, way: Relays::default() }
    }

    /// Where a message has come from: from this address and port, through these relays. `None` if that is a long way.
    pub fn of((from, port): (Ipv6Addr, u16), relays: &Relays) -> Option<Self> {
        if relays.is_empty() {
            return Some(Self::on_link(from));
        }
        let way = relays.way_back();
        let is_short = wrap(&way, Vec::new()).len() <= LONGEST_WAY;
        let port = if relays.listen_on_own_port() { port } else { SERVER_PORT };
        is_short.then_some(Self { to: from, port, way })
    }

    /// The message as it leaves.
    pub fn wrap(&self, octets: Vec<u8>) -> Vec<u8> {
        wrap(&self.way, octets)
    }
}

#[derive(Debug)]
struct Listener {
    place: Place,
    heard: Duration,
    until: Duration,
    informed: bool,
    /// Whether it has lost something and has not asked since.
    bereft: bool,
}

/// The clients of one tunnel.
#[derive(Debug, Default)]
struct Room {
    all: HashMap<Arc<[u8]>, Listener>,
    by_age: BTreeSet<(Duration, Arc<[u8]>)>,
}

impl Room {
    fn take(&mut self, client: &[u8]) -> Option<Listener> {
        let old = self.all.remove(client)?;
        self.by_age.remove(&(old.heard, client.into()));
        Some(old)
    }
}

/// All of them.
#[derive(Debug, Default)]
pub struct Audience {
    rooms: HashMap<Arc<str>, Room>,
    len: usize,
    swept: Option<Duration>,
}

impl Audience {
    /// A client has been heard at `place`, and is remembered for so long; `informs`: it has asked for information alone. At most
    /// `most` clients of one tunnel are. Says no where there are [`MOST`] in all.
    pub fn hear(
        &mut self,
        now: Duration,
        who: &Called,
        (place, informs): (Place, bool),
        lasts: Duration,
        most: usize,
    ) -> bool {
        let before = self.forget(who);
        if let Some(room) = self.rooms.get_mut(&who.tunnel)
            && room.all.len() >= most.max(1)
            && let Some((_, oldest)) = room.by_age.pop_first()
        {
            room.all.remove(&oldest);
            self.len -= 1;
        }
        if self.len >= MOST && self.swept.is_none_or(|at| now >= at + SWEPT) {
            self.sweep(now);
        }
        if self.len >= MOST {
            return false;
        }
        let room = self.rooms.entry(who.tunnel.clone()).or_default();
        let until = now.saturating_add(lasts).max(before.as_ref().map_or(now, |old| old.until));
        // Who asks for information alone learns nothing of what was taken from it.
        let bereft = informs && before.as_ref().is_some_and(|old| old.bereft);
        let informed = informs || before.is_some_and(|old| old.informed);
        room.by_age.insert((now, who.client.clone()));
        room.all.insert(who.client.clone(), Listener { place, heard: now, until, informed, bereft });
        self.len += 1;
        true
    }

    /// What a client had was taken from it; it would believe that it has it for so long. It is at `place`, or where it was heard
    /// before. Says no where neither is known, and where there are [`MOST`] in all.
    pub fn bereave(
        &mut self,
        now: Duration,
        who: &Called,
        place: Option<Place>,
        lasts: Duration,
        most: usize,
    ) -> bool {
        let Some(place) = place.or_else(|| self.place(now, who).cloned()) else { return false };
        let is_known = self.hear(now, who, (place, false), lasts, most);
        self.one(who).into_iter().for_each(|one| one.bereft = true);
        is_known
    }

    /// A client has asked for what it had, or for something new: it knows.
    pub fn console(&mut self, who: &Called) {
        self.one(who).into_iter().for_each(|one| one.bereft = false);
    }

    fn one(&mut self, who: &Called) -> Option<&mut Listener> {
        self.rooms.get_mut(&who.tunnel)?.all.get_mut(&who.client)
    }

    /// A client does not let itself be told any more, or cannot be reached. Says whether it was known.
    pub fn drop_out(&mut self, who: &Called) -> bool {
        self.forget(who).is_some()
    }

    /// A tunnel is gone, and nobody is in it any more.
    pub fn leave(&mut self, tunnel: &str) {
        self.len -= self.rooms.remove(tunnel).map_or(0, |room| room.all.len());
    }

    /// The same of all tunnels that are not `there`.
    pub fn leave_all_but(&mut self, there: impl Fn(&str) -> bool) {
        self.rooms.retain(|name, _| there(name));
        self.len = self.rooms.values().map(|room| room.all.len()).sum();
    }

    fn forget(&mut self, who: &Called) -> Option<Listener> {
        let room = self.rooms.get_mut(&who.tunnel)?;
        let old = room.take(&who.client)?;
        self.len -= 1;
        if room.all.is_empty() {
            self.rooms.remove(&who.tunnel);
        }
        Some(old)
    }

    /// To look at all of them costs: strangers cannot make it happen more often than [`SWEPT`].
    fn sweep(&mut self, now: Duration) {
        self.swept = Some(now);
        self.rooms.retain(|_, room| {
            room.all.retain(|_, one| one.until > now);
            let all = &room.all;
            room.by_age.retain(|(_, client)| all.contains_key(client));
            !room.all.is_empty()
        });
        self.len = self.rooms.values().map(|room| room.all.len()).sum();
    }

    /// Whether a client is known, however long ago it was heard.
    pub fn knows(&self, who: &Called) -> bool {
        self.rooms.get(&who.tunnel).is_some_and(|room| room.all.contains_key(&who.client))
    }

    /// Where a client is now, if it is known.
    pub fn place(&self, now: Duration, who: &Called) -> Option<&Place> {
        let one = self.rooms.get(&who.tunnel)?.all.get(&who.client)?;
        (one.until > now).then_some(&one.place)
    }

    /// Those that have asked for information, in one tunnel or in all.
    pub fn informed(&self, now: Duration, tunnel: Option<&str>) -> Vec<Called> {
        self.those(now, tunnel, |one| one.informed)
    }

    /// Those that have lost something and do not know it, in one tunnel or in all.
    pub fn bereft(&self, now: Duration, tunnel: Option<&str>) -> Vec<Called> {
        self.those(now, tunnel, |one| one.bereft)
    }

    /// Whether a client has lost something and does not know it.
    pub fn is_bereft(&self, who: &Called) -> bool {
        self.rooms.get(&who.tunnel).and_then(|room| room.all.get(&who.client)).is_some_and(|one| one.bereft)
    }

    fn those(&self, now: Duration, tunnel: Option<&str>, which: impl Fn(&Listener) -> bool) -> Vec<Called> {
        let here = |name: &str| tunnel.is_none_or(|tunnel| name == tunnel);
        let rooms = self.rooms.iter().filter(|(name, _)| here(name));
        let all =
            rooms.flat_map(|(name, room)| room.all.iter().map(move |(client, one)| (name, client, one)));
        let all = all.filter(|(.., one)| which(one) && one.until > now);
        all.map(|(tunnel, client, _)| Called { tunnel: tunnel.clone(), client: client.clone() }).collect()
    }

    /// How many are known.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nobody is.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(tunnel: &str, n: u32) -> Called {
        Called { tunnel: tunnel.into(), client: n.to_be_bytes().into() }
    }

    fn here() -> Place {
        Place::on_link(Ipv6Addr::LOCALHOST)
    }

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn a_tunnel_has_so_many_and_who_was_heard_last_stays() {
        let mut all = Audience::default();
        for n in 0..3 {
            assert!(all.hear(S * n, &who("t", n), (here(), true), S * 100, 3));
        }
        assert!(all.hear(S * 5, &who("t", 0), (here(), false), S, 3), "heard again");
        assert!(all.hear(S * 6, &who("t", 9), (here(), true), S * 100, 3));
        assert!(all.hear(S * 6, &who("u", 1), (here(), true), S * 100, 3), "another tunnel has its own");
        let known: Vec<bool> = [0, 1, 2, 9].map(|n| all.knows(&who("t", n))).to_vec();
        assert_eq!((known, all.len()), (vec![true, false, true, true], 4));
        assert_eq!(all.informed(S * 7, Some("t")).len(), 3, "what was asked once is not unasked");
        assert_eq!(all.informed(S * 7, None).len(), 4);
        assert_eq!(all.informed(S * 101, None).len(), 3, "who is not heard in time is forgotten");
        assert!(all.place(S * 99, &who("t", 0)).is_some() && all.place(S * 100, &who("t", 0)).is_none());
        assert!(all.drop_out(&who("u", 1)) && !all.drop_out(&who("u", 1)));
        assert_eq!(all.len(), 3);
    }

    #[test]
    fn who_is_in_a_tunnel_goes_with_it() {
        let mut all = Audience::default();
        for n in 0..6 {
            all.hear(S, &who(["t", "u", "v"][n as usize % 3], n), (here(), true), S * 100, 9);
        }
        all.leave("t");
        all.leave("t");
        assert_eq!((all.len(), all.knows(&who("t", 0)), all.knows(&who("u", 1))), (4, false, true));
        all.leave_all_but(|name| name == "v");
        assert_eq!((all.len(), all.knows(&who("u", 1)), all.knows(&who("v", 2))), (2, false, true));
    }

    #[test]
    fn who_has_lost_something_is_known_until_it_asks() {
        let (mut all, t) = (Audience::default(), Some("t"));
        assert!(!all.bereave(S, &who("t", 1), None, S * 100, 3), "nobody knows where it is");
        assert!(all.bereave(S, &who("t", 1), Some(here()), S * 100, 3));
        assert_eq!((all.bereft(S * 2, t), all.informed(S * 2, t)), (vec![who("t", 1)], vec![]));
        assert!(all.hear(S * 3, &who("t", 1), (here(), true), S * 9, 3), "it asks for information alone");
        assert_eq!((all.bereft(S * 99, None).len(), all.bereft(S * 101, None).len()), (1, 0));
        all.console(&who("t", 1));
        assert!(all.bereft(S * 4, t).is_empty() && all.knows(&who("t", 1)));
        assert!(all.bereave(S * 5, &who("t", 1), None, S, 3), "where it was heard before");
        assert!(all.hear(S * 6, &who("t", 1), (here(), false), S * 9, 3), "it is given something");
        assert!(all.bereft(S * 6, t).is_empty() && all.bereft(S * 6, Some("u")).is_empty());
    }

    #[test]
    fn there_are_bounds_and_the_old_make_room() {
        let mut all = Audience::default();
        let long = MOST as u32;
        for n in 0..long {
            let lasts = if n % 2 == 0 { S } else { S * 1000 };
            assert!(all.hear(Duration::ZERO, &who(&(n % 64).to_string(), n), (here(), true), lasts, MOST));
        }
        assert!(!all.hear(Duration::ZERO, &who("late", long), (here(), true), S, MOST));
        assert_eq!(all.len(), MOST);
        assert!(all.hear(S * 2, &who("late", long), (here(), true), S, MOST), "half of them are too old");
        assert_eq!(all.len(), MOST / 2 + 1);
    }
}
