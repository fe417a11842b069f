//! One queue of the TUN device: super-packets in and out, each behind its `virtio_net_hdr`.
//!
//! tun-rs creates the device and its queues; reading and writing are our own, because a super-packet must pass whole.
//! Addresses, routes and the MTU are the control plane's business.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::sys::uio::writev;
use nix::unistd::read;

use super::{sys, vnet};
use crate::counters::{Event, Tally};
use crate::knobs::{Fuse, Knob, Knobs, Standing, Standings};
use crate::offload::coalesce::{Coalescer, MOST_MEMBERS, Train};
use crate::offload::segment::{Layout, cut};
use crate::packet::batch::{Arrival, BUFFER, Batch, HEADROOM, Merged, Offload, Packet};
use crate::update::TunnelId;
use crate::verdict::Reason;

/// The longest headers of a train: IPv6 and TCP with all its options.
const MOST_HEADERS: usize = 100;
const CSUM: u32 = 0x01;
const TSO6: u32 = 0x04;
const TSO_ECN: u32 = 0x08;
const USO4: u32 = 0x20;
const USO6: u32 = 0x40;
const TCP_TRAINS: u32 = CSUM | TSO6 | TSO_ECN;
/// The kernel wants both or neither.
const UDP_TRAINS: u32 = CSUM | USO4 | USO6;

/// Super-packets refused in a row before they are cut without asking: one may be odd, so many are the device's way.
const STRIKES: u8 = 8;

/// Trains of one kind on their way to the kernel.
#[derive(Debug)]
struct Gate {
    knob: Knob,
    is_used: bool,
    fuse: Fuse,
}

impl Gate {
    fn new(knob: Knob, used: Knobs) -> Self {
        Self { knob, is_used: used.is_on(knob), fuse: Fuse::new(STRIKES) }
    }

    fn is_open(&mut self, now: Duration) -> bool {
        self.is_used && self.fuse.holds(now)
    }
}

/// One queue.
pub struct TunQueue {
    device: tun_rs::SyncDevice,
    /// Segment headers of a super-packet that is cut here.
    headers: Vec<u8>,
    tcp: Gate,
    udp: Gate,
    /// Since the start.
    now: Duration,
}

impl std::fmt::Debug for TunQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TunQueue({})", self.device.as_raw_fd())
    }
}

/// Opens the device `name` with `queues` queues, creating it if there is none. `standings` learn which offloads the kernel
/// grants.
pub fn open(name: &str, queues: usize, standings: &mut Standings) -> io::Result<Vec<TunQueue>> {
    let builder =
        tun_rs::DeviceBuilder::new().name(name).multi_queue(true).offload(true).inherit_enable_state();
    let first = builder.build_sync()?;
    let mut all = vec![first];
    while all.len() < queues {
        let next = all[0].try_clone()?;
        all.push(next);
    }
    set_offload(all[0].as_fd(), standings)?;
    all.iter().try_for_each(|q| q.set_nonblocking(true))?;
    let used = standings.in_use();
    Ok(all.into_iter().map(|device| TunQueue::new(device, used)).collect())
}

/// Asks for each kind of train by itself, then sets what is wanted. The setting is device-wide and outlives its setter on
/// a persistent device: it is set at every start, also to nothing.
///
/// A kernel that knows a kind takes it in both directions. No super-packet is written to try: it would pass the host's
/// filters, routes and counters, and perhaps leave the host. What is refused in use is cut and written again.
fn set_offload(fd: BorrowedFd<'_>, standings: &mut Standings) -> io::Result<()> {
    let kinds = |of: &Standings| {
        let flags = |knob, flags| if of.of(knob).is_used() { flags } else { 0 };
        flags(Knob::TunTcp, TCP_TRAINS) | flags(Knob::TunUdp, UDP_TRAINS)
    };
    // One call where the kernel knows all that is wanted: each makes the device's features, and with them its
    // addresses, be looked at anew.
    let is_all = [Knob::TunTcp, Knob::TunUdp].iter().all(|knob| standings.of(*knob).is_used());
    if is_all && sys::set_tun_offload(fd, TCP_TRAINS | UDP_TRAINS).is_ok() {
        return Ok(());
    }
    for (ours, theirs, flags) in
        [(Knob::MergeTcp, Knob::TunTcp, TCP_TRAINS), (Knob::MergeUdp, Knob::TunUdp, UDP_TRAINS)]
    {
        let is_wanted = standings.of(ours).is_used() || standings.of(theirs).is_used();
        let Some(error) = is_wanted.then(|| sys::set_tun_offload(fd, flags).err()).flatten() else {
            continue;
        };
        let since = if theirs == Knob::TunUdp { "; Linux 6.2 and later have it" } else { "" };
        let refused = Standing::Refused(format!("the TUN driver: {error}{since}"));
        standings.settle(ours, refused.clone());
        standings.settle(theirs, refused);
    }
    sys::set_tun_offload(fd, kinds(standings))
}

