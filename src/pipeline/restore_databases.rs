//! The databases of a restore that replaces the live data.
//!
//! Files and databases are one act although no transaction contains both. While all processes of the application are stopped, the record
//! says that the databases are being replaced (`applying`), then each database is replaced whole, and then the files are exchanged. A replacement
//! may be repeated. After a kill, the next server therefore replaces all databases once more and exchanges the files, before it starts the
//! live release. If a database cannot be replaced, the databases go back to the restore point that was taken of the old data (`reverting`).
//! If this fails as well, for example because the database server is down, the application stays stopped, and the attempt is repeated until it
//! succeeds.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use tokio::sync::OwnedMutexGuard;

use super::{
    core::Pipeline,
    fault,
    points::{PointsError, owner},
    queue::Queue,
    restore_record::{RestoreEnd, RestoreRecord, RestoreStage},
    util::{chain, run_blocking},
};
use crate::{
    backup::{self, BackupError, DatabaseJob, FailureKind, OtherSessions, PointInfo, RestoreJob, is_separate},
    host::{files, root::EnvironmentPaths},
    model::{Environment, Live},
    proxy::RouteState,
};

/// The pauses after the first attempts to finish a restore.
const PAUSES: [Duration; 4] = [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(5), Duration::from_secs(15)];

/// The pause after each later attempt.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The time between two checks for the removal of the environment.
const POLL: Duration = Duration::from_millis(200);

/// The number of failed attempts that are logged. The error page shows the cause of each attempt.
const LOGGED: usize = 5;

impl Pipeline {
    /// Returns the databases of the live release whose dumps a restore point contains. A dump without a database of the same name and engine
    /// is an error.
    pub(super) fn databases_in(
        &self,
        queue: &Queue,
        environment: &Environment,
        point: &PointInfo,
    ) -> Result<Vec<DatabaseJob>, PointsError> {
        let live = queue.state.lock().live.clone();
        self.databases_in_for(queue, environment, point, live.as_ref())
    }

    /// Returns the databases of the release `live` whose dumps a restore point contains, like [`Pipeline::databases_in`].
    pub(super) fn databases_in_for(
        &self,
        queue: &Queue,
        environment: &Environment,
        point: &PointInfo,
        live: Option<&Live>,
    ) -> Result<Vec<DatabaseJob>, PointsError> {
        let dumps = point.label.as_ref().map(|label| label.databases.as_slice()).unwrap_or_default();
        let dumps: Vec<_> = dumps.iter().filter(|dump| is_separate(dump)).collect();
        if dumps.is_empty() {
            return Ok(Vec::new());
        }
        let present = self.databases_of(queue, environment, live.map(|live| live.release))?;
        let of_dump = |dump: &&backup::DumpInfo| {
            let found = present.iter().find(|job| (&job.name, job.engine) == (&dump.name, dump.engine));
            found.cloned().ok_or_else(|| {
                PointsError::refused_with(
                    format!(
                        "cannot restore {}: the live release has no {} database {}, whose dump is in the restore point",
                        point.id,
                        dump.engine.title(),
                        dump.name
                    ),
                    "declare the database in `databases:` of larder.yml and deploy, or write the dump beside the data with `--into NAME`",
                )
            })
        };
        dumps.iter().map(of_dump).collect()
    }

    /// Replaces the databases of a restore point while all processes of the application are stopped. After an error, the databases are the old
    /// ones, unless [`RestoreRecord::is_mixed`] returns true.
    pub(super) async fn replace_databases(
        &self,
        environment: &Environment,
        paths: &EnvironmentPaths,
        record: &mut RestoreRecord,
    ) -> Result<(), PointsError> {
        let databases = record.databases.clone();
        if databases.is_empty() {
            return Ok(());
        }
        record.stage = Some(RestoreStage::Applying);
        if let Err(source) = record.write(paths) {
            // The file may have its new content despite the error. The release must not start before the content is certain.
            self.revert_databases(environment, paths, record, &[]).await?;
            return Err(PointsError::Exchange { environment: environment.title(), source });
        }
        fault::in_restore("applying");
        for (at, database) in databases.iter().enumerate() {
            let replaced = self.replace_database(environment, record.point.clone(), database).await;
            fault::in_restore("database");
            let Err(error) = replaced else { continue };
            // A refused replacement has not changed its database. After any other error, the state of this database is unknown.
            let is_unchanged = matches!(&error, BackupError::Failed(failure) if failure.kind != FailureKind::Machine);
            let changed = databases.get(..at + usize::from(!is_unchanged)).unwrap_or_default();
            return Err(match self.revert_databases(environment, paths, record, changed).await {
                Ok(()) => error.into(),
                Err(second) => unfinished(environment, &format!("{}; then {}", chain(&error), chain(&second))),
            });
        }
        Ok(())
    }

    /// Replaces one database with its dump in a restore point. Returns the sessions of other clients that used the database, if there were any.
    pub(super) async fn replace_database(
        &self,
        environment: &Environment,
        point: String,
        database: &DatabaseJob,
    ) -> Result<Option<OtherSessions>, BackupError> {
        let job = RestoreJob::Database { point, owner: owner(environment), database: database.clone() };
        backup::restore_again(&self.backup(environment), &job).await.map(|filled| filled.sessions)
    }

