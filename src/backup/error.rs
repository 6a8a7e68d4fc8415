//! The failures of the workers of restore points, as they cross the pipe to the server, and the errors of the server's side.

use larder_points::{LimitKind, PointError};
use serde::{Deserialize, Serialize};

use crate::{host::launch::LaunchError, model::Exit};

/// The kind of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// No restore point has this name.
    NotFound,
    /// The request cannot be carried out as it is.
    Refused,
    /// The restore point is damaged.
    Damaged,
    /// The disk has too little space.
    NoSpace,
    /// The machine failed.
    Machine,
}

/// A failure of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{why}")]
pub struct BackupFailure {
    /// The kind.
    pub kind: FailureKind,
    /// The failed action and its cause.
    pub why: String,
    /// Advice, if there is any.
    pub hint: Option<String>,
}

impl BackupFailure {
    pub(super) fn new(kind: FailureKind, why: impl Into<String>) -> BackupFailure {
        BackupFailure { kind, why: why.into(), hint: None }
    }

    pub(super) fn io(doing: &str, source: &std::io::Error) -> BackupFailure {
        BackupFailure::new(FailureKind::Machine, format!("cannot {doing}: {source}"))
    }
}

impl From<PointError> for BackupFailure {
    fn from(error: PointError) -> BackupFailure {
        let kind = match &error {
            _ if error.is_no_space() => FailureKind::NoSpace,
            PointError::NotFound { .. } | PointError::BadName { .. } => FailureKind::NotFound,
            PointError::Malformed { .. } | PointError::Damaged { .. } => FailureKind::Damaged,
            PointError::Io { .. } | PointError::UnsafeStore { .. } => FailureKind::Machine,
            _ => FailureKind::Refused,
        };
        let mut why = match &error {
            PointError::Limit { what: LimitKind::FreeBytes, seen, limit, path } => {
                format!("not enough disk space for {}: {seen} bytes are needed, {limit} are free", path.display())
            }
            _ => error.to_string(),
        };
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            why = format!("{why}: {cause}");
            source = cause.source();
        }
        // Paths come from the application.
        let why: String = why.chars().take(4000).collect();
        match why.split_once("\nhint: ") {
            Some((why, hint)) => BackupFailure { kind, why: why.to_owned(), hint: Some(hint.to_owned()) },
            None => BackupFailure::new(kind, why),
        }
    }
}

/// The error of an operation on restore points.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The worker could not do its job.
    #[error(transparent)]
    Failed(#[from] BackupFailure),
    /// The worker could not be started, or its report could not be read.
    #[error("cannot run the {role} worker")]
    Launch {
        /// The role.
        role: &'static str,
        /// The cause.
        #[source]
        source: LaunchError,
    },
    /// The worker exited without a report.
    #[error("the {role} worker {exit} without a report")]
    Died {
        /// The role.
        role: &'static str,
        /// Its exit.
        exit: Exit,
    },
    /// The worker took too long and was killed.
    #[error("the {role} worker took longer than {seconds} s and was stopped")]
    Late {
        /// The role.
        role: &'static str,
        /// The limit.
        seconds: u64,
    },
    /// The worker answered another question.
    #[error("the {role} worker sent the answer to another job")]
    Confused {
        /// The role.
        role: &'static str,
    },
}
