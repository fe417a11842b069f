//! How long packets in a tunnel may be: by configuration, by what routers on the way say, or by trying.
//!
//! Three ways, for each tunnel its own (`pmtu` in the configuration):
//!
//! - `static` (RFC 4213 section 3.2.1): the MTU is what is written, DF is clear in outer packets, what a link on the way
//!   cannot take is fragmented.
//! - `dynamic` (section 3.2.2): DF is set, and an ICMPv4 *fragmentation needed* about one of our packets lowers the tunnel's
//!   MTU. The senders inside hear of it by Packet Too Big. Where the path takes no 1280 octets inside, DF is clear and the
//!   MTU is 1280. After ten minutes (RFC 1191 section 6.3) the larger packets are tried again.
//! - `probe` (RFC 8899): the MTU begins at 1280 and rises as far as echo requests of that length, with DF set, are answered
//!   by the peer. It does not depend on anybody's ICMPv4; what comes only shortens the search.
//!
//! ```text
//!                   answered: larger                       600 s: perhaps larger now
//!              ┌───────────────────────┐             ┌──────────────────────────────┐
//!              ▼                       │             ▼                              │
//!   1280 ─► searching ── a size has 3 times no answer: smaller ── no gap left ─► complete
//!              ▲                                                                    │
//!              └──── the size in use has 3 times no answer: a black hole, 1280 ─────┘
//! ```
//!
//! Anybody can write an error, so none is believed. One that quotes what could be a packet of a tunnel of ours, to its peer,
//! between inner addresses that it carries, and (about its length) with DF set, is a reason to ask: a packet of ours with a
//! secret in it takes the same way, and what is said about that packet is believed ([`doubt`]). Then the MTU is lowered, or
//! the inner sender told *address unreachable* (RFC 4213 section 3.4). This takes as long as the error took, and nobody
//! off the path can do it. In `probe` mode an error about a probe is one about a secret of ours already.
//!
//! Left out: the length of one single packet that a link on the way takes but does not carry on. Routers that quote no
//! more than RFC 792 asks for leave nothing of a packet in UDP that could be known again: they are not believed. Whoever is
//! on the path can still forge; the worst that comes of it is an MTU of 1280 for ten minutes.

pub mod codec;
pub mod doubt;
pub mod probe;
pub mod server;
pub mod session;
pub mod wrap;
