//! This host: its files, interfaces and clock, as far as a DHCPv6 server's configuration and name need them.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Ipv6Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use jiff::Zoned;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use sixway_dataplane::update::Ipv6Prefix;

use super::plan::Site;
use crate::compat::dhcp6sconf::{Duid, Surroundings};
use crate::compat::duidfile;

/// The most octets of a configuration file.
const MAX_FILE: u64 = 64 << 20;

/// What to look at where something cannot be kept.
pub const NEXT: &str = "is it root that runs this, may that folder be written, and has its disk room?";

/// This host.
#[derive(Clone, Copy, Debug)]
pub struct Here;

impl Surroundings for Here {
    fn read(&self, file: &str) -> io::Result<Vec<u8>> {
        read(Path::new(file))
    }

    fn has_interface(&self, name: &str) -> bool {
        index(name).is_some()
    }

    fn now(&self) -> u64 {
        now()
    }

    fn today(&self) -> (i16, i8, i8) {
        let now = Zoned::now();
        (now.year(), now.month(), now.day())
    }

    fn unix_time(&self, (year, month, day): (i16, i8, i8), (hour, minute): (i8, i8)) -> Option<u64> {
        let local = DateTime::new(year, month, day, hour, minute, 0, 0).ok()?;
        let at = local.to_zoned(TimeZone::system()).ok()?;
        u64::try_from(at.timestamp().as_second()).ok()
    }
}

/// A file's octets, up to a bound.
///
/// # Errors
/// As the system says, or that it is larger.
pub fn read(file: &Path) -> io::Result<Vec<u8>> {
    let mut octets = Vec::new();
    std::fs::File::open(file)?.take(MAX_FILE + 1).read_to_end(&mut octets)?;
    if octets.len() as u64 > MAX_FILE {
        return Err(io::Error::new(ErrorKind::FileTooLarge, "it has more than 64 MiB"));
    }
    Ok(octets)
}

/// The clock in Unix seconds.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The clock in Unix seconds and parts of a second of 2^-32.
pub fn clock() -> (u64, u32) {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (since.as_secs(), ((u64::from(since.subsec_nanos()) << 32) / 1_000_000_000) as u32)
}

/// The clock that leases are counted by: seconds since the system was started, sleep included.
pub fn uptime() -> u64 {
    let at = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    at.ok().and_then(|at| u64::try_from(at.tv_sec()).ok()).unwrap_or_default()
}

/// Which run of the system this is.
pub fn boot() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

/// The number of an interface; `None` if there is none of that name.
pub fn index(name: &str) -> Option<u32> {
    nix::net::if_::if_nametoindex(name).ok()
}

/// How an interface is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// There is none of that name.
    Gone,
    /// It is there, and down.
    Down,
    /// It is in use.
    Up,
}

impl Presence {
    /// Puts into the log that an interface is so now.
    pub fn say(self, name: &str) {
        match self {
            Self::Gone => {
                tracing::warn!(event = "link_gone", "{name} is gone; it is served again when it is back")
            }
            Self::Down => {
                tracing::warn!(
                    event = "link_down",
                    "{name} is down; nobody is heard there until it is up again"
                );
            }
            Self::Up => {
                tracing::warn!(event = "link_up", "{name} is up: it is served, and its prefixes are routed");
            }
        }
    }
}

/// How an interface is now.
pub fn presence(name: &str) -> Presence {
    let mut known = getifaddrs().into_iter().flatten().filter(|one| one.interface_name == name);
    match (index(name), known.next()) {
        (None, _) => Presence::Gone,
        (Some(_), Some(one)) if !one.flags.contains(InterfaceFlags::IFF_UP) => Presence::Down,
        (Some(_), _) => Presence::Up,
    }
}

/// An interface's own addresses and the prefixes that they lie in, without the link-local ones.
pub fn site(name: &str) -> Site {
    let mut site = Site { name: name.into(), ..Site::default() };
    for (addr, mask) in addresses(name).filter(|(addr, _)| !addr.is_unicast_link_local()) {
        site.own.insert(addr);
        site.on_link.extend(Ipv6Prefix::new(addr, u128::from(mask).leading_ones() as u8));
    }
    site
}

