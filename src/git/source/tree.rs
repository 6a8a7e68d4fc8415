//! The exported tree on the disk, `project/tree`, and the list of its entries, `project/list`.
//!
//! [`TreeWriter`] opens each parent directory of an entry separately, and never follows a symlink. A list is used only if it is valid in
//! every detail, so that a damaged list is never applied.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, mkdirat, openat, symlinkat, unlinkat};

use crate::model::SourceList;

/// The maximum size of the list, in bytes.
const MAX_LIST: u64 = 256 << 20;

/// The directory of the exported tree, in an environment's `project/`.
pub const TREE: &str = "tree";
const LIST: &str = "list";
const DRAFT: &str = "list.new";

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::RDONLY);

/// A writer that creates and removes entries below a root. The writer keeps the directories of the last path open, because consecutive
/// paths of a sorted list share most directories.
pub struct TreeWriter<'r> {
    root: BorrowedFd<'r>,
    open: Vec<(String, OwnedFd)>,
}

/// Opens the directory of the exported tree.
pub fn root(path: &Path) -> io::Result<OwnedFd> {
    Ok(openat(CWD, path, DIRECTORY, Mode::empty())?)
}

impl<'r> TreeWriter<'r> {
    /// Creates a writer for entries below `root`.
    pub fn new(root: BorrowedFd<'r>) -> TreeWriter<'r> {
        TreeWriter { root, open: Vec::new() }
    }

    /// Returns the directory that contains `path`, and the last name of `path`.
    fn parent<'p>(&mut self, path: &'p str) -> io::Result<(BorrowedFd<'_>, &'p str)> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let names: Vec<&str> = parent.split('/').filter(|name| !name.is_empty()).collect();
        let shared = self.open.iter().zip(&names).take_while(|((one, _), other)| one == *other).count();
        self.open.truncate(shared);
        for step in names.iter().skip(shared) {
            let here = self.open.last().map_or(self.root, |(_, fd)| fd.as_fd());
            let next = openat(here, *step, DIRECTORY, Mode::empty())?;
            self.open.push((String::from(*step), next));
        }
        Ok((self.open.last().map_or(self.root, |(_, fd)| fd.as_fd()), name))
    }

    /// Removes an entry. A directory must be empty.
    pub fn remove(&mut self, path: &str, directory: bool) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        let flags = if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        Ok(unlinkat(parent, name, flags)?)
    }

    /// Creates a directory.
    pub fn directory(&mut self, path: &str) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        Ok(mkdirat(parent, name, Mode::from_raw_mode(0o755))?)
    }

    /// Creates a symlink.
    pub fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        Ok(symlinkat(target, parent, name)?)
    }

    /// Creates a file, always as a new inode, because another tree may have hard links to the old file.
    pub fn file(&mut self, path: &str, executable: bool, content: &[u8]) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        let mode = Mode::from_raw_mode(if executable { 0o755 } else { 0o644 });
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(openat(parent, name, flags, mode)?);
        file.write_all(content)
    }
}

/// Reads the list of the previous export. Returns `None` if the list is missing or invalid, or if the list was written before the last boot
/// of the machine.
pub fn read_list(place: &Path) -> Option<SourceList> {
    let path = place.join(LIST);
    if fs::symlink_metadata(&path).ok().filter(|meta| meta.is_file())?.len() > MAX_LIST {
        return None;
    }
    let list: SourceList = postcard::from_bytes(&fs::read(&path).ok()?).ok()?;
    let sorted = list.entries.iter().zip(list.entries.iter().skip(1)).all(|(one, next)| one.path < next.path);
    let sound = |path: &str| path.split('/').all(|name| !matches!(name, "" | "." | ".."));
    let lasting = list.boot.is_empty() || list.boot == boot();
    let known = list.format == SourceList::FORMAT && lasting && sorted && list.entries.iter().all(|entry| sound(&entry.path));
    known.then_some(list)
}

/// Removes the list. Call this function before the tree is changed, so that a crash leaves no list that does not match the tree.
pub fn remove_list(place: &Path) -> io::Result<()> {
    for name in [LIST, DRAFT] {
        match fs::remove_file(place.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Returns the boot id of the machine, or empty text if the system has no boot id.
pub fn boot() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

/// Writes the list with an atomic rename. The function does not wait for the disk. After a power failure, the boot id in the list
/// is no longer current, so the next export ignores the list and starts from scratch. If the system has no boot id, the file system
/// is synced.
pub fn write_list(place: &Path, list: &SourceList) -> io::Result<()> {
    let bytes = postcard::to_stdvec(list).map_err(io::Error::other)?;
    let draft = place.join(DRAFT);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).open(&draft)?;
    file.write_all(&bytes)?;
    if list.boot.is_empty() {
        rustix::fs::syncfs(&file)?;
    }
    fs::rename(draft, place.join(LIST))
}
