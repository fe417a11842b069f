//! `dhcp6s`: a DHCPv6 server on one link or several, by the configuration, files, flags and control port of WIDE's program.
//!
//! ```text
//!   dhcp6s.conf ─► plan ─► shelf ◄── session (RFC 8415) ◄── socket of a link ◄── clients and relays
//!                            │ changes
//!                            ├─► scribe, its own thread ─► ledger: on the disk        in this order, then the answers leave
//!                            └─► routes of delegated prefixes
//! ```
//!
//! One task owns everything: one shelf for all links of the process, so that nothing is given out twice. While one batch is
//! written down the next is collected, as long as more messages wait. Left out: temporary addresses.

pub mod backlog;
mod changes;
pub mod clock;
mod counts;
pub mod crc;
mod ear;
pub mod files;
mod following;
pub mod front;
pub mod glance;
pub mod here;
pub mod idle;
pub mod index;
mod keeping;
pub mod ledger;
mod letters;
pub mod mend;
pub mod plan;
mod port;
pub mod record;
pub mod routes;
pub mod scribe;
pub mod shelf;
pub mod shortage;
pub mod socket;
pub mod tidy;
pub mod vacancy;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use dhcproto::v6::MessageType;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use sixway_dataplane::update::Ipv6Prefix;
use tokio::sync::{mpsc, oneshot};
use zeroize::Zeroizing;

use self::backlog::Backlog;
pub use self::changes::only_one_says_dns;
use self::changes::put_dns;
use self::clock::Epoch;
pub use self::counts::{ABSENT, DAMAGED, LINK_COUNTS};
use self::files::Files;
use self::here::{now, uptime};
use self::ledger::Ledger;
use self::letters::{Letter, Letters};
use self::plan::Plan;
use self::port::Port;
use self::scribe::{Done, Scribe};
use self::shelf::Shelf;
use self::socket::{Arrived, Inbox, LinkSocket};
use crate::admin::leases::{Held, Sieve};
use crate::broker::BindKind;
use crate::compat::dhcp6sconf::{Duid, ServerConf};
use crate::dhcp6ctl::codec::{IaKind, Order};
use crate::dhcp6ctl::server::{Control, Ordered};
use crate::dhcp6ctl::session::Side;
use crate::dhcpv6::codec::{CLIENT_PORT, SERVER_PORT};
use crate::dhcpv6::session::Origin;
use crate::dhcpv6::telling::Evicted;
use crate::link::watch::{News, Watch};

/// Messages, about, that are taken in before what they have changed is written down, and another link has its turn: as many
/// as have come meanwhile cost the disk no more than one.
const TURN: usize = 1024;
/// Reconfigure messages that are sent together.
const BATCH: usize = 256;
/// How often at most leases are looked at.
const SHORT_LOOK: Duration = Duration::from_millis(50);
/// How often interfaces and routes are looked at, whatever is heard of them.
const LOOK: Duration = Duration::from_secs(30);

/// What a server is started with.
#[derive(Debug)]
pub struct Start {
    /// The interfaces, at least one.
    pub interfaces: Vec<String>,
    /// Whether those that are not there are waited for; else that is an error.
    pub waits: bool,
    /// The configuration's files, for reloads.
    pub files: Files,
    /// What it says.
    pub conf: ServerConf,
    /// Servers for names that the command line has given, in the place of the file's.
    pub dns: Vec<Ipv6Addr>,
    /// The file of the server's own DUID.
    pub duid: PathBuf,
    /// The file of leases.
    pub leases: PathBuf,
    /// Where to listen for commands, and the secret they are signed with; without, nowhere.
    pub control: Option<(std::net::SocketAddr, Zeroizing<Vec<u8>>)>,
}

