//! What a mistake in the configuration file is answered with: file, line, and what was probably meant.
//!
//! No namespaces here: `sixway check FILE` reads a file and needs no rights.

#![allow(clippy::unwrap_used, reason = "a test has nobody to return an error to")]

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use netns_tests::{program, tunnel};

/// A configuration file that is removed when the test is over.
struct File(PathBuf);

impl Drop for File {
    fn drop(&mut self) {
        fs::remove_file(&self.0).unwrap();
    }
}

/// Whether `check` was content with this text, what it said, and the file's path.
fn check(name: &str, text: &str) -> (bool, String, String) {
    let path = std::env::temp_dir().join(format!("sixway-check-{}-{name}.toml", std::process::id()));
    fs::write(&path, text).unwrap();
    let file = File(path);
    let out = Command::new(program()).arg("check").arg(&file.0).output().unwrap();
    let said = String::from_utf8([out.stdout, out.stderr].concat()).unwrap();
    println!("{text}\n-> {said}");
    (out.status.success(), said, file.0.display().to_string())
}

#[test]
fn a_good_file_is_good() {
    let text = "[router]\naddress = [\"fd00:2::1/64\"]\n".to_owned()
        + &tunnel("alice", "proto41", "10.71.0.2", "fd00:2:1::/64", "mtu = 1280")
        + &tunnel("bob", "udp", "10.71.0.2:*", "fd00:2:2::/64", "ra = { on = true }")
        + &tunnel("carol", "udp", "learn", "fd00:2:2:0:1::/80", "");
    assert!(check("good", &text).0, "nested prefixes and shared outer addresses are allowed");
    assert!(check("empty", "").0, "every key has a default");
}

#[test]
fn an_unknown_key_is_an_error_with_its_place_and_the_nearest_known_one() {
    let (ok, said, file) = check("unknown", "[router]\ntun = \"six0\"\nhairpinn = true\n");
    assert!(!ok);
    assert!(said.contains(&format!("{file}:3")), "file and line");
    assert!(said.contains("hairpinn") && said.contains("`hairpin`") || said.contains("'hairpin'"), "{said}");
    let text = tunnel("alice", "proto41", "10.71.0.2", "fd00:2:1::/64", "mtuu = 1280");
    let (ok, said, file) = check("deep", &text);
    let line = text.lines().position(|line| line.starts_with("mtuu")).unwrap() + 1;
    assert!(!ok && said.contains(&format!("{file}:{line}")) && said.contains("mtu"), "{said}");
}

#[test]
fn equal_prefixes_name_both_tunnels() {
    let text = tunnel("alice", "proto41", "10.71.0.2", "fd00:2:1::/64", "")
        + &tunnel("bob", "udp", "10.71.0.3:5555", "fd00:2:1::/64", "");
    let (ok, said, _) = check("prefixes", &text);
    assert!(
        !ok && said.contains("alice") && said.contains("bob") && said.contains("fd00:2:1::/64"),
        "{said}"
    );
}

#[test]
fn one_outer_address_pair_is_one_protocol_41_tunnel() {
    let text = tunnel("alice", "proto41", "10.71.0.2", "fd00:2:1::/64", "")
        + &tunnel("bob", "proto41", "10.71.0.2", "fd00:2:2::/64", "");
    let (ok, said, _) = check("outer", &text);
    assert!(!ok && said.contains("alice") && said.contains("bob"), "{said}");
}

#[test]
fn bounds_are_checked_where_they_stand() {
    for (name, extra) in [("low", "mtu = 1279"), ("high", "mtu = 70000"), ("type", "mtu = \"big\"")] {
        let text = tunnel("alice", "proto41", "10.71.0.2", "fd00:2:1::/64", extra);
        let line = text.lines().position(|line| line == extra).unwrap() + 1;
        let (ok, said, file) = check(name, &text);
        assert!(!ok && said.contains(&format!("{file}:{line}")), "{said}");
    }
    let (ok, said, _) = check("bits", &tunnel("alice", "proto41", "10.71.0.2", "fd00:2:1::5/64", ""));
    assert!(!ok && said.contains("fd00:2:1::/64"), "says what was meant: {said}");
}
