//! What is to be written down, in order, and what becomes of it while the disk takes nothing. Pure.
//!
//! ```text
//!   shelf ── changes ──► backlog ── page ──► scribe        kept: the shelf knows what is on the disk
//!      ▲                    ▲                   │          failed: back in front of what has come since;
//!      └── closed, open ────┴───────────────────┘                  the shelf makes no new promise until one is kept
//! ```
//!
//! So what waits is bounded: by [`MOST`] changes, and when nothing more is promised, by the end of each lease.

use std::collections::BTreeMap;
use std::time::Duration;

use sixway_dataplane::update::Ipv6Prefix;

use super::ledger::{Kept, Page};
use super::shelf::{Change, Proofs, Shelf};
use super::tidy::Tidy;
use crate::broker::BindKey;

/// Changes that wait for the disk before no more messages are taken in; a message makes a few.
pub const MOST: usize = 1 << 18;
/// How long after a failure the disk is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What is not on the disk yet.
#[derive(Debug, Default)]
pub struct Backlog {
    changes: Vec<Change>,
    proofs: Proofs,
    /// What the calendar is ahead by, where that has changed.
    ahead: Option<i64>,
    tidy: Tidy,
    is_stale: bool,
    /// The number of the last change that is being written.
    under_way: u64,
    /// When the disk is tried again; `None`: it works.
    failing: Option<Duration>,
}

impl Backlog {
    /// Nothing waits; the ledger has so many records of so many leases.
    pub fn new(records: usize, leases: usize) -> Self {
        let mut new = Self::default();
        new.tidy.look(records, leases);
        new
    }

    /// Takes over what has changed on the shelf.
    pub fn collect(&mut self, shelf: &mut Shelf) {
        self.changes.append(&mut shelf.poll_changes());
        self.proofs.extend(shelf.poll_proofs());
    }

    /// Somebody has set the calendar.
    pub fn set(&mut self, ahead: i64) {
        self.ahead = Some(ahead);
    }

    /// Whether nothing waits; something may be under way.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.proofs.is_empty()
    }

    /// Whether nothing more is to be taken in for now.
    pub fn is_full(&self) -> bool {
        self.changes.len() >= MOST
    }

    /// When the disk is tried again; `None`: it works.
    pub fn retry(&self) -> Option<Duration> {
        self.failing
    }

    /// What is to be written at `now`, if anything is: all that waits. There must be nothing under way. `tidies` says whether
    /// the ledger is to be kept short as well.
    pub fn page(&mut self, shelf: &Shelf, now: Duration, tidies: bool) -> Option<Page> {
        if self.failing.is_some_and(|at| now < at) {
            return None;
        }
        let nothing = self.changes.is_empty() && self.proofs.is_empty() && self.ahead.is_none();
        let tidies = tidies && (self.tidy.is_due() || self.is_stale);
        if nothing && !tidies {
            return None;
        }
        // A disk that is short of room gets no more than it must.
        let is_part = tidies && (nothing || self.failing.is_none());
        let part = if is_part { self.tidy.part(shelf, self.changes.len()) } else { None };
        self.under_way = shelf.changes();
        let (changes, proofs) = (std::mem::take(&mut self.changes), std::mem::take(&mut self.proofs));
        Some(Page { changes, part, proofs, ahead: self.ahead.take() })
    }

    /// This is on the disk, and the ledger is as told. Says whether the disk has failed before.
    pub fn kept(&mut self, page: &Page, so: Kept, shelf: &mut Shelf) -> bool {
        page.part.iter().for_each(|part| self.tidy.kept(part));
        self.tidy.look(so.records, shelf.len());
        self.is_stale = so.is_stale;
        shelf.kept(&page.changes, self.under_way);
        shelf.open();
        self.failing.take().is_some()
    }

    /// This is not, and is written again a while after `now`. Says whether that is the first failure since the disk worked.
    pub fn failed(&mut self, page: Page, now: Duration, shelf: &mut Shelf) -> bool {
        shelf.close();
        let since = std::mem::replace(&mut self.changes, page.changes);
        self.changes.extend(since);
        for (client, number) in page.proofs {
            self.proofs.entry(client).or_insert(number);
        }
        self.ahead = self.ahead.or(page.ahead);
        self.failing.replace(now.saturating_add(RETRY)).is_none()
    }
}

