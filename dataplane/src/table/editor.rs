//! The one writer of the tables: checks a whole batch, then publishes it record by record.
//!
//! A batch that is refused has changed nothing. Each prefix passes from its old record to its new one in a single
//! atomic store, also when it changes hands within a batch, so a reader never finds half a tunnel, nor for a moment the
//! prefix around it. Nothing here waits for readers: what they may still hold is set aside until `qsbr` gives it back.

use std::collections::{HashMap, VecDeque};
use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::num::NonZeroU16;
use std::sync::Arc;

use super::filled::Filled;
use super::prefixes::Prefixes;
use super::slab::{Encap, Entry, Learn, NO_PREFIX, NONE, OuterKey, Owner, Path};
use super::stage::{Keyed, Staged};
use super::{Root, Shared};
use crate::update::{
    Generation, Holder, Ipv6Prefix, Meter, Outer, Policy, Rejected, Tunnel, TunnelId, UdpLocal, UdpRemote,
    Update,
};

/// From so many updates on, room for all of them is made at once.
const LARGE_BATCH: usize = if cfg!(loom) { 2 } else { 256 };

/// Updates whose misses in the caches overlap: what is loaded for them must stay near until it is used.
const AHEAD: usize = 32;

/// Room for so many prefixes on their way out is kept from batch to batch.
const FEW_LEAVING: usize = 64;

/// Where the peer of this tunnel is looked for.
fn outer_key(outer: Outer) -> OuterKey {
    match outer {
        Outer::Proto41 { remote, .. } => OuterKey::new(Encap::Proto41, remote, 0, 0),
        Outer::Udp { local, remote } => {
            let (addr, port) = peer(remote);
            OuterKey::new(Encap::Udp, addr, port, local.port)
        }
    }
}

/// What is known of the peer's address and port; zeros stand for the rest.
fn peer(remote: UdpRemote) -> (Ipv4Addr, u16) {
    match remote {
        UdpRemote::Fixed(at) | UdpRemote::Learned(Some(at)) => (*at.ip(), at.port()),
        UdpRemote::AnyPort { addr, port } => (addr, port.map_or(0, NonZeroU16::get)),
        UdpRemote::Learned(None) => (Ipv4Addr::UNSPECIFIED, 0),
    }
}

/// The only writer of a table.
#[derive(Debug)]
pub struct Editor {
    shared: Arc<Shared>,
    pub(super) capacity: u32,
    prefixes: Prefixes,
    outer: Filled,
    policy: Policy,
    sockets: HashMap<SocketAddrV4, u16>,
    /// How many tunnels send with each UDP socket.
    socket_users: Vec<u32>,
    free: Vec<u32>,
    fresh: u32,
    retired: VecDeque<(u64, u32)>,
    waiting: Vec<u32>,
    /// Prefixes that nobody holds any more; they lead to their old records until the batch is over.
    leaving: HashMap<Ipv6Prefix, u32, Keyed>,
    /// Whether the batch brings anything that may take them over; otherwise they go at once.
    has_takers: bool,
    /// Readers need a new root at the end of the batch.
    is_reshaped: bool,
    staged: Staged,
    /// The old and the new records of the tunnel being put; kept for their room.
    old: Vec<(u32, Entry)>,
    new: Vec<(u32, Ipv6Prefix)>,
    tunnels: u32,
    generation: u64,
}

impl Editor {
    pub(super) fn new(shared: Arc<Shared>, capacity: u32) -> Self {
        let root = shared.root.load_full();
        let seed = shared.seed;
        let editor = Self {
            shared,
            capacity,
            prefixes: Prefixes::new(seed),
            outer: Filled::for_items(0),
            policy: root.policy,
            sockets: HashMap::new(),
            socket_users: Vec::new(),
            free: Vec::new(),
            fresh: 0,
            retired: VecDeque::new(),
            waiting: Vec::new(),
            leaving: HashMap::with_hasher(Keyed::new(seed)),
            has_takers: false,
            is_reshaped: false,
            staged: Staged::new(seed),
            old: Vec::new(),
            new: Vec::new(),
            tunnels: 0,
            generation: 0,
        };
        editor.publish_root();
        editor
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
        let records = self.shared.slab.allocated() + self.free.capacity() * size_of::<u32>();
        records + self.shared.by_id.allocated() + self.prefixes.memory() + self.outer.memory()
    }

    /// Whether a tunnel sends with the UDP sockets of this number.
    pub fn uses_socket(&self, number: u16) -> bool {
        self.socket_users.get(usize::from(number)).is_some_and(|users| *users > 0)
    }

