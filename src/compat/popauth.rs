//! `pop.auth`, the database of APOP secrets that dtcps shares with qpopper, as the text that `db_dump` makes of it.
//!
//! The database itself is a hash file of Berkeley DB 1.85, for which no reader is kept in Rust; `db_dump185 -p pop.auth.db`
//! (or `db_dump`) writes this text, and `db_load -T -t hash` makes a database of it again. One record a user: the key is
//! the name and a zero; the value is the secret with every bit turned over, and one or two zeros (qpopper before 4 and
//! since). That is no encryption: whoever reads the file has the secrets.

use std::collections::BTreeMap;
use std::fmt::Write;

use zeroize::Zeroizing;

/// The most users in it.
pub const MAX_USERS: usize = 1 << 20;

/// Users with their secrets, sorted by name. Secrets are overwritten when they go.
#[derive(Default)]
pub struct PopAuth {
    secrets: BTreeMap<String, Zeroizing<Vec<u8>>>,
}

impl std::fmt::Debug for PopAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PopAuth({} users)", self.secrets.len())
    }
}

/// Why a text is no such dump.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PopAuthError {
    /// It is the database, not a dump of it.
    #[error(
        "this is a Berkeley DB file, which is not read here; make a text of it: `db_dump185 -p pop.auth.db > pop.auth.txt` \
         (Debian: db_dump, package db-util), and name that"
    )]
    Binary,
    /// The head is missing or says something unknown.
    #[error(
        "line {0}: this is no dump of a database: 'format=bytevalue' or 'format=print', then 'HEADER=END' are expected"
    )]
    Head(usize),
    /// A line that is no key and no value.
    #[error("line {0}: keys and values begin with a space and hold octets as the head says")]
    Line(usize),
    /// The last value or the end is missing.
    #[error("the dump ends too early: 'DATA=END' is expected; was the whole of it copied?")]
    Cut,
    /// A key that can be no user's name.
    #[error("line {0}: the key is no user name: UTF-8 and a zero behind it")]
    Name(usize),
    /// More users than are read.
    #[error("there are more than {MAX_USERS} users")]
    Full,
}

impl PopAuth {
    /// Reads a dump.
    ///
    /// # Errors
    /// [`PopAuthError`].
    pub fn parse(octets: &[u8]) -> Result<Self, PopAuthError> {
        if is_database(octets) {
            return Err(PopAuthError::Binary);
        }
        let text = std::str::from_utf8(octets).map_err(|_| PopAuthError::Binary)?;
        let mut lines = text.lines().enumerate().map(|(n, line)| (n + 1, line));
        let print = head(&mut lines)?;
        let mut found = Self::default();
        loop {
            let (at, line) = lines.next().ok_or(PopAuthError::Cut)?;
            if line == "DATA=END" {
                return Ok(found);
            }
            let (value_at, value) = lines.next().ok_or(PopAuthError::Cut)?;
            let key = datum(line, print).ok_or(PopAuthError::Line(at))?;
            let value = datum(value, print).ok_or(PopAuthError::Line(value_at))?;
            let name = name(&key).ok_or(PopAuthError::Name(at))?;
            found.secrets.insert(name, turned(&value));
            if found.secrets.len() > MAX_USERS {
                return Err(PopAuthError::Full);
            }
        }
    }

    /// The dump: what [`Self::parse`] and `db_load` read.
    pub fn emit(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new("VERSION=3\nformat=bytevalue\ntype=hash\nHEADER=END\n".to_owned());
        for (user, secret) in &self.secrets {
            hex_line(&mut text, user.as_bytes().iter().copied());
            hex_line(&mut text, secret.iter().map(|octet| !octet));
        }
        text.push_str("DATA=END\n");
        text
    }

