//! Builds a tree from a restore point: everything below one root, complete with metadata, under a name that is not live yet.

use std::{
    collections::HashSet,
    ffi::OsStr,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use rustix::{
    fs::{AtFlags, FileType, linkat, symlinkat, unlinkat},
    io::Errno,
};

use super::RestoreOptions;
use crate::{
    Entry, Kind, Point, PointError, Result,
    content::Copier,
    entry::is_within,
    index,
    meta::{self, Apply},
    pool::{self, lock},
    step,
    store::Space,
    sys,
};

/// The builder of trees of one restore.
pub(super) struct Builder<'a> {
    point: &'a Point,
    pub entries: &'a [Entry],
    pub options: &'a RestoreOptions<'a>,
    copier: Copier<'a>,
    space: Space<'a>,
    pub how: Apply,
    pub restored_bytes: AtomicU64,
    pub restored_files: AtomicU64,
    pub lost_owners: AtomicU64,
    pub damaged: Mutex<Vec<Vec<u8>>>,
}

/// A directory that stays open between files, because consecutive files are often in one directory.
#[derive(Default)]
struct Nearest {
    open: Option<(Vec<u8>, OwnedFd)>,
}

impl Nearest {
    fn get(&mut self, root: BorrowedFd<'_>, path: &[u8]) -> rustix::io::Result<BorrowedFd<'_>> {
        if self.open.as_ref().is_none_or(|(open, _)| open != path) {
            self.open = Some((path.to_vec(), sys::open_dir(root, path, true)?));
        }
        self.open.as_ref().map(|(_, fd)| fd.as_fd()).ok_or(Errno::NOENT)
    }
}

/// The place of one root: a directory, the name in this directory, and the root's path in the index.
pub(super) struct Place<'a> {
    pub dir: BorrowedFd<'a>,
    pub name: &'a OsStr,
    pub path: &'a [u8],
}

