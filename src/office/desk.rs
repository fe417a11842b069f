//! What a protocol's server holds: a place to ask at. It can be cloned and used from any task.
//!
//! ```text
//!   let visit = desk.enter(peer)?;                        one for each connection, dropped with it
//!   let (user, proof) = desk.login(peer, name, how, |secret| check(secret))?;
//!   let mut held = desk.grant(wish).await?;               on disk and in the tables now
//!   select! { why = held.ended() => .., line = .. }       the office may end it: say goodbye
//!   held.release().await                                  or drop it: the connection is gone
//! ```
//!
//! Knows no protocol; decides nothing itself.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, oneshot};

use crate::broker::{
    Accounts, Doorman, End, Grant, Lease, LeaseId, Limits, Mechanism, PairPlace, Protocol, Refusal, Secret,
    Time, UserName, Whence, Wish,
};

/// Wishes that may wait before the next one is told to come again.
pub const MOST_WAITING: usize = 16_384;

/// A question at the desk, on its way to the office.
#[derive(Debug)]
pub enum Ask {
    /// Somebody wants a tunnel.
    Grant {
        /// What.
        wish: Wish,
        /// Exactly this address pair, if one is wished for.
        at: Option<PairPlace>,
        /// Where the answer goes.
        reply: oneshot::Sender<Result<Held, Refusal>>,
    },
    /// Somebody wants a tunnel and may yet reject it.
    Offer {
        /// What.
        wish: Wish,
        /// Where the answer goes.
        reply: oneshot::Sender<Result<Held, Refusal>>,
    },
    /// Somebody takes what was offered.
    Take {
        /// What was wished for.
        wish: Box<Wish>,
        /// What was offered.
        offered: Box<Grant>,
        /// Where the answer goes.
        reply: oneshot::Sender<Result<Held, Refusal>>,
    },
    /// A lease is to last longer.
    Renew {
        /// Which.
        lease: LeaseId,
        /// From now on.
        lasts: Duration,
        /// Where the answer goes: when it ends now.
        reply: oneshot::Sender<Result<Option<Time>, Refusal>>,
    },
    /// A lease is to end.
    End {
        /// Which.
        lease: LeaseId,
        /// Why.
        why: End,
        /// Told when it has ended; nobody may be listening.
        reply: oneshot::Sender<()>,
    },
    /// Somebody wants to know what a user has.
    Find {
        /// Who.
        user: UserName,
        /// By which protocol.
        protocol: Protocol,
        /// Where the answer goes.
        reply: oneshot::Sender<Vec<Lease>>,
    },
}

/// A place to ask at.
#[derive(Clone, Debug)]
pub struct Desk {
    accounts: Accounts,
    door: Arc<Mutex<Doorman>>,
    /// Limits are counted from here on: a clock that is set back must lock nobody out.
    opened: Instant,
    asks: mpsc::Sender<Ask>,
    /// Leases whose holder has gone without a word. Not bounded by itself: each lease is in it once at most.
    dropped: mpsc::UnboundedSender<(LeaseId, End)>,
}

/// The office's end of the desk.
#[derive(Debug)]
pub struct Counter {
    /// Questions.
    pub asks: mpsc::Receiver<Ask>,
    /// Leases whose holder has gone.
    pub dropped: mpsc::UnboundedReceiver<(LeaseId, End)>,
}

impl Desk {
    /// A desk and the other side of it.
    pub fn new(accounts: Accounts, limits: Limits) -> (Self, Counter) {
        let (asks, asked) = mpsc::channel(MOST_WAITING);
        let (dropped, left) = mpsc::unbounded_channel();
        let door = Arc::new(Mutex::new(Doorman::new(limits)));
        let opened = Instant::now();
        (Self { accounts, door, opened, asks, dropped }, Counter { asks: asked, dropped: left })
    }

    /// From now on these limits hold.
    pub fn configure(&self, limits: Limits) {
        self.door(|door| door.configure(limits));
    }

