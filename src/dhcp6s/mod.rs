//! `dhcp6s`: a DHCPv6 server on one link, by the configuration, files, flags and control port of WIDE's program.
//!
//! ```text
//!   dhcp6s.conf ─► plan ─► shelf ◄── session (RFC 8415) ◄── socket ◄── clients and relays
//!                            │ changes
//!                            ├─► ledger: on the disk           in this order, then the answers leave
//!                            └─► routes of delegated prefixes
//! ```
//!
//! One task owns everything: messages that wait are answered together, and written down in one go. Left out: temporary
//! addresses, and Reconfigure messages to clients behind relays.

pub mod front;
pub mod here;
pub mod ledger;
pub mod plan;
pub mod routes;
pub mod shelf;
pub mod socket;

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use sixway_dataplane::update::Ipv6Prefix;
use tokio::sync::{mpsc, oneshot};
use zeroize::Zeroizing;

use self::here::{Here, clock, now};
use self::ledger::Ledger;
use self::plan::{Plan, terms};
use self::routes::Routes;
use self::shelf::{Change, Lease, Proofs, Shelf};
use self::socket::{ALL_SERVERS_OF_SITE, Arrived, LinkSocket};
use crate::broker::BindKind;
use crate::compat::dhcp6sconf::{Duid, ServerConf, load};
use crate::dhcp6ctl::codec::{IaKind, Order};
use crate::dhcp6ctl::server::{Control, Ordered};
use crate::dhcp6ctl::session::Side;
use crate::dhcpv6::calls::Called;
use crate::dhcpv6::codec::{ALL_SERVERS, CLIENT_PORT, SERVER_PORT, code};
use crate::dhcpv6::keep::RingFile;
use crate::dhcpv6::session::{Leases, Origin, Session, Terms};

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
    terms: Terms,
    session: Session,
    shelf: Shelf,
    ledger: Ledger,
    /// The last change of each lease that is not on the disk yet.
    unwritten: BTreeMap<Ipv6Prefix, Change>,
    unwritten_proofs: Proofs,
    ring: RingFile,
    began: Instant,
    socket: LinkSocket,
    routes: Routes,
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
    /// With somebody who waits until it has been carried out.
    Order(Order, oneshot::Sender<()>),
    Own(Own),
    Look,
}

