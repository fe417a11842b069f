//! Where wishes are dealt with: from protocols through the broker to the store, then the tables, then the answer.
//!
//! ```text
//!   Desk ─► asks ─► Broker ─► Batch ─► keeper (its own thread, one sync for all of it) ─► registry, kernel ─► answers
//!                               ▲
//!                               └── collects while the batch before is being written: group commit
//! ```
//!
//! The control loop drives it: [`Office::next`] waits and collects, [`Office::settle`] brings what is on disk by then into
//! the tables, [`Office::answer`] tells those who asked. What the tables refuse is ended in the store again. Knows no
//! protocol, and not the kernel.

mod asks;
mod batch;
mod clock;
pub mod desk;
mod hooks;
mod keeper;
pub mod lent;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use sixway_dataplane::update::{Ipv6Prefix, Outer, Rejected, TunnelId};
use tokio::sync::oneshot;

use crate::admin::status::ends;
pub use crate::broker::Whence;
use crate::broker::{
    Accounts, Binding, Broker, End, Fate, Grant, Hearing, Lease, LeaseId, Outcome, Protocol, Record, Refusal,
    Route, Terms, Time, UserName,
};
use crate::config;
use crate::registry::Registry;
use crate::store::{Changed, Store, StoreError};
use batch::{Answer, Batch, Step};
use clock::Clock;
use desk::Counter;
pub use desk::{Ask, Desk, Held, Visit};
use hooks::Hooks;
use keeper::{Keeper, Told};
pub use lent::{Lent, LentError, Pins};

/// Questions that one batch takes; the others wait for the next.
const MOST_IN_BATCH: usize = 4096;
/// How long after a failure the store is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How often a step of the calendar is looked for, while something is to end at some time.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(10);

/// A tunnel that is up by a lease.
#[derive(Debug)]
struct Running {
    grant: Grant,
    /// Whoever holds it; `None`: it outlived the process that granted it.
    holder: Option<oneshot::Sender<End>>,
}

/// The office.
#[derive(Debug)]
pub struct Office {
    broker: Broker,
    clock: Clock,
    desk: Desk,
    counter: Counter,
    keeper: Keeper,
    hooks: Hooks,
    running: HashMap<LeaseId, Running>,
    /// What comes next, until it is written.
    open: Batch,
    /// What is being written.
    writing: Option<Batch>,
    /// When the store may be tried again, by a clock that nobody sets; `None`: it works.
    failing: Option<Instant>,
    /// Accounts that other programs' files lend.
    lent: Lent,
    /// Whether accounts have changed since [`Office::new_pins`] was asked.
    pins_changed: bool,
}

/// A batch that was written, or was not.
#[derive(Debug)]
pub struct Written {
    batch: Batch,
    kept: Result<(), StoreError>,
}

/// What has become of a written batch: the tables have it, those who asked do not know yet.
#[derive(Debug, Default)]
pub struct Settled {
    /// Numbers of tunnels that are gone.
    pub gone: Vec<TunnelId>,
    /// Numbers of tunnels that are new.
    pub new: Vec<TunnelId>,
    /// Tunnels and bindings that came and went, in order: what the kernel is to follow.
    pub moves: Vec<Move>,
    /// What [`Office::act`] was given a number for and is done, or could not be done.
    pub acted: Vec<(u64, bool)>,
    answers: Vec<Answer>,
}

/// A leased tunnel, or a binding, in the tables.
#[derive(Debug)]
pub enum Move {
    /// A prefix has come to be behind a tunnel.
    Bound(Binding),
    /// It no longer is.
    Unbound(Binding, End),
    /// It has come up.
    Up(Grant),
    /// It has gone.
    Down(Grant, End),
}

/// Where leased tunnels are put: the registry, or its twin in tests.
pub trait Tables {
    /// Makes the tables follow, in one batch. Returns the numbers of tunnels that are gone, then those that are new.
    ///
    /// # Errors
    /// The tables refuse the batch; nothing has changed then.
    fn follow(&mut self, routes: &[Route]) -> Result<(Vec<TunnelId>, Vec<TunnelId>), Rejected>;
}

impl Tables for Registry {
    fn follow(&mut self, routes: &[Route]) -> Result<(Vec<TunnelId>, Vec<TunnelId>), Rejected> {
        Self::follow(self, routes)
    }
}

impl Office {
    /// Opens with what the store remembers; leases that last are on their way up again. `seed` is random.
    ///
    /// # Errors
    /// That the store cannot be read.
    pub fn open(
        store: Box<dyn Store>,
        terms: Terms,
        hooks: &config::Hooks,
        seed: [u8; 16],
    ) -> Result<Self, StoreError> {
        Self::open_with(store, terms, hooks, Lent::default(), seed)
    }

