//! What every fuzz target does with octets, as plain functions: libFuzzer's programs call them, and so does
//! `tests/fuzz.rs` with the corpus and with random octets, on the stable compiler.
//!
//! A body panics when something that must hold does not. It keeps nothing from one call to the next that could change
//! what the next one finds.

mod dhcp6;
mod dhcpv6;
mod dhcpv6_client;
mod dtcp;
mod forward;
mod offload;
mod packets;
mod quote;
mod texts;
mod tsp;
mod tsp_client;

#[cfg(test)]
pub(crate) use offload::round_trip;
#[cfg(test)]
pub(crate) use sixway_dataplane::packet::batch::Merged;

/// What a target does with its input.
pub(crate) type Body = fn(&[u8]);

/// Every target: its name, which is also its folder's in `corpus/`, and what it does.
pub(crate) const ALL: &[(&str, Body)] = &[
    ("admin", texts::admin),
    ("coalesce", offload::coalesce),
    ("config", texts::config),
    ("dhcp6ctl", dhcp6::dhcp6ctl),
    ("dhcp6sconf", dhcp6::dhcp6sconf),
    ("dhcpv6", dhcpv6::dhcpv6),
    ("dhcpv6_client", dhcpv6_client::dhcpv6_client),
    ("dtcp", dtcp::dtcp),
    ("forward", forward::forward),
    ("icmp", packets::icmp),
    ("nd", packets::nd),
    ("outer", packets::outer),
    ("popauth", texts::popauth),
    ("prefix", texts::prefix),
    ("probe", packets::probe),
    ("quote", quote::quote),
    ("routetable", texts::routetable),
    ("segment", offload::segment),
    ("tsp", tsp::tsp),
    ("tsp_client", tsp_client::tsp_client),
    ("view", packets::view),
];

/// Does what the target `name` does.
pub(crate) fn run(name: &str, octets: &[u8]) {
    let found = ALL.iter().find(|(known, _)| *known == name);
    let (_, body) = found.unwrap_or_else(|| panic!("there is no fuzz target '{name}'"));
    body(octets);
}
