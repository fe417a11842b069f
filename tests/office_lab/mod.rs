//! An office on a real store, with stupid tables that shout when two tunnels have one prefix, driven as the control loop
//! drives it.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use sixway::broker::{
    Account, Keep, LeaseId, Limits, Mechanisms, NetworkWish, Pool, PoolKind, Protocol, Record, Route, Secret,
    Terms, UserName, Wants, Wish,
};
use sixway::config::Hooks;
use sixway::office::{Desk, Office, Tables};
use sixway::store::{Sqlite, Store};
use sixway_dataplane::update::{Ipv6Prefix, Outer, Rejected, TunnelId};
use zeroize::Zeroizing;

/// A folder that goes with the test.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("sixway-{name}-{}", std::process::id()));
        let _there_may_be_none = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.0.join("six0.db")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _it_may_be_gone = std::fs::remove_dir_all(&self.0);
    }
}

/// What the tables would hold, and whether they refuse every new tunnel.
#[derive(Clone, Default)]
pub(crate) struct Twin(pub(crate) Arc<Mutex<HashMap<Ipv6Prefix, LeaseId>>>, pub(crate) Arc<AtomicBool>);

impl Tables for Twin {
    fn follow(&mut self, routes: &[Route]) -> Result<(Vec<TunnelId>, Vec<TunnelId>), Rejected> {
        let mut all = self.0.lock().unwrap();
        if self.1.load(Ordering::SeqCst) && routes.iter().any(|route| matches!(route, Route::Up(_))) {
            return Err(Rejected::OuterTaken { wanted_by: TunnelId(2), held_by: TunnelId(1) });
        }
        for route in routes {
            match route {
                Route::Bind(_) | Route::Unbind(..) => {}
                Route::Down(lease, _) => all.retain(|_, holder| holder != lease),
                Route::Up(grant) => {
                    for prefix in grant.prefixes() {
                        if let Some(other) = all.insert(prefix, grant.lease) {
                            panic!("{prefix} is behind {other} and {}", grant.lease);
                        }
                    }
                }
            }
        }
        Ok((Vec::new(), Vec::new()))
    }
}

pub(crate) fn prefix(text: &str) -> Ipv6Prefix {
    text.parse().unwrap()
}

pub(crate) fn user(n: u32) -> UserName {
    UserName::parse(&format!("u{n}")).unwrap()
}

pub(crate) fn account(n: u32) -> Account {
    let secret = Secret::parse(Zeroizing::new(b"hush".to_vec())).unwrap();
    Account { name: user(n), secret, prefixes: Vec::new(), pair: None, mechanisms: Mechanisms::ANY }
}

/// Users u0, u1, ... in a new store.
pub(crate) fn with_users(path: &Path, count: u32) {
    let records: Vec<_> = (0..count).map(|n| Record::Account(account(n))).collect();
    Sqlite::open_beside(path).unwrap().append(&records).unwrap();
}

/// One pool of networks.
pub(crate) fn terms(pool: &str, assign: u8) -> Terms {
    let limits = Limits { tunnels_per_address: u32::MAX, ..Limits::default() };
    let pools = vec![Pool { prefix: prefix(pool), kind: PoolKind::Networks(assign) }];
    Terms { pools, fences: Vec::new(), limits }
}

pub(crate) fn open(path: &Path, terms: Terms) -> Office {
    let store = Box::new(Sqlite::open(path).unwrap());
    let hooks = Hooks { up: None, down: None, timeout: 10, at_once: 1 };
    Office::open(store, terms, &hooks, [7; 16]).unwrap()
}

/// What user `n` wants, from an outer address of its own.
pub(crate) fn wish(n: u32, keep: Keep) -> Wish {
    Wish {
        user: user(n),
        protocol: Protocol::Tsp,
        outer: Outer::Proto41 { local: None, remote: Ipv4Addr::from(0x0a00_0000 + n) },
        mtu: 1280,
        wants: Wants { pair: false, network: Some(NetworkWish::Any) },
        keep,
    }
}

/// Runs the office until `story` has ended; then everything is on disk, and the office comes back.
pub(crate) fn drive<T>(office: Office, twin: &Twin, story: impl AsyncFnOnce(Desk) -> T) -> (Office, T) {
    drive_with(office, twin.clone(), story)
}

/// The same with other tables.
pub(crate) fn drive_with<T>(
    mut office: Office,
    mut tables: impl Tables,
    story: impl AsyncFnOnce(Desk) -> T,
) -> (Office, T) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let told = runtime.block_on(async {
        let desk = office.desk();
        let story = story(desk);
        tokio::pin!(story);
        let mut told = None;
        loop {
            tokio::select! {
                done = &mut story, if told.is_none() => told = Some(done),
                written = office.next() => {
                    let settled = office.settle(written, &mut tables);
                    office.answer(settled);
                }
                () = tokio::time::sleep(std::time::Duration::from_millis(20)), if told.is_some() && office.is_idle() => break,
            }
        }
        told
    });
    (office, told.unwrap())
}
