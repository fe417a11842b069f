//! Which way each packet goes: pure, over one batch, no system call and no allocation.
//!
//! `by_peer` judges what peers sent: the outer sender *and* the inner source must belong to the same tunnel (RFC
//! 4213 sections 3.6 and 4; RFC 3704 section 2). `by_kernel` judges what the kernel routed to us. Between TUN and tunnel the
//! kernel's forwarding is the hop; from tunnel to tunnel we are, and take one off the hop limit (RFC 8200 section 3).

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::encap::{inner_class, outer_tos};
use crate::offload::segment::{Layout, complete};
use crate::packet::batch::{Arrival, Batch, Merged, Packet, Sender};
use crate::packet::icmp::IcmpError;
use crate::packet::mss;
use crate::packet::view::{HEADER, ICMPV6, TCP, UDP, Unreadable, View, address};
use crate::packet::view::{inside, is_tunnel_port, set_hop_limit, set_traffic_class};
use crate::table::slab::{Encap, Entry, Learn, OuterKey, Owner, Path};
use crate::table::{FETCH, View as Tables};
use crate::update::Holder;
use crate::verdict::{Check, Judged, PuntClass, Reason, Verdict, Witness};

/// The shortest datagram that may be for the control plane (RFC 5572 section 4.4: its signalling header is 8 octets).
const LEAST_DATAGRAM: usize = 8;
const ECHO_REPLY: u8 = 129;
const FRAGMENT: u8 = 44;

type Outcome = Result<Judged, Judged>;

fn drop(reason: Reason, tunnel: Option<Path>) -> Judged {
    Judged { verdict: Verdict::Drop(reason, None), tunnel }
}

fn refuse(reason: Reason, tunnel: Option<Path>, error: IcmpError) -> Judged {
    Judged { verdict: Verdict::Drop(reason, Some(error)), tunnel }
}

/// Judges one packet, whatever side it came from; `bytes` are its octets and may be changed in place (hop limit,
/// congestion mark), `packet.len` is cut to the honest length.
pub fn judge(tables: &Tables<'_>, packet: &mut Packet, bytes: &mut [u8]) -> Judged {
    judge_before(tables, packet, bytes, &mut ())
}

/// The same with somebody who sees each check as it is made.
pub fn judge_before<W: Witness>(
    tables: &Tables<'_>,
    packet: &mut Packet,
    bytes: &mut [u8],
    seen: &mut W,
) -> Judged {
    let mut way = Way { tables, seen };
    let (Ok(judged) | Err(judged)) = match packet.arrival {
        Arrival::Tun => way.by_kernel(packet, bytes),
        Arrival::Wire(sender) => way.by_peer(packet, bytes, &sender),
    };
    judged
}

/// Packets whose lookups are prepared together: two addresses each.
const CHUNK: usize = FETCH / 2;
/// Fewer than this find their tunnels faster by themselves.
const WORTH_FETCHING: usize = 4;

/// Judges a batch, in order, as [`judge`] does one by one. What the tables hold of the packets' addresses is loaded first
/// for many packets at once: among a million tunnels each packet would otherwise wait for memory by itself.
pub fn judge_all(tables: &Tables<'_>, batch: &mut Batch, judged: &mut Vec<Judged>) {
    judged.clear();
    let arena = &mut batch.arena;
    for chunk in batch.packets.chunks_mut(CHUNK) {
        if chunk.len() >= WORTH_FETCHING && tables.is_large() {
            fetch(tables, chunk, arena);
        }
        judged.extend(chunk.iter_mut().map(|packet| judge(tables, packet, &mut arena[packet.range()])));
    }
}

/// Source and destination of each packet, where it has any: what is no IPv6 packet is judged without them.
fn fetch(tables: &Tables<'_>, packets: &[Packet], arena: &[u8]) {
    let mut addrs = [0; FETCH];
    for (ends, packet) in addrs.chunks_exact_mut(2).zip(packets) {
        if let Some(header) = arena[packet.range()].first_chunk::<HEADER>() {
            (ends[0], ends[1]) = (address(header, 8).into(), address(header, 24).into());
        }
    }
    tables.fetch(&addrs[..2 * packets.len()]);
}

