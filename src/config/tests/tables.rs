//! Tables that make no tunnels: the router, pools, limits, care, guard.

use super::*;

#[test]
fn router_bounds() {
    let cases: [(&str, &[&str]); 29] = [
        ("workers = 257", &["`workers`", "257", "0 to 256"]),
        ("workers = -1", &["`workers`", "-1"]),
        ("linger_us = 1001", &["`linger_us`", "0 to 1000"]),
        ("linger_most_us = 10001", &["`linger_most_us`", "0 to 10000"]),
        ("workers = 99999999999999999999999999999999999999999999", &["`workers`", "0 to 256"]),
        ("capacity = 0", &["`capacity`", "1 to 4194304"]),
        ("capacity = 4_194_305", &["`capacity`", "4194305"]),
        ("tun = \"\"", &["`tun`", "1 to 15"]),
        ("tun = \"sixteen-octets-x\"", &["`tun`", "1 to 15"]),
        ("tun = \"a/b\"", &["`tun`", "'/'"]),
        ("tun = \"a b\"", &["`tun`", "space"]),
        ("tun = \"six%d\"", &["`tun`", "'%'"]),
        ("tun = \"..\"", &["`tun`"]),
        ("forwarding = \"sett\"", &["`forwarding`", "did you mean 'set'?"]),
        ("outer = \"10.71.0\"", &["`outer`", "no IPv4 address"]),
        ("outer = \"0.0.0.0\"", &["`outer`", "0.0.0.0/8"]),
        ("outer = \"2001:db8::1\"", &["`outer`", "IPv4"]),
        ("routes = \"merge\"", &["`routes`", "aggregate"]),
        ("routes = [\"2001:db8::1/64\"]", &["`routes`", "2001:db8::/64"]),
        ("routes = [\"::/0\"]", &["`routes`", "default_route"]),
        ("routes = [\"2001:db8::/64\", \"2001:db8::/64\"]", &["`routes`", "listed twice"]),
        ("address = [\"2001:db8::1\"]", &["`address`", "2001:db8::1/64", "2001:db8::1/128"]),
        ("address = [\"2001:db8::1/0\"]", &["`address`", "1 to 128"]),
        ("address = [\"2001:db8::1/129\"]", &["`address`", "1 to 128"]),
        ("address = [\"fe80::1/64\"]", &["`address`", "link-local"]),
        ("address = [\"::ffff:1.2.3.4/128\"]", &["`address`", "IPv4-mapped"]),
        ("address = [\"::1/128\"]", &["`address`", "loopback"]),
        ("address = [\"10.0.0.1/8\"]", &["`address`", "no IPv6 address"]),
        ("address = [\"2001:db8::1/64\", \"2001:db8::1/128\"]", &["`address`", "listed twice"]),
    ];
    for (line, words) in cases {
        one_mistake(&format!("[router]\n{line}\n"), 2, words);
    }
    let widest =
        good("[router]\nworkers = 256\ncapacity = 4194304\ntun = \"fifteen-octets-\"\nroutes = []\n");
    assert_eq!((widest.router.workers, widest.router.capacity), (256, 4_194_304));
    assert_eq!(widest.router.routes, Routes::List(vec![]));
}

#[test]
fn admin_udp_and_proto41_bounds() {
    one_mistake("[admin]\nsocket = \"six.sock\"\n", 2, &["`socket`", "absolute"]);
    let long = format!("[admin]\nsocket = \"/{}\"\n", "x".repeat(107));
    one_mistake(&long, 2, &["`socket`", "107"]);
    good(&format!("[admin]\nsocket = \"/{}\"\n", "x".repeat(106)));
    one_mistake("[udp]\nports = [1, 0]\n", 2, &["`ports`", "1 to 65535"]);
    one_mistake("[udp]\nports = [\n  65536,\n]\n", 3, &["`ports`", "65536"]);
    one_mistake("[udp]\nports = [7, 7]\n", 2, &["`ports`", "listed twice"]);
    one_mistake("[proto41]\nreceive = \"packets\"\n", 2, &["`receive`", "'packet'", "'raw'"]);
    assert_eq!(good("[udp]\nports = []\n").udp.ports, Vec::<u16>::new());
    assert_eq!(good("[proto41]\nreceive = \"packet\"\n").proto41.receive, Receive::Packet);
}

