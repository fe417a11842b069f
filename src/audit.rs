//! `sixway audit`: pass or fail for each thing that must hold of a running router, with what to do where it does not.
//!
//! What the forwarder does is tried on its live tables: packets that must not pass are judged dry ([`crate::explain`]).
//! What the system does is read where the router runs; a router that has left its network with `--unshare` cannot see the
//! outer one. Changes nothing.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sixway_dataplane::explain::{Belongs, Explainer};
use sixway_dataplane::packet::batch::{Arrival, Sender};
use sixway_dataplane::table::slab::Encap;
use sixway_dataplane::update::{Ipv6Prefix, Meter, Outer, TunnelId};
use sixway_dataplane::verdict::{Reason, Verdict};

use crate::admin::packet::sender;
use crate::advice;
use crate::config::Config;
use crate::explain::from_peer;
use crate::registry::{Live, Registry};

/// Tunnels that are tried, the first ones.
const TRIED: usize = 1000;
/// Prefixes of a tunnel that are looked at for addresses, the first ones.
const INSIDE: usize = 16;
/// More errors a second than any network needs.
const MANY_ERRORS: u32 = 10_000;
/// Addresses that nobody has (RFC 5737, RFC 9637).
const STRANGER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 251);
const NOWHERE: Ipv6Addr = Ipv6Addr::new(0x3fff, 0xfff, 0xdead, 0, 0, 0, 0, 1);

/// One requirement and how it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Its name.
    pub name: String,
    /// `pass`, `fail`, or `-` where it does not apply.
    pub outcome: Outcome,
    /// What was found.
    pub found: String,
    /// What to do about it; empty unless it fails.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub next: String,
}

/// How a requirement stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It holds.
    #[serde(rename = "pass")]
    Pass,
    /// It does not.
    #[serde(rename = "fail")]
    Fail,
    /// There is nothing that it could hold for.
    #[serde(rename = "-")]
    NotApplicable,
}

fn pass(name: &str, found: impl Into<String>) -> Finding {
    Finding { name: name.to_owned(), outcome: Outcome::Pass, found: found.into(), next: String::new() }
}

fn fail(name: &str, found: impl Into<String>, next: impl Into<String>) -> Finding {
    Finding { name: name.to_owned(), outcome: Outcome::Fail, found: found.into(), next: next.into() }
}

fn skip(name: &str, found: impl Into<String>) -> Finding {
    Finding { outcome: Outcome::NotApplicable, ..pass(name, found) }
}

/// What the audit looks at.
#[derive(Debug)]
pub struct Auditor<'a> {
    /// The configuration in force.
    pub config: &'a Config,
    /// Its file, if there is one.
    pub file: Option<&'a Path>,
    /// Live tunnels.
    pub registry: &'a Registry,
    /// Judges packets.
    pub explainer: &'a mut Explainer,
    /// Whether protocol 41 is received.
    pub proto41: bool,
}

impl<'a> Auditor<'a> {
    /// Every requirement, in the order of a packet's way, then the system's.
    pub fn findings(&mut self) -> Vec<Finding> {
        let mut all = vec![
            self.default_deny(),
            self.outer_martians(),
            self.inner_martians(),
            self.ingress(),
            self.wrong_outer(),
            self.own_addresses(),
            self.loops(),
            self.unassigned(),
            self.error_limits(),
            self.tunnel_limits(),
        ];
        all.extend(self.system());
        all
    }

    fn verdict(&mut self, arrival: Arrival, source: Ipv6Addr, destination: Ipv6Addr) -> Verdict {
        self.explainer.explain(arrival, &packet(source, destination)).judged.verdict
    }

    fn live(&self) -> Vec<(TunnelId, &'a Live)> {
        self.registry.iter().take(TRIED).collect()
    }

