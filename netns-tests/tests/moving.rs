//! Clients whose outer endpoint moves, behind a real NAT: the tunnel follows whoever proves to be its peer, and nobody else.
//!
//! ```text
//!   A 192.168.1.2 alice ─┐
//!   B 192.168.1.3 bob ───┴─ N (masquerades as 10.71.0.2, later .66) ── 10.71.0.1 S ──IPv6── U
//!   X 10.71.0.99, an attacker on the same link as S
//! ```
//!
//! Needs nftables with NAT in the kernel.

#![allow(clippy::unwrap_used, reason = "a test has nobody to return an error to")]

use std::time::Duration;

use netns_tests::{
    ALICE, ALICE_NET, BOB, BOB_NET, C4, C4_OTHER, Client, Ends, IPV4, Lab, Observer, PATIENCE, ROUTER6, Rig,
    Router, S4, S6, Space, U6, icmp, pings, tunnel, wait_for,
};

struct Nat {
    a: Space,
    b: Space,
    n: Space,
    x: Space,
    u: Space,
    server: Router,
    _s: Space,
    _lab: Lab,
}

impl Nat {
    fn new_or_skip(story: &str) -> Option<Self> {
        let mut lab = Lab::new_or_skip(story)?;
        let [a, b, n, x, s, u] = ["A", "B", "N", "X", "S", "U"].map(|label| lab.space(label));
        lab.veth(&a, "a0", &n, "na");
        lab.veth(&b, "b0", &n, "nb");
        lab.veth(&n, "n0", &s, "sn");
        lab.veth(&x, "x0", &s, "sx");
        lab.veth(&s, "s1", &u, "u0");
        for (inside, device, side, last) in [(&a, "a0", "na", 1), (&b, "b0", "nb", 2)] {
            inside.run(&format!(
                "ip addr add 192.168.{last}.2/24 dev {device}; ip route add default via 192.168.{last}.1"
            ));
            n.run(&format!("ip addr add 192.168.{last}.1/24 dev {side}"));
        }
        n.run(&format!(
            "ip addr add {C4}/24 dev n0; ip addr add {C4_OTHER}/24 dev n0; sysctl -qw net.ipv4.ip_forward=1"
        ));
        x.run("ip addr add 10.71.0.99/24 dev x0");
        // One link for the NAT, the attacker and the router.
        s.run("ip link add s0 type bridge; ip link set s0 up; ip link set sn master s0; ip link set sx master s0");
        s.run(&format!("ip addr add {S4}/24 dev s0; ip addr add {S6}/64 dev s1 nodad"));
        s.run("sysctl -qw net.ipv6.conf.all.forwarding=1");
        u.run(&format!("ip addr add {U6}/64 dev u0 nodad; ip route add fd00:2::/32 via {S6}"));
        for (from, to) in [(&s, U6), (&s, C4), (&s, "10.71.0.99")] {
            wait_for("the neighbours", PATIENCE, || {
                from.attempt(&format!("ping -n -c 1 -W 1 {to}")).ok.then_some(())
            });
        }
        let tunnels =
            tunnel("alice", "udp", "learn", ALICE_NET, "") + &tunnel("bob", "udp", "learn", BOB_NET, "");
        let server = Router::start(&lab, &s, &Rig::server_config("", &tunnels));
        let nat = Self { a, b, n, x, u, server, _s: s, _lab: lab };
        nat.bind(C4, 20_000);
        Some(nat)
    }

    /// From now on the NAT is at this address and gives ports from this one on; what it knew is forgotten, as masquerading
    /// does with a device that goes down.
    fn bind(&self, addr: &str, port: u16) {
        let (end, other) = (port + 99, if addr == C4 { C4_OTHER } else { C4 });
        self.n.run(&format!(
            "nft flush ruleset; nft add table ip t; \
             nft 'add chain ip t post {{ type nat hook postrouting priority 100; }}'; \
             nft add rule ip t post oifname n0 udp dport 3653 masquerade to :{port}-{end}; \
             ip addr flush dev n0; ip addr add {addr}/24 dev n0; ip addr add {other}/24 dev n0; \
             ip link set n0 down; ip link set n0 up"
        ));
        wait_for("the NAT's link", PATIENCE, || {
            self.n.attempt(&format!("ping -n -c 1 -W 1 {S4}")).ok.then_some(())
        });
    }

