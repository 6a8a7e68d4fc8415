//! Where a worker of this room finds things: read once from the environment that the keeper sets.

use std::{ffi::OsString, path::PathBuf};

/// The paths in a worker's view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerPaths {
    /// The project's repositories; holds `project.git`.
    pub repo: PathBuf,
    /// The environment's `project/`, only for [`crate::model::Role::Source`].
    pub source: Option<PathBuf>,
    /// The hook scripts.
    pub hooks: Option<PathBuf>,
    /// The hook socket.
    pub hook_socket: Option<PathBuf>,
}

/// A variable that the keeper always sets is missing.
#[derive(Debug, thiserror::Error)]
#[error("{0} is not set: this process was not started by larder's keeper")]
pub struct MissingVariable(&'static str);

impl WorkerPaths {
    /// The paths that the keeper has put into the environment.
    pub fn from_env() -> Result<WorkerPaths, MissingVariable> {
        let path = |name: &str| std::env::var_os(name).filter(|value: &OsString| !value.is_empty()).map(PathBuf::from);
        Ok(WorkerPaths {
            repo: path("LARDER_REPO").ok_or(MissingVariable("LARDER_REPO"))?,
            source: path("LARDER_SOURCE"),
            hooks: path("LARDER_HOOKS"),
            hook_socket: path("LARDER_HOOK_SOCKET"),
        })
    }

    /// The repository that is pushed to.
    pub fn repository(&self) -> PathBuf {
        self.repo.join("project.git")
    }
}
