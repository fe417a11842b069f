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

    /// The links as they are now. One that has no address at the moment is as it was: it is down, and will come again.
    pub(super) fn sites(&self) -> Vec<Site> {
        let known = |name: &str| self.shelf.plan().sites().find(|site| *site.name == *name).cloned();
        let names = self.ports.iter().map(|port| &*port.name).collect::<BTreeSet<&str>>();
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
        if let Some(first) = self.ports.first_mut() {
            first.routes.sink(self.shelf.spaces()).await;
        }
    }
}
