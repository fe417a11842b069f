//! The answers to what is asked over the admin socket. How questions arrive is `admin/server.rs`'s business.

use std::collections::BTreeMap;

use crate::admin::delegated::ClientStatus;
use crate::admin::leases::parse_prefix;
use crate::admin::server::Question;
use crate::admin::status::{BrokerStatus, Sources};
use crate::admin::{Reply, Request, Response};
use crate::audit::{self, Auditor};
use crate::broker::{End, UserName};
use crate::churn::{Batch, MOST_TUNNELS, is_churn};
use crate::config::nearest;
use crate::delegation::line::Port;
use crate::dhcpv6::server as dhcpv6;
use crate::dhcpv6::telling::Evicted;
use crate::explain::{drops, explain as explain_packet};
use crate::registry::MOST_COMPARED;
use crate::tsp;

use super::Control;
use super::device::Device;

impl Control {
    pub(super) async fn answer(&mut self, question: Question) {
        let response = match question.request {
            Request::Explain(wish) => explain_packet(&wish, &self.registry, &mut self.explainer)
                .map_or_else(Response::Error, |said| Response::Explained(Box::new(said))),
            Request::Drops => {
                let (uptime, unclaimed) = (self.started.elapsed(), self.dispatch.unclaimed());
                Response::Drops(drops(&self.registry, &self.counters, uptime, unclaimed))
            }
            Request::Watch { tunnel } => {
                let opened = self.watchers.open(&mut self.registry, &self.counters, &tunnel);
                let reply = match opened {
                    Ok(more) => Reply { first: Response::Watching, more: Some(more) },
                    Err(why) => Response::Error(why).into(),
                };
                let _the_asker_may_have_left = question.reply.send(reply);
                return;
            }
            Request::Audit => {
                let device = self.network.judge().await;
                let mut all = self.auditor().findings();
                all.push(audit::device(&self.config.router.tun, device));
                Response::Audited(all)
            }
            Request::Status { page, limit, tunnel } => {
                let links = match &self.links {
                    Some(links) => Some(links.counts().await),
                    None => None,
                };
                let sources = Sources { dhcpv6_links: links, ..self.sources() };
                let status = sources.status(page, limit, tunnel.as_deref());
                status.map_or_else(Response::Error, |s| Response::Status(Box::new(s)))
            }
            Request::Reload => match self.reload_and_log().await {
                Ok(reloaded) => Response::Reloaded(reloaded),
                Err(why) => Response::Error(format!("{why:#}")),
            },
            Request::Churn { session, tunnels, updates } => {
                self.next_churn(Batch { session, tunnels, updates }).unwrap_or_else(Response::Error)
            }
            Request::ChurnEnd { session } => {
                let ended = self.churn.end(&mut self.registry, session);
                ended.map_or_else(Response::Error, |()| Response::Churned { applied: 0, refused: None })
            }
            Request::Kick { who } => match self.end_on_link(&who).await {
                Ok(Some(client)) => Response::Kicked { tunnels: 1, client: Some(client.into()) },
                Ok(None) => self.kick(&who),
                Err(why) => Response::Error(why.to_owned()),
            },
            Request::Leases(wish) => self.leases(&wish).await,
            Request::Drain { on } => self.drain(on),
            Request::Reconfigure { tunnel } => self.reconfigure(tunnel.as_deref()).await,
        };
        let _the_asker_may_have_left = question.reply.send(response.into());
    }

    fn next_churn(&mut self, batch: Batch) -> Result<Response, String> {
        if !(1..=MOST_TUNNELS).contains(&batch.tunnels) {
            return Err(format!("a churn has 1 to {MOST_TUNNELS} tunnels, not {}", batch.tunnels));
        }
        let done = self.churn.batch(&mut self.registry, batch, self.started.elapsed())?;
        Ok(Response::Churned { applied: done.applied, refused: done.refused })
    }

    /// Sends new clients to other brokers, or no longer.
    fn drain(&self, on: bool) -> Response {
        let Some(tsp) = &self.dispatch.tsp else {
            let why = "this router has no server that could send clients elsewhere: there is no [tsp] in its configuration";
            return Response::Error(why.to_owned());
        };
        tsp.drain(on);
        tracing::info!(event = "drain", on);
        Response::Drained { on, brokers: self.config.tsp.as_ref().map_or(0, |tsp| tsp.brokers.len()) }
    }

