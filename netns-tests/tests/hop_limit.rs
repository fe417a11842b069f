//! One hop a tunnel (RFC 4213 section 3.3): the kernel's forwarding counts it, the forwarder does not again.
//!
//! ```text
//!   C alice ══ S ──IPv6── U
//! ```

#![allow(clippy::unwrap_used, reason = "a test has nobody to return an error to")]

use netns_tests::{ALICE, Ends, PATIENCE, ROUTER6, Rig, U6, echo_requests, icmp};

/// RFC: E2 (RFC 4213 section 3.3)
#[test]
fn over_protocol_41() {
    story("proto41");
}

/// RFC: E2 (RFC 4213 section 3.3)
#[test]
fn over_udp() {
    story("udp");
}

fn story(encap: &str) {
    let Some(rig) = Rig::new_or_skip(&format!("the hop limit over {encap}")) else { return };
    let _server = rig.server(&Rig::alice(encap, ""));
    let alice = rig.alice_peer(encap);

    let seen = echo_requests(&rig.u);
    alice.send(&Ends::new(ALICE, U6).hops(9).echo_request(9, 1, 64));
    alice.send(&Ends::new(ALICE, U6).hops(2).echo_request(2, 1, 64));
    // Two flows: which reply comes first is nobody's promise.
    let reply = || alice.wait(PATIENCE, |got| got.echo().map(|(id, _)| id));
    let replies = [reply(), reply()];
    assert!(replies.contains(&Some(9)) && replies.contains(&Some(2)), "{replies:?}");
    let hops: Vec<_> = seen.finish().iter().map(|echo| (echo.id, echo.hops)).collect();
    assert_eq!(hops, [(9, 8), (2, 1)], "one hop from tunnel to world");

    alice.send(&Ends::new(ALICE, U6).hops(1).echo_request(1, 1, 64));
    let told = alice.wait(PATIENCE, |got| (got.icmp_type() == Some(icmp::TIME_EXCEEDED)).then_some(got.src));
    assert!(told.is_some(), "the last hop ends at the router, whose kernel says so");
    alice.send(&Ends::new(ALICE, ROUTER6).hops(1).echo_request(3, 1, 64));
    assert_eq!(reply(), Some(3), "but it suffices to reach the router itself");

    let (c, u) = (&alice, &rig.u);
    let arriving = std::thread::scope(|scope| {
        let arriving = scope.spawn(|| c.wait(PATIENCE, |got| got.echo().map(|_| got.hops)));
        netns_tests::pings(u, ALICE, 1, "-t 7");
        arriving.join().unwrap()
    });
    assert_eq!(arriving, Some(6), "one hop from world to tunnel");
    let expired = rig.u.attempt(&format!("ping -6 -n -c1 -W1 -t1 {ALICE}")).text;
    assert!(expired.contains("Time exceeded"), "{expired}");
}
