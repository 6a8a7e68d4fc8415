//! Counts the allocated space of the files below a directory. Each inode counts once.

use std::{
    collections::HashSet,
    ffi::CString,
    io,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, StatxFlags, openat, statat, statx},
    io::Errno,
};
use serde::{Deserialize, Serialize};

/// The bytes of a unit of `st_blocks` (stat(3type)).
const BLOCK: u64 = 512;

/// The maximum number of nested directories that are counted. Each level uses one descriptor.
const MAX_DEPTH: usize = 300;

/// The maximum number of files that one walk counts.
const MAX_ENTRIES: u64 = 50_000_000;

/// The maximum number of files with several names that one walk remembers, which bounds its memory.
const MAX_LINKED: usize = 2_000_000;

/// The space of files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// The allocated bytes. A file with several names (hard links) counts once.
    pub bytes: u64,
    /// The number of files, directories and links. A file with several names counts once.
    pub files: u64,
    /// The bytes that further names of counted files would use if each name were a file of its own.
    pub shared: u64,
    /// The number of directories that could not be counted: closed directories, very deep directories, and directories beyond the
    /// limits.
    pub uncounted: u64,
}

impl Measured {
    /// Adds other files.
    pub fn add(&mut self, other: Measured) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.files = self.files.saturating_add(other.files);
        self.shared = self.shared.saturating_add(other.shared);
        self.uncounted = self.uncounted.saturating_add(other.uncounted);
    }
}

/// A walk over several directories. An inode that several of them contain counts for the first directory.
#[derive(Debug, Default)]
pub(super) struct SpaceWalk {
    linked: HashSet<(u64, u64)>,
    entries: u64,
}

impl SpaceWalk {
    /// Counts the files below `top`, and `top` itself. A missing `top` counts as empty. The walk follows no symlink, and enters no other
    /// mount. `leave_out` returns true for the path of a directory or file, relative to `top`, that is not counted.
    pub fn count(&mut self, top: &Path, leave_out: &mut dyn FnMut(&Path) -> bool) -> io::Result<Measured> {
        let mut measured = Measured::default();
        let stat = match statat(CWD, top, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(measured),
            Err(error) => return Err(error.into()),
        };
        self.add(&stat, &mut measured);
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            match open(CWD, top) {
                Ok(directory) => {
                    let mount = mount_of(&directory);
                    self.enter(directory, mount, leave_out, &mut measured);
                }
                Err(_) => measured.uncounted += 1,
            }
        }
        Ok(measured)
    }

    fn enter(&mut self, top: Dir, mount: Option<u64>, leave_out: &mut dyn FnMut(&Path) -> bool, measured: &mut Measured) {
        let mut path = std::path::PathBuf::new();
        let mut open_directories = vec![top];
        while let Some(directory) = open_directories.last_mut() {
            let name = match directory.read() {
                Some(Ok(entry)) if entry.file_name() == c"." || entry.file_name() == c".." => continue,
                Some(Ok(entry)) => entry.file_name().to_owned(),
                Some(Err(_)) => {
                    measured.uncounted += 1;
                    open_directories.pop();
                    path.pop();
                    continue;
                }
                None => {
                    open_directories.pop();
                    path.pop();
                    continue;
                }
            };
            let depth = open_directories.len();
            let Some(directory) = open_directories.last_mut() else { return };
            let below = self.entry(directory, &name, &mut path, depth, mount, leave_out, measured);
            open_directories.extend(below);
        }
    }

    /// Counts one entry. Returns the open directory if the entry is a directory to enter; `path` then ends in its name.
    #[allow(clippy::too_many_arguments)]
    fn entry(
        &mut self,
        directory: &Dir,
        name: &CString,
        path: &mut std::path::PathBuf,
        depth: usize,
        mount: Option<u64>,
        leave_out: &mut dyn FnMut(&Path) -> bool,
        measured: &mut Measured,
    ) -> Option<Dir> {
        let parent = directory.fd().ok()?;
        // A file may be removed at any moment.
        let stat = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        path.push(std::ffi::OsStr::new(std::str::from_utf8(name.to_bytes()).unwrap_or("\u{fffd}")));
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if leave_out(path) {
            path.pop();
            return None;
        }
        if !is_directory {
            self.add(&stat, measured);
            path.pop();
            return None;
        }
        let opened = match (depth < MAX_DEPTH && self.entries < MAX_ENTRIES).then(|| open(parent, name)) {
            Some(Ok(opened)) if mount_of(&opened) == mount => Some(opened),
            // The files of another mount use the space of another file system, or are counted elsewhere.
            Some(Ok(_)) => {
                path.pop();
                return None;
            }
            Some(Err(_)) | None => {
                measured.uncounted += 1;
                None
            }
        };
        self.add(&stat, measured);
        if opened.is_none() {
            path.pop();
        }
        opened
    }

    fn add(&mut self, stat: &Stat, measured: &mut Measured) {
        self.entries = self.entries.saturating_add(1);
        let bytes = u64::try_from(stat.st_blocks).unwrap_or_default().saturating_mul(BLOCK);
        let several = stat.st_nlink > 1 && FileType::from_raw_mode(stat.st_mode) != FileType::Directory;
        if several {
            let key = (stat.st_dev, stat.st_ino);
            if self.linked.contains(&key) {
                measured.shared = measured.shared.saturating_add(bytes);
                return;
            }
            if self.linked.len() < MAX_LINKED {
                self.linked.insert(key);
            } else {
                measured.uncounted += 1;
            }
        }
        measured.bytes = measured.bytes.saturating_add(bytes);
        measured.files = measured.files.saturating_add(1);
    }
}

