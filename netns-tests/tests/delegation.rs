//! `sixway connect --pd`: a prefix asked for inside a tunnel that has come up by any means, put on a link, kept over restarts,
//! given back.
//!
//! ```text
//!   H ── c1 C (sixway connect --pd --pd-to c1) ══ tunnel ══ S (sixway, [dhcpv6]; or a real server) ──IPv6── U
//! ```

use std::fs;
use std::path::Path;

use netns_tests::dtcp::server_config;
use netns_tests::{
    C4, Connected, Job, PATIENCE, PYTHON, Rig, Router, S4, Space, U6, device, pings, program, wait_for,
};
use nix::sys::signal::Signal;
use sixway::delegation::plan::subnet;
use sixway_dataplane::update::Ipv6Prefix;

const DHCPV6: &str = "[dhcpv6]\npreferred = 60\nvalid = 90\ndns = [\"fd00:1::2\"]\n\
                      [[pool]]\nprefix = \"fd00:2:4000::/36\"\nassign = 56\n\
                      [[pool]]\nprefix = \"fd00:2:50::/64\"\naddresses = true\n";

/// The rig with a link c1 behind C, and a host on it.
fn rig(story: &str) -> Option<(Rig, Space)> {
    let mut rig = Rig::new_or_skip(story)?;
    let h = rig.lab.space("H");
    rig.lab.veth(&rig.c, "c1", &h, "h0");
    rig.c.run("sysctl -qw net.ipv6.conf.all.forwarding=1");
    Some((rig, h))
}

fn connect(rig: &Rig, words: &[&str]) -> Connected {
    let duid = rig.lab.path("client.duid");
    Connected::start(rig, &[words, &["--pd-duid", &duid.to_string_lossy()]].concat())
}

/// The address out of these prefixes on a device of C, with the length behind it.
fn address(rig: &Rig, device: &str, begins: &str) -> Option<String> {
    let shown = rig.c.attempt(&format!("ip -6 -o addr show dev {device} scope global")).text;
    shown.split_whitespace().find(|word| word.starts_with(begins)).map(str::to_owned)
}

#[track_caller]
fn given(rig: &Rig, client: &Connected, begins: &str) -> String {
    wait_for(&format!("an address on c1: {}", client.log().display()), PATIENCE, || {
        address(rig, "c1", begins)
    })
}

/// Gives H an address out of the link's network, and C as its router.
fn settle(h: &Space, router: &str) -> String {
    let router = router.trim_end_matches("/64");
    let host = format!("{router}234");
    h.run(&format!("ip addr add {host}/64 dev h0 nodad; ip route replace default via {router}"));
    host
}

/// Whether H and U reach each other, which takes a moment after changes.
#[track_caller]
fn reach(rig: &Rig, h: &Space, host: &str) {
    wait_for("a way out", PATIENCE, || h.attempt(&format!("ping -n -c 1 -W 1 {U6}")).ok.then_some(()));
    assert_eq!(pings(h, U6, 3, ""), 3);
    assert_eq!(pings(&rig.u, host, 3, ""), 3);
}

/// The /56 that this address on a link is out of.
fn delegated(router: &str) -> Ipv6Prefix {
    let addr = router.trim_end_matches("/64").parse().unwrap_or_else(|why| panic!("{router}: {why}"));
    Ipv6Prefix::new(addr, 56).unwrap_or(Ipv6Prefix::ALL)
}

/// The `n`th network in it.
fn link(prefix: Ipv6Prefix, n: u64) -> Ipv6Prefix {
    subnet(prefix, n).unwrap_or_else(|| panic!("{prefix} has no network {n}"))
}

/// What `sixway status` says of the client; its socket is the lab's `c.sock`.
fn shown(rig: &Rig) -> serde_json::Value {
    let ask = format!("{} status --json --socket {}", program().display(), rig.lab.path("c.sock").display());
    let status: serde_json::Value = serde_json::from_str(&rig.c.run(&ask)).unwrap_or_default();
    status["dhcpv6_client"].clone()
}

fn bindings(server: &Router) -> u64 {
    server.status()["broker"]["bindings"].as_u64().unwrap_or(99)
}

/// Nothing of what was delegated is left in C.
#[track_caller]
fn is_clean(rig: &Rig) {
    assert_eq!(address(rig, "c1", "fd00:2:"), None);
    assert_eq!(address(rig, "six0", "fd00:2:50:"), None);
    let routes = rig.c.run("ip -6 route");
    assert!(!routes.contains("fd00:2:"), "{routes}");
}

