//! The office with broker and store together: answers, ends, restarts, and what the operator changes meanwhile.

#![expect(clippy::unwrap_used, reason = "a test has nobody to return an error to")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use office_lab::{Folder, Twin, account, drive, drive_with, open, prefix, terms, user, wish, with_users};
use sixway::broker::{
    Account, End, Keep, LeaseId, Mechanism, Memory, Protocol, Record, Refusal, Route, UserName, Wants, Wish,
};
use sixway::config::Hooks;
use sixway::office::{Office, Tables};
use sixway::store::{Changed, Sqlite, Store, StoreError};

use sixway_dataplane::update::{Ipv6Prefix, Outer, Rejected, TunnelId, UdpLocal, UdpRemote};

mod office_lab;

const HOUR: Keep = Keep::For(Duration::from_secs(3600));

fn holder(twin: &Twin, prefix: Ipv6Prefix) -> Option<LeaseId> {
    twin.0.lock().unwrap().get(&prefix).copied()
}

#[test]
fn what_lasts_forwards_again_after_a_restart_and_the_rest_is_gone() {
    let folder = Folder::new("restart");
    with_users(&folder.store(), 3);
    let (office, lasting) =
        drive(open(&folder.store(), terms("2001:db8::/48", 64)), &Twin::default(), async |desk| {
            let lasting = desk.grant(wish(0, HOUR)).await.unwrap();
            let _with_connection = desk.grant(wish(1, Keep::WithConnection)).await.unwrap();
            std::mem::forget(_with_connection);
            lasting.grant.clone()
        });
    office.close();
    let twin = Twin::default();
    let (office, again) = drive(open(&folder.store(), terms("2001:db8::/48", 64)), &twin, async |desk| {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let before = (holder(&twin, lasting.networks[0]), twin.0.lock().unwrap().len());
        assert_eq!(before, (Some(lasting.lease), 1), "before anybody has connected");
        let other = desk.grant(wish(2, HOUR)).await.unwrap();
        assert_eq!(other.grant.networks, [prefix("2001:db8:0:2::/64")], "u1's is still in mind for u1");
        desk.grant(wish(1, HOUR)).await.unwrap().grant.clone()
    });
    assert_eq!(again.networks, [prefix("2001:db8:0:1::/64")], "the same as before");
    office.close();
}

#[test]
fn the_newest_session_wins_and_the_older_one_hears_so() {
    let folder = Folder::new("newest");
    with_users(&folder.store(), 1);
    let twin = Twin::default();
    drive(open(&folder.store(), terms("2001:db8::/48", 64)), &twin, async |desk| {
        let mut first = desk.grant(wish(0, Keep::WithConnection)).await.unwrap();
        let mut elsewhere = wish(0, Keep::WithConnection);
        elsewhere.outer = wish(77, HOUR).outer;
        let second = desk.grant(elsewhere).await.unwrap();
        assert_eq!(first.ended().await, End::Superseded);
        assert_eq!(first.grant.networks, second.grant.networks);
        assert_eq!((&*first.grant.name, &*second.grant.name), ("u0@tsp", "u0@tsp"));
        drop(first);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(
            holder(&twin, second.grant.networks[0]),
            Some(second.grant.lease),
            "the first one's end is past"
        );
        second.release().await;
        assert!(twin.0.lock().unwrap().is_empty());
    });
}

#[test]
fn a_connection_that_is_gone_takes_its_tunnel_along() {
    let folder = Folder::new("gone");
    with_users(&folder.store(), 1);
    let twin = Twin::default();
    let (office, ()) = drive(open(&folder.store(), terms("2001:db8::/48", 64)), &twin, async |desk| {
        drop(desk.grant(wish(0, Keep::WithConnection)).await.unwrap());
        // Whoever has left before the answer comes leaves no tunnel either.
        drop(tokio::time::timeout(Duration::ZERO, desk.grant(wish(0, Keep::WithConnection))).await);
    });
    assert!(twin.0.lock().unwrap().is_empty() && office.broker().is_empty());
    office.close();
    assert!(Sqlite::open_beside(&folder.store()).unwrap().load().unwrap().leases.is_empty());
}

#[test]
fn time_ends_what_nobody_renews() {
    let folder = Folder::new("time");
    with_users(&folder.store(), 2);
    let twin = Twin::default();
    drive(open(&folder.store(), terms("2001:db8::/48", 64)), &twin, async |desk| {
        let mut short = desk.grant(wish(0, Keep::For(Duration::from_millis(100)))).await.unwrap();
        let renewed = desk.grant(wish(1, Keep::For(Duration::from_millis(100)))).await.unwrap();
        desk.renew(renewed.grant.lease, Duration::from_secs(60)).await.unwrap();
        assert_eq!(short.ended().await, End::Expired);
        assert_eq!(
            desk.renew(short.grant.lease, Duration::from_secs(9)).await,
            Err(Refusal::NoLease(short.grant.lease))
        );
        assert_eq!(holder(&twin, renewed.grant.networks[0]), Some(renewed.grant.lease));
    });
}

