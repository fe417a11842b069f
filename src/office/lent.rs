//! Accounts that files of other programs lend: read at the start, and again when a file has changed.
//!
//! A file that is being written is left alone until it looks the same twice: half a route table would end the tunnels of all
//! users behind the half. What cannot be read any more leaves in force what was read before. Does not know what is in the files: that is
//! `compat`'s business.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::broker::Account;
use crate::compat::accounts::merge;
use crate::compat::dtcps::{POPAUTH, ROUTETABLE};
use crate::compat::popauth::PopAuth;
use crate::compat::routetable::RouteTable;

/// The largest file that is read, in octets.
const LARGEST: u64 = 256 << 20;

/// Interfaces by user.
pub type Pins = Arc<HashMap<Box<str>, String>>;

/// The files, as they were read last.
#[derive(Debug, Default)]
pub struct Lent {
    popauth: Option<File<PopAuth>>,
    routetable: Option<File<RouteTable>>,
    /// What the store had last.
    own: Vec<Account>,
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {why}")]
pub struct LentError {
    /// Which.
    path: PathBuf,
    /// What is wrong with it.
    why: String,
}

#[derive(Debug)]
struct File<T> {
    path: PathBuf,
    /// Of what was read last.
    stamp: Option<Stamp>,
    /// At the last look.
    seen: Option<Stamp>,
    content: Arc<T>,
}

/// Another one means another content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    file: u64,
    size: u64,
    changed: (i64, i64),
}

impl Lent {
    /// Reads the files that there are.
    ///
    /// # Errors
    /// [`LentError`].
    pub fn open(popauth: Option<&Path>, routetable: Option<&Path>) -> Result<Self, LentError> {
        let popauth = popauth.map(|path| File::open_or_await(path, POPAUTH, secrets)).transpose()?;
        let routetable = routetable.map(|path| File::open_or_await(path, ROUTETABLE, routes)).transpose()?;
        Ok(Self { popauth, routetable, own: Vec::new() })
    }

    /// Looks whether a file has changed, and reads it if so. True: ask [`Self::accounts`] again.
    pub fn look(&mut self) -> bool {
        let secrets_changed = self.popauth.as_mut().is_some_and(|file| file.look(secrets));
        let routes_changed = self.routetable.as_mut().is_some_and(|file| file.look(routes));
        secrets_changed || routes_changed
    }

    /// These are the accounts of the store from now on.
    pub fn own(&mut self, accounts: Vec<Account>) {
        self.own = accounts;
    }

    /// All accounts: the store's and the files'.
    pub fn accounts(&self) -> Vec<Account> {
        let (none, empty) = (PopAuth::default(), RouteTable::default());
        let popauth = self.popauth.as_ref().map_or(&none, |file| &file.content);
        let table = self.routetable.as_ref().map_or(&empty, |file| &file.content);
        let (accounts, notes) = merge(self.own.clone(), popauth, table);
        notes.iter().for_each(|note| tracing::warn!("{note}"));
        accounts
    }

    /// Who is pinned to which interface: as the route table says, else by the number in the account.
    pub fn pins(&self) -> Pins {
        let numbered =
            self.own.iter().filter_map(|one| Some((one.name.as_str().into(), format!("gif{}", one.pair?))));
        let mut pins: HashMap<Box<str>, String> = numbered.collect();
        let table = self.routetable.iter().flat_map(|file| file.content.iter());
        pins.extend(table.filter_map(|(user, entry)| Some((user.into(), entry.interface.clone()?))));
        Arc::new(pins)
    }
}

impl<T: Default> File<T> {
    /// A file at its usual place may come later; one that somebody has named must be there.
    fn open_or_await(
        path: &Path,
        usual: &str,
        read: impl Fn(&[u8]) -> Result<T, String>,
    ) -> Result<Self, LentError> {
        if path != Path::new(usual) || path.exists() {
            return Self::open(path, read);
        }
        tracing::info!("{usual} is not there yet; it is read when it comes");
        Ok(Self { path: path.to_owned(), stamp: None, seen: None, content: Arc::default() })
    }
}

impl<T> File<T> {
    fn open(path: &Path, read: impl Fn(&[u8]) -> Result<T, String>) -> Result<Self, LentError> {
        let refused = |why| LentError { path: path.to_owned(), why };
        let stamp = stamp(path).ok();
        let content = content(path).and_then(|octets| read(&octets)).map_err(refused)?;
        Ok(Self { path: path.to_owned(), stamp, seen: stamp, content: Arc::new(content) })
    }

