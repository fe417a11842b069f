//! Path MTU with a narrow link on the way, which lets ICMP through or does not: TCP completes, 1280 octets always pass.
//!
//! ```text
//!   C 10.72.2.2 ──1500── R2 ══ 1400 or what the story says ══ R1 ──1500── 10.71.0.1 S ──IPv6── U
//! ```
//!
//! Both ends believe in 1500 octets; only the routers know. Blocking is done by nftables on both of them.

#![allow(clippy::unwrap_used, reason = "a test has nobody to return an error to")]

use std::time::Duration;

use netns_tests::{
    ALICE, ALICE_NET, BOB_NET, CLIENT_PORT, Client, Ends, IPV4, Lab, OFFLOADS, Observer, PATIENCE, ROUTER6,
    Router, S4, S6, Space, U6, UDP_PORT, forge, pings, transfer, tunnel, wait_for, without_offloads,
};

const FAR: &str = "10.72.2.2";

struct Path {
    c: Space,
    r1: Space,
    r2: Space,
    s: Space,
    u: Space,
    lab: Lab,
}

impl Path {
    /// The hosts, with so narrow a link between the routers.
    fn new_or_skip(story: &str, narrow: u16) -> Option<Self> {
        let mut lab = Lab::new_or_skip(story)?;
        let [c, r1, r2, s, u] = ["C", "R1", "R2", "S", "U"].map(|label| lab.space(label));
        lab.veth(&c, "c0", &r2, "r2c");
        lab.veth(&r2, "r2n", &r1, "r1n");
        lab.veth(&r1, "r1s", &s, "s0");
        lab.veth(&s, "s1", &u, "u0");
        c.run(&format!("ip addr add {FAR}/24 dev c0; ip route add default via 10.72.2.1"));
        r2.run("ip addr add 10.72.2.1/24 dev r2c; ip addr add 10.72.1.2/24 dev r2n; ip route add default via 10.72.1.1");
        r1.run("ip addr add 10.72.1.1/24 dev r1n; ip addr add 10.71.0.254/24 dev r1s; ip route add default via 10.72.1.2");
        for r in [&r1, &r2] {
            // A router that says it once a second is slower than a story should be.
            r.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv4.icmp_ratelimit=0");
        }
        r2.run(&format!("ip link set r2n mtu {narrow}"));
        r1.run(&format!("ip link set r1n mtu {narrow}"));
        s.run(&format!("ip addr add {S4}/24 dev s0; ip addr add {S6}/64 dev s1 nodad"));
        s.run("ip route add default via 10.71.0.254; sysctl -qw net.ipv6.conf.all.forwarding=1");
        u.run(&format!("ip addr add {U6}/64 dev u0 nodad; ip route add fd00:2::/32 via {S6}"));
        let path = Self { c, r1, r2, s, u, lab };
        for (from, to) in [(&path.s, FAR), (&path.s, U6)] {
            wait_for("the hosts to find each other", PATIENCE, || {
                from.attempt(&format!("ping -n -c 1 -W 1 {to}")).ok.then_some(())
            });
        }
        Some(path)
    }

    /// From now on neither router says anything about what it cannot carry.
    fn block(&self) {
        for r in [&self.r1, &self.r2] {
            r.run(
                "nft add table ip t; nft 'add chain ip t out { type filter hook output priority 0; }'; \
                 nft add rule ip t out icmp type destination-unreachable drop",
            );
        }
    }

    fn server(&self, encap: &str, extra: &str) -> Router {
        let remote = if encap == "udp" { format!("{FAR}:{CLIENT_PORT}") } else { FAR.to_owned() };
        let tunnels = tunnel("alice", encap, &remote, ALICE_NET, extra);
        Router::start(&self.lab, &self.s, &netns_tests::Rig::server_config("", &tunnels))
    }

    fn client(&self, encap: &str, extra: &str) -> Router {
        let (local, remote) = match encap {
            "udp" => (format!("{FAR}:{CLIENT_PORT}"), format!("{S4}:{UDP_PORT}")),
            _ => (FAR.to_owned(), S4.to_owned()),
        };
        let up = tunnel(
            "up",
            encap,
            &remote,
            "::/0",
            &format!("local = \"{local}\"\ndefault_route = true\n{extra}"),
        );
        let config = format!(
            "[router]\ntun = \"six0\"\naddress = [\"{ALICE}/64\"]\nouter = \"{FAR}\"\n[udp]\nports = [{CLIENT_PORT}]\n{up}"
        );
        Router::start(&self.lab, &self.c, &config)
    }

