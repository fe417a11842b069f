//! Tunnels that come, change and go at a pace, for `sixway bench churn`: the updates of one measurement on a live registry.
//!
//! They use only what is set aside for measurements, and never what the configuration uses: inner prefixes in 2001:2::/48
//! (RFC 5180 section 8), peers in 198.18.0.0/15 (RFC 2544, appendix C). A measurement that is not asked on for
//! [`LEASE`] has lost its asker, and its tunnels go. Knows no sockets and no clock.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use sixway_dataplane::update::{Ipv6Prefix, MIN_MTU, Outer, UdpRemote};

use crate::config::{Ra, TunnelConfig};
use crate::registry::{Change, Live, Registry};

/// Most tunnels of a measurement: a /64 of the range for each.
pub const MOST_TUNNELS: u32 = 1 << 16;
/// Most updates in one batch.
pub const MOST_UPDATES: u32 = 10_000;
/// Without a batch for so long, a measurement is over.
pub const LEASE: Duration = Duration::from_secs(2);
/// Updates that each tunnel gets in turn: it comes, changes, goes.
const ROUND: u64 = 3;
/// Begins the names; no configured name may hold a colon.
const NAME: &str = "churn:";

/// One batch of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Which measurement: a number that its asker has chosen.
    pub session: u32,
    /// How many tunnels it uses in turn.
    pub tunnels: u32,
    /// How many of them get their next update.
    pub updates: u32,
}

/// What became of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// Updates that are in the tables.
    pub applied: u32,
    /// Why the others are not; a batch is applied as a whole or not at all.
    pub refused: Option<String>,
}

/// The measurement that runs, if one does.
#[derive(Debug, Default)]
pub struct Churn(Option<Run>);

#[derive(Debug)]
struct Run {
    session: u32,
    tunnels: u32,
    step: u64,
    last: Duration,
}

impl Churn {
    /// Carries out the next batch; the first one of a session begins it. `Err` says why it may not.
    pub fn batch(&mut self, registry: &mut Registry, batch: Batch, now: Duration) -> Result<Done, String> {
        let run = match &mut self.0 {
            Some(run) if (run.session, run.tunnels) == (batch.session, batch.tunnels) => run,
            Some(_) => {
                return Err(format!(
                    "another churn runs; it ends {} s after its last batch",
                    LEASE.as_secs()
                ));
            }
            None => {
                check(registry)?;
                self.0.insert(Run { session: batch.session, tunnels: batch.tunnels, step: 0, last: now })
            }
        };
        run.last = now;
        let changes = run.next(batch.updates);
        let applied = changes.len() as u32;
        Ok(match registry.change(changes) {
            Ok(()) => Done { applied, refused: None },
            Err(why) => Done { applied: 0, refused: Some(why.to_string()) },
        })
    }

    /// Ends the measurement of this session, if it runs, and removes its tunnels.
    pub fn end(&mut self, registry: &mut Registry, session: u32) -> Result<(), String> {
        self.end_if(registry, |run| run.session == session).map(std::mem::drop)
    }

    /// Ends a measurement whose asker has gone. Returns whether there was one.
    pub fn expire(&mut self, registry: &mut Registry, now: Duration) -> Result<bool, String> {
        self.end_if(registry, |run| now.saturating_sub(run.last) > LEASE)
    }

    /// A reload has removed its tunnels: the next batch begins anew, and is checked against what is configured now.
    pub fn forget(&mut self) {
        self.0 = None;
    }

    fn end_if(&mut self, registry: &mut Registry, over: impl Fn(&Run) -> bool) -> Result<bool, String> {
        let Some(run) = self.0.take_if(|run| over(run)) else { return Ok(false) };
        let all = (0..run.tunnels).map(|n| Change::Remove(name(n))).collect();
        registry.change(all).map_err(|why| why.to_string())?;
        Ok(true)
    }
}

impl Run {
    fn next(&mut self, updates: u32) -> Vec<Change> {
        // No tunnel twice in one batch.
        let count = updates.min(self.tunnels).min(MOST_UPDATES);
        let from = self.step;
        self.step += u64::from(count);
        (from..self.step).map(|step| update(step, self.tunnels)).collect()
    }
}

/// The update at `step`: all tunnels come, then all change, then all go.
fn update(step: u64, tunnels: u32) -> Change {
    let n = (step % u64::from(tunnels)) as u32;
    match step / u64::from(tunnels) % ROUND {
        0 => Change::Put(tunnel(n, MIN_MTU, Ipv4Addr::new(198, 18, 0, 0))),
        1 => Change::Put(tunnel(n, MIN_MTU + 40, Ipv4Addr::new(198, 19, 0, 0))),
        _ => Change::Remove(name(n)),
    }
}

