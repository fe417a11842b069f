//! The vocabulary of the door between the planes: what the control plane may ask of the tables.
//!
//! Plain data: a batch of [`Update`]s can be asserted on in a test, logged, or replayed. Knows nothing
//! of sockets, threads, users or configuration files; what a table makes of it is `table`'s business.

use std::fmt;
use std::net::{AddrParseError, Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::num::NonZeroU16;
use std::str::FromStr;

use crate::manners::Manners;

/// The smallest inner MTU in octets: every IPv6 link carries 1280 (RFC 8200 section 5).
pub const MIN_MTU: u16 = 1280;
/// The largest inner MTU in octets that still fits one IPv4 datagram with either encapsulation.
pub const MAX_MTU: u16 = 65_000;

/// A tunnel's number: a dense index below the table's capacity, chosen by the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TunnelId(pub u32);

impl fmt::Display for TunnelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tunnel#{}", self.0)
    }
}

/// An IPv6 prefix: an address whose bits past `len` are zero (RFC 4291 section 2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ipv6Prefix {
    bits: u128,
    len: u8,
}

/// Why a text is not an IPv6 prefix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// No slash between address and length.
    #[error("an IPv6 prefix is written ADDRESS/LENGTH, as in 2001:db8:1::/64")]
    NoLength,
    /// The address does not parse.
    #[error("'{0}' is not an IPv6 address")]
    Address(String),
    /// The length is no number from 0 to 128.
    #[error("'{0}' is not a prefix length from 0 to 128")]
    Length(String),
    /// Bits are set behind the prefix length; the canonical form is given.
    #[error("bits are set behind the prefix length; did you mean {0}?")]
    HostBits(Ipv6Prefix),
}

impl Ipv6Prefix {
    /// Everything: `::/0`.
    pub const ALL: Self = Self { bits: 0, len: 0 };

    /// The prefix of `len` bits that `addr` lies in; host bits are cut. `None` when `len` exceeds 128.
    pub fn new(addr: Ipv6Addr, len: u8) -> Option<Self> {
        (len <= 128).then(|| Self { bits: u128::from(addr) & mask(len), len })
    }

    /// The prefix of one address, `/128`.
    pub fn host(addr: Ipv6Addr) -> Self {
        Self { bits: u128::from(addr), len: 128 }
    }

    /// The lowest address in the prefix.
    pub fn addr(self) -> Ipv6Addr {
        Ipv6Addr::from(self.bits)
    }

    /// The address bits, most significant first; those past the length are zero.
    pub fn bits(self) -> u128 {
        self.bits
    }

    /// The prefix length in bits, 0 to 128.
    pub fn prefix_len(self) -> u8 {
        self.len
    }

    /// Whether `addr` lies in this prefix.
    pub fn contains(self, addr: Ipv6Addr) -> bool {
        u128::from(addr) & mask(self.len) == self.bits
    }

    /// Whether `other` lies in this prefix or equals it.
    pub fn covers(self, other: Self) -> bool {
        self.len <= other.len && other.bits & mask(self.len) == self.bits
    }
}

/// The netmask of a prefix length from 0 to 128, as a number.
pub(crate) fn mask(len: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(len.min(128))).unwrap_or(0)
}

impl fmt::Display for Ipv6Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr(), self.len)
    }
}

impl FromStr for Ipv6Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let (addr, len) = text.split_once('/').ok_or(PrefixError::NoLength)?;
        let parsed: Result<Ipv6Addr, AddrParseError> = addr.parse();
        let addr = parsed.map_err(|_| PrefixError::Address(addr.to_owned()))?;
        let bits: u8 = len.parse().map_err(|_| PrefixError::Length(len.to_owned()))?;
        let prefix = Self::new(addr, bits).ok_or_else(|| PrefixError::Length(len.to_owned()))?;
        if prefix.addr() != addr {
            return Err(PrefixError::HostBits(prefix));
        }
        Ok(prefix)
    }
}

/// Where a UDP tunnel ends on our side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UdpLocal {
    /// Our outer address; `None` takes packets to any local address and lets the kernel choose the source.
    pub addr: Option<Ipv4Addr>,
    /// Our UDP port; a socket must listen there.
    pub port: u16,
}

