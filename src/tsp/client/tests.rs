//! Sessions with servers as they were seen, octet by octet.

use std::net::Ipv6Addr;

use proptest::prelude::*;
use zeroize::Zeroizing;

use super::*;
use crate::tsp::search::Place;
use crate::tsp::xml::{BrokerAt, emit_list};

const CAPABILITY: &str =
    "CAPABILITY TUNNEL=V6V4 TUNNEL=V6UDPV4 AUTH=DIGEST-MD5 AUTH=PLAIN AUTH=ANONYMOUS\r\n";
/// What gogoc 1.2 asked with host_type=router, and what it was given, octet by octet.
const CREATE: &str = "Content-length: 399\r\n\
    <tunnel action=\"create\" type=\"v6v4\" proxy=\"no\">\r\n \
    <client>\r\n  \
    <address type=\"ipv4\">192.0.2.9</address>\r\n  \
    <keepalive interval=\"30\">\r\n    \
    <address type=\"ipv6\">::</address>\r\n  \
    </keepalive>\r\n  \
    <router>\r\n   \
    <prefix length=\"48\"/>\r\n   \
    <dns_server>\r\n     \
    <address type=\"dn\">ns1.example.org</address>\r\n     \
    <address type=\"dn\">ns2.example.org</address>\r\n   \
    </dns_server>\r\n  \
    </router>\r\n \
    </client>\r\n\
    </tunnel>\r\n";
const OFFER: &str = "Content-length: 739\r\n\
    200 Success\r\n\
    <tunnel action=\"info\" type=\"v6v4\" lifetime=\"604800\">\r\n \
    <server>\r\n  \
    <address type=\"ipv4\">192.0.2.1</address>\r\n  \
    <address type=\"ipv6\">2001:0db8:00f0:0000:0000:0000:0000:0001</address>\r\n \
    </server>\r\n \
    <client>\r\n  \
    <address type=\"ipv4\">192.0.2.9</address>\r\n  \
    <address type=\"ipv6\">2001:0db8:00f0:0000:0000:0000:0000:0002</address>\r\n  \
    <address type=\"dn\">alice.broker.example</address>\r\n  \
    <dns_server>\r\n   \
    <address type=\"ipv6\">2001:0db8:0000:0000:0000:0000:0000:0053</address>\r\n  \
    </dns_server>\r\n  \
    <router>\r\n   \
    <prefix length=\"48\">2001:0db8:1234:0000:0000:0000:0000:0000</prefix>\r\n  \
    </router>\r\n  \
    <keepalive interval=\"30\">\r\n   \
    <address type=\"ipv6\">2001:0db8:00f0:0000:0000:0000:0000:0001</address>\r\n  \
    </keepalive>\r\n \
    </client>\r\n\
    </tunnel>\r\n";
const ACCEPT: &str = "Content-length: 35\r\n<tunnel action=\"accept\"></tunnel>\r\n";

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn wish(login: Login) -> Wish {
    let name = |text| Name::parse(text).unwrap();
    Wish {
        login,
        mode: Mode::V6V4,
        claimed: Ipv4Addr::new(192, 0, 2, 9),
        keepalive: 30,
        prefix: Some(48),
        dns: vec![name("ns1.example.org"), name("ns2.example.org")],
        place: "broker.example".to_owned(),
        decline: false,
    }
}

fn alice(only: Option<Mechanism>) -> Login {
    let secret = Zeroizing::new(b"wonderland".to_vec());
    Login::Account { who: auth::Identity { user: "alice".to_owned(), secret }, only }
}

fn client(wish: Wish, over: Transport) -> Client {
    Client::new(wish, Version { major: 2, minor: 0, patch: 2 }, over, [7; 16], s(0))
}

fn by(text: &str) -> Login {
    alice(Mechanism::parse(text))
}

/// The payload of the only datagram to be sent, its header checked, and the header.
fn sent(client: &mut Client, sequence: u32) -> (Header, String) {
    let out = client.poll_output();
    let [Output::Send(datagram)] = &out[..] else { panic!("{out:?}") };
    let Some(Datagram::Message { header, payload }) = Datagram::parse(datagram, false) else {
        panic!("{datagram:?}")
    };
    assert_eq!(header.sequence(), 0xf000_0000 + sequence);
    (header, String::from_utf8(payload.to_vec()).unwrap())
}

