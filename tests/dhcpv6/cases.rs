//! Rules of RFC 8415, RFC 9915 and RFC 8168, one by one.

use std::time::Duration;

use dhcproto::v6::{DhcpOption, MessageType, ORO, OptionCode};
use sixway::broker::{Account, Mechanisms, Secret, UserName};
use sixway::dhcpv6::codec::{Ia, IaKind, Message, Opt, Packet, Part, Relay, Value};
use sixway::dhcpv6::server::parse_duid;
use sixway_dataplane::update::Ipv6Prefix;

use crate::lab::{Lab, SERVER, words};

const POOLS: &str = r#"
[[pool]]
prefix = "2001:db8:100::/60"
assign = 64

[[pool]]
prefix = "2001:db8:200::/40"
assign = 56

[[pool]]
prefix    = "2001:db8:5::/64"
addresses = true

[[pool]]
prefix    = "2001:db8:6::/64"
addresses = true
"#;

pub(crate) fn lab(keys: &str) -> Lab {
    Lab::new(&format!("[dhcpv6]\n{keys}\n{POOLS}"))
}

pub(crate) fn ia(kind: IaKind, iaid: u32, hints: &[&str]) -> Opt {
    let value = |text: &&str| {
        let (addr, len) = text.split_once('/').unwrap();
        let (addr, len) = (addr.parse().unwrap(), len.parse().unwrap());
        Part::Value(Value { addr, len, preferred: 0, valid: 0, options: Vec::new() })
    };
    Opt::Ia(Ia { kind, iaid, t1: 0, t2: 0, parts: hints.iter().map(value).collect() })
}

pub(crate) fn pd(iaid: u32, hints: &[&str]) -> Opt {
    ia(IaKind::Prefix, iaid, hints)
}

pub(crate) fn na(iaid: u32, hints: &[&str]) -> Opt {
    ia(IaKind::Address, iaid, hints)
}

/// A message of client `client`, with the server's DUID where one must be in it.
pub(crate) fn message(kind: MessageType, client: u8, options: Vec<Opt>) -> Vec<u8> {
    let mut all = vec![Opt::Leaf(DhcpOption::ClientId(vec![0, 3, client]))];
    if matches!(kind, MessageType::Request | MessageType::Renew | MessageType::Release | MessageType::Decline)
    {
        all.push(Opt::Leaf(DhcpOption::ServerId(parse_duid(SERVER).unwrap())));
    }
    all.extend(options);
    Message { kind, xid: [1, 2, 3], options: all }.emit()
}

/// What is in the first identity association of an answer.
pub(crate) fn given(answer: &[u8]) -> Vec<Ipv6Prefix> {
    let Ok(Packet::Message(message)) = Packet::parse(answer) else { panic!("no message") };
    let values =
        message.ias().flat_map(|ia| ia.values().filter(|v| v.valid > 0).cloned().collect::<Vec<_>>());
    values.map(|value| Ipv6Prefix::new(value.addr, value.len).unwrap()).collect()
}

pub(crate) fn prefix(text: &str) -> Ipv6Prefix {
    text.parse().unwrap()
}

/// RFC: V30, V3 (RFC 8168)
#[test]
fn a_hint_at_a_length_chooses_the_pool_that_comes_closest() {
    let mut lab = lab("");
    for (client, hint, len) in [(1, "::/56", 56), (2, "::/64", 64), (3, "::/48", 56), (4, "::/63", 64)] {
        let offered = given(&lab.ask(&message(MessageType::Solicit, client, vec![pd(1, &[hint])])).unwrap());
        assert_eq!(offered[0].prefix_len(), len, "{hint}");
        let got = given(&lab.ask(&message(MessageType::Request, client, vec![pd(1, &[hint])])).unwrap());
        assert_eq!(got, offered, "what was offered is given");
    }
}

