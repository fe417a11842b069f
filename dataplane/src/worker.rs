//! The loop of one thread: receive a batch, judge it, send it, be quiescent; sleep when there is nothing.
//!
//! Runs to completion: no packet changes threads, nothing waits for anybody. Generic over [`PacketIo`], so the same loop
//! runs in tests and benches without a kernel.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::queue::ArrayQueue;

use crate::counters::{Event, Tally};
use crate::encap;
use crate::forward::judge_all;
use crate::io::{Destination, PacketIo, Side};
use crate::limit::Buckets;
use crate::linger::Linger;
use crate::meter::Meters;
use crate::offload::segment::{Layout, complete};
use crate::packet::batch::{Arrival, Batch, Packet, Sender};
use crate::packet::{self, icmp};
use crate::punt::PuntSender;
use crate::table::slab::Path;
use crate::table::{Reader, View};
use crate::update::{Policy, TunnelId};
use crate::verdict::{Judged, PuntClass, Reason, Verdict};

/// Buffers of each side; each may hold a super-packet.
const BUFFERS: usize = 32;
/// Packets that one buffer may hold at most, on average.
const SLICES: usize = 64;
/// A look that took longer has let somebody else run, who needs this processor more.
const CONTENDED: Duration = Duration::from_micros(5);
/// So long in all may others run while a worker looks long.
const MOMENTS: Duration = Duration::from_micros(100);
/// Packets that one batch may hold.
pub(crate) const MOST_PACKETS: usize = BUFFERS * SLICES;
/// Punts a second and sender (RFC 5572 leaves the number open; a client's set-up takes about ten).
const PUNTS: (u32, u32) = (50, 100);

/// What the control plane has sent down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inject {
    /// A whole IPv6 packet into a tunnel.
    Tunnel {
        /// Which.
        id: TunnelId,
        /// The packet.
        packet: Vec<u8>,
    },
    /// The same whole, whatever the tunnel's MTU: DF is set, and no fragment of it arrives (RFC 8899 section 3).
    Whole {
        /// Which.
        id: TunnelId,
        /// The packet.
        packet: Vec<u8>,
    },
    /// To where its destination is: into a tunnel, or to the kernel.
    Toward {
        /// A whole IPv6 packet.
        packet: Vec<u8>,
    },
    /// The same to another endpoint: a probe.
    TunnelAt {
        /// Which.
        id: TunnelId,
        /// Where to instead of its peer.
        remote: SocketAddrV4,
        /// Which of our addresses it comes from.
        local: Ipv4Addr,
        /// The packet.
        packet: Vec<u8>,
    },
    /// A bare datagram back to whom a punt came from.
    Datagram {
        /// Our endpoint.
        local: SocketAddrV4,
        /// The peer.
        remote: SocketAddrV4,
        /// What it says.
        payload: Vec<u8>,
    },
}

/// What a worker is told.
#[derive(Debug)]
pub(crate) enum Command {
    Open(u16, SocketAddrV4, UdpSocket),
    Close(u16),
    Inject(Inject),
    Stop,
}

/// One forwarding thread's state.
#[derive(Debug)]
pub struct Worker<I> {
    /// Its devices.
    pub io: I,
    reader: Reader,
    tally: Tally,
    tun: Batch,
    wire: Batch,
    judged: Vec<Judged>,
    punts: PuntSender,
    commands: Arc<ArrayQueue<Command>>,
    punt_limit: Buckets,
    error_limit: Buckets,
    all_errors: Buckets,
    policy: Policy,
    error: [u8; icmp::LARGEST],
    started: Instant,
    linger: Linger,
    worked: usize,
    workers: usize,
    stopping: bool,
}

