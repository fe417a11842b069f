//! What is written to the store in one go, and what follows once it is there.

use std::collections::HashSet;

use tokio::sync::oneshot;

use super::Held;
use crate::broker::{End, Grant, Record, Refusal, Route, Time};

/// Records of many questions, and their consequences in the order in which they were asked.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// For the store.
    pub(super) records: Vec<Record>,
    /// For tables and askers.
    pub(super) steps: Vec<Step>,
}

/// One consequence.
#[derive(Debug)]
pub(super) enum Step {
    /// A tunnel comes up, after others that give way to it, and its asker is answered.
    Granted {
        /// What was granted.
        grant: Box<Grant>,
        /// Those that give way, then the tunnel itself.
        routes: Vec<Route>,
        /// Who waits.
        reply: oneshot::Sender<Result<Held, Refusal>>,
    },
    /// Tunnels come and go that nobody waits for.
    Routes(Vec<Route>),
    /// A lease lasts longer.
    Renewed {
        /// Until when.
        until: Option<Time>,
        /// Who waits.
        reply: oneshot::Sender<Result<Option<Time>, Refusal>>,
    },
    /// Bindings come, last longer and go, for a protocol that knows the rest by this number.
    Acted {
        /// The protocol's number for it.
        ticket: u64,
        /// For the tables.
        routes: Vec<Route>,
    },
    /// What was asked before is done.
    Told {
        /// Who waits.
        reply: oneshot::Sender<()>,
    },
}

/// What somebody is told at the end.
#[derive(Debug)]
pub(super) enum Answer {
    /// The tunnel, or why not.
    Granted(oneshot::Sender<Result<Held, Refusal>>, Result<Box<Grant>, Refusal>),
    /// Until when, or why not.
    Renewed(oneshot::Sender<Result<Option<Time>, Refusal>>, Result<Option<Time>, Refusal>),
    /// It is done.
    Told(oneshot::Sender<()>),
    /// The lease has ended.
    Ended(oneshot::Sender<End>, End),
}

impl Batch {
    /// Whether there is nothing to write and nothing to do.
    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty() && self.steps.is_empty()
    }

    /// Puts what could not be written in front of what came since. However long the store fails, no lease has more than
    /// one line about until when it lasts, and one about where its peer is: the last ones.
    pub(super) fn put_back(&mut self, mut unkept: Vec<Record>) {
        unkept.append(&mut self.records);
        let (mut until, mut moved, mut bound) = (HashSet::new(), HashSet::new(), HashSet::new());
        unkept.reverse();
        unkept.retain(|record| match record {
            Record::Until(lease, _) => until.insert(*lease),
            Record::Moved(lease, _) => moved.insert(*lease),
            Record::BoundUntil(prefix, ..) => bound.insert(*prefix),
            Record::Account(_)
            | Record::AccountGone(_)
            | Record::Lease(_)
            | Record::Ended(_)
            | Record::Bound(_)
            | Record::Unbound(_)
            | Record::Assigned { .. } => true,
        });
        unkept.reverse();
        self.records = unkept;
    }

    /// How much there is to do.
    pub(super) fn len(&self) -> usize {
        self.steps.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::LeaseId;

    #[test]
    fn what_waits_for_a_failing_store_does_not_grow_by_renewals() {
        let (one, two) = (LeaseId(1), LeaseId(2));
        let mut batch =
            Batch { records: vec![Record::Until(one, Time(30)), Record::Ended(two)], steps: Vec::new() };
        batch.put_back(vec![
            Record::Until(one, Time(10)),
            Record::Until(two, Time(11)),
            Record::Until(one, Time(20)),
        ]);
        let wanted = [Record::Until(two, Time(11)), Record::Until(one, Time(30)), Record::Ended(two)];
        assert_eq!(batch.records, wanted, "the last of each, in order");
    }
}
