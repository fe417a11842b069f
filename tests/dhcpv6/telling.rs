//! Who is told of changes beside those whom the server hears directly and who have something, and what relays and links add
//! to an answer.

use std::net::Ipv6Addr;
use std::time::Duration;

use dhcproto::v6::{DhcpOption, MessageType, ORO, OptionCode};
use sixway::dhcpv6::auth::Ring;
use sixway::dhcpv6::calls::{Called, TRIES};
use sixway::dhcpv6::codec::{Message, Opt, Packet, Relay, code};
use sixway::dhcpv6::session::Origin;
use sixway::dhcpv6::telling::Bound;

use crate::cases::{lab, message, pd, prefix};
use crate::lab::Lab;
use crate::musts::{HERE, accept, from_here, key, parsed, proved, relayed, telling};

const S: Duration = Duration::from_secs(1);

fn who(client: u8) -> Called {
    Called { tunnel: "t".into(), client: [0, 3, client].into() }
}

/// A client with a binding that says nothing of where it is.
fn bound(client: u8) -> Bound {
    Bound::from([(who(client), None)])
}

/// The client's message through two relays: the nearest to it names its interface, the nearest to us has a port of its own.
fn through_two(inner: Vec<u8>) -> Vec<u8> {
    let id = Opt::Leaf(DhcpOption::InterfaceId(b"eth7".to_vec()));
    let near = Relay {
        is_reply: false,
        hops: 0,
        link: "2001:db8:6::1".parse().unwrap(),
        peer: "fe80::77".parse().unwrap(),
        options: vec![Opt::Other(37, vec![1, 2, 3]), id, Opt::Relayed(inner)],
    };
    let far = Relay {
        is_reply: false,
        hops: 1,
        link: Ipv6Addr::UNSPECIFIED,
        peer: "2001:db8:6::1".parse().unwrap(),
        options: vec![Opt::Other(code::RELAY_PORT, vec![0, 0]), Opt::Relayed(Packet::Relay(near).emit())],
    };
    Packet::Relay(far).emit()
}

fn relay(octets: &[u8]) -> Relay {
    match Packet::parse(octets).unwrap() {
        Packet::Relay(relay) => relay,
        Packet::Message(message) => panic!("{message:?}"),
    }
}

fn ask(lab: &mut Lab, port: u16, octets: &[u8]) -> Vec<u8> {
    lab.ask_from(&Origin { port, ..from_here() }, octets).unwrap().octets
}

/// RFC: V45 (RFC 8415 sections 18.3.11 and 19.4, RFC 8357 section 5.2)
#[test]
fn a_client_behind_relays_is_told_through_the_same_relays() {
    let mut lab = telling();
    let asked = message(MessageType::Request, 1, vec![accept(), pd(1, &[])]);
    let answer = relay(&ask(&mut lab, 5470, &through_two(asked)));
    let key = key(relay(answer.relayed().unwrap()).relayed().unwrap()).unwrap();
    assert_eq!(lab.session.call_bound(S, &bound(1), true), 1);
    let (told, at, octets) = lab.session.poll_call(S * 2).unwrap();
    assert_eq!((told, at), (who(1), (HERE.parse().unwrap(), 5470)), "to the nearest relay, at its own port");
    let far = relay(&octets);
    let far_is = (far.is_reply, far.hops, far.link, far.peer.to_string());
    assert_eq!(far_is, (true, 1, Ipv6Addr::UNSPECIFIED, "2001:db8:6::1".to_owned()));
    assert_eq!(far.options.iter().map(Opt::code).collect::<Vec<_>>(), [code::RELAY_MSG, code::RELAY_PORT]);
    let near = relay(far.relayed().unwrap());
    assert_eq!((near.is_reply, near.hops, near.interface()), (true, 0, Some(&b"eth7"[..])));
    assert_eq!((near.link.to_string(), near.peer.to_string()), ("2001:db8:6::1".into(), "fe80::77".into()));
    assert_eq!(near.options.len(), 2, "what nobody asked to be echoed is not: {near:?}");
    let inner = near.relayed().unwrap();
    let said = parsed(inner);
    assert_eq!((said.kind, said.xid), (MessageType::Reconfigure, [0; 3]));
    assert_eq!(said.options[2], Opt::Leaf(DhcpOption::ReconfMsg(MessageType::Renew)));
    assert!(proved(inner, &key));
    // It renews through one relay now, which listens where all do: the next time it is told there.
    let renew = message(MessageType::Renew, 1, vec![accept(), pd(1, &[])]);
    ask(&mut lab, 5470, &relayed("2001:db8:6::1", Vec::new(), renew));
    assert_eq!(lab.session.poll_call(S * 1000), None, "it has asked");
    lab.session.call_bound(S * 1000, &bound(1), true);
    let (_, at, octets) = lab.session.poll_call(S * 1000).unwrap();
    assert_eq!((at.1, relay(&octets).relayed().map(|inner| inner[0])), (547, Some(10)));
    // On the link itself now, which its binding says from here on.
    let renew = message(MessageType::Renew, 1, vec![accept(), pd(1, &[])]);
    ask(&mut lab, 546, &renew);
    lab.session.call_bound(S * 2000, &bound(1), true);
    assert_eq!(lab.session.poll_call(S * 2000).map(|(_, at, _)| at.1), Some(546));
    // It does not let itself be told any more.
    ask(&mut lab, 546, &message(MessageType::Renew, 1, vec![pd(1, &[])]));
    assert_eq!(lab.session.call_bound(S * 3000, &bound(1), true), 0);
}

