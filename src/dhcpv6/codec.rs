//! Octets <-> DHCPv6 messages (RFC 8415 sections 8, 9 and 21).
//!
//! The values of single options are read and written by `dhcproto`. What it lacks is here: options in the order in which
//! they came, lengths that must add up, options within identity associations, lists of addresses and names, relays level
//! by level, and bounds. A message of which any part cannot be read is refused as a whole. Who may send what is
//! `session`'s business.

use std::net::Ipv6Addr;

use dhcproto::v6::{Authentication, DhcpOption, MessageType, OptionCode, Status};
use dhcproto::{Decodable, Encodable};

pub use super::code;

/// The port that servers and relays listen on (RFC 8415 section 7.2).
pub const SERVER_PORT: u16 = 547;
/// The port that clients listen on.
pub const CLIENT_PORT: u16 = 546;
/// All relays and servers of a link (RFC 8415 section 7.1).
pub const ALL_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
/// The longest DUID in octets: 128 behind a type of 2 (RFC 8415 section 11.1).
pub const MAX_DUID: usize = 130;
/// The most options of one message, one relay level or one identity association.
pub const MAX_OPTIONS: usize = 128;
/// How many relays a message may have come through (HOP_COUNT_LIMIT, RFC 8415 section 7.6).
pub const MAX_RELAYS: usize = 8;
/// Octets that are enough for most messages.
const USUAL: usize = 256;
/// A lifetime without end, in seconds.
pub const INFINITY: u32 = u32::MAX;

/// What an identity association is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IaKind {
    /// Non-temporary addresses (IA_NA).
    Address,
    /// Delegated prefixes (IA_PD).
    Prefix,
}

/// An identity association.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ia {
    /// What for.
    pub kind: IaKind,
    /// The client's number for it.
    pub iaid: u32,
    /// Seconds until the client asks this server again.
    pub t1: u32,
    /// Seconds until it asks any server.
    pub t2: u32,
    /// What is in it, in order.
    pub parts: Vec<Part>,
}

/// An option within an identity association.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// An address or a prefix.
    Value(Value),
    /// What became of it: a code and a text.
    Status(Status, String),
    /// Anything else: code and octets.
    Other(u16, Vec<u8>),
}

/// An address (of length 128) or a prefix with its lifetimes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// The address, or the prefix with bits behind its length as they came.
    pub addr: Ipv6Addr,
    /// The length of the prefix in bits, at most 128.
    pub len: u8,
    /// Preferred lifetime in seconds.
    pub preferred: u32,
    /// Valid lifetime in seconds.
    pub valid: u32,
    /// Options in it, as octets.
    pub options: Vec<u8>,
}

impl Ia {
    /// The addresses or prefixes in it.
    pub fn values(&self) -> impl Iterator<Item = &Value> {
        self.parts.iter().filter_map(|part| match part {
            Part::Value(value) => Some(value),
            Part::Status(..) | Part::Other(..) => None,
        })
    }
}

/// One option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opt {
    /// IA_NA or IA_PD.
    Ia(Ia),
    /// What a relay carries: a message or another relay's.
    Relayed(Vec<u8>),
    /// A list of addresses.
    Addresses(u16, Vec<Ipv6Addr>),
    /// A list of names.
    Names(u16, Vec<Name>),
    /// A time in seconds.
    Seconds(u16, u32),
    /// What `dhcproto` reads and writes right.
    Leaf(DhcpOption),
    /// Anything else: code and octets.
    Other(u16, Vec<u8>),
}

/// A domain name: labels with their lengths, a zero at the end, at most 255 octets, lower case (RFC 1035 section 3.1).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Name(Box<[u8]>);

/// A message between client and server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its type.
    pub kind: MessageType,
    /// The client's number for the exchange.
    pub xid: [u8; 3],
    /// Options in order.
    pub options: Vec<Opt>,
}

/// A message between relay and server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relay {
    /// Whether it is a Relay-reply; else a Relay-forward.
    pub is_reply: bool,
    /// How many relays it has passed.
    pub hops: u8,
    /// An address of the link that the client is on, or unspecified.
    pub link: Ipv6Addr,
    /// Where it came from.
    pub peer: Ipv6Addr,
    /// Options in order.
    pub options: Vec<Opt>,
}

