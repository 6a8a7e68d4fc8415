//! What differs between two releases, as their manifests tell it; no tree is read for that.

use std::{cmp::Ordering, iter::Peekable, slice::Iter};

use serde::{Deserialize, Serialize};

use crate::model::{Entry, EntryKind};

/// How an entry of one release became that of another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// Only the newer one has it.
    Added,
    /// Both have it, and it differs.
    Changed,
    /// Only the older one has it.
    Removed,
}

impl Way {
    /// A word for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Way::Added => "added",
            Way::Changed => "changed",
            Way::Removed => "removed",
        }
    }
}

/// An entry that two releases do not have alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Its path.
    pub path: String,
    /// What became of it.
    pub change: Way,
    /// Its size in the older release, bytes, where it is a file.
    pub before: Option<u64>,
    /// Its size in the newer release, bytes, where it is a file.
    pub after: Option<u64>,
    /// What is to be said besides: another kind, another mode, a link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// What differs between two sorted lists of entries, in the order of their paths.
pub fn changes(before: &[Entry], after: &[Entry]) -> Vec<Change> {
    between(before, after).map(|pair| describe(pair.0, pair.1)).collect()
}

/// The entries that differ: of the older list, of the newer list, or one of each.
pub(super) fn between<'e>(before: &'e [Entry], after: &'e [Entry]) -> Between<'e> {
    Between { old: before.iter().peekable(), new: after.iter().peekable() }
}

/// Which entries of `old`, by index, the new list does not have as they are, and of each in `new` whether the old list has it. Both are
/// sorted.
pub(super) fn compared(old: &[Entry], new: &[Entry]) -> (Vec<usize>, Vec<bool>) {
    let (mut gone, mut there) = (Vec::new(), Vec::with_capacity(new.len()));
    let mut old = old.iter().enumerate().peekable();
    for entry in new {
        while let Some((index, _)) = old.next_if(|(_, old)| old.path < entry.path) {
            gone.push(index);
        }
        let same = old.next_if(|(_, old)| old.path == entry.path);
        there.push(same.is_some_and(|(_, old)| old.kind == entry.kind));
        gone.extend(same.filter(|(_, old)| old.kind != entry.kind).map(|(index, _)| index));
    }
    gone.extend(old.map(|(index, _)| index));
    (gone, there)
}

/// See [`between`].
pub(super) struct Between<'e> {
    old: Peekable<Iter<'e, Entry>>,
    new: Peekable<Iter<'e, Entry>>,
}

impl<'e> Iterator for Between<'e> {
    type Item = (Option<&'e Entry>, Option<&'e Entry>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let order = match (self.old.peek(), self.new.peek()) {
                (None, None) => return None,
                (Some(old), Some(new)) => old.path.cmp(&new.path),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
            };
            match order {
                Ordering::Less => return Some((self.old.next(), None)),
                Ordering::Greater => return Some((None, self.new.next())),
                Ordering::Equal => {
                    let (old, new) = (self.old.next(), self.new.next());
                    if old.map(|old| &old.kind) != new.map(|new| &new.kind) {
                        return Some((old, new));
                    }
                }
            }
        }
    }
}

fn describe(before: Option<&Entry>, after: Option<&Entry>) -> Change {
    let path = after.or(before).map(|entry| entry.path.clone()).unwrap_or_default();
    let change = match (before, after) {
        (None, _) => Way::Added,
        (_, None) => Way::Removed,
        _ => Way::Changed,
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
    fn every_way_of_differing_is_told() {
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
