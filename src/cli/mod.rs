//! The command line: one file for each command, which parses, calls and prints; no logic of its own.
//!
//! Exit codes: 0 done; 1 it could not be done, and why is on standard error; 2 the command line was wrong; 130 Ctrl-C in the demo.

pub mod audit;
mod background;
pub mod bench;
pub mod bench_dhcp6;
pub mod capture;
pub mod check;
pub mod connect;
pub mod demo;
pub mod dhcp6ctl;
pub mod dhcp6s;
pub mod drain;
pub mod dtcpauth;
pub mod dtcpc;
pub mod dtcps;
pub mod explain;
mod fixed;
pub mod kick;
pub mod lease_query;
pub mod leases;
mod password;
mod pd;
mod pid_file;
mod pinger;
pub mod reconfigure;
pub mod reload;
pub mod run;
mod script;
pub mod sessions;
pub mod show;
pub mod snippet;
pub mod socket;
pub mod status;
mod syslog;
pub mod trace;
mod tsp_ask;
mod tsp_wish;
mod tspc;
pub mod user;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Parser, Subcommand};

/// IPv6 tunnels in userspace: protocol 41 and IPv6-over-UDP, no kernel tunnel driver needed.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, max_term_width = 100)]
#[command(
    after_help = "See it work:      sixway demo\nRun a router:     sixway run --config /etc/sixway/sixway.toml\nLook at it:       sixway status\n\nExit codes: 0 done, 1 could not be done, 2 wrong command line, 130 Ctrl-C in the demo."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the router (or the client) in the foreground
    Run(run::RunArgs),
    /// Say whether a configuration file is right, and what it would do
    Check(check::CheckArgs),
    /// Show a running router: tunnels, counters, drops
    Status(status::StatusArgs),
    /// What would become of a packet: every check of the running router, and what to do
    Explain(explain::ExplainArgs),
    /// What was dropped: the last packet of each reason, decoded
    Show(show::ShowArgs),
    /// One tunnel's packets as they pass, with what becomes of each
    Trace(trace::TraceArgs),
    /// One tunnel's packets into a file for Wireshark, with what becomes of each
    Capture(capture::CaptureArgs),
    /// Pass or fail for everything that must hold of a running router
    Audit(audit::AuditArgs),
    /// Make a running router read its configuration file again
    Reload(reload::ReloadArgs),
    /// Add, change, remove and list the users who may have tunnels
    User(user::UserArgs),
    /// What a user pastes to have the tunnel: for Linux, FreeBSD, gogoc, dtcpc, networkd, OpenWrt
    Snippet(snippet::SnippetArgs),
    /// End a user's tunnels, one tunnel, or the binding of a prefix; the user may come back
    Kick(kick::KickArgs),
    /// Who has what by DHCPv6: in tunnels, on links, and in the file of a dhcp6s
    Leases(leases::LeasesArgs),
    /// Send new clients to other brokers: tunnels that are up stay
    Drain(drain::DrainArgs),
    /// Have DHCPv6 clients ask anew, in one tunnel or everywhere
    Reconfigure(reconfigure::ReconfigureArgs),
    /// Ask a DHCPv6 server who has an address, or what a client has (RFC 5007)
    LeaseQuery(lease_query::LeaseQueryArgs),
    /// Measure what a running router stands: changes at a pace, or many clients at once
    Bench(bench::BenchArgs),
    /// Have a tunnel from a TSP or DTCP server, for as long as this runs
    Connect(connect::ConnectArgs),
    /// The DTCP server with the flags of dtcps(8); also by that name
    Dtcps(dtcps::DtcpsArgs),
    /// The DTCP client with the flags of dtcpc(8); also by that name
    Dtcpc(dtcpc::DtcpcArgs),
    /// Users and passwords of pop.auth, as dtcpauth(8) and qpopauth(8); also by the first name
    Dtcpauth(dtcpauth::DtcpauthArgs),
    /// The DHCPv6 server with the flags of dhcp6s(8); also by that name
    Dhcp6s(dhcp6s::Dhcp6sArgs),
    /// Tell a DHCPv6 server or client what to do, as dhcp6ctl(8); also by that name
    Dhcp6ctl(dhcp6ctl::Dhcp6ctlArgs),
    /// See the whole thing work: three hosts in one process, both encapsulations, measured
    Demo(demo::DemoArgs),
}

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    let done = match understood(words(std::env::args_os().collect())).command {
        Command::Run(args) => run::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Show(args) => show::run(&args),
        Command::Trace(args) => trace::run(&args),
        Command::Capture(args) => capture::run(&args),
        Command::Audit(args) => audit::run(&args),
        Command::Reload(args) => reload::run(&args),
        Command::User(args) => user::run(&args),
        Command::Snippet(args) => snippet::run(&args),
        Command::Kick(args) => kick::run(&args),
        Command::Leases(args) => leases::run(&args),
        Command::Drain(args) => drain::run(&args),
        Command::Reconfigure(args) => reconfigure::run(&args),
        Command::LeaseQuery(args) => lease_query::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Connect(args) => connect::run(&args),
        Command::Dtcps(args) => dtcps::run(&args),
        Command::Dtcpc(args) => dtcpc::run(&args),
        Command::Dtcpauth(args) => dtcpauth::run(&args),
        Command::Dhcp6s(args) => dhcp6s::run(&args),
        Command::Dhcp6ctl(args) => dhcp6ctl::run(&args),
        Command::Demo(args) => demo::run(args, &crate::demo::tunnels::InProcess),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{}", told(&format!("{why:#}")));
            ExitCode::FAILURE
        }
    }
}

