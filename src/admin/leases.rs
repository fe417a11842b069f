//! Who has what by DHCPv6, as it is asked for and told: what is sought, one thing that somebody has, and its line for people.
//! Knows no server; where things are kept their keepers know.

use std::net::Ipv6Addr;

use serde::{Deserialize, Serialize};
use sixway_dataplane::update::Ipv6Prefix;

use super::table::duration;
use crate::broker::{BindKey, BindKind};
use crate::dhcpv6::codec::MAX_DUID;
use crate::dhcpv6::server::parse_duid;

/// Most rows of one answer.
pub const MOST_ROWS: usize = 1000;
/// Most things that are looked at for one answer, so that whoever answers is soon back at its work.
pub const MOST_LOOKED_AT: usize = 16_384;

/// What is asked for, and from where on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wish {
    /// Only what the client of this DUID has: pairs of hexadecimal digits with colons.
    #[serde(default)]
    pub duid: Option<String>,
    /// Only what has an address in common with this prefix or address.
    #[serde(default)]
    pub prefix: Option<String>,
    /// Only what is in this tunnel, or on this link.
    #[serde(default)]
    pub on: Option<String>,
    /// Where the answer before has ended.
    #[serde(default)]
    pub after: Option<Mark>,
}

/// How far it has been looked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Tunnels are through, and links are looked at.
    pub links: bool,
    /// Behind this; without, from the first on.
    pub prefix: Option<String>,
}

/// One answer of several.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// What was found, perhaps nothing.
    pub leases: Vec<Held>,
    /// Where to go on; `null`: all was looked at.
    pub next: Option<Mark>,
}

/// One address or prefix, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// An address, or a prefix with its length.
    pub prefix: String,
    /// `IA_NA` or `IA_PD`.
    pub kind: String,
    /// The client's number for it.
    pub iaid: u32,
    /// Whose; absent where it is nobody's, or of a host that is known by its line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duid: Option<String>,
    /// The line of such a host: code and octets of what its relay says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<String>,
    /// `bound`; `declined`: given to nobody for a while; `unroutable`: likewise, since the kernel took no route.
    pub state: String,
    /// Seconds that are left of it; `null`: it does not end.
    pub left_s: Option<u64>,
    /// The tunnel that its client is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<String>,
    /// The link that its client was heard on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    /// Where the client is in there, as far as that is known.
    pub peer: Option<Ipv6Addr>,
}

/// What is let through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sieve {
    duid: Option<Vec<u8>>,
    prefix: Option<Ipv6Prefix>,
    on: Option<String>,
}

impl Sieve {
    /// What a wish lets through.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub fn new(wish: &Wish) -> Result<Self, String> {
        let duid = wish.duid.as_deref().map(|text| {
            parse_duid(text).ok_or_else(|| {
                format!("'{text}' is no DUID; write pairs of hexadecimal digits with colons, as in 00:03:00:01:02:00:00:00:53:02")
            })
        });
        let prefix = wish.prefix.as_deref().map(parse_prefix);
        Ok(Self { duid: duid.transpose()?, prefix: prefix.transpose()?, on: wish.on.clone() })
    }

    /// Whether this is sought.
    pub fn lets(&self, key: &BindKey, prefix: Ipv6Prefix) -> bool {
        let meets = |own: Ipv6Prefix| own.covers(prefix) || prefix.covers(own);
        self.duid.as_ref().is_none_or(|duid| *key.client == duid[..])
            && self.on.as_ref().is_none_or(|on| *key.tunnel == **on)
            && self.prefix.is_none_or(meets)
    }
}

/// An address, or a prefix with its length.
///
/// # Errors
/// That it is neither.
pub fn parse_prefix(text: &str) -> Result<Ipv6Prefix, String> {
    let addr = || text.parse().ok().map(Ipv6Prefix::host);
    text.parse().ok().or_else(addr).ok_or_else(|| {
        format!("'{text}' is neither an IPv6 address nor a prefix, such as 2001:db8::5 or 2001:db8:8000::/48")
    })
}

/// Looks at so many of `all`, and keeps so many of those that `told` lets through. Returns them, and behind which one to go
/// on, unless all was looked at.
pub fn page<T>(
    all: impl IntoIterator<Item = T>,
    at: impl Fn(&T) -> Ipv6Prefix,
    told: impl Fn(&T) -> Option<Held>,
) -> (Vec<Held>, Option<Ipv6Prefix>) {
    let mut found = Vec::new();
    for (n, one) in all.into_iter().enumerate() {
        found.extend(told(&one));
        if found.len() >= MOST_ROWS || n + 1 >= MOST_LOOKED_AT {
            return (found, Some(at(&one)));
        }
    }
    (found, None)
}

/// Octets as pairs of hexadecimal digits with colons.
fn pairs(octets: &[u8]) -> String {
    let all: Vec<String> = octets.iter().map(|octet| format!("{octet:02x}")).collect();
    all.join(":")
}

impl Held {
    /// What somebody has, or nobody for a while, with so many seconds left; where it is, is said by the caller.
    pub fn new(key: &BindKey, prefix: Ipv6Prefix, left_s: Option<u64>, peer: Option<Ipv6Addr>) -> Self {
        // What is longer than any DUID ends with the line that its client is on.
        let line = key.client.get(MAX_DUID + 1..).map(pairs);
        let duid = (!key.client.is_empty() && line.is_none()).then(|| pairs(&key.client));
        let (kind, nobody) = match key.kind {
            BindKind::Address => ("IA_NA", "declined"),
            BindKind::Prefix => ("IA_PD", "unroutable"),
        };
        let state = if key.client.is_empty() { nobody } else { "bound" };
        let is_address = prefix.prefix_len() == 128 && key.kind == BindKind::Address;
        Self {
            prefix: if is_address { prefix.addr().to_string() } else { prefix.to_string() },
            kind: kind.to_owned(),
            iaid: key.number,
            duid,
            line,
            state: state.to_owned(),
            left_s,
            tunnel: None,
            link: None,
            peer,
        }
    }

