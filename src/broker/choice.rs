//! What a wish is given, and who gives way to it: worked out first, done then. An offer stands in between: whoever would give
//! way to it stays until it is taken.
//!
//! Pure, as all of the broker is. Nobody in particular (an anonymous client) takes nothing from anybody but from others of
//! his kind who were never heard, and nothing is kept in mind for him: his address may be forged.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use sixway_dataplane::update::{Ipv6Prefix, Outer};

use super::lease::{Broker, Hearing, peer};
use super::{
    Account, End, Grant, Keep, LeaseId, Limits, NetworkWish, Outcome, PairPlace, PoolKind, Record, Refusal,
    Route, Time, UserName, Wish,
};

/// What a wish will be given, worked out and not yet given.
pub(super) struct Choice {
    pub(super) places: Vec<(usize, u32)>,
    pub(super) own: Vec<Ipv6Prefix>,
    /// What clients in the account's other tunnels have of it, which they lose.
    unbound: Vec<Ipv6Prefix>,
    pub(super) pair: Option<(usize, u32)>,
    victims: BTreeSet<LeaseId>,
}

/// What came of a wish that its client has yet to accept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Offered {
    /// Nobody has to give way to it: it is granted.
    Granted(Grant),
    /// Others give way to it when it is taken ([`Broker::take_offered`]); until then they stay. Its number is not a lease's.
    Waiting(Grant),
    /// Nobody in particular asks again for the tunnel that is there: this one, and nothing has changed.
    Same(Grant),
}

impl Broker {
    /// Gives what is wished for.
    ///
    /// Leases that must give way to it (the account's oldest, or one between the same outer endpoints) end with it.
    ///
    /// # Errors
    /// Why not; nothing has changed then.
    pub fn grant(&mut self, now: Time, wish: &Wish) -> Result<(Grant, Outcome), Refusal> {
        self.grant_at(now, wish, None)
    }

    /// The same, with exactly this address pair if one is wished for and `at` says which: a protocol may have its own
    /// rule for that.
    ///
    /// # Errors
    /// Why not; nothing has changed then.
    pub fn grant_at(
        &mut self,
        now: Time,
        wish: &Wish,
        at: Option<PairPlace>,
    ) -> Result<(Grant, Outcome), Refusal> {
        let choice = self.weigh(wish, at)?;
        Ok(self.give(now, wish, &choice))
    }

    /// Offers what is wished for: granted at once where nobody has to give way to it. Else it is only put in mind for its
    /// account, and [`Self::take_offered`] makes it true.
    ///
    /// # Errors
    /// Why not; nothing has changed then.
    pub fn offer_tunnel(&mut self, now: Time, wish: &Wish) -> Result<(Offered, Outcome), Refusal> {
        if let Some(same) = self.same(wish) {
            return Ok((Offered::Same(same), Outcome::default()));
        }
        let choice = self.weigh(wish, None)?;
        let nobody_loses = choice.victims.is_empty() && choice.unbound.is_empty();
        if nobody_loses || wish.user.is_anonymous() {
            let (grant, outcome) = self.give(now, wish, &choice);
            return Ok((Offered::Granted(grant), outcome));
        }
        let grant = self.lease(now, wish, &choice).grant;
        let places: Vec<_> = choice.places.iter().chain(&choice.pair).copied().collect();
        let records = places.into_iter().filter_map(|(pool, n)| self.reserve(pool, n, &wish.user, now));
        Ok((Offered::Waiting(grant), Outcome { records: records.collect(), routes: Vec::new() }))
    }

    /// What was offered is accepted: it is granted, and who gives way to it ends.
    ///
    /// # Errors
    /// Why not, such as [`Refusal::Taken`] where others were given what was offered; nothing has changed then.
    pub fn take_offered(
        &mut self,
        now: Time,
        wish: &Wish,
        offered: &Grant,
    ) -> Result<(Grant, Outcome), Refusal> {
        let choice = self.weigh(wish, None)?;
        let now_given = self.lease(now, wish, &choice).grant;
        if let Some(lost) = offered.prefixes().find(|prefix| now_given.prefixes().all(|p| p != *prefix)) {
            return Err(Refusal::Taken(lost));
        }
        if let Some(renewed) = self.confirm(now, wish, &choice, &now_given) {
            return Ok(renewed);
        }
        Ok(self.give(now, wish, &choice))
    }

