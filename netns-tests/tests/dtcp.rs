//! Tunnels that clients ask for by DTCP: every type, every way to end one, and clients that mean no good.
//!
//! ```text
//!   C foo ──DTCP──► S ──IPv6── U          tunnels by protocol 41, one in UDP
//! ```

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use netns_tests::dtcp::{Dtcp, FOO_NET, PAIRS, served, server_config};
use netns_tests::{
    C4, C4_OTHER, Client, Connected, Ends, Job, PATIENCE, Rig, Router, S4, U6, icmp, pings, program,
    transfer, wait_for,
};
use nix::sys::signal::Signal;

fn connect(rig: &Rig, query: &str) -> Connected {
    let connected = Connected::start_as(rig, "bar", &[&format!("dtcp://foo@{S4}?{query}")]);
    connected.says("the tunnel is up");
    connected
}

fn tunnels(server: &Router) -> u64 {
    server.status()["tunnels_total"].as_u64().unwrap_or(99)
}

#[track_caller]
fn no_tunnel_remains(server: &Router) {
    wait_for("the tunnel to go", PATIENCE, || (tunnels(server) == 0).then_some(()));
}

fn traces(rig: &Rig) -> String {
    rig.c.run("ip -o -d link 2>/dev/null; ip -o addr; ip route; ip -6 route show table all")
}

#[test]
fn a_host_has_an_address_and_reaches_the_world() {
    let Some((rig, server)) = served("type host: an address pair", "") else { return };
    let before = traces(&rig);
    let client = connect(&rig, "type=host");
    let address = format!("{PAIRS}6");
    assert!(rig.c.run("ip -6 -o addr show dev six0").contains(&address));
    assert!(rig.c.run("ip -6 route show default").contains("six0"));
    assert_eq!(pings(&rig.c, U6, 3, ""), 3);
    assert_eq!(pings(&rig.u, &address, 3, ""), 3);
    assert_eq!(pings(&rig.c, &format!("{PAIRS}5"), 3, ""), 3, "our end of the pair");
    transfer(&rig.c, &rig.u, U6, 4 << 20);
    transfer(&rig.u, &rig.c, &address, 4 << 20);
    assert_eq!(server.tunnel("foo@dtcp")["mtu"], 1280);
    client.stop();
    no_tunnel_remains(&server);
    assert_eq!(traces(&rig), before, "all is put back");
    server.stop();
}

#[test]
fn a_network_is_routed() {
    let Some((rig, server)) = served("types network and tunnelroute: the user's prefix", "") else { return };
    let client = connect(&rig, "type=tunnelroute");
    assert_eq!(pings(&rig.c, U6, 3, ""), 3);
    assert_eq!(pings(&rig.u, "fd00:2:7::1", 3, ""), 3);
    // Another address out of the network, on another device of the client.
    rig.c.run("ip addr add fd00:2:7:5::1/64 dev lo nodad");
    assert_eq!(pings(&rig.u, "fd00:2:7:5::1", 3, ""), 3);
    transfer(&rig.u, &rig.c, "fd00:2:7:5::1", 4 << 20);
    assert!(rig.s.run("ip -6 route").contains(FOO_NET));
    client.stop();
    no_tunnel_remains(&server);
    assert!(!rig.s.run("ip -6 route").contains(FOO_NET));
    server.stop();
}