/// What is held, for how long, from whom and where, and each message, are to be seen.
#[track_caller]
fn is_shown(rig: &Rig, prefix: Ipv6Prefix) {
    let client = shown(rig);
    assert_eq!((&client["state"], &client["tunnel"]), (&"bound".into(), &"dtcp".into()), "{client}");
    let held = &client["prefixes"][0];
    assert_eq!(held["prefix"], prefix.to_string());
    let seconds = |of: &serde_json::Value| of.as_u64().unwrap_or(999);
    assert!(
        seconds(&held["preferred_s"]) <= 60 && (31..=90).contains(&seconds(&held["valid_s"])),
        "{client}"
    );
    assert!(seconds(&client["renew_s"]) <= 30 && seconds(&client["rebind_s"]) <= 48, "{client}");
    assert!(client["server"].as_str().is_some_and(|duid| duid.starts_with("00:04:")), "{client}");
    let first = format!("{}1/64", link(prefix, 1).addr());
    let given = client["given"].as_array().is_some_and(|all| {
        all.iter().any(|one| one["interface"] == "c1" && one["address"] == first.as_str())
    });
    assert!(given && client["dns"][0] == "fd00:1::2", "{client}");
    let counts = &client["counts"];
    for name in ["sent_solicit", "heard_advertise", "sent_request", "heard_reply"] {
        assert!(seconds(&counts[name]) >= 1, "{name}: {counts}");
    }
    assert_eq!((&counts["damaged"], &counts["ignored_malformed"]), (&0.into(), &0.into()));
    let screen =
        rig.c.run(&format!("{} status --socket {}", program().display(), rig.lab.path("c.sock").display()));
    assert!(screen.contains(&format!("delegated  {prefix}: preferred ")), "{screen}");
    assert!(screen.contains(&format!("given      c1: {first}")), "{screen}");
}

/// RFC: X3 (RFC 7084 WPD-5)
#[test]
fn a_host_behind_a_dtcp_tunnel_has_a_network_over_a_crash_of_the_server() {
    let Some((rig, h)) = rig("delegation: DTCP tunnelonly, a host behind, a crash, the end") else { return };
    let config = server_config(&rig, DHCPV6);
    let server = Router::start(&rig.lab, &rig.s, &config);
    let secret = rig.lab.write("password", "adam\n");
    let (radvd, told) = (rig.lab.path("radvd.conf"), rig.lab.path("told"));
    let words = "$SIXWAY_EVENT $SIXWAY_PREFIX $SIXWAY_SUBNETS $SIXWAY_DNS";
    let script = rig.lab.write("script.sh", &format!("echo \"{words}\" >> {}\n", told.display()));
    let url = format!("dtcp://eve@{S4}?type=tunnelonly&pd=56");
    let paths =
        [&secret, &rig.lab.path("c.sock"), &radvd, &script].map(|path| path.to_string_lossy().into_owned());
    let [secret, socket, radvd_file, script] = &paths;
    let client = connect(
        &rig,
        &[
            &url,
            "--password-file",
            secret,
            "--socket",
            socket,
            "--pd-to",
            "c1:1",
            "--pd-to",
            "c0:3",
            "--pd-radvd",
            radvd_file,
            "--pd-script",
            script,
        ],
    );
    let router = given(&rig, &client, "fd00:2:4");
    assert!(router.ends_with("::1/64"), "{router}");
    let prefix = delegated(&router);
    println!("    delegated: {prefix}");
    let host = settle(&h, &router);
    reach(&rig, &h, &host);
    // The third /64 is on the other link, and what is on none leads nowhere.
    let third = link(prefix, 3);
    assert_eq!(address(&rig, "c0", "fd00:2:4"), Some(format!("{}1/64", third.addr())));
    let routes = rig.c.run("ip -6 route");
    assert!(routes.contains(&format!("unreachable {prefix}")), "{routes}");
    let nobody = link(prefix, 99).addr();
    let lost = h.attempt(&format!("ping -n -c 1 -W 1 {nobody}1"));
    assert!(!lost.ok && lost.text.contains("nreachable"), "{}", lost.text);
    wait_for("radvd's file", PATIENCE, || {
        let text = fs::read_to_string(&radvd).unwrap_or_default();
        (text.contains("interface c1") && text.contains("RDNSS fd00:1::2")).then_some(())
    });
    assert_eq!(bindings(&server), 1);
    is_shown(&rig, prefix);
    server.crash();

    let server = Router::start(&rig.lab, &rig.s, &config);
    client.says("the tunnel is back");
    reach(&rig, &h, &host);
    assert_eq!((given(&rig, &client, "fd00:2:4"), bindings(&server)), (router.clone(), 1));
    client.stop();
    is_clean(&rig);
    assert_eq!(bindings(&server), 0);
    let told = fs::read_to_string(&told).unwrap_or_default();
    let told: Vec<&str> = told.lines().collect();
    let first = format!("up {prefix} c1={} c0={third} fd00:1::2", link(prefix, 1));
    assert_eq!(told.first(), Some(&first.as_str()), "{told:?}");
    assert_eq!(told.last().map(|line| line.starts_with(&format!("down {prefix}"))), Some(true), "{told:?}");
    let text = fs::read_to_string(&radvd).unwrap_or_default();
    assert!(text.contains("AdvDefaultLifetime 0") && text.contains("AdvValidLifetime 0"), "{text}");
    server.stop();
}

