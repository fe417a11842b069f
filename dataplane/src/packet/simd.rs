//! Summing with wider registers than every x86-64 has: chosen at run time, and only where that pays.
//!
//! Knows nothing of checksums but that 32-bit words in memory order may be added in any order (RFC 1071 section 2);
//! `checksum` folds, and has the portable twin, which is what other architectures use.

/// Fewer octets than this the portable sum adds as fast.
pub(super) const WORTH_IT: usize = 128;

/// Adds the 32-bit words of the whole blocks of 128 octets in `bytes`. Returns the sum and the octets that are left, or
/// `None` when this processor has no AVX2. The sum cannot overflow: that would take 16 GiB.
#[cfg(target_arch = "x86_64")]
pub(super) fn sum_blocks(bytes: &[u8]) -> Option<(u64, &[u8])> {
    if !std::arch::is_x86_feature_detected!("avx2") {
        return None;
    }
    #[expect(unsafe_code, reason = "code for a processor that may not be this one")]
    // SAFETY: the function needs AVX2 and nothing else, and the processor has just said that it has it.
    Some(unsafe { avx2(bytes) })
}

/// No wider registers here.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn sum_blocks(_bytes: &[u8]) -> Option<(u64, &[u8])> {
    None
}

/// Four registers at a time. Each octet group of eight is two words: the lower by a mask, the upper by a shift.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2(bytes: &[u8]) -> (u64, &[u8]) {
    use std::arch::x86_64::{
        _mm256_add_epi64, _mm256_and_si256, _mm256_extract_epi64, _mm256_set1_epi64x, _mm256_setr_epi64x,
        _mm256_setzero_si256, _mm256_srli_epi64,
    };
    let lower = _mm256_set1_epi64x(0xffff_ffff);
    let mut sums = [[_mm256_setzero_si256(); 2]; 4];
    let (blocks, rest) = bytes.as_chunks::<128>();
    for block in blocks {
        for (sum, four) in sums.iter_mut().zip(block.as_chunks::<32>().0) {
            let word = |at: usize| i64::from_ne_bytes(four.as_chunks::<8>().0[at]);
            let words = _mm256_setr_epi64x(word(0), word(1), word(2), word(3));
            sum[0] = _mm256_add_epi64(sum[0], _mm256_and_si256(words, lower));
            sum[1] = _mm256_add_epi64(sum[1], _mm256_srli_epi64::<32>(words));
        }
    }
    let all = sums.as_flattened().iter().fold(_mm256_setzero_si256(), |a, b| _mm256_add_epi64(a, *b));
    let lanes = [
        _mm256_extract_epi64::<0>(all),
        _mm256_extract_epi64::<1>(all),
        _mm256_extract_epi64::<2>(all),
        _mm256_extract_epi64::<3>(all),
    ];
    (lanes.into_iter().map(i64::cast_unsigned).sum(), rest)
}
