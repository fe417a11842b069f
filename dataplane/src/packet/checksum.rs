//! The Internet checksum (RFC 1071), in pieces that can be added up; updates by RFC 1624.
//!
//! Sums are kept unfolded in a `u64` of native-endian words, which folds to the same 16 bits as the
//! big-endian sum, byte-swapped (RFC 1071 section 2(B)). Knows no protocol beyond the IPv6 pseudo-header.

use std::net::Ipv6Addr;

use super::simd;

/// A running one's complement sum of 16-bit words in memory order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// Adds `bytes`, which must start at an even offset of what is summed.
    #[inline]
    pub fn plus(self, bytes: &[u8]) -> Self {
        // Headers are too short to be worth a question to the processor.
        if bytes.len() < simd::WORTH_IT {
            return self.plus_portable(bytes);
        }
        match simd::sum_blocks(bytes) {
            Some((sum, rest)) => Self(add_carry(self.0, sum)).plus_portable(rest),
            None => self.plus_portable(bytes),
        }
    }

    /// The same on any processor.
    #[inline]
    pub fn plus_portable(self, bytes: &[u8]) -> Self {
        let (words, rest) = bytes.as_chunks::<8>();
        let wide = words.iter().fold(0, |sum, word| sum + u128::from(u64::from_ne_bytes(*word)));
        let (fours, rest) = rest.as_chunks::<4>();
        let (pairs, rest) = rest.as_chunks::<2>();
        let fours = fours.iter().map(|word| u64::from(u32::from_ne_bytes(*word)));
        let pairs = pairs.iter().map(|pair| u64::from(u16::from_ne_bytes(*pair)));
        let odd = rest.iter().map(|last| u64::from(u16::from_ne_bytes([*last, 0])));
        let small = fours.chain(pairs).chain(odd).sum();
        Self(add_carry(add_carry(self.0, small), add_carry(wide as u64, (wide >> 64) as u64)))
    }

    /// Adds one 16-bit number given in host order.
    pub fn add_u16(self, number: u16) -> Self {
        Self(add_carry(self.0, u64::from(number.to_be())))
    }

    /// Adds one 32-bit number given in host order.
    pub fn add_u32(self, number: u32) -> Self {
        Self(add_carry(self.0, u64::from(number.to_be())))
    }

    /// Adds another sum.
    pub fn add_sum(self, other: Self) -> Self {
        Self(add_carry(self.0, other.0))
    }

    /// The IPv6 pseudo-header (RFC 8200 section 8.1); `addresses` are source and destination, 32 octets.
    pub fn pseudo(addresses: &[u8], length: u32, protocol: u8) -> Self {
        Self::default().plus(addresses).add_u32(length).add_u16(u16::from(protocol))
    }

    /// The 16-bit sum in memory order, not inverted.
    pub fn fold(self) -> [u8; 2] {
        let halves = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let mut sum = (halves & 0xffff) + (halves >> 16);
        // At most 0x2fffe now, and then at most 0x10000.
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
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

    /// All three opinions on the same octets.
    fn same(bytes: &[u8]) {
        let expected = twin(bytes);
        assert_eq!(Sum::default().plus(bytes).fold(), expected, "{} octets", bytes.len());
        assert_eq!(Sum::default().plus_portable(bytes).fold(), expected, "{} octets, portable", bytes.len());
    }

    /// Octets that look random and are the same every time.
    fn octets(len: u32) -> Vec<u8> {
        (0..len).map(|n| (n.wrapping_mul(0x9e37_79b1) >> 24) as u8).collect()
    }

    proptest! {
        #[test]
        fn agrees_with_the_twin(bytes in proptest::collection::vec(any::<u8>(), 0..3000), start in 0usize..64) {
            same(&bytes[start.min(bytes.len())..]);
        }

        #[test]
        fn pieces_add_up(bytes in proptest::collection::vec(any::<u8>(), 0..3000), cut in 0usize..1500) {
            let cut = (cut * 2).min(bytes.len() & !1);
            let whole = Sum::default().plus(&bytes);
            let parts = Sum::default().plus(&bytes[cut..]).add_sum(Sum::default().plus_portable(&bytes[..cut]));
            prop_assert_eq!(whole.fold(), parts.fold());
        }

        #[test]
        fn numbers_are_octets_in_network_order(number in any::<u32>(), small in any::<u16>()) {
            let octets = [&number.to_be_bytes()[..], &small.to_be_bytes()].concat();
            prop_assert_eq!(Sum::default().add_u32(number).add_u16(small).fold(), twin(&octets));
        }

        #[test]
        fn folding_is_adding_up_with_carries(sum in any::<u64>()) {
            prop_assert_eq!(Sum(sum).fold(), twin(&sum.to_ne_bytes()));
        }
    }

    #[test]
    fn agrees_with_the_twin_at_every_length_and_alignment() {
        let bytes = octets(700);
        for start in 0..33 {
            (start..bytes.len()).for_each(|end| same(&bytes[start..end]));
        }
    }

    #[test]
    fn all_ones_do_not_overflow() {
        let bytes = vec![0xff; 65_536];
        for len in [65_536, 65_535, 65_534, 64_000, 129] {
            same(&bytes[..len]);
        }
        assert_eq!(Sum::default().plus(&bytes).fold(), [0xff, 0xff]);
        let full = Sum(u64::MAX).plus(&bytes).plus_portable(&bytes).add_u32(u32::MAX).add_u16(u16::MAX);
        assert_eq!(full.fold(), [0xff, 0xff]);
    }

    #[test]
    fn udp_never_sends_zero() {
        assert_eq!(Sum::default().plus(&[0xff, 0xff]).finish_udp(), [0xff, 0xff]);
        assert_eq!(Sum::default().plus(&[0xff, 0xff]).finish(), [0, 0]);
    }
}
