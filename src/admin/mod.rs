//! The local door for operators: one JSON line asked, one JSON line answered, over a Unix socket of mode 0600.
//!
//! Here are the words that both ends use. [`server`] listens inside `sixway run`; [`client`] is what the commands use;
//! [`status`] says what is asked for most. Knows no packets.

pub mod client;
pub mod delegated;
pub mod leases;
pub mod packet;
pub mod pcapng;
pub mod remedy;
pub mod screen;
pub mod server;
pub mod status;
pub mod table;

use serde::{Deserialize, Serialize};

use crate::dhcpv6::telling::Evicted;

/// Tunnels in one page of a status answer, unless asked otherwise.
pub const PAGE: usize = 1000;
/// Most octets of a question.
pub const MOST_REQUEST: usize = 64 * 1024;

/// What may be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cmd", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// How things are.
    Status {
        /// Which page of tunnels, from 1.
        #[serde(default = "first_page")]
        page: usize,
        /// Tunnels in a page, at most 10,000.
        #[serde(default = "page_size")]
        limit: usize,
        /// Only the tunnel with this name.
        #[serde(default)]
        tunnel: Option<String>,
    },
    /// Read the configuration file again.
    Reload,
    /// The next updates of a measurement; the first batch begins it (see [`crate::churn`]).
    Churn {
        /// A number that the asker has chosen for it.
        session: u32,
        /// How many tunnels come, change and go in turn: 1 to 65,536.
        tunnels: u32,
        /// How many of them now: at most 10,000.
        updates: u32,
    },
    /// Remove its tunnels.
    ChurnEnd {
        /// That number.
        session: u32,
    },
    /// End leased tunnels.
    Kick {
        /// The name of a tunnel, or of a user whose tunnels all end.
        who: String,
    },
    /// Send new clients to other brokers, or no longer.
    Drain {
        /// Whether.
        on: bool,
    },
    /// Have DHCPv6 clients that let themselves be told ask anew.
    Reconfigure {
        /// In this tunnel; without, everywhere.
        #[serde(default)]
        tunnel: Option<String>,
    },
    /// Who has what by DHCPv6, some at a time.
    Leases(leases::Wish),
    /// What would become of a packet.
    Explain(crate::explain::Wish),
    /// The last packet that each reason has dropped.
    Drops,
    /// Copies of a tunnel's packets, one line each, until either side ends it.
    Watch {
        /// The tunnel's name.
        tunnel: String,
    },
    /// What must hold of a router, and whether it does.
    Audit,
}

fn first_page() -> usize {
    1
}

fn page_size() -> usize {
    PAGE
}

/// What becomes of a DHCPv6 client whose binding is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvictedStatus {
    /// Whether it is told, and asks anew.
    pub told: bool,
    /// For how many seconds it would else go on using what it had, if it did not renew it before; `None`: for ever.
    pub believes_s: Option<u64>,
}

impl From<Evicted> for EvictedStatus {
    fn from(evicted: Evicted) -> Self {
        Self { told: evicted.is_told, believes_s: evicted.believes.map(|left| left.as_secs()) }
    }
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// The status, a page of it.
    Status(Box<status::Status>),
    /// What a reload changed.
    Reloaded(status::Reloaded),
    /// What became of a batch of a measurement.
    Churned {
        /// Updates that are in the tables.
        applied: u32,
        /// Why the others are not.
        refused: Option<String>,
    },
    /// These leased tunnels are ended.
    Kicked {
        /// How many.
        tunnels: usize,
        /// What becomes of the client of a binding that was ended.
        #[serde(default)]
        client: Option<EvictedStatus>,
    },
    /// New clients are sent elsewhere, or no longer.
    Drained {
        /// Whether they are.
        on: bool,
        /// How many other brokers they are told; 0: they are told to come later.
        brokers: usize,
    },
    /// DHCPv6 clients are told to ask anew.
    Reconfigured {
        /// How many in tunnels; those on links are not waited for.
        clients: usize,
    },
    /// Who has what, some of it.
    Leases(leases::Page),
    /// What would become of the packet.
    Explained(Box<crate::explain::Explained>),
    /// What each reason has dropped.
    Drops(Vec<crate::explain::Dropped>),
    /// The tunnel is watched; lines of [`packet::Seen`] follow.
    Watching,
    /// Every requirement and how it stands.
    Audited(Vec<crate::audit::Finding>),
    /// It could not be done; a sentence for people.
    Error(String),
}

/// An answer on its way to the asker, and what follows it.
#[derive(Debug)]
pub struct Reply {
    /// The one line that everybody gets.
    pub first: Response,
    /// More lines; dropping it ends them.
    pub more: Option<tokio::sync::mpsc::Receiver<packet::Seen>>,
}

impl From<Response> for Reply {
    fn from(first: Response) -> Self {
        Self { first, more: None }
    }
}
