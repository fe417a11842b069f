//! The one writer of the tables: checks a whole batch, then publishes it record by record.
//!
//! A batch that is refused has changed nothing. Each prefix passes from its old record to its new one in a single
//! atomic store, also when it changes hands within a batch, so a reader never finds half a tunnel, nor for a moment the
//! prefix around it. Nothing here waits for readers: what they may still hold is set aside until `qsbr` gives it back.

use std::collections::{HashMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::num::NonZeroU16;
use std::sync::Arc;

use super::index::Index;
use super::slab::{Encap, Entry, Learn, NONE, OuterKey, Owner, Path};
use super::{Level, Root, Shared, prefix_hash};
use crate::update::{
    Generation, Holder, Ipv6Prefix, MAX_MTU, MIN_MTU, Outer, Policy, Rejected, Tunnel, TunnelId, UdpLocal,
    UdpRemote, Update, mask,
};

/// In the place of a prefix length: this record is a tunnel's first, found by number or outer endpoint.
const HEAD: u8 = 255;

/// An index with what the writer must know to keep it at most half full.
#[derive(Debug)]
struct Filled {
    index: Arc<Index>,
    used: usize,
    live: usize,
}

impl Filled {
    fn new() -> Self {
        Self { index: Arc::new(Index::for_items(8)), used: 0, live: 0 }
    }

    fn has_room(&self) -> bool {
        (self.used + 1) * 2 <= self.index.slots()
    }

    fn insert(&mut self, hash: u64, number: u32) {
        self.used += usize::from(self.index.insert(hash, number));
        self.live += 1;
    }

    fn remove(&mut self, hash: u64, number: u32) {
        self.live -= usize::from(self.index.remove(hash, number));
    }
}

/// The only writer of a table.
#[derive(Debug)]
pub struct Editor {
    shared: Arc<Shared>,
    capacity: u32,
    levels: Vec<(u8, Filled)>,
    outer: Filled,
    policy: Policy,
    sockets: HashMap<SocketAddrV4, u16>,
    free: Vec<u32>,
    fresh: u32,
    retired: VecDeque<(u64, u32)>,
    waiting: Vec<u32>,
    /// Prefixes that nobody holds any more; they lead to their old records until the batch is over.
    leaving: HashMap<Ipv6Prefix, u32>,
    tunnels: u32,
    generation: u64,
}

impl Editor {
    pub(super) fn new(shared: Arc<Shared>, capacity: u32) -> Self {
        let root = shared.root.load_full();
        Self {
            shared,
            capacity,
            levels: Vec::new(),
            outer: Filled { index: root.outer.clone(), used: 0, live: 0 },
            policy: root.policy,
            sockets: HashMap::new(),
            free: Vec::new(),
            fresh: 0,
            retired: VecDeque::new(),
            waiting: Vec::new(),
            leaving: HashMap::new(),
            tunnels: 0,
            generation: 0,
        }
    }

    /// Says which number the UDP sockets on `at` have; tunnels that end there send with it.
    pub fn name_socket(&mut self, at: SocketAddrV4, number: u16) {
        self.sockets.insert(at, number);
    }

    /// Forgets the sockets on `at`.
    pub fn forget_socket(&mut self, at: SocketAddrV4) {
        self.sockets.remove(&at);
    }

    /// How many tunnels there are.
    pub fn tunnels(&self) -> u32 {
        self.tunnels
    }

    /// Octets that records, indexes and numbers take now, without counters.
    pub fn memory(&self) -> usize {
        let slots: usize =
            self.levels.iter().map(|(_, f)| f.index.slots()).sum::<usize>() + self.outer.index.slots();
        self.shared.slab.allocated() + self.shared.by_id.allocated() + slots * 4 + self.free.capacity() * 4
    }

    /// Whether a tunnel sends with the UDP sockets of this number.
    pub fn uses_socket(&self, number: u16) -> bool {
        let entries = self.shared.by_id.heads().filter_map(|head| self.shared.slab.read(head));
        entries.filter_map(|e| e.owner.path()).any(|p| p.encap == Encap::Udp && p.socket == number)
    }

    /// The tunnel with this number, as it stands in the table.
    pub fn path(&self, id: TunnelId) -> Option<Path> {
        self.shared.slab.read(self.shared.by_id.head(id)?)?.owner.path()
    }

    /// Applies all of `batch`, or refuses it and changes nothing. `Listen` and `Unlisten` are the caller's
    /// business (see [`Self::name_socket`]) and are passed over.
    pub fn apply(&mut self, batch: &[Update]) -> Result<Generation, Rejected> {
        self.reclaim();
        self.check(batch)?;
        for update in batch {
            self.carry_out(update);
        }
        self.see_off();
        self.retire_waiting();
        self.generation += 1;
        Ok(Generation(self.generation))
    }

    fn check(&self, batch: &[Update]) -> Result<(), Rejected> {
        let mut staged = Staged::default();
        batch.iter().try_for_each(|update| staged.check(self, update))?;
        let free = self.shared.slab.most() - self.fresh as usize + self.free.len();
        if staged.records > free {
            // Reserved prefixes alone can fill the table; then the number that does not fit is the first beyond it.
            let id = staged.last_upsert.unwrap_or(TunnelId(self.capacity));
            return Err(Rejected::Full { id, capacity: self.capacity });
        }
        Ok(())
    }

    fn carry_out(&mut self, update: &Update) {
        match update {
            Update::Upsert(tunnel) => {
                if let Ok(path) = self.path_of(tunnel) {
                    self.put(path, &tunnel.prefixes);
                }
            }
            Update::Remove(id) => self.remove(*id),
            Update::Reserve(prefix, holder) => self.reserve(*prefix, *holder),
            Update::Free(prefix) => self.free_prefix(*prefix),
            Update::Watch(id, on) => self.watch(*id, *on),
            Update::Policy(policy) => {
                self.policy = *policy;
                self.publish_root();
            }
            Update::Listen(_) | Update::Unlisten(_) => {}
        }
    }

    fn put(&mut self, path: Path, prefixes: &[Ipv6Prefix]) {
        let old = self.chain(path.tunnel);
        self.tunnels += u32::from(old.is_empty());
        let (head, fresh) = self.write_chain(path, prefixes);
        for (number, prefix) in &fresh {
            let was = old.iter().find(|(_, e)| (e.bits, e.len) == (prefix.bits(), prefix.prefix_len()));
            self.give(*prefix, was.map(|(n, _)| *n), *number);
        }
        let gone = prefixes_of(&old).filter(|(_, prefix)| !prefixes.contains(prefix));
        self.leaving.extend(gone.map(|(number, prefix)| (prefix, number)));
        self.move_outer(old.first().copied(), head, path);
        self.shared.by_id.publish(path.tunnel, Some(head));
        self.waiting.extend(old.iter().map(|(n, _)| *n));
    }

    /// Writes the records of a tunnel where nobody finds them yet.
    fn write_chain(&mut self, path: Path, prefixes: &[Ipv6Prefix]) -> (u32, Vec<(u32, Ipv6Prefix)>) {
        let owner = Owner::Tunnel(path);
        let mut next = NONE;
        let mut numbers = Vec::with_capacity(prefixes.len());
        for prefix in prefixes {
            let number = self.write(&Entry { bits: prefix.bits(), len: prefix.prefix_len(), owner, next });
            numbers.push((number, *prefix));
            next = number;
        }
        (self.write(&Entry { bits: 0, len: HEAD, owner, next }), numbers)
    }

    fn move_outer(&mut self, old: Option<(u32, Entry)>, head: u32, path: Path) {
        let seed = self.shared.seed;
        let hash = |p: &Path| seed.hash(p.outer_key().bits());
        let old = old.and_then(|(n, e)| e.owner.path().filter(Path::has_remote).map(|p| (n, p)));
        match old {
            Some((n, p)) if path.has_remote() && p.outer_key() == path.outer_key() => {
                self.outer.index.replace(hash(&p), n, head);
            }
            Some((n, p)) => {
                if path.has_remote() {
                    self.insert_outer(hash(&path), head);
                }
                self.outer.remove(hash(&p), n);
            }
            None if path.has_remote() => self.insert_outer(hash(&path), head),
            None => {}
        }
    }

    fn remove(&mut self, id: TunnelId) {
        let old = self.chain(id);
        self.leaving.extend(prefixes_of(&old).map(|(number, prefix)| (prefix, number)));
        if let Some((head, path)) = old.first().and_then(|(n, e)| e.owner.path().map(|p| (*n, p))) {
            self.outer.remove(self.shared.seed.hash(path.outer_key().bits()), head);
        }
        self.shared.by_id.publish(id, None);
        self.tunnels -= u32::from(!old.is_empty());
        self.waiting.extend(old.iter().map(|(n, _)| *n));
    }

    fn watch(&mut self, id: TunnelId, on: bool) {
        let chain = self.chain(id);
        let Some(path) = chain.first().and_then(|(_, e)| e.owner.path()) else { return };
        let prefixes: Vec<_> = prefixes_of(&chain).map(|(_, prefix)| prefix).collect();
        self.put(Path { watched: on, ..path }, &prefixes);
    }

    fn reserve(&mut self, prefix: Ipv6Prefix, holder: Holder) {
        let owner = Owner::Reserved(holder);
        let number = self.write(&Entry { bits: prefix.bits(), len: prefix.prefix_len(), owner, next: NONE });
        // What is leaving is waiting already.
        let was = self.find_prefix(prefix).map(|(n, _)| n).filter(|_| !self.leaving.contains_key(&prefix));
        self.waiting.extend(was);
        self.give(prefix, was, number);
    }

    fn free_prefix(&mut self, prefix: Ipv6Prefix) {
        if let Some((number, _)) = self.find_prefix(prefix) {
            self.leaving.insert(prefix, number);
            self.waiting.push(number);
        }
    }

    /// Lets `prefix` lead to record `new`: in one step, where it led to `old` or to somebody who has left it.
    fn give(&mut self, prefix: Ipv6Prefix, old: Option<u32>, new: u32) {
        match old.or_else(|| self.leaving.remove(&prefix)) {
            Some(old) => self.replace_prefix(prefix, old, new),
            None => self.insert_prefix(prefix, new),
        }
    }

    /// At the end of a batch: what nobody has taken over is gone.
    fn see_off(&mut self) {
        let leaving: Vec<_> = self.leaving.drain().collect();
        for (prefix, number) in leaving {
            self.remove_prefix(prefix, number);
        }
    }

    /// The records of a tunnel, its head first.
    fn chain(&self, id: TunnelId) -> Vec<(u32, Entry)> {
        let mut chain = Vec::new();
        let mut at = self.shared.by_id.head(id);
        while let Some(number) = at {
            let Some(entry) = self.shared.slab.read(number) else { break };
            chain.push((number, entry));
            at = Some(entry.next).filter(|n| *n != NONE);
        }
        chain
    }

    fn find_prefix(&self, prefix: Ipv6Prefix) -> Option<(u32, Entry)> {
        let (_, level) = self.levels.iter().find(|(len, _)| *len == prefix.prefix_len())?;
        let wanted = Some((prefix.bits(), prefix.prefix_len()));
        let number = level.index.find(self.hash(prefix), |n| self.shared.slab.prefix(n) == wanted)?;
        Some((number, self.shared.slab.read(number)?))
    }

    fn hash(&self, prefix: Ipv6Prefix) -> u64 {
        prefix_hash(self.shared.seed, prefix.bits(), prefix.prefix_len())
    }

    fn insert_prefix(&mut self, prefix: Ipv6Prefix, number: u32) {
        let hash = self.hash(prefix);
        let len = prefix.prefix_len();
        let at = match self.levels.iter().position(|(l, _)| *l == len) {
            Some(at) => at,
            None => {
                let at = self.levels.partition_point(|(l, _)| *l > len);
                self.levels.insert(at, (len, Filled::new()));
                self.publish_root();
                at
            }
        };
        if !self.levels[at].1.has_room() {
            self.levels[at].1 = self
                .grown(&self.levels[at].1, |e| Ipv6Prefix::new(e.bits.into(), e.len).map(|p| self.hash(p)));
            self.publish_root();
        }
        self.levels[at].1.insert(hash, number);
    }

    fn insert_outer(&mut self, hash: u64, number: u32) {
        if !self.outer.has_room() {
            let seed = self.shared.seed;
            self.outer = self.grown(&self.outer, |e| e.owner.path().map(|p| seed.hash(p.outer_key().bits())));
            self.publish_root();
        }
        self.outer.insert(hash, number);
    }

    /// A copy without tombstones and with room for twice what is live.
    fn grown(&self, old: &Filled, hash: impl Fn(&Entry) -> Option<u64>) -> Filled {
        let index = Index::for_items((old.live * 2).max(8));
        let mut new = Filled { index: Arc::new(index), used: 0, live: 0 };
        for number in old.index.numbers() {
            if let Some(hash) = self.shared.slab.read(number).as_ref().and_then(&hash) {
                new.insert(hash, number);
            }
        }
        new
    }

    fn replace_prefix(&mut self, prefix: Ipv6Prefix, old: u32, new: u32) {
        let hash = self.hash(prefix);
        if let Some((_, level)) = self.levels.iter().find(|(l, _)| *l == prefix.prefix_len()) {
            level.index.replace(hash, old, new);
        }
    }

    fn remove_prefix(&mut self, prefix: Ipv6Prefix, number: u32) {
        let hash = self.hash(prefix);
        if let Some((_, level)) = self.levels.iter_mut().find(|(l, _)| *l == prefix.prefix_len()) {
            level.remove(hash, number);
        }
        let before = self.levels.len();
        self.levels.retain(|(_, level)| level.live > 0);
        if self.levels.len() != before {
            self.publish_root();
        }
    }

    fn publish_root(&self) {
        let level =
            |(len, filled): &(u8, Filled)| Level { len: *len, mask: mask(*len), index: filled.index.clone() };
        let levels = self.levels.iter().map(level).collect();
        let root = Root { levels, outer: self.outer.index.clone(), policy: self.policy };
        self.shared.root.store(Arc::new(root));
    }

    fn write(&mut self, entry: &Entry) -> u32 {
        let number = self.free.pop().unwrap_or_else(|| {
            self.fresh += 1;
            self.fresh - 1
        });
        let fits = self.shared.slab.write(number, entry);
        debug_assert!(fits, "check() has counted the records");
        number
    }

    fn retire_waiting(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let stamp = self.shared.quiescence.retire();
        self.retired.extend(self.waiting.drain(..).map(|number| (stamp, number)));
    }

    fn reclaim(&mut self) {
        if self.retired.is_empty() {
            return;
        }
        let passed = self.shared.quiescence.passed();
        while let Some((_, number)) = self.retired.front().filter(|(stamp, _)| *stamp <= passed) {
            self.free.push(*number);
            self.retired.pop_front();
        }
    }

    fn path_of(&self, t: &Tunnel) -> Result<Path, Rejected> {
        let path = Path {
            tunnel: t.id,
            encap: Encap::Proto41,
            mtu: t.mtu,
            remote: Ipv4Addr::UNSPECIFIED,
            remote_port: 0,
            local: Ipv4Addr::UNSPECIFIED,
            local_port: 0,
            socket: 0,
            learn: Learn::Never,
            watched: self.path(t.id).is_some_and(|p| p.watched),
        };
        match t.outer {
            Outer::Proto41 { local, remote } => {
                Ok(Path { remote, local: local.unwrap_or(Ipv4Addr::UNSPECIFIED), ..path })
            }
            Outer::Udp { local, remote } => self.udp_path(path, local, remote),
        }
    }

    fn udp_path(&self, path: Path, local: UdpLocal, remote: UdpRemote) -> Result<Path, Rejected> {
        let socket = self.socket_for(local);
        let socket = socket.ok_or(Rejected::NotListening { id: path.tunnel, port: local.port })?;
        let (peer, port) = match remote {
            UdpRemote::Fixed(at) | UdpRemote::Learned(Some(at)) => (*at.ip(), at.port()),
            UdpRemote::AnyPort { addr, port } => (addr, port.map_or(0, NonZeroU16::get)),
            UdpRemote::Learned(None) => (Ipv4Addr::UNSPECIFIED, 0),
        };
        Ok(Path {
            encap: Encap::Udp,
            remote: peer,
            remote_port: port,
            local: local.addr.unwrap_or(Ipv4Addr::UNSPECIFIED),
            local_port: local.port,
            socket,
            learn: match remote {
                UdpRemote::Fixed(_) => Learn::Never,
                UdpRemote::AnyPort { .. } => Learn::Port,
                UdpRemote::Learned(_) => Learn::Anywhere,
            },
            ..path
        })
    }

    fn socket_for(&self, local: UdpLocal) -> Option<u16> {
        let exact = local.addr.and_then(|a| self.sockets.get(&SocketAddrV4::new(a, local.port)));
        let any = || self.sockets.get(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, local.port));
        let one = || self.sockets.iter().find(|(at, _)| at.port() == local.port).map(|(_, n)| n);
        exact.or_else(any).or_else(|| if local.addr.is_none() { one() } else { None }).copied()
    }
}

