//! The errors of building and installing releases, and the answers of workers.

use std::path::PathBuf;

use larder_archive::{ArchiveError, delta::DeltaError};
use larder_sync::SyncError;
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
    /// The archive was refused or could not be written.
    #[error("cannot {doing} the release archive")]
    Archive {
        /// `write` or `accept`.
        doing: &'static str,
        /// The cause.
        #[source]
        source: ArchiveError,
    },
    /// The archive of a patch was refused or could not be written.
    #[error("cannot {doing} the archive of the patch")]
    PatchArchive {
        /// `write` or `accept`.
        doing: &'static str,
        /// The cause.
        #[source]
        source: ArchiveError,
    },
    /// The built tree has an entry that a release cannot hold.
    #[error("cannot put {path:?} of the built tree into a release: {why}; {hint}")]
    Unfit {
        /// The path below the built tree.
        path: String,
        /// The reason.
        why: &'static str,
        /// The remedy.
        hint: &'static str,
    },
    /// A file of the built tree contains a secret.
    #[error(
        "{path:?} of the built tree contains the value of {name}; delete the file at the end of the build, or let the build read the value without writing it"
    )]
    Leaked {
        /// The path below the built tree.
        path: String,
        /// The name of the secret.
        name: String,
    },
    /// An entry of a list of patterns in the recipe is not a pattern.
    #[error("cannot use pattern {number}: {why}")]
    Pattern {
        /// The number of the pattern in its list, counted from 1.
        number: usize,
        /// The cause.
        why: String,
    },
    /// The patterns of the recipe or of `.larderignore` cannot be combined.
    #[error("cannot combine the patterns: {0}")]
    Patterns(String),
    /// A line of `.larderignore` is not a pattern.
    #[error(".larderignore:{line}: {why}")]
    Ignore {
        /// The number of the line, counted from 1.
        line: usize,
        /// The cause.
        why: String,
    },
    /// A manifest, an index, a health record or `accepted.json` cannot be used.
    #[error("cannot use {}: {why}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// The cause.
        why: String,
    },
    /// A delta was refused, or an installed file that it needs is damaged.
    #[error(transparent)]
    Delta(DeltaError),
    /// The archive that was packed from an installed tree differs from the archive in the manifest.
    #[error(
        "cannot pack release {release}: the new archive differs from the archive in its manifest (other versions of larder may compress differently); nothing was changed; fetch the whole archive if you need it"
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
    #[error("the installed tree differs from its manifest in {count} place{}, first: {first}", if *count == 1 { "" } else { "s" })]
    Differs {
        /// The number of differences.
        count: usize,
        /// The first difference.
        first: String,
    },
    /// The worker could not be started, or its report could not be read.
    #[error("cannot run the {what} worker")]
    Launch {
        /// The name of the worker, such as `bundle`.
        what: &'static str,
        /// The cause.
        #[source]
        source: LaunchError,
    },
    /// The worker exited without an answer.
    #[error("the {what} worker {exit} without an answer")]
    Died {
        /// The name of the worker, such as `bundle`.
        what: &'static str,
        /// The exit status.
        exit: Exit,
    },
    /// The worker refused the tree or the archive. The text is the worker's message.
    #[error("{why}")]
    Refused {
        /// The error with all its causes.
        why: String,
    },
    /// The worker failed because of the machine, for instance a full disk. The text is the worker's message.
    #[error("{why}")]
    Failed {
        /// The error with all its causes.
        why: String,
    },
    /// The directory of a slot cannot be made equal to the installed tree.
    #[error("cannot sync the directory of the application")]
    Sync {
        /// The cause.
        #[source]
        source: SyncError,
    },
    /// A received deliverable was refused.
    #[error(transparent)]
    Rejected(#[from] Refusal),
    /// A task of the server was cancelled.
    #[error("the task was cancelled")]
    Cancelled,
}

impl ReleaseError {
    /// Returns true if the project or a received deliverable caused the error, not this machine. A worker *refuses* a bad tree or archive,
    /// but *fails* because of the machine.
    pub fn is_for_the_pusher(&self) -> bool {
        use ReleaseError::{Ignore, Leaked, Pattern, Patterns, Refused, Rejected, Unfit};
        matches!(self, Refused { .. } | Unfit { .. } | Leaked { .. } | Ignore { .. } | Pattern { .. } | Patterns(_) | Rejected(_))
    }

    /// Returns the hint to show below the error; `None` if the error has no hint.
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
    /// The machine failed, for instance because of a full disk. The release may still be good.
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
                // The length is limited, since the message contains names from a hostile tree.
                let why = why.chars().take(4000).collect();
                if machine { WorkerAnswer::Failed(why) } else { WorkerAnswer::Refused(why) }
            }
        }
    }
}

/// Returns true if only the machine can cause this error. The content of a tree or an archive can cause other errors, such as a name that
/// is too long or a file that cannot be read.
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
            let error = ReleaseError::Archive { doing: "accept", source: ArchiveError::File(file) };
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
