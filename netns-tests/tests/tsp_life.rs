//! What ends a TSP tunnel and what does not: offers that nobody takes, forged wishes, renewals that are refused, a restart
//! followed by silence.
//!
//! ```text
//!   C alice, nobody ──TSP──► S ──IPv6── U
//! ```

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use netns_tests::tsp::{Login, Offer, Tsp, framed, server};
use netns_tests::{C4, C4_OTHER, Client, Connected, PATIENCE, Rig, Router, S4, U6, pings, program, wait_for};

const ALICE: Login<'static> = Login { user: "alice", secret: "wonderland" };

fn config(rig: &Rig, keys: &str) -> String {
    let store = rig.lab.path("store.db");
    if !store.exists() {
        let secret = rig.lab.write("secret", ALICE.secret);
        let (program, store, secret) = (program(), store.display(), secret.display());
        rig.s.run(&format!("{} user add alice --store {store} --secret-file {secret}", program.display()));
    }
    let tables = format!(
        "[store]\npath = \"{}\"\n[[pool]]\nprefix = \"fd00:2:f::/64\"\npairs = true\n\
         [tsp]\nrealm = \"broker.example\"\nmechanisms = [\"DIGEST-MD5\", \"ANONYMOUS\"]\n{keys}\n",
        store.display()
    );
    Rig::server_config("", &tables)
}

fn broker(rig: &Rig, keys: &str) -> Router {
    Router::start(&rig.lab, &rig.s, &config(rig, keys))
}

fn tunnels(server: &Router) -> u64 {
    server.status()["tunnels_total"].as_u64().unwrap_or(99)
}

fn count(server: &Router, name: &str) -> u64 {
    server.status()["tsp"][name].as_u64().unwrap_or(u64::MAX)
}

fn alice(rig: &Rig) -> Tsp {
    let mut tsp = Tsp::udp(&rig.c, &format!("{C4}:0"), &server());
    tsp.log_in(ALICE, S4);
    tsp
}

fn nobody(rig: &Rig) -> Tsp {
    let mut tsp = Tsp::udp(&rig.c, &format!("{C4}:0"), &server());
    tsp.ask("VERSION=2.0.1\r\n");
    assert!(tsp.ask("AUTHENTICATE ANONYMOUS\r\n\0").starts_with("200 "));
    tsp
}

fn reject(tsp: &mut Tsp) {
    let said = tsp.ask(&framed("<tunnel action=\"reject\"></tunnel>\r\n"));
    assert!(said.contains("200 "), "{said}");
}

fn carries(peer: &Client, offer: &Offer) {
    wait_for("a sign of life", PATIENCE, || peer.ping(&offer.server6, Duration::from_millis(500)));
    assert!(peer.ping(U6, PATIENCE).is_some(), "the world is there");
}

#[test]
fn an_offer_that_is_not_taken_ends_nothing() {
    let Some(rig) = Rig::new_or_skip("TSP: a second session asks and rejects, then takes") else { return };
    let server = broker(&rig, "");
    let mut first = alice(&rig);
    let offer = first.create("v6udpv4", C4, None, 30);
    first.accept();
    let peer = Client::over(first.socket(), &offer.client6);
    carries(&peer, &offer);
    let mut second = alice(&rig);
    let other = second.create("v6udpv4", C4, None, 30);
    assert_eq!((other.code, &other.client6), (200, &offer.client6), "the same address is offered");
    carries(&peer, &offer);
    reject(&mut second);
    carries(&peer, &offer);
    assert_eq!((tunnels(&server), count(&server, "taken")), (1, 1));
    // Asked for again by the very same session, as a late copy of a datagram does: nothing changes either.
    let again = first.create("v6udpv4", C4, None, 30);
    carries(&peer, &again);
    let moved = second.create("v6udpv4", C4, None, 30);
    second.accept();
    carries(&Client::over(second.socket(), &moved.client6), &moved);
    assert_eq!(peer.ping(U6, Duration::from_millis(500)), None, "now it is the newer session's");
    assert_eq!(tunnels(&server), 1);
    server.stop();
}

