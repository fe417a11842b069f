//! `[[tunnel]]` and `[[tunnel_range]]`: what each may be, and what they grow into.

use super::*;

#[test]
fn required_keys_are_demanded_with_an_example() {
    let errors = bad("\n[[tunnel]]\n");
    assert_eq!(errors.len(), 3);
    for (error, key) in
        errors.iter().zip(["name = \"alice\"", "encap = \"proto41\"", "remote = \"10.71.0.2\""])
    {
        assert_mistake(error, 2, &["is missing in [[tunnel]]", key]);
    }
    let errors = bad("\n\n[[tunnel_range]]\n");
    let keys = ["count = 1000", "name = \"t\"", "encap = \"udp\"", "remote = ", "prefix = "];
    assert_eq!(errors.len(), keys.len());
    for (error, key) in errors.iter().zip(keys) {
        assert_mistake(error, 3, &["is missing in [[tunnel_range]]", key]);
    }
}

#[test]
fn names_have_bounds() {
    let name = |name: &str| tunnel(name, "udp", "10.0.0.2:1", "");
    one_mistake(&name(""), 2, &["`name`", "1 to 32"]);
    one_mistake(&name(&"x".repeat(33)), 2, &["`name`", "1 to 32"]);
    one_mistake(&name("al ice"), 2, &["`name`", "A-Z"]);
    one_mistake(&name("älice"), 2, &["`name`", "A-Z"]);
    assert_eq!(&*good(&name(&"x.Y_-".repeat(6))).tunnels[0].name, "x.Y_-".repeat(6));
}

#[test]
fn encapsulations_and_ends() {
    let udp = |remote: &str| tunnel("a", "udp", remote, "");
    let sit = |remote: &str| tunnel("a", "proto41", remote, "");
    one_mistake(&tunnel("a", "upd", "10.0.0.2", ""), 3, &["`encap`", "did you mean 'udp'?"]);
    one_mistake(&udp("10.0.0.2"), 4, &["`remote`", "'ADDRESS:PORT'", "'learn'"]);
    one_mistake(&udp("10.0.0.2:0"), 4, &["`remote`", "1 to 65535"]);
    one_mistake(&udp("10.0.0.2:65536"), 4, &["`remote`", "65536"]);
    one_mistake(&udp("host.example:1"), 4, &["`remote`", "names are not looked up"]);
    one_mistake(&sit("10.0.0.2:3"), 4, &["`remote`", "no ports"]);
    one_mistake(&sit("2001:db8::1"), 4, &["`remote`", "IPv4"]);
    for (martian, why) in [
        ("0.1.2.3", "0.0.0.0/8"),
        ("127.0.0.1", "127.0.0.0/8"),
        ("224.0.0.1", "224.0.0.0/4"),
        ("239.255.255.255", "224.0.0.0/4"),
        ("255.255.255.255", "everybody"),
    ] {
        one_mistake(&sit(martian), 4, &["`remote`", why]);
        one_mistake(&udp(&format!("{martian}:5")), 4, &["`remote`", why]);
        one_mistake(&udp(&format!("{martian}:*")), 4, &["`remote`", why]);
    }
    let local =
        |encap, remote, local: &str| tunnel("a", encap, remote, "") + &format!("local = \"{local}\"\n");
    one_mistake(&local("udp", "10.0.0.2:1", "10.0.0.1"), 6, &["`local`", "port is missing", "10.0.0.1:3653"]);
    one_mistake(&local("udp", "10.0.0.2:1", "0.0.0.0:7"), 6, &["`local`", "'*:7'"]);
    one_mistake(&local("udp", "10.0.0.2:1", "10.0.0.1:0"), 6, &["`local`", "1 to 65535"]);
    one_mistake(&local("proto41", "10.0.0.2", "10.0.0.1:7"), 6, &["`local`", "no ports"]);
    one_mistake(&local("proto41", "10.0.0.2", "10.0.0.2"), 4, &["`remote`", "`local`", "loop"]);
    one_mistake(&local("udp", "10.0.0.2:9", "10.0.0.2:1"), 4, &["`remote`", "`local`", "loop"]);
    let outer = "[router]\nouter = \"10.0.0.2\"\n";
    one_mistake(&(outer.to_owned() + &local("proto41", "10.0.0.2", "10.0.0.3")), 6, &["`remote`", "`outer`"]);
}

