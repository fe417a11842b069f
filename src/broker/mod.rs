//! Who may have which tunnel and which prefixes, until when: accounts, pools, leases.
//!
//! Pure: time and wishes come in; records to keep and routes to make come out ([`Outcome`]), in the order in which they
//! must be done: store, then table, then the client's answer. [`crate::office`] does that. Refuses to know protocols,
//! sockets, clocks, files and the numbers that tunnels have in the table.
//!
//! ```text
//!   Wish ──► Broker::grant ──► Grant ─────────────────────────────────────► client
//!                 │                                                    ▲
//!                 └──► Outcome { records ──► store/ (on disk), routes ──► registry (table) }
//! ```
//!
//! A lease is a tunnel and what it was given. Who had a prefix keeps it in mind for them: the same account is given
//! the same prefix again, until a pool has no other left; then the one unused for longest changes hands.

pub mod account;
pub mod binding;
pub mod choice;
pub mod lease;
pub mod limits;
pub mod mechanism;
pub mod pool;
pub mod roll;

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use sixway_dataplane::update::{Ipv6Prefix, Outer, Rejected};

pub use account::{Account, Accounts, Secret, UserName};
pub use binding::{BindKey, BindKind, BindWish, Binding};
pub use choice::Offered;
pub use lease::{Broker, Fate, Hearing, Lease, Memory, Terms, peer};
pub use limits::{Doorman, Limits, Whence};
pub use mechanism::{Mechanism, Mechanisms};
pub use pool::{Pool, PoolKind};

/// A moment: milliseconds since 1970-01-01 UTC. Leases outlive the process, so they are counted by the calendar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Time(pub u64);

impl Time {
    /// Whether what ends then lasts for ever: the end of time, or what a store makes of it.
    pub fn is_never(self) -> bool {
        self.0 >= u64::MAX / 2
    }

    /// The moment `later`; the end of time where that is beyond it.
    pub fn after(self, later: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(later.as_millis()).unwrap_or(u64::MAX)))
    }

    /// The moment so many milliseconds later, or earlier.
    pub fn shifted(self, by: i64) -> Self {
        Self(self.0.saturating_add_signed(by))
    }

    /// How long after `earlier` this is; nothing if the clock was set back in between.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// A lease's number. Never given to another lease while anything remembers this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeaseId(pub u64);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lease#{}", self.0)
    }
}

/// The protocol that a lease was asked for by; the end of a leased tunnel's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// Dynamic Tunnel Configuration Protocol.
    Dtcp,
    /// Tunnel Setup Protocol (RFC 5572).
    Tsp,
    /// DHCPv6 prefix delegation (RFC 8415 section 6.3).
    Dhcpv6,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Dtcp, Self::Tsp, Self::Dhcpv6];

    /// Its name: in logs, in the store, in names of tunnels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dtcp => "dtcp",
            Self::Tsp => "tsp",
            Self::Dhcpv6 => "dhcpv6",
        }
    }
}

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// On whose account; whoever asks has proven to be that user.
    pub user: UserName,
    /// By which protocol.
    pub protocol: Protocol,
    /// Encapsulation and outer addresses of the tunnel.
    pub outer: Outer,
    /// Largest inner packet in octets.
    pub mtu: u16,
    /// What is to be behind the tunnel.
    pub wants: Wants,
    /// How long it lasts.
    pub keep: Keep,
}

/// What is to be behind a tunnel. Nothing at all is a bare link with link-local addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wants {
    /// One address for the client and one for our end.
    pub pair: bool,
    /// Networks: those of the account, or else one from a pool.
    pub network: Option<NetworkWish>,
}

/// An address pair of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairPlace {
    /// The pool's prefix.
    pub pool: Ipv6Prefix,
    /// The pair's number in it.
    pub number: u32,
}

/// Which network is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkWish {
    /// What the account was given by the operator, or else one from the first pool of networks.
    Any,
    /// What the account was given by the operator, and nothing where that is nothing.
    Own,
    /// One of this prefix length in bits: of the account's those that have it, or else one from a pool of it.
    Length(u8),
}

