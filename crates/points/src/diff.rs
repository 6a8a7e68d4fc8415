//! Differences between two restore points, and between a restore point and live files. The differences show the changes that a
//! restore would revert.

use std::{
    cmp::Ordering,
    ffi::OsStr,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::ffi::OsStrExt,
    },
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering as Atomic},
    },
};

use rustix::io::Errno;

use crate::{
    Entry, Kind, Limits, Point, PointError, Result, Source,
    content::Copier,
    entry::{is_within, order},
    index::{file_of, find},
    pool::lock,
    sys::{self, Stat},
    walk::{Counts, Found, Visit, Walk},
};

/// The kind of a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChangeKind {
    /// The entry exists only in the second state.
    Added,
    /// The entry exists only in the first state.
    Removed,
    /// The content of a file, the target of a link, or the kind of the entry differs.
    Changed,
    /// Only the owner, mode, attributes or time differ.
    Metadata,
}

/// A difference between two states: two restore points, or a restore point and live files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The path below the directory of the sources.
    pub path: Vec<u8>,
    /// The kind.
    pub kind: ChangeKind,
    /// The size of the file in the first state, in bytes; 0 if the path is not a file in this state.
    pub size_before: u64,
    /// The size of the file in the second state, in bytes; 0 if the path is not a file in this state.
    pub size_after: u64,
}

/// All differences between two states.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Diff {
    /// The differences, sorted by path. Differences beyond the requested number are only counted.
    pub changes: Vec<Change>,
    /// The number of added entries.
    pub added: u64,
    /// The number of removed entries.
    pub removed: u64,
    /// The number of entries whose content, link target or kind differs.
    pub changed: u64,
    /// The number of entries of which only the metadata differs.
    pub metadata: u64,
    /// The bytes of added files, and of changed files after the change. These bytes are lost if the first state replaces the
    /// second.
    pub new_bytes: u64,
}

impl Diff {
    fn of(mut changes: Vec<Change>, listed: usize) -> Diff {
        changes.sort_unstable_by(|a, b| order(&a.path, &b.path));
        let mut diff = Diff::default();
        for change in &changes {
            match change.kind {
                ChangeKind::Added => diff.added += 1,
                ChangeKind::Removed => diff.removed += 1,
                ChangeKind::Changed => diff.changed += 1,
                ChangeKind::Metadata => diff.metadata += 1,
            }
            if matches!(change.kind, ChangeKind::Added | ChangeKind::Changed) {
                diff.new_bytes = diff.new_bytes.saturating_add(change.size_after);
            }
        }
        changes.truncate(listed);
        diff.changes = changes;
        diff
    }

    /// Returns true if nothing differs.
    pub fn is_empty(&self) -> bool {
        (self.added, self.removed, self.changed, self.metadata) == (0, 0, 0, 0)
    }
}

fn size(entries: &[Entry], entry: &Entry) -> u64 {
    match file_of(entries, entry).map(|file| &file.kind) {
        Some(Kind::File { size, .. }) => *size,
        _ => 0,
    }
}

/// Compares two entries with the same path. A hard link counts as equal to a copy of its file.
fn compare(a: (&[Entry], &Entry), b: (&[Entry], &Entry)) -> Option<ChangeKind> {
    let is_same = match (file_of(a.0, a.1).map(|file| &file.kind), file_of(b.0, b.1).map(|file| &file.kind)) {
        (Some(Kind::File { size, digest, .. }), Some(Kind::File { size: other_size, digest: other, .. })) => {
            (size, digest) == (other_size, other)
        }
        (None, None) => a.1.kind == b.1.kind,
        _ => false,
    };
    let metadata = |entry: &Entry| (entry.mode, entry.uid, entry.gid, entry.mtime, entry.xattrs.clone());
    match is_same {
        false => Some(ChangeKind::Changed),
        true if metadata(a.1) != metadata(b.1) => Some(ChangeKind::Metadata),
        true => None,
    }
}

