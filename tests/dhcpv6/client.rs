//! The DHCPv6 client before our own server, before others' captured words, and before words that nobody should say.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use dhcproto::v6::{DhcpOption, MessageType, Status, StatusCode};
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;
use sixway::dhcpv6::auth::Ring;
use sixway::dhcpv6::calls::Called;
use sixway::dhcpv6::client::{Client, Ignored, Lease, Output, Want, Wish};
use sixway::dhcpv6::codec::{Ia, IaKind, Message, Opt, Packet, Part, Value};
use sixway::dhcpv6::session::Origin;
use sixway::dhcpv6::telling::Bound;
use sixway_dataplane::update::Ipv6Prefix;

use crate::lab::{Lab, octets};

const CONFIG: &str = r#"
[dhcpv6]
preferred = 60
valid     = 90
dns       = ["2001:db8:53::53"]
domains   = ["example.com"]

[[pool]]
prefix = "2001:db8:200::/40"
assign = 56

[[pool]]
prefix    = "2001:db8:5::/64"
addresses = true
"#;
const US: [u8; 6] = [0, 4, 1, 2, 3, 4];
const PREFIX: Want = Want { kind: IaKind::Prefix, iaid: 7, len: 56 };
const ADDRESS: Want = Want { kind: IaKind::Address, iaid: 7, len: 0 };

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A client and our server, with a clock that is turned by hand.
struct Pair {
    client: Client<StdRng>,
    lab: Lab,
    now: Duration,
    lease: Lease,
    /// Kinds of what the client has said since this was looked at last.
    said: Vec<MessageType>,
    refused: Vec<String>,
    is_idle: bool,
    /// Whether the server hears nothing.
    deaf: bool,
}

impl Pair {
    fn new(config: &str, wants: &[Want]) -> Self {
        let wish = Wish { duid: US.to_vec(), wants: wants.to_vec(), rapid_commit: true };
        let mut pair = Self {
            client: Client::new(wish, StdRng::seed_from_u64(1)),
            lab: Lab::new(config),
            now: s(1000),
            lease: Lease::default(),
            said: Vec::new(),
            refused: Vec::new(),
            is_idle: false,
            deaf: false,
        };
        pair.client.start(pair.now);
        pair
    }

    fn bound(config: &str, wants: &[Want]) -> Self {
        let mut pair = Self::new(config, wants);
        pair.wait(s(3));
        assert_eq!(pair.lease.held.len(), wants.len(), "{:?}", pair.lease);
        pair.said.clear();
        pair
    }

    fn pump(&mut self) {
        while let Some(output) = self.client.poll_output() {
            match output {
                Output::Send(message) => self.carry(&message),
                Output::Have(lease) => self.lease = lease,
                Output::Refused(why) => self.refused.push(why),
                Output::Idle => self.is_idle = true,
            }
        }
    }

    fn carry(&mut self, octets: &[u8]) {
        self.said.push(message(octets).kind);
        if self.deaf {
            return;
        }
        let from = Some("fe80::2".parse().unwrap());
        let origin = Origin { from, ..Origin::of("t") };
        if let Some(answer) = self.lab.ask_from(&origin, octets) {
            let _changes_something = self.client.handle_message(&answer.octets, self.now);
        }
    }

    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        self.pump();
        while let Some(due) = self.client.poll_timeout().filter(|due| *due <= end) {
            let due = due.max(self.now);
            self.lab.wait(due - self.now);
            self.now = due;
            self.client.handle_timeout(self.now);
            self.pump();
        }
        self.lab.wait(end - self.now);
        self.now = end;
    }

    fn prefixes(&self) -> Vec<Ipv6Prefix> {
        self.lease.held.iter().map(|held| held.prefix).collect()
    }

    fn said(&mut self) -> Vec<MessageType> {
        std::mem::take(&mut self.said)
    }
}

fn message(octets: &[u8]) -> Message {
    match Packet::parse(octets).unwrap() {
        Packet::Message(message) => message,
        Packet::Relay(_) => panic!("clients say no such thing"),
    }
}

use MessageType as M;

