//! Our end of one tunnel: what it answers, and when it advertises itself (RFC 4861 sections 6.2 and 7.2,
//! RFC 4862 section 5.4, RFC 4443 section 4.2).
//!
//! Pure: packets and times in, packets and numbers out. Does not know how a packet reached it or gets back, who
//! owns the tunnel, or what DHCPv6 says about it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::Ipv6Addr;
use std::time::Duration;

use sixway_dataplane::update::{Ipv6Prefix, TunnelId};

use super::codec::{
    self, ADVERT_BASE_LEN, Echo, Header, Message, Outgoing, PREFIX_OPTION_LEN, PrefixInformation,
    RouterAdvert, Unreadable,
};

/// What router advertisements inside a tunnel say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RaPolicy {
    /// Whether there are any.
    pub on: bool,
    /// The M flag: addresses by DHCPv6.
    pub managed: bool,
    /// The O flag: other configuration by DHCPv6.
    pub other: bool,
    /// Prefixes announced, at most [`MAX_PREFIXES`]; hosts make addresses from those of length 64 only.
    pub prefix: Vec<Ipv6Prefix>,
}

/// Our end of one tunnel.
#[derive(Clone, Copy, Debug)]
pub struct Link<'a> {
    /// Our link-local address on it.
    pub link_local: Ipv6Addr,
    /// The router's own addresses, the same on every tunnel.
    pub router_addrs: &'a [Ipv6Addr],
    /// The largest inner packet in octets.
    pub mtu: u16,
    /// What is advertised.
    pub ra: &'a RaPolicy,
}

/// Why a packet gets no answer. Use it as an index below [`Silence::ALL`]'s length to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[repr(u8)]
pub enum Silence {
    /// Cut short, contradicts itself, or breaks a rule of RFC 4861 sections 6.1 and 7.1.
    #[error("the packet is malformed")]
    Malformed,
    /// A Hop-by-Hop option demands that nodes which do not know it discard the packet.
    #[error("an unknown Hop-by-Hop option demands to discard the packet")]
    Option,
    /// Not ICMPv6, or behind a header that is not read here.
    #[error("the payload is not ICMPv6")]
    NotIcmp,
    /// The ICMPv6 checksum is wrong.
    #[error("the ICMPv6 checksum is wrong")]
    BadChecksum,
    /// Neighbour discovery whose hop limit is not 255: it may have come from beyond the link.
    #[error("neighbour discovery with a hop limit below 255")]
    HopLimit,
    /// The source is an address of ours: a loop or a forgery.
    #[error("the source is one of our own addresses")]
    OwnSource,
    /// The source is no address that this message may be answered to.
    #[error("the source is no unicast address that may be answered")]
    BadSource,
    /// Destination or target is not ours.
    #[error("it is meant for somebody else")]
    NotForUs,
    /// The peer makes sure that an address is free, and it is none of ours.
    #[error("duplicate address detection for an address that is not ours")]
    DuplicateAddressDetection,
    /// A router solicitation where advertisements are off.
    #[error("router advertisements are off in this tunnel")]
    RaOff,
    /// A router or neighbour advertisement; nothing here depends on it.
    #[error("an advertisement asks for nothing")]
    Advertisement,
    /// A redirect; a point-to-point link has nowhere to redirect to.
    #[error("redirects are ignored")]
    Redirect,
    /// Multicast listener discovery.
    #[error("multicast listener reports are ignored")]
    MldReport,
    /// An echo reply; none that was asked for here.
    #[error("an echo reply asks for nothing")]
    EchoReply,
    /// Any other ICMPv6 message, errors among them.
    #[error("this ICMPv6 message is never answered")]
    OtherIcmp,
}

impl Silence {
    /// Every reason, in the order of its number.
    pub const ALL: [Self; 15] = [
        Self::Malformed,
        Self::Option,
        Self::NotIcmp,
        Self::BadChecksum,
        Self::HopLimit,
        Self::OwnSource,
        Self::BadSource,
        Self::NotForUs,
        Self::DuplicateAddressDetection,
        Self::RaOff,
        Self::Advertisement,
        Self::Redirect,
        Self::MldReport,
        Self::EchoReply,
        Self::OtherIcmp,
    ];
}

impl From<Unreadable> for Silence {
    fn from(why: Unreadable) -> Self {
        match why {
            Unreadable::Malformed => Self::Malformed,
            Unreadable::Option => Self::Option,
            Unreadable::NotIcmp => Self::NotIcmp,
            Unreadable::BadChecksum => Self::BadChecksum,
        }
    }
}

