//! A configuration takes the place of another, whole or not at all. What cannot change while the router runs stays, and is
//! named.

use sixway_dataplane::update::Outer;

use crate::admin::status::Reloaded;
use crate::advice::{is_within, routed_into};
use crate::allowance;
use crate::config::{Config, TunnelConfig};
use crate::dhcp6s::Elsewhere;

use super::{Control, open_office};

impl Control {
    async fn reload(&mut self) -> anyhow::Result<Reloaded> {
        let Some(reread) = &self.reread else { anyhow::bail!("this instance was not started from a file") };
        let mut wanted = (reread.read)(&reread.file)?;
        let mut notes = keep_what_needs_a_restart(&self.config, &mut wanted);
        notes.extend(wanted.doubts());
        allowance::check(wanted.tunnels.len())?;
        self.check_encapsulations(&wanted)?;
        self.refuse_own_addresses(&wanted)?;
        // The first [store] or [[pool]]: before anything is changed it must be there.
        let opened = if self.office.is_none() { open_office(&wanted, rand::random())? } else { None };
        // Its file is another one, which is taken whole or not at all as well.
        if let Some(links) = &self.links {
            links.reload(self.given_elsewhere(&wanted)).await?;
        }
        // All or nothing here too: what the kernel or the tables refuse leaves the configuration before in force.
        match self.network.apply(&wanted).await {
            Ok(advice) => notes.extend(advice),
            Err(why) => {
                self.put_network_back().await;
                return Err(why.into());
            }
        }
        let (diff, touched) = match self.registry.configure(&wanted) {
            Ok(done) => done,
            Err(why) => {
                self.put_network_back().await;
                return Err(why.into());
            }
        };
        if let Some(office) = &mut self.office {
            office.configure(wanted.terms(), &wanted.hooks);
        }
        if let Some(dtcp) = &self.dtcp {
            dtcp.server.hall().limit(wanted.limits.tunnels_per_account);
        }
        self.config = wanted;
        if opened.is_some() {
            self.office = opened;
            self.settle_all().await;
        }
        self.churn.forget();
        touched.into_iter().for_each(|id| self.dispatch.forget(id));
        self.dispatch.follow(&mut self.registry, self.started.elapsed());
        self.serve_dhcpv6()?;
        notes.extend(self.put_all_back().await);
        if let Err(why) = self.serve_tsp() {
            notes.push(format!("nobody is served by TSP: {why:#}; then run `sixway reload` again"));
        }
        Ok(Reloaded::new(diff, notes))
    }

    /// What tunnels, pools and accounts have, and links must not give out.
    pub(super) fn given_elsewhere(&self, config: &Config) -> Elsewhere {
        let mut all = config.given_out();
        if let Some(office) = &self.office {
            office.broker().accounts().each(|account| {
                let own =
                    account.prefixes.iter().map(|prefix| (*prefix, format!("account {}", account.name)));
                all.extend(own);
            });
        }
        all
    }

    /// A tunnel to an address of this host would lead into itself (RFC 2473 section 4.1.2).
    pub(super) fn refuse_own_addresses(&self, wanted: &Config) -> anyhow::Result<()> {
        let own = self.dispatch.paths.own_addresses();
        let loops = |t: &&TunnelConfig| t.outer.peer().is_some_and(|peer| own.contains(&peer));
        let routes = std::fs::read_to_string("/proc/thread-self/net/route").unwrap_or_default();
        let inside = routed_into(&wanted.router.tun, &routes);
        let through_itself = |t: &&TunnelConfig| t.outer.peer().is_some_and(|peer| is_within(peer, &inside));
        if let Some(tunnel) = wanted.tunnels.iter().filter(|_| !inside.is_empty()).find(through_itself) {
            anyhow::bail!(
                "tunnel '{}': this host's route to its peer leads into {}, so into the tunnel itself; take that IPv4 \
                 route away, or add one to the peer by another interface",
                tunnel.name,
                wanted.router.tun
            );
        }
        match wanted.tunnels.iter().find(loops) {
            Some(tunnel) => anyhow::bail!(
                "tunnel '{}' leads to {}, which is an address of this host: its packets would go round for ever; write \
                 the address of the other end",
                tunnel.name,
                tunnel.outer.peer().unwrap_or(std::net::Ipv4Addr::UNSPECIFIED)
            ),
            None => Ok(()),
        }
    }

