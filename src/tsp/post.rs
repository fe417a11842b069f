//! The server's end of all sessions over UDP: one task that hands datagrams to `flows`, answers back to the forwarder, and
//! questions to the office.
//!
//! Datagrams come up from the forwarder, whose port they share with the tunnels' packets, and answers leave by the same
//! socket. Knows nothing of tables and files.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sixway_dataplane::start::Injector;
use sixway_dataplane::worker::Inject;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::codec::Code;
use super::flows::{Act, Ends, Flows, MOST_FLOWS};
use super::server::{House, count, takes_long};
use super::session::Output;
use super::terms::{Found, Given, Transport};
use crate::broker::UserName;
use crate::office::Held;

/// How often sessions are looked through for those that have gone silent.
const ROUND: Duration = Duration::from_secs(1);

/// What the office has answered to a session.
enum Answer {
    Proof(Option<(UserName, Vec<u8>)>),
    Grant(Result<(Given, Box<Held>), Code>),
    Found(Option<Found>),
    Taken(Result<Box<Held>, Code>),
    Deleted,
}

/// All sessions over UDP.
pub(super) struct Post {
    house: Arc<House>,
    injector: Injector,
    flows: Flows,
    /// What sessions hold, by their numbers.
    held: HashMap<u64, Held>,
    answers: mpsc::UnboundedSender<(Ends, u64, Answer)>,
    answered: mpsc::UnboundedReceiver<(Ends, u64, Answer)>,
}

impl Post {
    /// No session yet.
    pub(super) fn new(house: Arc<House>, injector: Injector) -> Self {
        // Not bounded by itself: each session waits for one answer at most.
        let (answers, answered) = mpsc::unbounded_channel();
        let flows = Flows::new(house.rules().offer.clone(), MOST_FLOWS);
        Self { house, injector, flows, held: HashMap::new(), answers, answered }
    }

    /// Answers until nobody is left who hands letters in.
    pub(super) async fn serve(mut self, mut letters: mpsc::Receiver<(Ends, Vec<u8>)>) {
        let mut round = interval(ROUND);
        round.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                letter = letters.recv() => match letter {
                    Some((ends, octets)) => {
                        self.flows.set_terms(self.house.rules().offer.clone(), self.house.is_draining());
                        self.flows.handle_datagram(ends, &octets, rand::random(), self.house.now());
                    }
                    None => return,
                },
                Some((ends, number, answer)) = self.answered.recv() => self.hand_on(ends, number, answer),
                _ = round.tick() => self.flows.handle_timeout(self.house.now()),
            }
            self.obey();
            self.note();
        }
    }

    /// Does all that the sessions say.
    fn obey(&mut self) {
        loop {
            let acts = self.flows.poll_acts();
            if acts.is_empty() {
                return;
            }
            for act in acts {
                match act {
                    Act::Send(ends, payload) => self.send(ends, payload),
                    Act::Do(ends, number, output) => self.act(ends, number, output),
                }
            }
        }
    }

    fn send(&self, ends: Ends, payload: Vec<u8>) {
        let letter = Inject::Datagram { local: ends.local, remote: ends.remote, payload };
        if self.injector.inject(letter).is_err() {
            // The client will ask again.
            count(&self.house.counts.udp_unsent);
        }
    }

    fn act(&mut self, ends: Ends, number: u64, output: Output) {
        let (house, answers) = (self.house.clone(), self.answers.clone());
        match output {
            Output::Prove(claim) if takes_long(&claim) => drop(tokio::spawn(async move {
                let proof = house.prove_aside(*ends.remote.ip(), Transport::Udp, claim).await;
                let _or_closed = answers.send((ends, number, Answer::Proof(proof)));
            })),
            Output::Prove(claim) => {
                let proof = house.prove(*ends.remote.ip(), Transport::Udp, &claim);
                let now = house.now();
                self.flows.handle_answer(ends, number, now, |session| session.handle_proof(proof, now));
            }
            Output::Grant(want) => drop(tokio::spawn(async move {
                let granted = house.grant(&want, ends).await.map(|(given, held)| (given, Box::new(held)));
                let _or_closed = answers.send((ends, number, Answer::Grant(granted)));
            })),
            Output::Find(user) => drop(tokio::spawn(async move {
                let found = house.find(user, *ends.remote.ip()).await;
                let _or_closed = answers.send((ends, number, Answer::Found(found)));
            })),
            Output::Delete(user) => {
                self.held.remove(&number);
                drop(tokio::spawn(async move {
                    house.delete(user, *ends.remote.ip()).await;
                    let _or_closed = answers.send((ends, number, Answer::Deleted));
                }));
            }
            Output::Release => {
                if let Some(held) = self.held.remove(&number) {
                    tokio::spawn(async move { house.release(held).await });
                }
            }
            Output::Accepted => {
                let Some(held) = self.held.remove(&number) else {
                    return self.hand_on(ends, number, Answer::Taken(Err(Code::ServerError)));
                };
                if !held.is_offer() {
                    return self.hand_on(ends, number, Answer::Taken(Ok(Box::new(held))));
                }
                tokio::spawn(async move {
                    let taken = house.take(held).await.map(Box::new);
                    let _or_closed = answers.send((ends, number, Answer::Taken(taken)));
                });
            }
            // The lease lasts without whoever asked for it.
            Output::Finish => drop(self.held.remove(&number)),
            Output::Send(_) | Output::Pause => {}
        }
    }

    fn hand_on(&mut self, ends: Ends, number: u64, answer: Answer) {
        let now = self.house.now();
        match answer {
            Answer::Grant(Ok((given, held))) => {
                if !self
                    .flows
                    .handle_answer(ends, number, now, |session| session.handle_grant(Ok(given), now))
                {
                    // Whoever asked for it has gone, or begun anew.
                    let house = self.house.clone();
                    tokio::spawn(async move { house.release(*held).await });
                    return;
                }
                self.held.insert(number, *held);
            }
            Answer::Grant(Err(code)) => {
                self.flows.handle_answer(ends, number, now, |session| session.handle_grant(Err(code), now));
            }
            Answer::Taken(taken) => {
                let told = taken.as_ref().map_or_else(|code| Err(*code), |_| Ok(()));
                if self.flows.handle_answer(ends, number, now, |session| session.handle_taken(told, now)) {
                    self.held.extend(taken.ok().map(|held| (number, *held)));
                }
                if told.is_ok() {
                    count(&self.house.counts.taken);
                }
            }
            Answer::Proof(proof) => {
                self.flows.handle_answer(ends, number, now, |session| session.handle_proof(proof, now));
            }
            Answer::Found(found) => {
                self.flows.handle_answer(ends, number, now, |session| session.handle_found(found, now));
            }
            Answer::Deleted => {
                self.flows.handle_answer(ends, number, now, |session| session.handle_deleted(now));
            }
        }
    }

    fn note(&self) {
        let (c, counts) = (self.flows.counters(), &self.house.counts);
        let all = [
            (&counts.udp_sessions, self.flows.len() as u64),
            (&counts.udp_messages, c.messages),
            (&counts.udp_repeated, c.repeated),
            (&counts.udp_echoes, c.echoes),
            (&counts.udp_strange, c.strange),
            (&counts.udp_evicted, c.evicted),
            (&counts.udp_revived, c.revived),
            (&counts.udp_throttled, c.throttled),
            (&counts.udp_timed_out, c.timed_out),
        ];
        all.into_iter().for_each(|(counter, n)| counter.store(n, Ordering::Relaxed));
    }
}