/// Talks by UDP: each line of ours and the server's answer to it.
fn talks(client: &mut Client, talk: &[(&str, &str)]) {
    for (n, (ours, theirs)) in talk.iter().enumerate() {
        let (header, payload) = sent(client, 0xf0 + u32::try_from(n).unwrap());
        assert_eq!(payload, *ours, "message {n}");
        client.handle_datagram(&header.wrap(theirs.as_bytes()), s(1));
    }
}

fn granted(client: &mut Client) -> Granted {
    let out = client.poll_output();
    let [Output::Up(granted)] = &out[..] else { panic!("{out:?}") };
    assert_eq!(client.poll_timeout(), None);
    granted.clone()
}

fn over(client: &mut Client) -> End {
    let out = client.poll_output();
    let Some(Output::Over(end)) = out.last() else { panic!("{out:?}") };
    assert_eq!(client.poll_timeout(), None);
    end.clone()
}

fn text(line: Vec<u8>) -> String {
    String::from_utf8(line).unwrap() + "\r\n"
}

/// A mechanism's lines as a server that knows the password says them.
struct Knowing(auth::Server);

impl Knowing {
    fn begin(mechanism: Mechanism) -> (Self, String) {
        let site = auth::Site { realm: "broker.example".to_owned(), service: "tsp", salt: [1; 32] };
        let (server, next) = auth::Server::begin(&site, mechanism, [5; 16]);
        (Self(server), Self::said(next))
    }

    fn hears(&mut self, line: &str) -> String {
        Self::said(self.0.step(line.trim_end().as_bytes()))
    }

    fn said(next: auth::Next) -> String {
        match next {
            auth::Next::Say(line) => text(line),
            auth::Next::Listen => String::new(),
            auth::Next::Prove(claim) => text(claim.prove(b"wonderland").expect("the password is right")),
            auth::Next::Anonymous | auth::Next::Failed(_) => panic!("{next:?}"),
        }
    }
}

#[test]
fn a_session_in_datagrams_with_digest_md5() {
    let mut client = client(wish(alice(None)), Transport::Udp);
    talks(&mut client, &[("VERSION=2.0.2\r\n", CAPABILITY)]);
    let (mut server, challenge) = Knowing::begin(Mechanism::DigestMd5);
    let (header, payload) = sent(&mut client, 0xf1);
    assert_eq!(payload, "AUTHENTICATE DIGEST-MD5\r\n");
    client.handle_datagram(&header.wrap(challenge.as_bytes()), s(1));
    let (header, response) = sent(&mut client, 0xf2);
    client.handle_datagram(&header.wrap(server.hears(&response).as_bytes()), s(1));
    let (header, poll) = sent(&mut client, 0xf3);
    assert_eq!(poll, "", "an empty datagram asks for the next line");
    client.handle_datagram(&header.wrap(b"200 Success\r\n"), s(1));
    let (header, create) = sent(&mut client, 0xf4);
    assert_eq!(create, CREATE);
    client.handle_datagram(&header.wrap(OFFER.as_bytes()), s(1));
    let (header, accept) = sent(&mut client, 0xf5);
    assert_eq!(accept, ACCEPT);
    client.handle_datagram(&header.wrap(b""), s(1));
    let granted = granted(&mut client);
    assert_eq!((granted.mode, granted.server_v4), (Mode::V6V4, Some(Ipv4Addr::new(192, 0, 2, 1))));
    assert_eq!(granted.client_v6, "2001:db8:f0::2".parse::<Ipv6Addr>().unwrap());
    assert_eq!(granted.prefix, Some(("2001:db8:1234::".parse().unwrap(), 48)));
    assert_eq!(granted.keepalive, (30, granted.server_v6));
    assert_eq!(granted.dns, ["2001:db8::53".parse::<Ipv6Addr>().unwrap()]);
    assert_eq!(granted.name.as_deref(), Some("alice.broker.example"));
    assert_eq!(granted.lifetime, Some(s(604_800)));
}

