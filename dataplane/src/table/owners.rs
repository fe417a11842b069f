//! Whose an address is, for those who are no workers: one question at a time on the live tables.

use std::net::Ipv6Addr;

use super::Reader;
use crate::update::TunnelId;

/// Asks the tables; holds nothing between questions.
#[derive(Debug)]
pub struct Owners(Reader);

impl Owners {
    pub(crate) fn new(reader: Reader) -> Self {
        Self(reader)
    }

    /// The tunnel that an inner address belongs to by longest match, and the prefix's length: 0 is an uplink's, which says where
    /// the world is, not that this address is out there.
    pub fn of(&mut self, addr: Ipv6Addr) -> Option<(TunnelId, u8)> {
        self.0.online();
        let entry = self.0.view().longest_match(addr);
        let owner = entry.and_then(|entry| entry.owner.path().map(|path| (path.tunnel, entry.len)));
        self.0.offline();
        owner
    }
}
