//! Lines of the Tunnel Setup Protocol, its tunnel types and its status codes (RFC 5572 section 4.4 and appendix B,
//! draft-vg-ngtrans-tsp-01 section 4), as deployed clients write and read them.
//!
//! Lenient in what is read, exact in what is written: clients take one `recv` for one line, compare tunnel types letter
//! by letter, and lose the last word of a line without an end. Knows no XML, no state and no secret.

use std::fmt;
use std::str::FromStr;

/// The port of both TCP and UDP (RFC 5572 section 9).
pub const PORT: u16 = 3653;
/// The largest message from a client that is read, in octets without header; no known client sends as much.
pub const MAX_REQUEST: usize = 4096;
/// The largest reply, in octets with its `Content-length` line: deployed clients keep it in 4096 octets.
pub const MAX_REPLY: usize = 4095;

/// What a client says behind `VERSION=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The first number.
    pub major: u16,
    /// The second one.
    pub minor: u16,
    /// The third one, 0 where there is none.
    pub patch: u16,
}

/// Which document a session follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// draft-vg-ngtrans-tsp-01: TCP, no `accept`, few codes.
    Draft,
    /// RFC 5572.
    Rfc,
}

impl Version {
    /// What our own client says first.
    pub const OURS: Self = Self { major: 2, minor: 0, patch: 0 };

    /// Reads `2.0.1`; 2 or 3 numbers of at most 4 digits.
    pub fn parse(text: &str) -> Option<Self> {
        let number = |word: &str| {
            let plain = (1..=4).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_digit());
            plain.then(|| word.parse().ok()).flatten()
        };
        let mut words = text.split('.');
        let (major, minor) = (number(words.next()?)?, number(words.next()?)?);
        let patch = words.next().map_or(Some(0), number)?;
        words.next().is_none().then_some(Self { major, minor, patch })
    }

    /// The document that this version follows: 1.0, 1.0.0 and 1.0.1 the draft, 2.0 with any third number the RFC, others
    /// none, the draft's own example 0.1 among them.
    pub fn dialect(self) -> Option<Dialect> {
        match (self.major, self.minor, self.patch) {
            (1, 0, 0 | 1) => Some(Dialect::Draft),
            (2, 0, _) => Some(Dialect::Rfc),
            _ => None,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { major, minor, patch } = self;
        // The draft knows two numbers only.
        if (*major, *patch) == (1, 0) {
            write!(f, "{major}.{minor}")
        } else {
            write!(f, "{major}.{minor}.{patch}")
        }
    }
}

/// A type of tunnel (RFC 5572 section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// IPv6 in IPv4, protocol 41.
    V6V4,
    /// IPv6 in UDP in IPv4.
    V6UdpV4,
    /// Whichever of the two gets through.
    V6AnyV4,
    /// IPv4 in IPv6 (DSTM).
    V4V6,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::V6V4, Self::V6UdpV4, Self::V6AnyV4, Self::V4V6];

    /// How it stands in XML.
    pub fn name(self) -> &'static str {
        match self {
            Self::V6V4 => "v6v4",
            Self::V6UdpV4 => "v6udpv4",
            Self::V6AnyV4 => "v6anyv4",
            Self::V4V6 => "v4v6",
        }
    }

    /// How it stands in a capability line, letter by letter; there is no word for [`Self::V6AnyV4`].
    pub fn token(self) -> Option<&'static str> {
        match self {
            Self::V6V4 => Some("V6V4"),
            Self::V6UdpV4 => Some("V6UDPV4"),
            Self::V4V6 => Some("V4V6"),
            Self::V6AnyV4 => None,
        }
    }
}

impl FromStr for Mode {
    type Err = ();

    /// The type of that name, in any case of its letters.
    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|mode| mode.name().eq_ignore_ascii_case(text)).ok_or(())
    }
}

/// What a server offers: `CAPABILITY TUNNEL=V6V4 AUTH=ANONYMOUS`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capability {
    /// Tunnel types.
    pub tunnels: Vec<Mode>,
    /// SASL mechanisms by name, the preferred one first.
    pub mechanisms: Vec<String>,
}

