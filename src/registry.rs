//! The truth about live tunnels: who they are, where their peers are now, and the only writer of the tables.
//!
//! Merges what the configuration wants and what the broker has granted into batches of updates; a batch that the tables
//! refuse leaves everything as it was. A lease is a route: it is in the tables from its grant to its end. Can say for
//! every tunnel what `status` shows. Knows no protocol.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};

use sixway_dataplane::counters::{CounterReader, TunnelTotals};
use sixway_dataplane::manners::Manners;
use sixway_dataplane::start::TableWriter;
use sixway_dataplane::table::slab::Encap;
use sixway_dataplane::update::{
    Holder, Ipv6Prefix, MIN_MTU, Meter, Outer, Policy, Rejected, Tunnel, TunnelId, UdpLocal, UdpRemote,
    Update,
};

use crate::broker::{Binding, Grant, LeaseId, Protocol, Route};
use crate::config::{Care, Config, Leased, Pmtu, Ra, TunnelConfig, nearest};

/// A tunnel that is in the tables.
#[derive(Debug)]
pub struct Live {
    /// What the configuration, or its lease, says of it.
    pub config: TunnelConfig,
    /// Its outer side now: as configured, with the endpoint learned since.
    pub outer: Outer,
    /// The lease that it stands for; `None`: it is in the configuration.
    pub lease: Option<LeaseId>,
    /// Our end of its address pair.
    pub server: Option<Ipv6Addr>,
    /// What clients inside it have, beside what it has itself.
    pub bound: Vec<Ipv6Prefix>,
    /// What was found of its path: the MTU in octets inside, and whether DF is set. `None`: as configured.
    pub path: Option<(u16, bool)>,
    /// Counts of earlier tunnels with the same number.
    before: TunnelTotals,
}

impl Live {
    /// All that is behind it: its own prefixes, and what clients inside it have.
    pub fn prefixes(&self) -> impl Iterator<Item = Ipv6Prefix> {
        let own = &self.config.prefixes;
        own.iter().chain(self.bound.iter().filter(|prefix| !own.contains(prefix))).copied()
    }
}

/// What a configuration changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// New tunnels.
    pub added: usize,
    /// Tunnels that are gone.
    pub removed: usize,
    /// Tunnels with another setting; they keep number and counters.
    pub changed: usize,
    /// Tunnels that nothing touched.
    pub unchanged: usize,
}

/// A wish about one tunnel, beside what the configuration wants.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Add it, or put it in the place of the one with its name.
    Put(TunnelConfig),
    /// Remove the one with this name, if there is one.
    Remove(Box<str>),
}

/// Why a configuration could not be applied; the one before is in force.
#[derive(Debug, thiserror::Error)]
pub enum ConfigureError {
    /// The tables said no; names are those of the configuration.
    #[error("{text}")]
    Rejected {
        /// What and why, by name.
        text: String,
        /// The refusal itself.
        refusal: Rejected,
    },
}

/// All live tunnels.
#[derive(Debug)]
pub struct Registry {
    writer: TableWriter,
    counters: CounterReader,
    by_name: HashMap<Box<str>, TunnelId>,
    by_lease: HashMap<LeaseId, TunnelId>,
    live: Vec<Option<Live>>,
    free: Vec<TunnelId>,
    local: Vec<Ipv6Addr>,
    /// UDP endpoints that leased tunnels have opened.
    lent: HashSet<SocketAddrV4>,
    /// Pools: what of them is behind no tunnel is a black hole.
    unassigned: Vec<Ipv6Prefix>,
    /// Protocols whose tunnels have no router advertisements.
    unadvertised: Vec<Protocol>,
    /// How tunnels treat their packets that are granted from now on.
    lease_care: Leased,
    policy: Policy,
}

/// Tunnels whose names are compared with one that is not found.
pub(crate) const MOST_COMPARED: usize = 1000;

/// A configuration worked out against what is live, not yet applied.
#[derive(Default)]
struct Plan {
    batch: Vec<Update>,
    after: Vec<Update>,
    removed: Vec<TunnelId>,
    put: Vec<(TunnelId, TunnelConfig, Outer, bool)>,
    diff: Diff,
}

