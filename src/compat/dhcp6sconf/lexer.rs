//! Octets to tokens, as the old program's lexer cuts them: the longest match, and the narrower kind among equals.
//!
//! Three words change what comes next: after `duid` stands a DUID, and after some words (`host`, `pool`, ...) any word is a
//! name, a keyword or a number too. Knows no statement.

use std::sync::Arc;

use super::values::{Duid, DuidError};
use super::{Notes, Place};

/// What stands in the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// A keyword, an address, or a word that the operator chose.
    Word(String),
    /// A word where a name is expected: whatever it looks like.
    Name(String),
    /// Decimal digits; a fraction has been cut, and what is too long is the largest number.
    Number(u64),
    /// What stands between two `"`.
    Quoted(String),
    /// What stands after `duid`.
    Duid(Result<Duid, DuidError>),
    /// One of `{ } ; , /`.
    Punct(char),
    /// The end of the file.
    End,
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Word(word) | Self::Name(word) => write!(f, "'{}'", shortened(word)),
            Self::Number(number) => write!(f, "the number {number}"),
            Self::Quoted(text) => write!(f, "\"{}\"", shortened(text)),
            Self::Duid(Ok(duid)) => write!(f, "the DUID {duid}"),
            Self::Duid(Err(_)) => f.write_str("no DUID"),
            Self::Punct(sign) => write!(f, "'{sign}'"),
            Self::End => f.write_str("the end of the file"),
        }
    }
}

/// A text that fits a line, without control characters.
fn shortened(text: &str) -> String {
    let short: String = text.chars().take(60).flat_map(char::escape_debug).collect();
    if text.chars().count() > 60 { format!("{short}...") } else { short }
}

/// What the word before asks for.
#[derive(Clone, Copy)]
enum Expect {
    Anything,
    Name,
    Duid,
}

/// After these any word is a name.
const NAMING: &[&str] =
    &["host", "interface", "pool", "keyinfo", "authentication", "profile", "prefix-interface"];

/// A text on its way to tokens.
pub(super) struct Lexer<'a> {
    rest: &'a [u8],
    file: Arc<str>,
    line: usize,
    expect: Expect,
    /// The line that the last note about skipped characters is for.
    noted: usize,
    returns: bool,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(file: &str, text: &'a [u8]) -> Self {
        Self { rest: text, file: file.into(), line: 1, expect: Expect::Anything, noted: 0, returns: false }
    }

    pub(super) fn place(&self) -> Place {
        Place { file: Arc::clone(&self.file), line: self.line }
    }

    /// The next token and where it begins.
    pub(super) fn next(&mut self, notes: &mut Notes) -> (Token, Place) {
        loop {
            self.skip_blank();
            let place = self.place();
            let Some(first) = self.rest.first().copied() else { return (Token::End, place) };
            let token = match first {
                b'{' | b'}' | b';' | b',' | b'/' => {
                    self.take(1);
                    Some(Token::Punct(char::from(first)))
                }
                b'"' => self.quoted(),
                _ if is_word(first) => Some(self.word(notes, &place)),
                _ => None,
            };
            match token {
                Some(token) => return (token, place),
                None => self.skip(notes, &place),
            }
        }
    }

    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(len.min(self.rest.len()));
        self.line += taken.iter().filter(|octet| **octet == b'\n').count();
        self.rest = rest;
        taken
    }

    fn skip_blank(&mut self) {
        loop {
            let blank = self.rest.iter().take_while(|octet| matches!(octet, b' ' | b'\t' | b'\n')).count();
            self.take(blank);
            if self.rest.first() != Some(&b'#') {
                return;
            }
            let comment = self.rest.iter().take_while(|octet| **octet != b'\n').count();
            self.take(comment);
        }
    }

    /// A text in quotes; `None` for a `"` that has no second.
    fn quoted(&mut self) -> Option<Token> {
        let len = self.rest.iter().skip(1).position(|octet| *octet == b'"')?;
        let quoted = self.take(len + 2);
        Some(Token::Quoted(String::from_utf8_lossy(quoted.get(1..=len).unwrap_or_default()).into_owned()))
    }

    fn word(&mut self, notes: &mut Notes, place: &Place) -> Token {
        let len = self.rest.iter().take_while(|octet| is_word(**octet)).count();
        let word = String::from_utf8_lossy(self.take(len)).into_owned();
        match std::mem::replace(&mut self.expect, Expect::Anything) {
            Expect::Name => return Token::Name(word),
            Expect::Duid => return Token::Duid(word.parse()),
            Expect::Anything => {}
        }
        if let Some((whole, fraction)) = number(&word) {
            if fraction {
                notes.push(place, format!("only whole numbers count: {word} is {whole}"));
            }
            return Token::Number(whole);
        }
        if word == "duid" {
            self.expect = Expect::Duid;
        } else if NAMING.contains(&word.as_str()) {
            self.expect = Expect::Name;
        }
        Token::Word(word)
    }

    /// Leaves out a character that means nothing here: said once a line, and once a file for carriage returns.
    fn skip(&mut self, notes: &mut Notes, place: &Place) {
        let odd = self.take(1).first().copied().unwrap_or_default();
        if odd == b'\r' {
            if !std::mem::replace(&mut self.returns, true) {
                notes.push(place, "carriage returns at the ends of lines are skipped");
            }
        } else if std::mem::replace(&mut self.noted, place.line) != place.line {
            let shown = char::from(odd).escape_default();
            notes.push(place, format!("'{shown}' means nothing here and is skipped; remove it"));
        }
    }
}

