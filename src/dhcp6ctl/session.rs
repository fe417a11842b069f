//! The receiving end: octets of a connection to a message, and a message to an order or a refusal; pure.
//!
//! The order of the checks is the old program's; the one against repeated messages is ours, and comes last of those that
//! need no look at the command. `now` is Unix seconds.

use std::collections::{HashSet, VecDeque};

use zeroize::Zeroizing;

use super::codec::{DIGEST, HEADER, MAX_MESSAGE, Message, Order, Unclear, announced};

/// How far a message's time may be from the clock, in seconds; that far is still good.
pub const WINDOW: u32 = 300;
/// How long a digest is remembered, in seconds: longer than a message can be good.
pub const MEMORY: u64 = 2 * WINDOW as u64;
/// The most digests that are remembered.
pub const MAX_SEEN: usize = 1 << 16;

/// Which kind of process listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// `dhcp6s`.
    Server,
    /// `dhcp6c`.
    Client,
}

/// Why a message is not obeyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It says that it is longer than any may be.
    #[error("it is longer than {MAX_MESSAGE} octets")]
    TooLarge,
    /// Made before this process was there: whoever recorded it may be sending it again.
    #[error("it was made before this process started")]
    Before,
    /// Older or younger than [`WINDOW`].
    #[error("its time is more than {WINDOW} s from ours; set the clocks")]
    Time,
    /// Whoever made it does not know the secret.
    #[error("its digest is not made with our key; give both ends the same key file")]
    Digest,
    /// A version that nobody has described.
    #[error("its version is not 0")]
    Version,
    /// The same octets have been here before.
    #[error("it has been here before")]
    Repeated,
    /// More than [`MAX_SEEN`] messages within [`MEMORY`].
    #[error("more than {MAX_SEEN} commands came within {MEMORY} s")]
    TooMany,
    /// No such command here.
    #[error("its command is not known here")]
    Command,
    /// The arguments do not make sense.
    #[error("its arguments make no sense: {0}")]
    Arguments(Unclear),
}

/// Judges messages; one for all connections.
pub struct Judge {
    side: Side,
    secret: Zeroizing<Vec<u8>>,
    /// When this process began to listen; what was made before may have been obeyed by another.
    began: u64,
    seen: HashSet<[u8; DIGEST]>,
    /// When each of them is forgotten, oldest first.
    due: VecDeque<(u64, [u8; DIGEST])>,
}

impl std::fmt::Debug for Judge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Judge({:?}, {} seen)", self.side, self.seen.len())
    }
}

impl Judge {
    /// One who knows the secret, and obeys nothing that was made before `began`.
    pub fn new(side: Side, secret: Zeroizing<Vec<u8>>, began: u64) -> Self {
        Self { side, secret, began, seen: HashSet::new(), due: VecDeque::new() }
    }

    /// What a whole message orders.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn handle_message(&mut self, octets: &[u8], now: u64) -> Result<Order, Refusal> {
        // One that is not as long as it says has no digest that could be good.
        let message = Message::parse(octets).ok_or(Refusal::Digest)?;
        if !is_timely(message.time, now) {
            return Err(Refusal::Time);
        }
        // A clock that was set back since must not make us deaf.
        self.began = self.began.min(now);
        let digest = *message.digest.filter(|_| message.is_by(&self.secret)).ok_or(Refusal::Digest)?;
        if message.version != 0 {
            return Err(Refusal::Version);
        }
        if (message.time.wrapping_sub(self.began as u32) as i32) < 0 {
            return Err(Refusal::Before);
        }
        self.remember(digest, now)?;
        let order = match self.side {
            Side::Server => message.server_order(),
            Side::Client => message.client_order(),
        };
        order.map_err(|why| if why == Unclear::Command { Refusal::Command } else { Refusal::Arguments(why) })
    }

    fn remember(&mut self, digest: [u8; DIGEST], now: u64) -> Result<(), Refusal> {
        while let Some((_, old)) = self.due.front().filter(|(until, _)| *until < now) {
            self.seen.remove(old);
            self.due.pop_front();
        }
        if self.seen.contains(&digest) {
            return Err(Refusal::Repeated);
        }
        if self.due.len() >= MAX_SEEN {
            return Err(Refusal::TooMany);
        }
        self.seen.insert(digest);
        self.due.push_back((now + MEMORY, digest));
        Ok(())
    }
}