#[test]
fn a_bare_tunnel_has_a_router_that_answers() {
    let Some((rig, server)) = served("type tunnelonly: link-local addresses", "") else { return };
    let mut eve = Dtcp::connect(&rig.c, C4, S4);
    assert_eq!(eve.tunnel("eve", "adam", "tunnelonly"), format!("+OK {C4} {S4}"));
    let peer = Client::proto41(&rig.c, C4, "fe80::2");
    assert!(peer.ping("fe80::a47:1", PATIENCE).is_some());
    // Users test a tunnel so: all routers on the link.
    peer.send(&Ends::new("fe80::2", "ff02::2").echo_request(7, 1, 8));
    let answered = peer.wait(PATIENCE, |got| (got.echo() == Some((7, 1))).then_some(got.src.to_string()));
    assert_eq!(answered.as_deref(), Some("fe80::a47:1"));
    let solicitation = Ends::new("fe80::2", "ff02::2").hops(255);
    peer.send(&solicitation.icmp(icmp::ROUTER_SOLICITATION, [0; 4], &[]));
    let advertised = |kind| (kind == Some(icmp::ROUTER_ADVERTISEMENT)).then_some(());
    assert!(peer.wait(PATIENCE, |got| advertised(got.icmp_type())).is_some());
    drop(eve);
    no_tunnel_remains(&server);
    server.stop();
}

#[test]
fn a_bare_tunnel_carries_what_is_routed_by_hand() {
    let Some((rig, server)) = served("type tunnelonly: addresses assigned by hand", "") else { return };
    let client = connect(&rig, "type=tunnelonly");
    assert!(client.said().contains("no default route leads into it"), "{}", client.said());
    assert_eq!(rig.c.run("ip -6 route show default"), "");
    rig.c.run("ip addr add fd00:2:7::9/128 dev six0 nodad && ip -6 route add default dev six0");
    assert_eq!(pings(&rig.c, U6, 3, "-I fd00:2:7::9"), 3);
    assert_eq!(pings(&rig.u, "fd00:2:7::9", 3, ""), 3);
    transfer(&rig.u, &rig.c, "fd00:2:7::9", 4 << 20);
    client.stop();
    no_tunnel_remains(&server);
    server.stop();
}

#[test]
fn ipv6_in_udp_is_there_for_those_who_know_the_words() {
    let Some((rig, server)) = served("our extension: IPv6 in UDP", "udp = true") else { return };
    let client = connect(&rig, "type=host&udp");
    assert_eq!(pings(&rig.c, U6, 3, ""), 3);
    transfer(&rig.u, &rig.c, &format!("{PAIRS}6"), 4 << 20);
    assert!(server.status()["listening"].to_string().contains(&format!("{S4}:4028")));
    client.stop();
    no_tunnel_remains(&server);
    let closed = || !server.status()["listening"].to_string().contains("4028");
    wait_for("the socket to close", PATIENCE, || closed().then_some(()));
    server.stop();
}

#[test]
fn behind_a_nat_the_udp_port_is_learned() {
    let Some((rig, server)) = served("UDP without a port: proven by echo, then known", "udp = true") else {
        return;
    };
    let mut asked = Dtcp::connect(&rig.c, C4, S4);
    let up = asked.tunnel("foo", "bar", "host udp");
    assert!(up.ends_with(" udp/4028"), "{up}");
    let peer = Client::udp(&rig.c, &format!("{C4}:6000"), &format!("{PAIRS}6"));
    peer.turn_to_port(S4, 4028);
    let answered = wait_for("the port to be learned", PATIENCE, || peer.ping(U6, Duration::from_millis(300)));
    assert!(answered < PATIENCE);
    let stranger = Client::udp(&rig.c, &format!("{C4_OTHER}:6000"), &format!("{PAIRS}6"));
    stranger.turn_to_port(S4, 4028);
    assert!(stranger.ping(U6, Duration::from_millis(500)).is_none(), "only the address that asked");
    server.stop();
}

#[test]
fn the_tunnel_goes_with_its_connection() {
    let Some((rig, server)) = served("a client that is killed", "") else { return };
    let client = connect(&rig, "type=host");
    assert_eq!(pings(&rig.u, &format!("{PAIRS}6"), 1, ""), 1);
    client.job.end(Signal::SIGKILL, PATIENCE);
    no_tunnel_remains(&server);
    // The next one has the number again, whoever it is.
    let mut next = Dtcp::connect(&rig.c, C4, S4);
    assert_eq!(next.tunnel("foo", "bar", "host"), format!("+OK {C4} {S4} {PAIRS}0006 {PAIRS}0005"));
    drop(next);
    no_tunnel_remains(&server);
    server.stop();
}

