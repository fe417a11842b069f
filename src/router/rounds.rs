//! What is looked after once a second, whatever else goes on.

use std::time::{Duration, Instant};

use sixway_dataplane::start::Workers;

use super::Control;
use crate::broker::Protocol;
use crate::office::Office;

impl Control {
    /// Whether all without which there is no router is there.
    pub(super) fn check_health(&self, workers: &Workers) -> anyhow::Result<()> {
        anyhow::ensure!(!workers.has_failed(), "a forwarding thread has ended; this is a bug");
        let store_failed = self.office.as_ref().is_some_and(Office::has_failed);
        anyhow::ensure!(!store_failed, "the store's thread has ended; this is a bug");
        anyhow::ensure!(
            self.network.is_there(),
            "the TUN device '{}' is gone: somebody has deleted it; start sixway again to have it back",
            self.config.router.tun
        );
        Ok(())
    }

    /// Tunnels whose clients are heard go on; those that miss their signs of life end.
    pub(super) fn patrol(&mut self) {
        let (Some(tsp), Some(office)) = (&self.dispatch.tsp, &mut self.office) else { return };
        if self.patrolled.elapsed() < tsp.round() {
            return;
        }
        self.patrolled = Instant::now();
        let (uptime, registry) = (self.started.elapsed(), &self.registry);
        office.patrol(Protocol::Tsp, |lease, now| {
            let heard = registry.last_heard(lease.grant.lease).map(|at| Duration::from_secs(at.into()));
            let silent = uptime.saturating_sub(heard.unwrap_or_default()).min(now.since(lease.granted));
            let left = lease.grant.expires.map_or(Duration::MAX, |at| at.since(now));
            tsp.look(lease, heard.is_some(), silent, left)
        });
    }

    pub(super) fn end_stale_churn(&mut self) {
        match self.churn.expire(&mut self.registry, self.started.elapsed()) {
            Ok(true) => tracing::warn!("whoever measured is gone; the tunnels of the churn are removed"),
            Ok(false) => {}
            Err(why) => tracing::error!("tunnels of the churn stay until the next reload: {why}"),
        }
    }
}