fn parse(packet: &mut Packet, bytes: &[u8]) -> Result<View, Reason> {
    let view = View::parse(bytes).map_err(|e| match e {
        Unreadable::TooShort => Reason::TooShort,
        Unreadable::NotIpv6 => Reason::NotIpv6,
        Unreadable::Truncated => Reason::Truncated,
    })?;
    packet.len = view.len;
    Ok(view)
}

/// One packet's way through the checks. Each is named to the witness before it is made, so what is told of the order is
/// the order; what is looked at only where something is wrong already, to say whose it is, is no check.
struct Way<'a, W> {
    tables: &'a Tables<'a>,
    seen: &'a mut W,
}

// ---- from the kernel ----

impl<W: Witness> Way<'_, W> {
    fn by_kernel(&mut self, packet: &mut Packet, bytes: &mut [u8]) -> Outcome {
        self.seen.meets(Check::Header);
        let view = parse(packet, bytes).map_err(|r| drop(r, None))?;
        let bytes = &mut bytes[..view.len];
        self.seen.meets(Check::Addresses);
        if !are_ordinary(&view) {
            martian(&view).map_or(Ok(()), |reason| Err(drop(reason, None)))?;
            self.seen.meets(Check::Scope);
            if is_for_link(&view) {
                return Err(drop(Reason::Scope, None));
            }
        }
        self.seen.meets(Check::Source);
        let source = self.tables.longest_match(view.source);
        if let Some(Entry { owner: Owner::Tunnel(path), len: 1.., .. }) = source {
            return Err(drop(Reason::SourceInTunnel, Some(path)));
        }
        self.seen.meets(Check::Destination);
        match self.tables.longest_match(view.destination).map(|e| e.owner) {
            None => Err(refuse(Reason::NoRoute, None, IcmpError::NoRoute)),
            Some(Owner::Reserved(Holder::Unassigned)) => {
                Err(refuse(Reason::Unassigned, None, IcmpError::NoRoute))
            }
            // The kernel keeps what is its own; what comes back here would go round for ever.
            Some(Owner::Reserved(Holder::Local)) => Err(drop(Reason::NoRoute, None)),
            Some(Owner::Tunnel(path)) => {
                let entered = self.enter(path, packet, bytes, &view)?;
                self.finish_checksum(packet, bytes, &path)?;
                clamp(&path, packet, bytes);
                Ok(entered)
            }
        }
    }

    /// The checks that stand before every tunnel's entrance.
    fn enter(&mut self, path: Path, packet: &Packet, bytes: &[u8], view: &View) -> Outcome {
        self.seen.meets(Check::Endpoint);
        if !path.has_remote() {
            return Err(refuse(Reason::NoEndpoint, Some(path), IcmpError::AddressUnreachable));
        }
        let largest = self.largest(packet, bytes, path.mtu).ok_or(drop(Reason::BadOffload, Some(path)))?;
        self.seen.meets(Check::Size);
        if largest > usize::from(path.mtu) {
            return Err(refuse(Reason::TooBig, Some(path), IcmpError::PacketTooBig(path.mtu)));
        }
        self.seen.meets(Check::Inside);
        if is_rare(view, bytes) {
            self.guard(bytes, false).map_or(Ok(()), |reason| Err(drop(reason, Some(path))))?;
        }
        let tos = outer_tos(path.manners, view.traffic_class);
        Ok(Judged { verdict: Verdict::ToWire(path, tos), tunnel: Some(path) })
    }

    /// What may not enter a tunnel or, with `is_out`, come out of one: tunnels too many, source routes. What cannot be
    /// followed may be any of it.
    fn guard(&self, bytes: &[u8], is_out: bool) -> Option<Reason> {
        let policy = self.tables.policy();
        let Some(inside) = inside(bytes) else { return Some(Reason::HeaderChain) };
        let is_routed = inside.source_route_0 || inside.source_route && !policy.takes_source_routes;
        if is_out && is_routed {
            return Some(Reason::SourceRouted);
        }
        (inside.tunnels > policy.nesting).then_some(Reason::Nested)
    }

    /// Octets of the largest packet that will be on the wire.
    fn largest(&mut self, packet: &Packet, bytes: &[u8], mtu: u16) -> Option<usize> {
        if packet.offload.merged.is_none() {
            return Some(bytes.len());
        }
        self.seen.meets(Check::Train);
        Layout::of(bytes, &packet.offload, mtu).ok().map(|l| l.largest())
    }

    /// A checksum that its sender left to hardware is completed before the packet leaves the machine again; a
    /// super-packet's when it is cut.
    fn finish_checksum(&mut self, packet: &mut Packet, bytes: &mut [u8], path: &Path) -> Result<(), Judged> {
        if packet.offload.merged.is_some() {
            return Ok(());
        }
        let Some((start, offset)) = packet.offload.partial.take() else { return Ok(()) };
        self.seen.meets(Check::Train);
        complete(bytes, start, offset).map_err(|_| drop(Reason::BadOffload, Some(*path)))
    }
}

