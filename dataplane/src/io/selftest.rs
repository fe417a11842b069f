//! Do UDP trains arrive as they were sent? Tried once at the start, over loopback, before anybody's packets depend on it.
//!
//! Kernels are known that refuse a train whose last datagram is shorter (some of 6.6), that damage one whose last is not
//! (7.0), or that merge wrongly (before 5.12). A few small trains with telling contents go through the same calls that
//! the forwarder uses, to a socket that gets single datagrams and to one that gets them merged. Knows nothing of tunnels;
//! takes some milliseconds, and at most half a second where datagrams get lost.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::sys::{Inbox, Outbox, Outgoing, Part, Received, set_option};
use crate::knobs::{Knob, Standing, Standings};

/// Octets of each datagram of a train, how many of them, and octets of one more behind them.
const TRAINS: [(usize, usize, usize); 4] = [(1200, 5, 700), (1200, 5, 1200), (1452, 9, 1), (1280, 2, 1280)];
const MOST_OCTETS: usize = 16 * 1024;
/// Datagrams that may arrive for one train.
const MESSAGES: usize = 16;
/// How long the datagrams of one train may take; loopback delivers at once unless the machine is overloaded.
const PATIENCE: Duration = Duration::from_millis(50);
const GLANCE: Duration = Duration::from_micros(500);

/// Tries what is wanted of `UdpGso` and `UdpGro` in the network namespace of the calling thread.
pub fn udp(standings: &mut Standings) {
    if [Knob::UdpGso, Knob::UdpGro].iter().all(|knob| !standings.of(*knob).is_used()) {
        return;
    }
    let (gso, gro) = match Bench::open() {
        Ok(mut bench) => bench.run(),
        Err(e) => (untested(&e), untested(&e)),
    };
    standings.settle(Knob::UdpGso, gso);
    standings.settle(Knob::UdpGro, gro);
}

fn untested(why: &dyn std::fmt::Display) -> Standing {
    Standing::Untested(format!("not tested over loopback: {why}"))
}

/// Why a train did not arrive.
#[derive(Debug)]
enum Trouble {
    /// Nothing can be said about trains.
    Elsewhere(String),
    /// It was refused, or something else came.
    Wrong(String),
}

struct Bench {
    sender: UdpSocket,
    single: UdpSocket,
    merging: UdpSocket,
    gro: io::Result<()>,
    outbox: Outbox,
    inbox: Inbox,
    arena: Vec<u8>,
}

impl Bench {
    fn open() -> io::Result<Self> {
        let bind = || {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            socket.set_nonblocking(true)?;
            Ok::<_, io::Error>(socket)
        };
        let merging = bind()?;
        Ok(Self {
            sender: bind()?,
            single: bind()?,
            gro: set_option(merging.as_fd(), libc::SOL_UDP, libc::UDP_GRO, 1),
            merging,
            outbox: Outbox::new(1, 1),
            inbox: Inbox::new(MESSAGES),
            arena: vec![0; MESSAGES * MOST_OCTETS],
        })
    }

    /// Sending trains, and receiving them.
    fn run(&mut self) -> (Standing, Standing) {
        if let Err(Trouble::Elsewhere(why) | Trouble::Wrong(why)) = self.pass(false, (100, 1, 0)) {
            return (untested(&why), untested(&why));
        }
        let gso = self.all(false);
        let gro = match (&self.gro, gso.is_used()) {
            (Err(e), _) => Standing::Refused(format!("UDP_GRO: {e}")),
            (Ok(()), false) => untested(&"there are no trains to try it with"),
            (Ok(()), true) => self.all(true),
        };
        (gso, gro)
    }

    fn all(&mut self, merged: bool) -> Standing {
        for train in TRAINS {
            match self.pass(merged, train) {
                Ok(()) => {}
                Err(Trouble::Elsewhere(why)) => return untested(&why),
                Err(Trouble::Wrong(why)) => {
                    let (size, count, last) = train;
                    let sort = if merged { "merging" } else { "cutting" };
                    return Standing::Refused(format!(
                        "self-test of {sort}: {count} datagrams of {size} octets and one of {last}: {why}"
                    ));
                }
            }
        }
        Standing::On
    }

    /// Sends one train; a second time if too little of it came, because datagrams may be lost.
    fn pass(&mut self, merged: bool, (size, count, last): (usize, usize, usize)) -> Result<(), Trouble> {
        let whole = content(size * count + last);
        let mut got = Vec::new();
        for _ in 0..2 {
            self.empty(merged);
            self.send(merged, &whole, size)?;
            got = self.receive(merged, whole.len());
            if got.iter().map(Vec::len).sum::<usize>() >= whole.len() {
                break;
            }
        }
        compare(&whole, size, &got).map_err(Trouble::Wrong)
    }

    fn send(&mut self, merged: bool, whole: &[u8], size: usize) -> Result<(), Trouble> {
        let to = if merged { &self.merging } else { &self.single };
        let Ok(SocketAddr::V4(to)) = to.local_addr() else {
            return Err(Trouble::Elsewhere("a socket has no address".to_owned()));
        };
        let segment = if whole.len() > size { size as u16 } else { 0 };
        let from = Ipv4Addr::LOCALHOST;
        let message = Outgoing { to, from, tos: 0, segment, first_part: 0, parts: 1 };
        let part = Part { in_headers: false, start: 0, len: whole.len() as u32 };
        match self.outbox.send(self.sender.as_fd(), &[message], &[part], (whole, &[])) {
            Ok(_) => Ok(()),
            Err(e) if segment != 0 && is_refusal(&e) => Err(Trouble::Wrong(e.to_string())),
            Err(e) => Err(Trouble::Elsewhere(e.to_string())),
        }
    }

