//! A running router in the hands of whoever started it: a thread with a runtime of its own, and how to end it.

use std::path::{Path, PathBuf};
use std::sync::mpsc as std_mpsc;

use sixway_dataplane::start::{Injector, Prepared};
use tokio::sync::{mpsc, oneshot};

use super::voice::{self, Voice};
use super::{Letter, live};
use crate::config::Config;
use crate::delegation::line::Port;

/// A running router.
#[derive(Debug)]
pub struct Router {
    thread: std::thread::JoinHandle<anyhow::Result<()>>,
    stop: Option<oneshot::Sender<()>>,
}

/// Makes a configuration of a file.
pub type Reading = dyn Fn(&Path) -> anyhow::Result<Config> + Send;

/// Reads a configuration again.
pub struct Reread {
    /// The file that it comes from.
    pub file: PathBuf,
    /// Makes a configuration of that file.
    pub read: Box<Reading>,
}

impl std::fmt::Debug for Reread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reread({})", self.file.display())
    }
}

/// What a router is started with.
#[derive(Debug)]
pub struct Start {
    /// The configuration.
    pub config: Config,
    /// Reads it again, for reloads, where that makes sense.
    pub reread: Option<Reread>,
    /// Outer sockets opened beforehand in another network namespace.
    pub prepared: Option<Prepared>,
    /// Whether SIGTERM, SIGINT and SIGHUP are for this router.
    pub signals: bool,
    /// A DHCPv6 client that asks inside one of the tunnels.
    pub client: Option<Port>,
}

impl Router {
    /// Starts a router and returns when it forwards.
    pub fn start(start: Start) -> anyhow::Result<Self> {
        Ok(Self::begin(start, None)?.0)
    }

    /// The same, of which somebody talks at its UDP ports, too.
    pub fn start_speaking(start: Start) -> anyhow::Result<(Self, Voice)> {
        let (sender, letters) = voice::letters();
        let (router, injector) = Self::begin(start, Some(sender))?;
        Ok((router, Voice::new(injector, letters)))
    }

    fn begin(start: Start, letters: Option<mpsc::Sender<Letter>>) -> anyhow::Result<(Self, Injector)> {
        let (ready, is_ready) = std_mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let control = std::thread::Builder::new().name("control".to_owned());
        let thread = control.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(live(start, ready, stopped, letters))
        })?;
        match is_ready.recv() {
            Ok(injector) => Ok((Self { thread, stop: Some(stop) }, injector)),
            Err(_) => Err(join(thread).err().unwrap_or_else(|| anyhow::anyhow!("the router ended at once"))),
        }
    }

    /// Waits until a signal or a fault ends it.
    pub fn wait(self) -> anyhow::Result<()> {
        // Dropping the sender would stop it.
        let Self { thread, stop } = self;
        let ended = join(thread);
        drop(stop);
        ended
    }

    /// Whether it has ended by itself: a signal, or a fault.
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Stops it and waits until all is put back.
    pub fn stop(mut self) -> anyhow::Result<()> {
        drop(self.stop.take());
        join(self.thread)
    }
}

fn join(thread: std::thread::JoinHandle<anyhow::Result<()>>) -> anyhow::Result<()> {
    thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the control thread has panicked; this is a bug")))
}
