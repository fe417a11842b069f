//! Bytes of packets: where they lie, how they are read, summed and answered.

pub mod batch;
pub mod checksum;
pub mod icmp;
pub mod mss;
mod simd;
pub mod view;
