//! What is written to the store in one go, and what follows once it is there.

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

    /// How much there is to do.
    pub(super) fn len(&self) -> usize {
        self.steps.len()
    }
}
