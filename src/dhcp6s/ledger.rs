//! The leases of a process on disk: SQLite, one file, each batch in one transaction that is on the disk when it returns.
//!
//! ```text
//!   page 1   page 2   page 3 ...      each batch is one row: what has become of leases, in order
//!                     └── since here every lease has been written anew: what was before goes
//! ```
//!
//! So a batch costs what its octets cost, however many leases there are. Knows no protocol; what is in a lease is written as
//! it is.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension, Row, params};
use sixway_dataplane::update::Ipv6Prefix;

use super::clock::Epoch;
use super::plan::Life;
use super::record::{self, Records};
use super::shelf::{Change, Lease, NEVER, Proofs};
use super::tidy::Part;
use crate::broker::{BindKey, BindKind};

/// The format that this program writes.
const FORMAT: i64 = 4;
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
/// Records that a file of the old form counts as: it is written anew at once.
const OLD: usize = usize::MAX / 2;

/// Why leases cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The file or the disk.
    #[error("cannot keep leases in {path}: {why}; does another server use it, or is the disk full?")]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        why: rusqlite::Error,
    },
    /// The file cannot be made.
    #[error("cannot open {path}: {why}; run as root, or choose another folder")]
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
}

/// An open file of leases.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    store: Connection,
    epoch: Epoch,
    is_so: State,
    /// Where a page is put together.
    buffer: Vec<u8>,
}