    /// All users with their secrets.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.secrets.iter().map(|(user, secret)| (user.as_str(), secret.as_slice()))
    }

    /// Sets a user's secret; whether there was one before.
    pub fn set(&mut self, user: &str, secret: Zeroizing<Vec<u8>>) -> bool {
        self.secrets.insert(user.to_owned(), secret).is_some()
    }

    /// Forgets a user; whether there was one.
    pub fn remove(&mut self, user: &str) -> bool {
        self.secrets.remove(user).is_some()
    }
}

/// The first octets of a hash file of Berkeley DB 1.85, in either byte order; later versions have them at octet 12.
fn is_database(octets: &[u8]) -> bool {
    let magic = [[0x00, 0x06, 0x15, 0x61], [0x61, 0x15, 0x06, 0x00]];
    [0, 12].iter().filter_map(|at| octets.get(*at..at + 4)).any(|four| magic.iter().any(|m| m == four))
}

/// Reads up to the head's end; whether printable octets stand for themselves.
fn head<'t>(lines: &mut impl Iterator<Item = (usize, &'t str)>) -> Result<bool, PopAuthError> {
    let mut print = None;
    for (at, line) in lines {
        match line {
            "format=bytevalue" => print = Some(false),
            "format=print" => print = Some(true),
            "HEADER=END" => return print.ok_or(PopAuthError::Head(at)),
            // What else it may say (VERSION, type, h_nelem ...) is about the file that it came from.
            _ if line.contains('=') => {}
            _ => return Err(PopAuthError::Head(at)),
        }
    }
    Err(PopAuthError::Cut)
}

fn datum(line: &str, print: bool) -> Option<Zeroizing<Vec<u8>>> {
    let text = line.strip_prefix(' ')?.as_bytes();
    let mut octets = Zeroizing::new(Vec::with_capacity(text.len()));
    let mut at = 0;
    while let Some(first) = text.get(at) {
        at += 1;
        match (print, first, text.get(at)) {
            (true, b'\\', Some(b'\\')) => {
                octets.push(b'\\');
                at += 1;
            }
            (true, b'\\', _) => {
                octets.push(hex_octet(text.get(at..at + 2)?)?);
                at += 2;
            }
            (true, octet, _) => octets.push(*octet),
            (false, _, _) => {
                octets.push(hex_octet(text.get(at - 1..at + 1)?)?);
                at += 1;
            }
        }
    }
    Some(octets)
}

fn hex_octet(two: &[u8]) -> Option<u8> {
    let digits = two.iter().all(u8::is_ascii_hexdigit).then_some(two)?;
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

fn hex_line(text: &mut String, octets: impl Iterator<Item = u8>) {
    text.push(' ');
    for octet in octets.chain([0]) {
        let _infallible = write!(text, "{octet:02x}");
    }
    text.push('\n');
}

fn name(key: &[u8]) -> Option<String> {
    let name = without_zeros(key);
    let name = std::str::from_utf8(name).ok().filter(|name| !name.is_empty() && name.len() < key.len())?;
    (!name.contains(char::is_control)).then(|| name.to_owned())
}

fn turned(value: &[u8]) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(without_zeros(value).iter().map(|octet| !octet).collect())
}

