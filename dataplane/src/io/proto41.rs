//! Protocol 41 of one worker (RFC 4213): a packet socket that tells how packets were merged, or a raw socket that does not.
//!
//! The kernel merges protocol-41 packets before any socket sees them and leaves partial checksums behind. A packet
//! socket with PACKET_VNET_HDR delivers the description as well, so the super-packet is passed on whole. A raw socket
//! hides it: there the partial TCP checksum gives the merge away (`detect_partial`); merged UDP cannot be told apart,
//! so that rung is the fallback. Sending is by a raw socket, which also keeps the kernel from answering "protocol
//! unreachable"; super-packets go whole by [`super::whole41`] where the kernel allows it.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use super::outbox::Outlet;
use super::sys::{Inbox, Name, Received, bind_packet, option, set_option};
use super::tcx::Forwarding;
use super::udp::{REFUSE, enlarge_buffers};
use super::whole41::WholeSender;
use super::{vnet, whole41};
use crate::counters::{Event, Tally};
use crate::encap::proto41;
use crate::knobs::{Knob, Standing, Standings};
use crate::offload::segment::detect_partial;
use crate::packet::batch::{Arrival, BUFFER, Batch, HEADROOM, Merged, Offload, Packet, Sender};
use crate::verdict::Reason;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERNET_HEADER: usize = 14;
const ARPHRD_ETHER: u16 = 1;
const ARPHRD_PPP: u16 = 512;
const ARPHRD_RAWIP: u16 = 519;
const ARPHRD_LOOPBACK: u16 = 772;
const ARPHRD_NONE: u16 = 0xfffe;
const PACKET_HOST: u8 = 0;

/// Which kind of socket receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receive {
    /// The packet socket, else the raw one.
    Auto,
    /// The packet socket or an error.
    Packet,
    /// The raw socket.
    Raw,
}

/// The sockets of one worker, opened while rights last.
#[derive(Debug)]
pub struct Proto41Sockets {
    raw: Socket,
    /// Sends with DF set, and hears nothing.
    unfragmented: Socket,
    whole: Option<WholeSender>,
    packet: Option<Socket>,
    /// The raw socket, which all workers share for sending, is read here.
    reads_raw: bool,
    addresses: LocalAddresses,
}

impl Proto41Sockets {
    /// Sets the time to live of all that is sent.
    pub fn set_ttl(&mut self, ttl: u8) -> io::Result<()> {
        self.raw.set_ttl_v4(ttl.into())?;
        self.unfragmented.set_ttl_v4(ttl.into())?;
        self.whole.iter_mut().for_each(|whole| whole.ttl = ttl);
        Ok(())
    }
}

/// Opens the sockets of `workers` workers. Returns them and the rung taken.
pub fn open(
    workers: usize,
    receive: Receive,
    standings: &mut Standings,
) -> io::Result<(Vec<Proto41Sockets>, Receive)> {
    // Before any socket of ours listens: the test's packet is not for the workers.
    let mut whole = Vec::new();
    if standings.of(Knob::Proto41Gso).is_used() {
        match open_whole(workers) {
            Ok(senders) => whole = senders,
            Err(why) => standings.settle(Knob::Proto41Gso, Standing::Refused(why.to_string())),
        }
    }
    let mut whole = whole.into_iter();
    // One raw socket that all workers send with: the kernel makes a copy of every packet for each there is.
    let raw = open_raw()?;
    let packets = match receive {
        Receive::Raw => None,
        Receive::Packet => Some(open_packets(workers)?),
        Receive::Auto => open_packets(workers).ok(),
    };
    let taken = if packets.is_some() { Receive::Packet } else { Receive::Raw };
    if taken == Receive::Packet {
        raw.attach_filter(&[REFUSE])?;
    }
    let unfragmented = open_unfragmented()?;
    let mut packets = packets.unwrap_or_default().into_iter();
    let mut all = Vec::with_capacity(workers);
    for n in 0..workers {
        let reads_raw = taken == Receive::Raw && n == 0;
        let addresses = LocalAddresses::of_this_network();
        let (raw, packet, whole) = (raw.try_clone()?, packets.next(), whole.next());
        let unfragmented = unfragmented.try_clone()?;
        all.push(Proto41Sockets { raw, unfragmented, whole, packet, reads_raw, addresses });
    }
    Ok((all, taken))
}

