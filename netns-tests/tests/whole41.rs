//! Protocol-41 super-packets that leave whole: what an interface makes of them must be what the router would have cut
//! itself, and where they cannot go whole they must go in pieces.
//!
//! ```text
//!   C observes c0 ──── (cuts for itself: segmentation offload off) s0 S s1 ──── u0 U sends
//! ```

#![allow(clippy::unwrap_used, reason = "a test has nobody to return an error to")]

use std::time::Duration;

use netns_tests::{ALICE, IPV4, Inner, Observer, PATIENCE, Rig, Router, U6, transfer, wait_for};
use nix::sys::socket::{setsockopt, sockopt};

const BYTES: u64 = 10 << 20;

/// What is to be known of an outer packet on the wire.
#[derive(Clone, Copy)]
struct Seen {
    len: usize,
    identification: u16,
    may_fragment: bool,
    is_fragment: bool,
    sound: bool,
}

#[test]
fn an_interface_cuts_them_as_the_router_would() {
    let Some(rig) = Rig::new_or_skip("super-packets by protocol 41, cut by the interface") else { return };
    rig.s.run("ethtool -K s0 tx-ipxip4-segmentation off tx-checksumming off gso on");
    let (server, client) = (rig.server(&Rig::alice("proto41", "mtu = 1480")), rig.client("proto41", 1480));
    expect_whole(&server);
    // How long trains become is the sender's TCP's business; on a busy machine it may take more than one connection.
    whole_after_a_while("nearly all segments of trains", || {
        let seen = observe(&rig);
        transfer(&rig.u, &rig.c, ALICE, BYTES);
        let seen = seen.finish();
        let full: Vec<_> = seen.iter().filter(|p| p.len > 1000).collect();
        assert!(full.len() as u64 > BYTES / 1500, "only {} full segments were seen", full.len());
        assert!(seen.iter().all(|p| p.sound && p.may_fragment && !p.is_fragment && p.len <= 1500));
        // A train's segments count their identification up.
        let steps =
            full.windows(2).filter(|w| w[1].identification == w[0].identification.wrapping_add(1)).count();
        let are_trains = steps * 10 > full.len() * 8 && trains(&server) > 20;
        are_trains.then_some(()).ok_or_else(|| format!("{steps} of {} count up", full.len()))
    });
    transfer(&rig.c, &rig.u, U6, BYTES);
    drop(client);
}

#[test]
fn they_pass_an_interface_that_takes_them_whole() {
    let Some(rig) = Rig::new_or_skip("super-packets by protocol 41, whole all the way") else { return };
    let (server, client) = (rig.server(&Rig::alice("proto41", "mtu = 1480")), rig.client("proto41", 1480));
    whole_after_a_while("to the client", || {
        let seen = observe(&rig);
        transfer(&rig.u, &rig.c, ALICE, BYTES);
        let longest = seen.finish().iter().map(|p| p.len).max().unwrap_or(0);
        (longest > 30_000 && trains(&server) > 20).then_some(()).ok_or_else(|| format!("{longest} octets"))
    });
    whole_after_a_while("from the client", || {
        transfer(&rig.c, &rig.u, U6, BYTES);
        let moved = trains(&client);
        (moved > 20).then_some(()).ok_or_else(|| format!("{moved} trains"))
    });
}

/// Tries a few times; panics with the last result.
fn whole_after_a_while(way: &str, mut attempt: impl FnMut() -> Result<(), String>) {
    let mut last = String::new();
    for _ in 0..6 {
        match attempt() {
            Ok(()) => return,
            Err(found) => last = found,
        }
    }
    panic!("{way}: nothing came whole: {last}");
}

/// RFC: E6 (RFC 4459 section 3.1)
#[test]
fn segments_longer_than_the_interface_takes_are_cut_and_fragmented() {
    let Some(rig) = Rig::new_or_skip("super-packets by protocol 41 over a short link") else { return };
    let (server, client) = (rig.server(&Rig::alice("proto41", "mtu = 1480")), rig.client("proto41", 1480));
    rig.s.run("ip link set s0 mtu 1400");
    let seen = observe(&rig);
    transfer(&rig.u, &rig.c, ALICE, BYTES / 10);
    assert!(seen.finish().iter().any(|p| p.is_fragment), "nothing was fragmented");
    assert!(server.status()["events"]["wire_split"].as_u64().unwrap() > 0);
    drop(client);
}

