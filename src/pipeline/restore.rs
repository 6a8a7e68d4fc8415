//! Restores that replace the live data of an environment.
//!
//! A restore excludes deployments, restarts and further restores. The data of the restore point is completed in `restoring/` while the
//! application still serves. Then the processes are stopped, a fresh restore point of the live data is taken, and `restoring/` is exchanged
//! with `data/` by one rename, so that a kill leaves the old or the restored data and never a mixture. What is in `restoring/` afterwards
//! is the replaced data, which the fresh restore point holds, too. The record `restore.json` tells the next start which of the two
//! happened; the start of the live release is what every start of the server does.

use std::{path::Path, sync::atomic::Ordering::Relaxed, time::Duration};

use super::{
    core::Pipeline,
    error::PipelineError,
    fault,
    points::{PointsError, owner},
    queue::Queue,
    restore_record::{RestoreEnd, RestoreRecord},
    util::{chain, run_blocking},
};
use crate::{
    backup::{self, RestoreJob},
    host::{files, root::EnvironmentPaths},
    model::{Area, Environment, Slot, SlotUse, UserName},
};

/// The time for which requests wait during a restore. Later ones get the maintenance page.
const HOLD: Duration = Duration::from_secs(10);

/// The time that requests in flight get to finish before the processes are stopped.
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
    /// The bytes of these files.
    pub bytes: u64,
    /// The number of entries whose owner could not be restored.
    pub lost_owners: u64,
    /// The time during which the processes did not serve.
    pub interrupted: Duration,
    /// The reason why the live release does not run after the restore, if it does not.
    pub not_running: Option<String>,
}

impl Pipeline {
    /// Restores in place of the live data. The restore goes on if the caller stops to wait for it.
    pub async fn restore_live(&self, environment: &Environment, point: String, by: UserName) -> Result<Restored, PointsError> {
        let (this, environment) = (self.clone(), environment.clone());
        let restore = async move {
            let queue = this.queue_of(&environment)?;
            let Ok(_work) = queue.work.clone().try_lock_owned() else {
                let running = queue.state.lock().running.as_ref().map(|running| running.deployment);
                return Err(queue.busy(running).into());
            };
            queue.is_thawed()?;
            queue.restoring.store(true, Relaxed);
            let restored = this.restore_locked(&environment, point, by).await;
            queue.restoring.store(false, Relaxed);
            restored
        };
        self.0.tasks.spawn(restore).await.map_err(|_| PipelineError::Stopping)?
    }

