//! The store: a directory with restore points. This file opens, lists and sweeps a store, and removes single restore points.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, Instant},
};

use rustix::{
    fs::{
        FileType, FlockOperation, Mode, OFlags, RenameFlags, flock, fsync, mkdir, open, openat, renameat, renameat_with, syncfs,
    },
    io::Errno,
};

use crate::{
    Digest, Entry, Kind, LimitKind, Manifest, PointError, Result, Source, Verified,
    changes::{self, BASE, BaseIndex, ReadIndex},
    index, manifest,
    meta::{self, Apply},
    pool, step, sys,
};

pub(crate) const NEW: &str = ".new-";
pub(crate) const OLD: &str = ".old-";
const LOCK: &str = "lock";
pub(crate) const FILES: &str = "files";
pub(crate) const CONTENTS: &str = ".contents";
pub(crate) const INDEX: &str = "index";
pub(crate) const MANIFEST: &str = "point.json";
pub(crate) const CHECKSUMS: &str = "checksums";
const VERIFIED: &str = "verified.json";

/// The time for which an operation waits for the lock of the store. Removals hold the lock only while they remove contents.
const LOCK_WAIT: Duration = Duration::from_secs(1);

/// The time for which a removal waits for the lock of its restore point. A process that this process is just starting has copies of all locks
/// until it executes its program.
const POINT_WAIT: Duration = Duration::from_millis(100);

/// The first version of the manifest whose restore points have their contents in `.contents`. The contents of version 1 are in `files`.
pub(crate) const FIRST_SHARED_VERSION: u64 = 2;

/// A directory with restore points, which only its owner may read.
#[derive(Debug)]
pub struct Store {
    pub(crate) fd: OwnedFd,
    path: PathBuf,
}

impl Store {
    /// Creates the directory if it is missing, and opens it.
    pub fn create(path: &Path) -> Result<Store> {
        match mkdir(path, Mode::from_raw_mode(0o700)) {
            Ok(()) => {
                let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
                let synced = File::open(parent).and_then(|parent| parent.sync_all());
                synced.map_err(|e| PointError::io("sync the directory", parent, e))?;
            }
            Err(Errno::EXIST) => {}
            Err(other) => return Err(PointError::io("create", path, other)),
        }
        Store::open(path)
    }

