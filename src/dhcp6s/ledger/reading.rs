//! A ledger read back: pages in their order, each record by its sum, and what an earlier version wrote. What is damaged is
//! counted, and its neighbours are read all the same; whether that will do, whoever reads says.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv6Addr;

use rusqlite::{Connection, ErrorCode, OptionalExtension, Row};
use sixway_dataplane::update::Ipv6Prefix;

use super::{FORMAT, Ledger, LedgerError, OLD, raw};
use crate::broker::{BindKey, BindKind};
use crate::dhcp6s::clock::Epoch;
use crate::dhcp6s::plan::Life;
use crate::dhcp6s::record::Records;
use crate::dhcp6s::shelf::{Lease, NEVER, Proofs};

/// What is lost of a ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// The first page of which something is.
    pub first: i64,
    /// How many pages are, in whole or in part.
    pub pages: u64,
    /// Of these, how many as a whole: nobody knows what was in them.
    pub missing: u64,
    /// How many changes of leases are lost with the others, at least.
    pub lost: u64,
    /// Tables that SQLite cannot read to their end; what of their rows can be found otherwise is not lost.
    pub tables: Vec<&'static str>,
}

impl Damage {
    /// Whether nothing is lost.
    pub fn is_none(&self) -> bool {
        self.pages == 0 && self.tables.is_empty()
    }

    /// Whether leases may be.
    pub fn is_of_leases(&self) -> bool {
        self.pages > 0 || self.tables.iter().any(|table| ["page", "lease", NAMES].contains(table))
    }

    /// A table cannot be read to its end.
    pub(super) fn breaks(&mut self, table: &'static str) {
        if !self.tables.contains(&table) {
            self.tables.push(table);
        }
    }

    fn meets(&mut self, page: i64) {
        if self.pages == 0 {
            self.first = page;
        }
        self.pages += 1;
    }

    /// Pages between two that are there, or behind the last.
    fn misses(&mut self, page: i64, pages: u64) {
        self.meets(page);
        self.pages += pages.saturating_sub(1);
        self.missing += pages;
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, pages, missing, lost, tables } = self;
        if !tables.is_empty() {
            write!(out, "SQLite cannot read all of `{}`", tables.join("`, `"))?;
            out.write_str(if *pages > 0 { "; " } else { "" })?;
        }
        match pages {
            0 if tables.is_empty() => return out.write_str("nothing is lost"),
            0 => return Ok(()),
            1 => write!(out, "page {first} is not as it was written")?,
            _ => write!(out, "{pages} pages, the first is {first}, are not as they were written")?,
        }
        match lost {
            0 => {}
            1 => out.write_str(", and 1 change of a lease with it")?,
            _ => write!(out, ", and {lost} changes of leases with them")?,
        }
        match missing {
            0 => Ok(()),
            1 => out.write_str("; of 1 page nobody knows what was on it"),
            _ => write!(out, "; of {missing} pages nobody knows what was on them"),
        }
    }
}

/// Leases by what they are.
type All = BTreeMap<Ipv6Prefix, Lease>;

/// A page as it is in the file.
struct Sheet<'a> {
    number: i64,
    /// How many records there are; `None`: of an earlier version, and without sums.
    count: Option<i64>,
    records: &'a [u8],
}

/// Does what the pages say, in their order.
struct Reader<'a> {
    ledger: &'a Ledger,
    uptime: u64,
    all: All,
    damage: Damage,
    /// The number of the last page, and of the first.
    last: Option<i64>,
    first: Option<i64>,
    records: usize,
    /// There are pages without sums.
    is_old: bool,
}

impl Reader<'_> {
    fn follow(&mut self, sheet: &Sheet<'_>) {
        let begin = self.ledger.span.map(|(first, _)| first);
        let expected = self.last.map_or(begin, |last| last.checked_add(1)).unwrap_or(sheet.number);
        let gap = u64::try_from(sheet.number.saturating_sub(expected)).unwrap_or(0);
        if gap > 0 {
            self.damage.misses(expected, gap);
        }
        self.is_old |= sheet.count.is_none();
        self.records += self.ledger.follow(sheet, &mut self.all, self.uptime, &mut self.damage);
        self.first.get_or_insert(sheet.number);
        self.last = Some(sheet.number);
    }

    /// SQLite's own blocks are damaged: begins again with all pages that are left in any of them. What SQLite has read is among
    /// them.
    fn salvage(&mut self) -> Result<(), LedgerError> {
        let path = &self.ledger.path;
        let rows = raw::rows(path).map_err(|why| LedgerError::System { path: path.clone(), why })?;
        // Pages of before are still in blocks that are free, some of them.
        let floor = self.ledger.span.map(|(first, _)| first).or(self.first).unwrap_or(i64::MIN);
        self.damage = self.ledger.wounds.clone();
        self.damage.breaks("page");
        (self.last, self.records) = (None, 0);
        for (number, (count, records)) in rows.range(floor..) {
            self.follow(&Sheet { number: *number, count: *count, records });
        }
        Ok(())
    }

    /// Whether there are pages behind the last.
    fn end(&mut self) {
        let Some((first, end)) = self.ledger.span else { return };
        let next = self.last.map_or(first, |last| last.saturating_add(1));
        let gap = end.saturating_sub(next).saturating_add(1);
        if gap > 0 {
            self.damage.misses(next, u64::try_from(gap).unwrap_or(0));
        }
    }
}

