//! The creation of a restore point by a capture or an import: the restore point is complete and durable before it gets its name.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsStr,
    num::NonZero,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    panic::resume_unwind,
    sync::{Mutex, PoisonError},
    thread,
};

use rustix::{
    fs::{AtFlags, RenameFlags, fsync, renameat_with, unlinkat},
    io::Errno,
};

use crate::{
    Digest, Entry, Kind, PointError, Result, Store,
    contents::{NewContents, NewName, stored_size},
    meta,
    pool::{each_chunk, lock},
    step,
    store::{self, CONTENTS, NEW},
    sys,
};

/// The number of entries that a thread examines at once.
const CHUNK: usize = 1024;

/// A restore point whose files are written, but neither durable nor visible.
pub(crate) struct NewPoint {
    pub entries: Vec<Entry>,
    /// The directory of the restore point, with its index and manifest.
    pub dir: OwnedFd,
    pub contents: NewContents,
    /// The sizes of the contents that were looked at during the capture, if the restore point shares contents of an earlier restore point. The
    /// other contents were not examined yet.
    pub shared: Option<HashMap<Digest, u64>>,
}

impl Store {
    /// Creates the restore point `id`. `write` gets the name of the new directory and the directory of all contents. A failed creation leaves no
    /// files behind, and a killed creation leaves a leftover that [`Store::sweep`] removes.
    pub(crate) fn create_point<T>(
        &self,
        id: &str,
        write: impl FnOnce(&str, BorrowedFd<'_>) -> Result<(T, NewPoint)>,
    ) -> Result<T> {
        store::check_name(id)?;
        let _lock = self.lock()?;
        if sys::stat_at(self.fd.as_fd(), OsStr::new(id)).is_ok() {
            return Err(PointError::Exists { id: id.to_owned() });
        }
        self.write_point(id, RenameFlags::NOREPLACE, write)
    }

    /// Writes the restore point `id`, and exchanges it with the existing restore point if `how` is [`RenameFlags::EXCHANGE`]. The caller holds
    /// the lock.
    pub(crate) fn write_point<T>(
        &self,
        id: &str,
        how: RenameFlags,
        write: impl FnOnce(&str, BorrowedFd<'_>) -> Result<(T, NewPoint)>,
    ) -> Result<T> {
        let wrong = |e: Errno| PointError::io("create", self.path().join(id), e);
        let new = format!("{NEW}{id}");
        // This creation holds the lock, so an existing directory is the leftover of a killed creation.
        if sys::stat_at(self.fd.as_fd(), OsStr::new(&new)).is_ok() {
            self.collect()?;
            sys::remove_tree(self.fd.as_fd(), OsStr::new(&new)).map_err(wrong)?;
        }
        let contents = self.contents()?;
        sys::create_dir(self.fd.as_fd(), OsStr::new(&new)).map_err(wrong)?;
        step();
        let mut is_placed = false;
        let created = write(&new, contents.as_fd()).and_then(|(result, point)| {
            step();
            is_placed = true;
            self.publish(&new, id, how, contents.as_fd(), &point).map(|()| result)
        });
        if created.is_err() {
            // The error of the creation is returned. If a part of this removal fails, a sweep repeats the removal.
            let _ = (if is_placed { self.collect() } else { Ok(()) })
                .and_then(|()| sys::remove_tree(self.fd.as_fd(), OsStr::new(&new)).map_err(wrong));
        }
        created
    }

    /// Makes a restore point durable, and gives the restore point its name.
    fn publish(&self, new: &str, id: &str, how: RenameFlags, contents: BorrowedFd<'_>, point: &NewPoint) -> Result<()> {
        let wrong = |e: Errno| PointError::io("create", self.path().join(id), e);
        let shown = self.path().join(CONTENTS);
        let existing = point.contents.place(contents, &point.entries, &shown)?;
        step();
        // The files become durable before the final name exists. A power failure therefore leaves the complete restore point, or a
        // leftover that a sweep removes.
        self.sync_and_check(contents, point, &existing)?;
        step();
        point.contents.replace(contents, &existing, &shown)?;
        unlinkat(&point.dir, store::FILES, AtFlags::REMOVEDIR).map_err(wrong)?;
        step();
        match renameat_with(&self.fd, new, &self.fd, id, how) {
            Err(Errno::EXIST) => return Err(PointError::Exists { id: id.to_owned() }),
            other => other.map_err(wrong)?,
        }
        step();
        fsync(&self.fd).map_err(wrong)
    }

    /// Makes the files of a restore point durable. Meanwhile, compares the sizes of the shared contents with the index: the processor is idle
    /// while the disk writes. Returns [`PointError::WrongSize`] if a content was cut or lengthened. `existing` are the contents that the new
    /// files will replace.
    fn sync_and_check(&self, contents: BorrowedFd<'_>, point: &NewPoint, existing: &[(NewName, Digest)]) -> Result<()> {
        let Some(sizes) = &point.shared else { return self.sync_all() };
        let replaced: HashSet<Digest> = existing.iter().map(|(_, digest)| *digest).collect();
        // A content that was looked at during the capture existed before, so it is none of the new contents.
        let has_size = |digest: Digest, size| {
            let known = sizes.get(&digest).copied().or_else(|| stored_size(contents, digest));
            known == Some(size)
        };
        let wrong = Mutex::new(HashSet::new());
        let check = |entries: &[Entry]| {
            for entry in entries {
                if let Kind::File { digest, size, .. } = entry.kind
                    && !replaced.contains(&digest)
                    && !has_size(digest, size)
                {
                    lock(&wrong).insert(digest);
                }
            }
            Ok(())
        };
        let threads = thread::available_parallelism().map_or(1, NonZero::get);
        thread::scope(|scope| {
            let checked = scope.spawn(|| each_chunk(threads, &point.entries, CHUNK, None, check));
            let synced = self.sync_all();
            checked.join().unwrap_or_else(|panic| resume_unwind(panic)).and(synced)
        })?;
        let wrong = wrong.into_inner().unwrap_or_else(PoisonError::into_inner);
        if wrong.is_empty() { Ok(()) } else { Err(PointError::WrongSize { contents: wrong.into_iter().collect() }) }
    }

    /// Opens the new directory of a restore point, and creates the directory of its new contents.
    pub(crate) fn open_new(&self, new: &str) -> Result<(OwnedFd, NewContents)> {
        let shown = self.path().join(new);
        let wrong = |e: Errno| PointError::io("create", &shown, e);
        let dir = sys::open_dir(self.fd.as_fd(), new.as_bytes(), true).map_err(wrong)?;
        sys::create_dir(dir.as_fd(), OsStr::new(store::FILES)).map_err(wrong)?;
        let files = sys::open_dir(dir.as_fd(), store::FILES.as_bytes(), true).map_err(wrong)?;
        meta::drop_inherited(&files, &shown)?;
        Ok((dir, NewContents::new(files)))
    }
}
