//! The errors of a build.

use serde::{Deserialize, Serialize};

use crate::{
    host::launch::LaunchError,
    model::{Blame, Exit},
};

use super::BuildStep;

/// A failure inside the worker, as the report contains it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildFailure {
    /// The step that failed.
    pub step: BuildStep,
    /// The script or file that failed, such as `buildpack node: bin/compile`.
    pub what: String,
    /// The cause in one line, for git's rejected line.
    pub why: String,
    /// The person who has to act.
    pub blame: Blame,
    /// The next action for the pusher; may be empty.
    pub hint: String,
    /// The script's exit status, unless a signal ended it.
    pub code: Option<i32>,
    /// The last lines of the script's output.
    pub tail: Vec<String>,
}

/// The hint for a build that ran out of memory.
const MORE_MEMORY: &str =
    "the build needs more memory: raise build.memory in larder.yml; this server's own limit is builds.memory in its file";

impl BuildFailure {
    /// Adds that the kernel killed a process of the build for lack of memory, which only the keeper knows. The original cause stays,
    /// because the build may have failed for another reason.
    pub(super) fn out_of_memory(&mut self) {
        self.why = format!("out of memory: {}", self.why);
        self.hint = MORE_MEMORY.to_owned();
    }
}

impl std::fmt::Display for BuildFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.what, self.why)
    }
}

/// The reason that a build ended without a result.
#[derive(Debug, thiserror::Error)]
pub enum BuildpackError {
    /// A script, a buildpack or the project's own files failed.
    #[error("{0}")]
    Failed(Box<BuildFailure>),
    /// The build worker cannot be started or followed.
    #[error("cannot run the build worker")]
    Launch(#[from] LaunchError),
    /// The worker ended without a report.
    #[error("the build {0}")]
    Ended(Exit),
    /// The pipe for the build's output cannot be created.
    #[error("cannot create a pipe for the build's output")]
    Pipe(#[source] std::io::Error),
    /// The worker's report is invalid.
    #[error("cannot read the report of the build worker: {0}")]
    Report(String),
    /// The build was cancelled.
    #[error("the build was cancelled")]
    Cancelled,
}

impl BuildpackError {
    /// Returns who has to act.
    pub fn blame(&self) -> Blame {
        match self {
            BuildpackError::Failed(failure) => failure.blame,
            // The system kills builds that exceed a limit of memory or time.
            BuildpackError::Ended(exit) if exit.out_of_memory || exit.signal.is_some() => Blame::Pusher,
            BuildpackError::Cancelled => Blame::Nobody,
            BuildpackError::Pipe(_) => Blame::Host,
            BuildpackError::Launch(_) | BuildpackError::Ended(_) | BuildpackError::Report(_) => Blame::Bug,
        }
    }

    /// Returns the cause in one line, for git's rejected line.
    pub fn why(&self) -> String {
        match self {
            BuildpackError::Failed(failure) => failure.why.clone(),
            other => other.to_string(),
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
