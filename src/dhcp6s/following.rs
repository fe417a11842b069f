//! Interfaces, addresses and routes as they are: looked at when something has happened to them, and now and then anyway.
//!
//! However many news there are, and however many leases, looking takes but a part of the time.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::plan::Site;
use super::port::Port;
use super::routes::way;
use super::{LOOK, Server, here, keys_of};
use crate::link::watch::News;

/// Looking at many takes one part in so many of the time, at most.
const SHARE: u32 = 100;
/// How long after news of an interface or a route they are looked at: news come in swarms.
const SETTLING: Duration = Duration::from_millis(500);
/// Looking at many because of news takes one part in so many of the time, at most.
const NEWS_SHARE: u32 = 10;

impl Server {
    /// Interfaces and routes are looked at soon, when something has happened to ours that was not our doing.
    pub(super) fn hear(&mut self, news: &News) {
        let touches = match news {
            News::Link { index, name } => {
                let is_new = name.as_ref().is_some_and(|name| self.absent.iter().any(|one| **one == **name));
                is_new || self.ports.iter().any(|port| port.is(*index, name.as_deref()))
            }
            News::Unled(prefix, via) => self.shelf.get(*prefix).and_then(way) == Some(*via),
        };
        if touches {
            self.due = self.due.min(self.earliest.max(Instant::now() + SETTLING));
        }
    }

    /// Follows interfaces, addresses and routes.
    pub(super) async fn follow_links(&mut self) {
        let begin = Instant::now();
        self.looks += 1;
        self.take_up_absent().await;
        for port in &mut self.ports {
            port.look().await;
        }
        let sites = self.sites();
        if !sites.iter().eq(self.shelf.plan().sites()) {
            self.lay_out();
        }
        self.route_all().await;
        let (took, now) = (begin.elapsed(), Instant::now());
        (self.due, self.earliest) = (now + LOOK.max(took * SHARE), now + LOOK.min(took * NEWS_SHARE));
    }

    /// Serves interfaces that have come.
    async fn take_up_absent(&mut self) {
        for name in std::mem::take(&mut self.absent) {
            if here::index(&name).is_none() {
                self.absent.push(name);
                continue;
            }
            let opened = match Port::listen(&name) {
                Ok(socket) => {
                    let keys = keys_of(&self.start, &name);
                    Port::open((&name, socket), &self.start.conf, &self.duid, &keys).await
                }
                Err(why) => Err(why),
            };
            match opened {
                Ok(port) => {
                    tracing::info!(event = "served", interface = name, "the interface has come");
                    self.take_in(port);
                }
                Err(why) => {
                    tracing::warn!("{why:#}; this is tried again");
                    self.absent.push(name);
                }
            }
        }
    }

    /// Answers that wait for the host itself have the number behind the last link, which is another one now.
    fn take_in(&mut self, port: Port) {
        let behind = self.ports.len();
        let waiting = self.letters.iter_mut();
        waiting.filter(|letter| letter.port == behind).for_each(|letter| letter.port += 1);
        self.ports.push(port);
    }

    /// The links as they are now, absent ones too: what is theirs to give is nobody else's. One that has no address at the moment is as it was: it is down, and will come again.
    pub(super) fn sites(&self) -> Vec<Site> {
        let known = |name: &str| self.shelf.plan().sites().find(|site| *site.name == *name).cloned();
        let absent = self.absent.iter().map(String::as_str);
        let names = self.ports.iter().map(|port| &*port.name).chain(absent).collect::<BTreeSet<&str>>();
        let now = names.into_iter().map(here::site);
        now.map(|site| match known(&site.name) {
            Some(before) if site.own.is_empty() => before,
            _ => site,
        })
        .collect()
    }

    /// All routes are as the leases say.
    pub(super) async fn route_all(&mut self) {
        // Where an interface is down, or gone, nothing can be led; it is looked at again when it comes.
        for port in self.ports.iter_mut().filter(|port| port.is_up()) {
            port.routes.set(self.shelf.iter()).await;
        }
        let mut ports = self.ports.iter_mut();
        if let Some(first) = ports.next() {
            first.routes.sink(self.shelf.spaces()).await;
        }
        // What an earlier process, whose first link this was, has left with it.
        for port in ports {
            port.routes.sink(BTreeSet::new()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dhcp6s::Start;
    use crate::dhcp6s::files::Files;
    use crate::link::netlink::tests::{cable, in_fresh_namespace, run};

    /// A server for these interfaces, by a file of this text.
    async fn server(folder: &std::path::Path, interfaces: &[&str], text: &str) -> Server {
        std::fs::create_dir_all(folder).unwrap();
        let file = folder.join("dhcp6s.conf");
        std::fs::write(&file, text).unwrap();
        let interfaces: Vec<String> = interfaces.iter().map(|name| (*name).to_owned()).collect();
        let mut files = Files::new(&file).expecting(&interfaces);
        let conf = files.read().unwrap();
        let (duid, leases) = (folder.join("duid"), folder.join("leases.db"));
        let (dns, control) = (Vec::new(), None);
        let start = Start { interfaces, waits: true, files, conf, dns, duid, leases, control };
        Server::open(start).await.unwrap()
    }

    #[test]
    fn what_a_link_that_is_not_there_has_to_give_is_still_its_own_after_a_look() {
        in_fresh_namespace(|| {
            run(async |_links| {
                let folder = std::env::temp_dir().join(format!("sixway-following-{}", std::process::id()));
                let text = "interface not-there-0 { delegated-prefix-pool 2001:db8::/40 56 60 90; };";
                let mut server = server(&folder, &["not-there-0"], text).await;
                let before = server.shelf.spaces();
                assert!(!before.is_empty());
                server.follow_links().await;
                assert_eq!(server.shelf.spaces(), before);
                server.close().await;
                std::fs::remove_dir_all(&folder).unwrap();
            });
        });
    }

    #[test]
    fn what_a_dead_server_let_go_nowhere_by_another_link_is_taken_back() {
        in_fresh_namespace(|| {
            run(async |links| {
                let first = cable(&links).await;
                let second = links.index("b").await.unwrap().unwrap();
                let space = "2001:db8::/40".parse().unwrap();
                links.sink(space, second).await.unwrap();
                let folder = std::env::temp_dir().join(format!("sixway-sunk-{}", std::process::id()));
                let text = "interface a { delegated-prefix-pool 2001:db8::/40 56 60 90; };";
                let server = server(&folder, &["a", "b"], text).await;
                assert!(links.sunk(second).await.unwrap().is_empty());
                assert_eq!(links.sunk(first).await.unwrap(), BTreeSet::from([space]));
                server.close().await;
                assert!(links.sunk(first).await.unwrap().is_empty());
                std::fs::remove_dir_all(&folder).unwrap();
            });
        });
    }
}
