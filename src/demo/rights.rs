//! What the demo needs from the system, looked at before anything is begun: namespaces, /dev/net/tun,
//! capabilities; and for each that is missing the command that gives it.
//!
//! Root enters a network and mount namespace; anybody else first a user namespace, in which they are
//! root (user_namespaces(7)). Refuses to know what the rights are for.

use std::fs::{self, OpenOptions};
use std::io;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, getegid, geteuid};

/// Something is missing; says what, why and what to do.
#[derive(Debug, thiserror::Error)]
pub enum RightsError {
    /// No namespace of our own.
    #[error("cannot make a private namespace: {cause}\n  why:  {why}\n  next: {next}")]
    Namespace {
        /// What the system said.
        cause: io::Error,
        /// What that means here.
        why: &'static str,
        /// What to do.
        next: &'static str,
    },
    /// No TUN device to be had.
    #[error("cannot open {TUN} for reading and writing: {cause}\n  why:  {why}\n  next: {next}")]
    Tun {
        /// What the system said.
        cause: io::Error,
        /// What that means here.
        why: &'static str,
        /// What to do.
        next: &'static str,
    },
    /// A capability is missing although we are root here.
    #[error(
        "the right {0} is missing in this namespace\n  \
         why:  devices, routes and raw sockets need it, and even root lacks it here (a container's or a service's limit)\n  \
         next: `sudo sixway demo`, or start the container with `--cap-add NET_ADMIN --cap-add NET_RAW --cap-add SYS_ADMIN`"
    )]
    Capability(&'static str),
}

/// Moves the calling thread, and all it starts from now on, into private namespaces, and checks that
/// the demo can work there. Without root this must happen before the process has a second thread.
///
/// # Errors
/// The first thing that is missing.
pub fn enter() -> Result<(), RightsError> {
    enter_namespaces()?;
    check_tun()?;
    check_capabilities()
}

fn enter_namespaces() -> Result<(), RightsError> {
    let (uid, gid) = (geteuid(), getegid());
    // Root in a container may lack some rights; a user namespace, where it has all, may still be had.
    if uid.is_root() && check_capabilities().is_ok() && unshare(PRIVATE).is_ok() {
        return Ok(());
    }
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|code| no_namespace(code.into()))?;
    become_root_inside(uid, gid).map_err(no_namespace)?;
    // A step of its own: where AppArmor lets a user namespace be made but not be used, it fails here.
    unshare(PRIVATE).map_err(|code| no_namespace(code.into()))
}

/// An unprivileged user may map just themselves, and the group only after giving up setgroups.
fn become_root_inside(uid: Uid, gid: Gid) -> io::Result<()> {
    fs::write("/proc/thread-self/setgroups", "deny")?;
    fs::write("/proc/thread-self/uid_map", format!("0 {uid} 1"))?;
    fs::write("/proc/thread-self/gid_map", format!("0 {gid} 1"))
}

fn no_namespace(cause: io::Error) -> RightsError {
    let (why, next) = namespace_advice(&cause, |path| fs::read_to_string(path).ok());
    RightsError::Namespace { cause, why, next }
}

fn namespace_advice(
    cause: &io::Error,
    read: impl Fn(&str) -> Option<String>,
) -> (&'static str, &'static str) {
    let reads = |path: &str, value: &str| read(path).is_some_and(|text| text.trim() == value);
    for (path, value, why, next) in SWITCHES {
        if reads(path, value) {
            return (why, next);
        }
    }
    match cause.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EINVAL) => (
            "the process has more than one thread already, or the kernel has no user namespaces (CONFIG_USER_NS)",
            "`sudo sixway demo`",
        ),
        Some(Errno::ENOSPC | Errno::EUSERS) => (
            "too many namespaces exist already, or they are nested too deeply",
            "raise `user.max_user_namespaces`, `user.max_net_namespaces` and `user.max_mnt_namespaces` with \
             `sudo sysctl -w`, or run `sudo sixway demo`",
        ),
        Some(_) | None => (
            "a container's or a service's sandbox (seccomp, AppArmor, SELinux) forbids it",
            "`sudo sixway demo`; in a container, start it with \
             `--privileged`, or with `--security-opt seccomp=unconfined --device /dev/net/tun`",
        ),
    }
}

