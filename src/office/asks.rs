//! What is asked at the desk, handed to the broker.
//!
//! Answers that need no disk are given at once; the others wait in the batch.

use tokio::sync::oneshot;

use super::desk::{Ask, Held, Stands};
use super::{Office, batch::Step};
use crate::broker::{Broker, End, Grant, LeaseId, Offered, Outcome, Refusal, Wish};

impl Office {
    pub(super) fn take(&mut self, ask: Ask) {
        let now = self.now();
        match ask {
            Ask::Grant { wish, at, reply } => {
                let granted = self.if_kept(|broker| broker.grant_at(now, &wish, at));
                self.note_grant(&wish, granted, reply);
            }
            Ask::Take { wish, offered, reply } => {
                let granted = self.if_kept(|broker| broker.take_offered(now, &wish, &offered));
                self.note_grant(&wish, granted, reply);
            }
            Ask::Offer { wish, reply } => self.offer(wish, reply),
            Ask::Renew { lease, lasts, reply } => match self.broker.renew(now, lease, lasts) {
                Ok((until, outcome)) => self.open.renew(until, outcome, reply),
                Err(why) => drop(reply.send(Err(why))),
            },
            Ask::End { lease, why, reply } => self.end(lease, why, Some(reply)),
            Ask::Find { user, protocol, reply } => drop(reply.send(self.broker.find(&user, protocol))),
        }
    }

    /// Nothing is given while nothing can be kept.
    fn if_kept<T>(&mut self, work: impl FnOnce(&mut Broker) -> Result<T, Refusal>) -> Result<T, Refusal> {
        if self.failing.is_some() { Err(Refusal::Store) } else { work(&mut self.broker) }
    }

    fn note_grant(
        &mut self,
        wish: &Wish,
        granted: Result<(Grant, Outcome), Refusal>,
        reply: oneshot::Sender<Result<Held, Refusal>>,
    ) {
        match granted {
            Ok((grant, outcome)) => self.open.grant(grant, outcome, reply),
            Err(why) => {
                tracing::info!(event = "refused", user = %wish.user, protocol = wish.protocol.name(), why = why.to_string());
                let _the_asker_may_have_left = reply.send(Err(why));
            }
        }
    }

    fn offer(&mut self, wish: Wish, reply: oneshot::Sender<Result<Held, Refusal>>) {
        let now = self.now();
        let (grant, outcome, stands) = match self.if_kept(|broker| broker.offer_tunnel(now, &wish)) {
            Err(why) => return self.note_grant(&wish, Err(why), reply),
            Ok((Offered::Granted(grant), outcome)) => {
                return self.note_grant(&wish, Ok((grant, outcome)), reply);
            }
            Ok((Offered::Waiting(grant), outcome)) => (grant, outcome, Stands::Offer(Box::new(wish))),
            Ok((Offered::Same(grant), outcome)) => (grant, outcome, Stands::Before),
        };
        self.open.add(outcome);
        let _the_asker_may_have_left = reply.send(Ok(self.desk.promise(grant, stands)));
    }

    pub(super) fn end(&mut self, lease: LeaseId, why: End, reply: Option<oneshot::Sender<()>>) {
        let outcome = self.broker.end(self.now(), lease, why);
        self.open.add(outcome);
        self.open.steps.extend(reply.map(|reply| Step::Told { reply }));
    }
}
