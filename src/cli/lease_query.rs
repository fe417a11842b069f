//! `sixway lease-query`: asks a DHCPv6 server, whoever made it, who has an address, or what a client has (RFC 5007).

use std::fmt::Write;
use std::io::ErrorKind;
use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use clap::{ArgGroup, Args};
use dhcproto::v6::Status;
use serde::Serialize;
use sixway_dataplane::update::Ipv6Prefix;

use super::print_line;
use crate::dhcp6s::here;
use crate::dhcpv6::codec::{INFINITY, Opt, SERVER_PORT, Value};
use crate::dhcpv6::query::{ClientData, Query, Sought};
use crate::dhcpv6::requestor::{Found, Heard, Question, waits};
use crate::dhcpv6::server::parse_duid;

/// Octets of the longest answer.
const MESSAGE: usize = 65_536;
/// Links that are asked about one after the other, at most.
const MOST_LINKS: usize = 64;

/// Arguments of `sixway lease-query`.
#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("sought").required(true).args(["address", "duid"]),
    after_help = "A server answers whom its configuration names: `lease-query PREFIX ...;` in dhcp6s.conf, `lease_query` in [dhcpv6].\nWhere a client has something on several links, each is asked about.\n\nExamples:\n  sixway lease-query 2001:db8:1::1000\n  sixway lease-query 2001:db8:8000:100::/56 --server 2001:db8:1::1 --json\n  sixway lease-query --duid 00:03:00:01:02:00:00:00:53:02 --server ff02::1:2%eth1\n\nExit codes: 0 answered, also where nobody has it; 1 not answered, or refused."
)]
pub struct LeaseQueryArgs {
    /// Who has this address, or the prefix that it lies in? Of a prefix its first address counts
    #[arg(value_parser = parse_address)]
    address: Option<Ipv6Addr>,
    /// What has the client of this DUID?
    #[arg(long, value_name = "DUID", value_parser = parse_client)]
    duid: Option<Client>,
    /// The server: an address; a link-local one, or ff02::1:2, with %INTERFACE behind it
    #[arg(long, value_name = "ADDRESS", default_value = "::1", value_parser = parse_server)]
    server: SocketAddrV6,
    /// Only on the link that has this address
    #[arg(long, value_name = "ADDRESS")]
    link: Option<Ipv6Addr>,
    /// Ask for this option of the client's too, by its code; can be repeated
    #[arg(long = "option", value_name = "CODE")]
    options: Vec<u16>,
    /// UDP port to ask from [default: any]; some servers answer to 546 or 547 alone
    #[arg(long, value_name = "PORT", default_value_t = 0, hide_default_value = true)]
    port: u16,
    /// Seconds that an answer is waited for
    #[arg(long, value_name = "S", default_value_t = 7, value_parser = clap::value_parser!(u64).range(1..=25))]
    wait: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A DUID on the command line.
#[derive(Clone, Debug)]
struct Client(Vec<u8>);

fn parse_client(text: &str) -> Result<Client, String> {
    let next = "it is no DUID; write pairs of hexadecimal digits, with colons or without, as in 00:03:00:01:02:00:00:00:53:02";
    parse_duid(text).map(Client).ok_or_else(|| next.to_owned())
}

fn parse_address(text: &str) -> Result<Ipv6Addr, String> {
    let prefix = || text.parse::<Ipv6Prefix>().ok().map(Ipv6Prefix::addr);
    let next = "it is neither an IPv6 address nor a prefix, such as 2001:db8::5 or 2001:db8:8000::/48";
    text.parse().ok().or_else(prefix).ok_or_else(|| next.to_owned())
}

fn parse_server(text: &str) -> Result<SocketAddrV6, String> {
    let (addr, name) = text.split_once('%').map_or((text, None), |(addr, name)| (addr, Some(name)));
    let addr: Ipv6Addr = addr.parse().map_err(|_| "it is no IPv6 address".to_owned())?;
    let scope = match name {
        Some(name) => here::index(name).ok_or_else(|| format!("there is no interface '{name}'"))?,
        None if addr.is_unicast_link_local() || addr.is_multicast() => {
            return Err(format!("on which link? Write {addr}%INTERFACE"));
        }
        None => 0,
    };
    Ok(SocketAddrV6::new(addr, SERVER_PORT, 0, scope))
}

/// What is printed as JSON.
#[derive(Debug, Serialize)]
struct Told {
    server: String,
    clients: Vec<ToldClient>,
}

#[derive(Debug, Serialize)]
struct ToldClient {
    /// Its DUID, where the server knows it by that.
    duid: Option<String>,
    /// Seconds since it was last heard.
    heard: Option<u32>,
    leases: Vec<ToldLease>,
    options: Vec<ToldOption>,
    /// The relay that it was last heard through.
    relay: Option<Ipv6Addr>,
}

#[derive(Debug, Serialize)]
struct ToldLease {
    /// An address, or a prefix with its length.
    prefix: String,
    /// Seconds that are left; null: for ever.
    preferred: Option<u32>,
    valid: Option<u32>,
}

#[derive(Debug, Serialize)]
struct ToldOption {
    code: u16,
    value: String,
}

/// Asks, and prints the answer.
pub fn run(args: &LeaseQueryArgs) -> anyhow::Result<()> {
    let sought = match (&args.address, &args.duid) {
        (Some(addr), _) => Sought::Address(*addr),
        (None, Some(Client(duid))) => Sought::Client(duid.clone()),
        (None, None) => bail!("name an address, or a client with --duid"),
    };
    let socket = UdpSocket::bind(("::", args.port)).with_context(|| {
        format!("cannot ask from UDP port {}; another may have it, or root is needed", args.port)
    })?;
    let asker = Asker { socket, server: args.server, wait: Duration::from_secs(args.wait), duid: own_duid() };
    let query = Query { sought, link: args.link, wanted: args.options.clone() };
    let heard = asker.ask(&query)?;
    let mut told = Told { server: hex(&heard.server), clients: Vec::new() };
    match heard.found {
        Found::Nothing => {}
        Found::Client(data) => told.clients.push(client(&data)),
        Found::Links(links) => {
            for link in links.into_iter().take(MOST_LINKS) {
                let heard = asker.ask(&Query { link: Some(link), ..query.clone() })?;
                if let Found::Client(data) = heard.found {
                    told.clients.push(client(&data));
                }
            }
        }
    }
    if args.json {
        print_line(&serde_json::to_string_pretty(&told)?);
    } else {
        print_line(told.text().trim_end());
    }
    Ok(())
}

struct Asker {
    socket: UdpSocket,
    server: SocketAddrV6,
    wait: Duration,
    duid: Vec<u8>,
}

impl Asker {
    /// Says the question until it is answered.
    fn ask(&self, query: &Query) -> anyhow::Result<Heard> {
        let [_, xid @ ..]: [u8; 4] = rand::random();
        let question = Question { duid: self.duid.clone(), xid, query: query.clone() };
        let end = Instant::now() + self.wait;
        for wait in waits() {
            self.socket
                .send_to(&question.message(), self.server)
                .with_context(|| format!("cannot reach {}", self.server.ip()))?;
            let until = end.min(Instant::now() + wait);
            if let Some(heard) = self.hear(&question, until)? {
                return answered(heard);
            }
            if Instant::now() >= end {
                break;
            }
        }
        Err(anyhow!(
            "{} has not answered; is a DHCPv6 server there, does its configuration let you ask (`lease-query` in dhcp6s.conf, \
             `lease_query` in [dhcpv6]), and does it answer to any port (--port)?",
            self.server.ip()
        ))
    }