#[test]
fn a_prefix_outlives_the_tunnel_s_udp_port() {
    let Some((rig, h)) = rig("delegation: TSP, a new port, an address too") else { return };
    let secret = rig.lab.write("secret", "wonderland\n");
    let (program, store) = (program(), rig.lab.path("store.db"));
    rig.s.run(&format!(
        "{} user add alice --store {} --secret-file {}",
        program.display(),
        store.display(),
        secret.display()
    ));
    let tsp = format!(
        "[store]\npath = \"{}\"\n[tsp]\nrealm = \"broker.example\"\n[[pool]]\nprefix = \"fd00:2:f::/64\"\npairs = true\n{DHCPV6}",
        store.display()
    );
    let server = Router::start(&rig.lab, &rig.s, &Rig::server_config("", &tsp));
    let url = format!("tsp://alice@{S4}?tunnel=v6udpv4");
    let (secret, socket) = (secret.to_string_lossy(), rig.lab.path("c.sock"));
    let socket = socket.to_string_lossy();
    let words = ["--password-file", &secret, "--socket", &socket, "--pd=60", "--pd-to", "c1", "--pd-address"];
    let client = connect(&rig, &[&[url.as_str()][..], &words].concat());
    let router = given(&rig, &client, "fd00:2:4");
    let host = settle(&h, &router);
    reach(&rig, &h, &host);
    // The address that is asked for is the tunnel's own: it is there already, and stays.
    let own = address(&rig, "six0", "fd00:2:f:");
    assert_eq!(pings(&rig.c, U6, 3, ""), 3);
    // What a leased tunnel has brought to the server's device comes back with it.
    let lent = || rig.s.attempt("ip -6 -o addr show dev six0 scope global | grep -o 'fd00:2:f:[^ ]*'").text;
    let before = lent();
    assert!(before.starts_with("fd00:2:f:"), "{before}");
    rig.s.run("ip link set six0 down; ip link set six0 up");
    wait_for("the server's end of the pair", PATIENCE, || (lent() == before).then_some(()));
    reach(&rig, &h, &host);
    client.job.signal(Signal::SIGHUP);
    client.says_times("the tunnel is up", 2);
    reach(&rig, &h, &host);
    assert_eq!(given(&rig, &client, "fd00:2:4"), router);
    assert!(own.is_some() && address(&rig, "six0", "fd00:2:f:") == own);
    client.stop();
    is_clean(&rig);
    assert_eq!(bindings(&server), 0);
    server.stop();
}

/// The client's end of a tunnel by protocol 41, as an operator writes it.
fn static_config(rig: &Rig) -> String {
    let text = format!(
        "[router]\ntun = \"six0\"\n[udp]\nports = []\n[admin]\nsocket = \"{}\"\n[[tunnel]]\nname = \"up\"\nencap = \"proto41\"\n\
         local = \"{C4}\"\nremote = \"{S4}\"\nprefixes = [\"::/0\"]\ndefault_route = true\n",
        rig.lab.path("c.sock").display()
    );
    rig.lab.write("client.toml", &text).to_string_lossy().into_owned()
}

fn static_server(rig: &Rig) -> String {
    let store = rig.lab.path("store.db");
    let tunnel = format!("[[tunnel]]\nname = \"c\"\nencap = \"proto41\"\nremote = \"{C4}\"\n");
    Rig::server_config("", &format!("{tunnel}[store]\npath = \"{}\"\n{DHCPV6}", store.display()))
}

/// Whether the client says that its address is on this interface, or why it is not.
fn absent(rig: &Rig, interface: &str) -> Option<String> {
    let client = shown(rig);
    let given = client["given"].as_array().cloned().unwrap_or_default();
    let one = given.iter().find(|one| one["interface"] == interface);
    let one = one.unwrap_or_else(|| panic!("nothing for {interface}: {client}"));
    one["absent"].as_str().map(str::to_owned)
}

