//! TSP over UDP: eight octets in front of each message that belong to the client (RFC 5572 section 4.4.1.2, figure 7), and
//! the stateless question by which clients time brokers.
//!
//! A server copies the header into its answer and reads nothing but the sequence number, to know a repeated message from
//! a new one. Knows no session.

use super::codec::skip_nul;

/// Octets of a header.
pub const HEADER: usize = 8;
/// The sequence number that deployed clients begin every session with, and old servers want to see.
pub const FIRST_SEQUENCE: u32 = 0xF0;
/// The question that needs no session.
const ECHO: &[u8] = b"ECHO REQUEST";
/// What payloads begin with; only these are believed of a client that writes its header back to front.
const KEYWORDS: [&[u8]; 4] = [b"VERSION=", b"AUTHENTICATE ", b"Content-length:", ECHO];

/// The header of one datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Header([u8; HEADER]);

impl Header {
    /// The header of a client's message: 28 bits of sequence, milliseconds of any clock.
    pub fn new(sequence: u32, timestamp: u32) -> Self {
        let [a, b, c, d] = (0xF000_0000 | sequence & 0x0FFF_FFFF).to_be_bytes();
        let [e, f, g, h] = timestamp.to_be_bytes();
        Self([a, b, c, d, e, f, g, h])
    }

    /// What names a message together with its payload: a repeated one has another timestamp.
    pub fn sequence(self) -> u32 {
        let [a, b, c, d, ..] = self.0;
        u32::from_be_bytes([a, b, c, d])
    }

    /// The client's clock when it was sent.
    pub fn timestamp(self) -> u32 {
        let [.., a, b, c, d] = self.0;
        u32::from_be_bytes([a, b, c, d])
    }

    /// The octets, then `payload`.
    pub fn wrap(self, payload: &[u8]) -> Vec<u8> {
        [&self.0, payload].concat()
    }
}

/// A datagram that came to the port and is not IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Datagram<'a> {
    /// A message of a session.
    Message {
        /// What its answer begins with.
        header: Header,
        /// The message itself; empty: "what else have you to say?"
        payload: &'a [u8],
    },
    /// Are you there? Answered at once, to anybody, and forgotten.
    Echo(Option<Header>),
}

impl<'a> Datagram<'a> {
    /// Reads one; `None`: it is nothing of ours. `known_legacy` says that its sender writes headers back to front, so
    /// that payloads without a keyword are believed too.
    pub fn parse(datagram: &'a [u8], known_legacy: bool) -> Option<Self> {
        if is_echo(datagram) {
            return Some(Self::Echo(None));
        }
        let (head, payload) = datagram.split_first_chunk::<HEADER>()?;
        let header = Header(*head);
        let is_legacy = head[3] >> 4 == 0xF && (known_legacy || begins_with_keyword(payload));
        if head[0] >> 4 != 0xF && !is_legacy {
            return None;
        }
        Some(if is_echo(payload) { Self::Echo(Some(header)) } else { Self::Message { header, payload } })
    }

    /// The answer to [`Self::Echo`]: hardly longer than the question, so that it serves nobody to forge the sender.
    pub fn echo_reply(header: Option<Header>) -> Vec<u8> {
        match header {
            Some(header) => header.wrap(b"200 Success\r\n"),
            None => b"200 Success".to_vec(),
        }
    }
}

impl Header {
    /// Whether it was written back to front: the 0xF is in the fourth octet alone.
    pub fn is_legacy(self) -> bool {
        self.0[0] >> 4 != 0xF
    }
}

fn is_echo(payload: &[u8]) -> bool {
    payload.get(..ECHO.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(ECHO))
}

fn begins_with_keyword(payload: &[u8]) -> bool {
    let payload = skip_nul(payload);
    KEYWORDS
        .iter()
        .any(|word| payload.get(..word.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(word)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(octets: [u8; 8]) -> Header {
        Header(octets)
    }

    #[test]
    fn the_first_octets_on_the_wire() {
        let first = Header::new(FIRST_SEQUENCE, 0xa5).wrap(b"VERSION=2.0.2\r\n");
        assert_eq!(first[..8], [0xf0, 0, 0, 0xf0, 0, 0, 0, 0xa5]);
        let Some(Datagram::Message { header, payload }) = Datagram::parse(&first, false) else { panic!() };
        assert_eq!((header.sequence(), header.timestamp(), payload.len()), (0xf000_00f0, 0xa5, 15));
        assert!(!header.is_legacy());
        assert_eq!(header.wrap(payload), first, "to the octet");
    }

    #[test]
    fn polls_are_messages_without_a_payload() {
        let poll = [0xf0, 0, 0, 0xf3, 0, 0, 0, 0xa7];
        assert_eq!(
            Datagram::parse(&poll, false),
            Some(Datagram::Message { header: header(poll), payload: b"" })
        );
    }

    #[test]
    fn old_clients_write_back_to_front() {
        let old = [[0, 0, 0, 0xf0, 1, 2, 3, 4].as_slice(), b"VERSION=2.0.0\r\n"].concat();
        let Some(Datagram::Message { header, .. }) = Datagram::parse(&old, false) else { panic!() };
        assert!(header.is_legacy());
        let login = [[2, 0, 0, 0xf0, 1, 2, 3, 4].as_slice(), b"\0alice\0wonderland\r\n"].concat();
        assert_eq!(Datagram::parse(&login, false), None);
        assert!(Datagram::parse(&login, true).is_some());
    }

    #[test]
    fn the_question_that_needs_no_session() {
        let asked = Header::new(1, 2).wrap(b"ECHO REQUEST");
        let Some(Datagram::Echo(header)) = Datagram::parse(&asked, false) else { panic!() };
        assert_eq!(Datagram::echo_reply(header).len(), 21);
        assert_eq!(Datagram::parse(b"ECHO REQUEST", false), Some(Datagram::Echo(None)));
        assert!(Datagram::echo_reply(None).len() < b"ECHO REQUEST".len(), "nothing to gain by forging");
    }

    #[test]
    fn what_is_not_ours() {
        for other in [&b""[..], &[0xf0; 7], b"GET / HTTP/1.1\r\n", &[0x45; 40], &[0; 8]] {
            assert_eq!(Datagram::parse(other, false), None, "{other:?}");
        }
    }

    proptest! {
        #[test]
        fn a_header_comes_back_as_it_came(octets in prop::collection::vec(any::<u8>(), 0..64), legacy: bool) {
            if let Some(Datagram::Message { header, payload }) = Datagram::parse(&octets, legacy) {
                prop_assert_eq!(header.wrap(payload), octets);
            }
        }
    }
}
