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
use std::time::{Duration, Instant};

use netns_tests::{ALICE, Job, PATIENCE, Rig, Router, S4, U6, pings, program, tunnel, wait_for};
use nix::sys::signal::Signal;

#[test]
fn a_deleted_device_ends_it_with_advice() {
    let Some(rig) = Rig::new_or_skip("somebody deletes the device") else { return };
    let server = rig.server(&Rig::alice("udp", ""));
    let alice = rig.alice_peer("udp");
    assert!(alice.ping(U6, PATIENCE).is_some());
    rig.s.run("ip link del six0");
    assert!(alice.ping(U6, Duration::from_millis(200)).is_none(), "packets meet no device");
    let said = server.gives_up(PATIENCE);
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
    wait_for("forwarding to go on", PATIENCE, || alice.ping(U6, Duration::from_millis(300)));
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
    let kept = last_drop(&server, "send_failed");
    assert_eq!((&kept["tunnel"], kept["len"].as_u64()), (&"alice".into(), Some(104)), "{kept}");
    let peer = if encap == "udp" { "to udp 10.71.0.2:5555" } else { "to proto41 10.71.0.2" };
    assert_eq!(kept["from"], peer);
    let summary = kept["summary"].as_str().unwrap();
    assert!(summary.contains(&format!("{U6} > {ALICE}: ICMPv6 echo request")), "{kept}");
    assert_eq!(kept["octets"].as_str().unwrap().len(), 2 * 104);
    rig.s.run("ip link set s0 up");
    wait_for("forwarding to go on", Duration::from_secs(10), || alice.ping(U6, Duration::from_millis(300)));
}

/// The last packet that a reason has dropped, as `sixway show drops` has it.
fn last_drop(server: &Router, reason: &str) -> serde_json::Value {
    let mut command = Command::new(program());
    let out = command.args(["show", "drops", "--json", "--socket"]).arg(server.socket()).output().unwrap();
    let all: Vec<serde_json::Value> = serde_json::from_slice(&out.stdout).unwrap();
    all.into_iter().find(|dropped| dropped["reason"] == reason).unwrap()["last"].clone()
}

/// The device is down: what comes out of a tunnel is refused, counted, and the last of it shown with its peer.
#[test]
fn what_the_device_refuses_is_counted_and_kept() {
    let Some(rig) = Rig::new_or_skip("the TUN device is down") else { return };
    let server = rig.server(&Rig::alice("udp", ""));
    let alice = rig.alice_peer("udp");
    assert!(alice.ping(U6, PATIENCE).is_some());
    rig.s.run("ip link set six0 down");
    assert!(alice.ping(U6, Duration::from_millis(300)).is_none());
    wait_for("the loss to be counted", PATIENCE, || (server.drops("tun_full") > 0).then_some(()));
    let kept = last_drop(&server, "tun_full");
    assert_eq!((&kept["tunnel"], &kept["from"]), (&"alice".into(), &"udp 10.71.0.2:5555".into()), "{kept}");
    assert!(kept["summary"].as_str().unwrap().contains(&format!("{ALICE} > {U6}: ICMPv6")), "{kept}");
}

/// The host gets another outer address while it runs: tunnels go on from there, and the MTU of the new way is found.
#[test]
fn an_outer_address_that_changes_and_a_link_that_narrows() {
    let Some(rig) = Rig::new_or_skip("the router's outer address changes") else { return };
    let config = Rig::server_config("", &Rig::alice("udp", "pmtu = \"dynamic\""));
    let server = Router::start(&rig.lab, &rig.s, &config.replace(&format!("outer = \"{S4}\"\n"), ""));
    let alice = rig.alice_peer("udp");
    assert!(alice.ping(U6, PATIENCE).is_some());
    assert_eq!(server.count("alice", "mtu"), 1472);
    rig.s.run(&format!("ip addr del {S4}/24 dev s0; ip addr add 10.71.0.9/24 dev s0"));
    alice.turn_to("10.71.0.9");
    wait_for("forwarding to go on", Duration::from_secs(10), || alice.ping(U6, Duration::from_millis(300)));
    let serving = alice.serve();
    assert_eq!(pings(&rig.u, ALICE, 3, "-M do -s 1424"), 3, "{}", server.status());
    rig.s.run("ip link set s0 mtu 1400");
    let mtu = |wanted| {
        wait_for("the MTU to follow", Duration::from_secs(10), || {
            (server.count("alice", "mtu") == wanted).then_some(())
        });
    };
    mtu(1372);
    assert_eq!(pings(&rig.u, ALICE, 3, "-M do -s 1324"), 3, "{}", server.status());
    rig.s.run("ip link set s0 mtu 1500");
    mtu(1472);
    drop(serving);
}

