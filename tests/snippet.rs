//! `sixway snippet`, as operators call it: every client's text to the letter, what it refuses, and that it shows no secret
//! unless it is asked to. The texts are in `tests/snippets/`; `SIXWAY_WRITE_SNIPPETS=1` writes them anew.

#![expect(clippy::unwrap_used, reason = "a test has nobody to return an error to")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const SECRET: &str = "it's 1 long & $ecret";

struct Desk(PathBuf);

impl Desk {
    fn new(name: &str, router: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("sixway-snippet-{name}-{}", std::process::id()));
        let _there_may_be_none = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        let desk = Self(folder);
        let store = desk.0.join("six0.db");
        let config = format!("[store]\npath = \"{}\"\n{router}", store.display());
        fs::write(desk.0.join("sixway.toml"), config).unwrap();
        fs::write(desk.0.join("secret"), SECRET).unwrap();
        desk
    }

    fn call(&self, words: &[&str]) -> (bool, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sixway"));
        let out = command.args(words).arg("--config").arg(self.0.join("sixway.toml")).output().unwrap();
        (out.status.success(), String::from_utf8([out.stdout, out.stderr].concat()).unwrap())
    }

    fn add(&self, name: &str, more: &[&str]) {
        let secret = self.0.join("secret");
        let words = ["user", "add", name, "--secret-file", secret.to_str().unwrap()];
        let (went_well, said) = self.call(&[&words[..], more].concat());
        assert!(went_well, "{said}");
    }

    #[track_caller]
    fn snippet(&self, words: &[&str]) -> String {
        let (went_well, said) = self.call(&[&["snippet"][..], words].concat());
        assert!(went_well, "{words:?}: {said}");
        said
    }

    #[track_caller]
    fn refused(&self, words: &[&str], because: &str) {
        let (went_well, said) = self.call(&[&["snippet"][..], words].concat());
        assert!(!went_well && said.contains(because), "{words:?}: {said}");
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        let _it_may_be_gone = fs::remove_dir_all(&self.0);
    }
}

const ROUTER: &str = "[router]\nouter = \"192.0.2.1\"\n[dtcp]\nprefix = \"2001:db8:ffff::\"\n[tsp]\n[[pool]]\nprefix = \"2001:db8:8000::/40\"\nassign = 56\n";
const CLIENTS: [&str; 6] = ["linux", "freebsd", "gogoc", "dtcpc", "networkd", "openwrt"];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snippets").join(format!("{name}.txt"))
}

#[test]
fn every_text_is_what_it_was() {
    let desk = Desk::new("golden", ROUTER);
    desk.add("alice", &["--prefix", "2001:db8:7::/48", "--interface", "7"]);
    let mut different = Vec::new();
    for client in CLIENTS {
        for kind in ["network", "host", "tunnelonly"] {
            let name = format!("{client}-{kind}");
            let text = desk.snippet(&["alice", "--for", client, "--type", kind]);
            if std::env::var_os("SIXWAY_WRITE_SNIPPETS").is_some() {
                fs::create_dir_all(golden(&name).parent().unwrap()).unwrap();
                fs::write(golden(&name), &text).unwrap();
            }
            let was = fs::read_to_string(golden(&name)).unwrap_or_default();
            different.extend((was != text).then_some(name));
        }
    }
    assert!(different.is_empty(), "{different:?}");
}

#[test]
fn scripts_are_scripts() {
    let desk = Desk::new("syntax", ROUTER);
    desk.add("alice", &["--prefix", "2001:db8:7::/48", "--interface", "7"]);
    for client in ["linux", "freebsd", "dtcpc", "networkd", "openwrt"] {
        for kind in ["network", "host", "tunnelonly"] {
            for secret in [&[][..], &["--show-secret"]] {
                let words = [&["alice", "--for", client, "--type", kind][..], secret].concat();
                let file = desk.0.join("script");
                fs::write(&file, desk.snippet(&words)).unwrap();
                let shell = if matches!(client, "linux" | "networkd") { "bash" } else { "sh" };
                let out = Command::new(shell).arg("-n").arg(&file).output().unwrap();
                let said = String::from_utf8_lossy(&out.stderr).into_owned();
                assert!(out.status.success() && said.is_empty(), "{words:?}: {said}");
            }
        }
    }
}

