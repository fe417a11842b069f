//! A private place for the admin sockets.
//!
//! A tmpfs in our own mount namespace where the system lets us, because that vanishes with the process
//! however it ends; otherwise a directory that is removed. Refuses to know what is put there.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process;

use anyhow::Context;
use nix::mount::{MsFlags, mount};

/// A directory that only this process sees, or at least only its user.
#[derive(Clone, Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    private: bool,
}

impl Scratch {
    /// Makes the place; the caller is in a mount namespace of its own.
    pub(crate) fn create() -> anyhow::Result<Self> {
        if mount_private_tmpfs().is_ok() {
            return Ok(Self { path: PathBuf::from(MOUNT_POINT), private: true });
        }
        let path = std::env::temp_dir().join(format!("sixway-demo-{}", process::id()));
        let made = fs::DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("cannot make the directory {}", path.display()))?;
        Ok(Self { path, private: false })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes what would outlive the process. Failing is harmless: it is a directory in /tmp.
    pub(crate) fn remove(&self) {
        if !self.private {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Nothing may be mounted before the tree is private, else the host would see it too.
fn mount_private_tmpfs() -> nix::Result<()> {
    const NONE: Option<&str> = None;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), MOUNT_POINT, Some("tmpfs"), flags, Some("mode=0700,size=1m"))
}

const MOUNT_POINT: &str = "/tmp";
