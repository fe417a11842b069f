//! A ledger read back: pages in their order, each record by its sum, and what an earlier version wrote. What is damaged is
//! counted, and its neighbours are read all the same; whether that will do, whoever reads says.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv6Addr;

use rusqlite::{ErrorCode, Row};
use sixway_dataplane::update::Ipv6Prefix;

use super::{Ledger, LedgerError};
use crate::broker::{BindKey, BindKind};
use crate::dhcp6s::plan::Life;
use crate::dhcp6s::record::Records;
use crate::dhcp6s::shelf::{Lease, NEVER, Proofs};

/// How many pages behind one that cannot be read are tried.
const TRIES: i64 = 65_536;

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
}

impl Damage {
    /// Whether nothing is lost.
    pub fn is_none(&self) -> bool {
        self.pages == 0
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
        let Self { first, pages, missing, lost } = self;
        match pages {
            0 => return out.write_str("nothing is lost"),
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
        let mut all = self.load_old(link, uptime).map_err(failed)?;
        let (read, damage) = self.load_pages(&mut all, uptime).map_err(failed)?;
        self.is_so.records = self.is_so.records.saturating_add(read);
        Ok((all.into_values().collect(), damage))
    }

    /// Does what the pages say, in their order; returns how many records that were.
    fn load_pages(&self, all: &mut All, uptime: u64) -> rusqlite::Result<(usize, Damage)> {
        let (mut records, mut damage, mut failures) = (0, Damage::default(), 0);
        let (mut last, mut from) = (None::<i64>, i64::MIN);
        loop {
            let read = self.sheets_from(from, |sheet| {
                let expected = last.map_or(sheet.number, |last| last.saturating_add(1));
                let gap = u64::try_from(sheet.number.saturating_sub(expected)).unwrap_or(0);
                if gap > 0 {
                    damage.misses(expected, gap);
                }
                records += self.follow(&sheet, all, uptime, &mut damage);
                (last, failures) = (Some(sheet.number), 0);
            });
            match read {
                Ok(()) => break,
                // One page of SQLite's has several of ours; those behind it are found under their own numbers.
                Err(why) if is_damage(&why) && failures < TRIES => {
                    failures += 1;
                    from = last.unwrap_or(0).saturating_add(failures);
                }
                Err(why) if is_damage(&why) => break,
                Err(why) => return Err(why),
            }
        }
        if failures > 0 {
            damage.misses(last.map_or(1, |last| last.saturating_add(1)), 1);
        }
        Ok((records, damage))
    }

    /// All pages from a number on.
    fn sheets_from(&self, number: i64, mut read: impl FnMut(Sheet<'_>)) -> rusqlite::Result<()> {
        let next = "SELECT number, count, records FROM page WHERE number >= ?1 ORDER BY number";
        let mut question = self.store.prepare_cached(next)?;
        let mut rows = question.query([number])?;
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
    fn load_old(&self, link: &str, uptime: u64) -> rusqlite::Result<All> {
        let columns =
            "SELECT prefix, client, kind, number, preferred, valid, until, peer, reach, link FROM lease";
        let mut question = self.store.prepare(columns)?;
        let mut rows = question.query([])?;
        let (mut all, mut skipped, mut first) = (All::new(), 0_u64, String::new());
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
}

/// Whether what SQLite keeps is not what it wrote.
fn is_damage(why: &rusqlite::Error) -> bool {
    let wrong_type =
        matches!(why, rusqlite::Error::FromSqlConversionFailure(..) | rusqlite::Error::InvalidColumnType(..));
    wrong_type || why.sqlite_error_code() == Some(ErrorCode::DatabaseCorrupt)
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
