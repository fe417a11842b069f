//! `sixway connect` in the client's namespace, as a user would start it, with its log.
//!
//! Knows the command's flags for where things are kept; whom it asks for what is the story's.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::{Job, Rig, program, wait_for};

/// A running `sixway connect`; killed on drop, properly ended by [`Connected::stop`].
#[derive(Debug)]
pub struct Connected {
    /// The process.
    pub job: Job,
    log: PathBuf,
}

impl Connected {
    /// Starts it in `C` with these words behind `connect`. Each has a log of its own.
    #[track_caller]
    pub fn start(rig: &Rig, words: &[&str]) -> Self {
        let log = rig.lab.path(&format!("connect-{}.log", STARTED.fetch_add(1, Ordering::Relaxed)));
        let args = [&["connect"], words].concat();
        Self { job: rig.c.spawn(&program(), &args, &log), log }
    }

    /// The same with this secret of the user's, in a file.
    #[track_caller]
    pub fn start_as(rig: &Rig, secret: &str, words: &[&str]) -> Self {
        let secret = rig.lab.write("password", &format!("{secret}\n"));
        let socket = rig.lab.path("connect.sock");
        let (secret, socket) = (secret.to_string_lossy(), socket.to_string_lossy());
        Self::start(rig, &[&["--password-file", &secret, "--socket", &socket], words].concat())
    }

    /// Its log.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// What is in its log.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until these words are in its log.
    #[track_caller]
    pub fn says(&self, words: &str) {
        self.says_times(words, 1);
    }

    /// Waits until they are in it so many times.
    #[track_caller]
    pub fn says_times(&self, words: &str, times: usize) {
        wait_for(&format!("'{words}' in {}", self.log.display()), SAID, || {
            (self.said().matches(words).count() >= times).then_some(())
        });
    }

    /// Ends it by SIGTERM; panics with its log when that is no success.
    #[track_caller]
    pub fn stop(self) {
        let Self { job, log } = self;
        let status = job.end(Signal::SIGTERM, crate::PATIENCE);
        assert!(status.success(), "{status}: {}", fs::read_to_string(log).unwrap_or_default());
    }
}

static STARTED: AtomicU32 = AtomicU32::new(0);
/// Half of the shortest lifetime of a tunnel is a part of it.
const SAID: Duration = Duration::from_secs(60);
