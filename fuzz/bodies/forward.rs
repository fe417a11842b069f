//! Any packet from either side through the real worker, tables and counters: no panic, and never a packet to a tunnel
//! whose checks it fails. What those are is worked out here a second time, the slow way.

use std::cell::RefCell;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};

use sixway_dataplane::encap::inner_class;
use sixway_dataplane::manners::Manners;
use sixway_dataplane::packet::batch::{Arrival, Merged, Offload, Sender};
use sixway_dataplane::packet::view::{ICMPV6, View, set_traffic_class};
use sixway_dataplane::start::{InMemory, in_memory};
use sixway_dataplane::table::slab::Encap;
use sixway_dataplane::update::{
    Holder, Ipv6Prefix, Outer, Policy, Tunnel, TunnelId, UdpLocal, UdpRemote, Update,
};

use super::packets::check_error;

const OURS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const PORT: u16 = 3653;
const ROUTER: &str = "2001:db8::1";

/// Every tunnel: encapsulation, peer if it is known, prefix, MTU.
const TUNNELS: &[(Encap, Option<&str>, &str, u16)] = &[
    (Encap::Proto41, Some("192.0.2.1:0"), "2001:db8:a::/48", 1280),
    (Encap::Udp, Some("192.0.2.2:5555"), "2001:db8:a:b::/64", 1400),
    (Encap::Udp, Some("192.0.2.3:3333"), "2001:db8:c::/48", 1280),
    (Encap::Udp, None, "2001:db8:d::/48", 1280),
    (Encap::Proto41, Some("192.0.2.7:0"), "::/0", 1480),
];
/// The router's own addresses, and its pool.
const LOCAL: &[&str] = &[ROUTER, "2001:db8:a::1"];
const POOL: &str = "2001:db8::/32";

/// Addresses that are worth trying.
const ADDRESSES: &[&str] = &[
    "2001:db8:a::9",
    "2001:db8:a:b::9",
    "2001:db8:c::9",
    "2001:db8:d::9",
    "3fff::9",
    ROUTER,
    "2001:db8:a::1",
    "2001:db8:77::1",
    "fe80::1",
    "ff02::1",
    "ff0e::1",
    "::",
    "::1",
    "::192.0.2.1",
    "::ffff:192.0.2.1",
    "2002:c000:201::1",
];
/// Senders: all peers, strangers, martians.
const SENDERS: &[&str] = &[
    "192.0.2.1:0",
    "192.0.2.2:5555",
    "192.0.2.3:3333",
    "192.0.2.7:0",
    "192.0.2.99:1",
    "192.0.2.2:1",
    "127.0.0.1:5",
    "224.0.0.1:5",
    "255.255.255.255:5",
    "0.1.2.3:4",
    "10.0.0.1:3653",
    "192.0.2.3:3334",
];

fn ip(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

fn prefix(text: &str) -> Ipv6Prefix {
    text.parse().unwrap()
}

/// Which of [`TUNNELS`] or of the reserved prefixes an address belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Tunnel(usize),
    Uplink(usize),
    Local,
    Pool,
}

/// The longest match, by trying all.
fn owner(addr: Ipv6Addr) -> Owner {
    let tunnels = TUNNELS.iter().enumerate().map(|(n, (_, _, within, _))| {
        let within = prefix(within);
        (within, if within.prefix_len() == 0 { Owner::Uplink(n) } else { Owner::Tunnel(n) })
    });
    let local = LOCAL.iter().map(|addr| (Ipv6Prefix::host(ip(addr)), Owner::Local));
    let all = tunnels.chain(local).chain([(prefix(POOL), Owner::Pool)]);
    let found = all.filter(|(within, _)| within.contains(addr)).max_by_key(|(within, _)| within.prefix_len());
    found.map_or(Owner::Pool, |(_, owner)| owner)
}

