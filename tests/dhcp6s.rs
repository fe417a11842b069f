//! WIDE's dhcp6s replayed: its configuration files, what clients said to it, and its answers octet by octet; the messages
//! that killed it; restarts.

#![expect(clippy::unwrap_used, reason = "a test has nobody to return an error to")]

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::PathBuf;

use dhcproto::v6::{DhcpOption, MessageType, ORO, OptionCode, Status, StatusCode};
use sixway::broker::BindKind;
use sixway::compat::dhcp6sconf::{Duid, Key, ServerConf, Surroundings, load};
use sixway::dhcp6ctl::codec::{self as dhcp6ctl, Binding, IaKind as Kind, Order};
use sixway::dhcp6s::only_one_says_dns;
use sixway::dhcp6s::plan::{Plan, Site, terms};
use sixway::dhcp6s::shelf::{Change, Lease, Shelf};
use sixway::dhcpv6::auth::Ring;
use sixway::dhcpv6::codec::{Ia, IaKind, Message, Opt, Packet, Part, Relay, code};
use sixway::dhcpv6::query::{ClientData, Query, Sought};
use sixway::dhcpv6::requestor::{Found, Heard, Question};
use sixway::dhcpv6::session::{Answer, Origin, Session};
use sixway_dataplane::update::Ipv6Prefix;

const LINK: &str = "vs0";
const BEGIN: u64 = 1_700_000_000;

/// A host with one interface and no other file.
struct Room;

impl Surroundings for Room {
    fn read(&self, _: &str) -> io::Result<Vec<u8>> {
        Err(io::ErrorKind::NotFound.into())
    }
    fn has_interface(&self, name: &str) -> bool {
        name == LINK
    }
    fn now(&self) -> u64 {
        BEGIN
    }
    fn today(&self) -> (i16, i8, i8) {
        (2023, 11, 14)
    }
    fn unix_time(&self, _: (i16, i8, i8), _: (i8, i8)) -> Option<u64> {
        None
    }
}

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
}

fn conf(name: &str) -> ServerConf {
    let text = fs::read(path("dhcp6sconf").join(name)).unwrap();
    load(name, &text, &Room).unwrap().conf
}

fn octets(line: &str) -> Vec<u8> {
    (0..line.len() / 2).map(|n| u8::from_str_radix(&line[2 * n..2 * n + 2], 16).unwrap()).collect()
}

/// Comments with the message below each.
fn messages(name: &str) -> Vec<(String, Vec<u8>)> {
    let text = fs::read_to_string(path("transcripts/dhcpv6").join(name)).unwrap();
    let mut all = Vec::new();
    let mut comment = "";
    for line in text.lines() {
        match line.strip_prefix("# ") {
            Some(words) => comment = words,
            None => all.push((comment.to_owned(), octets(line))),
        }
    }
    all
}

fn site() -> Site {
    let on_link = ["2001:db8:53:1::/64".parse().unwrap()].into();
    Site { name: LINK.into(), own: ["2001:db8:53:1::1".parse().unwrap()].into(), on_link }
}

/// The server without a socket.
struct Lab {
    session: Session,
    shelf: Shelf,
    now: u64,
}

impl Lab {
    fn new(conf: &ServerConf) -> Self {
        Self::with(conf, Vec::new(), BEGIN)
    }

    fn with(conf: &ServerConf, kept: Vec<Lease>, now: u64) -> Self {
        let duid: Duid = "00:01:00:01:2b:00:00:01:02:00:00:00:53:01".parse().unwrap();
        let plan = Plan::new(conf, [site()]);
        let session = Session::new(terms(conf, LINK, &duid), 7);
        Self { session, shelf: Shelf::new(plan, kept, now), now }
    }

    fn ask(&mut self, message: &[u8]) -> Option<Vec<u8>> {
        self.shelf.next(self.now, LINK, None);
        self.session.handle(&Origin::of(LINK), message, &mut self.shelf).map(|answer| answer.octets)
    }

    /// The only association of the answer.
    fn ask_for_one(&mut self, message: &[u8]) -> Ia {
        let answer = self.ask(message).unwrap();
        let Packet::Message(answer) = Packet::parse(&answer).unwrap() else { panic!("{answer:?}") };
        let mut all = answer.options.into_iter().filter_map(|option| match option {
            Opt::Ia(ia) => Some(ia),
            Opt::Relayed(_)
            | Opt::Addresses(..)
            | Opt::Names(..)
            | Opt::Seconds(..)
            | Opt::Leaf(_)
            | Opt::Other(..) => None,
        });
        all.next().unwrap()
    }
}

/// Says what the clients say, and compares each answer with the old server's. Returns how many were compared.
fn replay(lab: &mut Lab, name: &str) -> usize {
    let mut compared = 0;
    let mut answers: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
    for (comment, message) in messages(name) {
        let seconds: f64 = comment.split("t=").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        lab.now = BEGIN + seconds as u64;
        let number = message[1..4].to_vec();
        if matches!(message[0], 2 | 7) {
            let ours = answers.get(&number).unwrap_or_else(|| panic!("{name}: no answer to {comment}"));
            assert_eq!(*ours, message, "{name}: {comment}\n{:?}", Packet::parse(ours));
            compared += 1;
        } else if let Some(answer) = lab.ask(&message) {
            answers.insert(number, answer);
        }
    }
    compared
}

#[test]
fn answers_are_the_old_server_s_octet_by_octet() {
    let mut lab = Lab::new(&conf("full-server.conf"));
    assert_eq!(replay(&mut lab, "wide-full-options.hex"), 4);
    assert_eq!(lab.shelf.iter().count(), 0, "all is released");
    assert_eq!(replay(&mut Lab::new(&conf("info-server.conf")), "wide-info-request.hex"), 1);
    assert_eq!(replay(&mut Lab::new(&conf("probe-server.conf")), "wide-rapid-commit.hex"), 3);
    let mut longer = conf("full-server.conf");
    for host in &mut longer.hosts {
        host.prefixes[0].1 = sixway::compat::dhcp6sconf::Lifetimes::new(60, 90).unwrap();
        host.addresses[0].1 = host.prefixes[0].1;
    }
    assert!(replay(&mut Lab::new(&longer), "wide-renew-rebind.hex") >= 14);
}