    /// What was not opened at the start cannot carry a tunnel now.
    fn check_encapsulations(&self, wanted: &Config) -> anyhow::Result<()> {
        let proto41 = wanted.tunnels.iter().find(|t| matches!(t.outer, Outer::Proto41 { .. }));
        match (proto41, &self.facts.proto41) {
            (Some(tunnel), None) => anyhow::bail!(
                "tunnel '{}' needs protocol 41, which this instance was started without; restart it (with root or \
                 CAP_NET_RAW)",
                tunnel.name
            ),
            _ => Ok(()),
        }
    }

    async fn put_network_back(&mut self) {
        if let Err(why) = self.network.apply(&self.config).await {
            tracing::error!(
                why = why.to_string(),
                "the device's addresses and routes could not be put back; restart"
            );
        }
    }

    pub(super) async fn reload_and_log(&mut self) -> anyhow::Result<Reloaded> {
        let done = self.reload().await;
        match &done {
            Ok(Reloaded { added, removed, changed, unchanged, notes }) => {
                tracing::info!(added, removed, changed, unchanged, "reloaded");
                notes.iter().for_each(|note| tracing::warn!("{note}"));
            }
            Err(why) => {
                // One mistake a line, each with its place in front.
                format!("{why:#}").lines().for_each(|line| tracing::error!("{line}"));
                tracing::error!("not reloaded, the configuration before stays in force");
            }
        }
        done
    }
}

/// What is fixed for the life of a process stays; its new value is named as waiting for a restart.
fn keep_what_needs_a_restart(now: &Config, wanted: &mut Config) -> Vec<String> {
    let mut notes = Vec::new();
    let mut keep = |key: &str, differs: bool| {
        if differs {
            let takes = if key.contains(" and ") { "take" } else { "takes" };
            notes.push(format!("{key} {takes} effect at the next start"));
        }
    };
    keep("[router] tun", now.router.tun != wanted.router.tun);
    keep("[router] workers", now.router.workers != wanted.router.workers);
    keep("[router] pin", now.router.pin != wanted.router.pin);
    keep("[router] linger_us", now.router.linger != wanted.router.linger);
    keep("[router] linger_most_us", now.router.linger_most != wanted.router.linger_most);
    keep("[router] ttl", now.router.ttl != wanted.router.ttl);
    keep("[router] capacity", now.router.capacity != wanted.router.capacity);
    keep("[admin] socket", now.admin != wanted.admin);
    keep("[proto41]", now.proto41 != wanted.proto41);
    keep("[offload]", now.offload != wanted.offload);
    keep("[store] path", now.store.wanted && now.store.path != wanted.store.path);
    keep("[dtcp]", now.dtcp != wanted.dtcp);
    // A server that is gone would leave its tunnels without anybody who hears their clients.
    keep("that there is no [tsp]", now.tsp.is_some() && wanted.tsp.is_none());
    match (&now.tsp, &mut wanted.tsp) {
        (Some(now), Some(wanted)) => {
            keep("[tsp] listen", now.listen != wanted.listen);
            wanted.listen = now.listen;
        }
        (Some(_), none) => none.clone_from(&now.tsp),
        (None, _) => {}
    }
    keep("[dhcpv6] interfaces and link_config", now.links != wanted.links);
    wanted.links.clone_from(&now.links);
    wanted.put_dtcp(now.dtcp.clone());
    // The first store is opened by a reload; one that is open stays.
    if now.store.wanted {
        wanted.store = now.store.clone();
    }
    wanted.router.tun.clone_from(&now.router.tun);
    wanted.router.workers = now.router.workers;
    wanted.router.pin = now.router.pin;
    wanted.router.linger = now.router.linger;
    wanted.router.linger_most = now.router.linger_most;
    wanted.router.ttl = now.router.ttl;
    wanted.router.capacity = now.router.capacity;
    wanted.admin = now.admin.clone();
    wanted.proto41 = now.proto41.clone();
    wanted.offload = now.offload;
    notes
}
