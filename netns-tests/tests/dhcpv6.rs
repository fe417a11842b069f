//! Prefixes and addresses that clients ask for inside a tunnel by DHCPv6: with a client of our own, and with a real one where
//! it is installed.
//!
//! ```text
//!   C ──tunnel "c" by protocol 41── S (sixway, [dhcpv6]) ──IPv6── U
//! ```

use std::net::Ipv6Addr;
use std::path::Path;
use std::time::Duration;

use dhcproto::v6::{DhcpOption, MessageType, Status};
use netns_tests::dtcp::{Dtcp, popauth};
use netns_tests::{
    C4, C4_OTHER, Client, Ends, PATIENCE, PYTHON, ROUTER6, Rig, Router, S4, U6, device, pings, wait_for,
};
use nix::sys::signal::Signal;
use sixway::dhcpv6::codec::{Ia, IaKind, Message, Opt, Packet, Part, Value};
use sixway::dhcpv6::query::{Query, Sought};
use sixway::dhcpv6::requestor::{Found, Heard, Question};
use sixway_dataplane::update::Ipv6Prefix;

/// What the client calls itself on the link.
const LINK_LOCAL: &str = "fe80::a47:2";
const ALL_SERVERS: &str = "ff02::1:2";
/// What a client in a second tunnel calls itself.
const OTHER_LINK_LOCAL: &str = "fe80::a47:42";

fn config(rig: &Rig, more: &str) -> String {
    let store = rig.lab.path("store.db");
    let tables = format!(
        "[store]\npath = \"{}\"\n[dhcpv6]\npreferred = 60\nvalid = 90\ndns = [\"{U6}\"]\n\
         [[pool]]\nprefix = \"fd00:2:4000::/36\"\nassign = 56\n\
         [[pool]]\nprefix = \"fd00:2:50::/64\"\naddresses = true\n{more}",
        store.display()
    );
    let tunnel = format!(
        "[[tunnel]]\nname = \"c\"\nencap = \"proto41\"\nremote = \"{C4}\"\nra = {{ managed = true }}\n"
    );
    Rig::server_config("", &format!("{tunnel}{tables}"))
}

/// A DHCPv6 client in a tunnel.
struct Asker {
    peer: Client,
    inner: &'static str,
    duid: Vec<u8>,
    server: Vec<u8>,
}

impl Asker {
    fn new(rig: &Rig) -> Self {
        Self::at(rig, C4, LINK_LOCAL, 2)
    }

    /// In the tunnel from `outer`, with these names.
    fn at(rig: &Rig, outer: &str, inner: &'static str, duid: u8) -> Self {
        let duid = vec![0, 3, 0, 1, 2, 0, 0, 0, 0x53, duid];
        Self { peer: Client::proto41(&rig.c, outer, inner), inner, duid, server: Vec::new() }
    }

    /// Sends a message from this port to all servers; returns what is sent back there and `read` takes.
    fn exchange<T>(&self, port: u16, octets: &[u8], read: impl Fn(&[u8]) -> Option<T>) -> Option<T> {
        self.peer.send(&Ends::new(self.inner, ALL_SERVERS).udp(port, 547, octets));
        let ports = [&547_u16.to_be_bytes()[..], &port.to_be_bytes()].concat();
        self.peer.wait(PATIENCE, |got| {
            assert!(got.checksum_ok());
            let is_answer = got.next == 17 && got.payload.get(..4) == Some(&ports[..]);
            let read = got.payload.get(8..).and_then(&read);
            read.filter(|_| is_answer && got.dst.to_string() == self.inner)
        })
    }

    /// Says a message with one identity association of each kind that holds these values; returns the answer.
    fn say(&mut self, kind: MessageType, values: &[Ipv6Prefix]) -> Option<Message> {
        let mut options = vec![Opt::Leaf(DhcpOption::ClientId(self.duid.clone()))];
        if !matches!(kind, MessageType::Solicit | MessageType::Rebind) {
            options.push(Opt::Leaf(DhcpOption::ServerId(self.server.clone())));
        }
        for (ia, is_one) in [(IaKind::Address, true), (IaKind::Prefix, false)] {
            let own = values.iter().filter(|p| (p.prefix_len() == 128) == is_one);
            let parts = own.map(|p| Part::Value(value(*p))).collect();
            options.push(Opt::Ia(Ia { kind: ia, iaid: 7, t1: 0, t2: 0, parts }));
        }
        let xid = [1, 2, u8::from(kind)];
        let message = Message { kind, xid, options }.emit();
        self.exchange(546, &message, |octets| match Packet::parse(octets) {
            Ok(Packet::Message(answer)) if answer.xid == xid => Some(answer),
            _ => None,
        })
    }