    /// Two addresses that are this tunnel's by the longest match: not a nested tunnel's, not the router's own.
    fn inside(&mut self, id: TunnelId, live: &Live) -> Vec<Ipv6Addr> {
        // What clients inside have been given is the tunnel's too. A single address is all there is of its prefix.
        let prefixes = live.prefixes().filter(|prefix| prefix.prefix_len() > 0);
        let mut all: Vec<Ipv6Addr> = Vec::new();
        for addr in prefixes.take(INSIDE).flat_map(hosts) {
            if !all.contains(&addr) {
                all.push(addr);
            }
        }
        let own = all.into_iter().filter(
            |addr| matches!(self.explainer.owner(*addr), Some((_, Belongs::Tunnel(whose))) if whose == id),
        );
        own.take(2).collect()
    }

    /// Tunnels with a known peer and addresses of their own.
    fn peers(&mut self) -> Vec<Tried> {
        let mut all = Vec::new();
        for (id, live) in self.live() {
            if live.config.prefixes.contains(&Ipv6Prefix::ALL) {
                continue;
            }
            let (Ok(arrival), inside) = (from_peer(live), self.inside(id, live)) else { continue };
            if let Some(first) = inside.first() {
                let name = live.config.name.to_string();
                all.push(Tried { arrival, inside: *first, other: inside.get(1).copied(), name });
            }
        }
        all
    }

    /// RFC 4213 section 3.6: who is no peer gets nothing through.
    fn default_deny(&mut self) -> Finding {
        let ports = self.config.udp.ports.clone();
        let udp = ports.iter().map(|port| stranger_udp(*port));
        let senders: Vec<_> = udp.chain([stranger41()]).collect();
        let passed = senders.into_iter().find(|arrival| !is_held(&self.verdict(*arrival, NOWHERE, NOWHERE)));
        match passed {
            None => {
                pass("default_deny", "a stranger's packet is dropped, by protocol 41 and on every UDP port")
            }
            Some(arrival) => fail(
                "default_deny",
                format!("a packet of {} passes", sender(Some(arrival))),
                "Report it: this is a bug.",
            ),
        }
    }

    /// RFC 4213 section 3.6, RFC 6890.
    fn outer_martians(&mut self) -> Finding {
        let odd = ["0.0.0.1", "127.0.0.1", "224.0.0.1", "255.255.255.255"];
        let odd = odd.iter().filter_map(|text| text.parse::<Ipv4Addr>().ok());
        let passed: Vec<_> = odd
            .filter(|addr| {
                let arrival = Arrival::Wire(Sender::proto41(*addr, STRANGER, 0));
                self.verdict(arrival, NOWHERE, NOWHERE) != Verdict::Drop(Reason::OuterMartian, None)
            })
            .collect();
        holds("outer_martians", "outer sources that nobody can have are dropped", &passed)
    }

    /// RFC 4213 section 3.6, RFC 4291 section 2.5.
    fn inner_martians(&mut self) -> Finding {
        let peers = self.peers();
        let Some(Tried { arrival, .. }) = peers.first() else { return no_peer("inner_martians") };
        let odd = ["::1", "::", "ff0e::1", "::ffff:192.0.2.1", "::192.0.2.1", "fe80::2"];
        let odd = odd.iter().filter_map(|text| text.parse::<Ipv6Addr>().ok());
        let passed: Vec<_> = odd.filter(|addr| !is_held(&self.verdict(*arrival, *addr, NOWHERE))).collect();
        holds("inner_martians", "inner sources that nobody can have are dropped", &passed)
    }

    /// RFC 2827, RFC 3704 section 2: a tunnel speaks for its own prefixes only.
    fn ingress(&mut self) -> Finding {
        let peers: Vec<_> = self.peers();
        if peers.is_empty() {
            return no_peer("ingress_filtering");
        }
        let count = peers.len();
        let passed: Vec<_> = peers
            .into_iter()
            .filter(|tried| !is_held(&self.verdict(tried.arrival, NOWHERE, tried.inside)))
            .map(|tried| tried.name)
            .collect();
        let tunnels = if count == 1 { "tunnel" } else { "tunnels" };
        let found = format!("{count} {tunnels} tried: sources outside their prefixes are dropped");
        holds("ingress_filtering", &found, &passed)
    }