/// RFC: V60 (RFC 8415 section 18.2.1)
#[test]
fn four_messages_bring_what_is_asked_for_and_renewals_keep_it() {
    let mut pair = Pair::new(CONFIG, &[PREFIX, ADDRESS]);
    pair.wait(s(3));
    assert_eq!(pair.said(), [M::Solicit, M::Request]);
    let given = pair.prefixes();
    assert_eq!(given.iter().map(|p| p.prefix_len()).collect::<Vec<_>>(), [56, 128]);
    assert_eq!(pair.lab.routes.keys().copied().collect::<Vec<_>>().len(), 2);
    assert_eq!(pair.lease.dns, ["2001:db8:53::53".parse::<std::net::Ipv6Addr>().unwrap()]);
    assert_eq!(pair.lease.domains[0].to_string(), "example.com.");
    // T1 is half of the preferred lifetime.
    for _ in 0..3 {
        let before = pair.lease.held[0].valid;
        pair.wait(s(30));
        assert_eq!(pair.said(), [M::Renew]);
        assert!(pair.lease.held[0].valid > before);
    }
    assert_eq!(pair.prefixes(), given);
}

/// RFC: V61 (RFC 8415 section 18.2.1)
#[test]
fn rapid_commit_needs_two_messages() {
    let rapid = CONFIG.replace("preferred = 60", "rapid_commit = true\npreferred = 60");
    let mut pair = Pair::new(&rapid, &[PREFIX]);
    pair.wait(s(2));
    assert_eq!(pair.said(), [M::Solicit]);
    assert_eq!(pair.prefixes().len(), 1);
}

/// RFC: V62 (RFC 8415 section 18.2.4)
#[test]
fn a_server_that_is_silent_is_renewed_until_t2_then_all_are_asked_and_what_is_over_is_gone() {
    let mut pair = Pair::bound(CONFIG, &[PREFIX]);
    let given = pair.prefixes();
    pair.deaf = true;
    pair.wait(s(29));
    assert_eq!(pair.said(), [M::Renew]);
    pair.wait(s(20));
    let said = pair.said();
    assert_eq!((said.first(), said.last()), (Some(&M::Renew), Some(&M::Rebind)));
    pair.deaf = false;
    pair.wait(s(25));
    assert_eq!((pair.said().last(), pair.prefixes()), (Some(&M::Rebind), given));
    pair.deaf = true;
    pair.wait(s(91));
    assert_eq!((pair.said().last(), pair.prefixes()), (Some(&M::Solicit), vec![]));
    pair.deaf = false;
    pair.wait(s(300));
    assert_eq!(pair.prefixes().len(), 1);
}

/// RFC: V63 (RFC 8415 section 18.2.10.1)
#[test]
fn a_server_that_has_forgotten_is_requested_at_once() {
    let mut pair = Pair::bound(CONFIG, &[PREFIX]);
    let given = pair.prefixes();
    pair.lab.memory = sixway::broker::Memory::default();
    pair.lab.restart();
    pair.wait(s(31));
    assert_eq!(pair.said(), [M::Renew, M::Request]);
    assert_eq!(pair.prefixes(), given, "it is what the client names, and free");
    assert_eq!(pair.lab.routes.keys().copied().collect::<Vec<_>>(), given);
}

/// RFC: V64 (RFC 8415 section 18.2.12)
#[test]
fn a_tunnel_that_comes_back_is_asked_whether_all_is_as_it_was() {
    let mut pair = Pair::bound(CONFIG, &[PREFIX]);
    let given = pair.prefixes();
    pair.client.start(pair.now);
    pair.wait(s(1));
    assert_eq!((pair.said(), pair.prefixes()), (vec![M::Rebind], given.clone()));
    // The server has forgotten, and the tunnel is back after a while.
    pair.lab.memory = sixway::broker::Memory::default();
    pair.lab.restart();
    pair.deaf = true;
    pair.client.start(pair.now);
    pair.wait(s(4));
    pair.deaf = false;
    pair.wait(s(4));
    let said = pair.said();
    assert_eq!(said.last(), Some(&M::Request), "{said:?}");
    assert_eq!(pair.prefixes(), given);
    // Nobody answers a Rebind: after ten seconds all are asked anew, and what is held is held meanwhile.
    pair.deaf = true;
    pair.client.start(pair.now);
    pair.wait(s(14));
    assert_eq!((pair.said().last(), pair.prefixes()), (Some(&M::Solicit), given.clone()));
    pair.deaf = false;
    pair.wait(s(20));
    assert_eq!(pair.prefixes(), given);
}