impl Registry {
    /// Has copies of a tunnel's packets sent up, or stops that.
    pub fn watch(&mut self, id: TunnelId, on: bool) -> Result<(), Rejected> {
        self.writer.apply(&[Update::Watch(id, on)]).map(std::mem::drop)
    }

    /// An empty registry. `probe_ident` marks the echo replies that the endpoint prober waits for.
    pub fn new(writer: TableWriter, counters: CounterReader, probe_ident: u16) -> Self {
        let policy = Policy { probe_ident: Some(probe_ident), ..Policy::default() };
        Self {
            writer,
            counters,
            by_name: HashMap::new(),
            by_lease: HashMap::new(),
            live: Vec::new(),
            free: Vec::new(),
            local: Vec::new(),
            lent: HashSet::new(),
            unassigned: Vec::new(),
            unadvertised: Vec::new(),
            lease_care: Leased::default(),
            policy,
        }
    }

    /// Makes the tables say what `config` says; tunnels that did not change are not touched.
    ///
    /// Returns what changed, and the numbers of tunnels that are gone or other ones now.
    pub fn configure(&mut self, config: &Config) -> Result<(Diff, Vec<TunnelId>), ConfigureError> {
        let plan = self.plan(config);
        let applied = self.writer.apply(&plan.batch);
        applied.map_err(|refusal| ConfigureError::Rejected { text: self.tell(&plan, &refusal), refusal })?;
        // Sockets that nothing uses any more; a refusal leaves one open, which harms nobody.
        for update in &plan.after {
            if let Err(why) = self.writer.apply(std::slice::from_ref(update)) {
                tracing::warn!(why = why.to_string(), "a UDP socket stays open");
            }
        }
        self.local = config.router.address.iter().map(|a| a.addr).collect();
        self.unassigned = config.pools.iter().map(|pool| pool.prefix).collect();
        self.unadvertised = config.unadvertised();
        self.lease_care = config.leased;
        self.policy = self.policy_of(config);
        let changed = plan.put.iter().filter(|(.., is_new)| !is_new).map(|(id, ..)| *id);
        let touched = changed.chain(plan.removed.iter().copied()).collect();
        Ok((self.commit(plan), touched))
    }

    /// Puts and removes single tunnels, all of them or none; none may be named twice. The next [`Self::configure`] removes
    /// those that its configuration does not name.
    pub fn change(&mut self, changes: Vec<Change>) -> Result<(), ConfigureError> {
        let mut plan = Plan::default();
        let mut numbers = self.unused();
        for change in changes {
            match change {
                Change::Put(wanted) => {
                    let held = self.by_name(&wanted.name);
                    let Some(id) = held.or_else(|| numbers.next()) else { continue };
                    plan.batch.push(Update::Upsert(tunnel(
                        id,
                        wanted.outer,
                        &wanted,
                        (self.bound(id), None),
                    )));
                    let outer = wanted.outer;
                    plan.put.push((id, wanted, outer, held.is_none()));
                }
                Change::Remove(name) => plan.removed.extend(self.by_name(&name)),
            }
        }
        drop(numbers);
        plan.batch.splice(..0, plan.removed.iter().map(|id| Update::Remove(*id)));
        let applied = self.writer.apply(&plan.batch);
        applied.map_err(|refusal| ConfigureError::Rejected { text: self.tell(&plan, &refusal), refusal })?;
        self.commit(plan);
        Ok(())
    }

    /// Numbers for new tunnels, in the order in which [`Self::commit`] takes them.
    fn unused(&self) -> impl Iterator<Item = TunnelId> {
        self.free.iter().rev().copied().chain((self.live.len() as u32..).map(TunnelId))
    }

    fn policy_of(&self, config: &Config) -> Policy {
        let error_source = config.router.address.first().map(|a| a.addr);
        let guard = &config.guard;
        Policy {
            hairpin: config.router.hairpin,
            error_source,
            errors: guard.icmp_errors,
            errors_of_tunnel: guard.icmp_errors_of_tunnel,
            tells_source: guard.tell_source,
            takes_source_routes: guard.source_routes,
            nesting: guard.nesting,
            ..self.policy
        }
    }

