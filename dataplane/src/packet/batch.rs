//! A batch: many packets in one arena that is allocated once, with what is known of each.
//!
//! A received buffer may hold one packet, one super-packet (a TCP or UDP segment train that a kernel merged, with
//! what is needed to cut it again), or several packets in a row; a [`Packet`] is a range of the arena. Nothing
//! is freed: the next batch writes over the last one.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::Range;

use crate::table::slab::Encap;

/// Octets before each received packet that may be used for headers.
pub const HEADROOM: usize = 64;
/// Octets of one buffer: headroom, the largest datagram with its link header, and some slack.
pub const BUFFER: usize = HEADROOM + 65_536 + 64;

/// What a merged packet is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merged {
    /// TCP segments of one flow.
    Tcp,
    /// UDP datagrams of one flow.
    Udp,
}

/// How a super-packet is to be cut (the meaning of `virtio_net_hdr`, offsets from the inner packet's start).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Offload {
    /// What was merged and the payload octets of each segment; a size of 0 means that the kernel did not say
    /// (raw sockets) and the tunnel's MTU decides, which only TCP allows.
    pub merged: Option<(Merged, u16)>,
    /// Where the upper layer starts and where in it the checksum field lies, when that field holds only the sum of
    /// the pseudo-header.
    pub partial: Option<(u16, u16)>,
}

/// Which way a packet came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// From the kernel by the TUN device.
    Tun,
    /// From a peer.
    Wire(Sender),
}

/// A peer as the outer header names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender {
    /// Encapsulation.
    pub encap: Encap,
    /// Outer source; the port is 0 for protocol 41.
    pub remote: SocketAddrV4,
    /// Outer destination; the port is 0 for protocol 41.
    pub local: SocketAddrV4,
    /// Outer type-of-service octet.
    pub tos: u8,
}

impl Sender {
    /// A sender by protocol 41.
    pub fn proto41(remote: Ipv4Addr, local: Ipv4Addr, tos: u8) -> Self {
        let at = |addr| SocketAddrV4::new(addr, 0);
        Self { encap: Encap::Proto41, remote: at(remote), local: at(local), tos }
    }
}

/// One packet of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Offset of its first octet in the arena.
    pub start: usize,
    /// Its octets; for a super-packet, of the whole.
    pub len: usize,
    /// How it came.
    pub arrival: Arrival,
    /// How it must be cut or completed.
    pub offload: Offload,
}

impl Packet {
    /// Its range of the arena.
    pub fn range(&self) -> Range<usize> {
        self.start..self.start + self.len
    }
}

/// Packets received together.
#[derive(Debug)]
pub struct Batch {
    /// All buffers in a row.
    pub arena: Vec<u8>,
    /// The packets in them, in order of arrival.
    pub packets: Vec<Packet>,
    buffers: usize,
}

impl Batch {
    /// A batch of `buffers` buffers, each for up to `slices` packets.
    pub fn new(buffers: usize, slices: usize) -> Self {
        Self { arena: vec![0; buffers * BUFFER], packets: Vec::with_capacity(buffers * slices), buffers }
    }

    /// Forgets the packets of the last batch.
    pub fn clear(&mut self) {
        self.packets.clear();
    }

    /// How many buffers there are.
    pub fn buffers(&self) -> usize {
        self.buffers
    }

    /// Where buffer `n` begins in the arena.
    pub fn offset(n: usize) -> usize {
        n * BUFFER
    }

    /// Adds a packet; `false` when there is no room for its description.
    pub fn push(&mut self, packet: Packet) -> bool {
        if self.packets.len() == self.packets.capacity() {
            return false;
        }
        self.packets.push(packet);
        true
    }

    /// The octets of a packet of this batch.
    pub fn bytes(&self, packet: &Packet) -> &[u8] {
        &self.arena[packet.range()]
    }
}
