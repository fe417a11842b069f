//! The world that all rows share, and what a row is: packets in, packets out, counters.
//!
//! Whatever a row does not expect must not happen: outputs and counters are compared whole.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::num::NonZeroU16;

use etherparse::{Icmpv6Slice, Ipv6HeaderSlice};
use sixway_dataplane::counters::{Event, TunnelTotals};
use sixway_dataplane::explain::Standing;
use sixway_dataplane::manners::Manners;
use sixway_dataplane::offload::coalesce::Coalescer;
use sixway_dataplane::offload::segment::{Layout, complete, cut};
use sixway_dataplane::packet::batch::{Arrival, Batch, Offload, Packet, Sender};
use sixway_dataplane::start::{InMemory, in_memory};
use sixway_dataplane::table::slab::Encap;
use sixway_dataplane::update::{
    Holder, Ipv6Prefix, Outer, Policy, Tunnel, TunnelId, UdpLocal, UdpRemote, Update,
};
use sixway_dataplane::verdict::{PuntClass, Reason, Verdict};
use sixway_dataplane::worker::Inject;

use crate::packets::ip;

/// Protocol 41, `2001:db8:a::/48`, MTU 1280.
pub(crate) const A: u32 = 1;
/// UDP, fixed endpoint, `2001:db8:a:b::/64`: nested in A's. MTU 1400.
pub(crate) const B: u32 = 2;
/// UDP, address fixed and port learned before, `2001:db8:c::/48`.
pub(crate) const C: u32 = 3;
/// UDP, endpoint to be learned, `2001:db8:d::/48`.
pub(crate) const D: u32 = 4;
/// Protocol 41, `2001:db8:e::/48`, MTU 1480.
pub(crate) const E: u32 = 5;
/// UDP, address fixed and port not yet known, `2001:db8:f::/48`.
pub(crate) const F: u32 = 6;
/// Protocol 41, `::/0`; not in the world unless a row adds [`uplink`].
pub(crate) const UPLINK: u32 = 7;

/// The router's own address and the source of its errors.
pub(crate) const ROUTER: &str = "2001:db8::1";
/// Another of its addresses, inside A's prefix.
pub(crate) const ROUTER_IN_A: &str = "2001:db8:a::1";
/// Hosts behind the tunnels.
pub(crate) const HOST_A: &str = "2001:db8:a::9";
pub(crate) const HOST_B: &str = "2001:db8:a:b::9";
pub(crate) const HOST_C: &str = "2001:db8:c::9";
pub(crate) const HOST_D: &str = "2001:db8:d::9";
pub(crate) const HOST_E: &str = "2001:db8:e::9";
pub(crate) const HOST_F: &str = "2001:db8:f::9";
/// A host out there.
pub(crate) const WORLD: &str = "3fff::9";
/// Of the pool, handed out to nobody.
pub(crate) const NOBODY: &str = "2001:db8:77::1";
/// The identifier of endpoint probes.
pub(crate) const IDENT: u16 = 0x6677;

const OURS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const PORT: u16 = 3653;

/// Type, code and the word behind them of an ICMPv6 error.
pub(crate) type Kind = (u8, u8, u32);
pub(crate) const NO_ROUTE: Kind = (1, 0, 0);
pub(crate) const PROHIBITED: Kind = (1, 1, 0);
pub(crate) const UNREACHABLE: Kind = (1, 3, 0);
pub(crate) const TIME_EXCEEDED: Kind = (3, 0, 0);

pub(crate) fn prefix(text: &str) -> Ipv6Prefix {
    text.parse().unwrap()
}

pub(crate) fn at(text: &str) -> SocketAddrV4 {
    text.parse().unwrap()
}

/// By protocol 41 from `remote` to our address.
pub(crate) fn sit(remote: &str) -> Sender {
    Sender::proto41(remote.parse().unwrap(), OURS, 0)
}

/// By UDP from `remote` to our address and port.
pub(crate) fn over_udp(remote: &str) -> Sender {
    Sender { encap: Encap::Udp, remote: at(remote), local: SocketAddrV4::new(OURS, PORT), tos: 0 }
}

/// The peer of a tunnel; D and F have none.
pub(crate) fn peer(id: u32) -> Sender {
    match id {
        A => sit("192.0.2.1"),
        B => over_udp("192.0.2.2:5555"),
        C => over_udp("192.0.2.3:3333"),
        E => sit("192.0.2.5"),
        UPLINK => sit("192.0.2.7"),
        _ => panic!("tunnel {id} has no peer"),
    }
}

