//! Super-packets: cut once on the way out, put together once on the way in.

pub mod coalesce;
pub mod segment;