    /// The same, with accounts beside the store's.
    ///
    /// # Errors
    /// That the store cannot be read.
    pub fn open_with(
        mut store: Box<dyn Store>,
        terms: Terms,
        hooks: &config::Hooks,
        mut lent: Lent,
        seed: [u8; 16],
    ) -> Result<Self, StoreError> {
        let mut memory = store.load()?;
        lent.own(std::mem::take(&mut memory.accounts));
        memory.accounts = lent.accounts();
        let accounts = Accounts::new(seed);
        let (desk, counter) = Desk::new(accounts.clone(), terms.limits);
        let mut broker = Broker::new(accounts, terms);
        let clock = Clock::new();
        let recalled = broker.recall(clock.now(), memory);
        let mut open = Batch::default();
        // Tunnels first, then what is bound inside them: a batch of the tables finds tunnels that are there.
        let (bound, tunnels) = recalled.routes.into_iter().partition(|route| matches!(route, Route::Bind(_)));
        open.add(Outcome { records: recalled.records, routes: tunnels });
        open.add(Outcome { records: Vec::new(), routes: bound });
        Ok(Self {
            broker,
            clock,
            desk,
            counter,
            keeper: Keeper::start(store),
            hooks: Hooks::start(hooks),
            running: HashMap::new(),
            open,
            writing: None,
            failing: None,
            lent,
            pins_changed: true,
        })
    }

    /// Gives new places all over the pools from now on, by a secret of this process.
    pub fn strew(&mut self, key: u64) {
        self.broker.strew(key);
    }

    /// A place to ask at, for a protocol's server.
    pub fn desk(&self) -> Desk {
        self.desk.clone()
    }

    /// Who has what.
    pub fn broker(&self) -> &Broker {
        &self.broker
    }

    /// Looks whether the files that lend accounts have changed. Call it now and then.
    pub fn look(&mut self) {
        if self.lent.look() {
            self.adopt(&[]);
        }
    }

    /// Which users are pinned to which interface, where that may have changed since it was asked last.
    pub fn new_pins(&mut self) -> Option<Pins> {
        std::mem::take(&mut self.pins_changed).then(|| self.lent.pins())
    }

    /// Whether nothing waits to be written or settled.
    pub fn is_idle(&self) -> bool {
        self.writing.is_none() && self.open.is_empty()
    }

    /// The configuration has changed.
    pub fn configure(&mut self, terms: Terms, hooks: &config::Hooks) {
        self.desk.configure(terms.limits);
        self.hooks.configure(hooks);
        let outcome = self.broker.configure(self.now(), terms);
        self.open.add(outcome);
    }

    /// The peer of a leased tunnel was proven to be elsewhere.
    pub fn moved(&mut self, lease: LeaseId, to: &Outer) {
        let outcome = self.broker.moved(lease, to);
        self.open.add(outcome);
    }

    /// Lets a protocol act on the broker. What it wants kept is on its way to the disk then, and `ticket` comes back in
    /// [`Settled::acted`] once it is in the tables; where nothing is to be kept it does not come. Says whether it will.
    ///
    /// # Errors
    /// [`Refusal::Store`] while the store does not work; `work` is not called.
    pub fn act<T>(
        &mut self,
        ticket: u64,
        work: impl FnOnce(&mut Broker, Time) -> (T, Outcome),
    ) -> Result<(T, bool), Refusal> {
        if self.failing.is_some() {
            return Err(Refusal::Store);
        }
        if self.open.len() >= MOST_IN_BATCH {
            return Err(Refusal::Busy);
        }
        let at = self.now();
        let (done, Outcome { mut records, routes }) = work(&mut self.broker, at);
        let kept = !records.is_empty() || !routes.is_empty();
        if kept {
            self.open.records.append(&mut records);
            self.open.steps.push(Step::Acted { ticket, routes });
        }
        Ok((done, kept))
    }

    /// Has `ticket` come back in [`Settled::acted`] once all that was decided before is in the tables; says whether it will, or
    /// all is there already.
    pub fn after_all(&mut self, ticket: u64) -> bool {
        let waits = !self.is_idle();
        if waits {
            self.open.steps.push(Step::Acted { ticket, routes: Vec::new() });
        }
        waits
    }

    /// Ends the binding of this prefix; says whether there was one.
    pub fn unbind(&mut self, prefix: Ipv6Prefix, why: End) -> bool {
        let outcome = self.broker.unbind(self.now(), prefix, why);
        let was = !outcome.is_empty();
        self.open.add(outcome);
        was
    }