    fn alice(&self) -> Client {
        Client::udp(&self.a, "192.168.1.2:5555", ALICE)
    }

    fn bob(&self) -> Client {
        Client::udp(&self.b, "192.168.2.2:5555", BOB)
    }

    fn remote(&self, name: &str) -> String {
        self.server.tunnel(name)["remote"].as_str().unwrap_or_default().to_owned()
    }
}

/// Ping until the router has proven this endpoint and lets packets pass.
fn prove(client: &Client) {
    wait_for("the endpoint to be proven", PATIENCE, || client.ping(U6, Duration::from_millis(300)));
}

/// RFC: D12 (RFC 8085 section 3.5)
#[test]
fn nat_rebinding_keeps_the_tunnel() {
    let Some(nat) = Nat::new_or_skip("a NAT gives alice another port, then another address") else { return };
    let alice = nat.alice();
    prove(&alice);
    let first = nat.remote("alice");
    assert!(first.starts_with(&format!("{C4}:20")), "{first}");
    for (addr, port, start) in [(C4, 30_000, "10.71.0.2:30"), (C4_OTHER, 40_000, "10.71.0.66:40")] {
        nat.bind(addr, port);
        prove(&alice);
        let now = nat.remote("alice");
        assert!(now.starts_with(start), "{now}");
        let serving = alice.serve();
        assert_eq!(pings(&nat.u, ALICE, 5, ""), 5);
        drop(serving);
    }
    assert_eq!(nat.server.status()["endpoints"]["moved"], 3);
}

/// RFC: D12 (RFC 8085 section 3.5)
#[test]
fn two_clients_behind_one_nat_address() {
    let Some(nat) = Nat::new_or_skip("alice and bob at one address, told apart by port") else { return };
    let (alice, bob) = (nat.alice(), nat.bob());
    prove(&alice);
    prove(&bob);
    assert_ne!(nat.remote("alice"), nat.remote("bob"));
    let (at_alice, at_bob) = (alice.serve(), bob.serve());
    assert_eq!((pings(&nat.u, ALICE, 5, ""), pings(&nat.u, BOB, 5, "")), (5, 5));
    assert!(at_alice.answered() >= 5 && at_bob.answered() >= 5);
    drop((at_alice, at_bob));
    // Bob sends with alice's address, from behind the same NAT: the address alone proves nothing.
    let liar = Client::udp(&nat.b, "192.168.2.2:6666", ALICE).mute();
    let before = nat.remote("alice");
    let serving = alice.serve();
    for _ in 0..3 {
        assert!(liar.ping(U6, Duration::from_millis(700)).is_none(), "bob passed for alice");
    }
    assert_eq!(nat.remote("alice"), before);
    assert_eq!(pings(&nat.u, ALICE, 3, ""), 3);
    drop(serving);
    // And from his own proven endpoint too.
    let spoofed = nat.server.drops("source_not_in_prefix");
    bob.send(&Ends::new(ALICE, U6).echo_request(7, 1, 8));
    wait_for("the drop", PATIENCE, || (nat.server.drops("source_not_in_prefix") > spoofed).then_some(()));
}

