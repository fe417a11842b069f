//! `dhcp6s`: a DHCPv6 server on one link, by the configuration, files, flags and control port of WIDE's program.
//!
//! ```text
//!   dhcp6s.conf ─► plan ─► shelf ◄── session (RFC 8415) ◄── socket ◄── clients and relays
//!                            │ changes
//!                            ├─► ledger: on the disk           in this order, then the answers leave
//!                            └─► routes of delegated prefixes
//! ```
//!
//! One task owns everything: messages that wait are answered together, and written down in one go. Left out: delayed
//! authentication (`delayedkey` is read and not used; RFC 8415 has done away with it), and Reconfigure.

pub mod front;
pub mod here;
pub mod ledger;
pub mod plan;
pub mod shelf;
pub mod socket;

use std::collections::{BTreeMap, HashMap};
use std::io::ErrorKind;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use sixway_dataplane::update::Ipv6Prefix;
use tokio::sync::{mpsc, oneshot};
use zeroize::Zeroizing;

use self::here::{Here, now};
use self::ledger::Ledger;
use self::plan::{Plan, terms};
use self::shelf::{Change, Lease, Shelf};
use self::socket::{ALL_SERVERS_OF_SITE, Arrived, LinkSocket};
use crate::broker::BindKind;
use crate::compat::dhcp6sconf::{Duid, ServerConf, load};
use crate::dhcp6ctl::codec::{IaKind, Order};
use crate::dhcp6ctl::server::{Control, Ordered};
use crate::dhcp6ctl::session::Side;
use crate::dhcpv6::codec::{ALL_SERVERS, CLIENT_PORT, SERVER_PORT, code};
use crate::dhcpv6::session::{Origin, Session};
use crate::link::{LinkError, Links, Outcome};

/// Messages that are answered together.
const BATCH: usize = 256;
/// Octets of a message: more does not fit a UDP datagram.
const MESSAGE: usize = 65_536;
/// How often at most leases are looked at.
const SHORT_LOOK: Duration = Duration::from_millis(50);
/// How often the interface is looked at, and what could not be written is tried again.
const LOOK: Duration = Duration::from_secs(30);

/// What a server is started with.
#[derive(Debug)]
pub struct Start {
    /// The interface.
    pub interface: String,
    /// The configuration file, for reloads.
    pub file: PathBuf,
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

/// Reads the configuration, and says what is worth saying about it.
///
/// # Errors
/// That it cannot be read, or all that is wrong with it; a file that is not there is an error too.
pub fn configuration(file: &Path) -> anyhow::Result<ServerConf> {
    let text = here::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    match load(&file.display().to_string(), &text, &Here) {
        Ok(loaded) => {
            loaded.notes.iter().for_each(|note| tracing::warn!("{note}"));
            if loaded.conf.hosts.iter().any(|host| host.key.is_some()) {
                tracing::warn!("delayedkey has no effect: clients are served without authentication");
            }
            Ok(loaded.conf)
        }
        Err(wrong) => {
            let all: Vec<String> = wrong.iter().map(ToString::to_string).collect();
            Err(anyhow!(all.join("\n")))
        }
    }
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    start: Start,
    duid: Duid,
    session: Session,
    shelf: Shelf,
    ledger: Ledger,
    /// The last change of each lease that is not on the disk yet.
    unwritten: BTreeMap<Ipv6Prefix, Change>,
    socket: LinkSocket,
    links: Links,
    routes: HashMap<Ipv6Prefix, Ipv6Addr>,
    control: Option<Control>,
    orders: Option<mpsc::Receiver<Ordered>>,
}

/// An answer on its way.
struct Letter {
    octets: Vec<u8>,
    to: Ipv6Addr,
    port: u16,
    /// Whether something must be written down before it leaves.
    binds: bool,
}

/// What the loop waits for.
enum Event {
    Message,
    /// With somebody who waits until it has been carried out, unless it is our own.
    Order(Order, Option<oneshot::Sender<()>>),
    Look,
}

/// Why a server ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Somebody said so over the control port.
    Told,
    /// A signal.
    Signal,
}

