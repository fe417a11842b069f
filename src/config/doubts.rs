//! What a configuration allows and is likely not meant: said by `sixway check`, at the start and at reloads, and obeyed.
//!
//! Knows what the file says, and nothing of the host.

use super::{Config, TunnelConfig};
use crate::broker::PoolKind;
use crate::dhcpv6::server::fixed;
use crate::dhcpv6::session::likely_link;

impl Config {
    /// A line each, with what to do about it.
    pub fn doubts(&self) -> Vec<String> {
        self.delegated_links().into_iter().collect()
    }

    /// Tunnels where the only prefix that a client can have is likely the tunnel's own link.
    fn delegated_links(&self) -> Option<String> {
        let has_networks = self.pools.iter().any(|pool| matches!(pool.kind, PoolKind::Networks(_)));
        if self.dhcpv6.is_none() || has_networks {
            return None;
        }
        let mut links = self.tunnels.iter().filter(|tunnel| delegates_its_link(tunnel));
        let first = links.next()?;
        let own = first.prefixes.iter().find(|prefix| prefix.prefix_len() == 64)?;
        let more = match links.count() {
            0 => String::new(),
            more => format!(" (and {more} more tunnels)"),
        };
        Some(format!(
            "tunnel '{}'{more}: a client in it that asks for a prefix is given {own}, and if its end has an address therein, it \
             cannot have that on another link; add a [[pool]] of networks, or give its end an address of its own (/128)",
            first.name
        ))
    }
}

fn delegates_its_link(tunnel: &TunnelConfig) -> bool {
    let own = fixed(tunnel);
    let networks = own.iter().filter(|prefix| prefix.prefix_len() <= 64).count();
    networks > 0 && likely_link(&own).len() == networks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doubts(more: &str, prefixes: &str) -> Vec<String> {
        let tunnel = format!(
            "[router]\nouter = \"192.0.2.1\"\n[[tunnel]]\nname = \"a\"\nencap = \"proto41\"\nremote = \"192.0.2.7\"\n\
             prefixes = [{prefixes}]\n{more}"
        );
        Config::parse("x.toml", &tunnel).unwrap().doubts()
    }

    #[test]
    fn a_tunnel_that_can_only_delegate_its_link_is_named() {
        let (link, served) = ("\"2001:db8:1::/64\"", "[dhcpv6]\n");
        let said = doubts(served, link);
        assert!(
            said.len() == 1 && said[0].contains("'a'") && said[0].contains("2001:db8:1::/64"),
            "{said:?}"
        );
        let pool = "[dhcpv6]\n[[pool]]\nprefix = \"2001:db8:200::/40\"\nassign = 56\n";
        for (more, prefixes) in [
            ("", link),
            (pool, link),
            (served, "\"2001:db8::2/128\", \"2001:db8:1::/64\""),
            (served, "\"2001:db8:2::/56\", \"2001:db8:1::/64\""),
            ("ra = { prefix = [\"2001:db8:1::/64\"] }\n[dhcpv6]\n", link),
        ] {
            assert_eq!(doubts(more, prefixes), Vec::<String>::new(), "{more} {prefixes}");
        }
    }
}