/// The NAT forgets both at once, and each gets the port that the other had.
///
/// RFC: D12 (RFC 8085 section 3.5)
#[test]
fn clients_that_swap_ports_keep_their_own_tunnels() {
    let Some(nat) = Nat::new_or_skip("alice gets bob's port") else { return };
    let (alice, bob) = (nat.alice(), nat.bob());
    prove(&alice);
    let was = nat.remote("alice");
    // Bob comes from the very endpoint that was alice's.
    nat.bind(C4, was.rsplit(':').next().unwrap().parse().unwrap());
    prove(&bob);
    prove(&alice);
    let (at_alice, at_bob) = (alice.serve(), bob.serve());
    assert_eq!((pings(&nat.u, ALICE, 5, ""), pings(&nat.u, BOB, 5, "")), (5, 5));
    assert!(at_alice.answered() >= 5 && at_bob.answered() >= 5, "each gets what is his");
    assert_ne!(nat.remote("alice"), nat.remote("bob"));
}

/// RFC: D12 (RFC 8085 section 3.5)
#[test]
fn a_roaming_client_keeps_its_tunnel() {
    let Some(nat) = Nat::new_or_skip("alice leaves the NAT for the open network, and comes back") else {
        return;
    };
    let alice = nat.alice();
    prove(&alice);
    let outside = Client::udp(&nat.x, "10.71.0.99:7777", ALICE);
    prove(&outside);
    assert_eq!(nat.remote("alice"), "10.71.0.99:7777");
    drop(outside);
    // She is gone from there, so nobody answers for it.
    prove(&alice);
    assert!(nat.remote("alice").starts_with(C4));
    let serving = alice.serve();
    assert_eq!(pings(&nat.u, ALICE, 5, ""), 5);
    drop(serving);
}

/// An attacker who has seen all that went over the wire sends it again, from his own address and with hers.
///
/// RFC: D12 (RFC 8085 section 3.5)
#[test]
fn replayed_packets_move_nothing() {
    let Some(nat) = Nat::new_or_skip("an attacker replays a whole proof") else { return };
    let wire = Observer::start(&nat.n, IPV4, |packet| {
        let is_inside_out = packet.get(12..16)? == [192, 168, 1, 2] && packet[9] == 17;
        is_inside_out.then(|| packet[28..].to_vec())
    });
    let alice = nat.alice();
    prove(&alice);
    let recorded = wire.finish();
    assert!(
        recorded.iter().any(|packet| packet.get(40) == Some(&icmp::ECHO_REPLY)),
        "her proof was recorded"
    );
    let before = nat.remote("alice");
    let serving = alice.serve();
    let thief = Client::udp(&nat.x, "10.71.0.99:7777", ALICE).mute();
    for _ in 0..3 {
        for packet in &recorded {
            thief.send(packet);
        }
        let got = thief.wait(Duration::from_millis(400), |got| (got.src.to_string() == U6).then_some(()));
        assert!(got.is_none(), "the thief gets what is hers");
    }
    assert_eq!(nat.remote("alice"), before);
    assert_eq!(pings(&nat.u, ALICE, 5, ""), 5);
    assert!(serving.answered() >= 5);
    let endpoints = nat.server.status()["endpoints"].clone();
    assert_eq!(endpoints["moved"], 1, "{endpoints}");
}

/// Who answers every probe from elsewhere does not get the tunnel of a client that lives, nor reach anybody for it.
///
/// RFC: D12 (RFC 8085 section 3.5)
#[test]
fn an_attacker_elsewhere_does_not_get_it() {
    let Some(nat) = Nat::new_or_skip("an attacker answers every probe") else { return };
    let alice = nat.alice();
    prove(&alice);
    let before = nat.remote("alice");
    let serving = alice.serve();
    let thief = Client::udp(&nat.x, "10.71.0.99:7777", ALICE);
    for _ in 0..4 {
        assert!(thief.ping(U6, Duration::from_millis(900)).is_none(), "the thief was served");
        assert!(thief.ping(ROUTER6, Duration::from_millis(100)).is_none());
    }
    assert_eq!(nat.remote("alice"), before);
    assert_eq!(pings(&nat.u, ALICE, 5, ""), 5);
    assert!(serving.answered() >= 5);
}
