//! Nested prefixes: the longest match decides who receives, and who may send.
//!
//! ```text
//!   C 10.71.0.2  wide,   proto41: fd00:2:10::/44 ══╗
//!   C 10.71.0.66 narrow, UDP:     fd00:2:11::/48 ══ S ──IPv6── U
//! ```

use netns_tests::{C4, C4_OTHER, CLIENT_PORT, Client, Ends, PATIENCE, Rig, U6, echo_requests, pings, tunnel};

const WIDE: &str = "fd00:2:12::1";
const NARROW: &str = "fd00:2:11::1";

/// RFC: D4, R1 (RFC 3704 section 2)
#[test]
fn the_longest_match_decides() {
    let Some(rig) = Rig::new_or_skip("nested prefixes: the longest match decides") else { return };
    let at = format!("{C4_OTHER}:{CLIENT_PORT}");
    let tunnels = tunnel("wide", "proto41", C4, "fd00:2:10::/44", "")
        + &tunnel("narrow", "udp", &at, "fd00:2:11::/48", "");
    let server = rig.server(&tunnels);
    let wide = Client::proto41(&rig.c, C4, WIDE);
    let narrow = Client::udp(&rig.c, &at, NARROW);

    assert!(wide.ping(U6, PATIENCE).is_some() && narrow.ping(U6, PATIENCE).is_some());
    let (at_wide, at_narrow) = (wide.serve(), narrow.serve());
    assert_eq!(pings(&rig.u, WIDE, 3, ""), 3);
    assert_eq!((at_wide.answered(), at_narrow.answered()), (3, 0));
    assert_eq!(pings(&rig.u, NARROW, 3, ""), 3);
    assert_eq!((at_wide.answered(), at_narrow.answered()), (3, 3));
    drop((at_wide, at_narrow));

    let seen = echo_requests(&rig.u);
    let spoof = |src| Ends::new(src, U6).echo_request(0xbad, 1, 64);
    server.expect_drops("source_not_in_prefix", 2, || {
        wide.send(&spoof("fd00:2:11::5"));
        narrow.send(&spoof("fd00:2:12::5"));
    });
    assert!(wide.ping(U6, PATIENCE).is_some());
    let seen = seen.finish();
    assert!(!seen.is_empty() && seen.iter().all(|echo| echo.id != 0xbad), "{seen:?}");
}