/// RFC: V65 (RFC 8415 section 18.2.7)
#[test]
fn what_is_given_back_is_not_held_any_more_when_it_is_said() {
    let mut pair = Pair::bound(CONFIG, &[PREFIX, ADDRESS]);
    pair.client.stop(pair.now);
    assert_eq!(pair.client.poll_output(), Some(Output::Have(Lease::default())));
    pair.wait(s(1));
    assert_eq!((pair.said(), pair.is_idle, pair.lab.routes.len()), (vec![M::Release], true, 0));
    assert_eq!(pair.client.poll_timeout(), None);
    pair.client.start(pair.now);
    pair.wait(s(3));
    assert_eq!(pair.said(), [M::Solicit, M::Request], "it may begin anew");

    pair.deaf = true;
    pair.is_idle = false;
    // What would end meanwhile makes no haste.
    pair.wait(s(29 + 58));
    pair.said.clear();
    pair.client.stop(pair.now);
    pair.wait(s(60));
    assert_eq!((pair.said(), pair.is_idle), (vec![M::Release; 4], true), "nobody hears it");
}

#[test]
fn a_server_with_nothing_is_asked_later_and_its_words_are_passed_on() {
    let mut pair = Pair::new(CONFIG, &[PREFIX]);
    pair.lab.change(|terms| terms.most = 0);
    pair.wait(s(20));
    assert!(pair.said().iter().all(|kind| *kind == M::Solicit) && pair.lease.held.is_empty());
    assert!(pair.refused.iter().all(|why| why.contains("(NoPrefixAvail")) && !pair.refused.is_empty());
    pair.lab.change(|terms| terms.most = 8);
    pair.wait(s(60));
    assert_eq!(pair.prefixes().len(), 1);
}

