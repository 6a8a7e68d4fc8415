//! Restore points: copies of an environment's persistent data as it was at one moment, which can replace the live data later.
//!
//! A restore point holds the files of `data/` and dumps of the environment's databases. The crate `larder_points` implements the store:
//! capture, verification, comparison and retention. This module defines the jobs and reports of three workers, and starts the workers for
//! the server. The dump worker reads the data and writes the store. The restore worker reads the store and writes beside the data; only the
//! job [`RestoreJob::PutBack`] writes to the live data. These two workers run as the environment's run user. The off-site worker exchanges
//! restore points with stores outside of this machine. This module does not decide when the data may be exchanged; `pipeline/restore.rs`
//! decides. Read [`DumpJob`] and [`RestoreJob`] first.

pub mod databases;
mod dump;
mod error;
mod export;
mod offsite;
mod restore;
mod retention;
mod server;
mod space;
mod staging;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use self::{
    databases::{
        CaptureMethod, CopyRequest, DatabaseAccount, DatabaseAt, DatabaseJob, DatabaseServer, DatabaseStream, DatabaseSurvey,
        DatabaseUrl, DumpInfo, OtherSessions, SHELL_VARIABLE, check_database, database_shell, stream_work,
    },
    dump::{DumpPaths, work as dump_work},
    error::{BackupError, BackupFailure, FailureKind},
    export::work as export_work,
    offsite::{
        OFFSITE_WORKER, OffsiteCheck, OffsiteJob, OffsitePoint, OffsiteReport, OffsiteRetention, OffsiteStore, offsite,
        offsite_copy, offsite_fetch, offsite_main, open_secret, receive_work, select_copies, serve_work,
    },
    restore::{RestorePaths, work as restore_work},
    retention::{PointDecision, ProtectedReleases, RetentionPlan},
    server::{BackupContext, describe, dump, export, restore, restore_again, stream},
    space::{SpaceEstimate, clones_files},
    staging::is_separate,
};
use crate::config::BackupKeep;
use crate::model::{CommitId, EnvironmentName, PointId, ProjectName, ReleaseId, ReleaseNumber, SnapshotRef, UserName};

/// The name of the captured directory in a restore point.
const DATA: &str = "data";

/// The name of the directory with the dumps in a restore point.
pub(crate) const DATABASES: &str = "databases";

/// The name of the directory in a restore point with the files that the project's script `.larder/backup` wrote.
const CUSTOM: &str = "custom";

/// The maximum number of changes, skipped files or damaged files that a report lists. The counts of a report include the changes and files
/// that are not listed.
const MAX_LISTED: usize = 1000;

/// The description of a restore point, stored in its manifest. A restore refuses a restore point of another environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointLabel {
    /// The project.
    pub project: ProjectName,
    /// The environment.
    pub environment: EnvironmentName,
    /// The live release at the time of the capture; absent if no release was live.
    pub release: Option<ReleaseId>,
    /// The number of the live release.
    pub number: Option<ReleaseNumber>,
    /// The commit of the live release.
    pub commit: Option<CommitId>,
    /// The user who requested the restore point.
    pub by: UserName,
    /// The reason, as one line.
    pub reason: String,
    /// The dumps of databases. The dump worker writes this list.
    #[serde(default)]
    pub databases: Vec<DumpInfo>,
    /// True if the restore point has files that the project's script `.larder/backup` wrote.
    #[serde(default)]
    pub custom: bool,
    /// The sessions of other clients on the databases while the processes of the application were stopped. The dump worker writes this list.
    #[serde(default)]
    pub sessions: Vec<OtherSessions>,
    /// The configuration snapshot of the live release; absent without a configuration.
    #[serde(default)]
    pub configuration: Option<PointConfiguration>,
}

/// The configuration snapshot in a restore point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointConfiguration {
    /// The snapshot.
    pub snapshot: SnapshotRef,
    /// The encrypted file in base64; empty in a list of restore points, and if the file could not be read at the time of the capture.
    pub file: String,
}