#[test]
fn who_comes_back_from_another_address_has_the_tunnel() {
    let Some((rig, server)) = served("the newest session of a user has the tunnel", "") else { return };
    let mut first = Dtcp::connect(&rig.c, C4, S4);
    assert_eq!(first.tunnel("foo", "bar", "host"), format!("+OK {C4} {S4} {PAIRS}0006 {PAIRS}0005"));
    assert_eq!(server.tunnel("foo@dtcp")["remote"], C4);
    let mut second = Dtcp::connect(&rig.c, C4_OTHER, S4);
    let up = second.tunnel("foo", "bar", "host");
    assert_eq!(up, format!("+OK {C4_OTHER} {S4} {PAIRS}0006 {PAIRS}0005"), "and keeps the address");
    assert!(first.is_ended(PATIENCE), "by FIN, without a word");
    // A KAME client says these when it notices; a reset would kill it before it has put back its routes.
    first.say("ping");
    first.say("quit");
    assert!(first.is_ended(PATIENCE));
    assert_eq!(tunnels(&server), 1);
    let peer = Client::proto41(&rig.c, C4_OTHER, &format!("{PAIRS}6"));
    assert!(peer.ping(U6, PATIENCE).is_some(), "the address does not go with the older session");
    assert_eq!(second.ask("ping"), "+OK hi, happy to hear from you");
    server.stop();
}

#[test]
fn silence_ends_it() {
    let Some((rig, server)) =
        served("the timers, on a faster clock", "login_timeout = 1\ntunnel_timeout = 2")
    else {
        return;
    };
    let begin = Instant::now();
    let mut stranger = Dtcp::connect(&rig.c, C4, S4);
    assert_eq!(stranger.hear(), "-ERR connection timed out, disconnecting");
    assert!(begin.elapsed() > Duration::from_millis(900));
    assert!(stranger.is_ended(PATIENCE));
    let mut foo = Dtcp::connect(&rig.c, C4, S4);
    assert!(foo.tunnel("foo", "bar", "host").starts_with("+OK"));
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(1200));
        assert!(foo.ask("ping").starts_with("+OK"));
    }
    let begin = Instant::now();
    assert_eq!(foo.hear(), "-ERR connection timed out, disconnecting");
    assert!(begin.elapsed() > Duration::from_millis(1900));
    assert!(foo.is_ended(PATIENCE));
    no_tunnel_remains(&server);
    assert_eq!(server.status()["dtcp"]["timed_out"], 2);
    server.stop();
}

#[test]
fn slow_clients_hold_up_nobody() {
    let Some((rig, server)) =
        served("lines that never end", "login_timeout = 2\n[limits]\nconnections_per_address = 100")
    else {
        return;
    };
    let mut slow: Vec<_> = (0..100).map(|_| Dtcp::dial(&rig.c, C4_OTHER, &format!("{S4}:20200"))).collect();
    let begin = Instant::now();
    let mut over = 0;
    while over == 0 && begin.elapsed() < Duration::from_secs(10) {
        over = slow.iter_mut().filter_map(|stream| stream.write_all(b"p").err()).count();
        let mut foo = Dtcp::connect(&rig.c, C4, S4);
        let asked = Instant::now();
        assert!(foo.tunnel("foo", "bar", "host").starts_with("+OK"));
        assert!(asked.elapsed() < Duration::from_millis(1800), "{:?}", asked.elapsed());
        std::thread::sleep(Duration::from_millis(100));
    }
    // Two seconds of grace for the line, five for the end of it.
    assert!(over > 0 && begin.elapsed() > Duration::from_secs(2), "{over} after {:?}", begin.elapsed());
    assert_eq!(server.status()["dtcp"]["timed_out"], 100);
    server.stop();
}

