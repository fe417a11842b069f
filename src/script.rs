//! A script of the user's: run by the shell, told by variables, within a time.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::process::Command;

/// How long a script may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Looks whether it can be read.
///
/// # Errors
/// It cannot.
pub fn find(path: &Path) -> anyhow::Result<std::path::PathBuf> {
    std::fs::File::open(path).with_context(|| format!("cannot read the script {}", path.display()))?;
    Ok(std::path::absolute(path)?)
}

/// Runs it with these variables; what it says goes where our own log goes.
///
/// # Errors
/// It cannot be run, fails, or has not ended within a minute.
pub async fn run(path: &Path, variables: &[(&'static str, String)]) -> anyhow::Result<()> {
    let name = path.display();
    let mut shell = Command::new("/bin/sh");
    // What a script prints must not be in what we print.
    let output = std::io::stderr();
    shell.arg(path).envs(variables.iter().map(|(key, value)| (key, value)));
    shell.stdin(Stdio::null()).stdout(output).kill_on_drop(true);
    let ran = tokio::time::timeout(PATIENCE, shell.status()).await;
    let Ok(status) = ran else { bail!("the script {name} has not ended within {} s", PATIENCE.as_secs()) };
    let status = status.with_context(|| format!("cannot run the script {name}"))?;
    anyhow::ensure!(status.success(), "the script {name} has failed: {status}");
    Ok(())
}