    /// The datagrams that came, merged ones cut; waits until there are `octets` of them or patience ends.
    fn receive(&mut self, merged: bool, octets: usize) -> Vec<Vec<u8>> {
        let (mut all, mut so_far) = (Vec::new(), 0);
        let began = Instant::now();
        while so_far < octets && began.elapsed() < PATIENCE {
            let here = self.take(merged);
            if here.is_empty() {
                std::thread::sleep(GLANCE);
            }
            so_far += here.iter().map(Vec::len).sum::<usize>();
            all.extend(here);
        }
        all
    }

    fn take(&mut self, merged: bool) -> Vec<Vec<u8>> {
        let socket = if merged { &self.merging } else { &self.single };
        let place = (0, MOST_OCTETS, MOST_OCTETS);
        let got = self.inbox.receive(socket.as_fd(), &mut self.arena, MESSAGES, place).unwrap_or(0);
        let mut all = Vec::new();
        for n in 0..got {
            let Received { len, merged, .. } = self.inbox.message(n);
            let bytes = &self.arena[n * MOST_OCTETS..][..len.min(MOST_OCTETS)];
            let size = merged.map_or(len.max(1), usize::from);
            all.extend(bytes.chunks(size).map(<[u8]>::to_vec));
        }
        all
    }

    /// What a first try has left behind, or a stranger has sent.
    fn empty(&mut self, merged: bool) {
        for _ in 0..MESSAGES {
            if self.take(merged).is_empty() {
                return;
            }
        }
    }
}

fn is_refusal(error: &io::Error) -> bool {
    let all = [libc::EINVAL, libc::EIO, libc::EMSGSIZE, libc::EOPNOTSUPP, libc::ENOPROTOOPT];
    error.raw_os_error().is_some_and(|e| all.contains(&e))
}

/// No two places of it look alike.
fn content(len: usize) -> Vec<u8> {
    (0..len as u32).map(|n| (n.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect()
}

fn compare(whole: &[u8], size: usize, got: &[Vec<u8>]) -> Result<(), String> {
    let wanted: Vec<_> = whole.chunks(size).collect();
    if let Some(n) = wanted.iter().zip(got).position(|(wanted, got)| wanted != got) {
        return Err(format!("datagram {} of {} came otherwise than it was sent", n + 1, wanted.len()));
    }
    if wanted.len() != got.len() {
        return Err(format!("{} of {} datagrams came", got.len(), wanted.len()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::knobs::Knobs;

    #[test]
    fn this_kernel_is_tested_in_no_time() {
        let began = Instant::now();
        let mut standings = Standings::wanted(Knobs::ON);
        udp(&mut standings);
        let took = began.elapsed();
        for knob in [Knob::UdpGso, Knob::UdpGro] {
            // A kernel that fails is not this test's business, but then the reason names the train.
            let told = match standings.of(knob) {
                Standing::On => true,
                Standing::Refused(why) | Standing::Untested(why) => !why.is_empty(),
                Standing::Off => false,
            };
            assert!(told, "{standings:?}");
        }
        assert!(took < Duration::from_secs(1), "{took:?}");
    }

    #[test]
    fn what_is_off_is_not_tried() {
        let mut standings = Standings::wanted(Knobs::OFF);
        udp(&mut standings);
        assert_eq!(standings, Standings::wanted(Knobs::OFF));
    }

    /// RFC: R4 (Linux before 5.12)
    #[test]
    fn a_damaged_or_missing_tail_is_found() {
        let whole = content(300);
        let sent: Vec<_> = whole.chunks(100).map(<[u8]>::to_vec).collect();
        assert_eq!(compare(&whole, 100, &sent), Ok(()));
        assert!(compare(&whole, 100, &sent[..2]).is_err_and(|why| why.contains("2 of 3")));
        assert!(compare(&whole, 150, &sent).is_err_and(|why| why.contains("datagram 1 of 2")));
        let mut damaged = sent.clone();
        damaged[2][99] ^= 1;
        assert!(compare(&whole, 100, &damaged).is_err_and(|why| why.contains("datagram 3 of 3")));
        let doubled = [sent.clone(), vec![sent[2].clone()]].concat();
        assert!(compare(&whole, 100, &doubled).is_err());
    }

    #[test]
    fn a_socket_that_cannot_send_trains_is_found_out() {
        let mut bench = Bench::open().unwrap();
        // Without checksums the kernel cuts nothing: EINVAL.
        set_option(bench.sender.as_fd(), libc::SOL_SOCKET, libc::SO_NO_CHECK, 1).unwrap();
        let (gso, gro) = bench.run();
        assert!(matches!(&gso, Standing::Refused(why) if why.contains("Invalid argument")), "{gso:?}");
        assert!(matches!(gro, Standing::Untested(_)), "{gro:?}");
    }

    #[test]
    fn what_cannot_be_tried_stays_on() {
        let mut bench = Bench::open().unwrap();
        // Everything sent ends at a socket that nobody reads.
        bench.single = UdpSocket::bind("127.0.0.1:0").unwrap();
        bench.single.set_nonblocking(true).unwrap();
        bench.single.connect("127.0.0.1:1").unwrap();
        let (gso, gro) = bench.run();
        assert!(gso.is_used() && gro.is_used(), "{gso:?} {gro:?}");
        assert!(matches!(gso, Standing::Untested(why) if why.contains("loopback")));
    }
}
