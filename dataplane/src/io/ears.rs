//! What the outer network says of paths: ICMPv4 errors about packets of ours, and how long packets to a peer may be.
//!
//! One raw socket hears the errors about either encapsulation (RFC 4213 section 3.4); the error queues of the sending
//! sockets are left off, since an error waiting there makes an innocent packet's send fail. Opened with the other outer
//! sockets, in their network. What an error means, and whether it is true, is the control plane's business.

use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use super::route::Routes;
use super::sys::{self, option};

/// Octets of an error that are looked at: RFC 1812 section 4.3.2.3 asks for 576 with its header.
pub const LARGEST: usize = 1500;
/// Kernel buffer: some hundreds of errors.
const BUFFER: usize = 256 << 10;
/// What a question about a path is connected to; nothing is sent.
const DISCARD: u16 = 9;

/// The sockets.
#[derive(Debug)]
pub struct Ears {
    icmp: Option<Socket>,
    routes: Option<Routes>,
    asker: Option<UdpSocket>,
}

impl Ears {
    /// Opens them. Without the right to a raw socket errors are not heard; [`Self::hears`] says so.
    pub fn open() -> Self {
        let asker = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok();
        Self { icmp: open_icmp().ok(), routes: Routes::open().ok(), asker }
    }

    /// Whether errors are heard.
    pub fn hears(&self) -> bool {
        self.icmp.is_some()
    }

    /// The next error: an IPv4 packet with an ICMP message, as long as it fits. `None`: no more for now.
    pub fn hear<'b>(&self, buffer: &'b mut [u8; LARGEST]) -> Option<&'b [u8]> {
        let mut socket = self.icmp.as_ref()?;
        let got = socket.read(buffer).ok()?;
        Some(&buffer[..got])
    }

    /// How long an IPv4 packet from `local` (unspecified: any address of ours) to `peer` may be, octets, as far as this
    /// host knows: its interface and its routes. What errors have made the kernel believe is left out, since anybody can
    /// send them. `None` without a route.
    pub fn path_mtu(&mut self, peer: Ipv4Addr, local: Ipv4Addr) -> Option<u16> {
        let way = |routes: &mut Routes, from| routes.look_up(peer, from).ok().flatten();
        let asked = self.routes.as_mut();
        // An address that is gone is no reason not to know the interface.
        let known = asked.and_then(|r| way(r, local).or_else(|| way(r, Ipv4Addr::UNSPECIFIED)));
        let mtu = known.map(|way| i32::try_from(way.mtu).unwrap_or(i32::MAX));
        let mtu = mtu.or_else(|| self.ask_kernel(peer))?;
        Some(u16::try_from(mtu).unwrap_or(u16::MAX))
    }

    /// What the kernel would send at once: within this host, and where IPsec adds its own.
    fn ask_kernel(&self, peer: Ipv4Addr) -> Option<i32> {
        let asker = self.asker.as_ref()?;
        // The first connection would fix the source address for all others, also when it is gone from this host.
        sys::disconnect(asker.as_fd()).ok()?;
        asker.connect(SocketAddrV4::new(peer, DISCARD)).ok()?;
        option(asker.as_fd(), libc::IPPROTO_IP, libc::IP_MTU).ok()
    }

    /// The IPv4 addresses of the network that the caller is in.
    pub fn own_addresses(&self) -> Vec<Ipv4Addr> {
        let all = nix::ifaddrs::getifaddrs().into_iter().flatten();
        all.filter_map(|interface| Some(interface.address?.as_sockaddr_in()?.ip())).collect()
    }

    /// The socket to wait on.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.icmp.as_ref().map(|socket| socket.as_fd())
    }
}

fn open_icmp() -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
    socket.set_nonblocking(true)?;
    socket.set_recv_buffer_size(BUFFER)?;
    socket.attach_filter(&errors_about_tunnels())?;
    Ok(socket)
}

const LOAD_BYTE_INDEXED: u16 = 0x50;
const LENGTH_TO_INDEX: u16 = 0xb1;
const JUMP_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

/// Classic BPF: errors (types 3, 11 and 12 of RFC 792) about protocol 41 or UDP, and nothing else. The outer header's length
/// is read where it stands; the quote begins eight octets behind it, and its protocol stands nine further.
fn errors_about_tunnels() -> [SockFilter; 10] {
    [
        SockFilter::new(LENGTH_TO_INDEX, 0, 0, 0),
        SockFilter::new(LOAD_BYTE_INDEXED, 0, 0, 0),
        SockFilter::new(JUMP_EQUAL, 2, 0, 3),
        SockFilter::new(JUMP_EQUAL, 1, 0, 11),
        SockFilter::new(JUMP_EQUAL, 0, 3, 12),
        SockFilter::new(LOAD_BYTE_INDEXED, 0, 0, 17),
        SockFilter::new(JUMP_EQUAL, 2, 0, 41),
        SockFilter::new(JUMP_EQUAL, 1, 0, 17),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, LARGEST as u32),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_knows_the_way_to_itself() {
        let mut ears = Ears::open();
        for local in [Ipv4Addr::UNSPECIFIED, Ipv4Addr::LOCALHOST, Ipv4Addr::new(192, 0, 2, 77)] {
            assert!(ears.path_mtu(Ipv4Addr::LOCALHOST, local).is_some_and(|mtu| mtu >= 1280), "{local}");
        }
    }

    /// A datagram to a port where nobody listens is answered by the kernel; echo requests and the like are not heard.
    #[test]
    fn an_error_about_a_datagram_is_heard() {
        let ears = Ears::open();
        if !ears.hears() {
            return;
        }
        let nobody = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let from = sender.local_addr().unwrap().port();
        sender.send_to(b"anybody there?", nobody).unwrap();
        let mut buffer = [0; LARGEST];
        let until = std::time::Instant::now() + std::time::Duration::from_secs(2);
        while std::time::Instant::now() < until {
            // Other tests' errors are heard too.
            let is_it = |e: &[u8]| e[20..22] == [3, 3] && e[48..50] == from.to_be_bytes();
            if ears.hear(&mut buffer).is_some_and(is_it) {
                return;
            }
        }
        panic!("nothing was heard");
    }
}