/// An interface's link-local addresses.
pub fn link_locals(name: &str) -> Vec<Ipv6Addr> {
    addresses(name).map(|(addr, _)| addr).filter(Ipv6Addr::is_unicast_link_local).collect()
}

/// An interface's addresses, and the mask of each.
fn addresses(name: &str) -> impl Iterator<Item = (Ipv6Addr, Ipv6Addr)> {
    let own = getifaddrs().into_iter().flatten().filter(move |one| one.interface_name == name);
    own.filter_map(|one| {
        let at = one.address.as_ref().and_then(|addr| Some(addr.as_sockaddr_in6()?.ip()));
        at.zip(one.netmask.as_ref().and_then(|mask| Some(mask.as_sockaddr_in6()?.ip())))
    })
}

/// The server's own DUID out of its file. Where there is none it is made, of the first Ethernet interface's address and the
/// time, or of chance where there is no such interface; it is on the disk before anybody is told.
///
/// # Errors
/// That the file makes no sense, or cannot be read or written.
pub fn own_duid(file: &Path) -> anyhow::Result<Duid> {
    match read(file) {
        Ok(octets) => duidfile::parse(&octets).with_context(|| format!("the DUID file {}", file.display())),
        Err(why) if why.kind() == ErrorKind::NotFound => {
            let made = ethernet().and_then(|mac| duidfile::link_layer_time(mac, now()));
            let duid = made.or_else(|| duidfile::uuid(rand::random())).context("no DUID can be made")?;
            keep(file, &duidfile::emit(&duid))
                .with_context(|| format!("cannot keep the server's DUID in {}; {NEXT}", file.display()))?;
            Ok(duid)
        }
        Err(why) => Err(why).with_context(|| format!("cannot read the DUID file {}", file.display())),
    }
}

/// Puts a file on the disk, whole or not at all.
fn keep(file: &Path, octets: &[u8]) -> io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(folder)?;
    let beside = file.with_extension("new");
    let mut new =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&beside)?;
    new.write_all(octets)?;
    new.sync_all()?;
    std::fs::rename(&beside, file)?;
    std::fs::File::open(folder)?.sync_all()
}

/// The address of the first interface that has one of Ethernet.
fn ethernet() -> Option<[u8; 6]> {
    let mut names: Vec<String> = getifaddrs().ok()?.map(|one| one.interface_name).collect();
    names.dedup();
    names.iter().find_map(|name| {
        let about = |what: &str| std::fs::read_to_string(format!("/sys/class/net/{name}/{what}")).ok();
        let kind = about("type")?;
        let text = about("address")?;
        let octets: Vec<u8> =
            text.trim().split(':').map(|pair| u8::from_str_radix(pair, 16)).collect::<Result<_, _>>().ok()?;
        let mac: [u8; 6] = octets.try_into().ok()?;
        // 1 is Ethernet in the kernel's list; the loopback has zeros.
        (kind.trim() == "1" && mac != [0; 6]).then_some(mac)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC: V31 (RFC 8415 section 11)
    #[test]
    fn a_duid_is_made_once_and_stays() {
        let folder = std::env::temp_dir().join(format!("sixway-own-duid-{}", std::process::id()));
        let file = folder.join("dhcp6s_duid");
        let made = own_duid(&file).unwrap();
        assert_eq!(own_duid(&file).unwrap(), made);
        std::fs::write(&file, [14, 0, 0]).unwrap();
        assert!(format!("{:#}", own_duid(&file).unwrap_err()).contains("3 octets"));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn local_times_are_times() {
        let (a, b) = (Here.unix_time((2030, 1, 2), (3, 4)), Here.unix_time((2030, 1, 2), (3, 5)));
        assert_eq!(b.unwrap() - a.unwrap(), 60);
        assert_eq!(Here.unix_time((2030, 2, 30), (3, 4)), None);
        assert!(Here.has_interface("lo") && !Here.has_interface("no such"));
    }
}