    fn hear(&self, question: &Question, until: Instant) -> anyhow::Result<Option<Heard>> {
        let mut octets = vec![0; MESSAGE];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.set_read_timeout(Some(left))?;
            match self.socket.recv_from(&mut octets) {
                Ok((len, _)) => {
                    if let Some(heard) = octets.get(..len).and_then(|octets| question.hear(octets)) {
                        return Ok(Some(heard));
                    }
                }
                Err(why)
                    if matches!(
                        why.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) => {}
                Err(why) => return Err(why).context("cannot receive"),
            }
        }
    }
}

/// What the server says, unless it is a refusal.
fn answered(heard: Heard) -> anyhow::Result<Heard> {
    const MAY_NOT: &str = "you may not ask; name your address in its configuration (`lease-query` in dhcp6s.conf, \
                           `lease_query` in [dhcpv6])";
    let (status, text) = &heard.status;
    if *status == Status::Success {
        return Ok(heard);
    }
    let known = [
        (Status::NotAllowed, MAY_NOT),
        (Status::NotConfigured, "it has nothing to do with that address or link"),
        (Status::UnknownQueryType, "it does not know such queries"),
        (Status::MalformedQuery, "it cannot read the query"),
    ];
    let why = known.iter().find(|(code, _)| code == status).map_or("it cannot say", |(_, why)| why);
    bail!("the server says: {why} ({status:?}{}{text})", if text.is_empty() { "" } else { ": " })
}

/// A name for this one run (DUID-UUID, RFC 6355).
fn own_duid() -> Vec<u8> {
    let random: [u8; 16] = rand::random();
    [&[0, 4][..], &random].concat()
}