// ---- from a peer ----

impl<W: Witness> Way<'_, W> {
    fn by_peer(&mut self, packet: &mut Packet, bytes: &mut [u8], sender: &Sender) -> Outcome {
        self.seen.meets(Check::Sender);
        if is_outer_martian(*sender.remote.ip()) || sender.remote.ip() == sender.local.ip() {
            return Err(drop(Reason::OuterMartian, None));
        }
        if sender.encap == Encap::Udp {
            self.seen.meets(Check::Datagram);
            if bytes.first().is_some_and(|b| b >> 4 != 6) {
                return datagram(self.tables, bytes, sender);
            }
        }
        self.seen.meets(Check::Header);
        let mut view = parse(packet, bytes).map_err(|r| drop(r, by_sender(self.tables, sender)))?;
        let bytes = &mut bytes[..view.len];
        self.seen.meets(Check::Addresses);
        if !are_ordinary(&view) {
            let martian = martian(&view).map(|reason| drop(reason, by_sender(self.tables, sender)));
            martian.map_or(Ok(()), Err)?;
            if is_for_link(&view) {
                return self.on_link(&view, sender);
            }
        }
        let path = self.owner_of_source(&view, sender, bytes)?;
        self.seen.meets(Check::Inside);
        if is_rare(&view, bytes) {
            self.guard(bytes, true).map_or(Ok(()), |reason| Err(drop(reason, Some(path))))?;
        }
        self.seen.meets(Check::Marks);
        let marked = inner_class(path.manners, view.traffic_class, sender.tos);
        let marked = marked.ok_or(drop(Reason::Ecn, Some(path)))?;
        if marked != view.traffic_class {
            set_traffic_class(bytes, marked);
            view.traffic_class = marked;
        }
        self.settle_size(packet, bytes, &path)?;
        clamp(&path, packet, bytes);
        self.out_of_tunnel(packet, bytes, &view, path)
    }

    /// Link-local and multicast traffic stays in its tunnel (RFC 4291 section 2.5.6, RFC 4007 section 9): the control
    /// plane answers it.
    fn on_link(&mut self, view: &View, sender: &Sender) -> Outcome {
        self.seen.meets(Check::Peer);
        let path = by_sender(self.tables, sender).ok_or(drop(Reason::UnknownOuter, None))?;
        self.seen.meets(Check::Scope);
        let for_link = match view.destination {
            d if d.is_multicast() => d.octets()[1] & 0x0f == 2,
            d => is_scoped(d) || is_local(self.tables, d),
        };
        if !for_link {
            return Err(drop(Reason::Scope, Some(path)));
        }
        self.seen.meets(Check::Source);
        if is_local(self.tables, view.source) {
            return Err(drop(Reason::SourceIsLocal, Some(path)));
        }
        let from_link = is_scoped(view.source) || view.source.is_unspecified();
        if !from_link && !is_in_tunnel(self.tables, view.source, &path) {
            return Err(drop(Reason::SourceNotInPrefix, Some(path)));
        }
        Ok(Judged { verdict: Verdict::Punt(PuntClass::Link), tunnel: Some(path) })
    }

    /// The tunnel that the inner source belongs to, if the sender is its peer.
    fn owner_of_source(&mut self, view: &View, sender: &Sender, bytes: &[u8]) -> Result<Path, Judged> {
        self.seen.meets(Check::Source);
        let (path, len) = match self.tables.longest_match(view.source) {
            Some(Entry { owner: Owner::Tunnel(path), len, .. }) => (path, len),
            other => return Err(stranger(self.tables, sender, other)),
        };
        self.seen.meets(Check::Peer);
        if !path.is_sender(outer_key(sender), *sender.local.ip()) {
            return Err(match by_sender(self.tables, sender) {
                Some(really) => outside(self.tables, really),
                None => candidate(self.tables, path, view, sender, bytes),
            });
        }
        // Of an uplink nobody knows who is behind it; a 6to4 site's own tunnel leads to the address in its prefix.
        if six_to_four(view.source).is_some_and(|inside| inside != *sender.remote.ip()) && len >= 16 {
            return Err(drop(Reason::SixToFour, Some(path)));
        }
        Ok(path)
    }

    /// A raw socket does not tell how large the merged segments were: no larger than this tunnel's MTU.
    fn settle_size(&mut self, packet: &mut Packet, bytes: &[u8], path: &Path) -> Result<(), Judged> {
        let Some((Merged::Tcp, 0)) = packet.offload.merged else { return Ok(()) };
        self.seen.meets(Check::Train);
        if bytes.len() <= usize::from(path.mtu) {
            packet.offload.merged = None;
            return Ok(());
        }
        let layout = Layout::of(bytes, &packet.offload, path.mtu);
        let layout = layout.map_err(|_| drop(Reason::BadOffload, Some(*path)))?;
        packet.offload.merged = Some((Merged::Tcp, layout.size as u16));
        Ok(())
    }

    /// Accepted from its tunnel: where to?
    fn out_of_tunnel(&mut self, packet: &mut Packet, bytes: &mut [u8], view: &View, from: Path) -> Outcome {
        self.seen.meets(Check::Destination);
        let ok = |verdict| Ok(Judged { verdict, tunnel: Some(from) });
        match self.tables.longest_match(view.destination) {
            None => ok(Verdict::ToTun),
            Some(Entry { owner: Owner::Reserved(Holder::Unassigned), .. }) => {
                Err(refuse(Reason::Unassigned, Some(from), IcmpError::NoRoute))
            }
            Some(Entry { owner: Owner::Reserved(Holder::Local), .. }) => {
                ok(to_router(self.tables, view, bytes))
            }
            // An uplink's `::/0` says where the world is, not that this address is out there: our kernel knows.
            Some(Entry { owner: Owner::Tunnel(to), len: 0, .. }) if to.tunnel == from.tunnel => {
                ok(Verdict::ToTun)
            }
            Some(Entry { owner: Owner::Tunnel(to), .. }) => self.hairpin(packet, bytes, view, from, to),
        }
    }

    fn hairpin(
        &mut self,
        packet: &mut Packet,
        bytes: &mut [u8],
        view: &View,
        from: Path,
        to: Path,
    ) -> Outcome {
        self.seen.meets(Check::Hairpin);
        if to.tunnel == from.tunnel {
            return Err(refuse(Reason::SameTunnel, Some(from), IcmpError::NoRoute));
        }
        if !self.tables.policy().hairpin {
            return Err(refuse(Reason::HairpinOff, Some(from), IcmpError::Prohibited));
        }
        if view.hop_limit <= 1 {
            return Err(refuse(Reason::HopLimit, Some(from), IcmpError::HopLimitExceeded));
        }
        let entered = self.enter(to, packet, bytes, view);
        let entered = entered.map_err(|j| Judged { tunnel: Some(from), ..j })?;
        set_hop_limit(bytes, view.hop_limit - 1);
        self.finish_checksum(packet, bytes, &from)?;
        clamp(&to, packet, bytes);
        Ok(Judged { tunnel: Some(from), ..entered })
    }
}

