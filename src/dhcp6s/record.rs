//! What has become of a lease, in as few octets as say it: the ledger's pages are made of these. Pure.
//!
//! ```text
//!   flags 1 | prefix length 1 | prefix 16 |  and of one that is there
//!   number 4 | preferred 4 | valid 4 | until 8 * | peer 16 * | reach 16 * | link 2 + n | client 2 + n        * as flags say
//!                                    and at the end of each    sum 4
//! ```
//!
//! Numbers have their highest octet first. `until` is of the calendar; what that is by the leases' clock the reader knows. The
//! sum is of the page's number and the record, so neither damaged octets nor those of another page are taken for a lease.
//! Records without sums, of earlier versions, are read as well.

use std::net::Ipv6Addr;
use std::sync::Arc;

use sixway_dataplane::update::Ipv6Prefix;

use super::crc::crc32c;
use super::plan::Life;
use super::shelf::{Change, Lease, NEVER};
use crate::broker::{BindKey, BindKind};

/// The lease is there; without it, gone.
const HAS: u8 = 1;
/// A prefix; without it, an address.
const IS_PREFIX: u8 = 2;
const ENDS: u8 = 4;
const PEER: u8 = 8;
const REACH: u8 = 16;
/// Client and peer are at one address, which is there once.
const REACH_IS_PEER: u8 = 32;

/// Writes what has become of a lease behind what is there, on the page of this number; `to_disk` makes times of the calendar
/// out of the clock's.
pub fn emit(change: &Change, page: i64, to_disk: impl Fn(u64) -> i64, out: &mut Vec<u8>) {
    match change {
        Change::Has(lease) => emit_lease(lease, page, to_disk, out),
        Change::Gone(lease) => {
            let start = out.len();
            out.push(0);
            emit_prefix(lease.prefix, out);
            seal(page, start, out);
        }
    }
}

/// Writes a lease that is there behind what is there, as [`emit`] does.
pub fn emit_lease(lease: &Lease, page: i64, to_disk: impl Fn(u64) -> i64, out: &mut Vec<u8>) {
    let start = out.len();
    let Lease { key, prefix, life, until, peer, reach } = lease;
    let own_reach = reach.filter(|reach| Some(*reach) != *peer);
    let flags = [
        (true, HAS),
        (key.kind == BindKind::Prefix, IS_PREFIX),
        (*until != NEVER, ENDS),
        (peer.is_some(), PEER),
        (own_reach.is_some(), REACH),
        (reach.is_some() && own_reach.is_none(), REACH_IS_PEER),
    ];
    out.push(flags.iter().filter(|(is, _)| *is).fold(0, |all, (_, flag)| all | flag));
    emit_prefix(*prefix, out);
    for n in [key.number, life.preferred, life.valid] {
        out.extend_from_slice(&n.to_be_bytes());
    }
    if *until != NEVER {
        out.extend_from_slice(&to_disk(*until).to_be_bytes());
    }
    for addr in peer.iter().chain(&own_reach) {
        out.extend_from_slice(&addr.octets());
    }
    for text in [key.tunnel.as_bytes(), &key.client] {
        // Names of interfaces and DUIDs are far shorter.
        let text = text.get(..usize::from(u16::MAX)).unwrap_or(text);
        out.extend_from_slice(&(text.len() as u16).to_be_bytes());
        out.extend_from_slice(text);
    }
    seal(page, start, out);
}

/// Puts its sum behind a record.
fn seal(page: i64, start: usize, out: &mut Vec<u8>) {
    let sum = crc32c(seed(page), &out[start..]);
    out.extend_from_slice(&sum.to_be_bytes());
}

fn seed(page: i64) -> u32 {
    crc32c(0, &page.to_be_bytes())
}

fn emit_prefix(prefix: Ipv6Prefix, out: &mut Vec<u8>) {
    out.push(prefix.prefix_len());
    out.extend_from_slice(&prefix.addr().octets());
}

/// One record: what it is about, and the lease if it is there.
pub type Told = (Ipv6Prefix, Option<Lease>);

/// What is left of a page.
#[derive(Debug)]
pub struct Records<'a> {
    left: &'a [u8],
    /// What sums begin with; `None`: there are none.
    seed: Option<u32>,
    /// The link of the record before: most are of the same.
    link: Arc<str>,
}

impl<'a> Records<'a> {
    /// The records of the page of this number.
    pub fn new(records: &'a [u8], page: i64) -> Self {
        Self { left: records, seed: Some(seed(page)), link: Arc::default() }
    }

    /// The records of a page that has no sums.
    pub fn unsealed(records: &'a [u8]) -> Self {
        Self { left: records, seed: None, link: Arc::default() }
    }

    /// The next one that is sound; one that is damaged is passed over. `None`: there is no more, or what is there makes no
    /// sense, which is left then. `of_disk` makes times of the clock out of the calendar's and a valid lifetime.
    pub fn next(&mut self, of_disk: impl Fn(i64, u32) -> u64) -> Option<Told> {
        loop {
            let before = self.left;
            let told = self.read(&of_disk);
            let len = before.len() - self.left.len();
            let is_sound = told.is_some().then(|| self.is_sealed(before.get(..len).unwrap_or_default()));
            match is_sound.flatten() {
                Some(true) => return told,
                Some(false) => {}
                None => {
                    self.left = before;
                    return None;
                }
            }
        }
    }

    /// Takes a record's sum, and says whether it is right; `None`: there is none.
    fn is_sealed(&mut self, record: &[u8]) -> Option<bool> {
        let Some(seed) = self.seed else { return Some(true) };
        Some(u32::from_be_bytes(self.take()?) == crc32c(seed, record))
    }

