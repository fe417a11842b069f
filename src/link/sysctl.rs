//! Switches under `/proc/sys/net`: IPv6 forwarding (RFC 4861 section 6.2.1 calls it IsRouter).
//!
//! `/proc/sys/net` shows the network namespace of the thread that opens a file there, so these act
//! where their caller stands. Refuses to know whether forwarding is needed.

use std::fs;
use std::io;

use nix::errno::Errno;

use super::LinkError;

/// The command that switches IPv6 forwarding on by hand.
pub const FORWARDING_COMMAND: &str = "sysctl -w net.ipv6.conf.all.forwarding=1";

/// Whether the kernel forwards IPv6 packets between its devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarding {
    /// It does.
    On,
    /// It does not; [`FORWARDING_COMMAND`] changes that.
    Off,
}

/// Whether the kernel forwards IPv6 in the calling thread's network namespace.
///
/// # Errors
/// [`LinkError::Sysctl`] when the switch cannot be read, as in a kernel without IPv6.
pub fn forwarding_state() -> Result<Forwarding, LinkError> {
    let text = fs::read_to_string(FORWARDING_PATH).map_err(|source| failed("read", source))?;
    Ok(if text.trim() == "0" { Forwarding::Off } else { Forwarding::On })
}

/// Switches IPv6 forwarding on in the calling thread's network namespace; says what it was before.
/// Writes only when it was off.
///
/// # Errors
/// [`LinkError::Sysctl`] when the switch cannot be read or written.
pub fn set_forwarding() -> Result<Forwarding, LinkError> {
    let before = forwarding_state()?;
    if before == Forwarding::Off {
        fs::write(FORWARDING_PATH, "1").map_err(|source| failed("write", source))?;
    }
    Ok(before)
}

fn failed(what: &'static str, source: io::Error) -> LinkError {
    let next = match source.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT) => {
            "this kernel has no IPv6: load it with `modprobe ipv6`, or boot without ipv6.disable=1"
        }
        Some(Errno::EROFS) => {
            "/proc/sys is mounted read-only, as containers do: start the container with \
             `--sysctl net.ipv6.conf.all.forwarding=1`, or with `--security-opt systempaths=unconfined`"
        }
        Some(_) | None => {
            "it needs root or CAP_NET_ADMIN in this network namespace: \
             run `sysctl -w net.ipv6.conf.all.forwarding=1` as root"
        }
    };
    LinkError::Sysctl { what, path: FORWARDING_PATH.to_owned(), source, next }
}

const FORWARDING_PATH: &str = "/proc/sys/net/ipv6/conf/all/forwarding";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::netlink::tests::in_fresh_namespace;

    #[test]
    fn forwarding_follows_the_thread_and_leaves_other_namespaces_alone() {
        let outside = forwarding_state().unwrap();
        in_fresh_namespace(|| {
            fs::write(FORWARDING_PATH, "0").unwrap();
            assert_eq!(forwarding_state().unwrap(), Forwarding::Off);
            assert_eq!(set_forwarding().unwrap(), Forwarding::Off);
            assert_eq!(forwarding_state().unwrap(), Forwarding::On);
            assert_eq!(set_forwarding().unwrap(), Forwarding::On);
            in_fresh_namespace(|| {
                fs::write(FORWARDING_PATH, "0").unwrap();
            });
            assert_eq!(forwarding_state().unwrap(), Forwarding::On, "a sibling's switch is not ours");
        });
        assert_eq!(forwarding_state().unwrap(), outside);
    }

    #[test]
    fn a_failure_says_what_why_and_what_next() {
        let text = failed("write", io::Error::from(Errno::EROFS)).to_string();
        assert!(text.starts_with("cannot write /proc/sys/net/ipv6/conf/all/forwarding: "), "{text}");
        assert!(text.contains("--sysctl net.ipv6.conf.all.forwarding=1"), "{text}");
    }
}