/// Whether a tunnel of this name is a measurement's.
pub fn is_churn(name: &str) -> bool {
    name.starts_with(NAME)
}

fn name(n: u32) -> Box<str> {
    format!("{NAME}{n}").into()
}

fn tunnel(n: u32, mtu: u16, peers: Ipv4Addr) -> TunnelConfig {
    let prefix = Ipv6Addr::from(range().bits() | u128::from(n) << 64);
    TunnelConfig {
        name: name(n),
        outer: Outer::Proto41 { local: None, remote: Ipv4Addr::from(u32::from(peers) + n) },
        prefixes: Ipv6Prefix::new(prefix, 64).into_iter().collect(),
        mtu,
        default_route: false,
        ra: Ra { on: false, managed: false, other: false, prefix: Vec::new() },
        care: None,
    }
}

/// The inner range: BMWG's, 2001:2::/48.
fn range() -> Ipv6Prefix {
    Ipv6Prefix::new(Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 0), 48).unwrap_or(Ipv6Prefix::ALL)
}

fn is_peer(addr: Ipv4Addr) -> bool {
    let [a, b, ..] = addr.octets();
    a == 198 && b & 0xfe == 18
}

/// Whoever uses these ranges for something else must not be disturbed.
fn check(registry: &Registry) -> Result<(), String> {
    let says = |who: String| {
        format!(
            "{who} uses addresses that the churn needs (2001:2::/48, 198.18.0.0/15); they are set aside for measurements"
        )
    };
    if let Some(addr) = registry.local().iter().find(|a| range().contains(**a)) {
        return Err(says(format!("the router's own address {addr}")));
    }
    // What is reserved only now would be in a measurement's way, and what it grants in the pool's.
    if let Some(pool) = registry.pools().iter().find(|pool| range().covers(**pool) || pool.covers(range())) {
        return Err(says(format!("the pool {pool}")));
    }
    let theirs = registry.iter().find(|(_, live)| overlaps(live));
    theirs.map_or(Ok(()), |(_, live)| Err(says(format!("tunnel '{}'", live.config.name))))
}

fn overlaps(live: &Live) -> bool {
    // `::/0` is everybody's way out, and whatever is longer goes before it.
    let inner = |p: &Ipv6Prefix| p.prefix_len() > 0 && (range().covers(*p) || p.covers(range()));
    let (local, remote) = match live.outer {
        Outer::Proto41 { local, remote } => (local, Some(remote)),
        Outer::Udp { local, remote: UdpRemote::AnyPort { addr, .. } } => (local.addr, Some(addr)),
        Outer::Udp { local, remote } => (local.addr, remote.endpoint().map(|at| *at.ip())),
    };
    live.config.prefixes.iter().any(inner) || local.into_iter().chain(remote).any(is_peer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(changes: &[Change]) -> Vec<String> {
        let told = |c: &Change| match c {
            Change::Put(t) => format!("+{} {} {:?}", t.name, t.mtu, t.outer),
            Change::Remove(name) => format!("-{name}"),
        };
        changes.iter().map(told).collect()
    }

    #[test]
    fn each_tunnel_comes_changes_and_goes_and_none_twice_in_a_batch() {
        let mut run = Run { session: 1, tunnels: 2, step: 0, last: Duration::ZERO };
        let rounds: Vec<_> = (0..4).map(|_| names(&run.next(50))).collect();
        assert!(rounds.iter().all(|r| r.len() == 2), "{rounds:?}");
        assert!(rounds[0][1].starts_with("+churn:1 1280") && rounds[0][1].contains("198.18.0.1"));
        assert!(rounds[1][1].starts_with("+churn:1 1320") && rounds[1][1].contains("198.19.0.1"));
        assert_eq!(rounds[2], ["-churn:0", "-churn:1"]);
        assert_eq!(rounds[3], rounds[0]);
    }

    #[test]
    fn the_last_tunnel_is_still_in_the_ranges() {
        let last = tunnel(MOST_TUNNELS - 1, MIN_MTU, Ipv4Addr::new(198, 19, 0, 0));
        assert_eq!(last.prefixes[0].to_string(), "2001:2:0:ffff::/64");
        assert!(range().covers(last.prefixes[0]));
        let Outer::Proto41 { remote, .. } = last.outer else { panic!("protocol 41") };
        assert!(is_peer(remote) && !is_peer(Ipv4Addr::new(198, 20, 0, 0)));
    }
}
