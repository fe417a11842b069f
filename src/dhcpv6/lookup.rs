//! Who has what, for those who may ask (RFC 5007 section 4.4.1): a LEASEQUERY in, its reply out. Pure.
//!
//! Leases tell where people are, so nobody is answered unless the configuration names somebody, and nobody else then.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use dhcproto::v6::{DhcpOption, MessageType, Status};

use super::codec::{INFINITY, Message, Opt, Value, code};
use super::query::{self, ClientData, Query, Sought};
use super::relayed::{Relays, wrap};
use super::reply::worded;
use super::session::{Answer, Known, Leases, Life, Origin, Session, Silence};

/// The most octets of a client's data, and of all else in the reply a tenth: so it fits a datagram.
const MOST_OCTETS: usize = 60_000;
/// The most links that are named.
const MOST_LINKS: usize = 1024;

impl Session {
    pub(super) fn answer_query(
        &mut self,
        origin: &Origin<'_>,
        relays: &Relays,
        message: &Message,
        leases: &dyn Leases,
    ) -> Result<Answer, Silence> {
        if self.terms.requestors.is_empty() {
            return Err(Silence::Unexpected);
        }
        let (Some(client), Some(body)) = (message.client(), query::body(message)) else {
            return Err(Silence::WrongForm);
        };
        if message.server().is_some_and(|server| server != &self.terms.duid[..]) {
            return Err(Silence::OtherServer);
        }
        let may = self.may_ask(origin, relays);
        let told = if may { self.look_up(body, leases) } else { Err(Status::NotAllowed) };
        self.count(if may { "lease_query" } else { "lease_query_not_allowed" });
        // Who may not ask, or asks what cannot be answered, is told nothing of leases.
        let tells_of_others = told.is_ok();
        let mut options = vec![
            Opt::Leaf(DhcpOption::ClientId(client.to_vec())),
            Opt::Leaf(DhcpOption::ServerId(self.terms.duid.clone())),
        ];
        match told {
            Ok(found) => options.extend(found),
            Err(why) => options.push(Opt::Leaf(DhcpOption::StatusCode(worded(why)))),
        }
        let reply = Message { kind: MessageType::LeaseQueryReply, xid: message.xid, options };
        Ok(Answer {
            octets: wrap(&relays.way_back(), reply.emit()),
            to_relay: !relays.is_empty(),
            // A requestor is no client: it hears where it has asked from.
            to_source_port: relays.is_empty() || relays.listen_on_own_port(),
            tells_of_others,
        })
    }

    /// Whether everybody who has had the query in hands is somebody who may ask.
    fn may_ask(&self, origin: &Origin<'_>, relays: &Relays) -> bool {
        let named = |addr: Ipv6Addr| self.terms.requestors.iter().any(|prefix| prefix.contains(addr));
        origin.from.is_some_and(named) && relays.inside_out().all(|relay| named(relay.peer))
    }

    /// The option that answers; `None`: nobody has it.
    fn look_up(&self, body: &[u8], leases: &dyn Leases) -> Result<Option<Opt>, Status> {
        let Query { sought, link, wanted } = Query::parse(body)?;
        let link = match link {
            Some(addr) => Some(leases.link_at(addr).ok_or(Status::NotConfigured)?),
            None => None,
        };
        let mut all = match sought {
            Sought::Client(duid) => leases.all_of(&duid),
            Sought::Address(addr) => match leases.whose(addr) {
                Some(found) => {
                    let mut all = leases.all_of(&found.client);
                    all.retain(|known| known.link == found.link);
                    all
                }
                None if link.is_some() || leases.is_configured(addr) => Vec::new(),
                None => return Err(Status::NotConfigured),
            },
        };
        all.retain(|known| link.as_ref().is_none_or(|link| known.link == *link));
        let mut links: BTreeMap<&str, &Known> = BTreeMap::new();
        for known in &all {
            links.entry(&*known.link).or_insert(known);
        }
        if links.len() > 1 {
            let named = links.values().take(MOST_LINKS).map(|known| leases.address_on(known)).collect();
            return Ok(Some(Opt::Addresses(code::LQ_CLIENT_LINK, named)));
        }
        let Some(first) = all.first() else { return Ok(None) };
        self.data(&first.client, &all, &wanted).map(Some)
    }

    /// What a client has on one link.
    fn data(&self, client: &[u8], all: &[Known], wanted: &[u16]) -> Result<Opt, Status> {
        let usual = Life { preferred: self.terms.preferred, valid: self.terms.valid };
        let heard = |known: &Known| heard(known, usual).unwrap_or_else(|| self.up_for());
        let told = |option: &&Opt| wanted.contains(&option.code());
        // Who is known by the line and not by a DUID is told as that.
        let line = self.terms.lines.iter().find(|(_, who)| ***who == *client).map(|(line, _)| line);
        let line = line.map(|(code, octets)| Opt::Other(*code, octets.to_vec()));
        let data = ClientData {
            client: if line.is_some() { Vec::new() } else { client.to_vec() },
            values: all.iter().map(|known| left(known, usual)).collect(),
            heard: all.iter().map(heard).min(),
            relay: None,
            options: line.into_iter().chain(self.terms.options.iter().filter(told).cloned()).collect(),
        };
        let option = data.option();
        let mut octets = Vec::new();
        option.emit(&mut octets);
        if octets.len() > MOST_OCTETS { Err(Status::UnspecFail) } else { Ok(option) }
    }

    /// Seconds since the server's start: no client of whom nothing is known was heard since it was given what never ends.
    fn up_for(&self) -> u32 {
        u32::try_from(self.uptime.as_secs()).unwrap_or(INFINITY)
    }
}

/// How many seconds ago a client was given this; `None`: it never ends, and nobody knows.
fn heard(known: &Known, usual: Life) -> Option<u32> {
    let given = known.given.unwrap_or(usual).valid;
    known.left.map(|left| given.saturating_sub(left))
}

/// It with what is left of its lifetimes.
fn left(known: &Known, usual: Life) -> Value {
    let Life { preferred, .. } = known.given.unwrap_or(usual);
    let gone = heard(known, usual).filter(|_| preferred != INFINITY).unwrap_or(0);
    let valid = known.left.unwrap_or(INFINITY);
    let (addr, len) = (known.prefix.addr(), known.prefix.prefix_len());
    Value { addr, len, preferred: preferred.saturating_sub(gone).min(valid), valid, options: Vec::new() }
}