#[test]
fn interfaces_that_come_and_go_are_given_their_networks_again() {
    let Some((rig, h)) = rig("delegation: interfaces go down, vanish, come late") else { return };
    let server = Router::start(&rig.lab, &rig.s, &static_server(&rig));
    let config = static_config(&rig);
    let words = ["--config", &config, "--pd", "--pd-address", "--pd-to", "c1", "--pd-to", "late0:2"];
    let client = connect(&rig, &words);
    let router = given(&rig, &client, "fd00:2:4");
    let host = settle(&h, &router);
    reach(&rig, &h, &host);
    client.says("is not on late0: there is no such interface");
    // A tunnel that has nothing but what is delegated in it is tried as well.
    let audit = format!("{} audit --socket {}", program().display(), server.socket().display());
    let audit = rig.s.attempt(&audit).text;
    assert!(audit.contains("1 tunnel tried") && audit.contains("pass  loops"), "{audit}");
    assert_eq!(absent(&rig, "late0").as_deref(), Some("there is no such interface"));
    let back = |interface: &str, begins: &str| {
        wait_for(&format!("an address on {interface}: {}", client.said()), PATIENCE, || {
            address(&rig, interface, begins)
        })
    };
    let second = format!("{}1/64", link(delegated(&router), 2).addr());

    rig.c.run("ip link add late0 type veth peer name late1");
    wait_for("a word", PATIENCE, || {
        (absent(&rig, "late0").as_deref() == Some("the interface is down")).then_some(())
    });
    rig.c.run("ip link set late0 up; ip link set late1 up");
    assert_eq!(back("late0", "fd00:2:4"), second);
    rig.c.run("ip link del late0");
    wait_for("a word", PATIENCE, || absent(&rig, "late0").is_some().then_some(()));
    rig.c.run("ip link add late0 type veth peer name late1; ip link set late0 up; ip link set late1 up");
    assert_eq!(back("late0", "fd00:2:4"), second);

    rig.c.run("ip link set c1 down");
    wait_for("a word", PATIENCE, || {
        (absent(&rig, "c1").as_deref() == Some("the interface is down")).then_some(())
    });
    let ask = format!("{} status --socket {}", program().display(), rig.lab.path("c.sock").display());
    assert!(rig.c.run(&ask).contains(&format!("c1: {router} (not there: the interface is down)")));
    rig.c.run("ip link set c1 up");
    assert_eq!(back("c1", "fd00:2:4"), router);
    wait_for("a word", PATIENCE, || absent(&rig, "c1").is_none().then_some(()));
    reach(&rig, &h, &host);
    rig.c.run("ip -6 addr flush dev c1 scope global");
    assert_eq!(back("c1", "fd00:2:4"), router);
    reach(&rig, &h, &host);

    // The tunnel's own devices, at both ends: with them fall the way out, the address that was asked for, and the server's routes.
    let own = address(&rig, "six0", "fd00:2:50:");
    rig.c.run("ip link set six0 down; ip link set six0 up");
    assert_eq!(Some(back("six0", "fd00:2:50:")), own);
    reach(&rig, &h, &host);
    rig.s.run("ip link set six0 down; sleep 1; ip link set six0 up");
    reach(&rig, &h, &host);
    client.stop();
    is_clean(&rig);
    server.stop();
}

#[test]
fn who_is_not_answered_says_so() {
    let Some((rig, _)) = rig("delegation: nobody answers; then somebody refuses, and is silent again") else {
        return;
    };
    let deaf =
        static_server(&rig).replace("[dhcpv6]\npreferred = 60\nvalid = 90\ndns = [\"fd00:1::2\"]\n", "");
    assert!(!deaf.contains("dhcpv6"));
    let poor = static_server(&rig).replace("[[pool]]\nprefix = \"fd00:2:4000::/36\"\nassign = 56\n", "");
    assert!(!poor.contains("assign"));
    let server = Router::start(&rig.lab, &rig.s, &deaf);
    let config = static_config(&rig);
    let client = connect(&rig, &["--config", &config, "--pd"]);
    client.says("nobody answers DHCPv6 in the tunnel");
    let status = shown(&rig);
    assert!(status["unanswered"].as_u64() >= Some(3) && status["silent_s"].as_u64() >= Some(12), "{status}");
    assert!(server.reload(&poor).ok);
    client.says("delegates nothing");
    wait_for("a refusal", PATIENCE, || shown(&rig)["refused"].is_string().then_some(()));
    assert!(server.reload(&deaf).ok);
    client.says_times("nobody answers DHCPv6 in the tunnel", 2);
    assert!(shown(&rig)["refused"].is_null(), "{}", shown(&rig));
    assert!(server.reload(&static_server(&rig)).ok);
    client.says("delegated: fd00:2:4");
    assert_eq!(shown(&rig)["unanswered"], 0);
    client.stop();
    server.stop();
}

