//! The names that tunnels go by: `gif0`, `gif1`, ... for protocol 41, `ng0`, ... for UDP, as the old server had
//! interfaces of the kernel. Here they are numbers only, but numbers that decide: a host's address pair follows from it.
//!
//! Which number a tunnel takes: the one its user is pinned to, else one that stands by, else the lowest that is free.
//! Both kinds of names draw on the same numbers, so that no two tunnels have the same pair. Pure.

use std::collections::{BTreeSet, HashMap, HashSet};

use regex::Regex;

/// The highest number that has an address pair: the pair ends in 16 bits, of which each number takes four values.
pub const LAST_PAIR: u32 = 16_382;

/// Which names may be taken.
#[derive(Clone, Debug)]
pub enum Names {
    /// All of them.
    All,
    /// Those that this expression matches as a whole.
    Matching(Regex),
    /// This number and those above: names are made as they are needed.
    From(u32),
}

/// Why a text says nothing about names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NamesError {
    /// No regular expression.
    #[error("it is no regular expression: {0}")]
    Pattern(String),
    /// An exact name of another kind.
    #[error("interfaces are called {0}0, {0}1, ...")]
    Family(&'static str),
}

/// A kind of names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// For protocol 41.
    Gif,
    /// For UDP.
    Ng,
}

impl Family {
    /// What names begin with.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gif => "gif",
            Self::Ng => "ng",
        }
    }
}

impl Names {
    /// Reads `-i` and `-I`: an exact name is where counting begins, unless `is_pattern`; anything else is an expression.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str, family: Family, is_pattern: bool) -> Result<Self, NamesError> {
        let exact = text.trim_end_matches(|c: char| c.is_ascii_digit());
        let is_exact = exact.len() < text.len() && exact.chars().all(|c| c.is_ascii_alphanumeric());
        if is_exact && !is_pattern {
            let number = text.strip_prefix(family.name()).and_then(|digits| digits.parse().ok());
            return number.map(Self::From).ok_or(NamesError::Family(family.name()));
        }
        let whole = Regex::new(&format!("^(?:{text})$"));
        whole.map(Self::Matching).map_err(|why| NamesError::Pattern(last_line(&why.to_string())))
    }
}

impl PartialEq for Names {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::All, Self::All) => true,
            (Self::Matching(a), Self::Matching(b)) => a.as_str() == b.as_str(),
            (Self::From(a), Self::From(b)) => a == b,
            (Self::All | Self::Matching(_) | Self::From(_), _) => false,
        }
    }
}

fn last_line(text: &str) -> String {
    text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

/// Why there is no number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoNumber {
    /// None is free.
    #[error("all interfaces are in use")]
    SoldOut,
    /// The user is pinned to a name that has no number.
    #[error("the interface's name does not end in a number")]
    Unnumbered,
}

/// Who has which number.
#[derive(Debug)]
pub struct Interfaces {
    last: u32,
    keep: bool,
    gif: Stock,
    ng: Stock,
    /// How many tunnels go by each number: two while one takes over from the other.
    used: HashMap<u32, u32>,
    /// Numbers that users are pinned to; nobody else is given one.
    pinned: HashSet<u32>,
}

/// The numbers of one family's names.
#[derive(Debug)]
struct Stock {
    allowed: Allowed,
    /// Every place below was taken once.
    next: u32,
    /// Places that were taken and may be free again.
    back: BTreeSet<u32>,
}

#[derive(Debug)]
enum Allowed {
    From(u32),
    List(Vec<u32>),
}

impl Interfaces {
    /// Numbers 0 to `last`, of which each family takes what its names say. With `keep`, names that were made stay and are
    /// taken before new ones are made.
    pub fn new(last: u32, gif: &Names, ng: &Names, keep: bool) -> Self {
        let stock = |names: &Names, family| Stock::new(names, family, last);
        let (used, pinned) = (HashMap::new(), HashSet::new());
        Self { last, keep, gif: stock(gif, Family::Gif), ng: stock(ng, Family::Ng), used, pinned }
    }

