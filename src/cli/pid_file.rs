//! The file that says which process a server is: one process at a time has it, from before anything else is opened until the
//! end.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// How often another process may take the file away while it is opened.
const TRIES: usize = 8;

/// The file, locked; removed when this is dropped.
pub(super) struct PidFile {
    path: PathBuf,
    /// Locked as long as it is open.
    file: File,
    /// Whether it is a file: a device or a pipe is written to, and otherwise left alone.
    is_file: bool,
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
        let number = format!("{}\n", std::process::id());
        if fs::metadata(path).is_ok_and(|at| !at.is_file() && !at.is_dir()) {
            let mut file = OpenOptions::new().write(true).open(path).with_context(unwritten)?;
            file.write_all(number.as_bytes()).with_context(unwritten)?;
            return Ok(Self { path: path.to_owned(), file, is_file: false });
        }
        let (mut file, is_held) = locked(path).with_context(unwritten)?;
        let mut text = String::new();
        let _what_makes_no_sense_is_nobody = file.read_to_string(&mut text);
        let pid = text.trim().parse::<u32>().ok().filter(|pid| *pid != std::process::id());
        let command = pid.and_then(command);
        let is_named = command.as_ref().is_some_and(|words| is_server(words, name));
        // Other programs do not lock it. Where the number is of one of ours, which does, it was somebody else's before.
        if is_held || is_named && pid.is_some_and(|pid| !is_ours(pid)) {
            let who = pid.map_or(String::new(), |pid| format!(", process {pid}"));
            let words = command.map_or(String::new(), |words| format!(" ({})", words.join(" ")));
            bail!("another {name}{who}{words}, has {}; {next}", path.display());
        }
        file.rewind().and_then(|()| file.set_len(0)).with_context(unwritten)?;
        file.write_all(number.as_bytes()).with_context(unwritten)?;
        // Now that it is locked anybody may read it.
        file.set_permissions(Permissions::from_mode(0o644)).with_context(unwritten)?;
        Ok(Self { path: path.to_owned(), file, is_file: true })
    }
}

/// The file as it is at the path, and whether another server has it; if not, it is locked.
///
/// Servers lock it to write, which nobody can who may only read it. Who reads can lock it against writers, though not while
/// a server has it: so a file that is locked that way is nobody's, and another one takes its place.
fn locked(path: &Path) -> io::Result<(File, bool)> {
    for _ in 0..TRIES {
        let mut how = OpenOptions::new();
        let file = how.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let lock = lock(&file)?;
        // Whoever ends takes it away, perhaps between the opening and the locking.
        if !fs::metadata(path).is_ok_and(|at| is_same(&at, &file)) {
            continue;
        }
        match lock {
            Lock::Ours => return Ok((file, false)),
            Lock::Server => return Ok((file, true)),
            Lock::Reader => fs::remove_file(path)?,
        }
    }
    Err(io::Error::other("others lock it or take it away again and again"))
}

/// Who has the file.
enum Lock {
    Ours,
    Server,
    Reader,
}

/// Locks the file for as long as it is open, here or in a child.
fn lock(file: &File) -> io::Result<Lock> {
    let mut whole = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    match fcntl(file, FcntlArg::F_OFD_SETLK(&whole)) {
        Ok(_) => return Ok(Lock::Ours),
        Err(Errno::EAGAIN | Errno::EACCES) => {}
        Err(why) => return Err(why.into()),
    }
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut whole))?;
    let is_read = i32::from(whole.l_type) == libc::F_RDLCK;
    Ok(if is_read { Lock::Reader } else { Lock::Server })
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

/// Whether a process runs this program, of whatever version; not where that cannot be seen.
fn is_ours(pid: u32) -> bool {
    let program = |of: &str| {
        let path = fs::read_link(format!("/proc/{of}/exe")).ok()?;
        let name = path.file_name()?.to_str()?;
        // So the kernel names one that has been replaced since.
        Some(name.strip_suffix(" (deleted)").unwrap_or(name).to_owned())
    };
    let other = program(&pid.to_string());
    other.is_some() && other == program("self")
}

/// Whether a command line is of this server: by its own name, or as the first argument.
fn is_server(words: &[String], name: &str) -> bool {
    let is_named = |word: &String| Path::new(word).file_name().is_some_and(|last| last == name);
    words.iter().take(2).any(is_named)
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // One that somebody has put there since is not ours to remove.
        if self.is_file && fs::metadata(&self.path).is_ok_and(|at| is_same(&at, &self.file)) {
            let _gone_or_not = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;

    use super::*;

    #[test]
    fn a_device_is_written_to_by_as_many_as_like_and_stays() {
        let open = || PidFile::write(Path::new("/dev/null"), "dhcp6s", "next").unwrap();
        drop((open(), open()));
        assert!(Path::new("/dev/null").exists());
    }

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
    fn a_number_that_is_another_of_ours_now_is_nobodys() {
        let path = std::env::temp_dir().join(format!("sixway-pid-again-{}", std::process::id()));
        // A program of this one's name, started by another.
        let own = std::env::current_exe().unwrap();
        let own = own.file_name().unwrap().to_str().unwrap();
        let folder = std::env::temp_dir().join(format!("sixway-pid-exe-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::copy("/bin/sleep", folder.join(own)).unwrap();
        let mut other = std::process::Command::new(folder.join(own)).arg0("sleep").arg("30").spawn().unwrap();
        while command(other.id()).is_none_or(|words| !is_server(&words, "sleep")) {
            std::thread::yield_now();
        }
        fs::write(&path, format!("{}\n", other.id())).unwrap();
        let first = PidFile::write(&path, "sleep", "next");
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(first.is_ok(), "{}", first.err().unwrap());
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn who_may_only_read_it_keeps_no_server_from_it() {
        let path = std::env::temp_dir().join(format!("sixway-pid-read-{}", std::process::id()));
        fs::write(&path, "").unwrap();
        let reader = File::open(&path).unwrap();
        reader.lock().unwrap();
        let mut read = libc::flock {
            l_type: libc::F_RDLCK as libc::c_short,
            l_whence: 0,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        fcntl(&reader, FcntlArg::F_OFD_SETLK(&read)).unwrap();
        let first = PidFile::write(&path, "dhcp6s", "next").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o644);
        let late = File::open(&path).unwrap();
        assert_eq!(fcntl(&late, FcntlArg::F_OFD_SETLK(&read)), Err(Errno::EAGAIN));
        read.l_type = libc::F_WRLCK as libc::c_short;
        assert_eq!(fcntl(&late, FcntlArg::F_OFD_SETLK(&read)), Err(Errno::EBADF));
        assert!(PidFile::write(&path, "dhcp6s", "next").is_err(), "it has one");
        drop(first);
        assert!(!path.exists());
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