/// Over TCP lines come as the network cuts them: all at once, or octet by octet.
#[test]
fn a_session_in_a_stream_with_every_mechanism() {
    for (name, piece) in
        [("DIGEST-MD5", 1), ("DIGEST-MD5", 9999), ("SCRAM-SHA-256", 3), ("SCRAM-SHA-256", 9999)]
    {
        let mechanism = Mechanism::parse(name).unwrap();
        let mut client = client(wish(alice(Some(mechanism))), Transport::Tcp);
        let said = |client: &mut Client| -> String {
            let out = client.poll_output().into_iter().map(|output| match output {
                Output::Send(octets) => String::from_utf8(octets).unwrap(),
                other @ (Output::Up(_) | Output::Over(_)) => panic!("{other:?}"),
            });
            out.collect()
        };
        let hear = |client: &mut Client, text: &str| {
            text.as_bytes().chunks(piece).for_each(|octets| client.handle_input(octets, s(1)));
        };
        assert_eq!(said(&mut client), "VERSION=2.0.2\r\n");
        hear(&mut client, &CAPABILITY.replace("AUTH=PLAIN", "AUTH=SCRAM-SHA-256"));
        let (mut server, challenge) = Knowing::begin(mechanism);
        let begun = said(&mut client);
        let first = begun.strip_prefix(&format!("AUTHENTICATE {name}\r\n")).unwrap();
        let challenge = if first.is_empty() { challenge } else { server.hears(first) };
        hear(&mut client, &challenge);
        let proof = server.hears(&said(&mut client));
        hear(&mut client, &format!("{proof}200 Success\r\n"));
        assert_eq!(said(&mut client), CREATE, "{name}");
        hear(&mut client, OFFER);
        let out = client.poll_output();
        let [Output::Send(accept), Output::Up(granted)] = &out[..] else { panic!("{out:?}") };
        assert_eq!((accept.as_slice(), granted.mode), (ACCEPT.as_bytes(), Mode::V6V4));
    }
}

#[test]
fn a_nat_is_noticed_by_the_server_with_plain() {
    let login = by("PLAIN");
    let wish =
        Wish { mode: Mode::V6AnyV4, claimed: [10, 1, 1, 1].into(), prefix: None, dns: vec![], ..wish(login) };
    let mut client = client(wish, Transport::Udp);
    let offer = OFFER.replace("\"v6v4\"", "\"v6udpv4\"").replace("739", "742");
    talks(
        &mut client,
        &[
            ("VERSION=2.0.2\r\n", "CAPABILITY TUNNEL=V6V4 TUNNEL=V6UDPV4 AUTH=PLAIN\r\n"),
            ("AUTHENTICATE PLAIN\r\n", ""),
            ("\0alice\0wonderland\r\n", "200 Success\r\n"),
        ],
    );
    let (header, create) = sent(&mut client, 0xf3);
    assert!(create.contains("type=\"v6anyv4\"") && create.contains("10.1.1.1"), "{create}");
    client.handle_datagram(&header.wrap(offer.as_bytes()), s(1));
    let (header, _) = sent(&mut client, 0xf4);
    client.handle_datagram(&header.wrap(b"Content-length: 13\r\n200 Success\r\n"), s(1));
    assert_eq!(granted(&mut client).mode, Mode::V6UdpV4);
}

#[test]
fn the_draft_knows_no_acknowledgement() {
    let wish = Wish { prefix: None, keepalive: 0, dns: vec![], ..wish(Login::Anonymous) };
    let version = Version { major: 1, minor: 0, patch: 0 };
    let mut client = Client::new(wish, version, Transport::Tcp, [7; 16], s(0));
    assert_eq!(client.poll_output(), [Output::Send(b"VERSION=1.0\r\n".to_vec())]);
    client.handle_input(b"CAPABILITY TUNNEL=V6V4 AUTH=DIGEST-MD5 AUTH=ANONYMOUS\r\n", s(1));
    assert_eq!(client.poll_output(), [Output::Send(b"AUTHENTICATE ANONYMOUS\r\n".to_vec())]);
    client.handle_input(b"200 Authentication successful\r\n", s(1));
    let [Output::Send(create)] = &client.poll_output()[..] else { panic!() };
    assert!(create.starts_with(b"Content-length: "));
    client.handle_input(OFFER.as_bytes(), s(1));
    assert_eq!(granted(&mut client).prefix.map(|(_, len)| len), Some(48));
}

#[test]
fn what_is_not_answered_is_said_again_with_a_new_time() {
    let mut client = client(wish(alice(None)), Transport::Udp);
    let (first, _) = sent(&mut client, 0xf0);
    for at in [2, 4] {
        assert_eq!(client.poll_timeout(), Some(s(at)));
        client.handle_timeout(s(at));
        let (again, payload) = sent(&mut client, 0xf0);
        assert_eq!(
            (again.timestamp() - first.timestamp(), payload.as_str()),
            (u32::try_from(at * 1000).unwrap(), "VERSION=2.0.2\r\n")
        );
    }
    client.handle_timeout(s(6));
    assert_eq!(over(&mut client), End::Silent);
}

