//! `dhcp6ctl`: tells a DHCPv6 server or client what to do, by its own name or as `sixway dhcp6ctl`.
//!
//! The protocol has no answers. What can be seen from outside is looked at (whether the connection is closed as it should
//! be, whether a stopped process listens no more), and what cannot be seen is said to be unknown.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow, bail};
use clap::Args;
use zeroize::Zeroizing;

use super::print_line;
use crate::compat::ctlkey;
use crate::compat::dhcp6sconf::Duid;
use crate::dhcp6ctl::codec::{Binding, IaKind, InterfaceName, MAX_NAME, Order, emit};
use crate::dhcp6ctl::session::{Side, WINDOW};
use crate::dhcp6ctl::{CLIENT_KEY, CLIENT_PORT, SERVER_KEY, SERVER_PORT};
use crate::privileges::told_to_others;

/// How long the other side may take to read the command and close.
const CLOSING: Duration = Duration::from_secs(10);
/// How long a stopped process may take to go: a client releases what it has first.
const STOPPING: Duration = Duration::from_secs(10);
/// How long it takes to connect, where nobody answers.
const CONNECTING: Duration = Duration::from_secs(10);
/// How soon it is looked whether a process still listens, and then less and less often: it logs each look.
const LOOK: Duration = Duration::from_millis(100);
/// How long after a reload a process that dies of it is gone.
const SETTLING: Duration = Duration::from_millis(500);

/// Arguments of `dhcp6ctl`.
#[derive(Debug, Args)]
#[command(
    after_help = "Commands:\n  reload                                       read the configuration again; bindings stay\n  remove binding IA (IA_NA|IA_PD) IAID DUID    forget a binding (server)\n  start interface NAME                         begin anew there (client)\n  stop interface NAME                          give up what is held there (client)\n  stop                                         end the process\n\nThe key file is one line of base64, the same at both ends. The protocol has no answers: what is printed is what can be seen from outside. `sixway leases` shows IA, IAID and DUID of each binding.\n\nExit codes: 0 sent, and nothing seen that speaks against it; 1 not sent, or seen to fail."
)]
pub struct Dhcp6ctlArgs {
    /// Control a client, as without -S
    #[arg(short = 'C', conflicts_with = "server")]
    client: bool,
    /// Control a server
    #[arg(short = 'S')]
    server: bool,
    /// Address that it listens at [default: ::1]; the manual calls this -s, the old program -a
    #[arg(
        short = 'a',
        short_alias = 's',
        value_name = "ADDRESS",
        default_value = "::1",
        hide_default_value = true
    )]
    address: IpAddr,
    /// Key file [default: /etc/wide-dhcpv6/dhcp6cctlkey, with -S dhcp6sctlkey]
    #[arg(short, value_name = "FILE")]
    keyfile: Option<PathBuf>,
    /// TCP port that it listens at [default: 5546, with -S 5547]
    #[arg(short, value_name = "PORT")]
    port: Option<u16>,
    /// What to do
    #[arg(required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Sends the command, and says what is seen of it.
pub fn run(args: &Dhcp6ctlArgs) -> anyhow::Result<()> {
    let side = if args.server { Side::Server } else { Side::Client };
    let (order, notes) = order(&args.command, side).map_err(anyhow::Error::msg)?;
    notes.iter().for_each(|note| eprintln!("dhcp6ctl: {note}"));
    let (file, port) = match side {
        Side::Server => (SERVER_KEY, SERVER_PORT),
        Side::Client => (CLIENT_KEY, CLIENT_PORT),
    };
    let secret = secret(args.keyfile.as_deref().unwrap_or(Path::new(file)))?;
    let at = SocketAddr::new(args.address, args.port.unwrap_or(port));
    send(&order, &secret, at, side)?;
    print_line(&outcome(&order, at, side)?);
    Ok(())
}

fn secret(file: &Path) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let next = "; run as root, or name another with -k";
    let octets =
        std::fs::read(file).with_context(|| format!("cannot read the key file {}{next}", file.display()))?;
    told_to_others(file).iter().for_each(|said| eprintln!("dhcp6ctl: {said}"));
    ctlkey::parse(&Zeroizing::new(octets)).with_context(|| format!("{} holds no key", file.display()))
}

