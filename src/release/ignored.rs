//! Reads `.larderignore`, a file in the syntax of `.gitignore`, and excludes the matching entries from a release.

use ignore::gitignore::{Gitignore, GitignoreBuilder};
use larder_archive::{Item, ItemKind};

use super::ReleaseError;
use crate::host::files::{Confined, read_file_limited};

/// The name of the ignore file at the top of a built tree.
pub(super) const NAME: &str = ".larderignore";

/// The maximum size of `.larderignore`, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// Removes from `items` every item that matches the tree's `.larderignore`. `items` must be sorted by path.
pub(super) fn apply(root: &Confined, items: &mut Vec<Item>) -> Result<(), ReleaseError> {
    let is_file = |item: &Item| item.path == NAME && matches!(item.kind, ItemKind::File { .. });
    if !items.iter().any(is_file) {
        return Ok(());
    }
    let file = root.cursor().open(NAME)?;
    let bytes = read_file_limited(&file, &root.shown(NAME), MAX_BYTES)?;
    let patterns = parse(&String::from_utf8_lossy(&bytes))?;
    retain(&patterns, items);
    Ok(())
}

fn parse(text: &str) -> Result<Gitignore, ReleaseError> {
    let mut builder = GitignoreBuilder::new("");
    for (index, line) in text.lines().enumerate() {
        builder.add_line(None, line).map_err(|e| ReleaseError::Ignore { line: index + 1, why: e.to_string() })?;
    }
    builder.build().map_err(|e| ReleaseError::Patterns(e.to_string()))
}

fn retain(patterns: &Gitignore, items: &mut Vec<Item>) {
    // As in git, nothing below an ignored directory can be included again. In sorted order a directory comes before its content,
    // but other entries may be between the two, so the ignored directories are kept in a set.
    let mut gone = std::collections::HashSet::new();
    items.retain(|item| {
        let parent = item.path.rsplit_once('/').map(|(parent, _)| parent);
        let is_dir = matches!(item.kind, ItemKind::Dir);
        let out = parent.is_some_and(|parent| gone.contains(parent)) || patterns.matched(&item.path, is_dir).is_ignore();
        if out && is_dir {
            gone.insert(item.path.clone());
        }
        !out
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn larderignore_patterns_match_as_in_git() {
        let item = |path: &str, kind: ItemKind| Item { path: path.into(), kind };
        let file = || ItemKind::File { size: 0, digest: None, executable: false };
        let mut items = vec![
            item("a.log", file()),
            item("keep.log", file()),
            item("node_modules", ItemKind::Dir),
            item("node_modules-x", file()),
            item("node_modules/keep.log", file()),
            item("src", ItemKind::Dir),
            item("src/b.log", file()),
            item("src/test", ItemKind::Dir),
            item("src/test/x", file()),
            item("test", file()),
        ];
        retain(&parse("# comment\n*.log\n!keep.log\nnode_modules/\n/src/test\n").unwrap(), &mut items);
        let left: Vec<&str> = items.iter().map(|item| item.path.as_str()).collect();
        assert_eq!(left, ["keep.log", "node_modules-x", "src", "test"]);
        let wrong = parse("ok\n[z-a]\n").unwrap_err();
        assert!(wrong.to_string().starts_with(".larderignore:2: "), "{wrong}");
    }
}
