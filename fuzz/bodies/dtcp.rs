//! Any octets to the DTCP server's session and to its client: nothing panics, nothing grows, what is understood is
//! understood again when it is said again.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use sixway::dtcp::client::{Client, Output as Said, Wish};
use sixway::dtcp::codec::{Challenge, Command, Kind, Up};
use sixway::dtcp::session::{Given, LOGIN_TIME, Output, Session, TUNNEL_TIME, Terms};

pub(crate) fn dtcp(octets: &[u8]) {
    let Some((how, octets)) = octets.split_first() else { return };
    line(octets, how & 1 == 1);
    server(octets, *how);
    client(octets);
}

fn line(octets: &[u8], udp: bool) {
    let command = Command::parse(octets, udp);
    let mut said = Vec::new();
    command.emit(&mut said);
    if !said.is_empty() {
        assert_eq!(Command::parse(&said, udp), command);
    }
    for kind in [Kind::TunnelOnly, Kind::Host, Kind::Network] {
        let _either = Up::parse(&String::from_utf8_lossy(octets), kind);
    }
}

fn server(octets: &[u8], how: u8) {
    let terms = Terms {
        challenge: Challenge::new([how; 16]),
        client: Ipv4Addr::LOCALHOST,
        server: Ipv4Addr::LOCALHOST,
        host_prefix: Some("3ffe::".into()),
        udp: how & 1 == 1,
        login_time: LOGIN_TIME,
        tunnel_time: TUNNEL_TIME,
    };
    let mut session = Session::new(terms, Duration::ZERO);
    let (mut held, mut over) = (false, false);
    for (n, chunk) in octets.chunks(1 + usize::from(how >> 4)).enumerate() {
        let now = Duration::from_millis(n as u64);
        session.handle_input(chunk, now);
        while session.has_output() {
            for output in session.poll_output() {
                assert!(!over, "nothing comes after the end");
                match output {
                    Output::Send(said) => assert!(said.ends_with(b"\r\n")),
                    Output::Prove(_) => session.handle_proof(Ok(how & 2 == 2), now),
                    Output::Grant(_) => {
                        assert!(!held, "one tunnel a connection");
                        held = true;
                        session.handle_grant(Ok(Given::default()), now);
                    }
                    Output::Release => {
                        assert!(held, "what is given back was had");
                        held = false;
                    }
                    Output::Finish => over = true,
                }
            }
        }
    }
    session.handle_end();
    let given_back = session.poll_output().contains(&Output::Release);
    assert_eq!(given_back, held, "no tunnel outlives its connection");
}

fn client(octets: &[u8]) {
    let (user, kind) = ("foo".to_owned(), Kind::Network);
    let wish = Wish { user, secret: b"bar".to_vec().into(), kind, udp: None, behind_nat: true };
    let mut client = Client::new(wish, IpAddr::V4(Ipv4Addr::LOCALHOST), Duration::ZERO);
    let mut ends = 0;
    for chunk in octets.chunks(7) {
        client.handle_input(chunk, Duration::ZERO);
        ends += client.poll_output().iter().filter(|output| matches!(output, Said::Over(_))).count();
    }
    assert!(ends <= 1, "it ends once");
}
