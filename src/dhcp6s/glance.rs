//! Who has what on links, for whoever wants to see it: in a running server a page at a time, and out of a file of leases that a
//! server may be writing to.
//!
//! A server holds its file locked, so a copy is looked at. What SQLite has not put into the file yet is in the log beside it
//! (`-wal`), and the file itself changes only while the log is put into it, all of which stays in the log until the log begins
//! anew. So file and log fit each other if the log has not begun anew while they were copied: its first octets say so.

use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sixway_dataplane::update::Ipv6Prefix;

use super::here;
use super::ledger::{Damage, Ledger, LedgerError};
use super::shelf::{Lease, NEVER, Shelf};
use crate::admin::leases::{Held, Sieve, page};

/// How often file and log are copied before a server counts as too busy, and how long is waited in between.
const TRIES: u32 = 30;
const PAUSE: Duration = Duration::from_millis(100);
/// Octets at the beginning of SQLite's log: two of its numbers are others each time it begins anew.
const HEADER: usize = 32;

/// What a lease is to whoever looks, at `now` of the clock that leases are counted by.
pub fn held(lease: &Lease, now: u64) -> Held {
    let left = (lease.until != NEVER).then(|| lease.until.saturating_sub(now));
    let link = Some(lease.key.tunnel.to_string()).filter(|name| !name.is_empty());
    Held { link, ..Held::new(&lease.key, lease.prefix, left, lease.peer) }
}

/// Of all leases behind one, those that are let through, and where to go on.
pub fn of_shelf(
    shelf: &Shelf,
    sieve: &Sieve,
    after: Option<Ipv6Prefix>,
    now: u64,
) -> (Vec<Held>, Option<Ipv6Prefix>) {
    let told = |lease: &&Lease| sieve.lets(&lease.key, lease.prefix).then(|| held(lease, now));
    page(shelf.after(after), |lease| lease.prefix, told)
}

/// Why a file cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum GlanceError {
    /// It, or a copy of it.
    #[error("cannot look at {path}: {why}; {}", next(why))]
    System {
        /// The file.
        path: PathBuf,
        /// What the system said.
        why: io::Error,
    },
    /// There is no moment in which it is whole.
    #[error("a server writes so much to {0} that no copy of it is whole; try again")]
    Busy(PathBuf),
    /// What is in it.
    #[error("{0} (this was a copy of {1}, to which nothing was done)")]
    Ledger(LedgerError, PathBuf),
}

fn next(why: &io::Error) -> &'static str {
    let known = [
        (
            ErrorKind::NotFound,
            "has a server with that file ever run? --lease-file names another, --interface the usual one",
        ),
        (ErrorKind::PermissionDenied, "run as root"),
        (ErrorKind::StorageFull, "make room, or have TMPDIR name a folder that has some"),
    ];
    known.iter().find(|(kind, _)| *kind == why.kind()).map_or("does the disk fail?", |(_, next)| next)
}

/// The leases in a file that are not over, in the order of prefixes, whether a server is writing to it or not; and what of the
/// file is damaged. Leases without a link are of this one. Takes as much room for temporary files as the file has octets.
///
/// # Errors
/// [`GlanceError`].
pub fn of_file(path: &Path, link: &str) -> Result<(Vec<Lease>, Damage), GlanceError> {
    let copy = Copy::of(path)?;
    let failed = |why| GlanceError::Ledger(why, path.to_owned());
    let now = here::uptime();
    let mut ledger = Ledger::open(&copy.file(), (&here::boot(), now, here::now())).map_err(failed)?;
    let (mut leases, damage) = ledger.load_sound(link, now).map_err(failed)?;
    leases.retain(|lease| lease.until > now);
    Ok((leases, damage))
}

/// A copy of a file and its log, in a folder that nobody else may look into; it goes when this is dropped.
struct Copy {
    folder: PathBuf,
}

