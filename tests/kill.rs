//! A process that grants and releases as fast as it can is killed (SIGKILL) hundreds of times, at random moments: what it
//! had acknowledged is in the store, and no prefix is ever behind two leases. The same for dhcp6s's ledger, which is written
//! anew all the time: what is loaded is what was written last, whole.

#![expect(clippy::unwrap_used, reason = "a test has nobody to return an error to")]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use office_lab::{Folder, Twin, drive, open, terms, user, wish, with_users};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sixway::broker::{BindKey, BindKind, End, Keep, Memory, Refusal};
use sixway::dhcp6s::ledger::{Ledger, Page};
use sixway::dhcp6s::plan::Life;
use sixway::dhcp6s::shelf::{Change, Lease};
use sixway::dhcp6s::tidy::Part;
use sixway::office::Desk;
use sixway::store::{Sqlite, Store};
use sixway_dataplane::update::Ipv6Prefix;

mod office_lab;

/// More users than places: the pool runs dry all the time.
const USERS: u32 = 64;
const POOL: (&str, u8) = ("2001:db8::/59", 64);
const KILLS: u32 = 300;
const HOUR: Keep = Keep::For(Duration::from_secs(3600));
/// Set in the process that is killed: the store it works on.
const CHILD: &str = "SIXWAY_KILL_TEST_STORE";

/// One line, whole, at once: it is what the parent holds the store to.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "@ {line}").unwrap();
    out.flush().unwrap();
}

async fn one_user(desk: Desk, n: u32) {
    let mut rng = StdRng::seed_from_u64(u64::from(n) ^ u64::from(std::process::id()) << 20);
    loop {
        match desk.grant(wish(n, HOUR)).await {
            Ok(held) => {
                say(&format!("granted {} {}", user(n), held.grant.networks[0]));
                if rng.random_bool(0.6) {
                    say(&format!("releasing {}", user(n)));
                    held.finish(End::Released).await;
                }
            }
            Err(Refusal::Exhausted(_)) => tokio::task::yield_now().await,
            Err(why) => panic!("{why}"),
        }
    }
}

/// Not a test by itself: the process that [`nothing_acknowledged_is_lost`] kills.
#[test]
fn the_process_that_is_killed() {
    let Some(path) = std::env::var_os(CHILD) else { return };
    let office = open(path.as_ref(), terms(POOL.0, POOL.1));
    drive(office, &Twin::default(), async |desk| {
        let users = (0..USERS).map(|n| one_user(desk.clone(), n));
        futures_util::future::join_all(users).await;
    });
}

fn start(folder: &Folder, process: &str) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", process, "--nocapture", "--test-threads=1"]);
    command.env(CHILD, folder.store()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Lets it say at least one thing, then some more time, then kills it. Returns all that it has said.
fn run_and_kill(folder: &Folder, process: &str, rng: &mut StdRng) -> Vec<String> {
    let mut child = start(folder, process);
    let (said, hear) = std::sync::mpsc::channel();
    let out = BufReader::new(child.stdout.take().unwrap());
    let reader = std::thread::spawn(move || {
        for line in out.lines().map_while(Result::ok) {
            if let Some(line) = line.split("@ ").nth(1) {
                said.send(line.to_owned()).unwrap();
            }
        }
    });
    let first = hear.recv_timeout(Duration::from_secs(30));
    std::thread::sleep(Duration::from_micros(rng.random_range(0..40_000)));
    child.kill().unwrap();
    let end = child.wait_with_output().unwrap();
    let complaint = String::from_utf8_lossy(&end.stderr).into_owned();
    assert_eq!(end.status.code(), None, "it ended by itself: {complaint}");
    reader.join().unwrap();
    let first = first.unwrap_or_else(|_| panic!("it said nothing: {complaint}"));
    std::iter::once(first).chain(hear.iter()).collect()
}

/// Who was told to have what, and has not begun to give it back.
fn note(acknowledged: &mut HashMap<String, String>, said: &[String]) -> usize {
    let mut grants = 0;
    for line in said {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["granted", who, prefix] => {
                acknowledged.insert(who.to_owned(), prefix.to_owned());
                grants += 1;
            }
            ["releasing", who] => drop(acknowledged.remove(who)),
            // The last line may have been cut by the kill.
            _ => assert_eq!(Some(line), said.last(), "unknown words"),
        }
    }
    grants
}

fn check(memory: &Memory, acknowledged: &HashMap<String, String>, kill: u32) {
    let mut seen = HashSet::new();
    let mut kept = HashMap::new();
    for lease in &memory.leases {
        for prefix in lease.grant.prefixes() {
            assert!(seen.insert(prefix), "kill {kill}: {prefix} is behind two leases");
            kept.insert(lease.grant.user.to_string(), prefix.to_string());
        }
    }
    for (who, prefix) in acknowledged {
        assert_eq!(kept.get(who), Some(prefix), "kill {kill}: {who} was told to have {prefix}");
    }
}