/// The interface narrows under many tunnels whose MTU is found: the one that sends is looked at first, and what shows that it
/// is too long is not lost.
///
/// RFC: E4 (RFC 4213 section 3.2.2)
#[test]
fn a_packet_too_long_for_our_own_link_has_its_tunnel_looked_at() {
    for (encap, overhead) in [("udp", 28), ("proto41", 20)] {
        let Some(rig) = Rig::new_or_skip(&format!("our own link narrows, 5001 tunnels, {encap}")) else {
            return;
        };
        let range = "\n[[tunnel_range]]\nname = \"r\"\nencap = \"proto41\"\nremote = \"10.90.0.0\"\n\
                     prefix = \"fd00:2:1000::/64\"\ncount = 5000\npmtu = \"dynamic\"\n";
        let server = rig.server(&(range.to_owned() + &Rig::alice(encap, "pmtu = \"dynamic\"")));
        let alice = rig.alice_peer(encap);
        let serving = alice.serve();
        let longest = format!("-M do -s {}", 1500 - overhead - 48);
        assert_eq!(pings(&rig.u, ALICE, 2, &longest), 2, "{}", server.tunnel("alice"));
        rig.s.run("ip link set s0 mtu 1400");
        let before = serving.answered();
        let begin = Instant::now();
        // The answer is too long for the narrowed link, and lost; the question is not.
        pings(&rig.u, ALICE, 1, &longest);
        assert_eq!(serving.answered(), before + 1, "{}", server.status());
        assert!(server.event("wire_fragmented") >= 1, "{}", server.status());
        wait_for("a long packet's sender to be told", Duration::from_secs(30), || {
            pings(&rig.u, ALICE, 1, &longest);
            (server.count("alice", "mtu") == 1400 - overhead).then_some(())
        });
        // A round over all takes twenty seconds.
        assert!(begin.elapsed() < Duration::from_secs(12), "after {:?}", begin.elapsed());
        assert_eq!(server.drops("send_failed"), 0);
        drop(serving);
    }
}