/// RFC: V70, V73 (RFC 8415 section 18.2.11)
#[test]
fn a_server_that_proves_itself_may_say_that_something_has_changed() {
    let mut pair = Pair::new(CONFIG, &[PREFIX]);
    pair.lab.session.trust(Ring::new([9; 32], 0));
    pair.lab.session.set_clock((1_800_000_000, 0));
    pair.wait(s(3));
    pair.said.clear();
    let summons = |pair: &mut Pair, renew| {
        let who = Called { tunnel: "t".into(), client: US.into() };
        let bound = Bound::from([(who, Some("fe80::2".parse().unwrap()))]);
        pair.lab.session.call_bound(pair.now, &bound, renew);
        pair.lab.session.poll_call(pair.now + s(10)).unwrap().2
    };
    let said = summons(&mut pair, true);
    let mut forged = said.clone();
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(pair.client.handle_message(&forged, pair.now), Err(Ignored::Unproven));
    assert_eq!(pair.client.handle_message(&said, pair.now), Ok(()));
    pair.wait(s(1));
    assert_eq!(pair.said(), [M::Renew]);
    assert_eq!(pair.client.handle_message(&said, pair.now), Err(Ignored::Unproven), "once");
    let said = summons(&mut pair, false);
    assert_eq!(pair.client.handle_message(&said, pair.now), Ok(()));
    pair.wait(s(1));
    assert_eq!(pair.said(), [M::InformationRequest]);
    assert_eq!((pair.prefixes().len(), pair.client.view().doing), (1, "bound"), "what is held is held");

    // One that comes while it asks for something else is said again, whatever it has been told since.
    let said = summons(&mut pair, false);
    pair.client.renew(pair.now);
    assert_eq!(pair.client.handle_message(&said, pair.now), Err(Ignored::Unexpected));
    pair.wait(s(1));
    assert_eq!((pair.said(), pair.client.view().doing), (vec![M::Renew], "bound"));
    assert_eq!(pair.client.handle_message(&said, pair.now), Err(Ignored::Unproven), "an answer was later");
    let again = pair.lab.session.poll_call(pair.now + s(60)).unwrap().2;
    assert_eq!(pair.client.handle_message(&again, pair.now), Ok(()));
    pair.wait(s(1));
    assert_eq!(
        (pair.said(), pair.lab.session.poll_call(pair.now + s(600))),
        (vec![M::InformationRequest], None)
    );
    // Where the answer proves nothing, the same message is good for that.
    pair.lab.change(|terms| terms.reconfigure = false);
    let said = summons(&mut pair, true);
    pair.client.renew(pair.now);
    assert_eq!(pair.client.handle_message(&said, pair.now), Err(Ignored::Unexpected));
    pair.wait(s(1));
    assert_eq!(pair.client.handle_message(&said, pair.now), Ok(()));
    pair.wait(s(1));
    assert_eq!(pair.said(), [M::Renew, M::Renew]);
    assert_eq!(pair.client.handle_message(&said, pair.now), Err(Ignored::Unproven), "once");
    pair.lab.change(|terms| terms.reconfigure = true);

    // Nobody answers: it is asked until what is held must be renewed, which brings information as well.
    let said = summons(&mut pair, false);
    assert_eq!(pair.client.handle_message(&said, pair.now), Ok(()));
    let asked = next_said(&mut pair.client).unwrap();
    assert_eq!((asked.kind, asked.server()), (M::InformationRequest, Some(&pair.client.view().server[..])));
    assert_eq!(asked.ias().count(), 0);
    pair.deaf = true;
    pair.wait(s(20));
    let said = pair.said();
    assert!(said.len() > 2 && said.iter().all(|kind| *kind == M::InformationRequest), "{said:?}");
    pair.wait(s(12));
    let said = pair.said();
    assert_eq!((said.last(), pair.client.view().doing), (Some(&M::Renew), "renewing"), "{said:?}");
    pair.deaf = false;
    pair.wait(s(20));
    assert_eq!((pair.prefixes().len(), pair.client.view().doing), (1, "bound"));
}

/// RFC: V73 (RFC 8415 section 18.2.6)
#[test]
fn who_wants_nothing_but_information_asks_for_it_and_refreshes_it() {
    let mut pair = Pair::new(CONFIG, &[]);
    pair.wait(s(2));
    assert_eq!(pair.said(), [M::InformationRequest]);
    assert_eq!((pair.lease.held.len(), pair.lease.dns.len(), pair.client.view().doing), (0, 1, "informed"));
    // The server has not said for how long: a day.
    pair.wait(s(86_390));
    assert_eq!(pair.said(), []);
    pair.wait(s(20));
    assert_eq!(pair.said(), [M::InformationRequest]);
    // The link comes back, and later the end: nothing is held that could be given back.
    pair.client.start(pair.now);
    pair.wait(s(2));
    assert_eq!(pair.said(), [M::InformationRequest]);
    pair.client.stop(pair.now);
    pair.wait(s(100_000));
    assert_eq!((pair.said(), pair.is_idle, &pair.lease), (vec![], true, &Lease::default()));
}

