//! How a client's messages are put together (RFC 8415 section 18.2, appendix B). Pure; when they are said is the client's
//! business.

use std::time::Duration;

use dhcproto::v6::{DhcpOption, MessageType, ORO, OptionCode};
use rand::Rng;

use super::{Client, Exchange, Output, Stage};
use crate::dhcpv6::codec::{Message, Opt, code};

impl<R: Rng> Client<R> {
    /// Says, once or again, what is out.
    pub(super) fn say(&mut self, now: Duration) {
        let Stage::Asking(exchange) = &self.stage else { return };
        let mut options = self.heading(exchange, now);
        let kind = exchange.kind;
        let values = |n: usize| Some(exchange.offer.as_ref()?.values.get(n)?.as_slice());
        let all = self.all.iter().enumerate();
        // What is given back or asked about is what is held; else all that is wanted is named.
        let held_only = matches!(kind, MessageType::Release | MessageType::Confirm);
        let named = all.filter(|(_, one)| !held_only || !one.held.is_empty());
        if kind != MessageType::InformationRequest {
            options.extend(
                named.map(|(n, one)| Opt::Ia(one.ask(values(n).filter(|_| kind == MessageType::Request)))),
            );
        }
        let message = Message { kind, xid: exchange.xid, options };
        self.out.push_back(Output::Send(message.emit()));
    }

    /// All but the associations.
    fn heading(&self, exchange: &Exchange, now: Duration) -> Vec<Opt> {
        use MessageType as M;
        let kind = exchange.kind;
        let mut options = vec![DhcpOption::ClientId(self.wish.duid.clone())];
        let to_one = matches!(kind, M::Request | M::Renew | M::Release) || exchange.is_summoned;
        if to_one {
            options.push(DhcpOption::ServerId(self.server.clone()));
        }
        options.push(DhcpOption::ElapsedTime(exchange.again.elapsed(now)));
        if !matches!(kind, M::Release | M::Confirm) {
            let is_inquiry = kind == M::InformationRequest;
            let only: &[u16] =
                if is_inquiry { &[code::REFRESH_TIME, code::INF_MAX_RT] } else { &[code::SOL_MAX_RT] };
            let asked = [code::DNS_SERVERS, code::DOMAIN_LIST].iter().chain(only);
            let opts = asked.map(|code| OptionCode::from(*code)).collect();
            options.extend([DhcpOption::ORO(ORO { opts }), DhcpOption::ReconfAccept]);
        }
        if kind == M::Solicit && self.wish.rapid_commit {
            options.push(DhcpOption::RapidCommit);
        }
        options.into_iter().map(Opt::Leaf).collect()
    }
}