pub(crate) fn marked(sender: Sender, tos: u8) -> Sender {
    Sender { tos, ..sender }
}

pub(crate) fn tunnel(id: u32, outer: Outer, within: &str, mtu: u16) -> Update {
    Update::Upsert(Tunnel {
        id: TunnelId(id),
        outer,
        prefixes: vec![prefix(within)],
        mtu,
        manners: Manners::PLAIN,
    })
}

fn proto41(id: u32) -> Outer {
    Outer::Proto41 { local: Some(OURS), remote: *peer(id).remote.ip() }
}

pub(crate) fn udp_outer(remote: UdpRemote) -> Outer {
    Outer::Udp { local: UdpLocal { addr: Some(OURS), port: PORT }, remote }
}

pub(crate) fn uplink() -> Update {
    tunnel(UPLINK, proto41(UPLINK), "::/0", 1480)
}

pub(crate) fn policy() -> Policy {
    Policy { error_source: Some(ip(ROUTER)), probe_ident: Some(IDENT), ..Policy::default() }
}

fn world() -> Vec<Update> {
    let to_c = UdpRemote::AnyPort { addr: Ipv4Addr::new(192, 0, 2, 3), port: NonZeroU16::new(3333) };
    let to_f = UdpRemote::AnyPort { addr: Ipv4Addr::new(192, 0, 2, 6), port: None };
    vec![
        Update::Listen(InMemory::any(PORT)),
        Update::Policy(policy()),
        Update::Reserve(prefix("2001:db8::/32"), Holder::Unassigned),
        Update::Reserve(Ipv6Prefix::host(ip(ROUTER)), Holder::Local),
        Update::Reserve(Ipv6Prefix::host(ip(ROUTER_IN_A)), Holder::Local),
        tunnel(A, proto41(A), "2001:db8:a::/48", 1280),
        tunnel(B, udp_outer(UdpRemote::Fixed(peer(B).remote)), "2001:db8:a:b::/64", 1400),
        tunnel(C, udp_outer(to_c), "2001:db8:c::/48", 1280),
        tunnel(D, udp_outer(UdpRemote::Learned(None)), "2001:db8:d::/48", 1280),
        tunnel(E, proto41(E), "2001:db8:e::/48", 1480),
        tunnel(F, udp_outer(to_f), "2001:db8:f::/48", 1280),
    ]
}

/// A forwarder in that world.
pub(crate) fn lab() -> InMemory {
    let mut lab = in_memory(100, 42).unwrap();
    lab.apply(&world()).unwrap();
    lab
}

pub(crate) fn drain(lab: &mut InMemory) {
    while lab.worker.turn() {}
}

/// One thing that came out.
#[derive(Debug, PartialEq)]
pub(crate) enum Seen {
    /// To the kernel, as it was.
    Tun(Vec<u8>, Offload),
    /// To a tunnel's endpoint with a type of service.
    Wire(u32, SocketAddrV4, u8, Vec<u8>),
    /// An ICMPv6 error to the kernel (`None`) or into a tunnel, about this packet.
    Error(Option<u32>, Kind, Vec<u8>),
}

#[derive(Debug, Default, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) tun: Vec<Seen>,
    pub(crate) wire: Vec<Seen>,
    pub(crate) datagrams: Vec<(SocketAddrV4, SocketAddrV4, Vec<u8>)>,
    pub(crate) punts: Vec<(PuntClass, Option<u32>)>,
    pub(crate) drops: BTreeMap<Reason, u64>,
    pub(crate) tunnels: BTreeMap<u32, TunnelTotals>,
    pub(crate) inject_failed: u64,
}

/// What goes in and what must come of it.
pub(crate) struct Row {
    name: &'static str,
    setup: Vec<Update>,
    wire: Vec<(Sender, Vec<u8>, Offload)>,
    tun: Vec<(Vec<u8>, Offload)>,
    injects: Vec<Inject>,
    expected: Outcome,
}

pub(crate) fn row(name: &'static str) -> Row {
    Row { name, setup: vec![], wire: vec![], tun: vec![], injects: vec![], expected: Outcome::default() }
}

impl Row {
    /// Before anything comes: this changes.
    pub(crate) fn with(mut self, update: Update) -> Self {
        self.setup.push(update);
        self
    }

    /// A peer sends.
    pub(crate) fn wire(self, from: Sender, packet: &[u8]) -> Self {
        self.wire_as(from, packet, Offload::default())
    }

    pub(crate) fn wire_as(mut self, from: Sender, packet: &[u8], offload: Offload) -> Self {
        self.wire.push((from, packet.to_vec(), offload));
        self
    }

