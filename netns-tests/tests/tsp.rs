//! Tunnels that clients ask for by TSP, as gogoc does: by protocol 41, in UDP through a NAT, over restarts and to other
//! brokers.
//!
//! ```text
//!   C alice ──TSP──► S ──IPv6── U                    I alice ──► C masquerades ──TSP──► S ──IPv6── U
//! ```

use std::thread;
use std::time::{Duration, Instant};

use netns_tests::tsp::{Login, Offer, Tsp, framed, server};
use netns_tests::{
    C4, C4_OTHER, Client, Ends, PATIENCE, Rig, Router, S4, Space, U6, icmp, pings, program, wait_for,
};

const ALICE: Login<'static> = Login { user: "alice", secret: "wonderland" };
const BOB: Login<'static> = Login { user: "bob", secret: "builder" };
/// Where the client is behind the NAT.
const I4: &str = "192.168.7.2";

/// A server with users alice and bob; more keys for `[tsp]`.
fn broker(rig: &Rig, keys: &str) -> Router {
    let store = rig.lab.path("store.db");
    for Login { user, secret } in [ALICE, BOB] {
        let file = rig.lab.write("secret", secret);
        rig.s.run(&format!(
            "{} user --store {} add {user} --secret-file {}",
            program().display(),
            store.display(),
            file.display()
        ));
    }
    Router::start(&rig.lab, &rig.s, &config(rig, keys))
}

fn config(rig: &Rig, keys: &str) -> String {
    let store = rig.lab.path("store.db");
    let tables = format!(
        "[store]\npath = \"{}\"\n[[pool]]\nprefix = \"fd00:2:f::/64\"\npairs = true\n\
         [[pool]]\nprefix = \"fd00:2:4000::/36\"\nassign = 56\n[tsp]\nrealm = \"broker.example\"\n{keys}\n",
        store.display()
    );
    Rig::server_config("", &tables)
}

/// A namespace behind `C`, which masquerades what comes from there.
fn behind_nat(rig: &mut Rig) -> Space {
    let inside = rig.lab.space("I");
    rig.lab.veth(&inside, "i0", &rig.c, "c1");
    inside.run(&format!("ip addr add {I4}/24 dev i0; ip route add default via 192.168.7.1"));
    rig.c.run("ip addr add 192.168.7.1/24 dev c1; sysctl -qw net.ipv4.ip_forward=1");
    masquerade(rig, "20000-20999");
    inside
}

/// From now on new flows leave from these ports.
fn masquerade(rig: &Rig, ports: &str) {
    rig.c.attempt("nft delete table ip nat");
    rig.c
        .run("nft add table ip nat; nft 'add chain ip nat post { type nat hook postrouting priority 100; }'");
    rig.c.run(&format!("nft add rule ip nat post oifname c0 meta l4proto udp masquerade to :{ports}"));
    rig.c.run("nft add rule ip nat post oifname c0 masquerade");
}

fn log_in(tsp: &mut Tsp, who: Login<'_>) {
    let capabilities = tsp.log_in(who, S4);
    assert!(
        capabilities.starts_with("CAPABILITY TUNNEL=V6V4 TUNNEL=V6UDPV4 AUTH=DIGEST-MD5"),
        "{capabilities}"
    );
}

/// A tunnel over UDP for alice, and her end of it.
fn tunnel(space: &Space, from: &str, kind: &str, claimed: &str) -> (Tsp, Offer, Client) {
    let mut tsp = Tsp::udp(space, from, &server());
    log_in(&mut tsp, ALICE);
    let offer = tsp.create(kind, claimed, Some(56), 30);
    assert_eq!(offer.code, 200, "{}", offer.text);
    tsp.accept();
    let peer = Client::over(tsp.socket(), &offer.client6);
    (tsp, offer, peer)
}

/// Our end answers; a moment after the grant the kernel may not have its address ready.
fn keeps_alive(peer: &Client, offer: &Offer) {
    wait_for("a keepalive", PATIENCE, || peer.ping(&offer.server6, Duration::from_millis(500)));
}

