//! WIDE's dhcp6s replayed: its configuration files, what clients said to it, and its answers octet by octet; the messages
//! that killed it; restarts.

#![expect(clippy::unwrap_used, reason = "a test has nobody to return an error to")]

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::PathBuf;

use sixway::compat::dhcp6sconf::{Duid, ServerConf, Surroundings, load};
use sixway::dhcp6s::plan::{Plan, terms};
use sixway::dhcp6s::shelf::{Change, Lease, Shelf};
use sixway::dhcpv6::codec::{Ia, Opt, Packet, Part};
use sixway::dhcpv6::session::{Origin, Session};

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
        let plan = Plan::new(conf, LINK, ["2001:db8:53:1::/64".parse().unwrap()]);
        let session = Session::new(terms(conf, LINK, &duid), 7);
        Self { session, shelf: Shelf::new(LINK, plan, kept, now), now }
    }

    fn ask(&mut self, message: &[u8]) -> Option<Vec<u8>> {
        self.shelf.next(self.now, None);
        let origin = Origin { tunnel: LINK, user: None, fixed: &[], is_unicast: false };
        self.session.handle(&origin, message, &mut self.shelf).map(|answer| answer.octets)
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
    lab.shelf.configure(Plan::new(&reloaded, LINK, []));
    assert!(!status(&lab.ask_for_one(bind)), "bindings survive a reload");
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