    /// These are the names that users are pinned to from now on.
    pub fn pin<'a>(&mut self, names: impl Iterator<Item = &'a str>) {
        let now = names.filter_map(number).collect();
        for gone in std::mem::replace(&mut self.pinned, now) {
            self.shelve(gone);
        }
    }

    /// Takes a number for a tunnel: the pinned name's, or a free one.
    ///
    /// # Errors
    /// [`NoNumber`].
    pub fn take(&mut self, family: Family, pin: Option<&str>) -> Result<u32, NoNumber> {
        let n = match pin {
            Some(name) => self.pinned_number(name)?,
            None => self.free(family).ok_or(NoNumber::SoldOut)?,
        };
        self.used.insert(n, 1);
        Ok(n)
    }

    fn pinned_number(&self, name: &str) -> Result<u32, NoNumber> {
        let n = number(name).ok_or(NoNumber::Unnumbered)?;
        let free = n <= self.last && !self.used.contains_key(&n);
        free.then_some(n).ok_or(NoNumber::SoldOut)
    }

    fn free(&mut self, family: Family) -> Option<u32> {
        let Self { used, pinned, last, .. } = self;
        let open = |n: &u32| !used.contains_key(n) && !pinned.contains(n);
        let stock = if family == Family::Gif { &mut self.gif } else { &mut self.ng };
        stock.take(*last, open)
    }

    /// A tunnel goes by a number that another has, and will have it alone when the other ends.
    pub fn take_over(&mut self, n: u32) {
        *self.used.entry(n).or_insert(0) += 1;
    }

    /// A tunnel with this number has ended.
    pub fn give_back(&mut self, n: u32) {
        let Some(count) = self.used.get_mut(&n) else { return };
        *count -= 1;
        if *count == 0 {
            self.used.remove(&n);
            self.shelve(n);
        }
    }

    fn shelve(&mut self, n: u32) {
        for stock in [&mut self.gif, &mut self.ng] {
            stock.shelve(n, self.keep);
        }
    }

    /// How many numbers are taken.
    pub fn in_use(&self) -> usize {
        self.used.len()
    }
}

impl Stock {
    fn new(names: &Names, family: Family, last: u32) -> Self {
        let allowed = match names {
            Names::All => Allowed::From(0),
            Names::From(first) => Allowed::From(*first),
            Names::Matching(pattern) => {
                let matches = |n: &u32| pattern.is_match(&format!("{}{n}", family.name()));
                Allowed::List((0..=last).filter(matches).collect())
            }
        };
        Self { allowed, next: 0, back: BTreeSet::new() }
    }

    fn number(&self, place: u32, last: u32) -> Option<u32> {
        match &self.allowed {
            Allowed::From(first) => first.checked_add(place).filter(|n| *n <= last),
            Allowed::List(list) => list.get(place as usize).copied(),
        }
    }

    fn place(&self, n: u32) -> Option<u32> {
        match &self.allowed {
            Allowed::From(first) => n.checked_sub(*first),
            Allowed::List(list) => list.binary_search(&n).ok().and_then(|at| u32::try_from(at).ok()),
        }
    }

    fn take(&mut self, last: u32, open: impl Fn(&u32) -> bool) -> Option<u32> {
        while let Some(place) = self.back.pop_first() {
            if let Some(n) = self.number(place, last).filter(&open) {
                return Some(n);
            }
        }
        while let Some(n) = self.number(self.next, last) {
            self.next += 1;
            if open(&n) {
                return Some(n);
            }
        }
        None
    }

    /// The number may be taken again. One that was never reached comes up by itself, unless it shall stand by.
    fn shelve(&mut self, n: u32, keep: bool) {
        if let Some(place) = self.place(n).filter(|place| keep || *place < self.next) {
            self.back.insert(place);
        }
    }
}