/// RFC: V34 (RFC 8415 section 18.3.11)
#[test]
fn a_client_is_told_until_it_sends_what_it_was_told_to_and_nothing_else_will_do() {
    use MessageType as M;
    let mut lab = telling();
    let say = |lab: &mut Lab, kind| {
        let held = if kind == M::InformationRequest { Vec::new() } else { vec![pd(1, &[])] };
        let asked = message(kind, 1, [vec![accept()], held].concat());
        lab.ask_from(&from_here(), &asked).unwrap();
        lab.session.counts()["reconfigure_heard"]
    };
    let wants = |lab: &mut Lab, at: u32| {
        let (.., octets) = lab.session.poll_call(S * at)?;
        let kinds = [M::Renew, M::InformationRequest];
        kinds.into_iter().find(|kind| parsed(&octets).options[2] == Opt::Leaf(DhcpOption::ReconfMsg(*kind)))
    };
    say(&mut lab, M::Request);
    let here = Bound::from([(who(1), Some(HERE.parse().unwrap()))]);
    lab.session.call_bound(S, &here, true);
    assert_eq!([M::InformationRequest, M::Rebind, M::Solicit].map(|kind| say(&mut lab, kind)), [0; 3]);
    assert_eq!(wants(&mut lab, 10), Some(M::Renew), "it is told still");
    // News of less do not make it less.
    lab.session.call_bound(S * 20, &here, false);
    assert_eq!(wants(&mut lab, 30), Some(M::Renew));
    assert_eq!((say(&mut lab, M::Renew), wants(&mut lab, 1000)), (1, None));
    lab.session.call_bound(S * 1000, &here, false);
    assert_eq!([M::Renew, M::Rebind].map(|kind| say(&mut lab, kind)), [1, 1]);
    assert_eq!(wants(&mut lab, 1010), Some(M::InformationRequest));
    assert_eq!((say(&mut lab, M::InformationRequest), wants(&mut lab, 2000)), (2, None));
}

/// RFC: V45 (RFC 8415 section 18.3.11)
#[test]
fn ways_that_are_long_or_old_are_not_kept() {
    let mut lab = telling();
    let asked = || message(MessageType::Request, 1, vec![accept(), pd(1, &[])]);
    let long = Opt::Leaf(DhcpOption::InterfaceId(vec![7; 600]));
    ask(&mut lab, 547, &relayed("::", vec![long], asked()));
    assert_eq!(lab.session.call_bound(S, &bound(1), true), 0);
    assert_eq!(lab.session.counts()["reconfigure_unlisted"], 1);
    ask(&mut lab, 547, &relayed("::", Vec::new(), asked()));
    assert_eq!(lab.session.call_bound(S, &bound(1), true), 1);
    // What it was given is over.
    lab.session.set_uptime(S * 7200);
    assert_eq!(lab.session.call_bound(S, &bound(1), true), 0);
}

fn inform(client: u8, options: Vec<Opt>) -> Vec<u8> {
    message(MessageType::InformationRequest, client, options)
}

