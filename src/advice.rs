//! What stands in the way on this host without being an error: found at the start, said once.
//!
//! Looks at the kernel's files; changes nothing.

use std::net::Ipv4Addr;
use std::path::Path;

/// The kernel's own handlers of protocol 41, if they are there. `root` is `/` but for tests.
///
/// The module `tunnel4` takes every packet of protocol 41 besides us, and answers senders whom no `sit` device knows with
/// ICMP port unreachable: peers of ours among them.
pub fn kernel_tunnels(root: &Path) -> Option<String> {
    let found = *kernel_tunnel_signs(root).first()?;
    Some(format!(
        "the kernel's own IPv6-in-IPv4 tunnels are loaded (/{found}): the kernel answers our peers' packets with ICMP \
         port unreachable; where no sit device is needed, `modprobe -r sit` takes them away; else \
         `nft add rule ip filter output icmp code port-unreachable drop` keeps the answers back, and others with them"
    ))
}

/// The files that only such handlers have, as modules or built in.
pub(crate) fn kernel_tunnel_signs(root: &Path) -> Vec<&'static str> {
    let mut signs = vec!["sys/module/tunnel4", "sys/module/sit", "sys/class/net/sit0"];
    signs.retain(|sign| root.join(sign).exists());
    signs
}

/// The IPv4 networks that the kernel routes into the device `tun`, by the text of `/proc/net/route`.
///
/// A peer in one of them would be reached through its own tunnel (RFC 2473 section 4.1.2).
pub fn routed_into(tun: &str, routes: &str) -> Vec<(Ipv4Addr, Ipv4Addr)> {
    let address = |field: &str| u32::from_str_radix(field, 16).ok().map(|n| Ipv4Addr::from(n.to_ne_bytes()));
    let route = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_ours = fields.first() == Some(&tun);
        is_ours.then(|| Some((address(fields.get(1)?)?, address(fields.get(7)?)?))).flatten()
    };
    routes.lines().filter_map(route).collect()
}

/// Whether `addr` lies in one of these networks.
pub fn is_within(addr: Ipv4Addr, networks: &[(Ipv4Addr, Ipv4Addr)]) -> bool {
    networks.iter().any(|(network, mask)| addr & *mask == *network)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// RFC: D14 (Linux net/ipv4/tunnel4.c)
    #[test]
    fn sit_and_tunnel4_are_noticed() {
        let root = std::env::temp_dir().join(format!("sixway-advice-{}", std::process::id()));
        fs::create_dir_all(root.join("sys/module/tun")).unwrap();
        assert_eq!(kernel_tunnels(&root), None);
        fs::create_dir_all(root.join("sys/module/tunnel4")).unwrap();
        let said = kernel_tunnels(&root).unwrap();
        fs::remove_dir_all(&root).unwrap();
        assert!(said.contains("/sys/module/tunnel4") && said.contains("modprobe -r sit"), "{said}");
    }

    /// RFC: L1 (RFC 2473 section 4.1.2)
    #[test]
    fn a_route_into_the_device_covers_its_peers() {
        let routes = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                      eth0\t00000000\t0100470A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                      six0\t0002C6C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        let found = routed_into("six0", routes);
        assert_eq!(found, [(Ipv4Addr::new(192, 198, 2, 0), Ipv4Addr::new(255, 255, 255, 0))]);
        assert!(is_within(Ipv4Addr::new(192, 198, 2, 9), &found));
        assert!(!is_within(Ipv4Addr::new(192, 198, 3, 9), &found) && routed_into("six1", routes).is_empty());
    }
}
