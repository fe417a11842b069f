//! The leases of a process on disk: SQLite, one file, each batch in one transaction that is on the disk when it returns.
//!
//! Knows no protocol; what is in a lease is written as it is.

use std::net::Ipv6Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension, Row, params};
use sixway_dataplane::update::Ipv6Prefix;

use super::clock::Epoch;
use super::plan::Life;
use super::shelf::{Change, Lease, NEVER, Proofs};
use crate::broker::{BindKey, BindKind};

/// The format that this program writes.
const FORMAT: i64 = 3;
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
            0 => &[SCHEMA, FROM_1, FROM_2],
            1 => &[FROM_1, FROM_2],
            2 => &[FROM_2],
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
        Ok(Self { path: path.to_owned(), store, epoch })
    }

    /// What times are counted from.
    pub fn epoch(&self) -> &Epoch {
        &self.epoch
    }

    /// All leases that were written, at `uptime` of the clock; those without a link are of this one. A line that makes no
    /// sense is left out, and said.
    ///
    /// # Errors
    /// [`LedgerError::Sqlite`].
    pub fn load(&self, link: &str, uptime: u64) -> Result<Vec<Lease>, LedgerError> {
        let failed = |why| LedgerError::Sqlite { path: self.path.clone(), why };
        let columns =
            "SELECT prefix, client, kind, number, preferred, valid, until, peer, reach, link FROM lease";
        let mut question = self.store.prepare(columns).map_err(failed)?;
        let rows = question.query_map([], |row| read(row, link, &self.epoch, uptime)).map_err(failed)?;
        let mut all = Vec::new();
        for row in rows {
            match row.map_err(failed)? {
                Some(lease) => all.push(lease),
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

    /// Writes changes, and what the calendar is ahead of the clock if it was set; all is on the disk afterwards, or nothing.
    ///
    /// # Errors
    /// [`LedgerError::Sqlite`].
    pub fn write(
        &mut self,
        changes: &[Change],
        proofs: &Proofs,
        ahead: Option<i64>,
    ) -> Result<(), LedgerError> {
        let (path, epoch) = (self.path.clone(), &self.epoch);
        let failed = |why| LedgerError::Sqlite { path: path.clone(), why };
        let batch = self.store.transaction().map_err(failed)?;
        {
            let mut put = batch
                .prepare_cached("INSERT OR REPLACE INTO lease (prefix, client, kind, number, preferred, valid, until, peer, reach, link) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)")
                .map_err(failed)?;
            let mut drop = batch.prepare_cached("DELETE FROM lease WHERE prefix = ?1").map_err(failed)?;
            for change in changes {
                match change {
                    Change::Has(Lease { key, prefix, life, until, peer, reach }) => put.execute(params![
                        prefix.to_string(),
                        &*key.client,
                        key.kind.name(),
                        key.number,
                        life.preferred,
                        life.valid,
                        (*until != NEVER).then(|| epoch.to_disk(*until)),
                        peer.map(|peer| peer.to_string()),
                        reach.map(|reach| reach.to_string()),
                        &*key.tunnel,
                    ]),
                    Change::Gone(lease) => drop.execute([lease.prefix.to_string()]),
                }
                .map_err(failed)?;
            }
            let mut prove = batch
                .prepare_cached("INSERT OR REPLACE INTO proof (client, number) VALUES (?1, ?2)")
                .map_err(failed)?;
            for (client, number) in proofs {
                // SQLite's numbers have a sign; the bits are the same.
                prove.execute(params![&**client, *number as i64]).map_err(failed)?;
            }
        }
        if let Some(ahead) = ahead {
            batch.execute("UPDATE clock SET ahead = ?1", [ahead]).map_err(failed)?;
        }
        batch.commit().map_err(failed)
    }
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

    #[test]
    fn what_is_written_is_there_the_next_time() {
        let folder = std::env::temp_dir().join(format!("sixway-ledger-{}", std::process::id()));
        let path = folder.join("leases.db");
        let a = lease("2001:db8:1::/48", "vs0", NEVER, Some("fe80::1"));
        let b = lease("2001:db8:2::/48", "vs1", 9000, None);
        let mut ledger = Ledger::open(&path, ("boot", 1000, 1_700_000_000)).unwrap();
        let proofs = Proofs::from([([0, 1][..].into(), u64::MAX - 1)]);
        ledger.write(&[Change::Has(a.clone()), Change::Has(b.clone())], &proofs, None).unwrap();
        drop(ledger);
        // Somebody sets the calendar while no process runs.
        let mut ledger = Ledger::open(&path, ("boot", 2000, 1_800_000_000)).unwrap();
        assert_eq!(ledger.load("vs0", 2000).unwrap(), [a.clone(), b.clone()]);
        assert_eq!(ledger.load_proofs().unwrap(), proofs);
        let changes = [Change::Gone(a), Change::Has(Lease { until: 7000, ..b.clone() })];
        ledger.write(&changes, &Proofs::new(), Some(1_900_000_000)).unwrap();
        drop(ledger);
        // The system was away for 100 s.
        let ledger = Ledger::open(&path, ("next", 50, 1_900_002_100)).unwrap();
        assert_eq!(ledger.load("vs0", 50).unwrap(), [Lease { until: 4950, ..b }]);
        ledger.store.execute_batch("PRAGMA user_version = 99").unwrap();
        drop(ledger);
        assert!(Ledger::open(&path, ("next", 50, 60)).unwrap_err().to_string().contains("format 99"));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_file_of_one_link_is_taken_over() {
        let folder = std::env::temp_dir().join(format!("sixway-ledger-old-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("leases.db");
        let old = Connection::open(&path).unwrap();
        let row = "INSERT INTO lease VALUES ('2001:db8:2::/48', x'000102', 'prefix', 4294967295, 7, 2000000000, 1700000100, NULL);";
        old.execute_batch(&format!("{SCHEMA}{row}PRAGMA user_version = 1;")).unwrap();
        drop(old);
        let ledger = Ledger::open(&path, ("boot", 1000, 1_700_000_000)).unwrap();
        assert_eq!(ledger.load("vs0", 1000).unwrap(), [lease("2001:db8:2::/48", "vs0", 1100, None)]);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