impl Start {
    /// Says in the log which links nobody is given anything on.
    pub fn say_silent_links(&self) {
        for what in idle::silent(&self.conf, &self.interfaces, &self.files.file().display().to_string()) {
            tracing::warn!(event = "nothing_to_give", "{what}");
        }
    }
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    start: Start,
    duid: Duid,
    ports: Vec<Port>,
    /// Interfaces that were not there yet.
    absent: Vec<String>,
    /// Where lease queries of this host itself are heard; its letters are of the port behind the last.
    ear: Option<LinkSocket>,
    shelf: Shelf,
    scribe: Scribe,
    epoch: Epoch,
    /// Changes that are not on the disk yet.
    backlog: Backlog,
    letters: Letters,
    not_kept: u64,
    /// What that was when the disk began to fail.
    not_kept_before: u64,
    /// The link that is looked at first.
    turn: usize,
    closing: bool,
    unrouted: u64,
    looks: u64,
    began: Instant,
    watch: Watch,
    /// What others have come to have since the configuration was read, and is nobody's here.
    contested: BTreeSet<Ipv6Prefix>,
    /// When interfaces and routes are looked at next, and when at the earliest, whatever is heard of them.
    due: Instant,
    earliest: Instant,
    /// When anything was looked at last.
    looked: Instant,
    control: Option<Control>,
    orders: Option<mpsc::Receiver<Ordered>>,
}

/// What the loop waits for.
enum Event {
    /// On the link with this number.
    Message(usize),
    /// From this host itself.
    Query,
    /// There is room for answers on the link with this number, or behind them on this host itself.
    Room(usize),
    /// A page is on the disk, or is not.
    Written(Done),
    /// Nothing will be written any more.
    Broken,
    /// With somebody who waits until it has been carried out.
    Order(Order, oneshot::Sender<()>),
    Own(Own),
    News(News),
    Look,
}

/// What whoever runs a server tells it.
#[derive(Debug)]
pub enum Own {
    /// Read the configuration again, where it has nothing in common with what others give out; whoever waits is told why not.
    Reload(Elsewhere, Option<oneshot::Sender<Result<(), String>>>),
    /// Give nothing of this, which others give out or have now; what was given of it ends.
    KeepClearOf(Elsewhere),
    /// Have all clients that let themselves be told ask anew.
    Reconfigure,
    /// End.
    Stop,
    /// Say what has happened on each link, and how many leases there are.
    Count(oneshot::Sender<BTreeMap<String, BTreeMap<String, u64>>>),
    /// Say who has what behind this prefix, some at a time, and where to go on.
    Find(Sieve, Option<Ipv6Prefix>, oneshot::Sender<(Vec<Held>, Option<Ipv6Prefix>)>),
    /// End the lease of this prefix; whoever waits is told what becomes of its client, if there was one.
    End(Ipv6Prefix, oneshot::Sender<Option<Evicted>>),
}

/// What others give out, or have, and what that is called.
pub type Elsewhere = Vec<(Ipv6Prefix, String)>;

/// Why a server ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Somebody said so over the control port.
    Told,
    /// A signal.
    Signal,
    /// The thread that writes leases is gone, which is a bug; nobody could be told of a lease any more.
    Broken,
}