fn open_whole(workers: usize) -> io::Result<Vec<WholeSender>> {
    let secret = RandomState::new().build_hasher().finish();
    let forwarding = Forwarding::attach(secret).map_err(|e| match e.raw_os_error() {
        Some(libc::EPERM) => {
            io::Error::other("no right to load the eBPF program (needs CAP_BPF and CAP_NET_ADMIN)")
        }
        Some(libc::EINVAL) => io::Error::other("the kernel has no tcx (6.6 and later have)"),
        _ => io::Error::other(format!("the eBPF program: {e}")),
    })?;
    whole41::test(&forwarding)?;
    (0..workers).map(|_| WholeSender::open(&forwarding)).collect()
}

fn open_raw() -> io::Result<Socket> {
    let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(i32::from(proto41::PROTOCOL))))?;
    raw.set_nonblocking(true)?;
    enlarge_buffers(&raw);
    let fd = raw.as_fd();
    set_option(fd, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
    // DF stays clear at every static MTU (RFC 4213 section 3.2.1), and fragments are as long as the interface takes: what
    // anybody says in an ICMPv4 error about the path is not believed by this socket.
    set_option(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_OMIT)?;
    let _counts_losses_where_known = set_option(fd, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1);
    Ok(raw)
}

/// A raw socket that sends with DF set (RFC 4213 section 3.2.2). The kernel gives every raw socket a copy of what comes;
/// bound to the broadcast address, this one is passed over, and what it sends still gets its source from the route.
fn open_unfragmented() -> io::Result<Socket> {
    let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(i32::from(proto41::PROTOCOL))))?;
    raw.set_nonblocking(true)?;
    raw.attach_filter(&[REFUSE])?;
    enlarge_buffers(&raw);
    set_option(raw.as_fd(), libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)?;
    raw.bind(&std::net::SocketAddr::from((Ipv4Addr::BROADCAST, 0)).into())?;
    Ok(raw)
}

fn open_packets(workers: usize) -> io::Result<Vec<Socket>> {
    let mut group: Option<i32> = None;
    let mut all = Vec::with_capacity(workers);
    for _ in 0..workers {
        let socket = open_deaf_packet()?;
        group = Some(join_fanout(socket.as_fd(), group)?);
        all.push(socket);
    }
    // Only now may they hear: bound and not yet in the group, each would get a copy of every packet, and while the group
    // grows, a flow moves from one to another. Swapping the filter loses packets, but none comes twice or out of order.
    all.iter().try_for_each(|socket| socket.attach_filter(&only_proto41()))?;
    Ok(all)
}

