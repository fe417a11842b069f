//! Links that a running router serves beside its tunnels: one server for all of them, by one `dhcp6s.conf`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::anyhow;
use sixway_dataplane::update::Ipv6Prefix;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::files::Files;
use super::{Elsewhere, Ended, Own, Server, Start, plan};
use crate::admin::leases::{Held, Sieve};
use crate::dhcpv6::telling::Evicted;

/// Orders that wait for the server.
const WAITING: usize = 4;
/// How long the server is waited for that is asked something.
const PATIENCE: Duration = Duration::from_millis(200);
/// How long it is waited for when it reads its configuration again.
const RELOADING: Duration = Duration::from_secs(10);

/// The server on links.
#[derive(Debug)]
pub struct Front {
    orders: mpsc::Sender<Own>,
    task: JoinHandle<()>,
}

impl Front {
    /// Serves these interfaces by this configuration, which must have nothing in common with what is given out `elsewhere`.
    /// Leases are kept beside the `store`.
    ///
    /// # Errors
    /// What is wrong with the configuration, or could not be opened, and what to do about it.
    pub async fn open(
        interfaces: &[String],
        file: &Path,
        store: &Path,
        elsewhere: &Elsewhere,
    ) -> anyhow::Result<Self> {
        let mut files = Files::new(file).expecting(interfaces);
        let conf = files.read()?;
        plan::check(&conf, elsewhere)?;
        let start = Start {
            interfaces: interfaces.to_owned(),
            waits: true,
            files,
            conf,
            dns: Vec::new(),
            duid: store.with_extension("dhcp6s_duid"),
            leases: store.with_extension("dhcp6s_leases.db"),
            control: None,
        };
        start.say_silent_links();
        let mut server = Server::open(start).await?;
        tracing::info!("DHCPv6 on {}: {} leases", interfaces.join(", "), server.leases());
        let (orders, mut ordered) = mpsc::channel(WAITING);
        let task = tokio::spawn(async move {
            if server.serve(&mut ordered).await == Ended::Broken {
                tracing::error!(
                    "DHCPv6 on links has ended: the thread that writes leases is gone, which is a bug"
                );
            }
            server.close().await;
        });
        Ok(Self { orders, task })
    }

    /// Has the server read its configuration again.
    ///
    /// # Errors
    /// What is wrong with it; then it stays in force as it was.
    pub async fn reload(&self, elsewhere: Elsewhere) -> anyhow::Result<()> {
        let (tell, told) = oneshot::channel();
        let _told = self.orders.send(Own::Reload(elsewhere, Some(tell))).await;
        match tokio::time::timeout(RELOADING, told).await {
            Ok(Ok(done)) => done.map_err(|why| anyhow!(why)),
            Ok(Err(_)) => Err(anyhow!("the DHCPv6 server on links has ended; the log says why")),
            Err(_) => Err(anyhow!("the DHCPv6 server on links is busy; the log says what becomes of it")),
        }
    }

    /// Has the server give nothing that is given out elsewhere now, or somebody's there; what it has given of that ends.
    pub async fn keep_clear_of(&self, elsewhere: Elsewhere) {
        let _told = self.orders.send(Own::KeepClearOf(elsewhere)).await;
    }

    /// Has clients that let themselves be told ask anew.
    pub async fn reconfigure(&self) {
        let _told = self.orders.send(Own::Reconfigure).await;
    }

    /// What has happened on each link, by name; nothing if the server does not answer at once.
    pub async fn counts(&self) -> BTreeMap<String, BTreeMap<String, u64>> {
        self.ask(Own::Count).await.unwrap_or_default()
    }

    /// Who has what behind this prefix, some of it, and where to go on; `None` if the server does not answer at once.
    pub async fn leases(
        &self,
        sieve: Sieve,
        after: Option<Ipv6Prefix>,
    ) -> Option<(Vec<Held>, Option<Ipv6Prefix>)> {
        self.ask(|tell| Own::Find(sieve, after, tell)).await
    }

    /// Ends the lease of this prefix; says what becomes of its client, `None` if there was none.
    pub async fn end(&self, prefix: Ipv6Prefix) -> Option<Evicted> {
        self.ask(|tell| Own::End(prefix, tell)).await.flatten()
    }

    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Own) -> Option<T> {
        let (tell, told) = oneshot::channel();
        self.orders.try_send(question(tell)).ok()?;
        tokio::time::timeout(PATIENCE, told).await.ok()?.ok()
    }

    /// Ends it. Leases and their routes stay.
    pub async fn close(self) {
        let Self { orders, task } = self;
        let _told = orders.send(Own::Stop).await;
        let _ended = task.await;
    }
}