/// The prefixes of a tunnel among its records.
fn prefixes_of(chain: &[(u32, Entry)]) -> impl Iterator<Item = (u32, Ipv6Prefix)> {
    chain.iter().filter_map(|(number, e)| Some((*number, Ipv6Prefix::new(e.bits.into(), e.len)?)))
}

/// What a batch would have changed so far.
#[derive(Default)]
struct Staged<'a> {
    tunnels: HashMap<TunnelId, Option<&'a Tunnel>>,
    prefixes: HashMap<Ipv6Prefix, Option<Claim>>,
    outers: HashMap<OuterKey, Vec<(Ipv4Addr, TunnelId)>>,
    records: usize,
    last_upsert: Option<TunnelId>,
}

#[derive(Clone, Copy)]
enum Claim {
    Tunnel(TunnelId),
    Reserved(Holder),
}

impl<'a> Staged<'a> {
    fn check(&mut self, table: &Editor, update: &'a Update) -> Result<(), Rejected> {
        match update {
            Update::Upsert(tunnel) => self.check_upsert(table, tunnel),
            Update::Remove(id) | Update::Watch(id, _) if !self.exists(table, *id) => {
                Err(Rejected::NoTunnel(*id))
            }
            Update::Remove(id) => {
                self.forget(table, *id);
                self.tunnels.insert(*id, None);
                Ok(())
            }
            Update::Watch(id, _) => {
                self.records += match self.tunnels.get(id) {
                    Some(staged) => staged.map_or(0, |t| 1 + t.prefixes.len()),
                    None => table.chain(*id).len(),
                };
                Ok(())
            }
            Update::Reserve(prefix, holder) => self.check_reserve(table, *prefix, *holder),
            Update::Free(prefix) => match self.claim(table, *prefix) {
                Some(Claim::Reserved(_)) => {
                    self.prefixes.insert(*prefix, None);
                    Ok(())
                }
                Some(Claim::Tunnel(_)) | None => Err(Rejected::NotReserved(*prefix)),
            },
            Update::Policy(_) | Update::Listen(_) | Update::Unlisten(_) => Ok(()),
        }
    }

