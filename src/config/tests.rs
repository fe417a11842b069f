//! The configuration as its users meet it: texts in, values, lines and messages out.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};

use sixway_dataplane::knobs::{Knob, Knobs};
use sixway_dataplane::manners::{Dscp, Manners};
use sixway_dataplane::update::{Ipv6Prefix, Outer, UdpLocal, UdpRemote};
use sixway_dataplane::update::{Meter, Rate};

use super::*;

const OUTER: Ipv4Addr = Ipv4Addr::new(10, 71, 0, 1);

fn good(text: &str) -> Config {
    Config::parse("f.toml", text).unwrap_or_else(|errors| panic!("{errors}"))
}

fn bad(text: &str) -> Vec<ConfigError> {
    Config::parse("f.toml", text).expect_err("a mistake was overlooked").0
}

/// Exactly one mistake, on that line, with all of the words in what is printed.
#[track_caller]
fn one_mistake(text: &str, line: usize, words: &[&str]) {
    let errors = bad(text);
    assert_eq!(errors.len(), 1, "{}", ConfigErrors(errors.clone()));
    assert_mistake(&errors[0], line, words);
}

#[track_caller]
fn assert_mistake(error: &ConfigError, line: usize, words: &[&str]) {
    let printed = error.to_string();
    assert!(printed.starts_with(&format!("f.toml:{line}: ")), "not on line {line}: {printed}");
    assert!(!printed.contains('\n') && !error.why.is_empty() && !error.next.is_empty(), "{printed}");
    for word in words {
        assert!(printed.contains(word), "'{word}' is not in: {printed}");
    }
}

fn prefix(text: &str) -> Ipv6Prefix {
    text.parse().unwrap()
}

fn at(text: &str) -> SocketAddrV4 {
    text.parse().unwrap()
}

/// A tunnel on four lines: name, encap, remote, prefixes on lines 2 to 5 of it.
fn tunnel(name: &str, encap: &str, remote: &str, prefixes: &str) -> String {
    format!(
        "[[tunnel]]\nname = \"{name}\"\nencap = \"{encap}\"\nremote = \"{remote}\"\nprefixes = [{prefixes}]\n"
    )
}

fn alice_with(line: &str) -> String {
    tunnel("alice", "udp", "10.71.0.2:5555", "\"2001:db8:1::/48\"") + line
}

fn range_with(lines: &str) -> String {
    format!("[[tunnel_range]]\nname = \"t\"\nencap = \"udp\"\n{lines}\n")
}

const EVERYTHING: &str = r#"
[router]
tun        = "six0"
address    = ["2001:db8:100::1/64"]
outer      = "10.71.0.1"
routes     = "aggregate"
forwarding = "set"
hairpin    = false
workers    = 3
pin        = true
linger_us  = 0
[admin]
socket = "/run/sixway/other.sock"
[udp]
ports = [3653, 443]
[proto41]
enabled = true
receive = "raw"
[offload]
udp_gro = false
tun_tcp = true
[[tunnel]]
name = "alice"
encap = "proto41"
local = "10.71.0.9"
remote = "10.71.0.2"
prefixes = ["2001:db8:100:1::/64", "2001:db8:8000::/48"]
mtu = 1480
default_route = false
ra = { on = true, managed = true, other = false, prefix = ["2001:db8:100:1::/64"] }
[[tunnel_range]]
count = 3
name = "t"
encap = "udp"
prefix = "2001:db8:200::/64"
remote = "10.128.0.0:65534"
"#;

