//! Base64 (RFC 4648 section 4) as the old programs read their secrets: blank space within is skipped, padding is required.
//!
//! Reading only: nobody here writes secrets down.

use base64::engine::general_purpose::STANDARD;
use base64::{DecodeError, Engine};
use zeroize::Zeroizing;

/// Why a text is no base64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Base64Error {
    /// A character that cannot stand in it.
    #[error("a character stands in it that base64 does not have (A-Z a-z 0-9 + / and = at the end)")]
    Character,
    /// The length or the padding is wrong.
    #[error("it is cut short: base64 has groups of four characters, the last filled with '='")]
    Padding,
    /// Nothing at all.
    #[error("it is empty")]
    Empty,
}

/// The octets that a text stands for, at least one.
///
/// # Errors
/// [`Base64Error`].
pub fn decode(text: &[u8]) -> Result<Zeroizing<Vec<u8>>, Base64Error> {
    let blank = |octet: &&u8| !matches!(octet, b' ' | b'\t' | b'\r' | b'\n');
    let signs: Zeroizing<Vec<u8>> = Zeroizing::new(text.iter().filter(blank).copied().collect());
    let octets = STANDARD.decode(&*signs).map(Zeroizing::new).map_err(|why| match why {
        DecodeError::InvalidByte(..) => Base64Error::Character,
        DecodeError::InvalidLength(_)
        | DecodeError::InvalidLastSymbol { .. }
        | DecodeError::InvalidPadding => Base64Error::Padding,
    })?;
    if octets.is_empty() { Err(Base64Error::Empty) } else { Ok(octets) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn vectors_of_rfc_4648_section_10() {
        for (text, octets) in [
            ("Zg==", "f"),
            ("Zm8=", "fo"),
            ("Zm9v", "foo"),
            ("Zm9vYg==", "foob"),
            ("Zm9vYmE=", "fooba"),
            ("Zm9v\tYm Fy\r\n", "foobar"),
        ] {
            assert_eq!(
                decode(text.as_bytes()).as_deref().map(Vec::as_slice),
                Ok(octets.as_bytes()),
                "{text}"
            );
        }
        assert_eq!(decode(b"+/8=").as_deref().map(Vec::as_slice), Ok(&[0xfb, 0xff][..]));
    }

    #[test]
    fn what_is_no_base64_is_refused() {
        for text in ["AAE", "A", "AB=="] {
            assert!(decode(text.as_bytes()).is_err(), "{text}");
        }
        for text in ["A=AA", "AA*A", "AA==AAAA"] {
            assert!(decode(text.as_bytes()).is_err(), "{text}");
        }
        assert_eq!(decode(b" \n").map(|_| ()), Err(Base64Error::Empty));
    }

    proptest! {
        #[test]
        fn any_octets_are_read_or_refused(octets in prop::collection::vec(any::<u8>(), 0..64)) {
            let _either = decode(&octets);
        }
    }
}