/// RFC: V73 (RFC 8415 sections 21.23 and 21.25)
#[test]
fn servers_say_when_information_is_refreshed_within_bounds() {
    let answer = |asked: &Message, option| {
        let ends = [DhcpOption::ClientId(US.to_vec()), DhcpOption::ServerId(vec![0, 3, 1])].map(Opt::Leaf);
        let options = ends.into_iter().chain([option]).collect();
        Message { kind: M::Reply, xid: asked.xid, options }.emit()
    };
    let refreshed = |seconds| {
        let mut client = alone(&[]);
        let asked = next_said(&mut client).unwrap();
        assert!(asked.asks_for(32) && asked.asks_for(83) && asked.server().is_none());
        client.handle_message(&answer(&asked, Opt::Seconds(32, seconds)), s(1)).unwrap();
        client.poll_timeout()
    };
    assert_eq!(refreshed(0), Some(s(601)));
    assert_eq!(refreshed(7200), Some(s(7201)));
    assert_eq!(refreshed(u32::MAX), None, "never");

    let longest = |seconds| {
        let mut client = alone(&[]);
        let asked = next_said(&mut client).unwrap();
        client.handle_message(&answer(&asked, Opt::Seconds(83, seconds)), s(1)).unwrap();
        client.renew(s(2));
        longest_wait(client, s(2))
    };
    assert!((54..=66).contains(&longest(60)));
    assert!((3240..=3960).contains(&longest(59)));
    // A server that fails is asked again at the message's own pace.
    let mut client = alone(&[]);
    let asked = next_said(&mut client).unwrap();
    let failed = StatusCode { status: Status::UnspecFail, msg: String::new() };
    let failed = answer(&asked, Opt::Leaf(DhcpOption::StatusCode(failed)));
    assert_eq!(client.handle_message(&failed, s(1)), Err(Ignored::Empty));
    assert_eq!(client.view().doing, "inquiring");
}

/// RFC: V72 (RFC 8415 section 18.2.3)
#[test]
fn who_has_only_addresses_asks_whether_the_link_is_the_same() {
    let mut pair = Pair::bound(CONFIG, &[ADDRESS]);
    let given = pair.prefixes();
    pair.client.start(pair.now);
    pair.wait(s(2));
    assert_eq!((pair.said(), pair.prefixes()), (vec![M::Confirm], given.clone()));
    assert_eq!(pair.client.view().doing, "bound");
    // Nobody answers: after ten seconds it goes on with what it has.
    pair.deaf = true;
    pair.client.start(pair.now);
    pair.wait(s(12));
    let said = pair.said();
    assert!(said.len() > 2 && said.iter().all(|kind| *kind == M::Confirm), "{said:?}");
    assert_eq!((pair.prefixes(), pair.client.view().doing), (given.clone(), "bound"));
    pair.deaf = false;
    // One server says that this is another link; as long as it is asked, another one may know better.
    for agrees in [true, false] {
        pair.client.start(pair.now);
        let due = pair.client.poll_timeout().unwrap();
        pair.client.handle_timeout(due);
        let asked = next_said(&mut pair.client).unwrap();
        assert_eq!((asked.kind, asked.server(), asked.ias().count()), (M::Confirm, None, 1));
        let says = |status| {
            let said = StatusCode { status, msg: String::new() };
            let ends = [DhcpOption::ClientId(US.to_vec()), DhcpOption::ServerId(vec![0, 3, 9])];
            let options = ends.into_iter().chain([DhcpOption::StatusCode(said)]).map(Opt::Leaf).collect();
            Message { kind: M::Reply, xid: asked.xid, options }.emit()
        };
        pair.client.handle_message(&says(Status::NotOnLink), due).unwrap();
        assert_eq!(pair.client.lease().held.len(), 1);
        if agrees {
            pair.client.handle_message(&says(Status::Success), due).unwrap();
            pair.wait(s(5));
            assert_eq!((pair.said(), pair.prefixes()), (vec![], given.clone()));
        }
    }
    let due = pair.client.poll_timeout().unwrap();
    pair.client.handle_timeout(due);
    assert_eq!(
        pair.client.poll_output().map(|first| matches!(first, Output::Have(lease) if lease.held.is_empty())),
        Some(true)
    );
    let said = next_said(&mut pair.client).unwrap();
    assert_eq!((said.kind, said.ias().flat_map(Ia::values).count()), (M::Solicit, 0));
}