/// Where a UDP tunnel ends on the peer's side, and how much of that may move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UdpRemote {
    /// Nothing moves.
    Fixed(SocketAddrV4),
    /// The address is fixed, the port is learned.
    AnyPort {
        /// The peer's outer address.
        addr: Ipv4Addr,
        /// The port learned so far.
        port: Option<NonZeroU16>,
    },
    /// Address and port are learned.
    Learned(Option<SocketAddrV4>),
}

impl UdpRemote {
    /// The endpoint that packets are sent to now; `None` while nothing was learned.
    pub fn endpoint(self) -> Option<SocketAddrV4> {
        match self {
            Self::Fixed(at) => Some(at),
            Self::AnyPort { addr, port } => port.map(|p| SocketAddrV4::new(addr, p.get())),
            Self::Learned(at) => at,
        }
    }

    /// Whether a packet from `sender` may start the proof that the peer has moved there.
    pub fn may_move_to(self, sender: SocketAddrV4) -> bool {
        match self {
            Self::Fixed(_) => false,
            Self::AnyPort { addr, .. } => addr == *sender.ip(),
            Self::Learned(_) => true,
        }
    }

    /// The same tunnel with `at` as its proven endpoint; `None` when it may not move there.
    pub fn moved_to(self, at: SocketAddrV4) -> Option<Self> {
        if !self.may_move_to(at) {
            return None;
        }
        match self {
            Self::Fixed(_) => None,
            Self::AnyPort { addr, .. } => Some(Self::AnyPort { addr, port: NonZeroU16::new(at.port()) }),
            Self::Learned(_) => Some(Self::Learned(Some(at))),
        }
    }
}

/// The outer side of a tunnel: encapsulation and the addresses it runs between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outer {
    /// IPv6 directly in IPv4, protocol 41 (RFC 4213).
    Proto41 {
        /// Our outer address; `None` takes packets to any local address.
        local: Option<Ipv4Addr>,
        /// The peer's outer address.
        remote: Ipv4Addr,
    },
    /// IPv6 in UDP in IPv4, no header between (RFC 5572 section 4.5, the format of Linux FOU).
    Udp {
        /// Our side.
        local: UdpLocal,
        /// The peer's side.
        remote: UdpRemote,
    },
}

impl Outer {
    /// The peer's outer address, where it is known.
    pub fn peer(&self) -> Option<Ipv4Addr> {
        match self {
            Self::Proto41 { remote, .. } => Some(*remote),
            Self::Udp { remote: UdpRemote::AnyPort { addr, .. }, .. } => Some(*addr),
            Self::Udp { remote, .. } => remote.endpoint().map(|at| *at.ip()),
        }
    }

    /// Our outer address, where it is fixed.
    pub fn local(&self) -> Option<Ipv4Addr> {
        match self {
            Self::Proto41 { local, .. } => *local,
            Self::Udp { local, .. } => local.addr,
        }
    }

    /// Octets that this encapsulation puts before an inner packet.
    pub fn overhead(&self) -> u16 {
        match self {
            Self::Proto41 { .. } => 20,
            Self::Udp { .. } => 28,
        }
    }
}

/// One tunnel, as the tables need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Its number.
    pub id: TunnelId,
    /// Encapsulation and outer addresses.
    pub outer: Outer,
    /// The inner prefixes behind it; `::/0` makes it an uplink.
    pub prefixes: Vec<Ipv6Prefix>,
    /// Largest inner packet in octets, [`MIN_MTU`] to [`MAX_MTU`].
    pub mtu: u16,
    /// How it treats its packets.
    pub manners: Manners,
}

/// Who holds a prefix that belongs to no tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Holder {
    /// The router itself: its kernel gets the packets, and nobody may send from there.
    Local,
    /// Nobody yet: space of a pool that was not handed out is a black hole (RFC 7084 WPD-5).
    Unassigned,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Local => "the router's own",
            Self::Unassigned => "a pool's",
        })
    }
}

/// What a tunnel may carry, both directions together; 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Meter {
    /// Packets a second.
    pub packets_per_second: u64,
    /// Octets of inner packets a second.
    pub octets_per_second: u64,
    /// Octets of inner packets in all, from when this was set.
    pub quota: u64,
}