    /// Outer packets that reach the client: octets, whether DF was set, whether it is a fragment.
    fn observe(&self) -> Observer<(usize, bool, bool)> {
        Observer::start(&self.r1, IPV4, |packet| {
            let from_server = packet.get(12..16)? == [10, 71, 0, 1] && [17, 41].contains(&packet[9]);
            let flags = u16::from_be_bytes([packet[6], packet[7]]);
            from_server.then_some((packet.len(), flags & 0x4000 != 0, flags & 0x3fff != 0))
        })
    }
}

/// Both directions, each some megabytes, within the bounds of a transfer's patience.
fn streams(path: &Path) {
    transfer(&path.u, &path.c, ALICE, 1 << 20);
    transfer(&path.c, &path.u, U6, 1 << 20);
}

fn overhead(encap: &str) -> u16 {
    if encap == "udp" { 28 } else { 20 }
}

fn is_static(encap: &str) {
    for mtu in [1280, 1480 - 8] {
        let story = format!("an MTU as written, {mtu}, over {encap}, over a path of 1000");
        let Some(path) = Path::new_or_skip(&story, 1000) else { return };
        path.block();
        let (server, client) =
            (path.server(encap, &format!("mtu = {mtu}")), path.client(encap, &format!("mtu = {mtu}")));
        let seen = path.observe();
        streams(&path);
        assert_eq!(pings(&path.u, ALICE, 3, "-M do -s 1232"), 3, "1280 octets pass");
        let seen = seen.finish();
        assert!(seen.len() > 10 && seen.iter().all(|(_, df, _)| !df), "DF was set at a static MTU");
        for router in [&server, &client] {
            assert_eq!(router.drops("send_failed"), 0, "{}", router.status());
        }
        assert_eq!(server.count("alice", "mtu"), mtu);
    }
}

/// RFC: E3, E6 (RFC 4213 section 3.2.1)
#[test]
fn static_over_protocol_41() {
    is_static("proto41");
}

/// RFC: E3, E6 (RFC 4213 section 3.2.1)
#[test]
fn static_over_udp() {
    is_static("udp");
}

fn dynamic(encap: &str) {
    let Some(path) = Path::new_or_skip(&format!("routers say what they carry, over {encap}"), 1400) else {
        return;
    };
    let (server, client) =
        (path.server(encap, "pmtu = \"dynamic\""), path.client(encap, "pmtu = \"dynamic\""));
    let most = u64::from(1500 - overhead(encap));
    assert_eq!(server.count("alice", "mtu"), most, "as much as the first link takes");
    streams(&path);
    let found = u64::from(1400 - overhead(encap));
    assert_eq!(server.count("alice", "mtu"), found, "{}", server.status());
    // The host behind the server has learned, and asks for short segments: the client's turn comes with a long packet.
    pings(&path.c, U6, 3, &format!("-M do -s {}", most - 48));
    assert_eq!(client.count("up", "mtu"), found, "{}", client.status());
    let seen = path.observe();
    let payload = found - 48;
    assert_eq!(pings(&path.u, ALICE, 3, &format!("-M do -s {payload}")), 3);
    assert_eq!(pings(&path.u, ALICE, 1, &format!("-M do -s {}", payload + 1)), 0);
    let learned = path.u.run(&format!("ip -6 route get {ALICE}"));
    assert!(learned.contains(&format!("mtu {found}")), "the sender was told: {learned}");
    let seen = seen.finish();
    assert!(seen.iter().filter(|(len, ..)| *len > 1300).all(|(_, df, cut)| *df && !cut), "{seen:?}");
    assert_eq!(server.status()["pmtu"]["lowered"], 1, "{}", server.status());
}

/// RFC: E4, I1 (RFC 4213 section 3.2.2)
#[test]
fn dynamic_over_protocol_41() {
    dynamic("proto41");
}

/// RFC: E4, I1 (RFC 4213 section 3.2.2)
#[test]
fn dynamic_over_udp() {
    dynamic("udp");
}