    /// The tunnel that is there is just the one that is wanted: it goes on, and what clients have in it.
    fn confirm(
        &mut self,
        now: Time,
        wish: &Wish,
        choice: &Choice,
        wanted: &Grant,
    ) -> Option<(Grant, Outcome)> {
        let [id] = choice.victims.iter().copied().collect::<Vec<_>>()[..] else { return None };
        let lease = self.leases.get(&id)?;
        let Keep::WhileHeard { lasts, told, .. } = wish.keep else { return None };
        let (name, expires) = (lease.grant.name.clone(), lease.grant.expires);
        let same = Grant { lease: id, name, expires, ..wanted.clone() };
        if lease.grant != same || lease.told != told || expires.is_none() {
            return None;
        }
        let (_, outcome) = self.renew(now, id, lasts).ok()?;
        Some((self.leases.get(&id)?.grant.clone(), outcome))
    }

    /// Who must give way, and what is given; nothing has changed yet.
    fn weigh(&mut self, wish: &Wish, at: Option<PairPlace>) -> Result<Choice, Refusal> {
        // Its account may have gone since it was proven.
        let account = self.accounts.find(&wish.user).ok_or(Refusal::LoginFailed)?;
        let mut victims = self.victims(wish);
        self.check_endpoint(wish, &victims)?;
        self.check_address(wish, &victims)?;
        self.check_anonymous(wish, &mut victims)?;
        self.choose(&account, wish, at, victims)
    }

    fn give(&mut self, now: Time, wish: &Wish, choice: &Choice) -> (Grant, Outcome) {
        let mut outcome = Outcome::default();
        for id in &choice.victims {
            outcome.append(self.end(now, *id, End::Superseded));
        }
        for prefix in &choice.unbound {
            outcome.append(self.unbind(now, *prefix, End::Superseded));
        }
        let lease = self.lease(now, wish, choice);
        for (pool, n) in choice.places.iter().chain(&choice.pair) {
            outcome.records.extend(self.occupy(*pool, *n, &wish.user, now));
        }
        outcome.records.push(Record::Lease(lease.clone()));
        outcome.routes.push(Route::Up(lease.grant.clone()));
        let grant = lease.grant.clone();
        self.enter(lease);
        (grant, outcome)
    }

    /// The tunnel that an anonymous client has between just these endpoints. Whoever asks for it again, forged or not, is told
    /// of it and ends nothing.
    fn same(&self, wish: &Wish) -> Option<Grant> {
        let leases = self.by_user.get(&wish.user).filter(|_| wish.user.is_anonymous())?;
        let all = leases.iter().filter_map(|id| self.leases.get(id));
        all.map(|lease| &lease.grant).find(|grant| clashes(&grant.outer, &wish.outer)).cloned()
    }

    /// Who must give way: of this account the same client's older tunnel, then the oldest beyond what it may have; and
    /// whoever has the same outer endpoints.
    fn victims(&self, wish: &Wish) -> BTreeSet<LeaseId> {
        let own = self.leases_of(&wish.user);
        // Nobody in particular makes nobody in particular give way: they may be two.
        let nobody = wish.user.is_anonymous();
        let limit = if nobody { u32::MAX } else { self.terms.limits.tunnels_per_account };
        let most = (limit as usize).max(1);
        let back = |id: &LeaseId| !nobody && self.is_same_client(*id, wish);
        let (back, others): (Vec<LeaseId>, Vec<LeaseId>) = own.into_iter().partition(back);
        let beyond = (others.len() + 1).saturating_sub(most);
        let mut victims: BTreeSet<LeaseId> =
            back.into_iter().chain(others.into_iter().take(beyond)).collect();
        let here = peer(&wish.outer).and_then(|at| self.by_address.get(&at)).into_iter().flatten();
        let same =
            |id: &&LeaseId| self.leases.get(id).is_some_and(|lease| clashes(&lease.grant.outer, &wish.outer));
        victims.extend(here.filter(same));
        victims
    }