/// Why something could not be done, with our name before it; but a mistake in a file stands as `FILE:LINE: what` alone, so
/// that editors find the place of each.
fn told(why: &str) -> String {
    let first = why.lines().next().unwrap_or_default();
    if is_placed(first) { why.to_owned() } else { format!("sixway: {why}") }
}

/// Whether it begins with a file and a line. `ADDRESS:PORT: ` is no such place.
fn is_placed(line: &str) -> bool {
    let place = line.split_once(": ").and_then(|(place, _)| place.rsplit_once(':'));
    place.is_some_and(|(file, number)| {
        number.parse::<usize>().is_ok() && !file.contains(' ') && file.parse::<std::net::Ipv4Addr>().is_err()
    })
}

/// Commands that the program is also called by.
const NAMES: [&str; 5] = ["dtcps", "dtcpc", "dtcpauth", "dhcp6ctl", "dhcp6s"];
/// Those of them that exit with 1, not 2, where the command line is wrong, as scripts expect.
const ONE_CODE: [&str; 2] = ["dhcp6ctl", "dhcp6s"];

/// The command line taken apart; if that cannot be done, what is expected is said, and the program ends.
fn understood(words: Vec<OsString>) -> Cli {
    let one_code = words.get(1).is_some_and(|word| ONE_CODE.iter().any(|name| word == name));
    Cli::try_parse_from(&words).unwrap_or_else(|mut why| {
        if why.kind() == ErrorKind::UnknownArgument {
            // That a flag might be meant as a value helps nobody; what is near to it is told elsewhere.
            why.remove(ContextKind::Suggested);
        }
        if let Some(tip) = apart(&words) {
            why.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
        }
        if !one_code || !why.use_stderr() {
            why.exit();
        }
        // If standard error is gone, nobody can be told.
        let _unsaid = why.print();
        std::process::exit(1)
    })
}

/// What to write where a value stands behind a flag that takes it only with `=` between.
fn apart(words: &[OsString]) -> Option<String> {
    let pairs = words.windows(2).filter_map(|pair| Some((pair[0].to_str()?, pair[1].to_str()?)));
    let mut apart = pairs.filter(|(flag, value)| {
        (*flag == "--pd" && value.parse::<u8>().is_ok()) || (*flag == "--pd-ctl" && value.starts_with('/'))
    });
    apart.next().map(|(flag, value)| format!("write {flag}={value}"))
}

