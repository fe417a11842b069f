//! Protocol-41 super-packets on their way out, whole: one send for up to 64 KiB, cut by the interface or as late as possible.
//!
//! Builds frames for the program in [`super::tcx`]: what a packet socket wants to know of the inner train, the link header
//! that the program reads, the outer IPv4 header (RFC 4213 section 3), and the inner packet as it lies in its buffer; no
//! checksum is computed and no payload is touched. What cannot go this way (no route out of this host, segments
//! longer than the interface takes, a header that cannot say the length) is left to the caller to cut.

use std::io::{self, IoSlice};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, sendmsg};
use socket2::{Domain, Socket, Type};

use super::proto41::only_proto41;
use super::route::{KnownRoutes, Way};
use super::sys::{bind_packet, set_option};
use super::tcx::{Forwarding, LINK_HEADER, LOOPBACK, OUTER_HEADER};
use super::{udp, vnet};
use crate::encap::{OUTER_TTL, proto41};
use crate::knobs::Fuse;
use crate::offload::segment::{Layout, cut};
use crate::packet::batch::{Merged, Offload};
use crate::packet::checksum::Sum;
use crate::packet::view::TCP;
use crate::table::slab::Path;

const ETHERTYPE_IPV4: u16 = 0x0800;

/// What became of a super-packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It is on its way.
    Whole,
    /// The kernel has no room; trying again in pieces would not help.
    Full,
    /// Its segments are too long for the interface: it must be cut.
    TooLong,
    /// The kernel does not take it: it must be cut.
    Refused,
    /// There is no way for it to go whole: it must be cut.
    Not,
}

/// Super-packets that the kernel refuses in a row before they are cut without asking.
const STRIKES: u8 = 8;

/// One worker's way out for super-packets.
#[derive(Debug)]
pub struct WholeSender {
    fuse: Fuse,
    /// The program was found detached and has not been seen attached since.
    was_detached: bool,
    socket: Socket,
    forwarding: Forwarding,
    routes: KnownRoutes,
    /// The outer time to live.
    pub ttl: u8,
}

