//! The operator asks about packets: explain, show drops, trace, capture, audit, of a router that forwards for a real peer.
//!
//! ```text
//!   C alice ══ S six0 ──IPv6── U      the questions go to S by its socket
//! ```

#![allow(clippy::unwrap_used, reason = "a test has nobody to return an error to")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use netns_tests::{
    ALICE, C4_OTHER, Client, Done, Ends, PATIENCE, ROUTER6, Rig, Router, U6, program, wait_for,
};
use serde_json::Value;

fn ask(server: &Router, words: &[&str]) -> Done {
    let out = Command::new(program()).args(words).arg("--socket").arg(server.socket()).output().unwrap();
    let text = [out.stdout, out.stderr].concat();
    println!("sixway {}\n{}", words.join(" "), String::from_utf8_lossy(&text));
    Done { ok: out.status.success(), text: String::from_utf8_lossy(&text).into_owned() }
}

fn json(server: &Router, words: &[&str]) -> Value {
    let said = ask(server, &[words, &["--json"]].concat());
    serde_json::from_str(said.text.lines().next().unwrap_or_default())
        .unwrap_or_else(|_| panic!("{}", said.text))
}

fn checks(said: &Value) -> Vec<(String, String)> {
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    said["checks"].as_array().unwrap().iter().map(|c| (text(&c["check"]), text(&c["result"]))).collect()
}

#[test]
fn explain_says_what_the_forwarder_then_does() {
    let Some(rig) = Rig::new_or_skip("sixway explain") else { return };
    let server = rig.server(&Rig::alice("udp", ""));
    let alice = rig.alice_peer("udp");
    let explain = |more: &[&str]| json(&server, &[&["explain", "--tunnel", "alice"], more].concat());
    let good = explain(&["--dst", ALICE, "--len", "1280"]);
    assert_eq!(good["verdict"], "into tunnel alice");
    assert!(checks(&good).iter().all(|(_, result)| result != "stopped"), "{good}");
    let big = explain(&["--dst", ALICE, "--len", "1500"]);
    assert_eq!(big["reason"], "too_big");
    assert_eq!(checks(&big).iter().find(|(_, r)| r == "stopped").unwrap().0, "size");
    assert!(!big["advice"].as_array().unwrap().is_empty());
    let out = explain(&["--dst", U6, "--from-wire"]);
    assert_eq!(out["verdict"], "to the kernel");
    let spoofed = explain(&["--dst", U6, "--from-wire", "--src", U6]);
    assert_eq!(spoofed["reason"], "source_not_in_prefix");
    let own = explain(&["--dst", U6, "--from-wire", "--src", ROUTER6]);
    assert_eq!(own["reason"], "source_is_local");
    // The kernel's own listener reports may be.
    for reason in ["too_big", "source_not_in_prefix", "source_is_local"] {
        assert_eq!(server.drops(reason), 0, "{reason} was counted");
    }
    // And so it is.
    server.expect_drops("source_not_in_prefix", 1, || alice.send(&Ends::new(U6, U6).echo_request(1, 1, 64)));
    let text = ask(&server, &["explain", "--tunnel", "alice", "--dst", ALICE, "--len", "1500"]).text;
    assert!(text.contains("verdict: dropped: too_big; its sender is told: packet too big"), "{text}");
    let nobody = ask(&server, &["explain", "--tunnel", "carol", "--dst", ALICE]);
    assert!(!nobody.ok && nobody.text.contains("there is no tunnel 'carol'"), "{}", nobody.text);
    let near = ask(&server, &["status", "--tunnel", "alcie"]);
    assert!(!near.ok && near.text.contains("did you mean 'alice'?"), "{}", near.text);
    assert!(!ask(&server, &["explain", "--tunnel", "alice", "--dst", ALICE, "--len", "39"]).ok);
}

#[test]
fn the_last_packet_dropped_is_shown() {
    let Some(rig) = Rig::new_or_skip("sixway show drops") else { return };
    let server = rig.server(&Rig::alice("proto41", ""));
    assert!(!ask(&server, &["show", "drops"]).text.contains("wrong_outer"));
    let stranger = Client::proto41(&rig.c, C4_OTHER, ALICE);
    let packet = Ends::new(ALICE, U6).echo_request(7, 9, 64);
    server.expect_drops("wrong_outer", 1, || stranger.send(&packet));
    let all = json(&server, &["show", "drops"]);
    let found = all.as_array().unwrap().iter().find(|d| d["reason"] == "wrong_outer").unwrap();
    let last = &found["last"];
    assert_eq!((&found["count"], &last["tunnel"]), (&Value::from(1), &Value::from("alice")));
    assert_eq!(last["from"], format!("proto41 {C4_OTHER}"));
    let octets: String = packet.iter().take(128).map(|b| format!("{b:02x}")).collect();
    assert_eq!(last["octets"], octets);
    let text = ask(&server, &["show", "drops"]).text;
    assert!(
        text.contains(&format!("{ALICE} > {U6}: ICMPv6 echo request")) && text.contains("next: "),
        "{text}"
    );
}

struct Viewer(Child);

impl Viewer {
    fn start(server: &Router, words: &[&str]) -> Self {
        let mut command = Command::new(program());
        command.args(words).arg("--socket").arg(server.socket()).stdout(Stdio::piped());
        Self(command.spawn().unwrap())
    }

