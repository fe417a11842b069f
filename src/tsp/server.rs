//! The TSP server: sockets and timers around `session` and `flows`, and the desk where tunnels are asked for.
//!
//! Over TCP one small task a connection; over UDP one task for all sessions, which is `post`. Knows nothing of tables and
//! files.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use sixway_dataplane::io::sys::unacknowledged;
use sixway_dataplane::start::Injector;
use sixway_dataplane::update::{Outer, Rejected, UdpLocal, UdpRemote};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::codec::{Code, Mode};
use super::flows::Ends;
use super::life::Life;
use super::post::Post;
use super::session::{Output, Session};
use super::terms::{Found, Given, Offer, Terms, Transport};
use super::want::{Network, Want};
use crate::auth::{Claim, Mechanism};
use crate::broker::{
    End, Fate, Grant, Hearing, Keep, Lease, NetworkWish, Protocol, Refusal, Told, UserName, Wants, Wish,
    peer as client_of,
};
use crate::config::Tsp;
use crate::entrance;
use crate::office::{Desk, Held, Visit, Whence};

/// Octets that are read at once.
const READ: usize = 1024;
/// A client that takes no octet for so long is gone.
const WRITE_TIME: Duration = Duration::from_secs(10);
/// Between the two last lines of a login, from when the client has the first: gogoc reads both at once if they come
/// together, and waits for ever. 50 ms were enough in every test with the real client.
const PAUSE: Duration = Duration::from_millis(100);
/// How long the client may take to have it: some repetitions of a lost segment.
const MOST_PAUSE: Duration = Duration::from_secs(10);
/// How often to look whether it has.
const LOOK: Duration = Duration::from_millis(10);
/// Proofs that are worked out at the same time, of those that take long.
const MOST_PROVERS: usize = 2;
/// How long after the last word what still comes is read, and how much of it.
const DRAIN: Duration = Duration::from_secs(5);
const DRAINED: usize = 64 * 1024;
/// Datagrams that wait to be dealt with.
const MOST_WAITING: usize = 4096;

/// What has happened, counted.
#[derive(Debug, Default)]
pub struct Counts {
    accepted: AtomicU64,
    refused: AtomicU64,
    entrance: entrance::Counts,
    open: AtomicU64,
    timed_out: AtomicU64,
    granted: AtomicU64,
    denied: AtomicU64,
    login_failed: AtomicU64,
    pub(super) taken: AtomicU64,
    given_back: AtomicU64,
    silent: AtomicU64,
    pub(super) udp_sessions: AtomicU64,
    pub(super) udp_messages: AtomicU64,
    pub(super) udp_repeated: AtomicU64,
    pub(super) udp_echoes: AtomicU64,
    pub(super) udp_strange: AtomicU64,
    pub(super) udp_evicted: AtomicU64,
    pub(super) udp_revived: AtomicU64,
    pub(super) udp_throttled: AtomicU64,
    pub(super) udp_timed_out: AtomicU64,
    udp_queue_full: AtomicU64,
    pub(super) udp_unsent: AtomicU64,
}

