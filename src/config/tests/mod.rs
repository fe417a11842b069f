//! The configuration as its users meet it: texts in, values, lines and messages out.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};

use sixway_dataplane::knobs::{Knob, Knobs};
use sixway_dataplane::manners::{Dscp, Manners};
use sixway_dataplane::update::{Ipv6Prefix, Outer, UdpLocal, UdpRemote};
use sixway_dataplane::update::{Meter, Rate};

use super::*;

mod clashes;
mod tables;
mod tunnels;

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
linger_most_us = 500
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
            linger_most: Some(std::time::Duration::from_micros(500)),
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
    let keys: Vec<_> = schema::OFFLOAD.keys().map(|key| key.name).collect();
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
    let far = bad(&tunnel("a", "gre", "10.0.0.2", "")).remove(0).to_string();
    assert!(far.contains("write one of them") && !far.contains("did you mean"), "{far}");
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
    one_mistake("[router]\ntun = \"a\"\ntun = \"b\"\n", 3, &["duplicate key `tun`", "not TOML"]);
    one_mistake("[udp]\nports = = 1\n", 2, &["not TOML"]);
    one_mistake("[udp]\n\n[udp]\n", 3, &["duplicate key `udp`"]);
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
fn a_file_that_is_no_text_says_from_which_line_on() {
    let path = std::env::temp_dir().join(format!("sixway-binary-{}.toml", std::process::id()));
    std::fs::write(&path, b"[router]\ntun = \"\xff\"\n").unwrap();
    let printed = Config::load(&path).expect_err("it is no text").to_string();
    std::fs::remove_file(&path).unwrap();
    assert!(
        printed.starts_with(&format!("{}:2: ", path.display())) && printed.contains("UTF-8"),
        "{printed}"
    );
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

const DOCUMENT: &str = include_str!("../../../docs/config.md");

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
        for key in schema.keys() {
            let row = format!("| `{}` | ", key.name);
            assert!(rows.iter().any(|line| line.starts_with(&row)), "{heading} lacks {}", key.name);
        }
        assert_eq!(rows.len(), schema.keys().count(), "{heading} has a row too many");
    }
    let tables: Vec<&str> = schema::ROOT.keys().map(|key| key.example).collect();
    assert!(tables.iter().all(|table| DOCUMENT.contains(&format!("## `{table}`: "))), "{tables:?}");
}

#[test]
fn every_key_s_example_is_accepted() {
    for schema in
        [&schema::ROUTER, &schema::ADMIN, &schema::UDP, &schema::PROTO41, &schema::OFFLOAD, &schema::DTCP]
    {
        for key in schema.keys() {
            good(&format!("{}\n{}\n", schema.title, key.example));
        }
    }
    let lines = |schema: &schema::Schema| -> String {
        let kept = schema.keys().filter(|key| key.name != "default_route");
        kept.map(|key| format!("{}\n", key.example)).collect()
    };
    assert_eq!(good(&format!("[[tunnel]]\n{}", lines(&schema::TUNNEL))).tunnels.len(), 1);
    assert_eq!(good(&format!("[[tunnel_range]]\n{}", lines(&schema::TUNNEL_RANGE))).tunnels.len(), 1000);
}
