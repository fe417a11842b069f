//! Opening devices, starting workers, and what the control plane then holds: writer, punts, injector, counters.
//!
//! In two steps, because a process may give up rights or change its network namespace between them: [`Prepared`] holds
//! the outer sockets, [`Prepared::start`] opens the TUN device and lets the workers run.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::queue::ArrayQueue;
use mio::Waker;

use crate::counters::{CounterReader, counters};
use crate::explain::Explainer;
use crate::io::PacketIo;
use crate::io::ears::Ears;
use crate::io::kernel::KernelIo;
use crate::io::proto41::{self, Proto41Port, Proto41Sockets, Receive};
use crate::io::spread::Spread;
use crate::io::{selftest, tun, udp};
use crate::knobs::{Knob, Knobs, Standings};
use crate::linger::Linger;
use crate::offload::coalesce::Coalescer;
use crate::punt::{self, PuntReader};
use crate::table::editor::Editor;
use crate::table::owners::Owners;
use crate::table::slab::{Encap, OuterKey};
use crate::table::tables;
use crate::update::{Generation, Rejected, TunnelId, Update};
use crate::worker::{Command, Inject, MOST_PACKETS, Worker};

/// Commands that may wait for one worker.
const COMMANDS: usize = 4096;
/// A worker that takes no command for so long is not running any more.
const DEAD: Duration = Duration::from_secs(5);

/// What the forwarder is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Name of the TUN device.
    pub tun: String,
    /// How many forwarding threads; 0: one for each processor that this process may use.
    pub workers: usize,
    /// Each thread stays on a processor of its own; otherwise the system's scheduler places them.
    pub pin: bool,
    /// How long a thread that has nothing to do goes on looking before it sleeps, at least.
    pub linger: Duration,
    /// And at most, where its packets keep coming that soon.
    pub linger_most: Duration,
    /// Most tunnels.
    pub capacity: u32,
    /// Which offloads are wanted.
    pub offload: Knobs,
    /// Protocol 41, and how it is received; `None` turns it off.
    pub proto41: Option<Receive>,
    /// Time to live of outer packets.
    pub ttl: u8,
}

/// Why the forwarder did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The TUN device.
    #[error("cannot open the TUN device {name}: {source}")]
    Tun {
        /// Its name.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// The protocol-41 sockets.
    #[error("cannot open a socket for protocol 41: {0}")]
    Proto41(io::Error),
    /// A UDP socket.
    #[error("cannot listen on UDP {at}: {source}")]
    Listen {
        /// The endpoint.
        at: SocketAddrV4,
        /// What the system said.
        source: io::Error,
    },
    /// Threads, queues and the like.
    #[error("cannot start the forwarding threads: {0}")]
    System(#[from] io::Error),
}

/// What was granted of what was wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Forwarding threads.
    pub workers: usize,
    /// What became of each offload.
    pub offload: Standings,
    /// How protocol 41 is received; `None`: it is off.
    pub proto41: Option<Receive>,
    /// Who spreads the senders of UDP over the workers.
    pub udp_spread: Spread,
}

/// The outer sockets, open.
#[derive(Debug)]
pub struct Prepared {
    settings: Settings,
    standings: Standings,
    proto41: Option<(Vec<Proto41Sockets>, Receive)>,
    udp: HashMap<SocketAddrV4, Vec<UdpSocket>>,
    spread: Spread,
    ears: Ears,
    moved: bool,
}

impl Prepared {
    /// Opens the sockets for protocol 41, if wanted, and tries the UDP offloads in this network.
    pub fn open(mut settings: Settings) -> Result<Self, StartError> {
        if settings.workers == 0 {
            settings.workers = processors().len().max(1);
        }
        if settings.proto41.is_none() {
            settings.offload = settings.offload.with(Knob::Proto41Gso, false);
        }
        let mut standings = Standings::wanted(settings.offload);
        let mut open = |receive| {
            let (mut all, taken) = proto41::open(settings.workers, receive, &mut standings)?;
            all.iter_mut().try_for_each(|sockets| sockets.set_ttl(settings.ttl))?;
            Ok((all, taken))
        };
        let proto41 = settings.proto41.map(&mut open).transpose().map_err(StartError::Proto41)?;
        selftest::udp(&mut standings);
        settings.offload = standings.in_use();
        Ok(Self {
            settings,
            standings,
            proto41,
            udp: HashMap::new(),
            spread: Spread::granted(),
            ears: Ears::open(),
            moved: false,
        })
    }