/// What a client that asks for a prefix under 7 hears.
fn offer(kind: MessageType, xid: [u8; 3], server: u8, prefix: &str, more: Vec<Opt>) -> Vec<u8> {
    let prefix: Ipv6Prefix = prefix.parse().unwrap();
    let (addr, len) = (prefix.addr(), prefix.prefix_len());
    let value = Value { addr, len, preferred: 60, valid: 90, options: Vec::new() };
    let ia = Ia { kind: IaKind::Prefix, iaid: 7, t1: 0, t2: 0, parts: vec![Part::Value(value)] };
    let ends = [DhcpOption::ClientId(US.to_vec()), DhcpOption::ServerId(vec![0, 3, server])].map(Opt::Leaf);
    let options = ends.into_iter().chain([Opt::Ia(ia)]).chain(more).collect();
    Message { kind, xid, options }.emit()
}

fn alone(wants: &[Want]) -> Client<StdRng> {
    let wish = Wish { duid: US.to_vec(), wants: wants.to_vec(), rapid_commit: false };
    let mut client = Client::new(wish, StdRng::seed_from_u64(5));
    client.start(s(0));
    client.handle_timeout(s(1));
    client
}

fn next_said(client: &mut Client<StdRng>) -> Option<Message> {
    loop {
        if let Output::Send(octets) = client.poll_output()? {
            return Some(message(&octets));
        }
    }
}

/// RFC: V66 (RFC 8415 section 18.2.9)
#[test]
fn the_best_offer_within_the_first_second_is_taken_and_a_certain_one_at_once() {
    let preference = |n| vec![Opt::Leaf(DhcpOption::Preference(n))];
    let mut client = alone(&[PREFIX]);
    let xid = next_said(&mut client).unwrap().xid;
    for (server, prefers) in [(1, vec![]), (2, preference(9)), (3, preference(8))] {
        let said = offer(M::Advertise, xid, server, "2001:db8:200::/56", prefers);
        client.handle_message(&said, s(1)).unwrap();
    }
    assert_eq!(next_said(&mut client), None, "it waits for others");
    client.handle_timeout(s(3));
    let request = next_said(&mut client).unwrap();
    assert_eq!((request.kind, request.server()), (M::Request, Some(&[0, 3, 2][..])));
    assert_ne!(request.xid, xid);

    let mut client = alone(&[PREFIX]);
    let xid = next_said(&mut client).unwrap().xid;
    let certain = offer(M::Advertise, xid, 9, "2001:db8:200::/56", preference(255));
    client.handle_message(&certain, s(1)).unwrap();
    assert_eq!(next_said(&mut client).unwrap().server(), Some(&[0, 3, 9][..]));

    // Nobody has answered within the first second: then the first one will do.
    let mut client = alone(&[PREFIX]);
    let xid = next_said(&mut client).unwrap().xid;
    client.handle_timeout(s(3));
    assert_eq!(next_said(&mut client).unwrap().xid, xid, "said again, it is the same question");
    client.handle_message(&offer(M::Advertise, xid, 1, "2001:db8:200::/56", vec![]), s(3)).unwrap();
    assert_eq!(next_said(&mut client).unwrap().kind, M::Request);
}

/// RFC: V67 (RFC 8415 section 16.10)
#[test]
fn what_is_not_an_answer_changes_nothing() {
    let mut client = alone(&[PREFIX]);
    let xid = next_said(&mut client).unwrap().xid;
    let net = "2001:db8:200::/56";
    let bare = |options: Vec<Opt>| Message { kind: M::Advertise, xid, options }.emit();
    let (us, server) = (DhcpOption::ClientId(US.to_vec()), DhcpOption::ServerId(vec![9]));
    for (said, why) in [
        (vec![2, 1], Ignored::Malformed),
        (offer(M::Advertise, [xid[0] ^ 1, xid[1], xid[2]], 1, net, vec![]), Ignored::NotOurs),
        (offer(M::Reply, xid, 1, net, vec![Opt::Leaf(DhcpOption::RapidCommit)]), Ignored::Unexpected),
        (offer(M::Renew, xid, 1, net, vec![]), Ignored::Unexpected),
        (offer(M::Advertise, xid, 1, "fe80::/56", vec![]), Ignored::Empty),
        (offer(M::Advertise, xid, 1, "2001:db8::1/128", vec![]), Ignored::Empty),
        (bare(vec![Opt::Leaf(us.clone())]), Ignored::NotOurs),
        (bare(vec![Opt::Leaf(server.clone())]), Ignored::NotOurs),
        (bare(vec![Opt::Leaf(server.clone()), Opt::Leaf(DhcpOption::ClientId(vec![7]))]), Ignored::NotOurs),
        (bare(vec![Opt::Leaf(us), Opt::Leaf(server)]), Ignored::Empty),
        (offer(M::Reconfigure, [0; 3], 1, net, vec![]), Ignored::NotOurs),
    ] {
        assert_eq!(client.handle_message(&said, s(1)), Err(why), "{said:?}");
    }
    assert_eq!((next_said(&mut client), client.lease()), (None, Lease::default()));
}

