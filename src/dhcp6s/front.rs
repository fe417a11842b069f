//! Links that a running router serves beside its tunnels: one server for all of them, by one `dhcp6s.conf`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::anyhow;
use sixway_dataplane::update::Ipv6Prefix;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::counts::DAMAGED;
use super::files::Files;
use super::ledger::LedgerError;
use super::{Elsewhere, Ended, Own, Server, Start, plan};
use crate::admin::leases::{Held, Sieve};
use crate::dhcpv6::telling::Evicted;

/// Orders that wait for the server.
const WAITING: usize = 4;
/// How long the server is waited for that is asked something.
const PATIENCE: Duration = Duration::from_millis(200);
/// How long an order waits for room among those before it.
const CROWDED: Duration = Duration::from_secs(3);
/// What is said of a server that answers later, or never.
const BUSY: &str = "the server on links is busy; `sixway leases` says what became of it";
/// How long it is waited for when it reads its configuration again.
const RELOADING: Duration = Duration::from_secs(10);

/// What a server is opened by.
struct Recipe {
    interfaces: Vec<String>,
    file: PathBuf,
    duid: PathBuf,
    leases: PathBuf,
}

impl Recipe {
    /// Opens the server; `None`: its leases are damaged, so nothing can be given out on links, and the log says so. What
    /// else there is in the process needs none of them.
    async fn open(&self, elsewhere: &Elsewhere) -> anyhow::Result<Option<Server>> {
        let mut files = Files::new(&self.file).expecting(&self.interfaces);
        let conf = files.read()?;
        plan::check(&conf, elsewhere)?;
        let start = Start {
            interfaces: self.interfaces.clone(),
            waits: true,
            files,
            conf,
            dns: Vec::new(),
            duid: self.duid.clone(),
            leases: self.leases.clone(),
            control: None,
        };
        start.say_silent_links();
        let links = self.interfaces.join(", ");
        match Server::open(start).await {
            Ok(server) => {
                tracing::info!("DHCPv6 on {links}: {} leases", server.leases());
                Ok(Some(server))
            }
            Err(why) if why.downcast_ref().is_some_and(LedgerError::is_damage) => {
                tracing::error!(
                    "DHCPv6 is not served on {links}; all else runs. {why}. Then `sixway reload` has it served"
                );
                Ok(None)
            }
            Err(why) => Err(why),
        }
    }

    /// Serves until it is told to stop.
    async fn run(self, server: Option<Server>, mut ordered: mpsc::Receiver<Own>) {
        let server = match server {
            Some(server) => Some(server),
            None => self.wait(&mut ordered).await,
        };
        let Some(mut server) = server else { return };
        if server.serve(&mut ordered).await == Ended::Broken {
            tracing::error!(
                "DHCPv6 on links has ended: the thread that writes leases is gone, which is a bug"
            );
        }
        server.close().await;
    }