/// The command line with the command in it that the program's name stands for.
fn words(mut words: Vec<OsString>) -> Vec<OsString> {
    let name = words.first().map(PathBuf::from).and_then(|path| Some(path.file_name()?.to_str()?.to_owned()));
    if let Some(name) = name.filter(|name| NAMES.contains(&name.as_str())) {
        words.insert(1, name.into());
        // Usage is told as `sixway dtcpc`, which is right by either name.
        words[0] = "sixway".into();
    }
    if words.get(1).is_some_and(|word| word == "dtcpauth") {
        let long =
            |word: OsString| word.into_string().map_or_else(|odd| odd, |w| dtcpauth::long_words(w).into());
        words = words.into_iter().map(long).collect();
    }
    words
}

/// What stands behind the command on the command line.
pub(crate) fn own_arguments() -> Vec<OsString> {
    words(std::env::args_os().collect()).into_iter().skip(2).collect()
}

/// Prints a line to standard output; a reader that has gone (as `| head` does) is no fault.
pub(crate) fn print_line(line: &str) {
    use std::io::Write;
    if writeln!(std::io::stdout(), "{line}").is_err() {
        std::process::exit(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(line: &str) -> String {
        let all: Vec<String> = words(line.split(' ').map(OsString::from).collect())
            .into_iter()
            .map(|w| w.into_string().unwrap())
            .collect();
        all[1..].join(" ")
    }

    #[test]
    fn a_value_apart_from_its_flag_is_told_of() {
        let tip = |line: &str| apart(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert_eq!(tip("sixway connect dtcp://a@b --pd 56").as_deref(), Some("write --pd=56"));
        assert_eq!(tip("connect --pd-ctl /etc/key").as_deref(), Some("write --pd-ctl=/etc/key"));
        assert_eq!((tip("connect --pd tsp://a@b"), tip("connect --pd=56 --pd-to eth1")), (None, None));
    }

    #[test]
    fn mistakes_in_files_all_begin_with_their_place() {
        let two = "a.toml:3: unknown key\na.toml:7: `mtu`";
        assert_eq!(told(two), two);
        assert_eq!(told("/etc/x.conf:12: what"), "/etc/x.conf:12: what");
        for plain in ["10.0.0.1:53: refused", "cannot reach 10.0.0.1:53: refused", "/etc/x: No such file", ""]
        {
            assert_eq!(told(plain), format!("sixway: {plain}"));
        }
    }

    #[test]
    fn the_program_s_name_may_be_the_command() {
        assert_eq!(said("/usr/sbin/dtcps -D 3ffe::"), "dtcps -D 3ffe::");
        assert_eq!(said("dtcpauth -user foo"), "dtcpauth --user foo");
        assert_eq!(said("sixway dtcpauth -init"), "dtcpauth --init");
        assert_eq!(said("sixway status -c x"), "status -c x");
    }

    #[test]
    fn the_old_flags_are_understood() {
        use clap::Parser;
        for line in [
            "dtcps -cdDoU -b 4028 -g 192.0.2.1 -i gif7[0-9] -I ng0 -p 20200 3ffe:ffff:ffff:ffff::",
            "dtcpc -acdDlnoU -f /var/run/dtcpc.pid -b 4028 -i gif0 -m 1280 -p 20200 -r static -R default -t network -u alice broker.example",
            "dhcp6s -Ddf -c x.conf -k /dev/null -p 7 -P x.pid eth0",
            "dhcp6s -n 2001:db8::1 eth0",
            "dhcp6ctl -S -s ::1 -k key -p 7 remove binding IA IA_PD 1 00:01",
            "dtcpauth -list",
            "dtcpauth -delete foo",
        ] {
            let line: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            Cli::try_parse_from(words(line)).unwrap_or_else(|why| panic!("{why}"));
        }
    }
}
