//! `sixway connect tsp://`: a tunnel from a TSP server, for as long as this runs.
//!
//! Has a broker found that gives one ([`super::tsp_ask`]), runs the router with what was granted, or a script in gogoc's
//! style beside it, sends signs of life, and comes back when the tunnel dies. At half its lifetime the tunnel is asked for
//! again beside the running router, which goes on whatever the answer is. A tunnel in UDP runs from the port that has asked
//! for it: the socket that talked is closed, and the router listens there. What was changed is put back at the end.

use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use anyhow::bail;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::connect::{Signals, check_here, ended, pause};
use super::pd::{self, Pd};
use super::pinger::Pinger;
use super::print_line;
use super::run::start_log;
use super::tsp_ask::{Asker, Won};
use super::tsp_wish::{Job, Target};
use crate::config::Config;
use crate::dtcp::client::Backoff;
use crate::router::{Router, Start, Voice, hold_signals};
use crate::tsp::client::{End, Granted};
use crate::tsp::codec::Mode;
use crate::tsp::keepalive::{Keepalive, Sign};
use crate::tsp::setup::{Occasion, Side, configuration, variables};

/// A lifetime is not taken to be shorter than this.
const SHORTEST_LIFE: Duration = Duration::from_secs(60);
/// How long a tunnel must have been up for the next failure to be the first.
const SETTLED: Duration = Duration::from_secs(60);

/// Finds a tunnel, keeps it, and comes back, until a signal or a refusal.
pub(super) fn keep(job: Job) -> anyhow::Result<()> {
    start_log(None);
    hold_signals()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut keeper = Keeper { job, up: None, pd: Pd::default(), was_up: false, started: Instant::now() };
    runtime.block_on(async {
        let kept = keeper.keep().await;
        keeper.pd.finish().await;
        let put_back = keeper.take_down().await;
        kept.and(put_back)
    })
}

/// A tunnel that is set up.
struct Up {
    config: String,
    router: Router,
    voice: tokio::sync::Mutex<Voice>,
    /// What the script was told, for when it goes.
    farewell: Vec<(&'static str, String)>,
}

struct Keeper {
    job: Job,
    up: Option<Up>,
    pd: Pd,
    /// Whether a tunnel was ever set up: then it can be, and what fails now may work later.
    was_up: bool,
    started: Instant,
}

/// How one life of the tunnel ended.
enum Left {
    Stopped,
    Anew,
    Ended(End),
    /// It goes on, as another one.
    Changed(Box<Won>),
}

impl Keeper {
    fn asker(&self) -> Asker<'_> {
        Asker { job: &self.job, started: self.started }
    }

    async fn keep(&mut self) -> anyhow::Result<()> {
        let mut signals = Signals::new()?;
        if !self.job.print {
            check_here(&self.job.tun, self.job.socket.as_deref())?;
            self.pd = Pd::start(self.job.pd.take(), &signals.asked())?;
        }
        let (first, most) = self.job.delays;
        let mut backoff = Backoff::between(first, most);
        let Target { place, mode, .. } = &self.job.target;
        tracing::info!("asking {place} for a tunnel of type {}", mode.name());
        loop {
            let why = match self.live(&mut signals, &mut backoff).await? {
                Left::Stopped => return Ok(()),
                Left::Anew | Left::Changed(_) => continue,
                Left::Ended(End::Lost(why)) if self.job.again && !self.job.print => why,
                Left::Ended(end) => bail!("{end}"),
            };
            if pause(&why, &mut backoff, &mut signals).await {
                return Ok(());
            }
        }
    }

