//! TCP across, one way at a time, with a sender and a sink of our own.
//!
//! The sender reuses one buffer, so that it measures the tunnel and not the allocator; the sink checks
//! a sample of what arrives against the same pattern. Refuses to know what is in between.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};

use super::config::HOST;
use super::wiring::Lab;

/// Which way the data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the client to the host.
    Up,
    /// From the host to the client.
    Down,
}

impl Direction {
    /// Its name in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Up => "upload",
            Self::Down => "download",
        }
    }
}

/// Sends for `time` and returns what arrived, in 10^9 bits a second. Tells `show` the present rate, in
/// bits a second, ten times a second.
pub(crate) fn measure(
    lab: &Lab,
    direction: Direction,
    time: Duration,
    show: impl Fn(f64),
) -> anyhow::Result<f64> {
    let (client, host) = connect(lab).with_context(|| format!("TCP {}", direction.name()))?;
    let (source, sink) = match direction {
        Direction::Up => (client, host),
        Direction::Down => (host, client),
    };
    transfer(&source, &sink, time, show).with_context(|| format!("TCP {}", direction.name()))
}

/// A connection that the client opens to the host: the client's end and the host's.
fn connect(lab: &Lab) -> anyhow::Result<(TcpStream, TcpStream)> {
    let listener = lab.host.run(|| TcpListener::bind((HOST, 0)))?.context("the host cannot listen")?;
    let target = listener.local_addr()?;
    let client = lab.client.run(move || TcpStream::connect_timeout(&target, STALL))?;
    let client = client.context("the client cannot connect to the host through the tunnel")?;
    // The client is connected, so somebody is waiting here.
    let (host, _) = listener.accept()?;
    Ok((client, host))
}

fn transfer(source: &TcpStream, sink: &TcpStream, time: Duration, show: impl Fn(f64)) -> anyhow::Result<f64> {
    source.set_write_timeout(Some(STALL))?;
    sink.set_read_timeout(Some(STALL))?;
    let pattern = pattern();
    let arrived = AtomicU64::new(0);
    thread::scope(|scope| {
        let sender = scope.spawn(|| send(source, &pattern, time));
        let receiver = scope.spawn(|| receive(sink, &pattern, &arrived));
        watch(&arrived, || sender.is_finished() || receiver.is_finished(), show);
        let rate = receiver.join().map_err(|_| anyhow!("the sink has panicked"))?;
        if rate.is_err() {
            // A sink that gave up would leave its sender writing until the time is over.
            source.shutdown(Shutdown::Both).ok();
        }
        let sent = sender.join().map_err(|_| anyhow!("the sender has panicked"))?;
        let rate = rate?;
        sent?;
        Ok(rate)
    })
}

fn watch(arrived: &AtomicU64, over: impl Fn() -> bool, show: impl Fn(f64)) {
    let (mut then, mut before) = (Instant::now(), 0);
    while !over() {
        thread::sleep(TICK);
        let (now, total) = (Instant::now(), arrived.load(Ordering::Relaxed));
        show((total - before) as f64 * 8.0 / (now - then).as_secs_f64());
        (then, before) = (now, total);
    }
}

fn send(mut stream: &TcpStream, pattern: &[u8], time: Duration) -> anyhow::Result<()> {
    let deadline = Instant::now() + time;
    let mut offset = 0;
    while Instant::now() < deadline {
        let end = pattern.len().min(offset + WRITE);
        let written = stream.write(&pattern[offset..end]).map_err(stalled).context("the sender stopped")?;
        offset = (offset + written) % pattern.len();
    }
    Ok(stream.shutdown(Shutdown::Write)?)
}

/// Reads until the sender is done; 10^9 bits a second between the first and the last octet.
fn receive(mut stream: &TcpStream, pattern: &[u8], arrived: &AtomicU64) -> anyhow::Result<f64> {
    let mut buffer = vec![0; READ];
    let mut total: u64 = 0;
    let mut start = None;
    loop {
        let length = stream.read(&mut buffer).map_err(stalled).context("the sink stopped")?;
        let start = *start.get_or_insert_with(Instant::now);
        if length == 0 {
            return rate(total, start.elapsed());
        }
        check(&buffer[..length], pattern, total)?;
        total += length as u64;
        arrived.store(total, Ordering::Relaxed);
    }
}

fn rate(octets: u64, time: Duration) -> anyhow::Result<f64> {
    if octets == 0 || time.is_zero() {
        bail!("nothing arrived");
    }
    let gbps = octets as f64 * 8.0 / time.as_secs_f64() / 1e9;
    Ok((gbps * 1000.0).round() / 1000.0)
}

/// Compares the head of what was read with the pattern at the same place of the stream.
fn check(got: &[u8], pattern: &[u8], position: u64) -> anyhow::Result<()> {
    let offset = (position % pattern.len() as u64) as usize;
    let length = got.len().min(SAMPLE).min(pattern.len() - offset);
    if got[..length] != pattern[offset..offset + length] {
        bail!("the data that arrived is not what was sent, near octet {position} of the stream");
    }
    Ok(())
}

fn stalled(why: io::Error) -> anyhow::Error {
    if why.kind() == io::ErrorKind::WouldBlock {
        return anyhow!("no data moved for {} s: packets are lost in the tunnel", STALL.as_secs());
    }
    why.into()
}

/// Words that differ everywhere, so that data at the wrong place is noticed (Weyl sequence, mixed).
fn pattern() -> Vec<u8> {
    let words = (0..PATTERN as u64 / 8).map(|n| {
        let x = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x ^ (x >> 29)
    });
    words.flat_map(u64::to_le_bytes).collect()
}

const PATTERN: usize = 1 << 20;
const WRITE: usize = 128 << 10;
const READ: usize = 256 << 10;
const SAMPLE: usize = 64;
/// How often the rate is shown.
pub(crate) const TICK: Duration = Duration::from_millis(100);
/// How long TCP may stand still.
const STALL: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv6Addr;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[test]
    fn what_is_sent_arrives_and_is_measured() {
        let (source, sink) = pair();
        let gbps = transfer(&source, &sink, Duration::from_millis(200), |_| {}).unwrap();
        assert!(gbps > 0.01, "{gbps}");
    }

    #[test]
    fn other_data_is_noticed() {
        let (source, sink) = pair();
        let mut wrong = pattern();
        wrong.rotate_left(8);
        (&source).write_all(&wrong[..4096]).unwrap();
        let why = receive(&sink, &pattern(), &AtomicU64::new(0)).unwrap_err();
        assert!(why.to_string().contains("not what was sent"), "{why}");
    }

    #[test]
    fn samples_are_checked_at_their_place_and_across_the_seam() {
        let pattern = pattern();
        check(&pattern[100..300], &pattern, 100 + 3 * PATTERN as u64).unwrap();
        check(&[&pattern[PATTERN - 10..], &pattern[..50]].concat(), &pattern, PATTERN as u64 - 10).unwrap();
        assert!(check(&pattern[100..300], &pattern, 108).is_err());
    }

    #[test]
    fn nothing_is_no_rate() {
        assert!(rate(0, Duration::from_secs(1)).is_err());
        assert_eq!(rate(1_000_000_000, Duration::from_secs(4)).unwrap(), 2.0);
    }
}
