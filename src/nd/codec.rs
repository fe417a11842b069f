//! IPv6 packets with an ICMPv6 message <-> types (RFC 8200 section 3, RFC 4443 section 4, RFC 4861 section 4).
//!
//! Looks and judges nothing but form: lengths, the checksum, message code 0, options that add up. Who may send
//! what to whom, and hop limits, are `session`'s business. All reads are bounded by a length check that comes
//! first, so no input panics. Not read: headers other than one Hop-by-Hop before ICMPv6, fragments.

use std::net::Ipv6Addr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::time::Duration;
use smoltcp::wire::{
    Icmpv6Message, Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv6ExtHeader, Ipv6OptionFailureType,
    Ipv6OptionRepr, Ipv6OptionsIterator, Ipv6Packet, Ipv6Repr, NdiscNeighborFlags, NdiscOption,
    NdiscOptionRepr, NdiscPrefixInfoFlags, NdiscPrefixInformation, NdiscRepr, NdiscRouterFlags,
};

/// The part of an IPv6 header that neighbour discovery and echo look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Source address.
    pub source: Ipv6Addr,
    /// Destination address.
    pub destination: Ipv6Addr,
    /// Hop limit; 255 proves that no router was in between.
    pub hop_limit: u8,
}

/// The body of an echo request or reply (RFC 4443 sections 4.1 and 4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo<'a> {
    /// Identifier, the sender's choice.
    pub ident: u16,
    /// Sequence number.
    pub seq: u16,
    /// Payload, at most 65,527 octets.
    pub data: &'a [u8],
}

/// An ICMPv6 message that came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// Echo request.
    EchoRequest(Echo<'a>),
    /// Echo reply.
    EchoReply(Echo<'a>),
    /// Router solicitation; `names_sender` tells of a source link-layer option, which `::` may not have.
    RouterSolicit {
        /// Whether a source link-layer address option is in it.
        names_sender: bool,
    },
    /// Router advertisement; what it says is not read.
    RouterAdvert,
    /// Neighbour solicitation.
    NeighborSolicit {
        /// The address asked for.
        target: Ipv6Addr,
        /// Whether a source link-layer address option is in it.
        names_sender: bool,
    },
    /// Neighbour advertisement; what it says is not read.
    NeighborAdvert,
    /// Redirect; what it says is not read.
    Redirect,
    /// Multicast listener query, report or done, of either version (RFC 2710, RFC 3810).
    MulticastListener,
    /// Any other ICMPv6 type, errors among them.
    Other(u8),
}

impl Message<'_> {
    /// Whether the message is one of the five that RFC 4861 accepts with hop limit 255 only.
    pub fn is_discovery(&self) -> bool {
        match self {
            Self::RouterSolicit { .. }
            | Self::RouterAdvert
            | Self::NeighborSolicit { .. }
            | Self::NeighborAdvert
            | Self::Redirect => true,
            Self::EchoRequest(_) | Self::EchoReply(_) | Self::MulticastListener | Self::Other(_) => false,
        }
    }
}

/// Why bytes are no ICMPv6 message that we can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// Not IPv6, shorter than its headers say, or of impossible content.
    #[error("the packet is cut short or its fields contradict each other")]
    Malformed,
    /// A Hop-by-Hop option that is unknown here asks for the packet to be discarded (RFC 8200 section 4.2).
    #[error("a Hop-by-Hop option asks nodes that do not know it to discard the packet")]
    Option,
    /// The payload is not ICMPv6, or a header comes before it that is not read here.
    #[error("the payload is not ICMPv6")]
    NotIcmp,
    /// The ICMPv6 checksum does not match.
    #[error("the ICMPv6 checksum is wrong")]
    BadChecksum,
}

