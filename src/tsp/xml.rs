//! The XML of requests and replies (RFC 5572 section 4.7 and its DTD in appendix A).
//!
//! Read by a real parser that follows no DTD and no entity but the five of XML itself, within bounds of size, depth and
//! number. Written by hand, because deployed clients read it by hand: no prolog, double quotes, nothing around texts, full
//! IPv6 addresses (they cut prefixes by counting characters), an end tag for whatever has no attributes of its own.

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

use quick_xml::Reader;
use quick_xml::escape::resolve_predefined_entity;
use quick_xml::events::{BytesRef, BytesStart, Event};

use super::codec::{MAX_REQUEST, Mode};

/// How deep elements may be nested; five are needed.
const DEEPEST: usize = 10;
/// How many elements there may be; a list of 50 brokers has less than 256.
const MOST_ELEMENTS: usize = 512;
/// The longest name, as clients keep it.
const LONGEST_NAME: usize = 253;

/// Why octets are no such document.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadXml {
    /// Longer than any message.
    #[error("a document has at most {MAX_REQUEST} octets")]
    TooLong,
    /// Deeper, or of more elements, than any that means something.
    #[error("a document has at most {MOST_ELEMENTS} elements, {DEEPEST} deep")]
    TooMuch,
    /// A document type, which could define anything.
    #[error("a document type is not read")]
    DocType,
    /// Not well-formed.
    #[error("it is not well-formed: {0}")]
    Malformed(String),
    /// The outermost element is not `tunnel`, or there is none.
    #[error("'<tunnel action=...>' is expected")]
    NoTunnel,
}

/// What a document is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A tunnel is wanted.
    Create,
    /// A tunnel is described, or its description is wanted.
    Info,
    /// The client takes what it was offered.
    Accept,
    /// It does not.
    Reject,
    /// The client's tunnel shall end.
    Delete,
    /// Other brokers.
    List,
    /// A word that nobody knows.
    Other(String),
}

impl Action {
    fn parse(word: &str) -> Self {
        match word.to_ascii_lowercase().as_str() {
            "create" => Self::Create,
            "info" => Self::Info,
            "accept" => Self::Accept,
            "reject" => Self::Reject,
            "delete" => Self::Delete,
            "list" => Self::List,
            _ => Self::Other(word.to_owned()),
        }
    }
}

/// What an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `ipv4`.
    Ipv4,
    /// `ipv6`.
    Ipv6,
    /// `dn`: a domain name.
    Name,
}

/// `<address type="...">text</address>`, its text not yet checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// What it says it is; `None`: nothing that is known.
    pub kind: Option<Kind>,
    /// What it says, without white space around.
    pub text: String,
}

/// Addresses in the order of the document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses(pub Vec<Address>);

impl Addresses {
    /// The first one of that kind.
    pub fn text(&self, kind: Kind) -> Option<&str> {
        self.0.iter().find(|address| address.kind == Some(kind)).map(|address| address.text.as_str())
    }

    /// The first IPv4 address; `Some(None)`: what stands there is none.
    pub fn ipv4(&self) -> Option<Option<Ipv4Addr>> {
        self.text(Kind::Ipv4).map(|text| text.parse().ok())
    }

    /// The first IPv6 address; `Some(None)`: what stands there is none.
    pub fn ipv6(&self) -> Option<Option<Ipv6Addr>> {
        self.text(Kind::Ipv6).map(|text| text.parse().ok())
    }
}

/// `<prefix length="56">text</prefix>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// The length as it stands there; `None`: there is none.
    pub length: Option<String>,
    /// The network's address, in replies.
    pub text: String,
}

impl Prefix {
    /// The length in bits, where it is one.
    pub fn bits(&self) -> Option<u8> {
        self.length.as_ref()?.parse().ok().filter(|bits| *bits <= 128)
    }
}

/// `<router>`: the client wants, or has, a network behind it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Router {
    /// A routing protocol that it wants.
    pub protocol: Option<String>,
    /// The network.
    pub prefix: Option<Prefix>,
    /// Name servers for its reverse names.
    pub dns: Addresses,
}

/// `<keepalive interval="30">`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Seconds; `None`: what stands there is no number.
    pub interval: Option<u32>,
    /// Whom to ask.
    pub address: Addresses,
}

