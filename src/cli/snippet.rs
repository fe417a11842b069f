//! `sixway snippet`: what a user pastes to have the tunnel, for other programs and systems than this one.
//!
//! Asks the broker what it would grant, on a copy of what the store remembers: nothing is written.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use clap::builder::PossibleValuesParser;
use sixway_dataplane::update::Outer;

use super::connect::kind_of;
use super::print_line;
use crate::broker::{
    Account, Accounts, Broker, Keep, Memory, NetworkWish, PoolKind, Protocol, UserName, Wants, Wish, roll,
};
use crate::config::{Config, Dtcp};
use crate::dtcp::codec::{Kind, PORT};
use crate::office::Lent;
use crate::office::desk::now;
use crate::snippet::{Client, Facts};
use crate::store::{Sqlite, Store};

/// Arguments of `sixway snippet`.
#[derive(Debug, Args)]
#[command(
    after_help = "What is printed says where to put it. Without --show-secret it reads the secret from a file, or has a word in its place. Users of sixway itself need none of this: sixway connect dtcp://alice@broker.example?type=network\n\nExample: sixway snippet alice --for linux >six0"
)]
pub struct SnippetArgs {
    /// Whose tunnel
    user: String,
    /// For which program or system
    #[arg(long = "for", value_name = "CLIENT", value_parser = PossibleValuesParser::new(Client::ALL.map(|(name, _)| name)))]
    client: String,
    /// network, host or tunnelonly [default: the first of them that this user can have]
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// The server's address as clients reach it [default: what the configuration says]
    #[arg(long, value_name = "ADDRESS")]
    server: Option<String>,
    /// Put the secret into what is printed
    #[arg(long)]
    show_secret: bool,
    /// Configuration file of the router
    #[arg(long, short, value_name = "FILE", default_value = "/etc/sixway/sixway.toml")]
    config: PathBuf,
}

/// Prints it.
pub fn run(args: &SnippetArgs) -> anyhow::Result<()> {
    let client = Client::ALL.iter().find(|(name, _)| *name == args.client);
    let (_, client) = client.with_context(|| format!("'{}' is no client known here", args.client))?;
    let config = Config::load(&args.config)?;
    let (is_served, protocol) = match client {
        Client::Gogoc => (config.tsp.is_some(), "tsp"),
        Client::Linux | Client::FreeBsd | Client::Dtcpc | Client::Networkd | Client::OpenWrt => {
            (config.dtcp.is_some(), "dtcp")
        }
    };
    if !is_served {
        let (file, name) = (args.config.display(), &args.client);
        bail!(
            "{file} has no [{protocol}]: {name} would be given no tunnel there; add the table, and see docs/{protocol}.md"
        );
    }
    let facts = facts(args, &config)?;
    let text = client.snippet(&facts)?;
    text.lines().for_each(print_line);
    Ok(())
}

fn facts(args: &SnippetArgs, config: &Config) -> anyhow::Result<Facts> {
    let dtcp = config.dtcp.as_ref();
    let server = args.server.clone().map_or_else(|| public_address(config, &args.client), Ok)?;
    let safe = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
    anyhow::ensure!(
        !server.is_empty() && !server.starts_with('-') && server.chars().all(safe),
        "--server '{server}' is no IPv4 address and no host name"
    );
    let user = UserName::parse(&args.user)?;
    let memory = remembered(config)?;
    let account = memory.accounts.iter().find(|account| account.name == user).cloned();
    let account = account.ok_or_else(|| roll::RollError::Unknown(user.clone()))?;
    let kind = match &args.kind {
        Some(name) => kind_of(name)?,
        None => usual(config, &account),
    };
    let assigned = memory.assigned.clone();
    let mut terms = config.terms();
    if let Some(dtcp) = dtcp.filter(|_| args.client != "gogoc") {
        // The server of DTCP gives pairs out of its own pool only.
        terms.pools.retain(|pool| pool.kind != PoolKind::Pairs || dtcp.pool() == Some(*pool));
    }
    let mut broker = Broker::new(Accounts::new(rand::random()), terms);
    let _not_written = broker.recall(now(), memory);
    let wish = wish(&user, kind, dtcp.map_or(1280, |dtcp| dtcp.mtu));
    let (grant, _) = broker.grant(now(), &wish).with_context(|| {
        format!("'{user}' would be given no tunnel of type {}; choose another with --type", kind.name())
    })?;
    let theirs = |prefix| {
        account.prefixes.contains(prefix)
            || assigned.iter().any(|(known, whose, _)| known == prefix && whose.as_ref() == Some(&user))
    };
    let is_fixed = match kind {
        Kind::Network => grant.networks.iter().all(theirs),
        Kind::Host => account.pair.is_some(),
        Kind::TunnelOnly => true,
    };
    let (port, mtu) = (dtcp.map_or(PORT, |dtcp| dtcp.listen.port()), wish.mtu);
    let secret = args.show_secret.then_some(account.secret);
    Ok(Facts { user, server, port, kind, mtu, grant, is_fixed, secret })
}

/// What the store remembers, with the accounts of the old files.
fn remembered(config: &Config) -> anyhow::Result<Memory> {
    let dtcp = config.dtcp.as_ref();
    let files = |file: fn(&Dtcp) -> Option<&PathBuf>| dtcp.and_then(file).map(PathBuf::as_path);
    let mut lent = Lent::open(files(|d| d.popauth.as_ref()), files(|d| d.routetable.as_ref()))?;
    let mut memory = Sqlite::open_beside(&config.store.path)?.load()?;
    lent.own(std::mem::take(&mut memory.accounts));
    memory.accounts = lent.accounts();
    Ok(memory)
}

/// Where clients reach the router.
fn public_address(config: &Config, client: &str) -> anyhow::Result<String> {
    let by_dtcp = config.dtcp.as_ref().map(|dtcp| (dtcp.public_address, *dtcp.listen.ip()));
    let by_tsp = config.tsp.as_ref().map(|tsp| (tsp.public_address, *tsp.listen.ip()));
    let (table, served) = if client == "gogoc" { ("[tsp]", by_tsp) } else { ("[dtcp]", by_dtcp) };
    let (told, listens) = served.unzip();
    let listens = listens.filter(|ip| !ip.is_unspecified());
    let known = told.flatten().or(listens).or(config.router.outer);
    known.map(|ip| ip.to_string()).with_context(|| {
        format!(
            "the configuration names no address that clients reach the router at; give it with --server, or write `outer` in \
             [router] or `public_address` in {table}"
        )
    })
}

fn usual(config: &Config, account: &Account) -> Kind {
    let pool = config.pools.iter().any(|pool| matches!(pool.kind, PoolKind::Networks(_)));
    if pool || !account.prefixes.is_empty() {
        return Kind::Network;
    }
    let pairs = config.dtcp.as_ref().is_some_and(|dtcp| dtcp.prefix.is_some());
    if pairs { Kind::Host } else { Kind::TunnelOnly }
}

fn wish(user: &UserName, kind: Kind, mtu: u16) -> Wish {
    let network = match kind {
        Kind::Network => Some(NetworkWish::Any),
        Kind::Host | Kind::TunnelOnly => None,
    };
    Wish {
        user: user.clone(),
        protocol: Protocol::Dtcp,
        outer: Outer::Proto41 { local: None, remote: std::net::Ipv4Addr::UNSPECIFIED },
        mtu,
        wants: Wants { pair: kind == Kind::Host, network },
        keep: Keep::WithConnection,
    }
}
