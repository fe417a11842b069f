//! From places in a TOML text to errors that name file, line, reason and cure.
//!
//! A [`Section`] is one table of the file; asking it for a key gives a value of the right type or adds an
//! error to the [`Report`], so that one reading finds every mistake. Knows nothing of what a key means.

use std::collections::HashSet;
use std::fmt;
use std::hash::Hash;
use std::ops::{Range, RangeInclusive};

use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use super::schema::{self, Schema};

/// One mistake in a configuration file: one line when printed, `FILE:LINE: what; why; what next`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {what}; {why}; {next}")]
pub struct ConfigError {
    /// Where it is.
    pub place: Place,
    /// What is wrong.
    pub what: String,
    /// Why that is wrong.
    pub why: String,
    /// What to do about it.
    pub next: String,
}

/// A place in a file, or the file as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file as it was named by the user.
    pub file: String,
    /// The position in it, where there is one.
    pub position: Option<Position>,
}

/// Line and column, both counted from 1, the column in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The character in the line.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.position {
            Some(Position { line, .. }) => write!(f, "{}:{line}", self.file),
            None => f.write_str(&self.file),
        }
    }
}

/// All mistakes in a configuration file, in the order of its lines; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, error) in self.0.iter().enumerate() {
            let end_of_line = if n == 0 { "" } else { "\n" };
            write!(f, "{end_of_line}{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// A value and the offset in the text where it stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct At<T> {
    pub(crate) value: T,
    pub(crate) at: usize,
}

/// Why a value is refused, and what to write instead.
#[derive(Debug)]
pub(crate) struct Complaint {
    pub(crate) why: String,
    pub(crate) next: String,
}

impl Complaint {
    pub(crate) fn new(why: impl Into<String>, next: impl Into<String>) -> Self {
        Self { why: why.into(), next: next.into() }
    }
}

/// The mistakes found so far in one text.
#[derive(Debug)]
pub(crate) struct Report<'t> {
    file: &'t str,
    text: &'t str,
    line_starts: Vec<usize>,
    errors: Vec<(usize, ConfigError)>,
    /// Keys that nobody knows, with the tables that they stand in: each may be meant for one that is missing.
    strange: Vec<(String, &'static str)>,
}

impl<'t> Report<'t> {
    pub(crate) fn new(file: &'t str, text: &'t str) -> Self {
        let after_newlines = text.match_indices('\n').map(|(at, _)| at + 1);
        let line_starts = std::iter::once(0).chain(after_newlines).collect();
        Self { file, text, line_starts, errors: Vec::new(), strange: Vec::new() }
    }

    /// The line and column of an offset; an offset behind the end counts as the end.
    pub(crate) fn position(&self, at: usize) -> Position {
        let at = at.min(self.text.len());
        let line = self.line_starts.partition_point(|&start| start <= at);
        let start = self.line_starts.get(line.saturating_sub(1)).copied().unwrap_or(0);
        let before = self.text.get(start..at).unwrap_or("");
        Position { line, column: before.chars().count() + 1 }
    }

    /// The line of an offset.
    pub(crate) fn line(&self, at: usize) -> usize {
        self.position(at).line
    }

    /// How many mistakes were found so far.
    pub(crate) fn count(&self) -> usize {
        self.errors.len()
    }

    /// What stands at a place of the text.
    pub(crate) fn written(&self, at: Range<usize>) -> &'t str {
        self.text.get(at).unwrap_or_default()
    }

    fn is_right(&self, at: &Range<usize>) -> bool {
        !self.errors.iter().any(|(mistake, _)| at.contains(mistake))
    }

    /// Whether an unknown key may be this one of that table, misspelt or misplaced.
    fn may_be_misspelt(&self, schema: &Schema, key: &str) -> bool {
        let tables = [schema.place(), schema::ROOT.place()];
        self.strange.iter().any(|(name, table)| name == key || tables.contains(table))
    }

    /// Adds one mistake.
    pub(crate) fn add(
        &mut self,
        at: usize,
        what: impl AsRef<str>,
        why: impl AsRef<str>,
        next: impl AsRef<str>,
    ) {
        let place = Place { file: self.file.to_owned(), position: Some(self.position(at)) };
        let error = ConfigError {
            place,
            what: on_one_line(what.as_ref()),
            why: on_one_line(why.as_ref()),
            next: on_one_line(next.as_ref()),
        };
        self.errors.push((at, error));
    }

    /// The mistakes in the order of the text.
    pub(crate) fn into_errors(mut self) -> ConfigErrors {
        self.errors.sort_by_key(|&(at, _)| at);
        ConfigErrors(self.errors.into_iter().map(|(_, error)| error).collect())
    }
}

