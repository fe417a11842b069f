//! A damaged ledger: what is sound in it goes into a new file in its place, and the damaged one stays beside it.
//!
//! Nothing is done to the damaged file, which is only read; the new one is read again before it takes its place whole. So this
//! may end at any point and be begun again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::ledger::{Damage, Ledger, LedgerError, beside, write_all};
use super::shelf::{Lease, Proofs};

/// Octets that a new file may need more than the damaged one has: tables with nothing in them, and SQLite's journal.
const ROOM: u64 = 128 << 10;

/// What has become of it.
#[derive(Debug)]
pub struct Mended {
    /// How many leases there are.
    pub leases: usize,
    /// What is lost.
    pub damage: Damage,
    /// Where the damaged file is now; `None`: it was sound, and is where it was.
    pub aside: Option<PathBuf>,
}

/// Mends a file of leases that no server uses. Leases without a link are of this one; `now` as for [`Ledger::open`].
///
/// # Errors
/// [`LedgerError`]; then the file is as it was.
pub fn mend(path: &Path, link: &str, now: (&str, u64, u64)) -> Result<Mended, LedgerError> {
    let system = |why| LedgerError::System { path: path.to_owned(), why };
    let size = fs::metadata(path).map_err(system)?.len();
    let read = read(path, link, now);
    // SQLite's, and of no use without a server.
    remove(&beside(path, "-shm")).map_err(system)?;
    let (all, proofs, damage) = read?;
    let leases = all.len();
    if damage.is_none() {
        return Ok(Mended { leases, damage, aside: None });
    }
    if all.is_empty() && damage.is_of_leases() {
        return Err(LedgerError::Nothing { path: path.to_owned(), damage });
    }
    let new = beside(path, ".mended");
    clear(&new).map_err(system)?;
    if let Err(why) = write(&new, link, now, &all, proofs) {
        let needed = size + fs::metadata(beside(path, "-wal")).map_or(0, |log| log.len()) + ROOM;
        let _it_is_the_first_to_go_the_next_time = clear(&new);
        return Err(LedgerError::Unwritten { path: new, why: why.to_string(), needed });
    }
    let aside = put_aside(path).map_err(system)?;
    put_in_place(&new, path).map_err(system)?;
    Ok(Mended { leases, damage, aside: Some(aside) })
}

/// What is sound in a file.
fn read(path: &Path, link: &str, now: (&str, u64, u64)) -> Result<(Vec<Lease>, Proofs, Damage), LedgerError> {
    let mut ledger = Ledger::open_damaged(path, now)?;
    let (all, mut damage) = ledger.load_sound(link, now.1)?;
    let proofs = ledger.load_sound_proofs(&mut damage)?;
    Ok((all, proofs, damage))
}

/// Writes a new file, and reads it again: only what is really in it counts.
fn write(
    new: &Path,
    link: &str,
    now: (&str, u64, u64),
    all: &[Lease],
    proofs: Proofs,
) -> Result<(), LedgerError> {
    write_all(new, now, all, proofs.clone())?;
    let (read, proved, damage) = read(new, link, now)?;
    if damage.is_none() && read == all && proved == proofs && !beside(new, "-journal").exists() {
        return Ok(());
    }
    let why = io::Error::other("what was written is not there when it is read again");
    Err(LedgerError::System { path: new.to_owned(), why })
}

/// The new file takes the place of the damaged one, of which nothing may be left: its log would be taken for the new one's.
fn put_in_place(new: &Path, path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = fs::File::open(folder)?;
    folder.sync_all()?;
    remove(&beside(path, "-wal"))?;
    fs::rename(new, path)?;
    folder.sync_all()
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(why) if why.kind() != io::ErrorKind::NotFound => Err(why),
        _ => Ok(()),
    }
}

/// Removes what an earlier one has left.
fn clear(new: &Path) -> io::Result<()> {
    ["", "-wal", "-journal", "-shm"].iter().try_for_each(|more| remove(&beside(new, more)))
}

/// The same file, and its log, under a name that nothing has.
fn put_aside(path: &Path) -> io::Result<PathBuf> {
    for n in 1_u32.. {
        let aside = beside(path, &format!(".damaged{n}"));
        match fs::hard_link(path, &aside) {
            Err(why) if why.kind() == io::ErrorKind::AlreadyExists => continue,
            done => done?,
        }
        match fs::hard_link(beside(path, "-wal"), beside(&aside, "-wal")) {
            Err(why) if why.kind() != io::ErrorKind::NotFound => return Err(why),
            _ => return Ok(aside),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{BindKey, BindKind};
    use crate::dhcp6s::ledger::Page;
    use crate::dhcp6s::plan::Life;
    use crate::dhcp6s::shelf::Change;

    #[test]
    fn what_is_sound_goes_on_and_the_damaged_file_stays() {
        let folder = std::env::temp_dir().join(format!("sixway-mend-{}", std::process::id()));
        let path = folder.join("leases.db");
        let now = ("boot", 1000, 1_700_000_000);
        let lease = |n: u8| Lease {
            key: BindKey { tunnel: "a".into(), client: [n; 60].into(), kind: BindKind::Prefix, number: 1 },
            prefix: format!("2001:db8:{n:x}::/48").parse().unwrap(),
            life: Life { preferred: 1, valid: 9000 },
            until: 5000,
            peer: None,
            reach: None,
        };
        let mut ledger = Ledger::open(&path, now).unwrap();
        for pair in [[1, 2], [3, 4]] {
            let changes = pair.map(|n| Change::Has(lease(n))).into();
            ledger.write(&Page { changes, ..Page::default() }).unwrap();
        }
        drop(ledger);
        assert!(mend(&path, "a", now).unwrap().aside.is_none(), "it is sound");
        let mut octets = fs::read(&path).unwrap();
        // One octet of the name of the third client is another one.
        let at = octets.windows(60).position(|octets| octets == [3; 60]).unwrap();
        octets[at + 30] = 7;
        fs::write(&path, &octets).unwrap();
        let said = Ledger::open(&path, now).unwrap().load("a", 1000).unwrap_err().to_string();
        assert!(said.contains("page 2 is not as it was written, and 1 change"), "{said}");
        assert!(said.contains("--mend-leases --lease-file") && said.contains("leases.db"), "{said}");
        let mended = mend(&path, "a", now).unwrap();
        assert_eq!((mended.leases, mended.damage.lost), (3, 1));
        assert_eq!(fs::read(mended.aside.unwrap()).unwrap(), octets, "nothing was done to it");
        let loaded = Ledger::open(&path, now).unwrap().load("a", 1000).unwrap();
        assert_eq!(loaded, [1, 2, 4].map(lease));
        fs::remove_dir_all(&folder).unwrap();
    }
}
