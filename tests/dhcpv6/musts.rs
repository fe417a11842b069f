//! What RFC 8415 and RFC 9915 ask of a server, one by one, as far as the other tests do not show it.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;
use std::time::Duration;

use dhcproto::v6::{DhcpOption, MessageType, ORO, OptionCode, Status};
use sixway::dhcpv6::auth::{DIGEST, Ring, sign};
use sixway::dhcpv6::calls::Called;
use sixway::dhcpv6::codec::{IaKind, Message, Opt, Packet, Part, Relay, code};
use sixway::dhcpv6::session::Origin;
use sixway::dhcpv6::telling::Bound;

use crate::cases::{given, ia, lab, message, na, pd, prefix};
use crate::lab::{Lab, words};

pub(crate) const HERE: &str = "fe80::9";

pub(crate) fn parsed(octets: &[u8]) -> Message {
    match Packet::parse(octets).unwrap() {
        Packet::Message(message) => message,
        Packet::Relay(relay) => panic!("{relay:?}"),
    }
}

pub(crate) fn from_here<'a>() -> Origin<'a> {
    let from = Some(HERE.parse().unwrap());
    Origin { from, ..Origin::of("t") }
}

pub(crate) fn accept() -> Opt {
    Opt::Leaf(DhcpOption::ReconfAccept)
}

/// RFC: V1, V5 (RFC 8415 sections 18.3.9 and 18.3.2)
#[test]
fn what_cannot_be_given_is_said_in_its_own_association() {
    let mut lab = Lab::new("[dhcpv6]\n[[pool]]\nprefix = \"2001:db8:100::/60\"\nassign = 64\n");
    let both = || vec![na(1, &[]), pd(2, &[])];
    for (kind, name) in [(MessageType::Solicit, "Advertise"), (MessageType::Request, "Reply")] {
        let said = words(&lab.ask(&message(kind, 1, both())).unwrap());
        assert!(
            said.starts_with(&format!("{name} NA1[0,0 NoAddrsAvail] PD2[1800,2880 2001:db8:100:")),
            "{said}"
        );
    }
    let mut lab = Lab::new("[dhcpv6]\n[[pool]]\nprefix = \"2001:db8:5::/64\"\naddresses = true\n");
    let said = words(&lab.ask(&message(MessageType::Request, 1, both())).unwrap());
    assert!(said.ends_with("PD2[0,0 NoPrefixAvail]") && said.starts_with("Reply NA1[1800,"), "{said}");
}

/// RFC: V2 (RFC 8415 section 21.8)
#[test]
fn a_preference_is_said_in_advertises_if_there_is_one() {
    let solicit = message(MessageType::Solicit, 1, vec![na(1, &[])]);
    assert!(!words(&lab("").ask(&solicit).unwrap()).contains("pref"));
    let mut lab = lab("preference = 7");
    assert!(words(&lab.ask(&solicit).unwrap()).contains("pref=7"));
    assert!(!words(&lab.ask(&message(MessageType::Request, 1, vec![na(1, &[])])).unwrap()).contains("pref"));
}

/// RFC: V4 (RFC 8415 section 18.3.2)
#[test]
fn an_address_of_elsewhere_is_not_on_the_link() {
    let mut lab = lab("");
    let asked = vec![na(1, &["2001:db8:dead::1/128"]), na(2, &["2001:db8:5::77/128"])];
    let said = words(&lab.ask(&message(MessageType::Request, 1, asked)).unwrap());
    assert!(said.starts_with("Reply NA1[0,0 NotOnLink] NA2[1800,2880 2001:db8:5::77 "), "{said}");
}

