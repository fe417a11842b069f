//! A script in the style of gogoc's templates: run when the tunnel has come up and before it goes, told by `TSP_*` variables.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::process::Command;

use crate::tsp::setup::House;

/// How long a script may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A script.
#[derive(Clone, Debug)]
pub(super) struct Script {
    /// The file; the shell runs it.
    path: PathBuf,
    /// What it is told beside the tunnel.
    pub(super) house: House,
}

impl Script {
    /// Looks whether it is there.
    pub(super) fn find(path: &Path, house: House) -> anyhow::Result<Self> {
        let name = || format!("cannot read the script {}", path.display());
        std::fs::File::open(path).with_context(name)?;
        Ok(Self { path: std::path::absolute(path)?, house })
    }

    /// Runs it with these variables; what it says goes where our own log goes.
    pub(super) async fn run(&self, variables: &[(&'static str, String)]) -> anyhow::Result<()> {
        let name = self.path.display();
        let mut shell = Command::new("/bin/sh");
        // What a script prints must not be in what we print.
        let output = std::io::stderr();
        shell.arg(&self.path).envs(variables.iter().map(|(key, value)| (key, value)));
        shell.stdin(Stdio::null()).stdout(output).kill_on_drop(true);
        let ran = tokio::time::timeout(PATIENCE, shell.status()).await;
        let Ok(status) = ran else {
            bail!("the script {name} has not ended within {} s", PATIENCE.as_secs())
        };
        let status = status.with_context(|| format!("cannot run the script {name}"))?;
        anyhow::ensure!(status.success(), "the script {name} has failed: {status}");
        Ok(())
    }
}
