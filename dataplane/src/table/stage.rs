//! Whether a whole batch can be carried out, found out before anything is changed.
//!
//! Walks the batch and notes what each update would take and let go; what no update has touched yet is asked of the
//! tables. The notes are kept from batch to batch, so that a batch of one allocates nothing. Changes nothing itself.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::net::Ipv4Addr;

use super::editor::Editor;
use super::index::Seed;
use super::slab::{OuterKey, Owner, Path};
use crate::update::{Holder, Ipv6Prefix, MAX_MTU, MIN_MTU, Rejected, Tunnel, TunnelId, Update};

/// Notes of larger batches are given back to the system.
const KEPT: usize = 256;

/// Hashes the keys of this room as the indexes do: seeded, since outer endpoints are chosen by strangers, and in a
/// few nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keyed(Seed, u64);

impl Keyed {
    pub(super) fn new(seed: Seed) -> Self {
        Self(seed, 0)
    }
}

impl BuildHasher for Keyed {
    type Hasher = Self;

    fn build_hasher(&self) -> Self {
        *self
    }
}

impl Hasher for Keyed {
    fn finish(&self) -> u64 {
        self.1
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|b| self.write_u8(*b));
    }

    fn write_u8(&mut self, n: u8) {
        self.write_u128(n.into());
    }

    fn write_u32(&mut self, n: u32) {
        self.write_u128(n.into());
    }

    fn write_u128(&mut self, n: u128) {
        self.1 = Seed(self.0.0 ^ self.1).hash(n);
    }
}

#[derive(Clone, Copy, Debug)]
enum Claim {
    Tunnel(TunnelId),
    Reserved(Holder),
}

/// Who uses an outer endpoint, and with which of our addresses. Nearly always it is one.
#[derive(Debug)]
enum Ends {
    One(Ipv4Addr, TunnelId),
    Any(Vec<(Ipv4Addr, TunnelId)>),
}

impl Ends {
    fn held_by(&self, meets: impl Fn(Ipv4Addr) -> bool) -> Option<TunnelId> {
        match self {
            Self::One(local, id) => meets(*local).then_some(*id),
            Self::Any(all) => all.iter().find(|(local, _)| meets(*local)).map(|(_, id)| *id),
        }
    }

    fn add(&mut self, local: Ipv4Addr, id: TunnelId) {
        match self {
            Self::One(at, first) => *self = Self::Any(vec![(*at, *first), (local, id)]),
            Self::Any(all) => all.push((local, id)),
        }
    }

    fn remove(&mut self, id: TunnelId) {
        match self {
            Self::One(_, held) if *held == id => *self = Self::Any(Vec::new()),
            Self::One(..) => {}
            Self::Any(all) => all.retain(|(_, by)| *by != id),
        }
    }
}

/// What a batch would have changed so far.
#[derive(Debug)]
pub(super) struct Staged {
    /// Which update of the batch put a tunnel last; `None`: it is removed.
    tunnels: HashMap<TunnelId, Option<usize>, Keyed>,
    prefixes: HashMap<Ipv6Prefix, Option<Claim>, Keyed>,
    outers: HashMap<OuterKey, Ends, Keyed>,
    /// The batch is one update: nobody will ask what it would have changed.
    is_alone: bool,
    /// How many records the batch needs.
    pub(super) records: usize,
    /// The tunnel put last.
    pub(super) last_upsert: Option<TunnelId>,
}

impl Staged {
    pub(super) fn new(seed: Seed) -> Self {
        let keyed = Keyed::new(seed);
        Self {
            tunnels: HashMap::with_hasher(keyed),
            prefixes: HashMap::with_hasher(keyed),
            outers: HashMap::with_hasher(keyed),
            is_alone: false,
            records: 0,
            last_upsert: None,
        }
    }

