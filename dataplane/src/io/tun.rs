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
use crate::offload::segment::{Layout, cut};
use crate::packet::batch::{Arrival, BUFFER, Batch, HEADROOM, Merged, Offload, Packet};
use crate::packet::view::upper_layer;
use crate::table::slab::Path;
use crate::verdict::Reason;

const CSUM: u32 = 0x01;
const TSO6: u32 = 0x04;
const TSO_ECN: u32 = 0x08;
const USO4: u32 = 0x20;
const USO6: u32 = 0x40;
/// The TCP flag Congestion Window Reduced.
const CWR: u8 = 0x80;

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
    let builder = tun_rs::DeviceBuilder::new().name(name).multi_queue(true).offload(true).enable(false);
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
    pub fn send(&mut self, bytes: &[u8], offload: &Offload, from: Option<&Path>, tally: &mut Tally) {
        tally.event(Event::TunWrites, 1);
        let tunnel = from.map(|p| p.tunnel);
        let Some((kind, _)) = offload.merged else {
            if self.write(&[&vnet::emit(offload, 0, false), bytes]).is_err() {
                tally.drop(Reason::TunFull, tunnel, 1);
            }
            return;
        };
        let Ok(layout) = Layout::of(bytes, offload, 0) else {
            return tally.drop(Reason::BadOffload, tunnel, 1);
        };
        tally.event(Event::TunMerged, 1);
        let cwr = kind == Merged::Tcp && bytes[layout.upper + 13] & CWR != 0;
        // A merged packet always has a partial checksum; a sender that said otherwise is helped.
        let partial = offload.partial.or_else(|| partial_of(bytes));
        let header = vnet::emit(&Offload { partial, ..*offload }, layout.headers, cwr);
        match self.write(&[&header, bytes]) {
            Ok(()) => {}
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => self.send_cut(bytes, &layout, from, tally),
            Err(_) => tally.drop(Reason::TunFull, tunnel, layout.segments() as u64),
        }
    }

    fn send_cut(&mut self, bytes: &[u8], layout: &Layout, from: Option<&Path>, tally: &mut Tally) {
        let mut headers = std::mem::take(&mut self.headers);
        headers.resize(layout.segments() * layout.headers, 0);
        cut(bytes, layout, &mut headers);
        let plain = vnet::emit(&Offload::default(), 0, false);
        for (n, header) in headers.chunks_exact(layout.headers).enumerate() {
            if self.write(&[&plain, header, &bytes[layout.payload(n)]]).is_err() {
                tally.drop(Reason::TunFull, from.map(|p| p.tunnel), 1);
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

fn partial_of(bytes: &[u8]) -> Option<(u16, u16)> {
    let (upper, protocol, _) = upper_layer(bytes)?;
    Some((upper as u16, if protocol == crate::packet::view::UDP { 6 } else { 16 }))
}
