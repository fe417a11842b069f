//! UDP alone needs no capability outside: user 65534, in a user and network namespace of its own, given
//! nothing but the tun device.
//!
//! ```text
//!   user namespace of uid 65534:   C six0 fd00:2:1::2 ══UDP══ S six0 fd00:2::1
//! ```

#![allow(clippy::unwrap_used, reason = "a test has nobody to return an error to")]

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use netns_tests::{ALICE_NET, Lab, Rig, Space, program, tunnel};

/// One story at a time changes the device's mode.
static TUN_MODE: Mutex<()> = Mutex::new(());

/// The tun device's mode, put back on drop.
struct TunForAll(u32, #[allow(dead_code, reason = "held, not read")] MutexGuard<'static, ()>);

impl TunForAll {
    fn open() -> Self {
        let alone = TUN_MODE.lock().unwrap_or_else(PoisonError::into_inner);
        let before = fs::metadata(TUN).unwrap().mode();
        fs::set_permissions(TUN, Permissions::from_mode(0o666)).unwrap();
        Self(before, alone)
    }
}

impl Drop for TunForAll {
    fn drop(&mut self) {
        fs::set_permissions(TUN, Permissions::from_mode(self.0)).unwrap();
    }
}

const TUN: &str = "/dev/net/tun";
const NOBODY: &str = "setpriv --reuid 65534 --regid 65534 --clear-groups";

fn may_unshare(space: &Space) -> bool {
    let allowed = space.attempt(&format!("{NOBODY} unshare -Urn true"));
    if !allowed.ok {
        netns_tests::skipped(format_args!(
            "user namespaces are closed to ordinary users here: {}",
            allowed.text
        ));
    }
    allowed.ok
}

/// A folder that everybody may use, with the program in it: the build directory may be closed to others.
fn home(lab: &Lab) -> PathBuf {
    let home = lab.path("home");
    fs::create_dir(&home).unwrap();
    fs::set_permissions(&home, Permissions::from_mode(0o777)).unwrap();
    fs::copy(program(), home.join("sixway")).unwrap();
    fs::set_permissions(home.join("sixway"), Permissions::from_mode(0o755)).unwrap();
    home
}

#[test]
fn an_ordinary_user_runs_both_ends() {
    let Some(mut lab) = Lab::new_or_skip("an ordinary user runs both ends over UDP") else { return };
    let space = lab.space("user");
    if !may_unshare(&space) {
        return;
    }
    let home = home(&lab);
    let admin = |name: &str| {
        format!("[admin]\nsocket = \"{}/{name}.sock\"\n[proto41]\nenabled = false\n", home.display())
    };
    let alice = tunnel("alice", "udp", "10.71.0.2:5555", ALICE_NET, "");
    fs::write(home.join("server.toml"), admin("server") + &Rig::server_config("", &alice)).unwrap();
    let up = tunnel("up", "udp", "10.71.0.1:3653", "::/0", "default_route = true");
    let client = "[router]\ntun = \"six0\"\naddress = [\"fd00:2:1::2/64\"]\nouter = \"10.71.0.2\"\n\
                  [udp]\nports = [5555]\n";
    fs::write(home.join("client.toml"), admin("client") + client + &up).unwrap();
    fs::write(home.join("story.sh"), STORY).unwrap();

    let _tun = TunForAll::open();
    let said =
        space.attempt(&format!("cd {} && timeout 60 {NOBODY} unshare -Urn sh story.sh 2>&1", home.display()));
    println!("{}", said.text);
    assert!(said.ok && said.text.contains("10 received"), "{}", said.text);
    assert!(said.text.contains("left: 0"), "both ends left nothing behind");
}

/// `--unshare`: the outer socket stays in C's network, the TUN device and the command are in one of their own.
#[test]
fn an_ordinary_user_gets_a_network_of_their_own() {
    let Some(rig) = Rig::new_or_skip("run --unshare as an ordinary user") else { return };
    if !may_unshare(&rig.c) {
        return;
    }
    let home = home(&rig.lab);
    let server = rig.server(&tunnel("alice", "udp", "10.71.0.2:5555", ALICE_NET, ""));
    let up = tunnel("up", "udp", "10.71.0.1:3653", "::/0", "default_route = true");
    let config = format!(
        "[router]\naddress = [\"fd00:2:1::2/64\"]\n[udp]\nports = [5555]\n[admin]\nsocket = \"{}/c.sock\"\n{up}",
        home.display()
    );
    fs::write(home.join("c.toml"), config).unwrap();
    let _tun = TunForAll::open();
    let inside = "sh -c 'ping -6 -n -i 0.1 -W 1 -c 5 fd00:1::2; ip link'";
    let line =
        format!("cd {} && {NOBODY} ./sixway run --unshare --config c.toml -- {inside}", home.display());
    let said = rig.c.attempt(&line);
    assert!(said.ok && said.text.contains("5 received"), "{}", said.text);
    assert!(
        said.text.contains("six0") && !said.text.contains("c0@"),
        "the command sees only its own network"
    );
    assert!(!rig.c.run("ip link").contains("six0"), "and C's network was not touched");
    assert_eq!(server.count("alice", "rx_packets"), 5);
    let code = rig.c.attempt(&format!("{} ; echo code=$?", line.replace(inside, "sh -c 'exit 7'")));
    assert!(code.text.contains("code=7"), "the command's exit code is the program's: {}", code.text);
}

/// Runs as root of its own user namespace, which is nobody outside.
const STORY: &str = r#"
set -e
unshare -n sleep 60 & client=$!
until [ "$(readlink /proc/$client/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.05; done
in_client() { nsenter -t $client -n "$@"; }
ip link set lo up
ip link add s0 type veth peer name c0 netns $client
ip addr add 10.71.0.1/24 dev s0; ip link set s0 up
in_client sh -c 'ip link set lo up; ip addr add 10.71.0.2/24 dev c0; ip link set c0 up'
./sixway run --config server.toml & server=$!
nsenter -t $client -n ./sixway run --config client.toml & peer=$!
for end in server client; do
  for try in $(seq 100); do ./sixway status --socket $PWD/$end.sock --json >/dev/null 2>&1 && break; sleep 0.1; done
  ./sixway status --socket $PWD/$end.sock --json
done
in_client ping -6 -n -i 0.1 -W 1 -c 10 fd00:2::1
kill $server $peer; wait $server; wait $peer
echo "left: $( (ip link; in_client ip link) | grep -c six0)"
kill $client
"#;
