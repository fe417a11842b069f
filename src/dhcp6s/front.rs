//! Links that a running router serves beside its tunnels: one server for each, by one `dhcp6s.conf`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::{Own, Server, Start, configuration};

/// Orders that wait for a server.
const WAITING: usize = 4;
/// How long servers are waited for that are asked what has happened.
const PATIENCE: Duration = Duration::from_millis(200);

/// All servers on links.
#[derive(Debug)]
pub struct Front {
    all: Vec<Served>,
}

#[derive(Debug)]
struct Served {
    orders: mpsc::Sender<Own>,
    task: JoinHandle<()>,
}

impl Front {
    /// Serves these interfaces by this configuration. Leases are kept beside the `store`, one file for each link.
    ///
    /// # Errors
    /// What could not be opened, and what to do about it; then none is served.
    pub async fn open(interfaces: &[String], file: &Path, store: &Path) -> anyhow::Result<Self> {
        let mut front = Self { all: Vec::new() };
        for interface in interfaces {
            match Served::open(interface, file, store).await {
                Ok(served) => front.all.push(served),
                Err(why) => {
                    front.close().await;
                    return Err(why);
                }
            }
        }
        Ok(front)
    }

    /// Has every server read its configuration again; one that is wrong stays in force as it was, and is said in the log.
    pub async fn reload(&self) {
        for served in &self.all {
            // One that has ended has said why.
            let _told = served.orders.send(Own::Reload).await;
        }
    }

    /// Has every server's clients that let themselves be told ask anew.
    pub async fn reconfigure(&self) {
        for served in &self.all {
            let _told = served.orders.send(Own::Reconfigure).await;
        }
    }

    /// What has happened on each link, by name; a server that does not answer at once is left out.
    pub async fn counts(&self) -> BTreeMap<String, BTreeMap<String, u64>> {
        let (tell, mut told) = mpsc::channel(self.all.len().max(1));
        for served in &self.all {
            let _asked = served.orders.try_send(Own::Count(tell.clone()));
        }
        drop(tell);
        let mut all = BTreeMap::new();
        let collect = async {
            while let Some((interface, counts)) = told.recv().await {
                all.insert(interface, counts);
            }
        };
        let _all_or_some = tokio::time::timeout(PATIENCE, collect).await;
        all
    }

    /// Ends all. Their leases and routes stay.
    pub async fn close(self) {
        for Served { orders, task } in self.all {
            let _told = orders.send(Own::Stop).await;
            let _ended = task.await;
        }
    }
}

impl Served {
    async fn open(interface: &str, file: &Path, store: &Path) -> anyhow::Result<Self> {
        let start = Start {
            interface: interface.to_owned(),
            file: file.to_owned(),
            conf: configuration(file)?,
            dns: Vec::new(),
            duid: store.with_extension("dhcp6s_duid"),
            leases: store.with_extension(format!("dhcp6s_leases_{interface}.db")),
            control: None,
        };
        let mut server = Server::open(start).await?;
        tracing::info!("DHCPv6 on {interface}: {} leases", server.leases());
        let (orders, mut ordered) = mpsc::channel(WAITING);
        let task = tokio::spawn(async move {
            server.serve(&mut ordered).await;
            server.close().await;
        });
        Ok(Self { orders, task })
    }
}
