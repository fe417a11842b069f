//! The thread that writes the store: the control loop never waits for a disk.
//!
//! One batch at a time; between batches, and twice a second at least, it looks whether somebody else has changed accounts.

use std::sync::mpsc as std_mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::broker::Record;
use crate::store::{Changed, Store, StoreError};

/// How often accounts are looked after.
const WATCH: Duration = Duration::from_millis(200);

/// What the keeper says.
#[derive(Debug)]
pub(super) enum Told {
    /// The batch is on disk, or is not.
    Kept(Result<(), StoreError>),
    /// These are the accounts now.
    Accounts(Changed),
}

/// The office's hold on the thread.
#[derive(Debug)]
pub(super) struct Keeper {
    batches: Option<std_mpsc::Sender<Vec<Record>>>,
    told: mpsc::Receiver<Told>,
    /// Batches that could not be written come back.
    unkept: std_mpsc::Receiver<Vec<Record>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Starts the thread; a system without a thread to spare keeps nothing, and the office hears so.
    pub(super) fn start(store: Box<dyn Store>) -> Self {
        let (batches, work) = std_mpsc::channel();
        let (tell, told) = mpsc::channel(4);
        let (back, unkept) = std_mpsc::channel();
        let thread = std::thread::Builder::new().name("store".to_owned());
        let thread = thread.spawn(move || keep(store, &work, &tell, &back));
        let thread =
            thread.map_err(|why| tracing::error!(why = why.to_string(), "no thread for the store")).ok();
        Self { batches: Some(batches), told, unkept, thread }
    }

    /// Hands over a batch. There must be none under way.
    pub(super) fn write(&self, batch: Vec<Record>) {
        let sent = self.batches.as_ref().map(|batches| batches.send(batch));
        if !matches!(sent, Some(Ok(()))) {
            tracing::error!("the store's thread has ended; this is a bug");
        }
    }

    /// What it has to say next; `None`: it has ended.
    pub(super) async fn told(&mut self) -> Option<Told> {
        self.told.recv().await
    }

    /// The batch that could not be written.
    pub(super) fn unkept(&self) -> Vec<Record> {
        self.unkept.try_recv().unwrap_or_default()
    }

    /// Whether the thread has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits until all is written.
    pub(super) fn close(mut self) {
        drop(self.batches.take());
        self.told.close();
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("the store's thread has panicked; this is a bug");
        }
    }
}

fn keep(
    mut store: Box<dyn Store>,
    work: &std_mpsc::Receiver<Vec<Record>>,
    tell: &mpsc::Sender<Told>,
    back: &std_mpsc::Sender<Vec<Record>>,
) {
    let mut looked = Instant::now();
    loop {
        match work.recv_timeout(WATCH.saturating_sub(looked.elapsed())) {
            Ok(batch) => {
                let kept = if batch.is_empty() { Ok(()) } else { store.append(&batch) };
                if kept.is_err() {
                    let _the_office_may_have_closed = back.send(batch);
                }
                let _the_office_may_have_closed = tell.blocking_send(Told::Kept(kept));
            }
            Err(std_mpsc::RecvTimeoutError::Timeout) => {}
            Err(std_mpsc::RecvTimeoutError::Disconnected) => return,
        }
        if looked.elapsed() >= WATCH {
            look(&mut *store, tell);
            looked = Instant::now();
        }
    }
}

fn look(store: &mut dyn Store, tell: &mpsc::Sender<Told>) {
    match store.watch() {
        Ok(None) => {}
        Ok(Some(accounts)) => {
            let _the_office_may_have_closed = tell.blocking_send(Told::Accounts(accounts));
        }
        Err(why) => tracing::warn!(why = why.to_string(), "accounts cannot be looked after"),
    }
}
