//! The standard three hosts: a tunnel client, the router, and a host of the IPv6 world behind it.
//!
//! ```text
//!   C                               S                             U
//!   c0 10.71.0.2, .66 ──IPv4── 10.71.0.1 s0 | s1 fd00:1::1 ──IPv6── fd00:1::2 u0
//!   inner fd00:2:1::2 (alice)       six0 fd00:2::1/64             route fd00:2::/32 by S
//!         fd00:2:2::2 (bob)
//! ```
//!
//! Knows addresses and the shape of the configuration file; what is played in the rig is the story's.

use std::time::Duration;

use crate::{Client, Lab, Router, Space, wait_for};

/// The client's outer address.
pub const C4: &str = "10.71.0.2";
/// A second outer address on the client's link: somebody else.
pub const C4_OTHER: &str = "10.71.0.66";
/// The router's outer address.
pub const S4: &str = "10.71.0.1";
/// The router's UDP port for tunnels.
pub const UDP_PORT: u16 = 3653;
/// The UDP port that clients in stories speak from.
pub const CLIENT_PORT: u16 = 5555;
/// The router's address on the link to the host behind it.
pub const S6: &str = "fd00:1::1";
/// The host behind the router.
pub const U6: &str = "fd00:1::2";
/// The router's own address inside.
pub const ROUTER6: &str = "fd00:2::1";
/// Alice's inner address.
pub const ALICE: &str = "fd00:2:1::2";
/// Alice's prefix.
pub const ALICE_NET: &str = "fd00:2:1::/64";
/// Bob's inner address.
pub const BOB: &str = "fd00:2:2::2";
/// Bob's prefix.
pub const BOB_NET: &str = "fd00:2:2::/64";

/// Client, router and host, joined and addressed, with nothing running yet.
#[derive(Debug)]
pub struct Rig {
    /// The client's namespace.
    pub c: Space,
    /// The router's namespace; it forwards IPv6.
    pub s: Space,
    /// The namespace of the host behind the router.
    pub u: Space,
    /// The lab that holds them. Declared last: it ends what runs in them.
    pub lab: Lab,
}

impl Rig {
    /// The rig for `story`, or `None` when it was skipped; see [`Lab::new_or_skip`].
    #[track_caller]
    pub fn new_or_skip(story: &str) -> Option<Self> {
        let mut lab = Lab::new_or_skip(story)?;
        let (c, s, u) = (lab.space("C"), lab.space("S"), lab.space("U"));
        lab.veth(&c, "c0", &s, "s0");
        lab.veth(&s, "s1", &u, "u0");
        c.run(&format!("ip addr add {C4}/24 dev c0; ip addr add {C4_OTHER}/24 dev c0"));
        s.run(&format!("ip addr add {S4}/24 dev s0; ip addr add {S6}/64 dev s1 nodad"));
        s.run("sysctl -qw net.ipv6.conf.all.forwarding=1");
        u.run(&format!("ip addr add {U6}/64 dev u0 nodad; ip route add fd00:2::/32 via {S6}"));
        // A device that has just come up loses the first neighbour solicitation, and the next comes a second later:
        // no story is about that.
        for neighbour in [U6, C4] {
            wait_for("the router's neighbours", Duration::from_secs(10), || {
                s.attempt(&format!("ping -n -c 1 -W 1 {neighbour}")).ok.then_some(())
            });
        }
        Some(Self { c, s, u, lab })
    }

    /// Make the router's kernel merge what comes from the client (GRO). A veth device does so only when the
    /// sender segments itself (TSO off), and catches slow senders only with a flush timeout.
    #[track_caller]
    pub fn merge_at_router(&self) {
        self.c.run("ethtool -K c0 tso off");
        self.s.run("ethtool -K s0 gro on");
        self.s.run("echo 2000000 > /sys/class/net/s0/gro_flush_timeout");
    }

    /// Start the router in `S` with these `[[tunnel]]` tables.
    #[track_caller]
    pub fn server(&self, tunnels: &str) -> Router {
        Router::start(&self.lab, &self.s, &Self::server_config("", tunnels))
    }

    /// The configuration of [`Rig::server`], with more lines for its `[router]` table.
    pub fn server_config(router: &str, tunnels: &str) -> String {
        format!(
            "[router]\ntun = \"six0\"\naddress = [\"{ROUTER6}/64\"]\nouter = \"{S4}\"\n{router}\n\
             [udp]\nports = [{UDP_PORT}]\n{tunnels}"
        )
    }

    /// Start the same program as alice's end in `C`, with a default route into its tunnel.
    #[track_caller]
    pub fn client(&self, encap: &str, mtu: u16) -> Router {
        self.client_with(encap, mtu, "")
    }

    /// The same with more tables in its configuration.
    #[track_caller]
    pub fn client_with(&self, encap: &str, mtu: u16, tables: &str) -> Router {
        let (local, remote) = match encap {
            "udp" => (format!("{C4}:{CLIENT_PORT}"), format!("{S4}:{UDP_PORT}")),
            _ => (C4.to_owned(), S4.to_owned()),
        };
        let extra = format!("local = \"{local}\"\nmtu = {mtu}\ndefault_route = true");
        let config = format!(
            "[router]\ntun = \"six0\"\naddress = [\"{ALICE}/64\"]\nouter = \"{C4}\"\n\
             [udp]\nports = [{CLIENT_PORT}]\n{tables}\n{}",
            tunnel("up", encap, &remote, "::/0", &extra)
        );
        Router::start(&self.lab, &self.c, &config)
    }

    /// Alice's tunnel, with more lines for its table.
    pub fn alice(encap: &str, extra: &str) -> String {
        tunnel("alice", encap, &Self::alice_remote(encap), ALICE_NET, extra)
    }

    /// Bob's tunnel: UDP, from the other outer address.
    pub fn bob(extra: &str) -> String {
        tunnel("bob", "udp", &format!("{C4_OTHER}:{CLIENT_PORT}"), BOB_NET, extra)
    }

    /// A pretended alice.
    #[track_caller]
    pub fn alice_peer(&self, encap: &str) -> Client {
        match encap {
            "udp" => Client::udp(&self.c, &Self::alice_remote(encap), ALICE),
            _ => Client::proto41(&self.c, C4, ALICE),
        }
    }

    /// A pretended bob.
    #[track_caller]
    pub fn bob_peer(&self) -> Client {
        Client::udp(&self.c, &format!("{C4_OTHER}:{CLIENT_PORT}"), BOB)
    }

    /// Where alice's outer end is, as a `remote` of that encapsulation.
    pub fn alice_remote(encap: &str) -> String {
        match encap {
            "udp" => format!("{C4}:{CLIENT_PORT}"),
            _ => C4.to_owned(),
        }
    }
}

/// One `[[tunnel]]` table; `extra` holds more lines for it.
pub fn tunnel(name: &str, encap: &str, remote: &str, prefix: &str, extra: &str) -> String {
    format!(
        "\n[[tunnel]]\nname = \"{name}\"\nencap = \"{encap}\"\nremote = \"{remote}\"\n\
         prefixes = [\"{prefix}\"]\n{extra}\n"
    )
}