/// Either.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    /// Between client and server.
    Message(Message),
    /// Between relay and server.
    Relay(Relay),
}

/// Why octets are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
pub enum Malformed {
    /// Shorter than its header, or than an option's length says.
    #[error("it is cut short")]
    Short,
    /// An option of a length that it cannot have, or of impossible content.
    #[error("an option cannot be so")]
    Option,
    /// An option twice that may be there once.
    #[error("an option is there twice")]
    Twice,
    /// More than [`MAX_OPTIONS`].
    #[error("it has too many options")]
    TooMany,
}

impl Packet {
    /// Reads a datagram's payload.
    ///
    /// # Errors
    /// What is wrong with it; then nothing of it is to be believed.
    pub fn parse(octets: &[u8]) -> Result<Self, Malformed> {
        match octets.first().ok_or(Malformed::Short)? {
            12 | 13 => Relay::parse(octets).map(Self::Relay),
            _ => Message::parse(octets).map(Self::Message),
        }
    }

    /// Writes it.
    pub fn emit(&self) -> Vec<u8> {
        match self {
            Self::Message(message) => message.emit(),
            Self::Relay(relay) => relay.emit(),
        }
    }
}

impl Message {
    fn parse(octets: &[u8]) -> Result<Self, Malformed> {
        let [kind, a, b, c, rest @ ..] = octets else { return Err(Malformed::Short) };
        Ok(Self { kind: MessageType::from(*kind), xid: [*a, *b, *c], options: parse_options(rest)? })
    }

    /// Writes it.
    pub fn emit(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(USUAL);
        out.push(u8::from(self.kind));
        out.extend(self.xid);
        self.options.iter().for_each(|option| option.emit(&mut out));
        out
    }

    /// The client's DUID.
    pub fn client(&self) -> Option<&[u8]> {
        self.leaf(|leaf| if let DhcpOption::ClientId(duid) = leaf { Some(&duid[..]) } else { None })
    }

    /// The server's DUID.
    pub fn server(&self) -> Option<&[u8]> {
        self.leaf(|leaf| if let DhcpOption::ServerId(duid) = leaf { Some(&duid[..]) } else { None })
    }

    /// Whether the client takes a Reply to its Solicit.
    pub fn has_rapid_commit(&self) -> bool {
        self.leaf(|leaf| matches!(leaf, DhcpOption::RapidCommit).then_some(())).is_some()
    }

    /// Whether option `code` is asked for.
    pub fn asks_for(&self, code: u16) -> bool {
        let asked = self.leaf(|leaf| if let DhcpOption::ORO(oro) = leaf { Some(&oro.opts) } else { None });
        asked.is_some_and(|codes| codes.iter().any(|c| u16::from(*c) == code))
    }

    /// Leaves the first `most` identity associations, and of those with one type and number the first: a client numbers its
    /// own apart (RFC 8415 section 21.4), and each takes time and room in the answer.
    pub fn keep_few_ias(&mut self, most: usize) {
        let mut kept: Vec<(IaKind, u32)> = Vec::new();
        self.options.retain(|option| {
            let Opt::Ia(ia) = option else { return true };
            let stays = kept.len() < most && !kept.contains(&(ia.kind, ia.iaid));
            if stays {
                kept.push((ia.kind, ia.iaid));
            }
            stays
        });
    }

    /// Whether the client lets itself be told that something has changed.
    pub fn accepts_reconfigure(&self) -> bool {
        self.leaf(|leaf| matches!(leaf, DhcpOption::ReconfAccept).then_some(())).is_some()
    }

    /// What is said of who has made it.
    pub fn auth(&self) -> Option<&Authentication> {
        self.leaf(|leaf| if let DhcpOption::Authentication(auth) = leaf { Some(auth) } else { None })
    }

    /// The identity associations.
    pub fn ias(&self) -> impl Iterator<Item = &Ia> {
        self.options.iter().filter_map(|option| if let Opt::Ia(ia) = option { Some(ia) } else { None })
    }

