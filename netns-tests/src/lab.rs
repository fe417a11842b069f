//! Namespaces, what runs in them, and its certain end.
//!
//! Names carry the process id and a counter, so tests may run side by side; what a killed run left
//! behind is swept by the next one. Knows `ip netns` and nothing of tunnels.

use std::fmt::Display;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::{Pid, geteuid};

/// Namespaces and a directory of their own, removed with all that runs in them on drop.
#[derive(Debug)]
pub struct Lab {
    tag: String,
    dir: PathBuf,
    spaces: Vec<Space>,
}

/// One network namespace of a lab; a handle, cheap to clone, that does not keep it alive.
#[derive(Clone, Debug)]
pub struct Space {
    name: Arc<str>,
    label: Arc<str>,
}

/// What a command said, output and errors together, and whether it succeeded.
#[derive(Clone, Debug)]
pub struct Done {
    /// Whether it exited with status 0.
    pub ok: bool,
    /// Standard output, then standard error.
    pub text: String,
}

/// A program in the background; killed on drop.
#[derive(Debug)]
pub struct Job {
    child: Child,
    what: String,
}

/// Say loudly that what follows is not tested here, and why; one line, which `scripts/test` counts.
pub fn skipped(why: impl Display) {
    let why = why.to_string().replace('\n', " ");
    // Not eprintln!, which the test harness captures: what is skipped must be seen although the test passes.
    drop(writeln!(std::io::stderr(), "SKIPPED: {}", why.trim_end()));
}

impl Lab {
    /// A lab for `story`, or `None` with a loud `SKIPPED: reason` on standard error where namespaces or
    /// the TUN device are out of reach. With `SIXWAY_REQUIRE_NETNS=1` that is a panic instead.
    #[track_caller]
    pub fn new_or_skip(story: &str) -> Option<Self> {
        let lab = Self::new(story);
        if let Err(reason) = &lab {
            let required = std::env::var("SIXWAY_REQUIRE_NETNS").is_ok_and(|v| v == "1");
            assert!(!required, "{story}: {reason} (SIXWAY_REQUIRE_NETNS=1 forbids to skip)");
            skipped(format_args!("{story}: {reason}"));
        }
        lab.ok()
    }

    fn new(story: &str) -> Result<Self, String> {
        if !geteuid().is_root() {
            return Err("needs root to create network namespaces; run it with sudo".to_owned());
        }
        if !Path::new("/dev/net/tun").exists() {
            return Err("/dev/net/tun is missing; mknod /dev/net/tun c 10 200".to_owned());
        }
        sweep();
        let count = LABS.fetch_add(1, Ordering::Relaxed);
        let tag = format!("{PREFIX}{}x{count}", std::process::id());
        let dir = std::env::temp_dir().join(&tag);
        must(fs::create_dir_all(&dir), "create the lab's directory");
        let mut lab = Self { tag, dir, spaces: Vec::new() };
        println!("=== {story}");
        let probe = lab.try_space("probe")?;
        println!("    in {}", probe.name());
        Ok(lab)
    }

    /// Create a namespace with its loopback up; `label` is how output names it.
    #[track_caller]
    pub fn space(&mut self, label: &str) -> Space {
        must(self.try_space(label), "create a namespace")
    }

    fn try_space(&mut self, label: &str) -> Result<Space, String> {
        let name = format!("{}-{label}", self.tag);
        let done = capture(Command::new("ip").args(["netns", "add", &name]));
        if !done.ok {
            return Err(format!("ip netns add failed: {}", done.text.trim()));
        }
        let space = Space { name: name.into(), label: label.into() };
        self.spaces.push(space.clone());
        // Duplicate address detection would only make every story wait.
        space.run("ip link set lo up; sysctl -qw net.ipv6.conf.default.accept_dad=0");
        Ok(space)
    }

    /// Join two namespaces by a veth pair, both ends up.
    #[track_caller]
    pub fn veth(&self, left: &Space, left_name: &str, right: &Space, right_name: &str) {
        let peer = right.name();
        left.run(&format!("ip link add {left_name} type veth peer name {right_name} netns {peer}"));
        left.run(&format!("ip link set {left_name} up"));
        right.run(&format!("ip link set {right_name} up"));
    }

    /// A path in the lab's own directory, which goes with the lab.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Write a file into the lab's directory and say where it is.
    #[track_caller]
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        must(fs::write(&path, text), "write a file of the lab");
        path
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for space in &self.spaces {
            remove(&space.name);
        }
        // Best effort: a directory left behind must not hide the reason of a failing test.
        drop(fs::remove_dir_all(&self.dir));
    }
}

impl Space {
    /// The name that `ip netns` knows.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Run a shell line here and return what it said; a failure is a panic with its output.
    #[track_caller]
    pub fn run(&self, line: &str) -> String {
        let done = self.attempt(line);
        assert!(done.ok, "[{}] {line}\nfailed: {}", self.label, done.text);
        done.text
    }