// ---- what a packet carries ----

/// What follows the fixed header is neither TCP, ICMPv6 nor ordinary UDP: then it is worth a closer look.
fn is_rare(view: &View, bytes: &[u8]) -> bool {
    match view.next_header {
        TCP | ICMPV6 => false,
        UDP => is_tunnel_port(&bytes[HEADER..]),
        _ => true,
    }
}

/// A segment size that the tunnel cannot carry is lowered where it is offered, both ways.
fn clamp(path: &Path, packet: &Packet, bytes: &mut [u8]) {
    if path.manners.is_clamped() && packet.offload.merged.is_none() {
        mss::clamp(bytes, path.mtu, packet.offload.partial.is_none());
    }
}

fn datagram(tables: &Tables<'_>, bytes: &[u8], sender: &Sender) -> Outcome {
    let tunnel = by_sender(tables, sender);
    if bytes.len() < LEAST_DATAGRAM {
        return Err(drop(Reason::TooShort, tunnel));
    }
    Ok(Judged { verdict: Verdict::Punt(PuntClass::Datagram), tunnel })
}

fn is_in_tunnel(tables: &Tables<'_>, source: Ipv6Addr, path: &Path) -> bool {
    let owner = tables.longest_match(source).and_then(|e| e.owner.path());
    owner.is_some_and(|p| p.tunnel == path.tunnel)
}

