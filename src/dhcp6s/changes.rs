//! A configuration that changes under a running server: read again, compared with what others have, and told to clients.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;
use std::time::Duration;

use anyhow::bail;
use sixway_dataplane::update::Ipv6Prefix;

use super::here::uptime;
use super::idle;
use super::plan::{self, Plan};
use super::shelf::{Lease, NEVER};
use super::socket::Answer;
use super::{BATCH, Elsewhere, Server, Start};
use crate::compat::dhcp6sconf::ServerConf;
use crate::dhcpv6::calls::Called;
use crate::dhcpv6::codec::code;
use crate::dhcpv6::session::Leases;
use crate::dhcpv6::telling::{Bound, Evicted, Loss};

impl Server {
    /// Reads the configuration again; if it is wrong, or gives out what is somebody's elsewhere, all stays as it is.
    ///
    /// # Errors
    /// Why it stays as it is, which has been put into the log.
    pub async fn reload(&mut self, elsewhere: &Elsewhere) -> anyhow::Result<()> {
        let mut files = self.start.files.clone();
        let read = files.read().and_then(|conf| plan::check(&conf, elsewhere).map(|()| conf));
        let read = read.and_then(|conf| self.is_whole(&conf).map(|()| conf));
        let read = read.and_then(|conf| only_one_says_dns(&self.start.dns, &conf).map(|()| conf));
        match read {
            Ok(conf) => self.start.conf = conf,
            Err(why) => {
                tracing::error!("the configuration stays as it is: {why:#}");
                return Err(why);
            }
        }
        self.start.files = files;
        self.start.say_silent_links();
        put_dns(&mut self.start);
        let mut is_news = false;
        for port in &mut self.ports {
            is_news |= port.configure(&self.start.conf, &self.duid);
        }
        let before: BTreeMap<Ipv6Prefix, Lease> = self.shelf.iter().map(|l| (l.prefix, l.clone())).collect();
        // A file that has something in common with what is elsewhere has just been refused.
        self.contested.clear();
        self.lay_out();
        self.listen_here();
        self.route_all().await;
        self.tell(&before, is_news);
        tracing::info!(event = "reloaded", "the configuration has been read again");
        Ok(())
    }

    /// Whether a file that gave something still does: one that was cut off must not take all from everybody.
    fn is_whole(&self, conf: &ServerConf) -> anyhow::Result<()> {
        if idle::is_empty(conf) && !idle::is_empty(&self.start.conf) {
            bail!(
                "{} gives nobody anything any more, and did before; was it cut off? Write it anew, or stop the server, or start \
                 it again with the file as it is",
                self.start.files.file().display()
            );
        }
        Ok(())
    }

    /// After a reload: who has lost something, or would be given something else or other lifetimes now, is to renew; if only
    /// information is other than before, all are to ask for that.
    fn tell(&mut self, before: &BTreeMap<Ipv6Prefix, Lease>, is_news: bool) {
        let plan = self.shelf.plan();
        let is_given = |lease: &Lease, prefix| plan.lives(&lease.key.client, prefix).next().is_some();
        let differs = |lease: &&Lease| {
            if self.shelf.get(lease.prefix).is_none() {
                return true;
            }
            if is_given(lease, lease.prefix) {
                return plan.lives(&lease.key.client, lease.prefix).all(|life| life != lease.life);
            }
            // It ends at its time; who has something in its place has asked already.
            !self.shelf.bound(&lease.key).iter().any(|other| is_given(lease, *other))
        };
        let touched: Vec<&Lease> = before.values().filter(differs).collect();
        if is_news {
            self.call_all(false);
        }
        self.call(&touched);
    }

    /// What others have by now is nobody's here, and the log says so: two are given the same by two configurations.
    pub(super) async fn keep_clear_of(&mut self, elsewhere: &Elsewhere) {
        let contested = plan::contested(&self.start.conf, elsewhere);
        let prefixes: BTreeSet<Ipv6Prefix> = contested.iter().map(|(prefix, _)| *prefix).collect();
        if prefixes == self.contested {
            return;
        }
        for (prefix, name) in contested.iter().filter(|(prefix, _)| !self.contested.contains(prefix)) {
            tracing::warn!(
                "{prefix} ({name}) has addresses in common with what links give out, and is not given there any more; \
                 give each its own space"
            );
        }
        self.contested = prefixes;
        let before: BTreeMap<Ipv6Prefix, Lease> = self.shelf.iter().map(|l| (l.prefix, l.clone())).collect();
        self.lay_out();
        self.route_all().await;
        self.tell(&before, false);
    }

