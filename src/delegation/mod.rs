//! A prefix delegated inside a tunnel, and what is done with it on this host: `sixway connect --pd`.
//!
//! ```text
//!   server ═══ tunnel ═══ router ── line ── client ── lease ──► addresses on eth1 ..., black hole, radvd.conf, script
//!                                              ▲
//!                                          dhcp6ctl
//! ```
//!
//! What it is at `sixway status` shows, through the router. The client and what it has put on this host outlive the router: a tunnel that comes back is asked whether the prefix is
//! still good there, and nothing is taken away meanwhile. Everything is taken back before the prefix is given back.

pub mod line;
pub mod plan;
pub mod radvd;
pub mod report;
pub mod silence;
mod state;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::{Notify, mpsc, oneshot};
use zeroize::Zeroizing;

use self::line::Line;
use self::plan::Wish;
use self::report::Report;
use self::silence::Silence;
use self::state::State;
use crate::dhcp6ctl::codec::Order;
use crate::dhcp6ctl::server::{Control, Ordered};
use crate::dhcp6ctl::session::Side;
use crate::dhcpv6::client::{Client, Ignored, Output, Wish as Asked};
use crate::dhcpv6::server::own_duid;
use crate::link::watch::Watch;
use crate::link::{FORWARDING_COMMAND, Forwarding, forwarding_state};

/// Words from whoever keeps the tunnel that may wait.
const WAITING: usize = 16;
/// News of interfaces come in twos and threes: so long is waited for the others.
const SETTLE: Duration = Duration::from_millis(200);
/// How often is looked after what is on interfaces, whether there is news or not.
const LOOK: Duration = Duration::from_secs(15);
/// How long a server may take to hear that its prefix comes back.
const GOODBYE: Duration = Duration::from_secs(3);

/// What a delegation is started with.
#[derive(Debug)]
pub struct Start {
    /// What is wanted.
    pub wish: Wish,
    /// The file with the client's DUID; made where there is none.
    pub duid: PathBuf,
    /// Whether that is the usual place, whose folder is made as well.
    pub is_usual: bool,
    /// Where dhcp6ctl is listened to, and the secret.
    pub control: Option<(SocketAddr, Zeroizing<Vec<u8>>)>,
}

/// A word from whoever keeps the tunnel.
enum Word {
    /// The tunnel is up, and this leads into it.
    Up(Line),
    /// The same tunnel has been granted anew.
    Again,
    /// It is all over.
    Finish(oneshot::Sender<()>),
}

/// A prefix that is asked for, kept and given back.
#[derive(Debug)]
pub struct Delegation {
    words: mpsc::Sender<Word>,
    report: Report,
}

impl Delegation {
    /// Gets everything ready; nothing is asked before [`Self::up`]. `stop` is told when dhcp6ctl wants the end. Needs a
    /// tokio runtime.
    ///
    /// # Errors
    /// The DUID's file, the control port or the kernel's configuration cannot be opened.
    pub fn start(start: Start, stop: Arc<Notify>) -> anyhow::Result<Self> {
        let Start { wish, duid: file, is_usual, control } = start;
        if let Some(folder) = file.parent().filter(|_| is_usual) {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        }
        let duid = own_duid(&file, rand::random())
            .with_context(|| format!("cannot keep the client's DUID in {}", file.display()))?;
        let control = match control {
            Some((at, secret)) => {
                let opened = Control::start(at, Side::Client, secret);
                Some(opened.with_context(|| {
                    format!("cannot listen for dhcp6ctl at {at}; --pd-ctl-port names another port")
                })?)
            }
            None => None,
        };
        warn_of_forwarding(&wish);
        let asked = Asked { duid, wants: wish.wants(), rapid_commit: true };
        let client = Client::new(asked, StdRng::from_rng(&mut rand::rng()));
        let (words, heard) = mpsc::channel(WAITING);
        let (control, orders) = control.unzip();
        let state = State::open(wish)?;
        let began = Instant::now();
        let report = Report::new(began);
        let keeper = Keeper {
            client,
            state,
            words: heard,
            line: None,
            _control: control,
            orders,
            stop,
            began,
            report: report.clone(),
            is_wanted: true,
            again: false,
            refused: String::new(),
            silence: Silence::default(),
            watch: Watch::open()?,
            look: LOOK,
            done: None,
        };
        tokio::spawn(keeper.run());
        Ok(Self { words, report })
    }

