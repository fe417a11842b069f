//! The broker against a stupid twin: lists that are searched from end to end, fed with nothing but records and routes.
//!
//! After every step: no prefix is behind two tunnels, the store and the tables say the same, nobody has more than the
//! limits allow, whoever comes back has the same place, and "used up" is said only when it is true.

#![expect(clippy::unwrap_used, reason = "a test has nobody to return an error to")]

use std::net::Ipv4Addr;
use std::time::Duration;

use proptest::prelude::*;
use sixway::broker::{
    Account, Accounts, Broker, End, Grant, Keep, Limits, Mechanisms, Memory, NetworkWish, Offered, Outcome,
    Pool, PoolKind, Protocol, Record, Refusal, Route, Secret, Terms, Time, Told, UserName, Wants, Wish,
};
use sixway_dataplane::update::{Ipv6Prefix, Outer};
use zeroize::Zeroizing;

const USERS: u8 = 7;
const PER_ACCOUNT: u32 = 2;
const PER_ADDRESS: u32 = 3;

#[derive(Clone, Debug)]
enum Step {
    Grant { user: u8, peer: u8, local: u8, pair: bool, network: Option<Option<u8>>, lasts: Option<u16> },
    Offer { user: u8, peer: u8, local: u8, pair: bool, network: Option<Option<u8>>, take: bool },
    Renew { nth: u8, lasts: u16 },
    End { nth: u8 },
    Wait { millis: u16 },
    Remove { user: u8 },
    Add { user: u8, own: bool },
    Fence { place: Option<u8> },
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let network = prop::option::weighted(0.8, prop::option::of(prop_oneof![Just(64), Just(62), Just(48)]));
    let offer = (0..USERS, 0..3u8, 0..4u8, any::<bool>(), network.clone(), any::<bool>());
    let offer = offer.prop_map(|(user, peer, local, pair, network, take)| Step::Offer {
        user,
        peer,
        local,
        pair,
        network,
        take,
    });
    let grant = (0..USERS, 0..3u8, 0..4u8, any::<bool>(), network, prop::option::of(1..2000u16));
    let grant = grant.prop_map(|(user, peer, local, pair, network, lasts)| Step::Grant {
        user,
        peer,
        local,
        pair,
        network,
        lasts,
    });
    let step = prop_oneof![
        10 => grant,
        8 => offer,
        2 => (any::<u8>(), 1..2000u16).prop_map(|(nth, lasts)| Step::Renew { nth, lasts }),
        4 => any::<u8>().prop_map(|nth| Step::End { nth }),
        3 => (0..1500u16).prop_map(|millis| Step::Wait { millis }),
        1 => (0..USERS).prop_map(|user| Step::Remove { user }),
        2 => (0..USERS, any::<bool>()).prop_map(|(user, own)| Step::Add { user, own }),
        1 => prop::option::of(0..8u8).prop_map(|place| Step::Fence { place }),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..120)
}

fn name(user: u8) -> UserName {
    UserName::parse(&format!("u{user}")).unwrap()
}

fn prefix(text: &str) -> Ipv6Prefix {
    text.parse().unwrap()
}

fn account(user: u8, own: bool) -> Account {
    let secret = Secret::parse(Zeroizing::new(b"hush".to_vec())).unwrap();
    // Inside the first pool: it must never be given to anybody else.
    let own = own.then(|| prefix(&format!("2001:db8:0:{user:x}::/64")));
    Account {
        name: name(user),
        secret,
        prefixes: own.into_iter().collect(),
        pair: None,
        mechanisms: Mechanisms::ANY,
    }
}

fn pools() -> Vec<Pool> {
    let pool = |text, kind| Pool { prefix: prefix(text), kind };
    vec![
        pool("2001:db8::/61", PoolKind::Networks(64)),
        pool("2001:db8:8::/60", PoolKind::Networks(62)),
        pool("2001:db8:9::/64", PoolKind::Pairs),
    ]
}

