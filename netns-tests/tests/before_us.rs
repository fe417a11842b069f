//! What was there before the router is not the router's: devices, sockets, files.
//!
//! ```text
//!   C alice ══ S six0, made and addressed by somebody else ──IPv6── U
//! ```

#![allow(clippy::unwrap_used, reason = "a test has nobody to return an error to")]

use std::fs;

use netns_tests::{PATIENCE, Rig, Router, U6};

#[test]
fn a_device_keeps_its_address_route_and_mtu() {
    let Some(rig) = Rig::new_or_skip("a device that was there before is left as it was") else { return };
    rig.s.run("ip tuntap add mode tun name six0 multi_queue vnet_hdr && ip link set six0 mtu 1400 up");
    rig.s.run("ip addr add fd00:77::1/64 dev six0 nodad && ip route add fd00:78::/64 dev six0");
    let state =
        || rig.s.run("cat /sys/class/net/six0/mtu; ip -o addr show dev six0; ip -6 route show dev six0");
    let theirs = ["1400\n", "fd00:77::1/64", "fd00:78::/64"];
    let server = rig.server(&Rig::alice("udp", "mtu = 1380"));
    assert!(rig.alice_peer("udp").ping(U6, PATIENCE).is_some());
    let running = state();
    assert!(running.starts_with("1380\n") && running.contains("fd00:2:1::/64"), "ours: {running}");
    assert!(theirs[1..].iter().all(|word| running.contains(word)), "beside what was there: {running}");
    server.stop();
    let after = state();
    assert!(theirs.iter().all(|word| after.contains(word)), "{after}");
    assert!(!after.contains("fd00:2:"), "and nothing of ours: {after}");
}

#[test]
fn a_device_in_use_is_refused_to_a_second_instance() {
    let Some(rig) = Rig::new_or_skip("a second instance wants the same device") else { return };
    refuses_a_second(&rig, |config| config.replace("ports = [3653]", "ports = [3654]"));
}

#[test]
fn a_second_start_from_a_copied_file_is_told_who_is_first() {
    let Some(rig) = Rig::new_or_skip("a second instance from a copied file") else { return };
    refuses_a_second(&rig, str::to_owned);
}

/// The second one has an admin socket of its own: it learns of the first by the device.
fn refuses_a_second(rig: &Rig, change: impl FnOnce(&str) -> String) {
    let config = Rig::server_config("", &Rig::alice("udp", ""));
    let first = Router::start(&rig.lab, &rig.s, &config);
    let refused = Router::refused(&rig.lab, &rig.s, &change(&config));
    let named = format!("process {}", first.pid());
    assert!(
        !refused.ok && refused.text.contains("six0") && refused.text.contains(&named),
        "{}",
        refused.text
    );
    assert!(rig.alice_peer("udp").ping(U6, PATIENCE).is_some(), "the first one goes on");
    first.stop();
}

#[test]
fn a_file_in_the_place_of_the_socket_stays() {
    let Some(rig) = Rig::new_or_skip("a file where the admin socket should be") else { return };
    let file = rig.lab.write("diary", "dear diary");
    let admin = format!("\n[admin]\nsocket = \"{}\"\n", file.display());
    let config = Rig::server_config("", &(Rig::alice("udp", "") + &admin));
    let refused = Router::refused(&rig.lab, &rig.s, &config);
    assert!(!refused.ok && refused.text.contains("no socket"), "{}", refused.text);
    assert!(refused.text.contains(&file.display().to_string()), "names it: {}", refused.text);
    assert_eq!(fs::read_to_string(&file).unwrap(), "dear diary");
}