#[test]
fn a_used_up_pool_is_said_so_and_what_is_given_back_is_given_again() {
    let folder = Folder::new("full");
    with_users(&folder.store(), 3);
    drive(open(&folder.store(), terms("2001:db8::/63", 64)), &Twin::default(), async |desk| {
        let first = desk.grant(wish(0, HOUR)).await.unwrap();
        let _second = desk.grant(wish(1, HOUR)).await.unwrap();
        let refused = desk.grant(wish(2, HOUR)).await.unwrap_err();
        assert_eq!(refused, Refusal::Exhausted(prefix("2001:db8::/63")));
        let free = first.grant.networks.clone();
        first.release().await;
        assert_eq!(desk.grant(wish(2, HOUR)).await.unwrap().grant.networks, free);
        let pair = Wants { pair: true, network: None };
        let refused = desk.grant(sixway::broker::Wish { wants: pair, ..wish(0, HOUR) }).await.unwrap_err();
        assert!(matches!(refused, Refusal::NothingToGive(_)), "{refused}");
    });
}

#[test]
fn the_running_office_sees_what_the_operator_changes() {
    let folder = Folder::new("watch");
    with_users(&folder.store(), 1);
    let path = folder.store();
    drive(open(&path, terms("2001:db8::/48", 64)), &Twin::default(), async |desk| {
        let mut held = desk.grant(wish(0, HOUR)).await.unwrap();
        assert_eq!(desk.grant(wish(1, HOUR)).await.unwrap_err(), Refusal::LoginFailed);
        let own = Account { prefixes: vec![prefix("2001:db8:7::/48")], ..account(1) };
        let change = [Record::AccountGone(user(0)), Record::Account(own)];
        Sqlite::open_beside(&path).unwrap().append(&change).unwrap();
        assert_eq!(held.ended().await, End::AccountGone);
        let given = desk.grant(wish(1, HOUR)).await.unwrap();
        assert_eq!(given.grant.networks, [prefix("2001:db8:7::/48")]);
        let proof = |s: &sixway::broker::Secret| (s.expose() == b"hush").then_some(());
        let peer = std::net::Ipv4Addr::new(192, 0, 2, 1);
        assert!(desk.login(peer, "u1", Mechanism::Apop, proof).is_ok());
        assert_eq!(desk.login(peer, "u0", Mechanism::Apop, proof), Err(Refusal::LoginFailed));
    });
}

#[test]
fn the_store_is_its_owner_s_alone_and_one_router_s() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new("alone");
    let path = folder.0.join("made/six0.db");
    let mut store = Sqlite::open(&path).unwrap();
    store.append(&[Record::Account(account(0))]).unwrap();
    for entry in std::fs::read_dir(path.parent().unwrap()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", entry.path().display());
    }
    assert_eq!(std::fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
    assert!(Sqlite::open(&path).unwrap_err().to_string().contains("another running router"));
    drop(store);
    assert_eq!(Sqlite::open(&path).unwrap().load().unwrap().accounts, [account(0)]);
}

/// A store whose disk is full as long as it is told so.
struct Full(Sqlite, Arc<AtomicBool>);

impl Store for Full {
    fn load(&mut self) -> Result<Memory, StoreError> {
        self.0.load()
    }

    fn append(&mut self, batch: &[Record]) -> Result<(), StoreError> {
        if self.1.load(Ordering::SeqCst) {
            return Err(StoreError::Engine { path: "x".into(), why: "disk full".into() });
        }
        self.0.append(batch)
    }

    fn watch(&mut self) -> Result<Option<Changed>, StoreError> {
        self.0.watch()
    }
}