impl<'a> Builder<'a> {
    pub(super) fn new(
        point: &'a Point,
        entries: &'a [Entry],
        target: BorrowedFd<'a>,
        options: &'a RestoreOptions<'a>,
    ) -> Result<Builder<'a>> {
        Ok(Builder {
            point,
            entries,
            options,
            copier: Copier::new(options.clone, options.cancel),
            space: Space::new(target, options.limits.free_bytes),
            how: Apply {
                set_ids: options.set_ids,
                capabilities: options.capabilities,
                is_root: rustix::process::geteuid().is_root(),
            },
            restored_bytes: AtomicU64::new(0),
            restored_files: AtomicU64::new(0),
            lost_owners: AtomicU64::new(0),
            damaged: Mutex::default(),
        })
    }

    /// Builds the root at `place`, whose name must not exist. Returns false if the restore point does not contain this root.
    pub(super) fn build(&self, place: &Place<'_>) -> Result<bool> {
        // In the index, all entries below a directory directly follow the directory.
        let start = self.entries.partition_point(|entry| crate::entry::order(&entry.path, place.path).is_lt());
        let tail = self.entries.get(start..).unwrap_or_default();
        let below = tail.partition_point(|entry| is_within(&entry.path, place.path));
        let entries = tail.get(..below).unwrap_or_default();
        let Some(first) = entries.first() else { return Ok(false) };
        let wrong = |e: Errno| failed("create", first, e);
        match &first.kind {
            Kind::Directory => {
                sys::create_dir(place.dir, place.name).map_err(wrong)?;
                step();
                let root = sys::open_dir(place.dir, place.name.as_bytes(), true).map_err(wrong)?;
                // A restored tree has only the access lists that the index contains.
                meta::drop_inherited(&root, OsStr::from_bytes(place.path).as_ref())?;
                self.fill(root.as_fd(), place.path, entries)?;
            }
            Kind::File { .. } => {
                self.file(place.dir, place.name, first, first)?;
            }
            Kind::HardLink { .. } => {
                let file = index::file_of(self.entries, first).ok_or_else(|| wrong(Errno::NOENT))?;
                self.file(place.dir, place.name, first, file)?;
            }
            Kind::Symlink { .. } => return Err(wrong(Errno::LOOP)),
        }
        Ok(true)
    }

    fn fill(&self, root: BorrowedFd<'_>, prefix: &[u8], entries: &[Entry]) -> Result<()> {
        let inside = |path: &'_ [u8]| -> Vec<u8> {
            let rest = path.strip_prefix(prefix).unwrap_or(path);
            rest.strip_prefix(b"/").unwrap_or(rest).to_vec()
        };
        let parent = |entry: &Entry| -> Result<(OwnedFd, Vec<u8>)> {
            let path = inside(&entry.path);
            let dir = sys::open_dir(root, sys::split(&path).0, true).map_err(|e| failed("create", entry, e))?;
            Ok((dir, path))
        };
        for entry in entries.iter().skip(1).filter(|entry| entry.kind == Kind::Directory) {
            pool::check_cancel(self.options.cancel)?;
            let (dir, path) = parent(entry)?;
            sys::create_dir(dir.as_fd(), sys::split(&path).1).map_err(|e| failed("create", entry, e))?;
        }
        pool::each_chunk(self.options.threads, entries, 64, self.options.cancel, |chunk| {
            step();
            let mut nearest = Nearest::default();
            for entry in chunk.iter().filter(|entry| matches!(entry.kind, Kind::File { .. })) {
                let path = inside(&entry.path);
                let (above, name) = sys::split(&path);
                let dir = nearest.get(root, above).map_err(|e| failed("create", entry, e))?;
                self.file(dir, name, entry, entry)?;
            }
            Ok(())
        })?;
        let missing: HashSet<Vec<u8>> = lock(&self.damaged).iter().cloned().collect();
        for entry in entries {
            match &entry.kind {
                Kind::Symlink { target } => {
                    let (dir, path) = parent(entry)?;
                    let name = sys::split(&path).1;
                    symlinkat(OsStr::from_bytes(target), &dir, name).map_err(|e| failed("create", entry, e))?;
                    self.note_owner(meta::apply_link(dir.as_fd(), name, entry, self.how)?);
                }
                Kind::HardLink { .. } => {
                    let (dir, path) = parent(entry)?;
                    let name = sys::split(&path).1;
                    let file = index::file_of(self.entries, entry).ok_or_else(|| failed("link", entry, Errno::NOENT))?;
                    if is_within(&file.path, prefix) {
                        let first = inside(&file.path);
                        let from = sys::open_dir(root, sys::split(&first).0, true).map_err(|e| failed("link", entry, e))?;
                        match linkat(&from, sys::split(&first).1, &dir, name, AtFlags::empty()) {
                            Err(Errno::NOENT) if missing.contains(&file.path) => {}
                            other => other.map_err(|e| failed("link", entry, e))?,
                        }
                    } else {
                        self.file(dir.as_fd(), name, entry, file)?;
                    }
                }
                Kind::Directory | Kind::File { .. } => {}
            }
        }
        // Directories are completed from the deepest up: creating entries changes the times of a directory, and the final mode
        // may forbid new entries.
        for entry in entries.iter().rev().filter(|entry| entry.kind == Kind::Directory) {
            let dir = sys::open_dir(root, &inside(&entry.path), true).map_err(|e| failed("open", entry, e))?;
            self.note_owner(meta::apply(dir.as_fd(), entry, self.how)?);
        }
        Ok(())
    }

    pub(super) fn note_owner(&self, is_owned: bool) {
        self.lost_owners.fetch_add(u64::from(!is_owned), Ordering::Relaxed);
    }

    /// Restores a file from the content that is stored for `file`, with the metadata of `entry`.
    pub(super) fn file(&self, dir: BorrowedFd<'_>, name: &OsStr, entry: &Entry, file: &Entry) -> Result<()> {
        let Kind::File { size, digest, .. } = &file.kind else { return Err(failed("create", entry, Errno::INVAL)) };
        let stored = match self.point.open_stored(file) {
            Ok(stored) => stored,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return self.damage(entry),
            Err(other) => return Err(failed("open the stored content of", entry, other)),
        };
        let stat = sys::stat_fd(&stored).map_err(|e| failed("look at the stored content of", entry, e))?;
        if stat.kind != FileType::RegularFile {
            return self.damage(entry);
        }
        let new = sys::create_file(dir, name).map_err(|e| failed("create", entry, e))?;
        let reserve = || self.space.reserve(stat.allocated, &entry.path);
        // Nothing writes to a stored file.
        let copied = self.copier.copy(stored.as_fd(), new.as_fd(), stat.size, &entry.path, reserve, || Ok(true));
        match copied {
            Ok(copied) if (copied.size, copied.digest) == (*size, *digest) => {}
            Ok(_) => self.damage(entry)?,
            // The disk has bad blocks. With `force`, the files without bad blocks are still restored.
            Err(PointError::Io { source, .. }) if source.raw_os_error() == Some(Errno::IO.raw_os_error()) => {
                unlinkat(dir, name, AtFlags::empty()).map_err(|e| failed("remove", entry, e))?;
                return self.damage(entry);
            }
            Err(other) => return Err(other),
        }
        self.restored_files.fetch_add(1, Ordering::Relaxed);
        self.restored_bytes.fetch_add(*size, Ordering::Relaxed);
        self.note_owner(meta::apply(new.as_fd(), entry, self.how)?);
        Ok(())
    }

    /// Records a damaged file. Returns an error unless `force` is set.
    fn damage(&self, entry: &Entry) -> Result<()> {
        let mut damaged = lock(&self.damaged);
        damaged.push(entry.path.clone());
        if self.options.force {
            return Ok(());
        }
        Err(PointError::Damaged { id: self.point.id().to_owned(), count: damaged.len() as u64, first: entry.shown() })
    }
}

pub(super) fn failed(doing: &'static str, entry: &Entry, source: Errno) -> PointError {
    PointError::io(doing, OsStr::from_bytes(&entry.path), source)
}