    fn leaf<'a, T>(&'a self, pick: impl Fn(&'a DhcpOption) -> Option<T>) -> Option<T> {
        let mut leaves =
            self.options.iter().filter_map(|o| if let Opt::Leaf(leaf) = o { Some(leaf) } else { None });
        leaves.find_map(pick)
    }
}

impl Relay {
    fn parse(octets: &[u8]) -> Result<Self, Malformed> {
        let (head, rest) = octets.split_at_checked(34).ok_or(Malformed::Short)?;
        Ok(Self {
            is_reply: head[0] == 13,
            hops: head[1],
            link: address(&head[2..18])?,
            peer: address(&head[18..34])?,
            options: parse_options(rest)?,
        })
    }

    fn emit(&self) -> Vec<u8> {
        let mut out = vec![if self.is_reply { 13 } else { 12 }, self.hops];
        out.extend(self.link.octets());
        out.extend(self.peer.octets());
        self.options.iter().for_each(|option| option.emit(&mut out));
        out
    }

    /// What it carries.
    pub fn relayed(&self) -> Option<&[u8]> {
        self.options.iter().find_map(|o| if let Opt::Relayed(octets) = o { Some(&octets[..]) } else { None })
    }

    /// Its options that an answer must have too: its name for the client's interface, its port (RFC 8357 section 5), and
    /// those that it asks for (RFC 4994 section 4).
    pub fn echoed(&self) -> impl Iterator<Item = &Opt> {
        let asked: Vec<u16> =
            self.options.iter().filter(|option| option.code() == code::ERO).flat_map(numbers).collect();
        self.options.iter().filter(move |option| match option.code() {
            code::INTERFACE_ID | code::RELAY_PORT => true,
            code::RELAY_MSG | code::ERO => false,
            code => asked.contains(&code),
        })
    }

    /// Whether it listens on the port that it sends from (RFC 8357).
    pub fn has_own_port(&self) -> bool {
        self.options.iter().any(|option| option.code() == code::RELAY_PORT)
    }

    /// What it says of the client's line: codes and octets (RFC 4649, RFC 4580).
    pub fn lines(&self) -> impl Iterator<Item = (u16, &[u8])> {
        self.options.iter().filter_map(|option| match option {
            Opt::Other(code @ (code::REMOTE_ID | code::SUBSCRIBER_ID), octets) => Some((*code, &octets[..])),
            Opt::Other(..)
            | Opt::Ia(_)
            | Opt::Relayed(_)
            | Opt::Addresses(..)
            | Opt::Names(..)
            | Opt::Seconds(..)
            | Opt::Leaf(_) => None,
        })
    }

    /// What it supplies for the client: codes and octets (RFC 6422 section 5).
    pub fn supplied(&self) -> Vec<(u16, &[u8])> {
        let all = self.options.iter().filter_map(|option| {
            if let Opt::Other(code::RSOO, octets) = option { split(octets).ok() } else { None }
        });
        all.flatten().collect()
    }

    /// The relay's name for the interface that the client is behind.
    pub fn interface(&self) -> Option<&[u8]> {
        self.options.iter().find_map(|option| {
            if let Opt::Leaf(DhcpOption::InterfaceId(id)) = option { Some(&id[..]) } else { None }
        })
    }
}

/// What stands in an option of 16-bit numbers.
fn numbers(option: &Opt) -> Vec<u16> {
    let octets = if let Opt::Other(_, octets) = option { &octets[..] } else { &[] };
    octets.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect()
}

pub(super) fn address(octets: &[u8]) -> Result<Ipv6Addr, Malformed> {
    <[u8; 16]>::try_from(octets).map(Ipv6Addr::from).map_err(|_| Malformed::Option)
}

fn number(octets: &[u8]) -> Result<u32, Malformed> {
    octets.try_into().map(u32::from_be_bytes).map_err(|_| Malformed::Option)
}