impl Server {
    /// Opens everything, and has the routes of what clients already have.
    ///
    /// # Errors
    /// What could not be opened, and what to do about it.
    pub async fn open(mut start: Start) -> anyhow::Result<Self> {
        let name = start.interface.clone();
        let Some(index) = here::index(&name) else {
            bail!("there is no interface '{name}'; `ip link` names all")
        };
        let duid = here::own_duid(&start.duid)?;
        let ledger = Ledger::open(&start.leases)?;
        let kept = ledger.load(&name)?;
        let plan = Plan::new(&start.conf, &name, here::on_link(&name));
        let shelf = Shelf::new(&name, plan, kept, now());
        put_dns(&mut start);
        let session = Session::new(terms(&start.conf, &name, &duid), rand::random());
        let socket = LinkSocket::open(&name, index).map_err(|why| anyhow!(unopened(&why, &name)))?;
        let links = Links::open()?;
        let (control, orders) = match start.control.take() {
            None => (None, None),
            Some((at, secret)) => {
                let (control, orders) = Control::start(at, Side::Server, secret).map_err(|why| {
                    anyhow!("cannot listen for dhcp6ctl at {at}: {why}; another dhcp6s may: choose another port with -p, or none with -k /dev/null")
                })?;
                (Some(control), Some(orders))
            }
        };
        let (unwritten, routes) = (BTreeMap::new(), HashMap::new());
        let mut server =
            Self { start, duid, session, shelf, ledger, unwritten, socket, links, routes, control, orders };
        let held: Vec<Change> = server.shelf.iter().cloned().map(Change::Has).collect();
        server.settle().await;
        server.route(&held).await;
        Ok(server)
    }

    /// Where commands are listened for, if anywhere.
    pub fn control(&self) -> Option<std::net::SocketAddr> {
        self.control.as_ref().map(Control::at)
    }