/// The tunnel that a packet for the kernel came out of, and how it came, as far as that is known.
type Whose = (Option<TunnelId>, Option<Arrival>);

/// Counts packets that the kernel did not take, and keeps the first, which lies in these parts.
fn lose(reason: Reason, (tunnel, from): Whose, packets: u64, parts: &[&[u8]], tally: &mut Tally) {
    tally.drop(reason, tunnel, packets);
    tally.keep_parts(reason, tunnel, from.into(), parts);
}

/// Cut instead, it may pass: the description of the train is refused, or the device does not do trains.
fn is_refusal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EIO | libc::EMSGSIZE | libc::EOPNOTSUPP))
}

impl TunQueue {
    fn new(device: tun_rs::SyncDevice, used: Knobs) -> Self {
        let (tcp, udp) = (Gate::new(Knob::MergeTcp, used), Gate::new(Knob::MergeUdp, used));
        Self { device, headers: Vec::new(), tcp, udp, now: Duration::ZERO }
    }

    /// Begins to send at `now`, counted from the start. Returns which packets may be merged: TCP, UDP.
    pub fn begin(&mut self, now: Duration) -> (bool, bool) {
        self.now = now;
        (self.tcp.is_open(now), self.udp.is_open(now))
    }

    /// The descriptor to wait for.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    /// Reads packets until the queue or the batch has no more. Returns whether the queue may have more.
    pub fn receive(&mut self, batch: &mut Batch, tally: &mut Tally) -> bool {
        for n in 0..batch.buffers() {
            let start = Batch::offset(n) + HEADROOM - vnet::LEN;
            let buffer = &mut batch.arena[start..Batch::offset(n) + BUFFER];
            match read(self.device.as_fd(), buffer) {
                Ok(len) if len > vnet::LEN => self.accept(batch, start, len, tally),
                Ok(_) => {
                    tally.keep(Reason::TooShort, None, Some(Arrival::Tun), &[]);
                    tally.drop(Reason::TooShort, None, 1);
                }
                Err(nix::errno::Errno::EINTR) => {}
                Err(_) => return false,
            }
        }
        true
    }

    fn accept(&self, batch: &mut Batch, start: usize, len: usize, tally: &mut Tally) {
        tally.event(Event::TunReads, 1);
        let mut header = [0; vnet::LEN];
        header.copy_from_slice(&batch.arena[start..start + vnet::LEN]);
        let Ok(offload) = vnet::parse(&header, 0) else {
            let octets = &batch.arena[start + vnet::LEN..start + len];
            tally.keep(Reason::BadOffload, None, Some(Arrival::Tun), octets);
            return tally.drop(Reason::BadOffload, None, 1);
        };
        if let Some((kind, _)) = offload.merged {
            tally.event(Event::TunMerged, 1);
            let knob = match kind {
                Merged::Tcp => Knob::TunTcp,
                Merged::Udp => Knob::TunUdp,
            };
            tally.trains(knob, 1);
        }
        let packet =
            Packet { start: start + vnet::LEN, len: len - vnet::LEN, arrival: Arrival::Tun, offload };
        if !batch.push(packet) {
            tally.drop(Reason::BatchFull, None, 1);
            tally.keep(Reason::BatchFull, None, Some(Arrival::Tun), &batch.arena[packet.range()]);
        }
    }

    /// Hands one packet to the kernel; a super-packet that it does not take as a whole is handed over in pieces. `whose` is
    /// the packet's tunnel and how it came.
    pub fn send(&mut self, bytes: &[u8], offload: &Offload, whose: Whose, tally: &mut Tally) {
        let Some((kind, _)) = offload.merged else {
            self.send_plain(&[&vnet::emit(offload, 0, false), bytes], whose, tally);
            return;
        };
        let Ok(layout) = Layout::of(bytes, offload, 0) else {
            return lose(Reason::BadOffload, whose, 1, &[bytes], tally);
        };
        let now = self.now;
        // The kernel would sum on top of a complete checksum; cutting sums anew.
        if offload.partial.is_none() || !self.gate(kind).is_open(now) {
            self.send_cut(bytes, &layout, whose, tally);
            return;
        }
        let header = vnet::emit(offload, layout.headers, layout.has_cwr(bytes));
        match self.write(&[&header, bytes]) {
            Ok(()) => self.train_taken(kind, tally),
            Err(e) if is_refusal(&e) => {
                let taken = self.send_cut(bytes, &layout, whose, tally);
                self.train_refused(kind, taken, tally);
            }
            Err(_) => lose(Reason::TunFull, whose, layout.segments() as u64, &[bytes], tally),
        }
    }