fn is_local(tables: &Tables<'_>, addr: Ipv6Addr) -> bool {
    matches!(tables.longest_match(addr), Some(Entry { owner: Owner::Reserved(Holder::Local), .. }))
}

/// A peer sent from where it may not; told only where that is wanted, since a reflector must not be (RFC 4213 section 3.6).
fn outside(tables: &Tables<'_>, path: Path) -> Judged {
    let error = tables.policy().tells_source.then_some(IcmpError::SourcePolicy);
    Judged { verdict: Verdict::Drop(Reason::SourceNotInPrefix, error), tunnel: Some(path) }
}

/// The inner source is in no tunnel: say whether the sender is known at all.
fn stranger(tables: &Tables<'_>, sender: &Sender, source: Option<Entry>) -> Judged {
    match (by_sender(tables, sender), source.map(|e| e.owner)) {
        (path, Some(Owner::Reserved(Holder::Local))) => drop(Reason::SourceIsLocal, path),
        (Some(path), _) => outside(tables, path),
        (None, _) => drop(Reason::UnknownOuter, None),
    }
}

/// Right inner source, unknown sender: perhaps the peer has moved. The control plane may look into it, the packet
/// itself goes nowhere.
fn candidate(tables: &Tables<'_>, path: Path, view: &View, sender: &Sender, bytes: &[u8]) -> Judged {
    let may_move = sender.encap == Encap::Udp
        && path.encap == Encap::Udp
        && path.local_port == sender.local.port()
        && match path.learn {
            Learn::Never => false,
            Learn::Port => path.remote == *sender.remote.ip(),
            Learn::Anywhere => true,
        };
    if !may_move {
        return drop(Reason::WrongOuter, Some(path));
    }
    let class = if is_probe_reply(tables, view, bytes) { PuntClass::EchoReply } else { PuntClass::Candidate };
    Judged { verdict: Verdict::Punt(class), tunnel: Some(path) }
}

fn is_probe_reply(tables: &Tables<'_>, view: &View, bytes: &[u8]) -> bool {
    let Some(ident) = tables.policy().probe_ident else { return false };
    // A peer whose own MTU is smaller answers a long probe in fragments, of which the first says whose it is.
    let is_first_fragment = view.next_header == FRAGMENT
        && bytes.get(HEADER) == Some(&ICMPV6)
        && bytes.get(HEADER + 2..HEADER + 4).is_some_and(|at| at[0] == 0 && at[1] & 0xf8 == 0);
    let at = if is_first_fragment { HEADER + 8 } else { HEADER };
    (is_first_fragment || view.next_header == ICMPV6)
        && bytes.get(at) == Some(&ECHO_REPLY)
        && bytes.get(at + 4..at + 6) == Some(&ident.to_be_bytes())
}

