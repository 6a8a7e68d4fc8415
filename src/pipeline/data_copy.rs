//! The copy of a restore point's data on which a single command works. The copy is deleted when the command has ended. After a kill of the
//! server, the next server deletes the copy.

use super::{
    core::Pipeline,
    error::PipelineError,
    points::{PointsError, owner},
    queue::Queue,
    util::chain,
};
use crate::{
    backup::{self, RestoreJob},
    host::{files, root::EnvironmentPaths},
    model::Environment,
};

/// A copy of the data of a restore point. Dropping this value deletes the copy in the background.
pub struct DataCopy {
    /// The id of the restore point.
    pub point: String,
    pipeline: Pipeline,
    environment: Environment,
    locked: Option<tokio::sync::OwnedMutexGuard<()>>,
}

impl Drop for DataCopy {
    fn drop(&mut self) {
        let (pipeline, environment, locked) = (self.pipeline.clone(), self.environment.clone(), self.locked.take());
        tokio::spawn(async move {
            pipeline.clear_copy(&environment).await;
            drop(locked);
        });
    }
}

impl Pipeline {
    /// Writes the data of a restore point into the directory of the copy. Returns an error if the directory is in use.
    pub async fn copy_data(&self, environment: &Environment, point: String) -> Result<DataCopy, PointsError> {
        let queue = self.queue_of(environment)?;
        let busy = || PipelineError::Busy {
            environment: environment.title(),
            doing: String::from("used by another command on a copy of its data"),
        };
        let locked = queue.copy.clone().try_lock_owned().map_err(|_| busy())?;
        let paths = self.services().root.environment(&environment.project, &environment.name);
        // From here on, the copy is deleted whatever happens.
        let mut copy = DataCopy { point, pipeline: self.clone(), environment: environment.clone(), locked: Some(locked) };
        let noted = files::append(&paths.data_copy_note(), 0o600).and_then(|file| file.sync_all());
        noted.map_err(|error| PointsError::refused(format!("cannot prepare a copy of the data: {error}")))?;
        let job = RestoreJob::Copy { point: copy.point.clone(), owner: owner(environment) };
        copy.point = backup::restore(&self.backup(environment), &job).await?.point;
        Ok(copy)
    }

    async fn clear_copy(&self, environment: &Environment) {
        let paths = self.services().root.environment(&environment.project, &environment.name);
        match backup::restore(&self.backup(environment), &RestoreJob::ClearCopy).await {
            Ok(_) => drop(std::fs::remove_file(paths.data_copy_note())),
            Err(error) => {
                tracing::warn!(environment = environment.title(), error = chain(&error), "cannot delete a copy of the data")
            }
        }
    }

    /// Deletes the copy that a command of the previous server left behind. The copy is deleted in the background.
    pub(super) fn sweep_copy(&self, queue: &Queue, paths: &EnvironmentPaths) {
        let Ok(locked) = queue.copy.clone().try_lock_owned() else { return };
        if paths.data_copy_note().exists() {
            let (this, environment) = (self.clone(), queue.environment());
            tokio::spawn(async move {
                this.clear_copy(&environment).await;
                drop(locked);
            });
        }
    }
}