    /// From the first question to the end of the tunnel.
    async fn live(&mut self, signals: &mut Signals, backoff: &mut Backoff) -> anyhow::Result<Left> {
        let asker = self.asker();
        let mut won = tokio::select! {
            found = asker.find() => match found? {
                Ok(won) => won,
                Err(end) => return Ok(Left::Ended(end)),
            },
            stop = signals.ends() => return Ok(if stop { Left::Stopped } else { Left::Anew }),
        };
        let began = Instant::now();
        loop {
            match self.set_up(&won).await {
                Ok(false) => self.was_up = true,
                Ok(true) => return Ok(Left::Stopped),
                // A port that is taken for a moment, a script that fails once.
                Err(why) if self.was_up => return Ok(Left::Ended(End::Lost(format!("{why:#}")))),
                Err(why) => return Err(why),
            }
            let left = self.watch(&won, signals).await?;
            if began.elapsed() > SETTLED {
                backoff.reset();
            }
            match left {
                Left::Changed(other) => won = *other,
                Left::Stopped | Left::Anew | Left::Ended(_) => return Ok(left),
            }
        }
    }

    fn side(&self, local: SocketAddrV4, server: SocketAddrV4) -> Side {
        let Job { target, tun, routes, script, .. } = &self.job;
        let (tun, scripted) = (tun.clone(), script.is_some());
        Side { local, server, tun, mtu: target.mtu, default_route: *routes, scripted }
    }

    /// The router's configuration for what was won.
    fn text(&self, won: &Won) -> String {
        let mut text = configuration(&won.granted, &self.side(won.local, won.server));
        if let Some(socket) = &self.job.socket {
            text += &format!("\n[admin]\nsocket = \"{}\"\n", socket.display());
        }
        text
    }

    /// Whether that is just the tunnel that runs.
    fn is_up(&self, text: &str) -> bool {
        self.up.as_ref().is_some_and(|up| up.config == text && !up.router.has_ended())
    }

    /// Runs what was granted; true: it was only to be shown.
    async fn set_up(&mut self, won: &Won) -> anyhow::Result<bool> {
        let text = self.text(won);
        if self.job.print {
            text.lines().for_each(print_line);
            pd::print(self.job.pd.as_ref());
            return Ok(true);
        }
        if self.is_up(&text) {
            tracing::info!("the tunnel is renewed, with the same addresses");
            self.pd.again().await;
            return Ok(false);
        }
        self.take_down().await?;
        let Won { granted, local, server, .. } = won;
        let side = self.side(*local, *server);
        let config = Config::parse("what the server granted", &text)?;
        let (client, line) = self.pd.line("tsp");
        let start = Start { config, reread: None, prepared: None, signals: false, client };
        let (router, voice) = Router::start_speaking(start)?;
        let mut up = Up { config: text, router, voice: tokio::sync::Mutex::new(voice), farewell: Vec::new() };
        if let Some(script) = &self.job.script {
            up.farewell = variables(granted, &side, &script.house, Occasion::Down);
            let told = variables(granted, &side, &script.house, Occasion::Up);
            if let Err(why) = script.run(&told).await {
                let _the_script_is_what_failed = up.router.stop();
                return Err(why);
            }
        }
        tracing::info!("the tunnel is up: {}", shown(granted, *server));
        self.up = Some(up);
        self.pd.up(line).await;
        Ok(false)
    }

    /// Puts back what [`Self::set_up`] has done.
    async fn take_down(&mut self) -> anyhow::Result<()> {
        let Some(Up { router, farewell, .. }) = self.up.take() else { return Ok(()) };
        let said = match &self.job.script {
            Some(script) => script.run(&farewell).await,
            None => Ok(()),
        };
        router.stop()?;
        said
    }

    /// Keeps the tunnel alive until it is dead, changes, or has to go.
    async fn watch(&self, won: &Won, signals: &mut Signals) -> anyhow::Result<Left> {
        let pinger = self.pinger(&won.granted);
        let is_asked = pinger.is_some();
        tokio::select! {
            () = self.stay_alive(pinger) => {
                tracing::warn!("the server does not answer through the tunnel; asking for it again");
                Ok(if self.job.again { Left::Anew } else { Left::Ended(End::Lost("the tunnel is dead".to_owned())) })
            }
            left = self.renew(won, is_asked) => Ok(left),
            () = ended(|| self.up.as_ref().is_some_and(|up| up.router.has_ended())) => {
                bail!("the router has ended by itself; its log says why")
            }
            stop = signals.ends() => Ok(if stop { Left::Stopped } else { Left::Anew }),
        }
    }

