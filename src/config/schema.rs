//! Which keys the configuration file may have, each with a line that shows how it is written.
//!
//! Unknown keys, missing keys and wrong types are all answered from here, and `docs/config.md` is tested
//! against it. Knows no meaning and no default of any key.

/// The keys of one table of the file.
#[derive(Debug)]
pub(crate) struct Schema {
    /// The table as it is written in the file; empty for the top of the file.
    pub(crate) title: &'static str,
    /// Its own keys.
    own: &'static [Key],
    /// Keys that other tables have as well.
    shared: &'static [Key],
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
    /// Its keys.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &'static Key> + use<> {
        self.own.iter().chain(self.shared)
    }

    /// The key of that name.
    pub(crate) fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys().find(|key| key.name == name)
    }

    /// How the table is called in a sentence.
    pub(crate) fn place(&self) -> &'static str {
        if self.title.is_empty() { "the top of the file" } else { self.title }
    }
}

const fn key(name: &'static str, example: &'static str) -> Key {
    Key { name, example }
}

const fn table(title: &'static str, own: &'static [Key]) -> Schema {
    Schema { title, own, shared: &[] }
}

/// How a tunnel treats its packets: in every table that makes tunnels.
const CARE: &[Key] = &[
    key("pmtu", "pmtu = \"static\""),
    key("dscp", "dscp = 0"),
    key("ecn", "ecn = \"normal\""),
    key("mss_clamp", "mss_clamp = false"),
    key("packets_per_second", "packets_per_second = 100_000"),
    key("kbit_per_second", "kbit_per_second = 1_000_000"),
    key("quota_mib", "quota_mib = 100_000"),
];

/// The tables of the file.
pub(crate) const ROOT: Schema = table(
    "",
    &[
        key("router", "[router]"),
        key("admin", "[admin]"),
        key("store", "[store]"),
        key("limits", "[limits]"),
        key("hooks", "[hooks]"),
        key("dtcp", "[dtcp]"),
        key("tsp", "[tsp]"),
        key("dhcpv6", "[dhcpv6]"),
        key("dhcpv6_host", "[[dhcpv6_host]]"),
        key("udp", "[udp]"),
        key("proto41", "[proto41]"),
        key("offload", "[offload]"),
        key("guard", "[guard]"),
        key("leased", "[leased]"),
        key("tunnel", "[[tunnel]]"),
        key("tunnel_range", "[[tunnel_range]]"),
        key("pool", "[[pool]]"),
    ],
);

/// `[router]`: the machine itself.
pub(crate) const ROUTER: Schema = table(
    "[router]",
    &[
        key("tun", "tun = \"six0\""),
        key("address", "address = [\"2001:db8:100::1/64\"]"),
        key("outer", "outer = \"10.71.0.1\""),
        key("routes", "routes = \"aggregate\""),
        key("forwarding", "forwarding = \"check\""),
        key("hairpin", "hairpin = true"),
        key("workers", "workers = 0"),
        key("pin", "pin = false"),
        key("linger_us", "linger_us = 30"),
        key("linger_most_us", "linger_most_us = 3000"),
        key("ttl", "ttl = 64"),
        key("capacity", "capacity = 1048576"),
    ],
);

/// `[admin]`: how to ask the running router.
pub(crate) const ADMIN: Schema = table("[admin]", &[key("socket", "socket = \"/run/sixway/six0.sock\"")]);

/// `[store]`: what must survive the process.
pub(crate) const STORE: Schema = table("[store]", &[key("path", "path = \"/var/lib/sixway/six0.db\"")]);

/// `[limits]`: how much one client may ask for.
pub(crate) const LIMITS: Schema = table(
    "[limits]",
    &[
        key("tunnels_per_account", "tunnels_per_account = 1"),
        key("tunnels_per_address", "tunnels_per_address = 256"),
        key("anonymous_tunnels", "anonymous_tunnels = 1024"),
        key("anonymous_per_address", "anonymous_per_address = 4"),
        key("connections", "connections = 65536"),
        key("connections_per_address", "connections_per_address = 256"),
        key("connects_per_minute", "connects_per_minute = 600"),
        key("failed_logins_per_minute", "failed_logins_per_minute = 20"),
    ],
);

/// `[hooks]`: programs that are run when leased tunnels come and go.
pub(crate) const HOOKS: Schema = table(
    "[hooks]",
    &[
        key("up", "up = \"/etc/sixway/up\""),
        key("down", "down = \"/etc/sixway/down\""),
        key("timeout", "timeout = 10"),
        key("at_once", "at_once = 8"),
    ],
);

