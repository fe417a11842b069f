//! All at once for a long time: tunnels come, change and go, peers move, packets are forged, viewers come and leave, the
//! file is read again. In the end memory and descriptors are what they were.
//!
//! ```text
//!   C alice (moves), a forger ══ S six0 ──IPv6── U      S: sixway bench churn, reload, status, trace, explain
//! ```
//!
//! `scripts/soak` runs it; SIXWAY_SOAK_SECONDS says how long.

#![allow(clippy::unwrap_used, reason = "a test has nobody to return an error to")]

use std::fs;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use netns_tests::{ALICE, C4_OTHER, Client, Ends, Rig, Router, U6, program, tunnel, wait_for};

const PATIENCE: Duration = Duration::from_secs(5);
/// How often everything is done in between.
const ROUND: Duration = Duration::from_secs(5);
/// Memory that may be added after the first fifth of the time, KiB: counters are made as tunnels' numbers rise.
const SLACK: u64 = 8 * 1024;

fn ask(server: &Router, words: &[&str]) -> Output {
    let mut command = Command::new(program());
    command.args(words).arg("--socket").arg(server.socket()).stdin(Stdio::null()).output().unwrap()
}

/// Resident memory in KiB.
fn memory(server: &Router) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn descriptors(server: &Router) -> usize {
    fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count()
}

fn learned(extra: &str) -> String {
    Rig::server_config("", &(tunnel("alice", "udp", "learn", "fd00:2:1::/64", extra) + &Rig::bob("")))
}

/// What an operator and the world do, once.
fn round(rig: &Rig, server: &Router, n: u64) {
    let out = ask(server, &["bench", "churn", "--rate", "5000", "--seconds", "2", "--tunnels", "2000"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let forger = Client::proto41(&rig.c, C4_OTHER, ALICE).mute();
    (0..200).for_each(|_| forger.send(&Ends::new(ALICE, U6).echo_request(1, 1, 64)));
    let mtu = format!("mtu = {}", 1280 + n % 100);
    let reloaded = server.reload(&learned(&mtu));
    assert!(reloaded.ok, "{}", reloaded.text);
    for words in
        [&["show", "drops"][..], &["status"], &["audit"], &["explain", "--tunnel", "alice", "--dst", ALICE]]
    {
        let _an_audit_may_fail = ask(server, words);
    }
    let mut viewer = Command::new(program());
    viewer.args(["trace", "alice", "--socket"]).arg(server.socket()).stdout(Stdio::null());
    let mut viewer = viewer.spawn().unwrap();
    // Each time from another port: learned anew.
    let local = format!("10.71.0.2:{}", 5000 + n % 1000);
    let alice = Client::udp(&rig.c, &local, ALICE);
    wait_for("alice to be learned", Duration::from_secs(30), || alice.ping(U6, Duration::from_millis(200)));
    (0..100).for_each(|_| {
        let _some_may_be_lost = alice.ping(U6, PATIENCE);
    });
    viewer.kill().unwrap();
    viewer.wait().unwrap();
}

#[test]
#[ignore = "takes minutes; scripts/soak runs it"]
fn memory_and_descriptors_are_what_they_were() {
    let Some(rig) = Rig::new_or_skip("a soak") else { return };
    let seconds = std::env::var("SIXWAY_SOAK_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(600);
    let server = Router::start(&rig.lab, &rig.s, &learned(""));
    let (began, lasts) = (Instant::now(), Duration::from_secs(seconds));
    let (mut rounds, mut warm) = (0, None);
    while began.elapsed() < lasts {
        let next = Instant::now() + ROUND;
        round(&rig, &server, rounds);
        rounds += 1;
        if rounds > 2 && began.elapsed() > lasts / 5 {
            warm.get_or_insert((memory(&server), descriptors(&server)));
        }
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        println!(
            "{:>5} s: {} KiB resident, {} descriptors",
            began.elapsed().as_secs(),
            memory(&server),
            descriptors(&server)
        );
    }
    let (before, open) = warm.unwrap();
    // The last viewer is forgotten within a second.
    wait_for("descriptors to be what they were", PATIENCE, || (descriptors(&server) <= open).then_some(()));
    let after = memory(&server);
    println!(
        "soak: {rounds} rounds in {seconds} s; memory {before} KiB, then {after} KiB; {open} descriptors"
    );
    println!("drops: {}", server.status()["drops"]);
    assert!(after <= before + SLACK, "memory has grown from {before} to {after} KiB");
    server.stop();
}