    /// What it shows of itself.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// The tunnel is up; this leads into it.
    pub async fn up(&self, line: Line) {
        self.tell(Word::Up(line)).await;
    }

    /// The tunnel that is up has been granted anew: its server may have forgotten what was delegated in it.
    pub async fn again(&self) {
        self.tell(Word::Again).await;
    }

    /// Takes everything back and gives the prefix back, while the tunnel is still up.
    pub async fn finish(self) {
        let (done, is_done) = oneshot::channel();
        self.tell(Word::Finish(done)).await;
        let _done_or_gone = is_done.await;
    }

    async fn tell(&self, word: Word) {
        // Its end is the end of the process.
        let _heard = self.words.send(word).await;
    }
}

fn warn_of_forwarding(wish: &Wish) {
    if !wish.to.is_empty() && matches!(forwarding_state(), Ok(Forwarding::Off)) {
        tracing::warn!(
            "the kernel does not forward IPv6, so hosts behind this one reach nobody; switch it on with \
             `{FORWARDING_COMMAND}`"
        );
    }
}

struct Keeper {
    client: Client<StdRng>,
    state: State,
    words: mpsc::Receiver<Word>,
    line: Option<Line>,
    /// Listens as long as it is held.
    _control: Option<Control>,
    orders: Option<mpsc::Receiver<Ordered>>,
    stop: Arc<Notify>,
    began: Instant,
    report: Report,
    /// False once dhcp6ctl has stopped the interface.
    is_wanted: bool,
    /// Whether it starts once all is given back.
    again: bool,
    /// What a server has said last of why it has nothing: it is not logged twice.
    refused: String,
    silence: Silence,
    /// News of the interfaces that have something of it.
    watch: Watch,
    /// When they are looked after.
    look: Duration,
    /// Who waits for the end, and how long.
    done: Option<(oneshot::Sender<()>, Instant)>,
}