#[test]
fn dhcp6ctl_stops_and_starts_it() {
    let Some((rig, h)) = rig("delegation: a static tunnel, dhcp6ctl") else { return };
    let server = Router::start(&rig.lab, &rig.s, &static_server(&rig));
    let key = rig.lab.write("key", "AAECAwQFBgcICQoLDA0ODw==\n");
    let wrong = rig.lab.write("wrong", "AAAA\n");
    let (config, flag) = (static_config(&rig), format!("--pd-ctl={}", key.display()));
    let client = connect(
        &rig,
        &["--config", &config, "--pd", "--pd-address", "--pd-to", "c1", &flag, "--pd-ctl-port", "5599"],
    );
    let router = given(&rig, &client, "fd00:2:4");
    let host = settle(&h, &router);
    reach(&rig, &h, &host);
    let own = wait_for("an address of its own", PATIENCE, || address(&rig, "six0", "fd00:2:50:"));
    assert!(own.ends_with("/128"), "{own}");
    let ours = format!("{} dhcp6ctl", program().display());
    let real = Path::new("/usr/sbin/dhcp6ctl");
    let mut programs = vec![ours];
    if real.exists() {
        programs.push(real.display().to_string());
    } else {
        netns_tests::skipped(format_args!("{} (wide-dhcpv6-client) is not installed", real.display()));
    }
    for (n, ctl) in programs.into_iter().enumerate() {
        let tell =
            |key: &Path, words: &str| rig.c.run(&format!("{ctl} -C -k {} -p 5599 {words}", key.display()));
        tell(&wrong, "stop interface six0");
        tell(&key, "stop interface c1");
        client.says_times("nothing is asked on c1", n + 1);
        assert_eq!(bindings(&server), 2, "neither was obeyed");
        tell(&key, "stop interface six0");
        wait_for("the prefix to go", PATIENCE, || (bindings(&server) == 0).then_some(()));
        is_clean(&rig);
        tell(&key, "start interface six0");
        assert_eq!(given(&rig, &client, "fd00:2:4"), router);
        // It is given back and asked for anew.
        tell(&key, "start interface six0");
        wait_for("it to go and come", PATIENCE, || (bindings(&server) == 2).then_some(()));
        given(&rig, &client, "fd00:2:4");
        tell(&key, "reload");
        reach(&rig, &h, &host);
    }
    rig.c.run(&format!("{} dhcp6ctl -C -k {} -p 5599 stop", program().display(), key.display()));
    let mut client = client;
    let status = wait_for("it to end", PATIENCE, || client.job.exited());
    assert!(status.success(), "{}", client.said());
    is_clean(&rig);
    assert_eq!(bindings(&server), 0);
    server.stop();
}

#[test]
fn a_killed_client_comes_back_to_what_it_had() {
    let Some((rig, h)) = rig("delegation: kill -9 of the client") else { return };
    let server = Router::start(&rig.lab, &rig.s, &static_server(&rig));
    let config = static_config(&rig);
    let words = ["--config", &config, "--pd", "--pd-to", "c1"];
    let client = connect(&rig, &words);
    let router = given(&rig, &client, "fd00:2:4");
    let host = settle(&h, &router);
    reach(&rig, &h, &host);
    client.job.end(Signal::SIGKILL, PATIENCE);
    // What it has left behind ends by itself, or is the next one's.
    let left = rig.c.run("ip -6 -o addr show dev c1 scope global");
    assert!(left.contains(&router) && !left.contains("valid_lft forever"), "{left}");
    let client = connect(&rig, &words);
    client.says("delegated:");
    assert_eq!((given(&rig, &client, "fd00:2:4"), bindings(&server)), (router, 1));
    reach(&rig, &h, &host);
    client.stop();
    is_clean(&rig);
    assert_eq!(bindings(&server), 0);
    server.stop();
}

/// RFC: V35 (RFC 8415 section 18.3.11)
#[test]
fn a_prefix_that_the_server_takes_back_is_replaced_at_once() {
    let Some((rig, h)) = rig("delegation: renumbered by Reconfigure") else { return };
    let duid = "00:04:00:01:02:03:04:05:06:07:08:09:0a:0b:0c:0d:0e:0f";
    rig.lab.write("client.duid", duid);
    let after = static_server(&rig);
    let before = format!("{after}[[dhcpv6_host]]\nduid = \"{duid}\"\nprefixes = [\"fd00:2:9::/48\"]\n");
    let server = Router::start(&rig.lab, &rig.s, &before);
    let (config, radvd) = (static_config(&rig), rig.lab.path("radvd.conf"));
    let file = radvd.to_string_lossy();
    let client = connect(&rig, &["--config", &config, "--pd", "--pd-to", "c1", "--pd-radvd", &file]);
    assert_eq!(given(&rig, &client, "fd00:2:"), "fd00:2:9::1/64");
    assert!(server.reload(&after).ok);
    let router = given(&rig, &client, "fd00:2:4");
    wait_for("the old one to be withdrawn in radvd's file", PATIENCE, || {
        let text = fs::read_to_string(&radvd).unwrap_or_default();
        let old = text.split("prefix ").find(|part| part.starts_with("fd00:2:9::/64")).unwrap_or_default();
        old.contains("AdvPreferredLifetime 0").then_some(())
    });
    let host = settle(&h, &router);
    reach(&rig, &h, &host);
    // An operator has it ask anew: what it has lasts as long as when it was given.
    let left = || {
        let shown = rig.c.run("ip -6 -o addr show dev c1 scope global");
        let own = shown.lines().find(|line| line.contains(&router)).unwrap_or_default();
        let seconds = own.split("valid_lft ").nth(1).and_then(|rest| rest.split("sec").next());
        seconds.and_then(|n| n.parse::<u32>().ok()).unwrap_or_else(|| panic!("no lifetime: {shown}"))
    };
    let first = left();
    wait_for("time to pass", PATIENCE, || (left() + 4 <= first).then_some(()));
    let said =
        rig.s.run(&format!("{} reconfigure --socket {}", program().display(), server.socket().display()));
    assert!(said.contains("told: 1"), "{said}");
    wait_for(&format!("a Renew: {}", client.said()), PATIENCE, || (left() + 2 >= first).then_some(()));
    let heard = &server.status()["dhcpv6"];
    assert_eq!((&heard["reconfigure"], &heard["reconfigure_heard"]), (&2.into(), &2.into()), "{heard}");
    client.stop();
    is_clean(&rig);
    server.stop();
}