/// RFC: V6, V7 (RFC 8415 sections 18.3.2, 21.4 and 21.21)
#[test]
fn times_are_the_same_everywhere_and_none_where_nothing_ends() {
    let both = vec![na(1, &[]), pd(2, &[]), pd(3, &[])];
    let answer =
        lab("preferred = 101\nvalid = 200").ask(&message(MessageType::Request, 1, both.clone())).unwrap();
    let times: BTreeSet<(u32, u32)> = parsed(&answer).ias().map(|ia| (ia.t1, ia.t2)).collect();
    assert_eq!(times, BTreeSet::from([(50, 80)]));
    let for_ever = lab("preferred = 4294967295\nvalid = 4294967295")
        .ask(&message(MessageType::Request, 1, both))
        .unwrap();
    assert!(parsed(&for_ever).ias().all(|ia| (ia.t1, ia.t2) == (u32::MAX, u32::MAX)));
}

/// RFC: V8 (RFC 8415 section 18.3.3)
#[test]
fn a_confirm_is_answered_by_a_status_alone_and_binds_nothing() {
    let mut lab = lab("");
    let ask = |lab: &mut Lab, hints: &[&str]| lab.ask(&message(MessageType::Confirm, 1, vec![na(1, hints)]));
    assert_eq!(words(&ask(&mut lab, &["2001:db8:5::1/128"]).unwrap()), "Reply NotOnLink", "nobody's");
    assert!(lab.memory.bindings.is_empty());
    lab.ask(&message(MessageType::Request, 1, vec![na(1, &["2001:db8:5::1/128"])])).unwrap();
    assert_eq!(words(&ask(&mut lab, &["2001:db8:5::1/128"]).unwrap()), "Reply Success");
    let elsewhere = message(MessageType::Confirm, 1, vec![na(1, &["2001:db8:5::1/128"])]);
    assert_eq!(
        words(&lab.ask_in("u", None, &[], &elsewhere).unwrap().octets),
        "Reply NotOnLink",
        "another tunnel"
    );
    assert_eq!(
        words(&ask(&mut lab, &["2001:db8:5::1/128", "2001:db8:dead::1/128"]).unwrap()),
        "Reply NotOnLink"
    );
    assert_eq!(ask(&mut lab, &[]), None);
    assert_eq!(lab.ask(&message(MessageType::Confirm, 1, vec![pd(1, &["2001:db8:100::/64"])])), None);
    assert_eq!(lab.memory.bindings.len(), 1, "it binds nothing");
    // Behind a relay it is the relay's link that counts.
    let confirm = message(MessageType::Confirm, 1, vec![na(1, &["2001:db8:5::1/128"])]);
    for (link, expected) in [("2001:db8:6::1", "NotOnLink"), ("2001:db8:5::1", "Success"), ("::", "Success")]
    {
        let answer = lab.ask(&relayed(link, Vec::new(), confirm.clone())).unwrap();
        assert_eq!(words(&answer), format!("relay(Reply {expected})"), "{link}");
    }
}

pub(crate) fn relayed(link: &str, mut options: Vec<Opt>, inner: Vec<u8>) -> Vec<u8> {
    let (link, peer) = (link.parse().unwrap(), "fe80::1".parse().unwrap());
    options.push(Opt::Relayed(inner));
    Packet::Relay(Relay { is_reply: false, hops: 0, link, peer, options }).emit()
}

/// RFC: V9 (RFC 8415 section 18.3.4)
#[test]
fn a_renew_brings_new_times_and_ends_what_is_not_the_client_s() {
    let mut lab = lab("preferred = 60\nvalid = 100");
    lab.ask(&message(MessageType::Request, 1, vec![pd(1, &["2001:db8:100:7::/64"])])).unwrap();
    let renew = message(
        MessageType::Renew,
        1,
        vec![pd(1, &["2001:db8:100:7::/64", "2001:db8:100:8::/64", "2001:db8:dead::/64"])],
    );
    let said = words(&lab.ask(&renew).unwrap());
    let expected =
        "Reply PD1[30,48 2001:db8:100:7::/64 60/100 2001:db8:100:8::/64 0/0 2001:db8:dead::/64 0/0]";
    assert_eq!(said, expected);
}

