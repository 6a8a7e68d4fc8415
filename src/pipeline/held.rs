//! The operations of [`LiveApp`]: restore points, restores and starts of the live release while a deployment holds the lock of deployments
//! and restarts.

use std::sync::Arc;

use super::{
    core::{LiveHandle, Pipeline},
    durations::{Durations, HoldRun, MethodEstimate},
    failure::Failure,
    fault,
    forecast::earlier,
    live_app::{EarlierRuns, EarlierSizes, LiveApp},
    points::{PointsError, Priority, check_complete, owner},
    queue::Queue,
    restore::mount_at_or_below,
    restore_record::RestoreRecord,
    slots::UNDO_GRACE,
    util::chain,
};
use crate::{
    backup::{
        self, CopyRequest, DATABASES, DatabaseJob, DumpJob, OtherSessions, PointInfo, RestoreJob, SpaceEstimate, clones_files,
    },
    host::root::EnvironmentPaths,
    model::{Environment, Live, ReleaseId, Slot, StorageKind, UserName},
    runtime::Label,
    space::SpaceNeeds,
};
use futures_util::future::BoxFuture;

impl LiveApp for LiveHandle {
    fn lock(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            if self.locked.lock().is_none() {
                let guard = self.queue.points.clone().lock_owned().await;
                *self.locked.lock() = Some(Arc::new(guard));
            }
        })
    }

    fn unlock(&self) {
        *self.locked.lock() = None;
    }

    fn has_restored(&self, point: &str) -> bool {
        let environment = self.queue.environment();
        let paths = self.pipeline.services().root.environment(&environment.project, &environment.name);
        RestoreRecord::is_live(point, &paths)
    }

    fn note_restored(&self, point: String, by: UserName) {
        let environment = self.queue.environment();
        let paths = self.pipeline.services().root.environment(&environment.project, &environment.name);
        if let Err(error) = RestoreRecord::note(point, by, &paths) {
            tracing::warn!(environment = environment.title(), error = chain(&error), "cannot record that the old data is live");
        }
    }

    fn take(&self, by: UserName, reason: String, exact: bool) -> BoxFuture<'_, Result<PointInfo, Failure>> {
        Box::pin(async move {
            self.lock().await;
            let environment = self.queue.environment();
            let taken = self.pipeline.take(&self.queue, &environment, by.clone(), reason.clone(), exact).await;
            match taken {
                // A database that the recipe does not declare is possibly none that the application uses, so it prevents no deployment.
                Err(PointsError::Worker(backup::BackupError::Failed(failed)))
                    if !exact && failed.kind == backup::FailureKind::Recognised =>
                {
                    self.take_files(&environment, by, reason, failed).await.map_err(|error| failure(&error))
                }
                taken => taken.map_err(|error| failure(&error)),
            }
        })
    }

    fn take_copies(&self, by: UserName, reason: String, copies: Vec<CopyRequest>) -> BoxFuture<'_, Result<PointInfo, Failure>> {
        Box::pin(async move {
            self.lock().await;
            let environment = self.queue.environment();
            let databases = self.pipeline.databases(&self.queue, &environment).map_err(|error| failure(&error))?;
            let (parts, priority) = ((databases, copies), Priority::Usual);
            let taken = self.pipeline.take_of(&self.queue, &environment, (by, reason), true, priority, parts).await;
            taken.map_err(|error| failure(&error))
        })
    }

    fn methods<'a>(&'a self, early: &'a PointInfo) -> BoxFuture<'a, Vec<MethodEstimate>> {
        Box::pin(async move {
            let environment = self.queue.environment();
            let surveys = self.pipeline.survey(&self.queue, &environment).await;
            Durations::read(&self.durations()).methods(Some(early), &surveys, clones_files(&self.data()))
        })
    }

    fn remove(&self, point: String) {
        let context = self.pipeline.backup(&self.queue.environment());
        let locked = self.locked.lock().clone();
        tokio::spawn(async move {
            if let Err(error) = backup::dump(&context, &DumpJob::Remove { point }).await {
                tracing::warn!(error = chain(&error), "cannot remove the restore point that was taken before the hold");
            }
            drop(locked);
        });
    }

    fn fill(&self, point: String) -> BoxFuture<'_, Result<String, Failure>> {
        Box::pin(async move {
            let environment = self.queue.environment();
            let described = self.pipeline.point(&environment, point.clone()).await.map_err(|error| failure(&error))?;
            check_complete(&described).map_err(|error| failure(&error))?;
            let databases = self.pipeline.databases_in(&self.queue, &environment, &described);
            let databases = databases.map_err(|error| failure(&error))?;
            let job = RestoreJob::Fill { point, owner: owner(&environment), databases };
            let filled = backup::restore(&self.pipeline.backup(&environment), &job).await;
            fault::in_restore("filled");
            filled.map(|filled| filled.point).map_err(|error| failure(&error.into()))
        })
    }

    fn replace_databases(&self, point: String, of: Option<Live>) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(async move {
            let environment = self.queue.environment();
            let described = self.pipeline.point(&environment, point.clone()).await.map_err(|error| failure(&error))?;
            let databases = self.pipeline.databases_in_for(&self.queue, &environment, &described, of.as_ref());
            for database in databases.map_err(|error| failure(&error))? {
                let replaced = self.pipeline.replace_database(&environment, point.clone(), &database).await;
                self.sessions.lock().extend(replaced.map_err(|error| failure(&error.into()))?);
                fault::in_restore("database");
            }
            Ok(())
        })
    }

    fn take_sessions(&self) -> Vec<OtherSessions> {
        std::mem::take(&mut self.sessions.lock())
    }

    fn restore_custom(&self, point: String, release: ReleaseId, slot: Slot) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(async move {
            let restored = self.pipeline.restore_custom_with(&self.queue.environment(), &point, (release, slot)).await;
            restored.map_err(|error| failure(&error))
        })
    }

    fn clear(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move { self.pipeline.clear_restoring(&self.queue.environment()).await })
    }

    fn obstacle(&self) -> Option<String> {
        let environment = self.queue.environment();
        let paths = self.pipeline.services().root.environment(&environment.project, &environment.name);
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        mount_at_or_below(&mounts, &paths.data()).map(|mount| format!("another file system is mounted at {mount}"))
    }

    fn restore(
        &self,
        point: String,
        by: UserName,
        previous: Option<Live>,
    ) -> BoxFuture<'_, Result<Result<(), Failure>, Failure>> {
        Box::pin(async move {
            self.lock().await;
            let (pipeline, queue) = (&self.pipeline, &self.queue);
            let environment = queue.environment();
            let paths = pipeline.services().root.environment(&environment.project, &environment.name);
            let failed = |source| failure(&PointsError::Exchange { environment: environment.title(), source });
            // An earlier call has restored the data. The processes of the old release possibly run, and have written since.
            let record = RestoreRecord::read(&paths).map_err(|error| Failure::host(&error))?;
            if let Some(record) = record.filter(|record| record.has_restored(&point, &paths)) {
                let Some(previous) = &previous else { return Ok(Ok(())) };
                return Box::pin(self.start_restored(&environment, &paths, record, previous)).await;
            }
            // The undo of an earlier step has failed, and a process of the new release possibly runs. Its writes would mix with the
            // restored data.
            let grace = |label: &Label| queue.slots.grace_in(label.slot)(label).map(|grace| grace.min(UNDO_GRACE));
            pipeline.services().runtime.stop_each(environment.id, grace).await.map_err(|error| Failure::host(&error))?;
            // The databases of the previous release are restored, not those of the release that the links on the disk name: the
            // links may already name the new release.
            let described = pipeline.point(&environment, point.clone()).await.map_err(|error| failure(&error))?;
            let databases = pipeline.databases_in_for(queue, &environment, &described, previous.as_ref());
            let databases = databases.map_err(|error| failure(&error))?;
            let mut record = RestoreRecord::begin(point.clone(), by, &paths).map_err(failed)?;
            record.write(&paths).map_err(failed)?;
            let mut restored = Err(Failure::blameless("the processes of the environment could not be stopped"));
            // After a kill or a failure, the undo of the deployment repeats the replacement of all databases and files.
            let mut replace = async || {
                for database in &databases {
                    let replaced = Box::pin(pipeline.replace_database(&environment, point.clone(), database)).await;
                    self.sessions.lock().extend(replaced.map_err(|error| failure(&error.into()))?);
                    fault::in_restore("database");
                }
                let put_back = Box::pin(pipeline.put_back(&environment, &paths, &mut record, &databases)).await;
                put_back.map_err(|error| failure(&error))?;
                match &previous {
                    Some(previous) => self.restore_own_data(&paths, &mut record, previous).await,
                    None => Ok(()),
                }
            };
            let mut exchange = async || {
                restored = replace().await;
                restored.clone()
            };
            let served = match &previous {
                None => exchange().await,
                Some(previous) => Box::pin(pipeline.start_previous(queue, previous, exchange)).await,
            };
            // A release that is scaled to zero has no process to start, so the start did not restore the data.
            let idle = pipeline.services().runtime.instances(environment.id, None).is_empty();
            if served.is_ok() && restored.is_err() && idle {
                restored = replace().await;
            }
            if restored.is_ok() {
                fault::in_restore("served");
            }
            // The files of the failed upgrade are deleted while the old release serves.
            let (pipeline, locked) = (pipeline.clone(), self.locked.lock().clone());
            tokio::spawn(async move {
                pipeline.end_restore(&environment, &paths, &mut record).await;
                drop(locked);
            });
            restored.map(|()| served)
        })
    }

    fn start(&self, previous: Live) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(async move { self.pipeline.start_previous(&self.queue, &previous, async || Ok(())).await })
    }

    fn record(&self, run: HoldRun) {
        Durations::add_hold(&self.durations(), run);
    }

    fn earlier_sizes(&self) -> EarlierSizes {
        let live = self.queue.state.lock().live.clone();
        let facts = live.and_then(|live| self.pipeline.facts(&self.queue.environment(), live.release).ok());
        facts.map_or_else(EarlierSizes::default, |facts| EarlierSizes {
            tree: facts.tree_bytes,
            archive: facts.archive_bytes,
            installed: facts.installed_bytes,
            entries: facts.entries,
        })
    }

    fn data_space(&self, restored: Option<String>) -> BoxFuture<'_, Result<SpaceEstimate, Failure>> {
        Box::pin(async move {
            let measured = self.pipeline.measure(&self.queue.environment(), restored).await;
            measured.map_err(|error| failure(&error))
        })
    }

    fn admit<'a>(&'a self, needs: &'a SpaceNeeds) -> BoxFuture<'a, Result<Option<String>, Failure>> {
        Box::pin(self.pipeline.admit(self.queue.environment(), needs))
    }

    fn storage(&self) -> Option<StorageKind> {
        let project = self.queue.environment().project_id;
        self.pipeline.0.limits.get().and_then(|limits| limits.storage(project))
    }

    fn enlarge(&self, missing: u64) -> BoxFuture<'_, Result<Option<String>, Failure>> {
        Box::pin(self.pipeline.enlarge(self.queue.environment(), missing))
    }

    fn earlier(&self) -> EarlierRuns {
        let environment = self.queue.environment();
        let (_, history) = self.queue.snapshot();
        earlier(&self.pipeline, &environment, history.releases().rev().map(|summary| summary.deployment))
    }
}

