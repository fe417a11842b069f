//! A stand-in for the router: the demo's tunnel replaced by plain IPv6 routes over its cable, so that
//! everything around the router can be tested without one.

use std::net::Ipv6Addr;
use std::path::Path;

use sixway::demo::{Stop, Tunnelers};
use sixway::link::{self, LinkError, Links, Outcome};
use sixway_dataplane::update::Ipv6Prefix;

/// Routes instead of tunnels; `broken` ones leave the router's address out, so nothing comes across.
pub(crate) struct PlainRoutes {
    /// Whether packets shall get lost.
    pub(crate) broken: bool,
}

impl Tunnelers for PlainRoutes {
    fn start(&self, toml: &str) -> anyhow::Result<Stop> {
        let config: toml::Table = toml.parse()?;
        let is_router = config["tunnel"][0]["name"].as_str() == Some("client");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let broken = self.broken;
        runtime.block_on(async {
            let links = Links::open()?;
            if is_router { router(&links, broken).await } else { client(&links).await }
        })?;
        Ok(Box::new(move || {
            let removed = runtime.block_on(async { stop(&Links::open()?, is_router).await });
            assert!(removed.is_ok(), "{removed:?}");
        }))
    }

    fn counters(&self, admin_socket: &Path) -> String {
        format!("asked at {}", admin_socket.file_name().unwrap_or_default().display())
    }
}

async fn router(links: &Links, broken: bool) -> Result<(), LinkError> {
    link::set_forwarding()?;
    if !broken {
        assert_eq!(links.add_address("to-client", ROUTER, 64).await?, Outcome::Added);
    }
    Ok(())
}

async fn client(links: &Links) -> Result<(), LinkError> {
    assert_eq!(links.add_address("to-router", CLIENT, 64).await?, Outcome::Added);
    assert_eq!(links.add_route_via(Ipv6Prefix::ALL, ROUTER, "to-router").await?, Outcome::Added);
    Ok(())
}

async fn stop(links: &Links, is_router: bool) -> Result<(), LinkError> {
    if is_router {
        return links.remove_address("to-client", ROUTER, 64).await;
    }
    links.remove_route(Ipv6Prefix::ALL, "to-router", None).await?;
    links.remove_address("to-router", CLIENT, 64).await
}

const CLIENT: Ipv6Addr = Ipv6Addr::new(0xfd00, 2, 0, 1, 0, 0, 0, 2);
const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfd00, 2, 0, 1, 0, 0, 0, 1);