impl Counts {
    /// All of them by name.
    pub fn all(&self) -> BTreeMap<String, u64> {
        let all = [
            ("accepted", &self.accepted),
            ("refused", &self.refused),
            ("accept_failed", &self.entrance.accept_failed),
            ("out_of_files", &self.entrance.out_of_files),
            ("open", &self.open),
            ("timed_out", &self.timed_out),
            ("granted", &self.granted),
            ("denied", &self.denied),
            ("login_failed", &self.login_failed),
            ("taken", &self.taken),
            ("given_back", &self.given_back),
            ("silent", &self.silent),
            ("udp_sessions", &self.udp_sessions),
            ("udp_messages", &self.udp_messages),
            ("udp_repeated", &self.udp_repeated),
            ("udp_echoes", &self.udp_echoes),
            ("udp_strange", &self.udp_strange),
            ("udp_evicted", &self.udp_evicted),
            ("udp_revived", &self.udp_revived),
            ("udp_throttled", &self.udp_throttled),
            ("udp_timed_out", &self.udp_timed_out),
            ("udp_queue_full", &self.udp_queue_full),
            ("udp_unsent", &self.udp_unsent),
        ];
        all.into_iter().map(|(name, n)| (name.to_owned(), n.load(Ordering::Relaxed))).collect()
    }
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// The running server; dropped, it takes no more connections and answers no more datagrams. Tunnels stay.
#[derive(Debug)]
pub struct Server {
    house: Arc<House>,
    letters: mpsc::Sender<(Ends, Vec<u8>)>,
    tasks: [tokio::task::JoinHandle<()>; 2],
    at: SocketAddr,
}

/// What all sessions share.
#[derive(Debug)]
pub(super) struct House {
    desk: Desk,
    rules: RwLock<Arc<Rules>>,
    salt: [u8; 32],
    has_proto41: bool,
    listen: SocketAddrV4,
    /// Proofs that take long are worked out beside everything else, few at a time.
    provers: Semaphore,
    draining: AtomicBool,
    /// What has happened.
    pub(super) counts: Counts,
    started: Instant,
}

/// What the operator may change while the server runs.
#[derive(Debug)]
pub(super) struct Rules {
    /// What is offered.
    pub(super) offer: Arc<Offer>,
    mtu: u16,
    life: Life,
}

impl Rules {
    fn new(config: &Tsp, salt: [u8; 32], has_proto41: bool) -> Self {
        let mut offer = config.offer(salt);
        offer.tunnels.retain(|mode| has_proto41 || *mode != Mode::V6V4);
        Self { offer: Arc::new(offer), mtu: config.mtu, life: Life::new(config.lasts()) }
    }
}

impl Server {
    /// Listens, and answers from now on. `injector` sends answers over UDP; `salt` is random.
    ///
    /// # Errors
    /// That it cannot listen.
    pub fn start(
        config: &Tsp,
        desk: Desk,
        injector: Injector,
        has_proto41: bool,
        salt: [u8; 32],
    ) -> anyhow::Result<Self> {
        let listener =
            entrance::listen(config.listen).map_err(|why| entrance::refused("TSP", config.listen, &why))?;
        let at = listener.local_addr()?;
        let house = Arc::new(House {
            desk,
            rules: RwLock::new(Arc::new(Rules::new(config, salt, has_proto41))),
            salt,
            has_proto41,
            listen: config.listen,
            provers: Semaphore::new(MOST_PROVERS),
            draining: AtomicBool::new(false),
            counts: Counts::default(),
            started: Instant::now(),
        });
        let (letters, came) = mpsc::channel(MOST_WAITING);
        let accepting = tokio::spawn(accept(listener, house.clone()));
        let answering = tokio::spawn(Post::new(house.clone(), injector).serve(came));
        Ok(Self { house, letters, tasks: [accepting, answering], at })
    }

    /// Where it listens.
    pub fn at(&self) -> SocketAddr {
        self.at
    }

    /// From now on this holds, for new sessions and what tunnels last; it listens where it did.
    pub fn configure(&self, config: &Tsp) {
        let House { rules, salt, has_proto41, .. } = &*self.house;
        let new = Arc::new(Rules::new(config, *salt, *has_proto41));
        *rules.write().unwrap_or_else(PoisonError::into_inner) = new;
    }

    /// Whether datagrams that come to this endpoint of ours are the server's, unless they are IPv6.
    pub fn is_at(&self, local: SocketAddrV4) -> bool {
        let listen = self.house.listen;
        listen.port() == local.port() && (listen.ip().is_unspecified() || listen.ip() == local.ip())
    }

    /// A datagram has come that is not IPv6.
    pub fn hear(&self, remote: SocketAddrV4, local: SocketAddrV4, octets: &[u8]) {
        if self.letters.try_send((Ends { remote, local }, octets.to_vec())).is_err() {
            count(&self.house.counts.udp_queue_full);
        }
    }

    /// Whether clients are sent to other brokers from now on, or told to come later. Tunnels stay.
    pub fn drain(&self, draining: bool) {
        self.house.draining.store(draining, Ordering::Relaxed);
    }

    /// Whether it does.
    pub fn is_draining(&self) -> bool {
        self.house.is_draining()
    }

    /// How often to call [`Self::look`] for each tunnel.
    pub fn round(&self) -> Duration {
        self.house.rules().life.round()
    }

