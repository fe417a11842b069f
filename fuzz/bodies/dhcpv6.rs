//! Any octets to the DHCPv6 codec and to the server before a broker: nothing panics, what is read is written again octet by
//! octet, and what is answered can be read.

use std::time::Duration;

use sixway::broker::{Accounts, Broker, Limits, Pool, PoolKind, Terms as Pools, Time};
use sixway::dhcpv6::codec::Packet;
use sixway::dhcpv6::grants::Grants;
use sixway::dhcpv6::query::{ClientData, Query};
use sixway::dhcpv6::requestor::Question;
use sixway::dhcpv6::session::{Origin, Session, Terms};
use sixway_dataplane::update::Ipv6Prefix;

pub(super) fn dhcpv6(octets: &[u8]) {
    if let Ok(packet) = Packet::parse(octets) {
        assert_eq!(packet.emit(), octets);
    }
    queries(octets);
    let pool = |text: &str, kind| Pool { prefix: text.parse().unwrap_or(Ipv6Prefix::ALL), kind };
    let pools =
        vec![pool("2001:db8::/60", PoolKind::Networks(64)), pool("2001:db8:5::/112", PoolKind::Addresses)];
    let pools = Pools { pools, fences: Vec::new(), limits: Limits::default() };
    let mut broker = Broker::new(Accounts::new([7; 16]), pools);
    let duid = vec![0, 1];
    let terms = Terms { duid, preferred: 60, valid: 90, rapid_commit: true, most: 8, ..Terms::default() };
    let terms = Terms { requestors: vec![Ipv6Prefix::ALL], ..terms };
    let mut session = Session::new(Terms { decline: Duration::from_secs(9), ..terms }, 7);
    let origin = Origin { from: Some(std::net::Ipv6Addr::LOCALHOST), ..Origin::of("t") };
    // Said twice: what the first time has bound is there the second time.
    for now in [Time(0), Time(1000)] {
        let mut grants = Grants::new(&mut broker, now);
        if let Some(answer) = session.handle(&origin, octets, &mut grants) {
            assert!(Packet::parse(&answer.octets).is_ok(), "our own answers can be read");
        }
    }
}

/// The options of lease queries, as a server reads the one and a requestor the other.
fn queries(octets: &[u8]) {
    if let Ok(query) = Query::parse(octets) {
        let question = Question { duid: vec![1], xid: [0; 3], query };
        assert!(Packet::parse(&question.message()).is_ok(), "our own questions can be read");
        let _any_octets_are_heard = question.hear(octets);
    }
    if let Ok(data) = ClientData::parse(octets) {
        let mut out = Vec::new();
        data.option().emit(&mut out);
        let again = out.get(4..).map(ClientData::parse);
        assert_eq!(again.map(|data| data.map(|data| data.values)), Some(Ok(data.values)));
    }
}
