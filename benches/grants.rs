//! Durable grants in a second: clients ask for tunnels at once, each answered when its grant is on disk.
//!
//! Desk, broker, store and tables are the real ones but for the last: the registry's part is a map here. The file is made
//! in the folder named by `SIXWAY_BENCH_DIR` (the working directory by default), so its disk is what is measured.
//! `cargo bench --bench grants [-- CLIENTS ...]`

#![expect(clippy::unwrap_used, reason = "a benchmark has nobody to return an error to")]

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use sixway::broker::{
    Account, Keep, LeaseId, Limits, Mechanisms, NetworkWish, Pool, PoolKind, Protocol, Record, Route, Secret,
    Terms, UserName, Wants, Wish,
};
use sixway::config::Hooks;
use sixway::office::{Desk, Office, Tables};
use sixway::store::{Sqlite, Store};
use sixway_dataplane::update::{Ipv6Prefix, Outer, Rejected, TunnelId};
use zeroize::Zeroizing;

/// Grants in one round.
const GRANTS: u32 = 20_000;

/// Who is behind which prefix, and nothing else.
#[derive(Default)]
struct Map(HashMap<Ipv6Prefix, LeaseId>);

impl Tables for Map {
    fn follow(&mut self, routes: &[Route]) -> Result<(Vec<TunnelId>, Vec<TunnelId>), Rejected> {
        for route in routes {
            if let Route::Up(grant) = route {
                self.0.extend(grant.prefixes().map(|prefix| (prefix, grant.lease)));
            }
        }
        Ok((Vec::new(), Vec::new()))
    }
}

fn user(n: u32) -> UserName {
    UserName::parse(&format!("u{n}")).unwrap()
}

fn wish(n: u32) -> Wish {
    Wish {
        user: user(n),
        protocol: Protocol::Dtcp,
        outer: Outer::Proto41 { local: None, remote: Ipv4Addr::from(0x0a00_0000 + n) },
        mtu: 1280,
        wants: Wants { pair: false, network: Some(NetworkWish::Any) },
        keep: Keep::For(Duration::from_secs(3600)),
    }
}

/// One client after the other's number, until all have a tunnel.
async fn client(desk: Desk, first: u32, clients: u32, waits: &std::cell::RefCell<Vec<Duration>>) {
    for n in (first..GRANTS).step_by(clients as usize) {
        let asked = Instant::now();
        drop(desk.grant(wish(n)).await.unwrap());
        waits.borrow_mut().push(asked.elapsed());
    }
}

fn round(clients: u32) {
    let folder = std::env::var_os("SIXWAY_BENCH_DIR").map_or_else(|| PathBuf::from("."), PathBuf::from);
    let folder = folder.join(format!("grants-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("bench.db");
    let mut store = Sqlite::open(&path).unwrap();
    let secret = Secret::parse(Zeroizing::new(b"hush".to_vec())).unwrap();
    let account = |n| Account {
        name: user(n),
        secret: secret.clone(),
        prefixes: Vec::new(),
        pair: None,
        mechanisms: Mechanisms::ANY,
    };
    store.append(&(0..GRANTS).map(|n| Record::Account(account(n))).collect::<Vec<_>>()).unwrap();
    let pools = vec![Pool { prefix: "2001:db8::/40".parse().unwrap(), kind: PoolKind::Networks(64) }];
    let terms = Terms { pools, fences: Vec::new(), limits: Limits::default() };
    let hooks = Hooks { up: None, down: None, timeout: 10, at_once: 1 };
    let mut office = Office::open(Box::new(store), terms, &hooks, [7; 16]).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let waits = std::cell::RefCell::new(Vec::new());
    let started = Instant::now();
    runtime.block_on(async {
        let desk = office.desk();
        let all = (0..clients).map(|first| client(desk.clone(), first, clients, &waits));
        let all = futures_util::future::join_all(all);
        tokio::pin!(all);
        let mut tables = Map::default();
        loop {
            tokio::select! {
                _ = &mut all => break,
                written = office.next() => {
                    let settled = office.settle(written, &mut tables);
                    office.answer(settled);
                }
            }
        }
        assert_eq!(tables.0.len(), GRANTS as usize);
    });
    let took = started.elapsed();
    office.close();
    let kept = Sqlite::open(&path).unwrap().load().unwrap().leases.len();
    assert_eq!(kept, GRANTS as usize, "all of them are on disk");
    std::fs::remove_dir_all(&folder).unwrap();
    let mut waits = waits.into_inner();
    waits.sort_unstable();
    let at = |part: usize| waits[(waits.len() * part / 1000).min(waits.len() - 1)];
    println!(
        "{clients:>6} clients at once: {:>7.0} durable grants/s, answered after {:.1?} (median), {:.1?} (99.9 %)",
        f64::from(GRANTS) / took.as_secs_f64(),
        at(500),
        at(999)
    );
}

fn main() {
    let named: Vec<u32> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let rounds = if named.is_empty() { vec![1, 16, 256, 10_000] } else { named };
    rounds.into_iter().for_each(round);
}
