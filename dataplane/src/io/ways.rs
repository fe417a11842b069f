//! What the kernel's routing has answered about peers: remembered while nothing changes, asked for anew at a bounded pace.
//!
//! One answer for each busy peer, up to [`MOST`]; whoever is not busy any more makes room. An answer is not given any more
//! once a change has been heard of: the packet then goes another way, on which the kernel itself looks for the route. Pure: asks
//! nobody, and time is an argument, counted from the start.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::route::Way;

/// Peers that are remembered at most: about 5 MiB.
pub const MOST: usize = 65_536;
/// Questions in a second at most: some hundredths of a processor's time.
pub const A_SECOND: u32 = 4096;
/// So long an answer holds when nobody says that something has changed.
pub const HELD: Duration = Duration::from_secs(60);
/// So long no answer at all is taken for one.
const SILENCE: Duration = SECOND;
const SECOND: Duration = Duration::from_secs(1);

/// Our address and the peer's.
type Ends = (Ipv4Addr, Ipv4Addr);

#[derive(Clone, Copy, Debug)]
struct Known {
    way: Option<Way>,
    /// As things were when it was asked.
    generation: u32,
    until: Duration,
    used: Duration,
}

/// What is known of the way to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// This way; `None`: there is none that leads out of this host.
    Way(Option<Way>),
    /// Nothing: ask, and say what the answer was.
    Ask,
    /// Nothing, and it is not to be asked now.
    Later,
}

/// The memory of one worker.
#[derive(Debug, Default)]
pub struct Ways {
    known: HashMap<Ends, Known>,
    generation: u32,
    /// The second in which questions are counted, and how many there were.
    second: (Duration, u32),
    swept: Duration,
    asked: u64,
    put_off: u64,
}

impl Ways {
    /// What is known of the way from our address to a peer.
    pub fn find(&mut self, ends: Ends, now: Duration) -> Found {
        let known = self.known.get_mut(&ends);
        let is_new = known.is_none();
        if let Some(known) = known {
            known.used = now;
            if known.generation == self.generation && now < known.until {
                return Found::Way(known.way);
            }
        }
        if (is_new && !self.has_room(now)) || !self.may_ask(now) {
            self.put_off += 1;
            return Found::Later;
        }
        self.asked += 1;
        Found::Ask
    }

    /// The kernel has answered; `Err`: it has not.
    pub fn learn(&mut self, ends: Ends, answer: Result<Option<Way>, ()>, now: Duration) {
        let holds = if answer.is_ok() { HELD } else { SILENCE };
        let way = answer.unwrap_or(None);
        let known = Known { way, generation: self.generation, until: now + holds, used: now };
        self.known.insert(ends, known);
    }