#[test]
fn ends_take_their_defaults() {
    let outer_of = |head: &str, tail: &str, encap: &str, remote: &str| {
        let head = format!("[router]\naddress = [\"2001:db8::1/64\"]\n{head}\n");
        good(&(head + &tunnel("a", encap, remote, "") + tail)).tunnels[0].outer
    };
    let fixed = |addr, port| Outer::Udp {
        local: UdpLocal { addr, port },
        remote: UdpRemote::Fixed(at("10.0.0.2:5")),
    };
    let remote = Ipv4Addr::new(10, 0, 0, 2);
    assert_eq!(outer_of("", "", "proto41", "10.0.0.2"), Outer::Proto41 { local: None, remote });
    let outer = "outer = \"10.71.0.1\"";
    assert_eq!(outer_of(outer, "", "proto41", "10.0.0.2"), Outer::Proto41 { local: Some(OUTER), remote });
    assert_eq!(outer_of("", "", "udp", "10.0.0.2:5"), fixed(None, 3653));
    let ports = "outer = \"10.71.0.1\"\n[udp]\nports = [443, 3653]";
    assert_eq!(outer_of(ports, "", "udp", "10.0.0.2:5"), fixed(Some(OUTER), 443));
    assert_eq!(outer_of(ports, "local = \":9\"", "udp", "10.0.0.2:5"), fixed(None, 9));
    assert_eq!(outer_of(ports, "local = \"*:9\"", "udp", "10.0.0.2:5"), fixed(None, 9));
    assert_eq!(outer_of("", "local = \"10.71.0.1:9\"", "udp", "10.0.0.2:5"), fixed(Some(OUTER), 9));
    let local = UdpLocal { addr: None, port: 3653 };
    assert_eq!(
        outer_of("", "", "udp", "10.0.0.2:*"),
        Outer::Udp { local, remote: UdpRemote::AnyPort { addr: remote, port: None } }
    );
    assert_eq!(outer_of("", "", "udp", "learn"), Outer::Udp { local, remote: UdpRemote::Learned(None) });
}

#[test]
fn without_udp_ports_a_udp_tunnel_must_say_its_own() {
    let head = "[udp]\nports = []\n";
    let text = head.to_owned() + &tunnel("a", "udp", "10.0.0.2:1", "");
    one_mistake(&text, 3, &["`local` is missing", "[udp]", "10.71.0.1:3653"]);
    let config = good(&(text + "local = \":9\"\n"));
    assert_eq!(config.listen_endpoints(), [at("0.0.0.0:9")]);
}

#[test]
fn learning_needs_an_address_of_the_router() {
    for remote in ["learn", "10.0.0.2:*"] {
        let text = tunnel("a", "udp", remote, "");
        one_mistake(&text, 4, &["`remote`", remote, "echo request", "[router]"]);
        good(&(text + "[router]\naddress = [\"2001:db8::1/128\"]\n"));
    }
    // An address that was written wrongly is one mistake, not two.
    let text = tunnel("a", "udp", "learn", "") + "[router]\naddress = [\"2001:db8::1\"]\n";
    one_mistake(&text, 7, &["`address`"]);
}