fn is_word(octet: u8) -> bool {
    octet.is_ascii_alphanumeric() || matches!(octet, b':' | b'.' | b'_' | b'-')
}

/// Digits, perhaps with a fraction: the whole part, and whether there was a fraction.
fn number(word: &str) -> Option<(u64, bool)> {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|octet| octet.is_ascii_digit());
    let (whole, fraction) = match word.split_once('.') {
        None => (word, false),
        Some((whole, fraction)) if digits(fraction) => (whole, true),
        Some(_) => return None,
    };
    digits(whole).then(|| (whole.parse().unwrap_or(u64::MAX), fraction))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(text: &str) -> (Vec<Token>, Notes) {
        let mut lexer = Lexer::new("x", text.as_bytes());
        let mut notes = Notes::default();
        let mut all = Vec::new();
        loop {
            let (token, _) = lexer.next(&mut notes);
            if token == Token::End {
                return (all, notes);
            }
            all.push(token);
        }
    }

    fn word(text: &str) -> Token {
        Token::Word(text.to_owned())
    }

    #[test]
    fn the_longest_match_counts_and_numbers_come_before_words() {
        let (all, notes) = tokens("12 12.9 12. 12a ::1 2001:db8::/48;# x\n\"a\nb\"");
        let mut expected = vec![Token::Number(12), Token::Number(12), word("12."), word("12a"), word("::1")];
        expected.extend([word("2001:db8::"), Token::Punct('/'), Token::Number(48), Token::Punct(';')]);
        expected.push(Token::Quoted("a\nb".to_owned()));
        assert_eq!(all, expected);
        assert_eq!(notes.kept.len(), 1);
        assert_eq!(tokens("99999999999999999999").0, [Token::Number(u64::MAX)]);
    }

    #[test]
    fn names_and_duids_are_expected_where_they_are() {
        let name = |text: &str| Token::Name(text.to_owned());
        assert_eq!(tokens("host 123 pool range").0, [word("host"), name("123"), word("pool"), name("range")]);
        assert_eq!(tokens("duid # c\n 00:aB").0, [word("duid"), Token::Duid("00:ab".parse())]);
        assert_eq!(tokens("duid 0:1").0, [word("duid"), Token::Duid(Err(DuidError::Form))]);
    }

    #[test]
    fn what_means_nothing_is_skipped_and_said_once_a_line() {
        let (all, notes) = tokens("a @%@ b\r\nc\r\n\"d");
        assert_eq!(all, [word("a"), word("b"), word("c"), word("d")]);
        let said: Vec<String> = notes.kept.iter().map(ToString::to_string).collect();
        assert_eq!(said.len(), 3, "{said:?}");
        assert!(said[0].starts_with("x:1: '@'") && said[2].starts_with("x:3: '\\\"'"), "{said:?}");
    }
}
