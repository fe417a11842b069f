//! Every system call that no safe library offers: batches of messages with control data, and a few socket options.
//!
//! The one room where `unsafe` is allowed. Each function here is small, takes and returns safe types, and
//! checks its ranges before the kernel sees a pointer. Knows nothing of tunnels or verdicts.
#![expect(
    unsafe_code,
    reason = "recvmmsg, sendmmsg and socket options with control data have no safe wrapper"
)]

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Room for the control data of one message: packet info, type of service, segment size, overflow count.
const CONTROL: usize = 160;

#[derive(Clone, Copy)]
#[repr(align(8))]
struct Control([u8; CONTROL]);

/// Who sent a received message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// An IPv4 socket address.
    Inet(SocketAddrV4),
    /// A link-layer source (packet sockets).
    Link {
        /// ARPHRD_ type of the device.
        hatype: u16,
        /// PACKET_ type: to us, to somebody else, ...
        pkttype: u8,
    },
    /// Something else.
    Other,
}

/// What is known of a received message.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// Octets in its buffer.
    pub len: usize,
    /// It was longer than its buffer.
    pub truncated: bool,
    /// Its sender.
    pub name: Name,
    /// Outer type of service.
    pub tos: u8,
    /// The local address it came to.
    pub local: Option<Ipv4Addr>,
    /// Octets of each datagram when the kernel merged several.
    pub merged: Option<u16>,
    /// Packets lost by this socket so far, as far as the kernel said.
    pub lost: Option<u32>,
}

/// What is known of a message that an IPv6 socket has received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received6 {
    /// Octets in its buffer.
    pub len: usize,
    /// Its sender.
    pub from: SocketAddrV6,
    /// The address it came to, if the kernel was asked for it.
    pub to: Option<Ipv6Addr>,
    /// Octets of each datagram when the kernel merged several.
    pub merged: Option<u16>,
}

/// Receives many messages in one call, each into its own stretch of an arena.
pub struct Inbox {
    headers: Box<[libc::mmsghdr]>,
    iovecs: Box<[libc::iovec]>,
    names: Box<[libc::sockaddr_storage]>,
    controls: Box<[Control]>,
}

// SAFETY: the raw pointers inside are written anew by each `receive` from buffers that this struct owns (or borrows for
// the length of the call); between calls they are never read. Nothing in it is tied to a thread.
unsafe impl Send for Inbox {}

impl Inbox {
    /// For up to `most` messages a call.
    pub fn new(most: usize) -> Self {
        // SAFETY: all four are plain C structs for which all-zero is a valid value.
        let (header, iovec, name) = unsafe { (std::mem::zeroed(), std::mem::zeroed(), std::mem::zeroed()) };
        Self {
            headers: vec![header; most].into(),
            iovecs: vec![iovec; most].into(),
            names: vec![name; most].into(),
            controls: vec![Control([0; CONTROL]); most].into(),
        }
    }

    /// Receives up to `most` messages without waiting; message `n` goes to `arena[start + n * stride ..][.. len]`.
    /// Returns how many came; an empty queue is `WouldBlock`.
    pub fn receive(
        &mut self,
        fd: BorrowedFd<'_>,
        arena: &mut [u8],
        most: usize,
        (start, stride, len): (usize, usize, usize),
    ) -> io::Result<usize> {
        let most = most.min(self.headers.len());
        assert!(len <= stride && start + most.saturating_sub(1) * stride + len <= arena.len());
        for n in 0..most {
            let buffer = &mut arena[start + n * stride..][..len];
            self.iovecs[n] = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: len };
            let header = &mut self.headers[n].msg_hdr;
            header.msg_name = (&raw mut self.names[n]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_storage>() as u32;
            header.msg_iov = &raw mut self.iovecs[n];
            header.msg_iovlen = 1;
            header.msg_control = self.controls[n].0.as_mut_ptr().cast();
            header.msg_controllen = CONTROL;
            header.msg_flags = 0;
        }
        // SAFETY: the first `most` headers point to names, vectors and control buffers owned by `self`, and to disjoint
        // stretches of `arena`, all of them alive and exclusively borrowed during the call.
        let got = unsafe {
            let wait = std::ptr::null_mut();
            libc::recvmmsg(fd.as_raw_fd(), self.headers.as_mut_ptr(), most as u32, libc::MSG_DONTWAIT, wait)
        };
        usize::try_from(got).map_err(|_| io::Error::last_os_error())
    }

