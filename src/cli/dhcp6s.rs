//! `dhcp6s`: the DHCPv6 server on one interface with the old program's flags, by its own name or as `sixway dhcp6s`.
//!
//! Without `-f` it goes to the background once it works, and logs to the system's log; what stands against it is said, and
//! told by the exit code, before.

use std::io::ErrorKind;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::level_filters::LevelFilter;
use zeroize::Zeroizing;

use super::background::{detach, into_background};
use super::pid_file::PidFile;
use super::print_line;
use super::syslog;
use crate::compat::ctlkey;
use crate::compat::dhcp6sconf::{ServerConf, Surroundings};
use crate::dhcp6ctl::{SERVER_KEY, SERVER_PORT};
use crate::dhcp6s::files::Files;
use crate::dhcp6s::here::{self, Here};
use crate::dhcp6s::idle;
use crate::dhcp6s::mend::mend;
use crate::dhcp6s::{Ended, Own, Server, Start, only_one_says_dns};
use crate::privileges::told_to_others;

/// Where the old program has its configuration.
const CONFIG: &str = "/etc/wide-dhcpv6/dhcp6s.conf";
/// Where it has its DUID, and ours its leases beside it.
const STATE: &str = "/var/lib/dhcpv6";
/// Where it says which process it is.
const PID_FILE: &str = "/var/run/dhcp6s.pid";

/// Arguments of `dhcp6s`.
#[derive(Debug, Args)]
#[command(
    after_help = "Files: /etc/wide-dhcpv6/dhcp6s.conf, /etc/wide-dhcpv6/dhcp6sctlkey, /var/lib/dhcpv6/dhcp6s_duid, /var/lib/dhcpv6/dhcp6s_leases_INTERFACE.db (leases outlive the process), /var/run/dhcp6s.pid.\n\nSIGHUP, and `dhcp6ctl -S reload`, read the configuration again; SIGTERM stops.\nSIGUSR1 has clients that let themselves be told ask anew (Reconfigure).\nExit codes: 0 stopped as it was told to, 1 anything else."
)]
pub struct Dhcp6sArgs {
    /// The interface whose link is served
    interface: String,
    /// Configuration file
    #[arg(short, value_name = "FILE", default_value = CONFIG)]
    config: PathBuf,
    /// Log what is done
    #[arg(short)]
    debug: bool,
    /// Log everything
    #[arg(short = 'D')]
    debug_more: bool,
    /// Stay in the foreground, and log to standard error
    #[arg(short)]
    foreground: bool,
    /// Key file of dhcp6ctl; without a key in it no commands are taken
    #[arg(short = 'k', value_name = "FILE", default_value = SERVER_KEY)]
    key_file: PathBuf,
    /// TCP port on ::1 that dhcp6ctl's commands are taken at
    #[arg(short = 'p', value_name = "PORT", default_value_t = SERVER_PORT)]
    control_port: u16,
    /// File for the process's number
    #[arg(short = 'P', value_name = "FILE", default_value = PID_FILE)]
    pid_file: PathBuf,
    /// Obsolete: a server for names; write 'option domain-name-servers ...;' into the configuration
    #[arg(short = 'n', value_name = "ADDRESS")]
    name_server: Vec<Ipv6Addr>,
    /// File of the server's own DUID
    #[arg(long, value_name = "FILE", default_value_os_t = Path::new(STATE).join("dhcp6s_duid"))]
    duid_file: PathBuf,
    /// File of leases [default: /var/lib/dhcpv6/dhcp6s_leases_INTERFACE.db]
    #[arg(long, value_name = "FILE")]
    lease_file: Option<PathBuf>,
    /// Put what is sound in a damaged file of leases into a new one, leave the damaged one beside it, and end
    #[arg(long)]
    mend_leases: bool,
    /// Say so on standard output when it works (used by the process that waits for it)
    #[arg(long, hide = true)]
    child: bool,
}

/// What to do where another has the pid file.
const SECOND: &str = "for a second link name other files and another port, as `-P /var/run/dhcp6s.eth2.pid -p 5548`, or have \
                      one `sixway run` serve all links: `interfaces` in its [dhcpv6]";

/// Serves until it is told to stop; without `-f` in a process of its own.
pub fn run(args: &Dhcp6sArgs) -> anyhow::Result<()> {
    let interface = &args.interface;
    if args.mend_leases {
        return mend_leases(args);
    }
    if !Here.has_interface(interface) {
        bail!("there is no interface '{interface}'; `ip link` names those that there are");
    }
    if !args.foreground && !args.child {
        // First here, where mistakes are seen.
        let (files, conf) = conf(args)?;
        let file = files.file().display().to_string();
        let silent = idle::silent(&conf, std::slice::from_ref(interface), &file);
        silent.iter().filter(|_| files.file().exists()).for_each(|what| eprintln!("dhcp6s: {what}"));
        return into_background("dhcp6s");
    }
    let level = match (args.debug_more, args.debug) {
        (true, _) => LevelFilter::DEBUG,
        (false, true) => LevelFilter::INFO,
        (false, false) => LevelFilter::WARN,
    };
    syslog::start("dhcp6s", level, args.foreground);
    let start = start(args)?;
    if start.files.file().exists() {
        start.say_silent_links();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(args, start))
}

/// The file of leases, from the root.
fn leases(args: &Dhcp6sArgs) -> PathBuf {
    let file = args.lease_file.clone().unwrap_or_else(|| usual_leases(&args.interface));
    std::path::absolute(&file).unwrap_or(file)
}