    /// What it printed, once it has ended by itself.
    fn output(mut self) -> String {
        let mut text = String::new();
        self.0.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        assert!(self.0.wait().unwrap().success(), "{text}");
        text
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        let _it_may_have_ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// Pings until the viewer has ended.
fn ping_until_done(viewer: &mut Viewer, alice: &Client) {
    wait_for("the viewer to have seen enough", PATIENCE, || {
        assert!(alice.ping(U6, PATIENCE).is_some());
        viewer.0.try_wait().unwrap().map(std::mem::drop)
    });
}

#[test]
fn trace_and_capture_show_packets_with_their_verdicts() {
    let Some(rig) = Rig::new_or_skip("sixway trace and capture") else { return };
    let server = rig.server(&(Rig::alice("udp", "") + &Rig::bob("")));
    let (alice, bob) = (rig.alice_peer("udp"), rig.bob_peer());
    let file = rig.lab.path("alice.pcapng");
    let file = file.to_str().unwrap();
    let mut trace = Viewer::start(&server, &["trace", "alice", "--count", "4", "--json"]);
    let mut capture = Viewer::start(&server, &["capture", "alice", "-w", file, "--count", "4"]);
    assert!(bob.ping(U6, PATIENCE).is_some());
    ping_until_done(&mut trace, &alice);
    ping_until_done(&mut capture, &alice);
    let seen: Vec<Value> = trace.output().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(seen.len(), 4);
    assert!(seen.iter().all(|packet| packet["tunnel"] == "alice"), "bob's are not shown");
    let words = |verdict: &str| seen.iter().filter(|packet| packet["verdict"] == verdict).count();
    assert_eq!((words("to the kernel"), words("into tunnel alice")), (2, 2), "{seen:?}");
    assert!(capture.output().is_empty());
    look_with_tshark(file);
}

/// The file as others read it.
fn look_with_tshark(file: &str) {
    let fields = ["-e", "ipv6.src", "-e", "icmpv6.type", "-e", "frame.comment", "-e", "frame.interface_name"];
    let read = Command::new("tshark").args(["-r", file, "-T", "fields"]).args(fields).output();
    let Ok(read) = read else {
        netns_tests::skipped("tshark is not installed; the file was not read by another program");
        assert_eq!(fs::read(file).unwrap()[..4], [0x0a, 0x0d, 0x0d, 0x0a]);
        return;
    };
    let text = String::from_utf8_lossy(&read.stdout).into_owned();
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    assert_eq!(text.lines().count(), 4, "{text}");
    let out = format!("{ALICE}\t128\tto the kernel; from udp");
    assert!(text.lines().any(|line| line.starts_with(&out) && line.ends_with("peer")), "{text}");
    assert!(text.lines().any(|line| line.contains("into tunnel alice; from kernel")), "{text}");
}

#[test]
fn a_viewer_that_goes_away_frees_everything() {
    let Some(rig) = Rig::new_or_skip("viewers come and go") else { return };
    let server = rig.server(&Rig::alice("udp", ""));
    let alice = rig.alice_peer("udp");
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count();
    let before = descriptors();
    let watch = || {
        let mut viewer = UnixStream::connect(server.socket()).unwrap();
        viewer.write_all(b"{\"cmd\":\"watch\",\"tunnel\":\"alice\"}\n").unwrap();
        let mut first = String::new();
        BufReader::new(viewer.try_clone().unwrap()).read_line(&mut first).unwrap();
        (viewer, first)
    };
    for _ in 0..3 {
        let all: Vec<_> = (0..8).map(|_| watch()).collect();
        assert!(all.iter().all(|(_, first)| first.contains("watching")), "{all:?}");
        assert!(watch().1.contains("viewers watch already"));
        // They read nothing; the router goes on, and nobody waits for them.
        for _ in 0..50 {
            assert!(alice.ping(U6, PATIENCE).is_some());
        }
        drop(all);
        wait_for("the viewers to be forgotten", PATIENCE, || {
            assert!(alice.ping(U6, PATIENCE).is_some());
            (descriptors() == before).then_some(())
        });
    }
    let punted = server.event("watch_missed");
    let (mut again, _) = watch();
    rig.s.attempt("true");
    let gone = server.reload(&Rig::server_config("", &Rig::bob("")));
    assert!(gone.ok, "{}", gone.text);
    let mut rest = String::new();
    again.set_read_timeout(Some(PATIENCE)).unwrap();
    again.read_to_string(&mut rest).unwrap();
    assert_eq!(server.event("watch_missed"), punted, "its tunnel is gone, and so is the view");
}

#[test]
fn an_audit_passes_or_says_what_to_do() {
    let Some(rig) = Rig::new_or_skip("sixway audit") else { return };
    rig.s.run("sysctl -qw net.ipv4.conf.all.rp_filter=2");
    let server = rig.server(&(Rig::alice("udp", "") + &Rig::bob("") + "\n[proto41]\nenabled = false\n"));
    let good = ask(&server, &["audit"]);
    assert!(good.ok && !good.text.contains("FAIL"), "{}", good.text);
    let all = json(&server, &["audit"]);
    let outcome = |name: &str| {
        let found = all.as_array().unwrap().iter().find(|f| f["name"] == name).unwrap();
        found["outcome"].as_str().unwrap().to_owned()
    };
    for name in
        ["default_deny", "ingress_filtering", "wrong_outer", "own_addresses", "loops", "inner_martians"]
    {
        assert_eq!(outcome(name), "pass", "{name}");
    }
    rig.s.run("for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $f; done");
    rig.s.run("sysctl -qw net.ipv6.conf.all.forwarding=0");
    rig.s.run(&format!("chmod 666 {}", server.socket().display()));
    let bad = ask(&server, &["audit"]);
    assert!(!bad.ok && bad.text.contains("3 of"), "{}", bad.text);
    for advice in ["chmod 600", "net.ipv6.conf.all.forwarding=1", "rp_filter=2"] {
        assert!(bad.text.contains(advice), "{advice}: {}", bad.text);
    }
}