impl WholeSender {
    /// Opens the sockets in the network namespace of the calling thread.
    pub fn open(forwarding: &Forwarding) -> io::Result<Self> {
        let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
        socket.set_nonblocking(true)?;
        udp::enlarge_buffers(&socket);
        set_option(socket.as_fd(), libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
        bind_packet(socket.as_fd(), 0, LOOPBACK)?;
        let routes = KnownRoutes::open()?;
        let forwarding = forwarding.clone();
        Ok(Self { fuse: Fuse::new(STRIKES), was_detached: false, socket, forwarding, routes, ttl: OUTER_TTL })
    }

    /// Whether it may be used at `now`, counted from the start.
    pub fn holds(&mut self, now: Duration) -> bool {
        self.fuse.holds(now) && !self.was_detached
    }

    /// The kernel refused a super-packet, or took one. Returns until when all are cut, if this refusal was the one that counts.
    pub fn note(&mut self, refused: bool, now: Duration) -> Option<Duration> {
        if refused {
            return self.fuse.failed(now);
        }
        self.fuse.worked();
        None
    }

    /// About once a second: without the program, what is sent here vanishes on the loopback device. If somebody has taken it
    /// off, all is cut for a while; then it is attached again, if that `may` be done here. Returns until when the pause is.
    pub fn look_after(&mut self, may_attach: bool, now: Duration) -> Option<Duration> {
        if self.forwarding.is_attached() {
            self.was_detached = false;
            return None;
        }
        if self.was_detached && !self.fuse.holds(now) {
            return None;
        }
        if self.was_detached && may_attach && self.forwarding.attach_again().is_ok() {
            self.was_detached = false;
            return None;
        }
        self.was_detached = true;
        Some(self.fuse.blow(now))
    }

    /// Sends a super-packet with an incomplete checksum to the peer of `path`; `now` counts from the start.
    pub fn send(
        &mut self,
        path: &Path,
        tos: u8,
        (packet, offload): (&[u8], &Offload),
        layout: &Layout,
        now: Duration,
    ) -> Sent {
        let Some(way) = self.routes.way(path.remote, path.local, now) else { return Sent::Not };
        if OUTER_HEADER + layout.largest() > way.mtu as usize {
            return Sent::TooLong;
        }
        self.send_by(way, (path.remote, path.manners.is_whole()), tos, packet, offload, layout)
    }

    /// Questions asked of the kernel's routing, and packets that had to do without one, since this was called last.
    pub fn take_questions(&mut self) -> (u64, u64) {
        self.routes.take_questions()
    }

    fn send_by(
        &mut self,
        way: Way,
        (peer, unfragmented): (Ipv4Addr, bool),
        tos: u8,
        packet: &[u8],
        offload: &Offload,
        layout: &Layout,
    ) -> Sent {
        let (Ok(total), Some((start, field))) = (u16::try_from(OUTER_HEADER + packet.len()), offload.partial)
        else {
            return Sent::Not;
        };
        let shift = (LINK_HEADER + OUTER_HEADER) as u16;
        let outside = Offload { partial: Some((start + shift, field)), ..*offload };
        let vnet = vnet::emit(&outside, usize::from(shift) + layout.headers, layout.has_cwr(packet));
        let link = self.forwarding.link_header(way.interface);
        let identification = self.forwarding.identify(way.source, peer, layout.segments());
        let outer = proto41::wrap((way.source, peer), (tos, self.ttl), total, identification, unfragmented);
        let frame = [&vnet[..], &link, &outer, packet].map(IoSlice::new);
        let fd = self.socket.as_raw_fd();
        let send = || sendmsg::<()>(fd, &frame, &[], MsgFlags::MSG_DONTWAIT, None);
        let sent = send();
        // A full socket may have been emptied meanwhile: one more try, as for every other message.
        match if sent == Err(Errno::EAGAIN) { send() } else { sent } {
            Ok(_) => Sent::Whole,
            Err(Errno::EAGAIN) => Sent::Full,
            Err(_) => Sent::Refused,
        }
    }
}

/// Sends a super-packet through the program to this host's loopback address and sees whether it comes back: whole, or in
/// the segments that it stands for.
pub fn test(forwarding: &Forwarding) -> io::Result<()> {
    let mut sender = WholeSender::open(forwarding)?;
    let ear = Socket::new(Domain::PACKET, Type::RAW, None)?;
    set_option(ear.as_fd(), libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
    set_option(ear.as_fd(), libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
    ear.attach_filter(&only_proto41())?;
    bind_packet(ear.as_fd(), ETHERTYPE_IPV4, LOOPBACK)?;
    let (packet, offload, layout) = specimen()?;
    let way = Way { interface: LOOPBACK, mtu: u32::MAX, source: Ipv4Addr::LOCALHOST };
    if sender.send_by(way, (Ipv4Addr::LOCALHOST, false), 0, &packet, &offload, &layout) != Sent::Whole {
        return Err(io::Error::other("the loopback device does not take a super-packet (is it down?)"));
    }
    let mut expected = segments_of(&packet, &layout).into_iter().peekable();
    for _ in 0..MOST_HEARD {
        if !hears(&ear)? {
            break;
        }
        let mut frame = [0; 8192];
        let heard = nix::unistd::read(&ear, &mut frame)?;
        let inner = frame[..heard].get(vnet::LEN + LINK_HEADER + OUTER_HEADER..).unwrap_or_default();
        let header = frame.first_chunk::<{ vnet::LEN }>();
        let told = header.and_then(|h| vnet::parse(h, LINK_HEADER + OUTER_HEADER).ok());
        let _matched = expected.next_if(|segment| inner == segment);
        let is_whole = inner == packet && told == Some(offload);
        if is_whole || expected.peek().is_none() {
            return Ok(());
        }
    }
    Err(io::Error::other("a super-packet sent to the loopback address did not come back as it was"))
}

fn segments_of(packet: &[u8], layout: &Layout) -> Vec<Vec<u8>> {
    let mut headers = vec![0; layout.segments() * layout.headers];
    cut(packet, layout, &mut headers);
    let parts = headers.chunks_exact(layout.headers).enumerate();
    parts.map(|(n, header)| [header, &packet[layout.payload(n)]].concat()).collect()
}

/// Frames of others that may come before the specimen.
const MOST_HEARD: usize = 64;
/// How long to listen for one, milliseconds.
const PATIENCE: u8 = 50;

fn hears(ear: &Socket) -> io::Result<bool> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut waiting = [PollFd::new(ear.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut waiting, PollTimeout::from(PATIENCE))? > 0)
}

/// Three TCP segments between documentation addresses (RFC 3849), merged.
fn specimen() -> io::Result<(Vec<u8>, Offload, Layout)> {
    const PAYLOAD: usize = 2500;
    let mut packet = vec![0x5a; 60 + PAYLOAD];
    packet[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 0, 6, 64]);
    packet[4..6].copy_from_slice(&((20 + PAYLOAD) as u16).to_be_bytes());
    for at in [8, 24] {
        packet[at..at + 16]
            .copy_from_slice(&[0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, at as u8]);
    }
    packet[40..60].copy_from_slice(&[0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 0, 9, 0, 0, 0, 0]);
    let pseudo = Sum::pseudo(&packet[8..40], (20 + PAYLOAD) as u32, TCP).fold();
    packet[56..58].copy_from_slice(&pseudo);
    let merged = Some((Merged::Tcp, 1000));
    let offload = Offload { merged, partial: Some((40, 16)) };
    let layout = Layout::of(&packet, &offload, 0).map_err(|_| io::ErrorKind::InvalidData)?;
    Ok((packet, offload, layout))
}