/// The digits at the end of a name.
pub fn number(name: &str) -> Option<u32> {
    let digits = name.trim_start_matches(|c: char| !c.is_ascii_digit());
    digits.parse().ok().filter(|_| digits.chars().all(|c| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Names {
        Names::parse(text, Family::Gif, false).unwrap()
    }

    fn some(interfaces: &mut Interfaces, count: usize) -> Vec<u32> {
        (0..count).map_while(|_| interfaces.take(Family::Gif, None).ok()).collect()
    }

    #[test]
    fn a_name_counts_up_and_a_pattern_chooses() {
        assert_eq!(names("gif10"), Names::From(10));
        assert!(matches!(names("gif7[0-9]"), Names::Matching(_)));
        assert!(matches!(Names::parse("gif10", Family::Gif, true), Ok(Names::Matching(_))), "-c");
        assert_eq!(Names::parse("tun0", Family::Gif, false), Err(NamesError::Family("gif")));
        assert!(matches!(Names::parse("gif[", Family::Gif, false), Err(NamesError::Pattern(_))));
        assert_eq!(number("gif12"), Some(12));
        assert_eq!((number("gif"), number("gif1x"), number("")), (None, None, None));
    }

    #[test]
    fn the_lowest_free_number_is_taken() {
        let mut all = Interfaces::new(4, &Names::All, &Names::All, false);
        assert_eq!(some(&mut all, 9), [0, 1, 2, 3, 4]);
        assert_eq!(all.take(Family::Gif, None), Err(NoNumber::SoldOut));
        [3, 1].into_iter().for_each(|n| all.give_back(n));
        assert_eq!(some(&mut all, 9), [1, 3]);
        all.give_back(2);
        assert_eq!(all.take(Family::Ng, None), Ok(2), "both kinds draw on the same numbers");
        assert_eq!(all.take(Family::Gif, None), Err(NoNumber::SoldOut));
    }

    #[test]
    fn patterns_and_bases_bound_it() {
        let mut seventies = Interfaces::new(100, &names("gif7[0-9]"), &Names::All, false);
        assert_eq!(some(&mut seventies, 99), (70..80).collect::<Vec<_>>());
        let mut above = Interfaces::new(12, &names("gif10"), &Names::All, false);
        assert_eq!(some(&mut above, 99), [10, 11, 12]);
        above.give_back(11);
        assert_eq!(some(&mut above, 99), [11]);
        let mut exact =
            Interfaces::new(100, &Names::parse("gif10", Family::Gif, true).unwrap(), &Names::All, false);
        assert_eq!(some(&mut exact, 99), [10]);
    }

    #[test]
    fn a_pinned_number_is_its_user_s_alone() {
        let mut all = Interfaces::new(4, &Names::All, &Names::All, false);
        all.pin(["gif1", "odd"].into_iter());
        assert_eq!(some(&mut all, 2), [0, 2]);
        assert_eq!(all.take(Family::Gif, Some("gif1")), Ok(1));
        assert_eq!(all.take(Family::Gif, Some("gif1")), Err(NoNumber::SoldOut));
        assert_eq!(all.take(Family::Gif, Some("odd")), Err(NoNumber::Unnumbered));
        assert_eq!(all.take(Family::Gif, Some("gif5")), Err(NoNumber::SoldOut), "beyond the last");
        all.give_back(1);
        assert_eq!(some(&mut all, 9), [3, 4]);
        all.pin(std::iter::empty());
        assert_eq!(some(&mut all, 9), [1], "nobody is pinned to it any more");
    }

    #[test]
    fn a_number_taken_over_is_free_when_both_are_gone() {
        let mut all = Interfaces::new(0, &Names::All, &Names::All, false);
        assert_eq!(some(&mut all, 1), [0]);
        all.take_over(0);
        all.give_back(0);
        assert!(some(&mut all, 1).is_empty());
        all.give_back(0);
        all.give_back(0);
        assert_eq!((some(&mut all, 9), all.in_use()), (vec![0], 1));
    }

    #[test]
    fn kept_names_come_before_new_ones() {
        for (keep, then) in [(true, [14, 10]), (false, [10, 11])] {
            let mut above = Interfaces::new(99, &names("gif10"), &Names::All, keep);
            assert_eq!(above.take(Family::Gif, Some("gif14")), Ok(14));
            above.give_back(14);
            assert_eq!(some(&mut above, 2), then, "keep: {keep}");
        }
    }
}
