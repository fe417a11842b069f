//! `[proto41] receive = "raw"`: the fallback is a path of its own and tells the same stories.
//!
//! ```text
//!   C ══ S (raw socket) ──IPv6── U
//! ```

use std::time::Duration;

use netns_tests::{ALICE, C4_OTHER, Client, Ends, Rig, Router, U6, pings, transfer};

const RAW: &str = "[proto41]\nreceive = \"raw\"\n";

fn begin(story: &str, tunnel: &str) -> Option<(Rig, Router)> {
    let rig = Rig::new_or_skip(story)?;
    let config = Rig::server_config("", &(RAW.to_owned() + &Rig::alice("proto41", tunnel)));
    let server = Router::start(&rig.lab, &rig.s, &config);
    Some((rig, server))
}

#[test]
fn ping_and_tcp_both_ways() {
    let Some((rig, server)) = begin("both ways by a raw socket", "mtu = 1480") else { return };
    let client = rig.client("proto41", 1480);
    assert_eq!(pings(&rig.c, U6, 5, "-M do -s 1432"), 5);
    assert_eq!(pings(&rig.u, ALICE, 5, "-M do -s 1432"), 5);
    transfer(&rig.c, &rig.u, U6, 10 << 20);
    transfer(&rig.u, &rig.c, ALICE, 10 << 20);
    client.stop();
    server.stop();
}

/// RFC: T4 (Linux net/ipv4/raw.c)
#[test]
fn each_packet_is_forwarded_once() {
    let Some((rig, server)) = begin("a raw socket a worker, but each packet once", "") else { return };
    let alice = rig.alice_peer("proto41");
    let mut replies = 0;
    for seq in 0..20 {
        alice.send(&Ends::new(ALICE, U6).echo_request(20, seq, 64));
    }
    alice.wait(Duration::from_secs(1), |got| {
        replies += u32::from(got.echo().is_some_and(|(id, _)| id == 20));
        None::<()>
    });
    assert_eq!(replies, 20);
    assert_eq!(server.count("alice", "rx_packets"), 20);
}

#[test]
fn strangers_are_refused_there_too() {
    let Some((rig, server)) = begin("a stranger at a raw socket", "") else { return };
    let stranger = Client::proto41(&rig.c, C4_OTHER, ALICE);
    let packet = Ends::new(ALICE, U6).echo_request(1, 1, 64);
    server.expect_drops("wrong_outer", 3, || (0..3).for_each(|_| stranger.send(&packet)));
}
