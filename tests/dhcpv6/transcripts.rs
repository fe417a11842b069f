//! Conversations of real clients with KAME's DHCPv6 server, replayed: octet by octet where both servers say the same, in
//! words where ours differs on purpose; the messages that killed the old one; and single messages that servers disagree on.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use dhcproto::v6::{DhcpOption, MessageType};
use sixway::dhcpv6::codec::{Opt, Packet};
use sixway::dhcpv6::server::parse_duid;

use crate::lab::{Lab, SERVER, octets, words};
use sixway::dhcpv6::session::Origin;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts/dhcpv6")
}

/// Comments with the message below each.
fn messages(name: &str) -> Vec<(String, Vec<u8>)> {
    let text = fs::read_to_string(folder().join(name)).unwrap();
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

const HOST: &str = r#"
[[dhcpv6_host]]
duid      = "00:01:00:01:2b:00:00:02:02:00:00:00:53:02"
prefixes  = ["2001:db8:1111::/48"]
addresses = ["2001:db8:53:1::180"]
"#;
const EVERYTHING: &str = r#"
[dhcpv6]
preferred     = 60
valid         = 90
preference    = 100
dns           = ["2001:db8:53::53", "2001:db8:53::54"]
domains       = ["example.com", "sub.example.net."]
ntp           = ["2001:db8:53::123"]
sip           = ["2001:db8:53::5060"]
sip_domains   = ["sip.example.com"]
nis           = ["2001:db8:53::111"]
nis_domain    = ["nis.example.com"]
nisp          = ["2001:db8:53::112"]
nisp_domain   = ["nisplus.example.com"]
bcmcs         = ["2001:db8:53::b"]
bcmcs_domains = ["bcmcs.example.com"]
refresh_time  = 1800
"#;
const SIMPLE: &str =
    "[dhcpv6]\npreferred = 3600\nvalid = 7200\npreference = 100\ndns = [\"2001:db8:53::53\"]\n";

/// Says what the client says, and compares each answer with the old server's. Returns how many were compared.
fn replay(lab: &mut Lab, name: &str) -> usize {
    let (begin, mut compared) = (lab.now, 0);
    let mut answers: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
    for (comment, message) in messages(name) {
        let seconds: f64 = comment.split("t=").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        lab.set_clock(begin.after(Duration::from_secs_f64(seconds)));
        let number = match Packet::parse(&message).unwrap() {
            Packet::Message(message) => message.xid.to_vec(),
            Packet::Relay(relay) => relay.relayed().unwrap()[1..4].to_vec(),
        };
        if matches!(message[0], 2 | 7 | 13) {
            let ours = answers.get(&number).unwrap_or_else(|| panic!("{name}: no answer to {comment}"));
            assert_eq!(words(ours), words(&message), "{name}: {comment}");
            assert_eq!(*ours, message, "{name}: {comment}");
            compared += 1;
        } else if let Some(answer) = lab.ask(&message) {
            answers.insert(number, answer);
        }
    }
    compared
}

#[test]
fn every_option_of_kame_s_server_is_said_as_it_says_it() {
    let mut lab = Lab::new(&format!("{EVERYTHING}{HOST}"));
    lab.change(|terms| (terms.preferred, terms.valid) = (20, 40));
    assert_eq!(replay(&mut lab, "wide-full-options.hex"), 4);
    assert!(lab.routes.is_empty() && lab.memory.bindings.is_empty(), "all is released");
}

#[test]
fn renew_and_rebind_are_answered_as_kame_s_server_answers_them() {
    let mut lab = Lab::new(&format!("{EVERYTHING}{HOST}"));
    assert!(replay(&mut lab, "wide-renew-rebind.hex") >= 14);
}

#[test]
fn rapid_commit_and_information_are_answered_alike() {
    let rapid = SIMPLE.replace("preference", "rapid_commit = true\npreference");
    assert_eq!(replay(&mut Lab::new(&format!("{rapid}{HOST}")), "wide-rapid-commit.hex"), 3);
    let inform = "[dhcpv6]\ndns = [\"2001:db8:53::53\"]\ndomains = [\"example.com\"]\nrefresh_time = 1800\n";
    assert_eq!(replay(&mut Lab::new(inform), "wide-info-request.hex"), 1);
}

#[test]
fn what_comes_through_a_relay_goes_back_through_it() {
    assert!(replay(&mut Lab::new(&format!("{SIMPLE}{HOST}")), "wide-relay-server-side.hex") >= 2);
}

#[test]
fn what_is_read_is_written_again_octet_by_octet() {
    let mut count = 0;
    for file in fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path()) {
        let text = fs::read_to_string(&file).unwrap();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let message = octets(line.rsplit('|').next().unwrap());
            if let Ok(packet) = Packet::parse(&message) {
                assert_eq!(packet.emit(), message, "{}", file.display());
                count += 1;
            }
        }
    }
    assert!(count > 400, "{count} messages");
}

