//! What needs rights, and what to do when they are missing; and the way to run without any on the host.
//!
//! [`explain`] turns a refused start into what, why and what next. [`leave_network`] moves this process into a user and
//! network namespace of its own, where it may have a TUN device; sockets opened before stay where they were.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, anyhow};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sixway_dataplane::start::StartError;

/// The error with its reason and the next step.
pub fn explain(error: StartError) -> anyhow::Error {
    let next = match &error {
        StartError::Tun { source, .. } => tun_advice(source),
        StartError::Proto41(source) if is_denied(source) => {
            "protocol 41 needs root or CAP_NET_RAW: run with sudo, or `sudo setcap cap_net_admin,cap_net_raw,cap_bpf+ep sixway` \
             (cap_bpf only lets trains leave whole: proto41_gso), \
             or use UDP tunnels only and set [proto41] enabled = false"
        }
        StartError::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
            "another program (perhaps another sixway) has that port: `ss -lunp` names it; choose another with [udp] ports"
        }
        StartError::Listen { source, .. } if source.kind() == io::ErrorKind::AddrNotAvailable => {
            "this host does not have that address: check [router] outer and each tunnel's local against `ip -4 address`"
        }
        StartError::Listen { source, .. } if is_denied(source) => {
            "ports below 1024 need root or CAP_NET_BIND_SERVICE"
        }
        StartError::Proto41(_) | StartError::Listen { .. } | StartError::System(_) => "",
    };
    // The system's words are in the sentence already; as a chain they would be printed twice.
    if next.is_empty() { anyhow!("{error}") } else { anyhow!("{error}; {next}") }
}

fn is_denied(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

fn tun_advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc_errno::ENOENT | libc_errno::ENODEV | libc_errno::ENXIO) => {
            "there is no TUN device here: `sudo modprobe tun`, or give the container /dev/net/tun (`--device /dev/net/tun`)"
        }
        Some(libc_errno::EACCES) => {
            "/dev/net/tun may not be opened by this user: run with sudo, or let a group in that this user is in (`sudo chgrp \
             GROUP /dev/net/tun && sudo chmod 0660 /dev/net/tun`)"
        }
        Some(libc_errno::EPERM) => {
            "creating it needs root or CAP_NET_ADMIN: run with sudo, or `sixway run --unshare` for a network namespace of \
             your own"
        }
        Some(libc_errno::EBUSY) => "another program has it open: choose another name with [router] tun",
        Some(libc_errno::EINVAL) => {
            "a device of that name exists and is no multi-queue TUN device: choose another name with [router] tun, or \
             remove it with `ip link del`"
        }
        Some(_) | None => "",
    }
}

/// Descriptors beside those of connections: workers' sockets, the store, status.
const FILES_BESIDE: u64 = 1024;

/// Error numbers, by the names they have in errno(3).
mod libc_errno {
    use nix::errno::Errno;
    pub(super) const ENOENT: i32 = Errno::ENOENT as i32;
    pub(super) const ENODEV: i32 = Errno::ENODEV as i32;
    pub(super) const ENXIO: i32 = Errno::ENXIO as i32;
    pub(super) const EACCES: i32 = Errno::EACCES as i32;
    pub(super) const EPERM: i32 = Errno::EPERM as i32;
    pub(super) const EBUSY: i32 = Errno::EBUSY as i32;
    pub(super) const EINVAL: i32 = Errno::EINVAL as i32;
}

/// Lets this process open `wanted` files at once, or as many as it may. Says how many it could open before, and can now.
pub fn raise_open_files(wanted: u64) -> nix::Result<(u64, u64)> {
    let (was, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    // Beyond the hard limit only root may go, and not in every container.
    let beyond = wanted > most && setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted).is_ok();
    if !beyond && was < most.min(wanted) {
        setrlimit(Resource::RLIMIT_NOFILE, most.min(wanted), most)?;
    }
    Ok((was, getrlimit(Resource::RLIMIT_NOFILE)?.0))
}