fn client(data: &ClientData) -> ToldClient {
    let limited = |seconds: u32| (seconds != INFINITY).then_some(seconds);
    let lease = |value: &Value| ToldLease {
        prefix: if value.len == 128 {
            value.addr.to_string()
        } else {
            format!("{}/{}", value.addr, value.len)
        },
        preferred: limited(value.preferred),
        valid: limited(value.valid),
    };
    ToldClient {
        duid: (!data.client.is_empty()).then(|| hex(&data.client)),
        heard: data.heard,
        leases: data.values.iter().map(lease).collect(),
        options: data
            .options
            .iter()
            .map(|option| ToldOption { code: option.code(), value: shown(option) })
            .collect(),
        relay: data.relay.as_ref().map(|(peer, _)| *peer),
    }
}

fn shown(option: &Opt) -> String {
    let joined = |all: Vec<String>| all.join(" ");
    match option {
        Opt::Addresses(_, all) => joined(all.iter().map(Ipv6Addr::to_string).collect()),
        Opt::Names(_, all) => joined(all.iter().map(ToString::to_string).collect()),
        Opt::Seconds(_, seconds) => format!("{seconds} s"),
        Opt::Ia(_) | Opt::Relayed(_) | Opt::Leaf(_) | Opt::Other(..) => {
            let mut octets = Vec::new();
            option.emit(&mut octets);
            hex(octets.get(4..).unwrap_or_default())
        }
    }
}

fn hex(octets: &[u8]) -> String {
    let pairs: Vec<String> = octets.iter().map(|octet| format!("{octet:02x}")).collect();
    pairs.join(":")
}

impl Told {
    fn text(&self) -> String {
        if self.clients.is_empty() {
            return "nobody has it".to_owned();
        }
        let mut text = String::new();
        for one in &self.clients {
            let name = one.duid.as_deref().unwrap_or("known by its line");
            let heard = one.heard.map(|seconds| format!(", heard {seconds} s ago")).unwrap_or_default();
            let relay = one.relay.map(|relay| format!(" through {relay}")).unwrap_or_default();
            let _infallible = writeln!(text, "client {name}{heard}{relay}");
            for lease in &one.leases {
                let seconds = |n: Option<u32>| n.map_or("for ever".to_owned(), |n| format!("{n} s"));
                let what = &lease.prefix;
                let (preferred, valid) = (seconds(lease.preferred), seconds(lease.valid));
                let _infallible = writeln!(text, "  {what:<43} preferred {preferred}, valid {valid}");
            }
            for option in &one.options {
                let _infallible = writeln!(text, "  option {}: {}", option.code, option.value);
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_about_is_read() {
        assert_eq!(parse_address("2001:db8:8000::/48"), Ok("2001:db8:8000::".parse().unwrap()));
        assert_eq!(parse_address("::1"), Ok(Ipv6Addr::LOCALHOST));
        assert!(parse_address("00:03:00:01").is_err() && parse_client("::1").is_err());
        assert_eq!(parse_client("00:03:09").map(|client| client.0), Ok(vec![0, 3, 9]));
        let server = parse_server("ff02::1:2%lo").unwrap();
        assert!(server.scope_id() > 0 && server.port() == 547);
        assert!(parse_server("fe80::1").unwrap_err().contains("fe80::1%INTERFACE"));
        assert!(parse_server("fe80::1%no such").is_err());
    }

    #[test]
    fn answers_are_told_in_words() {
        let value = |text: &str, len, preferred, valid| Value {
            addr: text.parse().unwrap(),
            len,
            preferred,
            valid,
            options: Vec::new(),
        };
        let data = ClientData {
            client: vec![0, 3, 9],
            values: vec![value("2001:db8::5", 128, 7, 9), value("2001:db8:8::", 48, INFINITY, INFINITY)],
            heard: Some(3),
            options: vec![Opt::Addresses(23, vec![Ipv6Addr::LOCALHOST]), Opt::Other(37, vec![0, 1])],
            ..ClientData::default()
        };
        let told = Told { server: "00".to_owned(), clients: vec![client(&data)] };
        let text = told.text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "client 00:03:09, heard 3 s ago");
        assert!(lines[1].starts_with("  2001:db8::5 ") && lines[1].ends_with("preferred 7 s, valid 9 s"));
        assert!(
            lines[2].contains("2001:db8:8::/48") && lines[2].ends_with("preferred for ever, valid for ever")
        );
        assert_eq!(lines[3..], ["  option 23: ::1", "  option 37: 00:01"]);
        let nobody = Told { server: String::new(), clients: Vec::new() };
        assert_eq!(nobody.text(), "nobody has it");
    }
}
