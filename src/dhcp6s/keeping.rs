//! What has changed is written down, then routed, then told; while it cannot be written, nothing is told.

use std::time::Instant;

use super::backlog::ended;
use super::scribe::Done;
use super::shelf::{Change, Lease};
use super::{Server, hex};
use crate::broker::BindKey;

impl Server {
    /// Has written down what has changed, unless something is being written already: then it is written after that.
    pub(super) fn submit(&mut self) {
        self.backlog.collect(&mut self.shelf);
        if self.writing.is_some() {
            return;
        }
        if let Some(page) = self.backlog.page(&self.shelf, self.began.elapsed(), !self.closing) {
            self.scribe.write(page);
            self.writing = Some(std::mem::take(&mut self.collected));
        }
    }

    /// What was written is routed, then told; what could not be is written again, and told to nobody.
    pub(super) async fn written(&mut self, done: Done) {
        let mut letters = self.writing.take().unwrap_or_default();
        let Done { page, kept } = done;
        match kept {
            Ok(so) => {
                if self.backlog.kept(&page, so, &mut self.shelf) {
                    let missed = self.not_kept - self.not_kept_before;
                    tracing::warn!(
                        event = "kept_again",
                        "leases are kept on the disk again; {missed} messages were not answered meanwhile"
                    );
                }
                log(&page.changes);
                let (ended, before) = (ended(&page.changes), letters.len());
                let holds =
                    |(key, prefix): &(BindKey, _)| ended.get(prefix).is_none_or(|who| *who == Some(key));
                letters.retain(|letter| letter.tells.iter().all(holds));
                self.not_kept += (before - letters.len()) as u64;
                let failed = self.route(&page.changes).await;
                self.send(letters, &failed).await;
            }
            Err(why) => {
                if self.backlog.failed(page, self.began.elapsed(), &mut self.shelf) {
                    self.not_kept_before = self.not_kept;
                    tracing::error!(
                        event = "not_kept",
                        "{why}; until this works, which is tried every second, nobody is told of new or longer leases"
                    );
                }
                // What has come meanwhile was promised as well.
                self.not_kept += (letters.len() + self.collected.len()) as u64;
                self.collected.clear();
            }
        }
        self.submit();
    }

    /// When the disk is tried again, if it does not work.
    pub(super) fn retry(&self) -> Option<Instant> {
        self.backlog.retry().and_then(|at| self.began.checked_add(at))
    }
}

fn log(changes: &[Change]) {
    if !tracing::enabled!(tracing::Level::INFO) {
        return;
    }
    for change in changes {
        match change {
            Change::Has(Lease { key, prefix, life, .. }) => {
                let (link, client, seconds) = (&key.tunnel, hex(&key.client), life.valid);
                tracing::info!(event = "bound", %link, %prefix, number = key.number, client, seconds);
            }
            Change::Gone(Lease { key, prefix, .. }) => {
                tracing::info!(event = "unbound", %prefix, number = key.number, client = hex(&key.client));
            }
        }
    }
}
