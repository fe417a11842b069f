//! PLAIN (RFC 4616): user and secret as they are, a NUL between them. For networks that nobody listens to.

use zeroize::Zeroizing;

use super::{Claim, Identity, Mechanism, Proof};

/// What a client says: `authzid NUL user NUL secret`, or without the first part, and with any number of NULs in front, as
/// deployed TSP clients have it. The last two parts count.
pub(super) fn claim(message: &[u8]) -> Result<Claim, &'static str> {
    let mut parts = message.rsplitn(3, |octet| *octet == 0);
    let (secret, user) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let user = std::str::from_utf8(user).map_err(|_| "the user is no UTF-8")?;
    if user.is_empty() {
        return Err("it is not a user, a NUL and a secret");
    }
    let proof = Proof::Plain(Zeroizing::new(secret.to_vec()));
    Ok(Claim { user: user.to_owned(), mechanism: Mechanism::Plain, proof })
}

/// What a client says to be `who`.
pub(super) fn message(who: &Identity) -> Vec<u8> {
    [b"\0", who.user.as_bytes(), b"\0", &who.secret].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_two_parts_count() {
        for message in [&b"\0alice\0hush"[..], b"alice\0hush", b"\0\0alice\0hush", b"root\0alice\0hush"] {
            let claim = claim(message).unwrap();
            assert_eq!(claim.user(), "alice");
            assert!(
                claim.prove(b"hush").is_some_and(|line| line.is_empty()) && claim.prove(b"hus").is_none()
            );
        }
        for message in [&b""[..], b"alice", b"\0\0", b"\xff\0x"] {
            assert!(claim(message).is_err());
        }
        assert!(claim(b"alice\0").unwrap().prove(b"hush").is_none());
    }
}