    fn check_upsert(&mut self, table: &Editor, t: &'a Tunnel) -> Result<(), Rejected> {
        if t.id.0 >= table.capacity {
            return Err(Rejected::Full { id: t.id, capacity: table.capacity });
        }
        if !(MIN_MTU..=MAX_MTU).contains(&t.mtu) {
            return Err(Rejected::Mtu { id: t.id, mtu: t.mtu });
        }
        let path = table.path_of(t)?;
        self.forget(table, t.id);
        for (n, prefix) in t.prefixes.iter().enumerate() {
            if t.prefixes[..n].contains(prefix) {
                return Err(Rejected::PrefixTaken { prefix: *prefix, wanted_by: t.id, held_by: t.id });
            }
            match self.claim(table, *prefix) {
                None => self.prefixes.insert(*prefix, Some(Claim::Tunnel(t.id))),
                Some(Claim::Tunnel(held_by)) => {
                    return Err(Rejected::PrefixTaken { prefix: *prefix, wanted_by: t.id, held_by });
                }
                Some(Claim::Reserved(holder)) => {
                    return Err(Rejected::PrefixReserved { prefix: *prefix, holder });
                }
            };
        }
        self.check_outer(table, &path)?;
        self.tunnels.insert(t.id, Some(t));
        self.records += 1 + t.prefixes.len();
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
        let staged = self.outers.get(&key).and_then(|c| c.iter().find(|(local, _)| meets(*local)));
        if let Some((_, held_by)) = staged {
            return Err(Rejected::OuterTaken { wanted_by: path.tunnel, held_by: *held_by });
        }
        let mut held = None;
        table.outer.index.find(table.shared.seed.hash(key.bits()), |n| {
            let other = table.shared.slab.read(n).and_then(|e| e.owner.path());
            held = other
                .filter(|o| o.outer_key() == key && meets(o.local) && !self.tunnels.contains_key(&o.tunnel));
            held = held.filter(|o| o.tunnel != path.tunnel);
            held.is_some()
        });
        if let Some(other) = held {
            return Err(Rejected::OuterTaken { wanted_by: path.tunnel, held_by: other.tunnel });
        }
        self.outers.entry(key).or_default().push((path.local, path.tunnel));
        Ok(())
    }

