//! `dhcp6sctlkey`, `dhcp6cctlkey`: the secret that dhcp6ctl shares with a server or a client.
//!
//! One line of base64, at most 1023 characters; what stands on further lines says nothing. Opens nothing.

use zeroize::Zeroizing;

use super::base64::{self, Base64Error};

/// The most characters of the line.
pub const MAX_LINE: usize = 1023;

/// Why a file holds no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CtlKeyError {
    /// The line is too long.
    #[error("its first line is longer than {MAX_LINE} characters; a key is one line of base64")]
    Long,
    /// The line is no base64.
    #[error("its first line is no key in base64: {0}")]
    Base64(#[from] Base64Error),
}

/// The secret in the file.
///
/// # Errors
/// [`CtlKeyError`].
pub fn parse(octets: &[u8]) -> Result<Zeroizing<Vec<u8>>, CtlKeyError> {
    let line = octets.split(|octet| *octet == b'\n').next().unwrap_or_default();
    if line.len() > MAX_LINE { Err(CtlKeyError::Long) } else { Ok(base64::decode(line)?) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_counts() {
        let key = |text: &str| parse(text.as_bytes()).map(|key| key.to_vec());
        assert_eq!(key("AAEC\n"), Ok(vec![0, 1, 2]));
        assert_eq!(key(" AA EC\t\r\n*second*\n"), Ok(vec![0, 1, 2]));
        assert_eq!(key("AA=="), Ok(vec![0]));
        assert_eq!(key(""), Err(CtlKeyError::Base64(Base64Error::Empty)));
        assert_eq!(key("\nAAEC"), Err(CtlKeyError::Base64(Base64Error::Empty)));
        assert_eq!(key("AAE"), Err(CtlKeyError::Base64(Base64Error::Padding)));
        assert_eq!(key(&"A".repeat(1024)), Err(CtlKeyError::Long));
        assert_eq!(key(&"A".repeat(1020)).map(|key| key.len()), Ok(765));
    }
}