/// Codes and octets of the options in `octets`.
fn split(mut octets: &[u8]) -> Result<Vec<(u16, &[u8])>, Malformed> {
    let mut found = Vec::new();
    while let [a, b, c, d, rest @ ..] = octets {
        let len = usize::from(u16::from_be_bytes([*c, *d]));
        let (body, rest) = rest.split_at_checked(len).ok_or(Malformed::Short)?;
        if found.len() == MAX_OPTIONS {
            return Err(Malformed::TooMany);
        }
        found.push((u16::from_be_bytes([*a, *b]), body));
        octets = rest;
    }
    if octets.is_empty() { Ok(found) } else { Err(Malformed::Short) }
}

pub(super) fn parse_options(octets: &[u8]) -> Result<Vec<Opt>, Malformed> {
    let found = split(octets)?;
    for single in [code::CLIENT_ID, code::SERVER_ID, code::ORO, code::RELAY_MSG, code::AUTH, code::LQ_QUERY] {
        if found.iter().filter(|(code, _)| *code == single).count() > 1 {
            return Err(Malformed::Twice);
        }
    }
    found.into_iter().map(|(code, body)| Opt::parse(code, body)).collect()
}

impl Opt {
    /// Its code.
    pub fn code(&self) -> u16 {
        match self {
            Self::Ia(Ia { kind: IaKind::Address, .. }) => code::IA_NA,
            Self::Ia(Ia { kind: IaKind::Prefix, .. }) => code::IA_PD,
            Self::Relayed(_) => code::RELAY_MSG,
            Self::Addresses(code, _)
            | Self::Names(code, _)
            | Self::Seconds(code, _)
            | Self::Other(code, _) => *code,
            Self::Leaf(leaf) => OptionCode::from(leaf).into(),
        }
    }

    fn parse(code: u16, body: &[u8]) -> Result<Self, Malformed> {
        match code {
            code::IA_NA => parse_ia(IaKind::Address, body).map(Self::Ia),
            code::IA_PD => parse_ia(IaKind::Prefix, body).map(Self::Ia),
            code::RELAY_MSG => Ok(Self::Relayed(body.to_vec())),
            code::SIP_SERVERS
            | code::DNS_SERVERS
            | code::NIS_SERVERS
            | code::NISP_SERVERS
            | code::SNTP_SERVERS
            | code::BCMCS_SERVERS
            | code::LQ_CLIENT_LINK => {
                let all = body.chunks(16).map(address).collect::<Result<_, _>>()?;
                Ok(Self::Addresses(code, all))
            }
            code::SIP_NAMES | code::DOMAIN_LIST | code::NIS_NAME | code::NISP_NAME | code::BCMCS_NAMES => {
                Ok(Self::Names(code, Name::parse_all(body)?))
            }
            code::RSOO => split(body).map(|_| Self::Other(code, body.to_vec())),
            code::REFRESH_TIME | code::SOL_MAX_RT | code::INF_MAX_RT | code::CLT_TIME => {
                Ok(Self::Seconds(code, number(body)?))
            }
            _ => parse_leaf(code, body),
        }
    }

    /// Writes it behind what is there.
    pub fn emit(&self, out: &mut Vec<u8>) {
        match self {
            Self::Ia(ia) => emit_ia(ia, out),
            Self::Relayed(octets) => emit_body(code::RELAY_MSG, octets, out),
            Self::Addresses(code, all) => emit_with(*code, out, |out| {
                all.iter().for_each(|addr| out.extend_from_slice(&addr.octets()));
            }),
            Self::Names(code, all) => {
                emit_with(*code, out, |out| all.iter().for_each(|name| out.extend_from_slice(&name.0)));
            }
            Self::Seconds(code, seconds) => emit_body(*code, &seconds.to_be_bytes(), out),
            // Those that are in every message.
            Self::Leaf(DhcpOption::ClientId(duid)) => emit_body(code::CLIENT_ID, duid, out),
            Self::Leaf(DhcpOption::ServerId(duid)) => emit_body(code::SERVER_ID, duid, out),
            // Room for it is the only thing that it could lack.
            Self::Leaf(leaf) => out.extend(leaf.to_vec().unwrap_or_default()),
            Self::Other(code, octets) => emit_body(*code, octets, out),
        }
    }
}