    /// Whether it is the tunnel of a host that comes back: seen at the same address, and by its own account at the same.
    fn is_same_client(&self, id: LeaseId, wish: &Wish) -> bool {
        let Keep::WhileHeard { told, .. } = wish.keep else { return false };
        let Some(lease) = self.leases.get(&id) else { return false };
        told.claimed.is_some()
            && lease.told.claimed == told.claimed
            && lease.protocol == wish.protocol
            && peer(&lease.grant.outer) == peer(&wish.outer)
    }

    /// A tunnel that lives loses its endpoint to no other account, and an address that was not seen to be the asker's is
    /// taken from nobody.
    fn check_endpoint(&self, wish: &Wish, victims: &BTreeSet<LeaseId>) -> Result<(), Refusal> {
        let Keep::WhileHeard { proven, .. } = wish.keep else { return Ok(()) };
        let lives = |id: &LeaseId| {
            let Some(lease) = self.leases.get(id) else { return false };
            let gives_way = lease.grant.user == wish.user || (proven && lease.grant.user.is_anonymous());
            !gives_way && self.hearing(*id) != Hearing::Silent
        };
        if victims.iter().any(lives) { Err(Refusal::EndpointTaken) } else { Ok(()) }
    }

    fn check_address(&self, wish: &Wish, victims: &BTreeSet<LeaseId>) -> Result<(), Refusal> {
        let Some(peer) = peer(&wish.outer) else { return Ok(()) };
        let most = self.terms.limits.tunnels_per_address;
        let here = self.by_address.get(&peer).into_iter().flatten().filter(|id| !victims.contains(id));
        if here.count() >= most as usize {
            return Err(Refusal::TooManyTunnels { peer, most });
        }
        Ok(())
    }

    /// Anonymous clients have a quota of their own, and take no endpoint from anybody else: theirs may be forged. Where the
    /// quota is used up, those give way through whose tunnels nothing has ever come.
    fn check_anonymous(&self, wish: &Wish, victims: &mut BTreeSet<LeaseId>) -> Result<(), Refusal> {
        if !wish.user.is_anonymous() {
            return Ok(());
        }
        let is_own = |id: &LeaseId| self.leases.get(id).is_some_and(|lease| lease.grant.user == wish.user);
        if !victims.iter().all(is_own) {
            return Err(Refusal::EndpointTaken);
        }
        let Limits { anonymous_tunnels, anonymous_per_address, .. } = self.terms.limits;
        let own = self.by_user.get(&wish.user);
        if own.map_or(0, BTreeSet::len) - victims.len() >= anonymous_per_address as usize {
            let quiet = |id: &&LeaseId| !victims.contains(id) && self.hearing(**id) != Hearing::Lately;
            let gone = own.into_iter().flatten().find(quiet);
            victims.insert(*gone.ok_or(Refusal::TooManyAnonymous {
                most: anonymous_per_address,
                key: "anonymous_per_address",
            })?);
        }
        if (self.anonymous as usize).saturating_sub(victims.len()) >= anonymous_tunnels as usize {
            let gone = self.strangers.iter().find(|id| !victims.contains(id));
            victims.insert(
                *gone
                    .ok_or(Refusal::TooManyAnonymous { most: anonymous_tunnels, key: "anonymous_tunnels" })?,
            );
        }
        Ok(())
    }