/// One Prefix Information option (RFC 4861 section 4.6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixInformation {
    /// The prefix; bits behind `len` are zero.
    pub prefix: Ipv6Addr,
    /// Its length in bits.
    pub len: u8,
    /// The L flag.
    pub on_link: bool,
    /// The A flag: hosts may make addresses from it.
    pub autonomous: bool,
    /// Valid lifetime in seconds.
    pub valid_s: u32,
    /// Preferred lifetime in seconds.
    pub preferred_s: u32,
}

/// A router advertisement of ours (RFC 4861 section 4.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouterAdvert {
    /// The hop limit that hosts shall start with.
    pub hop_limit: u8,
    /// The M flag: addresses by DHCPv6.
    pub managed: bool,
    /// The O flag: other configuration by DHCPv6.
    pub other: bool,
    /// For how many seconds we are a default router; 0 for not any more.
    pub lifetime_s: u16,
    /// The link's MTU in octets.
    pub mtu: u32,
    /// Prefix Information options in this order.
    pub prefixes: Vec<PrefixInformation>,
}

/// A message of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outgoing<'a> {
    /// Echo request.
    EchoRequest(Echo<'a>),
    /// Echo reply.
    EchoReply(Echo<'a>),
    /// Neighbour advertisement of a router, override flag set, without link-layer option.
    NeighborAdvert {
        /// The address that is ours.
        target: Ipv6Addr,
        /// Whether it answers a solicitation whose sender has an address.
        solicited: bool,
    },
    /// Router advertisement.
    RouterAdvert(RouterAdvert),
}

/// Octets of an IPv6 header and of a router advertisement with its MTU option.
pub const ADVERT_BASE_LEN: usize = IPV6_LEN + 16 + 8;
/// Octets of one Prefix Information option.
pub const PREFIX_OPTION_LEN: usize = 32;

/// Reads one whole IPv6 packet. Octets behind its payload length are ignored.
///
/// # Errors
/// [`Unreadable`] says which check failed; checks are made in the order form, header chain, checksum, body.
pub fn parse(packet: &[u8]) -> Result<(Header, Message<'_>), Unreadable> {
    let ip = Ipv6Packet::new_checked(packet).map_err(|_| Unreadable::Malformed)?;
    let repr = Ipv6Repr::parse(&ip).map_err(|_| Unreadable::Malformed)?;
    let icmp = icmp_of(repr.next_header, ip.payload())?;
    let header = Header { source: repr.src_addr, destination: repr.dst_addr, hop_limit: repr.hop_limit };
    let view = Icmpv6Packet::new_unchecked(icmp);
    if icmp.len() < 8 {
        return Err(Unreadable::Malformed);
    }
    if !view.verify_checksum(&header.source, &header.destination) {
        return Err(Unreadable::BadChecksum);
    }
    Ok((header, message_of(&view, &header)?))
}

/// One whole IPv6 packet with this message, checksum filled in. The message must fit an IPv6 payload.
pub fn emit(header: &Header, message: &Outgoing<'_>) -> Vec<u8> {
    let repr = repr_of(message);
    let options: &[PrefixInformation] = match message {
        Outgoing::RouterAdvert(advert) => &advert.prefixes,
        Outgoing::EchoRequest(_) | Outgoing::EchoReply(_) | Outgoing::NeighborAdvert { .. } => &[],
    };
    let body = IPV6_LEN + repr.buffer_len();
    let mut packet = vec![0; body + options.len() * PREFIX_OPTION_LEN];
    emit_header(header, &mut packet);
    let unsummed = ChecksumCapabilities::ignored();
    let mut view = Icmpv6Packet::new_unchecked(&mut packet[IPV6_LEN..body]);
    repr.emit(&header.source, &header.destination, &mut view, &unsummed);
    // The emitter knows room for one prefix only, so all of them are appended behind its options.
    for (option, info) in packet[body..].chunks_exact_mut(PREFIX_OPTION_LEN).zip(options) {
        option_of(info).emit(&mut NdiscOption::new_unchecked(option));
    }
    Icmpv6Packet::new_unchecked(&mut packet[IPV6_LEN..]).fill_checksum(&header.source, &header.destination);
    packet
}

/// The ICMPv6 part of an IPv6 payload, behind at most one Hop-by-Hop header.
fn icmp_of(next: IpProtocol, payload: &[u8]) -> Result<&[u8], Unreadable> {
    if next == IpProtocol::Icmpv6 {
        return Ok(payload);
    }
    if next != IpProtocol::HopByHop {
        return Err(Unreadable::NotIcmp);
    }
    let header = Ipv6ExtHeader::new_checked(payload).map_err(|_| Unreadable::Malformed)?;
    for option in Ipv6OptionsIterator::new(header.payload()) {
        heed(option.map_err(|_| Unreadable::Malformed)?)?;
    }
    if header.next_header() != IpProtocol::Icmpv6 {
        return Err(Unreadable::NotIcmp);
    }
    payload.get(8 * (usize::from(header.header_len()) + 1)..).ok_or(Unreadable::Malformed)
}

fn heed(option: Ipv6OptionRepr<'_>) -> Result<(), Unreadable> {
    let Ipv6OptionRepr::Unknown { type_, .. } = option else {
        return Ok(());
    };
    match Ipv6OptionFailureType::from(type_) {
        Ipv6OptionFailureType::Skip => Ok(()),
        Ipv6OptionFailureType::Discard
        | Ipv6OptionFailureType::DiscardSendAll
        | Ipv6OptionFailureType::DiscardSendUnicast => Err(Unreadable::Option),
    }
}

fn message_of<'a>(view: &Icmpv6Packet<&'a [u8]>, header: &Header) -> Result<Message<'a>, Unreadable> {
    let kind = u8::from(view.msg_type());
    if matches!(kind, MLD_FIRST..=MLD_LAST | MLD2_REPORT) {
        return Ok(Message::MulticastListener);
    }
    let wanted = [Icmpv6Message::EchoRequest, Icmpv6Message::EchoReply].contains(&view.msg_type());
    if !wanted && !(ND_FIRST..=ND_LAST).contains(&kind) {
        return Ok(Message::Other(kind));
    }
    let verified = ChecksumCapabilities::ignored();
    match Icmpv6Repr::parse(&header.source, &header.destination, view, &verified) {
        Ok(Icmpv6Repr::EchoRequest { ident, seq_no, data }) => {
            Ok(Message::EchoRequest(Echo { ident, seq: seq_no, data }))
        }
        Ok(Icmpv6Repr::EchoReply { ident, seq_no, data }) => {
            Ok(Message::EchoReply(Echo { ident, seq: seq_no, data }))
        }
        Ok(Icmpv6Repr::Ndisc(repr)) => Ok(discovery_of(&repr)),
        Ok(_) | Err(_) => Err(Unreadable::Malformed),
    }
}