/// RFC: R6
#[test]
fn a_flood_of_connections_meets_the_limit() {
    let Some((rig, server)) =
        served("more connections than an address may have", "[limits]\nconnections_per_address = 10")
    else {
        return;
    };
    let held: Vec<_> = (0..30).map(|_| Dtcp::dial(&rig.c, C4_OTHER, &format!("{S4}:20200"))).collect();
    wait_for("the refusals", PATIENCE, || (server.status()["dtcp"]["refused"] == 20).then_some(()));
    let mut foo = Dtcp::connect(&rig.c, C4, S4);
    assert!(foo.tunnel("foo", "bar", "network").starts_with("+OK"));
    drop(held);
    server.stop();
}

#[test]
fn the_last_descriptors_are_not_for_connections() {
    let Some((rig, server)) = served("a limit of open files, and below it", "") else { return };
    let pid = server.pid();
    let open = || fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    let limit = |files: usize| rig.s.run(&format!("prlimit --pid {pid} --nofile={files}:"));
    let dial = || Dtcp::over(Dtcp::dial(&rig.c, C4, &format!("{S4}:20200")));
    // 64 are left free, or a quarter of them all where there are few.
    let most = (open() + 5) * 4 / 3 + 1;
    limit(most);
    let mut clients: Vec<_> = (0..20).map(|_| dial()).collect();
    let greeted: Vec<bool> = clients.iter_mut().map(|c| c.is_greeted(Duration::from_millis(500))).collect();
    let served = greeted.iter().filter(|yes| **yes).count();
    assert!((3..10).contains(&served), "{served} of 20 with {most} files");
    let refused = greeted.iter().position(|yes| !yes).unwrap_or_default();
    assert!(clients[refused].is_ended(PATIENCE), "by FIN, at once");
    // Status is answered, and counts them.
    assert_eq!(server.status()["dtcp"]["out_of_files"], 20 - served);
    // With none at all connections wait, and the loop lives.
    limit(3);
    let mut waiting = dial();
    assert!(!waiting.is_greeted(Duration::from_millis(500)));
    limit(1000);
    assert!(waiting.is_greeted(PATIENCE), "who waited is taken: {}", server.log());
    assert!(waiting.tunnel("foo", "bar", "host").starts_with("+OK"));
    assert!(server.status()["dtcp"]["accept_failed"].as_u64() > Some(0));
    server.stop();
}

#[test]
fn wrong_passwords_are_refused_and_counted() {
    let Some((rig, server)) = served("wrong passwords", "[limits]\nfailed_logins_per_minute = 3") else {
        return;
    };
    let mut foo = Dtcp::connect(&rig.c, C4, S4);
    for (user, secret) in [("foo", "rab"), ("oof", "bar"), ("foo", "")] {
        assert_eq!(foo.tunnel(user, secret, "host"), "-ERR authentication failed.");
    }
    assert!(foo.tunnel("foo", "bar", "host").starts_with("-ERR too many attempts"));
    let mut elsewhere = Dtcp::connect(&rig.c, C4_OTHER, S4);
    assert!(elsewhere.tunnel("eve", "adam", "host").starts_with("+OK"));
    assert_eq!(server.status()["dtcp"]["login_failed"], 3);
    server.stop();
}