/// `[dtcp]`: the server for tunnels by DTCP.
pub(crate) const DTCP: Schema = table(
    "[dtcp]",
    &[
        key("listen", "listen = \":20200\""),
        key("prefix", "prefix = \"2001:db8:ffff::/64\""),
        key("routetable", "routetable = \"/usr/local/etc/routetable\""),
        key("popauth", "popauth = \"/usr/local/etc/qpopper/pop.auth\""),
        key("interfaces", "interfaces = 16382"),
        key("names", "names = \"gif7[0-9]\""),
        key("cloning", "cloning = true"),
        key("keep", "keep = false"),
        key("public_address", "public_address = \"192.0.2.1\""),
        key("mtu", "mtu = 1280"),
        key("udp", "udp = false"),
        key("udp_port", "udp_port = 4028"),
        key("udp_names", "udp_names = \"ng0\""),
        key("login_timeout", "login_timeout = 60"),
        key("tunnel_timeout", "tunnel_timeout = 300"),
        key("pid_file", "pid_file = \"/var/run/dtcps.pid\""),
    ],
);

/// `[tsp]`: the server for tunnels by TSP.
pub(crate) const TSP: Schema = table(
    "[tsp]",
    &[
        key("listen", "listen = \":3653\""),
        key("realm", "realm = \"broker.example\""),
        key("mechanisms", "mechanisms = [\"DIGEST-MD5\", \"SCRAM-SHA-256\"]"),
        key("tunnels", "tunnels = [\"v6v4\", \"v6udpv4\"]"),
        key("brokers", "brokers = [\"ts1.example.net\"]"),
        key("redirect", "redirect = \"version\""),
        key("lifetime", "lifetime = 604800"),
        key("lifetime_unit", "lifetime_unit = \"seconds\""),
        key("keepalive", "keepalive = 30"),
        key("anonymous_keepalive", "anonymous_keepalive = 30"),
        key("dns", "dns = [\"2001:db8::53\"]"),
        key("domain", "domain = \"users.example.net\""),
        key("proxy", "proxy = false"),
        key("public_address", "public_address = \"192.0.2.1\""),
        key("mtu", "mtu = 1280"),
        key("ra", "ra = false"),
    ],
);

/// `[[pool]]`: address space that is given out.
pub(crate) const POOL: Schema = table(
    "[[pool]]",
    &[
        key("prefix", "prefix = \"2001:db8:100::/40\""),
        key("assign", "assign = 56"),
        key("pairs", "pairs = true"),
        key("addresses", "addresses = true"),
    ],
);

/// `[dhcpv6]`: the server for clients inside tunnels.
pub(crate) const DHCPV6: Schema = table(
    "[dhcpv6]",
    &[
        key("preferred", "preferred = 3600"),
        key("valid", "valid = 7200"),
        key("rapid_commit", "rapid_commit = false"),
        key("preference", "preference = 100"),
        key("dns", "dns = [\"2001:db8:53::53\"]"),
        key("domains", "domains = [\"example.com\"]"),
        key("ntp", "ntp = [\"2001:db8:53::123\"]"),
        key("sip", "sip = [\"2001:db8:53::5060\"]"),
        key("sip_domains", "sip_domains = [\"sip.example.com\"]"),
        key("nis", "nis = [\"2001:db8:53::111\"]"),
        key("nis_domain", "nis_domain = [\"nis.example.com\"]"),
        key("nisp", "nisp = [\"2001:db8:53::112\"]"),
        key("nisp_domain", "nisp_domain = [\"nisplus.example.com\"]"),
        key("bcmcs", "bcmcs = [\"2001:db8:53::b\"]"),
        key("bcmcs_domains", "bcmcs_domains = [\"bcmcs.example.com\"]"),
        key("refresh_time", "refresh_time = 86400"),
        key("sol_max_rt", "sol_max_rt = 3600"),
        key("inf_max_rt", "inf_max_rt = 3600"),
        key("always", "always = [23, 24]"),
        key("reconfigure", "reconfigure = true"),
        key("relays", "relays = [\"eth7 2001:db8:6::1\"]"),
        key("relay_supplied", "relay_supplied = [64]"),
        key("decline_time", "decline_time = 86400"),
        key("bindings_per_tunnel", "bindings_per_tunnel = 16"),
        key("lease_query", "lease_query = [\"2001:db8:53::/48\"]"),
        key("interfaces", "interfaces = [\"eth1\"]"),
        key("link_config", "link_config = \"/etc/wide-dhcpv6/dhcp6s.conf\""),
    ],
);

