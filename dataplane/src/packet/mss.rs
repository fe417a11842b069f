//! The segment size that TCP offers, lowered to what a tunnel carries (RFC 9293 section 3.7.1, RFC 6691).
//!
//! Touches segments with SYN and nothing else; the checksum is mended by the difference (RFC 1624). Extension headers are
//! walked. A segment without the option is left alone: its sender's peer takes 1220 octets then, which fit every tunnel.

use super::view::{HEADER, TCP, UDP, is_authenticated, upper_layer};

/// Octets of an IPv6 and a TCP header without options.
const HEADERS: u16 = 60;
const SYN: u8 = 2;
const END: u8 = 0;
const NOTHING: u8 = 1;
const SEGMENT_SIZE: u8 = 2;

/// Lowers the segment size offered in `packet`, if it is a SYN, to what fits `mtu` octets. `is_summed`: the checksum field
/// holds a whole checksum; otherwise it is left to be computed later, and not touched. Returns whether it was lowered.
pub fn clamp(packet: &mut [u8], mtu: u16, is_summed: bool) -> bool {
    // Most packets are known by the fixed header not to be one.
    if packet.get(6) == Some(&UDP) || packet.len() < HEADER + 20 {
        return false;
    }
    let Some((tcp, TCP, false)) = upper_layer(packet) else { return false };
    let Some(at) = size_option(packet, tcp).filter(|_| !is_authenticated(packet)) else { return false };
    let offered = u16::from_be_bytes([packet[at], packet[at + 1]]);
    let most = mtu.saturating_sub(HEADERS);
    if offered <= most {
        return false;
    }
    packet[at..at + 2].copy_from_slice(&most.to_be_bytes());
    if is_summed {
        mend(&mut packet[tcp + 16..tcp + 18], offered, most, (at - tcp) % 2 == 1);
    }
    true
}

/// Where the value of the option stands, if this is a SYN that has it whole.
fn size_option(packet: &[u8], tcp: usize) -> Option<usize> {
    let header = packet.get(tcp..tcp + 20)?;
    if header[13] & SYN == 0 {
        return None;
    }
    let end = tcp + usize::from(header[12] >> 4) * 4;
    let options = packet.get(..end)?;
    let mut at = tcp + 20;
    while at < end {
        match options[at] {
            END => return None,
            NOTHING => at += 1,
            kind => {
                let len = usize::from(*options.get(at + 1)?);
                if kind == SEGMENT_SIZE {
                    return (len == 4 && at + 4 <= end).then_some(at + 2);
                }
                at += len.max(2);
            }
        }
    }
    None
}

/// Equation 3 of RFC 1624, for a word that may lie across two of the sum's words.
fn mend(field: &mut [u8], old: u16, new: u16, is_odd: bool) {
    let turned = |word: u16| u32::from(if is_odd { word.swap_bytes() } else { word });
    let was = u32::from(!u16::from_be_bytes([field[0], field[1]]));
    let mut sum = was + u32::from(!(turned(old) as u16)) + turned(new);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    field.copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::checksum::Sum;
    use etherparse::{PacketBuilder, TcpOptionElement};
    use proptest::prelude::*;

    fn syn(options: &[TcpOptionElement], payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let b = PacketBuilder::ipv6([0x20; 16], [0x30; 16], 60).tcp(1, 2, 3, 4).syn();
        b.options(options).unwrap().write(&mut out, payload).unwrap();
        out
    }

    fn is_summed(packet: &[u8]) -> bool {
        Sum::pseudo(&packet[8..40], (packet.len() - 40) as u32, TCP).plus(&packet[40..]).is_intact()
    }

    /// RFC: T1 (RFC 9293 section 3.7.1)
    #[test]
    fn a_larger_offer_is_lowered_and_summed() {
        let mut packet = syn(&[TcpOptionElement::MaximumSegmentSize(1440)], &[]);
        assert!(clamp(&mut packet, 1280, true));
        assert_eq!(packet[62..64], 1220u16.to_be_bytes());
        assert!(is_summed(&packet));
        assert!(!clamp(&mut packet, 1280, true), "once is enough");
        assert!(!clamp(&mut packet, 1480, true), "a smaller one stays");
    }

    #[test]
    fn what_is_no_whole_syn_with_the_option_stays() {
        let mut plain = syn(&[], &[]);
        let mut odd = syn(&[TcpOptionElement::MaximumSegmentSize(1440)], &[]);
        odd[61] = 3;
        let mut ack = syn(&[TcpOptionElement::MaximumSegmentSize(1440)], &[]);
        ack[53] = 0x10;
        for packet in [&mut plain, &mut odd, &mut ack] {
            let before = packet.clone();
            assert!(!clamp(packet, 1280, true));
            assert_eq!(*packet, before);
        }
    }

    #[test]
    fn a_sum_left_to_hardware_is_left_alone() {
        let mut packet = syn(&[TcpOptionElement::MaximumSegmentSize(9000)], &[]);
        let sum = packet[56..58].to_vec();
        assert!(clamp(&mut packet, 1280, false));
        assert_eq!(packet[56..58], sum);
    }

    /// RFC: T1 (RFC 9293 section 3.7.1)
    #[test]
    fn extension_headers_are_walked() {
        let packet = syn(&[TcpOptionElement::MaximumSegmentSize(1440)], &[]);
        let mut with = packet[..40].to_vec();
        with[6] = 60;
        with[5] += 8;
        with.extend_from_slice(&[TCP, 0, 1, 4, 0, 0, 0, 0]);
        with.extend_from_slice(&packet[40..]);
        assert!(clamp(&mut with, 1280, true));
        let upper = &with[48..];
        assert!(Sum::pseudo(&with[8..40], upper.len() as u32, TCP).plus(upper).is_intact());
    }

    proptest! {
        #[test]
        fn the_mended_sum_is_the_sum_computed_anew(
            offered in 0u16.., mtu in 1280u16..9000, before in 0usize..3, data in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut options = vec![TcpOptionElement::Noop; before];
            options.push(TcpOptionElement::MaximumSegmentSize(offered));
            let mut packet = syn(&options, &data);
            let lowered = clamp(&mut packet, mtu, true);
            prop_assert_eq!(lowered, offered > mtu - 60);
            prop_assert!(is_summed(&packet));
        }

        #[test]
        fn no_octets_make_it_panic(mut octets in proptest::collection::vec(any::<u8>(), 0..120), next in 0u8..61) {
            if let Some(field) = octets.get_mut(6) {
                *field = next;
            }
            let _lowered = clamp(&mut octets, 1280, true);
        }
    }
}
