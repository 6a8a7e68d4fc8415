//! The pipeline's operations on restore points: take, list, show, verify, compare, remove, and restore beside the live data. This file does
//! not replace the live data; `restore.rs` does.

use jiff::Timestamp;

use super::{
    copy_record::CopyRecord, core::Pipeline, durations::Durations, error::PipelineError, journal::JournalState, queue::Queue,
    restore_record::RestoreRecord, util::chain,
};
use crate::{
    backup::{
        self, BackupContext, BackupError, BackupFailure, CopyRequest, DataDiff, DatabaseJob, DumpJob, DumpReport, FailureKind,
        PointInfo, PointLabel, PointOwner, PointState, RestoreJob, databases::databases_of,
    },
    host::files::FileError,
    model::{Environment, PointId, ReleaseId, UserName},
};

/// The default reason of a restore point, used if the request names no reason.
const REQUESTED: &str = "requested";

/// The priority of a capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Priority {
    /// The priority that processes usually have.
    Usual,
    /// A low priority for processor and disk.
    Low,
}

/// An error of an operation on restore points.
#[derive(Debug, thiserror::Error)]
pub enum PointsError {
    /// The request was refused, for example because another operation is under way, or because the environment is frozen.
    #[error(transparent)]
    NotNow(#[from] PipelineError),
    /// A worker failed. The live data is unchanged.
    #[error(transparent)]
    Worker(#[from] BackupError),
    /// The exchange or its record failed. The live data is unchanged.
    #[error("cannot exchange the data of {environment} with the restored data")]
    Exchange {
        /// The environment, as `project/environment`.
        environment: String,
        /// The cause.
        #[source]
        source: FileError,
    },
    /// The processes could not be stopped or started. The live data is unchanged. The processes of the live release are possibly not
    /// running.
    #[error("cannot restore the data of {environment}, which is unchanged: {why}")]
    Stopped {
        /// The environment, as `project/environment`.
        environment: String,
        /// The cause.
        why: String,
    },
    /// Databases could neither be replaced nor reverted. The application stays stopped until a repeated attempt succeeds.
    #[error("the restore of {environment} is unfinished, and the application stays stopped: {why}")]
    Unfinished {
        /// The environment, as `project/environment`.
        environment: String,
        /// The cause.
        why: String,
    },
}

impl PointsError {
    pub(super) fn refused(why: String) -> PointsError {
        BackupError::Failed(BackupFailure { kind: FailureKind::Refused, why, hint: None }).into()
    }

    pub(super) fn refused_with(why: String, hint: &str) -> PointsError {
        BackupError::Failed(BackupFailure { kind: FailureKind::Refused, why, hint: Some(hint.to_owned()) }).into()
    }
}

fn confused() -> PointsError {
    BackupError::Confused { role: "dump" }.into()
}

impl Pipeline {
    pub(super) fn backup(&self, environment: &Environment) -> BackupContext {
        let launcher = self.services().launcher.clone();
        BackupContext { launcher, project: environment.project_id, environment: environment.id }
    }

    /// Locks the restore points of an environment. Returns the environment's queue and the guard of the lock. Returns an error if the lock
    /// is held, or if the environment does not exist, is being removed or is not recovered yet.
    pub(super) fn lock_points(
        &self,
        environment: &Environment,
    ) -> Result<(Queue, tokio::sync::OwnedMutexGuard<()>), PipelineError> {
        let queue = self.queue_of(environment)?;
        if queue.state.lock().closed {
            return Err(PipelineError::NoEnvironment(environment.title()));
        }
        let busy = || PipelineError::Busy {
            environment: environment.title(),
            doing: String::from("being restored, a dump is being loaded, or a restore point of it is being taken or removed"),
        };
        let locked = queue.points.clone().try_lock_owned().map_err(|_| busy())?;
        Ok((queue, locked))
    }

    /// Takes a restore point of the live data while the application serves.
    pub async fn take_point(
        &self,
        environment: &Environment,
        by: UserName,
        reason: Option<String>,
    ) -> Result<PointInfo, PointsError> {
        let (queue, _locked) = self.lock_points(environment)?;
        let reason = reason.unwrap_or_else(|| String::from(REQUESTED));
        let taken = self.take(&queue, environment, by, reason, false).await?;
        self.request_copies(environment);
        Ok(taken)
    }

    /// Returns the databases of the live release, as its settings and variables name them, and the database that `larder db create` created.
    pub(super) fn databases(&self, queue: &Queue, environment: &Environment) -> Result<Vec<DatabaseJob>, PointsError> {
        let live = queue.state.lock().live.clone();
        self.databases_of(queue, environment, live.map(|live| live.release))
    }

    /// Returns the databases of a release that was or is live.
    pub(super) fn databases_of(
        &self,
        queue: &Queue,
        environment: &Environment,
        release: Option<ReleaseId>,
    ) -> Result<Vec<DatabaseJob>, PointsError> {
        let deployment = {
            let state = queue.state.lock();
            release.and_then(|release| state.history.of_release(release)).map(|summary| summary.deployment)
        };
        let unknown = |error: &(dyn std::error::Error + 'static)| {
            PointsError::refused(format!("cannot find the databases of {}: {}", environment.title(), chain(error)))
        };
        let paths = self.services().root.environment(&environment.project, &environment.name);
        let facts = deployment.map(|deployment| JournalState::read(&paths.deployment(deployment)).map(|state| state.facts));
        let facts = facts.transpose().map_err(|error| unknown(&error))?.unwrap_or_default();
        let mut env = facts.env;
        if let Some(release) = release {
            let configuration = self.configuration_of(environment, release).map_err(|error| unknown(&error))?;
            env.extend(configuration.split_text().0);
        }
        let created = self.stored_database_url(environment).map_err(|error| unknown(&error))?;
        if let Some(url) = created {
            // The live release has this variable only if a deployment has read it since.
            env.entry(String::from("DATABASE_URL")).or_insert_with(|| url.expose().to_owned());
        }
        let databases = databases_of(&facts.settings.unwrap_or_default(), &env);
        databases.map_err(|conflict| PointsError::refused_with(conflict.to_string(), &conflict.hint))
    }

    /// Takes a restore point. The caller holds the lock of the restore points.
    pub(super) async fn take(
        &self,
        queue: &Queue,
        environment: &Environment,
        by: UserName,
        reason: String,
        exact: bool,
    ) -> Result<PointInfo, PointsError> {
        self.take_with(queue, environment, by, reason, exact, Priority::Usual).await
    }

    /// Takes a restore point like [`Pipeline::take`], with a priority.
    pub(super) async fn take_with(
        &self,
        queue: &Queue,
        environment: &Environment,
        by: UserName,
        reason: String,
        exact: bool,
        priority: Priority,
    ) -> Result<PointInfo, PointsError> {
        let databases = self.databases(queue, environment)?;
        self.take_of(queue, environment, (by, reason), exact, priority, (databases, Vec::new())).await
    }

    /// Takes a restore point with the dumps of the first databases. The second databases among them are copied on their servers, and the
    /// dumps follow later.
    pub(super) async fn take_of(
        &self,
        queue: &Queue,
        environment: &Environment,
        (by, reason): (UserName, String),
        exact: bool,
        priority: Priority,
        (databases, copies): (Vec<DatabaseJob>, Vec<CopyRequest>),
    ) -> Result<PointInfo, PointsError> {
        let live = queue.state.lock().live.clone();
        let custom = match &live {
            Some(live) => self.back_up_custom(environment, live).await?,
            None => false,
        };
        let configuration = self.configuration_for_point(environment, live.as_ref());
        let label = PointLabel {
            project: environment.project.clone(),
            environment: environment.name.clone(),
            release: live.as_ref().map(|live| live.release),
            number: live.as_ref().map(|live| live.number),
            commit: live.map(|live| live.commit),
            by,
            reason,
            databases: Vec::new(),
            custom,
            sessions: Vec::new(),
            configuration,
        };
        let id = PointId::new(Timestamp::now());
        let paths = self.services().root.environment(&environment.project, &environment.name);
        if !copies.is_empty() {
            let recorded = CopyRecord::add(&paths.copies(), id, label.release);
            recorded.map_err(|error| PointsError::refused(format!("cannot copy a database: {}", chain(&error))))?;
        }
        let job = DumpJob::Take { id, label, exact, databases, copies };
        let job = match priority {
            Priority::Usual => job,
            Priority::Low => DumpJob::Quietly(Box::new(job)),
        };
        let taken = backup::dump(&self.backup(environment), &job).await;
        if custom {
            self.clear_custom(environment).await;
        }
        match taken? {
            DumpReport::Point(info, _) => {
                // A capture with low priority says nothing about a capture during a hold.
                if priority == Priority::Usual {
                    Durations::add_point(&paths.durations(), &info);
                }
                Ok(*info)
            }
            _ => Err(confused()),
        }
    }

    /// Returns the restore points, newest first, their total disk usage in bytes, and the record of the last restore of the live data.
    pub async fn points(&self, environment: &Environment) -> Result<(Vec<PointInfo>, u64, Option<RestoreRecord>), PointsError> {
        match backup::dump(&self.backup(environment), &DumpJob::List).await? {
            DumpReport::List(points, bytes) => Ok((points, bytes, self.last_restore(environment))),
            _ => Err(confused()),
        }
    }

    /// Returns the record of the last restore of the live data.
    pub fn last_restore(&self, environment: &Environment) -> Option<RestoreRecord> {
        // The start of the environment has reported a record that cannot be used.
        RestoreRecord::read(&self.services().root.environment(&environment.project, &environment.name)).ok().flatten()
    }

    /// Returns the description of a restore point.
    pub async fn point(&self, environment: &Environment, point: String) -> Result<PointInfo, PointsError> {
        match backup::describe(&self.backup(environment), point).await? {
            DumpReport::Point(info, _) => Ok(*info),
            _ => Err(confused()),
        }
    }

    /// Reads a restore point back. Returns its description and the damaged files.
    pub async fn verify_point(&self, environment: &Environment, point: String) -> Result<(PointInfo, Vec<String>), PointsError> {
        match backup::dump(&self.backup(environment), &DumpJob::Verify { point }).await? {
            DumpReport::Point(info, damages) => {
                self.refresh_points(environment).await;
                Ok((*info, damages))
            }
            _ => Err(confused()),
        }
    }

    /// Removes a restore point, and returns its id.
    pub async fn remove_point(&self, environment: &Environment, point: String) -> Result<String, PointsError> {
        let (_queue, _locked) = self.lock_points(environment)?;
        match backup::dump(&self.backup(environment), &DumpJob::Remove { point }).await? {
            DumpReport::Removed(id) => {
                self.refresh_points(environment).await;
                Ok(id)
            }
            _ => Err(confused()),
        }
    }

    /// Writes a restore point as an archive to `out`.
    pub async fn export_point(
        &self,
        environment: &Environment,
        point: String,
        out: std::os::fd::OwnedFd,
    ) -> Result<String, PointsError> {
        Ok(backup::export(&self.backup(environment), point, owner(environment), out).await?)
    }

    /// Compares a restore point with another restore point, or with the live data.
    pub async fn diff_points(
        &self,
        environment: &Environment,
        from: String,
        to: Option<String>,
    ) -> Result<DataDiff, PointsError> {
        match backup::dump(&self.backup(environment), &DumpJob::Diff { from, to }).await? {
            DumpReport::Diff(diff) => Ok(diff),
            _ => Err(confused()),
        }
    }

    /// Restores a restore point into a new directory beside the live data. Returns the path of the directory and the report of the
    /// restore worker.
    pub async fn restore_beside(
        &self,
        environment: &Environment,
        point: String,
        name: String,
    ) -> Result<(std::path::PathBuf, backup::Filled), PointsError> {
        let (_queue, _locked) = self.lock_points(environment)?;
        let paths = self.services().root.environment(&environment.project, &environment.name);
        let space = self.measure(environment, Some(point.clone())).await?;
        space.without_capture().check("restore beside the live data", 0).map_err(BackupError::from)?;
        let job = RestoreJob::Beside { point, owner: owner(environment), name: name.clone() };
        let filled = backup::restore(&self.backup(environment), &job).await?;
        Ok((paths.restored().join(name), filled))
    }
}

/// Refuses a restore point whose dumps are not written yet.
pub(super) fn check_complete(point: &PointInfo) -> Result<(), PointsError> {
    match &point.state {
        PointState::Incomplete(why) => Err(PointsError::refused_with(
            format!("cannot restore {}: {why}", point.id),
            "repeat the command when `larder backup list` shows that the restore point is complete",
        )),
        _ => Ok(()),
    }
}

/// Returns the owner that a restore point must have, so that it can be restored into `environment`.
pub(super) fn owner(environment: &Environment) -> PointOwner {
    PointOwner { project: environment.project.clone(), environment: environment.name.clone() }
}
