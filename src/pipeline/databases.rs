//! The databases of an environment: the databases of the live release, and the database that `larder db create` created.

use super::{core::Pipeline, error::PipelineError, points::PointsError, state_files::Secrets};
use crate::{
    backup::{self, BackupError, DatabaseJob, DatabaseStream, DatabaseUrl},
    host::launch::{Child, Stdio},
    model::{Environment, UserName},
};
use tokio::sync::OwnedMutexGuard;

/// An error of the stored URL of a database.
#[derive(Debug, thiserror::Error)]
pub enum StoredUrlError {
    /// A deployment or another operation is under way, or the environment is not recovered yet or does not exist.
    #[error(transparent)]
    NotNow(#[from] PipelineError),
    /// The file cannot be read or written.
    #[error("cannot use the stored configuration of {environment}")]
    File {
        /// The environment, as `project/environment`.
        environment: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

impl Pipeline {
    /// Returns the URL of the database that `larder db create` created, if there is one.
    pub fn stored_database_url(&self, environment: &Environment) -> Result<Option<DatabaseUrl>, StoredUrlError> {
        let paths = self.services().root.environment(&environment.project, &environment.name);
        let secrets = Secrets::open(&paths.secrets()).map_err(|source| failed(environment, source))?;
        Ok(secrets.database_url().map(|(_, url)| DatabaseUrl::new(url)))
    }

    /// Stores or removes the URL of the database. A deployment writes the same file, so the call is refused during a deployment.
    pub fn store_database_url(&self, environment: &Environment, url: Option<&DatabaseUrl>) -> Result<(), StoredUrlError> {
        let queue = self.queue_of(environment)?;
        let Ok(_work) = queue.work.clone().try_lock_owned() else {
            let running = queue.state.lock().running.as_ref().map(|running| running.deployment);
            return Err(queue.busy(running).into());
        };
        let paths = self.services().root.environment(&environment.project, &environment.name);
        let stored = Secrets::open(&paths.secrets())
            .and_then(|mut secrets| secrets.set_database_url(url.map(|url| url.expose().to_owned())));
        stored.map_err(|source| failed(environment, source))
    }

    /// Returns the databases of an environment: the databases that the live release declares or names in its variables, and the database
    /// that `larder db create` created.
    pub fn known_databases(&self, environment: &Environment) -> Result<Vec<DatabaseJob>, PointsError> {
        let queue = self.queue_of(environment)?;
        self.databases(&queue, environment)
    }

    /// Takes a restore point, and starts a load whose input and output are those of the caller. The caller keeps the returned lock until the
    /// end of the load, so that no restore, hold or other load uses the database at the same time.
    pub async fn load_database(
        &self,
        environment: &Environment,
        by: UserName,
        reason: String,
        database: DatabaseJob,
        stdio: Stdio,
    ) -> Result<(Child, OwnedMutexGuard<()>), PointsError> {
        let (queue, locked) = self.lock_points(environment)?;
        self.take(&queue, environment, by, reason, false).await?;
        let child = self.stream_database(environment, DatabaseStream::Load(database), stdio).await?;
        Ok((child, locked))
    }

    /// Starts a dump or a load whose input and output are those of the caller.
    pub async fn stream_database(
        &self,
        environment: &Environment,
        stream: DatabaseStream,
        stdio: Stdio,
    ) -> Result<Child, BackupError> {
        backup::stream(&self.backup(environment), stream, stdio).await
    }
}

fn failed(environment: &Environment, source: std::io::Error) -> StoredUrlError {
    StoredUrlError::File { environment: environment.title(), source }
}
