//! Who may import whom: reads the `use` lines (and paths in code) of every source file and fails with file, line and rule.
//!
//! The crate boundary keeps the data plane from the control plane; these rules keep the rooms inside each apart. The table
//! is the one in ARCHITECTURE.md.

#![expect(clippy::unwrap_used, reason = "a test has nobody to return an error to")]

use std::fs;
use std::path::{Path, PathBuf};

/// Files whose path (below the workspace root) starts with the first and ends with the second must not say any of the
/// words.
const RULES: &[(&str, &str, &[&str])] = &[
    (
        "src/",
        "/codec.rs",
        &["tokio", "std::net::Udp", "std::net::Tcp", "Instant::now", "SystemTime::now", "sixway_dataplane"],
    ),
    (
        "src/",
        "/session.rs",
        &[
            "tokio",
            "std::net::Udp",
            "std::net::Tcp",
            "Instant::now",
            "SystemTime::now",
            "rand::rng()",
            "sixway_dataplane::table",
        ],
    ),
    (
        "src/broker/",
        ".rs",
        &[
            "tokio",
            "std::net::Udp",
            "std::net::Tcp",
            "Instant::now",
            "SystemTime::now",
            "std::fs",
            "sixway_dataplane::table",
            "sixway_dataplane::start",
            "crate::",
        ],
    ),
    (
        "src/config/",
        ".rs",
        &["tokio", "Instant::now", "crate::router", "crate::registry", "sixway_dataplane::start"],
    ),
    (
        "src/registry.rs",
        "",
        &["crate::nd", "crate::endpoint", "crate::dtcp", "crate::tsp", "crate::dhcpv6", "tokio"],
    ),
    ("src/store/", ".rs", &["tokio", "crate::office", "crate::registry", "crate::config", "crate::router"]),
    (
        "src/office/",
        ".rs",
        &[
            "crate::nd",
            "crate::endpoint",
            "crate::dtcp",
            "crate::tsp",
            "crate::dhcpv6",
            "crate::network",
            "crate::router",
            "rusqlite",
            "sixway_dataplane::table",
        ],
    ),
    ("src/admin/", ".rs", &["crate::nd", "crate::endpoint", "sixway_dataplane::table"]),
    ("src/nd/", ".rs", &["tokio", "crate::endpoint", "sixway_dataplane::table"]),
    (
        "src/dtcp/",
        ".rs",
        &[
            "crate::nd",
            "crate::endpoint",
            "crate::registry",
            "crate::tsp",
            "crate::dhcpv6",
            "sixway_dataplane::table",
        ],
    ),
    ("src/auth/", ".rs", PURE_CONTROL),
    ("src/auth/", ".rs", &["crate::dtcp", "crate::tsp", "crate::store", "crate::office", "rand::rng()"]),
    (
        "src/dhcp6ctl/",
        ".rs",
        &[
            "crate::nd",
            "crate::endpoint",
            "crate::dtcp",
            "crate::tsp",
            "crate::dhcpv6",
            "crate::registry",
            "crate::office",
            "sixway_dataplane",
        ],
    ),
    (
        "src/dhcpv6/",
        ".rs",
        &["tokio", "crate::endpoint", "crate::dtcp", "crate::tsp", "sixway_dataplane::table"],
    ),
    ("src/dhcpv6/audience.rs", "", PURE_CONTROL),
    ("src/dhcpv6/client.rs", "", PURE_CONTROL),
    ("src/dhcpv6/client/", ".rs", PURE_CONTROL),
    ("src/dhcpv6/holding.rs", "", PURE_CONTROL),
    ("src/dhcpv6/lookup.rs", "", PURE_CONTROL),
    ("src/dhcpv6/query.rs", "", PURE_CONTROL),
    ("src/dhcpv6/relayed.rs", "", PURE_CONTROL),
    ("src/dhcpv6/requestor.rs", "", PURE_CONTROL),
    ("src/dhcpv6/telling.rs", "", PURE_CONTROL),
    ("src/dhcpv6/terms.rs", "", PURE_CONTROL),
    ("src/dhcpv6/timing.rs", "", PURE_CONTROL),
    ("src/dhcpv6/trust.rs", "", PURE_CONTROL),
    ("src/delegation/plan.rs", "", PURE_CONTROL),
    ("src/delegation/radvd.rs", "", PURE_CONTROL),
    (
        "src/delegation/",
        ".rs",
        &["crate::dtcp", "crate::tsp", "crate::office", "crate::router", "crate::config", "crate::cli"],
    ),
    ("src/dhcp6s/backlog.rs", "", PURE_CONTROL),
    ("src/dhcp6s/shelf", "", PURE_CONTROL),
    ("src/dhcp6s/plan.rs", "", PURE_CONTROL),
    ("src/dhcp6s/", ".rs", &["crate::registry", "crate::office", "crate::router", "crate::config"]),
    ("src/dtcp/client.rs", "", PURE_CONTROL),
    ("src/dtcp/interfaces.rs", "", PURE_CONTROL),
    (
        "src/tsp/",
        ".rs",
        &[
            "crate::nd",
            "crate::endpoint",
            "crate::registry",
            "crate::dtcp",
            "crate::dhcpv6",
            "sixway_dataplane::table",
        ],
    ),
    ("src/tsp/client.rs", "", PURE_CONTROL),
    ("src/tsp/granted.rs", "", PURE_CONTROL),
    ("src/tsp/search.rs", "", PURE_CONTROL),
    ("src/tsp/keepalive.rs", "", PURE_CONTROL),
    ("src/tsp/setup.rs", "", PURE_CONTROL),
    ("src/tsp/flows.rs", "", PURE_CONTROL),
    ("src/tsp/allowance.rs", "", PURE_CONTROL),
    ("src/tsp/life.rs", "", PURE_CONTROL),
    ("src/tsp/framing.rs", "", PURE_CONTROL),
    ("src/tsp/header.rs", "", PURE_CONTROL),
    ("src/tsp/xml.rs", "", PURE_CONTROL),
    ("src/tsp/terms.rs", "", PURE_CONTROL),
    ("src/tsp/want.rs", "", PURE_CONTROL),
    ("src/compat/", ".rs", PURE_CONTROL),
    ("src/link/", ".rs", &["crate::router", "crate::registry", "crate::config"]),
    ("dataplane/src/", ".rs", &["tokio", "tracing", "println!", "eprintln!", "std::fs"]),
    ("dataplane/src/table/", ".rs", PURE),
    ("dataplane/src/packet/", ".rs", PURE),
    ("dataplane/src/encap/", ".rs", PURE),
    ("dataplane/src/offload/", ".rs", PURE),
    ("dataplane/src/forward.rs", "", PURE),
];

