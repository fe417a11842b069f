//! The TUN device goes down and comes up: what was on it is put back.
//!
//! Only then, and at a reload: what somebody takes away one by one from a device that is up, is meant to be away.

use std::time::Instant;

use super::Control;
use crate::link::device::{DeviceWatch, Seen};
use crate::link::pace::Pace;
use crate::network::{Back, Network};

/// What is known of the device, and what has been done about it.
pub(super) struct Device {
    watch: DeviceWatch,
    /// What has been dealt with.
    dealt: Seen,
    pace: Pace,
    began: Instant,
}

/// What is to be done.
pub(super) enum Turn {
    /// This is how the device is now.
    Look(Seen),
    /// There is more to put back.
    More,
}

impl Device {
    /// The device as it is: all is there.
    pub(super) async fn watch(network: &Network) -> anyhow::Result<Self> {
        let watch = network.watch().await?;
        let dealt = watch.seen();
        Ok(Self { watch, dealt, pace: Pace::default(), began: Instant::now() })
    }

    pub(super) fn is_up(&self) -> bool {
        self.watch.seen().is_up
    }

    /// Waits until something is to be done. Dropped at any moment it has lost nothing.
    pub(super) async fn next(device: &mut Option<Self>, owes: bool) -> Turn {
        let Some(device) = device else { return std::future::pending().await };
        if owes {
            return Turn::More;
        }
        loop {
            if device.watch.seen() != device.dealt {
                tokio::time::sleep_until((device.began + device.pace.due()).into()).await;
                let seen = device.watch.seen();
                if seen != device.dealt {
                    return Turn::Look(seen);
                }
            }
            device.watch.changed().await;
        }
    }

    /// This has been dealt with; whether all that was on the device is gone.
    fn deal(&mut self, seen: Seen) -> bool {
        let is_empty = seen.is_up && (seen.falls != self.dealt.falls || !self.dealt.is_up);
        self.dealt = seen;
        // What goes down needs no pace.
        if is_empty {
            self.pace.did(self.began.elapsed());
        }
        is_empty
    }
}

impl Control {
    /// Looks after the device.
    pub(super) async fn tend_device(&mut self, turn: Turn) {
        let Turn::Look(seen) = turn else { return self.put_back().await };
        let is_empty = self.device.as_mut().is_some_and(|device| device.deal(seen));
        let tun = self.config.router.tun.clone();
        if !seen.is_up {
            tracing::warn!(
                event = "device_down",
                "{tun} is down: no packet goes through it; `ip link set {tun} up` brings it back, with its addresses and routes"
            );
        }
        if !is_empty {
            return;
        }
        match self.network.look_for_losses().await {
            Ok(()) if self.network.owes() => {}
            Ok(()) => {
                tracing::info!(event = "device_up", "{tun} is up again; its addresses and routes are there")
            }
            Err(why) => tracing::error!(
                "{tun} is up again, and it cannot be seen what is missing: {why}; set it down and up to have it tried again"
            ),
        }
    }

    async fn put_back(&mut self) {
        if let Some(back) = self.network.put_back().await {
            let tun = &self.config.router.tun;
            tracing::info!(event = "device_up", "what was gone from {tun} is put back: {back}");
        }
    }

    /// What somebody has taken away is there again after a reload; says what it was.
    pub(super) async fn put_all_back(&mut self) -> Option<String> {
        if let Err(why) = self.network.look_for_losses().await {
            return Some(format!("it cannot be seen what is missing on {}: {why}", self.config.router.tun));
        }
        let mut back = self.network.put_back().await;
        // The rest of many comes in turns, between which others have theirs; where nobody watches the device there are none.
        while self.device.is_none() && self.network.owes() {
            back = self.network.put_back().await;
        }
        let (tun, more) = (&self.config.router.tun, self.network.owing());
        if more > 0 {
            return Some(format!(
                "much is gone from {tun} and is being put back, {more} more; the log says when it is done"
            ));
        }
        let back = back.filter(|back: &Back| !back.is_nothing());
        back.map(|back| format!("gone from {tun} and put back: {back}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::netlink::tests::{cable, in_fresh_namespace, run};

    #[test]
    fn all_is_gone_after_a_fall_and_after_nothing_else() {
        in_fresh_namespace(|| {
            run(async |links| {
                cable(&links).await;
                let watch = DeviceWatch::open(&links, "a").await.unwrap();
                let dealt = watch.seen();
                let mut device = Device { watch, dealt, pace: Pace::default(), began: Instant::now() };
                let seen = |is_up, falls| Seen { is_up, falls };
                assert!(!device.deal(seen(true, 0)));
                assert!(!device.deal(seen(false, 1)), "first it has to come up");
                assert!(device.deal(seen(true, 1)));
                assert!(device.deal(seen(true, 2)), "both within one look");
                assert!(device.deal(seen(true, 3)) && device.deal(seen(true, 4)));
                assert!(!device.deal(seen(true, 4)));
                assert!(device.pace.due().as_secs() > 2, "often enough");
                assert!(matches!(Device::next(&mut Some(device), true).await, Turn::More));
            });
        });
    }
}