/// How long a lease lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// As long as the client's connection; a restart of the router ends it.
    WithConnection,
    /// For this long unless it is renewed, connection or not; it outlives a restart.
    For(Duration),
    /// The same, and it is renewed whenever its client is heard. While it is heard, no other account takes its endpoint.
    WhileHeard {
        /// For this long after it was heard last.
        lasts: Duration,
        /// What the client has said of itself.
        told: Told,
        /// Whether the wish came from the outer address that it is for.
        proven: bool,
    },
}

/// What a client has said of itself; kept with its lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Seconds between the signs of life that were agreed; 0: none were.
    pub keepalive: u32,
    /// The IPv4 address that it takes itself to be at: behind a NAT, another one than it is seen at.
    pub claimed: Option<Ipv4Addr>,
}

/// What a client was given. It is on disk and in the tables before anybody sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Number to renew and release it by.
    pub lease: LeaseId,
    /// Whose it is.
    pub user: UserName,
    /// By which protocol it was asked for.
    pub protocol: Protocol,
    /// The tunnel's name in `status`, such as `alice@dtcp`.
    pub name: Box<str>,
    /// Encapsulation and outer addresses.
    pub outer: Outer,
    /// The address pair, where one was wanted.
    pub pair: Option<Pair>,
    /// The networks behind the tunnel, without the pair.
    pub networks: Vec<Ipv6Prefix>,
    /// Largest inner packet in octets.
    pub mtu: u16,
    /// When it ends unless it is renewed; `None`: with its connection.
    pub expires: Option<Time>,
}

/// An address pair out of a pool, by its number N from 0: our end is `prefix + (N+1)*4 + 1`, the client's one above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The number N.
    pub number: u32,
    /// Our end.
    pub server: Ipv6Addr,
    /// The client's end.
    pub client: Ipv6Addr,
}

/// Why a lease has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// The client gave it back.
    Released,
    /// Its connection ended.
    Disconnected,
    /// Nobody renewed it in time.
    Expired,
    /// A newer session of the same account, or one from the same outer endpoints, has taken its place.
    Superseded,
    /// The operator ended it.
    Kicked,
    /// The account is gone.
    AccountGone,
    /// The configuration no longer has the pool or prefix, or the tables would not take it.
    Withdrawn,
    /// The router was restarted, and it lasted only as long as its connection.
    Restart,
}

impl End {
    /// Its name: in logs and for hooks.
    pub fn name(self) -> &'static str {
        match self {
            Self::Released => "released",
            Self::Disconnected => "disconnected",
            Self::Expired => "expired",
            Self::Superseded => "superseded",
            Self::Kicked => "kicked",
            Self::AccountGone => "account_gone",
            Self::Withdrawn => "withdrawn",
            Self::Restart => "restart",
        }
    }
}

