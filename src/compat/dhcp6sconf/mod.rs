//! `dhcp6s.conf` of WIDE's dhcp6s: the text to a checked configuration, or every mistake with its place.
//!
//! ```text
//!   text ──lexer──► tokens ──parser──► statements ──apply──► ServerConf
//! ```
//!
//! What the old program loads is loaded. Where it silently does harm (skipped characters, lifetimes that wrap, names that
//! no answer can carry) a note says so. What it refuses is refused, and a few keywords within `interface` and `host`
//! are ours, and `lease-query`. Opens no file: texts, interfaces and the clock come from [`Surroundings`].

mod apply;
mod lexer;
mod parser;

/// A host where every interface is there, and no file.
#[cfg(test)]
pub(crate) struct Anywhere;

#[cfg(test)]
impl Surroundings for Anywhere {
    fn read(&self, _: &str) -> std::io::Result<Vec<u8>> {
        Err(std::io::ErrorKind::NotFound.into())
    }
    fn has_interface(&self, _: &str) -> bool {
        true
    }
    fn now(&self) -> u64 {
        0
    }
    fn today(&self) -> (i16, i8, i8) {
        (2026, 1, 1)
    }
    fn unix_time(&self, _: (i16, i8, i8), _: (i8, i8)) -> Option<u64> {
        None
    }
}

#[cfg(test)]
mod tests;
mod values;
mod words;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::Ipv6Addr;
use std::sync::Arc;

use sixway_dataplane::update::Ipv6Prefix;
use zeroize::Zeroizing;

pub use values::{Duid, DuidError, Lifetimes};

/// The most files that one configuration includes, counted as often as they are read.
pub const MAX_INCLUDES: usize = 1000;
/// How deep files include files.
pub const MAX_DEPTH: usize = 10;
/// The most notes that are kept; further ones are only counted.
pub const MAX_NOTES: usize = 200;

/// The most mistakes of form that are named.
pub const MAX_WRONG: usize = 50;

/// What the text is read within.
pub trait Surroundings {
    /// The octets of a file, named as in the text (relative to the working directory).
    ///
    /// # Errors
    /// As the system says; a file that does not exist is [`io::ErrorKind::NotFound`].
    fn read(&self, file: &str) -> io::Result<Vec<u8>>;
    /// Whether there is a network interface of that name.
    fn has_interface(&self, name: &str) -> bool;
    /// The clock in Unix seconds.
    fn now(&self) -> u64;
    /// Today's year, month and day where the program runs.
    fn today(&self) -> (i16, i8, i8);
    /// A local date (year, month, day) and time of day (hour, minute) in Unix seconds, if there is such a time.
    fn unix_time(&self, date: (i16, i8, i8), time: (i8, i8)) -> Option<u64>;
}

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// As it was named.
    pub file: Arc<str>,
    /// Counted from 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// What is wrong at a place, or worth knowing there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {what}")]
pub struct Remark {
    /// Where.
    pub place: Place,
    /// What, and what to write instead.
    pub what: String,
}

/// A configuration and what should be said about it.
#[derive(Debug)]
pub struct Loaded {
    /// What counts.
    pub conf: ServerConf,
    /// What is ignored, wrapped or left out, in the order of the text.
    pub notes: Vec<Remark>,
}

/// What `dhcp6s.conf` says, resolved: pools and keys stand where they are used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerConf {
    /// What clients are told beside addresses and prefixes.
    pub options: Options,
    /// Interfaces by name, the served one and others.
    pub interfaces: BTreeMap<String, Interface>,
    /// In the order of the file: of two with one DUID the first counts.
    pub hosts: Vec<Host>,
    /// Whether clients that let themselves be told of changes are told: there is an `authentication` with `protocol reconfig`.
    pub reconfigure: bool,
    /// Where those are who may ask who has what (RFC 5007): `lease-query PREFIX ...;`, which is ours.
    pub requestors: Vec<Ipv6Prefix>,
}

impl ServerConf {
    /// Whether nobody on this interface is given an address or a prefix.
    pub fn gives_nobody(&self, interface: &str) -> bool {
        let pools = self.interfaces.get(interface);
        let has_pools = pools.is_some_and(|one| one.pool.is_some() || !one.prefix_pools.is_empty());
        let is_given = |host: &Host| {
            let own = host.prefixes.len() + host.addresses.len() + host.prefix_pools.len();
            own > 0 || host.pool.is_some()
        };
        !has_pools && !self.hosts.iter().any(is_given)
    }
}

/// `option` statements.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Lists of addresses by option code: 22, 23, 27, 28, 31, 34.
    pub addresses: BTreeMap<u16, Vec<Ipv6Addr>>,
    /// Lists of domain names by option code (21, 24, 29, 30, 33), in lower case without the last dot.
    pub names: BTreeMap<u16, Vec<String>>,
    /// Option 32 in seconds, for answers to Information-request alone.
    pub refresh_time: Option<u32>,
}

