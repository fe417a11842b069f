//! The old program's verdicts over 143 files, and what ours makes of them.

use super::*;

/// Two interfaces, two files and a clock that stands at 2026-11-21 12:00.
pub(super) struct Room;

impl Surroundings for Room {
    fn read(&self, file: &str) -> io::Result<Vec<u8>> {
        match file.rsplit('/').next() {
            Some("inc.conf") => Ok(b"option domain-name-servers 2001:db8::53;\n".to_vec()),
            Some("loop.conf") => Ok(b"include \"/etc/loop.conf\";\n".to_vec()),
            Some("wide.conf") => Ok(b"include \"inc.conf\";\n".repeat(MAX_INCLUDES)),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn has_interface(&self, name: &str) -> bool {
        ["vs0", "lo"].contains(&name)
    }

    fn now(&self) -> u64 {
        1_795_262_400
    }

    fn today(&self) -> (i16, i8, i8) {
        (2026, 11, 21)
    }

    fn unix_time(&self, (year, month, day): (i16, i8, i8), (hour, minute): (i8, i8)) -> Option<u64> {
        // Months of 31 days do to tell before from after.
        let real = (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60;
        let days = (i64::from(year) - 2026) * 372 + (i64::from(month) - 11) * 31 + i64::from(day) - 21;
        let seconds = days * 86400 + i64::from(hour) * 3600 + i64::from(minute) * 60 - 43_200;
        real.then(|| self.now().checked_add_signed(seconds)).flatten()
    }
}

fn loaded(text: &str) -> Loaded {
    load("t.conf", text.as_bytes(), &Room).unwrap_or_else(|wrong| panic!("{wrong:?}\n{text}"))
}

fn refused(text: &str) -> String {
    let wrong = load("t.conf", text.as_bytes(), &Room).expect_err(text);
    wrong.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

fn notes(text: &str) -> String {
    loaded(text).notes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[test]
fn what_the_old_program_loads_loads_and_what_it_refuses_is_refused() {
    let all: serde_json::Value =
        serde_json::from_str(include_str!("../../../tests/dhcp6sconf/verdicts.json")).unwrap();
    let cases = all["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 143);
    let mut wrong = Vec::new();
    for case in cases {
        let text = case["config"].as_str().unwrap().replace("@DIR@", "/etc");
        let ours = load("t.conf", text.as_bytes(), &Room);
        let remarks = match &ours {
            Ok(loaded) => loaded.notes.clone(),
            Err(wrong) => wrong.clone(),
        };
        // The type's two octets count beside the 128 (RFC 8415 section 11.1); some logs have DUIDs without colons.
        let is_more =
            ["duid 129 octets", "duid bare hex no colons"].map(|name| case["name"] == name).contains(&true);
        if ours.is_ok() != (is_more || case["accept"].as_bool().unwrap()) {
            wrong.push(format!("{}: {remarks:?}", case["name"]));
        }
        let said = remarks.iter().all(|one| one.place.line > 0 && one.what.len() > 10);
        assert!(said, "{}: {remarks:?}", case["name"]);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_files_of_the_captures_load() {
    for text in [
        include_str!("../../../tests/dhcp6sconf/full-server.conf"),
        include_str!("../../../tests/dhcp6sconf/auth-server.conf"),
        include_str!("../../../tests/dhcp6sconf/info-server.conf"),
        include_str!("../../../tests/dhcp6sconf/nopool-server.conf"),
        include_str!("../../../tests/dhcp6sconf/other-clients-server.conf"),
        include_str!("../../../tests/dhcp6sconf/pool-server.conf"),
        include_str!("../../../tests/dhcp6sconf/probe-server.conf"),
    ] {
        assert_eq!(loaded(text).notes, []);
    }
}

#[test]
fn a_whole_file_means_what_it_says() {
    let conf = loaded(include_str!("../../../tests/dhcp6sconf/full-server.conf")).conf;
    let options = conf.options;
    let codes: Vec<u16> = options.addresses.keys().copied().collect();
    assert_eq!(codes, [22, 23, 27, 28, 31, 34]);
    assert_eq!(options.addresses[&23].len(), 2);
    assert_eq!(options.names[&24], ["example.com", "sub.example.net"]);
    assert_eq!(options.names.keys().copied().collect::<Vec<_>>(), [21, 24, 29, 30, 33]);
    assert_eq!(options.refresh_time, Some(1800));
    assert_eq!(conf.interfaces["vs0"].preference, Some(100));
    let [host] = &conf.hosts[..] else { panic!("{:?}", conf.hosts) };
    assert_eq!(host.duid.as_ref().unwrap().to_string(), "00:01:00:01:2b:00:00:02:02:00:00:00:53:02");
    let lifetimes = Lifetimes { preferred: 20, valid: 40 };
    assert_eq!(host.prefixes, [("2001:db8:1111::/48".parse().unwrap(), lifetimes)]);
    assert_eq!(host.addresses, [("2001:db8:53:1::180".parse().unwrap(), lifetimes)]);
}

#[test]
fn pools_and_keys_are_resolved_wherever_they_stand() {
    let conf = loaded(
        "interface vs0 { allow rapid-commit; address-pool p 10 20; delegated-prefix-pool 2001:db8:8000::/40 56 10 20; };
         host a { duid 00:01; delayedkey k; address-pool p infinity; };
         pool p { range 2001:db8::1 to 2001:db8::9; };
         keyinfo k { realm \"r\"; keyid 7; secret \"AAEC\"; expire \"12-31 23:59\"; };",
    )
    .conf;
    let interface = &conf.interfaces["vs0"];
    let pool = interface.pool.as_ref().unwrap();
    assert_eq!((pool.first, pool.last), ("2001:db8::1".parse().unwrap(), "2001:db8::9".parse().unwrap()));
    assert_eq!(interface.prefix_pools[0].space.to_string(), "2001:db8:8000::/40");
    assert_eq!(interface.prefix_pools[0].len, 56);
    assert!(interface.rapid_commit);
    let host = &conf.hosts[0];
    let key = host.key.as_ref().unwrap();
    assert_eq!((key.realm.as_str(), key.id, &key.secret[..]), ("r", 7, &[0, 1, 2][..]));
    assert!(key.expires > Some(Room.now()) && !format!("{key:?}").contains("[0, 1, 2]"));
    assert_eq!(host.pool.as_ref().unwrap().lifetimes.valid, Lifetimes::INFINITY);
}

#[test]
fn mistakes_say_where_and_what_is_expected() {
    let said = refused("option domain-name-servers 2001:db8::1;\noption domain-name example.com;\n");
    assert!(said.starts_with("t.conf:2: a name in quotes is expected, and 'example.com' found"), "{said}");
    let said = refused("interface vs0 {\n preference 1;\n}\n");
    assert!(said.starts_with("t.conf:3: ';' behind '}' is expected"), "{said}");
    // One for each statement that has any, and of those behind it too.
    let said = refused(
        "option domain-name example.com;\nhost a {\n duid 00:01\n prefix 2001:db8::/48 9; };\ninterface vs0 {\n fly; };\npool p {\n",
    );
    let places: Vec<&str> = said.lines().map(|line| &line[..9]).collect();
    assert_eq!(places, ["t.conf:1:", "t.conf:3:", "t.conf:6:", "t.conf:8:"], "{said}");
    let said = refused(&"interface { };\n".repeat(MAX_WRONG + 50));
    assert_eq!(said.lines().count(), MAX_WRONG, "{said}");
    let said = refused("host a { duid 00:01;\n prefix 2001:db8::/48; };");
    assert!(said.starts_with("t.conf:2: a lifetime: seconds or 'infinity' is expected"), "{said}");
    // Mistakes of sense are all found, and in the order of the text.
    let said =
        refused("interface eth9 { preference 300; };\nhost a { delayedkey no;\n address ff02::1 1; };");
    let lines: Vec<&str> = said.lines().map(|line| &line[..9]).collect();
    assert_eq!(lines, ["t.conf:1:", "t.conf:1:", "t.conf:2:", "t.conf:3:"], "{said}");
}

#[test]
fn silent_harm_is_said() {
    for (text, what) in [
        ("option domain-name \"a_b.example\";", "left out: '_' stands in it"),
        ("host a { duid 00:01; prefix 2001:db8::/48 4294967296; };", "taken as 'infinity'"),
        ("host a { };", "nobody is this host"),
        ("interface vs0 { send rapid-commit; };", "for clients"),
        ("interface vs0 { preference 1.5; };", "1.5 is 1"),
        ("interface vs0 { preference 1; preference 2; };", "the last one counts"),
        ("profile p { preference 1; script \"/x\"; prefix-interface e { sla-id 1; }; };", "for clients"),
        ("pool p { range ::1 to ::2; range ::3 to ::4; };", "only this one counts"),
        ("option domain-name-servers fe80::1 % ;", "means nothing here"),
        (
            "host a { duid 00:01; prefix 2001:db8::/48 9; }; host b { duid 00:02; prefix 2001:db8:0:1::/64 9; };",
            "in common with 2001:db8::/48 of host 'a'",
        ),
        (
            "host a { duid 00:01; address 2001:db8::1 9; }; host b { duid 00:02; address 2001:db8::1 9; };",
            "the first host has them",
        ),
        ("host a { duid 00:01; prefix ::/0 9; };", "is given everything"),
        (
            "host a { duid 00:01; }; host b { duid 00:01; };",
            "host 'a' has the same DUID and counts; host 'b' says nothing",
        ),
        ("host a { subscriber-id \"x\"; }; host b { subscriber-id \"x\"; };", "has the same line"),
    ] {
        assert!(notes(text).contains(what), "{text}: {}", notes(text));
    }
    let nobody = "host a { prefix 2001:db8::/48 9; }; host b { duid 00:02; prefix 2001:db8::/48 9; };";
    assert!(!notes(nobody).contains("in common"), "host b has it: {}", notes(nobody));
    let conf = loaded("host a { duid 00:01; prefix 2001:db8::/48 4294967296; };").conf;
    assert_eq!(conf.hosts[0].prefixes[0].1.preferred, Lifetimes::INFINITY);
    assert_eq!(
        loaded("option refreshtime 600; option refreshtime 700;").conf.options.refresh_time,
        Some(600)
    );
    assert!(loaded("option domain-name \"a_b\"; option domain-name-servers;").conf.options.names.is_empty());
}

#[test]
fn everything_is_bounded() {
    assert!(notes(&"interface lo { };\n".repeat(MAX_NOTES + 50)).ends_with("49 more notes are left out"));
    assert!(refused("include \"wide.conf\"; include \"wide.conf\";").contains("in all at most"));
    assert!(refused("include \"loop.conf\";").starts_with("/etc/loop.conf:1: files include files 10 deep"));
    assert!(refused("id-assoc pd 1 { ").contains("the end of the file"));
}

#[test]
fn our_prefix_pools_are_checked() {
    let pool = |text: &str| format!("interface vs0 {{ delegated-prefix-pool {text} }};");
    assert!(refused(&pool("2001:db8::/40 39 1;")).contains("/40 to /64, not /39"));
    assert!(refused(&pool("2001:db8::/40 65 1;")).contains("not /65"));
    assert!(refused(&pool("2001:db8::/40 56 2 1;")).contains("preferred"));
    let twice = pool("2001:db8::/40 56 1; delegated-prefix-pool 2001:db8:1::/48 56 1;");
    assert!(refused(&twice).contains("another pool"));
    assert!(refused(&pool("2001:db8::/40 56;")).contains("a lifetime"));
}

mod random {
    use super::*;
    use proptest::prelude::*;

    const WORDS: &[&str] = &[
        "option",
        "interface",
        "vs0",
        "host",
        "a",
        "{",
        "}",
        ";",
        "pool",
        "range",
        "to",
        "2001:db8::1",
        "/",
        "48",
        "infinity",
        "duid",
        "00:01",
        "prefix",
        "address",
        "address-pool",
        "keyinfo",
        "\"AAEC\"",
        "realm",
        "secret",
        "keyid",
        "domain-name",
        "refreshtime",
        "include",
        "\"inc.conf\"",
        "profile",
        "allow",
        "rapid-commit",
        "@",
        "#x\n",
    ];

    proptest! {
        #[test]
        fn any_words_are_read_or_refused(words in prop::collection::vec(prop::sample::select(WORDS), 0..60)) {
            if let Err(wrong) = load("x", words.join(" ").as_bytes(), &Room) {
                prop_assert!(!wrong.is_empty());
            }
        }

        #[test]
        fn any_octets_are_read_or_refused(octets in prop::collection::vec(any::<u8>(), 0..200)) {
            let _either = load("x", &octets, &Room);
        }
    }
}

#[test]
fn keywords_of_our_own_say_what_wide_s_cannot() {
    let text = "interface vs0 { decline-time 60; solicit-max-rt 900; information-max-rt 86400; send-unasked 23 24; };";
    let interface = &loaded(text).conf.interfaces["vs0"];
    assert_eq!((interface.decline_time, &interface.unasked[..]), (Some(60), &[23, 24][..]));
    assert_eq!(interface.max_rts, BTreeMap::from([(82, 900), (83, 86_400)]));
    for wrong in ["solicit-max-rt 59;", "information-max-rt 86401;", "send-unasked 65536;", "send-unasked;"] {
        assert!(refused(&format!("interface vs0 {{ {wrong} }};")).starts_with("t.conf:1: "), "{wrong}");
    }
    assert!(loaded("authentication a { protocol reconfig; };").conf.reconfigure);
}
