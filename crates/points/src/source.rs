//! Sources: the directories and files of an environment that a restore point holds.

use serde::{Deserialize, Serialize};

use crate::{
    PointError, Result,
    entry::{is_within, path_fault},
};

/// The suffixes of the files that SQLite creates beside a database file. A database file and these files are one unit.
pub(crate) const SIDE_FILES: [&str; 3] = ["-journal", "-shm", "-wal"];

/// The kind of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceKind {
    /// A directory with everything below it.
    Directory,
    /// A regular file, with the files `-wal`, `-shm` and `-journal` beside it.
    File,
}

/// A directory or file to capture, identified by its path below one directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The path, such as `uploads` or `storage/app`.
    pub path: String,
    /// The kind. A live file of another kind is an error.
    pub kind: SourceKind,
}

impl Source {
    /// Returns a source that is a directory.
    pub fn directory(path: impl Into<String>) -> Source {
        Source { path: path.into(), kind: SourceKind::Directory }
    }

    /// Returns a source that is one file.
    pub fn file(path: impl Into<String>) -> Source {
        Source { path: path.into(), kind: SourceKind::File }
    }

    /// Returns the paths that belong to the source: its own path, and for a file also the paths of its side files.
    pub(crate) fn roots(&self) -> Vec<Vec<u8>> {
        let sides: &[&str] = if self.kind == SourceKind::File { &SIDE_FILES } else { &[] };
        std::iter::once("").chain(sides.iter().copied()).map(|side| format!("{}{side}", self.path).into_bytes()).collect()
    }

    /// Returns true if an entry with this path can come from the source.
    pub(crate) fn holds(&self, path: &[u8]) -> bool {
        match self.kind {
            SourceKind::Directory => is_within(path, self.path.as_bytes()),
            SourceKind::File => self.roots().iter().any(|root| root == path),
        }
    }
}

/// A source as recorded in a restore point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRecord {
    /// The source.
    #[serde(flatten)]
    pub source: Source,
    /// False if the path did not exist at the capture. A restore then removes a live file or directory at this path.
    pub is_present: bool,
}

/// Checks that paths stay below their directory, and that no source is part of another source.
pub(crate) fn check<'a>(sources: impl IntoIterator<Item = &'a Source>) -> Result<()> {
    let mut roots: Vec<(Vec<u8>, &Source)> = Vec::new();
    for source in sources {
        let bad = |why| PointError::Source { source_path: source.path.clone(), why };
        for root in source.roots() {
            if let Some(why) = path_fault(&root) {
                return Err(bad(why));
            }
            if roots.iter().any(|(other, _)| is_within(&root, other) || is_within(other, &root)) {
                return Err(bad("it overlaps with another source"));
            }
            roots.push((root, source));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_that_overlap_or_leave_their_directory_are_refused() {
        let good = [Source::directory("a/b"), Source::file("db"), Source::directory("a/c"), Source::directory("ab")];
        assert!(check(&good).is_ok());
        for bad in ["", "/a", "..", "a/../b", "a/b", "a/b/c", "a", "db", "db-wal", "a//d", "x\0"] {
            let sources: Vec<_> = good.iter().cloned().chain([Source::directory(bad)]).collect();
            assert!(check(&sources).is_err(), "{bad:?}");
        }
    }
}