    /// What has happened, by name: messages, answers, what was not answered and why, and commands.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let own = self.session.counts().iter().map(|(name, n)| ((*name).to_owned(), *n));
        let commands = self.control.as_ref().map(Control::counts).unwrap_or_default();
        own.chain(commands.into_iter().map(|(name, n)| (format!("control_{name}"), n))).collect()
    }

    /// How many leases there are.
    pub fn leases(&self) -> usize {
        self.shelf.iter().count()
    }

    /// Answers until it is told to stop, over the control port or by `own` orders.
    pub async fn serve(&mut self, own: &mut mpsc::Receiver<Order>) -> Ended {
        let mut buffer = vec![0; MESSAGE];
        loop {
            match self.event(own).await {
                Event::Message => self.answer(&mut buffer).await,
                Event::Order(order, done) => {
                    if order == Order::Stop {
                        return if done.is_some() { Ended::Told } else { Ended::Signal };
                    }
                    self.obey(order).await;
                    self.say_counts();
                    drop(done);
                }
                Event::Look => self.look().await,
            }
        }
    }

    async fn event(&mut self, own: &mut mpsc::Receiver<Order>) -> Event {
        let Self { shelf, socket, orders, .. } = self;
        let next = shelf.poll_timeout().map_or(LOOK, |at| Duration::from_secs(at.saturating_sub(now())));
        let ordered = async {
            match orders {
                Some(orders) => orders.recv().await,
                None => None,
            }
        };
        tokio::select! {
            Ok(()) = socket.readable() => Event::Message,
            Some(Ordered { order, done }) = ordered => Event::Order(order, Some(done)),
            Some(order) = own.recv() => Event::Order(order, None),
            () = tokio::time::sleep(next.clamp(SHORT_LOOK, LOOK)) => Event::Look,
        }
    }

    /// Ends leases that are over, writes what could not be written, and follows an interface that has come again.
    async fn look(&mut self) {
        self.shelf.handle_timeout(now());
        self.settle().await;
        let name = &self.start.interface;
        let Some(index) = here::index(name).filter(|index| *index != self.socket.index()) else { return };
        match LinkSocket::open(name, index) {
            Ok(socket) => {
                self.socket = socket;
                self.routes.clear();
                let held: Vec<Change> = self.shelf.iter().cloned().map(Change::Has).collect();
                self.route(&held).await;
            }
            Err(why) => tracing::warn!("{}", unopened(&why, name)),
        }
    }

    async fn answer(&mut self, buffer: &mut [u8]) {
        let mut letters = Vec::new();
        for _ in 0..BATCH {
            match self.socket.take(buffer) {
                Ok(arrived) => {
                    let octets = buffer.get(..arrived.len).unwrap_or_default();
                    letters.extend(self.handle(octets, &arrived));
                }
                Err(why) if why.kind() == ErrorKind::WouldBlock => break,
                Err(why) => {
                    tracing::warn!("cannot receive on {}: {why}", self.start.interface);
                    // The interface may be down, and is looked at again soon.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    break;
                }
            }
        }
        let written = self.settle().await;
        for letter in letters.into_iter().filter(|letter| written || !letter.binds) {
            if let Err(why) = self.socket.send(&letter.octets, letter.to, letter.port).await {
                tracing::debug!("cannot answer {}: {why}", letter.to);
            }
        }
    }

    fn handle(&mut self, octets: &[u8], arrived: &Arrived) -> Option<Letter> {
        let from = *arrived.from.ip();
        let is_relay = octets.first() == Some(&RELAY_FORWARD);
        self.shelf.next(now(), Some(from).filter(|addr| !is_relay && addr.is_unicast_link_local()));
        let is_unicast = arrived.to != ALL_SERVERS && arrived.to != ALL_SERVERS_OF_SITE;
        let origin = Origin { tunnel: &self.start.interface, user: None, fixed: &[], is_unicast };
        let before = self.shelf.changes();
        let answer = self.session.handle(&origin, octets, &mut self.shelf);
        tracing::debug!(event = "message", kind = octets.first(), %from, answered = answer.is_some());
        let answer = answer?;
        let port = if answer.to_relay { SERVER_PORT } else { CLIENT_PORT };
        Some(Letter { octets: answer.octets, to: from, port, binds: self.shelf.changes() > before })
    }

    /// Writes down what has changed, then sets the routes; says whether that worked.
    async fn settle(&mut self) -> bool {
        for change in self.shelf.poll_changes() {
            let (Change::Has(lease) | Change::Gone(lease)) = &change;
            self.unwritten.insert(lease.prefix, change);
        }
        if self.unwritten.is_empty() {
            return true;
        }
        let changes: Vec<Change> = self.unwritten.values().cloned().collect();
        if let Err(why) = self.ledger.write(&changes) {
            tracing::error!("{why}; nobody is told of new leases until this works");
            return false;
        }
        self.unwritten.clear();
        log(&changes);
        self.route(&changes).await;
        true
    }

    /// Routes of delegated prefixes come and go with their leases. A client behind a relay is the relay's to reach (RFC 8987).
    async fn route(&mut self, changes: &[Change]) {
        for change in changes {
            let (Change::Has(lease) | Change::Gone(lease)) = change;
            if lease.key.kind != BindKind::Prefix || lease.key.client.is_empty() {
                continue;
            }
            let wanted = lease.peer.filter(|_| matches!(change, Change::Has(_)));
            let done = self.lead(lease, wanted).await;
            if let Err(why) = done {
                tracing::warn!("{why}");
            }
        }
    }

    async fn lead(&mut self, lease: &Lease, wanted: Option<Ipv6Addr>) -> Result<(), LinkError> {
        let (prefix, name) = (lease.prefix, &self.start.interface);
        let has = self.routes.get(&prefix).copied();
        if has == wanted {
            return Ok(());
        }
        if has.is_some() {
            self.routes.remove(&prefix);
            self.links.remove_route(prefix, name, None).await?;
        }
        if let Some(peer) = wanted {
            let outcome = self.links.add_route_via(prefix, peer, name).await?;
            if outcome == Outcome::AlreadyThere {
                // Left over from a process that was killed, perhaps to another neighbour.
                self.links.remove_route(prefix, name, None).await?;
                let _added = self.links.add_route_via(prefix, peer, name).await?;
            }
            self.routes.insert(prefix, peer);
        }
        Ok(())
    }

    async fn obey(&mut self, order: Order) {
        match order {
            Order::Reload => self.reload().await,
            Order::Remove(binding) => {
                let kind = match binding.kind {
                    IaKind::Na => BindKind::Address,
                    IaKind::Pd => BindKind::Prefix,
                };
                if !self.shelf.forget(kind, binding.iaid, &binding.duid) {
                    tracing::warn!("there is no such binding to remove");
                }
                self.settle().await;
            }
            // The first ends the loop; the others are not for servers.
            Order::Stop | Order::Start(_) | Order::StopInterface(_) => {}
        }
    }

    /// Puts into the log what has happened, as far as anything has.
    fn say_counts(&self) {
        let counts = self.counts();
        let some: Vec<String> =
            counts.iter().filter(|(_, n)| **n > 0).map(|(name, n)| format!("{name} {n}")).collect();
        tracing::info!(event = "counts", leases = self.leases(), "{}", some.join(", "));
    }

    /// Reads the configuration again; if it is wrong, all stays as it is.
    pub async fn reload(&mut self) {
        let conf = match configuration(&self.start.file) {
            Ok(conf) => conf,
            Err(why) => {
                tracing::error!("the configuration stays as it is: {why:#}");
                return;
            }
        };
        self.start.conf = conf;
        put_dns(&mut self.start);
        let name = &self.start.interface;
        self.session.configure(terms(&self.start.conf, name, &self.duid));
        self.shelf.configure(Plan::new(&self.start.conf, name, here::on_link(name)));
        self.settle().await;
        tracing::info!(event = "reloaded", "the configuration has been read again");
    }

    /// Takes back what is only good while it runs. Routes go; leases stay on the disk.
    pub async fn close(mut self) {
        self.settle().await;
        self.say_counts();
        let prefixes: Vec<Ipv6Prefix> = self.routes.keys().copied().collect();
        for prefix in prefixes {
            if let Err(why) = self.links.remove_route(prefix, &self.start.interface, None).await {
                tracing::warn!("{why}");
            }
        }
    }
}

