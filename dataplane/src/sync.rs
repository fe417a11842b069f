//! One place to take atomics from: the real ones, or loom's when the publication is model-checked.
//!
//! Built with `--cfg loom`, the very code of `table::slab` and `table::qsbr` runs under loom's scheduler
//! (`tests/publication_loom.rs`). Nothing else in the data plane may name `std::sync::atomic` for state
//! that the table's writer and its readers share.

#[cfg(not(loom))]
use std::sync::Arc;

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
#[cfg(loom)]
pub(crate) use modelled::{Held, Swap};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// A value that its writer replaces as a whole.
#[cfg(not(loom))]
pub(crate) type Swap<T> = arc_swap::ArcSwap<T>;
/// What one reader last saw of it.
#[cfg(not(loom))]
pub(crate) type Held<T> = arc_swap::Cache<Arc<Swap<T>>, Arc<T>>;

/// What `arc_swap` promises, and no more: a load is an acquire load of any pointer that may still be seen.
#[cfg(loom)]
mod modelled {
    use std::sync::{Arc, Mutex, PoisonError};

    use super::{AtomicU32, Ordering};

    /// All values there ever were; readers find theirs by its number.
    #[derive(Debug)]
    pub(crate) struct Swap<T> {
        all: Mutex<Vec<Arc<T>>>,
        newest: AtomicU32,
    }

    impl<T> Swap<T> {
        pub(crate) fn from_pointee(first: T) -> Self {
            Self { all: Mutex::new(vec![Arc::new(first)]), newest: AtomicU32::new(0) }
        }

        pub(crate) fn load_full(&self) -> Arc<T> {
            // Not while the lock is held: loom may let another thread run here.
            let number = self.newest.load(Ordering::Acquire);
            self.all.lock().unwrap_or_else(PoisonError::into_inner)[number as usize].clone()
        }

        pub(crate) fn store(&self, next: Arc<T>) {
            let number = {
                let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
                all.push(next);
                all.len() as u32 - 1
            };
            self.newest.store(number, Ordering::Release);
        }
    }

    #[derive(Debug)]
    pub(crate) struct Held<T> {
        from: Arc<Swap<T>>,
        held: Arc<T>,
    }

    impl<T> Held<T> {
        pub(crate) fn new(from: Arc<Swap<T>>) -> Self {
            Self { held: from.load_full(), from }
        }

        pub(crate) fn load(&mut self) -> &Arc<T> {
            self.held = self.from.load_full();
            &self.held
        }
    }
}