/// Both ways, and to our end of the tunnel.
fn carries(rig: &Rig, peer: &Client, offer: &Offer) {
    keeps_alive(peer, offer);
    assert!(peer.ping(U6, PATIENCE).is_some(), "the world is there");
    let serving = peer.serve();
    assert_eq!(pings(&rig.u, &offer.client6, 3, ""), 3, "and sees the client");
    drop(serving);
}

fn tunnels(server: &Router) -> u64 {
    server.status()["tunnels_total"].as_u64().unwrap_or(99)
}

fn count(server: &Router, name: &str) -> u64 {
    server.status()["tsp"][name].as_u64().unwrap_or(u64::MAX)
}

#[test]
fn a_network_by_protocol_41_over_tcp() {
    let Some(rig) = Rig::new_or_skip("TSP: v6v4 with a prefix, over TCP") else { return };
    let server = broker(&rig, "dns = [\"fd00:2:4000::53\"]\ndomain = \"broker.example\"");
    let mut tsp = Tsp::tcp(&rig.c, &netns_tests::tsp::server());
    log_in(&mut tsp, ALICE);
    let offer = tsp.create("v6v4", C4, Some(56), 30);
    assert_eq!((offer.code, offer.kind.as_str()), (200, "v6v4"), "{}", offer.text);
    assert!(
        offer.text.contains("alice.broker.example")
            && offer.text.contains("fd00:0002:4000:0000:0000:0000:0000:0053")
    );
    tsp.accept();
    let peer = Client::proto41(&rig.c, C4, &offer.client6);
    carries(&rig, &peer, &offer);
    let network = offer.prefix.clone().unwrap_or_default();
    assert!(network.ends_with("::/56"), "{network}");
    let behind = Client::proto41(&rig.c, C4, &network.replace("::/56", "::7"));
    assert!(behind.ping(U6, PATIENCE).is_some(), "hosts of the network");
    // A fresh interface solicits; nobody listens for an advertisement there.
    let solicitation = Ends::new("fe80::2", "ff02::2").hops(255);
    peer.send(&solicitation.icmp(icmp::ROUTER_SOLICITATION, [0; 4], &[]));
    let advertised = peer.wait(Duration::from_secs(1), |got| {
        (got.icmp_type() == Some(icmp::ROUTER_ADVERTISEMENT)).then_some(())
    });
    assert_eq!(advertised, None);
    server.expect_drops("source_not_in_prefix", 1, || {
        peer.send(&Ends::new("fd00:2:4fff::1", U6).echo_request(1, 1, 8))
    });
    // What some clients do at once, and others after days.
    drop(tsp);
    thread::sleep(Duration::from_millis(500));
    assert!(peer.ping(U6, PATIENCE).is_some(), "the end of the connection means nothing");
    assert_eq!((tunnels(&server), count(&server, "taken")), (1, 1));
    server.stop();
}

/// RFC: D11 (RFC 5572 section 4.4)
#[test]
fn through_a_nat_in_udp_and_the_nat_forgets() {
    let Some(mut rig) = Rig::new_or_skip("TSP: v6anyv4 behind a NAT, which gives another port later") else {
        return;
    };
    let inside = behind_nat(&mut rig);
    let server = broker(&rig, "");
    let (_tsp, offer, peer) = tunnel(&inside, &format!("{I4}:0"), "v6anyv4", I4);
    assert_eq!(offer.kind, "v6udpv4", "there is a NAT");
    carries(&rig, &peer, &offer);
    let port = |server: &Router| {
        let at = server.tunnel("alice@tsp")["remote"].as_str().unwrap_or_default().to_owned();
        at.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok()).unwrap_or(0)
    };
    assert!((20_000..21_000).contains(&port(&server)), "{}", server.tunnel("alice@tsp"));
    rig.c.run(
        "sysctl -qw net.netfilter.nf_conntrack_udp_timeout=1 net.netfilter.nf_conntrack_udp_timeout_stream=1",
    );
    // The old flow gets the short time with its next packet.
    assert!(peer.ping(U6, PATIENCE).is_some());
    masquerade(&rig, "30000-30999");
    thread::sleep(Duration::from_millis(3500));
    wait_for("the tunnel to follow", Duration::from_secs(15), || peer.ping(U6, Duration::from_millis(500)));
    assert!((30_000..31_000).contains(&port(&server)), "{}", server.tunnel("alice@tsp"));
    carries(&rig, &peer, &offer);
    assert_eq!(count(&server, "granted"), 1, "nobody has asked again");
    server.stop();
}

