//! The control protocol of WIDE's DHCPv6 programs: `dhcp6ctl` tells a server or a client over TCP what to do.
//!
//! Never published; what counts is what the programs (wide-dhcpv6 20080615) put on the wire.
//!
//! ```text
//!  0       2       4       6       8         12            28
//!  +-------+-------+-------+-------+---------+-------------+----------
//!  |command|length |version|reserv.| time    | digest      | arguments        length: octets behind the first 12
//!  +-------+-------+-------+-------+---------+-------------+----------        digest: HMAC-MD5 over all, itself zero
//!
//!  dhcp6ctl                      server (TCP port 5547) or client (5546), on ::1
//!    │──── one message ───────────►│  1. time within 300 s   2. digest   3. version   4. not seen before   5. command
//!    │ ◄──────────────── closes ───│  no octet is ever answered, whatever became of it
//! ```
//!
//! The wire is the old one. What is added on our side: digests are compared in constant time, a message works once, a
//! connection is not held longer than a while, and a `remove` takes the kind of binding that it names. Left out: any
//! transport but TCP, any algorithm but HMAC-MD5. There is no secrecy in it: it belongs on the loopback.

pub mod codec;
pub mod server;
pub mod session;

/// Where a server listens for commands.
pub const SERVER_PORT: u16 = 5547;
/// Where a client listens for commands.
pub const CLIENT_PORT: u16 = 5546;
/// The server's key file.
pub const SERVER_KEY: &str = "/etc/wide-dhcpv6/dhcp6sctlkey";
/// The client's key file.
pub const CLIENT_KEY: &str = "/etc/wide-dhcpv6/dhcp6cctlkey";