    /// Four messages; returns what was given: the address, then the prefix.
    #[track_caller]
    fn ask(&mut self) -> (Ipv6Addr, Ipv6Prefix) {
        let Some(offer) = self.say(MessageType::Solicit, &[]) else { panic!("no Advertise") };
        self.server = offer.server().unwrap_or_default().to_vec();
        let Some(reply) = self.say(MessageType::Request, &given(&offer)) else { panic!("no Reply") };
        assert_eq!((offer.kind, reply.kind), (MessageType::Advertise, MessageType::Reply));
        assert_eq!(given(&offer), given(&reply), "what was offered is given");
        let [address, prefix] = given(&reply)[..] else { panic!("given: {:?}", given(&reply)) };
        (address.addr(), prefix)
    }

    /// Asks for information alone, and lets itself be told of changes.
    #[track_caller]
    fn inform(&self) {
        let client = DhcpOption::ClientId(vec![0, 3, 0, 1, 9]);
        let options = vec![Opt::Leaf(client), Opt::Leaf(DhcpOption::ReconfAccept)];
        let message = Message { kind: MessageType::InformationRequest, xid: [9; 3], options }.emit();
        self.peer.send(&Ends::new(LINK_LOCAL, ALL_SERVERS).udp(546, 547, &message));
    }

    /// Whether an echo request from this address reaches the host behind the router and is answered.
    fn reaches(&self, from: Ipv6Addr) -> bool {
        let Ok(host) = U6.parse() else { return false };
        self.peer.send(&Ends::of(from, host).echo_request(77, 1, 8));
        self.peer
            .wait(Duration::from_millis(500), |got| {
                (got.dst == from && got.echo() == Some((77, 1))).then_some(())
            })
            .is_some()
    }
}

fn value(prefix: Ipv6Prefix) -> Value {
    Value { addr: prefix.addr(), len: prefix.prefix_len(), preferred: 0, valid: 0, options: Vec::new() }
}

fn given(answer: &Message) -> Vec<Ipv6Prefix> {
    let values = answer.ias().flat_map(|ia| ia.values().filter(|v| v.valid > 0));
    values.filter_map(|v| Ipv6Prefix::new(v.addr, v.len)).collect()
}

/// The `n`th address in a prefix.
fn host(prefix: Ipv6Prefix, n: u128) -> Ipv6Addr {
    Ipv6Addr::from(prefix.bits() + n)
}

fn bindings(server: &Router) -> u64 {
    server.status()["broker"]["bindings"].as_u64().unwrap_or(99)
}

fn listeners(server: &Router, expected: u64) {
    wait_for("who is to be told", PATIENCE, || {
        (server.status()["dhcpv6"]["listeners"] == expected).then_some(())
    });
}

/// RFC: X4, V28, V32, V38, V39 (RFC 8415 sections 7.2 and 18.3, RFC 8987 section 4)
#[test]
fn what_is_asked_for_is_routed_and_outlives_a_crash() {
    let Some(rig) = Rig::new_or_skip("DHCPv6: four messages, traffic, a crash, Rebind, Release") else {
        return;
    };
    let server = Router::start(&rig.lab, &rig.s, &config(&rig, ""));
    let mut client = Asker::new(&rig);
    let (address, prefix) = client.ask();
    println!("    given: {address}, {prefix}");
    let mine = host(prefix, 0x1234_0000_0000_0001);
    assert!(client.reaches(mine) && client.reaches(address));
    {
        let serving = client.peer.serve();
        assert_eq!(pings(&rig.u, &mine.to_string(), 3, ""), 3);
        assert_eq!(serving.answered(), 3);
    }
    assert_eq!(server.tunnel("c")["prefixes"].as_array().map(Vec::len), Some(2));
    // What nobody was given is neither sent from nor to.
    let next = host(prefix, 1 << 72 | 1);
    server.expect_drops("source_not_in_prefix", 1, || assert!(!client.reaches(next)));
    server.expect_drops("unassigned", 1, || {
        assert!(!rig.u.attempt(&format!("ping -n -c 1 -W 1 {next}")).ok);
    });
    server.crash();

    let server = Router::start(&rig.lab, &rig.s, &config(&rig, ""));
    assert!(client.reaches(mine) && client.reaches(address), "before the client says anything");
    let values = [Ipv6Prefix::host(address), prefix];
    let before = client.server.clone();
    let rebound = client.say(MessageType::Rebind, &values).map(|answer| given(&answer));
    assert_eq!(rebound.as_deref(), Some(&values[..]));
    let released = client.say(MessageType::Release, &values);
    assert!(released.is_some_and(|answer| answer.server() == Some(&before[..])), "the same server as before");
    assert_eq!(bindings(&server), 0);
    server.expect_drops("source_not_in_prefix", 2, || {
        assert!(!client.reaches(mine) && !client.reaches(address))
    });
    assert_eq!(server.status()["dhcpv6"]["release"], 1);
    server.stop();
}

