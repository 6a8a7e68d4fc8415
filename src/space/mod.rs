//! The disk space that environments use, and its measurement.
//!
//! Each user's files are counted by a worker that runs as this user ([`measure`]), because the directories of an environment are closed to
//! other users, and because no privileged process may follow a path that a project can change. The server counts only its own files. Read
//! [`SpaceKind`] first.

mod history;
mod needs;
mod server;
mod walk;
mod worker;

use serde::{Deserialize, Serialize};

pub use self::{
    history::{DiskHistory, DiskTotals, Forecast},
    needs::{SpaceNeeds, shown, with_reserve},
    server::{EnvironmentUsage, SpaceContext, SpaceError, measure, measure_scratch},
    walk::Measured,
    worker::{MeasureJob, MeasureReport, work},
};

/// A kind of files of an environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpaceKind {
    /// The repository of the project. Its space counts for the first environment of the project.
    Git,
    /// Release archives, their manifests and deltas.
    Releases,
    /// Installed trees.
    Trees,
    /// The exported source and the scratch layer of builds.
    Build,
    /// Caches of buildpacks.
    Cache,
    /// The scratch layers of both slots: the files that an application writes to `/app`.
    Slots,
    /// Persistent data.
    Data,
    /// Restore points.
    Points,
    /// Restored copies of data.
    Restored,
    /// Logs of processes and records of deployments.
    Logs,
    /// Saved drift.
    Drift,
    /// Small files of larder, and directories of other kinds.
    Records,
}

impl SpaceKind {
    /// All kinds, in the order of listings.
    pub const ALL: [SpaceKind; 12] = [
        SpaceKind::Git,
        SpaceKind::Releases,
        SpaceKind::Trees,
        SpaceKind::Build,
        SpaceKind::Cache,
        SpaceKind::Slots,
        SpaceKind::Data,
        SpaceKind::Points,
        SpaceKind::Restored,
        SpaceKind::Logs,
        SpaceKind::Drift,
        SpaceKind::Records,
    ];

    /// Returns the words for people.
    pub fn title(self) -> &'static str {
        match self {
            SpaceKind::Git => "git",
            SpaceKind::Releases => "release archives",
            SpaceKind::Trees => "installed trees",
            SpaceKind::Build => "build",
            SpaceKind::Cache => "build caches",
            SpaceKind::Slots => "scratch layers",
            SpaceKind::Data => "data",
            SpaceKind::Points => "restore points",
            SpaceKind::Restored => "restored copies",
            SpaceKind::Logs => "logs and journals",
            SpaceKind::Drift => "saved drift",
            SpaceKind::Records => "records",
        }
    }
}