/// Single packets before, between and behind super-packets: all of a tunnel whose MTU is found go with DF, whatever carries
/// them.
///
/// RFC: E4, P1 (RFC 4213 section 3.2.2)
#[test]
fn every_packet_of_a_mixed_load_has_df() {
    for (encap, offloads) in [("proto41", true), ("proto41", false), ("udp", true), ("udp", false)] {
        let story = format!("streams and datagrams over {encap}, offloads {offloads}");
        let Some(path) = Path::new_or_skip(&story, 1500) else { return };
        let knobs = if offloads { String::new() } else { format!("\n{}", without_offloads(&OFFLOADS)) };
        let remote = if encap == "udp" { format!("{FAR}:{CLIENT_PORT}") } else { FAR.to_owned() };
        let tunnels = tunnel("alice", encap, &remote, ALICE_NET, "pmtu = \"dynamic\"");
        let config = netns_tests::Rig::server_config("workers = 1", &tunnels) + &knobs;
        let server = Router::start(&path.lab, &path.s, &config);
        let _client = path.client(encap, "pmtu = \"dynamic\"");
        let seen = path.observe();
        std::thread::scope(|scope| {
            let streams: Vec<_> =
                (0..3).map(|_| scope.spawn(|| transfer(&path.u, &path.c, ALICE, 16 << 20))).collect();
            let datagrams = path.u.inside(|| std::net::UdpSocket::bind("[::]:0").unwrap());
            while !streams.iter().all(std::thread::ScopedJoinHandle::is_finished) {
                // Nobody listens there, which the client's kernel says now and then.
                let _said = datagrams.send_to(&[7; 1400], (ALICE, 9));
                std::thread::sleep(Duration::from_micros(100));
            }
        });
        let seen = seen.finish();
        let singles = seen.iter().filter(|(len, ..)| *len >= 1400 && *len <= 1500).count();
        assert!(singles > 30, "{singles} of {}", seen.len());
        let bare = seen.iter().filter(|(_, df, cut)| !df || *cut).count();
        assert_eq!(bare, 0, "of {} without DF, or fragments: {}", seen.len(), server.status());
    }
}

/// RFC: E4, E6 (RFC 4213 section 3.2.2)
#[test]
fn dynamic_below_1280() {
    for encap in ["proto41", "udp"] {
        let story = format!("1280 octets do not fit: fragments, over {encap}");
        let Some(path) = Path::new_or_skip(&story, 1000) else { return };
        let (server, _client) =
            (path.server(encap, "pmtu = \"dynamic\""), path.client(encap, "pmtu = \"dynamic\""));
        streams(&path);
        assert_eq!(server.count("alice", "mtu"), 1280);
        let seen = path.observe();
        assert_eq!(pings(&path.u, ALICE, 3, "-M do -s 1232"), 3, "1280 octets always pass");
        assert!(seen.finish().iter().all(|(_, df, _)| !df));
    }
}

fn probed(encap: &str, blocked: bool) {
    let how = if blocked { "blocked" } else { "let through" };
    let Some(path) = Path::new_or_skip(&format!("probes over {encap}, ICMP {how}"), 1400) else { return };
    if blocked {
        path.block();
    }
    let probe = |echo: &str| format!("pmtu = \"probe\"\necho = \"{echo}\"");
    let (server, client) = (path.server(encap, &probe(ALICE)), path.client(encap, &probe(ROUTER6)));
    // While the search goes on, all works with 1280.
    streams(&path);
    let right = u64::from(1400 - overhead(encap));
    for (router, name) in [(&server, "alice"), (&client, "up")] {
        let found = wait_for("the search to end", PATIENCE * 2, || {
            Some(router.count(name, "mtu")).filter(|mtu| *mtu + 8 >= right)
        });
        assert!(found <= right, "{found} of {right}");
    }
    streams(&path);
    assert_eq!(server.drops("send_failed"), 0, "{}", server.status());
}

/// RFC: P1 (RFC 8899)
#[test]
fn probed_over_protocol_41() {
    probed("proto41", true);
}

/// RFC: P1 (RFC 8899)
#[test]
fn probed_over_udp() {
    probed("udp", true);
}

#[test]
fn probed_with_the_routers_help() {
    probed("udp", false);
}

/// The path widens; who was told keeps to it for ten minutes, and what this host's own link says counts at once.
#[test]
fn the_first_link_is_looked_at() {
    let Some(path) = Path::new_or_skip("our own link narrows", 1500) else { return };
    let server = path.server("proto41", "pmtu = \"dynamic\"");
    let _client = path.client("proto41", "pmtu = \"dynamic\"");
    streams(&path);
    assert_eq!(server.count("alice", "mtu"), 1480);
    path.s.run("ip link set s0 mtu 1400");
    let mtu = |wanted| {
        wait_for("the MTU to follow", PATIENCE, || (server.count("alice", "mtu") == wanted).then_some(()))
    };
    mtu(1380);
    streams(&path);
    path.s.run("ip link set s0 mtu 1500");
    mtu(1480);
    streams(&path);
}