/// Relay-forward (RFC 8415 section 7.3).
const RELAY_FORWARD: u8 = 12;

fn put_dns(start: &mut Start) {
    if !start.dns.is_empty() {
        start.conf.options.addresses.insert(code::DNS_SERVERS, start.dns.clone());
    }
}

fn unopened(why: &std::io::Error, name: &str) -> String {
    let causes = [
        (ErrorKind::AddrInUse, "another DHCPv6 server has that port: `ss -lunp` names it"),
        (ErrorKind::PermissionDenied, "run as root"),
    ];
    let cause = causes.iter().find(|(kind, _)| *kind == why.kind());
    let next = cause.map_or("is the interface up, with an IPv6 address?", |(_, next)| next);
    format!("cannot listen on UDP port {SERVER_PORT} of {name}: {why}; {next}")
}

fn log(changes: &[Change]) {
    for change in changes {
        match change {
            Change::Has(Lease { key, prefix, until, .. }) => {
                tracing::info!(event = "bound", %prefix, number = key.number, client = hex(&key.client), until);
            }
            Change::Gone(Lease { key, prefix, .. }) => {
                tracing::info!(event = "unbound", %prefix, number = key.number, client = hex(&key.client));
            }
        }
    }
}

fn hex(octets: &[u8]) -> String {
    let pairs: Vec<String> = octets.iter().map(|octet| format!("{octet:02x}")).collect();
    pairs.join(":")
}
