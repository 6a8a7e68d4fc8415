//! Requests about single restore points; `backup_list.rs` has the other requests. Taking, showing, verifying and comparing restore points
//! need the right to deploy. Removing and restoring need the right to operate, because both can lose data that users have written. Exporting
//! needs the right to operate, because the archive contains all of this data.

use std::{os::fd::OwnedFd, time::Duration};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde::Serialize;

use super::deployments::of_pipeline;
use crate::{
    backup::{BackupError, DataDiff, DumpInfo, FailureKind, OtherSessions, PointCounts, PointInfo, PointState},
    control::{
        authz::Needs,
        error::{CommandError, ErrorKind, not_found, refused, usage},
        request::{Confirmation, Context, Reply, Request, Stream},
    },
    model::{Access, CommitId, Environment, ReleaseId, ReleaseNumber, SnapshotNumber, Target, UserName, sanitise_line},
    pipeline::{DrillRecord, Pipeline, PointsError},
};

/// The maximum length of the reason of a restore point, in bytes.
const MAX_REASON: usize = 300;

/// The request to take a restore point.
#[derive(Debug)]
pub struct BackupTake {
    /// The environment.
    pub target: Target,
    /// The reason, as one line.
    pub reason: Option<String>,
}

/// The request to describe a restore point.
#[derive(Debug)]
pub struct BackupShow {
    /// The environment.
    pub target: Target,
    /// The id of the restore point, the beginning or end of its id, or `latest`.
    pub point: String,
}

/// The request to verify a restore point, which reads all of its files back.
#[derive(Debug)]
pub struct BackupVerify {
    /// The environment.
    pub target: Target,
    /// The id of the restore point, the beginning or end of its id, or `latest`.
    pub point: String,
}

/// The request to remove a restore point.
#[derive(Debug)]
pub struct BackupRemove {
    /// The environment.
    pub target: Target,
    /// The id of the restore point, the beginning or end of its id, or `latest`.
    pub point: String,
}

/// The request to compare two restore points, or a restore point with the live data.
#[derive(Debug)]
pub struct BackupDiff {
    /// The environment.
    pub target: Target,
    /// The older restore point.
    pub from: String,
    /// The newer restore point; absent to compare with the live data.
    pub to: Option<String>,
}

/// The request to restore a restore point.
#[derive(Debug)]
pub struct BackupRestore {
    /// The environment.
    pub target: Target,
    /// The id of the restore point, the beginning or end of its id, or `latest`.
    pub point: String,
    /// The target of the restore.
    pub way: RestoreWay,
}

/// The target of a restore.
#[derive(Debug)]
pub enum RestoreWay {
    /// A new directory beside the live data.
    Beside(String),
    /// The live data. Without confirmation, the answer is a preview, after which a person can confirm the request on a terminal.
    Live {
        /// True to replace the live data.
        confirmed: bool,
    },
}

/// The answer about one restore point.
#[derive(Debug, Clone, Serialize)]
pub struct PointView {
    /// The environment, as `project/environment`.
    pub environment: String,
    /// The id.
    pub id: String,
    /// The time of the capture.
    pub taken: Option<Timestamp>,
    /// The reliability: `ok` (read back without a difference), `unverified`, `damaged` or `unusable`.
    pub state: &'static str,
    /// The time of the last verification.
    pub verified: Option<Timestamp>,
    /// The defect of a damaged or unusable restore point.
    pub defect: Option<String>,
    /// The live release at the time of the capture.
    pub release: Option<ReleaseId>,
    /// The number of the live release.
    pub number: Option<ReleaseNumber>,
    /// The commit of the live release.
    pub commit: Option<CommitId>,
    /// The number of the configuration of the live release; absent without a configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub configuration: Option<SnapshotNumber>,
    /// The user who requested the restore point.
    pub by: Option<UserName>,
    /// The reason, as one line.
    pub reason: Option<String>,
    /// The dumps of databases.
    pub databases: Vec<DumpInfo>,
    /// The sessions of other clients on the databases while the processes of the application were stopped for the restore point.
    pub sessions: Vec<OtherSessions>,
    /// The numbers of files and bytes.
    #[serde(flatten)]
    pub counts: PointCounts,
    /// The files that the capture skipped, at most 1000, as pairs of path and reason; empty in a list of restore points.
    pub left_out: Vec<(String, String)>,
    /// The last drill, if it was a drill of this restore point; absent in all answers except that of `backup show`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drill: Option<DrillRecord>,
}