/// The order that the words give, and what to say about further ones.
fn order(words: &[String], side: Side) -> Result<(Order, Vec<String>), String> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut notes = Vec::new();
    let (order, rest) = match words[..] {
        ["reload", ref rest @ ..] => (Order::Reload, rest),
        ["start", ..] | ["stop", "interface", ..] if side == Side::Server => {
            return Err("a server does not start and stop interfaces; a client does, with -C".to_owned());
        }
        ["stop", "interface", name, ref rest @ ..] => (Order::StopInterface(interface(name)?), rest),
        ["start", "interface", name, ref rest @ ..] => (Order::Start(interface(name)?), rest),
        ["stop", "interface"] | ["start", ..] => {
            return Err(format!("the interface is missing: {} interface NAME", words[0]));
        }
        ["stop", ref rest @ ..] => (Order::Stop, rest),
        ["remove", ..] if side == Side::Client => {
            return Err("a client has no bindings to remove; a server has, with -S".to_owned());
        }
        ["remove", "binding", "IA", kind, iaid, duid, ref rest @ ..] => {
            (Order::Remove(binding(kind, iaid, duid)?), rest)
        }
        ["remove", ..] => {
            return Err("what to remove is written: remove binding IA (IA_NA|IA_PD) IAID DUID".to_owned());
        }
        [other, ..] => {
            return Err(format!("'{other}' is no command; reload, remove, start and stop are (see --help)"));
        }
        [] => return Err("a command is missing; see --help".to_owned()),
    };
    if !rest.is_empty() {
        notes.push(format!("these further words say nothing: {}", rest.join(" ")));
    }
    Ok((order, notes))
}

fn interface(name: &str) -> Result<InterfaceName, String> {
    InterfaceName::parse(name)
        .ok_or_else(|| format!("'{name}' is no interface's name: it has 1 to {MAX_NAME} characters"))
}

/// That it is none, and what it may have been meant to be.
fn no_iaid(text: &str) -> String {
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    let meant = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
    let next = meant.map(|number| format!("; did you mean {number}?")).unwrap_or_default();
    format!("'{text}' is no IAID, which is a decimal number up to {}{next}", u32::MAX)
}

fn binding(kind: &str, iaid: &str, duid: &str) -> Result<Binding, String> {
    let kind = match kind {
        "IA_NA" => IaKind::Na,
        "IA_PD" => IaKind::Pd,
        _ => return Err(format!("'{kind}' is no kind of binding; IA_NA and IA_PD are")),
    };
    let iaid = iaid.parse().map_err(|_| no_iaid(iaid))?;
    let duid: Duid = duid.parse().map_err(|why| format!("'{duid}': {why}"))?;
    Ok(Binding { kind, iaid, duid: duid.octets().to_vec() })
}

/// Sends the order, and waits until it has been read: the other side closes then, whatever it makes of it.
fn send(order: &Order, secret: &[u8], at: SocketAddr, side: Side) -> anyhow::Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let message =
        emit(order, now as u32, secret).ok_or_else(|| anyhow!("the DUID is too long to be said"))?;
    let mut stream =
        TcpStream::connect_timeout(&at, CONNECTING).map_err(|why| anyhow!(unreachable(&why, at, side)))?;
    stream.write_all(&message).with_context(|| format!("cannot send to {at}"))?;
    stream.set_read_timeout(Some(CLOSING))?;
    let mut answer = [0];
    match stream.read(&mut answer) {
        Ok(0) => Ok(()),
        Ok(_) => bail!("what listens at {at} answers, which no DHCPv6 program does; is the port right?"),
        Err(why) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&why.kind()) => {
            bail!(
                "what listens at {at} has not taken the command within {} s; is it stuck, or another program?",
                CLOSING.as_secs()
            )
        }
        Err(why) => {
            bail!("the command was refused unread ({why}); what listens at {at} is {}?", own_name(side))
        }
    }
}

fn unreachable(why: &std::io::Error, at: SocketAddr, side: Side) -> String {
    let (name, other) = match side {
        Side::Server => ("dhcp6s", "a client is controlled with -C"),
        Side::Client => ("dhcp6c", "a server is controlled with -S"),
    };
    format!("cannot connect to {at}: {why}; does {name} run, with a readable key file? ({other})")
}