    /// Ends the lease behind a tunnel.
    pub fn kick(&mut self, lease: LeaseId) {
        let outcome = self.broker.end(self.now(), lease, End::Kicked);
        self.open.add(outcome);
    }

    /// Ends all leases of a user; says how many.
    pub fn kick_user(&mut self, user: &UserName) -> usize {
        let leases = self.broker.leases_of(user);
        leases.iter().for_each(|lease| self.kick(*lease));
        leases.len()
    }

    /// Lets `look` at each lease of this protocol.
    pub fn patrol(&mut self, protocol: Protocol, look: impl Fn(&Lease, Time) -> (Fate, Hearing)) {
        let at = self.now();
        let outcome = self.broker.patrol(at, protocol, |lease| look(lease, at));
        self.open.add(outcome);
    }

    /// Waits until a batch is written, and collects the next one meanwhile. Dropped at any moment it has lost nothing.
    pub async fn next(&mut self) -> Written {
        loop {
            self.follow_clock();
            self.submit();
            let full = self.open.len() >= MOST_IN_BATCH;
            let now = self.now();
            // A step of the calendar is looked for now and then: nothing ends by it.
            let due = self.broker.poll_timeout().map(|at| at.since(now).min(LOOK_AT_CLOCK));
            let retry = self.retry();
            tokio::select! {
                Some(told) = self.keeper.told() => match told {
                    Told::Kept(kept) => {
                        let batch = self.writing.take().unwrap_or_default();
                        return Written { batch, kept };
                    }
                    Told::Accounts(Changed { accounts, departed }) => {
                        self.lent.own(accounts);
                        self.adopt(&departed);
                    }
                },
                Some((lease, why)) = self.counter.dropped.recv() => self.end(lease, why, None),
                Some(ask) = self.counter.asks.recv(), if !full => self.take(ask),
                () = sleep_for(due) => {
                    let outcome = self.broker.expire(self.now());
                    self.open.add(outcome);
                }
                () = pause_until(retry) => {}
            }
        }
    }

    /// The time that all ends by, whatever has been done to the calendar since it was looked at.
    pub fn now(&self) -> Time {
        self.clock.now()
    }

    /// All that ends at some time ends as much later as the calendar has been set forward.
    fn follow_clock(&mut self) {
        if let Some(by) = self.clock.look() {
            tracing::info!(
                event = "clock_set",
                by_ms = by,
                "the calendar was set; all that was granted lasts as long as before"
            );
            let outcome = self.broker.shift(by);
            self.open.add(outcome);
        }
    }

    /// When a store that has failed is tried again, if there is something to write.
    fn retry(&self) -> Option<Instant> {
        self.failing.filter(|_| self.writing.is_none() && !self.open.is_empty())
    }

    fn submit(&mut self) {
        let waits = self.failing.is_some_and(|until| Instant::now() < until);
        if self.writing.is_some() || self.open.is_empty() || waits {
            return;
        }
        let mut batch = std::mem::take(&mut self.open);
        self.keeper.write(std::mem::take(&mut batch.records));
        self.writing = Some(batch);
    }

    fn adopt(&mut self, departed: &[(UserName, Time)]) {
        let accounts = self.lent.accounts();
        self.pins_changed = true;
        tracing::info!(event = "accounts_changed", accounts = accounts.len());
        let outcome = self.broker.adopt(self.now(), accounts, departed);
        self.open.add(outcome);
    }

    /// Brings what is on disk into the tables. Nobody has been answered yet: see [`Self::answer`].
    pub fn settle(&mut self, written: Written, tables: &mut dyn Tables) -> Settled {
        let Written { batch, kept } = written;
        let failed = self.note_health(kept);
        let mut settled = Settled::default();
        for step in batch.steps {
            match step {
                Step::Granted { grant, routes, reply } => {
                    // A tunnel that was there before does not go because nobody could note that it lasts longer.
                    let is_new = !routes.is_empty();
                    let raised =
                        if failed { Err(Refusal::Store) } else { self.raise(&routes, tables, &mut settled) };
                    let raised = raised.or_else(|why| self.raise_after(why, routes, tables, &mut settled));
                    if raised.is_err() && is_new {
                        self.undo(grant.lease);
                    }
                    settled.answers.push(Answer::Granted(reply, raised.map(|()| grant)));
                }
                Step::Routes(routes) => self.route(routes, tables, &mut settled),
                Step::Acted { ticket, routes } => {
                    let raised =
                        if failed { Err(Refusal::Store) } else { self.raise(&routes, tables, &mut settled) };
                    if let Err(why) = &raised {
                        tracing::warn!(event = "binding_refused", why = why.to_string());
                        self.withdraw_bound(routes, tables, &mut settled);
                    }
                    settled.acted.push((ticket, raised.is_ok()));
                }
                Step::Renewed { until, reply } => {
                    let answer = if failed { Err(Refusal::Store) } else { Ok(until) };
                    settled.answers.push(Answer::Renewed(reply, answer));
                }
                Step::Told { reply } => settled.answers.push(Answer::Told(reply)),
            }
        }
        settled
    }

