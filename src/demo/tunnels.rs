//! The demo's routers are the real ones: `sixway run` in all but the process, each on threads inside its namespace.

use std::path::Path;

use super::{Stop, Tunnelers};
use crate::admin::client::ask;
use crate::admin::screen::screen;
use crate::admin::{PAGE, Request, Response};
use crate::config::Config;
use crate::router::{Router, Start};

/// Runs routers inside this process.
#[derive(Clone, Copy, Debug)]
pub struct InProcess;

impl Tunnelers for InProcess {
    fn start(&self, toml: &str) -> anyhow::Result<Stop> {
        let config = Config::parse("demo", toml)?;
        let router =
            Router::start(Start { config, reread: None, prepared: None, signals: false, client: None })?;
        Ok(Box::new(move || {
            if let Err(why) = router.stop() {
                eprintln!("sixway: a router of the demo did not end well: {why:#}");
            }
        }))
    }

    fn counters(&self, admin_socket: &Path) -> String {
        let asked = ask(admin_socket, &Request::Status { page: 1, limit: PAGE, tunnel: None });
        if let Ok(Response::Status(status)) = asked {
            return screen(&status).join("\n");
        }
        asked.err().map_or_else(|| "no status".to_owned(), |why| why.to_string())
    }
}