#[test]
fn what_the_configuration_takes_back_is_gone() {
    let Some(rig) = Rig::new_or_skip("DHCPv6: a reload, a kick") else { return };
    let mine = "[[dhcpv6_host]]\nduid = \"00:03:00:01:02:00:00:00:53:02\"\nprefixes = [\"fd00:2:9::/48\"]\n";
    let server = Router::start(&rig.lab, &rig.s, &config(&rig, mine));
    let mut client = Asker::new(&rig);
    let (address, prefix) = client.ask();
    assert_eq!(prefix.to_string(), "fd00:2:9::/48");
    assert!(rig.s.run("ip -6 route").contains("fd00:2:9::/48"));
    assert!(client.reaches(host(prefix, 1)));
    // Nothing changes: nothing is taken.
    assert!(server.reload(&config(&rig, mine)).ok);
    assert!(client.reaches(host(prefix, 1)));
    assert!(server.reload(&config(&rig, "")).ok);
    wait_for("one binding to go", PATIENCE, || (bindings(&server) == 1).then_some(()));
    wait_for("its route to go", PATIENCE, || (!client.reaches(host(prefix, 1))).then_some(()));
    assert!(client.reaches(address));
    assert!(!rig.s.run("ip -6 route").contains("fd00:2:9::/48"));
    let kicked = rig.s.attempt(&format!(
        "{} kick --socket {} {address}/128",
        netns_tests::program().display(),
        server.socket().display()
    ));
    assert!(kicked.ok, "{}", kicked.text);
    wait_for("the other to go", PATIENCE, || (bindings(&server) == 0).then_some(()));
    wait_for("its route to go", PATIENCE, || (!client.reaches(address)).then_some(()));
    // Who is to be told of changes is forgotten with its tunnel, and not before.
    client.inform();
    listeners(&server, 1);
    assert!(server.reload(&config(&rig, mine)).ok);
    listeners(&server, 1);
    assert!(server.reload(&config(&rig, "").replace("name = \"c\"", "name = \"d\"")).ok);
    listeners(&server, 0);
    server.stop();
}

#[test]
fn a_leased_tunnel_s_client_is_known_by_its_account() {
    let Some(rig) = Rig::new_or_skip("DHCPv6 in a tunnel leased by DTCP") else { return };
    let secrets = rig.lab.write("pop.auth", &popauth(&[("foo", "bar")]));
    let dtcp = format!("[dtcp]\npopauth = \"{}\"\n", secrets.display());
    let text = config(&rig, &dtcp).replace(&format!("remote = \"{C4}\""), "remote = \"10.71.0.77\"");
    let server = Router::start(&rig.lab, &rig.s, &text);
    let mut line = Dtcp::connect(&rig.c, C4, S4);
    assert_eq!(line.tunnel("foo", "bar", "tunnelonly"), format!("+OK {C4} {S4}"));
    let mut client = Asker::new(&rig);
    let (_, prefix) = client.ask();
    assert!(client.reaches(host(prefix, 1)));
    assert_eq!(bindings(&server), 2);
    client.inform();
    listeners(&server, 1);
    drop(line);
    wait_for("the bindings to go with the tunnel", PATIENCE, || (bindings(&server) == 0).then_some(()));
    wait_for("the route to go", PATIENCE, || (!client.reaches(host(prefix, 1))).then_some(()));
    listeners(&server, 0);
    // The same account is given the same prefix again.
    let mut line = Dtcp::connect(&rig.c, C4, S4);
    assert_eq!(line.tunnel("foo", "bar", "tunnelonly"), format!("+OK {C4} {S4}"));
    assert_eq!(client.ask().1, prefix);
    drop(line);
    server.stop();
}

