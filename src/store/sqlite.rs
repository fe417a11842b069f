//! The embedded store: one SQLite file of mode 0600.
//!
//! Written ahead (WAL) and synced at each commit, so a batch costs one sync of the disk however long it is. A lock file
//! beside it keeps a second router away; commands such as `sixway user` may write while a router runs, which sees it at
//! its next look ([`Store::watch`]). Each prefix can stand behind one lease only: the file itself refuses a second one.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, Row, TransactionBehavior, params};
use zeroize::Zeroizing;

use super::text::{emit_outer, emit_prefixes, parse_outer, parse_prefixes};
use super::{Changed, Store, StoreError};
use crate::broker::{
    Account, BindKey, BindKind, Binding, Grant, Lease, LeaseId, Mechanisms, Memory, Pair, Protocol, Record,
    Secret, Time, Told, UserName,
};

/// The format that this program writes.
const FORMAT: i64 = 4;
/// How long another program may hold the file.
const PATIENCE: Duration = Duration::from_secs(5);
/// Owner only.
const PRIVATE: u32 = 0o600;

const SCHEMA: &str = "
    CREATE TABLE account (
        name     TEXT PRIMARY KEY,
        secret   BLOB NOT NULL,
        prefixes TEXT NOT NULL,
        pair     INTEGER,
        mechanisms TEXT
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE assigned (
        prefix TEXT PRIMARY KEY,
        user   TEXT,
        since  INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE lease (
        id       INTEGER PRIMARY KEY,
        user     TEXT NOT NULL,
        protocol TEXT NOT NULL,
        name     TEXT NOT NULL,
        outside  TEXT NOT NULL,
        networks TEXT NOT NULL,
        pair     INTEGER,
        server   TEXT,
        client   TEXT,
        mtu      INTEGER NOT NULL,
        granted  INTEGER NOT NULL,
        expires  INTEGER
    ) STRICT;
    CREATE TABLE held (
        prefix TEXT PRIMARY KEY,
        lease  INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX held_by ON held (lease);
";

/// From format 1 to 2: how an account may prove itself; NULL is in whatever way.
const FROM_1: &str = "ALTER TABLE account ADD COLUMN mechanisms TEXT";

/// Beside the format: a version that does not know it loses nothing by it.
const DEPARTED: &str = "
    CREATE TABLE IF NOT EXISTS departed (
        name TEXT PRIMARY KEY,
        at   INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
";
const DEPART: &str =
    "INSERT OR REPLACE INTO departed (name, at) VALUES (?1, CAST(unixepoch('subsec') * 1000 AS INTEGER))";
const FORGET: &str =
    "DELETE FROM departed WHERE at < (unixepoch() - 3600) * 1000 AND name NOT IN (SELECT user FROM lease)";

/// From format 2 to 3: what clients inside tunnels have.
const FROM_2: &str = "
    CREATE TABLE binding (
        prefix  TEXT PRIMARY KEY,
        tunnel  TEXT NOT NULL,
        client  BLOB NOT NULL,
        kind    TEXT NOT NULL,
        number  INTEGER NOT NULL,
        owner   TEXT NOT NULL,
        fixed   INTEGER NOT NULL,
        expires INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
";

/// Beside the format too: where a client takes messages that something has changed.
const REACH: &str = "ALTER TABLE binding ADD COLUMN reach TEXT";
const HAS_REACH: &str = "SELECT count(*) FROM pragma_table_info('binding') WHERE name = 'reach'";

/// From format 3 to 4: what a lease's client has said of itself.
const FROM_3: &str = "
    ALTER TABLE lease ADD COLUMN keepalive INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE lease ADD COLUMN claimed TEXT;
";

/// An open store.
#[derive(Debug)]
pub struct Sqlite {
    path: PathBuf,
    db: Connection,
    seen: i64,
    /// Held, never read: there is one router to a store.
    _lock: Option<File>,
}

impl Sqlite {
    /// Opens the store for the router, and makes it where there is none. Nobody else can do so until it is dropped.
    ///
    /// # Errors
    /// [`StoreError::Open`], [`StoreError::InUse`], [`StoreError::Newer`], [`StoreError::Engine`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        prepare(path)?;
        let lock = lock(path)?;
        Ok(Self { _lock: Some(lock), ..Self::open_beside(path)? })
    }

    /// Opens the store for a command, whether a router uses it or not; makes it where there is none.
    ///
    /// # Errors
    /// As [`Self::open`], but never [`StoreError::InUse`].
    pub fn open_beside(path: &Path) -> Result<Self, StoreError> {
        prepare(path)?;
        let failed = |why: rusqlite::Error| engine(path, &why);
        let db = Connection::open(path).map_err(|why| refused(path, why))?;
        db.busy_timeout(PATIENCE).map_err(failed)?;
        db.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
        db.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
        // A secret that was changed or deleted is overwritten.
        db.pragma_update(None, "secure_delete", "ON").map_err(failed)?;
        db.set_prepared_statement_cache_capacity(32);
        let mut store = Self { path: path.to_owned(), db, seen: 0, _lock: None };
        store.lay_out()?;
        store.seen = store.version()?;
        Ok(store)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn lay_out(&mut self) -> Result<(), StoreError> {
        let path = self.path.clone();
        let failed = |why: rusqlite::Error| engine(&path, &why);
        let changes = self.db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        let found: i64 =
            changes.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(failed)?;
        if found > FORMAT {
            return Err(StoreError::Newer { path: path.clone(), found, known: FORMAT });
        }
        if found == 0 {
            changes.execute_batch(SCHEMA).map_err(failed)?;
        }
        if found == 1 {
            changes.execute_batch(FROM_1).map_err(failed)?;
        }
        if found < 3 {
            changes.execute_batch(FROM_2).map_err(failed)?;
        }
        if found < FORMAT {
            changes.execute_batch(FROM_3).map_err(failed)?;
            changes.pragma_update(None, "user_version", FORMAT).map_err(failed)?;
        }
        changes.execute_batch(DEPARTED).map_err(failed)?;
        let columns: i64 = changes.query_row(HAS_REACH, [], |row| row.get(0)).map_err(failed)?;
        if columns == 0 {
            changes.execute_batch(REACH).map_err(failed)?;
        }
        changes.commit().map_err(failed)
    }

    /// Changes whenever somebody else has written.
    fn version(&self) -> Result<i64, StoreError> {
        let asked = self.db.pragma_query_value(None, "data_version", |row| row.get(0));
        asked.map_err(|why| engine(&self.path, &why))
    }

    /// Every row of `query`, made into what it means.
    fn all<T>(
        &self,
        query: &str,
        mut read: impl FnMut(&Row<'_>) -> Result<T, Fault>,
    ) -> Result<Vec<T>, StoreError> {
        let told = |fault: Fault| fault.told(&self.path);
        let mut statement = self.db.prepare_cached(query).map_err(|why| engine(&self.path, &why))?;
        let mut rows = statement.query([]).map_err(|why| engine(&self.path, &why))?;
        let mut found = Vec::new();
        while let Some(row) = rows.next().map_err(|why| engine(&self.path, &why))? {
            found.push(read(row).map_err(told)?);
        }
        Ok(found)
    }

    fn accounts(&self) -> Result<Vec<Account>, StoreError> {
        self.all("SELECT name, secret, prefixes, pair, mechanisms FROM account", read_account)
    }
}

impl Sqlite {
    /// Keeps what `decide` makes of what is there; nobody else writes in between. Returns what else it said.
    ///
    /// # Errors
    /// Its own, or the store's; nothing is kept then.
    pub fn change<T, E: From<StoreError>>(
        &mut self,
        decide: impl FnOnce(&Memory) -> Result<(Vec<Record>, T), E>,
    ) -> Result<T, E> {
        let path = self.path.clone();
        let failed = |why: rusqlite::Error| E::from(engine(&path, &why));
        self.db.execute_batch("BEGIN IMMEDIATE").map_err(failed)?;
        let changed = self.load().map_err(E::from).and_then(|memory| {
            let (records, told) = decide(&memory)?;
            records.iter().try_for_each(|record| write(&self.db, record)).map_err(failed)?;
            self.db.execute_batch("COMMIT").map_err(failed)?;
            Ok(told)
        });
        if changed.is_err() {
            // It has been taken back already where the engine itself failed.
            let _nothing_open = self.db.execute_batch("ROLLBACK");
        }
        changed
    }

    fn departed(&self) -> Result<Vec<(UserName, Time)>, StoreError> {
        self.all("SELECT name, at FROM departed", |row| Ok((user(row.get(0)?)?, time(row, 1)?)))
    }
}

impl Store for Sqlite {
    fn load(&mut self) -> Result<Memory, StoreError> {
        self.seen = self.version()?;
        let leases = "SELECT id, user, protocol, name, outside, networks, pair, server, client, mtu, granted, \
                      expires, keepalive, claimed FROM lease ORDER BY id";
        Ok(Memory {
            accounts: self.accounts()?,
            leases: self.all(leases, read_lease)?,
            assigned: self.all("SELECT prefix, user, since FROM assigned", read_assigned)?,
            departed: self.departed()?,
            bindings: self.all(
                "SELECT prefix, tunnel, client, kind, number, owner, fixed, expires, reach FROM binding",
                read_binding,
            )?,
        })
    }

    fn append(&mut self, batch: &[Record]) -> Result<(), StoreError> {
        let path = &self.path;
        let failed = |why: rusqlite::Error| engine(path, &why);
        let changes = self.db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        for record in batch {
            write(&changes, record).map_err(failed)?;
        }
        changes.commit().map_err(failed)
    }

    fn watch(&mut self) -> Result<Option<Changed>, StoreError> {
        let now = self.version()?;
        if std::mem::replace(&mut self.seen, now) == now {
            return Ok(None);
        }
        Ok(Some(Changed { accounts: self.accounts()?, departed: self.departed()? }))
    }
}

/// Sees to it that file and folder are there and nobody else's to read. SQLite gives its side files the same mode.
fn prepare(path: &Path) -> Result<(), StoreError> {
    let failed = |why: io::Error| StoreError::Open { path: path.to_owned(), why: why.to_string() };
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.exists()) {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    }
    let file = OpenOptions::new().read(true).append(true).create(true).mode(PRIVATE).open(path);
    let file = file.map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        tracing::warn!("{} was readable by others (mode {mode:o}); it is not any more", path.display());
        file.set_permissions(fs::Permissions::from_mode(PRIVATE)).map_err(failed)?;
    }
    Ok(())
}

fn lock(path: &Path) -> Result<File, StoreError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let failed = |why: io::Error| StoreError::Open { path: path.to_owned(), why: why.to_string() };
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(PRIVATE).open(&name);
    let file = file.map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(why)) => Err(failed(why)),
    }
}

fn engine(path: &Path, why: &rusqlite::Error) -> StoreError {
    StoreError::Engine { path: path.to_owned(), why: why.to_string() }
}

fn refused(path: &Path, why: rusqlite::Error) -> StoreError {
    StoreError::Open { path: path.to_owned(), why: why.to_string() }
}

fn write(changes: &Connection, record: &Record) -> rusqlite::Result<()> {
    let run = |query: &str, values: &[&dyn rusqlite::ToSql]| {
        changes.prepare_cached(query)?.execute(values).map(|_rows| ())
    };
    match record {
        Record::Account(account) => run(
            "INSERT OR REPLACE INTO account (name, secret, prefixes, pair, mechanisms) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![
                account.name.as_str(),
                account.secret.expose(),
                emit_prefixes(&account.prefixes),
                account.pair,
                Some(account.mechanisms).filter(|some| !some.is_any()).map(|some| some.to_string()),
            ],
        ),
        Record::AccountGone(name) => {
            run("DELETE FROM account WHERE name = ?1", params![name.as_str()])?;
            // What is old and has no lease any more has nothing to end.
            run(FORGET, &[])?;
            run(DEPART, params![name.as_str()])
        }
        Record::Lease(lease) => write_lease(changes, lease),
        Record::Until(id, at) => {
            run("UPDATE lease SET expires = ?2 WHERE id = ?1", params![number(id.0), number(at.0)])
        }
        Record::Moved(id, outer) => {
            run("UPDATE lease SET outside = ?2 WHERE id = ?1", params![number(id.0), emit_outer(outer)])
        }
        Record::Ended(id) => {
            run("DELETE FROM held WHERE lease = ?1", params![number(id.0)])?;
            run("DELETE FROM lease WHERE id = ?1", params![number(id.0)])
        }
        Record::Assigned { prefix, user, since } => run(
            "INSERT OR REPLACE INTO assigned (prefix, user, since) VALUES (?1, ?2, ?3)",
            params![prefix.to_string(), user.as_ref().map(UserName::as_str), number(since.0)],
        ),
        Record::Bound(Binding { key, prefix, owner, fixed, expires, reach }) => run(
            "INSERT INTO binding (prefix, tunnel, client, kind, number, owner, fixed, expires, reach) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            params![
                prefix.to_string(),
                &*key.tunnel,
                &*key.client,
                key.kind.name(),
                key.number,
                owner.as_str(),
                fixed,
                number(expires.0),
                reach.map(|addr| addr.to_string()),
            ],
        ),
        Record::BoundUntil(prefix, at, reach) => run(
            "UPDATE binding SET expires = ?2, reach = ?3 WHERE prefix = ?1",
            params![prefix.to_string(), number(at.0), reach.map(|addr| addr.to_string())],
        ),
        Record::Unbound(prefix) => run("DELETE FROM binding WHERE prefix = ?1", params![prefix.to_string()]),
    }
}

