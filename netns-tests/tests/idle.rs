//! Every thread sleeps once traffic stops: no busy loop survives a quiet minute.
//!
//! ```text
//!   C ══ S ──IPv6── U      traffic, then silence
//! ```

#![allow(clippy::unwrap_used, reason = "a test has nobody to return an error to")]

use std::fs;
use std::thread;
use std::time::Duration;

use netns_tests::{ALICE, Rig, Router, U6, transfer, wait_for};

#[test]
fn over_protocol_41() {
    story("proto41");
}

#[test]
fn over_udp() {
    story("udp");
}

fn story(encap: &str) {
    let Some(rig) = Rig::new_or_skip(&format!("every thread sleeps once traffic over {encap} stops")) else {
        return;
    };
    let (server, client) = (rig.server(&Rig::alice(encap, "")), rig.client(encap, 1280));
    transfer(&rig.c, &rig.u, U6, 150 << 20);
    transfer(&rig.u, &rig.c, ALICE, 150 << 20);
    for router in [&server, &client] {
        asleep(router);
    }
}

/// What one thread has used so far.
#[derive(Debug, PartialEq, Eq)]
struct Use {
    thread: String,
    sleeping: bool,
    ticks: u64,
    switches: u64,
}

fn asleep(router: &Router) {
    let last = wait_for("a second in which every thread sleeps", Duration::from_secs(60), || {
        let before = uses(router.pid());
        thread::sleep(Duration::from_secs(1));
        let after = uses(router.pid());
        let total = |uses: &[Use], what: fn(&Use) -> u64| uses.iter().map(what).sum::<u64>();
        let ticks = total(&after, |u| u.ticks).abs_diff(total(&before, |u| u.ticks));
        let switches = total(&after, |u| u.switches).abs_diff(total(&before, |u| u.switches));
        println!("    in one second: {ticks} ticks, {switches} switches, {} threads", after.len());
        let quiet = ticks <= 1 && switches <= 20 && after.iter().all(|u| u.sleeping);
        quiet.then_some(after)
    });
    assert!(last.iter().any(|u| u.ticks > 0 || u.switches > 10), "they had worked before: {last:?}");
}

fn uses(pid: u32) -> Vec<Use> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    tasks.filter_map(|task| usage(&task.path().to_string_lossy())).collect()
}

/// State and CPU time by proc(5), `stat`: the fields behind the name in parentheses.
fn usage(task: &str) -> Option<Use> {
    let stat = fs::read_to_string(format!("{task}/stat")).ok()?;
    let (name, fields) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    let status = fs::read_to_string(format!("{task}/status")).ok()?;
    let switches = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
    Some(Use {
        thread: name.to_owned(),
        sleeping: fields[0] == "S",
        ticks: fields[11].parse::<u64>().ok()? + fields[12].parse::<u64>().ok()?,
        switches: switches.trim().parse().ok()?,
    })
}