impl Copy {
    fn of(path: &Path) -> Result<Self, GlanceError> {
        let system = |why| GlanceError::System { path: path.to_owned(), why };
        fs::File::open(path).map_err(system)?;
        let folder = std::env::temp_dir().join(format!(
            "sixway-leases-{}-{:x}",
            std::process::id(),
            rand::random::<u64>()
        ));
        fs::DirBuilder::new().mode(0o700).create(&folder).map_err(system)?;
        let copy = Self { folder };
        for _ in 0..TRIES {
            if copy.try_of(path).map_err(system)? {
                return Ok(copy);
            }
            std::thread::sleep(PAUSE);
        }
        Err(GlanceError::Busy(path.to_owned()))
    }

    fn file(&self) -> PathBuf {
        self.folder.join("leases.db")
    }

    /// Says whether file and log fit each other.
    fn try_of(&self, path: &Path) -> io::Result<bool> {
        let (log, own) = (beside(path), beside(&self.file()));
        let before = beginning(path, &log)?;
        fs::copy(path, self.file())?;
        match fs::copy(&log, &own) {
            Err(why) if why.kind() == ErrorKind::NotFound => {}
            done => drop(done?),
        }
        let fits = beginning(path, &log)? == before;
        if !fits {
            let _perhaps_there_was_none = fs::remove_file(&own);
        }
        Ok(fits)
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _what_is_left_is_in_the_folder_for_such = fs::remove_dir_all(&self.folder);
    }
}

/// SQLite's log of a file.
fn beside(path: &Path) -> PathBuf {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}

/// What stays as it is until the log begins anew: its first octets, or of a file without a log, when it was changed.
fn beginning(path: &Path, log: &Path) -> io::Result<Result<Vec<u8>, SystemTime>> {
    let mut octets = Vec::new();
    match fs::File::open(log) {
        Err(why) if why.kind() == ErrorKind::NotFound => {}
        file => drop(file?.take(HEADER as u64).read_to_end(&mut octets)?),
    }
    if octets.len() == HEADER { Ok(Ok(octets)) } else { fs::metadata(path)?.modified().map(Err) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{BindKey, BindKind};
    use crate::dhcp6s::ledger::Page;
    use crate::dhcp6s::plan::Life;
    use crate::dhcp6s::shelf::Change;

    fn lease(n: u32) -> Lease {
        let key = BindKey { tunnel: "a".into(), client: [1].into(), kind: BindKind::Address, number: n };
        let prefix = Ipv6Prefix::host(u128::from(n).into());
        Lease {
            key,
            prefix,
            life: Life { preferred: 1, valid: u32::MAX },
            until: NEVER,
            peer: None,
            reach: None,
        }
    }

    #[test]
    fn a_file_is_looked_at_while_it_is_written_and_at_rest() {
        let folder = std::env::temp_dir().join(format!("sixway-glance-{}", std::process::id()));
        let path = folder.join("leases.db");
        let now = (here::boot(), here::uptime(), here::now());
        let mut ledger = Ledger::open(&path, (&now.0, now.1, now.2)).unwrap();
        let (tell, stop) = std::sync::mpsc::channel::<()>();
        // More than SQLite lets its log grow to, so that it begins anew again and again.
        let writer = std::thread::spawn(move || {
            let mut n = 0;
            while stop.try_recv().is_err() {
                let changes = (n..n + 200).map(|n| Change::Has(lease(n))).collect();
                ledger.write(&Page { changes, ..Page::default() }).unwrap();
                n += 200;
                std::thread::sleep(Duration::from_millis(2));
            }
            n as usize
        });
        let mut before = 0;
        for _ in 0..20 {
            let (leases, damage) = of_file(&path, "a").unwrap();
            assert!(damage.is_none(), "{damage}");
            assert!(leases.len() >= before && leases.len() % 200 == 0, "{} after {before}", leases.len());
            assert!(leases.iter().enumerate().all(|(n, one)| *one == lease(n as u32)));
            before = leases.len();
        }
        tell.send(()).unwrap();
        let written = writer.join().unwrap();
        assert!(before > 0);
        assert_eq!(of_file(&path, "a").unwrap().0.len(), written, "at rest");
        let said = of_file(&folder.join("none.db"), "a").unwrap_err().to_string();
        assert!(said.contains("--lease-file"), "{said}");
        fs::remove_dir_all(&folder).unwrap();
    }
}
