//! `sixway connect tsp://` against our own server: every type of tunnel, with and without a NAT, redirected, renewed, after a
//! restart, by gogoc's configuration and with a script in its style.
//!
//! ```text
//!   C alice ──TSP, UDP and TCP 3653──► S ──IPv6── U        U is a second broker in one story
//! ```

use std::fs;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::time::Duration;

use netns_tests::{
    C4, Client, Connected, PATIENCE, Rig, Router, S4, Space, U6, pings, program, transfer, wait_for,
};
use nix::sys::signal::Signal;

/// What the addresses of the pool of pairs begin with.
const PAIRS: &str = "fd00:2:f::";
/// Where the second broker is.
const T4: &str = "10.72.0.2";

/// A broker in `space`, its tables those of `more` besides.
fn broker(rig: &Rig, space: &Space, more: &str) -> Router {
    Router::start(&rig.lab, space, &config(rig, more))
}

fn config(rig: &Rig, more: &str) -> String {
    let store = rig.lab.path("store.db");
    let secret = rig.lab.write("secret", "wonderland\n");
    if !store.exists() {
        let (program, store, secret) = (program(), store.display(), secret.display());
        let program = program.display();
        rig.s.run(&format!("{program} user add alice --store {store} --secret-file {secret}"));
    }
    let tsp = format!(
        "[store]\npath = \"{}\"\n[tsp]\nrealm = \"broker.example\"\n\
         mechanisms = [\"DIGEST-MD5\", \"SCRAM-SHA-256\", \"PLAIN\", \"ANONYMOUS\"]\n{more}\n\
         [[pool]]\nprefix = \"{PAIRS}/64\"\npairs = true\n\
         [[pool]]\nprefix = \"fd00:2:8000::/40\"\nassign = 56\n",
        store.display()
    );
    Rig::server_config("", &tsp)
}

fn begin(rig: &Rig, words: &[&str]) -> Connected {
    Connected::start_as(rig, "wonderland", words)
}

fn connect(rig: &Rig, words: &[&str]) -> Connected {
    let connected = begin(rig, words);
    connected.says("the tunnel is up");
    connected
}

fn url(query: &str) -> String {
    format!("tsp://alice@{S4}?{query}")
}

fn traces(rig: &Rig) -> String {
    rig.c.run("ip -o -d link 2>/dev/null; ip -o addr; ip route; ip -6 route show table all")
}

/// A tunnel by this address, of this type, by each mechanism, with traffic both ways; all is put back.
fn works(rig: &Rig, url: &str, mode: &str) {
    let before = traces(rig);
    let client = connect(rig, &[url]);
    assert!(client.said().contains(mode), "{}", client.said());
    assert!(rig.c.run("ip -6 route show default").contains("six0"));
    assert_eq!(pings(&rig.c, U6, 3, ""), 3, "{url}");
    transfer(&rig.c, &rig.u, U6, 2 << 20);
    client.stop();
    assert_eq!(traces(rig), before, "all is put back");
}

#[test]
fn every_type_and_every_mechanism_give_a_tunnel() {
    let Some(rig) = Rig::new_or_skip("connect tsp://: types and mechanisms") else { return };
    let server = broker(&rig, &rig.s, "");
    works(&rig, &url("tunnel=v6v4&auth=digest-md5"), "v6v4");
    works(&rig, &url("tunnel=v6udpv4&auth=scram-sha-256"), "v6udpv4");
    works(&rig, &url("auth=plain"), "v6v4");
    works(&rig, &format!("tsp://{S4}?tunnel=v6udpv4"), "v6udpv4");
    // What is claimed is not what is seen: a NAT, as far as the broker can know.
    works(&rig, &url("client=10.9.9.9"), "v6udpv4");
    server.stop();
}

#[test]
fn a_network_is_routed_and_tcp_serves_where_udp_is_closed() {
    let Some(rig) = Rig::new_or_skip("connect tsp://: a network, over TCP") else { return };
    let server = broker(&rig, &rig.s, "");
    rig.s.run("nft 'add table ip t; add chain ip t i { type filter hook input priority 0; }; add rule ip t i udp dport 3653 drop'");
    let client = connect(&rig, &[&url("prefix=56")]);
    assert!(client.said().contains("/56"), "{}", client.said());
    assert_eq!(pings(&rig.c, U6, 3, ""), 3);
    let said = client.said();
    let up = said.lines().find(|line| line.contains("the tunnel is up")).unwrap_or_default();
    let net = up.split(" and ").nth(1).and_then(|rest| rest.split("/56").next()).unwrap_or_default();
    assert_eq!(pings(&rig.u, &format!("{net}1"), 3, ""), 3, "{net}");
    client.stop();
    server.stop();
}