/// The packet to send back into the tunnel for one that came out of it.
///
/// # Errors
/// [`Silence`] says why there is none. What this function or [`advertisement`] made is never answered, so two
/// routers at the ends of one tunnel fall silent after one exchange.
pub fn answer(link: &Link<'_>, packet: &[u8]) -> Result<Vec<u8>, Silence> {
    let (header, message) = codec::parse(packet)?;
    if link.owns(header.source) {
        return Err(Silence::OwnSource);
    }
    if message.is_discovery() && header.hop_limit != ON_LINK_HOPS {
        return Err(Silence::HopLimit);
    }
    match message {
        Message::EchoRequest(echo) => echo_reply(link, &header, echo),
        Message::NeighborSolicit { target, names_sender } if header.source.is_unspecified() => {
            defend(link, &header, target, names_sender)
        }
        Message::NeighborSolicit { target, .. } => neighbor_advert(link, &header, target),
        Message::RouterSolicit { names_sender } => router_advert(link, &header, names_sender),
        Message::RouterAdvert | Message::NeighborAdvert => Err(Silence::Advertisement),
        Message::Redirect => Err(Silence::Redirect),
        Message::MulticastListener => Err(Silence::MldReport),
        Message::EchoReply(_) => Err(Silence::EchoReply),
        Message::Other(_) => Err(Silence::OtherIcmp),
    }
}

/// The unsolicited router advertisement, to ff02::1; `None` where advertisements are off.
pub fn advertisement(link: &Link<'_>) -> Option<Vec<u8>> {
    link.ra.on.then(|| link.advert_to(ALL_NODES, ROUTER_LIFETIME_S))
}

/// The last router advertisement, when a tunnel goes or advertising stops: the same with lifetime 0
/// (RFC 4861 section 6.2.5); `None` where advertisements were off.
pub fn withdrawal(link: &Link<'_>) -> Option<Vec<u8>> {
    link.ra.on.then(|| link.advert_to(ALL_NODES, 0))
}

impl Link<'_> {
    fn owns(&self, addr: Ipv6Addr) -> bool {
        addr == self.link_local || self.router_addrs.contains(&addr)
    }

    fn advert_to(&self, destination: Ipv6Addr, lifetime_s: u16) -> Vec<u8> {
        let advert = RouterAdvert {
            hop_limit: HOPS,
            managed: self.ra.managed,
            other: self.ra.other,
            lifetime_s,
            mtu: self.mtu.into(),
            prefixes: self.ra.prefix.iter().take(MAX_PREFIXES).copied().map(information).collect(),
        };
        let header = Header { source: self.link_local, destination, hop_limit: ON_LINK_HOPS };
        codec::emit(&header, &Outgoing::RouterAdvert(advert))
    }
}

/// The prefix lies behind the peer, not on this link, so L is off; stateless autoconfiguration needs 64 bits.
fn information(prefix: Ipv6Prefix) -> PrefixInformation {
    PrefixInformation {
        prefix: prefix.addr(),
        len: prefix.prefix_len(),
        on_link: false,
        autonomous: prefix.prefix_len() == 64,
        valid_s: PREFIX_VALID_S,
        preferred_s: PREFIX_PREFERRED_S,
    }
}

fn echo_reply(link: &Link<'_>, header: &Header, echo: Echo<'_>) -> Result<Vec<u8>, Silence> {
    if ![link.link_local, ALL_NODES, ALL_ROUTERS].contains(&header.destination) {
        return Err(Silence::NotForUs);
    }
    if !answerable(header.source) {
        return Err(Silence::BadSource);
    }
    let back = Header { source: link.link_local, destination: header.source, hop_limit: HOPS };
    Ok(codec::emit(&back, &Outgoing::EchoReply(echo)))
}

fn neighbor_advert(link: &Link<'_>, header: &Header, target: Ipv6Addr) -> Result<Vec<u8>, Silence> {
    if target.is_multicast() {
        return Err(Silence::Malformed);
    }
    let asked = header.destination == target || header.destination == solicited_node(target);
    if !link.owns(target) || !asked {
        return Err(Silence::NotForUs);
    }
    if !answerable(header.source) {
        return Err(Silence::BadSource);
    }
    let back = Header { source: target, destination: header.source, hop_limit: ON_LINK_HOPS };
    Ok(codec::emit(&back, &Outgoing::NeighborAdvert { target, solicited: true }))
}

/// Duplicate address detection has no source to answer to, so everybody is told that the address is ours
/// (RFC 4862 section 5.4.3, RFC 4861 section 7.2.4).
fn defend(
    link: &Link<'_>,
    header: &Header,
    target: Ipv6Addr,
    names_sender: bool,
) -> Result<Vec<u8>, Silence> {
    if names_sender || target.is_multicast() || header.destination != solicited_node(target) {
        return Err(Silence::Malformed);
    }
    if !link.owns(target) {
        return Err(Silence::DuplicateAddressDetection);
    }
    let back = Header { source: target, destination: ALL_NODES, hop_limit: ON_LINK_HOPS };
    Ok(codec::emit(&back, &Outgoing::NeighborAdvert { target, solicited: false }))
}

