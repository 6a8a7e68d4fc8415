//! Restores that replace the live data of an environment.
//!
//! A restore excludes deployments, restarts and further restores. The data of the restore point is written completely to `restoring/` while
//! the application still serves. Then the processes are stopped, a fresh restore point of the live data is taken, the databases are replaced
//! (`restore_databases.rs`), and `restoring/` is exchanged with `data/` by one rename. A kill therefore leaves either the old or the restored
//! data, and never a mixture. After the exchange, `restoring/` has the replaced data, which is also in the fresh restore point. After a kill,
//! the next start of the server empties `restoring/` and records in `restore.json` whether the exchange happened. The live release is started
//! as at each start of the server.

use std::{path::Path, sync::atomic::Ordering::Relaxed, time::Duration};

use tokio::sync::OwnedMutexGuard;

use super::{
    core::Pipeline,
    error::PipelineError,
    failure::Failure,
    fault,
    points::{PointsError, check_complete, owner},
    queue::Queue,
    restore_databases::unfinished,
    restore_record::{RestoreEnd, RestoreRecord},
    space_wait::with_figures,
    util::{chain, run_blocking},
};
use crate::{
    backup::{self, RestoreJob},
    host::{files, root::EnvironmentPaths},
    model::{Area, Environment, Slot, SlotUse, UserName},
    runtime::RuntimeError,
};

/// The time limit of requests that wait during a restore. After this time, the proxy answers with the maintenance page.
const HOLD: Duration = Duration::from_secs(10);

/// The time limit for requests in flight. After this time, the processes are stopped.
const SETTLE: Duration = Duration::from_secs(5);

/// A completed restore of the live data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The id of the restore point.
    pub point: String,
    /// The id of the restore point of the replaced data.
    pub before: String,
    /// The number of restored files.
    pub files: u64,
    /// The total size of the restored files, in bytes.
    pub bytes: u64,
    /// The number of entries whose owner could not be restored.
    pub lost_owners: u64,
    /// The time during which the processes did not serve.
    pub interrupted: Duration,
    /// The reason why the live release does not run after the restore; absent if the release runs or no release is live.
    pub not_running: Option<String>,
}

impl Pipeline {
    /// Replaces the live data with a restore point. The restore continues if the caller drops the returned future.
    pub async fn restore_live(&self, environment: &Environment, point: String, by: UserName) -> Result<Restored, PointsError> {
        let (this, environment) = (self.clone(), environment.clone());
        let restore = async move {
            let queue = this.queue_of(&environment)?;
            let Ok(work) = queue.work.clone().try_lock_owned() else {
                let running = queue.state.lock().running.as_ref().map(|running| running.deployment);
                return Err(queue.busy(running).into());
            };
            queue.is_thawed()?;
            queue.restoring.store(true, Relaxed);
            let restored = this.restore_locked(&environment, point, by, work).await;
            if !matches!(restored, Err(PointsError::Unfinished { .. })) {
                queue.restoring.store(false, Relaxed);
            }
            restored
        };
        self.0.tasks.spawn(restore).await.map_err(|_| PipelineError::Stopping)?
    }

