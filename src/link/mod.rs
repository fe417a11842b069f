//! The kernel's network configuration, as far as the router needs it: devices, addresses, routes,
//! the forwarding switch.
//!
//! [`netlink`], [`leads`], [`bulk`], [`device`] and [`watch`] speak rtnetlink (RFC 3549), [`sysctl`] reads and writes `/proc/sys`. All act on the
//! network namespace of the thread that calls. Refuses to know what the addresses and routes are
//! for, and who must remove them at the end: every addition says whether it was there before.

mod answer;
pub mod bulk;
pub mod device;
pub mod error;
pub mod leads;
pub mod netlink;
pub mod pace;
pub mod sysctl;
pub mod watch;

pub use error::LinkError;
pub use netlink::{Links, Outcome};
pub use sysctl::{
    FORWARDING_COMMAND, Forwarding, forwarding_state, set_forwarding, skip_duplicate_address_detection,
};
