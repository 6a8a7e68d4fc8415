//! The capture of single files: shared with the previous restore point, cloned or copied.

use std::{
    collections::{HashMap, HashSet},
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
    fs::{AtFlags, FileType, linkat},
    io::Errno,
};

use super::CaptureOptions;
use crate::{
    Digest, Entry, Kind, PointError, Result, SkipReason, Stamp, Time, Xattr,
    changes::ReadIndex,
    content::Copier,
    contents::{NewContents, NewName, SharedContents, digests},
    index::{self, Finder},
    meta,
    pool::lock,
    step,
    store::Space,
    sys::{self, Stat},
    walk::{Found, Visit, Walk},
};

/// The identity of an inode within one source: source, device and inode number. Hard links between two sources are not preserved.
pub(super) type InodeName = (usize, u64, u64);

/// The restore point with which contents are shared.
pub(super) struct Old {
    pub index: ReadIndex,
    pub shared: SharedContents,
}

pub(super) struct Capture<'a> {
    pub walk: &'a Walk<'a>,
    pub options: &'a CaptureOptions<'a>,
    pub begun: Time,
    pub new: NewContents,
    pub old: Option<&'a Old>,
    /// The contents that are not shared, because their sizes are wrong.
    pub distrusted: &'a HashSet<Digest>,
    pub copier: Copier<'a>,
    pub space: Space<'a>,
    pub entries: Mutex<Vec<Entry>>,
    /// The files with several names. The value is the name under which the file was captured, or `None` before the capture of the file.
    pub inodes: Mutex<HashMap<InodeName, Option<Vec<u8>>>>,
    /// The further names of files with several names.
    pub more_names: Mutex<Vec<(InodeName, Vec<u8>)>>,
    pub shared_files: AtomicU64,
    pub copied_bytes: AtomicU64,
}

/// The outcome of one attempt to capture a file, with the name of the new content, if there is one.
pub(super) enum Attempt {
    Done(Entry, Option<NewName>),
    Changed(Entry, NewName),
    Skipped,
}