#[test]
fn the_route_table_is_read_again_when_it_changes() {
    let Some((rig, server)) = served("a changed route table", "") else { return };
    let mut eve = Dtcp::connect(&rig.c, C4, S4);
    assert_eq!(eve.tunnel("eve", "adam", "network"), "-ERR no prefix for user eve");
    let pinned = eve.tunnel("eve", "adam", "host");
    assert!(pinned.ends_with(&format!("{PAIRS}0022 {PAIRS}0021")), "gif7: {pinned}");
    drop(eve);
    rig.lab.write("routetable", "eve fd00:2:8::/48,fd00:2:9::/48 odd\n");
    wait_for("the new table", PATIENCE, || {
        let mut eve = Dtcp::connect(&rig.c, C4, S4);
        let said = eve.tunnel("eve", "adam", "host");
        (said == "-ERR internal error: tunnel interface name format is wrong").then_some(())
    });
    rig.lab.write("routetable", "eve fd00:2:8::/48,fd00:2:9::/48\n");
    let both = format!("+OK {C4} {S4} fd00:2:8::/48,fd00:2:9::/48");
    wait_for("the newest table", PATIENCE, || {
        let mut eve = Dtcp::connect(&rig.c, C4, S4);
        (eve.tunnel("eve", "adam", "network") == both).then_some(())
    });
    let mut foo = Dtcp::connect(&rig.c, C4, S4);
    assert_eq!(foo.tunnel("foo", "bar", "network"), "-ERR no prefix for user foo");
    server.stop();
}

#[test]
fn interfaces_run_out_and_it_is_said() {
    let Some((rig, server)) = served(
        "one interface, two users",
        "interfaces = 9\nnames = \"gif[35]\"\n[limits]\ntunnels_per_account = 5",
    ) else {
        return;
    };
    let mut foo: Vec<_> = [C4, C4_OTHER].map(|from| Dtcp::connect(&rig.c, from, S4)).into();
    assert!(foo[0].tunnel("foo", "bar", "host").ends_with("0012 fd00:2:f::0011"), "gif3");
    assert!(foo[1].tunnel("foo", "bar", "host").ends_with("001a fd00:2:f::0019"), "gif5");
    rig.c.run("ip addr add 10.71.0.77/24 dev c0");
    let mut third = Dtcp::connect(&rig.c, "10.71.0.77", S4);
    assert_eq!(third.tunnel("foo", "bar", "host"), "-ERR tunnel interface sold out");
    assert_eq!(third.ask("ping"), "+OK hi, happy to hear from you");
    assert_eq!(foo[0].ask("quit"), "+OK see you soon.");
    assert!(foo[0].is_ended(PATIENCE));
    assert!(third.tunnel("foo", "bar", "tunnelonly").starts_with("+OK"));
    server.stop();
}

#[test]
fn the_client_comes_back_when_the_server_does() {
    let Some(rig) = Rig::new_or_skip("a server that is restarted") else { return };
    let config =
        format!("{}[admin]\nsocket = \"{}\"\n", server_config(&rig, ""), rig.lab.path("s.sock").display());
    let server = Router::start(&rig.lab, &rig.s, &config);
    let client = connect(&rig, "type=host");
    server.crash();
    let server = Router::start(&rig.lab, &rig.s, &config);
    wait_for("the tunnel to come back", Duration::from_secs(20), || {
        client.said().contains("the tunnel is back").then_some(())
    });
    assert_eq!(pings(&rig.c, U6, 3, ""), 3);
    client.stop();
    no_tunnel_remains(&server);
    server.stop();
}

#[test]
fn what_would_be_done_can_be_seen() {
    let Some((rig, server)) = served("--print shows and changes nothing", "") else { return };
    let before = traces(&rig);
    let secret = rig.lab.write("secret", "bar\n");
    let (bin, secret) = (program(), secret.display().to_string());
    let said = rig.c.run(&format!(
        "{} connect 'dtcp://foo@{S4}?type=network' --print --password-file {secret}",
        bin.display()
    ));
    assert!(said.contains("fd00:2:7::1/128") && said.contains("default_route = true"), "{said}");
    assert_eq!(traces(&rig), before);
    no_tunnel_remains(&server);
    let wrong = rig.lab.write("wrong", "rab\n");
    let refused = rig.c.attempt(&format!(
        "{} connect 'dtcp://foo@{S4}' --password-file {}",
        bin.display(),
        wrong.display()
    ));
    assert!(!refused.ok && refused.text.contains("authentication failed"), "{}", refused.text);
    server.stop();
}

