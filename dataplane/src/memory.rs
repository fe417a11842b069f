//! Memory for what the tables hold by the million, in large pages where the system gives them.
//!
//! A lookup among a million tunnels goes to places that no cache holds; in pages of 4 KiB it also waits for the page tables.
//! Knows nothing of what is kept in it.

use crate::io::sys;

/// So many values, made by their places.
pub(crate) fn fill<T>(len: usize, make: impl FnMut(usize) -> T) -> Box<[T]> {
    let mut all = Vec::with_capacity(len);
    sys::prefer_large_pages(all.spare_capacity_mut());
    all.extend((0..len).map(make));
    all.into_boxed_slice()
}

#[cfg(test)]
mod tests {
    use super::fill;

    #[test]
    fn values_stand_in_their_places_whether_pages_are_large_or_not() {
        for len in [0, 1, 1000, 1 << 20] {
            let all = fill(len, |n| n as u64);
            assert!(all.len() == len && all.iter().enumerate().all(|(n, v)| *v == n as u64), "{len}");
        }
    }
}
