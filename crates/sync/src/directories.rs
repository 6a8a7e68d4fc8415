//! The first part of a sync: every directory of the release exists, has the right mode and owner, and contains no unexpected name.

use std::{
    ffi::{OsStr, OsString},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Path, PathBuf},
};

use larder_archive::{Confined, FileError};
use larder_points::remove_tree;
use rustix::{
    fs::{AtFlags, FileType, Gid, Mode, Uid, chmodat, fchmod, fchown, fremovexattr, mkdirat, unlinkat},
    io::Errno,
};

use crate::{
    Sync, SyncError, add,
    plan::{ExpectedKind, PlannedDirectory, PlannedItem},
    sys,
};

/// Returns a function that converts an error of an operation on `name` in the directory at `parent`.
pub fn failed(doing: &'static str, parent: &str, name: &OsStr) -> impl FnOnce(Errno) -> SyncError {
    let path = Path::new(parent).join(name);
    move |source| SyncError::Io { doing, path, source: source.into() }
}

impl Sync<'_> {
    /// Syncs the names in one directory, and creates the missing directories in it. Returns the files and symlinks that the second part of
    /// the sync compares.
    pub fn directory(&self, planned: &PlannedDirectory<'_>) -> Result<Option<Vec<PlannedItem>>, SyncError> {
        let Some(opened) = self.open(planned)? else { return Ok(None) };
        let dir = opened.as_fd();
        if !planned.path.is_empty() {
            self.restore_metadata(dir, planned.path)?;
        }
        let mut kinds: Vec<Option<FileType>> = vec![None; planned.children.len()];
        let mut extra: Vec<OsString> = Vec::new();
        let listed = sys::each_name(dir, |name, kind| match planned.find(name) {
            Some((at, _)) => kinds.iter_mut().skip(at).take(1).for_each(|seen| *seen = Some(kind)),
            None => extra.push(OsString::from_vec(name.to_vec())),
        });
        listed.map_err(failed("list", planned.path, OsStr::new("")))?;
        for name in extra {
            self.remove(dir, planned.path, &name)?;
            add(&self.counters.deleted, 1);
        }
        let mut items = Vec::with_capacity(planned.children.len());
        for (at, (child, seen)) in planned.children.iter().zip(kinds).enumerate() {
            match child.kind {
                ExpectedKind::Data => {}
                ExpectedKind::File(_) | ExpectedKind::Symlink(_) => {
                    items.push(PlannedItem { directory: planned.number, child: at, exists: seen.is_some() });
                }
                ExpectedKind::Directory { required } => {
                    self.subdirectory(dir, planned.path, OsStr::new(child.name), seen, required)?
                }
            }
        }
        Ok(Some(items))
    }

    /// Replaces a different entry at the name of a directory, and creates the directory if it is missing.
    fn subdirectory(
        &self,
        dir: BorrowedFd<'_>,
        parent: &str,
        name: &OsStr,
        seen: Option<FileType>,
        required: bool,
    ) -> Result<(), SyncError> {
        let kind = match seen {
            Some(FileType::Unknown) => match sys::metadata_at(dir, name) {
                Err(Errno::NOENT) => None,
                found => Some(found.map_err(failed("read the metadata of", parent, name))?.kind),
            },
            known => known,
        };
        match kind {
            Some(FileType::Directory) => return Ok(()),
            Some(_) => self.remove(dir, parent, name)?,
            None => {}
        }
        if required {
            mkdirat(dir, name, Mode::RWXU).map_err(failed("create the directory", parent, name))?;
            add(&self.counters.changed, 1);
        }
        Ok(())
    }

    /// Removes an entry with everything below it.
    pub fn remove(&self, dir: BorrowedFd<'_>, parent: &str, name: &OsStr) -> Result<(), SyncError> {
        let found = match unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(_) => sys::metadata_at(dir, name),
        };
        if found.is_ok_and(|found| found.is_mount) {
            return Err(SyncError::Mounted { path: Path::new(parent).join(name) });
        }
        remove_tree(dir, name).map_err(failed("delete", parent, name))
    }

    /// Opens a directory of the target. Returns `None` if a directory that is not required does not exist.
    fn open(&self, planned: &PlannedDirectory<'_>) -> Result<Option<OwnedFd>, SyncError> {
        let opened = match self.target.open_dir(planned.path) {
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied && !planned.path.is_empty() => {
                self.unlock(planned.path)?;
                self.target.open_dir(planned.path)
            }
            other => other,
        };
        match opened {
            Ok(opened) => Ok(Some(self.checked(&opened, planned.path)?)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !planned.required => Ok(None),
            Err(error) => Err(SyncError::File(error)),
        }
    }

    fn checked(&self, opened: &Confined, path: &str) -> Result<OwnedFd, SyncError> {
        let wrong = |source: Errno| SyncError::File(FileError::io("read the metadata of", opened.path(), source));
        if !path.is_empty() && sys::metadata_of(opened).map_err(wrong)?.is_mount {
            return Err(SyncError::Mounted { path: PathBuf::from(path) });
        }
        opened.as_fd().try_clone_to_owned().map_err(|source| SyncError::File(FileError::io("open", opened.path(), source)))
    }

    /// Gives the owner all permissions for a directory. The parent directories have their final modes already.
    fn unlock(&self, path: &str) -> Result<(), SyncError> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let parent_dir = self.target.open_dir(parent).map_err(SyncError::File)?;
        // If a symlink replaces the directory meanwhile, the call follows the symlink, but can only change files of the same user. As
        // root, no directory needs this call.
        chmodat(&parent_dir, name, Mode::RWXU, AtFlags::empty()).map_err(failed("change the mode of", parent, OsStr::new(name)))
    }

    /// Sets the mode and the owner of a directory, and removes its attributes and ACLs. New files would inherit a default ACL.
    fn restore_metadata(&self, dir: BorrowedFd<'_>, path: &str) -> Result<(), SyncError> {
        let wrong = |doing| failed(doing, path, OsStr::new(""));
        let found = sys::metadata_of(dir).map_err(wrong("read the metadata of"))?;
        for name in sys::own_attributes(dir).map_err(wrong("list the attributes of"))? {
            let name = OsStr::from_bytes(name.strip_suffix(b"\0").unwrap_or(&name));
            fremovexattr(dir, name).map_err(wrong("remove an attribute of"))?;
        }
        if found.owner != self.owner {
            let (uid, gid) = self.owner;
            let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            fchown(dir, owner.0, owner.1).map_err(wrong("change the owner of"))?;
        }
        // The removal of an ACL and the change of the owner can change the mode.
        let mode = self.policy.directory_mode;
        if sys::metadata_of(dir).map_err(wrong("read the metadata of"))?.mode != mode {
            fchmod(dir, Mode::from_raw_mode(mode)).map_err(wrong("change the mode of"))?;
        }
        Ok(())
    }
}