fn router_advert(link: &Link<'_>, header: &Header, names_sender: bool) -> Result<Vec<u8>, Silence> {
    if header.destination != ALL_ROUTERS && header.destination != link.link_local {
        return Err(Silence::NotForUs);
    }
    let nameless = header.source.is_unspecified();
    if nameless && names_sender {
        return Err(Silence::Malformed);
    }
    if !nameless && !header.source.is_unicast_link_local() {
        return Err(Silence::BadSource);
    }
    if !link.ra.on {
        return Err(Silence::RaOff);
    }
    Ok(link.advert_to(if nameless { ALL_NODES } else { header.source }, ROUTER_LIFETIME_S))
}

/// Whether one node, and not this one's own inside, can have this address.
fn answerable(source: Ipv6Addr) -> bool {
    !source.is_multicast()
        && !source.is_unspecified()
        && !source.is_loopback()
        && source.to_ipv4_mapped().is_none()
}

/// The multicast group of everybody whose address ends like this one (RFC 4291 section 2.7.1).
fn solicited_node(addr: Ipv6Addr) -> Ipv6Addr {
    Ipv6Addr::from(SOLICITED_NODE | (u128::from(addr) & 0xff_ffff))
}

/// When each of up to a million tunnels gets its unsolicited router advertisement (RFC 4861 section 6.2.4).
///
/// A ring of [`SLOTS`] slots is walked once in 400 s, between MinRtrAdvInterval (198 s) and MaxRtrAdvInterval
/// (600 s). Tunnels are spread over the ring, so a million make some 250 advertisements each [`TICK`] and none
/// come in step; that spread stands in for the RFC's random interval, which serves the same end on one link.
#[derive(Debug)]
pub struct AdvertSchedule {
    slots: Vec<Vec<TunnelId>>,
    places: HashMap<TunnelId, Place>,
    /// The slot that comes up at `due_at`.
    cursor: usize,
    due_at: Duration,
    /// The slot that the next new tunnel goes to.
    next_home: usize,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    slot: usize,
    index: usize,
}

impl Default for AdvertSchedule {
    fn default() -> Self {
        Self::new()
    }
}

impl AdvertSchedule {
    /// An empty schedule.
    pub fn new() -> Self {
        let slots = vec![Vec::new(); SLOTS];
        Self { slots, places: HashMap::new(), cursor: 0, due_at: Duration::ZERO, next_home: 0 }
    }

    /// Takes a tunnel in; `false` when it was there already. O(1).
    pub fn add(&mut self, tunnel: TunnelId) -> bool {
        let Entry::Vacant(vacant) = self.places.entry(tunnel) else {
            return false;
        };
        let slot = self.next_home;
        vacant.insert(Place { slot, index: self.slots[slot].len() });
        self.slots[slot].push(tunnel);
        self.next_home = (slot + STRIDE) % SLOTS;
        true
    }

    /// Takes a tunnel out; `false` when it was not there. O(1).
    pub fn remove(&mut self, tunnel: TunnelId) -> bool {
        let Some(place) = self.places.remove(&tunnel) else {
            return false;
        };
        let slot = &mut self.slots[place.slot];
        slot.swap_remove(place.index);
        if let Some(moved) = slot.get(place.index)
            && let Some(at) = self.places.get_mut(moved)
        {
            at.index = place.index;
        }
        true
    }

    /// How many tunnels are in it.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether no tunnel is in it.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// When to call [`due`](Self::due) next: when the next slot with a tunnel in it comes up. `None` while the
    /// schedule is empty.
    pub fn poll_timeout(&self) -> Option<Duration> {
        (!self.is_empty()).then(|| self.due_at + TICK * self.idle_slots())
    }

    /// The tunnels whose turn came since the last call. `now` is any clock that does not go back.
    ///
    /// A call that comes more than a second late gets one second's worth, and the ring goes on from there later
    /// than planned: a machine that slept does not send everything at once, and intervals get longer by that but
    /// never shorter by more than a second.
    pub fn due(&mut self, now: Duration) -> impl Iterator<Item = TunnelId> + '_ {
        self.skip_idle(now);
        let first = self.cursor;
        let passed = self.advance(now);
        let slots = &self.slots;
        (first..first + passed).flat_map(move |slot| slots[slot % SLOTS].iter().copied())
    }

    /// Slots from the cursor to the next one that holds a tunnel; all of them when none does.
    fn idle_slots(&self) -> u32 {
        let (before, from) = self.slots.split_at(self.cursor);
        let idle = from.iter().chain(before).take_while(|slot| slot.is_empty());
        u32::try_from(idle.count()).unwrap_or(u32::MAX)
    }

    /// Passes slots without tunnels: being late for them is no delay to make up for.
    fn skip_idle(&mut self, now: Duration) {
        let passed = self.idle_slots().min(self.slots_until(now));
        self.cursor = (self.cursor + passed as usize) % SLOTS;
        self.due_at += TICK * passed;
    }

    /// Moves the cursor to the first slot after `now`, or as far as one call may, and says over how many slots.
    fn advance(&mut self, now: Duration) -> usize {
        let reached = self.slots_until(now);
        let passed = reached.min(MAX_CATCH_UP);
        self.due_at = if passed == reached { self.due_at + TICK * passed } else { now + TICK };
        self.cursor = (self.cursor + passed as usize) % SLOTS;
        passed as usize
    }

    /// How many slots, from the cursor's on, have come up by `now`.
    fn slots_until(&self, now: Duration) -> u32 {
        now.checked_sub(self.due_at).map_or(0, |late| {
            u32::try_from(late.as_nanos() / TICK.as_nanos()).map_or(u32::MAX, |n| n.saturating_add(1))
        })
    }
}

