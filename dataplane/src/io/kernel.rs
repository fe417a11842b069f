//! The real thing: one TUN queue, UDP sockets, protocol 41, and one epoll to sleep in.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};

use super::outbox::{Outbox, Trains};
use super::proto41::Proto41Port;
use super::sys::Inbox;
use super::tun::TunQueue;
use super::udp::UdpPort;
use super::whole41::Sent;
use super::{Destination, PacketIo, Side};
use crate::counters::{Event, Tally};
use crate::knobs::Knob;
use crate::offload::coalesce::Coalescer;
use crate::offload::segment::Layout;
use crate::packet::batch::{Batch, Offload, Packet, Sender};
use crate::samples::Course;
use crate::table::slab::{Encap, Path};
use crate::verdict::{Judged, Reason, Verdict};

const TUN: Token = Token(usize::MAX);
const PROTO41: Token = Token(usize::MAX - 1);
const WAKER: Token = Token(usize::MAX - 2);
/// How often slow changes (our own addresses) are looked at.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// One worker's devices.
#[derive(Debug)]
pub struct KernelIo {
    poll: Poll,
    events: Events,
    tun: TunQueue,
    tun_ready: bool,
    udp: Vec<Option<UdpPort>>,
    udp_ready: VecDeque<u16>,
    proto41: Option<Proto41Port>,
    inbox: Inbox,
    udp_out: Outbox,
    udp_out_socket: u16,
    gso: bool,
    /// Since the start, as far as `transmit` was told.
    now: Duration,
    proto41_out: Outbox,
    /// What waits in each outbox goes with DF set, or not.
    udp_whole: bool,
    proto41_whole: bool,
    coalescer: Coalescer,
    kept: Instant,
}