/// The environment to which a restore point must belong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointOwner {
    /// The project.
    pub project: ProjectName,
    /// The environment.
    pub environment: EnvironmentName,
}

/// The job of the dump worker. A restore point is named by its id, by the beginning or end of its id, or by `latest`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant)] // A job exists once, and is serialised at once.
pub enum DumpJob {
    /// Captures the data.
    Take {
        /// The id of the new restore point.
        id: PointId,
        /// The description of the new restore point.
        label: PointLabel,
        /// True to fail if a file of the data cannot be read, or changes while the worker reads the file.
        exact: bool,
        /// The databases to dump.
        databases: Vec<DatabaseJob>,
        /// The databases to copy on their servers instead; empty unless `exact` is true.
        copies: Vec<CopyRequest>,
    },
    /// Finds the cheapest exact method for each database.
    Survey {
        /// The databases.
        databases: Vec<DatabaseJob>,
    },
    /// Writes the missing dumps of a restore point from the copies on the servers, and drops the copies. Removes the restore point if a copy
    /// does not exist.
    Complete {
        /// The id of the restore point, which may be missing.
        point: String,
        /// The databases at the time of the capture.
        databases: Vec<DatabaseJob>,
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
    /// Writes a restore point as an archive to the descriptor that the worker gets with the job.
    Export {
        /// The restore point.
        point: String,
        /// The environment to which the restore point must belong.
        owner: PointOwner,
    },
    /// Sends a restore point to the off-site worker, over the socket that the worker gets with the job.
    Serve {
        /// The restore point.
        point: String,
        /// The environment to which the restore point must belong.
        owner: PointOwner,
    },
    /// Stores a restore point that the off-site worker sends, over the socket that the worker gets with the job.
    Receive {
        /// The environment to which the restore point must belong.
        owner: PointOwner,
    },
    /// Compares two restore points, or a restore point with the live data.
    Diff {
        /// The older restore point.
        from: String,
        /// The newer restore point; absent to compare with the live data.
        to: Option<String>,
    },
    /// Lists the restore points with the decisions of the retention rules.
    Plan {
        /// The rules.
        keep: BackupKeep,
        /// The releases whose last restore points stay.
        protected: ProtectedReleases,
    },
    /// Measures the disk space for a capture of the live data, and for a restore of a restore point.
    Measure {
        /// The restore point to restore; absent to measure only the capture.
        restored: Option<String>,
    },
    /// Drops the copies of databases of a restore point. The restore point stays without their dumps.
    DropCopies {
        /// The id of the restore point.
        point: String,
        /// The databases.
        databases: Vec<DatabaseJob>,
    },
    /// Removes the files of killed captures, imports and removals.
    Sweep,
    /// Executes a job with low priority, so that the applications of this machine stay fast.
    Quietly(Box<DumpJob>),
}

/// The job of a worker of the role `dump`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant)] // A job exists once, and is serialised at once.
pub enum DumpWork {
    /// A job with a report.
    Job(DumpJob),
    /// A dump or a load through the standard descriptors, without a report.
    Stream(DatabaseStream),
}

/// The report of the dump worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DumpReport {
    /// A restore point that was taken, described or verified, and the damaged files that its verification found.
    Point(Box<PointInfo>, Vec<String>),
    /// All restore points, newest first, and their total disk usage in bytes.
    List(Vec<PointInfo>, u64),
    /// All restore points, and the decision about each restore point.
    Plan(RetentionPlan),
    /// The measured space.
    Space(SpaceEstimate),
    /// The cheapest exact methods.
    Survey(Vec<DatabaseSurvey>),
    /// The restore point has all dumps, or is removed, and its copies are dropped.
    Completed,
    /// The copies of databases are dropped.
    Dropped,
    /// The files of killed captures, imports and removals were removed.
    Swept,
    /// The id of a removed restore point.
    Removed(String),
    /// The id of a restore point whose archive was written completely, or that was sent or received completely.
    Exported(String),
    /// The differences between two restore points, or between a restore point and the live data.
    Diff(DataDiff),
}