impl Capability {
    /// Reads a server's line, with or without its end. Words that are not known are passed over; `None`: it is none.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(line).ok()?;
        let mut words = text.split([' ', '\r', '\n', '\0']).filter(|word| !word.is_empty());
        words.next().filter(|word| word.eq_ignore_ascii_case("CAPABILITY"))?;
        let mut found = Self::default();
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            if key.eq_ignore_ascii_case("TUNNEL") {
                found.tunnels.extend(value.parse::<Mode>());
            } else if key.eq_ignore_ascii_case("AUTH") {
                found.mechanisms.push(value.to_ascii_uppercase());
            }
        }
        Some(found)
    }

    /// The line with its end.
    pub fn emit(&self) -> String {
        let tunnels =
            self.tunnels.iter().filter_map(|mode| mode.token()).map(|token| format!(" TUNNEL={token}"));
        let mechanisms = self.mechanisms.iter().map(|name| format!(" AUTH={name}"));
        format!("CAPABILITY{}\r\n", tunnels.chain(mechanisms).collect::<String>())
    }
}

/// What a client says on a line before it has proven who it is; answers of mechanisms aside, which only these can read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// `VERSION=2.0.2`; `None`: what follows is no version.
    Version(Option<Version>),
    /// `AUTHENTICATE PLAIN`: the mechanism's name in capitals.
    Authenticate(String),
    /// Anything else.
    Other,
}

impl Line {
    /// Reads a line or datagram: up to its first CR, LF or NUL, in any case of its letters.
    pub fn parse(octets: &[u8]) -> Self {
        let Ok(text) = std::str::from_utf8(first_line(octets)) else { return Self::Other };
        if let Some(rest) = after(text, "VERSION=") {
            return Self::Version(Version::parse(rest.trim_end_matches(' ')));
        }
        match after(text, "AUTHENTICATE ") {
            Some(rest) => {
                let mechanism = rest.trim_start_matches(' ').split(' ').next().unwrap_or_default();
                Self::Authenticate(mechanism.to_ascii_uppercase())
            }
            None => Self::Other,
        }
    }

    /// The line with its end; [`Self::Other`] and a version that is none are nothing to say.
    pub fn emit(&self) -> String {
        match self {
            Self::Version(Some(version)) => format!("VERSION={version}\r\n"),
            Self::Authenticate(mechanism) => format!("AUTHENTICATE {mechanism}\r\n"),
            Self::Version(None) | Self::Other => String::new(),
        }
    }
}

/// What stands before the first line end; NULs in front do not count, and one ends the line like CR and LF.
pub fn first_line(octets: &[u8]) -> &[u8] {
    let octets = skip_nul(octets);
    let end = octets.iter().position(|b| matches!(b, b'\r' | b'\n' | 0)).unwrap_or(octets.len());
    &octets[..end]
}

/// The octets without the NULs in front: clients send one behind `AUTHENTICATE ...`, and it comes before what is next.
pub fn skip_nul(octets: &[u8]) -> &[u8] {
    let start = octets.iter().position(|b| *b != 0).unwrap_or(octets.len());
    &octets[start..]
}

fn after<'a>(text: &'a str, begin: &str) -> Option<&'a str> {
    let (head, rest) = text.split_at_checked(begin.len())?;
    head.eq_ignore_ascii_case(begin).then_some(rest)
}

/// What a status code means (RFC 5572 appendix B; 509, 518, 520 and 522 by deployed clients).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// 200.
    Success,
    /// 300: wrong user, secret or mechanism.
    AuthenticationFailed,
    /// 301: there is no tunnel left to give.
    NoMoreTunnels,
    /// 302.
    UnsupportedVersion,
    /// 303.
    UnsupportedTunnelType,
    /// 310: something went wrong here, or the message does not fit the moment.
    ServerError,
    /// 500: what was sent is no request, or too long.
    InvalidRequest,
    /// 501.
    InvalidIpv4,
    /// 502.
    InvalidIpv6,
    /// 506: another tunnel has this IPv4 address.
    Ipv4InUse,
    /// 507: no prefix of this length can be given.
    PrefixUnavailable,
    /// 509: names cannot be delegated.
    DnsDelegation,
    /// 518: nobody gives prefixes of this length.
    PrefixUnsupported,
    /// 520: a prefix without a length is asked for.
    PrefixMissing,
    /// 521: the request before this one is still being worked on.
    InProgress,
    /// 522: a prefix is asked for by nobody in particular.
    PrefixForAnonymous,
    /// 530: come again later.
    Busy,
    /// One that is not known.
    Unknown(u16),
}