impl KernelIo {
    /// Puts the devices of one worker together; `gso` allows datagram trains to peers. The waker ends a
    /// [`PacketIo::wait`].
    pub fn new(
        tun: TunQueue,
        proto41: Option<Proto41Port>,
        gso: bool,
        coalescer: Coalescer,
    ) -> io::Result<(Self, Arc<Waker>)> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        poll.registry().register(&mut SourceFd(&tun.fd().as_raw_fd()), TUN, Interest::READABLE)?;
        if let Some(fd) = proto41.as_ref().and_then(Proto41Port::receiver) {
            poll.registry().register(&mut SourceFd(&fd.as_raw_fd()), PROTO41, Interest::READABLE)?;
        }
        let io = Self {
            poll,
            events: Events::with_capacity(256),
            tun,
            tun_ready: true,
            udp: Vec::new(),
            udp_ready: VecDeque::new(),
            proto41,
            inbox: Inbox::new(64),
            udp_out: Outbox::new(),
            udp_out_socket: 0,
            gso,
            now: Duration::ZERO,
            proto41_out: Outbox::new(),
            udp_whole: false,
            proto41_whole: false,
            coalescer,
            kept: Instant::now(),
        };
        Ok((io, waker))
    }

    fn receive_wire(&mut self, batch: &mut Batch, tally: &mut Tally) -> bool {
        let mut used = 0;
        // Neither may starve the other: while both have something, each gets half.
        let shared = self.proto41.as_ref().is_some_and(|p| p.ready) && !self.udp_ready.is_empty();
        let most = if shared { batch.buffers() / 2 } else { batch.buffers() };
        for _ in 0..self.udp_ready.len() {
            if used == most {
                break;
            }
            let Some(number) = self.udp_ready.pop_front() else { break };
            let Some(port) = self.udp.get_mut(usize::from(number)).and_then(Option::as_mut) else { continue };
            used += port.receive(&mut self.inbox, batch, used..most, tally);
            if port.ready {
                self.udp_ready.push_back(number);
            }
        }
        if let Some(port) = self.proto41.as_mut().filter(|p| p.ready && used < batch.buffers()) {
            port.receive(&mut self.inbox, batch, used, tally);
        }
        self.wire_ready()
    }

    fn wire_ready(&self) -> bool {
        !self.udp_ready.is_empty() || self.proto41.as_ref().is_some_and(|p| p.ready)
    }

    fn queue(&mut self, path: &Path, tos: u8, packet: &Packet, batch: &Batch, tally: &mut Tally) {
        let bytes = batch.bytes(packet);
        let layout = match packet.offload.merged {
            None => None,
            Some(_) => match Layout::of(bytes, &packet.offload, path.mtu) {
                Ok(layout) => Some(layout),
                Err(_) => {
                    tally.keep(Reason::BadOffload, Some(path.tunnel), Some(packet.arrival), bytes);
                    return tally.drop(Reason::BadOffload, Some(path.tunnel), 1);
                }
            },
        };
        if let Some(layout) = layout.filter(|_| path.encap == Encap::Proto41)
            && self.send_whole(path, tos, packet, batch, &layout, tally)
        {
            return;
        }
        let (segments, headers) = layout.map_or((1, 0), |l| (l.segments(), l.headers));
        let whole = path.manners.is_whole();
        let other_socket = match path.encap {
            Encap::Udp => path.socket != self.udp_out_socket || whole != self.udp_whole,
            Encap::Proto41 => whole != self.proto41_whole,
        };
        if other_socket || !self.outbox(path.encap).has_room(segments, headers) {
            self.flush(path.encap, batch, tally);
        }
        match path.encap {
            Encap::Udp if other_socket => self.turn_to(path.socket, whole),
            Encap::Proto41 => self.proto41_whole = whole,
            Encap::Udp => {}
        }
        match layout {
            None => self.outbox(path.encap).push(path, tos, packet.start, packet.len),
            Some(layout) => self.outbox(path.encap).push_cut(path, tos, packet.start, bytes, &layout),
        }
    }

    /// A protocol-41 super-packet, whole if that is possible. `false`: it must be cut.
    fn send_whole(
        &mut self,
        path: &Path,
        tos: u8,
        packet: &Packet,
        batch: &Batch,
        layout: &Layout,
        tally: &mut Tally,
    ) -> bool {
        if self.proto41.as_mut().and_then(|port| port.whole(self.now)).is_none() {
            return false;
        }
        // What came before it goes before it, with DF as its own tunnels want it.
        self.flush(Encap::Proto41, batch, tally);
        let way = self.proto41.as_mut().and_then(|port| port.whole(self.now));
        let Some(whole) = way else { return false };
        let segments = layout.segments() as u64;
        let sent = whole.send(path, tos, (batch.bytes(packet), &packet.offload), layout, self.now);
        let (asked, put_off) = whole.take_questions();
        tally.event(Event::RoutesAsked, asked);
        tally.event(Event::RoutesPutOff, put_off);
        if let Sent::Whole | Sent::Refused = sent
            && let Some(until) = whole.note(sent == Sent::Refused, self.now)
        {
            tally.pause(Knob::Proto41Gso, until);
        }
        match sent {
            Sent::Whole => {
                tally.trains(Knob::Proto41Gso, 1);
                let octets = packet.len as u64 + (segments - 1) * layout.headers as u64;
                tally.event(Event::WireWrites, 1);
                tally.event(Event::WireMerged, 1);
                tally.sent(path.tunnel, segments, octets);
                true
            }
            Sent::Full => {
                tally.drop(Reason::SendFailed, Some(path.tunnel), segments);
                let course = Course::To(Sender::proto41(path.remote, path.local, tos));
                tally.keep_parts(Reason::SendFailed, Some(path.tunnel), course, &[batch.bytes(packet)]);
                true
            }
            Sent::TooLong | Sent::Refused => {
                tally.event(Event::WireSplit, 1);
                false
            }
            Sent::Not => false,
        }
    }

    /// UDP goes out by this socket from now on, with DF set or not.
    fn turn_to(&mut self, socket: u16, whole: bool) {
        (self.udp_out_socket, self.udp_whole) = (socket, whole);
        let mut port = self.udp.get_mut(usize::from(socket)).and_then(Option::as_mut);
        if let Some(port) = &mut port {
            port.send_whole(whole);
        }
        let trains = self.gso && port.is_some_and(|p| p.trains.holds(self.now));
        self.udp_out.begin(trains, self.now);
    }

    fn outbox(&mut self, encap: Encap) -> &mut Outbox {
        match encap {
            Encap::Proto41 => &mut self.proto41_out,
            Encap::Udp => &mut self.udp_out,
        }
    }

    fn flush(&mut self, encap: Encap, batch: &Batch, tally: &mut Tally) {
        match encap {
            Encap::Udp if !self.udp_out.is_empty() => self.flush_udp(batch, tally),
            Encap::Proto41 if !self.proto41_out.is_empty() => match &self.proto41 {
                Some(port) => {
                    let outlet = port.outlet(self.proto41_whole);
                    let _has_no_trains = self.proto41_out.flush(outlet, &batch.arena, tally);
                }
                None => self.proto41_out.discard(&batch.arena, tally),
            },
            Encap::Udp | Encap::Proto41 => {}
        }
    }

    fn flush_udp(&mut self, batch: &Batch, tally: &mut Tally) {
        let port = self.udp.get_mut(usize::from(self.udp_out_socket)).and_then(Option::as_mut);
        let Some(port) = port else { return self.udp_out.discard(&batch.arena, tally) };
        match self.udp_out.flush(port.outlet(), &batch.arena, tally) {
            Trains::Untried => {}
            Trains::Taken => port.trains.worked(),
            Trains::Refused => {
                if let Some(until) = port.trains.failed(self.now) {
                    tally.pause(Knob::UdpGso, until);
                }
                self.udp_out.begin(false, self.now);
            }
        }
    }

    fn note_events(&mut self) {
        for event in &self.events {
            match event.token() {
                TUN => self.tun_ready = true,
                WAKER => {}
                PROTO41 => {
                    if let Some(port) = &mut self.proto41 {
                        port.ready = true;
                    }
                }
                Token(number) => {
                    let port = self.udp.get_mut(number).and_then(Option::as_mut);
                    if let Some(port) = port.filter(|p| !p.ready) {
                        port.ready = true;
                        self.udp_ready.push_back(number as u16);
                    }
                }
            }
        }
    }

    fn keep_house(&mut self, tally: &mut Tally) {
        if self.kept.elapsed() >= HOUSEKEEPING {
            self.kept = Instant::now();
            if let Some(port) = &mut self.proto41 {
                port.refresh(self.now, tally);
            }
        }
    }
}