/// What is in the pages.
#[derive(Clone, Copy, Debug)]
struct State {
    /// The last one.
    last: i64,
    /// How many records are in all of them.
    records: usize,
    /// The one since which leases are written anew, and how many records there are since.
    anew: Option<(i64, usize)>,
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

impl Ledger {
    /// Opens the file, made if it is not there, readable by its owner alone. `now` is which run of the system this is, what
    /// the clock of leases shows, and what the calendar does, in seconds.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn open(path: &Path, (boot, uptime, calendar): (&str, u64, u64)) -> Result<Self, LedgerError> {
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
        let found: i64 = store.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed)?;
        let steps: &[&str] = match found {
            0 => &[SCHEMA, FROM_1, FROM_2, FROM_3],
            1 => &[FROM_1, FROM_2, FROM_3],
            2 => &[FROM_2, FROM_3],
            3 => &[FROM_3],
            FORMAT => &[],
            found => return Err(LedgerError::Newer { path: path.to_owned(), found }),
        };
        if !steps.is_empty() {
            let steps = steps.concat();
            let batch = format!("BEGIN IMMEDIATE;{steps}PRAGMA user_version = {FORMAT};COMMIT;");
            store.execute_batch(&batch).map_err(failed)?;
        }
        let before = store.query_row("SELECT boot, base, ahead FROM clock", [], |row| {
            Ok(Epoch { boot: row.get(0)?, base: row.get(1)?, ahead: row.get(2)? })
        });
        let before = before.optional().map_err(failed)?;
        let epoch = Epoch::begin(before, boot, uptime, calendar);
        let row = params![epoch.boot, epoch.base, epoch.ahead];
        store
            .execute("INSERT OR REPLACE INTO clock (one, boot, base, ahead) VALUES (1, ?1, ?2, ?3)", row)
            .map_err(failed)?;
        let last = store.query_row("SELECT coalesce(max(number), 0) FROM page", [], |row| row.get(0));
        let last = last.map_err(failed)?;
        let old: bool =
            store.query_row("SELECT EXISTS (SELECT 1 FROM lease)", [], |row| row.get(0)).map_err(failed)?;
        let is_so = State { last, records: if old { OLD } else { 0 }, anew: None };
        Ok(Self { path: path.to_owned(), store, epoch, is_so, buffer: Vec::new() })
    }

    /// What times are counted from.
    pub fn epoch(&self) -> &Epoch {
        &self.epoch
    }

    /// How many records there are; many more than leases once most are old.
    pub fn records(&self) -> usize {
        self.is_so.records
    }

    /// All leases that were written, at `uptime` of the clock; those without a link are of this one. What makes no sense is
    /// left out, and said.
    ///
    /// # Errors
    /// [`LedgerError::Sqlite`].
    pub fn load(&mut self, link: &str, uptime: u64) -> Result<Vec<Lease>, LedgerError> {
        let failed = |why| LedgerError::Sqlite { path: self.path.clone(), why };
        let mut all = self.load_old(link, uptime).map_err(failed)?;
        let mut records = self.is_so.records;
        let mut question =
            self.store.prepare("SELECT number, records FROM page ORDER BY number").map_err(failed)?;
        let mut pages = question.query([]).map_err(failed)?;
        while let Some(row) = pages.next().map_err(failed)? {
            let octets =
                row.get_ref(1).and_then(|value| value.as_blob().map_err(Into::into)).map_err(failed)?;
            let mut page = Records::new(octets);
            while let Some((prefix, lease)) =
                page.next(|until, valid| self.epoch.of_disk(until, uptime, valid))
            {
                records = records.saturating_add(1);
                match lease {
                    Some(lease) => drop(all.insert(prefix, lease)),
                    None => drop(all.remove(&prefix)),
                }
            }
            if !page.is_over() {
                let number: i64 = row.get(0).map_err(failed)?;
                tracing::warn!("page {number} of {} makes no sense and is left out", self.path.display());
            }
        }
        self.is_so.records = records;
        Ok(all.into_values().collect())
    }

    /// Leases as they were written before format 4.
    fn load_old(&self, link: &str, uptime: u64) -> rusqlite::Result<BTreeMap<Ipv6Prefix, Lease>> {
        let columns =
            "SELECT prefix, client, kind, number, preferred, valid, until, peer, reach, link FROM lease";
        let mut question = self.store.prepare(columns)?;
        let rows = question.query_map([], |row| read(row, link, &self.epoch, uptime))?;
        let mut all = BTreeMap::new();
        for row in rows {
            match row? {
                Some(lease) => drop(all.insert(lease.prefix, lease)),
                None => tracing::warn!("a lease in {} makes no sense and is left out", self.path.display()),
            }
        }
        Ok(all)
    }

    /// The numbers of the last messages that clients have proved to be their own.
    ///
    /// # Errors
    /// [`LedgerError::Sqlite`].
    pub fn load_proofs(&self) -> Result<Proofs, LedgerError> {
        let failed = |why| LedgerError::Sqlite { path: self.path.clone(), why };
        let mut question = self.store.prepare("SELECT client, number FROM proof").map_err(failed)?;
        let read = |row: &Row<'_>| Ok((row.get::<_, Vec<u8>>(0)?.into(), row.get::<_, i64>(1)? as u64));
        let rows = question.query_map([], read).map_err(failed)?;
        rows.collect::<Result<Proofs, _>>().map_err(failed)
    }

    /// Writes a page; all of it is on the disk afterwards, or nothing.
    ///
    /// # Errors
    /// [`LedgerError::Sqlite`].
    pub fn write(&mut self, page: &Page) -> Result<(), LedgerError> {
        let written = self.try_write(page);
        self.is_so = written.map_err(|why| LedgerError::Sqlite { path: self.path.clone(), why })?;
        Ok(())
    }

    /// Returns what is so once it is written.
    fn try_write(&mut self, page: &Page) -> rusqlite::Result<State> {
        let Self { store, epoch, buffer, is_so, .. } = self;
        let new = put_together(page, epoch, buffer);
        let number = is_so.last + i64::from(!buffer.is_empty());
        let mut records = is_so.records.saturating_add(new);
        let begins = page.part.as_ref().is_some_and(|part| part.is_first);
        let mut anew = match is_so.anew {
            _ if begins => Some((is_so.last + 1, new)),
            Some((since, some)) => Some((since, some + new)),
            None => None,
        };
        let batch = store.transaction()?;
        if !buffer.is_empty() {
            let mut put = batch.prepare_cached("INSERT INTO page (number, records) VALUES (?1, ?2)")?;
            put.execute(params![number, &buffer[..]])?;
        }
        if let (Some((since, some)), Some(Part { is_last: true, .. })) = (anew, &page.part) {
            batch.execute("DELETE FROM page WHERE number < ?1", [since])?;
            batch.execute("DELETE FROM lease", [])?;
            (records, anew) = (some, None);
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
        batch.commit()?;
        Ok(State { last: number, records, anew })
    }
}

/// The octets of a page, and how many records they are.
fn put_together(page: &Page, epoch: &Epoch, out: &mut Vec<u8>) -> usize {
    out.clear();
    let to_disk = |until| epoch.to_disk(until);
    page.changes.iter().for_each(|change| record::emit(change, to_disk, out));
    let anew = page.part.iter().flat_map(|part| &part.leases);
    page.changes.len() + anew.map(|lease| record::emit_lease(lease, to_disk, out)).count()
}