fn terms(place: Option<u8>) -> Terms {
    let fences = place.map(|n| prefix(&format!("2001:db8:0:{n:x}::1/128"))).into_iter().collect();
    let limits =
        Limits { tunnels_per_account: PER_ACCOUNT, tunnels_per_address: PER_ADDRESS, ..Limits::default() };
    Terms { pools: pools(), fences, limits }
}

/// What the records come to, and what the routes come to.
#[derive(Default)]
struct Twin {
    memory: Memory,
    tables: Vec<Grant>,
}

impl Twin {
    fn take(&mut self, outcome: Outcome) {
        outcome.records.into_iter().for_each(|record| self.keep(record));
        for route in outcome.routes {
            match route {
                Route::Bind(_) | Route::Unbind(..) => panic!("nothing was bound"),
                Route::Down(lease, _) => self.tables.retain(|grant| grant.lease != lease),
                Route::Up(grant) => {
                    for prefix in grant.prefixes() {
                        let holder = self.tables.iter().find(|other| other.prefixes().any(|p| p == prefix));
                        assert!(holder.is_none(), "{prefix} is given twice: {grant:?} and {holder:?}");
                    }
                    self.tables.push(grant);
                }
            }
        }
    }

    fn keep(&mut self, record: Record) {
        let memory = &mut self.memory;
        match record {
            Record::Account(_) | Record::AccountGone(_) => panic!("the broker writes no accounts"),
            Record::Lease(lease) => memory.leases.push(lease),
            Record::Until(id, at) => {
                let lease = memory.leases.iter_mut().find(|lease| lease.grant.lease == id).unwrap();
                lease.grant.expires = Some(at);
            }
            Record::Moved(id, outer) => {
                let lease = memory.leases.iter_mut().find(|lease| lease.grant.lease == id).unwrap();
                lease.grant.outer = outer;
            }
            Record::Bound(_) | Record::BoundUntil(..) | Record::Unbound(_) => panic!("nothing was bound"),
            Record::Ended(id) => memory.leases.retain(|lease| lease.grant.lease != id),
            Record::Assigned { prefix, user, since } => {
                memory.assigned.retain(|(p, ..)| *p != prefix);
                memory.assigned.push((prefix, user, since));
            }
        }
    }

    fn check(&self, broker: &Broker) {
        let mut stored: Vec<_> = self.memory.leases.iter().map(|lease| lease.grant.lease).collect();
        let mut routed: Vec<_> = self.tables.iter().map(|grant| grant.lease).collect();
        stored.sort_unstable();
        routed.sort_unstable();
        assert_eq!(stored, routed, "store and tables");
        assert_eq!(stored.len(), broker.len());
        for grant in &self.tables {
            let of_user = self.tables.iter().filter(|other| other.user == grant.user).count();
            let from_there = self.tables.iter().filter(|other| peer(other) == peer(grant)).count();
            assert!(of_user <= PER_ACCOUNT as usize && from_there <= PER_ADDRESS as usize, "{grant:?}");
            let names = self.tables.iter().filter(|other| other.name == grant.name).count();
            assert_eq!(names, 1, "{}", grant.name);
        }
    }

    /// Who holds any part of `prefix`.
    fn holder(&self, prefix: Ipv6Prefix) -> Option<&Grant> {
        self.tables.iter().find(|grant| grant.prefixes().any(|p| p.covers(prefix) || prefix.covers(p)))
    }

    /// Places of a pool that nobody has and nothing bars.
    fn free(&self, pool: Pool, barred: &[Ipv6Prefix]) -> usize {
        let open = |p: &Ipv6Prefix| !barred.iter().any(|b| b.covers(*p) || p.covers(*b));
        let places = (0..pool.places()).map(|n| pool.place(n));
        places.filter(|place| self.holder(*place).is_none() && open(place)).count()
    }

    fn nth(&self, nth: u8) -> Option<&Grant> {
        self.tables.get(usize::from(nth) % self.tables.len().max(1))
    }
}

fn peer(grant: &Grant) -> Ipv4Addr {
    sixway::broker::peer(&grant.outer).unwrap()
}

struct World {
    broker: Broker,
    twin: Twin,
    now: Time,
    accounts: Vec<Account>,
    terms: Terms,
}

