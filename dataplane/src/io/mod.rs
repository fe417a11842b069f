//! Between packets and the world: one interface, batched, with super-packets on both sides.
//!
//! [`PacketIo`] is what a worker drives: [`kernel::KernelIo`] with real devices, [`mem::MemIo`] in tests and benches.
//! All that says `libc` or `unsafe` is in [`sys`].

pub mod datagrams;
pub mod ears;
pub mod kernel;
pub mod mem;
pub mod outbox;
pub mod proto41;
pub mod route;
pub mod selftest;
pub mod spread;
pub mod sys;
pub mod tcx;
pub mod tun;
pub mod udp;
pub mod vnet;
pub mod ways;
pub mod whole41;

use std::net::{SocketAddrV4, UdpSocket};
use std::time::Duration;

use crate::counters::Tally;
use crate::packet::batch::Batch;
use crate::table::slab::Path;
use crate::verdict::Judged;

/// The two sides of the forwarder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The kernel, by the TUN device.
    Tun,
    /// The peers, by sockets.
    Wire,
}

/// Where a single packet goes that was not received in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// To the kernel.
    Tun,
    /// Encapsulated, to the path's peer; the octet is the outer type of service.
    Wire(Path, u8),
    /// As a bare UDP datagram.
    Datagram {
        /// Our endpoint, on whose port we listen; an unspecified address lets the kernel choose.
        local: SocketAddrV4,
        /// The peer.
        remote: SocketAddrV4,
    },
}

/// What one worker receives from and sends to.
pub trait PacketIo {
    /// Fills `batch`, which is empty, with what has come on one side. Returns whether more may be waiting.
    fn receive(&mut self, side: Side, batch: &mut Batch, tally: &mut Tally) -> bool;

    /// Carries out every `ToWire` and `ToTun` among the verdicts, in order; counts what could not be sent. Super-packets
    /// are cut where the other side needs it. `now` counts from the start.
    fn transmit(&mut self, batch: &Batch, judged: &[Judged], now: Duration, tally: &mut Tally);

    /// Sends one packet. `false` when it could not be sent.
    fn emit(&mut self, to: Destination, packet: &[u8], tally: &mut Tally) -> bool;

    /// Takes a new UDP socket under a number.
    fn open(&mut self, number: u16, at: SocketAddrV4, socket: UdpSocket);

    /// Closes a UDP socket.
    fn close(&mut self, number: u16);

    /// Looks which sides have something, waiting up to `most` (`None`: for ever) for one that has. Returns whether one has.
    fn wait(&mut self, most: Option<Duration>, tally: &mut Tally) -> bool;
}