    /// Hands packets that belong together to the kernel as one; those that it refuses as one go one by one.
    pub fn send_train(
        &mut self,
        batch: &Batch,
        coalescer: &Coalescer,
        train: &Train,
        tunnel: Option<TunnelId>,
        tally: &mut Tally,
    ) {
        let first = &batch.packets[train.first as usize];
        let whose = (tunnel, Some(first.arrival));
        if train.members == 1 {
            return self.send(batch.bytes(first), &first.offload, whose, tally);
        }
        let mut headers = [0; MOST_HEADERS];
        let headers = &mut headers[..train.headers];
        let offload = train.emit(batch.bytes(first), headers);
        let vnet = vnet::emit(&offload, train.headers, false);
        let mut slices = [IoSlice::new(&[]); MOST_MEMBERS + 2];
        (slices[0], slices[1]) = (IoSlice::new(&vnet), IoSlice::new(headers));
        let mut used = 2;
        for n in coalescer.members(train) {
            slices[used] = IoSlice::new(&batch.bytes(&batch.packets[n])[train.headers..]);
            used += 1;
        }
        match writev(self.device.as_fd(), &slices[..used]).map_err(io::Error::from) {
            Ok(_) => self.train_taken(train.kind, tally),
            Err(e) if is_refusal(&e) => {
                let plain = vnet::emit(&Offload::default(), 0, false);
                let each = coalescer.members(train).map(|n| batch.bytes(&batch.packets[n]));
                let taken = each.filter(|bytes| self.send_plain(&[&plain, bytes], whose, tally)).count();
                self.train_refused(train.kind, taken, tally);
            }
            Err(_) => lose(Reason::TunFull, whose, u64::from(train.members), &[batch.bytes(first)], tally),
        }
    }

    /// Returns how many pieces the kernel took.
    fn send_cut(&mut self, bytes: &[u8], layout: &Layout, whose: Whose, tally: &mut Tally) -> usize {
        let mut headers = std::mem::take(&mut self.headers);
        headers.resize(layout.segments() * layout.headers, 0);
        cut(bytes, layout, &mut headers);
        let plain = vnet::emit(&Offload::default(), 0, false);
        let each = headers.chunks_exact(layout.headers).enumerate();
        let taken = each
            .filter(|(n, header)| {
                self.send_plain(&[&plain, header, &bytes[layout.payload(*n)]], whose, tally)
            })
            .count();
        self.headers = headers;
        taken
    }

    fn send_plain(&self, parts: &[&[u8]], whose: Whose, tally: &mut Tally) -> bool {
        let taken = self.write(parts).is_ok();
        if taken {
            tally.event(Event::TunWrites, 1);
        } else {
            lose(Reason::TunFull, whose, 1, &parts[1..], tally);
        }
        taken
    }

    fn gate(&mut self, kind: Merged) -> &mut Gate {
        match kind {
            Merged::Tcp => &mut self.tcp,
            Merged::Udp => &mut self.udp,
        }
    }

    fn train_taken(&mut self, kind: Merged, tally: &mut Tally) {
        tally.event(Event::TunWrites, 1);
        tally.event(Event::TunMerged, 1);
        let gate = self.gate(kind);
        gate.fuse.worked();
        tally.trains(gate.knob, 1);
    }

    /// A device that takes no piece either (it is down, or gone) says nothing about trains.
    fn train_refused(&mut self, kind: Merged, pieces_taken: usize, tally: &mut Tally) {
        if pieces_taken == 0 {
            return;
        }
        tally.event(Event::TunSplit, 1);
        let now = self.now;
        let gate = self.gate(kind);
        if let Some(until) = gate.fuse.failed(now) {
            tally.pause(gate.knob, until);
        }
    }

    fn write(&self, parts: &[&[u8]]) -> io::Result<()> {
        let mut slices = [IoSlice::new(&[]); 3];
        for (slot, part) in slices.iter_mut().zip(parts) {
            *slot = IoSlice::new(part);
        }
        let wanted: usize = parts.iter().map(|p| p.len()).sum();
        let written = writev(self.device.as_fd(), &slices[..parts.len()])?;
        if written == wanted { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }
}
