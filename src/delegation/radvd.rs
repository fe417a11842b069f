//! radvd's configuration for the links that a delegated prefix is on: what radvd's grammar takes, and no more. Pure.
//!
//! radvd ends when it cannot read its file, and leaves out an interface whose values it refuses, so nothing that a server says
//! gets there unless it can stand there: names of letters, digits and `-`, addresses without dots.

use std::fmt::Write;
use std::net::Ipv6Addr;

use sixway_dataplane::update::Ipv6Prefix;

use super::plan::{LINK, Life, Plan, Wish, network};
use crate::dhcpv6::client::Lease;
use crate::dhcpv6::codec::INFINITY;

/// Name servers in one option: older versions of radvd take no more.
const MOST_SERVERS: usize = 3;
/// Octets of all search domains together, so that an advertisement stays one packet.
const MOST_OCTETS: usize = 600;
/// Words of radvd's grammar that a name without a dot would be taken for, in any case; those that begin with `Adv` aside.
const WORDS: [&str; 33] = [
    "interface",
    "prefix",
    "route",
    "rdnss",
    "dnssl",
    "clients",
    "lowpanco",
    "abro",
    "nat64prefix",
    "autoignoreprefixes",
    "ignoreifmissing",
    "maxrtradvinterval",
    "minrtradvinterval",
    "mindelaybetweenras",
    "removeadvonexit",
    "deprecateprefix",
    "decrementlifetimes",
    "unicastonly",
    "unrestrictedunicast",
    "base6interface",
    "base6to4interface",
    "homeagentpreference",
    "homeagentlifetime",
    "removeroute",
    "flushrdnss",
    "flushdnssl",
    "adv6lbraddress",
    "infinity",
    "on",
    "off",
    "low",
    "medium",
    "high",
];

impl Wish {
    /// radvd's configuration for the links; `gone` are networks that hosts are to let go of (RFC 7084 L-13), and `link_mtu` the
    /// MTUs of interfaces that are there.
    pub fn radvd(
        &self,
        plan: &Plan,
        lease: &Lease,
        gone: &[(String, Ipv6Prefix)],
        link_mtu: impl Fn(&str) -> Option<u32>,
    ) -> String {
        let mut text = String::from(
            "# Written by sixway connect, and written anew whenever the delegated prefix is renewed or changes.\n",
        );
        let mut interfaces: Vec<&str> = self.to.iter().map(|place| place.interface.as_str()).collect();
        interfaces.sort_unstable();
        interfaces.dedup();
        for name in interfaces {
            let own = plan.addresses.iter().filter(|placed| placed.interface == name && placed.len == LINK);
            let own: Vec<_> = own.collect();
            // Older versions of radvd end when an interface is not there.
            let _infallible =
                write!(text, "\ninterface {name}\n{{\n    IgnoreIfMissing on;\n    AdvSendAdvert on;\n");
            // An MTU above the link's own is refused, and says nothing to hosts.
            if link_mtu(name).is_none_or(|link| u32::from(self.mtu) <= link) {
                let _infallible = writeln!(text, "    AdvLinkMTU {};", self.mtu);
            }
            if own.is_empty() {
                text += "    AdvDefaultLifetime 0;\n";
            }
            for placed in &own {
                text += &advertised(network(placed), placed.life);
            }
            let held: Vec<Ipv6Prefix> = own.iter().map(|placed| network(placed)).collect();
            let old = gone.iter().filter(|(at, net)| at == name && !held.contains(net));
            old.for_each(|(_, net)| text += &advertised(*net, (0, 0)));
            if !own.is_empty() {
                text += &resolvers(lease);
            }
            text += "};\n";
        }
        text
    }
}

/// Whether radvd can be told of an interface of this name.
pub fn can_name(interface: &str) -> bool {
    let is_letter = |c: char| c.is_ascii_alphanumeric() || "-_.@+=#$%^&*()~`!?<>[],".contains(c);
    interface.chars().all(is_letter) && !interface.starts_with(['#', '!']) && !is_word(interface)
}

/// Whether radvd reads it as something else than a text: a word of its own, or a number.
fn is_word(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    let is_number = text.chars().all(|c| c.is_ascii_digit() || c == '.' || c == '-');
    is_number || lower.starts_with("adv") && !lower.contains('.') || WORDS.contains(&lower.as_str())
}

fn advertised(net: Ipv6Prefix, (preferred, valid): Life) -> String {
    let word = |seconds: u32| if seconds == INFINITY { "infinity".to_owned() } else { seconds.to_string() };
    // What counts down is not advertised any more once it is not preferred: hosts would not hear that it no longer is.
    let counts_down = preferred > 0 && valid != INFINITY;
    format!(
        "    prefix {net}\n    {{\n        AdvOnLink on;\n        AdvAutonomous on;\n        AdvValidLifetime {};\n        \
         AdvPreferredLifetime {};\n        DecrementLifetimes {};\n    }};\n",
        word(valid),
        word(preferred),
        if counts_down { "on" } else { "off" }
    )
}

fn resolvers(lease: &Lease) -> String {
    let mut text = String::new();
    let servers: Vec<String> =
        lease.dns.iter().filter(|addr| is_server(addr)).map(Ipv6Addr::to_string).collect();
    if !servers.is_empty() {
        let most = servers.len().min(MOST_SERVERS);
        text += &format!("    RDNSS {} {{ }};\n", servers.get(..most).unwrap_or(&servers).join(" "));
    }
    let mut room = MOST_OCTETS;
    let names = lease.domains.iter().map(|name| name.to_string().trim_end_matches('.').to_owned());
    let fits = |name: &String| {
        let fits = is_domain(name) && name.len() < room;
        room -= if fits { name.len() + 1 } else { 0 };
        fits
    };
    let names: Vec<String> = names.filter(fits).collect();
    if !names.is_empty() {
        text += &format!("    DNSSL {} {{ }};\n", names.join(" "));
    }
    text
}

