//! Whatever clients say, in whatever order, across restarts and clock steps: no two bindings have an address in common, none
//! outlives its time, the tables have exactly what is bound, and what is on disk is what was told.

use std::net::Ipv6Addr;
use std::time::Duration;

use crate::lab::{Lab, SERVER};
use dhcproto::v6::{DhcpOption, MessageType};
use proptest::prelude::*;
use sixway::broker::{Account, Binding, Mechanisms, Secret, UserName};
use sixway::dhcpv6::codec::{Ia, IaKind, Message, Opt, Packet, Part, Value};
use sixway::dhcpv6::query::{Query, Sought};
use sixway::dhcpv6::requestor::{Found, Question};
use sixway::dhcpv6::server::parse_duid;
use sixway_dataplane::update::Ipv6Prefix;
use zeroize::Zeroizing;

const CONFIG: &str = r#"
[dhcpv6]
preferred = 60
valid     = 100
decline_time = 50
bindings_per_tunnel = 5
rapid_commit = true
lease_query = ["2001:db8:77::/64"]

[[pool]]
prefix = "2001:db8:100::/61"
assign = 64

[[pool]]
prefix = "2001:db8:200::/45"
assign = 47

[[pool]]
prefix    = "2001:db8:5::/112"
addresses = true

[[dhcpv6_host]]
duid      = "00:03:01"
prefixes  = ["2001:db8:100::/64", "2001:db8:300::/56"]
addresses = ["2001:db8:5::7"]
"#;

#[derive(Clone, Debug)]
enum Step {
    Say {
        kind: u8,
        client: u8,
        tunnel: u8,
        ias: Vec<(bool, u32, u8)>,
    },
    Wait(u16),
    /// The calendar is set.
    Set(i32),
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let kind = prop::sample::select(vec![1u8, 3, 3, 3, 4, 5, 6, 8, 9, 11]);
    let ias = prop::collection::vec((any::<bool>(), 0u32..3, 0u8..12), 0..4);
    let say = (kind, 0u8..4, 0u8..3, ias).prop_map(|(kind, client, tunnel, ias)| Step::Say {
        kind,
        client,
        tunnel,
        ias,
    });
    let step = prop_oneof![
        8 => say,
        2 => (0u16..80).prop_map(Step::Wait),
        1 => (-100_000i32..100_000).prop_map(Step::Set),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..60)
}

/// A value that a client might name: mostly what is given out here.
fn hint(kind: IaKind, which: u8, held: &[Binding]) -> Option<Value> {
    let text = match (kind, which) {
        (_, 0..=3) => return None,
        (IaKind::Prefix, 4) => "2001:db8:100::/64",
        (IaKind::Prefix, 5) => "2001:db8:100:3::/64",
        (IaKind::Prefix, 6) => "2001:db8:202::/47",
        (IaKind::Prefix, 7) => "::/47",
        (IaKind::Prefix, 8) => "2001:db8:dead::/48",
        (IaKind::Address, 4) => "2001:db8:5::7/128",
        (IaKind::Address, 5) => "2001:db8:5::9/128",
        (IaKind::Address, 6) => "2001:db8:dead::1/128",
        _ => {
            let one = held.get(usize::from(which) % held.len().max(1))?;
            return Some(value(one.prefix));
        }
    };
    Some(value(text.parse().unwrap()))
}

fn value(prefix: Ipv6Prefix) -> Value {
    Value { addr: prefix.addr(), len: prefix.prefix_len(), preferred: 0, valid: 0, options: Vec::new() }
}

fn message(lab: &Lab, kind: u8, client: u8, ias: &[(bool, u32, u8)]) -> Vec<u8> {
    let held: Vec<Binding> = lab.broker.bindings().cloned().collect();
    let mut options = vec![Opt::Leaf(DhcpOption::ClientId(vec![0, 3, client]))];
    if matches!(kind, 3 | 5 | 8 | 9) {
        options.push(Opt::Leaf(DhcpOption::ServerId(parse_duid(SERVER).unwrap())));
    }
    if client == 2 {
        options.push(Opt::Leaf(DhcpOption::RapidCommit));
    }
    for (is_prefix, iaid, which) in ias {
        let kind = if *is_prefix { IaKind::Prefix } else { IaKind::Address };
        let parts = hint(kind, *which, &held).map(Part::Value).into_iter().collect();
        options.push(Opt::Ia(Ia { kind, iaid: *iaid, t1: 0, t2: 0, parts }));
    }
    Message { kind: MessageType::from(kind), xid: [1, 2, 3], options }.emit()
}

/// What must hold at any moment.
fn check(lab: &Lab) {
    let all: Vec<&Binding> = lab.broker.bindings().collect();
    for (n, binding) in all.iter().enumerate() {
        let left = binding.expires.since(lab.now);
        assert!(left <= Duration::from_secs(100), "{binding:?} lasts longer than it was given for: {left:?}");
        assert!(binding.expires > lab.now, "{binding:?} has outlived its time at {:?}", lab.now);
        for other in &all[n + 1..] {
            let overlap = binding.prefix.covers(other.prefix) || other.prefix.covers(binding.prefix);
            assert!(!overlap, "{binding:?} and {other:?}");
        }
    }
    let routed = all.iter().filter(|b| !b.key.client.is_empty()).map(|b| (b.prefix, b.key.tunnel.clone()));
    assert_eq!(lab.routes, routed.collect(), "the tables have what is bound");
    let mut on_disk = lab.memory.bindings.clone();
    on_disk.sort_by_key(|binding| binding.prefix);
    assert_eq!(on_disk.iter().collect::<Vec<_>>(), all, "the disk has what is bound");
}