/// `[[dhcpv6_host]]`: what is set aside for one client.
pub(crate) const DHCPV6_HOST: Schema = table(
    "[[dhcpv6_host]]",
    &[
        key("duid", "duid = \"00:03:00:01:02:00:00:00:53:02\""),
        key("prefixes", "prefixes = [\"2001:db8:1111::/48\"]"),
        key("addresses", "addresses = [\"2001:db8:53:1::180\"]"),
        key("excluded", "excluded = [\"2001:db8:1111::/64\"]"),
        key("tunnel", "tunnel = \"alice\""),
    ],
);

/// `[udp]`: the UDP encapsulation.
pub(crate) const UDP: Schema = table("[udp]", &[key("ports", "ports = [3653]")]);

/// `[proto41]`: the protocol 41 encapsulation.
pub(crate) const PROTO41: Schema =
    table("[proto41]", &[key("enabled", "enabled = true"), key("receive", "receive = \"auto\"")]);

/// `[offload]`: the kernel's offloads, one knob each.
pub(crate) const OFFLOAD: Schema = table(
    "[offload]",
    &[
        key("tun_tcp", "tun_tcp = true"),
        key("tun_udp", "tun_udp = true"),
        key("merge_tcp", "merge_tcp = true"),
        key("merge_udp", "merge_udp = true"),
        key("udp_gso", "udp_gso = true"),
        key("udp_gro", "udp_gro = true"),
        key("proto41_gso", "proto41_gso = true"),
    ],
);

/// `[[tunnel]]`: one tunnel.
pub(crate) const TUNNEL: Schema = Schema {
    shared: CARE,
    ..table(
        "[[tunnel]]",
        &[
            key("name", "name = \"alice\""),
            key("encap", "encap = \"proto41\""),
            key("local", "local = \"10.71.0.1\""),
            key("remote", "remote = \"10.71.0.2\""),
            key("prefixes", "prefixes = [\"2001:db8:100:1::/64\"]"),
            key("mtu", "mtu = 1280"),
            key("default_route", "default_route = true"),
            key("ra", "ra = { on = true }"),
            key("echo", "echo = \"2001:db8:100:1::1\""),
        ],
    )
};

/// `[[tunnel_range]]`: many tunnels alike.
pub(crate) const TUNNEL_RANGE: Schema = Schema {
    shared: CARE,
    ..table(
        "[[tunnel_range]]",
        &[
            key("count", "count = 1000"),
            key("name", "name = \"t\""),
            key("encap", "encap = \"udp\""),
            key("local", "local = \"10.71.0.1:3653\""),
            key("prefix", "prefix = \"2001:db8:200::/64\""),
            key("remote", "remote = \"10.128.0.0:4000\""),
            key("mtu", "mtu = 1280"),
            key("ra", "ra = { on = true }"),
        ],
    )
};

/// `[leased]`: how tunnels that are granted treat their packets.
pub(crate) const LEASED: Schema = Schema { shared: CARE, ..table("[leased]", &[]) };

/// `[guard]`: what may not pass, and what is said about it.
pub(crate) const GUARD: Schema = table(
    "[guard]",
    &[
        key("icmp_errors", "icmp_errors = 1000"),
        key("icmp_errors_of_tunnel", "icmp_errors_of_tunnel = 100"),
        key("tell_source", "tell_source = false"),
        key("source_routes", "source_routes = false"),
        key("nesting", "nesting = 4"),
    ],
);

/// `ra = { ... }`: router advertisements inside a tunnel.
pub(crate) const RA: Schema = table(
    "`ra`",
    &[
        key("on", "on = true"),
        key("managed", "managed = false"),
        key("other", "other = false"),
        key("prefix", "prefix = [\"2001:db8:100:1::/64\"]"),
    ],
);

/// All of them.
pub(crate) const ALL: [&Schema; 19] = [
    &ROOT,
    &ROUTER,
    &ADMIN,
    &STORE,
    &LIMITS,
    &HOOKS,
    &DTCP,
    &TSP,
    &DHCPV6,
    &DHCPV6_HOST,
    &UDP,
    &PROTO41,
    &OFFLOAD,
    &GUARD,
    &LEASED,
    &TUNNEL,
    &TUNNEL_RANGE,
    &POOL,
    &RA,
];