    /// Opens UDP sockets for an endpoint.
    pub fn listen(&mut self, at: SocketAddrV4) -> Result<(), StartError> {
        let opened = claim(at).and_then(|()| open_sockets(at, &self.settings, self.spread));
        let sockets = opened.map_err(|source| StartError::Listen { at, source })?;
        self.udp.insert(at, sockets);
        Ok(())
    }

    /// The process leaves the network that the sockets are in: no more can be opened there, nor can it be asked for its
    /// addresses.
    pub fn leave_network(&mut self) {
        self.moved = true;
    }

    /// Opens the TUN device and starts the workers. `seed` should be random.
    pub fn start(self, seed: u64) -> Result<Dataplane, StartError> {
        let Self { settings, mut standings, proto41, udp, spread, ears, moved } = self;
        let tun_error = |source| StartError::Tun { name: settings.tun.clone(), source };
        let queues = tun::open(&settings.tun, settings.workers, &mut standings).map_err(tun_error)?;
        let (rung, mut proto41) = match proto41 {
            Some((sockets, rung)) => (Some(rung), sockets),
            None => (None, Vec::new()),
        };
        let used = standings.in_use();
        let facts =
            Facts { workers: settings.workers, offload: standings, proto41: rung, udp_spread: spread };
        let (editor, mut readers) = tables(settings.capacity, settings.workers + 2, seed);
        // The last two are no worker's.
        let (Some(beside), Some(owners)) = (readers.pop(), readers.pop().map(Owners::new)) else {
            return Err(io::Error::from(io::ErrorKind::Other).into());
        };
        let (counters, tallies) = counters(settings.workers, settings.capacity);
        let (punt_sender, punts) = punt::queue()?;
        let started = Instant::now();
        let workers = settings.workers;
        let explainer = Explainer::new(beside, started);
        let mut doors = Vec::new();
        let mut threads = Vec::new();
        let parts = queues.into_iter().zip(readers).zip(tallies);
        for (n, ((queue, reader), tally)) in parts.enumerate() {
            let port =
                if proto41.is_empty() { None } else { Some(Proto41Port::new(proto41.remove(0), !moved)) };
            let merge = (used.is_on(Knob::MergeTcp), used.is_on(Knob::MergeUdp));
            let coalescer = Coalescer::new(MOST_PACKETS, merge, seed);
            let (io, waker) = KernelIo::new(queue, port, used.is_on(Knob::UdpGso), coalescer)?;
            let door = Door { commands: Arc::new(ArrayQueue::new(COMMANDS)), waker };
            let worker = Worker::new(
                io,
                reader,
                tally,
                punt_sender.clone(),
                door.commands.clone(),
                (seed, started),
                workers,
            );
            let worker = worker.with_linger(Linger::new(settings.linger, settings.linger_most));
            threads.push(spawn(n, settings.pin, worker)?);
            doors.push(door);
        }
        let doors: Arc<[Door]> = doors.into();
        let mut writer = TableWriter::new(editor, counters.clone(), doors.clone(), (settings, spread), moved);
        udp.into_iter().for_each(|(at, sockets)| writer.adopt(at, sockets));
        let injector = Injector(doors.clone());
        Ok(Dataplane {
            writer,
            punts,
            injector,
            counters,
            workers: Workers { doors, threads },
            ears,
            facts,
            explainer,
            owners,
            started,
        })
    }
}

/// A running forwarder.
#[derive(Debug)]
pub struct Dataplane {
    /// Changes the tables.
    pub writer: TableWriter,
    /// What came up.
    pub punts: PuntReader,
    /// Sends down.
    pub injector: Injector,
    /// What was counted.
    pub counters: CounterReader,
    /// The threads.
    pub workers: Workers,
    /// What the outer network says of paths.
    pub ears: Ears,
    /// What was granted.
    pub facts: Facts,
    /// Says what would become of packets.
    pub explainer: Explainer,
    /// Says whose inner addresses are.
    pub owners: Owners,
    /// When it started: `last_seen` counts from here.
    pub started: Instant,
}

