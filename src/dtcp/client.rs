//! The other side: a client that asks a DTCP server for a tunnel and keeps it.
//!
//! Pure: octets and times in, [`Output`]s out. Does not know how the tunnel is set up, and does not connect again by
//! itself; how long to wait before that is [`Backoff`]'s.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use zeroize::Zeroizing;

use super::codec::{Command, Kind, MAX_LINE, Net, TunnelWords, UdpWish, Up, UpInner, digest, greeting};

/// A ping is sent so long after the last one.
pub const PING: Duration = Duration::from_secs(60);
/// A server that does not answer for so long is gone.
pub const ANSWER: Duration = Duration::from_secs(30);

/// What is asked for.
#[derive(Clone)]
pub struct Wish {
    /// On whose account.
    pub user: String,
    /// What proves it.
    pub secret: Zeroizing<Vec<u8>>,
    /// What type.
    pub kind: Kind,
    /// Not by protocol 41 but in UDP: our extension.
    pub udp: Option<UdpWish>,
    /// Whether the server may see us at another address than we do.
    pub behind_nat: bool,
}

impl std::fmt::Debug for Wish {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { user, secret: _, kind, udp, behind_nat } = self;
        write!(f, "Wish({user}, secret, {}, {udp:?}, {behind_nat})", kind.name())
    }
}

/// What the caller must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send these octets.
    Send(Vec<u8>),
    /// The tunnel is granted: set it up.
    Up(Up),
    /// It is over, and why.
    Over(End),
}

/// Why it is over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum End {
    /// The server does not want us, and will not the next time.
    #[error("{0}")]
    Refused(String),
    /// The connection is gone; the next one may work.
    #[error("{0}")]
    Lost(String),
}

/// One connection.
#[derive(Debug)]
pub struct Client {
    wish: Wish,
    local: IpAddr,
    stage: Stage,
    input: Vec<u8>,
    out: Vec<Output>,
    /// When a ping is due, or an answer overdue.
    deadline: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Greeting,
    Asking,
    Up,
    /// A ping is out.
    Pinged,
    Over,
}

impl Client {
    /// A connection that has just come about; `local` is our own address on it.
    pub fn new(wish: Wish, local: IpAddr, now: Duration) -> Self {
        let (stage, deadline) = (Stage::Greeting, now + ANSWER);
        Self { wish, local, stage, input: Vec::new(), out: Vec::new(), deadline }
    }

    /// Octets have come.
    pub fn handle_input(&mut self, octets: &[u8], now: Duration) {
        self.input.extend_from_slice(octets);
        while let Some(end) = self.input.iter().position(|octet| *octet == b'\n') {
            let line: Vec<u8> = self.input.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            // What is said is shown to people: it must not play with their terminals.
            let line = line.trim_end_matches(['\r', '\n']).replace(char::is_control, "?");
            self.handle_line(&line, now);
        }
        if self.input.len() > MAX_LINE {
            self.input.clear();
            self.end(End::Lost(format!("the server's line is longer than {MAX_LINE} octets")));
        }
    }

    /// The server has ended the connection.
    pub fn handle_end(&mut self) {
        let why = match self.stage {
            Stage::Greeting => {
                "the server closed the connection at once: it may be full, or limit how often you come"
            }
            Stage::Asking => "the server closed the connection without an answer",
            Stage::Up | Stage::Pinged => {
                "the server ended the tunnel: a newer session of this user may have taken over, or its operator did"
            }
            Stage::Over => return,
        };
        self.end(End::Lost(why.to_owned()));
    }

    /// The time has come that [`Self::poll_timeout`] said.
    pub fn handle_timeout(&mut self, now: Duration) {
        if self.poll_timeout().is_none_or(|at| at > now) {
            return;
        }
        if self.stage == Stage::Up {
            self.say(&Command::Ping);
            self.stage = Stage::Pinged;
            self.deadline = now + ANSWER;
            return;
        }
        self.end(End::Lost(format!("the server has not answered for {} s", ANSWER.as_secs())));
    }

    /// When [`Self::handle_timeout`] must be called; `None` when it is over.
    pub fn poll_timeout(&self) -> Option<Duration> {
        (self.stage != Stage::Over).then_some(self.deadline)
    }