/// RFC: V10, V11 (RFC 8415 sections 18.3.4 and 18.3.5)
#[test]
fn what_is_not_bound_is_bound_only_where_that_is_allowed() {
    let hint = "2001:db8:100:7::/64";
    let ask = |keys: &str, kind| words(&lab(keys).ask(&message(kind, 1, vec![pd(1, &[hint])])).unwrap());
    assert_eq!(ask("", MessageType::Renew), "Reply PD1[0,0 NoBinding]");
    assert_eq!(ask("rapid_commit = true", MessageType::Renew), "Reply PD1[0,0 NoBinding]");
    assert_eq!(ask("", MessageType::Rebind), "Reply PD1[0,0 NoBinding]");
    assert_eq!(
        ask("rapid_commit = true", MessageType::Rebind),
        format!("Reply PD1[1800,2880 {hint} 3600/7200]")
    );
    let mut own =
        Lab::new("[dhcpv6]\n[[dhcpv6_host]]\nduid = \"00:03:01\"\nprefixes = [\"2001:db8:7::/48\"]\n");
    let said = words(&own.ask(&message(MessageType::Renew, 1, vec![pd(1, &[])])).unwrap());
    assert_eq!(said, "Reply PD1[1800,2880 2001:db8:7::/48 3600/7200]", "what is set aside");
}

/// RFC: V12 (RFC 8415 sections 16.12 and 18.3.6)
#[test]
fn information_is_for_everybody_but_not_with_associations() {
    let mut lab = lab("dns = [\"2001:db8::53\"]\nalways = [23]\nrefresh_time = 1800\ninf_max_rt = 900");
    let ask =
        |options: Vec<Opt>| Message { kind: MessageType::InformationRequest, xid: [1; 3], options }.emit();
    assert_eq!(words(&lab.ask(&ask(vec![])).unwrap()), "Reply o23 o32");
    let oro = Opt::Leaf(DhcpOption::ORO(ORO { opts: vec![OptionCode::from(83)] }));
    assert_eq!(words(&lab.ask(&ask(vec![oro])).unwrap()), "Reply o23 o83 o32");
    assert_eq!(lab.ask(&ask(vec![na(1, &[])])), None);
    assert_eq!(lab.ask(&ask(vec![Opt::Leaf(DhcpOption::ServerId(vec![0, 9, 9]))])), None);
}

/// RFC: V13, V14 (RFC 8415 sections 18.3.7 and 18.3.8)
#[test]
fn giving_back_succeeds_and_says_what_was_never_had() {
    let mut lab = lab("");
    let own = given(&lab.ask(&message(MessageType::Request, 1, vec![na(1, &[])])).unwrap())[0].to_string();
    let release = message(MessageType::Release, 1, vec![na(1, &[&own]), na(2, &["2001:db8:5::9/128"])]);
    assert_eq!(words(&lab.ask(&release).unwrap()), "Reply NA2[0,0 NoBinding] Success");
    assert!(lab.memory.bindings.is_empty());
    assert_eq!(
        words(&lab.ask(&message(MessageType::Decline, 1, vec![na(1, &[&own])])).unwrap()),
        "Reply NA1[0,0 NoBinding] Success"
    );
}

/// RFC: V15 (RFC 8415 sections 18.3.1 and 21.14)
#[test]
fn rapid_commit_is_answered_where_it_is_allowed() {
    let ask = || {
        message(
            MessageType::Solicit,
            1,
            vec![Opt::Leaf(DhcpOption::RapidCommit), na(1, &["2001:db8:5::7/128"])],
        )
    };
    let mut allowed = lab("rapid_commit = true");
    assert_eq!(words(&allowed.ask(&ask()).unwrap()), "Reply NA1[1800,2880 2001:db8:5::7 3600/7200] rapid");
    assert_eq!(allowed.memory.bindings.len(), 1);
    let mut refused = lab("");
    assert!(
        words(&refused.ask(&ask()).unwrap()).starts_with("Advertise NA1")
            && refused.memory.bindings.is_empty()
    );
}

