//! Devices, addresses and routes over rtnetlink (RFC 3549).
//!
//! A [`Links`] belongs to the network namespace of the thread that opened it, wherever it is used
//! later. Refuses to know configuration files, tunnels and the forwarder.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::pin::pin;

use futures_util::{Stream, StreamExt};
use nix::errno::Errno;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, CacheInfo};
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::route::{RouteMessage, RouteProtocol, RouteType};
use rtnetlink::{AddressMessageBuilder, Handle, LinkUnspec, LinkVeth, RouteMessageBuilder};
use sixway_dataplane::update::Ipv6Prefix;

use super::answer::{KERNEL_METRIC, is_route_of, link_mtu, link_name, local_ipv4, output_device, route_mtu};
use super::error::{LinkError, errno};

/// A connection to the kernel's network configuration. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Links {
    pub(super) kernel: Handle,
}

/// What an addition found; only what was [`Added`](Outcome::Added) is ours to remove again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "only what was added is ours to remove"]
pub enum Outcome {
    /// It was not there, now it is.
    Added,
    /// It was there already and was left alone.
    AlreadyThere,
}

impl Links {
    /// Connects, in the calling thread's network namespace, and serves the connection on the current
    /// tokio runtime until the last clone is dropped.
    ///
    /// # Errors
    /// [`LinkError::NoRuntime`] outside a runtime, [`LinkError::Open`] when the socket is refused.
    pub fn open() -> Result<Self, LinkError> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| LinkError::NoRuntime)?;
        let (connection, kernel, _) = rtnetlink::new_connection().map_err(LinkError::Open)?;
        runtime.spawn(connection);
        Ok(Self { kernel })
    }

    /// The index of the device `name`; `None` when there is none.
    ///
    /// # Errors
    /// When the kernel refuses the question.
    pub async fn index(&self, name: &str) -> Result<Option<u32>, LinkError> {
        Ok(self.link_by_name(name).await?.map(|link| link.header.index))
    }

    /// The MTU of the device `name` in octets; `None` when there is no such device.
    ///
    /// # Errors
    /// When the kernel refuses the question.
    pub async fn mtu(&self, name: &str) -> Result<Option<u32>, LinkError> {
        Ok(self.link_by_name(name).await?.and_then(|link| link_mtu(&link)))
    }

    /// Sets the device up, with this MTU in octets if one is given.
    ///
    /// # Errors
    /// [`LinkError::NoDevice`], [`LinkError::Denied`], or the kernel's refusal of the MTU.
    pub async fn set_up(&self, name: &str, mtu: Option<u32>) -> Result<(), LinkError> {
        let mtu_text = mtu.map(|octets| format!(" with MTU {octets}")).unwrap_or_default();
        let what = format!("set device '{name}' up{mtu_text}");
        let index = self.wanted_index(name, &what).await?;
        let mut change = LinkUnspec::new_with_index(index).up();
        if let Some(octets) = mtu {
            change = change.mtu(octets);
        }
        done(what, name, self.kernel.link().set(change.build()).execute()).await
    }

    /// Gives the device an IPv6 address, usable at once: no duplicate address detection, as nobody
    /// else is on a tunnel device (RFC 4862 section 5.4 allows that).
    ///
    /// # Errors
    /// [`LinkError::NoDevice`], [`LinkError::Denied`], [`LinkError::Ipv6Off`], or the kernel's refusal.
    pub async fn add_address(
        &self,
        name: &str,
        addr: Ipv6Addr,
        prefix_len: u8,
    ) -> Result<Outcome, LinkError> {
        let what = format!("give device '{name}' the address {addr}/{prefix_len}");
        let index = self.wanted_index(name, &what).await?;
        let mut request = self.kernel.address().add(index, IpAddr::V6(addr), prefix_len);
        request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        added(what, name, request.execute()).await
    }

    /// Gives the device an IPv4 address.
    ///
    /// # Errors
    /// [`LinkError::NoDevice`], [`LinkError::Denied`], or the kernel's refusal.
    pub async fn add_address4(
        &self,
        name: &str,
        addr: Ipv4Addr,
        prefix_len: u8,
    ) -> Result<Outcome, LinkError> {
        let what = format!("give device '{name}' the address {addr}/{prefix_len}");
        let index = self.wanted_index(name, &what).await?;
        added(what, name, self.kernel.address().add(index, IpAddr::V4(addr), prefix_len).execute()).await
    }

    /// Takes an IPv6 address from the device; that it was not there (any more) is fine.
    ///
    /// # Errors
    /// [`LinkError::Denied`], or the kernel's refusal.
    pub async fn remove_address(&self, name: &str, addr: Ipv6Addr, prefix_len: u8) -> Result<(), LinkError> {
        let what = format!("take the address {addr}/{prefix_len} from device '{name}'");
        let Some(index) = self.index(name).await? else { return Ok(()) };
        let message = AddressMessageBuilder::<Ipv6Addr>::new().index(index).address(addr, prefix_len).build();
        gone(what, name, self.kernel.address().del(message).execute()).await
    }

    /// Routes a prefix to the device; `::/0` is the default route. Without `metric` the kernel takes
    /// 1024.
    ///
    /// # Errors
    /// [`LinkError::RouteTaken`] when an equal route leads elsewhere, [`LinkError::NoDevice`],
    /// [`LinkError::Denied`], [`LinkError::Ipv6Off`], or the kernel's refusal.
    pub async fn add_route(
        &self,
        prefix: Ipv6Prefix,
        dev: &str,
        metric: Option<u32>,
    ) -> Result<Outcome, LinkError> {
        self.add_any_route(prefix, None, dev, metric).await
    }

    /// As [`add_route`](Self::add_route), but where there is one already nobody looks which device it leads to: that takes a
    /// look at all routes.
    ///
    /// # Errors
    /// [`LinkError::NoDevice`], [`LinkError::Denied`], or the kernel's refusal.
    pub async fn offer_route(&self, prefix: Ipv6Prefix, dev: &str) -> Result<Outcome, LinkError> {
        let what = format!("route {prefix} to device '{dev}'");
        let index = self.wanted_index(dev, &what).await?;
        let message = route_message(prefix, None, index, None);
        added(what, dev, self.kernel.route().add(message).execute()).await
    }

    /// Routes a prefix to a neighbour behind the device.
    ///
    /// # Errors
    /// As [`add_route`](Self::add_route).
    pub async fn add_route_via(
        &self,
        prefix: Ipv6Prefix,
        gateway: Ipv6Addr,
        dev: &str,
    ) -> Result<Outcome, LinkError> {
        self.add_any_route(prefix, Some(gateway), dev, None).await
    }

    /// Removes the route of a prefix to the device; that it was not there (any more) is fine.
    ///
    /// # Errors
    /// [`LinkError::Denied`], or the kernel's refusal.
    pub async fn remove_route(
        &self,
        prefix: Ipv6Prefix,
        dev: &str,
        metric: Option<u32>,
    ) -> Result<(), LinkError> {
        let what = format!("remove the route of {prefix} to device '{dev}'");
        let Some(index) = self.index(dev).await? else { return Ok(()) };
        let message = route_message(prefix, None, index, metric);
        gone(what, dev, self.kernel.route().del(message).execute()).await
    }

    /// Gives the device an IPv6 address that goes by itself after `valid` seconds and is good for new connections for
    /// `preferred`; 2^32-1 is for ever (RFC 4862 section 5.5.4). One that is there and would end is given these times; one
    /// that somebody has put there for good is left alone. On a link with neighbours duplicates are looked for.
    ///
    /// # Errors
    /// [`LinkError::NoDevice`], [`LinkError::Denied`], [`LinkError::Ipv6Off`], or the kernel's refusal.
    pub async fn lend_address(
        &self,
        name: &str,
        addr: Ipv6Addr,
        prefix_len: u8,
        (preferred, valid): (u32, u32),
    ) -> Result<Outcome, LinkError> {
        let what = format!("give device '{name}' the address {addr}/{prefix_len} for {valid} s");
        let index = self.wanted_index(name, &what).await?;
        if self.has_for_good(index, addr).await? {
            return Ok(Outcome::AlreadyThere);
        }
        let mut request = self.kernel.address().add(index, IpAddr::V6(addr), prefix_len).replace();
        let mut times = CacheInfo::default();
        (times.ifa_preferred, times.ifa_valid) = (preferred, valid);
        request.message_mut().attributes.push(AddressAttribute::CacheInfo(times));
        done(what, name, request.execute()).await.map(|()| Outcome::Added)
    }

    async fn has_for_good(&self, index: u32, addr: Ipv6Addr) -> Result<bool, LinkError> {
        let mut request = self.kernel.address().get().set_link_index_filter(index);
        request.message_mut().header.family = AddressFamily::Inet6;
        let mut answers = pin!(request.execute());
        let mut found = false;
        while let Some(answer) = answers.next().await {
            let message = answer
                .map_err(|error| LinkError::from_kernel("list the IPv6 addresses".to_owned(), "", error))?;
            let is_it = message.attributes.contains(&AddressAttribute::Address(IpAddr::V6(addr)));
            found |= is_it && message.header.flags.contains(AddressHeaderFlags::Permanent);
        }
        Ok(found)
    }

    /// Takes such an address away, and with it the route to its network, which the kernel would leave there until the address
    /// would have ended; that it was not there (any more) is fine.
    ///
    /// # Errors
    /// [`LinkError::Denied`], or the kernel's refusal.
    pub async fn take_address_back(
        &self,
        name: &str,
        addr: Ipv6Addr,
        prefix_len: u8,
    ) -> Result<(), LinkError> {
        self.remove_address(name, addr, prefix_len).await?;
        let Some(index) = self.index(name).await? else { return Ok(()) };
        let network = Ipv6Prefix::new(addr, prefix_len).unwrap_or(Ipv6Prefix::host(addr));
        let route = RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(network.addr(), prefix_len)
            .output_interface(index)
            .protocol(RouteProtocol::Kernel)
            .priority(ADDRESS_METRIC)
            .build();
        let what = format!("remove the route of {network} to device '{name}'");
        gone(what, name, self.kernel.route().del(route).execute()).await
    }

    /// Makes a prefix unreachable, except where something longer, or a route of a better metric, leads somewhere (RFC 7084
    /// WPD-5).
    ///
    /// # Errors
    /// [`LinkError::Denied`], or the kernel's refusal.
    pub async fn add_unreachable(&self, prefix: Ipv6Prefix) -> Result<Outcome, LinkError> {
        let what = format!("make {prefix} unreachable");
        added(what, "lo", self.kernel.route().add(black_hole(prefix)).execute()).await
    }

    /// Takes that back; that it was not so (any more) is fine.
    ///
    /// # Errors
    /// [`LinkError::Denied`], or the kernel's refusal.
    pub async fn remove_unreachable(&self, prefix: Ipv6Prefix) -> Result<(), LinkError> {
        let what = format!("let {prefix} be reachable");
        gone(what, "lo", self.kernel.route().del(black_hole(prefix)).execute()).await
    }

    /// Lets the kernel answer for `addr` on the device as for an address of its own. The device does not have that address:
    /// no program can be bound to it by name. It costs the kernel the same however many there are, which addresses do not.
    ///
    /// # Errors
    /// [`LinkError::NoDevice`], [`LinkError::Denied`], [`LinkError::Ipv6Off`], or the kernel's refusal.
    pub async fn add_local(&self, name: &str, addr: Ipv6Addr) -> Result<Outcome, LinkError> {
        let what = format!("let device '{name}' answer for {addr}");
        let index = self.wanted_index(name, &what).await?;
        added(what, name, self.kernel.route().add(local(addr, index)).execute()).await
    }

    /// Takes that back; that it was not so (any more) is fine.
    ///
    /// # Errors
    /// [`LinkError::Denied`], or the kernel's refusal.
    pub async fn remove_local(&self, name: &str, addr: Ipv6Addr) -> Result<(), LinkError> {
        let what = format!("let device '{name}' no longer answer for {addr}");
        let Some(index) = self.index(name).await? else { return Ok(()) };
        gone(what, name, self.kernel.route().del(local(addr, index)).execute()).await
    }

    /// The largest IPv4 packet in octets that goes out towards `addr` in one piece: the MTU of the
    /// device its route uses, or the route's own if that is smaller. `None` when nothing leads there.
    ///
    /// # Errors
    /// When the kernel refuses the question.
    pub async fn link_mtu_towards(&self, addr: Ipv4Addr) -> Result<Option<u32>, LinkError> {
        let what = format!("find the route to {addr}");
        let question = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(addr, 32).build();
        let Some(route) = first(self.kernel.route().get(question).execute(), &UNREACHABLE)
            .await
            .map_err(|error| LinkError::from_kernel(what, "", error))?
        else {
            return Ok(None);
        };
        let Some(index) = output_device(&route) else { return Ok(None) };
        let device = self.link_by_index(index).await?.and_then(|link| link_mtu(&link));
        Ok(device.into_iter().chain(route_mtu(&route)).min())
    }

    /// The IPv4 addresses of all devices in this namespace.
    ///
    /// # Errors
    /// When the kernel refuses the question.
    pub async fn ipv4_addresses(&self) -> Result<Vec<Ipv4Addr>, LinkError> {
        let mut request = self.kernel.address().get();
        request.message_mut().header.family = AddressFamily::Inet;
        let mut answers = pin!(request.execute());
        let mut found = Vec::new();
        while let Some(answer) = answers.next().await {
            let message = answer
                .map_err(|error| LinkError::from_kernel("list the IPv4 addresses".to_owned(), "", error))?;
            found.extend(local_ipv4(&message));
        }
        Ok(found)
    }

    /// Makes a pair of virtual Ethernet devices.
    ///
    /// # Errors
    /// [`LinkError::Denied`], or the kernel's refusal, as when a name is taken.
    pub async fn create_veth(&self, one: &str, other: &str) -> Result<(), LinkError> {
        let what = format!("create the veth pair '{one}' and '{other}'");
        done(what, one, self.kernel.link().add(LinkVeth::new(one, other).build()).execute()).await
    }

    /// Moves a device into the network namespace that `namespace` is a descriptor of.
    ///
    /// # Errors
    /// [`LinkError::NoDevice`], [`LinkError::Denied`] (the right is needed in both), or the kernel's
    /// refusal.
    pub async fn move_to_ns(&self, name: &str, namespace: BorrowedFd<'_>) -> Result<(), LinkError> {
        let what = format!("move device '{name}' to another network namespace");
        let index = self.wanted_index(name, &what).await?;
        let change = LinkUnspec::new_with_index(index).setns_by_fd(namespace.as_raw_fd()).build();
        done(what, name, self.kernel.link().set(change).execute()).await
    }

    /// Deletes a device; that it was not there (any more) is fine.
    ///
    /// # Errors
    /// [`LinkError::Denied`], or the kernel's refusal.
    pub async fn delete_link(&self, name: &str) -> Result<(), LinkError> {
        let Some(index) = self.index(name).await? else { return Ok(()) };
        gone(format!("delete device '{name}'"), name, self.kernel.link().del(index).execute()).await
    }

    async fn add_any_route(
        &self,
        prefix: Ipv6Prefix,
        gateway: Option<Ipv6Addr>,
        dev: &str,
        metric: Option<u32>,
    ) -> Result<Outcome, LinkError> {
        let what = format!("route {prefix} to device '{dev}'");
        let index = self.wanted_index(dev, &what).await?;
        let message = route_message(prefix, gateway, index, metric);
        let outcome = added(what, dev, self.kernel.route().add(message).execute()).await?;
        if outcome == Outcome::AlreadyThere {
            self.expect_route_to(prefix, dev, index, metric).await?;
        }
        Ok(outcome)
    }

    /// The kernel calls a route equal by prefix and metric alone; one to another device is not ours.
    pub(super) async fn expect_route_to(
        &self,
        prefix: Ipv6Prefix,
        dev: &str,
        index: u32,
        metric: Option<u32>,
    ) -> Result<(), LinkError> {
        let what = format!("look at the routes of {prefix}");
        let mut answers =
            pin!(self.kernel.route().get(RouteMessageBuilder::<Ipv6Addr>::new().build()).execute());
        let mut others = Vec::new();
        while let Some(answer) = answers.next().await {
            let route = answer.map_err(|error| LinkError::from_kernel(what.clone(), dev, error))?;
            if !is_route_of(&route, prefix, metric.unwrap_or(KERNEL_METRIC)) {
                continue;
            }
            match output_device(&route) {
                Some(found) if found == index => return Ok(()),
                other => others.push(other),
            }
        }
        let Some(other) = others.into_iter().next() else { return Ok(()) };
        let held = self.name_of(other).await?;
        Err(LinkError::RouteTaken { prefix, wanted: dev.to_owned(), held })
    }

    pub(super) async fn name_of(&self, index: Option<u32>) -> Result<String, LinkError> {
        let Some(index) = index else { return Ok("another device".to_owned()) };
        let link = self.link_by_index(index).await?;
        Ok(link.and_then(|link| link_name(&link)).unwrap_or_else(|| format!("device {index}")))
    }

    async fn wanted_index(&self, name: &str, what: &str) -> Result<u32, LinkError> {
        self.index(name)
            .await?
            .ok_or_else(|| LinkError::NoDevice { what: what.to_owned(), device: name.to_owned() })
    }

    pub(super) async fn link_by_name(&self, name: &str) -> Result<Option<LinkMessage>, LinkError> {
        let request = self.kernel.link().get().match_name(name).execute();
        first(request, &[Errno::ENODEV])
            .await
            .map_err(|error| LinkError::from_kernel(format!("look up device '{name}'"), name, error))
    }

    async fn link_by_index(&self, index: u32) -> Result<Option<LinkMessage>, LinkError> {
        let request = self.kernel.link().get().match_index(index).execute();
        first(request, &[Errno::ENODEV])
            .await
            .map_err(|error| LinkError::from_kernel(format!("look up device number {index}"), "", error))
    }
}