impl PointView {
    pub(super) fn new(environment: &Environment, info: PointInfo) -> PointView {
        let at = |second: i64| Timestamp::from_second(second).ok();
        let (state, verified, defect) = match info.state {
            PointState::Unverified => ("unverified", None, None),
            PointState::Verified(time) => ("ok", at(time), None),
            PointState::Damaged(1, time) => ("damaged", at(time), Some(String::from("1 stored file differs"))),
            PointState::Damaged(count, time) => ("damaged", at(time), Some(format!("{count} stored files differ"))),
            PointState::Unusable(why) => ("unusable", None, Some(sanitise_line(&why))),
            PointState::Incomplete(why) => ("incomplete", None, Some(sanitise_line(&why))),
        };
        let label = info.label.as_ref();
        PointView {
            environment: environment.title(),
            id: info.id,
            taken: info.taken.and_then(at),
            state,
            verified,
            defect,
            release: label.and_then(|label| label.release),
            number: label.and_then(|label| label.number),
            commit: label.and_then(|label| label.commit.clone()),
            configuration: label.and_then(|label| label.configuration.as_ref()).map(|known| known.snapshot.number),
            by: label.map(|label| label.by.clone()),
            reason: label.map(|label| sanitise_line(&label.reason)),
            databases: label.map(|label| label.databases.clone()).unwrap_or_default(),
            sessions: label.map(|label| label.sessions.clone()).unwrap_or_default(),
            counts: info.counts,
            left_out: info.skipped,
            drill: None,
        }
    }
}

/// A verified restore point.
#[derive(Debug, Clone, Serialize)]
pub struct VerifyView {
    /// The restore point.
    #[serde(flatten)]
    pub point: PointView,
    /// The damaged files, at most 1000, as lines of path and fault.
    pub damages: Vec<String>,
}

/// A restore point that was removed.
#[derive(Debug, Clone, Serialize)]
pub struct BackupRemoved {
    /// The environment, as `project/environment`.
    pub environment: String,
    /// The id.
    pub removed: String,
}

/// The answer to [`BackupRestore`].
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum RestoreView {
    /// The restore point was restored beside the live data.
    Beside {
        /// The environment, as `project/environment`.
        environment: String,
        /// The restore point.
        point: String,
        /// The new directory, on the server.
        path: String,
        /// The number of restored files.
        files: u64,
        /// The total size of the restored files, in bytes.
        bytes: u64,
    },
    /// The live data was replaced.
    Live(LiveRestored),
    /// Nothing was changed, because the request was not confirmed.
    Preview(Box<RestorePreview>),
}

/// A restore of the live data.
#[derive(Debug, Clone, Serialize)]
pub struct LiveRestored {
    /// The environment, as `project/environment`.
    pub environment: String,
    /// The restore point.
    pub restored: String,
    /// The restore point of the data that was replaced.
    pub before: String,
    /// The number of restored files.
    pub files: u64,
    /// The total size of the restored files, in bytes.
    pub bytes: u64,
    /// The number of entries whose owner could not be restored.
    pub lost_owners: u64,
    /// The time during which the application did not serve, in milliseconds.
    pub interrupted_ms: u64,
    /// The reason why the live release does not run; absent if the release runs.
    pub not_running: Option<String>,
}

/// The preview of a restore: the changes to the live data that the restore would lose.
#[derive(Debug, Clone, Serialize)]
pub struct RestorePreview {
    /// The environment, as `project/environment`.
    pub environment: String,
    /// The restore point.
    pub point: PointView,
    /// The differences of the live data from the restore point.
    pub would_lose: DataDiff,
}

/// The request to write a restore point as one archive.
#[derive(Debug)]
pub struct BackupExport {
    /// The environment.
    pub target: Target,
    /// The id of the restore point, the beginning or end of its id, or `latest`.
    pub point: String,
}

impl Request for BackupExport {
    type View = ();
    const NAME: &'static str = "backup export";