    /// Opens the directory. Returns an error if other users have access to the directory, or if another user owns the directory.
    pub fn open(path: &Path) -> Result<Store> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = open(path, flags, Mode::empty()).map_err(|e| PointError::io("open the store", path, e))?;
        Store::from_fd(fd, path)
    }

    /// Uses an open directory as a store. `path` is only for messages.
    pub fn from_fd(fd: OwnedFd, path: &Path) -> Result<Store> {
        let stat = sys::stat_fd(&fd).map_err(|e| PointError::io("look at", path, e))?;
        let bad = |why| Err(PointError::UnsafeStore { path: path.to_owned(), why });
        if stat.kind != FileType::Directory {
            return bad("it is not a directory");
        }
        if stat.uid != rustix::process::geteuid().as_raw() {
            return bad("it belongs to another user");
        }
        if stat.mode & 0o077 != 0 {
            return bad("its mode gives access to other users (expected 0700)");
        }
        Ok(Store { fd, path: path.to_owned() })
    }

    /// Returns the path with which the store was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the ids of all complete restore points, sorted.
    pub fn list(&self) -> Result<Vec<String>> {
        let names = self.names()?.into_iter().filter_map(|name| name.into_string().ok());
        let mut ids: Vec<_> = names.filter(|name| name != LOCK && check_name(name).is_ok()).collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// Opens a restore point. The restore point cannot be removed before the returned value is dropped.
    pub fn point(&self, id: &str) -> Result<Point> {
        let fd = self.directory_of(id)?;
        match flock(&fd, FlockOperation::NonBlockingLockShared) {
            // A removal is in progress.
            Err(Errno::AGAIN) => return Err(PointError::NotFound { id: id.to_owned() }),
            other => other.map_err(|e| PointError::io("lock", self.path.join(id), e))?,
        }
        self.read_point(id, fd)
    }

    /// Opens a restore point that can be removed at any time.
    pub(crate) fn open_unlocked(&self, id: &str) -> Result<Point> {
        self.read_point(id, self.directory_of(id)?)
    }

    fn directory_of(&self, id: &str) -> Result<OwnedFd> {
        check_name(id)?;
        match sys::open_dir(self.fd.as_fd(), id.as_bytes(), true) {
            Err(Errno::NOENT | Errno::NOTDIR) => Err(PointError::NotFound { id: id.to_owned() }),
            other => other.map_err(|e| PointError::io("open", self.path.join(id), e)),
        }
    }

    fn read_point(&self, id: &str, fd: OwnedFd) -> Result<Point> {
        let missing = || PointError::NotFound { id: id.to_owned() };
        let path = self.path.join(id);
        let bytes = match read(fd.as_fd(), MANIFEST, manifest::MAX_BYTES, &path) {
            Err(PointError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return Err(missing()),
            other => other?,
        };
        // The version is checked first, because a newer version may have other checksums.
        let manifest = Manifest::decode(&bytes, id)?;
        let digest = Digest::of(&bytes);
        let checksums = read(fd.as_fd(), CHECKSUMS, 4096, &path)?;
        if checksums != checksum_line(digest).as_bytes() {
            let why = format!("its digest is {digest} (expected {:?})", String::from_utf8_lossy(&checksums).trim_end());
            return Err(PointError::Malformed { what: "the manifest", id: id.to_owned(), why });
        }
        let verified = read(fd.as_fd(), VERIFIED, 4096, &path).ok();
        let verified = verified.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let verified = verified.filter(|verified: &Verified| verified.point == digest);
        let contents = match sys::open_dir(self.fd.as_fd(), CONTENTS.as_bytes(), true) {
            // Without the directory, a verification reports all files as missing.
            Err(Errno::NOENT) => None,
            other => Some(other.map_err(|e| PointError::io("open", self.path.join(CONTENTS), e))?),
        };
        Ok(Point { fd, path, contents, manifest, digest, verified })
    }

    /// Removes a restore point, and the contents to which no other restore point refers. Returns [`PointError::Busy`] if the restore point is
    /// open. A kill leaves the complete restore point, or a leftover that [`Store::sweep`] removes. The same leftover stays if a capture runs,
    /// because the index of the new restore point does not exist yet.
    pub fn remove(&self, id: &str) -> Result<()> {
        check_name(id)?;
        let path = self.path.join(id);
        let wrong = |e: Errno| PointError::io("remove", &path, e);
        let fd = match sys::open_dir(self.fd.as_fd(), id.as_bytes(), true) {
            Err(Errno::NOENT) => return Err(PointError::NotFound { id: id.to_owned() }),
            other => other.map_err(wrong)?,
        };
        lock_exclusively(&fd, &path, POINT_WAIT)?;
        let old = format!("{OLD}{id}");
        match renameat_with(&self.fd, id, &self.fd, old.as_str(), RenameFlags::NOREPLACE) {
            // The directory is the leftover of an earlier restore point with this id.
            Err(Errno::EXIST) => {
                sys::remove_tree(self.fd.as_fd(), OsStr::new(&old)).map_err(wrong)?;
                renameat(&self.fd, id, &self.fd, old.as_str()).map_err(wrong)?;
            }
            other => other.map_err(wrong)?,
        }
        step();
        // The new name is durable before the first file is removed, so that a half-removed restore point never has its old name.
        fsync(&self.fd).map_err(wrong)?;
        step();
        let _lock = match self.lock() {
            Err(PointError::Busy { .. }) => return Ok(()),
            other => other?,
        };
        // The leftover goes last. Until then, it shows a sweep that contents remain to be removed.
        self.collect()?;
        step();
        sys::remove_tree(self.fd.as_fd(), OsStr::new(&old)).map_err(wrong)
    }

    /// Removes the leftovers of killed captures and removals. Returns the removed names, or [`PointError::Busy`] during a capture.
    pub fn sweep(&self) -> Result<Vec<String>> {
        let _lock = self.lock()?;
        let mut names = self.names()?;
        names.retain(|name| name.as_bytes().starts_with(NEW.as_bytes()) || name.as_bytes().starts_with(OLD.as_bytes()));
        if !names.is_empty() {
            self.collect()?;
        }
        let mut swept = Vec::new();
        for name in names {
            step();
            sys::remove_tree(self.fd.as_fd(), &name).map_err(|e| PointError::io("remove", self.path.join(&name), e))?;
            swept.push(name.to_string_lossy().into_owned());
        }
        swept.sort_unstable();
        Ok(swept)
    }

    /// Acquires the lock that captures and sweeps hold.
    pub(crate) fn lock(&self) -> Result<OwnedFd> {
        let path = self.path.join(LOCK);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let lock = openat(&self.fd, LOCK, flags, Mode::from_raw_mode(0o600)).map_err(|e| PointError::io("open", &path, e))?;
        lock_exclusively(&lock, &path, LOCK_WAIT)?;
        Ok(lock)
    }

    pub(crate) fn names(&self) -> Result<Vec<OsString>> {
        let mut names = Vec::new();
        let listed = sys::open_dir(self.fd.as_fd(), b"", true).and_then(|dir| {
            sys::each_name(dir.as_fd(), |name| -> rustix::io::Result<()> {
                names.push(OsString::from_vec(name.to_vec()));
                Ok(())
            })
        });
        listed.map_err(|e| PointError::io("list the store", &self.path, e))?;
        Ok(names)
    }

    /// Makes everything that was written to the file system of the store durable.
    pub(crate) fn sync_all(&self) -> Result<()> {
        syncfs(&self.fd).map_err(|e| PointError::io("sync the file system of", &self.path, e))
    }
}

/// Acquires a lock. Waits at most the given time for another holder.
fn lock_exclusively(fd: &OwnedFd, path: &Path, wait: Duration) -> Result<()> {
    let begun = Instant::now();
    loop {
        match flock(fd, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::AGAIN) if begun.elapsed() < wait => std::thread::sleep(Duration::from_millis(2)),
            Err(Errno::AGAIN) => return Err(PointError::Busy { path: path.to_owned() }),
            other => return other.map_err(|e| PointError::io("lock", path, e)),
        }
    }
}

