//! The rules that select the expected changes. Expected changes are listed but not saved.

use ignore::{
    Match,
    gitignore::{Gitignore, GitignoreBuilder},
};

use crate::release::ReleaseError;

/// The rules of a project. [`Rules::noise`] also contains the built-in rules for files that many applications create.
pub struct Rules {
    data: Vec<String>,
    ignore: Gitignore,
}

impl Rules {
    /// Compiles the rules from the persistent paths `data` and the patterns `ignore`. Fails if a pattern is invalid.
    pub fn new(data: &[String], ignore: &[String]) -> Result<Rules, ReleaseError> {
        let mut builder = GitignoreBuilder::new("");
        for (index, pattern) in ignore.iter().enumerate() {
            builder.add_line(None, pattern).map_err(|e| ReleaseError::Pattern { number: index + 1, why: e.to_string() })?;
        }
        let ignore = builder.build().map_err(|e| ReleaseError::Patterns(e.to_string()))?;
        Ok(Rules { data: data.to_vec(), ignore })
    }

    /// Returns the error message for the first invalid pattern, or `None` if all patterns are valid.
    pub fn wrong(ignore: &[String]) -> Option<String> {
        let wrong = |(index, pattern): (usize, &String)| {
            let line = GitignoreBuilder::new("").add_line(None, pattern).err()?;
            Some(format!("pattern {} of drift.ignore: {line}", index + 1))
        };
        ignore.iter().enumerate().find_map(wrong)
    }

    /// Returns true if `path` is a persistent path or below a persistent path. Such a path is not part of a release.
    pub fn persists(&self, path: &str) -> bool {
        self.data.iter().any(|data| path == data || path.strip_prefix(data.as_str()).is_some_and(|rest| rest.starts_with('/')))
    }

    /// Returns true if a persistent path is below the directory `path`. larder creates such a directory itself.
    pub fn leads_to_data(&self, path: &str) -> bool {
        self.data.iter().any(|data| data.strip_prefix(path).is_some_and(|rest| rest.starts_with('/')))
    }

    /// Returns the reason why a change is expected, or `None` if the change is unexpected. `ours` is true if the release has an entry at
    /// the path. The project's own patterns take precedence over the built-in rules. For example, the pattern `!logs/` makes all changes in
    /// `logs/` unexpected.
    pub fn noise(&self, path: &str, is_dir: bool, ours: bool) -> Option<&'static str> {
        match self.ignore.matched_path_or_any_parents(path, is_dir) {
            Match::Ignore(_) => return Some("matches drift.ignore"),
            Match::Whitelist(_) => return None,
            Match::None => {}
        }
        let name = path.rsplit('/').next().unwrap_or(path);
        if path.split('/').any(|part| part == "__pycache__") || name.ends_with(".pyc") {
            return Some("Python bytecode");
        }
        // The following rules apply only to new files. A change to a file of the release is unexpected in every directory.
        if ours {
            return None;
        }
        let mut parents: Vec<&str> = path.split('/').collect();
        if !is_dir {
            parents.pop();
        }
        let below = |names: &[&str]| parents.iter().any(|part| names.contains(part));
        let ends = |endings: &[&str]| endings.iter().any(|ending| name.ends_with(ending));
        match () {
            () if below(&[".cache", "cache", ".npm", ".yarn", ".bundle", ".gradle", ".m2"]) => Some("a cache"),
            () if below(&["tmp", "temp"]) => Some("temporary"),
            () if below(&["log", "logs"]) || ends(&[".log"]) => Some("a log"),
            () if ends(&[".pid", ".sock", ".lock"]) => Some("a file of a running process"),
            () if ends(&["_history", ".swp", "~"]) || [".lesshst", ".viminfo", ".wget-hsts"].contains(&name) => {
                Some("a file of a shell or an editor")
            }
            () => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pattern_of_the_project_comes_before_the_built_in_rules() {
        let rules = |ignore: &[&str]| Rules::new(&[], &ignore.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>()).unwrap();
        let built_in = rules(&[]);
        assert_eq!(built_in.noise("logs/web.txt", false, false), Some("a log"));
        assert_eq!(built_in.noise("a.pyc", false, true), Some("Python bytecode"));
        let own = rules(&["*.sqlite3", "!logs/", "!*.pyc", "/logs/quiet.txt"]);
        assert_eq!(own.noise("db.sqlite3", false, true), Some("matches drift.ignore"));
        assert_eq!(own.noise("logs/web.txt", false, false), None);
        assert_eq!(own.noise("a.pyc", false, true), None);
        assert_eq!(own.noise("logs/quiet.txt", false, false), Some("matches drift.ignore"));
        assert_eq!(own.noise("tmp/x", false, false), Some("temporary"));
    }
}