    /// What becomes of a tunnel whose client was ever `heard` since the start, and has been silent for so long, at most as long
    /// as the tunnel is there.
    pub fn look(&self, lease: &Lease, heard: bool, silent: Duration, left: Duration) -> (Fate, Hearing) {
        let seen = self.house.rules().life.look(lease, heard, silent, left);
        if seen.0 == Fate::End {
            count(&self.house.counts.silent);
        }
        seen
    }

    /// What has happened.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        self.house.counts.all()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

async fn accept(listener: TcpListener, house: Arc<House>) {
    let take = |stream, ends| receive(stream, ends, &house);
    entrance::accept(listener, "TSP", &house.counts.entrance, take).await;
}

fn receive(stream: TcpStream, (remote, local): entrance::Ends, house: &Arc<House>) {
    // A line of its own is a segment of its own.
    let _or_slower = stream.set_nodelay(true);
    match house.desk.enter(*remote.ip()) {
        Ok(visit) => {
            count(&house.counts.accepted);
            let ends = Ends { remote, local };
            tokio::spawn(Guest { house: house.clone(), stream, ends }.stay(visit));
        }
        Err(why) => {
            count(&house.counts.refused);
            tracing::debug!(event = "refused", why = why.to_string());
        }
    }
}

// ---- what both transports ask ----

impl House {
    pub(super) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// What holds now.
    pub(super) fn rules(&self) -> Arc<Rules> {
        self.rules.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether `claim` is true. One by PLAIN over UDP may come from anywhere: such failures shut nobody out but others like
    /// it.
    pub(super) fn prove(
        &self,
        peer: Ipv4Addr,
        over: Transport,
        claim: &Claim,
    ) -> Option<(UserName, Vec<u8>)> {
        let how = claim.mechanism();
        let is_seen = over == Transport::Tcp || how != Mechanism::Plain;
        let whence = if is_seen { Whence::Seen(peer) } else { Whence::Said(peer) };
        let proven = self.desk.login(whence, claim.user(), how, |secret| claim.prove(secret.expose()));
        if proven.is_err() {
            count(&self.counts.login_failed);
        }
        proven.ok()
    }

    /// The same for a claim that takes long to look at ([`takes_long`]): in another thread, while everybody else goes on.
    pub(super) async fn prove_aside(
        self: Arc<Self>,
        peer: Ipv4Addr,
        over: Transport,
        claim: Claim,
    ) -> Option<(UserName, Vec<u8>)> {
        let house = self.clone();
        let _turn = self.provers.acquire().await.ok()?;
        let looked = tokio::task::spawn_blocking(move || house.prove(peer, over, &claim));
        looked.await.ok().flatten()
    }

    pub(super) async fn grant(&self, want: &Want, ends: Ends) -> Result<(Given, Held), Code> {
        let wish = self.wish(want, ends);
        // In the draft nobody accepts: what is given is given.
        let held = if want.firm { self.desk.grant(wish).await } else { self.desk.offer(wish).await };
        let granted = match held {
            Ok(held) => match given(&held.grant) {
                Some(given) => Ok((given, held)),
                None => Err(Code::ServerError),
            },
            Err(why) => Err(code(&why)),
        };
        count(if granted.is_ok() { &self.counts.granted } else { &self.counts.denied });
        granted
    }

    /// What was offered is the client's from now on.
    pub(super) async fn take(&self, held: Held) -> Result<Held, Code> {
        held.take().await.map_err(|why| code(&why))
    }

    fn wish(&self, want: &Want, ends: Ends) -> Wish {
        let network = match want.network {
            Network::None => None,
            Network::Any => Some(NetworkWish::Any),
            Network::Length(len) => Some(NetworkWish::Length(len)),
        };
        let addr = Some(*ends.local.ip());
        let outer = if want.mode == Mode::V6UdpV4 {
            let remote = UdpRemote::Learned(Some(ends.remote));
            Outer::Udp { local: UdpLocal { addr, port: ends.local.port() }, remote }
        } else {
            Outer::Proto41 { local: addr, remote: want.end }
        };
        Wish {
            user: want.user.clone().unwrap_or_else(|| UserName::anonymous(*ends.remote.ip())),
            protocol: Protocol::Tsp,
            outer,
            mtu: self.rules().mtu,
            wants: Wants { pair: true, network },
            keep: Keep::WhileHeard {
                lasts: self.rules().life.lasts(),
                told: Told { keepalive: want.keepalive, claimed: Some(want.claimed) },
                proven: want.end == *ends.remote.ip(),
            },
        }
    }

    /// The tunnel that a user at this address means: the newest of those from there, else the newest of all.
    async fn own(&self, user: UserName, from: Ipv4Addr) -> Option<Lease> {
        let mut all = self.desk.find(user, Protocol::Tsp).await;
        let here = all.iter().rposition(|lease| client_of(&lease.grant.outer) == Some(from));
        let at = here.or(all.len().checked_sub(1))?;
        Some(all.swap_remove(at))
    }

    pub(super) async fn find(&self, user: UserName, from: Ipv4Addr) -> Option<Found> {
        let Lease { grant, told, .. } = self.own(user, from).await?;
        let mode = match grant.outer {
            Outer::Proto41 { .. } => Mode::V6V4,
            Outer::Udp { .. } => Mode::V6UdpV4,
        };
        // As the offer had it: the client knows itself by that address.
        let end = told.claimed.or(client_of(&grant.outer))?;
        let keepalive = told.keepalive;
        Some(Found { mode, end, given: given(&grant)?, keepalive })
    }

    pub(super) async fn delete(&self, user: UserName, from: Ipv4Addr) {
        if let Some(lease) = self.own(user, from).await {
            count(&self.counts.given_back);
            self.desk.end(lease.grant.lease, End::Released).await;
        }
    }

    pub(super) async fn release(&self, held: Held) {
        count(&self.counts.given_back);
        held.release().await;
    }
}

/// Whether a claim is not looked at in microseconds: SCRAM hashes the secret thousands of times.
pub(super) fn takes_long(claim: &Claim) -> bool {
    claim.mechanism() == Mechanism::ScramSha256
}

fn given(grant: &Grant) -> Option<Given> {
    let pair = grant.pair?;
    let network = grant.networks.first().map(|network| (network.addr(), network.prefix_len()));
    Some(Given { server: pair.server, client: pair.client, network })
}

/// A refusal as the client is told.
fn code(why: &Refusal) -> Code {
    match why {
        Refusal::LoginFailed => Code::AuthenticationFailed,
        Refusal::Exhausted(_)
        | Refusal::Taken(_)
        | Refusal::TooManyTunnels { .. }
        | Refusal::TooManyAnonymous { .. } => Code::NoMoreTunnels,
        Refusal::EndpointTaken | Refusal::Table(Rejected::OuterTaken { .. }) => Code::Ipv4InUse,
        Refusal::NothingToGive(_) => Code::PrefixUnavailable,
        Refusal::Busy
        | Refusal::Stopping
        | Refusal::Throttled { .. }
        | Refusal::TooManyConnections { .. } => Code::Busy,
        Refusal::NoLease(_) | Refusal::Table(_) | Refusal::Store => Code::ServerError,
    }
}

// ---- TCP ----

/// One connection.
#[derive(Debug)]
struct Guest {
    house: Arc<House>,
    stream: TcpStream,
    ends: Ends,
}

/// What a connection waits for.
enum Event {
    Read(io::Result<()>),
    Ended(End),
    Due,
}

impl Guest {
    async fn stay(mut self, _visit: Visit) {
        let house = self.house.clone();
        count(&house.counts.open);
        let mut session = Session::new(self.terms(), house.now());
        let mut tunnel = None;
        while self.obey(&mut session, &mut tunnel).await {
            match self.event(&session, &mut tunnel).await {
                Event::Read(Ok(())) => self.read(&mut session),
                Event::Read(Err(_)) => session.handle_end(),
                Event::Ended(why) => {
                    tracing::debug!(event = "session_ended", peer = %self.ends.remote, why = why.name());
                    tunnel = None;
                    session.handle_end();
                }
                Event::Due => {
                    count(&house.counts.timed_out);
                    session.handle_timeout(house.now());
                }
            }
        }
        let _or_too_slow = timeout(DRAIN, self.drain()).await;
        house.counts.open.fetch_sub(1, Ordering::Relaxed);
    }

