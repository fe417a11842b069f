//! The whole thing in one process: a client, a router and an IPv6 host behind it, each in a network
//! namespace of its own, joined by both encapsulations in turn; ping and TCP across, measured.
//!
//! ```text
//!  client                        router                          host
//!  10.71.0.2 ──── IPv4, 1500 ──── 10.71.0.1
//!  fd00:2:0:1::2 ══ tunnel ══════ fd00:2::1   fd00:1::1 ── IPv6 ── fd00:1::2
//! ```
//!
//! Everything lives in private namespaces that die with the process, so even `kill -9` leaves nothing
//! behind. Refuses to know how a router is made: [`Tunnelers`] starts one from configuration text.

pub mod config;
pub(crate) mod interrupt;
mod ping;
mod progress;
pub mod rights;
mod room;
mod scratch;
mod stream;
pub mod table;
pub mod tunnels;
mod wiring;

use std::path::{Path, PathBuf};
use std::thread::Scope;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Serialize;

use config::Encap;
use ping::Pinger;
use progress::Progress;
use room::Room;
use scratch::Scratch;
use stream::Direction;
use wiring::Lab;

/// Starts routers for the demo.
pub trait Tunnelers: Sync {
    /// Starts a router from its configuration, on a thread inside the namespace it shall serve; threads
    /// started here inherit that. What is returned stops the router, wholly: it is called on the same
    /// thread, and the device's name must be free afterwards.
    ///
    /// # Errors
    /// Whatever keeps the router from starting.
    fn start(&self, toml: &str) -> anyhow::Result<Stop>;

    /// What the counters of the router behind this admin socket say, for a human who wonders why no
    /// packet comes across.
    fn counters(&self, admin_socket: &Path) -> String;
}

/// Stops a router and waits until it has stopped.
pub type Stop = Box<dyn FnOnce() + Send>;

/// What the user asked for.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long TCP runs in each direction, in seconds.
    pub seconds: u8,
    /// Whether to draw a progress bar on stderr, where that is a terminal.
    pub progress: bool,
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// One for each encapsulation.
    pub runs: Vec<Run>,
}

/// What was measured through one encapsulation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Run {
    /// Which.
    pub encap: Encap,
    /// Median round-trip time in microseconds; `None` when no ping was answered.
    pub ping_us: Option<f64>,
    /// TCP payload from client to host, in 10^9 bits a second.
    pub up_gbps: f64,
    /// TCP payload from host to client, in 10^9 bits a second.
    pub down_gbps: f64,
    /// Pings without an answer, of [`PINGS`].
    pub lost: u32,
}

/// How many pings are counted.
pub const PINGS: u32 = 50;

/// Enters private namespaces and measures both encapsulations there.
///
/// Must be called before the process has started any thread. The process stays in the namespaces,
/// and ends with code 128 + signal when SIGINT, SIGTERM or SIGHUP comes.
///
/// # Errors
/// [`rights::RightsError`] with the command that helps; otherwise what failed, on which end.
pub fn run(options: Options, tunnelers: &dyn Tunnelers) -> anyhow::Result<Report> {
    let signals = interrupt::hold()?;
    rights::enter()?;
    let scratch = Scratch::create()?;
    let streams = config::ENCAPS.len() as u32 * 2;
    let progress = Progress::new(options.progress, Duration::from_secs(options.seconds.into()) * streams);
    interrupt::watch(signals, {
        let (progress, scratch) = (progress.clone(), scratch.clone());
        move || {
            progress.clear();
            scratch.remove();
        }
    })?;
    let measured =
        std::thread::scope(|scope| measure_all(scope, options, tunnelers, &progress, scratch.path()));
    progress.clear();
    scratch.remove();
    measured
}

fn measure_all<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    options: Options,
    tunnelers: &'env dyn Tunnelers,
    progress: &Progress,
    scratch: &Path,
) -> anyhow::Result<Report> {
    let lab = Lab::build(scope)?;
    let mut runs = Vec::new();
    for encap in config::ENCAPS {
        progress.say(encap.name(), "starting both ends");
        let ends = Ends::start(&lab, tunnelers, encap, scratch)?;
        let measured = measure(&lab, &ends, encap, options, progress);
        ends.stop(&lab)?;
        runs.push(measured.with_context(|| format!("through {}", encap.name()))?);
    }
    Ok(Report { runs })
}

fn measure(
    lab: &Lab,
    ends: &Ends,
    encap: Encap,
    options: Options,
    progress: &Progress,
) -> anyhow::Result<Run> {
    let mut pinger = lab.client.run(|| Pinger::to(config::HOST))??;
    wait_for_answer(&mut pinger, ends)?;
    progress.say(encap.name(), "ping");
    let pings = pinger.series(PINGS)?;
    let time = Duration::from_secs(options.seconds.into());
    let show = |direction: Direction, bits| progress.advance(encap.name(), direction.name(), bits);
    let up_gbps = stream::measure(lab, Direction::Up, time, |bits| show(Direction::Up, bits))?;
    let down_gbps = stream::measure(lab, Direction::Down, time, |bits| show(Direction::Down, bits))?;
    Ok(Run { encap, ping_us: pings.median_us, up_gbps, down_gbps, lost: pings.lost })
}

fn wait_for_answer(pinger: &mut Pinger, ends: &Ends) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if pinger.ping(Duration::from_millis(100))?.is_some() {
            return Ok(());
        }
    }
    bail!(
        "no ping from the client has been answered by the host within {} s\n{}",
        PATIENCE.as_secs(),
        ends.counters()
    )
}

/// The two running ends of a tunnel.
struct Ends<'env> {
    tunnelers: &'env dyn Tunnelers,
    stop_client: Stop,
    stop_router: Stop,
    client_socket: PathBuf,
    router_socket: PathBuf,
}

impl<'env> Ends<'env> {
    fn start(
        lab: &Lab<'env>,
        tunnelers: &'env dyn Tunnelers,
        encap: Encap,
        scratch: &Path,
    ) -> anyhow::Result<Self> {
        let router_socket = scratch.join("router.sock");
        let client_socket = scratch.join("client.sock");
        let stop_router = start_in(&lab.router, tunnelers, config::router(encap, &router_socket))?;
        match start_in(&lab.client, tunnelers, config::client(encap, &client_socket)) {
            Ok(stop_client) => Ok(Self { tunnelers, stop_client, stop_router, client_socket, router_socket }),
            Err(why) => {
                lab.router.run(stop_router)?;
                Err(why)
            }
        }
    }

    fn counters(&self) -> String {
        let of = |name, socket: &Path| {
            let text = self.tunnelers.counters(socket);
            format!("counters of the {name}:\n{}\n", text.trim_end())
        };
        of("client", &self.client_socket) + &of("router", &self.router_socket)
    }

    fn stop(self, lab: &Lab<'env>) -> anyhow::Result<()> {
        lab.client.run(self.stop_client)?;
        lab.router.run(self.stop_router)
    }
}

fn start_in<'env>(room: &Room<'env>, tunnelers: &'env dyn Tunnelers, toml: String) -> anyhow::Result<Stop> {
    let started = room.run(move || tunnelers.start(&toml))?;
    started.with_context(|| format!("cannot start the {}'s end of the tunnel", room.name()))
}

/// How long a fresh tunnel may take until it carries its first ping.
const PATIENCE: Duration = Duration::from_secs(5);