#[test]
fn every_key_arrives() {
    let config = good(EVERYTHING);
    assert_eq!(
        config.router,
        Router {
            tun: "six0".into(),
            address: vec![RouterAddress { addr: "2001:db8:100::1".parse().unwrap(), prefix_len: 64 }],
            outer: Some(OUTER),
            routes: Routes::Aggregate,
            forwarding: Forwarding::Set,
            hairpin: false,
            workers: 3,
            pin: true,
            linger: std::time::Duration::from_micros(0),
            ttl: 64,
            capacity: DEFAULT_CAPACITY,
        }
    );
    assert_eq!(config.admin.socket, PathBuf::from("/run/sixway/other.sock"));
    assert_eq!(config.udp, Udp { ports: vec![3653, 443] });
    assert_eq!(config.offload, Knobs::ON.with(Knob::UdpGro, false));
    assert_eq!(config.proto41, Proto41 { enabled: Some(true), receive: Receive::Raw });
    let alice = TunnelConfig {
        name: "alice".into(),
        outer: Outer::Proto41 {
            local: Some(Ipv4Addr::new(10, 71, 0, 9)),
            remote: Ipv4Addr::new(10, 71, 0, 2),
        },
        prefixes: vec![prefix("2001:db8:100:1::/64"), prefix("2001:db8:8000::/48")],
        mtu: 1480,
        default_route: false,
        ra: Ra { on: true, managed: true, other: false, prefix: vec![prefix("2001:db8:100:1::/64")] },
        care: None,
    };
    assert_eq!(config.tunnels[0], alice);
    let t2 = TunnelConfig {
        name: "t2".into(),
        outer: Outer::Udp {
            local: UdpLocal { addr: Some(OUTER), port: 3653 },
            remote: UdpRemote::Fixed(at("10.128.0.1:65534")),
        },
        prefixes: vec![prefix("2001:db8:200:2::/64")],
        mtu: 1280,
        default_route: false,
        ra: Ra { on: true, managed: false, other: false, prefix: vec![] },
        care: None,
    };
    assert_eq!(config.tunnels[3], t2);
    assert_eq!(config.tunnels.len(), 4);
}

#[test]
fn an_empty_file_is_all_defaults() {
    let config = good("");
    assert_eq!(config.router.tun, "six0");
    assert_eq!(config.router.address, vec![]);
    assert_eq!(config.router.outer, None);
    assert_eq!(config.router.routes, Routes::Aggregate);
    assert_eq!(config.router.forwarding, Forwarding::Check);
    assert!(config.router.hairpin);
    assert_eq!(config.offload, Knobs::ON);
    assert_eq!((config.router.workers, config.router.capacity), (0, 1_048_576));
    assert_eq!(config.admin.socket, PathBuf::from("/run/sixway/six0.sock"));
    assert_eq!(config.udp, Udp { ports: vec![3653] });
    assert_eq!(config.proto41, Proto41 { enabled: None, receive: Receive::Auto });
    assert_eq!(config.tunnels, vec![]);
    assert!(!config.needs_forwarding());
}

#[test]
fn the_socket_follows_the_tun_name() {
    let config = good("[router]\ntun = \"six7\"\ncapacity = 7\n");
    assert_eq!(config.admin.socket, PathBuf::from("/run/sixway/six7.sock"));
    assert_eq!(config.router.capacity, 7);
}

#[test]
fn every_offload_has_a_knob_of_its_own() {
    let keys: Vec<_> = schema::OFFLOAD.keys.iter().map(|key| key.name).collect();
    assert_eq!(keys, Knob::ALL.iter().map(|knob| knob.name()).collect::<Vec<_>>());
    for knob in Knob::ALL {
        let off = format!("[offload]\n{} = false\n", knob.name());
        assert_eq!(good(&off).offload, Knobs::ON.with(*knob, false));
        let text = format!("[offload]\n{} = \"auto\"\n", knob.name());
        one_mistake(&text, 2, &[knob.name(), "true"]);
    }
    one_mistake("[offload]\nudp_gos = false\n", 2, &["`udp_gos`", "[offload]", "did you mean `udp_gso`?"]);
}

#[test]
fn all_mistakes_are_found_in_the_order_of_lines() {
    let text =
        "[[tunnel]]\nname = 7\nencap = \"upd\"\nremote = \"x\"\n[router]\naddres = []\nworkers = 300\n";
    let errors = bad(text);
    let lines: Vec<usize> = errors.iter().map(|error| error.place.position.unwrap().line).collect();
    assert_eq!(lines, [2, 3, 6, 7]);
    assert_eq!(ConfigErrors(errors).to_string().lines().count(), 4);
}

