//! The house tests itself: without these, a story could pass because its instruments are blind.
//!
//! ```text
//!   C 10.71.0.2 ──────── 10.71.0.1 S fd00:1::1 ──────── fd00:1::2 U      no router runs here
//! ```

use std::path::{Path, PathBuf};

use netns_tests::{
    ALICE, C4, Client, Ends, IPV4, Inner, Observer, PATIENCE, Rig, S4, S6, U6, pings, transfer, wait_for,
};
use nix::sys::signal::Signal;

#[test]
fn hosts_reach_their_neighbours_and_nobody_else() {
    let Some(rig) = Rig::new_or_skip("hosts reach their neighbours and nobody else") else { return };
    assert_eq!(pings(&rig.u, S6, 3, ""), 3);
    assert_eq!(pings(&rig.u, ALICE, 2, ""), 0, "nothing routes there without a router");
    assert!(rig.c.attempt(&format!("ping -c1 -W1 {S4}")).ok);
    let done = transfer(&rig.u, &rig.s, S6, 3_000_001);
    assert_eq!(done.bytes, 3_000_001);
    assert!(transfer(&rig.s, &rig.u, U6, 100_000).gbps() > 0.0);
}

#[test]
fn a_client_sends_protocol_41_and_an_observer_sees_it() {
    let Some(rig) = Rig::new_or_skip("a client's protocol 41 is seen on the router's side") else { return };
    let observer = Observer::start(&rig.s, IPV4, |frame| (frame[9] == 41).then(|| frame.to_vec()));
    let client = Client::proto41(&rig.c, C4, ALICE);
    let packet = Ends::new(ALICE, U6).echo_request(1, 2, 100);
    client.send(&packet);
    let seen = observer.finish_when(|seen| !seen.is_empty());
    assert_eq!(seen.len(), 1);
    assert_eq!((&seen[0][12..16], &seen[0][20..]), (&[10, 71, 0, 2][..], &packet[..]));
    assert!(Inner::parse(&seen[0][20..]).unwrap().checksum_ok());
}

#[test]
fn a_burst_is_merged_where_a_story_asks_for_it() {
    let Some(rig) = Rig::new_or_skip("a burst of TCP segments in protocol 41 is merged by GRO") else {
        return;
    };
    for (merging, expected) in [(false, false), (true, true)] {
        if merging {
            rig.merge_at_router();
        }
        let observer = Observer::start(&rig.s, IPV4, |frame| (frame[9] == 41).then_some(frame.len()));
        let client = Client::proto41(&rig.c, C4, ALICE);
        for n in 0..20 {
            client.send(&Ends::new(ALICE, U6).tcp(1000, 2000, 1 + n * 1200, &[7; 1200]));
        }
        let content = |lengths: &[usize]| lengths.iter().map(|len| (len - 80) / 1200).sum::<usize>();
        let lengths = observer.finish_when(|lengths| content(lengths) >= 20);
        assert_eq!(lengths.iter().any(|len| *len > 1500), expected, "{lengths:?}");
        assert_eq!(content(&lengths), 20, "nothing is lost on the way: {lengths:?}");
    }
}

#[test]
fn nothing_is_left_of_a_lab_after_a_panic() {
    let Some(rig) = Rig::new_or_skip("nothing is left of a lab after a panic") else { return };
    let names = [rig.c.name().to_owned(), rig.s.name().to_owned(), rig.u.name().to_owned()];
    let file = rig.lab.write("some", "text");
    let sleeper = rig.c.spawn(&PathBuf::from("sleep"), &["1000"], &rig.lab.path("log"));
    let process = format!("/proc/{}", sleeper.pid());
    wait_for("the sleeper", PATIENCE, || {
        std::fs::read_to_string(format!("{process}/comm")).is_ok_and(|name| name == "sleep\n").then_some(())
    });
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _held = (rig, sleeper);
        panic!("as a failing story does");
    }));
    assert!(outcome.is_err());
    assert!(!Path::new(&process).exists() && !file.exists());
    assert!(names.iter().all(|name| !Path::new("/run/netns").join(name).exists()));
}

#[test]
fn a_job_ends_by_the_signal_it_is_sent() {
    let Some(rig) = Rig::new_or_skip("a job ends by the signal it is sent") else { return };
    let job = rig.c.spawn(&PathBuf::from("sleep"), &["1000"], &rig.lab.path("log"));
    let status = job.end(Signal::SIGTERM, PATIENCE);
    assert!(!status.success());
}
