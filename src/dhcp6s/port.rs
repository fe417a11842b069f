//! One link that is served: its socket, what its clients are told, and the kernel's routes to them.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};

use super::here::{self, Presence};
use super::plan::terms;
use super::routes::Routes;
use super::socket::{Answer, LinkSocket};
use crate::compat::dhcp6sconf::{Duid, ServerConf};
use crate::dhcpv6::codec::SERVER_PORT;
use crate::dhcpv6::keep::RingFile;
use crate::dhcpv6::session::{Session, Terms};

/// A served link.
#[derive(Debug)]
pub(super) struct Port {
    /// The interface's name.
    pub(super) name: String,
    pub(super) terms: Terms,
    pub(super) session: Session,
    pub(super) socket: LinkSocket,
    pub(super) routes: Routes,
    ring: RingFile,
    /// How the interface was when it was looked at last.
    presence: Option<Presence>,
    /// What sockets before this one have not sent.
    unsent: u64,
}

impl Port {
    /// Listens on the interface of that name: what most often fails, and leaves nothing behind.
    pub(super) fn listen(name: &str) -> anyhow::Result<LinkSocket> {
        let Some(index) = here::index(name) else {
            bail!("there is no interface '{name}'; `ip link` names all")
        };
        LinkSocket::open(name, index).map_err(|why| anyhow!(unopened(&why, name)))
    }

    /// Opens it; what messages are proved with is kept in `keys`.
    pub(super) async fn open(
        (name, socket): (&str, LinkSocket),
        conf: &ServerConf,
        duid: &Duid,
        keys: &Path,
    ) -> anyhow::Result<Self> {
        let terms = terms(conf, name, duid);
        let mut session = Session::new(terms.clone(), rand::random());
        let (ring, own) = RingFile::open(keys, rand::random())
            .with_context(|| format!("cannot keep Reconfigure keys in {}; {}", keys.display(), here::NEXT))?;
        session.trust(own);
        let routes = Routes::open(name, socket.index()).await?;
        let presence = here::presence(name);
        if presence != Presence::Up {
            presence.say(name);
        }
        Ok(Self {
            name: name.to_owned(),
            terms,
            session,
            socket,
            routes,
            ring,
            presence: Some(presence),
            unsent: 0,
        })
    }

    /// From now on this is told; says whether it is other information than before.
    pub(super) fn configure(&mut self, conf: &ServerConf, duid: &Duid) -> bool {
        let said = terms(conf, &self.name, duid);
        let is_news = self.terms.options != said.options || self.terms.refresh != said.refresh;
        self.session.configure(said.clone());
        self.terms = said;
        is_news
    }

    /// What comes next comes now: so long after the server's start.
    pub(super) fn tick(&mut self, now: Duration) {
        self.session.set_clock(here::clock());
        self.session.set_uptime(now);
    }

    /// Whether it is this interface, or would be it: it has the number or the name.
    pub(super) fn is(&self, index: u32, name: Option<&str>) -> bool {
        index == self.socket.index() || name == Some(&*self.name)
    }

    /// Follows an interface that has come again, and finds out which routes there are.
    pub(super) async fn look(&mut self) {
        let now = here::presence(&self.name);
        if self.presence.replace(now).is_some_and(|before| before != now) {
            now.say(&self.name);
        }
        let Some(index) = here::index(&self.name) else { return };
        if index != self.socket.index() {
            match LinkSocket::open(&self.name, index) {
                Ok(socket) => {
                    self.unsent += self.socket.unsent();
                    self.socket = socket;
                }
                Err(why) => {
                    tracing::warn!("{}", unopened(&why, &self.name));
                    return;
                }
            }
        }
        self.routes.look(index).await;
    }

    /// Whether anything can be routed there now.
    pub(super) fn is_up(&self) -> bool {
        self.presence.is_none_or(|now| now == Presence::Up)
    }

    /// Numbers are on the disk before they are used; says whether that worked.
    pub(super) fn keep_ring(&mut self) -> bool {
        let kept = self.session.keep_ring(|ring| self.ring.keep(ring));
        let _once = self.ring.say(&kept, &format!("on {}", self.name));
        kept.is_ok()
    }

    /// Sends answers.
    pub(super) fn send(&mut self, all: &[Answer<'_>]) {
        self.socket.send(all);
    }

    /// How many answers could not be sent since the start.
    pub(super) fn unsent(&self) -> u64 {
        self.unsent + self.socket.unsent()
    }
}

fn unopened(why: &std::io::Error, name: &str) -> String {
    let causes = [
        (ErrorKind::AddrInUse, "another DHCPv6 server has that port: `ss -lunp` names it"),
        (ErrorKind::PermissionDenied, "run as root"),
    ];
    let cause = causes.iter().find(|(kind, _)| *kind == why.kind());
    let next = cause.map_or("is the interface up, with an IPv6 address?", |(_, next)| next);
    format!("cannot listen on UDP port {SERVER_PORT} of {name}: {why}; {next}")
}
