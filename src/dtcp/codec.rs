//! Lines of the Dynamic Tunnel Configuration Protocol as the KAME and ume programs speak it, and their digest.
//!
//! Text, one command and one reply a line. The server ends lines with CR LF and takes LF alone; words are parted by
//! exactly one space; the command word is the only one whose case does not matter. There is no standard: the draft of
//! 1999 was never published, and what stands here is what the programs do. Knows no state, no user and no timer.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use md5::{Digest, Md5};
use subtle::ConstantTimeEq;

/// The longest line that is read, in octets without its end. The longest useful one is a user name, a digest and a type.
pub const MAX_LINE: usize = 512;
/// The TCP port when nothing else is said.
pub const PORT: u16 = 20_200;

/// What the greeting tells the client to hash: 32 hexadecimal digits, taken as text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Challenge([u8; 32]);

impl Challenge {
    /// Out of 16 random octets.
    pub fn new(random: [u8; 16]) -> Self {
        Self(hexadecimal(random))
    }

    /// The text of it.
    pub fn as_str(&self) -> &str {
        // Hexadecimal digits are ASCII.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Debug for Challenge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What proves a user: MD5 over user, challenge and secret, one after the other, as 32 upper-case hexadecimal digits.
///
/// `challenge` is any text here, because a client hashes what it was sent, whatever that is.
pub fn digest(user: &str, challenge: &str, secret: &[u8]) -> String {
    let mut hash = Md5::new();
    hash.update(user.as_bytes());
    hash.update(challenge.as_bytes());
    hash.update(secret);
    String::from_utf8_lossy(&hexadecimal(hash.finalize().into())).into_owned()
}

/// Whether `claimed` is that digest, in either case of its letters; the time it takes tells nothing of how near it was.
pub fn proves(claimed: &str, user: &str, challenge: Challenge, secret: &[u8]) -> bool {
    let right = digest(user, challenge.as_str(), secret);
    right.as_bytes().ct_eq(claimed.to_ascii_uppercase().as_bytes()).into()
}

fn hexadecimal(octets: [u8; 16]) -> [u8; 32] {
    let digit = |n: u8| b"0123456789ABCDEF"[usize::from(n)];
    std::array::from_fn(|n| {
        let octet = octets[n / 2];
        digit(if n % 2 == 0 { octet >> 4 } else { octet & 0xf })
    })
}

/// What a client says on one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// `tunnel`, with what follows it.
    Tunnel(TunnelWords),
    /// `tunnel` with too few or too many words.
    BadTunnel,
    /// `ping`.
    Ping,
    /// `help`.
    Help,
    /// `quit`.
    Quit,
    /// Anything else.
    Unknown,
}

/// The words of `tunnel USER DIGEST TYPE`, and what our extension adds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelWords {
    /// Who asks.
    pub user: String,
    /// What shall prove it.
    pub digest: String,
    /// The type as it was written; see [`Kind::parse`].
    pub kind: String,
    /// The extension's words, where there are any.
    pub udp: Option<UdpWish>,
}

/// Our extension: IPv6 in UDP is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpWish {
    /// The port that the client sends from; `None`: it is behind a NAT, and the port is learned.
    pub port: Option<u16>,
}

/// The type of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A bare link with link-local addresses.
    TunnelOnly,
    /// An address for each end.
    Host,
    /// The user's prefixes behind the tunnel.
    Network,
}

impl Kind {
    /// The type of that name; `tunnelroute` is another one for `network`.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "tunnelonly" => Some(Self::TunnelOnly),
            "host" => Some(Self::Host),
            "network" | "tunnelroute" => Some(Self::Network),
            _ => None,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::TunnelOnly => "tunnelonly",
            Self::Host => "host",
            Self::Network => "network",
        }
    }
}

impl Command {
    /// Reads a line without its end. `with_udp` says whether words behind the type are read; else they are too many.
    pub fn parse(line: &[u8], with_udp: bool) -> Self {
        // Words of strange octets can equal no word that is known; users and digests that have some prove nothing.
        let text: String = String::from_utf8_lossy(line).replace(['\r', '\n'], "");
        let words: Vec<&str> = text.trim_end_matches(' ').split(' ').collect();
        let command = words.first().copied().unwrap_or_default();
        let is = |name: &str| command.eq_ignore_ascii_case(name);
        if is("tunnel") {
            return tunnel_words(&words[1..], with_udp).map_or(Self::BadTunnel, Self::Tunnel);
        }
        if is("ping") {
            return Self::Ping;
        }
        if is("help") {
            return Self::Help;
        }
        if is("quit") { Self::Quit } else { Self::Unknown }
    }