#[test]
fn what_cannot_be_kept_is_not_given_and_nothing_is_forgotten() {
    let folder = Folder::new("disk");
    with_users(&folder.store(), 3);
    let (twin, full) = (Twin::default(), Arc::new(AtomicBool::new(false)));
    let store = Full(Sqlite::open(&folder.store()).unwrap(), full.clone());
    let hooks = Hooks { up: None, down: None, timeout: 10, at_once: 1 };
    let office = Office::open(Box::new(store), terms("2001:db8::/63", 64), &hooks, [7; 16]).unwrap();
    let (office, ()) = drive(office, &twin, async |desk| {
        let first = desk.grant(wish(0, HOUR)).await.unwrap();
        full.store(true, Ordering::SeqCst);
        assert_eq!(desk.grant(wish(1, HOUR)).await.unwrap_err(), Refusal::Store);
        assert_eq!(desk.grant(wish(1, HOUR)).await.unwrap_err(), Refusal::Store, "at once, while it fails");
        assert_eq!(twin.0.lock().unwrap().len(), 1);
        // An end is an end, whether it can be kept now or only later.
        first.release().await;
        assert!(twin.0.lock().unwrap().is_empty());
        full.store(false, Ordering::SeqCst);
        let again = async {
            loop {
                match desk.grant(wish(2, HOUR)).await {
                    Err(Refusal::Store) => tokio::time::sleep(Duration::from_millis(50)).await,
                    other => break other.unwrap(),
                }
            }
        };
        let again = tokio::time::timeout(Duration::from_secs(10), again).await.unwrap();
        assert_eq!(holder(&twin, again.grant.networks[0]), Some(again.grant.lease));
    });
    office.close();
    let kept = Sqlite::open_beside(&folder.store()).unwrap().load().unwrap().leases;
    assert_eq!(kept.iter().map(|lease| lease.grant.user.clone()).collect::<Vec<_>>(), [user(2)]);
}

#[test]
fn what_the_tables_refuse_is_taken_back_in_the_store() {
    let folder = Folder::new("tables");
    with_users(&folder.store(), 2);
    let twin = Twin::default();
    let (office, ()) = drive(open(&folder.store(), terms("2001:db8::/64", 66)), &twin, async |desk| {
        let mut first = desk.grant(wish(0, HOUR)).await.unwrap();
        twin.1.store(true, Ordering::SeqCst);
        let refused = desk.grant(wish(1, HOUR)).await.unwrap_err();
        assert!(matches!(&refused, Refusal::Table(Rejected::OuterTaken { .. })), "{refused}");
        // The older session has given way before the tables were asked: it hears so.
        assert!(matches!(desk.grant(wish(0, HOUR)).await, Err(Refusal::Table(_))));
        assert_eq!(first.ended().await, End::Superseded);
    });
    office.close();
    assert!(twin.0.lock().unwrap().is_empty());
    let memory = Sqlite::open_beside(&folder.store()).unwrap().load().unwrap();
    assert!(memory.leases.is_empty() && memory.assigned.len() == 2, "{:?}", memory.assigned);
}

/// Tables with room for one tunnel, which is free again only after the batch in which it became so.
#[derive(Default)]
struct Narrow(usize);

impl Tables for Narrow {
    fn follow(&mut self, routes: &[Route]) -> Result<(Vec<TunnelId>, Vec<TunnelId>), Rejected> {
        let up = routes.iter().filter(|route| matches!(route, Route::Up(_))).count();
        if self.0 + up > 1 {
            return Err(Rejected::Full { id: TunnelId(1), capacity: 1 });
        }
        self.0 = self.0 + up - (routes.len() - up).min(self.0);
        Ok((Vec::new(), Vec::new()))
    }
}

#[test]
fn who_comes_back_to_full_tables_is_let_in() {
    let folder = Folder::new("narrow");
    with_users(&folder.store(), 2);
    let (office, ()) =
        drive_with(open(&folder.store(), terms("2001:db8::/64", 66)), Narrow::default(), async |desk| {
            let mut first = desk.grant(wish(0, HOUR)).await.unwrap();
            let mut elsewhere = wish(0, HOUR);
            elsewhere.outer = wish(77, HOUR).outer;
            let second = desk.grant(elsewhere).await.unwrap();
            assert_eq!(first.ended().await, End::Superseded);
            assert!(matches!(desk.grant(wish(1, HOUR)).await, Err(Refusal::Table(Rejected::Full { .. }))));
            second.release().await;
            desk.grant(wish(1, HOUR)).await.unwrap();
        });
    office.close();
    let kept = Sqlite::open_beside(&folder.store()).unwrap().load().unwrap().leases;
    assert_eq!(kept.iter().map(|lease| lease.grant.user.clone()).collect::<Vec<_>>(), [user(1)]);
}

#[test]
fn where_a_peer_was_found_last_survives_a_restart() {
    let folder = Folder::new("moved");
    with_users(&folder.store(), 1);
    let twin = Twin::default();
    let outer = |remote| Outer::Udp { local: UdpLocal { addr: None, port: 3653 }, remote };
    let (mut office, lease) = drive(open(&folder.store(), terms("2001:db8::/64", 66)), &twin, async |desk| {
        let learned = Wish { outer: outer(UdpRemote::Learned(None)), ..wish(0, HOUR) };
        desk.grant(learned).await.unwrap().grant.lease
    });
    let here = Some("192.0.2.7:4000".parse().unwrap());
    let seen = Outer::Udp {
        local: UdpLocal { addr: Some("192.0.2.1".parse().unwrap()), port: 3653 },
        remote: UdpRemote::Learned(here),
    };
    office.moved(lease, &seen);
    office.moved(LeaseId(99), &seen);
    let (office, ()) = drive(office, &twin, async |_| ());
    office.close();
    let memory = Sqlite::open_beside(&folder.store()).unwrap().load().unwrap();
    // Our own side stays as it was granted: a peer may come to another address of ours again.
    assert_eq!(memory.leases[0].grant.outer, outer(UdpRemote::Learned(here)));
}