fn pool(prefix: &str, rest: &str) -> String {
    format!("[[pool]]\nprefix = \"{prefix}\"\n{rest}\n")
}

#[test]
fn pools_limits_hooks_and_store_arrive() {
    let text = pool("2001:db8:100::/40", "assign = 56")
        + &pool("2001:db8:200:1::/64", "pairs = true")
        + "[store]\npath = \"/tmp/s.db\"\n[limits]\ntunnels_per_account = 3\n"
        + "[hooks]\nup = \"/etc/sixway/up\"\nat_once = 2\n";
    let config = good(&text);
    let kinds: Vec<_> = config.pools.iter().map(ToString::to_string).collect();
    assert_eq!(
        kinds,
        ["2001:db8:100::/40 (65536 networks of /56)", "2001:db8:200:1::/64 (16383 address pairs)"]
    );
    assert_eq!(config.store, Store { path: "/tmp/s.db".into(), wanted: true });
    assert_eq!(config.limits, Limits { tunnels_per_account: 3, ..Limits::default() });
    let up = Some(PathBuf::from("/etc/sixway/up"));
    assert_eq!(config.hooks, Hooks { up, down: None, timeout: 10, at_once: 2 });
    assert_eq!(config.kernel_routes(), [prefix("2001:db8:100::/40"), prefix("2001:db8:200:1::/64")]);
    assert!(config.needs_forwarding());
    let nothing = good("");
    assert_eq!(nothing.store, Store { path: "/var/lib/sixway/six0.db".into(), wanted: false });
}

#[test]
fn pools_that_cannot_be_are_explained() {
    one_mistake(&pool("2001:db8:100::/40", ""), 1, &["`assign` is missing", "assign = 56"]);
    one_mistake(&pool("2001:db8:100::/40", "assign = 40"), 3, &["/40 into /40", "larger than", "41 to 64"]);
    one_mistake(&pool("2001:db8::/32", "assign = 64"), 3, &["2^24", "33 to 56"]);
    one_mistake(&pool("2001:db8:100::/40", "assign = 65"), 3, &["1 to 64"]);
    one_mistake(&pool("2001:db8::/64", "assign = 64"), 3, &["shorter `prefix`"]);
    one_mistake(&pool("2001:db8::/113", "pairs = true"), 2, &["/112"]);
    one_mistake(&pool("2001:db8::/64", "pairs = true\nassign = 64"), 4, &["not both"]);
    one_mistake(&pool("fe80::/64", "pairs = true"), 2, &["never routed"]);
}

#[test]
fn pools_overlap_neither_each_other_nor_lie_behind_a_tunnel() {
    let two = pool("2001:db8:100::/40", "assign = 56") + &pool("2001:db8:120::/48", "assign = 56");
    one_mistake(&two, 5, &["overlap", "line 2"]);
    let behind = alice_with("") + &pool("2001:db8:1:100::/56", "assign = 64");
    one_mistake(&behind, 7, &["behind tunnel 'alice'"]);
    good(&(alice_with("") + &pool("2001:db8::/32", "assign = 48")));
    let uplink = tunnel("up", "udp", "10.71.0.2:5555", "\"::/0\"");
    good(&(uplink + &pool("2001:db8::/32", "assign = 48")));
}

#[test]
fn what_is_the_router_s_or_a_tunnel_s_is_not_given_out() {
    let router = "[router]\naddress = [\"2001:db8:100::1/64\", \"2001:db8:1ff::1/32\"]\n";
    let tunnel = tunnel("alice", "udp", "10.71.0.2:5555", "\"2001:db8:101::/48\"");
    let config = good(&(router.to_owned() + &tunnel + &pool("2001:db8:100::/40", "assign = 48")));
    let fences = ["2001:db8:100::/64", "2001:db8:1ff::1/128", "2001:db8:101::/48"].map(prefix);
    assert_eq!(config.terms().fences, fences, "a network around the pool bars its one address only");
}

