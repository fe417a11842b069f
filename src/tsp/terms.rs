//! What holds for sessions: what the operator offers, how a client is seen, and what the office gives.
//!
//! Plain data, filled in by the caller. Knows no state.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::codec::{Capability, Dialect, Mode};
use super::xml::{BrokerAt, Info, Name, Net};
use crate::auth::{Mechanism, Site};
use crate::broker::UserName;

/// The most brokers in a list, as clients keep them.
pub const MAX_BROKERS: usize = 50;

/// The most resolvers that clients are told: a reply by UDP is one datagram that is not cut, whatever else is in it.
pub const MAX_RESOLVERS: usize = 3;

/// How a client talks to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A connection.
    Tcp,
    /// Datagrams, each with a header.
    Udp,
}

/// At which step clients are sent to other brokers, whatever they want.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// The answer to `VERSION`.
    Version,
    /// The answer to `AUTHENTICATE`.
    Login,
    /// The answer to `create`.
    Create,
}

/// What the operator offers; the same for all sessions.
#[derive(Clone, Debug)]
pub struct Offer {
    /// Types of tunnel, never [`Mode::V6AnyV4`].
    pub tunnels: Vec<Mode>,
    /// Ways to log in, the preferred one first.
    pub mechanisms: Vec<Mechanism>,
    /// What logins have in common.
    pub site: Site,
    /// Other brokers, at most [`MAX_BROKERS`].
    pub brokers: Vec<BrokerAt>,
    /// The step at which everybody is sent there.
    pub redirect: Option<Step>,
    /// The number in `lifetime`.
    pub lifetime: u64,
    /// Seconds between signs of life that everybody is told; `None`: as the client asks.
    pub keepalive: Option<u32>,
    /// Resolvers that clients are told.
    pub dns: Vec<Ipv6Addr>,
    /// What follows a user's name in the name of its client.
    pub domain: Option<Name>,
    /// The most seconds between signs of life of clients that do not say who they are, and what those get that ask for none;
    /// `None`: as with others.
    pub anonymous_keepalive: Option<u32>,
    /// Whether a tunnel by protocol 41 may end at another address than the one that asks.
    pub proxy: bool,
    /// Our outer address as clients are told, where a NAT is before us.
    pub public_address: Option<Ipv4Addr>,
}

impl Offer {
    /// The least that can be offered.
    #[cfg(test)]
    pub(super) fn plain(mode: Mode, mechanisms: Vec<Mechanism>) -> Self {
        Self {
            tunnels: vec![mode],
            mechanisms,
            site: Site { realm: "x".into(), service: "tsp", salt: [0; 32] },
            brokers: Vec::new(),
            redirect: None,
            lifetime: 1,
            keepalive: None,
            anonymous_keepalive: None,
            dns: Vec::new(),
            domain: None,
            proxy: false,
            public_address: None,
        }
    }

    /// What a client that speaks this is told of it.
    pub fn capability(&self, dialect: Dialect) -> Capability {
        // A 1.0 client cannot use UDP.
        let fits = |mode: &Mode| dialect == Dialect::Rfc || *mode == Mode::V6V4;
        Capability {
            tunnels: self.tunnels.iter().copied().filter(fits).collect(),
            mechanisms: self.mechanisms.iter().map(|one| one.name().to_owned()).collect(),
        }
    }
}

/// What is true of one session.
#[derive(Clone, Debug)]
pub struct Terms {
    /// How it is led.
    pub transport: Transport,
    /// Where the client is seen.
    pub peer: Ipv4Addr,
    /// Where it came to.
    pub local: Ipv4Addr,
    /// Random, for this session alone.
    pub random: [u8; 16],
    /// What the operator offers.
    pub offer: Arc<Offer>,
}

impl Terms {
    /// What the client is told of its tunnel.
    pub fn info(&self, found: Found, who: Option<&UserName>) -> Info {
        let Terms { local, offer, .. } = self;
        let name = who.zip(offer.domain.as_ref());
        Info {
            mode: found.mode,
            lifetime: offer.lifetime,
            server_v4: offer.public_address.unwrap_or(*local),
            server_v6: found.given.server,
            client_v4: found.end,
            client_v6: found.given.client,
            name: name.and_then(|(user, domain)| Name::parse(&format!("{user}.{}", domain.as_str()))),
            dns: offer.dns.clone(),
            prefix: found.given.network,
            keepalive: found.keepalive,
        }
    }
}

/// What a client was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given {
    /// Our address in the tunnel.
    pub server: Ipv6Addr,
    /// The client's.
    pub client: Ipv6Addr,
    /// The network behind it.
    pub network: Option<Net>,
}

/// A tunnel that a user has already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its type.
    pub mode: Mode,
    /// Where it ends on the client's side.
    pub end: Ipv4Addr,
    /// What was given.
    pub given: Given,
    /// Seconds between the signs of life that were agreed; 0: none were.
    pub keepalive: u32,
}
