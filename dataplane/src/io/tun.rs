//! One queue of the TUN device: super-packets in and out, each behind its `virtio_net_hdr`.
//!
//! tun-rs creates the device and its queues; reading and writing are our own, because a super-packet must pass whole.
//! Addresses, routes and the MTU are the control plane's business.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::sys::uio::writev;
use nix::unistd::read;

use super::{sys, vnet};
use crate::counters::{Event, Tally};
use crate::offload::coalesce::{Coalescer, MOST_MEMBERS, Train};
use crate::offload::segment::{Layout, cut};
use crate::packet::batch::{Arrival, BUFFER, Batch, HEADROOM, Offload, Packet};
use crate::update::TunnelId;
use crate::verdict::Reason;

/// The longest headers of a train: IPv6 and TCP with all its options.
const MOST_HEADERS: usize = 100;
const CSUM: u32 = 0x01;
const TSO6: u32 = 0x04;
const TSO_ECN: u32 = 0x08;
const USO4: u32 = 0x20;
const USO6: u32 = 0x40;

/// Which super-packets the kernel may hand us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunOffload {
    /// None, and every checksum complete.
    Off,
    /// TCP segment trains.
    Tcp,
    /// TCP segment trains and UDP datagram trains (kernel 6.2 and later).
    TcpUdp,
}

impl TunOffload {
    /// For status output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Tcp => "tcp",
            Self::TcpUdp => "tcp+udp",
        }
    }
}

/// One queue.
pub struct TunQueue {
    device: tun_rs::SyncDevice,
    /// Segment headers of a super-packet that the kernel refused.
    headers: Vec<u8>,
}

impl std::fmt::Debug for TunQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TunQueue({})", self.device.as_raw_fd())
    }
}

/// Opens the device `name` with `queues` queues, creating it if there is none. Returns the queues and what
/// offloads the kernel granted.
pub fn open(name: &str, queues: usize, offload: bool) -> io::Result<(Vec<TunQueue>, TunOffload)> {
    let builder =
        tun_rs::DeviceBuilder::new().name(name).multi_queue(true).offload(true).inherit_enable_state();
    let first = builder.build_sync()?;
    let mut all = vec![first];
    while all.len() < queues {
        let next = all[0].try_clone()?;
        all.push(next);
    }
    let granted = set_offload(all[0].as_fd(), offload)?;
    all.iter().try_for_each(|q| q.set_nonblocking(true))?;
    Ok((all.into_iter().map(|device| TunQueue { device, headers: Vec::new() }).collect(), granted))
}

/// The setting is device-wide and outlives its setter on a persistent device: it is set at every start, also to nothing.
fn set_offload(fd: BorrowedFd<'_>, wanted: bool) -> io::Result<TunOffload> {
    let tcp = CSUM | TSO6 | TSO_ECN;
    if wanted && sys::set_tun_offload(fd, tcp | USO4 | USO6).is_ok() {
        return Ok(TunOffload::TcpUdp);
    }
    if wanted && sys::set_tun_offload(fd, tcp).is_ok() {
        return Ok(TunOffload::Tcp);
    }
    sys::set_tun_offload(fd, 0)?;
    Ok(TunOffload::Off)
}

impl TunQueue {
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
                Ok(_) => tally.drop(Reason::TooShort, None, 1),
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
        let Ok(offload) = vnet::parse(&header, 0) else { return tally.drop(Reason::BadOffload, None, 1) };
        tally.event(Event::TunMerged, u64::from(offload.merged.is_some()));
        let packet =
            Packet { start: start + vnet::LEN, len: len - vnet::LEN, arrival: Arrival::Tun, offload };
        if !batch.push(packet) {
            tally.drop(Reason::BatchFull, None, 1);
        }
    }

    /// Hands one packet to the kernel; a super-packet that it refuses is handed over in pieces.
    pub fn send(&mut self, bytes: &[u8], offload: &Offload, tunnel: Option<TunnelId>, tally: &mut Tally) {
        tally.event(Event::TunWrites, 1);
        if offload.merged.is_none() {
            if self.write(&[&vnet::emit(offload, 0, false), bytes]).is_err() {
                tally.drop(Reason::TunFull, tunnel, 1);
            }
            return;
        }
        let Ok(layout) = Layout::of(bytes, offload, 0) else {
            return tally.drop(Reason::BadOffload, tunnel, 1);
        };
        tally.event(Event::TunMerged, 1);
        if offload.partial.is_none() {
            // The kernel would sum on top of a complete checksum; cutting sums anew.
            return self.send_cut(bytes, &layout, tunnel, tally);
        }
        let header = vnet::emit(offload, layout.headers, layout.has_cwr(bytes));
        match self.write(&[&header, bytes]) {
            Ok(()) => {}
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => self.send_cut(bytes, &layout, tunnel, tally),
            Err(_) => tally.drop(Reason::TunFull, tunnel, layout.segments() as u64),
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
        if train.members == 1 {
            return self.send(batch.bytes(first), &first.offload, tunnel, tally);
        }
        tally.event(Event::TunWrites, 1);
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
        match writev(self.device.as_fd(), &slices[..used]) {
            Ok(_) => tally.event(Event::TunMerged, 1),
            Err(nix::errno::Errno::EINVAL) => {
                for n in coalescer.members(train) {
                    let packet = &batch.packets[n];
                    self.send(batch.bytes(packet), &packet.offload, tunnel, tally);
                }
            }
            Err(_) => tally.drop(Reason::TunFull, tunnel, u64::from(train.members)),
        }
    }

    fn send_cut(&mut self, bytes: &[u8], layout: &Layout, tunnel: Option<TunnelId>, tally: &mut Tally) {
        let mut headers = std::mem::take(&mut self.headers);
        headers.resize(layout.segments() * layout.headers, 0);
        cut(bytes, layout, &mut headers);
        let plain = vnet::emit(&Offload::default(), 0, false);
        for (n, header) in headers.chunks_exact(layout.headers).enumerate() {
            if self.write(&[&plain, header, &bytes[layout.payload(n)]]).is_err() {
                tally.drop(Reason::TunFull, tunnel, 1);
            }
        }
        self.headers = headers;
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
