//! What has changed is written down, then routed, then told; while it cannot be written, nothing is told.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use sixway_dataplane::update::Ipv6Prefix;

use super::Server;
use super::backlog::ended;
use super::letters::Letter;
use super::routes::{say_all, way};
use super::scribe::Done;
use super::shelf::{Change, Lease};
use super::socket::Answer;
use crate::broker::{BindKey, BindKind};
use crate::dhcpv6::codec::MAX_DUID;

impl Server {
    /// Has written down what has changed, unless something is being written already: then it is written after that.
    pub(super) fn submit(&mut self) {
        self.backlog.collect(&mut self.shelf);
        if self.letters.is_writing() {
            return;
        }
        if let Some(page) = self.backlog.page(&self.shelf, self.began.elapsed(), !self.closing) {
            self.scribe.write(page);
            self.letters.begin();
        }
    }

    /// What was written is routed, then told; what could not be is written again, and told to nobody.
    pub(super) async fn written(&mut self, done: Done) {
        let mut letters = self.letters.finish();
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
                if !ended.is_empty() {
                    letters.retain(|letter| letter.tells.iter().all(holds));
                }
                self.not_kept += (before - letters.len()) as u64;
                let failed = self.route(&page.changes).await;
                self.shelf.settled(&page.changes);
                self.send(letters, &failed);
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
                self.not_kept += (letters.len() + self.letters.drop_behind(0)) as u64;
            }
        }
        self.submit();
    }

    /// Has routed what answers tell of for which nothing had to be written, as far as it has no route. Returns what has none
    /// after that.
    pub(super) async fn lead(&mut self, letters: &[Letter]) -> BTreeSet<Ipv6Prefix> {
        let told = letters.iter().flat_map(|letter| &letter.tells);
        let leases = told.filter_map(|(_, prefix)| self.shelf.get(*prefix));
        let leads = |prefix| self.ports.iter().any(|port| port.routes.leads(prefix));
        let lacks = |lease: &&Lease| way(lease).is_some() && !leads(lease.prefix);
        let changes: Vec<Change> = leases.filter(lacks).cloned().map(Change::Has).collect();
        self.route(&changes).await
    }

    /// Sends answers, as far as what they tell of is still so and can be reached.
    pub(super) fn send(&mut self, mut letters: Vec<Letter>, unrouted: &BTreeSet<Ipv6Prefix>) {
        let holds = |(key, prefix): &(BindKey, Ipv6Prefix)| {
            !unrouted.contains(prefix) && self.shelf.get(*prefix).is_some_and(|lease| lease.key == *key)
        };
        let before = letters.len();
        letters.retain(|letter| letter.tells.iter().all(holds));
        self.not_kept += (before - letters.len()) as u64;
        for (n, port) in self.ports.iter_mut().enumerate() {
            let own = letters.iter().filter(|letter| letter.port == n);
            let own: Vec<Answer<'_>> = own.map(Letter::answer).collect();
            port.send(&own);
        }
        self.send_here(&letters);
    }

    /// Routes come and go with leases. A new lease that cannot be routed is taken back; one of longer standing stays, is not
    /// told of now, and has its route when that can be: that is tried at each look. Returns what has no route now that should have.
    pub(super) async fn route(&mut self, changes: &[Change]) -> BTreeSet<Ipv6Prefix> {
        let prefixes = changes.iter().map(Change::lease).filter(|lease| lease.key.kind == BindKind::Prefix);
        // The last change of each counts.
        let last: BTreeMap<Ipv6Prefix, &Lease> = prefixes.map(|lease| (lease.prefix, lease)).collect();
        if last.is_empty() {
            return BTreeSet::new();
        }
        // The kernel has room for one: that of the link which the client has left goes first.
        for port in &mut self.ports {
            let elsewhere = last.values().filter(|lease| *lease.key.tunnel != *port.name);
            let none: Vec<_> = elsewhere.map(|lease| (lease.prefix, None)).collect();
            say_all(&port.routes.put_all(&none).await);
        }
        let mut failed = BTreeSet::new();
        for port in &mut self.ports {
            let here = last.values().filter(|lease| *lease.key.tunnel == *port.name);
            let is_there =
                |lease: &Lease| self.shelf.get(lease.prefix).is_some_and(|now| now.key == lease.key);
            let wanted: Vec<_> =
                here.map(|lease| (lease.prefix, way(lease).filter(|_| is_there(lease)))).collect();
            let refused = port.routes.put_all(&wanted).await;
            say_all(&refused);
            self.unrouted += refused.len() as u64;
            failed.extend(refused.iter().filter(|one| one.is_wanted).map(|one| one.prefix));
        }
        // Only those of which nobody has been told.
        failed.iter().for_each(|prefix| self.shelf.refuse(*prefix));
        failed
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
        let Lease { key, prefix, life, .. } = change.lease();
        let (interface, iaid, valid) = (&key.tunnel, key.number, life.valid);
        let ((address, prefix), (duid, line)) = (key.shown(*prefix), named(key));
        let is_nobodys = key.client.is_empty();
        match change {
            Change::Has(_) if is_nobodys => {
                tracing::info!(event = "withheld", %interface, address, prefix, seconds = valid);
            }
            Change::Gone(_) if is_nobodys => {
                tracing::info!(event = "withheld_no_more", %interface, address, prefix);
            }
            Change::Has(_) => {
                tracing::info!(event = "bound", %interface, address, prefix, iaid, duid, line, valid);
            }
            Change::Gone(_) => {
                tracing::info!(event = "unbound", %interface, address, prefix, iaid, duid, line);
            }
        }
    }
}

/// Whose: a DUID, or the line that its client is on, as octets.
fn named(key: &BindKey) -> (Option<String>, Option<String>) {
    let Some(line) = key.client.get(MAX_DUID + 1..).filter(|line| !line.is_empty()) else {
        return (Some(key.duid()), None);
    };
    let line = BindKey { client: line.into(), ..key.clone() };
    (None, Some(line.duid()))
}