    fn choose(
        &mut self,
        account: &Account,
        wish: &Wish,
        at: Option<PairPlace>,
        mut victims: BTreeSet<LeaseId>,
    ) -> Result<Choice, Refusal> {
        let (mut places, mut own, mut unbound, mut pair) = (Vec::new(), Vec::new(), Vec::new(), None);
        if let Some(network) = wish.wants.network {
            own = own_networks(account, network);
            if own.is_empty() && network != NetworkWish::Own {
                places.push(self.choose_network(account, network, &victims)?);
            }
            unbound = self.claim_own(account, &own, &mut victims)?;
        }
        if wish.wants.pair {
            pair = Some(self.choose_pair(account, at, &victims)?);
        }
        Ok(Choice { places, own, unbound, pair, victims })
    }

    /// What is set aside for an account is taken from its older tunnel, and from clients in its tunnels, but from nobody
    /// else. Returns what clients are to lose.
    fn claim_own(
        &self,
        account: &Account,
        own: &[Ipv6Prefix],
        victims: &mut BTreeSet<LeaseId>,
    ) -> Result<Vec<Ipv6Prefix>, Refusal> {
        let mut unbound = Vec::new();
        for prefix in own {
            for binding in self.bindings.all_meeting(*prefix) {
                if binding.owner != account.name {
                    return Err(Refusal::Taken(*prefix));
                }
                unbound.push(binding.prefix);
            }
            let Some(holder) = self.held.get(prefix).filter(|id| !victims.contains(id)) else { continue };
            match self.leases.get(holder) {
                Some(lease) if lease.grant.user != account.name => return Err(Refusal::Taken(*prefix)),
                Some(_) | None => drop(victims.insert(*holder)),
            }
        }
        Ok(unbound)
    }

    fn choose_network(
        &mut self,
        account: &Account,
        wanted: NetworkWish,
        victims: &BTreeSet<LeaseId>,
    ) -> Result<(usize, u32), Refusal> {
        let lens = self.pools.iter().enumerate().filter_map(|(at, places)| match places.pool().kind {
            PoolKind::Networks(len) => Some((at, len)),
            PoolKind::Pairs | PoolKind::Addresses => None,
        });
        let fitting: Vec<(usize, u8)> = match wanted {
            NetworkWish::Length(len) => lens.filter(|(_, l)| *l == len).collect(),
            NetworkWish::Any | NetworkWish::Own => {
                let all: Vec<_> = lens.collect();
                let first = all.first().map(|(_, len)| *len);
                all.into_iter().filter(|(_, len)| Some(*len) == first).collect()
            }
        };
        let fitting: Vec<usize> = fitting.into_iter().map(|(at, _)| at).collect();
        let nothing =
            "the account has no such network of its own, and there is no [[pool]] that gives one out";
        self.choose_place(&fitting, account, victims, nothing)
    }

    fn choose_pair(
        &mut self,
        account: &Account,
        at: Option<PairPlace>,
        victims: &BTreeSet<LeaseId>,
    ) -> Result<(usize, u32), Refusal> {
        let pools = self.pools.iter().enumerate();
        let wanted =
            |pool: super::Pool| pool.kind == PoolKind::Pairs && at.is_none_or(|at| at.pool == pool.prefix);
        let pairs: Vec<usize> = pools.filter(|(_, p)| wanted(p.pool())).map(|(n, _)| n).collect();
        let number = at.map(|at| at.number).or(account.pair);
        let Some((pinned, pool)) = number.zip(pairs.first().copied()) else {
            return self.choose_place(&pairs, account, victims, "there is no [[pool]] of address pairs");
        };
        if self.may_have(pool, pinned, victims) {
            return Ok((pool, pinned));
        }
        Err(Refusal::Taken(self.pools[pool].pool().place(pinned)))
    }

