//! A damaged ledger: what is sound in it goes into a new file in its place, and the damaged one stays beside it.
//!
//! Nothing is done to the damaged pages, and the new file takes its place whole, so this may end at any point and be begun
//! again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::ledger::{Damage, Ledger, LedgerError, write_all};
use super::shelf::Proofs;

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
    fs::metadata(path).map_err(system)?;
    let mut ledger = Ledger::open(path, now)?;
    let (all, damage) = ledger.load_sound(link, now.1)?;
    let leases = all.len();
    if damage.is_none() {
        return Ok(Mended { leases, damage, aside: None });
    }
    // Which messages were proved last is of use only against who repeats them; who has proved anything proves more.
    let proofs = ledger.load_proofs().unwrap_or_else(|_| Proofs::new());
    drop(ledger);
    // SQLite has put what was in there into the file when it closed it.
    if beside(path, "-wal").exists() {
        let why = io::Error::other(
            "SQLite cannot close it; put back a copy of it and of the file with -wal behind its name",
        );
        return Err(system(why));
    }
    let new = beside(path, ".mended");
    for left in [new.clone(), beside(&new, "-wal")] {
        match fs::remove_file(&left) {
            Err(why) if why.kind() != io::ErrorKind::NotFound => return Err(system(why)),
            _ => {}
        }
    }
    write_all(&new, now, &all, proofs)?;
    let aside = put_aside(path).map_err(system)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let put = fs::rename(&new, path).and_then(|()| fs::File::open(folder)?.sync_all());
    put.map_err(system)?;
    Ok(Mended { leases, damage, aside: Some(aside) })
}

/// The same file under a name that nothing has.
fn put_aside(path: &Path) -> io::Result<PathBuf> {
    for n in 1_u32.. {
        let aside = beside(path, &format!(".damaged{n}"));
        match fs::hard_link(path, &aside) {
            Err(why) if why.kind() == io::ErrorKind::AlreadyExists => {}
            done => return done.map(|()| aside),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

fn beside(path: &Path, more: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(more);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{BindKey, BindKind};
    use crate::dhcp6s::ledger::Page;
    use crate::dhcp6s::plan::Life;
    use crate::dhcp6s::shelf::{Change, Lease};

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
