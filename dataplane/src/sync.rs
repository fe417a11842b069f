//! One place to take atomics from: the real ones, or loom's when the publication is model-checked.
//!
//! Built with `--cfg loom`, the very code of `table::slab` and `table::qsbr` runs under loom's scheduler
//! (`tests/publication_loom.rs`). Nothing else in the data plane may name `std::sync::atomic` for state
//! that the table's writer and its readers share.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
