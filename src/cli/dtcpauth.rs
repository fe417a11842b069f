//! `dtcpauth`: users and passwords of the file `pop.auth`, which `dtcps` reads beside the store.
//!
//! Takes qpopauth's words too (`-init`, `-user NAME`, `-delete NAME`, `-list`). The file is the text that `db_dump` makes
//! of qpopper's database; a running server sees changes within two seconds.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{ArgGroup, Args};

use super::password;
use super::print_line;
use crate::broker::{Secret, UserName};
use crate::compat::accounts::merge;
use crate::compat::dtcps::POPAUTH;
use crate::compat::popauth::PopAuth;
use crate::compat::routetable::RouteTable;

/// Arguments of `dtcpauth`.
#[derive(Debug, Args)]
#[command(
    disable_version_flag = true,
    group = ArgGroup::new("what").required(true),
    after_help = "Make the file out of qpopper's database:  db_dump185 -p pop.auth.db > pop.auth   (or db_dump)\nMake a database of it again:               db_load -f pop.auth -t hash pop.auth.db\nThe passwords in it are turned over bit by bit, which is no encryption: whoever reads it has them.\nBeyond qpopauth: --file, --password-file, --export, --yes, and the user's name for --user from `sixway user` (A-Z a-z 0-9 . _ - + @)."
)]
pub struct DtcpauthArgs {
    /// Make an empty file; one that is there is emptied only after a question
    #[arg(long, group = "what")]
    init: bool,
    /// Add this user, or give a new password to one who is there
    #[arg(long, value_name = "NAME", group = "what")]
    user: Option<String>,
    /// Remove this user
    #[arg(long, value_name = "NAME", group = "what")]
    delete: Option<String>,
    /// List all users
    #[arg(long, group = "what")]
    list: bool,
    /// Print all users WITH THEIR PASSWORDS, for `sixway user import -`
    #[arg(long, group = "what")]
    export: bool,
    /// With --export: take prefixes and interfaces from this route table
    #[arg(long, value_name = "FILE", requires = "export")]
    routetable: Option<PathBuf>,
    /// The file
    #[arg(long, value_name = "FILE", default_value = POPAUTH)]
    file: PathBuf,
    /// With --user: read the password from this file, or from standard input (-), instead of asking
    #[arg(long, value_name = "FILE", requires = "user")]
    password_file: Option<PathBuf>,
    /// With --init: do not ask
    #[arg(long, requires = "init")]
    yes: bool,
}

/// qpopauth's words are long ones behind one dash.
pub fn long_words(argument: String) -> String {
    match argument.as_str() {
        "-init" | "-user" | "-delete" | "-list" => format!("-{argument}"),
        _ => argument,
    }
}

/// Does what is asked with the file.
pub fn run(args: &DtcpauthArgs) -> anyhow::Result<()> {
    if args.init {
        return init(args);
    }
    // Asked for before anybody else has to wait.
    let new = args.user.as_deref().map(|user| asked(user, args.password_file.as_deref())).transpose()?;
    // Until the end: two at the same time lose nobody.
    let _turn = if args.list || args.export { None } else { Some(turn(&args.file)?) };
    let mut all = load(&args.file)?;
    if args.list {
        all.iter().for_each(|(user, _)| print_line(user));
        return Ok(());
    }
    if args.export {
        return export(&all, args.routetable.as_deref());
    }
    if let Some(user) = &args.delete {
        if !all.remove(user) {
            bail!("there is no user '{user}' in {}; --list names all", args.file.display());
        }
        return save(&args.file, &all);
    }
    let Some((name, secret)) = new else { return Ok(()) };
    let was_there = all.set(name.as_str(), zeroize::Zeroizing::new(secret.expose().to_vec()));
    save(&args.file, &all)?;
    print_line(&format!("{}: {name}", if was_there { "changed" } else { "added" }));
    Ok(())
}

fn init(args: &DtcpauthArgs) -> anyhow::Result<()> {
    let file = &args.file;
    if file.exists()
        && !args.yes
        && !password::agree(&format!("{} exists; empty it? [y/N] ", file.display()))?
    {
        bail!("{} stays as it is", file.display());
    }
    if let Some(folder) = file.parent().filter(|folder| !folder.exists()) {
        let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(folder);
        made.with_context(|| {
            format!("cannot make {}; run as root, or name another --file", folder.display())
        })?;
    }
    save(file, &PopAuth::default())
}