fn lab() -> InMemory {
    let mut lab = in_memory(100, 42).unwrap();
    let policy = Policy { error_source: Some(ip(ROUTER)), probe_ident: Some(0x6677), ..Policy::default() };
    let mut batch = vec![
        Update::Listen(InMemory::any(PORT)),
        Update::Policy(policy),
        Update::Reserve(prefix(POOL), Holder::Unassigned),
    ];
    batch.extend(LOCAL.iter().map(|addr| Update::Reserve(Ipv6Prefix::host(ip(addr)), Holder::Local)));
    for (n, (encap, remote, within, mtu)) in TUNNELS.iter().enumerate() {
        let remote: Option<SocketAddrV4> = remote.map(|at| at.parse().unwrap());
        let outer = match (encap, remote) {
            (Encap::Proto41, Some(at)) => Outer::Proto41 { local: Some(OURS), remote: *at.ip() },
            (_, at) => Outer::Udp {
                local: UdpLocal { addr: Some(OURS), port: PORT },
                remote: at.map_or(UdpRemote::Learned(None), UdpRemote::Fixed),
            },
        };
        let id = TunnelId(n as u32);
        let (prefixes, manners) = (vec![prefix(within)], Manners::PLAIN);
        batch.push(Update::Upsert(Tunnel { id, outer, prefixes, mtu: *mtu, manners }));
    }
    lab.apply(&batch).unwrap();
    lab
}

thread_local! {
    /// Made once: what is left of one packet in it are counters and used-up rate limits.
    static LAB: RefCell<InMemory> = RefCell::new(lab());
}

/// One packet, described by the octets, through the worker.
pub(crate) fn forward(octets: &[u8]) {
    let Some((&[how, from, size, more], rest)) = octets.split_first_chunk::<4>() else { return };
    let packet = packet(how, rest);
    let offload = offload(how, size, more);
    LAB.with_borrow_mut(|lab| {
        let io = &mut lab.worker.io;
        let arrival = if how & 1 == 0 {
            io.tun_in.push_back((packet.clone(), offload));
            Arrival::Tun
        } else {
            let sender = sender(from);
            io.wire_in.push_back((sender, packet.clone(), offload));
            Arrival::Wire(sender)
        };
        while lab.worker.turn() {}
        check(lab, &packet, arrival, offload);
        while lab.punts.take().is_some() {}
    });
}

