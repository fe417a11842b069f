//! Three rooms and the cables between them; see the drawing in [`super`].
//!
//! Refuses to know tunnels: it ends where IPv4 reaches from client to router, and IPv6 from router to
//! host.

use std::os::fd::{AsFd, OwnedFd};
use std::thread::Scope;

use anyhow::Context;
use sixway_dataplane::update::Ipv6Prefix;

use super::config::{CLIENT_OUTER, HOST, ROUTER_LAN, ROUTER_OUTER};
use super::room::Room;
use crate::link::{self, LinkError, Links, Outcome};

/// The three namespaces, wired.
pub(crate) struct Lab<'env> {
    pub(crate) client: Room<'env>,
    pub(crate) router: Room<'env>,
    pub(crate) host: Room<'env>,
}

impl<'env> Lab<'env> {
    /// Makes the namespaces, the veth pairs between them, and their addresses.
    pub(crate) fn build<'scope>(scope: &'scope Scope<'scope, 'env>) -> anyhow::Result<Self> {
        let client = Room::open(scope, "client")?;
        let router = Room::open(scope, "router")?;
        let host = Room::open(scope, "host")?;
        for room in [&client, &router, &host] {
            // Where /proc/sys is read-only it costs two seconds of waiting, nothing else.
            room.run(link::skip_duplicate_address_detection)?.ok();
        }
        wire_client(&client, router.namespace().try_clone_to_owned()?)?;
        wire_router(&router, host.namespace().try_clone_to_owned()?)?;
        wire_host(&host)?;
        Ok(Self { client, router, host })
    }
}

fn wire_client(client: &Room, router: OwnedFd) -> anyhow::Result<()> {
    configure(client, async move |links| {
        links.create_veth(CLIENT_DEVICE, ROUTER_DEVICE).await?;
        links.move_to_ns(ROUTER_DEVICE, router.as_fd()).await?;
        links.set_up(CLIENT_DEVICE, Some(OUTER_MTU)).await?;
        fresh(links.add_address4(CLIENT_DEVICE, CLIENT_OUTER, 24).await?);
        Ok(())
    })
}

fn wire_router(router: &Room, host: OwnedFd) -> anyhow::Result<()> {
    configure(router, async move |links| {
        links.set_up(ROUTER_DEVICE, Some(OUTER_MTU)).await?;
        fresh(links.add_address4(ROUTER_DEVICE, ROUTER_OUTER, 24).await?);
        links.create_veth(LAN_DEVICE, HOST_DEVICE).await?;
        links.move_to_ns(HOST_DEVICE, host.as_fd()).await?;
        links.set_up(LAN_DEVICE, Some(OUTER_MTU)).await?;
        fresh(links.add_address(LAN_DEVICE, ROUTER_LAN, 64).await?);
        Ok(())
    })
}

fn wire_host(host: &Room) -> anyhow::Result<()> {
    configure(host, async |links| {
        links.set_up(HOST_DEVICE, Some(OUTER_MTU)).await?;
        fresh(links.add_address(HOST_DEVICE, HOST, 64).await?);
        fresh(links.add_route_via(Ipv6Prefix::ALL, ROUTER_LAN, HOST_DEVICE).await?);
        Ok(())
    })
}

/// Changes a room's network; a namespace is born with its loopback down.
fn configure<'env>(
    room: &Room<'env>,
    change: impl AsyncFnOnce(&Links) -> Result<(), LinkError> + Send + 'env,
) -> anyhow::Result<()> {
    let work = move || -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        runtime.block_on(async {
            let links = Links::open()?;
            links.set_up("lo", None).await?;
            Ok(change(&links).await?)
        })
    };
    room.run(work)?.with_context(|| format!("cannot wire the {}", room.name()))
}

/// Nobody was in a new namespace before us, and it goes as a whole: there is nothing to remember.
fn fresh(outcome: Outcome) {
    debug_assert_eq!(outcome, Outcome::Added);
}

const CLIENT_DEVICE: &str = "to-router";
const ROUTER_DEVICE: &str = "to-client";
const LAN_DEVICE: &str = "to-host";
const HOST_DEVICE: &str = "eth0";
/// Ethernet's MTU, in octets.
const OUTER_MTU: u32 = 1500;
