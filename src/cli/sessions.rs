//! `sixway bench sessions`: many clients of a control protocol at once, and what they saw of the server.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, ValueEnum};
use serde::Serialize;
use tokio::sync::mpsc;

use super::connect::kind_of;
use super::{password, print_line};
use crate::load::dtcp::Users;
use crate::load::keep::{Kept, keep_all};
use crate::load::sockets::DtcpDial;
use crate::load::tsp::{self, TspDial};
use crate::load::{
    Dial, Memory, Round, keep_pace, memory, open_all, open_into, ping_all, processor, resident,
};
use crate::privileges::raise_open_files;

/// Descriptors of this process beside those of its connections.
const FILES_BESIDE: u64 = 64;
/// How often a client of a storm comes, at most.
const TRIES: u32 = 8;
/// What is asked of the server is at rest after so long.
const REST: Duration = Duration::from_millis(500);

/// The protocols that there are clients for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Protocol {
    /// Dynamic Tunnel Configuration Protocol, over TCP
    Dtcp,
    /// Tunnel Setup Protocol, over UDP, all clients out of one socket; nobody says good-bye
    Tsp,
}

/// Arguments of `sixway bench sessions`.
#[derive(Debug, Args)]
#[command(
    after_help = "Without --rate all sessions are opened as fast as the server lets them, pinged, held, and dropped. With --rate they come at that pace for --seconds, and each is given back at once.\n\nOne address for each client needs addresses: in a namespace of its own,\n  ip route add local 10.64.0.0/10 dev lo\nmakes 10.64.0.1 and the next four million its own. `scripts/bench-control` does all that.\n\nExample: sixway bench sessions 10.0.0.1:20200 --count 1000 --from 10.64.0.1 --users u --secret-file secret"
)]
pub struct SessionsArgs {
    /// The server, as 10.0.0.1:20200
    #[arg(value_name = "ADDRESS:PORT", required_unless_present = "in_memory")]
    server: Option<SocketAddrV4>,
    /// By which protocol
    #[arg(long, value_name = "NAME", default_value = "dtcp")]
    protocol: Protocol,
    /// How many clients
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    count: u32,
    /// The first client's address; the next ones have the next addresses
    #[arg(long, value_name = "ADDRESS")]
    from: Option<Ipv4Addr>,
    /// How users' names begin: u is u0, u1, ...
    #[arg(long, value_name = "NAME", default_value = "u")]
    users: String,
    /// Read the secret of all users from this file
    #[arg(long, value_name = "FILE", required_unless_present = "in_memory")]
    secret_file: Option<PathBuf>,
    /// What type of tunnel
    #[arg(long = "type", value_name = "TYPE", default_value = "network")]
    kind: String,
    /// TSP: the prefix length of the network that each wants [default: none]
    #[arg(long, value_name = "BITS", value_parser = clap::value_parser!(u8).range(1..=128))]
    prefix: Option<u8>,
    /// TSP: seconds between signs of life that each asks for; with --hold they are sent
    #[arg(long, value_name = "S", default_value_t = 30, value_parser = clap::value_parser!(u32).range(0..=3600))]
    keepalive: u32,
    /// Clients that connect at the same time
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    at_once: u32,
    /// Hold the sessions for so many seconds after the last has come, and ping them all again and again
    #[arg(long, value_name = "S", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=3600))]
    hold: u32,
    /// Then drop all connections at once, and let all clients come back at once
    #[arg(long)]
    storm: bool,
    /// So many setups a second instead, each given back at once
    #[arg(long, value_name = "N", conflicts_with_all = ["hold", "storm"], value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: Option<u32>,
    /// With --rate: for how long
    #[arg(long, value_name = "S", default_value_t = 5, requires = "rate", value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// The server's process, whose memory is read before and after
    #[arg(long, value_name = "PID")]
    server_pid: Option<u32>,
    /// Server and clients in this process, without a socket: more sessions than a process may open
    #[arg(long, conflicts_with_all = ["server", "from", "rate", "hold", "storm", "server_pid"])]
    in_memory: bool,
    /// With --in-memory: where the store is made for the time [default: the folder for temporary files]
    #[arg(long, value_name = "FOLDER", requires = "in_memory")]
    folder: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What was seen, as it is printed.
#[derive(Debug, Default, Serialize)]
struct Seen {
    #[serde(skip_serializing_if = "Option::is_none")]
    setups: Option<Round>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pings: Option<Round>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<Memory>,
    #[serde(skip_serializing_if = "Option::is_none")]
    storm: Option<Round>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kept: Option<Kept>,
    /// Processor seconds of the server for each second, while sessions came and while they were held.
    #[serde(skip_serializing_if = "Option::is_none")]
    processor: Option<[f64; 2]>,
}

/// Lets the clients come, and prints what they saw.
pub fn run(args: &SessionsArgs) -> anyhow::Result<()> {
    let seen = if args.in_memory { in_memory(args)? } else { over_sockets(args)? };
    if args.json {
        print_line(&serde_json::to_string(&seen)?);
        return Ok(());
    }
    let rounds = [("setups", &seen.setups), ("pings", &seen.pings), ("storm", &seen.storm)];
    for (what, round) in rounds {
        round.iter().for_each(|round| print_line(&round.told(what)));
    }
    if let Some(Kept { signs, least, every }) = &seen.kept {
        print_line(&signs.told(&format!("signs of life, one in {every} s at most")));
        print_line(&format!("  every session had {least} answers or more"));
    }
    if let Some([coming, held]) = seen.processor {
        print_line(&format!(
            "processor: {coming:.2} of a core while they came, {held:.2} while they were held"
        ));
    }
    if let Some(Memory { before_kib, with_kib, a_session }) = seen.memory {
        print_line(&format!(
            "memory: {before_kib} KiB before, {with_kib} KiB with them: {a_session} octets a session"
        ));
    }
    Ok(())
}

fn in_memory(args: &SessionsArgs) -> anyhow::Result<Seen> {
    let folder = args.folder.clone().unwrap_or_else(std::env::temp_dir);
    let memory::Figures { setups, pings, memory } = memory::hold(args.count, &folder)?;
    Ok(Seen { setups: Some(setups), pings: Some(pings), memory, ..Seen::default() })
}

fn over_sockets(args: &SessionsArgs) -> anyhow::Result<Seen> {
    let server = args.server.context("name the server")?;
    let secret = password::from_file(args.secret_file.as_deref().context("--secret-file is needed")?)?;
    if args.protocol == Protocol::Dtcp {
        raise_files(args)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match args.protocol {
        Protocol::Dtcp => {
            let users =
                Users { name: args.users.clone(), secret: secret.to_vec(), kind: kind_of(&args.kind)? };
            let dial = Arc::new(DtcpDial { server, from: args.from, users });
            Ok(runtime.block_on(come(args, &dial)))
        }
        Protocol::Tsp => runtime.block_on(async {
            let users = tsp::Users {
                name: args.users.clone(),
                secret: secret.to_vec(),
                prefix: args.prefix,
                keepalive: args.keepalive,
            };
            let from = args.from.context("clients by UDP need --from: each has an address of its own")?;
            let dial = TspDial::open(server, from, users).context("cannot open a UDP socket")?;
            let dial = Arc::new(dial);
            let is_held = args.hold > 0 && args.keepalive > 0;
            Ok(if is_held { stay(args, &dial).await } else { come(args, &dial).await })
        }),
    }
}

/// Room for a connection each.
fn raise_files(args: &SessionsArgs) -> anyhow::Result<()> {
    let most = if args.rate.is_some() { 8192 } else { args.count.into() };
    let (_, files) = raise_open_files(most + FILES_BESIDE)?;
    anyhow::ensure!(
        files >= most + FILES_BESIDE,
        "{most} connections need a limit of {} open files, and this process may have {files}: ask for fewer, or raise it \
         (`ulimit -n`)",
        most + FILES_BESIDE
    );
    Ok(())
}

/// Sessions that send signs of life from when they come until all have been held for long enough.
async fn stay<D: Dial>(args: &SessionsArgs, dial: &Arc<D>) -> Seen {
    let before = args.server_pid.and_then(resident);
    let used = || Some((Instant::now(), processor(args.server_pid?)?));
    let (open, opened) = mpsc::unbounded_channel();
    let story = async {
        let begun = used();
        let setups = open_into(dial, args.count, args.at_once, 1, open).await;
        let came = used();
        tokio::time::sleep(Duration::from_secs(args.hold.into())).await;
        (setups, [share(begun, came), share(came, used())])
    };
    let every = Duration::from_secs(args.keepalive.into());
    let (sessions, kept, (setups, shares)) = keep_all::<D, _>(opened, every, story).await;
    let with = args.server_pid.and_then(resident);
    let memory = before.zip(with).map(|(before, with)| Memory::of(before, with, sessions.len()));
    let processor = shares[0].zip(shares[1]).map(|(coming, held)| [coming, held]);
    Seen { setups: Some(setups), kept: Some(kept), memory, processor, ..Seen::default() }
}

/// Processor seconds for each second between two moments.
fn share(from: Option<(Instant, Duration)>, to: Option<(Instant, Duration)>) -> Option<f64> {
    let ((begin, before), (end, after)) = from.zip(to)?;
    Some(after.saturating_sub(before).as_secs_f64() / (end - begin).as_secs_f64().max(1e-9))
}

async fn come<D: Dial>(args: &SessionsArgs, dial: &Arc<D>) -> Seen {
    if let Some(rate) = args.rate {
        let setups = keep_pace(dial, args.count, rate, args.seconds).await;
        return Seen { setups: Some(setups), ..Seen::default() };
    }
    let rss = || args.server_pid.and_then(resident);
    let before = rss();
    let (mut sessions, setups) = open_all(dial, args.count, args.at_once, 1).await;
    let opened = Instant::now();
    tokio::time::sleep(REST).await;
    let mut pings = ping_all::<D>(&mut sessions).await;
    while opened.elapsed() < Duration::from_secs(args.hold.into()) {
        tokio::time::sleep(REST).await;
        pings = ping_all::<D>(&mut sessions).await;
    }
    let memory = before.zip(rss()).map(|(before, with)| Memory::of(before, with, sessions.len()));
    let mut storm = None;
    if args.storm {
        drop(std::mem::take(&mut sessions));
        let (_held, round) = open_all(dial, args.count, args.count, TRIES).await;
        storm = Some(round);
    }
    Seen { setups: Some(setups), pings: Some(pings), memory, storm, ..Seen::default() }
}