#[test]
fn the_type_is_chosen_and_the_addresses_stay() {
    let Some(mut rig) =
        Rig::new_or_skip("TSP: v6anyv4 without and with a NAT; the same addresses everywhere")
    else {
        return;
    };
    let inside = behind_nat(&mut rig);
    let server = broker(&rig, "");
    let (mut tsp, direct, _) = tunnel(&rig.c, &format!("{C4}:0"), "v6anyv4", C4);
    assert_eq!(direct.kind, "v6v4", "there is no NAT");
    let peer = Client::proto41(&rig.c, C4, &direct.client6);
    carries(&rig, &peer, &direct);
    let (_second, moved, behind) = tunnel(&inside, &format!("{I4}:0"), "v6anyv4", I4);
    assert_eq!(moved.kind, "v6udpv4");
    let same = |offer: &Offer| (offer.client6.clone(), offer.server6.clone(), offer.prefix.clone());
    assert_eq!(same(&moved), same(&direct), "the same from wherever she comes");
    carries(&rig, &behind, &moved);
    assert_eq!(tunnels(&server), 1);
    assert_eq!(peer.ping(U6, Duration::from_millis(500)), None, "the newest session has the tunnel");
    // The same socket again, as after a keepalive that was missed.
    tsp.begin_anew();
    log_in(&mut tsp, ALICE);
    let again = tsp.create("v6udpv4", C4, Some(56), 30);
    assert_eq!((again.kind.as_str(), same(&again)), ("v6udpv4", same(&direct)));
    tsp.accept();
    carries(&rig, &Client::over(tsp.socket(), &again.client6), &again);
    server.stop();
}

#[test]
fn tunnels_outlive_the_broker() {
    let Some(rig) = Rig::new_or_skip("TSP: the broker crashes under live tunnels") else { return };
    let server = broker(&rig, "");
    let (_tsp, offer, peer) = tunnel(&rig.c, &format!("{C4}:0"), "v6udpv4", C4);
    let mut second = Tsp::tcp(&rig.c, &netns_tests::tsp::server());
    log_in(&mut second, BOB);
    let bobs = second.create("v6v4", C4, None, 0);
    second.accept();
    let bob = Client::proto41(&rig.c, C4, &bobs.client6);
    carries(&rig, &peer, &offer);
    carries(&rig, &bob, &bobs);
    server.crash();
    let server = Router::start(&rig.lab, &rig.s, &config(&rig, ""));
    carries(&rig, &peer, &offer);
    carries(&rig, &bob, &bobs);
    assert_eq!((tunnels(&server), count(&server, "granted")), (2, 0), "nobody has asked again");
    // A session that the new process knows nothing of.
    let mut stale = Tsp::udp(&rig.c, &format!("{C4_OTHER}:0"), &netns_tests::tsp::server());
    assert!(stale.ask(&framed("<tunnel action=\"accept\"></tunnel>\r\n")).contains("310 "));
    server.stop();
}

