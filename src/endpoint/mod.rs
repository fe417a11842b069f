//! Learning and moving the endpoint of a UDP tunnel by return routability.
//!
//! Behind a NAT a peer's outer address and port change without notice. A source address proves nothing, since
//! anybody can write it, so a tunnel's endpoint changes only after a nonce that was sent to the new place has
//! come back from there, and only while the old place is silent (in the spirit of RFC 8085 section 3.5). The
//! nonce travels as an ICMPv6 echo request (RFC 4443 section 4) through the tunnel, which every IPv6 host answers:
//! the peer needs to know nothing of this.
//!
//! ```text
//!   candidate ──► asked, nothing remembered ──► answers: a contender, and the endpoint in use is asked, five times
//!                 (1 a second)                     │
//!                                                  ├── it answers, or packets come from it: it stays;
//!                                                  │   the contender's address is held off for 10 s
//!                                                  ├── its answer comes from the contender: one peer, MOVE at once
//!                                                  └── nothing for 4 s (1.5 s where only the port is another one): MOVE
//! ```
//!
//! The endpoint in use is asked by inner addresses that it has shown itself (those that have answered there before), by the
//! one in the configuration (`echo`), and by the contender's: who chooses an inner source that no host has does not
//! silence the peer by it. A tunnel that has no endpoint yet takes the first who answers.
//!
//! What the caller owes: the forwarder must hand up packets from unknown senders whose inner source lies in a
//! tunnel's prefix, and echo replies from a tunnel to the address that questions come from. The latter are ordinary
//! traffic for the router's own address. Offer those to [`Prober::handle_packet`] and the former to
//! [`Prober::handle_candidate`]; then empty [`Prober::poll_output`].
//!
//! Left out: a peer that filters echo never moves, and one that filters echo, sends nothing for four seconds, and lets no
//! router of its own speak, looks silent when a contender proves itself. Who receives at an address of his own and comes at
//! the very time when a peer has really moved to another address may be first; behind the peer's own NAT address, and
//! with an inner address that the peer has not shown, he is not. Whether the tunnel may move at all
//! (`UdpRemote::may_move_to`) is decided before this.

pub mod pace;
pub mod proof;
pub mod session;

pub use session::{Candidate, EndpointCounters, MOST_TUNNELS, Origin, Output, Prober};
