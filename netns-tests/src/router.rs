//! The program under test, started and asked as an operator would: configuration file, command line, signals.
//!
//! Knows the status JSON's field names; all else about the program is hidden behind its commands.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::lab::{capture, must};
use crate::{Done, Job, Lab, PATIENCE, Space, wait_for};

/// A running `sixway run`; killed on drop, properly ended by [`Router::stop`].
#[derive(Debug)]
pub struct Router {
    job: Job,
    config: PathBuf,
    socket: PathBuf,
    log: PathBuf,
}

impl Router {
    /// Start with this configuration, to which an `[admin]` table with a socket of its own is added
    /// unless it has one (and one that turns all offloads off, with `SIXWAY_TEST_OFFLOADS=off`), and wait until it answers. Panics with its log when it does not.
    #[track_caller]
    pub fn start(lab: &Lab, space: &Space, config: &str) -> Self {
        let mut router = Self::launch(lab, space, config);
        let what = format!("the router in {} to answer", space.name());
        wait_for(&what, START, || {
            if let Some(status) = router.job.exited() {
                panic!("the router ended with {status}:\n{}", router.log());
            }
            router.try_status().ok()
        });
        router
    }

    /// Start where it should refuse to: what it said, once it has ended. Panics when it goes on running.
    #[track_caller]
    pub fn refused(lab: &Lab, space: &Space, config: &str) -> Done {
        let mut router = Self::launch(lab, space, config);
        let status = wait_for("the router to refuse", START, || router.job.exited());
        Done { ok: status.success(), text: router.log() }
    }

    fn launch(lab: &Lab, space: &Space, config: &str) -> Self {
        let nth = STARTED.fetch_add(1, Ordering::Relaxed);
        let named = config.lines().find_map(|line| line.strip_prefix("socket = "));
        let socket = named.map_or_else(|| lab.path(&format!("{nth}.sock")), |s| s.trim_matches('"').into());
        let text = completed(config, &socket);
        println!("---- {nth}.toml\n{}\n----", text.trim());
        let path = lab.write(&format!("{nth}.toml"), &text);
        let log = lab.path(&format!("{nth}.log"));
        let args = ["run", "--config", &path.to_string_lossy()];
        let job = space.spawn(&program(), &args, &log);
        Self { job, config: path, socket, log }
    }

    /// What `sixway status --json` says.
    #[track_caller]
    pub fn status(&self) -> Value {
        self.try_status().unwrap_or_else(|why| panic!("no status: {why}\n{}", self.log()))
    }

    fn try_status(&self) -> Result<Value, String> {
        let mut command = Command::new(program());
        let out =
            must(command.args(["status", "--json", "--socket"]).arg(&self.socket).output(), "ask status");
        if !out.status.success() {
            return Err(String::from_utf8_lossy(&out.stderr).into_owned());
        }
        serde_json::from_slice(&out.stdout).map_err(|why| why.to_string())
    }

    /// The status of one tunnel; panics when there is no such tunnel.
    #[track_caller]
    pub fn tunnel(&self, name: &str) -> Value {
        let status = self.status();
        let mut tunnels = status["tunnels"].as_array().into_iter().flatten();
        let found = tunnels.find(|tunnel| tunnel["name"] == name);
        found.cloned().unwrap_or_else(|| panic!("no tunnel '{name}' in {status}"))
    }

    /// A number in a tunnel's status, such as `rx_packets`.
    #[track_caller]
    pub fn count(&self, tunnel: &str, field: &str) -> u64 {
        let tunnel = self.tunnel(tunnel);
        tunnel[field].as_u64().unwrap_or_else(|| panic!("no number '{field}' in {tunnel}"))
    }

    /// How often something happened, by the name of an event.
    #[track_caller]
    pub fn event(&self, name: &str) -> u64 {
        let status = self.status();
        status["events"][name].as_u64().unwrap_or_else(|| panic!("no event '{name}' in {status}"))
    }

    /// Packets the router dropped for this reason; an absent reason is zero.
    #[track_caller]
    pub fn drops(&self, reason: &str) -> u64 {
        self.status()["drops"][reason].as_u64().unwrap_or(0)
    }