/// `interface NAME { ... };`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Whether Rapid Commit is answered.
    pub rapid_commit: bool,
    /// What Advertise carries, if anything.
    pub preference: Option<u8>,
    /// Where strangers' addresses come from.
    pub pool: Option<PoolUse>,
    /// Where strangers' prefixes come from.
    pub prefix_pools: Vec<PrefixPool>,
    /// What relays call it in the option Interface-Id: `relay-interface-id "TEXT";`, which is ours.
    pub relay_ids: Vec<Vec<u8>>,
    /// For how many seconds a declined address is given to nobody: `decline-time SECONDS;`, which is ours.
    pub decline_time: Option<u32>,
    /// SOL_MAX_RT and INF_MAX_RT in seconds, by option code: `solicit-max-rt`, `information-max-rt`, which are ours.
    pub max_rts: BTreeMap<u16, u32>,
    /// Codes of options that are sent unasked: `send-unasked CODE ...;`, which is ours.
    pub unasked: Vec<u16>,
    /// Codes of options that relays may supply for clients: `relay-supplied CODE ...;`, which is ours.
    pub supplied: Vec<u16>,
    /// What of each prefix out of `prefix_pools` is its link's: `excluded-subnet LENGTH NUMBER;`, which is ours.
    pub excluded: Option<Subnet>,
}

/// `host NAME { ... };`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Its name in the file.
    pub name: String,
    /// Who it is; a host with neither this nor a line is never met.
    pub duid: Option<Duid>,
    /// Or on which line it is, as relays say: `remote-id ENTERPRISE "TEXT";` or `subscriber-id "TEXT";`, which are ours.
    pub line: Option<Line>,
    /// Prefixes that are the host's alone.
    pub prefixes: Vec<(Ipv6Prefix, Lifetimes)>,
    /// Addresses that are the host's alone.
    pub addresses: Vec<(Ipv6Addr, Lifetimes)>,
    /// Where further addresses come from.
    pub pool: Option<PoolUse>,
    /// Where further prefixes come from.
    pub prefix_pools: Vec<PrefixPool>,
    /// What within `prefixes` is the link's: `excluded-prefix PREFIX/LENGTH;`, which is ours.
    pub excluded_prefixes: Vec<Ipv6Prefix>,
    /// What of each prefix out of `prefix_pools` is: `excluded-subnet LENGTH NUMBER;`, which is ours.
    pub excluded: Option<Subnet>,
    /// For delayed authentication.
    pub key: Option<Arc<Key>>,
}

/// A line as relays name it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Line {
    /// Option Remote-Id (RFC 4649): the number of an enterprise, and its name for the line.
    Remote(u32, Vec<u8>),
    /// Option Subscriber-Id (RFC 4580).
    Subscriber(Vec<u8>),
}

/// A pool of addresses as somebody uses it: `address-pool NAME LIFE [LIFE];`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolUse {
    /// The pool's name; one pool may be used in several places.
    pub name: String,
    /// The lowest address.
    pub first: Ipv6Addr,
    /// The highest address.
    pub last: Ipv6Addr,
    /// Whether the lowest free address is given, and none by chance: `lowest-first;`, which is ours.
    pub lowest_first: bool,
    /// Of what is given out of it here.
    pub lifetimes: Lifetimes,
}

/// Space that prefixes are cut from: `delegated-prefix-pool PREFIX/LENGTH LENGTH LIFE [LIFE];`, which is ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefixPool {
    /// All of it.
    pub space: Ipv6Prefix,
    /// The length of what a client gets, from the space's own to 64.
    pub len: u8,
    /// Of what is given out of it here.
    pub lifetimes: Lifetimes,
}

/// One of the networks within each delegated prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    /// Its length in bits.
    pub len: u8,
    /// Which one, from 0.
    pub number: u64,
}

/// `keyinfo NAME { ... };`.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    /// Its name in the file.
    pub name: String,
    /// The realm, as it goes on the wire.
    pub realm: String,
    /// The key's number.
    pub id: u32,
    /// The shared secret; overwritten when it goes.
    pub secret: Zeroizing<Vec<u8>>,
    /// Unix seconds after which it does not count; `None` for ever.
    pub expires: Option<u64>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({}, realm {}, id {})", self.name, self.realm, self.id)
    }
}

/// Reads a configuration with all that it includes.
///
/// # Errors
/// The mistakes of form, one for each statement; or all mistakes of sense.
pub fn load(file: &str, text: &[u8], around: &dyn Surroundings) -> Result<Loaded, Vec<Remark>> {
    let mut notes = Notes::default();
    let statements = parser::parse(file, text, around, &mut notes)?;
    let conf = apply::apply(statements, around, &mut notes)?;
    Ok(Loaded { conf, notes: notes.finish() })
}

/// Notes as they are collected: a bounded number.
#[derive(Debug, Default)]
struct Notes {
    kept: Vec<Remark>,
    more: usize,
}

impl Notes {
    fn push(&mut self, place: &Place, what: impl Into<String>) {
        if self.kept.len() < MAX_NOTES {
            self.kept.push(Remark { place: place.clone(), what: what.into() });
        } else {
            self.more += 1;
        }
    }

    fn finish(mut self) -> Vec<Remark> {
        if let (more @ 1.., Some(last)) = (self.more, self.kept.last().cloned()) {
            self.kept.push(Remark { place: last.place, what: format!("{more} more notes are left out") });
        }
        self.kept
    }
}