    /// What is known of message `n` of the last call.
    pub fn message(&self, n: usize) -> Received {
        let header = &self.headers[n];
        let mut got = Received {
            len: header.msg_len as usize,
            truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
            name: self.name(n),
            tos: 0,
            local: None,
            merged: None,
            lost: None,
        };
        self.read_control(n, &mut got);
        got
    }

    /// What is known of message `n` of the last call, on an IPv6 socket; `None`: it came from no IPv6 address, or was cut off.
    pub fn message6(&self, n: usize) -> Option<Received6> {
        let header = &self.headers[n];
        let storage = &self.names[n];
        if i32::from(storage.ss_family) != libc::AF_INET6 || header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0 {
            return None;
        }
        // SAFETY: the kernel says that this storage, which is large enough and aligned, holds a sockaddr_in6.
        let a = unsafe { &*(&raw const *storage).cast::<libc::sockaddr_in6>() };
        let from = SocketAddrV6::new(
            Ipv6Addr::from(a.sin6_addr.s6_addr),
            u16::from_be(a.sin6_port),
            a.sin6_flowinfo,
            a.sin6_scope_id,
        );
        let mut got = Received6 { len: header.msg_len as usize, from, to: None, merged: None };
        self.each_control(n, |level, kind, data| {
            // SAFETY: `each_control` passes the data of an item of this level and type, which is as long as its type says.
            unsafe {
                match (level, kind) {
                    (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                        let info: libc::in6_pktinfo = data.cast::<libc::in6_pktinfo>().read_unaligned();
                        got.to = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr));
                    }
                    (libc::SOL_UDP, libc::UDP_GRO) => got.merged = segment_size(data),
                    _ => {}
                }
            }
        });
        Some(got)
    }

    fn name(&self, n: usize) -> Name {
        let storage = &self.names[n];
        match i32::from(storage.ss_family) {
            libc::AF_INET => {
                // SAFETY: the kernel says that this storage, which is large enough and aligned, holds a sockaddr_in.
                let a = unsafe { &*(&raw const *storage).cast::<libc::sockaddr_in>() };
                Name::Inet(SocketAddrV4::new(
                    Ipv4Addr::from(u32::from_be(a.sin_addr.s_addr)),
                    u16::from_be(a.sin_port),
                ))
            }
            libc::AF_PACKET => {
                // SAFETY: the same for a sockaddr_ll.
                let a = unsafe { &*(&raw const *storage).cast::<libc::sockaddr_ll>() };
                Name::Link { hatype: a.sll_hatype, pkttype: a.sll_pkttype }
            }
            _ => Name::Other,
        }
    }

    fn read_control(&self, n: usize, got: &mut Received) {
        self.each_control(n, |level, kind, data| {
            // SAFETY: `each_control` passes the data of an item of this level and type, which is as long as its type says.
            unsafe {
                match (level, kind) {
                    (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                        let info: libc::in_pktinfo = data.cast::<libc::in_pktinfo>().read_unaligned();
                        got.local = Some(Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr)));
                    }
                    (libc::IPPROTO_IP, libc::IP_TOS) => got.tos = data.read(),
                    (libc::SOL_UDP, libc::UDP_GRO) => got.merged = segment_size(data),
                    (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) => {
                        got.lost = Some(data.cast::<u32>().read_unaligned())
                    }
                    _ => {}
                }
            }
        });
    }

    /// Level, type and value of each item of control data that came with message `n`. The value is there for the length of
    /// the call, as long as its type says, and may be unaligned.
    #[inline]
    fn each_control(&self, n: usize, mut item: impl FnMut(i32, i32, *const u8)) {
        let header = &raw const self.headers[n].msg_hdr;
        // SAFETY: the kernel has filled the control buffer of message `n` and set its length; CMSG_* stay within it.
        unsafe {
            let mut at = libc::CMSG_FIRSTHDR(header);
            while !at.is_null() {
                item((*at).cmsg_level, (*at).cmsg_type, libc::CMSG_DATA(at).cast_const());
                at = libc::CMSG_NXTHDR(header, at);
            }
        }
    }
}