/// RFC: V46, V37 (RFC 8415 sections 18.3.11, 18.3.6 and 20.4.2)
#[test]
fn who_has_asked_for_information_alone_is_told_to_ask_again() {
    let mut lab = telling();
    let key = key(&ask(&mut lab, 546, &inform(1, vec![accept()]))).unwrap();
    // Who does not say that it may be told, and who says no name, is not.
    let silent = parsed(&ask(&mut lab, 546, &inform(2, Vec::new())));
    assert!(!silent.accepts_reconfigure() && silent.auth().is_none());
    let kind = MessageType::InformationRequest;
    let nameless = Message { kind, xid: [1, 2, 3], options: vec![accept()] }.emit();
    assert!(!parsed(&ask(&mut lab, 546, &nameless)).accepts_reconfigure());
    assert_eq!(lab.session.call_informed(S, Some("u"), &Bound::new()), 0, "in another tunnel");
    assert_eq!(lab.session.call_informed(S, Some("t"), &bound(1)), 0, "told as one who has something");
    assert_eq!(lab.session.call_informed(S, None, &Bound::new()), 1);
    let (told, at, octets) = lab.session.poll_call(S * 2).unwrap();
    assert_eq!((told, at), (who(1), (HERE.parse().unwrap(), 546)));
    let wanted = Opt::Leaf(DhcpOption::ReconfMsg(MessageType::InformationRequest));
    assert!(proved(&octets, &key) && parsed(&octets).options[2] == wanted);
    ask(&mut lab, 546, &inform(1, vec![accept()]));
    assert_eq!((lab.session.poll_call(S * 1000), lab.session.counts()["reconfigure_heard"]), (None, 1));
    // Behind a relay it is told through that.
    ask(&mut lab, 547, &relayed("::", Vec::new(), inform(3, vec![accept()])));
    assert_eq!(lab.session.call_informed(S * 1000, None, &Bound::new()), 2);
    let told: Vec<u8> = (0..2).map(|n| lab.session.poll_call(S * (1001 + n)).unwrap().2[0]).collect();
    assert!(told.contains(&10) && told.contains(&13), "{told:?}");
    // Who never asks when it is told is forgotten, and so is who has not asked for two days.
    ask(&mut lab, 546, &inform(1, vec![accept()]));
    for n in 1..u64::from(TRIES) {
        assert!(lab.session.poll_call(Duration::from_secs(2000 + n * 1000)).is_some(), "{n}");
    }
    assert_eq!(lab.session.poll_call(S * 20_000), None);
    assert_eq!(lab.session.call_informed(S * 20_000, None, &Bound::new()), 1);
    assert_eq!(lab.session.listeners(), 1);
    lab.session.leave("u");
    assert_eq!(lab.session.call_informed(S * 20_000, None, &Bound::new()), 1);
    // Nor whose tunnel is gone.
    lab.session.leave("t");
    assert_eq!(lab.session.call_informed(S * 20_000, None, &Bound::new()), 0);
    ask(&mut lab, 546, &inform(1, vec![accept()]));
    lab.session.set_uptime(S * 172_800);
    assert_eq!(lab.session.call_informed(S * 20_000, None, &Bound::new()), 0);
}

#[test]
fn in_one_tunnel_so_many_are_remembered() {
    let mut lab = telling();
    let most = 64;
    for client in 0..=most {
        lab.session.set_uptime(S * client.into());
        ask(&mut lab, 546, &inform(client, vec![accept()]));
    }
    let called = lab.session.call_informed(S, None, &Bound::new());
    assert_eq!(called, usize::from(most));
    let all: Vec<Called> = (0..most).map(|_| lab.session.poll_call(S * 2).unwrap().0).collect();
    assert!(!all.contains(&who(0)) && all.contains(&who(most)), "who was heard least recently makes room");
}

fn asks(codes: &[u16]) -> Opt {
    Opt::Leaf(DhcpOption::ORO(ORO { opts: codes.iter().map(|code| OptionCode::from(*code)).collect() }))
}

/// What of each prefix of an answer is excluded, as octets.
fn excluded(answer: &[u8]) -> Vec<Vec<u8>> {
    let values = parsed(answer);
    values.ias().flat_map(|ia| ia.values().map(|value| value.options.clone()).collect::<Vec<_>>()).collect()
}

/// RFC: V47 (RFC 6603 sections 4.2 and 5)
#[test]
fn a_client_that_asks_hears_which_part_of_its_prefix_is_the_link_s() {
    let mut lab = Lab::new(
        "[dhcpv6]\n[[dhcpv6_host]]\nduid = \"00:03:01\"\nprefixes = [\"2001:db8:1111::/48\"]\n\
         excluded = [\"2001:db8:1111:ab::/64\"]\n[[pool]]\nprefix = \"2001:db8:200::/40\"\nassign = 56\n",
    );
    let own = [prefix("2001:db8:2222:4000::/52")];
    let on_link = [prefix("2001:db8:2222:4567::/64"), prefix("2001:db8:3333::/64")];
    let none: Vec<Vec<u8>> = vec![Vec::new()];
    for kind in [MessageType::Solicit, MessageType::Request, MessageType::Renew] {
        let asked = |client, codes: &[u16]| message(kind, client, vec![asks(codes), pd(1, &[])]);
        let said = excluded(&lab.ask(&asked(1, &[67])).unwrap());
        assert_eq!(said, [[0, 67, 0, 3, 64, 0, 0xab]], "{kind:?}");
        assert_eq!(excluded(&lab.ask(&asked(1, &[23])).unwrap()), none, "only who asks");
        // What a tunnel advertises on its link is no part of what is delegated inside it.
        let origin = Origin { tunnel: "u", fixed: &own, on_link: &on_link, ..from_here() };
        let said = excluded(&lab.ask_from(&origin, &asked(2, &[67])).unwrap().octets);
        assert_eq!(said, [[0, 67, 0, 3, 64, 0x56, 0x70]], "{kind:?}");
    }
    let pooled = message(MessageType::Request, 3, vec![asks(&[67]), pd(1, &[])]);
    assert_eq!(excluded(&lab.ask(&pooled).unwrap()), none, "nothing of it is the link's");
}

