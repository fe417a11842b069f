//! `sixway bench churn` against a running router: thousands of updates a second, and forwarding goes on.
//!
//! ```text
//!   sixway bench churn ──admin socket──► S      10,000 updates a second, in ranges of their own
//!   C six0 ══ alice ══ S ──IPv6── U             ping and TCP meanwhile
//! ```

#![allow(clippy::unwrap_used, reason = "a test has nobody to return an error to")]

use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use netns_tests::{ALICE, PATIENCE, Rig, Router, U6, pings, program, transfer, tunnel, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn churn(server: &Router, options: &[&str]) -> Child {
    let mut command = Command::new(program());
    command.args(["bench", "churn", "--socket"]).arg(server.socket()).args(options);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn text(out: &Output) -> String {
    String::from_utf8_lossy(&[out.stdout.clone(), out.stderr.clone()].concat()).into_owned()
}

fn tunnels(server: &Router) -> u64 {
    server.status()["tunnels_total"].as_u64().unwrap()
}

/// The number before ` a second` in `churn: 20000 updates in 2.00 s, 9998 a second of 10000 wanted; 0 rejected`.
fn achieved(said: &str) -> u64 {
    let before = said.split(" a second").next().unwrap();
    before.rsplit(' ').next().unwrap().parse().unwrap_or_else(|_| panic!("{said}"))
}

#[test]
fn forwarding_goes_on_and_the_table_is_as_before() {
    let Some(rig) = Rig::new_or_skip("10,000 updates a second beside ping and TCP") else { return };
    let server = rig.server(&Rig::alice("udp", "mtu = 1400"));
    let _client = rig.client("udp", 1400);
    assert!(pings(&rig.c, U6, 3, "") > 0);
    let before = server.tunnel("alice");
    let running = churn(&server, &["--rate", "10000", "--seconds", "2", "--tunnels", "3000"]);
    wait_for("tunnels of the churn", PATIENCE, || (tunnels(&server) > 1000).then_some(()));
    transfer(&rig.u, &rig.c, ALICE, 8 << 20);
    assert_eq!(pings(&rig.c, U6, 10, ""), 10);
    let out = running.wait_with_output().unwrap();
    let said = text(&out);
    println!("{said}");
    assert!(out.status.success() && said.contains("; 0 rejected"), "{said}");
    assert!(achieved(&said) > 3000, "far from the rate that was asked: {said}");
    assert_eq!(tunnels(&server), 1, "the table is as before");
    let after = server.tunnel("alice");
    for field in ["name", "remote", "local", "prefixes", "mtu"] {
        assert_eq!(before[field], after[field]);
    }
    // A freed number and its space serve the next tunnel.
    let with_bob = Rig::server_config("", &(Rig::alice("udp", "mtu = 1400") + &Rig::bob("")));
    assert!(server.reload(&with_bob).text.contains("1 added, 0 removed, 0 changed, 1 untouched"));
    assert!(rig.bob_peer().ping(U6, PATIENCE).is_some());
    assert_eq!((server.count("bob", "rx_packets"), server.drops("wrong_outer")), (1, 0));
    server.stop();
}

#[test]
fn its_tunnels_go_with_it_however_it_ends() {
    let Some(rig) = Rig::new_or_skip("a churn that is stopped, and one that dies") else { return };
    let server = rig.server(&Rig::alice("udp", ""));
    for (signal, patience) in [(Signal::SIGINT, 2000), (Signal::SIGKILL, 20_000)] {
        let running = churn(&server, &["--rate", "1000", "--seconds", "60"]);
        wait_for("tunnels of the churn", PATIENCE, || (tunnels(&server) > 100).then_some(()));
        kill(Pid::from_raw(i32::try_from(running.id()).unwrap()), signal).unwrap();
        let out = running.wait_with_output().unwrap();
        assert_eq!(out.status.code(), (signal == Signal::SIGINT).then_some(130), "{}", text(&out));
        wait_for("its tunnels to go", Duration::from_millis(patience), || {
            (tunnels(&server) == 1).then_some(())
        });
    }
    assert!(server.log().contains("whoever measured is gone"), "{}", server.log());
    assert!(rig.alice_peer("udp").ping(U6, PATIENCE).is_some());
    server.stop();
}

#[test]
fn two_at_once_and_ranges_in_use_are_refused() {
    let Some(rig) = Rig::new_or_skip("a churn that may not be") else { return };
    let server = rig.server(&Rig::alice("udp", ""));
    let running = churn(&server, &["--rate", "100", "--seconds", "3"]);
    wait_for("tunnels of the churn", PATIENCE, || (tunnels(&server) > 10).then_some(()));
    let second = churn(&server, &["--rate", "100", "--seconds", "1"]).wait_with_output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second).contains("another churn runs"), "{}", text(&second));
    assert!(running.wait_with_output().unwrap().status.success(), "the first is not disturbed");

    for (prefix, remote) in [("2001:2:0:7::/64", "10.71.0.9:4000"), ("fd00:2:7::/64", "198.19.3.4:4000")] {
        let theirs = tunnel("carol", "udp", remote, prefix, "");
        let config = Rig::server_config("", &(Rig::alice("udp", "") + &theirs));
        assert!(server.reload(&config).ok);
        let refused = churn(&server, &["--rate", "100", "--seconds", "1"]).wait_with_output().unwrap();
        assert_eq!(refused.status.code(), Some(1));
        assert!(text(&refused).contains("tunnel 'carol' uses addresses"), "{}", text(&refused));
        thread::sleep(Duration::from_millis(10));
        assert_eq!(tunnels(&server), 2);
    }
    let pool = format!(
        "[store]\npath = \"{}\"\n[[pool]]\nprefix = \"2001:2:0:8000::/49\"\nassign = 64\n",
        rig.lab.path("store.db").display()
    );
    assert!(server.reload(&Rig::server_config("", &(Rig::alice("udp", "") + &pool))).ok);
    let refused = churn(&server, &["--rate", "100", "--seconds", "1"]).wait_with_output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused).contains("the pool 2001:2:0:8000::/49 uses addresses"), "{}", text(&refused));
    let crowded = churn(&server, &["--rate", "100000", "--tunnels", "10"]).wait_with_output().unwrap();
    assert!(text(&crowded).contains("use --tunnels 1000 or more"), "{}", text(&crowded));
    server.stop();
}