fn read(row: &Row<'_>, link: &str, epoch: &Epoch, uptime: u64) -> rusqlite::Result<Option<Lease>> {
    let prefix: String = row.get(0)?;
    let kind: String = row.get(2)?;
    let until: Option<i64> = row.get(6)?;
    let peer: Option<String> = row.get(7)?;
    let reach: Option<String> = row.get(8)?;
    let of: Option<String> = row.get(9)?;
    let life = Life { preferred: row.get(4)?, valid: row.get(5)? };
    let key = |kind| {
        let client: Vec<u8> = row.get(1)?;
        Ok::<_, rusqlite::Error>(BindKey {
            tunnel: of.as_deref().unwrap_or(link).into(),
            client: client.into(),
            kind,
            number: row.get(3)?,
        })
    };
    let kind = [BindKind::Address, BindKind::Prefix].into_iter().find(|known| known.name() == kind);
    let (Ok(prefix), Some(kind)) = (prefix.parse::<Ipv6Prefix>(), kind) else { return Ok(None) };
    Ok(Some(Lease {
        key: key(kind)?,
        prefix,
        life,
        until: until.map_or(NEVER, |until| epoch.of_disk(until, uptime, life.valid)),
        peer: peer.and_then(|peer| peer.parse::<Ipv6Addr>().ok()),
        reach: reach.and_then(|reach| reach.parse::<Ipv6Addr>().ok()),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dhcp6s::tidy::Tidy;
    use proptest::prelude::*;
    use std::ops::Bound;

    fn lease(prefix: &str, link: &str, until: u64, peer: Option<&str>) -> Lease {
        Lease {
            key: BindKey {
                tunnel: link.into(),
                client: [0, 1, 2][..].into(),
                kind: BindKind::Prefix,
                number: u32::MAX,
            },
            prefix: prefix.parse().unwrap(),
            life: Life { preferred: 7, valid: 2_000_000_000 },
            until,
            peer: peer.map(|peer| peer.parse().unwrap()),
            reach: peer.map(|peer| peer.parse().unwrap()),
        }
    }

    fn page(changes: Vec<Change>) -> Page {
        Page { changes, ..Page::default() }
    }

    #[test]
    fn what_is_written_is_there_the_next_time() {
        let folder = std::env::temp_dir().join(format!("sixway-ledger-{}", std::process::id()));
        let path = folder.join("leases.db");
        let a = lease("2001:db8:1::/48", "vs0", NEVER, Some("fe80::1"));
        let b = lease("2001:db8:2::/48", "vs1", 9000, None);
        let mut ledger = Ledger::open(&path, ("boot", 1000, 1_700_000_000)).unwrap();
        let proofs = Proofs::from([([0, 1][..].into(), u64::MAX - 1)]);
        let both = vec![Change::Has(a.clone()), Change::Has(b.clone())];
        ledger.write(&Page { proofs: proofs.clone(), ..page(both) }).unwrap();
        drop(ledger);
        // Somebody sets the calendar while no process runs.
        let mut ledger = Ledger::open(&path, ("boot", 2000, 1_800_000_000)).unwrap();
        assert_eq!(ledger.load("vs0", 2000).unwrap(), [a.clone(), b.clone()]);
        assert_eq!(ledger.load_proofs().unwrap(), proofs);
        let changes = vec![Change::Gone(a), Change::Has(Lease { until: 7000, ..b.clone() })];
        ledger.write(&Page { ahead: Some(1_900_000_000), ..page(changes) }).unwrap();
        drop(ledger);
        // The system was away for 100 s.
        let mut ledger = Ledger::open(&path, ("next", 50, 1_900_002_100)).unwrap();
        assert_eq!(ledger.load("vs0", 50).unwrap(), [Lease { until: 4950, ..b }]);
        assert_eq!(ledger.records(), 4);
        ledger.store.execute_batch("PRAGMA user_version = 99").unwrap();
        drop(ledger);
        assert!(Ledger::open(&path, ("next", 50, 60)).unwrap_err().to_string().contains("format 99"));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_file_of_the_old_form_is_taken_over_and_written_anew() {
        let folder = std::env::temp_dir().join(format!("sixway-ledger-old-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("leases.db");
        let old = Connection::open(&path).unwrap();
        let row = "INSERT INTO lease VALUES ('2001:db8:2::/48', x'000102', 'prefix', 4294967295, 7, 2000000000, 1700000100, NULL);";
        old.execute_batch(&format!("{SCHEMA}{row}PRAGMA user_version = 1;")).unwrap();
        drop(old);
        let own = lease("2001:db8:2::/48", "vs0", 1100, None);
        let begin = ("boot", 1000, 1_700_000_000);
        let mut ledger = Ledger::open(&path, begin).unwrap();
        assert_eq!(ledger.load("vs0", 1000).unwrap(), std::slice::from_ref(&own));
        let next = Lease { until: 2000, ..own };
        ledger.write(&page(vec![Change::Has(next.clone())])).unwrap();
        drop(ledger);
        let mut ledger = Ledger::open(&path, begin).unwrap();
        assert_eq!(ledger.load("vs0", 1000).unwrap(), std::slice::from_ref(&next), "the later one counts");
        let mut tidy = Tidy::default();
        tidy.look(ledger.records(), 1);
        assert!(tidy.is_due());
        let part = Part { leases: vec![next.clone()], is_first: true, is_last: true };
        ledger.write(&Page { part: Some(part), ..Page::default() }).unwrap();
        assert_eq!(ledger.records(), 1);
        drop(ledger);
        let mut ledger = Ledger::open(&path, begin).unwrap();
        assert_eq!((ledger.load("vs0", 1000).unwrap(), ledger.records()), (vec![next], 1));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[derive(Clone, Debug)]
    enum Step {
        Put(u8, u64),
        Drop(u8),
        Write,
        /// The disk is full, or the like.
        Fail,
        Restart,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (any::<u8>(), 2000_u64..3000).prop_map(|(n, until)| Step::Put(n, until)),
            4 => any::<u8>().prop_map(Step::Drop),
            4 => Just(Step::Write),
            1 => Just(Step::Fail),
            1 => Just(Step::Restart),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Written anew in parts, beside changes, over failures and restarts: what is loaded is always what was written last,
        /// and there are never many more records than leases.
        #[test]
        fn nothing_is_lost_when_all_is_written_anew(steps in prop::collection::vec(step(), 0..120)) {
            let folder = std::env::temp_dir().join(format!("sixway-ledger-anew-{}", std::process::id()));
            let path = folder.join("leases.db");
            let begin = ("boot", 1000, 1_700_000_000);
            let mut ledger = Ledger::open(&path, begin).unwrap();
            // What is on the disk, what is so, and what has changed since.
            let (mut disk, mut now, mut changes) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
            let mut last: Option<Ipv6Prefix> = None;
            for step in steps {
                match step {
                    Step::Put(n, until) => {
                        let one = lease(&format!("2001:db8:{:x}::/48", n % 40), "vs0", until, None);
                        now.insert(one.prefix, one.clone());
                        changes.push(Change::Has(one));
                    }
                    Step::Drop(n) => {
                        let prefix: Ipv6Prefix = format!("2001:db8:{:x}::/48", n % 40).parse().unwrap();
                        changes.extend(now.remove(&prefix).map(Change::Gone));
                    }
                    Step::Write | Step::Fail => {
                        // Three at a time, without end.
                        let mut left = now.range((last.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded));
                        let leases: Vec<Lease> = left.by_ref().take(3).map(|(_, lease)| Lease::clone(lease)).collect();
                        let part = Part { leases, is_first: last.is_none(), is_last: left.next().is_none() };
                        let whole = Page { changes: changes.clone(), part: Some(part), ..Page::default() };
                        if matches!(step, Step::Fail) {
                            ledger.store.execute_batch("PRAGMA query_only = ON").unwrap();
                            prop_assert!(ledger.write(&whole).is_err());
                            ledger.store.execute_batch("PRAGMA query_only = OFF").unwrap();
                            continue;
                        }
                        ledger.write(&whole).unwrap();
                        let part = whole.part.unwrap();
                        last = part.leases.last().filter(|_| !part.is_last).map(|lease| lease.prefix);
                        changes.clear();
                        disk = now.clone();
                        prop_assert!(!part.is_last || ledger.records() <= 240, "{}", ledger.records());
                    }
                    Step::Restart => {
                        drop(ledger);
                        ledger = Ledger::open(&path, begin).unwrap();
                        let loaded: Vec<Lease> = ledger.load("vs0", 1000).unwrap();
                        prop_assert_eq!(loaded, disk.values().cloned().collect::<Vec<_>>());
                        (now, last) = (disk.clone(), None);
                        changes.clear();
                    }
                }
            }
            let loaded: Vec<Lease> = ledger.load("vs0", 1000).unwrap();
            prop_assert_eq!(loaded, disk.into_values().collect::<Vec<_>>());
            drop(ledger);
            std::fs::remove_dir_all(&folder).unwrap();
        }
    }
}
