//! Problems of configuration files: the position, the problem, the expected value and a hint.

use std::fmt;

/// A problem in a configuration file, displayed as one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// The file, such as `larder.yml`.
    pub file: String,
    /// The line, counted from 1, if it is known.
    pub line: Option<u32>,
    /// The column in characters, counted from 1, if it is known.
    pub column: Option<u32>,
    /// The problem, with the value that was found.
    pub problem: String,
    /// The expected value, with an example.
    pub expected: Option<String>,
    /// The remedy, as an instruction.
    pub hint: Option<String>,
}

impl ConfigError {
    /// Creates a problem without a position. [`ConfigError::at`] adds the position.
    pub fn new(file: &str, problem: impl Into<String>) -> ConfigError {
        ConfigError { file: file.to_owned(), line: None, column: None, problem: problem.into(), expected: None, hint: None }
    }

    /// Sets the line and column.
    pub fn at(mut self, line: u32, column: u32) -> ConfigError {
        self.line = Some(line);
        self.column = Some(column);
        self
    }

    /// Sets the line.
    pub fn at_line(mut self, line: u32) -> ConfigError {
        self.line = Some(line);
        self
    }

    /// Sets the expected value.
    pub fn expected(mut self, expected: impl Into<String>) -> ConfigError {
        self.expected = Some(expected.into());
        self
    }

    /// Sets the remedy.
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

/// Renders text from a file for an error: on one line, quoted, escaped, and shortened.
pub(super) fn shown(text: &str) -> String {
    const MAX_CHARS: usize = 60;
    if text.chars().count() <= MAX_CHARS {
        return format!("{text:?}");
    }
    let start: String = text.chars().take(MAX_CHARS).collect();
    format!("{:?}...", start)
}

/// Returns a hint for an unknown word: the most similar known word, or all known words if none is similar.
pub(super) fn did_you_mean(given: &str, known: &[&str]) -> String {
    // The time of a comparison grows with the product of the lengths of both words.
    const MAX_COMPARED: usize = 64;
    let near = (given.len() <= MAX_COMPARED)
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
        None => format!("expected one of {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_word_is_reported_with_the_nearest_or_all_known_words() {
        assert_eq!(did_you_mean("buidpacks", &["build", "buildpacks"]), "did you mean \"buildpacks\"?");
        assert_eq!(did_you_mean("xyz", &["env", "data"]), "expected one of env, data");
        assert!(did_you_mean(&"x".repeat(100_000), &["env"]).starts_with("expected one of"));
    }

    #[test]
    fn long_text_of_several_lines_is_shown_on_one_short_line() {
        let text = shown(&"a\n\u{1b}[31m".repeat(1000));
        assert!(!text.contains('\n') && !text.contains('\u{1b}') && text.len() < 800, "{text}");
    }
}
