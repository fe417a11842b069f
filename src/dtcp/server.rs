//! The DTCP server: sockets and timers around `session`, and the desk where tunnels are asked for.
//!
//! One small task a connection. A silent one holds no buffer: octets are read into the stack of whoever reads them, and
//! a line that is not complete is all that stays. [`Hall`] is the server without a listening socket: connections are
//! whatever its caller brings. Knows nothing of tables and files; who is pinned to which interface it is told.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::ready;
use std::time::Duration;

use sixway_dataplane::update::{Outer, Rejected, UdpLocal, UdpRemote};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep_until, timeout};

use super::claims::{Claims, Number, Port, Way};
use super::codec::{Challenge, Kind, Net};
use super::interfaces::{Family, Interfaces, LAST_PAIR, NoNumber, number};
use super::session::{Claim, Denied, Given, Output, Session, Terms, Want};
use crate::broker::{End, Keep, Mechanism, NetworkWish, PairPlace, Protocol, Refusal, UserName, Wants, Wish};
use crate::config::Dtcp;
use crate::entrance;
use crate::office::{Desk, Held, Pins, Visit};

/// Octets that are read at once.
const READ: usize = 512;
/// A client that takes no octet for so long is gone.
const WRITE_TIME: Duration = Duration::from_secs(10);
/// How long after the last word what still comes is read. Where there was a tunnel, longer than a KAME client sleeps: it
/// writes once more, and if that fails it dies with its addresses and routes in place.
const DRAIN: Duration = Duration::from_secs(90);
/// The same where there was none.
const SHORT_DRAIN: Duration = Duration::from_secs(5);
/// Octets that are read after the last word.
const DRAINED: usize = 64 * 1024;
/// Other numbers and ports that are tried where somebody else has the one that looked free.
const TRIES: usize = 64;

/// What has happened, counted.
#[derive(Debug, Default)]
pub struct Counts {
    accepted: AtomicU64,
    refused: AtomicU64,
    entrance: entrance::Counts,
    open: AtomicU64,
    granted: AtomicU64,
    denied: AtomicU64,
    login_failed: AtomicU64,
    timed_out: AtomicU64,
    taken_over: AtomicU64,
}

