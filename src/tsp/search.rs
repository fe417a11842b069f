//! Which broker is asked next, how, and in which version: the way of a client until it has a tunnel.
//!
//! ```text
//!   UDP ─► no answer ─► TCP ─► no answer ─► the next broker of the list ─► ... ─► Lost
//!    │ 302: the next older version          (1.x by TCP only)
//!    └ a list: one broker ─► go there; several ─► time them by ECHO REQUEST, the nearest first
//! ```
//!
//! Brokers that send their clients in a circle are noticed, and there are no more than [`MOST_REDIRECTIONS`] in a row.
//! Pure: outcomes in, steps out.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use super::client::{End, Transport};
use super::codec::{Mode, PORT, Version};

/// Redirections that are followed one after the other.
pub const MOST_REDIRECTIONS: usize = 5;
/// The longest name of a host.
const LONGEST_NAME: usize = 253;
/// From the newest on; those of the draft by TCP only, of which gogoc's 1.0.1 is known to more servers.
const VERSIONS: [Version; 5] = [
    Version { major: 2, minor: 0, patch: 2 },
    Version { major: 2, minor: 0, patch: 1 },
    Version { major: 2, minor: 0, patch: 0 },
    Version { major: 1, minor: 0, patch: 1 },
    Version { major: 1, minor: 0, patch: 0 },
];

/// Where a broker is: a name or an IPv4 address, and a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The name or address.
    pub host: String,
    /// TCP and UDP port.
    pub port: u16,
}

impl Place {
    /// Reads `broker.example`, `192.0.2.7`, both also with `:PORT`. `None`: neither, or an IPv6 address, by which the
    /// tunnels of IPv4 cannot be had.
    pub fn parse(text: &str) -> Option<Self> {
        let (host, port) = match text.split_once(':') {
            Some((host, port)) => (host, port.parse().ok().filter(|port| *port > 0)?),
            None => (text, PORT),
        };
        let known = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
        let fits = (1..=LONGEST_NAME).contains(&host.len()) && host.chars().all(known);
        fits.then(|| Self { host: host.to_ascii_lowercase(), port })
    }
}

impl fmt::Display for Place {
    /// As users write it: the usual port is left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if *port == PORT { f.write_str(host) } else { write!(f, "{host}:{port}") }
    }
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Have a session.
    Ask {
        /// With whom.
        at: Place,
        /// How.
        over: Transport,
        /// In which version.
        version: Version,
    },
    /// Find out how near these are, and say so to [`Search::handle_times`].
    Time(Vec<Place>),
    /// There is nobody left to be asked.
    Over(End),
}

/// The way from one broker to a tunnel.
#[derive(Debug)]
pub struct Search {
    mode: Mode,
    over: Transport,
    version: usize,
    /// The broker that is being asked, and those after it.
    brokers: VecDeque<Place>,
    /// Brokers that have sent us on.
    been: Vec<Place>,
    /// Brokers that are not in order yet.
    untimed: Vec<Place>,
    end: Option<End>,
}

impl Search {
    /// From this broker on.
    pub fn new(home: Place, mode: Mode) -> Self {
        let brokers = VecDeque::from([home]);
        let (been, untimed) = (Vec::new(), Vec::new());
        Self { mode, over: Transport::Udp, version: 0, brokers, been, untimed, end: None }
    }

    /// What is to be done now.
    pub fn step(&self) -> Step {
        if !self.untimed.is_empty() {
            return Step::Time(self.untimed.clone());
        }
        match (&self.end, self.brokers.front()) {
            (Some(end), _) => Step::Over(end.clone()),
            (None, Some(at)) => {
                Step::Ask { at: at.clone(), over: self.over, version: VERSIONS[self.version] }
            }
            (None, None) => Step::Over(End::Lost("there is no broker to ask".to_owned())),
        }
    }

    /// The session has ended without a tunnel.
    pub fn handle_end(&mut self, end: End) {
        match end {
            End::Silent if self.over == Transport::Udp && self.may_use_tcp() => self.over = Transport::Tcp,
            End::Silent => {
                let at = self.brokers.front().map(Place::to_string).unwrap_or_default();
                self.next_broker(End::Lost(format!("{at} does not answer")));
            }
            End::OtherVersion => self.older(),
            End::Elsewhere(places) => self.elsewhere(places),
            // Another broker has the same accounts.
            End::Refused(_) => self.end = Some(end),
            End::Lost(_) => self.next_broker(end),
        }
    }

    /// How long each of them took to answer, in the order of [`Step::Time`]; `None`: too long.
    pub fn handle_times(&mut self, times: &[Option<Duration>]) {
        let places = std::mem::take(&mut self.untimed);
        let time = |n: usize| times.get(n).copied().flatten().unwrap_or(Duration::MAX);
        let mut order: Vec<(Duration, Place)> =
            places.into_iter().enumerate().map(|(n, p)| (time(n), p)).collect();
        order.sort_by_key(|(time, _)| *time);
        self.brokers = order.into_iter().map(|(_, place)| place).collect();
    }

    fn may_use_tcp(&self) -> bool {
        self.mode != Mode::V6UdpV4
    }

    fn begin(&mut self) {
        (self.over, self.version) = (Transport::Udp, 0);
    }

    fn next_broker(&mut self, why: End) {
        self.brokers.pop_front();
        self.begin();
        if self.brokers.is_empty() {
            self.end = Some(why);
        }
    }

