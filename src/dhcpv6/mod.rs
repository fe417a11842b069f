//! The Dynamic Host Configuration Protocol for IPv6 (RFC 8415 and its successor RFC 9915): prefixes, addresses and
//! information for those who ask inside a tunnel.
//!
//! ```text
//!   client                                            server
//!     │── Solicit (to ff02::1:2, in its tunnel) ────────►│
//!     │ ◄─────────────────────────────────── Advertise ──│  nothing is kept yet
//!     │── Request ──────────────────────────────────────►│
//!     │                          binding on disk, route in the tables
//!     │ ◄────────────────────────────────────── Reply ───│
//!     │── Renew, Rebind, Release, Decline, Confirm ─────►│
//! ```
//!
//! A binding is a route: whichever message made it, packets to and from the prefix pass before the Reply leaves and until
//! the binding ends. The other side is [`client`]; `lookup` answers those who ask who has what (RFC 5007). Left out: temporary
//! addresses (RFC 9915 has none), unicast from clients, lease queries in bulk (RFC 5460).

pub mod audience;
pub mod auth;
pub mod calls;
pub mod client;
pub mod code;
pub mod codec;
pub mod datagram;
mod exclude;
pub mod grants;
pub mod holding;
pub mod keep;
mod lookup;
pub mod post;
pub mod query;
pub mod relayed;
mod reply;
pub mod requestor;
pub mod server;
pub mod session;
pub mod telling;
pub mod terms;
pub mod timing;
mod trust;