/// Times are compared in 32 bits that wrap, and those before 00:05 of 1970 were never good.
fn is_timely(time: u32, now: u64) -> bool {
    let apart = (now as u32).wrapping_sub(time) as i32;
    time >= WINDOW && apart.unsigned_abs() <= WINDOW
}

/// What has come over one connection: one message is read, and what follows it is not.
#[derive(Debug, Default)]
pub struct Inbox {
    octets: Vec<u8>,
}

/// What to do with a connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard<'a> {
    /// Wait for more.
    Part,
    /// Judge this, then close.
    Whole(&'a [u8]),
    /// Close at once: it would be too large.
    TooLarge,
}

impl Inbox {
    /// Takes what has come.
    pub fn handle_input(&mut self, octets: &[u8]) -> Heard<'_> {
        let room = MAX_MESSAGE - self.octets.len().min(MAX_MESSAGE);
        self.octets.extend_from_slice(&octets[..octets.len().min(room)]);
        let Some(header) = self.octets.first_chunk::<HEADER>() else { return Heard::Part };
        let len = announced(header);
        if len > MAX_MESSAGE {
            return Heard::TooLarge;
        }
        self.octets.get(..len).map_or(Heard::Part, Heard::Whole)
    }
}

#[cfg(test)]
mod tests {
    use super::super::codec::{IaKind, emit};
    use super::*;
    use proptest::prelude::*;

    fn key() -> Zeroizing<Vec<u8>> {
        Zeroizing::new((0..16).collect())
    }

    fn hex(line: &str) -> Vec<u8> {
        (0..line.len() / 2).map(|n| u8::from_str_radix(&line[2 * n..2 * n + 2], 16).unwrap()).collect()
    }

    /// The old server's verdict over what came, in our words.
    fn verdict(octets: &[u8], now: u64, side: Side) -> Result<Order, Refusal> {
        let mut judge = Judge::new(side, key(), now - u64::from(WINDOW));
        let mut inbox = Inbox::default();
        for octet in &octets[..octets.len() - 1] {
            match inbox.handle_input(&[*octet]) {
                Heard::Part => {}
                Heard::TooLarge => return Err(Refusal::TooLarge),
                Heard::Whole(message) => return judge.handle_message(message, now),
            }
        }
        match inbox.handle_input(&octets[octets.len() - 1..]) {
            Heard::Whole(message) => judge.handle_message(message, now),
            Heard::TooLarge => Err(Refusal::TooLarge),
            Heard::Part => panic!("a whole message is taken as a part"),
        }
    }