    /// Replaces the live data while the caller holds the lock of deployments and restarts.
    async fn restore_locked(
        &self,
        environment: &Environment,
        point: String,
        by: UserName,
        work: OwnedMutexGuard<()>,
    ) -> Result<Restored, PointsError> {
        let (queue, locked) = self.lock_points(environment)?;
        let paths = self.services().root.environment(&environment.project, &environment.name);
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        if let Some(mount) = mount_at_or_below(&mounts, &paths.data()) {
            return Err(PointsError::refused(format!(
                "cannot exchange the data of {}: another file system is mounted at {mount}",
                environment.title()
            )));
        }
        // An unknown or unreadable restore point is refused before the restore is recorded.
        let point = self.point(environment, point).await?;
        check_complete(&point)?;
        let databases = self.databases_in(&queue, environment, &point)?;
        let live = queue.state.lock().live.clone();
        let owes_custom = self.restore_hook(environment, &point, live.as_ref())?.is_some();
        let point = point.id;
        let space = self.measure(environment, Some(point.clone())).await?;
        space.check("restore the data", 0).map_err(backup::BackupError::from)?;
        let context = self.backup(environment);
        let failed = |source| PointsError::Exchange { environment: environment.title(), source };
        let mut record = RestoreRecord::begin(point.clone(), by, &paths).map_err(failed)?;
        // The record changes at moments after which the restore cannot be refused any more, so its space is reserved before.
        RestoreRecord::reserve(&paths).map_err(failed)?;
        record.databases.clone_from(&databases);
        record.owes_custom = owes_custom;
        // The record is written before the first file: the next start deletes the files of a killed restore only if a record exists.
        if let Err(error) = record.write(&paths) {
            RestoreRecord::release(&paths);
            return Err(failed(error));
        }
        let fill = RestoreJob::Fill { point, owner: owner(environment), databases };
        let filled = match backup::restore(&context, &fill).await {
            Ok(filled) => filled,
            Err(error) => {
                self.end_restore(environment, &paths, &mut record).await;
                return Err(error.into());
            }
        };
        fault::in_restore("filled");
        let begun = std::time::Instant::now();
        let exchanged = self.exchange_stopped(&queue, environment, &paths, &mut record).await;
        let interrupted = begun.elapsed();
        if record.is_mixed(&paths) {
            self.finish_mixed(&queue, &paths, record, (work, locked));
            return Err(match exchanged {
                Err(error @ PointsError::Unfinished { .. }) => error,
                Err(error) => unfinished(environment, &chain(&error)),
                Ok(_) => unfinished(environment, "the databases are not those of the files"),
            });
        }
        self.end_restore(environment, &paths, &mut record).await;
        let not_running = exchanged?;
        Ok(Restored {
            point: filled.point,
            before: record.before.unwrap_or_default(),
            files: filled.files,
            bytes: filled.bytes,
            lost_owners: filled.lost_owners,
            interrupted,
            not_running,
        })
    }

    /// Stops the processes, exchanges the data, and starts the processes again. After a failure, the processes start with the old data.
    /// Returns the reason why the live release does not run after the exchange, or `None` if the release runs or no release is live.
    async fn exchange_stopped(
        &self,
        queue: &Queue,
        environment: &Environment,
        paths: &EnvironmentPaths,
        record: &mut RestoreRecord,
    ) -> Result<Option<String>, PointsError> {
        let services = self.services().clone();
        let (live, history) = queue.snapshot();
        let Some(live) = live else {
            return self.exchange(queue, environment, paths, record).await.map(|()| None);
        };
        let stopped = |why: String| could_not_stop(environment, paths, why);
        for other in others(live.slot) {
            queue.slots.drained(other).await;
            if !matches!(queue.slots.table().get(other), SlotUse::Idle) {
                return Err(stopped(format!("processes of the previous release still run in {other}")));
            }
        }
        let hold = services.route(environment).hold(HOLD);
        hold.settle(SETTLE).await;
        let all = |label: &crate::runtime::Label| queue.slots.grace_in(label.slot)(label);
        // A failure is not returned yet, because `serve_after` must start the stopped processes again.
        let failure = services.runtime.stop_each(environment.id, all).await.err();
        let mut exchanged = None;
        let before_boot = async || {
            exchanged = Some(self.exchange_idle(queue, environment, paths, record, live.slot, failure.as_ref()).await);
            match record.is_mixed(paths) {
                true => Err(Failure::blameless("files and databases do not belong together")),
                false => Ok(()),
            }
        };
        let served = self.serve_after(queue, &history, &live, before_boot).await;
        // A release that is scaled to zero has no process to start, so `serve_after` did not call `before_boot`.
        if exchanged.is_none() && served.is_ok() && services.runtime.instances(environment.id, None).is_empty() {
            exchanged = Some(self.exchange_idle(queue, environment, paths, record, live.slot, failure.as_ref()).await);
        }
        drop(hold);
        match (exchanged, served) {
            (Some(Ok(())), Ok(())) => Ok(None),
            (Some(Ok(())), Err(failure)) => Ok(Some(with_figures(paths.path(), failure.why))),
            (Some(Err(error)), _) => Err(error),
            (None, Err(failure)) => Err(stopped(failure.why)),
            (None, Ok(())) => Err(stopped(String::from("its processes are still running"))),
        }
    }

