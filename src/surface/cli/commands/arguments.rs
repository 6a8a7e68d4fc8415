//! Arguments that several commands share.

use crate::{
    control::{CommandError, ErrorKind},
    model::{Target, sanitise_reason},
};

/// The environment that a command concerns.
#[derive(Debug, clap::Args)]
pub struct On {
    /// Project, or PROJECT/ENVIRONMENT
    #[arg(value_name = "PROJECT")]
    target: Option<Target>,
    /// Project, instead of the argument PROJECT
    #[arg(long, short = 'a', value_name = "PROJECT", conflicts_with = "target")]
    app: Option<Target>,
}

impl On {
    pub fn target(self) -> Result<Target, CommandError> {
        let missing = || {
            CommandError::new(ErrorKind::Usage, "no project is named")
                .hint("name a project, as in `larder releases shop` or `larder releases --app shop`")
        };
        self.target.or(self.app).ok_or_else(missing)
    }
}

/// The environment that a command concerns, with an optional release of this environment.
#[derive(Debug, clap::Args)]
pub struct OnRelease {
    /// Project, or PROJECT/ENVIRONMENT; then a release: v41, its id, a tag, or the first digits of its commit
    #[arg(value_names = ["PROJECT", "RELEASE"], num_args = 0..=2)]
    words: Vec<String>,
    /// Project, instead of the argument PROJECT
    #[arg(long, short = 'a', value_name = "PROJECT")]
    app: Option<Target>,
}

impl OnRelease {
    pub fn target_and_release(self) -> Result<(Target, Option<String>), CommandError> {
        let mut words = self.words.into_iter();
        let target = match self.app {
            Some(app) => Some(app),
            None => {
                let parse = |word: String| word.parse().map_err(|error| CommandError::new(ErrorKind::Usage, format!("{error}")));
                words.next().map(parse).transpose()?
            }
        };
        let release = words.next();
        if let Some(more) = words.next() {
            return Err(CommandError::new(
                ErrorKind::Usage,
                format!("unexpected argument {more:?}: --app names the project already"),
            ));
        }
        Ok((On { target, app: None }.target()?, release))
    }
}

/// A project with an optional environment, for commands whose first word is always the project.
#[derive(Debug, clap::Args)]
pub struct OnTarget {
    /// Project, or PROJECT/ENVIRONMENT
    #[arg(value_name = "PROJECT")]
    pub target: Target,
}

/// Parses the name of a release. Names appear in messages, so control characters are refused here.
pub fn release_name(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > 250 || sanitise_reason(text) != text {
        return Err(String::from("this is not the name of a release (expected a name such as v42)"));
    }
    Ok(text.to_owned())
}

/// Checks the reason given with `--override`, which is recorded as one line.
pub fn override_reason(given: Option<String>) -> Result<Option<String>, CommandError> {
    let wrong = |why: &str| {
        CommandError::new(ErrorKind::Usage, format!("--override {why}")).hint("give the reason for the override in a few words")
    };
    match given {
        None => Ok(None),
        Some(text) if text.trim().len() < 4 => Err(wrong("needs a reason")),
        Some(text) if text.len() > 300 || text.chars().any(char::is_control) => Err(wrong("takes one line of at most 300 bytes")),
        Some(text) => Ok(Some(text.trim().to_owned())),
    }
}

/// A project and further words.
#[derive(Debug, clap::Args)]
pub(super) struct Words {
    /// Project, or PROJECT/ENVIRONMENT; then the arguments of the command
    #[arg(value_names = ["PROJECT", "ARGUMENT"], num_args = 0.., allow_hyphen_values = false)]
    words: Vec<String>,
    /// Project, instead of the argument PROJECT
    #[arg(long, short = 'a', value_name = "PROJECT")]
    app: Option<Target>,
}

impl Words {
    pub(super) fn target_and_rest(self) -> Result<(Target, Vec<String>), CommandError> {
        let mut words = self.words.into_iter();
        let target = match self.app {
            Some(app) => Some(app),
            None => words
                .next()
                .map(|word| word.parse().map_err(|error| CommandError::new(ErrorKind::Usage, format!("{error}"))))
                .transpose()?,
        };
        let target = target.ok_or_else(|| {
            CommandError::new(ErrorKind::Usage, "no project is named")
                .hint("name a project, as in `larder config show shop` or `larder config show --app shop`")
        })?;
        Ok((target, words.collect()))
    }
}