impl Code {
    /// Every code that a server sends, in order of the numbers.
    pub const ALL: [Self; 17] = [
        Self::Success,
        Self::AuthenticationFailed,
        Self::NoMoreTunnels,
        Self::UnsupportedVersion,
        Self::UnsupportedTunnelType,
        Self::ServerError,
        Self::InvalidRequest,
        Self::InvalidIpv4,
        Self::InvalidIpv6,
        Self::Ipv4InUse,
        Self::PrefixUnavailable,
        Self::DnsDelegation,
        Self::PrefixUnsupported,
        Self::PrefixMissing,
        Self::InProgress,
        Self::PrefixForAnonymous,
        Self::Busy,
    ];

    /// Its number.
    pub fn number(self) -> u16 {
        match self {
            Self::Success => 200,
            Self::AuthenticationFailed => 300,
            Self::NoMoreTunnels => 301,
            Self::UnsupportedVersion => 302,
            Self::UnsupportedTunnelType => 303,
            Self::ServerError => 310,
            Self::InvalidRequest => 500,
            Self::InvalidIpv4 => 501,
            Self::InvalidIpv6 => 502,
            Self::Ipv4InUse => 506,
            Self::PrefixUnavailable => 507,
            Self::DnsDelegation => 509,
            Self::PrefixUnsupported => 518,
            Self::PrefixMissing => 520,
            Self::InProgress => 521,
            Self::PrefixForAnonymous => 522,
            Self::Busy => 530,
            Self::Unknown(number) => number,
        }
    }

    /// The code of that number.
    pub fn from_number(number: u16) -> Self {
        Self::ALL.into_iter().find(|code| code.number() == number).unwrap_or(Self::Unknown(number))
    }

    /// Its text; clients look at the number only.
    pub fn text(self) -> &'static str {
        match self {
            Self::Success => "Success",
            Self::AuthenticationFailed => "Authentication failed",
            Self::NoMoreTunnels => "No more tunnels available",
            Self::UnsupportedVersion => "Unsupported client version",
            Self::UnsupportedTunnelType => "Unsupported tunnel type",
            Self::ServerError => "Server side error",
            Self::InvalidRequest => "Invalid request format or specified length",
            Self::InvalidIpv4 => "Invalid IPv4 address",
            Self::InvalidIpv6 => "Invalid IPv6 address",
            Self::Ipv4InUse => "IPv4 address already used for existing tunnel",
            Self::PrefixUnavailable => "Requested prefix length cannot be assigned",
            Self::DnsDelegation => "DNS delegation error",
            Self::PrefixUnsupported => "Unsupported prefix length",
            Self::PrefixMissing => "Missing prefix length",
            Self::InProgress => "Request already in progress",
            Self::PrefixForAnonymous => "Prefix requested by anonymous user",
            Self::Busy => "Server too busy",
            Self::Unknown(_) => "Unknown status",
        }
    }

    /// The nearest of the codes that the draft knows: 200, 300 to 303.
    pub fn in_draft(self) -> Self {
        match self {
            Self::Success
            | Self::AuthenticationFailed
            | Self::NoMoreTunnels
            | Self::UnsupportedVersion
            | Self::UnsupportedTunnelType => self,
            // Later it may work.
            Self::ServerError | Self::Ipv4InUse | Self::InProgress | Self::Busy | Self::Unknown(_) => {
                Self::NoMoreTunnels
            }
            Self::InvalidRequest
            | Self::InvalidIpv4
            | Self::InvalidIpv6
            | Self::PrefixUnavailable
            | Self::DnsDelegation
            | Self::PrefixUnsupported
            | Self::PrefixMissing
            | Self::PrefixForAnonymous => Self::UnsupportedTunnelType,
        }
    }
}

/// A code, and whether a list of other brokers follows: then its number is 1000 higher, 1200 for a bare redirection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Status {
    /// What it means.
    pub code: Code,
    /// Whether it sends the client elsewhere.
    pub redirect: bool,
}

impl Status {
    /// The plain code.
    pub fn plain(code: Code) -> Self {
        Self { code, redirect: false }
    }

    /// With a list of brokers.
    pub fn elsewhere(code: Code) -> Self {
        Self { code, redirect: true }
    }

