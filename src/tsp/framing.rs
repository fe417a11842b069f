//! Messages in a stream and in datagrams: lines, then `Content-length` frames (RFC 5572 section 4.4.2), as deployed clients
//! cut them.
//!
//! Over TCP a message ends where its grammar says; over UDP where its datagram ends. Whatever is read is bounded by
//! [`MAX_REQUEST`]. Knows not what the messages mean.

use super::codec::{MAX_REQUEST, Status, skip_nul};

/// Why octets are no message. The session is over then: nobody knows where the next one begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadFrame {
    /// The line or the message is longer than any may be.
    #[error("a message has at most {MAX_REQUEST} octets")]
    TooLong,
    /// There is no `Content-length: N` in front.
    #[error("'Content-length: N' is expected in front of a request")]
    NoLength,
    /// Fewer octets than the length says, in a datagram.
    #[error("the request is shorter than its length says")]
    Short,
}

/// Octets of a connection that wait to become messages. Holds no memory while nothing waits.
#[derive(Debug)]
pub struct Input {
    octets: Vec<u8>,
    most: usize,
}

impl Default for Input {
    fn default() -> Self {
        Self::new(MAX_REQUEST)
    }
}

impl Input {
    /// Messages of at most `most` octets.
    pub fn new(most: usize) -> Self {
        Self { octets: Vec::new(), most }
    }

    /// Octets have come.
    pub fn push(&mut self, octets: &[u8]) {
        self.octets.extend_from_slice(octets);
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.octets.is_empty()
    }

    /// How many octets wait.
    pub fn len(&self) -> usize {
        self.octets.len()
    }

    /// The next line without its end; NULs and blank lines in front of it are passed over. A line ends with LF, or, as
    /// one embedded client has it, with CR and 0x08. `None`: more must come.
    ///
    /// # Errors
    /// [`BadFrame::TooLong`].
    pub fn line(&mut self) -> Result<Option<Vec<u8>>, BadFrame> {
        self.skip_blank();
        let Some((end, next)) = line_end(&self.octets) else {
            return if self.octets.len() > self.most { Err(BadFrame::TooLong) } else { Ok(None) };
        };
        if end > self.most {
            return Err(BadFrame::TooLong);
        }
        Ok(Some(self.take(next, end)))
    }

    /// The next `Content-length` frame without that line. `None`: more must come.
    ///
    /// # Errors
    /// [`BadFrame::TooLong`], [`BadFrame::NoLength`].
    pub fn frame(&mut self) -> Result<Option<Vec<u8>>, BadFrame> {
        self.skip_blank();
        let Some((end, next)) = line_end(&self.octets) else {
            let hopeless = self.octets.len() > LONGEST_LENGTH || !may_be_length(&self.octets);
            return if hopeless { Err(BadFrame::NoLength) } else { Ok(None) };
        };
        let len = length(&self.octets[..end]).ok_or(BadFrame::NoLength)?;
        if len > self.most {
            return Err(BadFrame::TooLong);
        }
        if self.octets.len() < next + len {
            return Ok(None);
        }
        let body = self.octets[next..next + len].to_vec();
        self.take(next + len, 0);
        Ok(Some(body))
    }

    /// Everything up to and with `end`: the list behind a redirection has no length. `None`: more must come.
    ///
    /// # Errors
    /// [`BadFrame::TooLong`].
    pub fn until(&mut self, end: &[u8]) -> Result<Option<Vec<u8>>, BadFrame> {
        let found = self.octets.windows(end.len().max(1)).position(|part| part == end);
        match found {
            Some(at) if at + end.len() <= self.most => {
                let len = at + end.len();
                Ok(Some(self.take(len, len)))
            }
            None if self.octets.len() <= self.most => Ok(None),
            Some(_) | None => Err(BadFrame::TooLong),
        }
    }

    fn skip_blank(&mut self) {
        let start = self.octets.iter().position(|b| !matches!(b, 0 | 0x08 | b'\r' | b'\n'));
        let start = start.unwrap_or(self.octets.len());
        if start > 0 {
            self.take(start, 0);
        }
    }

    /// Takes `len` octets away and returns the first `kept` of them.
    fn take(&mut self, len: usize, kept: usize) -> Vec<u8> {
        let rest = self.octets.split_off(len.min(self.octets.len()));
        let mut taken = std::mem::replace(&mut self.octets, rest);
        taken.truncate(kept);
        if self.octets.is_empty() {
            self.octets = Vec::new();
        }
        taken
    }
}

/// The longest `Content-length` line.
const LONGEST_LENGTH: usize = 64;
const LENGTH: &[u8] = b"content-length:";

/// Where the first line's text ends, and where the next line begins.
fn line_end(octets: &[u8]) -> Option<(usize, usize)> {
    let next = octets.iter().enumerate().position(|(n, b)| match b {
        b'\n' => true,
        0x08 => n > 0 && octets[n - 1] == b'\r',
        _ => false,
    })?;
    let end = if next > 0 && octets[next - 1] == b'\r' { next - 1 } else { next };
    Some((end, next + 1))
}

fn may_be_length(octets: &[u8]) -> bool {
    let begin = &octets[..octets.len().min(LENGTH.len())];
    begin.eq_ignore_ascii_case(&LENGTH[..begin.len()])
}

/// The number in a `Content-length` line without its end.
fn length(line: &[u8]) -> Option<usize> {
    let (name, number) = line.split_at_checked(LENGTH.len())?;
    let number = number.trim_ascii();
    let plain = (1..=9).contains(&number.len()) && number.iter().all(u8::is_ascii_digit);
    if !name.eq_ignore_ascii_case(LENGTH) || !plain {
        return None;
    }
    std::str::from_utf8(number).ok()?.parse().ok()
}