    fn check_reserve(&mut self, table: &Editor, prefix: Ipv6Prefix, holder: Holder) -> Result<(), Rejected> {
        if let Some(Claim::Tunnel(held_by)) = self.claim(table, prefix) {
            return Err(Rejected::PrefixTaken { prefix, wanted_by: held_by, held_by });
        }
        self.prefixes.insert(prefix, Some(Claim::Reserved(holder)));
        self.records += 1;
        Ok(())
    }

    fn exists(&self, table: &Editor, id: TunnelId) -> bool {
        self.tunnels.get(&id).map_or_else(|| table.path(id).is_some(), Option::is_some)
    }

    /// What tunnel `id` holds so far is up for grabs.
    fn forget(&mut self, table: &Editor, id: TunnelId) {
        match self.tunnels.get(&id) {
            Some(Some(tunnel)) => {
                for prefix in &tunnel.prefixes {
                    self.prefixes.insert(*prefix, None);
                }
                let key = table.path_of(tunnel).ok().filter(Path::has_remote).map(|p| p.outer_key());
                if let Some(claims) = key.and_then(|k| self.outers.get_mut(&k)) {
                    claims.retain(|(_, by)| *by != id);
                }
            }
            Some(None) => {}
            None => {
                self.prefixes.extend(prefixes_of(&table.chain(id)).map(|(_, prefix)| (prefix, None)));
            }
        }
    }

    fn claim(&self, table: &Editor, prefix: Ipv6Prefix) -> Option<Claim> {
        if let Some(staged) = self.prefixes.get(&prefix) {
            return *staged;
        }
        match table.find_prefix(prefix)?.1.owner {
            Owner::Reserved(holder) => Some(Claim::Reserved(holder)),
            Owner::Tunnel(path) => Some(Claim::Tunnel(path.tunnel)),
        }
    }
}
