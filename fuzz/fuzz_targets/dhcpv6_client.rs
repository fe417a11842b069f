//! libFuzzer's program for the target `dhcpv6_client`; what it does stands in `bodies/`.
#![no_main]

#[path = "../bodies/mod.rs"]
mod bodies;

libfuzzer_sys::fuzz_target!(|octets: &[u8]| bodies::run("dhcpv6_client", octets));