impl World {
    fn new() -> Self {
        let accounts: Vec<_> = (0..USERS - 1).map(|user| account(user, false)).collect();
        let memory = Memory { accounts: accounts.clone(), ..Memory::default() };
        let terms = terms(None);
        let mut broker = Broker::new(Accounts::new([1; 16]), terms.clone());
        assert!(broker.recall(Time(0), memory.clone()).is_empty());
        Self { broker, twin: Twin { memory, tables: Vec::new() }, now: Time(1), accounts, terms }
    }

    fn step(&mut self, step: Step) {
        self.now = self.now.after(Duration::from_millis(1));
        match step {
            Step::Grant { user, peer, local, pair, network, lasts } => {
                let network = network.map(|len| len.map_or(NetworkWish::Any, NetworkWish::Length));
                let outer = Outer::Proto41 {
                    local: Some(Ipv4Addr::new(198, 51, 100, local)),
                    remote: Ipv4Addr::new(192, 0, 2, peer),
                };
                let keep =
                    lasts.map_or(Keep::WithConnection, |ms| Keep::For(Duration::from_millis(ms.into())));
                let wants = Wants { pair, network };
                self.grant(&Wish {
                    user: name(user),
                    protocol: Protocol::Tsp,
                    outer,
                    mtu: 1280,
                    wants,
                    keep,
                });
            }
            Step::Offer { user, peer, local, pair, network, take } => {
                let network = network.map(|len| len.map_or(NetworkWish::Any, NetworkWish::Length));
                let keep =
                    Keep::WhileHeard { lasts: Duration::from_secs(1), told: Told::default(), proven: true };
                let outer = Outer::Proto41 {
                    local: Some(Ipv4Addr::new(198, 51, 100, local)),
                    remote: Ipv4Addr::new(192, 0, 2, peer),
                };
                let wants = Wants { pair, network };
                let wish = Wish { user: name(user), protocol: Protocol::Tsp, outer, mtu: 1280, wants, keep };
                self.offer(&wish, take);
            }
            Step::Renew { nth, lasts } => {
                let Some(grant) = self.twin.nth(nth).cloned() else { return };
                let lasts = Duration::from_millis(lasts.into());
                let (until, outcome) = self.broker.renew(self.now, grant.lease, lasts).unwrap();
                assert_eq!(until, grant.expires.map(|_| self.now.after(lasts)));
                self.twin.take(outcome);
            }
            Step::End { nth } => {
                let Some(grant) = self.twin.nth(nth) else { return };
                let outcome = self.broker.end(self.now, grant.lease, End::Released);
                self.twin.take(outcome);
            }
            Step::Wait { millis } => {
                self.now = self.now.after(Duration::from_millis(millis.into()));
                let outcome = self.broker.expire(self.now);
                self.twin.take(outcome);
                let late = self
                    .twin
                    .memory
                    .leases
                    .iter()
                    .filter(|l| l.grant.expires.is_some_and(|at| at <= self.now));
                assert_eq!(late.count(), 0, "nobody outstays");
            }
            Step::Remove { user } => {
                self.accounts.retain(|account| account.name != name(user));
                self.adopt();
            }
            Step::Add { user, own } => {
                self.accounts.retain(|account| account.name != name(user));
                self.accounts.push(account(user, own));
                self.adopt();
            }
            Step::Fence { place } => {
                self.terms = terms(place);
                let outcome = self.broker.configure(self.now, self.terms.clone());
                self.twin.take(outcome);
                let barred = self.terms.fences.first().and_then(|fence| self.twin.holder(*fence));
                assert!(barred.is_none_or(|g| self.own(&g.user)), "{barred:?}");
            }
            Step::Restart => self.restart(),
        }
    }

    fn own(&self, user: &UserName) -> bool {
        self.accounts.iter().any(|a| a.name == *user && !a.prefixes.is_empty())
    }

    fn adopt(&mut self) {
        self.twin.memory.accounts.clone_from(&self.accounts);
        let outcome = self.broker.adopt(self.now, self.accounts.clone(), &[]);
        self.twin.take(outcome);
        for grant in &self.twin.tables {
            assert!(self.accounts.iter().any(|account| account.name == grant.user), "{grant:?}");
        }
    }