impl LiveHandle {
    fn durations(&self) -> std::path::PathBuf {
        let environment = self.queue.environment();
        self.pipeline.services().root.environment(&environment.project, &environment.name).durations()
    }

    fn data(&self) -> std::path::PathBuf {
        let environment = self.queue.environment();
        self.pipeline.services().root.environment(&environment.project, &environment.name).data()
    }

    /// Starts the release `previous` after an earlier restore of the data. Restores the files of `.larder/backup` before, if the earlier restore
    /// has not done so. The result is that of [`LiveApp::restore`].
    async fn start_restored(
        &self,
        environment: &Environment,
        paths: &EnvironmentPaths,
        mut record: RestoreRecord,
        previous: &Live,
    ) -> Result<Result<(), Failure>, Failure> {
        let mut custom = None;
        let restore = async || {
            let restored = self.restore_own_data(paths, &mut record, previous).await;
            custom = Some(restored.clone());
            restored
        };
        let served = Box::pin(self.pipeline.start_previous(&self.queue, previous, restore)).await;
        // A release that is scaled to zero has no process to start.
        let idle = self.pipeline.services().runtime.instances(environment.id, None).is_empty();
        if served.is_ok() && custom.is_none() && idle {
            custom = Some(self.restore_own_data(paths, &mut record, previous).await);
        }
        custom.unwrap_or(Ok(())).map(|()| served)
    }