#[test]
fn forgers_without_a_name_end_nobody_s_tunnel() {
    let Some(rig) = Rig::new_or_skip("TSP: anonymous wishes for an endpoint in use") else { return };
    let server = broker(&rig, "");
    let mut first = nobody(&rig);
    let offer = first.create("v6v4", C4, None, 0);
    assert!(offer.text.contains("<keepalive interval=\"30\">"), "{}", offer.text);
    first.accept();
    let peer = Client::proto41(&rig.c, C4, &offer.client6);
    carries(&peer, &offer);
    for word in ["reject", "delete"] {
        let mut forger = nobody(&rig);
        let same = forger.create("v6v4", C4, None, 0);
        assert_eq!((same.code, &same.client6), (200, &offer.client6));
        let said = forger.ask(&framed(&format!("<tunnel action=\"{word}\"></tunnel>\r\n")));
        assert!(said.contains("200 "), "{said}");
        carries(&peer, &offer);
    }
    assert_eq!(tunnels(&server), 1);
    server.stop();
}

#[test]
fn a_restart_does_not_keep_the_dead_alive() {
    let Some(rig) = Rig::new_or_skip("TSP: a client vanishes while the broker restarts") else { return };
    let server = broker(&rig, "");
    let mut first = nobody(&rig);
    let offer = first.create("v6udpv4", C4, None, 2);
    first.accept();
    let mut second = alice(&rig);
    let alices = second.create("v6udpv4", C4, None, 2);
    second.accept();
    let mut third = nobody(&rig);
    let heard = third.create("v6udpv4", C4, None, 2);
    third.accept();
    let peer = Client::over(third.socket(), &heard.client6);
    for (tsp, offer) in [(&first, &offer), (&second, &alices), (&third, &heard)] {
        carries(&Client::over(tsp.socket(), &offer.client6), offer);
    }
    server.crash();
    let server = broker(&rig, "");
    assert_eq!(tunnels(&server), 3, "all forward again");
    let until = Instant::now() + Duration::from_secs(90);
    while Instant::now() < until && tunnels(&server) > 1 {
        carries(&peer, &heard);
        thread::sleep(Duration::from_secs(2));
    }
    assert_eq!(
        tunnels(&server),
        1,
        "who is not heard for a minute is gone, though nobody has agreed on it since"
    );
    carries(&peer, &heard);
    server.stop();
}

#[test]
fn each_site_of_an_account_has_a_tunnel_of_its_own() {
    let Some(rig) = Rig::new_or_skip("TSP: two sites of one account") else { return };
    let server = broker(&rig, "[limits]\ntunnels_per_account = 2");
    let site = |from: &str, claimed: &str| {
        let mut tsp = Tsp::udp(&rig.c, &format!("{from}:0"), &netns_tests::tsp::server());
        tsp.log_in(ALICE, S4);
        let offer = tsp.create("v6udpv4", claimed, None, 30);
        tsp.accept();
        (tsp, offer)
    };
    let (one, ones) = site(C4, "192.168.0.1");
    let (_, twos) = site(C4_OTHER, "192.168.0.2");
    assert_ne!(ones.client6, twos.client6);
    for _ in 0..3 {
        assert_eq!(site(C4_OTHER, "192.168.0.2").1.client6, twos.client6, "who comes back has the same");
    }
    assert_eq!(tunnels(&server), 2);
    let mut asks = Tsp::udp(&rig.c, &format!("{C4_OTHER}:0"), &netns_tests::tsp::server());
    asks.log_in(ALICE, S4);
    let info = asks.ask(&framed("<tunnel action=\"info\"></tunnel>\r\n"));
    assert!(info.contains("192.168.0.2") && info.contains("<keepalive interval=\"30\">"), "{info}");
    assert!(asks.ask(&framed("<tunnel action=\"delete\"></tunnel>\r\n")).contains("200 "));
    wait_for("the tunnel to end", PATIENCE, || (tunnels(&server) == 1).then_some(()));
    carries(&Client::over(one.socket(), &ones.client6), &ones);
    server.stop();
}

fn begin(rig: &Rig, words: &[&str]) -> Connected {
    Connected::start_as(rig, "wonderland", words)
}

#[test]
fn what_is_only_shown_leaves_the_running_tunnel_alone() {
    let Some(rig) = Rig::new_or_skip("connect tsp:// --print beside a running tunnel") else { return };
    let server = broker(&rig, "");
    let mut tsp = alice(&rig);
    let offer = tsp.create("v6udpv4", C4, None, 30);
    tsp.accept();
    let peer = Client::over(tsp.socket(), &offer.client6);
    carries(&peer, &offer);
    let shown = begin(&rig, &[&format!("tsp://alice@{S4}"), "--print"]);
    shown.says(&offer.client6);
    carries(&peer, &offer);
    assert_eq!((tunnels(&server), count(&server, "granted")), (1, 1), "nothing was asked for");
    server.stop();
}