    /// RFC 4213 section 5: nobody but its peer speaks for a tunnel.
    fn wrong_outer(&mut self) -> Finding {
        let (mut tried, mut passed) = (0, Vec::new());
        for (id, live) in self.live() {
            // In the tunnel's own encapsulation too: in the other one it is wrong by that alone.
            let strangers = match live.outer {
                Outer::Proto41 { .. } => vec![stranger41()],
                Outer::Udp { local, .. } => vec![stranger41(), stranger_udp(local.port)],
            };
            for addr in self.inside(id, live).into_iter().take(1) {
                tried += 1;
                if strangers.iter().any(|stranger| !is_held(&self.verdict(*stranger, addr, NOWHERE))) {
                    passed.push(&live.config.name);
                }
            }
        }
        if tried == 0 {
            return skip("wrong_outer", "no tunnel has a prefix");
        }
        holds("wrong_outer", "a stranger with a tunnel's inner source is dropped", &passed)
    }

    /// RFC 2827, RFC 6169 section 2.2.
    fn own_addresses(&mut self) -> Finding {
        let (peers, own) = (self.peers(), self.registry.local().to_vec());
        let (Some(Tried { arrival, .. }), false) = (peers.first(), own.is_empty()) else {
            return skip("own_addresses", "no tunnel with a known peer, or no [router] address");
        };
        let passed: Vec<_> =
            own.into_iter().filter(|addr| !is_held(&self.verdict(*arrival, *addr, NOWHERE))).collect();
        holds("own_addresses", "no tunnel sends from the router's own addresses", &passed)
    }

    /// RFC 6324 section 3.
    fn loops(&mut self) -> Finding {
        let peers = self.peers();
        if peers.is_empty() {
            return no_peer("loops");
        }
        let passed: Vec<_> = peers
            .into_iter()
            .filter(|tried| {
                // Where there is one address alone, it speaks to itself.
                let other = tried.other.unwrap_or(tried.inside);
                !is_held(&self.verdict(tried.arrival, tried.inside, other))
            })
            .map(|tried| tried.name)
            .collect();
        holds("loops", "nothing leaves by the tunnel that it came from", &passed)
    }

    /// RFC 7084 WPD-5.
    fn unassigned(&mut self) -> Finding {
        if self.config.pools.is_empty() {
            return skip("unassigned", "no [[pool]]");
        }
        // By what the registry knows, not by the table that is tried.
        let taken: Vec<Ipv6Prefix> = self.registry.iter().flat_map(|(_, live)| live.prefixes()).collect();
        let is_free = |addr: &Ipv6Addr| {
            !taken.iter().any(|prefix| prefix.prefix_len() > 0 && prefix.contains(*addr))
                && !self.registry.local().contains(addr)
        };
        let spots = |prefix: Ipv6Prefix| {
            let room = u128::MAX >> prefix.prefix_len().min(127);
            [room, room / 3, room / 7].map(|n| Ipv6Addr::from(prefix.bits() | n))
        };
        let free = self.config.pools.iter().filter_map(|pool| spots(pool.prefix).into_iter().find(is_free));
        let free: Vec<_> = free.collect();
        let from = match self.peers().first() {
            Some(tried) => (tried.arrival, tried.inside),
            None => (Arrival::Tun, self.registry.local().first().copied().unwrap_or(NOWHERE)),
        };
        let passed: Vec<_> = free
            .into_iter()
            .filter(|end| !matches!(self.verdict(from.0, from.1, *end), Verdict::Drop(Reason::Unassigned, _)))
            .collect();
        holds("unassigned", "what of a pool nobody has is a black hole", &passed)
    }

    /// RFC 4443 section 2.4(f): neither a peer nor a stranger makes the router send as much as he likes.
    fn error_limits(&self) -> Finding {
        let guard = &self.config.guard;
        let (all, one) = (guard.icmp_errors.per_second, guard.icmp_errors_of_tunnel.per_second);
        let found = format!("{all} ICMPv6 errors a second in all, {one} for a tunnel");
        let next =
            "Lower `icmp_errors` and `icmp_errors_of_tunnel` in [guard]; 1000 and 100 are the defaults.";
        match all > MANY_ERRORS || one > all {
            true => fail("error_limits", found, next),
            false => pass("error_limits", found),
        }
    }