#[test]
fn what_is_only_shown_is_given_back() {
    let Some(rig) = Rig::new_or_skip("connect tsp:// --print") else { return };
    let server = broker(&rig, &rig.s, "");
    let shown = begin(&rig, &[&url("prefix=56"), "--print"]);
    shown.says("encap = \"proto41\"");
    wait_for("no tunnel to remain", PATIENCE, || (server.status()["tunnels_total"] == 0).then_some(()));
    server.stop();
}

#[test]
fn a_wrong_password_is_the_end_of_it() {
    let Some(rig) = Rig::new_or_skip("connect tsp://: a wrong password") else { return };
    let server = broker(&rig, &rig.s, "");
    let wrong = rig.lab.write("wrong", "looking-glass\n");
    let done = rig.c.attempt(&format!(
        "{} connect 'tsp://alice@{S4}?auth=digest-md5' --password-file {} 2>&1",
        program().display(),
        wrong.display()
    ));
    assert!(!done.ok && done.text.contains("300") && done.text.contains("password"), "{}", done.text);
    server.stop();
}

#[test]
fn a_restart_of_the_broker_is_survived() {
    let Some(rig) = Rig::new_or_skip("connect tsp://: the broker restarts") else { return };
    let server = broker(&rig, &rig.s, "");
    let client = connect(&rig, &[&url("tunnel=v6udpv4&keepalive=2")]);
    let address = rig.c.run("ip -6 -o addr show dev six0 scope global");
    server.stop();
    let server = broker(&rig, &rig.s, "");
    wait_for("the tunnel to forward again", Duration::from_secs(30), || {
        (pings(&rig.c, U6, 1, "") == 1).then_some(())
    });
    assert_eq!(rig.c.run("ip -6 -o addr show dev six0 scope global"), address, "the same address");
    client.stop();
    server.stop();
}

/// The client's end of the pair that it was given; which one, only the broker knows beforehand.
fn own_address(rig: &Rig) -> Ipv6Addr {
    let shown = rig.c.run("ip -6 -o addr show dev six0 scope global");
    let found = shown.split_whitespace().find_map(|word| {
        let addr = word.split('/').next()?.parse::<Ipv6Addr>().ok()?;
        addr.to_string().starts_with(PAIRS).then_some(addr)
    });
    found.unwrap_or_else(|| panic!("{shown}"))
}

#[test]
fn a_restarted_broker_sends_to_where_the_peer_was_found_last() {
    let Some(rig) = Rig::new_or_skip("connect tsp://: learned endpoints and a crash") else { return };
    let server = broker(&rig, &rig.s, "");
    let client = connect(&rig, &[&url("tunnel=v6udpv4&keepalive=60")]);
    let address = own_address(&rig).to_string();
    assert_eq!(pings(&rig.u, &address, 1, ""), 1);
    // The client dies, its tunnel lasts; a NAT in between gives the same peer another port.
    client.job.end(Signal::SIGKILL, PATIENCE);
    let moved = format!("{C4}:5999");
    let peer = Client::udp(&rig.c, &moved, &address);
    wait_for("the peer to be found elsewhere", PATIENCE, || {
        peer.ping(U6, Duration::from_millis(300));
        (server.tunnel("alice@tsp")["remote"] == moved.as_str()).then_some(())
    });
    // Written within a moment.
    std::thread::sleep(Duration::from_millis(500));
    server.crash();
    let server = broker(&rig, &rig.s, "");
    let _answers = peer.serve();
    assert_eq!(pings(&rig.u, &address, 3, ""), 3, "the peer has said nothing to the new process");
    assert_eq!(server.tunnel("alice@tsp")["remote"], moved.as_str());
    server.stop();
}

#[test]
fn a_dead_tunnel_is_asked_for_again() {
    let Some(rig) = Rig::new_or_skip("connect tsp://: signs of life") else { return };
    let server = broker(&rig, &rig.s, "");
    let client = connect(&rig, &[&url("tunnel=v6udpv4&keepalive=2")]);
    // The broker forgets the tunnel; only the client can notice.
    rig.s.run(&format!("{} kick alice --socket {}", program().display(), server.socket().display()));
    client.says("asking for it again");
    wait_for("the tunnel to be back", Duration::from_secs(30), || {
        // There is no way at all between two tunnels, which ping calls an error.
        rig.c.attempt(&format!("ping -6 -n -W 1 -c 1 {U6}")).ok.then_some(())
    });
    client.stop();
    server.stop();
}

