//! The leases of a process on disk: SQLite, one file, each batch in one transaction that is on the disk when it returns.
//!
//! ```text
//!   page 1   page 2   page 3 ...      each row: what has become of some leases, in order, and how many records that is
//!                     └── since here every lease has been written anew: what was before goes, some at a time
//! ```
//!
//! So a batch costs what its octets cost, however many leases there are. SQLite sees to it that a batch is there whole or not
//! at all, whenever the process or the system stops: a torn one was never written. What a disk has damaged since, the sums and
//! counts of pages tell. Knows no protocol; what is in a lease is written as it is.

use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, OpenFlags, params};

pub use self::reading::Damage;
use super::clock::Epoch;
use super::here::NEXT;
use super::record;
use super::shelf::{Change, Lease, Proofs};
use super::tidy::Part;

mod raw;
mod reading;
#[cfg(test)]
mod tests;

/// The format that this program writes.
const FORMAT: i64 = 6;
const SCHEMA: &str = "
    CREATE TABLE lease (
        prefix    TEXT PRIMARY KEY,
        client    BLOB NOT NULL,
        kind      TEXT NOT NULL,
        number    INTEGER NOT NULL,
        preferred INTEGER NOT NULL,
        valid     INTEGER NOT NULL,
        until     INTEGER,
        peer      TEXT
    ) STRICT, WITHOUT ROWID;
";
/// From format 1 to 2: which clients are told of changes, and what clients have proved.
const FROM_1: &str = "
    ALTER TABLE lease ADD COLUMN reach TEXT;
    CREATE TABLE proof (client BLOB PRIMARY KEY, number INTEGER NOT NULL) STRICT, WITHOUT ROWID;
";
/// From format 2 to 3: leases of several links, and what their times are counted from.
const FROM_2: &str = "
    ALTER TABLE lease ADD COLUMN link TEXT;
    CREATE TABLE clock (one INTEGER PRIMARY KEY, boot TEXT NOT NULL, base INTEGER NOT NULL, ahead INTEGER NOT NULL) STRICT;
";

/// From format 3 to 4: pages. A lease of before stays where it is until it is written anew.
const FROM_3: &str = "CREATE TABLE page (number INTEGER PRIMARY KEY, records BLOB NOT NULL) STRICT;";
/// From format 4 to 5: how many records a page has, each with its sum. A page without this number is of before, and has none.
const FROM_4: &str = "ALTER TABLE page ADD COLUMN count INTEGER;";
/// From format 5 to 6: the numbers of the first and the last page, so that it is seen when pages at an end are lost.
const FROM_5: &str =
    "CREATE TABLE span (one INTEGER PRIMARY KEY, first INTEGER NOT NULL, last INTEGER NOT NULL) STRICT;";
/// Records that a file of the old form counts as: it is written anew at once.
const OLD: usize = usize::MAX / 2;
/// Octets of records after which a page ends and the next begins.
const PAGE: usize = 1 << 20;
/// Rows that are deleted with one batch, and octets.
const SWEPT: (i64, i64) = (1024, 4 << 20);

/// Why leases cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The file or the disk.
    #[error("cannot keep leases in {path}: {why}; {}", next(why, path))]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        why: rusqlite::Error,
    },
    /// The file cannot be made.
    #[error(
        "cannot open {path}: {why}; {NEXT} `--lease-file` of dhcp6s names another, and `[store] path` of a router"
    )]
    System {
        /// The file.
        path: PathBuf,
        /// What the system said.
        why: std::io::Error,
    },
    /// Written by a later version.
    #[error(
        "{path} has format {found}, and this program knows formats up to {FORMAT}; run the newer program"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: i64,
    },
    /// Part of what was written is not there any more.
    #[error(
        "{path} is damaged: {damage}. Leases that were there would be given to others, so it is used no further. \
         {}",
        way_on(path)
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is lost.
        damage: Damage,
    },
    /// What is sound in a damaged file cannot be put into a new one.
    #[error(
        "cannot write {path}: {why}; nothing was done to the damaged file. The folder needs {needed} octets of free room for \
         the new one"
    )]
    Unwritten {
        /// The new file.
        path: PathBuf,
        /// Why.
        why: String,
        /// Octets that it has at most.
        needed: u64,
    },
    /// No lease can be read.
    #[error(
        "{path} is damaged, and no lease in it can be read any more: {damage}. Nothing was done to it. Put back a copy of it, \
         or move it away, and all leases in it are forgotten: what clients have may then be given to others"
    )]
    Nothing {
        /// The file.
        path: PathBuf,
        /// What is lost.
        damage: Damage,
    },
}

