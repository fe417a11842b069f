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
//! written down the next is collected. Left out: temporary addresses, and Reconfigure messages to clients behind relays.

pub mod clock;
pub mod files;
pub mod front;
pub mod here;
pub mod ledger;
pub mod plan;
mod port;
pub mod routes;
pub mod scribe;
pub mod shelf;
pub mod socket;
pub mod vacancy;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use sixway_dataplane::update::Ipv6Prefix;
use tokio::sync::{mpsc, oneshot};
use zeroize::Zeroizing;

use self::clock::Epoch;
use self::files::Files;
use self::here::{clock, now, uptime};
use self::ledger::Ledger;
use self::plan::{Plan, Site};
use self::port::Port;
use self::routes::way;
use self::scribe::{Done, Page, Scribe};
use self::shelf::{Change, Lease, Proofs, Shelf};
use self::socket::{ALL_SERVERS_OF_SITE, Arrived};
use crate::broker::{BindKey, BindKind};
use crate::compat::dhcp6sconf::{Duid, ServerConf};
use crate::dhcp6ctl::codec::{IaKind, Order};
use crate::dhcp6ctl::server::{Control, Ordered};
use crate::dhcp6ctl::session::Side;
use crate::dhcpv6::calls::Called;
use crate::dhcpv6::codec::{ALL_SERVERS, CLIENT_PORT, SERVER_PORT, code};
use crate::dhcpv6::session::{Leases, Origin};
use crate::link::LinkError;
use crate::link::watch::{News, Watch};

/// Messages that are answered together.
const BATCH: usize = 256;
/// Answers that wait for the disk; further messages wait in their sockets.
const MOST_WAITING: usize = 16_384;
/// Octets of a message: more does not fit a UDP datagram.
const MESSAGE: usize = 65_536;
/// How often at most leases are looked at.
const SHORT_LOOK: Duration = Duration::from_millis(50);
/// How often interfaces and routes are looked at, whatever is heard of them.
const LOOK: Duration = Duration::from_secs(30);
/// How long after news of an interface or a route they are looked at: news come in swarms.
const SETTLING: Duration = Duration::from_millis(500);
/// How long after a failure the disk is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What a server is started with.
#[derive(Debug)]
pub struct Start {
    /// The interfaces, at least one.
    pub interfaces: Vec<String>,
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

/// A running server.
#[derive(Debug)]
pub struct Server {
    start: Start,
    duid: Duid,
    ports: Vec<Port>,
    shelf: Shelf,
    scribe: Scribe,
    epoch: Epoch,
    /// The last change of each lease that is not on the disk yet.
    unwritten: BTreeMap<Ipv6Prefix, Change>,
    unwritten_proofs: Proofs,
    ahead: Option<i64>,
    /// Answers that wait for what is collected, and those that wait for what is being written.
    collected: Vec<Letter>,
    writing: Option<Vec<Letter>>,
    /// When the disk is tried again; `None`: it works.
    failing: Option<Instant>,
    not_kept: u64,
    unrouted: u64,
    began: Instant,
    watch: Watch,
    /// When interfaces and routes are looked at next.
    due: Instant,
    control: Option<Control>,
    orders: Option<mpsc::Receiver<Ordered>>,
}

/// An answer on its way.
#[derive(Debug)]
struct Letter {
    port: usize,
    octets: Vec<u8>,
    to: Ipv6Addr,
    to_port: u16,
    /// What it says that its client has.
    tells: Vec<(BindKey, Ipv6Prefix)>,
}

/// What the loop waits for.
enum Event {
    /// On the link with this number.
    Message(usize),
    /// A page is on the disk, or is not.
    Written(Done),
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
    /// Have all clients that let themselves be told ask anew.
    Reconfigure,
    /// End.
    Stop,
    /// Say what has happened on each link, and how many leases there are.
    Count(oneshot::Sender<BTreeMap<String, BTreeMap<String, u64>>>),
    /// End the lease of this prefix; whoever waits is told whether there was one.
    End(Ipv6Prefix, oneshot::Sender<bool>),
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
}

impl Server {
    /// Opens everything, and has the routes of what clients already have.
    ///
    /// # Errors
    /// What could not be opened, and what to do about it.
    pub async fn open(mut start: Start) -> anyhow::Result<Self> {
        let duid = here::own_duid(&start.duid)?;
        put_dns(&mut start);
        let mut ports = Vec::new();
        for name in &start.interfaces {
            let only = start.interfaces.len() == 1;
            let keys = if only { "keys".to_owned() } else { format!("{name}.keys") };
            ports.push(Port::open(name, &start.conf, &duid, &start.leases.with_extension(keys)).await?);
        }
        let ledger = Ledger::open(&start.leases, (&here::boot(), uptime(), now()))?;
        let first = start.interfaces.first().map_or("", String::as_str);
        let kept = ledger.load(first, uptime())?;
        let sites = start.interfaces.iter().map(|name| here::site(name));
        let mut shelf = Shelf::new(Plan::new(&start.conf, sites), kept, uptime());
        shelf.recall_proofs(ledger.load_proofs()?);
        let (control, orders) = listen(start.control.take())?;
        let epoch = ledger.epoch().clone();
        let scribe = Scribe::start(ledger).context("there is no thread for the leases")?;
        let (unwritten, unwritten_proofs) = (BTreeMap::new(), Proofs::new());
        let (began, watch) = (Instant::now(), Watch::open()?);
        let (collected, writing, failing) = (Vec::new(), None, None);
        let (not_kept, unrouted, due, ahead) = (0, 0, began + LOOK, None);
        let mut server = Self {
            start,
            duid,
            ports,
            shelf,
            scribe,
            epoch,
            unwritten,
            unwritten_proofs,
            ahead,
            collected,
            writing,
            failing,
            not_kept,
            unrouted,
            began,
            watch,
            due,
            control,
            orders,
        };
        server.submit();
        server.route_all().await;
        Ok(server)
    }