#[test]
fn prefixes_have_bounds() {
    let with = |prefixes: &str| tunnel("a", "udp", "10.0.0.2:1", prefixes);
    let cases: [(&str, &[&str]); 14] = [
        ("2001:db8::1/64", &["behind the prefix length", "did you mean '2001:db8::/64'?"]),
        ("2001:db8::", &["the prefix length is missing"]),
        ("2001:db8::/129", &["'129'", "0 to 128"]),
        ("2001:dg8::/64", &["'2001:dg8::' is not an IPv6 address"]),
        ("alice", &["no IPv6 prefix"]),
        ("fe80::/64", &["link-local"]),
        ("fe80::/10", &["link-local"]),
        ("ff0e::/16", &["multicast"]),
        ("::ffff:0:0/96", &["IPv4-mapped"]),
        ("::1/128", &["loopback"]),
        ("::/128", &["unspecified"]),
        ("::/1", &["IPv4-mapped"]),
        ("8000::/1", &["link-local"]),
        ("f000::/4", &["link-local"]),
    ];
    for (prefix, words) in cases {
        one_mistake(&with(&format!("\n\"{prefix}\"")), 6, &[&["`prefixes`", prefix], words].concat());
    }
    one_mistake(&with("\"2001:db8::/64\",\n\"2001:db8::/64\""), 6, &["`prefixes`", "listed twice"]);
    let many = |n: usize| (0..n).map(|i| format!("\"2001:db8:{i:x}::/48\",")).collect::<String>();
    one_mistake(&with(&many(65)), 5, &["`prefixes`", "65", "64"]);
    assert_eq!(good(&with(&many(64))).tunnels[0].prefixes.len(), 64);
    assert_eq!(good(&with("\"::/0\", \"2000::/3\", \"fd00::/8\"")).tunnels[0].prefixes[0], Ipv6Prefix::ALL);
}

#[test]
fn mtu_bounds() {
    one_mistake(&alice_with("mtu = 1279"), 6, &["`mtu`", "1279", "1280 to 65000"]);
    one_mistake(&alice_with("mtu = 65001"), 6, &["`mtu`", "65001"]);
    assert_eq!(good(&alice_with("mtu = 65000")).tunnels[0].mtu, 65000);
    assert_eq!(good(&alice_with("")).tunnels[0].mtu, 1280);
}

#[test]
fn advertisements_are_off_towards_the_way_out() {
    let uplink = |tail: &str| good(&(tunnel("a", "udp", "10.0.0.2:1", "\"::/0\"") + tail)).tunnels[0].ra.on;
    assert!(!uplink("") && !uplink("default_route = true") && uplink("ra = { on = true }"));
    assert!(!uplink("ra = { other = true }"));
    let other = good(&alice_with("ra = { other = true }")).tunnels[0].ra.clone();
    assert_eq!(other, Ra { on: true, managed: false, other: true, prefix: vec![] });
    assert!(!good(&alice_with("ra = { on = false }")).tunnels[0].ra.on);
}

#[test]
fn advertised_prefixes_are_the_tunnels_own() {
    one_mistake(&alice_with("ra = { prefix = [\"2001:db8:2::/64\"] }"), 6, &["`ra`", "2001:db8:2::/64"]);
    one_mistake(&alice_with("ra = { prefix = [\"::/0\"] }"), 6, &["`prefix`", "::/0"]);
    one_mistake(&alice_with("ra = { prefix = [1] }"), 6, &["`prefix`", "found an integer"]);
    let many = |n: usize| (0..n).map(|i| format!("\"2001:db8:1:{i:x}::/64\",")).collect::<String>();
    one_mistake(&alice_with(&format!("ra = {{ prefix = [{}] }}", many(33))), 6, &["`prefix`", "33", "32"]);
    let config = good(&alice_with(&format!("ra = {{ prefix = [{}] }}", many(32))));
    assert_eq!(config.tunnels[0].ra.prefix.len(), 32);
}

