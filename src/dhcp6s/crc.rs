//! CRC-32C (RFC 3720 appendix B.4, RFC 9260 appendix A): whether octets are what they were when they were written. Pure; no
//! protection against who wants to deceive.

/// The polynomial, lowest power in front.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// What each octet adds, at each of eight distances from the end: eight octets are taken at a time.
const TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    let mut all = [[0; 256]; 8];
    let mut n = 0;
    while n < 256 {
        let (mut sum, mut bit) = (n as u32, 0);
        while bit < 8 {
            sum = (sum >> 1) ^ if sum & 1 == 1 { POLYNOMIAL } else { 0 };
            bit += 1;
        }
        all[0][n] = sum;
        n += 1;
    }
    let mut n = 0;
    while n < 256 * 7 {
        let before = all[n / 256][n % 256];
        all[n / 256 + 1][n % 256] = (before >> 8) ^ all[0][(before & 0xff) as usize];
        n += 1;
    }
    all
}

/// The sum of octets behind others whose sum is `before`; of none it is 0.
pub fn crc32c(before: u32, octets: &[u8]) -> u32 {
    let (eights, rest) = octets.as_chunks::<8>();
    let sum = eights.iter().fold(!before, |sum, eight| {
        let all = u64::from_le_bytes(*eight) ^ u64::from(sum);
        let parts = all.to_le_bytes().into_iter().zip(TABLES.iter().rev());
        parts.fold(0, |sum, (octet, table)| sum ^ table[usize::from(octet)])
    });
    !rest.iter().fold(sum, |sum, octet| (sum >> 8) ^ TABLES[0][usize::from(sum as u8 ^ octet)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 3720 appendix B.4, and the check value of the catalogues.
    #[test]
    fn sums_are_the_published_ones() {
        let rising: Vec<u8> = (0..32).collect();
        let falling: Vec<u8> = (0..32).rev().collect();
        assert_eq!(crc32c(0, b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(0, &[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(0, &[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(0, &rising), 0x46dd_794e);
        assert_eq!(crc32c(0, &falling), 0x113f_db5c);
    }

    proptest! {
        #[test]
        fn parts_come_to_the_same_as_the_whole(all in prop::collection::vec(any::<u8>(), 0..99), at in any::<prop::sample::Index>()) {
            let (a, b) = all.split_at(at.index(all.len() + 1));
            prop_assert_eq!(crc32c(crc32c(0, a), b), crc32c(0, &all));
        }
    }
}
