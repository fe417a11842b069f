//! Keeps the ledger short: all that has ever become of leases is in it, in the order in which it was, until every lease has
//! been written down anew; then what was before that can go. Pure.
//!
//! That is done a part at a time, beside the changes that come meanwhile, so nobody waits for it, and only when most of the
//! ledger is old: each change has been written about twice when it goes.

use sixway_dataplane::update::Ipv6Prefix;

use super::shelf::{Lease, Shelf};

/// Records that are never too many.
const SOME: usize = 16_384;
/// Leases that are written anew in one part: at least so many, or twice as many as have changed, and at most so many.
const PART: (usize, usize) = (512, 16_384);

/// Leases that are written anew.
#[derive(Debug, Default)]
pub struct Part {
    /// They, in the order of prefixes.
    pub leases: Vec<Lease>,
    /// What was written before this part can go when all have been written anew.
    pub is_first: bool,
    /// Now they have.
    pub is_last: bool,
}

/// How far it is.
#[derive(Debug, Default)]
pub struct Tidy {
    is_due: bool,
    /// What has been written anew last.
    last: Option<Ipv6Prefix>,
}

impl Tidy {
    /// Whether something is to be written anew.
    pub fn is_due(&self) -> bool {
        self.is_due
    }

    /// There are so many records of so many leases.
    pub fn look(&mut self, records: usize, leases: usize) {
        self.is_due |= records > leases.saturating_mul(2).saturating_add(SOME);
    }

    /// The next part, beside so many changes, all of which the shelf knows already. It is the next until it is
    /// [`kept`](Self::kept).
    pub fn part(&self, shelf: &Shelf, changes: usize) -> Option<Part> {
        if !self.is_due {
            return None;
        }
        let most = changes.saturating_mul(2).clamp(PART.0, PART.1);
        let mut left = shelf.after(self.last);
        let leases = left.by_ref().take(most).cloned().collect();
        Some(Part { leases, is_first: self.last.is_none(), is_last: left.next().is_none() })
    }

    /// This part is on the disk.
    pub fn kept(&mut self, part: &Part) {
        self.is_due = !part.is_last;
        self.last = part.leases.last().filter(|_| self.is_due).map(|lease| lease.prefix);
    }
}