    /// Appends the line with its end. [`Self::BadTunnel`] and [`Self::Unknown`] are nothing to say.
    pub fn emit(&self, out: &mut Vec<u8>) {
        let line = match self {
            Self::Tunnel(TunnelWords { user, digest, kind, udp: None }) => {
                format!("tunnel {user} {digest} {kind}\r\n")
            }
            Self::Tunnel(TunnelWords { user, digest, kind, udp: Some(wish) }) => {
                format!("tunnel {user} {digest} {kind} {wish}\r\n")
            }
            Self::Ping => "ping\r\n".to_owned(),
            Self::Help => "help\r\n".to_owned(),
            Self::Quit => "quit\r\n".to_owned(),
            Self::BadTunnel | Self::Unknown => return,
        };
        out.extend_from_slice(line.as_bytes());
    }
}

fn tunnel_words(words: &[&str], with_udp: bool) -> Option<TunnelWords> {
    let (user, digest, kind, udp) = match words {
        [user, digest, kind] => (user, digest, kind, None),
        [user, digest, kind, wish] if with_udp => (user, digest, kind, Some(wish.parse().ok()?)),
        [user, digest, kind, "udp", port] if with_udp => {
            (user, digest, kind, Some(UdpWish { port: Some(udp_port(port)?) }))
        }
        _ => return None,
    };
    let [user, digest, kind] = [user, digest, kind].map(|word| (*word).to_owned());
    Some(TunnelWords { user, digest, kind, udp })
}

impl FromStr for UdpWish {
    type Err = ();

    fn from_str(word: &str) -> Result<Self, ()> {
        match word.split_once('/') {
            None if word == "udp" => Ok(Self { port: None }),
            Some(("udp", port)) => Ok(Self { port: Some(udp_port(port).ok_or(())?) }),
            Some(_) | None => Err(()),
        }
    }
}

impl fmt::Display for UdpWish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            None => f.write_str("udp"),
            Some(port) => write!(f, "udp/{port}"),
        }
    }
}

fn udp_port(word: &str) -> Option<u16> {
    word.parse().ok().filter(|port| *port != 0)
}

/// A prefix in a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Net {
    /// Its lowest address.
    pub addr: Ipv6Addr,
    /// Its length in bits, at most 128.
    pub len: u8,
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.len)
    }
}

impl FromStr for Net {
    type Err = ();

    fn from_str(word: &str) -> Result<Self, ()> {
        let (addr, len) = word.split_once('/').ok_or(())?;
        let len = len.parse().ok().filter(|len| *len <= 128).ok_or(())?;
        Ok(Self { addr: addr.parse().map_err(drop)?, len })
    }
}

/// What the server answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The first line of all.
    Greeting(Challenge),
    /// A tunnel is up. The fields' order is client, server.
    Up(Up),
    /// To `ping`.
    Pong,
    /// To `help`.
    Commands,
    /// To `quit`.
    Bye,
    /// To what is no command.
    InvalidCommand,
    /// Wrong user, wrong digest, wrong number of words: nobody is told which.
    LoginFailed,
    /// A type that is not known, or not here.
    UnsupportedType(String),
    /// No interface is free.
    SoldOut,
    /// The user's interface has no number, which an address pair is computed from.
    InterfaceName,
    /// Nothing came for too long.
    TimedOut,
    /// Our own: anything else that stands against it.
    Refused(String),
}

/// A tunnel as the client is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Up {
    /// The client's outer address as the server sees it.
    pub client: Ipv4Addr,
    /// The server's.
    pub server: Ipv4Addr,
    /// What belongs to the type.
    pub inner: UpInner,
    /// The extension's last word: the server's UDP port for this tunnel.
    pub udp_port: Option<u16>,
}

/// What is inside the tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpInner {
    /// Nothing.
    TunnelOnly,
    /// The two addresses, as the text that goes on the wire.
    Host {
        /// The client's.
        client: String,
        /// The server's.
        server: String,
    },
    /// The client's prefixes, parted by commas.
    Network(Vec<Net>),
}