/// Sixteen addresses by their numbers and an honest length, unless the octets want it otherwise.
fn packet(how: u8, rest: &[u8]) -> Vec<u8> {
    let Some((&[ends, class, hops, next], payload)) = rest.split_first_chunk::<4>() else {
        return rest.to_vec();
    };
    if how & 2 == 2 {
        return rest.to_vec();
    }
    let mut out = vec![0x60 | class >> 4, class << 4, 0, 0, 0, 0, next, hops];
    out[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
    out.extend_from_slice(&ip(ADDRESSES[usize::from(ends >> 4)]).octets());
    out.extend_from_slice(&ip(ADDRESSES[usize::from(ends & 15)]).octets());
    out.extend_from_slice(payload);
    out
}

fn offload(how: u8, size: u8, more: u8) -> Offload {
    let size = u16::from(size) << 3 | u16::from(more >> 5);
    let merged = match how >> 2 & 3 {
        1 => Some((Merged::Tcp, size)),
        2 if size > 0 => Some((Merged::Udp, size)),
        _ => None,
    };
    let partial = (how & 0x10 != 0).then_some((40, u16::from(more & 0x1f)));
    Offload { merged, partial }
}

fn sender(from: u8) -> Sender {
    let remote: SocketAddrV4 = SENDERS[usize::from(from & 15) % SENDERS.len()].parse().unwrap();
    if from & 0x10 == 0 {
        return Sender::proto41(*remote.ip(), OURS, from >> 5);
    }
    Sender { encap: Encap::Udp, remote, local: SocketAddrV4::new(OURS, PORT), tos: from >> 5 }
}

fn check(lab: &mut InMemory, packet: &[u8], arrival: Arrival, offload: Offload) {
    let io = &mut lab.worker.io;
    for out in io.wire_out.drain(..) {
        let to = out.path.tunnel.0 as usize;
        if is_ours(&out.packet) && !came_from_router(packet) {
            check_error(&out.packet, &decapsulated(packet, arrival), ip(ROUTER));
            assert!(is_peer(to, &arrival), "an error goes to the tunnel that the packet came from");
            continue;
        }
        let seen = View::parse(&out.packet).unwrap();
        assert_eq!(seen.len, out.packet.len());
        assert!(out.packet.len() <= usize::from(TUNNELS[to].3), "it fits");
        assert!(matches!(owner(seen.destination), Owner::Tunnel(n) | Owner::Uplink(n) if n == to));
        assert!(!is_odd(seen.source) && !is_odd(seen.destination));
        let before = View::parse(packet).unwrap();
        let hop = u8::from(matches!(arrival, Arrival::Wire(_)));
        assert_eq!(before.hop_limit - hop, seen.hop_limit);
        let said = owner(seen.source);
        match arrival {
            Arrival::Tun => assert!(!matches!(said, Owner::Tunnel(_)), "only a tunnel speaks for its prefix"),
            Arrival::Wire(_) => {
                assert!(
                    matches!(said, Owner::Tunnel(n) | Owner::Uplink(n) if n != to && is_peer(n, &arrival))
                );
            }
        }
    }
    for (out, how) in io.tun_out.drain(..) {
        if arrival == Arrival::Tun {
            check_error(&out, packet, ip(ROUTER));
            continue;
        }
        let seen = View::parse(&out).unwrap();
        assert_eq!(seen.len, out.len());
        assert!(how.merged.is_none() || offload.merged.is_some());
        assert!(matches!(owner(seen.source), Owner::Tunnel(n) | Owner::Uplink(n) if is_peer(n, &arrival)));
        assert!(
            matches!(owner(seen.destination), Owner::Local | Owner::Uplink(_)),
            "it is not another tunnel's"
        );
        assert!(!is_odd(seen.source) && !is_odd(seen.destination));
    }
    assert!(io.datagrams.is_empty());
}

/// The packet with the congestion mark that it got on its way here (RFC 6040 section 4.2): what an error quotes.
fn decapsulated(packet: &[u8], arrival: Arrival) -> Vec<u8> {
    let mut out = packet.to_vec();
    if let (Arrival::Wire(sender), Ok(seen)) = (arrival, View::parse(packet)) {
        set_traffic_class(&mut out, inner_class(Manners::PLAIN, seen.traffic_class, sender.tos).unwrap());
    }
    out
}

/// Whether the arrival is from that tunnel's peer, in its encapsulation.
fn is_peer(tunnel: usize, arrival: &Arrival) -> bool {
    let (encap, remote, ..) = TUNNELS[tunnel];
    let Arrival::Wire(sender) = arrival else { return false };
    encap == sender.encap && remote.map(|at| at.parse().unwrap()) == Some(sender.remote)
}

/// An ICMPv6 error from the router.
fn is_ours(packet: &[u8]) -> bool {
    let seen = View::parse(packet).unwrap();
    seen.source == ip(ROUTER) && seen.next_header == ICMPV6 && packet.get(40).is_some_and(|kind| *kind < 128)
}

fn came_from_router(packet: &[u8]) -> bool {
    View::parse(packet).is_ok_and(|seen| seen.source == ip(ROUTER))
}

/// What must not be forwarded, whoever sends it.
fn is_odd(addr: Ipv6Addr) -> bool {
    addr.is_multicast()
        || addr.is_unicast_link_local()
        || addr.octets()[..12] == [0; 12]
        || addr.to_ipv4_mapped().is_some()
}
