//! The Dynamic Tunnel Configuration Protocol: a client asks over TCP for a tunnel between the two ends of that very
//! connection, and keeps the tunnel as long as the connection.
//!
//! Never published as a standard; what counts is what the programs of KAME (1999 to 2001) and ume (to 2013) do.
//!
//! ```text
//!  client                                server (TCP port 20200)
//!    │ ◄──────────── +OK CHALLENGE text ────│
//!    │── tunnel USER DIGEST TYPE ──────────►│  DIGEST = MD5(USER CHALLENGE SECRET); the tunnel is up ...
//!    │ ◄──── +OK CLIENT-V4 SERVER-V4 ... ───│  ... before this is said
//!    │── ping (every 60 s) ────────────────►│
//!    │── quit, or the end of the connection►│  the tunnel is gone
//! ```
//!
//! States of a session ([`session`]):
//!
//! ```text
//!            tunnel            proven            granted
//!   bare ───────────► proving ────────► asking ──────────► up
//!    ▲ │                 │ no              │ no             │
//!    └─┼─────────────────┴─────────────────┘                │ quit, end, 300 s, taken over by a newer session
//!      └──── quit, end, 60 s ──────────► over ◄─────────────┘
//! ```
//!
//! Left out: the ume server's `-a` (nobody knows what it answers). IPv6 in UDP is there, but nobody knows how ume's
//! programs asked for it; the words that do so here are ours ([`codec::UdpWish`]).

pub mod claims;
pub mod client;
pub mod codec;
pub mod front;
pub mod interfaces;
pub mod server;
pub mod session;