    /// Routes, addresses or interfaces are not what they were.
    pub fn change(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    /// Questions asked, and packets that had to do without one, since this was called last.
    pub fn take_counts(&mut self) -> (u64, u64) {
        (std::mem::take(&mut self.asked), std::mem::take(&mut self.put_off))
    }

    fn may_ask(&mut self, now: Duration) -> bool {
        if now >= self.second.0 + SECOND {
            self.second = (now, 0);
        }
        self.second.1 += 1;
        self.second.1 <= A_SECOND
    }

    /// Whether one more peer fits. Now and then, and when it is full, those that are idle go.
    fn has_room(&mut self, now: Duration) -> bool {
        let pause = if self.known.len() < MOST { HELD } else { SECOND };
        if now >= self.swept + pause {
            self.swept = now;
            self.known.retain(|_, known| now < known.used + HELD);
            if self.known.capacity() / 4 > self.known.len() {
                self.known.shrink_to(2 * self.known.len());
            }
        }
        self.known.len() < MOST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

    fn peer(n: usize) -> Ends {
        (US, Ipv4Addr::from(0x0a00_0000 + n as u32))
    }

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    /// A kernel whose answers tell when they were true.
    fn answer(n: usize, state: u32) -> Option<Way> {
        Some(Way { interface: state, mtu: 1500, source: Ipv4Addr::from(n as u32) })
    }

    /// What became of one packet to each of so many peers: known, asked for, put off.
    fn round(ways: &mut Ways, peers: usize, state: u32, now: Duration) -> [usize; 3] {
        let mut fates = [0; 3];
        for n in 0..peers {
            let fate = match ways.find(peer(n), now) {
                Found::Way(way) => {
                    assert_eq!(way, answer(n, state), "an answer that is not true any more");
                    0
                }
                Found::Ask => {
                    ways.learn(peer(n), Ok(answer(n, state)), now);
                    1
                }
                Found::Later => 2,
            };
            fates[fate] += 1;
        }
        fates
    }

    #[test]
    fn as_many_busy_peers_as_fit_are_asked_about_once_a_minute_and_never_for_each_packet() {
        let mut ways = Ways::default();
        let mut asked = 0;
        for second in (0..18).chain(59..78) {
            for half in 0..2 {
                let now = seconds(second) + Duration::from_millis(500 * half);
                let [_, questions, put_off] = round(&mut ways, MOST, 1, now);
                asked += questions;
                assert!(put_off == 0 || second < 15 || (60..75).contains(&second), "at {now:?}");
            }
            assert!(asked <= (second as usize + 1) * A_SECOND as usize);
        }
        assert_eq!(asked, 2 * MOST);
        let (counted, put_off) = ways.take_counts();
        assert_eq!((counted, ways.take_counts()), (asked as u64, (0, 0)));
        assert!(put_off > 0);
    }

    #[test]
    fn a_few_peers_are_asked_about_at_once_after_a_change() {
        let mut ways = Ways::default();
        assert_eq!(round(&mut ways, 3000, 1, seconds(1)), [0, 3000, 0]);
        assert_eq!(round(&mut ways, 3000, 1, seconds(50)), [3000, 0, 0]);
        ways.change();
        assert_eq!(round(&mut ways, 3000, 2, seconds(50)), [0, 3000, 0]);
        assert_eq!(round(&mut ways, 3000, 2, seconds(109)), [3000, 0, 0]);
        assert_eq!(round(&mut ways, 3000, 2, seconds(110)), [0, 3000, 0], "a minute later, in any case");
    }

    #[test]
    fn where_changes_never_end_no_old_answer_is_given_and_questions_stay_few() {
        let mut ways = Ways::default();
        for second in 0..30 {
            ways.change();
            let [_, asked, put_off] = round(&mut ways, MOST, second as u32, seconds(second));
            assert_eq!((asked, put_off), (A_SECOND as usize, MOST - A_SECOND as usize));
        }
    }

    #[test]
    fn more_than_fit_wait_until_others_are_idle() {
        let mut ways = Ways::default();
        for second in 0..16 {
            round(&mut ways, MOST, 1, seconds(second));
        }
        assert_eq!(ways.known.len(), MOST);
        let stranger = (US, Ipv4Addr::new(192, 0, 2, 1));
        assert_eq!(ways.find(stranger, seconds(17)), Found::Later);
        // One of them has been idle for a minute; the others have not.
        for n in 1..MOST {
            ways.find(peer(n), seconds(70));
        }
        assert_eq!(ways.find(stranger, seconds(75) + SECOND), Found::Ask);
        ways.learn(stranger, Ok(None), seconds(76));
        assert_eq!((ways.known.len(), ways.find(stranger, seconds(80))), (MOST, Found::Way(None)));
        assert_eq!(ways.find((US, Ipv4Addr::new(192, 0, 2, 2)), seconds(80)), Found::Later);
        // When all have gone, so does the memory.
        assert_eq!(ways.find(stranger, seconds(300)), Found::Ask);
        assert_eq!(ways.find((US, Ipv4Addr::new(192, 0, 2, 2)), seconds(300)), Found::Ask);
        assert!(ways.known.len() <= 1 && ways.known.capacity() < 100);
    }

    #[test]
    fn silence_is_asked_again_after_a_second() {
        let mut ways = Ways::default();
        assert_eq!(ways.find(peer(1), seconds(1)), Found::Ask);
        ways.learn(peer(1), Err(()), seconds(1));
        assert_eq!(ways.find(peer(1), seconds(1)), Found::Way(None));
        assert_eq!(ways.find(peer(1), seconds(2)), Found::Ask);
    }
}