/// What has ended among these changes, and who has it after them. An answer that tells of it and was to leave once they are on
/// the disk can be told no more, whatever has come since.
pub fn ended(changes: &[Change]) -> BTreeMap<Ipv6Prefix, Option<&BindKey>> {
    let mut all = BTreeMap::new();
    for change in changes {
        match change {
            Change::Gone(lease) => drop(all.insert(lease.prefix, None)),
            Change::Has(lease) => {
                all.get_mut(&lease.prefix).into_iter().for_each(|who| *who = Some(&lease.key));
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{BindKey, BindKind, BindWish};
    use crate::compat::dhcp6sconf::ServerConf;
    use crate::dhcp6s::index::Index;
    use crate::dhcp6s::plan::{Plan, Site};
    use crate::dhcp6s::shelf::Lease;
    use crate::dhcpv6::session::Leases;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn conf() -> ServerConf {
        use crate::compat::dhcp6sconf::{Anywhere, load};
        let text = "interface a { address-pool p 5 10; }; pool p { range 2001:db8::1000 to 2001:db8::ffff; };
            host h { duid 00:ff; prefix 2001:db8:a::/48 infinity; };";
        load("x", text.as_bytes(), &Anywhere).unwrap().conf
    }

    fn shelf() -> Shelf {
        let mut shelf =
            Shelf::new(Plan::new(&conf(), [Site { name: "a".into(), ..Site::default() }]), Vec::new(), 0);
        shelf.next(0, "a", None);
        shelf
    }

    fn wish(client: u16) -> BindWish {
        let kind = if client == 0xff { BindKind::Prefix } else { BindKind::Address };
        let key = BindKey { tunnel: "a".into(), client: client.to_be_bytes().into(), kind, number: 1 };
        BindWish {
            key,
            user: None,
            fixed: Vec::new(),
            on_link: Vec::new(),
            reserved: Vec::new(),
            only_fixed: false,
            hints: Vec::new(),
            length: None,
            link: None,
            salt: client.into(),
            most: 9,
            reach: None,
        }
    }

    #[test]
    fn a_disk_that_stays_full_lets_nothing_grow() {
        let (mut shelf, mut backlog) = (shelf(), Backlog::default());
        let kept = Kept { records: 0, is_stale: false };
        let mut most = 0;
        // New clients for hours, and all leases over and over: each lasts 10 s.
        for second in 0..2000_u16 {
            shelf.next(second.into(), "a", None);
            for client in 0..20 {
                let _refused_or_not = shelf.bind(&wish(1000 + second * 20 + client), Duration::ZERO);
            }
            backlog.collect(&mut shelf);
            let now = SECOND * u32::from(second);
            if let Some(page) = backlog.page(&shelf, now, true) {
                most = most.max(page.changes.len());
                backlog.failed(page, now, &mut shelf);
            }
        }
        assert!(most <= 40 && shelf.is_empty(), "{most} changes waited, {} leases are there", shelf.len());
        let page = backlog.page(&shelf, SECOND * 3000, true).unwrap();
        assert!(backlog.kept(&page, kept, &mut shelf), "it had failed");
        assert!(shelf.bind(&wish(7), Duration::ZERO).is_ok(), "and goes on by itself");
    }

    #[test]
    fn what_has_come_while_it_failed_is_behind_what_failed() {
        let (mut shelf, mut backlog) = (shelf(), Backlog::default());
        shelf.bind(&wish(1), Duration::ZERO).unwrap();
        shelf.keep_proof(&[1], 1);
        shelf.keep_proof(&[2], 1);
        backlog.set(5);
        backlog.collect(&mut shelf);
        let page = backlog.page(&shelf, SECOND, true).unwrap();
        shelf.keep_proof(&[1], 2);
        shelf.next(100, "a", None);
        backlog.collect(&mut shelf);
        assert!(backlog.failed(page, SECOND, &mut shelf));
        assert!(backlog.page(&shelf, SECOND, true).is_none(), "not at once");
        let page = backlog.page(&shelf, SECOND * 2, true).unwrap();
        assert!(matches!(page.changes[..], [Change::Has(_), Change::Gone(_)]));
        assert_eq!((page.proofs[&[1][..]], page.proofs[&[2][..]], page.ahead), (2, 1, Some(5)));
        assert!(!backlog.failed(page, SECOND * 2, &mut shelf), "said once");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Ask(u16),
        Release(u16),
        Wait(u64),
        Begin,
        Finish(bool),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => prop_oneof![4 => 0_u16..6, 1 => Just(0xff_u16)].prop_map(Step::Ask),
            1 => (0_u16..6).prop_map(Step::Release),
            2 => (0_u64..4).prop_map(Step::Wait),
            4 => Just(Step::Begin),
            4 => any::<bool>().prop_map(Step::Finish),
        ]
    }

    proptest! {
        /// Whatever is asked, and however often the disk fails between any two questions: who is told of a lease has it on the
        /// disk, at least for as long.
        #[test]
        fn nobody_is_told_of_what_is_not_on_the_disk(steps in prop::collection::vec(step(), 0..150)) {
            let (mut shelf, mut backlog, mut disk) = (shelf(), Backlog::default(), Index::default());
            let (mut now, mut collected, mut under_way) = (0_u64, Vec::<Lease>::new(), None::<(Page, Vec<Lease>)>);
            let is_kept = |disk: &Index, lease: &Lease| {
                disk.get(lease.prefix).is_some_and(|kept| kept.key == lease.key && kept.until >= lease.until)
            };
            for step in steps {
                shelf.next(now, "a", None);
                match step {
                    Step::Ask(client) => {
                        let before = shelf.changes();
                        let bound = shelf.bind(&wish(client), Duration::ZERO).unwrap_or_default();
                        prop_assert!(bound.is_empty() || !shelf.is_refused());
                        let leases: Vec<Lease> = bound.iter().map(|prefix| shelf.get(*prefix).unwrap().clone()).collect();
                        if shelf.changes() == before {
                            prop_assert!(leases.iter().all(|lease| is_kept(&disk, lease)), "told at once: {:?}", leases);
                        } else {
                            collected.extend(leases);
                        }
                    }
                    Step::Release(client) => {
                        let own: Vec<Ipv6Prefix> = shelf.bound(&wish(client).key);
                        own.into_iter().for_each(|prefix| shelf.release(prefix));
                    }
                    Step::Wait(seconds) => now += seconds,
                    Step::Begin if under_way.is_none() => {
                        backlog.collect(&mut shelf);
                        let page = backlog.page(&shelf, Duration::from_secs(now), true);
                        under_way = page.map(|page| (page, std::mem::take(&mut collected)));
                    }
                    Step::Begin => {}
                    Step::Finish(works) => {
                        let Some((page, letters)) = under_way.take() else { continue };
                        backlog.collect(&mut shelf);
                        if !works {
                            backlog.failed(page, Duration::from_secs(now), &mut shelf);
                            collected.clear();
                            continue;
                        }
                        for change in &page.changes {
                            match change {
                                Change::Has(lease) => drop(disk.put(lease.clone())),
                                Change::Gone(lease) => drop(disk.take(lease.prefix)),
                            }
                        }
                        backlog.kept(&page, Kept { records: 0, is_stale: false }, &mut shelf);
                        // The server sends what is still so; the shelf may know more by now.
                        let ended = ended(&page.changes);
                        let still = |lease: &&Lease| {
                            shelf.get(lease.prefix).is_some_and(|l| l.key == lease.key)
                                && ended.get(&lease.prefix).is_none_or(|who| *who == Some(&lease.key))
                        };
                        for lease in letters.iter().filter(still) {
                            prop_assert!(is_kept(&disk, lease), "{lease:?}");
                        }
                    }
                }
            }
        }
    }
}
