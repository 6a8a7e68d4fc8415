//! The contents that all restore points of a store share: one file for each distinct content, whose name is its digest.
//!
//! - A content is complete and durable before a restore point that refers to the content gets its name. A content is replaced only by a file
//!   that is durable, too.
//! - A content is removed only if no restore point refers to it. [`Store::collect`] finds such contents by reading all indexes. A capture or
//!   removal that ends early leaves a directory `.new-<id>` or `.old-<id>`, and the next [`Store::sweep`] then calls [`Store::collect`].
//! - A capture shares a content only with a restore point whose index names the content. That a file with the name exists is not enough.
//!   Before the restore point gets its name, the sizes of its contents are compared with its index.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsStr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use rustix::{
    fs::{AtFlags, FileType, RenameFlags, fsync, renameat, renameat_with, unlinkat},
    io::Errno,
};

use crate::{
    Digest, Entry, Kind, PointError, Result, Store, meta,
    pool::lock,
    step,
    store::{CONTENTS, FIRST_SHARED_VERSION},
    sys,
};

/// The name of a new content in the directory of the capture that wrote it.
pub(crate) type NewName = u64;

/// The new contents of a capture, until they are moved to the directory of all contents.
#[derive(Debug)]
pub(crate) struct NewContents {
    dir: OwnedFd,
    next: AtomicU64,
    stored: Mutex<HashMap<Digest, NewName>>,
}

impl NewContents {
    pub(crate) fn new(dir: OwnedFd) -> NewContents {
        NewContents { dir, next: AtomicU64::new(0), stored: Mutex::default() }
    }

    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Returns a name that no other content of the capture has.
    pub(crate) fn name(&self) -> NewName {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Creates an empty file.
    pub(crate) fn create(&self) -> rustix::io::Result<(NewName, OwnedFd)> {
        let name = self.name();
        Ok((name, sys::create_file(self.dir(), OsStr::new(&name.to_string()))?))
    }

    /// Records a complete content. If the capture already has this content, removes the file `name`.
    pub(crate) fn keep(&self, name: NewName, digest: Digest) -> rustix::io::Result<()> {
        match lock(&self.stored).entry(digest) {
            std::collections::hash_map::Entry::Vacant(free) => {
                free.insert(name);
                Ok(())
            }
            std::collections::hash_map::Entry::Occupied(_) => self.discard(name),
        }
    }

    /// Removes a file that was not kept.
    pub(crate) fn discard(&self, name: NewName) -> rustix::io::Result<()> {
        match unlinkat(&self.dir, name.to_string(), AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            other => other,
        }
    }

    /// Moves the contents of `entries` to the directory of all contents. Returns the contents whose names exist there. These contents may
    /// replace the existing files only after the new files are durable, because other restore points may refer to the existing files.
    pub(crate) fn place(&self, contents: BorrowedFd<'_>, entries: &[Entry], shown: &Path) -> Result<Vec<(NewName, Digest)>> {
        let mut stored = std::mem::take(&mut *lock(&self.stored));
        let mut existing = Vec::new();
        for entry in entries {
            let Kind::File { digest, .. } = entry.kind else { continue };
            let Some(name) = stored.remove(&digest) else { continue };
            let to = digest.to_string();
            match renameat_with(&self.dir, name.to_string(), contents, to.as_str(), RenameFlags::NOREPLACE) {
                Err(Errno::EXIST) => existing.push((name, digest)),
                other => other.map_err(|e| PointError::io("store", shown.join(to), e))?,
            }
        }
        // A content is not needed if its file was listed twice, or was read again because of a change.
        for name in stored.into_values() {
            self.discard(name).map_err(|e| PointError::io("discard", shown.join(name.to_string()), e))?;
        }
        Ok(existing)
    }

    /// Replaces existing files by the new files, which are durable and have the same contents. If an existing file was damaged, the
    /// replacement repairs all restore points that refer to the file.
    pub(crate) fn replace(&self, contents: BorrowedFd<'_>, existing: &[(NewName, Digest)], shown: &Path) -> Result<()> {
        for (name, digest) in existing {
            let to = digest.to_string();
            let replaced = renameat(&self.dir, name.to_string(), contents, to.as_str());
            // If both names are links to one file, a rename changes nothing.
            replaced.and_then(|()| self.discard(*name)).map_err(|e| PointError::io("store", shown.join(to), e))?;
        }
        if existing.is_empty() {
            return Ok(());
        }
        step();
        fsync(contents).map_err(|e| PointError::io("sync", shown, e))
    }
}

impl Store {
    /// Opens the directory of all contents, and creates it if it is missing.
    pub(crate) fn contents(&self) -> Result<OwnedFd> {
        let wrong = |e: Errno| PointError::io("create", self.path().join(CONTENTS), e);
        match sys::create_dir(self.fd.as_fd(), OsStr::new(CONTENTS)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(other) => return Err(wrong(other)),
        }
        let contents = sys::open_dir(self.fd.as_fd(), CONTENTS.as_bytes(), true).map_err(wrong)?;
        meta::drop_inherited(&contents, &self.path().join(CONTENTS))?;
        Ok(contents)
    }

