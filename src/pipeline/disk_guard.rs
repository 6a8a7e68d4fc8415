//! The guard of the disk: if the disk is nearly full, the guard stops the application whose scratch layer has filled the disk, and releases
//! the ballast, so that deployments and pushes of other projects go on.
//!
//! The ballast is a file of larder that holds disk space and has no content. Without the ballast, a push would fail inside of git, and an
//! interrupted deployment could not write its journal, until a person has freed space.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use rustix::fs::{FallocateFlags, fallocate};

use super::{
    core::Pipeline,
    reserve,
    util::{chain, run_blocking},
};
use crate::{
    host::files,
    model::{EnvId, Environment},
    proxy::RouteState,
    space::{self, shown},
};

/// The time between two looks at the free space.
const INTERVAL: Duration = Duration::from_millis(500);

/// The time after a release of the ballast before the ballast is created again.
const PAUSE: Duration = Duration::from_secs(60);

/// The time between two attempts to start a release after a full disk.
const RESTART_PAUSE: Duration = Duration::from_secs(2);

/// The divisor of the reserve. The guard acts if less than this part of the reserve is free.
const CRITICAL: u64 = 2;

/// The divisor of the reserve. A scratch layer of less than this part of the reserve is never the cause of a full disk.
const BLAMED: u64 = 4;

impl Pipeline {
    /// Returns the reason why the guard stopped the application of an environment; `None` if the application runs.
    pub fn disk_offence(&self, environment: EnvId) -> Option<String> {
        let why = self.0.disk.stopped.lock().get(&environment).cloned()?;
        if self.services().runtime.instances(environment, None).is_empty() {
            return Some(why);
        }
        // A restart or a deployment has started the application again.
        self.0.disk.stopped.lock().remove(&environment);
        None
    }

    /// Watches the free space until the server stops.
    pub fn guard_disk(&self) {
        let this = self.clone();
        self.0.tasks.spawn(async move {
            let mut released: Option<Instant> = None;
            loop {
                this.look_at_disk(&mut released).await;
                tokio::select! {
                    () = this.0.stopping.cancelled() => return,
                    () = tokio::time::sleep(INTERVAL) => {}
                }
            }
        });
    }

    async fn look_at_disk(&self, released: &mut Option<Instant>) {
        let services = self.services();
        let (root, must_stay_free) = (services.root.path(), services.config.limits.disk_reserve.bytes());
        let ballast = services.root.ballast();
        let Ok(free) = files::free_space(root) else { return };
        if reserve::has_space(root) {
            self.resume_after_full_disk().await;
        }
        if free.bytes < must_stay_free / CRITICAL {
            if let Some((environment, bytes)) = self.largest_scratch_layer().await
                && bytes >= must_stay_free / BLAMED
            {
                self.stop_offender(&environment, bytes).await;
            }
            if run_blocking(|| std::fs::remove_file(&ballast)).is_ok() {
                tracing::error!(free = free.bytes, "the disk is nearly full; the ballast is released");
                *released = Some(Instant::now());
            }
        } else if let Some(size) = services.config.space.ballast.map(|size| size.bytes())
            && released.is_none_or(|released| released.elapsed() > PAUSE)
            && free.bytes > size.saturating_add(must_stay_free.saturating_mul(2))
            && !ballast.exists()
            && let Err(error) = run_blocking(|| hold_space(&ballast, size))
        {
            tracing::warn!(error = chain(&error), "cannot create the ballast");
            *released = Some(Instant::now());
        }
    }

    /// Ends the deployments that could not end because the disk was full, records the ends of restores, and starts live releases that could not
    /// be started.
    async fn resume_after_full_disk(&self) {
        let unrecorded = std::mem::take(&mut *self.0.disk.unrecorded.lock());
        for (id, (environment, mut record)) in unrecorded {
            let paths = self.services().root.environment(&environment.project, &environment.name);
            if record.is_unrecorded(&paths) && !record.close(&environment, &paths) {
                self.0.disk.unrecorded.lock().insert(id, (environment, record));
            }
        }
        let open = std::mem::take(&mut *self.0.disk.open.lock());
        for environment in open {
            if !self.resume_open_deployments(environment).await {
                self.0.disk.open.lock().insert(environment);
            }
        }
        let unserved: Vec<_> = {
            let mut unserved = self.0.disk.unserved.lock();
            let due = unserved.extract_if(|_, attempt| attempt.elapsed() > RESTART_PAUSE);
            due.map(|(environment, _)| environment).collect()
        };
        for environment in unserved {
            if !self.start_after_full_disk(environment).await {
                self.0.disk.unserved.lock().insert(environment, Instant::now());
            }
        }
    }

    /// Returns the environment with running processes that has the largest scratch layers.
    async fn largest_scratch_layer(&self) -> Option<(Environment, u64)> {
        let services = self.services();
        let mut environments: Vec<_> = self.0.queues.lock().values().map(|queue| queue.environment()).collect();
        environments.retain(|environment| !services.runtime.instances(environment.id, None).is_empty());
        let mut largest = None;
        for environment in environments {
            match space::measure_scratch(&self.space_context(&environment, false)).await {
                Ok(bytes) if largest.as_ref().is_none_or(|(_, most)| bytes > *most) => largest = Some((environment, bytes)),
                Ok(_) => {}
                Err(error) => tracing::warn!(error = chain(&error), "cannot measure a scratch layer on a full disk"),
            }
        }
        largest
    }

    /// Kills the processes of an environment. The scratch layer stays, because a restart saves changes made by hand before it empties the
    /// layer.
    async fn stop_offender(&self, environment: &Environment, bytes: u64) {
        let why = format!(
            "stopped, because its files in /app use {} and the disk was nearly full; start it with `larder restart {}`",
            shown(bytes),
            environment.target()
        );
        tracing::error!(environment = environment.title(), bytes, "the application filled the disk and is stopped");
        drop(self.services().route(environment).set(RouteState::Stopped));
        if let Err(error) = self.services().runtime.stop_each(environment.id, |_| Some(Duration::ZERO)).await {
            tracing::error!(environment = environment.title(), error = chain(&error), "cannot stop the application");
        }
        // `disk_offence` deletes the reason if a process runs, so the reason is stored after the end of the processes.
        self.site_stopped(environment, &why);
        self.0.disk.stopped.lock().insert(environment.id, why);
    }
}

/// Creates a file that holds `size` bytes of disk space.
fn hold_space(path: &Path, size: u64) -> Result<(), files::FileError> {
    let file = files::create_new(path, 0o600)?;
    fallocate(&file, FallocateFlags::empty(), 0, size).map_err(|error| {
        let _ = std::fs::remove_file(path);
        files::FileError::io("allocate", path, error)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn ballast_holds_its_space_and_is_never_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ballast");
        hold_space(&path, 1 << 20).unwrap();
        assert!(std::fs::metadata(&path).unwrap().blocks() * 512 >= 1 << 20);
        assert!(hold_space(&path, 1 << 20).is_err());
    }
}
