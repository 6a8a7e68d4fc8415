//! Patterns that select changed files.

use ignore::gitignore::{Gitignore, GitignoreBuilder};

use super::watcher::FileChanges;

/// Patterns, as in `.gitignore`, that select files of a checkout. Without a list, every file is selected.
#[derive(Debug, Clone)]
pub struct FilePatterns(Option<Gitignore>);

impl FilePatterns {
    /// Compiles the patterns. `None` selects every file. The error names the first invalid pattern.
    pub fn new(patterns: Option<&[String]>) -> Result<FilePatterns, String> {
        let Some(patterns) = patterns else { return Ok(FilePatterns(None)) };
        let mut builder = GitignoreBuilder::new("");
        for pattern in patterns {
            builder.add_line(None, pattern).map_err(|error| format!("{pattern:?} is not a pattern: {error}"))?;
        }
        let built = builder.build().map_err(|error| format!("the patterns are invalid together: {error}"))?;
        Ok(FilePatterns(Some(built)))
    }

    /// Returns true if no file is selected, whatever changes.
    pub fn select_nothing(&self) -> bool {
        self.0.as_ref().is_some_and(Gitignore::is_empty)
    }

    /// Returns true if a change concerns a selected file. Changes that were lost concern every pattern, but not an empty list.
    pub fn select(&self, changes: &FileChanges) -> bool {
        match &self.0 {
            None => changes.are_lost || !changes.paths.is_empty(),
            Some(patterns) if patterns.is_empty() => false,
            Some(patterns) => {
                let is_selected = |path: &String| patterns.matched_path_or_any_parents(path, false).is_ignore();
                changes.are_lost || changes.paths.iter().any(is_selected)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn change_is_selected_by_patterns_of_gitignore() {
        let changes =
            |paths: &[&str]| FileChanges { paths: paths.iter().map(|path| (*path).to_owned()).collect(), are_lost: false };
        let patterns = |lines: &[&str]| {
            let lines: Vec<_> = lines.iter().map(|line| (*line).to_owned()).collect();
            FilePatterns::new(Some(&lines)).unwrap()
        };
        let python = patterns(&["/*requirements*.txt", "static/", "!/static/skip"]);
        assert!(python.select(&changes(&["requirements-dev.txt"])));
        assert!(python.select(&changes(&["README", "shop/static/site.css"])));
        assert!(!python.select(&changes(&["docs/requirements.txt", "app.py"])));
        let none = patterns(&[]);
        let lost = FileChanges { paths: Default::default(), are_lost: true };
        assert!(!none.select(&changes(&["app.py"])) && !none.select(&lost));
        assert!(python.select(&lost));
        let every = FilePatterns::new(None).unwrap();
        assert!(every.select(&changes(&["app.py"])) && every.select(&lost) && !every.select(&changes(&[])));
        assert!(FilePatterns::new(Some(&[String::from("{a")])).unwrap_err().contains("\"{a\""));
    }
}
