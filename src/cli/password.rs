//! Passwords for commands: from a file, or asked at the terminal without showing them. Never from the command line,
//! where every process could read them.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;

use anyhow::{Context, bail, ensure};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use crate::broker::account::MAX_SECRET;
use crate::privileges::told_to_others;

/// Reads a password from a file, or from standard input for `-`; a line end behind it is not part of it.
pub(super) fn from_file(file: &Path) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let name = || format!("cannot read {}", file.display());
    let source: Box<dyn Read> = match file == Path::new("-") {
        true => Box::new(std::io::stdin()),
        false => Box::new(File::open(file).with_context(name)?),
    };
    told_to_others(file).iter().for_each(|said| eprintln!("sixway: {said}"));
    let mut octets = Zeroizing::new(Vec::with_capacity(MAX_SECRET + 4));
    source.take(MAX_SECRET as u64 + 3).read_to_end(&mut octets).with_context(name)?;
    while octets.last().is_some_and(|last| matches!(last, b'\n' | b'\r')) {
        octets.pop();
    }
    ensure!(!octets.is_empty(), "{} is empty; it should hold the password", file.display());
    ensure!(octets.len() <= MAX_SECRET, "{}: a password has at most {MAX_SECRET} octets", file.display());
    Ok(octets)
}

/// Asks at the terminal.
pub(super) fn ask(prompt: &str) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let terminal = terminal()?;
    let _quiet = Quiet::new(&terminal)?;
    let line = prompted(&terminal, prompt)?;
    (&terminal).write_all(b"\n")?;
    Ok(line)
}

/// Asks twice, for a password that nobody can look up again.
pub(super) fn ask_twice(prompt: &str) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let first = ask(prompt)?;
    if *first != *ask("Once more: ")? {
        bail!("the two are not the same; nothing was changed");
    }
    Ok(first)
}

/// Asks a question that is answered by yes or no.
pub(super) fn agree(prompt: &str) -> anyhow::Result<bool> {
    let terminal = terminal()
        .map_err(|_| anyhow::anyhow!("there is no terminal to ask at; say --yes if it is meant"))?;
    let answer = prompted(&terminal, prompt)?;
    Ok(matches!(answer.first(), Some(b'y' | b'Y')))
}

fn terminal() -> anyhow::Result<File> {
    let opened = OpenOptions::new().read(true).write(true).open("/dev/tty");
    opened.context("there is no terminal to ask at; give the password in a file: --password-file FILE (-: standard input)")
}

fn prompted(mut terminal: &File, prompt: &str) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    terminal.write_all(prompt.as_bytes())?;
    let mut line = Zeroizing::new(Vec::with_capacity(MAX_SECRET + 4));
    BufReader::new(terminal).take(MAX_SECRET as u64 + 3).read_until(b'\n', &mut line)?;
    while line.last().is_some_and(|last| matches!(last, b'\n' | b'\r')) {
        line.pop();
    }
    Ok(line)
}

/// A terminal that shows nothing of what is typed, until this is dropped.
struct Quiet<'a> {
    terminal: &'a File,
    before: Termios,
}

impl<'a> Quiet<'a> {
    fn new(terminal: &'a File) -> anyhow::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut quiet = before.clone();
        quiet.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(terminal, SetArg::TCSAFLUSH, &quiet)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        let _nothing_else_to_do = tcsetattr(self.terminal, SetArg::TCSAFLUSH, &self.before);
    }
}
