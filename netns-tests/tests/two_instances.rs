//! Two instances on one machine: two namespaces share a file system, and nothing else.
//!
//! ```text
//!   C ══ S ──IPv6── U          one rig
//!   C ══ S ──IPv6── U          and the same once more, same addresses, same device name
//! ```

use netns_tests::{PATIENCE, Rig, Router, U6};

#[test]
fn they_do_not_know_each_other() {
    let Some(one) = Rig::new_or_skip("two instances side by side, the first") else { return };
    let Some(two) = Rig::new_or_skip("two instances side by side, the second") else { return };
    let tunnels = Rig::alice("proto41", "") + &Rig::bob("");
    let (first, second) = (one.server(&tunnels), two.server(&tunnels));
    for rig in [&one, &two] {
        assert!(rig.alice_peer("proto41").ping(U6, PATIENCE).is_some());
        assert!(rig.bob_peer().ping(U6, PATIENCE).is_some());
    }
    assert_eq!((first.count("bob", "rx_packets"), second.count("bob", "rx_packets")), (1, 1));
    first.stop();
    assert!(two.bob_peer().ping(U6, PATIENCE).is_some(), "one ends, the other stays");
    second.stop();
}

#[test]
fn a_live_socket_is_not_taken() {
    let Some(one) = Rig::new_or_skip("a live admin socket, its owner") else { return };
    let Some(two) = Rig::new_or_skip("a live admin socket, the second comer") else { return };
    let socket = format!("\n[admin]\nsocket = \"{}\"\n", one.lab.path("shared.sock").display());
    let config = Rig::server_config("", &(Rig::alice("proto41", "") + &socket));
    let first = Router::start(&one.lab, &one.s, &config);
    let refused = Router::refused(&two.lab, &two.s, &config);
    assert!(!refused.ok);
    assert!(refused.text.contains(&first.pid().to_string()), "names the process: {}", refused.text);
    assert!(!two.s.run("ip -o link").contains("six0"), "and leaves nothing behind");
    assert!(one.alice_peer("proto41").ping(U6, PATIENCE).is_some());
    first.stop();
}