    /// The limits that tunnels were given stand in the forwarder.
    fn tunnel_limits(&mut self) -> Finding {
        let limited = self.registry.iter().filter(|(_, live)| live.config.care().meter != Meter::NONE);
        let limited: Vec<_> = limited.take(TRIED).collect();
        if limited.is_empty() {
            return skip("tunnel_limits", "no tunnel has a rate or a quota");
        }
        let count = limited.len();
        let passed: Vec<_> = limited
            .into_iter()
            .filter(|(id, live)| self.explainer.limits(*id) != live.config.care().meter)
            .map(|(_, live)| &live.config.name)
            .collect();
        holds("tunnel_limits", &format!("{count} tunnels with a rate or a quota have it in force"), &passed)
    }

    // ---- the system ----

    fn system(&self) -> Vec<Finding> {
        let sysctl = |name: &str| fs::read_to_string(format!("/proc/sys/net/{name}")).ok();
        let number = |name: &str| sysctl(name).and_then(|text| text.trim().parse::<i32>().ok());
        let mut all = vec![
            self.raw_sockets(),
            self.kernel_tunnels(),
            admin_socket(&self.config.admin.socket),
            self.forwarding(number("ipv6/conf/all/forwarding")),
            self.reverse_path(number("ipv4/conf/all/rp_filter"), &number),
            source_routes(number("ipv6/conf/all/accept_source_route")),
        ];
        all.extend(self.secrets());
        all
    }

    /// A socket for every protocol-41 packet of the host is for those who need it.
    fn raw_sockets(&self) -> Finding {
        let tunnels =
            self.registry.iter().filter(|(_, live)| matches!(live.outer, Outer::Proto41 { .. })).count();
        let may_come = self.config.dtcp.is_some() || !self.config.pools.is_empty();
        match (self.proto41, tunnels) {
            (false, _) => pass("raw_sockets", "protocol 41 is off: no raw or packet socket is open"),
            (true, 0) if !may_come => fail(
                "raw_sockets",
                "protocol 41 is received, and no tunnel uses it",
                "Set [proto41] enabled = false and restart.",
            ),
            (true, n) => pass("raw_sockets", format!("protocol 41 is received for {n} tunnels")),
        }
    }

    /// Linux net/ipv4/tunnel4.c answers ICMP port unreachable to peers that no kernel tunnel knows.
    fn kernel_tunnels(&self) -> Finding {
        let loaded: Vec<_> = advice::kernel_tunnel_signs(Path::new("/"));
        match (self.proto41, loaded.is_empty()) {
            (false, _) => skip("kernel_tunnels", "protocol 41 is off"),
            (true, true) => pass("kernel_tunnels", "neither sit nor tunnel4 is loaded"),
            (true, false) => fail(
                "kernel_tunnels",
                format!("{} loaded: the kernel answers protocol 41 as well", loaded.join(" and ")),
                "`modprobe -r sit`, or drop the kernel's own ICMP port unreachable towards peers in the firewall.",
            ),
        }
    }

    /// The interfaces that lead to other hosts, all but our own device.
    fn reverse_path(&self, all: Option<i32>, number: &dyn Fn(&str) -> Option<i32>) -> Finding {
        let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
        let names = routes.lines().skip(1).filter_map(|line| line.split_whitespace().next());
        let names: BTreeSet<_> = names.filter(|name| *name != self.config.router.tun).collect();
        let own = |name: &str| number(&format!("ipv4/conf/{name}/rp_filter"));
        let interfaces: Vec<_> = names.into_iter().map(|name| (name.to_owned(), own(name))).collect();
        reverse_path(all, &interfaces)
    }