#[test]
fn two_clients_behind_one_nat_have_a_tunnel_each() {
    let Some(mut rig) = Rig::new_or_skip("TSP: two clients behind one NAT, which forgets both") else {
        return;
    };
    let inside = behind_nat(&mut rig);
    let server = broker(&rig, "");
    let (_alices, alice, first) = tunnel(&inside, &format!("{I4}:0"), "v6anyv4", I4);
    let mut bobs = Tsp::udp(&inside, &format!("{I4}:0"), &netns_tests::tsp::server());
    log_in(&mut bobs, BOB);
    let bob = bobs.create("v6anyv4", I4, Some(56), 30);
    bobs.accept();
    let second = Client::over(bobs.socket(), &bob.client6);
    assert_eq!([alice.kind.as_str(), &bob.kind], ["v6udpv4"; 2]);
    assert!(alice.client6 != bob.client6 && alice.prefix != bob.prefix);
    let both = || [(&first, &alice), (&second, &bob)].map(|(peer, offer)| carries(&rig, peer, offer));
    both();
    let serving = second.serve();
    assert!(first.ping(&bob.client6, PATIENCE).is_some(), "and they see each other");
    drop(serving);
    rig.c.run(
        "sysctl -qw net.netfilter.nf_conntrack_udp_timeout=1 net.netfilter.nf_conntrack_udp_timeout_stream=1",
    );
    both();
    masquerade(&rig, "30000-30999");
    thread::sleep(Duration::from_millis(3500));
    for peer in [&first, &second] {
        let again = || peer.ping(U6, Duration::from_millis(500));
        wait_for("the tunnels to follow", Duration::from_secs(15), again);
    }
    both();
    assert_eq!((tunnels(&server), count(&server, "granted")), (2, 2), "nobody has asked again");
    server.stop();
}

#[test]
fn what_cannot_pass_a_nat_is_refused() {
    let Some(mut rig) = Rig::new_or_skip("TSP: v6v4 and TCP behind a NAT") else { return };
    let inside = behind_nat(&mut rig);
    let server = broker(&rig, "");
    let asked = |mut tsp: Tsp, kind: &str| {
        log_in(&mut tsp, ALICE);
        let Offer { code, kind, .. } = tsp.create(kind, I4, None, 30);
        (code, kind)
    };
    let udp = || Tsp::udp(&inside, &format!("{I4}:0"), &netns_tests::tsp::server());
    let tcp = || Tsp::tcp(&inside, &netns_tests::tsp::server());
    assert_eq!(asked(udp(), "v6v4").0, 501, "no packet of protocol 41 would find the client");
    assert_eq!(asked(tcp(), "v6v4").0, 501);
    assert_eq!(asked(tcp(), "v6anyv4").0, 303, "there is no way in UDP that could be told from a connection");
    assert_eq!(asked(tcp(), "v6udpv4").0, 303);
    assert_eq!(tunnels(&server), 0);
    assert_eq!(asked(udp(), "v6udpv4"), (200, "v6udpv4".to_owned()));
    server.stop();
}

#[test]
fn a_lost_segment_does_not_join_two_lines() {
    let Some(rig) = Rig::new_or_skip("TSP: the first of the two last lines of a login is lost, over TCP")
    else {
        return;
    };
    let server = broker(&rig, "");
    rig.c.run("nft add table ip lossy; nft 'add chain ip lossy in { type filter hook input priority 0; }'");
    // The server's proof has 58 octets, and 52 of headers in front; the kernel sends it again after 200 ms or more.
    rig.c.run("nft add rule ip lossy in tcp sport 3653 ip length 110 numgen inc mod 1000 == 0 counter drop");
    for _ in 0..2 {
        let mut tsp = Tsp::tcp(&rig.c, &netns_tests::tsp::server());
        log_in(&mut tsp, ALICE);
        assert_eq!(tsp.create("v6v4", C4, None, 30).code, 200);
    }
    let seen = rig.c.run("nft list table ip lossy");
    assert!(seen.contains("packets 1 "), "{seen}");
    server.stop();
}