/// RFC: V43 (RFC 8415 section 13)
#[test]
fn what_another_has_is_not_given_whatever_the_hint() {
    let mut lab = lab("");
    let hint = "2001:db8:100:7::/64";
    assert_eq!(
        given(&lab.ask(&message(MessageType::Request, 1, vec![pd(1, &[hint])])).unwrap()),
        [prefix(hint)]
    );
    let other = given(&lab.ask(&message(MessageType::Request, 2, vec![pd(1, &[hint])])).unwrap());
    assert!(other.len() == 1 && other[0] != prefix(hint), "{other:?}");
    // Nor to a second number of the same client.
    let second = given(&lab.ask(&message(MessageType::Request, 1, vec![pd(2, &[hint])])).unwrap());
    assert!(second.len() == 1 && second[0] != prefix(hint) && second != other, "{second:?}");
}

/// RFC: V3 (RFC 8415 section 18.3.9)
#[test]
fn two_numbers_in_one_message_are_offered_two_prefixes() {
    let mut lab = lab("");
    let offered = given(&lab.ask(&message(MessageType::Solicit, 1, vec![pd(1, &[]), pd(2, &[])])).unwrap());
    assert!(offered.len() == 2 && offered[0] != offered[1], "{offered:?}");
    assert!(lab.memory.bindings.is_empty() && lab.routes.is_empty(), "an offer binds nothing");
}

/// RFC: V14 (RFC 8415 section 18.3.8)
#[test]
fn a_declined_address_rests_and_comes_back() {
    let mut lab = Lab::new(&format!(
        "[dhcpv6]\npreferred = 60\ndecline_time = 1000\n{POOLS}\n[[dhcpv6_host]]\nduid = \"00:03:01\"\naddresses = [\"2001:db8:9::1\"]\n"
    ));
    let own = "2001:db8:9::1/128";
    let ask = message(MessageType::Request, 1, vec![na(1, &[])]);
    assert_eq!(given(&lab.ask(&ask).unwrap()), [prefix(own)]);
    assert_eq!(
        words(&lab.ask(&message(MessageType::Decline, 1, vec![na(1, &[own])])).unwrap()),
        "Reply Success"
    );
    assert!(lab.routes.is_empty());
    let other = given(&lab.ask(&ask).unwrap());
    assert!(prefix("2001:db8:5::/64").covers(other[0]), "one out of the pool meanwhile: {other:?}");
    lab.ask(&message(MessageType::Release, 1, vec![na(1, &[&other[0].to_string()])])).unwrap();
    lab.restart();
    assert_ne!(given(&lab.ask(&message(MessageType::Solicit, 1, vec![na(1, &[])])).unwrap()), [prefix(own)]);
    lab.wait(Duration::from_secs(1001));
    assert_eq!(given(&lab.ask(&ask).unwrap()), [prefix(own)]);
}

/// RFC: V7 (RFC 8415 section 21.4)
#[test]
fn long_lifetimes_do_not_overflow() {
    let mut lab = lab("preferred = 2000000000\nvalid = 4000000000");
    let said =
        words(&lab.ask(&message(MessageType::Request, 1, vec![pd(1, &["2001:db8:100:7::/64"])])).unwrap());
    assert_eq!(said, "Reply PD1[1000000000,1600000000 2001:db8:100:7::/64 2000000000/4000000000]");
}

/// RFC: X4, R9 (RFC 8415 section 18.3.4)
#[test]
fn a_binding_ends_with_its_time_and_lasts_longer_when_renewed() {
    let mut lab = lab("preferred = 60\nvalid = 100");
    let hint = "2001:db8:100:7::/64";
    lab.ask(&message(MessageType::Request, 1, vec![pd(1, &[hint])])).unwrap();
    lab.wait(Duration::from_secs(99));
    let renewed = lab.ask(&message(MessageType::Renew, 1, vec![pd(1, &[])])).unwrap();
    assert_eq!(given(&renewed), [prefix(hint)]);
    lab.wait(Duration::from_secs(99));
    assert_eq!(lab.routes.len(), 1);
    lab.wait(Duration::from_secs(1));
    assert!(lab.routes.is_empty() && lab.memory.bindings.is_empty());
    assert_eq!(
        words(&lab.ask(&message(MessageType::Renew, 1, vec![pd(1, &[hint])])).unwrap()),
        "Reply PD1[0,0 NoBinding]"
    );
    // The pool remembers whose it was.
    assert_eq!(given(&lab.ask(&message(MessageType::Request, 1, vec![pd(1, &[])])).unwrap()), [prefix(hint)]);
}