#[test]
fn a_server_that_has_answered_is_waited_for() {
    let mut client = client(wish(alice(None)), Transport::Udp);
    let (header, _) = sent(&mut client, 0xf0);
    client.handle_datagram(&header.wrap(CAPABILITY.as_bytes()), s(10));
    sent(&mut client, 0xf1);
    // The same answer again, and answers to nothing of ours.
    client.handle_datagram(&header.wrap(CAPABILITY.as_bytes()), s(10));
    client.handle_datagram(b"200 Success", s(10));
    for at in [2, 4, 6, 8, 12, 20, 36] {
        client.handle_timeout(s(10 + at));
        sent(&mut client, 0xf1);
    }
    client.handle_timeout(s(75));
    assert!(client.poll_output().is_empty());
    client.handle_timeout(s(76));
    assert!(matches!(over(&mut client), End::Lost(_)));
}

/// What becomes of the session when the server answers the version with this.
fn after(payload: &str) -> End {
    let mut udp = client(wish(alice(None)), Transport::Udp);
    talks(&mut udp, &[("VERSION=2.0.2\r\n", payload)]);
    let mut tcp = client(wish(alice(None)), Transport::Tcp);
    tcp.poll_output();
    tcp.handle_input(payload.as_bytes(), s(1));
    let end = over(&mut udp);
    assert_eq!(over(&mut tcp), end, "the same by TCP");
    end
}

#[test]
fn refusals_are_told_from_losses() {
    assert_eq!(after("302 Unsupported client version\r\n"), End::OtherVersion);
    assert!(matches!(after("530 Server too busy\r\n"), End::Lost(why) if why.contains("too busy")));
    assert!(matches!(after("SSH-2.0-x\r\n"), End::Lost(why) if why.contains("port right")));
    assert!(
        matches!(after("CAPABILITY TUNNEL=V4V6 AUTH=PLAIN\r\n"), End::Refused(why) if why.contains("v4v6"))
    );
    let plain = after("CAPABILITY TUNNEL=V6V4 AUTH=PLAIN AUTH=ANONYMOUS\r\n");
    assert!(matches!(plain, End::Refused(why) if why.contains("PLAIN, ANONYMOUS")), "never unasked");
    let list = ["192.0.2.7", "ts1.example.net:99", "2001:db8::1", "192.0.2.7"]
        .map(|text| BrokerAt::parse(text).unwrap());
    let list = emit_list(&list);
    let places: Vec<Place> =
        ["192.0.2.7", "ts1.example.net:99"].map(|text| Place::parse(text).unwrap()).to_vec();
    assert_eq!(after(&format!("1302 Unsupported client version\r\n{list}")), End::Elsewhere(places));
    assert!(matches!(after("1200 Redirection\r\n<tunnel action=\"list\"></tunnel>\r\n"), End::Lost(_)));
}

/// What becomes of the session when its wish is answered by this.
fn answered(wish: Wish, reply: &str) -> End {
    let mut client = client(wish, Transport::Udp);
    talks(&mut client, &[("VERSION=2.0.2\r\n", CAPABILITY), ("AUTHENTICATE ANONYMOUS\r\n", "200 OK\r\n")]);
    let (header, _) = sent(&mut client, 0xf2);
    client.handle_datagram(&header.wrap(frame(&format!("{reply}\r\n")).as_bytes()), s(1));
    over(&mut client)
}

#[test]
fn the_answer_to_the_wish_may_be_no_and_it_is_said_what_to_do() {
    for (reply, wanted) in [
        ("303 x", "tunnel="),
        ("501 x", "192.0.2.9"),
        ("507 x", "/48"),
        ("518 x", "prefix="),
        ("522 x", "account"),
        ("1301 x\r\n<tunnel/>", "list"),
        ("301 x", "quota"),
        ("506 x", "two minutes"),
        ("530 x", "later"),
        ("310 x", "log"),
        ("x", "no answer"),
    ] {
        let end = answered(wish(Login::Anonymous), reply);
        let is_final = ["303", "501", "507", "518", "522"].iter().any(|code| reply.starts_with(code));
        assert_eq!(matches!(end, End::Refused(_)), is_final, "{end}");
        assert!(end.to_string().contains(wanted), "{reply}: {end}");
    }
    let mut tcp = client(Wish { mode: Mode::V6AnyV4, ..wish(Login::Anonymous) }, Transport::Tcp);
    tcp.poll_output();
    tcp.handle_input(CAPABILITY.as_bytes(), s(1));
    tcp.handle_input(b"200 OK\r\n", s(1));
    tcp.handle_input(frame("303 Unsupported tunnel type\r\n").as_bytes(), s(1));
    let said = over(&mut tcp).to_string();
    assert!(said.contains("UDP port 3653") && said.contains("NAT"), "{said}");
}