#[test]
fn ranges_count_up() {
    let remotes = |encap: &str, remote: &str, count: u32| -> Vec<Outer> {
        let text = format!(
            "[router]\naddress = [\"2001:db8:f::1/64\"]\n[[tunnel_range]]\nname = \"t\"\ncount = {count}\n\
             encap = \"{encap}\"\nprefix = \"2001:db8::/64\"\nremote = \"{remote}\"\nmtu = 1400\nra = {{ on = false }}\n"
        );
        let config = good(&text);
        assert!(config.tunnels.iter().all(|tunnel| tunnel.mtu == 1400 && !tunnel.ra.on));
        config.tunnels.iter().map(|tunnel| tunnel.outer).collect()
    };
    let local = UdpLocal { addr: None, port: 3653 };
    let sit = remotes("proto41", "10.0.0.255", 2);
    assert_eq!(sit[1], Outer::Proto41 { local: None, remote: Ipv4Addr::new(10, 0, 1, 0) });
    let any = remotes("udp", "10.0.0.255:*", 2);
    let addr = Ipv4Addr::new(10, 0, 1, 0);
    assert_eq!(any[1], Outer::Udp { local, remote: UdpRemote::AnyPort { addr, port: None } });
    let learn = remotes("udp", "learn", 3);
    assert!(learn.iter().all(|&outer| outer == Outer::Udp { local, remote: UdpRemote::Learned(None) }));
    let ports = remotes("udp", "10.0.0.1:65534", 5);
    let ends = ["10.0.0.1:65534", "10.0.0.1:65535", "10.0.0.2:65534", "10.0.0.2:65535", "10.0.0.3:65534"];
    let expected: Vec<Outer> =
        ends.iter().map(|end| Outer::Udp { local, remote: UdpRemote::Fixed(at(end)) }).collect();
    assert_eq!(ports, expected);
}

#[test]
fn ranges_end_where_the_addresses_end() {
    let with = |count: u32, prefix: &str, remote: &str| {
        range_with(&format!("count = {count}\nprefix = \"{prefix}\"\nremote = \"{remote}\""))
    };
    let fine = "10.0.0.2:4000";
    one_mistake(&with(0, "2001:db8::/64", fine), 4, &["`count`", "1 to 4194304"]);
    one_mistake(&with(4_194_305, "2001:db8::/64", fine), 4, &["`count`", "4194305"]);
    one_mistake(&with(2, "::/0", fine), 5, &["`prefix`", "::/0"]);
    one_mistake(&with(2, "fdff:ffff:ffff:ffff::/7", fine), 5, &["`prefix`", "fc00::/7"]);
    one_mistake(&with(99, "fd00::/8", fine), 5, &["`prefix`", "fe00::/8", "t1", "link-local"]);
    one_mistake(&with(9, "2001:db8::/64", "223.255.255.255:65535"), 6, &["`remote`", "224.0.0.0", "'t1'"]);
    one_mistake(&with(9, "2001:db8::/64", "255.255.255.254:65535"), 6, &["`remote`", "'t1'"]);
    let own = "[router]\nouter = \"10.0.0.3\"\n".to_owned() + &with(9, "2001:db8::/64", "10.0.0.2:65535");
    one_mistake(&own, 8, &["`remote`", "10.0.0.3", "'t1'", "`outer`"]);
    let text = with(9, "2001:db8::/64", fine) + "ra = { prefix = [\"2001:db8::/64\"] }\n";
    one_mistake(&text, 7, &["`ra`", "different prefixes"]);
    let long = with(100, "2001:db8::/64", fine).replace("\"t\"", &format!("\"{}\"", "x".repeat(31)));
    one_mistake(&long, 2, &["`name`", "99", "32"]);
    let one_too_many = tunnel("a", "udp", "10.9.0.0:1", "") + &with(4_194_304, "2001:db8::/64", fine);
    one_mistake(&one_too_many, 9, &["`count`", "4194305 tunnels", "4194304"]);
}

