//! The errors of operations on restore points. A worker sends a [`BackupFailure`] to the server. The server's functions return a
//! [`BackupError`].

use larder_points::{LimitKind, PointError};
use serde::{Deserialize, Serialize};

use crate::{
    host::{files, launch::LaunchError},
    model::Exit,
};

/// The kind of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// No restore point has this name, or several restore points have it.
    NotFound,
    /// The request is refused, and fails again if it is repeated without a change.
    Refused,
    /// A database that larder recognised, and that the recipe does not declare, cannot be dumped.
    Recognised,
    /// The restore point is damaged.
    Damaged,
    /// The disk has too little space.
    NoSpace,
    /// The operating system or the server's setup failed.
    Machine,
}

/// A failure of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{why}")]
pub struct BackupFailure {
    /// The kind of the failure.
    pub kind: FailureKind,
    /// The failed action and its cause.
    pub why: String,
    /// An instruction that helps to solve the problem.
    pub hint: Option<String>,
}

impl BackupFailure {
    pub(crate) fn new(kind: FailureKind, why: impl Into<String>) -> BackupFailure {
        BackupFailure { kind, why: why.into(), hint: None }
    }

    pub(crate) fn io(doing: &str, source: &std::io::Error) -> BackupFailure {
        let kind = match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => FailureKind::NoSpace,
            _ => FailureKind::Machine,
        };
        BackupFailure::new(kind, format!("cannot {doing}: {source}"))
    }

    /// Adds the free space of the file system of `path` to a lack of space that was noticed during the work.
    pub fn with_free_space(self, path: &std::path::Path) -> BackupFailure {
        let is_known = self.kind != FailureKind::NoSpace || self.why.contains("are needed") || self.why.contains("are free");
        match files::free_space(path) {
            Ok(free) if !is_known => {
                let inodes = if free.inodes == u64::MAX { String::new() } else { format!(" and {} inodes", free.inodes) };
                BackupFailure { why: format!("{} ({} bytes{inodes} are free)", self.why, free.bytes), ..self }
            }
            _ => self,
        }
    }
}

impl From<PointError> for BackupFailure {
    fn from(error: PointError) -> BackupFailure {
        let kind = match &error {
            _ if error.is_no_space() => FailureKind::NoSpace,
            PointError::NotFound { .. } | PointError::BadName { .. } => FailureKind::NotFound,
            PointError::Malformed { .. } | PointError::Damaged { .. } | PointError::WrongSize { .. } => FailureKind::Damaged,
            PointError::Io { .. } | PointError::UnsafeStore { .. } => FailureKind::Machine,
            _ => FailureKind::Refused,
        };
        let mut why = match &error {
            PointError::Limit { what: LimitKind::FreeBytes, seen, limit, path } => {
                format!("cannot write {}: {limit} bytes of disk space are free (expected {seen})", path.display())
            }
            _ => error.to_string(),
        };
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            why = format!("{why}: {cause}");
            source = cause.source();
        }
        // The application chooses the paths, so the length of the text is limited.
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
    /// The worker reported a failure.
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
        /// The exit of the worker.
        exit: Exit,
    },
    /// The worker exceeded its time limit and was killed.
    #[error("the {role} worker timed out after {seconds} s")]
    Late {
        /// The role.
        role: &'static str,
        /// The time limit, in seconds.
        seconds: u64,
    },
    /// The worker sent a report that does not fit its job.
    #[error("the {role} worker sent the report of another job")]
    Confused {
        /// The role.
        role: &'static str,
    },
}
