//! TCP and ping between namespaces by their own kernels: does it pass, whole, and how fast.
//!
//! The content of a stream tells its position, so what is lost, doubled or swapped is found with its
//! offset, also where TCP's own checksum was "repaired" by a wrong offload.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::lab::must;
use crate::packet::address;
use crate::{PATIENCE, Space};

/// What a transfer came to.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    /// Octets that arrived, all of them checked.
    pub bytes: u64,
    /// From the first octet sent to the last one read.
    pub took: Duration,
}

impl Transfer {
    /// Gigabits of content a second.
    pub fn gbps(&self) -> f64 {
        // Test sizes are far below 2^53.
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        let bits = self.bytes as f64 * 8.0;
        bits / self.took.as_secs_f64() / 1e9
    }
}

/// Send `bytes` octets by TCP from one namespace to the address `at` in another and check every octet.
#[track_caller]
pub fn transfer(from: &Space, to: &Space, at: &str, bytes: u64) -> Transfer {
    let listener = to.inside(|| must(TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)), "listen"));
    let port = must(listener.local_addr(), "ask for a port").port();
    let target = SocketAddr::from((address(at), port));
    let stream =
        from.inside(|| must(TcpStream::connect_timeout(&target, PATIENCE), &format!("connect to {target}")));
    let (accepted, _) = must(listener.accept(), "accept");
    let begin = Instant::now();
    let received = thread::scope(|scope| {
        scope.spawn(|| send(&stream, bytes));
        receive(&accepted)
    });
    let transfer = Transfer { bytes: received, took: begin.elapsed() };
    assert_eq!(received, bytes, "octets that arrived at [{at}]");
    println!("    TCP to [{at}]: {bytes} octets at {:.2} Gbit/s", transfer.gbps());
    transfer
}

/// Ping `count` times from a namespace; how many replies came. `options` go to `ping -6`.
#[track_caller]
pub fn pings(from: &Space, dst: &str, count: u32, options: &str) -> u32 {
    let done = from.attempt(&format!("ping -6 -n -i 0.05 -W 3 -c {count} {options} {dst}"));
    let words: Vec<&str> = done.text.split([' ', ',']).filter(|word| !word.is_empty()).collect();
    let received = words.windows(2).find(|pair| pair[1] == "received").and_then(|pair| pair[0].parse().ok());
    let received = received.unwrap_or_else(|| panic!("ping said: {}", done.text));
    if received < count {
        println!("{}", done.text);
    }
    received
}

fn send(mut stream: &TcpStream, bytes: u64) {
    must(stream.set_write_timeout(Some(PATIENCE)), "set a timeout");
    let mut at = 0;
    while at < bytes {
        let block = content(at, BLOCK.min(bytes - at));
        must(stream.write_all(&block), &format!("send at octet {at}"));
        at += BLOCK;
    }
    must(stream.shutdown(std::net::Shutdown::Write), "end a stream");
}

/// Read to the end of the stream; panics at the first octet that is not what was sent.
fn receive(stream: &TcpStream) -> u64 {
    must(stream.set_read_timeout(Some(PATIENCE)), "set a timeout");
    let (mut at, mut block, begin) = (0, Vec::new(), Instant::now());
    loop {
        assert!(begin.elapsed() < LIMIT, "the stream crawls: {at} octets in {LIMIT:?}");
        block.clear();
        match stream.take(BLOCK).read_to_end(&mut block) {
            Ok(0) => return at,
            Ok(got) => {
                let got = u64::try_from(got).unwrap_or(u64::MAX);
                let wrong = content(at, got).iter().zip(&block).position(|(want, got)| want != got);
                assert!(wrong.is_none(), "content differs at octet {wrong:?} after {at}");
                at += got;
            }
            Err(why) if why.kind() == ErrorKind::Interrupted => {}
            Err(why) => panic!("the stream broke at octet {at}: {why}"),
        }
    }
}

/// Octets `at` to `at + len` of the endless content: each block counts from its own start, mixed.
fn content(at: u64, len: u64) -> Vec<u8> {
    let words = (at / 8..=(at + len) / 8).flat_map(|n| mix(n).to_le_bytes());
    let skip = usize::try_from(at % 8).unwrap_or(0);
    words.skip(skip).take(usize::try_from(len).unwrap_or(usize::MAX)).collect()
}

/// A fixed bijection that leaves no two neighbouring words alike (the finaliser of splitmix64).
fn mix(n: u64) -> u64 {
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

/// A stream that lives on retransmissions alone is no stream.
const LIMIT: Duration = Duration::from_secs(60);
const BLOCK: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_the_same_however_it_is_cut() {
        let whole = content(0, 1000);
        assert_eq!([content(0, 13), content(13, 900), content(913, 87)].concat(), whole);
        assert_ne!(content(8, 100), content(0, 100));
    }
}