    /// Whether the store has failed; then what it did not keep is its next work.
    fn note_health(&mut self, kept: Result<(), StoreError>) -> bool {
        let Err(why) = kept else {
            if self.failing.take().is_some() {
                tracing::info!(event = "store_works", "the store works again");
            }
            return false;
        };
        tracing::error!(event = "store_failed", why = why.to_string(), "nothing is granted until it works");
        self.failing = Some(Instant::now() + RETRY);
        // In front of what came since: nothing of it may be forgotten.
        self.open.put_back(self.keeper.unkept());
        true
    }

    /// What a protocol has bound cannot be; what it has ended has ended.
    fn withdraw_bound(&mut self, routes: Vec<Route>, tables: &mut dyn Tables, settled: &mut Settled) {
        let (new, ends): (Vec<Route>, Vec<Route>) =
            routes.into_iter().partition(|route| matches!(route, Route::Bind(_)));
        self.route(ends, tables, settled);
        for route in new {
            let Route::Bind(binding) = route else { continue };
            let outcome = self.broker.unbind(self.now(), binding.prefix, End::Withdrawn);
            self.open.add(outcome);
        }
    }

    /// A lease that cannot be is taken back, as if it never was.
    fn undo(&mut self, lease: LeaseId) {
        let outcome = self.broker.end(self.now(), lease, End::Withdrawn);
        self.open.add(outcome);
    }

    fn raise(
        &mut self,
        routes: &[Route],
        tables: &mut dyn Tables,
        settled: &mut Settled,
    ) -> Result<(), Refusal> {
        let ids = tables.follow(routes).map_err(Refusal::Table)?;
        self.note(routes, ids, settled);
        Ok(())
    }

    /// Whoever gave way to a tunnel has gone, whatever becomes of it. In full tables that has made room for it.
    fn raise_after(
        &mut self,
        why: Refusal,
        routes: Vec<Route>,
        tables: &mut dyn Tables,
        settled: &mut Settled,
    ) -> Result<(), Refusal> {
        let (ends, up): (Vec<_>, Vec<_>) =
            routes.into_iter().partition(|route| matches!(route, Route::Down(..)));
        let made_room = !ends.is_empty() && matches!(why, Refusal::Table(Rejected::Full { .. }));
        self.route(ends, tables, settled);
        if made_room { self.raise(&up, tables, settled) } else { Err(why) }
    }

    /// Lets the tables follow; a tunnel that they refuse alone loses its lease.
    fn route(&mut self, routes: Vec<Route>, tables: &mut dyn Tables, settled: &mut Settled) {
        if self.raise(&routes, tables, settled).is_ok() {
            return;
        }
        for route in routes {
            let Err(why) = self.raise(std::slice::from_ref(&route), tables, settled) else { continue };
            match route {
                Route::Up(grant) => {
                    self.undo(grant.lease);
                    tracing::warn!(event = "tunnel_refused", tunnel = %grant.name, why = why.to_string());
                }
                Route::Bind(binding) => {
                    let outcome = self.broker.unbind(self.now(), binding.prefix, End::Withdrawn);
                    self.open.add(outcome);
                    let (key, why) = (&binding.key, why.to_string());
                    let (address, prefix) = key.shown(binding.prefix);
                    tracing::warn!(event = "binding_refused", tunnel = %key.tunnel, address, prefix, why);
                }
                Route::Down(..) | Route::Unbind(..) => {}
            }
        }
    }

    /// The tables have these routes now.
    fn note(&mut self, routes: &[Route], ids: (Vec<TunnelId>, Vec<TunnelId>), settled: &mut Settled) {
        settled.gone.extend(ids.0);
        settled.new.extend(ids.1);
        for route in routes {
            match route {
                Route::Up(grant) => {
                    self.running.insert(grant.lease, Running { grant: grant.clone(), holder: None });
                    settled.moves.push(Move::Up(grant.clone()));
                }
                Route::Down(lease, why) => {
                    let Some(Running { grant, holder }) = self.running.remove(lease) else { continue };
                    settled.answers.extend(holder.map(|holder| Answer::Ended(holder, *why)));
                    settled.moves.push(Move::Down(grant, *why));
                }
                Route::Bind(binding) => settled.moves.push(Move::Bound(binding.clone())),
                Route::Unbind(binding, why) => settled.moves.push(Move::Unbound(binding.clone(), *why)),
            }
        }
    }

