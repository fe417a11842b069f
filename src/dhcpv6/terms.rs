//! What a DHCPv6 server is told by its configuration, and what it asks of whoever keeps leases. Pure: words, and no deeds.

use std::collections::HashMap;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Duration;

use sixway_dataplane::update::Ipv6Prefix;

use super::auth::Key;
use super::codec::Opt;
use crate::broker::{BindKey, BindWish, UserName};

/// What the configuration says to the server.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Terms {
    /// What the server calls itself.
    pub duid: Vec<u8>,
    /// Preferred lifetime of what is given, in seconds; [`INFINITY`](super::codec::INFINITY) for no end.
    pub preferred: u32,
    /// Valid lifetime, not shorter.
    pub valid: u32,
    /// Whether a Solicit with Rapid Commit is answered by a Reply.
    pub rapid_commit: bool,
    /// The preference that Advertise messages carry; `None`: they carry none, which means 0.
    pub preference: Option<u8>,
    /// Information for clients, in the order of option codes.
    pub options: Vec<Opt>,
    /// When clients are to ask for information again, in seconds.
    pub refresh: Option<u32>,
    /// Options that are sent unasked, by code.
    pub always: Vec<u16>,
    /// For how long a declined address is given to nobody.
    pub decline: Duration,
    /// The most bindings of one tunnel.
    pub most: usize,
    /// What is set aside for a client by its DUID.
    pub reserved: HashMap<Box<[u8]>, Vec<Reserved>>,
    /// Links by the names that relays have for the clients' interfaces: an address on each.
    pub relays: HashMap<Box<[u8]>, Ipv6Addr>,
    /// Clients that are known by what a relay says of their line, and not by their DUIDs: who that is, by the octets of option
    /// Remote-Id or Subscriber-Id (RFC 4649, RFC 4580).
    pub lines: HashMap<Line, Box<[u8]>>,
    /// Whether clients that let themselves be told of changes are told.
    pub reconfigure: bool,
    /// The most clients of one tunnel or link that are remembered to be told, beside those that are where their bindings say.
    pub listeners: usize,
    /// Codes of options that relays may supply for clients, beside those that all may (RFC 6422 section 5).
    pub supplied: Vec<u16>,
    /// Where those are who may ask who has what (RFC 5007); nobody is answered where there are none.
    pub requestors: Vec<Ipv6Prefix>,
    /// Whether clients may prove who they are by delayed authentication (RFC 3315 section 21.4).
    pub authenticates: bool,
    /// Their keys, by their DUIDs.
    pub keys: HashMap<Box<[u8]>, Arc<Key>>,
}

/// What a relay says of a client's line: the code of the option, and its octets.
pub type Line = (u16, Box<[u8]>);

/// What is set aside for a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// In this tunnel only; `None`: in any.
    pub tunnel: Option<Box<str>>,
    /// Prefixes, and addresses as prefixes of 128 bits.
    pub prefixes: Vec<Ipv6Prefix>,
    /// What within the prefixes is the client's link's, and not its own (RFC 6603).
    pub excluded: Vec<Ipv6Prefix>,
}

/// Where a message came from.
#[derive(Clone, Debug)]
pub struct Origin<'a> {
    /// The tunnel's name.
    pub tunnel: &'a str,
    /// The account behind it, if there is one.
    pub user: Option<&'a UserName>,
    /// What the tunnel itself has.
    pub fixed: &'a [Ipv6Prefix],
    /// What is on the link between the client and us.
    pub on_link: &'a [Ipv6Prefix],
    /// Whether it was sent to an address of ours and not to all servers.
    pub is_unicast: bool,
    /// Who has sent it: the client, or the relay that is nearest.
    pub from: Option<Ipv6Addr>,
    /// From which port.
    pub port: u16,
}

impl<'a> Origin<'a> {
    /// A message to all servers from a client that has nothing: nothing is known of where it is.
    pub fn of(tunnel: &'a str) -> Self {
        let (is_unicast, from, port) = (false, None, super::codec::CLIENT_PORT);
        Self { tunnel, user: None, fixed: &[], on_link: &[], is_unicast, from, port }
    }
}

/// Preferred and valid lifetime in seconds; [`INFINITY`](super::codec::INFINITY) for no end. Preferred is never above valid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Life {
    /// How long it is good for new connections.
    pub preferred: u32,
    /// How long it is good at all.
    pub valid: u32,
}

/// Why a client gets nothing with one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lack;