impl Server {
    /// Opens everything, and has the routes of what clients already have.
    ///
    /// # Errors
    /// What could not be opened, and what to do about it.
    pub async fn open(mut start: Start) -> anyhow::Result<Self> {
        // First what others may have already: a start that fails leaves nothing behind.
        let (control, orders) = listen(start.control.take())?;
        let (mut sockets, mut absent) = (Vec::new(), Vec::new());
        for name in &start.interfaces {
            if start.waits && here::index(name).is_none() {
                tracing::warn!("there is no interface '{name}' yet; DHCPv6 is served there when it comes");
                absent.push(name.clone());
                continue;
            }
            sockets.push((name.clone(), Port::listen(name)?));
        }
        let duid = here::own_duid(&start.duid)?;
        put_dns(&mut start);
        let mut ports = Vec::new();
        for (name, socket) in sockets {
            ports.push(Port::open((&name, socket), &start.conf, &duid, &keys_of(&start, &name)).await?);
        }
        let mut ledger = Ledger::open(&start.leases, (&here::boot(), uptime(), now()))?;
        let first = start.interfaces.first().map_or("", String::as_str);
        let kept = ledger.load(first, uptime())?;
        let sites = start.interfaces.iter().map(|name| here::site(name));
        let mut shelf = Shelf::new(Plan::new(&start.conf, sites), kept, uptime());
        shelf.recall_proofs(ledger.load_proofs()?);
        let backlog = Backlog::new(ledger.records(), shelf.len());
        let epoch = ledger.epoch().clone();
        let scribe = Scribe::start(ledger).context("there is no thread for the leases")?;
        let (began, watch) = (Instant::now(), Watch::open()?);
        let (not_kept, due, looked) = (0, began + LOOK, began);
        let mut server = Self {
            start,
            duid,
            ports,
            absent,
            ear: None,
            shelf,
            scribe,
            epoch,
            backlog,
            letters: Letters::default(),
            not_kept,
            not_kept_before: 0,
            turn: 0,
            closing: false,
            unrouted: 0,
            looks: 0,
            began,
            watch,
            contested: BTreeSet::new(),
            due,
            earliest: began,
            looked,
            control,
            orders,
        };
        server.listen_here();
        server.submit();
        server.route_all().await;
        Ok(server)
    }

    /// Where commands are listened for, if anywhere.
    pub fn control(&self) -> Option<std::net::SocketAddr> {
        self.control.as_ref().map(Control::at)
    }

    /// How many leases there are.
    pub fn leases(&self) -> usize {
        self.shelf.len()
    }

    /// Answers until it is told to stop, over the control port or by `own` orders.
    pub async fn serve(&mut self, own: &mut mpsc::Receiver<Own>) -> Ended {
        let mut inbox = Inbox::default();
        loop {
            // However much comes in meanwhile.
            if self.looked.elapsed() >= SHORT_LOOK && self.left().is_zero() {
                self.look().await;
            }
            match self.event(own).await {
                Event::Message(port) => self.answer(port, &mut inbox).await,
                Event::Query => self.answer_here(&mut inbox).await,
                Event::Room(n) => {
                    let mut sockets = self.ports.iter_mut().map(|port| &mut port.socket).chain(&mut self.ear);
                    sockets.nth(n).into_iter().for_each(LinkSocket::flush);
                }
                Event::Written(done) => self.written(done).await,
                Event::Broken => return Ended::Broken,
                Event::Order(Order::Stop, _) => return Ended::Told,
                Event::Order(order, done) => {
                    self.obey(order).await;
                    self.say_counts();
                    drop(done);
                }
                Event::Own(Own::Stop) => return Ended::Signal,
                Event::Own(own) => self.follow(own).await,
                Event::News(news) => self.hear(&news),
                Event::Look => self.look().await,
            }
        }
    }

    async fn follow(&mut self, own: Own) {
        match own {
            Own::Reload(elsewhere, told) => {
                let done = self.reload(&elsewhere).await;
                let _whoever_waits = told.map(|told| told.send(done.map_err(|why| format!("{why:#}"))));
                self.say_counts();
            }
            Own::KeepClearOf(elsewhere) => self.keep_clear_of(&elsewhere).await,
            Own::Reconfigure => self.call_all(true),
            // Whoever asked may have gone.
            Own::Count(to) => drop(to.send(self.counts_of_links())),
            Own::Find(sieve, after, to) => {
                drop(to.send(glance::of_shelf(&self.shelf, &sieve, after, uptime())));
            }
            Own::End(prefix, told) => {
                let evicted = self.evict(prefix);
                self.submit();
                let _whoever_waits = told.send(evicted);
            }
            // The loop has ended before.
            Own::Stop => {}
        }
    }