impl<I: PacketIo> Worker<I> {
    pub(crate) fn new(
        io: I,
        reader: Reader,
        tally: Tally,
        punts: PuntSender,
        commands: Arc<ArrayQueue<Command>>,
        (seed, started): (u64, Instant),
        workers: usize,
    ) -> Self {
        let policy = Policy::default();
        Self {
            io,
            reader,
            tally,
            tun: Batch::new(BUFFERS, SLICES),
            wire: Batch::new(BUFFERS, SLICES),
            judged: Vec::with_capacity(MOST_PACKETS),
            punts,
            commands,
            punt_limit: Buckets::new(PUNTS.0, PUNTS.1, seed),
            error_limit: Buckets::of(policy.errors_of_tunnel.share(workers), seed),
            all_errors: Buckets::of(policy.errors.share(workers), seed),
            policy,
            error: [0; icmp::LARGEST],
            started,
            linger: Linger::new(Duration::ZERO, Duration::ZERO),
            worked: 0,
            stopping: false,
            workers,
        }
    }

    /// How long it goes on looking, when it has nothing to do, before it sleeps.
    pub(crate) fn with_linger(self, linger: Linger) -> Self {
        Self { linger, ..self }
    }

    /// Forwards until told to stop.
    pub(crate) fn run(mut self) {
        self.reader.online();
        while !self.stopping {
            if self.turn() {
                self.io.wait(Some(Duration::ZERO), &mut self.tally);
            } else {
                // Who changes the tables need not wait for one that only looks.
                self.reader.offline();
                self.idle();
                self.reader.online();
            }
        }
        self.reader.offline();
    }

    /// Until there may be something to do: looks for a little while, then sleeps.
    fn idle(&mut self) {
        let began = self.started.elapsed();
        let patience = self.linger.patience(began);
        if !patience.is_zero() && self.look(began, patience) {
            return;
        }
        self.io.wait(None, &mut self.tally);
        self.linger.slept(self.started.elapsed().saturating_sub(began));
    }

    /// Looks again and again until `patience` ends. Returns whether there is something to do now; `false`: better sleep.
    fn look(&mut self, began: Duration, patience: Duration) -> bool {
        // A short look is not worth fighting for; a long one goes on beside somebody who only needs a moment.
        let bearable = if self.linger.is_long(patience) { MOMENTS } else { CONTENDED };
        let (mut last, mut lost) = (began, Duration::ZERO);
        loop {
            let found = self.io.wait(Some(Duration::ZERO), &mut self.tally) || !self.commands.is_empty();
            if !found {
                std::thread::yield_now();
            }
            let now = self.started.elapsed();
            let (looked, step) = (now.saturating_sub(began), now.saturating_sub(last));
            if step > CONTENDED {
                lost += step;
            }
            if found || looked >= patience || lost > bearable {
                self.linger.looked(looked);
                return found;
            }
            last = now;
        }
    }

    /// Makes this worker's reader count; [`Self::turn`] may be called from now on.
    pub fn online(&mut self) {
        self.reader.online();
    }

    /// One round over both sides and the commands. Returns whether there may be more to do at once.
    pub fn turn(&mut self) -> bool {
        self.worked = 0;
        let from_wire = self.side(Side::Wire);
        let from_tun = self.side(Side::Tun);
        let commands = self.obey();
        self.reader.quiescent();
        from_wire || from_tun || commands
    }

