//! Reconfigure messages on their way (RFC 8415 sections 18.3.11 and 15): to whom, how often, and when the next is due. Pure.
//!
//! One message for each client, sent again after about 2, 4, 8 ... seconds, eight times in all, until the client has sent what it
//! was called for, and nothing else will do. `now` is the time since any beginning. How a message is made is not known here.

use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use dhcproto::v6::MessageType;

use super::audience::Place;

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

/// What a client is sent again and again.
#[derive(Debug)]
struct Call {
    place: Place,
    wanted: MessageType,
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
    /// From now on this client is called at this place for a message of this type, and for none that it was called for before.
    /// Says no where there are [`MOST`].
    pub fn call(&mut self, now: Duration, who: Called, place: Place, wanted: MessageType) -> bool {
        self.call_off(&who);
        if self.all.len() >= MOST {
            return false;
        }
        let due = self.next.max(now);
        self.next = due + APART;
        self.due.insert((due, who.clone()));
        self.all.insert(who, Call { place, wanted, tries: 0, due });
        true
    }

    /// What a client is being called for.
    pub fn wanted(&self, who: &Called) -> Option<MessageType> {
        self.all.get(who).map(|call| call.wanted)
    }

    /// The client has sent a message of this type; says whether that was what it had been called for.
    pub fn handle_message(&mut self, who: &Called, kind: MessageType) -> bool {
        self.wanted(who) == Some(kind) && self.call_off(who)
    }

    /// The client is not called any more; says whether it was.
    pub fn call_off(&mut self, who: &Called) -> bool {
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

    /// The next message that is due: for whom, where that is, and what it is to ask for.
    pub fn poll_call(&mut self, now: Duration) -> Option<(Called, Place, MessageType)> {
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
            return Some((who, call.place.clone(), call.wanted));
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
        let (mut calls, to) = (Calls::default(), Place::on_link("fe80::1".parse().unwrap()));
        calls.call(Duration::from_secs(10), who(1), to.clone(), MessageType::Renew);
        let mut times = Vec::new();
        while let Some(due) = calls.poll_timeout() {
            assert_eq!(calls.poll_call(due.saturating_sub(Duration::from_millis(1))), None);
            if let Some(call) = calls.poll_call(due) {
                assert_eq!(call, (who(1), to.clone(), MessageType::Renew));
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
        let (mut calls, to) = (Calls::default(), Place::on_link("fe80::1".parse().unwrap()));
        calls.call(Duration::ZERO, who(1), to.clone(), MessageType::Rebind);
        calls.call(Duration::ZERO, who(2), to.clone(), MessageType::Renew);
        assert!(calls.poll_call(Duration::ZERO).is_some());
        assert!(calls.poll_call(Duration::ZERO).is_none(), "not all at once");
        assert!(!calls.handle_message(&who(1), MessageType::Renew), "it was called for something else");
        assert!(calls.handle_message(&who(1), MessageType::Rebind));
        assert!(!calls.handle_message(&who(1), MessageType::Rebind));
        assert_eq!(calls.len(), 1);
        assert_eq!(calls.poll_call(APART).map(|(who, ..)| who), Some(who(2)));
        calls.call(Duration::from_secs(1), who(2), to, MessageType::Rebind);
        assert_eq!(
            calls.poll_call(Duration::from_secs(1)).map(|(.., wanted)| wanted),
            Some(MessageType::Rebind)
        );
        assert_eq!(calls.len(), 1, "a new call takes the place of the one before");
    }

    #[test]
    fn there_are_bounds() {
        let (mut calls, to) = (Calls::default(), Place::on_link("fe80::1".parse().unwrap()));
        let who = |n: u32| Called { tunnel: "t".into(), client: n.to_be_bytes().into() };
        let mut call = |n: &u32| calls.call(Duration::ZERO, who(*n), to.clone(), MessageType::Renew);
        let all = (0..MOST as u32 + 3).filter(|n| call(n)).count();
        assert_eq!((all, calls.len()), (MOST, MOST));
    }
}
