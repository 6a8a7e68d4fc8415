//! Computes the changes between two releases from their manifests.

use ignore::gitignore::{Gitignore, GitignoreBuilder};
use larder_archive::between;
use serde::{Deserialize, Serialize};

use super::ReleaseError;
use crate::model::{Entry, EntryKind};

/// The kind of a change between two releases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// Only the newer release has the entry.
    Added,
    /// Both releases have the entry, but its kind, content, mode or target differs.
    Changed,
    /// Only the older release has the entry.
    Removed,
}

impl ChangeKind {
    /// Returns the kind as a word, for display.
    pub fn as_str(self) -> &'static str {
        match self {
            ChangeKind::Added => "added",
            ChangeKind::Changed => "changed",
            ChangeKind::Removed => "removed",
        }
    }
}

/// An entry that differs between two releases.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// The path of the entry.
    pub path: String,
    /// The kind of the change.
    pub change: ChangeKind,
    /// The size in bytes in the older release; `None` if the older release has no file at this path.
    pub before: Option<u64>,
    /// The size in bytes in the newer release; `None` if the newer release has no file at this path.
    pub after: Option<u64>,
    /// A remark for display: the kind of the entry, its new mode or its link target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Returns the changes between two lists of entries. Both lists and the result are sorted by path.
pub fn changes(before: &[Entry], after: &[Entry]) -> Vec<Change> {
    between(before, after).map(|pair| describe(pair.0, pair.1)).collect()
}

/// Patterns as in `.gitignore` that select files of releases.
#[derive(Debug)]
pub struct PathPatterns(Gitignore);

impl PathPatterns {
    /// Compiles the patterns. Fails if a pattern is invalid.
    pub fn new(patterns: &[String]) -> Result<PathPatterns, ReleaseError> {
        let mut builder = GitignoreBuilder::new("");
        for (index, pattern) in patterns.iter().enumerate() {
            builder.add_line(None, pattern).map_err(|e| ReleaseError::Pattern { number: index + 1, why: e.to_string() })?;
        }
        builder.build().map(PathPatterns).map_err(|e| ReleaseError::Patterns(e.to_string()))
    }

    /// Returns the path of the first selected entry that differs between two sorted lists of entries.
    pub fn first_change(&self, before: &[Entry], after: &[Entry]) -> Option<String> {
        let mut changed = between(before, after).filter_map(|pair| pair.1.or(pair.0));
        let selected = |entry: &&Entry| {
            let is_dir = matches!(entry.kind, EntryKind::Dir);
            self.0.matched_path_or_any_parents(&entry.path, is_dir).is_ignore()
        };
        changed.find(selected).map(|entry| entry.path.clone())
    }
}

fn describe(before: Option<&Entry>, after: Option<&Entry>) -> Change {
    let path = after.or(before).map(|entry| entry.path.clone()).unwrap_or_default();
    let change = match (before, after) {
        (None, _) => ChangeKind::Added,
        (_, None) => ChangeKind::Removed,
        _ => ChangeKind::Changed,
    };
    Change { path, change, before: before.and_then(size), after: after.and_then(size), note: note(before, after) }
}

fn size(entry: &Entry) -> Option<u64> {
    if let EntryKind::File { size, .. } = &entry.kind { Some(*size) } else { None }
}

fn note(before: Option<&Entry>, after: Option<&Entry>) -> Option<String> {
    let kind = |entry: &Entry| match &entry.kind {
        EntryKind::Dir => "a directory",
        EntryKind::File { .. } => "a file",
        EntryKind::Link { .. } => "a link",
    };
    match (before.map(|entry| &entry.kind), after.map(|entry| &entry.kind)) {
        (Some(EntryKind::File { executable: false, .. }), Some(EntryKind::File { executable: true, .. })) => {
            Some(String::from("executable now"))
        }
        (Some(EntryKind::File { executable: true, .. }), Some(EntryKind::File { executable: false, .. })) => {
            Some(String::from("not executable any more"))
        }
        (Some(EntryKind::File { .. }), Some(EntryKind::File { .. })) | (None, Some(EntryKind::File { .. })) => None,
        (Some(EntryKind::File { .. }), None) => None,
        (_, Some(EntryKind::Link { target })) => Some(format!("a link to {target}")),
        (Some(_), Some(_)) => after.map(|entry| format!("{} now", kind(entry))),
        (one, other) => one.or(other).and(before.or(after)).map(|entry| kind(entry).to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Digest;

    fn file(path: &str, content: &str, executable: bool) -> Entry {
        let kind = EntryKind::File { size: content.len() as u64, digest: Digest::of(content.as_bytes()), executable };
        Entry { path: path.to_owned(), kind }
    }

    fn other(path: &str, kind: EntryKind) -> Entry {
        Entry { path: path.to_owned(), kind }
    }

    #[test]
    fn difference_of_every_kind_is_a_change() {
        let link = |target: &str| EntryKind::Link { target: target.to_owned() };
        let before = [
            other("a", EntryKind::Dir),
            file("a/gone", "12345", false),
            file("a/same", "1", false),
            file("run", "1", false),
            file("text", "old", false),
            other("to", link("x")),
            file("was", "1", false),
        ];
        let after = [
            other("a", EntryKind::Dir),
            file("a/new", "123", false),
            file("a/same", "1", false),
            file("run", "1", true),
            file("text", "newer", false),
            other("to", link("y")),
            other("was", EntryKind::Dir),
        ];
        let told: Vec<String> = changes(&before, &after)
            .into_iter()
            .map(|change| {
                let Change { path, change, before, after, note } = change;
                format!("{change:?} {path} {before:?} {after:?} {}", note.unwrap_or_default())
            })
            .collect();
        assert_eq!(
            told,
            [
                "Removed a/gone Some(5) None ",
                "Added a/new None Some(3) ",
                "Changed run Some(1) Some(1) executable now",
                "Changed text Some(3) Some(5) ",
                "Changed to None None a link to y",
                "Changed was Some(1) None a directory now",
            ]
        );
        assert_eq!(changes(&before, &before), []);
        assert_eq!(changes(&[], &before[..1])[0].note.as_deref(), Some("a directory"));
    }
}
