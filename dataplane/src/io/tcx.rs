//! A small eBPF program on the loopback device that sends protocol-41 super-packets on their way whole.
//!
//! No socket can send them: `virtio_net_hdr` has no way to say "TCP in IPv6 in IPv4", and a packet of that shape without
//! the mark is refused by segmentation. The program takes frames that a packet socket sends to the loopback device, lifts the
//! outer IPv4 header off and puts it on again with `bpf_skb_adjust_room`, which makes the mark (SKB_GSO_IPXIP4), and
//! hands the packet to the interface that the frame names, where the kernel finds the next hop's link address
//! (`bpf_redirect_neigh`) and cuts segments as late as it can. One attachment serves every outer interface, also those that
//! appear after rights were given up. Frames that do not begin with this instance's secret pass untouched. Knows no route
//! and no tunnel; needs CAP_BPF and CAP_NET_ADMIN at the start and a kernel of 6.6 or later.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

use super::sys;
use crate::table::index::Seed;

/// Octets of the link header of a frame: the secret, the interface's number, the EtherType.
pub const LINK_HEADER: usize = 14;
/// Octets of the outer IPv4 header.
pub const OUTER_HEADER: usize = 20;
/// The loopback device's number in every network namespace.
pub const LOOPBACK: u32 = 1;

/// Counters of Identifications, shared by hash as the kernel shares its own.
const COUNTERS: usize = 4096;
/// What the kernel is told of the program's licence. It calls no function that is for GPL programs only.
const LICENCE: &std::ffi::CStr = c"MIT OR Apache-2.0";

/// The program, attached; detached when the last clone is dropped or the process ends.
#[derive(Clone, Debug)]
pub struct Forwarding {
    program: Arc<OwnedFd>,
    /// Looked at about once a second, never for a packet.
    link: Arc<Mutex<OwnedFd>>,
    secret: [u8; 8],
    identifications: Arc<[AtomicU16]>,
    seed: Seed,
}

impl Forwarding {
    /// Loads and attaches the program in the network namespace of the calling thread.
    pub fn attach(seed: u64) -> io::Result<Self> {
        let secret = secret(seed);
        let program = sys::load_program("sixway_proto41", &program(secret), LICENCE)?;
        let link = sys::attach_egress(program.as_fd(), LOOPBACK)?;
        let seed = Seed(seed);
        Ok(Self {
            program: Arc::new(program),
            link: Arc::new(Mutex::new(link)),
            secret,
            identifications: counters(seed),
            seed,
        })
    }

    /// Whether the program is still where it was attached: an administrator may detach it.
    pub fn is_attached(&self) -> bool {
        let link = self.link.lock();
        link.is_ok_and(|link| sys::attached_to(link.as_fd()).is_ok_and(|interface| interface == LOOPBACK))
    }

    /// Attaches the program once more, in the network namespace of the calling thread, unless another worker has done so.
    pub fn attach_again(&self) -> io::Result<()> {
        if !self.is_attached() {
            let new = sys::attach_egress(self.program.as_fd(), LOOPBACK)?;
            let mut link = self.link.lock().map_err(|_| io::ErrorKind::Other)?;
            *link = new;
        }
        Ok(())
    }

    /// Takes the Identifications of so many segments from `source` to `peer`: they may be fragmented on their way, so all
    /// workers count as one (RFC 791 section 3.2, RFC 6864 section 4; the kernel counts up from it when it cuts). A busy peer
    /// does not use up another one's numbers, unless they share a counter.
    pub fn identify(&self, source: Ipv4Addr, peer: Ipv4Addr, segments: usize) -> u16 {
        identify(&self.identifications, self.seed, (source, peer), segments)
    }

    /// The link header of a frame that shall leave by `interface`.
    pub fn link_header(&self, interface: u32) -> [u8; LINK_HEADER] {
        link_header(self.secret, interface)
    }
}

/// Counters for pairs of addresses, each from a number of its own: far from where the kernel's and other instances' are
/// likely to be.
fn counters(seed: Seed) -> Arc<[AtomicU16]> {
    (0..COUNTERS).map(|n| AtomicU16::new(seed.hash(u128::MAX - n as u128) as u16)).collect()
}

fn identify(all: &[AtomicU16], seed: Seed, (source, peer): (Ipv4Addr, Ipv4Addr), segments: usize) -> u16 {
    let pair = u128::from(u32::from(source)) << 32 | u128::from(u32::from(peer));
    let counter = &all[seed.hash(pair) as usize % COUNTERS];
    counter.fetch_add(segments as u16, Ordering::Relaxed)
}

