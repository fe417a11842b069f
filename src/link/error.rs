//! What can go wrong between us and the kernel's network configuration, each with what, why and what
//! next. Knows error numbers; refuses to know how a request is spoken.

use std::io;

use nix::errno::Errno;
use sixway_dataplane::update::Ipv6Prefix;

/// Why the kernel's network configuration could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Netlink needs a running tokio runtime to listen for answers.
    #[error("cannot talk to the kernel's routing socket outside a tokio runtime; open Links inside one")]
    NoRuntime,
    /// The routing socket itself was refused.
    #[error(
        "cannot open the kernel's routing socket (AF_NETLINK): {0}; does a sandbox or seccomp filter forbid it?"
    )]
    Open(io::Error),
    /// The kernel wants a capability that we lack.
    #[error(
        "cannot {what}: the kernel refused (EPERM), it needs CAP_NET_ADMIN in this network namespace; run as root, \
         give the binary the right with `sudo setcap cap_net_admin,cap_net_raw,cap_bpf+ep sixway`, or run `sixway demo`, \
         which works in a user namespace of its own"
    )]
    Denied {
        /// What was wanted.
        what: String,
    },
    /// No device of that name in this namespace.
    #[error(
        "cannot {what}: there is no network device '{device}' in this network namespace; `ip link` lists them"
    )]
    NoDevice {
        /// What was wanted.
        what: String,
        /// The name asked for.
        device: String,
    },
    /// IPv6 is switched off for the device.
    #[error(
        "cannot {what}: IPv6 is switched off on '{device}'; run `sysctl -w net.ipv6.conf.{device}.disable_ipv6=0`"
    )]
    Ipv6Off {
        /// What was wanted.
        what: String,
        /// The device.
        device: String,
    },
    /// The kernel has no code for this.
    #[error(
        "cannot {what}: this kernel cannot do that (EOPNOTSUPP); load what it lacks, `modprobe ipv6` for addresses \
         and routes (and boot without ipv6.disable=1), `modprobe veth` for veth pairs"
    )]
    Unsupported {
        /// What was wanted.
        what: String,
    },
    /// An equal route leads to another device, so ours would never be used.
    #[error(
        "cannot route {prefix} to '{wanted}': an equal route already leads to '{held}'; \
         give the prefix to one of the two, or leave it out of [router] routes here; if it is a leftover, \
         `ip -6 route del {prefix} dev {held}` removes it"
    )]
    RouteTaken {
        /// The prefix both want.
        prefix: Ipv6Prefix,
        /// The device we wanted it to lead to.
        wanted: String,
        /// The device it leads to.
        held: String,
    },
    /// Anything else the kernel said no to.
    #[error("cannot {what}: {cause}")]
    Refused {
        /// What was wanted.
        what: String,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The answer was not one we can read.
    #[error(
        "cannot {what}: the kernel's answer was not understood ({answer}); please report this with `uname -r`"
    )]
    Answer {
        /// What was wanted.
        what: String,
        /// What came.
        answer: String,
    },
    /// A switch under `/proc/sys` could not be read or written.
    #[error("cannot {what} {path}: {cause}; {next}")]
    Sysctl {
        /// "read" or "write".
        what: &'static str,
        /// The file.
        path: String,
        /// What the system said.
        cause: io::Error,
        /// What to do about it.
        next: String,
    },
}

impl LinkError {
    /// What the kernel's refusal means; `device` is the one the request was about.
    pub(crate) fn from_kernel(what: String, device: &str, error: rtnetlink::Error) -> Self {
        match errno(&error) {
            Some(code) => Self::from_errno(what, device, code),
            None => Self::Answer { what, answer: error.to_string() },
        }
    }

    /// The same of an error number.
    pub(crate) fn from_errno(what: String, device: &str, code: Errno) -> Self {
        let device = device.to_owned();
        match Some(code) {
            Some(Errno::EPERM) => Self::Denied { what },
            Some(Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT) => Self::Unsupported { what },
            Some(Errno::ENODEV) => Self::NoDevice { what, device },
            // The kernel answers EACCES for an address on a device with disable_ipv6=1.
            Some(Errno::EACCES) => Self::Ipv6Off { what, device },
            Some(_) | None => Self::Refused { what, cause: code.into() },
        }
    }
}

/// The kernel's error number in a netlink error; `None` when it is another kind of failure.
pub(crate) fn errno(error: &rtnetlink::Error) -> Option<Errno> {
    if let rtnetlink::Error::NetlinkError(message) = error {
        return Some(Errno::from_raw(message.raw_code().saturating_abs()));
    }
    None
}