fn open(parent: impl AsFd, name: impl rustix::path::Arg) -> Result<Dir, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Dir::new(openat(parent, name, flags, Mode::empty())?)
}

/// Returns the number of the mount that a directory belongs to; `None` if the kernel does not say.
fn mount_of(directory: &Dir) -> Option<u64> {
    let at: BorrowedFd<'_> = directory.fd().ok()?;
    let found = statx(at, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).ok()?;
    (found.stx_mask & StatxFlags::MNT_ID.bits() != 0).then_some(found.stx_mnt_id)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt, process::Command};

    use super::*;

    fn all(_: &Path) -> bool {
        false
    }

    fn du(path: &Path) -> u64 {
        let output = Command::new("du").args(["-s", "-B1", "--"]).arg(path).output().unwrap();
        String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().parse().unwrap()
    }

    #[test]
    fn sparse_and_linked_files_count_like_du() {
        let directory = tempfile::tempdir().unwrap();
        let top = directory.path();
        fs::create_dir_all(top.join("a/b")).unwrap();
        fs::write(top.join("a/large"), vec![7; 300_000]).unwrap();
        fs::hard_link(top.join("a/large"), top.join("a/b/again")).unwrap();
        let sparse = fs::File::create(top.join("sparse")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        std::os::unix::fs::symlink("/etc", top.join("link")).unwrap();
        let measured = SpaceWalk::default().count(top, &mut all).unwrap();
        assert_eq!((measured.bytes, measured.files, measured.uncounted), (du(top), 6, 0));
        assert_eq!(measured.shared, fs::metadata(top.join("a/large")).unwrap().blocks() * 512);
        let without = SpaceWalk::default().count(top, &mut |path| path == Path::new("a/b")).unwrap();
        assert_eq!((without.files, without.shared), (5, 0));
        assert_eq!(SpaceWalk::default().count(&top.join("missing"), &mut all).unwrap(), Measured::default());
    }

    #[test]
    fn very_deep_directory_is_reported_as_uncounted() {
        let directory = tempfile::tempdir().unwrap();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let mut at = openat(CWD, directory.path(), flags, Mode::empty()).unwrap();
        for _ in 0..MAX_DEPTH + 5 {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = openat(&at, "d", flags, Mode::empty()).unwrap();
        }
        let measured = SpaceWalk::default().count(directory.path(), &mut all).unwrap();
        assert_eq!(measured.uncounted, 1);
    }

    #[test]
    fn inode_in_two_directories_counts_once_per_walk() {
        let directory = tempfile::tempdir().unwrap();
        let (a, b) = (directory.path().join("a"), directory.path().join("b"));
        fs::create_dir(&a).unwrap();
        fs::create_dir(&b).unwrap();
        fs::write(a.join("x"), vec![7; 100_000]).unwrap();
        fs::hard_link(a.join("x"), b.join("x")).unwrap();
        let mut walk = SpaceWalk::default();
        let mut sum = walk.count(&a, &mut all).unwrap();
        sum.add(walk.count(&b, &mut all).unwrap());
        assert_eq!(sum.bytes, du(directory.path()) - du_of_top(directory.path()));
    }

    fn du_of_top(path: &Path) -> u64 {
        fs::metadata(path).unwrap().blocks() * 512
    }
}