    fn side(&mut self, side: Side) -> bool {
        let batch = match side {
            Side::Tun => &mut self.tun,
            Side::Wire => &mut self.wire,
        };
        batch.clear();
        let more = self.io.receive(side, batch, &mut self.tally);
        if batch.packets.is_empty() {
            return more;
        }
        self.worked += batch.packets.len();
        let view = self.reader.view();
        judge_all(&view, batch, &mut self.judged);
        if view.meters().is_in_use() {
            charge(view.meters(), batch, &mut self.judged, self.started.elapsed().as_millis() as u64);
        }
        self.tally.fetch(self.judged.iter().filter_map(Judged::tunnel_id));
        let policy = *view.policy();
        let error_source = policy.error_source;
        let now = self.started.elapsed();
        self.tally.set_time(now.as_millis() as u64);
        if policy != self.policy {
            self.follow(policy);
        }
        let batch = match side {
            Side::Tun => &mut self.tun,
            Side::Wire => &mut self.wire,
        };
        self.io.transmit(batch, &self.judged, now, &mut self.tally);
        for n in 0..self.judged.len() {
            let batch = match side {
                Side::Tun => &self.tun,
                Side::Wire => &self.wire,
            };
            let (packet, judged) = (&batch.packets[n], &self.judged[n]);
            if is_only_counted(packet, judged) {
                if let (Side::Wire, Some(path)) = (side, &judged.tunnel) {
                    let alone = (1, packet.len as u64);
                    receive(&mut self.tally, path, packet, &batch.arena, alone, now.as_secs() as u32);
                }
                continue;
            }
            self.settle(side, n, now.as_secs() as u32, now.as_millis() as u64, error_source);
        }
        more
    }

    /// Another policy: other limits, which begin full.
    fn follow(&mut self, policy: Policy) {
        if policy.errors_of_tunnel != self.policy.errors_of_tunnel {
            self.error_limit = self.error_limit.with_rate(policy.errors_of_tunnel.share(self.workers));
        }
        if policy.errors != self.policy.errors {
            self.all_errors = self.all_errors.with_rate(policy.errors.share(self.workers));
        }
        self.policy = policy;
    }

    /// What is left to do for a packet once it has been sent: count it, hand it up, tell its sender.
    fn settle(
        &mut self,
        side: Side,
        n: usize,
        second: u32,
        millisecond: u64,
        error_source: Option<Ipv6Addr>,
    ) {
        let batch = match side {
            Side::Tun => &mut self.tun,
            Side::Wire => &mut self.wire,
        };
        let (packet, judged) = (batch.packets[n], self.judged[n]);
        let (packets, octets) = apart(batch, &packet, &judged);
        show_watchers(&self.punts, &mut self.tally, &packet, &judged, batch);
        match judged.verdict {
            Verdict::ToTun | Verdict::ToWire(..) => {}
            Verdict::Punt(class) | Verdict::ToTunAndPunt(class) => {
                complete_for_punt(batch, &packet);
                let bytes = &batch.arena[packet.range()];
                punt(
                    &mut self.punt_limit,
                    &self.punts,
                    &mut self.tally,
                    class,
                    (&packet, &judged),
                    bytes,
                    millisecond,
                );
            }
            Verdict::Drop(reason, error) => {
                self.tally.drop(reason, judged.tunnel_id(), packets);
                let bytes = &batch.arena[packet.range()];
                self.tally.keep(reason, judged.tunnel_id(), Some(packet.arrival), bytes);
                if let (Some(error), Some(source)) = (error, error_source) {
                    let source = self.source_towards(side, judged.tunnel).unwrap_or(source);
                    let bytes = match side {
                        Side::Tun => &self.tun.arena[packet.range()],
                        Side::Wire => &self.wire.arena[packet.range()],
                    };
                    let built = icmp::build(error, source, bytes, &mut self.error);
                    self.tell(built, &packet, judged.tunnel, millisecond);
                }
                return;
            }
        }
        // The only punted echo replies that are not also delivered are those of unproven senders.
        let is_the_tunnels = !matches!(
            judged.verdict,
            Verdict::Punt(PuntClass::Candidate | PuntClass::EchoReply | PuntClass::Datagram)
        );
        if let (Side::Wire, Some(path), true) = (side, judged.tunnel, is_the_tunnels) {
            receive(&mut self.tally, &path, &packet, &batch.arena, (packets, octets), second);
        }
    }

    /// What an error comes from that goes back into a tunnel (RFC 4443 section 2.2).
    fn source_towards(&mut self, side: Side, tunnel: Option<Path>) -> Option<Ipv6Addr> {
        let from = tunnel.filter(|_| side == Side::Wire)?;
        self.reader.view().ours(from.tunnel)
    }

