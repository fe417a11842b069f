//! The forwarder case by case, on the in-memory twin: packets in, packets out, counters.
//!
//! The real worker, tables and counters run; only the devices are queues. Rows say all that may happen: what they do not
//! mention must not happen. [`the_reasons_not_shown_here_need_devices`] keeps the list of drop reasons complete.
#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "forward_cases/by_rfc.rs"]
mod by_rfc;
#[path = "forward_cases/from_tun.rs"]
mod from_tun;
#[path = "forward_cases/from_wire.rs"]
mod from_wire;
#[path = "forward_cases/guarded.rs"]
mod guarded;
#[path = "forward_cases/lab.rs"]
mod lab;
#[path = "forward_cases/packets.rs"]
mod packets;
#[path = "forward_cases/regressions.rs"]
mod regressions;
#[path = "forward_cases/stories.rs"]
mod stories;
#[path = "forward_cases/trains.rs"]
mod trains;
#[path = "forward_cases/upward.rs"]
mod upward;

use std::collections::BTreeSet;

use sixway_dataplane::verdict::Reason;

#[test]
fn from_wire() {
    lab::run(from_wire::rows());
}

#[test]
fn from_tun() {
    lab::run(from_tun::rows());
}

#[test]
fn guarded() {
    lab::run(guarded::rows());
}

#[test]
fn trains() {
    lab::run(trains::rows());
}

#[test]
fn trains_without_offloads() {
    lab::run_without_offloads(trains::rows());
}

#[test]
fn upward() {
    lab::run(upward::rows());
}

/// Reasons that depend on the clock or on a thousand packets: [`stories`] show them.
const IN_STORIES: &[Reason] =
    &[Reason::PuntLimited, Reason::PuntFull, Reason::RateLimited, Reason::QuotaSpent];

/// Reasons that the in-memory twin cannot produce, and why.
const NEED_DEVICES: &[(Reason, &str)] = &[
    (Reason::OuterHeader, "the twin has no outer headers; tested beside encap::proto41::unwrap"),
    (Reason::OuterFragment, "the twin has no outer headers; tested beside encap::proto41::unwrap"),
    (Reason::NotOurs, "only a packet socket sees what is for others"),
    (Reason::OddLink, "the twin has no link under it"),
    (Reason::SendFailed, "a vector never refuses a packet"),
    (Reason::TunFull, "a vector never refuses a packet"),
    (Reason::BatchFull, "the twin puts one packet into each buffer"),
    (Reason::Unclaimed, "the control plane decides that nobody wants a punt"),
];

#[test]
fn the_reasons_not_shown_here_need_devices() {
    let rows = [from_wire::rows(), from_tun::rows(), guarded::rows(), trains::rows(), upward::rows()];
    let shown: BTreeSet<_> =
        rows.iter().flatten().flat_map(lab::Row::reasons).chain(IN_STORIES.iter().copied()).collect();
    let elsewhere: BTreeSet<_> = NEED_DEVICES.iter().map(|(reason, _)| *reason).collect();
    assert!(shown.is_disjoint(&elsewhere), "no longer true: {:?}", shown.intersection(&elsewhere));
    let all: BTreeSet<_> = Reason::ALL.iter().copied().collect();
    let missing: Vec<_> = all.iter().filter(|r| !shown.contains(r) && !elsewhere.contains(r)).collect();
    assert!(missing.is_empty(), "a new way to fail needs a row: {missing:?}");
}
