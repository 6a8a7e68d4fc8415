//! Compares a tree with the entries of a manifest: an installed tree on request, and a spare tree before an installation uses the spare
//! tree.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    io::Read,
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use larder_archive::pool::each_thread;
use rustix::fs::FileType;

use super::ReleaseError;
use crate::{
    host::files::{Confined, Cursor, FileError},
    model::{Digest, Entry, EntryKind, Manifest},
};

/// A difference between a tree and its manifest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Difference {
    /// An entry of the manifest is missing in the tree.
    Missing(String),
    /// The tree has an entry that is not in the manifest.
    Extra(String),
    /// An entry of the tree has another kind than in the manifest.
    Kind(String),
    /// An entry of the tree has another mode than in the manifest.
    Mode(String),
    /// A file of the tree has another size or content than in the manifest.
    Content(String),
    /// A link of the tree has another target than in the manifest.
    Target(String),
}

impl Difference {
    /// Returns the path, and a description of the difference for display.
    pub fn parts(&self) -> (String, String) {
        let (path, what) = match self {
            Difference::Missing(path) => (path, "is missing"),
            Difference::Extra(path) => (path, "is not part of the release"),
            Difference::Kind(path) => (path, "is another kind of file"),
            Difference::Mode(path) => (path, "has another mode"),
            Difference::Content(path) => (path, "has other content"),
            Difference::Target(path) => (path, "has another target"),
        };
        (path.clone(), what.to_owned())
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, what) = self.parts();
        write!(f, "{path:?} {what}")
    }
}

/// Compares every byte of an installed tree with its manifest, in `threads` threads. Returns the differences, sorted by variant, then by
/// path.
pub fn drift(tree: &Path, manifest: &Manifest, threads: usize) -> Result<Vec<Difference>, ReleaseError> {
    compare(tree, &manifest.entries, threads, true)
}

/// Runs [`drift`] with two threads.
pub fn verify(tree: &Path, manifest: &Manifest) -> Result<Vec<Difference>, ReleaseError> {
    drift(tree, manifest, 2)
}

/// Compares the kinds, modes, sizes and link targets of a tree with `entries`. If `content` is true, also compares the content of files.
pub(super) fn compare(tree: &Path, entries: &[Entry], threads: usize, content: bool) -> Result<Vec<Difference>, ReleaseError> {
    compare_with(tree, entries, threads, |cursor, entry| difference(cursor, entry, content))
}

/// Compares a tree with `entries`, in `threads` threads. `examine` returns the difference of one entry.
fn compare_with(
    tree: &Path,
    entries: &[Entry],
    threads: usize,
    examine: impl Fn(&mut Cursor<'_>, &Entry) -> Result<Option<Difference>, FileError> + Sync,
) -> Result<Vec<Difference>, ReleaseError> {
    let root = Confined::open(tree)?;
    let next = AtomicUsize::new(0);
    let parts: Vec<&[Entry]> = entries.chunks(256).collect();
    let counts = children(entries);
    // This flag is true if a directory has more or fewer names than in the manifest.
    let odd = AtomicBool::new(root.cursor().count_names("")? != counts.get("").copied().unwrap_or(0));
    let check = || -> Result<Vec<Difference>, FileError> {
        let mut cursor = root.cursor();
        let mut found = Vec::new();
        while let Some(part) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
            for entry in *part {
                let different = examine(&mut cursor, entry)?;
                if different.is_none() && entry.kind == EntryKind::Dir {
                    let count = counts.get(entry.path.as_str()).copied().unwrap_or(0);
                    odd.fetch_or(cursor.count_names(&entry.path)? != count, Ordering::Relaxed);
                }
                found.extend(different);
            }
        }
        Ok(found)
    };
    let mut found = Vec::new();
    for result in each_thread(threads, check) {
        found.extend(result?);
    }
    // If every entry is present and every directory has the right number of names, the tree has no further entries.
    if !found.is_empty() || odd.into_inner() {
        found.extend(extras(&root, entries)?);
    }
    found.sort_unstable();
    Ok(found)
}

