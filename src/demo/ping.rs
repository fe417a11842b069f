//! Our own ping: ICMPv6 echo (RFC 4443 section 4) over a raw socket.
//!
//! The kernel fills in the checksum. Refuses to know what is between here and the target.

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::errno::Errno;
use socket2::{Domain, Protocol, Socket, Type};

/// Sends echo requests to one host; lives in the namespace it was made in.
pub(crate) struct Pinger {
    // A raw socket in std's clothes: sending to and receiving from work on any datagram socket, and
    // std lends us buffers that need no unsafe code.
    socket: UdpSocket,
    target: SocketAddrV6,
    identifier: u16,
    sequence: u16,
}

/// What a series of pings found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Series {
    /// Median round-trip time of those answered, in microseconds.
    pub(crate) median_us: Option<f64>,
    /// How many were not answered.
    pub(crate) lost: u32,
}

impl Pinger {
    /// Opens the socket, which needs CAP_NET_RAW.
    pub(crate) fn to(target: Ipv6Addr) -> anyhow::Result<Self> {
        let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)).context(
            "cannot open a raw ICMPv6 socket for ping, it needs CAP_NET_RAW: run `sudo sixway demo`",
        )?;
        let target = SocketAddrV6::new(target, 0, 0, 0);
        Ok(Self { socket: socket.into(), target, identifier: rand::random(), sequence: 0 })
    }

    /// One echo: its round-trip time, or `None` when no answer came within `patience`. That no route
    /// is there (yet) counts as no answer.
    pub(crate) fn ping(&mut self, patience: Duration) -> anyhow::Result<Option<Duration>> {
        self.sequence = self.sequence.wrapping_add(1);
        let request = message(ECHO_REQUEST, self.identifier, self.sequence);
        let expected = message(ECHO_REPLY, self.identifier, self.sequence);
        let start = Instant::now();
        if let Err(why) = self.socket.send_to(&request, self.target) {
            return match why.raw_os_error().map(Errno::from_raw) {
                Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EADDRNOTAVAIL | Errno::ENETDOWN) => {
                    thread::sleep(patience);
                    Ok(None)
                }
                Some(_) | None => Err(why).context("cannot send a ping"),
            };
        }
        self.wait_for(&expected, start, patience).context("cannot receive the answer to a ping")
    }

    /// Warms up, then sends `count` pings [`GAP`] apart.
    pub(crate) fn series(&mut self, count: u32) -> anyhow::Result<Series> {
        for _ in 0..WARM_UP {
            self.ping(PATIENCE)?;
        }
        let mut times = Vec::new();
        let mut slot = Instant::now();
        for _ in 0..count {
            thread::sleep(slot.saturating_duration_since(Instant::now()));
            times.extend(self.ping(PATIENCE)?);
            slot += GAP;
        }
        let lost = count - u32::try_from(times.len()).unwrap_or(count);
        Ok(Series { median_us: median(times).map(micros), lost })
    }

    fn wait_for(&self, expected: &[u8], start: Instant, patience: Duration) -> io::Result<Option<Duration>> {
        let mut buffer = [0; 2048];
        loop {
            let passed = start.elapsed();
            if passed >= patience {
                return Ok(None);
            }
            self.socket.set_read_timeout(Some(patience - passed))?;
            match self.socket.recv_from(&mut buffer) {
                // The kernel has verified the checksum, and put in its own; the rest must be ours.
                Ok((length, from))
                    if from.ip() == *self.target.ip() && is_answer(&buffer[..length], expected) =>
                {
                    return Ok(Some(start.elapsed()));
                }
                Ok(_) => {}
                Err(why) if matches!(why.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    return Ok(None);
                }
                Err(why) => return Err(why),
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

fn is_answer(got: &[u8], expected: &[u8]) -> bool {
    got.len() == expected.len() && got[..2] == expected[..2] && got[4..] == expected[4..]
}

fn median(mut times: Vec<Duration>) -> Option<Duration> {
    times.sort_unstable();
    times.get(times.len() / 2).copied()
}

fn micros(time: Duration) -> f64 {
    (time.as_nanos() as f64 / 100.0).round() / 10.0
}

const ECHO_REQUEST: u8 = 128;
const ECHO_REPLY: u8 = 129;
/// As long as everybody's ping: 8 octets of header, 56 of data.
const MESSAGE: usize = 64;
const WARM_UP: u32 = 5;
const GAP: Duration = Duration::from_millis(2);
const PATIENCE: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_answer_counts() {
        let mut got = message(ECHO_REPLY, 7, 1);
        got[2..4].copy_from_slice(&[0xab, 0xcd]);
        assert!(is_answer(&got, &message(ECHO_REPLY, 7, 1)));
        assert!(!is_answer(&got, &message(ECHO_REPLY, 7, 2)));
        assert!(!is_answer(&got, &message(ECHO_REPLY, 8, 1)));
        assert!(!is_answer(&message(ECHO_REQUEST, 7, 1), &message(ECHO_REPLY, 7, 1)));
        assert!(!is_answer(&got[..20], &message(ECHO_REPLY, 7, 1)));
    }

    #[test]
    fn the_median_is_of_those_answered() {
        let ms = Duration::from_millis;
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![ms(9), ms(1), ms(3)]), Some(ms(3)));
        assert_eq!(micros(Duration::from_nanos(12_345)), 12.3);
    }
}
