//! A directory whose relative paths are resolved without following any link and without leaving the directory.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, RawDir, ResolveFlags, Stat},
    io::Errno,
};

use super::FileError;

/// An open directory. Its methods take relative paths with `/`, and follow no link in a path.
#[derive(Debug)]
pub struct Confined {
    fd: OwnedFd,
    path: PathBuf,
}

impl Confined {
    /// Opens the directory at `path`. Returns an error if the last part of `path` is a link.
    pub fn open(path: &Path) -> Result<Confined, FileError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| FileError::io("open the directory", path, e))?;
        Ok(Confined { fd, path: path.to_owned() })
    }

    /// Returns the path at which the directory was opened, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the full path of `relative`, for messages.
    pub fn shown(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.path.join(relative)
    }

    /// Returns a cursor, which keeps directories open for many operations in path order. Each thread needs its own cursor.
    pub fn cursor(&self) -> Cursor<'_> {
        Cursor { root: self, open: Vec::new(), exact: (OsString::new(), [0; 2]) }
    }

    /// Opens a directory below this directory. The empty path stands for this directory itself.
    pub fn open_dir(&self, relative: impl AsRef<OsStr>) -> Result<Confined, FileError> {
        let relative = relative.as_ref();
        let shown = self.shown(relative);
        let name = if relative.is_empty() { OsStr::new(".") } else { relative };
        let fd = open_beneath(self.fd.as_fd(), name, OFlags::RDONLY | OFlags::DIRECTORY)
            .map_err(|e| FileError::io("open the directory", &shown, e))?;
        Ok(Confined { fd, path: shown })
    }

    /// Returns the names in the directory, sorted by their bytes.
    pub fn names(&self) -> Result<Vec<OsString>, FileError> {
        let wrong = |e: Errno| FileError::io("list the directory", &self.path, e);
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.fd).map_err(wrong)? {
            let entry = entry.map_err(wrong)?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name.to_vec()));
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Removes all entries below the directory. Links are removed, not followed.
    pub fn clear(&self) -> Result<(), FileError> {
        // The traversal does not recurse, because a hostile tree may be deeper than the stack of a thread. Each directory is opened by
        // its path from the root, so that only one descriptor is open at a time.
        let mut pending = vec![(OsString::new(), false)];
        while let Some((relative, emptied)) = pending.pop() {
            if emptied {
                self.cursor().remove_dir(&relative)?;
                continue;
            }
            let directory = self.open_dir(&relative)?;
            if !relative.is_empty() {
                pending.push((relative.clone(), true));
            }
            for name in directory.names()? {
                let stat = rustix::fs::statat(&directory.fd, name.as_os_str(), AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|e| FileError::io("read the metadata of", directory.shown(&name), e))?;
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                    pending.push((join(&relative, &name), false));
                } else {
                    rustix::fs::unlinkat(&directory.fd, name.as_os_str(), AtFlags::empty())
                        .map_err(|e| FileError::io("remove", directory.shown(&name), e))?;
                }
            }
        }
        Ok(())
    }

    /// Returns the metadata of the directory itself.
    pub fn stat(&self) -> Result<Stat, FileError> {
        rustix::fs::fstat(&self.fd).map_err(|e| FileError::io("read the metadata of", &self.path, e))
    }

    /// Syncs the whole file system of the directory.
    pub fn sync_file_system(&self) -> Result<(), FileError> {
        rustix::fs::syncfs(&self.fd).map_err(|e| FileError::io("sync the file system of", &self.path, e))
    }
}

impl AsFd for Confined {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A position in a tree. The cursor holds the directories above the position open; see [`Confined::cursor`].
#[derive(Debug)]
pub struct Cursor<'a> {
    root: &'a Confined,
    /// The open directories, each below the previous directory. Operations in path order reuse the upper directories.
    open: Vec<(OsString, OwnedFd)>,
    /// A directory and two modes. New files in the directory got these modes exactly as requested: no umask or ACL reduces the modes, so
    /// `create` need not set them again.
    exact: (OsString, [u32; 2]),
}