impl Counts {
    /// All of them by name.
    pub fn all(&self) -> BTreeMap<String, u64> {
        let Self {
            accepted,
            refused,
            entrance: entrance::Counts { accept_failed, out_of_files },
            open,
            granted,
            denied,
            login_failed,
            timed_out,
            taken_over,
        } = self;
        let all = [
            ("accepted", accepted),
            ("refused", refused),
            ("accept_failed", accept_failed),
            ("out_of_files", out_of_files),
            ("open", open),
            ("granted", granted),
            ("denied", denied),
            ("login_failed", login_failed),
            ("timed_out", timed_out),
            ("taken_over", taken_over),
        ];
        all.into_iter().map(|(name, n)| (name.to_owned(), n.load(Ordering::Relaxed))).collect()
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// The running server; dropped, it takes no more connections. Those that are open end with the router.
#[derive(Debug)]
pub struct Server {
    hall: Hall,
    accepting: tokio::task::JoinHandle<()>,
    at: SocketAddr,
}

/// The server without a listening socket.
#[derive(Clone, Debug)]
pub struct Hall(Arc<House>);

/// What all sessions share.
#[derive(Debug)]
struct House {
    desk: Desk,
    config: Dtcp,
    claims: Claims,
    pins: Mutex<Pins>,
    most: AtomicU32,
    counts: Counts,
    started: Instant,
}

impl Server {
    /// Listens, and answers from now on. `most` is how many tunnels an account may have.
    ///
    /// # Errors
    /// That it cannot listen.
    pub fn start(config: &Dtcp, desk: Desk, most: u32) -> io::Result<Self> {
        let listener = entrance::listen(config.listen)?;
        let at = listener.local_addr()?;
        let hall = Hall::new(config, desk, most);
        let accepting = tokio::spawn(accept(listener, hall.clone()));
        Ok(Self { hall, accepting, at })
    }

    /// Where it listens.
    pub fn at(&self) -> SocketAddr {
        self.at
    }

    /// Where sessions are.
    pub fn hall(&self) -> &Hall {
        &self.hall
    }
}

impl Hall {
    /// Nobody is in it. `most` is how many tunnels an account may have.
    pub fn new(config: &Dtcp, desk: Desk, most: u32) -> Self {
        let interfaces = Interfaces::new(config.interfaces, &config.names, &config.udp_names, config.keep);
        Self(Arc::new(House {
            desk,
            config: config.clone(),
            claims: Claims::new(interfaces, config.udp_port),
            pins: Mutex::default(),
            most: AtomicU32::new(most),
            counts: Counts::default(),
            started: Instant::now(),
        }))
    }

    /// A connection from `peer` has come to our address `local`. It is served in a task of its own, or dropped where the
    /// limits are against it; says whether it is served.
    pub fn admit<S>(&self, stream: S, peer: Ipv4Addr, local: Ipv4Addr) -> bool
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let house = &self.0;
        match house.desk.enter(peer) {
            Ok(visit) => {
                count(&house.counts.accepted);
                tokio::spawn(Guest { house: house.clone(), stream, peer, local }.stay(visit));
                true
            }
            Err(why) => {
                count(&house.counts.refused);
                tracing::debug!(event = "refused", why = why.to_string());
                false
            }
        }
    }

    /// From now on these users are pinned to these interfaces.
    pub fn pin(&self, pins: Pins) {
        self.0.claims.pin(pins.values().map(String::as_str));
        *self.0.pins.lock().unwrap_or_else(PoisonError::into_inner) = pins;
    }

    /// From now on an account may have so many tunnels.
    pub fn limit(&self, most: u32) {
        self.0.most.store(most, Ordering::Relaxed);
    }

    /// What has happened.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let mut counts = self.0.counts.all();
        counts.insert("interfaces".to_owned(), self.0.claims.in_use() as u64);
        counts
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, hall: Hall) {
    let take = |stream, (peer, local): entrance::Ends| {
        hall.admit(stream, *peer.ip(), *local.ip());
    };
    entrance::accept(listener, "DTCP", &hall.0.counts.entrance, take).await;
}

/// One connection.
#[derive(Debug)]
struct Guest<S> {
    house: Arc<House>,
    stream: S,
    peer: Ipv4Addr,
    local: Ipv4Addr,
}

/// A tunnel in a guest's hands.
#[derive(Debug)]
struct Tunnel {
    held: Held,
    number: Number,
    _port: Option<Port>,
}

/// What a connection waits for.
enum Event {
    Read(io::Result<Vec<u8>>),
    Ended(End),
    Due,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Guest<S> {
    async fn stay(mut self, _visit: Visit) {
        let house = self.house.clone();
        count(&house.counts.open);
        let mut session = Session::new(self.terms(), self.now());
        let mut tunnel = None;
        let mut user = None;
        loop {
            let outputs = session.poll_output();
            for output in outputs {
                match output {
                    Output::Send(octets) => {
                        let sent = timeout(WRITE_TIME, self.stream.write_all(&octets)).await;
                        if !matches!(sent, Ok(Ok(()))) {
                            session.handle_end();
                        }
                    }
                    Output::Prove(claim) => {
                        let proof = self.prove(&claim, &mut user);
                        session.handle_proof(proof, self.now());
                    }
                    Output::Grant(want) => {
                        let grant = house.grant((self.peer, self.local), &want, user.take()).await;
                        let (grant, got) =
                            grant.map_or_else(|why| (Err(why), None), |(g, t)| (Ok(g), Some(t)));
                        tunnel = got;
                        session.handle_grant(grant, self.now());
                    }
                    Output::Release => {
                        if let Some(Tunnel { held, number, _port }) = tunnel.take() {
                            held.release().await;
                            drop(number);
                        }
                    }
                    Output::Finish => {
                        let patience = if session.had_tunnel() { DRAIN } else { SHORT_DRAIN };
                        let _or_too_slow = timeout(patience, self.drain()).await;
                        house.counts.open.fetch_sub(1, Ordering::Relaxed);
                        return;
                    }
                }
            }
            if session.has_output() {
                continue;
            }
            match self.event(&session, &mut tunnel).await {
                Event::Read(Ok(octets)) if !octets.is_empty() => session.handle_input(&octets, self.now()),
                Event::Read(_) => session.handle_end(),
                Event::Ended(why) => {
                    count(&house.counts.taken_over);
                    tracing::debug!(event = "session_ended", peer = %self.peer, why = why.name());
                    tunnel = None;
                    session.handle_loss();
                }
                Event::Due => {
                    count(&house.counts.timed_out);
                    session.handle_timeout(self.now());
                }
            }
        }
    }

    fn now(&self) -> Duration {
        self.house.started.elapsed()
    }

    fn terms(&self) -> Terms {
        let config = &self.house.config;
        Terms {
            challenge: Challenge::new(rand::random()),
            client: self.peer,
            server: config.public_address.unwrap_or(self.local),
            host_prefix: config.prefix.as_ref().map(|prefix| prefix.text.clone()),
            udp: config.udp,
            login_time: Duration::from_secs(config.login_timeout.into()),
            tunnel_time: Duration::from_secs(config.tunnel_timeout.into()),
        }
    }

    async fn event(&mut self, session: &Session, tunnel: &mut Option<Tunnel>) -> Event {
        let due = session.poll_timeout().map(|at| self.house.started + at);
        tokio::select! {
            read = read(&mut self.stream) => Event::Read(read),
            why = ended(tunnel) => Event::Ended(why),
            () = until(due) => Event::Due,
        }
    }

    fn prove(&self, claim: &Claim, user: &mut Option<UserName>) -> Result<bool, String> {
        let house = &self.house;
        match house.desk.login(self.peer, &claim.user, Mechanism::Apop, |secret| {
            claim.is_by(secret.expose()).then_some(())
        }) {
            Ok((name, ())) => {
                *user = Some(name);
                Ok(true)
            }
            Err(Refusal::Throttled { wait, .. }) => {
                Err(format!("too many attempts, try again in {} s", wait.as_secs().max(1)))
            }
            Err(_) => {
                count(&house.counts.login_failed);
                Ok(false)
            }
        }
    }

    /// No more is said; what the client still says is read, so that it meets an end and no reset.
    async fn drain(&mut self) {
        let _or_gone = self.stream.shutdown().await;
        let mut left = DRAINED;
        while left > 0 {
            match read(&mut self.stream).await {
                Ok(octets) if !octets.is_empty() => left = left.saturating_sub(octets.len()),
                Ok(_) | Err(_) => return,
            }
        }
    }
}

/// What has come, nothing at the end. Whoever waits holds no buffer, and nothing is lost when it is not waited for.
async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    std::future::poll_fn(|context| {
        let mut room = [0; READ];
        let mut octets = ReadBuf::new(&mut room);
        ready!(Pin::new(&mut *stream).poll_read(context, &mut octets))?;
        Ok(octets.filled().to_vec()).into()
    })
    .await
}

async fn ended(tunnel: &mut Option<Tunnel>) -> End {
    match tunnel {
        Some(tunnel) => tunnel.held.ended().await,
        None => std::future::pending().await,
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

impl House {
    async fn grant(
        &self,
        ends: (Ipv4Addr, Ipv4Addr),
        want: &Want,
        user: Option<UserName>,
    ) -> Result<(Given, Tunnel), Denied> {
        let granted = match user {
            Some(user) => self.find(ends, want, &user).await,
            None => Err(Denied::Login),
        };
        count(if granted.is_ok() { &self.counts.granted } else { &self.counts.denied });
        granted
    }

    /// Gets a tunnel for a proven user between `ends`, the client's and ours. Somebody else may have the number or the port
    /// that looks free here: then the next.
    async fn find(
        &self,
        ends: (Ipv4Addr, Ipv4Addr),
        want: &Want,
        user: &UserName,
    ) -> Result<(Given, Tunnel), Denied> {
        let pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // A name without a number matters to those only whose addresses follow from it.
        let pin = pins.get(user.as_str()).map(String::as_str);
        let pin = pin.filter(|name| want.kind == Kind::Host || number(name).is_some());
        let family = if want.udp.is_some() { Family::Ng } else { Family::Gif };
        // Those that did not do are held until one does, or they would be taken again.
        let mut spoilt = Vec::new();
        for _ in 0..TRIES {
            let number = self.number(user, family, pin).await?;
            if want.kind == Kind::Host && number.n > LAST_PAIR {
                return Err(Denied::SoldOut);
            }
            let port = match want.udp {
                Some(_) => Some(self.claims.port().ok_or(Denied::SoldOut)?),
                None => None,
            };
            let pool = self.config.prefix.as_ref().map(|prefix| prefix.pool);
            let at = pool.map(|pool| PairPlace { pool, number: number.n });
            match self.desk.grant_at(self.wish(ends, want, user, port.as_ref()), at).await {
                Ok(held) => return self.hand_over(want, held, number, port),
                Err(Refusal::Taken(_)) if pin.is_none() && want.kind == Kind::Host => {
                    spoilt.push((number, port))
                }
                Err(Refusal::Table(Rejected::Listen { .. })) if port.is_some() => spoilt.push((number, port)),
                Err(why) => return Err(denied(&why, user)),
            }
        }
        Err(Denied::SoldOut)
    }

    async fn number(&self, user: &UserName, family: Family, pin: Option<&str>) -> Result<Number, Denied> {
        let most = self.most.load(Ordering::Relaxed);
        let way = self.claims.number(user, family, pin, most).map_err(|why| match why {
            NoNumber::SoldOut => Denied::SoldOut,
            NoNumber::Unnumbered => Denied::InterfaceName,
        })?;
        match way {
            Way::Free(number) => Ok(number),
            Way::After(number, before) => {
                for lease in before {
                    self.desk.end(lease, End::Superseded).await;
                }
                Ok(number)
            }
        }
    }

    fn wish(
        &self,
        (peer, local): (Ipv4Addr, Ipv4Addr),
        want: &Want,
        user: &UserName,
        port: Option<&Port>,
    ) -> Wish {
        let wants = match want.kind {
            // What an administrator routes by hand is what is set aside for the account; the client is not told.
            Kind::TunnelOnly => Wants { pair: false, network: Some(NetworkWish::Own) },
            Kind::Host => Wants { pair: true, network: None },
            Kind::Network => Wants { pair: false, network: Some(NetworkWish::Any) },
        };
        let outer = match port {
            None => Outer::Proto41 { local: Some(local), remote: peer },
            Some(Port { port, .. }) => {
                // Only the address has proven itself, by the connection; the port floats as the client's NAT likes.
                let theirs = want.udp.and_then(|udp| udp.port).and_then(NonZeroU16::new);
                let remote = UdpRemote::AnyPort { addr: peer, port: theirs };
                Outer::Udp { local: UdpLocal { addr: Some(local), port: *port }, remote }
            }
        };
        let (protocol, keep, mtu) = (Protocol::Dtcp, Keep::WithConnection, self.config.mtu);
        Wish { user: user.clone(), protocol, outer, mtu, wants, keep }
    }

    fn hand_over(
        &self,
        want: &Want,
        held: Held,
        mut number: Number,
        port: Option<Port>,
    ) -> Result<(Given, Tunnel), Denied> {
        let net = |prefix: &sixway_dataplane::update::Ipv6Prefix| Net {
            addr: prefix.addr(),
            len: prefix.prefix_len(),
        };
        let given = Given {
            number: number.n,
            networks: held.grant.networks.iter().map(net).collect(),
            udp_port: port.as_ref().map(|port| port.port),
        };
        let family = if port.is_some() { Family::Ng } else { Family::Gif };
        tracing::info!(
            event = "dtcp_tunnel", user = %held.grant.user, kind = want.kind.name(),
            interface = format!("{}{}", family.name(), number.n), lease = held.grant.lease.0,
        );
        number.held_by(held.grant.user.clone(), held.grant.lease);
        Ok((given, Tunnel { held, number, _port: port }))
    }
}

/// A refusal in words for the client: the old ones where there are some, and nothing that is not the client's business.
fn denied(why: &Refusal, user: &UserName) -> Denied {
    match why {
        Refusal::LoginFailed => Denied::Login,
        Refusal::Exhausted(_) | Refusal::Taken(_) => Denied::SoldOut,
        Refusal::NothingToGive(_) => Denied::Other(format!("no prefix for user {user}")),
        Refusal::TooManyTunnels { most, .. } => {
            Denied::Other(format!("your address has {most} tunnels already, the most there may be"))
        }
        Refusal::Busy => Denied::Other("too many requests, try again".to_owned()),
        Refusal::Stopping => Denied::Other("the server is stopping".to_owned()),
        Refusal::Throttled { .. }
        | Refusal::TooManyConnections { .. }
        | Refusal::NoLease(_)
        | Refusal::TooManyAnonymous { .. }
        | Refusal::EndpointTaken
        | Refusal::Table(_)
        | Refusal::Store => {
            Denied::Other("internal error: the tunnel could not be made, try again".to_owned())
        }
    }
}