/// Lists the changes from restore point `a` to `b`. Names at most `listed` changes.
pub fn diff(a: &Point, b: &Point, listed: usize) -> Result<Diff> {
    let (a, b) = (a.entries()?, b.entries()?);
    let (mut before, mut after) = (a.iter().peekable(), b.iter().peekable());
    let mut changes = Vec::new();
    loop {
        let order = match (before.peek(), after.peek()) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(old), Some(new)) => order(&old.path, &new.path),
        };
        let old = if order.is_le() { before.next() } else { None };
        let new = if order.is_ge() { after.next() } else { None };
        let kind = match (old, new) {
            (Some(old), Some(new)) => compare((&a, old), (&b, new)),
            (Some(_), None) => Some(ChangeKind::Removed),
            (None, _) => Some(ChangeKind::Added),
        };
        if let (Some(kind), Some(any)) = (kind, old.or(new)) {
            let size_before = old.map_or(0, |old| size(&a, old));
            let size_after = new.map_or(0, |new| size(&b, new));
            changes.push(Change { path: any.path.clone(), kind, size_before, size_after });
        }
    }
    Ok(Diff::of(changes, listed))
}

/// The options and limits of an operation on live files.
#[derive(Debug, Clone)]
pub struct LookOptions<'a> {
    /// The limits.
    pub limits: Limits,
    /// The number of threads.
    pub threads: usize,
    /// True to include file systems that are mounted below the sources.
    pub cross_mounts: bool,
    /// True to read files whose times differ but whose sizes are equal, instead of reporting them as changed.
    pub read: bool,
    /// The maximum number of changes that are named.
    pub listed: usize,
    /// The path of the source that is compared; `None` to compare all sources.
    pub only: Option<&'a str>,
    /// A flag that stops the operation when it becomes true.
    pub cancel: Option<&'a AtomicBool>,
}

impl Default for LookOptions<'_> {
    fn default() -> Self {
        LookOptions {
            limits: Limits::default(),
            threads: 4,
            cross_mounts: false,
            read: true,
            listed: 1000,
            only: None,
            cancel: None,
        }
    }
}

impl LookOptions<'_> {
    fn walk<'w>(&'w self, base: BorrowedFd<'w>, sources: &'w [Source]) -> Walk<'w> {
        Walk {
            base,
            sources,
            limits: self.limits,
            cross_mounts: self.cross_mounts,
            skip_unreadable: true,
            threads: self.threads,
            cancel: self.cancel,
            counts: Counts::default(),
        }
    }
}

/// Lists the changes of the live files below `base` since the restore point, or only those of the source `options.only`. Changes of extended attributes are not found.
pub fn diff_live(point: &Point, base: BorrowedFd<'_>, options: &LookOptions<'_>) -> Result<Diff> {
    let entries = point.entries()?;
    let is_wanted = |source: &&Source| options.only.is_none_or(|only| only == source.path);
    let sources: Vec<Source> = point.manifest.sources.iter().map(|record| &record.source).filter(is_wanted).cloned().collect();
    let walk = options.walk(base, &sources);
    let live = Live {
        walk: &walk,
        entries: &entries,
        copier: Copier::new(false, options.cancel),
        read: options.read,
        changes: Mutex::default(),
        seen: Mutex::default(),
    };
    walk.run(&live)?;
    let mut changes = live.changes.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut seen = live.seen.into_inner().unwrap_or_else(PoisonError::into_inner);
    seen.sort_unstable();
    let is_compared = |entry: &Entry| options.only.is_none_or(|only| is_within(&entry.path, only.as_bytes()));
    for (at, entry) in entries.iter().enumerate().filter(|(_, entry)| is_compared(entry)) {
        if seen.binary_search(&at).is_err() {
            let (path, kind) = (entry.path.clone(), ChangeKind::Removed);
            changes.push(Change { path, kind, size_before: size(&entries, entry), size_after: 0 });
        }
    }
    Ok(Diff::of(changes, options.listed))
}

struct Live<'a> {
    walk: &'a Walk<'a>,
    entries: &'a [Entry],
    copier: Copier<'a>,
    read: bool,
    changes: Mutex<Vec<Change>>,
    /// The positions of the entries that the walk found.
    seen: Mutex<Vec<usize>>,
}

impl Live<'_> {
    /// Records the difference, if any, between a live file, directory or link that the walk found and its entry in the restore point.
    fn note(&self, path: &[u8], stat: &Stat, is_file: bool, is_same: impl FnOnce(&Entry) -> Result<bool>) -> Result<()> {
        let size_after = if is_file { stat.size } else { 0 };
        let known = self.entries.binary_search_by(|entry| order(&entry.path, path)).ok();
        let known = known.and_then(|at| Some((at, self.entries.get(at)?)));
        let Some((at, entry)) = known else {
            lock(&self.changes).push(Change { path: path.to_vec(), kind: ChangeKind::Added, size_before: 0, size_after });
            return Ok(());
        };
        lock(&self.seen).push(at);
        let size_before = size(self.entries, entry);
        let kind = if !is_same(entry)? {
            ChangeKind::Changed
        } else if (entry.mode, entry.uid, entry.gid, entry.mtime) != (stat.mode, stat.uid, stat.gid, stat.mtime) {
            ChangeKind::Metadata
        } else {
            return Ok(());
        };
        lock(&self.changes).push(Change { path: path.to_vec(), kind, size_before, size_after });
        Ok(())
    }
}