impl Keeper {
    async fn run(mut self) {
        loop {
            self.carry_out().await;
            self.tell_of_silence();
            self.show();
            if self.done.as_ref().is_some_and(|(_, until)| *until <= Instant::now()) {
                return self.end().await;
            }
            let look = self.state.due().map_or(self.look, |due| due.min(self.look));
            let due = self.client.poll_timeout().into_iter().chain(self.silence.due()).chain([look]).min();
            let due = due.map(|due| self.began + due);
            let due = due.into_iter().chain(self.done.as_ref().map(|(_, until)| *until)).min();
            tokio::select! {
                word = self.words.recv() => match word {
                    Some(word) => self.take(word).await,
                    None => return self.end().await,
                },
                message = heard(&mut self.line) => self.hear(&message),
                ordered = next_order(&mut self.orders) => self.obey(ordered).await,
                _ = self.watch.next() => self.look = self.look.min(self.now() + SETTLE),
                () = until(due) => self.handle_timeout(look).await,
            }
        }
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    async fn handle_timeout(&mut self, look: Duration) {
        let now = self.now();
        if look <= now {
            self.state.look(now).await;
            self.look = now + LOOK;
        }
        self.client.handle_timeout(now);
    }

    /// Whoever asks in vain for a while says so, then rarely. What a server has said before is not why there is nothing now.
    fn tell_of_silence(&mut self) {
        let now = self.now();
        if matches!(self.client.view().doing, "idle" | "bound" | "informed") {
            return self.silence.end();
        }
        if !self.silence.tell(now) {
            return;
        }
        self.refused.clear();
        let (tries, since) = (self.silence.tries, self.silence.since.unwrap_or(now));
        let seconds = now.saturating_sub(since).as_secs();
        if self.client.lease().held.is_empty() {
            tracing::warn!(
                event = "unanswered",
                "nobody answers DHCPv6 in the tunnel: {tries} tries in {seconds} s; does the other end have [dhcpv6]? It is \
                 asked on"
            );
        } else {
            tracing::warn!(
                event = "unanswered",
                "the DHCPv6 server is silent: {tries} tries in {seconds} s; it is asked on, and what is delegated stays until its \
                 time is over"
            );
        }
    }

    async fn take(&mut self, word: Word) {
        let now = self.now();
        match word {
            Word::Up(line) => {
                self.line = Some(line);
                // Nobody has been asked in this tunnel.
                self.silence.end();
                // A new device has none of our addresses.
                self.state.forget_device();
                let lease = self.client.lease();
                self.state.put(lease, now).await;
                self.ask();
            }
            Word::Again => self.ask(),
            Word::Finish(done) => {
                self.again = false;
                self.done = Some((done, Instant::now() + GOODBYE));
                self.client.stop(now);
                self.end_if_idle();
            }
        }
    }

    fn ask(&mut self) {
        if self.is_wanted && self.done.is_none() {
            self.client.start(self.now());
        }
    }

    fn hear(&mut self, message: &[u8]) {
        self.report.count(report::heard(message));
        let taken = self.client.handle_message(message, self.now());
        // Who says that there is nothing has spoken, too.
        if matches!(taken, Ok(()) | Err(Ignored::Empty)) {
            self.silence.end();
        }
        if let Err(why) = taken {
            self.report.count(report::ignored(why));
            tracing::debug!("a DHCPv6 message is not taken: {why}");
        }
    }

    /// What dhcp6ctl wants. The connection closes when it has been taken up.
    async fn obey(&mut self, ordered: Ordered) {
        let here = self.state.wish().tun.clone();
        let now = self.now();
        tracing::info!(event = "ordered", order = ordered.order.to_string(), "dhcp6ctl");
        match &ordered.order {
            Order::Reload => self.client.renew(now),
            Order::Stop => self.stop.notify_one(),
            Order::Start(name) if name.as_str() == here => {
                (self.is_wanted, self.again) = (true, true);
                self.client.stop(now);
                self.start_if_idle();
            }
            Order::StopInterface(name) if name.as_str() == here => {
                (self.is_wanted, self.again) = (false, false);
                self.client.stop(now);
            }
            Order::Start(name) | Order::StopInterface(name) => {
                tracing::warn!("dhcp6ctl: nothing is asked on {}, only on {here}", name.as_str());
            }
            Order::Remove(_) => tracing::warn!("dhcp6ctl: a client has no bindings of others"),
        }
        self.carry_out().await;
    }

    /// One that was idle has said so long ago.
    fn start_if_idle(&mut self) {
        if self.again && self.client.is_idle() {
            self.again = false;
            self.client.start(self.now());
        }
    }

    fn end_if_idle(&mut self) {
        if self.client.is_idle()
            && let Some((_, until)) = &mut self.done
        {
            *until = Instant::now();
        }
    }

    async fn carry_out(&mut self) {
        while let Some(output) = self.client.poll_output() {
            match output {
                Output::Send(message) => self.send(message),
                Output::Have(lease) => {
                    self.refused.clear();
                    self.state.put(lease, self.began.elapsed()).await;
                }
                Output::Refused(why) if why != self.refused => {
                    tracing::warn!("the DHCPv6 server delegates nothing: {why}; it is asked again later");
                    self.refused = why;
                }
                Output::Refused(_) => {}
                Output::Idle => {
                    self.start_if_idle();
                    self.end_if_idle();
                }
            }
        }
    }

    fn send(&mut self, message: Vec<u8>) {
        self.report.count(report::sent(&message));
        let now = self.now();
        match &self.line {
            Some(line) => {
                self.silence.asked(now);
                line.say(message);
            }
            None => self.report.count(report::UNSENT),
        }
    }

    fn show(&self) {
        let asks = (self.client.view(), self.client.lease());
        self.report.show(asks, self.state.given(), &self.refused, self.silence);
    }

    async fn end(mut self) {
        self.state.put(crate::dhcpv6::client::Lease::default(), self.now()).await;
        if let Some((done, _)) = self.done.take() {
            let _waits_no_more = done.send(());
        }
    }
}

async fn heard(line: &mut Option<Line>) -> Vec<u8> {
    let message = match line {
        Some(line) => line.heard.recv().await,
        None => None,
    };
    match message {
        Some(message) => message,
        // The router has gone; another line will come.
        None => std::future::pending().await,
    }
}

async fn next_order(orders: &mut Option<mpsc::Receiver<Ordered>>) -> Ordered {
    let order = match orders {
        Some(orders) => orders.recv().await,
        None => None,
    };
    match order {
        Some(order) => order,
        None => std::future::pending().await,
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
