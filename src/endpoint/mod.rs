//! Learning and moving the endpoint of a UDP tunnel by return routability.
//!
//! Behind a NAT a peer's outer address and port change without notice. A source address proves nothing, since
//! anybody can write it, so a tunnel's endpoint changes only after a nonce that was sent to the new place has
//! come back from there, and only while the old place is silent (in the spirit of RFC 8085 section 3.5). The
//! nonce travels as an ICMPv6 echo request (RFC 4443 section 4) through the tunnel, which every IPv6 host answers:
//! the peer needs to know nothing of this.
//!
//! ```text
//!            candidate                    nonce back from the candidate, and no current endpoint,
//!   idle ───────────────► probing ──────► or the current one silent for 1 s, or proven the same peer ──► MOVE
//!    ▲   (1 a second)        │
//!    │                       ├── current endpoint answers its own probe: alive, tunnel held off for 10 s
//!    └───── resting ◄────────┴── nothing for 3 s: unanswered, this candidate held off for 10 s
//! ```
//!
//! Two probes go out together: one to the candidate, one with another nonce to the current endpoint. If the latter's
//! nonce comes back *from the candidate*, old and new are one peer whose NAT still delivers to the old port.
//!
//! What the caller owes: the forwarder must hand up packets from unknown senders whose inner source lies in a
//! tunnel's prefix, and echo replies from a tunnel to the address that probes come from. The latter are ordinary
//! traffic for the router's own address; [`Prober::is_reply`] tells them from the kernel's by the identifier.
//! Offer a packet to [`Prober::handle_packet`] first and, if it was not consumed, to
//! [`Prober::handle_candidate`]; then empty [`Prober::poll_output`].
//!
//! Left out: a peer that filters echo never moves, and one that was configured rather than learned and filters
//! echo looks silent when a candidate proves itself. A flood of candidates from ever new forged addresses takes
//! most of the slots, because no candidate looks better than another before it has answered; it delays a move and
//! never causes one. Whether the tunnel may move at all (`UdpRemote::may_move_to`) is decided before this.

pub mod session;

pub use session::{Candidate, EndpointCounters, MAX_PROBING, Output, Prober};