    /// Whether all was read.
    pub fn is_over(&self) -> bool {
        self.left.is_empty()
    }

    fn read(&mut self, of_disk: &impl Fn(i64, u32) -> u64) -> Option<Told> {
        let [flags, len] = self.take()?;
        let prefix = Ipv6Prefix::new(Ipv6Addr::from(self.take::<16>()?), len)?;
        let has = |flag| flags & flag != 0;
        if !has(HAS) {
            return Some((prefix, None));
        }
        let number = u32::from_be_bytes(self.take()?);
        let (preferred, valid) = (u32::from_be_bytes(self.take()?), u32::from_be_bytes(self.take()?));
        let until = if has(ENDS) { of_disk(i64::from_be_bytes(self.take()?), valid) } else { NEVER };
        let peer = if has(PEER) { Some(Ipv6Addr::from(self.take::<16>()?)) } else { None };
        let own_reach = if has(REACH) { Some(Ipv6Addr::from(self.take::<16>()?)) } else { None };
        let reach = own_reach.or(peer.filter(|_| has(REACH_IS_PEER)));
        let link = std::str::from_utf8(self.text()?).ok()?;
        if *self.link != *link {
            self.link = link.into();
        }
        let client = self.text()?.into();
        let kind = if has(IS_PREFIX) { BindKind::Prefix } else { BindKind::Address };
        let key = BindKey { tunnel: self.link.clone(), client, kind, number };
        Some((prefix, Some(Lease { key, prefix, life: Life { preferred, valid }, until, peer, reach })))
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, left) = self.left.split_first_chunk()?;
        self.left = left;
        Some(*taken)
    }

    fn text(&mut self) -> Option<&'a [u8]> {
        let len = u16::from_be_bytes(self.take()?);
        let (text, left) = self.left.split_at_checked(len.into())?;
        self.left = left;
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_lease() -> impl Strategy<Value = Lease> {
        let key =
            (any::<bool>(), any::<u32>(), "[a-z0-9.]{0,15}", prop::collection::vec(any::<u8>(), 0..131));
        let addr = || prop::option::of(any::<u128>().prop_map(Ipv6Addr::from));
        let times = (any::<u32>(), any::<u32>(), prop::option::of(0_u64..1 << 40));
        (key, any::<u128>(), 0_u8..=128, times, addr(), addr(), any::<bool>()).prop_map(
            |((is_prefix, number, link, client), addr, len, (preferred, valid, until), peer, reach, same)| {
                let kind = if is_prefix { BindKind::Prefix } else { BindKind::Address };
                let key = BindKey { tunnel: link.into(), client: client.into(), kind, number };
                let prefix = Ipv6Prefix::new(addr.into(), len).unwrap();
                let reach = if same { peer } else { reach };
                Lease {
                    key,
                    prefix,
                    life: Life { preferred, valid },
                    until: until.unwrap_or(NEVER),
                    peer,
                    reach,
                }
            },
        )
    }

    fn of_disk(until: i64, _: u32) -> u64 {
        (until - 77) as u64
    }

    fn change((has, lease): &(bool, Lease)) -> Change {
        if *has { Change::Has(lease.clone()) } else { Change::Gone(lease.clone()) }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            all in prop::collection::vec((any::<bool>(), any_lease()), 0..9),
            number in any::<i64>(),
            cut in any::<prop::sample::Index>(),
            bit in any::<prop::sample::Index>(),
        ) {
            let (mut page, mut ends) = (Vec::new(), vec![0]);
            for one in &all {
                emit(&change(one), number, |until| until as i64 + 77, &mut page);
                ends.push(page.len());
            }
            let told: Vec<Told> = all.iter().map(|(has, lease)| (lease.prefix, has.then(|| lease.clone()))).collect();
            let mut records = Records::new(&page, number);
            for one in &told {
                prop_assert_eq!(records.next(of_disk), Some(one.clone()));
            }
            prop_assert!(records.next(of_disk).is_none() && records.is_over());
            // Cut anywhere: what is whole is read, and it is seen that the rest is not.
            let at = cut.index(page.len() + 1);
            let mut records = Records::new(&page[..at], number);
            let whole = std::iter::from_fn(|| records.next(of_disk)).count();
            prop_assert_eq!(whole, ends.iter().filter(|end| **end <= at).count() - 1);
            prop_assert_eq!(records.is_over(), ends.contains(&at));
            // Another page's are nobody's.
            prop_assert!(Records::new(&page, number.wrapping_add(1)).next(of_disk).is_none());
            if page.is_empty() {
                return Ok(());
            }
            // One bit is other than it was: what was before it is read, nothing that was never written, and less than all.
            let bit = bit.index(page.len() * 8);
            page[bit / 8] ^= 1 << (bit % 8);
            let mut records = Records::new(&page, number);
            let read: Vec<Told> = std::iter::from_fn(|| records.next(of_disk)).collect();
            let before = ends.iter().filter(|end| **end <= bit / 8).count() - 1;
            prop_assert_eq!(&read[..before], &told[..before]);
            prop_assert!(read.len() < told.len() && read.iter().all(|one| told.contains(one)));
        }

        #[test]
        fn no_octets_are_too_wrong_to_be_read(page in prop::collection::vec(any::<u8>(), 0..200)) {
            for mut records in [Records::new(&page, 1), Records::unsealed(&page)] {
                while records.next(|until, _| until as u64).is_some() {}
            }
        }
    }
}