    fn plan(&self, config: &Config) -> Plan {
        let mut plan = Plan::default();
        // First everything that lets go, then everything that takes: what one tunnel gives up, another may have.
        self.plan_sockets(config, &mut plan);
        let taken = self.plan_local(config, &mut plan);
        self.plan_removals(config, &mut plan);
        let mut upserts = self.plan_tunnels(config, &mut plan);
        self.plan_addresses(config, &plan, &mut upserts);
        plan.batch.extend(taken);
        plan.batch.append(&mut upserts);
        if self.policy_of(config) != self.policy {
            plan.batch.push(Update::Policy(self.policy_of(config)));
        }
        plan
    }

    fn plan_sockets(&self, config: &Config, plan: &mut Plan) {
        let wanted: HashSet<_> = config.listen_endpoints().into_iter().collect();
        let open: HashSet<_> = self.writer.listening().into_iter().collect();
        plan.batch.extend(wanted.difference(&open).map(|at| Update::Listen(*at)));
        let unused = open.difference(&wanted).filter(|at| !self.lent.contains(at));
        plan.after.extend(unused.map(|at| Update::Unlisten(*at)));
    }

    /// Frees the addresses and pools that are gone; returns what takes the new ones.
    fn plan_local(&self, config: &Config, plan: &mut Plan) -> Vec<Update> {
        let own: Vec<_> = config.router.address.iter().map(|a| Ipv6Prefix::host(a.addr)).collect();
        let local: Vec<_> = self.local.iter().map(|a| Ipv6Prefix::host(*a)).collect();
        let pools: Vec<_> = config.pools.iter().map(|pool| pool.prefix).collect();
        let gone = local.iter().filter(|p| !own.contains(p));
        let gone = gone.chain(self.unassigned.iter().filter(|p| !pools.contains(p)));
        plan.batch.extend(gone.map(|prefix| Update::Free(*prefix)));
        let new = own.iter().filter(|p| !local.contains(p)).map(|p| Update::Reserve(*p, Holder::Local));
        let cut = pools.iter().filter(|p| !self.unassigned.contains(p));
        new.chain(cut.map(|p| Update::Reserve(*p, Holder::Unassigned))).collect()
    }

    fn plan_removals(&self, config: &Config, plan: &mut Plan) {
        let wanted: HashSet<&str> = config.tunnels.iter().map(|t| &*t.name).collect();
        let gone = |l: &Live| l.lease.is_none() && !wanted.contains(&*l.config.name);
        plan.removed = self.iter().filter(|(_, l)| gone(l)).map(|(id, _)| id).collect();
        plan.batch.extend(plan.removed.iter().map(|id| Update::Remove(*id)));
        plan.diff.removed = plan.removed.len();
    }

    /// Empties the tunnels that change; returns what puts them and the new ones in.
    fn plan_tunnels(&self, config: &Config, plan: &mut Plan) -> Vec<Update> {
        let mut numbers = self.unused();
        let mut upserts = Vec::new();
        for wanted in &config.tunnels {
            let held = self.by_name.get(&wanted.name).and_then(|id| Some((*id, self.tunnel(*id)?)));
            let (id, outer, is_new) = match held {
                Some((_, live)) if live.config == *wanted => {
                    plan.diff.unchanged += 1;
                    continue;
                }
                // What was learned stays valid as long as the tunnel's ends are configured as before.
                Some((id, live)) if live.config.outer == wanted.outer => (id, live.outer, false),
                Some((id, _)) => (id, wanted.outer, false),
                None => match numbers.next() {
                    Some(id) => (id, wanted.outer, true),
                    None => continue,
                },
            };
            *(if is_new { &mut plan.diff.added } else { &mut plan.diff.changed }) += 1;
            // A changed tunnel lets go of what it had before any other may take it.
            if let Some((id, _)) = held {
                plan.batch.push(bare(id, outer, wanted.mtu));
            }
            let bound = if is_new { &[] } else { self.bound(id) };
            upserts.push(Update::Upsert(tunnel(id, outer, wanted, (bound, None))));
            let (was, is) = (held.map(|(_, live)| live.config.care().meter), wanted.care().meter);
            if was.unwrap_or(Meter::NONE) != is {
                upserts.push(Update::Meter(id, is));
            }
            plan.put.push((id, wanted.clone(), outer, is_new));
        }
        upserts
    }