#[test]
fn a_tunnel_may_ask_for_care() {
    let written = format!(
        "{TUNNEL}pmtu = \"probe\"\necho = \"2001:db8:100:1::1\"\ndscp = 46\necn = \"compatibility\"\nmss_clamp = true\n\
         packets_per_second = 1000\nkbit_per_second = 8000\nquota_mib = 2\n"
    );
    let config = good(&written);
    let care = config.tunnels[0].care();
    assert_eq!((care.pmtu, care.echo), (Pmtu::Probe, Some("2001:db8:100:1::1".parse().unwrap())));
    let manners = Manners::PLAIN.with_dscp(Dscp::Pipe(46)).with_ecn_hidden(true).with_clamped(true);
    assert_eq!(care.manners, manners);
    let meter = Meter { packets_per_second: 1000, octets_per_second: 1_000_000, quota: 2 << 20 };
    assert_eq!(care.meter, meter);
    assert_eq!(config.tunnels[0].mtu, 1480, "as much as Ethernet carries");
    let uniform = good(&format!("{TUNNEL}dscp = \"uniform\"\n"));
    assert_eq!(uniform.tunnels[0].care().manners.dscp(), Dscp::Uniform);
    assert_eq!(good(TUNNEL).tunnels[0].care, None);
}

#[test]
fn care_that_cannot_be_is_refused() {
    for (line, what) in [
        ("pmtu = \"probe\"", "`echo` is missing"),
        ("pmtu = \"often\"", "pmtu"),
        ("echo = \"ff02::1\"", "echo"),
        ("dscp = 64", "dscp"),
        ("dscp = \"copy\"", "dscp"),
        ("ecn = \"off\"", "ecn"),
        ("packets_per_second = 0", "packets_per_second"),
    ] {
        let said = Config::parse("t", &format!("{TUNNEL}{line}\n")).unwrap_err().to_string();
        assert!(said.contains(what), "{line}: {said}");
    }
}

/// RFC: I5 (RFC 4443 section 2.4(f))
#[test]
fn what_is_guarded_has_defaults_and_can_be_changed() {
    let guard = good("").guard;
    assert_eq!(guard.icmp_errors, Rate { per_second: 1000, burst: 200 });
    assert_eq!(guard.icmp_errors_of_tunnel, Rate { per_second: 100, burst: 50 });
    assert_eq!((guard.tell_source, guard.source_routes, guard.nesting), (false, false, 4));
    let guard =
        good("[guard]\nicmp_errors = 10\nicmp_errors_of_tunnel = 0\ntell_source = true\nnesting = 0\n").guard;
    assert_eq!(guard.icmp_errors, Rate { per_second: 10, burst: 2 });
    assert_eq!(guard.icmp_errors_of_tunnel, Rate { per_second: 0, burst: 0 });
    assert_eq!((guard.tell_source, guard.nesting), (true, 0));
}

const TUNNEL: &str = "[[tunnel]]\nname = \"alice\"\nencap = \"proto41\"\nremote = \"10.71.0.2\"\n\
                      prefixes = [\"2001:db8:100:1::/64\"]\n";

#[test]
fn granted_tunnels_treat_their_packets_as_is_written_for_all_of_them() {
    assert_eq!(good("").leased.care(None), Care::default());
    let text = "[leased]\npmtu = \"probe\"\nmss_clamp = true\ndscp = 46\nquota_mib = 2\n";
    let leased = good(text).leased;
    let client = "2001:db8::2".parse().unwrap();
    let care = leased.care(Some(client));
    assert_eq!((care.pmtu, care.echo, care.meter.quota), (Pmtu::Probe, Some(client), 2 << 20));
    assert_eq!(care.manners, Manners::PLAIN.with_dscp(Dscp::Pipe(46)).with_clamped(true));
    let without = leased.care(None);
    assert_eq!((without.pmtu, without.echo), (Pmtu::Dynamic, None), "nobody is there to answer probes");
    one_mistake("[leased]\npmtu = \"often\"\n", 2, &["pmtu"]);
    one_mistake("[leased]\necho = \"2001:db8::1\"\n", 2, &["echo"]);
}
