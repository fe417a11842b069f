//! The DTCP server as a router has it: with its pid file, and with advice where it cannot listen.
//!
//! Knows nothing of sessions.

use std::path::PathBuf;

use super::server::Server;
use crate::config::Dtcp;
use crate::entrance::refused;
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
        let server = Server::start(config, desk, most).map_err(|why| refused("DTCP", at, &why))?;
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
