//! What is wrong with a configuration file: where, what, what was expected and what to do.

use std::fmt;

/// A problem in a configuration file; one line for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// The file as its author knows it, such as `larder.yml`.
    pub file: String,
    /// The line, from 1, where one is known.
    pub line: Option<u32>,
    /// The column in characters, from 1, where one is known.
    pub column: Option<u32>,
    /// What is wrong.
    pub problem: String,
    /// What would have been right, with an example.
    pub expected: Option<String>,
    /// What to do next.
    pub hint: Option<String>,
}

impl ConfigError {
    /// A problem of a file as a whole.
    pub fn new(file: &str, problem: impl Into<String>) -> ConfigError {
        ConfigError { file: file.to_owned(), line: None, column: None, problem: problem.into(), expected: None, hint: None }
    }

    /// The same problem, at a line and column.
    pub fn at(mut self, line: u32, column: u32) -> ConfigError {
        self.line = Some(line);
        self.column = Some(column);
        self
    }

    /// The same problem, at a line.
    pub fn at_line(mut self, line: u32) -> ConfigError {
        self.line = Some(line);
        self
    }

    /// The same problem, with what would have been right.
    pub fn expected(mut self, expected: impl Into<String>) -> ConfigError {
        self.expected = Some(expected.into());
        self
    }

    /// The same problem, with what to do next.
    pub fn hint(mut self, hint: impl Into<String>) -> ConfigError {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}", self.problem)?;
        if let Some(expected) = &self.expected {
            write!(f, "; expected {expected}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "; {hint}")?;
        }
        Ok(())
    }
}

/// Text of a file as it is shown in an error: quoted, escaped, one line, and not long.
pub(super) fn shown(text: &str) -> String {
    const LONGEST: usize = 60;
    if text.chars().count() <= LONGEST {
        return format!("{text:?}");
    }
    let start: String = text.chars().take(LONGEST).collect();
    format!("{:?}...", start)
}

/// What to say of an unknown word: the known one that was probably meant, else all known ones.
pub(super) fn did_you_mean(given: &str, known: &[&str]) -> String {
    // Longer words than any known one are not compared: the time would grow with the product of the lengths.
    let near = (given.len() <= 64)
        .then(|| {
            known
                .iter()
                .map(|word| (strsim::damerau_levenshtein(&given.to_lowercase(), word), *word))
                .filter(|(distance, word)| *distance <= (word.len() / 3).max(1))
                .min_by_key(|(distance, _)| *distance)
        })
        .flatten();
    match near {
        Some((_, word)) => format!("did you mean {word:?}?"),
        None => format!("the known ones are {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_offered_and_otherwise_all_of_them() {
        assert_eq!(did_you_mean("buidpacks", &["build", "buildpacks"]), "did you mean \"buildpacks\"?");
        assert_eq!(did_you_mean("xyz", &["env", "data"]), "the known ones are env, data");
        assert!(did_you_mean(&"x".repeat(100_000), &["env"]).starts_with("the known ones"));
    }

    #[test]
    fn an_error_is_one_line_whatever_the_file_says() {
        let text = shown(&"a\n\u{1b}[31m".repeat(1000));
        assert!(!text.contains('\n') && !text.contains('\u{1b}') && text.len() < 800, "{text}");
    }
}