/// RFC: V11 (RFC 8415 section 18.3.5)
#[test]
fn a_rebind_of_what_is_of_elsewhere_hears_that_it_is_over() {
    let mut lab = lab("");
    let said =
        words(&lab.ask(&message(MessageType::Rebind, 1, vec![pd(1, &["2001:db8:dead::/48"])])).unwrap());
    assert_eq!(said, "Reply PD1[0,0 2001:db8:dead::/48 0/0]");
    let said =
        words(&lab.ask(&message(MessageType::Rebind, 1, vec![pd(1, &["2001:db8:100:1::/64"])])).unwrap());
    assert_eq!(said, "Reply PD1[0,0 NoBinding]");
}

/// RFC: V44 (RFC 8415 section 13)
#[test]
fn what_the_tunnel_has_comes_before_what_the_account_has_and_that_before_a_duid_and_a_pool() {
    let mut lab = Lab::new(&format!(
        "[dhcpv6]\n{POOLS}\n[[dhcpv6_host]]\nduid = \"00:03:01\"\nprefixes = [\"2001:db8:7::/48\"]\n[[dhcpv6_host]]\nduid = \"00:03:02\"\ntunnel = \"other@tsp\"\nprefixes = [\"2001:db8:8::/48\"]\n"
    ));
    let alice = UserName::parse("alice").unwrap();
    let secret = Secret::random([1; 16]);
    let own = vec![prefix("2001:db8:1::/48")];
    lab.broker.accounts().put(Account {
        name: alice.clone(),
        secret,
        prefixes: own,
        pair: None,
        mechanisms: Mechanisms::ANY,
    });
    let fixed = [prefix("2001:db8:2::/48")];
    let mut ask = |client, iaid, tunnel: &str, user| {
        let octets = message(MessageType::Request, client, vec![pd(iaid, &["::/48"])]);
        given(&lab.ask_in(tunnel, user, if tunnel == "t" { &fixed } else { &[] }, &octets).unwrap().octets)[0]
    };
    assert_eq!(ask(1, 1, "t", Some(&alice)), prefix("2001:db8:2::/48"));
    assert_eq!(ask(1, 2, "t", Some(&alice)), prefix("2001:db8:1::/48"));
    assert_eq!(ask(1, 3, "t", Some(&alice)), prefix("2001:db8:7::/48"));
    assert!(prefix("2001:db8:200::/40").covers(ask(1, 4, "t", Some(&alice))));
    assert!(prefix("2001:db8:200::/40").covers(ask(2, 1, "u", None)), "set aside in another tunnel only");
    assert_eq!(ask(2, 1, "other@tsp", None), prefix("2001:db8:8::/48"));
}

#[test]
fn a_tunnel_has_so_many_bindings_and_no_more() {
    let mut lab = lab("bindings_per_tunnel = 2");
    let said =
        words(&lab.ask(&message(MessageType::Request, 1, vec![na(1, &[]), na(2, &[]), na(3, &[])])).unwrap());
    assert!(said.contains("NA3[0,0 NoAddrsAvail]") && lab.memory.bindings.len() == 2, "{said}");
    let elsewhere = lab.ask_in("u", None, &[], &message(MessageType::Request, 1, vec![na(1, &[])])).unwrap();
    assert_eq!(given(&elsewhere.octets).len(), 1);
}

/// RFC: V16, V17 (RFC 8415 sections 21.7, 21.24 and 21.25)
#[test]
fn options_are_sent_to_those_who_ask_and_some_always() {
    let mut lab = lab(
        "dns = [\"2001:db8::53\"]\nntp = [\"2001:db8::123\"]\ndomains = [\"a.example\"]\nsol_max_rt = 600\nalways = [24]",
    );
    let ask = |codes: &[u16]| {
        let opts = codes.iter().map(|code| OptionCode::from(*code)).collect();
        message(MessageType::InformationRequest, 1, vec![Opt::Leaf(DhcpOption::ORO(ORO { opts }))])
    };
    assert_eq!(words(&lab.ask(&ask(&[23])).unwrap()), "Reply o23 o24");
    assert_eq!(words(&lab.ask(&ask(&[31])).unwrap()), "Reply o24 o31");
    assert_eq!(words(&lab.ask(&ask(&[56, 82])).unwrap()), "Reply o24 o56 o82");
    assert_eq!(words(&lab.ask(&message(MessageType::InformationRequest, 1, vec![])).unwrap()), "Reply o24");
}

