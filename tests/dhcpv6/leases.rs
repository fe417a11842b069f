//! Lease queries in tunnels (RFC 5007): who may ask, what is told, octet by octet and case by case.

use std::net::Ipv6Addr;
use std::time::Duration;

use dhcproto::v6::{DhcpOption, MessageType, Status};
use sixway::dhcpv6::codec::{Message, Opt, Packet, Relay, code};
use sixway::dhcpv6::query::{ClientData, Query, Sought};
use sixway::dhcpv6::requestor::{Found, Heard, Question};
use sixway_dataplane::update::Ipv6Prefix;

use crate::cases::{given, lab, message, na, pd, prefix};
use crate::lab::{Lab, octets};

const STATION: &str = "2001:db8:77::9";
const MAY: &str = "preferred = 60\nvalid = 90\ndns = [\"2001:db8:53::53\"]\n\
                   lease_query = [\"2001:db8:77::/48\", \"fe80::1\"]";

fn question(sought: Sought, link: Option<&str>) -> Question {
    let query = Query { sought, link: link.map(|link| link.parse().unwrap()), wanted: vec![23] };
    Question { duid: vec![0, 4, 7], xid: [7, 8, 9], query }
}

fn at(addr: &str, link: Option<&str>) -> Question {
    question(Sought::Address(addr.parse().unwrap()), link)
}

fn of(client: u8, link: Option<&str>) -> Question {
    question(Sought::Client(vec![0, 3, client]), link)
}

#[track_caller]
fn ask(lab: &mut Lab, question: &Question) -> Heard {
    let answer = lab.look_up(STATION, false, &question.message()).unwrap();
    assert!(answer.to_source_port && !answer.to_relay);
    let heard = question.hear(&answer.octets).unwrap();
    assert_eq!(answer.tells_of_others, heard.status.0 == Status::Success, "an error tells nothing");
    heard
}

#[track_caller]
fn data(lab: &mut Lab, question: &Question) -> ClientData {
    match ask(lab, question).found {
        Found::Client(data) => data,
        other @ (Found::Nothing | Found::Links(_)) => panic!("{other:?}"),
    }
}

#[track_caller]
fn status(lab: &mut Lab, question: &Question) -> Status {
    let heard = ask(lab, question);
    assert_eq!(heard.found, Found::Nothing);
    heard.status.0
}

/// An address and a prefix for client `client` in this tunnel.
fn has(lab: &mut Lab, tunnel: &str, client: u8) -> (Ipv6Addr, Ipv6Prefix) {
    let asked = message(MessageType::Request, client, vec![na(1, &[]), pd(2, &["::/56"])]);
    let answer = lab.ask_in(tunnel, None, &[], &asked).unwrap();
    let [address, prefix] = given(&answer.octets)[..] else { panic!("{answer:?}") };
    (address.addr(), prefix)
}

