//! Chooses the base of a new file: the old file that the new file most likely comes from. The new file is patched against its base.

use std::collections::HashMap;

use super::groups;
use crate::{Entry, EntryKind};

/// The maximum size of a file in the same directory that may be a base, in bytes.
const MAX_SIBLING: u64 = 64 << 10;

/// Returns the index of the base for each new file in `wanted`, which contains indices of new entries. `gone` contains the indices of old
/// entries that are removed or changed. The base is the first old file of this list that exists:
///
/// 1. the file with the same path
/// 2. a removed file whose path differs only in versions and hashes
/// 3. a removed file with the same name
/// 4. a small file in the same directory with the same extension
///
/// The new file has no base if this old file has a different path and is much larger than the new file.
pub(super) fn of(old: &[Entry], new: &[Entry], gone: &[usize], wanted: &[usize]) -> Vec<Option<usize>> {
    let mut candidates = None;
    let by_path = |path: &str| groups::find(old, path).filter(|index| groups::size(old.get(*index)).is_some());
    let mut found = Vec::with_capacity(wanted.len());
    for index in wanted {
        let Some(entry) = new.get(*index) else {
            found.push(None);
            continue;
        };
        let base = by_path(&entry.path).or_else(|| {
            let gone = candidates.get_or_insert_with(|| Gone::of(old, new, gone));
            gone.like(&entry.path, old).or_else(|| sibling(&entry.path, old))
        });
        let size = |entry: Option<&Entry>| groups::size(entry).unwrap_or(0);
        // A much larger base is not worth reading, unless it has the same path.
        let sensible = |base: &usize| {
            let (base, new) = (old.get(*base), size(Some(entry)));
            base.is_some_and(|base| base.path == entry.path) || size(base) <= (new * 4).max(MAX_SIBLING)
        };
        found.push(base.filter(sensible));
    }
    found
}

/// The removed old files, by the shape of their paths and by name.
struct Gone<'a> {
    by_shape: HashMap<String, usize>,
    by_name: HashMap<&'a str, Vec<usize>>,
}

impl<'a> Gone<'a> {
    fn of(old: &'a [Entry], new: &[Entry], gone: &[usize]) -> Gone<'a> {
        let mut found = Gone { by_shape: HashMap::new(), by_name: HashMap::new() };
        for index in gone {
            let Some(Entry { path, kind: EntryKind::File { size: 1.., .. } }) = old.get(*index) else { continue };
            // If the new release has an entry with this path, the file was changed, not removed.
            if groups::find(new, path).is_none() {
                found.by_shape.entry(shape(path)).or_insert(*index);
                found.by_name.entry(name(path)).or_default().push(*index);
            }
        }
        found
    }

    fn like(&self, path: &str, old: &[Entry]) -> Option<usize> {
        if let Some(index) = self.by_shape.get(&shape(path)) {
            return Some(*index);
        }
        let alike = |index: &&usize| {
            let other = old.get(**index).map_or("", |entry| entry.path.as_str());
            let parts = path.rsplit('/').zip(other.rsplit('/')).take_while(|(a, b)| a == b).count();
            let start = path.split('/').zip(other.split('/')).take_while(|(a, b)| a == b).count();
            (parts, start)
        };
        // A name like `index.js` is common, so at most 64 files with this name are compared.
        self.by_name.get(name(path))?.iter().take(64).max_by_key(alike).copied()
    }
}

fn name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

/// Returns a path without the versions and hashes in it.
fn shape(path: &str) -> String {
    let mut shape = String::with_capacity(path.len());
    for word in path.split_inclusive(|c: char| !c.is_ascii_alphanumeric()) {
        let text = word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
        let is_number = text.bytes().all(|c| c.is_ascii_digit());
        let is_hash = text.len() >= 6 && text.bytes().any(|c| c.is_ascii_digit());
        shape.push_str(if is_number || is_hash { word.get(text.len()..).unwrap_or_default() } else { word });
    }
    shape
}

/// Returns the index of a small file in the same directory with the same extension. Searches the four entries before `path`, nearest
/// first, and then the four entries after `path`, nearest first.
fn sibling(path: &str, old: &[Entry]) -> Option<usize> {
    let ending = |path: &str| name(path).rsplit_once('.').map(|(_, ending)| ending.to_owned());
    let parent = |path: &str| path.rsplit_once('/').map(|(parent, _)| parent.to_owned());
    let at = old.partition_point(|entry| entry.path.as_str() < path);
    let fits = |index: &usize| {
        old.get(*index).is_some_and(|entry| {
            matches!(entry.kind, EntryKind::File { size: 1..=MAX_SIBLING, .. })
                && parent(&entry.path) == parent(path)
                && ending(&entry.path) == ending(path)
        })
    };
    (at.saturating_sub(4)..at).rev().find(fits).or_else(|| (at..at.saturating_add(4).min(old.len())).find(fits))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Digest, compared};

    fn files(paths: &[&str]) -> Vec<Entry> {
        let kind = |path: &str| EntryKind::File { size: 10, digest: Digest::of(path.as_bytes()), executable: false };
        let mut entries: Vec<Entry> = paths.iter().map(|path| Entry { path: (*path).to_owned(), kind: kind(path) }).collect();
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        entries
    }

    #[test]
    fn new_file_finds_its_old_version() {
        let old = files(&["a/main.4f3a2b1c.js", "a/same.js", "lib/x-1.2.dist-info/METADATA", "moved/deep/thing.css", "z/one.py"]);
        let new = files(&[
            "a/main.99aa88bb.js",
            "a/same.js",
            "lib/x-1.3.dist-info/METADATA",
            "other/deep/thing.css",
            "z/one.py",
            "z/two.py",
            "q.rs",
        ]);
        let wanted: Vec<usize> = (0..new.len()).collect();
        let (gone, _) = compared(&old, &new);
        let found = of(&old, &new, &gone, &wanted);
        let named = |path: &str| {
            let index = new.iter().position(|entry| entry.path == path).unwrap();
            found[index].map(|base| old[base].path.as_str())
        };
        assert_eq!(named("a/main.99aa88bb.js"), Some("a/main.4f3a2b1c.js"));
        assert_eq!(named("a/same.js"), Some("a/same.js"));
        assert_eq!(named("lib/x-1.3.dist-info/METADATA"), Some("lib/x-1.2.dist-info/METADATA"));
        assert_eq!(named("other/deep/thing.css"), Some("moved/deep/thing.css"));
        assert_eq!(named("z/two.py"), Some("z/one.py"));
        assert_eq!(named("q.rs"), None);
    }
}