#[test]
fn secrets_are_shown_on_purpose_only() {
    let desk = Desk::new("secret", ROUTER);
    desk.add("alice", &["--prefix", "2001:db8:7::/48"]);
    for client in CLIENTS {
        assert!(!desk.snippet(&["alice", "--for", client]).contains("ecret &"), "{client}");
        assert!(!desk.snippet(&["alice", "--for", client]).contains("$ecret"), "{client}");
        let text = desk.snippet(&["alice", "--for", client, "--show-secret"]);
        assert!(text.contains("1 long & $ecret"), "{client}: {text}");
    }
    // A quote in it ends no quotes of the script.
    assert!(desk.snippet(&["alice", "--for", "linux", "--show-secret"]).contains(r"'it'\''s 1"));
}

#[test]
fn it_says_what_would_be_granted_and_what_stands_against_it() {
    let desk = Desk::new("errors", ROUTER);
    desk.add("alice", &[]);
    let text = desk.snippet(&["alice", "--for", "linux"]);
    assert!(
        text.contains("type network: a /56 out of 192.0.2.1's pool") && text.contains("first login decides"),
        "{text}"
    );
    let host = desk.snippet(&["alice", "--for", "linux", "--type", "host"]);
    assert!(host.contains("type host: 2001:db8:ffff::6") && host.contains("not set aside"), "{host}");
    // Nor is it for the next one, who would write the same into files.
    for client in ["networkd", "openwrt"] {
        desk.refused(&["alice", "--for", client], "--prefix PREFIX");
        desk.refused(&["alice", "--for", client, "--type", "host"], "--interface N");
        desk.snippet(&["alice", "--for", client, "--type", "tunnelonly"]);
    }
    let two = Desk::new("pairs", &format!("{ROUTER}[[pool]]\nprefix = \"2001:db8:1::/64\"\npairs = true\n"));
    two.add("alice", &[]);
    let text = two.snippet(&["alice", "--for", "linux", "--type", "host"]);
    assert!(text.contains("type host: 2001:db8:ffff::6"), "{text}");
    desk.refused(&["bob", "--for", "linux"], "there is no user 'bob'");
    desk.refused(&["a b", "--for", "linux"], "a user name has");
    desk.refused(&["alice", "--for", "windows"], "possible values: linux");
    desk.refused(&["alice", "--for", "linux", "--type", "x"], "no type of tunnel");
    desk.refused(&["alice", "--for", "linux", "--server", "x; rm"], "no host name");
    desk.refused(&["alice", "--for", "openwrt", "--server", "broker.example"], "is a name");
    assert!(
        desk.snippet(&["alice", "--for", "linux", "--server", "broker.example"])
            .contains("server=broker.example")
    );
    let only = Desk::new("dtcp", &ROUTER.replace("[tsp]\n", ""));
    only.add("alice", &[]);
    only.refused(&["alice", "--for", "gogoc"], "has no [tsp]: gogoc would be given no tunnel there");
    let nowhere = Desk::new("nowhere", "[dtcp]\n[tsp]\n[[pool]]\nprefix = \"2001:db8::/64\"\npairs = true\n");
    nowhere.add("alice", &[]);
    nowhere.refused(&["alice", "--for", "linux"], "`public_address` in [dtcp]");
    nowhere.refused(&["alice", "--for", "gogoc"], "`public_address` in [tsp]");
    let bare = ["alice", "--for", "linux", "--server", "192.0.2.1"];
    assert!(nowhere.snippet(&bare).contains("type tunnelonly: link-local"));
    nowhere.refused(&[&bare[..], &["--type", "network"]].concat(), "no tunnel of type network");
    let none = Desk::new("none", "");
    none.add("alice", &[]);
    none.refused(&["alice", "--for", "linux"], "has no [dtcp]");
}
