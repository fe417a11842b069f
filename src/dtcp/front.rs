//! The DTCP server as a router has it: with its pid file, and with advice where it cannot listen.
//!
//! Knows nothing of sessions.

use std::io;
use std::path::PathBuf;

use super::server::Server;
use crate::config::Dtcp;
use crate::office::Desk;

/// The server with its pid file, as a router has it.
#[derive(Debug)]
pub struct Front {
    /// The server.
    pub server: Server,
    pid_file: Option<PathBuf>,
}

impl Front {
    /// Starts the server, then says in the pid file who it is.
    ///
    /// # Errors
    /// That it cannot listen, or the file cannot be written.
    pub fn open(config: &Dtcp, desk: Desk, most: u32) -> anyhow::Result<Self> {
        let at = config.listen;
        let server = Server::start(config, desk, most).map_err(|why| {
            let causes = [
                (io::ErrorKind::AddrInUse, "; another server has that port: `ss -ltnp` names it"),
                (
                    io::ErrorKind::AddrNotAvailable,
                    "; this host does not have that address: see `ip -4 address`",
                ),
                (io::ErrorKind::PermissionDenied, "; ports below 1024 need root or CAP_NET_BIND_SERVICE"),
            ];
            let cause = causes.iter().find(|(kind, _)| *kind == why.kind()).map_or("", |(_, text)| text);
            anyhow::anyhow!(
                "cannot listen for DTCP on TCP {at}: {why}{cause}; choose another with [dtcp] listen"
            )
        })?;
        let pid_file = config.pid_file.clone();
        if let Some(path) = &pid_file {
            let pid = format!("{}\n", std::process::id());
            std::fs::write(path, pid).map_err(|why| {
                let path = path.display();
                anyhow::anyhow!(
                    "cannot write {path}: {why}; run with sudo, or choose another with [dtcp] pid_file"
                )
            })?;
        }
        Ok(Self { server, pid_file })
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        let Some(path) = &self.pid_file else { return };
        // One that another process has written since is not ours to remove.
        let ours =
            std::fs::read_to_string(path).is_ok_and(|text| text.trim() == std::process::id().to_string());
        if ours && let Err(why) = std::fs::remove_file(path) {
            tracing::warn!("{} stays: {why}", path.display());
        }
    }
}
