//! Programs of the operator's that are run when a leased tunnel has come up or gone, with the tunnel in their environment.
//!
//! So many at once and no more; each has its time, then it is killed. Runs for one tunnel keep their order. When too many
//! wait, further ones are left out, counted and logged: a slow program never holds up a tunnel.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::Command;
use tokio::sync::mpsc;

use crate::admin::status::ends;
use crate::broker::{End, Grant};
use crate::config;

/// Runs that may wait for one of the programs that run at once.
const MOST_WAITING: usize = 4096;

/// One run.
#[derive(Debug)]
struct Run {
    program: PathBuf,
    timeout: Duration,
    tunnel: Box<str>,
    environment: Vec<(&'static str, String)>,
}

/// The lanes in which programs are run, one after the other in each.
#[derive(Debug)]
pub(super) struct Hooks {
    config: config::Hooks,
    lanes: Vec<mpsc::Sender<Run>>,
    missed: u64,
}

impl Hooks {
    /// Nothing is run yet.
    pub(super) fn start(config: &config::Hooks) -> Self {
        let mut hooks = Self { config: config.clone(), lanes: Vec::new(), missed: 0 };
        hooks.open_lanes();
        hooks
    }

    /// From now on these programs are run; those that run or wait are not touched.
    pub(super) fn configure(&mut self, config: &config::Hooks) {
        let lanes_change = self.config.at_once != config.at_once;
        self.config = config.clone();
        if lanes_change || self.lanes.is_empty() {
            self.open_lanes();
        }
    }

    fn open_lanes(&mut self) {
        let none = self.config.up.is_none() && self.config.down.is_none();
        let count = if none { 0 } else { self.config.at_once };
        self.lanes = (0..count)
            .map(|_| {
                let (lane, runs) = mpsc::channel(MOST_WAITING);
                tokio::spawn(run_all(runs));
                lane
            })
            .collect();
    }

    /// A tunnel has come up.
    pub(super) fn up(&mut self, grant: &Grant) {
        if let Some(program) = self.config.up.clone() {
            self.run(program, grant, vec![("SIXWAY_EVENT", "up".to_owned())]);
        }
    }

    /// A tunnel has gone.
    pub(super) fn down(&mut self, grant: &Grant, why: End) {
        if let Some(program) = self.config.down.clone() {
            let event = ("SIXWAY_EVENT", "down".to_owned());
            self.run(program, grant, vec![event, ("SIXWAY_REASON", why.name().to_owned())]);
        }
    }

    /// Runs that were left out.
    pub(super) fn missed(&self) -> u64 {
        self.missed
    }

    fn run(&mut self, program: PathBuf, grant: &Grant, mut environment: Vec<(&'static str, String)>) {
        environment.extend(describe(grant));
        let timeout = Duration::from_secs(self.config.timeout.into());
        let run = Run { program, timeout, tunnel: grant.name.clone(), environment };
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(&run.tunnel);
        let lane = self.lanes.get(hash as usize % self.lanes.len().max(1));
        if lane.is_none_or(|lane| lane.try_send(run).is_err()) {
            self.missed += 1;
            tracing::warn!(event = "hook_missed", tunnel = %grant.name, missed = self.missed, "too many hooks wait");
        }
    }
}

/// The tunnel, for the environment.
fn describe(grant: &Grant) -> Vec<(&'static str, String)> {
    let (encap, local, remote) = ends(&grant.outer);
    let networks: Vec<String> = grant.networks.iter().map(ToString::to_string).collect();
    let pair = |end: fn(&crate::broker::Pair) -> std::net::Ipv6Addr| {
        grant.pair.as_ref().map_or_else(String::new, |pair| end(pair).to_string())
    };
    vec![
        ("SIXWAY_TUNNEL", grant.name.to_string()),
        ("SIXWAY_USER", grant.user.to_string()),
        ("SIXWAY_ENCAP", encap.to_owned()),
        ("SIXWAY_LOCAL", local),
        ("SIXWAY_REMOTE", remote),
        ("SIXWAY_NETWORKS", networks.join(" ")),
        ("SIXWAY_SERVER_ADDRESS", pair(|pair| pair.server)),
        ("SIXWAY_CLIENT_ADDRESS", pair(|pair| pair.client)),
        ("SIXWAY_MTU", grant.mtu.to_string()),
    ]
}

async fn run_all(mut runs: mpsc::Receiver<Run>) {
    while let Some(run) = runs.recv().await {
        let program = run.program.clone();
        let tunnel = run.tunnel.clone();
        if let Err(why) = run_one(run).await {
            tracing::warn!(event = "hook_failed", %tunnel, program = %program.display(), why = why.to_string());
        }
    }
}

async fn run_one(run: Run) -> Result<(), String> {
    let mut child = Command::new(&run.program)
        .envs(run.environment)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|why| advice(&run.program, &why))?;
    let group = child.id();
    match tokio::time::timeout(run.timeout, child.wait()).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(status.to_string()),
        Ok(Err(why)) => Err(why.to_string()),
        Err(_) => {
            end_group(group);
            let _it_may_have_ended = child.kill().await;
            Err(format!("killed after {}s; [hooks] timeout allows more", run.timeout.as_secs()))
        }
    }
}

