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
mod tests;
