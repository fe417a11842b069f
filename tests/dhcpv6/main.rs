//! The DHCPv6 server: what clients said to others, said to ours; and whatever clients may say.

#![expect(clippy::unwrap_used, reason = "a test has nobody to return an error to")]

mod cases;
mod client;
mod lab;
mod leases;
mod musts;
mod properties;
mod telling;
mod transcripts;
