//! Which address of ours stands in a tunnel: what our errors to its hosts come from (RFC 4443 section 2.2).
//!
//! Beside the records, since no packet that goes well asks for it: two words for each tunnel that has such an address,
//! allocated by chunks. One writer; a reader who meets a change halfway finds no address.

use std::net::Ipv6Addr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::update::TunnelId;

const CHUNK: usize = 1024;

/// The two halves of an address; an upper half of 0 is none.
type Slot = [AtomicU64; 2];

/// The addresses of all tunnels.
#[derive(Debug)]
pub(super) struct Ours(Box<[OnceLock<Box<[Slot]>>]>);

impl Ours {
    /// For up to `capacity` tunnels, none of which has an address yet.
    pub(super) fn new(capacity: u32) -> Self {
        Self((0..(capacity as usize).div_ceil(CHUNK)).map(|_| OnceLock::new()).collect())
    }

    /// Sets a tunnel's address. One whose upper half is 0 belongs to no network, and is none.
    pub(super) fn set(&self, id: TunnelId, address: Option<Ipv6Addr>) {
        let Some(chunk) = self.0.get(id.0 as usize / CHUNK) else { return };
        if address.is_none() && chunk.get().is_none() {
            return;
        }
        let chunk = chunk.get_or_init(|| (0..CHUNK).map(|_| Slot::default()).collect());
        let [high, low] = &chunk[id.0 as usize % CHUNK];
        let bits = address.map_or(0, u128::from);
        high.store(0, Ordering::SeqCst);
        low.store(bits as u64, Ordering::SeqCst);
        high.store((bits >> 64) as u64, Ordering::SeqCst);
    }

    /// A tunnel's address.
    pub(super) fn of(&self, id: TunnelId) -> Option<Ipv6Addr> {
        let [high, low] = self.0.get(id.0 as usize / CHUNK)?.get()?.get(id.0 as usize % CHUNK)?;
        let before = high.load(Ordering::SeqCst);
        let bits = u128::from(before) << 64 | u128::from(low.load(Ordering::SeqCst));
        (before != 0 && high.load(Ordering::SeqCst) == before).then(|| Ipv6Addr::from(bits))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_set_changed_and_taken_back() {
        let ours = Ours::new(2000);
        let addr = |n: u16| Some(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n));
        ours.set(TunnelId(1500), addr(1));
        assert_eq!(
            (ours.of(TunnelId(1500)), ours.of(TunnelId(1501)), ours.of(TunnelId(3))),
            (addr(1), None, None)
        );
        ours.set(TunnelId(1500), addr(2));
        assert_eq!(ours.of(TunnelId(1500)), addr(2));
        ours.set(TunnelId(1500), None);
        ours.set(TunnelId(9999), addr(1));
        assert_eq!((ours.of(TunnelId(1500)), ours.of(TunnelId(9999))), (None, None));
    }
}
