//! A DHCPv6 client's line into a tunnel: the router has one end, the client the other.
//!
//! The TUN device carries nothing of link scope, so messages go by Punt and Inject, as those of the servers do.

use std::net::{Ipv4Addr, Ipv6Addr};

use sixway_dataplane::update::{Outer, TunnelId};
use tokio::sync::mpsc;

use crate::dhcpv6::codec::{ALL_SERVERS, CLIENT_PORT, SERVER_PORT};
use crate::dhcpv6::datagram::{is_to, unwrap, wrap};
use crate::nd::server::link_local;
use crate::registry::{Live, Registry};

use super::report::{DAMAGED, NO_WAY, Report, UNHEARD, UNSENT};

/// Messages that wait at either end.
const WAITING: usize = 64;

/// The client's end.
#[derive(Debug)]
pub struct Line {
    /// What comes out of the tunnel.
    pub heard: mpsc::Receiver<Vec<u8>>,
    said: mpsc::Sender<Vec<u8>>,
    report: Report,
}

/// The router's end.
#[derive(Debug)]
pub struct Port {
    tunnel: Box<str>,
    heard: mpsc::Sender<Vec<u8>>,
    said: mpsc::Receiver<Vec<u8>>,
    report: Report,
}

/// Both ends of a line into the tunnel of this name; what is lost in it is counted in `report`.
pub fn line(tunnel: &str, report: &Report) -> (Port, Line) {
    let (up, heard) = mpsc::channel(WAITING);
    let (said, down) = mpsc::channel(WAITING);
    let port = Port { tunnel: tunnel.into(), heard: up, said: down, report: report.clone() };
    (port, Line { heard, said, report: report.clone() })
}

impl Line {
    /// Sends a message to all servers of the link. What finds no room is lost, as any datagram may be.
    pub fn say(&self, message: Vec<u8>) {
        if self.said.try_send(message).is_err() {
            self.report.count(UNSENT);
            tracing::debug!("a DHCPv6 message is lost on its way into the tunnel, which is away or busy");
        }
    }
}

impl Port {
    /// The tunnel's name, and what the client at the other end shows of itself.
    pub fn shown(&self) -> (&str, &Report) {
        (&self.tunnel, &self.report)
    }

    /// Whether a packet out of a tunnel is for a client; then it has been given to it, if it is from this tunnel and whole.
    pub fn take(&self, registry: &Registry, id: TunnelId, packet: &[u8]) -> bool {
        if !is_to(packet, CLIENT_PORT) || registry.by_name(&self.tunnel) != Some(id) {
            return false;
        }
        match unwrap(packet).map(|datagram| self.heard.try_send(datagram.payload.to_vec())) {
            Some(Ok(())) => {}
            Some(Err(_)) => {
                self.report.count(UNHEARD);
                tracing::debug!("a DHCPv6 message is lost: the client is busy or gone");
            }
            None => {
                self.report.count(DAMAGED);
                tracing::debug!("a DHCPv6 message is lost: its packet is damaged");
            }
        }
        true
    }

    /// The next message of the client; never, if there is no client any more.
    pub async fn next(port: &mut Option<Self>) -> Vec<u8> {
        let said = match port {
            Some(port) => port.said.recv().await,
            None => None,
        };
        match said {
            Some(message) => message,
            None => std::future::pending().await,
        }
    }

    /// A message as a packet for the tunnel, if that is up and large enough.
    pub fn packet(&self, registry: &Registry, message: &[u8]) -> Option<(TunnelId, Vec<u8>)> {
        let packet = self.wrap(registry, message);
        if packet.is_none() {
            self.report.count(NO_WAY);
        }
        packet
    }

    fn wrap(&self, registry: &Registry, message: &[u8]) -> Option<(TunnelId, Vec<u8>)> {
        let id = registry.by_name(&self.tunnel)?;
        let live = registry.tunnel(id)?;
        let source = own_link_local(live);
        let packet = wrap((source, CLIENT_PORT), (ALL_SERVERS, SERVER_PORT), message);
        (packet.len() <= usize::from(live.mtu())).then_some((id, packet))
    }
}

/// A client's link-local address. Where our outer address is not known the router's own is `fe80::1`, and the other end's
/// may be so too.
fn own_link_local(live: &Live) -> Ipv6Addr {
    let own = match &live.outer {
        Outer::Proto41 { local, .. } => *local,
        Outer::Udp { local, .. } => local.addr,
    };
    match own.filter(|addr| *addr != Ipv4Addr::UNSPECIFIED) {
        Some(_) => link_local(&live.outer),
        None => Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2),
    }
}