    fn terms(&self) -> Terms {
        Terms {
            transport: Transport::Tcp,
            peer: *self.ends.remote.ip(),
            local: *self.ends.local.ip(),
            random: rand::random(),
            offer: self.house.rules().offer.clone(),
        }
    }

    /// Does all that the session says; `false` when it is over.
    async fn obey(&mut self, session: &mut Session, tunnel: &mut Option<Held>) -> bool {
        let house = self.house.clone();
        while session.has_output() {
            for output in session.poll_output() {
                match output {
                    Output::Send(octets) => {
                        let sent = timeout(WRITE_TIME, self.stream.write_all(&octets)).await;
                        if !matches!(sent, Ok(Ok(()))) {
                            session.handle_end();
                        }
                    }
                    Output::Pause => self.pause().await,
                    Output::Prove(claim) => {
                        let (peer, over) = (*self.ends.remote.ip(), Transport::Tcp);
                        let proof = match takes_long(&claim) {
                            true => house.clone().prove_aside(peer, over, claim).await,
                            false => house.prove(peer, over, &claim),
                        };
                        session.handle_proof(proof, house.now());
                    }
                    Output::Grant(want) => {
                        let granted = house.grant(&want, self.ends).await;
                        let (given, held) =
                            granted.map_or_else(|code| (Err(code), None), |(g, held)| (Ok(g), Some(held)));
                        *tunnel = held;
                        session.handle_grant(given, house.now());
                    }
                    Output::Find(user) => {
                        let found = house.find(user, *self.ends.remote.ip()).await;
                        session.handle_found(found, house.now());
                    }
                    Output::Delete(user) => {
                        *tunnel = None;
                        house.delete(user, *self.ends.remote.ip()).await;
                        session.handle_deleted(house.now());
                    }
                    Output::Accepted => {
                        let taken = match tunnel.take() {
                            Some(held) => house.take(held).await,
                            None => Err(Code::ServerError),
                        };
                        let told = taken.as_ref().map_or_else(|code| Err(*code), |_| Ok(()));
                        *tunnel = taken.ok();
                        if told.is_ok() {
                            count(&house.counts.taken);
                        }
                        session.handle_taken(told, house.now());
                    }
                    Output::Release => {
                        if let Some(held) = tunnel.take() {
                            house.release(held).await;
                        }
                    }
                    Output::Finish => return false,
                }
            }
        }
        true
    }

