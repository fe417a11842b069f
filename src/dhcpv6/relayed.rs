//! What relays put around a message, and what must be around it on its way back (RFC 8415 section 19). Pure.

use super::codec::{MAX_RELAYS, Message, Opt, Packet, Relay};
use super::session::{MAX_IAS, Silence};

/// The relays that a message has come through, the nearest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Relays(Vec<Relay>);

impl Relays {
    /// Whether it has come from its client.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The relays, the one that is nearest to the client first.
    pub fn inside_out(&self) -> impl Iterator<Item = &Relay> {
        self.0.iter().rev()
    }

    /// The message as its client has said it, out of what has come.
    pub(super) fn innermost<'a>(&'a self, octets: &'a [u8]) -> &'a [u8] {
        self.0.last().and_then(Relay::relayed).unwrap_or(octets)
    }

    /// Whether the nearest relay listens on the port that it sends from (RFC 8357).
    pub fn listen_on_own_port(&self) -> bool {
        self.0.first().is_some_and(Relay::has_own_port)
    }

    /// The same without the message and what relays need not find again.
    pub(super) fn way_back(&self) -> Self {
        let bare = |relay: &Relay| {
            let options = relay.echoed().cloned().collect();
            Relay { is_reply: true, options, ..*relay }
        };
        Self(self.0.iter().map(bare).collect())
    }
}

/// The message, and the relays that it has come through.
pub(super) fn unwrap(octets: &[u8]) -> Result<(Relays, Message), Silence> {
    let mut relays: Vec<Relay> = Vec::new();
    loop {
        let inner = match relays.last() {
            Some(relay) => relay.relayed().ok_or(Silence::WrongForm)?,
            None => octets,
        };
        match Packet::parse(inner).map_err(|_| Silence::Malformed)? {
            Packet::Message(mut message) => {
                message.keep_few_ias(MAX_IAS);
                return Ok((Relays(relays), message));
            }
            Packet::Relay(relay) if relay.is_reply => return Err(Silence::Unexpected),
            Packet::Relay(_) if relays.len() == MAX_RELAYS => return Err(Silence::TooDeep),
            Packet::Relay(relay) => relays.push(relay),
        }
    }
}

/// A message on its way back through all relays, each of which finds in it what it must (RFC 8415 section 19.3).
pub(super) fn wrap(way_back: &Relays, octets: Vec<u8>) -> Vec<u8> {
    way_back.inside_out().fold(octets, |inner, relay| {
        let options = std::iter::once(Opt::Relayed(inner)).chain(relay.options.iter().cloned()).collect();
        Packet::Relay(Relay { options, ..*relay }).emit()
    })
}