impl Meter {
    /// No limit.
    pub const NONE: Self = Self { packets_per_second: 0, octets_per_second: 0, quota: 0 };
}

/// So many a second, and so many at once; 0 a second: none at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// A second.
    pub per_second: u32,
    /// At once.
    pub burst: u32,
}

impl Rate {
    /// What each of so many may take, so that they do not take more together; at least one at once, if there is any.
    pub fn share(self, of: usize) -> Self {
        let of = u32::try_from(of.max(1)).unwrap_or(u32::MAX);
        Self { per_second: self.per_second.div_ceil(of), burst: self.burst.div_ceil(of) }
    }
}

/// What holds for all tunnels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Whether packets pass from one tunnel to another inside the forwarder.
    pub hairpin: bool,
    /// Source address of our ICMPv6 errors where the tunnel has none of ours; `None` sends none at all.
    pub error_source: Option<Ipv6Addr>,
    /// Echo replies to the router with this identifier are copied up the punt queue: answers to endpoint probes.
    pub probe_ident: Option<u16>,
    /// ICMPv6 errors about packets of one tunnel (RFC 4443 section 2.4(f)); each worker has its share.
    pub errors_of_tunnel: Rate,
    /// ICMPv6 errors in all; each worker has its share.
    pub errors: Rate,
    /// Whether a peer is told that it sent from outside its tunnel's prefixes (RFC 4443 section 3.1, code 5).
    pub tells_source: bool,
    /// Whether packets with a routing header come out of tunnels (RFC 6169 section 2.3). One of type 0 with segments left
    /// never does (RFC 5095 section 3).
    pub takes_source_routes: bool,
    /// How many tunnels a packet may carry inside itself (RFC 2473 section 4.1.1).
    pub nesting: u8,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            hairpin: true,
            error_source: None,
            probe_ident: None,
            errors_of_tunnel: Rate { per_second: 100, burst: 50 },
            errors: Rate { per_second: 1000, burst: 200 },
            tells_source: false,
            takes_source_routes: false,
            nesting: 4,
        }
    }
}

/// One wish of the control plane. A batch of them is applied as a whole or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update {
    /// Add this tunnel, or put it in the place of the one with its number.
    Upsert(Tunnel),
    /// Forget this tunnel with all its prefixes.
    Remove(TunnelId),
    /// Give a prefix to somebody who is not a tunnel.
    Reserve(Ipv6Prefix, Holder),
    /// Take such a prefix back.
    Free(Ipv6Prefix),
    /// Open UDP sockets on this local endpoint, one a worker (`0.0.0.0`: all local addresses).
    Listen(SocketAddrV4),
    /// Close them again.
    Unlisten(SocketAddrV4),
    /// Copy this tunnel's packets up the punt queue with their verdicts, or stop that.
    Watch(TunnelId, bool),
    /// Limit what a tunnel may carry, whose [`Manners`] must say that there is a limit.
    Meter(TunnelId, Meter),
    /// Our own address in a tunnel: what errors to its hosts come from, instead of the policy's.
    Address(TunnelId, Option<Ipv6Addr>),
    /// Change what holds for all tunnels.
    Policy(Policy),
}

/// Counts the batches applied so far; a later batch has a larger one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation(pub u64);