    /// The tunnel with this number, as it stands in the table.
    pub fn path(&self, id: TunnelId) -> Option<Path> {
        self.shared.slab.read(self.shared.by_id.head(id)?)?.owner.path()
    }

    /// Whether there is a tunnel with this number.
    pub(super) fn has(&self, id: TunnelId) -> bool {
        self.shared.by_id.head(id).is_some()
    }

    /// Applies all of `batch`, or refuses it and changes nothing. `Listen` and `Unlisten` are the caller's
    /// business (see [`Self::name_socket`]) and are passed over.
    pub fn apply(&mut self, batch: &[Update]) -> Result<Generation, Rejected> {
        self.reclaim();
        let mut staged = std::mem::replace(&mut self.staged, Staged::new(self.shared.seed));
        let checked = self.check(batch, &mut staged);
        self.staged = staged;
        checked?;
        self.make_room(batch);
        self.has_takers = batch.iter().any(|u| matches!(u, Update::Upsert(_) | Update::Reserve(..)));
        for update in batch {
            self.carry_out(update);
        }
        self.see_off();
        self.retire_waiting();
        self.generation += 1;
        Ok(Generation(self.generation))
    }

    fn check(&self, batch: &[Update], staged: &mut Staged) -> Result<(), Rejected> {
        staged.begin(batch.len());
        for start in (0..batch.len()).step_by(AHEAD) {
            let end = batch.len().min(start + AHEAD);
            self.touch(&batch[start..end]);
            (start..end).try_for_each(|at| staged.check(self, batch, at))?;
        }
        let free = self.shared.slab.most() - self.fresh as usize + self.free.len();
        if staged.records > free {
            // Reserved prefixes alone can fill the table; then the number that does not fit is the first beyond it.
            let id = staged.last_upsert.unwrap_or(TunnelId(self.capacity));
            return Err(Rejected::Full { id, capacity: self.capacity });
        }
        Ok(())
    }

    /// Loads what the next updates will look at and write, so that their misses in the caches overlap instead of
    /// following each other. Changes nothing.
    fn touch(&self, updates: &[Update]) {
        let Shared { slab, by_id, seed, .. } = &*self.shared;
        if !slab.is_large() {
            return;
        }
        let outer = |key: OuterKey| self.outer.index.touch(seed.hash(key.bits()));
        let mut heads = [NONE; AHEAD];
        let mut seen = 0;
        for (head, update) in heads.iter_mut().zip(updates) {
            match update {
                Update::Upsert(tunnel) => {
                    *head = by_id.head(tunnel.id).unwrap_or(NONE);
                    seen ^= outer(outer_key(tunnel.outer));
                    seen = tunnel.prefixes.iter().fold(seen, |seen, p| seen ^ self.prefixes.touch(*p));
                }
                Update::Remove(id) | Update::Watch(id, _) => *head = by_id.head(*id).unwrap_or(NONE),
                Update::Reserve(prefix, _) | Update::Free(prefix) => seen ^= self.prefixes.touch(*prefix),
                Update::Listen(_) | Update::Unlisten(_) | Update::Meter(..) => {}
                Update::Address(..) | Update::Policy(_) => {}
            }
        }
        let coming = self.free.iter().rev().take(updates.len());
        let records = coming.chain(&heads).fold(0, |seen, number| seen ^ slab.touch(*number));
        // Which slots a removal empties only its record says.
        for (head, update) in heads.iter().zip(updates) {
            let Some(entry) = slab.read(*head).filter(|_| matches!(update, Update::Remove(_))) else {
                continue;
            };
            seen ^= entry.owner.path().map_or(0, |path| outer(path.outer_key()));
            seen ^= entry.prefix().map_or(0, |prefix| self.prefixes.touch(prefix));
        }
        // The optimiser must not find out that nobody wants them.
        black_box((seen, records));
    }

