//! Signs of life through a tunnel: ICMPv6 echo (RFC 4443 section 4) over a raw socket on the TUN device.
//!
//! The kernel fills in the checksum. When to ask, and when to give up, is [`crate::tsp::keepalive`]'s business.

use std::net::{Ipv6Addr, SocketAddrV6};

use anyhow::Context;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

const ECHO_REQUEST: u8 = 128;
const ECHO_REPLY: u8 = 129;
/// As long as gogoc's: 8 octets of header, 16 of data.
const MESSAGE: usize = 24;

/// Asks one host.
pub(super) struct Pinger {
    // A raw socket in tokio's clothes: sending to and receiving from work on any datagram socket.
    socket: UdpSocket,
    whom: SocketAddrV6,
    identifier: u16,
}

impl Pinger {
    /// Opens the socket, which needs CAP_NET_RAW. `own` is our address in the tunnel.
    pub(super) fn to(whom: Ipv6Addr, own: Ipv6Addr, tun: &str) -> anyhow::Result<Self> {
        let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6));
        let socket = socket.context("cannot open a raw ICMPv6 socket, which needs CAP_NET_RAW")?;
        socket.set_nonblocking(true)?;
        socket.bind_device(Some(tun.as_bytes())).with_context(|| format!("cannot use the device {tun}"))?;
        // Where a script gives the device other addresses, the kernel chooses one.
        let _or_another = socket.bind(&SocketAddrV6::new(own, 0, 0, 0).into());
        let socket = UdpSocket::from_std(socket.into())?;
        Ok(Self { socket, whom: SocketAddrV6::new(whom, 0, 0, 0), identifier: rand::random() })
    }

    /// Sends one question. What cannot be sent is not answered, which is noticed.
    pub(super) async fn ask(&self, sequence: u16) {
        let question = message(ECHO_REQUEST, self.identifier, sequence);
        if let Err(why) = self.socket.send_to(&question, self.whom).await {
            tracing::debug!("a sign of life cannot be sent: {why}");
        }
    }

    /// The number of the next question that is answered.
    pub(super) async fn answer(&self) -> u16 {
        let mut octets = [0; 2048];
        loop {
            match self.socket.recv_from(&mut octets).await {
                Ok((len, from)) if from.ip() == *self.whom.ip() => {
                    if let Some(sequence) = answered(&octets[..len], self.identifier) {
                        return sequence;
                    }
                }
                Ok(_) => {}
                // The device may be about to go; whoever watches it says so.
                Err(_) => tokio::time::sleep(std::time::Duration::from_secs(1)).await,
            }
        }
    }
}

/// An echo message: type, code, checksum (left to the kernel), identifier, sequence number, data.
fn message(kind: u8, identifier: u16, sequence: u16) -> [u8; MESSAGE] {
    let mut octets = [0x36; MESSAGE];
    octets[..4].copy_from_slice(&[kind, 0, 0, 0]);
    octets[4..6].copy_from_slice(&identifier.to_be_bytes());
    octets[6..8].copy_from_slice(&sequence.to_be_bytes());
    octets
}

/// The sequence number of an answer to one of our questions.
fn answered(octets: &[u8], identifier: u16) -> Option<u16> {
    let sequence = u16::from_be_bytes([*octets.get(6)?, *octets.get(7)?]);
    let wanted = message(ECHO_REPLY, identifier, sequence);
    // The kernel has verified the checksum, and left it there.
    let is_ours = octets.len() == MESSAGE && octets[..2] == wanted[..2] && octets[4..] == wanted[4..];
    is_ours.then_some(sequence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_answers_to_our_own_questions_count() {
        let mut octets = message(ECHO_REPLY, 7, 300);
        octets[2..4].copy_from_slice(&[0xab, 0xcd]);
        assert_eq!(answered(&octets, 7), Some(300));
        assert_eq!(answered(&octets, 8), None);
        assert_eq!(answered(&message(ECHO_REQUEST, 7, 300), 7), None);
        assert_eq!(answered(&octets[..23], 7), None);
        octets[20] ^= 1;
        assert_eq!(answered(&octets, 7), None);
    }
}