impl LedgerError {
    /// Whether the file is there, and what is in it is not what was written.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Damaged { .. } | Self::Nothing { .. } => true,
            Self::Sqlite { why, .. } => reading::is_damage(why),
            Self::System { .. } | Self::Newer { .. } | Self::Unwritten { .. } => false,
        }
    }
}

/// What to do about a failure.
fn next(why: &rusqlite::Error, path: &Path) -> String {
    match why.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => "make room on the disk".to_owned(),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => "another server uses it".to_owned(),
        Some(ErrorCode::DatabaseCorrupt) => format!("it is damaged. {}", way_on(path)),
        Some(ErrorCode::NotADatabase) => {
            "it is no file of leases, or its beginning is damaged: put back a copy of it, or move it away, and all leases in \
             it are forgotten"
                .to_owned()
        }
        _ => "does the disk fail, or is it full?".to_owned(),
    }
}

fn way_on(path: &Path) -> String {
    let shown = path.display();
    format!(
        "Put back a copy of the file, or go on with what is sound in it: `dhcp6s --mend-leases --lease-file {shown} INTERFACE` \
         (or `sixway dhcp6s ...`), which leaves the damaged file beside it"
    )
}

/// An open file of leases.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    store: Connection,
    epoch: Epoch,
    /// The epoch is not on the disk yet.
    is_epoch_due: bool,
    is_so: State,
    sheets: Sheets,
    /// The format that the file has.
    format: i64,
    /// The first and the last page that there must be; `None`: nobody has noted them.
    span: Option<(i64, i64)>,
    /// What could not be read when it was opened.
    wounds: Damage,
}

/// What is in the pages.
#[derive(Clone, Copy, Debug)]
struct State {
    /// The first one, if there is any.
    first: Option<i64>,
    /// The last one.
    last: i64,
    /// How many records are in all of them that count.
    records: usize,
    /// The one since which leases are written anew, and how many records there are since.
    anew: Option<(i64, usize)>,
    /// Rows of the old form and pages before this one count no more, and some may be there still.
    stale: Option<i64>,
}

/// What is written in one go.
#[derive(Debug, Default)]
pub struct Page {
    /// Leases, in the order in which they have changed.
    pub changes: Vec<Change>,
    /// Leases that are written anew.
    pub part: Option<Part>,
    /// The last messages that clients have proved.
    pub proofs: Proofs,
    /// What the calendar is ahead of the clock that leases are counted by, in seconds, if that is other than before.
    pub ahead: Option<i64>,
}

/// How a ledger is once a batch is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// How many records there are that count.
    pub records: usize,
    /// Whether there are rows that count no more: each batch deletes some of them, also one with nothing in it.
    pub is_stale: bool,
}

