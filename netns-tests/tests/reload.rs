//! Reload is a diff: tunnels that did not change lose no packet, a bad file changes nothing.
//!
//! ```text
//!   C alice ══ S ──IPv6── U      a hundred other tunnels come and go beside alice's
//! ```

#![allow(clippy::unwrap_used, reason = "a test has nobody to return an error to")]

use std::collections::HashSet;
use std::thread;
use std::time::Duration;

use netns_tests::{ALICE, C4, Client, Ends, PATIENCE, Rig, U6, icmp, tunnel, wait_for};
use nix::sys::signal::Signal;

const FLOOD: u16 = 3000;

#[test]
fn protocol_41_loses_nothing() {
    without_loss("proto41");
}

#[test]
fn udp_loses_nothing() {
    without_loss("udp");
}

fn without_loss(encap: &str) {
    let Some(rig) = Rig::new_or_skip(&format!("reload loses no packet over {encap}")) else { return };
    let quiet = Rig::server_config("", &Rig::alice(encap, ""));
    let busy = Rig::server_config("", &(others() + &Rig::alice(encap, "") + &Rig::bob("")));
    let server = rig.server(&Rig::alice(encap, ""));
    let alice = rig.alice_peer(encap);
    assert!(alice.ping(U6, PATIENCE).is_some());

    let answered = thread::scope(|scope| {
        let flood = scope.spawn(|| flood(&alice));
        let mut reloads = 0;
        while !flood.is_finished() {
            let done = server.reload(if reloads % 2 == 0 { &busy } else { &quiet });
            assert!(done.ok, "{}", done.text);
            reloads += 1;
        }
        println!("    {reloads} reloads meanwhile");
        assert!(reloads >= 4);
        flood.join().unwrap()
    });
    let traces = rig.s.run("ip -s link show six0; grep -E '^Udp:|^Ip:' /proc/net/snmp; cat /proc/net/raw");
    assert_eq!(answered, usize::from(FLOOD), "echo requests came back; {traces}\n{}", server.tunnel("alice"));
    assert!(server.count("alice", "rx_packets") > u64::from(FLOOD), "her counters went on");
}

/// Paced echo requests, at a thousand a second; how many different ones were answered.
fn flood(alice: &Client) -> usize {
    thread::scope(|scope| {
        scope.spawn(|| {
            for seq in 0..FLOOD {
                alice.send(&Ends::new(ALICE, U6).echo_request(4242, seq, 100));
                thread::sleep(Duration::from_millis(1));
            }
        });
        let mut answered = HashSet::new();
        // One wait for the whole flood: it ends when all are there, or a while after the last one.
        alice.wait(Duration::from_secs(12), |got| {
            let reply = got.echo().filter(|_| got.icmp_type() == Some(icmp::ECHO_REPLY));
            answered.extend(reply.filter(|(id, _)| *id == 4242));
            (answered.len() == usize::from(FLOOD)).then_some(())
        });
        answered.len()
    })
}

fn others() -> String {
    (1..=100)
        .map(|n| {
            let remote = format!("10.72.0.{n}:4000");
            tunnel(&format!("x{n}"), "udp", &remote, &format!("fd00:2:f{n:03}::/64"), "")
        })
        .collect()
}

#[test]
fn tunnels_come_go_and_change() {
    let Some(rig) = Rig::new_or_skip("reload adds, changes and removes tunnels") else { return };
    let server = rig.server(&Rig::alice("proto41", ""));
    let (alice, bob) = (rig.alice_peer("proto41"), rig.bob_peer());
    assert!(bob.ping(U6, Duration::from_millis(300)).is_none(), "nobody knows bob yet");

    let both = Rig::server_config("", &(Rig::alice("proto41", "") + &Rig::bob("")));
    assert!(server.reload(&both).ok);
    assert!(bob.ping(U6, PATIENCE).is_some() && alice.ping(U6, PATIENCE).is_some());

    let changed = both.replace("fd00:2:2::/64", "fd00:2:3::/64");
    assert!(server.reload(&changed).ok);
    assert!(bob.ping(U6, Duration::from_millis(300)).is_none(), "his prefix is another one now");
    let moved = Ends::new("fd00:2:3::2", U6).echo_request(3, 1, 64);
    bob.send(&moved);
    assert!(bob.wait(PATIENCE, |got| (got.echo() == Some((3, 1))).then_some(())).is_some());

    // Another setting leaves what was seen of a peer; another peer has not been seen.
    let seen = |name: &str| server.tunnel(name)["last_seen_s"].is_u64();
    assert!(seen("alice") && seen("bob"));
    assert!(server.reload(&changed.replacen("[[tunnel]]\n", "[[tunnel]]\nmtu = 1400\n", 2)).ok);
    assert!(seen("alice") && seen("bob"));
    let elsewhere = changed.replacen(&format!("remote = \"{C4}\""), "remote = \"10.71.0.77\"", 1);
    assert!(server.reload(&elsewhere).ok);
    assert!(!seen("alice") && seen("bob"), "{}", server.tunnel("alice"));

    let bob_only = Rig::server_config("", &Rig::bob(""));
    server.rewrite(&bob_only);
    server.signal(Signal::SIGHUP);
    wait_for("SIGHUP to reload", PATIENCE, || bob.ping(U6, Duration::from_millis(200)));
    assert!(alice.ping(U6, Duration::from_millis(300)).is_none(), "alice is gone");
    let names = server.status()["tunnels"].as_array().map(Vec::len);
    assert_eq!(names, Some(1));
}

#[test]
fn a_bad_file_changes_nothing_and_says_why() {
    let Some(rig) = Rig::new_or_skip("a reload of a bad file changes nothing") else { return };
    let server = rig.server(&Rig::alice("udp", ""));
    let alice = rig.alice_peer("udp");
    assert!(alice.ping(U6, PATIENCE).is_some());
    let twice = Rig::alice("udp", "") + &tunnel("eve", "udp", "10.71.0.9:1", "fd00:2:1::/64", "");
    let done = server.reload(&Rig::server_config("", &twice));
    assert!(!done.ok && done.text.contains("alice") && done.text.contains("eve"), "{}", done.text);
    let done = server.reload("[router]\nhairpinn = true\n");
    assert!(!done.ok && done.text.contains("hairpin"), "{}", done.text);
    assert!(alice.ping(U6, PATIENCE).is_some());
    assert_eq!(server.count("alice", "rx_packets"), 2, "neither she nor her counters were touched");
    server.stop();
}

#[test]
fn protocol_41_needs_its_sockets_from_the_start() {
    let Some(rig) = Rig::new_or_skip("a reload cannot bring protocol 41 to a router without its sockets")
    else {
        return;
    };
    let off = "[proto41]\nenabled = false\n";
    let server = rig.server(&(off.to_owned() + &Rig::alice("udp", "")));
    let alice = rig.alice_peer("udp");
    assert!(alice.ping(U6, PATIENCE).is_some());
    let wanted = Rig::alice("udp", "") + &tunnel("eve", "proto41", "10.71.0.9", "fd00:2:9::/64", "");
    let done = server.reload(&Rig::server_config("", &wanted));
    assert!(!done.ok && done.text.contains("eve") && done.text.contains("restart"), "{}", done.text);
    assert!(alice.ping(U6, PATIENCE).is_some(), "her tunnel was not touched");
    server.stop();
}