impl Ledger {
    /// All leases that were written, at `uptime` of the clock; those without a link are of this one.
    ///
    /// # Errors
    /// [`LedgerError::Damaged`] where anything is lost that was written, [`LedgerError::Sqlite`].
    pub fn load(&mut self, link: &str, uptime: u64) -> Result<Vec<Lease>, LedgerError> {
        let (all, damage) = self.load_sound(link, uptime)?;
        match damage.is_none() {
            true => Ok(all),
            false => Err(LedgerError::Damaged { path: self.path.clone(), damage }),
        }
    }

    /// The same, of what is sound; and what is lost.
    ///
    /// # Errors
    /// [`LedgerError::Sqlite`].
    pub fn load_sound(&mut self, link: &str, uptime: u64) -> Result<(Vec<Lease>, Damage), LedgerError> {
        let failed = |why| LedgerError::Sqlite { path: self.path.clone(), why };
        let (mut all, mut damage) = (All::new(), self.wounds.clone());
        if let Err(why) = self.load_old(link, uptime, &mut all) {
            only_damage(why).map_err(failed)?;
            damage.breaks("lease");
        }
        let mut reader =
            Reader { ledger: self, uptime, all, damage, last: None, first: None, records: 0, is_old: false };
        if let Err(why) = self.pages(|sheet| reader.follow(&sheet)) {
            only_damage(why).map_err(failed)?;
            reader.salvage()?;
        }
        reader.end();
        let Reader { all, damage, records, is_old, .. } = reader;
        // Pages without sums are not kept longer than it takes to write them anew.
        self.is_so.records = if is_old { OLD } else { self.is_so.records.saturating_add(records) };
        Ok((all.into_values().collect(), damage))
    }