    async fn event(&mut self, own: &mut mpsc::Receiver<Own>) -> Event {
        let wait = self.left().clamp(SHORT_LOOK, LOOK);
        let is_full = self.letters.is_full() || self.backlog.is_full();
        // Each link has its turn, however much comes in on another.
        self.turn = self.turn.wrapping_add(1) % self.ports.len().max(1);
        let first = self.turn;
        let Self { ports, orders, scribe, watch, ear, .. } = self;
        let ordered = async {
            match orders {
                Some(orders) => orders.recv().await,
                None => None,
            }
        };
        let sockets = ports.iter().map(|port| &port.socket).chain(&*ear).enumerate();
        let unsent = sockets.filter(|(_, socket)| socket.has_unsent());
        let room = unsent.map(|(n, socket)| async move { socket.writable().await.map(|()| n) });
        let mut room: FuturesUnordered<_> = room.collect();
        let in_turn = ports.iter().cycle().skip(first).take(ports.len());
        let readable: Vec<_> = in_turn.map(|port| Box::pin(port.socket.readable())).collect();
        let served = readable.len();
        // There may be no link yet.
        let readable = async {
            match served {
                0 => std::future::pending().await,
                _ => futures_util::future::select_all(readable).await,
            }
        };
        tokio::select! {
            done = scribe.done() => done.map_or(Event::Broken, Event::Written),
            (Ok(()), nth, _) = readable, if !is_full => Event::Message((first + nth) % served.max(1)),
            Ok(()) = ear::hears(ear.as_ref()), if !is_full => Event::Query,
            Some(Ok(n)) = room.next() => Event::Room(n),
            Some(Ordered { order, done }) = ordered => Event::Order(order, done),
            Some(own) = own.recv() => Event::Own(own),
            news = watch.next() => Event::News(news),
            () = tokio::time::sleep(wait) => Event::Look,
        }
    }

    /// How long nothing is to be done unless something happens.
    fn left(&self) -> Duration {
        let lease = self.shelf.poll_timeout().map(|at| Duration::from_secs(at.saturating_sub(uptime())));
        let calls = self.ports.iter().filter_map(|port| port.session.poll_call_timeout());
        let call = calls.min().map(|at| at.saturating_sub(self.began.elapsed()));
        let now = Instant::now();
        let disk = self.retry().map(|at| at.saturating_duration_since(now));
        let look = self.due.saturating_duration_since(now);
        [lease, call, disk].into_iter().flatten().fold(look, Duration::min)
    }

    /// Ends leases that are over, writes what could not be written, and follows interfaces, addresses and routes.
    async fn look(&mut self) {
        self.looked = Instant::now();
        self.shelf.handle_timeout(uptime());
        if let Some(ahead) = self.epoch.look(uptime(), now()) {
            tracing::info!(event = "clock_set", "the calendar was set; leases last as long as before");
            self.backlog.set(ahead);
        }
        self.say_shortages();
        self.submit();
        self.send_calls();
        if Instant::now() >= self.due {
            self.follow_links().await;
        }
    }

    async fn answer(&mut self, n: usize, inbox: &mut Inbox) {
        let mut left = TURN;
        while left > 0 {
            let Some(port) = self.ports.get(n) else { return };
            let more = match port.socket.take(inbox) {
                Ok(more) => more,
                Err(why) if why.kind() == ErrorKind::WouldBlock => break,
                Err(why) => {
                    tracing::warn!("cannot receive on {}: {why}", port.name);
                    // The interface may be down, and is looked at again soon.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    break;
                }
            };
            left = left.saturating_sub(inbox.messages().count().max(1));
            let before = self.letters.collected();
            let mut letters = Vec::new();
            for (octets, arrived) in inbox.messages() {
                letters.extend(self.handle(n, octets, arrived, n));
            }
            if !self.ports.get_mut(n).is_some_and(Port::keep_ring) {
                self.letters.drop_behind(before);
                return;
            }
            let unrouted = self.lead(&letters).await;
            self.send(letters, &unrouted);
            if !more || self.letters.is_full() {
                break;
            }
        }
        if self.shelf.is_short_anew() {
            self.say_shortages();
        }
        self.submit();
    }