/// RFC: V49 (RFC 5007 sections 4.1.2 and 4.4.1)
#[test]
fn a_client_is_found_by_its_address_by_an_address_within_its_prefix_and_by_its_duid() {
    let mut lab = lab(MAY);
    let (address, delegated) = has(&mut lab, "a", 1);
    has(&mut lab, "b", 2);
    lab.wait(Duration::from_secs(20));
    let inside = Ipv6Addr::from(delegated.bits() + 0x1234_5678).to_string();
    let found = data(&mut lab, &at(&address.to_string(), None));
    assert_eq!((found.client.as_slice(), found.heard), (&[0, 3, 1][..], Some(20)));
    let values: Vec<_> = found.values.iter().map(|v| (v.addr, v.len, v.preferred, v.valid)).collect();
    assert_eq!(values.len(), 2);
    assert!(values.contains(&(address, 128, 40, 70)), "{values:?}");
    assert!(values.contains(&(delegated.addr(), delegated.prefix_len(), 40, 70)), "{values:?}");
    let dns = vec!["2001:db8:53::53".parse().unwrap()];
    assert_eq!(found.options, [Opt::Addresses(code::DNS_SERVERS, dns)]);
    assert_eq!(data(&mut lab, &at(&inside, None)), found);
    assert_eq!(data(&mut lab, &of(1, None)), found);
    assert_eq!(data(&mut lab, &of(1, Some(&inside))), found, "by a link that it is on");
    // Who renews has been heard.
    has(&mut lab, "a", 1);
    assert_eq!(data(&mut lab, &of(1, None)).heard, Some(0));
    // What nobody has, and what nobody here gives.
    assert_eq!(status(&mut lab, &at("2001:db8:5::fefe", None)), Status::Success);
    assert_eq!(status(&mut lab, &of(9, None)), Status::Success);
    assert_eq!(status(&mut lab, &at("2001:db8:dead::1", None)), Status::NotConfigured);
    assert_eq!(status(&mut lab, &of(1, Some("2001:db8:dead::1"))), Status::NotConfigured);
    // What has ended, and what rests after a Decline, is nobody's.
    let back = message(MessageType::Decline, 1, vec![na(1, &[&format!("{address}/128")])]);
    lab.ask_in("a", None, &[], &back).unwrap();
    assert_eq!(status(&mut lab, &at(&address.to_string(), None)), Status::Success);
    assert_eq!(data(&mut lab, &of(1, None)).values.len(), 1);
    lab.wait(Duration::from_secs(90));
    assert_eq!(status(&mut lab, &of(1, None)), Status::Success);
    assert_eq!(lab.session.counts()["lease_query"], 12);
}

/// RFC: V49 (RFC 5007 sections 4.1.2.5 and 4.4.1)
#[test]
fn a_client_on_several_links_is_asked_about_link_by_link() {
    let mut lab = lab(MAY);
    let (first, second) = (has(&mut lab, "a", 1), has(&mut lab, "b", 1));
    let Found::Links(links) = ask(&mut lab, &of(1, None)).found else { panic!("no links") };
    assert_eq!(links.len(), 2);
    let mut all = Vec::new();
    for link in links {
        let found = data(&mut lab, &of(1, Some(&link.to_string())));
        assert_eq!(found.values.len(), 2, "{found:?}");
        all.extend(found.values.iter().map(|value| value.addr));
    }
    for addr in [first.0, first.1.addr(), second.0, second.1.addr()] {
        assert!(all.contains(&addr), "{addr} in {all:?}");
    }
    // By an address there is no doubt; but on another link nobody has it.
    assert_eq!(data(&mut lab, &at(&first.0.to_string(), None)).values.len(), 2);
    let elsewhere = second.1.addr().to_string();
    assert_eq!(status(&mut lab, &at(&first.0.to_string(), Some(&elsewhere))), Status::Success);
}

/// RFC: V49 (RFC 5007 section 5)
#[test]
fn nobody_is_told_unless_the_configuration_names_them() {
    let by = of(1, None).message();
    let mut off = lab("");
    has(&mut off, "a", 1);
    assert!(off.look_up(STATION, false, &by).is_none());
    assert_eq!(off.session.counts()["unexpected"], 1);
    let mut lab = lab(MAY);
    has(&mut lab, "a", 1);
    for (from, is_unicast) in [(STATION, true), (STATION, false), ("fe80::1", false)] {
        let answer = lab.look_up(from, is_unicast, &by).unwrap();
        assert!(matches!(of(1, None).hear(&answer.octets).unwrap().found, Found::Client(_)), "{from}");
    }
    for from in ["2001:db8:78::9", "fe80::2", "::1"] {
        let answer = lab.look_up(from, false, &by).unwrap();
        let heard = of(1, None).hear(&answer.octets).unwrap();
        assert_eq!((heard.status.0, heard.found), (Status::NotAllowed, Found::Nothing), "{from}");
    }
    assert_eq!(lab.session.counts()["lease_query_not_allowed"], 3);
    // Through a relay: it and whoever stands behind it.
    let (may, not): (Ipv6Addr, Ipv6Addr) =
        ("2001:db8:77::1:1".parse().unwrap(), "2001:db8:79::1".parse().unwrap());
    for peer in [may, not] {
        let interface = Opt::Leaf(DhcpOption::InterfaceId(b"eth7".to_vec()));
        let options = vec![interface, Opt::Relayed(by.clone())];
        let relay = Relay { is_reply: false, hops: 0, link: Ipv6Addr::UNSPECIFIED, peer, options };
        let answer = lab.look_up(STATION, true, &Packet::Relay(relay).emit()).unwrap();
        assert!(answer.to_relay && !answer.to_source_port);
        let Ok(Packet::Relay(reply)) = Packet::parse(&answer.octets) else { panic!("no relay") };
        assert_eq!((reply.is_reply, reply.peer, reply.interface()), (true, peer, Some(&b"eth7"[..])));
        let heard = of(1, None).hear(reply.relayed().unwrap()).unwrap();
        assert_eq!(heard.status.0 == Status::Success, peer == may);
    }
}