    /// All pages, as SQLite finds them.
    fn pages(&self, mut read: impl FnMut(Sheet<'_>)) -> rusqlite::Result<()> {
        let question = match self.format {
            ..=3 => return Ok(()),
            4 => "SELECT number, NULL, records FROM page ORDER BY number",
            _ => "SELECT number, count, records FROM page ORDER BY number",
        };
        let mut question = self.store.prepare(question)?;
        let mut rows = question.query([])?;
        while let Some(row) = rows.next()? {
            read(Sheet { number: row.get(0)?, count: row.get(1)?, records: row.get_ref(2)?.as_blob()? });
        }
        Ok(())
    }

    /// Does what a page says; returns how many records that were.
    fn follow(&self, sheet: &Sheet<'_>, all: &mut All, uptime: u64, damage: &mut Damage) -> usize {
        let mut records = match sheet.count {
            Some(_) => Records::new(sheet.records, sheet.number),
            None => Records::unsealed(sheet.records),
        };
        let mut read = 0_usize;
        while let Some((prefix, lease)) =
            records.next(|until, valid| self.epoch.of_disk(until, uptime, valid))
        {
            read += 1;
            match lease {
                Some(lease) => drop(all.insert(prefix, lease)),
                None => drop(all.remove(&prefix)),
            }
        }
        let wanted = sheet.count.map_or(read as u64, |count| u64::try_from(count).unwrap_or(0));
        if !records.is_over() || wanted != read as u64 {
            damage.meets(sheet.number);
            damage.lost += wanted.saturating_sub(read as u64).max(u64::from(!records.is_over()));
        }
        read
    }

    /// Leases as they were written before format 4. What makes no sense there is left out, and said.
    fn load_old(&self, link: &str, uptime: u64, all: &mut All) -> rusqlite::Result<()> {
        let reach = if self.format >= 2 { "reach" } else { "NULL" };
        let own = if self.format >= 3 { "link" } else { "NULL" };
        if self.format == 0 {
            return Ok(());
        }
        let columns = format!(
            "SELECT prefix, client, kind, number, preferred, valid, until, peer, {reach}, {own} FROM lease"
        );
        let mut question = self.store.prepare(&columns)?;
        let mut rows = question.query([])?;
        let (mut skipped, mut first) = (0_u64, String::new());
        while let Some(row) = rows.next()? {
            if let Some(lease) = read(row, link, self, uptime) {
                all.insert(lease.prefix, lease);
                continue;
            }
            skipped += 1;
            if skipped == 1 {
                first = row.get(0).unwrap_or_default();
            }
        }
        if skipped > 0 {
            tracing::warn!(
                "{skipped} leases in {} make no sense and are left out, the first is '{first}'; whoever has them asks anew",
                self.path.display()
            );
        }
        Ok(())
    }

    /// The numbers of the last messages that clients have proved to be their own.
    ///
    /// # Errors
    /// [`LedgerError::Sqlite`].
    pub fn load_proofs(&self) -> Result<Proofs, LedgerError> {
        let mut proofs = Proofs::new();
        let read = self.read_proofs(&mut proofs);
        read.map_err(|why| LedgerError::Sqlite { path: self.path.clone(), why })?;
        Ok(proofs)
    }

    /// The same, as many as can be read; notes it if that is not all.
    ///
    /// # Errors
    /// [`LedgerError::Sqlite`].
    pub fn load_sound_proofs(&self, damage: &mut Damage) -> Result<Proofs, LedgerError> {
        let mut proofs = Proofs::new();
        if let Err(why) = self.read_proofs(&mut proofs) {
            only_damage(why).map_err(|why| LedgerError::Sqlite { path: self.path.clone(), why })?;
            damage.breaks("proof");
        }
        Ok(proofs)
    }

    fn read_proofs(&self, proofs: &mut Proofs) -> rusqlite::Result<()> {
        if self.format < 2 {
            return Ok(());
        }
        let mut question = self.store.prepare("SELECT client, number FROM proof")?;
        let mut rows = question.query([])?;
        while let Some(row) = rows.next()? {
            proofs.insert(row.get::<_, Vec<u8>>(0)?.into(), row.get::<_, i64>(1)? as u64);
        }
        Ok(())
    }
}

/// What SQLite knows its tables by.
const NAMES: &str = "sqlite_schema";

/// What can be known of a file that may be damaged, and what of that cannot be read.
pub(super) struct Begun {
    pub(super) format: i64,
    pub(super) clock: Option<Epoch>,
    pub(super) span: Option<(i64, i64)>,
    pub(super) wounds: Damage,
}

pub(super) fn begin_damaged(store: &Connection) -> rusqlite::Result<Begun> {
    let mut damage = Damage::default();
    let format = store.query_row("PRAGMA user_version", [], |row| row.get(0));
    let format = or_broken(format.map(Some), NAMES, &mut damage)?.unwrap_or(FORMAT);
    let clock = if format >= 3 { epoch_of(store) } else { Ok(None) };
    let span = if format >= FORMAT { span_of(store) } else { Ok(None) };
    let clock = or_broken(clock, "clock", &mut damage)?;
    let span = or_broken(span, "span", &mut damage)?;
    Ok(Begun { format, clock, span, wounds: damage })
}

/// What the clock was that times on disk are counted by.
pub(super) fn epoch_of(store: &Connection) -> rusqlite::Result<Option<Epoch>> {
    let read = |row: &Row<'_>| Ok(Epoch { boot: row.get(0)?, base: row.get(1)?, ahead: row.get(2)? });
    store.query_row("SELECT boot, base, ahead FROM clock", [], read).optional()
}

/// The numbers of the first and the last page that there must be; `None`: nobody has noted them.
pub(super) fn span_of(store: &Connection) -> rusqlite::Result<Option<(i64, i64)>> {
    store.query_row("SELECT first, last FROM span", [], |row| Ok((row.get(0)?, row.get(1)?))).optional()
}

fn or_broken<T>(
    read: rusqlite::Result<Option<T>>,
    table: &'static str,
    damage: &mut Damage,
) -> rusqlite::Result<Option<T>> {
    read.or_else(|why| {
        damage.breaks(table);
        only_damage(why).map(|()| None)
    })
}

/// What is no damage stays an error.
fn only_damage(why: rusqlite::Error) -> rusqlite::Result<()> {
    if is_damage(&why) { Ok(()) } else { Err(why) }
}

/// Whether what SQLite keeps is not what it wrote.
pub(super) fn is_damage(why: &rusqlite::Error) -> bool {
    let wrong_type =
        matches!(why, rusqlite::Error::FromSqlConversionFailure(..) | rusqlite::Error::InvalidColumnType(..));
    let codes = [ErrorCode::DatabaseCorrupt, ErrorCode::NotADatabase];
    wrong_type || why.sqlite_error_code().is_some_and(|code| codes.contains(&code))
}

/// A lease as it was written before format 4; `None`: it makes no sense.
fn read(row: &Row<'_>, link: &str, ledger: &Ledger, uptime: u64) -> Option<Lease> {
    let text = |column| row.get::<_, Option<String>>(column).ok();
    let number = |column| row.get::<_, u32>(column).ok();
    let addr = |column| Some(text(column)?.and_then(|addr| addr.parse::<Ipv6Addr>().ok()));
    let kind = text(2)??;
    let life = Life { preferred: number(4)?, valid: number(5)? };
    let until: Option<i64> = row.get(6).ok()?;
    Some(Lease {
        key: BindKey {
            tunnel: text(9)?.as_deref().unwrap_or(link).into(),
            client: row.get::<_, Vec<u8>>(1).ok()?.into(),
            kind: [BindKind::Address, BindKind::Prefix].into_iter().find(|known| known.name() == kind)?,
            number: number(3)?,
        },
        prefix: text(0)??.parse().ok()?,
        life,
        until: until.map_or(NEVER, |until| ledger.epoch.of_disk(until, uptime, life.valid)),
        peer: addr(7)?,
        reach: addr(8)?,
    })
}
