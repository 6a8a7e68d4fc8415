//! The copy of a restore point's data on which a single command works. The copy is deleted when the command has ended. After a kill of the
//! server, the next server deletes the copy.

use std::time::Duration;

use super::{
    core::Pipeline,
    error::PipelineError,
    points::{PointsError, owner},
    queue::Queue,
};
use crate::{
    backup::{self, RestoreJob},
    host::{files, root::EnvironmentPaths},
    model::Environment,
};

/// The pauses after failed deletions of the copy of a previous server, in seconds.
const SWEEPS: [u64; 5] = [1, 5, 30, 120, 300];

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
            if let Ok(queue) = pipeline.queue_of(&environment) {
                pipeline.remove_copy(&queue, &environment, 1).await;
            }
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

    /// Deletes the copy that a command or a drill of the previous server left behind, and the scratch databases of the drill. The copy is
    /// deleted in the background. A database server may start later than larder, so the deletion is repeated for some minutes.
    pub(super) fn sweep_copy(&self, queue: &Queue, paths: &EnvironmentPaths) {
        let Ok(locked) = queue.copy.clone().try_lock_owned() else { return };
        if paths.data_copy_note().exists() {
            let (this, queue) = (self.clone(), queue.clone());
            tokio::spawn(async move {
                for pause in SWEEPS {
                    if this.remove_copy(&queue, &queue.environment(), 1).await {
                        break;
                    }
                    tokio::time::sleep(Duration::from_secs(pause)).await;
                }
                drop(locked);
            });
        }
    }
}

/// Returns true for the URL of a live database, which a command on a copy of the data must not reach.
pub fn names_a_database(value: &str) -> bool {
    const SCHEMES: [&str; 9] = ["postgres", "postgresql", "mysql", "mysql2", "mariadb", "redis", "rediss", "mongodb", "amqp"];
    let scheme = value.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
    // Python's database URLs name the driver after a plus sign.
    scheme.is_some_and(|scheme| SCHEMES.contains(&scheme.split('+').next().unwrap_or_default()))
}