    /// Stands in for a server whose leases are damaged, until a reload finds them sound; `None`: it is told to stop.
    async fn wait(&self, ordered: &mut mpsc::Receiver<Own>) -> Option<Server> {
        loop {
            match ordered.recv().await? {
                Own::Stop => return None,
                Own::Reload(elsewhere, told) => {
                    let opened = self.open(&elsewhere).await;
                    let (done, server) = match opened {
                        Ok(server) => (Ok(()), server),
                        Err(why) => (Err(format!("{why:#}")), None),
                    };
                    let _whoever_waits = told.map(|told| told.send(done));
                    if server.is_some() {
                        return server;
                    }
                }
                // Whoever asked may have gone.
                Own::Count(to) => {
                    let damaged = || BTreeMap::from([(DAMAGED.to_owned(), 1)]);
                    let all = self.interfaces.iter().map(|name| (name.clone(), damaged()));
                    drop(to.send(all.collect()));
                }
                Own::Find(_, _, to) => drop(to.send((Vec::new(), None))),
                Own::End(_, to) => drop(to.send(None)),
                Own::KeepClearOf(_) | Own::Reconfigure => {}
            }
        }
    }
}

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
        let recipe = Recipe {
            interfaces: interfaces.to_owned(),
            file: file.to_owned(),
            duid: store.with_extension("dhcp6s_duid"),
            leases: store.with_extension("dhcp6s_leases.db"),
        };
        let server = recipe.open(elsewhere).await?;
        let (orders, ordered) = mpsc::channel(WAITING);
        let task = tokio::spawn(recipe.run(server, ordered));
        Ok(Self { orders, task })
    }

    /// Has the server read its configuration again.
    ///
    /// # Errors
    /// What is wrong with it; then it stays in force as it was.
    pub async fn reload(&self, elsewhere: Elsewhere) -> anyhow::Result<()> {
        let (tell, told) = oneshot::channel();
        if !self.order(Own::Reload(elsewhere, Some(tell))).await {
            return Err(anyhow!("the DHCPv6 server on links is busy; run `sixway reload` again"));
        }
        match tokio::time::timeout(RELOADING, told).await {
            Ok(Ok(done)) => done.map_err(|why| anyhow!(why)),
            Ok(Err(_)) => Err(anyhow!("the DHCPv6 server on links has ended; the log says why")),
            Err(_) => Err(anyhow!("the DHCPv6 server on links is busy; the log says what becomes of it")),
        }
    }

    /// Has the server give nothing that is given out elsewhere now, or somebody's there; what it has given of that ends.
    pub async fn keep_clear_of(&self, elsewhere: Elsewhere) {
        if !self.order(Own::KeepClearOf(elsewhere)).await {
            tracing::warn!(
                "the DHCPv6 server on links is busy and does not know what is given elsewhere now; `sixway reload` tells it"
            );
        }
    }

    /// Has clients that let themselves be told ask anew.
    pub async fn reconfigure(&self) {
        if !self.order(Own::Reconfigure).await {
            tracing::warn!("the DHCPv6 server on links is busy, and its clients do not ask anew");
        }
    }

    /// Whether it has room for this; whoever waits for an answer of a server that has ended is told so by that.
    async fn order(&self, own: Own) -> bool {
        tokio::time::timeout(CROWDED, self.orders.send(own)).await.is_ok()
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
    ///
    /// # Errors
    /// The server does not answer at once: it may end the lease all the same, later.
    pub async fn end(&self, prefix: Ipv6Prefix) -> Result<Option<Evicted>, &'static str> {
        match self.ask(|tell| Own::End(prefix, tell)).await {
            Some(ended) => Ok(ended),
            // It has ended, and gives nothing out.
            None if self.orders.is_closed() => Ok(None),
            None => Err(BUSY),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What a server is asked that does nothing waits for it, and ends the lease once it does something again.
    #[tokio::test]
    async fn a_busy_server_is_not_one_that_knows_of_no_lease_and_nobody_waits_for_it_without_end() {
        let (orders, mut ordered) = mpsc::channel(WAITING);
        let front = Front { orders, task: tokio::spawn(async {}) };
        let prefix = "2001:db8::/56".parse().unwrap();
        for _ in 0..WAITING {
            assert_eq!(front.end(prefix).await.unwrap_err(), BUSY);
        }
        assert_eq!(front.end(prefix).await.unwrap_err(), BUSY, "there is no room for another");
        let (clear, anew) = (front.keep_clear_of(Vec::new()), front.reconfigure());
        let ((), (), read) = tokio::join!(clear, anew, front.reload(Vec::new()));
        let why = read.unwrap_err().to_string();
        assert!(why.contains("busy"), "{why}");
        assert!(matches!(ordered.recv().await, Some(Own::End(asked, _)) if asked == prefix));
        drop(ordered);
        assert!(front.end(prefix).await.unwrap().is_none(), "it has ended");
    }

    /// No interface of this name is there, so nothing of the host's is touched.
    #[tokio::test]
    async fn damaged_leases_keep_nothing_else_from_running_and_are_served_once_they_are_sound() {
        let folder = std::env::temp_dir().join(format!("sixway-front-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (file, store) = (folder.join("dhcp6s.conf"), folder.join("store.db"));
        std::fs::write(&file, "").unwrap();
        let leases = folder.join("store.dhcp6s_leases.db");
        std::fs::write(&leases, [0xee; 8192]).unwrap();
        let links = ["not-there-0".to_owned()];
        let front = Front::open(&links, &file, &store, &Vec::new()).await.unwrap();
        assert!(front.counts().await["not-there-0"].contains_key(DAMAGED));
        front.reload(Vec::new()).await.unwrap();
        assert!(front.counts().await["not-there-0"].contains_key(DAMAGED), "it is as it was");
        std::fs::remove_file(&leases).unwrap();
        front.reload(Vec::new()).await.unwrap();
        assert!(!front.counts().await["not-there-0"].contains_key(DAMAGED), "it is served");
        front.close().await;
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