fn discovery_of<'a>(repr: &NdiscRepr<'_>) -> Message<'a> {
    match *repr {
        NdiscRepr::RouterSolicit { lladdr } => Message::RouterSolicit { names_sender: lladdr.is_some() },
        NdiscRepr::RouterAdvert { .. } => Message::RouterAdvert,
        NdiscRepr::NeighborSolicit { target_addr, lladdr } => {
            Message::NeighborSolicit { target: target_addr, names_sender: lladdr.is_some() }
        }
        NdiscRepr::NeighborAdvert { .. } => Message::NeighborAdvert,
        NdiscRepr::Redirect { .. } => Message::Redirect,
    }
}

fn repr_of<'a>(message: &Outgoing<'a>) -> Icmpv6Repr<'a> {
    match message {
        Outgoing::EchoRequest(echo) => {
            Icmpv6Repr::EchoRequest { ident: echo.ident, seq_no: echo.seq, data: echo.data }
        }
        Outgoing::EchoReply(echo) => {
            Icmpv6Repr::EchoReply { ident: echo.ident, seq_no: echo.seq, data: echo.data }
        }
        Outgoing::NeighborAdvert { target, solicited } => {
            let mut flags = NdiscNeighborFlags::ROUTER | NdiscNeighborFlags::OVERRIDE;
            flags.set(NdiscNeighborFlags::SOLICITED, *solicited);
            Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert { flags, target_addr: *target, lladdr: None })
        }
        Outgoing::RouterAdvert(advert) => Icmpv6Repr::Ndisc(advert_of(advert)),
    }
}