fn to_router(tables: &Tables<'_>, view: &View, bytes: &[u8]) -> Verdict {
    let is_discovery = matches!(view.icmpv6_type(bytes), Some(133..=137)) && view.hop_limit == 255;
    match () {
        () if is_discovery => Verdict::Punt(PuntClass::Link),
        () if is_probe_reply(tables, view, bytes) => Verdict::ToTunAndPunt(PuntClass::EchoReply),
        () => Verdict::ToTun,
    }
}

fn by_sender(tables: &Tables<'_>, sender: &Sender) -> Option<Path> {
    tables.by_outer(outer_key(sender), *sender.local.ip())
}

fn outer_key(sender: &Sender) -> OuterKey {
    OuterKey::new(sender.encap, *sender.remote.ip(), sender.remote.port(), sender.local.port())
}

// ---- addresses ----

/// Addresses as nearly all packets have them: global unicast (RFC 4291 section 2.4, 2000::/3) that is not 6to4 (RFC 3056). Of
/// the checks for strange ones none can find fault with them, so one comparison each spares all of those.
fn are_ordinary(view: &View) -> bool {
    let ordinary = |addr: Ipv6Addr| {
        let [a, b, ..] = addr.octets();
        a >> 5 == 1 && [a, b] != [0x20, 0x02]
    };
    ordinary(view.source) && ordinary(view.destination)
}

/// Whether an address of this packet keeps it on its link (RFC 4007 section 9).
fn is_for_link(view: &View) -> bool {
    view.destination.is_multicast() || is_scoped(view.source) || is_scoped(view.destination)
}

/// Link-local unicast, or the loopback address, which is narrower still.
fn is_scoped(addr: Ipv6Addr) -> bool {
    addr.is_unicast_link_local() || addr.is_loopback()
}

/// Addresses that no peer has (RFC 4213 section 3.6, RFC 6890).
fn is_outer_martian(addr: Ipv4Addr) -> bool {
    addr.octets()[0] == 0 || addr.is_loopback() || addr.is_multicast() || addr.is_broadcast()
}

/// Why this packet's addresses must not cross a tunnel, if so.
fn martian(view: &View) -> Option<Reason> {
    if is_inner_martian(view) {
        return Some(Reason::InnerMartian);
    }
    let strange = |addr| six_to_four(addr).is_some_and(is_no_site);
    (strange(view.source) || strange(view.destination)).then_some(Reason::SixToFour)
}

/// The IPv4 address inside a 6to4 address (RFC 3056 section 2).
fn six_to_four(addr: Ipv6Addr) -> Option<Ipv4Addr> {
    let [0x20, 0x02, a, b, c, d, ..] = addr.octets() else { return None };
    Some(Ipv4Addr::new(a, b, c, d))
}

/// IPv4 addresses that no 6to4 site has (RFC 3964 section 5.1).
fn is_no_site(addr: Ipv4Addr) -> bool {
    is_outer_martian(addr) || addr.is_private() || addr.is_link_local()
}

/// Sources and destinations that must not cross a tunnel (RFC 4213 section 3.6, RFC 4291 sections 2.5.2 to 2.5.5 and 2.7).
fn is_inner_martian(view: &View) -> bool {
    let compatible = |a: Ipv6Addr| a.octets()[..12] == [0; 12];
    let mapped = |a: Ipv6Addr| a.to_ipv4_mapped().is_some();
    let source = view.source;
    let is_probe_for_duplicates = source.is_unspecified() && view.destination.is_multicast();
    source.is_multicast()
        || (compatible(source) && !is_probe_for_duplicates)
        || mapped(source)
        || compatible(view.destination)
        || mapped(view.destination)
}