/// The file of the leases on an interface, unless another is named.
pub(super) fn usual_leases(interface: &str) -> PathBuf {
    Path::new(STATE).join(format!("dhcp6s_leases_{interface}.db"))
}

/// Says what has become of a damaged file of leases.
fn mend_leases(args: &Dhcp6sArgs) -> anyhow::Result<()> {
    let file = leases(args);
    let mended = mend(&file, &args.interface, (&here::boot(), here::uptime(), here::now()))?;
    let (file, leases) = (file.display(), mended.leases);
    print_line(&match mended.aside {
        None => format!("{file} is sound: {leases} leases; nothing was done to it"),
        Some(aside) => format!(
            "{file} has {leases} leases now. Lost: {}. Whoever had those is given something anew, and what they had may be \
             given to others before they know. The damaged file is {}; remove it when you need it no more.",
            mended.damage,
            aside.display()
        ),
    });
    Ok(())
}

/// The configuration; a file that is not there is an empty one, as ever.
fn conf(args: &Dhcp6sArgs) -> anyhow::Result<(Files, ServerConf)> {
    let mut files = Files::new(&args.config);
    let file = &args.config;
    let conf = match files.read() {
        Err(why)
            if why.downcast_ref::<std::io::Error>().is_some_and(|why| why.kind() == ErrorKind::NotFound) =>
        {
            tell(
                args,
                &format!(
                    "{} is not there, so nobody is given anything on {}: write it, then SIGHUP has it read",
                    file.display(),
                    args.interface
                ),
            );
            ServerConf::default()
        }
        read => read?,
    };
    if !args.name_server.is_empty() {
        only_one_says_dns(&args.name_server, &conf)?;
        tracing::warn!("-n is obsolete: write 'option domain-name-servers ...;' into {}", file.display());
    }
    Ok((files, conf))
}

/// Says something to whoever has started this, who goes away before there is a log.
fn tell(args: &Dhcp6sArgs, what: &str) {
    match args.foreground || args.child {
        true => tracing::error!("{what}"),
        false => eprintln!("dhcp6s: {what}"),
    }
}

fn start(args: &Dhcp6sArgs) -> anyhow::Result<Start> {
    let (files, conf) = conf(args)?;
    let absolute = |file: &Path| std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    Ok(Start {
        interfaces: vec![args.interface.clone()],
        waits: false,
        files,
        conf,
        dns: args.name_server.clone(),
        duid: absolute(&args.duid_file),
        leases: leases(args),
        control: key(&args.key_file)
            .map(|key| (SocketAddr::new(Ipv6Addr::LOCALHOST.into(), args.control_port), key)),
    })
}

/// The secret of dhcp6ctl; without one there is no control port.
fn key(file: &Path) -> Option<Zeroizing<Vec<u8>>> {
    let read = here::read(file).map(Zeroizing::new).map_err(|why| why.to_string());
    match read.and_then(|octets| ctlkey::parse(&octets).map_err(|why| why.to_string())) {
        Ok(key) => {
            told_to_others(file).iter().for_each(|said| tracing::warn!("{said}"));
            Some(key)
        }
        // Whoever names it says that there are to be none.
        Err(_) if file == Path::new("/dev/null") => None,
        Err(why) => {
            let file = file.display();
            tracing::warn!(
                "no commands of dhcp6ctl are taken: {file}: {why}; `(umask 077; head -c 32 /dev/urandom | base64 > {file})` makes \
                 a key, and `-k /dev/null` says that none is wanted"
            );
            None
        }
    }
}

async fn serve(args: &Dhcp6sArgs, start: Start) -> anyhow::Result<()> {
    let mut orders = signals()?;
    // Before anything is opened: what is left behind by a start that fails is nobody's.
    let pid_file = PidFile::write(&std::path::absolute(&args.pid_file)?, "dhcp6s", SECOND)?;
    let mut server = Server::open(start).await?;
    if args.child
        && let Err(why) = detach()
    {
        server.close().await;
        return Err(why);
    }
    let (interface, leases) = (&args.interface, server.leases());
    match server.control() {
        Some(at) => tracing::info!("serving {interface}, {leases} leases, commands at {at}"),
        None => tracing::info!("serving {interface}, {leases} leases, no commands"),
    }
    let ended = server.serve(&mut orders).await;
    let why = match ended {
        Ended::Told => "dhcp6ctl says so",
        Ended::Signal => "a signal",
        Ended::Broken => "leases cannot be written any more",
    };
    tracing::info!("stopping: {why}");
    server.close().await;
    drop(pid_file);
    anyhow::ensure!(
        ended != Ended::Broken,
        "the thread that writes leases is gone; this is a bug, start anew"
    );
    Ok(())
}

fn reload() -> Own {
    Own::Reload(Vec::new(), None)
}

/// SIGHUP, SIGUSR1, SIGTERM and SIGINT as orders.
fn signals() -> anyhow::Result<mpsc::Receiver<Own>> {
    let (tell, orders) = mpsc::channel(4);
    let kinds = [
        (SignalKind::hangup(), reload as fn() -> Own),
        (SignalKind::user_defined1(), || Own::Reconfigure),
        (SignalKind::terminate(), || Own::Stop),
        (SignalKind::interrupt(), || Own::Stop),
    ];
    for (kind, order) in kinds {
        let mut signal = signal(kind).context("cannot receive signals")?;
        let tell = tell.clone();
        tokio::spawn(
            async move { while signal.recv().await.is_some() && tell.send(order()).await.is_ok() {} },
        );
    }
    Ok(orders)
}