impl Ledger {
    /// Opens the file, made if it is not there, readable by its owner alone. `now` is which run of the system this is, what
    /// the clock of leases shows, and what the calendar does, in seconds. A file that is there can be opened though the disk
    /// is full.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn open(path: &Path, now: (&str, u64, u64)) -> Result<Self, LedgerError> {
        let system = |why| LedgerError::System { path: path.to_owned(), why };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(system)?;
        }
        std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path).map_err(system)?;
        let failed = |why| LedgerError::Sqlite { path: path.to_owned(), why };
        let store = Connection::open(path).map_err(failed)?;
        store
            .execute_batch(
                "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;",
            )
            .map_err(failed)?;
        lay_out(&store, path)?;
        Self::begin(store, path, now).map_err(failed)
    }

    /// Opens a file that may be damaged, to read what is sound in it: nothing is written to it, whatever its format.
    ///
    /// # Errors
    /// [`LedgerError`]; [`LedgerError::Sqlite`] also where a server uses it.
    pub fn open_damaged(path: &Path, now: (&str, u64, u64)) -> Result<Self, LedgerError> {
        let failed = |why| LedgerError::Sqlite { path: path.to_owned(), why };
        // A server has a log as long as it runs, and one that was killed leaves it. Without one nobody is in the way, and SQLite
        // needs no files beside this one.
        let log = beside(path, "-wal").exists();
        let flags =
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let store = Connection::open_with_flags(address(path, !log), flags).map_err(failed)?;
        let begun = reading::begin_damaged(&store).map_err(failed)?;
        let reading::Begun { format, clock, span, wounds } = begun;
        if format > FORMAT {
            return Err(LedgerError::Newer { path: path.to_owned(), found: format });
        }
        let epoch = Epoch::begin(clock, now.0, now.1, now.2);
        let is_so = State { first: None, last: 0, records: 0, anew: None, stale: None };
        let (path, sheets) = (path.to_owned(), Sheets::default());
        Ok(Self { path, store, epoch, is_epoch_due: false, is_so, sheets, format, span, wounds })
    }

    /// Of a file of this format.
    fn begin(
        store: Connection,
        path: &Path,
        (boot, uptime, calendar): (&str, u64, u64),
    ) -> rusqlite::Result<Self> {
        let before = reading::epoch_of(&store)?;
        let span = reading::span_of(&store)?;
        let epoch = Epoch::begin(before.clone(), boot, uptime, calendar);
        let put = if before.as_ref() == Some(&epoch) { Ok(()) } else { put_epoch(&store, &epoch) };
        // What is there can be read, and clients asked again, while the disk is full; this is written with the first batch.
        let is_epoch_due = match put {
            Ok(()) => false,
            Err(why) if takes_nothing(&why) => {
                tracing::error!(
                    "{} cannot be written: {why}; leases are as it has them, and nobody is told of new or longer \
                     ones until it can: make room on the disk",
                    path.display()
                );
                true
            }
            Err(why) => return Err(why),
        };
        let ends = "SELECT (SELECT min(number) FROM page), (SELECT coalesce(max(number), 0) FROM page)";
        let (first, last) = store.query_row(ends, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let old: bool = store.query_row("SELECT EXISTS (SELECT 1 FROM lease)", [], |row| row.get(0))?;
        let is_so = State { first, last, records: if old { OLD } else { 0 }, anew: None, stale: None };
        let (path, sheets, wounds) = (path.to_owned(), Sheets::default(), Damage::default());
        Ok(Self { path, store, epoch, is_epoch_due, is_so, sheets, format: FORMAT, span, wounds })
    }

    /// What times are counted from.
    pub fn epoch(&self) -> &Epoch {
        &self.epoch
    }

    /// How many records there are; many more than leases once most are old.
    pub fn records(&self) -> usize {
        self.is_so.records
    }

    /// Writes a batch; all of it is on the disk afterwards, or nothing.
    ///
    /// # Errors
    /// [`LedgerError::Sqlite`].
    pub fn write(&mut self, page: &Page) -> Result<Kept, LedgerError> {
        let written = self.try_write(page);
        self.is_so = written.map_err(|why| LedgerError::Sqlite { path: self.path.clone(), why })?;
        self.is_epoch_due = false;
        self.span = self.is_so.first.map(|first| (first, self.is_so.last));
        Ok(Kept { records: self.is_so.records, is_stale: self.is_so.stale.is_some() })
    }

    /// Returns what is so once it is written.
    fn try_write(&mut self, page: &Page) -> rusqlite::Result<State> {
        let Self { store, epoch, sheets, is_so, is_epoch_due, .. } = self;
        let new = sheets.put_together(page, epoch, is_so.last + 1);
        let so = is_so.after(page, sheets.cuts.len(), new);
        let batch = store.transaction()?;
        if *is_epoch_due {
            put_epoch(&batch, epoch)?;
        }
        for (number, count, records) in sheets.iter() {
            let mut put =
                batch.prepare_cached("INSERT INTO page (number, count, records) VALUES (?1, ?2, ?3)")?;
            put.execute(params![number, count as i64, records])?;
        }
        for (client, number) in &page.proofs {
            let mut prove =
                batch.prepare_cached("INSERT OR REPLACE INTO proof (client, number) VALUES (?1, ?2)")?;
            // SQLite's numbers have a sign; the bits are the same.
            prove.execute(params![&**client, *number as i64])?;
        }
        if let Some(ahead) = page.ahead {
            batch.execute("UPDATE clock SET ahead = ?1", [ahead])?;
        }
        let (stale, swept) = match so.stale {
            Some(since) => sweep(&batch, since).map(|(more, swept)| (more.then_some(since), swept))?,
            None => (None, None),
        };
        let first = swept.map(|swept| swept + 1).or(so.first);
        if let Some(first) = first {
            let put = "INSERT OR REPLACE INTO span (one, first, last) VALUES (1, ?1, ?2)";
            batch.prepare_cached(put)?.execute([first, so.last])?;
        }
        batch.commit()?;
        Ok(State { first, stale, ..so })
    }
}

