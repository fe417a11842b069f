//! The records that readers look at: 64 octets each, written whole before anyone can find them.
//!
//! A record is immutable from the moment its number is published until `qsbr` says that no reader can hold
//! that number any more; so plain relaxed loads read it, without a lock, a retry or `unsafe`. Chunks are
//! allocated as numbers grow and never move. Knows the layout of a record and nothing of what finds it.

use std::net::Ipv4Addr;
use std::sync::OnceLock;

use crate::manners::Manners;
use crate::memory;
use crate::sync::{AtomicU64, Ordering};
use crate::update::{Holder, Ipv6Prefix, TunnelId};

/// Records of one chunk; every word of a chunk is an object to loom, which can follow only a few.
const CHUNK: usize = if cfg!(loom) { 2 } else { 4096 };
/// So often chunks double: the last are 16 MiB, in large pages.
const DOUBLED: usize = if cfg!(loom) { 0 } else { 6 };
/// The chunk whose use makes a table large.
const LARGE: usize = if cfg!(loom) { 2 } else { 1 };
const WORDS: usize = 8;

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Prefix bits, most significant first.
    pub bits: u128,
    /// Prefix length in bits; [`NO_PREFIX`] in the record of a tunnel that has no prefix.
    pub len: u8,
    /// Whose it is.
    pub owner: Owner,
    /// The next record of the same tunnel; [`NONE`] ends the chain. Only the writer follows it.
    pub next: u32,
}

impl Entry {
    /// Its prefix; `None` for the record of a tunnel that has none.
    pub fn prefix(&self) -> Option<Ipv6Prefix> {
        Ipv6Prefix::new(self.bits.into(), self.len)
    }
}

/// Stands for the length of a prefix where there is none.
pub const NO_PREFIX: u8 = 255;

/// Ends a chain of records.
pub const NONE: u32 = u32::MAX;

/// Whom a prefix or an outer endpoint belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Nobody outside the router.
    Reserved(Holder),
    /// A tunnel.
    Tunnel(Path),
}

/// All that the packet path must know of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// Its number.
    pub tunnel: TunnelId,
    /// Its encapsulation.
    pub encap: Encap,
    /// Largest inner packet, octets.
    pub mtu: u16,
    /// Peer's outer address; unspecified while it is unknown.
    pub remote: Ipv4Addr,
    /// Peer's UDP port, 0 while it is unknown and for protocol 41.
    pub remote_port: u16,
    /// Our outer address; unspecified for any.
    pub local: Ipv4Addr,
    /// Our UDP port, 0 for protocol 41.
    pub local_port: u16,
    /// Number of the UDP socket to send with.
    pub socket: u16,
    /// How far the peer's endpoint may move.
    pub learn: Learn,
    /// How it treats its packets.
    pub manners: Manners,
}

/// The encapsulations (RFC 4213; RFC 5572 section 4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Encap {
    /// IPv6 in IPv4.
    Proto41 = 0,
    /// IPv6 in UDP in IPv4.
    Udp = 1,
}

/// How far a tunnel's remote endpoint may move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Learn {
    /// Not at all.
    Never = 0,
    /// To another port of the same address.
    Port = 1,
    /// Anywhere.
    Anywhere = 2,
}

impl Path {
    /// Whether a peer's endpoint is known, so that packets can be sent.
    pub fn has_remote(&self) -> bool {
        !self.remote.is_unspecified() && (self.encap == Encap::Proto41 || self.remote_port != 0)
    }

    /// Whether this path's peer is the sender of a packet that came to `local`.
    pub fn is_sender(&self, key: OuterKey, local: Ipv4Addr) -> bool {
        self.outer_key() == key && self.has_remote() && self.takes_local(local)
    }

    /// Whether packets to our address `local` may belong here.
    pub fn takes_local(&self, local: Ipv4Addr) -> bool {
        self.local.is_unspecified() || self.local == local
    }

    /// What finds this path by its peer's endpoint.
    pub fn outer_key(&self) -> OuterKey {
        OuterKey::new(self.encap, self.remote, self.remote_port, self.local_port)
    }
}

/// Encapsulation, peer's endpoint and our port in one number; our address is compared beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OuterKey(u128);