/// An error about an outer packet becomes one for the sender inside.
///
/// RFC: I2 (RFC 4213 section 3.4)
#[test]
fn an_unreachable_peer_is_told_to_the_sender() {
    for encap in ["proto41", "udp"] {
        let Some(path) = Path::new_or_skip(&format!("nobody is there, over {encap}"), 1500) else { return };
        let server = path.server(encap, "");
        path.r2.run(&format!("ip addr del 10.72.2.1/24 dev r2c; ip route add unreachable {FAR}/32"));
        let said = path.u.attempt(&format!("ping -6 -n -c 3 -i 0.2 -W 1 {ALICE}")).text;
        assert!(said.contains("Address unreachable"), "{said}");
        assert!(said.contains(&format!("From {ROUTER6}")), "{said}");
        assert!(server.status()["pmtu"]["told"].as_u64() >= Some(1), "{}", server.status());
    }
}

/// Nobody can lower an MTU by writing of what was never sent, nor of what could have been: only what is said about a packet
/// with a secret in it counts.
///
/// RFC: I1 (RFC 8899 section 4.6.1)
#[test]
fn forged_errors_change_nothing() {
    let Some(path) = Path::new_or_skip("forged errors", 1500) else { return };
    let server = path.server("proto41", "pmtu = \"dynamic\"");
    let mut inner = Ends::new(U6, ALICE).udp(1, 2, &[7; 1300]);
    inner.truncate(100);
    let forge = |mtu: u16, (from, to): (&str, &str), df: bool| {
        let quote = forge::quote((from, to), None, 1368, df, &inner);
        forge::unreachable(&path.r1, ("10.71.0.254", S4), 4, mtu, &quote);
    };
    forge(1300, (S4, "10.72.2.3"), true);
    forge(1300, ("10.71.0.9", FAR), true);
    forge(1300, (S4, FAR), false);
    forge(1368, (S4, FAR), true);
    forge(20, (S4, FAR), true);
    wait_for("the errors to be read", PATIENCE, || {
        let counts = server.status()["pmtu"].clone();
        (counts["unbelievable"].as_u64()? >= 4).then_some(())
    });
    // What could be true makes the router ask, and nobody says it again.
    for _ in 0..5 {
        forge(1300, (S4, FAR), true);
        std::thread::sleep(Duration::from_millis(300));
    }
    let counts = server.status()["pmtu"].clone();
    assert!(counts["questions"].as_u64() >= Some(1), "{counts}");
    assert_eq!((counts["lowered"].as_u64(), counts["told"].as_u64()), (Some(0), Some(0)), "{counts}");
    assert_eq!(server.count("alice", "mtu"), 1480);
    // A router that does not carry it does say so.
    path.r1.run("ip link set r1n mtu 1320");
    forge(1300, (S4, FAR), true);
    wait_for("the true one to be believed", PATIENCE, || {
        forge(1300, (S4, FAR), true);
        (server.count("alice", "mtu") == 1300).then_some(())
    });
}

/// Fragments of a peer's outer packets are put together whichever socket receives them.
///
/// RFC: D7 (RFC 4213 section 3.6)
#[test]
fn fragments_are_reassembled_by_either_socket() {
    for receive in ["packet", "raw"] {
        let Some(path) = Path::new_or_skip(&format!("fragments to a {receive} socket"), 1000) else { return };
        let config = netns_tests::Rig::server_config("", &tunnel("alice", "proto41", FAR, ALICE_NET, ""))
            + &format!("\n[proto41]\nreceive = \"{receive}\"\n")
            + &tunnel("bob", "udp", &format!("{FAR}:{CLIENT_PORT}"), BOB_NET, "");
        let server = Router::start(&path.lab, &path.s, &config);
        let alice = Client::proto41(&path.c, FAR, ALICE);
        let observed =
            Observer::start(&path.u, netns_tests::IPV6, |packet| (packet.len() == 1500).then_some(()));
        // Of three flows, so that nobody merges them.
        for port in 1..=3 {
            alice.send(&Ends::new(ALICE, U6).udp(port, 9, &[7; 1452]));
        }
        assert_eq!(observed.finish_when(|seen| seen.len() >= 3).len(), 3, "{}", server.status());
    }
}