fn write_lease(changes: &Connection, lease: &Lease) -> rusqlite::Result<()> {
    let Lease { grant, protocol, granted, told } = lease;
    let pair = grant.pair;
    changes
        .prepare_cached(
            "INSERT INTO lease (id, user, protocol, name, outside, networks, pair, server, client, mtu, granted, \
             expires, keepalive, claimed) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
        )?
        .execute(params![
            number(grant.lease.0),
            grant.user.as_str(),
            protocol.name(),
            &*grant.name,
            emit_outer(&grant.outer),
            emit_prefixes(&grant.networks),
            pair.map(|p| p.number),
            pair.map(|p| p.server.to_string()),
            pair.map(|p| p.client.to_string()),
            grant.mtu,
            number(granted.0),
            grant.expires.map(|at| number(at.0)),
            told.keepalive,
            told.claimed.map(|addr| addr.to_string()),
        ])?;
    let mut hold = changes.prepare_cached("INSERT INTO held (prefix, lease) VALUES (?1, ?2)")?;
    for prefix in grant.prefixes() {
        hold.execute(params![prefix.to_string(), number(grant.lease.0)])?;
    }
    Ok(())
}

/// SQLite counts with a sign; times and numbers beyond it are out of anybody's reach.
fn number(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// What can be wrong with a row.
enum Fault {
    Engine(rusqlite::Error),
    Nonsense(String, &'static str),
}

impl Fault {
    fn told(self, path: &Path) -> StoreError {
        match self {
            Self::Engine(why) => engine(path, &why),
            Self::Nonsense(text, expected) => StoreError::Nonsense { path: path.to_owned(), text, expected },
        }
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(why: rusqlite::Error) -> Self {
        Self::Engine(why)
    }
}

/// A text that must mean something.
fn meaning<T>(
    text: String,
    expected: &'static str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<T, Fault> {
    parse(&text).ok_or(Fault::Nonsense(text, expected))
}

fn time(row: &Row<'_>, column: usize) -> Result<Time, Fault> {
    Ok(Time(u64::try_from(row.get::<_, i64>(column)?).unwrap_or(0)))
}

fn user(text: String) -> Result<UserName, Fault> {
    meaning(text, "a user name", |t| UserName::parse(t).ok())
}

fn read_account(row: &Row<'_>) -> Result<Account, Fault> {
    let secret = Zeroizing::new(row.get::<_, Vec<u8>>(1)?);
    Ok(Account {
        name: user(row.get(0)?)?,
        // What is wrong with a secret is nobody's to read.
        secret: Secret::parse(secret).map_err(|_| Fault::Nonsense("(hidden)".to_owned(), "a secret"))?,
        prefixes: meaning(row.get(2)?, "a list of prefixes", parse_prefixes)?,
        pair: row.get(3)?,
        mechanisms: match row.get::<_, Option<String>>(4)? {
            Some(text) => meaning(text, "a list of mechanisms", |t| t.parse().ok())?,
            None => Mechanisms::ANY,
        },
    })
}

fn read_assigned(
    row: &Row<'_>,
) -> Result<(sixway_dataplane::update::Ipv6Prefix, Option<UserName>, Time), Fault> {
    let prefix = meaning(row.get(0)?, "a prefix", |t| t.parse().ok())?;
    let owner = row.get::<_, Option<String>>(1)?.map(user).transpose()?;
    Ok((prefix, owner, time(row, 2)?))
}

fn read_binding(row: &Row<'_>) -> Result<Binding, Fault> {
    let named = |t: &str| [BindKind::Address, BindKind::Prefix].into_iter().find(|kind| kind.name() == t);
    let key = BindKey {
        tunnel: row.get::<_, String>(1)?.into(),
        client: row.get::<_, Vec<u8>>(2)?.into(),
        kind: meaning(row.get(3)?, "a kind of binding", named)?,
        number: row.get(4)?,
    };
    Ok(Binding {
        key,
        prefix: meaning(row.get(0)?, "a prefix", |t| t.parse().ok())?,
        owner: user(row.get(5)?)?,
        fixed: row.get(6)?,
        expires: time(row, 7)?,
        reach: row.get::<_, Option<String>>(8)?.and_then(|addr| addr.parse().ok()),
    })
}

fn read_lease(row: &Row<'_>) -> Result<Lease, Fault> {
    let named = |t: &str| Protocol::ALL.into_iter().find(|p| p.name() == t);
    let expires: Option<i64> = row.get(11)?;
    let protocol = meaning(row.get(2)?, "a protocol", named)?;
    let grant = Grant {
        protocol,
        lease: LeaseId(u64::try_from(row.get::<_, i64>(0)?).unwrap_or(0)),
        user: user(row.get(1)?)?,
        name: row.get::<_, String>(3)?.into(),
        outer: meaning(row.get(4)?, "an outer side", parse_outer)?,
        pair: read_pair(row)?,
        networks: meaning(row.get(5)?, "a list of prefixes", parse_prefixes)?,
        mtu: row.get(9)?,
        expires: expires.map(|_| time(row, 11)).transpose()?,
    };
    let claimed = row.get::<_, Option<String>>(13)?;
    let claimed = claimed.map(|text| meaning(text, "an IPv4 address", |t| t.parse().ok())).transpose()?;
    Ok(Lease { grant, protocol, granted: time(row, 10)?, told: Told { keepalive: row.get(12)?, claimed } })
}

fn read_pair(row: &Row<'_>) -> Result<Option<Pair>, Fault> {
    let Some(number) = row.get::<_, Option<u32>>(6)? else { return Ok(None) };
    let server = meaning(row.get(7)?, "an IPv6 address", |t| t.parse().ok())?;
    let client = meaning(row.get(8)?, "an IPv6 address", |t| t.parse().ok())?;
    Ok(Some(Pair { number, server, client }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binding() -> Binding {
        let client = std::sync::Arc::from([0, 3, 1]);
        let key = BindKey { tunnel: "alice".into(), client, kind: BindKind::Prefix, number: u32::MAX };
        let prefix = "2001:db8:1::/48".parse().unwrap();
        let owner = UserName::parse("alice@tunnel").unwrap();
        Binding { key, prefix, owner, fixed: true, expires: Time(77), reach: None }
    }

    #[test]
    fn a_store_of_the_format_before_is_taken_over_and_bindings_are_kept() {
        let folder = std::env::temp_dir().join(format!("sixway-format-{}", std::process::id()));
        let path = folder.join("six0.db");
        {
            let store = Sqlite::open(&path).unwrap();
            // Format 2 had all but this table and these columns.
            let drops = "DROP TABLE binding; ALTER TABLE lease DROP COLUMN keepalive; \
                         ALTER TABLE lease DROP COLUMN claimed; PRAGMA user_version = 2";
            store.db.execute_batch(drops).unwrap();
        }
        let mut store = Sqlite::open(&path).unwrap();
        assert!(store.load().unwrap().bindings.is_empty());
        store.append(&[Record::Bound(binding())]).unwrap();
        assert!(store.append(&[Record::Bound(binding())]).is_err(), "a prefix is bound once");
        let reach = Some("fe80::1".parse().unwrap());
        store.append(&[Record::BoundUntil(binding().prefix, Time(99), reach)]).unwrap();
        drop(store);
        let mut store = Sqlite::open(&path).unwrap();
        assert_eq!(store.load().unwrap().bindings, [Binding { expires: Time(99), reach, ..binding() }]);
        store.append(&[Record::Unbound(binding().prefix)]).unwrap();
        assert!(store.load().unwrap().bindings.is_empty());
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn what_a_client_has_said_of_itself_outlives_the_process() {
        let folder = std::env::temp_dir().join(format!("sixway-told-{}", std::process::id()));
        let path = folder.join("six0.db");
        let grant = Grant {
            lease: LeaseId(7),
            user: UserName::parse("alice").unwrap(),
            protocol: Protocol::Tsp,
            name: "alice@tsp".into(),
            outer: sixway_dataplane::update::Outer::Proto41 { local: None, remote: [192, 0, 2, 9].into() },
            pair: None,
            networks: vec!["2001:db8:1::/48".parse().unwrap()],
            mtu: 1280,
            expires: Some(Time(9)),
        };
        let told = Told { keepalive: 30, claimed: Some([10, 0, 0, 1].into()) };
        let lease = Lease { grant, protocol: Protocol::Tsp, granted: Time(1), told };
        Sqlite::open(&path).unwrap().append(&[Record::Lease(lease.clone())]).unwrap();
        assert_eq!(Sqlite::open(&path).unwrap().load().unwrap().leases, [lease]);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