/// A second one on the same device asks nobody: the login would take the place of the tunnel that works.
#[test]
fn who_cannot_run_here_asks_no_broker() {
    let Some(rig) = Rig::new_or_skip("connect tsp:// twice on one device") else { return };
    let server = broker(&rig, "");
    let url = format!("tsp://alice@{S4}?tunnel=v6udpv4");
    let first = begin(&rig, &[&url]);
    first.says("the tunnel is up");
    let second = begin(&rig, &[&url]);
    second.says("already running");
    assert_eq!((tunnels(&server), count(&server, "granted")), (1, 1), "it has asked for nothing");
    assert_eq!(pings(&rig.c, U6, 3, ""), 3, "and the first goes on");
    first.stop();
    server.stop();
}

/// The number of the TUN device, another one each time that it is made.
fn device(rig: &Rig) -> String {
    rig.c.run("cat /sys/class/net/six0/ifindex").trim().to_owned()
}

#[test]
fn a_tunnel_in_udp_is_renewed_where_it_runs() {
    let Some(rig) = Rig::new_or_skip("connect tsp://: renewal of a tunnel in UDP") else { return };
    let server = broker(&rig, "lifetime = 60");
    let client = begin(&rig, &[&format!("tsp://alice@{S4}?tunnel=v6udpv4&keepalive=10")]);
    client.says("the tunnel is up");
    let remote = |server: &Router| server.tunnel("alice@tsp")["remote"].clone();
    let before = (device(&rig), remote(&server));
    rig.c.run("ip -6 route add fd00:7::/64 dev six0");
    client.says("renewed, with the same addresses");
    assert_eq!((device(&rig), remote(&server)), before, "the same device, the same port");
    assert!(rig.c.run("ip -6 route").contains("fd00:7::/64"), "and what the user has put there");
    assert_eq!((count(&server, "granted"), count(&server, "taken")), (2, 2));
    assert_eq!(pings(&rig.c, U6, 3, ""), 3);
    client.stop();
    server.stop();
}

#[test]
fn a_refused_renewal_ends_no_tunnel_that_works() {
    let Some(rig) = Rig::new_or_skip("connect tsp://: the broker drains, tunnels stay") else { return };
    let server = broker(&rig, "lifetime = 60");
    let client = begin(&rig, &[&format!("tsp://alice@{S4}?tunnel=v6v4&keepalive=10")]);
    client.says("the tunnel is up");
    rig.s.run(&format!("{} drain --socket {}", program().display(), server.socket().display()));
    client.says("the tunnel is not renewed");
    // Longer than the lifetime, and than the silence that ends a tunnel.
    thread::sleep(Duration::from_secs(70));
    assert_eq!(pings(&rig.c, U6, 3, ""), 3, "{}", client.said());
    assert_eq!((tunnels(&server), count(&server, "silent")), (1, 0));
    client.stop();
    server.stop();
}

#[test]
fn what_fails_here_when_the_tunnel_comes_back_is_tried_again() {
    let Some(rig) = Rig::new_or_skip("connect tsp://: a script fails once") else { return };
    let server = broker(&rig, "");
    let runs = rig.lab.path("runs");
    let script = rig.lab.write(
        "script.sh",
        &format!(
            "[ $TSP_OPERATION = TSP_TUNNEL_CREATION ] || exit 0\necho run >> {0}\n[ $(wc -l < {0}) != 2 ] || exit 1\n\
             ip link set $TSP_TUNNEL_INTERFACE up\n\
             ip -6 addr add $TSP_CLIENT_ADDRESS_IPV6/128 dev $TSP_TUNNEL_INTERFACE\n\
             ip -6 route add default dev $TSP_TUNNEL_INTERFACE\n",
            runs.display()
        ),
    );
    let url = format!("tsp://alice@{S4}?tunnel=v6udpv4&keepalive=2");
    let client = begin(&rig, &[&url, "--script", &script.to_string_lossy()]);
    client.says("the tunnel is up");
    rig.s.run(&format!("{} kick alice --socket {}", program().display(), server.socket().display()));
    client.says("trying again");
    wait_for("the tunnel to be back", Duration::from_secs(20), || {
        rig.c.attempt(&format!("ping -6 -n -W 1 -c 1 {U6}")).ok.then_some(())
    });
    assert_eq!(fs::read_to_string(&runs).unwrap_or_default().lines().count(), 3);
    client.stop();
    server.stop();
}