    /// Errors to a tunnel's hosts come from the first address of ours in its prefixes, where there is one.
    fn plan_addresses(&self, config: &Config, plan: &Plan, upserts: &mut Vec<Update>) {
        let local: Vec<_> = config.router.address.iter().map(|a| a.addr).collect();
        let put: HashMap<&str, TunnelId> = plan.put.iter().map(|(id, c, ..)| (&*c.name, *id)).collect();
        for wanted in &config.tunnels {
            let held = self.by_name(&wanted.name).and_then(|id| Some((id, self.tunnel(id)?)));
            let was = held.and_then(|(_, live)| ours(&self.local, &live.config.prefixes));
            let is = ours(&local, &wanted.prefixes);
            let id = put.get(&*wanted.name).copied().or(held.map(|(id, _)| id));
            upserts.extend(id.filter(|_| was != is).map(|id| Update::Address(id, is)));
        }
    }

    fn commit(&mut self, plan: Plan) -> Diff {
        for (id, config, outer, is_new) in plan.put {
            if is_new {
                self.seat(id, config, outer);
            } else if let Some(live) = self.live.get_mut(id.0 as usize).and_then(Option::as_mut) {
                if live.config.outer != config.outer {
                    // Whoever was heard is not who is there now.
                    live.before.last_seen = self.counters.last_seen(id);
                }
                (live.config, live.outer, live.path) = (config, outer, None);
            }
        }
        for id in plan.removed {
            self.unseat(id);
        }
        plan.diff
    }

    /// Notes a new tunnel; its number is the last free one, or one that nobody ever had.
    fn seat(&mut self, id: TunnelId, config: TunnelConfig, outer: Outer) {
        let slot = id.0 as usize;
        let reused = slot < self.live.len();
        if reused {
            // Free numbers are taken from the end, in this order.
            self.free.pop();
        } else {
            self.live.resize_with(slot + 1, || None);
        }
        let before = if reused { self.counters.tunnel(id) } else { TunnelTotals::default() };
        self.by_name.insert(config.name.clone(), id);
        self.live[slot] =
            Some(Live { config, outer, lease: None, server: None, bound: Vec::new(), path: None, before });
    }

    fn unseat(&mut self, id: TunnelId) {
        let Some(live) = self.live.get_mut(id.0 as usize).and_then(Option::take) else { return };
        // A tunnel that takes its place in the same batch has its name.
        if self.by_name.get(&live.config.name) == Some(&id) {
            self.by_name.remove(&live.config.name);
        }
        if let Some(lease) = live.lease {
            self.by_lease.remove(&lease);
        }
        self.free.push(id);
    }