fn emit_body(code: u16, body: &[u8], out: &mut Vec<u8>) {
    emit_with(code, out, |out| out.extend_from_slice(body));
}

/// Writes an option whose body is written by `body`; then its length is known.
fn emit_with(code: u16, out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(&code.to_be_bytes());
    let head = out.len();
    out.extend_from_slice(&[0, 0]);
    body(out);
    // Longer than an option can be is nothing that was read, and `session` makes nothing like it.
    let len = u16::try_from(out.len() - head - 2).unwrap_or(u16::MAX);
    out.truncate(head + 2 + usize::from(len));
    out[head..head + 2].copy_from_slice(&len.to_be_bytes());
}

/// Options whose lengths are checked here and whose values `dhcproto` reads; all others are octets.
fn parse_leaf(code: u16, body: &[u8]) -> Result<Opt, Malformed> {
    let len = body.len();
    let is_right = match code {
        code::CLIENT_ID | code::SERVER_ID => (1..=MAX_DUID).contains(&len),
        code::ORO => len > 0 && len.is_multiple_of(2),
        code::PREFERENCE | code::RECONF_MSG => len == 1,
        code::ELAPSED_TIME => len == 2,
        code::AUTH => len >= 11,
        code::STATUS => len >= 2,
        code::RAPID_COMMIT | code::RECONF_ACCEPT => len == 0,
        code::INTERFACE_ID => true,
        _ => return Ok(Opt::Other(code, body.to_vec())),
    };
    if !is_right {
        return Err(Malformed::Option);
    }
    match (code, body) {
        (code::CLIENT_ID, _) => return Ok(Opt::Leaf(DhcpOption::ClientId(body.to_vec()))),
        (code::SERVER_ID, _) => return Ok(Opt::Leaf(DhcpOption::ServerId(body.to_vec()))),
        (code::ELAPSED_TIME, [a, b]) => {
            return Ok(Opt::Leaf(DhcpOption::ElapsedTime(u16::from_be_bytes([*a, *b]))));
        }
        _ => {}
    }
    let mut whole = Vec::with_capacity(4 + len);
    emit_body(code, body, &mut whole);
    DhcpOption::from_bytes(&whole).map(Opt::Leaf).map_err(|_| Malformed::Option)
}

fn parse_ia(kind: IaKind, body: &[u8]) -> Result<Ia, Malformed> {
    let (head, rest) = body.split_at_checked(12).ok_or(Malformed::Option)?;
    let parts = split(rest)?
        .into_iter()
        .map(|(code, body)| parse_part(kind, code, body))
        .collect::<Result<_, _>>()?;
    Ok(Ia { kind, iaid: number(&head[..4])?, t1: number(&head[4..8])?, t2: number(&head[8..])?, parts })
}

/// An address belongs into an IA_NA alone, a prefix into an IA_PD (RFC 8415 sections 21.6 and 21.22); elsewhere neither means
/// anything.
pub(super) fn parse_part(kind: IaKind, code: u16, body: &[u8]) -> Result<Part, Malformed> {
    match (kind, code) {
        (IaKind::Address, code::IA_ADDR) => {
            let (head, options) = body.split_at_checked(24).ok_or(Malformed::Option)?;
            split(options)?;
            let (addr, len) = (address(&head[..16])?, 128);
            let (preferred, valid) = (number(&head[16..20])?, number(&head[20..])?);
            Ok(Part::Value(Value { addr, len, preferred, valid, options: options.to_vec() }))
        }
        (IaKind::Prefix, code::IA_PREFIX) => {
            let (head, options) = body.split_at_checked(25).ok_or(Malformed::Option)?;
            split(options)?;
            let (preferred, valid, len) = (number(&head[..4])?, number(&head[4..8])?, head[8]);
            if len > 128 {
                return Err(Malformed::Option);
            }
            let addr = address(&head[9..])?;
            Ok(Part::Value(Value { addr, len, preferred, valid, options: options.to_vec() }))
        }
        (_, code::STATUS) => {
            let Opt::Leaf(DhcpOption::StatusCode(status)) = parse_leaf(code, body)? else {
                return Err(Malformed::Option);
            };
            Ok(Part::Status(status.status, status.msg))
        }
        (_, other) => Ok(Part::Other(other, body.to_vec())),
    }
}