fn without_zeros(octets: &[u8]) -> &[u8] {
    let end = octets.iter().rposition(|octet| *octet != 0).map_or(0, |last| last + 1);
    &octets[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn users(text: &str) -> Vec<(String, String)> {
        let parsed = PopAuth::parse(text.as_bytes()).unwrap();
        parsed.iter().map(|(u, s)| (u.to_owned(), String::from_utf8_lossy(s).into_owned())).collect()
    }

    #[test]
    fn both_forms_and_both_ends_are_read() {
        let hex =
            "VERSION=2\nformat=bytevalue\ntype=hash\nh_nelem=2\nHEADER=END\n 666f6f00\n 9d9e8d00\nDATA=END\n";
        assert_eq!(users(hex), [("foo".to_owned(), "bar".to_owned())]);
        let later = "format=print\nHEADER=END\n foo\\00\n \\9d\\9e\\8d\\00\\00\n a\\00\n \\5c\\5c\\\\\\00\nDATA=END\n";
        let found = PopAuth::parse(later.as_bytes()).unwrap();
        let all: Vec<_> = found.iter().collect();
        assert_eq!(all, [("a", &[!0x5c, !0x5c, !0x5c][..]), ("foo", b"bar")]);
    }

    #[test]
    fn what_it_writes_it_reads() {
        let mut all = PopAuth::default();
        assert!(!all.set("foo", Zeroizing::new(b"bar".to_vec())));
        assert!(all.set("foo", Zeroizing::new(b"baz".to_vec())));
        all.set("alice", Zeroizing::new("pässword".into()));
        assert!(all.emit().contains("\n 666f6f00\n 9d9e8500\n"), "{:?}", all.emit());
        assert_eq!(users(&all.emit()).len(), 2);
        assert!(all.remove("foo") && !all.remove("foo"));
        assert_eq!(users(&all.emit()), [("alice".to_owned(), "pässword".to_owned())]);
    }

    #[test]
    fn a_database_says_what_to_do() {
        let old = PopAuth::parse(&[0x61, 0x15, 0x06, 0x00, 2, 0, 0, 0]).unwrap_err();
        assert!(old.to_string().contains("db_dump185"), "{old}");
        let mut later = [0; 64];
        later[12..16].copy_from_slice(&[0x00, 0x06, 0x15, 0x61]);
        assert_eq!(PopAuth::parse(&later).unwrap_err(), PopAuthError::Binary);
    }

    #[test]
    fn mistakes_are_named_with_their_lines() {
        let wrong = |text: &str| PopAuth::parse(text.as_bytes()).unwrap_err();
        let head = "format=bytevalue\nHEADER=END\n";
        assert_eq!(wrong(""), PopAuthError::Cut);
        assert_eq!(wrong("root:x:0\n"), PopAuthError::Head(1));
        assert_eq!(wrong("HEADER=END\n"), PopAuthError::Head(1));
        assert_eq!(wrong(head), PopAuthError::Cut);
        assert_eq!(wrong(&format!("{head} 666f6f00\n")), PopAuthError::Cut);
        assert_eq!(wrong(&format!("{head}666f6f00\n 00\n")), PopAuthError::Line(3));
        assert_eq!(wrong(&format!("{head} 666f6f00\n 0g\n")), PopAuthError::Line(4));
        assert_eq!(wrong(&format!("{head} 666f6\n 00\n")), PopAuthError::Line(3));
        assert_eq!(wrong(&format!("{head} 666f6f\n 00\n")), PopAuthError::Name(3));
        assert_eq!(wrong(&format!("{head} 00\n 00\n")), PopAuthError::Name(3));
    }

    #[test]
    fn secrets_are_not_printed() {
        let mut all = PopAuth::default();
        all.set("foo", Zeroizing::new(b"hush".to_vec()));
        assert_eq!(format!("{all:?}"), "PopAuth(1 users)");
    }

    proptest! {
        #[test]
        fn any_octets_are_read_or_refused(octets in prop::collection::vec(any::<u8>(), 0..200)) {
            let _either = PopAuth::parse(&octets);
        }

        #[test]
        fn any_records_come_back(all in prop::collection::btree_map("[a-z]{1,9}", "[ -~]{1,20}", 0..9)) {
            let mut made = PopAuth::default();
            for (user, secret) in &all {
                made.set(user, Zeroizing::new(secret.clone().into()));
            }
            let read: BTreeMap<String, String> = users(&made.emit()).into_iter().collect();
            prop_assert_eq!(read, all);
        }

        #[test]
        fn any_lines_are_read_or_refused(rest in "[ 0-9a-f\\\\\nDATAEN=]{0,120}", print: bool) {
            let form = if print { "print" } else { "bytevalue" };
            let _either = PopAuth::parse(format!("format={form}\nHEADER=END\n{rest}").as_bytes());
        }
    }
}