/// A complete restore point, whose directory is open.
#[derive(Debug)]
pub struct Point {
    pub(crate) fd: OwnedFd,
    path: PathBuf,
    contents: Option<OwnedFd>,
    /// The manifest, whose digest was checked.
    pub manifest: Manifest,
    /// The digest of the manifest. The manifest contains the digest of the index, and the index contains the digests of all
    /// files.
    pub digest: Digest,
    /// The last verification. `None` if the restore point was never verified, or if the record is unreadable or belongs to another
    /// manifest.
    pub verified: Option<Verified>,
}

impl Point {
    /// Returns the id.
    pub fn id(&self) -> &str {
        &self.manifest.id
    }

    /// Returns the directory of the restore point.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the path of the stored content of the file at `path`, or an error if the index has no file at `path`.
    pub fn content(&self, path: &str) -> Result<PathBuf> {
        let entries = self.entries()?;
        match index::find(&entries, path.as_bytes()).and_then(|entry| index::file_of(&entries, entry)) {
            Some(Entry { kind: Kind::File { digest, .. }, .. }) if self.has_shared_contents() => {
                Ok(self.path.with_file_name(CONTENTS).join(digest.to_string()))
            }
            Some(file) => Ok(self.path.join(FILES).join(OsStr::from_bytes(&file.path))),
            None => {
                let why = "the restore point has no file at this path";
                Err(PointError::Source { source_path: path.to_owned(), why })
            }
        }
    }

    /// Returns true if the last verification read all files and found no damage.
    pub fn is_verified(&self) -> bool {
        self.verified.is_some_and(|verified| verified.damaged == 0)
    }

    /// Gives an open directory the owner, mode, attributes, access lists and time that the directory at `path` had at the capture. Other
    /// attributes and access lists of the open directory are removed.
    pub fn restore_metadata(&self, path: &str, directory: BorrowedFd<'_>) -> Result<()> {
        let entries = self.entries()?;
        let entry = index::find(&entries, path.as_bytes()).filter(|entry| entry.kind == Kind::Directory);
        let Some(entry) = entry else {
            return Err(PointError::Source {
                source_path: path.to_owned(),
                why: "the restore point has no directory at this path",
            });
        };
        let how = Apply { set_ids: false, capabilities: false, is_root: rustix::process::geteuid().is_root() };
        meta::drop_own(directory, path.as_bytes())?;
        meta::apply(directory, entry, how).map(drop)
    }