#[test]
fn another_way_to_the_peer_is_taken_when_routing_says_so() {
    let Some(rig) = Rig::new_or_skip("super-packets by protocol 41 while the route to the peer moves") else {
        return;
    };
    rig.lab.veth(&rig.c, "c9", &rig.s, "s9");
    rig.c.run("ip addr add 10.79.0.2/24 dev c9; sysctl -qw net.ipv4.conf.all.rp_filter=0");
    rig.c.run("sysctl -qw net.ipv4.conf.c0.rp_filter=0 net.ipv4.conf.c9.rp_filter=0");
    rig.s.run("ip addr add 10.79.0.1/24 dev s9");
    let (server, client) = (rig.server(&Rig::alice("proto41", "mtu = 1480")), rig.client("proto41", 1480));
    transfer(&rig.u, &rig.c, ALICE, BYTES);
    rig.s.run("ip route add 10.71.0.2/32 via 10.79.0.2 dev s9 src 10.71.0.1");
    // An answer of routing is remembered for a second.
    std::thread::sleep(Duration::from_millis(2500));
    let before = sent_by(&rig, "s9");
    transfer(&rig.u, &rig.c, ALICE, BYTES);
    let moved = sent_by(&rig, "s9") - before;
    assert!(moved > BYTES, "{moved} octets left by the new way");
    let asked = server.event("routes_asked");
    assert!((2..20).contains(&asked) && server.event("routes_put_off") == 0, "{}", server.status());
    whole_after_a_while("by the new way", || {
        transfer(&rig.u, &rig.c, ALICE, BYTES);
        (trains(&server) > 20).then_some(()).ok_or_else(|| format!("{} trains", trains(&server)))
    });
    drop(client);
}

#[test]
fn without_the_loopback_device_they_are_cut_and_status_says_so() {
    let Some(rig) = Rig::new_or_skip("super-packets by protocol 41 where the loopback device is down") else {
        return;
    };
    rig.s.run("ip link set lo down");
    let (server, client) = (rig.server(&Rig::alice("proto41", "mtu = 1480")), rig.client("proto41", 1480));
    let told = standing(&server);
    assert_eq!(told["state"], "refused");
    assert!(told["why"].as_str().unwrap().contains("loopback"), "status says: {told}");
    transfer(&rig.u, &rig.c, ALICE, BYTES);
    drop(client);
}

#[test]
fn they_are_cut_where_the_configuration_says_so() {
    let Some(rig) = Rig::new_or_skip("super-packets by protocol 41 turned off") else { return };
    let config =
        Rig::server_config("", &Rig::alice("proto41", "mtu = 1480")) + "[offload]\nproto41_gso = false\n";
    let server = Router::start(&rig.lab, &rig.s, &config);
    let client = rig.client("proto41", 1480);
    assert_eq!(standing(&server)["state"], "off");
    let seen = observe(&rig);
    transfer(&rig.u, &rig.c, ALICE, BYTES);
    assert!(seen.finish().iter().all(|p| p.sound), "a checksum is wrong");
    drop(client);
}

/// RFC 4891: protocol 41 may be protected by IPsec; what leaves unprotected in spite of a policy is a leak.
#[test]
fn an_ipsec_policy_is_not_passed_by() {
    let Some(rig) = Rig::new_or_skip("super-packets by protocol 41 under an IPsec policy") else { return };
    let policy = "src 10.71.0.1 dst 10.71.0.2 proto 41 dir out";
    if !rig.s.attempt("ip xfrm policy list").ok {
        return netns_tests::skipped("this kernel has no IPsec");
    }
    let (server, client) = (rig.server(&Rig::alice("proto41", "mtu = 1480")), rig.client("proto41", 1480));
    expect_whole(&server);
    let sender = rig.u.inside(|| std::net::UdpSocket::bind((U6, 0)).unwrap());
    setsockopt(&sender, sockopt::UdpGsoSegment, &1000).unwrap();
    let burst = || (0..20).for_each(|_| assert!(sender.send_to(&[0; 20_000], (ALICE, 9)).is_ok()));
    wait_for("trains without a policy", PATIENCE, || {
        burst();
        (trains(&server) > 0).then_some(())
    });
    // Blocked altogether: nothing may come, by whatever way.
    rig.s.run(&format!("ip xfrm policy add {policy} action block"));
    // An answer of routing is remembered for a second; what was sent before is through by then.
    std::thread::sleep(Duration::from_millis(2500));
    let (seen, before) = (observe(&rig), trains(&server));
    burst();
    let done = rig.u.attempt(&format!("timeout 2 ping -6 -c 2 -W 1 -s 1300 {ALICE}"));
    assert!(!done.ok, "ping passed");
    assert_eq!(seen.finish().len(), 0, "packets left in spite of the policy");
    assert_eq!(trains(&server), before, "trains left in spite of the policy");
    drop(client);
}