    /// Ends the lease of this prefix or address on a link; `None`: there was none. An error: nobody knows yet.
    async fn end_on_link(&self, who: &str) -> Result<Option<Evicted>, &'static str> {
        let (Some(links), Ok(prefix)) = (&self.links, parse_prefix(who)) else { return Ok(None) };
        links.end(prefix).await
    }

    /// Ends the leased tunnel of that name, or all of that user's.
    fn kick(&mut self, who: &str) -> Response {
        let Some(office) = &mut self.office else {
            return Response::Error(
                "this router grants nothing: there is no [store] and no [[pool]] in its configuration"
                    .to_owned(),
            );
        };
        let by_name = self.registry.by_name(who).and_then(|id| self.registry.tunnel(id));
        if let Some(live) = by_name {
            let Some(lease) = live.lease else {
                if is_churn(who) {
                    return Response::Error(format!(
                        "tunnel '{who}' belongs to a running `sixway bench churn`, and goes when that ends"
                    ));
                }
                let advice = "take it out of the configuration and run `sixway reload`";
                return Response::Error(format!(
                    "tunnel '{who}' is in the configuration; to end it, {advice}"
                ));
            };
            office.kick(lease);
            return Response::Kicked { tunnels: 1, client: None };
        }
        if let Ok(prefix) = parse_prefix(who) {
            let (today, server) = (office.now(), &self.dhcpv6);
            let binding = office.broker().binding_of(prefix);
            let client = binding.zip(server.as_ref()).map(|(binding, server)| server.evicted(binding, today));
            if office.unbind(prefix, End::Kicked) {
                return Response::Kicked { tunnels: 1, client: client.map(Into::into) };
            }
        }
        match UserName::parse(who).map_or(0, |user| office.kick_user(&user)) {
            0 => Response::Error(self.nobody(who)),
            tunnels => Response::Kicked { tunnels, client: None },
        }
    }

    /// That nobody of this name has anything, and who may be meant: a tunnel that is granted, or its user.
    fn nobody(&self, who: &str) -> String {
        let leased = self.registry.iter().map(|(_, live)| live).filter(|live| live.lease.is_some());
        let tunnels: Vec<&str> = leased.take(MOST_COMPARED).map(|live| &*live.config.name).collect();
        let users = tunnels.iter().filter_map(|name| Some(name.rsplit_once('@')?.0));
        let names: Vec<&str> = users.chain(tunnels.iter().copied()).collect();
        let listed = "`sixway status` lists tunnels that are granted, `sixway leases` prefixes and addresses";
        let next =
            nearest(who, &names).map_or_else(|| listed.to_owned(), |near| format!("did you mean '{near}'?"));
        format!(
            "no leased tunnel '{who}', no user '{who}' who has one, and no binding of that prefix; {next}"
        )
    }

    /// Has DHCPv6 clients ask anew, in one tunnel or everywhere.
    async fn reconfigure(&mut self, tunnel: Option<&str>) -> Response {
        if let Some(name) = tunnel.filter(|name| self.registry.by_name(name).is_none()) {
            return Response::Error(self.registry.no_tunnel(name));
        }
        let mut clients = None;
        if let (Some(server), Some(office)) = (&mut self.dhcpv6, &self.office) {
            clients = Some(server.reconfigure(office.broker(), tunnel, self.started.elapsed()));
        }
        if let (Some(links), None) = (&self.links, tunnel) {
            links.reconfigure().await;
            clients.get_or_insert_default();
        }
        match clients {
            Some(clients) => Response::Reconfigured { clients },
            None => {
                Response::Error("there is no DHCPv6 server: write [dhcpv6] into the configuration".to_owned())
            }
        }
    }

    fn auditor(&mut self) -> Auditor<'_> {
        Auditor {
            config: &self.config,
            file: self.reread.as_ref().map(|reread| reread.file.as_path()),
            registry: &self.registry,
            explainer: &mut self.explainer,
            proto41: self.facts.proto41.is_some(),
        }
    }

    fn sources(&self) -> Sources<'_> {
        Sources {
            registry: &self.registry,
            counters: &self.counters,
            facts: &self.facts,
            tun: &self.config.router.tun,
            tun_is_up: self.device.as_ref().is_none_or(Device::is_up),
            uptime_s: self.started.elapsed().as_secs(),
            nd: self.dispatch.nd.counts(),
            endpoints: self.dispatch.endpoint_counts(),
            pmtu: self.dispatch.path_counts(),
            unclaimed: self.dispatch.unclaimed(),
            broker: self.office.as_ref().map(BrokerStatus::new),
            dtcp: self.dtcp.as_ref().map(|dtcp| dtcp.server.hall().counts()),
            tsp: self.dispatch.tsp.as_ref().map(tsp_counts),
            dhcpv6: self.dhcpv6.as_ref().map(dhcpv6::Server::counts),
            dhcpv6_links: None,
            dhcpv6_client: self
                .client
                .as_ref()
                .map(Port::shown)
                .map(|(tunnel, at)| ClientStatus::new(tunnel, at)),
        }
    }
}

/// What the TSP server has counted, and whether it sends new clients elsewhere.
fn tsp_counts(server: &tsp::server::Server) -> BTreeMap<String, u64> {
    let mut counts = server.counts();
    counts.insert("draining".to_owned(), u64::from(server.is_draining()));
    counts
}