#[test]
fn one_mistake_does_not_hide_another() {
    let second = tunnel("a", "udp", "10.0.0.2:2", "\"2001:db8::/48\"");
    let text = tunnel("a", "udp", "10.0.0.2:1", "\"2001:db8::/48\"")
        + &second
        + "mtu = 1\ndefault_route = true\nra = { prefix = [\"fd00::/64\"] }\n";
    let errors = bad(&text);
    let lines: Vec<usize> = errors.iter().map(|error| error.place.position.unwrap().line).collect();
    assert_eq!(lines, [7, 10, 11, 12, 13], "{}", ConfigErrors(errors));
    // But what hangs on a value that could not be read is not called a mistake.
    let guess = tunnel("a", "udp", "10.0.0.2:1", "\"::/O\"") + "default_route = true\n";
    one_mistake(&guess, 5, &["'O'"]);
    let sit = |name, local: &str| tunnel(name, "proto41", "10.0.0.2", "") + &format!("local = \"{local}\"\n");
    one_mistake(&(sit("a", "10.0.0.1") + &sit("b", "10.0.0.l")), 12, &["`local`", "10.0.0.l"]);
}

#[test]
fn unknown_keys_name_the_nearest_known_one() {
    one_mistake("\n[router]\naddres = []\n", 3, &["addres", "[router]", "did you mean `address`?"]);
    one_mistake("[rooter]\n", 1, &["rooter", "did you mean `router`?"]);
    one_mistake("[router]\nports = [1]\n", 2, &["`ports`", "move it to [udp]"]);
    one_mistake(&alice_with("remtoe = \"\""), 6, &["`remtoe`", "[[tunnel]]", "`remote`"]);
    one_mistake(&alice_with("ra = { onn = true }"), 6, &["`onn`", "did you mean `on`?"]);
    let range = range_with("count = 1\nprefix = \"2001:db8::/64\"\nremote = \"10.0.0.2:1\"\nmut = 1");
    one_mistake(&range, 7, &["`mut`", "[[tunnel_range]]", "`mtu`"]);
    one_mistake("[admin]\nsocke = 1\n[udp]\n", 2, &["`socke`", "`socket`"]);
    one_mistake("[proto41]\nrecieve = \"raw\"\n", 2, &["`recieve`", "`receive`"]);
}

#[test]
fn wrong_types_say_expected_and_found() {
    let cases: [(&str, usize, &[&str]); 14] = [
        (
            "[router]\naddress = 3\n",
            2,
            &["`address`", "expected a list of strings, found an integer", "write"],
        ),
        ("[router]\naddress = [\n1]\n", 3, &["`address`", "a list of strings, found an integer in it"]),
        ("[router]\ntun = true\n", 2, &["`tun`", "expected a string, found true or false"]),
        ("[router]\nhairpin = \"no\"\n", 2, &["`hairpin`", "expected true or false, found a string"]),
        ("[router]\nworkers = 1.5\n", 2, &["`workers`", "an integer, found a number with a fraction"]),
        ("[router]\nroutes = {}\n", 2, &["`routes`", "a list of strings, found a table"]),
        ("[router]\nouter = []\n", 2, &["`outer`", "found a list"]),
        ("[udp]\nports = 3653\n", 2, &["`ports`", "expected a list of integers, found an integer"]),
        ("[udp]\nports = [\"a\"]\n", 2, &["`ports`", "a list of integers, found a string in it"]),
        ("[offload]\nudp_gso = 2020-01-01\n", 2, &["`udp_gso`", "found a date or time"]),
        ("router = 1\n", 1, &["`router`", "expected a table", "[router]"]),
        ("[tunnel]\nname = \"x\"\n", 1, &["`tunnel`", "a list of tables, found a table", "[[tunnel]]"]),
        ("tunnel_range = [1]\n", 1, &["`tunnel_range`", "found an integer in it"]),
        ("[proto41]\nenabled = 1\n", 2, &["`enabled`", "expected true or false"]),
    ];
    for (text, line, words) in cases {
        one_mistake(text, line, words);
    }
    one_mistake(&alice_with("ra = true"), 6, &["`ra`", "expected a table", "ra = { on = true }"]);
    one_mistake(&alice_with("default_route = 1"), 6, &["`default_route`"]);
    one_mistake(&alice_with("mtu = \"1280\""), 6, &["`mtu`", "expected an integer, found a string"]);
}