    #[test]
    fn all_cases_end_as_with_the_old_server() {
        let all: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/dhcp6ctl/cases.json")).unwrap();
        let cases = all["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 28);
        for case in cases {
            let octets = hex(case["message"].as_str().unwrap());
            let ours = verdict(&octets, case["now"].as_u64().unwrap(), Side::Server);
            let arguments = |why| Some(Err(Refusal::Arguments(why)));
            let expected = match case["verdict"].as_str().unwrap() {
                "reject: timestamp" => Some(Err(Refusal::Time)),
                "reject: authentication" => Some(Err(Refusal::Digest)),
                "reject: version" => Some(Err(Refusal::Version)),
                "reject: unknown command" => Some(Err(Refusal::Command)),
                "reject: unknown IA type" => arguments(Unclear::Ia),
                "reject: unknown target" => arguments(Unclear::Target),
                "reject: unknown binding type" => arguments(Unclear::Binding),
                "reject: DUID length mismatch" => arguments(Unclear::Duid),
                "reject: too large, as soon as the header is read" => Some(Err(Refusal::TooLarge)),
                text if text.starts_with("ignore: invalid length") => arguments(Unclear::Length),
                text if text.starts_with("reject (nothing") => arguments(Unclear::Length),
                // "execute ...", "original removes ...".
                _ => None,
            };
            match (&ours, expected) {
                (Ok(_), None) => {}
                (ours, Some(expected)) => assert_eq!(*ours, expected, "{}", case["name"]),
                (ours, None) => panic!("{}: {ours:?}", case["name"]),
            }
            if case["name"].as_str().unwrap().contains("type IA_NA but") {
                let Ok(Order::Remove(binding)) = ours else { panic!("{ours:?}") };
                assert_eq!((binding.kind, binding.iaid), (IaKind::Na, 1), "the kind that is named is meant");
            }
        }
    }

    #[test]
    fn one_message_works_once() {
        let mut judge = Judge::new(Side::Server, key(), 1_699_999_000);
        let octets = emit(&Order::Reload, 1_700_000_000, &key()).unwrap();
        for now in [1_699_999_700, 1_700_000_300] {
            let expected = if now < 1_700_000_000 { Ok(Order::Reload) } else { Err(Refusal::Repeated) };
            assert_eq!(judge.handle_message(&octets, now), expected);
        }
        // After its time it is refused for that, and forgotten.
        assert_eq!(judge.handle_message(&octets, 1_700_000_301), Err(Refusal::Time));
        let later = emit(&Order::Stop, 1_700_000_301, &key()).unwrap();
        assert_eq!(judge.handle_message(&later, 1_700_000_301), Ok(Order::Stop));
        assert_eq!(judge.seen.len(), 1);
    }

    #[test]
    fn what_stopped_one_process_does_not_stop_the_next() {
        let octets = emit(&Order::Stop, 1_700_000_000, &key()).unwrap();
        let mut first = Judge::new(Side::Server, key(), 1_699_999_990);
        assert_eq!(first.handle_message(&octets, 1_700_000_000), Ok(Order::Stop));
        let mut next = Judge::new(Side::Server, key(), 1_700_000_001);
        assert_eq!(next.handle_message(&octets, 1_700_000_002), Err(Refusal::Before));
        let fresh = emit(&Order::Stop, 1_700_000_001, &key()).unwrap();
        assert_eq!(next.handle_message(&fresh, 1_700_000_002), Ok(Order::Stop), "in the second of the start");
        // The clock was wrong at the start, and has been set back by an hour.
        let later = emit(&Order::Reload, 1_699_996_400, &key()).unwrap();
        assert_eq!(next.handle_message(&later, 1_699_996_400), Ok(Order::Reload));
    }

    #[test]
    fn memory_is_bounded() {
        let mut judge = Judge::new(Side::Server, key(), 0);
        for n in 0..MAX_SEEN {
            let mut digest = [0; DIGEST];
            digest[..8].copy_from_slice(&n.to_be_bytes());
            assert_eq!(judge.remember(digest, 7), Ok(()));
        }
        assert_eq!(judge.remember([9; DIGEST], 7 + MEMORY), Err(Refusal::TooMany));
        assert_eq!(judge.remember([9; DIGEST], 8 + MEMORY), Ok(()));
        assert_eq!((judge.seen.len(), judge.due.len()), (1, 1));
    }

    #[test]
    fn a_client_is_told_other_things() {
        let start = hex("0003001c000000006553f100725ab858ebfdc6595cbbc2696598f0b5000000040000000476733000");
        let ours = verdict(&start, 1_700_000_000, Side::Client);
        assert!(matches!(ours, Ok(Order::Start(name)) if name.as_str() == "vs0"));
        let remove = emit(
            &Order::Remove(super::super::codec::Binding { kind: IaKind::Na, iaid: 1, duid: vec![1] }),
            1_700_000_000,
            &key(),
        );
        assert_eq!(verdict(&remove.unwrap(), 1_700_000_000, Side::Client), Err(Refusal::Command));
        for name in ["a123456789012345", "a1234567890123456"] {
            let line = include_str!("../../tests/dhcp6ctl/client.hex").lines();
            let long = line.skip_while(|line| !line.contains(&format!(" {name} "))).nth(1).unwrap();
            let ours = verdict(&hex(long), 1_795_212_572, Side::Client);
            assert_eq!(ours, Err(Refusal::Arguments(Unclear::Name)));
        }
    }

    proptest! {
        #[test]
        fn an_inbox_takes_any_octets_in_any_pieces(octets in prop::collection::vec(any::<u8>(), 0..3000), size in 1_usize..700) {
            let mut inbox = Inbox::default();
            for piece in octets.chunks(size) {
                match inbox.handle_input(piece) {
                    Heard::Part => {}
                    Heard::TooLarge => break,
                    Heard::Whole(message) => {
                        prop_assert!(octets.starts_with(message));
                        break;
                    }
                }
                prop_assert!(inbox.octets.len() <= MAX_MESSAGE);
            }
        }
    }
}
