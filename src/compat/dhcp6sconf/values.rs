//! Values that stand in `dhcp6s.conf`: DUIDs, lifetimes, domain names, points in time.
//!
//! Text in, types out; where they stand in a file is not known here.

use std::fmt;
use std::str::FromStr;

use super::Surroundings;

/// The longest DUID in octets: 128 behind a type of 2 (RFC 8415 section 11.1). The old program takes 128 in all.
pub(super) const MAX_DUID: usize = 130;

/// A DHCP unique identifier (RFC 8415 section 11), written `00:01:ab`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Duid(Vec<u8>);

/// Why something is no DUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DuidError {
    /// Not pairs of digits between colons.
    #[error(
        "a DUID is pairs of hexadecimal digits with ':' between them, as in 00:03:00:01:02:00:00:00:53:02"
    )]
    Form,
    /// Too long, or empty.
    #[error("a DUID has 1 to {MAX_DUID} octets, and this has {0}")]
    Len(usize),
}

impl Duid {
    /// A DUID from its octets.
    ///
    /// # Errors
    /// [`DuidError::Len`].
    pub fn new(octets: Vec<u8>) -> Result<Self, DuidError> {
        if octets.is_empty() || octets.len() > MAX_DUID {
            Err(DuidError::Len(octets.len()))
        } else {
            Ok(Self(octets))
        }
    }

    /// Its octets, as on the wire.
    pub fn octets(&self) -> &[u8] {
        &self.0
    }
}

impl FromStr for Duid {
    type Err = DuidError;

    fn from_str(text: &str) -> Result<Self, DuidError> {
        let pair = |pair: &str| {
            let digits = pair.len() == 2 && pair.bytes().all(|octet| octet.is_ascii_hexdigit());
            digits.then(|| u8::from_str_radix(pair, 16).ok()).flatten()
        };
        // With colons, as everybody writes it; without, as some logs have it.
        let octets: Option<Vec<u8>> = if text.contains(':') || text.is_empty() {
            text.split(':').map(pair).collect()
        } else {
            text.as_bytes().chunks(2).map(|two| pair(std::str::from_utf8(two).ok()?)).collect()
        };
        Self::new(octets.ok_or(DuidError::Form)?)
    }
}

impl fmt::Display for Duid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, octet) in self.0.iter().enumerate() {
            write!(f, "{}{octet:02x}", if n == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}

/// Preferred and valid lifetime in seconds; [`Lifetimes::INFINITY`] is for ever. Preferred is never above valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// How long it is good for new connections.
    pub preferred: u32,
    /// How long it is good at all.
    pub valid: u32,
}

impl Lifetimes {
    /// For ever (RFC 8415 section 7.7).
    pub const INFINITY: u32 = u32::MAX;

    /// A pair, if it makes sense.
    pub fn new(preferred: u32, valid: u32) -> Option<Self> {
        (preferred <= valid).then_some(Self { preferred, valid })
    }
}

/// A domain name as it goes on the wire: lower case, no dot at the end. `Err` says what no answer could carry.
///
/// Labels as in RFC 1035 section 2.3.1, and beginning with a digit as well (RFC 1123 section 2.1).
pub(super) fn domain_name(text: &str) -> Result<String, String> {
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    if name.is_empty() {
        return Err("it is empty".to_owned());
    }
    if name.len() > 253 {
        return Err(format!("it has {} characters, and 253 is the most", name.len()));
    }
    for label in name.split('.') {
        let odd = label.chars().find(|c| !c.is_ascii_alphanumeric() && *c != '-');
        if let Some(odd) = odd {
            return Err(format!("'{}' stands in it; letters, digits and '-' may", odd.escape_debug()));
        }
        if label.is_empty() || label.len() > 63 {
            return Err(format!("a label of {} characters stands in it, and 1 to 63 may", label.len()));
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Err(format!("the label '{label}' has '-' at an end"));
        }
    }
    Ok(name)
}

/// `expire`: `forever`, or `YYYY-MM-DD HH:MM`, `MM-DD HH:MM`, `HH:MM` in local time; in Unix seconds.
pub(super) fn expiry(text: &str, around: &dyn Surroundings) -> Result<Option<u64>, String> {
    if text == "forever" {
        return Ok(None);
    }
    let form = || {
        format!(
            "'{}' is no time: \"forever\", \"YYYY-MM-DD HH:MM\", \"MM-DD HH:MM\" or \"HH:MM\" is expected",
            text.escape_debug()
        )
    };
    let at = moment(text, around).ok_or_else(form)?;
    if at < around.now() {
        return Err(format!("the key expired at {text}; give it a later time, or \"forever\""));
    }
    Ok(Some(at))
}

fn moment(text: &str, around: &dyn Surroundings) -> Option<u64> {
    let words: Vec<&str> = text.split([' ', '\t']).filter(|word| !word.is_empty()).collect();
    let (date, time) = match words[..] {
        [time] => (around.today(), time),
        [date, time] => {
            let parts: Vec<&str> = date.split('-').collect();
            let (year, month, day) = match parts[..] {
                [year, month, day] => (digits(year)?, month, day),
                [month, day] => (around.today().0, month, day),
                [..] => return None,
            };
            ((year, digits(month)?, digits(day)?), time)
        }
        [..] => return None,
    };
    let (hour, minute) = time.split_once(':')?;
    around.unix_time(date, (digits(hour)?, digits(minute)?))
}

fn digits<N: FromStr>(text: &str) -> Option<N> {
    text.bytes().all(|octet| octet.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_an_answer_can_carry() {
        assert_eq!(domain_name("Example.COM."), Ok("example.com".to_owned()));
        assert_eq!(domain_name("6bone.example"), Ok("6bone.example".to_owned()));
        assert_eq!(domain_name("local"), Ok("local".to_owned()));
        let long = format!("{}.example", "a".repeat(64));
        for wrong in ["", ".", "a..b", "a_b", "*.example", "-a", "a-.b", "a\nb", &long, &"a.".repeat(128)] {
            assert!(domain_name(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn duids_are_pairs() {
        let duid: Duid = "00:01:AB".parse().unwrap();
        assert_eq!((duid.octets(), duid.to_string()), (&[0, 1, 0xab][..], "00:01:ab".to_owned()));
        assert_eq!("0001aB".parse::<Duid>().unwrap(), duid);
        for wrong in ["", "0", "000", "00:1", "00:01:", ":00", "00:0102", "00-01", "00:0g", "000g", "+1:00"] {
            assert_eq!(wrong.parse::<Duid>(), Err(DuidError::Form), "{wrong}");
        }
        assert_eq!(Duid::new(vec![0; 131]), Err(DuidError::Len(131)));
        assert!(Duid::new(vec![0; 130]).is_ok() && Duid::new(Vec::new()).is_err());
    }
}
