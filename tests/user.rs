//! `sixway user`, as operators call it: what it says, what it keeps, and what it never shows.

#![expect(clippy::unwrap_used, reason = "a test has nobody to return an error to")]

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use sixway::broker::{Account, Mechanism, Mechanisms, UserName};
use sixway::store::{Sqlite, Store};

struct Desk(PathBuf);

impl Desk {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("sixway-user-{name}-{}", std::process::id()));
        let _there_may_be_none = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        let desk = Self(folder);
        let config = format!("[store]\npath = \"{}\"\n", desk.0.join("six0.db").display());
        std::fs::write(desk.0.join("sixway.toml"), config).unwrap();
        desk
    }

    /// Calls `sixway user` with these words and this standard input: whether it went well, and all that it said.
    fn user(&self, words: &[&str], input: &str) -> (bool, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sixway"));
        command.arg("user").args(words).arg("--config").arg(self.0.join("sixway.toml"));
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn().unwrap();
        // A command that refuses before it reads closes the pipe.
        let _it_may_not_listen = child.stdin.take().unwrap().write_all(input.as_bytes());
        let out = child.wait_with_output().unwrap();
        let said = [out.stdout, out.stderr].concat();
        (out.status.success(), String::from_utf8(said).unwrap())
    }

    #[track_caller]
    fn done(&self, words: &[&str], input: &str) -> String {
        let (went_well, said) = self.user(words, input);
        assert!(went_well, "{words:?}: {said}");
        said
    }

    #[track_caller]
    fn refused(&self, words: &[&str], input: &str, because: &str) {
        let (went_well, said) = self.user(words, input);
        assert!(!went_well && said.contains(because), "{words:?}: {said}");
    }

    fn account(&self, name: &str) -> Option<Account> {
        let accounts = Sqlite::open_beside(&self.0.join("six0.db")).unwrap().load().unwrap().accounts;
        accounts.into_iter().find(|account| account.name == UserName::parse(name).unwrap())
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        let _it_may_be_gone = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_made_secret_is_printed_once_and_never_again() {
    let desk = Desk::new("made");
    let said = desk.done(&["add", "alice"], "");
    let secret = said.lines().find_map(|line| line.strip_prefix("secret: ")).unwrap().to_owned();
    assert_eq!(desk.account("alice").unwrap().secret.expose(), secret.as_bytes());
    assert!(secret.len() >= 20 && !desk.done(&["list"], "").contains(&secret));
    desk.refused(&["add", "alice"], "", "already");
    let said = desk.done(&["passwd", "alice"], "");
    assert!(said.contains("secret: ") && !said.contains(&secret));
}

#[test]
fn a_given_secret_is_not_printed_at_all() {
    let desk = Desk::new("given");
    let said = desk.done(
        &["add", "bob", "--secret-file", "-", "--prefix", "2001:db8:7::/48", "--interface", "3"],
        "hush\n",
    );
    assert!(!said.contains("hush"), "{said}");
    let bob = desk.account("bob").unwrap();
    assert_eq!((bob.secret.expose(), bob.pair), (&b"hush"[..], Some(3)));
    assert_eq!(bob.prefixes, ["2001:db8:7::/48".parse().unwrap()]);
    let file = desk.0.join("secret");
    std::fs::write(&file, "quiet\r\n").unwrap();
    desk.done(&["passwd", "bob", "--secret-file", &file.to_string_lossy()], "");
    let bob = desk.account("bob").unwrap();
    assert_eq!((bob.secret.expose(), bob.pair), (&b"quiet"[..], Some(3)), "only the secret has changed");
    let list = desk.done(&["list"], "");
    assert!(list.contains("bob") && list.contains("2001:db8:7::/48") && !list.contains("quiet"), "{list}");
}

#[test]
fn what_cannot_be_is_refused_with_the_reason() {
    let desk = Desk::new("refused");
    desk.refused(&["add", "no name"], "", "a user name has");
    desk.refused(&["add", "bob", "--secret-file", "-"], "\n", "a secret has");
    desk.refused(&["add", "bob", "--secret-file", "/nowhere"], "", "cannot read /nowhere");
    desk.refused(&["add", "bob", "--prefix", "2001:db8::1/48"], "", "did you mean '2001:db8::/48'");
    desk.refused(&["add", "bob", "--prefix", "::/0"], "", "too much");
    desk.refused(&["del", "bob"], "", "no user 'bob'");
    desk.refused(&["passwd", "bob"], "", "no user 'bob'");
    desk.done(&["add", "alice", "--prefix", "2001:db8:7::/48"], "");
    desk.refused(&["add", "bob", "--prefix", "2001:db8:7:1::/64"], "", "meets 2001:db8:7::/48 of 'alice'");
    assert_eq!(desk.account("bob"), None);
    desk.done(&["del", "alice"], "");
    assert_eq!(desk.account("alice"), None);
    assert!(desk.done(&["list"], "").contains("no users"));
}

#[test]
fn many_are_imported_at_once_or_not_at_all() {
    let desk = Desk::new("import");
    let lines = "# old server\nalice hush 2001:db8:1::/48,2001:db8:2::/56 13\n\nbob  word -\ncarol x\n";
    desk.refused(&["import", "-"], &format!("{lines}dave\n"), "-:6");
    desk.refused(&["import", "-"], &format!("{lines}dave y 2001:db8:1:2::/64\n"), "of 'alice'");
    assert_eq!(desk.account("alice"), None, "nothing of a file with a mistake");
    assert!(desk.done(&["import", "-"], lines).contains("added: 3"));
    let alice = desk.account("alice").unwrap();
    assert_eq!((alice.prefixes.len(), alice.pair), (2, Some(13)));
    desk.refused(&["import", "-"], lines, "already");
}

#[test]
fn how_a_user_may_log_in_is_the_operator_s_to_say() {
    let desk = Desk::new("mechanisms");
    desk.done(&["add", "alice"], "");
    desk.done(&["add", "bob", "--mechanisms", "scram-sha-256,digest-md5"], "");
    assert!(desk.account("alice").unwrap().mechanisms.is_any());
    let bob = desk.account("bob").unwrap().mechanisms;
    assert!(bob.allow(Mechanism::DigestMd5) && !bob.allow(Mechanism::Plain) && !bob.allow(Mechanism::Apop));
    assert!(desk.done(&["list"], "").contains("scram-sha-256,digest-md5"));
    desk.done(&["mechanisms", "bob", "any"], "");
    assert_eq!(desk.account("bob").unwrap().mechanisms, Mechanisms::ANY);
    desk.refused(&["add", "eve", "--mechanisms", "md5"], "", "known are");
    desk.refused(&["mechanisms", "eve", "any"], "", "no user 'eve'");
}

#[test]
fn a_store_of_the_first_format_is_brought_up_to_date() {
    let desk = Desk::new("format");
    let said = desk.done(&["add", "alice", "--prefix", "2001:db8:7::/48"], "");
    let path = desk.0.join("six0.db");
    let old = rusqlite::Connection::open(&path).unwrap();
    old.execute_batch(
        "ALTER TABLE account DROP COLUMN mechanisms; ALTER TABLE lease DROP COLUMN keepalive; \
         ALTER TABLE lease DROP COLUMN claimed; DROP TABLE binding; PRAGMA user_version = 1",
    )
    .unwrap();
    drop(old);
    let alice = desk.account("alice").unwrap();
    assert!(alice.mechanisms.is_any() && alice.prefixes.len() == 1 && said.contains("secret: "));
    desk.done(&["mechanisms", "alice", "apop"], "");
    assert!(!desk.account("alice").unwrap().mechanisms.is_any());
}

#[test]
fn what_dtcpauth_exports_is_imported() {
    let desk = Desk::new("export");
    let (file, table) = (desk.0.join("pop.auth"), desk.0.join("routetable"));
    let users =
        "format=bytevalue\ntype=hash\nHEADER=END\n 666f6f00\n 9d9e8d0000\n 65766500\n 9a899a00\nDATA=END\n";
    std::fs::write(&file, users).unwrap();
    std::fs::write(&table, "foo 2001:db8:7::/48,2001:db8:8::/48 gif12\neve -\n").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sixway"));
    command.args(["dtcpauth", "--export", "--file"]).arg(&file).arg("--routetable").arg(&table);
    let out = command.output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let lines = String::from_utf8(out.stdout).unwrap();
    assert!(desk.done(&["import", "-"], &lines).contains("added: 2"), "{lines}");
    let (foo, eve) = (desk.account("foo").unwrap(), desk.account("eve").unwrap());
    assert_eq!((foo.secret.expose(), foo.prefixes.len(), foo.pair), (&b"bar"[..], 2, Some(12)));
    assert_eq!((eve.secret.expose(), eve.prefixes.len(), eve.pair), (&b"eve"[..], 0, None));
}

#[test]
fn commands_at_the_same_time_give_nothing_away_twice() {
    let desk = Desk::new("crowd");
    let added = std::thread::scope(|scope| {
        let one = |n: u32| {
            let desk = &desk;
            scope.spawn(move || desk.user(&["add", &format!("u{n}"), "--prefix", "2001:db8:7::/48"], "").0)
        };
        let all: Vec<_> = (0..8).map(one).collect();
        all.into_iter().filter_map(|one| one.join().ok().filter(|added| *added)).count()
    });
    assert_eq!(added, 1, "a prefix is one user's alone: {}", desk.done(&["list"], ""));
}

#[test]
fn dtcpauth_at_the_same_time_loses_nobody() {
    let desk = Desk::new("turns");
    let file = desk.0.join("pop.auth");
    let dtcpauth = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sixway"));
        let out = command.arg("dtcpauth").args(words).arg("--file").arg(&file).output().unwrap();
        assert!(out.status.success(), "{words:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    };
    dtcpauth(&["--init"]);
    let word = desk.0.join("word");
    std::fs::write(&word, "hush\n").unwrap();
    std::thread::scope(|scope| {
        for n in 0..8 {
            let (dtcpauth, word) = (&dtcpauth, word.to_str().unwrap());
            scope.spawn(move || dtcpauth(&["--user", &format!("u{n}"), "--password-file", word]));
        }
    });
    assert_eq!(dtcpauth(&["--list"]).lines().count(), 8);
}