/// A document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// What it is about.
    pub action: Action,
    /// `type` as it stands there.
    pub kind: Option<String>,
    /// `proxy="yes"`: the tunnel is to end at another box than the client.
    pub proxy: bool,
    /// `lifetime`: minutes by the RFC, seconds by every server that was seen.
    pub lifetime: Option<u64>,
    /// The server's addresses.
    pub server: Addresses,
    /// The client's.
    pub client: Addresses,
    /// Name servers for the client.
    pub dns: Addresses,
    /// The network behind the client.
    pub router: Option<Router>,
    /// Signs of life.
    pub keepalive: Option<Keepalive>,
    /// Brokers to go to, each with addresses.
    pub brokers: Vec<Addresses>,
}

impl Tunnel {
    /// An empty document.
    pub fn new(action: Action) -> Self {
        Self {
            action,
            kind: None,
            proxy: false,
            lifetime: None,
            server: Addresses::default(),
            client: Addresses::default(),
            dns: Addresses::default(),
            router: None,
            keepalive: None,
            brokers: Vec::new(),
        }
    }

    /// Reads a document of at most [`MAX_REQUEST`] octets.
    ///
    /// # Errors
    /// [`BadXml`].
    pub fn parse(octets: &[u8]) -> Result<Self, BadXml> {
        let root = tree(octets)?;
        if !root.is("tunnel") {
            return Err(BadXml::NoTunnel);
        }
        let action = Action::parse(root.attribute("action").ok_or(BadXml::NoTunnel)?);
        let empty = Element::default();
        let client = root.child("client").unwrap_or(&empty);
        Ok(Self {
            action,
            kind: root.attribute("type").map(str::to_owned),
            proxy: root.attribute("proxy").is_some_and(|word| word.eq_ignore_ascii_case("yes")),
            lifetime: root.attribute("lifetime").and_then(|word| word.parse().ok()),
            server: root.child("server").map(Element::addresses).unwrap_or_default(),
            client: client.addresses(),
            dns: client.child("dns_server").map(Element::addresses).unwrap_or_default(),
            router: client.child("router").map(router),
            keepalive: client.child("keepalive").map(keepalive),
            brokers: root.children.iter().filter(|e| e.is("broker")).map(Element::addresses).collect(),
        })
    }

    /// The type of tunnel; `Some(Err(()))`: one that nobody knows.
    pub fn mode(&self) -> Option<Result<Mode, ()>> {
        self.kind.as_deref().map(str::parse)
    }
}

fn router(element: &Element) -> Router {
    let prefix = element.child("prefix").map(|prefix| Prefix {
        length: prefix.attribute("length").map(str::to_owned),
        text: prefix.text.trim().to_owned(),
    });
    Router {
        protocol: element.attribute("protocol").map(str::to_owned),
        prefix,
        dns: element.child("dns_server").map(Element::addresses).unwrap_or_default(),
    }
}

fn keepalive(element: &Element) -> Keepalive {
    let interval = element.attribute("interval").and_then(|word| word.trim().parse().ok());
    Keepalive { interval, address: element.addresses() }
}

// ---- any XML within bounds ----

#[derive(Debug, Default)]
struct Element {
    name: String,
    attributes: Vec<(String, String)>,
    text: String,
    children: Vec<Element>,
}

impl Element {
    fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }

    fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.is(name))
    }

    fn attribute(&self, name: &str) -> Option<&str> {
        let found = self.attributes.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    fn addresses(&self) -> Addresses {
        let kind = |element: &Self| match element.attribute("type")?.to_ascii_lowercase().as_str() {
            "ipv4" => Some(Kind::Ipv4),
            "ipv6" => Some(Kind::Ipv6),
            "dn" => Some(Kind::Name),
            _ => None,
        };
        let all = self.children.iter().filter(|child| child.is("address"));
        Addresses(all.map(|one| Address { kind: kind(one), text: one.text.trim().to_owned() }).collect())
    }
}