/// One line a user, in the form that `sixway user import` reads.
fn export(all: &PopAuth, routetable: Option<&Path>) -> anyhow::Result<()> {
    let table = match routetable {
        None => RouteTable::default(),
        Some(file) => {
            let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
            RouteTable::parse(&text).map_err(|mistakes| {
                let all: Vec<String> =
                    mistakes.iter().map(|one| format!("{}: {one}", file.display())).collect();
                anyhow::anyhow!(all.join("\n"))
            })?
        }
    };
    let (accounts, notes) = merge(Vec::new(), all, &table);
    notes.iter().for_each(|note| eprintln!("dtcpauth: {note}"));
    for account in accounts {
        let Some(word) = std::str::from_utf8(account.secret.expose())
            .ok()
            .filter(|word| !word.contains(char::is_whitespace))
        else {
            eprintln!(
                "dtcpauth: the password of '{}' has a space in it; add this user by hand",
                account.name
            );
            continue;
        };
        let prefixes: Vec<String> = account.prefixes.iter().map(ToString::to_string).collect();
        let prefixes = if prefixes.is_empty() { "-".to_owned() } else { prefixes.join(",") };
        let pair = account.pair.map(|n| format!(" {n}")).unwrap_or_default();
        print_line(&zeroize::Zeroizing::new(format!("{} {word} {prefixes}{pair}", account.name)));
    }
    Ok(())
}

/// The user's name and the new password.
fn asked(user: &str, file: Option<&Path>) -> anyhow::Result<(UserName, Secret)> {
    let name = UserName::parse(user)?;
    let secret = match file {
        Some(file) => password::from_file(file)?,
        None => password::ask_twice(&format!("New password for {name}: "))?,
    };
    Ok((name, Secret::parse(secret)?))
}

/// Waits until nobody else changes the file. Whoever did has put another one in its place: then that one is waited for.
fn turn(file: &Path) -> anyhow::Result<fs::File> {
    let told = |why: std::io::Error| unreadable(file, &why);
    loop {
        let held = fs::File::open(file).map_err(told)?;
        held.lock().map_err(told)?;
        let number = |found: &fs::Metadata| std::os::unix::fs::MetadataExt::ino(found);
        if number(&held.metadata().map_err(told)?) == number(&fs::metadata(file).map_err(told)?) {
            return Ok(held);
        }
    }
}

fn unreadable(file: &Path, why: &std::io::Error) -> anyhow::Error {
    let next = if why.kind() == ErrorKind::NotFound { "`dtcpauth --init` makes it" } else { "run as root" };
    anyhow::anyhow!("cannot read {}: {why}; {next}", file.display())
}

fn load(file: &Path) -> anyhow::Result<PopAuth> {
    let octets = fs::read(file).map_err(|why| unreadable(file, &why))?;
    PopAuth::parse(&zeroize::Zeroizing::new(octets)).with_context(|| file.display().to_string())
}

/// Puts the new file in the place of the old one in one step: whoever reads sees one of the two.
fn save(file: &Path, all: &PopAuth) -> anyhow::Result<()> {
    let mut beside = file.as_os_str().to_owned();
    beside.push(format!(".{}", std::process::id()));
    let beside = PathBuf::from(beside);
    let write = || {
        let mut new = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        new.write_all(all.emit().as_bytes())?;
        new.sync_all()?;
        // Whoever may read the old one may read the new one.
        if let Ok(old) = fs::metadata(file) {
            new.set_permissions(old.permissions())?;
            std::os::unix::fs::fchown(&new, Some(old_owner(&old)), Some(old_group(&old)))?;
        }
        fs::rename(&beside, file)
    };
    let done: std::io::Result<()> = write();
    if done.is_err() {
        let _never_made = fs::remove_file(&beside);
    }
    done.with_context(|| format!("cannot write {}; run as root, or name another --file", file.display()))
}

fn old_owner(old: &fs::Metadata) -> u32 {
    std::os::unix::fs::MetadataExt::uid(old)
}

fn old_group(old: &fs::Metadata) -> u32 {
    std::os::unix::fs::MetadataExt::gid(old)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qpopauth_s_words_are_understood() {
        let words =
            ["dtcpauth", "-init", "-user", "-delete", "-list", "-x"].map(str::to_owned).map(long_words);
        assert_eq!(words, ["dtcpauth", "--init", "--user", "--delete", "--list", "-x"]);
    }
}
