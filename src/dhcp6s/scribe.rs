//! The thread that writes leases down: whoever answers messages never waits for a disk. One batch at a time; what has come
//! meanwhile is the next (group commit).

use std::sync::mpsc as std_mpsc;
use std::thread::JoinHandle;

use tokio::sync::mpsc;

use super::ledger::{Kept, Ledger, LedgerError, Page};

/// A page that is on the disk, or is not.
#[derive(Debug)]
pub struct Done {
    /// What it was.
    pub page: Page,
    /// Whether it is; then how the ledger is.
    pub kept: Result<Kept, LedgerError>,
}

/// The hold on the thread.
#[derive(Debug)]
pub struct Scribe {
    pages: Option<std_mpsc::Sender<Page>>,
    done: mpsc::Receiver<Done>,
    thread: Option<JoinHandle<()>>,
}

impl Scribe {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system has no thread to spare.
    pub fn start(ledger: Ledger) -> std::io::Result<Self> {
        let (pages, work) = std_mpsc::channel();
        let (tell, done) = mpsc::channel(2);
        let thread = std::thread::Builder::new().name("leases".to_owned());
        let thread = thread.spawn(move || write(ledger, &work, &tell))?;
        Ok(Self { pages: Some(pages), done, thread: Some(thread) })
    }

    /// Hands over a page. There must be none under way.
    pub fn write(&self, page: Page) {
        let sent = self.pages.as_ref().map(|pages| pages.send(page));
        if !matches!(sent, Some(Ok(()))) {
            tracing::error!("the thread of leases has ended; this is a bug");
        }
    }

    /// Waits until a page is done. Dropped at any moment it has lost nothing.
    pub async fn done(&mut self) -> Option<Done> {
        self.done.recv().await
    }

    /// Waits until all is written.
    pub fn close(mut self) {
        drop(self.pages.take());
        self.done.close();
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("the thread of leases has panicked; this is a bug");
        }
    }
}

fn write(mut ledger: Ledger, work: &std_mpsc::Receiver<Page>, tell: &mpsc::Sender<Done>) {
    while let Ok(page) = work.recv() {
        let kept = ledger.write(&page);
        let _the_server_may_have_closed = tell.blocking_send(Done { page, kept });
    }
}