/// What pure rooms of the control plane must not know.
const PURE_CONTROL: &[&str] =
    &["tokio", "std::net::Udp", "std::net::Tcp", "Instant::now", "SystemTime::now", "std::fs"];

/// What the forwarder's pure rooms must not know.
const PURE: &[&str] = &[
    "crate::io",
    "crate::worker",
    "crate::start",
    "mio::",
    "socket2",
    "tun_rs",
    "libc::",
    "Instant",
    "Mutex",
    "RwLock",
    "UdpSocket",
];

/// Where `unsafe` may be allowed.
const UNSAFE_ROOMS: &[&str] = &["dataplane/src/io/sys.rs", "dataplane/src/packet/simd.rs"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A room's tests in several files, as `tests.rs` in one.
fn is_of_tests(folder: &Path) -> bool {
    folder.ends_with("tests") && folder.strip_prefix(root()).is_ok_and(|room| room.starts_with("src"))
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && is_of_tests(&path) {
            continue;
        }
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") {
            found.push(path);
        }
    }
}

/// Every source file with its path below the root and its lines of code: comments and the tests at its foot are free.
fn files() -> Vec<(String, Vec<(usize, String)>)> {
    let mut paths = Vec::new();
    sources(&root().join("src"), &mut paths);
    sources(&root().join("dataplane/src"), &mut paths);
    let read = |path: PathBuf| {
        let name = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).unwrap();
        let is_test = |l: &str| l.starts_with("#[cfg(test)]") || l.starts_with("#[cfg(all(test");
        let code = text.lines().enumerate().take_while(|(_, l)| !is_test(l));
        let code = code
            .filter(|(_, l)| !l.trim_start().starts_with("//"))
            .map(|(n, l)| (n + 1, l.to_owned()))
            .collect();
        (name, code)
    };
    paths.into_iter().map(read).collect()
}

fn breaches(name: &str, lines: &[(usize, String)], words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for (n, line) in lines {
        for word in words.iter().filter(|w| line.contains(**w)) {
            found.push(format!("{name}:{n}: says `{word}`, which this room must not know (ARCHITECTURE.md, who may import whom)"));
        }
    }
    found
}

#[test]
fn layers_hold() {
    let files = files();
    assert!(files.len() > 40, "the sources were found");
    let mut found = Vec::new();
    for (start, end, words) in RULES {
        let meant = files.iter().filter(|(name, _)| name.starts_with(start) && name.ends_with(end));
        let mut any = false;
        for (name, lines) in meant {
            any = true;
            found.extend(breaches(name, lines, words));
        }
        assert!(any, "the rule for {start}*{end} matches no file: it has gone stale");
    }
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn unsafe_lives_in_its_rooms() {
    let allows = |line: &str| {
        line.contains("unsafe_code") || line.contains("unsafe {") || line.contains("unsafe impl")
    };
    let outside = files().into_iter().filter(|(name, _)| !UNSAFE_ROOMS.contains(&name.as_str()));
    let found: Vec<_> = outside
        .flat_map(|(name, lines)| {
            lines.into_iter().filter(|(_, l)| allows(l)).map(move |(n, l)| format!("{name}:{n}: {l}"))
        })
        .collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn every_file_says_what_it_is_for() {
    let mut paths = Vec::new();
    for folder in ["src", "dataplane/src", "dataplane/tests", "netns-tests", "tests", "benches"] {
        sources(&root().join(folder), &mut paths);
    }
    let silent: Vec<_> = paths
        .iter()
        .filter(|p| !p.components().any(|c| c.as_os_str() == "target"))
        .filter(|p| !fs::read_to_string(p).unwrap().starts_with("//!"))
        .collect();
    assert!(silent.is_empty(), "no //! header: {silent:?}");
}

#[test]
fn a_breach_is_found() {
    let line = vec![(7, "use tokio::net::UdpSocket;".to_owned())];
    assert_eq!(breaches("src/x/codec.rs", &line, &["tokio"]).len(), 1);
}