/// What is known of something that a client has, for those who may ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Whose: a DUID, or who is on a line.
    pub client: Arc<[u8]>,
    /// On which link, by a name that nobody outside hears.
    pub link: Arc<str>,
    /// What; an address is a prefix of 128 bits.
    pub prefix: Ipv6Prefix,
    /// For how long it was last given; `None`: as the terms say.
    pub given: Option<Life>,
    /// For how many seconds it is still valid; `None`: for ever.
    pub left: Option<u32>,
}

/// Who may have what. An implementation remembers what it is told.
pub trait Leases {
    /// What [`Self::bind`] would give for each wish if all were bound one after the other. Nothing is kept.
    fn offer(&mut self, wishes: &[BindWish]) -> Vec<Result<Ipv6Prefix, Lack>>;

    /// Gives a client what it has already, or something new, for `lasts` from now on.
    ///
    /// # Errors
    /// There is nothing for it.
    fn bind(&mut self, wish: &BindWish, lasts: Duration) -> Result<Vec<Ipv6Prefix>, Lack>;

    /// What a client has.
    fn bound(&self, key: &BindKey) -> Vec<Ipv6Prefix>;

    /// The client gives it back.
    fn release(&mut self, prefix: Ipv6Prefix);

    /// The client says that somebody else uses it.
    fn decline(&mut self, key: &BindKey, prefix: Ipv6Prefix, lasts: Duration);

    /// Whether it is of the kind that is given out here, on the link of a relay that has an address there.
    fn is_on_link(&self, prefix: Ipv6Prefix, link: Option<Ipv6Addr>) -> bool;

    /// Whether a client that has come back may go on using it where it is now.
    fn still_holds(&self, _key: &BindKey, prefix: Ipv6Prefix, link: Option<Ipv6Addr>) -> bool {
        self.is_on_link(prefix, link)
    }

    /// Whether a client has it, and on the link that it is on now.
    fn has_here(&self, key: &BindKey, prefix: Ipv6Prefix, _link: Option<Ipv6Addr>) -> bool {
        self.bound(key).contains(&prefix)
    }

    /// Whether enough is known of a link to say that an address is none of it (RFC 8415 section 18.3.3).
    fn knows_link(&self, _link: Option<Ipv6Addr>) -> bool {
        true
    }

    /// For how long a client on that link is given this; `None`: as the terms say.
    fn lifetimes(&self, _key: &BindKey, _prefix: Ipv6Prefix, _link: Option<Ipv6Addr>) -> Option<Life> {
        None
    }

    /// What within a delegated prefix is the link's, and not its client's (RFC 6603).
    fn excluded(&self, _client: &[u8], _prefix: Ipv6Prefix) -> Option<Ipv6Prefix> {
        None
    }

    /// What an address is, or lies in, that somebody has.
    fn whose(&self, _addr: Ipv6Addr) -> Option<Known> {
        None
    }

    /// All that a client has, on whatever link.
    fn all_of(&self, _client: &[u8]) -> Vec<Known> {
        Vec::new()
    }

    /// Whether [`Self::all_of`] looks at so much that it is to be asked only now and then.
    fn walks(&self) -> bool {
        false
    }

    /// A client that is known by its line has called itself by this DUID.
    fn hear(&mut self, _line: &[u8], _duid: &[u8]) {}

    /// What a client that is known by its line has called itself last; `None`: nothing is known of that.
    fn duid_of(&self, _line: &[u8]) -> Option<Arc<[u8]>> {
        None
    }

    /// The clients that are known by their lines, and have called themselves by this DUID last.
    fn lines_of(&self, _duid: &[u8]) -> Vec<Arc<[u8]>> {
        Vec::new()
    }

    /// The link that has an address.
    fn link_at(&self, _addr: Ipv6Addr) -> Option<Arc<str>> {
        None
    }

    /// An address that [`Self::link_at`] finds the link by that something is on.
    fn address_on(&self, known: &Known) -> Ipv6Addr {
        known.prefix.addr()
    }

    /// Whether the configuration has anything to do with an address.
    fn is_configured(&self, addr: Ipv6Addr) -> bool {
        self.link_at(addr).is_some()
    }

    /// The number of the last message that a client has proved to be its own.
    fn last_proof(&self, _client: &[u8]) -> Option<u64> {
        None
    }

    /// A client has proved a message with this number to be its own.
    fn keep_proof(&mut self, _client: &[u8], _number: u64) {}
}