    /// Connections that are open now.
    pub fn connections(&self) -> u32 {
        self.door(|door| door.open())
    }

    fn clock(&self) -> Time {
        Time::default().after(self.opened.elapsed())
    }

    fn door<T>(&self, f: impl FnOnce(&mut Doorman) -> T) -> T {
        f(&mut self.door.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A connection from `peer` has come; it counts until the visit is dropped. Call it first of all, and close the
    /// connection where it is refused.
    ///
    /// # Errors
    /// [`Refusal::TooManyConnections`], [`Refusal::Throttled`].
    pub fn enter(&self, peer: Ipv4Addr) -> Result<Visit, Refusal> {
        let at = self.clock();
        self.door(|door| door.enter(at, peer))?;
        Ok(Visit { door: self.door.clone(), peer })
    }

    /// Lets `prove` look at the user's secret; returns the user and what `prove` made of it. `prove` compares in constant
    /// time ([`crate::broker::account::same`]) and gives `None` where it is not convinced. A user who does not exist, or may
    /// not prove himself in this way, takes the same time.
    ///
    /// # Errors
    /// [`Refusal::LoginFailed`]; [`Refusal::Throttled`] after too many of those.
    pub fn login<T>(
        &self,
        whence: impl Into<Whence>,
        user: &str,
        by: Mechanism,
        prove: impl FnOnce(&Secret) -> Option<T>,
    ) -> Result<(UserName, T), Refusal> {
        let (at, whence) = (self.clock(), whence.into());
        self.door(|door| door.may_try(at, whence, user))?;
        self.accounts.prove(user, by, prove).ok_or_else(|| {
            self.door(|door| door.failed(at, whence, user));
            let peer = whence.peer();
            tracing::info!(event = "login_failed", %peer, user = user.escape_debug().to_string());
            Refusal::LoginFailed
        })
    }

    /// Asks for a tunnel. When this returns `Ok` it is on disk and in the tables.
    ///
    /// # Errors
    /// Why not.
    pub async fn grant(&self, wish: Wish) -> Result<Held, Refusal> {
        self.grant_at(wish, None).await
    }

    /// The same, with exactly this address pair where the protocol says which.
    ///
    /// # Errors
    /// Why not.
    pub async fn grant_at(&self, wish: Wish, at: Option<PairPlace>) -> Result<Held, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.ask(Ask::Grant { wish, at, reply })?;
        answer.await.unwrap_or(Err(Refusal::Stopping))
    }

    /// Asks for a tunnel that may yet be rejected. Where others have to give way to it they stay until it is taken
    /// ([`Held::take`]); else it is on disk and in the tables when this returns.
    ///
    /// # Errors
    /// Why not.
    pub async fn offer(&self, wish: Wish) -> Result<Held, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.ask(Ask::Offer { wish, reply })?;
        answer.await.unwrap_or(Err(Refusal::Stopping))
    }

