//! `routetable` of dtcps: which prefixes and which interface a user has.
//!
//! ```text
//!   # user  prefix[,prefix...]  [interface]
//!   alice   3ffe:505:2:100::/56
//!   bob     3ffe:505:3::/48,3ffe:505:4::/48  gif12
//!   carol   -                   gif13
//! ```
//!
//! Words stand apart by any blank space; what follows `#`, and empty lines, say nothing. Knows no account.

use std::collections::BTreeMap;

use sixway_dataplane::update::Ipv6Prefix;

/// The most users in it: as many as there can be tunnels.
pub const MAX_USERS: usize = 1 << 20;
/// The most prefixes of one user.
pub const MAX_PREFIXES: usize = 32;

/// The whole file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteTable {
    entries: BTreeMap<String, Entry>,
}

/// One user's line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// What is routed to the user; nothing for `-`.
    pub prefixes: Vec<Ipv6Prefix>,
    /// The interface that the user's tunnel must be.
    pub interface: Option<String>,
}

/// A line that says nothing sensible.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
pub struct Mistake {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong, and what to write instead.
    pub why: String,
}

impl RouteTable {
    /// Reads the text of the file.
    ///
    /// # Errors
    /// Every line that is wrong.
    pub fn parse(text: &str) -> Result<Self, Vec<Mistake>> {
        let mut table = Self::default();
        let mut holders: BTreeMap<Ipv6Prefix, String> = BTreeMap::new();
        let mut mistakes = Vec::new();
        for (n, line) in text.lines().enumerate() {
            if let Err(why) = table.take(line, &mut holders) {
                mistakes.push(Mistake { line: n + 1, why });
            }
        }
        if mistakes.is_empty() { Ok(table) } else { Err(mistakes) }
    }

    fn take(&mut self, line: &str, holders: &mut BTreeMap<Ipv6Prefix, String>) -> Result<(), String> {
        let line = line.split('#').next().unwrap_or_default();
        let words: Vec<&str> = line.split_whitespace().collect();
        let (user, list, interface) = match words[..] {
            [] => return Ok(()),
            [user, list] => (user, list, None),
            [user, list, interface] => (user, list, Some(interface.to_owned())),
            [_] => return Err("the prefix is missing; write '-' for a user without one".to_owned()),
            [..] => {
                return Err("there are more than three words; prefixes are parted by ',' alone".to_owned());
            }
        };
        if self.entries.contains_key(user) {
            return Err(format!(
                "user '{user}' has a line already; write all prefixes on one, parted by ','"
            ));
        }
        let prefixes = prefixes(list)?;
        if let Some((prefix, holder)) = prefixes.iter().find_map(|p| Some((p, holders.get(p)?))) {
            return Err(format!("prefix {prefix} is user '{holder}'s already; give it to one of them"));
        }
        if self.entries.len() >= MAX_USERS {
            return Err(format!("there are more than {MAX_USERS} users; leave some out"));
        }
        holders.extend(prefixes.iter().map(|prefix| (*prefix, user.to_owned())));
        self.entries.insert(user.to_owned(), Entry { prefixes, interface });
        Ok(())
    }

    /// The user's line.
    pub fn entry(&self, user: &str) -> Option<&Entry> {
        self.entries.get(user)
    }

    /// All users with their lines, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(user, entry)| (user.as_str(), entry))
    }
}

fn prefixes(list: &str) -> Result<Vec<Ipv6Prefix>, String> {
    if list == "-" {
        return Ok(Vec::new());
    }
    let read = |word: &str| word.parse::<Ipv6Prefix>().map_err(|why| format!("prefix '{word}': {why}"));
    let mut prefixes = list.split(',').map(read).collect::<Result<Vec<_>, _>>()?;
    if let Some(wide) = prefixes.iter().find(|prefix| prefix.prefix_len() == 0) {
        return Err(format!("prefix {wide} is everything; write the user's own"));
    }
    prefixes.sort_unstable();
    prefixes.dedup();
    if prefixes.len() > MAX_PREFIXES {
        return Err(format!("a user has at most {MAX_PREFIXES} prefixes; write fewer, shorter ones"));
    }
    Ok(prefixes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_manual_s_lines() {
        let text = "alice 3ffe:505:2:100::/56\n\n# comment\nbob\t3ffe:505:3::/48,3ffe:505:4::/48  gif12 # two\ncarol - gif13\n";
        let table = RouteTable::parse(text).unwrap();
        let entry = |user| table.entry(user).unwrap();
        assert_eq!(entry("alice").prefixes, ["3ffe:505:2:100::/56".parse().unwrap()]);
        assert_eq!(entry("bob").prefixes.len(), 2);
        assert_eq!(entry("bob").interface.as_deref(), Some("gif12"));
        assert_eq!(*entry("carol"), Entry { prefixes: Vec::new(), interface: Some("gif13".to_owned()) });
        assert_eq!(table.entry("dave"), None);
        assert_eq!(table.iter().count(), 3);
    }

    #[test]
    fn every_mistake_is_named_with_its_line() {
        let text = "alice\nbob 1.2.3.4/8\ncarol 2001:db8::1/64\nd ::/0\ne 2001:db8::/64 a b\nf -\nf -\ng 2001:db8:1::/64\nh 2001:db8:1::/64";
        let mistakes = RouteTable::parse(text).unwrap_err();
        let lines: Vec<usize> = mistakes.iter().map(|m| m.line).collect();
        assert_eq!(lines, [1, 2, 3, 4, 5, 7, 9]);
        assert!(mistakes[2].to_string().contains("did you mean 2001:db8::/64"), "{}", mistakes[2]);
        assert!(mistakes[6].to_string().contains("user 'g'"), "{}", mistakes[6]);
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[ a-c0-9:/,#\n-]{0,200}") {
            if let Err(mistakes) = RouteTable::parse(&text) {
                prop_assert!(mistakes.iter().all(|m| m.line <= text.lines().count() && !m.why.is_empty()));
            }
        }
    }
}