/// The processors that this process may use.
fn processors() -> Vec<usize> {
    let set = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap_or_default();
    (0..nix::sched::CpuSet::count()).filter(|n| set.is_set(*n).unwrap_or(false)).collect()
}

fn spawn(n: usize, pin: bool, worker: Worker<KernelIo>) -> io::Result<JoinHandle<()>> {
    let mine = if pin { processors() } else { Vec::new() };
    std::thread::Builder::new().name(format!("forward-{n}")).spawn(move || {
        let mut set = nix::sched::CpuSet::new();
        if let Some(cpu) = mine.get(n % mine.len().max(1)) {
            // A thread that could not be pinned forwards as well, only less evenly.
            let _pinned = set
                .set(*cpu)
                .and_then(|()| nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set));
        }
        worker.run();
    })
}

fn open_sockets(at: SocketAddrV4, settings: &Settings, spread: Spread) -> io::Result<Vec<UdpSocket>> {
    let all = udp::open_group(at, settings.workers, settings.offload.is_on(Knob::UdpGro), spread)?;
    all.iter().try_for_each(|socket| socket.set_ttl(settings.ttl.into()))?;
    Ok(all)
}

/// SO_REUSEPORT would let a second instance of ours share the endpoint silently; binding once without it asks the kernel
/// whether anybody is there.
fn claim(at: SocketAddrV4) -> io::Result<()> {
    UdpSocket::bind(at).map(std::mem::drop)
}

#[derive(Debug)]
struct Door {
    commands: Arc<ArrayQueue<Command>>,
    waker: Arc<Waker>,
}

impl Door {
    /// Waits while the queue is full: workers empty it at every turn. A worker that does not for seconds is dead, which
    /// `Workers::has_failed` tells; nothing more can reach it.
    fn command(&self, mut command: Command) {
        let patience = Instant::now() + DEAD;
        while let Err(back) = self.commands.push(command) {
            if Instant::now() > patience {
                return;
            }
            command = back;
            std::thread::sleep(Duration::from_millis(1));
        }
        self.ring();
    }

    fn ring(&self) {
        // Waking fails only when the descriptor is gone, and then so is the worker.
        let _woken = self.waker.wake();
    }
}

/// The sockets on one endpoint.
#[derive(Debug)]
struct Listening {
    number: u16,
    /// The workers' sockets once more, to make all of them deaf before the first is closed.
    group: Vec<UdpSocket>,
}

/// The only one who may change the tables; not `Clone`.
#[derive(Debug)]
pub struct TableWriter {
    editor: Editor,
    counters: CounterReader,
    doors: Arc<[Door]>,
    settings: Settings,
    spread: Spread,
    listening: HashMap<SocketAddrV4, Listening>,
    next_socket: u16,
    free_sockets: Vec<u16>,
    sealed: bool,
}

impl TableWriter {
    fn new(
        editor: Editor,
        counters: CounterReader,
        doors: Arc<[Door]>,
        (settings, spread): (Settings, Spread),
        sealed: bool,
    ) -> Self {
        Self {
            editor,
            counters,
            doors,
            settings,
            spread,
            listening: HashMap::new(),
            next_socket: 0,
            free_sockets: Vec::new(),
            sealed,
        }
    }

    /// Applies a batch as a whole, or refuses it and changes nothing. `Unlisten` is judged by the tunnels there are before
    /// the batch.
    pub fn apply(&mut self, batch: &[Update]) -> Result<Generation, Rejected> {
        let opened = self.open_sockets(batch)?;
        let applied = self.check_unlisten(batch).and_then(|()| {
            for update in batch {
                if let Update::Upsert(tunnel) = update {
                    self.counters.make_room(tunnel.id);
                }
            }
            self.editor.apply(batch)
        });
        if applied.is_err() {
            opened.iter().for_each(|at| self.close_sockets(*at));
            return applied;
        }
        for update in batch {
            if let Update::Unlisten(at) = update {
                self.close_sockets(*at);
            }
        }
        applied
    }