    /// Where commands are listened for, if anywhere.
    pub fn control(&self) -> Option<std::net::SocketAddr> {
        self.control.as_ref().map(Control::at)
    }

    /// What has happened, by name: messages, answers, what was not answered and why, and commands. Of all links together.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let mut all: BTreeMap<String, u64> = BTreeMap::new();
        for (name, n) in self.ports.iter().flat_map(|port| port.session.counts()) {
            *all.entry((*name).to_owned()).or_default() += n;
        }
        let commands = self.control.as_ref().map(Control::counts).unwrap_or_default();
        all.extend(commands.into_iter().map(|(name, n)| (format!("control_{name}"), n)));
        all.extend(self.own_counts());
        all.insert("leases".to_owned(), self.shelf.len() as u64);
        all
    }

    fn own_counts(&self) -> [(String, u64); 2] {
        [("not_kept".to_owned(), self.not_kept), ("unrouted".to_owned(), self.unrouted)]
    }

    /// The same of each link; what is counted for all of them stands with each.
    fn counts_of_links(&self) -> BTreeMap<String, BTreeMap<String, u64>> {
        let mut leases: BTreeMap<&str, u64> = BTreeMap::new();
        self.shelf.iter().for_each(|lease| *leases.entry(&*lease.key.tunnel).or_default() += 1);
        let of = |port: &Port| {
            let own = port.session.counts().iter().map(|(name, n)| ((*name).to_owned(), *n));
            let here = leases.get(&*port.name).copied().unwrap_or_default();
            (port.name.clone(), own.chain(self.own_counts()).chain([("leases".to_owned(), here)]).collect())
        };
        self.ports.iter().map(of).collect()
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
                Event::Message(port) => self.answer(port, &mut buffer).await,
                Event::Written(done) => self.written(done).await,
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
            Own::Reconfigure => self.call(true),
            // Whoever asked may have gone.
            Own::Count(to) => drop(to.send(self.counts_of_links())),
            Own::End(prefix, told) => {
                let was = self.shelf.end(prefix);
                self.submit();
                let _whoever_waits = told.send(was);
            }
            // The loop has ended before.
            Own::Stop => {}
        }
    }

    async fn event(&mut self, own: &mut mpsc::Receiver<Own>) -> Event {
        let wait = self.wait();
        let is_full = self.collected.len() >= MOST_WAITING;
        let Self { ports, orders, scribe, watch, .. } = self;
        let ordered = async {
            match orders {
                Some(orders) => orders.recv().await,
                None => None,
            }
        };
        let readable = ports.iter().map(|port| Box::pin(port.socket.readable()));
        tokio::select! {
            Some(done) = scribe.done() => Event::Written(done),
            (Ok(()), port, _) = futures_util::future::select_all(readable), if !is_full => Event::Message(port),
            Some(Ordered { order, done }) = ordered => Event::Order(order, done),
            Some(own) = own.recv() => Event::Own(own),
            news = watch.next() => Event::News(news),
            () = tokio::time::sleep(wait) => Event::Look,
        }
    }

    /// How long nothing is to be done unless something happens.
    fn wait(&self) -> Duration {
        let lease = self.shelf.poll_timeout().map(|at| Duration::from_secs(at.saturating_sub(uptime())));
        let calls = self.ports.iter().filter_map(|port| port.session.poll_call_timeout());
        let call = calls.min().map(|at| at.saturating_sub(self.began.elapsed()));
        let now = Instant::now();
        let disk = self.failing.map(|at| at.saturating_duration_since(now));
        let look = self.due.saturating_duration_since(now);
        let first = [lease, call, disk].into_iter().flatten().fold(look, Duration::min);
        first.clamp(SHORT_LOOK, LOOK)
    }

    /// Interfaces and routes are looked at soon, when something has happened to them that was not our doing.
    fn hear(&mut self, news: &News) {
        let touches = match news {
            News::Links => true,
            News::Unled(prefix, via) => self.shelf.get(*prefix).and_then(way) == Some(*via),
        };
        if touches {
            self.due = self.due.min(Instant::now() + SETTLING);
        }
    }

    /// Ends leases that are over, writes what could not be written, and follows interfaces, addresses and routes.
    async fn look(&mut self) {
        self.shelf.handle_timeout(uptime());
        if let Some(ahead) = self.epoch.look(uptime(), now()) {
            tracing::info!(event = "clock_set", "the calendar was set; leases last as long as before");
            self.ahead = Some(ahead);
        }
        self.submit();
        self.send_calls().await;
        if Instant::now() < self.due {
            return;
        }
        self.due = Instant::now() + LOOK;
        for port in &mut self.ports {
            port.look().await;
        }
        let sites = self.sites();
        if !sites.iter().eq(self.shelf.plan().sites()) {
            self.shelf.configure(Plan::new(&self.start.conf, sites));
            self.submit();
        }
        self.route_all().await;
    }

    /// The links as they are now. One that has no address at the moment is as it was: it is down, and will come again.
    fn sites(&self) -> Vec<Site> {
        let known = |name: &str| self.shelf.plan().sites().find(|site| *site.name == *name).cloned();
        let names = self.ports.iter().map(|port| &*port.name).collect::<BTreeSet<&str>>();
        let now = names.into_iter().map(here::site);
        now.map(|site| match known(&site.name) {
            Some(before) if site.own.is_empty() => before,
            _ => site,
        })
        .collect()
    }

    /// All routes are as the leases say.
    async fn route_all(&mut self) {
        for port in &mut self.ports {
            port.routes.set(self.shelf.iter()).await;
        }
        if let Some(first) = self.ports.first_mut() {
            first.routes.sink(self.shelf.spaces()).await;
        }
    }

    /// Has clients ask anew: for what they have, or else for information alone.
    fn call(&mut self, renew: bool) {
        let all: Vec<(Called, Ipv6Addr)> = self.shelf.iter().filter_map(called).collect();
        tracing::info!(event = "reconfigure", clients = all.len());
        self.call_these(all, renew);
    }

    fn call_these(&mut self, all: Vec<(Called, Ipv6Addr)>, renew: bool) {
        let (at, now) = (clock(), self.began.elapsed());
        let all: BTreeMap<Called, Ipv6Addr> = all.into_iter().collect();
        for port in &mut self.ports {
            port.session.set_clock(at);
        }
        for (who, to) in all {
            if let Some(port) = self.ports.iter_mut().find(|port| *port.name == *who.tunnel) {
                port.session.call(now, who, to, renew);
            }
        }
    }

    async fn send_calls(&mut self) {
        let now = self.began.elapsed();
        for port in &mut self.ports {
            if !port.keep_ring() {
                continue;
            }
            for _ in 0..BATCH {
                let Some((_, to, octets)) = port.session.poll_call(now) else { break };
                port.send(&octets, to, CLIENT_PORT).await;
            }
        }
    }

    async fn answer(&mut self, n: usize, buffer: &mut [u8]) {
        let mut letters = Vec::new();
        let before = self.collected.len();
        for _ in 0..BATCH {
            let Some(port) = self.ports.get_mut(n) else { return };
            match port.socket.take(buffer) {
                Ok(arrived) => {
                    let octets = buffer.get(..arrived.len).unwrap_or_default();
                    letters.extend(self.handle(n, octets, &arrived));
                }
                Err(why) if why.kind() == ErrorKind::WouldBlock => break,
                Err(why) => {
                    tracing::warn!("cannot receive on {}: {why}", port.name);
                    // The interface may be down, and is looked at again soon.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    break;
                }
            }
        }
        if !self.ports.get_mut(n).is_some_and(Port::keep_ring) {
            self.collected.truncate(before);
            return;
        }
        self.submit();
        self.send(letters, &BTreeSet::new()).await;
    }

    /// The answer to a message, if it can leave at once; one that tells of something new waits for the disk.
    fn handle(&mut self, n: usize, octets: &[u8], arrived: &Arrived) -> Option<Letter> {
        let port = self.ports.get_mut(n)?;
        let sender = *arrived.from.ip();
        let is_relay = octets.first() == Some(&RELAY_FORWARD);
        self.shelf.next(uptime(), &port.name, Some(sender).filter(|_| !is_relay));
        let is_unicast = arrived.to != ALL_SERVERS && arrived.to != ALL_SERVERS_OF_SITE;
        let from = Some(sender);
        let origin = Origin { tunnel: &port.name, user: None, fixed: &[], is_unicast, from };
        let before = self.shelf.changes();
        port.session.set_clock(clock());
        let answer = port.session.handle(&origin, octets, &mut self.shelf);
        tracing::debug!(event = "message", kind = octets.first(), %sender, answered = answer.is_some());
        let answer = answer?;
        let to_port = match () {
            () if answer.to_source_port => arrived.from.port(),
            () if answer.to_relay => SERVER_PORT,
            () => CLIENT_PORT,
        };
        let tells = self.shelf.poll_told();
        let letter = Letter { port: n, octets: answer.octets, to: sender, to_port, tells };
        if self.shelf.changes() == before {
            return Some(letter);
        }
        self.collected.push(letter);
        None
    }

    /// Sends answers, as far as what they tell of is still so and can be reached.
    async fn send(&mut self, letters: Vec<Letter>, unrouted: &BTreeSet<Ipv6Prefix>) {
        for letter in letters {
            let holds = |(key, prefix): &(BindKey, Ipv6Prefix)| {
                !unrouted.contains(prefix) && self.shelf.get(*prefix).is_some_and(|lease| lease.key == *key)
            };
            if !letter.tells.iter().all(holds) {
                self.not_kept += 1;
                continue;
            }
            if let Some(port) = self.ports.get(letter.port) {
                port.send(&letter.octets, letter.to, letter.to_port).await;
            }
        }
    }

    /// Has written down what has changed, unless something is being written already: then it is written after that.
    fn submit(&mut self) {
        for change in self.shelf.poll_changes() {
            self.unwritten.insert(change.lease().prefix, change);
        }
        self.unwritten_proofs.extend(self.shelf.poll_proofs());
        let nothing = self.unwritten.is_empty() && self.unwritten_proofs.is_empty() && self.ahead.is_none();
        let waits = self.failing.is_some_and(|at| Instant::now() < at);
        if nothing || waits || self.writing.is_some() {
            return;
        }
        let changes = std::mem::take(&mut self.unwritten).into_values().collect();
        let proofs = std::mem::take(&mut self.unwritten_proofs);
        self.scribe.write(Page { changes, proofs, ahead: self.ahead.take() });
        self.writing = Some(std::mem::take(&mut self.collected));
    }

    /// What was written is routed, then told; what could not be is written again, and told to nobody.
    async fn written(&mut self, done: Done) {
        let letters = self.writing.take().unwrap_or_default();
        let Done { page, kept } = done;
        match kept {
            Ok(()) => {
                self.failing = None;
                log(&page.changes);
                let failed = self.route(&page.changes).await;
                self.send(letters, &failed).await;
            }
            Err(why) => {
                tracing::error!("{why}; nobody is told of new leases until this works");
                self.failing = Some(Instant::now() + RETRY);
                self.not_kept += letters.len() as u64;
                for change in page.changes {
                    self.unwritten.entry(change.lease().prefix).or_insert(change);
                }
                for (client, number) in page.proofs {
                    self.unwritten_proofs.entry(client).or_insert(number);
                }
                self.ahead = self.ahead.or(page.ahead);
            }
        }
        self.submit();
    }

    /// Routes come and go with leases. A new lease that cannot be routed is taken back; one that had its route keeps it, or
    /// has it when that can be. Returns what has no route now that should have.
    async fn route(&mut self, changes: &[Change]) -> BTreeSet<Ipv6Prefix> {
        let mut failed = BTreeSet::new();
        for lease in changes.iter().map(Change::lease).filter(|lease| lease.key.kind == BindKind::Prefix) {
            let here = |port: &Port| *port.name == *lease.key.tunnel;
            let had = self.ports.iter().any(|port| port.routes.leads(lease.prefix));
            // The kernel has room for one: that of the link which the client has left goes first.
            for port in self.ports.iter_mut().filter(|port| !here(port)) {
                say(port.routes.put(lease.prefix, None).await);
            }
            let is_there = self.shelf.get(lease.prefix).is_some_and(|now| now.key == lease.key);
            let wanted = way(lease).filter(|_| is_there);
            let Some(port) = self.ports.iter_mut().find(|port| here(port)) else { continue };
            if let Err(why) = port.routes.put(lease.prefix, wanted).await {
                tracing::warn!("{why}");
                self.unrouted += 1;
                failed.extend(wanted.map(|_| lease.prefix));
                if wanted.is_some() && !had {
                    self.shelf.refuse(lease.prefix);
                }
            }
        }
        failed
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
                    tracing::warn!("there is no such binding to remove");
                }
                self.submit();
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

    /// Reads the configuration again; if it is wrong, or gives out what is somebody's elsewhere, all stays as it is.
    ///
    /// # Errors
    /// Why it stays as it is, which has been put into the log.
    pub async fn reload(&mut self, elsewhere: &Elsewhere) -> anyhow::Result<()> {
        let mut files = self.start.files.clone();
        let read = files.read().and_then(|conf| plan::check(&conf, elsewhere).map(|()| conf));
        match read {
            Ok(conf) => self.start.conf = conf,
            Err(why) => {
                tracing::error!("the configuration stays as it is: {why:#}");
                return Err(why);
            }
        }
        self.start.files = files;
        put_dns(&mut self.start);
        let mut is_news = false;
        for port in &mut self.ports {
            is_news |= port.configure(&self.start.conf, &self.duid);
        }
        let before: BTreeMap<Ipv6Prefix, Lease> = self.shelf.iter().map(|l| (l.prefix, l.clone())).collect();
        self.shelf.configure(Plan::new(&self.start.conf, self.sites()));
        self.submit();
        self.route_all().await;
        self.tell(&before, is_news);
        tracing::info!(event = "reloaded", "the configuration has been read again");
        Ok(())
    }

    /// After a reload: who has lost something, or would have other lifetimes now, is to renew; if only information is other
    /// than before, all are to ask for that.
    fn tell(&mut self, before: &BTreeMap<Ipv6Prefix, Lease>, is_news: bool) {
        let differs = |lease: &&Lease| {
            let now = self.shelf.get(lease.prefix).map(|_| self.shelf.lifetimes(lease.prefix));
            now.is_none_or(|life| life.is_some_and(|life| life != lease.life))
        };
        let touched: Vec<(Called, Ipv6Addr)> = before.values().filter(differs).filter_map(called).collect();
        if is_news {
            self.call(false);
        }
        self.call_these(touched, true);
    }

    /// Takes back what is only good while it runs. Leases stay on the disk, and their routes in the kernel.
    pub async fn close(mut self) {
        while self.writing.is_some() {
            match self.scribe.done().await {
                Some(done) => self.written(done).await,
                None => break,
            }
            if self.failing.is_some() {
                break;
            }
        }
        self.say_counts();
        if let Some(first) = self.ports.first_mut() {
            first.routes.sink(BTreeSet::new()).await;
        }
        self.scribe.close();
    }
}