    /// We want no more: the tunnel goes back.
    pub fn quit(&mut self) {
        if self.stage != Stage::Over {
            self.say(&Command::Quit);
            self.stage = Stage::Over;
        }
    }

    /// What is to be done, once.
    pub fn poll_output(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.out)
    }

    fn handle_line(&mut self, line: &str, now: Duration) {
        match self.stage {
            Stage::Greeting => self.handle_greeting(line, now),
            Stage::Asking => self.handle_answer(line, now),
            // What is said unasked is the end of it.
            Stage::Up => self.end(End::Lost(format!("the server said '{line}'"))),
            Stage::Pinged if line.starts_with("+OK") => {
                self.stage = Stage::Up;
                self.deadline = now + PING;
            }
            Stage::Pinged => self.end(End::Lost(format!("the server answered a ping with '{line}'"))),
            Stage::Over => {}
        }
    }

    fn handle_greeting(&mut self, line: &str, now: Duration) {
        let Some(challenge) = greeting(line) else {
            return self
                .end(End::Refused(format!("'{line}' is not how a DTCP server greets: is the port right?")));
        };
        let Wish { user, secret, kind, udp, .. } = &self.wish;
        let (digest, kind) = (digest(user, challenge, secret), kind.name().to_owned());
        let words = TunnelWords { user: user.clone(), digest, kind, udp: *udp };
        self.say(&Command::Tunnel(words));
        self.stage = Stage::Asking;
        self.deadline = now + ANSWER;
    }

    fn handle_answer(&mut self, line: &str, now: Duration) {
        match Up::parse(line, self.wish.kind) {
            Err(why) => self.refused(advised(why, self.wish.udp.is_some())),
            Ok(up) if up.udp_port.is_none() && self.wish.udp.is_some() => {
                self.refused("the server gave a tunnel by protocol 41, not in UDP: it does not know how".to_owned());
            }
            Ok(up) if !self.wish.behind_nat && self.local != IpAddr::V4(up.client) => self.refused(format!(
                "the server sees us at {} and not at {}: there is a NAT between; if it lets protocol 41 through, say so (-n, \
                 or ?nat), or use UDP (?udp)",
                up.client, self.local
            )),
            Ok(up) => {
                self.out.push(Output::Up(up));
                self.stage = Stage::Up;
                self.deadline = now + PING;
            }
        }
    }

    fn refused(&mut self, why: String) {
        self.say(&Command::Quit);
        // Sold out, throttled, not known here: only the last one is worth no other try, and nobody can tell them apart
        // but by these two texts, which do not change from server to server.
        let hopeless =
            ["authentication failed", "unsupported tunnel type", "NAT between", "does not know how"];
        let end =
            if hopeless.iter().any(|text| why.contains(text)) { End::Refused(why) } else { End::Lost(why) };
        self.end(end);
    }

    fn end(&mut self, end: End) {
        if self.stage != Stage::Over {
            self.stage = Stage::Over;
            self.out.push(Output::Over(end));
        }
    }

    fn say(&mut self, command: &Command) {
        let mut octets = Vec::new();
        command.emit(&mut octets);
        self.out.push(Output::Send(octets));
    }
}

/// What can be done about a refusal, behind it. A server without UDP refuses the words for it as it does a wrong password.
fn advised(why: String, in_udp: bool) -> String {
    let wrong = match in_udp {
        true => "user or password is wrong, or it gives no IPv6 in UDP: `udp = true` in its [dtcp]",
        false => "user or password is wrong",
    };
    let known = [
        ("authentication failed", wrong),
        ("unsupported tunnel type", "ask for another one"),
        (
            "no prefix for user",
            "the server has no network for this user; ask its operator, or for another type",
        ),
        ("too many attempts", "several passwords were wrong"),
        ("sold out", "everything is in use there"),
    ];
    let advice = known.iter().find(|(text, _)| why.contains(text));
    advice.map_or_else(|| why.clone(), |(_, next)| format!("{why} ({next})"))
}

/// How long to wait before the next connection: twice as long each time, from one second up to a minute if nothing else is
/// said. A little less or more, so that not all clients of a server come back in the same moment.
#[derive(Debug)]
pub struct Backoff {
    failures: u32,
    first: Duration,
    most: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::between(Duration::from_secs(1), Duration::from_secs(60))
    }
}