/// RFC: V21 (RFC 8357 section 5, RFC 4994 section 4)
#[test]
fn a_relay_finds_its_port_and_what_it_asked_for_in_the_answer() {
    let mut lab = lab("");
    let solicit = message(MessageType::Solicit, 1, vec![na(1, &[])]);
    let options = vec![
        Opt::Other(code::RELAY_PORT, vec![0, 0]),
        Opt::Other(37, vec![0, 0, 0, 9, 1]),
        Opt::Other(38, vec![7]),
        Opt::Other(code::ERO, vec![0, 37]),
        Opt::Leaf(DhcpOption::InterfaceId(vec![7])),
    ];
    let answer = lab.ask_from(&from_here(), &relayed("::", options, solicit.clone())).unwrap();
    assert!(answer.to_relay && answer.to_source_port);
    let Packet::Relay(reply) = Packet::parse(&answer.octets).unwrap() else { panic!() };
    let codes: Vec<u16> = reply.options.iter().map(Opt::code).collect();
    assert_eq!(codes, [9, code::RELAY_PORT, 37, 18]);
    let answer = lab.ask_from(&from_here(), &relayed("::", Vec::new(), solicit)).unwrap();
    assert!(answer.to_relay && !answer.to_source_port);
}

/// RFC: V22 (RFC 8415 section 21.13)
#[test]
fn a_status_has_a_text_without_zeros() {
    let mut lab = lab("");
    let answer = lab.ask(&message(MessageType::Renew, 1, vec![pd(1, &[])])).unwrap();
    let texts: Vec<String> = parsed(&answer)
        .ias()
        .flat_map(|ia| ia.parts.clone())
        .filter_map(|part| if let Part::Status(Status::NoBinding, text) = part { Some(text) } else { None })
        .collect();
    assert!(matches!(&texts[..], [text] if !text.is_empty() && !text.contains('\0')), "{texts:?}");
}

/// RFC: V23 (RFC 8415 section 13.1, RFC 5453)
#[test]
fn addresses_cannot_be_foreseen_and_are_none_of_the_reserved_ones() {
    let mut lab = lab("bindings_per_tunnel = 1024");
    let mut seen: Vec<u128> = Vec::new();
    for client in 0..100 {
        let got = given(&lab.ask(&message(MessageType::Request, client, vec![na(1, &[])])).unwrap());
        seen.push(got[0].bits() & u128::from(u64::MAX));
    }
    let far = |pair: &[u128]| pair[0].abs_diff(pair[1]) > 1 << 32;
    assert!(
        seen.windows(2).filter(|pair| far(pair)).count() > 95,
        "none follows from the one before: {seen:x?}"
    );
    for reserved in
        ["2001:db8:5::/128", "2001:db8:5:0:fdff:ffff:ffff:ff80/128", "2001:db8:5:0:fdff:ffff:ffff:ffff/128"]
    {
        let got = given(&lab.ask(&message(MessageType::Request, 200, vec![na(9, &[reserved])])).unwrap());
        assert!(got.len() == 1 && got[0] != prefix(reserved), "{got:?}");
    }
}

/// RFC: V24 (RFC 8415 section 16)
#[test]
fn messages_without_what_they_must_have_or_with_what_they_must_not_are_dropped() {
    use MessageType as M;
    let mut lab = lab("");
    let server =
        || Opt::Leaf(DhcpOption::ServerId(sixway::dhcpv6::server::parse_duid(crate::lab::SERVER).unwrap()));
    let client = || Opt::Leaf(DhcpOption::ClientId(vec![0, 3, 1]));
    let other = || Opt::Leaf(DhcpOption::ServerId(vec![0, 3, 1]));
    let hint = "2001:db8:5::7/128";
    for kind in [M::Solicit, M::Confirm, M::Rebind, M::Request, M::Renew, M::Release, M::Decline] {
        let with_server = !matches!(kind, M::Solicit | M::Confirm | M::Rebind);
        for (options, good) in [
            (vec![client(), na(1, &[hint])], !with_server),
            (vec![client(), server(), na(1, &[hint])], with_server),
            (vec![server(), na(1, &[hint])], false),
            (vec![na(1, &[hint])], false),
            (vec![client(), other(), na(1, &[hint])], false),
        ] {
            let asked = Message { kind, xid: [1, 2, 3], options }.emit();
            assert_eq!(lab.ask(&asked).is_some(), good, "{kind:?}: {asked:?}");
        }
    }
    for kind in [M::Advertise, M::Reply, M::Reconfigure, M::Unknown(99), M::RelayRepl] {
        let asked = Message { kind, xid: [1, 2, 3], options: vec![client(), server()] }.emit();
        assert_eq!(lab.ask(&asked), None, "{kind:?}");
    }
}

