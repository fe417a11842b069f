//! The status as one screen for people. Knows the fields, not where they come from.

use std::collections::BTreeMap;

use super::delegated::{ClientStatus, GivenStatus, HeldStatus};
use super::status::{BrokerStatus, Offload, PoolStatus, Status, TunnelStatus};
use super::table::{columns, duration, short};
use crate::dhcp6s::{ABSENT, DAMAGED};

/// The screen, line by line.
pub fn screen(s: &Status) -> Vec<String> {
    let mut lines = vec![
        format!("sixway {}  {}  up {}  pid {}", s.version, s.tun, duration(s.uptime_s), s.pid),
        format!(
            "{} workers, protocol 41 {}, UDP {}",
            s.workers,
            s.offload.proto41,
            if s.listening.is_empty() { "off".to_owned() } else { s.listening.join(" ") }
        ),
        offloads(&s.offload),
    ];
    lines.extend((!s.tun_is_up).then(|| down(&s.tun)));
    lines.push(String::new());
    lines.extend(tunnels(&s.tunnels, s.broker.is_some()));
    if s.pages > 1 {
        lines.push(format!(
            "page {} of {}, {} tunnels in all: --page N shows another",
            s.page, s.pages, s.tunnels_total
        ));
    }
    lines.push(String::new());
    lines.extend(s.broker.iter().flat_map(broker));
    lines.extend(s.tsp.as_ref().filter(|c| is_draining(c)).map(|_| DRAINING.to_owned()));
    lines.extend(s.dhcpv6_links.iter().flatten().map(|(interface, c)| link(interface, c)));
    lines.extend(s.dhcpv6_client.iter().flat_map(client));
    lines.push(format!("all drops  {}", counts(&s.drops)));
    lines
}

fn down(tun: &str) -> String {
    format!(
        "{tun} is DOWN: nothing goes through; `ip link set {tun} up` brings it back, with addresses and routes"
    )
}

/// Those that are on by name; then the others, and whatever there is to say about one.
fn offloads(all: &Offload) -> String {
    let on = all.knobs.iter().filter(|(_, o)| o.state == "on").map(|(name, _)| name.as_str());
    let on: Vec<_> = on.collect();
    let rest = all.knobs.iter().filter(|(_, o)| o.state != "on" || !o.why.is_empty());
    let rest = rest.map(|(name, o)| match o.why.as_str() {
        "" => format!("; {name} {}", o.state),
        why => format!("; {name} {} ({why})", o.state),
    });
    let on = if on.is_empty() { "none".to_owned() } else { on.join(" ") };
    format!("offloads on: {on}{}", rest.collect::<String>())
}

