//! Why a release was not made or not installed.

use std::path::PathBuf;

use larder_archive::{ArchiveError, delta::DeltaError};
use serde::{Deserialize, Serialize};

use super::Refusal;
use crate::{
    host::{files::FileError, launch::LaunchError},
    model::{Exit, ReleaseId},
};

/// See the module.
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
        /// Why not.
        #[source]
        source: ArchiveError,
    },
    /// The build left something that a release cannot hold.
    #[error("the build left {path:?}, which cannot be in a release: {why}; {hint}")]
    Unfit {
        /// Where.
        path: String,
        /// What it is.
        why: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// A line of `.larderignore` is no pattern.
    #[error(".larderignore, line {line}: {why}")]
    Ignore {
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        why: String,
    },
    /// A manifest or a list cannot be read.
    #[error("{} cannot be used: {why}", path.display())]
    Manifest {
        /// Which.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// A delta was refused, or an installed file that it needs is damaged.
    #[error(transparent)]
    Delta(DeltaError),
    /// Packing an installed tree again did not give the archive that its manifest names.
    #[error(
        "packing release {release} again gives other bytes than the archive that its manifest names, as another version of larder may; nothing was changed; fetch the whole archive if it is needed"
    )]
    OtherBytes {
        /// Which.
        release: ReleaseId,
    },
    /// A release is not there.
    #[error("release {release} is not in {}", path.display())]
    Unknown {
        /// Which.
        release: ReleaseId,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The installed tree is not what the manifest says.
    #[error("the installed tree differs from its manifest in {count} places, first: {first}")]
    Differs {
        /// How many.
        count: usize,
        /// The first of them.
        first: String,
    },
    /// The worker could not be started or followed.
    #[error("the {what} worker cannot be used")]
    Launch {
        /// `bundle` or `unpack`.
        what: &'static str,
        /// Why not.
        #[source]
        source: LaunchError,
    },
    /// The worker ended without an answer.
    #[error("the {what} worker {exit} without an answer")]
    Died {
        /// `bundle` or `unpack`.
        what: &'static str,
        /// How.
        exit: Exit,
    },
    /// The worker said no; its words.
    #[error("{why}")]
    Refused {
        /// The whole chain of reasons.
        why: String,
    },
    /// The machine did not let the worker do its work; its words.
    #[error("{why}")]
    Failed {
        /// The whole chain of reasons.
        why: String,
    },
    /// It came from elsewhere and is not believed.
    #[error(transparent)]
    Rejected(#[from] Refusal),
    /// A thread of ours was lost.
    #[error("the task was cancelled")]
    Cancelled,
}

impl ReleaseError {
    /// Whether the project has to change something; otherwise this machine has to be looked at. A worker refuses what is in the
    /// tree or in the archive; what the machine refuses it, it fails of.
    pub fn is_for_the_pusher(&self) -> bool {
        use ReleaseError::{Ignore, Refused, Rejected, Unfit};
        matches!(self, Refused { .. } | Unfit { .. } | Ignore { .. } | Rejected(_))
    }

    /// What to do next, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            ReleaseError::Rejected(refusal) => Some(refusal.hint()),
            _ => None,
        }
    }
}

/// What a worker reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer<T> {
    /// It is done.
    Done(T),
    /// It is not, because of what is in the tree or in the archive.
    Refused(String),
    /// It is not, because of this machine: a full disk, for instance. Nothing follows about the release.
    Failed(String),
}

impl<T> From<Result<T, ReleaseError>> for Answer<T> {
    fn from(result: Result<T, ReleaseError>) -> Answer<T> {
        match result {
            Ok(done) => Answer::Done(done),
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
                // Bounded, since names of a hostile tree are in it.
                let why = why.chars().take(4000).collect();
                if machine { Answer::Failed(why) } else { Answer::Refused(why) }
            }
        }
    }
}

/// What no tree and no archive can bring about. Everything else may be of their making: names that are too long, files that must
/// not be read.
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

impl<T> Answer<T> {
    /// As the server sees it.
    pub fn into_result(self) -> Result<T, ReleaseError> {
        match self {
            Answer::Done(done) => Ok(done),
            Answer::Refused(why) => Err(ReleaseError::Refused { why }),
            Answer::Failed(why) => Err(ReleaseError::Failed { why }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_nobodys_fault_but_the_machines() {
        let answer = |code: i32| {
            let source = std::io::Error::from_raw_os_error(code);
            let file = FileError::Io { doing: "write", path: "x".into(), source };
            let error = ReleaseError::Archive { doing: "accepted", source: ArchiveError::File(file) };
            Answer::<()>::from(Err(error)).into_result().unwrap_err()
        };
        for code in [libc::ENOSPC, libc::EDQUOT, libc::EIO, libc::ENOMEM] {
            let error = answer(code);
            assert!(matches!(&error, ReleaseError::Failed { why } if why.contains("write")), "{error:?}");
            assert!(!error.is_for_the_pusher());
        }
        assert!(matches!(answer(libc::ENAMETOOLONG), ReleaseError::Refused { .. }));
    }
}
