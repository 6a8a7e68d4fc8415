//! The errors of building and installing releases, and the answers of workers.

use std::path::PathBuf;

use larder_archive::{ArchiveError, delta::DeltaError};
use serde::{Deserialize, Serialize};

use super::Refusal;
use crate::{
    host::{files::FileError, launch::LaunchError},
    model::{Exit, ReleaseId},
};

/// The error of an operation on a release.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// A file could not be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The archive was refused or could not be made.
    #[error("the release archive cannot be {doing}")]
    Archive {
        /// `written` or `accepted`.
        doing: &'static str,
        /// The cause.
        #[source]
        source: ArchiveError,
    },
    /// The built tree has an entry that a release cannot hold.
    #[error("the build left {path:?}, which cannot be in a release: {why}; {hint}")]
    Unfit {
        /// The path below the built tree.
        path: String,
        /// The reason.
        why: &'static str,
        /// The remedy.
        hint: &'static str,
    },
    /// A line of `.larderignore` is not a pattern.
    #[error(".larderignore, line {line}: {why}")]
    Ignore {
        /// Counted from 1.
        line: usize,
        /// The fault.
        why: String,
    },
    /// A manifest or a list cannot be read.
    #[error("{} cannot be used: {why}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// The cause.
        why: String,
    },
    /// A delta was refused, or an installed file that it needs is damaged.
    #[error(transparent)]
    Delta(DeltaError),
    /// Packing an installed tree did not give the archive that its manifest names.
    #[error(
        "packing release {release} again gives other bytes than the archive that its manifest names, as another version of larder may; nothing was changed; fetch the whole archive if it is needed"
    )]
    OtherBytes {
        /// The release.
        release: ReleaseId,
    },
    /// A release is not in the store.
    #[error("release {release} is not in {}", path.display())]
    Unknown {
        /// The release.
        release: ReleaseId,
        /// The store that was searched.
        path: PathBuf,
    },
    /// The installed tree differs from the manifest.
    #[error("the installed tree differs from its manifest in {count} places, first: {first}")]
    Differs {
        /// The number of differences.
        count: usize,
        /// The first of them.
        first: String,
    },
    /// The worker could not be started or followed.
    #[error("the {what} worker cannot be used")]
    Launch {
        /// `bundle` or `unpack`.
        what: &'static str,
        /// The cause.
        #[source]
        source: LaunchError,
    },
    /// The worker exited without an answer.
    #[error("the {what} worker {exit} without an answer")]
    Died {
        /// `bundle` or `unpack`.
        what: &'static str,
        /// The exit status.
        exit: Exit,
    },
    /// The worker refused the release, with its message.
    #[error("{why}")]
    Refused {
        /// The whole chain of reasons.
        why: String,
    },
    /// The machine failed the worker, with its message.
    #[error("{why}")]
    Failed {
        /// The whole chain of reasons.
        why: String,
    },
    /// A deliverable from elsewhere was refused.
    #[error(transparent)]
    Rejected(#[from] Refusal),
    /// A task of the server was cancelled.
    #[error("the task was cancelled")]
    Cancelled,
}

impl ReleaseError {
    /// Returns whether the project is at fault, and not this machine. A worker refuses a tree or an archive; it fails because of the machine.
    pub fn is_for_the_pusher(&self) -> bool {
        use ReleaseError::{Ignore, Refused, Rejected, Unfit};
        matches!(self, Refused { .. } | Unfit { .. } | Ignore { .. } | Rejected(_))
    }

    /// Returns the next step, if it is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            ReleaseError::Rejected(refusal) => Some(refusal.hint()),
            _ => None,
        }
    }
}

/// The answer of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum WorkerAnswer<T> {
    /// The job is done.
    Done(T),
    /// The tree or the archive was refused.
    Refused(String),
    /// The machine failed, for instance with a full disk. This says nothing about the release.
    Failed(String),
}

impl<T> From<Result<T, ReleaseError>> for WorkerAnswer<T> {
    fn from(result: Result<T, ReleaseError>) -> WorkerAnswer<T> {
        match result {
            Ok(done) => WorkerAnswer::Done(done),
            Err(e) => {
                let mut why = e.to_string();
                let mut machine = false;
                let mut source = std::error::Error::source(&e);
                while let Some(deeper) = source {
                    why.push_str(": ");
                    why.push_str(&deeper.to_string());
                    machine |= deeper.downcast_ref().is_some_and(is_of_the_machine);
                    source = deeper.source();
                }
                // Bounded, since it contains names from a hostile tree.
                let why = why.chars().take(4000).collect();
                if machine { WorkerAnswer::Failed(why) } else { WorkerAnswer::Refused(why) }
            }
        }
    }
}

/// Returns whether an error cannot be caused by the content of a tree or an archive. Others can: names that are too long, unreadable
/// files.
fn is_of_the_machine(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let those = [
        Errno::NOSPC,
        Errno::DQUOT,
        Errno::IO,
        Errno::ROFS,
        Errno::NOMEM,
        Errno::MFILE,
        Errno::NFILE,
        Errno::NODEV,
        Errno::STALE,
    ];
    error.raw_os_error().is_some_and(|code| those.iter().any(|errno| errno.raw_os_error() == code))
}

impl<T> WorkerAnswer<T> {
    /// Returns the answer as a result.
    pub fn into_result(self) -> Result<T, ReleaseError> {
        match self {
            WorkerAnswer::Done(done) => Ok(done),
            WorkerAnswer::Refused(why) => Err(ReleaseError::Refused { why }),
            WorkerAnswer::Failed(why) => Err(ReleaseError::Failed { why }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_disk_is_a_failure_of_the_machine() {
        let answer = |code: i32| {
            let source = std::io::Error::from_raw_os_error(code);
            let file = FileError::Io { doing: "write", path: "x".into(), source };
            let error = ReleaseError::Archive { doing: "accepted", source: ArchiveError::File(file) };
            WorkerAnswer::<()>::from(Err(error)).into_result().unwrap_err()
        };
        for code in [libc::ENOSPC, libc::EDQUOT, libc::EIO, libc::ENOMEM] {
            let error = answer(code);
            assert!(matches!(&error, ReleaseError::Failed { why } if why.contains("write")), "{error:?}");
            assert!(!error.is_for_the_pusher());
        }
        assert!(matches!(answer(libc::ENAMETOOLONG), ReleaseError::Refused { .. }));
    }
}