/// Why a client gets nothing. The text is for logs; a protocol has its own words for its clients.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such account, or the proof does not fit it: nobody is told which.
    #[error("wrong user or secret")]
    LoginFailed,
    /// Too many attempts.
    #[error("too many attempts from {peer}; the next one may be made in {}s", wait.as_secs().max(1))]
    Throttled {
        /// From where.
        peer: Ipv4Addr,
        /// How long until the next may succeed.
        wait: Duration,
    },
    /// Too many connections from one address, or in all.
    #[error("{open} connections are open from {peer}, the most there may be ([limits] {key})")]
    TooManyConnections {
        /// From where.
        peer: Ipv4Addr,
        /// How many there are.
        open: u32,
        /// The key that says how many there may be.
        key: &'static str,
    },
    /// The outer address has as many tunnels as it may have.
    #[error("{peer} has {most} tunnels, the most there may be ([limits] tunnels_per_address)")]
    TooManyTunnels {
        /// The outer address.
        peer: Ipv4Addr,
        /// How many it may have.
        most: u32,
    },
    /// Clients that did not say who they are have as many tunnels as they may have.
    #[error("{most} tunnels are anonymous, the most there may be ([limits] {key})")]
    TooManyAnonymous {
        /// How many there may be.
        most: u32,
        /// The key that says so.
        key: &'static str,
    },
    /// Another tunnel runs between the same outer endpoints.
    #[error("another tunnel runs between the same outer endpoints")]
    EndpointTaken,
    /// The account has no such network, and no pool gives one out.
    #[error("nothing to give: {0}")]
    NothingToGive(&'static str),
    /// Everything is in use.
    #[error("pool {0} is used up")]
    Exhausted(Ipv6Prefix),
    /// The place that the account must have is somebody else's now.
    #[error("{0} is in use by somebody else")]
    Taken(Ipv6Prefix),
    /// There is no such lease (any more).
    #[error("{0} does not exist (any more)")]
    NoLease(LeaseId),
    /// The tables would not take the tunnel.
    #[error("the tables refuse the tunnel: {}", told(.0))]
    Table(Rejected),
    /// What is granted cannot be kept, so nothing is granted.
    #[error("the store cannot be written")]
    Store,
    /// More wishes wait than may.
    #[error("too many wishes wait")]
    Busy,
    /// The router stops.
    #[error("the router is stopping")]
    Stopping,
}

/// A line for the store. Lines are written in order; a batch is kept as a whole or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// This account is there, in the place of the one with its name. The broker itself writes none.
    Account(Account),
    /// This account is gone. The broker itself writes none.
    AccountGone(UserName),
    /// This lease is granted.
    Lease(Lease),
    /// This lease is in force until then.
    Until(LeaseId, Time),
    /// The outer side of this lease is this one now: its peer was proven to be elsewhere.
    Moved(LeaseId, Outer),
    /// This lease has ended.
    Ended(LeaseId),
    /// This prefix is in mind for this account, in use or not, since.
    Assigned {
        /// What.
        prefix: Ipv6Prefix,
        /// Whose; `None`: its account is gone, and nobody's yet.
        user: Option<UserName>,
        /// When it was given or given back last.
        since: Time,
    },
    /// This is bound.
    Bound(Binding),
    /// This binding is in force until then, and its client is to be found there.
    BoundUntil(Ipv6Prefix, Time, Option<Ipv6Addr>),
    /// This is bound no longer.
    Unbound(Ipv6Prefix),
}

/// What the tables must learn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// A tunnel is up.
    Up(Grant),
    /// A tunnel is gone.
    Down(LeaseId, End),
    /// A prefix is behind a tunnel that is up, beside the tunnel's own.
    Bind(Binding),
    /// It is no longer.
    Unbind(Binding, End),
}

/// What a step of the broker asks of the world: first all records, then all routes, then answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// For the store.
    pub records: Vec<Record>,
    /// For the tables, in order.
    pub routes: Vec<Route>,
}

impl Outcome {
    /// Puts what comes later behind.
    pub fn append(&mut self, mut later: Self) {
        self.records.append(&mut later.records);
        self.routes.append(&mut later.routes);
    }

    /// Whether nothing is asked.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.routes.is_empty()
    }
}

/// The tables' refusal in words for the log; numbers of tunnels say nothing there.
fn told(why: &Rejected) -> String {
    match why {
        Rejected::OuterTaken { .. } => "another tunnel runs between the same outer endpoints".to_owned(),
        Rejected::PrefixTaken { prefix, .. } => format!("prefix {prefix} is behind another tunnel"),
        Rejected::Full { capacity, .. } => {
            format!("the table was made for {capacity} tunnels; raise [router] capacity and restart")
        }
        Rejected::NotListening { port, .. } => format!("no UDP socket listens on port {port}"),
        Rejected::PrefixReserved { .. }
        | Rejected::NoTunnel(_)
        | Rejected::NotReserved(_)
        | Rejected::Mtu { .. }
        | Rejected::Listen { .. }
        | Rejected::Unlisten { .. } => why.to_string(),
    }
}
