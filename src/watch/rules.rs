//! The rules that select the files whose changes count.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use ignore::{
    Match,
    gitignore::{Gitignore, GitignoreBuilder},
};

/// The files with patterns that apply to their directory, the more specific file first.
pub(super) const IGNORE_FILES: [&str; 2] = [".larderignore", ".gitignore"];

/// The files that count although projects usually ignore them.
const ALWAYS: [&str; 1] = [".env"];

/// The files that tools and editors write. The patterns of a project take precedence.
const BUILT_IN: [&str; 46] = [
    ".hg/",
    ".svn/",
    ".idea/",
    ".vscode/",
    ".DS_Store",
    "node_modules/",
    "bower_components/",
    ".npm/",
    ".yarn/",
    ".pnpm-store/",
    ".parcel-cache/",
    ".next/",
    "target/",
    ".venv/",
    "venv/",
    "__pycache__/",
    "*.pyc",
    "*.egg-info/",
    ".pytest_cache/",
    ".mypy_cache/",
    ".ruff_cache/",
    ".tox/",
    ".bundle/",
    "vendor/bundle/",
    ".gradle/",
    ".m2/",
    ".cache/",
    ".profile.d/",
    ".larder-router.php",
    ".larder-php/",
    "tmp/",
    "log/",
    "logs/",
    "*.log",
    "*.pid",
    "*.sock",
    "*.sqlite3",
    "*.sqlite3-journal",
    "*-wal",
    "*-shm",
    "*.swp",
    "*.swx",
    "*~",
    ".#*",
    // Vim creates this file to test if it can write into the directory.
    "4913",
    "*.tmp",
];

/// The rules of one checkout: the patterns of `.larderignore` and `.gitignore` in each directory, those of the repository, and the built-in
/// patterns.
#[derive(Debug)]
pub struct WatchRules {
    pub(super) root: PathBuf,
    /// Persistent paths, which the application writes.
    data: Gitignore,
    /// The patterns of `.git/info/exclude`.
    excluded: Gitignore,
    built_in: Gitignore,
    /// The patterns of each directory that has such files.
    directories: BTreeMap<PathBuf, Vec<Gitignore>>,
}

impl WatchRules {
    /// Creates the rules of the checkout `root`, an absolute path. `data` are the persistent paths of the recipe.
    pub fn new<'a>(root: &Path, data: impl IntoIterator<Item = &'a str>) -> WatchRules {
        let lines = data.into_iter().map(|path| format!("/{}", path.trim_end_matches('/')));
        let data = compiled(root, lines);
        let built_in = compiled(root, BUILT_IN.iter().map(|line| (*line).to_owned()));
        // In a linked work tree, `.git` is a file, and the patterns are elsewhere.
        let excluded = Gitignore::new(root.join(".git/info/exclude")).0;
        let excluded = match excluded.is_empty() {
            true => Gitignore::empty(),
            false => read(root, &root.join(".git/info/exclude")),
        };
        WatchRules { root: root.to_owned(), data, excluded, built_in, directories: BTreeMap::new() }
    }

    /// Reads the patterns of a directory.
    pub(super) fn add_directory(&mut self, directory: &Path) {
        let found = IGNORE_FILES.iter().map(|name| directory.join(name)).filter(|file| file.is_file());
        let found: Vec<_> = found.map(|file| read(directory, &file)).collect();
        match found.is_empty() {
            true => drop(self.directories.remove(directory)),
            false => drop(self.directories.insert(directory.to_owned(), found)),
        }
    }

    /// Returns true if changes of an absolute path below the root do not count.
    pub(super) fn ignore(&self, path: &Path, is_dir: bool) -> bool {
        let Ok(relative) = path.strip_prefix(&self.root) else { return true };
        if relative.components().any(|part| part.as_os_str() == ".git") {
            return true;
        }
        if ALWAYS.iter().any(|always| relative == Path::new(always)) {
            return false;
        }
        let mut parents: Vec<_> = path.ancestors().skip(1).take_while(|parent| parent.starts_with(&self.root)).collect();
        parents.pop();
        // An ignored directory hides its content, whatever the patterns say about the content.
        parents.into_iter().rev().any(|parent| self.matches(parent, true)) || self.matches(path, is_dir)
    }

    /// Returns true if the patterns ignore the path itself.
    fn matches(&self, path: &Path, is_dir: bool) -> bool {
        if self.data.matched(path, is_dir).is_ignore() {
            return true;
        }
        let above = path.ancestors().skip(1).take_while(|parent| parent.starts_with(&self.root));
        let files = above.filter_map(|parent| self.directories.get(parent)).flatten();
        for patterns in files.chain([&self.excluded, &self.built_in]) {
            match patterns.matched(path, is_dir) {
                Match::Ignore(_) => return true,
                Match::Whitelist(_) => return false,
                Match::None => {}
            }
        }
        false
    }
}

fn compiled(root: &Path, lines: impl IntoIterator<Item = String>) -> Gitignore {
    let mut builder = GitignoreBuilder::new(root);
    for line in lines {
        // An invalid pattern ignores nothing, as in git.
        let _ = builder.add_line(None, &line);
    }
    builder.build().unwrap_or_else(|_| Gitignore::empty())
}

/// Reads a file of patterns that apply below `directory`.
fn read(directory: &Path, file: &Path) -> Gitignore {
    let mut builder = GitignoreBuilder::new(directory);
    let _ = builder.add(file);
    builder.build().unwrap_or_else(|_| Gitignore::empty())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn project_patterns_come_before_built_in_patterns() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path();
        fs::create_dir_all(root.join(".git/info")).unwrap();
        fs::create_dir_all(root.join("sub/deep")).unwrap();
        fs::write(root.join(".git/info/exclude"), "/private\n").unwrap();
        fs::write(root.join(".gitignore"), "*.out\n/build/\n!target/\n.env\n").unwrap();
        fs::write(root.join(".larderignore"), "!keep.out\n/notes/\n").unwrap();
        fs::write(root.join("sub/.gitignore"), "!*.out\nlocal\n").unwrap();
        let mut rules = WatchRules::new(root, ["media", "db.dat"]);
        rules.add_directory(root);
        rules.add_directory(&root.join("sub"));
        for (path, ignored) in [
            ("app.py", false),
            (".env", false),
            ("a.out", true),
            ("keep.out", false),
            ("sub/a.out", false),
            ("sub/local", true),
            ("local", false),
            ("build/x.js", true),
            ("notes/today", true),
            ("private", true),
            ("target/x", false),
            (".git/HEAD", true),
            ("sub/.git/config", true),
            ("node_modules/a/index.js", true),
            ("sub/__pycache__/a.pyc", true),
            (".app.py.swp", true),
            ("media/1.png", true),
            ("db.dat", true),
            ("sub/db.dat", false),
        ] {
            assert_eq!(rules.ignore(&root.join(path), false), ignored, "{path}");
        }
        assert!(rules.ignore(Path::new("/etc/passwd"), false));
    }
}
