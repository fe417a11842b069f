//! Answers on their way: those that wait until something is on the disk, and no more of them than there is room for.
//!
//! Answers to lease queries (RFC 5007) that tell of leases wait as well, but only few: whoever asks much must not keep
//! clients waiting. Knows neither disk nor socket.

use std::net::Ipv6Addr;

use sixway_dataplane::update::Ipv6Prefix;

use super::socket::Answer;
use crate::broker::BindKey;

/// Answers that wait for the disk; further messages wait in their sockets.
const MOST_WAITING: usize = 16_384;
/// How many of those that wait, or wait for what is being written, tell of what others have; further ones are left out.
const MOST_OF_OTHERS: usize = 256;

/// An answer on its way.
#[derive(Debug)]
pub(super) struct Letter {
    pub(super) port: usize,
    pub(super) octets: Vec<u8>,
    pub(super) to: Ipv6Addr,
    pub(super) to_port: u16,
    /// The address of ours that was spoken to, if it is one and no group.
    pub(super) from: Option<Ipv6Addr>,
    /// What it says that its client has.
    pub(super) tells: Vec<(BindKey, Ipv6Prefix)>,
}

impl Letter {
    pub(super) fn answer(&self) -> Answer<'_> {
        Answer { octets: &self.octets, to: self.to, port: self.to_port, from: self.from }
    }
}

/// How the disk is, for an answer that tells of what others have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Disk {
    /// All is on it, or is being written.
    Even,
    /// Something has changed that is not being written yet.
    Behind,
    /// It takes nothing for now.
    Failing,
}

/// Those that wait.
#[derive(Debug, Default)]
pub(super) struct Letters {
    /// For what is collected.
    collected: Vec<Letter>,
    /// For what is being written.
    writing: Option<Vec<Letter>>,
    /// How many of `collected` tell of what others have, and of `writing`.
    of_others: (usize, usize),
    /// How many of that kind have been left out.
    left_out: u64,
}

impl Letters {
    /// Whether no more messages are to be taken in for now.
    pub(super) fn is_full(&self) -> bool {
        self.collected.len() >= MOST_WAITING
    }

    /// Whether something is being written.
    pub(super) fn is_writing(&self) -> bool {
        self.writing.is_some()
    }

    /// How many answers to lease queries were left out because too many waited, or the disk took nothing.
    pub(super) fn left_out(&self) -> u64 {
        self.left_out
    }

    /// All that wait.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Letter> {
        self.collected.iter_mut().chain(self.writing.iter_mut().flatten())
    }

    /// How many wait for what is collected.
    pub(super) fn collected(&self) -> usize {
        self.collected.len()
    }

    /// It waits for what has changed.
    pub(super) fn push(&mut self, letter: Letter) {
        self.collected.push(letter);
    }

    /// One that tells of what others have: it leaves when that is on the disk, at once if all is. While the disk fails it would
    /// be thrown away with all that wait, so it does not wait.
    pub(super) fn hold(&mut self, letter: Letter, disk: Disk) -> Option<Letter> {
        let has_room = self.of_others.0 + self.of_others.1 < MOST_OF_OTHERS;
        match (disk, &mut self.writing) {
            (Disk::Even, None) => return Some(letter),
            (Disk::Even, Some(letters)) if has_room => {
                self.of_others.1 += 1;
                letters.push(letter);
            }
            (Disk::Behind, _) if has_room => {
                self.of_others.0 += 1;
                self.collected.push(letter);
            }
            (Disk::Even | Disk::Behind | Disk::Failing, _) => self.left_out += 1,
        }
        None
    }

    /// What is collected is being written.
    pub(super) fn begin(&mut self) {
        self.writing = Some(std::mem::take(&mut self.collected));
        self.of_others = (0, self.of_others.0);
    }

    /// What has waited for that which was being written.
    pub(super) fn finish(&mut self) -> Vec<Letter> {
        self.of_others.1 = 0;
        self.writing.take().unwrap_or_default()
    }

    /// Those behind the first `len` that are collected are thrown away. Says how many.
    pub(super) fn drop_behind(&mut self, len: usize) -> usize {
        let dropped = self.collected.len().saturating_sub(len);
        self.collected.truncate(len);
        // More may have gone than is known of; none is left when all have.
        self.of_others.0 = self.of_others.0.min(self.collected.len());
        dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(port: usize) -> Letter {
        let to = Ipv6Addr::LOCALHOST;
        Letter { port, octets: Vec::new(), to, to_port: 546, from: None, tells: Vec::new() }
    }

    #[test]
    fn whoever_asks_much_keeps_nobody_waiting_and_fills_no_memory() {
        let mut letters = Letters::default();
        assert!(letters.hold(letter(1), Disk::Even).is_some(), "all is on the disk");
        letters.push(letter(0));
        letters.begin();
        for disk in [Disk::Even, Disk::Behind] {
            (0..2 * MOST_WAITING).for_each(|_| assert!(letters.hold(letter(1), disk).is_none()));
        }
        assert!(!letters.is_full(), "others are heard");
        assert_eq!(letters.finish().len(), 1 + MOST_OF_OTHERS);
        assert_eq!(letters.left_out(), (4 * MOST_WAITING - MOST_OF_OTHERS) as u64);
        // There is room again, for those that wait for the next page too.
        (0..9).for_each(|_| assert!(letters.hold(letter(1), Disk::Behind).is_none()));
        letters.begin();
        (0..MOST_WAITING).for_each(|_| drop(letters.hold(letter(1), Disk::Even)));
        assert_eq!(letters.finish().len(), MOST_OF_OTHERS);
    }

    #[test]
    fn while_the_disk_fails_nothing_of_others_is_collected() {
        let mut letters = Letters::default();
        (0..9).for_each(|_| assert!(letters.hold(letter(1), Disk::Failing).is_none()));
        assert_eq!((letters.collected(), letters.left_out()), (0, 9));
        letters.push(letter(0));
        assert!(letters.hold(letter(1), Disk::Behind).is_none());
        assert_eq!((letters.drop_behind(0), letters.collected(), letters.of_others), (2, 0, (0, 0)));
    }
}