#[test]
fn a_real_client_s_prefix_is_routed() {
    let Some(rig) = Rig::new_or_skip("DHCPv6: wide dhcp6c on a TUN device") else { return };
    let program = Path::new("/usr/sbin/dhcp6c");
    if !program.exists() || !Path::new(PYTHON).exists() {
        netns_tests::skipped(format_args!(
            "{} (wide-dhcpv6-client) or {PYTHON} is not installed",
            program.display()
        ));
        return;
    }
    let server = Router::start(&rig.lab, &rig.s, &config(&rig, ""));
    let device = device(&rig.lab, &rig.c, "sixc", C4, S4);
    rig.c.run("ip link add lan0 type veth peer name lan1; ip link set lan0 up; ip link set lan1 up");
    let conf = "interface sixc { send ia-pd 1, ia-na 2; request domain-name-servers; };\n\
                id-assoc pd 1 { prefix-interface lan0 { sla-id 1; sla-len 8; }; };\nid-assoc na 2 { };\n";
    let conf = rig.lab.write("dhcp6c.conf", conf);
    let log = rig.lab.path("dhcp6c.log");
    let script = rig.lab.write("dhcp6c.sh", &format!(
        "mount -t tmpfs none /var/lib/dhcpv6 2>/dev/null || {{ mkdir -p /var/lib/dhcpv6; }}\n\
         printf '\\016\\000\\000\\001\\000\\001\\053\\000\\000\\002\\002\\000\\000\\000\\123\\002' > /var/lib/dhcpv6/dhcp6c_duid\n\
         exec {} -f -D -c {} -p {} -k /dev/null sixc\n",
        program.display(), conf.display(), rig.lab.path("dhcp6c.pid").display()
    ));
    let job = rig.c.spawn(Path::new("/usr/bin/unshare"), &["-m", "sh", &script.to_string_lossy()], &log);
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    let address =
        wait_for(&format!("an address on lan0: {}", log.display()), Duration::from_secs(20), || {
            let shown = rig.c.run("ip -6 -o addr show dev lan0 scope global");
            shown
                .split_whitespace()
                .find(|word| word.starts_with("fd00:2:4"))
                .map(|word| word.split('/').next().unwrap_or(word).to_owned())
        });
    println!("    lan0 has {address}");
    rig.c.run("ip -6 route replace default dev sixc");
    assert_eq!(pings(&rig.c, U6, 3, &format!("-I {address}")), 3, "{}", said());
    assert_eq!(pings(&rig.u, &address, 3, ""), 3);
    assert_eq!(bindings(&server), 2);
    server.crash();
    let server = Router::start(&rig.lab, &rig.s, &config(&rig, ""));
    assert_eq!(pings(&rig.u, &address, 3, ""), 3, "after a crash, before the client has said anything");
    // It gives all back when it is told to end.
    job.end(Signal::SIGTERM, Duration::from_secs(10));
    wait_for(&format!("both to be released: {}", said()), PATIENCE, || {
        (bindings(&server) == 0).then_some(())
    });
    device.end(Signal::SIGKILL, PATIENCE);
    server.stop();
}

/// The configuration with a second tunnel, and more keys in `[dhcpv6]`.
fn two_tunnels(rig: &Rig, keys: &str) -> String {
    let other = format!(
        "[[tunnel]]\nname = \"d\"\nencap = \"proto41\"\nremote = \"{C4_OTHER}\"\nprefixes = [\"fd00:2:66::/64\"]\n"
    );
    config(rig, &other).replace("[dhcpv6]\n", &format!("[dhcpv6]\n{keys}\n"))
}

/// RFC: V14 (RFC 8415 section 18.3.8)
#[test]
fn what_is_declined_in_one_tunnel_is_given_in_no_other_for_a_while() {
    let Some(rig) = Rig::new_or_skip("DHCPv6: an address declined in one tunnel rests for all of them")
    else {
        return;
    };
    const RESTS: Duration = Duration::from_secs(6);
    let text = two_tunnels(&rig, &format!("decline_time = {}", RESTS.as_secs()));
    let server = Router::start(&rig.lab, &rig.s, &text);
    let mut one = Asker::new(&rig);
    let mut two = Asker::at(&rig, C4_OTHER, OTHER_LINK_LOCAL, 3);
    let (address, _) = one.ask();
    two.ask();
    // What the other would like, it gets as long as nobody else has had trouble with it.
    let wish = |two: &mut Asker, address: Ipv6Addr| {
        let had = two.say(MessageType::Renew, &[]).map(|answer| given(&answer)).unwrap_or_default();
        assert!(two.say(MessageType::Release, &had).is_some());
        let reply = two.say(MessageType::Request, &[Ipv6Prefix::host(address)]);
        let given = reply.map(|reply| given(&reply)).unwrap_or_default();
        given.into_iter().find(|prefix| prefix.prefix_len() == 128).map(Ipv6Prefix::addr)
    };
    let free: Ipv6Addr = "fd00:2:50::1234:5678:9abc".parse().unwrap_or(Ipv6Addr::UNSPECIFIED);
    assert_eq!(wish(&mut two, free), Some(free));
    assert_ne!(wish(&mut two, address), Some(address), "it is the other tunnel's");
    let declined = std::time::Instant::now();
    assert!(one.say(MessageType::Decline, &[Ipv6Prefix::host(address)]).is_some());
    let other = wish(&mut two, address);
    assert!(other.is_some() && other != Some(address), "{other:?}");
    // Nor after a crash.
    server.crash();
    let server = Router::start(&rig.lab, &rig.s, &text);
    let other = wish(&mut two, address);
    assert!(other.is_some() && other != Some(address), "{other:?}");
    assert!(declined.elapsed() < RESTS, "this machine was too slow to tell");
    std::thread::sleep(RESTS.saturating_sub(declined.elapsed()) + Duration::from_millis(1500));
    assert_eq!(wish(&mut two, address), Some(address), "it has rested");
    assert!(two.reaches(address) && !one.reaches(address));
    server.stop();
}