    fn forwarding(&self, on: Option<i32>) -> Finding {
        let next = "`sysctl -w net.ipv6.conf.all.forwarding=1`, or [router] forwarding = \"set\".";
        match (self.config.needs_forwarding(), on) {
            (false, _) => skip("forwarding", "nothing here needs the kernel to forward IPv6"),
            (true, Some(1..)) => pass("forwarding", "the kernel forwards IPv6"),
            (true, _) => fail("forwarding", "the kernel does not forward IPv6", next),
        }
    }

    /// Files with passwords are their owner's alone.
    fn secrets(&self) -> Vec<Finding> {
        let store = self.config.store.wanted.then_some(self.config.store.path.as_path());
        let popauth = self.config.dtcp.as_ref().and_then(|dtcp| dtcp.popauth.as_deref());
        let files = [("store", store), ("popauth", popauth)];
        let mut all: Vec<_> =
            files.into_iter().filter_map(|(name, path)| Some(closed(name, path?, 0o077))).collect();
        // Who may write to the configuration may do what the router may.
        all.extend(self.file.map(|path| closed("configuration", path, 0o022)));
        all
    }
}

/// Whether the packet goes nowhere but up.
fn is_held(verdict: &Verdict) -> bool {
    match verdict {
        Verdict::Drop(..) => true,
        Verdict::Punt(_) => true,
        Verdict::ToWire(..) | Verdict::ToTun | Verdict::ToTunAndPunt(_) => false,
    }
}

fn holds(name: &str, good: &str, passed: &[impl ToString]) -> Finding {
    if passed.is_empty() {
        return pass(name, good);
    }
    let shown: Vec<_> = passed.iter().take(5).map(ToString::to_string).collect();
    fail(name, format!("not for {}, {} in all", shown.join(", "), passed.len()), "Report it: this is a bug.")
}

fn no_peer(name: &str) -> Finding {
    skip(name, "no tunnel with prefixes has a known peer")
}

/// A tunnel that packets are tried with: how its peer's packets come, one or two addresses inside, its name.
struct Tried {
    arrival: Arrival,
    inside: Ipv6Addr,
    other: Option<Ipv6Addr>,
    name: String,
}

fn stranger41() -> Arrival {
    Arrival::Wire(Sender::proto41(STRANGER, Ipv4Addr::new(192, 0, 0, 8), 0))
}

fn stranger_udp(port: u16) -> Arrival {
    let local = SocketAddrV4::new(Ipv4Addr::new(192, 0, 0, 8), port);
    Arrival::Wire(Sender { encap: Encap::Udp, remote: SocketAddrV4::new(STRANGER, 9), local, tos: 0 })
}

/// Some addresses in a prefix; fewer where there are fewer.
fn hosts(prefix: Ipv6Prefix) -> [Ipv6Addr; 5] {
    let room = u128::MAX.checked_shr(prefix.prefix_len().into()).unwrap_or(0);
    [2, 3, 0x5157, 0x51a9_33c7, u128::MAX - 1].map(|n| Ipv6Addr::from(prefix.bits() | (n & room)))
}

/// A header that nothing follows.
fn packet(source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
    let head = [0x60, 0, 0, 0, 0, 0, 59, 64];
    [&head[..], &source.octets(), &destination.octets()].concat()
}

/// The TUN device `tun` is up, with all that is to be on it: `Err` says what is wrong.
pub fn device(tun: &str, stands: Result<String, String>) -> Finding {
    let next = || {
        format!(
            "Down: `ip link set {tun} up` brings back what was on it. Missing: `sixway reload` puts it back without loss (with `connect`: `ip link set {tun} down; ip link set {tun} up`, which stops traffic for a moment). Gone: start anew."
        )
    };
    stands.map_or_else(|found| fail("device", found, next()), |found| pass("device", found))
}

fn admin_socket(path: &Path) -> Finding {
    let name = "admin_socket";
    let Ok(found) = fs::symlink_metadata(path) else {
        return fail(
            name,
            format!("{} is gone", path.display()),
            "Somebody has removed it: restart the router.",
        );
    };
    let ours = nix::unistd::geteuid().as_raw();
    if found.mode() & 0o077 == 0 && found.uid() == ours {
        return pass(name, format!("{} is its owner's alone", path.display()));
    }
    let found = format!("{} has mode {:o} and owner {}", path.display(), found.mode() & 0o777, found.uid());
    fail(name, found, format!("`chmod 600 {0}` and `chown {ours} {0}`.", path.display()))
}

