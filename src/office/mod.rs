//! Where wishes are dealt with: from protocols through the broker to the store, then the tables, then the answer.
//!
//! [`desk`] is what a protocol's server holds. Knows no protocol.

pub mod desk;

pub use desk::{Ask, Desk, Held, Visit};
