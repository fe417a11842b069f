//! Any answers to TSP's client, by UDP and TCP, and any text as gogoc.conf: nothing panics, nothing grows, a session ends
//! once.

use std::net::Ipv4Addr;
use std::time::Duration;

use sixway::compat::gogoc::Gogoc;
use sixway::tsp::client::{Client, Login, Output, Transport, Wish, is_echo_reply};
use sixway::tsp::codec::{Mode, Version};
use sixway::tsp::header::Header;
use sixway::tsp::search::Place;

pub(crate) fn tsp_client(octets: &[u8]) {
    let Some((how, octets)) = octets.split_first() else { return };
    let _either = is_echo_reply(octets);
    let text = String::from_utf8_lossy(octets);
    let _either = Gogoc::parse("gogoc.conf", &text);
    if let Some(place) = Place::parse(&text) {
        assert_eq!(Place::parse(&place.to_string()), Some(place));
    }
    datagrams(octets, *how);
    stream(octets, *how);
}

fn client(how: u8, over: Transport) -> Client {
    let wish = Wish {
        login: Login::Anonymous,
        mode: Mode::V6AnyV4,
        claimed: Ipv4Addr::LOCALHOST,
        keepalive: 30,
        prefix: Some(56),
        dns: Vec::new(),
        place: "broker.example".to_owned(),
        decline: how & 2 == 2,
    };
    let major = if how & 1 == 1 { 1 } else { 2 };
    Client::new(wish, Version { major, minor: 0, patch: 0 }, over, [how; 16], Duration::ZERO)
}

fn ends(client: &mut Client) -> usize {
    let out = client.poll_output();
    out.iter().filter(|output| !matches!(output, Output::Send(_))).count()
}

/// Answers with zeros between them.
fn datagrams(octets: &[u8], how: u8) {
    let mut client = client(how, Transport::Udp);
    let mut over = 0;
    for (n, answer) in (0..).zip(octets.split(|octet| *octet == 0).take(64)) {
        client.handle_datagram(&Header::new(0xf0 + n, 0).wrap(answer), Duration::ZERO);
        over += ends(&mut client);
    }
    assert!(over <= 1, "it ends once");
    client.handle_timeout(Duration::from_secs(1000));
}

fn stream(octets: &[u8], how: u8) {
    let mut client = client(how, Transport::Tcp);
    let mut over = 0;
    for answer in octets.chunks(1 + usize::from(how >> 2)) {
        client.handle_input(answer, Duration::ZERO);
        over += ends(&mut client);
    }
    client.handle_end();
    assert!(over + ends(&mut client) <= 1, "it ends once");
}
