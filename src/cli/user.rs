//! `sixway user`: the accounts in the store. A running router sees changes within a second.
//!
//! Secrets come from files or standard input, never from the command line, where every process could read them.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};
use rand::RngExt;
use sixway_dataplane::update::Ipv6Prefix;
use zeroize::Zeroizing;

use super::print_line;
use crate::admin::table::columns;
use crate::broker::account::MAX_SECRET;
use crate::broker::roll::Roll;
use crate::broker::{Account, Mechanisms, Memory, Record, Secret, UserName, roll};
use crate::config::{self, Config, DEFAULT_PATH, DEFAULT_TUN};
use crate::store::{Sqlite, Store};

/// The longest file of accounts, in octets.
const MOST_IMPORTED: u64 = 64 * 1024 * 1024;

/// Arguments of `sixway user`.
#[derive(Debug, Args)]
#[command(
    after_help = "Secrets are kept in clear, because the login digests of DTCP and TSP are computed from them: the store is its owner's alone to read (mode 0600); keep its backups so too. A running router sees changes within a second."
)]
pub struct UserArgs {
    #[command(subcommand)]
    what: What,
    /// Configuration file, which names the store
    #[arg(long, short, global = true, value_name = "FILE", default_value = "/etc/sixway/sixway.toml")]
    config: PathBuf,
    /// The store itself, instead of the one in the configuration file
    #[arg(long, global = true, value_name = "FILE")]
    store: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Add a user; without --secret-file a secret is made and printed once
    Add {
        /// 1 to 64 of A-Z a-z 0-9 . _ - + @
        name: String,
        #[command(flatten)]
        secret: SecretArgs,
        /// A network that is this user's alone, instead of one from a pool; may be repeated
        #[arg(long, value_name = "PREFIX")]
        prefix: Vec<String>,
        /// The number of this user's address pair, instead of the next free one
        #[arg(long, value_name = "N")]
        interface: Option<u32>,
        /// How this user may log in: any, or some of scram-sha-256, digest-md5, plain, apop (DTCP), with commas between
        #[arg(long, value_name = "NAMES", default_value = "any")]
        mechanisms: Mechanisms,
    },
    /// Change how a user may log in; tunnels that are up stay
    Mechanisms {
        /// The user
        name: String,
        /// any, or some of scram-sha-256, digest-md5, plain, apop (DTCP), with commas between
        mechanisms: Mechanisms,
    },
    /// Change a user's secret; tunnels that are up stay
    Passwd {
        /// The user
        name: String,
        #[command(flatten)]
        secret: SecretArgs,
    },
    /// Remove a user; a running router ends the tunnels
    Del {
        /// The user
        name: String,
    },
    /// Show all users, without their secrets
    List,
    /// Add many users: one a line, `NAME SECRET [PREFIX,PREFIX|-] [INTERFACE]`; all of them or none
    Import {
        /// The file, or - for standard input
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
struct SecretArgs {
    /// Read the secret from this file, or from standard input (-); a line end behind it is not part of it
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
}

/// Does what is asked with the accounts.
pub fn run(args: &UserArgs) -> anyhow::Result<()> {
    let path = match &args.store {
        Some(path) => path.clone(),
        None => usual_store(&args.config)
            .map_or_else(|| Ok(Config::load(&args.config)?.store.path), Ok::<_, anyhow::Error>)?,
    };
    let mut store = Sqlite::open_beside(&path)?;
    // What is asked for or read from elsewhere is so before anybody else has to wait for us.
    match &args.what {
        What::Add { name, secret, prefix, interface, mechanisms } => {
            let prefixes = prefix.iter().map(|text| parse_prefix(text)).collect::<anyhow::Result<_>>()?;
            let (secret, made) = secret.read()?;
            let name = UserName::parse(name)?;
            let (pair, mechanisms) = (*interface, *mechanisms);
            let account = Account { name, secret: secret.clone(), prefixes, pair, mechanisms };
            change(&mut store, |memory| Ok(vec![Roll::new(memory).add(&account)?]))?;
            print_line(&format!("added: {}", account.name));
            print_made(&secret, made);
            tell_if_idle(args);
        }
        What::Passwd { name, secret } => {
            let (secret, made) = secret.read()?;
            let name = UserName::parse(name)?;
            change(&mut store, |memory| Ok(vec![roll::change_secret(memory, &name, secret.clone())?]))?;
            print_line(&format!("changed: {name}"));
            print_made(&secret, made);
        }
        What::Mechanisms { name, mechanisms } => {
            let name = UserName::parse(name)?;
            change(&mut store, |memory| Ok(vec![roll::change_mechanisms(memory, &name, *mechanisms)?]))?;
            print_line(&format!("changed: {name}"));
        }
        What::Del { name } => {
            let name = UserName::parse(name)?;
            change(&mut store, |memory| Ok(vec![roll::remove(memory, &name)?]))?;
            print_line(&format!("removed: {name}"));
        }
        What::List => {
            list(&store.load()?);
            tell_if_idle(args);
        }
        What::Import { file } => {
            let accounts = parse_accounts(file)?;
            change(&mut store, |memory| import(memory, file, &accounts))?;
            print_line(&format!("added: {}", accounts.len()));
        }
    }
    Ok(())
}

/// Without a configuration file at the usual place: the store that a bare `dtcps` keeps, if there is one.
fn usual_store(config: &Path) -> Option<PathBuf> {
    let store = config::usual_store(DEFAULT_TUN);
    (config == Path::new(DEFAULT_PATH) && !config.exists() && store.exists()).then_some(store)
}

/// A user of a router that gives nothing to anybody will wait in vain.
fn tell_if_idle(args: &UserArgs) {
    let idle = |config: &Config| config.pools.is_empty() && config.dtcp.is_none() && config.tsp.is_none();
    if args.store.is_none() && Config::load(&args.config).is_ok_and(|config| idle(&config)) {
        eprintln!(
            "sixway: {} has no [dtcp], no [tsp] and no [[pool]]: nobody is given anything by a router with it",
            args.config.display()
        );
    }
}

/// Two commands at the same time give nobody's prefix away twice.
fn change(
    store: &mut Sqlite,
    decide: impl FnOnce(&Memory) -> anyhow::Result<Vec<Record>>,
) -> anyhow::Result<()> {
    store.change(|memory| Ok((decide(memory)?, ())))
}

impl SecretArgs {
    /// The secret, and whether it was made up here.
    fn read(&self) -> anyhow::Result<(Secret, bool)> {
        let Some(file) = &self.secret_file else {
            return Ok((Secret::random(rand::rng().random()), true));
        };
        let mut octets = read(file, MAX_SECRET as u64 + 2)?;
        while octets.last().is_some_and(|last| matches!(last, b'\n' | b'\r')) {
            octets.pop();
        }
        Ok((Secret::parse(octets).with_context(|| format!("{}", file.display()))?, false))
    }
}

fn print_made(secret: &Secret, made: bool) {
    if made {
        let text = Zeroizing::new(String::from_utf8_lossy(secret.expose()).into_owned());
        print_line(&Zeroizing::new(format!("secret: {}", *text)));
    }
}

fn read(file: &Path, most: u64) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let name = || format!("cannot read {}", file.display());
    let (source, expected): (Box<dyn Read>, u64) = if file == Path::new("-") {
        (Box::new(std::io::stdin()), 64 * 1024)
    } else {
        let opened = fs::File::open(file).with_context(name)?;
        let len = opened.metadata().with_context(name)?.len();
        (Box::new(opened), len)
    };
    // All room at once: a buffer that grows leaves copies of secrets behind.
    let room = usize::try_from(expected.min(most)).unwrap_or(0) + 64;
    let mut octets = Zeroizing::new(Vec::with_capacity(room));
    source.take(most + 1).read_to_end(&mut octets).with_context(name)?;
    anyhow::ensure!(octets.len() as u64 <= most, "{} has more than {most} octets", file.display());
    Ok(octets)
}

fn parse_prefix(text: &str) -> anyhow::Result<Ipv6Prefix> {
    crate::config::network(text).map_err(|why| anyhow::anyhow!("prefix '{text}': {why}"))
}

fn list(memory: &Memory) {
    if memory.accounts.is_empty() {
        return print_line("no users; `sixway user add NAME` adds one");
    }
    let mut rows = vec![["USER", "PREFIXES", "INTERFACE", "LOGIN BY", "TUNNELS"].map(str::to_owned).to_vec()];
    for account in &memory.accounts {
        let prefixes: Vec<_> = account.prefixes.iter().map(ToString::to_string).collect();
        let own = memory.leases.iter().filter(|lease| lease.grant.user == account.name);
        let tunnels: Vec<_> = own.map(|lease| lease.grant.name.to_string()).collect();
        rows.push(vec![
            account.name.to_string(),
            or_dash(prefixes.join(" ")),
            account.pair.map_or_else(|| "-".to_owned(), |n| n.to_string()),
            account.mechanisms.to_string(),
            or_dash(tunnels.join(" ")),
        ]);
    }
    columns(&rows, &[2]).iter().for_each(|line| print_line(line));
}

fn or_dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}