/// RFC: V25, V41 (RFC 8415 section 16, RFC 9915)
#[test]
fn what_nobody_knows_is_passed_over() {
    let mut lab = lab("");
    let temporary = Opt::Other(4, vec![0, 0, 0, 1]);
    let asked = vec![Opt::Other(65_000, vec![1, 2]), temporary, pd(1, &["2001:db8:100:7::/64"])];
    let said = words(&lab.ask(&message(MessageType::Request, 1, asked)).unwrap());
    assert_eq!(said, "Reply PD1[1800,2880 2001:db8:100:7::/64 3600/7200]");
}

/// RFC: V27 (RFC 9915 section 18.4)
#[test]
fn what_is_sent_to_an_address_of_the_server_is_not_answered() {
    let mut lab = lab("");
    let asked = message(MessageType::Request, 1, vec![na(1, &[])]);
    let origin = Origin { is_unicast: true, ..from_here() };
    assert!(lab.ask_from(&origin, &asked).is_none());
    assert!(lab.ask_from(&origin, &relayed("::", Vec::new(), asked)).is_some(), "relays may");
}

pub(crate) fn proved(octets: &[u8], key: &[u8]) -> bool {
    let (mut zeros, at) = (octets.to_vec(), octets.len() - DIGEST);
    zeros[at..].fill(0);
    sign(&mut zeros, key);
    zeros == octets
}

/// The key that a Reply has given.
pub(crate) fn key(answer: &[u8]) -> Option<Vec<u8>> {
    let message = parsed(answer);
    let auth = message.auth()?;
    assert!(message.accepts_reconfigure());
    assert_eq!((auth.proto, auth.algo, auth.rdm, auth.info[0], auth.info.len()), (3, 1, 0, 1, 17));
    Some(auth.info[1..].to_vec())
}

pub(crate) fn telling() -> Lab {
    let mut lab = lab("");
    lab.session.trust(Ring::new([9; 32], 0));
    lab.session.set_clock((1_800_000_000, 0));
    lab
}