/// Waits for a change that must succeed.
async fn done(
    what: String,
    device: &str,
    change: impl Future<Output = Result<(), rtnetlink::Error>>,
) -> Result<(), LinkError> {
    change.await.map_err(|error| LinkError::from_kernel(what, device, error))
}

/// Waits for an addition; that the thing is there already is fine.
async fn added(
    what: String,
    device: &str,
    change: impl Future<Output = Result<(), rtnetlink::Error>>,
) -> Result<Outcome, LinkError> {
    match change.await {
        Ok(()) => Ok(Outcome::Added),
        Err(error) if errno(&error) == Some(Errno::EEXIST) => Ok(Outcome::AlreadyThere),
        Err(error) => Err(LinkError::from_kernel(what, device, error)),
    }
}

/// Waits for a removal; that the thing is gone already is fine.
pub(super) async fn gone(
    what: String,
    device: &str,
    change: impl Future<Output = Result<(), rtnetlink::Error>>,
) -> Result<(), LinkError> {
    match change.await {
        Ok(()) => Ok(()),
        Err(error) if errno(&error).is_some_and(|code| GONE.contains(&code)) => Ok(()),
        Err(error) => Err(LinkError::from_kernel(what, device, error)),
    }
}

/// The first answer; `None` when the kernel names one of the `absent` errors.
async fn first<T>(
    answers: impl Stream<Item = Result<T, rtnetlink::Error>>,
    absent: &[Errno],
) -> Result<Option<T>, rtnetlink::Error> {
    match pin!(answers).next().await {
        None => Ok(None),
        Some(Ok(answer)) => Ok(Some(answer)),
        Some(Err(error)) if errno(&error).is_some_and(|code| absent.contains(&code)) => Ok(None),
        Some(Err(error)) => Err(error),
    }
}

