//! The signals that an operator sends: held back until the router can take them.

use nix::sys::signal::{SigSet, Signal};
use tokio::signal::unix::{SignalKind, signal};

/// Holds back the signals that an operator sends until the router can take them: from here on none kills the process
/// halfway. Call it before any thread is started.
pub fn hold_signals() -> anyhow::Result<()> {
    Ok(asked_signals().thread_block()?)
}

/// Lets them through in this thread again: a program that it starts inherits what is held back.
pub fn release_signals() -> anyhow::Result<()> {
    Ok(asked_signals().thread_unblock()?)
}

fn asked_signals() -> SigSet {
    SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP])
}

pub(super) enum Wish {
    Stop,
    Reload,
}

/// The signals that an operator sends.
pub(super) struct Signals(Option<[tokio::signal::unix::Signal; 3]>);

impl Signals {
    pub(super) fn new(wanted: bool) -> std::io::Result<Self> {
        if !wanted {
            return Ok(Self(None));
        }
        let [term, int, hup] =
            [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal);
        let taken = Self(Some([term?, int?, hup?]));
        // What came since `hold_signals` is delivered now.
        release_signals().map_err(std::io::Error::other)?;
        Ok(taken)
    }

    pub(super) async fn next(&mut self) -> Wish {
        let Some([term, int, hup]) = &mut self.0 else { return std::future::pending().await };
        tokio::select! {
            _ = term.recv() => Wish::Stop,
            _ = int.recv() => Wish::Stop,
            _ = hup.recv() => Wish::Reload,
        }
    }
}