/// RFC: V35 (RFC 8415 section 18.3.11)
#[test]
fn what_a_pool_or_an_operator_takes_is_replaced_at_once() {
    let Some((rig, h)) = rig("delegation: another pool, kick, and reconfigure after all is lost") else {
        return;
    };
    let first = static_server(&rig);
    let second = first.replace("fd00:2:4000::/36", "fd00:2:5000::/36");
    let server = Router::start(&rig.lab, &rig.s, &first);
    let client = connect(&rig, &["--config", &static_config(&rig), "--pd", "--pd-to", "c1"]);
    given(&rig, &client, "fd00:2:4");
    assert!(server.reload(&second).ok);
    let router = given(&rig, &client, "fd00:2:5");
    assert_eq!(address(&rig, "c1", "fd00:2:4"), None);
    let host = settle(&h, &router);
    reach(&rig, &h, &host);
    let told = |n: u64| {
        wait_for("the client to be told", PATIENCE, || {
            let counts = &server.status()["dhcpv6"];
            ((&counts["reconfigure"], &counts["reconfigure_heard"]) == (&n.into(), &n.into())).then_some(())
        });
    };
    told(1);
    let order = |words: &str| {
        rig.s.run(&format!("{} {words} --socket {}", program().display(), server.socket().display()))
    };
    let kick = format!("kick {}", delegated(&router));
    let said = order(&kick);
    assert!(said.contains("ended: 1") && said.contains("its client is told"), "{said}");
    told(2);
    wait_for("it to ask again", PATIENCE, || (bindings(&server) == 1).then_some(()));
    reach(&rig, &h, &host);
    // One that hears nothing for a while, and has lost all that it had.
    client.job.signal(Signal::SIGSTOP);
    order(&kick);
    wait_for("it to have nothing", PATIENCE, || (bindings(&server) == 0).then_some(()));
    let said = order("reconfigure c");
    assert!(said.contains("told: 1"), "{said}");
    client.job.signal(Signal::SIGCONT);
    wait_for("it to ask again", PATIENCE, || (bindings(&server) == 1).then_some(()));
    let said = order("reconfigure c");
    assert!(said.contains("told: 1"), "it is one client: {said}");
    // What is in the file at the next start counts as well.
    server.stop();
    let server = Router::start(&rig.lab, &rig.s, &first);
    let router = given(&rig, &client, "fd00:2:4");
    let order = |words: &str| {
        rig.s.run(&format!("{} {words} --socket {}", program().display(), server.socket().display()))
    };
    let kick = format!("kick {}", delegated(&router));
    // Where nobody may be told, the operator is.
    assert!(server.reload(&first.replace("[dhcpv6]", "[dhcpv6]\nreconfigure = false")).ok);
    let said = order(&kick);
    assert!(said.contains("goes on believing") && said.contains("at the latest"), "{said}");
    client.job.end(Signal::SIGKILL, PATIENCE);
    server.stop();
}

/// A tunnel that leads to a /64, in which the client's end has its address, as README has it.
#[test]
fn the_tunnel_s_own_link_is_delegated_only_where_nothing_else_is_and_is_put_on_no_other() {
    let Some((rig, h)) = rig("delegation: the tunnel's own /64") else { return };
    let link = "prefixes = [\"fd00:2:c::/64\"]\n[store]";
    let with = static_server(&rig).replace("[store]", link);
    let without = with.replace("[[pool]]\nprefix = \"fd00:2:4000::/36\"\nassign = 56\n", "");
    let server = Router::start(&rig.lab, &rig.s, &with);
    let text = fs::read_to_string(static_config(&rig)).unwrap_or_else(|why| panic!("{why}"));
    let text = text.replace("tun = \"six0\"", "tun = \"six0\"\naddress = [\"fd00:2:c::2/64\"]");
    let config = rig.lab.write("client.toml", &text).to_string_lossy().into_owned();
    let client = connect(&rig, &["--config", &config, "--pd", "--pd-to", "c1"]);
    let router = given(&rig, &client, "fd00:2:4");
    let host = settle(&h, &router);
    reach(&rig, &h, &host);
    client.stop();
    // Nothing else is there: both ends say so, and the link stays where it is.
    assert!(server.reload(&without).ok);
    let client = connect(&rig, &["--config", &config, "--pd", "--pd-to", "c1"]);
    client.says("nothing is put on c1");
    client.says("a /56 was asked for, and fd00:2:c::/64 is smaller");
    assert!(server.log().contains("fd00:2:c::/64 is delegated in tunnel 'c'"), "{}", server.log());
    assert_eq!(address(&rig, "c1", "fd00:2:"), None);
    let leads = rig.c.run("ip -6 route show fd00:2:c::/64");
    assert!(leads.contains("dev six0") && !leads.contains("unreachable"), "{leads}");
    rig.c.run(&format!("ping -n -c 1 -W 2 -I fd00:2:c::2 {U6}"));
    client.stop();
    server.stop();
}

