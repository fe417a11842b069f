//! What must survive the process: accounts, leases, and which prefix is in mind for whom.
//!
//! An engine keeps [`Record`]s in order, a batch as a whole or not at all, and hands back what they come to. Secrets are
//! in it in clear: digests as DTCP and TSP use them are computed from the secret itself, so nothing less would do. Who can
//! read the store can log in as anybody; keep its backups accordingly.

pub mod sqlite;
mod text;

use std::path::PathBuf;

use crate::broker::{Account, Memory, Record, Time, UserName};

pub use sqlite::Sqlite;

/// A place where records are kept.
pub trait Store: Send {
    /// Everything that is kept.
    ///
    /// # Errors
    /// That it cannot be read, or makes no sense.
    fn load(&mut self) -> Result<Memory, StoreError>;

    /// Keeps these records, all or none. When it returns they survive a crash of program and machine.
    ///
    /// # Errors
    /// That they could not be kept; nothing of them was.
    fn append(&mut self, batch: &[Record]) -> Result<(), StoreError>;

    /// All accounts, if anybody else has changed anything since the last call.
    ///
    /// # Errors
    /// That it cannot be read, or makes no sense.
    fn watch(&mut self) -> Result<Option<Changed>, StoreError>;
}

/// The accounts after somebody else has changed something.
#[derive(Clone, Debug, Default)]
pub struct Changed {
    /// All there are.
    pub accounts: Vec<Account>,
    /// Those that were removed at some time, and when; others of their names may have been added since.
    pub departed: Vec<(UserName, Time)>,
}

/// Why a store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened.
    #[error(
        "cannot open the store {path}: {why}; run with sudo, or choose a place that you may write with [store] path"
    )]
    Open {
        /// Which file.
        path: PathBuf,
        /// What stands against it.
        why: String,
    },
    /// Another router uses it.
    #[error(
        "the store {path} is in use by another running router; stop that one, or give this one its own [store] path"
    )]
    InUse {
        /// Which file.
        path: PathBuf,
    },
    /// It was written by a later version of this program.
    #[error(
        "the store {path} was written by a newer sixway (format {found}, known is {known}); use that version"
    )]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Its format.
        found: i64,
        /// The one that this program writes.
        known: i64,
    },
    /// The engine failed.
    #[error("the store {path}: {why}; look for a full or failing disk")]
    Engine {
        /// Which file.
        path: PathBuf,
        /// What it said.
        why: String,
    },
    /// What was read makes no sense.
    #[error("the store {path} has '{text}' where {expected} should be; was it changed by hand?")]
    Nonsense {
        /// Which file.
        path: PathBuf,
        /// What was read.
        text: String,
        /// What should have been.
        expected: &'static str,
    },
}
