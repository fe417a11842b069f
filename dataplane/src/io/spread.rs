//! Which worker gets what a sender sends: a rule of our own, as a classic BPF program for the kernel and as a function.
//!
//! The kernel's own choice among SO_REUSEPORT sockets hashes with a secret and changes with the number of sockets. This
//! rule depends on the sender's address and port and the number of workers alone, so a sender stays with its worker
//! when sockets are opened anew, and all that one peer sends stays in order. Refuses to know what is in the datagrams.

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::BorrowedFd;

use super::sys::{Instruction, attach_reuseport};

/// Who chooses the worker of a sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// [`worker_of`], by the sender's address and port.
    BySender,
    /// The kernel, by a hash of its own: it takes no program.
    ByKernel,
}

impl Spread {
    /// For status output.
    pub fn name(self) -> &'static str {
        match self {
            Self::BySender => "sender",
            Self::ByKernel => "kernel",
        }
    }

    /// Tries the program on a socket that nobody can reach: it is not bound.
    pub fn granted() -> Self {
        let probe = || -> io::Result<()> {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
            socket.set_reuse_port(true)?;
            attach(std::os::fd::AsFd::as_fd(&socket), 1)
        };
        if probe().is_ok() { Self::BySender } else { Self::ByKernel }
    }
}

/// Gives the group of `fd` the rule for `workers` sockets; socket `n` of the group is the one that was bound as number `n`.
pub fn attach(fd: BorrowedFd<'_>, workers: usize) -> io::Result<()> {
    let workers = u32::try_from(workers.max(1)).map_err(|_| io::ErrorKind::InvalidInput)?;
    attach_reuseport(fd, &program(workers))
}

/// The worker that gets the datagrams of `sender`: its number below `workers`.
pub fn worker_of(sender: SocketAddrV4, workers: u32) -> u32 {
    let sum = u32::from(*sender.ip()).wrapping_mul(ADDRESS).wrapping_add(u32::from(sender.port()));
    let mixed = sum.wrapping_mul(PORT);
    // Low bits of a product depend on low bits alone: the high ones are folded in, and used.
    ((mixed ^ mixed >> 15).wrapping_mul(LAST) >> 16) % workers.max(1)
}

/// Odd numbers without a pattern (the golden ratio's, and those of murmur3's finaliser).
const ADDRESS: u32 = 0x9e37_79b1;
const PORT: u32 = 0x85eb_ca6b;
const LAST: u32 = 0xc2b2_ae35;

/// SKF_NET_OFF: offsets from here count from the IPv4 header. The program itself is run behind the UDP header.
const NETWORK: u32 = 0xfff0_0000;
const SOURCE: u32 = NETWORK + 12;

const LOAD_WORD: u16 = 0x20;
const LOAD_HALF_AT_X: u16 = 0x48;
const LOAD_X_HEADER: u16 = 0xb1;
const LOAD_X_MEMORY: u16 = 0x61;
const STORE: u16 = 0x02;
const A_TO_X: u16 = 0x07;
const ADD_X: u16 = 0x0c;
const XOR_X: u16 = 0xac;
const MULTIPLY: u16 = 0x24;
const SHIFT_RIGHT: u16 = 0x74;
const MODULO: u16 = 0x94;
const RETURN_A: u16 = 0x16;

/// [`worker_of`] in classic BPF.
fn program(workers: u32) -> [Instruction; 15] {
    let op = |code, k| Instruction { code, jt: 0, jf: 0, k };
    [
        op(LOAD_WORD, SOURCE),
        op(MULTIPLY, ADDRESS),
        op(STORE, 0),
        // X = length of the IPv4 header, which may have options; the source port follows it.
        op(LOAD_X_HEADER, NETWORK),
        op(LOAD_HALF_AT_X, NETWORK),
        op(LOAD_X_MEMORY, 0),
        op(ADD_X, 0),
        op(MULTIPLY, PORT),
        op(A_TO_X, 0),
        op(SHIFT_RIGHT, 15),
        op(XOR_X, 0),
        op(MULTIPLY, LAST),
        op(SHIFT_RIGHT, 16),
        op(MODULO, workers),
        op(RETURN_A, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn senders_that_differ_by_port_or_by_address_alone_are_spread_evenly() {
        let at = |addr: u32, port| SocketAddrV4::new(addr.into(), port);
        for workers in [2, 3, 4, 8] {
            let (mut by_port, mut by_addr) = (vec![0u32; 8], vec![0u32; 8]);
            for n in 0..8000u16 {
                by_port[worker_of(at(0x0a47_0002, 1024 + n), workers) as usize] += 1;
                by_addr[worker_of(at(0x0a80_0000 + u32::from(n), 3653), workers) as usize] += 1;
            }
            let fair = 8000 / workers;
            for count in by_port.iter().chain(&by_addr).filter(|c| **c > 0) {
                assert!(count.abs_diff(fair) < fair / 5, "{workers} workers: {by_port:?} {by_addr:?}");
            }
            assert_eq!(by_port.iter().filter(|c| **c > 0).count(), workers as usize);
        }
    }

    /// RFC: T3 (RFC 8085)
    #[test]
    fn a_sender_stays_where_it_is() {
        // Fixed for ever: a version that answers otherwise moves senders to other workers.
        let alice: SocketAddrV4 = "10.71.0.2:5555".parse().unwrap();
        assert_eq!([1, 2, 3, 4].map(|n| worker_of(alice, n)), [0, 0, 0, 2]);
    }
}