    fn pinger(&self, granted: &Granted) -> Option<(Pinger, Duration)> {
        let asked = granted.keepalive.1.or(granted.server_v6);
        let (interval @ 1.., Some(whom)) = (granted.keepalive.0, asked) else { return None };
        match Pinger::to(whom, granted.client_v6, &self.job.tun) {
            Ok(pinger) => Some((pinger, Duration::from_secs(u64::from(interval)))),
            Err(why) => {
                tracing::warn!("no signs of life are sent, so the server may end the tunnel: {why:#}");
                None
            }
        }
    }

    /// Asks for the tunnel again at half its lifetime, and again. Whatever is answered, a tunnel that works goes on: it ends by
    /// its signs of life alone, or with its lifetime where there are none (`is_asked`).
    async fn renew(&self, won: &Won, is_asked: bool) -> Left {
        let (first, most) = self.job.delays;
        let (mut backoff, mut since, mut latest) = (Backoff::between(first, most), Instant::now(), None);
        loop {
            // Nobody in particular is somebody else the next time: only signs of life keep such a tunnel.
            let granted = &latest.as_ref().unwrap_or(won).granted;
            let lasts = granted.lifetime.filter(|_| !self.job.target.is_anonymous());
            let Some(lasts) = lasts.map(|lasts| lasts.max(SHORTEST_LIFE)) else {
                return std::future::pending().await;
            };
            tokio::time::sleep_until((since + lasts / 2).into()).await;
            match self.ask_again(won).await {
                Ok(new) if self.is_same(won, &new) => {
                    tracing::info!("the tunnel is renewed, with the same addresses");
                    self.pd.again().await;
                    (since, latest) = (Instant::now(), Some(new));
                    backoff.reset();
                }
                Ok(new) => return Left::Changed(Box::new(new)),
                Err(why) => {
                    if since.elapsed() > lasts && !is_asked {
                        return Left::Ended(End::Lost(why));
                    }
                    let wait = backoff.wait(rand::random());
                    tracing::warn!(
                        "the tunnel is not renewed: {why}; it goes on, trying again in {:.1} s",
                        wait.as_secs_f32()
                    );
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    async fn ask_again(&self, won: &Won) -> Result<Won, String> {
        let Some(up) = self.up.as_ref().filter(|_| won.granted.mode == Mode::V6UdpV4) else {
            let found = self.asker().find().await;
            return found.map_err(|why| format!("{why:#}"))?.map_err(|end| end.to_string());
        };
        let asked = self.asker().ask_again(won, &mut *up.voice.lock().await).await;
        asked.map_err(|end| end.to_string())
    }

    /// Whether nothing has to be changed here for the new tunnel.
    fn is_same(&self, won: &Won, new: &Won) -> bool {
        self.is_up(&self.text(new)) && new.granted.keepalive == won.granted.keepalive
    }

    /// Sends signs of life; returns when nobody answers any more.
    async fn stay_alive(&self, pinger: Option<(Pinger, Duration)>) {
        let Some((pinger, interval)) = pinger else { return std::future::pending().await };
        let rng = StdRng::from_rng(&mut rand::rng());
        let mut keepalive = Keepalive::new(interval, rng, self.started.elapsed());
        loop {
            let due = self.started + keepalive.poll_timeout();
            tokio::select! {
                sequence = pinger.answer() => keepalive.handle_answer(sequence, self.started.elapsed()),
                () = tokio::time::sleep_until(due.into()) => match keepalive.poll(self.started.elapsed()) {
                    Some(Sign::Ask(sequence)) => pinger.ask(sequence).await,
                    Some(Sign::Dead) => return,
                    None => {}
                },
            }
        }
    }
}

/// What the server gave, for the log.
fn shown(granted: &Granted, server: SocketAddrV4) -> String {
    let Granted { mode, client_v6, prefix, .. } = granted;
    let network = prefix.map(|(addr, len)| format!(" and {addr}/{len}")).unwrap_or_default();
    format!("{client_v6}{network} by {}, {}", server.ip(), mode.name())
}