    /// The tunnel whose peer is at this endpoint, as packets to it name it: its encapsulation, our endpoint, the peer's.
    pub fn tunnel_to(&self, encap: Encap, local: SocketAddrV4, remote: SocketAddrV4) -> Option<TunnelId> {
        let key = OuterKey::new(encap, *remote.ip(), remote.port(), local.port());
        self.editor.peer(key, *local.ip()).map(|path| path.tunnel)
    }

    /// Where UDP sockets listen.
    pub fn listening(&self) -> Vec<SocketAddrV4> {
        let mut all: Vec<_> = self.listening.keys().copied().collect();
        all.sort_unstable();
        all
    }

    /// How many tunnels the table holds.
    pub fn tunnels(&self) -> u32 {
        self.editor.tunnels()
    }

    /// Octets of the tables, without counters.
    pub fn memory(&self) -> usize {
        self.editor.memory()
    }

    fn open_sockets(&mut self, batch: &[Update]) -> Result<Vec<SocketAddrV4>, Rejected> {
        let mut opened = Vec::new();
        for update in batch {
            let Update::Listen(at) = update else { continue };
            if self.listening.contains_key(at) {
                continue;
            }
            match self.open_one(*at) {
                Ok(sockets) => self.adopt(*at, sockets),
                Err(why) => {
                    opened.iter().for_each(|at| self.close_sockets(*at));
                    return Err(Rejected::Listen { at: *at, why });
                }
            }
            opened.push(*at);
        }
        Ok(opened)
    }

    fn open_one(&self, at: SocketAddrV4) -> Result<Vec<UdpSocket>, String> {
        if self.sealed {
            return Err("this instance has left the network where its sockets are; restart it".to_owned());
        }
        if self.free_sockets.is_empty() && self.next_socket == u16::MAX {
            return Err("no socket numbers left".to_owned());
        }
        // Our own sockets share the port until the old ones are closed; only somebody else's is in the way.
        let ours = self.listening.keys().any(|o| o.port() == at.port());
        let free = if ours { Ok(()) } else { claim(at) };
        let opened = free.and_then(|()| open_sockets(at, &self.settings, self.spread));
        opened.map_err(|e| {
            let next = if e.kind() == io::ErrorKind::AddrInUse {
                "; `ss -lunp` names who has that port"
            } else {
                ""
            };
            format!("{e}{next}")
        })
    }

    fn adopt(&mut self, at: SocketAddrV4, sockets: Vec<UdpSocket>) {
        let number = self.free_sockets.pop().unwrap_or_else(|| {
            self.next_socket += 1;
            self.next_socket - 1
        });
        // Without descriptors to spare, they will be closed one after the other, hearing.
        let group = sockets.iter().map(UdpSocket::try_clone).collect::<io::Result<_>>().unwrap_or_default();
        self.listening.insert(at, Listening { number, group });
        self.editor.name_socket(at, number);
        for (door, socket) in self.doors.iter().zip(sockets) {
            door.command(Command::Open(number, at, socket));
        }
    }

    fn close_sockets(&mut self, at: SocketAddrV4) {
        let Some(Listening { number, group }) = self.listening.remove(&at) else { return };
        udp::deafen(&group);
        self.editor.forget_socket(at);
        self.doors.iter().for_each(|door| door.command(Command::Close(number)));
        self.free_sockets.push(number);
    }

    fn check_unlisten(&self, batch: &[Update]) -> Result<(), Rejected> {
        for update in batch {
            let Update::Unlisten(at) = update else { continue };
            let why = match self.listening.get(at) {
                None => "nothing listens there",
                Some(open) if self.editor.uses_socket(open.number) => "tunnels still end there",
                Some(_) => continue,
            };
            return Err(Rejected::Unlisten { at: *at, why: why.to_owned() });
        }
        Ok(())
    }
}

/// Sends packets down for the control plane.
#[derive(Clone, Debug)]
pub struct Injector(Arc<[Door]>);

/// The queue to the forwarder is full; the packet comes back.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the queue to the forwarder is full")]
pub struct QueueFull(pub Inject);

