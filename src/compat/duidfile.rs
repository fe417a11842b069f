//! The file that WIDE's programs keep their own DUID in (`dhcp6s_duid`, `dhcp6c_duid`).
//!
//! ```text
//!  0e 00  00 01 00 01 2b 00 ...      two octets length in the byte order of the host, then the DUID
//! ```
//!
//! The length tells which byte order it is: it must leave no octet over. What stands behind a DUID whose length fits in
//! the host's own order is ignored, as the old programs do. Opens nothing.

use super::dhcp6sconf::Duid;

/// Why octets are no such file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DuidFileError {
    /// Too short for what it says, or for anything.
    #[error(
        "it has {len} octets, and two octets length and the DUID are expected; move it away, and a new one is made"
    )]
    Short {
        /// How many there are.
        len: usize,
    },
    /// The length says that it is no DUID.
    #[error("its length says {said}, and a DUID has 1 to 130 octets; move it away, and a new one is made")]
    Length {
        /// What the length says.
        said: u16,
    },
}

/// The DUID that is in the file.
///
/// # Errors
/// [`DuidFileError`].
pub fn parse(octets: &[u8]) -> Result<Duid, DuidFileError> {
    let len = octets.len();
    let Some((said, rest)) = octets.split_first_chunk::<2>() else {
        return Err(DuidFileError::Short { len });
    };
    let orders = [u16::from_ne_bytes(*said), u16::from_ne_bytes(*said).swap_bytes()];
    let exact = orders.into_iter().find(|said| usize::from(*said) == rest.len());
    let said = exact.unwrap_or(orders[0]);
    let duid = rest.get(..usize::from(said)).ok_or(DuidFileError::Short { len })?;
    Duid::new(duid.to_vec()).map_err(|_| DuidFileError::Length { said })
}

/// The file with this DUID in it.
pub fn emit(duid: &Duid) -> Vec<u8> {
    let len = u16::try_from(duid.octets().len()).unwrap_or(u16::MAX);
    [&len.to_ne_bytes()[..], duid.octets()].concat()
}

/// A DUID of a link-layer address and a time (RFC 8415 section 11.2): `time` in Unix seconds, for Ethernet.
pub fn link_layer_time(mac: [u8; 6], time: u64) -> Option<Duid> {
    /// 2000-01-01 00:00 UTC.
    const EPOCH: u64 = 946_684_800;
    let since = time.saturating_sub(EPOCH) as u32;
    let octets = [&[0, 1, 0, 1][..], &since.to_be_bytes(), &mac].concat();
    Duid::new(octets).ok()
}

/// A DUID of 16 octets that nobody else has (RFC 8415 section 11.5).
pub fn uuid(octets: [u8; 16]) -> Option<Duid> {
    Duid::new([&[0, 4][..], &octets].concat()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DUID: [u8; 14] = [0, 1, 0, 1, 0x2b, 0, 0, 1, 2, 0, 0, 0, 0x53, 1];

    #[test]
    fn both_byte_orders_are_read() {
        for length in [[14, 0], [0, 14]] {
            let file = [&length[..], &DUID].concat();
            assert_eq!(parse(&file).map(|duid| duid.octets().to_vec()), Ok(DUID.to_vec()));
        }
    }

    #[test]
    fn what_stands_behind_is_ignored_and_what_is_missing_is_said() {
        let file = [&14_u16.to_ne_bytes()[..], &DUID, b"junk"].concat();
        assert_eq!(parse(&file).map(|duid| duid.octets().to_vec()), Ok(DUID.to_vec()));
        assert_eq!(parse(&file[..12]), Err(DuidFileError::Short { len: 12 }));
        assert_eq!(parse(&[14]), Err(DuidFileError::Short { len: 1 }));
        assert_eq!(parse(&[0, 0]), Err(DuidFileError::Length { said: 0 }));
        assert!(parse(&[&200_u16.to_ne_bytes()[..], &[0; 200]].concat()).is_err());
    }

    #[test]
    fn made_ones_have_their_form() {
        let mac = [2, 0, 0, 0, 0x53, 1];
        let duid = link_layer_time(mac, 946_684_800 + 0x2b00_0001).unwrap();
        assert_eq!(duid.octets(), DUID);
        assert_eq!(emit(&duid)[2..], DUID);
        assert_eq!(uuid([7; 16]).unwrap().octets()[..3], [0, 4, 7]);
    }

    proptest! {
        #[test]
        fn any_duid_comes_back(octets in prop::collection::vec(any::<u8>(), 1..129)) {
            let duid = Duid::new(octets).unwrap();
            prop_assert_eq!(parse(&emit(&duid)), Ok(duid));
        }

        #[test]
        fn any_octets_are_read_or_refused(octets in prop::collection::vec(any::<u8>(), 0..200)) {
            let _either = parse(&octets);
        }
    }
}
