//! Which running instance is meant: the options that all commands to an instance share.

use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Args;

use crate::admin::client;
use crate::config::Config;

/// Where instances put their sockets by default.
const FOLDER: &str = "/run/sixway";

/// Names an instance.
#[derive(Debug, Args)]
pub struct SocketArgs {
    /// The instance with this configuration file
    #[arg(long, short, value_name = "FILE", conflicts_with = "socket")]
    config: Option<PathBuf>,
    /// The instance behind this admin socket [default: the only one in /run/sixway]
    #[arg(long, short, value_name = "PATH")]
    socket: Option<PathBuf>,
}

impl SocketArgs {
    /// The socket of the instance that is meant.
    pub fn path(&self) -> anyhow::Result<PathBuf> {
        if let Some(path) = &self.socket {
            return Ok(path.clone());
        }
        if let Some(file) = &self.config {
            return Ok(Config::load(file)?.admin.socket);
        }
        only_one_in(Path::new(FOLDER))
    }
}

fn only_one_in(folder: &Path) -> anyhow::Result<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let is_socket = |p: &PathBuf| p.extension().is_some_and(|e| e == "sock");
    let mut all: Vec<_> = entries.map(|e| e.path()).filter(is_socket).collect();
    // One that crashed leaves its socket behind; where none is alive, the error of asking it says so.
    let alive: Vec<_> = all.iter().filter(|p| client::owner(p).is_some()).cloned().collect();
    if !alive.is_empty() {
        all = alive;
    }
    all.sort();
    match &all[..] {
        [one] => Ok(one.clone()),
        [] => bail!(
            "no sixway runs here: there is no socket in {}; start one with `sixway run`, or name its socket with --socket",
            folder.display()
        ),
        many => {
            let names: Vec<_> = many.iter().map(|p| p.display().to_string()).collect();
            bail!(
                "several instances run here; choose one with --socket (or --config FILE): {}",
                names.join(", ")
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_socket_is_found_none_and_many_are_explained() {
        let folder = std::env::temp_dir().join(format!("sixway-sockets-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        assert!(only_one_in(&folder).unwrap_err().to_string().contains("no sixway runs here"));
        std::fs::write(folder.join("six0.sock"), "").unwrap();
        assert_eq!(only_one_in(&folder).unwrap(), folder.join("six0.sock"));
        std::fs::write(folder.join("six1.sock"), "").unwrap();
        assert!(only_one_in(&folder).unwrap_err().to_string().contains("six1.sock"));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