fn emit_ia(ia: &Ia, out: &mut Vec<u8>) {
    let code = match ia.kind {
        IaKind::Address => code::IA_NA,
        IaKind::Prefix => code::IA_PD,
    };
    emit_with(code, out, |out| {
        [ia.iaid, ia.t1, ia.t2].iter().for_each(|n| out.extend_from_slice(&n.to_be_bytes()));
        ia.parts.iter().for_each(|part| emit_part(ia.kind, part, out));
    });
}

pub(super) fn emit_part(kind: IaKind, part: &Part, out: &mut Vec<u8>) {
    match part {
        Part::Value(Value { addr, len, preferred, valid, options }) => {
            let code = if kind == IaKind::Address { code::IA_ADDR } else { code::IA_PREFIX };
            let (addr, len) = (addr.octets(), [*len]);
            let [preferred, valid] = [preferred, valid].map(|n| n.to_be_bytes());
            emit_with(code, out, |out| {
                let parts: [&[u8]; 4] = match kind {
                    IaKind::Address => [&addr, &preferred, &valid, &[]],
                    IaKind::Prefix => [&preferred, &valid, &len, &addr],
                };
                parts.iter().for_each(|part| out.extend_from_slice(part));
                out.extend_from_slice(options);
            });
        }
        Part::Status(status, text) => {
            let body = [&u16::from(*status).to_be_bytes()[..], text.as_bytes()].concat();
            emit_body(code::STATUS, &body, out);
        }
        Part::Other(code, body) => emit_body(*code, body, out),
    }
}

impl Name {
    /// Reads a name as people write it, with or without a dot at the end. Labels have 1 to 63 of letters, digits, `-` and
    /// `_`, no `-` at either end.
    pub fn from_text(text: &str) -> Option<Self> {
        let text = text.strip_suffix('.').unwrap_or(text);
        let mut wire = Vec::with_capacity(text.len() + 2);
        for label in text.split('.') {
            let known = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            let edges = label.starts_with('-') || label.ends_with('-');
            let len = u8::try_from(label.len()).ok().filter(|len| (1..=63).contains(len))?;
            if edges || !label.chars().all(known) {
                return None;
            }
            wire.push(len);
            wire.extend(label.bytes().map(|c| c.to_ascii_lowercase()));
        }
        wire.push(0);
        (wire.len() <= 255).then(|| Self(wire.into()))
    }

    /// Whether it is one that people could have written: others have no place in files and scripts.
    pub fn is_plain(&self) -> bool {
        Self::from_text(&self.to_string()).is_some_and(|name| name.0.eq_ignore_ascii_case(&self.0))
    }

    /// Reads names that stand one behind the other. Compressed ones are refused (RFC 8415 section 10).
    fn parse_all(mut octets: &[u8]) -> Result<Vec<Self>, Malformed> {
        let mut names = Vec::new();
        while !octets.is_empty() {
            let len = Self::length(octets)?;
            let (name, rest) = octets.split_at_checked(len).ok_or(Malformed::Short)?;
            names.push(Self(name.into()));
            octets = rest;
        }
        Ok(names)
    }