    /// Reads the index and checks it against the manifest.
    pub fn entries(&self) -> Result<Vec<Entry>> {
        self.index().map(|index| index.entries)
    }

    /// Reads the index and checks it against the manifest. Also returns what the index of a later restore point needs.
    pub(crate) fn index(&self) -> Result<ReadIndex> {
        let wrong = |why| PointError::Malformed { what: "the index", id: self.id().to_owned(), why };
        if self.manifest.index_bytes > index::MAX_BYTES {
            return Err(wrong(format!("it has {} bytes (limit {})", self.manifest.index_bytes, index::MAX_BYTES)));
        }
        let bytes = read(self.fd.as_fd(), INDEX, self.manifest.index_bytes, &self.path)?;
        let digest = Digest::of(&bytes);
        if digest.to_string() != self.manifest.index_digest {
            return Err(wrong(format!("its digest is {digest} (expected {})", self.manifest.index_digest)));
        }
        let sources: Vec<Source> = self.manifest.sources.iter().map(|record| record.source.clone()).collect();
        let index = match changes::base_of(&bytes, self.id())? {
            None => {
                let base = BaseIndex { digest, bytes: bytes.len() as u64 };
                ReadIndex::whole(index::decode(&bytes, self.id(), &sources)?, base, INDEX)
            }
            Some(base) => {
                if base.bytes > index::MAX_BYTES {
                    return Err(wrong(format!("its base has {} bytes (limit {})", base.bytes, index::MAX_BYTES)));
                }
                let whole = read(self.fd.as_fd(), BASE, base.bytes, &self.path)?;
                let digest = Digest::of(&whole);
                if digest != base.digest {
                    return Err(wrong(format!("the digest of its base is {digest} (expected {})", base.digest)));
                }
                changes::read(&bytes, &whole, self.id(), &sources)?
            }
        };
        self.manifest.check_entries(&index.entries)?;
        Ok(index)
    }

    /// Returns true if the contents are in the directory of all contents, and false if they are in the directory `files`.
    pub(crate) fn has_shared_contents(&self) -> bool {
        self.manifest.version >= FIRST_SHARED_VERSION
    }

    /// Opens the directory `files` of a restore point of version 1.
    pub(crate) fn files(&self) -> Result<OwnedFd> {
        sys::open_dir(self.fd.as_fd(), FILES.as_bytes(), true).map_err(|e| PointError::io("open", self.path.join(FILES), e))
    }

    /// Returns the directory of all contents, or `None` if it does not exist.
    pub(crate) fn contents(&self) -> Option<BorrowedFd<'_>> {
        self.contents.as_ref().map(AsFd::as_fd)
    }

    /// Opens the stored content of `file`, which is a regular file of the index.
    pub(crate) fn open_stored(&self, file: &Entry) -> rustix::io::Result<OwnedFd> {
        if self.has_shared_contents() {
            let Kind::File { digest, .. } = file.kind else { return Err(Errno::NOENT) };
            return sys::open_file(self.contents().ok_or(Errno::NOENT)?, OsStr::new(&digest.to_string()));
        }
        let (parent, name) = sys::split(&file.path);
        let parent = sys::join(FILES.as_bytes(), parent);
        let parent = parent.strip_suffix(b"/").unwrap_or(&parent);
        sys::open_dir(self.fd.as_fd(), parent, true).and_then(|dir| sys::open_file(dir.as_fd(), name))
    }

    /// Returns the bytes of `point.json`, whose digest is [`Point::digest`].
    pub fn manifest_bytes(&self) -> Result<Vec<u8>> {
        read(self.fd.as_fd(), MANIFEST, manifest::MAX_BYTES, &self.path)
    }

    /// Records a verification durably.
    pub(crate) fn record(&mut self, verified: Verified) -> Result<()> {
        let bytes = serde_json::to_vec(&verified).map_err(|e| PointError::io("encode", self.path.join(VERIFIED), e))?;
        replace(self.fd.as_fd(), VERIFIED, &bytes, &self.path)?;
        self.verified = Some(verified);
        Ok(())
    }
}