impl Cursor<'_> {
    /// The maximum number of directories that stay open.
    const MAX_OPEN: usize = 12;

    /// Returns the directory at `path`, opened from the nearest open directory above it.
    fn directory(&mut self, path: &OsStr) -> rustix::io::Result<BorrowedFd<'_>> {
        let wanted = path.as_bytes();
        let below = |above: &OsStr| {
            let rest = wanted.strip_prefix(above.as_bytes())?;
            if rest.is_empty() { Some(rest) } else { rest.strip_prefix(b"/") }
        };
        while self.open.last().is_some_and(|(above, _)| below(above).is_none()) {
            self.open.pop();
        }
        let (from, rest) = match self.open.last() {
            Some((above, fd)) => (fd.as_fd(), below(above).unwrap_or(wanted)),
            None => (self.root.fd.as_fd(), wanted),
        };
        if !rest.is_empty() {
            let fd = open_beneath(from, OsStr::from_bytes(rest), OFlags::PATH | OFlags::DIRECTORY)?;
            self.keep(path, fd);
        }
        Ok(self.open.last().map_or(self.root.fd.as_fd(), |(_, fd)| fd.as_fd()))
    }

    /// Keeps the directory at `path` open. The caller has opened the directory from the last directory in `open`, or from the root.
    fn keep(&mut self, path: &OsStr, fd: OwnedFd) {
        if self.open.len() == Self::MAX_OPEN {
            self.open.remove(0);
        }
        self.open.push((path.to_owned(), fd));
    }

    /// Returns the error of an operation on a file that this cursor has opened.
    pub fn failed(&self, doing: &'static str, relative: impl AsRef<Path>, source: std::io::Error) -> FileError {
        FileError::io(doing, self.root.shown(relative), source)
    }

    /// Calls `act` with the parent directory of `relative` and the last part of `relative`.
    fn at<T>(
        &mut self,
        doing: &'static str,
        relative: &OsStr,
        act: impl FnOnce(BorrowedFd<'_>, &OsStr) -> rustix::io::Result<T>,
    ) -> Result<T, FileError> {
        let root = self.root;
        let wrong = |e: Errno| FileError::io(doing, root.shown(relative), e);
        let bytes = relative.as_bytes();
        let (parent, name) = match bytes.iter().rposition(|c| *c == b'/') {
            Some(slash) => bytes.split_at_checked(slash).unwrap_or((bytes, b"")),
            None => (&b""[..], bytes),
        };
        let name = OsStr::from_bytes(name.strip_prefix(b"/").unwrap_or(name));
        if name.is_empty() || name == "." || name == ".." {
            return Err(wrong(Errno::INVAL));
        }
        if parent.is_empty() {
            return act(root.fd.as_fd(), name).map_err(wrong);
        }
        let directory = self.directory(OsStr::from_bytes(parent)).map_err(wrong)?;
        act(directory, name).map_err(wrong)
    }

    /// Returns the number of names in the directory at `relative`; the empty path stands for the root. The directory stays open for the
    /// next operation.
    pub fn count_names(&mut self, relative: impl AsRef<OsStr>) -> Result<usize, FileError> {
        let relative = relative.as_ref();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let wrong = |e: Errno| FileError::io("list the directory", self.root.shown(relative), e);
        let fd = if relative.is_empty() {
            rustix::fs::openat(&self.root.fd, ".", flags, Mode::empty()).map_err(wrong)?
        } else {
            self.at("open the directory", relative, |dir, name| rustix::fs::openat(dir, name, flags, Mode::empty()))?
        };
        let mut buffer = Vec::with_capacity(16 << 10);
        let mut entries = RawDir::new(&fd, buffer.spare_capacity_mut());
        let mut count = 0_usize;
        let wrong = |e: Errno| FileError::io("list the directory", self.root.shown(relative), e);
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(wrong)?;
            count = count.saturating_add(usize::from(!matches!(entry.file_name().to_bytes(), b"." | b"..")));
        }
        if !relative.is_empty() {
            // If the parent is the root, `at` has closed no directory, so directories that are not above `relative` are closed here.
            let is_above = |open: &OsStr| {
                let rest = relative.as_bytes().strip_prefix(open.as_bytes());
                rest.is_some_and(|rest| rest.starts_with(b"/"))
            };
            while self.open.last().is_some_and(|(open, _)| !is_above(open)) {
                self.open.pop();
            }
            self.keep(relative, fd);
        }
        Ok(count)
    }

    /// Opens a file for reading. The call does not block if the file is a FIFO or a device, so the caller must check the kind of the
    /// file.
    pub fn open(&mut self, relative: impl AsRef<OsStr>) -> Result<File, FileError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        self.at("open", relative.as_ref(), |dir, name| rustix::fs::openat(dir, name, flags, Mode::empty())).map(File::from)
    }

    /// Creates a file with exactly the mode `mode`, independent of the umask. Returns an error if the path exists.
    pub fn create(&mut self, relative: impl AsRef<OsStr>, mode: u32) -> Result<File, FileError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let relative = relative.as_ref();
        let file = self.at("create", relative, |dir, name| {
            rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(mode)).map(File::from)
        })?;
        let bytes = relative.as_bytes();
        let parent = bytes.iter().rposition(|c| *c == b'/').and_then(|slash| bytes.get(..slash)).unwrap_or_default();
        if self.exact.0.as_bytes() == parent && self.exact.1.contains(&mode) {
            return Ok(file);
        }
        let wrong = |e: Errno| FileError::io("create", self.root.shown(relative), e);
        if rustix::fs::fstat(&file).map_err(wrong)?.st_mode & 0o7777 != mode {
            rustix::fs::fchmod(&file, Mode::from_raw_mode(mode)).map_err(wrong)?;
            return Ok(file);
        }
        match &mut self.exact {
            (seen, [last, before]) if seen.as_bytes() == parent => (*last, *before) = (mode, *last),
            exact => *exact = (OsStr::from_bytes(parent).to_owned(), [mode; 2]),
        }
        Ok(file)
    }

    /// Creates a directory with exactly the mode `mode`. Returns an error if the path exists.
    pub fn create_dir(&mut self, relative: impl AsRef<OsStr>, mode: u32) -> Result<(), FileError> {
        self.at("create the directory", relative.as_ref(), |dir, name| {
            rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(mode))?;
            rustix::fs::chmodat(dir, name, Mode::from_raw_mode(mode), AtFlags::empty())
        })
    }

    /// Creates a symbolic link. Returns an error if the path exists.
    pub fn symlink(&mut self, target: &str, relative: impl AsRef<OsStr>) -> Result<(), FileError> {
        self.at("create the link", relative.as_ref(), |dir, name| rustix::fs::symlinkat(target, dir, name))
    }

    /// Returns the metadata of the entry at a path. Does not follow links.
    pub fn stat(&mut self, relative: impl AsRef<OsStr>) -> Result<Stat, FileError> {
        self.at("read the metadata of", relative.as_ref(), |dir, name| rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW))
    }

    /// Returns the target of a symbolic link.
    pub fn read_link(&mut self, relative: impl AsRef<OsStr>) -> Result<OsString, FileError> {
        let target = self.at("read the link", relative.as_ref(), |dir, name| rustix::fs::readlinkat(dir, name, Vec::new()))?;
        Ok(OsString::from_vec(target.into_bytes()))
    }

    /// Creates a hard link at `relative` to the file at `old` in the tree of `other`.
    pub fn hard_link(
        &mut self,
        other: &mut Cursor<'_>,
        old: impl AsRef<OsStr>,
        relative: impl AsRef<OsStr>,
    ) -> Result<(), FileError> {
        self.at("link", relative.as_ref(), |dir, name| {
            let linked = other.at("link", old.as_ref(), |from, old| rustix::fs::linkat(from, old, dir, name, AtFlags::empty()));
            linked.map_err(|e| match e {
                FileError::Io { source, .. } => source.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error),
                FileError::TooLarge { .. } | FileError::NotRegular { .. } => Errno::IO,
            })
        })
    }

    /// Removes a file, link or other entry that is not a directory.
    pub fn remove(&mut self, relative: impl AsRef<OsStr>) -> Result<(), FileError> {
        self.at("remove", relative.as_ref(), |dir, name| rustix::fs::unlinkat(dir, name, AtFlags::empty()))
    }

    /// Removes an empty directory.
    pub fn remove_dir(&mut self, relative: impl AsRef<OsStr>) -> Result<(), FileError> {
        let relative = relative.as_ref();
        // A new directory may get this path, so the removed directory and the directories below it must not stay open.
        let goes = |open: &OsStr| open.as_bytes().starts_with(relative.as_bytes());
        self.open.truncate(self.open.iter().position(|(open, _)| goes(open)).unwrap_or(self.open.len()));
        self.at("remove the directory", relative, |dir, name| rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR))
    }
}

