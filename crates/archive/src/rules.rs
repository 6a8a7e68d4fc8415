//! The rules for the entries of a release.

use std::cmp::Ordering;

use super::{ArchiveError, BadPath, MAX_FILE};
use crate::{Entry, EntryKind, bounded::MAX_ENTRIES};

/// The limits of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ArchiveLimits {
    /// The maximum number of entries.
    pub entries: u64,
    /// The maximum size of all files together, in bytes.
    pub bytes: u64,
    /// The compression ratio at which an archive is refused if it has more than [`ArchiveLimits::RATIO_FROM`] bytes after decompression.
    pub ratio: u64,
}

impl ArchiveLimits {
    /// The size after decompression, in bytes, up to which any ratio is allowed: a few files of zeros do no harm.
    pub const RATIO_FROM: u64 = 256 << 20;
}

impl Default for ArchiveLimits {
    fn default() -> ArchiveLimits {
        ArchiveLimits { entries: MAX_ENTRIES as u64, bytes: 32 << 30, ratio: 1000 }
    }
}

/// Checks a relative path of a release.
pub fn check_path(path: &[u8]) -> Result<&str, BadPath> {
    let path = plain(path)?;
    if path.starts_with('/') {
        return Err(BadPath::Absolute);
    }
    // The parts are compared byte by byte, since they are too short for a faster search.
    for part in path.as_bytes().split(|byte| *byte == b'/') {
        match part {
            b"" => return Err(BadPath::EmptyPart),
            b"." => return Err(BadPath::Here),
            b".." => return Err(BadPath::Parent),
            _ if part.len() > 255 => return Err(BadPath::LongPart),
            _ => {}
        }
    }
    Ok(path)
}

/// Checks the target of a link. A target may be outside of the release, since larder never follows links.
pub fn check_target(target: &[u8]) -> Result<&str, BadPath> {
    plain(target)
}

fn plain(path: &[u8]) -> Result<&str, BadPath> {
    // Nearly all paths are printable ASCII. The loop has no early exit, so that the compiler can vectorize it.
    let ordinary = path.iter().fold(true, |ordinary, byte| ordinary & (b' '..=b'~').contains(byte));
    if !ordinary && path.contains(&0) {
        return Err(BadPath::Nul);
    }
    let path = std::str::from_utf8(path).map_err(|_| BadPath::NotUtf8)?;
    if path.is_empty() {
        Err(BadPath::Empty)
    } else if path.len() > 4096 {
        Err(BadPath::Long)
    } else if !ordinary && path.chars().any(char::is_control) {
        Err(BadPath::Control)
    } else {
        Ok(path)
    }
}

/// Checks a whole list of entries: every path and target, the order, and the limits of numbers and sizes. Also checks that no path occurs
/// twice and that every parent is a directory.
pub fn check_entries(entries: &[Entry], limits: &ArchiveLimits) -> Result<(), ArchiveError> {
    let count = entries.len() as u64;
    if count > limits.entries {
        return Err(ArchiveError::TooManyEntries { count, limit: limits.entries });
    }
    let mut last: Option<&str> = None;
    let mut bytes = 0u64;
    let mut open: Vec<&str> = Vec::new(); // the directories that may contain the current entry or a later entry
    for (index, Entry { path, kind }) in entries.iter().enumerate() {
        check_path(path.as_bytes()).map_err(|why| ArchiveError::Path { path: path.clone(), why })?;
        match last.map(|last| last.cmp(path.as_str())) {
            Some(Ordering::Equal) => return Err(ArchiveError::Duplicate { path: path.clone() }),
            Some(Ordering::Greater) => return Err(ArchiveError::Unsorted { path: path.clone() }),
            Some(Ordering::Less) | None => last = Some(path),
        }
        let parent = path.bytes().rposition(|byte| byte == b'/').and_then(|slash| path.get(..slash)).unwrap_or_default();
        // In most cases, `parent` is the parent of the previous entry, or the previous entry itself.
        if open.last() != Some(&parent) {
            // Other entries may be between a directory and its content ("a", "a-b", "a/c"), so the directory stays open until no entry
            // of its content can follow.
            while open.last().is_some_and(|dir| !is_below(path, dir) && !may_come_later(path, dir)) {
                open.pop();
            }
            if !parent.is_empty() && !open.contains(&parent) {
                return Err(orphan(entries.get(..index).unwrap_or_default(), path, parent));
            }
        }
        match kind {
            EntryKind::Dir => open.push(path),
            EntryKind::File { size, .. } => {
                if *size > MAX_FILE {
                    return Err(ArchiveError::FileTooLarge { path: path.clone(), bytes: *size, limit: MAX_FILE });
                }
                bytes = bytes.saturating_add(*size);
            }
            EntryKind::Link { target } => {
                check_target(target.as_bytes()).map_err(|why| ArchiveError::Target { path: path.clone(), why })?;
            }
        }
    }
    if bytes > limits.bytes {
        return Err(ArchiveError::TooManyBytes { bytes, limit: limits.bytes });
    }
    Ok(())
}