/// # Safety
///
/// `data` must be the value of a UDP_GRO item, an `int`.
unsafe fn segment_size(data: *const u8) -> Option<u16> {
    // SAFETY: the caller's promise.
    let size = unsafe { data.cast::<libc::c_int>().read_unaligned() };
    u16::try_from(size).ok().filter(|size| *size > 0)
}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Inbox({})", self.headers.len())
    }
}

/// A stretch of one of the two buffers that messages are gathered from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Whether it lies in the header buffer, not in the arena.
    pub in_headers: bool,
    /// Its first octet.
    pub start: u32,
    /// Its octets.
    pub len: u32,
}

/// One message to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// Where to.
    pub to: SocketAddrV4,
    /// Source address; unspecified lets the kernel choose.
    pub from: Ipv4Addr,
    /// Outer type of service.
    pub tos: u8,
    /// The kernel shall cut it into datagrams of this many octets; 0: it is one.
    pub segment: u16,
    /// First of its parts in the list.
    pub first_part: u32,
    /// How many parts.
    pub parts: u32,
}

/// Sends many messages in one call, each gathered from parts.
#[derive(Default)]
pub struct Outbox {
    headers: Vec<libc::mmsghdr>,
    iovecs: Vec<libc::iovec>,
    names: Vec<libc::sockaddr_in>,
    controls: Vec<Control>,
}

// SAFETY: as for `Inbox`: the pointers are written and read within one call of `send` only.
unsafe impl Send for Outbox {}

impl Outbox {
    /// For up to `messages` messages of `parts` parts in all a call.
    pub fn new(messages: usize, parts: usize) -> Self {
        Self {
            headers: Vec::with_capacity(messages),
            iovecs: Vec::with_capacity(parts),
            names: Vec::with_capacity(messages),
            controls: Vec::with_capacity(messages),
        }
    }

    /// Sends `messages` without waiting; their parts are `parts`, in `arena` and `headers`. Returns how many of them went
    /// out, or why the first did not.
    pub fn send(
        &mut self,
        fd: BorrowedFd<'_>,
        messages: &[Outgoing],
        parts: &[Part],
        (arena, headers): (&[u8], &[u8]),
    ) -> io::Result<usize> {
        self.gather(parts, arena, headers);
        self.address(messages);
        self.headers.clear();
        for (n, message) in messages.iter().enumerate() {
            let (first, count) = (message.first_part as usize, message.parts as usize);
            let iovecs = &mut self.iovecs[first..first + count];
            // SAFETY: all-zero is a valid mmsghdr.
            let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
            header.msg_hdr.msg_name = (&raw mut self.names[n]).cast();
            header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_in>() as u32;
            header.msg_hdr.msg_iov = iovecs.as_mut_ptr();
            header.msg_hdr.msg_iovlen = count;
            fill_control(&mut header.msg_hdr, &mut self.controls[n], message);
            self.headers.push(header);
        }
        // SAFETY: every header points to a name, vectors and control data owned by `self`, none of which moves before the call
        // returns; the vectors point into `arena` and `headers`, which are borrowed and only read by the kernel.
        let sent = unsafe {
            let count = self.headers.len() as u32;
            libc::sendmmsg(fd.as_raw_fd(), self.headers.as_mut_ptr(), count, libc::MSG_DONTWAIT)
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    fn gather(&mut self, parts: &[Part], arena: &[u8], headers: &[u8]) {
        self.iovecs.clear();
        self.iovecs.extend(parts.iter().map(|part| {
            let from = if part.in_headers { headers } else { arena };
            let bytes = &from[part.start as usize..][..part.len as usize];
            libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
        }));
    }

    fn address(&mut self, messages: &[Outgoing]) {
        self.names.clear();
        self.controls.clear();
        for message in messages {
            // SAFETY: all-zero is a valid sockaddr_in.
            let mut name: libc::sockaddr_in = unsafe { std::mem::zeroed() };
            name.sin_family = libc::AF_INET as u16;
            name.sin_port = message.to.port().to_be();
            name.sin_addr.s_addr = u32::from(*message.to.ip()).to_be();
            self.names.push(name);
            self.controls.push(Control([0; CONTROL]));
        }
    }
}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Outbox({})", self.headers.capacity())
    }
}