fn secret(seed: u64) -> [u8; 8] {
    let mut secret = seed.to_be_bytes();
    // It stands where a link address does: a group address would be dropped.
    secret[0] &= 0xfe;
    secret
}

fn link_header(secret: [u8; 8], interface: u32) -> [u8; LINK_HEADER] {
    let mut out = [0; LINK_HEADER];
    out[..8].copy_from_slice(&secret);
    out[8..12].copy_from_slice(&interface.to_ne_bytes());
    out[12..].copy_from_slice(&[0x08, 0x00]);
    out
}

// ---- the program ----

#[derive(Clone, Copy)]
struct Register(u8);

const R0: Register = Register(0);
const R1: Register = Register(1);
const R2: Register = Register(2);
const R3: Register = Register(3);
const R4: Register = Register(4);
const R5: Register = Register(5);
/// The packet's context, kept over calls.
const CONTEXT: Register = Register(6);
/// The interface to leave by.
const INTERFACE: Register = Register(7);
const FRAME: Register = Register(10);

const LOAD_WORD: u8 = 0x61;
const LOAD_DOUBLE: u8 = 0x79;
const LOAD_CONSTANT: u8 = 0x18;
const MOVE: u8 = 0xbf;
const MOVE_CONSTANT: u8 = 0xb7;
const ADD_CONSTANT: u8 = 0x07;
const JUMP_NOT_EQUAL: u8 = 0x5d;
const JUMP_NOT_CONSTANT: u8 = 0x55;
const JUMP_CONSTANT: u8 = 0x15;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

/// Offsets in `struct __sk_buff`.
const PROTOCOL: i16 = 16;
const GSO_SIZE: i16 = 176;

const STORE_BYTES: i32 = 9;
const LOAD_BYTES: i32 = 26;
const ADJUST_ROOM: i32 = 50;
const REDIRECT_NEIGH: i32 = 152;

/// BPF_ADJ_ROOM_MAC: directly behind the link header.
const BEHIND_LINK: i32 = 1;
const FIXED_GSO: i32 = 1;
const ENCAPSULATE_IPV4: i32 = 1 << 1;
const DECAPSULATE_IPV6: i32 = 1 << 8;

const TCX_NEXT: i32 = -1;
const TCX_DROP: i32 = 2;

/// Where on the stack the copy of link and outer header lies.
const COPY: i16 = -40;

fn encode(code: u8, to: Register, from: Register, offset: i16, constant: i32) -> u64 {
    let registers = to.0 | from.0 << 4;
    u64::from(code)
        | u64::from(registers) << 8
        | u64::from(offset.cast_unsigned()) << 16
        | u64::from(constant.cast_unsigned()) << 32
}

/// Instructions with jumps to places that are named later.
#[derive(Default)]
struct Assembler {
    code: Vec<u64>,
    /// Which instruction jumps to which label.
    jumps: Vec<(usize, Label)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Label {
    Next,
    Drop,
    Send,
}

impl Assembler {
    fn put(&mut self, code: u8, to: Register, from: Register, offset: i16, constant: i32) {
        self.code.push(encode(code, to, from, offset, constant));
    }

    fn load(&mut self, code: u8, to: Register, from: Register, offset: i16) {
        self.put(code, to, from, offset, 0);
    }

    fn copy(&mut self, to: Register, from: Register) {
        self.put(MOVE, to, from, 0, 0);
    }

    fn set(&mut self, to: Register, constant: i32) {
        self.put(MOVE_CONSTANT, to, R0, 0, constant);
    }

    fn set_wide(&mut self, to: Register, constant: u64) {
        self.put(LOAD_CONSTANT, to, R0, 0, (constant as u32).cast_signed());
        self.put(0, R0, R0, 0, ((constant >> 32) as u32).cast_signed());
    }

    fn jump(&mut self, code: u8, left: Register, right: Register, constant: i32, label: Label) {
        self.jumps.push((self.code.len(), label));
        self.put(code, left, right, 0, constant);
    }

    fn call(&mut self, function: i32) {
        self.put(CALL, R0, R0, 0, function);
    }

    fn stack(&mut self, to: Register, at: i16) {
        self.copy(to, FRAME);
        self.put(ADD_CONSTANT, to, R0, 0, i32::from(at));
    }

    fn exit(&mut self) {
        self.put(EXIT, R0, R0, 0, 0);
    }

