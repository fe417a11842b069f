//! The file in which a server keeps what it makes Reconfigure keys and numbers of. It is on the disk before anybody is told.

use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::auth::{Ring, SECRET};

/// The file of a [`Ring`]: the secret in hexadecimal digits, and the mark; readable by its owner alone.
#[derive(Debug)]
pub struct RingFile {
    path: PathBuf,
    fails: bool,
}

impl RingFile {
    /// Reads it; makes it with this random secret where there is none.
    ///
    /// # Errors
    /// It can be neither read nor made, or makes no sense.
    pub fn open(path: &Path, random: [u8; SECRET]) -> io::Result<(Self, Ring)> {
        let file = Self { path: path.to_owned(), fails: false };
        match std::fs::read_to_string(path) {
            Ok(text) => {
                let why = "it is no ring of keys; delete it: clients then have to ask once before they are told of changes";
                let ring = parse(&text).ok_or_else(|| io::Error::new(ErrorKind::InvalidData, why))?;
                Ok((file, ring))
            }
            Err(why) if why.kind() == ErrorKind::NotFound => {
                let ring = Ring::new(random, 0);
                file.keep(&ring)?;
                Ok((file, ring))
            }
            Err(why) => Err(why),
        }
    }

    /// Puts into the log that it cannot be kept, and that it can again: once each, however often it is tried for the server of
    /// this `place`. Says whether there was anything to say.
    pub fn say(&mut self, kept: &io::Result<()>, place: &str) -> bool {
        if kept.is_err() == self.fails {
            return false;
        }
        self.fails = kept.is_err();
        let path = self.path.display();
        match kept {
            Ok(()) => tracing::warn!(
                event = "keys_kept_again",
                "DHCPv6 {place} answers again: {path} can be written"
            ),
            Err(why) => tracing::error!(
                event = "keys_not_kept",
                "{path} cannot be written: {why}; DHCPv6 {place} answers nobody until it can: make room on the disk"
            ),
        }
        true
    }

    /// Puts it on the disk, whole or not at all.
    ///
    /// # Errors
    /// As the system says.
    pub fn keep(&self, ring: &Ring) -> io::Result<()> {
        let folder =
            self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder)?;
        let mut beside = self.path.clone().into_os_string();
        beside.push(".new");
        let (secret, mark) = ring.parts();
        let digits: String = secret.iter().map(|octet| format!("{octet:02x}")).collect();
        let mut new =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        new.write_all(format!("{digits}\n{mark}\n").as_bytes())?;
        new.sync_all()?;
        std::fs::rename(&beside, &self.path)?;
        std::fs::File::open(folder)?.sync_all()
    }
}

fn parse(text: &str) -> Option<Ring> {
    let (digits, mark) = text.trim_end().split_once('\n')?;
    let pairs = (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok());
    let secret: Vec<u8> = pairs.collect::<Option<_>>()?;
    Some(Ring::new(secret.try_into().ok()?, mark.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_is_made_once_and_its_mark_is_kept() {
        let folder = std::env::temp_dir().join(format!("sixway-ring-{}", std::process::id()));
        let path = folder.join("six0.keys");
        let (file, mut ring) = RingFile::open(&path, [7; SECRET]).unwrap();
        let used = ring.next((1_800_000_000, 0));
        assert!(ring.must_be_kept());
        file.keep(&ring).unwrap();
        let (_, mut again) = RingFile::open(&path, [8; SECRET]).unwrap();
        assert_eq!(again.key("t", &[1]), ring.key("t", &[1]));
        assert!(again.next((1_700_000_000, 0)) > used);
        // Each change is said once.
        let mut file = file;
        let failed = || Err(io::Error::other("no room"));
        let said = [Ok(()), failed(), failed(), Ok(()), Ok(())].map(|kept| file.say(&kept, "here"));
        assert_eq!(said, [false, true, false, true, false]);
        for wrong in ["", "zz\n1\n", "07\n1\n", &format!("{}\nx\n", "07".repeat(SECRET))] {
            std::fs::write(&path, wrong).unwrap();
            assert!(RingFile::open(&path, [8; SECRET]).is_err(), "{wrong:?}");
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
