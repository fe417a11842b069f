//! The ways in which an account may prove itself, by name: what the operator allows each account. What the names mean is
//! not known here.

use std::fmt;
use std::str::FromStr;

/// A way to prove who one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mechanism {
    /// SASL ANONYMOUS (RFC 4505): not at all. No account has it.
    Anonymous,
    /// SASL PLAIN (RFC 4616): the secret itself, for everybody on the way to read.
    Plain,
    /// SASL DIGEST-MD5 (RFC 2831).
    DigestMd5,
    /// SASL SCRAM-SHA-256 (RFC 7677).
    ScramSha256,
    /// The digest of DTCP, which is that of POP3 (RFC 1939 section 7).
    Apop,
}

impl Mechanism {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Anonymous, Self::Plain, Self::DigestMd5, Self::ScramSha256, Self::Apop];
    /// Those that an account can be allowed, the safest first.
    pub const OF_ACCOUNTS: [Self; 4] = [Self::ScramSha256, Self::DigestMd5, Self::Plain, Self::Apop];

    /// Its name, as SASL has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Anonymous => "ANONYMOUS",
            Self::Plain => "PLAIN",
            Self::DigestMd5 => "DIGEST-MD5",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::Apop => "APOP",
        }
    }

    /// The mechanism of that name, in any case of its letters.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.name().eq_ignore_ascii_case(name))
    }

    fn bit(self) -> u8 {
        match self {
            Self::Anonymous => 1,
            Self::Plain => 2,
            Self::DigestMd5 => 4,
            Self::ScramSha256 => 8,
            Self::Apop => 16,
        }
    }
}

/// The mechanisms that one account may use, beside what each server offers at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mechanisms(u8);

impl Mechanisms {
    /// Whatever a server offers.
    pub const ANY: Self = Self(u8::MAX);

    /// Whether this one is allowed.
    pub fn allow(self, one: Mechanism) -> bool {
        self.0 & one.bit() != 0
    }

    /// Whether whatever a server offers is allowed.
    pub fn is_any(self) -> bool {
        self == Self::ANY
    }
}

impl Default for Mechanisms {
    fn default() -> Self {
        Self::ANY
    }
}

impl FromStr for Mechanisms {
    type Err = String;

    /// Reads `scram-sha-256,digest-md5`, or `any`.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.eq_ignore_ascii_case("any") {
            return Ok(Self::ANY);
        }
        let mut bits = 0;
        for word in text.split(',') {
            let known = Mechanism::parse(word.trim()).filter(|one| Mechanism::OF_ACCOUNTS.contains(one));
            bits |= known.ok_or_else(|| unknown(word))?.bit();
        }
        Ok(Self(bits))
    }
}

fn unknown(word: &str) -> String {
    let names: Vec<String> = Mechanism::OF_ACCOUNTS.map(|one| one.name().to_ascii_lowercase()).to_vec();
    format!("'{}' is no mechanism of an account; known are {} and any", word.escape_debug(), names.join(", "))
}

impl fmt::Display for Mechanisms {
    /// In the form that is read.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_any() {
            return f.write_str("any");
        }
        let names = Mechanism::OF_ACCOUNTS.into_iter().filter(|one| self.allow(*one));
        let names: Vec<String> = names.map(|one| one.name().to_ascii_lowercase()).collect();
        f.write_str(&names.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_in_any_case() {
        for one in Mechanism::ALL {
            assert_eq!(Mechanism::parse(&one.name().to_ascii_lowercase()), Some(one));
        }
        assert_eq!(Mechanism::parse("PASSDSS-3DES-1"), None);
    }

    #[test]
    fn lists_are_what_they_say() {
        let two: Mechanisms = "DIGEST-MD5, scram-sha-256".parse().unwrap();
        assert!(two.allow(Mechanism::DigestMd5) && two.allow(Mechanism::ScramSha256));
        assert!(!two.allow(Mechanism::Plain) && !two.allow(Mechanism::Apop) && !two.is_any());
        assert_eq!(two.to_string(), "scram-sha-256,digest-md5");
        assert_eq!(two.to_string().parse(), Ok(two));
        assert_eq!("any".parse(), Ok(Mechanisms::default()));
        for wrong in ["", "anonymous", "digest", "plain,,"] {
            assert!(wrong.parse::<Mechanisms>().unwrap_err().contains("known are"), "{wrong}");
        }
    }
}