/// A namespace's shell runs what `sixway snippet` printed for foo; `sed` changes it first.
fn pasted(rig: &Rig, client: &str, config: &str, sed: &str, before: &str) -> (Job, PathBuf) {
    let file = rig.lab.write("snippet.toml", config);
    let (bin, script) = (program(), rig.lab.path("pasted"));
    let words =
        format!("snippet foo --for {client} --show-secret --type network --config {}", file.display());
    rig.s.run(&format!("{} {words} | sed '{sed}' >{}", bin.display(), script.display()));
    let log = rig.lab.path("pasted.log");
    let line = format!("{before} exec bash {}", script.display());
    (rig.c.spawn(&PathBuf::from("/usr/bin/unshare"), &["-m", "bash", "-c", &line], &log), log)
}

#[test]
fn what_is_pasted_on_linux_logs_in_and_sets_up_the_tunnel() {
    let Some(rig) = Rig::new_or_skip("sixway snippet --for linux, run by bash") else { return };
    let config = server_config(&rig, "");
    let server = Router::start(&rig.lab, &rig.s, &config);
    // Not every kernel has the module sit: iproute2 is played by a script that knows no device and notes what it is told.
    let told = rig.lab.path("told");
    let stand_in = rig.lab.path("bin");
    rig.s.run(&format!(
        "mkdir -p {0}; echo '#!/bin/sh\n[ \"$1 $2\" != \"link show\" ] || exit 1\necho \"$@\" >>{1}' >{0}/ip; chmod 755 {0}/ip",
        stand_in.display(),
        told.display()
    ));
    let before = format!("PATH={}:$PATH;", stand_in.display());
    let (job, log) = pasted(&rig, "linux", &config, "", &before);
    let said = || fs::read_to_string(&log).unwrap_or_default();
    wait_for("the tunnel", PATIENCE, || said().contains("the tunnel is up: fd00:2:7::/48").then_some(()));
    assert_eq!(server.tunnel("foo@dtcp")["remote"], C4);
    job.end(Signal::SIGTERM, PATIENCE);
    no_tunnel_remains(&server);
    let told = fs::read_to_string(&told).unwrap_or_default();
    let all = [
        &format!("tunnel add six0 mode sit local {C4} remote {S4} ttl 64"),
        "link set six0 mtu 1280 up",
        "-6 addr add fd00:2:7::1/128 dev six0",
        "-6 route add unreachable fd00:2:7::/48 metric 4096",
        "-6 route add default dev six0",
        "tunnel del six0",
        "-6 route del unreachable fd00:2:7::/48 metric 4096",
    ];
    assert_eq!(told.lines().collect::<Vec<_>>(), all, "{}", said());
    server.stop();
}

#[test]
fn what_is_pasted_for_dtcpc_brings_up_the_tunnel() {
    let Some(rig) = Rig::new_or_skip("sixway snippet --for dtcpc, run as it is but in the foreground") else {
        return;
    };
    let config = server_config(&rig, "");
    let server = Router::start(&rig.lab, &rig.s, &config);
    let bin = rig.lab.path("bin");
    rig.s.run(&format!("mkdir -p {0}; ln -s {1} {0}/dtcpc", bin.display(), program().display()));
    // The file with passwords belongs to the machine: the story has one of its own.
    let before =
        format!("PATH={}:$PATH; mount --make-rprivate /; mount -t tmpfs none /usr/local/etc;", bin.display());
    let (job, log) = pasted(&rig, "dtcpc", &config, "s/^dtcpc -lD/exec dtcpc -l/", &before);
    let said = || fs::read_to_string(&log).unwrap_or_default();
    wait_for("the tunnel", Duration::from_secs(10), || said().contains("the tunnel is up").then_some(()));
    assert_eq!(pings(&rig.c, U6, 3, ""), 3);
    job.end(Signal::SIGTERM, PATIENCE);
    no_tunnel_remains(&server);
    server.stop();
}