/// RFC: V68 (RFC 8415 section 18.2.10)
/// A server that fails is asked again at the pace of the message, and no faster.
#[test]
fn a_failing_server_is_not_asked_faster() {
    let mut client = alone(&[PREFIX]);
    let xid = next_said(&mut client).unwrap().xid;
    let certain = vec![Opt::Leaf(DhcpOption::Preference(255))];
    client.handle_message(&offer(M::Advertise, xid, 1, "2001:db8:200::/56", certain), s(1)).unwrap();
    let xid = next_said(&mut client).unwrap().xid;
    let failed = StatusCode { status: Status::UnspecFail, msg: "the disk\u{7} is full".to_owned() };
    let failed =
        offer(M::Reply, xid, 1, "2001:db8:200::/56", vec![Opt::Leaf(DhcpOption::StatusCode(failed))]);
    assert_eq!(client.handle_message(&failed, s(1)), Err(Ignored::Empty));
    assert_eq!(
        client.poll_output(),
        Some(Output::Refused("it has failed (UnspecFail: the disk is full)".to_owned()))
    );
    assert_eq!(client.poll_output(), None);
    assert!(client.poll_timeout() > Some(Duration::from_millis(1800)));
}

/// A server that answers each question with nothing of use is not asked as fast as it answers.
#[test]
fn a_server_that_says_nothing_of_use_makes_no_storm() {
    type Answer = fn(&Message) -> Vec<Part>;
    let nothing: Answer = |_| Vec::new();
    let unknown: Answer = |_| vec![Part::Status(Status::NoBinding, String::new())];
    let over: Answer = |_| {
        let addr = "2001:db8:900::".parse().unwrap();
        vec![Part::Value(Value { addr, len: 56, preferred: 0, valid: 0, options: Vec::new() })]
    };
    for parts in [nothing, unknown, over] {
        let mut client = alone(&[PREFIX]);
        let (mut now, mut said) = (s(1), 0);
        while now < s(85) {
            while let Some(asked) = next_said(&mut client) {
                said += 1;
                assert!(said < 60, "at {now:?}");
                let full = said <= 2;
                let kind = if asked.kind == M::Solicit { M::Advertise } else { M::Reply };
                let certain = vec![Opt::Leaf(DhcpOption::Preference(255))];
                let mut answer = message(&offer(kind, asked.xid, 1, "2001:db8:200::/56", certain));
                for option in answer.options.iter_mut().filter(|_| !full) {
                    if let Opt::Ia(ia) = option {
                        ia.parts = parts(&asked);
                    }
                }
                let _either = client.handle_message(&answer.emit(), now);
            }
            let Some(due) = client.poll_timeout() else { break };
            now = due.max(now);
            client.handle_timeout(now);
        }
    }
}

/// How long it waits in the end, in seconds, where nobody answers.
fn longest_wait(mut client: Client<StdRng>, from: Duration) -> u64 {
    let (mut last, mut wait) = (from, s(0));
    for _ in 0..20 {
        let due = client.poll_timeout().unwrap();
        (wait, last) = (due - last, due);
        client.handle_timeout(due);
    }
    wait.as_secs()
}