    /// Restores while the caller holds the lock of deployments and restarts.
    async fn restore_locked(&self, environment: &Environment, point: String, by: UserName) -> Result<Restored, PointsError> {
        let (queue, _locked) = self.lock_points(environment)?;
        let paths = self.services().root.environment(&environment.project, &environment.name);
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        if let Some(mount) = mount_at_or_below(&mounts, &paths.data()) {
            return Err(PointsError::refused(format!(
                "cannot exchange the data of {}: another file system is mounted at {mount}",
                environment.title()
            )));
        }
        // A name that means nothing, or a record that cannot be read, is refused before anything is recorded.
        let point = self.point(environment, point).await?.id;
        let context = self.backup(environment);
        let failed = |source| PointsError::Exchange { environment: environment.title(), source };
        let mut record = RestoreRecord::begin(point.clone(), by, &paths).map_err(failed)?;
        // Before the first file is written: the next start deletes what a killed restore left.
        record.write(&paths).map_err(failed)?;
        let filled = match backup::restore(&context, &RestoreJob::Fill { point, owner: owner(environment) }).await {
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

    /// Stops the processes, exchanges the data, and starts the processes again, with the restored data or, after a failure, with the old
    /// one. Returns the reason why the live release does not run after the exchange, if it does not.
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
        let stopped = |why: String| PointsError::Stopped { environment: environment.title(), why };
        let other = match live.slot {
            Slot::Blue => Slot::Green,
            Slot::Green => Slot::Blue,
        };
        queue.slots.drained(other).await;
        if !matches!(queue.slots.table().get(other), SlotUse::Idle) {
            return Err(stopped(format!("the processes of the release before are still stopping in {other}")));
        }
        let hold = services.route(environment).hold(HOLD);
        hold.settle(SETTLE).await;
        let all = |label: &crate::runtime::Label| queue.slots.grace_in(label.slot)(label);
        // After a failure, the processes that were stopped are started again as well.
        let failure = services.runtime.stop_each(environment.id, all).await.err();
        let mut exchanged = None;
        let before_boot = async || {
            if let Some(error) = &failure {
                return exchanged = Some(Err(stopped(chain(error))));
            }
            // Ends commands of `larder run` in the other slot, too: they would go on writing to the replaced data.
            let reset = services.launcher.reset_area(environment.id, Area::Slot, None, Some(other)).await;
            exchanged = Some(match reset {
                Ok(()) => self.exchange(queue, environment, paths, record).await,
                Err(error) => Err(stopped(chain(&error))),
            });
        };
        let served = self.serve_after(queue, &history, &live, before_boot).await;
        // Scaled to zero, the release has no process to start.
        if exchanged.is_none() && served.is_ok() && services.runtime.instances(environment.id, None).is_empty() {
            exchanged = Some(self.exchange(queue, environment, paths, record).await);
        }
        drop(hold);
        match (exchanged, served) {
            (Some(Ok(())), Ok(())) => Ok(None),
            (Some(Ok(())), Err(failure)) => Ok(Some(failure.why)),
            (Some(Err(error)), _) => Err(error),
            (None, served) => Err(stopped(served.err().map(|failure| failure.why).unwrap_or_default())),
        }
    }

    /// Takes a restore point of the data that is replaced, and exchanges the data. No process of the application runs.
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
        if let Err(error) = run_blocking(|| files::exchange(&paths.data(), &paths.restoring())) {
            if record.end_by(paths) == RestoreEnd::Unchanged {
                return Err(failed(error));
            }
            // A power cut may revert the exchange; the data is whole either way.
            tracing::warn!(environment = environment.title(), error = chain(&error), "a restore is not on the disk yet");
        }
        fault::in_restore("exchanged");
        Ok(())
    }

    /// Deletes what is in `restoring/`, and then records the end. While the end is not recorded, the next start does both.
    async fn end_restore(&self, environment: &Environment, paths: &EnvironmentPaths, record: &mut RestoreRecord) {
        if let Err(error) = backup::restore(&self.backup(environment), &RestoreJob::Clear).await {
            tracing::warn!(environment = environment.title(), error = chain(&error), "cannot delete the replaced data");
        }
        fault::in_restore("cleared");
        record.close(environment, paths);
    }

    /// Ends a restore that a dead server left. The files are deleted in the background.
    pub(super) fn settle_restore(&self, queue: &Queue, paths: &EnvironmentPaths) {
        let Some(mut record) = RestoreRecord::read(paths).filter(|record| record.end.is_none()) else { return };
        let (this, queue, paths) = (self.clone(), queue.clone(), paths.clone());
        let environment = queue.environment();
        let end = record.end_by(&paths);
        tracing::warn!(environment = environment.title(), point = record.point, ?end, "a restore of data was interrupted");
        self.0.tasks.spawn(async move {
            let _locked = queue.points.lock().await;
            this.end_restore(&environment, &paths, &mut record).await;
        });
    }
}

/// Returns a mount point at or below `path`, by the text of `/proc/self/mountinfo`.
fn mount_at_or_below(mounts: &str, path: &Path) -> Option<String> {
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(unescaped);
    points.into_iter().find(|point| Path::new(point).starts_with(path))
}

/// Returns a path of `mountinfo` without its escapes of spaces, tabs, newlines and backslashes.
fn unescaped(path: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(path.to_owned(), |path, (escape, plain)| path.replace(escape, plain))
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
