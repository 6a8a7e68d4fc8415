//! The capture of single files: shared with the previous restore point, cloned or copied.

use std::{
    collections::HashMap,
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
    fs::{AtFlags, FileType, linkat, unlinkat},
    io::Errno,
};

use super::CaptureOptions;
use crate::{
    Entry, Kind, PointError, Result, SkipReason, Stamp, Time, Xattr,
    content::Copier,
    index, meta,
    pool::lock,
    step,
    store::Space,
    sys::{self, Stat},
    walk::{Found, Visit, Walk},
};

/// The identity of an inode within one source: source, device and inode number. Hard links between two sources are not preserved.
pub(super) type InodeName = (usize, u64, u64);

/// The restore point with which files are shared.
pub(super) struct Old {
    pub entries: Vec<Entry>,
    pub files: OwnedFd,
    /// The whole index to which the new index can refer, and the name of its file.
    pub whole: (Vec<u8>, &'static str),
}

pub(super) struct Capture<'a> {
    pub walk: &'a Walk<'a>,
    pub options: &'a CaptureOptions<'a>,
    pub begun: Time,
    pub files: BorrowedFd<'a>,
    pub old: Option<&'a Old>,
    pub copier: Copier<'a>,
    pub space: Space<'a>,
    pub entries: Mutex<Vec<Entry>>,
    /// The files with several names. The value is the name under which the content is stored, or `None` until the content is
    /// stored.
    pub inodes: Mutex<HashMap<InodeName, Option<Vec<u8>>>>,
    /// The further names of files with several names.
    pub more_names: Mutex<Vec<(InodeName, Vec<u8>)>>,
    pub shared_files: AtomicU64,
    pub copied_bytes: AtomicU64,
}

/// The directories of one batch of files: live, stored, and in the previous restore point.
pub(super) struct Dirs<'a> {
    pub live: BorrowedFd<'a>,
    pub stored: OwnedFd,
    pub old: Option<OwnedFd>,
}

/// The outcome of one attempt to capture a file.
pub(super) enum Attempt {
    Done(Entry),
    Changed(Entry),
    Skipped,
}

impl Visit for Capture<'_> {
    fn directory(&self, path: &[u8], dir: BorrowedFd<'_>, stat: &Stat) -> Result<()> {
        let xattrs = self.xattrs(path, dir)?;
        let (parent, name) = sys::split(path);
        let created = sys::open_dir(self.files, parent, true).and_then(|parent| sys::create_dir(parent.as_fd(), name));
        match created {
            // If a directory changes while it is listed, the list can contain a name twice.
            Ok(()) | Err(Errno::EXIST | Errno::NOTDIR) => {}
            Err(other) => return Err(PointError::io("store", OsStr::from_bytes(path), other)),
        }
        lock(&self.entries).push(entry(path, Kind::Directory, stat, xattrs));
        Ok(())
    }

    fn symlink(&self, path: &[u8], stat: &Stat, target: Vec<u8>) -> Result<()> {
        lock(&self.entries).push(entry(path, Kind::Symlink { target }, stat, Vec::new()));
        Ok(())
    }

    fn files(&self, source: usize, live: BorrowedFd<'_>, files: Vec<Found>, is_unit: bool) -> Result<()> {
        step();
        let mut files = files;
        if let Some(staged) = &self.options.staged {
            files.retain(|found| !staged.is_hidden(&found.path));
        }
        let Some(first) = files.first() else { return Ok(()) };
        let parent = sys::split(&first.path).0;
        let stored = match sys::open_dir(self.files, parent, true) {
            Err(error @ Errno::NOTDIR) => {
                return files.iter().try_for_each(|found| self.walk.skip_or_fail("store", &found.path, error));
            }
            other => other.map_err(|e| PointError::io("store", OsStr::from_bytes(parent), e))?,
        };
        let old = self.old.and_then(|old| sys::open_dir(old.files.as_fd(), parent, true).ok());
        let dirs = Dirs { live, stored, old };
        if is_unit {
            let entries = self.unit(&dirs, &files)?;
            lock(&self.entries).extend(entries);
            return Ok(());
        }
        let mut entries = Vec::with_capacity(files.len());
        for found in files {
            let inode = (source, found.stat.dev, found.stat.ino);
            if found.stat.links > 1 {
                let mut inodes = lock(&self.inodes);
                if inodes.contains_key(&inode) {
                    lock(&self.more_names).push((inode, found.path));
                    continue;
                }
                inodes.insert(inode, None);
            }
            let Some(entry) = self.file(&dirs, &found)? else { continue };
            if found.stat.links > 1 {
                lock(&self.inodes).insert(inode, Some(found.path));
            }
            entries.push(entry);
        }
        lock(&self.entries).append(&mut entries);
        Ok(())
    }
}

