//! Many tunnels: a range of them forwards, and the status comes in pages.
//!
//! ```text
//!   C 10.71.0.2:4000, :4001, ...  t0, t1, ... t2499  ══UDP══ S ──IPv6── U
//! ```

use std::process::Command;
use std::time::Duration;

use netns_tests::{Client, Rig, U6, program};

const RANGE: &str = "[[tunnel_range]]\ncount = 2500\nname = \"t\"\nencap = \"udp\"\nprefix = \"fd00:2:100::/64\"\n\
                     remote = \"10.71.0.2:4000\"\n";

fn page(socket: &std::path::Path, options: &[&str]) -> serde_json::Value {
    let mut command = Command::new(program());
    command.args(["status", "--json", "--socket"]).arg(socket).args(options);
    let out = command.output().unwrap_or_else(|e| panic!("cannot run the program: {e}"));
    serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("no JSON: {e}: {out:?}"))
}

#[test]
fn a_range_forwards_and_its_status_comes_in_pages() {
    let Some(rig) = Rig::new_or_skip("a range of 2500 tunnels") else { return };
    let server = rig.server(RANGE);
    // The last of the range: prefix and port counted up together.
    let last = Client::udp(&rig.c, "10.71.0.2:6499", "fd00:2:100:9c3::5");
    assert!(last.ping(U6, Duration::from_secs(2)).is_some());
    let whole = page(server.socket(), &[]);
    let names = |v: &serde_json::Value| -> Vec<String> {
        let all = v["tunnels"].as_array().into_iter().flatten();
        all.filter_map(|t| Some(t["name"].as_str()?.to_owned())).collect()
    };
    assert_eq!(
        (&whole["tunnels_total"], &whole["pages"], names(&whole).len()),
        (&2500.into(), &3.into(), 1000)
    );
    let third = page(server.socket(), &["--page", "3"]);
    assert_eq!(names(&third), (2000..2500).map(|n| format!("t{n}")).collect::<Vec<_>>());
    let small = page(server.socket(), &["--limit", "7", "--page", "358"]);
    assert_eq!(names(&small), ["t2499"]);
    let one = page(server.socket(), &["--tunnel", "t2499"]);
    assert_eq!((names(&one), &one["tunnels"][0]["rx_packets"]), (vec!["t2499".to_owned()], &1.into()));
}