    /// Packets of one tunnel that were dropped for this reason.
    #[track_caller]
    pub fn tunnel_drops(&self, tunnel: &str, reason: &str) -> u64 {
        self.tunnel(tunnel)["drops"][reason].as_u64().unwrap_or(0)
    }

    /// Do something and wait until exactly `expected` more packets were dropped for this reason.
    #[track_caller]
    pub fn expect_drops(&self, reason: &str, expected: u64, act: impl FnOnce()) {
        let before = self.drops(reason);
        act();
        let what = format!("{expected} more drops for '{reason}'; {}", self.status());
        let rose = || self.drops(reason).checked_sub(before).filter(|rise| *rise >= expected);
        let rise = wait_for(&what, PATIENCE, rose);
        assert_eq!(rise, expected, "drops for '{reason}' in {}", self.status());
    }

    /// Write another configuration, reload by command, and say what the command said.
    #[track_caller]
    pub fn reload(&self, config: &str) -> Done {
        self.rewrite(config);
        println!("sixway reload --socket {}", self.socket.display());
        capture(Command::new(program()).args(["reload", "--socket"]).arg(&self.socket))
    }

    /// Replace the configuration file, and nothing else.
    #[track_caller]
    pub fn rewrite(&self, config: &str) {
        must(fs::write(&self.config, completed(config, &self.socket)), "rewrite a configuration");
    }

    /// Send it a signal.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        self.job.signal(signal);
    }

    /// End it by SIGTERM; it must end with status 0 within five seconds.
    #[track_caller]
    pub fn stop(self) {
        self.end_by(Signal::SIGTERM);
    }

    /// The same by another signal.
    #[track_caller]
    pub fn end_by(self, signal: Signal) {
        let log = self.log.clone();
        let status = self.job.end(signal, PATIENCE);
        assert!(status.success(), "{signal} ended it with {status}:\n{}", read(&log));
    }

    /// What it said, once it has ended by itself; panics when it goes on for longer than `patience`.
    #[track_caller]
    pub fn gives_up(mut self, patience: Duration) -> Done {
        let status = wait_for("the router to give up", patience, || self.job.exited());
        Done { ok: status.success(), text: self.log() }
    }

    /// End it by SIGKILL: a crash, as far as anyone can tell.
    #[track_caller]
    pub fn crash(self) {
        self.job.end(Signal::SIGKILL, PATIENCE);
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.job.pid()
    }

    /// Its administration socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        read(&self.log)
    }
}

/// The binary under test: `SIXWAY_BIN`, else the newer of the release and the debug build.
#[track_caller]
pub fn program() -> PathBuf {
    if let Some(named) = std::env::var_os("SIXWAY_BIN") {
        return named.into();
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
    let built = ["release/sixway", "debug/sixway"].map(|build| target.join(build));
    let newest = built.into_iter().filter_map(|path| Some((changed(&path)?, path))).max();
    newest.map_or_else(|| panic!("no sixway binary in {}; cargo build first", target.display()), |(_, p)| p)
}

fn changed(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).ok()?.modified().ok()
}

/// With the tables that a story does not care about: where it is asked, and no offloads if the environment says so.
fn completed(config: &str, socket: &Path) -> String {
    let mut text = config.to_owned();
    if !config.contains("[admin]") {
        text += &format!("\n[admin]\nsocket = \"{}\"\n", socket.display());
    }
    if std::env::var("SIXWAY_TEST_OFFLOADS").is_ok_and(|v| v == "off") && !config.contains("[offload]") {
        text += &format!("\n{}", without_offloads(&OFFLOADS));
    }
    text
}

/// The kernel's offloads, by the names of their knobs.
pub const OFFLOADS: [&str; 7] =
    ["tun_tcp", "tun_udp", "merge_tcp", "merge_udp", "udp_gso", "udp_gro", "proto41_gso"];

/// An `[offload]` table that turns these off.
pub fn without_offloads(names: &[&str]) -> String {
    let lines: String = names.iter().map(|name| format!("{name} = false\n")).collect();
    format!("[offload]\n{lines}")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|why| format!("(no log at {}: {why})", path.display()))
}

static STARTED: AtomicU32 = AtomicU32::new(0);
const START: Duration = Duration::from_secs(30);