/// RFC: V49 (RFC 5007 sections 4.4.1 and 5)
#[test]
fn who_has_what_is_told_in_a_tunnel_to_those_who_may_ask() {
    let Some(rig) = Rig::new_or_skip("DHCPv6: lease queries inside tunnels") else { return };
    let keys = format!("lease_query = [\"{OTHER_LINK_LOCAL}\", \"fd00:2:66::9\", \"::1\"]");
    let server = Router::start(&rig.lab, &rig.s, &two_tunnels(&rig, &keys));
    let mut client = Asker::new(&rig);
    let (address, prefix) = client.ask();
    let station = Asker::at(&rig, C4_OTHER, OTHER_LINK_LOCAL, 3);
    let ask = |who: &Asker, sought: Sought| -> Option<Heard> {
        let query = Query { sought, link: None, wanted: vec![23] };
        let question = Question { duid: who.duid.clone(), xid: [9, 9, 9], query };
        who.exchange(40_547, &question.message(), |octets| question.hear(octets))
    };
    for sought in
        [Sought::Address(address), Sought::Address(host(prefix, 0x1234)), Sought::Client(client.duid.clone())]
    {
        let Some(heard) = ask(&station, sought.clone()) else { panic!("no answer about {sought:?}") };
        let Found::Client(data) = heard.found else { panic!("{heard:?}") };
        let mut values: Vec<_> = data.values.iter().filter_map(|v| Ipv6Prefix::new(v.addr, v.len)).collect();
        values.sort_unstable();
        let mut both = [Ipv6Prefix::host(address), prefix];
        both.sort_unstable();
        assert_eq!((data.client, values.as_slice()), (client.duid.clone(), &both[..]));
        assert!(data.heard.is_some_and(|seconds| seconds < 30) && data.options.len() == 1);
    }
    // To the router's own address, which its kernel has; and on its host.
    let query = Query { sought: Sought::Address(address), link: None, wanted: Vec::new() };
    let question = Question { duid: vec![0, 4, 1], xid: [9, 9, 8], query };
    let ends = Ends::new("fd00:2:66::9", ROUTER6);
    station.peer.send(&ends.udp(40_548, 547, &question.message()));
    let heard = station.peer.wait(PATIENCE, |got| {
        let is_back =
            got.next == 17 && got.src.to_string() == ROUTER6 && got.dst.to_string() == "fd00:2:66::9";
        got.payload.get(8..).filter(|_| is_back).and_then(|octets| question.hear(octets))
    });
    assert!(matches!(heard, Some(Heard { found: Found::Client(_), .. })), "{heard:?}");
    let said = rig.s.run(&format!("{} lease-query {address}", netns_tests::program().display()));
    assert!(said.contains(&prefix.to_string()), "{said}");
    let refused = ask(&client, Sought::Address(address)).map(|heard| heard.status.0);
    assert_eq!(refused, Some(Status::NotAllowed));
    let counts = server.status()["dhcpv6"].clone();
    assert_eq!((&counts["lease_query"], &counts["lease_query_not_allowed"]), (&5.into(), &1.into()));
    // What the configuration no longer says, nobody is told; the port is free again.
    assert!(rig.s.run("ss -lun sport = :547 | tail -n +2").contains(":547"));
    assert!(server.reload(&two_tunnels(&rig, "")).ok);
    let done = rig.s.attempt(&format!("{} lease-query {address} --wait 1", netns_tests::program().display()));
    assert!(!done.ok && done.text.contains("has not answered"), "{}", done.text);
    assert_eq!(rig.s.run("ss -lun sport = :547 | tail -n +2"), "");
    server.stop();
}
