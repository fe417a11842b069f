//! The file that says which process a server is: one process at a time has it, from before anything else is opened until the
//! end.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// How often another process may take the file away while it is opened.
const TRIES: usize = 8;

/// The file, locked; removed when this is dropped.
pub(super) struct PidFile {
    path: PathBuf,
    /// Locked as long as it is open.
    file: File,
}

impl PidFile {
    /// Writes this process's number into it; `name` is the server's, as its command line has it, and `next` what to do where
    /// another such server has it.
    pub(super) fn write(path: &Path, name: &str, next: &str) -> anyhow::Result<Self> {
        let unwritten = || {
            format!(
                "cannot write {}; run as root, or name another with -P, in a folder that is there",
                path.display()
            )
        };
        let mut file = opened(path).with_context(unwritten)?;
        let mut text = String::new();
        let _what_makes_no_sense_is_nobody = file.read_to_string(&mut text);
        let pid = text.trim().parse::<u32>().ok().filter(|pid| *pid != std::process::id());
        let is_held = match file.try_lock() {
            Ok(()) => false,
            Err(TryLockError::WouldBlock) => true,
            Err(TryLockError::Error(why)) => return Err(why).with_context(unwritten),
        };
        let command = pid.and_then(command);
        // Other programs, and earlier versions of this one, do not lock it.
        let is_other = command.as_ref().is_some_and(|words| is_server(words, name));
        if is_held || is_other {
            let who = pid.map_or(String::new(), |pid| format!(", process {pid}"));
            let words = command.map_or(String::new(), |words| format!(" ({})", words.join(" ")));
            bail!("another {name}{who}{words}, has {}; {next}", path.display());
        }
        file.rewind().and_then(|()| file.set_len(0)).with_context(unwritten)?;
        file.write_all(format!("{}\n", std::process::id()).as_bytes()).with_context(unwritten)?;
        Ok(Self { path: path.to_owned(), file })
    }
}

/// The file as it is at the path: whoever ends takes it away.
fn opened(path: &Path) -> std::io::Result<File> {
    let mut tries = TRIES;
    loop {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        tries -= 1;
        if tries == 0 || fs::metadata(path).is_ok_and(|at| is_same(&at, &file)) {
            return Ok(file);
        }
    }
}

fn is_same(at: &fs::Metadata, file: &File) -> bool {
    file.metadata().is_ok_and(|own| (own.dev(), own.ino()) == (at.dev(), at.ino()))
}

/// The command line of a process that is there.
fn command(pid: u32) -> Option<Vec<String>> {
    let text = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words = String::from_utf8_lossy(&text).split_terminator('\0').map(str::to_owned).collect::<Vec<_>>();
    (!words.is_empty()).then_some(words)
}

/// Whether a command line is of this server: by its own name, or as the first argument.
fn is_server(words: &[String], name: &str) -> bool {
    let is_named = |word: &String| Path::new(word).file_name().is_some_and(|last| last == name);
    words.iter().take(2).any(is_named)
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // One that somebody has put there since is not ours to remove.
        if fs::metadata(&self.path).is_ok_and(|at| is_same(&at, &self.file)) {
            let _gone_or_not = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_has_it_and_what_a_dead_one_left_is_taken() {
        let path = std::env::temp_dir().join(format!("sixway-pid-{}", std::process::id()));
        fs::write(&path, "4194999\n").unwrap();
        let first = PidFile::write(&path, "dhcp6s", "next").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        let said = PidFile::write(&path, "dhcp6s", "next").err().unwrap().to_string();
        assert!(said.starts_with("another dhcp6s") && said.ends_with("; next"), "{said}");
        drop(first);
        assert!(!path.exists());
        // What somebody else has put there stays.
        let own = PidFile::write(&path, "dhcp6s", "next").unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "1\n").unwrap();
        drop(own);
        assert!(path.exists());
        fs::remove_file(&path).unwrap();
        let said = format!("{:#}", PidFile::write(Path::new("/nonexistent/x"), "dhcp6s", "").err().unwrap());
        assert!(said.contains("-P"), "{said}");
    }

    #[test]
    fn a_server_without_a_lock_is_known_by_its_command_line() {
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert!(is_server(&words("/usr/sbin/dhcp6s eth1"), "dhcp6s"));
        assert!(is_server(&words("sixway dhcp6s -f eth1"), "dhcp6s"));
        assert!(!is_server(&words("vi -R dhcp6s"), "dhcp6s"));
        let path = std::env::temp_dir().join(format!("sixway-pid-other-{}", std::process::id()));
        // Not a server, but one by its name.
        let mut other = std::process::Command::new("sleep").arg("30").spawn().unwrap();
        while command(other.id()).is_none() {
            std::thread::yield_now();
        }
        fs::write(&path, format!("{}\n", other.id())).unwrap();
        let said = PidFile::write(&path, "sleep", "next").err().unwrap().to_string();
        assert!(said.contains(&format!("process {} (sleep 30)", other.id())), "{said}");
        assert!(PidFile::write(&path, "dhcp6s", "next").is_ok(), "its number was given to another program");
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
