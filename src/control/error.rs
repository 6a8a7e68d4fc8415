//! Errors of requests: a message, hints, and a kind that determines the exit status.

use crate::model::{Environment, Mode, Project, ProjectName, Target};

/// The kind of an error. Scripts rely on the exit status of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// A deployment, a restart or a restore failed. Exit status 1.
    Deployment,
    /// The command line is invalid. Exit status 2.
    Usage,
    /// The request was refused, for example because the caller has no right to the object, or because the object is frozen or in use. Exit
    /// status 3.
    Refused,
    /// The object does not exist. Exit status 4.
    NotFound,
    /// A configuration file is invalid. Exit status 5.
    Configuration,
    /// larder has a bug, or the machine failed. Exit status 70.
    Internal,
}

impl ErrorKind {
    /// Returns the exit status.
    pub fn exit_code(self) -> u8 {
        match self {
            ErrorKind::Deployment => 1,
            ErrorKind::Usage => 2,
            ErrorKind::Refused => 3,
            ErrorKind::NotFound => 4,
            ErrorKind::Configuration => 5,
            ErrorKind::Internal => 70,
        }
    }
}

/// The error of a request, as the interface shows it to the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CommandError {
    /// The kind, which determines the exit status.
    pub kind: ErrorKind,
    /// The failed action, its object and the cause, in one sentence.
    pub message: String,
    /// Instructions for the caller, one line each.
    pub hints: Vec<String>,
}

impl CommandError {
    /// Creates an error without hints.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> CommandError {
        CommandError { kind, message: message.into(), hints: Vec::new() }
    }

    /// Creates an internal error from `error` and all its sources.
    pub fn internal(error: &(dyn std::error::Error + 'static)) -> CommandError {
        CommandError::new(ErrorKind::Internal, crate::pipeline::chain(error))
    }

    /// Adds a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> CommandError {
        self.hints.push(hint.into());
        self
    }
}

/// Returns the word of `known` that is most similar to `given`, if it is similar enough to be a correction.
pub(super) fn similar<'a>(given: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let scored = known.map(|word| (strsim::jaro_winkler(given, word), word));
    scored.filter(|(score, _)| *score > 0.8).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, word)| word)
}

pub(super) fn not_found(message: impl Into<String>) -> CommandError {
    CommandError::new(ErrorKind::NotFound, message)
}

pub(super) fn refused(message: impl Into<String>) -> CommandError {
    CommandError::new(ErrorKind::Refused, message)
}

pub(super) fn usage(message: impl Into<String>) -> CommandError {
    CommandError::new(ErrorKind::Usage, message)
}

/// Runs a blocking function on a thread that may block.
pub(super) async fn run_blocking<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, CommandError> + Send + 'static,
) -> Result<T, CommandError> {
    tokio::task::spawn_blocking(act).await.map_err(|error| CommandError::internal(&error))?
}

pub(super) fn no_project(name: &ProjectName, known: &[ProjectName]) -> CommandError {
    let error = not_found(format!("there is no project {name}"));
    match similar(name.as_str(), known.iter().map(ProjectName::as_str)) {
        Some(other) => error.hint(format!("did you mean {other}?")),
        None => error.hint(format!("create the project with `larder project create {name} --mode cooking`")),
    }
}

/// Returns the error for a target that names no environment of `project`. `project` must contain only environments that the caller may
/// view.
pub(super) fn no_environment(project: &Project, target: &Target) -> CommandError {
    let names: Vec<_> = project.environments.iter().map(Environment::title).collect();
    let what = match &target.environment {
        Some(_) => format!("there is no environment {target}"),
        None => format!("you may not see the default environment of {target}"),
    };
    not_found(what).hint(format!("name one of these environments: {}", names.join(", ")))
}

pub(super) fn several_environments(target: &Target, mode: Option<Mode>, several: &[&Environment]) -> CommandError {
    let names: Vec<_> = several.iter().map(|environment| environment.title()).collect();
    let of_mode = mode.map(|mode| format!(" of mode {mode}")).unwrap_or_default();
    usage(format!("the project {} has several environments{of_mode}", target.project))
        .hint(format!("name one of these environments: {}", names.join(", ")))
}

/// Returns the error for a promotion to a destination that does not exist.
pub(super) fn no_destination(environment: &Environment, to: &str) -> CommandError {
    not_found(format!("{} has neither a remote nor another environment named {to}", environment.title()))
        .hint("add another server with `larder remote add`, or list the environments with `larder project info`")
}
