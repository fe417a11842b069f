//! A configuration that gives nobody anything, as a whole or on a link that is served: mostly a slip, and worth a word. Pure.

use crate::compat::dhcp6sconf::{Host, Interface, ServerConf};

/// Whether nobody is given, or told, anything by it: what is left of a file that was cut off at its beginning.
pub fn is_empty(conf: &ServerConf) -> bool {
    let says_nothing = conf.options.addresses.is_empty()
        && conf.options.names.is_empty()
        && conf.options.refresh_time.is_none();
    says_nothing && !conf.interfaces.values().any(gives) && !conf.hosts.iter().any(has)
}

/// For each of these links that nobody on it is given an address or a prefix: that, and what to look at.
pub fn silent(conf: &ServerConf, links: &[String], file: &str) -> Vec<String> {
    // Hosts are given theirs on any link, and clients that relays name are nobody's on it.
    let others: Vec<&str> =
        conf.interfaces.iter().filter(|(_, one)| gives(one)).map(|(name, _)| name.as_str()).collect();
    let is_relayed = conf.interfaces.values().any(|one| !one.relay_ids.is_empty());
    // Who has no pools at all, and options, is there for those who ask for information alone.
    let informs = others.is_empty() && !is_empty(conf);
    if is_relayed || informs || conf.hosts.iter().any(has) {
        return Vec::new();
    }
    let here = |name: &&String| !conf.interfaces.get(*name).is_some_and(gives);
    let why = |name: &String| match (conf.interfaces.contains_key(name), &others[..]) {
        (true, _) => format!(
            "`interface {name}` there has no address-pool and no delegated-prefix-pool, and there is no host"
        ),
        (false, []) => "there is no pool and no host in it".to_owned(),
        (false, others) => format!("it has pools for {} and says nothing about {name}", others.join(", ")),
    };
    let said =
        |name: &String| format!("nobody on {name} is given an address or a prefix by {file}: {}", why(name));
    links.iter().filter(here).map(said).collect()
}

fn gives(interface: &Interface) -> bool {
    interface.pool.is_some() || !interface.prefix_pools.is_empty()
}

/// Whether somebody can be this host, and is given anything.
fn has(host: &Host) -> bool {
    let is_somebody = host.duid.is_some() || host.line.is_some();
    let has_own = !host.prefixes.is_empty() || !host.addresses.is_empty();
    is_somebody && (has_own || host.pool.is_some() || !host.prefix_pools.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compat::dhcp6sconf::{Anywhere, load};

    #[test]
    fn what_gives_nobody_anything_is_said() {
        const POOL: &str = "delegated-prefix-pool 2001:db8:8000::/40 56 9;";
        let cases = [
            ("", true, Some("no pool and no host")),
            ("interface a { preference 1; };", true, Some("`interface a` there has no")),
            ("host h { prefix 2001:db8::/48 9; };", true, Some("no pool and no host")),
            ("interface b { POOL };", false, Some("pools for b and says nothing about a")),
            ("option domain-name \"x.example\"; interface b { POOL };", false, Some("pools for b")),
            ("option domain-name \"x.example\";", false, None),
            ("interface a { POOL };", false, None),
            ("interface b { POOL relay-interface-id \"x\"; };", false, None),
            ("host h { duid 00:01; prefix 2001:db8::/48 9; };", false, None),
        ];
        for (text, empty, said) in cases {
            let text = text.replace("POOL", POOL);
            let conf = load("x", text.as_bytes(), &Anywhere).unwrap().conf;
            assert_eq!(is_empty(&conf), empty, "{text}");
            let all = silent(&conf, &["a".to_owned()], "x.conf").join("\n");
            assert_eq!(said.is_none(), all.is_empty(), "{text}: {all}");
            assert!(all.contains(said.unwrap_or_default()), "{text}: {all}");
        }
    }
}