#[test]
fn a_reload_changes_what_new_sessions_are_offered() {
    let Some(rig) = Rig::new_or_skip("TSP: reload") else { return };
    let server = broker(&rig, "keepalive = 20");
    let (mut old, offer, peer) = tunnel(&rig.c, &format!("{C4}:0"), "v6udpv4", C4);
    assert!(offer.text.contains("<keepalive interval=\"20\">"), "{}", offer.text);
    carries(&rig, &peer, &offer);
    let keys = "keepalive = 25\nmechanisms = [\"ANONYMOUS\"]\nbrokers = [\"192.0.2.77\"]\nlisten = \":3654\"";
    let done = server.reload(&config(&rig, keys));
    assert!(done.ok && done.text.contains("[tsp] listen takes effect at the next start"), "{}", done.text);
    carries(&rig, &peer, &offer);
    let mut new = Tsp::udp(&rig.c, &format!("{C4}:0"), &netns_tests::tsp::server());
    assert_eq!(new.ask("VERSION=2.0.2\r\n"), "CAPABILITY TUNNEL=V6V4 TUNNEL=V6UDPV4 AUTH=ANONYMOUS\r\n");
    assert!(new.ask("AUTHENTICATE ANONYMOUS\r\n\0").starts_with("200 "));
    let others = new.create("v6udpv4", C4, None, 0);
    assert!(others.text.contains("<keepalive interval=\"25\">"), "{}", others.text);
    // The session from before goes on as it began.
    assert!(old.ask(&framed("<tunnel action=\"info\"></tunnel>\r\n")).contains("interval=\"20\""));
    assert!(new.ask("VERSION=9.9\r\n").contains("1302 "), "there is somebody else to ask now");
    let done = server.reload(&config(&rig, "").replace("[tsp]\nrealm = \"broker.example\"", ""));
    assert!(
        done.ok && done.text.contains("that there is no [tsp] takes effect at the next start"),
        "{}",
        done.text
    );
    carries(&rig, &peer, &offer);
    server.stop();
}

#[test]
fn a_reload_begins_to_serve() {
    let Some(rig) = Rig::new_or_skip("TSP: the first [tsp] comes by a reload") else { return };
    let server = broker(&rig, "");
    server.stop();
    let without = config(&rig, "").replace("[tsp]\nrealm = \"broker.example\"", "");
    let server = Router::start(&rig.lab, &rig.s, &without);
    assert!(server.status()["tsp"].is_null(), "{}", server.status()["tsp"]);
    assert!(server.reload(&config(&rig, "")).ok);
    let (_tsp, offer, peer) = tunnel(&rig.c, &format!("{C4}:0"), "v6udpv4", C4);
    carries(&rig, &peer, &offer);
    server.stop();
}

#[test]
fn every_second_answer_is_lost() {
    let Some(rig) = Rig::new_or_skip("TSP: datagrams are repeated, each with a new time stamp") else {
        return;
    };
    let server = broker(&rig, "");
    rig.c.run("nft add table ip lossy; nft 'add chain ip lossy in { type filter hook input priority 0; }'");
    rig.c.run("nft add rule ip lossy in udp sport 3653 numgen inc mod 2 == 0 drop");
    let mut tsp = Tsp::udp(&rig.c, &format!("{C4}:0"), &netns_tests::tsp::server());
    log_in(&mut tsp, ALICE);
    let offer = tsp.create("v6udpv4", C4, None, 0);
    tsp.accept();
    rig.c.run("nft delete table ip lossy");
    assert_eq!(tsp.sent, 12, "each of the six messages twice");
    // What is said to VERSION is forgotten: it is not known to come again.
    assert_eq!((count(&server, "udp_repeated"), count(&server, "granted"), tunnels(&server)), (5, 1, 1));
    carries(&rig, &Client::over(tsp.socket(), &offer.client6), &offer);
    server.stop();
}

#[test]
fn a_silent_tunnel_ends_and_a_heard_one_goes_on() {
    let Some(rig) = Rig::new_or_skip("TSP: lifetimes") else { return };
    let server = broker(&rig, "lifetime = 4");
    let mut second = Tsp::tcp(&rig.c, &netns_tests::tsp::server());
    log_in(&mut second, BOB);
    assert_eq!(second.create("v6v4", C4, None, 0).code, 200);
    second.accept();
    let (_tsp, offer, peer) = tunnel(&rig.c, &format!("{C4}:0"), "v6udpv4", C4);
    let until = Instant::now() + Duration::from_secs(12);
    while Instant::now() < until {
        keeps_alive(&peer, &offer);
        thread::sleep(Duration::from_millis(300));
    }
    let status = server.status();
    assert_eq!((tunnels(&server), status["tunnels"][0]["name"].as_str()), (1, Some("alice@tsp")), "{status}");
    wait_for("the tunnel to end", Duration::from_secs(10), || (tunnels(&server) == 0).then_some(()));
    server.stop();
}