/// The outermost element with all that is in it.
fn tree(octets: &[u8]) -> Result<Element, BadXml> {
    if octets.len() > MAX_REQUEST {
        return Err(BadXml::TooLong);
    }
    let text = std::str::from_utf8(octets).map_err(|why| BadXml::Malformed(why.to_string()))?;
    let mut reader = Reader::from_str(text.trim_end_matches('\0'));
    let mut open: Vec<Element> = Vec::new();
    let mut count = 0;
    loop {
        let closed = match reader.read_event().map_err(malformed)? {
            Event::Start(start) => {
                count += 1;
                if open.len() >= DEEPEST || count > MOST_ELEMENTS {
                    return Err(BadXml::TooMuch);
                }
                open.push(element(&start)?);
                None
            }
            Event::Empty(start) => {
                count += 1;
                if open.len() >= DEEPEST || count > MOST_ELEMENTS {
                    return Err(BadXml::TooMuch);
                }
                Some(element(&start)?)
            }
            Event::End(_) => open.pop(),
            Event::Text(text) => {
                say(&mut open, &text);
                None
            }
            Event::CData(text) => {
                say(&mut open, &text);
                None
            }
            Event::GeneralRef(name) => {
                let meant = reference(&name)?;
                say(&mut open, &meant);
                None
            }
            Event::DocType(_) => return Err(BadXml::DocType),
            Event::Comment(_) | Event::Decl(_) | Event::PI(_) => None,
            Event::Eof => return Err(BadXml::NoTunnel),
        };
        match (closed, open.last_mut()) {
            (Some(done), Some(parent)) => parent.children.push(done),
            (Some(root), None) => return Ok(root),
            (None, _) => {}
        }
    }
}

fn say(open: &mut [Element], text: &str) {
    if let Some(element) = open.last_mut() {
        element.text.push_str(text);
    }
}

fn element(start: &BytesStart<'_>) -> Result<Element, BadXml> {
    let name = start.local_name().as_ref().to_owned();
    let mut attributes = Vec::new();
    for attribute in start.attributes() {
        let attribute = attribute.map_err(malformed)?;
        let key = attribute.key.local_name().as_ref().to_owned();
        let value = attribute.normalized_value(quick_xml::XmlVersion::Implicit1_0).map_err(malformed)?;
        attributes.push((key, value.into_owned()));
    }
    Ok(Element { name, attributes, text: String::new(), children: Vec::new() })
}

/// `&amp;` and `&#65;`; others would be defined by a document type.
fn reference(name: &BytesRef<'_>) -> Result<String, BadXml> {
    if let Some(character) = name.resolve_char_ref().map_err(malformed)? {
        return Ok(character.to_string());
    }
    let known = resolve_predefined_entity(name).map(str::to_owned);
    known.ok_or_else(|| BadXml::Malformed(format!("nobody knows the entity '{}'", &**name)))
}

fn malformed(why: impl std::fmt::Display) -> BadXml {
    BadXml::Malformed(why.to_string())
}

// ---- what is written ----

/// A domain name, or a name with a port: nothing in it needs to be escaped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name(String);

