//! The errors with which the pipeline refuses a request.

use std::{io, path::PathBuf};

use super::journal::JournalError;
use crate::model::DeploymentId;

/// The reason why an operation on an environment, such as a deployment or a restart, was refused.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// The environment does not exist on this server, or was removed.
    #[error("there is no environment {0} on this server")]
    NoEnvironment(String),
    /// An earlier deployment could not be reverted, or its journal or the record of the slots cannot be used.
    #[error("{environment} is frozen since deployment {deployment} got stuck: {why}")]
    Frozen {
        /// The environment as `project/environment`.
        environment: String,
        /// The deployment that froze the environment.
        deployment: DeploymentId,
        /// The step that could not be reverted, with the reason, or the reason why the journal or the record cannot be used.
        why: String,
    },
    /// The server has just started, and the environment is not recovered yet.
    #[error("{0} is still being recovered after the last start of the server; try again in a moment")]
    Recovering(String),
    /// Another operation is in progress in the environment.
    #[error("{environment} is {doing}")]
    Busy {
        /// The environment as `project/environment`.
        environment: String,
        /// The operation, such as "being deployed (ID)" or "being restarted".
        doing: String,
    },
    /// The server is stopping.
    #[error("the server is stopping; try again in a moment")]
    Stopping,
    /// The deployment's directory could not be created, because the disk is full.
    #[error("cannot deploy to {environment}: the server's disk is full ({free})")]
    NoSpace {
        /// The environment as `project/environment`.
        environment: String,
        /// The free bytes and inodes as text.
        free: String,
    },
    /// The deployment's directory could not be created.
    #[error("cannot create the deployment directory {path}")]
    Record {
        /// The directory of the deployment.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// The reason why an environment stays frozen.
#[derive(Debug, thiserror::Error)]
pub enum ThawError {
    /// The request was refused before any journal was read.
    #[error(transparent)]
    NotNow(#[from] PipelineError),
    /// A journal cannot be read or written.
    #[error(transparent)]
    Record(#[from] JournalError),
    /// The record of the slots cannot be used.
    #[error("cannot use the record of the slots: {0}")]
    Slots(String),
    /// The record of the last restore cannot be used.
    #[error("cannot use the record of the last restore: {0}")]
    Restore(String),
    /// The deployment got stuck again, because a step could not be reverted.
    #[error("cannot revert the deployment: {0}")]
    Still(String),
}