/// Control characters out of the user's file are shown escaped, so that an error stays on one line.
fn on_one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}

/// One table of the file with the keys it may have; asking an absent table finds nothing.
#[derive(Debug)]
pub(crate) struct Section<'d, 'i> {
    schema: &'static Schema,
    table: Option<&'d DeTable<'i>>,
    at: usize,
    /// It is written, and is no table.
    is_lost: bool,
}

impl<'d, 'i> Section<'d, 'i> {
    /// Takes a table and reports the keys that it should not have.
    pub(crate) fn open(
        report: &mut Report<'_>,
        schema: &'static Schema,
        table: &'d DeTable<'i>,
        at: usize,
    ) -> Self {
        for key in table.keys().filter(|key| schema.key(key.get_ref()).is_none()) {
            unknown_key(report, schema, key.get_ref(), key.span().start);
        }
        Self { schema, table: Some(table), at, is_lost: false }
    }

    fn absent(schema: &'static Schema) -> Self {
        Self { schema, table: None, at: 0, is_lost: false }
    }

    /// How the table is called in a sentence.
    pub(crate) fn place(&self) -> &'static str {
        self.schema.place()
    }

    /// Where the value of a key stands; where the table starts when the key is absent.
    pub(crate) fn at(&self, key: &str) -> usize {
        self.find(key).map_or(self.at, |value| value.span().start)
    }

    /// Whether the key is written at all, rightly or wrongly.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.find(key).is_some()
    }

    /// Whether that is known which the key says: it is written without a mistake, or left out. A key that is missing beside
    /// an unknown one may be that one. What is checked against other tables must be sound: from guesses follow no mistakes.
    pub(crate) fn is_sound(&self, report: &Report<'_>, key: &str) -> bool {
        match self.find(key) {
            Some(value) => report.is_right(&value.span()),
            None => !self.is_lost && !report.may_be_misspelt(self.schema, key),
        }
    }

    fn find(&self, key: &str) -> Option<&'d Spanned<DeValue<'i>>> {
        debug_assert!(self.schema.key(key).is_some(), "{key} is not in the schema of {}", self.place());
        self.table?.get(key)
    }

    /// The table under a key.
    pub(crate) fn table(&self, report: &mut Report<'_>, key: &str, schema: &'static Schema) -> Self {
        let Some(value) = self.find(key) else { return Self::absent(schema) };
        let at = value.span().start;
        let Some(table) = value.get_ref().as_table() else {
            self.mistyped(report, key, at, "a table", kind(value.get_ref()));
            return Self { at, is_lost: true, ..Self::absent(schema) };
        };
        Self::open(report, schema, table, at)
    }

    /// The tables under a key that may be written many times.
    pub(crate) fn tables(&self, report: &mut Report<'_>, key: &str, schema: &'static Schema) -> Vec<Self> {
        let mut sections = Vec::new();
        for value in self.elements(report, key, "a list of tables") {
            let at = value.span().start;
            match value.get_ref().as_table() {
                Some(table) => sections.push(Self::open(report, schema, table, at)),
                None => self.mistyped_element(report, key, value, "a list of tables"),
            }
        }
        sections
    }

    /// True or false under a key.
    pub(crate) fn boolean(&self, report: &mut Report<'_>, key: &str) -> Option<bool> {
        let value = self.find(key)?;
        let found = value.get_ref().as_bool();
        if found.is_none() {
            self.mistyped(report, key, value.span().start, "true or false", kind(value.get_ref()));
        }
        found
    }

    /// A number under a key, within bounds.
    pub(crate) fn integer(
        &self,
        report: &mut Report<'_>,
        key: &str,
        bounds: RangeInclusive<u32>,
        why: &str,
    ) -> Option<u32> {
        let value = self.find(key)?;
        let at = value.span().start;
        let Some(written) = value.get_ref().as_integer() else {
            self.mistyped(report, key, at, "an integer", kind(value.get_ref()));
            return None;
        };
        self.bounded(report, key, at, written, bounds, why)
    }

    /// A list of numbers under a key, each within bounds.
    pub(crate) fn integers(
        &self,
        report: &mut Report<'_>,
        key: &str,
        bounds: RangeInclusive<u32>,
        why: &str,
    ) -> Option<Vec<At<u32>>> {
        self.find(key)?;
        let mut numbers = Vec::new();
        for value in self.elements(report, key, "a list of integers") {
            let at = value.span().start;
            let Some(written) = value.get_ref().as_integer() else {
                self.mistyped_element(report, key, value, "a list of integers");
                continue;
            };
            let number = self.bounded(report, key, at, written, bounds.clone(), why);
            numbers.extend(number.map(|value| At { value, at }));
        }
        Some(numbers)
    }

    fn bounded(
        &self,
        report: &mut Report<'_>,
        key: &str,
        at: usize,
        written: &DeInteger<'_>,
        bounds: RangeInclusive<u32>,
        why: &str,
    ) -> Option<u32> {
        let number = i128::from_str_radix(written.as_str(), written.radix()).ok();
        let fitting = number.and_then(|n| u32::try_from(n).ok()).filter(|n| bounds.contains(n));
        if fitting.is_none() {
            let (min, max) = (bounds.start(), bounds.end());
            let reason = format!("it must be {min} to {max} ({why})");
            self.refuse(report, key, At { value: &written.to_string(), at }, Complaint::new(reason, ""));
        }
        fitting
    }

    /// A text under a key, made into what it means.
    pub(crate) fn text<T>(
        &self,
        report: &mut Report<'_>,
        key: &str,
        parse: impl FnOnce(&'d str) -> Result<T, Complaint>,
    ) -> Option<T> {
        let value = self.find(key)?;
        let at = value.span().start;
        let Some(text) = value.get_ref().as_str() else {
            self.mistyped(report, key, at, "a string", kind(value.get_ref()));
            return None;
        };
        parse(text).map_err(|complaint| self.refuse(report, key, At { value: text, at }, complaint)).ok()
    }

    /// The same for a key that must be there.
    pub(crate) fn required<T>(
        &self,
        report: &mut Report<'_>,
        key: &str,
        parse: impl FnOnce(&'d str) -> Result<T, Complaint>,
    ) -> Option<T> {
        self.demand(report, key);
        self.text(report, key, parse)
    }

    /// Reports a key that is absent.
    pub(crate) fn demand(&self, report: &mut Report<'_>, key: &str) {
        if !self.has(key) {
            let what = format!("`{key}` is missing in {}", self.place());
            report.add(self.at, what, "it has no default", self.usage(key));
        }
    }

    /// A list of texts under a key, each made into what it means; those that mean nothing are left out.
    pub(crate) fn texts<T>(
        &self,
        report: &mut Report<'_>,
        key: &str,
        parse: impl Fn(&'d str) -> Result<T, Complaint>,
    ) -> Option<Vec<At<T>>> {
        self.find(key)?;
        let mut found = Vec::new();
        for value in self.elements(report, key, "a list of strings") {
            let at = value.span().start;
            let Some(text) = value.get_ref().as_str() else {
                self.mistyped_element(report, key, value, "a list of strings");
                continue;
            };
            match parse(text) {
                Ok(value) => found.push(At { value, at }),
                Err(complaint) => self.refuse(report, key, At { value: text, at }, complaint),
            }
        }
        Some(found)
    }

    /// The elements of a list without those that were there before, which are reported.
    pub(crate) fn distinct<T, K: Eq + Hash + fmt::Display>(
        &self,
        report: &mut Report<'_>,
        key: &str,
        mut list: Vec<At<T>>,
        identity: impl Fn(&T) -> K,
    ) -> Vec<At<T>> {
        let mut seen = HashSet::with_capacity(list.len());
        list.retain(|element| {
            let id = identity(&element.value);
            if seen.contains(&id) {
                let value = At { value: &*id.to_string(), at: element.at };
                self.refuse(
                    report,
                    key,
                    value,
                    Complaint::new("it is listed twice", "remove one of the two"),
                );
                return false;
            }
            seen.insert(id)
        });
        list
    }

    /// Whether the value of a key is a text rather than a list.
    pub(crate) fn is_text(&self, key: &str) -> bool {
        self.find(key).is_some_and(|value| value.get_ref().is_str())
    }

    fn elements(&self, report: &mut Report<'_>, key: &str, expected: &str) -> &'d [Spanned<DeValue<'i>>] {
        let Some(value) = self.find(key) else { return &[] };
        match value.get_ref().as_array() {
            Some(array) => array,
            None => {
                self.mistyped(report, key, value.span().start, expected, kind(value.get_ref()));
                &[]
            }
        }
    }

    fn mistyped(&self, report: &mut Report<'_>, key: &str, at: usize, expected: &str, found: &str) {
        let what = format!("`{key}` in {} has the wrong type", self.place());
        report.add(at, what, format!("expected {expected}, found {found}"), self.usage(key));
    }

    fn mistyped_element(
        &self,
        report: &mut Report<'_>,
        key: &str,
        value: &Spanned<DeValue<'_>>,
        expected: &str,
    ) {
        let found = format!("{} in it", kind(value.get_ref()));
        self.mistyped(report, key, value.span().start, expected, &found);
    }

    /// Reports a value that has the right type and cannot be taken; without advice the example is given.
    pub(crate) fn refuse(&self, report: &mut Report<'_>, key: &str, value: At<&str>, complaint: Complaint) {
        let what = format!("`{key}` in {} is '{}'", self.place(), value.value);
        let next = if complaint.next.is_empty() { self.usage(key) } else { complaint.next };
        report.add(value.at, what, complaint.why, next);
    }

    fn usage(&self, key: &str) -> String {
        let example = self.schema.key(key).map_or("", |key| key.example);
        format!("write for example `{example}`")
    }
}

/// One of a few words, or the nearest of them.
pub(crate) fn choose<T: Copy>(choices: &[(&str, T)], text: &str) -> Result<T, Complaint> {
    if let Some((_, value)) = choices.iter().find(|(word, _)| *word == text) {
        return Ok(*value);
    }
    let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
    let why = format!("known are '{}'", words.join("', '"));
    let cure = nearest(text, &words)
        .map_or("write one of them".to_owned(), |word| format!("did you mean '{word}'?"));
    Err(Complaint::new(why, cure))
}

fn unknown_key(report: &mut Report<'_>, schema: &Schema, key: &str, at: usize) {
    report.strange.push((key.to_owned(), schema.place()));
    let what = format!("unknown key `{key}` in {}", schema.place());
    let elsewhere = schema::ALL.iter().find(|other| other.key(key).is_some());
    if let Some(other) = elsewhere {
        return report.add(
            at,
            what,
            format!("it belongs in {}", other.place()),
            format!("move it to {}", other.place()),
        );
    }
    let names: Vec<&str> = schema.keys().map(|key| key.name).collect();
    let why = format!("known are {}", names.join(", "));
    let cure =
        nearest(key, &names).map_or("take it out".to_owned(), |name| format!("did you mean `{name}`?"));
    report.add(at, what, why, cure);
}

/// The word that was probably meant: about a third of it is written otherwise at most, of a short one a letter.
pub(crate) fn nearest<'w>(written: &str, words: &[&'w str]) -> Option<&'w str> {
    let distance = |word: &str| strsim::damerau_levenshtein(written, word);
    let near = words.iter().copied().min_by_key(|word| distance(word))?;
    (distance(near) <= near.len().div_ceil(3).max(1)).then_some(near)
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