/// RFC: V69 (RFC 8415 section 21.24)
#[test]
fn servers_may_slow_solicits_down_within_bounds() {
    let longest = |seconds: u32| {
        let mut client = alone(&[PREFIX]);
        let xid = next_said(&mut client).unwrap().xid;
        let said = offer(M::Advertise, xid, 1, "fe80::/56", vec![Opt::Seconds(82, seconds)]);
        assert_eq!(client.handle_message(&said, s(1)), Err(Ignored::Empty));
        longest_wait(client, s(1))
    };
    assert!((54..=66).contains(&longest(60)));
    for out_of_bounds in [59, 86_401] {
        assert!((3240..=3960).contains(&longest(out_of_bounds)));
    }
}

/// Answers out of a capture with the number of what our client has said, in order, as long as there are any.
fn hears(name: &str, duid: &str, wants: &[Want]) -> Client<StdRng> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts/dhcpv6");
    let text = fs::read_to_string(folder.join(name)).unwrap();
    let all: Vec<Vec<u8>> = text.lines().filter(|line| !line.starts_with('#')).map(octets).collect();
    let wish = Wish { duid: octets(duid), wants: wants.to_vec(), rapid_commit: false };
    let mut client = Client::new(wish, StdRng::seed_from_u64(5));
    client.start(s(0));
    client.handle_timeout(s(1));
    for (kind, at) in [(2, 1), (7, 3)] {
        let Some(mut answer) = all.iter().find(|message| message[0] == kind).cloned() else { break };
        answer[1..4].copy_from_slice(&next_said(&mut client).unwrap().xid);
        client.handle_message(&answer, s(at)).unwrap();
        client.handle_timeout(s(3));
    }
    client
}

fn both(address: u32, prefix: u32) -> [Want; 2] {
    let address = Want { kind: IaKind::Address, iaid: address, len: 0 };
    [address, Want { kind: IaKind::Prefix, iaid: prefix, len: 56 }]
}

#[test]
fn answers_of_kea_and_wide_are_understood() {
    let shown = |client: &Client<StdRng>| {
        client.lease().held.iter().map(|held| held.prefix.to_string()).collect::<Vec<_>>()
    };
    let kea = hears("client-dhclient-kea.hex", "0001000132938778020000005302", &both(0x5302, 0x5302));
    assert_eq!(shown(&kea), ["2001:db8:53:1::1000/128", "2001:db8:8000::/56"]);
    assert_eq!(kea.lease().held[0].valid, Some(s(3 + 7200)));
    assert_eq!(kea.poll_timeout(), Some(s(3 + 1800)), "its T1");
    let wide = hears("wide-full-options.hex", "000100012b000002020000005302", &both(2, 1));
    assert_eq!(shown(&wide), ["2001:db8:53:1::180/128", "2001:db8:1111::/48"]);
    assert_eq!(wide.poll_timeout(), Some(s(3 + 10)));
}

/// WIDE's server says outside of all associations that there is no address; its own client and dhcpcd ask on for ever.
#[test]
fn half_of_what_is_asked_for_is_better_than_nothing() {
    let mut wide = hears("wide-partial-pd-only.hex", "000100012b000002020000005302", &both(2, 1));
    let request = next_said(&mut wide).unwrap();
    assert_eq!(request.kind, M::Request);
    let named: Vec<_> = request.ias().map(|ia| ia.values().map(|v| v.len).collect::<Vec<_>>()).collect();
    assert_eq!(named, [vec![], vec![48]]);
}

proptest! {
    /// Nothing that is said to a client in any state brings it down, and what it holds is sound.
    #[test]
    fn any_words_are_taken_or_ignored(
        words in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..60), 0_u64..200), 0..30)
    ) {
        let mut pair = Pair::bound(CONFIG, &[PREFIX, ADDRESS]);
        for (kind, tail, seconds) in words {
            if seconds % 8 == 0 {
                pair.client.start(pair.now);
            }
            let mut octets = offer(MessageType::from(kind % 14), [0; 3], 1, "2001:db8:200::/56", vec![]);
            octets.extend(&tail);
            let _either = pair.client.handle_message(&octets, pair.now);
            pair.deaf = kind & 16 != 0;
            pair.wait(s(seconds));
            prop_assert!(pair.lease.held.iter().all(|held| held.preferred <= held.valid || held.valid.is_none()));
        }
    }
}