impl Backoff {
    /// From `first` up to `most`.
    pub fn between(first: Duration, most: Duration) -> Self {
        Self { failures: 0, first, most: most.max(first) }
    }

    /// The tunnel was up: the next failure is the first.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// How long to wait now; `random` is any number.
    pub fn wait(&mut self, random: u64) -> Duration {
        let full = self.first.saturating_mul(1 << self.failures.min(16)).min(self.most);
        self.failures = self.failures.saturating_add(1);
        full * 3 / 4 + full * u32::try_from(random % 1000).unwrap_or(0) / 2000
    }
}

/// The router's configuration that sets up what was granted: the file that `sixway run` would take.
pub fn configuration(
    up: &Up,
    local: Ipv4Addr,
    udp_port: Option<u16>,
    tun: &str,
    mtu: u16,
    routes: bool,
) -> String {
    let address = match &up.inner {
        UpInner::TunnelOnly => String::new(),
        UpInner::Host { client, .. } => format!("\"{client}/128\""),
        UpInner::Network(nets) => {
            let first = |net: &Net| {
                let inside = if net.len < 128 { u128::from(net.addr) | 1 } else { u128::from(net.addr) };
                format!("\"{}/128\"", std::net::Ipv6Addr::from(inside))
            };
            nets.iter().map(first).collect::<Vec<_>>().join(", ")
        }
    };
    let (encap, near, far) = match (up.udp_port, udp_port) {
        (Some(theirs), Some(ours)) => ("udp", format!("{local}:{ours}"), format!("{}:{theirs}", up.server)),
        (Some(_) | None, _) => ("proto41", local.to_string(), up.server.to_string()),
    };
    format!(
        "[router]\ntun = \"{tun}\"\naddress = [{address}]\n\n[udp]\nports = []\n\n[[tunnel]]\nname = \"dtcp\"\n\
         encap = \"{encap}\"\nlocal = \"{near}\"\nremote = \"{far}\"\nprefixes = [\"::/0\"]\nmtu = {mtu}\n\
         default_route = {routes}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    const ME: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn client(kind: Kind, udp: Option<UdpWish>) -> Client {
        let wish = Wish {
            user: "foo".to_owned(),
            secret: Zeroizing::new(b"bar".to_vec()),
            kind,
            udp,
            behind_nat: false,
        };
        Client::new(wish, IpAddr::V4(ME), s(0))
    }

    fn hears(client: &mut Client, line: &str, now: Duration) -> Vec<Output> {
        client.handle_input(format!("{line}\r\n").as_bytes(), now);
        client.poll_output()
    }

    fn send(text: &str) -> Output {
        Output::Send(text.as_bytes().to_vec())
    }

    const GREETING: &str = "+OK 80A1E12A4C7B61546333C93EDF23C972 KAME tunnel server";

    fn granted() -> Client {
        let mut client = client(Kind::Network, None);
        hears(&mut client, GREETING, s(1));
        let out = hears(&mut client, "+OK 10.77.0.2 10.77.0.1 2001:db8:7::/48", s(2));
        let net = Net { addr: "2001:db8:7::".parse().unwrap(), len: 48 };
        let [Output::Up(up)] = &out[..] else { panic!("{out:?}") };
        assert_eq!(up.inner, UpInner::Network(vec![net]));
        client
    }

    #[test]
    fn it_asks_with_the_right_digest() {
        let mut client = client(Kind::Host, None);
        let out = hears(&mut client, GREETING, s(1));
        assert_eq!(out, [send("tunnel foo A9DA0CC82CD149A2581E6C06E21BB261 host\r\n")]);
        let mut udp = super::tests::client(Kind::Host, Some(UdpWish { port: Some(4028) }));
        let out = hears(&mut udp, GREETING, s(1));
        assert_eq!(out, [send("tunnel foo A9DA0CC82CD149A2581E6C06E21BB261 host udp/4028\r\n")]);
    }

    #[test]
    fn it_pings_every_minute_and_notices_silence() {
        let mut client = granted();
        assert_eq!(client.poll_timeout(), Some(s(62)));
        client.handle_timeout(s(62));
        assert_eq!(client.poll_output(), [send("ping\r\n")]);
        assert!(hears(&mut client, "+OK pong", s(63)).is_empty());
        assert_eq!(client.poll_timeout(), Some(s(123)));
        client.handle_timeout(s(123));
        client.handle_timeout(s(153));
        assert!(matches!(&client.poll_output()[..], [_, Output::Over(End::Lost(_))]));
        assert_eq!(client.poll_timeout(), None);
    }

    #[test]
    fn it_quits() {
        let mut client = granted();
        client.quit();
        assert_eq!(client.poll_output(), [send("quit\r\n")]);
        client.handle_end();
        assert!(client.poll_output().is_empty());
    }

    #[test]
    fn refusals_are_told_from_losses() {
        let answer = |line: &str| {
            let mut client = client(Kind::Host, None);
            hears(&mut client, GREETING, s(1));
            let mut out = hears(&mut client, line, s(2));
            assert_eq!(out.remove(0), send("quit\r\n"));
            let Some(Output::Over(end)) = out.pop() else { panic!("{out:?}") };
            end
        };
        let wrong = answer("-ERR authentication failed.");
        assert!(matches!(&wrong, End::Refused(why) if !why.contains("UDP")), "{wrong}");
        let mut in_udp = client(Kind::Host, Some(UdpWish { port: None }));
        hears(&mut in_udp, GREETING, s(1));
        let out = hears(&mut in_udp, "-ERR authentication failed.", s(2));
        assert!(
            matches!(out.last(), Some(Output::Over(End::Refused(why))) if why.contains("`udp = true`")),
            "{out:?}"
        );
        assert!(matches!(answer("-ERR tunnel interface sold out"), End::Lost(_)));
        let refused = answer("-ERR no prefix for user \u{1b}[2Jfoo").to_string();
        assert!(refused.contains("ask its operator") && refused.contains("?[2Jfoo"), "{refused}");
        let nat = answer("+OK 192.0.2.9 10.77.0.1 3ffe::6 3ffe::5");
        assert!(matches!(&nat, End::Refused(why) if why.contains("NAT")), "{nat}");
        let mut client = client(Kind::Host, None);
        assert!(matches!(&hears(&mut client, "SSH-2.0-x", s(1))[..], [Output::Over(End::Refused(_))]));
        let mut granted = granted();
        let said = hears(&mut granted, "-ERR connection timed out, disconnecting", s(9));
        assert!(matches!(&said[..], [Output::Over(End::Lost(why))] if why.contains("timed out")));
    }

    #[test]
    fn a_nat_may_be_known_of() {
        let mut client = client(Kind::TunnelOnly, None);
        client.wish.behind_nat = true;
        hears(&mut client, GREETING, s(1));
        assert!(matches!(&hears(&mut client, "+OK 192.0.2.9 10.77.0.1", s(2))[..], [Output::Up(_)]));
    }

    #[test]
    fn a_line_without_end_is_bounded() {
        let mut client = client(Kind::Host, None);
        client.handle_input(&[b'x'; MAX_LINE + 1], s(1));
        assert!(matches!(&client.poll_output()[..], [Output::Over(End::Lost(_))]));
        assert!(client.input.is_empty());
    }

    #[test]
    fn waiting_grows_to_a_minute_and_starts_again() {
        let mut backoff = Backoff::default();
        let waits: Vec<u64> = (0..9).map(|_| backoff.wait(500).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        backoff.reset();
        assert!(backoff.wait(0) < s(1) && backoff.wait(999) > s(2));
    }

    #[test]
    fn what_is_set_up_is_a_valid_configuration() {
        let inners = [
            UpInner::TunnelOnly,
            UpInner::Host { client: "3ffe::0006".to_owned(), server: "3ffe::0005".to_owned() },
            UpInner::Network(vec!["2001:db8::/48".parse().unwrap(), "2001:db8:1::1/128".parse().unwrap()]),
        ];
        for inner in inners {
            for udp_port in [None, Some(4028)] {
                let up =
                    Up { client: ME, server: Ipv4Addr::new(10, 77, 0, 1), inner: inner.clone(), udp_port };
                let text = configuration(&up, ME, Some(4028), "six0", 1280, true);
                crate::config::Config::parse("dtcp", &text).unwrap_or_else(|why| panic!("{why}\n{text}"));
            }
        }
    }
}
