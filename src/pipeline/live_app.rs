//! [`LiveApp`], the operations on the live release and its data that a deployment with an upgrade needs, and [`UpgradePlan`], the
//! record of the upgrade. This file imports no file that executes deployments.

use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    durations::{HoldRun, MethodEstimate},
    failure::Failure,
};
use crate::{
    backup::{CaptureMethod, CopyRequest, OtherSessions, PointInfo, SpaceEstimate},
    model::{Live, Occupant, ReleaseId, Slot, StorageKind, UserName},
    space::SpaceNeeds,
};

/// The protection of the data in one deployment; a fact of the step `deploy.hold`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpgradePlan {
    /// The way in which the upgrade command runs.
    pub case: UpgradeCase,
    /// The reason for the case, as a clause.
    #[serde(default)]
    pub reason: String,
    /// The estimated time for which requests wait, in milliseconds; absent if nothing was estimated.
    #[serde(default)]
    pub estimate: Option<u64>,
    /// The id of the restore point from which the data can be restored; absent until the restore point is taken.
    #[serde(default)]
    pub point: Option<String>,
    /// The id of an earlier restore point, which was taken before the hold. The exact restore point shares unchanged files with the earlier
    /// restore point.
    #[serde(default)]
    pub early: Option<String>,
    /// The methods of the exact restore point, with their estimated and measured durations.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<MethodEstimate>,
    /// True if the command does not run although the data is protected, because none of its files changed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unchanged: bool,
}

/// The data that a rollback returns; a fact of the step `deploy.fill`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataReturn {
    /// The id of the restore point.
    pub point: String,
    /// The inode of the live data before the exchange. If `data/` has a different inode, the data is exchanged.
    pub inode: u64,
}

/// The ways in which an upgrade command runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UpgradeCase {
    /// Requests wait and the old release is stopped. A failure before the commit point restores the data.
    Held,
    /// The old release serves. A failure does not restore the data.
    Online,
    /// The old release serves, and there is no data to protect.
    Unprotected,
    /// The command does not run, because none of its files changed.
    Skipped,
    /// The strategy is in-place: the old release is stopped, and visitors get the maintenance page. A failure before the commit point
    /// restores the data.
    #[serde(rename = "in-place")]
    InPlace,
}

/// The workspace that a deployment in place replaces; a fact of the step `deploy.stop`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replaced {
    /// The release that was in the slot `in-place`; absent if the previous release ran in another slot, or if no release was live.
    pub occupant: Option<Occupant>,
    /// The moment from which visitors got the maintenance page; absent if no release was live.
    pub began: Option<Timestamp>,
}

impl UpgradePlan {
    /// Creates the record of an upgrade for which no restore point is taken yet.
    pub fn new(case: UpgradeCase, reason: impl Into<String>) -> UpgradePlan {
        UpgradePlan {
            case,
            reason: reason.into(),
            estimate: None,
            point: None,
            early: None,
            methods: Vec::new(),
            unchanged: false,
        }
    }

    /// Records the durations of the exact restore point beside the estimates.
    pub fn note_durations(&mut self, taken: &PointInfo) {
        for method in &mut self.methods {
            let run = taken.runs.iter().find(|run| run.what == method.what);
            if let Some(run) = run {
                (method.method, method.took_ms) = (run.method, Some(run.ms));
                if !run.fallback.is_empty() {
                    method.why.clone_from(&run.fallback);
                }
            } else if method.what == MethodEstimate::FILES {
                method.took_ms = Some(taken.counts.files_ms);
            }
        }
    }

    /// Returns true if the exact restore point has copies of databases on their servers.
    pub fn has_copies(&self) -> bool {
        self.point.is_some() && self.methods.iter().any(|one| one.method == CaptureMethod::TemplateCopy && one.took_ms.is_some())
    }

    /// Returns true if no request reaches a release during this upgrade.
    pub fn is_held(&self) -> bool {
        matches!(self.case, UpgradeCase::Held | UpgradeCase::InPlace)
    }
}

/// The durations of the parts of earlier deployments; each is absent if no earlier deployment had this part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EarlierRuns {
    /// The time in which the requests in flight ended and the processes stopped.
    pub stop: Option<Duration>,
    /// The time in which the exact restore point was taken.
    pub point: Option<Duration>,
    /// The time of the upgrade command.
    pub upgrade: Option<Duration>,
    /// The time in which the new processes became healthy.
    pub boot: Option<Duration>,
}

/// The sizes of the deployment that made the live release live, in bytes; zero if they are not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EarlierSizes {
    /// The files of the built tree.
    pub tree: u64,
    /// The archive.
    pub archive: u64,
    /// The files that the installation did not share with the release before.
    pub installed: u64,
    /// The number of entries of the installed tree.
    pub entries: u64,
}

