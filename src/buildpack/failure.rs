//! Why a build did not go well.

use serde::{Deserialize, Serialize};

use crate::{
    host::launch::LaunchError,
    model::{Blame, Exit},
};

use super::BuildStep;

/// A failure inside the worker, as it reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The step that failed.
    pub step: BuildStep,
    /// Which script of which buildpack, or which file: `buildpack node: bin/compile`.
    pub what: String,
    /// One line: why. It ends up in git's own rejected line.
    pub why: String,
    /// Who has to act.
    pub blame: Blame,
    /// What to do next; may be empty.
    pub hint: String,
    /// The exit status, where a script ended by itself.
    pub code: Option<i32>,
    /// The last lines of its output.
    pub tail: Vec<String>,
}

/// What to do when memory ran out.
const MORE_MEMORY: &str =
    "the build needs more memory: raise build.memory in larder.yml; this server's own limit is builds.memory in its file";

impl Failure {
    /// Adds what only the keeper knows: that something of the build was killed for want of memory. The build may have failed for
    /// another reason, so what it said stays.
    pub(super) fn out_of_memory(&mut self) {
        self.why = format!("out of memory: {}", self.why);
        self.hint = MORE_MEMORY.to_owned();
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.what, self.why)
    }
}

/// Why there is no build.
#[derive(Debug, thiserror::Error)]
pub enum BuildpackError {
    /// A script, a buildpack or the project's own files failed.
    #[error("{0}")]
    Failed(Box<Failure>),
    /// The worker could not be started or followed.
    #[error("the build worker could not be used")]
    Launch(#[from] LaunchError),
    /// The worker ended without a word.
    #[error("the build {0}")]
    Ended(Exit),
    /// A pipe for its output could not be made.
    #[error("no pipe for the build's output")]
    Pipe(#[source] std::io::Error),
    /// Its report does not say what a report says.
    #[error("the report of the build worker is wrong: {0}")]
    Report(String),
    /// Somebody cancelled it.
    #[error("the build was cancelled")]
    Cancelled,
}

impl BuildpackError {
    /// Who has to act.
    pub fn blame(&self) -> Blame {
        match self {
            BuildpackError::Failed(failure) => failure.blame,
            // A build that is killed used more than it may: memory, time.
            BuildpackError::Ended(exit) if exit.out_of_memory || exit.signal.is_some() => Blame::Pusher,
            BuildpackError::Cancelled => Blame::Nobody,
            BuildpackError::Pipe(_) => Blame::Host,
            BuildpackError::Launch(_) | BuildpackError::Ended(_) | BuildpackError::Report(_) => Blame::Bug,
        }
    }

    /// One line for git's own rejected line.
    pub fn why(&self) -> String {
        match self {
            BuildpackError::Failed(failure) => failure.why.clone(),
            other => other.to_string(),
        }
    }

    /// What to do next.
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