    /// Makes the tables follow the broker, in one batch. Leases that are not there need not go down.
    ///
    /// Returns the numbers of tunnels that are gone, then those that are new.
    ///
    /// # Errors
    /// The tables refuse the batch; nothing has changed then.
    pub fn follow(&mut self, routes: &[Route]) -> Result<(Vec<TunnelId>, Vec<TunnelId>), Rejected> {
        let down: Vec<TunnelId> = routes.iter().filter_map(|route| self.falling(route)).collect();
        let up: Vec<&Grant> = routes.iter().filter_map(rising).collect();
        let mut batch: Vec<Update> = Vec::with_capacity(routes.len() * 2);
        let bound = self.plan_bindings(routes, &down)?;
        // What one tunnel lets go, another may have.
        batch.extend(bound.iter().filter_map(|(id, after)| self.without_gone(*id, after)));
        for (id, live) in down.iter().filter_map(|id| Some((*id, self.tunnel(*id)?))) {
            batch.push(Update::Remove(id));
            batch.extend(live.server.map(|server| Update::Free(Ipv6Prefix::host(server))));
        }
        // Numbers that fall free in this batch are not used in it: their counts are not settled yet.
        let numbers = self.free.iter().rev().copied().chain((self.live.len() as u32..).map(TunnelId));
        let up: Vec<(TunnelId, &Grant)> = numbers.zip(up).collect();
        let opened = self.missing(up.iter().map(|(_, grant)| grant.outer));
        batch.extend(opened.iter().map(|at| Update::Listen(*at)));
        for (id, grant) in &up {
            let server = grant.pair.map(|pair| Ipv6Prefix::host(pair.server));
            batch.extend(server.map(|server| Update::Reserve(server, Holder::Local)));
            let config = self.leased(grant);
            batch.push(Update::Upsert(tunnel(*id, grant.outer, &config, (&[], None))));
            let meter = config.care().meter;
            batch.extend((meter != Meter::NONE).then_some(Update::Meter(*id, meter)));
            batch.extend(grant.pair.map(|pair| Update::Address(*id, Some(pair.server))));
        }
        for (id, after) in &bound {
            let Some(live) = self.tunnel(*id).filter(|live| live.bound != *after) else { continue };
            batch.push(Update::Upsert(tunnel(*id, live.outer, &live.config, (after, live.path))));
        }
        self.writer.apply(&batch)?;
        for (id, after) in bound {
            if let Some(live) = self.live.get_mut(id.0 as usize).and_then(Option::as_mut) {
                live.bound = after;
            }
        }
        self.lent.extend(opened);
        let closed: Vec<_> = down.iter().filter_map(|id| endpoint(self.tunnel(*id)?.outer)).collect();
        let ids = up.iter().map(|(id, _)| *id).collect();
        for (id, grant) in up {
            let config = self.leased(grant);
            self.seat(id, config, grant.outer);
            self.by_lease.insert(grant.lease, id);
            if let Some(live) = self.live.get_mut(id.0 as usize).and_then(Option::as_mut) {
                (live.lease, live.server) = (Some(grant.lease), grant.pair.map(|pair| pair.server));
            }
        }
        down.iter().for_each(|id| self.unseat(*id));
        closed.into_iter().for_each(|at| self.close(at));
        Ok((down, ids))
    }

    /// When the peer of a lease's tunnel was last heard, in seconds since the start.
    pub fn last_heard(&self, lease: LeaseId) -> Option<u32> {
        let id = *self.by_lease.get(&lease)?;
        // What an earlier tunnel with the same number has heard does not count.
        self.counters
            .last_seen(id)
            .filter(|at| Some(*at) != self.tunnel(id).and_then(|live| live.before.last_seen))
    }

    /// A granted tunnel as one of the configuration's kind. Where its protocol has them, its clients may solicit a router
    /// advertisement; what they were given stands in none, since it is not the link's.
    fn leased(&self, grant: &Grant) -> TunnelConfig {
        let on = !self.unadvertised.contains(&grant.protocol);
        let care = self.lease_care.care(grant.pair.map(|pair| pair.client));
        TunnelConfig {
            name: grant.name.clone(),
            outer: grant.outer,
            prefixes: grant.prefixes().collect(),
            mtu: grant.mtu,
            default_route: false,
            ra: Ra { on, managed: false, other: false, prefix: Vec::new() },
            care: (care != Care::default()).then(|| Box::new(care)),
        }
    }