fn difference(cursor: &mut Cursor<'_>, entry: &Entry, content: bool) -> Result<Option<Difference>, FileError> {
    let path = || entry.path.clone();
    let stat = match cursor.stat(&entry.path) {
        Ok(stat) => stat,
        Err(FileError::Io { source, .. }) if gone(&source) => return Ok(Some(Difference::Missing(path()))),
        Err(e) => return Err(e),
    };
    let mode = stat.st_mode & 0o7777;
    Ok(match (&entry.kind, FileType::from_raw_mode(stat.st_mode)) {
        (EntryKind::Dir, FileType::Directory) => (mode != 0o755).then(|| Difference::Mode(path())),
        (EntryKind::Link { target }, FileType::Symlink) => {
            (cursor.read_link(&entry.path)?.as_bytes() != target.as_bytes()).then(|| Difference::Target(path()))
        }
        (EntryKind::File { size, digest, executable }, FileType::RegularFile) => {
            if mode != if *executable { 0o755 } else { 0o644 } {
                Some(Difference::Mode(path()))
            } else if u64::try_from(stat.st_size) != Ok(*size) || (content && hash(cursor, &entry.path)? != *digest) {
                Some(Difference::Content(path()))
            } else {
                None
            }
        }
        _ => Some(Difference::Kind(path())),
    })
}

/// Returns true if the error means that the entry is missing, or that one of its parents is not a directory.
fn gone(e: &std::io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::NOENT, Errno::NOTDIR, Errno::LOOP].iter().any(|errno| e.raw_os_error() == Some(errno.raw_os_error()))
}

fn hash(cursor: &mut Cursor<'_>, path: &str) -> Result<Digest, FileError> {
    let mut file = cursor.open(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = file.read(&mut buffer).map_err(|e| cursor.failed("read", path, e))?;
        if read == 0 {
            return Ok(hasher.finalize().into());
        }
        hasher.update(buffer.get(..read).unwrap_or_default());
    }
}

/// Returns the number of entries of each non-empty directory; the root has the empty path.
fn children(entries: &[Entry]) -> HashMap<&str, usize> {
    let mut counts = HashMap::new();
    for entry in entries {
        let parent = entry.path.rsplit_once('/').map_or("", |(parent, _)| parent);
        let count: &mut usize = counts.entry(parent).or_default();
        *count = count.saturating_add(1);
    }
    counts
}

/// Returns the entries of the tree that are not in the manifest. If such an entry is a directory, its content is not listed.
fn extras(root: &Confined, entries: &[Entry]) -> Result<Vec<Difference>, FileError> {
    let known: HashSet<&[u8]> = entries.iter().map(|entry| entry.path.as_bytes()).collect();
    let mut found = Vec::new();
    let directories = entries.iter().filter(|entry| entry.kind == EntryKind::Dir).map(|entry| entry.path.as_str());
    for directory in std::iter::once("").chain(directories) {
        let names = match root.open_dir(directory).and_then(|dir| dir.names()) {
            Ok(names) => names,
            Err(FileError::Io { source, .. }) if gone(&source) => continue, // the directory itself is already reported
            Err(e) => return Err(e),
        };
        for name in names {
            let mut path = directory.as_bytes().to_vec();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name.as_bytes());
            if !known.contains(path.as_slice()) {
                found.push(Difference::Extra(String::from_utf8_lossy(&path).into_owned()));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panic_in_a_comparing_thread_reaches_the_caller() {
        let dir = tempfile::tempdir().unwrap();
        let entries: Vec<Entry> =
            (0..1024).map(|n| Entry { path: format!("{n:04}"), kind: EntryKind::Link { target: String::from("x") } }).collect();
        for entry in &entries {
            std::os::unix::fs::symlink("x", dir.path().join(&entry.path)).unwrap();
        }
        let (caller, panicked) = (std::thread::current().id(), AtomicBool::new(false));
        let compared = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            compare_with(dir.path(), &entries, 2, |_, _| {
                if std::thread::current().id() != caller {
                    panicked.store(true, Ordering::SeqCst);
                    panic!("the comparison of an entry panics");
                }
                while !panicked.load(Ordering::SeqCst) {
                    std::thread::yield_now();
                }
                Ok(None)
            })
        }));
        assert!(compared.is_err(), "{:?}", compared.unwrap());
    }
}