    /// What may be given is as the configuration, the links and what others have say.
    pub(super) fn lay_out(&mut self) {
        let plan = Plan::new(&self.start.conf, self.sites()).without(self.contested.clone());
        self.shelf.configure(plan);
        self.submit();
    }

    /// Has clients ask anew: for what they have, or else for information alone.
    pub(super) fn call_all(&mut self, renew: bool) {
        let now = self.began.elapsed();
        let mut clients = 0;
        for port in &mut self.ports {
            let bound = bound(&port.name, self.shelf.iter());
            port.tick(now);
            clients += port.session.call_bound(now, &bound, renew);
            clients += port.session.call_informed(now, None, &bound);
            clients += if renew { port.session.call_bereft(now, None, &bound) } else { 0 };
        }
        tracing::info!(event = "reconfigure", clients);
    }

    /// Has the clients of these leases renew them, those that have lost them too.
    fn call(&mut self, leases: &[&Lease]) {
        let (now, clock) = (self.began.elapsed(), uptime());
        for port in &mut self.ports {
            port.tick(now);
            let (kept, lost): (Vec<&Lease>, Vec<&Lease>) = leases
                .iter()
                .filter(|lease| *lease.key.tunnel == *port.name)
                .partition(|lease| self.shelf.get(lease.prefix).is_some_and(|now| now.key == lease.key));
            port.session.call_bound(now, &bound(&port.name, kept.into_iter()), true);
            for lease in lost.into_iter().filter(|lease| !lease.key.client.is_empty()) {
                let lasts = Duration::from_secs(lease.until.saturating_sub(clock));
                port.session.call_loser(now, Loss { who: called(lease), reach: lease.reach, lasts });
            }
        }
    }

    /// Ends a lease, and tells its client if that lets itself be told; `None`: there was none.
    pub(super) fn evict(&mut self, prefix: Ipv6Prefix) -> Option<Evicted> {
        let lease = self.shelf.get(prefix)?.clone();
        let left = lease.until.saturating_sub(uptime());
        let port = self.ports.iter().find(|port| *port.name == *lease.key.tunnel);
        let is_told = port.is_some_and(|port| port.session.can_tell(&called(&lease), lease.reach));
        self.shelf.end(prefix);
        self.call(&[&lease]);
        let believes = (lease.until != NEVER).then(|| Duration::from_secs(left));
        Some(Evicted { is_told, believes })
    }

    pub(super) fn send_calls(&mut self) {
        let now = self.began.elapsed();
        for port in &mut self.ports {
            port.tick(now);
            let calls: Vec<_> = (0..BATCH).map_while(|_| port.session.poll_call(now)).collect();
            // What cannot be kept is said again, with another number.
            if calls.is_empty() || !port.keep_ring() {
                continue;
            }
            let calls = calls.iter().map(|(_, (to, at), octets)| (to, at, octets));
            let calls = calls.map(|(to, at, octets)| Answer { octets, to: *to, port: *at, from: None });
            port.send(&calls.collect::<Vec<_>>());
        }
    }
}

/// The clients that have leases on a link, and where they are on it if they let themselves be told of changes.
fn bound<'a>(link: &str, leases: impl Iterator<Item = &'a Lease>) -> Bound {
    let mut all = Bound::new();
    for Lease { key, reach, .. } in leases {
        if *key.tunnel == *link && !key.client.is_empty() {
            let who = Called { tunnel: key.tunnel.clone(), client: key.client.clone() };
            let known = all.entry(who).or_default();
            *known = known.or(*reach);
        }
    }
    all
}

/// Whose a lease is.
fn called(lease: &Lease) -> Called {
    Called { tunnel: lease.key.tunnel.clone(), client: lease.key.client.clone() }
}

/// Servers for names come from the file or from the command line, and not from both.
///
/// # Errors
/// They come from both.
pub fn only_one_says_dns(given: &[Ipv6Addr], conf: &ServerConf) -> anyhow::Result<()> {
    if !given.is_empty() && conf.options.addresses.contains_key(&code::DNS_SERVERS) {
        bail!("-n is obsolete, and the configuration has domain-name-servers; leave out one of them");
    }
    Ok(())
}

pub(super) fn put_dns(start: &mut Start) {
    if !start.dns.is_empty() {
        start.conf.options.addresses.insert(code::DNS_SERVERS, start.dns.clone());
    }
}