#[test]
fn its_tunnels_are_nobody_s_to_kick() {
    let Some(rig) = Rig::new_or_skip("sixway kick churn:0") else { return };
    let pool = format!(
        "[store]\npath = \"{}\"\n[[pool]]\nprefix = \"fd00:2:8000::/40\"\nassign = 56\n",
        rig.lab.path("store.db").display()
    );
    let server = rig.server(&(Rig::alice("udp", "") + &pool));
    let kick = |who: &str| {
        let (program, socket) = (program(), server.socket().to_owned());
        rig.s.attempt(&format!("{} kick {who} --socket {}", program.display(), socket.display()))
    };
    // All of them come in the first half second, and go not before the measurement's end.
    let running = churn(&server, &["--rate", "20", "--seconds", "3", "--tunnels", "60"]);
    wait_for("tunnels of the churn", PATIENCE, || (tunnels(&server) > 2).then_some(()));
    let done = kick("churn:0");
    assert!(!done.ok && done.text.contains("belongs to a running `sixway bench churn`"), "{}", done.text);
    let done = kick("alice");
    assert!(!done.ok && done.text.contains("is in the configuration"), "{}", done.text);
    let done = kick("carol");
    assert!(!done.ok && done.text.contains("no user 'carol'"), "{}", done.text);
    assert!(running.wait_with_output().unwrap().status.success());
    assert_eq!(tunnels(&server), 1);
    server.stop();
}