/// What an answer gives is in the hands of that very client, in its tunnel, and on disk.
fn check_answer(lab: &Lab, tunnel: &str, client: u8, answer: &[u8]) {
    let Ok(Packet::Message(answer)) = Packet::parse(answer) else { panic!("no message") };
    if answer.kind == MessageType::Advertise {
        return;
    }
    let times: Vec<_> =
        answer.ias().filter(|ia| ia.values().any(|v| v.valid > 0)).map(|ia| (ia.t1, ia.t2)).collect();
    assert!(times.windows(2).all(|pair| pair[0] == pair[1]), "T1 and T2 are the same in all: {times:?}");
    for ia in answer.ias() {
        for value in ia.values().filter(|value| value.valid > 0) {
            let prefix = Ipv6Prefix::new(value.addr, value.len).unwrap();
            let found = lab.memory.bindings.iter().find(|b| b.prefix == prefix);
            let found = found.unwrap_or_else(|| panic!("{prefix} was told and is not on disk"));
            assert_eq!(
                (&*found.key.tunnel, &*found.key.client, found.key.number),
                (tunnel, &[0, 3, client][..], ia.iaid)
            );
            let left = found.expires.since(lab.now);
            assert!(
                left >= Duration::from_secs(value.valid.into()),
                "{prefix} ends before the client thinks so"
            );
        }
    }
}

/// Who may ask is told what is bound, and nothing else: by what it is, and of its client, tunnel by tunnel.
fn check_told(lab: &mut Lab) {
    let all: Vec<Binding> = lab.broker.bindings().cloned().collect();
    for binding in &all {
        let sought = Sought::Address(Ipv6Addr::from(binding.prefix.bits() | 1));
        let sought =
            if binding.prefix.prefix_len() == 128 { Sought::Address(binding.prefix.addr()) } else { sought };
        let question = Question {
            duid: vec![7],
            xid: [3, 2, 1],
            query: Query { sought, link: None, wanted: Vec::new() },
        };
        let answer = lab.look_up("2001:db8:77::1", true, &question.message()).unwrap();
        let found = question.hear(&answer.octets).unwrap().found;
        if binding.key.client.is_empty() {
            assert_eq!(found, Found::Nothing, "what rests is nobody's");
            continue;
        }
        let Found::Client(data) = found else { panic!("{found:?} of {binding:?}") };
        let alike = |other: &&Binding| {
            other.key.client == binding.key.client && other.key.tunnel == binding.key.tunnel
        };
        let bound: Vec<_> =
            all.iter().filter(alike).map(|b| (b.prefix.addr(), b.prefix.prefix_len())).collect();
        let told: Vec<_> = data.values.iter().map(|value| (value.addr, value.len)).collect();
        assert_eq!((&data.client[..], told), (&*binding.key.client, bound));
        let own = data.values.iter().find(|value| value.addr == binding.prefix.addr()).unwrap();
        assert_eq!(u64::from(own.valid), binding.expires.since(lab.now).as_secs());
        assert!(own.preferred <= own.valid && data.heard.unwrap() <= 100);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn nothing_overlaps_and_nothing_outlives_its_time(steps in steps()) {
        let alice = UserName::parse("alice").unwrap();
        let secret = Secret::parse(Zeroizing::new(b"hush".to_vec())).unwrap();
        let prefixes = vec!["2001:db8:400::/48".parse().unwrap(), "2001:db8:100:2::/64".parse().unwrap()];
        let mechanisms = Mechanisms::ANY;
        let account = Account { name: alice.clone(), secret, prefixes, pair: None, mechanisms };
        // What tunnels have themselves; that of c covers a part of what is alice's.
        let fixed: [Vec<Ipv6Prefix>; 3] =
            [vec!["2001:db8:500::/56".parse().unwrap()], Vec::new(), vec!["2001:db8:400:100::/56".parse().unwrap()]];
        let mut lab = Lab::new(CONFIG);
        lab.memory.accounts = vec![account];
        lab.restart();
        for step in steps {
            match step {
                Step::Say { kind, client, tunnel, ias } => {
                    let octets = message(&lab, kind, client, &ias);
                    let user = (tunnel == 1).then_some(&alice);
                    let fixed = &fixed[usize::from(tunnel)];
                    let tunnel = ["a", "b", "c"][usize::from(tunnel)];
                    if let Some(answer) = lab.ask_in(tunnel, user, fixed, &octets) {
                        check_answer(&lab, tunnel, client, &answer.octets);
                    }
                }
                Step::Wait(seconds) => lab.wait(Duration::from_secs(seconds.into())),
                Step::Set(seconds) => lab.step(i64::from(seconds) * 1000),
                Step::Restart => lab.restart(),
            }
            check(&lab);
            check_told(&mut lab);
        }
    }

    #[test]
    fn no_octets_make_it_panic(octets in prop::collection::vec(any::<u8>(), 0..300), kind in 0u8..14) {
        let mut lab = Lab::new(CONFIG);
        lab.ask(&octets);
        let framed: Vec<u8> = [&[kind, 1, 2, 3][..], &octets].concat();
        lab.ask(&framed);
        check(&lab);
    }
}
