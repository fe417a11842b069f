//! The demo around its tunnels: namespaces, cables, ping, TCP, report and errors, over plain routes.
//!
//! Needs root; says so loudly where it cannot run.

mod plain_routes;

use std::io::Write;

use nix::unistd::geteuid;
use plain_routes::PlainRoutes;
use sixway::demo::{self, Options, PINGS, Report};

/// On a thread of its own, as the demo stays in the namespaces it enters.
fn demo(broken: bool) -> Option<anyhow::Result<Report>> {
    if !geteuid().is_root() {
        // Not eprintln!, which is captured while the test passes.
        let why = "SKIPPED: a test thread can make namespaces only as root; run the tests with sudo";
        let _told = writeln!(std::io::stderr(), "{why}");
        return None;
    }
    let options = Options { seconds: 1, progress: false };
    let work = move || demo::run(options, &PlainRoutes { broken });
    Some(std::thread::spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

#[test]
fn both_runs_are_measured() {
    let Some(report) = demo(false) else { return };
    let report = report.expect("the demo runs");
    assert_eq!(report.runs.len(), 2);
    for run in report.runs {
        assert!(run.lost <= PINGS / 2 && run.ping_us.is_some_and(|us| us > 0.0), "{run:?}");
        assert!(run.up_gbps > 0.0 && run.down_gbps > 0.0, "{run:?}");
    }
}

#[test]
fn a_tunnel_that_carries_nothing_is_told_with_both_ends_counters() {
    let Some(report) = demo(true) else { return };
    let why = format!("{:#}", report.expect_err("nothing comes across"));
    assert!(why.contains("proto41") && why.contains("no ping"), "{why}");
    assert!(why.contains("client.sock") && why.contains("router.sock"), "{why}");
}