impl State {
    /// What is so after a batch of so many pages and records.
    fn after(self, page: &Page, pages: usize, new: usize) -> Self {
        let (begins, ends) = page.part.as_ref().map_or((false, false), |part| (part.is_first, part.is_last));
        let anew = match self.anew {
            _ if begins => Some((self.last + 1, new)),
            Some((since, some)) => Some((since, some + new)),
            None => None,
        };
        let last = self.last + i64::try_from(pages).unwrap_or(0);
        let first = self.first.or_else(|| (pages > 0).then_some(self.last + 1));
        match anew.filter(|_| ends) {
            Some((since, records)) => Self { first, last, records, anew: None, stale: Some(since) },
            None => Self { first, last, records: self.records.saturating_add(new), anew, stale: self.stale },
        }
    }
}

/// Deletes some of what counts no more, oldest first: whatever is still there says then what it said before. Returns whether
/// more is left, and the last page that was deleted.
fn sweep(batch: &Connection, since: i64) -> rusqlite::Result<(bool, Option<i64>)> {
    let (rows, _) = SWEPT;
    // Rows of the old form are older than any page.
    let old =
        batch.execute("DELETE FROM lease WHERE prefix IN (SELECT prefix FROM lease LIMIT ?1)", [rows])?;
    if old as i64 >= rows {
        return Ok((true, None));
    }
    let sizes = "SELECT number, length(records) FROM page WHERE number < ?1 ORDER BY number LIMIT ?2";
    let mut question = batch.prepare_cached(sizes)?;
    let sizes = question.query_map(params![since, rows], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let sizes: Vec<(i64, i64)> = sizes.collect::<Result<_, _>>()?;
    let (mut size, mut n, mut up_to) = (0, 0, None);
    for (number, octets) in &sizes {
        if size >= SWEPT.1 {
            break;
        }
        (size, n, up_to) = (size + octets, n + 1, Some(*number));
    }
    let Some(up_to) = up_to else { return Ok((false, None)) };
    batch.execute("DELETE FROM page WHERE number <= ?1", [up_to])?;
    Ok((n < sizes.len() || sizes.len() as i64 >= rows, Some(up_to)))
}

fn put_epoch(store: &Connection, epoch: &Epoch) -> rusqlite::Result<()> {
    let row = params![epoch.boot, epoch.base, epoch.ahead];
    store.execute("INSERT OR REPLACE INTO clock (one, boot, base, ahead) VALUES (1, ?1, ?2, ?3)", row)?;
    Ok(())
}

/// Brings a file to this format.
fn lay_out(store: &Connection, path: &Path) -> Result<(), LedgerError> {
    let failed = |why| LedgerError::Sqlite { path: path.to_owned(), why };
    let found: i64 = store.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed)?;
    let steps: &[&str] = match found {
        0 => &[SCHEMA, FROM_1, FROM_2, FROM_3, FROM_4, FROM_5],
        1 => &[FROM_1, FROM_2, FROM_3, FROM_4, FROM_5],
        2 => &[FROM_2, FROM_3, FROM_4, FROM_5],
        3 => &[FROM_3, FROM_4, FROM_5],
        4 => &[FROM_4, FROM_5],
        5 => &[FROM_5],
        FORMAT => return Ok(()),
        found => return Err(LedgerError::Newer { path: path.to_owned(), found }),
    };
    let steps = steps.concat();
    let batch = format!("BEGIN IMMEDIATE;{steps}PRAGMA user_version = {FORMAT};COMMIT;");
    store.execute_batch(&batch).map_err(failed)
}