/// What whoever runs a server tells it.
#[derive(Clone, Debug)]
pub enum Own {
    /// Read the configuration again.
    Reload,
    /// Have all clients that let themselves be told ask anew.
    Reconfigure,
    /// End.
    Stop,
    /// Say what has happened, and how many leases there are.
    Count(mpsc::Sender<(String, BTreeMap<String, u64>)>),
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
        let mut shelf = Shelf::new(&name, plan, kept, now());
        shelf.recall_proofs(ledger.load_proofs()?);
        put_dns(&mut start);
        let terms = terms(&start.conf, &name, &duid);
        let mut session = Session::new(terms.clone(), rand::random());
        let keys = start.leases.with_extension("keys");
        let (ring_file, ring) = RingFile::open(&keys, rand::random())
            .with_context(|| format!("cannot keep Reconfigure keys in {}", keys.display()))?;
        session.trust(ring);
        let socket = LinkSocket::open(&name, index).map_err(|why| anyhow!(unopened(&why, &name)))?;
        let routes = Routes::open(&name, index).await?;
        let (control, orders) = match start.control.take() {
            None => (None, None),
            Some((at, secret)) => {
                let (control, orders) = Control::start(at, Side::Server, secret).map_err(|why| {
                    anyhow!("cannot listen for dhcp6ctl at {at}: {why}; another dhcp6s may: choose another port with -p, or none with -k /dev/null")
                })?;
                (Some(control), Some(orders))
            }
        };
        let mut server = Self {
            start,
            duid,
            terms,
            session,
            shelf,
            ledger,
            unwritten: BTreeMap::new(),
            unwritten_proofs: Proofs::new(),
            ring: ring_file,
            began: Instant::now(),
            socket,
            routes,
            control,
            orders,
        };
        server.settle().await;
        server.route_all().await;
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
        let commands = commands.into_iter().map(|(name, n)| (format!("control_{name}"), n));
        let leases = ("leases".to_owned(), self.shelf.len() as u64);
        own.chain(commands).chain([leases]).collect()
    }

    /// How many leases there are.
    pub fn leases(&self) -> usize {
        self.shelf.len()
    }

    /// Answers until it is told to stop, over the control port or by `own` orders.
    pub async fn serve(&mut self, own: &mut mpsc::Receiver<Own>) -> Ended {
        let mut buffer = vec![0; MESSAGE];
        loop {
            match self.event(own).await {
                Event::Message => self.answer(&mut buffer).await,
                Event::Order(Order::Stop, _) => return Ended::Told,
                Event::Order(order, done) => {
                    self.obey(order).await;
                    self.say_counts();
                    drop(done);
                }
                Event::Own(Own::Stop) => return Ended::Signal,
                Event::Own(Own::Reload) => {
                    self.reload().await;
                    self.say_counts();
                }
                Event::Own(Own::Reconfigure) => self.call(true),
                Event::Own(Own::Count(to)) => {
                    // Whoever asked may have gone.
                    let _told = to.try_send((self.start.interface.clone(), self.counts()));
                }
                Event::Look => self.look().await,
            }
        }
    }

    async fn event(&mut self, own: &mut mpsc::Receiver<Own>) -> Event {
        let Self { shelf, session, socket, orders, began, .. } = self;
        let next = shelf.poll_timeout().map_or(LOOK, |at| Duration::from_secs(at.saturating_sub(now())));
        let call = session.poll_call_timeout().map_or(LOOK, |at| at.saturating_sub(began.elapsed()));
        let ordered = async {
            match orders {
                Some(orders) => orders.recv().await,
                None => None,
            }
        };
        tokio::select! {
            Ok(()) = socket.readable() => Event::Message,
            Some(Ordered { order, done }) = ordered => Event::Order(order, done),
            Some(own) = own.recv() => Event::Own(own),
            () = tokio::time::sleep(next.min(call).clamp(SHORT_LOOK, LOOK)) => Event::Look,
        }
    }

    /// Ends leases that are over, writes what could not be written, and follows an interface that has come again.
    async fn look(&mut self) {
        self.shelf.handle_timeout(now());
        self.settle().await;
        self.send_calls().await;
        let name = &self.start.interface;
        let Some(index) = here::index(name).filter(|index| *index != self.socket.index()) else { return };
        match LinkSocket::open(name, index) {
            Ok(socket) => {
                self.socket = socket;
                self.routes.follow(index);
                self.route_all().await;
            }
            Err(why) => tracing::warn!("{}", unopened(&why, name)),
        }
    }

    /// All routes are as the leases say.
    async fn route_all(&mut self) {
        self.routes.set(self.shelf.iter()).await;
        self.routes.sink(self.shelf.spaces()).await;
    }

    /// Has clients ask anew: for what they have, or else for information alone.
    fn call(&mut self, renew: bool) {
        let reached = self.shelf.iter().filter_map(|lease| Some((lease.key.client.clone(), lease.reach?)));
        let all: BTreeMap<Box<[u8]>, Ipv6Addr> = reached.collect();
        tracing::info!(event = "reconfigure", clients = all.len());
        self.call_these(all, renew);
    }

    fn call_these(&mut self, all: BTreeMap<Box<[u8]>, Ipv6Addr>, renew: bool) {
        self.session.set_clock(clock());
        let now = self.began.elapsed();
        for (client, to) in all {
            self.session.call(now, Called { tunnel: (&*self.start.interface).into(), client }, to, renew);
        }
    }

    async fn send_calls(&mut self) {
        if !self.keep_ring() {
            return;
        }
        let now = self.began.elapsed();
        for _ in 0..BATCH {
            let Some((_, to, octets)) = self.session.poll_call(now) else { return };
            if let Err(why) = self.socket.send(&octets, to, CLIENT_PORT).await {
                tracing::debug!("cannot reach {to}: {why}");
            }
        }
    }

    /// Numbers are on the disk before they are used; says whether that worked.
    fn keep_ring(&mut self) -> bool {
        let kept = self.session.ring_to_keep().map_or(Ok(()), |ring| self.ring.keep(ring));
        if let Err(why) = &kept {
            tracing::error!(
                "cannot keep what messages are proved with: {why}; nothing is said until this works"
            );
        }
        kept.is_ok()
    }

    async fn answer(&mut self, buffer: &mut [u8]) {
        let mut letters = Vec::new();
        self.session.set_clock(clock());
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
        if !self.keep_ring() {
            return;
        }
        for letter in letters.into_iter().filter(|letter| written || !letter.binds) {
            if let Err(why) = self.socket.send(&letter.octets, letter.to, letter.port).await {
                tracing::debug!("cannot answer {}: {why}", letter.to);
            }
        }
    }

    fn handle(&mut self, octets: &[u8], arrived: &Arrived) -> Option<Letter> {
        let sender = *arrived.from.ip();
        let is_relay = octets.first() == Some(&RELAY_FORWARD);
        self.shelf.next(now(), Some(sender).filter(|addr| !is_relay && addr.is_unicast_link_local()));
        let is_unicast = arrived.to != ALL_SERVERS && arrived.to != ALL_SERVERS_OF_SITE;
        let from = Some(sender);
        let origin = Origin { tunnel: &self.start.interface, user: None, fixed: &[], is_unicast, from };
        let before = self.shelf.changes();
        let answer = self.session.handle(&origin, octets, &mut self.shelf);
        tracing::debug!(event = "message", kind = octets.first(), %sender, answered = answer.is_some());
        let answer = answer?;
        let port = match () {
            () if answer.to_source_port => arrived.from.port(),
            () if answer.to_relay => SERVER_PORT,
            () => CLIENT_PORT,
        };
        Some(Letter { octets: answer.octets, to: sender, port, binds: self.shelf.changes() > before })
    }

    /// Writes down what has changed, then sets the routes; says whether that worked.
    async fn settle(&mut self) -> bool {
        for change in self.shelf.poll_changes() {
            self.unwritten.insert(change.lease().prefix, change);
        }
        self.unwritten_proofs.extend(self.shelf.poll_proofs());
        if self.unwritten.is_empty() && self.unwritten_proofs.is_empty() {
            return true;
        }
        let changes: Vec<Change> = self.unwritten.values().cloned().collect();
        if let Err(why) = self.ledger.write(&changes, &self.unwritten_proofs) {
            tracing::error!("{why}; nobody is told of new leases until this works");
            return false;
        }
        self.unwritten.clear();
        self.unwritten_proofs.clear();
        log(&changes);
        self.routes.change(&changes).await;
        true
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
        let said = terms(&self.start.conf, name, &self.duid);
        let is_news = is_news(&self.terms, &said);
        self.session.configure(said.clone());
        self.terms = said;
        let before: BTreeMap<Ipv6Prefix, Lease> = self.shelf.iter().map(|l| (l.prefix, l.clone())).collect();
        self.shelf.configure(Plan::new(&self.start.conf, name, here::on_link(name)));
        self.settle().await;
        self.route_all().await;
        self.tell(&before, is_news);
        tracing::info!(event = "reloaded", "the configuration has been read again");
    }

    /// After a reload: who has lost something, or would have other lifetimes now, is to renew; if only information is other
    /// than before, all are to ask for that.
    fn tell(&mut self, before: &BTreeMap<Ipv6Prefix, Lease>, is_news: bool) {
        let differs = |lease: &&Lease| {
            let now = self.shelf.get(lease.prefix).map(|_| self.shelf.lifetimes(lease.prefix));
            now.is_none_or(|life| life.is_some_and(|life| life != lease.life))
        };
        let touched = before.values().filter(differs);
        let touched: BTreeMap<Box<[u8]>, Ipv6Addr> =
            touched.filter_map(|lease| Some((lease.key.client.clone(), lease.reach?))).collect();
        if is_news {
            self.call(false);
        }
        self.call_these(touched, true);
    }

    /// Takes back what is only good while it runs. Leases stay on the disk, and their routes in the kernel.
    pub async fn close(mut self) {
        self.settle().await;
        self.say_counts();
        self.routes.sink(BTreeSet::new()).await;
    }
}

/// Whether clients are told other things than before.
fn is_news(before: &Terms, now: &Terms) -> bool {
    before.options != now.options || before.refresh != now.refresh
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