    /// What the account's own older tunnel gives up, its place of before, a new one, or the one unused for longest.
    fn choose_place(
        &mut self,
        pools: &[usize],
        account: &Account,
        victims: &BTreeSet<LeaseId>,
        nothing: &'static str,
    ) -> Result<(usize, u32), Refusal> {
        let given_up = |at: usize, n: u32| self.may_have(at, n, victims) && !self.pools[at].is_open(n);
        let open = |at: usize, n: u32| self.pools[at].is_open(n);
        let own = |may: &dyn Fn(usize, u32) -> bool| {
            pools
                .iter()
                .find_map(|at| self.pools[*at].of(&account.name).find(|n| may(*at, *n)).map(|n| (*at, n)))
        };
        if let Some(place) = own(&given_up).or_else(|| own(&open)) {
            return Ok(place);
        }
        for at in pools {
            if let Some(n) = self.pools[*at].fresh() {
                return Ok((*at, n));
            }
        }
        // What is in mind for accounts is not for whoever does not even say who he is.
        let may_be_taken = !account.name.is_anonymous();
        let idle = pools.iter().filter(|_| may_be_taken);
        let idle = idle.filter_map(|at| Some((*at, self.pools[*at].longest_idle()?))).next();
        let all = pools.first().map(|at| self.pools[*at].pool().prefix);
        idle.ok_or(all.map_or(Refusal::NothingToGive(nothing), Refusal::Exhausted))
    }

    fn may_have(&self, pool: usize, n: u32, victims: &BTreeSet<LeaseId>) -> bool {
        let places = &self.pools[pool];
        let holder = self.held.get(&places.pool().place(n));
        places.is_open(n) || (places.is_within(n) && holder.is_some_and(|id| victims.contains(id)))
    }

    pub(super) fn occupy(&mut self, pool: usize, n: u32, user: &UserName, now: Time) -> Option<Record> {
        let places = &mut self.pools[pool];
        let known = places.user(n) == Some(user) || user.is_anonymous();
        places.assign(n, Some(user.clone()), true, now);
        let prefix = places.pool().place(n);
        (!known).then(|| Record::Assigned { prefix, user: Some(user.clone()), since: now })
    }

    /// A place that is offered is in mind for whoever may take it: it is the last that anybody else is given.
    fn reserve(&mut self, pool: usize, n: u32, user: &UserName, now: Time) -> Option<Record> {
        let places = &mut self.pools[pool];
        if !places.is_open(n) {
            return None;
        }
        let known = places.user(n) == Some(user);
        places.assign(n, Some(user.clone()), false, now);
        let prefix = places.pool().place(n);
        (!known).then(|| Record::Assigned { prefix, user: Some(user.clone()), since: now })
    }
}

fn own_networks(account: &Account, wanted: NetworkWish) -> Vec<Ipv6Prefix> {
    let fits = |prefix: &&Ipv6Prefix| match wanted {
        NetworkWish::Any | NetworkWish::Own => true,
        NetworkWish::Length(len) => prefix.prefix_len() == len,
    };
    account.prefixes.iter().filter(fits).copied().collect()
}