    /// Puts the old content into databases, from the restore point that was taken before. After an error, [`RestoreRecord::is_mixed`] returns
    /// true.
    pub(super) async fn revert_databases(
        &self,
        environment: &Environment,
        paths: &EnvironmentPaths,
        record: &mut RestoreRecord,
        databases: &[DatabaseJob],
    ) -> Result<(), PointsError> {
        let failed = |source| PointsError::Exchange { environment: environment.title(), source };
        record.stage = Some(RestoreStage::Reverting);
        if !databases.is_empty() {
            record.write(paths).map_err(failed)?;
            fault::in_restore("reverting");
            let before = record.before.clone().unwrap_or_default();
            for database in databases {
                self.replace_database(environment, before.clone(), database).await?;
            }
        }
        record.stage = None;
        // With the old stage on the disk, the next start would revert what the application has written until then.
        record.write(paths).map_err(|source| {
            record.stage = Some(RestoreStage::Reverting);
            failed(source)
        })
    }

    /// Finishes or reverts a restore that a kill or an error left between the databases and the files.
    async fn finish_databases(
        &self,
        queue: &Queue,
        environment: &Environment,
        paths: &EnvironmentPaths,
        record: &mut RestoreRecord,
    ) -> Result<(), PointsError> {
        if record.end_by(paths) == RestoreEnd::Restored {
            // The previous server was killed between the exchange of the files and the end of `.larder/restore`.
            self.finish_custom(queue, environment, record).await;
            return Ok(());
        }
        let point = self.point(environment, record.point.clone()).await?;
        let databases = self.databases_in(queue, environment, &point)?;
        if record.stage == Some(RestoreStage::Applying) {
            match self.apply_again(environment, paths, record, &databases).await {
                Ok(()) => {
                    self.finish_custom(queue, environment, record).await;
                    return Ok(());
                }
                Err(error) => tracing::warn!(
                    environment = environment.title(),
                    error = chain(&error),
                    "cannot finish a restore; the old databases are put back"
                ),
            }
        }
        self.revert_databases(environment, paths, record, &databases).await
    }

    /// Restores the files of `.larder/backup` of a restore that was killed before this work. A failure is only logged, as in a restore without a
    /// kill, where the person repeats the restore.
    async fn finish_custom(&self, queue: &Queue, environment: &Environment, record: &mut RestoreRecord) {
        if record.owes_custom
            && let Err(error) = self.restore_owed(queue, environment, record).await
        {
            tracing::error!(
                environment = environment.title(),
                error = chain(&error),
                "files and databases are restored, but the project's own data is not; repeat the restore"
            );
        }
    }

    async fn apply_again(
        &self,
        environment: &Environment,
        paths: &EnvironmentPaths,
        record: &RestoreRecord,
        databases: &[DatabaseJob],
    ) -> Result<(), PointsError> {
        for database in databases {
            self.replace_database(environment, record.point.clone(), database).await?;
        }
        let exchanged = run_blocking(|| files::exchange(&paths.data(), &paths.restoring()));
        match exchanged {
            Err(source) if record.end_by(paths) == RestoreEnd::Unchanged => {
                Err(PointsError::Exchange { environment: environment.title(), source })
            }
            // The files were exchanged, and only the sync failed.
            _ => Ok(()),
        }
    }

    /// Keeps the application stopped, finishes the restore in the background, and then starts the live release.
    pub(super) fn finish_mixed(&self, queue: &Queue, paths: &EnvironmentPaths, mut record: RestoreRecord, locks: RestoreLocks) {
        let (this, queue, paths) = (self.clone(), queue.clone(), paths.clone());
        let environment = queue.environment();
        let route = self.services().route(&environment);
        let why = format!("the restore of {} is unfinished: files and databases do not belong together yet", record.point);
        drop(route.set(RouteState::Failed(why)));
        queue.restoring.store(true, Relaxed);
        self.0.tasks.spawn(async move {
            let _locks = locks;
            let all = this.services().runtime.stop_where(environment.id, Duration::ZERO, |_| true).await;
            if let Err(error) = all {
                tracing::warn!(
                    environment = environment.title(),
                    error = chain(&error),
                    "cannot stop processes before a restore"
                );
            }
            let mut pauses = PAUSES.into_iter().chain(std::iter::repeat(LONGEST_PAUSE)).enumerate();
            while let Err(error) = this.finish_databases(&queue, &environment, &paths, &mut record).await {
                let Some((attempt, pause)) = pauses.next() else { break };
                if attempt < LOGGED {
                    tracing::error!(
                        environment = environment.title(),
                        error = chain(&error),
                        "a restore is unfinished; the application stays stopped"
                    );
                }
                drop(route.set(RouteState::Failed(unfinished(&environment, &chain(&error)).to_string())));
                if is_closed_within(&queue, pause).await {
                    // A person removes the environment, which waits for these locks.
                    return;
                }
            }
            this.end_restore(&environment, &paths, &mut record).await;
            queue.restoring.store(false, Relaxed);
            this.serve_again(&queue, &paths).await;
        });
    }
}

/// Waits for `pause`. Returns true earlier if the environment is being removed.
async fn is_closed_within(queue: &Queue, pause: Duration) -> bool {
    let begun = tokio::time::Instant::now();
    while begun.elapsed() < pause {
        if queue.state.lock().closed {
            return true;
        }
        tokio::time::sleep(POLL.min(pause)).await;
    }
    false
}

/// The locks that a restore holds until files and databases belong together: the lock of deployments and restarts, and the lock of the restore
/// points.
pub(super) type RestoreLocks = (OwnedMutexGuard<()>, OwnedMutexGuard<()>);

pub(super) fn unfinished(environment: &Environment, why: &str) -> PointsError {
    PointsError::Unfinished { environment: environment.title(), why: why.to_owned() }
}
