//! Errors of configuration snapshots. No error contains a value.

use std::path::PathBuf;

use crate::{
    host::files::{FileError, PrivateError},
    model::SnapshotNumber,
};

/// The reason why a configuration snapshot cannot be read or created.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The file system refused an operation.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file with a secret cannot be used.
    #[error(transparent)]
    Private(#[from] PrivateError),
    /// The file of the server's key has another content.
    #[error("cannot use {}: it is not an age key (expected a line AGE-SECRET-KEY-1...)", .0.display())]
    Key(PathBuf),
    /// The file was encrypted for another key, or was damaged.
    #[error("cannot decrypt configuration {number}: {why}")]
    Decrypt {
        /// The snapshot.
        number: SnapshotNumber,
        /// The reason.
        why: String,
    },
    /// The file cannot be encrypted.
    #[error("cannot encrypt the configuration: {0}")]
    Encrypt(String),
    /// The snapshot does not exist.
    #[error("there is no configuration {number}")]
    Missing {
        /// The number that was asked for.
        number: SnapshotNumber,
    },
    /// The file differs from the file that a deployment has recorded.
    #[error("configuration {number} was changed on the disk: its digest differs from the digest in the journal")]
    Changed {
        /// The snapshot.
        number: SnapshotNumber,
    },
    /// The decrypted text cannot be used.
    #[error("cannot read configuration {number}: {why}")]
    Content {
        /// The snapshot.
        number: SnapshotNumber,
        /// The reason, without values.
        why: String,
    },
    /// The record of the snapshot that waits for the next deployment cannot be used.
    #[error("cannot read {}: {why}", path.display())]
    Staged {
        /// The file.
        path: PathBuf,
        /// The reason.
        why: String,
    },
    /// The configuration would be too large.
    #[error("the configuration would have {seen} {what} (limit {limit})")]
    TooLarge {
        /// The unit that is limited.
        what: &'static str,
        /// The number of units after the change.
        seen: usize,
        /// The limit.
        limit: usize,
    },
}

impl SnapshotError {
    /// Returns the remedy, as an imperative.
    pub fn hint(&self) -> Option<String> {
        match self {
            SnapshotError::Private(error) => error.hint(),
            SnapshotError::Key(_) | SnapshotError::Decrypt { .. } => {
                Some(String::from("restore the file state/config_age_key of this server from your backup"))
            }
            SnapshotError::Missing { .. } => Some(String::from("list the configurations with `larder config history`")),
            SnapshotError::Changed { .. } | SnapshotError::Content { .. } => Some(String::from(
                "restore the directory config/ of the environment from your backup, or set the variables again",
            )),
            SnapshotError::Staged { path, .. } => Some(format!("remove {}, and set the variables again", path.display())),
            SnapshotError::TooLarge { .. } => Some(String::from("remove variables with `larder config unset`")),
            SnapshotError::File(_) | SnapshotError::Encrypt(_) => None,
        }
    }
}