fn supply(all: &[(u16, &[u8])]) -> Opt {
    let mut octets = Vec::new();
    all.iter().for_each(|(code, body)| Opt::Other(*code, body.to_vec()).emit(&mut octets));
    Opt::Other(code::RSOO, octets)
}

/// What an answer to this through two relays, with what each supplies, has of these options.
fn hears(lab: &mut Lab, asked: Vec<u8>, near: Opt, far: Opt, code: u16) -> Vec<Opt> {
    let inner = relayed("2001:db8:6::1", vec![near], asked);
    let answer = relay(&ask(lab, 547, &relayed("::", vec![far], inner)));
    assert!(!answer.options.iter().any(|option| option.code() == code::RSOO), "it is not echoed");
    let answer = parsed(relay(answer.relayed().unwrap()).relayed().unwrap());
    answer.options.into_iter().filter(|option| option.code() == code).collect()
}

/// RFC: V48 (RFC 6422 sections 5 and 6)
#[test]
fn relays_supply_what_they_may_and_the_nearest_to_the_client_counts() {
    let mut lab = lab("relay_supplied = [64, 23]\ndns = [\"2001:db8:53::53\"]");
    let asked = || inform(1, vec![asks(&[65, 64, 23, 66, 17])]);
    let name = |text: &[u8]| supply(&[(65, text), (23, &[9; 16]), (17, &[1, 2, 3, 4]), (64, b"aftr")]);
    let heard = |lab: &mut Lab, code| hears(lab, asked(), name(b"near"), name(b"far"), code);
    assert_eq!(heard(&mut lab, 65), [Opt::Other(65, b"near".to_vec())]);
    assert_eq!(heard(&mut lab, 64), [Opt::Other(64, b"aftr".to_vec())], "the configuration lets it");
    assert_eq!(heard(&mut lab, 17), [], "nobody lets it");
    let own = Opt::Addresses(23, vec!["2001:db8:53::53".parse().unwrap()]);
    assert_eq!(heard(&mut lab, 23), [own], "what the server has itself counts");
    let empty = || supply(&[]);
    assert_eq!(hears(&mut lab, asked(), empty(), name(b"far"), 65), [Opt::Other(65, b"far".to_vec())]);
    assert_eq!(hears(&mut lab, inform(1, Vec::new()), name(b"near"), empty(), 65), [], "only who asks");
    assert_eq!(hears(&mut lab, asked(), supply(&[(65, &[7; 1025])]), empty(), 65), [], "too long");
    let cut = relayed("::", vec![Opt::Other(code::RSOO, vec![0, 65, 0, 9, 1])], asked());
    assert!(lab.ask_from(&from_here(), &cut).is_none(), "what cannot be read is dropped whole");
    // Nor what the protocol runs by, whatever a configuration says.
    for own in [1, 25, 66, 67, 135] {
        let config = format!("[dhcpv6]\nrelay_supplied = [{own}]\n");
        assert!(sixway::config::Config::parse("x.toml", &config).is_err(), "{own}");
    }
}

/// RFC: V45, V36 (RFC 8415 section 20.3)
#[test]
fn after_a_restart_a_client_behind_a_relay_is_told_once_it_has_asked() {
    let mut lab = telling();
    let asked = message(MessageType::Request, 1, vec![accept(), pd(1, &[])]);
    ask(&mut lab, 547, &relayed("::", Vec::new(), asked));
    lab.restart();
    lab.session.trust(Ring::new([9; 32], 0));
    assert_eq!(lab.session.call_bound(S, &bound(1), true), 0);
    let renew = message(MessageType::Renew, 1, vec![accept(), pd(1, &[])]);
    ask(&mut lab, 547, &relayed("::", Vec::new(), renew));
    assert_eq!(lab.session.call_bound(S, &bound(1), true), 1);
}