    /// The heading of [`Self::line_of_text`].
    pub fn heading() -> String {
        row("PREFIX OR ADDRESS", "KIND", "IAID", ("DUID", "LEFT"), "ON", "PEER")
    }

    /// One line for people: kind, number and DUID stand as `dhcp6ctl -S remove binding IA` wants them.
    pub fn line_of_text(&self) -> String {
        let line = self.line.as_ref().map(|line| format!("(line {line})"));
        let who = self.duid.clone().or(line).unwrap_or_else(|| format!("({})", self.state));
        let left = self.left_s.map_or_else(|| "for ever".to_owned(), duration);
        let on = self.tunnel.as_deref().or(self.link.as_deref()).unwrap_or("-");
        let peer = self.peer.map_or_else(|| "-".to_owned(), |peer| peer.to_string());
        row(&self.prefix, &self.kind, &self.iaid.to_string(), (&who, &left), on, &peer)
    }
}

/// Columns that are wide enough for most: a million rows are written as they come.
fn row(prefix: &str, kind: &str, iaid: &str, (who, left): (&str, &str), on: &str, peer: &str) -> String {
    format!("{prefix:<27}  {kind:<5} {iaid:<10} {who:<53} {left:>8}  {on:<10}  {peer}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(kind: BindKind, client: &[u8]) -> BindKey {
        BindKey { tunnel: "eth1".into(), client: client.into(), kind, number: 7 }
    }

    #[test]
    fn a_line_has_what_removes_the_binding() {
        let prefix = "2001:db8:8000:100::/56".parse().unwrap();
        let held = Held::new(
            &key(BindKind::Prefix, &[0, 3, 9]),
            prefix,
            Some(312),
            Some("fe80::1".parse().unwrap()),
        );
        let line = Held { link: Some("eth1".to_owned()), ..held }.line_of_text();
        let words: Vec<&str> = line.split_whitespace().collect();
        let expected = ["2001:db8:8000:100::/56", "IA_PD", "7", "00:03:09", "5m", "12s", "eth1", "fe80::1"];
        assert_eq!(words, expected);
        let on_line: Vec<u8> = [&[0; MAX_DUID + 1][..], &[0, 37, 1]].concat();
        let held = Held::new(&key(BindKind::Address, &on_line), prefix, None, None);
        assert_eq!((held.duid.as_deref(), held.line.as_deref()), (None, Some("00:25:01")));
        assert!(held.line_of_text().contains("(line 00:25:01)") && held.line_of_text().contains("for ever"));
        let rests = Held::new(
            &key(BindKind::Address, &[]),
            Ipv6Prefix::host("2001:db8::5".parse().unwrap()),
            Some(9),
            None,
        );
        assert_eq!((&*rests.prefix, &*rests.state, rests.duid), ("2001:db8::5", "declined", None));
    }

    #[test]
    fn a_sieve_lets_through_what_is_sought() {
        let (key, prefix) = (key(BindKind::Prefix, &[0, 3, 9]), "2001:db8:8000::/56".parse().unwrap());
        let lets = |wish: Wish| Sieve::new(&wish).unwrap().lets(&key, prefix);
        let some = |text: &str| Some(text.to_owned());
        assert!(lets(Wish::default()));
        for (text, expected) in [
            ("2001:db8:8000::7", true),
            ("2001:db8::/32", true),
            ("2001:db8:8000:0:1::/64", false),
            ("2001:db8:8000:1::/64", true),
            ("2001:db8:9000::/40", false),
        ] {
            assert_eq!(
                parse_prefix(text).is_ok_and(|_| lets(Wish { prefix: some(text), ..Wish::default() })),
                expected,
                "{text}"
            );
        }
        assert!(lets(Wish { duid: some("00:03:09"), on: some("eth1"), ..Wish::default() }));
        assert!(!lets(Wish { duid: some("00:03"), ..Wish::default() }));
        assert!(!lets(Wish { on: some("eth2"), ..Wish::default() }));
        for wrong in
            [Wish { duid: some("000"), ..Wish::default() }, Wish { prefix: some("x"), ..Wish::default() }]
        {
            assert!(Sieve::new(&wrong).is_err());
        }
    }

    #[test]
    fn pages_follow_each_other_without_a_gap() {
        let all: Vec<Ipv6Prefix> = (0..40_000_u128).map(|n| Ipv6Prefix::host((n << 8).into())).collect();
        let owner = key(BindKind::Address, &[1]);
        for (every, pages) in [(1, 41), (1000, 3)] {
            let told = |prefix: &Ipv6Prefix| {
                (prefix.bits() >> 8).is_multiple_of(every).then(|| Held::new(&owner, *prefix, None, None))
            };
            let (mut after, mut found, mut asked) = (None, Vec::new(), 0);
            loop {
                let left = all.iter().copied().filter(|one| after.is_none_or(|after| *one > after));
                let (some, next) = page(left, |one| *one, told);
                assert!(some.len() <= MOST_ROWS);
                found.extend(some.into_iter().map(|held| held.prefix));
                asked += 1;
                after = next;
                if after.is_none() {
                    break;
                }
            }
            let expected: Vec<String> = all.iter().filter_map(told).map(|held| held.prefix).collect();
            assert_eq!((found, asked), (expected, pages));
        }
    }
}