impl Reply {
    /// Appends the line with its end.
    pub fn emit(&self, out: &mut Vec<u8>) {
        let line = match self {
            // Clients hash the line end too where nothing follows the challenge: something must.
            Self::Greeting(challenge) => format!("+OK {} KAME tunnel server", challenge.as_str()),
            Self::Up(up) => up.line(),
            Self::Pong => "+OK hi, happy to hear from you".to_owned(),
            Self::Commands => "+OK valid commands are: TUNNEL PING QUIT".to_owned(),
            Self::Bye => "+OK see you soon.".to_owned(),
            Self::InvalidCommand => "-ERR invalid command".to_owned(),
            Self::LoginFailed => "-ERR authentication failed.".to_owned(),
            Self::UnsupportedType(kind) => format!("-ERR unsupported tunnel type {kind}"),
            Self::SoldOut => "-ERR tunnel interface sold out".to_owned(),
            Self::InterfaceName => "-ERR internal error: tunnel interface name format is wrong".to_owned(),
            Self::TimedOut => "-ERR connection timed out, disconnecting".to_owned(),
            Self::Refused(why) => format!("-ERR {why}"),
        };
        out.extend_from_slice(line.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
}

impl Up {
    fn line(&self) -> String {
        let Self { client, server, inner, udp_port } = self;
        let mut line = format!("+OK {client} {server}");
        match inner {
            UpInner::TunnelOnly => {}
            UpInner::Host { client, server } => line += &format!(" {client} {server}"),
            UpInner::Network(nets) => {
                let nets: Vec<String> = nets.iter().map(Net::to_string).collect();
                line += &format!(" {}", nets.join(","));
            }
        }
        // Only those who asked for it get this word: to others a sixth one turns `host` into `tunnelonly`.
        if let Some(port) = udp_port {
            line += &format!(" udp/{port}");
        }
        line
    }

    /// Reads what a server answered to `tunnel ... KIND`, without its line end.
    ///
    /// # Errors
    /// What is wrong with it, in words for people.
    pub fn parse(line: &str, kind: Kind) -> Result<Self, String> {
        let refused = |why: &str| Err(format!("the server said '{line}': {why}"));
        let Some(rest) = line.strip_prefix("+OK") else { return refused("it refuses the tunnel") };
        let mut words: Vec<&str> = rest.split(' ').filter(|word| !word.is_empty()).collect();
        let udp_port = words.last().and_then(|word| word.parse::<UdpWish>().ok()).and_then(|wish| wish.port);
        if udp_port.is_some() {
            words.pop();
        }
        let [client, server, inner @ ..] = &words[..] else { return refused("two addresses are expected") };
        let (Ok(client), Ok(server)) = (client.parse(), server.parse()) else {
            return refused("the first two fields are no IPv4 addresses");
        };
        let inner = match (kind, inner) {
            (Kind::TunnelOnly, _) => UpInner::TunnelOnly,
            (Kind::Host, [client, server]) if is_address(client) && is_address(server) => {
                UpInner::Host { client: (*client).to_owned(), server: (*server).to_owned() }
            }
            (Kind::Host, _) => return refused("two IPv6 addresses are expected behind the IPv4 ones"),
            (Kind::Network, [list]) => match list.split(',').map(str::parse).collect() {
                Ok(nets) => UpInner::Network(nets),
                Err(()) => return refused("the last field is no IPv6 prefix"),
            },
            (Kind::Network, _) => return refused("one prefix is expected behind the IPv4 addresses"),
        };
        Ok(Self { client, server, inner, udp_port })
    }
}

fn is_address(word: &str) -> bool {
    word.parse::<Ipv6Addr>().is_ok()
}

/// The challenge out of a greeting without its line end: the second word, whatever it is.
pub fn greeting(line: &str) -> Option<&str> {
    line.split(' ').nth(1).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tunnel(user: &str, digest: &str, kind: &str, udp: Option<UdpWish>) -> Command {
        let [user, digest, kind] = [user, digest, kind].map(str::to_owned);
        Command::Tunnel(TunnelWords { user, digest, kind, udp })
    }

    fn challenge(text: &str) -> Challenge {
        Challenge(text.as_bytes().try_into().unwrap())
    }

    #[test]
    fn digests_are_those_of_the_old_programs() {
        let known = [
            ("foo", "bar", "0B1517C87D516A5FA65BED722D51A04F", "DAC487C8DFBBF9EE5C7F8CDCC37B62A3"),
            ("foo", "bar", "80A1E12A4C7B61546333C93EDF23C972", "A9DA0CC82CD149A2581E6C06E21BB261"),
            ("foo", "bar", "AAAABBBBCCCCDDDDEEEEFFFF00001111", "D4640808D780A354B54E9ECB3F33E38E"),
            ("alice", "secret", "0123456789ABCDEF0123456789ABCDEF", "892F60DAF3D3FF23C2256709D5C8EBC3"),
        ];
        for (user, secret, sent, right) in known {
            assert_eq!(digest(user, sent, secret.as_bytes()), right);
            let sent = challenge(sent);
            assert!(proves(right, user, sent, secret.as_bytes()));
            assert!(proves(&right.to_ascii_lowercase(), user, sent, secret.as_bytes()), "either case");
            assert!(!proves(&right[1..], user, sent, secret.as_bytes()));
            assert!(!proves(right, user, sent, b"other"));
        }
    }

    #[test]
    fn a_challenge_is_32_digits() {
        assert_eq!(Challenge::new([0xa5; 16]).as_str(), "A5".repeat(16));
        assert_eq!(
            Challenge::new(*b"\x01\x23\x45\x67\x89\xab\xcd\xef        ").as_str()[..16],
            *"0123456789ABCDEF"
        );
    }

    #[test]
    fn words_are_parted_by_one_space() {
        assert_eq!(Command::parse(b"tunnel foo AA host", false), tunnel("foo", "AA", "host", None));
        assert_eq!(Command::parse(b"TUNNEL foo AA HOST", false), tunnel("foo", "AA", "HOST", None));
        assert_eq!(Command::parse(b"tunnel foo AA host   ", false), tunnel("foo", "AA", "host", None));
        assert_eq!(Command::parse(b"tunnel  foo AA host", false), Command::BadTunnel, "an empty word");
        assert_eq!(Command::parse(b"tunnel foo", false), Command::BadTunnel);
        assert_eq!(Command::parse(b"tunnel foo AA host udp", false), Command::BadTunnel, "not switched on");
        for line in [&b"PiNg"[..], b"ping x y", b"ping\r\r"] {
            assert_eq!(Command::parse(line, false), Command::Ping);
        }
        for line in [&b""[..], b" ping", b"pingx", b"\xff\xfe", b"\t"] {
            assert_eq!(Command::parse(line, false), Command::Unknown, "{line:?}");
        }
    }

    #[test]
    fn the_extension_s_words() {
        let wish = |port| tunnel("foo", "AA", "host", Some(UdpWish { port }));
        assert_eq!(Command::parse(b"tunnel foo AA host udp", true), wish(None));
        assert_eq!(Command::parse(b"tunnel foo AA host udp/4028", true), wish(Some(4028)));
        assert_eq!(Command::parse(b"tunnel foo AA host udp 4028", true), wish(Some(4028)));
        for wrong in ["udp/0", "udp/", "udp/65536", "tcp", "udp x", "udp 1 2"] {
            let line = format!("tunnel foo AA host {wrong}");
            assert_eq!(Command::parse(line.as_bytes(), true), Command::BadTunnel, "{wrong}");
        }
    }

    #[test]
    fn replies_that_clients_read() {
        let up = Up::parse("+OK 60.32.85.217 43.244.255.37 2001:03e0:03c3::/48", Kind::Network).unwrap();
        let net = Net { addr: "2001:3e0:3c3::".parse().unwrap(), len: 48 };
        assert_eq!(up.inner, UpInner::Network(vec![net]));
        assert_eq!(up.server, Ipv4Addr::new(43, 244, 255, 37));
        let host = Up::parse("+OK 10.0.0.2 10.0.0.1 3ffe::0006 3ffe::0005 udp/4029", Kind::Host).unwrap();
        assert_eq!(host.udp_port, Some(4029));
        for (wrong, kind) in [
            ("-ERR tunnel interface sold out", Kind::Host),
            ("+OK 10.0.0.2", Kind::TunnelOnly),
            ("+OK x y", Kind::TunnelOnly),
            ("+OK 10.0.0.2 10.0.0.1", Kind::Host),
            ("+OK 10.0.0.2 10.0.0.1 x y", Kind::Host),
            ("+OK 10.0.0.2 10.0.0.1 2001:db8::/129", Kind::Network),
            ("+OK 10.0.0.2 10.0.0.1", Kind::Network),
        ] {
            let why = Up::parse(wrong, kind).unwrap_err();
            assert!(why.contains(wrong), "{why}");
        }
    }

    #[test]
    fn the_challenge_is_the_greeting_s_second_word() {
        assert_eq!(greeting("+OK ABC KAME tunnel server"), Some("ABC"));
        assert_eq!(greeting("+OK"), None);
        assert_eq!(greeting("+OK  x"), None);
    }

    proptest! {
        #[test]
        fn any_line_is_read(line in prop::collection::vec(any::<u8>(), 0..600), udp: bool) {
            // Whatever is understood is understood again when it is said again.
            let command = Command::parse(&line, udp);
            let mut said = Vec::new();
            command.emit(&mut said);
            if !said.is_empty() {
                prop_assert_eq!(Command::parse(&said, udp), command);
            }
        }

        #[test]
        fn any_tunnel_line_is_read(rest in "[ a-z0-9/\r]{0,80}", udp: bool) {
            let command = Command::parse(format!("tunnel {rest}").as_bytes(), udp);
            let mut said = Vec::new();
            command.emit(&mut said);
            if !said.is_empty() {
                prop_assert_eq!(Command::parse(&said, udp), command);
            }
        }

        #[test]
        fn any_reply_is_read(line in ".{0,200}", kind in prop::sample::select(vec![Kind::Host, Kind::Network, Kind::TunnelOnly])) {
            let _either = Up::parse(&line, kind);
            let _none = greeting(&line);
        }
    }
}
