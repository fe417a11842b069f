//! The status as one screen for people. Knows the fields, not where they come from.

use std::collections::BTreeMap;

use super::status::{Status, TunnelStatus};
use super::table::{columns, duration, short};

/// The screen, line by line.
pub fn screen(s: &Status) -> Vec<String> {
    let mut lines = vec![
        format!("sixway {}  {}  up {}  pid {}", s.version, s.tun, duration(s.uptime_s), s.pid),
        format!(
            "{} workers, TUN offload {}, protocol 41 {}, UDP {}",
            s.workers,
            s.offload.tun,
            s.offload.proto41,
            if s.listening.is_empty() { "off".to_owned() } else { s.listening.join(" ") }
        ),
        String::new(),
    ];
    lines.extend(tunnels(&s.tunnels));
    if s.pages > 1 {
        lines.push(format!(
            "page {} of {}, {} tunnels in all: --page N shows another",
            s.page, s.pages, s.tunnels_total
        ));
    }
    lines.push(String::new());
    lines.push(format!("all drops  {}", counts(&s.drops)));
    lines
}

fn tunnels(all: &[TunnelStatus]) -> Vec<String> {
    if all.is_empty() {
        return vec!["no tunnels; add a [[tunnel]] to the configuration and run `sixway reload`".to_owned()];
    }
    let heading = [
        "TUNNEL", "ENCAP", "REMOTE", "PREFIXES", "MTU", "RX PKTS", "RX BYTES", "TX PKTS", "TX BYTES", "SEEN",
        "DROPS",
    ];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    rows.extend(all.iter().map(row));
    columns(&rows, &[4, 5, 6, 7, 8, 9])
}

fn row(t: &TunnelStatus) -> Vec<String> {
    let more = t.prefixes.len().saturating_sub(1);
    let first = t.prefixes.first().cloned().unwrap_or_else(|| "-".to_owned());
    vec![
        t.name.clone(),
        t.encap.clone(),
        t.remote.clone(),
        if more > 0 { format!("{first} +{more}") } else { first },
        t.mtu.to_string(),
        short(t.rx_packets),
        short(t.rx_bytes),
        short(t.tx_packets),
        short(t.tx_bytes),
        t.last_seen_s.map_or_else(|| "never".to_owned(), duration),
        counts(&t.drops),
    ]
}

fn counts(all: &BTreeMap<String, u64>) -> String {
    if all.is_empty() {
        return "none".to_owned();
    }
    all.iter().map(|(name, n)| format!("{name} {}", short(*n))).collect::<Vec<_>>().join(", ")
}
