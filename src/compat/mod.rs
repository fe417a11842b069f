//! The files and flags of the programs that sixway takes the place of, read as they are.
//!
//! Text in, our own types out. What they mean to a running router is decided elsewhere; here nothing is opened.

pub mod accounts;
pub mod base64;
pub mod ctlkey;
pub mod dhcp6sconf;
pub mod dtcps;
pub mod duidfile;
pub mod gogoc;
pub mod popauth;
pub mod routetable;