    /// Lists all contents. Afterwards, looks at their sizes until `is_over` becomes true: the caller reads an index meanwhile, which keeps only
    /// one processor busy. Returns the digests of all contents, and the sizes of those that were looked at.
    pub(crate) fn sized_contents(
        &self,
        contents: BorrowedFd<'_>,
        is_over: &AtomicBool,
    ) -> Result<(HashSet<Digest>, HashMap<Digest, u64>)> {
        let listed = self.listed_contents(contents)?;
        // In the order of the list, the kernel finds the contents faster than in the order of a set.
        let looked = listed.iter().take_while(|_| !is_over.load(Ordering::Relaxed));
        let sizes = looked.filter_map(|digest| Some((*digest, stored_size(contents, *digest)?))).collect();
        Ok((listed.into_iter().collect(), sizes))
    }

    /// Returns the digests in the names of all contents, in the order of the directory.
    pub(crate) fn listed_contents(&self, contents: BorrowedFd<'_>) -> Result<Vec<Digest>> {
        let mut listed = Vec::new();
        sys::each_name(contents, |name| -> rustix::io::Result<()> {
            listed.extend(std::str::from_utf8(name).ok().and_then(Digest::from_hex));
            Ok(())
        })
        .map_err(|e| PointError::io("list", self.path().join(CONTENTS), e))?;
        Ok(listed)
    }

    /// Removes the contents to which no restore point refers. The caller holds the lock. Nothing is removed if a restore point cannot be read:
    /// its contents are unknown.
    pub(crate) fn collect(&self) -> Result<()> {
        let contents = match sys::open_dir(self.fd.as_fd(), CONTENTS.as_bytes(), true) {
            Err(Errno::NOENT) => return Ok(()),
            other => other.map_err(|e| PointError::io("open", self.path().join(CONTENTS), e))?,
        };
        let mut used = HashSet::new();
        for id in self.list()? {
            match self.open_unlocked(&id) {
                Ok(point) if point.manifest.version < FIRST_SHARED_VERSION => {}
                Ok(point) => match point.entries() {
                    Ok(entries) => used.extend(digests(&entries)),
                    Err(_) => return Ok(()),
                },
                // The restore point was removed meanwhile, or the directory was never a restore point.
                Err(PointError::NotFound { .. }) => {}
                Err(_) => return Ok(()),
            }
        }
        // A removal that the list already shows becomes durable before the first content is removed. Otherwise a power failure could bring
        // the restore point back without its contents.
        fsync(&self.fd).map_err(|e| PointError::io("sync", self.path(), e))?;
        step();
        for digest in self.listed_contents(contents.as_fd())? {
            if !used.contains(&digest) {
                let name = digest.to_string();
                match unlinkat(&contents, name.as_str(), AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(other) => return Err(PointError::io("remove", self.path().join(CONTENTS).join(name), other)),
                }
                step();
            }
        }
        Ok(())
    }
}

/// Returns the size of a stored content, or `None` if it is not a regular file.
pub(crate) fn stored_size(contents: BorrowedFd<'_>, digest: Digest) -> Option<u64> {
    let stat = sys::stat_at(contents, OsStr::new(&*digest.hex())).ok()?;
    (stat.kind == FileType::RegularFile).then_some(stat.size)
}

/// Returns the digests of all files.
pub(crate) fn digests(entries: &[Entry]) -> impl Iterator<Item = Digest> {
    entries.iter().filter_map(|entry| match entry.kind {
        Kind::File { digest, .. } => Some(digest),
        _ => None,
    })
}

/// The contents of a restore point that a capture can share.
#[derive(Debug)]
pub(crate) enum SharedContents {
    /// The names of all contents, the sizes of some of them, and the digests in the index of the restore point, which are needed only if a new
    /// content has one of the names.
    Listed { names: HashSet<Digest>, sizes: HashMap<Digest, u64>, indexed: OnceLock<HashSet<Digest>> },
    /// The directory `files` of a restore point of version 1, whose contents have the paths of their files.
    Files(OwnedFd),
}
