//! Lease queries of this host itself (RFC 5007): what is sent to `::1`, or to any of the host's own addresses from the host,
//! comes in on `lo`, which is no served link. Open while the configuration names somebody who may ask; nothing but queries
//! is heard there. And what becomes of an answer to any query: it waits until all that it tells of is on the disk.

use std::collections::BTreeSet;

use super::letters::{Disk, Letter};
use super::socket::{Answer, Inbox, LinkSocket};
use super::{Server, here};

/// The interface.
const LOOPBACK: &str = "lo";
/// LEASEQUERY (RFC 5007 section 4.1.1).
const LEASE_QUERY: u8 = 14;

/// Waits until something has come; for ever, if nobody listens.
pub(super) async fn hears(ear: Option<&LinkSocket>) -> std::io::Result<()> {
    match ear {
        Some(ear) => ear.readable().await,
        None => std::future::pending().await,
    }
}

impl Server {
    /// Opens the socket, or closes it, as the configuration says.
    pub(super) fn listen_here(&mut self) {
        if self.start.conf.requestors.is_empty() {
            self.ear = None;
            return;
        }
        if self.ear.is_some() {
            return;
        }
        let opened = here::index(LOOPBACK).map(|index| LinkSocket::open(LOOPBACK, index));
        match opened {
            Some(Ok(socket)) => self.ear = Some(socket),
            Some(Err(why)) => {
                tracing::warn!(
                    "lease queries of this host itself are not heard: {why}; another dhcp6s may run: the first hears those to ::1, \
                     and answers for its own leases alone; ask others at an address of their links"
                );
            }
            None => tracing::warn!("lease queries of this host itself are not heard: there is no {LOOPBACK}"),
        }
    }

    /// Answers what has come.
    pub(super) async fn answer_here(&mut self, inbox: &mut Inbox) {
        let Some(ear) = &self.ear else { return };
        if ear.take(inbox).is_err() {
            return;
        }
        let behind = self.ports.len();
        let mut letters = Vec::new();
        for (octets, arrived) in inbox.messages().filter(|(octets, _)| octets.first() == Some(&LEASE_QUERY)) {
            // All links are served by the same leases, so any of them can say.
            letters.extend(self.handle(0, octets, arrived, behind));
        }
        self.send(letters, &BTreeSet::new());
        // What is over by now has ended meanwhile.
        self.submit();
    }

    /// A letter that tells of what others have leaves when that is on the disk: at once, if all is.
    pub(super) fn hold(&mut self, letter: Letter) -> Option<Letter> {
        let disk = match () {
            () if self.backlog.retry().is_some() => Disk::Failing,
            () if self.shelf.has_news() || !self.backlog.is_empty() => Disk::Behind,
            () => Disk::Even,
        };
        self.letters.hold(letter, disk)
    }

    /// Sends the letters that are for this host itself.
    pub(super) fn send_here(&mut self, letters: &[Letter]) {
        let Some(ear) = &mut self.ear else { return };
        let own = letters.iter().filter(|letter| letter.port == self.ports.len());
        let own: Vec<Answer<'_>> = own.map(Letter::answer).collect();
        ear.send(&own);
    }
}