    /// The answer to a message on the link `n`, if it can leave at once; one that tells of something new waits for the disk. It
    /// leaves by the port `by`.
    fn handle(&mut self, n: usize, octets: &[u8], arrived: &Arrived, by: usize) -> Option<Letter> {
        let port = self.ports.get_mut(n)?;
        let sender = *arrived.from.ip();
        let is_relay = octets.first() == Some(&RELAY_FORWARD);
        self.shelf.next(uptime(), &port.name, Some(sender).filter(|_| !is_relay));
        // A host may hear groups that others on it have joined; none of them is an address of its own.
        let is_unicast = !arrived.to.is_multicast();
        let (from, spoken_to) = (Some(sender), is_unicast.then_some(arrived.to));
        port.tick(self.began.elapsed());
        let (tunnel, from_port) = (&*port.name, arrived.from.port());
        let origin = Origin { is_unicast, from, port: from_port, ..Origin::of(tunnel) };
        let before = self.shelf.changes();
        let answer = port.session.handle(&origin, octets, &mut self.shelf);
        let (interface, kind) = (&port.name, Kind(octets.first().copied()));
        tracing::debug!(event = "message", interface, %kind, from = %sender, answered = answer.is_some());
        if self.shelf.is_refused() {
            // Not even that nothing is there: another server may have something, and this one may have it again.
            self.not_kept += 1;
            return None;
        }
        let answer = answer?;
        let tells_of_others = answer.tells_of_others;
        let to_port = match () {
            () if answer.to_source_port => arrived.from.port(),
            () if answer.to_relay => SERVER_PORT,
            () => CLIENT_PORT,
        };
        let tells = self.shelf.poll_told();
        let letter = Letter { port: by, octets: answer.octets, to: sender, to_port, from: spoken_to, tells };
        if tells_of_others {
            return self.hold(letter);
        }
        if self.shelf.changes() == before {
            return Some(letter);
        }
        self.letters.push(letter);
        None
    }

    async fn obey(&mut self, order: Order) {
        match order {
            Order::Reload => {
                let _said = self.reload(&Vec::new()).await;
            }
            Order::Remove(binding) => {
                let kind = match binding.kind {
                    IaKind::Na => BindKind::Address,
                    IaKind::Pd => BindKind::Prefix,
                };
                if !self.shelf.forget(kind, binding.iaid, &binding.duid) {
                    tracing::warn!("dhcp6ctl: there is no such binding to remove");
                }
                self.submit();
            }
            // The first ends the loop; the others are not for servers.
            Order::Stop | Order::Start(_) | Order::StopInterface(_) => {}
        }
    }

    /// Takes back what is only good while it runs. Leases stay on the disk, and their routes in the kernel.
    pub async fn close(mut self) {
        // What is written anew only to be shorter can wait for the next start.
        self.closing = true;
        while self.letters.is_writing() {
            match self.scribe.done().await {
                Some(done) => self.written(done).await,
                None => break,
            }
            if self.backlog.retry().is_some() {
                break;
            }
        }
        self.say_counts();
        for port in &mut self.ports {
            port.routes.sink(BTreeSet::new()).await;
        }
        self.scribe.close();
    }
}

/// The file of what messages on a link are proved with.
fn keys_of(start: &Start, name: &str) -> PathBuf {
    let only = start.interfaces.len() == 1;
    start.leases.with_extension(if only { "keys".to_owned() } else { format!("{name}.keys") })
}

type Listening = (Option<Control>, Option<mpsc::Receiver<Ordered>>);

fn listen(at: Option<(std::net::SocketAddr, Zeroizing<Vec<u8>>)>) -> anyhow::Result<Listening> {
    let Some((at, secret)) = at else { return Ok((None, None)) };
    let (control, orders) = Control::start(at, Side::Server, secret).map_err(|why| {
        anyhow!("cannot listen for dhcp6ctl at {at}: {why}; another dhcp6s may: choose another port with -p, or none with -k /dev/null")
    })?;
    Ok((Some(control), Some(orders)))
}

/// What a message calls itself, for the log.
struct Kind(Option<u8>);

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(kind) => write!(f, "{:?}", MessageType::from(kind)),
            None => f.write_str("empty"),
        }
    }
}

/// Relay-forward (RFC 8415 section 7.3).
const RELAY_FORWARD: u8 = 12;