/// RFC: V33, V35, V37 (RFC 8415 sections 18.3.11 and 20.4)
#[test]
fn a_client_that_lets_itself_be_told_is_given_a_key_and_told() {
    let mut lab = telling();
    let offered =
        lab.ask_from(&from_here(), &message(MessageType::Solicit, 1, vec![accept(), pd(1, &[])])).unwrap();
    assert!(parsed(&offered.octets).accepts_reconfigure() && parsed(&offered.octets).auth().is_none());
    let got =
        lab.ask_from(&from_here(), &message(MessageType::Request, 1, vec![accept(), pd(1, &[])])).unwrap();
    let key = key(&got.octets).unwrap();
    assert_eq!(lab.memory.bindings[0].reach, Some(HERE.parse().unwrap()));
    // Not to those who did not say so; where a relay's client is its binding does not say.
    let silent = lab.ask_from(&from_here(), &message(MessageType::Request, 2, vec![pd(1, &[])])).unwrap();
    assert!(parsed(&silent.octets).auth().is_none() && !parsed(&silent.octets).accepts_reconfigure());
    let far = relayed("::", Vec::new(), message(MessageType::Request, 3, vec![accept(), pd(1, &[])]));
    lab.ask_from(&from_here(), &far).unwrap();
    assert_eq!(lab.memory.bindings.iter().filter(|binding| binding.reach.is_some()).count(), 1);

    let who = Called { tunnel: "t".into(), client: [0, 3, 1].into() };
    let to: Ipv6Addr = HERE.parse().unwrap();
    for (renew, wanted) in [(true, MessageType::Renew), (false, MessageType::InformationRequest)] {
        lab.session.call_bound(Duration::from_secs(9), &Bound::from([(who.clone(), Some(to))]), renew);
        let (_, at, octets) = lab.session.poll_call(Duration::from_secs(10)).unwrap();
        let said = parsed(&octets);
        assert_eq!((at, said.kind, said.xid), ((to, 546), MessageType::Reconfigure, [0; 3]));
        assert_eq!(said.options.iter().map(Opt::code).collect::<Vec<_>>(), [1, 2, 19, 11]);
        assert_eq!(said.options[2], Opt::Leaf(DhcpOption::ReconfMsg(wanted)));
        assert!(proved(&octets, &key) && !proved(&octets, &[0; 16]));
        let asked = message(wanted, 1, if renew { vec![pd(1, &[])] } else { vec![] });
        lab.ask_from(&from_here(), &asked).unwrap();
        assert_eq!(lab.session.poll_call(Duration::from_secs(1000)), None, "it has asked");
    }
    assert_eq!((lab.session.counts()["reconfigure"], lab.session.counts()["reconfigure_heard"]), (2, 2));
}

/// RFC: V36 (RFC 8415 section 20.3)
#[test]
fn numbers_grow_over_restarts_and_the_key_stays() {
    let mut lab = telling();
    let ask = |lab: &mut Lab| {
        let got = lab
            .ask_from(&from_here(), &message(MessageType::Request, 1, vec![accept(), pd(1, &[])]))
            .unwrap();
        (key(&got.octets).unwrap(), parsed(&got.octets).auth().unwrap().replay_detection)
    };
    let (first, before) = ask(&mut lab);
    let full = |_: &Ring| Err(std::io::Error::other("no room"));
    assert!(lab.session.keep_ring(full).is_err(), "nothing is said while this is not kept");
    assert!(lab.session.keep_ring(full).is_err(), "nor is it forgotten");
    let mut kept = None;
    let keep = |ring: &Ring| {
        kept = Some((*ring.parts().0, ring.parts().1));
        Ok(())
    };
    lab.session.keep_ring(keep).unwrap();
    let (secret, mark) = kept.unwrap();
    assert!(ask(&mut lab).1 > before && lab.session.keep_ring(full).is_ok(), "some are set aside");
    let last = ask(&mut lab).1;
    lab.restart();
    lab.session.trust(Ring::new(secret, mark));
    // The clock was set back meanwhile.
    lab.session.set_clock((1_700_000_000, 0));
    let (second, after) = ask(&mut lab);
    assert!(after > last && first == second);
    assert_eq!(lab.memory.bindings[0].reach, Some(HERE.parse().unwrap()));
}

/// RFC: V26 (RFC 8415 section 16)
#[test]
fn malformed_options_drop_the_message() {
    let mut lab = lab("");
    let good = message(MessageType::Solicit, 1, vec![ia(IaKind::Prefix, 1, &[])]);
    assert!(lab.ask(&good).is_some());
    // Cut anywhere but between the two options.
    for end in (5..good.len()).filter(|end| *end != 11) {
        assert_eq!(lab.ask(&good[..end]), None, "{end}");
    }
    for wrong in [&[0, 6, 0, 1, 0][..], &[0, 3, 0, 3, 0, 0, 0], &[0, 14, 0, 1, 0], &[0, 1, 0, 1, 7]] {
        assert_eq!(lab.ask(&[&good[..], wrong].concat()), None, "{wrong:?}");
    }
}