impl OuterKey {
    /// The key of a peer's endpoint; ports are 0 for protocol 41.
    pub fn new(encap: Encap, remote: Ipv4Addr, remote_port: u16, local_port: u16) -> Self {
        let remote = u128::from(u32::from(remote));
        Self(remote << 48 | u128::from(remote_port) << 32 | u128::from(local_port) << 16 | encap as u128)
    }

    /// The number to hash.
    pub fn bits(self) -> u128 {
        self.0
    }
}

const KIND_PROTO41: u64 = 0;
const KIND_UDP: u64 = 1;
const KIND_LOCAL: u64 = 2;
const KIND_UNASSIGNED: u64 = 3;

/// One record as it lies in memory.
#[derive(Debug)]
#[repr(align(64))]
struct Record([AtomicU64; WORDS]);

impl Record {
    fn empty() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }

    fn load(&self, word: usize) -> u64 {
        self.0[word].load(Ordering::Relaxed)
    }
}

/// The records by number.
#[derive(Debug)]
pub struct Slab {
    chunks: Box<[OnceLock<Box<[Record]>>]>,
    most: usize,
}

/// In which chunk record `number` lies, and where in it: chunks double in size until they do not any more.
fn place(number: usize) -> (usize, usize) {
    let doubled = (number / CHUNK + 1).ilog2() as usize;
    if doubled < DOUBLED {
        return (doubled, number - ((1 << doubled) - 1) * CHUNK);
    }
    let rest = number - ((1 << DOUBLED) - 1) * CHUNK;
    (DOUBLED + rest / (CHUNK << DOUBLED), rest % (CHUNK << DOUBLED))
}

/// Records of a chunk.
fn size(chunk: usize) -> usize {
    CHUNK << chunk.min(DOUBLED)
}

impl Slab {
    /// Room for `most` records; memory is taken a chunk at a time as they are written.
    pub fn new(most: usize) -> Self {
        let most = most.next_multiple_of(CHUNK);
        let chunks = most.checked_sub(1).map_or(0, |last| place(last).0 + 1);
        Self { chunks: (0..chunks).map(|_| OnceLock::new()).collect(), most }
    }

    /// How many records fit.
    pub fn most(&self) -> usize {
        self.most
    }

    /// Whether more records were ever in use than a part of the nearer caches holds, a quarter of a mebibyte.
    pub fn is_large(&self) -> bool {
        self.chunks.get(LARGE).is_some_and(|chunk| chunk.get().is_some())
    }

    /// Octets allocated so far.
    pub fn allocated(&self) -> usize {
        let used = self.chunks.iter().enumerate().filter(|(_, chunk)| chunk.get().is_some());
        used.map(|(n, _)| size(n) * size_of::<Record>()).sum()
    }

    fn record(&self, number: u32) -> Option<&Record> {
        let (chunk, at) = place(number as usize);
        self.chunks.get(chunk)?.get()?.get(at)
    }

    /// The prefix of record `number`: what the index compares.
    pub fn prefix(&self, number: u32) -> Option<(u128, u8)> {
        let r = self.record(number)?;
        Some((u128::from(r.load(0)) << 64 | u128::from(r.load(1)), r.load(2) as u8))
    }

    /// Loads a word of record `number`, so that it is near when it is wanted.
    pub fn touch(&self, number: u32) -> u64 {
        self.record(number).map_or(0, |r| r.load(0))
    }

    /// The whole of record `number`; `None` for a number that was never written.
    pub fn read(&self, number: u32) -> Option<Entry> {
        let r = self.record(number)?;
        let head = r.load(2);
        Some(Entry {
            bits: u128::from(r.load(0)) << 64 | u128::from(r.load(1)),
            len: head as u8,
            owner: decode_owner(head, r),
            next: r.load(3) as u32,
        })
    }

    /// Writes record `number`, which no reader can find yet. `false` when it is beyond the slab.
    pub fn write(&self, number: u32, entry: &Entry) -> bool {
        let (n, at) = place(number as usize);
        let Some(chunk) = self.chunks.get(n).filter(|_| (number as usize) < self.most) else { return false };
        let chunk = chunk.get_or_init(|| memory::fill(size(n), |_| Record::empty()));
        let words = encode(entry);
        for (slot, word) in chunk[at].0.iter().zip(words) {
            slot.store(word, Ordering::Relaxed);
        }
        true
    }
}