/// The live release and its data, for the deployment that replaces the live release. The deployment holds the lock of deployments and
/// restarts.
pub trait LiveApp: Send + Sync {
    /// Waits until no other operation uses the restore points. Further operations on the restore points are refused until
    /// [`LiveApp::unlock`].
    fn lock(&self) -> BoxFuture<'_, ()>;

    /// Allows other operations on the restore points again.
    fn unlock(&self);

    /// Returns true if the last restore of the live data has made the data of `point` live.
    fn has_restored(&self, point: &str) -> bool;

    /// Records that the live data is that of `point` again, because the caller has reverted an exchange of the data. The next
    /// [`LiveApp::restore`] of `point` then changes neither files nor databases. An error is only logged, and the next restore repeats the work.
    fn note_restored(&self, point: String, by: UserName);

    /// Takes a restore point. With `exact`, the caller has stopped all processes that write the data. Without `exact`, a database that larder
    /// recognised and cannot dump is left out, and the cause is in [`PointInfo::skipped`].
    fn take(&self, by: UserName, reason: String, exact: bool) -> BoxFuture<'_, Result<PointInfo, Failure>>;

    /// Takes an exact restore point in which databases are copies on their servers. Their dumps follow after the deployment.
    fn take_copies(&self, by: UserName, reason: String, copies: Vec<CopyRequest>) -> BoxFuture<'_, Result<PointInfo, Failure>>;

    /// Finds the methods of an exact restore point that follows the restore point `early`, which was just taken, and estimates their
    /// durations.
    fn methods<'a>(&'a self, early: &'a PointInfo) -> BoxFuture<'a, Vec<MethodEstimate>>;

    /// Removes a restore point in the background. The lock of the restore points is held until the restore point is removed.
    fn remove(&self, point: String);

    /// Writes the data of a restore point beside the live data. Returns the id of the restore point.
    fn fill(&self, point: String) -> BoxFuture<'_, Result<String, Failure>>;

    /// Replaces the databases of the release `of` with their dumps in a restore point. The caller has stopped all processes. The call may be
    /// repeated.
    fn replace_databases(&self, point: String, of: Option<Live>) -> BoxFuture<'_, Result<(), Failure>>;

    /// Returns the sessions of other clients that used a database when it was replaced, and forgets them.
    fn take_sessions(&self) -> Vec<OtherSessions>;

    /// Restores the files of `.larder/backup` in a restore point with `.larder/restore` of a release in its slot. The caller has stopped all
    /// processes. The call may be repeated.
    fn restore_custom(&self, point: String, release: ReleaseId, slot: Slot) -> BoxFuture<'_, Result<(), Failure>>;

    /// Deletes the data beside the live data. An error is only logged.
    fn clear(&self) -> BoxFuture<'_, ()>;

    /// Returns the reason why the data of this environment cannot be exchanged, or `None` if the data can be exchanged.
    fn obstacle(&self) -> Option<String>;

    /// Replaces the data with a restore point, and then starts the release `previous`. Processes that still run are stopped first. If the data
    /// was restored by an earlier call, only starts the release. The outer error states why the data could not be restored. In this case, no process is started. The inner error states why the release did not
    /// become healthy.
    fn restore(&self, point: String, by: UserName, previous: Option<Live>)
    -> BoxFuture<'_, Result<Result<(), Failure>, Failure>>;

    /// Starts each process of the release `previous` that does not run yet, and routes requests to the release.
    fn start(&self, previous: Live) -> BoxFuture<'_, Result<(), Failure>>;

    /// Records the duration of a hold.
    fn record(&self, run: HoldRun);

    /// Returns the sizes of the deployment that made the live release live.
    fn earlier_sizes(&self) -> EarlierSizes;

    /// Measures the disk space for a capture of the data, and for a restore of `restored`.
    fn data_space(&self, restored: Option<String>) -> BoxFuture<'_, Result<SpaceEstimate, Failure>>;

    /// Compares the needs of a deployment with the limit of the project. Raises the limit if the server file allows it; the returned note
    /// is for the pusher.
    fn admit<'a>(&'a self, needs: &'a SpaceNeeds) -> BoxFuture<'a, Result<Option<String>, Failure>>;

    /// Returns the means by which the kernel limits the project's space; `None` if the kernel enforces no limit.
    fn storage(&self) -> Option<StorageKind>;

    /// Enlarges the project's own file system or quota by at least `missing` bytes if the server file allows it; the returned note is for the pusher.
    fn enlarge(&self, missing: u64) -> BoxFuture<'_, Result<Option<String>, Failure>>;

    /// Returns the durations of earlier deployments.
    fn earlier(&self) -> EarlierRuns;
}
