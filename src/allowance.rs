//! How much memory and processor time this process may have. Whether so many tunnels fit into the memory: a configuration that
//! does not is refused with a reason, where the system would end the process halfway. Whether the processor's time is metered:
//! then none is spent on looking for packets. Looks at control groups and at the limit of the address space; knows no tunnels
//! but their number.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

/// Octets that a router without tunnels takes.
const BASE: u64 = 12 << 20;
/// Octets that a tunnel of one prefix takes in all tables and in the configuration (measured with 100,000 and with 1,000,000).
const TUNNEL: u64 = 1000;
/// Where control groups are mounted.
const GROUPS: &str = "/sys/fs/cgroup";

/// The smallest limit on this process's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Octets.
    pub octets: u64,
    /// Who says so.
    pub by: String,
}

/// A configuration is too large for the memory that there may be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{tunnels} tunnels take about {need} MiB of memory, and this process may have {allowed} MiB ({by}): allow more, or \
     configure fewer tunnels"
)]
pub struct TooLittle {
    /// How many are configured.
    pub tunnels: usize,
    /// What they need, in MiB.
    pub need: u64,
    /// What there may be, in MiB.
    pub allowed: u64,
    /// Who says so.
    pub by: String,
}

/// Whether so many tunnels fit into what this process may have.
///
/// # Errors
/// [`TooLittle`].
pub fn check(tunnels: usize) -> Result<(), TooLittle> {
    allowance().map_or(Ok(()), |allowed| fits(tunnels, &allowed))
}

fn fits(tunnels: usize, allowed: &Allowance) -> Result<(), TooLittle> {
    let need = BASE + tunnels as u64 * TUNNEL;
    // Whoever gives a process next to nothing is told so by the system itself.
    if tunnels == 0 || need <= allowed.octets {
        return Ok(());
    }
    let by = allowed.by.clone();
    Err(TooLittle { tunnels, need: need >> 20, allowed: allowed.octets >> 20, by })
}

/// The smallest limit there is; `None`: none is known.
fn allowance() -> Option<Allowance> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let files = limit_files(&groups, "memory", ["memory.max", "memory.limit_in_bytes"]).into_iter();
    let limits = files.filter_map(|file| {
        let octets = limit(&fs::read_to_string(&file).ok()?)?;
        Some(Allowance { octets, by: file.display().to_string() })
    });
    limits.chain(address_space()).min_by_key(|allowed| allowed.octets)
}

fn address_space() -> Option<Allowance> {
    let (octets, _) = getrlimit(Resource::RLIMIT_AS).ok()?;
    (octets != RLIM_INFINITY).then(|| Allowance { octets, by: "ulimit -v".to_owned() })
}

/// Files that may hold a limit: of each group that the process is in, and of those around it (cgroups(7), both versions). In a
/// container the path is often another one inside; then its own root is what counts.
fn limit_files(groups: &str, controller: &str, [second, first]: [&str; 2]) -> Vec<PathBuf> {
    let root = Path::new(GROUPS);
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (base, name) = match controllers {
            "" => (root.to_owned(), second),
            some if some.split(',').any(|one| one == controller) => (root.join(controller), first),
            _ => continue,
        };
        let inside = Path::new(path.trim_start_matches('/'));
        files.extend(inside.ancestors().map(|group| base.join(group).join(name)));
    }
    files
}

/// What such a file says; the first version writes an enormous number for "none".
fn limit(text: &str) -> Option<u64> {
    let octets: u64 = text.trim().parse().ok()?;
    (octets < 1 << 60).then_some(octets)
}

/// Whether this process has a measure of processor time, and is stopped for a while when it has used it up.
pub fn processor_is_metered() -> bool {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let files = limit_files(&groups, "cpu", ["cpu.max", "cpu.cfs_quota_us"]);
    files.iter().any(|file| fs::read_to_string(file).is_ok_and(|text| is_quota(&text)))
}

/// What such a file says is a number of microseconds in front; "max" or -1 is none.
fn is_quota(text: &str) -> bool {
    text.split_whitespace().next().is_some_and(|quota| quota.parse::<u64>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_groups_around_a_process_are_asked() {
        let files = limit_files(
            "4:memory,hugetlb:/a/b\n3:cpuset:/x\n0::/c\nnonsense\n",
            "memory",
            ["memory.max", "memory.limit_in_bytes"],
        );
        let names: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
        assert_eq!(
            names,
            [
                "/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/a/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes",
                "/sys/fs/cgroup/c/memory.max",
                "/sys/fs/cgroup/memory.max",
            ]
        );
    }

    #[test]
    fn a_measure_of_processor_time_is_a_number() {
        assert!(is_quota("50000 100000\n") && is_quota("20000\n"));
        assert!(!is_quota("max 100000\n") && !is_quota("-1\n") && !is_quota(""));
    }

    #[test]
    fn limits_are_numbers_and_no_limit_is_none() {
        assert_eq!(limit("268435456\n"), Some(256 << 20));
        assert_eq!((limit("max\n"), limit("9223372036854771712\n"), limit("")), (None, None, None));
    }

    #[test]
    fn what_does_not_fit_is_told_with_both_figures() {
        let allowed = Allowance { octets: 256 << 20, by: "here".to_owned() };
        assert_eq!(fits(100_000, &allowed), Ok(()));
        let said = fits(1_000_000, &allowed).unwrap_err().to_string();
        assert!(said.contains("about 965 MiB") && said.contains("256 MiB (here)"), "{said}");
        assert_eq!(fits(0, &Allowance { octets: 1, by: String::new() }), Ok(()));
    }
}