    /// What clients inside tunnels have after these routes, for each tunnel that stays and has another lot then.
    fn plan_bindings(
        &self,
        routes: &[Route],
        down: &[TunnelId],
    ) -> Result<BTreeMap<TunnelId, Vec<Ipv6Prefix>>, Rejected> {
        let mut after: BTreeMap<TunnelId, Vec<Ipv6Prefix>> = BTreeMap::new();
        let stays = |binding: &Binding| self.by_name(&binding.key.tunnel).filter(|id| !down.contains(id));
        for route in routes {
            match route {
                Route::Bind(binding) => {
                    let id = stays(binding).ok_or(Rejected::NoTunnel(TunnelId(u32::MAX)))?;
                    let all = after.entry(id).or_insert_with(|| self.bound(id).to_vec());
                    if !all.contains(&binding.prefix) {
                        all.push(binding.prefix);
                    }
                }
                Route::Unbind(binding, _) => {
                    let Some(id) = stays(binding) else { continue };
                    let all = after.entry(id).or_insert_with(|| self.bound(id).to_vec());
                    all.retain(|prefix| *prefix != binding.prefix);
                }
                Route::Up(_) | Route::Down(..) => {}
            }
        }
        Ok(after)
    }

    /// The tunnel without those of its clients' prefixes that are not in `after`; `None` where there are none.
    fn without_gone(&self, id: TunnelId, after: &[Ipv6Prefix]) -> Option<Update> {
        let live = self.tunnel(id)?;
        let kept: Vec<Ipv6Prefix> = live.bound.iter().copied().filter(|p| after.contains(p)).collect();
        let gone = kept.len() < live.bound.len();
        gone.then(|| Update::Upsert(tunnel(id, live.outer, &live.config, (&kept, live.path))))
    }

    fn bound(&self, id: TunnelId) -> &[Ipv6Prefix] {
        self.tunnel(id).map_or(&[], |live| &live.bound)
    }

