//! The files and flags of the programs that sixway takes the place of, read as they are.
//!
//! Text in, our own types out. What they mean to a running router is decided elsewhere; here nothing is opened.

pub mod accounts;
pub mod dtcps;
pub mod gogoc;
pub mod popauth;
pub mod routetable;
