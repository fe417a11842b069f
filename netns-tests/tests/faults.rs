//! The world turns against it: the device is deleted, signals come too early, the end comes while a command runs.
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

use netns_tests::{Job, Rig, U6, program, tunnel, wait_for};
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