fn route_message(
    prefix: Ipv6Prefix,
    gateway: Option<Ipv6Addr>,
    device: u32,
    metric: Option<u32>,
) -> RouteMessage {
    let mut route = RouteMessageBuilder::<Ipv6Addr>::new()
        .destination_prefix(prefix.addr(), prefix.prefix_len())
        .output_interface(device);
    if let Some(gateway) = gateway {
        route = route.gateway(gateway);
    }
    if let Some(metric) = metric {
        route = route.priority(metric);
    }
    route.build()
}

/// A route as the kernel makes one itself for each address.
fn local(addr: Ipv6Addr, device: u32) -> RouteMessage {
    RouteMessageBuilder::<Ipv6Addr>::new()
        .destination_prefix(addr, 128)
        .output_interface(device)
        .table_id(LOCAL_TABLE)
        .kind(RouteType::Local)
        .build()
}

/// A route of the worst metric that says that nothing is there.
fn black_hole(prefix: Ipv6Prefix) -> RouteMessage {
    RouteMessageBuilder::<Ipv6Addr>::new()
        .destination_prefix(prefix.addr(), prefix.prefix_len())
        .kind(RouteType::Unreachable)
        .priority(WORST_METRIC)
        .build()
}

/// The metric that the kernel gives to the route of an address's network (IP6_RT_PRIO_ADDRCONF).
const ADDRESS_METRIC: u32 = 256;
/// Where the kernel keeps what it answers for (RT_TABLE_LOCAL).
const LOCAL_TABLE: u32 = 255;
/// Worse than what anybody else writes.
const WORST_METRIC: u32 = 0x7fff_ffff;
pub(super) const GONE: [Errno; 4] = [Errno::ENODEV, Errno::ESRCH, Errno::EADDRNOTAVAIL, Errno::ENOENT];
const UNREACHABLE: [Errno; 4] = [Errno::ENETUNREACH, Errno::EHOSTUNREACH, Errno::EACCES, Errno::EINVAL];

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::AsFd;

    /// Runs `story` on a thread in a new network namespace; without the right to make one, says so
    /// and returns.
    pub(crate) fn in_fresh_namespace(story: impl FnOnce() + Send) {
        let allowed = std::thread::scope(|scope| {
            let room = scope.spawn(|| {
                let made = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET);
                made.map(|()| story())
            });
            room.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        if let Err(why) = allowed {
            // Not eprintln!, which is captured while the test passes.
            let _told = writeln!(
                std::io::stderr(),
                "SKIPPED: cannot make a network namespace ({why}); run the tests as root"
            );
        }
    }

    pub(crate) fn run<T>(story: impl AsyncFnOnce(Links) -> T) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { story(Links::open().unwrap()).await })
    }

    /// A pair of devices `a` and `b`, both up; the number of `a`.
    pub(crate) async fn cable(links: &Links) -> u32 {
        links.create_veth("a", "b").await.unwrap();
        links.set_up("a", None).await.unwrap();
        links.set_up("b", None).await.unwrap();
        links.index("a").await.unwrap().unwrap()
    }

    fn prefix(text: &str) -> Ipv6Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn outside_a_runtime_it_says_so() {
        assert!(matches!(Links::open(), Err(LinkError::NoRuntime)));
    }

    #[test]
    fn additions_say_what_was_there_before_and_removals_may_repeat() {
        in_fresh_namespace(|| {
            run(async |links| {
                links.create_veth("a", "b").await.unwrap();
                links.set_up("a", Some(1400)).await.unwrap();
                links.set_up("b", None).await.unwrap();
                assert_eq!(links.mtu("a").await.unwrap(), Some(1400));
                let addr: Ipv6Addr = "fd00::1".parse().unwrap();
                assert_eq!(links.add_address("a", addr, 64).await.unwrap(), Outcome::Added);
                // Without duplicate address detection it can be bound at once.
                std::net::UdpSocket::bind((addr, 0)).unwrap();
                assert_eq!(links.add_address("a", addr, 64).await.unwrap(), Outcome::AlreadyThere);
                links.remove_address("a", addr, 64).await.unwrap();
                links.remove_address("a", addr, 64).await.unwrap();
                assert!(std::net::UdpSocket::bind((addr, 0)).is_err());
                links.delete_link("a").await.unwrap();
                links.delete_link("a").await.unwrap();
                assert_eq!(links.index("b").await.unwrap(), None);
            });
        });
    }

    #[test]
    fn an_equal_route_elsewhere_is_not_taken_for_ours() {
        in_fresh_namespace(|| {
            run(async |links| {
                cable(&links).await;
                for prefix in [prefix("2001:db8::/32"), Ipv6Prefix::ALL] {
                    for metric in [None, Some(7)] {
                        assert_eq!(links.add_route(prefix, "a", metric).await.unwrap(), Outcome::Added);
                        assert_eq!(
                            links.add_route(prefix, "a", metric).await.unwrap(),
                            Outcome::AlreadyThere
                        );
                        let taken = links.add_route(prefix, "b", metric).await.unwrap_err();
                        assert!(
                            matches!(&taken, LinkError::RouteTaken { held, .. } if held == "a"),
                            "{taken}"
                        );
                        links.remove_route(prefix, "a", metric).await.unwrap();
                        links.remove_route(prefix, "a", metric).await.unwrap();
                        assert_eq!(links.add_route(prefix, "b", metric).await.unwrap(), Outcome::Added);
                    }
                }
            });
        });
    }

    #[test]
    fn the_kernel_answers_for_what_is_no_address_of_its_device() {
        in_fresh_namespace(|| {
            run(async |links| {
                links.set_up("lo", None).await.unwrap();
                let addr: Ipv6Addr = "2001:db8:77::1".parse().unwrap();
                let dials = || std::net::UdpSocket::bind("[::]:0").unwrap().connect((addr, 9));
                assert!(dials().is_err());
                for wanted in [Outcome::Added, Outcome::AlreadyThere] {
                    assert_eq!(links.add_local("lo", addr).await.unwrap(), wanted);
                }
                dials().unwrap();
                assert!(std::net::UdpSocket::bind((addr, 0)).is_err(), "it is no address of this host");
                for _ in 0..2 {
                    links.remove_local("lo", addr).await.unwrap();
                }
                assert!(dials().is_err());
            });
        });
    }

    #[test]
    fn the_mtu_towards_an_address_is_that_of_its_device() {
        in_fresh_namespace(|| {
            run(async |links| {
                let peer = Ipv4Addr::new(10, 71, 0, 1);
                assert_eq!(links.link_mtu_towards(peer).await.unwrap(), None);
                assert!(links.ipv4_addresses().await.unwrap().is_empty());
                links.create_veth("a", "b").await.unwrap();
                links.set_up("b", None).await.unwrap();
                links.set_up("a", Some(1432)).await.unwrap();
                let ours = Ipv4Addr::new(10, 71, 0, 2);
                assert_eq!(links.add_address4("a", ours, 24).await.unwrap(), Outcome::Added);
                assert_eq!(links.add_address4("a", ours, 24).await.unwrap(), Outcome::AlreadyThere);
                assert_eq!(links.link_mtu_towards(peer).await.unwrap(), Some(1432));
                assert_eq!(links.link_mtu_towards(Ipv4Addr::new(192, 0, 2, 1)).await.unwrap(), None);
                assert_eq!(links.ipv4_addresses().await.unwrap(), [ours]);
            });
        });
    }

    #[test]
    fn what_is_lent_has_an_end_and_what_is_unreachable_gives_way() {
        in_fresh_namespace(|| {
            run(async |links| {
                let shown = |words: &[&str]| {
                    let out = std::process::Command::new("ip").arg("-6").args(words).output().unwrap();
                    String::from_utf8(out.stdout).unwrap()
                };
                links.create_veth("a", "b").await.unwrap();
                links.set_up("a", None).await.unwrap();
                let net = prefix("fd00:1::/48");
                assert_eq!(links.add_unreachable(net).await.unwrap(), Outcome::Added);
                assert_eq!(links.add_unreachable(net).await.unwrap(), Outcome::AlreadyThere);
                let addr = "fd00:1::1".parse().unwrap();
                for valid in [100, 200] {
                    assert_eq!(links.lend_address("a", addr, 64, (50, valid)).await.unwrap(), Outcome::Added);
                    let said = shown(&["addr", "show", "dev", "a", "to", "fd00:1::/64"]);
                    let left = |n: u32| said.contains(&format!("valid_lft {n}sec"));
                    assert!(left(valid) || left(valid - 1), "{said}");
                }
                assert!(shown(&["route", "show", "fd00:1::/48"]).contains("unreachable"));
                links.take_address_back("a", addr, 64).await.unwrap();
                assert_eq!(shown(&["route", "show", "fd00:1::/64"]), "");
                links.take_address_back("a", addr, 64).await.unwrap();
                let own = "fd00:1:0:9::1".parse().unwrap();
                assert_eq!(links.add_address("a", own, 64).await.unwrap(), Outcome::Added);
                let lent = links.lend_address("a", own, 64, (50, 60)).await.unwrap();
                assert_eq!(lent, Outcome::AlreadyThere, "it is somebody's for good");
                links.remove_unreachable(net).await.unwrap();
                links.remove_unreachable(net).await.unwrap();
                assert_eq!(shown(&["route", "show", "fd00:1::/48"]), "");
            });
        });
    }

    #[test]
    fn a_device_moves_to_another_namespace() {
        in_fresh_namespace(|| {
            let here = File::open("/proc/thread-self/ns/net").unwrap();
            in_fresh_namespace(|| {
                run(async |links| {
                    links.create_veth("a", "b").await.unwrap();
                    links.move_to_ns("b", here.as_fd()).await.unwrap();
                    assert_eq!(links.index("b").await.unwrap(), None);
                    let gone = links.set_up("b", None).await.unwrap_err();
                    assert!(matches!(&gone, LinkError::NoDevice { device, .. } if device == "b"), "{gone}");
                });
                let inner = nix::sched::setns(&here, nix::sched::CloneFlags::CLONE_NEWNET);
                inner.unwrap();
                run(async |links| assert!(links.index("b").await.unwrap().is_some()));
            });
        });
    }

    #[test]
    fn ipv6_switched_off_is_named() {
        in_fresh_namespace(|| {
            run(async |links| {
                links.create_veth("a", "b").await.unwrap();
                std::fs::write("/proc/sys/net/ipv6/conf/a/disable_ipv6", "1").unwrap();
                let off = links.add_address("a", "fd00::1".parse().unwrap(), 64).await.unwrap_err();
                assert!(matches!(off, LinkError::Ipv6Off { .. }), "{off}");
            });
        });
    }
}