/// A packet socket that still refuses everything; the kernel lets only a bound one into a group.
fn open_deaf_packet() -> io::Result<Socket> {
    // Protocol 0: it receives nothing before it is bound, when all options are set.
    let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
    socket.set_nonblocking(true)?;
    enlarge_buffers(&socket);
    socket.attach_filter(&[REFUSE])?;
    let fd = socket.as_fd();
    set_option(fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
    let _only_saves_work = set_option(fd, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1);
    let _counts_losses_where_known = set_option(fd, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1);
    bind_packet(fd, ETHERTYPE_IPV4, 0)?;
    Ok(socket)
}

/// One group for all workers: the kernel reassembles fragments and keeps each inner flow with one of them.
fn join_fanout(fd: BorrowedFd<'_>, group: Option<i32>) -> io::Result<i32> {
    let flags = libc::PACKET_FANOUT_HASH | libc::PACKET_FANOUT_FLAG_DEFRAG;
    let (id, flags) = match group {
        Some(id) => (id, flags),
        None => (0, flags | libc::PACKET_FANOUT_FLAG_UNIQUEID),
    };
    set_option(fd, libc::SOL_PACKET, libc::PACKET_FANOUT, id | (flags as i32) << 16)?;
    Ok(option(fd, libc::SOL_PACKET, libc::PACKET_FANOUT)? & 0xffff)
}

const LOAD_BYTE: u16 = 0x30;
const JUMP_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
/// SKF_NET_OFF: offsets from here count from the network header, whatever the link header.
const NETWORK: u32 = 0xfff0_0000;

/// Classic BPF: let IPv4 protocol 41 through whole, nothing else.
pub(super) fn only_proto41() -> [SockFilter; 4] {
    [
        SockFilter::new(LOAD_BYTE, 0, 0, NETWORK + 9),
        SockFilter::new(JUMP_EQUAL, 0, 1, u32::from(proto41::PROTOCOL)),
        SockFilter::new(RETURN, 0, 0, 0x4_0000),
        REFUSE,
    ]
}

/// The IPv4 addresses of this host: what a packet socket sees for others is not ours to unwrap.
#[derive(Debug, Default)]
struct LocalAddresses {
    known: Vec<Ipv4Addr>,
    missed: bool,
}

impl LocalAddresses {
    fn of_this_network() -> Self {
        let mut addresses = Self::default();
        addresses.refresh();
        addresses
    }

    fn refresh(&mut self) {
        self.missed = false;
        let Ok(all) = nix::ifaddrs::getifaddrs() else { return };
        self.known.clear();
        let addresses = all.filter_map(|i| Some(i.address?.as_sockaddr_in()?.ip()));
        self.known.extend(addresses);
    }

    fn contains(&mut self, addr: Ipv4Addr) -> bool {
        let is_ours = self.known.contains(&addr);
        self.missed |= !is_ours;
        is_ours
    }
}

/// Protocol 41 as one worker sees it.
#[derive(Debug)]
pub struct Proto41Port {
    sockets: Proto41Sockets,
    /// The process is still in the network of its sockets, and may ask it for its addresses.
    at_home: bool,
    lost: u32,
    /// Something may be waiting.
    pub ready: bool,
}

impl Proto41Port {
    /// Takes sockets that [`open`] has made; `at_home` says that the process is still in the network that it opened
    /// them in.
    pub fn new(sockets: Proto41Sockets, at_home: bool) -> Self {
        Self { sockets, at_home, lost: 0, ready: true }
    }

    /// The socket to send with, where outer packets may be fragmented or where they go `whole`.
    pub fn sender(&self, whole: bool) -> BorrowedFd<'_> {
        if whole { self.sockets.unfragmented.as_fd() } else { self.sockets.raw.as_fd() }
    }

    /// The same for an outbox, with the way that is left for what is too long.
    pub fn outlet(&self, whole: bool) -> Outlet<'_> {
        Outlet { fd: self.sender(whole), whole, fragmenting: Some(self.sockets.raw.as_fd()) }
    }

    /// The way out for super-packets, if there is one at `now`, counted from the start.
    pub fn whole(&mut self, now: Duration) -> Option<&mut WholeSender> {
        let whole = self.sockets.whole.as_mut()?;
        whole.holds(now).then_some(whole)
    }

    /// The socket to receive from, if this worker does.
    pub fn receiver(&self) -> Option<BorrowedFd<'_>> {
        let raw = self.sockets.reads_raw.then(|| self.sockets.raw.as_fd());
        self.sockets.packet.as_ref().map(|s| s.as_fd()).or(raw)
    }

    /// Once a second: an address that was not ours may have become so, and the way out for super-packets be gone.
    pub fn refresh(&mut self, now: Duration, tally: &mut Tally) {
        if self.at_home && self.sockets.addresses.missed {
            self.sockets.addresses.refresh();
        }
        let at_home = self.at_home;
        if let Some(until) = self.sockets.whole.as_mut().and_then(|whole| whole.look_after(at_home, now)) {
            tally.pause(Knob::Proto41Gso, until);
        }
    }

    /// As `UdpPort::receive`.
    pub fn receive(
        &mut self,
        inbox: &mut Inbox,
        batch: &mut Batch,
        first: usize,
        tally: &mut Tally,
    ) -> usize {
        let room = batch.buffers() - first;
        let place = (Batch::offset(first) + HEADROOM, BUFFER, BUFFER - HEADROOM);
        let Some(fd) = self.receiver() else {
            self.ready = false;
            return 0;
        };
        let got = inbox.receive(fd, &mut batch.arena, room, place).unwrap_or(0);
        self.ready = got == room;
        tally.event(Event::WireReads, got as u64);
        for n in 0..got {
            let start = Batch::offset(first + n) + HEADROOM;
            if let Err(reason) = self.accept(inbox.message(n), start, batch, tally) {
                tally.drop(reason, None, 1);
                self.keep(reason, &inbox.message(n), start, batch, tally);
            }
        }
        got
    }

    /// Keeps a frame that was not taken, from its outer header on, for people to look at.
    fn keep(&self, reason: Reason, m: &Received, start: usize, batch: &Batch, tally: &mut Tally) {
        let before = match self.sockets.packet {
            Some(_) => self.link_header(m).unwrap_or((vnet::LEN, 0)),
            None => (0, 0),
        };
        let end = (start + m.len).min(batch.arena.len());
        let outer = batch.arena[start..end].get(before.0 + before.1..).unwrap_or_default();
        let from = outer.first_chunk::<20>().map(|header| {
            let address =
                |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
            Arrival::Wire(Sender::proto41(address(12), address(16), header[1]))
        });
        tally.keep(reason, None, from, outer);
    }

    fn accept(
        &mut self,
        m: Received,
        start: usize,
        batch: &mut Batch,
        tally: &mut Tally,
    ) -> Result<(), Reason> {
        if let Some(lost) = m.lost {
            tally.event(Event::KernelDrops, u64::from(lost.wrapping_sub(self.lost)));
            self.lost = lost;
        }
        if m.truncated {
            return Err(Reason::Truncated);
        }
        let frame = &batch.arena[start..start + m.len];
        let (skip, link) = if self.sockets.packet.is_some() { self.link_header(&m)? } else { (0, 0) };
        let outer = proto41::unwrap(frame.get(skip + link..).ok_or(Reason::TooShort)?)?;
        if !self.sockets.addresses.contains(outer.destination) {
            return Err(Reason::NotOurs);
        }
        let inner = skip + link + outer.len..skip + link + outer.total;
        let offload = match frame.first_chunk::<{ vnet::LEN }>() {
            Some(header) if skip > 0 => {
                vnet::parse(header, link + outer.len).map_err(|_| Reason::BadOffload)?
            }
            _ => guess_offload(&frame[inner.clone()]),
        };
        tally.event(Event::WireMerged, u64::from(offload.merged.is_some()));
        let sender = Sender::proto41(outer.source, outer.destination, outer.tos);
        let arrival = Arrival::Wire(sender);
        let packet = Packet { start: start + inner.start, len: inner.len(), arrival, offload };
        if batch.push(packet) { Ok(()) } else { Err(Reason::BatchFull) }
    }

    /// Octets of the virtio header and of the link header of a frame.
    fn link_header(&self, m: &Received) -> Result<(usize, usize), Reason> {
        let Name::Link { hatype, pkttype } = m.name else { return Err(Reason::OddLink) };
        if pkttype != PACKET_HOST {
            return Err(Reason::NotOurs);
        }
        match hatype {
            ARPHRD_ETHER | ARPHRD_LOOPBACK => Ok((vnet::LEN, ETHERNET_HEADER)),
            ARPHRD_NONE | ARPHRD_PPP | ARPHRD_RAWIP => Ok((vnet::LEN, 0)),
            _ => Err(Reason::OddLink),
        }
    }
}

/// A raw socket tells nothing: a partial TCP checksum says that the packet may be several.
fn guess_offload(inner: &[u8]) -> Offload {
    match detect_partial(inner) {
        Some(partial) => Offload { merged: Some((Merged::Tcp, 0)), partial: Some(partial) },
        None => Offload::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC: D2 (RFC 4213 section 3.6)
    #[test]
    fn an_address_that_is_not_ours_is_noticed() {
        let mut local = LocalAddresses::of_this_network();
        assert!(local.contains(Ipv4Addr::LOCALHOST) && !local.missed);
        assert!(!local.contains(Ipv4Addr::new(192, 0, 2, 77)) && local.missed);
    }
}