#[test]
fn what_killed_the_old_server_is_answered() {
    let with_host = conf("nopool-server.conf");
    let killers: Vec<Vec<u8>> =
        messages("crash-inputs.hex.txt").into_iter().map(|(_, octets)| octets).collect();
    let bind = &killers[5];
    let status = |ia: &Ia| matches!(ia.parts[..], [Part::Status(..)]);
    let mut lab = Lab::new(&with_host);
    assert!(!status(&lab.ask_for_one(bind)), "its own prefix");
    assert!(status(&lab.ask_for_one(&killers[0])), "no prefix for a stranger");
    assert!(status(&lab.ask_for_one(&killers[1])), "no address for a stranger");
    assert!(lab.ask(&killers[2]).is_some(), "on the link or not");
    for without_prefix in [&killers[3], &killers[4]] {
        let ia = lab.ask_for_one(without_prefix);
        assert_eq!(
            ia.values().next().unwrap().addr,
            "2001:db8:1111::".parse::<std::net::Ipv6Addr>().unwrap()
        );
    }
    let mut reloaded = with_host.clone();
    reloaded.hosts.clear();
    lab.shelf.configure(Plan::new(&reloaded, [site()]));
    assert!(status(&lab.ask_for_one(bind)), "what is not given any more is not given again");
    assert_eq!(lab.shelf.iter().count(), 1, "and ends at its time");
}

#[test]
fn a_restart_forgets_nothing() {
    let conf = conf("pool-server.conf");
    let mut lab = Lab::new(&conf);
    let bind = octets(
        "0343d7910001000e000100012b0000020200000053020002000e000100012b0000010200000053010003000c00000000000000000000000000080002000000",
    );
    let bind = &bind[..bind.len() - 1];
    let given = lab.ask_for_one(bind);
    let mut kept: HashMap<_, Lease> = HashMap::new();
    for change in lab.shelf.poll_changes() {
        if let Change::Has(lease) = change {
            kept.insert(lease.prefix, lease);
        }
    }
    let mut lab = Lab::with(&conf, kept.into_values().collect(), BEGIN + 100);
    assert_eq!(lab.ask_for_one(bind), given, "the same address");
}

/// The number in a message's Authentication option, as a clock.
fn number(octets: &[u8]) -> Option<(u64, u32)> {
    let Ok(Packet::Message(message)) = Packet::parse(octets) else { panic!() };
    let number = message.auth()?.replay_detection;
    Some(((number >> 32) - 2_208_988_800, number as u32))
}

fn authentic(name: &str) -> (Lab, Vec<Vec<u8>>) {
    let mut lab = Lab::new(&conf(name));
    lab.session.trust(Ring::new([7; 32], 0));
    (lab, messages("wide-delayed-auth.hex").into_iter().map(|(_, octets)| octets).collect())
}

/// RFC: V42 (RFC 3315 section 21.4)
#[test]
fn answers_are_proved_as_the_old_server_proves_them_octet_by_octet() {
    let (mut lab, all) = authentic("auth-server.conf");
    for pair in all.chunks(2) {
        let [asked, answered] = pair else { panic!() };
        lab.session.set_clock(number(answered).unwrap());
        assert_eq!(lab.ask(asked).as_deref(), Some(&answered[..]), "{:?}", Packet::parse(answered));
    }
}

/// RFC: V42 (RFC 3315 sections 21.3 and 21.4.5.2)
#[test]
fn what_is_forged_or_repeated_is_dropped_also_after_a_restart() {
    let (mut lab, all) = authentic("auth-server.conf");
    lab.session.set_clock(number(&all[1]).unwrap());
    let (solicit, request, release) = (&all[0], &all[2], &all[4]);
    assert!(lab.ask(solicit).is_some() && lab.ask(solicit).is_some(), "a Solicit proves nothing");
    for at in [4, request.len() - 1, request.len() - 17, request.len() - 30] {
        let mut changed = request.clone();
        changed[at] ^= 1;
        assert_eq!(lab.ask(&changed), None, "octet {at}");
    }
    assert_eq!(lab.shelf.iter().count(), 0, "nothing was bound");
    assert!(lab.ask(request).is_some());
    assert_eq!(lab.ask(request), None);
    assert_eq!(lab.session.counts()["replayed"], 1);
    // After a restart it is known still.
    let proofs = lab.shelf.poll_proofs();
    assert_eq!(proofs.len(), 1);
    let (mut again, _) = authentic("auth-server.conf");
    again.session.set_clock(number(&all[1]).unwrap());
    again.shelf.recall_proofs(proofs);
    assert_eq!(again.ask(request), None);
    assert!(again.ask(release).is_some(), "a later one");
    // Who says nothing of authentication is served: it protects the client.
    let mut plain = request[..request.len() - 46].to_vec();
    plain[3] ^= 1;
    assert!(number(&again.ask(&plain).unwrap()).is_none());
    // Without a key for it a Solicit is answered without a proof, and all else is dropped.
    let (mut other, _) = authentic("probe-server.conf");
    assert!(number(&other.ask(solicit).unwrap()).is_none());
    assert_eq!(other.ask(request), None);
    assert_eq!(other.session.counts()["forged"], 1);
}

