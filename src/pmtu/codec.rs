//! ICMPv4 errors and echo replies <-> types (RFC 792, RFC 1191 section 4, RFC 4884, RFC 4443 section 4.2).
//!
//! Reads form only: lengths, the checksum, where the quote ends. Whether a quoted packet was ours is `session`'s business.
//! Every read is bounded, so no input panics.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};

/// What a router or host said about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Longer than the next link takes, which is so many octets; 0: it did not say (before RFC 1191).
    TooBig(u16),
    /// It cannot be delivered, for any other reason.
    Unreachable,
}

/// How the quoted packet carried what was inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// Protocol 41.
    Proto41,
    /// UDP.
    Udp,
}

/// An ICMPv4 error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report<'a> {
    /// What it says.
    pub kind: Kind,
    /// What it says it about.
    pub quote: Quote<'a>,
}

/// The beginning of the packet that an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quote<'a> {
    /// How it carried what was inside.
    pub carrier: Carrier,
    /// Its source; the port is 0 for protocol 41.
    pub local: SocketAddrV4,
    /// Its destination; the port is 0 for protocol 41.
    pub remote: SocketAddrV4,
    /// Its octets, outer header included.
    pub total: u16,
    /// Whether DF was set in it.
    pub whole: bool,
    /// As much of the packet inside as is left of it.
    pub inner: &'a [u8],
}

/// Why octets are no error that we can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// Cut short, or its fields contradict each other.
    #[error("the message is cut short or its fields contradict each other")]
    Malformed,
    /// The checksum is wrong.
    #[error("the checksum is wrong")]
    BadChecksum,
    /// Not an error, or about a packet that no tunnel sends.
    #[error("not about a packet in a tunnel")]
    Other,
}

/// Reads an IPv4 packet with an ICMP error.
///
/// # Errors
/// What it is instead.
pub fn parse(packet: &[u8]) -> Result<Report<'_>, Unreadable> {
    let message =
        packet.get(header_len(packet).ok_or(Unreadable::Malformed)?..).ok_or(Unreadable::Malformed)?;
    let head: &[u8; 8] = message.first_chunk().ok_or(Unreadable::Malformed)?;
    let kind = match (head[0], head[1]) {
        (3, 4) => Kind::TooBig(u16::from_be_bytes([head[6], head[7]])),
        (3 | 11 | 12, _) => Kind::Unreachable,
        _ => return Err(Unreadable::Other),
    };
    if sum(message) != 0xffff {
        return Err(Unreadable::BadChecksum);
    }
    let quote = parse_quote(quoted(message, head[5]))?;
    Ok(Report { kind, quote })
}

/// The quote ends where the length of RFC 4884 section 4.1 says, in words of four octets; extensions stand behind it. A
/// message without that length is all quote.
fn quoted(message: &[u8], words: u8) -> &[u8] {
    let rest = &message[8..];
    match usize::from(words) * 4 {
        0 => rest,
        end => &rest[..end.min(rest.len())],
    }
}

fn parse_quote(quote: &[u8]) -> Result<Quote<'_>, Unreadable> {
    let len = header_len(quote).ok_or(Unreadable::Malformed)?;
    let header: &[u8; 20] = quote.first_chunk().ok_or(Unreadable::Malformed)?;
    let total = u16::from_be_bytes([header[2], header[3]]);
    // What stands behind the packet's own end is no part of it, whatever the message says.
    let whole_quote = &quote[..quote.len().min(usize::from(total))];
    let behind = whole_quote.get(len..).ok_or(Unreadable::Malformed)?;
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    if fragment & 0x1fff != 0 {
        return Err(Unreadable::Other);
    }
    let (carrier, ports, inner) = match header[9] {
        41 => (Carrier::Proto41, (0, 0), behind),
        17 => {
            let udp: &[u8; 8] = behind.first_chunk().ok_or(Unreadable::Malformed)?;
            let port = |at: usize| u16::from_be_bytes([udp[at], udp[at + 1]]);
            (Carrier::Udp, (port(0), port(2)), &behind[8..])
        }
        _ => return Err(Unreadable::Other),
    };
    let address = |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
    Ok(Quote {
        carrier,
        local: SocketAddrV4::new(address(12), ports.0),
        remote: SocketAddrV4::new(address(16), ports.1),
        total,
        whole: fragment & 0x4000 != 0,
        inner,
    })
}