fn say(done: Result<(), LinkError>) {
    if let Err(why) = done {
        tracing::warn!("{why}");
    }
}

/// The client of a lease, if it lets itself be told of changes, and where it is.
fn called(lease: &Lease) -> Option<(Called, Ipv6Addr)> {
    let who = Called { tunnel: lease.key.tunnel.clone(), client: lease.key.client.clone() };
    Some((who, lease.reach?))
}

type Listening = (Option<Control>, Option<mpsc::Receiver<Ordered>>);

fn listen(at: Option<(std::net::SocketAddr, Zeroizing<Vec<u8>>)>) -> anyhow::Result<Listening> {
    let Some((at, secret)) = at else { return Ok((None, None)) };
    let (control, orders) = Control::start(at, Side::Server, secret).map_err(|why| {
        anyhow!("cannot listen for dhcp6ctl at {at}: {why}; another dhcp6s may: choose another port with -p, or none with -k /dev/null")
    })?;
    Ok((Some(control), Some(orders)))
}

/// Relay-forward (RFC 8415 section 7.3).
const RELAY_FORWARD: u8 = 12;

fn put_dns(start: &mut Start) {
    if !start.dns.is_empty() {
        start.conf.options.addresses.insert(code::DNS_SERVERS, start.dns.clone());
    }
}

fn log(changes: &[Change]) {
    for change in changes {
        match change {
            Change::Has(Lease { key, prefix, life, .. }) => {
                let (link, client, seconds) = (&key.tunnel, hex(&key.client), life.valid);
                tracing::info!(event = "bound", %link, %prefix, number = key.number, client, seconds);
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
