//! ICMPv4 errors by hand (RFC 792, RFC 1191 section 4), true or forged, from any address that a namespace has.

use std::net::{Ipv4Addr, SocketAddrV4};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::Space;
use crate::lab::must;

/// The beginning of an outer packet, as an error would quote it: `ports` for UDP, else protocol 41; `total` octets long.
pub fn quote(
    (from, to): (&str, &str),
    ports: Option<(u16, u16)>,
    total: u16,
    df: bool,
    inner: &[u8],
) -> Vec<u8> {
    let protocol = if ports.is_some() { 17 } else { 41 };
    let mut out = vec![0x45, 0, 0, 0, 0, 0, if df { 0x40 } else { 0 }, 0, 60, protocol, 0, 0];
    out[2..4].copy_from_slice(&total.to_be_bytes());
    for at in [from, to] {
        out.extend(outer(at).octets());
    }
    if let Some((from, to)) = ports {
        for word in [from, to, total - 20, 0] {
            out.extend(word.to_be_bytes());
        }
    }
    out.extend(inner);
    out
}

/// Sends an error from `from`, an address of `space`, to `to`: "destination unreachable" of this code, with a next hop's MTU.
#[track_caller]
pub fn unreachable(space: &Space, (from, to): (&str, &str), code: u8, mtu: u16, quote: &[u8]) {
    let mut message = vec![3, code, 0, 0, 0, 0, 0, 0];
    message[6..8].copy_from_slice(&mtu.to_be_bytes());
    message.extend(quote);
    let words = message.chunks(2).map(|w| u32::from(w[0]) * 256 + w.get(1).map_or(0, |b| u32::from(*b)));
    let sum = words.sum::<u32>();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !((sum & 0xffff) + (sum >> 16)) & 0xffff;
    message[2] = (sum >> 8) as u8;
    message[3] = (sum & 0xff) as u8;
    space.inside(|| {
        let socket = must(Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)), "open a raw socket");
        must(socket.bind(&SockAddr::from(SocketAddrV4::new(outer(from), 0))), "bind a raw socket");
        must(socket.send_to(&message, &SocketAddrV4::new(outer(to), 0).into()), "send an ICMPv4 error");
    });
}

#[track_caller]
fn outer(addr: &str) -> Ipv4Addr {
    addr.parse().unwrap_or_else(|_| panic!("'{addr}' is not an IPv4 address"))
}
