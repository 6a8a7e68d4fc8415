//! Operations below one directory whose tree other users may rearrange.
//!
//! Every path goes through [`RootDirectory::open`], which follows no symlink and does not leave the directory. A user that rearranges its
//! own directories can therefore not make this process access files outside of the directory.

use std::{
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::{MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, CWD, FlockOperation, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, fchmod, flock, fstat, mkdirat, openat,
        openat2, renameat, unlinkat,
    },
    io::Errno,
};

use super::user::UnixUser;

/// A directory of this process. Its methods take paths that are relative to the directory.
#[derive(Debug)]
pub struct RootDirectory {
    path: PathBuf,
    descriptor: OwnedFd,
    own: UnixUser,
    privileged: bool,
}

/// The directories of a scratch layer.
#[derive(Debug)]
pub struct ScratchDirectories {
    /// The directory of changed files.
    pub upper: OwnedFd,
    /// The `workdir` of the overlay, which only the kernel uses.
    pub work: OwnedFd,
}

/// The result of [`RootDirectory::move_into`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moved {
    Done,
    /// The directory does not exist.
    Missing,
    /// The new name exists.
    NameTaken,
}

/// The reason why a directory cannot be the root of other users' directories.
#[derive(Debug, thiserror::Error)]
pub enum UnsafeDirectory {
    /// The owner of the directory could rename the directories in it.
    #[error("its owner is user {found} (expected user {expected})")]
    Owner { found: u32, expected: u32 },
    /// Other users could rename the directories in it.
    #[error("other users can write to it (mode {mode:04o})")]
    Writable { mode: u32 },
    /// The owners of the directories in it could not reach these directories.
    #[error("other users cannot enter it (mode {mode:04o})")]
    Closed { mode: u32 },
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl RootDirectory {
    /// Opens the directory at `path`, and creates the directory if it does not exist. If `privileged` is true, this process can give
    /// directories to other users. If not, all owners must be the user of this process.
    pub fn open_root(path: &Path, privileged: bool) -> io::Result<RootDirectory> {
        fs::create_dir_all(path)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let descriptor = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::empty())?;
        Ok(RootDirectory { path: path.to_owned(), descriptor, own: UnixUser::current(), privileged })
    }

    /// Returns the path of the directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns true if this process gives directories to other users.
    pub fn is_privileged(&self) -> bool {
        self.privileged
    }

    /// Returns an error if another user could rename the directories in this directory, or if their owners could not reach them.
    pub fn check(&self) -> Result<(), UnsafeDirectory> {
        let found = fstat(&self.descriptor).map_err(io::Error::from)?;
        let mode = found.st_mode & 0o7777;
        if found.st_uid != self.own.uid {
            return Err(UnsafeDirectory::Owner { found: found.st_uid, expected: self.own.uid });
        }
        if mode & 0o022 != 0 {
            return Err(UnsafeDirectory::Writable { mode });
        }
        if self.privileged && mode & 0o005 != 0o005 {
            return Err(UnsafeDirectory::Closed { mode });
        }
        Ok(())
    }

    /// Opens a directory without following any symlink.
    pub fn open(&self, path: impl AsRef<Path>) -> io::Result<OwnedFd> {
        beneath(&self.descriptor, path.as_ref())
    }