/// As many prefixes as fit a router advertisement of 1280 octets, which every tunnel carries.
pub const MAX_PREFIXES: usize = (1280 - ADVERT_BASE_LEN) / PREFIX_OPTION_LEN;
/// How long one slot of an [`AdvertSchedule`] is.
pub const TICK: Duration = Duration::from_millis(100);
/// Slots of an [`AdvertSchedule`]: 400 s of [`TICK`]s.
pub const SLOTS: usize = 4000;

/// Slots handed out in one call at most: one second's worth.
const MAX_CATCH_UP: u32 = 10;
/// From one new tunnel's slot to the next one's: near the golden ratio of the ring and without a common divisor,
/// so that few tunnels are spread as evenly as many.
const STRIDE: usize = 2473;
/// Seconds that we are a default router for: three of the largest intervals (RFC 4861 section 6.2.1).
const ROUTER_LIFETIME_S: u16 = 1800;
/// Seconds that addresses from an announced prefix are valid.
const PREFIX_VALID_S: u32 = 86_400;
/// Seconds that they are preferred.
const PREFIX_PREFERRED_S: u32 = 14_400;
/// The hop limit of what may leave the link.
const HOPS: u8 = 64;
/// The hop limit that proves the sender to be on the link.
const ON_LINK_HOPS: u8 = 255;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
/// ff02::1:ff00:0/104.
const SOLICITED_NODE: u128 = 0xff02_0000_0000_0000_0000_0001_ff00_0000;

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    const OURS: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    const PEER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
    const ROUTER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, 1);
    const STRANGER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x100, 1, 0, 0, 0xaa, 0xbbcc);
    const NOBODY: Ipv6Addr = Ipv6Addr::UNSPECIFIED;

    fn policy() -> RaPolicy {
        let prefix = ["2001:db8:1::/64", "2001:db8:2::/56"].map(|p| p.parse().unwrap()).to_vec();
        RaPolicy { on: true, managed: false, other: true, prefix }
    }

    fn link(ra: &RaPolicy) -> Link<'_> {
        Link { link_local: OURS, router_addrs: &[ROUTER], mtu: 1280, ra }
    }

    fn asked(packet: &[u8]) -> Result<Vec<u8>, Silence> {
        answer(&link(&policy()), packet)
    }

    /// An ICMPv6 packet built by somebody else's code.
    fn built(from: Ipv6Addr, to: Ipv6Addr, hops: u8, kind: u8, word: [u8; 4], rest: &[u8]) -> Vec<u8> {
        let builder = PacketBuilder::ipv6(from.octets(), to.octets(), hops).icmpv6_raw(kind, 0, word);
        let mut packet = Vec::new();
        builder.write(&mut packet, rest).unwrap();
        packet
    }

    fn solicit(from: Ipv6Addr, to: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
        built(from, to, 255, 135, [0; 4], &target.octets())
    }

    fn advert(from: Ipv6Addr, to: Ipv6Addr, flags: u8, target: Ipv6Addr) -> Vec<u8> {
        built(from, to, 255, 136, [flags, 0, 0, 0], &target.octets())
    }

    fn ping(from: Ipv6Addr, to: Ipv6Addr, data: &[u8]) -> Vec<u8> {
        built(from, to, 64, 128, [0x12, 0x34, 0, 9], data)
    }

    fn group(addr: &str) -> Ipv6Addr {
        addr.parse().unwrap()
    }

    /// RFC: D10 (RFC 4861 section 7.2.4)
    #[test]
    fn a_solicitation_for_an_address_of_ours_is_answered_from_it() {
        for (from, to, target) in [
            (PEER, group("ff02::1:ff00:1"), OURS),
            (PEER, OURS, OURS),
            (PEER, group("ff02::1:ff00:1"), ROUTER),
            (STRANGER, ROUTER, ROUTER),
        ] {
            let expected = advert(target, from, 0b1110_0000, target);
            assert_eq!(asked(&solicit(from, to, target)), Ok(expected), "{from} asks {to} for {target}");
        }
    }

    /// RFC: D10 (RFC 4213 section 3.8)
    #[test]
    fn a_link_layer_option_is_ignored_and_none_is_sent() {
        let mut rest = PEER.octets().to_vec();
        rest[15] = 1;
        rest.extend([1, 1, 0xa, 0xb, 0xc, 0xd, 0xe, 0xf]);
        let packet = built(PEER, OURS, 255, 135, [0; 4], &rest);
        assert_eq!(asked(&packet), Ok(advert(OURS, PEER, 0b1110_0000, OURS)));
    }

    #[test]
    fn solicitations_for_others_or_to_others_get_none() {
        for (from, to, target, why) in [
            (PEER, group("ff02::1:ff00:2"), PEER, Silence::NotForUs),
            (PEER, STRANGER, STRANGER, Silence::NotForUs),
            (PEER, ALL_NODES, OURS, Silence::NotForUs),
            (PEER, group("ff02::1:ff00:1"), group("ff02::1"), Silence::Malformed),
            (group("ff02::7"), OURS, OURS, Silence::BadSource),
            (Ipv6Addr::LOCALHOST, OURS, OURS, Silence::BadSource),
            (OURS, OURS, OURS, Silence::OwnSource),
            (ROUTER, OURS, OURS, Silence::OwnSource),
        ] {
            assert_eq!(asked(&solicit(from, to, target)), Err(why), "{from} asks {to} for {target}");
        }
    }

    #[test]
    fn duplicate_address_detection_is_answered_to_everybody_for_ours_only() {
        let group_of_1 = group("ff02::1:ff00:1");
        for target in [OURS, ROUTER] {
            let expected = advert(target, ALL_NODES, 0b1010_0000, target);
            assert_eq!(asked(&solicit(NOBODY, group_of_1, target)), Ok(expected));
        }
        let theirs = solicit(NOBODY, group("ff02::1:ff00:2"), PEER);
        assert_eq!(asked(&theirs), Err(Silence::DuplicateAddressDetection));
        assert_eq!(asked(&solicit(NOBODY, OURS, OURS)), Err(Silence::Malformed));
        let mut named = OURS.octets().to_vec();
        named.extend([1, 1, 1, 2, 3, 4, 5, 6]);
        assert_eq!(asked(&built(NOBODY, group_of_1, 255, 135, [0; 4], &named)), Err(Silence::Malformed));
    }

    /// What [`policy`] makes of a router advertisement behind its first eight octets, spelled out.
    const ADVERT_REST: [u8; 80] = [
        0, 0, 0, 0, 0, 0, 0, 0, // reachable time, retransmission timer: unspecified
        5, 1, 0, 0, 0, 0, 5, 0, // MTU 1280
        3, 4, 64, 0x40, 0, 1, 0x51, 0x80, 0, 0, 0x38, 0x40, 0, 0, 0, 0, // /64, A, 86400 s, 14400 s
        0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // 2001:db8:1::
        3, 4, 56, 0, 0, 1, 0x51, 0x80, 0, 0, 0x38, 0x40, 0, 0, 0, 0, // /56: neither L nor A
        0x20, 1, 0xd, 0xb8, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // 2001:db8:2::
    ];

    fn expected_advert(to: Ipv6Addr, lifetime: [u8; 2]) -> Vec<u8> {
        built(OURS, to, 255, 134, [64, 0x40, lifetime[0], lifetime[1]], &ADVERT_REST)
    }

    #[test]
    fn a_router_solicitation_is_answered_to_its_source_or_to_everybody() {
        for (from, to, back) in
            [(PEER, ALL_ROUTERS, PEER), (PEER, OURS, PEER), (NOBODY, ALL_ROUTERS, ALL_NODES)]
        {
            let packet = built(from, to, 255, 133, [0; 4], &[]);
            assert_eq!(asked(&packet), Ok(expected_advert(back, [0x07, 0x08])), "{from} to {to}");
        }
    }

    #[test]
    fn unsolicited_advertisement_and_withdrawal_differ_in_the_lifetime() {
        let on = policy();
        assert_eq!(advertisement(&link(&on)), Some(expected_advert(ALL_NODES, [0x07, 0x08])));
        assert_eq!(withdrawal(&link(&on)), Some(expected_advert(ALL_NODES, [0, 0])));
        let off = RaPolicy { on: false, ..on };
        assert_eq!(advertisement(&link(&off)), None);
        assert_eq!(withdrawal(&link(&off)), None);
    }

    #[test]
    fn managed_and_other_are_the_two_top_flags_and_the_tunnel_names_its_mtu() {
        let ra = RaPolicy { on: true, managed: true, other: false, prefix: Vec::new() };
        let rest = [0, 0, 0, 0, 0, 0, 0, 0, 5, 1, 0, 0, 0, 0, 0x05, 0xd4];
        let expected = built(OURS, ALL_NODES, 255, 134, [64, 0x80, 0x07, 0x08], &rest);
        assert_eq!(advertisement(&Link { mtu: 1492, ..link(&ra) }), Some(expected));
    }

    #[test]
    fn more_prefixes_than_fit_are_left_out() {
        let prefix = (0..100u128).map(|n| Ipv6Prefix::new((n << 64).into(), 64).unwrap()).collect();
        let ra = RaPolicy { prefix, ..policy() };
        let packet = advertisement(&link(&ra)).unwrap();
        assert_eq!(packet.len(), 64 + 38 * 32);
        assert!(packet.len() <= 1280 && codec::parse(&packet).is_ok());
    }

    #[test]
    fn router_solicitations_that_get_none() {
        let off = RaPolicy::default();
        let fine = built(PEER, ALL_ROUTERS, 255, 133, [0; 4], &[]);
        assert_eq!(answer(&link(&off), &fine), Err(Silence::RaOff));
        let named = built(NOBODY, ALL_ROUTERS, 255, 133, [0; 4], &[1, 1, 1, 2, 3, 4, 5, 6]);
        assert_eq!(asked(&named), Err(Silence::Malformed));
        assert_eq!(asked(&built(STRANGER, ALL_ROUTERS, 255, 133, [0; 4], &[])), Err(Silence::BadSource));
        assert_eq!(asked(&built(PEER, ROUTER, 255, 133, [0; 4], &[])), Err(Silence::NotForUs));
    }

    #[test]
    fn echo_is_answered_from_the_link_local_address() {
        for (from, to) in [(PEER, OURS), (PEER, ALL_NODES), (PEER, ALL_ROUTERS), (STRANGER, OURS)] {
            let expected = built(OURS, from, 64, 129, [0x12, 0x34, 0, 9], b"0123456789abc");
            assert_eq!(asked(&ping(from, to, b"0123456789abc")), Ok(expected), "{from} to {to}");
        }
    }

    #[test]
    fn echo_that_gets_none() {
        for (from, to, why) in [
            (NOBODY, ALL_NODES, Silence::BadSource),
            (group("ff02::1"), OURS, Silence::BadSource),
            (group("::1"), OURS, Silence::BadSource),
            (group("::ffff:10.0.0.1"), OURS, Silence::BadSource),
            (PEER, ROUTER, Silence::NotForUs),
            (PEER, group("ff02::1:2"), Silence::NotForUs),
            (OURS, ALL_NODES, Silence::OwnSource),
            (ROUTER, OURS, Silence::OwnSource),
        ] {
            assert_eq!(asked(&ping(from, to, b"x")), Err(why), "{from} to {to}");
        }
    }

    #[test]
    fn discovery_from_beyond_the_link_is_dropped_and_echo_is_not() {
        for (kind, rest) in [(133, 0), (134, 8), (135, 16), (136, 16), (137, 32)] {
            let packet = built(PEER, OURS, 254, kind, [0; 4], &vec![0; rest]);
            assert_eq!(asked(&packet), Err(Silence::HopLimit), "type {kind}");
        }
        assert!(asked(&built(PEER, OURS, 1, 128, [0; 4], &[])).is_ok());
    }

    #[test]
    fn what_asks_for_nothing_has_its_own_reason() {
        for (kind, rest, why) in [
            (134, 8, Silence::Advertisement),
            (136, 16, Silence::Advertisement),
            (137, 32, Silence::Redirect),
            (129, 5, Silence::EchoReply),
            (130, 16, Silence::MldReport),
            (131, 16, Silence::MldReport),
            (132, 16, Silence::MldReport),
            (143, 20, Silence::MldReport),
            (1, 48, Silence::OtherIcmp),
            (2, 0, Silence::OtherIcmp),
            (200, 0, Silence::OtherIcmp),
        ] {
            assert_eq!(asked(&built(PEER, OURS, 255, kind, [0; 4], &vec![0; rest])), Err(why), "type {kind}");
        }
    }

    /// The packet with a Hop-by-Hop header of these six option octets before its payload.
    fn behind_hop_by_hop(packet: &[u8], options: [u8; 6]) -> Vec<u8> {
        let mut out = packet[..40].to_vec();
        out[4..6].copy_from_slice(&u16::try_from(packet.len() - 40 + 8).unwrap().to_be_bytes());
        out[6] = 0;
        out.extend([58, 0]);
        out.extend(options);
        out.extend(&packet[40..]);
        out
    }

    #[test]
    fn a_listener_report_behind_hop_by_hop_is_recognised() {
        let report = built(PEER, group("ff02::16"), 1, 143, [0, 0, 0, 1], &[0; 20]);
        let alert = behind_hop_by_hop(&report, [5, 2, 0, 0, 1, 0]);
        assert_eq!(asked(&alert), Err(Silence::MldReport));
        let padded = behind_hop_by_hop(&ping(PEER, OURS, b"hi"), [1, 4, 0, 0, 0, 0]);
        assert_eq!(asked(&padded), asked(&ping(PEER, OURS, b"hi")));
        let skippable = behind_hop_by_hop(&ping(PEER, OURS, b"hi"), [0x3e, 4, 0, 0, 0, 0]);
        assert!(asked(&skippable).is_ok());
        for fatal in [0x7e, 0xbe, 0xfe] {
            let packet = behind_hop_by_hop(&ping(PEER, OURS, b"hi"), [fatal, 4, 0, 0, 0, 0]);
            assert_eq!(asked(&packet), Err(Silence::Option));
        }
        let overlong = behind_hop_by_hop(&ping(PEER, OURS, b"hi"), [1, 9, 0, 0, 0, 0]);
        assert_eq!(asked(&overlong), Err(Silence::Malformed));
    }

    #[test]
    fn form_is_checked_before_meaning() {
        let good = solicit(PEER, OURS, OURS);
        for cut in 0..good.len() {
            assert_eq!(asked(&good[..cut]), Err(Silence::Malformed), "cut to {cut}");
        }
        let mut summed_wrong = good.clone();
        summed_wrong[42] ^= 1;
        assert_eq!(asked(&summed_wrong), Err(Silence::BadChecksum));
        let mut version_4 = good.clone();
        version_4[0] = 0x40;
        assert_eq!(asked(&version_4), Err(Silence::Malformed));
        let mut udp = good.clone();
        udp[6] = 17;
        assert_eq!(asked(&udp), Err(Silence::NotIcmp));
        let short_target = built(PEER, OURS, 255, 135, [0; 4], &[0; 15]);
        assert_eq!(asked(&short_target), Err(Silence::Malformed));
        let endless_option = [&OURS.octets()[..], &[1, 0, 0, 0, 0, 0, 0, 0]].concat();
        assert_eq!(asked(&built(PEER, OURS, 255, 135, [0; 4], &endless_option)), Err(Silence::Malformed));
        let mut trailing = good;
        trailing.push(0xff);
        assert!(asked(&trailing).is_ok(), "link padding behind the packet is no part of it");
    }

    #[test]
    fn a_message_code_other_than_zero_is_malformed() {
        let mut packet = Vec::new();
        let builder = PacketBuilder::ipv6(PEER.octets(), OURS.octets(), 255);
        builder.icmpv6_raw(135, 1, [0; 4]).write(&mut packet, &OURS.octets()).unwrap();
        assert_eq!(asked(&packet), Err(Silence::Malformed));
    }

    #[test]
    fn reasons_are_numbered_as_listed() {
        for (n, why) in Silence::ALL.into_iter().enumerate() {
            assert_eq!(why as usize, n);
        }
    }

    /// Packets that are answered, with room for what each kind may vary in.
    fn answerable_packet() -> impl Strategy<Value = Vec<u8>> {
        let from = prop_oneof![Just(PEER), Just(STRANGER), Just(NOBODY)];
        let to = prop_oneof![
            Just(OURS),
            Just(ROUTER),
            Just(ALL_NODES),
            Just(ALL_ROUTERS),
            Just(group("ff02::1:ff00:1"))
        ];
        let target = prop_oneof![Just(OURS), Just(ROUTER), Just(PEER)];
        let data = proptest::collection::vec(any::<u8>(), 0..64);
        (from, to, target, data, 0..3u8).prop_map(|(from, to, target, data, kind)| match kind {
            0 => solicit(from, to, target),
            1 => built(from, to, 255, 133, [0; 4], &[]),
            _ => ping(from, to, &data),
        })
    }

    /// Where the ICMPv6 message begins and what its checksum should be.
    fn right_sum(packet: &[u8]) -> Option<(usize, u16)> {
        let sliced = etherparse::SlicedPacket::from_ip(packet).ok()?;
        let (Some(etherparse::NetSlice::Ipv6(ip)), Some(etherparse::TransportSlice::Icmpv6(icmp))) =
            (sliced.net, sliced.transport)
        else {
            return None;
        };
        let header = ip.header();
        let sum =
            icmp.icmp_type().calc_checksum(header.source(), header.destination(), icmp.payload()).ok()?;
        // Not from the header's payload length: a mutation may have made that 0.
        Some((40 + ip.extensions().slice().len(), sum))
    }

    fn resum(packet: &mut [u8]) {
        if let Some((at, sum)) = right_sum(packet) {
            packet[at + 2..at + 4].copy_from_slice(&sum.to_be_bytes());
        }
    }

    /// Somebody else's opinion of the answer: whole, summed right, from us, to no address of ours.
    fn judge(packet: &[u8]) {
        let sliced = etherparse::SlicedPacket::from_ip(packet).unwrap();
        let (Some(etherparse::NetSlice::Ipv6(ip)), Some(etherparse::TransportSlice::Icmpv6(icmp))) =
            (sliced.net, sliced.transport)
        else {
            panic!("not ICMPv6 in IPv6: {packet:02x?}");
        };
        let (from, to) = (ip.header().source_addr(), ip.header().destination_addr());
        assert_eq!(usize::from(ip.header().payload_length()) + 40, packet.len());
        assert!(icmp.is_checksum_valid(ip.header().source(), ip.header().destination()));
        assert!([OURS, ROUTER].contains(&from) && ![OURS, ROUTER].contains(&to) && to != NOBODY);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..160)) {
            if let Ok(packet) = asked(&bytes) {
                judge(&packet);
            }
        }

        #[test]
        fn mutated_packets_never_panic_and_answers_hold(
            mut packet in answerable_packet(),
            changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..6),
            resummed: bool,
        ) {
            for (at, octet) in changes {
                let at = at.index(packet.len());
                packet[at] = octet;
            }
            if resummed {
                resum(&mut packet);
            }
            if let Ok(back) = asked(&packet) {
                judge(&back);
            }
        }

        /// RFC: L2 (no ping-pong between two routers)
        #[test]
        fn an_answer_is_not_answered(packet in answerable_packet()) {
            let ra = policy();
            if let Ok(back) = asked(&packet) {
                prop_assert!(asked(&back).is_err());
                for link_local in [PEER, group("fe80::3")] {
                    let other = Link { link_local, router_addrs: &[STRANGER], mtu: 1280, ra: &ra };
                    prop_assert!(answer(&other, &back).is_err());
                }
            }
        }
    }

    fn seconds(s: f64) -> Duration {
        Duration::from_secs_f64(s)
    }

    #[test]
    fn every_tunnel_comes_up_every_400_seconds_without_bursts() {
        let mut schedule = AdvertSchedule::new();
        for n in 0..100_000 {
            assert!(schedule.add(TunnelId(n)));
        }
        let mut last = vec![None; 100_000];
        for tick in 0..9000 {
            let now = TICK * tick;
            let due: Vec<_> = schedule.due(now).collect();
            assert_eq!(due.len(), 25, "at {now:?}");
            for id in due {
                let before = last[id.0 as usize].replace(now);
                assert!(before.is_none_or(|before| now - before == seconds(400.0)));
            }
        }
        assert!(last.iter().all(|at| at.is_some_and(|at| at > seconds(498.0))));
    }

    #[test]
    fn a_shell_that_sleeps_until_the_next_turn_misses_none() {
        let mut schedule = AdvertSchedule::new();
        assert_eq!(schedule.poll_timeout(), None);
        let mut now = seconds(5000.03);
        for n in 0..3 {
            schedule.add(TunnelId(n));
        }
        let mut turns = vec![Vec::new(); 3];
        for _ in 0..30 {
            now = now.max(schedule.poll_timeout().unwrap());
            for id in schedule.due(now) {
                turns[id.0 as usize].push(now);
            }
        }
        for times in turns {
            assert!(times.len() >= 9);
            // The first turn may come while the ring still catches up with the clock.
            assert!(times.windows(2).skip(1).all(|w| w[1] - w[0] == seconds(400.0)), "{times:?}");
        }
    }

    #[test]
    fn a_machine_that_slept_sends_no_burst_and_no_early_turn() {
        let mut schedule = AdvertSchedule::new();
        (0..40_000).for_each(|n| assert!(schedule.add(TunnelId(n))));
        let mut last: HashMap<TunnelId, Duration> = HashMap::new();
        let mut now = Duration::ZERO;
        for step in 0..20_000 {
            now += if step % 5000 == 4999 { seconds(3600.0) } else { TICK };
            let due: Vec<_> = schedule.due(now).collect();
            assert!(due.len() <= 100, "{} at once", due.len());
            for id in due {
                let before = last.insert(id, now);
                assert!(before.is_none_or(|before| now - before >= seconds(399.0)));
            }
        }
        assert_eq!(last.len(), 40_000);
    }

    proptest! {
        #[test]
        fn adding_and_removing_agrees_with_a_set(ops in proptest::collection::vec((any::<bool>(), 0..50u32), 0..400)) {
            let mut schedule = AdvertSchedule::new();
            let mut twin = std::collections::BTreeSet::new();
            for (add, n) in ops {
                let id = TunnelId(n);
                let (ours, theirs) =
                    if add { (schedule.add(id), twin.insert(id)) } else { (schedule.remove(id), twin.remove(&id)) };
                prop_assert_eq!(ours, theirs);
            }
            prop_assert_eq!(schedule.len(), twin.len());
            let mut seen: Vec<_> = (0..4000).flat_map(|n| schedule.due(TICK * n).collect::<Vec<_>>()).collect();
            seen.sort();
            prop_assert_eq!(seen, twin.into_iter().collect::<Vec<_>>());
        }
    }
}