/// What a script has started ends with it: it leads a process group of its own.
fn end_group(leader: Option<u32>) {
    if let Some(group) = leader.and_then(|id| i32::try_from(id).ok()) {
        let _it_may_have_ended = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
}

fn advice(program: &Path, why: &std::io::Error) -> String {
    format!("{why}; it must be a program that this user may run: `ls -l {}`", program.display())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn run(seconds: &str, timeout: Duration) -> Result<(), String> {
        let environment = vec![("SIXWAY_TEST_SECONDS", seconds.to_owned())];
        let folder = std::env::temp_dir().join(format!("sixway-hook-{}-{seconds}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let program = folder.join("hook");
        // The shell waits for a child of its own, which must end with it.
        std::fs::write(&program, "#!/bin/sh\nsleep $SIXWAY_TEST_SECONDS\necho $?\n").unwrap();
        let all = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&program, all).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let done = runtime.block_on(run_one(Run { program, timeout, tunnel: "x@dtcp".into(), environment }));
        std::fs::remove_dir_all(&folder).unwrap();
        done
    }

    #[test]
    fn a_program_has_its_time_and_no_more() {
        assert_eq!(run("0", Duration::from_secs(10)), Ok(()));
        let started = Instant::now();
        let unlike_others = "30.0731";
        let killed = run(unlike_others, Duration::from_millis(200)).unwrap_err();
        assert!(killed.contains("killed") && started.elapsed() < Duration::from_secs(10), "{killed}");
        let gone = || !is_running(unlike_others);
        let ended = (0..200).any(|_| {
            gone() || {
                std::thread::sleep(Duration::from_millis(10));
                false
            }
        });
        assert!(ended, "what the script had started runs on");
    }

    /// Whether a process has this word in its command line.
    fn is_running(word: &str) -> bool {
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        let lines = all.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
        lines.into_iter().any(|line| line.split(|b| *b == 0).any(|arg| arg == word.as_bytes()))
    }

    #[test]
    fn a_program_that_is_not_there_is_explained() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let program = PathBuf::from("/nowhere/hook");
        let timeout = Duration::from_secs(1);
        let run = Run { program, timeout, tunnel: "x@dtcp".into(), environment: Vec::new() };
        let why = runtime.block_on(run_one(run)).unwrap_err();
        assert!(why.contains("ls -l /nowhere/hook"), "{why}");
    }

    #[test]
    fn what_finds_no_room_is_counted() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let up = Some(PathBuf::from("/nowhere/hook"));
            let mut hooks = Hooks::start(&config::Hooks { up, down: None, timeout: 1, at_once: 1 });
            let grant = Grant {
                protocol: crate::broker::Protocol::Dtcp,
                lease: crate::broker::LeaseId(1),
                user: crate::broker::UserName::parse("x").unwrap(),
                name: "x@dtcp".into(),
                outer: sixway_dataplane::update::Outer::Proto41 {
                    local: None,
                    remote: [192, 0, 2, 1].into(),
                },
                pair: None,
                networks: Vec::new(),
                mtu: 1280,
                expires: None,
            };
            // Nothing is run before this task waits for something.
            (0..MOST_WAITING + 3).for_each(|_| hooks.up(&grant));
            assert_eq!(hooks.missed(), 3);
            hooks.down(&grant, End::Released);
            assert_eq!(hooks.missed(), 3, "no program, nothing missed");
        });
    }
}