#[test]
fn nothing_acknowledged_is_lost() {
    let folder = Folder::new("kill");
    with_users(&folder.store(), USERS);
    let mut rng = StdRng::seed_from_u64(1);
    let mut acknowledged = HashMap::new();
    let (mut grants, started) = (0, Instant::now());
    for kill in 0..KILLS {
        let said = run_and_kill(&folder, "the_process_that_is_killed", &mut rng);
        grants += note(&mut acknowledged, &said);
        let memory = Sqlite::open_beside(&folder.store()).unwrap().load().unwrap();
        check(&memory, &acknowledged, kill);
        // What stayed with a user whose end was begun may be there or not; from here on the store's word counts.
        acknowledged = memory
            .leases
            .iter()
            .map(|lease| (lease.grant.user.to_string(), lease.grant.networks[0].to_string()))
            .collect();
    }
    println!("{KILLS} kills, {grants} acknowledged grants, {:?}", started.elapsed());
    assert!(grants > KILLS as usize * 10, "only {grants} grants were put to the test");
}

/// Leases that come and go, by their prefixes.
type Leases = BTreeMap<Ipv6Prefix, Lease>;

/// When the lease ends that says how many pages were written.
const BEGIN: u64 = 2000;
/// What the clocks show while all this goes on.
const CLOCKS: (&str, u64, u64) = ("boot", 1000, 1_700_000_000);

fn lease(n: u32, until: u64) -> Lease {
    let client = n.to_be_bytes();
    Lease {
        key: BindKey { tunnel: "vs0".into(), client: client.into(), kind: BindKind::Prefix, number: 1 },
        prefix: format!("2001:db8:{n:x}::/48").parse().unwrap(),
        life: Life { preferred: 1, valid: u32::MAX },
        until,
        peer: Some("fe80::1".parse().unwrap()),
        reach: None,
    }
}

/// What changes with one page: the same whoever asks.
fn changes(page: u64, now: &mut Leases) -> Vec<Change> {
    let mut rng = StdRng::seed_from_u64(page);
    let mut all = vec![lease(0, BEGIN + page)];
    all.extend((0..rng.random_range(0..40)).map(|_| lease(rng.random_range(1..400), BEGIN + page)));
    let mut changes = Vec::new();
    for one in all {
        if one.key.client[..] != [0; 4] && rng.random_bool(0.4) {
            changes.extend(now.remove(&one.prefix).map(Change::Gone));
        } else {
            now.insert(one.prefix, one.clone());
            changes.push(Change::Has(one));
        }
    }
    changes
}

fn written(now: &Leases) -> u64 {
    now.get(&lease(0, 0).prefix).map_or(0, |last| last.until - BEGIN)
}

fn load(folder: &std::path::Path) -> (Ledger, Leases) {
    let mut ledger = Ledger::open(folder, CLOCKS).unwrap();
    let loaded = ledger.load("vs0", 1000).unwrap();
    (ledger, loaded.into_iter().map(|lease| (lease.prefix, lease)).collect())
}

/// Not a test by itself: the process that [`nothing_in_a_ledger_is_lost`] kills.
#[test]
fn the_scribe_that_is_killed() {
    let Some(path) = std::env::var_os(CHILD) else { return };
    let (mut ledger, mut now) = load(path.as_ref());
    let mut last: Option<Ipv6Prefix> = None;
    loop {
        let page = written(&now) + 1;
        let changes = changes(page, &mut now);
        // A hundred at a time, without end.
        let left = now.values().filter(|lease| last.is_none_or(|last| last < lease.prefix));
        let mut left = left.cloned().collect::<Vec<_>>().into_iter();
        let leases: Vec<Lease> = left.by_ref().take(100).collect();
        let part = Part { leases, is_first: last.is_none(), is_last: left.next().is_none() };
        last = part.leases.last().filter(|_| !part.is_last).map(|lease| lease.prefix);
        ledger.write(&Page { changes, part: Some(part), ..Page::default() }).unwrap();
        say(&page.to_string());
    }
}

#[test]
fn nothing_in_a_ledger_is_lost() {
    let folder = Folder::new("kill-ledger");
    let mut rng = StdRng::seed_from_u64(2);
    let mut now = Leases::new();
    for kill in 0..KILLS / 3 {
        let said = run_and_kill(&folder, "the_scribe_that_is_killed", &mut rng);
        // The last line may have been cut by the kill.
        let said = said.iter().filter_map(|line| line.parse::<u64>().ok()).max().unwrap_or(0);
        // A page that was torn was never written: it is not damage either, which would end this here.
        let (ledger, loaded) = load(&folder.store());
        assert!(
            written(&loaded) >= said,
            "kill {kill}: page {said} was written, and {} is the last",
            written(&loaded)
        );
        while written(&now) < written(&loaded) {
            let page = written(&now) + 1;
            changes(page, &mut now);
        }
        assert_eq!(loaded, now, "kill {kill}");
        assert!(ledger.records() < 4096, "{} records of at most 400 leases", ledger.records());
    }
    assert!(written(&now) > u64::from(KILLS), "only {} pages were put to the test", written(&now));
}