    /// Forgets the last batch and makes room for one of `updates`.
    pub(super) fn begin(&mut self, updates: usize) {
        self.tunnels.clear();
        self.prefixes.clear();
        self.outers.clear();
        self.tunnels.shrink_to(KEPT);
        self.prefixes.shrink_to(KEPT);
        self.outers.shrink_to(KEPT);
        if updates > KEPT {
            self.tunnels.reserve(updates);
            self.prefixes.reserve(updates);
            self.outers.reserve(updates);
        }
        self.is_alone = updates == 1;
        (self.records, self.last_upsert) = (0, None);
    }

    /// Notes what update `at` of the batch would do, or says why it cannot.
    pub(super) fn check(&mut self, table: &Editor, batch: &[Update], at: usize) -> Result<(), Rejected> {
        match &batch[at] {
            Update::Upsert(tunnel) => self.check_upsert(table, batch, at, tunnel),
            Update::Watch(id, _) | Update::Meter(id, _) | Update::Address(id, _)
                if !self.exists(table, *id) =>
            {
                Err(Rejected::NoTunnel(*id))
            }
            Update::Remove(id) => self.check_remove(table, batch, *id),
            Update::Watch(id, _) => {
                self.records += match self.put_by(batch, *id) {
                    Some(staged) => staged.map_or(0, |t| t.prefixes.len().max(1)),
                    None => table.chain(*id).count(),
                };
                Ok(())
            }
            Update::Reserve(prefix, holder) => self.check_reserve(table, *prefix, *holder),
            Update::Free(prefix) => match self.claim(table, *prefix, None) {
                Some(Claim::Reserved(_)) => {
                    self.prefixes.insert(*prefix, None);
                    Ok(())
                }
                Some(Claim::Tunnel(_)) | None => Err(Rejected::NotReserved(*prefix)),
            },
            Update::Policy(_) | Update::Meter(..) | Update::Address(..) => Ok(()),
            Update::Listen(_) | Update::Unlisten(_) => Ok(()),
        }
    }

