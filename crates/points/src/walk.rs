//! The walk over live sources. Several threads walk, within limits, and do not follow links.

use std::{
    collections::HashSet,
    ffi::OsStr,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::ffi::OsStrExt,
    },
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use rustix::{
    fs::{FileType, readlinkat},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use crate::{
    LimitKind, PointError, Result, Source, SourceKind,
    entry::MAX_PATH,
    pool::{self, Cancel, Tasks, lock},
    sys::{self, Stat},
};

/// The limits of one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The maximum number of files, directories and links.
    pub entries: u64,
    /// The maximum size of all files together in bytes, holes included.
    pub bytes: u64,
    /// The maximum length in bytes of a path below the directory of the sources. Values above 4095 have the effect of 4095.
    pub path_bytes: u64,
    /// The maximum size in bytes of the extended attributes of one file.
    pub xattr_bytes: u64,
    /// The number of bytes that stay free on the file system that is written to.
    pub free_bytes: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { entries: 10_000_000, bytes: 1 << 44, path_bytes: MAX_PATH as u64, xattr_bytes: 64 << 10, free_bytes: 64 << 20 }
    }
}

/// The reason why a live file is not in a restore point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum SkipReason {
    /// A socket.
    Socket,
    /// A FIFO.
    Fifo,
    /// A block or character device.
    Device,
    /// The mount point of a file system or of a bind mount.
    Mount,
    /// A file or directory that the user of the capture has no permission to read.
    Unreadable,
    /// A file or directory that was removed or replaced during the walk, or a side file that is not a regular file.
    Changed,
}

/// A live file that was left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// The path, with U+FFFD in place of bytes that are not UTF-8.
    pub path: String,
    /// The reason.
    pub reason: SkipReason,
}

/// The maximum number of skipped files in the list. Further skipped files are only counted.
const MAX_SKIPPED: usize = 1000;

/// The number of names of one directory in one task.
const BATCH: usize = 128;

/// The sources, limits, options and counters of a walk.
#[derive(Debug)]
pub(crate) struct Walk<'a> {
    pub base: BorrowedFd<'a>,
    pub sources: &'a [Source],
    pub limits: Limits,
    pub cross_mounts: bool,
    pub skip_unreadable: bool,
    pub threads: usize,
    pub cancel: Cancel<'a>,
    pub counts: Counts,
}

/// The counters of a walk in progress.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    entries: AtomicU64,
    bytes: AtomicU64,
    skipped: AtomicU64,
    /// The number of skipped files that are missing in the copy: unreadable and changed files.
    missed: AtomicU64,
    list: Mutex<Vec<Skipped>>,
}

impl Counts {
    pub(crate) fn skipped(&self) -> (u64, u64, Vec<Skipped>) {
        let mut list = lock(&self.list).clone();
        list.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        (self.skipped.load(Ordering::Relaxed), self.missed.load(Ordering::Relaxed), list)
    }
}

/// A regular file that the walk found.
#[derive(Debug)]
pub(crate) struct Found {
    pub path: Vec<u8>,
    pub stat: Stat,
}

impl Found {
    pub(crate) fn name(&self) -> &OsStr {
        sys::split(&self.path).1
    }
}

