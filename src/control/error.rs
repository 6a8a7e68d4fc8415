//! Errors as a person meets them: what was wrong, what to do, and an exit code that scripts can rely on.

use crate::model::{Project, ProjectName};

use super::request::Target;

/// The kind of an error; it picks the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The deployment failed: 1.
    Deployment,
    /// The command was typed wrong: 2.
    Usage,
    /// The caller may not, or the thing is frozen or locked: 3.
    Refused,
    /// There is no such thing: 4.
    NotFound,
    /// A file that somebody wrote is wrong: 5.
    Configuration,
    /// Ours, or the machine's: 70.
    Internal,
}

impl Kind {
    /// The exit code.
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::Deployment => 1,
            Kind::Usage => 2,
            Kind::Refused => 3,
            Kind::NotFound => 4,
            Kind::Configuration => 5,
            Kind::Internal => 70,
        }
    }
}

/// An error with its hints.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CommandError {
    /// What kind it is.
    pub kind: Kind,
    /// What was being done, to what, and why it failed.
    pub message: String,
    /// What to do next.
    pub hints: Vec<String>,
}

impl CommandError {
    /// An error of `kind`.
    pub fn new(kind: Kind, message: impl Into<String>) -> CommandError {
        CommandError { kind, message: message.into(), hints: Vec::new() }
    }

    /// An error of ours or of the machine, with all its causes.
    pub fn internal(error: &(dyn std::error::Error + 'static)) -> CommandError {
        CommandError::new(Kind::Internal, crate::pipeline::chain(error))
    }

    /// The same with a further hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> CommandError {
        self.hints.push(hint.into());
        self
    }
}

/// The most similar of `known`, if one is similar enough to be what was meant.
pub fn similar<'a>(given: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let scored = known.map(|word| (strsim::jaro_winkler(given, word), word));
    scored.filter(|(score, _)| *score > 0.8).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, word)| word)
}

pub(super) fn no_project(name: &ProjectName, known: &[ProjectName]) -> CommandError {
    let error = CommandError::new(Kind::NotFound, format!("there is no project {name}"));
    match similar(name.as_str(), known.iter().map(ProjectName::as_str)) {
        Some(other) => error.hint(format!("did you mean {other}?")),
        None => error.hint(format!("`larder project create {name} --mode cooking` makes it")),
    }
}

pub(super) fn no_environment(project: &Project, target: &Target) -> CommandError {
    let names: Vec<_> = project.environments.iter().map(|environment| environment.name.to_string()).collect();
    CommandError::new(Kind::NotFound, format!("there is no environment {target}")).hint(format!(
        "{} has {}",
        project.name,
        names.join(", ")
    ))
}
