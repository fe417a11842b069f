//! One tunnel with contenders: who is held off, who is most likely the same peer, and when it is decided. Pure.
//!
//! Asks nobody: what is due is read from here.

use std::net::{Ipv6Addr, SocketAddrV4};
use std::time::Duration;

/// Held-off contenders remembered for each tunnel.
const HELD: usize = 16;
/// When the endpoint in use is asked, after the first contender has answered: a lost packet or two are no silence.
pub(super) const ASKED_AT: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(500),
    Duration::from_millis(1000),
    Duration::from_millis(2000),
    Duration::from_millis(3000),
];
/// What the old endpoint has sent may arrive for so long after the first packet from the new one.
pub(super) const SETTLED: Duration = Duration::from_millis(500);
/// How long the endpoint in use may be silent. A router on its side that is asked for a host that is not there says so after
/// 3 s (RFC 4861 section 10), which is a sign of life too.
const PATIENCE: Duration = Duration::from_secs(4);
/// The same where only the port is another one and the inner address is known: a NAT has lost its mind.
const PATIENCE_WITH_NAT: Duration = Duration::from_millis(1500);
/// How long a contender whose tunnel's endpoint lives is not heard again.
const HOLD_OFF: Duration = Duration::from_secs(10);

/// A tunnel with contenders, or with hold-offs to remember.
#[derive(Debug)]
pub(super) struct Inquiry {
    /// Those who have answered from other places than the tunnel's own, first come first.
    pub(super) contenders: Vec<Contender>,
    /// Whom they would replace.
    pub(super) current: SocketAddrV4,
    /// The peer's address by configuration.
    pub(super) echo: Option<Ipv6Addr>,
    pub(super) started: Duration,
    /// How often the current endpoint was asked.
    pub(super) asked: usize,
    pub(super) listening: bool,
    /// Contenders not heard until then; port 0: from no port.
    pub(super) held: Vec<(SocketAddrV4, Duration)>,
    /// No other inquiry before this.
    pub(super) next: Duration,
    /// Its key in `timers`.
    pub(super) deadline: Duration,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Contender {
    pub(super) sender: SocketAddrV4,
    pub(super) local: SocketAddrV4,
    pub(super) inner: Ipv6Addr,
    pub(super) source: Ipv6Addr,
}

impl Inquiry {
    pub(super) fn new(now: Duration, current: SocketAddrV4) -> Self {
        Self {
            contenders: Vec::new(),
            current,
            echo: None,
            started: now,
            asked: 0,
            listening: false,
            held: Vec::new(),
            next: now,
            deadline: now,
        }
    }

    pub(super) fn is_held(&self, now: Duration, sender: SocketAddrV4) -> bool {
        let is_it = |held: SocketAddrV4| {
            held.ip() == sender.ip() && (held.port() == 0 || held.port() == sender.port())
        };
        self.held.iter().any(|&(held, until)| is_it(held) && now < until)
    }

    /// Holds a refuted contender off: all of its address, unless that is the endpoint's own, whose port a NAT may change.
    pub(super) fn hold(&mut self, now: Duration, sender: SocketAddrV4) {
        self.held.retain(|&(_, until)| until > now);
        if self.held.len() >= HELD {
            self.held.remove(0);
        }
        let is_neighbour = sender.ip() == self.current.ip();
        let port = if is_neighbour { sender.port() } else { 0 };
        self.held.push((SocketAddrV4::new(*sender.ip(), port), now + HOLD_OFF));
    }

    /// The contender that is most likely the same peer: behind the same NAT, or with an address inside that the peer has
    /// shown; among equals the first.
    pub(super) fn best(&self, shown: &[Ipv6Addr]) -> usize {
        let rank = |c: &Contender| (c.sender.ip() != self.current.ip(), !shown.contains(&c.inner));
        let ranked = self.contenders.iter().enumerate().min_by_key(|(_, c)| rank(c));
        ranked.map_or(0, |(at, _)| at)
    }

    /// When the endpoint in use has been silent for long enough.
    pub(super) fn decides_at(&self, shown: &[Ipv6Addr]) -> Duration {
        let is_likely = |c: &Contender| c.sender.ip() == self.current.ip() && shown.contains(&c.inner);
        let patience = if self.contenders.iter().any(is_likely) { PATIENCE_WITH_NAT } else { PATIENCE };
        self.started + patience
    }

    /// When there is nothing left to remember.
    pub(super) fn rests_until(&self) -> Duration {
        self.held.iter().map(|&(_, until)| until).fold(self.next, Duration::max)
    }

    pub(super) fn next_deadline(&self, shown: &[Ipv6Addr]) -> Duration {
        if self.contenders.is_empty() {
            return self.rests_until();
        }
        let listens = Some(self.started + SETTLED).filter(|_| !self.listening);
        let asks = ASKED_AT.get(self.asked).map(|at| self.started + *at);
        [listens, asks].into_iter().flatten().fold(self.decides_at(shown), Duration::min)
    }
}