fn tunnels(all: &[TunnelStatus], grants: bool) -> Vec<String> {
    if all.is_empty() && grants {
        return vec!["no tunnels; `sixway user add NAME` adds a user who may have one".to_owned()];
    }
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

fn broker(b: &BrokerStatus) -> Vec<String> {
    let pool = |p: &PoolStatus| match p.assign {
        Some(len) => {
            format!("pool       {}: {} of {} networks of /{len} in use", p.prefix, p.in_use, p.places)
        }
        None if p.addresses => format!("pool       {}: {} addresses in use", p.prefix, p.in_use),
        None => format!("pool       {}: {} of {} address pairs in use", p.prefix, p.in_use, p.places),
    };
    let (accounts, leases, connections) = (b.accounts, b.leases, b.connections);
    let bound = b.bindings;
    let counts =
        format!("granted    tunnels {leases}, bindings {bound}; users {accounts}, connections {connections}");
    std::iter::once(counts).chain(b.pools.iter().map(pool)).collect()
}

/// What an operator must not forget.
const DRAINING: &str = "draining   new clients are sent elsewhere; `sixway drain --stop` ends it";

fn is_draining(tsp: &BTreeMap<String, u64>) -> bool {
    tsp.get("draining").is_some_and(|on| *on > 0)
}

/// One line for a link that is served by DHCPv6.
fn link(interface: &str, c: &BTreeMap<String, u64>) -> String {
    let n = |name: &str| c.get(name).copied().unwrap_or_default();
    if n(ABSENT) > 0 {
        return format!("DHCPv6     {interface}: no such interface yet; it is served when it comes");
    }
    if n(DAMAGED) > 0 {
        return format!(
            "DHCPv6     {interface}: NOT SERVED: the file of leases is damaged; the log says what to do"
        );
    }
    let answered = n("advertise") + n("reply");
    let (leases, full) = (n("leases"), n("pools_full"));
    let lease = if leases == 1 { "lease" } else { "leases" };
    let full = if full > 0 { format!("; pools with nothing left: {full}") } else { String::new() };
    format!("DHCPv6     {interface}: {leases} {lease}, {answered} answers{full}")
}

/// What is asked for inside a tunnel: a line for the client, one for each thing that it has, one for what servers say.
fn client(c: &ClientStatus) -> Vec<String> {
    let at = |what: &str, left: Option<u64>| left.map(|s| format!(", {what} in {}", duration(s)));
    let (renew, rebind) = (at("renewed", c.renew_s), at("asked of all servers", c.rebind_s));
    let server = c.server.as_ref().map(|duid| format!(", server {duid}"));
    // One that is out is nothing to speak of.
    let silent = c.silent_s.filter(|_| c.unanswered > 1);
    let silent = silent.map(|s| format!(", {} tries in {} unanswered", c.unanswered, duration(s)));
    let more: String = [server, renew, rebind, silent].into_iter().flatten().collect();
    let mut lines = vec![format!("DHCPv6     asking in {}: {}{more}", c.tunnel, c.state)];
    let held = |h: &HeldStatus| {
        let left = |seconds: Option<u64>| seconds.map_or_else(|| "for ever".to_owned(), duration);
        let (preferred, valid) = (left(h.preferred_s), left(h.valid_s));
        format!("delegated  {}: preferred {preferred}, valid {valid}", h.prefix)
    };
    lines.extend(c.prefixes.iter().chain(&c.addresses).map(held));
    let absent = |given: &GivenStatus| {
        given.absent.as_ref().map_or_else(String::new, |why| format!(" (not there: {why})"))
    };
    let given = |g: &GivenStatus| format!("given      {}: {}{}", g.interface, g.address, absent(g));
    lines.extend(c.given.iter().map(given));
    lines.extend(c.refused.iter().map(|why| format!("refused    {why}")));
    lines
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::status::OffloadState;

    #[test]
    fn offloads_that_are_not_just_on_say_why() {
        let state = |name: &str, state: &str, why: &str| {
            (name.to_owned(), OffloadState { state: state.to_owned(), trains: 0, why: why.to_owned() })
        };
        let all = |knobs: Vec<_>| Offload {
            proto41: "off".to_owned(),
            udp_spread: "kernel".to_owned(),
            knobs: knobs.into_iter().collect(),
        };
        let some = all(vec![
            state("a", "on", ""),
            state("b", "off", ""),
            state("c", "refused", "too old"),
            state("d", "on", "not tested"),
        ]);
        assert_eq!(offloads(&some), "offloads on: a d; b off; c refused (too old); d on (not tested)");
        assert_eq!(offloads(&all(vec![state("a", "off", "")])), "offloads on: none; a off");
    }

    #[test]
    fn what_is_delegated_is_shown_with_the_time_that_is_left() {
        let held = |prefix: &str, left| HeldStatus {
            prefix: prefix.to_owned(),
            preferred_s: left,
            valid_s: left.map(|left: u64| left * 2),
        };
        let given = |interface: &str, absent: Option<&str>| GivenStatus {
            interface: interface.to_owned(),
            address: "2001:db8:200::1/64".to_owned(),
            absent: absent.map(str::to_owned),
        };
        let mut client = ClientStatus {
            tunnel: "up".to_owned(),
            state: "bound".to_owned(),
            server: Some("00:03".to_owned()),
            renew_s: Some(30),
            rebind_s: Some(61),
            prefixes: vec![held("2001:db8:200::/56", Some(3600)), held("2001:db8:300::/56", None)],
            addresses: vec![held("2001:db8:5::9/128", Some(7))],
            given: vec![given("eth1", None), given("eth2", Some("the interface is down"))],
            dns: Vec::new(),
            domains: Vec::new(),
            refused: None,
            unanswered: 0,
            silent_s: None,
            counts: BTreeMap::new(),
        };
        assert_eq!(
            super::client(&client),
            [
                "DHCPv6     asking in up: bound, server 00:03, renewed in 30s, asked of all servers in 1m 1s",
                "delegated  2001:db8:200::/56: preferred 1h 0m, valid 2h 0m",
                "delegated  2001:db8:300::/56: preferred for ever, valid for ever",
                "delegated  2001:db8:5::9/128: preferred 7s, valid 14s",
                "given      eth1: 2001:db8:200::1/64",
                "given      eth2: 2001:db8:200::1/64 (not there: the interface is down)",
            ]
        );
        (client.server, client.renew_s, client.rebind_s) = (None, None, None);
        (client.prefixes, client.addresses, client.given) = (Vec::new(), Vec::new(), Vec::new());
        (client.state, client.refused) = ("soliciting".to_owned(), Some("NoPrefixAvail".to_owned()));
        assert_eq!(
            super::client(&client),
            ["DHCPv6     asking in up: soliciting", "refused    NoPrefixAvail"]
        );
        (client.refused, client.unanswered, client.silent_s) = (None, 5, Some(23));
        assert_eq!(
            super::client(&client),
            ["DHCPv6     asking in up: soliciting, 5 tries in 23s unanswered"]
        );
    }
}