    /// The UDP endpoints that these tunnels end at and no socket listens on.
    fn missing(&self, outers: impl Iterator<Item = Outer>) -> HashSet<SocketAddrV4> {
        let wanted: HashSet<SocketAddrV4> = outers.filter_map(endpoint).collect();
        if wanted.is_empty() {
            return wanted;
        }
        let open: HashSet<SocketAddrV4> = self.writer.listening().into_iter().collect();
        let anywhere = |at: &SocketAddrV4| SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, at.port());
        wanted.into_iter().filter(|at| !open.contains(at) && !open.contains(&anywhere(at))).collect()
    }

    /// Closes a UDP endpoint that a lease had opened, once no tunnel ends there.
    fn close(&mut self, at: SocketAddrV4) {
        if !self.lent.contains(&at) || self.iter().any(|(_, live)| endpoint(live.outer) == Some(at)) {
            return;
        }
        self.lent.remove(&at);
        if let Err(why) = self.writer.apply(&[Update::Unlisten(at)]) {
            tracing::warn!(why = why.to_string(), "a UDP socket stays open");
        }
    }

    fn falling(&self, route: &Route) -> Option<TunnelId> {
        match route {
            Route::Down(lease, _) => self.by_lease.get(lease).copied(),
            Route::Up(_) | Route::Bind(_) | Route::Unbind(..) => None,
        }
    }

    /// The refusal in the names of the configuration that was refused.
    fn tell(&self, plan: &Plan, why: &Rejected) -> String {
        let name = |id: TunnelId| {
            let planned = plan.put.iter().find(|(p, ..)| *p == id).map(|(_, c, ..)| &c.name);
            let name = planned.or_else(|| self.tunnel(id).map(|l| &l.config.name));
            name.map_or_else(|| id.to_string(), |n| format!("tunnel '{n}'"))
        };
        match why {
            Rejected::PrefixTaken { prefix, wanted_by, held_by } => {
                format!("prefix {prefix} of {} already belongs to {}", name(*wanted_by), name(*held_by))
            }
            Rejected::OuterTaken { wanted_by, held_by } => format!(
                "{} would run between the same outer endpoints as {}; its peer may have been learned there: reload again \
                 once it has moved",
                name(*wanted_by),
                name(*held_by)
            ),
            Rejected::NotListening { id, port } => {
                format!("{}: no UDP socket listens on port {port}", name(*id))
            }
            Rejected::Full { id, capacity } => {
                format!(
                    "{} does not fit: the table was made for {capacity} tunnels; raise [router] capacity and restart",
                    name(*id)
                )
            }
            Rejected::Mtu { .. }
            | Rejected::PrefixReserved { .. }
            | Rejected::NoTunnel(_)
            | Rejected::NotReserved(_)
            | Rejected::Listen { .. }
            | Rejected::Unlisten { .. } => why.to_string(),
        }
    }

    /// Sends a tunnel's packets to where its peer was proven to be. `None` when there is no such tunnel or it may not move.
    pub fn move_endpoint(
        &mut self,
        id: TunnelId,
        remote: SocketAddrV4,
        local: SocketAddrV4,
    ) -> Option<Result<(), Rejected>> {
        let live = self.tunnel(id)?;
        let Outer::Udp { local: was, remote: peer } = live.outer else { return None };
        let Outer::Udp { local: configured, .. } = live.config.outer else { return None };
        // Without a fixed address of ours, answers come from the one that the peer knows.
        let addr = configured.addr.or(Some(*local.ip()).filter(|a| !a.is_unspecified()));
        let moved = Outer::Udp { local: UdpLocal { addr, ..was }, remote: peer.moved_to(remote)? };
        let update = Update::Upsert(tunnel(id, moved, &live.config, (&live.bound, live.path)));
        if let Err(why) = self.writer.apply(&[update]) {
            return Some(Err(why));
        }
        if let Some(live) = self.live.get_mut(id.0 as usize).and_then(Option::as_mut) {
            live.outer = moved;
        }
        Some(Ok(()))
    }

    /// What was found of a tunnel's path: its MTU inside, and whether outer packets go with DF set.
    ///
    /// # Errors
    /// There is no such tunnel, or the tables refuse.
    pub fn set_path(&mut self, id: TunnelId, mtu: u16, whole: bool) -> Result<(), Rejected> {
        let live = self.tunnel(id).ok_or(Rejected::NoTunnel(id))?;
        let path = Some((mtu, whole));
        let update = Update::Upsert(tunnel(id, live.outer, &live.config, (&live.bound, path)));
        self.writer.apply(&[update])?;
        if let Some(live) = self.live.get_mut(id.0 as usize).and_then(Option::as_mut) {
            live.path = path;
        }
        Ok(())
    }

    /// The tunnel whose peer is at `remote`, as an outer packet of ours names it.
    pub fn tunnel_to(&self, encap: Encap, local: SocketAddrV4, remote: SocketAddrV4) -> Option<TunnelId> {
        self.writer.tunnel_to(encap, local, remote)
    }

    /// The live tunnel with this number.
    pub fn tunnel(&self, id: TunnelId) -> Option<&Live> {
        self.live.get(id.0 as usize)?.as_ref()
    }

    /// The number of the tunnel with this name.
    pub fn by_name(&self, name: &str) -> Option<TunnelId> {
        self.by_name.get(name).copied()
    }

    /// That no tunnel has this name, and which one may be meant.
    pub fn no_tunnel(&self, name: &str) -> String {
        let whose = format!("{name}@");
        // Among very many names nobody finds a typing mistake, and looking for it takes long.
        let names: Vec<&str> = self.iter().take(MOST_COMPARED).map(|(_, live)| &*live.config.name).collect();
        let granted = names.iter().copied().find(|granted| granted.starts_with(&whose));
        match granted.or_else(|| nearest(name, &names)) {
            Some(near) => format!("there is no tunnel '{name}'; did you mean '{near}'?"),
            None => format!("there is no tunnel '{name}'; `sixway status` lists those that there are"),
        }
    }

    /// All live tunnels in order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (TunnelId, &Live)> {
        let numbered = self.live.iter().enumerate();
        numbered.filter_map(|(n, l)| l.as_ref().map(|l| (TunnelId(n as u32), l)))
    }

    /// Numbers in use are below this.
    pub fn slots(&self) -> usize {
        self.live.len()
    }

    /// How many tunnels are live.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// The router's own inner addresses.
    pub fn local(&self) -> &[Ipv6Addr] {
        &self.local
    }

    /// What is reserved for tunnels that are granted.
    pub fn pools(&self) -> &[Ipv6Prefix] {
        &self.unassigned
    }

    /// Octets of the tables, without counters.
    pub fn table_memory(&self) -> usize {
        self.writer.memory()
    }

    /// Where UDP sockets listen.
    pub fn listening(&self) -> Vec<SocketAddrV4> {
        self.writer.listening()
    }

    /// What a tunnel has counted since it is there.
    pub fn totals(&self, id: TunnelId) -> TunnelTotals {
        let now = self.counters.tunnel(id);
        match self.tunnel(id) {
            Some(live) => since(now, &live.before),
            None => now,
        }
    }
}