pub(super) fn join(parent: &OsStr, name: &OsStr) -> OsString {
    let mut path = parent.to_owned();
    if !path.is_empty() {
        path.push("/");
    }
    path.push(name);
    path
}

/// Opens a path with `openat2`. If the kernel lacks or forbids this call, or if a rename disturbs the call, opens the path part by part.
fn open_beneath(root: BorrowedFd<'_>, relative: &OsStr, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(root, relative, flags, Mode::empty(), resolve) {
        // EPERM means that the call is newer than the seccomp filter. EAGAIN means that a rename raced with the call. Opening part by part
        // tolerates such renames.
        Err(Errno::NOSYS | Errno::PERM | Errno::AGAIN) => by_parts(root, relative, flags),
        other => other,
    }
}

fn by_parts(root: BorrowedFd<'_>, relative: &OsStr, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let parts: Vec<&[u8]> = relative.as_bytes().split(|c| *c == b'/').collect();
    let (last, parents) = parts.split_last().ok_or(Errno::INVAL)?;
    if parts.iter().any(|part| part.is_empty() || *part == b"..") {
        return Err(Errno::INVAL);
    }
    let through = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at: Option<OwnedFd> = None;
    for part in parents {
        let from = at.as_ref().map_or(root, AsFd::as_fd);
        at = Some(rustix::fs::openat(from, OsStr::from_bytes(part), through, Mode::empty())?);
    }
    rustix::fs::openat(at.as_ref().map_or(root, AsFd::as_fd), OsStr::from_bytes(last), flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn links_are_not_followed_and_nothing_outside_is_reached() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("secret"), "s").unwrap();
        let inner = dir.path().join("tree");
        std::fs::create_dir_all(inner.join("a/b")).unwrap();
        std::fs::write(inner.join("a/b/f"), "x").unwrap();
        std::os::unix::fs::symlink("..", inner.join("up")).unwrap();
        std::os::unix::fs::symlink("../secret", inner.join("out")).unwrap();
        let tree = Confined::open(&inner).unwrap();
        let mut cursor = tree.cursor();
        assert!(cursor.open("a/b/f").is_ok());
        for bad in ["../secret", "up/secret", "out", "a/../../secret", "/etc/passwd", "", "..", "a/b/", "a/b/.."] {
            assert!(cursor.open(bad).is_err(), "{bad}");
        }
        assert!(cursor.create("up/new", 0o644).is_err() && cursor.create("out", 0o644).is_err());
        assert!(tree.open_dir("up").is_err() && tree.open_dir("a/b").is_ok());
        for bad in ["up", "..", "a/../..", "a//b"] {
            assert!(by_parts(tree.as_fd(), OsStr::new(bad), OFlags::RDONLY | OFlags::NOFOLLOW).is_err(), "{bad}");
        }
        assert!(by_parts(tree.as_fd(), OsStr::new("a/b"), OFlags::RDONLY).is_ok());
    }

    #[test]
    fn cursor_reopens_directories_and_closes_removed_directories() {
        let directory = tempfile::tempdir().unwrap();
        let tree = Confined::open(directory.path()).unwrap();
        let mut cursor = tree.cursor();
        let deep: Vec<String> = (1..=30).map(|depth| vec!["d"; depth].join("/")).collect();
        for path in &deep {
            cursor.create_dir(path, 0o755).unwrap();
            cursor.create(format!("{path}/file"), 0o644).unwrap();
        }
        // These operations have different depths. The name of one directory is the beginning of the name of a second directory.
        cursor.create_dir("dd", 0o755).unwrap();
        cursor.create("d/d/d/other", 0o644).unwrap();
        cursor.create("dd/file", 0o644).unwrap();
        cursor.create("d/other", 0o644).unwrap();
        let counts = ["", "d", "d/d", "d/d/d", "dd"].map(|path| cursor.count_names(path).unwrap());
        assert_eq!(counts, [2, 3, 2, 3, 1]);
        cursor.stat("dd/file").unwrap();
        // A counted directory stays open. The cursor does not mistake it for the directory of the next operation.
        cursor.stat("d/d/d/other").unwrap();
        for _ in 0..2 {
            assert_eq!(cursor.count_names("dd").unwrap(), 1);
            cursor.stat("dd/file").unwrap();
            cursor.stat("d/other").unwrap();
        }
        cursor.remove("dd/file").unwrap();
        cursor.remove_dir("dd").unwrap();
        cursor.create_dir("dd", 0o755).unwrap();
        cursor.create("dd/again", 0o644).unwrap();
        assert!(directory.path().join("dd/again").is_file());
    }

    #[test]
    fn modes_are_exact_and_clearing_keeps_targets_of_links() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("kept"), "s").unwrap();
        let inner = dir.path().join("tree");
        std::fs::create_dir(&inner).unwrap();
        let tree = Confined::open(&inner).unwrap();
        let mut cursor = tree.cursor();
        cursor.create_dir("d", 0o755).unwrap();
        cursor.create("d/f", 0o666).unwrap();
        cursor.symlink("../..", "d/l").unwrap();
        assert_eq!(std::fs::metadata(inner.join("d/f")).unwrap().permissions().mode() & 0o7777, 0o666);
        tree.clear().unwrap();
        assert_eq!(tree.names().unwrap().len(), 0);
        assert!(dir.path().join("kept").exists());
    }
}