    /// Kills the commands of `larder run` outside of the live slot, which would otherwise continue to write to the replaced data. Then exchanges
    /// the data. If `failure` contains the reason why a process could not be stopped, does nothing and returns this reason as the error.
    async fn exchange_idle(
        &self,
        queue: &Queue,
        environment: &Environment,
        paths: &EnvironmentPaths,
        record: &mut RestoreRecord,
        live: Slot,
        failure: Option<&RuntimeError>,
    ) -> Result<(), PointsError> {
        let stopped = |why: String| could_not_stop(environment, paths, why);
        if let Some(error) = failure {
            return Err(stopped(chain(error)));
        }
        for other in others(live) {
            let reset = self.services().launcher.reset_area(environment.id, Area::Slot, None, Some(other)).await;
            reset.map_err(|error| stopped(chain(&error)))?;
        }
        self.exchange(queue, environment, paths, record).await
    }

    /// Takes a restore point of the live data, and exchanges the data. The caller has stopped all processes of the application.
    async fn exchange(
        &self,
        queue: &Queue,
        environment: &Environment,
        paths: &EnvironmentPaths,
        record: &mut RestoreRecord,
    ) -> Result<(), PointsError> {
        let reason = format!("before the restore of {}", record.point);
        let fresh = self.take(queue, environment, record.by.clone(), reason, true).await?;
        record.before = Some(fresh.id);
        let failed = |source| PointsError::Exchange { environment: environment.title(), source };
        record.write(paths).map_err(failed)?;
        fault::in_restore("taken");
        self.replace_databases(environment, paths, record).await?;
        if let Err(error) = self.swap(environment, paths, record) {
            record.owes_custom = false;
            let databases = record.databases.clone();
            if !databases.is_empty() {
                self.revert_databases(environment, paths, record, &databases).await?;
            }
            return Err(error);
        }
        // Files and databases are those of the restore point now. The whole restore can be repeated.
        self.restore_owed(queue, environment, record).await.map_err(|error| {
            let why = format!("files and databases are restored, but the project's own data is not: {}", chain(&error));
            PointsError::refused_with(why, "solve the cause, and repeat the restore")
        })
    }

    /// Runs `.larder/restore` after an exchange of the data, if the restore point has files of `.larder/backup`. A failure is not repeated.
    pub(super) async fn restore_owed(
        &self,
        queue: &Queue,
        environment: &Environment,
        record: &mut RestoreRecord,
    ) -> Result<(), PointsError> {
        record.owes_custom = false;
        let live = queue.state.lock().live.clone();
        let point = self.point(environment, record.point.clone()).await?;
        let hook = self.restore_hook(environment, &point, live.as_ref())?;
        self.restore_custom(environment, &record.point, hook.as_ref()).await
    }

    /// Exchanges `data/` with `restoring/` by one rename. The caller has stopped all processes of the application.
    pub(super) fn swap(
        &self,
        environment: &Environment,
        paths: &EnvironmentPaths,
        record: &RestoreRecord,
    ) -> Result<(), PointsError> {
        if let Err(error) = run_blocking(|| files::exchange(&paths.data(), &paths.restoring())) {
            if record.end_by(paths) == RestoreEnd::Unchanged {
                return Err(PointsError::Exchange { environment: environment.title(), source: error });
            }
            // A power cut may revert the exchange. The live data is then the old data, and is complete.
            tracing::warn!(
                environment = environment.title(),
                error = chain(&error),
                "cannot sync the exchange of the data to the disk"
            );
        }
        fault::in_restore("exchanged");
        Ok(())
    }

