//! What must hold between tables, and that one mistake hides no other.

use super::*;

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
    let unrouted = uplink("a", 1).replace("default_route = true", "default_route = false");
    assert!(!good(&unrouted).needs_forwarding(), "it leads out all the same");
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

/// Every mistake of the text by a word of its own, in the order of lines, and no other.
#[track_caller]
fn mistakes(text: &str, words: &[&str]) {
    let errors = bad(text);
    let all = ConfigErrors(errors.clone()).to_string();
    assert_eq!(errors.len(), words.len(), "{all}");
    for (error, word) in errors.iter().zip(words) {
        assert!(error.to_string().contains(word), "'{word}' is not in: {error}\n{all}");
    }
}

#[test]
fn mistakes_of_different_kinds_are_told_together() {
    let a = |remote: &str| tunnel("a", "udp", remote, "\"2001:db8:1::/48\"");
    mistakes(&(a("10.0.0.2:1") + &a("10.0.0.x:1")), &["used twice", "10.0.0.x", "which is tunnel 'a's"]);
    mistakes(&(a("127.0.0.1:1") + &a("10.0.0.2:1")), &["127.0.0.0/8", "used twice", "which is tunnel 'a's"]);
    let pools = "[[pool]]\nprefix = \"2001:db8::/32\"\nassign = 77\n[[pool]]\nprefix = \"2001:db8:1::/48\"\nassign = 56\n";
    mistakes(pools, &["1 to 64", "overlap"]);
    mistakes("[tsp]\nrealm = \"a b\"\n", &["no addresses to give out", "neither quotes"]);
    mistakes("[dtcp]\nlisten = \"x\"\nudp = true\n", &["no place to listen at", "router has no address"]);
    let host = "[dhcpv6]\n[[dhcpv6_host]]\nduid = \"x\"\ntunnel = \"nobody\"\n";
    mistakes(host, &["no DUID", "no tunnel of that name"]);
    let far = "[router]\nworkers = 999\n".to_owned() + &a("10.0.0.2:1") + &a("10.0.0.2:1");
    mistakes(&far, &["0 to 256", "used twice", "same outer endpoints", "which is tunnel 'a's"]);
    let range = range_with("count = 2\nprefix = \"2001:db8:1::/48\"\nremote = \"x\"");
    mistakes(&(a("10.0.0.2:1") + &range), &["which is tunnel 'a's", "`remote`"]);
    let nameless = "[[tunnel]]\nencap = \"udp\"\nremote = \"10.0.0.2:1\"\nprefixes = [\"2001:db8:1::/48\"]\n";
    mistakes(
        &(a("10.0.0.2:1") + nameless + nameless),
        &[
            "`name` is missing",
            "same outer",
            "which is tunnel 'a's",
            "`name` is missing",
            "same outer",
            "which is tunnel 'a's",
        ],
    );
}

#[test]
fn no_mistake_follows_from_a_guess() {
    let learns = tunnel("a", "udp", "learn", "");
    one_mistake(&(learns.clone() + "[router]\naddres = [\"2001:db8::1/64\"]\n"), 7, &["`addres`"]);
    one_mistake(&(learns.clone() + "[rooter]\naddress = [\"2001:db8::1/64\"]\n"), 6, &["`rooter`"]);
    one_mistake(&(learns.clone() + "[udp]\naddress = [\"2001:db8::1/64\"]\n"), 7, &["move it to [router]"]);
    one_mistake(&("router = 1\n".to_owned() + &learns), 1, &["`router`", "a table"]);
    // By which port it would come is not known.
    let default = tunnel("a", "udp", "10.0.0.2:1", "");
    one_mistake(&(default.clone() + "[udp]\nports = [0]\n"), 7, &["`ports`"]);
    // With another `outer` the two would be told apart.
    let sit = |name| tunnel(name, "proto41", "10.0.0.2", "");
    let pair = sit("a") + &sit("b") + "local = \"10.0.0.1\"\n[router]\nouter = \"10.0.0\"\n";
    one_mistake(&pair, 13, &["`outer`"]);
    one_mistake("[tsp]\n[[pool]]\nprefix = \"2001:db8::/64\"\npairs = 1\n", 4, &["`pairs`"]);
    one_mistake("[tsp]\n[[pol]]\nprefix = \"2001:db8::/64\"\npairs = true\n", 2, &["`pol`"]);
    one_mistake("[tsp]\n[dtcp]\nprefix = \"2001:db8:ffff\"\n", 3, &["`prefix`"]);
    one_mistake("[dtcp]\nudp = 1\n[proto41]\nenabled = false\n", 2, &["`udp`"]);
    one_mistake("[dhcpv6]\nvalid = 1\n", 2, &["`valid`"]);
    let range = range_with("count = 9\nprefix = \"2001:db8::/64\"\nremote = \"10.0.0.2:1\"");
    one_mistake(&(range + "[router]\ncapacity = 0\n"), 8, &["`capacity`"]);
    let host = "[dhcpv6]\n[[dhcpv6_host]]\nduid = \"00:03:01\"\ntunnel = \"t1\"\n";
    let short = range_with("prefix = \"2001:db8::/64\"\nremote = \"10.0.0.2:1\"");
    one_mistake(&(host.to_owned() + &short), 5, &["`count` is missing"]);
}

#[test]
fn clients_are_expected_in_tunnels_that_there_are() {
    let host =
        |tunnel: &str| format!("[dhcpv6]\n[[dhcpv6_host]]\nduid = \"00:03:01\"\ntunnel = \"{tunnel}\"\n");
    good(&(host("alice") + &alice_with("")));
    good(&host("bob@tsp"));
    let nobody = "[[dhcpv6_host]]\nduid = \"00:03:01\"\nprefixes = [\"2001:db8:1::/48\"]\n";
    one_mistake(nobody, 2, &["without [dhcpv6]", "no DHCPv6 server"]);
    one_mistake(&host("alice"), 4, &["`tunnel` in [[dhcpv6_host]] is 'alice'", "USER@tsp"]);
}

#[test]
fn tunnels_whose_names_cannot_be_read_are_called_by_where_they_stand() {
    let sit = |name: &str, prefix: &str| {
        let prefixes = format!("prefixes = [\"{prefix}\"]\n");
        format!("[[tunnel]]\n{name}encap = \"proto41\"\nremote = \"10.0.0.2\"\n{prefixes}")
    };
    let own = "[router]\naddress = [\"2001:db8:9::/128\"]\n";
    let range = "[[tunnel_range]]\ncount = 2\nencap = \"proto41\"\nremote = \"10.0.0.1\"\nprefix = \"2001:db8:7::/64\"\n";
    let (nameless, wrong) = (sit("", "2001:db8:1::/48"), sit("name = \"b c\"\n", "2001:db8:1::/48"));
    let named = sit("name = \"ok\"\n", "2001:db8:9::/128") + "local = \"10.0.0.9\"\n";
    let all: Vec<String> =
        bad(&(nameless + &wrong + range + &named + own)).iter().map(ToString::to_string).collect();
    let said = all.join("\n");
    for expected in [
        "the tunnel on line 6 has prefix 2001:db8:1::/48, which is the tunnel on line 1's; the tunnel on line 1 has it on line 4",
        "the tunnel on line 1 and the tunnel on line 6 run between the same outer endpoints",
        "the tunnel on line 1 and tunnel 1 of the range on line 10 run between",
        "prefix 2001:db8:9::/128 of tunnel 'ok' is the router's own",
    ] {
        assert!(said.contains(expected), "{expected}\n{said}");
    }
    assert!(!said.contains('?'), "{said}");
}