fn encode(e: &Entry) -> [u64; WORDS] {
    let mut w = [(e.bits >> 64) as u64, e.bits as u64, u64::from(e.len), u64::from(e.next), 0, 0, 0, 0];
    match e.owner {
        Owner::Reserved(Holder::Local) => w[2] |= KIND_LOCAL << 8,
        Owner::Reserved(Holder::Unassigned) => w[2] |= KIND_UNASSIGNED << 8,
        Owner::Tunnel(p) => encode_path(&mut w, &p),
    }
    w
}

fn encode_path(w: &mut [u64; WORDS], p: &Path) {
    let kind = match p.encap {
        Encap::Proto41 => KIND_PROTO41,
        Encap::Udp => KIND_UDP,
    };
    w[2] |= kind << 8 | u64::from(p.mtu) << 16 | u64::from(p.socket) << 32;
    w[2] |= (p.learn as u64) << 48;
    w[3] |= u64::from(p.tunnel.0) << 32;
    w[4] = u64::from(u32::from(p.remote)) << 32 | u64::from(p.remote_port) << 16 | u64::from(p.local_port);
    w[5] = u64::from(u32::from(p.local)) | u64::from(p.manners.bits()) << 32;
}

fn decode_owner(head: u64, r: &Record) -> Owner {
    let encap = match head >> 8 & 0xff {
        KIND_LOCAL => return Owner::Reserved(Holder::Local),
        KIND_UNASSIGNED => return Owner::Reserved(Holder::Unassigned),
        KIND_UDP => Encap::Udp,
        _ => Encap::Proto41,
    };
    let learn = match head >> 48 & 0xff {
        1 => Learn::Port,
        2 => Learn::Anywhere,
        _ => Learn::Never,
    };
    let (ends, ours) = (r.load(4), r.load(5));
    Owner::Tunnel(Path {
        tunnel: TunnelId((r.load(3) >> 32) as u32),
        encap,
        mtu: (head >> 16) as u16,
        remote: Ipv4Addr::from((ends >> 32) as u32),
        remote_port: (ends >> 16) as u16,
        local: Ipv4Addr::from(ours as u32),
        local_port: ends as u16,
        socket: (head >> 32) as u16,
        learn,
        manners: Manners::from_bits((ours >> 32) as u16),
    })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_as_it_was_written() {
        let slab = Slab::new(CHUNK + 1);
        let path = Path {
            tunnel: TunnelId(0xdead_beef),
            encap: Encap::Udp,
            mtu: 1472,
            remote: Ipv4Addr::new(203, 0, 113, 9),
            remote_port: 65_535,
            local: Ipv4Addr::new(255, 254, 253, 252),
            local_port: 3653,
            socket: 0xabcd,
            learn: Learn::Anywhere,
            manners: Manners::from_bits(0xfff),
        };
        let entry = Entry { bits: u128::MAX - 5, len: 128, owner: Owner::Tunnel(path), next: NONE };
        assert!(slab.write(CHUNK as u32 + 7, &entry));
        assert_eq!(slab.read(CHUNK as u32 + 7), Some(entry));
        let local = Entry { owner: Owner::Reserved(Holder::Unassigned), next: 3, ..entry };
        assert!(slab.write(0, &local));
        assert_eq!(slab.read(0), Some(local));
        assert_eq!(slab.prefix(0), Some((u128::MAX - 5, 128)));
        assert!(!slab.write(10 * CHUNK as u32, &entry));
        assert_eq!(slab.allocated(), 3 * CHUNK * 64);
    }

    #[test]
    fn every_record_has_a_place_of_its_own() {
        let mut expected = (0, 0);
        for number in 0..1_000_000 {
            assert_eq!(place(number), expected, "{number}");
            expected.1 += 1;
            if expected.1 == size(expected.0) {
                expected = (expected.0 + 1, 0);
            }
        }
    }
}