/// Returns the content of `checksums`, in the format of `b3sum`.
pub(crate) fn checksum_line(manifest: Digest) -> String {
    format!("{manifest}  {MANIFEST}\n")
}

/// Checks an id or ticket, which becomes part of a file name.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let is_good = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty() || name.len() > 128 || name.starts_with('.') || name == LOCK || !name.chars().all(is_good) {
        return Err(PointError::BadName { name: name.chars().take(200).collect() });
    }
    Ok(())
}

/// Reads a file of at most `limit` bytes.
pub(crate) fn read(dir: BorrowedFd<'_>, name: &str, limit: u64, shown: &Path) -> Result<Vec<u8>> {
    let wrong = |e: std::io::Error| PointError::io("read", shown.join(name), e);
    let file = File::from(sys::open_file(dir, OsStr::new(name)).map_err(|e| wrong(e.into()))?);
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(wrong)?;
    if bytes.len() as u64 > limit {
        let (what, seen) = (LimitKind::Bytes, bytes.len() as u64);
        return Err(PointError::Limit { what, seen, limit, path: shown.join(name) });
    }
    Ok(bytes)
}

/// Writes a new file without waiting for the disk.
pub(crate) fn write_new(dir: BorrowedFd<'_>, name: &str, bytes: &[u8], shown: &Path) -> Result<File> {
    let wrong = |e: std::io::Error| PointError::io("write", shown.join(name), e);
    let mut file = File::from(sys::create_file(dir, OsStr::new(name)).map_err(|e| wrong(e.into()))?);
    file.write_all(bytes).map_err(wrong)?;
    Ok(file)
}

/// Replaces a file durably: a power failure leaves the old or the new content.
pub(crate) fn replace(dir: BorrowedFd<'_>, name: &str, bytes: &[u8], shown: &Path) -> Result<()> {
    let wrong = |e: std::io::Error| PointError::io("write", shown.join(name), e);
    let temporary = format!("{NEW}{name}");
    sys::remove_tree(dir, OsStr::new(&temporary)).map_err(|e| wrong(e.into()))?;
    write_new(dir, &temporary, bytes, shown)?.sync_all().map_err(wrong)?;
    renameat(dir, temporary.as_str(), dir, name).map_err(|e| wrong(e.into()))?;
    fsync(dir).map_err(|e| wrong(e.into()))
}

/// The space that an operation may still use on a file system.
#[derive(Debug)]
pub(crate) struct Space<'a> {
    dir: BorrowedFd<'a>,
    leave: u64,
    granted: Mutex<u64>,
}

impl<'a> Space<'a> {
    /// The bytes that are granted before the free space is read again, because other programs use the file system as well.
    const GRANT: u64 = 64 << 20;

    pub(crate) fn new(dir: BorrowedFd<'a>, leave: u64) -> Space<'a> {
        Space { dir, leave, granted: Mutex::new(0) }
    }

    /// Reserves `bytes` for the file at `path`. If the file system has too little space, returns an error with the needed space.
    pub(crate) fn reserve(&self, bytes: u64, path: &[u8]) -> Result<()> {
        let mut granted = pool::lock(&self.granted);
        if bytes > *granted {
            let stat = free_space(self.dir).map_err(|e| PointError::io("get the free space for", OsStr::from_bytes(path), e))?;
            let needed = bytes.saturating_add(self.leave);
            if needed > stat {
                return Err(PointError::Limit {
                    what: LimitKind::FreeBytes,
                    seen: needed,
                    limit: stat,
                    path: OsStr::from_bytes(path).into(),
                });
            }
            *granted = (stat - needed).min(Self::GRANT).saturating_add(bytes);
        }
        *granted -= bytes;
        Ok(())
    }
}

fn free_space(dir: BorrowedFd<'_>) -> rustix::io::Result<u64> {
    let stat = rustix::fs::fstatvfs(dir)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}