/// RFC 3704 section 2.2, for outer sources: `interfaces` with their own switch; the stricter of it and of `all` holds.
fn reverse_path(all: Option<i32>, interfaces: &[(String, Option<i32>)]) -> Finding {
    let name = "reverse_path_filter";
    let is_open = |own: Option<i32>| all.unwrap_or(0).max(own.unwrap_or(0)) <= 0;
    let open: Vec<_> =
        interfaces.iter().filter(|(_, own)| is_open(*own)).map(|(name, _)| name.as_str()).collect();
    match () {
        () if all.is_none() || interfaces.is_empty() => {
            skip(name, "no interface with an IPv4 route, or net.ipv4.conf.*.rp_filter cannot be read")
        }
        () if open.is_empty() => pass(name, "the kernel drops forged IPv4 sources (rp_filter)"),
        () => fail(
            name,
            format!(
                "rp_filter is 0 for {}: forged IPv4 sources are not noticed by the kernel",
                open.join(", ")
            ),
            "`sysctl -w net.ipv4.conf.all.rp_filter=2` (1 where routes are symmetric), or filter at the border.",
        ),
    }
}

/// RFC 5095 section 3. Linux never honours type 0; above 0 it honours others.
fn source_routes(accepted: Option<i32>) -> Finding {
    match accepted {
        None => skip("source_routes", "net.ipv6.conf.all.accept_source_route cannot be read"),
        Some(..=0) => pass("source_routes", "the kernel honours no source routes"),
        Some(_) => fail(
            "source_routes",
            "net.ipv6.conf.all.accept_source_route is on",
            "`sysctl -w net.ipv6.conf.all.accept_source_route=0`.",
        ),
    }
}

/// A file of which nobody else has any of these rights.
fn closed(what: &str, path: &Path, forbidden: u32) -> Finding {
    let name = format!("{what}_file");
    let Ok(found) = fs::metadata(path) else {
        return skip(&name, format!("{} cannot be looked at", path.display()));
    };
    let mode = found.mode() & 0o777;
    if mode & forbidden == 0 {
        return pass(&name, format!("{} has mode {mode:o}", path.display()));
    }
    let better = mode & !forbidden;
    let found = format!("{} has mode {mode:o}", path.display());
    fail(&name, found, format!("`chmod {better:o} {}`.", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn modes_are_judged_and_the_cure_is_named() {
        let path = std::env::temp_dir().join(format!("sixway-audit-{}", std::process::id()));
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let bad = closed("store", &path, 0o077);
        assert!(bad.outcome == Outcome::Fail && bad.next.contains("chmod 600"), "{bad:?}");
        assert_eq!(closed("configuration", &path, 0o022).outcome, Outcome::Pass);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(closed("store", &path, 0o077).outcome, Outcome::Pass);
        fs::remove_file(&path).unwrap();
        assert_eq!(closed("store", &path, 0o077).outcome, Outcome::NotApplicable);
    }

    #[test]
    fn switches_are_judged() {
        let one = |own| [("eth0".to_owned(), Some(2)), ("eth1".to_owned(), own)];
        assert_eq!(reverse_path(Some(0), &one(Some(1))).outcome, Outcome::Pass);
        assert_eq!(reverse_path(Some(1), &one(Some(0))).outcome, Outcome::Pass);
        let bad = reverse_path(Some(0), &one(Some(0)));
        assert!(bad.outcome == Outcome::Fail && bad.found.contains("eth1") && !bad.found.contains("eth0"));
        assert_eq!(reverse_path(None, &one(None)).outcome, Outcome::NotApplicable);
        assert_eq!(source_routes(Some(1)).outcome, Outcome::Fail);
        assert_eq!(source_routes(Some(-1)).outcome, Outcome::Pass);
        assert_eq!(holds("x", "good", &["alice"]).outcome, Outcome::Fail);
    }
}