    /// Jumps to `label` lead here.
    fn land(&mut self, label: Label) {
        let here = self.code.len();
        for (from, _) in self.jumps.iter().filter(|(_, to)| *to == label) {
            let distance = (here - from - 1) as u16;
            self.code[*from] |= u64::from(distance) << 16;
        }
    }
}

fn program(secret: [u8; 8]) -> Vec<u64> {
    let mut a = Assembler::default();
    a.copy(CONTEXT, R1);
    read_headers(&mut a, secret);
    a.load(LOAD_WORD, INTERFACE, FRAME, COPY + 8);
    a.load(LOAD_WORD, R1, CONTEXT, GSO_SIZE);
    a.jump(JUMP_CONSTANT, R1, R0, 0, Label::Send);
    adjust(&mut a, -(OUTER_HEADER as i32), DECAPSULATE_IPV6);
    adjust(&mut a, OUTER_HEADER as i32, ENCAPSULATE_IPV4);
    write_outer_header(&mut a);
    a.land(Label::Send);
    send(&mut a);
    a.land(Label::Next);
    a.set(R0, TCX_NEXT);
    a.exit();
    a.land(Label::Drop);
    a.set(R0, TCX_DROP);
    a.exit();
    a.code
}

/// Link and outer header to the stack; frames that are not ours go on as they were.
fn read_headers(a: &mut Assembler, secret: [u8; 8]) {
    a.load(LOAD_WORD, R2, CONTEXT, PROTOCOL);
    a.jump(JUMP_NOT_CONSTANT, R2, R0, i32::from(0x0800u16.to_be()), Label::Next);
    a.copy(R1, CONTEXT);
    a.set(R2, 0);
    a.stack(R3, COPY);
    a.set(R4, (LINK_HEADER + OUTER_HEADER) as i32);
    a.call(LOAD_BYTES);
    a.jump(JUMP_NOT_CONSTANT, R0, R0, 0, Label::Next);
    a.load(LOAD_DOUBLE, R1, FRAME, COPY);
    a.set_wide(R2, u64::from_ne_bytes(secret));
    a.jump(JUMP_NOT_EQUAL, R1, R2, 0, Label::Next);
}

fn adjust(a: &mut Assembler, by: i32, what: i32) {
    a.copy(R1, CONTEXT);
    a.set(R2, by);
    a.set(R3, BEHIND_LINK);
    a.set(R4, FIXED_GSO | what);
    a.call(ADJUST_ROOM);
    a.jump(JUMP_NOT_CONSTANT, R0, R0, 0, Label::Drop);
}

fn write_outer_header(a: &mut Assembler) {
    a.copy(R1, CONTEXT);
    a.set(R2, LINK_HEADER as i32);
    a.stack(R3, COPY + LINK_HEADER as i16);
    a.set(R4, OUTER_HEADER as i32);
    a.set(R5, 0);
    a.call(STORE_BYTES);
    a.jump(JUMP_NOT_CONSTANT, R0, R0, 0, Label::Drop);
}

fn send(a: &mut Assembler) {
    a.copy(R1, INTERFACE);
    a.set(R2, 0);
    a.set(R3, 0);
    a.set(R4, 0);
    a.call(REDIRECT_NEIGH);
    a.exit();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC: E7 (RFC 6864 section 4)
    #[test]
    fn every_pair_of_addresses_counts_by_itself() {
        let seed = Seed(7);
        let all = counters(seed);
        let (us, peer) = (Ipv4Addr::new(192, 0, 2, 1), |n| Ipv4Addr::new(198, 51, 100, n));
        let take = |n: u8, segments| identify(&all, seed, (us, peer(n)), segments);
        let first = take(1, 40);
        let others: Vec<u16> = (2..50).map(|n| take(n, 60_000)).collect();
        assert_eq!(take(1, 3), first.wrapping_add(40), "the others have used up none of its numbers");
        assert_eq!(take(1, 1), first.wrapping_add(43));
        assert!(others.windows(2).any(|pair| pair[0] != pair[1]), "they begin apart");
    }

    #[test]
    fn instructions_are_encoded_as_the_kernel_reads_them() {
        // From the instruction set's specification (RFC 9669): r1 = *(u32 *)(r6 + 16), and a jump over one instruction.
        assert_eq!(encode(LOAD_WORD, R1, CONTEXT, 16, 0).to_le_bytes(), [0x61, 0x61, 16, 0, 0, 0, 0, 0]);
        let mut a = Assembler::default();
        a.jump(JUMP_CONSTANT, R1, R0, -2, Label::Next);
        a.exit();
        a.land(Label::Next);
        assert_eq!(a.code[0].to_le_bytes(), [0x15, 0x01, 1, 0, 0xfe, 0xff, 0xff, 0xff]);
    }

    #[test]
    fn the_interface_stands_behind_the_secret() {
        let header = link_header(secret(u64::MAX), 0x0102_0304);
        assert_eq!(header[..8], [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(header[8..12], 0x0102_0304u32.to_ne_bytes());
    }
}