    /// The kernel sends.
    pub(crate) fn tun(self, packet: &[u8]) -> Self {
        self.tun_as(packet, Offload::default())
    }

    pub(crate) fn tun_as(mut self, packet: &[u8], offload: Offload) -> Self {
        self.tun.push((packet.to_vec(), offload));
        self
    }

    /// The control plane sends.
    pub(crate) fn inject(mut self, inject: Inject) -> Self {
        self.injects.push(inject);
        self
    }

    /// The kernel gets this packet out of a tunnel.
    pub(crate) fn kernel_gets(self, from: u32, packet: &[u8]) -> Self {
        self.kernel_gets_as(from, packet, Offload::default(), 1)
    }

    pub(crate) fn kernel_gets_as(mut self, from: u32, packet: &[u8], offload: Offload, packets: u64) -> Self {
        self.expected.tun.push(Seen::Tun(packet.to_vec(), offload));
        // Each packet of a train counts with headers of its own, whoever has merged them.
        let headers = if packet[6] == 6 { 60 } else { 48 };
        self.received(from, packets, packet.len() + (packets as usize - 1) * headers)
    }

    /// A tunnel's peer gets this packet.
    pub(crate) fn peer_gets(mut self, to: u32, tos: u8, packet: &[u8]) -> Self {
        let totals = self.expected.tunnels.entry(to).or_default();
        totals.tx_packets += 1;
        totals.tx_bytes += packet.len() as u64;
        self.expected.wire.push(Seen::Wire(to, peer(to).remote, tos, packet.to_vec()));
        self
    }

    /// An endpoint gets this packet, which the control plane sent.
    pub(crate) fn endpoint_gets(mut self, tunnel: u32, remote: SocketAddrV4, packet: &[u8]) -> Self {
        self.expected.wire.push(Seen::Wire(tunnel, remote, 0, packet.to_vec()));
        self
    }

    /// A bare datagram leaves.
    pub(crate) fn datagram(mut self, local: SocketAddrV4, remote: SocketAddrV4, bytes: &[u8]) -> Self {
        self.expected.datagrams.push((local, remote, bytes.to_vec()));
        self
    }

    /// A tunnel's counters see this much come out of it.
    pub(crate) fn received(mut self, from: u32, packets: u64, octets: usize) -> Self {
        let totals = self.expected.tunnels.entry(from).or_default();
        totals.rx_packets += packets;
        totals.rx_bytes += octets as u64;
        self
    }

    /// An error about `offending` goes to the kernel.
    pub(crate) fn tells_kernel(mut self, kind: Kind, offending: &[u8]) -> Self {
        self.expected.tun.push(Seen::Error(None, kind, quote(offending)));
        self
    }

    /// An error about `offending` goes into a tunnel.
    pub(crate) fn tells_peer(mut self, to: u32, kind: Kind, offending: &[u8]) -> Self {
        self.expected.wire.push(Seen::Error(Some(to), kind, quote(offending)));
        self
    }

    /// The control plane gets a packet.
    pub(crate) fn goes_up(mut self, class: PuntClass, tunnel: Option<u32>) -> Self {
        self.expected.punts.push((class, tunnel));
        self
    }

    /// A packet is dropped, on behalf of a tunnel or nobody.
    pub(crate) fn drops(self, reason: Reason, tunnel: Option<u32>) -> Self {
        self.drops_many(reason, tunnel, 1)
    }

    pub(crate) fn drops_many(mut self, reason: Reason, tunnel: Option<u32>, packets: u64) -> Self {
        *self.expected.drops.entry(reason).or_default() += packets;
        if let Some(id) = tunnel {
            let noted = &mut self.expected.tunnels.entry(id).or_default().drops;
            match noted.iter_mut().find(|(r, _)| *r == reason) {
                Some((_, n)) => *n += packets,
                None => noted.push((reason, packets)),
            }
            noted.sort_unstable();
        }
        self
    }

    pub(crate) fn inject_fails(mut self) -> Self {
        self.expected.inject_failed += 1;
        self
    }