/// Whether nothing can be written, though what is there can be read.
fn takes_nothing(why: &rusqlite::Error) -> bool {
    matches!(
        why.sqlite_error_code(),
        Some(ErrorCode::DiskFull | ErrorCode::SystemIoFailure | ErrorCode::ReadOnly)
    )
}

/// Where pages are put together.
#[derive(Debug, Default)]
struct Sheets {
    octets: Vec<u8>,
    /// Where each page ends, and how many records it has.
    cuts: Vec<(usize, usize)>,
    /// The number of the first.
    first: i64,
}

impl Sheets {
    /// Writes all records of a batch, into pages of these numbers; returns how many they are.
    fn put_together(&mut self, page: &Page, epoch: &Epoch, first: i64) -> usize {
        // What one large batch has needed is not kept for all that follow.
        self.octets.shrink_to(2 * PAGE);
        self.octets.clear();
        self.cuts.clear();
        self.first = first;
        let to_disk = |until| epoch.to_disk(until);
        for change in &page.changes {
            self.add(|number, out| record::emit(change, number, to_disk, out));
        }
        for lease in page.part.iter().flat_map(|part| &part.leases) {
            self.add(|number, out| record::emit_lease(lease, number, to_disk, out));
        }
        self.cuts.iter().map(|(_, count)| count).sum()
    }

    fn add(&mut self, emit: impl FnOnce(i64, &mut Vec<u8>)) {
        let start = self.cuts.iter().rev().nth(1).map_or(0, |(end, _)| *end);
        if self.cuts.last().is_none_or(|(end, _)| end - start >= PAGE) {
            self.cuts.push((self.octets.len(), 0));
        }
        let number = self.number(self.cuts.len() - 1);
        emit(number, &mut self.octets);
        if let Some(last) = self.cuts.last_mut() {
            *last = (self.octets.len(), last.1 + 1);
        }
    }

    fn number(&self, nth: usize) -> i64 {
        self.first.saturating_add(i64::try_from(nth).unwrap_or(i64::MAX))
    }

    /// Each page: its number, how many records it has, and they.
    fn iter(&self) -> impl Iterator<Item = (i64, usize, &[u8])> {
        let begins = std::iter::once(0).chain(self.cuts.iter().map(|(end, _)| *end));
        let all = begins.zip(&self.cuts).enumerate();
        all.filter_map(|(nth, (begin, (end, count)))| {
            Some((self.number(nth), *count, self.octets.get(begin..*end)?))
        })
    }
}

/// All leases in a file of their own, which must not be there yet: all of it is in that file afterwards, and on the disk.
pub(super) fn write_all(
    path: &Path,
    now: (&str, u64, u64),
    leases: &[Lease],
    proofs: Proofs,
) -> Result<(), LedgerError> {
    let failed = |why| LedgerError::Sqlite { path: path.to_owned(), why };
    let system = |why| LedgerError::System { path: path.to_owned(), why };
    std::fs::OpenOptions::new().append(true).create_new(true).mode(0o600).open(path).map_err(system)?;
    let store = Connection::open(path).map_err(failed)?;
    // With a log each octet would take room twice, and be in the file itself only when that is closed.
    let pragmas = "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = DELETE; PRAGMA synchronous = FULL;";
    store.execute_batch(pragmas).map_err(failed)?;
    lay_out(&store, path)?;
    let mut fresh = Ledger::begin(store, path, now).map_err(failed)?;
    if fresh.is_epoch_due {
        return Err(system(std::io::ErrorKind::StorageFull.into()));
    }
    fresh.write(&Page { proofs, ..Page::default() })?;
    for some in leases.chunks(4096) {
        let changes = some.iter().cloned().map(Change::Has).collect();
        fresh.write(&Page { changes, ..Page::default() })?;
    }
    fresh.store.close().map_err(|(_, why)| failed(why))
}

/// The name of a file beside this one.
pub(super) fn beside(path: &Path, more: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(more);
    name.into()
}

/// A file as SQLite is told of it, with whether nobody else uses it.
fn address(path: &Path, is_alone: bool) -> String {
    let mut address = "file:".to_owned();
    for octet in path.as_os_str().as_encoded_bytes() {
        match octet {
            b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => {
                address.push((*octet).into())
            }
            _ => address.push_str(&format!("%{octet:02x}")),
        }
    }
    address.push_str(if is_alone { "?immutable=1" } else { "" });
    address
}