#[test]
fn broken_toml_has_a_line() {
    one_mistake("[router]\ntun = \"a\"\ntun = \"b\"\n", 3, &["duplicate key", "not TOML"]);
    one_mistake("[udp]\nports = = 1\n", 2, &["not TOML"]);
    one_mistake("[udp]\n\n[udp]\n", 3, &["duplicate key"]);
    let errors = bad("[udp]\nports = [1\n[router]\nx =\n");
    assert!(errors.iter().all(|error| error.why.contains("not TOML")), "{errors:?}");
}

#[test]
fn a_file_that_cannot_be_read_says_what_to_do() {
    let path = Path::new("/nonexistent/sixway.toml");
    let errors = Config::load(path).expect_err("there is no such file");
    let printed = errors.to_string();
    assert!(printed.starts_with("/nonexistent/sixway.toml: cannot read"), "{printed}");
    for word in ["No such file", DEFAULT_PATH, "README.md", "name another file"] {
        assert!(printed.contains(word), "{printed}");
    }
    assert_eq!((errors.0.len(), errors.0[0].place.position), (1, None));
}

#[test]
fn a_file_is_loaded() {
    let path = std::env::temp_dir().join(format!("sixway-config-{}.toml", std::process::id()));
    std::fs::write(&path, EVERYTHING).unwrap();
    let loaded = Config::load(&path);
    std::fs::write(&path, "[router]\nworkers = -1\n").unwrap();
    let refused = Config::load(&path);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(loaded.unwrap(), good(EVERYTHING));
    let printed = refused.expect_err("-1 workers").to_string();
    assert!(printed.starts_with(&format!("{}:2: `workers`", path.display())), "{printed}");
}

#[test]
fn columns_count_characters() {
    let errors = bad("[router]\naddress = [\"ä\", 1]\n");
    let positions: Vec<_> = errors.iter().map(|error| error.place.position.unwrap()).collect();
    assert_eq!(positions, [Position { line: 2, column: 12 }, Position { line: 2, column: 17 }]);
}

#[test]
fn control_characters_do_not_break_the_line() {
    one_mistake("[router]\nforwarding = \"a\\nb\\u001b\"\n", 2, &["`forwarding`", "a\\nb\\u{1b}"]);
}

