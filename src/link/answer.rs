//! What we read in the kernel's answers (RFC 3549 section 3): one attribute each, nothing else.
//!
//! Pure; refuses to know how the question was asked.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteType,
};
use sixway_dataplane::update::Ipv6Prefix;

/// The metric the kernel gives to an IPv6 route without one (IP6_RT_PRIO_USER).
pub(crate) const KERNEL_METRIC: u32 = 1024;

/// Whether this is the main table's route of just this prefix and metric.
pub(crate) fn is_route_of(route: &RouteMessage, prefix: Ipv6Prefix, metric: u32) -> bool {
    route.header.table == RouteHeader::RT_TABLE_MAIN
        && destination(route) == Some(prefix)
        && route.attributes.contains(&RouteAttribute::Priority(metric))
}

/// Where a route leads to. The kernel leaves the destination out where the length is zero.
fn destination(route: &RouteMessage) -> Option<Ipv6Prefix> {
    let found = route.attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Destination(RouteAddress::Inet6(addr)) = attribute {
            Some(*addr)
        } else {
            None
        }
    });
    Ipv6Prefix::new(found.unwrap_or(Ipv6Addr::UNSPECIFIED), route.header.destination_prefix_length)
}

/// The prefix that the main table routes by this, if that is by the metric that a route has without one.
pub(crate) fn own_route(route: &RouteMessage) -> Option<Ipv6Prefix> {
    destination(route).filter(|prefix| is_route_of(route, *prefix, KERNEL_METRIC))
}

/// The address that the kernel answers for by this.
pub(crate) fn local_address(route: &RouteMessage) -> Option<Ipv6Addr> {
    let is_local = route.header.kind == RouteType::Local && route.header.destination_prefix_length == 128;
    destination(route).filter(|_| is_local).map(|prefix| prefix.addr())
}

/// The index of the device a route leads to; `None` where it leads nowhere.
pub(crate) fn output_device(route: &RouteMessage) -> Option<u32> {
    if route.header.kind == RouteType::Unreachable {
        return None;
    }
    route
        .attributes
        .iter()
        .find_map(|attribute| if let RouteAttribute::Oif(index) = attribute { Some(*index) } else { None })
}

/// The route's own MTU in octets, where it has one.
pub(crate) fn route_mtu(route: &RouteMessage) -> Option<u32> {
    let metrics = route.attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Metrics(metrics) = attribute { Some(metrics) } else { None }
    })?;
    metrics.iter().find_map(|metric| if let RouteMetric::Mtu(octets) = metric { Some(*octets) } else { None })
}

/// The device's MTU in octets.
pub(crate) fn link_mtu(link: &LinkMessage) -> Option<u32> {
    link.attributes
        .iter()
        .find_map(|attribute| if let LinkAttribute::Mtu(octets) = attribute { Some(*octets) } else { None })
}

/// The device's name.
pub(crate) fn link_name(link: &LinkMessage) -> Option<String> {
    link.attributes.iter().find_map(|attribute| {
        if let LinkAttribute::IfName(name) = attribute { Some(name.clone()) } else { None }
    })
}

/// The address a device has, where it is an IPv4 one.
pub(crate) fn local_ipv4(message: &AddressMessage) -> Option<Ipv4Addr> {
    message.attributes.iter().find_map(|attribute| {
        if let AddressAttribute::Local(IpAddr::V4(addr)) = attribute { Some(*addr) } else { None }
    })
}
