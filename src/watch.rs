//! `sixway trace` and `sixway capture`, inside the router: copies of a tunnel's packets on their way to viewers.
//!
//! A tunnel is watched while somebody views it; the forwarder copies its packets up then and only then. Every viewer has a
//! queue of its own: what finds it full is counted and told with the next packet. A viewer that goes away is noticed within
//! a second and leaves nothing behind.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use sixway_dataplane::counters::{CounterReader, Event};
use sixway_dataplane::punt::Punt;
use sixway_dataplane::update::TunnelId;
use sixway_dataplane::verdict::Verdict;
use tokio::sync::mpsc;

use crate::admin::packet::{Seen, hex, sender, summary, verdict};
use crate::registry::Registry;

/// Most viewers at once.
pub const VIEWERS: usize = 8;
/// Packets that may wait for one viewer.
pub const WAITING: usize = 1024;

#[derive(Debug)]
struct Viewer {
    to: mpsc::Sender<Seen>,
    /// Packets that found no room since the last that did.
    missed: u64,
}

/// The tunnels that are viewed, and by whom.
#[derive(Debug, Default)]
pub struct Watchers {
    all: HashMap<TunnelId, (String, Vec<Viewer>)>,
    /// Copies that had found no room on the way up, of all watched tunnels, when that was last looked at.
    lost: u64,
}

impl Watchers {
    /// A new viewer of the tunnel `name`. `Err` says why there can be none.
    pub fn open(
        &mut self,
        registry: &mut Registry,
        counters: &CounterReader,
        name: &str,
    ) -> Result<mpsc::Receiver<Seen>, String> {
        self.sweep(registry);
        if self.all.values().map(|(_, viewers)| viewers.len()).sum::<usize>() >= VIEWERS {
            return Err(format!("{VIEWERS} viewers watch already; end one of them"));
        }
        let id = registry.by_name(name).ok_or_else(|| registry.no_tunnel(name))?;
        registry.watch(id, true).map_err(|why| why.to_string())?;
        if self.all.is_empty() {
            self.lost = counters.happened(Event::WatchMissed);
        }
        let (to, seen) = mpsc::channel(WAITING);
        let (_, viewers) = self.all.entry(id).or_insert_with(|| (name.to_owned(), Vec::new()));
        viewers.push(Viewer { to, missed: 0 });
        Ok(seen)
    }

    /// Shows a copy to whoever views its tunnel.
    pub fn show(&mut self, registry: &Registry, counters: &CounterReader, punt: &Punt) {
        let Some((name, viewers)) = punt.tunnel().and_then(|id| self.all.get_mut(&id)) else { return };
        let lost = counters.happened(Event::WatchMissed);
        let newly = lost.saturating_sub(self.lost);
        self.lost = lost;
        let seen = seen(registry, name, punt);
        for viewer in viewers {
            viewer.missed += newly;
            match viewer.to.try_send(Seen { missed: viewer.missed, ..seen.clone() }) {
                Ok(()) => viewer.missed = 0,
                Err(_) => viewer.missed += 1,
            }
        }
    }

    /// Forgets viewers that have gone, ends those whose tunnel has, and stops watching what nobody views.
    pub fn sweep(&mut self, registry: &mut Registry) {
        self.all.retain(|id, (name, viewers)| {
            viewers.retain(|viewer| !viewer.to.is_closed());
            // The number may be another tunnel's by now.
            let is_there = registry.by_name(name) == Some(*id);
            if viewers.is_empty() && is_there {
                let _it_is_gone_then = registry.watch(*id, false);
            }
            !viewers.is_empty() && is_there
        });
    }

    /// Whether nobody views anything.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}

fn seen(registry: &Registry, tunnel: &str, punt: &Punt) -> Seen {
    let names = |id| registry.tunnel(id).map_or_else(|| format!("{id}"), |live| live.config.name.to_string());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let reason = match punt.verdict() {
        Verdict::Drop(reason, _) => Some(reason.name().to_owned()),
        Verdict::ToWire(..) | Verdict::ToTun | Verdict::Punt(_) | Verdict::ToTunAndPunt(_) => None,
    };
    Seen {
        at_us: now.as_micros() as u64,
        tunnel: Some(tunnel.to_owned()),
        from: sender(Some(punt.arrival())),
        verdict: verdict(&punt.verdict(), &names),
        reason,
        summary: summary(punt.bytes(), punt.whole()),
        len: punt.whole(),
        octets: hex(punt.bytes()),
        missed: 0,
    }
}