impl Capture<'_> {
    /// Captures a file. Reads the file again, at most `retries` times, if it changed while it was read.
    pub(super) fn file(&self, dirs: &Dirs<'_>, found: &Found) -> Result<Option<Entry>> {
        for attempt in 0.. {
            match self.attempt(dirs, found)? {
                Attempt::Changed(_) if attempt < self.options.retries => self.discard(dirs, found)?,
                Attempt::Changed(entry) => return Ok(Some(torn(entry))),
                Attempt::Done(entry) => return Ok(Some(entry)),
                Attempt::Skipped => return Ok(None),
            }
        }
        Ok(None)
    }

    /// Captures a file and its side files. Reads all of them again, at most `retries` times, if one of them changed while they were read.
    fn unit(&self, dirs: &Dirs<'_>, files: &[Found]) -> Result<Vec<Entry>> {
        for attempt in 0.. {
            let mut entries = Vec::new();
            let mut is_changed = false;
            for found in files {
                match self.attempt(dirs, found)? {
                    Attempt::Changed(entry) => {
                        is_changed = true;
                        entries.push(entry);
                    }
                    Attempt::Done(entry) => entries.push(entry),
                    Attempt::Skipped => {}
                }
            }
            for entry in &entries {
                let Kind::File { stamp, .. } = &entry.kind else { continue };
                let now = sys::stat_at(dirs.live, sys::split(&entry.path).1).ok();
                is_changed |= now.is_none_or(|now| Stamp::of(&now, stamp.is_settled) != *stamp);
            }
            if !is_changed {
                return Ok(entries);
            }
            if attempt >= self.options.retries {
                return Ok(entries.into_iter().map(torn).collect());
            }
            files.iter().try_for_each(|found| self.discard(dirs, found))?;
        }
        Ok(Vec::new())
    }

    fn discard(&self, dirs: &Dirs<'_>, found: &Found) -> Result<()> {
        match unlinkat(&dirs.stored, found.name(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(other) => Err(self.failed("discard the copy of", found, other)),
        }
    }

    /// Opens a live file. Returns `None` for a file that is left out: an unreadable file, or an entry that is no longer a regular file.
    pub(super) fn open_live(&self, dirs: &Dirs<'_>, found: &Found) -> Result<Option<(OwnedFd, Stat)>> {
        let live = match sys::open_file(dirs.live, found.name()) {
            Ok(live) => live,
            Err(error) => {
                self.walk.skip_or_fail("open", &found.path, error)?;
                return Ok(None);
            }
        };
        let stat = sys::stat_fd(&live).map_err(|e| self.failed("look at", found, e))?;
        if stat.kind != FileType::RegularFile {
            self.walk.skip(&found.path, SkipReason::Changed);
            return Ok(None);
        }
        Ok(Some((live, stat)))
    }

    fn attempt(&self, dirs: &Dirs<'_>, found: &Found) -> Result<Attempt> {
        if let Some((staged, name)) = self.replacement(&found.path) {
            return self.replaced(dirs, found, staged, name);
        }
        let known = self.old.and_then(|old| {
            let entry = index::find(&old.entries, &found.path)?;
            Some((entry, index::file_of(&old.entries, entry)?))
        });
        if let Some((_, file)) = known
            && let Kind::File { stamp, is_torn: false, .. } = &file.kind
            && stamp.is_current(&found.stat)
            && self.share(dirs, found, file)?
        {
            // The times, owner, mode and attributes are equal as well, because every change of these properties changes the ctime.
            return Ok(Attempt::Done(Entry { path: found.path.clone(), ..file.clone() }));
        }
        let Some((live, stat)) = self.open_live(dirs, found)? else { return Ok(Attempt::Skipped) };
        let xattrs = self.xattrs(&found.path, live.as_fd())?;
        let stamp = Stamp::of(&stat, self.is_settled(&stat));
        let made = |size, digest| entry(&found.path, Kind::File { size, digest, is_torn: false, stamp }, &stat, xattrs.clone());
        let is_still = |now: &Stat| Stamp::of(now, stamp.is_settled) == stamp;
        let known = known.map(|(_, file)| file);
        // The size and the mtime are unchanged. Either only metadata has changed, or the last change was so close to the previous
        // capture that a further change may have the same ctime. The content is probably the same, and equal content needs no copy.
        if let Some(file) = known
            && let Kind::File { size, digest, is_torn: false, stamp: old } = &file.kind
            && (*size, old.mtime) == (stat.size, stat.mtime)
            && self.copier.digest(live.as_fd(), stat.size, &found.path)? == (*digest, *size)
            && is_still(&sys::stat_fd(&live).map_err(|e| self.failed("look at", found, e))?)
            && self.share(dirs, found, file)?
        {
            return Ok(Attempt::Done(made(*size, *digest)));
        }
        let stored = match sys::create_file(dirs.stored.as_fd(), found.name()) {
            // The directory listed this name twice.
            Err(Errno::EXIST) => return Ok(Attempt::Skipped),
            other => other.map_err(|e| self.failed("store", found, e))?,
        };
        let reserve = || self.space.reserve(stat.allocated, &found.path);
        let copied = self.copier.copy(live.as_fd(), stored.as_fd(), stat.size, &found.path, reserve)?;
        let now = sys::stat_fd(&live).map_err(|e| self.failed("look at", found, e))?;
        if !copied.is_clone && !is_still(&now) {
            return Ok(Attempt::Changed(made(copied.size, copied.digest)));
        }
        if let Some(file) = known
            && let Kind::File { size, digest, .. } = &file.kind
            && (*size, *digest) == (copied.size, copied.digest)
        {
            // The file was rewritten with the same content. If the stored file cannot be shared, the live file is copied once
            // more.
            self.discard(dirs, found)?;
            if !self.share(dirs, found, file)? {
                let stored = sys::create_file(dirs.stored.as_fd(), found.name()).map_err(|e| self.failed("store", found, e))?;
                let again = self.copier.copy(live.as_fd(), stored.as_fd(), stat.size, &found.path, || Ok(()))?;
                self.copied_bytes.fetch_add(again.size, Ordering::Relaxed);
                let now = sys::stat_fd(&live).map_err(|e| self.failed("look at", found, e))?;
                let entry = made(again.size, again.digest);
                return Ok(if again.is_clone || is_still(&now) { Attempt::Done(entry) } else { Attempt::Changed(entry) });
            }
        } else {
            self.copied_bytes.fetch_add(copied.size, Ordering::Relaxed);
        }
        Ok(Attempt::Done(made(copied.size, copied.digest)))
    }

    /// Links the stored file of the previous restore point. Returns false if a copy is needed instead.
    pub(super) fn share(&self, dirs: &Dirs<'_>, found: &Found, file: &Entry) -> Result<bool> {
        let Some(old) = self.old else { return Ok(false) };
        let linked = match &dirs.old {
            Some(dir) if file.path == found.path => linkat(dir, found.name(), &dirs.stored, found.name(), AtFlags::empty()),
            // The content of a hard link is stored under the name of its file.
            _ => linkat(&old.files, OsStr::from_bytes(&file.path), &dirs.stored, found.name(), AtFlags::empty()),
        };
        match linked {
            Ok(()) => {}
            // EMLINK means that the file has too many names; ext4 allows 65,000. EPERM means that the file system or the owner does not
            // permit the hard link. The copy that follows handles the causes of the other errors.
            Err(Errno::MLINK | Errno::PERM | Errno::ACCESS | Errno::NOENT | Errno::NOTDIR | Errno::OPNOTSUPP | Errno::EXIST) => {
                return Ok(false);
            }
            Err(other) => return Err(self.failed("share", found, other)),
        }
        let stat = sys::stat_at(dirs.stored.as_fd(), found.name()).map_err(|e| self.failed("look at the copy of", found, e))?;
        let Kind::File { size, .. } = &file.kind else { return Ok(false) };
        if stat.kind != FileType::RegularFile || stat.size != *size {
            // The stored file is damaged. A hard link would pass on the damage to the new restore point.
            self.discard(dirs, found)?;
            return Ok(false);
        }
        self.shared_files.fetch_add(1, Ordering::Relaxed);
        Ok(true)
    }

    /// Returns true if every later change of the file is certain to give the file a new ctime. For this, the ctime must be older than
    /// the start of the capture by more than one tick of the file system's clock. Most clocks tick every 1 to 10 ms; the clocks of
    /// some file systems tick every 2 seconds. The sources are synced after the start, because a write to a page that is already
    /// dirty can leave the ctime unchanged.
    fn is_settled(&self, stat: &Stat) -> bool {
        let is_coarse = stat.ctime.nanos == 0 && stat.mtime.nanos == 0;
        let margin = if is_coarse { 2_000_000_000 } else { 50_000_000 };
        let nanos = |time: Time| i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos);
        nanos(stat.ctime) + margin < nanos(self.begun)
    }

    pub(super) fn xattrs(&self, path: &[u8], fd: BorrowedFd<'_>) -> Result<Vec<Xattr>> {
        meta::read_xattrs(fd, path, self.options.limits.xattr_bytes, self.options.capabilities)
    }

    pub(super) fn failed(&self, doing: &'static str, found: &Found, source: Errno) -> PointError {
        PointError::io(doing, OsStr::from_bytes(&found.path), source)
    }
}

pub(super) fn entry(path: &[u8], kind: Kind, stat: &Stat, xattrs: Vec<Xattr>) -> Entry {
    Entry { path: path.to_vec(), kind, mode: stat.mode, uid: stat.uid, gid: stat.gid, mtime: stat.mtime, xattrs }
}

fn torn(mut entry: Entry) -> Entry {
    if let Kind::File { is_torn, .. } = &mut entry.kind {
        *is_torn = true;
    }
    entry
}