    /// Tells everybody: log, hooks, and those who asked or hold. The kernel should have followed by now.
    pub fn answer(&mut self, settled: Settled) {
        for moved in &settled.moves {
            log(moved);
            match moved {
                Move::Up(grant) => self.hooks.up(grant),
                Move::Down(grant, why) => self.hooks.down(grant, *why),
                Move::Bound(_) | Move::Unbound(..) => {}
            }
        }
        for answer in settled.answers {
            // Whoever has left gets no answer; a lease that is not taken is dropped, which ends it.
            match answer {
                Answer::Granted(reply, Err(why)) => drop(reply.send(Err(why))),
                Answer::Granted(reply, Ok(grant)) => self.hand_over(*grant, reply),
                Answer::Renewed(reply, until) => drop(reply.send(until)),
                Answer::Told(reply) => drop(reply.send(())),
                Answer::Ended(holder, why) => drop(holder.send(why)),
            }
        }
    }

    fn hand_over(&mut self, grant: Grant, reply: oneshot::Sender<Result<Held, Refusal>>) {
        let (held, end) = self.desk.hold(grant);
        match self.running.get_mut(&held.grant.lease) {
            Some(running) => running.holder = Some(end),
            // It has ended in the same batch; its holder hears so at once.
            None => drop(end.send(End::Superseded)),
        }
        drop(reply.send(Ok(held)));
    }

    /// Waits until the batch that is being written is on disk, and closes. Leases that last stay in the store.
    pub fn close(self) {
        self.keeper.close();
    }

    /// Whether the store's thread has ended, which it must not.
    pub fn has_failed(&self) -> bool {
        self.keeper.has_ended()
    }

    /// Hooks that were not run because too many waited.
    pub fn hooks_missed(&self) -> u64 {
        self.hooks.missed()
    }
}

fn log(moved: &Move) {
    match moved {
        Move::Up(Grant { lease, user, protocol: _, name, outer, pair, networks, mtu, expires }) => {
            let (encap, local, remote) = ends(outer);
            // What it does not have is left out of the line.
            let client = pair.map(|pair| pair.client.to_string());
            let networks: Vec<_> = networks.iter().map(ToString::to_string).collect();
            let networks = (!networks.is_empty()).then(|| networks.join(","));
            tracing::info!(
                event = "tunnel_up", tunnel = %name, %user, lease = lease.0, encap, local, remote, client, networks, mtu,
                lasts = expires.is_some(),
            );
        }
        Move::Down(grant, why) => {
            let (lease, user, name) = (grant.lease.0, &grant.user, &grant.name);
            tracing::info!(event = "tunnel_down", tunnel = %name, %user, lease, why = why.name());
        }
        Move::Bound(Binding { key, prefix, .. }) => {
            let (tunnel, iaid, (address, prefix)) = (&key.tunnel, key.number, key.shown(*prefix));
            tracing::info!(event = "bound", %tunnel, address, prefix, iaid, duid = key.duid());
        }
        Move::Unbound(Binding { key, prefix, .. }, why) => {
            let (tunnel, iaid, (address, prefix)) = (&key.tunnel, key.number, key.shown(*prefix));
            tracing::info!(event = "unbound", %tunnel, address, prefix, iaid, duid = key.duid(), why = why.name());
        }
    }
}

async fn sleep_for(due: Option<Duration>) {
    match due {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

async fn pause_until(due: Option<Instant>) {
    match due {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

impl Batch {
    fn add(&mut self, outcome: Outcome) {
        let Outcome { mut records, routes } = outcome;
        self.records.append(&mut records);
        if !routes.is_empty() {
            self.steps.push(Step::Routes(routes));
        }
    }

    fn grant(&mut self, grant: Grant, outcome: Outcome, reply: oneshot::Sender<Result<Held, Refusal>>) {
        let Outcome { mut records, routes } = outcome;
        self.records.append(&mut records);
        self.steps.push(Step::Granted { grant: Box::new(grant), routes, reply });
    }

    fn renew(
        &mut self,
        until: Option<Time>,
        outcome: Outcome,
        reply: oneshot::Sender<Result<Option<Time>, Refusal>>,
    ) {
        let mut records: Vec<Record> = outcome.records;
        self.records.append(&mut records);
        self.steps.push(Step::Renewed { until, reply });
    }
}
