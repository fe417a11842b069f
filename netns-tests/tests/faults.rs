//! The world turns against it: devices are deleted, go down, are slow or full; signals come too early, the end comes while a command runs.
//!
//! ```text
//!   C alice ══ S six0 ──IPv6── U      six0 goes away, or S is still starting
//! ```

#![allow(clippy::unwrap_used, reason = "a test has nobody to return an error to")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use netns_tests::{ALICE, Job, Rig, U6, program, tunnel, wait_for};
use nix::sys::signal::Signal;

const PATIENCE: Duration = Duration::from_secs(2);

#[test]
fn a_deleted_device_ends_it_with_advice() {
    let Some(rig) = Rig::new_or_skip("somebody deletes the device") else { return };
    let server = rig.server(&Rig::alice("udp", ""));
    let alice = rig.alice_peer("udp");
    assert!(alice.ping(U6, PATIENCE).is_some());
    rig.s.run("ip link del six0");
    assert!(alice.ping(U6, Duration::from_millis(200)).is_none(), "packets meet no device");
    let said = server.gives_up(Duration::from_secs(3));
    assert!(!said.ok && said.text.contains("'six0' is gone"), "{}", said.text);
    assert!(said.text.contains("start sixway again") && !said.text.contains("bug"), "{}", said.text);
}

/// The kernel cannot get rid of its packets for a while; those that it drops are in its own count.
#[test]
fn a_full_tun_queue_is_survived_and_counted_by_the_kernel() {
    let Some(rig) = Rig::new_or_skip("the TUN device's queue is full") else { return };
    let server = rig.server(&Rig::alice("udp", ""));
    let alice = rig.alice_peer("udp");
    assert!(alice.ping(U6, PATIENCE).is_some());
    rig.s.run("ip link set six0 txqueuelen 20");
    server.signal(Signal::SIGSTOP);
    rig.u.attempt(&format!("ping -n -q -f -c 300 -W 1 -w 3 {ALICE}"));
    server.signal(Signal::SIGCONT);
    let dropped: u64 = rig.s.run("cat /sys/class/net/six0/statistics/tx_dropped").trim().parse().unwrap();
    assert!(dropped > 100, "the kernel has dropped {dropped}");
    assert!(server.count("alice", "tx_packets") < 300);
    wait_for("forwarding to go on", PATIENCE, || alice.ping(U6, PATIENCE));
}

#[test]
fn an_outer_interface_that_goes_down_and_up_over_udp() {
    down_and_up("udp");
}

#[test]
fn an_outer_interface_that_goes_down_and_up_over_protocol_41() {
    down_and_up("proto41");
}

/// What cannot be sent meanwhile is counted, and nothing has to be started again.
fn down_and_up(encap: &str) {
    let Some(rig) = Rig::new_or_skip(&format!("the outer interface goes down and up, {encap}")) else {
        return;
    };
    let server = rig.server(&Rig::alice(encap, ""));
    let alice = rig.alice_peer(encap);
    assert!(alice.ping(U6, PATIENCE).is_some());
    rig.s.run("ip link set s0 down");
    rig.u.attempt(&format!("ping -n -q -i 0.1 -c 10 -W 1 {ALICE}"));
    wait_for("the losses to be counted", PATIENCE, || (server.drops("send_failed") >= 10).then_some(()));
    assert_eq!(server.tunnel_drops("alice", "send_failed"), server.drops("send_failed"));
    rig.s.run("ip link set s0 up");
    wait_for("forwarding to go on", Duration::from_secs(10), || alice.ping(U6, Duration::from_millis(300)));
}

/// A link much slower than what is to be sent: the kernel's buffers fill up, and what it refuses is counted.
#[test]
fn full_send_buffers_lose_packets_and_no_more() {
    let Some(rig) = Rig::new_or_skip("the outer link is slow") else { return };
    let slow = rig.s.attempt("tc qdisc add dev s0 root tbf rate 200kbit burst 1600 limit 100000");
    if !slow.ok {
        println!("SKIPPED: this kernel has no token bucket filter: {}", slow.text);
        return;
    }
    let server = rig.server(&Rig::alice("udp", ""));
    let alice = rig.alice_peer("udp");
    assert!(alice.ping(U6, PATIENCE).is_some());
    rig.s.run("sysctl -qw net.core.wmem_max=4608 || true");
    rig.u.attempt(&format!("ping -n -q -f -s 1000 -c 5000 -W 1 -w 3 {ALICE}"));
    let sent = server.count("alice", "tx_packets") + server.drops("send_failed");
    assert!(sent > 100, "{sent} of the flood have come");
    assert!(rig.s.run("tc -s qdisc show dev s0").contains("dropped"));
    rig.s.run("tc qdisc del dev s0 root");
    wait_for("forwarding to go on", PATIENCE, || alice.ping(U6, Duration::from_millis(300)));
}

