//! Ctrl-C at any moment: signals are held back from every thread and taken by one that waits for them.
//!
//! A handler could hardly do anything; a thread may clear the terminal and remove files. Refuses to
//! know what is cleaned up.

use std::process;
use std::thread;

use anyhow::Context;
use nix::sys::signal::{SigSet, Signal};

/// Holds the signals back from the calling thread and all it starts from now on. Starts no thread.
pub(crate) fn hold() -> anyhow::Result<SigSet> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    signals.thread_block().context("cannot block signals")?;
    Ok(signals)
}

/// Waits for one of the signals on a thread of its own, then cleans up and ends the process with
/// code 128 + signal, as a shell reports it.
pub(crate) fn watch(signals: SigSet, clean_up: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    let wait = move || {
        if let Ok(signal) = signals.wait() {
            clean_up();
            eprintln!("stopped by {signal}; nothing is left behind");
            process::exit(128 + signal as i32);
        }
    };
    thread::Builder::new().name("signals".to_owned()).spawn(wait).context("cannot start a thread")?;
    Ok(())
}