fn fill_control(header: &mut libc::msghdr, control: &mut Control, message: &Outgoing) {
    // struct in_pktinfo: interface index, source address (ipi_spec_dst), destination.
    let mut info = [0; 12];
    info[4..8].copy_from_slice(&message.from.octets());
    let (tos, segment) = (i32::from(message.tos).to_ne_bytes(), message.segment.to_ne_bytes());
    let from =
        Some((libc::IPPROTO_IP, libc::IP_PKTINFO, &info[..])).filter(|_| !message.from.is_unspecified());
    let tos = Some((libc::IPPROTO_IP, libc::IP_TOS, &tos[..])).filter(|_| message.tos != 0);
    let segment = Some(segment_of(&segment)).filter(|_| message.segment != 0);
    put_control(header, control, [from, tos, segment].into_iter().flatten());
}

/// Items of control data: level, type and value.
fn put_control<'a>(
    header: &mut libc::msghdr,
    control: &mut Control,
    items: impl IntoIterator<Item = (i32, i32, &'a [u8])>,
) {
    let mut used = 0;
    for (level, kind, data) in items {
        assert!(used + 16 + data.len().next_multiple_of(8) <= CONTROL);
        // SAFETY: `used` and the space of this item, 16 octets and its value, rounded up to 8, stay within CONTROL as was just
        // seen, and the buffer is aligned for cmsghdr.
        unsafe {
            let at = control.0.as_mut_ptr().add(used).cast::<libc::cmsghdr>();
            (*at).cmsg_level = level;
            (*at).cmsg_type = kind;
            (*at).cmsg_len = libc::CMSG_LEN(data.len() as u32) as _;
            std::ptr::copy_nonoverlapping(data.as_ptr(), libc::CMSG_DATA(at), data.len());
            used += libc::CMSG_SPACE(data.len() as u32) as usize;
        }
    }
    header.msg_controllen = used;
    header.msg_control = if used == 0 { std::ptr::null_mut() } else { control.0.as_mut_ptr().cast() };
}