    fn tell(&mut self, built: Option<usize>, packet: &Packet, tunnel: Option<Path>, now: u64) {
        let Some(len) = built else { return };
        let key = tunnel.map_or(u64::MAX, |p| u64::from(p.tunnel.0));
        if !self.error_limit.allow(key, now) || !self.all_errors.allow(0, now) {
            return self.tally.event(Event::IcmpLimited, 1);
        }
        let to = match (packet.arrival, tunnel) {
            (Arrival::Tun, _) => Destination::Tun,
            (Arrival::Wire(_), Some(path)) if path.has_remote() => Destination::Wire(path, 0),
            (Arrival::Wire(_), _) => return,
        };
        if self.io.emit(to, &self.error[..len], &mut self.tally) {
            self.tally.event(Event::IcmpSent, 1);
        }
    }

    fn obey(&mut self) -> bool {
        let mut any = false;
        while let Some(command) = self.commands.pop() {
            any = true;
            match command {
                Command::Open(number, at, socket) => self.io.open(number, at, socket),
                Command::Close(number) => self.io.close(number),
                Command::Stop => self.stopping = true,
                Command::Inject(inject) => self.inject(&inject),
            }
        }
        any
    }

    fn inject(&mut self, inject: &Inject) {
        let view = self.reader.view();
        let target = match inject {
            Inject::Tunnel { id, packet } => {
                let path = view.tunnel(*id).filter(Path::has_remote);
                path.map(|p| (Destination::Wire(p, 0), packet))
            }
            Inject::Whole { id, packet } => {
                let path = view.tunnel(*id).filter(Path::has_remote);
                let whole = |p: Path| Path { manners: p.manners.with_whole(true), ..p };
                path.map(|p| (Destination::Wire(whole(p), 0), packet))
            }
            Inject::Toward { packet } => toward(&view, packet).map(|to| (to, packet)),
            Inject::TunnelAt { id, remote, local, packet } => view.tunnel(*id).map(|p| {
                let moved = Path { remote: *remote.ip(), remote_port: remote.port(), local: *local, ..p };
                (Destination::Wire(moved, 0), packet)
            }),
            Inject::Datagram { local, remote, payload } => {
                Some((Destination::Datagram { local: *local, remote: *remote }, payload))
            }
        };
        let sent = target.is_some_and(|(to, bytes)| self.io.emit(to, bytes, &mut self.tally));
        self.tally.event(if sent { Event::Injected } else { Event::InjectFailed }, 1);
    }
}

/// A single packet that goes on, and that nobody watches: nearly every one.
fn is_only_counted(packet: &Packet, judged: &Judged) -> bool {
    let entered = match &judged.verdict {
        Verdict::ToTun => None,
        Verdict::ToWire(path, _) => Some(path),
        Verdict::ToTunAndPunt(_) | Verdict::Punt(_) | Verdict::Drop(..) => return false,
    };
    let is_watched = |path: Option<&Path>| path.is_some_and(|path| path.manners.is_watched());
    packet.offload.merged.is_none() && !is_watched(judged.tunnel.as_ref()) && !is_watched(entered)
}

/// Counts what came out of a tunnel: so many packets and octets.
fn receive(
    tally: &mut Tally,
    path: &Path,
    packet: &Packet,
    arena: &[u8],
    (packets, octets): (u64, u64),
    second: u32,
) {
    if has_odd_mark(packet, arena) {
        tally.event(Event::EcnOdd, packets);
    }
    tally.received(path.tunnel, packets, octets, second);
}

/// Marks that nobody sets on an honest path; the packet carries what figure 4 of RFC 6040 has made of them.
fn has_odd_mark(packet: &Packet, arena: &[u8]) -> bool {
    let Arrival::Wire(Sender { tos, .. }) = packet.arrival else { return false };
    let now = arena.get(packet.start + 1).map_or(0, |octet| octet >> 4 & 3);
    tos & 3 != 0 && encap::is_odd(now, tos)
}