#[test]
fn nobody_in_particular_has_an_address_and_a_quota() {
    let Some(rig) = Rig::new_or_skip("TSP: anonymous clients") else { return };
    let keys = "mechanisms = [\"ANONYMOUS\", \"DIGEST-MD5\"]\n[limits]\nanonymous_per_address = 2";
    let server = broker(&rig, keys);
    let visit = |kind: &str, prefix| {
        let mut tsp = Tsp::udp(&rig.c, &format!("{C4}:0"), &netns_tests::tsp::server());
        tsp.ask("VERSION=2.0.1\r\n");
        assert!(tsp.ask("AUTHENTICATE ANONYMOUS\r\n\0").starts_with("200 "));
        let offer = tsp.create(kind, C4, prefix, 0);
        (tsp, offer)
    };
    assert_eq!(visit("v6udpv4", Some(64)).1.code, 522);
    let mut first = visit("v6udpv4", None);
    first.0.accept();
    let mut second = visit("v6udpv4", None);
    second.0.accept();
    assert_ne!(first.1.client6, second.1.client6);
    assert_eq!(visit("v6udpv4", None).1.code, 301, "the third has to wait");
    for (tsp, offer) in [&first, &second] {
        carries(&rig, &Client::over(tsp.socket(), &offer.client6), offer);
    }
    let gone = first.0.ask(&framed("<tunnel action=\"delete\"></tunnel>\r\n"));
    assert!(gone.contains("200 "), "{gone}");
    wait_for("the tunnel to end", PATIENCE, || (tunnels(&server) == 1).then_some(()));
    assert_eq!(visit("v6udpv4", None).1.code, 200);
    server.stop();
}

#[test]
fn three_brokers_send_clients_on() {
    let Some(rig) = Rig::new_or_skip("TSP: three brokers, two of which want nobody") else { return };
    let (second, third) = ("10.71.0.11", "10.71.0.12");
    rig.s.run(&format!("ip addr add {second}/24 dev s0; ip addr add {third}/24 dev s0"));
    let first = broker(&rig, &format!("brokers = [\"{second}\", \"{third}\"]\nredirect = \"version\""));
    let other = |n: u8, at: &str, keys: &str| {
        let config = format!(
            "[router]\ntun = \"six{n}\"\naddress = [\"fd00:2:10{n}::1/64\"]\nouter = \"{at}\"\n[proto41]\nenabled = false\n\
             [store]\npath = \"{}\"\n[[pool]]\nprefix = \"fd00:2:{n}f::/64\"\npairs = true\n[tsp]\n\
             mechanisms = [\"ANONYMOUS\"]\ntunnels = [\"v6udpv4\"]\n{keys}\n",
            rig.lab.path(&format!("{n}.db")).display()
        );
        Router::start(&rig.lab, &rig.s, &config)
    };
    let (second_one, third_one) =
        (other(1, second, &format!("brokers = [\"{third}\"]")), other(2, third, ""));
    let mut tsp = Tsp::udp(&rig.c, &format!("{C4}:0"), &server());
    let list = tsp.ask("VERSION=2.0.2\r\n");
    assert!(list.starts_with("1200 ") && list.contains(second) && list.contains(third), "{list}");
    for at in [S4, second, third] {
        let mut asked = Tsp::udp(&rig.c, &format!("{C4}:0"), &format!("{at}:3653"));
        assert!(asked.ask("ECHO REQUEST").starts_with("200 "), "all brokers are timed");
    }
    let socket = second_one.socket().display().to_string();
    assert!(
        rig.s.run(&format!("{} drain --socket {socket}", program().display())).contains("sent to 1 other")
    );
    let mut tsp = Tsp::udp(&rig.c, &format!("{C4}:0"), &format!("{second}:3653"));
    let list = tsp.ask("VERSION=2.0.2\r\n");
    assert!(list.starts_with("1200 ") && list.contains(third), "{list}");
    let mut tsp = Tsp::udp(&rig.c, &format!("{C4}:0"), &format!("{third}:3653"));
    tsp.ask("VERSION=2.0.2\r\n");
    assert!(tsp.ask("AUTHENTICATE ANONYMOUS\r\n\0").starts_with("200 "));
    let offer = tsp.create("v6anyv4", C4, None, 30);
    assert_eq!((offer.code, offer.kind.as_str()), (200, "v6udpv4"), "{}", offer.text);
    tsp.accept();
    let peer = Client::over(tsp.socket(), &offer.client6);
    keeps_alive(&peer, &offer);
    assert!(peer.ping(U6, PATIENCE).is_some());
    rig.s.run(&format!("{} drain --stop --socket {socket}", program().display()));
    let mut tsp = Tsp::udp(&rig.c, &format!("{C4}:0"), &format!("{second}:3653"));
    assert!(tsp.ask("VERSION=2.0.2\r\n").starts_with("CAPABILITY "));
    [first, second_one, third_one].into_iter().for_each(Router::stop);
}