impl PacketIo for KernelIo {
    fn receive(&mut self, side: Side, batch: &mut Batch, tally: &mut Tally) -> bool {
        match side {
            Side::Wire => self.receive_wire(batch, tally),
            Side::Tun if self.tun_ready => {
                self.tun_ready = self.tun.receive(batch, tally);
                self.tun_ready
            }
            Side::Tun => false,
        }
    }

    fn transmit(&mut self, batch: &Batch, judged: &[Judged], now: Duration, tally: &mut Tally) {
        self.now = now;
        self.turn_to(self.udp_out_socket, self.udp_whole);
        self.coalescer.merge(self.tun.begin(now));
        self.coalescer.begin(batch.packets.len());
        for (n, (packet, judgement)) in batch.packets.iter().zip(judged).enumerate() {
            match judgement.verdict {
                Verdict::ToWire(path, tos) => self.queue(&path, tos, packet, batch, tally),
                Verdict::ToTun | Verdict::ToTunAndPunt(_) => self.coalescer.add(batch, n),
                Verdict::Punt(_) | Verdict::Drop(..) => {}
            }
        }
        for train in self.coalescer.trains() {
            let tunnel = judged[train.first as usize].tunnel_id();
            self.tun.send_train(batch, &self.coalescer, train, tunnel, tally);
        }
        self.flush(Encap::Udp, batch, tally);
        self.flush(Encap::Proto41, batch, tally);
    }

    fn emit(&mut self, to: Destination, packet: &[u8], tally: &mut Tally) -> bool {
        match to {
            Destination::Tun => {
                self.tun.send(packet, &Offload::default(), (None, None), tally);
                true
            }
            Destination::Wire(path, tos) => {
                let remote = SocketAddrV4::new(path.remote, path.remote_port);
                let whole = path.manners.is_whole();
                match (path.encap, &self.proto41, self.udp.get_mut(usize::from(path.socket))) {
                    (Encap::Proto41, Some(port), _) => {
                        self.proto41_out.send_now(port.sender(whole), path.local, remote, tos, packet)
                    }
                    (Encap::Udp, _, Some(Some(port))) => {
                        port.send_whole(whole);
                        self.udp_out.send_now(port.socket.as_fd(), path.local, remote, tos, packet)
                    }
                    (Encap::Proto41 | Encap::Udp, ..) => false,
                }
            }
            Destination::Datagram { local, remote } => {
                let port = self.udp.iter().flatten().find(|p| p.is_at(local));
                port.is_some_and(|p| self.udp_out.send_now(p.socket.as_fd(), *local.ip(), remote, 0, packet))
            }
        }
    }

    fn open(&mut self, number: u16, at: SocketAddrV4, socket: UdpSocket) {
        let slot = usize::from(number);
        if self.udp.len() <= slot {
            self.udp.resize_with(slot + 1, || None);
        }
        let fd = socket.as_raw_fd();
        // Should the kernel refuse to watch it (no memory), the socket still sends, and is read at every turn.
        let _is_watched = self.poll.registry().register(&mut SourceFd(&fd), Token(slot), Interest::READABLE);
        self.udp[slot] = Some(UdpPort::new(socket, at));
        self.udp_ready.push_back(number);
    }

    fn close(&mut self, number: u16) {
        if let Some(port) = self.udp.get_mut(usize::from(number)).and_then(Option::take) {
            let _closing_ends_it_too =
                self.poll.registry().deregister(&mut SourceFd(&port.socket.as_raw_fd()));
        }
    }

    fn wait(&mut self, most: Option<Duration>, tally: &mut Tally) -> bool {
        let busy = self.tun_ready || self.wire_ready();
        let most = if busy { Some(Duration::ZERO) } else { most };
        if most.is_none_or(|d| !d.is_zero()) {
            tally.event(Event::Sleeps, 1);
        }
        // Interrupted or not: the next turn looks at what is ready.
        let _woken = self.poll.poll(&mut self.events, most);
        self.note_events();
        self.keep_house(tally);
        self.tun_ready || self.wire_ready()
    }
}