impl Injector {
    /// Queues a packet; it is sent at the forwarder's next turn.
    pub fn inject(&self, inject: Inject) -> Result<(), QueueFull> {
        let key = match &inject {
            Inject::Tunnel { id, .. } | Inject::TunnelAt { id, .. } | Inject::Whole { id, .. } => {
                id.0 as usize
            }
            Inject::Toward { packet } => packet.get(39).copied().map_or(0, usize::from),
            Inject::Datagram { remote, .. } => usize::from(remote.port()),
        };
        let door = &self.0[key % self.0.len()];
        match door.commands.push(Command::Inject(inject)) {
            Ok(()) => {
                door.ring();
                Ok(())
            }
            Err(Command::Inject(back)) => Err(QueueFull(back)),
            Err(Command::Open(..) | Command::Close(_) | Command::Stop) => Ok(()),
        }
    }
}

/// The forwarding threads.
#[derive(Debug)]
pub struct Workers {
    doors: Arc<[Door]>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Whether a thread has ended although nobody asked it to: a bug, and the router must not go on half.
    pub fn has_failed(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Stops all threads and waits for them; their devices are closed then. `false` when one had panicked.
    pub fn stop(self) -> bool {
        self.doors.iter().for_each(|door| door.command(Command::Stop));
        self.threads.into_iter().map(JoinHandle::join).fold(true, |ok, ended| ok & ended.is_ok())
    }
}

/// A worker on the in-memory twin, for tests and benches: the real loop, tables and counters.
pub fn in_memory(capacity: u32, seed: u64) -> io::Result<InMemory> {
    in_memory_on(crate::io::mem::MemIo::new(), capacity, seed)
}

/// The same on devices of the caller's own.
pub fn in_memory_on<I: PacketIo>(io: I, capacity: u32, seed: u64) -> io::Result<InMemory<I>> {
    let (editor, mut readers) = tables(capacity, 2, seed);
    let (counters, mut tallies) = counters(1, capacity);
    let (sender, punts) = punt::queue()?;
    let commands = Arc::new(ArrayQueue::new(COMMANDS));
    let (Some(beside), Some(reader), Some(tally)) = (readers.pop(), readers.pop(), tallies.pop()) else {
        return Err(io::ErrorKind::Other.into());
    };
    let started = Instant::now();
    let explainer = Explainer::new(beside, started);
    let mut worker = Worker::new(io, reader, tally, sender, commands.clone(), (seed, started), 1);
    worker.online();
    Ok(InMemory { worker, editor, counters, punts, commands: InMemoryCommands(commands), explainer })
}

/// What [`in_memory`] makes.
#[derive(Debug)]
pub struct InMemory<I = crate::io::mem::MemIo> {
    /// The forwarder.
    pub worker: Worker<I>,
    /// Its tables.
    pub editor: Editor,
    /// Its counters.
    pub counters: CounterReader,
    /// What came up.
    pub punts: PuntReader,
    /// The way down.
    pub commands: InMemoryCommands,
    /// Says what would become of packets.
    pub explainer: Explainer,
}

impl<I> InMemory<I> {
    /// Applies a batch as `TableWriter` does; UDP endpoints that tunnels end at count as open.
    pub fn apply(&mut self, batch: &[Update]) -> Result<Generation, Rejected> {
        for update in batch {
            match update {
                Update::Listen(at) => self.editor.name_socket(*at, at.port()),
                Update::Upsert(tunnel) => self.counters.make_room(tunnel.id),
                Update::Remove(_) | Update::Reserve(..) | Update::Free(_) => {}
                Update::Unlisten(_) | Update::Watch(..) | Update::Meter(..) => {}
                Update::Address(..) | Update::Policy(_) => {}
            }
        }
        self.editor.apply(batch)
    }
}

impl InMemory {
    /// A local endpoint with any address, for [`Update::Listen`].
    pub fn any(port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)
    }
}

/// The way down to an in-memory worker.
#[derive(Clone, Debug)]
pub struct InMemoryCommands(Arc<ArrayQueue<Command>>);

impl InMemoryCommands {
    /// Queues a packet for the worker's next turn. `false` when the queue is full.
    pub fn inject(&self, inject: Inject) -> bool {
        self.0.push(Command::Inject(inject)).is_ok()
    }
}