    fn restart(&mut self) {
        let kept = self.twin.memory.leases.iter().map(|lease| &lease.grant);
        let lasting = kept.filter(|grant| grant.expires.is_some_and(|at| at > self.now));
        let expected: Vec<_> = lasting.map(|grant| grant.lease).collect();
        self.twin.tables.clear();
        self.broker = Broker::new(Accounts::new([1; 16]), self.terms.clone());
        let outcome = self.broker.recall(self.now, self.twin.memory.clone());
        self.twin.take(outcome);
        let again: Vec<_> = self.twin.tables.iter().map(|grant| grant.lease).collect();
        assert_eq!(again, expected, "what lasts is up again, in order, and nothing else");
    }

    fn barred(&self) -> Vec<Ipv6Prefix> {
        let own = self.accounts.iter().flat_map(|account| account.prefixes.iter().copied());
        own.chain(self.terms.fences.iter().copied()).collect()
    }

    fn grant(&mut self, wish: &Wish) {
        let barred = self.barred();
        let before: Vec<usize> = self.terms.pools.iter().map(|pool| self.twin.free(*pool, &barred)).collect();
        let in_mind: Vec<Ipv6Prefix> = self.in_mind(&wish.user, &barred);
        let leases = self.twin.tables.len();
        match self.broker.grant(self.now, wish) {
            Ok((grant, outcome)) => {
                self.twin.take(outcome);
                self.check_grant(&grant, wish, &barred, &in_mind);
            }
            Err(why) => {
                assert_eq!(self.twin.tables.len(), leases);
                self.check_refusal(&why, wish, &before);
            }
        }
    }

    /// An offer changes no tunnel before it is taken, and is taken as it was made.
    fn offer(&mut self, wish: &Wish, take: bool) {
        let barred = self.barred();
        let before: Vec<usize> = self.terms.pools.iter().map(|pool| self.twin.free(*pool, &barred)).collect();
        let in_mind = self.in_mind(&wish.user, &barred);
        let tables = self.twin.tables.clone();
        let offered = match self.broker.offer_tunnel(self.now, wish) {
            Err(why) => return self.check_refusal(&why, wish, &before),
            Ok((Offered::Same(grant), _)) => panic!("nobody is anonymous here: {grant:?}"),
            Ok((Offered::Granted(grant), outcome)) => {
                self.twin.take(outcome);
                assert_eq!(self.twin.tables.len(), tables.len() + 1, "nobody has given way");
                return self.check_grant(&grant, wish, &barred, &in_mind);
            }
            Ok((Offered::Waiting(grant), outcome)) => {
                assert!(outcome.routes.is_empty(), "{outcome:?}");
                self.twin.take(outcome);
                grant
            }
        };
        self.check_grant(&offered, wish, &barred, &in_mind);
        if take {
            let (grant, outcome) = self.broker.take_offered(self.now, wish, &offered).unwrap();
            self.twin.take(outcome);
            assert_eq!((grant.pair, &grant.networks), (offered.pair, &offered.networks));
            assert_eq!(self.twin.tables.iter().filter(|one| one.lease == grant.lease).count(), 1);
        } else {
            assert_eq!(self.twin.tables, tables);
        }
    }

    /// Places that were this user's last, and that nobody has now but the user or whoever gives way.
    fn in_mind(&self, user: &UserName, barred: &[Ipv6Prefix]) -> Vec<Ipv6Prefix> {
        let theirs = self.twin.memory.assigned.iter().filter(|(_, who, _)| who.as_ref() == Some(user));
        let open = |p: &Ipv6Prefix| !barred.iter().any(|b| b.covers(*p) || p.covers(*b));
        theirs.map(|(p, ..)| *p).filter(open).filter(|p| self.twin.holder(*p).is_none()).collect()
    }