    fn older(&mut self) {
        self.version += 1;
        let is_draft = VERSIONS.get(self.version).is_none_or(|version| version.major < 2);
        if self.version == VERSIONS.len() || (is_draft && !self.may_use_tcp()) {
            let why = "the server speaks no version of TSP that we do".to_owned();
            return self.next_broker(End::Refused(why));
        }
        if is_draft {
            self.over = Transport::Tcp;
        }
    }

    fn elsewhere(&mut self, mut places: Vec<Place>) {
        self.been.extend(self.brokers.pop_front());
        self.begin();
        if self.been.len() > MOST_REDIRECTIONS {
            let why = format!("the brokers have sent us on {MOST_REDIRECTIONS} times without a tunnel");
            return self.end = Some(End::Lost(why));
        }
        places.retain(|place| !self.been.contains(place));
        match places.len() {
            0 => self.end = Some(End::Lost("the brokers send us round in a circle".to_owned())),
            1 => self.brokers = places.into(),
            _ => self.untimed = places,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str) -> Place {
        Place::parse(text).unwrap()
    }

    fn search(mode: Mode) -> Search {
        Search::new(place("a.example"), mode)
    }

    /// Where, how and in which version the next session is.
    fn next(search: &Search) -> String {
        match search.step() {
            Step::Ask { at, over, version } => format!("{at} {over:?} {version}"),
            Step::Time(places) => {
                format!("time {}", places.iter().map(Place::to_string).collect::<Vec<_>>().join(" "))
            }
            Step::Over(end) => format!("over: {end}"),
        }
    }

    fn to(places: &[&str]) -> End {
        End::Elsewhere(places.iter().map(|text| place(text)).collect())
    }

    #[test]
    fn places_are_names_and_ipv4_addresses() {
        assert_eq!(place("Broker.Example:99"), Place { host: "broker.example".to_owned(), port: 99 });
        assert_eq!(place("192.0.2.7").to_string(), "192.0.2.7");
        assert_eq!(place("x:99").to_string(), "x:99");
        for wrong in ["", "a b", "a:0", "a:x", "2001:db8::1", "[2001:db8::1]:3653", "a/b", &"x".repeat(254)] {
            assert_eq!(Place::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn udp_comes_first_and_tcp_next() {
        let mut any = search(Mode::V6AnyV4);
        assert_eq!(next(&any), "a.example Udp 2.0.2");
        any.handle_end(End::Silent);
        assert_eq!(next(&any), "a.example Tcp 2.0.2");
        any.handle_end(End::Silent);
        assert_eq!(next(&any), "over: a.example does not answer");
        let mut udp = search(Mode::V6UdpV4);
        udp.handle_end(End::Silent);
        assert_eq!(next(&udp), "over: a.example does not answer");
    }

    #[test]
    fn versions_go_down_to_the_draft_s() {
        let mut any = search(Mode::V6V4);
        let mut seen = Vec::new();
        for _ in 0..VERSIONS.len() {
            seen.push(next(&any));
            any.handle_end(End::OtherVersion);
        }
        assert_eq!(
            seen,
            [
                "a.example Udp 2.0.2",
                "a.example Udp 2.0.1",
                "a.example Udp 2.0.0",
                "a.example Tcp 1.0.1",
                "a.example Tcp 1.0"
            ]
        );
        assert!(next(&any).contains("no version"));
        let mut udp = search(Mode::V6UdpV4);
        (0..3).for_each(|_| udp.handle_end(End::OtherVersion));
        assert!(matches!(udp.step(), Step::Over(End::Refused(_))));
    }

    #[test]
    fn errors_of_the_server_change_no_transport() {
        let mut any = search(Mode::V6AnyV4);
        any.handle_end(End::Lost("busy".to_owned()));
        assert_eq!(next(&any), "over: busy");
        let mut any = search(Mode::V6AnyV4);
        any.handle_end(End::Refused("password".to_owned()));
        assert!(matches!(any.step(), Step::Over(End::Refused(_))));
    }

    #[test]
    fn one_broker_is_gone_to_and_several_are_timed() {
        let mut any = search(Mode::V6AnyV4);
        any.handle_end(End::Silent);
        any.handle_end(to(&["b.example"]));
        assert_eq!(next(&any), "b.example Udp 2.0.2");
        any.handle_end(to(&["c", "d:99", "e"]));
        assert_eq!(next(&any), "time c d:99 e");
        let ms = |n| Some(Duration::from_millis(n));
        any.handle_times(&[None, ms(20), ms(10)]);
        assert_eq!(next(&any), "e Udp 2.0.2");
        any.handle_end(End::Lost("busy".to_owned()));
        assert_eq!(next(&any), "d:99 Udp 2.0.2");
        any.handle_end(End::Silent);
        any.handle_end(End::Silent);
        assert_eq!(next(&any), "c Udp 2.0.2");
        any.handle_end(End::Lost("full".to_owned()));
        assert_eq!(next(&any), "over: full");
    }

    #[test]
    fn circles_are_noticed_and_the_way_is_bounded() {
        let mut any = search(Mode::V6AnyV4);
        any.handle_end(to(&["b"]));
        any.handle_end(to(&["a.example", "b"]));
        assert_eq!(next(&any), "over: the brokers send us round in a circle");
        let mut any = search(Mode::V6AnyV4);
        for n in 0..=MOST_REDIRECTIONS {
            assert!(next(&any).contains("Udp"), "{n}");
            any.handle_end(to(&[&format!("b{n}")]));
        }
        assert!(next(&any).contains("5 times"));
    }
}