impl Visit for Live<'_> {
    fn directory(&self, path: &[u8], _: BorrowedFd<'_>, stat: &Stat) -> Result<()> {
        self.note(path, stat, false, |entry| Ok(entry.kind == Kind::Directory))
    }

    fn symlink(&self, path: &[u8], stat: &Stat, target: Vec<u8>) -> Result<()> {
        self.note(path, stat, false, |entry| Ok(entry.kind == Kind::Symlink { target }))
    }

    fn files(&self, _: usize, dir: BorrowedFd<'_>, files: Vec<Found>, _: bool) -> Result<()> {
        for found in files {
            self.note(&found.path, &found.stat, true, |entry| {
                let Some(Kind::File { size, digest, stamp, is_torn }) = file_of(self.entries, entry).map(|file| &file.kind)
                else {
                    return Ok(false);
                };
                if stamp.is_current(&found.stat) && !is_torn {
                    return Ok(true);
                }
                if *size != found.stat.size || !self.read {
                    return Ok(false);
                }
                match sys::open_file(dir, found.name()) {
                    Ok(file) => Ok(self.copier.digest(file.as_fd(), *size, &found.path)? == (*digest, *size)),
                    Err(Errno::MFILE) => Err(PointError::io("open", OsStr::from_bytes(&found.path), Errno::MFILE)),
                    Err(error) => self.walk.skip_or_fail("open", &found.path, error).map(|()| false),
                }
            })?;
        }
        Ok(())
    }
}

/// The estimated work of a capture.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Estimate {
    /// The number of entries.
    pub entries: u64,
    /// The number of regular files, counted by name.
    pub files: u64,
    /// The bytes of all files, holes included.
    pub bytes: u64,
    /// The allocated bytes of all files, counted by name.
    pub allocated: u64,
    /// The number of files that a capture would read.
    pub copied_files: u64,
    /// The allocated bytes of the files that a capture would read. Files that were only touched count, although they need no
    /// space.
    pub copied_bytes: u64,
}

/// Estimates the number of files and bytes that a capture of `sources` would copy. Reads only metadata.
pub fn estimate(
    base: BorrowedFd<'_>,
    sources: &[Source],
    previous: Option<&Point>,
    options: &LookOptions<'_>,
) -> Result<Estimate> {
    crate::source::check(sources)?;
    let entries = previous.map(Point::entries).transpose()?.unwrap_or_default();
    let walk = options.walk(base, sources);
    let counter = Counter { entries: &entries, numbers: Default::default() };
    walk.run(&counter)?;
    let [entries, files, bytes, allocated, copied_files, copied_bytes] = counter.numbers.map(AtomicU64::into_inner);
    Ok(Estimate { entries, files, bytes, allocated, copied_files, copied_bytes })
}

struct Counter<'a> {
    entries: &'a [Entry],
    numbers: [AtomicU64; 6],
}

impl Counter<'_> {
    fn add(&self, added: [u64; 6]) {
        for (number, added) in self.numbers.iter().zip(added) {
            number.fetch_add(added, Atomic::Relaxed);
        }
    }
}

impl Visit for Counter<'_> {
    fn directory(&self, _: &[u8], _: BorrowedFd<'_>, _: &Stat) -> Result<()> {
        self.add([1, 0, 0, 0, 0, 0]);
        Ok(())
    }

    fn symlink(&self, _: &[u8], _: &Stat, _: Vec<u8>) -> Result<()> {
        self.add([1, 0, 0, 0, 0, 0]);
        Ok(())
    }

    fn files(&self, _: usize, _: BorrowedFd<'_>, files: Vec<Found>, _: bool) -> Result<()> {
        for found in files {
            let known = find(self.entries, &found.path).and_then(|entry| file_of(self.entries, entry));
            let is_current = known.is_some_and(
                |file| matches!(&file.kind, Kind::File { stamp, is_torn: false, .. } if stamp.is_current(&found.stat)),
            );
            let (count, copied) = if is_current { (0, 0) } else { (1, found.stat.allocated) };
            self.add([1, 1, found.stat.size, found.stat.allocated, count, copied]);
        }
        Ok(())
    }
}