/// All accounts of the file with their lines, or the first line that is wrong.
fn parse_accounts(file: &Path) -> anyhow::Result<Vec<(usize, Account)>> {
    let octets = read(file, MOST_IMPORTED)?;
    let text = std::str::from_utf8(&octets).with_context(|| format!("{} is no text", file.display()))?;
    let mut accounts = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        accounts.push((n + 1, parse_account(line).with_context(|| place(file, n + 1))?));
    }
    Ok(accounts)
}

fn place(file: &Path, line: usize) -> String {
    format!("{}:{line}", file.display())
}

/// The accounts as records, or the first that cannot be beside what is there.
fn import(memory: &Memory, file: &Path, accounts: &[(usize, Account)]) -> anyhow::Result<Vec<Record>> {
    let mut roll = Roll::new(memory);
    accounts.iter().map(|(line, account)| roll.add(account).with_context(|| place(file, *line))).collect()
}

fn parse_account(line: &str) -> anyhow::Result<Account> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (name, secret, prefixes, pair) = match words[..] {
        [name, secret] => (name, secret, "-", None),
        [name, secret, prefixes] => (name, secret, prefixes, None),
        [name, secret, prefixes, pair] => (name, secret, prefixes, Some(pair)),
        _ => anyhow::bail!("a line has 2 to 4 words: NAME SECRET [PREFIX,PREFIX|-] [INTERFACE]"),
    };
    let prefixes = if prefixes == "-" { Vec::new() } else { prefixes.split(',').collect() };
    let pair = pair.map(|n| n.parse().with_context(|| format!("interface '{n}' is no number")));
    Ok(Account {
        name: UserName::parse(name)?,
        secret: Secret::parse(Zeroizing::new(secret.into()))?,
        prefixes: prefixes.into_iter().map(parse_prefix).collect::<anyhow::Result<_>>()?,
        pair: pair.transpose()?,
        mechanisms: Mechanisms::ANY,
    })
}