/// A link much slower than what is to be sent: the kernel's buffers fill up, and what it refuses is counted.
#[test]
fn full_send_buffers_lose_packets_and_no_more() {
    let Some(rig) = Rig::new_or_skip("the outer link is slow") else { return };
    let slow = rig.s.attempt("tc qdisc add dev s0 root tbf rate 200kbit burst 1600 limit 100000");
    if !slow.ok {
        netns_tests::skipped(format_args!("this kernel has no token bucket filter: {}", slow.text));
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
fn a_socket_that_takes_no_more_over_udp() {
    takes_no_more("udp");
}

#[test]
fn a_socket_that_takes_no_more_over_protocol_41() {
    takes_no_more("proto41");
}

/// The queue behind the socket is long and hardly moves, so the socket's own buffer fills up and every send says EAGAIN:
/// each is counted at its tunnel, nobody tries in a circle meanwhile, and all goes on when there is room.
fn takes_no_more(encap: &str) {
    let Some(rig) = Rig::new_or_skip(&format!("the outer socket's buffer is full, {encap}")) else { return };
    let slow = rig.s.attempt("tc qdisc add dev s0 root tbf rate 100kbit burst 1600 limit 200000000");
    if !slow.ok {
        netns_tests::skipped(format_args!("this kernel has no token bucket filter: {}", slow.text));
        return;
    }
    let server = rig.server(&Rig::alice(encap, ""));
    let alice = rig.alice_peer(encap);
    assert!(alice.ping(U6, PATIENCE).is_some());
    // One flow, so one worker and one socket, whose buffer stays full.
    let flow = rig.u.inside(|| std::net::UdpSocket::bind("[::]:0").unwrap());
    flood(&flow, 16_000);
    let refused = wait_for("sends to be refused", PATIENCE, || {
        Some(server.drops("send_failed")).filter(|refused| *refused > 100)
    });
    wait_for("the last of them to be counted", PATIENCE, || {
        (server.tunnel_drops("alice", "send_failed") == server.drops("send_failed")).then_some(())
    });
    let before = ticks(server.pid());
    for _ in 0..10 {
        flood(&flow, 40);
        thread::sleep(Duration::from_millis(100));
    }
    let used = ticks(server.pid()) - before;
    assert!(used < 30, "{used} hundredths of a second spent in one that had nothing to do");
    let later = server.drops("send_failed");
    assert!(later >= refused + 50, "what does not fit is counted all the time: {refused}, then {later}");
    rig.s.run("tc qdisc del dev s0 root");
    wait_for("forwarding to go on", PATIENCE, || alice.ping(U6, Duration::from_millis(300)));
    let after = server.drops("send_failed");
    assert_eq!(alice_hears(&alice, &rig), 10, "as before");
    assert_eq!(server.drops("send_failed"), after);
}

/// Datagrams of 1200 octets to alice, no faster than the TUN device's queue takes them.
fn flood(flow: &std::net::UdpSocket, count: u32) {
    for n in 0..count {
        let _the_kernel_may_be_busy = flow.send_to(&[7; 1152], (ALICE, 9));
        if n % 50 == 49 {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// How many of ten echo requests are answered.
fn alice_hears(alice: &netns_tests::Client, rig: &Rig) -> u32 {
    let serving = alice.serve();
    let heard = netns_tests::pings(&rig.u, ALICE, 10, "-i 0.05");
    drop(serving);
    heard
}

/// Processor time of a process, in hundredths of a second.
fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<u64> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|n| n.parse().unwrap())
        .collect();
    fields.iter().sum()
}

/// Another address in the place of the router's own: what was bound to any goes on from the new one.
#[test]
fn an_outer_address_that_changes() {
    let Some(rig) = Rig::new_or_skip("the router's outer address changes") else { return };
    let config = Rig::server_config("", &Rig::alice("udp", "")).replace("outer = \"10.71.0.1\"", "");
    let server = netns_tests::Router::start(&rig.lab, &rig.s, &config);
    let alice = rig.alice_peer("udp");
    assert!(alice.ping(U6, PATIENCE).is_some());
    rig.s.run("ip addr del 10.71.0.1/24 dev s0");
    assert!(alice.ping(U6, Duration::from_millis(300)).is_none(), "nobody is there");
    rig.s.run("ip addr add 10.71.0.9/24 dev s0");
    drop(alice);
    let socket = rig.c.inside(|| std::net::UdpSocket::bind("10.71.0.2:5555").unwrap());
    socket.connect("10.71.0.9:3653").unwrap();
    let moved = netns_tests::Client::over(&socket, ALICE);
    wait_for("forwarding by the new address", PATIENCE, || moved.ping(U6, Duration::from_millis(300)));
    rig.s.run("ip addr del 10.71.0.9/24 dev s0; ip addr add 10.71.0.1/24 dev s0");
    drop((moved, socket));
    let alice = rig.alice_peer("udp");
    wait_for("forwarding by the old address again", PATIENCE, || alice.ping(U6, Duration::from_millis(300)));
    server.stop();
}

/// A configuration that does not fit into memory: refused with both figures, at the start and at a reload.
#[test]
fn tunnels_that_memory_cannot_hold_are_refused() {
    let Some(rig) = Rig::new_or_skip("more tunnels than memory") else { return };
    let range = "\n[[tunnel_range]]\ncount = 1000000\nname = \"t\"\nencap = \"udp\"\n\
                 prefix = \"2001:db8:100::/64\"\nremote = \"10.128.0.0:4000\"\n";
    let config = rig.lab.write("large.toml", &Rig::server_config("", range));
    let (program, config) = (program(), config);
    let line = format!("ulimit -v 900000; exec {} run --config {}", program.display(), config.display());
    let said = rig.s.attempt(&line);
    assert!(!said.ok, "{}", said.text);
    for word in ["1000000 tunnels", "ulimit -v", "fewer tunnels"] {
        assert!(said.text.contains(word), "'{word}' is not in: {}", said.text);
    }
    let server = rig.server(&Rig::alice("udp", ""));
    let alice = rig.alice_peer("udp");
    rig.s.run(&format!("prlimit --as=950000000 --pid {}", server.pid()));
    let refused = server.reload(&Rig::server_config("", &(Rig::alice("udp", "") + range)));
    assert!(!refused.ok && refused.text.contains("fewer tunnels"), "{}", refused.text);
    assert!(alice.ping(U6, PATIENCE).is_some(), "it goes on as before");
}

#[test]
fn an_early_sigterm_is_a_proper_end() {
    let Some(rig) = Rig::new_or_skip("SIGTERM while it starts") else { return };
    for delay in DELAYS {
        let (job, socket) = just_started(&rig, delay);
        let status = job.end(Signal::SIGTERM, Duration::from_secs(60));
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
        wait_for("an answer after an early SIGHUP", Duration::from_secs(60), || {
            let ended = job.exited();
            assert!(ended.is_none(), "SIGHUP {delay} ms after its start: {ended:?}");
            answers(&socket).then_some(())
        });
        assert!(job.end(Signal::SIGTERM, Duration::from_secs(60)).success());
    }
}

/// The router, this many milliseconds after it has taken signals in hand, with much to set up.
fn just_started(rig: &Rig, delay: u64) -> (Job, PathBuf) {
    let socket = rig.lab.path("early.sock");
    let range = "\n[[tunnel_range]]\ncount = 200000\nname = \"t\"\nencap = \"udp\"\n\
                 prefix = \"2001:db8:200::/64\"\nremote = \"10.128.0.0:4000\"\n";
    let admin = format!("[admin]\nsocket = \"{}\"\n", socket.display());
    let config = rig.lab.write("early.toml", &Rig::server_config("", &(range.to_owned() + &admin)));
    let args = ["run", "--config", &config.to_string_lossy()];
    let job = rig.s.spawn(&program(), &args, &rig.lab.path("early.log"));
    // Until then it is `ip netns exec`, whose signals are its own, or has nothing that it could leave behind.
    wait_for("the program to hold SIGTERM back", PATIENCE, || holds_signals(job.pid()).then_some(()));
    thread::sleep(Duration::from_millis(delay));
    (job, socket)
}

/// Whether it is our program, and SIGTERM does not end it halfway any more (proc(5), `status`): it waits, or is taken.
fn holds_signals(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
    let bits = |name| u64::from_str_radix(field(name), 16).unwrap_or(0);
    let term = 1 << (Signal::SIGTERM as u32 - 1);
    field("Name:") == "sixway" && (bits("SigBlk:") | bits("SigCgt:")) & term != 0
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
    job.end(Signal::SIGTERM, PATIENCE);
    assert!(!Path::new(&format!("/proc/{child}")).exists(), "the command stayed");
    assert!(!socket.exists(), "its socket file stayed");
}

/// Milliseconds. The first ones fall into reading the configuration, the last one into setting up.
const DELAYS: [u64; 4] = [0, 20, 50, 150];
