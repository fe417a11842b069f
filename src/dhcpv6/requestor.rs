//! Who asks a server who has what (RFC 5007 sections 4.2 and 4.3.2): the question, when it is said again, and what an answer
//! means. Pure; sockets and clocks are the caller's.

use std::net::Ipv6Addr;
use std::time::Duration;

use dhcproto::v6::{DhcpOption, MessageType, Status};

use super::codec::{Message, Opt, Packet, code};
use super::query::{ClientData, Query};

/// How long the first answer is waited for: LQ_TIMEOUT (RFC 5007 section 4.1.4).
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// How long any is: LQ_MAX_RT.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// How often the question is said: LQ_MAX_RC.
const TIMES: usize = 5;

/// How long an answer is waited for after each time that the question is said.
pub fn waits() -> impl Iterator<Item = Duration> {
    std::iter::successors(Some(FIRST_WAIT), |wait| Some((*wait * 2).min(LONGEST_WAIT))).take(TIMES)
}

/// A question on its way.
#[derive(Clone, Debug)]
pub struct Question {
    /// What the requestor calls itself.
    pub duid: Vec<u8>,
    /// Its number for the exchange.
    pub xid: [u8; 3],
    /// What it wants to know.
    pub query: Query,
}

/// What a server has said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// What it calls itself.
    pub server: Vec<u8>,
    /// What became of the question: a code and a text.
    pub status: (Status, String),
    /// What it knows.
    pub found: Found,
}

/// What there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nobody has anything.
    Nothing,
    /// What a client has on its link.
    Client(ClientData),
    /// A client has something on several links, each with an address to ask about it by.
    Links(Vec<Ipv6Addr>),
}

impl Question {
    /// It as a message.
    pub fn message(&self) -> Vec<u8> {
        let options = vec![Opt::Leaf(DhcpOption::ClientId(self.duid.clone())), self.query.option()];
        Message { kind: MessageType::LeaseQuery, xid: self.xid, options }.emit()
    }

    /// Reads what has come; `None`: it is no answer to this.
    pub fn hear(&self, octets: &[u8]) -> Option<Heard> {
        let Packet::Message(reply) = Packet::parse(octets).ok()? else { return None };
        let is_ours = reply.kind == MessageType::LeaseQueryReply
            && reply.xid == self.xid
            && reply.client() == Some(&self.duid[..]);
        let server = reply.server().filter(|_| is_ours)?.to_vec();
        let mut heard = Heard { server, status: (Status::Success, String::new()), found: Found::Nothing };
        for option in reply.options {
            match option {
                Opt::Leaf(DhcpOption::StatusCode(said)) => heard.status = (said.status, said.msg),
                Opt::Other(code::CLIENT_DATA, octets) => {
                    heard.found = Found::Client(ClientData::parse(&octets).ok()?);
                }
                Opt::Addresses(code::LQ_CLIENT_LINK, links) => heard.found = Found::Links(links),
                Opt::Ia(_)
                | Opt::Relayed(_)
                | Opt::Addresses(..)
                | Opt::Names(..)
                | Opt::Seconds(..)
                | Opt::Leaf(_)
                | Opt::Other(..) => {}
            }
        }
        Some(heard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dhcpv6::query::Sought;

    fn reply(options: Vec<Opt>) -> Vec<u8> {
        Message { kind: MessageType::LeaseQueryReply, xid: [7; 3], options }.emit()
    }

    /// RFC: V53 (RFC 5007 section 4.3.2)
    #[test]
    fn only_an_answer_to_the_question_is_one() {
        let query = Query { sought: Sought::Client(vec![1]), link: None, wanted: Vec::new() };
        let question = Question { duid: vec![0, 4, 9], xid: [7; 3], query };
        let client = |duid: &[u8]| Opt::Leaf(DhcpOption::ClientId(duid.to_vec()));
        let server = || Opt::Leaf(DhcpOption::ServerId(vec![0, 3]));
        let data = || ClientData { client: vec![1], heard: Some(9), ..ClientData::default() };
        let good = reply(vec![client(&[0, 4, 9]), server(), data().option()]);
        let heard = question.hear(&good).unwrap();
        assert_eq!(
            (heard.server, heard.status.0, heard.found),
            (vec![0, 3], Status::Success, Found::Client(data()))
        );
        let mut other = good.clone();
        other[0] = 7;
        let mut late = good;
        late[3] = 8;
        let cut = Opt::Other(code::CLIENT_DATA, vec![0, 46, 0, 1, 7]);
        for wrong in [
            other,
            late,
            reply(vec![client(&[0, 4, 9])]),
            reply(vec![server()]),
            reply(vec![client(&[0, 4, 8]), server()]),
            reply(vec![client(&[0, 4, 9]), server(), cut]),
            vec![15],
        ] {
            assert_eq!(question.hear(&wrong), None, "{wrong:?}");
        }
        let none = question.hear(&reply(vec![client(&[0, 4, 9]), server()])).unwrap();
        assert_eq!(none.found, Found::Nothing);
        assert_eq!(waits().map(|wait| wait.as_secs()).collect::<Vec<_>>(), [1, 2, 4, 8, 10]);
    }
}