/// RFC: V73 (RFC 8415 section 18.2.6)
#[test]
fn information_alone_is_told_to_the_script() {
    let Some((rig, _h)) = rig("delegation: --pd-info") else { return };
    let server = Router::start(&rig.lab, &rig.s, &static_server(&rig));
    let (config, told) = (static_config(&rig), rig.lab.path("told"));
    let line = format!("echo \"$SIXWAY_EVENT $SIXWAY_PREFIX $SIXWAY_DNS\" >> {}\n", told.display());
    let script = rig.lab.write("script.sh", &line);
    let client = connect(&rig, &["--config", &config, "--pd-info", "--pd-script", &script.to_string_lossy()]);
    let lines = || fs::read_to_string(&told).unwrap_or_default();
    wait_for("the script to be told", PATIENCE, || lines().contains("informed  fd00:1::2").then_some(()));
    assert_eq!((bindings(&server), shown(&rig)["state"].clone()), (0, "informed".into()));
    assert_eq!(server.status()["dhcpv6"]["information_request"], 1);
    client.stop();
    assert_eq!(lines().lines().last(), Some("informed  "), "and told that it holds no more: {}", lines());
    server.stop();
}

/// RFC: V72 (RFC 8415 section 18.2.12)
#[test]
fn who_has_an_address_and_no_prefix_confirms_it() {
    let Some((rig, _h)) = rig("delegation: an address alone, on a link that comes back") else { return };
    let pool = "[[pool]]\nprefix = \"fd00:2:4000::/36\"\nassign = 56\n";
    let without = static_server(&rig).replace(pool, "");
    let server = Router::start(&rig.lab, &rig.s, &without);
    let client = connect(&rig, &["--config", &static_config(&rig), "--pd", "--pd-address"]);
    let own = || address(&rig, "six0", "fd00:2:50:");
    let first = wait_for("an address of its own", PATIENCE, own);
    assert_eq!((bindings(&server), shown(&rig)["prefixes"].as_array().map(Vec::len)), (1, Some(0)));
    // The file is read again, with a new device, on which nothing is.
    client.job.signal(Signal::SIGHUP);
    wait_for("a Confirm", PATIENCE, || (server.status()["dhcpv6"]["confirm"] == 1).then_some(()));
    assert_eq!((wait_for("it to be back", PATIENCE, own), bindings(&server)), (first, 1));
    wait_for("it to go on", PATIENCE, || (shown(&rig)["state"] == "bound").then_some(()));
    client.stop();
    assert_eq!(bindings(&server), 0);
    server.stop();
}