    /// The reasons that this row shows.
    pub(crate) fn reasons(&self) -> impl Iterator<Item = Reason> + '_ {
        self.expected.drops.keys().copied()
    }

    /// The row's twin without super-packets. None where a super-packet fares otherwise than its parts: told of as a whole,
    /// of hidden size, or wrongly described.
    fn without_offloads(mut self) -> Option<Self> {
        let told = |seen: &Seen| matches!(seen, Seen::Error(..));
        let hidden = |offload: &Offload| offload.merged.is_some_and(|(_, size)| size == 0);
        let inputs = self.wire.iter().map(|(_, _, o)| o).chain(self.tun.iter().map(|(_, o)| o));
        let differs = self.expected.drops.contains_key(&Reason::BadOffload)
            || self.expected.tun.iter().chain(&self.expected.wire).any(told)
            || inputs.into_iter().any(hidden);
        if differs {
            return None;
        }
        let wire = self.wire.drain(..).flat_map(|(from, packet, offload)| {
            apart(&packet, &offload).into_iter().map(move |part| (from, part, Offload::default()))
        });
        self.wire = wire.collect();
        let tun = self.tun.drain(..).flat_map(|(packet, offload)| apart(&packet, &offload));
        self.tun = tun.map(|part| (part, Offload::default())).collect();
        Some(self)
    }

    fn play_apart(mut self) -> Result<(), String> {
        let name = self.name;
        let wanted = std::mem::take(&mut self.expected);
        let mut lab = lab();
        lab.apply(&self.setup).unwrap();
        lab.worker.io.wire_in.extend(self.wire);
        lab.worker.io.tun_in.extend(self.tun);
        drain(&mut lab);
        let mut got = outcome(&mut lab);
        let merged = together(&got.tun);
        if merged != wanted.tun {
            return Err(format!("row '{name}' merged again\n   got {merged:?}\nwanted {:?}", wanted.tun));
        }
        got.tun = merged;
        let right = got == wanted;
        right.then_some(()).ok_or_else(|| format!("row '{name}' apart\n   got {got:?}\nwanted {wanted:?}"))
    }

    /// Asks what would become of each packet before it is sent: a packet that stops somewhere is dropped or goes up.
    fn ask(&self, lab: &mut InMemory) {
        let wire = self.wire.iter().map(|(from, bytes, how)| (Arrival::Wire(*from), bytes, how));
        let all = wire.chain(self.tun.iter().map(|(bytes, how)| (Arrival::Tun, bytes, how)));
        for (arrival, bytes, _) in all.filter(|(.., how)| **how == Offload::default()) {
            let said = lab.explainer.explain(arrival, bytes);
            let stops = said.checks.iter().filter(|(_, how)| *how == Standing::Stopped).count();
            let stays = match said.judged.verdict {
                Verdict::Drop(reason, _) => {
                    assert!(self.expected.drops.contains_key(&reason), "row '{}': {said:?}", self.name);
                    1
                }
                Verdict::Punt(PuntClass::Datagram | PuntClass::Candidate | PuntClass::EchoReply) => 1,
                Verdict::Punt(_) | Verdict::ToTunAndPunt(_) | Verdict::ToTun | Verdict::ToWire(..) => 0,
            };
            assert_eq!(stops, stays, "row '{}': {said:?}", self.name);
        }
    }

    /// Plays the row; `Err` shows what came of it beside what should have.
    fn play(self) -> Result<(), String> {
        let mut lab = lab();
        lab.apply(&self.setup).unwrap();
        self.ask(&mut lab);
        assert_eq!(lab.counters.drops(), [], "asking counts nothing");
        lab.worker.io.wire_in.extend(self.wire);
        lab.worker.io.tun_in.extend(self.tun);
        for inject in self.injects {
            assert!(lab.commands.inject(inject));
        }
        drain(&mut lab);
        let (got, wanted) = (outcome(&mut lab), self.expected);
        let right = got == wanted;
        right.then_some(()).ok_or_else(|| format!("row '{}'\n   got {got:?}\nwanted {wanted:?}", self.name))
    }
}