#[test]
fn an_early_sigterm_is_a_proper_end() {
    let Some(rig) = Rig::new_or_skip("SIGTERM while it starts") else { return };
    for delay in DELAYS {
        let (job, socket) = just_started(&rig, delay);
        let status = job.end(Signal::SIGTERM, Duration::from_secs(10));
        assert_eq!(status.code(), Some(0), "SIGTERM {delay} ms after its start: {status}");
        assert!(!socket.exists(), "its socket file stayed");
        assert!(!rig.s.run("ip -o link").contains("six0"), "its device stayed");
    }
}

#[test]
fn an_early_sighup_is_survived() {
    let Some(rig) = Rig::new_or_skip("SIGHUP while it starts") else { return };
    for delay in DELAYS {
        let (mut job, socket) = just_started(&rig, delay);
        job.signal(Signal::SIGHUP);
        wait_for("an answer after an early SIGHUP", Duration::from_secs(20), || {
            let ended = job.exited();
            assert!(ended.is_none(), "SIGHUP {delay} ms after its start: {ended:?}");
            answers(&socket).then_some(())
        });
        assert!(job.end(Signal::SIGTERM, Duration::from_secs(10)).success());
    }
}

/// The router, this many milliseconds after it became a process of its own, with much to set up.
fn just_started(rig: &Rig, delay: u64) -> (Job, PathBuf) {
    let socket = rig.lab.path("early.sock");
    let range = "\n[[tunnel_range]]\ncount = 200000\nname = \"t\"\nencap = \"udp\"\n\
                 prefix = \"2001:db8:200::/64\"\nremote = \"10.128.0.0:4000\"\n";
    let admin = format!("[admin]\nsocket = \"{}\"\n", socket.display());
    let config = rig.lab.write("early.toml", &Rig::server_config("", &(range.to_owned() + &admin)));
    let args = ["run", "--config", &config.to_string_lossy()];
    let job = rig.s.spawn(&program(), &args, &rig.lab.path("early.log"));
    let comm = format!("/proc/{}/comm", job.pid());
    // Until then it is `ip netns exec`, whose signals are its own.
    wait_for("the program to be executed", PATIENCE, || {
        fs::read_to_string(&comm).is_ok_and(|name| name.trim() == "sixway").then_some(())
    });
    thread::sleep(Duration::from_millis(delay));
    (job, socket)
}

fn answers(socket: &Path) -> bool {
    let mut command = Command::new(program());
    let asked = command.args(["status", "--json", "--limit", "1", "--socket"]).arg(socket).output();
    asked.unwrap().status.success()
}

#[test]
fn sigterm_ends_the_command_in_a_network_of_its_own() {
    let Some(rig) = Rig::new_or_skip("SIGTERM to run --unshare") else { return };
    let socket = rig.lab.path("unshared.sock");
    let up = tunnel("up", "udp", "10.71.0.1:3653", "::/0", "default_route = true");
    let config = format!(
        "[router]\naddress = [\"fd00:2:1::2/64\"]\n[udp]\nports = [5555]\n[admin]\nsocket = \"{}\"\n{up}",
        socket.display()
    );
    let config = rig.lab.write("unshared.toml", &config);
    let args = ["run", "--unshare", "--config", &config.to_string_lossy(), "--", "sleep", "30"];
    let job = rig.c.spawn(&program(), &args, &rig.lab.path("unshared.log"));
    let child = wait_for("the command to run", Duration::from_secs(10), || {
        let child = rig.c.attempt(&format!("pgrep -x -P {} sleep", job.pid()));
        child.ok.then(|| child.text.trim().to_owned())
    });
    job.end(Signal::SIGTERM, Duration::from_secs(2));
    assert!(!Path::new(&format!("/proc/{child}")).exists(), "the command stayed");
    assert!(!socket.exists(), "its socket file stayed");
}

/// Milliseconds. The first ones fall into reading the configuration; before them it may not even have loaded its
/// libraries.
const DELAYS: [u64; 3] = [30, 50, 150];
