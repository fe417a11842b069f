//! The configuration and the files that it includes, read again and again: always from the folder in which the process was
//! started, and never with less of them than before.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};

use super::here::{self, Here};
use crate::compat::dhcp6sconf::{ServerConf, Surroundings, load};

/// Where the configuration is.
#[derive(Clone, Debug)]
pub struct Files {
    file: PathBuf,
    folder: PathBuf,
    /// What was included the last time, as it is named there.
    included: BTreeSet<String>,
    /// Interfaces that may be named though they are not there yet.
    expected: BTreeSet<String>,
}

/// This host with the files as they are found from one folder.
struct Around<'a> {
    folder: &'a Path,
    expected: &'a BTreeSet<String>,
    read: RefCell<BTreeSet<String>>,
    missing: RefCell<Vec<String>>,
}

impl Surroundings for Around<'_> {
    fn read(&self, file: &str) -> io::Result<Vec<u8>> {
        let octets = here::read(&self.folder.join(file));
        match &octets {
            Ok(_) => drop(self.read.borrow_mut().insert(file.to_owned())),
            Err(_) => self.missing.borrow_mut().push(file.to_owned()),
        }
        octets
    }

    fn has_interface(&self, name: &str) -> bool {
        self.expected.contains(name) || Here.has_interface(name)
    }

    fn now(&self) -> u64 {
        Here.now()
    }

    fn today(&self) -> (i16, i8, i8) {
        Here.today()
    }

    fn unix_time(&self, date: (i16, i8, i8), time: (i8, i8)) -> Option<u64> {
        Here.unix_time(date, time)
    }
}

impl Files {
    /// This file; it and what it includes are found from the folder that the process is in now.
    pub fn new(file: &Path) -> Self {
        let folder = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
        Self::within(&folder, file)
    }

    fn within(folder: &Path, file: &Path) -> Self {
        Self {
            file: folder.join(file),
            folder: folder.to_owned(),
            included: BTreeSet::new(),
            expected: BTreeSet::new(),
        }
    }

    /// The same, and these interfaces may be named though they are not there yet.
    #[must_use]
    pub fn expecting(self, interfaces: &[String]) -> Self {
        Self { expected: interfaces.iter().cloned().collect(), ..self }
    }

    /// The configuration file itself.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Reads all, and says what is worth saying about it.
    ///
    /// # Errors
    /// That it cannot be read, or all that is wrong with it; a file that is not there is an error too, and one that is not
    /// included any more because it has gone.
    pub fn read(&mut self) -> anyhow::Result<ServerConf> {
        let name = self.file.display().to_string();
        let text = here::read(&self.file).with_context(|| format!("cannot read {name}"))?;
        let (read, missing) = (RefCell::default(), RefCell::default());
        let around = Around { folder: &self.folder, expected: &self.expected, read, missing };
        let loaded = load(&name, &text, &around).map_err(|wrong| {
            let all: Vec<String> = wrong.iter().map(ToString::to_string).collect();
            anyhow!(all.join("\n"))
        })?;
        if let Some(gone) = around.missing.borrow().iter().find(|file| self.included.contains(*file)) {
            bail!(
                "{name} includes '{gone}', which was there before and is not now; put it back or remove the line"
            );
        }
        loaded.notes.iter().for_each(|note| tracing::warn!("{note}"));
        self.included = around.read.into_inner();
        Ok(loaded.conf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn included_files_are_found_from_where_the_process_was_started_and_must_stay() {
        let folder = std::env::temp_dir().join(format!("sixway-files-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("x.conf"), "include \"hosts.conf\"; include \"none.conf\";").unwrap();
        let hosts = "host a { duid 00:01; prefix 2001:db8:1::/48 infinity; };";
        std::fs::write(folder.join("hosts.conf"), hosts).unwrap();
        let mut files = Files::within(&folder, Path::new("x.conf"));
        assert_eq!(files.read().unwrap().hosts.len(), 1, "one that never was there is only said");
        std::fs::remove_file(folder.join("hosts.conf")).unwrap();
        assert!(files.read().unwrap_err().to_string().contains("'hosts.conf'"));
        std::fs::write(folder.join("hosts.conf"), "").unwrap();
        assert_eq!(files.read().unwrap().hosts.len(), 0);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
