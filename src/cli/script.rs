//! A script in the style of gogoc's templates: run when the tunnel has come up and before it goes, told by `TSP_*` variables.

use std::path::{Path, PathBuf};

use crate::script;
use crate::tsp::setup::House;

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
        Ok(Self { path: script::find(path)?, house })
    }

    /// Runs it with these variables.
    pub(super) async fn run(&self, variables: &[(&'static str, String)]) -> anyhow::Result<()> {
        script::run(&self.path, variables).await
    }
}