    /// Run a shell line here, whatever comes of it.
    #[track_caller]
    pub fn attempt(&self, line: &str) -> Done {
        println!("[{}] {line}", self.label);
        capture(Command::new("ip").args(["netns", "exec", &self.name, "sh", "-c", line]))
    }

    /// Start a program here in the background, its output going to the file `log`.
    #[track_caller]
    pub fn spawn(&self, program: &Path, args: &[&str], log: &Path) -> Job {
        println!("[{}] {} {} &", self.label, program.display(), args.join(" "));
        let out = must(File::options().create(true).append(true).open(log), "open a log");
        let err = must(out.try_clone(), "open a log twice");
        let mut command = Command::new("ip");
        // `ip netns exec` replaces itself by the program: the process id we see is the program's.
        command.args(["netns", "exec", &self.name]).arg(program).args(args);
        let child = command.stdin(Stdio::null()).stdout(out).stderr(err).spawn();
        Job { child: must(child, "start a program"), what: program.display().to_string() }
    }

    /// Do something on a thread that has joined this namespace. Sockets opened there stay there.
    #[track_caller]
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let joined = thread::scope(|scope| scope.spawn(|| self.joined(work)).join());
        joined.unwrap_or_else(|why| std::panic::resume_unwind(why))
    }

    fn joined<T>(&self, work: impl FnOnce() -> T) -> T {
        let handle = must(File::open(Path::new("/run/netns").join(&*self.name)), "open a namespace");
        must(setns(handle, CloneFlags::CLONE_NEWNET), "join a namespace");
        work()
    }
}

impl Job {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        must(self.child.try_wait(), "ask after a program")
    }

    /// Send it a signal.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        println!("kill -{signal} {} ({})", self.child.id(), self.what);
        must(kill(pid(&self.child), signal), "send a signal");
    }

    /// Send `signal` and wait for the end; panics when it has not ended within `patience`.
    #[track_caller]
    pub fn end(mut self, signal: Signal, patience: Duration) -> ExitStatus {
        self.signal(signal);
        let what = format!("{} to end after {signal}", self.what);
        wait_for(&what, patience, || self.exited())
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Ask every few milliseconds until there is an answer; panics when `patience` is over.
#[track_caller]
pub fn wait_for<T>(what: &str, patience: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited {patience:?} for {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// The value, or a panic that says what was tried.
#[track_caller]
pub(crate) fn must<T, E: Display>(result: Result<T, E>, what: &str) -> T {
    result.unwrap_or_else(|why| panic!("cannot {what}: {why}"))
}

/// Run a command to its end and keep what it said.
#[track_caller]
pub(crate) fn capture(command: &mut Command) -> Done {
    let out = must(command.stdin(Stdio::null()).output(), &format!("run {command:?}"));
    let text = [out.stdout, out.stderr].concat();
    Done { ok: out.status.success(), text: String::from_utf8_lossy(&text).into_owned() }
}

/// Give a socket a receive buffer that holds a burst, beyond what the system grants by default: what a
/// test misses must have been lost on the way and not in its own ear.
#[track_caller]
pub(crate) fn hear_well(socket: &impl AsFd) {
    must(setsockopt(socket, sockopt::RcvBufForce, &(16 << 20)), "enlarge a receive buffer");
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap_or_else(|_| panic!("a process id beyond i32")))
}

/// Kill what runs in a namespace, then delete it.
fn remove(name: &str) {
    let inhabitants = capture(Command::new("ip").args(["netns", "pids", name])).text;
    for pid in inhabitants.split_whitespace().filter_map(|word| word.parse().ok()) {
        // Our own process shows up while one of our threads is inside; that thread ends by itself.
        if u32::try_from(pid) != Ok(std::process::id()) {
            let _gone_already = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    capture(Command::new("ip").args(["netns", "del", name]));
}

/// Remove what test processes that no longer exist could not remove themselves.
fn sweep() {
    for name in directory("/run/netns").into_iter().filter(|name| orphaned(name)) {
        remove(&name);
    }
    for name in directory(std::env::temp_dir()).into_iter().filter(|name| orphaned(name)) {
        drop(fs::remove_dir_all(std::env::temp_dir().join(name)));
    }
}

fn directory(path: impl AsRef<Path>) -> Vec<String> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Whether `name` is one of ours and its process is gone.
fn orphaned(name: &str) -> bool {
    let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('x'));
    owner.is_some_and(|(pid, _)| {
        pid.parse::<u32>().is_ok_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
    })
}

const PREFIX: &str = "sixlab";
static LABS: AtomicU32 = AtomicU32::new(0);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_dead_processes_leave_orphans() {
        assert!(!orphaned(&format!("{PREFIX}{}x0-C", std::process::id())));
        assert!(orphaned(&format!("{PREFIX}4294967295x0-C")));
        assert!(!orphaned("rigC") && !orphaned(PREFIX) && !orphaned("sixlabyx0"));
    }
}