    fn needs(&self) -> Needs {
        // The archive contains all data of the users. `larder run`, which can read the same data, needs the same right.
        Needs::environment(&self.target, Access::Operate)
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<()>, CommandError> {
        point_name(&self.point)?;
        let environment = control.environment(&self.target)?;
        let pipeline = control.pipeline().clone();
        // A restore point that cannot be exported is refused before the first byte.
        let info = pipeline.point(&environment, self.point).await.map_err(|error| of_points(&error))?;
        if let PointState::Damaged(..) = info.state {
            return Err(refused(format!("cannot export {}: stored files are damaged", info.id))
                .hint("choose another restore point, and check it with `larder backup verify`"));
        }
        let send = move |out: OwnedFd| -> BoxFuture<'static, _> {
            Box::pin(async move {
                let sent = pipeline.export_point(&environment, info.id, out).await;
                sent.map(drop).map_err(|error| of_points(&error))
            })
        };
        Ok(Reply::Stream(Stream::Bytes(Box::new(send))))
    }
}

pub(super) fn of_points(error: &PointsError) -> CommandError {
    let failure = match error {
        PointsError::NotNow(why) => return of_pipeline(why),
        PointsError::Stopped { .. } | PointsError::Unfinished { .. } => {
            return CommandError::new(ErrorKind::Deployment, error.to_string());
        }
        PointsError::Worker(BackupError::Failed(failure)) => failure,
        PointsError::Worker(other) => return CommandError::internal(other),
        PointsError::Exchange { .. } => return CommandError::internal(error),
    };
    let why = sanitise_line(&failure.why);
    let error = match failure.kind {
        FailureKind::NotFound => not_found(why),
        FailureKind::Refused | FailureKind::Recognised => refused(why),
        FailureKind::Damaged => refused(why).hint("choose another restore point, and check it with `larder backup verify`"),
        FailureKind::NoSpace => refused(why).hint("free disk space, or remove a restore point with `larder backup remove`"),
        FailureKind::Machine => CommandError::new(ErrorKind::Internal, why),
    };
    match &failure.hint {
        Some(hint) => error.hint(hint.clone()),
        None => error,
    }
}

/// Checks the name of a restore point. Messages contain the name, so control characters are refused.
pub(super) fn point_name(name: &str) -> Result<(), CommandError> {
    let is_good = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty() || name.len() > 128 || !name.chars().all(is_good) {
        return Err(usage(format!(
            "cannot find the restore point {:?}: not the name of a restore point (expected 1 to 128 of A-Z a-z 0-9 . _ -)",
            name.chars().take(128).collect::<String>()
        ))
        .hint("name its id, four or more characters at the beginning or end of its id, or `latest`"));
    }
    Ok(())
}

impl Request for BackupTake {
    type View = PointView;
    const NAME: &'static str = "backup take";

    fn needs(&self) -> Needs {
        Needs::environment(&self.target, Access::Deploy)
    }

    async fn handle(self, Context { control, caller }: &Context<'_>) -> Result<Reply<PointView>, CommandError> {
        let environment = control.environment(&self.target)?;
        if self.reason.as_ref().is_some_and(|reason| reason.len() > MAX_REASON || reason.chars().any(char::is_control)) {
            return Err(usage(format!("cannot take a restore point: the reason is not one line of at most {MAX_REASON} bytes")));
        }
        let taken = control.pipeline().take_point(&environment, caller.name(), self.reason).await;
        Ok(PointView::new(&environment, taken.map_err(|error| of_points(&error))?).into())
    }
}

impl Request for BackupShow {
    type View = PointView;
    const NAME: &'static str = "backup show";

    fn needs(&self) -> Needs {
        Needs::environment(&self.target, Access::Deploy)
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<PointView>, CommandError> {
        point_name(&self.point)?;
        let environment = control.environment(&self.target)?;
        let info = control.pipeline().point(&environment, self.point).await.map_err(|error| of_points(&error))?;
        let drill = control.pipeline().backup_overview(&environment).record.ok().and_then(|record| record.drill);
        let drill = drill.filter(|drill| drill.point == info.id);
        Ok(PointView { drill, ..PointView::new(&environment, info) }.into())
    }
}

impl Request for BackupVerify {
    type View = VerifyView;
    const NAME: &'static str = "backup verify";