impl Visit for Capture<'_> {
    fn directory(&self, path: &[u8], dir: BorrowedFd<'_>, stat: &Stat) -> Result<()> {
        let xattrs = self.xattrs(path, dir)?;
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
        if is_unit {
            let entries = self.unit(live, &files)?;
            lock(&self.entries).extend(entries);
            return Ok(());
        }
        // In the order of the index, most entries are found without a search.
        files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        let mut finder = Finder::default();
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
            let known = self.known(&mut finder, &found);
            let Some(entry) = self.file(live, &found, known)? else { continue };
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
    pub(super) fn file(&self, live: BorrowedFd<'_>, found: &Found, known: Option<&Entry>) -> Result<Option<Entry>> {
        for attempt in 0.. {
            match self.attempt(live, found, known)? {
                Attempt::Changed(_, new) if attempt < self.options.retries => self.discard(found, new)?,
                Attempt::Changed(entry, new) => {
                    self.keep(&entry, Some(new))?;
                    return Ok(Some(torn(entry)));
                }
                Attempt::Done(entry, new) => {
                    self.keep(&entry, new)?;
                    return Ok(Some(entry));
                }
                Attempt::Skipped => return Ok(None),
            }
        }
        Ok(None)
    }

    /// Captures a file and its side files. Reads all of them again, at most `retries` times, if one of them changed while they were read.
    fn unit(&self, live: BorrowedFd<'_>, files: &[Found]) -> Result<Vec<Entry>> {
        for attempt in 0.. {
            let mut captured = Vec::new();
            let mut is_changed = false;
            for found in files {
                match self.attempt(live, found, self.known(&mut Finder::default(), found))? {
                    Attempt::Changed(entry, new) => {
                        is_changed = true;
                        captured.push((entry, Some(new), found));
                    }
                    Attempt::Done(entry, new) => captured.push((entry, new, found)),
                    Attempt::Skipped => {}
                }
            }
            for (entry, ..) in &captured {
                let Kind::File { stamp, .. } = &entry.kind else { continue };
                let now = sys::stat_at(live, sys::split(&entry.path).1).ok();
                is_changed |= now.is_none_or(|now| Stamp::of(&now, stamp.is_settled) != *stamp);
            }
            if is_changed && attempt < self.options.retries {
                for (_, new, found) in captured {
                    new.map_or(Ok(()), |new| self.discard(found, new))?;
                }
                continue;
            }
            let mut entries = Vec::new();
            for (entry, new, _) in captured {
                self.keep(&entry, new)?;
                entries.push(if is_changed { torn(entry) } else { entry });
            }
            return Ok(entries);
        }
        Ok(Vec::new())
    }

    /// Keeps the new content of a captured file, if it has one.
    pub(super) fn keep(&self, entry: &Entry, new: Option<NewName>) -> Result<()> {
        let (Some(new), Kind::File { digest, .. }) = (new, &entry.kind) else { return Ok(()) };
        self.new.keep(new, *digest).map_err(|e| PointError::io("store", OsStr::from_bytes(&entry.path), e))
    }

    fn discard(&self, found: &Found, new: NewName) -> Result<()> {
        self.new.discard(new).map_err(|e| self.failed("discard the copy of", found, e))
    }

    /// Opens a live file. Returns `None` for a file that is left out: an unreadable file, or an entry that is no longer a regular file.
    pub(super) fn open_live(&self, dir: BorrowedFd<'_>, found: &Found) -> Result<Option<(OwnedFd, Stat)>> {
        let live = match sys::open_file(dir, found.name()) {
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

    /// Captures a file. `known` is the file at the same path in the previous restore point.
    fn attempt(&self, dir: BorrowedFd<'_>, found: &Found, known: Option<&Entry>) -> Result<Attempt> {
        if let Some((staged, name)) = self.replacement(&found.path) {
            return self.replaced(dir, found, staged, name);
        }
        if let Some(file) = known
            && let Kind::File { stamp, size, digest, is_torn: false } = &file.kind
            && stamp.is_current(&found.stat)
            && let Some(new) = self.share(found, known, *size, *digest)?
        {
            // The times, owner, mode and attributes are equal as well, because every change of these properties changes the ctime.
            let mut entry = file.clone();
            entry.path.clone_from(&found.path);
            return Ok(Attempt::Done(entry, new));
        }
        let Some((live, stat)) = self.open_live(dir, found)? else { return Ok(Attempt::Skipped) };
        let xattrs = self.xattrs(&found.path, live.as_fd())?;
        let stamp = Stamp::of(&stat, self.is_settled(&stat));
        let made = |size, digest| entry(&found.path, Kind::File { size, digest, is_torn: false, stamp }, &stat, xattrs.clone());
        let is_still = || -> Result<bool> {
            let now = sys::stat_fd(&live).map_err(|e| self.failed("look at", found, e))?;
            Ok(Stamp::of(&now, stamp.is_settled) == stamp)
        };
        // The size and the mtime are unchanged. Either only metadata has changed, or the last change was so close to the previous
        // capture that a further change may have the same ctime. The content is probably the same, and equal content needs no copy.
        if let Some(file) = known
            && let Kind::File { size, digest, is_torn: false, stamp: old } = &file.kind
            && (*size, old.mtime) == (stat.size, stat.mtime)
            && self.copier.digest(live.as_fd(), stat.size, &found.path)? == (*digest, *size)
            && is_still()?
            && let Some(new) = self.share(found, known, *size, *digest)?
        {
            return Ok(Attempt::Done(made(*size, *digest), new));
        }
        let (new, stored) = self.new.create().map_err(|e| self.failed("store", found, e))?;
        let reserve = || self.space.reserve(stat.allocated, &found.path);
        // Between the stamp and the end of the call, a settled file cannot change without a new ctime.
        let is_unchanged = || Ok(stamp.is_settled && is_still()?);
        let copied = self.copier.copy(live.as_fd(), stored.as_fd(), stat.size, &found.path, reserve, is_unchanged)?;
        if !copied.is_clone && !is_still()? {
            return Ok(Attempt::Changed(made(copied.size, copied.digest), new));
        }
        // The file was moved, or written again with the same content.
        if let Some(shared) = self.share(found, known, copied.size, copied.digest)? {
            self.discard(found, new)?;
            return Ok(Attempt::Done(made(copied.size, copied.digest), shared));
        }
        self.copied_bytes.fetch_add(copied.size, Ordering::Relaxed);
        Ok(Attempt::Done(made(copied.size, copied.digest), Some(new)))
    }

    /// Returns the file at the path of `found` in the previous restore point.
    pub(super) fn known(&self, finder: &mut Finder, found: &Found) -> Option<&Entry> {
        let entries = &self.old?.index.entries;
        index::file_of(entries, finder.find(entries, &found.path)?)
    }

    /// Shares a content with the previous restore point. Returns `None` if a copy is needed instead. Returns the name of a new content if the
    /// content got a link in the directory of this capture.
    pub(super) fn share(
        &self,
        found: &Found,
        known: Option<&Entry>,
        size: u64,
        digest: Digest,
    ) -> Result<Option<Option<NewName>>> {
        let Some(old) = self.old.filter(|_| !self.distrusted.contains(&digest)) else { return Ok(None) };
        let same = known.filter(|file| matches!(file.kind, Kind::File { size: s, digest: d, .. } if (s, d) == (size, digest)));
        let shared = match &old.shared {
            SharedContents::Listed { names, indexed, .. } => {
                let is_indexed = || indexed.get_or_init(|| digests(&old.index.entries).collect()).contains(&digest);
                (names.contains(&digest) && (same.is_some() || is_indexed())).then_some(None)
            }
            SharedContents::Files(files) => match same {
                Some(file) => self.link(found, files.as_fd(), file, size)?.map(Some),
                None => None,
            },
        };
        self.shared_files.fetch_add(u64::from(shared.is_some()), Ordering::Relaxed);
        Ok(shared)
    }

    /// Links the stored content of a file of a restore point of version 1. Returns `None` if a copy is needed instead.
    fn link(&self, found: &Found, files: BorrowedFd<'_>, file: &Entry, size: u64) -> Result<Option<NewName>> {
        let new = self.new.name();
        let name = new.to_string();
        let (parent, old_name) = sys::split(&file.path);
        let linked = sys::open_dir(files, parent, true)
            .and_then(|parent| linkat(&parent, old_name, self.new.dir(), name.as_str(), AtFlags::empty()));
        match linked {
            Ok(()) => {}
            // EMLINK means that the file has too many names; ext4 allows 65,000. EPERM means that the file system or the owner does not
            // permit the hard link. The copy that follows handles the causes of the other errors.
            Err(Errno::MLINK | Errno::PERM | Errno::ACCESS | Errno::NOENT | Errno::NOTDIR | Errno::OPNOTSUPP | Errno::LOOP) => {
                return Ok(None);
            }
            Err(other) => return Err(self.failed("share", found, other)),
        }
        let stat = sys::stat_at(self.new.dir(), OsStr::new(&name)).map_err(|e| self.failed("look at the copy of", found, e))?;
        if stat.kind != FileType::RegularFile || stat.size != size {
            // The stored file is damaged. A hard link would pass on the damage to the new restore point.
            self.discard(found, new)?;
            return Ok(None);
        }
        Ok(Some(new))
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