/// Sets a socket option whose value is an `int`.
pub fn set_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: the pointer is to a live `int` of the length given.
    let done = unsafe {
        let at = (&raw const value).cast();
        libc::setsockopt(fd.as_raw_fd(), level, name, at, size_of::<i32>() as u32)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Reads a socket option whose value is an `int`.
pub fn option(fd: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<i32> {
    let mut value = 0i32;
    let mut len = size_of::<i32>() as u32;
    // SAFETY: both pointers are to live variables, and `len` says how large the first is.
    let done =
        unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut len) };
    if done == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

/// Ends the connection of a UDP socket, and with it the choice of its source address (connect(2), AF_UNSPEC).
pub fn disconnect(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: all-zero is a valid sockaddr, and its family is then AF_UNSPEC.
    let done = unsafe {
        let nobody: libc::sockaddr = std::mem::zeroed();
        libc::connect(fd.as_raw_fd(), &raw const nobody, size_of::<libc::sockaddr>() as u32)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// How many octets written to a TCP connection its other end has not acknowledged (SIOCOUTQ, tcp(7)).
pub fn unacknowledged(fd: BorrowedFd<'_>) -> io::Result<usize> {
    let mut octets = 0i32;
    // SAFETY: the request writes one `int`, to where the pointer leads.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ as _, &raw mut octets) };
    if done == 0 { Ok(usize::try_from(octets).unwrap_or(0)) } else { Err(io::Error::last_os_error()) }
}

/// One instruction of classic BPF.
pub type Instruction = libc::sock_filter;

/// Lets `program` choose which socket of the SO_REUSEPORT group of `fd` gets a datagram.
pub fn attach_reuseport(fd: BorrowedFd<'_>, program: &[Instruction]) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: the pointer is to a live sock_fprog of the length given, and that one's to `len` instructions, which the
    // kernel copies and does not write to.
    let done = unsafe {
        let (at, size) = ((&raw const program).cast(), size_of::<libc::sock_fprog>() as u32);
        libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF, at, size)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Binds a packet socket to one EtherType (0: it only sends) on one interface (0: all of them).
pub fn bind_packet(fd: BorrowedFd<'_>, ethertype: u16, interface: u32) -> io::Result<()> {
    // SAFETY: all-zero is a valid sockaddr_ll.
    let mut at: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    at.sll_family = libc::AF_PACKET as u16;
    at.sll_protocol = ethertype.to_be();
    at.sll_ifindex = interface.cast_signed();
    // SAFETY: the pointer is to a live sockaddr_ll of the length given.
    let done = unsafe {
        let len = size_of::<libc::sockaddr_ll>() as u32;
        libc::bind(fd.as_raw_fd(), (&raw const at).cast(), len)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Wishes for large pages where this memory lies, which has not been used yet (madvise(2)); too little of it stays as it is.
pub fn prefer_large_pages<T>(memory: &mut [MaybeUninit<T>]) {
    const LARGE: usize = 2 << 20;
    let range = memory.as_mut_ptr_range();
    let (first, last) = (range.start as usize, range.end as usize);
    let (start, end) = (first.next_multiple_of(LARGE), last & !(LARGE - 1));
    if start < end && !cfg!(miri) {
        // SAFETY: the range lies within memory that is exclusively borrowed, and the advice changes neither what is in it nor
        // whether it may be used. A system without large pages refuses; nothing depends on it.
        unsafe {
            libc::madvise(range.start.byte_add(start - first).cast(), end - start, libc::MADV_HUGEPAGE)
        };
    }
}

/// Tells a TUN device which super-packets it may hand over (TUN_F_ flags); device-wide.
pub fn set_tun_offload(fd: BorrowedFd<'_>, flags: u32) -> io::Result<()> {
    /// `_IOW('T', 208, unsigned int)`.
    const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
    // SAFETY: this request takes its argument by value; no pointer is involved.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETOFFLOAD as _, libc::c_ulong::from(flags)) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Octets of the largest packet on an interface of the network that the socket `fd` belongs to.
pub fn interface_mtu(fd: BorrowedFd<'_>, interface: u32) -> io::Result<u32> {
    // SAFETY: all-zero is a valid ifreq; both requests read and write only the ifreq that they are given, whose union then
    // holds the member that the request is about.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_ifru.ifru_ifindex = interface.cast_signed();
        for name in [libc::SIOCGIFNAME, libc::SIOCGIFMTU] {
            if libc::ioctl(fd.as_raw_fd(), name as _, &raw mut request) < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        u32::try_from(request.ifr_ifru.ifru_mtu).map_err(|_| io::ErrorKind::InvalidData.into())
    }
}

/// The start of `union bpf_attr` for BPF_PROG_LOAD (include/uapi/linux/bpf.h).
#[repr(C)]
struct ProgramToLoad {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

/// The same for BPF_LINK_CREATE.
#[repr(C)]
struct LinkToMake {
    program: u32,
    interface: u32,
    attach_type: u32,
    flags: u32,
    relative: u64,
    revision: u64,
}

/// BPF_TCX_EGRESS: before a packet leaves by an interface (kernel 6.6 and later).
const TCX_EGRESS: u32 = 47;

/// Loads an eBPF program for traffic control, given as encoded instructions.
pub fn load_program(name: &str, code: &[u64], license: &CStr) -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: libc::c_long = 5;
    const SCHED_CLS: u32 = 3;
    let mut short = [0; 16];
    short.iter_mut().zip(name.bytes().take(15)).for_each(|(to, from)| *to = from);
    let attr = ProgramToLoad {
        kind: SCHED_CLS,
        instructions: code.len() as u32,
        code: code.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: short,
        interface: 0,
        attach_type: TCX_EGRESS,
    };
    // SAFETY: `attr` lives through the call and has the length given; the pointers in it are to instructions and a string that
    // are borrowed for as long. The kernel verifies the program before it takes it.
    unsafe { bpf(BPF_PROG_LOAD, &attr) }
}

/// Lets packets that leave by `interface` pass through `program` until the returned link is closed.
pub fn attach_egress(program: BorrowedFd<'_>, interface: u32) -> io::Result<OwnedFd> {
    const BPF_LINK_CREATE: libc::c_long = 28;
    let attr = LinkToMake {
        program: program.as_raw_fd().cast_unsigned(),
        interface,
        attach_type: TCX_EGRESS,
        flags: 0,
        relative: 0,
        revision: 0,
    };
    // SAFETY: `attr` lives through the call, has the length given and holds no pointers.
    unsafe { bpf(BPF_LINK_CREATE, &attr) }
}

/// The interface that a link made by [`attach_egress`] hangs on; 0: somebody has detached it, or the interface is gone.
pub fn attached_to(link: BorrowedFd<'_>) -> io::Result<u32> {
    const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
    /// `struct bpf_link_info` up to `tcx`: type, number, program, padding, interface, attach type.
    #[repr(C)]
    struct About([u32; 6]);
    #[repr(C)]
    struct Question {
        link: u32,
        len: u32,
        answer: u64,
    }
    let mut about = About([0; 6]);
    let question = Question {
        link: link.as_raw_fd().cast_unsigned(),
        len: size_of::<About>() as u32,
        answer: (&raw mut about) as u64,
    };
    // SAFETY: `question` has the layout that the command reads and lives through the call; the kernel writes no more than `len`
    // octets to `answer`, which points to a live structure of that size that nobody else touches.
    let done = unsafe {
        let size = size_of::<Question>();
        libc::syscall(libc::SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, (&raw const question), size)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(std::hint::black_box(about).0[4]) }
}

/// # Safety
///
/// `attr` must be the C structure that `command`, which must return a new descriptor, expects, and its pointers valid.
unsafe fn bpf<T>(command: libc::c_long, attr: &T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise; a descriptor that is returned is new and ours alone.
    unsafe {
        let got = libc::syscall(libc::SYS_bpf, command, (&raw const *attr), size_of::<T>());
        if got < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(got as i32)) }
    }
}

/// A UDP datagram over IPv6 that is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Datagram<'a> {
    /// Where to.
    pub to: SocketAddrV6,
    /// Source address; without, the kernel chooses.
    pub from: Option<Ipv6Addr>,
    /// What it says.
    pub octets: &'a [u8],
}

/// Sends UDP datagrams over IPv6 in one call and without waiting. Those of one run, which are neighbours in the list, leave as
/// one message that the kernel cuts apart (UDP_SEGMENT): they have one source, one destination and one length, and only the last
/// may be shorter. `runs` says how many datagrams each has, none no datagram. Returns how many runs went out, or why the first did not.
///
/// # Errors
/// As the system says.
pub fn send_runs(fd: BorrowedFd<'_>, datagrams: &[Datagram<'_>], runs: &[usize]) -> io::Result<usize> {
    assert!(runs.iter().sum::<usize>() <= datagrams.len() && !runs.contains(&0));
    let part =
        |octets: &[u8]| libc::iovec { iov_base: octets.as_ptr().cast_mut().cast(), iov_len: octets.len() };
    let mut parts: Vec<libc::iovec> = datagrams.iter().map(|one| part(one.octets)).collect();
    let mut names = Vec::with_capacity(runs.len());
    let mut controls = Vec::with_capacity(runs.len());
    let mut headers: Vec<libc::mmsghdr> = Vec::with_capacity(runs.len());
    let (mut firsts, mut first) = (Vec::with_capacity(runs.len()), 0);
    for run in runs {
        let Datagram { to, from, octets } = datagrams[first];
        names.push(name_of(&to));
        let mut control = Control([0; CONTROL]);
        // SAFETY: all-zero is a valid mmsghdr.
        let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
        header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_in6>() as u32;
        header.msg_hdr.msg_iovlen = *run;
        // struct in6_pktinfo: source address, interface index.
        let mut info = [0; 20];
        info[..16].copy_from_slice(&from.unwrap_or(Ipv6Addr::UNSPECIFIED).octets());
        let from = from.map(|_| (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info[..]));
        let size = (octets.len() as u16).to_ne_bytes();
        let segment = Some(segment_of(&size)).filter(|_| *run > 1);
        put_control(&mut header.msg_hdr, &mut control, [from, segment].into_iter().flatten());
        controls.push(control);
        headers.push(header);
        firsts.push(first);
        first += run;
    }
    // One pointer to each list, once nothing is added to it any more.
    let (name, part, control) = (names.as_mut_ptr(), parts.as_mut_ptr(), controls.as_mut_ptr());
    for ((n, header), first) in headers.iter_mut().enumerate().zip(firsts) {
        let header = &mut header.msg_hdr;
        header.msg_name = name.wrapping_add(n).cast();
        header.msg_iov = part.wrapping_add(first);
        let is_there = header.msg_controllen > 0;
        header.msg_control = if is_there { control.wrapping_add(n).cast() } else { std::ptr::null_mut() };
    }
    // SAFETY: every header points to one name, one stretch of vectors within `parts` and one control, which live and are
    // touched by nobody else until the call returns; the vectors point into the borrowed datagrams, which the kernel only
    // reads.
    let sent = unsafe {
        libc::sendmmsg(fd.as_raw_fd(), headers.as_mut_ptr(), headers.len() as u32, libc::MSG_DONTWAIT)
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

fn segment_of(size: &[u8; 2]) -> (i32, i32, &[u8]) {
    (libc::SOL_UDP, libc::UDP_SEGMENT, size)
}

fn name_of(to: &SocketAddrV6) -> libc::sockaddr_in6 {
    libc::sockaddr_in6 {
        sin6_family: libc::AF_INET6 as u16,
        sin6_port: to.port().to_be(),
        sin6_flowinfo: to.flowinfo(),
        sin6_addr: libc::in6_addr { s6_addr: to.ip().octets() },
        sin6_scope_id: to.scope_id(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    fn pair() -> (UdpSocket, UdpSocket, SocketAddrV4) {
        let a = UdpSocket::bind("127.0.0.1:0").unwrap();
        let b = UdpSocket::bind("127.0.0.1:0").unwrap();
        let std::net::SocketAddr::V4(to) = b.local_addr().unwrap() else { panic!() };
        set_option(b.as_fd(), libc::IPPROTO_IP, libc::IP_PKTINFO, 1).unwrap();
        set_option(b.as_fd(), libc::IPPROTO_IP, libc::IP_RECVTOS, 1).unwrap();
        (a, b, to)
    }

    #[test]
    fn what_was_read_is_acknowledged() {
        use std::io::{Read, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut a = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut b, _) = listener.accept().unwrap();
        a.write_all(b"abc").unwrap();
        b.read_exact(&mut [0; 3]).unwrap();
        assert_eq!(unacknowledged(a.as_fd()).unwrap(), 0);
        // More than both buffers hold.
        a.set_nonblocking(true).unwrap();
        while a.write(&[0; 65_536]).is_ok() {}
        assert!(unacknowledged(a.as_fd()).unwrap() > 0);
    }

    #[test]
    fn gathered_messages_arrive_with_their_marks() {
        let (a, b, to) = pair();
        let parts = [
            Part { in_headers: true, start: 1, len: 2 },
            Part { in_headers: false, start: 0, len: 3 },
            Part { in_headers: false, start: 2, len: 1 },
        ];
        let one = Outgoing { to, from: Ipv4Addr::LOCALHOST, tos: 2, segment: 0, first_part: 0, parts: 2 };
        let two = Outgoing { from: Ipv4Addr::UNSPECIFIED, tos: 0, first_part: 2, parts: 1, ..one };
        let sent = Outbox::new(4, 8).send(a.as_fd(), &[one, two], &parts, (b"xyz", b"hAB"));
        assert_eq!(sent.unwrap(), 2);

        let mut inbox = Inbox::new(4);
        let mut arena = vec![0; 4 * 100];
        assert_eq!(inbox.receive(b.as_fd(), &mut arena, 4, (10, 100, 80)).unwrap(), 2);
        let first = inbox.message(0);
        assert_eq!(&arena[10..10 + first.len], b"ABxyz");
        assert_eq!((first.tos, first.local, first.truncated), (2, Some(Ipv4Addr::LOCALHOST), false));
        let std::net::SocketAddr::V4(from) = a.local_addr().unwrap() else { panic!() };
        assert_eq!(first.name, Name::Inet(from));
        assert_eq!((&arena[110..111], inbox.message(1).len), (&b"z"[..], 1));
        let none = inbox.receive(b.as_fd(), &mut arena, 4, (10, 100, 80)).unwrap_err();
        assert_eq!(none.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_train_is_cut_by_the_kernel_and_merged_again() {
        let (a, b, to) = pair();
        set_option(b.as_fd(), libc::SOL_UDP, libc::UDP_GRO, 1).unwrap();
        let parts = [Part { in_headers: false, start: 0, len: 250 }];
        let train =
            Outgoing { to, from: Ipv4Addr::UNSPECIFIED, tos: 0, segment: 100, first_part: 0, parts: 1 };
        Outbox::new(1, 1).send(a.as_fd(), &[train], &parts, (&[7; 250], &[])).unwrap();
        let mut inbox = Inbox::new(4);
        let mut arena = vec![0; 4 * 300];
        let got = inbox.receive(b.as_fd(), &mut arena, 4, (0, 300, 300)).unwrap();
        let all: usize = (0..got).map(|n| inbox.message(n).len).sum();
        assert_eq!(all, 250);
        if got == 1 {
            assert_eq!(inbox.message(0).merged, Some(100));
        }
    }

    #[test]
    fn options_that_do_not_exist_are_errors() {
        let (a, ..) = pair();
        assert!(set_option(a.as_fd(), libc::IPPROTO_IP, 9999, 1).is_err());
        assert!(option(a.as_fd(), libc::SOL_SOCKET, libc::SO_TYPE).unwrap() == libc::SOCK_DGRAM);
    }

    #[test]
    fn many_datagrams_leave_in_one_call_each_for_its_own_receiver() {
        let open = || std::net::UdpSocket::bind("[::1]:0").unwrap();
        let (sender, one, two) = (open(), open(), open());
        let at = |socket: &std::net::UdpSocket| match socket.local_addr().unwrap() {
            std::net::SocketAddr::V6(at) => at,
            std::net::SocketAddr::V4(at) => panic!("{at}"),
        };
        let to = |octets, socket| Datagram { octets, to: at(socket), from: None };
        let all = [to(b"a", &one), to(b"", &two), to(b"bcd", &one)];
        assert_eq!(send_runs(sender.as_fd(), &all, &[1, 1, 1]).unwrap(), 3);
        assert_eq!(send_runs(sender.as_fd(), &[], &[]).unwrap(), 0);
        let mut buffer = [0; 9];
        for (socket, expected) in [(&one, &b"a"[..]), (&one, b"bcd"), (&two, b"")] {
            let (len, from) = socket.recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..len], from), (expected, sender.local_addr().unwrap()));
        }
        let from = |addr: &str| Datagram { from: addr.parse().ok(), ..all[0] };
        assert_eq!(send_runs(sender.as_fd(), &[from("::1")], &[1]).unwrap(), 1);
        assert!(send_runs(sender.as_fd(), &[from("2001:db8::77")], &[1]).is_err(), "not ours");
        // Nobody may send to port 0.
        let nowhere = SocketAddrV6::new(*at(&one).ip(), 0, 0, 0);
        assert!(send_runs(sender.as_fd(), &[Datagram { to: nowhere, ..all[0] }], &[1]).is_err());
    }
}
