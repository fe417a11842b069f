//! Reconfigure messages on their way (RFC 8415 sections 18.3.11 and 15): to whom, how often, and when the next is due. Pure.
//!
//! One message for each client, sent again after about 2, 4, 8 ... seconds, eight times in all, until the client has asked. `now`
//! is the time since any beginning. What a message says is not looked at.

use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Duration;

/// The time to the second try (REC_TIMEOUT, RFC 8415 section 7.6).
pub const FIRST: Duration = Duration::from_secs(2);
/// How often a message is sent (REC_MAX_RC).
pub const TRIES: u32 = 8;
/// The most clients that are called at a time; further ones are counted.
pub const MOST: usize = 65_536;
/// Between the first messages of two clients: all of them at once would come back at once.
const APART: Duration = Duration::from_millis(1);

/// A client.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Called {
    /// The tunnel or link that it is in.
    pub tunnel: Arc<str>,
    /// What it calls itself.
    pub client: Arc<[u8]>,
}

/// What is sent to a client again and again.
#[derive(Debug)]
struct Call {
    to: (Ipv6Addr, u16),
    octets: Vec<u8>,
    tries: u32,
    due: Duration,
}

/// All clients that are being called.
#[derive(Debug, Default)]
pub struct Calls {
    all: HashMap<Called, Call>,
    due: BTreeSet<(Duration, Called)>,
    /// When the next first message may leave.
    next: Duration,
    /// How many have not asked at all.
    pub unheard: u64,
    given_up: Vec<Called>,
}

impl Calls {
    /// From now on this client is called with this message, sent to this address and port, in the place of one before. Says no
    /// where there are [`MOST`].
    pub fn call(&mut self, now: Duration, who: Called, to: (Ipv6Addr, u16), octets: Vec<u8>) -> bool {
        self.handle_answer(&who);
        if self.all.len() >= MOST {
            return false;
        }
        let due = self.next.max(now);
        self.next = due + APART;
        self.due.insert((due, who.clone()));
        self.all.insert(who, Call { to, octets, tries: 0, due });
        true
    }

    /// The client has asked; says whether it had been called.
    pub fn handle_answer(&mut self, who: &Called) -> bool {
        let Some(call) = self.all.remove(who) else { return false };
        self.due.remove(&(call.due, who.clone()));
        true
    }

    /// Whether nobody is called.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// How many are called.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// When the next message is due.
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Those that have not asked at all, each once.
    pub fn poll_given_up(&mut self) -> Vec<Called> {
        std::mem::take(&mut self.given_up)
    }

    /// The next message that is due: for whom, to which address and port, and what.
    pub fn poll_call(&mut self, now: Duration) -> Option<(Called, (Ipv6Addr, u16), Vec<u8>)> {
        loop {
            self.due.first().filter(|(due, _)| *due <= now)?;
            let (_, who) = self.due.pop_first()?;
            let Some(call) = self.all.get_mut(&who) else { continue };
            if call.tries == TRIES {
                self.all.remove(&who);
                self.unheard += 1;
                self.given_up.push(who);
                continue;
            }
            call.due = now + after(&who, call.tries);
            call.tries += 1;
            self.due.insert((call.due, who.clone()));
            return Some((who, call.to, call.octets.clone()));
        }
    }
}

/// The time to the next try: twice as long each time, and a tenth more or less, other for each client.
fn after(who: &Called, tries: u32) -> Duration {
    let mut hasher = DefaultHasher::new();
    (who, tries).hash(&mut hasher);
    // 900 to 1100 thousandths.
    let thousandths = 900 + (hasher.finish() % 201) as u32;
    FIRST * 2_u32.pow(tries) * thousandths / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(n: u8) -> Called {
        Called { tunnel: "t".into(), client: [n].into() }
    }

    /// RFC: V34 (RFC 8415 sections 15 and 18.3.11)
    #[test]
    fn a_client_is_called_eight_times_and_each_time_later() {
        let (mut calls, to) = (Calls::default(), ("fe80::1".parse().unwrap(), 546));
        calls.call(Duration::from_secs(10), who(1), to, vec![10]);
        let mut times = Vec::new();
        while let Some(due) = calls.poll_timeout() {
            assert_eq!(calls.poll_call(due.saturating_sub(Duration::from_millis(1))), None);
            if let Some((called, at, octets)) = calls.poll_call(due) {
                assert_eq!((called, at, octets), (who(1), to, vec![10]));
                times.push(due.as_secs_f64());
            }
        }
        assert_eq!(times.len(), TRIES as usize);
        for (n, pair) in times.windows(2).enumerate() {
            let factor = (pair[1] - pair[0]) / f64::from(2 << n);
            assert!((0.9..=1.1).contains(&factor), "{times:?}");
        }
        assert_eq!((calls.unheard, calls.len()), (1, 0));
        assert_eq!((calls.poll_given_up(), calls.poll_given_up()), (vec![who(1)], vec![]));
    }

    #[test]
    fn who_has_asked_is_not_called_again() {
        let (mut calls, to) = (Calls::default(), ("fe80::1".parse().unwrap(), 546));
        calls.call(Duration::ZERO, who(1), to, vec![10]);
        calls.call(Duration::ZERO, who(2), to, vec![10]);
        assert!(calls.poll_call(Duration::ZERO).is_some());
        assert!(calls.poll_call(Duration::ZERO).is_none(), "not all at once");
        assert!(calls.handle_answer(&who(1)) && !calls.handle_answer(&who(1)));
        assert_eq!(calls.len(), 1);
        assert_eq!(calls.poll_call(APART).map(|(who, ..)| who), Some(who(2)));
        calls.call(Duration::from_secs(1), who(2), to, vec![11]);
        assert_eq!(calls.poll_call(Duration::from_secs(1)).map(|(.., octets)| octets), Some(vec![11]));
        assert_eq!(calls.len(), 1, "a new message takes the place of the one before");
    }

    #[test]
    fn there_are_bounds() {
        let (mut calls, to) = (Calls::default(), ("fe80::1".parse().unwrap(), 546));
        let who = |n: u32| Called { tunnel: "t".into(), client: n.to_be_bytes().into() };
        let all = (0..MOST as u32 + 3).filter(|n| calls.call(Duration::ZERO, who(*n), to, Vec::new()));
        assert_eq!((all.count(), calls.len()), (MOST, MOST));
    }
}