    /// Restores the files of `.larder/backup` in the record's restore point, if this was not done yet. The release's processes then may change
    /// them.
    async fn restore_own_data(
        &self,
        paths: &EnvironmentPaths,
        record: &mut RestoreRecord,
        previous: &Live,
    ) -> Result<(), Failure> {
        if record.has_custom {
            return Ok(());
        }
        self.restore_custom(record.point.clone(), previous.release, previous.slot).await?;
        record.has_custom = true;
        record.write(paths).map_err(|error| Failure::host(&error))
    }

    /// Takes a restore point without the databases that are on servers. The restore point names the cause as an entry that was left out.
    async fn take_files(
        &self,
        environment: &Environment,
        by: UserName,
        reason: String,
        failed: backup::BackupFailure,
    ) -> Result<PointInfo, PointsError> {
        let mut databases = self.pipeline.databases(&self.queue, environment)?;
        databases.retain(|job| job.file().is_ok());
        let taken =
            self.pipeline.take_of(&self.queue, environment, (by, reason), false, Priority::Usual, (databases, Vec::new())).await;
        taken.map(|point| {
            let mut skipped = vec![(String::from(DATABASES), failed.why)];
            skipped.extend(point.skipped);
            PointInfo { skipped, ..point }
        })
    }
}

impl Pipeline {
    /// Puts the files of the record's restore point back, while no process of the application runs. Files that did not change are not touched,
    /// so the time depends on the changes. If this fails, writes all files beside the live data and exchanges them.
    async fn put_back(
        &self,
        environment: &Environment,
        paths: &EnvironmentPaths,
        record: &mut RestoreRecord,
        databases: &[DatabaseJob],
    ) -> Result<(), PointsError> {
        let context = self.backup(environment);
        let (point, owner) = (record.point.clone(), owner(environment));
        let job = RestoreJob::PutBack { point: point.clone(), owner: owner.clone() };
        match backup::restore_again(&context, &job).await {
            Ok(_) => {
                // The record is written before a process starts. After a kill, the repeated undo then does not replace what the processes of
                // the old release have written.
                record.put_back = true;
                let failed = |source| PointsError::Exchange { environment: environment.title(), source };
                record.write(paths).map_err(failed)?;
                fault::in_restore("returned");
                return Ok(());
            }
            Err(error) => tracing::warn!(
                environment = environment.title(),
                error = chain(&error),
                "cannot put single files back; all files are restored and exchanged"
            ),
        }
        let fill = RestoreJob::Fill { point, owner, databases: databases.to_vec() };
        backup::restore_again(&context, &fill).await?;
        fault::in_restore("filled");
        self.swap(environment, paths, record)
    }

    /// Starts the release `previous`, which the running deployment was to replace. `before_boot` is called while no process runs.
    async fn start_previous(
        &self,
        queue: &Queue,
        previous: &Live,
        before_boot: impl AsyncFnOnce() -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let (_, history) = queue.snapshot();
        self.serve_after(queue, &history, previous, before_boot).await
    }
}

fn failure(error: &PointsError) -> Failure {
    match error {
        PointsError::Worker(backup::BackupError::Failed(failed)) => {
            let failure = Failure::host(failed);
            failed.hint.iter().fold(failure, Failure::hint)
        }
        other => Failure::host(other),
    }
}