/// Where a UDP tunnel ends on our side.
fn endpoint(outer: Outer) -> Option<SocketAddrV4> {
    match outer {
        Outer::Udp { local, .. } => {
            Some(SocketAddrV4::new(local.addr.unwrap_or(Ipv4Addr::UNSPECIFIED), local.port))
        }
        Outer::Proto41 { .. } => None,
    }
}

fn rising(route: &Route) -> Option<&Grant> {
    match route {
        Route::Up(grant) => Some(grant),
        Route::Down(..) | Route::Bind(_) | Route::Unbind(..) => None,
    }
}

/// `bound` is what clients inside have besides; `path` what was found of the way there.
fn tunnel(
    id: TunnelId,
    outer: Outer,
    config: &TunnelConfig,
    (bound, path): (&[Ipv6Prefix], Option<(u16, bool)>),
) -> Tunnel {
    let mut prefixes = config.prefixes.clone();
    prefixes.extend(bound.iter().filter(|prefix| !config.prefixes.contains(prefix)));
    let care = config.care();
    let (mtu, whole) = path.unwrap_or((first_mtu(config), false));
    let manners = care.manners.with_metered(care.meter != Meter::NONE).with_whole(whole);
    Tunnel { id, outer, prefixes, mtu, manners }
}

/// The first of `local` that lies in one of these prefixes; everything lies in an uplink's.
fn ours(local: &[Ipv6Addr], prefixes: &[Ipv6Prefix]) -> Option<Ipv6Addr> {
    let is_inside = |addr: &&Ipv6Addr| prefixes.iter().any(|p| p.prefix_len() > 0 && p.contains(**addr));
    local.iter().find(is_inside).copied()
}

/// The MTU before anything was found: what always gets through, where it is looked for.
fn first_mtu(config: &TunnelConfig) -> u16 {
    if config.care().pmtu == Pmtu::Static { config.mtu } else { MIN_MTU }
}

impl Live {
    /// The tunnel's MTU now, octets inside.
    pub fn mtu(&self) -> u16 {
        self.path.map_or_else(|| first_mtu(&self.config), |(mtu, _)| mtu)
    }
}

/// The tunnel without prefixes and without a peer: it holds nothing that another could want.
fn bare(id: TunnelId, outer: Outer, mtu: u16) -> Update {
    let outer = match outer {
        Outer::Udp { local, .. } => Outer::Udp { local, remote: UdpRemote::Learned(None) },
        Outer::Proto41 { local, .. } => Outer::Proto41 { local, remote: Ipv4Addr::UNSPECIFIED },
    };
    Update::Upsert(Tunnel { id, outer, prefixes: Vec::new(), mtu, manners: Manners::PLAIN })
}

fn since(now: TunnelTotals, before: &TunnelTotals) -> TunnelTotals {
    let earlier = |reason| before.drops.iter().find(|(r, _)| *r == reason).map_or(0, |(_, n)| *n);
    let drops = now.drops.iter().map(|(r, n)| (*r, n - earlier(*r))).filter(|(_, n)| *n > 0).collect();
    TunnelTotals {
        rx_packets: now.rx_packets - before.rx_packets,
        rx_bytes: now.rx_bytes - before.rx_bytes,
        tx_packets: now.tx_packets - before.tx_packets,
        tx_bytes: now.tx_bytes - before.tx_bytes,
        last_seen: now.last_seen.filter(|at| Some(*at) != before.last_seen),
        drops,
    }
}
