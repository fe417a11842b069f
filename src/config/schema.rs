//! Which keys the configuration file may have, each with a line that shows how it is written.
//!
//! Unknown keys, missing keys and wrong types are all answered from here, and `docs/config.md` is tested
//! against it. Knows no meaning and no default of any key.

/// The keys of one table of the file.
#[derive(Debug)]
pub(crate) struct Schema {
    /// The table as it is written in the file; empty for the top of the file.
    pub(crate) title: &'static str,
    /// Its keys.
    pub(crate) keys: &'static [Key],
}

/// One key.
#[derive(Debug)]
pub(crate) struct Key {
    /// How it is spelt.
    pub(crate) name: &'static str,
    /// A whole line that is right.
    pub(crate) example: &'static str,
}

impl Schema {
    /// The key of that name.
    pub(crate) fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }

    /// How the table is called in a sentence.
    pub(crate) fn place(&self) -> &'static str {
        if self.title.is_empty() { "the top of the file" } else { self.title }
    }
}

const fn key(name: &'static str, example: &'static str) -> Key {
    Key { name, example }
}

/// The tables of the file.
pub(crate) const ROOT: Schema = Schema {
    title: "",
    keys: &[
        key("router", "[router]"),
        key("admin", "[admin]"),
        key("udp", "[udp]"),
        key("proto41", "[proto41]"),
        key("offload", "[offload]"),
        key("tunnel", "[[tunnel]]"),
        key("tunnel_range", "[[tunnel_range]]"),
    ],
};

/// `[router]`: the machine itself.
pub(crate) const ROUTER: Schema = Schema {
    title: "[router]",
    keys: &[
        key("tun", "tun = \"six0\""),
        key("address", "address = [\"2001:db8:100::1/64\"]"),
        key("outer", "outer = \"10.71.0.1\""),
        key("routes", "routes = \"aggregate\""),
        key("forwarding", "forwarding = \"check\""),
        key("hairpin", "hairpin = true"),
        key("workers", "workers = 0"),
        key("pin", "pin = false"),
        key("linger_us", "linger_us = 30"),
        key("capacity", "capacity = 1048576"),
    ],
};

/// `[admin]`: how to ask the running router.
pub(crate) const ADMIN: Schema =
    Schema { title: "[admin]", keys: &[key("socket", "socket = \"/run/sixway/six0.sock\"")] };

/// `[udp]`: the UDP encapsulation.
pub(crate) const UDP: Schema = Schema { title: "[udp]", keys: &[key("ports", "ports = [3653]")] };

/// `[proto41]`: the protocol 41 encapsulation.
pub(crate) const PROTO41: Schema = Schema {
    title: "[proto41]",
    keys: &[key("enabled", "enabled = true"), key("receive", "receive = \"auto\"")],
};

/// `[offload]`: the kernel's offloads, one knob each.
pub(crate) const OFFLOAD: Schema = Schema {
    title: "[offload]",
    keys: &[
        key("tun_tcp", "tun_tcp = true"),
        key("tun_udp", "tun_udp = true"),
        key("merge_tcp", "merge_tcp = true"),
        key("merge_udp", "merge_udp = true"),
        key("udp_gso", "udp_gso = true"),
        key("udp_gro", "udp_gro = true"),
        key("proto41_gso", "proto41_gso = true"),
    ],
};

/// `[[tunnel]]`: one tunnel.
pub(crate) const TUNNEL: Schema = Schema {
    title: "[[tunnel]]",
    keys: &[
        key("name", "name = \"alice\""),
        key("encap", "encap = \"proto41\""),
        key("local", "local = \"10.71.0.1\""),
        key("remote", "remote = \"10.71.0.2\""),
        key("prefixes", "prefixes = [\"2001:db8:100:1::/64\"]"),
        key("mtu", "mtu = 1280"),
        key("default_route", "default_route = true"),
        key("ra", "ra = { on = true }"),
    ],
};

/// `[[tunnel_range]]`: many tunnels alike.
pub(crate) const TUNNEL_RANGE: Schema = Schema {
    title: "[[tunnel_range]]",
    keys: &[
        key("count", "count = 1000"),
        key("name", "name = \"t\""),
        key("encap", "encap = \"udp\""),
        key("local", "local = \"10.71.0.1:3653\""),
        key("prefix", "prefix = \"2001:db8:200::/64\""),
        key("remote", "remote = \"10.128.0.0:4000\""),
        key("mtu", "mtu = 1280"),
        key("ra", "ra = { on = true }"),
    ],
};

/// `ra = { ... }`: router advertisements inside a tunnel.
pub(crate) const RA: Schema = Schema {
    title: "`ra`",
    keys: &[
        key("on", "on = true"),
        key("managed", "managed = false"),
        key("other", "other = false"),
        key("prefix", "prefix = [\"2001:db8:100:1::/64\"]"),
    ],
};

/// All of them.
pub(crate) const ALL: [&Schema; 9] =
    [&ROOT, &ROUTER, &ADMIN, &UDP, &PROTO41, &OFFLOAD, &TUNNEL, &TUNNEL_RANGE, &RA];
