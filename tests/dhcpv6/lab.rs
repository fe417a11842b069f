//! A DHCPv6 server without tunnels, disk and tables: the session before a real broker, a clock that is turned by hand, and
//! a memory that keeps what would be on disk.

use std::collections::BTreeMap;
use std::time::Duration;

use dhcproto::v6::{DhcpOption, Status};
use sixway::broker::{Accounts, Binding, Broker, Memory, Outcome, Record, Route, Time, UserName};
use sixway::config::Config;
use sixway::dhcpv6::codec::{Ia, IaKind, Message, Opt, Packet, Part, Value};
use sixway::dhcpv6::grants::Grants;
use sixway::dhcpv6::server::parse_duid;
use sixway::dhcpv6::session::{Answer, Origin, Session, Terms};
use sixway_dataplane::update::Ipv6Prefix;

/// What the server in the transcripts calls itself.
pub(crate) const SERVER: &str = "00:01:00:01:2b:00:00:01:02:00:00:00:53:01";

pub(crate) struct Lab {
    pub(crate) session: Session,
    pub(crate) broker: Broker,
    pub(crate) now: Time,
    pub(crate) memory: Memory,
    /// What the tables would have: a tunnel for each prefix.
    pub(crate) routes: BTreeMap<Ipv6Prefix, std::sync::Arc<str>>,
    config: Config,
    terms: Terms,
}

impl Lab {
    /// With this configuration.
    pub(crate) fn new(config: &str) -> Self {
        let config = Config::parse("lab.toml", config).unwrap_or_else(|why| panic!("{why}"));
        let duid = parse_duid(SERVER).unwrap();
        let terms = Terms { duid, ..config.dhcpv6.clone().unwrap() };
        Self {
            session: Session::new(terms.clone(), 7),
            broker: Broker::new(Accounts::new([7; 16]), config.terms()),
            now: Time(1_000_000_000),
            memory: Memory::default(),
            routes: BTreeMap::new(),
            config,
            terms,
        }
    }

    /// Changes what the session was told.
    pub(crate) fn change(&mut self, change: impl FnOnce(&mut Terms)) {
        change(&mut self.terms);
        self.session.configure(self.terms.clone());
    }

    /// Time passes; what is over ends.
    pub(crate) fn wait(&mut self, time: Duration) {
        self.now = self.now.after(time);
        let outcome = self.broker.expire(self.now);
        self.keep(outcome);
    }

    /// It is this time.
    pub(crate) fn set_clock(&mut self, now: Time) {
        self.now = now;
        self.wait(Duration::ZERO);
    }

    /// The calendar is set by so many milliseconds, and that is noticed.
    pub(crate) fn step(&mut self, by: i64) {
        self.now = self.now.shifted(by);
        let outcome = self.broker.shift(by);
        self.keep(outcome);
        self.wait(Duration::ZERO);
    }

    /// All that is in mind only is lost.
    pub(crate) fn restart(&mut self) {
        self.session = Session::new(self.terms.clone(), 8);
        self.broker = Broker::new(Accounts::new([7; 16]), self.config.terms());
        self.routes.clear();
        let recalled = self.broker.recall(self.now, self.memory.clone());
        self.keep(recalled);
    }

    /// A message out of tunnel `tunnel`, which has `fixed` itself.
    pub(crate) fn ask_in(
        &mut self,
        tunnel: &str,
        user: Option<&UserName>,
        fixed: &[Ipv6Prefix],
        octets: &[u8],
    ) -> Option<Answer> {
        self.ask_from(&Origin { user, fixed, ..Origin::of(tunnel) }, octets)
    }

    pub(crate) fn ask_from(&mut self, origin: &Origin<'_>, octets: &[u8]) -> Option<Answer> {
        let mut grants = Grants::new(&mut self.broker, self.now);
        let answer = self.session.handle(origin, octets, &mut grants);
        let outcome = grants.outcome;
        self.keep(outcome);
        answer
    }

    /// What is asked about leases, from this address in tunnel `t`.
    pub(crate) fn look_up(&mut self, from: &str, is_unicast: bool, octets: &[u8]) -> Option<Answer> {
        let from = Some(from.parse().unwrap());
        let origin = Origin { is_unicast, from, port: 54_321, ..Origin::of("t") };
        self.ask_from(&origin, octets)
    }