/// Octets of the IPv4 header at the start of `packet`; `None` when it is none.
fn header_len(packet: &[u8]) -> Option<usize> {
    let first = *packet.first()?;
    let len = usize::from(first & 0x0f) * 4;
    (first >> 4 == 4 && len >= 20 && packet.len() >= len).then_some(len)
}

/// The one's complement sum (RFC 1071): 0xffff over a message with a right checksum.
fn sum(octets: &[u8]) -> u16 {
    let words = octets.chunks(2).map(|w| u32::from(w[0]) << 8 | w.get(1).copied().map_or(0, u32::from));
    let mut sum = words.fold(0u64, |sum, word| sum + u64::from(word));
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// An answer to a probe, as far as it says whose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Who answers.
    pub source: Ipv6Addr,
    /// The identifier asked with.
    pub ident: u16,
    /// The first octets of what was asked.
    pub nonce: [u8; 16],
}

/// Reads an echo reply, whole or its first fragment: a peer may answer in pieces what came to it in one.
pub fn parse_reply(packet: &[u8]) -> Option<Reply> {
    let header: &[u8; 40] = packet.first_chunk()?;
    let (next, at) = match header[6] {
        44 if *packet.get(42)? == 0 && packet.get(43)? & 0xf8 == 0 => (*packet.get(40)?, 48),
        next => (next, 40),
    };
    let echo: &[u8; 24] = packet.get(at..)?.first_chunk()?;
    if next != 58 || echo[..2] != [129, 0] {
        return None;
    }
    let mut source = [0; 16];
    source.copy_from_slice(&header[8..24]);
    let mut nonce = [0; 16];
    nonce.copy_from_slice(&echo[8..]);
    Some(Reply { source: source.into(), ident: u16::from_be_bytes([echo[4], echo[5]]), nonce })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use etherparse::{IpNumber, Ipv4Header, PacketBuilder};
    use proptest::prelude::*;

    pub(crate) const LOCAL: [u8; 4] = [10, 0, 0, 1];
    pub(crate) const PEER: [u8; 4] = [192, 0, 2, 1];

    /// An outer packet of ours with `inner` in it, DF set.
    pub(crate) fn sent(inner: &[u8], udp: Option<(u16, u16)>) -> Vec<u8> {
        let mut payload = Vec::new();
        if let Some((from, to)) = udp {
            for word in [from, to, inner.len() as u16 + 8, 0] {
                payload.extend_from_slice(&word.to_be_bytes());
            }
        }
        payload.extend_from_slice(inner);
        let protocol = if udp.is_some() { IpNumber::UDP } else { IpNumber::IPV6 };
        let mut header = Ipv4Header::new(payload.len() as u16, 64, protocol, LOCAL, PEER).unwrap();
        header.dont_fragment = true;
        let mut out = Vec::new();
        header.write(&mut out).unwrap();
        out.extend_from_slice(&payload);
        out
    }

    /// An error by a router, with the quote as it is given.
    pub(crate) fn error(kind: u8, code: u8, length: u8, mtu: u16, quote: &[u8]) -> Vec<u8> {
        let mut message = vec![kind, code, 0, 0, 0, length, 0, 0];
        message[6..8].copy_from_slice(&mtu.to_be_bytes());
        message.extend_from_slice(quote);
        let right = !sum(&message);
        message[2..4].copy_from_slice(&right.to_be_bytes());
        let header = Ipv4Header::new(message.len() as u16, 60, IpNumber::ICMP, [198, 51, 100, 1], LOCAL);
        let mut out = Vec::new();
        header.unwrap().write(&mut out).unwrap();
        out.extend_from_slice(&message);
        out
    }

    pub(crate) fn inner(len: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let b = PacketBuilder::ipv6([0x20; 16], [0x30; 16], 64).udp(1, 2);
        b.write(&mut out, &vec![7; len - 48]).unwrap();
        out
    }

    /// RFC: I1 (RFC 4213 section 3.4)
    #[test]
    fn an_error_says_what_it_is_about() {
        let packet = inner(1400);
        for (udp, carrier, total) in
            [(None, Carrier::Proto41, 1420), (Some((3653, 5555)), Carrier::Udp, 1428)]
        {
            let quote = &sent(&packet, udp)[..200];
            let message = error(3, 4, 0, 1300, quote);
            let got = parse(&message).unwrap();
            assert_eq!(got.kind, Kind::TooBig(1300));
            let (local, remote) = udp.unwrap_or_default();
            assert_eq!(got.quote.local, SocketAddrV4::new(LOCAL.into(), local));
            assert_eq!(got.quote.remote, SocketAddrV4::new(PEER.into(), remote));
            assert_eq!((got.quote.carrier, got.quote.total, got.quote.whole), (carrier, total, true));
            assert!(packet.starts_with(got.quote.inner) && got.quote.inner.len() >= 172);
        }
    }

    /// RFC: I3 (RFC 4884 sections 4 and 5)
    #[test]
    fn the_length_of_rfc_4884_ends_the_quote() {
        let packet = inner(1400);
        let mut quote = sent(&packet, None)[..128].to_vec();
        quote.extend_from_slice(&[0x20, 0, 0, 0, 0, 8, 1, 1, 9, 9, 9, 9]);
        let message = error(11, 0, 32, 0, &quote);
        assert_eq!(parse(&message).unwrap().quote.inner, &packet[..108]);
        // A length beyond the message, and none where there should be one: no more than there is, nor than was sent.
        assert_eq!(parse(&error(11, 0, 255, 0, &quote)).unwrap().quote.inner.len(), 120);
        let short = inner(60);
        let mut quote = sent(&short, None);
        quote.resize(128, 0);
        quote.extend_from_slice(&[0x20; 12]);
        assert_eq!(parse(&error(3, 1, 0, 0, &quote)).unwrap().quote.inner, short);
    }

    #[test]
    fn what_is_no_error_about_a_tunnel_is_named() {
        let quote = sent(&inner(100), None);
        let of = |message: &[u8]| parse(message).map(|_| ());
        assert_eq!(of(&error(8, 0, 0, 0, &quote)), Err(Unreadable::Other));
        let mut damaged = error(3, 1, 0, 0, &quote);
        damaged[40] ^= 1;
        assert_eq!(of(&damaged), Err(Unreadable::BadChecksum));
        assert_eq!(of(&error(3, 1, 0, 0, &quote[..19])), Err(Unreadable::Malformed));
        let mut tcp = quote.clone();
        tcp[9] = 6;
        assert_eq!(of(&error(3, 1, 0, 0, &tcp)), Err(Unreadable::Other));
        let mut later = quote;
        later[7] = 1;
        assert_eq!(of(&error(3, 1, 0, 0, &later)), Err(Unreadable::Other));
        assert_eq!(of(&[]), Err(Unreadable::Malformed));
        let udp = &sent(&inner(100), Some((1, 2)))[..27];
        assert_eq!(of(&error(3, 1, 0, 0, udp)), Err(Unreadable::Malformed));
    }

    #[test]
    fn a_reply_is_known_whole_and_by_its_first_fragment() {
        let mut out = Vec::new();
        let b = PacketBuilder::ipv6([0x20; 16], [0x30; 16], 64).icmpv6_echo_reply(7, 9);
        b.write(&mut out, &[5; 100]).unwrap();
        let expected = Some(Reply { source: [0x20; 16].into(), ident: 7, nonce: [5; 16] });
        assert_eq!(parse_reply(&out), expected);
        let mut piece = out[..40].to_vec();
        piece[6] = 44;
        piece.extend_from_slice(&[58, 0, 0, 1, 0, 0, 0, 1]);
        piece.extend_from_slice(&out[40..]);
        assert_eq!(parse_reply(&piece), expected);
        piece[43] = 8;
        assert_eq!((parse_reply(&piece), parse_reply(&out[..63])), (None, None));
    }

    proptest! {
        #[test]
        fn no_octets_make_it_panic(octets in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _read = (parse(&octets).is_ok(), parse_reply(&octets));
        }

        #[test]
        fn no_quote_makes_it_panic(
            kind in prop_oneof![Just(3u8), Just(11), Just(12)], code in 0u8..6, length in any::<u8>(),
            mut quote in proptest::collection::vec(any::<u8>(), 0..200), protocol in prop_oneof![Just(41u8), Just(17)],
        ) {
            if quote.len() > 9 {
                quote[0] = 0x45;
                quote[9] = protocol;
            }
            let message = error(kind, code, length, 1300, &quote);
            if let Ok(got) = parse(&message) {
                prop_assert!(got.quote.inner.len() <= quote.len().min(usize::from(got.quote.total)));
            }
        }
    }
}