/// RFC: V18, V19, V20 (RFC 8415 sections 13.1 and 19)
#[test]
fn eight_relays_are_followed_and_a_ninth_is_not() {
    let mut lab = lab("");
    let mut octets = message(MessageType::Solicit, 1, vec![na(1, &[])]);
    for level in 1..=9u8 {
        // The innermost address that says anything of the link is what counts.
        let link = if level == 2 {
            "2001:db8:6::1"
        } else if level == 1 {
            "::"
        } else {
            "2001:db8:5::1"
        };
        let peer = "fe80::1".parse().unwrap();
        let id = Opt::Leaf(DhcpOption::InterfaceId(vec![level]));
        let relay = Relay {
            is_reply: false,
            hops: level - 1,
            link: link.parse().unwrap(),
            peer,
            options: vec![id, Opt::Relayed(octets)],
        };
        octets = Packet::Relay(relay).emit();
        let answer = lab.ask(&octets);
        assert_eq!(answer.is_some(), level <= 8, "{level}");
        let Some(mut answer) = answer else { continue };
        for expected in (1..=level).rev() {
            let Ok(Packet::Relay(relay)) = Packet::parse(&answer) else { panic!("no relay") };
            assert_eq!(
                (relay.is_reply, relay.interface(), relay.hops),
                (true, Some(&[expected][..]), expected - 1)
            );
            answer = relay.relayed().unwrap().to_vec();
        }
        let pool = if level == 1 { "2001:db8:5::/64" } else { "2001:db8:6::/64" };
        assert!(prefix(pool).covers(given(&answer)[0]), "{level}: {}", words(&answer));
    }
    assert_eq!(lab.session.counts()["too_deep"], 1);
}

#[test]
fn pools_that_are_used_up_say_so_and_go_on_when_something_comes_back() {
    let mut lab = Lab::new("[dhcpv6]\n[[pool]]\nprefix = \"2001:db8:100::/63\"\nassign = 64\n");
    let ask = |client| message(MessageType::Request, client, vec![pd(1, &[])]);
    let first = given(&lab.ask_in("a", None, &[], &ask(1)).unwrap().octets);
    given(&lab.ask_in("b", None, &[], &ask(2)).unwrap().octets);
    let said = words(&lab.ask_in("c", None, &[], &ask(3)).unwrap().octets);
    assert_eq!(said, "Reply PD1[0,0 NoPrefixAvail]");
    let back = message(MessageType::Release, 1, vec![pd(1, &[&first[0].to_string()])]);
    lab.ask_in("a", None, &[], &back).unwrap();
    assert_eq!(given(&lab.ask_in("c", None, &[], &ask(3)).unwrap().octets), first);
}

/// A client numbers its associations apart (RFC 8415 section 21.4), and a message has no more of them than are dealt with.
#[test]
fn one_number_is_answered_once_and_a_message_has_few_of_them() {
    let mut lab = lab("");
    let answer =
        lab.ask(&message(MessageType::Solicit, 1, vec![pd(1, &[]), pd(1, &[]), na(1, &[])])).unwrap();
    let Packet::Message(answer) = Packet::parse(&answer).unwrap() else { panic!() };
    assert_eq!(
        answer.ias().map(|ia| (ia.kind, ia.iaid)).collect::<Vec<_>>(),
        [(IaKind::Address, 1), (IaKind::Prefix, 1)]
    );
    let many = (0..124).map(|n| na(n, &[])).collect();
    let answer = lab.ask(&message(MessageType::Solicit, 1, many)).unwrap();
    let Packet::Message(answer) = Packet::parse(&answer).unwrap() else { panic!() };
    assert_eq!(answer.ias().count(), sixway::dhcpv6::session::MAX_IAS);
}