    /// Growing step by step would copy the same indexes again and again.
    fn make_room(&mut self, batch: &[Update]) {
        if batch.len() < LARGE_BATCH {
            return;
        }
        let mut coming = Vec::new();
        let mut new = 0;
        for update in batch {
            match update {
                Update::Upsert(tunnel) => {
                    coming.extend_from_slice(&tunnel.prefixes);
                    new += usize::from(self.shared.by_id.head(tunnel.id).is_none());
                }
                Update::Reserve(prefix, _) => coming.push(*prefix),
                Update::Remove(_) | Update::Free(_) | Update::Listen(_) | Update::Unlisten(_) => {}
                Update::Watch(..) | Update::Meter(..) | Update::Address(..) | Update::Policy(_) => {}
            }
        }
        let mut changed = self.prefixes.expect(coming, &self.shared.slab);
        if !self.outer.has_room(new) {
            self.grow_outer(new);
            changed = true;
        }
        if changed {
            self.publish_root();
        }
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
            Update::Meter(id, meter) => self.shared.meters.set(*id, *meter),
            Update::Address(id, address) => self.shared.ours.set(*id, *address),
            Update::Listen(_) | Update::Unlisten(_) => {}
        }
    }

    fn put(&mut self, path: Path, prefixes: &[Ipv6Prefix]) {
        let mut old = std::mem::take(&mut self.old);
        old.clear();
        old.extend(self.chain(path.tunnel));
        let was = old.first().and_then(|(number, e)| Some((*number, e.owner.path()?)));
        let mut new = std::mem::take(&mut self.new);
        let head = self.write_chain(path, prefixes, &mut new);
        self.switch_prefixes(&old, &new);
        self.move_outer(was, head, path);
        self.shared.by_id.publish(path.tunnel, Some(head));
        self.tunnels += u32::from(was.is_none());
        self.use_socket(was.map(|(_, path)| path), Some(path));
        self.waiting.extend(old.iter().map(|(n, _)| *n));
        (self.old, self.new) = (old, new);
    }

    /// Lets the prefixes lead to the new records; those that are given up lead to the old ones until the batch is over.
    fn switch_prefixes(&mut self, old: &[(u32, Entry)], new: &[(u32, Ipv6Prefix)]) {
        let held = old.iter().filter_map(|(number, e)| Some((*number, e.prefix()?)));
        // A tunnel whose endpoint has moved keeps its prefixes in their order.
        if held.clone().map(|(_, prefix)| prefix).eq(new.iter().map(|(_, prefix)| *prefix)) {
            for ((was, prefix), (number, _)) in held.zip(new) {
                self.prefixes.replace(prefix, was, *number);
            }
            return;
        }
        self.leaving.extend(held.map(|(number, prefix)| (prefix, number)));
        for (number, prefix) in new {
            self.give(*prefix, None, *number);
        }
    }

    /// Writes the records of a tunnel where nobody finds them yet: one for each prefix, or one without. Returns the first.
    fn write_chain(
        &mut self,
        path: Path,
        prefixes: &[Ipv6Prefix],
        written: &mut Vec<(u32, Ipv6Prefix)>,
    ) -> u32 {
        let owner = Owner::Tunnel(path);
        written.clear();
        let mut next = NONE;
        for prefix in prefixes.iter().rev() {
            next = self.write(&Entry { bits: prefix.bits(), len: prefix.prefix_len(), owner, next });
            written.push((next, *prefix));
        }
        written.reverse();
        if prefixes.is_empty() {
            next = self.write(&Entry { bits: 0, len: NO_PREFIX, owner, next });
        }
        next
    }

    fn move_outer(&mut self, old: Option<(u32, Path)>, head: u32, path: Path) {
        let seed = self.shared.seed;
        let hash = |p: &Path| seed.hash(p.outer_key().bits());
        match old.filter(|(_, was)| was.has_remote()) {
            Some((n, was)) if path.has_remote() && was.outer_key() == path.outer_key() => {
                self.outer.index.replace(hash(&was), n, head);
            }
            Some((n, was)) => {
                if path.has_remote() {
                    self.insert_outer(hash(&path), head);
                }
                self.outer.remove(hash(&was), n);
            }
            None if path.has_remote() => self.insert_outer(hash(&path), head),
            None => {}
        }
    }

    fn use_socket(&mut self, was: Option<Path>, is: Option<Path>) {
        let number =
            |path: Option<Path>| path.filter(|p| p.encap == Encap::Udp).map(|p| usize::from(p.socket));
        if let Some(users) = number(was).and_then(|n| self.socket_users.get_mut(n)) {
            *users -= 1;
        }
        let Some(number) = number(is) else { return };
        if self.socket_users.len() <= number {
            self.socket_users.resize(number + 1, 0);
        }
        self.socket_users[number] += 1;
    }

    fn remove(&mut self, id: TunnelId) {
        let mut old = std::mem::take(&mut self.old);
        old.clear();
        old.extend(self.chain(id));
        for (prefix, number) in old.iter().filter_map(|(number, e)| Some((e.prefix()?, *number))) {
            self.let_go(prefix, number);
        }
        if let Some((head, path)) = old.first().and_then(|(n, e)| Some((*n, e.owner.path()?))) {
            if path.has_remote() {
                self.outer.remove(self.shared.seed.hash(path.outer_key().bits()), head);
            }
            self.use_socket(Some(path), None);
            self.tunnels -= 1;
        }
        self.shared.by_id.publish(id, None);
        self.shared.meters.set(id, Meter::NONE);
        self.shared.ours.set(id, None);
        self.waiting.extend(old.iter().map(|(n, _)| *n));
        self.old = old;
    }

    fn watch(&mut self, id: TunnelId, on: bool) {
        let Some(path) = self.path(id) else { return };
        let prefixes: Vec<_> = self.chain(id).filter_map(|(_, entry)| entry.prefix()).collect();
        self.put(Path { manners: path.manners.with_watched(on), ..path }, &prefixes);
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
            self.let_go(prefix, number);
            self.waiting.push(number);
        }
    }

    /// Nobody holds this prefix any more, which leads to this record.
    fn let_go(&mut self, prefix: Ipv6Prefix, number: u32) {
        if self.has_takers {
            self.leaving.insert(prefix, number);
        } else {
            self.is_reshaped |= self.prefixes.remove(prefix, number, &self.shared.slab);
        }
    }

    /// Lets `prefix` lead to record `new`: in one step, where it led to `old` or to somebody who has left it.
    fn give(&mut self, prefix: Ipv6Prefix, old: Option<u32>, new: u32) {
        match old.or_else(|| self.leaving.remove(&prefix)) {
            Some(old) => self.prefixes.replace(prefix, old, new),
            None => self.insert_prefix(prefix, new),
        }
    }

    /// At the end of a batch: what nobody has taken over is gone.
    fn see_off(&mut self) {
        if !self.leaving.is_empty() {
            let none = HashMap::with_hasher(Keyed::new(self.shared.seed));
            let mut leaving = std::mem::replace(&mut self.leaving, none);
            for (prefix, number) in leaving.drain() {
                self.is_reshaped |= self.prefixes.remove(prefix, number, &self.shared.slab);
            }
            leaving.shrink_to(FEW_LEAVING);
            self.leaving = leaving;
        }
        if std::mem::take(&mut self.is_reshaped) {
            self.publish_root();
        }
    }

    /// The records of a tunnel, its first one first.
    pub(super) fn chain(&self, id: TunnelId) -> impl Iterator<Item = (u32, Entry)> {
        let record = |number: u32| Some((number, self.shared.slab.read(number)?));
        let first = self.shared.by_id.head(id).and_then(record);
        std::iter::successors(first, move |(_, entry)| {
            Some(entry.next).filter(|n| *n != NONE).and_then(record)
        })
    }

    pub(super) fn find_prefix(&self, prefix: Ipv6Prefix) -> Option<(u32, Entry)> {
        let number = self.prefixes.find(prefix, &self.shared.slab)?;
        Some((number, self.shared.slab.read(number)?))
    }

    /// A tunnel with this outer key for which `is_it` holds.
    pub(super) fn by_outer(&self, key: OuterKey, is_it: impl Fn(&Path) -> bool) -> Option<Path> {
        let mut held = None;
        self.outer.index.find(self.shared.seed.hash(key.bits()), |n| {
            let path = self.shared.slab.read(n).and_then(|e| e.owner.path());
            held = path.filter(|p| p.outer_key() == key && is_it(p));
            held.is_some()
        });
        held
    }

    fn insert_prefix(&mut self, prefix: Ipv6Prefix, number: u32) {
        if self.prefixes.insert(prefix, number, &self.shared.slab) {
            self.publish_root();
        }
    }

    fn insert_outer(&mut self, hash: u64, number: u32) {
        if !self.outer.has_room(1) {
            self.grow_outer(1);
            self.publish_root();
        }
        self.outer.insert(hash, number);
    }

    fn grow_outer(&mut self, more: usize) {
        let (seed, slab) = (self.shared.seed, &self.shared.slab);
        let hash = |n| slab.read(n)?.owner.path().map(|p| seed.hash(p.outer_key().bits()));
        self.outer = self.outer.grown(self.outer.wanted(more), hash);
    }

    fn publish_root(&self) {
        let levels = self.prefixes.published();
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

    /// The tunnel whose peer has this key and that takes packets to our address `local`.
    pub fn peer(&self, key: OuterKey, local: Ipv4Addr) -> Option<Path> {
        self.by_outer(key, |path| path.takes_local(local))
    }

    pub(super) fn path_of(&self, t: &Tunnel) -> Result<Path, Rejected> {
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
            manners: t.manners.with_watched(self.path(t.id).is_some_and(|p| p.manners.is_watched())),
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
        let (peer, port) = peer(remote);
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