/// Why a batch was not applied; nothing of it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// The prefix is another tunnel's.
    #[error("prefix {prefix} of {wanted_by} already belongs to {held_by}")]
    PrefixTaken {
        /// The prefix wanted twice.
        prefix: Ipv6Prefix,
        /// Who wants it.
        wanted_by: TunnelId,
        /// Who has it.
        held_by: TunnelId,
    },
    /// The prefix is the router's own or a reserved pool's.
    #[error("prefix {prefix} is reserved: it is {holder}")]
    PrefixReserved {
        /// The prefix wanted twice.
        prefix: Ipv6Prefix,
        /// Who has it.
        holder: Holder,
    },
    /// Another tunnel runs between the same outer endpoints, so a packet could not be told apart.
    #[error("{wanted_by} runs between the same outer endpoints as {held_by}")]
    OuterTaken {
        /// Who wants them.
        wanted_by: TunnelId,
        /// Who has them.
        held_by: TunnelId,
    },
    /// No such tunnel.
    #[error("{0} does not exist")]
    NoTunnel(TunnelId),
    /// No such reserved prefix.
    #[error("prefix {0} is not reserved")]
    NotReserved(Ipv6Prefix),
    /// The tunnel's number is beyond what the table was made for.
    #[error("{id} is beyond the table's capacity of {capacity} tunnels")]
    Full {
        /// The number that does not fit.
        id: TunnelId,
        /// How many fit.
        capacity: u32,
    },
    /// The MTU is outside [`MIN_MTU`] to [`MAX_MTU`].
    #[error("{id}: MTU {mtu} is outside {MIN_MTU} to {MAX_MTU}")]
    Mtu {
        /// Whose.
        id: TunnelId,
        /// The value.
        mtu: u16,
    },
    /// A UDP tunnel's local port has no open socket.
    #[error("{id}: no UDP socket listens on port {port}")]
    NotListening {
        /// Whose.
        id: TunnelId,
        /// The port wanted.
        port: u16,
    },
    /// The sockets could not be opened.
    #[error("cannot listen on UDP {at}: {why}")]
    Listen {
        /// The endpoint wanted.
        at: SocketAddrV4,
        /// What the system said.
        why: String,
    },
    /// Tunnels still use this socket, or it is not open.
    #[error("cannot close UDP {at}: {why}")]
    Unlisten {
        /// The endpoint named.
        at: SocketAddrV4,
        /// What stands against it.
        why: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_parse_print_and_refuse_host_bits() {
        let p: Ipv6Prefix = "2001:db8:1::/48".parse().unwrap();
        assert_eq!(p.to_string(), "2001:db8:1::/48");
        assert_eq!("2001:db8:1::1/48".parse::<Ipv6Prefix>(), Err(PrefixError::HostBits(p)));
        assert!(matches!("2001:db8::/129".parse::<Ipv6Prefix>(), Err(PrefixError::Length(_))));
        assert!(matches!("2001:db8::".parse::<Ipv6Prefix>(), Err(PrefixError::NoLength)));
        assert!(matches!("x/64".parse::<Ipv6Prefix>(), Err(PrefixError::Address(_))));
    }

    #[test]
    fn shares_are_no_more_than_the_whole_but_for_their_rounding() {
        let rate = Rate { per_second: 1000, burst: 200 };
        assert_eq!((rate.share(1), rate.share(0)), (rate, rate));
        assert_eq!(rate.share(4), Rate { per_second: 250, burst: 50 });
        assert_eq!(Rate { per_second: 0, burst: 3 }.share(2), Rate { per_second: 0, burst: 2 });
    }

    #[test]
    fn covering_and_containing() {
        let wide: Ipv6Prefix = "2001:db8::/32".parse().unwrap();
        let host = Ipv6Prefix::host("2001:db8::1".parse().unwrap());
        assert!(wide.covers(host) && !host.covers(wide) && Ipv6Prefix::ALL.covers(wide));
        assert!(host.contains("2001:db8::1".parse().unwrap()));
        assert!(!host.contains("2001:db8::2".parse().unwrap()));
    }

    #[test]
    fn an_endpoint_moves_only_as_far_as_it_may() {
        let at = |s: &str| -> SocketAddrV4 { s.parse().unwrap() };
        assert_eq!(UdpRemote::Fixed(at("10.0.0.1:1")).moved_to(at("10.0.0.1:2")), None);
        let port = UdpRemote::AnyPort { addr: Ipv4Addr::new(10, 0, 0, 1), port: None };
        assert_eq!(port.endpoint(), None);
        assert_eq!(port.moved_to(at("10.0.0.2:2")), None);
        assert_eq!(port.moved_to(at("10.0.0.1:2")).and_then(UdpRemote::endpoint), Some(at("10.0.0.1:2")));
        assert_eq!(
            UdpRemote::Learned(None).moved_to(at("1.2.3.4:5")),
            Some(UdpRemote::Learned(Some(at("1.2.3.4:5"))))
        );
    }
}