/// The properties of a restore point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointInfo {
    /// The id.
    pub id: String,
    /// The time of the capture, in seconds since 1970; absent if the manifest cannot be read.
    pub taken: Option<i64>,
    /// The description; absent if the manifest cannot be read, or if its label was not written by larder.
    pub label: Option<PointLabel>,
    /// The result of the last verification.
    pub state: PointState,
    /// The numbers of files and bytes.
    pub counts: PointCounts,
    /// At most [`MAX_LISTED`] of the files that the capture skipped, as pairs of path and reason; empty in a list of restore points.
    pub skipped: Vec<(String, String)>,
    /// The durations of the dumps and copies; empty unless the restore point was just taken.
    #[serde(default)]
    pub runs: Vec<MethodRun>,
}

/// The duration of one part of a capture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MethodRun {
    /// The name of the database, or `files`.
    pub what: String,
    /// The method.
    pub method: CaptureMethod,
    /// The size of the database or the files in bytes.
    pub bytes: u64,
    /// The duration in milliseconds.
    pub ms: u64,
    /// The reason why a cheaper method failed; empty if the planned method was used.
    #[serde(default)]
    pub fallback: String,
}

/// The reliability of a restore point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PointState {
    /// The restore point was never read back.
    Unverified,
    /// The restore point was read back without a difference, at this time in seconds since 1970.
    Verified(i64),
    /// Stored files differ from the captured files: the number of damaged files, and the time of the verification in seconds since 1970.
    Damaged(u64, i64),
    /// The restore point cannot be used, for this reason.
    Unusable(String),
    /// The restore point cannot be used yet, for this reason: its dumps are still to be written from copies of the databases.
    Incomplete(String),
}

/// The numbers of files and bytes of a restore point.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointCounts {
    /// The number of files, directories and links.
    pub entries: u64,
    /// The number of regular files.
    pub files: u64,
    /// The total size of all files in bytes, holes included.
    pub bytes: u64,
    /// The number of files that are shared with the previous restore point.
    pub shared_files: u64,
    /// The total size of the files that are not shared with the previous restore point, in bytes.
    pub copied_bytes: u64,
    /// The number of files that changed while they were read.
    pub torn: u64,
    /// The number of entries that the capture skipped: sockets, FIFOs, devices, unreadable files, and files that were removed or replaced
    /// during the capture.
    pub skipped: u64,
    /// The allocated size in the store, in bytes.
    pub stored: u64,
    /// The allocated size that the removal of this restore point frees, in bytes; zero outside of a list of all restore points.
    pub unique: u64,
    /// The time in which the files were captured, in milliseconds; zero unless the restore point was just taken.
    #[serde(default)]
    pub files_ms: u64,
    /// The time in which the databases were dumped, in milliseconds; zero unless the restore point was just taken.
    #[serde(default)]
    pub dumps_ms: u64,
    /// The bytes of the dumps of databases.
    #[serde(default)]
    pub dump_bytes: u64,
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
    /// The number of entries whose content, link target or kind differs.
    pub changed: u64,
    /// The number of entries whose owner, mode, attributes or time differ, but whose content is equal.
    pub metadata: u64,
    /// The total size of the added and changed files in the newer state, in bytes.
    pub new_bytes: u64,
    /// The differences, sorted by path. Differences after the first [`MAX_LISTED`] differences are only counted.
    pub changes: Vec<DataChange>,
}

impl DataDiff {
    /// Returns true if the two states are equal.
    pub fn is_empty(&self) -> bool {
        (self.added, self.removed, self.changed, self.metadata) == (0, 0, 0, 0)
    }
}