/// A process that knows secrets leaves none of them in a file when it crashes: no core dump, unless somebody raises the soft
/// limit of the running process (`prlimit --core=unlimited --pid PID`).
pub fn leave_no_core() {
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_CORE)
        && let Err(why) = setrlimit(Resource::RLIMIT_CORE, 0, most)
    {
        tracing::warn!(why = why.to_string(), "a crash could leave secrets in a core dump");
    }
}

/// That others can read or change this file, which has a secret in it, if they can.
pub fn told_to_others(file: &Path) -> Option<String> {
    let found = fs::metadata(file).ok().filter(|found| found.is_file())?;
    let mode = found.mode() & 0o777;
    (mode & 0o066 != 0).then(|| {
        let name = file.display();
        format!("{name} has a secret in it, and others can get at it (mode {mode:04o}): `chmod 600 {name}`")
    })
}

/// Lets this process have as many connections as it may have by its limits, and says so: each takes a descriptor, and a
/// few more are for everything else.
pub fn make_room(connections: u32) {
    let wanted = u64::from(connections) + FILES_BESIDE;
    match raise_open_files(wanted) {
        Ok((was, now)) if now < wanted => tracing::info!(
            "open files: {now} at most (limit at the start: {was}); [limits] connections would need {wanted}, what is beyond is \
             refused"
        ),
        Ok((was, now)) => tracing::debug!("open files: {now} at most (limit at the start: {was})"),
        Err(why) => tracing::warn!(why = why.to_string(), "the limit of open files cannot be raised"),
    }
}

/// Says what to do where there is no TUN device node at all, instead of making one behind the operator's back.
pub fn check_tun_device() -> anyhow::Result<()> {
    anyhow::ensure!(
        std::path::Path::new("/dev/net/tun").exists(),
        "there is no /dev/net/tun here; `sudo modprobe tun` makes it, in a container `--device /dev/net/tun` does, by hand \
         `sudo mkdir -p /dev/net && sudo mknod /dev/net/tun c 10 200`"
    );
    Ok(())
}

/// Whether a TUN device can be asked for: the device file is there and open to this user.
pub fn check_tun_is_open() -> anyhow::Result<()> {
    check_tun_device()?;
    let opened = fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    opened.context(
        "cannot open /dev/net/tun; run with sudo, or let a group in that this user is in (`sudo chgrp GROUP /dev/net/tun && \
         sudo chmod 0660 /dev/net/tun`)",
    )?;
    Ok(())
}

/// Moves the process into a network namespace of its own, and for an ordinary user into a user namespace in which it is
/// root. The process must still have a single thread.
pub fn leave_network() -> anyhow::Result<()> {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    if uid.is_root() && unshare(CloneFlags::CLONE_NEWNET).is_ok() {
        return Ok(());
    }
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET).context(
        "cannot make a user and network namespace of our own; allow it with `sudo sysctl -w user.max_user_namespaces=10000` \
         (Debian: kernel.unprivileged_userns_clone=1, Ubuntu: kernel.apparmor_restrict_unprivileged_userns=0), or run with \
         sudo",
    )?;
    fs::write("/proc/self/setgroups", "deny").context("cannot close the group list of the user namespace")?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1"))
        .context("cannot map the user into its namespace")?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1")).context("cannot map the group into its namespace")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn secrets_that_others_can_read_are_told_of() {
        let path = std::env::temp_dir().join(format!("sixway-secret-{}", std::process::id()));
        fs::write(&path, "").unwrap();
        let told = |mode| {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            told_to_others(&path)
        };
        assert!(told(0o644).unwrap().contains("(mode 0644): `chmod 600 "));
        assert!(told(0o620).is_some());
        assert_eq!((told(0o600), told(0o400)), (None, None));
        fs::remove_file(&path).unwrap();
        assert_eq!(told_to_others(&path), None);
        assert_eq!(told_to_others(Path::new("/dev/null")), None, "what is no file holds none");
    }
}