/// RFC: V42 (RFC 3315 section 21.4.5.2)
#[test]
fn an_expired_key_proves_nothing() {
    let text = fs::read_to_string(path("dhcp6sconf/auth-server.conf")).unwrap();
    let text = text.replace("keyid 1;", "keyid 1; expire \"forever\";");
    let mut conf = load("x", text.as_bytes(), &Room).unwrap().conf;
    for host in &mut conf.hosts {
        let key = host.key.as_deref().unwrap().clone();
        host.key = Some(std::sync::Arc::new(Key { expires: Some(BEGIN), ..key }));
    }
    let mut lab = Lab::new(&conf);
    lab.session.trust(Ring::new([7; 32], 0));
    let all: Vec<Vec<u8>> = messages("wide-delayed-auth.hex").into_iter().map(|(_, octets)| octets).collect();
    lab.session.set_clock((BEGIN, 0));
    assert!(lab.ask(&all[2]).is_some());
    lab.session.set_clock((BEGIN + 1, 0));
    assert_eq!(lab.ask(&all[4]), None);
    assert!(number(&lab.ask(&all[0]).unwrap()).is_none());
}

/// RFC: V19 (RFC 8415 section 13.1)
#[test]
fn a_relay_s_name_for_an_interface_chooses_the_pools_before_its_address_does() {
    let text = "interface vs0 { address-pool p 100; };
        pool p { range 2001:db8:1::10 to 2001:db8:1::1f; };
        interface far7 { relay-interface-id \"eth7\"; relay-interface-id \"0x0007\"; address-pool q 100; delegated-prefix-pool 2001:db8:7000::/40 56 100; };
        pool q { range 2001:db8:7::10 to 2001:db8:7::1f; };
        interface far8 { relay-interface-id \"eth8\"; delegated-prefix-pool 2001:db8:8000::/40 56 100; };";
    let conf = load("x", text.as_bytes(), &Room).unwrap_or_else(|why| panic!("{why:?}")).conf;
    let mut lab = Lab::new(&conf);
    for (n, name, link, kind, expected) in [
        (1, &b"eth7"[..], "2001:db8:1::1", IaKind::Address, "2001:db8:7::/64"),
        (2, &[0, 7], "::", IaKind::Address, "2001:db8:7::/64"),
        (3, b"eth9", "2001:db8:7::1", IaKind::Address, "2001:db8:7::/64"),
        (4, b"eth9", "::", IaKind::Address, "2001:db8:1::/64"),
        (5, b"eth7", "::", IaKind::Prefix, "2001:db8:7000::/40"),
        (6, b"eth8", "2001:db8:7::1", IaKind::Prefix, "2001:db8:8000::/40"),
    ] {
        let options = vec![
            Opt::Leaf(DhcpOption::ClientId(vec![0, 3, n])),
            Opt::Ia(Ia { kind, iaid: 1, t1: 0, t2: 0, parts: Vec::new() }),
        ];
        let inner = Message { kind: MessageType::Solicit, xid: [0, 0, n], options }.emit();
        let relay = Relay {
            is_reply: false,
            hops: 0,
            link: link.parse().unwrap(),
            peer: "fe80::1".parse().unwrap(),
            options: vec![Opt::Leaf(DhcpOption::InterfaceId(name.to_vec())), Opt::Relayed(inner)],
        };
        let answer = lab.ask(&Packet::Relay(relay).emit()).unwrap();
        let Packet::Relay(reply) = Packet::parse(&answer).unwrap() else { panic!() };
        assert_eq!(reply.interface(), Some(name));
        let Packet::Message(answer) = Packet::parse(reply.relayed().unwrap()).unwrap() else { panic!() };
        let given = answer.ias().flat_map(|ia| ia.values()).next().unwrap();
        let wide: Ipv6Prefix = expected.parse().unwrap();
        assert!(wide.contains(given.addr), "{n}: {}", given.addr);
    }
    let refused = load("x", b"interface far7 { relay-interface-id \"0x0g\"; };", &Room).unwrap_err();
    assert!(refused[0].to_string().starts_with("x:1: "), "{refused:?}");
}

/// RFC: V33, V37 (RFC 8415 section 20.4)
#[test]
fn an_authentication_statement_has_clients_told_of_changes() {
    let text = "interface vs0 { address-pool p 100; }; pool p { range 2001:db8:1::10 to 2001:db8:1::1f; };";
    for (more, told) in [("", false), ("authentication a { protocol reconfig; };", true)] {
        let conf = load("x", format!("{text}{more}").as_bytes(), &Room).unwrap().conf;
        let mut lab = Lab::new(&conf);
        lab.session.trust(Ring::new([7; 32], 0));
        let options = vec![
            Opt::Leaf(DhcpOption::ClientId(vec![0, 3, 9])),
            Opt::Leaf(DhcpOption::ServerId(octets("000100012b000001020000005301"))),
            Opt::Leaf(DhcpOption::ReconfAccept),
            Opt::Ia(Ia { kind: IaKind::Address, iaid: 1, t1: 0, t2: 0, parts: Vec::new() }),
        ];
        let request = Message { kind: MessageType::Request, xid: [1, 2, 3], options }.emit();
        let from = Some("fe80::9".parse().unwrap());
        lab.shelf.next(lab.now, LINK, from);
        let origin = Origin { from, ..Origin::of(LINK) };
        let answer = lab.session.handle(&origin, &request, &mut lab.shelf).unwrap().octets;
        assert_eq!(number(&answer).is_some(), told);
        assert_eq!(lab.shelf.iter().all(|lease| lease.reach == from), told);
    }
}

/// What of the prefixes of an answer is excluded, as octets.
fn excluded(lab: &mut Lab, client: &[u8]) -> Vec<Vec<u8>> {
    let oro = ORO { opts: vec![OptionCode::from(67)] };
    let options = vec![
        Opt::Leaf(DhcpOption::ClientId(client.to_vec())),
        Opt::Leaf(DhcpOption::ORO(oro)),
        Opt::Ia(Ia { kind: IaKind::Prefix, iaid: 1, t1: 0, t2: 0, parts: Vec::new() }),
    ];
    let asked = Message { kind: MessageType::Solicit, xid: [1, 2, 3], options }.emit();
    lab.ask_for_one(&asked).values().map(|value| value.options.clone()).collect()
}

/// RFC: V47 (RFC 6603 section 5)
#[test]
fn parts_of_delegated_prefixes_are_the_link_s_where_the_file_says_so() {
    let text = "interface vs0 { delegated-prefix-pool 2001:db8:8000::/40 56 100; excluded-subnet 64 171; };
        host a { duid 00:0a; prefix 2001:db8:a::/48 100; excluded-prefix 2001:db8:a:1234::/64; };
        host b { duid 00:0b; prefix 2001:db8:b::/48 100; };
        host c { duid 00:0c; delegated-prefix-pool 2001:db8:c000::/40 60 100; excluded-subnet 62 2; };";
    let mut lab = Lab::new(&load("x", text.as_bytes(), &Room).unwrap().conf);
    assert_eq!(excluded(&mut lab, &[0, 0xa]), [[0, 67, 0, 3, 64, 0x12, 0x34]]);
    assert_eq!(excluded(&mut lab, &[0, 0xb]), [Vec::<u8>::new()]);
    assert_eq!(excluded(&mut lab, &[0, 0xc]), [[0, 67, 0, 2, 62, 0x80]]);
    assert_eq!(excluded(&mut lab, &[0, 0xd]), [[0, 67, 0, 2, 64, 171]]);
    for (wrong, why) in [
        ("host a { duid 00:0a; excluded-prefix 2001:db8:a::/64; };", "no part of a prefix of host 'a'"),
        ("host a { duid 00:0a; prefix 2001:db8:a::/48 1; excluded-prefix 2001:db8:a::/48; };", "no part"),
        (
            "host a { duid 00:0a; prefix 2001:db8:a::/48 1; excluded-prefix 2001:db8:a::/64; excluded-prefix 2001:db8:a:1::/64; };",
            "is the second part",
        ),
        (
            "interface vs0 { delegated-prefix-pool 2001:db8:8000::/40 56 1; excluded-subnet 64 256; };",
            "no /64",
        ),
        ("interface vs0 { delegated-prefix-pool 2001:db8:8000::/40 56 1; excluded-subnet 56 0; };", "no /56"),
        ("interface vs0 { excluded-subnet 0 0; };", "1 to 128"),
        ("interface vs0 { relay-supplied 64 25; };", "option 25"),
        ("interface vs0 { relay-supplied 65536; };", "0 to 65535"),
    ] {
        let said = load("x", wrong.as_bytes(), &Room).unwrap_err()[0].to_string();
        assert!(said.starts_with("x:1: ") && said.contains(why), "{said}");
    }
}

/// RFC: V52 (RFC 4649, RFC 4580)
#[test]
fn a_host_may_be_whoever_is_on_a_line() {
    let text = "interface vs0 { delegated-prefix-pool 2001:db8:8000::/40 56 100; };
        host a { remote-id 9 \"line7\"; prefix 2001:db8:a::/48 100; };
        host b { subscriber-id \"0x0708\"; prefix 2001:db8:b::/48 100; };
        authentication told { protocol reconfig; };";
    let conf = load("x", text.as_bytes(), &Room).unwrap().conf;
    let mut lab = Lab::new(&conf);
    lab.session.trust(Ring::new([7; 32], 0));
    let remote = |name: &[u8]| Opt::Other(37, [&[0, 0, 0, 9][..], name].concat());
    let subscriber = || Opt::Other(38, vec![7, 8]);
    let ask = |lab: &mut Lab, kind, duid: &[u8], said: Vec<Opt>| {
        let mut options = vec![
            Opt::Leaf(DhcpOption::ClientId(duid.to_vec())),
            Opt::Leaf(DhcpOption::ReconfAccept),
            Opt::Ia(Ia { kind: IaKind::Prefix, iaid: 1, t1: 0, t2: 0, parts: Vec::new() }),
        ];
        if kind != MessageType::Solicit {
            options.push(Opt::Leaf(DhcpOption::ServerId(octets("000100012b000001020000005301"))));
        }
        let inner = Message { kind, xid: [0, 0, 1], options }.emit();
        let link = "2001:db8:53:1::9".parse().unwrap();
        let (peer, options) = ("fe80::1".parse().unwrap(), said.into_iter().chain([Opt::Relayed(inner)]));
        let relay = Relay { is_reply: false, hops: 0, link, peer, options: options.collect() };
        let answer = lab.ask(&Packet::Relay(relay).emit()).unwrap();
        let Packet::Relay(reply) = Packet::parse(&answer).unwrap() else { panic!() };
        let Packet::Message(answer) = Packet::parse(reply.relayed().unwrap()).unwrap() else { panic!() };
        assert_eq!(answer.client(), Some(duid), "it is called what it calls itself");
        let is_line = answer.auth().is_none();
        let given = answer.ias().flat_map(|ia| ia.values()).next().map(|value| value.addr.segments()[2]);
        (given, is_line)
    };
    let (request, solicit) = (MessageType::Request, MessageType::Solicit);
    assert_eq!(ask(&mut lab, request, &[0, 1], vec![remote(b"line7")]), (Some(0xa), true));
    // Another router on the same line is the same client.
    assert_eq!(ask(&mut lab, request, &[0, 2], vec![remote(b"line7")]), (Some(0xa), true));
    assert_eq!(ask(&mut lab, request, &[0, 1], vec![subscriber()]), (Some(0xb), true));
    assert_eq!(lab.shelf.len(), 2);
    // What nobody knows is a line like any other, and its client is known by its DUID.
    let (given, is_line) = ask(&mut lab, request, &[0, 1], vec![remote(b"line8")]);
    assert!(given.is_some_and(|given| given & 0xff00 == 0x8000) && !is_line);
    // A client that calls itself what a line is kept under gets nothing of it: no DUID is so long.
    let longest = vec![0; 130];
    assert!(ask(&mut lab, solicit, &longest, Vec::new()).0.is_some_and(|given| given & 0xff00 == 0x8000));
    for (wrong, why) in [
        ("host a { duid 00:01; subscriber-id \"x\"; };", "by its DUID or by its line"),
        ("host a { remote-id 9 \"x\"; subscriber-id \"x\"; };", "has a line already"),
        ("host a { remote-id 4294967296 \"x\"; };", "a number is 0 to"),
        ("host a { subscriber-id \"0x0g\"; };", "pairs of hexadecimal digits"),
    ] {
        let said = load("x", wrong.as_bytes(), &Room).unwrap_err()[0].to_string();
        assert!(said.starts_with("x:1: ") && said.contains(why), "{said}");
    }
}

/// RFC: V48 (RFC 6422 section 6)
#[test]
fn what_relays_may_supply_the_file_says() {
    let text = "interface vs0 { relay-supplied 64; };";
    let conf = load("x", text.as_bytes(), &Room).unwrap().conf;
    let duid: Duid = "00:01".parse().unwrap();
    assert_eq!((terms(&conf, LINK, &duid).supplied, terms(&conf, "vs1", &duid).supplied), (vec![64], vec![]));
}

#[test]
fn a_pool_may_give_its_lowest_address_first() {
    let text = "interface vs0 { address-pool p 100; };
        pool p { range 2001:db8:53:1::10 to 2001:db8:53:1::1f; lowest-first; };";
    let mut lab = Lab::new(&load("x", text.as_bytes(), &Room).unwrap().conf);
    let server = octets("000100012b000001020000005301");
    let mut given = |n: u8| {
        let options = vec![
            Opt::Leaf(DhcpOption::ClientId(vec![0, n])),
            Opt::Leaf(DhcpOption::ServerId(server.clone())),
            Opt::Ia(Ia { kind: IaKind::Address, iaid: 1, t1: 0, t2: 0, parts: Vec::new() }),
        ];
        let asked = Message { kind: MessageType::Request, xid: [1, 2, 3], options }.emit();
        lab.ask_for_one(&asked).values().next().map(|value| value.addr.segments()[7])
    };
    let all: Vec<Option<u16>> = (1..18).map(&mut given).collect();
    let expected: Vec<Option<u16>> = (0x10..0x20).map(Some).chain([None]).collect();
    assert_eq!(all, expected);
}

/// Of 130 octets, with the two of its type (RFC 8415 section 11.1).
#[test]
fn the_longest_duid_can_be_a_host_and_removed() {
    let duid: Duid = vec!["ab"; 130].join(":").parse().unwrap();
    let conf = load("x", format!("host a {{ duid {duid}; prefix 2001:db8:a::/48 100; }};").as_bytes(), &Room);
    let mut lab = Lab::new(&conf.unwrap().conf);
    let options = vec![
        Opt::Leaf(DhcpOption::ClientId(duid.octets().to_vec())),
        Opt::Leaf(DhcpOption::ServerId(octets("000100012b000001020000005301"))),
        Opt::Ia(Ia { kind: IaKind::Prefix, iaid: 7, t1: 0, t2: 0, parts: Vec::new() }),
    ];
    lab.ask(&Message { kind: MessageType::Request, xid: [1, 2, 3], options }.emit()).unwrap();
    let order = Order::Remove(Binding { kind: Kind::Pd, iaid: 7, duid: duid.octets().to_vec() });
    let secret = [7; 16];
    let said = dhcp6ctl::emit(&order, 1_700_000_000, &secret).unwrap();
    let said = dhcp6ctl::Message::parse(&said).unwrap();
    let Ok(Order::Remove(binding)) = said.server_order() else { panic!() };
    assert!(lab.shelf.forget(BindKind::Prefix, binding.iaid, &binding.duid));
    assert_eq!(lab.shelf.len(), 0);
}

#[test]
fn servers_for_names_come_from_one_place_also_after_a_reload() {
    let with = load("x", b"option domain-name-servers 2001:db8::53;", &Room).unwrap().conf;
    let given = ["2001:db8::54".parse().unwrap()];
    let said = only_one_says_dns(&given, &with).unwrap_err().to_string();
    assert!(said.contains("-n is obsolete"), "{said}");
    assert!(
        only_one_says_dns(&[], &with).is_ok() && only_one_says_dns(&given, &ServerConf::default()).is_ok()
    );
}

/// What links give out must be nobody's elsewhere.
#[test]
fn what_is_given_out_elsewhere_is_refused() {
    let text = "interface vs0 { address-pool p 100; delegated-prefix-pool 2001:db8:8000::/54 56 100; };
        pool p { range 2001:db8:1::10 to 2001:db8:1::1f; };
        host a { duid 00:0a; prefix 2001:db8:a::/48 100; address 2001:db8:2::9 100; };";
    let conf = load("x", text.as_bytes(), &Room).unwrap().conf;
    let other = |prefix: &str| vec![(prefix.parse().unwrap(), "[[pool]]".to_owned())];
    for (prefix, what) in [
        ("2001:db8:8000::/40", "delegated-prefix-pool 2001:db8:8000::/54"),
        ("2001:db8:8000:300::/56", "interface vs0"),
        ("2001:db8:1::18/128", "the pool 'p'"),
        ("2001:db8:a:1::/64", "2001:db8:a::/48 of host a"),
        ("2001:db8:2::/64", "2001:db8:2::9/128 of host a"),
    ] {
        let said = sixway::dhcp6s::plan::check(&conf, &other(prefix)).unwrap_err().to_string();
        assert!(said.contains(what) && said.contains("[[pool]]"), "{said}");
    }
    sixway::dhcp6s::plan::check(&conf, &other("2001:db8:9::/48")).unwrap();
    sixway::dhcp6s::plan::check(&conf, &other("2001:db8:1::20/124")).unwrap();
}

/// RFC: V9 (RFC 8415 section 18.3.4)
#[test]
fn a_renew_after_a_renumbering_brings_the_new_prefix_and_ends_the_old_one() {
    let conf = |space: &str| {
        let text = format!("interface vs0 {{ delegated-prefix-pool {space} 56 100; }};");
        load("x", text.as_bytes(), &Room).unwrap().conf
    };
    let mut lab = Lab::new(&conf("2001:db8:8000::/40"));
    let asked = |kind, parts| {
        let options = vec![
            Opt::Leaf(DhcpOption::ClientId(vec![0, 1])),
            Opt::Leaf(DhcpOption::ServerId(octets("000100012b000001020000005301"))),
            Opt::Ia(Ia { kind: IaKind::Prefix, iaid: 1, t1: 0, t2: 0, parts }),
        ];
        Message { kind, xid: [1, 2, 3], options }.emit()
    };
    let first = lab.ask_for_one(&asked(MessageType::Request, Vec::new())).parts;
    lab.shelf.configure(Plan::new(&conf("2001:db8:9000::/40"), [site()]));
    for _ in 0..2 {
        let renewed = lab.ask_for_one(&asked(MessageType::Renew, first.clone()));
        let values: Vec<_> =
            renewed.values().map(|value| (value.addr.segments()[2] & 0xff00, value.valid)).collect();
        assert_eq!(values, [(0x9000, 100), (0x8000, 0)]);
    }
    assert_eq!(lab.shelf.len(), 2, "the old one is nobody else's before its time");
}

/// RFC: V4, V8, V9, V19 (RFC 8415 sections 18.3.2 to 18.3.5)
#[test]
fn who_has_moved_behind_another_relay_has_what_that_link_gives() {
    let text = "interface vs0 { address-pool p 100; }; pool p { range 2001:db8:1::10 to 2001:db8:1::1f; };
        interface far { relay-interface-id \"far\"; address-pool q 50; }; pool q { range 2001:db8:2::10 to 2001:db8:2::1f; };";
    let mut lab = Lab::new(&load("x", text.as_bytes(), &Room).unwrap().conf);
    let ask = |lab: &mut Lab, link: &str, kind, parts: &[Part]| {
        let server = Opt::Leaf(DhcpOption::ServerId(octets("000100012b000001020000005301")));
        let mut options = vec![
            Opt::Leaf(DhcpOption::ClientId(vec![0, 1])),
            Opt::Ia(Ia { kind: IaKind::Address, iaid: 1, t1: 0, t2: 0, parts: parts.to_vec() }),
        ];
        options.extend(
            [server].into_iter().filter(|_| matches!(kind, MessageType::Request | MessageType::Renew)),
        );
        let inner = Message { kind, xid: [0, 0, 1], options }.emit();
        let (link, peer) = (link.parse().unwrap(), "fe80::1".parse().unwrap());
        let relay = Relay { is_reply: false, hops: 0, link, peer, options: vec![Opt::Relayed(inner)] };
        let Packet::Relay(reply) = Packet::parse(&lab.ask(&Packet::Relay(relay).emit())?).unwrap() else {
            panic!()
        };
        match Packet::parse(reply.relayed().unwrap()).unwrap() {
            Packet::Message(answer) => Some(answer),
            Packet::Relay(relay) => panic!("{relay:?}"),
        }
    };
    let values = |answer: Option<Message>| -> Vec<(u16, u32)> {
        let answer = answer.unwrap();
        answer
            .ias()
            .flat_map(|ia| ia.values().map(|v| (v.addr.segments()[2], v.valid)).collect::<Vec<_>>())
            .collect()
    };
    let parts = |answer: &Message| answer.ias().next().unwrap().parts.clone();
    let status = |part: &Part| matches!(part, Part::Status(Status::NotOnLink, _));
    let (x, y, unknown) = ("2001:db8:1::1", "2001:db8:2::1", "2001:db8:77::1");
    let first = parts(&ask(&mut lab, x, MessageType::Request, &[]).unwrap());
    // Where nothing is known of the link nobody says anything about it.
    let confirm = |lab: &mut Lab, link| {
        ask(lab, link, MessageType::Confirm, &first).map(|answer| {
            answer.options.contains(&Opt::Leaf(DhcpOption::StatusCode(StatusCode {
                status: Status::NotOnLink,
                msg: "not an address of this link".to_owned(),
            })))
        })
    };
    assert_eq!([x, y, unknown].map(|link| confirm(&mut lab, link)), [Some(false), Some(true), None]);
    assert!(status(&parts(&ask(&mut lab, y, MessageType::Request, &first).unwrap())[0]));
    assert_eq!(values(ask(&mut lab, unknown, MessageType::Renew, &first)), [(1, 100)]);
    for kind in [MessageType::Renew, MessageType::Rebind] {
        let there = ask(&mut lab, y, kind, &first).unwrap();
        let second = parts(&there)[..1].to_vec();
        assert_eq!(values(Some(there)), [(2, 50), (1, 0)], "{kind:?}");
        assert_eq!(lab.shelf.len(), 2, "the old one is its own until it ends");
        assert_eq!(values(ask(&mut lab, x, kind, &second)), [(1, 100), (2, 0)], "{kind:?}");
    }
    // Of a link that has nothing for it, it hears at least that.
    let full = text.replace("2::1f", "2::10");
    let mut lab = Lab::new(&load("x", full.as_bytes(), &Room).unwrap().conf);
    let first = parts(&ask(&mut lab, x, MessageType::Request, &[]).unwrap());
    let other = Ipv6Prefix::host("2001:db8:2::10".parse().unwrap());
    let mut plan = Plan::new(&load("x", full.as_bytes(), &Room).unwrap().conf, [site()]);
    plan = plan.without([other].into());
    lab.shelf.configure(plan);
    assert_eq!(values(ask(&mut lab, y, MessageType::Renew, &first)), [(1, 0)]);
    assert_eq!(lab.shelf.len(), 1, "it may come back");
}

/// An account that has come to have something which a link gives out: from then on nobody has it there.
#[test]
fn what_an_account_is_given_later_links_give_no_more() {
    let text = "interface vs0 { delegated-prefix-pool 2001:db8:8000::/55 56 100; };";
    let conf = load("x", text.as_bytes(), &Room).unwrap().conf;
    let mut lab = Lab::new(&conf);
    let asked = |kind| {
        let mut options = vec![
            Opt::Leaf(DhcpOption::ClientId(vec![0, 1])),
            Opt::Ia(Ia { kind: IaKind::Prefix, iaid: 1, t1: 0, t2: 0, parts: Vec::new() }),
        ];
        if kind != MessageType::Solicit {
            options.push(Opt::Leaf(DhcpOption::ServerId(octets("000100012b000001020000005301"))));
        }
        Message { kind, xid: [1, 2, 3], options }.emit()
    };
    let given = |lab: &mut Lab, kind| lab.ask_for_one(&asked(kind)).values().next().map(|value| value.addr);
    let first = given(&mut lab, MessageType::Request).unwrap();
    let theirs: Ipv6Prefix = format!("{first}/56").parse().unwrap();
    let elsewhere = vec![
        (theirs, "account alice".to_owned()),
        ("2001:db8:9::/48".parse().unwrap(), "account bob".to_owned()),
    ];
    let contested = sixway::dhcp6s::plan::contested(&conf, &elsewhere);
    assert_eq!(contested, elsewhere[..1]);
    lab.shelf.configure(Plan::new(&conf, [site()]).without([theirs].into()));
    assert_eq!(lab.shelf.len(), 0, "it is taken from who had it");
    for _ in 0..9 {
        assert!(given(&mut lab, MessageType::Solicit).is_some_and(|other| other != first));
    }
    lab.shelf.configure(Plan::new(&conf, [site()]).without(["2001:db8:8000::/40".parse().unwrap()].into()));
    assert_eq!(given(&mut lab, MessageType::Request), None);
}

#[test]
fn a_configuration_that_is_not_there_is_told_of() {
    // It ends because of the DUID, before it would serve anybody.
    let args = ["dhcp6s", "-f", "-c", "/nonexistent/x.conf", "--duid-file", "/proc/nonexistent/duid", "lo"];
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_sixway")).args(args).output().unwrap();
    let said = String::from_utf8([out.stdout, out.stderr].concat()).unwrap();
    let told = "/nonexistent/x.conf is not there, so nobody is given anything on lo";
    assert!(!out.status.success() && said.contains(told), "{said}");
}

/// Asks who has what, from this address.
fn look_up(lab: &mut Lab, from: &str, sought: Sought, link: Option<&str>) -> Option<Heard> {
    asked(lab, from, sought, link).map(|(heard, _)| heard)
}

fn asked(lab: &mut Lab, from: &str, sought: Sought, link: Option<&str>) -> Option<(Heard, Answer)> {
    let query = Query { sought, link: link.map(|link| link.parse().unwrap()), wanted: vec![23, 47] };
    let question = Question { duid: vec![0, 4, 7], xid: [7, 8, 9], query };
    lab.shelf.next(lab.now, LINK, None);
    let from = Some(from.parse().unwrap());
    let origin = Origin { is_unicast: true, from, port: 54_321, ..Origin::of(LINK) };
    let answer = lab.session.handle(&origin, &question.message(), &mut lab.shelf)?;
    question.hear(&answer.octets).map(|heard| (heard, answer))
}

const QUERIES: &str = "
    option domain-name-servers 2001:db8:53::53;
    lease-query 2001:db8:77::/48, ::1 fe80::/10;
    interface vs0 { address-pool p 60 90; delegated-prefix-pool 2001:db8:8000::/40 56 60 90; };
    interface far7 { relay-interface-id \"eth7\"; address-pool q 60 90; };
    pool p { range 2001:db8:53:1::1000 to 2001:db8:53:1::1fff; };
    pool q { range 2001:db8:7::1000 to 2001:db8:7::1fff; };
    host own { duid 00:03:05; prefix 2001:db8:1111::/48 infinity; };
    host far { duid 00:03:06; prefix 2001:db8:6666::/48 60 90; };
    host line { remote-id 9 \"olt3/7\"; prefix 2001:db8:7777::/48 60 90; };
";

/// RFC: V49 (RFC 5007 sections 4.1.2, 4.4.1 and 5)
#[test]
fn who_has_what_on_links_is_told_to_those_whom_the_file_names() {
    let conf = load("x", QUERIES.as_bytes(), &Room).unwrap().conf;
    let mut lab = Lab::new(&conf);
    let client = |duid: u8| Opt::Leaf(DhcpOption::ClientId(vec![0, 3, duid]));
    let server: Duid = "00:01:00:01:2b:00:00:01:02:00:00:00:53:01".parse().unwrap();
    let server = Opt::Leaf(DhcpOption::ServerId(server.octets().to_vec()));
    let ia = |kind, iaid| Opt::Ia(Ia { kind, iaid, t1: 0, t2: 0, parts: Vec::new() });
    let request = |duid: u8| Message {
        kind: MessageType::Request,
        xid: [1, 2, duid],
        options: vec![client(duid), server.clone(), ia(IaKind::Address, 1), ia(IaKind::Prefix, 2)],
    };
    lab.ask(&request(1).emit()).unwrap();
    lab.now += 7;
    // The same client behind a relay, on a link that this host is not on.
    let relayed = |message: Message, more: Vec<Opt>| {
        let peer = "fe80::7".parse().unwrap();
        let inner = [more, vec![Opt::Relayed(message.emit())]].concat();
        let (is_reply, hops, link) = (false, 0, std::net::Ipv6Addr::UNSPECIFIED);
        Packet::Relay(Relay { is_reply, hops, link, peer, options: inner }).emit()
    };
    let eth7 = || Opt::Leaf(DhcpOption::InterfaceId(b"eth7".to_vec()));
    let mut away = request(1);
    away.options[2] = ia(IaKind::Address, 3);
    away.options.truncate(3);
    lab.ask(&relayed(away, vec![eth7()])).unwrap();
    // One that is known by its line, and one whose prefix is its own for ever.
    let olt = Opt::Other(code::REMOTE_ID, [&[0, 0, 0, 9][..], b"olt3/7"].concat());
    lab.ask(&relayed(request(4), vec![olt.clone()])).unwrap();
    lab.ask(&request(5).emit()).unwrap();
    // One whose prefix is its own, behind the relay.
    let mut prefix_alone = request(6);
    prefix_alone.options.remove(2);
    lab.ask(&relayed(prefix_alone, vec![eth7()])).unwrap();

    let by_duid = |duid: u8| Sought::Client(vec![0, 3, duid]);
    let by = |addr: &str| Sought::Address(addr.parse().unwrap());
    let heard = look_up(&mut lab, "fe80::1", by_duid(1), None).unwrap();
    let Found::Links(links) = heard.found else { panic!("{heard:?}") };
    let links: Vec<String> = links.iter().map(ToString::to_string).collect();
    assert_eq!(links, ["2001:db8:7::1000", "2001:db8:53:1::1"], "by address: a pool's, and the server's own");
    let mut data = |sought: Sought, link: Option<&str>| -> ClientData {
        match look_up(&mut lab, "2001:db8:77::9", sought, link).unwrap().found {
            Found::Client(data) => data,
            other @ (Found::Nothing | Found::Links(_)) => panic!("{other:?}"),
        }
    };
    let here = data(by_duid(1), Some("2001:db8:53:1::1"));
    let there = data(by_duid(1), Some("2001:db8:7::1000"));
    assert_eq!((here.values.len(), here.heard, there.values.len(), there.heard), (2, Some(7), 1, Some(0)));
    assert!(here.values.iter().all(|value| (value.preferred, value.valid) == (53, 83)), "{here:?}");
    assert!(here.relay.is_none() && here.options.iter().map(Opt::code).eq([23]), "relays are not kept");
    let prefix = here.values.iter().find(|value| value.len == 56).unwrap();
    let inside = (u128::from(prefix.addr) + 77).into();
    assert_eq!(data(Sought::Address(inside), None), here);
    assert_eq!(data(Sought::Address(there.values[0].addr), None), there);
    let line = data(by("2001:db8:7777:1::1"), None);
    assert!(line.client == [0, 3, 4] && line.options.first() == Some(&olt), "{line:?}");
    assert_eq!(data(by_duid(4), None), line, "by what it has called itself");
    assert_eq!(
        data(by_duid(6), None).values[0].addr,
        "2001:db8:6666::".parse::<std::net::Ipv6Addr>().unwrap()
    );
    assert_eq!(data(by_duid(6), Some("2001:db8:7::1000")), data(by_duid(6), None), "where its relay is");
    let own = data(by("2001:db8:1111::1"), None);
    let own: Vec<_> = own.values.iter().map(|v| (v.len, v.preferred, v.valid)).collect();
    assert_eq!(own, [(48, u32::MAX, u32::MAX)]);

    // Only what tells of leases waits until they are on the disk; nobody else's questions cost any room.
    let mut waits = |from: &str, addr: &str| asked(&mut lab, from, by(addr), None).unwrap().1.tells_of_others;
    assert!(waits("::1", "2001:db8:1111::1") && waits("::1", "2001:db8:53:1::1234"));
    assert!(!waits("2001:db8:78::1", "2001:db8:1111::1") && !waits("::1", "2001:db8:9999::1"));
    let mut status = |from: &str, addr: &str| look_up(&mut lab, from, by(addr), None).unwrap().status.0;
    assert_eq!(status("::1", "2001:db8:53:1::1234"), Status::Success, "nobody's, but of a link here");
    assert_eq!(status("::1", "2001:db8:8055::1"), Status::Success);
    assert_eq!(status("::1", "2001:db8:9999::1"), Status::NotConfigured);
    assert_eq!(status("2001:db8:78::1", "2001:db8:1111::1"), Status::NotAllowed);
}

#[test]
fn who_may_ask_is_read_with_or_without_commas() {
    let read = |text: &str| load("x", text.as_bytes(), &Room);
    let shown = |conf: &ServerConf| conf.requestors.iter().map(ToString::to_string).collect::<Vec<_>>();
    let conf = read("lease-query 2001:db8::/32, ::1;\nlease-query fe80::/10 fd00::1;").unwrap().conf;
    assert_eq!(shown(&conf), ["2001:db8::/32", "::1/128", "fe80::/10", "fd00::1/128"]);
    assert!(read("").unwrap().conf.requestors.is_empty());
    let open = read("lease-query ::/0;").unwrap();
    assert!(open.notes[0].what.contains("everybody"));
    for wrong in [
        "lease-query;",
        "lease-query ::1,;",
        "lease-query 2001:db8::/129;",
        "lease-query ff02::1;",
        "lease-query x;",
    ] {
        assert!(read(wrong).is_err(), "{wrong}");
    }
}
