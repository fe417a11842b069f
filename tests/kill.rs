//! A process that grants and releases as fast as it can is killed (SIGKILL) hundreds of times, at random moments: what it
//! had acknowledged is in the store, and no prefix is ever behind two leases.

#![expect(clippy::unwrap_used, reason = "a test has nobody to return an error to")]

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use office_lab::{Folder, Twin, drive, open, terms, user, wish, with_users};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sixway::broker::{End, Keep, Memory, Refusal};
use sixway::office::Desk;
use sixway::store::{Sqlite, Store};

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

fn start(folder: &Folder) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "the_process_that_is_killed", "--nocapture", "--test-threads=1"]);
    command.env(CHILD, folder.store()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Lets it say at least one thing, then some more time, then kills it. Returns all that it has said.
fn run_and_kill(folder: &Folder, rng: &mut StdRng) -> Vec<String> {
    let mut child = start(folder);
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
        let said = run_and_kill(&folder, &mut rng);
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