    fn check_grant(&self, grant: &Grant, wish: &Wish, barred: &[Ipv6Prefix], in_mind: &[Ipv6Prefix]) {
        assert_eq!(grant.pair.is_some(), wish.wants.pair);
        assert_eq!(grant.networks.is_empty(), wish.wants.network.is_none());
        let account = self.accounts.iter().find(|account| account.name == wish.user).unwrap();
        for place in grant.prefixes() {
            if account.prefixes.contains(&place) {
                continue;
            }
            let pool = self.terms.pools.iter().find(|pool| pool.number(place).is_some()).unwrap();
            assert!(!barred.iter().any(|b| b.covers(place) || place.covers(*b)), "{place} is barred");
            let was = in_mind.iter().filter(|p| pool.number(**p).is_some()).collect::<Vec<_>>();
            let given_up_now = || self.was_theirs(&wish.user, place);
            assert!(was.is_empty() || was.contains(&&place) || given_up_now(), "{place} instead of {was:?}");
        }
    }

    fn was_theirs(&self, user: &UserName, place: Ipv6Prefix) -> bool {
        self.twin.memory.assigned.iter().any(|(p, who, _)| *p == place && who.as_ref() == Some(user))
    }

    fn check_refusal(&self, why: &Refusal, wish: &Wish, before: &[usize]) {
        match why {
            Refusal::TooManyAnonymous { .. } => panic!("nobody is anonymous here"),
            Refusal::EndpointTaken => {
                let theirs = |grant: &&Grant| grant.user != wish.user && grant.outer == wish.outer;
                assert!(
                    matches!(wish.keep, Keep::WhileHeard { .. })
                        && self.twin.tables.iter().any(|g| theirs(&g))
                );
            }
            Refusal::Exhausted(pool) => {
                let at = self.terms.pools.iter().position(|p| p.prefix == *pool).unwrap();
                assert_eq!(before[at], 0, "{why}");
            }
            Refusal::LoginFailed => assert!(self.accounts.iter().all(|account| account.name != wish.user)),
            Refusal::NothingToGive(_) => assert_eq!(wish.wants.network, Some(NetworkWish::Length(48))),
            Refusal::TooManyTunnels { peer: at, most } => {
                let there = self.twin.tables.iter().filter(|grant| peer(grant) == *at).count();
                assert_eq!((there, *most), (PER_ADDRESS as usize, PER_ADDRESS));
            }
            Refusal::Taken(_)
            | Refusal::Throttled { .. }
            | Refusal::TooManyConnections { .. }
            | Refusal::NoLease(_)
            | Refusal::Table(_)
            | Refusal::Store
            | Refusal::Busy
            | Refusal::Stopping => panic!("{why}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn the_broker_does_what_its_twin_expects(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
            world.twin.check(&world.broker);
        }
    }
}

#[test]
fn a_pool_of_sixteen_million_places_is_given_out_at_the_pace_of_a_small_one() {
    let pool = |text, len| Pool { prefix: prefix(text), kind: PoolKind::Networks(len) };
    let terms =
        Terms { pools: vec![pool("2001:db8::/40", 64)], fences: Vec::new(), limits: Limits::default() };
    let mut broker = Broker::new(Accounts::new([1; 16]), terms);
    let user = |n: u32| UserName::parse(&format!("u{n}")).unwrap();
    let accounts = (0..20_000).map(|n| Account { name: user(n), ..account(0, false) }).collect();
    broker.recall(Time(0), Memory { accounts, ..Memory::default() });
    assert_eq!(broker.pools().next().map(|(pool, _)| pool.places()), Some(1 << 24));
    for n in 0..20_000u32 {
        let outer = Outer::Proto41 { local: None, remote: Ipv4Addr::from(0x0a00_0000 + n) };
        let wants = Wants { pair: false, network: Some(NetworkWish::Any) };
        let wish = Wish {
            user: user(n),
            protocol: Protocol::Dtcp,
            outer,
            mtu: 1280,
            wants,
            keep: Keep::WithConnection,
        };
        let (grant, _) = broker.grant(Time(n.into()), &wish).unwrap();
        assert_eq!(
            grant.networks,
            [Ipv6Prefix::new((prefix("2001:db8::/40").bits() + (u128::from(n) << 64)).into(), 64).unwrap()]
        );
    }
}