    /// The same out of tunnel `t`.
    pub(crate) fn ask(&mut self, octets: &[u8]) -> Option<Vec<u8>> {
        self.ask_in("t", None, &[], octets).map(|answer| answer.octets)
    }

    pub(crate) fn keep(&mut self, outcome: Outcome) {
        for record in outcome.records {
            self.write(record);
        }
        for route in outcome.routes {
            match route {
                Route::Bind(Binding { key, prefix, .. }) => {
                    let before = self.routes.insert(prefix, key.tunnel);
                    assert_eq!(before, None, "{prefix} is behind a tunnel already");
                }
                Route::Unbind(binding, _) => {
                    assert_eq!(self.routes.remove(&binding.prefix), Some(binding.key.tunnel));
                }
                Route::Up(_) | Route::Down(..) => panic!("no tunnel is granted here"),
            }
        }
    }

    fn write(&mut self, record: Record) {
        let bindings = &mut self.memory.bindings;
        match record {
            Record::Bound(binding) => {
                assert!(bindings.iter().all(|b| b.prefix != binding.prefix), "the store would refuse it");
                bindings.push(binding);
            }
            Record::BoundUntil(prefix, at, reach) => {
                let mut own = bindings.iter_mut().filter(|b| b.prefix == prefix);
                own.by_ref().for_each(|b| (b.expires, b.reach) = (at, reach));
            }
            Record::Unbound(prefix) => bindings.retain(|b| b.prefix != prefix),
            Record::Assigned { prefix, user, since } => {
                self.memory.assigned.retain(|(p, ..)| *p != prefix);
                self.memory.assigned.push((prefix, user, since));
            }
            Record::Account(_)
            | Record::AccountGone(_)
            | Record::Lease(_)
            | Record::Until(..)
            | Record::Moved(..)
            | Record::Ended(_) => panic!("no tunnel is granted here"),
        }
    }
}

/// Octets out of hexadecimal digits.
pub(crate) fn octets(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2).map(|n| u8::from_str_radix(&hex[2 * n..2 * n + 2], 16).unwrap()).collect()
}

/// A message in words: its type, then each option that says something of the outcome.
pub(crate) fn words(octets: &[u8]) -> String {
    match Packet::parse(octets).unwrap() {
        Packet::Relay(relay) => {
            let ifid =
                relay.interface().map_or_else(String::new, |id| format!(" ifid={}", id.escape_ascii()));
            format!("relay({}){ifid}", words(relay.relayed().unwrap()))
        }
        Packet::Message(Message { kind, options, .. }) => {
            let parts: Vec<String> = options.iter().filter_map(option).collect();
            format!("{kind:?} {}", parts.join(" ")).trim_end().to_owned()
        }
    }
}

fn option(option: &Opt) -> Option<String> {
    match option {
        Opt::Ia(ia) => Some(association(ia)),
        Opt::Addresses(code, _) | Opt::Names(code, _) | Opt::Seconds(code, _) | Opt::Other(code, _) => {
            Some(format!("o{code}"))
        }
        Opt::Leaf(DhcpOption::StatusCode(status)) => Some(format!("{:?}", status.status)),
        Opt::Leaf(DhcpOption::RapidCommit) => Some("rapid".to_owned()),
        Opt::Leaf(DhcpOption::Preference(n)) => Some(format!("pref={n}")),
        Opt::Relayed(_) | Opt::Leaf(_) => None,
    }
}

fn association(ia: &Ia) -> String {
    let name = if ia.kind == IaKind::Address { "NA" } else { "PD" };
    let part = |part: &Part| match part {
        Part::Value(Value { addr, len: 128, preferred, valid, .. }) => format!(" {addr} {preferred}/{valid}"),
        Part::Value(Value { addr, len, preferred, valid, .. }) => {
            format!(" {addr}/{len} {preferred}/{valid}")
        }
        Part::Status(status, _) => format!(" {}", status_name(*status)),
        Part::Other(code, _) => format!(" o{code}"),
    };
    format!("{name}{}[{},{}{}]", ia.iaid, ia.t1, ia.t2, ia.parts.iter().map(part).collect::<String>())
}

fn status_name(status: Status) -> String {
    format!("{status:?}")
}