fn check_tun() -> Result<(), RightsError> {
    let opened = OpenOptions::new().read(true).write(true).open(TUN);
    opened.map(drop).map_err(|cause| {
        let (why, next) = tun_advice(&cause);
        RightsError::Tun { cause, why, next }
    })
}

fn tun_advice(cause: &io::Error) -> (&'static str, &'static str) {
    match cause.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EACCES) => (
            "the device's mode allows only its owner, and this user is not",
            "`sudo chmod 0666 /dev/net/tun` (it gives no right over the machine's own network), or `sudo sixway demo`",
        ),
        Some(Errno::ENOENT) => (
            "the device node does not exist here",
            "`sudo modprobe tun`, or `sudo mkdir -p /dev/net && sudo mknod -m 0666 /dev/net/tun c 10 200`; \
             in a container, start it with `--device /dev/net/tun`",
        ),
        Some(Errno::ENODEV | Errno::ENXIO) => {
            ("the kernel's tun module is not loaded", "`sudo modprobe tun`")
        }
        Some(_) | None => (
            "the container's device rules forbid it",
            "start the container with `--device /dev/net/tun`, or run `sudo sixway demo` outside",
        ),
    }
}

fn check_capabilities() -> Result<(), RightsError> {
    // Without /proc we cannot know; the first request that is refused will tell.
    let Ok(status) = fs::read_to_string("/proc/thread-self/status") else { return Ok(()) };
    let Some(held) = effective_capabilities(&status) else { return Ok(()) };
    match CAPABILITIES.iter().find(|(bit, _)| held >> bit & 1 == 0) {
        Some((_, name)) => Err(RightsError::Capability(name)),
        None => Ok(()),
    }
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

const TUN: &str = "/dev/net/tun";
const PRIVATE: CloneFlags = CloneFlags::CLONE_NEWNET.union(CloneFlags::CLONE_NEWNS);
const CAPABILITIES: [(u32, &str); 2] = [(12, "CAP_NET_ADMIN"), (13, "CAP_NET_RAW")];
/// Switches that turn user namespaces off: file, value that does, why, next.
const SWITCHES: [(&str, &str, &str, &str); 3] = [
    (
        "/proc/sys/kernel/unprivileged_userns_clone",
        "0",
        "user namespaces are for root only here (kernel.unprivileged_userns_clone is 0)",
        "`sudo sysctl -w kernel.unprivileged_userns_clone=1`, or `sudo sixway demo`",
    ),
    (
        "/proc/sys/user/max_user_namespaces",
        "0",
        "user namespaces are switched off here (user.max_user_namespaces is 0)",
        "`sudo sysctl -w user.max_user_namespaces=15000`, or `sudo sixway demo`",
    ),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "AppArmor restricts user namespaces here (kernel.apparmor_restrict_unprivileged_userns is 1)",
        "`sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`, or `sudo sixway demo`",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_switch_is_named_with_its_command() {
        for (switch, value, _, _) in SWITCHES {
            let read = |path: &str| (path == switch).then(|| format!("{value}\n"));
            let (why, next) = namespace_advice(&Errno::EPERM.into(), read);
            let key = switch.trim_start_matches("/proc/sys/").replace('/', ".");
            assert!(why.contains(&key) && next.contains(&format!("sudo sysctl -w {key}=")), "{why} {next}");
        }
        let (_, next) = namespace_advice(&Errno::EPERM.into(), |_| None);
        assert!(next.contains("sudo sixway demo"), "{next}");
    }

    #[test]
    fn a_closed_device_is_answered_with_chmod() {
        assert!(tun_advice(&Errno::EACCES.into()).1.contains("sudo chmod 0666 /dev/net/tun"));
        assert!(tun_advice(&Errno::ENOENT.into()).1.contains("mknod"));
    }

    #[test]
    fn capabilities_are_read_from_the_status() {
        assert_eq!(effective_capabilities("Name:\tx\nCapEff:\t0000000000003000\n"), Some(0x3000));
        assert_eq!(effective_capabilities("Name:\tx\n"), None);
    }
}
