//! How often who may be asked: no endpoint twice in a second, no sender, tunnel or all of them without end. Pure.

use std::time::Duration;

use sixway_dataplane::update::TunnelId;

use super::Candidate;
use crate::endpoint::pace::Pace;

/// How often candidates are asked.
#[derive(Debug)]
pub(super) struct Tolls {
    endpoint: Pace,
    address: Pace,
    sender: Pace,
    tunnel: Pace,
    all: Pace,
}

/// Why a candidate is not asked.
pub(super) enum Toll {
    /// It was asked just now.
    Again,
    /// So are too many others.
    TooMany,
}

impl Tolls {
    /// Nobody has been asked.
    pub(super) fn new([a, b, c, d, e]: [u64; 5]) -> Self {
        Self {
            endpoint: Pace::new(1 << 16, 1, 1, a),
            address: Pace::new(1 << 14, 20, 20, b),
            sender: Pace::new(1 << 14, 200, 400, c),
            tunnel: Pace::new(1 << 14, 100, 100, d),
            all: Pace::new(1, 5000, 5000, e),
        }
    }

    /// A candidate at the address of the endpoint in use, with another port, is more likely than others to be the same peer
    /// behind a NAT; so it does not share a bucket with them.
    pub(super) fn refusal(&mut self, now: Duration, candidate: &Candidate) -> Option<Toll> {
        let Candidate { tunnel: TunnelId(tunnel), sender, current, .. } = *candidate;
        let addr: u32 = (*sender.ip()).into();
        let stays = current.is_some_and(|at| at.ip() == sender.ip());
        if !self.endpoint.allows(now, (tunnel, addr, sender.port()))
            || !self.address.allows(now, (tunnel, addr))
        {
            return Some(Toll::Again);
        }
        let fits = self.sender.allows(now, addr)
            && self.tunnel.allows(now, (tunnel, stays))
            && (stays || self.all.allows(now, ()));
        (!fits).then_some(Toll::TooMany)
    }
}