    /// The status of a line: the number that it begins with, as clients read it.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let line = skip_nul(line);
        let digits = line.iter().take_while(|b| b.is_ascii_digit()).count();
        let number: u16 = std::str::from_utf8(&line[..digits]).ok()?.parse().ok()?;
        let redirect = number > 1000;
        Some(Self { code: Code::from_number(if redirect { number - 1000 } else { number }), redirect })
    }

    /// Its number.
    pub fn number(self) -> u16 {
        self.code.number().saturating_add(if self.redirect { 1000 } else { 0 })
    }

    /// The line with its end.
    pub fn emit(self) -> String {
        let text = if self == Self::elsewhere(Code::Success) { "Redirection" } else { self.code.text() };
        format!("{} {text}\r\n", self.number())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn versions_and_what_they_mean() {
        let dialect = |text| Version::parse(text).map(Version::dialect);
        for draft in ["1.0", "1.0.0", "1.0.1"] {
            assert_eq!(dialect(draft), Some(Some(Dialect::Draft)), "{draft}");
        }
        for rfc in ["2.0", "2.0.0", "2.0.1", "2.0.2", "2.0.99"] {
            assert_eq!(dialect(rfc), Some(Some(Dialect::Rfc)), "{rfc}");
        }
        for other in ["0.1", "1.1", "1.0.2", "2.1.0", "3.0"] {
            assert_eq!(dialect(other), Some(None), "{other}");
        }
        for wrong in ["", "2", "2.", "2.0.0.0", "2.x", "+2.0", "20000.0", "2.0 "] {
            assert_eq!(Version::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn lines_are_read_leniently() {
        let two = Some(Version { major: 2, minor: 0, patch: 2 });
        for line in [
            "VERSION=2.0.2\r\n",
            "VERSION=2.0.2\n",
            "VERSION=2.0.2",
            "\0\0version=2.0.2\r\x08",
            "VERSION=2.0.2 \0",
        ] {
            assert_eq!(Line::parse(line.as_bytes()), Line::Version(two), "{line:?}");
        }
        for line in ["AUTHENTICATE DIGEST-MD5\r\n\0", "authenticate digest-md5", "AUTHENTICATE  DIGEST-MD5 x"]
        {
            assert_eq!(Line::parse(line.as_bytes()), Line::Authenticate("DIGEST-MD5".into()), "{line:?}");
        }
        assert_eq!(Line::parse(b"VERSION=\xff"), Line::Other);
        assert_eq!(Line::parse(b"VERSION=x"), Line::Version(None));
        assert_eq!(Line::parse(b""), Line::Other);
    }

    #[test]
    fn capabilities_are_written_as_clients_compare_them() {
        let all = Capability {
            tunnels: vec![Mode::V6V4, Mode::V6UdpV4],
            mechanisms: vec!["DIGEST-MD5".into(), "ANONYMOUS".into()],
        };
        let line = "CAPABILITY TUNNEL=V6V4 TUNNEL=V6UDPV4 AUTH=DIGEST-MD5 AUTH=ANONYMOUS\r\n";
        assert_eq!(all.emit(), line);
        assert_eq!(Capability::parse(line.as_bytes()), Some(all));
        let odd = Capability::parse(b"CAPABILITY  TUNNEL=V9 MOON AUTH=plain TUNNEL=V6UDPV4").unwrap();
        assert_eq!((odd.tunnels, odd.mechanisms), (vec![Mode::V6UdpV4], vec!["PLAIN".to_owned()]));
        assert_eq!(Capability::parse(b"530 Server too busy"), None);
    }

    #[test]
    fn status_lines() {
        let number = |text: &str| Status::parse(text.as_bytes()).map(Status::number);
        assert_eq!(number("200 OK\r\n"), Some(200));
        assert_eq!(number("1302"), Some(1302));
        assert_eq!(number("\0999 x"), Some(999));
        assert_eq!(number("x"), None);
        assert_eq!(Status::elsewhere(Code::Success).emit(), "1200 Redirection\r\n");
        assert_eq!(Status::elsewhere(Code::NoMoreTunnels).emit(), "1301 No more tunnels available\r\n");
        for code in Code::ALL {
            for status in [Status::plain(code), Status::elsewhere(code)] {
                assert_eq!(Status::parse(status.emit().as_bytes()), Some(status));
            }
            assert!([200, 300, 301, 302, 303].contains(&code.in_draft().number()));
        }
        assert_eq!(Code::from_number(555), Code::Unknown(555));
    }

    proptest! {
        #[test]
        fn any_line_is_read_or_not_and_what_is_read_is_said_again(octets in prop::collection::vec(any::<u8>(), 0..64)) {
            let line = Line::parse(&octets);
            let said = line.emit();
            if !said.is_empty() && line != Line::Authenticate(String::new()) {
                prop_assert_eq!(Line::parse(said.as_bytes()), line);
            }
            Capability::parse(&octets);
            Status::parse(&octets);
        }
    }
}
