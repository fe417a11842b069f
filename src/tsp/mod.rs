//! The Tunnel Setup Protocol: a client says which tunnel it wants and is told its addresses (RFC 5572 and, for
//! `VERSION=1.0`, draft-vg-ngtrans-tsp-01).
//!
//! ```text
//!  client                                     server (TCP and UDP port 3653)
//!    │── VERSION=2.0.2 ─────────────────────────►│
//!    │ ◄── CAPABILITY TUNNEL=V6V4 ... AUTH=... ──│
//!    │── AUTHENTICATE DIGEST-MD5 ... ───────────►│  lines
//!    │ ◄──────────────────────── 200 Success ────│
//!    │── Content-length: N, <tunnel create> ────►│  frames; the tunnel is up ...
//!    │ ◄── Content-length: N, 200, <tunnel info> │  ... before this is said
//!    │── Content-length: N, <tunnel accept> ────►│
//! ```
//!
//! Over UDP the same messages have a [`header`] in front, and the IPv6 packets of the tunnel take the very same way: what
//! is not IPv6 comes up from the forwarder. What deployed clients (gogoc 1.2, gw6c) do, and where they crash if a server
//! does otherwise, is the measure of what is written here.

pub mod allowance;
pub mod client;
pub mod codec;
pub mod flows;
pub mod framing;
pub mod granted;
pub mod header;
pub mod keepalive;
pub mod life;
mod post;
pub mod search;
pub mod server;
pub mod session;
pub mod setup;
pub mod terms;
pub mod verdict;
pub mod want;
pub mod xml;