#[test]
fn a_redirection_is_followed() {
    let Some(rig) = Rig::new_or_skip("connect tsp://: redirection") else { return };
    rig.s.run("ip addr add 10.72.0.1/24 dev s1; sysctl -qw net.ipv4.ip_forward=1");
    rig.u.run(&format!("ip addr add {T4}/24 dev u0; ip route add 10.71.0.0/24 via 10.72.0.1"));
    rig.c.run("ip route add 10.72.0.0/24 via 10.71.0.1");
    let sends_on = broker(&rig, &rig.s, &format!("brokers = [\"{T4}\"]\nredirect = \"version\""));
    let second = config(&rig, "").replace("store.db", "second.db").replace(S4, T4);
    fs::copy(rig.lab.path("store.db"), rig.lab.path("second.db"))
        .expect("the second broker has the same accounts");
    let gives = Router::start(&rig.lab, &rig.u, &second);
    let client = connect(&rig, &[&url("tunnel=v6udpv4")]);
    assert!(client.said().contains(T4), "{}", client.said());
    // The two ends of a pair are ::1 and ::2 within it.
    let end = Ipv6Addr::from(u128::from(own_address(&rig)) ^ 3);
    assert_eq!(pings(&rig.c, &end.to_string(), 3, ""), 3, "the second broker's end");
    client.stop();
    for router in [gives, sends_on] {
        router.stop();
    }
}

#[test]
fn the_old_client_s_configuration_and_script_are_understood() {
    let Some(rig) = Rig::new_or_skip("connect --gogoc-conf, with a template") else { return };
    let server = broker(&rig, &rig.s, "");
    let before = traces(&rig);
    let folder = rig.lab.path("gogoc");
    fs::create_dir_all(folder.join("template")).expect("a folder in the lab's own");
    let told = folder.join("told");
    let script = format!(
        "set -e\nenv | grep ^TSP_ > {}.$TSP_OPERATION\n[ $TSP_OPERATION = TSP_TUNNEL_CREATION ] || exit 0\n\
         ip link set $TSP_TUNNEL_INTERFACE up\n\
         ip -6 addr add $TSP_CLIENT_ADDRESS_IPV6/$TSP_TUNNEL_PREFIXLEN dev $TSP_TUNNEL_INTERFACE\n\
         ip -6 addr add $TSP_PREFIX::1/64 dev $TSP_HOME_INTERFACE\n\
         ip -6 route add default dev $TSP_TUNNEL_INTERFACE\n",
        told.display()
    );
    fs::write(folder.join("template/mine.sh"), script).expect("a file in the lab's own folder");
    let conf = rig.lab.write(
        "gogoc.conf",
        &format!(
            "userid=alice\npasswd=wonderland\nserver={S4}\nauth_method=any\nhost_type=router\nprefixlen=56\nif_prefix=lo\n\
             gogoc_dir={}\ntemplate=mine\ntunnel_mode=v6anyv4\nif_tunnel_v6udpv4=tun7\nkeepalive=yes\nkeepalive_interval=30\n\
             colour=blue\n",
            folder.display()
        ),
    );
    let client = connect(&rig, &["--gogoc-conf", &conf.to_string_lossy()]);
    assert!(client.said().contains("gogoc.conf:14: 'colour'"), "{}", client.said());
    let told_up = fs::read_to_string(format!("{}.TSP_TUNNEL_CREATION", told.display())).unwrap_or_default();
    for word in
        ["TSP_TUNNEL_INTERFACE=tun7", "TSP_HOST_TYPE=router", "TSP_PREFIXLEN=56", "TSP_HOME_INTERFACE=lo"]
    {
        assert!(told_up.lines().any(|line| line == word), "{word} in {told_up}");
    }
    assert_eq!(pings(&rig.c, U6, 3, ""), 3);
    client.stop();
    assert!(PathBuf::from(format!("{}.TSP_TUNNEL_TEARDOWN", told.display())).exists());
    rig.c.run("ip -6 addr flush dev lo scope global");
    assert_eq!(traces(&rig), before, "the device is gone");
    server.stop();
}