    /// What the batch has made of a tunnel so far; `None` where it has not touched it.
    fn put_by<'b>(&self, batch: &'b [Update], id: TunnelId) -> Option<Option<&'b Tunnel>> {
        Some(self.tunnels.get(&id)?.and_then(|at| upsert(batch, at)))
    }

    /// Notes which update puts a tunnel, or that it is removed, and what it was put by before that in this batch is undone.
    /// Says whether the batch has touched it before, and whether it was there then.
    fn note(&mut self, table: &Editor, batch: &[Update], id: TunnelId, by: Option<usize>) -> Option<bool> {
        if self.is_alone {
            return None;
        }
        let before = self.tunnels.insert(id, by)?;
        if let Some(tunnel) = before.and_then(|at| upsert(batch, at)) {
            self.release(table, tunnel);
        }
        Some(before.is_some())
    }

    fn check_remove(&mut self, table: &Editor, batch: &[Update], id: TunnelId) -> Result<(), Rejected> {
        let was_there = self.note(table, batch, id, None).unwrap_or_else(|| table.has(id));
        if was_there { Ok(()) } else { Err(Rejected::NoTunnel(id)) }
    }

    fn check_upsert(
        &mut self,
        table: &Editor,
        batch: &[Update],
        at: usize,
        t: &Tunnel,
    ) -> Result<(), Rejected> {
        if t.id.0 >= table.capacity {
            return Err(Rejected::Full { id: t.id, capacity: table.capacity });
        }
        if !(MIN_MTU..=MAX_MTU).contains(&t.mtu) {
            return Err(Rejected::Mtu { id: t.id, mtu: t.mtu });
        }
        let path = table.path_of(t)?;
        self.note(table, batch, t.id, Some(at));
        for prefix in &t.prefixes {
            match self.claim(table, *prefix, Some(t.id)) {
                // A tunnel's own prefixes must differ, too.
                None if self.is_alone && t.prefixes.len() == 1 => {}
                None => {
                    self.prefixes.insert(*prefix, Some(Claim::Tunnel(t.id)));
                }
                Some(Claim::Tunnel(held_by)) => {
                    return Err(Rejected::PrefixTaken { prefix: *prefix, wanted_by: t.id, held_by });
                }
                Some(Claim::Reserved(holder)) => {
                    return Err(Rejected::PrefixReserved { prefix: *prefix, holder });
                }
            }
        }
        self.check_outer(table, &path)?;
        self.records += t.prefixes.len().max(1);
        self.last_upsert = Some(t.id);
        Ok(())
    }

    fn check_outer(&mut self, table: &Editor, path: &Path) -> Result<(), Rejected> {
        if !path.has_remote() {
            return Ok(());
        }
        let key = path.outer_key();
        let meets =
            |local: Ipv4Addr| local == path.local || local.is_unspecified() || path.local.is_unspecified();
        let staged = self.outers.get(&key).and_then(|ends| ends.held_by(meets));
        let is_other = |other: &Path| {
            meets(other.local) && other.tunnel != path.tunnel && !self.tunnels.contains_key(&other.tunnel)
        };
        let held = staged.or_else(|| Some(table.by_outer(key, is_other)?.tunnel));
        if let Some(held_by) = held {
            return Err(Rejected::OuterTaken { wanted_by: path.tunnel, held_by });
        }
        if !self.is_alone {
            let add = |ends: &mut Ends| ends.add(path.local, path.tunnel);
            self.outers.entry(key).and_modify(add).or_insert(Ends::One(path.local, path.tunnel));
        }
        Ok(())
    }

    fn check_reserve(&mut self, table: &Editor, prefix: Ipv6Prefix, holder: Holder) -> Result<(), Rejected> {
        if let Some(Claim::Tunnel(held_by)) = self.claim(table, prefix, None) {
            return Err(Rejected::PrefixTaken { prefix, wanted_by: held_by, held_by });
        }
        self.prefixes.insert(prefix, Some(Claim::Reserved(holder)));
        self.records += 1;
        Ok(())
    }

    fn exists(&self, table: &Editor, id: TunnelId) -> bool {
        self.tunnels.get(&id).map_or_else(|| table.has(id), Option::is_some)
    }

    /// What an earlier update of the batch has given this tunnel is up for grabs.
    fn release(&mut self, table: &Editor, tunnel: &Tunnel) {
        for prefix in &tunnel.prefixes {
            self.prefixes.insert(*prefix, None);
        }
        let key = table.path_of(tunnel).ok().filter(Path::has_remote).map(|p| p.outer_key());
        if let Some(ends) = key.and_then(|k| self.outers.get_mut(&k)) {
            ends.remove(tunnel.id);
        }
    }

    /// Who would have this prefix by now, not counting what a tunnel that is put anew holds itself.
    fn claim(&self, table: &Editor, prefix: Ipv6Prefix, anew: Option<TunnelId>) -> Option<Claim> {
        if let Some(staged) = self.prefixes.get(&prefix) {
            return *staged;
        }
        match table.find_prefix(prefix)?.1.owner {
            Owner::Reserved(holder) => Some(Claim::Reserved(holder)),
            // What a tunnel held before the batch it has let go of when the batch has put it anew, or removed it.
            Owner::Tunnel(path) => {
                let holds_on = Some(path.tunnel) != anew && !self.tunnels.contains_key(&path.tunnel);
                holds_on.then_some(Claim::Tunnel(path.tunnel))
            }
        }
    }
}

/// The tunnel that update `at` of the batch puts.
fn upsert(batch: &[Update], at: usize) -> Option<&Tunnel> {
    match batch.get(at)? {
        Update::Upsert(tunnel) => Some(tunnel),
        Update::Remove(_) | Update::Reserve(..) | Update::Free(_) | Update::Listen(_) => None,
        Update::Unlisten(_) | Update::Watch(..) | Update::Meter(..) => None,
        Update::Address(..) | Update::Policy(_) => None,
    }
}
