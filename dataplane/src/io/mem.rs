//! The in-memory twin: the same worker and the same forwarder without a kernel, for tests and benches.
//!
//! What goes in are queues of packets, what comes out are lists of packets, super-packets cut on their way to the wire
//! just as sockets have them cut.

use std::collections::VecDeque;
use std::net::{SocketAddrV4, UdpSocket};
use std::time::Duration;

use super::{Destination, PacketIo, Side};
use crate::counters::Tally;
use crate::offload::segment::{Layout, cut};
use crate::packet::batch::{Arrival, Batch, HEADROOM, Offload, Packet, Sender};
use crate::table::slab::Path;
use crate::verdict::{Judged, Reason, Verdict};

/// A packet that went to the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnWire {
    /// By which tunnel's path.
    pub path: Path,
    /// With which outer type of service.
    pub tos: u8,
    /// Its octets, without outer headers.
    pub packet: Vec<u8>,
}

/// Queues in the place of devices.
#[derive(Debug, Default)]
pub struct MemIo {
    /// What the kernel will hand over.
    pub tun_in: VecDeque<(Vec<u8>, Offload)>,
    /// What peers will send.
    pub wire_in: VecDeque<(Sender, Vec<u8>, Offload)>,
    /// What the kernel was given.
    pub tun_out: Vec<(Vec<u8>, Offload)>,
    /// What peers were sent.
    pub wire_out: Vec<OnWire>,
    /// Bare datagrams sent for the control plane: local, remote, octets.
    pub datagrams: Vec<(SocketAddrV4, SocketAddrV4, Vec<u8>)>,
}

impl MemIo {
    /// Empty queues.
    pub fn new() -> Self {
        Self::default()
    }

    fn next(&mut self, side: Side) -> Option<(Arrival, Vec<u8>, Offload)> {
        match side {
            Side::Tun => self.tun_in.pop_front().map(|(p, o)| (Arrival::Tun, p, o)),
            Side::Wire => self.wire_in.pop_front().map(|(s, p, o)| (Arrival::Wire(s), p, o)),
        }
    }

    fn send(&mut self, path: Path, tos: u8, packet: &Packet, bytes: &[u8], tally: &mut Tally) {
        let mut out = |packet: Vec<u8>| {
            tally.sent(path.tunnel, 1, packet.len() as u64);
            self.wire_out.push(OnWire { path, tos, packet });
        };
        if packet.offload.merged.is_none() {
            return out(bytes.to_vec());
        }
        let Ok(layout) = Layout::of(bytes, &packet.offload, path.mtu) else {
            return tally.drop(Reason::BadOffload, Some(path.tunnel), 1);
        };
        let mut headers = vec![0; layout.segments() * layout.headers];
        cut(bytes, &layout, &mut headers);
        let segments = headers.chunks_exact(layout.headers).enumerate();
        segments.for_each(|(n, header)| out([header, &bytes[layout.payload(n)]].concat()));
    }
}

impl PacketIo for MemIo {
    fn receive(&mut self, side: Side, batch: &mut Batch, _tally: &mut Tally) -> bool {
        for n in 0..batch.buffers() {
            let Some((arrival, bytes, offload)) = self.next(side) else { return false };
            let start = Batch::offset(n) + HEADROOM;
            batch.arena[start..start + bytes.len()].copy_from_slice(&bytes);
            batch.push(Packet { start, len: bytes.len(), arrival, offload });
        }
        true
    }

    fn transmit(&mut self, batch: &Batch, judged: &[Judged], _now: Duration, tally: &mut Tally) {
        for (packet, judgement) in batch.packets.iter().zip(judged) {
            match judgement.verdict {
                Verdict::ToWire(path, tos) => self.send(path, tos, packet, batch.bytes(packet), tally),
                Verdict::ToTun | Verdict::ToTunAndPunt(_) => {
                    self.tun_out.push((batch.bytes(packet).to_vec(), packet.offload));
                }
                Verdict::Punt(_) | Verdict::Drop(..) => {}
            }
        }
    }

    fn emit(&mut self, to: Destination, packet: &[u8], _tally: &mut Tally) -> bool {
        match to {
            Destination::Tun => self.tun_out.push((packet.to_vec(), Offload::default())),
            Destination::Wire(path, tos) => self.wire_out.push(OnWire { path, tos, packet: packet.to_vec() }),
            Destination::Datagram { local, remote } => self.datagrams.push((local, remote, packet.to_vec())),
        }
        true
    }

    fn open(&mut self, _number: u16, _at: SocketAddrV4, _socket: UdpSocket) {}

    fn close(&mut self, _number: u16) {}

    fn wait(&mut self, _most: Option<Duration>, _tally: &mut Tally) -> bool {
        false
    }
}