/// RFC: D11 (RFC 5572 section 4.4)
#[test]
fn a_flood_of_half_open_sessions_and_rubbish_stops_nobody() {
    let Some(rig) = Rig::new_or_skip("TSP: half-open sessions and rubbish") else { return };
    let server = broker(&rig, "");
    let before = memory(&server);
    let flood = |n: u16| {
        for round in 0..200 {
            let mut tsp = Tsp::udp(&rig.c, &format!("{C4_OTHER}:0"), &netns_tests::tsp::server());
            tsp.send(b"VERSION=2.0.2\r\n");
            tsp.send(b"AUTHENTICATE DIGEST-MD5\r\n\0");
            tsp.send(format!("rubbish {n} {round}").as_bytes());
            let _or_refused = tsp.socket().send(b"GET / HTTP/1.1\r\n\r\n");
        }
    };
    thread::scope(|scope| {
        let floods: Vec<_> = (0..4).map(|n| scope.spawn(move || flood(n))).collect();
        for _ in 0..5 {
            let (_tsp, offer, peer) = tunnel(&rig.c, &format!("{C4}:0"), "v6udpv4", C4);
            keeps_alive(&peer, &offer);
        }
        floods.into_iter().for_each(|flood| assert!(flood.join().is_ok()));
    });
    let (_tsp, offer, peer) = tunnel(&rig.c, &format!("{C4}:0"), "v6udpv4", C4);
    carries(&rig, &peer, &offer);
    let sessions = count(&server, "udp_sessions");
    assert!((100..=1030).contains(&sessions), "{sessions} sessions: one address has its share");
    let grown = memory(&server).saturating_sub(before);
    assert!(grown < 32 << 10, "{grown} KiB more");
    server.stop();
}

/// Resident memory in KiB.
fn memory(router: &Router) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", router.pid())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0");
    line.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// What `[leased]` says holds for what is granted, and the audit finds it in force.
#[test]
fn a_granted_tunnel_has_the_limits_of_all() {
    let Some(rig) = Rig::new_or_skip("TSP: limits of granted tunnels") else { return };
    let server = broker(&rig, "[leased]\npackets_per_second = 20\nmss_clamp = true");
    let (tsp, offer, peer) = tunnel(&rig.c, &format!("{C4}:0"), "v6udpv4", C4);
    keeps_alive(&peer, &offer);
    let packet = Ends::new(&offer.client6, U6).echo_request(1, 1, 64);
    for _ in 0..300 {
        peer.send(&packet);
    }
    wait_for("packets over the rate to be dropped", PATIENCE, || {
        (server.drops("rate_limited") >= 100).then_some(())
    });
    let said = rig.s.attempt(&format!(
        "{} audit --json --socket {}",
        program().display(),
        server.socket().display()
    ));
    let limits = "\"name\":\"tunnel_limits\",\"outcome\":\"pass\"";
    assert!(said.text.contains(limits), "{}", said.text);
    drop(tsp);
    server.stop();
}