    /// Lets a lease last for `lasts` from now on; returns until when.
    ///
    /// # Errors
    /// [`Refusal::NoLease`] when it has ended.
    pub async fn renew(&self, lease: LeaseId, lasts: Duration) -> Result<Option<Time>, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.ask(Ask::Renew { lease, lasts, reply })?;
        answer.await.unwrap_or(Err(Refusal::Stopping))
    }

    /// Ends a lease; returns when its route is gone.
    pub async fn end(&self, lease: LeaseId, why: End) {
        let (reply, answer) = oneshot::channel();
        // The way of the dropped is never full: an end is never refused.
        match self.ask(Ask::End { lease, why, reply }) {
            Ok(()) => {
                let _or_the_office_has_closed = answer.await;
            }
            Err(_) => drop(self.dropped.send((lease, why))),
        }
    }

    /// What a user has by this protocol, oldest first; nothing where the office has closed.
    pub async fn find(&self, user: UserName, protocol: Protocol) -> Vec<Lease> {
        let (reply, answer) = oneshot::channel();
        match self.ask(Ask::Find { user, protocol, reply }) {
            Ok(()) => answer.await.unwrap_or_default(),
            Err(_) => Vec::new(),
        }
    }

    fn ask(&self, ask: Ask) -> Result<(), Refusal> {
        self.asks.try_send(ask).map_err(|why| match why {
            mpsc::error::TrySendError::Full(_) => Refusal::Busy,
            mpsc::error::TrySendError::Closed(_) => Refusal::Stopping,
        })
    }

    /// What the holder of a granted lease gets, and the office's end of it.
    pub(super) fn hold(&self, grant: Grant) -> (Held, oneshot::Sender<End>) {
        let (end, ended) = oneshot::channel();
        let lasts = grant.expires.is_some();
        (Held { grant, ended, desk: self.clone(), lasts, over: false, stands: Stands::Lease }, end)
    }

    /// What the holder of an offer gets that is not a lease of its own.
    pub(super) fn promise(&self, grant: Grant, stands: Stands) -> Held {
        let (_nobody, ended) = oneshot::channel();
        Held { grant, ended, desk: self.clone(), lasts: true, over: true, stands }
    }
}

/// A connection that is counted.
#[derive(Debug)]
pub struct Visit {
    door: Arc<Mutex<Doorman>>,
    peer: Ipv4Addr,
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.door.lock().unwrap_or_else(PoisonError::into_inner).leave(self.peer);
    }
}

/// What is behind what a session holds.
#[derive(Debug)]
pub(super) enum Stands {
    /// A lease.
    Lease,
    /// An offer: there will be a lease when it is taken.
    Offer(Box<Wish>),
    /// A lease that was there before, and that this session has no right to end.
    Before,
}

/// A lease in the hands of the session that asked for it. Dropped, it ends a lease that lasts as long as its connection,
/// and lets go of one that lasts longer.
#[derive(Debug)]
pub struct Held {
    /// What was granted.
    pub grant: Grant,
    ended: oneshot::Receiver<End>,
    desk: Desk,
    lasts: bool,
    over: bool,
    stands: Stands,
}

impl Held {
    /// Whether [`Self::take`] changes anything.
    pub fn is_offer(&self) -> bool {
        matches!(self.stands, Stands::Offer(_))
    }

    /// The client accepts it. What was only offered is on disk and in the tables when this returns, and whoever gives way to
    /// it has gone.
    ///
    /// # Errors
    /// Why it cannot be had any more.
    pub async fn take(mut self) -> Result<Self, Refusal> {
        let wish = match std::mem::replace(&mut self.stands, Stands::Lease) {
            Stands::Offer(wish) => wish,
            other @ (Stands::Lease | Stands::Before) => {
                self.stands = other;
                return Ok(self);
            }
        };
        let (reply, answer) = oneshot::channel();
        let offered = Box::new(self.grant.clone());
        self.desk.ask(Ask::Take { wish, offered, reply })?;
        answer.await.unwrap_or(Err(Refusal::Stopping))
    }

    /// Waits until somebody else ends the lease. Can be dropped and called again.
    pub async fn ended(&mut self) -> End {
        if self.over {
            return std::future::pending().await;
        }
        // The office closes when the router stops.
        let why = (&mut self.ended).await.unwrap_or(End::Withdrawn);
        self.over = true;
        why
    }

    /// The client gives it back; returns when its route is gone.
    pub async fn release(self) {
        self.finish(End::Released).await;
    }

    /// Ends it for this reason; returns when its route is gone.
    pub async fn finish(mut self, why: End) {
        let (desk, lease) = (self.desk.clone(), self.grant.lease);
        if !std::mem::replace(&mut self.over, true) {
            desk.end(lease, why).await;
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.over && !self.lasts {
            let _or_the_office_has_closed = self.desk.dropped.send((self.grant.lease, End::Disconnected));
        }
    }
}

/// The calendar's time.
pub fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time::default().after(since)
}
