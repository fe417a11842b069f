//! Who has what, for those who may ask (RFC 5007 section 4.4.1): a LEASEQUERY in, its reply out. Pure.
//!
//! Leases tell where people are, so nobody is answered unless the configuration names somebody, and nobody else then.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::time::Duration;

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
/// Queries a second that are answered where each means a look at very many leases; others wait meanwhile.
const WALKS: u32 = 4;

/// How many such queries there were in which second.
#[derive(Debug, Default)]
pub(super) struct Walks {
    second: u64,
    begun: u32,
}

impl Walks {
    /// Whether another one may be answered now, so long after the beginning.
    fn begin(&mut self, now: Duration) -> bool {
        if self.second != now.as_secs() {
            (self.second, self.begun) = (now.as_secs(), 0);
        }
        self.begun = self.begun.saturating_add(1);
        self.begun <= WALKS
    }
}

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
        if may && leases.walks() && !self.walks.begin(self.uptime) {
            return Err(Silence::TooOften);
        }
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
            Sought::Client(duid) => {
                let mut all = leases.all_of(&duid);
                leases.lines_of(&duid).iter().for_each(|line| all.extend(leases.all_of(line)));
                all
            }
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
        let line = self.terms.lines.values().any(|line| **line == *first.client);
        let duid = if line { leases.duid_of(&first.client) } else { Some(first.client.clone()) };
        self.data((&first.client, duid.as_deref()), &all, &wanted).map(Some)
    }

    /// What a client has on one link. It is told by its DUID, as far as that is known.
    fn data(
        &self,
        (client, duid): (&[u8], Option<&[u8]>),
        all: &[Known],
        wanted: &[u16],
    ) -> Result<Opt, Status> {
        let usual = Life { preferred: self.terms.preferred, valid: self.terms.valid };
        let heard = |known: &Known| heard(known, usual).unwrap_or_else(|| self.up_for());
        let told = |option: &&Opt| wanted.contains(&option.code());
        // Who is known by the line is told as that too.
        let line = self.terms.lines.iter().find(|(_, who)| ***who == *client).map(|(line, _)| line);
        let line = line.map(|(code, octets)| Opt::Other(*code, octets.to_vec()));
        let data = ClientData {
            client: duid.unwrap_or_default().to_vec(),
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

#[cfg(test)]
mod tests {
    use super::super::codec::Packet;
    use super::super::query::Sought;
    use super::super::requestor::Question;
    use super::super::session::{Lack, Terms};
    use super::*;
    use crate::broker::{BindKey, BindWish};
    use sixway_dataplane::update::Ipv6Prefix;

    /// So many leases that none is found without looking at all.
    struct Many;

    impl Leases for Many {
        fn offer(&mut self, wishes: &[BindWish]) -> Vec<Result<Ipv6Prefix, Lack>> {
            wishes.iter().map(|_| Err(Lack)).collect()
        }
        fn bind(&mut self, _: &BindWish, _: Duration) -> Result<Vec<Ipv6Prefix>, Lack> {
            Err(Lack)
        }
        fn bound(&self, _: &BindKey) -> Vec<Ipv6Prefix> {
            Vec::new()
        }
        fn release(&mut self, _: Ipv6Prefix) {}
        fn decline(&mut self, _: &BindKey, _: Ipv6Prefix, _: Duration) {}
        fn is_on_link(&self, _: Ipv6Prefix, _: Option<Ipv6Addr>) -> bool {
            false
        }
        fn walks(&self) -> bool {
            true
        }
    }

    #[test]
    fn who_asks_for_clients_one_after_the_other_does_not_keep_all_others_waiting() {
        let asker: Ipv6Addr = "2001:db8::53".parse().unwrap();
        let requestors = vec![Ipv6Prefix::host(asker)];
        let mut session = Session::new(Terms { requestors, duid: vec![0, 4, 1], ..Terms::default() }, 1);
        let query = Query { sought: Sought::Client(vec![0, 3, 1]), link: None, wanted: Vec::new() };
        let message = Question { duid: vec![0, 4, 7], xid: [7, 8, 9], query }.message();
        let mut answered = |from: Option<Ipv6Addr>, now: u64| {
            session.set_uptime(Duration::from_millis(now));
            let origin = Origin { from, is_unicast: true, ..Origin::of("t") };
            let answers = (0..100).filter_map(|_| session.handle(&origin, &message, &mut Many));
            answers.inspect(|answer| assert!(Packet::parse(&answer.octets).is_ok())).count()
        };
        assert_eq!((answered(Some(asker), 5000), answered(Some(asker), 5999)), (4, 0));
        assert_eq!(answered(Some(asker), 6000), 4);
        assert_eq!(answered(Some(Ipv6Addr::LOCALHOST), 6000), 100, "who may not ask costs nothing");
        assert_eq!(session.counts()["too_often"], 292);
    }
}
