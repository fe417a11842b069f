//! Talking at a running router's UDP ports: what a client says to its broker from where its tunnel runs, so that a NAT on the
//! way sees one flow (RFC 5572 section 4.4.1).
//!
//! Knows no protocol.

use std::net::SocketAddrV4;

use sixway_dataplane::start::Injector;
use sixway_dataplane::worker::Inject;
use tokio::sync::mpsc;

use crate::punt::Letter;

/// Datagrams that wait to be heard; more are lost.
const LETTERS: usize = 64;

/// What is said and heard at the ports of a router's tunnels in UDP beside their packets: by it a client talks to its broker
/// from where its tunnel runs.
#[derive(Debug)]
pub struct Voice {
    injector: Injector,
    letters: mpsc::Receiver<Letter>,
}

/// For datagrams on their way to whoever talks.
pub(super) fn letters() -> (mpsc::Sender<Letter>, mpsc::Receiver<Letter>) {
    mpsc::channel(LETTERS)
}

impl Voice {
    pub(super) fn new(injector: Injector, letters: mpsc::Receiver<Letter>) -> Self {
        Self { injector, letters }
    }

    /// Sends a datagram from one of the router's ports. It may be lost, as any datagram.
    pub fn say(&self, local: SocketAddrV4, remote: SocketAddrV4, payload: Vec<u8>) {
        let _or_said_again = self.injector.inject(Inject::Datagram { local, remote, payload });
    }

    /// The next datagram that is no packet of a tunnel; `None`: the router has ended.
    pub async fn hear(&mut self) -> Option<Letter> {
        self.letters.recv().await
    }

    /// What has come so far was for nobody.
    pub fn forget(&mut self) {
        while self.letters.try_recv().is_ok() {}
    }
}