/// RFC: V49 (RFC 5007 section 4.3.1)
#[test]
fn what_lacks_an_option_or_is_for_another_server_is_dropped() {
    let mut lab = lab(MAY);
    let (client, query) = (Opt::Leaf(DhcpOption::ClientId(vec![0, 4, 7])), of(1, None).query.option());
    let server = |duid: &[u8]| Opt::Leaf(DhcpOption::ServerId(duid.to_vec()));
    let ours = sixway::dhcpv6::server::parse_duid(crate::lab::SERVER).unwrap();
    let cases = [
        (vec![query.clone()], "wrong_form"),
        (vec![client.clone()], "wrong_form"),
        (vec![client.clone(), server(&[9]), query.clone()], "other_server"),
        (vec![client.clone(), query.clone(), query.clone()], "malformed"),
        (vec![client, server(&ours), query], "lease_query"),
    ];
    for (options, counted) in cases {
        let message = Message { kind: MessageType::LeaseQuery, xid: [1, 2, 3], options }.emit();
        let before = lab.session.counts()[counted];
        assert_eq!(lab.look_up(STATION, false, &message).is_some(), counted == "lease_query");
        assert_eq!(lab.session.counts()[counted], before + 1, "{counted}");
    }
    let reply = Message { kind: MessageType::LeaseQueryReply, xid: [1, 2, 3], options: Vec::new() }.emit();
    assert!(lab.look_up(STATION, false, &reply).is_none(), "servers hear no replies");
}

/// RFC: V49 (RFC 5007 section 4.1.2)
#[test]
fn a_query_and_its_reply_octet_by_octet() {
    let config = "[dhcpv6]\npreferred = 60\nvalid = 90\nlease_query = [\"2001:db8:77::/48\"]\n\
                  [[dhcpv6_host]]\nduid = \"00:03:01\"\nprefixes = [\"2001:db8:1111::/48\"]\n";
    let mut lab = Lab::new(config);
    let got = lab.ask(&message(MessageType::Request, 1, vec![pd(1, &[])])).unwrap();
    assert_eq!(given(&got), [prefix("2001:db8:1111::/48")]);
    lab.wait(Duration::from_secs(5));
    let mut said = |asked: &str| {
        let answer = lab.look_up(STATION, false, &octets(asked)).unwrap();
        answer.octets.iter().map(|octet| format!("{octet:02x}")).collect::<String>()
    };
    // LEASEQUERY 0xabcdef of 00:04:07: who has 2001:db8:1111::42, on any link?
    let asked = "0eabcdef00010003000407\
                 002c002d0100000000000000000000000000000000\
                 0005001820010db8111100000000000000000042\
                 0000000000000000";
    let head = "0fabcdef00010003000407\
                0002000e000100012b000001020000005301";
    let data = "002d002c\
                00010003000301\
                001a0019000000370000005530\
                20010db8111100000000000000000000\
                002e000400000005";
    assert_eq!(said(asked), [head, data].concat());
    // Another type of query, and one without an address.
    for (kind, status) in [("03", "0007"), ("01", "0008")] {
        let hex = said(&format!("0eabcdef00010003000407002c0011{kind}{:032x}", 0));
        let rest = hex.strip_prefix(head).unwrap();
        assert_eq!((rest.get(..4), rest.get(8..12)), (Some("000d"), Some(status)), "{hex}");
    }
}