#[test]
fn a_client_that_can_have_one_of_two_is_given_it() {
    let mut lab = Lab::new(&format!(
        "{SIMPLE}[[dhcpv6_host]]\nduid = \"00:01:00:01:2b:00:00:02:02:00:00:00:53:02\"\nprefixes = [\"2001:db8:1111::/48\"]\n"
    ));
    lab.change(|terms| (terms.preferred, terms.valid) = (u32::MAX, u32::MAX));
    let (_, solicit) = messages("wide-partial-pd-only.hex").swap_remove(0);
    let said = words(&lab.ask(&solicit).unwrap());
    // The old one said NoAddrsAvail of the whole message, and its own client then took nothing.
    let expected = "Advertise NA2[0,0 NoAddrsAvail] pref=100 o23 \
                    PD1[4294967295,4294967295 2001:db8:1111::/48 4294967295/4294967295]";
    assert_eq!(said, expected);
}

#[test]
fn messages_that_killed_the_old_server_are_answered() {
    let text = fs::read_to_string(folder().join("crash-inputs.hex.txt")).unwrap();
    let killers: Vec<Vec<u8>> = text.lines().filter(|l| !l.starts_with('#')).map(octets).collect();
    let bound = "PD1[1800,2880 2001:db8:1111::/48 3600/7200]";
    let expected = [
        "Reply PD1[0,0 NoPrefixAvail]".to_owned(),
        "Reply NA1[0,0 NoAddrsAvail]".to_owned(),
        "Reply NotOnLink".to_owned(),
        format!("Reply {bound}"),
        format!("Reply {bound}"),
        format!("Reply {bound}"),
    ];
    let mut lab = Lab::new(&format!("{SIMPLE}{HOST}"));
    // The client with the host statement holds IA_PD 1.
    assert!(lab.ask(&killers[5]).is_some());
    for (killer, expected) in killers.iter().zip(expected) {
        assert_eq!(words(&lab.ask(killer).unwrap()), expected);
    }
    // The last one again, once a reload has taken the host away: the binding is withdrawn by then.
    lab.change(|terms| terms.reserved.clear());
    let outcome =
        lab.broker.unbind(lab.now, "2001:db8:1111::/48".parse().unwrap(), sixway::broker::End::Withdrawn);
    lab.keep(outcome);
    assert_eq!(words(&lab.ask(&killers[5]).unwrap()), "Reply PD1[0,0 NoPrefixAvail]");
}

#[test]
fn a_client_that_rebinds_after_a_restart_finds_its_binding() {
    let mut lab = Lab::new(
        "[dhcpv6]\n[[pool]]\nprefix = \"2001:db8:53:1::/64\"\naddresses = true\n\
         [[pool]]\nprefix = \"2001:db8:8000::/48\"\nassign = 56\n",
    );
    let (_, rebind) = messages("client-dhcpcd-wide-rebind-after-restart.hex").swap_remove(0);
    let Packet::Message(mut request) = Packet::parse(&rebind).unwrap() else { panic!() };
    request.kind = MessageType::Request;
    request.options.push(Opt::Leaf(DhcpOption::ServerId(parse_duid(SERVER).unwrap())));
    let expected =
        "Reply NA1[1800,2880 2001:db8:53:1::1000 3600/7200] PD2[1800,2880 2001:db8:8000::/56 3600/7200]";
    assert_eq!(words(&lab.ask(&request.emit()).unwrap()), expected);
    lab.restart();
    assert_eq!(lab.routes.len(), 2, "both lead into the tunnel before anybody asks");
    assert_eq!(words(&lab.ask(&rebind).unwrap()), expected);
}

/// Messages that five servers answered differently; what ours says to each, in order. The comments tell why.
#[test]
fn single_messages_are_answered_as_the_table_says() {
    let config = format!(
        "{}{HOST}[[pool]]\nprefix = \"2001:db8:53:1::/64\"\naddresses = true\n",
        SIMPLE.replace("preference", "rapid_commit = true\npreference")
    );
    let mut lab = Lab::new(&config);
    let text = fs::read_to_string(folder().join("probes.txt")).unwrap();
    let mut wrong = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let [name, expected, hex] = line.split('|').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let is_unicast = name.contains("unicast");
        let origin = Origin { is_unicast, ..Origin::of("t") };
        let answer = lab.ask_from(&origin, &octets(hex));
        let said = answer.map_or_else(|| "silence".to_owned(), |answer| words(&answer.octets));
        // An address out of the pool is random: only that it is one is compared.
        let said: Vec<&str> = said
            .split(' ')
            .map(|w| if w.starts_with("2001:db8:53:1:") && w != "2001:db8:53:1::180" { "POOL" } else { w })
            .collect();
        let said = said.join(" ");
        if said != expected {
            wrong.push(format!("{name}|{said}|{hex}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
