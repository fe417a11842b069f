//! What there is to be seen of a client from outside. Pure; reads, changes nothing.

use std::time::Duration;

use dhcproto::v6::MessageType;
use rand::Rng;

use super::{Client, Stage};

/// What there is to be seen of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// What it does, in a word.
    pub doing: &'static str,
    /// The DUID of the server that it has chosen; empty: none.
    pub server: Vec<u8>,
    /// T1: when this server is asked again; `None`: never, or nothing is held.
    pub renew: Option<Duration>,
    /// T2: when any server is asked.
    pub rebind: Option<Duration>,
}

impl<R: Rng> Client<R> {
    /// What it is at.
    pub fn view(&self) -> View {
        use MessageType as M;
        let doing = match &self.stage {
            Stage::Idle => "idle",
            Stage::Waiting(..) => "waiting",
            Stage::Bound => "bound",
            Stage::Informed(_) => "informed",
            Stage::Asking(exchange) => match () {
                () if exchange.kind == M::Solicit => "soliciting",
                () if exchange.kind == M::Request => "requesting",
                () if exchange.kind == M::Renew => "renewing",
                () if exchange.kind == M::Rebind => "rebinding",
                () if exchange.kind == M::Confirm => "confirming",
                () if exchange.kind == M::Release => "releasing",
                () => "inquiring",
            },
        };
        let (renew, rebind) = (self.soonest(|one| one.renew), self.soonest(|one| one.rebind));
        View { doing, server: self.server.clone(), renew, rebind }
    }
}