#[test]
fn a_hundred_thousand_are_all_different_and_right() {
    let text = range_with("count = 100_000\nprefix = \"2001:db8::/64\"\nremote = \"10.128.0.0:4000\"");
    let config = good(&text);
    assert_eq!(config.tunnels.len(), 100_000);
    for (n, tunnel) in config.tunnels.iter().enumerate() {
        assert_eq!(*tunnel.name, format!("t{n}"));
        let bits = prefix("2001:db8::/64").bits() + ((n as u128) << 64);
        assert_eq!(tunnel.prefixes, [Ipv6Prefix::new(bits.into(), 64).unwrap()]);
        let (addr, port) = (0x0a80_0000 + n / 61_536, 4000 + n % 61_536);
        let end = SocketAddrV4::new(Ipv4Addr::from(addr as u32), port as u16);
        let local = UdpLocal { addr: None, port: 3653 };
        assert_eq!(tunnel.outer, Outer::Udp { local, remote: UdpRemote::Fixed(end) });
    }
    assert_eq!(config.kernel_routes()[0], prefix("2001:db8::/48"));
    assert_eq!(config.listen_endpoints(), [at("0.0.0.0:3653")]);
}

/// A bound that only a quadratic check exceeds.
#[test]
fn a_million_are_checked_in_seconds() {
    let started = std::time::Instant::now();
    let text = range_with("count = 1_100_000\nprefix = \"2001:db8::/64\"\nremote = \"10.128.0.0:4000\"");
    let config = good(&text);
    assert_eq!((config.tunnels.len(), config.router.capacity), (1_100_000, 1_100_000));
    let half = text.replace("1_100_000", "300_000");
    let clashing = half.clone() + &half.replace("\"t\"", "\"s\"").replace("2001:db8", "2001:db9");
    one_mistake(&clashing, 12, &["`remote`", "'t0'", "'s0'", "299999 more"]);
    let took = started.elapsed();
    println!("1.7 million tunnels in {took:?}");
    assert!(took.as_secs() < 60, "{took:?}");
}

#[test]
fn sockets_are_opened_where_tunnels_end() {
    let text = |head: &str, locals: &[&str]| {
        let tunnels = locals.iter().enumerate().map(|(n, local)| {
            tunnel(&format!("a{n}"), "udp", &format!("10.0.0.2:{}", n + 1), "")
                + &format!("local = \"{local}\"\n")
        });
        head.to_owned() + &tunnels.collect::<String>()
    };
    let listen = |head, locals: &[&str]| good(&text(head, locals)).listen_endpoints();
    assert_eq!(listen("", &[]), [at("0.0.0.0:3653")]);
    let outer = "[router]\nouter = \"10.71.0.1\"\n";
    assert_eq!(listen(outer, &[]), [at("10.71.0.1:3653")]);
    assert_eq!(
        listen(outer, &["10.71.0.1:3653", "10.71.0.9:3653", "10.71.0.1:443"]),
        [at("10.71.0.1:443"), at("10.71.0.1:3653"), at("10.71.0.9:3653")]
    );
    assert_eq!(
        listen(outer, &[":3653", "10.71.0.9:3653", "10.71.0.9:3653", "10.71.0.1:443"]),
        [at("0.0.0.0:3653"), at("10.71.0.1:443")]
    );
    assert_eq!(listen("[udp]\nports = []\n", &[]), Vec::<SocketAddrV4>::new());
}

#[test]
fn kernel_routes_are_merged_or_listed() {
    let tunnels = tunnel("a", "udp", "10.0.0.2:1", "\"2001:db8:1::/48\", \"::/0\"")
        + &tunnel("b", "udp", "10.0.0.2:2", "\"2001:db8::/48\", \"2001:db8:0:7::/64\"");
    assert_eq!(good(&tunnels).kernel_routes(), [prefix("2001:db8::/47")]);
    let listed = tunnels + "[router]\nroutes = [\"2001:db8:f::/48\", \"2001:db8::/40\"]\n";
    assert_eq!(good(&listed).kernel_routes(), [prefix("2001:db8:f::/48"), prefix("2001:db8::/40")]);
}
