//! Restore points: what an environment's persistent data held at one moment, kept so that all of it can be put back.
//!
//! A restore point holds the files of `data/` today; dumps of declared databases are not part of it yet. The store, with capture,
//! verification, comparison and retention, is the crate `larder_points`. This module has the jobs and reports of the two workers that use
//! the store (`dump` reads the data and writes the store, `restore` reads the store and writes beside the data; both are processes of the
//! environment's run user), and starts them for the server. It does not know when data may be exchanged; `pipeline/restore.rs` does. Read
//! [`DumpJob`] and [`RestoreJob`] first.

mod dump;
mod error;
mod restore;
mod server;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use self::{
    dump::{DumpPaths, work as dump_work},
    error::{BackupError, BackupFailure, FailureKind},
    restore::{RestorePaths, work as restore_work},
    server::{BackupContext, dump, restore},
};
use crate::model::{CommitId, EnvironmentName, PointId, ProjectName, ReleaseId, ReleaseNumber, UserName};

/// The name of the captured directory in a restore point.
const DATA: &str = "data";

/// The most changes or skipped files that a report lists. All are counted.
const MAX_LISTED: usize = 1000;

/// The description of a restore point, stored in its manifest. A restore refuses a restore point of another environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointLabel {
    /// The project.
    pub project: ProjectName,
    /// The environment.
    pub environment: EnvironmentName,
    /// The release that was live; absent if none was.
    pub release: Option<ReleaseId>,
    /// The number of that release.
    pub number: Option<ReleaseNumber>,
    /// The commit of that release.
    pub commit: Option<CommitId>,
    /// The user who requested the restore point.
    pub by: UserName,
    /// The reason, as one line.
    pub reason: String,
}

/// The environment to which a restore point must belong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointOwner {
    /// The project.
    pub project: ProjectName,
    /// The environment.
    pub environment: EnvironmentName,
}

/// The job of the dump worker. A restore point is named by its id, the beginning of its id, or `latest`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DumpJob {
    /// Captures the data.
    Take {
        /// The id of the new restore point.
        id: PointId,
        /// Its description.
        label: PointLabel,
        /// True to refuse data of which a file cannot be read or changes while it is read.
        exact: bool,
    },
    /// Lists the restore points, newest first.
    List,
    /// Describes a restore point.
    Show {
        /// The restore point.
        point: String,
    },
    /// Reads a restore point back, and records the result.
    Verify {
        /// The restore point.
        point: String,
    },
    /// Removes a restore point.
    Remove {
        /// The restore point.
        point: String,
    },
    /// Compares two restore points, or a restore point with the live data.
    Diff {
        /// The older restore point.
        from: String,
        /// The newer restore point; the live data if absent.
        to: Option<String>,
    },
}

/// The report of the dump worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DumpReport {
    /// A restore point that was taken, described or verified, with the damaged files that the verification found.
    Point(Box<PointInfo>, Vec<String>),
    /// All restore points, newest first, with the bytes that they use together.
    List(Vec<PointInfo>, u64),
    /// The id of a removed restore point.
    Removed(String),
    /// The differences.
    Diff(DataDiff),
}

/// A restore point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointInfo {
    /// The id.
    pub id: String,
    /// The time of the capture, in seconds since 1970; absent if the manifest cannot be read.
    pub taken: Option<i64>,
    /// The description; absent if the manifest cannot be read, or has none of larder's.
    pub label: Option<PointLabel>,
    /// The result of the last verification.
    pub state: PointState,
    /// Numbers of files and bytes.
    pub counts: PointCounts,
    /// The first live files that are not part of the restore point, as pairs of path and reason. Only for a single restore point.
    pub skipped: Vec<(String, String)>,
}

/// The reliability of a restore point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PointState {
    /// It was never read back.
    Unverified,
    /// It was read back without a difference, at this time in seconds since 1970.
    Verified(i64),
    /// Stored files differ from what was captured: their number, and the time of the verification.
    Damaged(u64, i64),
    /// It cannot be used, for this reason.
    Unusable(String),
}

/// Numbers of files and bytes of a restore point.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointCounts {
    /// Files, directories and links.
    pub entries: u64,
    /// Regular files.
    pub files: u64,
    /// Bytes of all files, holes included.
    pub bytes: u64,
    /// Files that are shared with the restore point before.
    pub shared_files: u64,
    /// Bytes of files that are not shared with the restore point before.
    pub copied_bytes: u64,
    /// Files that changed while they were read.
    pub torn: u64,
    /// Live files that are not part of the restore point: sockets, FIFOs, devices, unreadable files.
    pub skipped: u64,
    /// Allocated bytes in the store.
    pub stored: u64,
    /// Allocated bytes that the removal of this restore point frees.
    pub unique: u64,
}

/// The differences between two states of the data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataDiff {
    /// The id of the older restore point.
    pub from: String,
    /// The id of the newer restore point; absent if the live data was compared.
    pub to: Option<String>,
    /// The number of entries that only the newer state has.
    pub added: u64,
    /// The number of entries that only the older state has.
    pub removed: u64,
    /// The number of entries with another content.
    pub changed: u64,
    /// The number of entries of which only owner, mode, attributes or time differ.
    pub metadata: u64,
    /// The bytes of files that were added or changed, in the newer state.
    pub new_bytes: u64,
    /// The first differences, sorted by path.
    pub changes: Vec<DataChange>,
}

impl DataDiff {
    /// Returns true if nothing differs.
    pub fn is_empty(&self) -> bool {
        (self.added, self.removed, self.changed, self.metadata) == (0, 0, 0, 0)
    }
}

/// A path at which two states of the data differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataChange {
    /// The path below the environment, such as `data/uploads/a.png`, with other characters in place of bytes that are not UTF-8.
    pub path: String,
    /// `added`, `removed`, `changed` or `metadata`.
    pub change: String,
    /// The size in the older state, in bytes; zero for anything but a file.
    pub before: u64,
    /// The size in the newer state, in bytes; zero for anything but a file.
    pub after: u64,
}

/// The job of the restore worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestoreJob {
    /// Restores into a new directory of `archives/restored/`.
    Beside {
        /// The restore point.
        point: String,
        /// The environment to which it must belong.
        owner: PointOwner,
        /// The name of the directory.
        name: String,
    },
    /// Fills `restoring/` with the data of a restore point, durably.
    Fill {
        /// The restore point.
        point: String,
        /// The environment to which it must belong.
        owner: PointOwner,
    },
    /// Empties `restoring/`.
    Clear,
}

/// The report of the restore worker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filled {
    /// The id of the restore point; empty for [`RestoreJob::Clear`].
    pub point: String,
    /// The number of restored files.
    pub files: u64,
    /// The bytes of these files.
    pub bytes: u64,
    /// The number of entries whose owner or group could not be restored, because they belonged to another user.
    pub lost_owners: u64,
}
