//! A room: a thread in a network namespace of its own that does what it is asked, one thing at a time.
//!
//! Sockets stay in the namespace they were opened in, so only opening them has to happen here. Refuses
//! to know what is asked.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc;
use std::thread::{self, Scope};

use anyhow::{Context, anyhow};
use nix::sched::{CloneFlags, unshare};

type Job<'env> = Box<dyn FnOnce() + Send + 'env>;

/// A thread in its own network namespace; both end when this is dropped.
pub(crate) struct Room<'env> {
    name: &'static str,
    jobs: mpsc::Sender<Job<'env>>,
    namespace: File,
}

impl<'env> Room<'env> {
    /// Makes the namespace and the thread.
    pub(crate) fn open<'scope>(
        scope: &'scope Scope<'scope, 'env>,
        name: &'static str,
    ) -> anyhow::Result<Self> {
        let (jobs, inbox) = mpsc::channel::<Job<'env>>();
        let (ready, entered) = mpsc::channel();
        let live = move || {
            let namespace = enter();
            let failed = namespace.is_err();
            if ready.send(namespace).is_err() || failed {
                return;
            }
            inbox.into_iter().for_each(|job| job());
        };
        thread::Builder::new()
            .name(name.to_owned())
            .spawn_scoped(scope, live)
            .context("cannot start a thread")?;
        let namespace = entered.recv().context("the thread has ended")?;
        Ok(Self { name, jobs, namespace: namespace? })
    }

    /// What it is called.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// Does the job in the room and waits for it.
    pub(crate) fn run<T: Send + 'env>(&self, job: impl FnOnce() -> T + Send + 'env) -> anyhow::Result<T> {
        let (answer, result) = mpsc::sync_channel(1);
        let deliver = move || {
            // Nobody takes the answer only when the asker has panicked, and then nobody misses it.
            let _ = answer.send(job());
        };
        let died = || anyhow!("the {}'s thread has died", self.name);
        self.jobs.send(Box::new(deliver)).map_err(|_| died())?;
        result.recv().map_err(|_| died())
    }

    /// Its network namespace.
    pub(crate) fn namespace(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

fn enter() -> anyhow::Result<File> {
    unshare(CloneFlags::CLONE_NEWNET).context(
        "cannot make a network namespace; is user.max_net_namespaces high enough? `sysctl user.max_net_namespaces`",
    )?;
    File::open("/proc/thread-self/ns/net").context("cannot open /proc/thread-self/ns/net; is /proc mounted?")
}