fn advert_of<'a>(advert: &RouterAdvert) -> NdiscRepr<'a> {
    let mut flags = NdiscRouterFlags::empty();
    flags.set(NdiscRouterFlags::MANAGED, advert.managed);
    flags.set(NdiscRouterFlags::OTHER, advert.other);
    NdiscRepr::RouterAdvert {
        hop_limit: advert.hop_limit,
        flags,
        router_lifetime: Duration::from_secs(advert.lifetime_s.into()),
        reachable_time: Duration::ZERO,
        retrans_time: Duration::ZERO,
        lladdr: None,
        mtu: Some(advert.mtu),
        prefix_info: None,
    }
}

fn option_of<'a>(info: &PrefixInformation) -> NdiscOptionRepr<'a> {
    let mut flags = NdiscPrefixInfoFlags::empty();
    flags.set(NdiscPrefixInfoFlags::ON_LINK, info.on_link);
    flags.set(NdiscPrefixInfoFlags::ADDRCONF, info.autonomous);
    NdiscOptionRepr::PrefixInformation(NdiscPrefixInformation {
        prefix_len: info.len,
        flags,
        valid_lifetime: Duration::from_secs(info.valid_s.into()),
        preferred_lifetime: Duration::from_secs(info.preferred_s.into()),
        prefix: info.prefix,
    })
}

fn emit_header(header: &Header, packet: &mut [u8]) {
    let repr = Ipv6Repr {
        src_addr: header.source,
        dst_addr: header.destination,
        next_header: IpProtocol::Icmpv6,
        payload_len: packet.len() - IPV6_LEN,
        hop_limit: header.hop_limit,
    };
    repr.emit(&mut Ipv6Packet::new_unchecked(packet));
}

/// Octets of an IPv6 header.
const IPV6_LEN: usize = 40;
/// The ICMPv6 types of RFC 2710: query, report, done.
const MLD_FIRST: u8 = 130;
const MLD_LAST: u8 = 132;
/// The ICMPv6 type of a version 2 report (RFC 3810).
const MLD2_REPORT: u8 = 143;
/// The ICMPv6 types of RFC 4861: router solicitation to redirect.
const ND_FIRST: u8 = 133;
const ND_LAST: u8 = 137;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_echo_emitted_parses_to_the_same(
            source: u128, destination: u128, hop_limit: u8, ident: u16, seq: u16, reply: bool,
            data in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let header = Header { source: source.into(), destination: destination.into(), hop_limit };
            let echo = Echo { ident, seq, data: &data };
            let out = if reply { Outgoing::EchoReply(echo) } else { Outgoing::EchoRequest(echo) };
            let expected = if reply { Message::EchoReply(echo) } else { Message::EchoRequest(echo) };
            let packet = emit(&header, &out);
            prop_assert_eq!(parse(&packet), Ok((header, expected)));
        }

        #[test]
        fn one_flipped_bit_behind_the_addresses_is_noticed(bit in 64usize..(56 * 8)) {
            // From the source address on everything is under the checksum; the payload length before it is not.
            let header = Header { source: 1.into(), destination: 2.into(), hop_limit: 64 };
            let echo = Echo { ident: 7, seq: 8, data: b"datadata" };
            let mut packet = emit(&header, &Outgoing::EchoRequest(echo));
            packet[bit / 8] ^= 0x80 >> (bit % 8);
            prop_assert_eq!(parse(&packet), Err(Unreadable::BadChecksum));
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
    }
}