    fn needs(&self) -> Needs {
        Needs::environment(&self.target, Access::Deploy)
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<VerifyView>, CommandError> {
        point_name(&self.point)?;
        let environment = control.environment(&self.target)?;
        let verified = control.pipeline().verify_point(&environment, self.point).await;
        let (info, damages) = verified.map_err(|error| of_points(&error))?;
        Ok(VerifyView { point: PointView::new(&environment, info), damages }.into())
    }
}

impl Request for BackupRemove {
    type View = BackupRemoved;
    const NAME: &'static str = "backup remove";

    fn needs(&self) -> Needs {
        Needs::environment(&self.target, Access::Operate)
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<BackupRemoved>, CommandError> {
        point_name(&self.point)?;
        let environment = control.environment(&self.target)?;
        let removed = control.pipeline().remove_point(&environment, self.point).await.map_err(|error| of_points(&error))?;
        Ok(BackupRemoved { environment: environment.title(), removed }.into())
    }
}

impl Request for BackupDiff {
    type View = DataDiff;
    const NAME: &'static str = "backup diff";

    fn needs(&self) -> Needs {
        Needs::environment(&self.target, Access::Deploy)
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<DataDiff>, CommandError> {
        point_name(&self.from)?;
        self.to.as_deref().map(point_name).transpose()?;
        let environment = control.environment(&self.target)?;
        let diff = control.pipeline().diff_points(&environment, self.from, self.to).await;
        Ok(diff.map_err(|error| of_points(&error))?.into())
    }
}

impl Request for BackupRestore {
    type View = RestoreView;
    const NAME: &'static str = "backup restore";

    fn needs(&self) -> Needs {
        Needs::environment(&self.target, Access::Operate)
    }

    async fn handle(self, Context { control, caller }: &Context<'_>) -> Result<Reply<RestoreView>, CommandError> {
        point_name(&self.point)?;
        let environment = control.environment(&self.target)?;
        let (pipeline, title) = (control.pipeline(), environment.title());
        let view = match self.way {
            RestoreWay::Beside(name) => {
                let restored = pipeline.restore_beside(&environment, self.point, name).await;
                let (path, filled) = restored.map_err(|error| of_points(&error))?;
                RestoreView::Beside {
                    environment: title,
                    point: filled.point,
                    path: path.display().to_string(),
                    files: filled.files,
                    bytes: filled.bytes,
                }
            }
            RestoreWay::Live { confirmed: false } => {
                let info = pipeline.point(&environment, self.point).await.map_err(|error| of_points(&error))?;
                let id = info.id.clone();
                let diff = pipeline.diff_points(&environment, id.clone(), None).await;
                let would_lose = diff.map_err(|error| of_points(&error))?;
                let point = PointView::new(&environment, info);
                let view = RestoreView::Preview(Box::new(RestorePreview { environment: title, point, would_lose }));
                let (pipeline, by, word) = (pipeline.clone(), caller.name(), environment.project.to_string());
                let proceed = move || -> BoxFuture<'static, _> {
                    Box::pin(async move { restore_live(&pipeline, &environment, id, by).await.map(Reply::View) })
                };
                return Ok(Reply::Confirm(Box::new(Confirmation { view, word, proceed: Box::new(proceed) })));
            }
            RestoreWay::Live { confirmed: true } => restore_live(pipeline, &environment, self.point, caller.name()).await?,
        };
        Ok(view.into())
    }
}

async fn restore_live(
    pipeline: &Pipeline,
    environment: &Environment,
    point: String,
    by: UserName,
) -> Result<RestoreView, CommandError> {
    // The restored data may have been written with a configuration whose file was lost together with the data.
    pipeline.put_back_configuration(environment, point.clone()).await.map_err(|error| of_points(&error))?;
    let restored = pipeline.restore_live(environment, point, by).await.map_err(|error| of_points(&error))?;
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Ok(RestoreView::Live(LiveRestored {
        environment: environment.title(),
        restored: restored.point,
        before: restored.before,
        files: restored.files,
        bytes: restored.bytes,
        lost_owners: restored.lost_owners,
        interrupted_ms: millis(restored.interrupted),
        not_running: restored.not_running,
    }))
}
