//! The second part of a sync: the files and symlinks. Changed files and symlinks are replaced by rename.

use std::{
    ffi::OsStr,
    os::fd::{AsFd, BorrowedFd},
};

use larder_archive::{Cursor, EntryKind};
use rustix::{
    fs::{AtFlags, FileType, Gid, Uid, chownat, readlinkat, renameat, symlinkat, unlinkat},
    io::Errno,
};

use crate::{
    FileStamp, Sync, SyncError, add, copy,
    directories::failed,
    plan::{ExpectedFile, ExpectedKind, Place, PlannedItem, TreePlan},
    sys::{self, Metadata},
};

/// One thread of the second part.
pub struct Worker<'a> {
    sync: &'a Sync<'a>,
    /// The open directories of the release.
    release: Cursor<'a>,
    buffer: Vec<u8>,
}

impl<'a> Worker<'a> {
    pub fn new(sync: &'a Sync<'a>) -> Worker<'a> {
        Worker { sync, release: sync.release.cursor(), buffer: vec![0; copy::BUFFER] }
    }

    /// Syncs files and symlinks of one directory. Returns the stamps of the files.
    pub fn batch(&mut self, plan: &TreePlan<'_>, batch: &[PlannedItem]) -> Result<Vec<(usize, FileStamp)>, SyncError> {
        let mut stamps = Vec::with_capacity(batch.len());
        let directory = batch.first().and_then(|item| plan.directories.get(item.directory));
        let Some(directory) = directory else { return Ok(stamps) };
        let dir = self.sync.target.open_dir(directory.path).map_err(SyncError::File)?;
        let is_taken = |name: &str| directory.find(name.as_bytes()).is_some();
        for item in batch {
            let Some(child) = directory.children.get(item.child) else { continue };
            let (ExpectedKind::File(index) | ExpectedKind::Symlink(index)) = child.kind else { continue };
            let Some(entry) = self.sync.entries.get(index) else { continue };
            let place = Place { dir: dir.as_fd(), parent: directory.path, name: OsStr::new(child.name), path: &entry.path };
            match &entry.kind {
                EntryKind::Dir => {}
                EntryKind::Link { target } => self.symlink(&place, target, item.exists, &is_taken)?,
                EntryKind::File { size, digest, executable } => {
                    let policy = self.sync.policy;
                    let mode = if *executable { policy.executable_mode } else { policy.file_mode };
                    let known = self.sync.known.get(index).copied().flatten();
                    let expected = ExpectedFile { size: *size, digest: *digest, mode, known };
                    let stamp = match self.unchanged(&place, &expected, item.exists)? {
                        Some(stamp) => stamp,
                        None => self.replace(&place, &expected, &is_taken)?,
                    };
                    stamps.push((index, stamp));
                }
            }
        }
        Ok(stamps)
    }

    /// Returns the stamp of a file that is exactly the expected file.
    fn unchanged(&mut self, place: &Place<'_>, expected: &ExpectedFile, exists: bool) -> Result<Option<FileStamp>, SyncError> {
        if !exists {
            return Ok(None);
        }
        let found = match sys::metadata_at(place.dir, place.name) {
            Err(Errno::NOENT) => return Ok(None),
            found => found.map_err(failed("read the metadata of", place.parent, place.name))?,
        };
        if found.is_mount {
            return Err(SyncError::Mounted { path: place.path.into() });
        }
        if !fits(self.sync, &found, expected) {
            return Ok(None);
        }
        let stamp = FileStamp::of(&found);
        if expected.known == Some(stamp) {
            return Ok(Some(stamp));
        }
        self.compared(place, expected, stamp)
    }

    /// Compares the content of a file with its digest. A file that cannot be read is replaced.
    fn compared(&mut self, place: &Place<'_>, expected: &ExpectedFile, stamp: FileStamp) -> Result<Option<FileStamp>, SyncError> {
        let Ok(file) = sys::open(place.dir, place.name) else { return Ok(None) };
        let sync = self.sync;
        let is_same = |found: rustix::io::Result<Metadata>| {
            found.is_ok_and(|found| fits(sync, &found, expected) && FileStamp::of(&found) == stamp)
        };
        if !is_same(sys::metadata_of(&file)) || !sys::own_attributes(file.as_fd()).is_ok_and(|names| names.is_empty()) {
            return Ok(None);
        }
        match copy::digest(&file, expected.size, &mut self.buffer) {
            Ok(Some(digest)) if digest == expected.digest => {}
            _ => return Ok(None),
        }
        if !is_same(sys::metadata_of(&file)) {
            return Ok(None);
        }
        // The application may have changed the time of a file without a change of its content.
        let original = self.release.stat(place.path).map_err(SyncError::File)?;
        copy::set_mtime(&file, &original, stamp).map_err(failed("change the time of", place.parent, place.name))?;
        let found = sys::metadata_of(&file).map_err(failed("read the metadata of", place.parent, place.name))?;
        Ok(Some(FileStamp::of(&found)))
    }

    /// Copies a file of the release over the entry in the target.
    fn replace(
        &mut self,
        place: &Place<'_>,
        expected: &ExpectedFile,
        is_taken: &dyn Fn(&str) -> bool,
    ) -> Result<FileStamp, SyncError> {
        let source = self.release.open(place.path).map_err(SyncError::File)?;
        let (temporary, file) = self.temporary(place, is_taken, copy::create)?;
        let made = copy::fill(&source, &file, place, expected, self.sync.owner, &mut self.buffer)
            .and_then(|()| self.rename(place, &temporary));
        if let Err(error) = made {
            let _ = unlinkat(place.dir, temporary.as_str(), AtFlags::empty());
            return Err(error);
        }
        add(&self.sync.counters.changed, 1);
        add(&self.sync.counters.bytes, expected.size);
        // A rename changes the change time of the file.
        let found = sys::metadata_of(&file).map_err(failed("read the metadata of", place.parent, place.name))?;
        Ok(FileStamp::of(&found))
    }

    fn symlink(
        &mut self,
        place: &Place<'_>,
        target: &str,
        exists: bool,
        is_taken: &dyn Fn(&str) -> bool,
    ) -> Result<(), SyncError> {
        if exists && readlinkat(place.dir, place.name, Vec::new()).is_ok_and(|found| found.to_bytes() == target.as_bytes()) {
            let found = sys::metadata_at(place.dir, place.name);
            if found.is_ok_and(|found| found.kind == FileType::Symlink && found.links == 1 && found.owner == self.sync.owner) {
                return Ok(());
            }
        }
        let create = |dir: BorrowedFd<'_>, name: &str| symlinkat(target, dir, name);
        let (temporary, ()) = self.temporary(place, is_taken, create)?;
        let (uid, gid) = self.sync.owner;
        let made = match sys::metadata_at(place.dir, OsStr::new(&temporary)) {
            Ok(found) if found.owner == self.sync.owner => Ok(()),
            Ok(_) => {
                let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
                chownat(place.dir, temporary.as_str(), uid, gid, AtFlags::SYMLINK_NOFOLLOW)
            }
            Err(error) => Err(error),
        };
        let made =
            made.map_err(failed("create the link", place.parent, place.name)).and_then(|()| self.rename(place, &temporary));
        if made.is_err() {
            let _ = unlinkat(place.dir, temporary.as_str(), AtFlags::empty());
        } else {
            add(&self.sync.counters.changed, 1);
        }
        made
    }

    /// Calls `create` with a name that no entry of the release has. An existing entry with this name is removed first.
    fn temporary<T>(
        &self,
        place: &Place<'_>,
        is_taken: &dyn Fn(&str) -> bool,
        create: impl Fn(BorrowedFd<'_>, &str) -> rustix::io::Result<T>,
    ) -> Result<(String, T), SyncError> {
        loop {
            let name = format!(".larder-sync-{}", add(&self.sync.counters.temporary, 1));
            if is_taken(&name) {
                continue;
            }
            match create(place.dir, &name) {
                Ok(created) => return Ok((name, created)),
                Err(Errno::EXIST) => self.sync.remove(place.dir, place.parent, OsStr::new(&name))?,
                Err(error) => return Err(failed("create", place.parent, place.name)(error)),
            }
        }
    }

    /// Renames a complete temporary entry to its final name. A directory at the final name is removed first.
    fn rename(&self, place: &Place<'_>, temporary: &str) -> Result<(), SyncError> {
        match renameat(place.dir, temporary, place.dir, place.name) {
            Err(Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST) => {
                self.sync.remove(place.dir, place.parent, place.name)?;
                renameat(place.dir, temporary, place.dir, place.name).map_err(failed("replace", place.parent, place.name))
            }
            other => other.map_err(failed("replace", place.parent, place.name)),
        }
    }
}

/// Returns true if everything except the content can be unchanged. A file with several names could be changed through its other names.
fn fits(sync: &Sync<'_>, found: &Metadata, expected: &ExpectedFile) -> bool {
    found.kind == FileType::RegularFile
        && found.links == 1
        && found.size == expected.size
        && found.mode == expected.mode
        && found.owner == sync.owner
}