/// Where a packet's destination is.
fn toward(view: &View<'_>, packet: &[u8]) -> Option<Destination> {
    let to = packet::view::View::parse(packet).ok()?.destination;
    match view.longest_match(to).and_then(|entry| entry.owner.path().map(|path| (path, entry.len))) {
        Some((path, 1..)) => path.has_remote().then_some(Destination::Wire(path, 0)),
        Some((_, 0)) | None => Some(Destination::Tun),
    }
}

/// How many packets on the wire this is, and of how many octets in all: the same whether a kernel has merged them or not.
fn apart(batch: &Batch, packet: &Packet, judged: &Judged) -> (u64, u64) {
    let alone = (1, packet.len as u64);
    if packet.offload.merged.is_none() {
        return alone;
    }
    let mtu = judged.tunnel.map_or(crate::update::MIN_MTU, |p| p.mtu);
    let layout = Layout::of(batch.bytes(packet), &packet.offload, mtu);
    layout.map_or(alone, |l| (l.segments() as u64, l.octets() as u64))
}

/// Lets packets of tunnels with a limit pass as far as that goes.
fn charge(meters: &Meters, batch: &Batch, judged: &mut [Judged], now: u64) {
    for (packet, judgement) in batch.packets.iter().zip(judged) {
        if !judgement.is_carried() {
            continue;
        }
        let (packets, octets) = apart(batch, packet, judgement);
        let mut paid = None;
        for path in judgement.carriers().filter(|p| p.manners.is_metered()) {
            match meters.take(path.tunnel, packets, octets, now) {
                Ok(()) => paid = Some(path.tunnel),
                Err(reason) => {
                    // It goes nowhere, so the tunnel that it came out of does not pay for it either.
                    paid.inspect(|id| meters.give_back(*id, packets, octets));
                    judgement.verdict = Verdict::over(reason);
                    break;
                }
            }
        }
    }
}

/// Copies the packet up for the tunnel that it came from and the one that it entered, if they are watched.
fn show_watchers(punts: &PuntSender, tally: &mut Tally, packet: &Packet, judged: &Judged, batch: &Batch) {
    for path in judged.carriers().filter(|p| p.manners.is_watched()) {
        let copy = batch.bytes(packet);
        if !punts.send(PuntClass::Watched, Some(path.tunnel), packet.arrival, judged.verdict, copy) {
            tally.event(Event::WatchMissed, 1);
        }
    }
}

/// The control plane checks checksums: one that was left to hardware is completed first.
fn complete_for_punt(batch: &mut Batch, packet: &Packet) {
    if let (Some((start, offset)), None) = (packet.offload.partial, packet.offload.merged) {
        // What does not fit is not a packet that anybody up there would take either.
        let _completed = complete(&mut batch.arena[packet.range()], start, offset);
    }
}

fn punt(
    limit: &mut Buckets,
    punts: &PuntSender,
    tally: &mut Tally,
    class: PuntClass,
    (packet, judged): (&Packet, &Judged),
    bytes: &[u8],
    now: u64,
) {
    let tunnel = judged.tunnel_id();
    if let Arrival::Wire(sender) = packet.arrival {
        let key = u64::from(u32::from(*sender.remote.ip())) << 24
            | u64::from(sender.remote.port()) << 8
            | class as u64;
        if !limit.allow(key, now) {
            tally.keep(Reason::PuntLimited, tunnel, Some(packet.arrival), bytes);
            return tally.drop(Reason::PuntLimited, tunnel, 1);
        }
    }
    if punts.send(class, tunnel, packet.arrival, judged.verdict, bytes) {
        tally.event(Event::Punted, 1);
    } else {
        tally.keep(Reason::PuntFull, tunnel, Some(packet.arrival), bytes);
        tally.drop(Reason::PuntFull, tunnel, 1);
    }
}