/// Returns the error for `path`, which has no parent directory among the sorted entries before it.
fn orphan(before: &[Entry], path: &str, parent: &str) -> ArchiveError {
    let mut above = Some(parent);
    while let Some(place) = above {
        let found = before.binary_search_by(|entry| entry.path.as_str().cmp(place));
        let (path, parent) = (path.to_owned(), place.to_owned());
        match found.ok().and_then(|at| before.get(at)).map(|entry| &entry.kind) {
            Some(EntryKind::Link { .. }) => return ArchiveError::BelowLink { path, parent },
            Some(EntryKind::File { .. }) => return ArchiveError::BelowFile { path, parent },
            Some(EntryKind::Dir) | None => above = place.rsplit_once('/').map(|(up, _)| up),
        }
    }
    ArchiveError::NoParent { path: path.to_owned(), parent: parent.to_owned() }
}

fn is_below(path: &str, dir: &str) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'))
}

/// Returns true if entries below `dir` may follow `path` in sorted order: `path` begins with `dir`, and the next byte sorts before '/'.
fn may_come_later(path: &str, dir: &str) -> bool {
    path.strip_prefix(dir).and_then(|rest| rest.bytes().next()).is_some_and(|byte| byte < b'/')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Digest;

    fn file(path: &str) -> Entry {
        Entry { path: path.into(), kind: EntryKind::File { size: 1, digest: Digest::of(b"x"), executable: false } }
    }
    fn dir(path: &str) -> Entry {
        Entry { path: path.into(), kind: EntryKind::Dir }
    }
    fn link(path: &str, target: &str) -> Entry {
        Entry { path: path.into(), kind: EntryKind::Link { target: target.into() } }
    }
    fn check(entries: &[Entry]) -> Result<(), ArchiveError> {
        check_entries(entries, &ArchiveLimits::default())
    }

    #[test]
    fn every_bad_path_is_refused_with_its_reason() {
        let long = "x".repeat(256);
        let deep = "x/".repeat(2100) + "x";
        for (path, why) in [
            (&b""[..], BadPath::Empty),
            (b"/etc/passwd", BadPath::Absolute),
            (b"a/../b", BadPath::Parent),
            (b"..", BadPath::Parent),
            (b"./a", BadPath::Here),
            (b"a//b", BadPath::EmptyPart),
            (b"a/", BadPath::EmptyPart),
            (b"a\0b", BadPath::Nul),
            (b"a\nb", BadPath::Control),
            (b"a\x1b[2Jb", BadPath::Control),
            (b"a\xffb", BadPath::NotUtf8),
            (long.as_bytes(), BadPath::LongPart),
            (deep.as_bytes(), BadPath::Long),
        ] {
            assert_eq!(check_path(path), Err(why));
        }
        for path in ["a", "a/b", "..a", "a/...", "-rf", "a b", "ä/ö", "a\\b", "A", "con"] {
            assert_eq!(check_path(path.as_bytes()), Ok(path));
        }
    }

    #[test]
    fn entry_list_of_invalid_shape_is_refused() {
        assert!(check(&[dir("a"), dir("a-b"), file("a-b/c"), dir("a/b"), file("a/b/c"), file("a/c"), link("l", "/x")]).is_ok());
        assert!(matches!(check(&[file("a"), file("a")]), Err(ArchiveError::Duplicate { .. })));
        assert!(matches!(check(&[file("b"), file("a")]), Err(ArchiveError::Unsorted { .. })));
        assert!(matches!(check(&[file("a"), file("a/b")]), Err(ArchiveError::BelowFile { .. })));
        assert!(matches!(check(&[link("a", "/etc"), file("a/b")]), Err(ArchiveError::BelowLink { .. })));
        assert!(matches!(check(&[link("a", "/etc"), file("a-b"), file("a/b/c")]), Err(ArchiveError::BelowLink { .. })));
        assert!(matches!(check(&[file("a/b")]), Err(ArchiveError::NoParent { .. })));
        assert!(matches!(check(&[link("a", "")]), Err(ArchiveError::Target { why: BadPath::Empty, .. })));
        assert!(matches!(check(&[link("a", "x\ny")]), Err(ArchiveError::Target { why: BadPath::Control, .. })));
    }

    #[test]
    fn entry_numbers_above_the_limits_are_refused() {
        let limits = ArchiveLimits { entries: 1, ..ArchiveLimits::default() };
        assert!(matches!(
            check_entries(&[dir("a"), dir("b")], &limits),
            Err(ArchiveError::TooManyEntries { count: 2, limit: 1 })
        ));
        let limits = ArchiveLimits { bytes: 1, ..ArchiveLimits::default() };
        assert!(matches!(check_entries(&[file("a"), file("b")], &limits), Err(ArchiveError::TooManyBytes { bytes: 2, .. })));
        let huge =
            Entry { path: "a".into(), kind: EntryKind::File { size: u64::MAX, digest: Digest::of(b""), executable: false } };
        assert!(matches!(check(&[huge]), Err(ArchiveError::FileTooLarge { .. })));
    }
}
