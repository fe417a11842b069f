//! The house in which stories are told between network namespaces: real TUN devices, real sockets, real kernels.
//!
//! A [`Lab`] holds namespaces and everything that runs in them, and takes all of it away when it is
//! dropped, on panic too. A [`Rig`] is the lab most stories play in. A [`Router`] is the program under
//! test as an operator would run it; a [`Client`] is a peer made of one socket, so that a test can be
//! an honest client, a liar or one behind a NAT that changed its mind.
//!
//! Everything here panics with what was tried and what came back: a test has nobody to return an error to.
//! It refuses to know the program's insides: configuration file, command line and status JSON are the door.
//!
//! ```no_run
//! use netns_tests::{Rig, tunnel};
//! let Some(rig) = Rig::new_or_skip("a client pings the host behind the router") else { return };
//! let router = rig.server(&tunnel("alice", "proto41", "10.71.0.2", "fd00:2:1::/64", ""));
//! assert_eq!(router.drops("wrong_outer"), 0);
//! ```

mod connected;
mod device;
pub mod dtcp;
pub mod forge;
mod lab;
mod observe;
mod packet;
mod peer;
mod rig;
mod router;
mod stream;
pub mod tsp;

pub use connected::Connected;
pub use device::{PYTHON, device};
pub use lab::{Done, Job, Lab, Space, skipped, wait_for};
pub use observe::{Echo, IPV4, IPV6, Observer, echo_requests};
pub use packet::{Ends, Inner, icmp};
pub use peer::{Client, Serving};
pub use rig::{
    ALICE, ALICE_NET, BOB, BOB_NET, C4, C4_OTHER, CLIENT_PORT, ROUTER6, Rig, S4, S6, U6, UDP_PORT, tunnel,
};
pub use router::{OFFLOADS, Router, program, without_offloads};
pub use stream::{Transfer, pings, transfer};

/// How long a story waits for what must come. Whatever comes ends the wait; a machine with two busy cores may need some of it.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);