impl Name {
    /// Checks it: 1 to 253 of `A-Z a-z 0-9 . - _ @ +`.
    pub fn parse(text: &str) -> Option<Self> {
        let known = |c: char| c.is_ascii_alphanumeric() || ".-_@+".contains(c);
        let fits = (1..=LONGEST_NAME).contains(&text.len()) && text.chars().all(known);
        fits.then(|| Self(text.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An address with all its digits: `2001:0db8:0000:...`.
pub fn expanded(addr: Ipv6Addr) -> String {
    let groups: Vec<String> = addr.segments().iter().map(|group| format!("{group:04x}")).collect();
    groups.join(":")
}

/// A network with its length in bits.
pub type Net = (Ipv6Addr, u8);

/// What a client is given, as it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// The type that was decided, never [`Mode::V6AnyV4`].
    pub mode: Mode,
    /// The number in `lifetime`.
    pub lifetime: u64,
    /// Where the tunnel ends on our side.
    pub server_v4: Ipv4Addr,
    /// Our address in it.
    pub server_v6: Ipv6Addr,
    /// Where it ends on the client's side, in the client's own view.
    pub client_v4: Ipv4Addr,
    /// The client's address in it.
    pub client_v6: Ipv6Addr,
    /// The client's name.
    pub name: Option<Name>,
    /// Resolvers for the client. Never none: gogoc 1.2 crashes without.
    pub dns: Vec<Ipv6Addr>,
    /// The network behind the client.
    pub prefix: Option<Net>,
    /// Seconds between signs of life; 0: none.
    pub keepalive: u32,
}

impl Info {
    /// `<tunnel action="info" ...>` with a line end behind each line.
    pub fn emit(&self) -> String {
        let Self { mode, lifetime, server_v4, client_v4, .. } = self;
        let (server_v6, client_v6) = (expanded(self.server_v6), expanded(self.client_v6));
        let mut lines = Lines::default();
        lines.put(
            0,
            format_args!("<tunnel action=\"info\" type=\"{}\" lifetime=\"{lifetime}\">", mode.name()),
        );
        lines.put(1, format_args!("<server>"));
        lines.put(2, format_args!("<address type=\"ipv4\">{server_v4}</address>"));
        lines.put(2, format_args!("<address type=\"ipv6\">{server_v6}</address>"));
        lines.put(1, format_args!("</server>"));
        lines.put(1, format_args!("<client>"));
        lines.put(2, format_args!("<address type=\"ipv4\">{client_v4}</address>"));
        lines.put(2, format_args!("<address type=\"ipv6\">{client_v6}</address>"));
        if let Some(Name(name)) = &self.name {
            lines.put(2, format_args!("<address type=\"dn\">{name}</address>"));
        }
        lines.put(2, format_args!("<dns_server>"));
        // Our own end is no resolver, but an address: without any, gogoc 1.2 crashes.
        let dns = if self.dns.is_empty() { std::slice::from_ref(&self.server_v6) } else { &self.dns[..] };
        for resolver in dns {
            lines.put(3, format_args!("<address type=\"ipv6\">{}</address>", expanded(*resolver)));
        }
        lines.put(2, format_args!("</dns_server>"));
        if let Some((network, len)) = self.prefix {
            lines.put(2, format_args!("<router>"));
            lines.put(3, format_args!("<prefix length=\"{len}\">{}</prefix>", expanded(network)));
            lines.put(2, format_args!("</router>"));
        }
        if self.keepalive > 0 {
            // Without the address gogoc would begin a new session at once, and again, and again.
            lines.put(2, format_args!("<keepalive interval=\"{}\">", self.keepalive));
            lines.put(3, format_args!("<address type=\"ipv6\">{server_v6}</address>"));
            lines.put(2, format_args!("</keepalive>"));
        }
        lines.put(1, format_args!("</client>"));
        lines.put(0, format_args!("</tunnel>"));
        lines.0
    }
}

#[derive(Default)]
struct Lines(String);

impl Lines {
    fn put(&mut self, depth: usize, line: std::fmt::Arguments<'_>) {
        let _never_fails = write!(self.0, "{:1$}{line}\r\n", "", depth * 2);
    }
}

/// Another broker, as a list names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerAt {
    kind: Kind,
    text: String,
}

impl BrokerAt {
    /// Reads `192.0.2.7`, `ts1.example.net`, `2001:db8::7` or `[2001:db8::7]`, all but a bare IPv6 address also with `:PORT`.
    pub fn parse(text: &str) -> Option<Self> {
        let of = |kind, text: String| Some(Self { kind, text });
        if text.parse::<Ipv6Addr>().is_ok() || text.parse::<std::net::SocketAddrV6>().is_ok() {
            return of(Kind::Ipv6, text.to_owned());
        }
        if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            return inner.parse::<Ipv6Addr>().ok().and_then(|addr| of(Kind::Ipv6, addr.to_string()));
        }
        let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
        if port.is_some_and(|port| !port.parse::<u16>().is_ok_and(|p| p > 0)) {
            return None;
        }
        if host.parse::<Ipv4Addr>().is_ok() {
            return of(Kind::Ipv4, text.to_owned());
        }
        let label = |label: &str| {
            !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        let is_name = host.len() <= LONGEST_NAME
            && host.split('.').all(label)
            && host.bytes().any(|b| b.is_ascii_alphabetic());
        if is_name { of(Kind::Name, text.to_owned()) } else { None }
    }

    /// What is told to clients.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// `<tunnel action="list" type="broker">`: where else to go.
pub fn emit_list(brokers: &[BrokerAt]) -> String {
    emit_list_within(brokers, usize::MAX)
}

/// The same; of a list that would have more than `most` octets, the first brokers.
pub fn emit_list_within(brokers: &[BrokerAt], most: usize) -> String {
    const OPEN: &str = "<tunnel action=\"list\" type=\"broker\">\r\n";
    const CLOSE: &str = "</tunnel>\r\n";
    let mut text = OPEN.to_owned();
    for BrokerAt { kind, text: at } in brokers {
        let kind = match kind {
            Kind::Ipv4 => "ipv4",
            Kind::Ipv6 => "ipv6",
            Kind::Name => "dn",
        };
        let mut lines = Lines::default();
        lines.put(1, format_args!("<broker>"));
        lines.put(2, format_args!("<address type=\"{kind}\">{at}</address>"));
        lines.put(1, format_args!("</broker>"));
        if text.len() + lines.0.len() + CLOSE.len() > most {
            break;
        }
        text += &lines.0;
    }
    text + CLOSE
}

/// What a client wants, as it says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Which tunnel.
    pub mode: Mode,
    /// Where it takes itself to be.
    pub client: Ipv4Addr,
    /// Whether the tunnel is to end at another box.
    pub proxy: bool,
    /// Seconds between signs of life; 0: none.
    pub keepalive: u32,
    /// The prefix length of the network that it wants, if it wants one.
    pub prefix: Option<u8>,
    /// Name servers for reverse names of that network.
    pub dns: Vec<Name>,
}

impl Request {
    /// `<tunnel action="create" ...>`, laid out as gogoc does: old servers may read it by hand too.
    pub fn emit(&self) -> String {
        let Self { mode, client, proxy, keepalive, prefix, dns } = self;
        let mut text = String::new();
        let mut put = |line: std::fmt::Arguments<'_>| {
            let _never_fails = write!(text, "{line}\r\n");
        };
        let proxy = if *proxy { "yes" } else { "no" };
        put(format_args!("<tunnel action=\"create\" type=\"{}\" proxy=\"{proxy}\">", mode.name()));
        put(format_args!(" <client>"));
        put(format_args!("  <address type=\"ipv4\">{client}</address>"));
        if *keepalive > 0 {
            put(format_args!("  <keepalive interval=\"{keepalive}\">"));
            put(format_args!("    <address type=\"ipv6\">::</address>"));
            put(format_args!("  </keepalive>"));
        }
        if let Some(length) = prefix {
            put(format_args!("  <router>"));
            put(format_args!("   <prefix length=\"{length}\"/>"));
            if !dns.is_empty() {
                put(format_args!("   <dns_server>"));
                dns.iter()
                    .for_each(|name| put(format_args!("     <address type=\"dn\">{}</address>", name.0)));
                put(format_args!("   </dns_server>"));
            }
            put(format_args!("  </router>"));
        }
        put(format_args!(" </client>"));
        put(format_args!("</tunnel>"));
        text
    }
}

/// `<tunnel action="accept"></tunnel>`, or another word that needs no more.
pub fn emit_bare(action: &Action) -> String {
    let word = match action {
        Action::Create => "create",
        Action::Info => "info",
        Action::Accept => "accept",
        Action::Reject => "reject",
        Action::Delete => "delete",
        Action::List => "list",
        // Only words that came from a document are here; what they hold is not repeated.
        Action::Other(_) => "other",
    };
    format!("<tunnel action=\"{word}\"></tunnel>\r\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Tunnel, BadXml> {
        Tunnel::parse(text.as_bytes())
    }

    fn request() -> Request {
        let dns = ["ns1.example.org", "ns2.example.org"].map(|name| Name::parse(name).unwrap());
        let client = Ipv4Addr::new(192, 0, 2, 9);
        Request { mode: Mode::V6V4, client, proxy: false, keepalive: 30, prefix: Some(48), dns: dns.into() }
    }

    #[test]
    fn requests_are_laid_out_as_gogoc_does() {
        assert_eq!(request().emit().len(), 399, "as the real one was seen to send");
        let read = parse(&request().emit()).unwrap();
        assert_eq!((&read.action, read.mode()), (&Action::Create, Some(Ok(Mode::V6V4))));
        assert_eq!(read.client.ipv4(), Some(Some(Ipv4Addr::new(192, 0, 2, 9))));
        assert_eq!(read.keepalive.unwrap().interval, Some(30));
        let router = read.router.unwrap();
        assert_eq!((router.prefix.unwrap().bits(), router.dns.0.len()), (Some(48), 2));
        let plain = Request { mode: Mode::V6UdpV4, keepalive: 2, prefix: None, ..request() };
        assert_eq!(plain.emit().len(), 213);
        assert_eq!(emit_bare(&Action::Accept).len(), 35);
    }

    #[test]
    fn other_clients_lay_it_out_otherwise() {
        let one_line = "<tunnel action='create' type='v6anyv4'><client><address type='ipv4'> 10.1.1.1\n</address>\
                        <keepalive interval=\"30\"></keepalive></client></tunnel>";
        let read = parse(one_line).unwrap();
        assert_eq!(read.client.ipv4(), Some(Some(Ipv4Addr::new(10, 1, 1, 1))));
        assert_eq!((read.keepalive.unwrap().interval, read.proxy, read.router), (Some(30), false, None));
        let ruby = parse("<tunnel action=\"info\" type=\"v6anyv4\">\n</tunnel>").unwrap();
        assert_eq!(ruby.action, Action::Info);
        let prolog = "<?xml version=\"1.0\"?><!-- hi --><tunnel action=\"DELETE\"/>";
        assert_eq!(parse(prolog).unwrap().action, Action::Delete);
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert_eq!(parse(""), Err(BadXml::NoTunnel));
        assert_eq!(parse("<tunnel/>"), Err(BadXml::NoTunnel));
        assert_eq!(parse("<moon action=\"create\"/>"), Err(BadXml::NoTunnel));
        assert!(matches!(parse("<tunnel action=\"create\"><client></tunnel>"), Err(BadXml::Malformed(_))));
        assert_eq!(parse("<tunnel action=\"create\"><client>"), Err(BadXml::NoTunnel));
        assert_eq!(parse(&"<a>".repeat(1000)), Err(BadXml::TooMuch));
        let wide = format!("<tunnel action=\"create\">{}</tunnel>", "<b/>".repeat(600));
        assert_eq!(parse(&wide), Err(BadXml::TooMuch));
        assert_eq!(parse(&" ".repeat(5000)), Err(BadXml::TooLong));
        assert!(matches!(Tunnel::parse(b"<tunnel action=\"\xff\"/>"), Err(BadXml::Malformed(_))));
        let number = parse(
            "<tunnel action=\"create\"><client><router><prefix length=\"x\"/></router></client></tunnel>",
        );
        assert_eq!(number.unwrap().router.unwrap().prefix.unwrap().bits(), None);
    }

    #[test]
    fn entities_are_safe() {
        let bomb =
            "<!DOCTYPE x [<!ENTITY a \"aaaa\"><!ENTITY b \"&a;&a;\">]><tunnel action=\"create\">&b;</tunnel>";
        assert_eq!(parse(bomb), Err(BadXml::DocType));
        let file = "<!DOCTYPE x SYSTEM \"file:///etc/passwd\"><tunnel action=\"create\"/>";
        assert_eq!(parse(file), Err(BadXml::DocType));
        assert!(matches!(parse("<tunnel action=\"create\">&b;</tunnel>"), Err(BadXml::Malformed(_))));
        assert!(matches!(parse("<tunnel action=\"&b;\"/>"), Err(BadXml::Malformed(_))));
        let fine = "<tunnel action=\"&#99;reate\"><client><address type=\"dn\">a&amp;&#x62;</address></client></tunnel>";
        let read = parse(fine).unwrap();
        assert_eq!((read.action, read.client.text(Kind::Name)), (Action::Create, Some("a&b")));
    }

    fn info() -> Info {
        Info {
            mode: Mode::V6UdpV4,
            lifetime: 604_800,
            server_v4: Ipv4Addr::new(192, 0, 2, 1),
            server_v6: "2001:db8:f0::1".parse().unwrap(),
            client_v4: Ipv4Addr::new(192, 0, 2, 9),
            client_v6: "2001:db8:f0::2".parse().unwrap(),
            name: Name::parse("alice.broker.example"),
            dns: vec!["2001:db8::53".parse().unwrap()],
            prefix: Some(("2001:db8:1234::".parse().unwrap(), 48)),
            keepalive: 30,
        }
    }

    #[test]
    fn replies_have_the_form_that_clients_survive() {
        let wanted = "<tunnel action=\"info\" type=\"v6udpv4\" lifetime=\"604800\">\r
  <server>\r
    <address type=\"ipv4\">192.0.2.1</address>\r
    <address type=\"ipv6\">2001:0db8:00f0:0000:0000:0000:0000:0001</address>\r
  </server>\r
  <client>\r
    <address type=\"ipv4\">192.0.2.9</address>\r
    <address type=\"ipv6\">2001:0db8:00f0:0000:0000:0000:0000:0002</address>\r
    <address type=\"dn\">alice.broker.example</address>\r
    <dns_server>\r
      <address type=\"ipv6\">2001:0db8:0000:0000:0000:0000:0000:0053</address>\r
    </dns_server>\r
    <router>\r
      <prefix length=\"48\">2001:0db8:1234:0000:0000:0000:0000:0000</prefix>\r
    </router>\r
    <keepalive interval=\"30\">\r
      <address type=\"ipv6\">2001:0db8:00f0:0000:0000:0000:0000:0001</address>\r
    </keepalive>\r
  </client>\r
</tunnel>\r
";
        assert_eq!(info().emit(), wanted);
        let read = parse(wanted).unwrap();
        assert_eq!((read.lifetime, read.mode()), (Some(604_800), Some(Ok(Mode::V6UdpV4))));
        assert_eq!(read.dns.ipv6(), Some(Some(info().dns[0])));
        assert_eq!(read.router.unwrap().prefix.unwrap().text, "2001:0db8:1234:0000:0000:0000:0000:0000");
        assert_eq!(read.keepalive.unwrap().address.ipv6(), Some(Some(info().server_v6)));
    }

    #[test]
    fn a_resolver_is_always_there_and_a_keepalive_only_with_its_address() {
        let bare = Info { name: None, dns: vec![], prefix: None, keepalive: 0, ..info() }.emit();
        assert!(bare.contains(
            "<dns_server>\r\n      <address type=\"ipv6\">2001:0db8:00f0:0000:0000:0000:0000:0001<"
        ));
        assert!(!bare.contains("keepalive") && !bare.contains("router") && !bare.contains("\"dn\""));
    }

    /// As large as the configuration and the longest name let it be.
    #[test]
    fn the_largest_reply_is_one_datagram() {
        use crate::tsp::terms::MAX_RESOLVERS;
        let label = "a".repeat(63);
        let name = Name::parse(&format!("{label}.{label}.{label}.{}", "a".repeat(61))).unwrap();
        let far: Ipv6Addr = "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap();
        let info = Info {
            mode: Mode::V6UdpV4,
            lifetime: 31_536_000,
            server_v4: Ipv4Addr::BROADCAST,
            server_v6: far,
            client_v4: Ipv4Addr::BROADCAST,
            client_v6: far,
            name: Some(name),
            dns: vec![far; MAX_RESOLVERS],
            prefix: Some((far, 128)),
            keepalive: 3600,
        };
        let len = crate::tsp::framing::frame(&format!("200 Success\r\n{}", info.emit())).len();
        // One client's buffer has 1280 octets, of which the header takes eight.
        assert!(len <= 1272, "{len} octets");
    }

    #[test]
    fn lists_of_brokers() {
        let good = [
            "192.0.2.7",
            "192.0.2.7:3653",
            "ts1.example.net",
            "ts1.example.net:80",
            "2001:db8::7",
            "[2001:db8::7]:3653",
        ];
        let list: Vec<BrokerAt> = good.iter().map(|text| BrokerAt::parse(text).unwrap()).collect();
        let read = parse(&emit_list(&list)).unwrap();
        assert_eq!(read.action, Action::List);
        let texts: Vec<&str> = read.brokers.iter().map(|broker| broker.0[0].text.as_str()).collect();
        assert_eq!(texts, good);
        assert!(read.brokers.iter().all(|broker| broker.0[0].kind.is_some()));
        let many = vec![list[2].clone(); 50];
        let short = emit_list_within(&many, 1100);
        assert!(short.len() <= 1100 && parse(&short).unwrap().brokers.len() > 10);
        assert_eq!(BrokerAt::parse("[2001:db8::7]").unwrap().as_str(), "2001:db8::7");
        for wrong in ["", "a b", "a..b", "<x>", "192.0.2.7:0", "192.0.2.7:x", "1.2.3", "a:b:c", "x:99999"] {
            assert_eq!(BrokerAt::parse(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_octets_are_read_or_refused(octets in prop::collection::vec(any::<u8>(), 0..200)) {
            let _either = Tunnel::parse(&octets);
        }

        #[test]
        fn any_markup_is_read_or_refused(text in "(<tunnel action=\"create\">|<client>|</client>|</tunnel>|<address type=\"ipv4\">|</address>|&amp;|&x;|<!--|-->|<!\\[CDATA\\[|\\]\\]>|<!DOCTYPE|a|\"|'|>){0,40}") {
            let _either = parse(&text);
        }
    }
}