/// Whether packets of the two could not be told apart.
fn clashes(a: &Outer, b: &Outer) -> bool {
    let meet = |a: Option<Ipv4Addr>, b: Option<Ipv4Addr>| a.is_none() || b.is_none() || a == b;
    match (a, b) {
        (Outer::Proto41 { local: la, remote: ra }, Outer::Proto41 { local: lb, remote: rb }) => {
            ra == rb && meet(*la, *lb)
        }
        (Outer::Udp { local: la, remote: ra }, Outer::Udp { local: lb, remote: rb }) => {
            let same = ra.endpoint().is_some_and(|at| rb.endpoint() == Some(at));
            same && la.port == lb.port && meet(la.addr, lb.addr)
        }
        (Outer::Proto41 { .. }, Outer::Udp { .. }) | (Outer::Udp { .. }, Outer::Proto41 { .. }) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use zeroize::Zeroizing;

    use super::*;
    use crate::broker::{
        Accounts, Fate, Lease, Mechanisms, Memory, Pool, Protocol, Secret, Terms, Told, Wants,
    };

    const HERE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
    const NOW: Time = Time(1000);

    fn named(name: &str) -> UserName {
        UserName::parse(name).unwrap()
    }

    fn broker(limits: Limits) -> Broker {
        let pool = |text: &str, kind| Pool { prefix: text.parse().unwrap(), kind };
        let pools =
            vec![pool("2001:db8:f::/64", PoolKind::Pairs), pool("2001:db8::/40", PoolKind::Networks(56))];
        let mut broker = Broker::new(Accounts::new([1; 16]), Terms { pools, fences: Vec::new(), limits });
        let account = |name: &str| Account {
            name: named(name),
            secret: Secret::parse(Zeroizing::new(b"hush".to_vec())).unwrap(),
            prefixes: Vec::new(),
            pair: None,
            mechanisms: Mechanisms::ANY,
        };
        let accounts = ["alice", "mallory"].map(account).into();
        broker.recall(NOW, Memory { accounts, ..Memory::default() });
        broker
    }

    fn wish(user: UserName, at: Ipv4Addr) -> Wish {
        let told = Told { keepalive: 30, claimed: Some(at) };
        Wish {
            user,
            protocol: Protocol::Tsp,
            outer: Outer::Proto41 { local: None, remote: at },
            mtu: 1280,
            wants: Wants { pair: true, network: None },
            keep: Keep::WhileHeard { lasts: Duration::from_secs(1000), told, proven: true },
        }
    }

    fn nobody(n: u32) -> Wish {
        let at = Ipv4Addr::from(0x0a00_0000 + n);
        wish(UserName::anonymous(at), at)
    }

    fn granted(broker: &mut Broker, wish: &Wish) -> Grant {
        match broker.offer_tunnel(NOW, wish).unwrap().0 {
            Offered::Granted(grant) => grant,
            other @ (Offered::Waiting(_) | Offered::Same(_)) => panic!("{other:?}"),
        }
    }

    fn notes(broker: &mut Broker, hearing: impl Fn(&Lease) -> Hearing) {
        assert!(broker.patrol(NOW, Protocol::Tsp, |lease| (Fate::Stay, hearing(lease))).is_empty());
    }

    fn ids(broker: &Broker) -> Vec<LeaseId> {
        let mut all: Vec<_> = broker.leases.keys().copied().collect();
        all.sort_unstable();
        all
    }

    #[test]
    fn forgers_without_a_name_leave_everybody_what_is_in_mind_for_him() {
        let mut broker = broker(Limits::default());
        let alice = granted(&mut broker, &wish(named("alice"), HERE));
        broker.end(NOW, alice.lease, End::Released);
        for n in 0..40_000 {
            let (Offered::Granted(grant), made) = broker.offer_tunnel(NOW, &nobody(n)).unwrap() else {
                panic!()
            };
            let gone = broker.end(NOW, grant.lease, End::Released);
            let records = made.records.iter().chain(&gone.records);
            assert!(records.into_iter().all(|record| !matches!(record, Record::Assigned { .. })));
        }
        assert_eq!(granted(&mut broker, &wish(named("alice"), HERE)).pair, alice.pair);
        assert_eq!(broker.pools[0].known().count(), 1, "nothing is in mind for the others");
    }

    #[test]
    fn idle_places_of_accounts_are_not_for_whoever_has_no_name() {
        let limits = Limits { anonymous_tunnels: 1_000_000, ..Limits::default() };
        let mut broker = broker(limits);
        let alice = granted(&mut broker, &wish(named("alice"), HERE));
        broker.end(NOW, alice.lease, End::Released);
        let full = (0..).find_map(|n| broker.offer_tunnel(NOW, &nobody(n)).err()).unwrap();
        assert!(matches!(full, Refusal::Exhausted(_)), "{full}");
        assert_eq!(granted(&mut broker, &wish(named("alice"), HERE)).pair, alice.pair);
    }

    #[test]
    fn a_full_quota_makes_room_of_those_who_were_never_heard() {
        let mut broker = broker(Limits { anonymous_tunnels: 3, ..Limits::default() });
        let all: Vec<_> = (0..3).map(|n| granted(&mut broker, &nobody(n)).lease).collect();
        assert!(
            matches!(broker.offer_tunnel(NOW, &nobody(9)), Err(Refusal::TooManyAnonymous { .. })),
            "new ones stay"
        );
        let heard = all[0];
        notes(
            &mut broker,
            |lease| {
                if lease.grant.lease == heard { Hearing::Lately } else { Hearing::NotYet }
            },
        );
        let new: Vec<_> = [9, 10].map(|n| granted(&mut broker, &nobody(n)).lease).into();
        assert_eq!(ids(&broker), [heard, new[0], new[1]]);
        assert!(broker.offer_tunnel(NOW, &nobody(11)).is_err(), "they have had no time yet");
    }

    #[test]
    fn an_address_has_room_again_where_its_tunnels_have_fallen_silent() {
        let mut broker = broker(Limits { anonymous_per_address: 1, ..Limits::default() });
        let at = |port: u16| {
            let remote = std::net::SocketAddrV4::new(HERE, port);
            let outer = Outer::Udp {
                local: sixway_dataplane::update::UdpLocal { addr: None, port: 3653 },
                remote: sixway_dataplane::update::UdpRemote::Learned(Some(remote)),
            };
            Wish { outer, ..wish(UserName::anonymous(HERE), HERE) }
        };
        granted(&mut broker, &at(1));
        assert!(broker.offer_tunnel(NOW, &at(2)).is_err());
        notes(&mut broker, |_| Hearing::Silent);
        let second = granted(&mut broker, &at(2));
        assert_eq!(ids(&broker), [second.lease]);
    }

    #[test]
    fn who_forges_an_anonymous_wish_ends_nothing() {
        let mut broker = broker(Limits::default());
        let first = granted(&mut broker, &nobody(1));
        let (again, outcome) = broker.offer_tunnel(NOW, &nobody(1)).unwrap();
        assert_eq!((again, outcome), (Offered::Same(first.clone()), Outcome::default()));
        assert_eq!(ids(&broker), [first.lease]);
    }

    #[test]
    fn a_live_endpoint_is_no_other_account_s_and_an_unproven_one_nobody_s() {
        let mut broker = broker(Limits::default());
        let alice = granted(&mut broker, &wish(named("alice"), HERE));
        let theft = wish(named("mallory"), HERE);
        assert_eq!(broker.offer_tunnel(NOW, &theft).unwrap_err(), Refusal::EndpointTaken);
        notes(&mut broker, |_| Hearing::Silent);
        let (Offered::Waiting(offer), _) = broker.offer_tunnel(NOW, &theft).unwrap() else { panic!() };
        let (taken, _) = broker.take_offered(NOW, &theft, &offer).unwrap();
        assert_eq!(ids(&broker), [taken.lease], "who is gone for long gives way");
        assert_ne!(taken.pair, alice.pair);
        // Nobody's tunnel gives way to who is seen to be there, but not to who only says so.
        let there = granted(&mut broker, &nobody(1));
        let at = Ipv4Addr::new(10, 0, 0, 1);
        let mut proxied = wish(named("alice"), at);
        proxied.keep = Keep::WhileHeard {
            lasts: Duration::from_secs(9),
            told: Told { keepalive: 0, claimed: Some(at) },
            proven: false,
        };
        assert_eq!(broker.offer_tunnel(NOW, &proxied).unwrap_err(), Refusal::EndpointTaken);
        let seen = wish(named("alice"), at);
        let (Offered::Waiting(offer), _) = broker.offer_tunnel(NOW, &seen).unwrap() else { panic!() };
        broker.take_offered(NOW, &seen, &offer).unwrap();
        assert!(!ids(&broker).contains(&there.lease));
    }

    #[test]
    fn an_offer_ends_nothing_until_it_is_taken() {
        let mut broker = broker(Limits::default());
        let old = granted(&mut broker, &wish(named("alice"), HERE));
        let mut elsewhere = wish(named("alice"), Ipv4Addr::new(203, 0, 113, 7));
        elsewhere.wants.network = Some(NetworkWish::Any);
        let (Offered::Waiting(offer), outcome) = broker.offer_tunnel(NOW, &elsewhere).unwrap() else {
            panic!()
        };
        assert_eq!((offer.pair, outcome.routes.len(), ids(&broker)), (old.pair, 0, vec![old.lease]));
        // What is offered stays in mind: another one is given another network.
        let mut other = wish(named("mallory"), Ipv4Addr::new(203, 0, 113, 8));
        other.wants.network = Some(NetworkWish::Any);
        assert_ne!(granted(&mut broker, &other).networks, offer.networks);
        let (new, outcome) = broker.take_offered(NOW, &elsewhere, &offer).unwrap();
        assert_eq!((new.pair, &new.networks), (offer.pair, &offer.networks));
        assert_eq!(outcome.routes[0], Route::Down(old.lease, End::Superseded));
        let told = broker.find(&named("alice"), Protocol::Tsp)[0].told;
        assert_eq!((told.keepalive, told.claimed), (30, Some(Ipv4Addr::new(203, 0, 113, 7))));
    }

    #[test]
    fn who_asks_again_for_what_it_has_keeps_it_as_it_is() {
        let mut broker = broker(Limits::default());
        let alice = wish(named("alice"), HERE);
        let old = granted(&mut broker, &alice);
        let (Offered::Waiting(offer), _) = broker.offer_tunnel(NOW, &alice).unwrap() else { panic!() };
        let later = NOW.after(Duration::from_secs(9));
        let (again, outcome) = broker.take_offered(later, &alice, &offer).unwrap();
        let until = later.after(Duration::from_secs(1000));
        assert_eq!(again, Grant { expires: Some(until), ..old.clone() });
        assert_eq!((outcome.records, outcome.routes), (vec![Record::Until(old.lease, until)], vec![]));
    }

    #[test]
    fn an_offer_that_was_given_away_is_not_taken() {
        let mut broker = broker(Limits::default());
        let old = granted(&mut broker, &wish(named("alice"), HERE));
        let again = wish(named("alice"), Ipv4Addr::new(203, 0, 113, 7));
        let (Offered::Waiting(offer), _) = broker.offer_tunnel(NOW, &again).unwrap() else { panic!() };
        broker.end(NOW, old.lease, End::Kicked);
        let (pool, n) = broker.place_of(offer.prefixes().next().unwrap()).unwrap();
        broker.pools[pool].assign(n, Some(named("mallory")), true, NOW);
        assert!(matches!(broker.take_offered(NOW, &again, &offer), Err(Refusal::Taken(_))));
        assert!(broker.is_empty());
    }

    #[test]
    fn of_two_sites_the_one_that_comes_back_has_its_own_address_again() {
        let mut broker = broker(Limits { tunnels_per_account: 2, ..Limits::default() });
        let site = |claimed: u8, port: u16| {
            let mut site = wish(named("alice"), HERE);
            let remote = std::net::SocketAddrV4::new(HERE, port);
            site.outer = Outer::Udp {
                local: sixway_dataplane::update::UdpLocal { addr: None, port: 3653 },
                remote: sixway_dataplane::update::UdpRemote::Learned(Some(remote)),
            };
            let told = Told { keepalive: 0, claimed: Some(Ipv4Addr::new(192, 168, 0, claimed)) };
            site.keep = Keep::WhileHeard { lasts: Duration::from_secs(9), told, proven: true };
            site
        };
        let (one, two) = (granted(&mut broker, &site(1, 1)), granted(&mut broker, &site(2, 2)));
        for port in 3..7 {
            let back = site(2, port);
            let (Offered::Waiting(offer), _) = broker.offer_tunnel(NOW, &back).unwrap() else { panic!() };
            let (grant, _) = broker.take_offered(NOW, &back, &offer).unwrap();
            assert_eq!((grant.pair, ids(&broker)[0]), (two.pair, one.lease), "port {port}");
        }
    }
}