/// The callbacks of a walk, which several threads call. The callback for a directory is called before the callbacks for its content.
pub(crate) trait Visit: Sync {
    fn directory(&self, path: &[u8], dir: BorrowedFd<'_>, stat: &Stat) -> Result<()>;
    /// Handles regular files of one directory. `is_unit` is true if the files are one source: a file with its side files.
    fn files(&self, source: usize, dir: BorrowedFd<'_>, files: Vec<Found>, is_unit: bool) -> Result<()>;
    fn symlink(&self, path: &[u8], stat: &Stat, target: Vec<u8>) -> Result<()>;
}

enum Task {
    Source(usize),
    Directory { source: usize, path: Vec<u8> },
    Batch { source: usize, parent: Vec<u8>, names: Vec<Vec<u8>> },
}

impl Walk<'_> {
    /// Walks over all sources. Returns the positions of the absent sources.
    pub(crate) fn run(&self, visit: &impl Visit) -> Result<HashSet<usize>> {
        let absent = Mutex::new(HashSet::new());
        let first = (0..self.sources.len()).map(Task::Source).collect();
        pool::run(self.threads, first, self.cancel, |tasks, task| match task {
            Task::Source(at) => {
                if !self.source(tasks, visit, at)? {
                    lock(&absent).insert(at);
                }
                Ok(())
            }
            Task::Directory { source, path } => self.directory(tasks, visit, source, &path),
            Task::Batch { source, parent, names } => self.batch(tasks, visit, source, &parent, names),
        })?;
        Ok(absent.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    pub(crate) fn skip(&self, path: &[u8], reason: SkipReason) {
        self.counts.skipped.fetch_add(1, Ordering::Relaxed);
        if matches!(reason, SkipReason::Unreadable | SkipReason::Changed) {
            self.counts.missed.fetch_add(1, Ordering::Relaxed);
        }
        let mut list = lock(&self.counts.list);
        if list.len() < MAX_SKIPPED {
            list.push(Skipped { path: String::from_utf8_lossy(path).into_owned(), reason });
        }
    }

    /// Skips a file that was removed or replaced, is on another mount, or is unreadable while `skip_unreadable` is set. Returns any other
    /// error.
    pub(crate) fn skip_or_fail(&self, doing: &'static str, path: &[u8], error: Errno) -> Result<()> {
        let reason = match error {
            Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::NXIO => SkipReason::Changed,
            Errno::XDEV => SkipReason::Mount,
            Errno::ACCESS | Errno::PERM if self.skip_unreadable => SkipReason::Unreadable,
            other => return Err(PointError::io(doing, OsStr::from_bytes(path), other)),
        };
        self.skip(path, reason);
        Ok(())
    }

    fn limit(&self, what: LimitKind, seen: u64, limit: u64, path: &[u8]) -> Result<()> {
        if seen <= limit {
            return Ok(());
        }
        // The message shows at most as many bytes of the path as the kernel accepts, because a path can be of any length.
        let path = path.get(..MAX_PATH).unwrap_or(path);
        Err(PointError::Limit { what, seen, limit, path: OsStr::from_bytes(path).into() })
    }

    fn count(&self, parent: &[u8], name: &[u8]) -> Result<()> {
        let entries = self.counts.entries.fetch_add(1, Ordering::Relaxed) + 1;
        self.limit(LimitKind::Entries, entries, self.limits.entries, parent)?;
        let length = parent.len() + name.len() + 1;
        self.limit(LimitKind::PathBytes, length as u64, self.limits.path_bytes.min(MAX_PATH as u64), parent)
    }

    fn count_bytes(&self, found: &Found) -> Result<()> {
        let before = self.counts.bytes.fetch_add(found.stat.size, Ordering::Relaxed);
        self.limit(LimitKind::Bytes, before.saturating_add(found.stat.size), self.limits.bytes, &found.path)
    }

    /// Visits a source that is a file, or queues the task for a source that is a directory. Returns false if the source is absent.
    fn source(&self, tasks: &Tasks<Task>, visit: &impl Visit, at: usize) -> Result<bool> {
        let Some(source) = self.sources.get(at) else { return Ok(false) };
        let bad = |why| Err(PointError::Source { source_path: source.path.clone(), why });
        let (parent, name) = sys::split(source.path.as_bytes());
        let wrong = |e| PointError::io("open", source.path.as_str(), e);
        let dir = match sys::open_dir(self.base, parent, self.cross_mounts) {
            Err(Errno::NOENT) => return Ok(false),
            Err(Errno::LOOP | Errno::NOTDIR) => return bad("a directory above it is a link or a file"),
            Err(Errno::XDEV) => return bad("a directory above it is a mount point"),
            other => other.map_err(wrong)?,
        };
        let stat = match sys::stat_at(dir.as_fd(), name) {
            Err(Errno::NOENT) => return Ok(false),
            other => other.map_err(wrong)?,
        };
        match (source.kind, stat.kind) {
            (SourceKind::Directory, FileType::Directory) if stat.is_mount && !self.cross_mounts => bad("it is a mount point"),
            (SourceKind::Directory, FileType::Directory) => {
                self.count(parent, name.as_bytes())?;
                tasks.push(Task::Directory { source: at, path: source.path.clone().into_bytes() });
                Ok(true)
            }
            (SourceKind::File, FileType::RegularFile) => {
                let mut files = Vec::new();
                for path in source.roots() {
                    match sys::stat_at(dir.as_fd(), sys::split(&path).1) {
                        Ok(stat) if stat.kind == FileType::RegularFile => {
                            self.count(parent, sys::split(&path).1.as_bytes())?;
                            files.push(Found { path, stat });
                        }
                        Ok(_) => self.skip(&path, SkipReason::Changed),
                        Err(Errno::NOENT) => {}
                        Err(other) => self.skip_or_fail("look at", &path, other)?,
                    }
                }
                files.iter().try_for_each(|found| self.count_bytes(found))?;
                visit.files(at, dir.as_fd(), files, true)?;
                Ok(true)
            }
            (_, FileType::Symlink) => bad("it is a symbolic link"),
            (SourceKind::Directory, _) => bad("it is not a directory"),
            (SourceKind::File, _) => bad("it is not a regular file"),
        }
    }

    fn directory(&self, tasks: &Tasks<Task>, visit: &impl Visit, source: usize, path: &[u8]) -> Result<()> {
        let wrong = |e| PointError::io("read the directory", OsStr::from_bytes(path), e);
        let dir = match sys::open_dir(self.base, path, self.cross_mounts) {
            Ok(dir) => dir,
            Err(error) => return self.skip_or_fail("open the directory", path, error),
        };
        let stat = sys::stat_fd(&dir).map_err(wrong)?;
        visit.directory(path, dir.as_fd(), &stat)?;
        let mut names = Vec::new();
        sys::each_inode(dir.as_fd(), |name, inode| -> std::result::Result<(), Failure> {
            self.count(path, name)?;
            names.push((inode, name.to_vec()));
            Ok(())
        })
        .map_err(|failure| match failure {
            Failure::Os(error) => wrong(error),
            Failure::Point(error) => error,
        })?;
        // Inodes with consecutive numbers are often in one block of the disk.
        names.sort_unstable_by_key(|(inode, _)| *inode);
        let mut names = names.into_iter().map(|(_, name)| name).peekable();
        // The first names need no task of their own: the directory is open already, and most directories have few names.
        let first: Vec<_> = names.by_ref().take(BATCH).collect();
        while names.peek().is_some() {
            tasks.push(Task::Batch { source, parent: path.to_vec(), names: names.by_ref().take(BATCH).collect() });
        }
        if !first.is_empty() {
            self.names(tasks, visit, source, path, dir.as_fd(), first)?;
        }
        Ok(())
    }

    fn batch(&self, tasks: &Tasks<Task>, visit: &impl Visit, source: usize, parent: &[u8], names: Vec<Vec<u8>>) -> Result<()> {
        match sys::open_dir(self.base, parent, self.cross_mounts) {
            Ok(dir) => self.names(tasks, visit, source, parent, dir.as_fd(), names),
            Err(error) => names.iter().try_for_each(|name| self.skip_or_fail("open", &sys::join(parent, name), error)),
        }
    }

    fn names(
        &self,
        tasks: &Tasks<Task>,
        visit: &impl Visit,
        source: usize,
        parent: &[u8],
        dir: BorrowedFd<'_>,
        names: Vec<Vec<u8>>,
    ) -> Result<()> {
        let mut files = Vec::with_capacity(names.len());
        for name in names {
            let path = sys::join(parent, &name);
            let name = OsStr::from_bytes(&name);
            let stat = match sys::stat_at(dir, name) {
                Ok(stat) => stat,
                Err(error) => {
                    self.skip_or_fail("look at", &path, error)?;
                    continue;
                }
            };
            if stat.is_mount && !self.cross_mounts {
                self.skip(&path, SkipReason::Mount);
                continue;
            }
            match stat.kind {
                FileType::RegularFile => {
                    let found = Found { path, stat };
                    self.count_bytes(&found)?;
                    files.push(found);
                }
                FileType::Directory => tasks.push(Task::Directory { source, path }),
                FileType::Symlink => match readlinkat(dir, name, Vec::new()) {
                    Ok(target) => visit.symlink(&path, &stat, target.into_bytes())?,
                    Err(Errno::INVAL) => self.skip(&path, SkipReason::Changed),
                    Err(error) => self.skip_or_fail("read the link", &path, error)?,
                },
                FileType::Socket => self.skip(&path, SkipReason::Socket),
                FileType::Fifo => self.skip(&path, SkipReason::Fifo),
                FileType::BlockDevice | FileType::CharacterDevice => self.skip(&path, SkipReason::Device),
                FileType::Unknown => self.skip(&path, SkipReason::Changed),
            }
        }
        if files.is_empty() { Ok(()) } else { visit.files(source, dir, files, false) }
    }
}

enum Failure {
    Os(Errno),
    Point(PointError),
}

impl From<Errno> for Failure {
    fn from(error: Errno) -> Failure {
        Failure::Os(error)
    }
}

impl From<PointError> for Failure {
    fn from(error: PointError) -> Failure {
        Failure::Point(error)
    }
}
