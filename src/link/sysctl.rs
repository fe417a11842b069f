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
    let text =
        fs::read_to_string(FORWARDING_PATH).map_err(|cause| failed("read", FORWARDING_PATH, "1", cause))?;
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
        write(FORWARDING_PATH, "1")?;
    }
    Ok(before)
}

/// Lets addresses of devices that appear from now on in the calling thread's network namespace be used
/// at once, link-local ones too, instead of after a second or two of duplicate address detection
/// (RFC 4862 section 5.4). Only for links on which nobody else can be.
///
/// # Errors
/// [`LinkError::Sysctl`] when the switches cannot be written.
pub fn skip_duplicate_address_detection() -> Result<(), LinkError> {
    ACCEPT_DAD_PATHS.into_iter().try_for_each(|path| write(path, "0"))
}

/// Writes a switch; the error tells the command that does the same by hand.
fn write(path: &str, value: &str) -> Result<(), LinkError> {
    fs::write(path, value).map_err(|cause| failed("write", path, value, cause))
}

fn failed(what: &'static str, path: &str, value: &str, cause: io::Error) -> LinkError {
    let setting = format!("{}={value}", path.trim_start_matches("/proc/sys/").replace('/', "."));
    let next = match cause.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT) => {
            "this kernel has no IPv6: load it with `modprobe ipv6`, or boot without ipv6.disable=1".to_owned()
        }
        Some(Errno::EROFS) => format!(
            "/proc/sys is mounted read-only, as containers do: start the container with `--sysctl {setting}`, \
             or with `--security-opt systempaths=unconfined`"
        ),
        Some(_) | None => format!(
            "it needs root or CAP_NET_ADMIN in this network namespace: run `sysctl -w {setting}` as root"
        ),
    };
    LinkError::Sysctl { what, path: path.to_owned(), cause, next }
}

const FORWARDING_PATH: &str = "/proc/sys/net/ipv6/conf/all/forwarding";
/// The kernel detects duplicates while either is positive.
const ACCEPT_DAD_PATHS: [&str; 2] =
    ["/proc/sys/net/ipv6/conf/all/accept_dad", "/proc/sys/net/ipv6/conf/default/accept_dad"];

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
        let text = failed("write", FORWARDING_PATH, "1", Errno::EROFS.into()).to_string();
        assert!(text.starts_with("cannot write /proc/sys/net/ipv6/conf/all/forwarding: "), "{text}");
        assert!(text.contains("--sysctl net.ipv6.conf.all.forwarding=1"), "{text}");
        let text = failed("write", FORWARDING_PATH, "1", Errno::EACCES.into()).to_string();
        assert!(text.contains(FORWARDING_COMMAND), "{text}");
    }
}