fn own_name(side: Side) -> &'static str {
    match side {
        Side::Server => "dhcp6s",
        Side::Client => "dhcp6c",
    }
}

/// What is seen of an order that has been read.
fn outcome(order: &Order, at: SocketAddr, side: Side) -> anyhow::Result<String> {
    let name = own_name(side);
    let unknown = format!(
        "whether {name} obeyed cannot be seen from here: the protocol has no answers. Its log says (a wrong key, and clocks more than {WINDOW} s apart, are refused)"
    );
    match order {
        Order::Stop => {
            let until = Instant::now() + STOPPING;
            let mut pause = LOOK;
            while listens(at) {
                if Instant::now() >= until {
                    bail!(
                        "{name} still listens at {at}: it has refused (a wrong key? clocks more than {WINDOW} s apart?), or somebody started it again; its log says"
                    );
                }
                std::thread::sleep(pause);
                pause *= 2;
            }
            Ok(format!("stopped: nobody listens at {at} any more"))
        }
        Order::Reload => {
            std::thread::sleep(SETTLING);
            if !listens(at) {
                bail!(
                    "{name} has gone: nobody listens at {at} any more (WIDE's dhcp6c ends at a reload when it holds a prefix)"
                );
            }
            Ok(format!("sent, and {name} still runs; {unknown}"))
        }
        Order::Remove(_) | Order::Start(_) | Order::StopInterface(_) => Ok(format!("sent; {unknown}")),
    }
}

fn listens(at: SocketAddr) -> bool {
    // Only a refusal says that nobody is there.
    TcpStream::connect_timeout(&at, Duration::from_secs(1))
        .map_or_else(|why| why.kind() != ErrorKind::ConnectionRefused, |_| true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(line: &str, side: Side) -> Result<(Order, Vec<String>), String> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        order(&words, side)
    }

    #[test]
    fn commands_are_the_old_ones() {
        let name = InterfaceName::parse("vc0").unwrap();
        let plain = |order| Ok((order, Vec::new()));
        assert_eq!(said("reload", Side::Server), plain(Order::Reload));
        assert_eq!(said("stop", Side::Client), plain(Order::Stop));
        assert_eq!(said("stop interface vc0", Side::Client), plain(Order::StopInterface(name.clone())));
        assert_eq!(said("start interface vc0", Side::Client), plain(Order::Start(name)));
        let binding = Binding { kind: IaKind::Pd, iaid: 7, duid: vec![0, 1] };
        assert_eq!(
            said("remove binding IA IA_PD 7 00:01", Side::Server),
            plain(Order::Remove(binding.clone()))
        );
        let (order, notes) = said("remove binding IA IA_PD 7 00:01 more", Side::Server).unwrap();
        assert_eq!((order, notes.len()), (Order::Remove(binding), 1));
        assert_eq!(said("reload extra words", Side::Server).unwrap().1.len(), 1);
    }

    #[test]
    fn wrong_commands_say_what_is_expected() {
        for (line, side, what) in [
            ("fly", Side::Client, "no command"),
            ("remove binding IA IA_PD 1 00:01", Side::Client, "-S"),
            ("start interface vc0", Side::Server, "-C"),
            ("stop interface vc0", Side::Server, "-C"),
            ("start", Side::Client, "interface NAME"),
            ("stop interface", Side::Client, "interface NAME"),
            ("start interface abcdefghijklmnop", Side::Client, "1 to 15"),
            ("remove binding", Side::Server, "IAID DUID"),
            ("remove binding IA IA_TA 1 00:01", Side::Server, "IA_NA and IA_PD"),
            ("remove binding IA IA_NA x 00:01", Side::Server, "IAID"),
            ("remove binding IA IA_NA 4294967296 00:01", Side::Server, "IAID"),
            ("remove binding IA IA_NA 7x 00:01", Side::Server, "IAID"),
            ("remove binding IA IA_NA 0x1f 00:01", Side::Server, "did you mean 31?"),
            ("remove binding IA IA_NA 1 0:1", Side::Server, "DUID"),
        ] {
            let why = said(line, side).unwrap_err();
            assert!(why.contains(what), "{line}: {why}");
        }
    }
}