/// The body of the frame in a datagram; what stands behind it is not looked at.
///
/// # Errors
/// [`BadFrame`].
pub fn unframe(datagram: &[u8]) -> Result<&[u8], BadFrame> {
    let datagram = skip_nul(datagram);
    let (end, next) = line_end(datagram).ok_or(BadFrame::NoLength)?;
    let len = length(&datagram[..end]).ok_or(BadFrame::NoLength)?;
    if len > MAX_REQUEST {
        return Err(BadFrame::TooLong);
    }
    datagram.get(next..next + len).ok_or(BadFrame::Short)
}

/// `Content-length`, then `body`: the length counts every octet behind its own line (RFC 5572 section 4.4.2).
pub fn frame(body: &str) -> String {
    format!("Content-length: {}\r\n{body}", body.len())
}

/// A server's message, its frame taken off: the status, and the XML behind its line.
pub fn split_reply(body: &[u8]) -> Option<(Status, &[u8])> {
    let body = skip_nul(body);
    let status = Status::parse(body)?;
    let xml = line_end(body).map_or(&[][..], |(_, next)| &body[next..]);
    Some((status, xml))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tsp::codec::Code;
    use proptest::prelude::*;

    fn input(octets: &[u8]) -> Input {
        let mut input = Input::default();
        input.push(octets);
        input
    }

    fn lines(octets: &[u8]) -> Vec<String> {
        let mut input = input(octets);
        std::iter::from_fn(|| input.line().unwrap()).map(|line| String::from_utf8(line).unwrap()).collect()
    }

    #[test]
    fn lines_end_in_many_ways() {
        let said = b"VERSION=2.0.2\r\nAUTHENTICATE PLAIN\r\n\0\0alice\0wonderland\r\n\n\nx\r\x08y\nz";
        let wanted = ["VERSION=2.0.2", "AUTHENTICATE PLAIN", "alice\0wonderland", "x", "y"];
        assert_eq!(lines(said), wanted);
    }

    #[test]
    fn a_line_in_single_octets_is_a_line() {
        let mut input = Input::default();
        for octet in b"\0VERSION=2.0.2\r" {
            input.push(&[*octet]);
            assert_eq!(input.line(), Ok(None));
        }
        input.push(b"\n");
        assert_eq!(input.line(), Ok(Some(b"VERSION=2.0.2".to_vec())));
        assert!(input.is_empty() && input.octets.capacity() == 0, "a silent connection holds nothing");
    }

    #[test]
    fn nothing_is_longer_than_it_may_be() {
        assert_eq!(input(&[b'x'; MAX_REQUEST]).line(), Ok(None));
        assert_eq!(input(&[b'x'; MAX_REQUEST + 1]).line(), Err(BadFrame::TooLong));
        assert_eq!(input(b"Content-length: 4097\r\n").frame(), Err(BadFrame::TooLong));
        assert_eq!(input(b"Content-length: 99999999999999999999\r\n").frame(), Err(BadFrame::NoLength));
        assert_eq!(input(&[b'x'; 16]).frame(), Err(BadFrame::NoLength));
        assert_eq!(input(b"Content-le").frame(), Ok(None));
        let blanks = [b"Content-length:".as_slice(), &[b' '; 50]].concat();
        assert_eq!(input(&blanks).frame(), Err(BadFrame::NoLength));
        assert_eq!(unframe(b"Content-length: 5\r\nabcd"), Err(BadFrame::Short));
        assert_eq!(unframe(b"x"), Err(BadFrame::NoLength));
    }

    #[test]
    fn frames_are_counted_to_the_octet() {
        let accept = "<tunnel action=\"accept\"></tunnel>\r\n";
        assert_eq!(frame(accept), format!("Content-length: 35\r\n{accept}"));
        let mut two = input(format!("\0\r\n{}content-LENGTH:35\n{accept}", frame(accept)).as_bytes());
        assert_eq!(two.frame(), Ok(Some(accept.into())));
        assert_eq!(two.frame(), Ok(Some(accept.into())));
        assert_eq!(two.frame(), Ok(None));
        assert_eq!(unframe(format!("{}junk", frame(accept)).as_bytes()), Ok(accept.as_bytes()));
    }

    #[test]
    fn replies_fall_into_status_and_xml() {
        let (status, xml) = split_reply(b"200 Success\r\n<tunnel/>").unwrap();
        assert_eq!((status, xml), (Status::plain(Code::Success), &b"<tunnel/>"[..]));
        assert_eq!(split_reply(b"300").map(|(s, x)| (s.number(), x.len())), Some((300, 0)));
        assert_eq!(split_reply(b"<tunnel/>"), None);
        let mut list = input(b"<tunnel></tunnel>\r\nrest");
        assert_eq!(list.until(b"</tunnel>"), Ok(Some(b"<tunnel></tunnel>".to_vec())));
        assert_eq!(list.line(), Ok(None), "\\r\\n was passed over, and the rest has no end");
    }

    proptest! {
        #[test]
        fn whatever_comes_is_bounded_and_the_cut_does_not_matter(
            octets in prop::collection::vec(prop_oneof![any::<u8>(), Just(b'\n'), Just(b'\r'), Just(0)], 0..200), cut in 0..200usize,
        ) {
            let whole = lines_of(&[&octets]);
            let (a, b) = octets.split_at(cut.min(octets.len()));
            prop_assert_eq!(lines_of(&[a, b]), whole);
            let _either = (input(&octets).frame(), unframe(&octets).is_ok(), split_reply(&octets).is_some());
        }
    }

    fn lines_of(parts: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut input = Input::default();
        let mut found = Vec::new();
        for part in parts {
            input.push(part);
            while let Ok(Some(line)) = input.line() {
                found.push(line);
            }
        }
        found
    }
}