#[test]
fn who_is_removed_and_added_again_at_once_is_somebody_else() {
    let folder = Folder::new("again");
    with_users(&folder.store(), 2);
    let twin = Twin::default();
    let gone = Record::AccountGone(user(0));
    let (office, ()) = drive(open(&folder.store(), terms("2001:db8::/64", 66)), &twin, async |desk| {
        let mut first = desk.grant(wish(0, HOUR)).await.unwrap();
        let other = desk.grant(wish(1, HOUR)).await.unwrap();
        // Longer than a clock's millisecond, shorter than the router takes to look.
        tokio::time::sleep(Duration::from_millis(5)).await;
        let mut beside = Sqlite::open_beside(&folder.store()).unwrap();
        beside.append(std::slice::from_ref(&gone)).unwrap();
        beside.append(&[Record::Account(account(0))]).unwrap();
        assert_eq!(first.ended().await, End::AccountGone);
        let mut again = desk.grant(wish(0, HOUR)).await.unwrap();
        // Any other change of accounts leaves the new one alone.
        beside.append(&[Record::Account(account(7))]).unwrap();
        let ended = tokio::time::timeout(Duration::from_millis(1200), again.ended()).await;
        assert!(ended.is_err(), "{ended:?}");
        drop((again, other));
    });
    office.close();
    // The same while nobody runs.
    let mut store = Sqlite::open_beside(&folder.store()).unwrap();
    std::thread::sleep(Duration::from_millis(5));
    store.append(&[gone, Record::Account(account(0))]).unwrap();
    let (office, ()) =
        drive(open(&folder.store(), terms("2001:db8::/64", 66)), &Twin::default(), async |_| ());
    assert_eq!(
        (office.broker().leases_of(&user(0)).len(), office.broker().leases_of(&user(1)).len()),
        (0, 1)
    );
    office.close();
}

#[test]
fn clients_that_did_not_say_who_they_are_have_a_quota_and_take_nothing_from_others() {
    let folder = Folder::new("anonymous");
    with_users(&folder.store(), 2);
    let mut terms = terms("2001:db8::/48", 64);
    (terms.limits.anonymous_per_address, terms.limits.anonymous_tunnels) = (2, 3);
    let nobody = |from: u32, at: u32| Wish {
        user: UserName::anonymous(std::net::Ipv4Addr::from(0xc000_0200 + from)),
        ..wish(at, HOUR)
    };
    let (office, kept) = drive(open(&folder.store(), terms.clone()), &Twin::default(), async |desk| {
        let owned = desk.grant(wish(0, HOUR)).await.unwrap();
        assert_eq!(desk.grant(nobody(1, 0)).await.unwrap_err(), Refusal::EndpointTaken, "it is alice's");
        let first = desk.grant(nobody(1, 10)).await.unwrap();
        let again = desk.grant(nobody(1, 10)).await.unwrap();
        assert_eq!(again.grant.networks, first.grant.networks, "who comes again from there has the same");
        desk.grant(nobody(1, 11)).await.unwrap();
        let full =
            |key| move |why: &Refusal| matches!(why, Refusal::TooManyAnonymous { key: k, .. } if *k == key);
        assert!(desk.grant(nobody(1, 12)).await.is_err_and(|why| full("anonymous_per_address")(&why)));
        let third = desk.grant(nobody(2, 20)).await.unwrap();
        assert!(desk.grant(nobody(3, 30)).await.is_err_and(|why| full("anonymous_tunnels")(&why)));
        third.release().await;
        desk.grant(nobody(3, 30)).await.unwrap();
        // Whoever has proven who he is takes over an endpoint that nobody in particular has.
        desk.grant(Wish { user: user(1), ..wish(10, HOUR) }).await.unwrap();
        let left = desk.find(UserName::anonymous([192, 0, 2, 1].into()), Protocol::Tsp).await;
        assert_eq!(left.iter().map(|lease| lease.grant.outer).collect::<Vec<_>>(), [wish(11, HOUR).outer]);
        owned.grant.clone()
    });
    office.close();
    let twin = Twin::default();
    let (office, ()) = drive(open(&folder.store(), terms), &twin, async |_| {
        tokio::time::sleep(Duration::from_millis(200)).await;
    });
    assert_eq!(holder(&twin, kept.networks[0]), Some(kept.lease));
    assert!(twin.0.lock().unwrap().len() >= 3, "anonymous tunnels outlive a restart as others do");
    office.close();
}
