//! `sixway check`: is this configuration right, and what would it do?

use std::path::PathBuf;

use clap::Args;
use sixway_dataplane::update::Outer;

use super::print_line;
use crate::broker::PoolKind;
use crate::compat::dhcp6sconf::{ServerConf, Surroundings};
use crate::config::dhcpv6::Links;
use crate::config::{Config, Forwarding};
use crate::dhcp6s::files::Files;
use crate::dhcp6s::here::Here;
use crate::dhcp6s::plan;

/// Arguments of `sixway check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Configuration file
    #[arg(value_name = "FILE", default_value = "/etc/sixway/sixway.toml")]
    file: PathBuf,
    /// The same, named as for the other commands
    #[arg(long, value_name = "FILE", conflicts_with = "file")]
    config: Option<PathBuf>,
}

/// Prints what the file would do, or every error in it.
pub fn run(args: &CheckArgs) -> anyhow::Result<()> {
    let file = args.config.as_ref().unwrap_or(&args.file);
    let config = Config::load(file)?;
    let mut notes = config.doubts();
    if let Some(links) = &config.links {
        let conf = Files::new(&links.config).expecting(&links.interfaces).read()?;
        plan::check(&conf, &config.given_out())?;
        notes.extend(on_links(links, &conf));
    }
    print_line(&format!("{}: ok", file.display()));
    print_line(&format!("  TUN device    {}", config.router.tun));
    let addresses: Vec<_> =
        config.router.address.iter().map(|a| format!("{}/{}", a.addr, a.prefix_len)).collect();
    print_line(&format!("  addresses     {}", list(&addresses)));
    print_line(&format!("  kernel routes {}", list(&routes(&config))));
    print_line(&format!("  UDP           {}", list(&config.listen_endpoints())));
    print_line(&format!("  protocol 41   {}", proto41(&config)));
    print_line(&format!("  forwarding    {}", forwarding(&config)));
    print_line(&format!("  tunnels       {}", config.tunnels.len()));
    let pools: Vec<_> = config.pools.iter().map(|pool| pool.to_string()).collect();
    print_line(&format!("  pools         {}", list(&pools)));
    if let Some(dtcp) = &config.dtcp {
        let pairs = dtcp.prefix.as_ref().map_or("no pairs", |prefix| &prefix.text);
        print_line(&format!("  DTCP          TCP {}, {pairs}", dtcp.listen));
    }
    if let Some(tsp) = &config.tsp {
        print_line(&format!("  TSP           TCP and UDP {}, realm {}", tsp.listen, tsp.realm));
    }
    if config.dhcpv6.is_some() {
        let gives = config.pools.iter().any(|pool| pool.kind != PoolKind::Pairs);
        let only = if gives || config.dhcpv6.as_ref().is_some_and(|terms| !terms.reserved.is_empty()) {
            ""
        } else {
            "; what tunnels and accounts have, and nothing else: there is no [[pool]] for clients and no [[dhcpv6_host]]"
        };
        print_line(&format!("  DHCPv6        inside every tunnel{only}"));
    }
    if let Some(links) = &config.links {
        let file = links.config.display();
        print_line(&format!("  DHCPv6        on {}, by {file}", links.interfaces.join(", ")));
    }
    if config.store.wanted {
        print_line(&format!("  store         {}", config.store.path.display()));
    }
    for (when, program) in [("up", &config.hooks.up), ("down", &config.hooks.down)] {
        if let Some(program) = program {
            print_line(&format!("  hook          {when}: {}", program.display()));
        }
    }
    print_line(&format!("  admin socket  {}", config.admin.socket.display()));
    notes.iter().for_each(|note| print_line(&format!("  note          {note}")));
    Ok(())
}

/// Interfaces that are not there now, and those on which nobody is given anything.
fn on_links(links: &Links, conf: &ServerConf) -> Vec<String> {
    let absent = links.interfaces.iter().filter(|name| !Here.has_interface(name));
    let absent = absent.map(|name| {
        format!("[dhcpv6] interfaces: there is no '{name}' here now (`ip link` names all); it is served when it comes")
    });
    let idle = links.interfaces.iter().filter(|name| conf.gives_nobody(name));
    let file = links.config.display();
    let idle = idle.map(|name| {
        format!("[dhcpv6] interfaces: {file} gives nobody on '{name}' an address or a prefix; `interface {name} {{ ... }};` does")
    });
    absent.chain(idle).collect()
}

/// Whether it is received, and who needs it.
fn proto41(config: &Config) -> String {
    let needing =
        config.tunnels.iter().filter(|tunnel| matches!(tunnel.outer, Outer::Proto41 { .. })).count();
    match (config.proto41.enabled, needing) {
        (Some(false), _) => "off".to_owned(),
        (None, 0) => "on, if the rights suffice".to_owned(),
        (Some(true), 0) => "on".to_owned(),
        (Some(true) | None, _) => format!("on; tunnels that need it: {needing}"),
    }
}

/// What is done about the kernel's switch.
fn forwarding(config: &Config) -> &'static str {
    match (config.router.forwarding, config.needs_forwarding()) {
        (Forwarding::Set, _) => "IPv6 forwarding of the kernel is turned on",
        (Forwarding::Check, true) => "looked at; it has to be on",
        (Forwarding::Check, false) => "not needed",
    }
}

fn routes(config: &Config) -> Vec<String> {
    let default = config.tunnels.iter().find(|t| t.default_route);
    let default = default.map(|t| format!("default (into {})", t.name));
    config.kernel_routes().iter().map(ToString::to_string).chain(default).collect()
}

/// The first few, and how many more.
fn list<T: ToString>(items: &[T]) -> String {
    const SHOWN: usize = 8;
    if items.is_empty() {
        return "none".to_owned();
    }
    let shown: Vec<_> = items.iter().take(SHOWN).map(ToString::to_string).collect();
    let more = items.len().saturating_sub(SHOWN);
    let tail = if more > 0 { format!(" and {more} more") } else { String::new() };
    shown.join(", ") + &tail
}