/// The same rows with the kernel's offloads off: single packets in the place of super-packets, all sums complete. What
/// the kernel gets is compared both as it comes and as it comes with merging on our side.
pub(crate) fn run_without_offloads(rows: Vec<Row>) {
    let before = rows.len();
    let rows: Vec<_> = rows.into_iter().filter_map(Row::without_offloads).collect();
    assert!(rows.len() > 10, "{} of {before} rows have a twin", rows.len());
    let wrong: Vec<_> = rows.into_iter().filter_map(|row| row.play_apart().err()).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

pub(crate) fn run(rows: Vec<Row>) {
    assert!(!rows.is_empty());
    let wrong: Vec<_> = rows.into_iter().filter_map(|row| row.play().err()).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The packets that this one stands for.
fn apart(packet: &[u8], offload: &Offload) -> Vec<Vec<u8>> {
    if offload.merged.is_none() {
        let mut packet = packet.to_vec();
        if let Some((start, field)) = offload.partial {
            complete(&mut packet, start, field).unwrap();
        }
        return vec![packet];
    }
    let layout = Layout::of(packet, offload, 0).unwrap();
    let mut headers = vec![0; layout.segments() * layout.headers];
    cut(packet, &layout, &mut headers);
    let parts = headers.chunks(layout.headers).enumerate();
    parts.map(|(n, header)| [header, &packet[layout.payload(n)]].concat()).collect()
}

/// What the kernel gets when these packets are merged on their way to it.
fn together(seen: &[Seen]) -> Vec<Seen> {
    let mut batch = Batch::new(1, seen.len().max(1));
    batch.arena.clear();
    for one in seen {
        let Seen::Tun(bytes, offload) = one else { panic!("only packets are merged: {one:?}") };
        let start = batch.arena.len();
        batch.arena.extend_from_slice(bytes);
        batch.push(Packet { start, len: bytes.len(), arrival: Arrival::Tun, offload: *offload });
    }
    let mut coalescer = Coalescer::new(seen.len(), (true, true), 42);
    coalescer.begin(seen.len());
    (0..seen.len()).for_each(|n| coalescer.add(&batch, n));
    let merged = coalescer.trains().iter().map(|train| {
        let members: Vec<_> = coalescer.members(train).map(|n| batch.bytes(&batch.packets[n])).collect();
        if let [only] = members[..] {
            return Seen::Tun(only.to_vec(), batch.packets[train.first as usize].offload);
        }
        let mut whole = vec![0; train.headers];
        let offload = train.emit(members[0], &mut whole);
        members.iter().for_each(|member| whole.extend_from_slice(&member[train.headers..]));
        Seen::Tun(whole, offload)
    });
    merged.collect()
}

/// As much of a packet as fits an error of 1280 octets.
fn quote(offending: &[u8]) -> Vec<u8> {
    offending[..offending.len().min(1232)].to_vec()
}

fn outcome(lab: &mut InMemory) -> Outcome {
    let io = &mut lab.worker.io;
    let tun = io.tun_out.drain(..).map(|(packet, offload)| match as_error(None, &packet) {
        Some(error) => error,
        None => Seen::Tun(packet, offload),
    });
    let tun = tun.collect();
    let wire = io.wire_out.drain(..).map(|out| {
        let id = out.path.tunnel.0;
        let remote = SocketAddrV4::new(out.path.remote, out.path.remote_port);
        as_error(Some(id), &out.packet).unwrap_or(Seen::Wire(id, remote, out.tos, out.packet))
    });
    let wire = wire.collect();
    Outcome {
        tun,
        wire,
        datagrams: std::mem::take(&mut io.datagrams),
        punts: std::iter::from_fn(|| lab.punts.take().map(|p| (p.class(), p.tunnel().map(|t| t.0))))
            .collect(),
        drops: lab.counters.drops().into_iter().collect(),
        tunnels: (0..100).filter_map(|id| totals(lab, id)).collect(),
        inject_failed: lab.counters.happened(Event::InjectFailed),
    }
}

/// A tunnel's counters, if they say anything. A peer was heard exactly when something came out of its tunnel.
fn totals(lab: &InMemory, id: u32) -> Option<(u32, TunnelTotals)> {
    let mut totals = lab.counters.tunnel(TunnelId(id));
    assert_eq!(totals.last_seen.take().is_some(), totals.rx_packets > 0);
    (totals != TunnelTotals::default()).then_some((id, totals))
}

/// An ICMPv6 error of the router's, checked as far as it does not depend on the case.
fn as_error(to: Option<u32>, packet: &[u8]) -> Option<Seen> {
    let header = Ipv6HeaderSlice::from_slice(packet).unwrap();
    let icmp = Icmpv6Slice::from_slice(&packet[40..]).ok()?;
    if header.source_addr() != ip(ROUTER) || icmp.type_u8() > 4 || header.next_header().0 != 58 {
        return None;
    }
    assert!(icmp.is_checksum_valid(header.source(), header.destination()));
    assert_eq!(usize::from(header.payload_length()), packet.len() - 40);
    assert!(packet.len() <= 1280);
    let quote = &packet[48..];
    assert_eq!(header.destination(), quote[8..24], "it goes to whom it is about");
    assert!(quote.len() == 1232 || quote.len() == 40 + usize::from(u16::from_be_bytes([quote[4], quote[5]])));
    let kind = (icmp.type_u8(), icmp.code_u8(), u32::from_be_bytes(icmp.bytes5to8()));
    Some(Seen::Error(to, kind, quote.to_vec()))
}