    /// Opens the parent of `path`. Also returns the last name of `path`.
    fn parent<'path>(&self, path: &'path Path) -> io::Result<(OwnedFd, &'path Path)> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::INVAL.into()) };
        let parent = if parent.as_os_str().is_empty() { self.descriptor.try_clone()? } else { self.open(parent)? };
        Ok((parent, Path::new(name)))
    }

    /// Creates a directory with its owner and mode. Also sets the owner and the mode of an existing directory. Returns an error if the
    /// existing directory belongs neither to this process's user nor to `owner`. The parent must exist.
    pub fn make(&self, path: impl AsRef<Path>, owner: UnixUser, mode: u32) -> io::Result<()> {
        let path = path.as_ref();
        let failed = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", self.path.join(path).display()));
        self.try_make(path, owner, mode).map_err(failed)
    }

    fn try_make(&self, path: &Path, owner: UnixUser, mode: u32) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        match mkdirat(&parent, name, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let directory = beneath(&parent, name)?;
        let found = fstat(&directory)?;
        if found.st_uid == owner.uid && found.st_mode & 0o7777 == mode {
            return Ok(());
        }
        // This process owns a directory that was just created, or that did not get its owner before a power cut.
        if found.st_uid != self.own.uid && found.st_uid != owner.uid {
            return Err(io::Error::other(format!("its owner is user {} (expected user {})", found.st_uid, owner.uid)));
        }
        if self.privileged {
            chownat(&directory, "", Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)), AtFlags::EMPTY_PATH)?;
        }
        Ok(fchmod(&directory, Mode::from_raw_mode(mode))?)
    }

    /// Creates the directories of a scratch layer: `upper` for changed files, and `work` for the kernel.
    pub fn make_scratch(&self, path: &Path, user: UnixUser) -> io::Result<()> {
        self.make(path, self.own, 0o755)?;
        self.make(path.join("upper"), user, 0o755)?;
        self.make(path.join("work"), self.own, 0o700)
    }

    /// Opens the directories of a scratch layer. The mount uses the descriptors, so a later rename cannot redirect the mount.
    pub fn open_scratch(&self, path: &Path, worker: UnixUser) -> io::Result<ScratchDirectories> {
        let scratch = self.open(path)?;
        let upper = beneath(&scratch, Path::new("upper"))?;
        let found = fstat(&upper)?;
        if found.st_uid != worker.uid {
            let text = format!("the owner of {}/upper is user {} (expected user {})", path.display(), found.st_uid, worker.uid);
            return Err(io::Error::other(text));
        }
        Ok(ScratchDirectories { upper, work: beneath(&scratch, Path::new("work"))? })
    }

    /// Removes the files of the kernel in `work`, then the empty directories of a scratch layer.
    pub fn remove_scratch(&self, path: &Path) {
        if let Ok(scratch) = self.open(path) {
            if let Ok(work) = beneath(&scratch, Path::new("work")) {
                let _ = self.clear_own(&work);
            }
            let _ = unlinkat(&scratch, "work", AtFlags::REMOVEDIR);
            let _ = unlinkat(&scratch, "upper", AtFlags::REMOVEDIR);
        }
    }

    /// Removes an empty directory.
    pub fn remove_empty(&self, path: &Path) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        Ok(unlinkat(parent, name, AtFlags::REMOVEDIR)?)
    }

    /// Empties a directory. Returns an error if a user other than this process's user can access the directory.
    pub fn clear_own(&self, directory: &OwnedFd) -> io::Result<()> {
        let found = fstat(directory)?;
        if found.st_uid != self.own.uid || found.st_mode & 0o077 != 0 {
            return Err(io::Error::other("another user can access the directory to be emptied"));
        }
        for entry in fs::read_dir(Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()))? {
            let path = entry?.path();
            // The kernel creates directories with mode 000, which only root can enter.
            let _ = fs::set_permissions(&path, fs::Permissions::from_mode(0o700));
            if path.is_dir() { fs::remove_dir_all(&path)? } else { fs::remove_file(&path)? }
        }
        Ok(())
    }

    /// Moves a directory to `name` in the directory `into` by one rename.
    pub fn move_into(&self, path: &Path, into: impl AsRef<Path>, name: &str) -> io::Result<Moved> {
        self.move_to(path, &into.as_ref().join(name))
    }

    /// Moves the directory `path` to the path `to`, like [`RootDirectory::move_into`].
    fn move_to(&self, path: &Path, to: &Path) -> io::Result<Moved> {
        let (parent, old_name) = match self.parent(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Moved::Missing),
            other => other?,
        };
        let (into, name) = self.parent(to)?;
        match mkdirat(&into, name, Mode::from_raw_mode(0o700)) {
            Err(Errno::EXIST) => return Ok(Moved::NameTaken),
            other => other?,
        }
        // The rename replaces the empty directory that this process has just created, and can therefore destroy no other directory.
        match renameat(&parent, old_name, &into, name) {
            Ok(()) => Ok(Moved::Done),
            Err(error) => {
                unlinkat(&into, name, AtFlags::REMOVEDIR)?;
                if error == Errno::NOENT { Ok(Moved::Missing) } else { Err(error.into()) }
            }
        }
    }

    /// Creates the file `path` and locks the file until the returned descriptor is closed. Returns `None` if another process has the
    /// lock.
    pub fn lock(&self, path: &Path) -> io::Result<Option<OwnedFd>> {
        let (parent, name) = self.parent(path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = openat(&parent, name, flags, Mode::from_raw_mode(0o600))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Moves the directory `from` to `to`. Returns an error if `from` does not exist, or if `to` exists.
    pub fn relocate(&self, from: &Path, to: &Path) -> io::Result<()> {
        let error = |kind, path: &Path, why| Err(io::Error::new(kind, format!("{} {why}", path.display())));
        let failed = |cause: io::Error| {
            io::Error::new(cause.kind(), format!("cannot move {} to {}: {cause}", from.display(), to.display()))
        };
        match self.move_to(from, to).map_err(failed)? {
            Moved::Done => Ok(()),
            Moved::Missing => error(io::ErrorKind::NotFound, from, "does not exist"),
            Moved::NameTaken => error(io::ErrorKind::AlreadyExists, to, "exists already"),
        }
    }
}

/// Resolves the symlinks of `path`, and returns the directories above `path` in which a user other than root can rename the entries. Each
/// directory is returned with the user number of its owner.
pub fn replaceable_ancestors(path: &Path) -> io::Result<Vec<(PathBuf, u32)>> {
    let mut found = Vec::new();
    for above in fs::canonicalize(path)?.ancestors().skip(1) {
        let metadata = fs::metadata(above)?;
        let sticky = metadata.mode() & 0o1000 != 0;
        if metadata.uid() != 0 || (metadata.mode() & 0o022 != 0 && !sticky) {
            found.push((above.to_owned(), metadata.uid()));
        }
    }
    Ok(found)
}

/// Opens a directory below `parent` without following any symlink.
pub(crate) fn beneath(parent: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(openat2(parent, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), how)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> (tempfile::TempDir, RootDirectory) {
        let directory = tempfile::tempdir().unwrap();
        let root = RootDirectory::open_root(directory.path(), false).unwrap();
        (directory, root)
    }

    #[test]
    fn symlink_in_a_path_is_not_followed() {
        let (directory, root) = root();
        let outside = tempfile::tempdir().unwrap();
        fs::create_dir(outside.path().join("inner")).unwrap();
        std::os::unix::fs::symlink(outside.path(), directory.path().join("link")).unwrap();
        let own = UnixUser::current();
        assert!(root.open("link").is_err() && root.open("link/inner").is_err() && root.open("../x").is_err());
        assert!(root.make("link/made", own, 0o755).is_err());
        assert!(root.move_into(Path::new("link/inner"), ".", "moved").is_err());
        assert!(root.relocate(Path::new("link/inner"), Path::new("link/renamed")).is_err());
        assert!(root.remove_empty(Path::new("link/inner")).is_err());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    }

    #[test]
    fn directory_is_moved_only_to_a_free_name() {
        let (directory, root) = root();
        let own = UnixUser::current();
        for path in ["trash", "a"] {
            root.make(path, own, 0o755).unwrap();
        }
        assert_eq!(root.move_into(Path::new("a"), "trash", "1").unwrap(), Moved::Done);
        assert_eq!(root.move_into(Path::new("a"), "trash", "1").unwrap(), Moved::NameTaken);
        assert_eq!(root.move_into(Path::new("a"), "trash", "2").unwrap(), Moved::Missing);
        assert_eq!(root.move_into(Path::new("missing/a"), "trash", "2").unwrap(), Moved::Missing);
        assert_eq!(fs::read_dir(directory.path().join("trash")).unwrap().count(), 1, "a failed move leaves nothing");
        root.remove_empty(Path::new("trash/1")).unwrap();
    }

    #[test]
    fn directory_that_others_can_write_is_refused() {
        let (directory, root) = root();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        assert!(root.check().is_ok());
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o775)).unwrap();
        assert!(matches!(root.check(), Err(UnsafeDirectory::Writable { mode: 0o775 })));
    }
}
