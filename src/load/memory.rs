//! Server and clients in one process, on the in-memory transport: more sessions than a process may open sockets.
//!
//! Sessions, desk, broker, store and forwarding tables are the real ones. There is no device, no kernel route and no
//! neighbour discovery. The memory told is that of both ends and of the transport between them.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use sixway_dataplane::start::{InMemory, in_memory};
use sixway_dataplane::update::{Rejected, Tunnel, TunnelId, Update};
use tokio::io::DuplexStream;
use zeroize::Zeroizing;

use super::dtcp::{Session, Users};
use super::{Dial, Memory, Round, open_all, ping_all, resident};
use crate::broker::{Account, LeaseId, Mechanisms, Record, Route, Secret, UserName};
use crate::config::Config;
use crate::dtcp::codec::Kind;
use crate::dtcp::server::Hall;
use crate::office::{Office, Tables};
use crate::store::{Sqlite, Store};

/// Octets on their way in one direction of a connection.
const TRANSPORT: usize = 512;
/// Where the server is; nothing listens there.
const HERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// Where the first client is.
const FIRST: u32 = 0x0a40_0001;
/// Clients that log in at the same time.
const AT_ONCE: u32 = 1024;
/// Accounts written in one go.
const ACCOUNTS: usize = 10_000;

/// What came of it.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Figures {
    /// Logins with durable grants.
    pub setups: Round,
    /// Pings.
    pub pings: Round,
    /// Of the whole process.
    pub memory: Option<Memory>,
}

/// Holds `count` sessions of type `network` in this process; the store is made below `folder`, and removed.
///
/// # Errors
/// That there is no room for the store, or the parts do not fit together.
pub fn hold(count: u32, folder: &Path) -> anyhow::Result<Figures> {
    let folder = Scratch::new(folder)?;
    let store = open_store(&folder.0.join("bench.db"), count)?;
    let config = configuration(count)?;
    let dtcp = config.dtcp.as_ref().context("the configuration has a [dtcp]")?;
    let mut office = Office::open(Box::new(store), config.terms(), &config.hooks, rand::random())?;
    let mut tables = Plane::new(count)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let figures = runtime.block_on(async {
        let hall = Hall::new(dtcp, office.desk(), 1);
        let story = sessions(hall, count);
        tokio::pin!(story);
        loop {
            tokio::select! {
                figures = &mut story => return figures,
                written = office.next() => {
                    let settled = office.settle(written, &mut tables);
                    office.answer(settled);
                }
            }
        }
    });
    office.close();
    Ok(figures)
}

async fn sessions(hall: Hall, count: u32) -> Figures {
    let users = Users { name: "u".to_owned(), secret: b"hush".to_vec(), kind: Kind::Network };
    let (dial, pid) = (Arc::new(InProcess { hall, users }), std::process::id());
    let before = resident(pid);
    let (mut sessions, setups) = open_all(&dial, count, AT_ONCE, 1).await;
    let pings = ping_all::<InProcess>(&mut sessions).await;
    let memory = before.zip(resident(pid)).map(|(before, with)| Memory::of(before, with, sessions.len()));
    Figures { setups, pings, memory }
}

fn configuration(count: u32) -> anyhow::Result<Config> {
    let text = format!(
        "[limits]\nconnections = 1000000\n[dtcp]\ninterfaces = {count}\n[[pool]]\nprefix = \"2001:db8::/40\"\nassign = 64\n"
    );
    Ok(Config::parse("the bench", &text)?)
}

fn open_store(path: &Path, count: u32) -> anyhow::Result<Sqlite> {
    let mut store = Sqlite::open(path)?;
    let secret = Secret::parse(Zeroizing::new(b"hush".to_vec()))?;
    let mut records = Vec::with_capacity(ACCOUNTS);
    for n in 0..count {
        let (name, secret) = (UserName::parse(&format!("u{n}"))?, secret.clone());
        records.push(Record::Account(Account {
            name,
            secret,
            prefixes: Vec::new(),
            pair: None,
            mechanisms: Mechanisms::ANY,
        }));
        if records.len() == ACCOUNTS || n + 1 == count {
            store.append(&records)?;
            records.clear();
        }
    }
    Ok(store)
}

struct InProcess {
    hall: Hall,
    users: Users,
}

impl Dial for InProcess {
    type Session = Session<DuplexStream>;

    async fn open(&self, n: u32) -> Result<Self::Session, String> {
        let (ours, theirs) = tokio::io::duplex(TRANSPORT);
        if !self.hall.admit(theirs, Ipv4Addr::from(FIRST + n), HERE) {
            return Err("not admitted".to_owned());
        }
        Session::open(ours, self.users.wish(n)).await
    }

    async fn ping(session: &mut Self::Session) -> Result<(), String> {
        session.ping().await
    }

    async fn quit(session: Self::Session) {
        session.quit().await;
    }
}

/// The forwarder's own tables, with numbers for tunnels.
struct Plane {
    plane: InMemory,
    numbers: HashMap<LeaseId, TunnelId>,
    next: u32,
}

impl Plane {
    fn new(count: u32) -> anyhow::Result<Self> {
        let plane = in_memory(count.saturating_add(1024), rand::random())?;
        Ok(Self { plane, numbers: HashMap::new(), next: 0 })
    }
}

impl Tables for Plane {
    fn follow(&mut self, routes: &[Route]) -> Result<(Vec<TunnelId>, Vec<TunnelId>), Rejected> {
        let (mut batch, mut new) = (Vec::new(), Vec::new());
        for route in routes {
            match route {
                Route::Up(grant) => {
                    let id = TunnelId(self.next + new.len() as u32);
                    new.push((grant.lease, id));
                    let prefixes = grant.prefixes().collect();
                    batch.push(Update::Upsert(Tunnel {
                        id,
                        outer: grant.outer,
                        prefixes,
                        mtu: grant.mtu,
                        manners: Default::default(),
                    }));
                }
                Route::Down(lease, _) => {
                    batch.extend(self.numbers.get(lease).map(|id| Update::Remove(*id)));
                }
                // Nobody asks inside these tunnels.
                Route::Bind(_) | Route::Unbind(..) => {}
            }
        }
        self.plane.apply(&batch)?;
        self.next += new.len() as u32;
        self.numbers.extend(new);
        Ok((Vec::new(), Vec::new()))
    }
}

/// A folder that goes in the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(below: &Path) -> anyhow::Result<Self> {
        let path = below.join(format!("sixway-bench-{}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _it_may_be_gone = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_in_memory_are_granted_and_answered() {
        let figures = hold(300, &std::env::temp_dir()).unwrap();
        assert_eq!((figures.setups.done, figures.pings.done), (300, 300), "{figures:?}");
    }
}