#[test]
fn what_would_be_done_is_shown() {
    let Some((rig, _h)) = rig("delegation: --print, and what is refused") else { return };
    let config = static_config(&rig);
    let program = program().display().to_string();
    let shown =
        rig.c.run(&format!("{program} connect --config {config} --pd --pd-to c1 --pd-radvd /tmp/x --print"));
    for part in ["asks for a /56", "c1: /64 number 1", "/tmp/x", "unreachable"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let refused = rig.c.attempt(&format!("{program} connect --config {config}"));
    assert!(!refused.ok && refused.text.contains("sixway run --config"), "{}", refused.text);
}

/// A device in S that carries the tunnel to C, for servers that need one.
fn sixs(rig: &Rig) -> Job {
    let job = device(&rig.lab, &rig.s, "sixs", S4, C4);
    rig.s.run("ip -6 addr add fd00:2:77::1/64 dev sixs nodad");
    job
}

/// A prefix out of a real server's hands, on c1, and given back.
fn from_a_real_server(rig: &Rig, begins: &str) {
    let config = static_config(rig);
    let client = connect(rig, &["--config", &config, "--pd", "--pd-to", "c1"]);
    let router = given(rig, &client, begins);
    println!("    c1 has {router}");
    assert!(router.ends_with("::1/64"), "{router}");
    // It is renewed: the address is given more time than it had.
    let left = || {
        let shown = rig.c.run("ip -6 -o addr show dev c1 scope global");
        let seconds = shown.split("valid_lft ").nth(1).and_then(|rest| rest.split("sec").next());
        seconds.and_then(|n| n.parse::<u32>().ok()).unwrap_or_else(|| panic!("no lifetime: {shown}"))
    };
    let first = left();
    wait_for("time to pass", PATIENCE, || (left() + 3 <= first).then_some(()));
    wait_for(&format!("a Renew: {}", client.said()), PATIENCE, || (left() + 1 >= first).then_some(()));
    client.stop();
    is_clean(rig);
}

#[test]
fn wide_s_server_is_understood() {
    let Some((rig, _h)) = rig("delegation: WIDE's dhcp6s in a tunnel") else { return };
    let server = Path::new("/usr/sbin/dhcp6s");
    if !server.exists() || !Path::new(PYTHON).exists() {
        netns_tests::skipped(format_args!(
            "{} (wide-dhcpv6-server) or {PYTHON} is not installed",
            server.display()
        ));
        return;
    }
    let _device = sixs(&rig);
    let duid = "00:04:00:01:02:03:04:05:06:07:08:09:0a:0b:0c:0d:0e:0f";
    rig.lab.write("client.duid", duid);
    let conf = format!("host c {{ duid {duid}; prefix fd00:2:9000::/48 10 20; }};\n");
    let conf = rig.lab.write("dhcp6s.conf", &conf);
    let log = rig.lab.path("dhcp6s.log");
    let script = rig.lab.write(
        "dhcp6s.sh",
        &format!(
            "mkdir -p /var/lib/dhcpv6; mount -t tmpfs none /var/lib/dhcpv6\n\
             printf '\\016\\000\\000\\001\\000\\001\\053\\000\\000\\001\\002\\000\\000\\000\\123\\001' > /var/lib/dhcpv6/dhcp6s_duid\n\
             exec {} -f -D -c {} -P {} -k /dev/null sixs\n",
            server.display(),
            conf.display(),
            rig.lab.path("dhcp6s.pid").display()
        ),
    );
    let job = rig.s.spawn(Path::new("/usr/bin/unshare"), &["-m", "sh", &script.to_string_lossy()], &log);
    wait_for("the server", PATIENCE, || rig.s.run("ss -lun").contains(":547").then_some(()));
    from_a_real_server(&rig, "fd00:2:9000:");
    let said = fs::read_to_string(&log).unwrap_or_default();
    assert!(said.contains("release"), "{said}");
    job.end(Signal::SIGTERM, PATIENCE);
}

#[test]
fn kea_is_understood() {
    let Some((rig, _h)) = rig("delegation: Kea in a tunnel") else { return };
    let server = Path::new("/usr/sbin/kea-dhcp6");
    if !server.exists() || !Path::new(PYTHON).exists() {
        netns_tests::skipped(format_args!(
            "{} (kea-dhcp6-server) or {PYTHON} is not installed",
            server.display()
        ));
        return;
    }
    let _device = sixs(&rig);
    let conf = "{\"Dhcp6\": {\"interfaces-config\": {\"interfaces\": [\"sixs\"]}, \
                \"lease-database\": {\"type\": \"memfile\", \"persist\": false}, \
                \"preferred-lifetime\": 10, \"valid-lifetime\": 20, \"renew-timer\": 4, \"rebind-timer\": 8, \
                \"server-id\": {\"type\": \"EN\", \"enterprise-id\": 2495, \"identifier\": \"87ABEF7A5BB545\", \"persist\": false}, \
                \"subnet6\": [{\"subnet\": \"fd00:2:77::/64\", \"interface\": \"sixs\", \
                \"pd-pools\": [{\"prefix\": \"fd00:2:8000::\", \"prefix-len\": 40, \"delegated-len\": 56}]}]}}\n";
    let conf = rig.lab.write("kea.json", conf);
    let (log, folder) = (rig.lab.path("kea.log"), rig.lab.path("kea"));
    fs::create_dir_all(&folder).unwrap_or_else(|why| panic!("{why}"));
    let script = rig.lab.write(
        "kea.sh",
        &format!(
            "export KEA_PIDFILE_DIR={0} KEA_LOCKFILE_DIR={0} KEA_LOGGER_DESTINATION=stdout\nexec {1} -c {2}\n",
            folder.display(),
            server.display(),
            conf.display()
        ),
    );
    let job = rig.s.spawn(Path::new("/bin/sh"), &[&script.to_string_lossy()], &log);
    wait_for(&format!("the server: {}", log.display()), PATIENCE, || {
        rig.s.run("ss -lun").contains(":547").then_some(())
    });
    from_a_real_server(&rig, "fd00:2:80");
    job.end(Signal::SIGTERM, PATIENCE);
}