/// A path at which two states of the data differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataChange {
    /// The path below the environment, such as `data/uploads/a.png`. U+FFFD replaces bytes that are not UTF-8.
    pub path: String,
    /// `added`, `removed`, `changed` or `metadata`.
    pub change: String,
    /// The size in the older state, in bytes; zero if the entry is not a file.
    pub before: u64,
    /// The size in the newer state, in bytes; zero if the entry is not a file.
    pub after: u64,
}

/// The job of the restore worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestoreJob {
    /// Restores into a new directory of `archives/restored/`.
    Beside {
        /// The restore point.
        point: String,
        /// The environment to which the restore point must belong.
        owner: PointOwner,
        /// The name of the directory.
        name: String,
    },
    /// Writes the data of a restore point into `restoring/` and syncs the written files to the disk.
    Fill {
        /// The restore point.
        point: String,
        /// The environment to which the restore point must belong.
        owner: PointOwner,
        /// The databases to which the dumps of the restore point belong. The worker checks that each database can be replaced.
        databases: Vec<DatabaseJob>,
    },
    /// Makes the live data equal to a restore point, and writes only the files that differ. The caller has stopped all processes of the
    /// application. After an error or a kill, the data can be a mixture: the caller repeats the job, or restores by exchange, before a
    /// process starts.
    PutBack {
        /// The restore point.
        point: String,
        /// The environment to which the restore point must belong.
        owner: PointOwner,
    },
    /// Replaces a database with its dump in a restore point.
    Database {
        /// The restore point.
        point: String,
        /// The environment to which the restore point must belong.
        owner: PointOwner,
        /// The database.
        database: DatabaseJob,
    },
    /// Empties `restoring/`.
    Clear,
    /// Writes the data of a restore point into `data-copy/`, without its dumps of databases.
    Copy {
        /// The restore point.
        point: String,
        /// The environment to which the restore point must belong.
        owner: PointOwner,
    },
    /// Empties `data-copy/`.
    ClearCopy,
    /// Writes the files of the project's script `.larder/backup` into `custom/`.
    Custom {
        /// The restore point.
        point: String,
        /// The environment to which the restore point must belong.
        owner: PointOwner,
    },
    /// Empties `custom/`.
    ClearCustom,
    /// Writes a restore point into `data-copy/`, compares each file with the restore point, and reads the dumps back with the programs of
    /// their engines. Afterwards `data-copy/` has the data, or nothing after a failure.
    Drill {
        /// The restore point.
        point: String,
        /// The environment to which the restore point must belong.
        owner: PointOwner,
    },
    /// Creates the scratch database of a drill.
    CreateScratch(DatabaseJob),
    /// Loads a dump of a restore point into the scratch database of a drill.
    LoadScratch {
        /// The restore point.
        point: String,
        /// The environment to which the restore point must belong.
        owner: PointOwner,
        /// The live database, which is not changed.
        database: DatabaseJob,
        /// The URL of the scratch database.
        scratch: DatabaseUrl,
    },
    /// Drops the scratch database of a drill, if there is one.
    DropScratch(DatabaseJob),
}

/// The report of the restore worker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filled {
    /// The id of the restore point; empty for a job that only empties a directory, such as [`RestoreJob::Clear`].
    pub point: String,
    /// The number of restored files.
    pub files: u64,
    /// The total size of the restored files, in bytes.
    pub bytes: u64,
    /// The number of entries whose owner or group could not be restored, because the entry belonged to another user.
    pub lost_owners: u64,
    /// The sessions of other clients on the database that [`RestoreJob::Database`] has replaced, if there were any.
    #[serde(default)]
    pub sessions: Option<OtherSessions>,
    /// The URL of the database that [`RestoreJob::CreateScratch`] created.
    #[serde(default)]
    pub scratch: Option<DatabaseUrl>,
    /// Sentences about parts of a dump that [`RestoreJob::LoadScratch`] did not load.
    #[serde(default)]
    pub left_out: Vec<String>,
}