/// Whether hosts on a link can ask there, and radvd can read it.
fn is_server(addr: &Ipv6Addr) -> bool {
    let is_nobodys = addr.is_unspecified() || addr.is_loopback() || addr.is_multicast();
    !is_nobodys && !addr.is_unicast_link_local() && addr.octets()[0] != 0
}

/// Whether radvd takes it as a search domain.
fn is_domain(name: &str) -> bool {
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    !name.is_empty() && name.chars().all(known) && !is_word(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delegation::plan::tests::{lease, wish};
    use crate::dhcpv6::codec::Name;
    use std::time::Duration;

    fn text(wish: &Wish, lease: &Lease, gone: &[(String, Ipv6Prefix)], link: u32) -> String {
        wish.radvd(&wish.plan(lease, &[], Duration::from_secs(100)), lease, gone, |_| Some(link))
    }

    #[test]
    fn radvd_is_told_what_to_advertise_and_what_to_withdraw() {
        let (wish, lease) = (wish(&["eth1"]), lease("2001:db8:200::/56"));
        let gone = [("eth1".to_owned(), "2001:db8:300::/64".parse().unwrap())];
        let text = text(&wish, &lease, &gone, 1500);
        for part in [
            "interface eth1\n{\n    IgnoreIfMissing on;\n    AdvSendAdvert on;\n    AdvLinkMTU 1280;\n    prefix 2001:db8:200::/64\n",
            "AdvValidLifetime 90;\n        AdvPreferredLifetime 60;\n        DecrementLifetimes on;",
            "prefix 2001:db8:300::/64\n    {\n        AdvOnLink on;\n        AdvAutonomous on;\n        AdvValidLifetime 0;",
            "RDNSS 2001:db8:53::53 { };",
            "DNSSL example.com { };",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        let over = wish.radvd(&Plan::default(), &Lease::default(), &gone, |_| None);
        assert!(over.contains("AdvDefaultLifetime 0;") && !over.contains("RDNSS"), "{over}");
    }

    #[test]
    fn a_prefix_that_is_not_preferred_any_more_is_advertised_as_that() {
        let withdrawn = advertised("2001:db8::/64".parse().unwrap(), (0, 90));
        assert!(withdrawn.contains("AdvValidLifetime 90;") && withdrawn.contains("DecrementLifetimes off;"));
        let endless = advertised("2001:db8::/64".parse().unwrap(), (INFINITY, INFINITY));
        assert!(
            endless.contains("AdvPreferredLifetime infinity;") && endless.contains("DecrementLifetimes off;")
        );
    }

    #[test]
    fn an_mtu_that_the_link_does_not_have_is_not_advertised() {
        let wish = Wish { mtu: 1480, ..wish(&["eth1"]) };
        let lease = lease("2001:db8:200::/56");
        assert!(text(&wish, &lease, &[], 1480).contains("AdvLinkMTU 1480;"));
        assert!(!text(&wish, &lease, &[], 1400).contains("AdvLinkMTU"));
        assert!(wish.radvd(&Plan::default(), &lease, &[], |_| None).contains("AdvLinkMTU 1480;"));
    }

    #[test]
    fn nothing_that_a_server_says_ends_radvd() {
        let mut lease = lease("2001:db8:200::/56");
        lease.dns = [
            "::ffff:192.0.2.1",
            "ff02::1",
            "::",
            "::1",
            "fe80::53",
            "2001:db8::1",
            "2001:db8::2",
            "2001:db8::3",
            "2001:db8::4",
        ]
        .map(|addr| addr.parse().unwrap())
        .to_vec();
        let long = format!("{}.{}.{}.example", "a".repeat(63), "b".repeat(63), "c".repeat(63));
        lease.domains = [
            "my_domain.example",
            "Prefix",
            "42",
            "4.2",
            "home",
            "on.example",
            "AdvOnLink",
            &long,
            &long,
            &long,
            &long,
        ]
        .map(|name| Name::from_text(name).unwrap())
        .to_vec();
        let text = text(&wish(&["eth1"]), &lease, &[], 1500);
        assert!(text.contains("RDNSS 2001:db8::1 2001:db8::2 2001:db8::3 { };"), "{text}");
        assert!(text.contains(&format!("DNSSL home on.example {long} {long} {{ }};")), "{text}");
        lease.domains.clear();
        lease.dns.truncate(5);
        let none = wish(&["eth1"]).radvd(&Plan::default(), &lease, &[], |_| None);
        assert!(!none.contains("RDNSS") && !none.contains("DNSSL"), "{none}");
    }

    #[test]
    fn interfaces_have_names_that_radvd_can_read() {
        for good in ["eth1", "br-lan", "wg0", "eth0.5", "lan", "enp3s0f0np0", "advent.1"] {
            assert!(can_name(good), "{good}");
        }
        for bad in ["on", "High", "42", "1.5", "prefix", "a;b", "a{", "AdvLinkMTU", "x\"y", "#x", "\u{e9}th"]
        {
            assert!(!can_name(bad), "{bad}");
        }
    }
}