#[test]
fn router_bounds() {
    let cases: [(&str, &[&str]); 28] = [
        ("workers = 257", &["`workers`", "257", "0 to 256"]),
        ("workers = -1", &["`workers`", "-1"]),
        ("linger_us = 1001", &["`linger_us`", "0 to 1000"]),
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
fn names_are_unique_and_both_lines_are_named() {
    let twins = tunnel("a", "udp", "10.0.0.2:1", "") + &tunnel("a", "udp", "10.0.0.2:2", "");
    one_mistake(&twins, 7, &["`name` on line 2", "tunnel name 'a' is used twice"]);
    let range = range_with("count = 5\nprefix = \"2001:db8::/64\"\nremote = \"10.0.0.3:1\"");
    let text = tunnel("t3", "udp", "10.0.0.2:1", "") + &range;
    one_mistake(&text, 7, &["'t3'", "`name` on line 2"]);
}

#[test]
fn equal_prefixes_name_both_tunnels_and_nested_ones_are_fine() {
    let first = tunnel("a", "udp", "10.0.0.2:1", "\"2001:db8::/48\"");
    let second = |prefix: &str| {
        let other = format!("\"2001:db8:9::/48\",\n\"{prefix}\"");
        first.clone() + &tunnel("b", "udp", "10.0.0.2:2", &other)
    };
    one_mistake(&second("2001:db8::/48"), 11, &["2001:db8::/48", "'a'", "'b'", "line 5"]);
    assert_eq!(good(&second("2001:db8:0:1::/64")).tunnels.len(), 2);
    let range = |name: &str, remote: &str| {
        format!(
            "[[tunnel_range]]\nname = \"{name}\"\nencap = \"udp\"\ncount = 1000\n\
             prefix = \"2001:db8::/64\"\nremote = \"{remote}\"\n"
        )
    };
    let text = range("s", "10.0.0.2:1") + &range("t", "10.0.0.3:1");
    one_mistake(&text, 11, &["'s0'", "'t0'", "line 5", "and 999 more"]);
}

#[test]
fn no_tunnel_has_the_routers_address() {
    let text = "[router]\naddress = [\"2001:db8::1/64\"]\n".to_owned();
    let with = |prefix| text.clone() + &tunnel("a", "udp", "10.0.0.2:1", prefix);
    one_mistake(&with("\"2001:db8::1/128\""), 7, &["2001:db8::1/128", "'a'", "router's own"]);
    good(&with("\"2001:db8::2/128\", \"2001:db8::/64\""));
}

#[test]
fn an_outer_pair_names_one_proto41_tunnel() {
    let pair = |name: &str, local: &str, prefix: &str| {
        let tail = if local.is_empty() { String::new() } else { format!("local = \"{local}\"\n") };
        tunnel(name, "proto41", "10.0.0.2", &format!("\"{prefix}\"")) + &tail
    };
    let text = pair("a", "", "2001:db8::/64") + &pair("b", "", "2001:db8:1::/64");
    one_mistake(&text, 9, &["'a'", "'b'", "line 4", "protocol 41"]);
    // No local address stands for all of them, whichever comes first.
    let text = pair("a", "10.0.0.1", "2001:db8::/64") + &pair("b", "", "2001:db8:1::/64");
    one_mistake(&text, 10, &["'a'", "'b'", "line 4"]);
    let text = pair("a", "10.0.0.1", "2001:db8::/64") + &pair("b", "10.0.0.1", "2001:db8:1::/64");
    one_mistake(&text, 10, &["'a'", "'b'"]);
    good(&(pair("a", "10.0.0.1", "2001:db8::/64") + &pair("b", "10.0.0.3", "2001:db8:1::/64")));
    // The way in is one thing, the protocol another.
    good(&(pair("a", "", "2001:db8::/64") + &tunnel("b", "udp", "10.0.0.2:1", "")));
}

#[test]
fn each_of_many_clashes_with_any_local_is_named() {
    let sit = |name: &str, local: &str| tunnel(name, "proto41", "10.0.0.2", "") + local;
    let text = sit("a", "local = \"10.0.0.1\"\n") + &sit("b", "local = \"10.0.0.3\"\n") + &sit("c", "");
    let errors = bad(&text);
    assert_eq!(errors.len(), 2);
    assert_mistake(&errors[0], 16, &["'a'", "'c'", "line 4"]);
    assert_mistake(&errors[1], 16, &["'b'", "'c'", "line 10"]);
}

#[test]
fn a_udp_endpoint_pair_names_one_tunnel() {
    let router = "[router]\naddress = [\"2001:db8::1/64\"]\n";
    let two = |first: (&str, &str), second: (&str, &str)| {
        let end = |name: &str, (local, remote): (&str, &str)| {
            tunnel(name, "udp", remote, "") + &format!("local = \"{local}\"\n")
        };
        router.to_owned() + &end("a", first) + &end("b", second)
    };
    let clash = |first, second| one_mistake(&two(first, second), 12, &["`remote`", "'a'", "'b'", "line 6"]);
    clash((":7", "10.0.0.2:1"), (":7", "10.0.0.2:1"));
    clash(("10.0.0.1:7", "10.0.0.2:1"), (":7", "10.0.0.2:1"));
    clash((":7", "10.0.0.2:1"), ("10.0.0.1:7", "10.0.0.2:1"));
    good(&two((":7", "10.0.0.2:1"), (":8", "10.0.0.2:1")));
    good(&two((":7", "10.0.0.2:1"), (":7", "10.0.0.2:2")));
    good(&two(("10.0.0.1:7", "10.0.0.2:1"), ("10.0.0.3:7", "10.0.0.2:1")));
    good(&two((":7", "learn"), (":7", "learn")));
    good(&two((":7", "10.0.0.2:*"), (":7", "10.0.0.2:*")));
    good(&two((":7", "10.0.0.2:*"), (":7", "10.0.0.2:1")));
}

#[test]
fn the_default_route_needs_everything_and_is_one() {
    one_mistake(&alice_with("default_route = true"), 6, &["`default_route`", "::/0"]);
    let uplink = |name: &str, port: u16| {
        tunnel(name, "udp", &format!("10.0.0.2:{port}"), "\"::/0\"") + "default_route = true\n"
    };
    let errors = bad(&(uplink("a", 1) + &uplink("b", 2)));
    assert_eq!(errors.len(), 2);
    assert_mistake(&errors[0], 11, &["::/0", "'a'", "'b'"]);
    assert_mistake(&errors[1], 12, &["`default_route`", "'a'", "'b'", "line 6"]);
    let client = good(&uplink("a", 1));
    assert!(client.tunnels[0].default_route && !client.needs_forwarding());
    assert!(good(&(uplink("a", 1) + &alice_with(""))).needs_forwarding());
}

#[test]
fn proto41_cannot_be_off_and_needed() {
    let text = "[proto41]\nenabled = false\n".to_owned() + &tunnel("a", "proto41", "10.0.0.2", "");
    one_mistake(&text, 5, &["`encap`", "`enabled = false`"]);
    assert_eq!(good("[proto41]\nenabled = false\n").proto41.enabled, Some(false));
}

#[test]
fn capacity_holds_what_is_configured() {
    let range = range_with("count = 5\nprefix = \"2001:db8::/64\"\nremote = \"10.0.0.2:1\"");
    one_mistake(&(range.clone() + "[router]\ncapacity = 4\n"), 8, &["`capacity`", "5 tunnels"]);
    assert_eq!(good(&(range + "[router]\ncapacity = 5\n")).router.capacity, 5);
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

const DOCUMENT: &str = include_str!("../../docs/config.md");

#[test]
fn the_document_s_examples_are_valid() {
    let blocks: Vec<&str> =
        DOCUMENT.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(blocks.len() >= 8, "{} blocks", blocks.len());
    for block in blocks {
        good(block);
    }
}

#[test]
fn the_document_explains_every_key() {
    for schema in &schema::ALL[1..] {
        let heading = format!("# `{}`: ", schema.title.trim_matches('`'));
        let section = DOCUMENT.split_once(&heading).unwrap_or_else(|| panic!("no heading {heading}")).1;
        let section = section.split("\n#").next().unwrap();
        let rows: Vec<&str> = section.lines().filter(|line| line.starts_with("| `")).collect();
        for key in schema.keys {
            let row = format!("| `{}` | ", key.name);
            assert!(rows.iter().any(|line| line.starts_with(&row)), "{heading} lacks {}", key.name);
        }
        assert_eq!(rows.len(), schema.keys.len(), "{heading} has a row too many");
    }
    let tables: Vec<&str> = schema::ROOT.keys.iter().map(|key| key.example).collect();
    assert!(tables.iter().all(|table| DOCUMENT.contains(&format!("## `{table}`: "))), "{tables:?}");
}

#[test]
fn every_key_s_example_is_accepted() {
    for schema in
        [&schema::ROUTER, &schema::ADMIN, &schema::UDP, &schema::PROTO41, &schema::OFFLOAD, &schema::DTCP]
    {
        for key in schema.keys {
            good(&format!("{}\n{}\n", schema.title, key.example));
        }
    }
    let lines = |schema: &schema::Schema| -> String {
        let kept = schema.keys.iter().filter(|key| key.name != "default_route");
        kept.map(|key| format!("{}\n", key.example)).collect()
    };
    assert_eq!(good(&format!("[[tunnel]]\n{}", lines(&schema::TUNNEL))).tunnels.len(), 1);
    assert_eq!(good(&format!("[[tunnel_range]]\n{}", lines(&schema::TUNNEL_RANGE))).tunnels.len(), 1000);
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