/// What the kernel's own tools do with `bpftool link detach`: BPF_LINK_GET_FD_BY_ID and BPF_LINK_DETACH.
const DETACH: &str = "
import ctypes, struct, sys
call = ctypes.CDLL(None, use_errno=True).syscall
def bpf(command, *words):
    attr = struct.pack('%dI' % len(words), *words)
    got = call(321, command, attr, len(attr))
    if got < 0: sys.exit('bpf(%d): errno %d' % (command, ctypes.get_errno()))
    return got
bpf(34, bpf(30, int(sys.argv[1]), 0, 0))
";

#[test]
fn they_are_cut_after_somebody_has_detached_the_program() {
    let Some(rig) = Rig::new_or_skip("somebody detaches the program that keeps super-packets whole") else {
        return;
    };
    if !cfg!(target_arch = "x86_64") {
        return netns_tests::skipped("the detaching script knows the system call's number on x86_64 only");
    }
    let (server, client) = (rig.server(&Rig::alice("proto41", "mtu = 1480")), rig.client("proto41", 1480));
    expect_whole(&server);
    whole_after_a_while("before", || {
        transfer(&rig.u, &rig.c, ALICE, BYTES);
        (trains(&server) > 20).then_some(()).ok_or_else(|| format!("{} trains", trains(&server)))
    });
    let script = rig.lab.write("detach.py", DETACH);
    rig.s.run(&format!("python3 {} {}", script.display(), link_of(server.pid())));
    // Noticed within a second of traffic; TCP has to repeat what was lost until then.
    wait_for("it to be noticed", PATIENCE, || {
        transfer(&rig.u, &rig.c, ALICE, BYTES);
        (standing(&server)["state"] == "paused").then_some(())
    });
    let before = trains(&server);
    let ping = rig.u.attempt(&format!("ping -6 -c 2 -i 0.2 -W 3 -s 1300 {ALICE}"));
    assert!(ping.ok, "{}", ping.text);
    transfer(&rig.u, &rig.c, ALICE, BYTES);
    assert_eq!(trains(&server), before, "trains vanish on the loopback device");
    assert!(server.event("offload_paused") > 0);
    // A minute later it is attached again.
    let back = |burst: u64| {
        transfer(&rig.u, &rig.c, ALICE, burst);
        (trains(&server) > before).then_some(())
    };
    wait_for("trains again", Duration::from_secs(120), || {
        std::thread::sleep(Duration::from_secs(2));
        back(1 << 20)
    });
    drop(client);
}

/// The number of the link that holds the program of this process in its place (proc(5), `fdinfo`).
fn link_of(pid: u32) -> u32 {
    let all = std::fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap().flatten();
    let texts = all.filter_map(|file| std::fs::read_to_string(file.path()).ok());
    let number = |text: String| text.lines().find_map(|l| l.strip_prefix("link_id:")?.trim().parse().ok());
    texts.filter(|text| text.contains("tcx")).find_map(number).unwrap()
}

#[test]
fn nothing_stays_on_the_loopback_device() {
    let Some(rig) = Rig::new_or_skip("the program on the loopback device goes with its process") else {
        return;
    };
    let server = rig.server(&Rig::alice("proto41", ""));
    expect_whole(&server);
    assert_eq!(server.drops("outer_martian"), 0, "the start-up test is nobody's traffic");
    server.crash();
    let again = rig.server(&Rig::alice("proto41", ""));
    expect_whole(&again);
    let client = rig.client("proto41", 1280);
    transfer(&rig.c, &rig.u, U6, BYTES / 10);
    drop(client);
}

fn expect_whole(router: &Router) {
    assert_eq!(standing(router)["state"], "on", "this kernel takes super-packets");
}

fn standing(router: &Router) -> serde_json::Value {
    router.status()["offload"]["proto41_gso"].clone()
}

fn trains(router: &Router) -> u64 {
    router.status()["events"]["wire_merged"].as_u64().unwrap()
}

fn sent_by(rig: &Rig, device: &str) -> u64 {
    rig.s.run(&format!("cat /sys/class/net/{device}/statistics/tx_bytes")).trim().parse().unwrap()
}

/// Protocol 41 as it reaches the client.
fn observe(rig: &Rig) -> Observer<Seen> {
    Observer::start(&rig.c, IPV4, |frame| {
        let outer = frame.first_chunk::<20>().filter(|o| o[9] == 41)?;
        let flags = u16::from_be_bytes([outer[6], outer[7]]);
        let is_fragment = flags & 0x3fff != 0;
        Some(Seen {
            len: frame.len(),
            identification: u16::from_be_bytes([outer[4], outer[5]]),
            may_fragment: flags & 0x4000 == 0,
            is_fragment,
            sound: is_fragment || Inner::parse(&frame[20..]).is_some_and(|i| i.checksum_ok()),
        })
    })
}