#[test]
fn a_wrong_password_is_final_and_success_is_not_believed_too_soon() {
    let (_, challenge) = Knowing::begin(Mechanism::DigestMd5);
    for (answer, why) in
        [("300 Authentication failed\r\n", "password may be wrong"), ("200 Success\r\n", "not proven")]
    {
        let mut client = client(wish(alice(None)), Transport::Udp);
        talks(&mut client, &[("VERSION=2.0.2\r\n", CAPABILITY), ("AUTHENTICATE DIGEST-MD5\r\n", &challenge)]);
        let (header, _) = sent(&mut client, 0xf2);
        client.handle_datagram(&header.wrap(answer.as_bytes()), s(1));
        assert!(matches!(over(&mut client), End::Refused(told) if told.contains(why)));
    }
}

const INFO: &str = "Content-length: 33\r\n<tunnel action=\"info\"></tunnel>\r\n";

#[test]
fn what_is_only_to_be_shown_is_given_back() {
    let mut client = client(Wish { decline: true, ..wish(Login::Anonymous) }, Transport::Udp);
    talks(
        &mut client,
        &[
            ("VERSION=2.0.2\r\n", CAPABILITY),
            ("AUTHENTICATE ANONYMOUS\r\n", "200 Success\r\n"),
            (INFO, "Content-length: 13\r\n200 Success\r\n"),
            (CREATE, OFFER),
            ("Content-length: 35\r\n<tunnel action=\"reject\"></tunnel>\r\n", ""),
        ],
    );
    granted(&mut client);
}

#[test]
fn what_is_only_to_be_shown_and_there_already_is_not_asked_for() {
    let mut client = client(Wish { decline: true, ..wish(Login::Anonymous) }, Transport::Udp);
    talks(
        &mut client,
        &[
            ("VERSION=2.0.2\r\n", CAPABILITY),
            ("AUTHENTICATE ANONYMOUS\r\n", "200 Success\r\n"),
            (INFO, OFFER),
        ],
    );
    assert_eq!(granted(&mut client).prefix.map(|(_, len)| len), Some(48));
}

#[test]
fn the_end_of_a_stream_is_silence_or_a_loss() {
    let mut tcp = client(wish(alice(None)), Transport::Tcp);
    tcp.handle_end();
    assert_eq!(over(&mut tcp), End::Silent);
    let mut tcp = client(wish(alice(None)), Transport::Tcp);
    tcp.handle_input(CAPABILITY.as_bytes(), s(1));
    tcp.handle_end();
    assert!(matches!(over(&mut tcp), End::Lost(_)));
    let mut tcp = client(wish(alice(None)), Transport::Tcp);
    tcp.handle_timeout(ANSWER);
    assert_eq!(over(&mut tcp), End::Silent);
    let mut tcp = client(wish(alice(None)), Transport::Tcp);
    tcp.poll_output();
    tcp.handle_input(&[b'x'; MAX_INPUT + 1], s(1));
    assert!(matches!(over(&mut tcp), End::Lost(_)));
}

#[test]
fn brokers_are_timed_by_a_question_of_20_octets() {
    let asked = echo_request(s(1));
    assert_eq!(asked, b"\xf0\0\0\xf0\0\0\x03\xe8ECHO REQUEST");
    assert!(is_echo_reply(b"\xf0\0\0\xf0\0\0\x03\xe8200 Success\r\n") && is_echo_reply(b"200 OK"));
    assert!(
        !is_echo_reply(&asked) && !is_echo_reply(b"") && !is_echo_reply(b"\xf0\0\0\xf0\0\0\x03\xe8530 x")
    );
}

proptest! {
    #[test]
    fn no_answers_harm_the_client(
        answers in proptest::collection::vec("[ -~\r\n\0]{0,60}|200 Success\r\n|CAPABILITY TUNNEL=V6V4 AUTH=ANONYMOUS\r\n|Content-length: 9\r\n200 x\r\n<a", 1..20)
    ) {
        let mut udp = client(wish(Login::Anonymous), Transport::Udp);
        let mut tcp = client(wish(Login::Anonymous), Transport::Tcp);
        let mut sent = 0;
        for answer in &answers {
            tcp.handle_input(answer.as_bytes(), s(1));
            let header = Header::new(udp.sequence, 0);
            udp.handle_datagram(&header.wrap(answer.as_bytes()), s(1));
            sent += udp.poll_output().len();
        }
        prop_assert!(sent <= MOST_DATAGRAMS as usize + 2);
    }
}
