//! The forwarder of sixway.
pub mod update;