    /// Octets of the first name.
    fn length(octets: &[u8]) -> Result<usize, Malformed> {
        let mut at = 0;
        loop {
            match octets.get(at).ok_or(Malformed::Short)? {
                0 if at < 255 => return Ok(at + 1),
                label @ 1..=63 => at += 1 + usize::from(*label),
                _ => return Err(Malformed::Option),
            }
        }
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut rest = &self.0[..];
        while let Some((len, tail)) = rest.split_first().filter(|(len, _)| **len > 0) {
            let (label, tail) = tail.split_at(usize::from(*len).min(tail.len()));
            write!(f, "{}.", label.escape_ascii())?;
            rest = tail;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn solicit(options: &[u8]) -> Vec<u8> {
        [&[1, 0xaa, 0xbb, 0xcc, 0, 1, 0, 3, 9, 9, 9], options].concat()
    }

    #[test]
    fn what_is_read_is_written_again() {
        let options: &[&[u8]] = &[
            &[0, 6, 0, 4, 0, 23, 0, 24],
            &[0, 8, 0, 2, 0, 0],
            &[0, 3, 0, 12, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0xfd, 0xe8, 0, 1, 7],
        ];
        for option in options {
            let octets = solicit(option);
            assert_eq!(Packet::parse(&octets).map(|p| p.emit()), Ok(octets));
        }
        let octets = solicit(&options.concat());
        let Ok(Packet::Message(message)) = Packet::parse(&octets) else { panic!() };
        assert_eq!(message.client(), Some(&[9u8, 9, 9][..]));
        assert!(message.asks_for(24) && !message.asks_for(31));
        assert_eq!(message.ias().map(|ia| ia.iaid).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn what_cannot_be_is_refused_as_a_whole() {
        use Malformed::{Option, Short, TooMany, Twice};
        let cases: &[(&[u8], Malformed)] = &[
            (&[0, 6, 0, 9, 0, 23], Short),
            (&[0, 6, 0], Short),
            (&[0, 6, 0, 3, 0, 23, 0], Option),
            (&[0, 6, 0, 0], Option),
            (&[0, 2, 0, 0], Option),
            (&[0, 1, 0, 1, 1], Twice),
            (&[0, 8, 0, 1, 0], Option),
            (&[0, 13, 0, 1, 0], Option),
            (&[0, 11, 0, 2, 0, 0], Option),
            (&[0, 14, 0, 1, 0], Option),
            (&[0, 3, 0, 4, 0, 0, 0, 1], Option),
            (&[0, 25, 0, 17, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 26, 0, 1, 0], Option),
            (&[0, 23, 0, 15, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], Option),
            (&[0, 24, 0, 2, 0xc0, 0], Option),
            (&[0, 24, 0, 2, 3, b'a'], Short),
        ];
        for (option, why) in cases {
            assert_eq!(Packet::parse(&solicit(option)), Err(*why), "{option:?}");
        }
        assert_eq!(Packet::parse(&[1, 2, 3]), Err(Short));
        assert_eq!(Packet::parse(&[12; 33]), Err(Short));
        assert_eq!(Packet::parse(&[]), Err(Short));
        let many: Vec<u8> = [0xff, 0, 0, 0].repeat(MAX_OPTIONS);
        assert_eq!(Packet::parse(&solicit(&many)), Err(TooMany));
        let long = [&[1, 0, 0, 0, 0, 1, 0, 131][..], &[7; 131]].concat();
        assert_eq!(Packet::parse(&long), Err(Option));
    }

    #[test]
    fn names_are_checked_and_lowered() {
        let name = Name::from_text("6Bone.Example.").unwrap();
        assert_eq!(&name.0[..], b"\x056bone\x07example\0");
        assert_eq!(name.to_string(), "6bone.example.");
        assert!(name.is_plain() && Name(b"\x04LAN1\0"[..].into()).is_plain());
        for odd in [&b"\x03};x\0"[..], b"\0", b"\x03a b\0", b"\x02\xc3\xa9\0", b"\x02-a\0"] {
            assert!(!Name(odd.into()).is_plain(), "{odd:?}");
        }
        for wrong in
            ["", ".", "a..b", "-a.b", "a-.b", "a b", "*.b", &"x".repeat(64), &["abcdefg"; 40].join(".")]
        {
            assert_eq!(Name::from_text(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn relays_are_read_level_by_level() {
        let inner = solicit(&[]);
        let relay = Relay {
            is_reply: false,
            hops: 0,
            link: "2001:db8::1".parse().unwrap(),
            peer: "fe80::1".parse().unwrap(),
            options: vec![Opt::Leaf(DhcpOption::InterfaceId(b"eth7".to_vec())), Opt::Relayed(inner.clone())],
        };
        let Ok(Packet::Relay(read)) = Packet::parse(&relay.emit()) else { panic!() };
        assert_eq!((read.relayed(), read.interface()), (Some(&inner[..]), Some(&b"eth7"[..])));
        assert_eq!(read, relay);
    }
}
