//! The errors of a build.

use crate::{
    host::launch::LaunchError,
    model::{Blame, Exit},
};

use super::job::{BuildFailure, MORE_MEMORY};

/// The reason why a build ended without a result.
#[derive(Debug, thiserror::Error)]
pub enum BuildpackError {
    /// A script, a buildpack or the project's own files failed.
    #[error("{0}")]
    Failed(Box<BuildFailure>),
    /// The build worker cannot be started, or its report cannot be read.
    #[error("cannot run the build worker")]
    Launch(#[from] LaunchError),
    /// The worker exited without a report.
    #[error("the build {0}")]
    Ended(Exit),
    /// The pipe for the build's output cannot be created.
    #[error("cannot create a pipe for the build's output")]
    Pipe(#[source] std::io::Error),
    /// The variables in the worker's report are invalid.
    #[error("cannot use the report of the build worker: {0}")]
    Report(String),
    /// The build was cancelled.
    #[error("the build was cancelled")]
    Cancelled,
}

impl BuildpackError {
    /// Returns the party that has to act.
    pub fn blame(&self) -> Blame {
        match self {
            BuildpackError::Failed(failure) => failure.blame,
            // The kernel sends a signal to a build that exceeds the limit of memory or of the size of a file.
            BuildpackError::Ended(exit) if exit.out_of_memory || exit.signal.is_some() => Blame::Pusher,
            BuildpackError::Cancelled => Blame::Nobody,
            BuildpackError::Pipe(_) => Blame::Host,
            BuildpackError::Launch(_) | BuildpackError::Ended(_) | BuildpackError::Report(_) => Blame::Bug,
        }
    }

    /// Returns the next actions for the pusher.
    pub fn hints(&self) -> Vec<String> {
        match self {
            BuildpackError::Failed(failure) if !failure.hint.is_empty() => vec![failure.hint.clone()],
            BuildpackError::Ended(exit) if exit.out_of_memory => {
                vec![String::from(MORE_MEMORY)]
            }
            _ => Vec::new(),
        }
    }
}