    /// Reads it again if it has changed, and not since it was looked at last; whether there is something new.
    fn look(&mut self, read: impl Fn(&[u8]) -> Result<T, String>) -> bool {
        let now = stamp(&self.path).ok();
        let is_settled = std::mem::replace(&mut self.seen, now) == now;
        if now == self.stamp || !is_settled {
            return false;
        }
        self.stamp = now;
        match content(&self.path).and_then(|octets| read(&octets)) {
            Ok(new) => {
                tracing::info!(event = "file_read", path = %self.path.display());
                self.content = Arc::new(new);
                true
            }
            Err(why) => {
                let path = self.path.display();
                tracing::error!("{path}: {why}; what was read before stays in force");
                false
            }
        }
    }
}

fn stamp(path: &Path) -> io::Result<Stamp> {
    let found = fs::metadata(path)?;
    Ok(Stamp { file: found.ino(), size: found.size(), changed: (found.ctime(), found.ctime_nsec()) })
}

fn content(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let explain = |why: io::Error| {
        if why.kind() == io::ErrorKind::NotFound {
            return "there is no such file; make it, or name another in [dtcp]".to_owned();
        }
        format!("it cannot be read: {why}; run with sudo, or let this user read it")
    };
    let found = fs::metadata(path).map_err(explain)?;
    if found.size() > LARGEST {
        return Err(format!("it is larger than {} MiB", LARGEST >> 20));
    }
    fs::read(path).map(Zeroizing::new).map_err(explain)
}

fn secrets(octets: &[u8]) -> Result<PopAuth, String> {
    PopAuth::parse(octets).map_err(|why| why.to_string())
}

fn routes(octets: &[u8]) -> Result<RouteTable, String> {
    let text = std::str::from_utf8(octets).map_err(|_| "it is no text in UTF-8".to_owned())?;
    RouteTable::parse(text).map_err(|mistakes| {
        let more = mistakes.len().saturating_sub(1);
        let first = mistakes.first().map(ToString::to_string).unwrap_or_default();
        if more == 0 { first } else { format!("{first} (and {more} lines more)") }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compat::accounts::account;

    #[test]
    fn files_are_read_again_when_they_change() {
        let folder = std::env::temp_dir().join(format!("sixway-lent-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (secrets, routes) = (folder.join("pop.auth"), folder.join("routetable"));
        assert!(Lent::open(Some(&secrets), None).unwrap_err().to_string().contains("there is no such file"));
        fs::write(&secrets, "format=bytevalue\nHEADER=END\n 666f6f00\n 9d9e8d00\nDATA=END\n").unwrap();
        fs::write(&routes, "foo 2001:db8::/48\n").unwrap();
        let mut lent = Lent::open(Some(&secrets), Some(&routes)).unwrap();
        assert!(!lent.look());
        assert_eq!(lent.accounts()[0].prefixes, ["2001:db8::/48".parse().unwrap()]);
        fs::write(&routes, "foo 2001:db8:1::/48,2001:db8:2::/48 gif7\n").unwrap();
        assert!(!lent.look(), "it may still be being written");
        assert!(lent.look() && !lent.look());
        assert_eq!((lent.accounts()[0].prefixes.len(), lent.accounts()[0].pair), (2, Some(7)));
        fs::write(&routes, "").unwrap();
        assert!(!lent.look());
        assert_eq!(lent.accounts()[0].prefixes.len(), 2, "who writes it anew has emptied it first");
        fs::write(&routes, "foo nonsense\n").unwrap();
        assert!(!lent.look() && !lent.look());
        assert_eq!(lent.accounts()[0].prefixes.len(), 2, "what was read before stays");
        assert_eq!(lent.pins().get("foo").map(String::as_str), Some("gif7"));
        fs::remove_file(&routes).unwrap();
        assert!(!lent.look() && !lent.look());
        assert_eq!(lent.accounts()[0].prefixes.len(), 2, "and so does it when the file is gone");
        lent.own(vec![Account { pair: Some(3), ..account("eve", b"x").unwrap() }]);
        assert_eq!(lent.accounts().len(), 2);
        assert_eq!(lent.pins().get("eve").map(String::as_str), Some("gif3"));
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_file_at_its_usual_place_may_come_later() {
        let folder = std::env::temp_dir().join(format!("sixway-lent-later-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let usual = folder.join("routetable");
        let elsewhere = folder.join("another");
        assert!(
            File::open_or_await(&elsewhere, &usual.to_string_lossy(), routes).is_err(),
            "somebody named it"
        );
        let mut table = File::open_or_await(&usual, &usual.to_string_lossy(), routes).unwrap();
        assert!(!table.look(routes) && table.content.iter().next().is_none());
        fs::write(&usual, "foo 2001:db8::/48\n").unwrap();
        assert!(!table.look(routes) && table.look(routes));
        assert_eq!(table.content.iter().count(), 1);
        fs::remove_dir_all(&folder).unwrap();
    }
}