    /// Until the client has what was said, and has had time to read it.
    async fn pause(&self) {
        let end = Instant::now() + MOST_PAUSE;
        while Instant::now() < end && unacknowledged(self.stream.as_fd()).is_ok_and(|octets| octets > 0) {
            sleep(LOOK).await;
        }
        sleep(PAUSE).await;
    }

    async fn event(&self, session: &Session, tunnel: &mut Option<Held>) -> Event {
        let due = session.poll_timeout().map(|at| self.house.started + at);
        tokio::select! {
            ready = self.stream.readable() => Event::Read(ready),
            why = ended(tunnel) => Event::Ended(why),
            () = until(due) => Event::Due,
        }
    }

    /// Gives the session what has come, through a buffer that lives no longer than this.
    fn read(&self, session: &mut Session) {
        let mut octets = [0; READ];
        session.set_draining(self.house.is_draining());
        match self.stream.try_read(&mut octets) {
            Ok(0) => session.handle_end(),
            Ok(len) => session.handle_input(&octets[..len], self.house.now()),
            Err(why) if why.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => session.handle_end(),
        }
    }

    /// No more is said; what the client still says is read, so that it meets an end and no reset.
    async fn drain(&mut self) {
        let _or_gone = self.stream.shutdown().await;
        let mut left = DRAINED;
        while left > 0 && self.stream.readable().await.is_ok() {
            match skip(&self.stream) {
                Ok(0) => return,
                Ok(len) => left = left.saturating_sub(len),
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    }
}

fn skip(stream: &TcpStream) -> io::Result<usize> {
    stream.try_read(&mut [0; READ])
}

async fn ended(tunnel: &mut Option<Held>) -> End {
    match tunnel {
        Some(held) => held.ended().await,
        None => std::future::pending().await,
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
