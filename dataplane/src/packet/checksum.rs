//! The Internet checksum (RFC 1071), in pieces that can be added up; updates by RFC 1624.
//!
//! Sums are kept unfolded in a `u64` of native-endian words, which folds to the same 16 bits as the
//! big-endian sum, byte-swapped (RFC 1071 section 2(B)). Knows no protocol beyond the IPv6 pseudo-header.

use std::net::Ipv6Addr;

/// A running one's complement sum of 16-bit words in memory order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// Adds `bytes`, which must start at an even offset of what is summed.
    pub fn plus(self, bytes: &[u8]) -> Self {
        let mut lanes = [0u64; 8];
        let mut blocks = bytes.chunks_exact(32);
        for block in &mut blocks {
            for (lane, word) in lanes.iter_mut().zip(block.chunks_exact(4)) {
                *lane += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
            }
        }
        let mut sum = self.0;
        for lane in lanes {
            sum = add_carry(sum, lane);
        }
        let mut pairs = blocks.remainder().chunks_exact(2);
        for pair in &mut pairs {
            sum = add_carry(sum, u64::from(u16::from_ne_bytes([pair[0], pair[1]])));
        }
        if let [last] = pairs.remainder() {
            sum = add_carry(sum, u64::from(u16::from_ne_bytes([*last, 0])));
        }
        Self(sum)
    }

    /// Adds one 16-bit number given in host order.
    pub fn add_u16(self, number: u16) -> Self {
        Self(add_carry(self.0, u64::from(number.to_be())))
    }

    /// Adds another sum.
    pub fn add_sum(self, other: Self) -> Self {
        Self(add_carry(self.0, other.0))
    }

    /// The IPv6 pseudo-header (RFC 8200 section 8.1); `addresses` are source and destination, 32 octets.
    pub fn pseudo(addresses: &[u8], length: u32, protocol: u8) -> Self {
        let sum = Self::default().plus(addresses).add_u16((length >> 16) as u16);
        sum.add_u16(length as u16).add_u16(u16::from(protocol))
    }

    /// The 16-bit sum in memory order, not inverted.
    pub fn fold(self) -> [u8; 2] {
        let mut sum = self.0;
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (sum as u16).to_ne_bytes()
    }

    /// What goes into a checksum field: the inverted sum.
    pub fn finish(self) -> [u8; 2] {
        let [a, b] = self.fold();
        [!a, !b]
    }

    /// The same for UDP, where zero means "no checksum" and is sent as all ones (RFC 768, RFC 8200 8.1).
    pub fn finish_udp(self) -> [u8; 2] {
        match self.finish() {
            [0, 0] => [0xff, 0xff],
            other => other,
        }
    }

    /// Whether what was summed, checksum field included, is intact.
    pub fn is_intact(self) -> bool {
        self.fold() == [0xff, 0xff]
    }
}

fn add_carry(a: u64, b: u64) -> u64 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u64::from(carry)
}

/// The checksum of an ICMPv6 message between two addresses (RFC 4443 section 2.3), its own field zero.
pub fn icmpv6(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> [u8; 2] {
    let mut addresses = [0; 32];
    addresses[..16].copy_from_slice(&source.octets());
    addresses[16..].copy_from_slice(&destination.octets());
    Sum::pseudo(&addresses, message.len() as u32, 58).plus(message).finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The twin: word by word, as RFC 1071 tells it.
    fn twin(bytes: &[u8]) -> [u8; 2] {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (sum as u16).to_be_bytes()
    }

    proptest! {
        #[test]
        fn agrees_with_the_twin(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            prop_assert_eq!(Sum::default().plus(&bytes).fold(), twin(&bytes));
        }

        #[test]
        fn pieces_add_up(bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in 0usize..150) {
            let cut = (cut * 2).min(bytes.len() & !1);
            let whole = Sum::default().plus(&bytes);
            let parts = Sum::default().plus(&bytes[cut..]).add_sum(Sum::default().plus(&bytes[..cut]));
            prop_assert_eq!(whole.fold(), parts.fold());
        }
    }

    #[test]
    fn all_ones_do_not_overflow() {
        let bytes = vec![0xff; 65_536];
        assert_eq!(Sum::default().plus(&bytes).fold(), [0xff, 0xff]);
    }

    #[test]
    fn udp_never_sends_zero() {
        assert_eq!(Sum::default().plus(&[0xff, 0xff]).finish_udp(), [0xff, 0xff]);
        assert_eq!(Sum::default().plus(&[0xff, 0xff]).finish(), [0, 0]);
    }
}