    /// Empties `restoring/`. An error is only logged, because the next restore empties the directory again.
    pub(super) async fn clear_restoring(&self, environment: &Environment) {
        if let Err(error) = backup::restore(&self.backup(environment), &RestoreJob::Clear).await {
            tracing::warn!(environment = environment.title(), error = chain(&error), "cannot delete the replaced data");
        }
    }

    /// Empties `restoring/`, and then records the end of the restore. If the server is killed before the end is recorded, the next server
    /// repeats this work. If the disk is full, the guard of the disk repeats the record of the end.
    pub(super) async fn end_restore(&self, environment: &Environment, paths: &EnvironmentPaths, record: &mut RestoreRecord) {
        self.clear_restoring(environment).await;
        fault::in_restore("cleared");
        if !record.close(environment, paths) {
            self.0.disk.unrecorded.lock().insert(environment.id, (environment.clone(), record.clone()));
        }
    }

    /// Completes the record of a restore that was in flight when the previous server exited. The files are deleted in the background.
    /// Returns the record instead if files and databases do not belong together yet. A record that cannot be used freezes the environment.
    pub(super) fn settle_restore(&self, queue: &Queue, paths: &EnvironmentPaths) -> Option<RestoreRecord> {
        let read = RestoreRecord::read(paths);
        queue.state.lock().history.restore = read.as_ref().err().map(|error| {
            let why = format!(
                "{}; use the version of larder that wrote the record, or remove the file if the data is complete",
                chain(error)
            );
            let file = paths.restore_record();
            tracing::error!(environment = queue.environment().title(), file = %file.display(), why, "cannot use the record of the last restore");
            why
        });
        let mut record = read.ok().flatten().filter(|record| record.end.is_none())?;
        let (this, queue, paths) = (self.clone(), queue.clone(), paths.clone());
        let environment = queue.environment();
        let (end, is_mixed) = (record.end_by(&paths), record.is_mixed(&paths));
        tracing::warn!(
            environment = environment.title(),
            point = record.point,
            ?end,
            is_mixed,
            "restore of the data was interrupted"
        );
        if is_mixed {
            return Some(record);
        }
        self.0.tasks.spawn(async move {
            let _locked = queue.points.lock().await;
            this.end_restore(&environment, &paths, &mut record).await;
        });
        None
    }
}

/// Returns the first mount point at or below `path`. `mounts` is the text of `/proc/self/mountinfo`.
pub(super) fn mount_at_or_below(mounts: &str, path: &Path) -> Option<String> {
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(unescaped);
    points.into_iter().find(|point| Path::new(point).starts_with(path))
}

/// Decodes the octal escapes of a path in `mountinfo`: space, tab, newline and backslash (proc_pid_mountinfo(5)).
fn unescaped(path: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(path.to_owned(), |path, (escape, plain)| path.replace(escape, plain))
}

/// Returns the error of a restore whose processes could not be stopped or started. A full disk is named with its free space.
fn could_not_stop(environment: &Environment, paths: &EnvironmentPaths, why: String) -> PointsError {
    PointsError::Stopped { environment: environment.title(), why: with_figures(paths.path(), why) }
}

/// Returns the slots that are not live.
fn others(live: Slot) -> impl Iterator<Item = Slot> {
    Slot::ALL.into_iter().filter(move |slot| *slot != live)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_at_or_below_the_data_is_found() {
        let mounts = "22 1 0:21 / / rw - ext4 /dev/a rw\n23 22 0:5 / /srv/a\\040b/data/disk rw - xfs /dev/b rw\n";
        assert_eq!(mount_at_or_below(mounts, Path::new("/srv/a b/data")).unwrap(), "/srv/a b/data/disk");
        assert_eq!(mount_at_or_below(mounts, Path::new("/srv/a b/data/disk")).unwrap(), "/srv/a b/data/disk");
        for other in ["/srv/a b/data/disk/x", "/srv/a b/dat", "/srv/a b/database"] {
            assert_eq!(mount_at_or_below(mounts, Path::new(other)), None, "{other}");
        }
    }
}
