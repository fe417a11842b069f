//! sixway: IPv6 tunnels in userspace, a router and broker in one program.
//!
//! Two planes and one narrow door between them. The *data plane* is a crate of its own, `sixway_dataplane`: threads
//! that move packets between a TUN device and sockets, and know nothing else. This crate is the *control plane*: it
//! decides which tunnels there are, keeps the data plane's tables, and answers what packets cannot be forwarded.
//!
//! | room | what happens there |
//! |---|---|
//! | [`cli`] | one file for each command: parses, calls, prints |
//! | [`config`] | TOML to a checked `Config`; every bound is tested there |
//! | [`router`] | opens everything in order and runs the control loop |
//! | [`registry`] | the truth about live tunnels; owns the only table writer |
//! | [`punt`] | hands packets that came up to whoever deals with them |
//! | [`auth`] | proofs of who somebody is, shared by protocols |
//! | [`dtcp`] | tunnels for those who ask by DTCP, and the asking side |
//! | [`dhcpv6`] | prefixes, addresses and information inside each tunnel |
//! | [`tsp`] | tunnels for those who ask by TSP |
//! | [`delegation`] | a prefix asked for inside a tunnel, and what is done with it here |
//! | [`dhcp6ctl`] | orders to a DHCPv6 server or client: both ends |
//! | [`dhcp6s`] | DHCPv6 on one real link, by dhcp6s.conf |
//! | [`compat`] | the old programs' files, read as they are |
//! | [`nd`] | neighbour discovery and echo inside each tunnel |
//! | [`entrance`] | TCP sockets that control protocols listen at |
//! | [`endpoint`] | proves where a peer is before its tunnel moves there |
//! | [`pmtu`] | how long packets in a tunnel may be |
//! | [`broker`] | who may have which tunnel and prefix, until when; pure |
//! | [`store`] | what must survive the process: SQLite |
//! | [`office`] | from wishes to answers: broker, store, tables, in this order |
//! | [`network`], [`link`] | the TUN device's addresses and routes, through netlink |
//! | [`churn`] | tunnels that come and go at a pace, to measure what updates cost |
//! | [`snippet`] | client configuration to paste, for other programs and systems |
//! | [`load`] | many clients at once, to measure what sessions cost |
//! | [`admin`] | the operator's socket: status and reload |
//! | [`advice`] | what of the host stands in the way |
//! | [`privileges`] | what needs rights, and what to do without |
//! | [`explain`] | packets judged dry, and the last ones dropped, in words |
//! | [`watch`] | copies of a tunnel's packets on their way to viewers |
//! | [`audit`] | what must hold of a running router, and whether it does |
//! | [`demo`] | the whole thing in three namespaces, in one process |
//!
//! The door: `TableWriter::apply(&[Update])` down, `Punt` up, `Inject` down, `Counters` read. `codec.rs` and `session.rs`
//! of each protocol are pure: bytes, time and randomness come in, bytes and wishes go out.

pub mod admin;
pub mod advice;
pub mod allowance;
pub mod audit;
pub mod auth;
pub mod broker;
pub mod churn;
pub mod cli;
pub mod compat;
pub mod config;

pub mod delegation;
pub mod demo;
pub mod dhcp6ctl;
pub mod dhcp6s;
pub mod dhcpv6;
pub mod dtcp;
pub mod endpoint;
pub mod entrance;
pub mod explain;
pub mod link;
pub mod load;
pub mod nd;
pub mod network;
pub mod office;
pub mod pmtu;
pub mod privileges;
pub mod punt;
pub mod registry;
pub mod router;
pub mod script;
pub mod snippet;
pub mod store;
pub mod tsp;
pub mod watch;
