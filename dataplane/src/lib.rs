//! The forwarder of sixway: moves IPv6 packets between a TUN device and peers, by protocol 41 or UDP over IPv4.
//!
//! Four nouns make the door to the control plane. [`start::TableWriter`] takes batches of [`update::Update`]s.
//! [`punt::PuntReader`] gives what the forwarder cannot judge. [`start::Injector`] sends packets down.
//! [`counters::CounterReader`] reads what was counted. This crate has never heard of DTCP, TSP, DHCPv6, tokio, files or
//! users.
//!
//! Inside, from the top: `worker` (the loop) drives `io` (devices) and `forward` (judgement), which reads `table` and
//! `packet`. Workers are threads that never wait for each other; the tables are read without locks.

pub mod counters;
pub mod encap;
pub mod explain;
pub mod forward;
pub mod io;
pub mod knobs;
mod limit;
mod linger;
pub mod manners;
mod memory;
pub mod meter;
pub mod offload;
pub mod packet;
pub mod punt;
pub mod samples;
pub mod start;
mod sync;
pub mod table;
pub mod update;
pub mod verdict;
pub mod worker;
